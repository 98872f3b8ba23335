"""Where a solver steps: steps + 1 decreasing times from t_max to t_min. Any decreasing array serves."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from . import checks, schedules
from .numerics import float_dtype
from .schedules import DiscreteChain, Schedule
from .types import Array, ArrayLike, Scalar


def uniform(schedule: Schedule, steps: int) -> Array:
    """t_i = t_max + (i / N)(t_min − t_max), shape (steps + 1,)."""
    return _between(schedule, steps, lambda u: schedule.t_max + u * (schedule.t_min - schedule.t_max))


def quadratic(schedule: Schedule, steps: int) -> Array:
    """√t uniform: t_i = (√t_max + (i / N)(√t_min − √t_max))², shape (steps + 1,).

    Song et al. 2021 (DDIM), appendix D.2.
    """
    return _between(schedule, steps, lambda u: _power_law(schedule.t_max, schedule.t_min, 2.0, u))


def log_snr(schedule: Schedule, steps: int) -> Array:
    """λ(t_i) uniform between λ(t_max) and λ(t_min), shape (steps + 1,). Lu et al. 2022, section 3.4.

    Raises ValueError where λ(t_max) is not finite (α = 0 there).
    """
    start, end = schedules.log_snr_range(schedules.check(schedule))
    return _between(schedule, steps, lambda u: schedules.time_of_log_snr(schedule, start + u * (end - start)))


def karras(schedule: Schedule, steps: int, rho: Scalar = 7.0) -> Array:
    """s = σ/α with s^{1/ρ} uniform, shape (steps + 1,): s_i = (s_max^{1/ρ} + (i / N)(s_min^{1/ρ} − s_max^{1/ρ}))^ρ.

    rho: greater spends more steps at little noise. Raises ValueError unless rho > 0, and where α(t_max) = 0.
    Karras et al. 2022, eq. 5, with the last of the N + 1 times at t_min.
    """
    rho = checks.positive("rho", rho)
    start, end = (jnp.exp(-0.5 / rho * value) for value in schedules.log_snr_range(schedules.check(schedule)))

    def time(u):  # in s^{1/ρ}, since s itself may leave the range of float32
        return schedules.time_of_log_snr(schedule, -2 * rho * jnp.log(start + u * (end - start)))

    return _between(schedule, steps, time)


def from_indices(schedule: DiscreteChain, indices: ArrayLike) -> Array:
    """Times index / T of a DDPM chain's indices in 1 … T, shape of indices: decreasing integers.

    Raises TypeError for a schedule that has no indices or indices that are not integers, ValueError for indices out of
    range or not decreasing.
    """
    if not isinstance(schedule, DiscreteChain):
        raise TypeError(f"schedule must be made by schedules.from_betas to have indices, got {type(schedule).__name__}")
    values = np.asarray(indices)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"indices must be integers, got dtype {values.dtype}")
    if values.ndim != 1 or values.size == 0 or np.any(np.diff(values) >= 0):
        raise ValueError(f"indices must be a decreasing sequence, got {values}")
    if values[-1] < 1 or values[0] > schedule.steps:
        raise ValueError(f"indices must lie in 1 … {schedule.steps}, got {values[0]} … {values[-1]}")
    return jnp.asarray(values / schedule.steps, float_dtype())


def to_zero(grid: ArrayLike) -> Array:
    """`grid` with a last time 0 appended: a solver's last step then returns D(x, t), the denoised last bit."""
    grid = jnp.asarray(grid)
    return jnp.concatenate([grid, jnp.zeros((1,), grid.dtype)])


def check(name: str, ts: ArrayLike, schedule: Schedule | None = None, zero_end: bool = False) -> Array:
    """`ts` as a float array (N + 1,), refused unless strictly monotone, finite and inside the schedule's interval.

    zero_end: whether a decreasing grid may end at exactly 0 below t_min. Raises ValueError; traced times get the shape
    check only. Ends are compared with a rounding tolerance of 4 ulp.
    """
    ts = checks.real_array(name, ts)
    rounding = np.finfo(ts.dtype).eps
    ts = ts.astype(float_dtype())
    if ts.ndim != 1 or ts.shape[0] < 2:
        raise ValueError(f"{name} must have shape (steps + 1,) with at least one step, got {ts.shape}")
    if checks.is_traced(ts):
        return ts
    checks.finite(name, ts)
    values = np.asarray(ts)
    gaps = np.diff(values)
    if not (np.all(gaps < 0) or np.all(gaps > 0)):
        sign = np.sign(gaps[0]) or -1.0
        i = int(np.argmax(gaps * sign <= 0))
        what = "repeats a time" if gaps[i] == 0 else "turns back"
        raise ValueError(f"{name} must be strictly monotone, but {what} at {i}: {values[i]!s} then {values[i + 1]!s}")
    if schedule is None or checks.is_traced(schedule):
        return ts
    low, high = float(schedule.t_min), float(schedule.t_max)
    slack = 4 * rounding
    inner = values[:-1] if zero_end and values[-1] == 0 and gaps[0] < 0 else values
    outside = inner[(inner < low * (1 - slack)) | (inner > high * (1 + slack))]
    if outside.size:
        accepted = f"[{low}, {high}]" + (" (and may end at exactly 0)" if zero_end else "")
        raise ValueError(f"{name} must lie in the schedule's interval {accepted}, got {outside[0]!s}")
    return ts


def _between(schedule: Schedule, steps: int, time: Callable[[Array], Array]) -> Array:
    """time(i / N) with both ends exact."""
    schedules.check(schedule)
    steps = checks.integer("steps", steps, minimum=1)
    ts = time(jnp.linspace(0, 1, steps + 1, dtype=float_dtype()))
    return ts.at[0].set(schedule.t_max).at[-1].set(schedule.t_min)


def _power_law(start, end, rho, u):
    return (start ** (1 / rho) + u * (end ** (1 / rho) - start ** (1 / rho))) ** rho
