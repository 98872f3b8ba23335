"""The driver: one `lax.scan` of any solver over any monotone grid, its noise, and the checks before it."""

import bisect
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
    as_pytree,
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
    *,
    noise: Any = None,
) -> Any:
    """Run `solver` over the times `ts` from x at ts[0].

    An SDE is read as Itô's; where its diffusion depends on x, only euler_maruyama converges to it. Noise is never
    dropped at a non-zero end. To stop on the way and continue later, see `start` and `advance`.

    Args:
      key: A typed key, or None for a deterministic solver and where `noise` is given. A `BrownianPath` here means the
        same as in `noise`.
      solver: A solver such as `heun()`.
      problem: An `SDE`, a velocity (x, t) -> dx/dt, or a `Problem`.
      x: One example at ts[0]: an array, or any pytree for an ODE solver; promoted to float32 at least (float64 under
        x64).
      ts: Times (N + 1,), strictly monotone. Where the problem states a denoiser the last may be exactly 0, and the last
        step then returns D.
      path: Whether to return the states at all N + 1 times, stacked on a new leading axis.
      info: Whether to return (result, Info).
      noise: The solver's noise, in place of draws from the key. An array (N, draws, *x.shape) of standard normals, of
        which entry [n, i] is draw i of step n; a function (n, i) -> array of x's shape; or a `noise.brownian` path, so
        that a finer grid, or another solver, follows the same Brownian motion. What a draw means stands at `Source`.

    Returns:
      x at ts[-1], of x's shape; see `path` and `info`.

    Raises:
      TypeError: If the solver cannot take the problem or the noise.
      ValueError: If the key is missing, the grid is not one, x is not finite, or noise has another shape or too few
        draws.

    Example:
      >>> z = jax.random.normal(key, (8, 1, 2))  # one draw for each of 8 steps
      >>> problem = dj.solvers.diffusion(schedule, denoiser)
      >>> x = dj.solvers.integrate(None, dj.solvers.ddim(1.0), problem, jnp.ones(2), grid, noise=z)
    """
    key, problem, x, ts, zero_end, noise = _checked(key, solver, problem, x, ts, noise)
    arrays, static = partition((problem, noise))
    result, report = _integrate(
        solver, static, bool(path), zero_end, arrays, key, x, ts
    )
    warn_if_exhausted(solver, report)
    return (result, report) if info else result


class Progress(NamedTuple):
    """A run on its way: the state x at grid time ts[step], and what the solver remembers. A pytree of arrays."""

    x: PyTree
    memory: PyTree
    step: Array


def start(solver: Solver, problem: Any, x: PyTree, ts: ArrayLike) -> Progress:
    """A run of `solver` before its first step, to be continued by `advance`.

    To take `sample(key, …)` in parts: `key, key_init = jax.random.split(key)`, the first for `advance`; where it has
    no x_init, x = schedules.prior_std(schedule, ts[0]) * jax.random.normal(key_init, shape).

    Args:
      solver: A solver that takes one step after another: any but `picard`.
      problem: As in `integrate`.
      x: One example at ts[0].
      ts: The times (N + 1,) of the whole run.

    Returns:
      The state of the run, a pytree of arrays: it can be saved, and mapped over with `jax.vmap`.

    Raises:
      TypeError: If the solver cannot be stopped, or cannot take the problem.
      ValueError: If the grid is not one or x is not finite.

    Example:
      >>> solver, problem, x = dj.solvers.dpmpp_2m(), dj.solvers.diffusion(schedule, denoiser), jnp.ones(2)
      >>> half = dj.solvers.advance(None, solver, dj.solvers.start(solver, problem, x, grid), problem, grid, steps=4)
      >>> end = dj.solvers.advance(None, solver, half, problem, grid)
      >>> bool((end.x == dj.solvers.integrate(None, solver, problem, x, grid)).all())
      True
    """
    _, problem, x, ts, zero_end, _ = _checked(
        None, _stoppable(solver), problem, x, ts, None, keyless=True
    )
    arrays, static = partition((problem, None))
    memory = _start(solver, static, zero_end, arrays, x, ts)
    return Progress(x, memory, np.zeros((), np.int32))


def advance(
    key: Key | None,
    solver: Solver,
    progress: Progress,
    problem: Any,
    ts: ArrayLike,
    *,
    steps: int | None = None,
    noise: Any = None,
) -> Progress:
    """Take the next `steps` steps of a run: in however many parts, the result is the whole run's bit for bit.

    The number of steps is not compiled in: all parts of a run share one program. For previews, look at `x` between
    parts. An adaptive solver can be stopped at the times of its grid. Not reverse-differentiable, see `integrate`.

    Args:
      key: As in `integrate`, the same for all parts.
      solver: The solver that `start` was given.
      progress: Where the run stands: of `start`, or of `advance`.
      problem: As in `integrate`.
      ts: The times (N + 1,) of the whole run.
      steps: How many steps to take; by default all that are left.
      noise: As in `integrate`, for the whole run.

    Returns:
      Where the run stands then. `x` is the state at ts[step].

    Raises:
      TypeError: If progress is none, or the solver cannot be stopped or cannot take the problem.
      ValueError: If fewer steps are left, or as `integrate`.

    Example:
      >>> solver, problem = dj.solvers.ddim(1.0), dj.solvers.diffusion(schedule, denoiser)
      >>> run = dj.solvers.start(solver, problem, jnp.ones(2), grid)
      >>> for _ in range(4):  # a preview after every second of 8 steps
      ...     run = dj.solvers.advance(key, solver, run, problem, grid, steps=2)
      ...     preview = denoiser(run.x, grid[run.step])
      >>> int(run.step)
      8
    """
    checks.made_by("progress", progress, Progress, "solvers.start")
    x = progress.x
    key, problem, _, ts, zero_end, noise = _checked(
        key, _stoppable(solver), problem, x, ts, noise, seen=True
    )
    total = ts.shape[0] - 1
    steps = None if steps is None else checks.integer("steps", steps, 1)
    step = (
        progress.step if checks.is_traced(progress.step) else np.asarray(progress.step)
    )
    if not checks.is_traced(step) and step.max() > total:
        raise ValueError(
            f"ts must be the grid of the whole run, got {total} steps where {step.max()} have been taken"
        )
    if not checks.is_traced(step) and step.max() + (steps or 0) > total:
        if step.max() == total:
            raise ValueError(f"the run is finished: all {total} steps have been taken")
        raise ValueError(
            f"steps must be at most {total - step.max()}, those left, got {steps}"
        )
    last = np.int32(total) if steps is None else step + np.int32(steps)
    arrays, static = partition((problem, noise))
    return _advance(solver, static, zero_end, arrays, key, progress, ts, last)


def _stoppable(solver):
    check_solver(solver)
    if solver.solve is not None:
        raise TypeError(
            f"solver must take one step after another to be stopped, {solver.name} takes all at once"
        )
    return solver


def _checked(key, solver, problem, x, ts, noise, keyless=False, seen=False):
    """The arguments of a run, checked: (key, problem, x, ts, zero_end, noise). keyless: no noise will be drawn."""
    check_solver(solver)
    problem = as_problem(problem)
    check_consumes(solver, problem)
    check_coupling(solver, problem.denoiser)
    if isinstance(key, BrownianPath):
        if noise is not None:
            raise TypeError(
                "key must be a typed key where noise is given, got a Brownian path"
            )
        key, noise = None, key
    key = key if keyless else check_key(solver, key, noise)
    x = x if seen else check_state("x", x)
    if (solver.stochastic or problem.denoiser is not None) and not isinstance(
        x, jax.Array | np.ndarray
    ):
        what = (
            f"the stochastic solver {solver.name}"
            if solver.stochastic
            else "a denoiser"
        )
        raise TypeError(f"x must be one array for {what}, got a {type(x).__name__}")
    zero_end = may_end_at_zero(ts)
    ts = grids.check("ts", ts, problem.schedule, zero_end=problem.denoiser is not None)
    noise = check_noise(
        noise, np.shape(x) if isinstance(x, jax.Array | np.ndarray) else None, ts
    )
    check_grid("ts", solver, problem, ts)
    return key, problem, x, ts, zero_end, noise


def steps_within(solver: Solver, evaluations: int, to_zero: bool = False) -> int:
    """The most steps that `solver` can take with at most so many evaluations of the denoiser.

    Args:
      solver: A solver of fixed steps.
      evaluations: At most so many, 1 or more.
      to_zero: Whether the last step ends at 0, where most solvers evaluate once.

    Returns:
      The number of steps.

    Raises:
      TypeError: For a solver whose evaluations depend on more than the number of steps.
      ValueError: If the evaluations are too few for one step.

    Example:
      >>> dj.solvers.steps_within(dj.solvers.heun(), 16, to_zero=True)
      8
    """
    check_solver(solver)
    checks.integer("evaluations", evaluations, 1, 10**6)
    checks.boolean("to_zero", to_zero)

    def cost(steps: int) -> Any:
        return solver.evaluations(np.linspace(2.0, 0.0 if to_zero else 1.0, steps + 1))

    least = cost(1)
    if solver.report is not None or least is None:
        raise TypeError(
            f"solver must have evaluations that its steps alone fix, those of {solver.name} do not"
        )
    if evaluations < least:
        raise ValueError(
            f"evaluations must be at least {least}, those of one step of {solver.name}; got {evaluations}"
        )
    return bisect.bisect_right(range(1, evaluations + 1), evaluations, key=cost)


@compiled(static_argnums=(0, 1, 2, 3))
def _integrate(solver, static, path, zero_end, arrays, key, x, ts):
    problem, noise = combine(arrays, static)
    return run(noise_of(key, x, ts, noise), solver, problem, x, ts, path, zero_end)


@compiled(static_argnums=(0, 1, 2))
def _start(solver, static, zero_end, arrays, x, ts):
    problem = _prepared(solver, combine(arrays, static)[0], zero_end)
    return solver.init(
        problem, x, jax.tree.map(lambda leaf: leaf[0], solver.prepare(problem, ts))
    )


@compiled(static_argnums=(0, 1, 2))
def _advance(solver, static, zero_end, arrays, key, progress, ts, last):
    problem, noise = combine(arrays, static)
    source, problem = (
        noise_of(key, progress.x, ts, noise),
        _prepared(solver, problem, zero_end),
    )
    inputs = solver.prepare(problem, ts)

    def body(progress):
        x, memory, index = progress
        at = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False),
            inputs,
        )
        x, after = solver.step(
            problem, at, Draw(source, index.astype(jnp.uint32)), x, memory
        )
        if jax.tree.structure(after) != jax.tree.structure(memory):
            raise TypeError(
                f"progress must be made by solvers.start for {solver.name}, got that of another solver"
            )
        return Progress(x, after, index + 1)

    # a while loop even where the number of steps is known: XLA would unroll a single one, and round otherwise
    progress = jax.lax.while_loop(lambda progress: progress.step < last, body, progress)
    if solver.report is None:
        return progress
    return progress._replace(
        x=_nan_where(solver.report(progress.memory).exhausted, progress.x)
    )


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
            return checks.denoised(data, x).astype(x.dtype)
        if not isinstance(data, tuple) or len(data) != 2:
            raise TypeError(
                f"denoiser must return a pair (D, second), see ddpm.paired; got {data!r}"
            )
        second = jnp.asarray(data[1])
        checks.one_of_shapes("denoiser's second value", second, [(), x.shape])
        return checks.denoised(data[0], x).astype(x.dtype), second.astype(x.dtype)


def _no_parts(step: Array, now: Array, end: Array, level: Array, index: Array) -> Array:
    raise TypeError(
        "noise of single draws has no path for a solver that chooses its own times: give a Brownian path"
    )


class Source(NamedTuple):
    """Where a run's noise comes from, each draw standard normal and of x's shape.

    normal(step, i): the i-th draw of a step. What a draw means:

    - Where a method follows a Wiener process, draw 0 is ΔW/√h and draw 1 fixes ∫ W: ∫ (W(u) − W(t)) du = h^{3/2}
      (z_0/2 + z_1/(2√3)) over a step of length h. One noise per step (ancestral samplers, Euler–Maruyama, the churn
      of `edm_stochastic`) is draw 0. `sra1` takes draws 0 and 1, `dpmpp_sde` 0 to 2.
    - `predictor_corrector` takes its predictor's draws, and draw 3 + i for the i-th correction.
    - `restart` takes draw k for the k-th way back.
    - `annealed_langevin` takes a draw for each of its Langevin steps, see `repeated`.

    part(step, now, end, level, index): ΔW/√h over the index-th of 2^level equal parts of a step, from now to end, for
    a method that chooses its own times.
    repeated(step, k, count, i): the i-th draw of the k-th of `count` inner steps, k traced. An array of noise gives
    [step, k].
    mean(value): the mean of a value over the examples of a batch. None outside of `sample_many`.
    """

    normal: Callable[[Array, int], Array]
    part: Callable[..., Array] = _no_parts
    repeated: Callable[[Array, Array, int, int], Array] | None = None
    mean: Callable[[Array], Array] | None = None


class Draw(NamedTuple):
    """One step's share of a source: draw(i) and draw.part(now, end, level, index)."""

    source: Source
    index: Array

    def __call__(self, i: int) -> Array:
        """The i-th standard normal of this step, shape of x."""
        checks.integer(
            "draw", i, 0, noise.DRAWS_PER_STEP - 1
        )  # one more would be the next step's first
        return self.source.normal(self.index, i)

    def part(self, now: Array, end: Array, level: Array, index: Array) -> Array:
        """The normalised Wiener increment over a part of this step, shape of x."""
        return self.source.part(self.index, now, end, level, index)

    def mean(self, value: Array) -> Array:
        """The mean of a value over the examples of the batch, of its shape."""
        checks.require(
            self.source.mean is not None,
            'norms="batch" averages over the examples of sample_many; use '
            'norms="expected" here',
        )
        return self.source.mean(value)  # type: ignore[misc]

    def repeated(self, k: Array, count: int, i: int) -> Array:
        """The i-th standard normal of the k-th of `count` inner steps, shape of x."""
        if self.source.repeated is not None:
            return self.source.repeated(self.index, k, count, i)
        return self.source.normal(
            self.index * count + jnp.asarray(k, self.index.dtype), i
        )


def noise_of(
    key: Key | BrownianPath | None, x: PyTree, ts: Array, given: Any = None
) -> Source:
    """The source of a run's noise.

    Args:
      key: Hashed with (step, draw) where nothing is given. A `BrownianPath` counts as given.
      x: The state.
      ts: The grid (N + 1,).
      given: None, an array (N, draws, *x.shape), a function (step, draw) -> array, or a `BrownianPath`.

    Returns:
      The source.
    """
    if isinstance(key, BrownianPath):
        key, given = None, key

    def normal(step, i):
        return noise.normal(key, step * noise.DRAWS_PER_STEP + i, x.shape, x.dtype)

    def part(step, now, end, level, index):
        return noise.part(jax.random.fold_in(key, step), level, index, shape=x.shape, dtype=x.dtype)

    if given is None:
        return Source(normal, part)
    if isinstance(given, BrownianPath):
        return _along_path(given, x, ts)
    if callable(given):
        return Source(
            lambda step, i: jnp.broadcast_to(
                jnp.asarray(given(step, i), x.dtype), x.shape
            )
        )
    return _from_array(jnp.asarray(given, x.dtype))


def _along_path(given, x, ts):
    own = jax.random.fold_in(given.key, 1)  # for draws of which the path knows nothing

    def along(step, i):
        if i > 1:
            return noise.normal(own, step * noise.DRAWS_PER_STEP + i, x.shape, x.dtype)
        return given.increment(ts[step], ts[step + 1])[i].astype(x.dtype)

    return Source(
        along,
        lambda step, now, end, level, index: given.increment(now, end)[0].astype(
            x.dtype
        ),
    )


def _from_array(given):
    def check(needed):
        if needed > given.shape[1]:
            raise ValueError(
                f"noise must have at least {needed} draws per step for this solver, got {given.shape[1]}"
            )

    def entry(step, i):
        check(i + 1)
        return given[step, i]

    def repeated(step, k, count, i):
        check(count)
        return given[step, k]

    return Source(entry, repeated=repeated)


def _prepared(solver, problem, zero_end):
    """The problem with its denoiser checked and the field that the solver consumes filled in."""
    denoiser = problem.denoiser and Checked(problem.denoiser, paired=solver.paired)
    return derive(
        solver,
        Problem(
            problem.schedule, denoiser, problem.velocity, problem.sde, zero_end=zero_end
        ),
    )


def _nan_where(condition, tree):
    return jax.tree.map(lambda leaf: jnp.where(condition, jnp.nan, leaf), tree)


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
    problem = _prepared(solver, problem, zero_end)
    if solver.solve is not None:
        states, report = solver.solve(source, problem, x, ts)
        result = states if path else jax.tree.map(lambda leaf: leaf[-1], states)
    else:
        result, report = _scan(source, solver, problem, x, ts, path)
    if report.exhausted is not False:
        result = _nan_where(report.exhausted, result)
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
    report = (
        solver.report(state) if solver.report else _fixed_report(solver, problem, ts)
    )
    return jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest]), x, states
    ) if path else end, report


def _fixed_report(solver, problem, ts):
    steps = ts.shape[0] - 1
    if solver.consumes == "velocity" and not hasattr(problem.velocity, "coefficients"):
        return Info(
            solver.evaluations(np.linspace(2.0, 1.0, steps + 1)), steps, 0, False
        )  # 0 is a time like any other
    plain, to_zero = (
        solver.evaluations(np.linspace(2.0, end, steps + 1)) for end in (1.0, 0.0)
    )
    return Info(jnp.where(ts[-1] == 0, to_zero, plain), steps, 0, False)


def as_problem(problem: Any) -> Problem:
    """An SDE, a velocity or a `Problem` as a `Problem` of pytree callables. Raises TypeError for anything else."""
    if isinstance(problem, Problem):
        schedule = problem.schedule and as_pytree(problem.schedule)
        fields = problem.denoiser, problem.velocity
        denoiser, velocity = (
            None if field is None else as_pytree_callable(field) for field in fields
        )
        return Problem(
            schedule, denoiser, velocity, problem.sde and as_problem(problem.sde).sde
        )
    if isinstance(problem, sde.SDE):
        return Problem(
            sde=sde.SDE(
                as_pytree_callable(problem.drift), as_pytree_callable(problem.diffusion)
            )
        )
    checks.callable_("problem", problem, "velocity(x, t), or be an SDE or a Problem")
    return Problem(velocity=as_pytree_callable(problem))


def diffusion(schedule: Any, denoiser: Any) -> Problem:
    """The problem of sampling from a denoiser under a schedule, for every solver."""
    return Problem(as_pytree(schedule), as_pytree_callable(denoiser))


def derive(solver: Solver, problem: Problem) -> Problem:
    """`problem` with the field that the solver consumes filled in from schedule and denoiser where it is missing."""
    if getattr(problem, solver.consumes) is not None:
        return problem
    if solver.consumes == "velocity":
        return dataclasses.replace(
            problem, velocity=sde.probability_flow(problem.schedule, problem.denoiser)
        )
    return dataclasses.replace(
        problem, sde=sde.reverse(problem.schedule, problem.denoiser)
    )


# ------------------------------------------------------------------------------------------------------------- checks


def check_solver(solver: Any) -> None:
    """Refuse what is not a solver; a factory that was not called is named."""
    if not isinstance(solver, Solver):
        hint = f"; call it: {solver.__name__}()" if inspect.isfunction(solver) else ""
        raise TypeError(
            f"solver must be made by a factory of diffjax.solvers such as heun(), got {solver!r}{hint}"
        )


def check_consumes(solver: Solver, problem: Problem) -> None:
    """Refuse a problem that lacks what the solver consumes; a denoiser serves with its schedule only."""
    whole = problem.denoiser is not None and problem.schedule is not None
    if whole or (
        solver.consumes != "denoiser" and getattr(problem, solver.consumes) is not None
    ):
        return
    stated = [
        name
        for name in ("schedule", "denoiser", "velocity", "sde")
        if getattr(problem, name) is not None
    ]
    raise TypeError(
        f"solver {solver.name} consumes a {solver.consumes}, but the problem states only {stated}"
    )


def check_coupling(solver: Solver, denoiser: Any) -> None:
    """Refuse a stochastic solver for a denoiser whose noise depends on the data."""
    if solver.stochastic:
        predictions.check_independent(f"the stochastic solver {solver.name}", denoiser)


def check_key(solver: Solver, key: Any, given: Any = None) -> Any:
    """The key, which a stochastic solver must have unless its noise is given."""
    if key is None:
        if solver.stochastic and given is None:
            raise ValueError(
                f"key must be given: solver {solver.name} is stochastic, got key=None"
            )
        return None
    return checks.key("key", key)


def check_noise(given: Any, shape: tuple[int, ...] | None, ts: ArrayLike) -> Any:
    """One's own noise for a run from x of `shape` over the grid: a path, an array, or a function as a pytree."""
    if given is None:
        return None
    if shape is None:
        raise TypeError(
            "noise must be None where x is a pytree, which no stochastic solver takes"
        )
    if isinstance(given, BrownianPath):
        check_path(given, shape, ts)
        return given
    if callable(given):
        return as_pytree_callable(given)
    return check_draws(given, shape, ts)


def check_draws(
    given: ArrayLike, shape: tuple[int, ...], ts: ArrayLike, batch: tuple[int, ...] = ()
) -> Array:
    """An array of noise (*batch, N, draws, *shape) for runs over the grid ts (N + 1,)."""
    given = checks.real_array("noise", given)
    expected = (*batch, np.shape(ts)[0] - 1, "draws", *shape)
    if given.ndim != len(expected) or any(
        n not in (m, "draws") for n, m in zip(expected, given.shape, strict=True)
    ):
        raise ValueError(
            f"noise must have shape ({', '.join(map(str, expected))}), got {given.shape}"
        )
    checks.finite("noise", given)
    return given


def check_grid(name: str, solver: Solver, problem: Problem, ts: ArrayLike) -> None:
    """Refuse a concrete grid that the solver cannot walk, alone or on the problem's schedule."""
    if checks.is_traced(ts):
        return
    values = np.asarray(ts)
    if solver.stochastic and solver.consumes == "denoiser" and values[0] < values[-1]:
        raise ValueError(
            f"{name} must decrease for {solver.name}, which samples downwards, got {values[0]} … {values[-1]}"
        )
    if (
        solver.consumes == "denoiser"
        and values[0] < values[-1]
        and without_signal(problem.schedule, values[-1])
    ):
        raise ValueError(
            f"{name} must end below t={values[-1]} upwards for {solver.name}: α = 0 there"
        )
    if solver.check_grid is not None:
        stated = (
            solver.consumes != "denoiser"
            and getattr(problem, solver.consumes) is not None
        )
        solver.check_grid(None if stated else problem.schedule, values)


def check_path(given: BrownianPath, shape: tuple[int, ...], ts: ArrayLike) -> None:
    """Raise ValueError for a Brownian path of another shape than x's, or that does not cover the grid."""
    if given.shape != shape:
        raise ValueError(
            f"noise must be a Brownian path of x's shape {shape}, got {given.shape}"
        )
    if checks.is_traced(given, ts):
        return
    low, high = sorted((float(given.start), float(given.end)))
    values = np.asarray(ts)
    slack = 4 * np.finfo(values.dtype).eps * max(abs(low), abs(high))
    if values.min() < low - slack or values.max() > high + slack:
        raise ValueError(
            f"noise must be a Brownian path that covers the grid, got [{low}, {high}] for {ts[0]} … {ts[-1]}"
        )


def ends_at_zero(ts: ArrayLike) -> bool:
    """Whether the grid's last time is seen to be 0; what is no grid is refused elsewhere."""
    if checks.is_traced(ts):
        return False
    try:
        values = np.asarray(ts, float)
    except (TypeError, ValueError, OverflowError):
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


def check_between(
    start: ArrayLike, end: ArrayLike, weights: ArrayLike
) -> tuple[Array, Array, Array]:
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
