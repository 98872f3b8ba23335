"""Trees split into arrays, which may enter `jit`, and a hashable static part."""

from collections.abc import Hashable
from typing import Any

import jax
import numpy as np

from .. import _capture
from .aliases import PyTree
from .functions import Function

__all__ = ["Static", "combine", "is_array", "partition"]


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
