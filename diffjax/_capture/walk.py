"""The traversal of all that a value reaches."""

import functools
import hashlib
import itertools
import sys
import types
import warnings
import weakref
from typing import Any

import jax
import numpy as np

from . import members
from .specs import ARRAY, Identity, Spec

__all__ = ["LIMIT", "OBJECTS", "Walk"]

LIMIT = 2**16
"""Bytes up to which a NumPy array is kept as a constant."""

OBJECTS = 20_000
"""The most functions, containers and instances that one callable may reach."""

_PJIT = type(jax.jit(lambda: None))
_INFINITE = sys.maxsize


class Walk:
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
            if isinstance(value, jax.core.Tracer) and not members.is_live(value):
                return (
                    Spec("value", (jax.core.Tracer, str(value.aval)), value),
                    False,
                    _INFINITE,
                )
            if self.frozen:
                return Spec("identity", Identity(value), value), False, _INFINITE
            self.arrays.append(value)
            return ARRAY, True, _INFINITE
        if isinstance(value, np.ndarray) and value.dtype != object:
            return self.numpy_array(value)
        if members.is_value(value):
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
            itself = Identity(value) if members.is_mutable(value) else None
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
            return (
                None if plain and members.is_library(value.__code__) else self.function
            )
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
                if members.can_be_made(value)
                and members.is_users(sys.modules.get(value.__module__))
                else None
            )
        if isinstance(value, types.ModuleType):
            return None
        if members.is_linen(value):
            return self.linen
        if not jax.tree_util.all_leaves([value]):
            return self.tree
        if isinstance(value, members.CONTAINERS):
            return self.container
        return self.instance if members.can_be_made(kind) else None

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
            return ARRAY, True, _INFINITE
        digest = hashlib.blake2b(
            np.ascontiguousarray(value).view(np.uint8).data if value.size else b""
        ).digest()
        key = value.shape, value.dtype, digest
        if self.frozen:
            _warn_if_changed(value, digest)
            return Spec("value", key, value), False, _INFINITE
        # A copy, for which its holder is made again. Once one float32 program
        # has captured an array of float64, JAX gives the next program its
        # first contents, even if they were changed in place.
        return Spec("numpy", key, value.copy()), True, _INFINITE

    def function(self, f):
        names = (
            () if members.is_library(f.__code__) else members.global_names(f.__code__)
        )
        names = [name for name in names if name in f.__globals__]
        cells = [members.contents(cell) for cell in f.__closure__ or ()]
        modules = [
            m
            for m in (*cells, *(f.__globals__[name] for name in names))
            if members.is_module(m) and members.is_users(m)
        ]
        names = [name for name in names if not members.is_module(f.__globals__[name])]
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
            self.frozen_parts(*members.module_members(modules, f.__code__))
            if modules
            else ()
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
            (Identity(value), *self.frozen_parts(*members.class_members(value))),
            None,
            False,
            _INFINITE,
        )

    def instance(self, value):
        attributes = members.attributes(value)
        specs, has_arrays, low = self.parts(*attributes.values())
        shared = self.frozen_parts(*members.class_members(type(value)))
        return (
            "instance",
            (type(value), tuple(attributes), tuple(specs), tuple(shared)),
            None,
            has_arrays,
            low,
        )


# By id, the last contents of an array that is kept whole
_WHOLE: dict[int, tuple[weakref.ref, bytes]] = {}


def _warn_if_changed(array: np.ndarray, digest: bytes) -> None:
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
