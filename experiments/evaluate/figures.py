"""The figures of `evaluate`: images, the nearest training images, Fréchet distance
against the number of images.
"""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from diffjax.metrics import Extrapolation
from experiments.shared.figures import image_grid, save_figure

COLOURS = ("#1f4e79", "#c05020", "#5a8f3d")


def draw_images(
    sets: dict[str, np.ndarray], limits: tuple[float, float], out: pathlib.Path
) -> None:
    """Draw up to 64 images of each set.

    Args:
      sets: Images (N, H, W, C) by title.
      limits: The values that are drawn black and white.
      out: The folder.
    """
    figure, axes = plt.subplots(1, len(sets), figsize=(4.5 * len(sets), 4.8))
    for axis, (title, images) in zip(np.atleast_1d(axes), sets.items(), strict=True):
        image_grid(axis, images[:64], None, limits)
        axis.set_title(title)
    save_figure(figure, out / "samples.png")


def draw_neighbours(
    samples: np.ndarray,
    nearest: np.ndarray,
    limits: tuple[float, float],
    out: pathlib.Path,
) -> None:
    """Draw samples above their nearest training images.

    Args:
      samples: (N, H, W, C), those most like a training image first.
      nearest: (N, K, H, W, C), their nearest training images.
      limits: The values that are drawn black and white.
      out: The folder.
    """
    count, rows = len(samples), 1 + nearest.shape[1]
    images = np.concatenate([samples, *np.moveaxis(nearest, 1, 0)])
    figure, axis = plt.subplots(figsize=(0.8 * count, 0.8 * rows + 0.4))
    image_grid(axis, images, count, limits)
    title = "the samples nearest to a training image (top row), nearest ones below"
    axis.set_title(title, fontsize=9)
    save_figure(figure, out / "neighbours.png")


def draw_extrapolation(
    lines: dict[str, Extrapolation],
    title: str,
    out: pathlib.Path,
) -> None:
    """Draw the Fréchet distance of subsets against 1/n, and its lines to 0.

    Args:
      lines: The extrapolation of each set by name.
      title: The features.
      out: The folder.
    """
    figure, axis = plt.subplots(figsize=(5.5, 3.8))
    for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
        inverse = np.array([0, *1 / line.counts])
        axis.plot(inverse[1:], line.distances, "o", color=colour, label=name)
        axis.plot(inverse, line.value + line.slope * inverse, color=colour, lw=1)
    axis.set(
        xlabel="1/number of samples (at 0 the extrapolated value)",
        ylabel="squared Fréchet distance",
        title=title,
    )
    axis.legend(frameon=False)
    save_figure(figure, out / "frechet.png")
