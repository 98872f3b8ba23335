"""Errors of every solver on every grid over the suite, and the regret of each
choice.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import grids, solvers
from experiments.shared.solvers import make
from experiments.solver_regret.suite import Group

GRIDS: dict[str, Callable[[Any, int], Any]] = {
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
    "log_snr": grids.log_snr,
    "polyexponential(1.5)": lambda schedule, steps: grids.polyexponential(
        schedule, steps, 1.5
    ),
    "karras(7)": grids.karras,
    "karras(3)": lambda schedule, steps: grids.karras(schedule, steps, 3.0),
    "angular(0.25)": lambda schedule, steps: grids.angular(schedule, steps, 0.25),
    "angular(0.5)": grids.angular,
    "angular(0.75)": lambda schedule, steps: grids.angular(schedule, steps, 0.75),
}
"""name -> family of grids from t_max to t_min."""

SOLVERS = (
    "ddim",
    "heun",
    "rk4",
    "dpm_solver(2)",
    "dpm_solver(3)",
    "exponential_runge_kutta(4)",
    "dpmpp_2m",
    "dpmpp_3m",
    "adams_bashforth(3)",
    "deis(2)",
    "deis(3)",
    "deis(3, log_rho)",
    "ipndm(2)",
    "ipndm(4)",
    "unipc(2)",
    "unipc(3)",
    "sa_solver(3, 4, 0)",
)


class Errors(NamedTuple):
    """Errors in data units of one solver on one grid family at one budget, on one
    problem.

    `scale` is the standard deviation of the exact flow's ends. The last three
    fields are the `MEASURES`.
    """

    problem: str
    held_out: bool
    solver: str
    grid: str
    budget: int
    scale: float
    rms: float
    trimmed: float
    median: float


MEASURES = ("rms", "trimmed", "median")
"""Root mean square over the starts, the same over the 95 % of least error, and
the median.

Where modes lie far apart a start near a border may end in another mode. Such a
start errs by the distance of the modes, however good the solver. The root mean
square of a hundred starts then depends on how many of them there were by
chance.
"""

RESOLUTION = 1e-4
"""Share of the data's standard deviation below which errors count as equal.

It is added to all errors of a regret.
"""


@functools.partial(jax.jit, static_argnums=0)
def squared_errors(
    solver: Any,
    schedule: Any,
    denoisers: Any,
    starts: Any,
    ends: Any,
    active: Any,
    ts: Any,
) -> Any:
    """Mean squared error over the active entries.

    Args:
      solver: The solver.
      schedule: The schedule of the group.
      denoisers: A pytree with a leading axis of problems.
      starts: (P, S, D), where the exact flow begins.
      ends: (P, S, D), where it ends.
      active: (P, D), 1 for the entries that count.
      ts: (grids, N + 1), the grids.

    Returns:
      (grids, problems, starts).
    """

    def one(denoiser, active, x, end, grid):
        reached = solvers.integrate(
            None, solver, solvers.diffusion(schedule, denoiser), x=x, ts=grid
        )
        return jnp.sum(active * (reached - end) ** 2) / jnp.sum(active)

    over_starts = jax.vmap(one, (None, None, 0, 0, None))
    over_problems = jax.vmap(over_starts, (0, 0, 0, 0, None))
    return jax.lax.map(
        lambda grid: over_problems(denoisers, active, starts, ends, grid), ts
    )


def measure(name: str, group: Group, budgets: tuple[int, ...]) -> Iterator[Errors]:
    """The errors of one solver over a group, for every grid family and budget.

    Args:
      name: Of the solver in `shared.solvers.SOLVERS`.
      group: Problems of one structure.
      budgets: Evaluations. Those that are too few for two steps are left out.

    Yields:
      A row for each budget, grid and problem.
    """
    solver = make(name)
    stages = solver.evaluations(1)
    spread = np.var(np.asarray(group.ends), axis=1)  # (P, D)
    scales = [
        float(v)
        for v in np.sqrt((group.active * spread).sum(-1) / np.sum(group.active, -1))
    ]
    for budget in budgets:
        if budget < 2 * stages:
            continue
        ts = jnp.stack(
            [
                jnp.asarray(grid(group.schedule, budget // stages), jnp.float64)
                for grid in GRIDS.values()
            ]
        )
        squares = np.asarray(
            squared_errors(
                solver,
                group.schedule,
                group.denoisers,
                group.starts,
                group.ends,
                group.active,
                ts,
            )
        )
        for i, grid in enumerate(GRIDS):
            for j, problem in enumerate(group.names):
                errors = np.sort(squares[i, j])
                kept = errors[: int(np.ceil(0.95 * len(errors)))]
                values = (
                    float(np.sqrt(v))
                    for v in (errors.mean(), kept.mean(), np.median(errors))
                )
                title = f"{problem}, {group.schedule_name}"
                yield Errors(
                    title, group.held_out[j], name, grid, budget, scales[j], *values
                )


def regrets(
    rows: list[Errors], budget: int, measure: str
) -> dict[tuple[str, str], dict[str, float]]:
    """The error of each pair over the least error of all pairs, by problem.

    RESOLUTION times the data's standard deviation is added to every error. One
    that is not finite counts as infinite.

    Args:
      rows: Errors of all budgets.
      budget: Evaluations. Rows of others are left out.
      measure: One of `MEASURES`.

    Returns:
      (solver, grid) -> problem -> regret, 1 or more.
    """
    table: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows:
        if row.budget == budget:
            error = getattr(row, measure) + RESOLUTION * row.scale
            table.setdefault(row.problem, {})[row.solver, row.grid] = (
                error if np.isfinite(error) else np.inf
            )
    errors_of_pairs: dict[tuple[str, str], dict[str, float]] = {}
    for problem, errors in table.items():
        least = min(errors.values())
        for pair, error in errors.items():
            errors_of_pairs.setdefault(pair, {})[problem] = error / least
    return errors_of_pairs


def worst(regret: dict[str, float], problems: list[str]) -> float:
    """The largest regret over some problems."""
    return max(regret[problem] for problem in problems)
