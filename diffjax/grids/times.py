"""Times at which the log-SNR has given values, with exact ends.

Where schedule and parameters are concrete, times are computed in float64 on
the host, rounded once, and kept distinct.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..numerics import float_dtype
from ..schedules import Schedule
from ..schedules.derived import log_snr_at, log_snrs_in_float64, time_at_log_snr
from ..schedules.protocol import in_float64
from ..types import Array, ArrayLike, Scalar, is_eager

__all__ = [
    "arguments",
    "at_log_snrs",
    "at_ratios",
    "between",
    "between_log_snrs",
    "with_ends",
]


def arguments(**rules: Any) -> Callable:
    """`checks.arguments` that also checks `schedule` and `steps`."""
    return checks.arguments(
        schedule=lambda name, value: schedules.check(value),
        steps=(checks.integer, 1),
        **rules,
    )


def between(schedule: Schedule, steps: int, time: Callable) -> Array:
    """Times by their fraction of the way from t_max to t_min.

    Args:
      schedule: Any schedule.
      steps: N.
      time: (i / N, t_max, t_min) -> t_i.

    Returns:
      Decreasing times (steps + 1,), both ends exact.
    """
    ends = schedule.t_max, schedule.t_min
    if checks.is_traced(ends):
        u = jnp.linspace(0, 1, steps + 1, dtype=float_dtype())
        return with_ends(time(u, *ends), *ends)
    start, end = map(float, ends)
    return _distinct(time(np.linspace(0, 1, steps + 1), start, end), start, end)


def between_log_snrs(
    schedule: Schedule,
    steps: int,
    spacing: Callable,
    *parameters: Scalar,
    t_start: Scalar | None = None,
) -> Array:
    """Times by their log-SNR.

    Args:
      schedule: Any schedule.
      steps: N.
      spacing: (xp, i / N, λ(start), λ(t_min), *parameters) -> λ_i. xp is NumPy
        where schedule and parameters are concrete, and jax.numpy otherwise.
      *parameters: Further arguments of `spacing`, which may be traced.
      t_start: The first time. By default the noisiest time that holds signal.

    Returns:
      Decreasing times (steps + 1,), both ends exact.
    """
    all_noise = t_start is not None
    ends = [t_start if all_noise else schedules.noisiest_time(schedule), schedule.t_min]
    if not is_eager(schedule, ends, parameters):
        u = jnp.linspace(0, 1, steps + 1, dtype=float_dtype())
        start, end = (
            (schedules.log_snr(schedule, t) for t in ends)
            if all_noise
            else schedules.log_snr_range(schedule)
        )
        log_snrs = spacing(jnp, u, start, end, *parameters)
        return with_ends(schedules.time_of_log_snr(schedule, log_snrs), *ends)
    if all_noise:
        log_snrs = in_float64(log_snr_at, schedule, np.array(ends, float_dtype()))
    else:
        log_snrs = log_snrs_in_float64(schedule, ends)
    u = np.linspace(0, 1, steps + 1)
    log_snrs = spacing(np, u, *log_snrs, *map(float, parameters))
    times = in_float64(time_at_log_snr, schedule, log_snrs)
    return _distinct(times, *map(float, ends))


def with_ends(ts: Array, start: Scalar, end: Scalar) -> Array:
    """Times with exact ends.

    Args:
      ts: Times (N + 1,), whose ends may be rounded.
      start: The first time.
      end: The last time.

    Returns:
      The times, (N + 1,).
    """
    return ts.at[0].set(start).at[-1].set(end)


def _distinct(ts: np.ndarray, start: float, end: float) -> Array:
    """Times from start to end, strictly decreasing in the working precision.

    Neighbours that round to one time are moved apart by one unit of rounding.
    Raises ValueError if the interval holds fewer numbers than there are times.
    """
    dtype = np.dtype(float_dtype())
    ts = np.concatenate([[start], ts[1:-1], [end]]).astype(dtype)
    # positive floats order as the integers that share their bits
    bits = ts.view(np.int32 if dtype.itemsize == 4 else np.int64)
    i = np.arange(len(bits), dtype=bits.dtype)
    last = bits[-1]
    checks.require(
        bits[0] - last >= i[-1],
        f"steps must be at most {bits[0] - last}, the count of {dtype.name} numbers "
        f"between the schedule's ends {end} and {start}, got {i[-1]}",
    )
    bits = np.minimum.accumulate(bits + i) - i
    return jnp.asarray(np.maximum(bits, last + i[::-1]).view(dtype))


def at_ratios(
    name: str, schedule: Schedule, ratios: ArrayLike, *, slack: float = 0.0
) -> Array:
    """Times at which σ/α has the given values.

    Args:
      name: The name of the ratios in messages.
      schedule: Any schedule.
      ratios: Values of σ/α. 0 is time 0.
      slack: How far concrete ratios may lie outside of the schedule's range.

    Returns:
      The times, of the shape of ratios.

    Raises:
      ValueError: For concrete ratios that the schedule does not reach.
    """
    traced = not is_eager(ratios, schedule)
    xp: Any = jnp if traced else np
    ratios = xp.asarray(ratios, float_dtype() if traced else np.float64)
    at_zero = ratios == 0
    log_snrs = -2 * xp.log(xp.where(at_zero, 1, ratios))
    return at_log_snrs(name, schedule, log_snrs, at_zero, slack=slack)


def at_log_snrs(
    name: str,
    schedule: Schedule,
    log_snrs: Array,
    at_zero: Array,
    *,
    slack: float = 0.0,
) -> Array:
    """Times at which the log-SNR has the given values.

    Args:
      name: The name of the values in messages.
      schedule: Any schedule.
      log_snrs: Values of the log-SNR.
      at_zero: Where the time is 0 instead.
      slack: How far concrete values may lie outside of the schedule's range,
        in σ/α. A rounding tolerance of 1e-5 of the schedule's ends comes on
        top.

    Returns:
      The times, of the shape of log_snrs.

    Raises:
      ValueError: For concrete values that the schedule does not reach.
    """
    schedules.check(schedule)
    if not is_eager(log_snrs, schedule):
        return jnp.where(at_zero, 0, schedules.time_of_log_snr(schedule, log_snrs))
    ends = np.array([schedule.t_min, schedule.t_max], float)
    # near α = 0 the rounded end reaches another level
    ends = np.concatenate([ends, ends.astype(float_dtype())])
    times, reached = in_float64(_inverted, schedule, log_snrs, ends)
    reached = np.exp(-0.5 * reached)
    low, high = reached.min(), reached.max()
    margins = 1e-5 * low + slack, 1e-5 * high + slack
    ratios = np.where(at_zero, low, np.exp(-0.5 * log_snrs))
    checks.all_near(name, ratios, low, high, margins, "the schedule's range of σ/α, []")
    return jnp.asarray(np.where(at_zero, 0, times), float_dtype())


def _inverted(schedule, log_snrs, ends):
    return time_at_log_snr(schedule, log_snrs), log_snr_at(schedule, ends)
