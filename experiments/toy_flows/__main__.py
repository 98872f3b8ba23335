"""By how many nats do normalizing flows miss the exact density of 2-D toy data?

    python -m experiments.toy_flows [--targets moons] [--flows spline maf] [--steps N]

RealNVP, spline coupling, MAF and a continuous flow by maximum likelihood, and
a continuous flow by matching, are fitted to samples of densities that are
known. So the gap to the entropy floor, the mean of log p − log q over fresh
samples of p, is known with its standard error. It is KL(p‖q), and 0 for a
perfect fit.

Log q of the continuous flows is by RK4 with the exact trace, and metrics.json
says by how much it changes with half the steps. A killed run resumes where
each fit was saved, at 1/8, 1/4, 1/2 and all of its steps, and metrics.json has
the gap and the seconds at each. Figures in OUT:

- densities.png: the exact density and those of the flows, one row per target.
- samples.png: as many samples of each.

Hardware and time: 35 minutes on 2 CPU cores that several other programs shared
(load 8 to 15), about 11 minutes of processor time.

Expect these gaps in nats, in columns of eight Gaussians, checkerboard, circles
and moons:

    RealNVP                 0.177 ± 0.005  0.230 ± 0.004  0.093 ± 0.004  0.015 ± 0.001
    spline coupling         0.008 ± 0.001  0.030 ± 0.002  0.006 ± 0.001  0.006 ± 0.001
    MAF with splines        0.005 ± 0.001  0.048 ± 0.002  0.005 ± 0.001  0.010 ± 0.001
    continuous, likelihood  0.039 ± 0.002  0.282 ± 0.004  0.064 ± 0.003  0.020 ± 0.002
    continuous, matching    0.020 ± 0.002  0.345 ± 0.006  0.027 ± 0.002  0.036 ± 0.002

and these seconds of training with compilation:

    RealNVP                  57   31  44  23
    spline coupling          35   53  33  45
    MAF with splines        128  106  90  84
    continuous, likelihood   62  105  59  59
    continuous, matching     77   69  32  34

The best flow of each density leaves 0.005, 0.030, 0.005 and 0.006 nats. The
spline reached 0.018 on moons after 19 of its seconds. The checkerboard needs a
network that can jump: Fourier features of the unchanged entries, or a wide and
deep one (MAF), bring it below 0.05. Smooth velocities and affine couplings do
not get there in these steps.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np

import diffjax as dj
from diffjax import distributions, flows, networks
from diffjax.types import pytree, static_field
from experiments.shared import cli, devices, files, training
from experiments.shared.datasets import TOYS, ToyName
from experiments.shared.figures import save_figure
from experiments.shared.mapping import map_examples

KNOTS = flows.rational_quadratic(32, bound=4.0)
"""Splines for standardised data, whose densities here end within ±2.5.

They have many bins, for a density with jumps.
"""
REGULAR = 0.01
"""Weight of ∫‖u‖² dt and of ∫‖∂u/∂x‖² dt in a continuous flow's fit by
likelihood.
"""
Loss = Callable[[flows.density.Flow, jax.Array, jax.Array], jax.Array]
"""A loss (flow, key, batch) -> ()."""


class Kind(NamedTuple):
    """A flow and the settings of its fit."""

    title: str
    make: Callable[[jax.Array], flows.density.Flow]
    steps: int
    learning_rate: float
    batch_size: int = 512
    loss: Loss | None = None  # None for maximum likelihood


# ------------------------------------------------------------------- the flows


@pytree
class Harmonics:
    """A network that sees sines of its input too, so that its output may change
    abruptly.
    """

    network: Any
    count: int = static_field()

    def __call__(self, x: jax.Array, condition: Any = None) -> jax.Array:
        return self.network(networks.fourier_inputs(x, self.count), condition)


def spline_coupling(
    key: jax.Array, layers: int = 2, harmonics: int = 4
) -> flows.density.Flow:
    """Spline couplings of alternating halves.

    Their networks see sin and cos of 2^k π x, k below `harmonics`.
    """

    def layer(key, swap):
        network = flows.perceptron(key, 1 + 2 * harmonics, (1, KNOTS.count))
        return flows.coupling(
            Harmonics(network, harmonics), KNOTS, flows.half_mask(2, swap)
        )

    pairs = [
        flows.chain(layer(a, False), layer(b, True))
        for a, b in jax.random.split(key, (layers // 2, 2))
    ]
    return planar(flows.stack(pairs))


def planar(*bijectors: Any) -> flows.density.Flow:
    """The flow of a standard normal pair through bijectors and, at the data's
    end, an actnorm.
    """
    return flows.flow(
        distributions.standard_normal((2,)), flows.chain(*bijectors, flows.actnorm(2))
    )


def standardised(flow: flows.density.Flow, batch: jax.Array) -> tuple[Any, jax.Array]:
    """(the ODE's bijection, the batch before the actnorm at the data's end).

    The actnorm is not trained.
    """
    ode, norm = flow.bijector.bijectors
    return ode, jax.vmap(jax.lax.stop_gradient(norm).inverse)(batch)


def matching(flow: flows.density.Flow, key: jax.Array, batch: jax.Array) -> jax.Array:
    """The regression of the flow's velocity on those of straight paths from
    standardised data to noise.
    """
    ode, xs = standardised(flow, batch)
    return flows.matching_loss(key, ode.velocity, flows.interpolant(), xs)[0]


def regular_likelihood(
    flow: flows.density.Flow, key: jax.Array, batch: jax.Array
) -> jax.Array:
    """−log q in nats per dimension by the exact trace, with a penalty on long and
    bent paths.

    Without it the velocity learns to exploit the error of the few steps that
    it is trained with.
    """
    ode, xs = standardised(flow, batch)
    return flows.transport_loss(
        None, flows.flow(flow.base, ode), xs, kinetic=REGULAR, jacobian=REGULAR
    )[0]


def likelihood(flow: flows.density.Flow, key: jax.Array, batch: jax.Array) -> jax.Array:
    """The mean of −log q over the batch."""
    return flows.negative_log_likelihood(flow, batch)[0]


KINDS: dict[str, Kind] = {
    "real_nvp": Kind(
        "RealNVP, 16 layers",
        lambda key: flows.real_nvp(key, (2,), layers=16, mix=False),
        1000,
        5e-3,
    ),
    "spline": Kind("spline coupling, 2 layers", spline_coupling, 3000, 5e-3),
    "maf": Kind(
        "MAF with splines, 2 layers",
        lambda key: flows.maf(
            key, (2,), layers=2, width=128, depth=3, scalar_map=KNOTS
        ),
        2000,
        5e-3,
    ),
    "cnf": Kind(
        "continuous, by likelihood",
        lambda key: planar(
            flows.neural_ode(key, (2,), width=64, depth=3, steps=6, checkpoint=False)
        ),
        800,
        5e-3,
        batch_size=128,
        loss=regular_likelihood,
    ),
    "matching": Kind(
        "continuous, by matching",
        lambda key: planar(flows.neural_ode(key, (2,), width=96, depth=4)),
        4000,
        2e-3,
        loss=matching,
    ),
}
FINE_STEPS = 16
"""Steps of RK4 with which an ODE is measured and drawn."""
CURVE, CURVE_EXAMPLES = (1 / 8, 1 / 4, 1 / 2, 1), 2000
"""Shares of the steps at which the gap is measured, and the number of examples."""
HALF_SIDE, PIXELS, DRAWN = 5.0, 100, 4000


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    """Flows fitted to 2-D densities that are known exactly: gaps, densities,
    samples.
    """

    out: pathlib.Path = pathlib.Path("runs/toy_flows")
    """Folder for figures, config.json, metrics.json and the fits' checkpoints."""
    seed: int = 0
    """Seed of data, parameters and batches."""
    targets: tuple[ToyName, ...] = (
        "eight_gaussians",
        "checkerboard",
        "circles",
        "moons",
    )
    """The densities, one row of the figures each."""
    flows: tuple[Literal["real_nvp", "spline", "maf", "cnf", "matching"], ...] = (
        "real_nvp",
        "spline",
        "maf",
        "cnf",
        "matching",
    )
    """The flows, one column of the figures each."""
    steps: int | None = None
    """Steps of each fit at batch 512, a multiple of 100. Default: set per flow."""
    learning_rate: float | None = None
    """Peak learning rate: linear warm-up over a tenth of the steps, then a cosine
    to 0. Default: set per flow.
    """
    train: int = 100_000
    """Samples to fit to."""
    test: int = 10_000
    """Fresh samples over which the gap is averaged."""


@dataclasses.dataclass(frozen=True)
class FitConfig(training.Optimisation):
    """The settings of one fit, to which its checkpoints belong."""

    target: str = ""
    flow: str = ""
    save_every: int = 1000


def run(config: Config) -> dict[str, Any]:
    """Fit every flow to every target, measure and draw.

    Returns:
      The metrics by target, which are also in OUT/metrics.json.
    """
    check(config)
    out = files.start(config)
    results, fitted = {}, {}
    for name in config.targets:
        results[name] = {}
        for kind in config.flows:
            fitted[name, kind], curve = fit(config, out, name, kind)
            results[name][kind] = measure(config, name, fitted[name, kind]) | {
                "seconds": curve[-1]["seconds"],
                "curve": curve,
            }
            best = {
                done: min(row[kind]["gap"] for kind in row)
                for done, row in results.items()
            }
            files.write_json(
                out / "metrics.json", {"targets": results, "best_gap": best}
            )
    save_figure(draw_densities(config, fitted, results), out / "densities.png")
    save_figure(draw_samples(config, fitted, results), out / "samples.png")
    print_results(results)
    return results


def check(config: Config) -> None:
    """Raise ValueError for flags that are out of range."""
    for name, known in (("targets", TOYS), ("flows", KINDS)):
        if not getattr(config, name):
            raise ValueError(
                f"{name} must name at least one of {list(known)}, got none"
            )
    if config.steps is not None and (config.steps < 100 or config.steps % 100):
        raise ValueError(
            f"steps must be a positive multiple of 100, got {config.steps}"
        )
    if config.learning_rate is not None:
        dj.checks.positive("learning_rate", config.learning_rate)
    dj.checks.integer("seed", config.seed, 0, None)
    for name in ("train", "test"):
        dj.checks.integer(name, getattr(config, name), 512)


# --------------------------------------------------------------------- fitting


def samples(config: Config, name: str, stream: int, count: int) -> jax.Array:
    """Exact samples (count, 2) of a target. Training, testing and drawing have
    independent streams.
    """
    key = jax.random.fold_in(
        jax.random.fold_in(jax.random.key(config.seed), list(TOYS).index(name)),
        stream,
    )
    return jax.jit(jax.vmap(TOYS[name]().sample))(jax.random.split(key, count))


def fit(
    config: Config, out: pathlib.Path, name: str, kind: str
) -> tuple[flows.density.Flow, list[dict[str, float]]]:
    """Fit one flow to one target, resuming from its folder in `out`.

    Seconds count training and compilation, without those after the last point
    of the curve that a killed run had reached.

    Returns:
      (flow with averaged parameters, its gap and seconds at `CURVE`).
    """
    _, make, steps, learning_rate, batch_size, loss = KINDS[kind]
    task = FitConfig(
        seed=config.seed,
        steps=config.steps or steps,
        batch_size=batch_size,
        learning_rate=config.learning_rate or learning_rate,
        target=name,
        flow=kind,
    )
    folder = out / "fits" / f"{name}_{kind}"
    path, xs = folder / "curve.json", samples(config, name, 0, config.train)
    curve = (
        files.read_json(path, "remove it, and the curve begins anew", "curve")["curve"]
        if path.exists()
        else []
    )
    start = time.perf_counter()

    def note(step, flow):
        nonlocal start
        seconds = time.perf_counter() - start + (curve[-1]["seconds"] if curve else 0.0)
        if all(point["steps"] < step for point in curve):
            measured = measure(config, name, flow, CURVE_EXAMPLES)
            point = {"steps": step, "seconds": round(seconds, 1)}
            curve.append(
                point | {part: measured[part] for part in ("gap", "standard_error")}
            )
            files.write_json(path, {"curve": curve})
        start = time.perf_counter()

    stops = sorted({max(50, round(share * task.steps / 50) * 50) for share in CURVE})
    model, _ = training.fit(
        task,
        folder,
        loss or likelihood,
        lambda key: _initialised(make, key, xs),
        arrays=np.asarray(xs),
        fields=("target", "flow"),
        label=f"{name.replace('_', ' ')}, {kind}",
        stops=stops,
        on_stop=note,
    )  # type: ignore
    return model, curve


@functools.partial(jax.jit, static_argnums=0)
def _initialised(make, key, xs):
    return flows.initialise(make(key), xs)


# ------------------------------------------------------------------- measuring


def is_ode(flow: flows.density.Flow) -> bool:
    """Whether the first bijector, from the base, is the flow of an ODE."""
    return isinstance(flow.bijector.bijectors[0], flows.Continuous)


def fine(flow: flows.density.Flow, steps: int = FINE_STEPS) -> flows.density.Flow:
    """The flow with this number of RK4 steps, if it is that of an ODE."""
    if not is_ode(flow):
        return flow
    ode, *rest = flow.bijector.bijectors
    return flows.flow(
        flow.base, flows.chain(flows.continuous(ode.velocity, steps), *rest)
    )


def log_probs(distribution: Any, xs: Any) -> np.ndarray:
    """log p of many points, (n,), some at a time."""
    return map_examples(_log_prob, distribution, (xs,), chunk=2000)


def _log_prob(distribution, x):
    return distribution.log_prob(x)


def _sample(flow, key):
    return flow.sample(key)


def measure(
    config: Config, name: str, model: flows.density.Flow, count: int | None = None
) -> dict[str, float]:
    """The gap, the mean of log p − log q over fresh samples of p in nats, and its
    standard error.

    `nll` is the mean of −log q. For an ODE, `solver_change` is the mean |log q
    − log q'| with q' by half the steps.
    """
    xs = samples(config, name, 1, config.test)[:count]
    log_p, log_q = (
        log_probs(distribution, xs).astype(np.float64)
        for distribution in (TOYS[name](), fine(model))
    )
    difference = log_p - log_q
    results = {
        "gap": float(difference.mean()),
        "standard_error": float(dj.numerics.standard_error(difference)),
        "nll": float(-log_q.mean()),
        "entropy": float(-log_p.mean()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
    }
    if not np.isfinite(log_q).all():
        raise FloatingPointError(
            f"{np.sum(~np.isfinite(log_q))} of {len(log_q)} log-likelihoods are not "
            "finite"
        )
    if is_ode(model) and count is None:
        few = xs[:CURVE_EXAMPLES]
        coarse = log_probs(fine(model, FINE_STEPS // 2), few)
        results["solver_change"] = float(np.abs(coarse - log_q[: len(few)]).mean())
    return results


def print_results(results: dict[str, Any]) -> None:
    """Print the table of gaps, and of the gap against seconds."""
    kinds = list(next(iter(results.values())))
    print("\ngap to the entropy floor, nats (± standard error); seconds of training")
    print(f"{'':28}" + "".join(f"{name.replace('_', ' '):>27}" for name in results))
    for kind in kinds:
        cells = (row[kind] for row in results.values())
        texts = (
            f"{r['gap']:.4f} ± {r['standard_error']:.4f}; {r['seconds']:5.1f} s"
            for r in cells
        )
        print(f"{KINDS[kind].title:28}" + "".join(f"{text:>27}" for text in texts))
    print("\ngap after so many seconds of training")
    for name, row in results.items():
        for kind in kinds:
            curve = (
                f"{point['gap']:6.3f} at {point['seconds']:4.0f} s"
                for point in row[kind]["curve"]
            )
            print(f"{name.replace('_', ' ') + ', ' + kind:28}" + ",  ".join(curve))


# --------------------------------------------------------------------- figures


def draw_densities(config: Config, fitted: dict, results: dict) -> Any:
    """Draw the exact density and those of the flows, one row per target."""
    edges = np.linspace(-HALF_SIDE, HALF_SIDE, PIXELS + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    places = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
    figure, axes = grid_of_axes(config)
    for row, name in zip(axes, config.targets, strict=True):
        distributions = [
            TOYS[name](),
            *(fine(fitted[name, kind]) for kind in config.flows),
        ]
        densities = [
            np.exp(log_probs(distribution, places)).reshape(PIXELS, PIXELS)
            for distribution in distributions
        ]
        for axis, density in zip(row, densities, strict=True):
            image = axis.pcolormesh(
                edges,
                edges,
                density.T,
                cmap="magma",
                vmin=0,
                vmax=densities[0].max(),
                rasterized=True,
            )
        bar = figure.colorbar(image, ax=row, pad=0.01)
        bar.set_label("density (1 / data unit²)", fontsize=9)
    label(config, axes, results, "exact density")
    figure.suptitle("Densities: exact, and of fitted flows", fontsize=13)
    return figure


def draw_samples(config: Config, fitted: dict, results: dict) -> Any:
    """Draw as many samples of the exact density as of each flow, one row per
    target.
    """
    figure, axes = grid_of_axes(config)
    keys = jax.random.split(
        jax.random.fold_in(jax.random.key(config.seed), 1_000), DRAWN
    )
    for row, name in zip(axes, config.targets, strict=True):
        draws = [samples(config, name, 2, DRAWN)]
        draws += [
            map_examples(_sample, fine(fitted[name, kind]), (keys,), chunk=DRAWN)
            for kind in config.flows
        ]
        for axis, xs in zip(row, draws, strict=True):
            axis.scatter(
                *np.asarray(xs).T,
                s=1.2,
                alpha=0.5,
                linewidths=0,
                color="#26456e",
                rasterized=True,
            )
    label(config, axes, results, "exact samples")
    figure.suptitle(f"{DRAWN} samples: exact, and of fitted flows", fontsize=13)
    return figure


def grid_of_axes(config: Config) -> Any:
    """A figure with one row per target, and columns for the truth and each flow."""
    rows, columns = len(config.targets), 1 + len(config.flows)
    size = (2.5 * columns + 1.0, 3.0 * rows + 0.7)
    return plt.subplots(
        rows,
        columns,
        figsize=size,
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )


def label(config: Config, axes: Any, results: dict, truth: str) -> None:
    """Set titles with the gaps, axis labels with units, and one window for all."""
    for row, name in zip(axes, config.targets, strict=True):
        entropy = results[name][config.flows[0]]["entropy"]
        row[0].set_title(f"{truth}\nentropy {entropy:.3f} nats", fontsize=10)
        for axis, kind in zip(row[1:], config.flows, strict=True):
            axis.set_title(
                f"{KINDS[kind].title}\ngap {results[name][kind]['gap']:.3f} nats",
                fontsize=10,
            )
        row[0].set_ylabel(f"{name.replace('_', ' ')}\n$x_2$ (data units)")
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$ (data units)")
    for axis in axes.flat:
        axis.set(
            xlim=(-HALF_SIDE, HALF_SIDE), ylim=(-HALF_SIDE, HALF_SIDE), aspect="equal"
        )


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
