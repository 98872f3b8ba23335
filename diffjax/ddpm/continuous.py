"""The bound in continuous time, of any schedule, and what a learned schedule minimises."""

import jax
import jax.numpy as jnp

from .. import checks, schedules, types
from ..distributions.lattice import check_levels, level_index
from ..distributions.normal import Gaussian
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
from .bound import Bound, check_chunk, check_prior, map_chunks, prior_matching
from .kernels import check_decoder_variance, decoder_log_prob
from .objectives import weighted_error


def continuous_loss(
    key: Key,
    denoiser: Denoiser,
    schedule: Schedule,
    x: ArrayLike,
    t: Scalar | None = None,
) -> Array:
    """½ |dSNR/dt| ‖x_0 − D(x_t, t)‖² (t_max − t_min) of one example, in nats, shape (): the denoising terms at T = ∞.

    Over t uniform, the default, its mean is ½∫ ‖x_0 − D‖² dSNR, which depends on the schedule by its end points alone
    where D depends on t by the log-SNR alone (so do scaled inputs of `predictions.denoiser`). x: one example. t: (), in
    [t_min, t_max]; default one draw. Raises ValueError for a t outside, NaN in x, or an answer of another shape;
    TypeError for what is no key, denoiser or schedule. Kingma et al. 2021, eq. 17–18.
    """
    checks.key("key", key)
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    schedules.check(schedule)
    x = check_example("x", x)
    if t is not None and not checks.is_traced(t, schedule):
        t = checks.within("t", t, float(schedule.t_min), float(schedule.t_max))
    arrays, static = partition((as_pytree_callable(denoiser), schedule))
    return _continuous_loss(static, arrays, key, x, t)


@types.compiled(static_argnums=0)
def _continuous_loss(static, arrays, key, x, t):
    denoiser, schedule = combine(arrays, static)
    span = schedule.t_max - schedule.t_min
    key_time, key_noise = jax.random.split(key)
    if t is None:
        t = schedule.t_min + span * jax.random.uniform(key_time, (), x.dtype)
    noise = jax.random.normal(key_noise, x.shape, x.dtype)
    error = x - checks.denoised(
        denoiser(schedules.perturb(schedule, x, t, noise), t), x
    )
    return weighted_error("likelihood", schedule, t, error) * span


def schedule_variance_loss(
    key: Key,
    denoiser: Denoiser,
    schedule: Schedule,
    x: ArrayLike,
    t: Scalar | None = None,
) -> Array:
    """The square of `continuous_loss`, in nats², shape (): what a learned schedule minimises between its end points.

    Its mean over t and noise is the loss's variance plus its squared mean, which does not depend on the schedule's
    shape, so that its gradient by the shape of `schedules.learned` is, without bias, that of the variance; the end
    points follow the bound itself. The least is reached where |λ′| ∝ 1/√E[h²], h = ½ SNR ‖x_0 − D‖². Kingma et al.
    2021, appendix I.2.
    """
    return continuous_loss(key, denoiser, schedule, x, t) ** 2


def continuous_elbo(
    key: Key,
    denoiser: Denoiser,
    schedule: Schedule,
    x: ArrayLike,
    count: int = 128,
    levels: ArrayLike | None = None,
    decoder_variance: ArrayLike | None = None,
    prior: Gaussian | None = None,
    chunk: int | None = None,
) -> Bound:
    """The bound on −log p(x) in continuous time, of any schedule: `continuous_loss` at `count` stratified times.

    denoising: (count,), each 1/count of the loss at (i + u)/count of the interval, one u ~ U(0, 1) and fresh noise for
    each, so that the terms sum to an unbiased estimate; its spread is great where |dSNR/dt| is, as at small t_min for
    continuous data: take more of `count`, a greater t_min, or a schedule whose log-SNR falls evenly, as `ve`. The
    decoder stands at t_min: N(D, decoder_variance), default σ²/α² there, or its discretisation on levels. prior:
    p(x_T), default N(0, prior_std²), what `sample` starts from. Other arguments and errors as in `elbo`. Kingma et al.
    2021, eq. 11 and 17.
    """
    checks.key("key", key)
    count = checks.integer("count", count, minimum=1)
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    schedules.check(schedule)
    x = check_example("x", x)
    levels = None if levels is None else check_levels(levels)
    if levels is not None:
        level_index(x, levels)
    decoder_variance = check_decoder_variance(decoder_variance, x.shape)
    prior, chunk = (
        check_prior(prior, as_one_program(_prior_variance, schedule), x.shape),
        check_chunk(chunk),
    )
    arrays, static = partition((as_pytree_callable(denoiser), schedule))
    denoising, reconstruction = _continuous_terms(
        static, count, chunk, arrays, key, x, levels, decoder_variance
    )
    return Bound(prior_matching(schedule, x, prior), denoising, reconstruction)


def _prior_variance(schedule):
    return schedules.prior_std(schedule) ** 2


@types.compiled(static_argnums=(0, 1, 2))
def _continuous_terms(static, count, chunk, arrays, key, x, levels, decoder_variance):
    denoiser, schedule = combine(arrays, static)
    key_time, key_noise, key_end = jax.random.split(key, 3)
    shift = jax.random.uniform(key_time, (), x.dtype)

    def term(i):
        t = (
            schedule.t_min
            + (schedule.t_max - schedule.t_min) * (i.astype(x.dtype) + shift) / count
        )
        return (
            continuous_loss(jax.random.fold_in(key_noise, i), denoiser, schedule, x, t)
            / count
        )

    t = jnp.asarray(schedule.t_min, x.dtype)
    noise = jax.random.normal(key_end, x.shape, x.dtype)
    data = checks.denoised(denoiser(schedules.perturb(schedule, x, t, noise), t), x)
    if decoder_variance is None:
        decoder_variance = (schedule.sigma(t) / schedule.alpha(t)) ** 2
    return map_chunks(term, jnp.arange(count), chunk), -decoder_log_prob(
        Gaussian(data, decoder_variance), x, levels
    )
