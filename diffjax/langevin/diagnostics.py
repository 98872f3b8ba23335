"""How far chains can be trusted: effective sample size, standard error of a mean, split R̂.

Each takes samples of many chains, (chains, draws, *shape) as `run_many` returns them, and gives one number for each
entry of a draw: shape (*shape). The chains are halved first, so that a chain that drifts disagrees with itself. All
raise ValueError for fewer than 8 draws and for concrete samples that are NaN or infinite, as those of a chain that
diverged are. The samples' unit and origin do not matter: each entry is centred and scaled first. Where all chains stay
at one value the result is NaN, and where each chain stays at a value of its own R̂ is infinite.
"""

from typing import Any, NamedTuple

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
    return _effective_size(_standardised(samples).halves)


@jax.jit
def _effective_size(halves):
    return _size_and_variance(halves)[0]


@jax.jit
def _standard_error(halves):
    size, pooled = _size_and_variance(halves)
    return jnp.sqrt(pooled / size)


def _size_and_variance(halves):
    """(effective size, V̂)."""
    chains, draws = halves.shape[:2]
    within, pooled, centred = _variances(halves)
    spectrum = jnp.fft.rfft(centred, 2 * draws, axis=1)
    autocovariance = (
        jnp.fft.irfft(jnp.abs(spectrum) ** 2, 2 * draws, axis=1)[:, :draws].mean(0)
        / draws
    )
    moving = pooled > 0
    rho = (
        (1 - (within - autocovariance) / jnp.where(moving, pooled, 1)).at[0].set(1)
    )  # (draws, *shape)
    pairs = rho[: draws // 2 * 2].reshape(draws // 2, 2, *rho.shape[1:]).sum(1)
    positive = jnp.cumprod(pairs > 0, axis=0) > 0
    time = -1 + 2 * jnp.sum(jnp.where(positive, jax.lax.cummin(pairs, axis=0), 0), 0)
    total = chains * draws
    return jnp.where(
        moving, total / jnp.maximum(time, 1 / np.log10(total)), jnp.nan
    ), pooled


def standard_error(samples: ArrayLike) -> Array:
    """The standard error of the mean over all draws of all chains: √(V̂/ESS), in the samples' unit."""
    halves, scale = _standardised(samples)
    error = _standard_error(halves)
    if checks.is_traced(error):
        return scale * error
    return jax.device_put((scale * np.asarray(error, np.float64)).astype(error.dtype))


def r_hat(samples: ArrayLike, ranks: bool = True) -> Array:
    """Split R̂ = √(V̂/W): by how much the spread would shrink if the chains ran on for ever; 1 at convergence.

    ranks: the greater of R̂ of the normal scores of the draws' ranks (ties share their mean rank) and of those of their
    distances from the median, which see heavy tails and chains of differing scale; False for the draws themselves. A
    usual demand is R̂ < 1.01. Gelman et al. 2013, eq. 11.4; Vehtari et al. 2021, eq. 14.
    """
    halves = _standardised(samples).halves
    return _split_ranks(halves) if checks.boolean("ranks", ranks) else _ratio(halves)


@jax.jit
def _split_ranks(halves):
    # The median is 0. Where the distances are all equal there is no scale to compare, and the ranks alone tell.
    return jnp.fmax(
        _ratio(_normal_scores(halves)), _ratio(_normal_scores(jnp.abs(halves)))
    )


@jax.jit
def _ratio(halves):
    within, pooled, _ = _variances(halves)
    return jnp.where(pooled > 0, jnp.sqrt(pooled / within), jnp.nan)


def _variances(halves):
    """(W, V̂, draws from their chain's mean): W is the mean variance within chains and V̂, with the variance of
    their means, that of the pooled distribution."""
    draws = halves.shape[1]
    # From a draw of its own, so that a chain that stays at one value has a variance of exactly 0.
    moves = halves - halves[:, :1]
    shift = moves.mean(1, keepdims=True)
    centred, means = moves - shift, (halves[:, :1] + shift)[:, 0]
    within = (jnp.sum(centred**2, 1) / (draws - 1)).mean(0)
    return within, within * (draws - 1) / draws + jnp.var(means, 0, ddof=1), centred


def _normal_scores(values):
    """Φ⁻¹((r − 3/8)/(S + 1/4)) of the ranks r among all S draws; shape of values."""
    columns = values.reshape(values.shape[0] * values.shape[1], -1).T  # (entries, S)

    def scores(column):
        ordered = jnp.sort(column)
        below, upto = (
            jnp.searchsorted(ordered, column, side=side) for side in ("left", "right")
        )
        return ndtri(
            (0.5 * (below + upto + 1).astype(column.dtype) - 0.375)
            / (column.size + 0.25)
        )

    return jax.vmap(scores)(columns).T.reshape(values.shape)


class _Standardised(NamedTuple):
    """halves: (2 · chains, draws // 2, *shape), of median 0 and at most 1 in absolute value. scale: (*shape), powers of
    2, the unit of halves."""

    halves: Any
    scale: Any


def _standardised(samples):
    """The halves of checked samples, the middle draw of an odd number left out; in float64 where they are concrete."""
    array = checks.real_array("samples", samples)
    if array.ndim < 2 or array.shape[0] < 1 or array.shape[1] < 8:
        raise ValueError(
            f"samples must have shape (chains, draws, ...) with 8 draws or more, got {array.shape}"
        )
    if array.size == 0:
        raise ValueError(
            f"samples must have at least one entry for each draw, got shape {array.shape}"
        )
    if checks.is_traced(array):
        return _standardise(jnp, array)
    values = np.asarray(samples, np.float64)
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
    if bad.size:
        raise ValueError(
            f"samples must be finite, got NaN or infinity in {bad.size} of {len(values)} chains, "
            f"the first of them chain {bad[0]}"
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
