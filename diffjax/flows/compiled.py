"""One compiled program per call, whose result is looked at afterwards."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import PyTree, as_one_program

__all__ = ["call"]

_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def call(
    function: Callable, *arguments: Any, faulty: Callable = np.isnan, **static: Any
) -> PyTree:
    """`types.as_one_program`, with checks of values where the result is faulty.

    A compiled program cannot check the values of arrays. So after a concrete result
    with faulty entries the function is called once more, operation by operation, and
    its checks raise their errors. It is also called so where a user's callable needs
    the values of arrays that are bound to it, as NumPy does.

    Args:
      function: A function of a module.
      *arguments: Its arguments, pytrees.
      faulty: NumPy predicate on the entries of the result.
      **static: Hashable settings, passed by keyword.

    Returns:
      The function's value.
    """
    try:
        result = as_one_program(function, *arguments, **static)
    except _NEEDS_VALUES:
        return function(*arguments, **static)
    parts = jax.tree.leaves(result)
    if not checks.is_traced(parts) and any(
        np.any(faulty(np.asarray(part)))
        for part in parts
        if jnp.issubdtype(part.dtype, jnp.floating)
    ):
        return function(*arguments, **static)
    return result
