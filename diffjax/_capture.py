"""The arrays that a function or an object holds, and a key that stands for the rest.

A closure, a bound method or an instance is split into the `jax.Array`s that it
reaches and a hashable `Spec`. It can be made again from the spec, with other
arrays in their places. Two closures of one piece of code have equal specs,
whatever their arrays are, so that a program compiled for one serves the other.
Nothing that is kept by its spec keeps arrays.

Reached are closure cells, defaults and attributes of functions, the globals
that a function of the user names, the attributes of instances of the user's
classes, and whatever pytrees, containers and bound methods among these hold.

A NumPy array of up to `LIMIT` bytes stays one and counts by its contents, as
numbers and strings do. A larger one is treated as a `jax.Array`. What cannot
be taken apart counts by its identity.

The state of a class, of a module and of a container that is no pytree cannot
be exchanged, since there is one of each. The arrays in it count by their
identity. So a replaced one is seen, at the price of another program.
"""

import collections
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import itertools
import site
import sys
import sysconfig
import types
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax._src.core import trace_ctx

LIMIT = 2**16
"""Bytes up to which a NumPy array is kept as a constant."""

OBJECTS = 20_000
"""The most functions, containers and instances that one callable may reach."""

# CPython's Py_TPFLAGS_HEAPTYPE: a class made by a `class` statement
_HEAP_TYPE = 1 << 9
_OPAQUE = frozenset(
    {
        "jax",
        "jaxlib",
        "numpy",
        "flax",
        "optax",
        "orbax",
        "torch",
        "tensorflow",
        "matplotlib",
        "tqdm",
        "pytest",
    }
    | (sys.stdlib_module_names - {"__main__", "types", "argparse"})
)
"""Packages whose instances are not taken apart."""

_LIBRARIES = tuple(
    {
        sysconfig.get_paths()[name]
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
    | set(site.getsitepackages())
)
_CONTAINERS = (dict, list, tuple, set, frozenset, collections.deque, np.ndarray)
_PJIT = type(jax.jit(lambda: None))
_INFINITE = sys.maxsize


class Spec:
    """A hashable description of a value without its arrays.

    Specs are equal where their keys are.
    """

    __slots__ = ("_hash", "data", "key", "kind")

    def __init__(self, kind: str, key: Any, data: Any = None) -> None:
        self.kind, self.key, self.data = kind, key, data
        self._hash = hash((kind, key))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return self is other or (
            isinstance(other, Spec)
            and self._hash == other._hash
            and (self.kind, self.key) == (other.kind, other.key)
        )

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class Identity:
    """A key that is equal for one and the same object only, which it keeps alive."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Identity) and self.value is other.value


_ARRAY = Spec("array", None)


def capture(value: Any) -> tuple[list[Any], Spec]:
    """Split a function, an object or a leaf into its arrays and a `Spec`.

    `restore` makes it again. Raises TypeError if it reaches more than
    `OBJECTS` things.
    """
    walk = _Walk(value)
    spec, _, _ = walk.visit(value)
    return walk.arrays, spec


def restore(spec: Spec, arrays: Iterator[Any]) -> Any:
    """The value that `capture` split, with the next arrays in place of its own."""
    return _restore(spec, arrays, {})


def opened(spec: Spec) -> bool:
    """Whether a spec describes more than one object known by its identity or value."""
    return spec.kind not in ("array", "identity", "numpy", "value")


def is_fixed(function: Any) -> bool:
    """True for a function of a library or in C, which reaches nothing that changes."""
    return _Walk(function).visitor(function) is None


class _Walk:
    """One traversal of all that a value reaches.

    visit(value) returns its spec, whether `restore` makes it again, and the
    number of the earliest unfinished object that it refers to. A value is made
    again if it holds arrays, those of NumPy included.
    """

    def __init__(self, root: Any) -> None:
        self.root = root
        self.arrays: list[Any] = []
        # id -> (number, object kept alive, done, has arrays)
        self.seen: dict[int, tuple[int, Any, bool, bool]] = {}
        self.frozen = 0  # above 0, arrays count by identity
        self.count = 0

    def visit(self, value: Any) -> tuple[Spec, bool, int]:
        if isinstance(value, jax.Array):
            # A tracer may be left behind by an earlier trace.
            if isinstance(value, jax.core.Tracer) and not _is_live(value):
                return (
                    Spec("value", (jax.core.Tracer, str(value.aval)), value),
                    False,
                    _INFINITE,
                )
            if self.frozen:
                return Spec("identity", Identity(value), value), False, _INFINITE
            self.arrays.append(value)
            return _ARRAY, True, _INFINITE
        if isinstance(value, np.ndarray) and value.dtype != object:
            return self.numpy_array(value)
        if _is_value(value):
            # repr distinguishes 0.0 from −0.0, and 1 from 1.0
            key = value if isinstance(value, types.CodeType) else repr(value)
            return Spec("value", (type(value), key), value), False, _INFINITE
        if id(value) in self.seen:
            number, _, done, has_arrays = self.seen[id(value)]
            if done and not has_arrays:
                return Spec("same", number, value), False, _INFINITE
            return Spec("same", number), has_arrays, number
        visitor = self.visitor(value)
        if visitor is None:
            return Spec("identity", Identity(value), value), False, _INFINITE
        self.count += 1
        if self.count > OBJECTS:
            raise TypeError(
                f"{self.root!r} reaches more than {OBJECTS} objects, too many to look "
                "for arrays in: bind what it needs by functools.partial instead"
            )
        number = len(self.seen)
        self.seen[id(value)] = number, value, False, False
        kind, key, data, has_arrays, low = visitor(value)
        low = _INFINITE if low >= number else low
        self.seen[id(value)] = number, value, True, has_arrays or low < number
        if not has_arrays and low == _INFINITE:
            # Nothing to exchange: the object itself serves. One that can be
            # changed, by a callback say, is itself and no equal one.
            itself = Identity(value) if _is_mutable(value) else None
            return (
                Spec("constant", (number, kind, key, itself), value),
                False,
                _INFINITE,
            )
        return Spec(kind, (number, *key), data), has_arrays, low

    def visitor(self, value: Any) -> Any:
        """The method that takes `value` apart, None for what counts by its identity."""
        kind = type(value)
        if kind is types.FunctionType:
            plain = (
                value.__closure__ is None
                and value.__defaults__ is None
                and value.__kwdefaults__ is None
            )
            return None if plain and _is_library(value.__code__) else self.function
        if kind is types.MethodType:
            return self.method
        if isinstance(value, functools.partial):
            return self.partial
        if kind is _PJIT:
            inner = getattr(value, "__wrapped__", None)
            return (
                self.jitted
                if isinstance(inner, types.FunctionType | types.MethodType)
                else None
            )
        if isinstance(value, type):
            return (
                self.class_
                if _can_be_made(value) and _is_users(sys.modules.get(value.__module__))
                else None
            )
        if isinstance(value, types.ModuleType):
            return None
        if _is_linen(value):
            return self.linen
        if not jax.tree_util.all_leaves([value]):
            return self.tree
        if isinstance(value, _CONTAINERS):
            return self.container
        return self.instance if _can_be_made(kind) else None

    def parts(self, *values: Any) -> tuple[list[Spec], bool, int]:
        specs, has_arrays, low = [], False, _INFINITE
        for value in values:
            spec, some, earliest = self.visit(value)
            specs.append(spec)
            has_arrays, low = has_arrays or some, min(low, earliest)
        return specs, has_arrays, low

    def frozen_parts(self, *values: Any) -> list[Spec]:
        """The specs of what cannot be exchanged: arrays among it count by identity."""
        self.frozen += 1
        specs, _, _ = self.parts(*values)
        self.frozen -= 1
        return specs

    def numpy_array(self, value):
        if value.nbytes > LIMIT and not self.frozen:
            self.arrays.append(value)
            return _ARRAY, True, _INFINITE
        digest = hashlib.blake2b(
            np.ascontiguousarray(value).view(np.uint8).data if value.size else b""
        ).digest()
        key = value.shape, value.dtype, digest
        if self.frozen:
            _check_unchanged(value, digest)
            return Spec("value", key, value), False, _INFINITE
        # A copy, for which its holder is made again. Once one float32 program
        # has captured an array of float64, JAX gives the next program its
        # first contents, even if they were changed in place.
        return Spec("numpy", key, value.copy()), True, _INFINITE

    def function(self, f):
        names = () if _is_library(f.__code__) else _global_names(f.__code__)
        names = [name for name in names if name in f.__globals__]
        cells = [_contents(cell) for cell in f.__closure__ or ()]
        modules = [
            m
            for m in (*cells, *(f.__globals__[name] for name in names))
            if _is_module(m) and _is_users(m)
        ]
        names = [name for name in names if not _is_module(f.__globals__[name])]
        held = tuple(
            (name, entry) for name, entry in vars(f).items() if name != "__wrapped__"
        )
        keywords = None if f.__kwdefaults__ is None else tuple(f.__kwdefaults__.items())
        specs, has_arrays, low = self.parts(
            f.__defaults__,
            keywords,
            held,
            *cells,
            *(f.__globals__[name] for name in names),
        )
        stated = (
            self.frozen_parts(*_module_members(modules, f.__code__)) if modules else ()
        )
        key = (
            f.__code__,
            Identity(f.__globals__),
            f.__name__,
            tuple(names),
            len(cells),
            tuple(specs),
            tuple(stated),
        )
        return "function", key, None, has_arrays, low

    def method(self, m):
        specs, has_arrays, low = self.parts(m.__func__, m.__self__)
        return "method", tuple(specs), None, has_arrays, low

    def partial(self, p):
        specs, has_arrays, low = self.parts(p.func, p.args, tuple(p.keywords.items()))
        return "partial", (type(p), *specs), None, has_arrays, low

    def jitted(self, f):
        # By the function that it wraps. While tracing, the two do the same.
        specs, has_arrays, low = self.parts(f.__wrapped__)
        return "jitted", tuple(specs), None, has_arrays, low

    def linen(self, module):
        unbound, variables = (
            module.unbind() if module.scope is not None else (module, None)
        )
        try:
            hash(unbound)
        except TypeError:
            raise TypeError(
                f"{type(module).__name__} has fields that cannot be hashed, such as "
                "arrays: make them parameters or tuples, or bind the module's function "
                f"by functools.partial; got {module!r}"
            ) from None
        specs, has_arrays, low = self.parts(variables)
        return "linen", (unbound, *specs), None, has_arrays, low

    def tree(self, value):
        try:
            leaves, treedef = jax.tree.flatten(value)
            hash(treedef)
        except ValueError:  # a dictionary whose keys have no order
            return self.container(value)
        except TypeError:
            raise TypeError(
                f"{type(value).__name__} has static parts that cannot be hashed, such "
                "as arrays: make them leaves, or bind what is needed by "
                f"functools.partial; got {value!r}"
            ) from None
        specs, has_arrays, low = self.parts(*leaves)
        return "tree", (treedef, tuple(specs)), None, has_arrays, low

    def container(self, value):
        # A dictionary whose keys have no order. A set, or another container
        # that is no pytree, is kept whole, and its arrays count by identity.
        if type(value) is dict:
            specs, has_arrays, low = self.parts(*value.values())
            self.frozen += 1
            keys, _, _ = self.parts(*value)
            self.frozen -= 1
            return "mapping", (tuple(keys), tuple(specs)), None, has_arrays, low
        if isinstance(value, dict):  # of a subclass
            items = itertools.chain(*value.items())
        else:
            items = (
                value.ravel().tolist() if isinstance(value, np.ndarray) else value
            )  # an array of objects
        shape = value.shape if isinstance(value, np.ndarray) else None
        self.frozen += 1
        specs, _, low = self.parts(*items)
        self.frozen -= 1
        key = frozenset(specs) if isinstance(value, set | frozenset) else tuple(specs)
        return "container", (type(value), shape, key), None, False, low

    def class_(self, value):
        """A class of the user's: itself, and what it states for all instances."""
        return (
            "class",
            (Identity(value), *self.frozen_parts(*_class_members(value))),
            None,
            False,
            _INFINITE,
        )

    def instance(self, value):
        attributes = _attributes(value)
        specs, has_arrays, low = self.parts(*attributes.values())
        shared = self.frozen_parts(*_class_members(type(value)))
        return (
            "instance",
            (type(value), tuple(attributes), tuple(specs), tuple(shared)),
            None,
            has_arrays,
            low,
        )


def _restore(spec: Spec, arrays: Iterator[Any], made: dict[int, Any]) -> Any:
    if spec.kind == "array":
        return next(arrays)
    if spec.kind in ("value", "identity", "numpy"):
        return spec.data
    if spec.kind == "constant":
        made[spec.key[0]] = spec.data
        return spec.data
    if spec.kind == "same":
        # A part of a constant was not made here.
        return made.get(spec.key, spec.data)
    number, *key = spec.key
    return _RESTORERS[spec.kind](number, key, arrays, made)


def _restore_function(number, key, arrays, made):
    code, space, name, names, count, specs, _ = key
    cells = tuple(types.CellType() for _ in range(count))
    captured: dict[str, Any] = {}
    namespace = (
        {**space.value}
        if any(_exchanged(s) for s in specs[3 + count :])
        else space.value
    )
    made[number] = f = types.FunctionType(code, namespace, name, None, cells or None)
    f.__defaults__, keywords = (
        _restore(specs[0], arrays, made),
        _restore(specs[1], arrays, made),
    )
    f.__kwdefaults__ = None if keywords is None else dict(keywords)
    vars(f).update(_restore(specs[2], arrays, made))
    for cell, spec in zip(cells, specs[3:], strict=False):
        if spec.data is not _Absent:
            cell.cell_contents = _restore(spec, arrays, made)
    for entry, spec in zip(names, specs[3 + count :], strict=True):
        captured[entry] = _restore(spec, arrays, made)
    if namespace is not space.value:
        namespace.update(captured)
    return f


class _Later:
    # Stands for a function while its contents are made, which may hold the function, as
    # in `self.f = jax.jit(self.g)`.

    function: Any = None

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def _restore_method(number, key, arrays, made):
    later = made[number] = _Later()
    function, owner = (_restore(spec, arrays, made) for spec in key)
    later.function = made[number] = types.MethodType(function, owner)
    return made[number]


def _restore_partial(number, key, arrays, made):
    kind, *specs = key
    function, args, keywords = (_restore(spec, arrays, made) for spec in specs)
    made[number] = kind(function, *args, **dict(keywords))
    return made[number]


def _restore_jitted(number, key, arrays, made):
    later = made[number] = _Later()
    later.function = made[number] = _restore(key[0], arrays, made)
    return made[number]


def _restore_linen(number, key, arrays, made):
    unbound, variables = key
    made[number] = unbound.bind(_restore(variables, arrays, made))
    return made[number]


def _restore_tree(number, key, arrays, made):
    treedef, specs = key
    made[number] = jax.tree.unflatten(
        treedef, [_restore(spec, arrays, made) for spec in specs]
    )
    return made[number]


def _restore_mapping(number, key, arrays, made):
    keys, specs = key
    made[number] = mapping = {}
    for name, spec in zip(keys, specs, strict=True):
        value = _restore(spec, arrays, made)
        mapping[_restore(name, arrays, made)] = value
    return mapping


def _restore_instance(number, key, arrays, made):
    kind, names, specs, _ = key
    made[number] = value = (
        kind() if kind is types.SimpleNamespace else object.__new__(kind)
    )
    for name, spec in zip(names, specs, strict=True):
        object.__setattr__(value, name, _restore(spec, arrays, made))
    return value


_RESTORERS = {
    "function": _restore_function,
    "method": _restore_method,
    "partial": _restore_partial,
    "jitted": _restore_jitted,
    "linen": _restore_linen,
    "tree": _restore_tree,
    "instance": _restore_instance,
    "mapping": _restore_mapping,
}


# By id, the last contents of an array that is kept whole
_WHOLE: dict[int, tuple[weakref.ref, bytes]] = {}


def _check_unchanged(array: np.ndarray, digest: bytes) -> None:
    # Warn if an array that cannot be exchanged for a copy was changed in
    # place. JAX might not see the change.
    if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype:
        return
    at = id(array)
    known = _WHOLE.get(at)
    if known is not None and known[0]() is array and known[1] != digest:
        warnings.warn(
            f"an array of {array.dtype} that a class or a set holds was changed in "
            "place, and a function that uses it may see its first contents: assign a "
            f"new array, or let an instance hold it; now it is {array!r}",
            stacklevel=2,
        )
    _WHOLE[at] = weakref.ref(array, lambda _: _WHOLE.pop(at, None)), digest


def _exchanged(spec: Spec) -> bool:
    return spec.kind not in ("value", "identity", "constant")


class _Absent:
    """Stands for a closure cell that is not filled yet."""


def _contents(cell):
    try:
        return cell.cell_contents
    except ValueError:
        return _Absent


def _is_value(value: Any) -> bool:
    numbers = bool | int | float | complex | np.generic
    if value is None or value is ... or value is _Absent:
        return True
    return isinstance(value, numbers | str | bytes | np.dtype | types.CodeType)


def _is_live(tracer: Any) -> bool:
    # True for a tracer of a trace that goes on. JAX leaves those of finished
    # ones marked as valid.
    trace = trace_ctx.trace
    while trace is not None:
        if trace is tracer._trace:
            return True
        trace = getattr(trace, "parent_trace", None)
    return False


def _is_mutable(value: Any) -> bool:
    if isinstance(value, _CONTAINERS) and not isinstance(value, tuple | frozenset):
        return True
    if isinstance(value, type):  # known by its identity already
        return False
    frozen = dataclasses.is_dataclass(value) and type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
    return not (frozen or isinstance(value, enum.Enum | tuple)) and _can_be_made(
        type(value)
    )


def _is_module(value: Any) -> bool:
    return isinstance(value, types.ModuleType)


def _is_users(module: types.ModuleType | None) -> bool:
    # True for a module of no installed package. One without a file, as in a
    # notebook, is the user's.
    name, file = (
        getattr(module, "__name__", ""),
        getattr(module, "__file__", None) or "",
    )
    return name.partition(".")[0] not in _OPAQUE and not file.startswith(
        (*_LIBRARIES, _OWN)
    )


def _module_members(modules: list[types.ModuleType], code: types.CodeType) -> list[Any]:
    # All that code may read of the user's modules, and of modules that it
    # reaches through them, as in `m.part.weight`.
    names, members, seen = _attribute_names(code), [], set()
    while modules:
        module, *modules = modules
        if id(module) in seen:
            continue
        seen.add(id(module))
        entries = [vars(module)[name] for name in names if name in vars(module)]
        members += [entry for entry in entries if not _is_module(entry)]
        modules += [
            entry for entry in entries if _is_module(entry) and _is_users(entry)
        ]
    return members


@functools.lru_cache(maxsize=4096)
def _is_library(code: types.CodeType) -> bool:
    """Whether code belongs to an installed package, whose globals no user replaces."""
    return code.co_filename.startswith(_LIBRARIES) or code.co_filename.startswith(_OWN)


_OWN = __file__.rpartition("/")[0] + "/"


@functools.lru_cache(maxsize=4096)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """The globals that code names, its inner functions' too."""
    names = {
        entry.argval
        for entry in dis.get_instructions(code)
        if entry.opname == "LOAD_GLOBAL"
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= set(_global_names(constant))
    return tuple(sorted(names))


@functools.lru_cache(maxsize=4096)
def _attribute_names(code: types.CodeType) -> tuple[str, ...]:
    """The names that code looks up, its inner functions' too."""
    inner = (
        _attribute_names(constant)
        for constant in code.co_consts
        if isinstance(constant, types.CodeType)
    )
    return tuple(sorted(set(code.co_names).union(*inner)))


def _is_linen(value: Any) -> bool:
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(value, linen.Module)


def _can_be_made(kind: type) -> bool:
    """Whether instances are made of their attributes alone and belong to the user."""
    if kind is types.SimpleNamespace:
        return True
    if kind.__module__.partition(".")[0] in _OPAQUE:
        return False
    return all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__)


def _attributes(value: Any) -> dict[str, Any]:
    slots = itertools.chain.from_iterable(map(_slots, type(value).__mro__))
    in_slots = {
        name: getattr(value, name)
        for name in slots
        if name != "__weakref__" and hasattr(value, name)
    }
    return {**in_slots, **getattr(value, "__dict__", {})}


def _slots(kind: type) -> list[str]:
    # The attributes that `kind` keeps in slots, private ones as Python mangles them.
    names = vars(kind).get("__slots__", ())
    names = (names,) if isinstance(names, str) else names
    prefix = f"_{kind.__name__.lstrip('_')}"
    return [
        prefix + name if name.startswith("__") and not name.endswith("__") else name
        for name in names
    ]


def _class_members(kind: type) -> list[Any]:
    # Functions and data of the user's classes among the bases of `kind`, by
    # name.
    members = []
    for base in kind.__mro__:
        if base is object or base.__module__.partition(".")[0] in _OPAQUE:
            continue
        for name, entry in sorted(vars(base).items()):
            entry = (
                entry.__func__
                if isinstance(entry, staticmethod | classmethod)
                else entry
            )
            entry = entry.fget if isinstance(entry, property) else entry
            if not (name.startswith("__") and not inspect.isfunction(entry)):
                members.append(entry)
    return members
