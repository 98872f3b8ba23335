"""Checks of a grid, and grids made of other grids."""

import math

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..numerics import float_dtype
from ..schedules import Schedule
from ..schedules.derived import _log_snr, in_float64
from ..types import Array, ArrayLike, is_eager
from .times import at_log_snrs, at_ratios


def check(
    name: str, ts: ArrayLike, schedule: Schedule | None = None, zero_end: bool = False
) -> Array:
    """`ts` as a float array (N + 1,), refused unless strictly monotone, finite and inside the schedule's interval.

    zero_end: whether a decreasing grid may end at exactly 0 below t_min. Raises ValueError; traced times get the shape
    check only. Ends are compared with a rounding tolerance of 4 ulp.
    """
    ts = checks.real_array(name, ts)
    rounding = np.finfo(ts.dtype).eps
    ts = ts.astype(float_dtype())
    if ts.ndim != 1 or ts.shape[0] < 2:
        example = (
            ": times, as grids.recommended(schedule, solver, 32) makes them"
            if ts.ndim == 0
            else ""
        )
        raise ValueError(
            f"{name} must have shape (steps + 1,) with at least one step, got {ts.shape}{example}"
        )
    if checks.is_traced(ts):
        return ts
    checks.finite(name, ts)
    values = np.asarray(ts)
    gaps = np.diff(values)
    if not (np.all(gaps < 0) or np.all(gaps > 0)):
        sign = np.sign(gaps[0]) or -1.0
        i = int(np.argmax(gaps * sign <= 0))
        what = "repeats a time" if gaps[i] == 0 else "turns back"
        raise ValueError(
            f"{name} must be strictly monotone, but {what} at {i}: {values[i]!s} then {values[i + 1]!s}"
        )
    if schedule is None or checks.is_traced(schedule):
        return ts
    low, high = float(schedule.t_min), float(schedule.t_max)
    slack = 4 * rounding
    inner = values[:-1] if zero_end and values[-1] == 0 and gaps[0] < 0 else values
    outside = inner[(inner < low * (1 - slack)) | (inner > high * (1 + slack))]
    if outside.size:
        accepted = f"[{low}, {high}]" + (
            " (and may end at exactly 0)" if zero_end else ""
        )
        raise ValueError(
            f"{name} must lie in the schedule's interval {accepted}, got {outside[0]!s}"
        )
    return ts


def check_decreasing(name: str, ts: ArrayLike) -> None:
    """Raise ValueError if the first of concrete times is below the last."""
    if not checks.is_traced(ts):
        start, end = np.asarray(ts)[[0, -1]]
        if start < end:
            raise ValueError(f"{name} must decrease, got {start} … {end}")


def to_zero(grid: ArrayLike) -> Array:
    """`grid` with a last time 0 appended: a solver's last step then returns D(x, t), the denoised last bit."""
    grid = checks.real_array("grid", grid)
    if is_eager(grid):
        return jnp.asarray(np.append(np.asarray(grid), np.zeros(1, grid.dtype)))
    return jnp.concatenate([grid, jnp.zeros((1,), grid.dtype)])


def strength(grid: ArrayLike, strength: float) -> Array:
    """The last part of a grid, for a partial start: `strength` of its steps.

    The start is then data noised to the first time that is left, as image-to-image does: `schedules.perturb(schedule,
    x0, grid[0], noise)`. Meng et al. 2022 (SDEdit), section 3.

    Args:
      grid: Decreasing times, (steps + 1,). A last time of 0 counts as any other.
      strength: Share of the steps to keep, in (0, 1]: ⌊strength · steps⌋ of them, at least one.

    Returns:
      The last times of the grid, (steps kept + 1,).

    Raises:
      ValueError: If strength lies outside (0, 1], or the grid does not decrease.
      TypeError: If strength is traced.

    Example:
      >>> grid = dj.grids.strength(dj.grids.uniform(schedule, 50), 0.6)
      >>> grid.shape
      (31,)
      >>> x = dj.schedules.perturb(schedule, jnp.ones(2), grid[0], jax.random.normal(key, (2,)))
      >>> dj.sample(key, denoiser, schedule, grid=grid, x_init=x).shape
      (2,)
    """
    grid = check("grid", grid)
    check_decreasing("grid", grid)
    strength = checks.concrete("strength", strength)
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength}")
    steps = grid.shape[0] - 1
    kept = max(
        1, math.floor(strength * steps * (1 + 1e-12))
    )  # 0.29 of 100 steps is 28.999…96 in float64
    return grid[steps - kept :]


def from_noise_ratios(schedule: Schedule, ratios: ArrayLike) -> Array:
    """Times at which σ/α has the given values, shape of ratios (steps + 1,): decreasing, the last may be 0 (time 0).

    Raises ValueError for ratios that do not decrease or that the schedule does not reach (up to rounding); traced
    ratios beyond its range go to the nearer end.
    """
    ratios = checks.real_array("ratios", ratios)
    if ratios.ndim != 1 or ratios.shape[0] < 2:
        raise ValueError(
            f"ratios must have shape (steps + 1,) with at least one step, got {ratios.shape}"
        )
    if not checks.is_traced(ratios):
        checks.finite("ratios", ratios)
        values = np.asarray(ratios)
        if np.any(np.diff(values) >= 0) or values[-1] < 0:
            raise ValueError(f"ratios must be decreasing and 0 or more, got {values}")
    return at_ratios("ratios", schedule, ratios)


def transport(schedule: Schedule, reference: Schedule, ts: ArrayLike) -> Array:
    """Times at which `schedule` has the σ/α that `reference` has at `ts`, shape of ts: a grid carried between them.

    λ_schedule(t_i) = λ_reference(ts_i). ts: a grid of `reference`; a last time of exactly 0 stays 0. Raises ValueError
    for times outside of `reference` or levels that `schedule` does not reach. Karras et al. 2022, section 3: the same
    states of the probability flow, scaled.
    """
    ts = check("ts", ts, schedules.check(reference), zero_end=True)
    if not is_eager(ts, schedule, reference):
        at_zero = ts == 0
        levels = schedules.log_snr(reference, jnp.where(at_zero, reference.t_max, ts))
    else:
        ts = np.asarray(ts, np.float64)
        at_zero = ts == 0
        levels = in_float64(
            _log_snr, reference, np.where(at_zero, float(reference.t_max), ts)
        )
    return at_log_snrs("ts", schedule, levels, at_zero)
