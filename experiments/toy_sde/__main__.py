"""Do forward SDE, reverse SDE and probability flow carry the exact densities on
every schedule?

    python -m experiments.toy_sde [--target checkerboard] [--schedules vp ve edm]

A 2-D density is known exactly at every noise level, and so is its denoiser.
Nothing is trained, so all that separates samples from the truth is the
solver's error. The forward SDE starts from exact samples of p at t_min, the
reverse SDE and the probability flow from exact samples of p at t_max. Figures
in OUT:

- paths.png: x_1 along forward SDE, reverse SDE and probability flow over the
  exact p_t(x_1), one row per schedule.
- density_<schedule>.png: exact p_t at five times beside histograms of the
  three simulations.
- score.png: the score field over the exact p_t, one row per schedule.

Hardware and time: about a minute on 2 CPU cores. The checkerboard, whose
denoiser is a derivative, takes over a minute per schedule with --samples 2048.

Expect, with the defaults, log p by the flow within 1e-5 nats of the exact one
on average. The samplers' squared energy distance to exact samples is below
0.002, as is that of further sets of exact samples (0.0007 to 0.0018). Moments
of the forward paths are within 2 % of the exact ones, as 8192 samples allow.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

import diffjax as dj
from diffjax import grids, metrics, schedules, sde, solvers, targets
from experiments.shared import cli, devices, files
from experiments.shared.datasets import TOYS, ToyName
from experiments.shared.figures import PALE_GREYS, histogram, save_figure
from experiments.shared.mapping import map_examples
from experiments.shared.schedules import ScheduleName, choice, make

TARGETS: dict[str, Callable[[], Any]] = TOYS | {
    "two_modes": lambda: targets.gaussian_mixture(
        [0.3, 0.7], [[-2.0, -1.0], [2.0, 1.0]], [0.4, 0.6]
    ),
}
_SIGMAS = {"sigma_min": 0.01, "sigma_max": 12.0}
SETTINGS = {"ve": _SIGMAS, "edm": _SIGMAS}
"""Settings of the schedules whose defaults do not suit data of this size."""

NOISE_TO_SIGNAL = (0.25, 0.7, 2.0)
"""σ/α at the snapshots between the two ends.

On each schedule the distributions there are the same, up to a factor α.
"""

PATHS = 16
PIXELS = 160
PIXELS_PER_BIN = 5
EXACT_SETS = 5
LIKELIHOOD_STEPS = 128


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    """Forward SDE, reverse SDE and probability flow of a 2-D density against
    exact p_t.
    """

    out: pathlib.Path = pathlib.Path("runs/toy_sde")
    """Folder for figures, config.json and metrics.json."""
    seed: int = 0
    """Seed of all draws."""
    target: Literal[ToyName, "two_modes"] = "eight_gaussians"
    """The density at noise 0."""
    schedules: tuple[ScheduleName, ...] = ("vp", "sub_vp", "ve")
    """The noise schedules to compare, one row of the figures each."""
    samples: int = 8192
    """Paths simulated of each kind, and exact samples that they are compared with."""
    steps: int = 1000
    """Steps of every solver, uniform in log-SNR."""
    likelihoods: int = 512
    """Exact samples whose log p is computed by the probability flow."""


def run(config: Config) -> dict[str, Any]:
    """Simulate, compare and draw.

    Returns:
      The metrics by schedule, which are also in OUT/metrics.json.
    """
    if not config.schedules:
        raise ValueError(
            f"schedules must name at least one of {list(get_args(ScheduleName))}, got "
            "none"
        )
    for name in ("samples", "likelihoods"):
        if getattr(config, name) < 2 * PATHS:
            raise ValueError(
                f"{name} must be at least {2 * PATHS}, got {getattr(config, name)}"
            )
    out = files.start(config)
    target = TARGETS[config.target]()
    simulations, results = {}, {}
    with cli.progress(4 * len(config.schedules), label="schedules", unit="part") as bar:
        for name in config.schedules:
            simulations[name] = simulate(config, target, name, bar)
            results[name] = measure(config, target, name, simulations[name])
            bar.update()
    files.write_json(
        out / "metrics.json", {"target": config.target, "schedules": results}
    )
    for name in config.schedules:
        save_figure(
            draw_densities(config, target, name, simulations[name]),
            out / f"density_{name}.png",
        )
    save_figure(draw_paths(config, target, simulations), out / "paths.png")
    save_figure(draw_scores(target, simulations), out / "score.png")
    print_results(results)
    return results


# ------------------------------------------------------------------ simulation


@dataclasses.dataclass(frozen=True)
class Simulation:
    """One schedule's simulations by kind: all samples at five times, and a few
    whole paths.

    Attributes:
      ts: (N + 1,), increasing.
      times: (S,), those of the snapshots.
      snapshots: (S, samples, 2) by kind.
      paths: (PATHS, N + 1) by kind, the first coordinate.
    """

    ts: np.ndarray
    times: np.ndarray
    snapshots: dict[str, np.ndarray]
    paths: dict[str, np.ndarray]


def simulate(config: Config, target: Any, name: str, bar: Any) -> Simulation:
    """All paths of one schedule: upwards from exact p at t_min, downwards from
    exact p at t_max.
    """
    key = schedule_key(config, name)
    key_start, key_forward, key_end, key_reverse = jax.random.split(key, 4)
    schedule = make(name, SETTINGS)
    denoiser = targets.denoiser(target, schedule)
    # The grid decreases. The forward SDE walks it upwards.
    grid = grids.log_snr(schedule, config.steps)
    data = exact_samples(key_start, target, schedule, schedule.t_min, config.samples)
    noise = exact_samples(key_end, target, schedule, schedule.t_max, config.samples)

    def upwards(_, key, x):
        return solvers.integrate(
            key,
            solvers.euler_maruyama(),
            sde.forward(schedule),
            x=x,
            ts=grid[::-1],
            path=True,
        )

    def downwards(solver):
        paths = dj.sample_many(
            key_reverse,
            config.samples,
            denoiser,
            schedule,
            solver=solver,
            grid=grid,
            x_init=noise,
            path=True,
            mesh=devices.mesh(),
        )
        return devices.on_host(paths)[:, ::-1]

    ts = np.asarray(grid[::-1])
    at = snapshot_indices(schedule, ts)
    simulation = Simulation(ts, ts[at], {}, {})
    for kind, run in {
        "forward SDE": lambda: map_examples(
            upwards,
            (),
            (jax.random.split(key_forward, config.samples), data),
            chunk=config.samples,
        ),
        "reverse SDE": lambda: downwards(solvers.euler_maruyama()),
        "probability flow": lambda: downwards(solvers.heun()),
    }.items():
        states = run()  # (samples, N + 1, 2)
        simulation.snapshots[kind] = states[:, at].swapaxes(0, 1)
        simulation.paths[kind] = states[:PATHS, :, 0]
        bar.update()
    return simulation


def schedule_key(config: Config, name: str) -> jax.Array:
    """The key of one schedule's draws."""
    return jax.random.fold_in(
        jax.random.key(config.seed), list(get_args(ScheduleName)).index(name)
    )


def exact_samples(
    key: jax.Array, target: Any, schedule: schedules.Schedule, t: Any, count: int
) -> jax.Array:
    """Samples of the exact p_t, (count, 2)."""
    return _samples(target, schedule, t, jax.random.split(key, count))


@jax.jit
def _samples(target, schedule, t, keys):
    return jax.vmap(target.noised(schedule, t).sample)(keys)


def snapshot_indices(schedule: schedules.Schedule, ts: np.ndarray) -> np.ndarray:
    """Indices of both ends and of the times nearest to the noise-to-signal
    ratios, increasing.
    """
    inner = _times(schedule, -2 * np.log(NOISE_TO_SIGNAL).astype(np.float32))
    return np.unique(
        [0, *(np.argmin(np.abs(ts - float(t))) for t in inner), len(ts) - 1]
    )


_times = jax.jit(schedules.time_of_log_snr)


# --------------------------------------------------------------------- numbers


def measure(
    config: Config, target: Any, name: str, simulation: Simulation
) -> dict[str, Any]:
    """Distances of both samplers to exact samples, forward moments, and log p of
    the flow.

    The distances are squared, in data units. "exact" is the mean over
    EXACT_SETS sets of exact samples, "exact_largest" the largest of them: the
    distance of two finite sets of one distribution.
    """
    schedule = make(name, SETTINGS)
    *keys, key_projections, key_likelihood = jax.random.split(
        schedule_key(config, name), EXACT_SETS + 7
    )[4:]
    reference, *others = (
        exact_samples(k, target, schedule, schedule.t_min, config.samples) for k in keys
    )
    samplers = {
        kind.replace(" ", "_"): simulation.snapshots[kind][0]
        for kind in ("reverse SDE", "probability flow")
    }

    def compare(distance):
        floor = [float(distance(x, reference)) for x in others]
        values = {kind: float(distance(x, reference)) for kind, x in samplers.items()}
        return {"exact": float(np.mean(floor)), "exact_largest": max(floor), **values}

    x = exact_samples(
        key_likelihood, target, schedule, schedule.t_min, config.likelihoods
    )
    return {
        "energy_distance": compare(metrics.energy_distance),
        "sliced_wasserstein": compare(
            functools.partial(metrics.sliced_wasserstein, key_projections)
        ),
        "forward_moments": [
            forward_moments(target, schedule, t, x)
            for t, x in zip(
                simulation.times, simulation.snapshots["forward SDE"], strict=True
            )
        ],
        "log_prob_error": log_prob_error(target, schedule, x),
    }


def forward_moments(
    target: Any, schedule: schedules.Schedule, t: Any, x: np.ndarray
) -> dict[str, float]:
    """Mean and covariance of forward paths x (n, 2) at t against α m and α² V +
    σ² I.

    - mean_error: ‖mean − exact‖/s, s² the trace of the exact covariance.
    - mean_noise: its root mean square where the distribution is exact.
    - variance_error: trace of the covariance over s², less 1.
    - variance_noise: its standard error.
    """
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    mean, covariance = np.asarray(target.mean()), np.asarray(target.covariance())
    exact = alpha**2 * np.trace(covariance) + 2 * sigma**2
    x = x.astype(np.float64)
    squares = np.sum((x - x.mean(0)) ** 2, -1)
    return {
        "t": float(t),
        "noise_to_signal": sigma / alpha,
        "mean_error": float(np.linalg.norm(x.mean(0) - alpha * mean) / np.sqrt(exact)),
        "mean_noise": float(1 / np.sqrt(len(x))),
        "variance_error": float(squares.mean() / exact - 1),
        "variance_noise": float(squares.std() / exact / np.sqrt(len(x))),
    }


def log_prob_error(
    target: Any, schedule: schedules.Schedule, x: jax.Array
) -> dict[str, float]:
    """log p by the probability flow less the exact log p at t_min of each x, in
    nats.

    The flow starts from the exact p at t_max.
    """
    grid = grids.log_snr(schedule, LIKELIHOOD_STEPS)
    error = np.abs(
        map_examples(_log_prob_error, (target, schedule, grid), (x,), chunk=len(x))
    )
    return {"mean": float(error.mean()), "largest": float(error.max())}


def _log_prob_error(state, x):
    target, schedule, grid = state
    denoiser = targets.denoiser(target, schedule)
    base, end = (target.noised(schedule, t) for t in (schedule.t_max, schedule.t_min))
    return dj.log_prob(denoiser, schedule, x, grid=grid, base=base) - end.log_prob(x)


def print_results(results: dict[str, Any]) -> None:
    """Print the table of all schedules."""
    distances = {
        "energy_distance": "energy distance²",
        "sliced_wasserstein": "sliced Wasserstein²",
    }
    titles = "".join(
        f"{title + ' to exact samples':^42}" for title in distances.values()
    )
    print(f"\n{'':16}{'log p error':>12}  {titles}  forward moments off by")
    columns = f"{'exact sets':>12}{'largest':>10}{'SDE':>10}{'flow':>10}"
    print(f"{'':16}{'nats, mean':>12}  {columns * 2}  mean, variance")
    for name, result in results.items():
        row = f"{choice(name).title:16}{result['log_prob_error']['mean']:12.1e}  "
        for distance in distances:
            first, *rest = result[distance].values()
            row += f"{first:12.5f}" + "".join(f"{value:10.5f}" for value in rest)
        mean = max(m["mean_error"] for m in result["forward_moments"])
        variance = max(abs(m["variance_error"]) for m in result["forward_moments"])
        print(row + f"  {100 * mean:.1f} % of s, {100 * variance:.1f} %")


# --------------------------------------------------------------------- figures


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
            image = axis.pcolormesh(
                at,
                at,
                values.T,
                cmap="magma",
                vmin=0,
                vmax=density.max(),
                rasterized=True,
            )
            axis.set_aspect("equal")
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
            places, arrows = score_arrows(target, schedule, t, edges)
            axis.quiver(
                *places.T,
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
    places = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(
        -1, 2
    )  # (PIXELS², 2)
    return edges, np.asarray(_densities(target, schedule, t, places)).reshape(
        PIXELS, PIXELS
    )


@jax.jit
def _densities(target, schedule, t, places):
    return jnp.exp(jax.vmap(target.noised(schedule, t).log_prob)(places))


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
    places = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    scores = np.asarray(_scores(target, schedule, t, places))
    size = np.maximum(np.linalg.norm(scores, axis=-1, keepdims=True), 1e-12)
    return places, scores / size * np.tanh(size / np.median(size)) * (line[1] - line[0])


@jax.jit
def _scores(target, schedule, t, places):
    distribution = target.noised(schedule, t)
    return jax.vmap(lambda x: targets.score(distribution, x))(places)


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
