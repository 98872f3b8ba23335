"""The figures of `flow_matching`: paths and samples, errors against evaluations."""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.shared.figures import PALE_GREYS, image_grid

TITLES = {
    "independent": "independent",
    "sinkhorn": "entropic (Sinkhorn)",
    "optimal": "optimal within a batch",
    "reflow": "reflow of independent",
}
COLOURS = {
    "independent": "#b5482a",
    "sinkhorn": "#7a5aa6",
    "optimal": "#1f4e79",
    "reflow": "#3c8d5a",
}
SHOWN_STEPS = (1, 2, 4, 32)
SHOWN_IMAGE_STEPS = (1, 2, 4, 8, 32)
IMAGES = 16
EXTENT, PIXELS = 5.0, 160


def draw_paths(name: str, target: Any, drawn: dict[str, dict[str, Any]]) -> Any:
    """Draw paths, then samples by few Euler steps, one row per pairing."""
    columns = 1 + len(SHOWN_STEPS)
    figure, axes = plt.subplots(
        len(drawn),
        columns,
        figsize=(3.1 * columns, 3.2 * len(drawn) + 0.3),
        squeeze=False,
        layout="constrained",
        sharex=True,
        sharey=True,
    )
    edges = np.linspace(-EXTENT, EXTENT, PIXELS + 1)
    centres = jnp.asarray(0.5 * (edges[1:] + edges[:-1]))
    places = jnp.stack(jnp.meshgrid(centres, centres), -1)
    density = np.exp(np.asarray(jax.jit(jax.vmap(jax.vmap(target.log_prob)))(places)))
    for row, (pairing, parts) in zip(axes, drawn.items(), strict=True):
        for axis in row:
            axis.pcolormesh(
                edges,
                edges,
                density,
                cmap=PALE_GREYS,
                vmin=0,
                vmax=density.max(),
                rasterized=True,
            )
            axis.set(aspect="equal", xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT))
        for states in parts["paths"]:
            row[0].plot(*states.T, color=COLOURS[pairing], lw=0.8, alpha=0.8)
        row[0].plot(*parts["paths"][:, 0].T, ".", color="black", ms=3)
        row[0].plot(*parts["paths"][:, -1].T, ".", color=COLOURS[pairing], ms=5)
        for axis, count in zip(row[1:], SHOWN_STEPS, strict=True):
            axis.plot(
                *parts["samples"][count].T,
                ".",
                color=COLOURS[pairing],
                ms=1.5,
                alpha=0.6,
            )
        row[0].set_ylabel(f"{TITLES[pairing]}\n$x_2$ (data units)")
    axes[0, 0].set_title("paths, noise (black) to data", fontsize=10)
    for axis, count in zip(axes[0, 1:], SHOWN_STEPS, strict=True):
        axis.set_title(
            f"samples, {count} Euler step{'s' if count > 1 else ''}", fontsize=10
        )
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$ (data units)")
    figure.suptitle(f"Flow matching on {name.replace('_', ' ')}, its density in grey")
    return figure


def draw_images(name: str, exact: np.ndarray, drawn: dict[str, dict[str, Any]]) -> Any:
    """Draw the images that Euler steps make of the same noise, one row per
    pairing, then exact ones.
    """
    columns = len(SHOWN_IMAGE_STEPS) + 1
    figure, axes = plt.subplots(
        len(drawn),
        columns,
        figsize=(2.3 * columns, 2.4 * len(drawn) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for row, (pairing, parts) in zip(axes, drawn.items(), strict=True):
        shown = [parts["samples"][count] for count in SHOWN_IMAGE_STEPS]
        for axis, images in zip(row, [*shown, exact], strict=True):
            image_grid(axis, images[:IMAGES], columns=4, limits=(-1.0, 1.0))
        row[0].text(
            -0.06,
            0.5,
            TITLES[pairing],
            rotation=90,
            va="center",
            ha="right",
            transform=row[0].transAxes,
        )
    for axis, count in zip(axes[0], SHOWN_IMAGE_STEPS, strict=False):
        axis.set_title(f"{count} Euler step{'s' if count > 1 else ''}", fontsize=10)
    axes[0, -1].set_title("test images", fontsize=10)
    figure.suptitle(f"Flow matching on {name}: the same noise by more and more steps")
    return figure


def draw_errors(results: dict[str, Any]) -> Any:
    """Draw the error of single samples, and the distance of all to exact ones,
    against evaluations.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.3), layout="constrained")
    for axis, quantity in zip(axes, ("path_error", "sliced_wasserstein"), strict=True):
        for name, row in results["couplings"].items():
            for solver, style in (("euler", "o-"), ("midpoint", "s--")):
                counts, values = (
                    [int(count) for count in row[quantity][solver]],
                    list(row[quantity][solver].values()),
                )
                axis.plot(
                    counts,
                    values,
                    style,
                    color=COLOURS[name],
                    ms=4,
                    lw=1.3,
                    label=f"{TITLES[name]}, {solver}",
                )
        axis.set(
            xscale="log", yscale="log", xlabel="evaluations of the network a sample"
        )
        axis.set_xticks(
            [1, 2, 4, 8, 16, 32, 64], labels=["1", "2", "4", "8", "16", "32", "64"]
        )
        axis.xaxis.set_minor_locator(plt.NullLocator())
        axis.grid(alpha=0.3)
    exact = results["exact_sets"]
    label = f"{exact['count']} other sets of exact examples"
    axes[1].axhspan(
        exact["least"], exact["largest"], color="0.85", zorder=0, label=label
    )
    axes[0].set(
        title="Straighter flows need fewer evaluations",
        ylabel="root mean square error of a sample (data units)",
    )
    axes[1].set_title("as seen from the samples alone")
    axes[1].set_ylabel(
        "squared sliced Wasserstein distance\nto exact examples (squared data units)"
    )
    axes[1].legend(frameon=False, fontsize=8)
    return figure


def draw_log_prob(errors: dict[str, list[dict[str, float]]]) -> Any:
    """Draw the error of log p against evaluations, one line per solver."""
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    styles = {"euler": "o-", "heun": "s-", "rk4": "^-", "adaptive": "D--"}
    for name, rows in errors.items():
        axis.plot(
            [row["evaluations"] for row in rows],
            [row["error"] for row in rows],
            styles[name],
            ms=4,
            label=name,
        )
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="evaluations of velocity and trace an example",
    )
    axis.set_ylabel("mean |error| of log p (nats)")
    axis.set_title("log p by the flow of the exact velocity, float32")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure
