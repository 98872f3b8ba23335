"""The figures of `energy_model`: densities, and estimates of log Z."""

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments.energy_model.config import Config
from experiments.energy_model.fitting import TITLES
from experiments.shared.figures import density_image, grid_points

COLOURS = {
    "denoising": "#1f4e79",
    "sliced": "#c9952b",
    "exact": "#3c8d5a",
    "contrastive": "#b5482a",
}
EXTENT, PIXELS = 4.6, 140


def draw_densities(target: Any, fitted: dict[str, Any], results: dict[str, Any]) -> Any:
    """Draw the exact density and the learned ones, normalised by quadrature, in
    one scale.
    """
    side = np.linspace(-EXTENT, EXTENT, PIXELS)
    points = grid_points(side)
    rows = results["objectives"]
    distributions = {"exact density": (target, 0.0)}
    distributions |= {
        f"{TITLES[k]}\nKL {rows[k]['kl']:.3f} nats": (distribution, rows[k]["log_z"])
        for k, distribution in fitted.items()
    }
    figure, axes = plt.subplots(
        1,
        len(distributions),
        figsize=(3.1 * len(distributions) + 0.7, 3.6),
        sharey=True,
        layout="constrained",
    )
    top = None
    for axis, (title, (distribution, log_z)) in zip(
        axes, distributions.items(), strict=True
    ):
        density = np.exp(
            jax.jit(jax.vmap(distribution.log_prob))(points) - log_z
        ).reshape(PIXELS, PIXELS)
        top = density.max() if top is None else top
        image = density_image(axis, side, density, top)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="$x_1$ (data units)")
    axes[0].set_ylabel("$x_2$ (data units)")
    figure.colorbar(image, ax=axes, pad=0.01).set_label(
        "density (1 / data unit²)", fontsize=9
    )
    return figure


def draw_log_z(config: Config, results: dict[str, Any]) -> Any:
    """Draw the errors of the two estimates against the number of levels, one
    panel each.
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(9.5, 3.8), sharey=True, layout="constrained"
    )
    kinds = {
        "importance": "annealed importance sampling",
        "thermodynamic": "thermodynamic integration",
    }
    for axis, (kind, title) in zip(axes, kinds.items(), strict=True):
        for i, (name, row) in enumerate(results["objectives"].items()):
            estimates = row["estimates"][kind]
            levels = np.array([e["levels"] for e in estimates]) * 1.07 ** (i - 1.5)
            errors = [e["log_z"] - row["log_z"] for e in estimates]
            bars = [2 * e["standard_error"] for e in estimates]
            axis.errorbar(
                levels,
                errors,
                bars,
                fmt="o-",
                ms=4,
                lw=0.8,
                capsize=2,
                color=COLOURS[name],
                label=TITLES[name],
            )
        axis.axhline(0, color="black", lw=0.6)
        axis.set_xscale("log", base=2)
        axis.set_xticks(config.levels, [str(n) for n in config.levels])
        axis.set(xlabel="levels from the broad to the learned density", title=title)
    axes[0].set_ylabel("log Z less quadrature's (nats), ± 2 standard errors")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
