"""Where a solver steps: steps + 1 decreasing times, from t_max to t_min unless stated. Any decreasing array serves."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from . import checks, schedules
from .numerics import float_dtype
from .schedules import Indexed, Schedule
from .schedules.derived import (
    _log_snr,
    _time_of_log_snr,
    in_float64,
    log_snrs_in_float64,
)
from .types import Array, ArrayLike, Scalar, is_eager

ALIGN_YOUR_STEPS = {
    "stable_diffusion_1.5": (
        14.615,
        6.475,
        3.861,
        2.697,
        1.886,
        1.396,
        0.963,
        0.652,
        0.399,
        0.152,
        0.029,
    ),
    "sdxl": (
        14.615,
        6.315,
        3.771,
        2.181,
        1.342,
        0.862,
        0.555,
        0.380,
        0.234,
        0.113,
        0.029,
    ),
    "deepfloyd": (
        160.41,
        8.081,
        3.315,
        1.885,
        1.207,
        0.785,
        0.553,
        0.293,
        0.186,
        0.030,
        0.006,
    ),
    "svd": (
        700.00,
        54.5,
        15.886,
        7.977,
        4.248,
        1.789,
        0.981,
        0.403,
        0.173,
        0.034,
        0.002,
    ),
}
"""model -> σ/α at the 11 times of its 10 steps. Sabour et al. 2024, Table 3."""


def uniform(schedule: Schedule, steps: int) -> Array:
    """t_i = t_max + (i / N)(t_min − t_max), shape (steps + 1,)."""
    return _between(schedule, steps, lambda u, start, end: start + u * (end - start))


def quadratic(schedule: Schedule, steps: int) -> Array:
    """√t uniform: t_i = (√t_max + (i / N)(√t_min − √t_max))², shape (steps + 1,).

    Song et al. 2021 (DDIM), appendix D.2.
    """
    return _between(
        schedule,
        steps,
        lambda u, start, end: (start**0.5 + u * (end**0.5 - start**0.5)) ** 2,
    )


def beta(schedule: Schedule, steps: int, a: float = 0.6, b: float = 0.6) -> Array:
    """Times at the quantiles of a Beta distribution: t_i = t_min + (t_max − t_min) I⁻¹(1 − i/N; a, b).

    Below 1 both parameters place more steps near both ends. Lee et al. 2024.

    Args:
      schedule: Any schedule.
      steps: N, 1 or more.
      a: First parameter of the distribution, positive; smaller places more steps near t_min.
      b: Second parameter, positive; smaller places more steps near t_max.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Raises:
      ValueError: If a or b is not positive.
      TypeError: If a or b is traced.

    Example:
      >>> print(np.asarray(dj.grids.beta(dj.schedules.rectified_flow(t_max=1.0), 4)).round(3))
      [1.    0.824 0.501 0.177 0.001]
    """
    a, b = (
        checks.concrete(name, checks.within(name, checks.positive(name, value), 0, 1e4))
        for name, value in (("a", a), ("b", b))
    )
    steps = checks.integer("steps", steps, minimum=1)
    shares = _beta_quantiles(a, b, np.linspace(1, 0, steps + 1))
    return _between(schedule, steps, lambda u, start, end: end + shares * (start - end))


def _beta_quantiles(a, b, shares):
    """x with I(x; a, b) = shares, float64 on the host: bisection on [0, 1] to its rounding, and exact at 0 and 1."""
    low, high = np.zeros(shares.shape), np.ones(shares.shape)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = _beta_distribution(a, b, middle) < shares
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(
        (shares <= 0) | (shares >= 1), np.clip(shares, 0.0, 1.0), 0.5 * (low + high)
    )


def _beta_distribution(a, b, x):
    """I(x; a, b), the regularised incomplete beta function, by its continued fraction (DLMF 8.17.22) on the host.

    The fraction converges quickly left of (a + 1) / (a + b + 2); right of it, I(x; a, b) = 1 − I(1 − x; b, a).
    """
    left = x < (a + 1) / (a + b + 2)
    p, q, x = np.where(left, a, b), np.where(left, b, a), np.where(left, x, 1 - x)
    fraction = np.ones_like(x)
    for n in range(int(30 + 4 * max(a, b) ** 0.5), 0, -1):
        m = n // 2
        if n % 2:
            term = -(p + m) * (p + q + m) / ((p + 2 * m) * (p + 2 * m + 1))
        else:
            term = m * (q - m) / ((p + 2 * m - 1) * (p + 2 * m))
        fraction = 1 + term * x / fraction
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    with np.errstate(divide="ignore"):  # the density at the ends: exp(−∞) = 0
        value = np.exp(p * np.log(x) + q * np.log1p(-x) - log_beta) / (p * fraction)
    return np.where(left, value, 1 - value)


def shifted(schedule: Schedule, steps: int, shift: float = 3.0) -> Array:
    """The resolution shift of flow models, on any schedule: σ/α multiplied by `shift`.

        τ′ = s τ / (1 + (s − 1) τ),    τ = σ / (α + σ)

    τ is the time of rectified flow at the same noise ratio, t itself there. It is uniform before the shift, between the
    values that give t_max and t_min after it. Images of m times more pixels take s = √m. Esser et al. 2024, equation
    23.

    Args:
      schedule: Any schedule; α(t_max) may be 0.
      steps: N, 1 or more.
      shift: s, positive; 1 is uniform in τ, greater spends more steps at much noise.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Raises:
      ValueError: If shift is not positive.

    Example:
      >>> print(np.asarray(dj.grids.shifted(dj.schedules.rectified_flow(t_max=1.0), 2)).round(3))
      [1.    0.75  0.001]
    """
    shift = checks.positive("shift", shift)

    def level(xp, u, start, end, shift):
        # in ratios r = σ/α, the shift is r → s r, and τ = r/(1 + r) = 1/(1 + e^{λ/2}) without overflow at λ = −∞
        before = [1 / (1 + shift * xp.exp(0.5 * level)) for level in (start, end)]
        tau = before[0] + u * (before[1] - before[0])
        with np.errstate(divide="ignore"):  # τ = 1 is λ = −∞
            return 2 * (xp.log1p(-tau) - xp.log(tau) - xp.log(shift))

    return _between_levels(
        schedule, steps, level, shift, t_start=schedules.check(schedule).t_max
    )


def log_snr(schedule: Schedule, steps: int) -> Array:
    """λ(t_i) uniform between λ(t_max) and λ(t_min), shape (steps + 1,). Lu et al. 2022, section 3.4.

    On a chain of zero terminal SNR it starts at index T − 1. Raises ValueError where λ(t_max) of another schedule is
    not finite (α = 0 there).
    """
    return _between_levels(
        schedule, steps, lambda xp, u, start, end: start + u * (end - start)
    )


def exponential(schedule: Schedule, steps: int) -> Array:
    """σ/α falling geometrically: another name of `log_snr`, k-diffusion's."""
    return log_snr(schedule, steps)


def polyexponential(schedule: Schedule, steps: int, rho: Scalar = 1.0) -> Array:
    """log s_i = log s_min + (1 − i / N)^ρ (log s_max − log s_min) for s = σ/α, shape (steps + 1,).

    rho: greater spends more steps at little noise; 1 is `log_snr`. Raises ValueError unless rho > 0. Where α(t_max) = 0
    it does as `log_snr`. k-diffusion's grid of this name.
    """
    rho = checks.positive("rho", rho)
    return _between_levels(
        schedule,
        steps,
        lambda xp, u, start, end, rho: end + (1 - u) ** rho * (start - end),
        rho,
    )


def karras(schedule: Schedule, steps: int, rho: Scalar = 7.0) -> Array:
    """s = σ/α with s^{1/ρ} uniform, shape (steps + 1,): s_i = (s_max^{1/ρ} + (i / N)(s_min^{1/ρ} − s_max^{1/ρ}))^ρ.

    rho: greater spends more steps at little noise. Raises ValueError unless rho > 0. Where α(t_max) = 0 it
    does as `log_snr`. Karras et al. 2022, eq. 5, with the last of the N + 1 times at t_min.
    """
    rho = checks.positive("rho", rho)
    return _between_levels(schedule, steps, _karras_levels, rho)


def karras_levels(u: ArrayLike, start: Scalar, end: Scalar, rho: Scalar = 7.0) -> Array:
    """The log-SNR at fractions u in [0, 1], shape of u, between log-SNRs start and end, with (σ/α)^{1/ρ} linear in
    u.
    """
    u, rho = checks.real_array("u", u), checks.positive("rho", rho)
    return _karras_levels(
        jnp, u, checks.number("start", start), checks.number("end", end), rho
    )


def _karras_levels(xp, u, start, end, rho):
    start, end = (
        xp.exp(-0.5 / rho * start),
        xp.exp(-0.5 / rho * end),
    )  # σ/α itself may leave the range of float32
    return -2 * rho * xp.log(start + u * (end - start))


def angular(schedule: Schedule, steps: int, share: float = 0.5) -> Array:
    """Times equally spaced in a mean of the angle arctan(σ/α) and of the log-SNR.

        u(λ) = share · (φ(λ) − φ_0)/(φ_1 − φ_0) + (1 − share) · (λ − λ_0)/(λ_1 − λ_0),    φ = arctan e^{−λ/2}

    The angle changes most where signal and noise are of one size, which is where the denoiser changes most for data of
    unit scale. The log-SNR keeps steps at both ends. The grid depends on σ/α alone, so that it is the same path of
    noise levels on every schedule.

    Args:
      schedule: Any schedule with a finite log-SNR at t_max, or a chain of zero terminal SNR, which starts at T − 1.
      steps: N, 1 or more.
      share: Weight of the angle, in [0, 1]. 0 is `log_snr`.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Raises:
      ValueError: If share lies outside [0, 1], or where α(t_max) = 0 on a schedule that is no chain.
      TypeError: If share is traced.

    Example:
      >>> print(np.asarray(dj.grids.angular(dj.schedules.edm(), 4)).round(2))
      [80.    3.09  0.8   0.15  0.  ]
    """
    share = checks.concrete("share", checks.within("share", share, 0.0, 1.0))

    def level(xp, u, start, end):
        levels = start + xp.linspace(0, 1, 4097) * (end - start)
        angles = xp.arctan(xp.exp(-0.5 * levels))
        angles = (angles - angles[0]) / (angles[-1] - angles[0])
        return xp.interp(
            u, share * angles + (1 - share) * (levels - start) / (end - start), levels
        )

    return _between_levels(schedule, steps, level)


DENSE = 28
"""From so many steps on, errors at the ends of the noise range rule, and `recommended` leaves more steps there."""


def recommended(schedule: Schedule, solver: Any, evaluations: int = 64) -> Array:
    """The grid to take when nothing is known of the data: the default of `sample`.

    For a deterministic solver it is `angular` with share ½ up to 27 steps and ¼ from 28 on. By worst-case regret over a
    suite of targets, schedules and networks, which `experiments.solver_regret` measures, it is the best of nine grids,
    or near it, with `ipndm(2)` at 12 and 16 evaluations and with `unipc(3)` from 24 on. For a stochastic solver it is
    `log_snr`.

    Args:
      schedule: Any schedule with a finite log-SNR at t_max, or a chain of zero terminal SNR.
      solver: A solver. Its cost per step decides how many steps there are.
      evaluations: Of the denoiser, at most. 32 steps for a solver that chooses its own, as `adaptive` does.

    Returns:
      Decreasing times from t_max to t_min; from index T − 1 of a chain of zero terminal SNR.

    Raises:
      ValueError: If the evaluations are too few for one step, or where α(t_max) = 0 on a schedule that is no chain.

    Example:
      >>> dj.grids.recommended(dj.schedules.edm(), dj.solvers.heun(), 16).shape
      (9,)
    """
    evaluations = checks.integer("evaluations", evaluations, 1, 10**6)
    cost = cost_of_step(solver)
    if cost is None:
        return log_snr(schedule, 32)
    steps = evaluations // cost
    if steps < 1:
        raise ValueError(
            f"evaluations must be at least {cost}, those of one step of {solver.name}; got {evaluations}"
        )
    if solver.stochastic:
        return log_snr(schedule, steps)
    return angular(schedule, steps, recommended_share(steps))


def recommended_share(steps: int) -> float:
    """The share of `angular` with which `recommended` places so many steps."""
    return 0.5 if steps < DENSE else 0.25


def cost_of_step(solver: Any) -> int | None:
    """Evaluations of one step that does not end at 0, None where they are not fixed."""
    if isinstance(solver, type) or not callable(getattr(solver, "evaluations", None)):
        raise TypeError(
            f"solver must be made by a function of diffjax.solvers, as heun(), got {solver!r}"
        )
    return solver.evaluations(np.array([2.0, 1.0]))


def align_your_steps(
    schedule: Schedule, steps: int, table: str = "stable_diffusion_1.5"
) -> Array:
    """Levels σ/α fitted to a published model, log-linearly interpolated from its 10 steps to `steps`, (steps + 1,).

    table: the model, a key of `ALIGN_YOUR_STEPS`. Ends of the table are read to their printed digits: up to 5e-4
    outside of the schedule's range they are its end. The paper's samplers append a step to 0: `to_zero`. Raises
    ValueError where the schedule does not reach the table's levels. Sabour et al. 2024, Table 3.
    """
    levels = np.array(ALIGN_YOUR_STEPS[checks.choice("table", table, ALIGN_YOUR_STEPS)])
    steps = checks.integer("steps", steps, minimum=1)
    at, nodes = (np.linspace(0, 1, count) for count in (steps + 1, len(levels)))
    ratios = np.exp(np.interp(at, nodes, np.log(levels)))
    return _at_ratios(f"the levels of table {table!r}", schedule, ratios, slack=5e-4)


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
    return _at_ratios("ratios", schedule, ratios)


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
    return _at_levels("ts", schedule, levels, at_zero)


def ddpm(
    schedule: Indexed, steps: int, spacing: str = "leading", steps_offset: int = 0
) -> Array:
    """Times of `steps` of a chain's T indices, then 0: shape (steps + 1,).

    Counted from 1, falling, for i = 0 … steps − 1: "leading" 1 + steps_offset + i ⌊T / steps⌋, "linspace" 1 +
    round(i (T − 1)/(steps − 1)), "trailing" round(T − i T / steps), halves to even. steps_offset is for "leading"
    alone; 1 for Stable Diffusion. Raises TypeError for a schedule without indices, ValueError for more steps than T or
    indices past T. diffusers' timestep_spacing and steps_offset; Lin et al. 2024, Table 2.
    """
    total = _chain(schedule).steps
    steps = checks.integer("steps", steps, minimum=1, maximum=total)
    steps_offset = checks.integer("steps_offset", steps_offset, minimum=0)
    if steps_offset and spacing != "leading":
        raise ValueError(
            f"steps_offset must be 0 unless spacing is 'leading', got {steps_offset} with {spacing!r}"
        )
    rules = {
        "leading": lambda: (1 + steps_offset + np.arange(steps) * (total // steps))[
            ::-1
        ],
        "linspace": lambda: 1 + np.round(np.linspace(0, total - 1, steps))[::-1],
        "trailing": lambda: np.round(
            np.arange(total, 0, -total / steps)[:steps]
        ),  # its rounding may give one more
    }
    return to_zero(
        from_indices(
            schedule, rules[checks.choice("spacing", spacing, rules)]().astype(int)
        )
    )


def from_indices(schedule: Indexed, indices: ArrayLike) -> Array:
    """Times index / T of a chain's or ladder's indices in 1 … T, shape of indices: decreasing integers.

    Raises TypeError for a schedule that has no indices or indices that are not integers, ValueError for indices out of
    range or not decreasing.
    """
    total = _chain(schedule).steps
    values = np.asarray(indices)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"indices must be integers, got dtype {values.dtype}")
    if values.ndim != 1 or values.size == 0 or np.any(np.diff(values) >= 0):
        raise ValueError(f"indices must be a decreasing sequence, got {values}")
    if values[-1] < 1 or values[0] > total:
        raise ValueError(
            f"indices must lie in 1 … {total}, got {values[0]} … {values[-1]}"
        )
    return jnp.asarray(values / total, float_dtype())


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


def to_zero(grid: ArrayLike) -> Array:
    """`grid` with a last time 0 appended: a solver's last step then returns D(x, t), the denoised last bit."""
    grid = checks.real_array("grid", grid)
    if is_eager(grid):
        return jnp.asarray(np.append(np.asarray(grid), np.zeros(1, grid.dtype)))
    return jnp.concatenate([grid, jnp.zeros((1,), grid.dtype)])


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


def _between(schedule: Schedule, steps: int, time: Callable) -> Array:
    """time(i / N, t_max, t_min) with both ends exact."""
    schedules.check(schedule)
    steps = checks.integer("steps", steps, minimum=1)
    ends = schedule.t_max, schedule.t_min
    if checks.is_traced(ends):
        return _with_ends(
            time(jnp.linspace(0, 1, steps + 1, dtype=float_dtype()), *ends), *ends
        )
    start, end = map(float, ends)
    return _distinct(time(np.linspace(0, 1, steps + 1), start, end), start, end)


def _between_levels(
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
        return _with_ends(
            schedules.time_of_log_snr(schedule, level(jnp, u, start, end, *parameters)),
            *ends,
        )
    if all_noise:
        levels = in_float64(_log_snr, schedule, np.array(ends, float_dtype()))
    else:
        levels = log_snrs_in_float64(schedule, ends)
    levels = level(np, np.linspace(0, 1, steps + 1), *levels, *map(float, parameters))
    return _distinct(in_float64(_time_of_log_snr, schedule, levels), *map(float, ends))


def _with_ends(ts: Array, start: Scalar, end: Scalar) -> Array:
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


def _at_ratios(
    name: str, schedule: Schedule, ratios: ArrayLike, slack: float = 0.0
) -> Array:
    """Times of σ/α = ratios, 0 for a ratio of 0; `_at_levels` with slack in σ/α."""
    traced = not is_eager(ratios, schedule)
    xp, ratios = (
        (jnp, jnp.asarray(ratios, float_dtype()))
        if traced
        else (np, np.asarray(ratios, np.float64))
    )
    at_zero = ratios == 0
    return _at_levels(
        name, schedule, -2 * xp.log(xp.where(at_zero, 1, ratios)), at_zero, slack
    )


def _at_levels(
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


def _chain(schedule: Schedule) -> Indexed:
    if not isinstance(schedule, Indexed):
        made = "schedules.from_sigmas or schedules.from_betas"
        raise TypeError(
            f"schedule must be made by {made} to have indices, got {type(schedule).__name__}"
        )
    return schedule
