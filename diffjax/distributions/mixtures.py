"""Mixtures of Gaussians of one example."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, spectral
from ..types import Array, ArrayLike, Key, pytree, static_field
from .base import compiled_eagerly
from .normal import gaussian_log_density

__all__ = ["GaussianMixture", "gaussian_mixture"]


@pytree
class GaussianMixture:
    """Σ_k w_k N(m_k, V_k) with V_k = U_k (diag(v_k) + Δ_k) U_kᵀ.

    See `gaussian_mixture`. Δ is 0 in value. It carries the derivative of
    traced covariances, which is exact where eigenvalues repeat.

    Attributes:
      weights: (K,), w_k.
      means: (K, D), m_k.
      variances: (K, 1) for isotropic components, or (K, D), v_k.
      bases: (K, D, D), U_k, with orthonormal columns. None for components
        along the axes.
      deviation: (K, D, D), Δ_k. None unless covariances were traced.
      shape: Of an example, with D entries.
    """

    weights: Array
    means: Array
    variances: Array
    bases: Any
    deviation: Any = None
    shape: tuple = static_field(default=())

    @compiled_eagerly
    def log_prob(self, x: Array) -> Array:
        """log p(x) in nats, shape (), for x of the example's shape."""
        return log_sum(self.log_joint(self.flat(x)))

    @compiled_eagerly
    def sample(self, key: Key) -> Array:
        """One draw m_k + V_k^½ z, differentiable in all but the weights."""
        key_component, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_component, jnp.log(self.weights))
        noise = jax.random.normal(key_noise, self.means.shape[1:], self.means.dtype)
        if self.bases is None:
            noise = jnp.sqrt(self.variances[k]) * noise
        else:
            deviation = None if self.deviation is None else self.deviation[k]
            noise = self.bases[k] @ spectral.square_root(
                self.variances[k], deviation, self.bases[k].T @ noise
            )
        return (self.means[k] + noise).reshape(self.shape)

    @compiled_eagerly
    def mean(self) -> Array:
        """Σ w_k m_k, of the example's shape."""
        # The first mean is taken out, which is exact for means far from 0.
        mean = self.means[0] + self.weights @ (self.means - self.means[0])
        return mean.reshape(self.shape)

    @compiled_eagerly
    def variance(self) -> Array:
        """The diagonal of the covariance, of the example's shape."""
        return jnp.diagonal(self.covariance()).reshape(self.shape)

    @compiled_eagerly
    def covariance(self) -> Array:
        """Σ w_k (V_k + m_k m_kᵀ) − m mᵀ, (D, D)."""
        offsets = self.means - self.means[0]
        centred = offsets - self.weights @ offsets
        within = jnp.einsum("k,kij->ij", self.weights, self.covariances())
        return within + jnp.einsum("k,ki,kj->ij", self.weights, centred, centred)

    @compiled_eagerly
    def covariances(self) -> Array:
        """V_k of every component, (K, D, D)."""
        variances = jnp.broadcast_to(self.variances, self.means.shape)
        dimension = self.means.shape[1]
        diagonal = variances[:, :, None] * jnp.eye(dimension, dtype=variances.dtype)
        if self.bases is None:
            return diagonal
        inner = diagonal if self.deviation is None else diagonal + self.deviation
        return jnp.einsum("kij,kjl,kml->kim", self.bases, inner, self.bases)

    def flat(self, x: Array) -> Array:
        """An example as (D,). ValueError unless it has the example's shape."""
        checks.one_of_shapes("x", x, [self.shape])
        return jnp.asarray(x).reshape(-1)

    def coordinates(self, residual: Array) -> Array:
        """Residuals (K, D) in the bases of the components."""
        if self.bases is None:
            return residual
        return jnp.einsum("kij,ki->kj", self.bases, residual)

    def log_joint(self, x: Array) -> Array:
        """log w_k + log N(x | m_k, V_k) of x (D,), shape (K,)."""
        residual = self.coordinates(x - self.means)
        if self.deviation is None:
            return jnp.log(self.weights) + gaussian_log_density(
                residual, self.variances
            )
        whitened = spectral.solve(self.variances, self.deviation, residual)
        log_volume = spectral.log_det(
            2 * math.pi * self.variances, 2 * math.pi * self.deviation
        )
        square = jnp.sum(residual * whitened, -1)
        return jnp.log(self.weights) - 0.5 * (square + log_volume)


def log_sum(logs: Array) -> Array:
    """log Σ_k e^{logs_k}, with the gradient 0 where all are −∞ or one is +∞."""
    greatest = jax.lax.stop_gradient(jnp.max(logs))
    regular = jnp.isfinite(greatest)
    total = jnp.sum(
        jnp.exp(jnp.where(regular, logs - jnp.where(regular, greatest, 0), 0))
    )
    return greatest + jnp.where(regular, jnp.log(total), 0)


def gaussian_mixture(
    weights: ArrayLike, means: ArrayLike, scales: ArrayLike
) -> GaussianMixture:
    """The mixture Σ_k w_k N(m_k, V_k).

    `targets.gaussian_mixture` makes the same with a method `noised`. Concrete
    arguments are squared and decomposed in float64 before they are rounded to
    the working precision. The derivative in traced covariances is exact, at
    repeated eigenvalues too.

    Args:
      weights: (K,), positive, summing to 1.
      means: (K, D).
      scales: Standard deviations (K,) or (K, D), or covariances (K, D, D).

    Returns:
      A distribution of examples of shape (D,).

    Raises:
      ValueError: For weights that do not sum to 1, scales that are not
        positive, covariances that are not symmetric positive definite, or
        shapes that do not fit.

    Example:
      >>> means, scales = [[-1.0], [1.0]], [1.0, 1.0]
      >>> two = dj.distributions.gaussian_mixture([0.5, 0.5], means, scales)
      >>> two.variance().tolist()
      [2.0]
    """
    weights, exact_weights = exactly("weights", weights)
    means, _ = exactly("means", means)
    scales, exact_scales = exactly("scales", scales)
    filled = means.ndim == 2 and means.size > 0
    checks.require(filled, f"means must have shape (K, D), got {means.shape}")
    components, dimension = means.shape
    checks.one_of_shapes("weights", weights, [(components,)])
    shapes = [
        (components,),
        (components, dimension),
        (components, dimension, dimension),
    ]
    checks.one_of_shapes("scales", scales, shapes)
    checks.probabilities("weights", exact_weights)
    checks.finite("means", means)
    checks.finite("scales", scales)
    if scales.ndim == 3:
        spectrum = _decompose(exact_scales, scales.dtype)
        return GaussianMixture(weights, means, *spectrum, shape=(dimension,))
    if checks.is_traced(exact_scales):
        variances = jnp.reshape(scales, (components, -1)) ** 2
        return GaussianMixture(weights, means, variances, None, shape=(dimension,))
    checks.all_positive("scales", exact_scales)
    variances = np.asarray(exact_scales.reshape(components, -1) ** 2, scales.dtype)
    return GaussianMixture(
        weights, means, jnp.asarray(variances, scales.dtype), None, shape=(dimension,)
    )


def exactly(name: str, value: Any) -> tuple[Array, Any]:
    """An array in the working precision, and in float64.

    Args:
      name: The argument's name, for messages.
      value: Its value.

    Returns:
      (rounded, exact), the latter on the host, or the same twice where traced.
    """
    rounded = checks.real_array(name, value)
    if checks.is_traced(value):
        return rounded, rounded
    return rounded, np.asarray(value, np.float64)


def _decompose(covariances, dtype):
    """(eigenvalues (K, D), bases (K, D, D)), and a deviation where traced."""
    if checks.is_traced(covariances):
        return spectral.decompose(covariances)
    transposed = covariances.swapaxes(1, 2)
    checks.require(
        np.allclose(covariances, transposed, rtol=1e-5, atol=1e-8),
        f"scales must hold symmetric covariances, got {covariances.tolist()}",
    )
    values, bases = np.linalg.eigh(covariances)
    checks.require(
        np.all(values > 0),
        f"scales must be positive definite, got smallest eigenvalue {values.min():.3g}",
    )
    return tuple(
        jnp.asarray(np.asarray(value, dtype), dtype) for value in (values, bases)
    )
