"""Log density of an example, by the change of variables along the probability flow."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import checks, grids, schedules, sde
from .distributions.lattice import (
    check_levels,
    level_index,
    log_evidence,
)
from .distributions.normal import Gaussian
from .numerics import (
    basis,
    divergence,
    float_dtype,
    hutchinson,
    pullbacks,
    standard_error,
)
from .sampling import prepare, reverse
from .schedules import Schedule
from .solvers import driver, noise_source, requirements
from .solvers.base import Info, Problem, Solver
from .solvers.ode import rk4
from .types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    Scalar,
    as_pytree,
    as_pytree_callable,
    combine,
    compiled,
    partition,
    pytree,
    static_field,
)

__all__ = [
    "ChangeOfVariables",
    "DensityState",
    "LogProbInfo",
    "lattice_log_prob",
    "log_prob",
]


def __dir__() -> list[str]:
    return __all__


DEFAULT = (rk4(), lambda schedule, solver: grids.log_snr(schedule, 48))
"""The default solver, and (schedule, solver) -> the default grid."""


class LogProbInfo(NamedTuple):
    """Details of a value of `log_prob`.

    Attributes:
      latent: x_T, the end of the probability flow from x, of its shape.
      log_det: ∫ div u dt along the way, ().
      standard_error: Standard error of the mean over probes, (). 0 for the
        exact divergence, NaN for one probe.
      run: The solver's evaluations and steps.
    """

    latent: Array
    log_det: Array
    standard_error: Array
    run: Info


DIVERGENCES = ("exact", "hutchinson", "hutchinson_forward")


@checks.arguments(
    divergence=(checks.choice, DIVERGENCES),
    probes=(checks.integer, 1),
    key=checks.optional(checks.key),
    chunk=checks.optional(checks.integer, 1),
    base=checks.optional(checks.has_methods, "log_prob(x)"),
    x=requirements.check_example,
)
def log_prob(
    denoiser: Denoiser,
    schedule: Schedule,
    x: ArrayLike,
    *,
    key: Key | None = None,
    divergence: str = "exact",
    probes: int = 1,
    solver: Solver | None = None,
    grid: ArrayLike | None = None,
    base: Any = None,
    info: bool = False,
    chunk: int | None = None,
) -> Any:
    """Log density of one example, in nats (Song et al. 2021, equation 39).

        log p(x) = log p_T(x_T) + ∫ div u(x_t, t) dt

    The integral runs along the probability flow from x upwards. The divergence
    is exact or Hutchinson's estimate of it (Grathwohl et al. 2019).

    For Rademacher probes the variance of one estimate is 2 Σ_{i≠j} S_ij², with
    S = ∫ sym(∂u/∂x) dt.

    Args:
      denoiser: (x, t) -> E[x_0 | x_t = x], any callable, as in `sample`.
      schedule: A schedule.
      x: One example, at time grid[-1]. The result is the log density at that
        noise level, to be compared with `target.noised(schedule, t_min)`.
      key: Typed key, for "hutchinson".
      divergence: "exact", with x.size pullbacks per stage, or "hutchinson",
        with `probes` of them. The probes are Rademacher, held fixed through
        the solve. For images take "hutchinson": the exact divergence is slow
        there, whatever `chunk` is. "hutchinson_forward" is the same estimate
        by forward differentiation. It needs less memory, and is far faster for
        convolutions on CPUs. The network must allow it, which those with fused
        attention kernels do not.
      probes: Number of probes.
      solver: One that consumes a velocity, default `rk4()`.
      grid: Decreasing times (N + 1,), walked backwards. It may not end at 0.
        It may start below t_max. Default: 48 steps uniform in log-SNR, or
        uniform in t where α(t_max) = 0.
      base: The distribution of x_T at T = grid[0], with log_prob(x). Default:
        N(0, σ(T)²), which differs from p_T by what the data leave there.
      info: True for (log p, LogProbInfo), with the standard error over probes.
      chunk: Pullbacks of the exact divergence at a time, to bound memory.
        Default: as many as hold 2^20 numbers.

    Returns:
      log p(x), shape ().

    Raises:
      ValueError: For an unknown divergence, a missing key or a bad grid.
      TypeError: For a solver that consumes no velocity, or a base without
        log_prob.

    Example:
      >>> xs = jnp.array([[1.0, 0.0], [-1.0, 0.5]])
      >>> lps = jax.vmap(lambda x: dj.log_prob(denoiser, schedule, x, chunk=1))(xs)
      >>> exact = jax.vmap(target.noised(schedule, schedule.t_min).log_prob)(xs)
      >>> bool((abs(lps - exact) < 0.02).all())
      True
    """
    checks.require(
        divergence == "exact" or key is not None,
        "key must be given for divergence='hutchinson', got None",
    )
    solver, grid = _prepare(solver, grid, denoiser, schedule)
    arrays, static = partition(
        (as_pytree_callable(denoiser), as_pytree(schedule), base)
    )
    forward, probes = divergence.endswith("forward"), divergence != "exact" and probes
    settings = _DensityRun(solver, static, int(probes), chunk, forward)
    result, report = _log_prob(settings, arrays, key, x, reverse(grid))
    driver.warn_if_exhausted(solver, report.run)
    return (result, report) if info else result


@checks.arguments(key=checks.key, x=requirements.check_example, levels=check_levels)
def lattice_log_prob(
    key: Key,
    denoiser: Denoiser,
    schedule: Schedule,
    x: ArrayLike,
    *,
    levels: ArrayLike,
    divergence: str = "hutchinson",
    probes: int = 8,
    solver: Solver | None = None,
    grid: ArrayLike | None = None,
    base: Any = None,
    info: bool = False,
    chunk: int | None = None,
) -> Any:
    """Lower bound of log P(x) for lattice data (Kingma et al. 2021, equations 8, 12).

        log P(x) ≥ E[log p_t(x_t) + Σ_i log P(x_i | x_{t,i}) − log q(x_t | x)],
        x_t ~ q(·|x), t = grid[-1], in nats

    One draw of Gaussian dequantisation gives one value of the expression in
    brackets. q is the schedule's transition from x to x_t, and P(x_i |
    x_{t,i}) is proportional to exp(−(x_{t,i} − α c_k)²/2σ²) over the levels
    c_k.

    P is the model's distribution over the lattice, P(x) = ∫ p_t(x_t) Π_i P(x_i
    | x_{t,i}) dx_t. It sums to one, so that −log₂ P is a code length. The
    bound of the data's own distribution holds on average over data, not for
    each x.

    Uniform dequantisation would need a density with edges at the boxes of the
    lattice. Gaussian noise does not. It loses as much as neighbouring levels
    overlap: choose σ/α at t about a sixth of their spacing.

    Args:
      key: Typed key, for the draw and the probes.
      denoiser: As in `log_prob`.
      schedule: As in `log_prob`.
      x: One example, of entries among levels. A traced entry that is no level
        has probability 0, and the result is −∞.
      levels: The values that an entry can take, (K,), increasing.
      divergence: As in `log_prob`.
      probes: As in `log_prob`.
      solver: As in `log_prob`.
      grid: As in `log_prob`.
      base: As in `log_prob`.
      info: True for (log P, LogProbInfo).
      chunk: As in `log_prob`.

    Returns:
      One draw of the bound, shape ().

    Raises:
      ValueError: If an entry of a concrete x is no level, and as `log_prob`.
      TypeError: As `log_prob`.

    References:
      Theis et al. 2016 and Ho et al. 2019 on dequantisation.

    Example:
      >>> lp = dj.likelihood.lattice_log_prob(
      ...     key, denoiser, schedule, [0.5, -0.5], levels=[-0.5, 0.5], grid=grid
      ... )
      >>> bool(jnp.isfinite(lp))
      True
    """
    level_index(x, levels)  # raises for a concrete entry that is no level
    solver, grid = _prepare(solver, grid, denoiser, schedule)
    arrays, static = partition(as_pytree(schedule))
    x_t, key_probes, offset = _noised(static, arrays, key, x, levels, grid)
    lp, details = log_prob(
        denoiser,
        schedule,
        x_t,
        key=key_probes,
        divergence=divergence,
        probes=probes,
        solver=solver,
        grid=grid,
        base=base,
        info=True,
        chunk=chunk,
    )
    return (lp + offset, details) if info else lp + offset


@compiled
def _noised(static, arrays, key, x, levels, grid):
    """(x_t at grid[-1], a key for probes, Σ_i log P(x_i | x_{t,i}) − log q(x_t | x)).

    The last is −∞ for an x off the levels.
    """
    schedule, t = combine(arrays, static), grid[-1]
    key_noise, key_probes = jax.random.split(key)
    noise = jax.random.normal(key_noise, x.shape, x.dtype)
    x_t = schedules.perturb(schedule, x, t, noise)
    sigma = schedule.sigma(t)
    decoded = log_evidence(x, noise, sigma / schedule.alpha(t), levels)
    encoded = Gaussian(0.0, sigma**2).log_prob(sigma * noise)
    return x_t, key_probes, decoded - encoded


def _prepare(solver, grid, denoiser, schedule):
    """`sampling.prepare` for a solver that can carry a density beside the state."""
    if solver is not None:
        requirements.check_solver("solver", solver, "velocity")
    return prepare(
        solver, grid, denoiser, schedule, default=DEFAULT, probability_flow=True
    )


class DensityState(NamedTuple):
    """A point and the integrals along its trajectory, or the rates of change of both.

    Attributes:
      x: The point.
      log_dets: ∫ tr ∂u/∂x dt, the log-determinant of the map to x. (P,) for P
        probes, (1,) for the exact trace.
      kinetic: ∫ ‖u‖² dt, (), or None where it is not integrated.
      jacobian: ∫ ‖∂u/∂x‖_F² dt, (), or None where it is not integrated.
    """

    x: Any
    log_dets: Any
    kinetic: Any = None
    jacobian: Any = None


@pytree
class ChangeOfVariables:
    """The field of a point and of its log density along dx/dt = u(x, t).

        d log p_t(x_t)/dt = −tr ∂u/∂x

    Maps (`DensityState`, t) to the rates of change of its entries. Those of
    `kinetic` and `jacobian` are computed where the state has both.

    Attributes:
      velocity: (x, t) -> u, of one example.
      probes: Directions of Hutchinson's estimate, (P, *x.shape), or None for
        the exact trace.
      chunk: Pullbacks of the exact trace at a time, see `numerics.divergence`.
      forward: See `numerics.hutchinson`. Reverse mode where the state has
        `jacobian`.

    References:
      Chen et al. 2018 (neural ODEs), equation 8. Grathwohl et al. 2019,
      equation 7. The two penalties are those of Finlay et al. 2020 (RNODE).
    """

    velocity: Any
    probes: Any
    chunk: int | None = static_field(default=None)
    forward: bool = static_field(default=False)

    def __call__(self, state: DensityState, t: Scalar) -> DensityState:
        """The rates of change at time t."""
        x = state.x
        field: Callable[[Array], Array] = lambda x: self.velocity(x, t)
        if state.jacobian is None:
            if self.probes is None:
                value, trace = divergence(field, x, self.chunk)
                return DensityState(value, trace[None])
            return DensityState(
                *hutchinson(field, x, self.probes, forward=self.forward)
            )
        exact = self.probes is None
        directions = basis(x) if exact else self.probes  # (P, *x.shape)
        value, rows = pullbacks(field, x, directions)  # εᵀ ∂u/∂x, (P, *x.shape)
        axes = tuple(range(1, rows.ndim))
        traces = jnp.sum(directions * rows, axes)  # (P,)
        squares = jnp.sum(rows**2, axes)  # (P,), E = ‖∂u/∂x‖_F² for probes
        if exact:
            traces, jacobian = jnp.sum(traces)[None], jnp.sum(squares)
        else:
            jacobian = jnp.mean(squares)
        return DensityState(value, traces, jnp.sum(value**2), jacobian)


class _DensityRun(NamedTuple):
    """Settings of a run, fixed at compilation."""

    solver: Solver
    static: Any  # of the denoiser, the schedule and the base
    probes: int  # 0 for the exact divergence
    chunk: int | None
    forward: bool


@compiled
def _log_prob(settings, arrays, key, x, ts):
    denoiser, schedule, base = combine(arrays, settings.static)
    probes, directions = settings.probes, None
    if probes:
        directions = jax.random.rademacher(key, (probes, *x.shape), float_dtype(x))
    velocity = sde.probability_flow(schedule, requirements.Checked(denoiser))
    field = ChangeOfVariables(velocity, directions, settings.chunk, settings.forward)
    (latent, log_dets, *_), run = driver.run(
        noise_source.source_of(None, x, ts),
        settings.solver,
        Problem(velocity=field),
        x=DensityState(x, jnp.zeros((max(probes, 1),), x.dtype)),
        ts=ts,
        path=False,
    )
    if base is None:
        base = Gaussian(0.0, schedules.prior_std(schedule, ts[-1]) ** 2)
    log_det = jnp.mean(log_dets)
    error = standard_error(log_dets) if probes else jnp.zeros(())
    details = LogProbInfo(latent, log_det, error, run)
    return base.log_prob(latent) + log_det, details
