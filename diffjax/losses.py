"""Training objectives: weighted denoising score matching in every prediction kind, and laws of the training time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm

from . import checks, schedules, types
from .numerics import float_dtype
from .predictions import NetworkDenoiser
from .schedules import Schedule
from .schedules.derived import as_time
from .types import (
    Array,
    ArrayLike,
    Key,
    PyTree,
    Scalar,
    as_one_program,
    as_pytree_callable,
    combine,
    partition,
)

MIN_SNR_CLIP = 5.0
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2


def _snr(schedule, t, sigma_data):
    """α²/σ², not e^λ: its derivative is finite where α = 0 and λ = −∞."""
    return (schedule.alpha(t) / schedule.sigma(t)) ** 2


def _likelihood(schedule, t, sigma_data):
    """−½ dSNR/dt = (α/σ) (ασ′ − α′σ)/σ², finite where λ = −∞. Both terms are positive: σ grows and α falls."""
    r = schedules.rates(schedule, t)
    return (
        (r.alpha / r.sigma)
        * ((r.alpha * r.sigma_rate - r.alpha_rate * r.sigma) / r.sigma)
        / r.sigma
    )


def _edm(schedule, t, sigma_data):
    """1/c_out² = (σ_d² + σ²/α²)/(σ_d σ/α)², finite where α = 0."""
    return 1 / sigma_data**2 + _snr(schedule, t, sigma_data)


def _min_snr(schedule, t, sigma_data):
    return jnp.minimum(_snr(schedule, t, sigma_data), MIN_SNR_CLIP)


WEIGHTINGS: dict[str, Callable | None] = {
    "uniform": None,
    "simple": _snr,
    "likelihood": _likelihood,
    "edm": _edm,
    "min_snr": _min_snr,
}
"""The weight w(t) of ‖D − x_0‖² for each name.

uniform: 1 on the network's own error ‖F − target‖², whatever its kind · simple: α²/σ², which is ‖ε̂ − ε‖² (Ho et al.
2020, eq. 14) · likelihood: ½ |d(α²/σ²)/dt|, the same as ½g² on the score's error (Song et al. 2021, Theorem 1; Kingma
et al. 2021, eq. 17) · edm: 1/c_out² (Karras et al. 2022, Table 1) · min_snr: min(α²/σ², 5) (Hang et al. 2023, section
3.4).
"""


def denoising_loss(
    prediction: NetworkDenoiser,
    x0: Array,
    noise: Array,
    t: Scalar,
    *condition: Any,
    weighting: str | Callable = "uniform",
    density: Scalar = 1.0,
    **net_kwargs: Any,
) -> Array:
    """w(t) ‖D(x_t, t) − x_0‖² / D of one example at one time, shape ().

    Computed as the network's own error times w c², where D − x_0 = c (F − target), so that nothing cancels at little
    noise. prediction: as made by `predictions.denoiser`. x0, noise: one example and standard normal noise of its shape.
    weighting: a name of `WEIGHTINGS` or a function (schedule, t, sigma_data) -> w. density: the law of t at t;
    "likelihood" alone divides by it, so that its expectation is ½∫|dSNR/dt| E‖D − x_0‖² dt / D (nats per dimension)
    under any law of t (with much variance under one that hardly visits some noise levels, as log_normal). net_kwargs
    are passed to the network. Vincent 2011, eq. 11; Song et al. 2021, eq. 7.
    """
    _check_prediction(prediction)
    checks.one_of_shapes("noise", noise, [np.shape(x0)])
    x0, noise, t = (
        checks.real_array("x0", x0),
        checks.real_array("noise", noise),
        checks.number("t", t),
    )
    if not callable(weighting):
        checks.choice("weighting", weighting, WEIGHTINGS)
    return _denoising_loss(
        prediction, x0, noise, t, condition, weighting, density, net_kwargs
    )


def _check_prediction(prediction):
    if not isinstance(prediction, NetworkDenoiser):
        raise TypeError(
            f"prediction must be made by predictions.denoiser or categorical, got {type(prediction).__name__}"
        )


@types.one_program
def _denoising_loss(
    prediction, x0, noise, t, condition, weighting, density, net_kwargs
):
    x_t = schedules.perturb(prediction.schedule, x0, t, noise)
    error = prediction.predict(x_t, t, *condition, **net_kwargs) - prediction.target(
        x0, noise, t
    )
    return _own_weight(prediction, t, weighting, density) * jnp.mean(error**2)


def batch_loss(
    key: Key,
    prediction: NetworkDenoiser,
    x0: ArrayLike,
    condition: PyTree = None,
    weighting: str | Callable = "uniform",
    times: str = "uniform",
    dropout: bool = False,
) -> tuple[Array, Array]:
    """(mean, losses) of `denoising_loss` over a batch, shapes () and (B,), at stratified random times.

    x0: (B, *shape). condition: pytree with leading axis B, passed as net(x, t, condition_i). times: a name of
    `TIME_DISTRIBUTIONS`. dropout=True passes the network a key of each example's own, as net(…, key=key). Raises ValueError for
    unknown names and leading axes that differ.
    """
    checks.key("key", key)
    _check_prediction(prediction)
    x0 = checks.real_array("x0", x0)
    if x0.ndim == 0 or x0.shape[0] == 0:
        raise ValueError(
            f"x0 must have shape (B, ...) with B at least 1, got {x0.shape}"
        )
    count = x0.shape[0]
    checks.leading_axis("condition", condition, "x0", count)
    checks.choice("times", times, TIME_DISTRIBUTIONS)
    if times != "uniform" and not checks.is_traced(prediction.schedule):
        schedules.log_snr_range(
            prediction.schedule
        )  # a schedule without signal at its end is named before tracing
    named = not callable(weighting)
    if named:
        checks.choice("weighting", weighting, WEIGHTINGS)
    arrays, static = partition(
        (prediction, None if named else as_pytree_callable(weighting))
    )
    settings = (static, weighting if named else None, times, bool(dropout))
    return _batch_loss(settings, arrays, key, x0, condition)


@types.compiled(static_argnums=0)
def _batch_loss(settings, arrays, key, x0, condition):
    """(mean, losses) of `batch_loss`."""
    static, name, times, dropout = settings
    (prediction, weighting), count = combine(arrays, static), x0.shape[0]
    weighting = name if weighting is None else weighting
    key_time, key_noise, key_net = jax.random.split(key, 3)
    t = sample_times(key_time, count, prediction.schedule, times)
    density = time_density(prediction.schedule, t, times)
    noise = jax.random.normal(key_noise, x0.shape, float_dtype(x0))
    conditions = () if condition is None else (condition,)
    extra = {"key": jax.random.split(key_net, count)} if dropout else {}

    def one(x0, noise, t, density, conditions, extra):
        return denoising_loss(
            prediction,
            x0,
            noise,
            t,
            *conditions,
            weighting=weighting,
            density=density,
            **extra,
        )

    losses = jax.vmap(one)(x0, noise, t, density, conditions, extra)
    return jnp.mean(losses), losses


# With ε̂ − ε = −(α/σ)(D − x_0), w(t) (σ/α)² weighs the noise's error: no α² that underflows, no σ⁻² that overflows.
_OF_NOISE_ERROR: dict[str, Callable] = {
    "simple": lambda schedule, t, sigma_data: 1.0,
    "likelihood": lambda schedule, t, sigma_data: (
        -0.5 * schedules.log_snr_rate(schedule, t)
    ),
    "edm": lambda schedule, t, sigma_data: (
        1 + jnp.exp(-schedules.log_snr(schedule, t)) / sigma_data**2
    ),
    "min_snr": lambda schedule, t, sigma_data: jnp.minimum(
        1.0, MIN_SNR_CLIP * jnp.exp(-schedules.log_snr(schedule, t))
    ),
}
_NOISE_SCALES: dict[str, Callable] = {
    "noise": lambda schedule, t: 1.0,
    "score": lambda schedule, t: schedule.sigma(t),
}
"""The noise's error per unit of error of the network, for kinds that predict noise alone."""


def _own_weight(prediction, t, weighting, density):
    weight = weighting if callable(weighting) else WEIGHTINGS[weighting]
    if weight is None:
        return 1.0
    if isinstance(weighting, str) and prediction.kind in _NOISE_SCALES:
        scale = _OF_NOISE_ERROR[weighting](
            prediction.schedule, t, prediction.sigma_data
        )
        scale = scale * _NOISE_SCALES[prediction.kind](prediction.schedule, t) ** 2
    else:
        scale = (
            weight(prediction.schedule, t, prediction.sigma_data)
            * prediction.output_scale(t) ** 2
        )
    return scale / density if weighting == "likelihood" else scale


# -------------------------------------------------------------------------------------------------------- laws of t

TIME_DISTRIBUTIONS = ("uniform", "log_snr", "log_normal")
"""uniform in t · uniform in log-SNR · log σ/α ~ N(−1.2, 1.2²) truncated (Karras et al. 2022, Table 1)."""


def sample_times(
    key: Key, count: int, schedule: Schedule, distribution: str = "uniform"
) -> Array:
    """Stratified random times: quantiles of a distribution at (i/count + u) mod 1, with one u ~ U(0, 1) per call.

    Each of the `count` strata holds one time. The rotation by u gives every single position the distribution of its
    name, so that an example that always comes at the same position of a batch still sees all noise levels over the
    calls. Kingma et al. 2021, appendix I.1.

    Args:
      key: A typed key.
      count: The number of times, 1 or more.
      schedule: Any schedule.
      distribution: The distribution of each time, a name in `TIME_DISTRIBUTIONS`.

    Returns:
      (count,), in [t_min, t_max].

    Raises:
      ValueError: If law is unknown, or needs log-SNRs and the schedule has α(t_max) = 0.

    Example:
      >>> dj.losses.sample_times(key, 4, dj.schedules.vp_linear()).shape
      (4,)
    """
    checks.key("key", key)
    checks.choice("distribution", distribution, TIME_DISTRIBUTIONS)
    count = checks.integer("count", count, minimum=1)
    schedules.check(schedule)
    if distribution != "uniform" and not checks.is_traced(schedule):
        schedules.log_snr_range(
            schedule
        )  # a schedule without signal at its end is named before tracing
    return as_one_program(
        _SAMPLERS[distribution],
        schedule,
        key,
        (np.arange(count) / count).astype(float_dtype()),
    )


def _sample_times(schedule, key, shares, distribution):
    dtype = float_dtype()
    # (x mod 1) rounds up to 1 for no x ≥ 0, so that no time lies above t_max
    quantiles = jnp.mod(
        jnp.asarray(shares, dtype) + jax.random.uniform(key, (), dtype), 1
    )
    if distribution == "uniform":
        return schedule.t_min + quantiles * (schedule.t_max - schedule.t_min)
    low, high = schedules.log_snr_range(schedule)
    if distribution == "log_snr":
        return schedules.time_of_log_snr(schedule, high + quantiles * (low - high))
    start, end = ndtr(_standard(high)), ndtr(_standard(low))
    z = ndtri(start + quantiles * (end - start))
    return schedules.time_of_log_snr(
        schedule, -2 * (LOG_SIGMA_MEAN + LOG_SIGMA_STD * z)
    )


_SAMPLERS = {
    distribution: functools.partial(_sample_times, distribution=distribution)
    for distribution in TIME_DISTRIBUTIONS
}


def time_density(
    schedule: Schedule, t: ArrayLike, distribution: str = "uniform"
) -> Array:
    """The density of a distribution in `TIME_DISTRIBUTIONS` at t, shape of t; it integrates to one over [t_min, t_max]."""
    checks.choice("distribution", distribution, TIME_DISTRIBUTIONS)
    return as_one_program(
        _DENSITIES[distribution], schedules.check(schedule), as_time(t)
    )


def _time_density(schedule, t, distribution):
    if distribution == "uniform":
        return jnp.full_like(t, 1 / (schedule.t_max - schedule.t_min))
    low, high = schedules.log_snr_range(schedule)
    rate = -schedules.log_snr_rate(schedule, t)
    if distribution == "log_snr":
        return rate / (high - low)
    mass = ndtr(_standard(low)) - ndtr(_standard(high))
    z = _standard(schedules.log_snr(schedule, t))
    return norm.pdf(z) / mass * rate / (2 * LOG_SIGMA_STD)


_DENSITIES = {
    distribution: functools.partial(_time_density, distribution=distribution)
    for distribution in TIME_DISTRIBUTIONS
}


def _standard(log_snr):
    """The log-normal law's standard score of log σ/α = −λ/2."""
    return (-0.5 * log_snr - LOG_SIGMA_MEAN) / LOG_SIGMA_STD
