"""The driver: one `lax.scan` of any solver over any monotone grid, its noise, and the checks before it."""

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, grids, noise, predictions, sde
from ..noise import BrownianPath
from ..numerics import float_dtype
from ..types import (
    Array,
    ArrayLike,
    Key,
    PyTree,
    as_pytree_callable,
    combine,
    compiled,
    partition,
    pytree,
    static_field,
)
from .base import Info, Problem, Solver, without_signal


def integrate(
    key: Key | None,
    solver: Solver,
    problem: Any,
    x: PyTree,
    ts: ArrayLike,
    path: bool = False,
    info: bool = False,
) -> Any:
    """Run `solver` over the times `ts` from x at ts[0]; x at ts[-1], of x's shape.

    key: typed key, None for a deterministic solver; or a `noise.brownian` path, so that a finer grid, or another
    solver, follows the same noise. problem: an `SDE`, a velocity (x, t) -> dx/dt, or a `Problem`. x: one example, an
    array or for ODE solvers any pytree; promoted to float32 at least (float64 under x64). ts: (N + 1,), strictly
    monotone; where the problem states a denoiser the last may be exactly 0, and the last step then returns D. path=True
    returns the states at all N + 1 times instead, stacked on a new leading axis. info=True returns (result, Info).

    An SDE is read as Itô's; where its diffusion depends on x, only euler_maruyama converges to it. Noise is never
    dropped at a non-zero end. Raises TypeError where the solver cannot take the problem, ValueError for a missing key,
    a bad grid or NaN in x.
    """
    check_solver(solver)
    problem = as_problem(problem)
    check_consumes(solver, problem)
    check_coupling(solver, problem.denoiser)
    key = check_key(solver, key)
    x = check_state("x", x)
    if (solver.stochastic or problem.denoiser is not None) and not isinstance(x, jax.Array):
        what = f"the stochastic solver {solver.name}" if solver.stochastic else "a denoiser"
        raise TypeError(f"x must be one array for {what}, got a {type(x).__name__}")
    zero_end = may_end_at_zero(ts)
    ts = grids.check("ts", ts, problem.schedule, zero_end=problem.denoiser is not None)
    check_path(key, x, ts)
    check_grid("ts", solver, problem, ts)
    arrays, static = partition(problem)
    result, report = _integrate(solver, static, bool(path), zero_end, arrays, key, x, ts)
    warn_if_exhausted(solver, report)
    return (result, report) if info else result


def steps_within(solver: Solver, evaluations: int, to_zero: bool = False) -> int:
    """The most steps that `solver` can take with at most so many evaluations, to_zero where the last one ends at 0.

    Raises TypeError for a solver whose evaluations depend on more than the number of steps, ValueError where they are
    too few for one step.
    """
    check_solver(solver)
    checks.integer("evaluations", evaluations, 1)
    checks.boolean("to_zero", to_zero)

    def cost(steps: int) -> Any:
        return solver.evaluations(np.linspace(2.0, 0.0 if to_zero else 1.0, steps + 1))

    least = cost(1)
    if solver.report is not None or least is None:
        raise TypeError(f"solver must have evaluations that its steps alone fix, those of {solver.name} do not")
    if evaluations < least:
        raise ValueError(f"evaluations must be at least {least}, those of one step of {solver.name}; got {evaluations}")
    return next(steps for steps in range(evaluations, 0, -1) if cost(steps) <= evaluations)


@compiled(static_argnums=(0, 1, 2, 3))
def _integrate(solver, static, path, zero_end, arrays, key, x, ts):
    return run(noise_of(key, x, ts), solver, combine(arrays, static), x, ts, path, zero_end)


@pytree
class Checked:
    """A denoiser whose output has its example's dtype, refused while it is traced if of another shape or complex.

    paired: whether it returns (D, second) with second of shape () or x's.
    """

    denoiser: Any
    paired: bool = static_field(default=False)

    def __call__(self, x: Array, t: Array) -> Any:
        """D(x, t), shape of x; or the pair."""
        data = self.denoiser(x, t)
        if not self.paired:
            return checks.answer(data, x).astype(x.dtype)
        if not isinstance(data, tuple) or len(data) != 2:
            raise TypeError(f"denoiser must return a pair (D, second), see ddpm.paired; got {data!r}")
        second = jnp.asarray(data[1])
        checks.one_of_shapes("denoiser's second value", second, [(), x.shape])
        return checks.answer(data[0], x).astype(x.dtype), second.astype(x.dtype)


BATCH = "examples"
"""The name of the axis over which `sample_many` maps, for the one method that looks across it."""


def _no_path(step: Array, t: Array, s: Array) -> BrownianPath:
    raise TypeError("this source has single draws only, no path for a solver that chooses its own times")


class Source(NamedTuple):
    """Where a run's noise comes from, each draw standard normal and of x's shape.

    normal(step, i): the i-th draw of a step. Where a method follows a Wiener process, draw 0 is ΔW/√h and draw 1 fixes
    ∫ W: ∫ (W(u) − W(t)) du = h^{3/2} (z_0/2 + z_1/(2√3)) over a step of length h; further draws are the step's own.
    path(step, t, s): the Wiener process over a step, for a method that chooses its own times in it.
    """

    normal: Callable[[Array, int], Array]
    path: Callable[[Array, Array, Array], BrownianPath] = _no_path


class Draw(NamedTuple):
    """One step's share of a source: draw(i) and draw.path(t, s)."""

    source: Source
    index: Array

    def __call__(self, i: int) -> Array:
        """The i-th standard normal of this step, shape of x."""
        checks.integer("draw", i, 0, noise.DRAWS_PER_STEP - 1)  # one more would be the next step's first
        return self.source.normal(self.index, i)

    def path(self, t: Array, s: Array) -> BrownianPath:
        """The Wiener process from t to s."""
        return self.source.path(self.index, t, s)


def noise_of(key: Key | BrownianPath | None, x: PyTree, ts: Array) -> Source:
    """The source that hashes (step, draw) with the example's own key, or that reads a given Brownian path."""

    def normal(step, i):
        return noise.normal(key, step * noise.DRAWS_PER_STEP + i, x.shape, x.dtype)

    def local_path(step, t, s):
        return noise.brownian(jax.random.fold_in(key, step), t, s, x.shape)

    if not isinstance(key, BrownianPath):
        return Source(normal, local_path)
    given = key
    own = jax.random.fold_in(given.key, 1)  # for draws of which the path knows nothing

    def along(step, i):
        if i > 1:
            return noise.normal(own, step * noise.DRAWS_PER_STEP + i, x.shape, x.dtype)
        return given.increment(ts[step], ts[step + 1])[i].astype(x.dtype)

    return Source(along, lambda step, t, s: given)


def run(
    source: Source,
    solver: Solver,
    problem: Problem,
    x: PyTree,
    ts: Array,
    path: bool = False,
    zero_end: bool = True,
) -> tuple[PyTree, Info]:
    """`integrate` without checks or compilation: (x or its path, Info), to be called under a transformation."""
    denoiser = problem.denoiser and Checked(problem.denoiser, paired=solver.paired)
    problem = derive(solver, Problem(problem.schedule, denoiser, problem.velocity, problem.sde, zero_end=zero_end))
    if solver.solve is not None:
        states, report = solver.solve(source, problem, x, ts)
        result = states if path else jax.tree.map(lambda leaf: leaf[-1], states)
    else:
        result, report = _scan(source, solver, problem, x, ts, path)
    if report.exhausted is not False:
        result = jax.tree.map(lambda leaf: jnp.where(report.exhausted, jnp.nan, leaf), result)
    return result, report


def _scan(source, solver, problem, x, ts, path):
    inputs = solver.prepare(problem, ts)
    state = solver.init(problem, x, jax.tree.map(lambda leaf: leaf[0], inputs))

    def body(carry, step):
        x, state = carry
        index, step_inputs = step
        x, state = solver.step(problem, step_inputs, Draw(source, index), x, state)
        return (x, state), x if path else None

    steps = jnp.arange(ts.shape[0] - 1, dtype=jnp.uint32)
    (end, state), states = jax.lax.scan(body, (x, state), (steps, inputs))
    report = solver.report(state) if solver.report else _fixed_report(solver, problem, ts)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), x, states) if path else end, report


def _fixed_report(solver, problem, ts):
    steps = ts.shape[0] - 1
    if solver.consumes == "velocity" and not hasattr(problem.velocity, "coefficients"):
        return Info(solver.evaluations(np.linspace(2.0, 1.0, steps + 1)), steps, 0, False)  # 0 is a time like any other
    plain, to_zero = (solver.evaluations(np.linspace(2.0, end, steps + 1)) for end in (1.0, 0.0))
    return Info(jnp.where(ts[-1] == 0, to_zero, plain), steps, 0, False)


def as_problem(problem: Any) -> Problem:
    """An SDE, a velocity or a `Problem` as a `Problem` of pytree callables. Raises TypeError for anything else."""
    if isinstance(problem, Problem):
        schedule, *fields = problem.schedule, problem.denoiser, problem.velocity
        denoiser, velocity = (None if field is None else as_pytree_callable(field) for field in fields)
        return Problem(schedule, denoiser, velocity, problem.sde and as_problem(problem.sde).sde)
    if isinstance(problem, sde.SDE):
        return Problem(sde=sde.SDE(as_pytree_callable(problem.drift), as_pytree_callable(problem.diffusion)))
    checks.callable_("problem", problem, "velocity(x, t), or be an SDE or a Problem")
    return Problem(velocity=as_pytree_callable(problem))


def diffusion(schedule: Any, denoiser: Any) -> Problem:
    """The problem of sampling from a denoiser under a schedule, for every solver."""
    return Problem(schedule, as_pytree_callable(denoiser))


def derive(solver: Solver, problem: Problem) -> Problem:
    """`problem` with the field that the solver consumes filled in from schedule and denoiser where it is missing."""
    if getattr(problem, solver.consumes) is not None:
        return problem
    if solver.consumes == "velocity":
        return dataclasses.replace(problem, velocity=sde.probability_flow(problem.schedule, problem.denoiser))
    return dataclasses.replace(problem, sde=sde.reverse(problem.schedule, problem.denoiser))


# ------------------------------------------------------------------------------------------------------------- checks


def check_solver(solver: Any) -> None:
    """Refuse what is not a solver; a factory that was not called is named."""
    if not isinstance(solver, Solver):
        hint = f"; call it: {solver.__name__}()" if inspect.isfunction(solver) else ""
        raise TypeError(f"solver must be made by a factory of diffjax.solvers such as heun(), got {solver!r}{hint}")


def check_consumes(solver: Solver, problem: Problem) -> None:
    """Refuse a problem that lacks what the solver consumes; a denoiser serves with its schedule only."""
    whole = problem.denoiser is not None and problem.schedule is not None
    if whole or (solver.consumes != "denoiser" and getattr(problem, solver.consumes) is not None):
        return
    stated = [name for name in ("schedule", "denoiser", "velocity", "sde") if getattr(problem, name) is not None]
    raise TypeError(f"solver {solver.name} consumes a {solver.consumes}, but the problem states only {stated}")


def check_coupling(solver: Solver, denoiser: Any) -> None:
    """Refuse a stochastic solver for a denoiser whose noise depends on the data."""
    if solver.stochastic:
        predictions.check_independent(f"the stochastic solver {solver.name}", denoiser)


def check_key(solver: Solver, key: Any) -> Any:
    """The key, which a stochastic solver must have."""
    if key is None:
        if solver.stochastic:
            raise ValueError(f"key must be given: solver {solver.name} is stochastic, got key=None")
        return None
    return key if isinstance(key, BrownianPath) else checks.key("key", key)


def check_grid(name: str, solver: Solver, problem: Problem, ts: ArrayLike) -> None:
    """Refuse a concrete grid that the solver cannot walk, alone or on the problem's schedule."""
    if checks.is_traced(ts):
        return
    values = np.asarray(ts)
    if solver.stochastic and solver.consumes == "denoiser" and values[0] < values[-1]:
        raise ValueError(
            f"{name} must decrease for {solver.name}, which samples downwards, got {values[0]} … {values[-1]}"
        )
    if solver.consumes == "denoiser" and values[0] < values[-1] and without_signal(problem.schedule, values[-1]):
        raise ValueError(f"{name} must end below t={values[-1]} upwards for {solver.name}: α = 0 there")
    if solver.refuse is not None:
        stated = solver.consumes != "denoiser" and getattr(problem, solver.consumes) is not None
        solver.refuse(None if stated else problem.schedule, values)


def check_path(key: Any, x: PyTree, ts: Array) -> None:
    """Refuse a Brownian path of another shape than x, or that does not cover the grid."""
    if not isinstance(key, BrownianPath):
        return
    if key.shape != jnp.shape(x):
        raise ValueError(f"key must be a Brownian path of x's shape {jnp.shape(x)}, got {key.shape}")
    if checks.is_traced(key, ts):
        return
    low, high = sorted((float(key.start), float(key.end)))
    values = np.asarray(ts)
    slack = 4 * np.finfo(values.dtype).eps * max(abs(low), abs(high))
    if values.min() < low - slack or values.max() > high + slack:
        raise ValueError(
            f"key must be a Brownian path that covers the grid, got [{low}, {high}] for {ts[0]} … {ts[-1]}"
        )


def ends_at_zero(ts: ArrayLike) -> bool:
    """Whether the grid's last time is seen to be 0; what is no grid is refused elsewhere."""
    if checks.is_traced(ts):
        return False
    try:
        values = np.asarray(ts, float)
    except (TypeError, ValueError):
        return False
    return values.ndim == 1 and values.size > 0 and bool(values[-1] == 0)


def may_end_at_zero(ts: ArrayLike) -> bool:
    """Whether the grid's last time is 0, or cannot be seen."""
    return checks.is_traced(ts) or ends_at_zero(ts)


def check_example(name: str, x: ArrayLike) -> Array:
    """x as an array of the working dtype; NaN and infinity refused."""
    x = checks.real_array(name, x)
    checks.finite(name, x)
    return x.astype(float_dtype(x))


def check_between(start: ArrayLike, end: ArrayLike, weights: ArrayLike) -> tuple[Array, Array, Array]:
    """Two examples of one shape and weights (K,) between them."""
    start, end = check_example("start", start), check_example("end", end)
    checks.one_of_shapes("end", end, [start.shape])
    weights = checks.real_array("weights", weights)
    if weights.ndim != 1:
        raise ValueError(f"weights must have shape (K,), got {weights.shape}")
    checks.finite("weights", weights)
    return start, end, weights


def check_state(name: str, x: PyTree) -> PyTree:
    """A pytree of `check_example`s."""
    return jax.tree.map(functools.partial(check_example, name), x)


def warn_if_exhausted(solver: Solver, report: Info) -> None:
    """Warn, where the values can be seen, that a step limit ended some runs."""
    if checks.is_traced(report):
        return
    ended = np.asarray(report.exhausted)
    if ended.any():
        warnings.warn(
            f"{solver.name} hit its step limit in {int(ended.sum())} of {ended.size} runs after "
            f"{int(np.max(report.accepted))} accepted and {int(np.max(report.rejected))} rejected steps; "
            "their results are NaN. Raise max_steps, loosen rtol and atol, or check the denoiser for NaN.",
            RuntimeWarning,
            stacklevel=3,
        )
