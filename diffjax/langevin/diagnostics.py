"""How far chains can be trusted: effective sample size, standard error of a mean, split R̂.

Each takes samples of many chains, (chains, draws, *shape) as `run_many` returns them, and gives one number for each
entry of a draw: shape (*shape). The chains are halved first, so that a chain that drifts disagrees with itself. All
raise ValueError for fewer than 8 draws and for concrete samples that are NaN or infinite, as those of a chain that
diverged are. Chains that never move give NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from .. import checks
from ..types import Array, ArrayLike


def effective_sample_size(samples: ArrayLike) -> Array:
    """The number of independent draws whose mean would have the variance that these draws' mean has.

    MN/τ̂, τ̂ = −1 + 2 Σ_k P_k with P_k = ρ̂_{2k} + ρ̂_{2k+1}, summed while positive and made monotone (Geyer 1992), and
    autocorrelations ρ̂_t = 1 − (W − mean autocovariance)/V̂ of all chains together, W the variance within chains and V̂
    that of the pooled law: where chains sit in modes of their own it falls to about their number. At most MN log₁₀ MN.
    Gelman et al. 2013, eq. 11.7–11.8; Vehtari et al. 2021, eq. 10–13.
    """
    return _effective_size(_halves(samples))


@jax.jit
def _effective_size(halves):
    chains, draws = halves.shape[:2]
    centred = halves - halves.mean(1, keepdims=True)
    spectrum = jnp.fft.rfft(centred, 2 * draws, axis=1)
    autocovariance = jnp.fft.irfft(jnp.abs(spectrum) ** 2, 2 * draws, axis=1)[:, :draws].mean(0) / draws
    within, pooled = _variances(halves)
    rho = (1 - (within - autocovariance) / pooled).at[0].set(1)  # (draws, *shape)
    pairs = rho[: draws // 2 * 2].reshape(draws // 2, 2, *rho.shape[1:]).sum(1)
    positive = jnp.cumprod(pairs > 0, axis=0)
    time = -1 + 2 * jnp.sum(positive * jax.lax.cummin(pairs, axis=0), 0)
    total = chains * draws
    return total / jnp.maximum(time, 1 / np.log10(total))


def standard_error(samples: ArrayLike) -> Array:
    """The standard error of the mean over all draws of all chains: √(V̂/ESS), in the samples' unit."""
    halves = _halves(samples)
    return jnp.sqrt(_variances(halves)[1] / _effective_size(halves))


def r_hat(samples: ArrayLike, ranks: bool = True) -> Array:
    """Split R̂ = √(V̂/W): by how much the spread would shrink if the chains ran on for ever; 1 at convergence.

    ranks: the greater of R̂ of the normal scores of the draws' ranks (ties share their mean rank) and of those of their
    distances from the median, which see heavy tails and chains of differing scale; False for the draws themselves. A
    usual demand is R̂ < 1.01. Gelman et al. 2013, eq. 11.4; Vehtari et al. 2021, eq. 14.
    """
    halves = _halves(samples)
    return _split_ranks(halves) if checks.boolean("ranks", ranks) else _ratio(halves)


@jax.jit
def _split_ranks(halves):
    flat = halves.reshape(-1, *halves.shape[2:])
    folded = jnp.abs(halves - jnp.median(flat, 0))
    return jnp.maximum(_ratio(_normal_scores(halves)), _ratio(_normal_scores(folded)))


def _ratio(halves):
    within, pooled = _variances(halves)
    return jnp.sqrt(pooled / within)


def _variances(halves):
    """(W, V̂): the mean variance within chains, and with the variance of their means that of the pooled law."""
    draws = halves.shape[1]
    within = jnp.var(halves, 1, ddof=1).mean(0)
    return within, within * (draws - 1) / draws + jnp.var(halves.mean(1), 0, ddof=1)


def _normal_scores(values):
    """Φ⁻¹((r − 3/8)/(S + 1/4)) of the ranks r among all S draws; shape of values."""
    columns = values.reshape(values.shape[0] * values.shape[1], -1).T  # (entries, S)

    def scores(column):
        ordered = jnp.sort(column)
        below, upto = (jnp.searchsorted(ordered, column, side=side) for side in ("left", "right"))
        return ndtri((0.5 * (below + upto + 1) - 0.375) / (column.size + 0.25))

    return jax.vmap(scores)(columns).T.reshape(values.shape)


def _halves(samples):
    """(2 · chains, draws // 2, *shape), the middle one of an odd number of draws left out."""
    samples = checks.real_array("samples", samples)
    if samples.ndim < 2 or samples.shape[0] < 1 or samples.shape[1] < 8:
        raise ValueError(f"samples must have shape (chains, draws, ...) with 8 draws or more, got {samples.shape}")
    if not checks.is_traced(samples):
        bad = np.flatnonzero(~np.isfinite(np.asarray(samples)).reshape(len(samples), -1).all(1))
        if bad.size:
            raise ValueError(
                f"samples must be finite, got NaN or infinity in {bad.size} of {len(samples)} chains, "
                f"the first of them chain {bad[0]}"
            )
    half = samples.shape[1] // 2
    return jnp.concatenate([samples[:, :half], samples[:, -half:]])
