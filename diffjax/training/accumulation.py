"""The mean of a gradient over micro-batches, and the types of metrics."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array, ArrayLike, PyTree

__all__ = ["STEP_METRICS", "accumulated", "row", "scalars", "wide"]

STEP_METRICS = ("loss", "grad_norm", "finite")
"""Names of the metrics that the step itself computes."""


def accumulated(gradient: Callable, n: int) -> Callable:
    """`gradient` as the mean over n micro-batches of a batch.

    Args:
      gradient: (params, key, batch) -> ((loss, metrics), gradient).
      n: Number of micro-batches, see `state.make_step`.

    Returns:
      A function of the same arguments. It raises ValueError for a batch that
      cannot be split evenly.
    """

    @functools.partial(jax.jit, inline=True)  # traced once
    def one(params, key, batch):
        (loss, extra), grads = gradient(params, key, batch)
        return jax.tree.map(_real, ((loss, scalars(extra)), grads))

    def mean(params, key, batch):
        parts = jax.tree_util.tree_map_with_path(
            lambda *of: _micro_batches(*of, n), batch
        )

        def add(total, numbered):
            i, part = numbered
            now = one(params, jax.random.fold_in(key, i), part)
            return jax.tree.map(jnp.add, total, now), None

        forms = jax.eval_shape(one, params, key, row(parts, 0))
        total = jax.tree.map(lambda form: jnp.zeros(form.shape, form.dtype), forms)
        total, _ = jax.lax.scan(add, total, (jnp.arange(n), parts))
        (loss, extra), grads = jax.tree.map(lambda sum: sum / n, total)
        # Optimisers keep their state in the type of the parameters.
        grads = jax.tree.map(lambda g, p: g.astype(jnp.result_type(p)), grads, params)
        return (loss, extra), grads

    return mean


def _micro_batches(path: Any, leaf: Array, n: int) -> Array:
    """Micro-batches (n, B/n, ...) of one leaf (B, ...) of a batch."""
    shape = jnp.shape(leaf)
    checks.require(
        shape and shape[0] % n == 0,
        f"batch_size must be a multiple of accumulate={n}, got the shape {shape} of "
        f"batch{jax.tree_util.keystr(path)}",
    )
    # Examples go round. So where devices hold B in equal slices, each micro-batch
    # lies on all of them alike, and nothing moves.
    return jnp.moveaxis(jnp.reshape(leaf, (shape[0] // n, n, *shape[1:])), 1, 0)


def row(batches: PyTree, i: ArrayLike) -> PyTree:
    """Entry of the leading axis of every leaf.

    Args:
      batches: A pytree of arrays (K, ...).
      i: The entry, () integer.

    Returns:
      The pytree, with leaves (...).
    """
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), batches
    )


def scalars(extra: dict[str, Array]) -> dict[str, Array]:
    """The metrics of a loss, checked to be scalars with names of their own."""
    for name, value in extra.items():
        metric, shape = f"loss_fn's metric {name!r}", jnp.shape(value)
        checks.require(
            name not in STEP_METRICS, f"{metric} must be none of {STEP_METRICS}"
        )
        checks.require(shape == (), f"{metric} must be a scalar, got shape {shape}")
    return {name: jnp.asarray(value) for name, value in extra.items()}


def wide(value: ArrayLike) -> Array:
    """A real number in float32 at least. Integers are unchanged."""
    value = jnp.asarray(value)
    return _real(value) if jnp.issubdtype(value.dtype, jnp.inexact) else value


def _real(value: ArrayLike) -> Array:
    value = jnp.asarray(value)
    return value.astype(checks.promoted(value.dtype, jnp.float32))
