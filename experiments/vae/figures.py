"""The figures of `vae`: reconstructions, samples, traversals and interpolations."""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from diffjax import sampling
from diffjax.vaes import gaussian
from experiments.shared import datasets
from experiments.shared.figures import image_grid

ROWS, FRAMES, TRAVERSED, REACH = 8, 9, 8, 2.5


def mosaic(
    axis: Any, data: datasets.Dataset, images: np.ndarray, columns: int, title: str
) -> None:
    """Draw images in the grey levels of the data, under a title."""
    image_grid(axis, images, columns, data.limits)
    axis.set_title(title, fontsize=10)


def sample_figure(data: datasets.Dataset, means: np.ndarray, drawn: np.ndarray) -> Any:
    """Draw test images, means and draws."""
    figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.7))
    for axis, images, title in zip(
        axes,
        (data.test, means, drawn),
        ("test images", "means at latents of the prior", "draws there"),
        strict=True,
    ):
        mosaic(axis, data, images[:64], 8, title)
    return figure


def reconstruction_figure(data: datasets.Dataset, bound: Any) -> Any:
    """Draw test images, and the decoder's means at their latents' means."""
    figure, axes = plt.subplots(1, 2, figsize=(6.8, 3.7))
    shown = data.test[:64]
    means = jax.jit(
        jax.vmap(lambda x: bound[1](gaussian.encode(bound[0], x).loc).mean())
    )(shown)
    mosaic(axes[0], data, shown, 8, "test images")
    mosaic(axes[1], data, np.asarray(means), 8, "reconstructions")
    return figure


def traversal_figure(data: datasets.Dataset, bound: Any, kl: np.ndarray) -> Any:
    """Draw images with one entry of the latent changed from −REACH to REACH, one
    row per entry.

    Entries with most nats come first. The others are those of one image.
    """
    entries = np.argsort(-kl)[:TRAVERSED]
    values = jnp.linspace(-REACH, REACH, FRAMES)
    z = gaussian.encode(bound[0], data.test[0]).mean()
    latents = jnp.stack(
        [z.at[entry].set(value) for entry in entries for value in values]
    )
    figure, axis = plt.subplots(figsize=(0.6 * FRAMES + 1.4, 0.6 * len(entries) + 0.8))
    mosaic(
        axis,
        data,
        np.asarray(jax.jit(jax.vmap(lambda z: bound[1](z).mean()))(latents)),
        FRAMES,
        "one test image, one entry of its latent changed a row",
    )
    label_grid(
        axis,
        data,
        [f"{value:.1f}" for value in values],
        [f"{kl[entry]:.1f} nats" for entry in entries],
    )
    axis.set_xlabel("value of the entry, whose prior is N(0, 1)")
    return figure


def interpolation_figure(data: datasets.Dataset, bound: Any) -> Any:
    """Draw one row per pair of test images, whose reconstructions are its outer
    frames.
    """
    rows, weights = min(ROWS, len(data.test) // 2), jnp.linspace(0, 1, FRAMES)

    def between(a, b):
        ends = (gaussian.encode(bound[0], x).loc for x in (a, b))
        start, end = ends
        return jax.vmap(
            lambda weight: bound[1](sampling.spherical(start, end, weight)).mean()
        )(weights)

    frames = np.asarray(
        jax.jit(jax.vmap(between))(data.test[:rows], data.test[rows : 2 * rows])
    )
    figure, axis = plt.subplots(figsize=(0.6 * FRAMES + 0.8, 0.6 * rows + 0.8))
    mosaic(
        axis,
        data,
        frames.reshape(-1, *data.shape),
        FRAMES,
        "between two test images, spherically in the latent",
    )
    label_grid(axis, data, [f"{weight:.2f}" for weight in weights], [])
    axis.set_xlabel("weight of the right image")
    return figure


def label_grid(
    axis: Any, data: datasets.Dataset, columns: list[str], rows: list[str]
) -> None:
    """Label the columns and rows of a mosaic."""
    axis.set_axis_on()
    axis.set_xticks(
        (np.arange(len(columns)) + 0.5) * (data.shape[1] + 1) - 1, columns, fontsize=8
    )
    axis.set_yticks(
        (np.arange(len(rows)) + 0.5) * (data.shape[0] + 1) - 1, rows, fontsize=8
    )
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
