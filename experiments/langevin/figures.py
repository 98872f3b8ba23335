"""The figures of `langevin`: paths, histograms, biases and far modes."""

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from diffjax import targets
from experiments.langevin.chains import (
    BOUNDS,
    CELLS,
    KERNELS,
    LONG,
    PATH_STEPS,
    PLANE,
    exact_bias,
)
from experiments.langevin.config import Config
from experiments.langevin.modes import HEAVY, TITLES
from experiments.shared.figures import PALE_GREYS, grid_points


def draw_paths(paths: dict[str, np.ndarray]) -> Any:
    """Draw one chain of each kind over the density."""
    target, extent = targets.gaussian_mixture(*PLANE), 3.6
    figure, axes = _row_of_axes(len(paths), 3.7)
    for axis, (name, x) in zip(axes, paths.items(), strict=True):
        shade(axis, target, extent)
        axis.plot(*x.T, color=KERNELS[name][3], lw=0.8, marker="o", ms=2)
        axis.set_title(KERNELS[name][0], fontsize=10)
        axis.set_xlabel("$x_1$ (data units)")
    axes[0].set_ylabel("$x_2$ (data units)")
    figure.suptitle(
        f"One chain of {PATH_STEPS} steps, ε = {LONG / 5:g}, over the exact density"
    )
    return figure


def _row_of_axes(count, height):
    return plt.subplots(
        1, count, figsize=(3.4 * count, height), sharey=True, layout="constrained"
    )


def shade(axis: Any, target: Any, extent: float) -> None:
    """Draw the density in pale greys."""
    side = np.linspace(-extent, extent, 120)
    points = grid_points(side)
    density = np.exp(jax.jit(jax.vmap(target.log_prob))(points)).reshape(120, 120)
    axis.pcolormesh(side, side, density.T, cmap=PALE_GREYS, rasterized=True)
    axis.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")


def draw_histograms(
    line: Any, counts: dict[str, np.ndarray], results: dict[str, Any]
) -> Any:
    """Draw histograms of all kept states against the density."""
    edges = np.linspace(*BOUNDS, CELLS + 1)
    x = np.linspace(*BOUNDS, 500)
    density = np.exp(jax.vmap(line.log_prob)(x[:, None]))
    figure, axes = _row_of_axes(len(counts), 3.2)
    for axis, (name, count) in zip(axes, counts.items(), strict=True):
        axis.stairs(
            count / np.diff(edges), edges, fill=True, color=KERNELS[name][3], alpha=0.45
        )
        axis.plot(x, density, color="black", lw=1.2)
        axis.set(xlabel="$x$ (data units)", xlim=(-4, 4))
        distance, floor = results[name]["distance"], results["exact"]["distance"]
        axis.set_title(
            f"{KERNELS[name][0]}\noff by {distance:.4f}, exact draws {floor:.4f}",
            fontsize=9,
        )
    axes[0].set_ylabel("density (1 / data unit)")
    figure.suptitle(
        f"States of all chains at ε = {LONG:g} against the exact density (line)"
    )
    return figure


def draw_bias(config: Config, biases: dict[str, Any]) -> Any:
    """Draw the relative bias against step size. Lines are the exact biases of the
    steps.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
    fine = np.geomspace(min(config.step_sizes), max(config.step_sizes), 100)
    for axis, (distribution, by_kernel) in zip(axes, biases.items(), strict=True):
        # Below 0, so that every bar is visible, however few the chains.
        lowest = -0.05
        for i, (name, rows) in enumerate(by_kernel["kernels"].items()):
            title, _, _, colour = KERNELS[name]
            gone = [row["step_size"] for row in rows if row["bias"] is None]
            settled = [row for row in rows if row["bias"] is not None]
            sizes, values, errors = (
                np.array([row[entry] for row in settled])
                for entry in ("step_size", "bias", "standard_error")
            )
            axis.plot(
                gone,
                [5.0 + i for _ in gone],
                "x",
                color=colour,
                label=f"{title}: diverged" if gone else None,
            )
            lowest = min([lowest, *(1.2 * (values - 2 * errors))])
            # Moved apart, so that the bars do not hide each other.
            moved = sizes * 1.04 ** (i - 1.5)
            axis.errorbar(
                moved,
                values,
                2 * errors,
                fmt="o",
                ms=4,
                color=colour,
                label=title,
                capsize=2,
            )
            if distribution == "gaussian" and name == "ula":
                axis.plot(
                    fine,
                    exact_bias(name, fine),
                    color=colour,
                    lw=1,
                    label="ULA's exact value, 1/(1 − ε/4)",
                )
            if distribution == "mixture":
                axis.plot(moved, values, color=colour, lw=0.6)
        axis.axhline(0, color="black", lw=0.6)
        axis.set_xscale("log")
        axis.set_yscale("symlog", linthresh=0.02)
        axis.set_xlabel("step size ε, or h² of kinetic chains (squared data units)")
        axis.set_ylabel("relative error of E x², ± 2 standard errors")
        axis.set_title(
            "N(0, 1)" if distribution == "gaussian" else "two modes on the line",
            fontsize=10,
        )
        axis.set_ylim(lowest, 10)
        axis.legend(frameon=False, fontsize=8)
    return figure


def draw_modes(points: dict[str, tuple], modes: dict[str, Any]) -> Any:
    """Draw the positions of the chains, sized by their weights."""
    figure, axes = plt.subplots(
        1,
        len(points),
        figsize=(3.2 * len(points), 4.2),
        sharey=True,
        layout="constrained",
    )
    for axis, (name, (x, weights)) in zip(axes, points.items(), strict=True):
        axis.scatter(
            *x.T,
            s=3 * weights * len(weights),
            alpha=0.4,
            linewidths=0,
            color="#26456e",
            rasterized=True,
        )
        row = modes[name]
        axis.set_title(
            f"{TITLES[name]}\nheavy mode {row['share']:.3f} ± "
            f"{row['standard_error']:.3f}",
            fontsize=9,
        )
        axis.set(
            xlim=(-10, 10), ylim=(-10, 10), aspect="equal", xlabel="$x_1$ (data units)"
        )
    axes[0].set_ylabel("$x_2$ (data units)")
    figure.suptitle(
        f"Two far modes, the upper of weight {HEAVY}; dots of importance sampling are "
        "as large as their weight"
    )
    return figure
