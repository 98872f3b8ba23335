"""Grids fitted to a model: where a solver should put a number of steps."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import checks, grids, schedules
from .grids.times import with_ends
from .numerics import float_dtype
from .sampling import shape_and_start
from .schedules import Schedule
from .solvers import driver, noise_source, requirements
from .solvers.base import Solver
from .solvers.ode import heun, rk4
from .types import (
    ArrayLike,
    Denoiser,
    Key,
    as_one_program,
    as_pytree_callable,
    combine,
    compiled,
    partition,
    pytree,
    static_field,
)

__all__ = ["FAMILIES", "HELD_OUT", "NODES", "GridErrors", "optimised_grid"]


def __dir__() -> list[str]:
    return __all__


FAMILIES = {
    "angular": lambda schedule, steps: grids.angular(
        schedule, steps, grids.recommended_share(steps)
    ),
    "log_snr": grids.log_snr,
    "karras": grids.karras,
    "uniform": grids.uniform,
}
"""name -> the grids that a fitted one must beat.

The first, the default of `sample`, depends on the data's unit.
"""

NODES = 64
"""Intervals of equal log-SNR on which the local error is measured."""

HELD_OUT = 4
"""Starts that judge the grids, for each of `examples`."""


class GridErrors(NamedTuple):
    """End errors of a fitted grid and of those that it was compared with.

    They are measured on starts held out from the descent and from the choice
    of its iterate. Each is the root mean square, over starts and components,
    of the difference between the solver's end and the reference's, in data
    units.

    Attributes:
      error: Of the grid returned, which is the best of all.
      descended: Of the descended grid.
      equidistributed: Of the grid that equidistributes the local error.
      baselines: Of each fixed family's grid, by its name in `FAMILIES`.
    """

    error: float
    descended: float
    equidistributed: float
    baselines: dict[str, float]


@checks.arguments(
    schedule=schedules.argument,
    denoiser=checks.denoiser,
    steps=(checks.integer, 1),
    solver=checks.optional(requirements.check_solver, "deterministic", "fixed"),
    iterations=(checks.integer, 0),
    learning_rate=checks.positive,
)
def optimised_grid(
    schedule: Schedule,
    denoiser: Denoiser,
    steps: int,
    key: Key | None = None,
    *,
    solver: Solver | None = None,
    shape: tuple[int, ...] | None = None,
    x_init: ArrayLike | None = None,
    examples: int = 256,
    iterations: int = 200,
    learning_rate: float = 0.1,
    info: bool = False,
) -> Any:
    """Grid fitted to a denoiser and a solver, for a small error of the samples.

    The error is the distance from the end of the exact probability flow.

    First the local error e(λ) of one step of the solver is measured against
    rk4 along it, on `NODES` steps of equal log-SNR. Equal local errors result
    where

        ∫ e^{1/(p+1)} dλ

    is cut into N equal parts (de Boor 1973, Hairer, Nørsett & Wanner 1993,
    II.4). p is the order of that step, 1 for a solver that builds on earlier
    ones. The integrand is smoothed over 5 nodes.

    Then the end error is descended from the best of that grid and all of
    `FAMILIES` but the first, by Adam with a cosine decay on the w of

        log (1/n) Σ_k ‖x̂_k(w) − x_k‖,    t_i = t(λ_i)

        λ_i = λ(t_max) + (λ(t_min) − λ(t_max)) Σ_{j≤i} softmax(w)_j

    x̂ is the solver's end, x that of rk4 from the same start. The mean of
    norms, unlike that of squares, does not depend mostly on the few starts
    near a watershed of the flow, whose ends lie far apart. Descent through the
    sampler is that of Watson et al. 2022, there of sample quality. Sabour et
    al. 2024 minimise a bound instead.

    The iterate is chosen on starts that were not fitted. Then the descended
    grid, the equidistributed one and the families are judged on further starts
    by their root mean square error, to which starts near a watershed do count.
    The best is returned.

    So on the judging starts the result is never worse than a family.
    Differences of a few such starts among `HELD_OUT · examples` are chance.

    Cost in evaluations of the denoiser, with n = examples and c that of one
    step. A gradient counts as two evaluations, and stages recomputed for it as
    well.

        (HELD_OUT + 1) · n · 256 max(4, ⌈N/8⌉) + 64 n c
        + (2.5 n · iterations + 6 (HELD_OUT + 1) n) · evaluations of the grid

    Args:
      schedule: One with a finite log-SNR at t_max.
      denoiser: (x, t) -> E[x_0 | x_t = x].
      steps: N, the number of steps.
      key: For drawing the starts, unless x_init is given.
      solver: Deterministic, of fixed steps. Default `heun()`.
      shape: Of one example. Starts are drawn from N(0, prior_std²) in this
        shape, as `sample` draws them.
      x_init: Starts (n, *shape) at t_max to use instead, distributed as those
        that the grid will be used from. The first quarter is fitted, the
        second chooses the iterate, the other half judges the grids.
      examples: Starts drawn for the descent, half of them fitted and half for
        choosing the iterate. Take more where the errors depend on a few
        starts.
      iterations: Iterations of the descent. With 0 the denoiser is not
        differentiated.
      learning_rate: Of the descent.
      info: Whether to return (grid, `GridErrors`).

    Returns:
      The grid, times (steps + 1,) from t_max to t_min, or (grid,
      `GridErrors`).

    Raises:
      TypeError: For a solver that is stochastic or chooses its own steps.
      ValueError: For starts neither given nor drawn, fewer than 2 of them,
        α(t_max) = 0, or a denoiser that is not finite on the reference run.

    Example:
      >>> grid = dj.tuning.optimised_grid(
      ...     schedule, denoiser, 2, key, shape=(2,), examples=2, iterations=0)
      >>> grid.shape
      (3,)
    """
    solver = heun() if solver is None else solver
    _check_end_log_snrs(schedule)
    drawn, counts = _starts(key, shape, x_init, examples)
    arrays, static = partition((as_pytree_callable(denoiser), schedule))
    settings = _FitSettings(solver, static, steps, counts, iterations)
    candidates, starts, ends = _prepare(settings, arrays, drawn)
    problem = driver.diffusion(schedule, denoiser)
    for grid in np.asarray(candidates)[:-1]:
        requirements.check_grid("grid", solver, problem, grid)
    message = (
        "denoiser must be finite along the probability flow, got NaN or infinity at "
        "the end of the reference run"
    )
    checks.require(np.all(np.isfinite(ends)), message)
    grid, errors = _descend(settings, arrays, learning_rate, starts, ends, candidates)
    *baselines, equidistributed, descended = np.asarray(errors, float).tolist()
    if not info:
        return grid
    report = GridErrors(
        error=float(np.min(np.asarray(errors))),
        descended=descended,
        equidistributed=equidistributed,
        baselines=dict(zip(FAMILIES, baselines, strict=True)),
    )
    return grid, report


class _FitSettings(NamedTuple):
    """Static settings of the compiled programs.

    Attributes:
      solver: The solver.
      static: Static part of denoiser and schedule.
      steps: N.
      counts: Numbers of starts that are fitted, choose the iterate, and judge.
      iterations: Of the descent.
    """

    solver: Solver
    static: Any
    steps: int
    counts: tuple[int, int, int]
    iterations: int


def _check_end_log_snrs(schedule):
    if not checks.is_traced(schedule):
        if not np.all(np.isfinite(as_one_program(_end_log_snrs, schedule))):
            schedules.log_snr_range(schedule)  # raises


def _end_log_snrs(schedule):
    ends = schedule.t_min, schedule.t_max
    return jnp.stack([schedules.log_snr(schedule, t) for t in ends])


def _starts(key, shape, x_init, examples):
    """((None, starts) or (key, no starts of the shape), counts of `_FitSettings`)."""
    if x_init is not None:
        starts = checks.batch("x_init", requirements.check_example("x_init", x_init), 2)
        count, half = starts.shape[0], starts.shape[0] // 2
        shape_and_start(shape, starts, (count,))
        return (None, starts), ((half + 1) // 2, half // 2, count - half)
    shape, _ = shape_and_start(shape, None)
    examples = checks.integer("examples", examples, minimum=2)
    half = examples // 2
    drawn = checks.key("key", key), np.zeros((0, *shape), np.float32)
    return drawn, (examples - half, half, HELD_OUT * examples)


@pytree
class _Recomputed:
    """A denoiser that is evaluated again in the backward pass.

    A gradient then holds one state per step.
    """

    denoiser: Any

    def __call__(self, x, t):
        return jax.checkpoint(lambda x, t: self.denoiser(x, t))(x, t)


def _run(solver, denoiser, schedule, grid, starts):
    """The solver's ends from many starts, shape of starts."""
    problem = driver.diffusion(schedule, denoiser)

    def one(x):
        return driver.run(
            noise_source.source_of(None, x, grid),
            solver,
            problem,
            x=x,
            ts=grid,
            zero_end=False,
        )[0]

    return jax.vmap(one)(starts)


def _mean_norm(difference, floor=0.0):
    """Mean over examples of the root mean square over components."""
    flat = difference.reshape(len(difference), -1)  # (n, D)
    return jnp.mean(jnp.sqrt(jnp.mean(flat**2, -1) + floor))


def _unit_of(ends):
    """Size of the data, in which squares of errors neither over- nor underflow."""
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(ends)))
    return jnp.where(size > 0, size, 1)


@compiled
def _prepare(settings, arrays, drawn):
    """(candidate grids, starts, ends of the probability flow).

    The last candidate equidistributes the local error.
    """
    denoiser, schedule = combine(arrays, settings.static)
    key, starts = drawn
    if key is not None:
        shape = (sum(settings.counts), *starts.shape[1:])
        noise = jax.random.normal(key, shape, float_dtype())
        starts = schedules.prior_std(schedule) * noise
    families = [family(schedule, settings.steps) for family in FAMILIES.values()]
    substeps = max(4, -(-8 * settings.steps // NODES))
    fine = grids.log_snr(schedule, NODES * substeps)
    measured = sum(settings.counts[:2])
    ends, local_errors = _reference(
        settings.solver, denoiser, schedule, fine, starts[:measured]
    )
    others = _run(rk4(), denoiser, schedule, fine, starts[measured:])
    ends = jnp.concatenate([ends, others])
    equal = _equidistribute(
        schedule, settings.steps, settings.solver, fine[::substeps], local_errors
    )
    return jnp.stack([*families, equal]), starts, ends


def _reference(solver, denoiser, schedule, fine, starts):
    """(ends of the probability flow, local errors (NODES,)).

    By rk4 on the fine grid, and by one step of the solver over each node.
    """

    def over_node(x, ts):
        end = _run(rk4(), denoiser, schedule, ts, x)
        step = _run(solver, denoiser, schedule, ts[jnp.array([0, -1])], x)
        unit = _unit_of(end)
        # the scan goes on from the exact end, so that errors stay local
        return end, _mean_norm((step - end) / unit) * unit

    substeps = (len(fine) - 1) // NODES
    nodes = substeps * jnp.arange(NODES)[:, None]
    times = fine[nodes + jnp.arange(substeps + 1)]  # (NODES, substeps + 1)
    return jax.lax.scan(over_node, starts, times)


def _equidistribute(schedule, steps, solver, nodes, local_errors):
    """Times that cut ∫ e^{1/(p+1)} dλ into `steps` equal parts.

    `local_errors` (NODES,) lie between the times `nodes` (NODES + 1,).
    """
    errors = jnp.nan_to_num(local_errors, posinf=0.0)
    order = 1 if solver.traits.past else solver.order or 1
    density = jnp.maximum(errors, 1e-6 * jnp.max(errors)) ** (1 / (order + 1))
    density = jnp.convolve(jnp.pad(density, 2, mode="edge"), jnp.ones(5), mode="valid")
    share = jnp.concatenate([jnp.zeros(1), jnp.cumsum(density)])  # (NODES + 1,)
    parts = jnp.linspace(0, share[-1], steps + 1)
    log_snrs = jnp.interp(parts, share, schedules.log_snr(schedule, nodes))
    return _times(schedule, log_snrs)


def _times(schedule, log_snrs):
    ts = schedules.time_of_log_snr(schedule, log_snrs)
    return with_ends(ts, schedule.t_max, schedule.t_min)


@pytree
class _EndError:
    """End errors of grids, differentiable in the grid. Pairs are (starts, ends)."""

    denoiser: Any
    schedule: Any
    unit: Any
    floor: Any
    solver: Solver = static_field()

    def differences(self, grid, pairs):
        starts, ends = pairs
        denoiser = _Recomputed(self.denoiser)
        x = _run(self.solver, denoiser, self.schedule, grid, starts)
        return (x - ends) / self.unit

    def mean_norm(self, grid, pairs):
        """Mean over starts of the norm, infinite for a grid that does not decrease."""
        value = _mean_norm(self.differences(grid, pairs), self.floor)
        return jnp.where(jnp.all(jnp.diff(grid) < 0), value, jnp.inf)

    def root_mean_square(self, grid, pairs):
        """In data units, infinite for a grid that does not decrease."""
        square = jnp.mean(self.differences(grid, pairs) ** 2)
        value = self.unit * jnp.sqrt(square)
        return jnp.where(jnp.all(jnp.diff(grid) < 0), value, jnp.inf)


@compiled
def _descend(settings, arrays, learning_rate, starts, ends, candidates):
    """(the best grid, errors of the candidates and of the descended grid)."""
    denoiser, schedule = combine(arrays, settings.static)
    fitted, chosen, _ = settings.counts
    part = lambda first, last: (starts[first:last], ends[first:last])
    fit, judged = part(0, fitted), part(fitted + chosen, None)
    # of two starts given none is left to choose the iterate
    choice = part(fitted if chosen else 0, fitted + chosen)
    unit = _unit_of(ends)
    # against the norm's infinite slope at 0
    floor = jnp.finfo(ends.dtype).eps ** 2 * jnp.mean((ends / unit) ** 2)
    error = _EndError(denoiser, schedule, unit, floor, settings.solver)
    # without `angular`, so that the descent is the same in every unit of the data
    begun = candidates[1:]
    errors = jax.lax.map(lambda grid: error.mean_norm(grid, fit), begun)
    grid = begun[jnp.nanargmin(errors)]
    if settings.iterations:
        pairs = fit, choice
        grid = _best_iterate(error, pairs, grid, learning_rate, settings.iterations)
    grids_judged = jnp.concatenate([candidates, grid[None]])
    judge = lambda grid: error.root_mean_square(grid, judged)
    errors = jax.lax.map(judge, grids_judged)
    errors = jnp.nan_to_num(errors, nan=jnp.inf, posinf=jnp.inf)
    return grids_judged[jnp.argmin(errors)], errors


def _best_iterate(error, pairs, start, learning_rate, iterations):
    """Adam on the logits w of the shares of the log-SNR interval, from a grid."""
    (fit, choice), schedule = pairs, error.schedule
    first, last = schedules.log_snr_range(schedule)
    optimiser = optax.adam(optax.cosine_decay_schedule(1.0, iterations))

    def grid_of(logits):
        log_snrs = first + (last - first) * jnp.cumsum(jax.nn.softmax(logits))
        return _times(schedule, jnp.concatenate([first[None], log_snrs]))

    def objective(logits):
        return jnp.log(error.mean_norm(grid_of(logits), fit))

    def descend(carry, _):
        logits, state, best = carry
        grid = grid_of(logits)
        now = error.mean_norm(grid, choice)
        better = functools.partial(jnp.where, now < best[0])
        best = jax.tree.map(better, (now, grid), best)
        gradient = jax.grad(objective)(logits)
        with jax.numpy_dtype_promotion("standard"):  # optax divides integers
            updates, state = optimiser.update(gradient, state)
        return (logits + learning_rate * updates, state, best), None

    logits = jnp.log(jnp.diff(schedules.log_snr(schedule, start)))
    carry = logits, optimiser.init(logits), (error.mean_norm(start, choice), start)
    (_, _, (_, grid)), _ = jax.lax.scan(descend, carry, length=iterations)
    return grid
