"""Gaussian mixtures and data sets as targets."""

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, spectral
from ..distributions import mixtures
from ..distributions.base import compiled_eagerly
from ..distributions.mixtures import GaussianMixture, exactly
from ..distributions.normal import quotient
from ..types import Array, ArrayLike, Key, Scalar, pytree
from .base import noised

__all__ = ["Empirical", "Mixture", "empirical", "gaussian", "gaussian_mixture"]


@pytree
class Mixture(GaussianMixture):
    """A `distributions.GaussianMixture` under scaling and noise.

    See `gaussian_mixture`.
    """

    @compiled_eagerly
    def convolved(self, alpha: Scalar, sigma: Scalar) -> "Mixture":
        """The distribution of α x + σ ε.

        It has the means α m_k and the variances α² v_k + σ² in the same bases.

        Args:
          alpha, sigma: α and σ, each of shape ().

        Returns:
          A mixture.
        """
        variances = alpha**2 * self.variances + sigma**2
        deviation = None if self.deviation is None else alpha**2 * self.deviation
        return Mixture(
            self.weights,
            alpha * self.means,
            variances,
            self.bases,
            deviation,
            shape=self.shape,
        )

    noised = noised

    @compiled_eagerly
    def posterior_mean(self, x: Array, alpha: Scalar, sigma: Scalar) -> Array:
        """E[x_0 | α x_0 + σ ε = x].

            Σ_k r_k (m_k + c_k (x − α m_k)),    c_k = α v_k / (α² v_k + σ²)

        in the basis of component k, with its posterior weight r_k.

        Args:
          x: One example.
          alpha, sigma: α and σ, each of shape ().

        Returns:
          An array of x's shape.
        """
        flat = self.flat(x)
        seen = (sigma == 0) & (alpha != 0)  # α x_0 itself is observed
        noised = self.convolved(alpha, jnp.where(seen, 1, sigma))
        r = jax.nn.softmax(noised.log_joint(flat))  # (K,)
        if self.bases is None:
            # c_k, (K, 1) or (K, D): the sum is two matrix products
            gain = quotient(alpha * self.variances, noised.variances)
            result = (r @ gain) * flat + r @ ((1 - alpha * gain) * self.means)
        else:
            residual = self._shrunk(noised, alpha, flat)  # (K, D)
            result = r @ (self.means + jnp.einsum("kij,kj->ki", self.bases, residual))
        return jnp.where(seen, flat / jnp.where(seen, alpha, 1), result).reshape(
            x.shape
        )

    def _shrunk(self, noised, alpha, flat):
        """c_k (x − α m_k) in the bases, (K, D)."""
        coordinates = self.coordinates(flat - noised.means)
        if self.deviation is None:
            return quotient(alpha * self.variances, noised.variances) * coordinates
        whitened = spectral.solve(noised.variances, noised.deviation, coordinates)
        return alpha * spectral.product(self.variances, self.deviation, whitened)


def gaussian_mixture(
    weights: ArrayLike, means: ArrayLike, scales: ArrayLike
) -> Mixture:
    """The mixture Σ_k w_k N(m_k, V_k), exact at every noise level.

    Concrete arguments are squared and decomposed in float64 before they are
    rounded to the working precision. The derivative in traced covariances is
    exact, at repeated eigenvalues too.

    Args:
      weights: (K,), positive, summing to 1.
      means: (K, D).
      scales: Standard deviations (K,) or (K, D), or covariances (K, D, D).

    Returns:
      A target over examples of shape (D,).

    Raises:
      ValueError: For weights that do not sum to 1, scales that are not
        positive, covariances that are not symmetric positive definite, or
        shapes that do not fit.

    Example:
      >>> target = dj.targets.gaussian_mixture([0.4, 0.6], [[1.5], [-1.0]], [0.4, 0.7])
      >>> target.noised(schedule, 0.5).mean().shape
      (1,)
    """
    mixture = mixtures.gaussian_mixture(weights, means, scales)
    return Mixture(
        mixture.weights,
        mixture.means,
        mixture.variances,
        mixture.bases,
        mixture.deviation,
        shape=mixture.shape,
    )


def gaussian(mean: ArrayLike, scale: ArrayLike) -> Mixture:
    """The normal distribution N(mean, scale²), as a mixture of one component.

    Args:
      mean: (D,).
      scale: Standard deviations () or (D,), or a covariance (D, D).

    Returns:
      A target over examples of shape (D,).

    Raises:
      ValueError: For scales that are not positive, or a covariance that is not
        symmetric positive definite.

    Example:
      >>> float(dj.targets.gaussian([0.0], 2.0).covariance()[0, 0])
      4.0
    """
    (mean, _), (_, exact_scale) = exactly("mean", mean), exactly("scale", scale)
    checks.axes("mean", mean, "(D,)")
    shapes = [(), mean.shape, (*mean.shape, *mean.shape)]
    checks.one_of_shapes("scale", exact_scale, shapes)
    one = np.ones((1,), mean.dtype)
    return gaussian_mixture(one, _with_axis(mean), _with_axis(exact_scale))


def _with_axis(value):
    return value[None] if checks.is_traced(value) else np.asarray(value)[None]


# ---------------------------------------------------------------------- a data set


@pytree
class Empirical:
    """The distribution with mass 1/N on every example. See `empirical`."""

    data: Array  # (N, *shape)

    def convolved(self, alpha: Scalar, sigma: Scalar) -> Mixture:
        """The distribution of α x + σ ε, the mixture (1/N) Σ N(α x_i, σ²).

        Args:
          alpha, sigma: α and σ, each of shape ().

        Returns:
          A mixture.
        """
        return self._atoms().convolved(alpha, sigma)

    noised = noised

    def posterior_mean(self, x: Array, alpha: Scalar, sigma: Scalar) -> Array:
        """Σ_i softmax_i(−‖x − α x_i‖² / 2σ²) x_i.

        Args:
          x: One example.
          alpha, sigma: α and σ, each of shape ().

        Returns:
          An array of x's shape.
        """
        return self._atoms().posterior_mean(x, alpha, sigma)

    def log_prob(self, x: Array) -> Array:
        """Raises ValueError: a data set has no density. `noised(schedule, t)` has."""
        raise ValueError(
            "empirical data have no density at noise 0; "
            "take log_prob of target.noised(schedule, t)"
        )

    def sample(self, key: Key) -> Array:
        """One example of the data."""
        return self.data[jax.random.randint(key, (), 0, self.data.shape[0])]

    def mean(self) -> Array:
        """The mean of the data, of the example's shape."""
        return jnp.mean(self.data, 0)

    def variance(self) -> Array:
        """The variance of the data (divided by N), of the example's shape."""
        return jnp.var(self.data, 0)

    def _atoms(self):
        count = self.data.shape[0]
        weights = jnp.full((count,), 1 / count, self.data.dtype)
        flat = self.data.reshape(count, -1)  # (N, D)
        no_spread = jnp.zeros((count, 1), flat.dtype)
        return Mixture(weights, flat, no_spread, None, shape=self.data.shape[1:])


def empirical(data: ArrayLike) -> Empirical:
    """Empirical distribution of a data set.

    Its denoiser is the one that a network would reach by memorising the data.

    Args:
      data: (N, *shape).

    Returns:
      A target over examples of the given shape.

    Raises:
      ValueError: For no examples, NaN or infinity.

    Example:
      >>> dj.targets.empirical([[0.0], [2.0]]).mean().tolist()
      [1.0]
    """
    data = checks.real_array("data", data)
    checks.require(
        data.ndim >= 1 and data.shape[0] > 0,
        f"data must have shape (N, ...) with N at least 1, got {data.shape}",
    )
    checks.finite("data", data)
    return Empirical(data)
