"""The figures of `toy_flows`: densities and samples."""

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments.shared.datasets import TOYS
from experiments.shared.figures import density_image, grid_points
from experiments.shared.mapping import map_examples
from experiments.toy_flows.config import Config
from experiments.toy_flows.kinds import KINDS
from experiments.toy_flows.measures import fine, log_probs, samples

HALF_SIDE, PIXELS, DRAWN = 5.0, 100, 4000


def _sample(flow, key):
    return flow.sample(key)


def draw_densities(config: Config, fitted: dict, results: dict) -> Any:
    """Draw the exact density and those of the flows, one row per target."""
    edges = np.linspace(-HALF_SIDE, HALF_SIDE, PIXELS + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    points = grid_points(centres)
    figure, axes = grid_of_axes(config)
    for row, name in zip(axes, config.targets, strict=True):
        distributions = [
            TOYS[name](),
            *(fine(fitted[name, kind]) for kind in config.flows),
        ]
        densities = [
            np.exp(log_probs(distribution, points)).reshape(PIXELS, PIXELS)
            for distribution in distributions
        ]
        for axis, density in zip(row, densities, strict=True):
            image = density_image(axis, edges, density, densities[0].max())
        bar = figure.colorbar(image, ax=row, pad=0.01)
        bar.set_label("density (1 / data unit²)", fontsize=9)
    label(config, axes, results, "exact density")
    figure.suptitle("Densities: exact, and of fitted flows", fontsize=13)
    return figure


def draw_samples(config: Config, fitted: dict, results: dict) -> Any:
    """Draw as many samples of the exact density as of each flow, one row per
    target.
    """
    figure, axes = grid_of_axes(config)
    keys = jax.random.split(
        jax.random.fold_in(jax.random.key(config.seed), 1_000), DRAWN
    )
    for row, name in zip(axes, config.targets, strict=True):
        draws = [samples(config, name, 2, DRAWN)]
        draws += [
            map_examples(_sample, fine(fitted[name, kind]), (keys,), chunk=DRAWN)
            for kind in config.flows
        ]
        for axis, xs in zip(row, draws, strict=True):
            axis.scatter(
                *np.asarray(xs).T,
                s=1.2,
                alpha=0.5,
                linewidths=0,
                color="#26456e",
                rasterized=True,
            )
    label(config, axes, results, "exact samples")
    figure.suptitle(f"{DRAWN} samples: exact, and of fitted flows", fontsize=13)
    return figure


def grid_of_axes(config: Config) -> Any:
    """A figure with one row per target, and columns for the truth and each flow."""
    rows, columns = len(config.targets), 1 + len(config.flows)
    size = (2.5 * columns + 1.0, 3.0 * rows + 0.7)
    return plt.subplots(
        rows,
        columns,
        figsize=size,
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )


def label(config: Config, axes: Any, results: dict, truth: str) -> None:
    """Set titles with the gaps, axis labels with units, and one window for all."""
    for row, name in zip(axes, config.targets, strict=True):
        entropy = results[name][config.flows[0]]["entropy"]
        row[0].set_title(f"{truth}\nentropy {entropy:.3f} nats", fontsize=10)
        for axis, kind in zip(row[1:], config.flows, strict=True):
            axis.set_title(
                f"{KINDS[kind].title}\ngap {results[name][kind]['gap']:.3f} nats",
                fontsize=10,
            )
        row[0].set_ylabel(f"{name.replace('_', ' ')}\n$x_2$ (data units)")
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$ (data units)")
    for axis in axes.flat:
        axis.set(
            xlim=(-HALF_SIDE, HALF_SIDE), ylim=(-HALF_SIDE, HALF_SIDE), aspect="equal"
        )
