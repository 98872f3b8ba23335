"""Figures of `bench_solvers`: error against evaluations, and the front of error against run time."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

TITLES = {
    "rms": "root mean square error (data units)",
    "kl": "KL(law ‖ exact) (nats)",
    "sliced_wasserstein": "sliced Wasserstein-2 distance (data units)",
}


def figures(rows: list[Any]) -> dict[str, Any]:
    """name -> figure: error_<measure>, a panel a schedule and target, and pareto_<measure>."""
    found = {}
    for measure in TITLES:
        chosen = [
            row
            for row in rows
            if row.measure == measure and math.isfinite(row.error) and row.error > 0
        ]
        budgeted = {(row.schedule, row.target) for row in chosen if row.budget}
        if budgeted:
            shown = [row for row in chosen if (row.schedule, row.target) in budgeted]
            found[f"error_{measure}"] = panels(shown, measure, draw_errors)
        if chosen:
            found[f"pareto_{measure}"] = panels(chosen, measure, draw_front)
    return found


def panels(rows: list[Any], measure: str, draw: Any) -> Any:
    """A figure with a panel for each schedule and target, in one set of colours."""
    names = list(dict.fromkeys(row.solver for row in rows))
    colours = dict(
        zip(
            names,
            plt.get_cmap("turbo")(np.linspace(0.02, 0.98, len(names))),
            strict=True,
        )
    )
    pairs = list(dict.fromkeys((row.schedule, row.target) for row in rows))
    columns = min(len(pairs), max(2, len({target for _, target in pairs})), 4)
    lines = -(-len(pairs) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(5.6 * columns + 3, 4.6 * lines + 0.5),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(pairs) :]:
        axis.set_axis_off()
    for axis, (schedule, target) in zip(axes.flat, sorted(pairs), strict=False):
        own = [row for row in rows if (row.schedule, row.target) == (schedule, target)]
        axis.set(
            xscale="log",
            yscale="log",
            title=f"{schedule}, {target}",
            ylabel=TITLES[measure],
        )
        draw(axis, own, colours)
    handles = [
        plt.Line2D(
            [],
            [],
            color=colours[name],
            linestyle=style(names, name),
            marker="o",
            markersize=3,
            label=name,
        )
        for name in names
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure


def style(names: list[str], name: str) -> str:
    """A line style that tells neighbours in colour apart."""
    return ("-", "--", ":")[names.index(name) % 3]


def draw_errors(axis: Any, rows: list[Any], colours: dict[str, Any]) -> None:
    """Least error over grids against evaluations, with intervals, and slopes of orders 1 to 4 through one point.

    KL of a Gaussian's law is quadratic in the error of its moments: there order p has the slope −2p.
    """
    names = list(colours)
    for name in names:
        points = [least(rows, name, budget) for budget in budgets_of(rows, name)]
        points.sort(key=lambda row: row.nfe)
        if points:
            errors = np.array([row.error for row in points])
            low, high = np.array([row.interval for row in points]).T
            axis.errorbar(
                [row.nfe for row in points], errors, yerr=[np.maximum(errors - low, 0), np.maximum(high - errors, 0)],
                color=colours[name], linestyle=style(names, name), marker="o", markersize=3, linewidth=1.1,
            )  # fmt: skip
    floor = float(np.mean([row.floor for row in rows]))
    if floor:
        axis.axhline(floor, color="black", linewidth=0.8)
        axis.text(
            0.02,
            floor,
            " two exact sets",
            fontsize=8,
            va="bottom",
            transform=axis.get_yaxis_transform(),
        )
    budgets = np.array(sorted({row.budget for row in rows if row.budget}))
    if len(budgets) > 1:
        shown = [
            least(rows, name, budget)
            for name in names
            for budget in budgets_of(rows, name)
        ]
        limits = (
            0.5 * min(row.error for row in shown),
            3 * min(max(row.error for row in shown), 10.0),
        )
        top = float(np.median([row.error for row in rows if row.budget == budgets[0]]))
        for order in (
            (1, 2, 3, 4) if rows[0].measure != "sliced_wasserstein" else ()
        ):  # whose floor has no order
            slope = order * (2 if rows[0].measure == "kl" else 1)
            axis.plot(
                budgets,
                top * (budgets / budgets[0]) ** -slope,
                color="grey",
                linewidth=0.7,
                zorder=0,
            )
            place = budgets[-1], top * (budgets[-1] / budgets[0]) ** -slope
            axis.annotate(
                f"order {order}",
                place,
                fontsize=7,
                color="grey",
                ha="right",
                va="bottom",
                clip_on=True,
            )
        axis.set_ylim(limits)
    ticks = sorted({row.budget for row in rows if row.budget})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("evaluations of the denoiser")


def budgets_of(rows: list[Any], name: str) -> list[int | None]:
    """The budgets at which a solver has rows."""
    return list(dict.fromkeys(row.budget for row in rows if row.solver == name))


def least(rows: list[Any], name: str, budget: int | None) -> Any:
    """A solver's row of least error over grids."""
    return min(
        (row for row in rows if row.solver == name and row.budget == budget),
        key=lambda row: row.error,
    )


def draw_front(axis: Any, rows: list[Any], colours: dict[str, Any]) -> None:
    """Every row by run time and error, and the front of those that no faster row betters."""
    for name, colour in colours.items():
        own = [row for row in rows if row.solver == name]
        axis.scatter(
            [row.run_seconds for row in own],
            [row.error for row in own],
            color=colour,
            s=7,
            alpha=0.7,
        )
    front = pareto(rows)
    axis.step(
        [row.run_seconds for row in front],
        [row.error for row in front],
        where="post",
        color="black",
        linewidth=1,
    )
    axis.set_xlim(left=front[0].run_seconds / 10)  # room for the names
    below = math.inf
    for row in front[::-1]:
        if row.error > 3 * below or below == math.inf:  # room for a line of text
            below = row.error
            axis.annotate(
                f"{row.solver}, {row.grid} ",
                (row.run_seconds, row.error),
                fontsize=6,
                ha="right",
                va="top",
            )
    axis.set_xlabel("seconds to run all starts")


def pareto(rows: list[Any]) -> list[Any]:
    """Rows by run time whose error is below that of every faster row."""
    front: list[Any] = []
    for row in sorted(rows, key=lambda row: row.run_seconds):
        if not front or row.error < front[-1].error:
            front.append(row)
    return front
