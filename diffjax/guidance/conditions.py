"""Conditions, bound to a denoiser or dropped at random in training."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array, Key, PyTree, Scalar, pytree

__all__ = ["Conditioned", "drop_condition"]


BOTH = {"condition": checks.arrays, "null_condition": checks.arrays}
"""Checks of a condition and of ∅."""


@pytree
class Conditioned:
    """The denoiser D(x, t, c) for a bound condition c."""

    denoiser: Any
    condition: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """D, shape of x. A condition passed here takes the place of the bound one."""
        return self.denoiser(x, t, chosen(condition, self.condition))


@checks.arguments(key=checks.key, probability=(checks.within, 0, 1), **BOTH)
def drop_condition(
    key: Key, condition: PyTree, null_condition: PyTree, probability: Scalar = 0.1
) -> PyTree:
    """Replace a condition by ∅ at random (Ho & Salimans 2021, Algorithm 1).

    One network is then trained with and without a condition. The whole
    condition is dropped or kept.

    Args:
      key: Typed key.
      condition: Pytree, the condition of one example. For a batch:
        `jax.vmap(drop_condition, (0, 0, None, None))`.
      null_condition: ∅, of the same structure and shapes.
      probability: Of dropping it, in [0, 1].

    Returns:
      A pytree of the condition's structure, shapes and dtypes.

    Raises:
      TypeError: If the dtype of ∅ does not fit.
      ValueError: If the two differ in structure or shape, or the probability
        lies outside [0, 1].

    Example:
      >>> dj.guidance.drop_condition(key, jnp.array(3), jnp.array(10), 0.0)
      Array(3, dtype=int32)
    """
    check_alike(condition, null_condition)
    drop = jax.random.bernoulli(key, probability)
    return jax.tree.map(
        lambda c, n: jnp.where(drop, n.astype(c.dtype), c), condition, null_condition
    )


def chosen(passed: tuple, bound: PyTree) -> PyTree:
    """The condition passed with a call, or else the bound one.

    Args:
      passed: Conditions passed with the call, one or none.
      bound: The condition bound to the denoiser, or None.

    Returns:
      One example's condition.

    Raises:
      ValueError: If there is neither.
    """
    if passed:
        return passed[0]
    checks.require(
        bound is not None,
        "condition must be given, bound or by sample_many(condition=…), got None",
    )
    return bound


def check_alike(condition: PyTree, null: PyTree) -> None:
    """Raise an error unless a condition and ∅ can be stacked.

    Args:
      condition: Pytree of arrays.
      null: ∅, pytree of arrays.

    Raises:
      TypeError: If the dtype of ∅ does not fit.
      ValueError: If structures or shapes differ.
    """
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (condition, null)]
    checks.require(
        shapes[0] == shapes[1]
        and jax.tree.structure(condition) == jax.tree.structure(null),
        "condition and null_condition must agree in structure and shape, got "
        f"{shapes[0]}, {shapes[1]}",
    )
    for leaf, none in zip(*map(jax.tree.leaves, (condition, null)), strict=True):
        checks.require(
            jnp.result_type(leaf, none) == leaf.dtype,
            f"null_condition must fit dtype {leaf.dtype}, got {none.dtype}",
            TypeError,
        )
