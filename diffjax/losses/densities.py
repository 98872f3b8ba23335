"""Quantiles and densities of the distributions of the training time."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm

from .. import checks, schedules
from ..schedules import Schedule
from ..schedules.protocol import as_time
from ..types import Array, ArrayLike, Scalar, is_eager, one_program, pytree

__all__ = [
    "FromQuantile",
    "LogNormal",
    "LogSNR",
    "Shifted",
    "TimeDistribution",
    "Uniform",
    "cdf",
    "check",
]

_BISECTIONS = 64
_FARTHEST = 12.0  # standard deviations, beyond which float32 has no normal mass
# Greatest std in widths of the schedule's range of log σ/α. The range then has at most
# 4e-4 of the normal's mass, a difference of two numbers that float32 rounds by 3e-8.
_WIDEST = 1e3


class TimeDistribution(Protocol):
    """Protocol of a distribution of the training time on any schedule.

    Optional members: `cdf` of `WithCDF`, which is otherwise found by bisection,
    `shifted(shift)`, for a distribution of all noise levels that `times.shifted`
    moves before it is cut, and `check(schedule)`, which raises ValueError for a
    schedule that does not fit and is called before anything is traced.
    """

    def quantile(self, schedule: Schedule, u: ArrayLike) -> Array:
        """The time t with P(time < t) = u.

        Args:
          schedule: The noise schedule.
          u: Probabilities in [0, 1], any shape.

        Returns:
          Times in [t_min, t_max], shape of u. They grow with u.
        """
        ...

    def density(self, schedule: Schedule, t: ArrayLike) -> Array:
        """Density of the time, which integrates to one over [t_min, t_max].

        Args:
          schedule: The noise schedule.
          t: Times in [t_min, t_max], any shape.

        Returns:
          The density, shape of t.
        """
        ...


class WithCDF(TimeDistribution, Protocol):
    """Protocol of a distribution with a cumulative distribution function."""

    def cdf(self, schedule: Schedule, t: ArrayLike) -> Array:
        """P(time < t), the inverse of `quantile`.

        Args:
          schedule: The noise schedule.
          t: Times in [t_min, t_max], any shape.

        Returns:
          Probabilities in [0, 1], shape of t.
        """
        ...


@pytree
class Uniform(WithCDF):
    """Uniform in t. Made by `uniform`."""

    @one_program
    def quantile(self, schedule: Schedule, u: ArrayLike) -> Array:
        return schedule.t_min + as_time(u) * (schedule.t_max - schedule.t_min)

    @one_program
    def density(self, schedule: Schedule, t: ArrayLike) -> Array:
        return jnp.full_like(as_time(t), 1 / (schedule.t_max - schedule.t_min))

    @one_program
    def cdf(self, schedule: Schedule, t: ArrayLike) -> Array:
        return (as_time(t) - schedule.t_min) / (schedule.t_max - schedule.t_min)


@pytree
class LogSNR(WithCDF):
    """Uniform in log-SNR. Made by `log_snr`."""

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError if the schedule does not fit."""
        schedules.log_snr_range(schedule)

    @one_program
    def quantile(self, schedule: Schedule, u: ArrayLike) -> Array:
        low, high = schedules.log_snr_range(schedule)
        return schedules.time_of_log_snr(schedule, high + as_time(u) * (low - high))

    @one_program
    def density(self, schedule: Schedule, t: ArrayLike) -> Array:
        low, high = schedules.log_snr_range(schedule)
        return -schedules.log_snr_rate(schedule, as_time(t)) / (high - low)

    @one_program
    def cdf(self, schedule: Schedule, t: ArrayLike) -> Array:
        low, high = schedules.log_snr_range(schedule)
        return (schedules.log_snr(schedule, as_time(t)) - high) / (low - high)


@pytree
class LogNormal(WithCDF):
    """log σ/α ~ N(mean, std²). Made by `log_normal`."""

    mean: Scalar
    std: Scalar

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError if the schedule does not fit."""
        low, high = schedules.log_snr_range(schedule)
        if checks.is_traced(self, low, high):
            return
        ends = -0.5 * float(high), -0.5 * float(low)
        beyond = max(ends[0] - self.mean, self.mean - ends[1]) / self.std
        message = f"log σ/α in [{ends[0]:g}, {ends[1]:g}], got {self}"
        checks.require(beyond < _FARTHEST, f"times must have mass in {message}")
        widest = _WIDEST * (ends[1] - ends[0])
        checks.require(
            self.std <= widest,
            f"std must be at most {widest:.6g}, got {self.std:g}: a wider one is "
            "uniform in log-SNR, use log_snr()",
        )

    @one_program
    def quantile(self, schedule: Schedule, u: ArrayLike) -> Array:
        upper, sign, start, end = self._ends(*schedules.log_snr_range(schedule))
        u = as_time(u)
        z = sign * ndtri(start + jnp.where(upper, 1 - u, u) * (end - start))
        return schedules.time_of_log_snr(schedule, -2 * (self.mean + self.std * z))

    @one_program
    def density(self, schedule: Schedule, t: ArrayLike) -> Array:
        _, _, start, end = self._ends(*schedules.log_snr_range(schedule))
        rate = -schedules.log_snr_rate(schedule, as_time(t))
        z = self._standard(schedules.log_snr(schedule, as_time(t)))
        return norm.pdf(z) / (end - start) * rate / (2 * self.std)

    @one_program
    def cdf(self, schedule: Schedule, t: ArrayLike) -> Array:
        upper, sign, start, end = self._ends(*schedules.log_snr_range(schedule))
        z = self._standard(schedules.log_snr(schedule, as_time(t)))
        tail = jnp.clip((ndtr(sign * z) - start) / (end - start), 0, 1)
        return jnp.where(upper, 1 - tail, tail)

    def shifted(self, shift: Scalar) -> TimeDistribution:
        """The distribution with σ/α multiplied by a number."""
        log = jnp.log if checks.is_traced(shift) else lambda x: float(np.log(x))
        return LogNormal(self.mean + log(shift), self.std)

    def _ends(self, low, high):
        # The normal's CDF at both ends. Where both lie above the mean, they are
        # the ends of the mirror image, whose tail has no cancellation.
        first, last = self._standard(high), self._standard(low)
        upper = first > 0
        sign = jnp.where(upper, -1, 1).astype(first.dtype)
        start = ndtr(jnp.where(upper, -last, first))
        return upper, sign, start, ndtr(jnp.where(upper, -first, last))

    def _standard(self, log_snr):
        # the standard score of log σ/α = −λ/2
        return (-0.5 * log_snr - self.mean) / self.std


@pytree
class Shifted(WithCDF):
    """Another distribution with σ/α multiplied by a number. Made by `shifted`."""

    distribution: Any
    shift: Scalar

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError if the schedule does not fit."""
        check(self.distribution, schedule)
        schedules.log_snr_range(schedule)

    @one_program
    def quantile(self, schedule: Schedule, u: ArrayLike) -> Array:
        start, end = self._ends(schedule)
        before = self.distribution.quantile(
            schedule, start + as_time(u) * (end - start)
        )
        return self._moved(schedule, before, 1)

    @one_program
    def density(self, schedule: Schedule, t: ArrayLike) -> Array:
        t, (start, end) = as_time(t), self._ends(schedule)
        before = self._moved(schedule, t, -1)
        rate = schedules.log_snr_rate(schedule, t)
        rate = rate / schedules.log_snr_rate(schedule, before)
        density = self.distribution.density(schedule, before) * rate / (end - start)
        # No time comes from beyond the ends. Those that come from an end itself
        # count as inside whatever their rounding.
        low, high = schedules.log_snr_range(schedule)
        origin = schedules.log_snr(schedule, t) + 2 * jnp.log(self.shift)
        slack = 16 * jnp.finfo(t.dtype).eps * (1 + jnp.abs(origin))
        inside = (origin >= low - slack) & (origin <= high + slack)
        return jnp.where(inside, density, 0.0)

    @one_program
    def cdf(self, schedule: Schedule, t: ArrayLike) -> Array:
        start, end = self._ends(schedule)
        before = self._moved(schedule, as_time(t), -1)
        probability = cdf(self.distribution, schedule, before)
        return jnp.clip((probability - start) / (end - start), 0, 1)

    def _ends(self, schedule):
        # Probabilities below the times which move to t_min and t_max.
        ends = jnp.stack([as_time(schedule.t_min), as_time(schedule.t_max)])
        return cdf(self.distribution, schedule, self._moved(schedule, ends, -1))

    def _moved(self, schedule, t, sign):
        # λ − 2 log s, which goes to the nearer end of the schedule if beyond it
        step = 2 * sign * jnp.log(jnp.asarray(self.shift, t.dtype))
        return schedules.time_of_log_snr(
            schedule, schedules.log_snr(schedule, t) - step
        )


@pytree
class FromQuantile(WithCDF):
    """The distribution of q(schedule, u), u ~ U(0, 1). Made by `from_quantile`."""

    function: Any

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError if the schedule does not fit."""
        if checks.is_traced(self, schedule):
            return
        times = self._values(schedule, np.array([0.25, 0.5, 0.75]))
        if checks.is_traced(times):  # by what the function is a closure of
            return
        times = np.asarray(times)
        message = f"quantile must grow with u, got {times} at 0.25, 0.5 and 0.75"
        checks.require((np.diff(times) > 0).all(), message)

    @one_program
    def quantile(self, schedule: Schedule, u: ArrayLike) -> Array:
        start, end = self._ends(schedule)
        times = self._values(schedule, start + as_time(u) * (end - start))
        return jnp.clip(times, schedule.t_min, schedule.t_max)

    @one_program
    def density(self, schedule: Schedule, t: ArrayLike) -> Array:
        t, (start, end) = as_time(t), self._ends(schedule)
        slope = jnp.vectorize(jax.grad(lambda u: self._values(schedule, u)))
        density = 1 / (slope(self._probability(schedule, t)) * (end - start))
        first, last = self._values(schedule, jnp.stack([start, end]))
        slack = 4 * jnp.finfo(t.dtype).eps * jnp.abs(t)
        return jnp.where((t >= first - slack) & (t <= last + slack), density, 0.0)

    @one_program
    def cdf(self, schedule: Schedule, t: ArrayLike) -> Array:
        start, end = self._ends(schedule)
        probability = self._probability(schedule, as_time(t))
        return (probability - start) / (end - start)

    @one_program
    def _values(self, schedule, u):
        function = lambda u: jnp.asarray(self.function(schedule, u), u.dtype)
        return jnp.vectorize(function)(as_time(u))

    def _probability(self, schedule, t):
        # u with q(u) = t
        u, _ = _bisect(lambda u: self._values(schedule, u) < t, t)
        return jnp.clip(u, *self._ends(schedule))

    def _ends(self, schedule):
        # A function that stays at t_min or t_max for a while is cut there. Both
        # ends lie where it grows.
        first, last = as_time(schedule.t_min), as_time(schedule.t_max)
        _, start = _bisect(lambda u: self._values(schedule, u) <= first, first)
        end, _ = _bisect(lambda u: self._values(schedule, u) < last, last)
        return start, end


def _bisect(is_below, like):
    # The numbers in [0, 1] on both sides of where a condition that holds below
    # ends. They are equal if it holds nowhere or everywhere.
    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        below = is_below(middle)
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    zero, one = jnp.zeros_like(like), jnp.ones_like(like)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (zero, one))
    nowhere, everywhere = ~is_below(zero), is_below(one)
    low, high = jnp.where(everywhere, one, low), jnp.where(nowhere, zero, high)
    return jnp.where(nowhere, zero, low), jnp.where(everywhere, one, high)


def cdf(distribution: TimeDistribution, schedule: Schedule, t: Array) -> Array:
    """P(time < t), by bisection of the quantiles if there is no `cdf`.

    Args:
      distribution: Any distribution.
      schedule: Any schedule.
      t: Times, any shape.

    Returns:
      Probabilities in [0, 1], shape of t.
    """
    t = as_time(t)
    if hasattr(distribution, "cdf"):
        return distribution.cdf(schedule, t)  # type: ignore[attr-defined]
    return _bisect(lambda u: distribution.quantile(schedule, u) < t, t)[0]


def check(distribution: Any, schedule: Any) -> None:
    """Raise ValueError for a concrete schedule that does not fit, before tracing.

    Args:
      distribution: Any distribution.
      schedule: Any schedule.
    """
    if not hasattr(distribution, "check") or checks.is_traced(schedule):
        return
    if is_eager():
        distribution.check(schedule)
        return
    # Within a compiled training step too, where JAX would trace the numbers.
    with jax.ensure_compile_time_eval():
        distribution.check(schedule)
