"""Grids fitted to a model: where a given solver should put a given number of steps."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import checks, grids, schedules
from .numerics import float_dtype
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
)

FAMILIES = {
    "angular": lambda schedule, steps: grids.angular(
        schedule, steps, grids.recommended_share(steps)
    ),
    "log_snr": grids.log_snr,
    "karras": grids.karras,
    "uniform": grids.uniform,
}
"""name -> the grids that a fitted one must beat. The first, the default of `sample`, depends on the data's unit."""

NODES = 64
"""Intervals of equal log-SNR on which the local error is measured."""


HELD_OUT = 4
"""Starts that the grids are judged on, for each of `examples`."""


class Fit(NamedTuple):
    """End errors on starts held out from the descent and from the choice of its iterate.

    Each is the root mean square over starts and components, in data units, of the difference between the solver's end
    and the reference's: of the grid returned, of the descended one, of the one that equidistributes the local error,
    and by name of each fixed family's. The grid returned is the best of them all.
    """

    error: float
    descended: float
    equidistributed: float
    baselines: dict[str, float]


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
    """Times (steps + 1,) from t_max to t_min with a small end error of `solver` on this denoiser's flow.

    First the local error e(λ) of one step of `solver` is measured against rk4 along the flow, on `NODES` steps of equal
    log-SNR. e^{1/(p+1)}, p the order of that step (1 for a solver that builds on earlier ones), smoothed over 5 of
    them, is given in equal parts to the N steps: equal local errors (de Boor 1973; Hairer, Nørsett & Wanner 1993,
    II.4). Then the end error is descended from the best of that grid and all of `FAMILIES` but the first: with λ_i =
    λ(t_max) + (λ(t_min) − λ(t_max)) Σ_{j≤i} softmax(w)_j and t_i = t(λ_i), Adam with a cosine decay on the w of log
    (1/n) Σ_k ‖x̂_k(w) − x_k‖, x̂ the solver's end, x that of rk4 from the same start. The mean of norms, unlike that of
    squares, is not ruled by the few starts near a watershed of the flow, whose ends lie far apart.

    The iterate is chosen on starts that were not fitted. The descended grid, the equidistributed one and the families
    are then judged on further starts by their root mean square error, to which starts near a watershed do count, and
    the best of them is returned: there the result is never worse than a family. Differences of a few such starts among
    `HELD_OUT · examples` are chance: give more examples where the errors reported are ruled by them.

    Cost in evaluations of the denoiser, a gradient counted as two and stages recomputed in it, with n = examples:
    (HELD_OUT + 1) · n · 256 max(4, ⌈N/8⌉) + 64 n c + (2.5 n · iterations + 6 (HELD_OUT + 1) n) ·
    solver.evaluations(N), c that of one step. Descent through the sampler: Watson et al. 2022 (there of sample
    quality). Sabour et al. 2024 minimise a bound instead.

    Args:
      schedule: With a finite log-SNR at t_max.
      denoiser: (x, t) -> E[x_0 | x_t = x].
      steps: N.
      key: For drawing the starts, unless x_init is given.
      solver: Deterministic, of fixed steps; default `heun()`.
      shape: Of one example. Starts are drawn from N(0, prior_std²) in this shape, as `sample` draws them.
      x_init: Starts (n, *shape) at t_max in their stead, distributed as those that the grid will be used from. The
        first quarter is fitted, the second chooses the iterate, the other half judges the grids.
      examples: Starts that are drawn for the descent, half of them fitted and half for choosing the iterate.
      iterations: Of the descent. With 0 the denoiser is not differentiated.
      learning_rate: Of the descent.
      info: Whether to return (grid, Fit).

    Returns:
      The grid, or (grid, Fit).

    Raises:
      TypeError: For a solver that is stochastic or chooses its own steps.
      ValueError: For starts neither given nor drawn, fewer than 2 of them, α(t_max) = 0, or a denoiser that is not
        finite on the reference path.
    """
    schedules.check(schedule)
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    steps = checks.integer("steps", steps, minimum=1)
    iterations = checks.integer("iterations", iterations, minimum=0)
    learning_rate = checks.positive("learning_rate", learning_rate)
    solver = heun() if solver is None else solver
    _check_solver(solver)
    _check_levels(schedule)
    drawn, counts = _starts(key, shape, x_init, examples)
    arrays, static = partition((as_pytree_callable(denoiser), schedule))
    settings = _Settings(solver, static, steps, counts, iterations)
    candidates, starts, ends = _prepare(settings, arrays, drawn)
    problem = driver.diffusion(schedule, denoiser)
    for grid in np.asarray(candidates)[:-1]:
        requirements.check_grid("grid", solver, problem, grid)
    if not np.all(np.isfinite(ends)):
        raise ValueError(
            "denoiser must be finite along the flow, got NaN or infinity at the end of the reference path"
        )
    grid, errors = _descend(settings, arrays, learning_rate, starts, ends, candidates)
    *baselines, equidistributed, descended = np.asarray(errors, float).tolist()
    report = Fit(
        float(np.min(np.asarray(errors))),
        descended,
        equidistributed,
        dict(zip(FAMILIES, baselines, strict=True)),
    )
    return (grid, report) if info else grid


class _Settings(NamedTuple):
    """What is static in the compiled programs. counts: starts that are fitted, choose the iterate, and judge."""

    solver: Solver
    static: Any
    steps: int
    counts: tuple[int, int, int]
    iterations: int


def _check_levels(schedule):
    if not checks.is_traced(schedule) and not np.all(
        np.isfinite(as_one_program(_end_levels, schedule))
    ):
        schedules.log_snr_range(schedule)  # raises


def _end_levels(schedule):
    return jnp.stack(
        [schedules.log_snr(schedule, t) for t in (schedule.t_min, schedule.t_max)]
    )


def _check_solver(solver):
    requirements.check_solver(solver)
    if solver.stochastic:
        raise TypeError(
            f"solver must be deterministic, so that its end can be compared with the flow's, got {solver!r}"
        )
    if solver.report is not None or solver.solve is not None:
        raise TypeError(
            f"solver must take one step after another on the grid it is given, got {solver!r}"
        )


def _starts(key, shape, x_init, examples):
    """(starts, or the key and shape to draw them with; how many are fitted, choose the iterate and judge)."""
    if x_init is not None:
        starts = requirements.check_example("x_init", x_init)
        if starts.ndim < 1 or starts.shape[0] < 2:
            raise ValueError(
                f"x_init must have shape (n, *shape) with n at least 2, got {starts.shape}"
            )
        if shape is not None:
            checks.one_of_shapes(
                "x_init", starts, [(starts.shape[0], *checks.shape("shape", shape))]
            )
        count, half = starts.shape[0], starts.shape[0] // 2
        return (None, starts), ((half + 1) // 2, half // 2, count - half)
    if shape is None:
        raise ValueError(
            "shape must be given, the shape of one example, unless x_init is"
        )
    shape = checks.shape("shape", shape)
    examples = checks.integer("examples", examples, minimum=2)
    half = examples // 2
    return (checks.key("key", key), np.zeros((0, *shape), np.float32)), (
        examples - half,
        half,
        HELD_OUT * examples,
    )


@pytree
class _Recomputed:
    """A denoiser that is evaluated again in the backward pass, so that a gradient holds one state a step."""

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
    return jnp.mean(
        jnp.sqrt(jnp.mean(difference.reshape(len(difference), -1) ** 2, -1) + floor)
    )


def _in_unit(ends):
    """The size of the data, in which squares of errors neither over- nor underflow."""
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(ends)))
    return jnp.where(size > 0, size, 1)


@compiled
def _prepare(settings, arrays, drawn):
    """(candidate grids, starts, ends of the flow from them): the last candidate equidistributes the local error."""
    denoiser, schedule = combine(arrays, settings.static)
    key, starts = drawn
    if key is not None:
        shape = (sum(settings.counts), *starts.shape[1:])
        starts = schedules.prior_std(schedule) * jax.random.normal(
            key, shape, float_dtype()
        )
    families = [family(schedule, settings.steps) for family in FAMILIES.values()]
    substeps = max(4, -(-8 * settings.steps // NODES))
    fine = grids.log_snr(schedule, NODES * substeps)
    measured = sum(settings.counts[:2])
    ends, local_errors = _reference(
        settings.solver, denoiser, schedule, fine, starts[:measured]
    )
    ends = jnp.concatenate(
        [ends, _run(rk4(), denoiser, schedule, fine, starts[measured:])]
    )
    equal = _equidistribute(
        schedule, settings.steps, settings.solver, fine[::substeps], local_errors
    )
    return jnp.stack([*families, equal]), starts, ends


def _reference(solver, denoiser, schedule, fine, starts):
    """(ends of the flow, local errors (NODES,)): rk4 on the fine grid, and one step of the solver over each node."""

    def over_node(x, ts):
        end = _run(rk4(), denoiser, schedule, ts, x)
        step = _run(solver, denoiser, schedule, ts[jnp.array([0, -1])], x)
        unit = _in_unit(end)
        return end, _mean_norm((step - end) / unit) * unit

    substeps = (len(fine) - 1) // NODES
    times = fine[
        substeps * jnp.arange(NODES)[:, None] + jnp.arange(substeps + 1)
    ]  # (NODES, substeps + 1)
    return jax.lax.scan(over_node, starts, times)


def _equidistribute(schedule, steps, solver, nodes, local_errors):
    """Times that cut ∫ e^{1/(p+1)} dλ in `steps` equal parts; local_errors (NODES,) between nodes (NODES + 1,)."""
    errors = jnp.nan_to_num(local_errors, posinf=0.0)
    order = 1 if solver.traits.past else solver.order or 1
    density = jnp.maximum(errors, 1e-6 * jnp.max(errors)) ** (1 / (order + 1))
    density = jnp.convolve(jnp.pad(density, 2, mode="edge"), jnp.ones(5), mode="valid")
    share = jnp.concatenate([jnp.zeros(1), jnp.cumsum(density)])
    levels = jnp.interp(
        jnp.linspace(0, share[-1], steps + 1), share, schedules.log_snr(schedule, nodes)
    )
    return (
        schedules.time_of_log_snr(schedule, levels)
        .at[0]
        .set(schedule.t_max)
        .at[-1]
        .set(schedule.t_min)
    )


@compiled
def _descend(settings, arrays, learning_rate, starts, ends, candidates):
    """(the best grid, errors where judged): of the candidates and of the best iterate from the best of them."""
    denoiser, schedule = combine(arrays, settings.static)
    fitted, chosen, _ = settings.counts
    fit, choice = (
        (starts[:fitted], ends[:fitted]),
        (starts[: fitted + chosen], ends[: fitted + chosen]),
    )
    if chosen:
        choice = jax.tree.map(lambda leaf: leaf[fitted:], choice)
    judged = starts[fitted + chosen :], ends[fitted + chosen :]
    first, last = schedules.log_snr_range(schedule)
    unit = _in_unit(ends)
    floor = jnp.finfo(ends.dtype).eps ** 2 * jnp.mean(
        (ends / unit) ** 2
    )  # the norm's slope at 0 is infinite

    def grid_of(logits):
        levels = first + (last - first) * jnp.cumsum(jax.nn.softmax(logits))
        ts = schedules.time_of_log_snr(schedule, jnp.concatenate([first[None], levels]))
        return ts.at[0].set(schedule.t_max).at[-1].set(schedule.t_min)

    def differences(grid, data):
        x, reference = data
        return (
            _run(settings.solver, _Recomputed(denoiser), schedule, grid, x) - reference
        ) / unit

    def error(grid, data):
        return jnp.where(
            jnp.all(jnp.diff(grid) < 0),
            _mean_norm(differences(grid, data), floor),
            jnp.inf,
        )

    def judge(grid):
        value = unit * jnp.sqrt(jnp.mean(differences(grid, judged) ** 2))
        return jnp.where(jnp.all(jnp.diff(grid) < 0), value, jnp.inf)

    optimiser = optax.adam(
        optax.cosine_decay_schedule(1.0, max(1, settings.iterations))
    )

    def descend(carry, _):
        logits, state, best = carry
        grid = grid_of(logits)
        now = error(grid, choice)
        best = jax.tree.map(
            functools.partial(jnp.where, now < best[0]), (now, grid), best
        )
        gradient = jax.grad(lambda logits: jnp.log(error(grid_of(logits), fit)))(logits)
        with jax.numpy_dtype_promotion("standard"):  # optax divides integers
            updates, state = optimiser.update(gradient, state)
        return (logits + learning_rate * updates, state, best), None

    begun = candidates[
        1:
    ]  # without `angular`, so that the descent is the same in every unit of the data
    start = begun[jnp.nanargmin(jax.lax.map(lambda grid: error(grid, fit), begun))]
    grid = start
    if settings.iterations:
        logits = jnp.log(jnp.diff(schedules.log_snr(schedule, start)))
        carry = (logits, optimiser.init(logits), (error(start, choice), start))
        (_, _, (_, grid)), _ = jax.lax.scan(descend, carry, length=settings.iterations)
    grids_judged = jnp.concatenate([candidates, grid[None]])
    errors = jnp.nan_to_num(
        jax.lax.map(judge, grids_judged), nan=jnp.inf, posinf=jnp.inf
    )
    return grids_judged[jnp.argmin(errors)], errors
