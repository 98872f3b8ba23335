"""Distances between two sets of samples, and nearest neighbours.

Each distance takes n examples on the leading axis of `x` and m on that of `y`, of one shape, flattened to D numbers
each, and returns a scalar in at least float32. Each is the *squared* one, which is the quantity that literature
reports under these names: FID, KID, E(X, Y), SW₂². All are pure functions of their arrays and pass through `jit`.
No n × m × D array is held: pairs are visited in blocks of rows.

All raise ValueError where an array has no leading axis, too few examples, NaN or infinity (concrete arrays only), or
where the two event shapes differ.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import checks, spectral
from .types import (
    Array,
    ArrayLike,
    Key,
    Scalar,
    as_pytree_callable,
    pytree,
    static_field,
)

Kernel = Callable[[Array, Array], Array]
"""(a, b) -> k(a, b) of shape (), for two flattened examples of shape (D,); positive definite."""

_BLOCK = 2**24
"""Numbers that a block of rows may hold at once."""


def frechet_distance(x: ArrayLike, y: ArrayLike) -> Array:
    """Squared Fréchet (2-Wasserstein) distance of the Gaussians fitted to x and y, in squared data units.

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), Σ unbiased (divided by n − 1). With Σᵢ = AᵢᵀAᵢ it is computed as
    ‖μ₁ − μ₂‖² + min_W ‖A₁ − W A₂‖² over rotations W, whose minimum is the polar factor of A₁A₂ᵀ: a sum of squares,
    never negative, and as exact for covariances without full rank, where (Σ₁Σ₂)^½ loses half of the digits.

    x: (n, …), y: (m, …), n, m ≥ 2. The plug-in estimate is biased upwards, the more the smaller n is: compare only
    at equal n. Differentiable where n > D and Σ has full rank. On network features this is FID.
    Dowson & Landau 1982; Heusel et al. 2017, eq. 6.
    """
    return _frechet(*_two_sets(x, y))


@jax.jit
def _frechet(x: Array, y: Array) -> Array:
    x, y, unit = _in_common_unit(x, y)
    a, b = _covariance_factor(x), _covariance_factor(y)
    rows = max(len(a), len(b))  # a set of n ≤ D examples has only n rows
    a, b = (jnp.pad(factor, ((0, rows - len(factor)), (0, 0))) for factor in (a, b))
    rotation = spectral.polar(jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST))
    difference = a - jnp.matmul(rotation, b, precision=jax.lax.Precision.HIGHEST)
    return (
        unit * (jnp.sum((x.mean(0) - y.mean(0)) ** 2) + jnp.sum(difference**2)) * unit
    )


def _in_common_unit(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """(x − c)/s, (y − c)/s and s: centred and of size 1, so that no square over- or underflows. For distances."""
    centre = jax.lax.stop_gradient(_centre(jnp, y))
    x, y = x - centre, y - centre
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.max(jnp.abs(x)), jnp.max(jnp.abs(y))))
    unit = jnp.where(unit > 0, unit, 1)
    return x / unit, y / unit, unit


_CENTRE_OF = 101
"""Examples whose median is the origin in which distances are computed."""


def _centre(xp: Any, y: Any) -> Any:
    """A place amid the examples, (D,). A median, as a far outlier as origin would round all others together."""
    return xp.median(y[:_CENTRE_OF], 0)


def _covariance_factor(x: Array) -> Array:
    """A of shape (min(n, D), D) with AᵀA = the unbiased covariance of x (n, D)."""
    return jnp.linalg.qr(x - x.mean(0), mode="r") / math.sqrt(len(x) - 1)


@pytree
class PolynomialKernel:
    """k(a, b) = (a·b / D + offset)^degree."""

    offset: Scalar
    degree: int = static_field()

    def varying(self, a: Array, b: Array) -> Array:
        """k(a, b) − offset^degree, which keeps its digits where a·b / D is far below the offset."""
        product = jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST) / a.size
        total = jnp.zeros_like(product)
        for power in range(
            self.degree
        ):  # Horner's rule for Σ_{j≥1} (degree choose j) offset^{degree − j} (a·b/D)^j
            total = math.comb(self.degree, power) * self.offset**power + total * product
        return total * product

    def __call__(self, a: Array, b: Array) -> Array:
        return (
            jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST) / a.size + self.offset
        ) ** self.degree


@pytree
class GaussianKernel:
    """k(a, b) = exp(−‖a − b‖² / (2 bandwidth²))."""

    bandwidth: Scalar

    def varying(self, a: Array, b: Array) -> Array:
        """k(a, b) − 1, which keeps its digits where a and b are close beside the bandwidth."""
        return jnp.expm1(-0.5 * jnp.sum(((a - b) / self.bandwidth) ** 2))

    def __call__(self, a: Array, b: Array) -> Array:
        return jnp.exp(-0.5 * jnp.sum(((a - b) / self.bandwidth) ** 2))


def polynomial_kernel(degree: int = 3, offset: Scalar = 1.0) -> PolynomialKernel:
    """The kernel (a·b / D + offset)^degree; ValueError unless degree ≥ 1 and offset ≥ 0. It sees `degree` moments."""
    return PolynomialKernel(
        checks.non_negative("offset", offset), checks.integer("degree", degree, 1)
    )


def gaussian_kernel(bandwidth: Scalar) -> GaussianKernel:
    """The kernel exp(−‖a − b‖² / (2 bandwidth²)), bandwidth in data units; ValueError unless positive.

    It tells any two laws apart. A usual bandwidth is the median distance between examples.
    """
    return GaussianKernel(checks.positive("bandwidth", bandwidth))


def kernel_distance(x: ArrayLike, y: ArrayLike, kernel: Kernel | None = None) -> Array:
    """Unbiased estimate of the squared maximum mean discrepancy of x and y.

    MMD² = Σ_{i≠j} k(xᵢ, xⱼ) / n(n−1) + Σ_{i≠j} k(yᵢ, yⱼ) / m(m−1) − 2 Σ_{ij} k(xᵢ, yⱼ) / nm.
    It is 0 on average for two sets of one law, so that it may be negative, for a set and itself too.

    x: (n, …), y: (m, …), n, m ≥ 2. kernel: (a, b) -> (), of two flattened examples; the default is
    `polynomial_kernel()`, KID's cubic (a·b / D + 1)³. A lambda made anew in each call is compiled in each call.
    Gretton et al. 2012, eq. 3; Bińkowski et al. 2018 (who average over subsets of 1000; here all pairs enter).
    """
    x, y = _two_sets(x, y, centred=False)
    kernel = checks.callable_(
        "kernel", polynomial_kernel() if kernel is None else kernel, "kernel(a, b)"
    )
    result = _kernel_distance(as_pytree_callable(kernel), x, y)
    if not checks.is_traced(result) and not np.isfinite(result):
        raise ValueError(
            f"kernel must be finite on x and y, got a distance of {result}: {result.dtype} overflows at values up to "
            f"{max(np.max(np.abs(x)), np.max(np.abs(y))):.3g}; divide both sets by their scale"
        )
    return result


@jax.jit
def _kernel_distance(kernel: Kernel, x: Array, y: Array) -> Array:
    if isinstance(kernel, PolynomialKernel | GaussianKernel):
        kernel = kernel.varying  # a constant drops out, and with it the cancellation
    return (
        _mean_of_distinct(kernel, x)
        + _mean_of_distinct(kernel, y)
        - 2 * _mean_of_pairs(kernel, x, y)
    )


def energy_distance(x: ArrayLike, y: ArrayLike) -> Array:
    """Energy distance of x and y, E = 2 E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖ of the empirical laws, in data units.

    All n², m² and nm pairs enter, those of an example with itself too: to rounding E ≥ 0, and 0 for equal sets.
    For two sets of one law it is about 2 E‖X − X′‖/n on average at n = m.

    x: (n, …), y: (m, …), n, m ≥ 2. In one dimension it is 2 ∫(F − G)².
    Székely & Rizzo 2013 (their test statistic has a further factor nm / (n + m)).
    """
    return _energy_distance(*_two_sets(x, y))


@jax.jit
def _energy_distance(x: Array, y: Array) -> Array:
    x, y, unit = _in_common_unit(x, y)
    within = _mean_of_pairs(_distance, x, x) + _mean_of_pairs(_distance, y, y)
    return (2 * _mean_of_pairs(_distance, x, y) - within) * unit


def sliced_wasserstein(
    key: Key, x: ArrayLike, y: ArrayLike, projections: int = 128
) -> Array:
    """Squared sliced 2-Wasserstein distance of x and y, in squared data units.

    SW₂² = E_θ ∫₀¹ (F⁻¹(u) − G⁻¹(u))² du, with F, G the empirical laws of θ·x and θ·y and θ uniform on the unit sphere,
    averaged over `projections` draws of θ. The integral is exact, at n = m the mean of (sort(θ·x) − sort(θ·y))²; for
    n ≠ m quantiles are compared on each interval between the steps of either. A shift by c gives ‖c‖²/D on average.

    key: one typed key. x: (n, …), y: (m, …), n, m ≥ 2. projections: at least 1.
    Rabin et al. 2012; Bonneel et al. 2015.
    """
    checks.key("key", key)
    projections = checks.integer("projections", projections, 1)
    x, y = _two_sets(x, y)
    n, m = len(x), len(y)
    steps = np.union1d(
        np.arange(n + 1) * m, np.arange(m + 1) * n
    )  # of both quantile functions, in units of 1 / nm
    quantiles = steps[:-1] // m, steps[:-1] // n, np.diff(steps) / (n * m)
    return _sliced_wasserstein(projections, key, x, y, quantiles)


@functools.partial(jax.jit, static_argnums=0)
def _sliced_wasserstein(
    projections: int, key: Key, x: Array, y: Array, quantiles: tuple
) -> Array:
    x_rank, y_rank, weights = quantiles
    x, y, unit = _in_common_unit(x, y)
    directions = jax.random.normal(key, (projections, x.shape[1]), x.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)

    def along(direction):
        u, v = (
            jnp.sort(jnp.dot(values, direction, precision=jax.lax.Precision.HIGHEST))
            for values in (x, y)
        )
        return jnp.dot(
            weights.astype(u.dtype),
            (u[x_rank] - v[y_rank]) ** 2,
            precision=jax.lax.Precision.HIGHEST,
        )

    return unit * _for_each(along, directions, len(x) + len(y)).mean() * unit


def nearest_neighbours(
    x: ArrayLike, reference: ArrayLike, k: int = 1
) -> tuple[Array, Array]:
    """For each example of x the k nearest of `reference`: (indices, distances), both (n, k), the nearest first.

    Distances are Euclidean, in data units, from the differences themselves: 0 exactly for a copy. The lower index
    comes first in a tie.

    x: (n, …), n ≥ 1. reference: (m, …), m ≥ 1. k: between 1 and m; ValueError otherwise.
    """
    x, reference = _two_sets(x, reference, "reference", minimum=1)
    return _nearest_neighbours(x, reference, checks.integer("k", k, 1, len(reference)))


@functools.partial(jax.jit, static_argnums=2)
def _nearest_neighbours(x: Array, reference: Array, k: int) -> tuple[Array, Array]:
    x, reference, unit = _in_common_unit(x, reference)

    def of_one(example):
        closeness, indices = jax.lax.top_k(
            -jnp.sum((example - reference) ** 2, axis=1), k
        )
        return indices, unit * jnp.sqrt(-closeness)

    return _for_each(of_one, x, reference.size)


def _distance(a: Array, b: Array) -> Array:
    """‖a − b‖, with the gradient 0 where a = b."""
    square = jnp.sum((a - b) ** 2)
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)


def _mean_of_pairs(function: Kernel, x: Array, y: Array) -> Array:
    """Mean of function(xᵢ, yⱼ) over all i, j."""
    return _for_each(
        lambda a: jax.vmap(lambda b: function(a, b))(y).mean(), x, y.size
    ).mean()


def _mean_of_distinct(function: Kernel, x: Array) -> Array:
    """Mean of function(xᵢ, xⱼ) over all i ≠ j."""
    others = jnp.arange(len(x))

    def row(numbered):
        i, a = numbered
        values = jax.vmap(lambda b: function(a, b))(x)
        return jnp.sum(jnp.where(others == i, 0, values)) / (len(x) - 1)

    return _for_each(row, (others, x), x.size).mean()


def _for_each(function: Callable, xs, width: int):
    """function of each row of xs, so many at once as hold _BLOCK entries when one row's work holds `width`.

    For pairs the width is m·D: XLA fuses the differences into their sum, unless it finds another use for them.
    """
    return jax.lax.map(function, xs, batch_size=max(1, _BLOCK // width))


def _two_sets(
    x: ArrayLike,
    y: ArrayLike,
    y_name: str = "y",
    minimum: int = 2,
    *,
    centred: bool = True,
) -> tuple[Array, Array]:
    """Both as (n, D) and (m, D) of one dtype, or the argument's error.

    Centred concrete sets are shifted by the median of some of y in float64, before they are rounded.
    """
    exact = x, y
    x, y = _examples("x", x, minimum), _examples(y_name, y, minimum)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"{y_name} must hold examples of x's shape {x.shape[1:]}, got {y.shape[1:]}"
        )
    dtype = checks.promoted(x.dtype, y.dtype)
    if checks.is_traced(x, y):
        return x.reshape(len(x), -1).astype(dtype), y.reshape(len(y), -1).astype(dtype)
    x, y = (np.asarray(value, np.float64).reshape(len(value), -1) for value in exact)
    centre = _centre(np, y) if centred else 0
    return (x - centre).astype(dtype), (y - centre).astype(dtype)


def _examples(name: str, value: ArrayLike, minimum: int) -> Array:
    array = checks.real_array(name, value)
    if array.ndim == 0:
        raise ValueError(f"{name} must have examples on its leading axis, got shape ()")
    if len(array) < minimum or array.size == 0:
        least = "1 example" if minimum == 1 else f"{minimum} examples"
        raise ValueError(f"{name} must hold at least {least}, got shape {array.shape}")
    checks.finite(name, array)
    return array
