"""The rows of `bench_solvers`, as JSON and as tables."""

import datetime
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from experiments.shared import devices
from experiments.shared.schedules import SCHEDULES
from experiments.shared.solvers import SETTINGS, SOLVERS


class Measure(NamedTuple):
    """An error's title and its unit."""

    title: str
    unit: str


MEASURES = {
    "rms": Measure("Root mean square error", "data units"),
    "kl": Measure("KL(samples ‖ exact)", "nats"),
    "sliced_wasserstein": Measure("Sliced Wasserstein-2 distance", "data units"),
}
"""The measures of error."""

TITLES = {
    "gaussian": "Gaussian, 2-D",
    "mixture_2d": "3 Gaussians, 2-D",
    "mixture_6d": "8 Gaussians, 6-D",
    "mixture_16d": "8 Gaussians, 16-D",
    "held_out": "8 other Gaussians, 6-D",
    "digits": "digits, 64-D",
    "other_2d": "3 other Gaussians, 2-D",
}
"""Titles of the targets. A trained network has that of its folder."""


class ErrorRow(NamedTuple):
    """One measured run.

    `nfe` is counted. `measure` is a key of `MEASURES`.
    `interval` is 95 %. `floor` is the measure between exact sets, 0 where
    there is none. `details` are further errors. `compile_seconds` of a program
    that several rows share stand with each.
    """

    solver: str
    grid: str
    schedule: str
    target: str
    budget: int | None
    steps: int
    nfe: float
    stochastic: bool
    order: int | None
    measure: str
    error: float
    interval: tuple[float, float]
    floor: float
    details: dict[str, float]
    compile_seconds: float
    run_seconds: float
    memory_bytes: int


def report(rows: list[ErrorRow]) -> dict[str, Any]:
    """The rows as JSON. Numbers that are not finite become null."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {"rows": [plain(row._asdict()) for row in rows]}


POINT = ("budget", "steps", "nfe", "error", "low", "high")
"""Fields of a point of `curves`. low and high are the 95 % interval."""


class Point(NamedTuple):
    """A point of stored curves. `error` is infinite for a run that diverged."""

    solver: str
    grid: str
    budget: int | None
    steps: int
    nfe: float
    error: float


def points(problem: dict[str, Any]) -> Iterator[Point]:
    """The points of one of the problems of `curves`."""
    for solver, grids in problem["curves"].items():
        for grid, stored in grids.items():
            for budget, steps, nfe, error, *_ in stored:
                error = math.inf if error is None else error
                yield Point(solver, grid, budget, steps, nfe, error)


def curves(rows: list[ErrorRow], samples: int) -> dict[str, Any]:
    """The rows as curves, small enough for a page to hold.

    A problem is a target under a schedule with either the deterministic or the
    stochastic solvers. Its "curves" are points by solver and grid. Numbers have
    4 digits, and null stands for a run that diverged. A row without a budget is left
    out where no row with a budget has its measure. Titles, units and the code of
    schedules and solvers are stored by name.

    Args:
      rows: The rows.
      samples: Starts, and samples, of each row.

    Returns:
      JSON values.
    """

    def digits(value):
        return float(f"{value:.4g}") if math.isfinite(value) else None

    def point(row):
        interval = row.interval if row.interval[1] > row.interval[0] else ()
        numbers = (row.nfe, row.error, *interval)
        return [row.budget, row.steps, *map(digits, numbers)]

    problems = []
    for (target, schedule, stochastic, measure), group in groups(
        rows, "target", "schedule", "stochastic", "measure"
    ).items():
        if not any(row.budget for row in group):
            continue
        problems.append(
            {
                "target": target,
                "schedule": schedule,
                "stochastic": stochastic,
                "measure": measure,
                "floor": digits(float(np.mean([row.floor for row in group]))),
                "curves": {
                    solver: {
                        grid: [point(row) for row in of_grid]
                        for (grid,), of_grid in groups(of_solver, "grid").items()
                    }
                    for (solver,), of_solver in groups(group, "solver").items()
                },
            }
        )
    return {
        "experiment": "bench_solvers",
        "device": devices.name(),
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
        "samples": samples,
        "point": POINT,
        **names(problems),
        "solvers": {
            row.solver: {"code": code(row.solver), "order": row.order} for row in rows
        },
        "problems": problems,
    }


def names(problems: list[dict[str, Any]]) -> dict[str, Any]:
    """Titles, units and code of the targets, schedules and measures of `curves`.

    Args:
      problems: Its problems.

    Returns:
      JSON values by name.
    """
    named = lambda field: dict.fromkeys(problem[field] for problem in problems)
    return {
        "targets": {
            name: {"title": TITLES.get(name, name)} for name in named("target")
        },
        "schedules": {
            name: {"title": schedule_title(name), "code": schedule_code(name)}
            for name in named("schedule")
        },
        "measures": {name: MEASURES[name]._asdict() for name in named("measure")},
    }


def schedule_title(name: str) -> str:
    """The title of a schedule. That of a trained network has its name alone."""
    return SCHEDULES[name].title if name in SCHEDULES else name


def schedule_code(name: str) -> str | None:
    """The Python that makes a schedule as the benchmarks do.

    Args:
      name: A key of `SCHEDULES`, or the name of a trained network's schedule.

    Returns:
      The code. None for a trained network's schedule.
    """
    if name not in SCHEDULES:
        return None
    settings = SETTINGS.get(name, {}).items()
    arguments = ", ".join(f"{key}={value!r}" for key, value in settings)
    return f"dj.schedules.{name}({arguments})"


def code(name: str) -> str:
    """The Python that makes a solver of the table."""
    factory, arguments = SOLVERS[name]
    shown = (
        repr(value) if isinstance(value, int | float | str) else f"dj.solvers.{value!r}"
        for value in arguments
    )
    return f"dj.solvers.{factory}({', '.join(shown)})"


def groups(rows: list[ErrorRow], *fields: str) -> dict[tuple, list[ErrorRow]]:
    """Rows by the values of some of their fields, in the order of their
    appearance.
    """
    grouped: dict[tuple, list[ErrorRow]] = {}
    for row in rows:
        grouped.setdefault(tuple(getattr(row, field) for field in fields), []).append(
            row
        )
    return grouped


Run = TypeVar("Run", ErrorRow, Point)


def within(runs: list[Run], budget: int) -> list[Run]:
    """The runs for a budget, and those without one that stay within it."""
    return [
        run
        for run in runs
        if run.budget == budget or (run.budget is None and run.nfe <= budget)
    ]


def best(runs: list[Run]) -> Run:
    """The run of least error. One whose error is not a number is last."""
    return min(
        runs, key=lambda run: run.error if math.isfinite(run.error) else math.inf
    )


def print_rows(rows: list[ErrorRow]) -> None:
    """Print one table for each schedule, target and measure.

    Lines are solvers and columns budgets, each with its best grid.
    """
    for (schedule, target, measure), group in groups(
        rows, "schedule", "target", "measure"
    ).items():
        budgets = sorted({row.budget for row in group if row.budget})
        floor = (
            f", floor {np.mean([row.floor for row in group]):.1e}"
            if group[0].floor
            else ""
        )
        print(
            f"\n{schedule}, {target}: {measure}{floor}, with the best grid for each "
            "number of evaluations"
        )
        print(f"{'':28}" + "".join(f"{budget:>31}" for budget in budgets))
        for (name,), of_solver in groups(group, "solver").items():
            line = f"{name:28}"
            for budget in budgets:
                at = [row for row in of_solver if row.budget == budget]
                line += f"{cell(best(at)) if at else '':>31}"
            free = [row for row in of_solver if not row.budget]
            if free:
                least = best(free)
                line += f"   {cell(least)} at {least.nfe:.0f} evaluations on average"
            print(line.rstrip())


def cell(row: ErrorRow) -> str:
    """Error and grid, as text."""
    return f"{row.error:.1e} {row.grid}"


def print_recommendations(rows: list[ErrorRow], budget: int) -> None:
    """Print the best deterministic and stochastic solver and grid for each
    schedule and target.
    """
    for (schedule, target), group in groups(rows, "schedule", "target").items():
        print(f"\n{schedule}, {target}, at most {budget} evaluations:")
        for stochastic in (False, True):
            of_kind = [row for row in group if row.stochastic == stochastic]
            candidates = within(of_kind, budget)
            if not candidates:
                continue
            top = best(candidates)
            overlapping = sorted(
                {row.solver for row in candidates if row.interval[0] <= top.interval[1]}
                - {top.solver}
            )
            kind = "stochastic" if stochastic else "deterministic"
            low, high = top.interval
            spread = f" [{low:.2e}, {high:.2e}]" if high > low else ""
            print(
                f"  {kind:14} {top.solver} on {top.grid}, {top.steps} steps, "
                f"{top.nfe:.0f} evaluations: "
                f"{top.measure} {top.error:.2e}{spread}"
                + (f", floor {top.floor:.1e}" if top.floor else "")
            )
            if overlapping:
                listed = ", ".join(overlapping)
                print(f"  {'':14} their 95 % intervals overlap with its own: {listed}")
