"""One compiled program per call, where what is called carries its arrays as leaves."""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .. import checks
from ..types import PyTree, is_array

_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@functools.cache
def _compiled(function: Callable, static: tuple) -> Callable:
    return jax.jit(function, static_argnames=static)


def call(
    function: Callable, *arguments: Any, faulty: Callable = np.isnan, **static: Any
) -> PyTree:
    """`function(*arguments, **static)` by one compiled program where that is safe, otherwise operation by operation.

    The second way is also taken where a callable needs the values of arrays bound to it, and after a concrete result
    with faulty entries, so that checks of concrete values, which a compiled program cannot make, raise their errors.

    Args:
      function: A module-level function, whose compiled programs are kept.
      *arguments: Pytrees, traced in the first way.
      faulty: Numpy predicate on the entries of the result.
      **static: Hashable settings.

    Returns:
      What the function returns.
    """
    if carries_arrays(arguments):
        try:
            result = _compiled(function, tuple(static))(*arguments, **static)
        except (
            _NEEDS_VALUES
        ):  # as NumPy within a callable does, of arrays that are bound to it
            return function(*arguments, **static)
        parts = jax.tree.leaves(result)
        if checks.is_traced(parts) or not any(
            np.any(faulty(np.asarray(part)))
            for part in parts
            if jnp.issubdtype(part.dtype, jnp.floating)
        ):
            return result
    return function(*arguments, **static)


def carries_arrays(tree: PyTree) -> bool:
    """Whether all that may change in `tree` is an array leaf.

    A closure or an object that is no pytree may hold arrays that are replaced later. A compiled program would keep the
    first ones, and every new closure would keep a program of its own.
    """

    def is_function(node):
        return isinstance(node, jax.tree_util.Partial)

    def safe(node):
        if not is_function(node):
            return is_array(node)
        return _is_plain(node.func) and carries_arrays((node.args, node.keywords))

    return all(map(safe, jax.tree.leaves(tree, is_leaf=is_function)))


def _is_plain(function):
    if isinstance(function, MethodType):
        return isinstance(function.__self__, nn.Module)  # frozen, and equal by value
    return (
        getattr(function, "__closure__", 0) is None
        and "<locals>" not in function.__qualname__
    )
