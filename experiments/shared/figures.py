"""Figures of several experiments: mosaics of images, histograms, and saving."""

import math
import pathlib
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from experiments.shared import devices
from experiments.shared.files import add_figure, naming

PALE_GREYS = ListedColormap(plt.get_cmap("Greys")(np.linspace(0, 0.75, 256)))


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Save a matplotlib figure as PNG, show it in the run's report, and close it.

    Args:
      figure: The figure.
      path: The file.
    """
    if devices.is_first():
        with naming(path):
            figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
        add_figure(path, described(figure))
    plt.close(figure)
    print(f"wrote {path}")


def described(figure: Any) -> str:
    """A figure in words, for those who do not see it: its titles, axes and legends.

    Args:
      figure: A matplotlib figure.

    Returns:
      Sentences, empty if it has no text.
    """
    seen: dict[str, None] = {}
    heading = " ".join(figure.get_suptitle().split())
    for axis in figure.axes:
        words = [axis.get_title(), axis.get_title("left")]
        words += [
            f"{axis.get_ylabel()} over {axis.get_xlabel()}".removesuffix(" over ")
        ]
        legend = axis.get_legend()
        if legend is not None:
            words += [", ".join(text.get_text() for text in legend.get_texts())]
        words = [" ".join(word.split()).removeprefix("over ") for word in words]
        seen["; ".join(dict.fromkeys(word for word in words if word))] = None
    panels = [words for words in seen if words]
    return ". ".join(([heading] if heading else []) + panels)


def image_grid(
    axis: Any, images: np.ndarray, columns: int | None, limits: tuple[float, float]
) -> None:
    """Draw images as one mosaic on an axis, in the same grey levels for all.

    Args:
      axis: A matplotlib axis.
      images: (N, H, W) or (N, H, W, C).
      columns: Images per row. None for those of `near_square`.
      limits: The values that are drawn black and white.
    """
    images = np.asarray(images)
    images = images if images.ndim == 4 else images[..., None]  # (N, H, W, C)
    count, height, width, channels = images.shape
    columns = near_square(count) if columns is None else columns
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + 1) - 1, columns * (width + 1) - 1, channels), np.nan
    )
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    low, high = limits
    scaled = np.clip((canvas - low) / (high - low), 0, 1)
    palette = matplotlib.colormaps["gray"].with_extremes(bad="#7aa6c2")
    if channels == 1:
        axis.imshow(
            np.ma.masked_invalid(scaled[..., 0]),
            cmap=palette,
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
    else:
        axis.imshow(np.nan_to_num(scaled[..., :3], nan=0.6), interpolation="nearest")
    axis.set_axis_off()


def near_square(count: int) -> int:
    """Columns of a grid of `count` cells: the most square one without blank cells,
    if it is at most twice as wide as high.
    """
    least = math.isqrt(max(count - 1, 0)) + 1  # its square is at least `count`
    for columns in range(least, 2 * least):
        if count % columns == 0 and columns <= 2 * (count // columns):
            return columns
    return least


def histogram(x: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Density of samples on square cells. Samples outside of them count in the
    total.

    Args:
      x: Samples (n, 2).
      bins: Edges of the cells along each axis.

    Returns:
      The density on each cell.
    """
    counts, *_ = np.histogram2d(x[:, 0], x[:, 1], bins=(bins, bins))
    return counts / len(x) / (bins[1] - bins[0]) ** 2


def grid_points(side: np.ndarray) -> np.ndarray:
    """The points of a square grid, the first coordinate slowest.

    Args:
      side: The values of each coordinate, (n,).

    Returns:
      (n², 2).
    """
    return np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)


def density_image(axis: Any, edges: np.ndarray, values: np.ndarray, most: float) -> Any:
    """Draw a density on square cells, from black at 0.

    Args:
      axis: A matplotlib axis.
      edges: Edges of the cells along each axis, (n + 1,), or their centres, (n,).
      values: The density, (n, n), x_1 first.
      most: The density of the brightest colour.

    Returns:
      The image, for a colour bar.
    """
    axis.set_aspect("equal")
    return axis.pcolormesh(
        edges, edges, values.T, cmap="magma", vmin=0, vmax=most, rasterized=True
    )
