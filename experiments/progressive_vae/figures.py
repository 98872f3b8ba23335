"""The figures of `progressive_vae`: reconstructions, samples, latents, and
information by step.
"""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.shared import datasets
from experiments.shared.figures import image_grid

TITLES = {
    "gaussian": "Gaussian prior",
    "flow": "flow prior",
    "diffusion": "diffusion prior",
}
SHOWN = 64


def reconstructions(
    data: datasets.Dataset, rebuilt: list[np.ndarray], errors: list[float]
) -> Any:
    """Draw test images, and their images from the latent of each layer."""
    titles = ["test images"]
    titles += [
        f"from z_{layer}\nerror {error:.2f} (scale −1 to 1)"
        for layer, error in enumerate(errors, 1)
    ]
    return _mosaics(data, [data.test, *rebuilt], titles)


def samples(
    data: datasets.Dataset, drawn: dict[str, np.ndarray], distances: dict[str, Any]
) -> Any:
    """Draw test images, and samples under each prior."""

    def title(name, text):
        frechet = distances[name]["frechet"]
        return (
            f"{text}\nFréchet distance {frechet['mean']:.2f}"
            f" ± {frechet['standard_error']:.2f}"
        )

    floor = distances["training_images"]["frechet"]["mean"]
    titles = [f"test images\n(training images {floor:.2f})"]
    titles += [title(name, TITLES[name]) for name in drawn]
    return _mosaics(data, [data.test, *drawn.values()], titles)


def _mosaics(data, groups, titles):
    figure, axes = plt.subplots(1, len(groups), figsize=(3.4 * len(groups), 3.9))
    for axis, images, title in zip(axes, groups, titles, strict=True):
        image_grid(axis, images[:SHOWN], None, data.limits)
        axis.set_title(title, fontsize=10)
    return figure


def latents(tops: np.ndarray, drawn: dict[str, np.ndarray]) -> Any:
    """Draw the two entries of the top latent that spread most, of test images and
    of each prior.
    """
    first, second = np.argsort(-tops.std(0))[:2]
    groups = {"test images, encoded": tops} | {
        TITLES[name]: zs for name, zs in drawn.items()
    }
    figure, axes = plt.subplots(
        1, len(groups), figsize=(3.4 * len(groups), 3.6), sharex=True, sharey=True
    )
    for axis, (title, zs) in zip(axes, groups.items(), strict=True):
        axis.scatter(zs[:, first], zs[:, second], s=6, color="#1f4e79", alpha=0.6, lw=0)
        axis.set(title=title, xlabel=f"entry {first} of the top latent", aspect="equal")
    axes[0].set_ylabel(f"entry {second}")
    return figure


def information(rows: list[dict[str, float]], count: int) -> Any:
    """Draw bars between the bounds of each step's information, and the capacity
    of its channel.
    """
    figure, axis = plt.subplots(figsize=(6, 3.6))
    places = np.arange(1, len(rows) + 1)
    low, high, capacity = (
        np.array([row[name] for row in rows])
        for name in ("contrastive", "gaussian", "capacity")
    )
    axis.bar(
        places, high - low, 0.5, bottom=low, color="#b9cfe4", label="between the bounds"
    )
    for values, colour, label in (
        (capacity, "#b5482a", "capacity of the channel (upper)"),
        (high, "#1f4e79", "Gaussian of z's covariance (upper)"),
        (low, "#3c8d5a", "contrastive (lower)"),
    ):
        axis.hlines(values, places - 0.3, places + 0.3, color=colour, lw=2, label=label)
    axis.axhline(
        math.log(count),
        color="0.6",
        lw=0.8,
        ls="--",
        label=f"log {count}: no lower bound shows more",
    )
    axis.set_xticks(
        places, [f"I({'x' if i == 1 else f'z_{i - 1}'}; z_{i})" for i in places]
    )
    axis.set(
        ylabel="mutual information, nats",
        ylim=(0, None),
        xlim=(0.4, len(rows) + 0.6),
        title="What each step keeps of the one below",
    )
    axis.legend(frameon=False, fontsize=8)
    return figure
