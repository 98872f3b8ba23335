"""Two sets of examples: their checks, their common unit, and maps over their pairs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import Array, ArrayLike

__all__ = ["KernelFunction", "for_each", "in_common_unit", "means_of_pairs", "two_sets"]

KernelFunction = Callable[[Array, Array], Array]
"""Positive definite function (a, b) -> k(a, b) of two flattened examples (D,)."""

HIGHEST = jax.lax.Precision.HIGHEST

BLOCK = 2**24
"""Numbers that a block of rows may hold at once."""


def in_common_unit(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Two sets centred and of size 1, so that no square over- or underflows.

    It is for distances that know no origin.

    Args:
      x: (n, D).
      y: (m, D).

    Returns:
      (x − c)/s, (y − c)/s and s.
    """
    centre = jax.lax.stop_gradient(_centre(jnp, y))
    x, y = x - centre, y - centre
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.max(jnp.abs(x)), jnp.max(jnp.abs(y))))
    unit = jnp.where(unit > 0, unit, 1)
    return x / unit, y / unit, unit


_CENTRE_OF = 101
"""Examples whose median is the origin in which distances are computed."""


def _centre(xp: Any, y: Any) -> Any:
    """A point amid the examples, (D,).

    A median, because a far outlier as origin would round all others together.
    """
    return xp.median(y[:_CENTRE_OF], 0)


def means_of_pairs(function: KernelFunction, x: Array, y: Array) -> Array:
    """Mean of function(xᵢ, yⱼ) over all j, for each i.

    Args:
      function: (a, b) -> (), of two examples (D,).
      x: (n, D).
      y: (m, D).

    Returns:
      The means, (n,).
    """
    row = lambda a: jax.vmap(lambda b: function(a, b))(y).mean()
    return for_each(row, x, y.size)


def for_each(function: Callable, xs, width: int):
    """Apply a function to every row, in blocks that hold BLOCK numbers.

    Args:
      function: Of one row.
      xs: A pytree of arrays with one leading axis.
      width: Numbers that the work on one row holds. For pairs it is m·D: XLA
        fuses the differences into their sum, unless it has another use for
        them.

    Returns:
      The results, with that leading axis.
    """
    return jax.lax.map(function, xs, batch_size=max(1, BLOCK // width))


def two_sets(
    x: ArrayLike,
    y: ArrayLike,
    y_name: str = "y",
    minimum: int = 2,
    *,
    centred: bool = True,
) -> tuple[Array, Array]:
    """Check two sets of examples and flatten them.

    Args:
      x: (n, …).
      y: (m, …), of the same shape of examples.
      y_name: The name of y, for messages.
      minimum: Least number of examples of both.
      centred: Whether concrete sets are shifted by the median of some of y, in
        float64, before they are rounded.

    Returns:
      (n, D) and (m, D) of one dtype.

    Raises:
      ValueError: If either is no set of finite examples, or they differ in
        shape.
    """
    exact = x, y
    x, y = _examples("x", x, minimum), _examples(y_name, y, minimum)
    message = (
        f"{y_name} must hold examples of x's shape {x.shape[1:]}, got {y.shape[1:]}"
    )
    checks.require(x.shape[1:] == y.shape[1:], message)
    dtype = checks.promoted(x.dtype, y.dtype)
    if checks.is_traced(x, y):
        return x.reshape(len(x), -1).astype(dtype), y.reshape(len(y), -1).astype(dtype)
    x, y = (np.asarray(value, np.float64).reshape(len(value), -1) for value in exact)
    centre = _centre(np, y) if centred else 0
    return (x - centre).astype(dtype), (y - centre).astype(dtype)


def _examples(name: str, value: ArrayLike, minimum: int) -> Array:
    array = checks.finite_array(name, value)
    axis = f"{name} must have examples on its leading axis, got shape ()"
    checks.require(array.ndim > 0, axis)
    least = "1 example" if minimum == 1 else f"{minimum} examples"
    few = f"{name} must hold at least {least}, got shape {array.shape}"
    checks.require(len(array) >= minimum and array.size > 0, few)
    return array
