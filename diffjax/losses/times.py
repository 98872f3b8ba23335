"""Distributions of the training time, each with its density and its quantiles.

They are stated in log σ/α or in log-SNR, so that each serves every schedule. What
lies outside of the schedule's times is cut off, and the rest has mass one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..numerics import float_dtype
from ..schedules import Schedule
from ..schedules.protocol import as_time
from ..types import (
    Array,
    ArrayLike,
    Key,
    Scalar,
    as_one_program,
    as_pytree_callable,
)
from .densities import (
    FromQuantile,
    LogNormal,
    LogSNR,
    Shifted,
    TimeDistribution,
    Uniform,
    cdf,
    check,
)

__all__ = [
    "LOG_SIGMA_MEAN",
    "LOG_SIGMA_STD",
    "NAMED",
    "TIME_DISTRIBUTIONS",
    "TimeDistribution",
    "argument",
    "cdf",
    "check",
    "from_quantile",
    "log_normal",
    "log_snr",
    "logit_normal",
    "named",
    "sample_times",
    "shifted",
    "time_density",
    "uniform",
]

LOG_SIGMA_MEAN = -1.2
LOG_SIGMA_STD = 1.2


# --------------------------------------------------------------------- constructors


def uniform() -> TimeDistribution:
    """Uniform in t.

    Returns:
      The distribution, also named "uniform".
    """
    return Uniform()


def log_snr() -> TimeDistribution:
    """Uniform in log-SNR.

    Returns:
      The distribution, also named "log_snr".
    """
    return LogSNR()


@checks.arguments(mean=checks.number, std=checks.positive)
def log_normal(
    mean: Scalar = LOG_SIGMA_MEAN, std: Scalar = LOG_SIGMA_STD
) -> TimeDistribution:
    """Normal in the logarithm of the noise level (Karras et al. 2022, Table 1).

        log σ/α ~ N(mean, std²), within the schedule's range

    Args:
      mean: P_mean, the mean of log σ/α.
      std: P_std, its standard deviation.

    Returns:
      The distribution, with its default also named "log_normal".

    Raises:
      ValueError: If std is not positive.

    Example:
      >>> times = dj.losses.times.log_normal(-0.4, 1.0)  # EDM2's
      >>> dj.losses.sample_times(key, 4, dj.schedules.edm(), times).shape
      (4,)
    """
    return LogNormal(mean, std)


@checks.arguments(mean=checks.number, std=checks.positive)
def logit_normal(mean: Scalar = 0.0, std: Scalar = 1.0) -> TimeDistribution:
    """Logit-normal in the time of a rectified flow (Esser et al. 2024, eq. 19).

        log t/(1 − t) ~ N(mean, std²)

    There α = 1 − t and σ = t, so that the logit of t is log σ/α. It is
    therefore `log_normal` with other defaults, and on another schedule it has
    the same noise levels.

    Args:
      mean: m, the mean of the logit. Positive for more noise.
      std: s, its standard deviation.

    Returns:
      The distribution.

    Raises:
      ValueError: If std is not positive.

    Example:
      >>> times = dj.losses.times.logit_normal(0.0, 1.0)
      >>> flow = dj.schedules.rectified_flow()
      >>> round(float(times.quantile(flow, 0.5)), 2)
      0.5
    """
    return LogNormal(mean, std)


@checks.arguments(
    distribution=lambda name, value: argument(name, value), shift=checks.positive
)
def shifted(distribution: str | TimeDistribution, shift: Scalar) -> TimeDistribution:
    """A distribution with every σ/α multiplied by a shift (Esser et al. 2024).

        λ ← λ − 2 log s,    on a rectified flow t ← s t/(1 + (s − 1) t)

    For images of m pixels s = √(m/n) has the uncertainty that n pixels have
    without it (section 5.3.2, equation 23).

    Args:
      distribution: A distribution, or a name of `TIME_DISTRIBUTIONS`.
      shift: s, positive. Above 1 for more noise.

    Returns:
      The distribution. What moves out of the schedule's range is cut off. A
      normal one is moved before it is cut. Others have no density at noise
      levels to which nothing within the range moves.

    Raises:
      ValueError: If shift is not positive, or the name is unknown.

    Example:
      >>> times = dj.losses.times.shifted("uniform", 3.0)
      >>> flow = dj.schedules.rectified_flow()
      >>> round(float(times.quantile(flow, 0.5)), 2)
      0.75
    """
    distribution = named(distribution)
    if hasattr(distribution, "shifted"):
        return distribution.shifted(shift)
    return Shifted(distribution, shift)


@checks.arguments(quantile=(checks.callable_, "quantile(schedule, u) -> t"))
def from_quantile(quantile: Callable[[Schedule, Scalar], Scalar]) -> TimeDistribution:
    """The distribution of a function of a uniform number.

        t = q(u),    density 1/q′(u) by automatic differentiation

    Args:
      quantile: (schedule, u) -> t for one number u in [0, 1], both shape (). It
        grows with u. Times outside of the schedule's range, or at its ends for
        a range of u, are cut off.

    Returns:
      The distribution. Its density at t is found by bisection.

    Raises:
      TypeError: If quantile cannot be called.

    Example:
      >>> def late(schedule, u):
      ...     return schedule.t_min + (schedule.t_max - schedule.t_min) * u**0.5
      >>> times = dj.losses.times.from_quantile(late)
      >>> flow = dj.schedules.rectified_flow()
      >>> round(float(times.quantile(flow, 0.25)), 1)
      0.5
    """
    return FromQuantile(as_pytree_callable(quantile))


NAMED: dict[str, TimeDistribution] = {
    "uniform": Uniform(),
    "log_snr": LogSNR(),
    "log_normal": LogNormal(LOG_SIGMA_MEAN, LOG_SIGMA_STD),
}

TIME_DISTRIBUTIONS = tuple(NAMED)
"""Names of distributions of the training time t.

- uniform: uniform in t.
- log_snr: uniform in log-SNR.
- log_normal: log σ/α ~ N(−1.2, 1.2²), truncated (Karras et al. 2022, Table 1).
"""


def argument(name: str, value: Any) -> Any:
    """Check that an argument is a distribution or names one, for `checks.arguments`.

    Args:
      name: Its name, for the message.
      value: The argument.

    Returns:
      The argument.

    Raises:
      ValueError: If no distribution has the name.
      TypeError: If it is neither.
    """
    if isinstance(value, str):
        return checks.choice(name, value, TIME_DISTRIBUTIONS)
    return checks.has_methods(
        name, value, "quantile(schedule, u)", "density(schedule, t)"
    )


def named(distribution: str | TimeDistribution) -> TimeDistribution:
    """The distribution of a name. Others are returned unchanged."""
    return NAMED[distribution] if isinstance(distribution, str) else distribution


# -------------------------------------------------------------- samples and density


@checks.arguments(key=checks.key, count=(checks.integer, 1), distribution=argument)
def sample_times(
    key: Key,
    count: int,
    schedule: Schedule,
    distribution: str | TimeDistribution = "uniform",
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
      distribution: Of each time, a value of this module or a name of
        `TIME_DISTRIBUTIONS`.

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
    distribution = named(distribution)
    check(distribution, schedule)
    strata = (np.arange(count) / count).astype(float_dtype())
    return as_one_program(_sample_times, schedule, key, strata, distribution)


def _sample_times(schedule, key, strata, distribution):
    dtype = float_dtype()
    shift = jax.random.uniform(key, (), dtype)
    # (x mod 1) rounds up to 1 for no x ≥ 0, so that no time lies above t_max
    u = jnp.mod(jnp.asarray(strata, dtype) + shift, 1)
    return distribution.quantile(schedule, u)


@checks.arguments(distribution=argument)
def time_density(
    schedule: Schedule, t: ArrayLike, distribution: str | TimeDistribution = "uniform"
) -> Array:
    """Density of the training time, which integrates to one over [t_min, t_max].

    Args:
      schedule: Any schedule.
      t: Times, any shape.
      distribution: A value of this module or a name of `TIME_DISTRIBUTIONS`.

    Returns:
      The density at t, shape of t.

    Raises:
      TypeError: If schedule is none.
      ValueError: If the distribution is unknown, or needs log-SNRs and the
        schedule has α(t_max) = 0.

    Example:
      >>> flow = dj.schedules.rectified_flow()  # of width 0.998
      >>> round(float(dj.losses.time_density(flow, 0.5)), 3)
      1.002
    """
    schedules.check(schedule)
    check(named(distribution), schedule)
    return as_one_program(_time_density, schedule, as_time(t), named(distribution))


def _time_density(schedule, t, distribution):
    return distribution.density(schedule, t)
