"""The driver: one `lax.scan` of any solver over any monotone grid.

`integrate` runs a solver at once, `start` and `advance` in parts, `run` under
a transformation.
"""

import bisect
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, grids
from ..types import (
    Array,
    ArrayLike,
    Key,
    PyTree,
    combine,
    compiled,
    partition,
)
from . import requirements
from .base import Info, Problem, Solver, is_semilinear
from .noise_source import Draw, Source, source_of
from .problems import as_problem, derive, diffusion
from .requirements import Checked

__all__ = [
    "Progress",
    "advance",
    "diffusion",
    "integrate",
    "start",
    "steps_within",
]


def integrate(
    key: Key | None,
    solver: Solver,
    problem: Any,
    *,
    x: PyTree,
    ts: ArrayLike,
    path: bool = False,
    info: bool = False,
    noise: Any = None,
    remat: bool = False,
) -> Any:
    """Run a solver over the times of a grid.

    An SDE is read as Itô's. Where its diffusion depends on x, only
    `euler_maruyama` converges to it. Noise is never dropped at a non-zero end.
    To stop on the way and continue later, see `start` and `advance`.

    Args:
      key: A typed key. None for a deterministic solver and where `noise` is
        given.
      solver: A solver such as `heun()`.
      problem: An `SDE`, a velocity (x, t) -> dx/dt, or a `Problem`.
      x: One example at ts[0]: an array, or any pytree for an ODE solver.
        Promoted to float32 at least, float64 under x64.
      ts: Times (N + 1,), strictly monotone. Where the problem states a
        denoiser the last may be exactly 0, and the last step then returns D.
      path: Whether to return the states at all N + 1 times, on a new leading
        axis.
      info: Whether to return (result, Info).
      noise: The solver's noise, in place of draws from the key. An array (N,
        draws, *x.shape) of standard normals, of which entry [n, i] is draw i
        of step n, or a function (n, i) -> array of x's shape, or a
        `noise.brownian` path, so that a finer grid or another solver follows
        the same Brownian motion. See `noise_source.Source` for the meaning of
        a draw.
      remat: Whether a gradient through the run computes each step again. It
        then keeps the states between steps, and of one step at a time what is
        inside of the denoiser. The gradient is the same.

    Returns:
      x at ts[-1], of x's shape. With `path` all states, with `info` a pair.

    Raises:
      TypeError: If the solver cannot take the problem, the noise or remat.
      ValueError: If the key is missing, the grid is not strictly monotone, x
        is not finite, or noise has another shape or too few draws.

    Example:
      >>> z = jax.random.normal(key, (8, 1, 2))  # one draw for each of 8 steps
      >>> problem = dj.solvers.diffusion(schedule, denoiser)
      >>> solver, x = dj.solvers.ddim(1.0), jnp.ones(2)
      >>> x = dj.solvers.integrate(None, solver, problem, x=x, ts=grid, noise=z)
    """
    key, problem, x, ts, zero_end, noise = _checked(key, solver, problem, x, ts, noise)
    # arrays are traced, the rest is static: equal problems share a program
    arrays, static = partition((problem, noise))
    settings = _Settings(bool(path), zero_end, requirements.check_remat(solver, remat))
    result, report = _integrate(solver, static, settings, arrays, key, x, ts)
    warn_if_exhausted(solver, report)
    return (result, report) if info else result


class Progress(NamedTuple):
    """A run that has been stopped. A pytree of arrays.

    Attributes:
      x: The state at grid time ts[step].
      memory: The memory of the solver, its state between steps.
      step: How many steps have been taken.
    """

    x: PyTree
    memory: PyTree
    step: Array


@checks.arguments(solver=(requirements.check_solver, "stoppable"))
def start(solver: Solver, problem: Any, *, x: PyTree, ts: ArrayLike) -> Progress:
    """Start a run that `advance` continues.

    To take `sample(key, …)` in parts: `key, key_init = jax.random.split(key)`,
    the first for `advance`. Where it has no x_init, x =
    schedules.prior_std(schedule, ts[0]) * jax.random.normal(key_init, shape).

    Args:
      solver: A solver that takes one step after another: any but `picard`.
      problem: As in `integrate`.
      x: One example at ts[0].
      ts: The times (N + 1,) of the whole run.

    Returns:
      The state of the run, a pytree of arrays. It can be saved, and mapped
      over with `jax.vmap`.

    Raises:
      TypeError: If the solver cannot be stopped, or cannot take the problem.
      ValueError: If the grid is not strictly monotone or x is not finite.

    Example:
      >>> problem = dj.solvers.diffusion(schedule, denoiser)
      >>> solver = dj.solvers.dpmpp_2m()
      >>> run = dj.solvers.start(solver, problem, x=jnp.ones(2), ts=grid)
      >>> half = dj.solvers.advance(None, solver, run, problem, ts=grid, steps=4)
      >>> end = dj.solvers.advance(None, solver, half, problem, ts=grid)
      >>> whole = dj.solvers.integrate(None, solver, problem, x=jnp.ones(2), ts=grid)
      >>> bool((end.x == whole).all())
      True
    """
    _, problem, x, ts, zero_end, _ = _checked(
        None, solver, problem, x, ts, None, keyless=True
    )
    arrays, static = partition((problem, None))
    memory = _start(solver, static, zero_end, arrays, x, ts)
    return Progress(x, memory, np.zeros((), np.int32))


@checks.arguments(
    solver=(requirements.check_solver, "stoppable"),
    progress=(checks.made_by, Progress, "solvers.start"),
    steps=checks.optional(checks.integer, 1),
)
def advance(
    key: Key | None,
    solver: Solver,
    progress: Progress,
    problem: Any,
    *,
    ts: ArrayLike,
    steps: int | None = None,
    noise: Any = None,
) -> Progress:
    """Take the next steps of a run.

    In however many parts, the result is the whole run's bit for bit. The
    number of steps is not compiled in: all parts of a run share one program.
    For previews, look at `x` between parts. An adaptive solver can be stopped
    at the times of its grid. Not reverse-differentiable, see `integrate`.

    Args:
      key: As in `integrate`, the same for all parts.
      solver: The solver that `start` was called with.
      progress: The run so far, as returned by `start` or `advance`.
      problem: As in `integrate`.
      ts: The times (N + 1,) of the whole run.
      steps: How many steps to take, by default all that are left.
      noise: As in `integrate`, for the whole run.

    Returns:
      The run after these steps. Its `x` is the state at ts[step].

    Raises:
      TypeError: If progress was not made by `start`, or the solver cannot be
        stopped or cannot take the problem.
      ValueError: If fewer steps are left, or as `integrate`.

    Example:
      >>> problem = dj.solvers.diffusion(schedule, denoiser)
      >>> solver = dj.solvers.ddim(1.0)
      >>> run = dj.solvers.start(solver, problem, x=jnp.ones(2), ts=grid)
      >>> for _ in range(4):  # a preview after every second of 8 steps
      ...     run = dj.solvers.advance(key, solver, run, problem, ts=grid, steps=2)
      ...     preview = denoiser(run.x, grid[run.step])
      >>> int(run.step)
      8
    """
    x = progress.x
    key, problem, _, ts, zero_end, noise = _checked(
        key, solver, problem, x, ts, noise, seen=True
    )
    last = _last_step(progress.step, steps, ts.shape[0] - 1)
    arrays, static = partition((problem, noise))
    return _advance(solver, static, zero_end, arrays, key, progress, ts, last)


def _last_step(step, steps, total):
    """The step after which to stop."""
    step = step if checks.is_traced(step) else np.asarray(step)
    if not checks.is_traced(step):
        taken = step.max()
        checks.require(
            taken + (steps or 0) <= total,
            f"steps must be at most those left of the whole run's ts, got {steps} "
            f"where {taken} of {total} have been taken",
        )
    return np.int32(total) if steps is None else step + np.int32(steps)


def _checked(key, solver, problem, x, ts, noise, *, keyless=False, seen=False):
    """The arguments of a run, checked: (key, problem, x, ts, zero_end, noise).

    keyless: no noise will be drawn. seen: x has been checked before.
    """
    requirements.check_solver("solver", solver)
    problem = as_problem(problem)
    requirements.check_consumes(solver, problem)
    requirements.check_pairing(solver, problem.denoiser)
    key = key if keyless else requirements.check_key(solver, key, noise)
    x = x if seen else requirements.check_state("x", x)
    is_array = isinstance(x, jax.Array | np.ndarray)
    if solver.stochastic or problem.denoiser is not None:
        reason = (
            f"the stochastic solver {solver.name}"
            if solver.stochastic
            else "a denoiser"
        )
        checks.instance("x", x, jax.Array | np.ndarray, f"one array for {reason}")
    # static: without a step to 0 no step branches
    zero_end = requirements.may_end_at_zero(ts)
    ts = grids.check("ts", ts, problem.schedule, zero_end=problem.denoiser is not None)
    noise = requirements.check_noise(noise, np.shape(x) if is_array else None, ts)
    requirements.check_grid("ts", solver, problem, ts)
    return key, problem, x, ts, zero_end, noise


@checks.arguments(
    solver=(requirements.check_solver, "fixed"),
    evaluations=(checks.integer, 1, 10**6),
    to_zero=checks.boolean,
)
def steps_within(solver: Solver, evaluations: int, to_zero: bool = False) -> int:
    """The most steps that a solver can take within a budget of evaluations.

    Args:
      solver: A solver of fixed steps.
      evaluations: The most evaluations of the denoiser, 1 or more.
      to_zero: Whether the last step ends at 0, where most solvers evaluate
        once.

    Returns:
      The number of steps.

    Raises:
      TypeError: For a solver whose evaluations depend on the data.
      ValueError: If the evaluations are too few for one step.

    Example:
      >>> dj.solvers.steps_within(dj.solvers.heun(), 16, to_zero=True)
      8
    """
    least = solver.evaluations(1, to_zero)
    checks.integer(f"evaluations for {solver.name}", evaluations, least)
    return bisect.bisect_right(
        range(1, evaluations + 1),
        evaluations,
        key=lambda steps: solver.evaluations(steps, to_zero),
    )


# -------------------------------------------------------------------- the scan


class _Settings(NamedTuple):
    """Settings of a run, fixed at compilation, as `run` takes them."""

    path: bool
    zero_end: bool
    remat: bool


@compiled(static_argnums=(0, 1, 2))
def _integrate(solver, static, settings, arrays, key, x, ts):
    problem, noise = combine(arrays, static)
    source = source_of(key, x, ts, noise)
    return run(source, solver, problem, x=x, ts=ts, **settings._asdict())


@compiled(static_argnums=(0, 1, 2))
def _start(solver, static, zero_end, arrays, x, ts):
    problem = _prepared(solver, combine(arrays, static)[0], zero_end)
    return _initial_state(solver, problem, x, solver.prepare(problem, ts))


def _initial_state(solver, problem, x, inputs):
    return solver.init(problem, x, jax.tree.map(lambda leaf: leaf[0], inputs))


@compiled(static_argnums=(0, 1, 2))
def _advance(solver, static, zero_end, arrays, key, progress, ts, last):
    problem, noise = combine(arrays, static)
    source = source_of(key, progress.x, ts, noise)
    problem = _prepared(solver, problem, zero_end)
    inputs = solver.prepare(problem, ts)

    def body(progress):
        x, memory, index = progress
        at = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False),
            inputs,
        )
        draw = Draw(source, index.astype(jnp.uint32))
        x, after = solver.step(problem, at, draw, x, memory)
        checks.require(
            jax.tree.structure(after) == jax.tree.structure(memory),
            f"progress must be made for {solver.name}, got that of another solver",
            TypeError,
        )
        return Progress(x, after, index + 1)

    # a while loop even where the number of steps is known: XLA would unroll a single
    # one, and round otherwise
    progress = jax.lax.while_loop(lambda progress: progress.step < last, body, progress)
    if solver.report is None:
        return progress
    exhausted = solver.report(progress.memory).exhausted
    return progress._replace(x=_nan_where(exhausted, progress.x))


def _prepared(solver, problem, zero_end):
    """The problem with a checked denoiser and the field that the solver consumes."""
    denoiser = problem.denoiser and Checked(problem.denoiser, solver.traits.paired)
    return derive(
        solver, dataclasses.replace(problem, denoiser=denoiser, zero_end=zero_end)
    )


def _nan_where(condition, tree):
    return jax.tree.map(lambda leaf: jnp.where(condition, jnp.nan, leaf), tree)


def run(
    source: Source,
    solver: Solver,
    problem: Problem,
    *,
    x: PyTree,
    ts: Array,
    path: bool = False,
    zero_end: bool = True,
    remat: bool = False,
) -> tuple[PyTree, Info]:
    """`integrate` without checks or compilation, to be called under a transformation.

    Args:
      source: Where the noise comes from.
      solver: The solver.
      problem: What it solves, as made by `as_problem` or `diffusion`.
      x: The start.
      ts: Times (N + 1,).
      path: Whether to return the states at all times.
      zero_end: Whether the last time may be 0.
      remat: Whether a gradient computes each step again.

    Returns:
      (x at the end or all states, Info).
    """
    problem = _prepared(solver, problem, zero_end)
    if solver.solve is not None:
        states, report = solver.solve(source, problem, x, ts)
        result = states if path else jax.tree.map(lambda leaf: leaf[-1], states)
    else:
        result, report = _scan(source, solver, problem, x, ts, path=path, remat=remat)
    # of a solver of fixed steps it is the constant False, and costs nothing
    if report.exhausted is not False:
        result = _nan_where(report.exhausted, result)
    return result, report


def _scan(source, solver, problem, x, ts, *, path, remat):
    # coefficients of all steps at once, outside of the loop
    inputs = solver.prepare(problem, ts)
    state = _initial_state(solver, problem, x, inputs)

    def body(carry, step):
        x, state = carry
        index, step_inputs = step
        x, state = solver.step(problem, step_inputs, Draw(source, index), x, state)
        return (x, state), x if path else None

    if remat:
        # A scan cannot merge the two computations of a step.
        body = jax.checkpoint(body, prevent_cse=False)
    steps = jnp.arange(ts.shape[0] - 1, dtype=jnp.uint32)
    (end, state), states = jax.lax.scan(body, (x, state), (steps, inputs))
    if solver.report is None:
        report = _fixed_report(solver, problem, ts)
    else:
        report = solver.report(state)
    if not path:
        return end, report
    # (*x.shape) and (N, *x.shape) -> (N + 1, *x.shape)
    with_start = lambda first, rest: jnp.concatenate([first[None], rest])
    return jax.tree.map(with_start, x, states), report


def _fixed_report(solver, problem, ts):
    steps = ts.shape[0] - 1
    plain, to_zero = (solver.evaluations(steps, zero) for zero in (False, True))
    if solver.consumes == "velocity" and not is_semilinear(problem.velocity):
        return Info(plain, steps, 0, False)  # 0 is a time like any other
    return Info(jnp.where(ts[-1] == 0, to_zero, plain), steps, 0, False)


def warn_if_exhausted(solver: Solver, report: Info) -> None:
    """Warn, where the values can be seen, that a step limit ended some runs.

    Args:
      solver: The solver.
      report: Of one run or of many.
    """
    if checks.is_traced(report):
        return
    ended = np.asarray(report.exhausted)
    if ended.any():
        checks.warn(
            f"{solver.name} hit its step limit in {ended.sum()} of {ended.size} runs "
            f"after {np.max(report.accepted)} accepted and {np.max(report.rejected)} "
            "rejected steps; their results are NaN. Raise max_steps, loosen rtol and "
            "atol, or check the denoiser for NaN.",
            RuntimeWarning,
        )
