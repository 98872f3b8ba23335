"""The figures of `fokker_planck`: densities in time, residuals, and rates along a
path.
"""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.fokker_planck.evolution import DRAWN_BINS


def draw_densities(paths: int, evolutions: dict[str, Any]) -> Any:
    """Draw histogram, solved and exact density, one row per process and one
    column per time.
    """
    rows, columns = len(evolutions), max(len(e.times) for e in evolutions.values())
    size = (3.1 * columns, 2.7 * rows + 0.7)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained"
    )
    for row, evolution in zip(axes, evolutions.values(), strict=True):
        for i, axis in enumerate(row):
            draw_density(axis, evolution, i, paths)
        row[0].set_ylabel(f"{evolution.process.title}\ndensity (1 / data unit)")
    for axis in axes[-1]:
        axis.set_xlabel("x (data units)")
    handles = {
        h.get_label(): h
        for axis in axes.flat
        for h in axis.get_legend_handles_labels()[0]
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
    )
    return figure


def draw_density(axis: Any, evolution: Any, i: int, paths: int) -> None:
    """Draw one panel. The window holds all that exceeds 1/1000 of the maximum."""
    edges, solved, exact = evolution.edges, evolution.solved[i], evolution.exact[i]
    inside = np.flatnonzero(solved > 1e-3 * solved.max())
    stride = max(1, round(len(inside) / DRAWN_BINS))
    first = max(0, inside[0] - stride)
    starts = np.arange(first, min(len(solved), inside[-1] + 2 * stride), stride)
    bars = (
        np.add.reduceat(evolution.counts[i], starts)[:-1]
        / paths
        / (edges[stride] - edges[0])
    )
    centres = 0.5 * (edges[1:] + edges[:-1])
    axis.stairs(
        bars,
        edges[starts],
        fill=True,
        color="#c9d6e8",
        label=f"histogram of {paths} paths",
    )
    if evolution.rest is not None and i == len(evolution.times) - 1:
        axis.plot(
            centres,
            evolution.rest,
            color="#58b368",
            linewidth=3.5,
            label="stationary density",
        )
    axis.plot(centres, exact, color="#f2a33a", linewidth=3.5, label="exact density")
    axis.plot(
        centres,
        solved,
        color="black",
        linewidth=1,
        linestyle=(0, (4, 2)),
        label="solved on cells",
    )
    axis.set_xlim(edges[starts[0]], edges[starts[-1]])
    axis.set_ylim(0, 1.3 * solved.max())
    snapshot = evolution.metrics["snapshots"][i]
    axis.set_title(f"t = {snapshot['t']:.3g}", fontsize=10)
    text = f"χ² = {snapshot['chi_squared']:.0f}, expected {snapshot['degrees']} ± {np.sqrt(2 * snapshot['degrees']):.0f}"  # noqa: E501
    axis.text(
        0.97, 0.96, text, transform=axis.transAxes, ha="right", va="top", fontsize=8
    )
    axis.tick_params(labelsize=8)


def draw_residuals(
    residuals: dict[str, dict[str, np.ndarray]],
    levels: dict[str, str],
    titles: dict[str, str],
    coarsest: float,
) -> Any:
    """Draw the residual against the step, one panel per process and one line per
    schedule.

    Also drawn are the slope 2, rounding and the reversed sign.
    """
    figure, axes = plt.subplots(
        1, 3, figsize=(14.5, 5.6), sharey=True, layout="constrained"
    )
    for axis, (level, title) in zip(axes, levels.items(), strict=True):
        steps = coarsest * 0.5 ** np.arange(len(next(iter(residuals.values()))[level]))
        for i, (name, sizes) in enumerate(residuals.items()):
            style = {
                "color": f"C{i}",
                "marker": "o",
                "markersize": 13 - 1.4 * i,
                "fillstyle": "none",
                "linewidth": 1,
            }
            axis.loglog(steps, sizes[level], label=titles[name], **style)
            if level == "flow":
                axis.loglog(steps, sizes["wrong"], linestyle=":", **style)
        axis.loglog(
            steps,
            3 * steps**2,
            color="black",
            linestyle="--",
            linewidth=1.2,
            label="slope 2",
        )
        if level != "flow":
            label = "rounding, eps (σ/Δx)²"
            axis.loglog(
                steps,
                2.2e-16 / steps**2,
                color="grey",
                linestyle="-.",
                linewidth=1.2,
                label=label,
            )
        axis.set(
            title=title, xlabel="step: Δx / σ(t), and Δt |λ′(t)|", ylim=(1e-11, 30)
        )
        axis.grid(alpha=0.25)
    axes[1].text(
        steps[-1],
        5.0,
        "dotted: f + ½g²∇log p, the sign reversed",
        fontsize=9,
        va="center",
    )
    axes[0].set_ylabel(
        "residual of the density equation over p,\nroot mean square, in units of "
        "|λ′(t)| (1)"
    )
    handles, labels = axes[0].get_legend_handles_labels()
    note = "schedules; in these units they nearly coincide"
    figure.legend(
        handles, labels, loc="outside lower center", ncols=5, frameon=False, title=note
    )
    return figure


def draw_path(
    path: Any, differences: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Any:
    """Draw the path over p_t, log p along it and at the fixed point, and their
    rates.

    Dots are central differences.
    """
    figure, axes = plt.subplots(
        1,
        3,
        figsize=(15, 4.4),
        layout="constrained",
        gridspec_kw={"width_ratios": [1.15, 1, 1], "wspace": 0.06},
    )
    moving, resting = "#c0392b", "#1f5fa8"
    names = (
        f"along x(t), from x = {path.point:g}",
        f"at the fixed point x = {path.point:g}",
    )
    edges_t = np.concatenate(
        [path.ts[:1], 0.5 * (path.ts[1:] + path.ts[:-1]), path.ts[-1:]]
    )
    image = axes[0].pcolormesh(
        edges_t, path.edges, path.heat.T, cmap="Greys", rasterized=True
    )
    figure.colorbar(image, ax=axes[0], label="exact $p_t(x)$ (1 / data unit)")
    axes[0].plot(path.ts, path.x, color=moving, linewidth=2)
    axes[0].axhline(path.point, color=resting, linewidth=2, linestyle="--")
    axes[0].set(title="a path of VP's flow and a fixed point", ylabel="x (data units)")
    axes[1].plot(path.ts, path.log_p_along, color=moving, linewidth=2, label=names[0])
    axes[1].plot(
        path.ts,
        path.log_p_fixed,
        color=resting,
        linewidth=2,
        linestyle="--",
        label=names[1],
    )
    axes[1].set(title="log density", ylabel="log p (nats)")
    axes[1].legend(frameon=False)
    dots, every = path.ts[1:-1], slice(None, None, 20)
    axes[2].plot(
        path.ts,
        path.along,
        color=moving,
        linewidth=2,
        label="d log p(x(t), t)/dt = −tr ∂v/∂x",
    )
    axes[2].plot(
        path.ts,
        path.fixed,
        color=resting,
        linewidth=2,
        linestyle="--",
        label="∂log p/∂t at the fixed point",
    )
    for values, color in ((path.log_p_along, moving), (path.log_p_fixed, resting)):
        slopes = differences(values, path.ts)
        axes[2].plot(
            dots[every],
            slopes[every],
            "o",
            color=color,
            markersize=5,
            markerfacecolor="white",
        )
    axes[2].plot(
        [], [], "o", color="grey", markerfacecolor="white", label="differences of log p"
    )
    axes[2].set(title="rate of the log density", ylabel="rate (nats / unit of t)")
    axes[2].legend(frameon=False)
    for axis in axes:
        axis.set_xlabel("time t (noise grows with t)")
    return figure
