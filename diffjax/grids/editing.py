"""Grids made of other grids or of noise levels."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..schedules import Schedule
from ..schedules.derived import log_snr_at
from ..schedules.protocol import in_float64
from ..types import Array, ArrayLike, is_eager
from .checks import check, decreasing
from .times import at_log_snrs, at_ratios

__all__ = [
    "from_noise_ratios",
    "strength",
    "to_zero",
    "transport",
]


@checks.arguments(grid=decreasing, strength=(checks.positive_up_to, 1))
def strength(grid: ArrayLike, strength: float) -> Array:
    """The last part of a grid, for a partial start (Meng et al. 2022, SDEdit).

    The start is then data noised to the first time that is left, as
    image-to-image does: `schedules.perturb(schedule, x0, grid[0], noise)`.

    Args:
      grid: Decreasing times, (steps + 1,). A last time of 0 counts as any
        other.
      strength: Share of the steps to keep, in (0, 1]: ⌊strength · steps⌋ of
        them, at least one.

    Returns:
      The last times of the grid, (steps kept + 1,).

    Raises:
      ValueError: If strength lies outside (0, 1], or the grid does not
        decrease.
      TypeError: If strength is traced.

    Example:
      >>> grid = dj.grids.strength(dj.grids.uniform(schedule, 50), 0.6)
      >>> grid.shape
      (31,)
      >>> noise = jax.random.normal(key, (2,))
      >>> x = dj.schedules.perturb(schedule, jnp.ones(2), grid[0], noise)
      >>> dj.sample(key, denoiser, schedule, grid=grid, x_init=x).shape
      (2,)
    """
    steps = np.shape(grid)[0] - 1
    # 0.29 of 100 steps is 28.999…96 in float64
    kept = max(1, math.floor(strength * steps * (1 + 1e-12)))
    return grid[steps - kept :]  # type: ignore[index]


@checks.arguments(grid=checks.real_array)
def to_zero(grid: ArrayLike) -> Array:
    """The grid with a last time 0 appended.

    A solver's last step then returns D(x, t), which denoises the last bit.

    Args:
      grid: Decreasing times, (steps + 1,).

    Returns:
      The times and 0, (steps + 2,).

    Example:
      >>> np.asarray(dj.grids.to_zero([1.0, 0.5]))
      array([1. , 0.5, 0. ], dtype=float32)
    """
    times: Any = grid
    if is_eager(times):  # on the host: no program for a concatenation
        return jnp.asarray(np.append(np.asarray(times), np.zeros(1, times.dtype)))
    return jnp.concatenate([times, jnp.zeros((1,), times.dtype)])


@checks.arguments(ratios=checks.finite_array)
def from_noise_ratios(schedule: Schedule, ratios: ArrayLike) -> Array:
    """Times at which σ/α has the given values.

    Args:
      schedule: Any schedule.
      ratios: Decreasing values of σ/α, (steps + 1,). The last may be 0, which
        is time 0.

    Returns:
      Decreasing times, (steps + 1,).

    Raises:
      ValueError: For ratios that do not decrease or that the schedule does not
        reach, up to rounding. Traced ratios beyond its range go to the nearer
        end.

    Example:
      >>> np.asarray(dj.grids.from_noise_ratios(dj.schedules.edm(), [80.0, 1.0, 0.0]))
      array([80.,  1.,  0.], dtype=float32)
    """
    checks.decreasing("ratios", checks.column("ratios", ratios, "steps + 1", 2))
    return at_ratios("ratios", schedule, checks.all_non_negative("ratios", ratios))


def transport(schedule: Schedule, reference: Schedule, ts: ArrayLike) -> Array:
    """A grid carried from one schedule to another.

        λ_schedule(t_i) = λ_reference(ts_i)

    At these times `schedule` has the σ/α that `reference` has at `ts`: the
    same states of the probability flow, scaled (Karras et al. 2022, section
    3).

    Args:
      schedule: Any schedule.
      reference: The schedule of the grid.
      ts: A grid of `reference`, (steps + 1,). A last time of exactly 0 stays
        0.

    Returns:
      Times of `schedule`, (steps + 1,).

    Raises:
      ValueError: For times outside of `reference` or noise levels that
        `schedule` does not reach.

    Example:
      >>> flow, edm = dj.schedules.rectified_flow(), dj.schedules.edm()
      >>> np.asarray(dj.grids.transport(flow, edm, [1.0, 0.25]))
      array([0.5, 0.2], dtype=float32)
    """
    ts = check("ts", ts, schedules.check(reference), zero_end=True)
    if is_eager(ts, schedule, reference):
        ts = np.asarray(ts, np.float64)
        at_zero = ts == 0
        seen = np.where(at_zero, float(reference.t_max), ts)
        log_snrs = in_float64(log_snr_at, reference, seen)
    else:
        at_zero = ts == 0
        seen = jnp.where(at_zero, reference.t_max, ts)
        log_snrs = schedules.log_snr(reference, seen)
    return at_log_snrs("ts", schedule, log_snrs, at_zero)
