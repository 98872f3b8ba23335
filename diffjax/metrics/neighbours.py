"""Nearest neighbours, and the scores that rest on them."""

import functools

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array, ArrayLike
from .sets import for_each, in_common_unit, two_sets

__all__ = ["nearest_neighbours"]


def nearest_neighbours(
    x: ArrayLike, reference: ArrayLike, k: int = 1
) -> tuple[Array, Array]:
    """The k nearest examples of a reference set, for each example of x.

    Distances are computed from the differences themselves: 0 exactly for a
    copy. The lower index comes first in a tie.

    Args:
      x: (n, …), n ≥ 1.
      reference: (m, …), m ≥ 1.
      k: Number of neighbours, between 1 and m.

    Returns:
      (indices, distances), (n, k) both, the nearest first. Distances are
      Euclidean, in data units.

    Raises:
      ValueError: If k is out of range.

    Example:
      >>> x, reference = jnp.array([[0.9]]), jnp.array([[0.0], [1.0]])
      >>> dj.metrics.nearest_neighbours(x, reference)[0].tolist()
      [[1]]
    """
    x, reference = two_sets(x, reference, "reference", minimum=1)
    return _nearest_neighbours(x, reference, checks.integer("k", k, 1, len(reference)))


@functools.partial(jax.jit, static_argnums=2)
def _nearest_neighbours(x: Array, reference: Array, k: int) -> tuple[Array, Array]:
    x, reference, unit = in_common_unit(x, reference)

    def of_one(example):
        squares = jnp.sum((example - reference) ** 2, axis=1)  # (m,)
        closeness, indices = jax.lax.top_k(-squares, k)
        return indices, unit * jnp.sqrt(-closeness)

    return for_each(of_one, x, reference.size)
