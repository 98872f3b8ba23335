"""Solvers made of solvers: a Langevin corrector after each step, restarts, all steps at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, grids
from ..langevin.kernels import langevin_step
from ..types import Array
from . import driver, requirements
from .adaptive import forward_only
from .affine import NoiseLevel, noise_steps
from .ancestral import ddim, reverse_diffusion
from .annealed import score_at
from .base import Info, Solver, Traits, factory, needs, unless_zero, without_signal
from .noise_source import Draw
from .ode import heun

_REVERSE_DIFFUSION, _HEUN, _DDIM = reverse_diffusion(), heun(), ddim()

_CORRECTOR_DRAW, _CORRECTIONS = 3, 5
"""The first of a step's draws that belongs to correctors, and how many of them there are."""


@factory
def predictor_corrector(
    predictor: Solver = _REVERSE_DIFFUSION,
    corrections: int = 1,
    snr: float = 0.16,
    norms: str = "expected",
) -> Solver:
    """Predictor–corrector sampling (Song et al. 2021, Algorithms 2, 3 and 5).

    A step of `predictor`, then Langevin steps x ← x + ½ε ∇log p_s(x) + √ε z at the level reached. The factor α_i of
    the paper's VP corrector is left out.

    Args:
      predictor: Any solver of fixed steps.
      corrections: Langevin steps after each step, 1 to 5. There are none after a step to 0.
      snr: r, positive. It sets the size ε of a Langevin step.
      norms: "expected" for ε = 4 r² σ_s², from the expected norms of noise and score. Where the score is −x/σ_s²,
        N(0, v) then becomes N(0, v/(1 − r²)). "batch" for ε = 4 (r ‖z‖/‖s‖)², as score_sde does, with both norms
        averaged over the examples that `sample_many` maps over. A sample then depends on its neighbours, and
        `sample_many` takes neither chunk nor mesh.

    Returns:
      A solver with one evaluation per Langevin step beside the predictor's. No order is declared: the corrector's bias
      does not vanish with the step.

    Raises:
      TypeError: If the predictor is no solver of fixed steps.
      ValueError: If another argument is out of range.
    """
    check_inner("predictor", predictor, remembering=True)
    checks.integer("corrections", corrections, 1, _CORRECTIONS)
    checks.positive("snr", snr)
    checks.choice("norms", norms, ("expected", "batch"))

    def prepare(problem, ts):
        steps = noise_steps(problem, ts)
        inner = predictor.prepare(driver.derive(predictor, problem), ts)
        return inner, steps.end, steps.at_zero

    def init(problem, x, inputs):
        return predictor.init(driver.derive(predictor, problem), x, inputs[0])

    def step(problem, inputs, draw, x, state):
        inner, at, at_zero = inputs
        x, state = predictor.step(
            driver.derive(predictor, problem), inner, draw, x, state
        )

        def correct(x):
            for i in range(corrections):
                score = score_at(problem, at, x)
                z = draw(_CORRECTOR_DRAW + i)
                size = (
                    4
                    * (
                        snr
                        * (
                            at.sigma
                            if norms == "expected"
                            else draw.mean(_norm(z)) / draw.mean(_norm(score))
                        )
                    )
                    ** 2
                )
                x = langevin_step(x, score, size, z)
            return x

        return unless_zero(at_zero, correct, x), state

    def evaluations(steps, to_zero=False):
        return predictor.evaluations(steps, to_zero) + corrections * (steps - to_zero)

    def check_grid(schedule, ts):
        needs("predictor_corrector", finite_start=True)(schedule, ts)
        if predictor.traits.check_grid is not None:
            predictor.traits.check_grid(schedule, ts)

    name = f"predictor_corrector({predictor.name})"
    return Solver(name, "denoiser", None, True, evaluations, prepare, step, init, traits=Traits(
        check_grid, predictor.traits.past, composed=True, across_examples=norms == "batch"))  # fmt: skip


def _norm(x):
    return jnp.sqrt(jnp.sum(x**2))


@factory
def restart(
    solver: Solver = _HEUN,
    *,
    t_low: float = 0.06,
    t_high: float = 0.3,
    repeats: int = 2,
    steps: int = 4,
) -> Solver:
    """Restart sampling (Xu et al. 2023, Algorithm 1).

    On crossing `t_low`, at the first grid time s with s ≤ t_low, adds noise up to `t_high` and integrates back down to
    s, `repeats` times:

        y ← y + √(ρ_high² − ρ_s²) z,    y = x/α, ρ = σ/α

    Args:
      solver: Integrates between restarts. Deterministic, and without memory of earlier steps.
      t_low: Where to restart. On an EDM schedule t is σ, as the paper's t_min and t_max are.
      t_high: Where a restart begins, above t_low and within the schedule's interval.
      repeats: How many restarts, 1 to 8.
      steps: Of the way back down, on a Karras grid (ρ = 7).

    Returns:
      A stochastic solver. No order is declared.

    Raises:
      TypeError: If `solver` is stochastic, remembers earlier steps or is adaptive.
      ValueError: Unless 0 < t_low < t_high, and when used on a grid that does not pass t_low at a time above 0.
    """
    check_inner("solver", solver)
    if solver.stochastic:
        raise TypeError(
            f"solver must be deterministic to be restarted, got {solver.name}"
        )
    checks.positive("t_low", t_low)
    checks.greater("t_high", t_high, "t_low", t_low)
    checks.integer("repeats", repeats, 1, 8)
    checks.integer("steps", steps, 1)

    def prepare(problem, ts):
        inner = driver.derive(solver, problem)
        t, s = ts[:-1], ts[1:]
        here = (s <= t_low) & (t_low < t) & (s > 0)
        low = jnp.max(jnp.where(here, s, 0))
        low = jnp.where(low > 0, low, t_low)
        grid = grids.karras_between(problem.schedule, steps, t_high, low)
        again = solver.prepare(inner, grid)
        alpha, sigma = (
            f(jnp.stack([grid[0], low]))
            for f in (problem.schedule.alpha, problem.schedule.sigma)
        )
        ratio = alpha[0] / alpha[1]
        lift = (
            jnp.broadcast_to(ratio, t.shape),
            jnp.broadcast_to(
                jnp.sqrt(sigma[0] ** 2 - (ratio * sigma[1]) ** 2), t.shape
            ),
        )
        shared = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (t.shape[0], *leaf.shape)), again
        )
        return solver.prepare(inner, ts), s == 0, here, lift, shared

    def step(problem, inputs, draw, x, state):
        once, to_zero, here, (keep, std), again = inputs
        inner = driver.derive(solver, problem)

        def one(at, x):
            return solver.step(inner, at, draw, x, solver.init(inner, x, at))[0]

        x = one(once, x)

        def go_back(x):
            for k in range(repeats):
                start = keep * x + std * draw(k)
                x, _ = jax.lax.scan(lambda x, at: (one(at, x), None), start, again)
            return x

        cost = jnp.where(
            to_zero, 1, solver.evaluations(1)
        ) + here * repeats * solver.evaluations(steps)
        return jax.lax.cond(here, go_back, lambda x: x, x), (
            state[0] + cost,
            state[1] + 1,
        )

    def init(problem, x, inputs):
        return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

    def report(state):
        return Info(*state, 0, False)

    def evaluations(count, to_zero=False):
        # a grid crosses t_low once, or `check_grid` raises
        return solver.evaluations(count, to_zero) + repeats * solver.evaluations(steps)

    def check_grid(schedule, ts):
        if (
            not checks.is_traced(schedule)
            and not schedule.t_min <= t_high <= schedule.t_max
        ):
            accepted = f"[{schedule.t_min}, {schedule.t_max}]"
            raise ValueError(
                f"t_high must lie within the schedule's interval {accepted}, got {t_high}"
            )
        if without_signal(
            schedule, ts.dtype.type(t_high)
        ):  # as `needs` asks of ts[0]: one program for both
            raise ValueError(f"t_high must lie below t={t_high}: α = 0 there")
        if not np.any((ts > 0) & (ts <= t_low)) or ts[0] <= t_low:
            raise ValueError(
                f"grid must pass t_low={t_low} at a time above 0 for restart, got {ts[0]} … {ts[-1]}"
            )
        needs("restart", finite_start=True)(schedule, ts)
        if solver.traits.check_grid is not None:
            solver.traits.check_grid(schedule, ts)

    name = f"restart({solver.name})"
    return Solver(
        name,
        "denoiser",
        None,
        True,
        evaluations,
        prepare,
        step,
        init,
        report,
        traits=Traits(check_grid, composed=True),
    )


@factory
def picard(solver: Solver = _DDIM, window: int = 16, tolerance: float = 1e-3) -> Solver:
    """ParaDiGMS: all steps of a solver in parallel, by Picard iteration (Shih et al. 2023, Algorithm 1).

        x_j ← x_0 + Σ_{i<j} (Φ_i(x_i) − x_i),    Φ_i the i-th step of `solver`

    A window of steps is iterated at once and slides past the times that have converged. Its first step is exact, so
    that N rounds suffice. Each step's noise is drawn once: a stochastic solver keeps its sample. The reverse-mode
    derivative raises TypeError: use `jax.jvp`, or `solver` itself.

    Args:
      solver: One that needs no memory of earlier steps.
      window: Steps in parallel, 1 or more.
      tolerance: A time has converged where the root mean square change of its state is at most tolerance · max(1, σ).
        0 gives the result of `solver` up to rounding.

    Returns:
      A solver. `info=True` reports its evaluations, and its rounds as `accepted`. No order is declared.

    Raises:
      TypeError: If `solver` remembers earlier steps or is adaptive.
      ValueError: If window is below 1 or tolerance negative.
    """
    check_inner("solver", solver)
    checks.integer("window", window, 1)
    checks.non_negative("tolerance", tolerance)

    def solve(source, problem, x, ts):
        inner = driver.derive(solver, problem)
        inputs = solver.prepare(inner, ts)
        total = ts.shape[0] - 1
        width = min(window, total)
        scales = tolerance * jnp.maximum(1, problem.schedule.sigma(ts[1:]))

        def phi(index, x):
            at = jax.tree.map(lambda leaf: leaf[index], inputs)
            state = solver.init(inner, x, at)
            return solver.step(
                inner, at, Draw(source, index.astype(jnp.uint32)), x, state
            )[0]

        def unfinished(carry):
            return carry[1] < total

        def sweep(carry):
            states, first, rounds = carry
            base = jnp.minimum(
                first, total - width
            )  # near the end the window keeps its width
            index = base + jnp.arange(width)
            old = jax.lax.dynamic_slice_in_dim(states, base, width + 1)
            moves = jax.vmap(phi)(index, old[:-1]) - old[:-1]
            moves = jnp.where(
                _column(index < first, x), old[1:] - old[:-1], moves
            )  # what stands, stands
            new = old[0] + jnp.cumsum(moves, 0)
            change = jnp.sqrt(jnp.mean((new - old[1:]).reshape(width, -1) ** 2, -1))
            settled = (change <= scales[index]) | (index <= first)
            count = jnp.sum(jnp.cumprod(settled)).astype(first.dtype)
            states = jax.lax.dynamic_update_slice_in_dim(states, new, base + 1, 0)
            later = _column(jnp.arange(total + 1) > base + width, x)
            return jnp.where(later, new[-1], states), base + count, rounds + 1

        guess = jnp.broadcast_to(x, (total + 1, *x.shape))
        zero = jnp.zeros((), jnp.int32)
        states, _, rounds = jax.lax.while_loop(unfinished, sweep, (guess, zero, zero))
        states = forward_only(name, f"{solver.name} itself", states)
        return states, Info(
            rounds * width * solver.evaluations(1),
            rounds,
            zero,
            jnp.zeros((), bool),
        )

    def check_grid(schedule, ts):
        if solver.traits.check_grid is not None:
            solver.traits.check_grid(schedule, ts)

    name = f"picard({solver.name})"
    return Solver(name, "denoiser", None, solver.stochastic, lambda steps, to_zero=False: None,
                  _nothing, _nothing, solve=solve, traits=Traits(check_grid, composed=True))  # fmt: skip


def _nothing(*_: Any) -> Any:
    raise NotImplementedError("this solver takes all steps at once")


def _column(mask, x):
    return mask.reshape(-1, *(1,) * x.ndim)


def transition_up(low: NoiseLevel, high: NoiseLevel) -> tuple[Array, Array]:
    """The forward transition from one noise level to a higher one.

        x ← keep x + std z,    keep = α_high/α_low,  std² = σ_high² − keep² σ_low²

    Args:
      low: The noise level of x.
      high: A higher one, of the same shape.

    Returns:
      (keep, std). Both are finite where α is 0, which keeps nothing.
    """
    keep = high.alpha / jnp.where(low.alpha == 0, 1, low.alpha)
    keep = jnp.where(low.alpha == 0, 0, keep)
    return keep, jnp.sqrt(jnp.maximum(high.sigma**2 - (keep * low.sigma) ** 2, 0))


def check_inner(name, solver, remembering=False):
    """Refuse what does not take one fixed step after another, or remembers earlier ones where it may not."""
    requirements.check_solver(solver)
    if solver.traits.composed:
        raise TypeError(
            f"{name} must not itself be made of solvers, as {solver.name} is"
        )
    if solver.traits.paired:
        raise TypeError(
            f"{name} must take a denoiser that returns D alone, {solver.name} needs a pair"
        )
    if solver.evaluations(1) is None:
        raise TypeError(
            f"{name} must take one fixed step after another, got {solver.name}"
        )
    if solver.traits.past and not remembering:
        raise TypeError(
            f"{name} must not remember earlier steps, as {solver.name} does"
        )
