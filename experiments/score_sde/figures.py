"""The figures of `score_sde`: samples, one sample being denoised, nearest
neighbours.
"""

import matplotlib.pyplot as plt
import numpy as np

from experiments.shared.figures import image_grid, save_figure


def draw_images(data, drawn, indices, strip, labels, out):
    """Draw real beside generated images, a sample being denoised, and nearest
    training images.

    Args:
      data: The data set.
      drawn: Samples by the name of the sampler.
      indices: (N, 3), nearest training examples of the samples.
      strip: (states, denoised) of one sample.
      labels: Noise levels of the strip.
      out: The folder.
    """
    limits = data.limits
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.8))
    panels = (
        ("test images", data.test),
        ("reverse SDE, Euler-Maruyama", drawn["sde"]),
        ("probability flow, Heun", drawn["ode"]),
    )
    for axis, (title, images) in zip(axes, panels, strict=True):
        image_grid(axis, images[:64], None, limits)
        axis.set_title(title)
    save_figure(figure, out / "samples.png")

    figure, axes = plt.subplots(2, len(labels), figsize=(1.15 * len(labels), 2.9))
    for column, label in enumerate(labels):
        noisy, denoised = strip[0][column], strip[1][column]
        spread = max(limits[1], float(np.abs(noisy).max()))
        image_grid(axes[0, column], noisy[None], 1, (-spread, spread))
        image_grid(axes[1, column], denoised[None], 1, limits)
        axes[0, column].set_title(label, fontsize=8)
    figure.suptitle(
        "one sample along the probability flow: state x (above), denoised D(x, t) "
        "(below), by noise σ/α",
        y=1.02,
    )
    save_figure(figure, out / "denoising.png")

    count = min(10, len(indices))
    rows = [
        drawn["sde"][:count],
        *np.moveaxis(data.loaded(data.stored_train, indices[:count]), 1, 0),
    ]
    figure, axis = plt.subplots(figsize=(0.8 * count, 0.8 * len(rows) + 0.4))
    image_grid(axis, np.concatenate(rows), count, limits)
    axis.set_title(
        "samples (top row) and their nearest training images (below, nearest first)",
        fontsize=9,
    )
    save_figure(figure, out / "neighbours.png")


def draw_points(data, drawn, strip, labels, out):
    """Draw two coordinates of real and generated examples, and of some samples
    along the flow.

    Args:
      data: The data set.
      drawn: Samples by the name of the sampler.
      strip: (states, denoised) of one sample.
      labels: Noise levels of the strip.
      out: The folder.
    """
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), sharex=True, sharey=True)
    panels = (
        ("test examples", data.test),
        ("reverse SDE, Euler-Maruyama", drawn["sde"]),
        ("probability flow, Heun", drawn["ode"]),
    )
    for axis, (title, points) in zip(axes, panels, strict=True):
        flat = points.reshape(len(points), -1)
        axis.scatter(
            flat[:, 0],
            flat[:, 1] if flat.shape[1] > 1 else 0 * flat[:, 0],
            s=4,
            alpha=0.5,
            color="#1f4e79",
        )
        axis.set(title=title, xlabel="x₁", aspect="equal")
    axes[0].set_ylabel("x₂")
    save_figure(figure, out / "samples.png")
    figure, axis = plt.subplots(figsize=(6, 3.5))
    axis.plot(
        range(len(labels)),
        strip[0].reshape(len(labels), -1)[:, :8],
        color="#1f4e79",
        label="state x",
    )
    axis.plot(
        range(len(labels)),
        strip[1].reshape(len(labels), -1)[:, :8],
        color="#c05020",
        ls="--",
        label="denoised D(x, t)",
    )
    axis.set(
        xlabel="noise σ/α",
        ylabel="coordinates of one sample",
        title="one sample along the probability flow",
    )
    axis.set_xticks(range(len(labels)), labels, rotation=45)
    handles, names = axis.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), frameon=False)
    save_figure(figure, out / "denoising.png")
