"""Checks of a grid, and grids made of other grids."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..numerics import float_dtype
from ..schedules import Schedule
from ..schedules.derived import _log_snr, in_float64
from ..types import Array, ArrayLike, is_eager
from .times import at_log_snrs, at_ratios

__all__ = [
    "check",
    "check_decreasing",
    "from_noise_ratios",
    "strength",
    "to_zero",
    "transport",
]


# ---------------------------------------------------------------------- checks


def check(
    name: str, ts: ArrayLike, schedule: Schedule | None = None, zero_end: bool = False
) -> Array:
    """Check a grid. Of traced times only the shape is checked.

    Args:
      name: The grid's name in messages.
      ts: Times (N + 1,), strictly monotone and finite.
      schedule: The times must lie in its interval, with a rounding tolerance
        of 4 ulp.
      zero_end: Whether a decreasing grid may end at exactly 0, below t_min.

    Returns:
      The times as a float array.

    Raises:
      ValueError: If the times are no such grid.
    """
    ts = checks.real_array(name, ts)
    slack = 4 * np.finfo(ts.dtype).eps
    ts = ts.astype(float_dtype())
    hint = (
        "" if ts.ndim else ": times, as grids.recommended(schedule, solver, 32) makes"
    )
    checks.require(
        ts.ndim == 1 and ts.shape[0] >= 2,
        f"{name} must have shape (steps + 1,) with at least one step, "
        f"got {ts.shape}{hint}",
    )
    if checks.is_traced(ts):
        return ts
    checks.finite(name, ts)
    values = np.asarray(ts)
    _check_monotone(name, values)
    if schedule is not None and not checks.is_traced(schedule):
        _check_interval(name, values, schedule, zero_end, slack)
    return ts


def _check_monotone(name, values):
    gaps = np.diff(values)
    sign = np.sign(gaps[0]) or -1.0
    if np.all(gaps * sign > 0):
        return
    i = int(np.argmax(gaps * sign <= 0))
    fault = "repeats a time" if gaps[i] == 0 else "turns back"
    raise ValueError(
        f"{name} must be strictly monotone, but {fault} at {i}: {values[i]!s} then "
        f"{values[i + 1]!s}"
    )


def _check_interval(name, values, schedule, zero_end, slack):
    low, high = float(schedule.t_min), float(schedule.t_max)
    ends_at_zero = zero_end and values[-1] == 0 and values[-1] < values[0]
    inner = values[:-1] if ends_at_zero else values
    outside = inner[(inner < low * (1 - slack)) | (inner > high * (1 + slack))]
    if outside.size:
        also = " (and may end at exactly 0)" if zero_end else ""
        raise ValueError(
            f"{name} must lie in the schedule's interval [{low}, {high}]{also}, "
            f"got {outside[0]!s}"
        )


def check_decreasing(name: str, ts: ArrayLike) -> None:
    """Raise ValueError if the first of concrete times is below the last.

    Args:
      name: The grid's name in messages.
      ts: Times (N + 1,), strictly monotone.
    """
    if not checks.is_traced(ts):
        start, end = np.asarray(ts)[[0, -1]]
        checks.require(start >= end, f"{name} must decrease, got {start} … {end}")


def _grid(name, value):
    grid = check(name, value)
    check_decreasing(name, grid)
    return grid


def _strength(name, value):
    value = checks.concrete(name, value)
    checks.require(0 < value <= 1, f"{name} must lie in (0, 1], got {value}")
    return value


def _ratios(name, value):
    ratios = checks.real_array(name, value)
    checks.require(
        ratios.ndim == 1 and ratios.shape[0] >= 2,
        f"{name} must have shape (steps + 1,) with at least one step, got "
        f"{ratios.shape}",
    )
    if not checks.is_traced(ratios):
        checks.finite(name, ratios)
        values = np.asarray(ratios)
        checks.require(
            np.all(np.diff(values) < 0) and values[-1] >= 0,
            f"{name} must be decreasing and 0 or more, got {values}",
        )
    return ratios


# ------------------------------------------------------- parts and conversions


@checks.arguments(grid=_grid, strength=_strength)
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


@checks.arguments(ratios=_ratios)
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
    return at_ratios("ratios", schedule, ratios)


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
        log_snrs = in_float64(_log_snr, reference, seen)
    else:
        at_zero = ts == 0
        seen = jnp.where(at_zero, reference.t_max, ts)
        log_snrs = schedules.log_snr(reference, seen)
    return at_log_snrs("ts", schedule, log_snrs, at_zero)
