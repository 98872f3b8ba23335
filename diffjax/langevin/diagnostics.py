"""Diagnostics of chains: effective sample size, standard error of a mean, split R̂.

Each takes samples of many chains, (chains, draws, *shape) as `run_many`
returns them, and returns one number for each entry of a draw, (*shape). The
chains are halved first, so that a chain that drifts disagrees with itself.

The samples' unit and origin do not matter, because each entry is centred and
scaled. Where all chains stay at one value the result is NaN. Where each stays
at another value, R̂ is infinite.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from .. import checks
from ..types import Array, ArrayLike

__all__ = ["effective_sample_size", "r_hat", "standard_error"]


def effective_sample_size(samples: ArrayLike) -> Array:
    """Number of independent draws whose mean is as accurate as these draws' mean.

        ESS = MN/τ̂,    τ̂ = −1 + 2 Σ_k P_k,    P_k = ρ̂_{2k} + ρ̂_{2k+1}
        ρ̂_t = 1 − (W − mean autocovariance at lag t)/V̂

    for M chains of N draws (Gelman et al. 2013, equations 11.7 and 11.8, and
    Vehtari et al. 2021, equations 10 to 13). W is the variance within chains
    and V̂ that of the pooled distribution: where chains sit in different
    modes, the size falls to about their number. The P_k are summed while
    positive and made monotone (Geyer 1992). The size is at most MN log₁₀ MN.

    Args:
      samples: (chains, draws, *shape).

    Returns:
      The size for each entry, (*shape).

    Raises:
      ValueError: If there are fewer than 8 draws, or concrete samples are NaN
        or infinite, as those of a diverged chain are.

    Example:
      >>> size = dj.langevin.effective_sample_size(jax.random.normal(key, (4, 50, 2)))
    """
    return _effective_size(_standardised(samples).halves)


@jax.jit
def _effective_size(halves):
    return _size_and_variance(halves)[0]


@jax.jit
def _standard_error(halves):
    size, pooled = _size_and_variance(halves)
    return jnp.sqrt(pooled / size)


def _size_and_variance(halves):
    """Effective size and V̂, (*shape) each, of halves (chains, draws, *shape)."""
    chains, draws = halves.shape[:2]
    within, pooled, centred = _variances(halves)
    spectrum = jnp.fft.rfft(centred, 2 * draws, axis=1)
    products = jnp.fft.irfft(jnp.abs(spectrum) ** 2, 2 * draws, axis=1)[:, :draws]
    autocovariance = products.mean(0) / draws  # (draws, *shape)
    moving = pooled > 0
    rho = 1 - (within - autocovariance) / jnp.where(moving, pooled, 1)
    rho = rho.at[0].set(1)  # (draws, *shape)
    # (draws, *shape) -> (draws // 2, 2, *shape), summed over each pair of
    # lags.
    pairs = rho[: draws // 2 * 2].reshape(draws // 2, 2, *rho.shape[1:]).sum(1)
    positive = jnp.cumprod(pairs > 0, axis=0) > 0
    time = -1 + 2 * jnp.sum(jnp.where(positive, jax.lax.cummin(pairs, axis=0), 0), 0)
    total = chains * draws
    size = total / jnp.maximum(time, 1 / np.log10(total))
    return jnp.where(moving, size, jnp.nan), pooled


def standard_error(samples: ArrayLike) -> Array:
    """Standard error √(V̂/ESS) of the mean over all draws of all chains.

    Args:
      samples: (chains, draws, *shape).

    Returns:
      The standard error for each entry, (*shape), in the samples' unit.

    Raises:
      ValueError: As `effective_sample_size`.

    Example:
      >>> error = dj.langevin.standard_error(jax.random.normal(key, (4, 50, 2)))
    """
    halves, scale = _standardised(samples)
    error = _standard_error(halves)
    if checks.is_traced(error):
        return scale * error
    return jax.device_put((scale * np.asarray(error, np.float64)).astype(error.dtype))


@checks.arguments(ranks=checks.boolean)
def r_hat(samples: ArrayLike, ranks: bool = True) -> Array:
    """Split R̂, the ratio of the spread over all chains to that within them.

        R̂ = √(V̂/W)

    It estimates by which factor the spread would shrink if the chains ran on
    for ever. It is 1 at convergence. A usual demand is R̂ < 1.01.

    Args:
      samples: (chains, draws, *shape).
      ranks: True for the greater of two R̂ of normal scores, one of the draws'
        ranks (ties share their mean rank) and one of the ranks of their
        distances from the median. These see heavy tails and chains of
        differing scale. False for the R̂ of the draws themselves.

    Returns:
      R̂ for each entry, (*shape).

    Raises:
      ValueError: As `effective_sample_size`.

    References:
      Gelman et al. 2013, equation 11.4. Vehtari et al. 2021, equation 14.

    Example:
      >>> dj.langevin.r_hat(jax.random.normal(key, (4, 50, 2))).shape
      (2,)
    """
    halves = _standardised(samples).halves
    return _split_ranks(halves) if ranks else _ratio(halves)


@jax.jit
def _split_ranks(halves):
    # The median of the halves is 0. Where all distances from it are equal
    # their R̂ is NaN, and fmax takes that of the ranks.
    by_rank = _ratio(_normal_scores(halves))
    by_distance = _ratio(_normal_scores(jnp.abs(halves)))
    return jnp.fmax(by_rank, by_distance)


@jax.jit
def _ratio(halves):
    within, pooled, _ = _variances(halves)
    return jnp.where(pooled > 0, jnp.sqrt(pooled / within), jnp.nan)


def _variances(halves):
    """W, V̂ and the draws less their chain's mean.

    W is the mean variance within chains. V̂ adds the variance of their means,
    for that of the pooled distribution.
    """
    draws = halves.shape[1]
    # Relative to the chain's first draw, so that a chain that stays at one
    # value has a variance of exactly 0.
    moves = halves - halves[:, :1]
    shift = moves.mean(1, keepdims=True)
    centred, means = moves - shift, (halves[:, :1] + shift)[:, 0]
    within = (jnp.sum(centred**2, 1) / (draws - 1)).mean(0)
    return within, within * (draws - 1) / draws + jnp.var(means, 0, ddof=1), centred


def _normal_scores(values):
    """Φ⁻¹((r − 3/8)/(S + 1/4)) of the ranks r among all S draws, shape of values."""
    # (chains, draws, *shape) -> (entries, S)
    columns = values.reshape(values.shape[0] * values.shape[1], -1).T

    def scores(column):
        ordered = jnp.sort(column)
        below = jnp.searchsorted(ordered, column, side="left")
        upto = jnp.searchsorted(ordered, column, side="right")
        ranks = 0.5 * (below + upto + 1).astype(column.dtype)  # ties share their mean
        return ndtri((ranks - 0.375) / (column.size + 0.25))

    return jax.vmap(scores)(columns).T.reshape(values.shape)


class _Standardised(NamedTuple):
    """Halved chains of median 0 and absolute values of at most 1, with their unit."""

    halves: Any  # (2 · chains, draws // 2, *shape)
    scale: Any  # (*shape), powers of 2, which scale without rounding


def _standardised(samples):
    """The halves of checked samples, without the middle draw of an odd number.

    Concrete samples are centred and scaled in float64.
    """
    array = checks.real_array("samples", samples)
    checks.require(
        array.ndim >= 2 and array.shape[1] >= 8 and array.size,
        "samples must have shape (chains, draws, ...) with 8 draws or more and no "
        f"empty axis, got {array.shape}",
    )
    if checks.is_traced(array):
        return _standardise(jnp, array)
    values = np.asarray(samples, np.float64)
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
    if bad.size:
        raise ValueError(
            f"samples must be finite, got NaN or infinity in {bad.size} of "
            f"{len(values)} chains, the first of them chain {bad[0]}"
        )
    halves, scale = _standardise(np, values)
    return _Standardised(halves.astype(array.dtype), scale)


def _standardise(xp, samples):
    half = samples.shape[1] // 2
    halves = xp.concatenate([samples[:, :half], samples[:, -half:]])
    halves = halves - xp.median(halves.reshape(-1, *halves.shape[2:]), 0)
    largest = xp.max(xp.abs(halves), (0, 1))
    scale = xp.ldexp(xp.ones_like(largest), xp.frexp(largest)[1])
    return _Standardised(halves / scale, scale)
