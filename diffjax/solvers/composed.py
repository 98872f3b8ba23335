"""Solvers made of other solvers: predictor–corrector, restart and Picard iteration."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, grids
from ..grids.steps import noise_level, steps_of
from ..langevin.kernels import langevin_step
from ..types import Array
from . import driver
from .adaptive import forward_only
from .affine import NoiseLevel, noise_steps
from .ancestral import ddim, reverse_diffusion
from .annealed import score_at
from .base import Info, Solver, Traits, factory, needs, unless_zero, without_signal
from .noise_source import Draw
from .ode import heun
from .requirements import INNER, check_solver

__all__ = ["picard", "predictor_corrector", "restart"]

_REVERSE_DIFFUSION, _HEUN, _DDIM = reverse_diffusion(), heun(), ddim()


# ---------------------------------------------------------------- parts for all three


def transition_up(low: NoiseLevel, high: NoiseLevel) -> tuple[Array, Array]:
    """The forward transition from one noise level to a higher one.

        x ← keep x + std z,    keep = α_high/α_low,  std² = σ_high² − keep² σ_low²

    Args:
      low: The noise level of x.
      high: A higher one, of the same shape.

    Returns:
      (keep, std). Both are finite where α is 0, from where nothing is kept.
    """
    keep = high.alpha / jnp.where(low.alpha == 0, 1, low.alpha)
    keep = jnp.where(low.alpha == 0, 0, keep)
    return keep, jnp.sqrt(jnp.maximum(high.sigma**2 - (keep * low.sigma) ** 2, 0))


def _with_grid_of(inner: Solver, check: Callable) -> Callable:
    """The check of a grid, followed by that of the inner solver."""

    def check_grid(schedule, ts):
        check(schedule, ts)
        inner.traits.check_grid(schedule, ts)

    return check_grid


# ------------------------------------------------------------------ predictor–corrector


_CORRECTOR_DRAW, _CORRECTIONS = 3, 5
"""The first of a step's draws that belongs to correctors, and their number."""


@dataclasses.dataclass(frozen=True)
class _Corrected:
    predictor: Solver
    corrections: int
    snr: float
    norms: str


class _CorrectedInputs(NamedTuple):
    predictor: Any
    end: NoiseLevel
    at_zero: Array | None


@factory
@checks.arguments(
    predictor=(check_solver, *INNER),
    corrections=(checks.integer, 1, _CORRECTIONS),
    snr=checks.positive,
    norms=(checks.choice, ("expected", "batch")),
)
def predictor_corrector(
    predictor: Solver = _REVERSE_DIFFUSION,
    corrections: int = 1,
    snr: float = 0.16,
    norms: str = "expected",
) -> Solver:
    """Predictor–corrector sampling (Song et al. 2021, Algorithms 2, 3 and 5).

        x ← x + ½ ε ∇log p_s(x) + √ε z,  `corrections` times after each step to s

    Args:
      predictor: Any solver of fixed steps.
      corrections: Langevin steps after each step, 1 to 5. There are none after
        a step to 0.
      snr: r, positive. It sets the size ε of a Langevin step.
      norms: "expected" for ε = 4 r² σ_s², from the expected norms of noise and
        score. Where the score is −x/σ_s², N(0, v) then becomes N(0, v/(1 −
        r²)). "batch" for ε = 4 (r ‖z‖/‖s‖)², as score_sde does, with both
        norms averaged over the examples that `sample_many` maps over. A sample
        then depends on the others, and `sample_many` takes neither chunk nor
        mesh.

    Returns:
      A solver with one evaluation per Langevin step beside the predictor's. No
      order is declared: the corrector's bias does not vanish with the step.

    Raises:
      TypeError: If the predictor is no solver of fixed steps.
      ValueError: If another argument is out of range.

    References:
      The factor α_i of the paper's VP corrector is left out.

    Example:
      >>> solver = dj.solvers.predictor_corrector(dj.solvers.ddim(), corrections=2)
      >>> solver.evaluations(8)
      24
    """
    settings = _Corrected(predictor, corrections, snr, norms)
    needs_signal = needs("predictor_corrector", finite_start=True)
    return Solver(
        f"predictor_corrector({predictor.name})",
        "denoiser",
        None,
        True,
        functools.partial(_corrected_evaluations, settings),
        functools.partial(_prepare_corrected, settings),
        functools.partial(_corrected_step, settings),
        functools.partial(_start_corrected, settings),
        traits=Traits(
            _with_grid_of(predictor, needs_signal),
            predictor.traits.past,
            composed=True,
            across_examples=norms == "batch",
        ),
    )


def _corrected_step(settings, problem, inputs, draw, x, state):
    """The predictor's step, then Langevin steps at the noise level where it ends."""
    predictor = settings.predictor
    problem_of_predictor = driver.derive(predictor, problem)
    x, state = predictor.step(problem_of_predictor, inputs.predictor, draw, x, state)

    def correct(x):
        for i in range(settings.corrections):
            score = score_at(problem, inputs.end, x)
            z = draw(_CORRECTOR_DRAW + i)
            noise_to_score = inputs.end.sigma
            if settings.norms == "batch":
                noise_to_score = draw.mean(_norm(z)) / draw.mean(_norm(score))
            size = 4 * (settings.snr * noise_to_score) ** 2
            x = langevin_step(x, score, size, z)
        return x

    return unless_zero(inputs.at_zero, correct, x), state


def _norm(x):
    return jnp.sqrt(jnp.sum(x**2))


def _prepare_corrected(settings, problem, ts):
    predictor, steps = settings.predictor, noise_steps(problem, ts)
    inputs = predictor.prepare(driver.derive(predictor, problem), ts)
    return _CorrectedInputs(inputs, steps.end, steps.at_zero)


def _start_corrected(settings, problem, x, inputs):
    predictor = settings.predictor
    return predictor.init(driver.derive(predictor, problem), x, inputs.predictor)


def _corrected_evaluations(settings, steps, to_zero=False):
    corrections = settings.corrections * (steps - to_zero)
    return settings.predictor.evaluations(steps, to_zero) + corrections


# ------------------------------------------------------------------------------ restart


@dataclasses.dataclass(frozen=True)
class _Restart:
    solver: Solver
    t_low: float
    t_high: float
    repeats: int
    steps: int


class _RestartInputs(NamedTuple):
    """Coefficients of each step, with a leading axis of N steps."""

    step: Any  # of the step itself
    to_zero: Array  # (N,)
    crosses: Array  # (N,), whether the step crosses t_low
    up: tuple[Array, Array]  # (keep, std) of the noise up to t_high, (N,) each
    down: Any  # of the way back, (N, steps)


@factory
@checks.arguments(
    solver=(check_solver, *INNER, "memoryless", "deterministic"),
    t_low=checks.positive,
    repeats=(checks.integer, 1, 8),
    steps=(checks.integer, 1),
)
def restart(
    solver: Solver = _HEUN,
    *,
    t_low: float = 0.06,
    t_high: float = 0.3,
    repeats: int = 2,
    steps: int = 4,
) -> Solver:
    """Restart sampling (Xu et al. 2023, Algorithm 1).

        y ← y + √(ρ_high² − ρ_s²) z,    y = x/α, ρ = σ/α

    On crossing `t_low`, at the first grid time s with s ≤ t_low, adds noise up
    to `t_high` and integrates back down to s, `repeats` times.

    Args:
      solver: Integrates between restarts. Deterministic, and without memory of
        earlier steps.
      t_low: Where to restart. On an EDM schedule t is σ, as the paper's t_min
        and t_max are.
      t_high: Where a restart begins, above t_low and within the schedule's
        interval.
      repeats: Number of restarts, 1 to 8.
      steps: Number of steps of each way back down, on a Karras grid (ρ = 7).

    Returns:
      A stochastic solver. No order is declared.

    Raises:
      TypeError: If `solver` is stochastic, remembers earlier steps or is
        adaptive.
      ValueError: Unless 0 < t_low < t_high, and when used on a grid that does
        not pass t_low at a time above 0.

    Example:
      >>> solver = dj.solvers.restart(t_low=0.1, t_high=0.4, repeats=1)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    checks.greater("t_high", t_high, "t_low", t_low)
    settings = _Restart(solver, t_low, t_high, repeats, steps)
    return Solver(
        f"restart({solver.name})",
        "denoiser",
        None,
        True,
        functools.partial(_restart_evaluations, settings),
        functools.partial(_prepare_restart, settings),
        functools.partial(_restart_step, settings),
        lambda problem, x, inputs: (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)),
        lambda state: Info(*state, 0, False),
        traits=Traits(
            _with_grid_of(solver, functools.partial(_check_restart_grid, settings)),
            composed=True,
        ),
    )


def _restart_step(settings, problem, inputs, draw, x, state):
    """A step, then noise up to t_high and the way back where it crosses t_low."""
    solver, repeats = settings.solver, settings.repeats
    inner = driver.derive(solver, problem)

    def step(x, at):
        return solver.step(inner, at, draw, x, solver.init(inner, x, at))[0], None

    def restart_from(x):
        keep, std = inputs.up
        for k in range(repeats):
            x = keep * x + std * draw(k)
            x, _ = jax.lax.scan(step, x, inputs.down)
        return x

    x, _ = step(x, inputs.step)
    x = jax.lax.cond(inputs.crosses, restart_from, lambda x: x, x)
    evaluations, count = state
    cost = jnp.where(inputs.to_zero, 1, solver.evaluations(1))
    cost += inputs.crosses * repeats * solver.evaluations(settings.steps)
    return x, (evaluations + cost, count + 1)


def _prepare_restart(settings, problem, ts):
    inner = driver.derive(settings.solver, problem)
    steps = steps_of(ts, problem.zero_end)
    count = ts.shape[0] - 1
    crosses = (steps.end <= settings.t_low) & (settings.t_low < steps.start)
    low = jnp.max(jnp.where(crosses, steps.end, 0))
    low = jnp.where(low > 0, low, settings.t_low)  # in a grid that does not cross it
    down = grids.karras_between(problem.schedule, settings.steps, settings.t_high, low)
    ends = noise_level(problem.schedule, jnp.stack([down[0], low]))
    high, low = (NoiseLevel(*(leaf[i] for leaf in ends)) for i in (0, 1))
    # All N steps share the one way back: (…) -> (N, …)
    shared = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)),
        (transition_up(low, high), settings.solver.prepare(inner, down)),
    )
    to_zero = jnp.zeros(count, bool) if steps.at_zero is None else steps.at_zero
    step = settings.solver.prepare(inner, ts)
    return _RestartInputs(step, to_zero, crosses, *shared)


def _restart_evaluations(settings, steps, to_zero=False):
    # A grid crosses t_low once, or the check of the grid raises.
    evaluations = settings.solver.evaluations
    return evaluations(steps, to_zero) + settings.repeats * evaluations(settings.steps)


def _check_restart_grid(settings, schedule, ts):
    t_low, t_high = settings.t_low, settings.t_high
    grids.check_interval("t_high", np.array([t_high]), schedule)
    # In the grid's dtype, as `needs` calls it with ts[0]: one program serves both.
    checks.require(
        not without_signal(schedule, ts.dtype.type(t_high)),
        f"t_high must lie below t={t_high}: α = 0 there",
    )
    checks.require(
        np.any((ts > 0) & (ts <= t_low)) and ts[0] > t_low,
        f"grid must pass t_low={t_low} at a time above 0 for restart, "
        f"got {ts[0]} … {ts[-1]}",
    )
    needs("restart", finite_start=True)(schedule, ts)


# ------------------------------------------------------------------------------- picard


@dataclasses.dataclass(frozen=True)
class _Picard:
    solver: Solver
    window: int
    tolerance: float


class _Window(NamedTuple):
    """The state of Picard's iteration."""

    states: Array  # (N + 1, *x.shape)
    first: Array  # (), number of the first step of the window
    rounds: Array  # ()


@factory
@checks.arguments(
    solver=(check_solver, *INNER, "memoryless"),
    window=(checks.integer, 1),
    tolerance=checks.non_negative,
)
def picard(solver: Solver = _DDIM, window: int = 16, tolerance: float = 1e-3) -> Solver:
    """ParaDiGMS, all steps of a solver in parallel (Shih et al. 2023, Algorithm 1).

        x_j ← x_0 + Σ_{i<j} (Φ_i(x_i) − x_i),    Φ_i the i-th step of `solver`

    A window of steps is iterated at once and slides past the times that have
    converged. Its first step is exact, so that N rounds suffice. The noise of
    each step is drawn once: a stochastic solver keeps its sample.

    The reverse-mode derivative raises TypeError: use `jax.jvp`, or `solver`
    itself.

    Args:
      solver: One that needs no memory of earlier steps.
      window: Steps in parallel, 1 or more.
      tolerance: A time has converged where the root mean square change of its
        state is at most tolerance · max(1, σ). 0 gives the result of `solver`
        up to rounding.

    Returns:
      A solver. `info=True` reports its evaluations, and its rounds as
      `accepted`. No order is declared.

    Raises:
      TypeError: If `solver` remembers earlier steps or is adaptive.
      ValueError: If window is below 1 or tolerance negative.

    Example:
      >>> x, info = dj.sample(
      ...     key, denoiser, schedule, solver=dj.solvers.picard(window=8), grid=grid,
      ...     shape=(2,), info=True,
      ... )
      >>> bool(info.accepted <= 8)  # rounds of 8 steps in parallel
      True
    """
    return Solver(
        f"picard({solver.name})",
        "denoiser",
        None,
        solver.stochastic,
        lambda steps, to_zero=False: None,
        _no_single_step,
        _no_single_step,
        solve=functools.partial(_picard_solve, _Picard(solver, window, tolerance)),
        traits=Traits(solver.traits.check_grid, composed=True),
    )


def _picard_solve(settings, source, problem, x, ts):
    solver, inner = settings.solver, driver.derive(settings.solver, problem)
    inputs = solver.prepare(inner, ts)
    count = ts.shape[0] - 1
    width = min(settings.window, count)
    tolerances = settings.tolerance * jnp.maximum(1, problem.schedule.sigma(ts[1:]))

    def phi(index, x):
        at = jax.tree.map(lambda leaf: leaf[index], inputs)
        draw = Draw(source, index.astype(jnp.uint32))
        return solver.step(inner, at, draw, x, solver.init(inner, x, at))[0]

    zero = jnp.zeros((), jnp.int32)
    guess = jnp.broadcast_to(x, (count + 1, *x.shape))
    states, _, rounds = jax.lax.while_loop(
        lambda window: window.first < count,
        functools.partial(_picard_round, phi, tolerances, width),
        _Window(guess, zero, zero),
    )
    states = forward_only(f"picard({solver.name})", f"{solver.name} itself", states)
    evaluations = rounds * width * solver.evaluations(1)
    return states, Info(evaluations, rounds, zero, jnp.zeros((), bool))


def _picard_round(phi, tolerances, width, window):
    """One round over the steps of a window, which then slides.

    x_j ← x_base + Σ_{base≤i<j} (Φ_i(x_i) − x_i)
    """
    states, first, rounds = window
    count = tolerances.shape[0]
    base = jnp.minimum(first, count - width)  # near the end the window keeps its width
    index = base + jnp.arange(width)
    old = jax.lax.dynamic_slice_in_dim(states, base, width + 1)  # (width + 1, …)
    moves = jax.vmap(phi)(index, old[:-1]) - old[:-1]
    converged = _column(index < first, old[0])
    moves = jnp.where(converged, old[1:] - old[:-1], moves)
    new = old[0] + jnp.cumsum(moves, 0)
    change = jnp.sqrt(jnp.mean((new - old[1:]).reshape(width, -1) ** 2, -1))  # (width,)
    settled = (change <= tolerances[index]) | (index <= first)
    slide = jnp.sum(jnp.cumprod(settled)).astype(first.dtype)
    states = jax.lax.dynamic_update_slice_in_dim(states, new, base + 1, 0)
    # The window's last state is the guess for all later times.
    later = _column(jnp.arange(count + 1) > base + width, old[0])
    return _Window(jnp.where(later, new[-1], states), base + slide, rounds + 1)


def _no_single_step(*_: Any) -> Any:
    raise TypeError("picard takes all steps at once: run it by its `solve` only")


def _column(mask, x):
    """(n,) -> (n, 1, …), to select among n states like x."""
    return mask.reshape(-1, *(1,) * x.ndim)
