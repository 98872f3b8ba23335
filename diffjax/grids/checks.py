"""Checks of a grid."""

import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..schedules import Schedule
from ..types import Array, ArrayLike

__all__ = ["check", "check_interval", "decreasing"]

_MAKER = "times, as grids.recommended(schedule, solver, 32) makes"


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
    ts = checks.column(name, checks.real_array(name, ts), "steps + 1", 2, _MAKER)
    # Of the dtype that the times came in: widening them does not undo its rounding.
    slack = 4 * np.finfo(ts.dtype).eps
    ts = ts.astype(float_dtype())
    checks.finite(name, ts)
    checks.monotone(name, ts)
    if schedule is not None and not checks.is_traced(ts):
        check_interval(name, np.asarray(ts), schedule, zero_end=zero_end, slack=slack)
    return ts


def check_interval(
    name: str,
    values: np.ndarray,
    schedule: Schedule,
    *,
    zero_end: bool = False,
    slack: float = 4 * np.finfo(np.float32).eps,
) -> None:
    """Raise ValueError if concrete times lie outside of the schedule's interval.

    Args:
      name: Their name in messages.
      values: Times (N + 1,).
      schedule: A schedule. Of a traced one nothing is checked.
      zero_end: Whether the last may be exactly 0, below t_min.
      slack: How far they may lie outside relative to the ends, for their
        rounding.
    """
    if checks.is_traced(schedule):
        return
    low, high = float(schedule.t_min), float(schedule.t_max)
    ends_at_zero = zero_end and values[-1] == 0 and values[-1] < values[0]
    # A last time of 0 lies below t_min by intent.
    inner = values[:-1] if ends_at_zero else values
    interval = "the schedule's interval []"
    if zero_end:
        interval += " (and may end at exactly 0)"
    checks.all_near(name, inner, low, high, (low * slack, high * slack), interval)


def decreasing(
    name: str,
    value: ArrayLike,
    schedule: Schedule | None = None,
    zero_end: bool = False,
) -> Array:
    """Check a decreasing grid.

    Args:
      name: Its name in messages.
      value: Times (N + 1,).
      schedule: As in `check`.
      zero_end: As in `check`.

    Returns:
      The times as a float array.
    """
    grid = check(name, value, schedule, zero_end)
    if not checks.is_traced(grid):
        # The ends suffice, as `check` has seen that the times are monotone.
        start, end = np.asarray(grid)[[0, -1]]
        checks.require(start >= end, f"{name} must decrease, got {start} … {end}")
    return grid
