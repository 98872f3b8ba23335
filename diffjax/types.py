"""Type aliases, pytrees, and compiled programs of functions that hold arrays."""

import collections
import concurrent.futures
import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Hashable
from types import MethodType
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state

from . import _capture

__all__ = [
    "Array",
    "ArrayLike",
    "Denoiser",
    "Function",
    "Key",
    "PROGRAMS",
    "PartialPytree",
    "PyTree",
    "Scalar",
    "Static",
    "Velocity",
    "as_one_program",
    "as_pytree",
    "as_pytree_callable",
    "check_integers",
    "combine",
    "compiled",
    "is_array",
    "is_eager",
    "one_program",
    "partition",
    "pytree",
    "static_field",
]


def __dir__() -> list[str]:
    return __all__


Array = jax.Array
ArrayLike = jax.typing.ArrayLike
Key = jax.Array
"""A typed key, as made by `jax.random.key`."""
Scalar = jax.typing.ArrayLike
"""A number or an array of shape ()."""
PyTree = Any
Denoiser = Callable[..., Array]
"""(x, t) -> E[x_0 | x_t = x], for one example x of any shape and a scalar t."""
Velocity = Callable[..., Any]
"""(x, t) -> dx/dt."""

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree whose treedef names the class.

    Fields are children, except those declared with `static_field()`, which
    must be hashable. JAX compares the treedefs of two `register_dataclass`
    classes by field names alone, so that two schedules with equal fields would
    share compiled code. Here the class is part of the auxiliary data.

    Values are equal, and have one hash, where their fields do. A value that
    holds an array, or anything else without a hash, equals only itself. So
    `jax.jit` accepts every instance with a `__call__` as the function itself.

    It then compiles the instance's arrays in as constants, as it does with
    those of a closure. To trace them, pass the instance as an argument:
    `jax.jit(lambda d, x, t: d(x, t))`.

    Args:
      cls: A class with annotated fields.

    Returns:
      The class.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    children = [f.name for f in fields if not f.metadata.get("static")]
    static = [f.name for f in fields if f.metadata.get("static")]

    def flatten_with_keys(value):
        keyed = [
            (jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in children
        ]
        return keyed, (cls, tuple(getattr(value, name) for name in static))

    def flatten(value):
        leaves = [getattr(value, name) for name in children]
        return leaves, (cls, tuple(getattr(value, name) for name in static))

    def unflatten(aux, values):
        # Without __init__: constructors check arguments, and here values may
        # be tracers, None or the placeholders of jax.tree.map.
        value = object.__new__(cls)
        for name, child in zip(children, values, strict=True):
            object.__setattr__(value, name, child)
        for name, entry in zip(static, aux[1], strict=True):
            object.__setattr__(value, name, entry)
        return value

    cls.__hash__ = _hash  # type: ignore[method-assign]
    cls.__eq__ = _equal  # type: ignore[method-assign]
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def _contents(value: Any) -> Any:
    """(class, fields) if they can be hashed, otherwise None."""
    contents = (
        type(value),
        *(getattr(value, field.name) for field in dataclasses.fields(value)),
    )
    try:
        hash(contents)
    except TypeError:
        return None
    return contents


def _hash(value: Any) -> int:
    contents = _contents(value)
    return object.__hash__(value) if contents is None else hash(contents)


def _equal(value: Any, other: Any) -> Any:
    # The == of dataclasses compares arrays, whose truth value is an error.
    # JAX's cache of jitted functions compares any two entries that share a
    # bucket.
    if value is other or type(value) is not type(other):
        return value is other or NotImplemented
    contents = _contents(value)
    return contents is not None and contents == _contents(other)


def static_field(**kwargs: Any) -> Any:
    """A dataclass field that is part of the treedef, not a child.

    Its value must be hashable. Keywords are those of `dataclasses.field`.
    """
    return dataclasses.field(metadata={"static": True}, **kwargs)


@jax.tree_util.register_pytree_node_class
class Function:
    """A function, method or object as a pytree, whose leaves are the arrays it reaches.

    See `as_pytree_callable`. It is taken apart whenever it is flattened, so
    that arrays replaced since then are seen. Its attributes are those of the
    object.
    """

    def __init__(self, function: Any) -> None:
        self._function: Any = function
        self._parts: Any = None

    @property
    def function(self) -> Any:
        """The function itself, made again from its parts at the first use."""
        if self._function is _UNMADE:
            self._function = _capture.restore(self._parts[1], iter(self._parts[0]))
        return self._function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's value."""
        return self.function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("_function", "_parts"):
            raise AttributeError(name)
        return getattr(self.function, name)

    def __reduce__(self) -> tuple:
        # By default copy and pickle look for attributes of an object that has
        # none yet, and __getattr__ would recurse without end.
        return type(self), (self.function,)

    def __repr__(self) -> str:
        return f"Function({self._function!r})"

    def tree_flatten(self) -> tuple[list[Any], Any]:
        """The arrays, and a description of the rest."""
        return _capture.capture(self._function) if self._parts is None else self._parts

    @classmethod
    def tree_unflatten(cls, spec: Any, arrays: Any) -> "Function":
        """The inverse of `tree_flatten`.

        Args:
          spec: The description.
          arrays: The arrays, or others in their places.

        Returns:
          The function, which is made at its first use.
        """
        value = object.__new__(cls)
        value._function, value._parts = _UNMADE, (list(arrays), spec)
        return value


_UNMADE: Any = object()


@pytree
class PartialPytree:
    """`functools.partial` as a pytree, whose function is a child too.

    Attributes:
      func: The function, a callable pytree.
      args: Its first arguments.
      keywords: Arguments by keyword.
    """

    func: Any
    args: tuple
    keywords: dict

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """func(*self.args, *args, **self.keywords, **kwargs)."""
        return self.func(*self.args, *args, **{**self.keywords, **kwargs})


def as_pytree_callable(function: Callable) -> Callable:
    """A function as a pytree, whose leaves are the arrays that it reaches.

    Arrays bound by `functools.partial` are leaves. So are those in closures,
    in the attributes of plain objects, and in the globals that a function of
    the user names (see `diffjax._capture`).

    They are looked up whenever the pytree is flattened, hence at each call of
    `sample` and the like. So arrays replaced in between are seen, and closures
    of one piece of code share one compiled program.

    A method bound to a pytree, such as `target.log_prob`, has the leaves of
    that pytree. A module that is a pytree already (NNX, Equinox, a value of
    diffjax) is returned unchanged.

    Args:
      function: Any callable.

    Returns:
      A callable pytree.
    """
    if isinstance(function, MethodType) and not jax.tree_util.all_leaves(
        [function.__self__]
    ):
        return jax.tree_util.Partial(function.__func__, function.__self__)
    if isinstance(function, functools.partial):
        if _capture.is_fixed(function.func):
            same = isinstance(function, jax.tree_util.Partial)
            return (
                function
                if same
                else jax.tree_util.Partial(
                    function.func, *function.args, **function.keywords
                )
            )
        return PartialPytree(
            as_pytree_callable(function.func), function.args, dict(function.keywords)
        )
    return as_pytree(function)


def as_pytree(value: Any) -> Any:
    """The value if it is a pytree, otherwise a `Function` of it.

    The arrays of a plain dataclass, say, are then leaves.
    """
    return Function(value) if jax.tree_util.all_leaves([value]) else value


def is_array(leaf: Any) -> bool:
    """True for a leaf that is traced: an array or a Python float.

    Functions, strings, integers and booleans are static.
    """
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | float | complex)


class Static:
    """The hashable part of a tree that `partition` split."""

    __slots__ = ("_hash", "count", "leaves", "opened", "tree", "treedef")

    def __init__(
        self,
        treedef: Any,
        leaves: tuple[Hashable, ...],
        count: int,
        *,
        opened: bool,
        tree: PyTree = None,
    ) -> None:
        self.treedef, self.leaves, self.count = treedef, leaves, count
        self.opened, self.tree = opened, tree
        self._hash = hash((treedef, leaves))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return self is other or (
            isinstance(other, Static)
            and self._hash == other._hash
            and self.treedef == other.treedef
            and self.leaves == other.leaves
        )

    def __repr__(self) -> str:
        return f"Static({self.treedef})"


def partition(tree: PyTree) -> tuple[list[Any], Static]:
    """Split a tree into arrays, which may enter `jit`, and a hashable static part.

    Functions and plain objects among the leaves are taken apart as by
    `as_pytree_callable`.

    Args:
      tree: Any pytree.

    Returns:
      The arrays and the static part, for `combine`.
    """
    leaves, treedef = jax.tree.flatten(tree)
    arrays: list[Any] = []
    rest: list[Hashable] = []
    opened = False
    for leaf in leaves:
        if is_array(leaf):
            arrays.append(leaf)
            rest.append(_ARRAY)
        else:
            more, spec = _capture.capture(leaf)
            arrays += more
            rest.append(spec)
            opened = opened or _capture.opened(spec)
    opened = opened or any(
        isinstance(node, Function)
        for node in jax.tree.leaves(tree, is_leaf=_is_function)
    )
    return arrays, Static(treedef, tuple(rest), len(arrays), opened=opened, tree=tree)


def _is_function(node: Any) -> bool:
    return isinstance(node, Function)


def combine(arrays: list[Any], static: Static) -> PyTree:
    """The tree that `partition` split.

    Args:
      arrays: The arrays, or others in their places.
      static: The static part.

    Returns:
      The tree.
    """
    remaining = iter(arrays)
    return jax.tree.unflatten(
        static.treedef,
        [
            next(remaining) if leaf is _ARRAY else _capture.restore(leaf, remaining)
            for leaf in static.leaves
        ],
    )


class _ArraySlot:
    # Marks in a static part where an array was taken out.

    def __repr__(self) -> str:
        return "<array>"


_ARRAY = _ArraySlot()

PROGRAMS = 64
"""The number of static arguments with a user's functions that `compiled` keeps.

It holds for each compiled function, with the programs of these arguments.
"""


def compiled(
    function: Callable | None = None, *, static_argnums: int | tuple[int, ...] = 0
) -> Callable:
    """`jax.jit` whose static arguments may hold functions, as `partition` makes them.

    For each value of the static arguments there is one jitted function. Those
    whose static arguments hold functions or objects of the user are dropped,
    with their programs, when `PROGRAMS` others were used since. So a program
    that is compiled for a closure does not outlive its use.

    A function that changes what it reaches while it is traced (it counts its
    traces, say) is found again all the same.

    Args:
      function: A function of positional arguments.
      static_argnums: The positions of those that are static, hashable.

    Returns:
      The compiled function.
    """
    if function is None:
        return functools.partial(compiled, static_argnums=static_argnums)
    return _Compiled(
        function,
        (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums),
    )


class _Compiled:
    # See `compiled`.

    def __init__(self, function, static_argnums):
        functools.update_wrapper(self, function)
        self._function, self._positions = function, static_argnums
        self._kept: dict[Any, Any] = {}
        self._recent: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Any:
        settings = tuple(args[i] for i in self._positions)
        dynamic = [arg for i, arg in enumerate(args) if i not in self._positions]
        static = _without_trees(settings)
        program = self._program(static)
        before = program.traces
        result = program.jitted(*dynamic)
        if program.traces != before:
            again = _without_trees(settings, anew=True)
            # Tracing itself may change what the functions reach: a count of
            # its traces.
            if again != static and _counts(again) == _counts(static):
                self._keep(again, program)
        return result

    def _cache_size(self):
        # The number of programs, as JAX's own jitted functions give it.
        programs = {id(p): p for p in (*self._kept.values(), *self._recent.values())}
        return sum(program.jitted._cache_size() for program in programs.values())

    def _program(self, static):
        with self._lock:
            if static in self._kept:
                return self._kept[static]
            if static in self._recent:
                self._recent.move_to_end(static)
                return self._recent[static]
        program = _Program(self._function, self._positions, static)
        self._keep(static, program)
        return program

    def _keep(self, static, program):
        with self._lock:
            if not _is_opened(static):
                self._kept[static] = program
                return
            self._recent[static] = program
            while len(self._recent) > PROGRAMS:
                self._recent.popitem(last=False)


def _entries(value: Any) -> dict[str, Any] | None:
    # The entries of a tuple or of a dataclass of settings by name, None of
    # others.
    if isinstance(value, tuple):
        names = getattr(value, "_fields", map(str, range(len(value))))
        return dict(zip(names, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return None


def _without_trees(value: Any, anew: bool = False) -> Any:
    # `value` with each `Static` in it, however deep in tuples and settings,
    # freed of its tree, or, anew, made of its tree again.
    if isinstance(value, Static):
        if value.tree is None:
            return value
        value = partition(value.tree)[1] if anew else value
        return Static(value.treedef, value.leaves, value.count, opened=value.opened)
    before = _entries(value)
    if before is None:
        return value
    after = {name: _without_trees(entry, anew) for name, entry in before.items()}
    if all(after[name] is before[name] for name in before):
        return value
    if not isinstance(value, tuple):
        return dataclasses.replace(value, **after)
    is_named = hasattr(value, "_fields")
    return type(value)(**after) if is_named else tuple(after.values())


def _counts(value: Any) -> list[int]:
    # The number of arrays beside each `Static` in nested tuples and settings.
    if isinstance(value, Static):
        return [value.count]
    entries = _entries(value) or {}
    return [count for entry in entries.values() for count in _counts(entry)]


def _is_opened(value: Any) -> bool:
    if isinstance(value, Static):
        return value.opened
    return any(map(_is_opened, (_entries(value) or {}).values()))


class _Program:
    # One jitted function of the arguments that are not static.

    def __init__(self, function, positions, static):
        self.traces = 0

        @functools.wraps(function)
        def body(*dynamic):
            self.traces += 1
            args = list(dynamic)
            for position, value in sorted(
                zip(positions, static, strict=True), key=lambda pair: pair[0]
            ):
                args.insert(position, value)
            return function(*args)

        self.jitted = jax.jit(body)


def is_eager(*values: Any) -> bool:
    """True if nothing is being traced, neither these values nor the code around."""
    state = get_opaque_trace_state(convention="flax")
    return state == _NO_TRACE and not any(
        isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values)
    )


def _untraced_state() -> Any:
    # In a new thread, where nothing is traced: this module may be imported
    # under jit.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(get_opaque_trace_state, convention="flax").result()


_NO_TRACE = _untraced_state()


def as_one_program(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call a function as one compiled program, so that a first call compiles no more.

    Called while something is traced, the function is called directly.

    Args:
      function: A function of a module, never a closure. The program is kept
        under it.
      *args: Pytrees. Arrays and floats in them are traced, and those that
        functions and objects reach. The rest is static, integers too. See
        `partition`.
      **kwargs: The same, by keyword.

    Returns:
      The function's value.
    """
    if not is_eager(args, kwargs):
        return function(*args, **kwargs)
    arrays, static = partition((args, kwargs))
    return _apply((function, static), arrays)


def one_program(function: Callable) -> Callable:
    """Decorator of a function that is always called by `as_one_program`.

    Args given by keyword and by position run the same program.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            bound = signature.bind(*args, **kwargs)
            args, kwargs = bound.args, bound.kwargs
        try:
            return as_one_program(function, *args, **kwargs)
        except OverflowError:
            for name, value in zip(signature.parameters, args, strict=False):
                check_integers(name, value)
            raise

    return call


@compiled
def _apply(settings, arrays):
    function, static = settings
    args, kwargs = combine(arrays, static)
    return function(*args, **kwargs)


def check_integers(name: str, tree: Any) -> None:
    """Raise ValueError if a pytree holds a Python int that no int32 holds.

    Args:
      name: The name of the argument, for the message.
      tree: The argument. JAX has no array for such an integer.
    """
    for leaf in jax.tree.leaves(tree):
        if type(leaf) is int and not -(2**31) <= leaf < 2**31:
            raise ValueError(
                f"{name} must hold no integer of more than 32 bits, got {leaf}"
            )
