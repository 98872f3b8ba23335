"""Training objectives: denoising score matching with every weighting and prediction.

`denoising_loss` is of one example at one time, `batch_loss` of a batch at
random times. `sample_times` and `time_density` are the distributions of the
training time.
"""

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
from .schedules.protocol import as_time
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

__all__ = [
    "LOG_SIGMA_MEAN",
    "LOG_SIGMA_STD",
    "MIN_SNR_CLIP",
    "TIME_DISTRIBUTIONS",
    "WEIGHTINGS",
    "batch_loss",
    "denoising_loss",
    "sample_times",
    "time_density",
]


def __dir__() -> list[str]:
    return __all__


TIME_DISTRIBUTIONS = ("uniform", "log_snr", "log_normal")
"""Distributions of the training time t.

- uniform: uniform in t.
- log_snr: uniform in log-SNR.
- log_normal: log σ/α ~ N(−1.2, 1.2²), truncated (Karras et al. 2022, Table 1).
"""

MIN_SNR_CLIP = 5.0
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2


def _snr(schedule, t, sigma_data):
    # not e^λ: the derivative is finite where α = 0 and λ = −∞
    return (schedule.alpha(t) / schedule.sigma(t)) ** 2


def _likelihood(schedule, t, sigma_data):
    # −½ dSNR/dt = (α/σ) (ασ′ − α′σ)/σ², finite where λ = −∞. Nothing cancels, since
    # both terms are positive: σ grows and α falls. σ² could underflow.
    r = schedules.rates(schedule, t)
    turn = r.alpha * r.sigma_rate - r.alpha_rate * r.sigma
    return (r.alpha / r.sigma) * (turn / r.sigma) / r.sigma


def _edm(schedule, t, sigma_data):
    # 1/c_out² = (σ_d² + σ²/α²)/(σ_d σ/α)², finite where α = 0
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
"""Weight w(t) of ‖D − x_0‖² for each name.

- uniform: 1 on the network's own error ‖F − target‖², whatever its kind.
- simple: α²/σ², which is ‖ε̂ − ε‖² (Ho et al. 2020, eq. 14).
- likelihood: ½ |d(α²/σ²)/dt|, the same as ½g² on the score's error (Song et al. 2021,
  Theorem 1, Kingma et al. 2021, eq. 17).
- edm: 1/c_out² (Karras et al. 2022, Table 1).
- min_snr: min(α²/σ², 5) (Hang et al. 2023, section 3.4).
"""


PREDICTION = (checks.made_by, NetworkDenoiser, "predictions.denoiser or categorical")
TIMES = (checks.choice, TIME_DISTRIBUTIONS)


def _check_weighting(name, value):
    return value if callable(value) else checks.choice(name, value, WEIGHTINGS)


_OBJECTIVE = {"prediction": PREDICTION, "weighting": _check_weighting}


def _check_log_snrs(schedule, times):
    # a schedule without signal at its end is named before tracing
    if times != "uniform" and not checks.is_traced(schedule):
        schedules.log_snr_range(schedule)


@checks.arguments(
    x0=checks.real_array, noise=checks.real_array, t=checks.number, **_OBJECTIVE
)
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
    """Weighted denoising loss of one example at one time (Vincent 2011, eq. 11).

        w(t) ‖D(x_t, t) − x_0‖²/D,    x_t = α x_0 + σ ε

    It is computed from the error of the network F, so that nothing cancels at
    little noise:

        w(t) c² ‖F − target‖²/D,    D − x_0 = c (F − target)

    Args:
      prediction: Made by `predictions.denoiser`.
      x0: One example.
      noise: ε, standard normal noise of its shape.
      t: Time, shape ().
      *condition: Passed to the network as net(x, t, *condition).
      weighting: A name of `WEIGHTINGS` or a function (schedule, t, sigma_data)
        -> w.
      density: Of the distribution of t, at t. Only "likelihood" divides by it.
        Its expectation is then ½∫|dSNR/dt| E‖D − x_0‖² dt / D (nats per
        dimension, Song et al. 2021, eq. 7) under any distribution of t. The
        variance is great under one that hardly visits some noise levels, such
        as log_normal.
      **net_kwargs: Passed to the network.

    Returns:
      The loss, shape ().

    Raises:
      TypeError: If prediction is another kind of denoiser.
      ValueError: If weighting is unknown, or the shapes differ.

    Example:
      >>> net = lambda x, t: 0 * x
      >>> prediction = dj.predictions.denoiser(schedule, net, "noise")
      >>> float(dj.losses.denoising_loss(prediction, jnp.zeros(2), jnp.ones(2), 0.5))
      1.0
    """
    checks.one_of_shapes("noise", noise, [np.shape(x0)])
    return _denoising_loss(
        prediction, x0, noise, t, condition, weighting, density, net_kwargs
    )


@types.one_program
def _denoising_loss(
    prediction, x0, noise, t, condition, weighting, density, net_kwargs
):
    x_t = schedules.perturb(prediction.schedule, x0, t, noise)
    predicted = prediction.predict(x_t, t, *condition, **net_kwargs)
    error = predicted - prediction.target(x0, noise, t)
    return _weight_of_network(prediction, t, weighting, density) * jnp.mean(error**2)


@checks.arguments(key=checks.key, x0=checks.batch, times=TIMES, **_OBJECTIVE)
def batch_loss(
    key: Key,
    prediction: NetworkDenoiser,
    x0: ArrayLike,
    condition: PyTree = None,
    *,
    weighting: str | Callable = "uniform",
    times: str = "uniform",
    dropout: bool = False,
) -> tuple[Array, Array]:
    """`denoising_loss` of a batch at stratified random times.

    Args:
      key: A typed key, of times, noise and dropout.
      prediction: Made by `predictions.denoiser`.
      x0: Data, (B, *shape).
      condition: Pytree of leading axis B, passed as net(x, t, condition_i).
      weighting: As in `denoising_loss`.
      times: Distribution of the times, a name of `TIME_DISTRIBUTIONS`.
      dropout: True passes the network a different key for each example, as
        net(…, key=key).

    Returns:
      (mean, losses), shapes () and (B,). NaN in the data makes the mean NaN.

    Raises:
      TypeError: If prediction is another kind of denoiser.
      ValueError: For unknown names and leading axes that differ.

    Example:
      >>> net = lambda x, t: 0 * x
      >>> prediction = dj.predictions.denoiser(schedule, net, "noise")
      >>> loss, losses = dj.losses.batch_loss(key, prediction, jnp.zeros((4, 2)))
      >>> losses.shape
      (4,)
    """
    checks.leading_axis("condition", condition, "x0", x0.shape[0])
    _check_log_snrs(prediction.schedule, times)
    name, function = (
        (None, as_pytree_callable(weighting))
        if callable(weighting)
        else (weighting, None)
    )
    arrays, static = partition((prediction, function))
    return _batch_loss((static, name, times, bool(dropout)), arrays, key, x0, condition)


@types.compiled(static_argnums=0)
def _batch_loss(settings, arrays, key, x0, condition):
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


# The same weights for ε̂ − ε = −(α/σ)(D − x_0): w(t) (σ/α)² weighs the noise's error.
# No α² that underflows, no σ⁻² that overflows.
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
"""Error of the noise per unit of the network's error, for kinds that predict noise."""


def _weight_of_network(prediction, t, weighting, density):
    weight = weighting if callable(weighting) else WEIGHTINGS[weighting]
    if weight is None:
        return 1.0
    schedule, sigma_data = prediction.schedule, prediction.sigma_data
    if isinstance(weighting, str) and prediction.kind in _NOISE_SCALES:
        scale = _OF_NOISE_ERROR[weighting](schedule, t, sigma_data)
        scale = scale * _NOISE_SCALES[prediction.kind](schedule, t) ** 2
    else:
        scale = weight(schedule, t, sigma_data) * prediction.output_scale(t) ** 2
    return scale / density if weighting == "likelihood" else scale


@checks.arguments(key=checks.key, count=(checks.integer, 1), distribution=TIMES)
def sample_times(
    key: Key, count: int, schedule: Schedule, distribution: str = "uniform"
) -> Array:
    """Stratified random times (Kingma et al. 2021, appendix I.1).

    They are the quantiles of a distribution at (i/count + u) mod 1, with one u
    ~ U(0, 1) per call. Each of the `count` strata holds one time. The rotation
    by u gives every single position the distribution of its name, so that an
    example that always comes at the same position of a batch still sees all
    noise levels over the calls.

    Args:
      key: A typed key.
      count: The number of times, 1 or more.
      schedule: Any schedule.
      distribution: Of each time, a name of `TIME_DISTRIBUTIONS`.

    Returns:
      The times in [t_min, t_max], (count,).

    Raises:
      TypeError: If schedule is none.
      ValueError: If the distribution is unknown, or needs log-SNRs and the
        schedule has α(t_max) = 0.

    Example:
      >>> dj.losses.sample_times(key, 4, dj.schedules.vp_linear()).shape
      (4,)
    """
    schedules.check(schedule)
    _check_log_snrs(schedule, distribution)
    shares = (np.arange(count) / count).astype(float_dtype())
    return as_one_program(_SAMPLERS[distribution], schedule, key, shares)


def _sample_times(schedule, key, shares, distribution):
    dtype = float_dtype()
    shift = jax.random.uniform(key, (), dtype)
    # (x mod 1) rounds up to 1 for no x ≥ 0, so that no time lies above t_max
    quantiles = jnp.mod(jnp.asarray(shares, dtype) + shift, 1)
    if distribution == "uniform":
        return schedule.t_min + quantiles * (schedule.t_max - schedule.t_min)
    low, high = schedules.log_snr_range(schedule)
    if distribution == "log_snr":
        return schedules.time_of_log_snr(schedule, high + quantiles * (low - high))
    start, end = ndtr(_standard(high)), ndtr(_standard(low))
    z = ndtri(start + quantiles * (end - start))
    log_sigma = LOG_SIGMA_MEAN + LOG_SIGMA_STD * z
    return schedules.time_of_log_snr(schedule, -2 * log_sigma)


_SAMPLERS = {
    distribution: functools.partial(_sample_times, distribution=distribution)
    for distribution in TIME_DISTRIBUTIONS
}


@checks.arguments(distribution=TIMES)
def time_density(
    schedule: Schedule, t: ArrayLike, distribution: str = "uniform"
) -> Array:
    """Density of the training time, which integrates to one over [t_min, t_max].

    Args:
      schedule: Any schedule.
      t: Times, any shape.
      distribution: A name of `TIME_DISTRIBUTIONS`.

    Returns:
      The density at t, shape of t.

    Raises:
      TypeError: If schedule is none.
      ValueError: If the distribution is unknown.
    """
    density = _DENSITIES[distribution]
    return as_one_program(density, schedules.check(schedule), as_time(t))


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
    # the log-normal distribution's standard score of log σ/α = −λ/2
    return (-0.5 * log_snr - LOG_SIGMA_MEAN) / LOG_SIGMA_STD
