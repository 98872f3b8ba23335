"""Figures of `bench_solvers`: error against evaluations, and error against run
time.
"""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.bench_solvers.report import MEASURES

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
"""Five colours that most readers can distinguish (Okabe and Ito 2008)."""

GREY = "#b8b8b8"
TEXT = 12
"""Points. At 900 pixels for the whole width this is still legible."""


def figures(rows: list[Any]) -> dict[str, Any]:
    """name -> figure: error_<measure> and pareto_<measure>, a panel per problem."""
    drawn = {}
    for measure in MEASURES:
        chosen = [
            row
            for row in rows
            if row.measure == measure and math.isfinite(row.error) and row.error > 0
        ]
        budgeted = {(row.schedule, row.target) for row in chosen if row.budget}
        if budgeted:
            shown = [row for row in chosen if (row.schedule, row.target) in budgeted]
            drawn[f"error_{measure}"] = panels(shown, measure, draw_errors)
        if chosen:
            drawn[f"pareto_{measure}"] = panels(chosen, measure, draw_front)
    return drawn


def panels(rows: list[Any], measure: str, draw: Any) -> Any:
    """A figure with a panel per schedule and target. The best solvers keep their
    colours.
    """
    title, unit = MEASURES[measure]
    colours = dict(zip(best(rows, len(COLOURS)), COLOURS, strict=False))
    pairs = sorted({(row.schedule, row.target) for row in rows})
    columns = min(len(pairs), max(2, len({target for _, target in pairs})), 4)
    lines = -(-len(pairs) // columns)
    with plt.rc_context({"font.size": TEXT}):
        figure, axes = plt.subplots(
            lines,
            columns,
            figsize=(6 * columns, 4.6 * lines),
            squeeze=False,
            layout="constrained",
        )
        for axis in axes.flat[len(pairs) :]:
            axis.set_axis_off()
        for axis, (schedule, target) in zip(axes.flat, pairs, strict=False):
            here = [r for r in rows if (r.schedule, r.target) == (schedule, target)]
            axis.set(
                xscale="log",
                yscale="log",
                title=f"{schedule}, {target}",
                ylabel=f"{title} ({unit})",
            )
            axis.spines[["top", "right"]].set_visible(False)
            draw(axis, here, colours)
    return figure


def best(rows: list[Any], count: int) -> list[str]:
    """The solvers of least error at a budget, relative to the best, in the mean.

    The mean is of log(error / least error) over all problems and budgets. Solvers that
    lack a budget or a problem are left out.
    """
    least_errors: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if row.budget:
            errors = least_errors.setdefault((row.schedule, row.target, row.budget), {})
            errors[row.solver] = min(row.error, errors.get(row.solver, math.inf))
    names = {name for errors in least_errors.values() for name in errors}
    regret = {
        name: sum(
            math.log(errors[name] / min(errors.values()))
            for errors in least_errors.values()
        )
        for name in names
        if all(name in errors for errors in least_errors.values())
    }
    return sorted(regret, key=regret.__getitem__)[:count]


def draw_errors(axis: Any, rows: list[Any], colours: dict[str, Any]) -> None:
    """Least error over grids against evaluations, the best solvers in colour.

    Their intervals are drawn. All others are grey. Solvers that choose their own steps
    are left out. Lines of orders 1 to 4 start at one point. The KL of a Gaussian is
    quadratic in the error of its moments, so that order p has the slope −2p there.
    """
    lines = {}
    for name in dict.fromkeys(row.solver for row in rows if row.budget):
        points = [least(rows, name, budget) for budget in budgets_of(rows, name)]
        lines[name] = sorted(points, key=lambda row: row.nfe)
    for name, points in lines.items():
        nfe = [row.nfe for row in points]
        errors = np.array([row.error for row in points])
        if name in colours:
            low, high = np.array([row.interval for row in points]).T
            bars = [np.maximum(errors - low, 0), np.maximum(high - errors, 0)]
            style = {"marker": "o", "markersize": 4, "linewidth": 2, "zorder": 3}
            axis.errorbar(nfe, errors, yerr=bars, color=colours[name], **style)
        else:
            axis.plot(nfe, errors, color=GREY, linewidth=0.9, zorder=1)
    budgets = np.array(sorted({row.budget for row in rows if row.budget}))
    shown = [row for points in lines.values() for row in points]
    bottom = 0.6 * min(row.error for row in shown)
    top = 2 * min(max(row.error for row in shown), 10.0)
    axis.set_ylim(bottom, top)
    # Room for the names at the ends of the lines.
    fewest = min(row.nfe for row in shown)
    axis.set_xlim(0.9 * fewest, budgets[-1] * (budgets[-1] / budgets[0]) ** 0.45)
    draw_floor(axis, rows)
    if len(budgets) > 1 and rows[0].measure != "sliced_wasserstein":
        draw_orders(axis, rows, budgets)
    ends = {name: lines[name][-1] for name in colours if name in lines}
    label_ends(axis, {n: (e.nfe, e.error) for n, e in ends.items()}, colours)
    axis.set_xticks(budgets, [str(budget) for budget in budgets])
    axis.minorticks_off()
    axis.set_xlabel("evaluations of the denoiser")


def draw_floor(axis: Any, rows: list[Any]) -> None:
    """The distance of two exact sets of samples, where the measure has one."""
    floor = float(np.mean([row.floor for row in rows]))
    if floor:
        axis.axhline(floor, color="black", linewidth=0.8)
        axis.text(
            0.02,
            floor,
            "two exact sets",
            fontsize=TEXT - 2,
            va="bottom",
            transform=axis.get_yaxis_transform(),
        )


def draw_orders(axis: Any, rows: list[Any], budgets: np.ndarray) -> None:
    """Dotted lines of orders 1 to 4 through the median error at the first budget."""
    start = float(np.median([row.error for row in rows if row.budget == budgets[0]]))
    ends = np.array([budgets[0], budgets[-1]])
    for order in (1, 2, 3, 4):
        slope = order * (2 if rows[0].measure == "kl" else 1)
        errors = start * (ends / ends[0]) ** -float(slope)
        axis.plot(ends, errors, ":", color="#707070", linewidth=0.9, zorder=2)
        if errors[-1] > axis.get_ylim()[0]:
            axis.annotate(
                f"order {order}",
                (ends[-1], errors[-1]),
                xytext=(-4, 4),
                textcoords="offset points",
                fontsize=TEXT - 3,
                color="#707070",
                ha="right",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )


def label_ends(axis: Any, ends: dict[str, tuple], colours: dict[str, Any]) -> None:
    """The name of each line beside its end, moved up where names would overlap."""
    low, high = np.log(axis.get_ylim())
    spacing = 0.055 * (high - low)
    height = -math.inf
    for name, (nfe, error) in sorted(ends.items(), key=lambda end: end[1][1]):
        height = max(math.log(error), height + spacing, low + 0.5 * spacing)
        axis.annotate(
            name,
            (nfe, error),
            xytext=(nfe * 1.12, math.exp(height)),
            color=colours[name],
            fontsize=TEXT,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.6},
        )


def budgets_of(rows: list[Any], name: str) -> list[int]:
    """The budgets at which a solver has rows."""
    return list(
        dict.fromkeys(row.budget for row in rows if row.solver == name and row.budget)
    )


def least(rows: list[Any], name: str, budget: int) -> Any:
    """A solver's row of least error over grids."""
    return min(
        (row for row in rows if row.solver == name and row.budget == budget),
        key=lambda row: row.error,
    )


def draw_front(axis: Any, rows: list[Any], colours: dict[str, Any]) -> None:
    """Every row by run time and error, and the front of rows that no faster one
    betters.
    """
    for name in dict.fromkeys(row.solver for row in rows):
        here = [row for row in rows if row.solver == name]
        axis.scatter(
            [row.run_seconds for row in here],
            [row.error for row in here],
            color=colours.get(name, GREY),
            s=14 if name in colours else 7,
            zorder=2 if name in colours else 1,
            label=name if name in colours else None,
        )
    front = pareto(rows)
    axis.step(
        [row.run_seconds for row in front],
        [row.error for row in front],
        where="post",
        color="black",
        linewidth=1,
    )
    # Room for the names.
    axis.set_xlim(left=front[0].run_seconds / 10)
    below = math.inf
    for row in front[::-1]:
        # Room for a line of text.
        if row.error > 3 * below or below == math.inf:
            below = row.error
            axis.annotate(
                f"{row.solver}, {row.grid} ",
                (row.run_seconds, row.error),
                fontsize=TEXT - 3,
                ha="right",
                va="top",
            )
    if colours:
        axis.legend(fontsize=TEXT - 3)
    axis.set_xlabel("seconds to run all starts")


def pareto(rows: list[Any]) -> list[Any]:
    """Rows by run time whose error is below that of every faster row."""
    front: list[Any] = []
    for row in sorted(rows, key=lambda row: row.run_seconds):
        if not front or row.error < front[-1].error:
            front.append(row)
    return front
