"""Solvers fitted to a denoiser, on starts and on targets that they have not seen."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from diffjax import grids, solvers, tuning
from experiments.bench_solvers.problems import SolverTask, problem
from experiments.bench_solvers.programs import batch_program
from experiments.shared import cli

PAIRS = (("mixture_2d", "other_2d", "vp_linear"), ("mixture_6d", "held_out", "edm"))
"""(the target that is fitted, another one of its dimension, the schedule)."""

EXAMPLES = 1024
"""Starts, half of them fitted and half for choosing the iterate."""


class FittedRow(NamedTuple):
    """Root mean square errors of one fit in data units, on starts that it has not seen.

    Attributes:
      target: The target of the fit.
      schedule: The schedule.
      evaluations: Of each solver.
      fitted: Error of the returned solver on the fitted starts.
      coefficients: Its error on other starts.
      grid: That of `unipc(3)` on its fitted grid.
      recommended: That of `unipc(3)` on the recommended grid.
      other_target: Another target.
      other_coefficients: Error there of the solver fitted to `target`.
      other_grid: That of `unipc(3)` on the grid fitted to `target`.
      other_recommended: That of `unipc(3)` on the recommended grid there.
    """

    target: str
    schedule: str
    evaluations: int
    fitted: float
    coefficients: float
    grid: float
    recommended: float
    other_target: str
    other_coefficients: float
    other_grid: float
    other_recommended: float


def measure(config: Any) -> Iterator[FittedRow]:
    """A row for each budget and pair of targets."""
    count = len(PAIRS) * len(config.budgets)
    with cli.progress(count, label="fitting", unit="solver") as bar:
        for target, other, schedule in PAIRS:
            tasks = [problem(config, name, schedule) for name in (target, other)]
            for steps in config.budgets:
                bar.set_postfix_str(f"{target}, {steps} evaluations")
                yield fitted_row(config, tasks, steps)
                bar.update()


def fitted_row(config: Any, tasks: list[SolverTask], steps: int) -> FittedRow:
    """Fit to the first task from starts of its own, and run all on both."""
    task, other = tasks
    base = task.distribution(task.schedule.t_max)
    # the last half of x_init judges, and is not smaller than the other
    keys = jax.random.split(jax.random.key(config.seed + 1000), 2 * EXAMPLES)
    x_init = jax.vmap(base.sample)(keys)
    published = solvers.unipc(3)
    fit = tuning.optimised_solver(task.schedule, task.denoiser, steps, x_init=x_init)
    grid = tuning.optimised_grid(
        task.schedule, task.denoiser, steps, x_init=x_init, solver=published
    )
    recommended = grids.recommended(task.schedule, published, steps)
    compared = (fit.solver, fit.grid), (published, grid), (published, recommended)
    errors = [error(task, *pair) for task in tasks for pair in compared]
    return FittedRow(
        task.target_name,
        task.schedule_name,
        steps,
        fit.fitted[min(fit.held_out, key=fit.held_out.get)],
        *errors[:3],
        other.target_name,
        *errors[3:],
    )


def error(task: SolverTask, solver: solvers.Solver, grid: Any) -> float:
    """Root mean square distance of a solver's ends from the exact flow's."""
    run = jax.jit(batch_program(solver))
    ends = run(task.denoiser, task.schedule, task.keys, task.starts, grid)[0]
    return float(np.sqrt(np.mean((np.asarray(ends) - np.asarray(task.ends)) ** 2)))


def print_rows(rows: list[FittedRow]) -> None:
    """Print a table, and the factors by which fits lower the error."""
    for row in rows:
        print(
            f"{row.target} {row.schedule} {row.evaluations:3d} evaluations: fitted "
            f"starts {row.fitted:.2e}, others {row.coefficients:.2e}, fitted grid "
            f"{row.grid:.2e} ({row.grid / row.coefficients:.1f}x), recommended "
            f"{row.recommended:.2e} ({row.recommended / row.coefficients:.1f}x)"
        )
        print(
            f"  on {row.other_target}: {row.other_coefficients:.2e}, fitted grid "
            f"{row.other_grid:.2e}, recommended {row.other_recommended:.2e} "
            f"({row.other_recommended / row.other_coefficients:.1f}x)"
        )
