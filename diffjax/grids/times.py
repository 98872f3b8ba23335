"""Times at given noise levels: computed in float64 and rounded once, with exact ends."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..numerics import float_dtype
from ..schedules import Schedule
from ..schedules.derived import (
    _log_snr,
    _time_of_log_snr,
    in_float64,
    log_snrs_in_float64,
)
from ..types import Array, ArrayLike, Scalar, is_eager


def between(schedule: Schedule, steps: int, time: Callable) -> Array:
    """time(i / N, t_max, t_min) with both ends exact."""
    schedules.check(schedule)
    steps = checks.integer("steps", steps, minimum=1)
    ends = schedule.t_max, schedule.t_min
    if checks.is_traced(ends):
        return with_ends(
            time(jnp.linspace(0, 1, steps + 1, dtype=float_dtype()), *ends), *ends
        )
    start, end = map(float, ends)
    return _distinct(time(np.linspace(0, 1, steps + 1), start, end), start, end)


def between_log_snrs(
    schedule: Schedule,
    steps: int,
    level: Callable,
    *parameters: Scalar,
    t_start: Scalar | None = None,
) -> Array:
    """Times of log-SNR level(xp, i / N, λ(start), λ(t_min), *parameters) with both ends exact.

    xp is NumPy where schedule and parameters are concrete: the grid is computed in float64 and rounded once. t_start:
    the first time; default the noisiest time that holds signal.
    """
    schedules.check(schedule)
    steps = checks.integer("steps", steps, minimum=1)
    all_noise = t_start is not None
    ends = [t_start if all_noise else schedules.noisiest_time(schedule), schedule.t_min]
    if not is_eager(schedule, ends, parameters):
        u = jnp.linspace(0, 1, steps + 1, dtype=float_dtype())
        start, end = (
            (schedules.log_snr(schedule, t) for t in ends)
            if all_noise
            else schedules.log_snr_range(schedule)
        )
        return with_ends(
            schedules.time_of_log_snr(schedule, level(jnp, u, start, end, *parameters)),
            *ends,
        )
    if all_noise:
        levels = in_float64(_log_snr, schedule, np.array(ends, float_dtype()))
    else:
        levels = log_snrs_in_float64(schedule, ends)
    levels = level(np, np.linspace(0, 1, steps + 1), *levels, *map(float, parameters))
    return _distinct(in_float64(_time_of_log_snr, schedule, levels), *map(float, ends))


def with_ends(ts: Array, start: Scalar, end: Scalar) -> Array:
    return ts.at[0].set(start).at[-1].set(end)


def _distinct(ts: np.ndarray, start: float, end: float) -> Array:
    """Times from start to end, rounded to the working precision and strictly decreasing there.

    Neighbours that round to one time are moved apart by one unit of rounding. Raises ValueError if the interval holds
    fewer numbers than there are times.
    """
    dtype = np.dtype(float_dtype())
    ts = np.concatenate([[start], ts[1:-1], [end]]).astype(dtype)
    # positive floats order as the integers that share their bits
    places = ts.view(np.int32 if dtype.itemsize == 4 else np.int64)
    i = np.arange(len(places), dtype=places.dtype)
    last = places[-1]
    if places[0] - last < i[-1]:
        raise ValueError(
            f"steps must be at most {places[0] - last}, the count of {dtype.name} numbers between the schedule's "
            f"ends {end} and {start}, got {i[-1]}"
        )
    places = np.minimum.accumulate(places + i) - i
    return jnp.asarray(np.maximum(places, last + i[::-1]).view(dtype))


def at_ratios(
    name: str, schedule: Schedule, ratios: ArrayLike, slack: float = 0.0
) -> Array:
    """Times of σ/α = ratios, 0 for a ratio of 0; `at_log_snrs` with slack in σ/α."""
    traced = not is_eager(ratios, schedule)
    xp, ratios = (
        (jnp, jnp.asarray(ratios, float_dtype()))
        if traced
        else (np, np.asarray(ratios, np.float64))
    )
    at_zero = ratios == 0
    return at_log_snrs(
        name, schedule, -2 * xp.log(xp.where(at_zero, 1, ratios)), at_zero, slack
    )


def at_log_snrs(
    name: str, schedule: Schedule, levels: Array, at_zero: Array, slack: float = 0.0
) -> Array:
    """Times of log-SNR `levels`, 0 where at_zero; raises ValueError for concrete levels outside the schedule's range.

    Compared as σ/α, with `slack` and a rounding tolerance of 1e-5 of the schedule's ends.
    """
    schedules.check(schedule)
    if not is_eager(levels, schedule):
        return jnp.where(at_zero, 0, schedules.time_of_log_snr(schedule, levels))
    ends = np.array([schedule.t_min, schedule.t_max], float)
    ends = np.concatenate(
        [ends, ends.astype(float_dtype())]
    )  # near α = 0 the rounded end reaches another level
    times, reached = in_float64(_inverted, schedule, levels, ends)
    reached = np.exp(-0.5 * reached)
    low, high = reached.min(), reached.max()
    values = np.exp(-0.5 * levels[~at_zero])
    outside = values[
        (values < (1 - 1e-5) * low - slack) | (values > (1 + 1e-5) * high + slack)
    ]
    if outside.size:
        raise ValueError(
            f"{name} must lie in the schedule's range of σ/α, [{low:.6g}, {high:.6g}], got {outside[0]:.6g}"
        )
    return jnp.asarray(np.where(at_zero, 0, times), float_dtype())


def _inverted(schedule, levels, ends):
    return _time_of_log_snr(schedule, levels), _log_snr(schedule, ends)
