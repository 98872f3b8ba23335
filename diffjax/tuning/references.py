"""Starts, and the ends to which the exact flow carries them, for fits to a model."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, grids, schedules
from ..grids.times import with_ends
from ..numerics import float_dtype
from ..sampling import shape_and_start
from ..schedules import Schedule
from ..solvers import driver, noise_source, requirements
from ..solvers.base import Solver
from ..solvers.ode import rk4
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    as_one_program,
    as_pytree_callable,
    combine,
    compiled,
    partition,
)

__all__ = [
    "FAMILIES",
    "FitSettings",
    "HELD_OUT",
    "NODES",
    "Prepared",
    "Starts",
    "begin",
    "mean_norm",
    "parts_of",
    "run",
    "times_of_shares",
    "unit_of",
]


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


class FitSettings(NamedTuple):
    """Static settings of the compiled programs.

    Attributes:
      solver: The solver.
      static: Static part of denoiser and schedule.
      steps: N.
      counts: Numbers of starts that are fitted, choose the iterate, and judge.
      iterations: Of the grid's descent.
      weight_iterations: Of the descent of a fitted solver's weights.
    """

    solver: Solver
    static: Any
    steps: int
    counts: tuple[int, int, int]
    iterations: int
    weight_iterations: int = 0


class Prepared(NamedTuple):
    """Candidate grids of a fit, and its starts with their exact ends.

    Attributes:
      candidates: Fixed grids (K, N + 1). The last equidistributes the local error.
      starts: (n, *shape): those that are fitted, that choose, and that judge.
      ends: Of the exact flow from them.
    """

    candidates: Array
    starts: Array
    ends: Array


class Starts(NamedTuple):
    """The starts of a fit, given or to be drawn.

    Attributes:
      key: For drawing them, unless x_init is given.
      shape: Of one example, or None.
      x_init: Starts (n, *shape) to use instead, or None.
      examples: Starts to draw for fitting and choosing.
    """

    key: Any
    shape: Any
    x_init: ArrayLike | None
    examples: Any


def begin(
    schedule: Schedule,
    denoiser: Denoiser,
    starts: Starts,
    *,
    solver: Solver,
    steps: int,
    iterations: int,
    weight_iterations: int = 0,
    tried: slice = slice(None, -1),
) -> tuple[FitSettings, Any, Prepared]:
    """Check the problem of a fit, and solve it exactly from its starts.

    Args:
      schedule: The noise schedule.
      denoiser: (x, t) -> E[x_0 | x_t = x].
      starts: The starts.
      solver: The solver that is fitted.
      steps: N.
      iterations: As in `FitSettings`.
      weight_iterations: As in `FitSettings`.
      tried: The candidates that the solver must be able to take.

    Returns:
      Settings, arrays of denoiser and schedule, and the candidates with their starts.

    Raises:
      TypeError: For starts of a wrong type.
      ValueError: For starts neither given nor drawn, a schedule without a finite
        log-SNR at its ends, a grid that the solver cannot take, or a denoiser that is
        not finite on the reference run.
    """
    _check_end_log_snrs(schedule)
    drawn, counts = _starts_of(*starts)
    arrays, static = partition((as_pytree_callable(denoiser), schedule))
    settings = FitSettings(solver, static, steps, counts, iterations, weight_iterations)
    prepared = _prepare(settings, arrays, drawn)
    _check_grids(solver, denoiser, schedule, np.asarray(prepared.candidates)[tried])
    _check_ends(prepared.ends)
    return settings, arrays, prepared


def _check_end_log_snrs(schedule):
    """Raise ValueError for a concrete schedule without finite log-SNRs at its ends."""
    if not checks.is_traced(schedule):
        if not np.all(np.isfinite(as_one_program(_end_log_snrs, schedule))):
            schedules.log_snr_range(schedule)  # raises


def _end_log_snrs(schedule):
    ends = schedule.t_min, schedule.t_max
    return jnp.stack([schedules.log_snr(schedule, t) for t in ends])


def _starts_of(key, shape, x_init, examples):
    """((None, starts) or (key, no starts of the shape), counts of `FitSettings`)."""
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


def parts_of(
    counts: tuple[int, int, int], starts: Array, ends: Array
) -> tuple[tuple[Array, Array], tuple[Array, Array], tuple[Array, Array]]:
    """Starts and ends of which part is fitted, chooses the iterate, and judges.

    Args:
      counts: Of `FitSettings`. Where none is left to choose, the fitted ones do.
      starts: (n, *shape).
      ends: Of the exact flow from them.

    Returns:
      Three pairs (starts, ends).
    """
    fitted, chosen, _ = counts
    part = lambda first, last: (starts[first:last], ends[first:last])
    choice = part(fitted if chosen else 0, fitted + chosen)
    return part(0, fitted), choice, part(fitted + chosen, None)


def _check_grids(solver, denoiser, schedule, candidates):
    """Raise ValueError for a grid (n, N + 1) that the solver cannot take."""
    problem = driver.diffusion(schedule, denoiser)
    for grid in np.asarray(candidates):
        requirements.check_grid("grid", solver, problem, grid)


def _check_ends(ends):
    """Raise ValueError unless the reference run ended at finite states."""
    message = (
        "denoiser must be finite along the probability flow, got NaN or infinity at "
        "the end of the reference run"
    )
    checks.require(np.all(np.isfinite(ends)), message)


def run(
    solver: Solver,
    denoiser: Denoiser,
    schedule: Schedule,
    *,
    grid: Array,
    starts: Array,
) -> Array:
    """The ends of a solver from many starts.

    Args:
      solver: A deterministic solver.
      denoiser: (x, t) -> E[x_0 | x_t = x].
      schedule: The noise schedule.
      grid: Times (N + 1,).
      starts: (n, *shape).

    Returns:
      The ends, shape of starts.
    """
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


def mean_norm(difference: Array, floor: Any = 0.0) -> Array:
    """Mean over examples of the root mean square over components.

    Args:
      difference: (n, *shape).
      floor: Added to the squares, against the infinite slope of a norm at 0.

    Returns:
      The mean, ().
    """
    flat = difference.reshape(len(difference), -1)  # (n, D)
    return jnp.mean(jnp.sqrt(jnp.mean(flat**2, -1) + floor))


def unit_of(ends: Array) -> Array:
    """Size of the data, in which squares of errors neither over- nor underflow."""
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(ends)))
    return jnp.where(size > 0, size, 1)


@compiled
def _prepare(settings, arrays, drawn):
    """Fixed grids, and the starts of `_starts_of` with their exact ends."""
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
    others = run(rk4(), denoiser, schedule, grid=fine, starts=starts[measured:])
    ends = jnp.concatenate([ends, others])
    equal = _equidistribute(
        schedule, settings.steps, settings.solver, fine[::substeps], local_errors
    )
    return Prepared(jnp.stack([*families, equal]), starts, ends)


def _reference(solver, denoiser, schedule, fine, starts):
    """(ends of the probability flow, local errors (NODES,)).

    By rk4 on the fine grid, and by one step of the solver over each node.
    """

    def over_node(x, ts):
        end = run(rk4(), denoiser, schedule, grid=ts, starts=x)
        step = run(solver, denoiser, schedule, grid=ts[jnp.array([0, -1])], starts=x)
        unit = unit_of(end)
        # the scan goes on from the exact end, so that errors stay local
        return end, mean_norm((step - end) / unit) * unit

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
    return _times_of(schedule, log_snrs)


def times_of_shares(schedule: Schedule, logits: Array) -> Array:
    """Times whose steps take given shares of the log-SNR interval.

        λ_i = λ(t_max) + (λ(t_min) − λ(t_max)) Σ_{j≤i} softmax(w)_j

    Args:
      schedule: The noise schedule.
      logits: w, (N,).

    Returns:
      The times (N + 1,).
    """
    first, last = schedules.log_snr_range(schedule)
    shares = jnp.cumsum(jax.nn.softmax(logits))
    log_snrs = jnp.concatenate([first[None], first + (last - first) * shares])
    return _times_of(schedule, log_snrs)


def _times_of(schedule, log_snrs):
    """Times of log-SNRs whose first and last are exactly those of the schedule."""
    ts = schedules.time_of_log_snr(schedule, log_snrs)
    return with_ends(ts, schedule.t_max, schedule.t_min)
