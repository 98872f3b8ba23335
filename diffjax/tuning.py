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
from .solvers import driver
from .solvers.base import Solver
from .solvers.ode import heun, rk4
from .types import ArrayLike, Denoiser, Key, as_pytree_callable, combine, compiled, partition, pytree

FAMILIES = {"log_snr": grids.log_snr, "karras": grids.karras, "uniform": grids.uniform}
"""name -> the grids that a fitted one must beat."""

NODES = 64
"""Intervals of equal log-SNR on which the local error is measured."""


class Fit(NamedTuple):
    """Mean end errors on the starts held out from the descent, on which the grid is also chosen: of the grid returned,
    of the one that equidistributes the local error, and by name of each fixed family's.

    The end error of one start is the root mean square over components, in data units, between the solver's end and the
    reference's.
    """

    error: float
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
    """Times (steps + 1,) from t_max to t_min with the least end error of `solver` on this denoiser's flow.

    First the local error e(λ) of one step of `solver` is measured against rk4 along the flow, on `NODES` steps of equal
    log-SNR, and e^{1/(p+1)}, p the order of that step (1 for a solver that builds on earlier ones), smoothed over 5 of
    them, is given in equal parts to the N steps: equal local errors (de Boor 1973; Hairer, Nørsett & Wanner 1993,
    II.4). Then the end error itself is descended from there, or from the best of `FAMILIES`: with λ_i = λ(t_max) +
    (λ(t_min) − λ(t_max)) Σ_{j≤i} softmax(w)_j and t_i = t(λ_i), Adam with a cosine decay on the w of log (1/n) Σ_k
    ‖x̂_k(w) − x_k‖, x̂ the solver's end, x that of rk4 from the same start. The mean of norms, unlike that of squares,
    is not ruled by the few starts near a watershed of the flow, whose ends lie far apart. One half of the starts is
    fitted; on the other the best iterate is chosen, and returned unless a family or the equidistributed grid is better
    there.

    schedule: with a finite log-SNR at t_max. denoiser: (x, t) -> E[x_0 | x_t = x]. steps: N. solver: default `heun()`;
    deterministic, of fixed steps. key and shape: `examples` starts are drawn from N(0, prior_std²) in the shape of one
    example. x_init: starts (n, *shape) at t_max in their stead, the first half for the fit. iterations, learning_rate:
    of the descent; with 0 iterations the denoiser is not differentiated. info=True returns (grid, Fit).

    Cost in evaluations of the denoiser, a gradient counted as two and stages recomputed in it:
    examples · (256 max(4, ⌈N/8⌉) + 64 c + (2.5 · iterations + 4) · solver.evaluations(grid)), c that of one step.

    Raises TypeError for a solver that is stochastic or chooses its own steps; ValueError for starts neither given nor
    drawn, fewer than 2 of them, α(t_max) = 0, or a denoiser that is not finite on the reference path. Descent through
    the sampler: Watson et al. 2022 (there of sample quality). Sabour et al. 2024 minimise a bound instead.
    """
    schedules.check(schedule)
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    steps = checks.integer("steps", steps, minimum=1)
    iterations = checks.integer("iterations", iterations, minimum=0)
    learning_rate = checks.positive("learning_rate", learning_rate)
    solver = heun() if solver is None else solver
    _check_solver(solver)
    families = {name: family(schedule, steps) for name, family in FAMILIES.items()}
    problem = driver.diffusion(schedule, denoiser)
    for grid in families.values():
        driver.check_grid("grid", solver, problem, grid)
    starts = _starts(schedule, key, shape, x_init, examples)
    arrays, static = partition((as_pytree_callable(denoiser), schedule))
    substeps = max(4, -(-8 * steps // NODES))
    fine = grids.log_snr(schedule, NODES * substeps)
    ends, local_errors = _reference(solver, static, arrays, fine, starts)
    if not bool(jnp.all(jnp.isfinite(ends))):
        raise ValueError("denoiser must be finite along the flow, got NaN or infinity at the end of the reference path")
    candidates = [*families.values(), _equidistribute(schedule, steps, solver, fine[::substeps], local_errors)]
    settings = (solver, static, iterations)
    fitted, errors = _descend(settings, arrays, learning_rate, starts, ends, jnp.stack(candidates))
    errors = np.nan_to_num(np.asarray(errors, float), nan=np.inf)
    best = int(np.argmin(errors))
    grid = [*candidates, fitted][best]
    *baselines, equidistributed, _ = errors.tolist()
    report = Fit(errors[best].item(), equidistributed, dict(zip(families, baselines, strict=True)))
    return (grid, report) if info else grid


def _check_solver(solver):
    driver.check_solver(solver)
    if solver.stochastic:
        raise TypeError(
            f"solver must be deterministic, so that its end can be compared with the flow's, got {solver!r}"
        )
    if solver.report is not None or solver.solve is not None:
        raise TypeError(f"solver must take one step after another on the grid it is given, got {solver!r}")


def _starts(schedule, key, shape, x_init, examples):
    if x_init is not None:
        starts = driver.check_example("x_init", x_init)
        if starts.ndim < 1 or starts.shape[0] < 2:
            raise ValueError(f"x_init must have shape (n, *shape) with n at least 2, got {starts.shape}")
        if shape is not None:
            checks.one_of_shapes("x_init", starts, [(starts.shape[0], *checks.shape("shape", shape))])
        return starts
    if shape is None:
        raise ValueError("shape must be given, the shape of one example, unless x_init is")
    shape = checks.shape("shape", shape)
    examples = checks.integer("examples", examples, minimum=2)
    return schedules.prior_std(schedule) * jax.random.normal(checks.key("key", key), (examples, *shape), float_dtype())


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
        return driver.run(driver.noise_of(None, x, grid), solver, problem, x, grid, zero_end=False)[0]

    return jax.vmap(one)(starts)


def _mean_norm(difference, floor=0.0):
    """Mean over examples of the root mean square over components."""
    return jnp.mean(jnp.sqrt(jnp.mean(difference.reshape(len(difference), -1) ** 2, -1) + floor))


@compiled(static_argnums=(0, 1))
def _reference(solver, static, arrays, fine, starts):
    """(ends of the flow, local errors (NODES,)): rk4 on the fine grid, and one step of the solver over each node."""
    denoiser, schedule = combine(arrays, static)

    def over_node(x, ts):
        end = _run(rk4(), denoiser, schedule, ts, x)
        return end, _mean_norm(_run(solver, denoiser, schedule, ts[jnp.array([0, -1])], x) - end)

    substeps = (len(fine) - 1) // NODES
    times = fine[substeps * jnp.arange(NODES)[:, None] + jnp.arange(substeps + 1)]  # (NODES, substeps + 1)
    return jax.lax.scan(over_node, starts, times)


def _equidistribute(schedule, steps, solver, nodes, local_errors):
    """Times that cut ∫ e^{1/(p+1)} dλ in `steps` equal parts; local_errors (NODES,) between nodes (NODES + 1,)."""
    errors = jnp.nan_to_num(local_errors, posinf=0.0)
    order = 1 if solver.past else solver.order or 1
    density = jnp.maximum(errors, 1e-6 * jnp.max(errors)) ** (1 / (order + 1))
    density = jnp.convolve(jnp.pad(density, 2, mode="edge"), jnp.ones(5), mode="valid")
    share = jnp.concatenate([jnp.zeros(1), jnp.cumsum(density)])
    levels = jnp.interp(jnp.linspace(0, share[-1], steps + 1), share, schedules.log_snr(schedule, nodes))
    return schedules.time_of_log_snr(schedule, levels).at[0].set(schedule.t_max).at[-1].set(schedule.t_min)


@compiled
def _descend(settings, arrays, learning_rate, starts, ends, candidates):
    """(grid, errors): the best iterate from the best candidate, and the candidates' and its held-out errors."""
    solver, static, iterations = settings
    denoiser, schedule = combine(arrays, static)
    half = starts.shape[0] // 2
    fit, held_out = (starts[:half], ends[:half]), (starts[half:], ends[half:])
    first, last = schedules.log_snr_range(schedule)
    floor = jnp.finfo(ends.dtype).eps ** 2 * jnp.mean(ends**2)  # the norm's slope at 0 is infinite

    def grid_of(logits):
        levels = first + (last - first) * jnp.cumsum(jax.nn.softmax(logits))
        ts = schedules.time_of_log_snr(schedule, jnp.concatenate([first[None], levels]))
        return ts.at[0].set(schedule.t_max).at[-1].set(schedule.t_min)

    def error(grid, data):
        x, reference = data
        value = _mean_norm(_run(solver, _Recomputed(denoiser), schedule, grid, x) - reference, floor)
        return jnp.where(jnp.all(jnp.diff(grid) < 0), value, jnp.inf)

    optimiser = optax.adam(optax.cosine_decay_schedule(1.0, max(1, iterations)))

    def descend(carry, _):
        logits, state, best = carry
        grid = grid_of(logits)
        now = error(grid, held_out)
        best = jax.tree.map(functools.partial(jnp.where, now < best[0]), (now, grid), best)
        gradient = jax.grad(lambda logits: jnp.log(error(grid_of(logits), fit)))(logits)
        updates, state = optimiser.update(gradient, state)
        return (logits + learning_rate * updates, state, best), None

    start = candidates[jnp.nanargmin(jax.lax.map(lambda grid: error(grid, fit), candidates))]
    errors = jax.lax.map(lambda grid: error(grid, held_out), candidates)
    value, grid = jnp.full((), jnp.inf, errors.dtype), start
    if iterations:
        logits = jnp.log(jnp.diff(schedules.log_snr(schedule, start)))
        carry = (logits, optimiser.init(logits), (value, grid))
        (_, _, (value, grid)), _ = jax.lax.scan(descend, carry, length=iterations)
    return grid, jnp.append(errors, value)
