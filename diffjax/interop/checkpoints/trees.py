"""Nested dicts, lists and tuples of arrays in .npz and .safetensors files.

An array's name is its path, joined by "/". A position in a list is written [0], one
in a tuple (0), so that a file states its structure:

    {"layers": [{"w": w}], "range": (low, high)}
    layers/[0]/w    range/(0)    range/(1)
"""

import pathlib
import re
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
        name, a container is empty, or an entry is no array of booleans,
        integers, floats or bfloat16.

    Example:
      >>> from diffjax.interop.checkpoints import trees
      >>> trees.save("weights.npz", {"w": jnp.ones(3), "range": (0.0, 1.0)})
      >>> trees.load("weights.npz")["range"]
      (array(0.), array(1.))
    """
    flat = _flat(tree)
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
        shapes and dtypes to be returned. None for those that are stored.

    Returns:
      The tree with NumPy's arrays, which keep 64-bit numbers.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged or a pickle, or its entries are not those of
        `like`. The message names the missing, unknown and misshapen ones.
    """
    arrays = files.read(path)
    if like is None:
        return _nested(path, arrays)
    wanted = _flat(like)
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
    return _map(
        lambda name, leaf: arrays[name].astype(_dtype(leaf), copy=False), like, ""
    )


class _Empty:
    """An empty container, which has no array to be named by."""

    shape, dtype = (0,), np.dtype(object)

    def __array__(self, dtype=None, copy=None):
        return np.zeros(self.shape, self.dtype)


def _items(tree):
    """Parts of a name and children of a container, None for an array."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if hasattr(tree, "_fields"):
        return list(tree._asdict().items())
    if isinstance(tree, list | tuple):
        form = "[{}]" if isinstance(tree, list) else "({})"
        return [(form.format(index), child) for index, child in enumerate(tree)]
    return None


def _map(function, tree, name):
    """The same tree of function(name, leaf)."""
    items = _items(tree)
    if items is None or not items:
        return function(name, tree if items is None else _Empty())
    children = [
        _map(function, child, f"{name}/{part}" if name else str(part))
        for part, child in items
    ]
    if isinstance(tree, Mapping):
        return type(tree)(zip(tree, children, strict=True))  # type: ignore[call-arg]
    return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)


def _flat(tree):
    flat = {}
    _map(flat.__setitem__, tree, "")
    return flat


def _nested(path, arrays):
    """The tree that names state."""
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *parts, last = name.split("/")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
            inner = isinstance(node, dict)
            checks.require(inner, f"{path} has an array above another, {name}")
        checks.require(last not in node, f"{path} has an array above another, {name}")
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
