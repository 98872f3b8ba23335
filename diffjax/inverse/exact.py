"""The posterior of a mixture under a linear-Gaussian measurement."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import checks
from ..targets import Mixture
from ..types import ArrayLike, Scalar
from .operators import LinearOperator, check_operator, measurement


def exact_posterior(target: Mixture, operator: LinearOperator, y: ArrayLike, noise_std: Scalar) -> Mixture:
    """p(x | y) of a mixture Σ w_k N(m_k, V_k) under y = A x + τ n, n ~ N(0, I): again a mixture, with exact denoiser.

    With S_k = A V_k Aᵀ + τ² I and K_k = V_k Aᵀ S_k⁻¹ its means are m_k + K_k (y − A m_k), its covariances (I − K_k A)
    V_k, its weights ∝ w_k N(y; A m_k, S_k). y: of shape operator.measured. noise_std: τ ≥ 0; at τ = 0 the observed
    directions have variance 0, and only the law under noise has a density. Computed in float64 on the host where all is
    concrete. Raises TypeError for a target that is no mixture, ValueError for shapes that do not fit, τ < 0, or τ = 0
    where some S_k is singular. Bishop 2006, eq. 2.113–2.117.
    """
    if not isinstance(target, Mixture):
        raise TypeError(f"target must be a Gaussian mixture, got {type(target).__name__}")
    check_operator(operator, target.shape)
    y, noise_std = measurement(operator, y), checks.non_negative("noise_std", noise_std)
    xp: Any = jnp if checks.is_traced(target, operator, y, noise_std) else np
    weights, means, spread, a, y = (
        xp.asarray(value, np.float64 if xp is np else target.means.dtype)
        for value in (target.weights, target.means, target.variances, operator.dense(), y)
    )
    count, dimension = means.shape
    identity = xp.eye(dimension, dtype=means.dtype)
    bases = xp.broadcast_to(identity, (count, dimension, dimension)) if target.bases is None else target.bases
    bases, spread = xp.asarray(bases, means.dtype), xp.broadcast_to(spread, means.shape)
    covariances = xp.einsum("kij,kj,klj->kil", bases, spread, bases)  # (K, D, D)
    noise = noise_std**2 * xp.eye(a.shape[0], dtype=means.dtype)
    innovations = a @ covariances @ a.T + noise  # (K, M, M)
    if xp is np and _singular(innovations, np.finfo(target.means.dtype).eps):
        raise ValueError(f"noise_std must be positive where A V Aᵀ is singular, got {noise_std}")
    gains = xp.swapaxes(xp.linalg.solve(innovations, a @ covariances), 1, 2)  # (K, D, M)
    residuals = y.reshape(-1) - means @ a.T  # (K, M)
    kept = identity - gains @ a
    posterior = kept @ covariances @ xp.swapaxes(kept, 1, 2) + gains @ noise @ xp.swapaxes(gains, 1, 2)
    solved = xp.linalg.solve(innovations, residuals[..., None])[..., 0]
    log_weights = xp.log(weights) - 0.5 * (xp.sum(residuals * solved, -1) + xp.linalg.slogdet(innovations)[1])
    odds = xp.exp(log_weights - xp.max(log_weights))
    values, bases = xp.linalg.eigh(0.5 * (posterior + xp.swapaxes(posterior, 1, 2)))
    found = (odds / xp.sum(odds), means + xp.einsum("kij,kj->ki", gains, residuals), xp.maximum(values, 0), bases)
    return Mixture(*(jnp.asarray(value, target.means.dtype) for value in found), shape=target.shape)


def _singular(matrices, rounding):
    values = np.linalg.eigvalsh(matrices)  # (K, M), ascending
    return bool(np.any(values[:, 0] <= values.shape[1] * rounding * values[:, -1]))
