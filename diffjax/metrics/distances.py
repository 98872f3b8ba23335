"""Fréchet, energy and sliced Wasserstein distance of two sets of samples."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, spectral
from ..types import Array, ArrayLike, Key
from .sets import HIGHEST, for_each, in_common_unit, means_of_pairs, two_sets

__all__ = ["energy_distance", "frechet_distance", "sliced_wasserstein"]


def frechet_distance(x: ArrayLike, y: ArrayLike) -> Array:
    """Squared Fréchet (2-Wasserstein) distance of Gaussians fitted to x and y.

        ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½)

    On network features this is FID (Dowson & Landau 1982, Heusel et al. 2017,
    eq. 6).

    It is computed as ‖μ₁ − μ₂‖² + min_W ‖A₁ − W A₂‖² over orthogonal W, where
    Σᵢ = AᵢᵀAᵢ. The minimum is at the polar factor of A₁A₂ᵀ. As a sum of
    squares it is never negative, and it is as exact for covariances without
    full rank, where (Σ₁Σ₂)^½ loses half of the digits.

    The estimate is biased upwards, the more the smaller n is: compare only at
    equal n. It is differentiable where n > D and Σ has full rank.

    Args:
      x: (n, …), n ≥ 2.
      y: (m, …), m ≥ 2.

    Returns:
      The distance, in squared data units, shape (). Σ is unbiased (divided by
      n − 1).

    Example:
      >>> x = jnp.array([[0.0], [2.0]])
      >>> round(float(dj.metrics.frechet_distance(x, x + 3)), 3)
      9.0
    """
    return _frechet(*two_sets(x, y))


@jax.jit
def _frechet(x: Array, y: Array) -> Array:
    x, y, unit = in_common_unit(x, y)
    a, b = _covariance_factor(x), _covariance_factor(y)
    rows = max(len(a), len(b))  # a set of n ≤ D examples has only n rows
    a, b = (jnp.pad(factor, ((0, rows - len(factor)), (0, 0))) for factor in (a, b))
    rotation = spectral.polar(jnp.matmul(a, b.T, precision=HIGHEST))  # (rows, rows)
    difference = a - jnp.matmul(rotation, b, precision=HIGHEST)
    means = jnp.sum((x.mean(0) - y.mean(0)) ** 2)
    # unit on either side: its square could overflow
    return unit * (means + jnp.sum(difference**2)) * unit


def _covariance_factor(x: Array) -> Array:
    """A of shape (min(n, D), D) with AᵀA = the unbiased covariance of x (n, D)."""
    return jnp.linalg.qr(x - x.mean(0), mode="r") / math.sqrt(len(x) - 1)


def energy_distance(x: ArrayLike, y: ArrayLike) -> Array:
    """Energy distance of two samples (Székely & Rizzo 2013).

        E = 2 E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖

    The means are over all n², m² and nm pairs, those of an example with itself
    too. So E ≥ 0 to rounding, and 0 for equal sets. For two sets from one
    distribution it is about 2 E‖X − X′‖/n on average at n = m. In one
    dimension it is 2 ∫(F − G)². The paper's test statistic has a further
    factor nm / (n + m).

    Args:
      x: (n, …), n ≥ 2.
      y: (m, …), m ≥ 2.

    Returns:
      The distance, in data units, shape ().

    Example:
      >>> x = jnp.array([[0.0], [2.0]])
      >>> float(dj.metrics.energy_distance(x, x))
      0.0
    """
    return _energy_distance(*two_sets(x, y))


@jax.jit
def _energy_distance(x: Array, y: Array) -> Array:
    x, y, unit = in_common_unit(x, y)
    within = (
        means_of_pairs(_distance, x, x).mean() + means_of_pairs(_distance, y, y).mean()
    )
    return (2 * means_of_pairs(_distance, x, y).mean() - within) * unit


@checks.arguments(key=checks.key, projections=(checks.integer, 1))
def sliced_wasserstein(
    key: Key, x: ArrayLike, y: ArrayLike, projections: int = 128
) -> Array:
    """Squared sliced 2-Wasserstein distance (Rabin et al. 2012, Bonneel et al. 2015).

        SW₂² = E_θ ∫₀¹ (F⁻¹(u) − G⁻¹(u))² du

    F and G are the empirical distributions of θ·x and θ·y, and θ is uniform on
    the unit sphere. The integral is exact: at n = m it is the mean of
    (sort(θ·x) − sort(θ·y))². For n ≠ m, quantiles are compared on each
    interval between the steps of either. A shift by c gives ‖c‖²/D on average.

    Args:
      key: A typed key.
      x: (n, …), n ≥ 2.
      y: (m, …), m ≥ 2.
      projections: Draws of θ that are averaged over, 1 or more.

    Returns:
      The distance, in squared data units, shape ().

    Raises:
      TypeError: If key is not a typed key.
      ValueError: If x or y has fewer than 2 examples, their shapes differ, or
        projections is below 1.

    Example:
      >>> x = jnp.array([[0.0], [2.0]])
      >>> round(float(dj.metrics.sliced_wasserstein(key, x, x + 3, 4)), 3)
      9.0
    """
    x, y = two_sets(x, y)
    n, m = len(x), len(y)
    # steps of both quantile functions, in units of 1 / nm
    steps = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    quantiles = steps[:-1] // m, steps[:-1] // n, np.diff(steps) / (n * m)
    return _sliced_wasserstein(projections, key, x, y, quantiles)


@functools.partial(jax.jit, static_argnums=0)
def _sliced_wasserstein(
    projections: int, key: Key, x: Array, y: Array, quantiles: tuple
) -> Array:
    x_rank, y_rank, weights = quantiles
    x, y, unit = in_common_unit(x, y)
    directions = jax.random.normal(key, (projections, x.shape[1]), x.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)

    def along(direction):
        u = jnp.sort(jnp.dot(x, direction, precision=HIGHEST))  # (n,)
        v = jnp.sort(jnp.dot(y, direction, precision=HIGHEST))  # (m,)
        squares = (u[x_rank] - v[y_rank]) ** 2
        return jnp.dot(weights.astype(u.dtype), squares, precision=HIGHEST)

    return unit * for_each(along, directions, len(x) + len(y)).mean() * unit


def _distance(a: Array, b: Array) -> Array:
    """‖a − b‖, with the gradient 0 where a = b. By two selections, against 0 · ∞."""
    square = jnp.sum((a - b) ** 2)
    distinct = square > 0
    return jnp.where(distinct, jnp.sqrt(jnp.where(distinct, square, 1)), 0)
