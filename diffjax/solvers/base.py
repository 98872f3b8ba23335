"""The driver: one `lax.scan` of any solver over any monotone grid, and the parts that solvers share."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, grids, noise, sde
from ..numerics import float_dtype
from ..types import Array, ArrayLike, Key, PyTree, as_pytree_callable, combine, partition, pytree


@pytree
class Problem:
    """What there is to solve; missing fields are None.

    A problem with a schedule and a denoiser serves every solver: the velocity of its probability flow and its reverse
    SDE are derived for the solvers that consume them.
    """

    schedule: Any = None
    denoiser: Any = None
    velocity: Any = None
    sde: Any = None


class Info(NamedTuple):
    """Evaluations of the field or denoiser, steps accepted and rejected, and whether a step limit ended the run."""

    evaluations: Any
    accepted: Any
    rejected: Any
    exhausted: Any


class Solver(NamedTuple):
    """A method as a tuple of pure functions, made by a factory such as `heun()`.

    prepare(problem, ts) -> inputs: a pytree with a leading axis of steps, computed for all steps at once. init(problem,
    x, inputs) -> state: what passes from step to step; inputs are the first step's. step(problem, inputs, draw, x,
    state) -> (x, state): one step; draw(i) is the i-th independent standard normal of x's shape. report(state) -> Info,
    for solvers whose work depends on the data; None elsewhere. order: convergence order in the largest step, in the
    weak sense for a stochastic solver; None where none is declared. evaluations(grid) -> int: true network evaluations
    on that grid; None for adaptive solvers (ask for info=True). consumes: "velocity", "sde" or "denoiser". stochastic:
    whether it draws noise, hence needs a key.
    """

    name: str
    consumes: str
    order: int | None
    stochastic: bool
    evaluations: Callable[[ArrayLike], int | None]
    prepare: Callable[[Problem, Array], PyTree]
    step: Callable[..., tuple[PyTree, PyTree]]
    init: Callable[..., PyTree] = lambda problem, x, inputs: ()
    report: Callable[[PyTree], Info] | None = None

    def __repr__(self) -> str:
        return f"<solver {self.name}>"


def factory(function: Callable[..., Solver]) -> Callable[..., Solver]:
    """A cached solver factory: hyperparameters become plain Python values of their default's type, so that f(), f(0.0)
    and f(eta=0.0) are one object and nothing compiled for one is compiled again for another."""
    signature = inspect.signature(function)
    build = functools.lru_cache(maxsize=None)(function)

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Solver:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = {k: _plain(k, v, signature.parameters[k].default) for k, v in bound.arguments.items()}
        return build(**values)

    return make


def _plain(name, value, default):
    if checks.is_traced(value):
        raise TypeError(f"{name} must be a plain Python value, not traced: a solver is static under jit")
    if isinstance(default, float):
        return float(checks.number(name, value))
    return checks.integer(name, value, minimum=0) if isinstance(default, int) else value


# ------------------------------------------------------------------------------------------------------------- driver


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

    key: typed key, None for a deterministic solver. problem: an `SDE`, a velocity (x, t) -> dx/dt, or a `Problem`. x:
    one example, an array or for ODE solvers any pytree; promoted to float32 at least (float64 under x64). ts: (N + 1,),
    strictly monotone; where the problem states a denoiser the last may be exactly 0, and the last step then returns D.
    path=True returns the states at all N + 1 times instead, stacked on a new leading axis. info=True returns (result,
    Info).

    An SDE is read as Itô's; where its diffusion depends on x, only euler_maruyama converges to it. Noise is never
    dropped at a non-zero end. Raises TypeError where the solver cannot take the problem, ValueError for a missing key,
    a bad grid or NaN in x.
    """
    check_solver(solver)
    problem = as_problem(problem)
    check_consumes(solver, problem)
    key = check_key(solver, key)
    x = check_state("x", x)
    if solver.stochastic and not isinstance(x, jax.Array):
        raise TypeError(f"x must be one array for the stochastic solver {solver.name}, got a {type(x).__name__}")
    ts = grids.check("ts", ts, problem.schedule, zero_end=problem.denoiser is not None)
    arrays, static = partition(problem)
    result, report = _integrate(solver, static, bool(path), arrays, key, x, ts)
    warn_if_exhausted(solver, report)
    return (result, report) if info else result


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _integrate(solver, static, path, arrays, key, x, ts):
    return run(noise_of(key, x), solver, combine(arrays, static), x, ts, path)


@pytree
class Checked:
    """A denoiser that refuses, while it is traced, an output of another shape than its example's."""

    denoiser: Any

    def __call__(self, x: Array, t: Array) -> Array:
        """D(x, t), shape of x."""
        data = self.denoiser(x, t)
        if jnp.shape(data) != x.shape:
            raise ValueError(f"denoiser must return its example's shape {x.shape}, got {jnp.shape(data)}")
        return data


NoiseSource = Callable[[Array, int], Array]
"""(step index, draw index) -> standard normal noise of x's shape."""


def noise_of(key: Key | None, x: PyTree) -> NoiseSource:
    """The source that hashes (step, draw) with the example's own key."""

    def source(step, draw):
        checks.integer("draw", draw, 0, noise.DRAWS_PER_STEP - 1)  # one more would be the next step's first
        return noise.normal(key, step * noise.DRAWS_PER_STEP + draw, x.shape, x.dtype)

    return source


def run(source: NoiseSource, solver: Solver, problem: Problem, x: PyTree, ts: Array, path: bool) -> tuple[PyTree, Info]:
    """`integrate` without checks or compilation: (x or its path, Info), to be called under a transformation."""
    if problem.denoiser is not None:
        problem = Problem(problem.schedule, Checked(problem.denoiser), problem.velocity, problem.sde)
    problem = derive(solver, problem)
    inputs = solver.prepare(problem, ts)
    state = solver.init(problem, x, jax.tree.map(lambda leaf: leaf[0], inputs))

    def body(carry, step):
        x, state = carry
        index, step_inputs = step
        x, state = solver.step(problem, step_inputs, functools.partial(source, index), x, state)
        return (x, state), x if path else None

    steps = jnp.arange(ts.shape[0] - 1, dtype=jnp.uint32)
    (end, state), states = jax.lax.scan(body, (x, state), (steps, inputs))
    report = solver.report(state) if solver.report else _fixed_report(solver, ts)
    result = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), x, states) if path else end
    if solver.report:
        result = jax.tree.map(lambda leaf: jnp.where(report.exhausted, jnp.nan, leaf), result)
    return result, report


def _fixed_report(solver, ts):
    steps = ts.shape[0] - 1
    return Info(solver.evaluations(ts), steps, 0, False)


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
        velocity = sde.probability_flow(problem.schedule, problem.denoiser)
        return Problem(problem.schedule, problem.denoiser, velocity, problem.sde)
    reverse = sde.reverse(problem.schedule, problem.denoiser)
    return Problem(problem.schedule, problem.denoiser, problem.velocity, reverse)


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


def check_key(solver: Solver, key: Any) -> Any:
    """The key, which a stochastic solver must have."""
    if key is None:
        if solver.stochastic:
            raise ValueError(f"key must be given: solver {solver.name} is stochastic, got key=None")
        return None
    return checks.key("key", key)


def check_example(name: str, x: ArrayLike) -> Array:
    """x as an array of the working dtype; NaN and infinity refused."""
    x = checks.real_array(name, x)
    checks.finite(name, x)
    return x.astype(float_dtype(x))


def check_state(name: str, x: PyTree) -> PyTree:
    """A pytree of `check_example`s."""
    return jax.tree.map(functools.partial(check_example, name), x)


def warn_if_exhausted(solver: Solver, report: Info) -> None:
    """Warn, where the values can be seen, that a step limit ended some runs."""
    if solver.report is None or checks.is_traced(report):
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


# ----------------------------------------------------------------------------------------------- parts for the solvers


class Stage(NamedTuple):
    """One evaluation of a field at a known time: the time and, for semilinear fields, A(t) and B(t)."""

    t: Array
    coefficients: Any


def stage(field: Any, ts: Array) -> Stage:
    """The stages at times ts, of any shape, with a semilinear field's coefficients computed at once."""
    if not hasattr(field, "coefficients"):
        return Stage(ts, None)
    flat = jax.vmap(field.coefficients)(ts.reshape(-1))
    return Stage(ts, jax.tree.map(lambda c: c.reshape(ts.shape), flat))


def evaluate(field: Any, at: Stage, x: PyTree) -> PyTree:
    """field(x, t) at a prepared stage."""
    if at.coefficients is None:
        return field(x, at.t)
    a, b = at.coefficients
    return a * x + b * field.denoiser(x, at.t)


class Interval(NamedTuple):
    """A step from t to s: dt = s − t, and the Euler step x ← keep x + gain field(x, t).

    Where a semilinear field's grid ends at s = 0 the Euler step returns D = (field − A x)/B: keep = −A/B, gain = 1/B;
    dt is then 0, so that stage times stay at t. at_zero says so; None for fields to which 0 is a time like any other.
    """

    dt: Array
    keep: Array
    gain: Array
    at_zero: Any


def intervals(field: Any, ts: Array) -> Interval:
    """The intervals of a grid (N + 1,), each field of shape (N,)."""
    t, s = ts[:-1], ts[1:]
    if not hasattr(field, "coefficients"):
        return Interval(s - t, jnp.ones_like(t), s - t, None)
    at_zero = s == 0
    dt = jnp.where(at_zero, 0, s - t)
    a, b = stage(field, t).coefficients
    return Interval(dt, jnp.where(at_zero, -a / b, 1), jnp.where(at_zero, 1 / b, dt), at_zero)


def weighted_sum(*terms: tuple[Any, PyTree]) -> PyTree:
    """Σ c x over (coefficient, pytree) pairs."""
    coefficients, trees = zip(*terms, strict=True)
    return jax.tree.map(lambda *leaves: sum(c * leaf for c, leaf in zip(coefficients, leaves, strict=True)), *trees)


def unless_zero(interval: Interval, correct: Callable[[PyTree], PyTree], x: PyTree) -> PyTree:
    """correct(x), or x itself on a step that ends at 0; the untaken side is not run."""
    if interval.at_zero is None:
        return correct(x)
    return jax.lax.cond(interval.at_zero, lambda x: x, correct, x)


def per_step(count: int) -> Callable[[ArrayLike], int]:
    """evaluations(grid) of a method with `count` evaluations a step, and one on a step to 0."""

    def evaluations(grid: ArrayLike) -> int:
        steps = np.shape(grid)[0] - 1
        to_zero = not checks.is_traced(grid) and float(np.asarray(grid)[-1]) == 0
        return count * (steps - to_zero) + to_zero

    return evaluations
