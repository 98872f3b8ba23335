"""Digests that identify examples, without a copy of them in memory."""

import hashlib
import os
from typing import Any

import jax
import numpy as np

from diffjax.training import Examples, Rows
from diffjax.training.data.files import pieces

_OF_MAPS: dict[tuple, str] = {}
"""Digests of memory maps by place, size and time of change."""


def digest(arrays: Any) -> str:
    """Sixteen hexadecimal digits of a pytree of arrays.

    Contents are read piece by piece, those of a memory map once per process
    unless its file changed.

    Args:
      arrays: A pytree of arrays, memory maps and `training.Examples`. Those
        that have a `digest` of their own are not read.

    Returns:
      The digits. They depend on values, types and shapes alone.
    """
    leaves = [_leaf(leaf) for leaf in jax.tree.leaves(arrays)]
    return hashlib.sha256(" ".join(leaves).encode()).hexdigest()[:16]


def _leaf(leaf):
    if isinstance(leaf, Rows):
        return f"{_leaf(leaf.array)} rows {_leaf(leaf.rows)}"
    if isinstance(leaf, np.memmap) and leaf.filename is not None:
        status = os.stat(leaf.filename)
        where = (leaf.filename, leaf.ctypes.data, leaf.shape, leaf.strides, leaf.dtype)
        key = (*where, status.st_size, status.st_mtime_ns, status.st_ino)
        if key not in _OF_MAPS:
            _OF_MAPS[key] = _contents(leaf)
        return _OF_MAPS[key]
    if isinstance(leaf, Examples) and leaf.digest is not None:
        return leaf.digest
    return _contents(leaf if isinstance(leaf, Examples) else np.asarray(leaf))


def _contents(array):
    running = hashlib.sha256(f"{array.dtype} {tuple(array.shape)}".encode())
    if np.ndim(array) == 0:
        running.update(np.asarray(array).tobytes())
        return running.hexdigest()
    for piece in pieces(array):
        running.update(np.ascontiguousarray(piece))
    return running.hexdigest()
