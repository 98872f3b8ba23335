"""The figures of `ncsn`: samples, annealing, and errors of the score."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.ncsn.config import Config
from experiments.ncsn.samplers import WEIGHTS, exact_share, langevin_steps, share
from experiments.shared.figures import PALE_GREYS, density_image, histogram

EXTENT, CELLS = 9.0, 72


def density(distribution: Any, edges: np.ndarray) -> np.ndarray:
    """A density at the centres of square cells, (x_1, x_2)."""
    centres = jnp.asarray(0.5 * (edges[1:] + edges[:-1]))
    points = jnp.stack(jnp.meshgrid(centres, centres, indexing="ij"), -1)
    return np.asarray(
        jnp.exp(jax.jit(jax.vmap(jax.vmap(distribution.log_prob)))(points))
    )


def draw_samples(
    config: Config, target: Any, samples: dict[str, np.ndarray], shares: dict[str, Any]
) -> Any:
    """Draw the exact density and the histogram of each kind of samples, on one
    colour scale.
    """
    edges = np.linspace(-EXTENT, EXTENT, CELLS + 1)
    exact = density(target, edges)
    titles = {
        "exact": "exact samples",
        "plain": f"plain Langevin, σ = {config.sigma_min:g}",
        "annealed": "annealed Langevin",
        "plain, learned": "plain Langevin, learned score",
        "annealed, learned": "annealed Langevin, learned score",
    }
    panels = {"exact density": (exact, "heavy mode: 0.8")}
    for kind, x in samples.items():
        outside = np.mean(np.abs(x).max(-1) > EXTENT)
        share, error = (shares[kind][key] for key in ("share", "standard_error"))
        label = f"heavy mode: {share:.3f} ± {error:.3f}"
        label += f"; outside the frame: {outside:.2f}" if outside >= 0.005 else ""
        panels[titles[kind]] = histogram(x, edges), label
    figure, axes = plt.subplots(
        2, 3, figsize=(11.5, 8.1), sharex=True, sharey=True, layout="constrained"
    )
    order = [
        "exact density",
        *(
            titles[k]
            for k in (
                "plain",
                "annealed",
                "exact",
                "plain, learned",
                "annealed, learned",
            )
        ),
    ]
    for axis, title in zip(axes.flat, order, strict=True):
        values, label = panels[title]
        image = density_image(axis, edges, values, exact.max())
        axis.set_title(f"{title}\n{label}", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$ (data units)")
    for axis in axes[:, 0]:
        axis.set_ylabel("$x_2$ (data units)")
    figure.colorbar(image, ax=axes, shrink=0.7, label="density (1 / data unit²)")
    budget = langevin_steps(config)
    figure.suptitle(
        f"Two far modes of weights 0.8 and 0.2: {config.samples} samples after "
        f"{budget} Langevin steps each"
    )
    return figure


def draw_annealing(
    config: Config, target: Any, ladder: Any, states: dict[int, np.ndarray], sweep: Any
) -> Any:
    """Draw states over the exact density at a few levels, and the share against
    the number of levels.
    """
    figure = plt.figure(figsize=(13.5, 6.9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    draw_states(top, target, ladder, states)
    draw_shares(bottom.subplots(), config.level_counts, sweep)
    return figure


def draw_states(
    figure: Any, target: Any, ladder: Any, states: dict[int, np.ndarray]
) -> None:
    """Draw states over the exact density at a few levels."""
    axes = np.atleast_1d(figure.subplots(1, len(states)))
    for axis, (index, x) in zip(axes, states.items(), strict=True):
        sigma = float(ladder.sigmas[index - 1])
        side = 6 + 2.6 * math.hypot(sigma, 1)
        edges = np.linspace(-side, side, CELLS + 1)
        axis.pcolormesh(
            edges,
            edges,
            density(target.noised(ladder, index / ladder.steps), edges).T,
            cmap=PALE_GREYS,
            rasterized=True,
        )
        axis.scatter(*x[:300].T, s=3, color="#a03020", linewidths=0)
        axis.set(
            xlim=(-side, side),
            ylim=(-side, side),
            aspect="equal",
            xlabel="$x_1$ (data units)",
        )
        start = ", the starts" if index == ladder.steps else ""
        label = (
            f"σ = {sigma:.3g}{start}\n"
            f"{share(x)['share']:.3f}, exact {exact_share(sigma):.3f}"
        )
        axis.set_title(label, fontsize=10)
    axes[0].set_ylabel("$x_2$ (data units)")
    figure.suptitle(
        "300 states of annealed Langevin over the exact density at six levels; all "
        "states' share on the heavy side"
    )


def draw_shares(axis: Any, level_counts: tuple[int, ...], sweep: Any) -> None:
    """Draw the heavy mode's share against the number of levels."""
    for (budget, shares), colour in zip(
        sweep.items(),
        plt.get_cmap("viridis")(np.linspace(0.75, 0.1, len(sweep))),
        strict=True,
    ):
        values, errors = ([s[k] for s in shares] for k in ("share", "standard_error"))
        axis.errorbar(
            level_counts,
            values,
            [2 * e for e in errors],
            color=colour,
            marker="o",
            ms=4,
            capsize=3,
            label=f"about {budget} Langevin steps in all",
        )
    axis.axhline(WEIGHTS[0], color="black", lw=1, label="exact, 0.8")
    axis.axhline(
        0.5, color="black", lw=1, ls=":", label="share of the starts on its side, 0.5"
    )
    axis.set_xscale("log")
    axis.set_xticks(level_counts, [str(n) for n in level_counts])
    axis.minorticks_off()
    axis.set(
        xlabel="number of noise levels (geometric, same ends)",
        ylabel="heavy mode's share of samples",
    )
    axis.set_title(
        "As many steps on more levels: the modes' shares come right (bars: two "
        "standard errors)",
        fontsize=11,
    )
    axis.legend(loc="center right", bbox_to_anchor=(0.99, 0.3), framealpha=0.9)


def draw_errors(rows: list[dict[str, float]]) -> Any:
    """Draw the network's score error by noise level."""
    figure, axis = plt.subplots(figsize=(6.8, 4.3), layout="constrained")
    sigma = [row["sigma"] for row in rows]
    for name, label, style in (
        (
            "exact_score",
            "the exact score itself, on states of level σ",
            {"color": "black", "ls": ":"},
        ),
        (
            "error_far",
            "error on states of the greatest level, whence samplers start",
            {"color": "#c05020", "marker": "s", "ms": 4},
        ),
        (
            "error",
            "error on states of level σ, as trained",
            {"color": "#1f4e79", "marker": "o", "ms": 4},
        ),
    ):
        axis.plot(sigma, [row[name] for row in rows], label=label, **style)
    axis.set(xscale="log", yscale="log", xlabel="noise level σ (data units)")
    axis.set_ylabel("σ² E‖·‖² / D, mean square (no unit)")
    axis.set_title("Score error of the trained network", fontsize=11)
    axis.legend(
        frameon=False,
        fontsize=9,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=1,
    )
    return figure
