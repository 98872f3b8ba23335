"""Nested dicts, lists and tuples of arrays in .npz and .safetensors files.

An array's name is its path, joined by "/". A position in a list is written [0], one
in a tuple (0), so that a file states its structure:

    {"layers": [{"w": w}], "range": (low, high)}
    layers/[0]/w    range/(0)    range/(1)
"""

import pathlib
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ... import checks
from .. import files

__all__ = ["load", "save"]

POSITION = re.compile(r"\[\d+\]|\(\d+\)")


def save(path: str | pathlib.Path, tree: Any) -> None:
    """Write a tree of arrays, whole or not at all.

    Args:
      path: The file, .npz or .safetensors. Its folder is made if it is absent.
      tree: Nested dicts, lists, tuples and named tuples of arrays. Keys are
        strings. A named tuple is stored as the dict of its fields.

    Raises:
      ValueError: If the file's name ends otherwise, a key cannot be part of a
        name, a container is empty, or an entry is not an array of booleans,
        integers, floats or bfloat16.

    Example:
      >>> from diffjax.interop.checkpoints import trees
      >>> trees.save("weights.npz", {"w": jnp.ones(3), "range": (0.0, 1.0)})
      >>> trees.load("weights.npz")["range"]
      (array(0.), array(1.))
    """
    flat = dict(_leaves(tree))
    arrays = {name: np.asarray(leaf) for name, leaf in flat.items()}
    bad = {
        name: "an empty container" if isinstance(flat[name], _Empty) else value.dtype
        for name, value in arrays.items()
        if _kind(value.dtype) not in "biuf"
    }
    bad |= {name: "a key" for name in _bad_keys(tree)}
    checks.require(
        not bad and "" not in arrays,
        "tree must be nested dicts, lists and tuples of arrays of numbers, whose keys "
        "are strings without '/' and not such as [0] or (0), got "
        + ("an array" if "" in arrays and not bad else _listed(bad)),
    )
    files.write(path, arrays)


def load(path: str | pathlib.Path, like: Any = None) -> Any:
    """Read a tree of arrays.

    Args:
      path: The file, .npz or .safetensors, by `save` or any other program.
      like: A tree of arrays, or of `jax.ShapeDtypeStruct`, with the structure,
        shapes and dtypes to be returned. None for those that are stored. Integers
        keep their values, and floats are rounded.

    Returns:
      The tree with NumPy's arrays, which keep 64-bit numbers.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged or a pickle, or its entries are not those of
        `like`. The message names the missing, unknown and misshapen ones, and those
        whose numbers are too large for the dtypes of `like`.
    """
    arrays = files.read(path)
    if like is None:
        return _nested(path, arrays)
    wanted = dict(_leaves(like))
    faults = {
        "missing": [name for name in wanted if name not in arrays],
        "unknown": [name for name in arrays if name not in wanted],
        "of another shape or kind of number": [
            f"{name} {_text(arrays[name])} for {_text(leaf)}"
            for name, leaf in wanted.items()
            if name in arrays and not _fits(arrays[name], leaf)
        ],
    }
    listed = "; ".join(f"{k}: {', '.join(v)}" for k, v in faults.items() if v)
    checks.require(not listed, f"{path} does not hold the entries of like: {listed}")
    with np.errstate(over="ignore"):  # reported here
        cast = {
            name: arrays[name].astype(_dtype(leaf), copy=False)
            for name, leaf in wanted.items()
        }
    large = [
        f"{name} {arrays[name].dtype} for {value.dtype}"
        for name, value in cast.items()
        if not _is_kept(arrays[name], value)
    ]
    checks.require(
        not large,
        f"{path} holds numbers too large for the dtypes of like: {', '.join(large)}",
    )
    return _map(lambda name, leaf: cast[name], like)


class _Empty:
    """Stands for an empty container, which no array could represent."""

    shape, dtype = (0,), np.dtype(object)

    def __array__(self, dtype=None, copy=None):
        return np.zeros(self.shape, self.dtype)


def _items(tree):
    """Parts of a name and children of a container, None for an array."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if _is_named_tuple(tree):
        return list(tree._asdict().items())
    if isinstance(tree, list | tuple):
        form = "[{}]" if isinstance(tree, list) else "({})"
        return [(form.format(index), child) for index, child in enumerate(tree)]
    return None


def _is_named_tuple(tree):
    return isinstance(tree, tuple) and hasattr(type(tree), "_fields")


def _children(tree, name):
    """Names and children of a container, None for an array."""
    items = _items(tree)
    return items and [(f"{name}/{part}" if name else str(part), c) for part, c in items]


def _leaves(tree, name=""):
    """Names and leaves of a tree."""
    children = _children(tree, name)
    if not children:
        yield name, tree if children is None else _Empty()
    for path, child in children or ():
        yield from _leaves(child, path)


def _map(function, tree, name=""):
    """The same tree of function(name, leaf). No container is empty."""
    children = _children(tree, name)
    if children is None:
        return function(name, tree)
    values = [_map(function, child, path) for path, child in children]
    if isinstance(tree, defaultdict):
        return defaultdict(tree.default_factory, zip(tree, values, strict=True))
    if isinstance(tree, Mapping):
        return type(tree)(zip(tree, values, strict=True))  # type: ignore[call-arg]
    return type(tree)(*values) if _is_named_tuple(tree) else type(tree)(values)


def _is_kept(stored, cast):
    """Whether integers are unchanged, and floats finite where they were."""
    if cast is stored:
        return True
    if _kind(stored.dtype) == "f":
        return (np.isfinite(stored) == np.isfinite(cast)).all()
    return (stored == cast).all()


def _nested(path, arrays):
    """The nested tree that the names describe."""
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *parts, last = name.split("/")
        message = f"{path}: {name} names an array inside or around another"
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
            checks.require(isinstance(node, dict), message)
        checks.require(last not in node, message)
        node[last] = value
    return _sequences(tree)


def _sequences(node):
    if not isinstance(node, dict):
        return node
    node = {part: _sequences(child) for part, child in node.items()}
    for form, kind in (("[{}]", list), ("({})", tuple)):
        parts = [form.format(index) for index in range(len(node))]
        if node and set(node) == set(parts):
            return kind(node[part] for part in parts)
    return node


def _bad_keys(tree):
    """Keys of dicts that cannot be parts of names."""
    for part, child in _items(tree) or ():
        plain = isinstance(part, str) and part and "/" not in part
        if not plain or isinstance(tree, Mapping) and POSITION.fullmatch(part):
            yield repr(part)
        yield from _bad_keys(child)


def _listed(faults):
    return ", ".join(f"{name} ({fault})" for name, fault in faults.items())


def _dtype(leaf):
    return np.dtype(getattr(leaf, "dtype", None) or np.asarray(leaf).dtype)


def _kind(dtype):
    return "f" if dtype == jnp.bfloat16 else dtype.kind


def _fits(array, leaf):
    alike = _kind(array.dtype) == _kind(_dtype(leaf))
    return alike and array.shape == np.shape(leaf)


def _text(leaf):
    return f"{_dtype(leaf)}{list(np.shape(leaf))}"
