"""Checks of a grid."""

from typing import Any

import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..schedules import Indexed, Schedule
from ..types import Array, ArrayLike

__all__ = ["check", "check_decreasing"]


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


def decreasing(name: str, value: ArrayLike) -> Array:
    """Check a decreasing grid.

    Args:
      name: Its name in messages.
      value: Times (N + 1,).

    Returns:
      The times as a float array.
    """
    grid = check(name, value)
    check_decreasing(name, grid)
    return grid


def share(name: str, value: ArrayLike) -> float:
    """Check a share of the steps.

    Args:
      name: Its name in messages.
      value: A concrete number in (0, 1].

    Returns:
      The number.
    """
    value = checks.concrete(name, value)
    checks.require(0 < value <= 1, f"{name} must lie in (0, 1], got {value}")
    return value


def noise_ratios(name: str, value: ArrayLike) -> Array:
    """Check the values of σ/α of a grid.

    Args:
      name: Their name in messages.
      value: Decreasing numbers (N + 1,), 0 or more.

    Returns:
      The values as a float array.
    """
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


def chain(name: str, schedule: Any) -> Indexed:
    """Check a chain or ladder of indices.

    Args:
      name: Its name in messages.
      schedule: A schedule that has indices.

    Returns:
      The schedule.
    """
    made = "schedules.from_sigmas or schedules.from_betas"
    checks.require(
        isinstance(schedule, Indexed),
        f"{name} must be made by {made} to have indices, got {type(schedule).__name__}",
        TypeError,
    )
    return schedule


def chain_indices(name: str, indices: ArrayLike, total: int) -> np.ndarray:
    """Check indices of a chain.

    Args:
      name: Their name in messages.
      indices: Decreasing integers in 1 … total.
      total: The length of the chain.

    Returns:
      The indices.
    """
    values = np.asarray(indices)
    checks.require(
        np.issubdtype(values.dtype, np.integer),
        f"{name} must be integers, got dtype {values.dtype}",
        TypeError,
    )
    checks.require(
        values.ndim == 1 and values.size > 0 and np.all(np.diff(values) < 0),
        f"{name} must be a decreasing sequence, got {values}",
    )
    checks.require(
        values[-1] >= 1 and values[0] <= total,
        f"{name} must lie in 1 … {total}, got {values[0]} … {values[-1]}",
    )
    return values
