"""Distances between two sets of samples, and nearest neighbours.

Each distance takes n examples on the leading axis of `x` and m on that of `y`,
of one shape, flattened to D numbers each, and returns a scalar in at least
float32. Each is the *squared* one, which the literature reports under these
names: FID, KID, E(X, Y), SW₂². All are pure functions of their arrays and pass
through `jit`. No n × m × D array is held: pairs are visited in blocks of rows.

All raise ValueError where an array has no leading axis, too few examples, NaN
or infinity (concrete arrays only), or where the shapes of the two sets'
examples differ.
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

__all__ = [
    "GaussianKernel",
    "KernelFunction",
    "PolynomialKernel",
    "energy_distance",
    "frechet_distance",
    "gaussian_kernel",
    "kernel_distance",
    "nearest_neighbours",
    "polynomial_kernel",
    "sliced_wasserstein",
]


def __dir__() -> list[str]:
    return __all__


KernelFunction = Callable[[Array, Array], Array]
"""Positive definite function (a, b) -> k(a, b) of two flattened examples (D,)."""

HIGHEST = jax.lax.Precision.HIGHEST

_BLOCK = 2**24
"""Numbers that a block of rows may hold at once."""


def frechet_distance(x: ArrayLike, y: ArrayLike) -> Array:
    """Squared Fréchet (2-Wasserstein) distance of Gaussians fitted to x and y.

        ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½)

    On network features this is FID (Dowson & Landau 1982, Heusel et al. 2017,
    eq. 6).

    It is computed as ‖μ₁ − μ₂‖² + min_W ‖A₁ − W A₂‖² over rotations W, where
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
    return _frechet(*_two_sets(x, y))


@jax.jit
def _frechet(x: Array, y: Array) -> Array:
    x, y, unit = _in_common_unit(x, y)
    a, b = _covariance_factor(x), _covariance_factor(y)
    rows = max(len(a), len(b))  # a set of n ≤ D examples has only n rows
    a, b = (jnp.pad(factor, ((0, rows - len(factor)), (0, 0))) for factor in (a, b))
    rotation = spectral.polar(jnp.matmul(a, b.T, precision=HIGHEST))  # (rows, rows)
    difference = a - jnp.matmul(rotation, b, precision=HIGHEST)
    means = jnp.sum((x.mean(0) - y.mean(0)) ** 2)
    # unit on either side: its square could overflow
    return unit * (means + jnp.sum(difference**2)) * unit


def _in_common_unit(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """(x − c)/s, (y − c)/s and s, for distances that know no origin.

    Centred and of size 1, so that no square over- or underflows.
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


def _covariance_factor(x: Array) -> Array:
    """A of shape (min(n, D), D) with AᵀA = the unbiased covariance of x (n, D)."""
    return jnp.linalg.qr(x - x.mean(0), mode="r") / math.sqrt(len(x) - 1)


@pytree
class PolynomialKernel:
    """k(a, b) = (a·b / D + offset)^degree. See `polynomial_kernel`."""

    offset: Scalar
    degree: int = static_field()

    def varying(self, a: Array, b: Array) -> Array:
        """k(a, b) − offset^degree.

        It keeps its digits where a·b / D is far below the offset.

        Args:
          a: One flattened example, (D,).
          b: Another, (D,).

        Returns:
          The difference, shape ().
        """
        product = jnp.dot(a, b, precision=HIGHEST) / a.size
        total = jnp.zeros_like(product)
        # Horner's rule for Σ_{j≥1} (degree choose j) offset^{degree − j} (a·b/D)^j
        for power in range(self.degree):
            total = math.comb(self.degree, power) * self.offset**power + total * product
        return total * product

    def __call__(self, a: Array, b: Array) -> Array:
        product = jnp.dot(a, b, precision=HIGHEST) / a.size
        return (product + self.offset) ** self.degree


@pytree
class GaussianKernel:
    """k(a, b) = exp(−‖a − b‖² / (2 bandwidth²)). See `gaussian_kernel`."""

    bandwidth: Scalar

    def varying(self, a: Array, b: Array) -> Array:
        """k(a, b) − 1.

        It keeps its digits where a and b are close in units of the bandwidth.

        Args:
          a: One flattened example, (D,).
          b: Another, (D,).

        Returns:
          The difference, shape ().
        """
        return jnp.expm1(-0.5 * jnp.sum(((a - b) / self.bandwidth) ** 2))

    def __call__(self, a: Array, b: Array) -> Array:
        return jnp.exp(-0.5 * jnp.sum(((a - b) / self.bandwidth) ** 2))


@checks.arguments(degree=(checks.integer, 1), offset=checks.non_negative)
def polynomial_kernel(degree: int = 3, offset: Scalar = 1.0) -> PolynomialKernel:
    """Polynomial kernel, which depends on the first `degree` moments.

        k(a, b) = (a·b / D + offset)^degree

    Args:
      degree: 1 or more.
      offset: 0 or more.

    Returns:
      The kernel of two flattened examples.

    Raises:
      ValueError: If an argument is out of range.
    """
    return PolynomialKernel(offset, degree)


@checks.arguments(bandwidth=checks.positive)
def gaussian_kernel(bandwidth: Scalar) -> GaussianKernel:
    """Gaussian kernel, which distinguishes any two distributions.

        k(a, b) = exp(−‖a − b‖² / (2 bandwidth²))

    Args:
      bandwidth: In data units. Usually the median distance between examples.

    Returns:
      The kernel of two flattened examples.

    Raises:
      ValueError: If bandwidth is not positive.
    """
    return GaussianKernel(bandwidth)


@checks.arguments(kernel=checks.optional(checks.callable_, "kernel(a, b)"))
def kernel_distance(
    x: ArrayLike, y: ArrayLike, kernel: KernelFunction | None = None
) -> Array:
    """Unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012).

        MMD² = Σ_{i≠j} k(xᵢ, xⱼ) / n(n−1) + Σ_{i≠j} k(yᵢ, yⱼ) / m(m−1)
               − 2 Σ_{ij} k(xᵢ, yⱼ) / nm

    Equation 3 of the paper. It is 0 on average for two sets from one
    distribution, so that it may be negative, even for a set and itself.

    With the default kernel it is KID. Bińkowski et al. 2018 average over
    subsets of 1000. Here all pairs enter.

    Args:
      x: (n, …), n ≥ 2.
      y: (m, …), m ≥ 2.
      kernel: (a, b) -> (), of two flattened examples. Default
        `polynomial_kernel()`, the cubic (a·b / D + 1)³. A lambda made anew in
        each call is compiled in each call.

    Returns:
      The estimate, shape ().

    Raises:
      ValueError: If the concrete result is not finite, and as all distances.

    Example:
      >>> x = jnp.array([[0.0], [2.0]])
      >>> kernel = dj.metrics.gaussian_kernel(1.0)
      >>> dj.metrics.kernel_distance(x, x + 1, kernel).shape
      ()
    """
    x, y = _two_sets(x, y, centred=False)
    kernel = polynomial_kernel() if kernel is None else kernel
    result = _kernel_distance(as_pytree_callable(kernel), x, y)
    if not checks.is_traced(result) and not np.isfinite(result):
        greatest = max(np.max(np.abs(x)), np.max(np.abs(y)))
        raise ValueError(
            f"kernel must be finite on x and y, got a distance of {result}: "
            f"{result.dtype} overflows at values up to {greatest:.3g}; "
            "divide both sets by their scale"
        )
    return result


@jax.jit
def _kernel_distance(kernel: KernelFunction, x: Array, y: Array) -> Array:
    if isinstance(kernel, PolynomialKernel | GaussianKernel):
        kernel = kernel.varying  # a constant drops out, and with it the cancellation
    within = _mean_of_distinct(kernel, x) + _mean_of_distinct(kernel, y)
    return within - 2 * _mean_of_pairs(kernel, x, y)


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
    return _energy_distance(*_two_sets(x, y))


@jax.jit
def _energy_distance(x: Array, y: Array) -> Array:
    x, y, unit = _in_common_unit(x, y)
    within = _mean_of_pairs(_distance, x, x) + _mean_of_pairs(_distance, y, y)
    return (2 * _mean_of_pairs(_distance, x, y) - within) * unit


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
    x, y = _two_sets(x, y)
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
    x, y, unit = _in_common_unit(x, y)
    directions = jax.random.normal(key, (projections, x.shape[1]), x.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)

    def along(direction):
        u = jnp.sort(jnp.dot(x, direction, precision=HIGHEST))  # (n,)
        v = jnp.sort(jnp.dot(y, direction, precision=HIGHEST))  # (m,)
        squares = (u[x_rank] - v[y_rank]) ** 2
        return jnp.dot(weights.astype(u.dtype), squares, precision=HIGHEST)

    return unit * _for_each(along, directions, len(x) + len(y)).mean() * unit


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
    x, reference = _two_sets(x, reference, "reference", minimum=1)
    return _nearest_neighbours(x, reference, checks.integer("k", k, 1, len(reference)))


@functools.partial(jax.jit, static_argnums=2)
def _nearest_neighbours(x: Array, reference: Array, k: int) -> tuple[Array, Array]:
    x, reference, unit = _in_common_unit(x, reference)

    def of_one(example):
        squares = jnp.sum((example - reference) ** 2, axis=1)  # (m,)
        closeness, indices = jax.lax.top_k(-squares, k)
        return indices, unit * jnp.sqrt(-closeness)

    return _for_each(of_one, x, reference.size)


def _distance(a: Array, b: Array) -> Array:
    """‖a − b‖, with the gradient 0 where a = b. By two selections, against 0 · ∞."""
    square = jnp.sum((a - b) ** 2)
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)


def _mean_of_pairs(function: KernelFunction, x: Array, y: Array) -> Array:
    """Mean of function(xᵢ, yⱼ) over all i, j."""
    row = lambda a: jax.vmap(lambda b: function(a, b))(y).mean()
    return _for_each(row, x, y.size).mean()


def _mean_of_distinct(function: KernelFunction, x: Array) -> Array:
    """Mean of function(xᵢ, xⱼ) over all i ≠ j."""
    others = jnp.arange(len(x))

    def row(numbered):
        i, a = numbered
        values = jax.vmap(lambda b: function(a, b))(x)
        return jnp.sum(jnp.where(others == i, 0, values)) / (len(x) - 1)

    return _for_each(row, (others, x), x.size).mean()


def _for_each(function: Callable, xs, width: int):
    """function of every row of xs, in blocks that hold _BLOCK numbers.

    `width` is how many numbers the work on one row holds. For pairs it is m·D:
    XLA fuses the differences into their sum, unless it has another use for
    them.
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
    """Both sets as (n, D) and (m, D) of one dtype, or the argument's error.

    Centred concrete sets are shifted by the median of some of y in float64,
    before they are rounded.
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
