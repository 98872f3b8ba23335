"""The figures of `ddpm`: bounds, rates and distortions, samples, reconstructions,
interpolations.
"""

import math

import matplotlib.pyplot as plt
import numpy as np

from experiments.shared.figures import image_grid, save_figure

COLOURS = {"optimal": "#1f4e79", "posterior": "#c05020", "forward": "#5a9a5a"}
NAMES = {
    "optimal": "optimal, β̃ + c₀² Var",
    "posterior": "posterior, β̃",
    "forward": "forward, β",
}


def draw_bound(terms, table, out):
    """Draw nats of each term by index, and the bits/dim spent from x_T down to
    each index.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2))
    for name, nats in terms.items():
        indices = np.arange(1, len(nats) + 1)
        left.plot(indices, nats, color=COLOURS[name], lw=1.2, label=NAMES[name])
        spent = (np.cumsum(nats[::-1])[::-1]) / math.log(2) + table[name]["prior"]
        right.plot(
            indices,
            spent,
            color=COLOURS[name],
            lw=1.5,
            label=f"{NAMES[name]}: {table[name]['total']:.3f}",
        )
    left.set(
        xscale="log",
        yscale="log",
        xlabel="index t",
        ylabel="nats per dimension",
        ylim=(1e-8, None),
    )
    left.set_title("terms $L_{t-1}$ of the bound ($L_0$ at t = 1)")
    right.set(
        xscale="log",
        xlabel="index t",
        ylabel="bits/dim",
        title="spent from $x_T$ down to $x_{t-1}$",
    )
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
        axis.grid(alpha=0.25)
    save_figure(figure, out / "bound.png")


def draw_rate_distortion(curve, data, out):
    """Draw distortion against rate, and both by index."""
    indices = np.arange(1, len(curve.rate) + 1)
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.8))
    axes[0].plot(curve.rate, curve.rmse, color=COLOURS["optimal"])
    axes[0].set(
        xlabel="rate, bits/dim",
        ylabel="√mean squared error, levels",
        title="rate–distortion",
    )
    axes[1].plot(indices, curve.rmse, color=COLOURS["optimal"])
    axes[1].set(
        xlabel="index t",
        ylabel="√mean squared error, levels",
        title=r"distortion of $\hat x_0 = D(x_t)$",
    )
    axes[2].plot(indices, curve.rate, color=COLOURS["optimal"])
    axes[2].set(xlabel="index t", ylabel="bits/dim", title="rate until $x_t$ is known")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.set_ylim(bottom=0)
    figure.suptitle(
        f"progressive lossy compression of {data.name}, {len(data.levels)} levels",
        y=1.02,
    )
    save_figure(figure, out / "rate_distortion.png")


def draw_samples(data, drawn, out):
    """Draw test images beside samples of every kind."""
    panels = {"test images": data.test} | drawn
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.9))
    for axis, (name, images) in zip(axes, panels.items(), strict=True):
        image_grid(axis, images[:64], None, data.limits)
        axis.set_title(name, fontsize=10)
    save_figure(figure, out / "samples.png")


def draw_progressive(data, curve, shown, out):
    """Draw x_t above x̂_0 for some test images at several indices, with the mean
    rate at each.
    """
    indices, noisy, denoised = (np.asarray(part) for part in shown)
    count, frames = noisy.shape[:2]
    figure, axes = plt.subplots(
        1,
        2,
        figsize=(1.1 * frames + 0.6, 0.56 * count + 0.9),
        width_ratios=(frames, frames + 1),
    )
    image_grid(axes[0], noisy.reshape(-1, *data.shape), frames, data.limits)
    whole = np.concatenate([denoised, data.test[:count, None]], 1)
    image_grid(axes[1], whole.reshape(-1, *data.shape), frames + 1, data.limits)
    width = data.shape[1] + 1
    for axis, last in zip(axes, ((), ("x₀",)), strict=True):
        axis.set_axis_on()
        labels = [f"{index}\n{curve.rate[index - 1]:.2f}" for index in indices]
        axis.set_xticks(
            (np.arange(frames + len(last)) + 0.5) * width - 1,
            [*labels, *last],
            fontsize=7,
        )
        axis.set_yticks([])
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[0].set_title("$x_t$", fontsize=10)
    axes[1].set_title(r"$\hat x_0 = D(x_t)$", fontsize=10)
    axes[0].set_ylabel("below: index t,\nbits/dim sent", fontsize=7)
    save_figure(figure, out / "progressive.png")


def draw_interpolations(data, drawn, out):
    """Draw one row per kind of interpolation. The outer columns are the two test
    images.
    """
    start, end = data.test[:2]
    rows = [
        np.concatenate([start[None], images, end[None]]) for images in drawn.values()
    ]
    columns = len(rows[0])
    figure, axis = plt.subplots(figsize=(0.75 * columns + 1.5, 0.75 * len(rows) + 0.5))
    image_grid(axis, np.concatenate(rows), columns, data.limits)
    axis.set_axis_on()
    height, width = data.shape[0] + 1, data.shape[1] + 1
    axis.set_yticks((np.arange(len(rows)) + 0.5) * height - 1, list(drawn), fontsize=8)
    labels = ["test", *(f"{w:.2f}" for w in np.linspace(0, 1, columns - 2)), "test"]
    axis.set_xticks((np.arange(columns) + 0.5) * width - 1, labels, fontsize=8)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xlabel("weight of the second image")
    axis.set_title("interpolation between two test images", fontsize=10)
    save_figure(figure, out / "interpolation.png")
