"""The bound in continuous time, of any schedule, and the objective of learned ones."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checks, schedules, types
from ..distributions.lattice import check_levels, level_index, log_evidence
from ..distributions.normal import Gaussian, check_gaussian
from ..schedules import Schedule
from ..solvers.requirements import check_example
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    Scalar,
    as_one_program,
    as_pytree_callable,
    combine,
    partition,
)
from .bound import CHUNK, Bound, map_chunks, prior_matching
from .objectives import weighted_error
from .reverse import check_decoder_variance, decoder

__all__ = ["continuous_elbo", "continuous_loss", "schedule_variance_loss"]


_ARGUMENTS = {
    "key": checks.key,
    "denoiser": checks.denoiser,
    "schedule": schedules.argument,
    "x": check_example,
}


@checks.arguments(**_ARGUMENTS)
def continuous_loss(
    key: Key,
    denoiser: Denoiser,
    schedule: Schedule,
    x: ArrayLike,
    *,
    t: Scalar | None = None,
) -> Array:
    """Denoising terms of the bound at T = ∞ (Kingma et al. 2021, equations 17–18).

        ½ |dSNR/dt| ‖x_0 − D(x_t, t)‖² (t_max − t_min)

    For uniform t, the default, its mean is ½∫ ‖x_0 − D‖² dSNR. If D depends on
    t through the log-SNR alone, as with the scaled inputs of
    `predictions.denoiser`, the mean depends on the end points of the schedule
    alone.

    Args:
      key: A typed key.
      denoiser: (x, t) -> D.
      schedule: Any schedule.
      x: One example.
      t: (), in [t_min, t_max]. Default: one draw.

    Returns:
      The loss in nats, shape ().

    Raises:
      ValueError: For a t outside the interval, NaN in x, or a denoiser that
        returns another shape.
      TypeError: For what is no key, denoiser or schedule.

    Example:
      >>> dj.ddpm.continuous_loss(key, denoiser, schedule, jnp.ones(2)).shape
      ()
    """
    if t is not None and not checks.is_traced(t, schedule):
        t = checks.within("t", t, float(schedule.t_min), float(schedule.t_max))
    arrays, static = partition((as_pytree_callable(denoiser), schedule))
    return _continuous_loss(static, arrays, key, x, t)


@types.compiled(static_argnums=0)
def _continuous_loss(static, arrays, key, x, t):
    denoiser, schedule = combine(arrays, static)
    span = schedule.t_max - schedule.t_min
    # Split in any case: the noise is the same whether t is given or drawn.
    key_time, key_noise = jax.random.split(key)
    if t is None:
        t = schedule.t_min + span * jax.random.uniform(key_time, (), x.dtype)
    noise = jax.random.normal(key_noise, x.shape, x.dtype)
    x_t = schedules.perturb(schedule, x, t, noise)
    error = x - checks.denoised(denoiser(x_t, t), x)
    # The span is one over the density of a uniform t.
    return weighted_error("likelihood", schedule, t, error) * span


def schedule_variance_loss(
    key: Key,
    denoiser: Denoiser,
    schedule: Schedule,
    x: ArrayLike,
    *,
    t: Scalar | None = None,
) -> Array:
    """Objective of a learned schedule between its end points (Kingma et al. 2021).

    It is the square of `continuous_loss`. Its mean over t and noise is the
    loss's variance plus its squared mean, which does not depend on the
    schedule's shape. So its gradient with respect to the shape of
    `schedules.learned` is an unbiased estimate of that of the variance.

    Train the end points on the bound itself. The least is reached where |λ′| ∝
    1/√E[h²], h = ½ SNR ‖x_0 − D‖².

    Args:
      key: A typed key.
      denoiser: (x, t) -> D.
      schedule: A learned schedule.
      x: One example.
      t: (), in [t_min, t_max]. Default: one draw.

    Returns:
      The objective in nats², shape ().

    References:
      Kingma et al. 2021, appendix I.2.
    """
    return continuous_loss(key, denoiser, schedule, x, t=t) ** 2


@checks.arguments(
    **_ARGUMENTS,
    count=(checks.integer, 1),
    times=(checks.choice, ("uniform", "log_snr")),
    decoder=(checks.choice, ("denoised", "evidence")),
    levels=checks.optional(check_levels),
    chunk=CHUNK,
)
def continuous_elbo(
    key: Key,
    denoiser: Denoiser,
    schedule: Schedule,
    x: ArrayLike,
    *,
    count: int = 128,
    times: str = "uniform",
    levels: ArrayLike | None = None,
    decoder: str = "denoised",
    decoder_variance: ArrayLike | None = None,
    prior: Gaussian | None = None,
    chunk: int | None = None,
) -> Bound:
    """Bound on −log p(x) in continuous time (Kingma et al. 2021, equations 11 and 17).

    `continuous_loss` at `count` stratified times (i + u)/count of the
    interval, with one u ~ U(0, 1) and fresh noise for every i. The terms sum
    to an unbiased estimate, whether the interval is that of t or of λ:

        ½∫ ‖x_0 − D‖² dSNR = ½∫ SNR ‖x_0 − D‖² dλ

    Uniform times have a large variance where |dSNR/dt| is large, as at a small
    t_min. Times uniform in the log-SNR λ have not.

    Args:
      key: A typed key.
      denoiser: (x, t) -> D.
      schedule: Any schedule.
      x: One example.
      count: The number of times.
      times: "uniform" in t, or "log_snr", uniform in the log-SNR. The latter
        needs one that is finite at t_max.
      levels: (K,), increasing, the values that entries of lattice data take.
        The total then bounds −log P(x).
      decoder: P(x | x_t) at t_min. "denoised" is N(D, decoder_variance),
        rounded to the levels. "evidence" is exp(−(x_t − α c_k)²/2σ²) over the
        levels c_k of each entry, normalised (Kingma et al. 2021, equation 12).
        It loses less where the noise at t_min is a sixth of their spacing.
      decoder_variance: Of the decoder "denoised". Default: σ²/α² there.
      prior: p(x_T), a `distributions.Gaussian`. Default N(0, prior_std²), from
        which `sample` starts.
      chunk: How many times at once, to bound memory. Default: all.

    Returns:
      The bound. Its `denoising` (count,) is 1/count of the loss at every time.

    Raises:
      ValueError: As `elbo`, and for count < 1, "evidence" without levels or
        with a decoder_variance, and "log_snr" where α(t_max) = 0.
      TypeError: For what is no key, denoiser, schedule or Gaussian.

    Example:
      >>> bound = dj.ddpm.continuous_elbo(key, denoiser, schedule, jnp.ones(2), count=4)
      >>> bound.denoising.shape
      (4,)
    """
    _check_bound(schedule, times, decoder, levels, decoder_variance)
    if levels is not None:
        level_index(x, levels)
    decoder_variance = check_decoder_variance(decoder_variance, x.shape)
    prior = checks.optional(check_gaussian, x.shape)("prior", prior)
    if prior is None:
        prior = Gaussian(0.0, as_one_program(_prior_variance, schedule))
    arrays, static = partition((as_pytree_callable(denoiser), schedule))
    settings = _BoundRun(static, count, times, decoder, chunk)
    denoising, reconstruction = _continuous_terms(
        settings, arrays, key, x, levels, decoder_variance
    )
    return Bound(prior_matching(schedule, x, prior), denoising, reconstruction)


def _check_bound(schedule, times, decoder, levels, decoder_variance):
    right = decoder == "denoised" or (levels is not None and decoder_variance is None)
    got = f"levels={'None' if levels is None else 'given'} and {decoder_variance=}"
    message = "decoder 'evidence' needs levels and no decoder_variance"
    checks.require(right, f"{message}, got {got}")
    exempt = times == "uniform" or checks.is_traced(schedule)
    checks.require(
        exempt or schedules.is_finite(schedule),
        "times 'log_snr' need α > 0 at t_max, got a schedule with α = 0 there: "
        "lower t_max, or take times='uniform'",
    )


def _prior_variance(schedule):
    return schedules.prior_std(schedule) ** 2


class _BoundRun(NamedTuple):
    """Settings of a bound, fixed at compilation."""

    static: Any  # of the denoiser and the schedule
    count: int
    times: str
    decoder: str
    chunk: int | None


@types.compiled(static_argnums=0)
def _continuous_terms(settings, arrays, key, x, levels, decoder_variance):
    denoiser, schedule = combine(arrays, settings.static)
    key_time, key_noise, key_end = jax.random.split(key, 3)
    shift = jax.random.uniform(key_time, (), x.dtype)
    of = _of_uniform_times if settings.times == "uniform" else _of_log_snrs

    # One shift for all strata: the times are evenly spaced and unbiased.
    def term(i):
        share = (i.astype(x.dtype) + shift) / settings.count
        key_i = jax.random.fold_in(key_noise, i)
        return of(key_i, denoiser, schedule, x, share) / settings.count

    terms = map_chunks(term, jnp.arange(settings.count), settings.chunk)
    t = jnp.asarray(schedule.t_min, x.dtype)
    noise = jax.random.normal(key_end, x.shape, x.dtype)
    ratio = schedule.sigma(t) / schedule.alpha(t)
    if settings.decoder == "evidence":
        return terms, -log_evidence(x, noise, ratio, levels)
    x_t = schedules.perturb(schedule, x, t, noise)
    denoised = checks.denoised(denoiser(x_t, t), x)
    if decoder_variance is None:
        decoder_variance = ratio**2  # the variance of x_t/α about x_0
    return terms, -decoder(denoised, decoder_variance, levels).log_prob(x)


def _of_uniform_times(key, denoiser, schedule, x, share):
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * share
    return continuous_loss(key, denoiser, schedule, x, t=t)


def _of_log_snrs(key, denoiser, schedule, x, share):
    least, greatest = schedules.log_snr_range(schedule)
    log_snr = least + (greatest - least) * share
    t = schedules.time_of_log_snr(schedule, log_snr)
    noise = jax.random.normal(key, x.shape, x.dtype)
    x_t = schedules.perturb(schedule, x, t, noise)
    error = x - checks.denoised(denoiser(x_t, t), x)
    # One over the density of λ is the span of the log-SNR.
    return 0.5 * jnp.exp(log_snr) * jnp.sum(error**2) * (greatest - least)
