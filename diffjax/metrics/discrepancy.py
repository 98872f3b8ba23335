"""Kernels, and the maximum mean discrepancy."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import Array, ArrayLike, Scalar, as_pytree_callable, pytree, static_field
from .sets import HIGHEST, KernelFunction, for_each, means_of_pairs, two_sets
from .streamed import Jackknife

__all__ = [
    "GaussianKernel",
    "PolynomialKernel",
    "gaussian_kernel",
    "kernel_distance",
    "kernel_jackknife",
    "polynomial_kernel",
]


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
    x, y = two_sets(x, y, centred=False)
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
    kernel = _varying(kernel)
    within = _means_of_distinct(kernel, x).mean() + _means_of_distinct(kernel, y).mean()
    return within - 2 * means_of_pairs(kernel, x, y).mean()


@checks.arguments(kernel=checks.optional(checks.callable_, "kernel(a, b)"))
def kernel_jackknife(
    x: ArrayLike, y: ArrayLike, kernel: KernelFunction | None = None
) -> Jackknife:
    """`kernel_distance` with its standard error, by leaving out one example.

        error² = (n − 1)/n Σᵢ (MMD²₋ᵢ − mean)², and the same over y

    The distance is unbiased already, and is value and plug-in alike. The
    squared error costs one more look at each pair. It is exact to order 1/n
    where the distributions differ. Where they are equal, the distance is a
    degenerate U-statistic, and the squared error is twice its variance on
    average, to leading order (Efron & Stein 1981).

    It assumes independent examples. Bińkowski et al. 2018 report the spread
    over subsets of 1000, which is of another size.

    Args:
      x: (n, …), n ≥ 3.
      y: (m, …), m ≥ 3.
      kernel: As in `kernel_distance`.

    Returns:
      The distance and its standard error.

    Raises:
      ValueError: As `kernel_distance`.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(50, 2))
      >>> estimate = dj.metrics.kernel_jackknife(x[:25], x[25:] + 1)
      >>> estimate.value > estimate.standard_error > 0
      True
    """
    value = float(kernel_distance(x, y, kernel))
    x, y = two_sets(x, y, centred=False, minimum=3)
    kernel = polynomial_kernel() if kernel is None else kernel
    variance = _jackknife_variance(as_pytree_callable(kernel), x, y)
    return Jackknife(value, math.sqrt(variance), value)


@jax.jit
def _jackknife_variance(kernel: KernelFunction, x: Array, y: Array) -> Array:
    """Sum of the squared errors over x and over y."""
    kernel = _varying(kernel)

    def over(x, y):
        n = len(x)
        # MMD² without xᵢ differs from the mean of these by the centred
        # −2/(n − 2) times the mean of its pairs in x, +2/(n − 1) times that in y.
        within, across = _means_of_distinct(kernel, x), means_of_pairs(kernel, x, y)
        parts = (within - within.mean()) / (n - 2) - (across - across.mean()) / (n - 1)
        return 4 * (n - 1) / n * jnp.sum(parts**2)

    return over(x, y) + over(y, x)


def _varying(kernel: KernelFunction) -> KernelFunction:
    """The kernel up to a constant, which drops out, and with it the cancellation."""
    if isinstance(kernel, PolynomialKernel | GaussianKernel):
        return kernel.varying
    return kernel


def _means_of_distinct(function: KernelFunction, x: Array) -> Array:
    """Mean of function(xᵢ, xⱼ) over all j ≠ i, for each i."""
    others = jnp.arange(len(x))

    def row(numbered):
        i, a = numbered
        values = jax.vmap(lambda b: function(a, b))(x)
        return jnp.sum(jnp.where(others == i, 0, values)) / (len(x) - 1)

    return for_each(row, (others, x), x.size)
