"""The figure of `few_step`: errors against evaluations, and samples of one step."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator

from experiments.few_step.measures import EVALUATIONS
from experiments.few_step.objectives import OBJECTIVES
from experiments.shared.figures import image_grid

POINTS, IMAGES = 1500, 9
MARKERS = "osD^v<>P*Xhd"

TASKS = {"soft": "overlapping modes", "modes": "far modes"}
"""Titles of tasks, where they differ from the names."""

METHODS = {
    "lagrangian": "Lagrangian",
    "eulerian": "Eulerian",
    "mean_flow": "MeanFlow",
    "progressive": "progressive distillation",
    "mean_flow_of_data": "MeanFlow of data",
}
"""Titles of objectives, where they differ from the names."""


def title_of(name: str) -> str:
    """The title of a task or of a method."""
    return {**TASKS, **METHODS}.get(name, name.replace("_", " "))


def draw(results: dict[str, Any], drawn: dict[str, list[tuple[str, Any]]]) -> Any:
    """Draw one row per task.

    Args:
      results: Numbers by task, as `metrics.json` has them.
      drawn: By task titles and samples (n, *shape), the exact ones first.

    Returns:
      The matplotlib figure.
    """
    columns = 2 + max(map(len, drawn.values()))
    figure, axes = plt.subplots(
        len(drawn),
        columns,
        figsize=(3.1 * columns + 1, 3.1 * len(drawn) + 0.8),
        layout="constrained",
        squeeze=False,
    )
    for row, (name, sets) in zip(axes, drawn.items(), strict=True):
        numbers = results["tasks"][name]
        _lines(row[0], numbers, "rms")
        row[0].set_ylabel(f"{title_of(name)}\nroot mean square error (data units)")
        _lines(row[1], numbers, "frechet")
        row[1].set_ylabel("squared Fréchet distance\n(squared data units)")
        for axis, (title, samples) in zip(row[2:], sets, strict=False):
            axis.set_title(title, fontsize=8)
            _samples(axis, samples, sets[0][1])
        for axis in row[2 + len(sets) :]:
            axis.set_axis_off()
    axes[0, 0].set_title("from the same starts", fontsize=9)
    axes[0, 1].set_title("of all samples to the target", fontsize=9)
    known: dict[str, Any] = {}
    for axis in axes[:, :2].flat:
        handles, labels = axis.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(
        known.values(), known, loc="outside lower center", ncols=5, frameon=False
    )
    return figure


def _lines(axis, numbers, measure):
    methods = numbers["students"] | numbers["solvers"]
    if not any(measure in method for method in methods.values()):
        axis.set_axis_off()
        return
    for name, method in numbers["students"].items():
        i = list(OBJECTIVES).index(name)  # the same style for each task
        axis.plot(
            *_points(method[measure]), marker=MARKERS[i % 12], color=f"C{i % 10}",
            ms=4, lw=1.1, label=title_of(name),
        )  # fmt: skip
    for name, method in numbers["solvers"].items():
        style = {
            "color": "black" if name.startswith("ddim") else "#00107a",
            "lw": 1.1 if name.startswith("ddim") else 1.8,
            "ls": "-" if "fitted" in name else "--",
        }
        axis.plot(*_points(method[measure]), label=name, **style)
    if measure == "frechet" and "exact" in numbers:
        exact = numbers["exact"]["frechet"]
        axis.axhline(exact, color="black", ls=":", lw=1.1, label="exact map")
    axis.set(xscale="log", yscale="log", xlabel="evaluations")
    axis.set_xticks(EVALUATIONS, labels=map(str, EVALUATIONS))
    axis.xaxis.set_minor_locator(plt.NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")
    low, high = axis.get_ylim()
    if high < 30 * low:
        # One labelled power of ten would not be enough.
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.yaxis.set_minor_formatter("{x:g}")
    axis.grid(alpha=0.3)


def _points(values):
    return list(values), list(values.values())


def _samples(axis, samples, exact):
    axis.set_xticks([])
    axis.set_yticks([])
    if samples.shape[1] != 2:
        images = samples[:IMAGES].reshape(-1, 8, 8)
        image_grid(axis, images, columns=3, limits=(-1.0, 1.0))
        return
    axis.scatter(*samples[:POINTS].T, s=1.5, color="#1f4e79", lw=0, rasterized=True)
    low, high = np.quantile(exact, [0.002, 0.998], 0)
    centre, half = (low + high) / 2, 0.58 * np.max(high - low)
    axis.set(
        xlim=(centre[0] - half, centre[0] + half),
        ylim=(centre[1] - half, centre[1] + half),
        aspect="equal",
    )
