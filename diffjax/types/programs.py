"""Compiled programs of functions that hold arrays."""

import collections
import concurrent.futures
import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import get_opaque_trace_state

from .partitions import Static, combine, partition

__all__ = [
    "PROGRAMS",
    "as_one_program",
    "check_integers",
    "compiled",
    "is_eager",
    "one_program",
]

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
