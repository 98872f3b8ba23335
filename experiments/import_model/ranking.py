"""Which solver errs least on a model, beside a fine solution of its own flow."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import diffjax as dj
from experiments.import_model.parts import Parts, scheduler_grid
from experiments.shared import cli, scoring, solvers

__all__ = ["Candidate", "Row", "candidates", "grid_of", "rank"]

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


class Candidate(NamedTuple):
    """A solver on a grid.

    Attributes:
      name: Its name.
      evaluations: Of the denoiser, per sample.
      solver: The solver.
      grid: Decreasing times.
    """

    name: str
    evaluations: int
    solver: Any
    grid: Any


def grid_of(schedule: Any, solver: Any, steps: int) -> Any:
    """The recommended grid of a solver, with a last step to noise 0.

    Args:
      schedule: The noise schedule.
      solver: The solver.
      steps: Number of steps, 2 or more, the last included.

    Returns:
      Decreasing times, (steps + 1,).
    """
    is_flow = isinstance(schedule, dj.schedules.RectifiedFlow)
    inner = schedule
    if is_flow:
        # α is 0 at its noisiest time, where no log-SNR is finite.
        inner = dj.schedules.rectified_flow(t_min=NEAR_ZERO, t_max=1 - NEAR_ZERO)
    cost = dj.grids.cost_of_step(solver)
    if cost is None:
        grid = dj.grids.log_snr(inner, steps - 1)
    else:
        grid = dj.grids.recommended(inner, solver, cost * (steps - 1))
    return dj.grids.to_zero(grid.at[0].set(schedule.t_max) if is_flow else grid)


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
    runs = list(candidates(config, parts))
    with cli.progress(len(runs) + 2, label="ranking", unit="solver") as bar:
        rk4 = dj.solvers.rk4()
        grid = _fine(parts.schedule, config.reference)
        reference = run(rk4, grid)
        bar.update(1)
        # One evaluation per step.
        steps = rk4.evaluations(len(grid) - 1, to_zero=True)
        unipc = dj.solvers.unipc(3)
        floor = _distance(run(unipc, grid_of(parts.schedule, unipc, steps)), reference)
        bar.update(1)
        rows = []
        for candidate in runs:
            error = _distance(run(candidate.solver, candidate.grid), reference)
            rows.append(Row(candidate.name, candidate.evaluations, error))
            bar.update(1)
    return sorted(rows, key=lambda row: (row.evaluations, row.error)), floor


def _fine(schedule, steps):
    """A fine grid with a last step to noise 0."""
    if dj.schedules.is_finite(schedule):
        return dj.grids.to_zero(scoring.likelihood_grid(schedule, steps))
    return grid_of(schedule, dj.solvers.rk4(), steps + 1)


def candidates(config: Any, parts: Parts) -> Iterator[Candidate]:
    """The solvers to rank, each on the longest grid of each budget.

    Args:
      config: The flags.
      parts: The model with its schedule.

    Yields:
      Candidates. Those that cannot take two steps within a budget are left out.
    """
    for budget in config.budgets:
        for name in config.candidates:
            solver = solvers.make(name)
            if solver.evaluations(2, to_zero=True) <= budget:
                steps = dj.solvers.steps_within(solver, budget, to_zero=True)
                evaluations = solver.evaluations(steps, to_zero=True)
                grid = grid_of(parts.schedule, solver, steps)
                yield Candidate(name, evaluations, solver, grid)
        if parts.solver is not None and not parts.solver.stochastic:
            yield _scheduler(config, parts, budget)


def _scheduler(config, parts, budget):
    """The folder's own scheduler with as many steps as fit."""
    solver = parts.solver
    to_zero = bool(scheduler_grid(config, parts, budget)[-1] == 0)
    steps = dj.solvers.steps_within(solver, budget, to_zero)
    grid = scheduler_grid(config, parts, steps)
    evaluations = solver.evaluations(len(grid) - 1, to_zero)
    return Candidate(OWN, evaluations, solver, grid)


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
