"""The steps of a grid, and the noise levels at which they start and end.

Everything that depends on whether a step ends at time 0 takes a `Steps`:
solvers, guidance and inverse problems.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from .. import schedules
from ..schedules import Schedule
from ..types import Array

__all__ = [
    "LARGEST_RATIO",
    "NoiseLevel",
    "Steps",
    "noise_level",
    "noise_level_of_ratio",
    "steps_of",
    "with_noise_levels",
]


class Steps(NamedTuple):
    """All steps of a grid of N + 1 times.

    A step to exactly 0 is marked by `at_zero`. Schedules have no values there,
    so that the step is described as one that stays at its start, and every
    coefficient and gradient is finite. The result of such a step is the
    denoised example, whatever its coefficients are.

    Attributes:
      start: Where each step starts: its time t, (N,), or the `NoiseLevel`
        there.
      end: Where each step ends: its time s, (N,), or the `NoiseLevel` there.
      at_zero: Whether each step ends at 0, (N,). None where no step does.
    """

    start: Any
    end: Any
    at_zero: Array | None

    @property
    def dt(self) -> Array:
        """s − t of steps between times, (N,): 0 on a step to 0, with gradient 0."""
        if self.at_zero is None:
            return self.end - self.start
        # no gradient passes where |dt| = 0, at which √|dt| has none
        return jnp.where(self.at_zero, 0, self.end - self.start)

    @property
    def log_step(self) -> Array:
        """h = log ρ_t/ρ_s of steps between noise levels, half the log-SNR gained."""
        return jnp.log(self.start.rho / self.end.rho)


class NoiseLevel(NamedTuple):
    """A time t with α(t), σ(t) and ρ = σ/α, arrays of one shape."""

    t: Any
    alpha: Any
    sigma: Any
    rho: Any


def steps_of(ts: Array, zero_end: bool = True) -> Steps:
    """The steps between the times of a grid.

    Args:
      ts: Times (N + 1,).
      zero_end: Whether the last time may be 0. False saves the branch of a
        step to 0, and takes 0 for a time like any other.

    Returns:
      The steps, from times to times.
    """
    t, s = ts[:-1], ts[1:]
    if not zero_end:
        return Steps(t, s, None)
    at_zero = s == 0
    return Steps(t, jnp.where(at_zero, t, s), at_zero)


def with_noise_levels(schedule: Schedule, steps: Steps) -> Steps:
    """Steps between times as steps between noise levels.

    A step to 0 is described as one that halves t, σ and ρ, so that log ρ
    changes by a finite amount.

    Args:
      schedule: Any schedule.
      steps: Steps from times to times, as made by `steps_of`.

    Returns:
      The steps, from noise levels to noise levels.
    """
    start, end = noise_level(schedule, steps.start), noise_level(schedule, steps.end)
    if steps.at_zero is None:
        return Steps(start, end, None)
    half = jnp.where(steps.at_zero, 0.5, 1)
    end = NoiseLevel(half * end.t, end.alpha, half * end.sigma, half * end.rho)
    return Steps(start, end, steps.at_zero)


LARGEST_RATIO = 1e18
"""The greatest ρ = σ/α that differs from infinity. Its square is a float32."""


def noise_level(schedule: Schedule, t: Array) -> NoiseLevel:
    """The noise level at times t.

    Where α is 0 to rounding, as at a zero terminal SNR, ρ is `LARGEST_RATIO`.
    No coefficient of a step from there depends on its value, because the share
    of the data in x is then below rounding. Where the schedule states its
    log-SNR λ, ρ goes on growing like −λ there, so that no two times have the
    same ρ.

    Args:
      schedule: Any schedule.
      t: Times, of any shape.

    Returns:
      The noise level, of t's shape.
    """
    # rounding makes α negative where it should be 0, as cos(π/2) is in float32
    alpha, sigma = jnp.maximum(schedule.alpha(t), 0), schedule.sigma(t)
    least = sigma / LARGEST_RATIO
    seen = alpha > least
    beyond = LARGEST_RATIO
    if hasattr(schedule, "log_snr"):
        beyond = LARGEST_RATIO * jnp.clip(
            -0.5 * schedule.log_snr(t) / math.log(LARGEST_RATIO), 1, 100
        )
    rho = jnp.where(seen, sigma / jnp.where(seen, alpha, 1), beyond)
    return NoiseLevel(t, alpha, sigma, rho)


def noise_level_of_ratio(schedule: Schedule, rho: Array) -> NoiseLevel:
    """The noise level at which σ/α = rho to rounding, within the schedule's interval.

    The time is rounded, and α, σ, ρ are those of the rounded time, at which
    the denoiser is called. Near t_max they may differ from the requested ones
    by a percent. Coefficients of a step must follow from the level that is
    returned.

    Args:
      schedule: Any schedule.
      rho: Ratios σ/α, of any shape.

    Returns:
      The noise level, of rho's shape.
    """
    return noise_level(schedule, schedules.time_of_log_snr(schedule, -2 * jnp.log(rho)))
