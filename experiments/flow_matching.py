"""What does coupling the noise to the data buy? Flow matching with independent, entropic and optimal pairs, and reflow.

    python -m experiments.flow_matching [--target moons] [--couplings independent optimal] [--out DIR] [--seed N]

One small network a coupling is fitted to straight paths between samples of a 2-D density and noise. Under independent
pairs the paths cross and the flow of their mean velocity bends; under optimal transport within each batch they hardly
cross; reflow fits a second network to the pairs that the independent one's own flow makes. How straight each flow is
decides how few steps of a solver it needs. Figures in OUT:

- paths.png: a row a coupling: paths from noise to data, and samples by 1, 2, 4 and 32 Euler steps, over the density;
- error.png: against evaluations, Euler and midpoint: how far a sample lies from the one that the same noise becomes by
  many steps, and the squared sliced Wasserstein distance to exact samples beside that of other exact samples;
- log_prob.png: error of log p against evaluations, of Euler, Heun, RK4 and the adaptive solver, on the exact velocity.

Takes a minute and a half on 2 CPU cores and resumes from its checkpoints. Expect on eight Gaussians, for independent
pairs, optimal ones and reflow: curvature 1.8, 0.01 and 0.001 squared data units; a root mean square error of a sample
of 2.8, 0.24 and 0.11 data units by one Euler step, 0.38, 0.08 and 0.05 by four; log p within 0.05, 0.05 and 0.07 nats
of the exact one on average, since the networks are alike. On the exact velocity log p is off by 1e-2 nats by Heun and
by RK4 with 64 evaluations, by 3e-5 with 256 of RK4 or 100 of the adaptive solver.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import diffjax as dj
from diffjax import flows, grids, metrics, predictions, schedules, solvers, targets
from experiments import models, record
from experiments.toy_sde import PALE_GREYS

TARGETS: dict[str, Callable[[], Any]] = {
    "eight_gaussians": targets.eight_gaussians,
    "checkerboard": targets.checkerboard,
    "circles": targets.circles,
    "moons": targets.moons,
}
TITLES = {
    "independent": "independent",
    "sinkhorn": "entropic (Sinkhorn)",
    "optimal": "optimal within a batch",
    "reflow": "reflow of independent",
}
COLOURS = {"independent": "#b5482a", "sinkhorn": "#7a5aa6", "optimal": "#1f4e79", "reflow": "#3c8d5a"}
STEPS = (1, 2, 4, 8, 16, 32)
SHOWN_STEPS = (1, 2, 4, 32)
FINE_STEPS = 32
"""Steps of RK4 for paths, curvature, log p and the pairs of reflow."""
PATHS = 48
EXTENT, PIXELS = 5.0, 160
EXACT_SETS = 8
LOG_PROB_STEPS = (8, 16, 32, 64)
TOLERANCES = (1e-3, 1e-5, 1e-7)


@dataclasses.dataclass(frozen=True)
class Config:
    """Flow matching under several couplings of noise and data: straightness, and error against evaluations."""

    out: pathlib.Path = pathlib.Path("runs/flow_matching")
    """Folder for figures, config.json, metrics.json and checkpoints."""
    seed: int = 0
    """Seed of data, networks, training and samples."""
    target: Literal["eight_gaussians", "checkerboard", "circles", "moons"] = "eight_gaussians"
    """The density of the data."""
    couplings: tuple[Literal["independent", "sinkhorn", "optimal", "reflow"], ...] = (
        "independent",
        "optimal",
        "reflow",
    )
    """The couplings to compare; reflow needs independent before it."""
    regularisation: float = 0.5
    """ε of the entropic coupling, in squared data units."""
    examples: int = 65536
    """Training examples, exact samples of the density."""
    width: int = 128
    """Features of the network."""
    depth: int = 4
    """Layers of the network."""
    steps: int = 2000
    """Training steps of each network."""
    batch_size: int = 128
    """Pairs a step; an optimal coupling is optimal among so many."""
    learning_rate: float = 2e-3
    """Peak learning rate: linear warm-up over a tenth of the steps, then a cosine to 0."""
    ema_decay: float = 0.99
    """Decay of the averaged parameters, which are the ones used."""
    save_every: int = 1000
    """Steps between checkpoints."""
    samples: int = 4096
    """Samples by each solver, and exact samples that they are compared with."""
    likelihoods: int = 1024
    """Exact samples whose log p is computed."""


_FIELDS = ("target", "regularisation", "examples")


def run(config: Config) -> dict[str, Any]:
    """Train, measure, draw; the metrics."""
    check(config)
    out = record.open_folder(config)
    clock, target = record.Clock(), TARGETS[config.target]()
    fitted = train(config, out, target)
    clock.lap("training")
    measured = {name: measure(config, target, velocity) for name, velocity in fitted.items()}
    results = {
        "couplings": {name: numbers for name, (numbers, _) in measured.items()},
        "exact_sets": exact_sets(config, target),
    }
    clock.lap("sampling")
    results["log_prob_error"] = log_prob_errors(config, target)
    clock.lap("log p")
    results["seconds"] = clock.laps
    record.write_json(out / "metrics.json", results)
    record.save_figure(draw_paths(config, target, {k: v for k, (_, v) in measured.items()}), out / "paths.png")
    record.save_figure(draw_errors(results), out / "error.png")
    record.save_figure(draw_log_prob(results["log_prob_error"]), out / "log_prob.png")
    print_results(results)
    return results


def check(config: Config) -> None:
    """Refuse flags that cannot be, before any work."""
    for name in ("width", "depth", "steps", "batch_size", "save_every"):
        dj.checks.integer(name, getattr(config, name), 1)
    for name in ("samples", "likelihoods"):
        dj.checks.integer(name, getattr(config, name), 2 * PATHS)
    dj.checks.integer("examples", config.examples, config.batch_size)
    dj.checks.integer("seed", config.seed, 0)
    dj.checks.positive("learning_rate", config.learning_rate)
    dj.checks.positive("regularisation", config.regularisation)
    dj.checks.within("ema_decay", config.ema_decay, 0.0, 1.0)
    names = config.couplings
    if not names or len(set(names)) < len(names):
        raise ValueError(f"couplings must name at least one of {list(TITLES)}, each once, got {names}")
    if "reflow" in names and "independent" not in names[: names.index("reflow")]:
        raise ValueError(f"couplings must name independent before reflow, which is made of it, got {names}")


# ------------------------------------------------------------------------------------------------------------ training


def train(config: Config, out: pathlib.Path, target: Any) -> dict[str, Any]:
    """A fitted velocity a coupling."""
    couplings = {
        "independent": flows.independent(),
        "sinkhorn": flows.sinkhorn(config.regularisation),
        "optimal": flows.optimal_assignment(),
        "reflow": flows.paired(),
    }
    template = flows.neural_velocity(jax.random.key(0), (2,), config.width, config.depth)
    data = exact_samples(key_of(config, "data"), target, config.examples)
    path, fitted = flows.path(), {}

    def velocity(params):
        return jax.tree_util.Partial(template.func, params)

    def init(key):
        return flows.neural_velocity(key, (2,), config.width, config.depth).args[0]

    for name in config.couplings:
        arrays = (data, data)
        if name == "reflow":
            bijector = flows.continuous(fitted["independent"], FINE_STEPS)
            arrays = reflowed(config, bijector)
        paired = name == "reflow"

        def loss(params, key, batch, coupling=couplings[name], paired=paired):
            x0, x1 = batch
            return flows.matching_loss(key, velocity(params), path, x0, x1 if paired else None, coupling)[0]

        params, _ = models.fit(config, out, loss, init, arrays, _FIELDS + ("width", "depth"), TITLES[name], f"{name}_")
        fitted[name] = velocity(params)
    return fitted


def reflowed(config: Config, bijector: Any) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of noise and its image under a flow, as many as there are examples."""
    x1 = np.asarray(jax.random.normal(key_of(config, "reflow"), (config.examples, 2)))
    return forward(bijector, x1), x1


def forward(bijector: Any, x1: Any, chunk: int = 16384) -> np.ndarray:
    """Base -> data of many, (n, 2)."""
    return np.concatenate([np.asarray(_forward(bijector, x1[i : i + chunk])) for i in range(0, len(x1), chunk)])


@jax.jit
def _forward(bijector, x1):
    return jax.vmap(bijector.forward)(x1)


def exact_samples(key: jax.Array, target: Any, count: int) -> np.ndarray:
    """(count, 2)."""
    return np.asarray(jax.jit(jax.vmap(target.sample))(jax.random.split(key, count)))


def key_of(config: Config, what: str) -> jax.Array:
    """The key of one kind of draw."""
    kinds = ("data", "reflow", "noise", "exact", "directions", "likelihood")
    return jax.random.fold_in(jax.random.key(config.seed), kinds.index(what))


# ------------------------------------------------------------------------------------------------------------- numbers


def measure(config: Config, target: Any, velocity: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(numbers, what is drawn) of one flow.

    curvature: mean ∫‖(x_1 − x_0) − u‖² dt, cost: mean ‖x_1 − x_0‖²/2, in squared data units. path_error: root mean
    square of ‖x_0 − x̂_0‖ between few steps and FINE_STEPS of RK4 from the same noise, in data units. nats_above_floor:
    the mean of log p − log p_flow over exact samples, KL(p‖flow), with its standard error.
    """
    noise = jax.random.normal(key_of(config, "noise"), (config.samples, 2))
    exact = exact_samples(key_of(config, "exact"), target, config.samples)
    fine = flows.continuous(velocity, FINE_STEPS)
    states = np.asarray(jax.jit(jax.vmap(fine.path))(noise[:PATHS]))  # (PATHS, N + 1, 2)
    ends = forward(fine, noise)
    distances: dict[str, dict[int, float]] = {"euler": {}, "midpoint": {}}
    errors: dict[str, dict[int, float]] = {"euler": {}, "midpoint": {}}
    shown = {}
    for solver in (solvers.euler(), solvers.midpoint()):
        for count in STEPS:
            samples = forward(flows.continuous(velocity, count, solver), noise)
            cost = count * (1 if solver is solvers.euler() else 2)
            distances[solver.name][cost] = distance(config, samples, exact)
            errors[solver.name][cost] = float(np.sqrt(np.mean(np.sum((samples - ends) ** 2, -1))))
            if solver is solvers.euler() and count in SHOWN_STEPS:
                shown[count] = samples
    gap = log_prob_gap(config, target, fine)
    return {
        "curvature": float(np.mean(jax.jit(jax.vmap(flows.curvature, (None, 0)))(fine, noise[: config.likelihoods]))),
        "cost": float(np.mean(np.sum((ends - noise) ** 2, -1)) / 2),
        "path_error": errors,
        "sliced_wasserstein": distances | {"fine": distance(config, ends, exact)},
        "nats_above_floor": float(gap.mean()),
        "nats_above_floor_standard_error": float(gap.std(ddof=1) / np.sqrt(len(gap))),
    }, {"paths": states, "samples": shown}


def distance(config: Config, x: np.ndarray, y: np.ndarray) -> float:
    """Squared sliced Wasserstein distance, the same directions each time."""
    return float(metrics.sliced_wasserstein(key_of(config, "directions"), x, y))


def log_prob_gap(config: Config, target: Any, bijector: Any) -> np.ndarray:
    """log p − log p_flow of exact samples, in nats."""
    x = exact_samples(key_of(config, "likelihood"), target, config.likelihoods)
    z, log_det = jax.jit(jax.vmap(bijector.inverse_and_log_det))(x)
    ours = -0.5 * np.sum(np.asarray(z) ** 2, -1) - np.log(2 * np.pi) + np.asarray(log_det)
    gap = np.asarray(jax.vmap(target.log_prob)(x)) - ours
    if not np.isfinite(gap).all():
        raise FloatingPointError(f"{np.sum(~np.isfinite(gap))} of {len(gap)} log-likelihoods are not finite")
    return gap


def exact_sets(config: Config, target: Any) -> dict[str, float]:
    """Least, mean and largest distance of further sets of exact samples from the one compared with."""
    exact = exact_samples(key_of(config, "exact"), target, config.samples)
    keys = jax.random.split(jax.random.fold_in(key_of(config, "exact"), 1), EXACT_SETS)
    found = [distance(config, exact_samples(key, target, config.samples), exact) for key in keys]
    return {"least": min(found), "mean": float(np.mean(found)), "largest": max(found)}


def log_prob_errors(config: Config, target: Any) -> dict[str, list[dict[str, float]]]:
    """Mean |log p − exact| in nats against evaluations, a list a solver, of the exact velocity of independent pairs.

    On rectified flow's interval, from p at t_max to p at t_min, both exact, with steps uniform in log-SNR.
    """
    schedule = schedules.rectified_flow()
    velocity = predictions.velocity(schedule, targets.denoiser(target, schedule))
    base, end = target.noised(schedule, schedule.t_max), target.noised(schedule, schedule.t_min)
    x = jax.vmap(end.sample)(jax.random.split(key_of(config, "likelihood"), min(256, config.likelihoods)))
    exact = jax.vmap(end.log_prob)(x)

    @jax.jit
    def both(bijector, x):
        solved = jax.vmap(functools.partial(flows.transport, bijector))(x)
        return jax.vmap(base.log_prob)(solved.x) + solved.log_det, solved.run.evaluations

    def row(bijector):
        ours, evaluations = both(bijector, x)
        return {"evaluations": float(np.mean(evaluations)), "error": float(np.mean(np.abs(ours - exact)))}

    found: dict[str, list[dict[str, float]]] = {}
    for solver in (solvers.euler(), solvers.heun(), solvers.rk4()):
        found[solver.name] = [
            row(flows.continuous(velocity, solver=solver, times=grids.log_snr(schedule, steps)))
            for steps in LOG_PROB_STEPS
        ]
    ends = (float(schedule.t_max), float(schedule.t_min))
    found["adaptive"] = [
        row(flows.continuous(velocity, solver=solvers.adaptive(tolerance, tolerance), times=ends))
        for tolerance in TOLERANCES
    ]
    return found


def print_results(results: dict[str, Any]) -> None:
    """The tables."""
    counts = list(results["couplings"][next(iter(results["couplings"]))]["path_error"]["euler"])
    head = "".join(f"{count:>9}" for count in counts)
    print(f"\n{'':24}{'curvature':>10}{'cost':>8}{'nats':>8}   error of a sample by so many Euler steps")
    print(f"{'':50}   {head}")
    for name, row in results["couplings"].items():
        errors = "".join(f"{value:9.4f}" for value in row["path_error"]["euler"].values())
        print(f"{TITLES[name]:24}{row['curvature']:10.4f}{row['cost']:8.3f}{row['nats_above_floor']:8.3f}   {errors}")
    print(f"\nsliced Wasserstein² to exact samples{'':17}{head}")
    for name, row in results["couplings"].items():
        print(f"{TITLES[name]:53}" + "".join(f"{v:9.4f}" for v in row["sliced_wasserstein"]["euler"].values()))
    print("other exact samples, least to largest: {least:.4f} to {largest:.4f}".format(**results["exact_sets"]))
    print("\nmean |error| of log p in nats at so many evaluations, on the exact velocity")
    for name, rows in results["log_prob_error"].items():
        print(f"{name:10}" + "".join(f"{row['evaluations']:8.0f}: {row['error']:.1e}" for row in rows))


# ------------------------------------------------------------------------------------------------------------- figures


def draw_paths(config: Config, target: Any, drawn: dict[str, dict[str, Any]]) -> Any:
    """A row a coupling: paths, then samples by few Euler steps."""
    columns = 1 + len(SHOWN_STEPS)
    figure, axes = plt.subplots(
        len(drawn), columns, figsize=(3.1 * columns, 3.2 * len(drawn) + 0.3), squeeze=False, layout="constrained",
        sharex=True, sharey=True,
    )  # fmt: skip
    edges = np.linspace(-EXTENT, EXTENT, PIXELS + 1)
    centres = jnp.asarray(0.5 * (edges[1:] + edges[:-1]))
    places = jnp.stack(jnp.meshgrid(centres, centres), -1)
    density = np.exp(np.asarray(jax.jit(jax.vmap(jax.vmap(target.log_prob)))(places)))
    for row, (name, parts) in zip(axes, drawn.items(), strict=True):
        for axis in row:
            axis.pcolormesh(edges, edges, density, cmap=PALE_GREYS, vmin=0, vmax=density.max(), rasterized=True)
            axis.set(aspect="equal", xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT))
        for states in parts["paths"]:
            row[0].plot(*states.T, color=COLOURS[name], lw=0.8, alpha=0.8)
        row[0].plot(*parts["paths"][:, 0].T, ".", color="black", ms=3)
        row[0].plot(*parts["paths"][:, -1].T, ".", color=COLOURS[name], ms=5)
        for axis, count in zip(row[1:], SHOWN_STEPS, strict=True):
            axis.plot(*parts["samples"][count][:2000].T, ".", color=COLOURS[name], ms=1.5, alpha=0.6)
        row[0].set_ylabel(f"{TITLES[name]}\n$x_2$ (data units)")
    axes[0, 0].set_title("paths, noise (black) to data", fontsize=10)
    for axis, count in zip(axes[0, 1:], SHOWN_STEPS, strict=True):
        axis.set_title(f"samples, {count} Euler step{'s' if count > 1 else ''}", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$ (data units)")
    figure.suptitle(f"Flow matching on {config.target.replace('_', ' ')}, its density in grey")
    return figure


def draw_errors(results: dict[str, Any]) -> Any:
    """Error of single samples, and distance of all to exact ones, against evaluations."""
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.3), layout="constrained")
    for axis, quantity in zip(axes, ("path_error", "sliced_wasserstein"), strict=True):
        for name, row in results["couplings"].items():
            for solver, style in (("euler", "o-"), ("midpoint", "s--")):
                counts, values = [int(count) for count in row[quantity][solver]], list(row[quantity][solver].values())
                axis.plot(counts, values, style, color=COLOURS[name], ms=4, lw=1.3, label=f"{TITLES[name]}, {solver}")
        axis.set(xscale="log", yscale="log", xlabel="evaluations of the network a sample")
        axis.set_xticks([1, 2, 4, 8, 16, 32, 64], labels=["1", "2", "4", "8", "16", "32", "64"])
        axis.xaxis.set_minor_locator(plt.NullLocator())
        axis.grid(alpha=0.3)
    exact = results["exact_sets"]
    label = f"{EXACT_SETS} other sets of exact samples"
    axes[1].axhspan(exact["least"], exact["largest"], color="0.85", zorder=0, label=label)
    axes[0].set(
        title="Straighter flows need fewer evaluations", ylabel="root mean square error of a sample (data units)"
    )
    axes[1].set_title("as seen from the samples alone")
    axes[1].set_ylabel("squared sliced Wasserstein distance\nto exact samples (squared data units)")
    axes[1].legend(frameon=False, fontsize=8)
    return figure


def draw_log_prob(errors: dict[str, list[dict[str, float]]]) -> Any:
    """Error of log p against evaluations, a line a solver."""
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    styles = {"euler": "o-", "heun": "s-", "rk4": "^-", "adaptive": "D--"}
    for name, rows in errors.items():
        axis.plot([row["evaluations"] for row in rows], [row["error"] for row in rows], styles[name], ms=4, label=name)
    axis.set(xscale="log", yscale="log", xlabel="evaluations of velocity and trace an example")
    axis.set_ylabel("mean |error| of log p (nats)")
    axis.set_title("log p by the flow of the exact velocity, float32")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


if __name__ == "__main__":
    record.main(run, Config, __doc__)
