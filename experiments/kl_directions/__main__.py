"""Which Gaussian is nearest to a density of two modes, by KL(p‖q) and by KL(q‖p)?

    python -m experiments.kl_directions [--weight 0.35] [--separation 4] [--out DIR]

The forward divergence KL(p‖q) has one minimum, p's mean and covariance: q
covers both modes, and the empty middle. The reverse one, KL(q‖p), has a
minimum in each mode, and the start decides which is reached: q leaves the
other mode out. The divergences are integrals on a line and on a plane, and
samples only check them. Figures in OUT:

- pictures.png: the three optima over p, on a line (top) and on a plane
  (bottom).
- landscape.png: both divergences over all Gaussians on the line, with every
  minimum of a grid and every fit.

metrics.json has for each optimum its moments, both KL, Jensen–Shannon and both
Fisher divergences, KL by samples, and the best points of the grid. A reverse
optimum in a mode of weight w has KL(q‖p) just below −log w. Dropping the other
mode costs that much however far away it is, and covering both costs the more
the further they are apart.

Units: `kl`, `kl_p_q`, `kl_q_p`, `jensen_shannon`, `kl_p_q_by_samples`,
`kl_q_p_by_samples` and `gradient_norm` are in nats, `mean` and `std` in data
units, `covariance` in squared data units, `fisher_p_q` and `fisher_q_p` in
1/(data units)². `steps` is a count.

Hardware and time: 44 s of processor time, most of it compilation, and 16 s when
run again.

Expect on the line with the defaults: forward N(0.600, 2.045²) with KL(p‖q)
0.398. Reverse N(−1.980, 0.626²) with KL(q‖p) 1.040, and N(1.982, 0.826²) with
0.425 (−log w: 1.050 and 0.431), whose KL(p‖q) are 12.5 and 3.45. The grid has
just these minima, one and two.

On the plane KL(p‖q) is 0.606, KL(q‖p) 1.048 and 0.429. With --separation 2 the
modes merge, and there is one reverse minimum on the line, N(0.329, 1.153²).
"""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from diffjax import checks, divergences, targets
from experiments.shared import cli, files
from experiments.shared.figures import save_figure

RED, BLUE = "#c0392b", "#1f4e9c"
OPTIMA = ("forward", "reverse, left", "reverse, right")
TITLES = {
    "forward": "min KL(p‖q): covers the mass",
    "reverse, left": "min KL(q‖p), started left",
    "reverse, right": "min KL(q‖p), started right",
}
POINTS = {1: 2048, 2: 320}
"""Cells along each axis, on the line and on the plane."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The Gaussians nearest to a mixture of two, in both directions of the KL
    divergence.
    """

    out: pathlib.Path = pathlib.Path("runs/kl_directions")
    """Folder for figures, config.json and metrics.json."""
    seed: int = 0
    """Seed of the samples that check the integrals."""
    weight: float = 0.35
    """Weight of the left mode."""
    separation: float = 4.0
    """Distance between the modes' means."""
    scales: tuple[float, float] = (0.6, 0.8)
    """Standard deviation of the left and the right mode. On the plane the larger
    of each mode's two.
    """
    grid: int = 121
    """Number of means and of standard deviations of the landscape."""
    samples: int = 20_000
    """Samples that check KL."""
    plane: bool = True
    """Whether to fit on the plane too."""


def run(config: Config) -> dict[str, Any]:
    """Fit, measure, search the grid and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    check(config)
    out = files.start(config)
    dimensions = (1, 2) if config.plane else (1,)
    fits, metrics = {}, {}
    with cli.progress(3 * len(dimensions) + 1, label="optima", unit="optimum") as bar:
        for dimension in dimensions:
            fits[dimension] = {}
            for name in OPTIMA:
                bar.set_postfix_str(f"{name}, {dimension}-D")
                fits[dimension][name] = fit(config, name, dimension)
                bar.update()
            rows = {
                name: measure(config, optimum, dimension)
                for name, optimum in fits[dimension].items()
            }
            metrics["line" if dimension == 1 else "plane"] = rows
        bar.set_postfix_str("landscape")
        surface = landscape(config)
        bar.update()
    metrics["grid"] = {
        direction: minima(surface, direction) for direction in ("forward", "reverse")
    }
    files.write_results(out, metrics)
    save_figure(draw_pictures(config, fits, metrics), out / "pictures.png")
    save_figure(
        draw_landscape(config, surface, fits[1], metrics), out / "landscape.png"
    )
    print_table(metrics)
    return metrics


def check(config: Config) -> None:
    """Raise ValueError for flags that are out of range."""
    if not 0 < config.weight < 1:
        raise ValueError(f"weight must lie between 0 and 1, got {config.weight}")
    if not 0.1 <= config.separation <= 12:
        raise ValueError(
            f"separation must lie between 0.1 and 12, got {config.separation}"
        )
    if not all(0.2 <= scale <= 3 for scale in config.scales):
        raise ValueError(f"scales must lie between 0.2 and 3, got {config.scales}")
    checks.integer("grid", config.grid, 21)
    checks.integer("samples", config.samples, 2)


# ------------------------------------------------------------ density and fits


def density(config: Config, dimension: int) -> targets.Mixture:
    """p: two modes on the line, or two oblong ones on the plane's diagonal."""
    weights, half = [config.weight, 1 - config.weight], 0.5 * config.separation
    if dimension == 1:
        return targets.gaussian_mixture(weights, [[-half], [half]], list(config.scales))
    centre = half * math.sqrt(0.5)
    covariances = [
        oblong(config.scales[0], math.radians(100)),
        oblong(config.scales[1], math.radians(20)),
    ]
    return targets.gaussian_mixture(
        weights, [[-centre, -centre], [centre, centre]], covariances
    )


def oblong(scale: float, angle: float) -> list[list[float]]:
    """The covariance with standard deviations `scale` along an angle and 0.6
    `scale` across, (2, 2).
    """
    along, across = (
        np.array([math.cos(angle), math.sin(angle)]),
        np.array([-math.sin(angle), math.cos(angle)]),
    )
    return (
        scale**2 * (np.outer(along, along) + 0.36 * np.outer(across, across))
    ).tolist()


def box(config: Config, dimension: int) -> list[tuple[float, float]]:
    """Bounds that hold six standard deviations of the widest fit."""
    half = 6 * (0.5 * config.separation + max(config.scales))
    return [(-half, half)] * dimension


def start(config: Config, name: str, dimension: int) -> targets.Mixture:
    """A unit Gaussian beyond the left or the right mode, or in the middle for the
    forward fit.
    """
    side = {"forward": 0.0, "reverse, left": -1.0, "reverse, right": 1.0}[name]
    mean = np.full(dimension, side * config.separation / math.sqrt(dimension))
    return targets.gaussian(mean, np.ones(1) if dimension == 1 else np.eye(2))


def fit(config: Config, name: str, dimension: int) -> divergences.FittedMixture:
    """Fit one of the three optima."""
    p, first = density(config, dimension), start(config, name, dimension)
    if name == "forward":
        return divergences.fit_forward(
            p, first, box(config, dimension), POINTS[dimension]
        )
    return divergences.fit_reverse(p, first)


def measure(
    config: Config, optimum: divergences.FittedMixture, dimension: int
) -> dict[str, Any]:
    """Moments of an optimum and every divergence there."""
    p, q = density(config, dimension), optimum.mixture
    domain = box(config, dimension), POINTS[dimension]
    key_p, key_q = jax.random.split(jax.random.key(config.seed))
    forward = divergences.kl_by_samples(key_p, p, q, config.samples)
    reverse = divergences.kl_by_samples(key_q, q, p, config.samples)
    values = {
        "kl_p_q": divergences.kl_by_quadrature(p, q, *domain),
        "kl_q_p": divergences.kl_by_quadrature(q, p, *domain),
        "jensen_shannon": divergences.jensen_shannon_by_quadrature(p, q, *domain),
        "fisher_p_q": divergences.fisher_by_quadrature(p, q, *domain),
        "fisher_q_p": divergences.fisher_by_quadrature(q, p, *domain),
        "kl_p_q_by_samples": forward.value,
        "kl_p_q_by_samples_standard_error": forward.standard_error,
        "kl_q_p_by_samples": reverse.value,
        "kl_q_p_by_samples_standard_error": reverse.standard_error,
        "gradient_norm": optimum.gradient_norm,
    }
    moments = {
        "mean": np.asarray(q.mean()).tolist(),
        "covariance": np.asarray(q.covariance()).tolist(),
    }
    return (
        moments
        | {name: float(value) for name, value in values.items()}
        | {"steps": int(optimum.steps)}
    )


# ------------------------------------------------------------------- landscape


@dataclasses.dataclass(frozen=True)
class Surface:
    """KL in nats over a grid of means (M,) and geometric stds (S,): forward and
    reverse, (S, M).
    """

    means: np.ndarray
    stds: np.ndarray
    forward: np.ndarray
    reverse: np.ndarray


def landscape(config: Config) -> Surface:
    """Both divergences of every N(m, s²) of a grid from p on the line.

    They are sums that the fits do not use.
    """
    p = density(config, 1)
    reach = max(
        0.5 * config.separation + 2.5 * max(config.scales), 1.15 * config.separation
    )
    means = np.linspace(-reach, reach, config.grid)
    widest = 0.5 * config.separation + max(config.scales)
    stds = np.geomspace(0.4 * min(config.scales), 2 * widest, config.grid)
    log_p = jax.jit(
        lambda xs: jax.lax.map(p.log_prob, xs.reshape(-1, 1), batch_size=2**14).reshape(
            xs.shape
        )
    )
    (low, high), cells = box(config, 1)[0], 1024
    x = low + (high - low) * (np.arange(cells) + 0.5) / cells
    log_density = np.asarray(log_p(jnp.asarray(x)), np.float64)
    mass = np.exp(log_density) * (high - low) / cells
    z = np.linspace(-7, 7, 141)
    share = np.exp(-0.5 * z**2) / np.exp(-0.5 * z**2).sum()
    forward, reverse = np.empty((2, len(stds), len(means)))
    for i, std in enumerate(stds):
        white = (x - means[:, None]) / std  # (M, N)
        log_q = -0.5 * white**2 - math.log(std * math.sqrt(2 * math.pi))
        forward[i] = (log_density - log_q) @ mass
        places = jnp.asarray(means[:, None] + std * z)  # (M, Z)
        entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
        reverse[i] = -entropy - np.asarray(log_p(places), np.float64) @ share
    return Surface(means, stds, forward, reverse)


def minima(surface: Surface, direction: str) -> list[dict[str, float]]:
    """The grid's inner points that are lower than their eight neighbours, from
    left to right.
    """
    values = getattr(surface, direction)
    inner = values[1:-1, 1:-1]
    shifts = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    rows, columns = values.shape
    lowest = np.all(
        [inner < values[i : rows - 2 + i, j : columns - 2 + j] for i, j in shifts],
        axis=0,
    )
    lowest_points = sorted(np.argwhere(lowest).tolist(), key=lambda place: place[1])
    return [
        {
            "mean": surface.means[j + 1],
            "std": surface.stds[i + 1],
            "kl": values[i + 1, j + 1],
        }
        for i, j in lowest_points
    ]


# --------------------------------------------------------------------- drawing


def draw_pictures(config: Config, fits: dict, metrics: dict[str, Any]) -> Any:
    """Draw one row for the line and one for the plane, one column per optimum."""
    figure, axes = plt.subplots(
        len(fits), 3, figsize=(13, 4.0 * len(fits)), squeeze=False, layout="constrained"
    )
    for row, dimension in zip(axes, fits, strict=True):
        for axis, name in zip(row, OPTIMA, strict=True):
            p, q = density(config, dimension), fits[dimension][name].mixture
            numbers = metrics["line" if dimension == 1 else "plane"][name]
            (draw_on_line if dimension == 1 else draw_on_plane)(config, axis, p, q)
            direction = "KL(p‖q) = {kl_p_q:.3f}, KL(q‖p) = {kl_q_p:.3f} nats".format(
                **numbers
            )
            axis.set_title(f"{TITLES[name]}\n{direction}", fontsize=10)
    figure.suptitle("The Gaussian q (blue) nearest to p (red)")
    return figure


def draw_on_line(config: Config, axis: Any, p: Any, q: Any) -> None:
    """Draw both densities."""
    reach = 0.5 * config.separation + 4 * max(config.scales)
    x = np.linspace(-reach, reach, 600)
    for distribution, colour, label in ((p, RED, "p"), (q, BLUE, "q")):
        values = np.exp(
            np.asarray(jax.vmap(distribution.log_prob)(jnp.asarray(x)[:, None]))
        )
        axis.fill_between(x, values, color=colour, alpha=0.15)
        axis.plot(x, values, color=colour, label=label)
    axis.set(xlabel="x", ylabel="density", xlim=(-reach, reach), ylim=(0, None))
    axis.legend(loc="upper left")


def draw_on_plane(config: Config, axis: Any, p: Any, q: Any) -> None:
    """Draw lines of equal density, at shares of each density's maximum."""
    reach = 0.5 * config.separation * math.sqrt(0.5) + 4 * max(config.scales)
    edge = np.linspace(-reach, reach, 181)
    places = jnp.asarray(np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2))
    for distribution, colour, style in ((p, RED, "solid"), (q, BLUE, "dashed")):
        values = np.exp(np.asarray(jax.vmap(distribution.log_prob)(places))).reshape(
            len(edge), len(edge)
        )
        levels = values.max() * np.array([0.03, 0.1, 0.3, 0.6, 0.9])
        if distribution is p:
            axis.contourf(
                edge,
                edge,
                values,
                [*levels, 1.01 * values.max()],
                cmap="Reds",
                alpha=0.6,
            )
        axis.contour(
            edge, edge, values, levels, colors=colour, linestyles=style, linewidths=1.3
        )
    axis.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")


def draw_landscape(
    config: Config, surface: Surface, fits: dict, metrics: dict[str, Any]
) -> Any:
    """Draw KL over mean and standard deviation, one axis per direction.

    The grid's minima, the starts and the fits are marked.
    """
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for axis, direction, title in zip(
        axes, ("forward", "reverse"), ("KL(p‖q)", "KL(q‖p)"), strict=True
    ):
        values = getattr(surface, direction)
        levels = values.min() + np.geomspace(0.02, 60, 24)
        filled = axis.contourf(
            surface.means,
            surface.stds,
            np.clip(values, None, levels[-1]),
            [values.min(), *levels],
            cmap="viridis_r",
            norm=plt.matplotlib.colors.PowerNorm(0.35),
        )
        axis.contour(
            surface.means, surface.stds, values, levels, colors="white", linewidths=0.4
        )
        for name in (name for name in OPTIMA if name.startswith(direction)):
            first, distribution = start(config, name, 1), fits[name].mixture
            (m0, s0), (m, s) = (
                (float(g.means[0, 0]), math.sqrt(float(g.covariance()[0, 0])))
                for g in (first, distribution)
            )
            axis.annotate(
                "",
                (m, s),
                (m0, s0),
                arrowprops={"arrowstyle": "->", "color": "black", "alpha": 0.6},
            )
            axis.plot(m0, s0, "o", color="black", markersize=4, label="start")
            axis.plot(
                m,
                s,
                "*",
                color="#ff5a36",
                markersize=15,
                markeredgecolor="white",
                label="fit",
            )
            value = metrics["line"][name][
                "kl_p_q" if direction == "forward" else "kl_q_p"
            ]
            axis.annotate(
                f"{value:.3f}",
                (m, s),
                (6, -16),
                textcoords="offset points",
                color="black",
                fontsize=9,
            )
        minima_of_grid = metrics["grid"][direction]
        axis.plot(
            [f["mean"] for f in minima_of_grid],
            [f["std"] for f in minima_of_grid],
            "x",
            color="black",
            label="minimum of the grid",
        )
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        axis.legend(handles.values(), handles.keys(), loc="upper right", fontsize=8)
        axis.set(
            yscale="log",
            xlabel="mean of q",
            ylabel="standard deviation of q",
            title=f"{title} (nats)",
        )
        axis.set(xlim=surface.means[[0, -1]], ylim=surface.stds[[0, -1]])
        ticks = [
            tick
            for tick in (0.25, 0.5, 1, 2, 4, 8)
            if surface.stds[0] <= tick <= surface.stds[-1]
        ]
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        figure.colorbar(filled, ax=axis, label="nats")
    return figure


def print_table(metrics: dict[str, Any]) -> None:
    """Print one line per optimum."""
    for where in ("line", "plane"):
        for name, row in metrics.get(where, {}).items():
            mean = ", ".join(f"{value:.3f}" for value in row["mean"])
            stds = ", ".join(
                f"{math.sqrt(value):.3f}" for value in np.diag(row["covariance"])
            )
            print(
                f"{where:5} {name:14} mean {mean:>14}  std {stds:>12}  KL(p‖q) "
                f"{row['kl_p_q']:7.4f}  "
                f"KL(q‖p) {row['kl_q_p']:7.4f}  JS {row['jensen_shannon']:.4f}  "
                f"Fisher(p‖q) {row['fisher_p_q']:8.3f}  Fisher(q‖p) "
                f"{row['fisher_q_p']:8.3f}"
            )
    for direction, points in metrics["grid"].items():
        places = "; ".join(
            f"N({row['mean']:.2f}, {row['std']:.2f}²) {row['kl']:.4f}" for row in points
        )
        print(f"minima of the grid, {direction}: {places}")


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
