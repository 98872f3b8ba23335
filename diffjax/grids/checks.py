"""Checks of a grid."""

import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..schedules import Schedule
from ..types import Array, ArrayLike

__all__ = ["check", "check_decreasing", "decreasing"]

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
    if schedule is not None and not checks.is_traced(ts, schedule):
        _check_interval(name, np.asarray(ts), schedule, zero_end, slack)
    return ts


def _check_interval(name, values, schedule, zero_end, slack):
    low, high = float(schedule.t_min), float(schedule.t_max)
    ends_at_zero = zero_end and values[-1] == 0 and values[-1] < values[0]
    # A last time of 0 lies below t_min by intent.
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
        # The ends suffice, as `check` has seen that the times are monotone.
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
