"""Which solver errs least on a model, beside a fine solution of its own flow."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import diffjax as dj
from experiments.import_model.parts import Parts
from experiments.shared import cli, scoring, solvers

__all__ = ["Row", "grid_of", "rank"]

NEAR_ZERO = 1e-3
"""Least σ, and α, of a flow's times between its ends."""

OWN = "the scheduler"
"""Name of the folder's own scheduler among the candidates."""


class Row(NamedTuple):
    """The error of a solver at a number of evaluations.

    Attributes:
      solver: Its name.
      evaluations: Of the denoiser, per sample.
      error: Root mean square over samples and entries, in units of the state.
    """

    solver: str
    evaluations: int
    error: float


def grid_of(schedule: Any, solver: Any, evaluations: int) -> Any:
    """The recommended grid of a solver, with a last step to noise 0.

    Args:
      schedule: The noise schedule.
      solver: The solver.
      evaluations: Of the denoiser, the last step's included.

    Returns:
      Decreasing times.
    """
    if isinstance(schedule, dj.schedules.RectifiedFlow):
        # α is 0 at its noisiest time, where no log-SNR is finite.
        inner = dj.schedules.rectified_flow(t_min=NEAR_ZERO, t_max=1 - NEAR_ZERO)
        grid = dj.grids.recommended(inner, solver, evaluations - 1)
        return dj.grids.to_zero(grid.at[0].set(schedule.t_max))
    grid = dj.grids.recommended(schedule, solver, evaluations - 1)
    return dj.grids.to_zero(grid)


def rank(
    config: Any, parts: Parts, denoiser: Any, condition: Any
) -> tuple[list[Row], float]:
    """Errors of solvers at equal numbers of evaluations.

    The reference is RK4 on a fine grid. Its own error is the difference from
    UniPC with as many evaluations.

    Args:
      config: The flags.
      parts: The model with its schedule.
      denoiser: The denoiser (x, t, condition).
      condition: Conditions of the samples, or None.

    Returns:
      The rows, least error first within each number of evaluations, and the
      reference's own error.
    """
    count = min(config.starts, config.samples)
    few = jax.tree.map(lambda value: value[:count], condition)
    run = functools.partial(_ends, config.seed + 1, count, parts, denoiser, few)
    runs = list(_candidates(config, parts))
    with cli.progress(len(runs) + 2, label="ranking", unit="solver") as bar:
        reference = run(dj.solvers.rk4(), _fine(parts.schedule, config.reference))
        bar.update(1)
        fine = dj.solvers.unipc(3)
        grid = grid_of(parts.schedule, fine, 4 * config.reference)
        floor = _distance(run(fine, grid), reference)
        bar.update(1)
        rows = []
        for name, evaluations, solver, grid in runs:
            error = _distance(run(solver, grid), reference)
            rows.append(Row(name, evaluations, error))
            bar.update(1)
    return sorted(rows, key=lambda row: (row.evaluations, row.error)), floor


def _fine(schedule, steps):
    """A fine grid with a last step to noise 0."""
    if dj.schedules.is_finite(schedule):
        return dj.grids.to_zero(scoring.likelihood_grid(schedule, steps))
    return grid_of(schedule, dj.solvers.rk4(), 4 * steps + 1)


def _candidates(config, parts) -> Iterator[tuple[str, int, Any, Any]]:
    for budget in config.budgets:
        for name in config.candidates:
            solver = solvers.make(name)
            cost = dj.grids.cost_of_step(solver) or 1
            if budget > cost:
                grid = grid_of(parts.schedule, solver, budget)
                yield name, cost * (len(grid) - 2) + 1, solver, grid
        deterministic = parts.solver is not None and not parts.solver.stochastic
        if deterministic and config.mu is None:
            grid = parts.grid(budget)
            cost = dj.grids.cost_of_step(parts.solver) or 1
            yield OWN, cost * (len(grid) - 1), parts.solver, grid


def _ends(seed, count, parts, denoiser, condition, solver, grid):
    samples = dj.sample_many(
        jax.random.key(seed),
        count,
        denoiser,
        parts.schedule,
        solver=solver,
        grid=grid,
        x_init=_starts(seed, count, parts),
        condition=condition,
    )
    return np.asarray(samples, np.float64)


def _starts(seed, count, parts):
    """The same starts for all grids, which begin within rounding of one time."""
    noise = jax.random.normal(jax.random.key(seed), (count, *parts.shape))
    return noise * dj.schedules.prior_std(parts.schedule)


def _distance(x, y):
    difference = math.sqrt(np.mean((x - y) ** 2))
    return difference if math.isfinite(difference) else math.inf
