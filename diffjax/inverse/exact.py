"""The posterior of a mixture under a linear-Gaussian measurement."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import checks, spectral
from ..distributions.base import compiled_eagerly
from ..targets import Mixture
from ..types import ArrayLike
from .operators import LinearOperator, measurement, noise_stds

__all__ = ["exact_posterior"]


@checks.arguments(
    target=(checks.made_by, Mixture, "targets.gaussian or targets.gaussian_mixture")
)
def exact_posterior(
    target: Mixture, operator: LinearOperator, y: ArrayLike, noise_std: ArrayLike
) -> Mixture:
    """Posterior of a Gaussian mixture (Bishop 2006, equations 2.113–2.117).

        p(x | y) of x ~ Σ_k w_k N(m_k, V_k) under y = A x + τ n, n ~ N(0, I)

    It is again a mixture. With S_k = A V_k Aᵀ + τ² I and K_k = V_k Aᵀ S_k⁻¹ it
    has

        means        m_k + K_k (y − A m_k)
        covariances  (I − K_k A) V_k
        weights      ∝ w_k N(y | A m_k, S_k)

    Concrete arguments are computed in float64 on the host. The derivative in
    every traced argument is exact, at repeated eigenvalues too.

    Args:
      target: The prior, made by `targets.gaussian` or
        `targets.gaussian_mixture`.
      operator: A, taking examples of the target's shape.
      y: The measurement, of shape operator.measured.
      noise_std: τ ≥ 0, one number or one for each entry of y. Where τ = 0 the
        observed directions have variance 0, and the posterior has a density
        only under added noise.

    Returns:
      The posterior, with an exact denoiser by `targets.denoiser`.

    Raises:
      TypeError: If the target is no mixture.
      ValueError: For shapes that do not fit, τ < 0, or τ = 0 where some S_k is
        singular.

    Example:
      >>> prior = dj.targets.gaussian([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]])
      >>> first = dj.inverse.inpainting([True, False])  # only x_0 is measured
      >>> posterior = dj.inverse.exact_posterior(prior, first, [1.5], 0.5)
      >>> [round(value, 2) for value in posterior.mean().tolist()]
      [1.2, 0.96]
    """
    exact_y, y = y, measurement(operator, y)  # exact_y is not rounded to float32 yet
    checks.require(
        operator.shape == target.shape,
        f"operator must take the target's shape {target.shape}, got {operator.shape}",
    )
    noise_std = noise_stds(operator, noise_std)
    if checks.is_traced(target, operator, y, noise_std):
        return _traced_posterior(target, operator.dense(), y, noise_std)
    dtype = target.means.dtype
    prior = [
        np.asarray(value, np.float64)
        for value in (target.weights, target.means, _covariances(target))
    ]
    a, exact_y, noise_std = (
        np.asarray(value, np.float64)
        for value in (operator.dense(), exact_y, noise_std)
    )
    innovations = _innovations(np, prior[2], a, noise_std)
    checks.require(
        not _singular(innovations, np.finfo(dtype).eps),
        f"noise_std must be positive where A V Aᵀ is singular, got {noise_std}",
    )
    weights, means, covariances = _condition(np, *prior, a, exact_y, noise_std)
    values, bases = np.linalg.eigh(covariances)
    parts = weights, means, np.maximum(values, 0), bases
    return Mixture(
        *(jnp.asarray(np.asarray(part, dtype), dtype) for part in parts),
        shape=target.shape,
    )


@compiled_eagerly
def _traced_posterior(target, a, y, noise_std):
    weights, means, covariances = _condition(
        jnp, target.weights, target.means, target.covariances(), a, y, noise_std
    )
    values, bases, deviation = spectral.decompose(covariances)
    return Mixture(
        weights, means, jnp.maximum(values, 0), bases, deviation, shape=target.shape
    )


def _covariances(target):
    """V_k in float64, (K, D, D), of a concrete mixture."""
    variances = np.broadcast_to(
        np.asarray(target.variances, np.float64), target.means.shape
    )
    diagonal = variances[:, :, None] * np.eye(variances.shape[1])
    if target.bases is None:
        return diagonal
    bases = np.asarray(target.bases, np.float64)
    return bases @ diagonal @ bases.swapaxes(1, 2)


def _innovations(xp, covariances, a, noise_std):
    """S_k = A V_k Aᵀ + diag(τ²), (K, M, M)."""
    return a @ covariances @ a.T + _noise(xp, a, noise_std)


def _noise(xp, a, noise_std):
    """diag(τ²), (M, M)."""
    return xp.reshape(noise_std, (-1, 1)) ** 2 * xp.eye(a.shape[0], dtype=a.dtype)


def _condition(xp: Any, weights, means, covariances, a, y, noise_std):
    """Weights (K,), means (K, D) and covariances (K, D, D) given y."""
    a, y, noise_std = (xp.asarray(value, means.dtype) for value in (a, y, noise_std))
    innovations = _innovations(xp, covariances, a, noise_std)  # (K, M, M)
    gains = xp.linalg.solve(innovations, a @ covariances)  # K_kᵀ, (K, M, D)
    gains = xp.swapaxes(gains, 1, 2)
    residuals = y.reshape(-1) - means @ a.T  # (K, M)
    # (I − K A) V as Joseph's form (I − K A) V (I − K A)ᵀ + K τ² Kᵀ, which rounding
    # leaves positive.
    kept = xp.eye(means.shape[1], dtype=means.dtype) - gains @ a
    noise = _noise(xp, a, noise_std)
    signal = kept @ covariances @ xp.swapaxes(kept, 1, 2)
    posterior = signal + gains @ noise @ xp.swapaxes(gains, 1, 2)
    solved = xp.linalg.solve(innovations, residuals[..., None])[..., 0]
    log_weights = xp.log(weights) - 0.5 * (
        xp.sum(residuals * solved, -1) + xp.linalg.slogdet(innovations)[1]
    )
    odds = xp.exp(log_weights - xp.max(log_weights))
    posterior = 0.5 * (posterior + xp.swapaxes(posterior, 1, 2))
    return (
        odds / xp.sum(odds),
        means + xp.einsum("kij,kj->ki", gains, residuals),
        posterior,
    )


def _singular(matrices, rounding):
    values = np.linalg.eigvalsh(matrices)  # (K, M), ascending
    return bool(np.any(values[:, 0] <= values.shape[1] * rounding * values[:, -1]))
