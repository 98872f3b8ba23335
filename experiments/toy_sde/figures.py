"""The figures of `toy_sde`: paths, densities and scores."""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from diffjax import schedules, targets
from experiments.shared.figures import PALE_GREYS, density_image, grid_points, histogram
from experiments.shared.schedules import choice, make
from experiments.toy_sde.config import Config
from experiments.toy_sde.simulation import SETTINGS, Simulation

PIXELS = 160
PIXELS_PER_BIN = 5


def draw_paths(config: Config, target: Any, simulations: dict[str, Simulation]) -> Any:
    """Draw x_1 along a few paths over its exact density, one row per schedule.

    Columns are forward SDE, reverse SDE and probability flow.
    """
    rows = len(simulations)
    figure, axes = plt.subplots(
        rows,
        3,
        figsize=(13.5, 3.1 * rows + 0.6),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    marginal = first_coordinate(target)
    for row, (name, simulation) in zip(axes, simulations.items(), strict=True):
        schedule = make(name, SETTINGS)
        heat, edges_t, edges_x, linear_width = marginal_heat(marginal, schedule)
        for axis, (kind, paths) in zip(row, simulation.paths.items(), strict=True):
            image = axis.pcolormesh(
                edges_t, edges_x, heat, cmap=PALE_GREYS, vmin=0, vmax=1, rasterized=True
            )
            draw_lines(axis, simulation.ts, paths)
            axis.set_yscale("asinh", linear_width=linear_width)
            axis.set(xlim=(0, edges_t[-1]), ylim=(edges_x[0], edges_x[-1]))
            course = (
                "from data, rightwards"
                if kind == "forward SDE"
                else "from noise, leftwards"
            )
            axis.set_title(f"{choice(name).title}: {kind} ({course})", fontsize=11)
            axis.set_xlabel("time t (noise grows with t)")
        ticks = (
            [v for v in (1, 3, 10, 30, 100) if v < edges_x[-1]]
            if edges_x[-1] > 12
            else [2, 4]
        )
        row[0].set_yticks([-v for v in reversed(ticks)] + [0] + ticks)
        row[0].yaxis.set_major_formatter("{x:g}")
        row[0].yaxis.set_minor_locator(plt.NullLocator())
        row[0].set_ylabel("$x_1$ (data units)")
        figure.colorbar(
            image,
            ax=row,
            pad=0.01,
            label="exact $p_t(x_1)$ / its maximum",
            ticks=[0, 0.5, 1],
        )
    figure.suptitle(
        "Paths over the exact density of one coordinate: "
        f"{config.target.replace('_', ' ')}",
        fontsize=13,
    )
    return figure


def draw_lines(axis: Any, ts: np.ndarray, paths: np.ndarray) -> None:
    """Draw paths (P, N + 1), coloured by their position at t_min."""
    ends = paths[:, 0]
    shades = plt.get_cmap("turbo")(
        0.08 + 0.84 * (ends - ends.min()) / (np.ptp(ends) + 1e-9)
    )
    stride = max(1, len(ts) // 250)
    for path, shade in zip(paths, shades, strict=True):
        axis.plot(ts[::stride], path[::stride], color=shade, linewidth=0.8, alpha=0.85)


def first_coordinate(target: Any) -> Any:
    """The distribution of x_1 as a one-dimensional target.

    Components that are products lose their second factor.
    """
    if isinstance(target, targets.UniformBoxes):
        return targets.uniform_boxes(
            target.weights, target.lower[:, :1], target.upper[:, :1]
        )
    return targets.gaussian_mixture(
        target.weights, target.means[:, :1], jnp.sqrt(target.variances[:, :1])
    )


def marginal_heat(
    marginal: Any, schedule: schedules.Schedule
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """p_t(x_1) over its maximum at t, on cells.

    The x axis is linear where data lie. Beyond, on schedules whose variance
    explodes, it grows as asinh.

    Returns:
      (values (x, t), edges in t, edges in x, the x where the axis turns to
        log).
    """
    mean, covariance = (
        float(jnp.squeeze(m)) for m in (marginal.mean(), marginal.covariance())
    )
    start, end = (
        float(jnp.sqrt(schedule.alpha(t) ** 2 * covariance + schedule.sigma(t) ** 2))
        for t in (schedule.t_min, schedule.t_max)
    )
    reach = abs(mean) + 2.6 * max(start, end)
    linear_width = 1.2 * start if end > 2 * start else 50 * reach
    limit = np.arcsinh(reach / linear_width)
    edges_x = linear_width * np.sinh(np.linspace(-limit, limit, 2 * PIXELS + 1))
    edges_t = np.linspace(float(schedule.t_min), float(schedule.t_max), 2 * PIXELS + 1)
    centres_x, centres_t = (
        jnp.asarray(0.5 * (e[1:] + e[:-1])) for e in (edges_x, edges_t)
    )

    def column(t):
        return jax.vmap(lambda x: marginal.noised(schedule, t).log_prob(x[None]))(
            centres_x
        )

    log_p = np.asarray(jax.jit(jax.vmap(column))(centres_t)).T  # (x, t)
    return np.exp(log_p - log_p.max(0)), edges_t, edges_x, linear_width


def draw_densities(
    config: Config, target: Any, name: str, simulation: Simulation
) -> Any:
    """Draw exact p_t and histograms, one row per process and one column per time."""
    schedule = make(name, SETTINGS)
    rows = {"exact $p_t$": None, **simulation.snapshots}
    columns, size = len(simulation.times), (2.55 * len(simulation.times) + 0.7, 10.6)
    figure, axes = plt.subplots(
        4,
        columns,
        figsize=size,
        squeeze=False,
        sharex="col",
        sharey="col",
        layout="constrained",
    )
    for i, (column, t) in enumerate(zip(axes.T, simulation.times, strict=True)):
        edges, density = exact_density(target, schedule, t)
        bins = edges[::PIXELS_PER_BIN]
        for axis, states in zip(column, rows.values(), strict=True):
            values, at = (
                (density, edges)
                if states is None
                else (histogram(states[i], bins), bins)
            )
            image = density_image(axis, at, values, density.max())
            axis.tick_params(labelsize=8)
        column[0].set_title(time_label(schedule, t), fontsize=10)
        column[-1].set_xlabel("$x_1$ (data units)")
        bar = figure.colorbar(
            image, ax=column, location="bottom", shrink=0.85, pad=0.01
        )
        bar.set_label("density (1 / data unit²)", fontsize=8)
        bar.locator = MaxNLocator(2)
        bar.ax.tick_params(labelsize=8)
    for row, label in zip(axes, rows, strict=True):
        row[0].set_ylabel(f"{label}\n$x_2$ (data units)")
    figure.suptitle(
        f"{choice(name).title}: exact density and {config.samples} simulated paths, "
        f"{config.target.replace('_', ' ')}"
    )
    return figure


def draw_scores(target: Any, simulations: dict[str, Simulation]) -> Any:
    """Draw the field σ ∇log p_t over the exact p_t, one row per schedule and one
    column per time.
    """
    rows, columns = len(simulations), max(len(s.times) for s in simulations.values())
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.7 * columns + 0.4, 2.95 * rows + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for row, (name, simulation) in zip(axes, simulations.items(), strict=True):
        schedule = make(name, SETTINGS)
        for axis, t in zip(row, simulation.times, strict=False):
            edges, density = exact_density(target, schedule, t)
            axis.pcolormesh(
                edges,
                edges,
                density.T,
                cmap="Blues",
                vmin=0,
                vmax=1.3 * density.max(),
                rasterized=True,
            )
            points, arrows = score_arrows(target, schedule, t, edges)
            axis.quiver(
                *points.T,
                *arrows.T,
                angles="xy",
                scale_units="xy",
                scale=1,
                width=0.0055,
                color="#7a1f1f",
            )
            axis.set_aspect("equal")
            axis.set(xlim=(edges[0], edges[-1]), ylim=(edges[0], edges[-1]))
            axis.tick_params(labelsize=8)
            axis.set_title(
                f"{choice(name).title}, {time_label(schedule, t)}", fontsize=9
            )
        for axis in row[len(simulation.times) :]:
            axis.set_axis_off()
        row[0].set_ylabel("$x_2$ (data units)")
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$ (data units)")
    figure.suptitle(
        r"Score $\nabla \log p_t$ (arrows, longer where it is larger) "
        r"over the exact density $p_t$"
    )
    return figure


def time_label(schedule: schedules.Schedule, t: Any) -> str:
    """t and the noise-to-signal ratio there."""
    return (
        f"t = {float(t):.2g}, σ/α = {float(schedule.sigma(t) / schedule.alpha(t)):.2g}"
    )


def window(target: Any, schedule: schedules.Schedule, t: Any) -> float:
    """Half the side of a square that holds nearly all of p_t."""
    mean, covariance = target.mean(), target.covariance()
    spread = schedule.alpha(t) ** 2 * jnp.trace(covariance) / 2 + schedule.sigma(t) ** 2
    return float(schedule.alpha(t) * jnp.max(jnp.abs(mean)) + 2.5 * jnp.sqrt(spread))


def exact_density(
    target: Any, schedule: schedules.Schedule, t: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Edges (PIXELS + 1,) of square cells and the exact p_t at their centres,
    (x_1, x_2).
    """
    side = window(target, schedule, t)
    edges = np.linspace(-side, side, PIXELS + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    points = grid_points(centres)  # (PIXELS², 2)
    return edges, np.asarray(_densities(target, schedule, t, points)).reshape(
        PIXELS, PIXELS
    )


@jax.jit
def _densities(target, schedule, t, points):
    return jnp.exp(jax.vmap(target.noised(schedule, t).log_prob)(points))


def score_arrows(
    target: Any,
    schedule: schedules.Schedule,
    t: Any,
    edges: np.ndarray,
    count: int = 15,
) -> Any:
    """Positions (n, 2) and arrows (n, 2) along ∇log p_t.

    The length of an arrow is tanh(size / median size) times the spacing.
    """
    side = edges[-1] * (1 - 1 / count)
    line = np.linspace(-side, side, count)
    points = grid_points(line)
    scores = np.asarray(_scores(target, schedule, t, points))
    size = np.maximum(np.linalg.norm(scores, axis=-1, keepdims=True), 1e-12)
    return points, scores / size * np.tanh(size / np.median(size)) * (line[1] - line[0])


@jax.jit
def _scores(target, schedule, t, points):
    distribution = target.noised(schedule, t)
    return jax.vmap(lambda x: targets.score(distribution, x))(points)
