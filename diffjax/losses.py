"""Training objectives: weighted denoising score matching in every prediction kind, and laws of the training time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm

from . import checks, schedules
from .numerics import float_dtype
from .predictions import NetworkDenoiser, scalings
from .schedules import Schedule
from .types import Array, ArrayLike, Key, PyTree, Scalar

MIN_SNR_CLIP = 5.0
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2


def _snr(schedule, t, sigma_data):
    return jnp.exp(schedules.log_snr(schedule, t))


def _likelihood(schedule, t, sigma_data):
    return -0.5 * schedules.log_snr_rate(schedule, t) * _snr(schedule, t, sigma_data)


def _edm(schedule, t, sigma_data):
    return 1 / scalings(schedule.sigma(t) / schedule.alpha(t), sigma_data).out ** 2


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
    x_t = schedules.perturb(prediction.schedule, x0, t, noise)
    error = prediction.predict(x_t, t, *condition, **net_kwargs) - prediction.target(x0, noise, t)
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
    `TIME_LAWS`. dropout=True passes the network a key of each example's own, as net(…, key=key). Raises ValueError for
    unknown names and leading axes that differ.
    """
    checks.key("key", key)
    if not isinstance(prediction, NetworkDenoiser):
        raise TypeError(
            f"prediction must be made by predictions.denoiser or categorical, got {type(prediction).__name__}"
        )
    x0 = checks.real_array("x0", x0)
    if x0.ndim == 0 or x0.shape[0] == 0:
        raise ValueError(f"x0 must have shape (B, ...) with B at least 1, got {x0.shape}")
    count = x0.shape[0]
    checks.leading_axis("condition", condition, "x0", count)
    key_time, key_noise, key_net = jax.random.split(key, 3)
    t = sample_times(key_time, count, prediction.schedule, times)
    density = time_density(prediction.schedule, t, times)
    noise = jax.random.normal(key_noise, x0.shape, float_dtype(x0))
    conditions = () if condition is None else (condition,)
    extra = {"key": jax.random.split(key_net, count)} if dropout else {}

    def one(x0, noise, t, density, conditions, extra):
        return denoising_loss(prediction, x0, noise, t, *conditions, weighting=weighting, density=density, **extra)

    losses = jax.vmap(one)(x0, noise, t, density, conditions, extra)
    return jnp.mean(losses), losses


def _own_weight(prediction, t, weighting, density):
    if not callable(weighting):
        checks.choice("weighting", weighting, WEIGHTINGS)
    weight = weighting if callable(weighting) else WEIGHTINGS[weighting]
    if weight is None:
        return 1.0
    scale = weight(prediction.schedule, t, prediction.sigma_data) * prediction.output_scale(t) ** 2
    return scale / density if weighting == "likelihood" else scale


# -------------------------------------------------------------------------------------------------------- laws of t

TIME_LAWS = ("uniform", "log_snr", "log_normal")
"""uniform in t · uniform in log-SNR · log σ/α ~ N(−1.2, 1.2²) truncated (Karras et al. 2022, Table 1)."""


def sample_times(key: Key, count: int, schedule: Schedule, law: str = "uniform") -> Array:
    """`count` times of a law in `TIME_LAWS`, stratified: the law's quantiles at (i + u)/count with one u ~ U(0, 1);
    (count,).

    Each time has the law's marginal once i is random (Kingma et al. 2021, appendix I.1). Raises ValueError for an
    unknown law.
    """
    checks.choice("law", law, TIME_LAWS)
    quantiles = (jnp.arange(count) + jax.random.uniform(key, (), float_dtype())) / count
    if law == "uniform":
        return schedule.t_min + quantiles * (schedule.t_max - schedule.t_min)
    low, high = schedules.log_snr_range(schedule)
    if law == "log_snr":
        return schedules.time_of_log_snr(schedule, high + quantiles * (low - high))
    start, end = ndtr(_standard(high)), ndtr(_standard(low))
    z = ndtri(start + quantiles * (end - start))
    return schedules.time_of_log_snr(schedule, -2 * (LOG_SIGMA_MEAN + LOG_SIGMA_STD * z))


def time_density(schedule: Schedule, t: ArrayLike, law: str = "uniform") -> Array:
    """The density of a law in `TIME_LAWS` at t, shape of t; it integrates to one over [t_min, t_max]."""
    checks.choice("law", law, TIME_LAWS)
    t = jnp.asarray(t)
    if law == "uniform":
        return jnp.full_like(t, 1 / (schedule.t_max - schedule.t_min))
    low, high = schedules.log_snr_range(schedule)
    rate = -schedules.log_snr_rate(schedule, t)
    if law == "log_snr":
        return rate / (high - low)
    mass = ndtr(_standard(low)) - ndtr(_standard(high))
    z = _standard(schedules.log_snr(schedule, t))
    return norm.pdf(z) / mass * rate / (2 * LOG_SIGMA_STD)


def _standard(log_snr):
    """The log-normal law's standard score of log σ/α = −λ/2."""
    return (-0.5 * log_snr - LOG_SIGMA_MEAN) / LOG_SIGMA_STD
