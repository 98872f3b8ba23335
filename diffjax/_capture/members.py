"""Contents of functions, classes, modules and instances, and kinds of values."""

import collections
import dataclasses
import dis
import enum
import functools
import inspect
import itertools
import site
import sys
import sysconfig
import types
from typing import Any

import numpy as np
from jax._src.core import trace_ctx

from .specs import Absent

__all__ = [
    "CONTAINERS",
    "attributes",
    "can_be_made",
    "class_members",
    "contents",
    "global_names",
    "is_library",
    "is_linen",
    "is_live",
    "is_module",
    "is_mutable",
    "is_users",
    "is_value",
    "module_members",
]

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
CONTAINERS = (dict, list, tuple, set, frozenset, collections.deque, np.ndarray)

# The folder of diffjax, with the separator at its end
_OWN = __file__.rpartition("/_capture/")[0] + "/"


def contents(cell):
    """The contents of a closure cell, `Absent` before it is filled."""
    try:
        return cell.cell_contents
    except ValueError:
        return Absent


def is_value(value: Any) -> bool:
    """True for numbers, strings, code and the like, which count by what they say."""
    numbers = bool | int | float | complex | np.generic
    if value is None or value is ... or value is Absent:
        return True
    return isinstance(value, numbers | str | bytes | np.dtype | types.CodeType)


def is_live(tracer: Any) -> bool:
    """True for a tracer of a trace that goes on."""
    # JAX leaves those of finished ones marked as valid.
    trace = trace_ctx.trace
    while trace is not None:
        if trace is tracer._trace:
            return True
        trace = getattr(trace, "parent_trace", None)
    return False


def is_mutable(value: Any) -> bool:
    """True for what may be changed in place, and is no class."""
    if isinstance(value, CONTAINERS) and not isinstance(value, tuple | frozenset):
        return True
    if isinstance(value, type):  # known by its identity already
        return False
    frozen = dataclasses.is_dataclass(value) and type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
    return not (frozen or isinstance(value, enum.Enum | tuple)) and can_be_made(
        type(value)
    )


def is_module(value: Any) -> bool:
    """True for a module."""
    return isinstance(value, types.ModuleType)


def is_users(module: types.ModuleType | None) -> bool:
    """True for a module of no installed package.

    One without a file, as in a notebook, is the user's.
    """
    name, file = (
        getattr(module, "__name__", ""),
        getattr(module, "__file__", None) or "",
    )
    return name.partition(".")[0] not in _OPAQUE and not file.startswith(
        (*_LIBRARIES, _OWN)
    )


def module_members(modules: list[types.ModuleType], code: types.CodeType) -> list[Any]:
    """All that code may read of the user's modules.

    Also of modules that it reaches through them, as in `m.part.weight`.

    Args:
      modules: The modules that it names.
      code: The code.

    Returns:
      The entries of these names, no modules.
    """
    names, members, seen = _attribute_names(code), [], set()
    while modules:
        module, *modules = modules
        if id(module) in seen:
            continue
        seen.add(id(module))
        entries = [vars(module)[name] for name in names if name in vars(module)]
        members += [entry for entry in entries if not is_module(entry)]
        modules += [entry for entry in entries if is_module(entry) and is_users(entry)]
    return members


@functools.lru_cache(maxsize=4096)
def is_library(code: types.CodeType) -> bool:
    """Whether code belongs to an installed package, whose globals no user replaces."""
    return code.co_filename.startswith(_LIBRARIES) or code.co_filename.startswith(_OWN)


@functools.lru_cache(maxsize=4096)
def global_names(code: types.CodeType) -> tuple[str, ...]:
    """The globals that code names, its inner functions' too."""
    names = {
        entry.argval
        for entry in dis.get_instructions(code)
        if entry.opname == "LOAD_GLOBAL"
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= set(global_names(constant))
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


def is_linen(value: Any) -> bool:
    """True for a module of Flax's linen, without importing it."""
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(value, linen.Module)


def can_be_made(kind: type) -> bool:
    """Whether instances are made of their attributes alone and belong to the user."""
    if kind is types.SimpleNamespace:
        return True
    if kind.__module__.partition(".")[0] in _OPAQUE:
        return False
    return all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__)


def attributes(value: Any) -> dict[str, Any]:
    """The attributes of an instance by name, those in slots included."""
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


def class_members(kind: type) -> list[Any]:
    """Functions and data of the user's classes among the bases of `kind`, by name."""
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
