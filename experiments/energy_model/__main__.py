"""Which objective fits an energy best, and how accurate are estimates of its
normaliser?

    python -m experiments.energy_model [--target moons] [--objectives denoising exact]

An energy network log p̃(x) = −½‖x − f(x)‖² is fitted to samples of a density
in the plane by denoising, sliced and exact score matching and by contrastive
divergence with persistent MALA chains. In two dimensions quadrature normalises
the learned density, so that its KL divergence from the truth is known in nats.

Where quadrature is impossible, annealed importance sampling and thermodynamic
integration estimate log Z. Here they can be compared with it. Figures in OUT:

- densities.png: the exact density and each learned one, with KL(p‖q).
- log_z.png: estimates of log Z less the one by quadrature, against the number
  of levels, with ± 2 standard errors.

Hardware and time: about 2 minutes on 2 CPU cores. A run resumes from its
checkpoints.

Expect on moons KL(p‖q) of 0.04 nats by denoising (0.02 from the noised data,
which is what it fits), 0.03 by sliced and 0.01 by exact score matching, 0.015
by contrastive divergence. The best Gaussian has 0.90. Expect log Z by either
method within 0.03 ± 0.025 of quadrature at 128 levels, within 0.2 ± 0.1 at 8.
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

from diffjax import (
    checks,
    divergences,
    energies,
    langevin,
    quadrature,
    schedules,
    targets,
)
from diffjax.networks import MLP
from experiments.shared import chains as shared_chains
from experiments.shared import cli, devices, files, training
from experiments.shared.datasets import TOYS
from experiments.shared.figures import save_figure

TITLES = {
    "denoising": "denoising score matching",
    "sliced": "sliced score matching",
    "exact": "exact score matching",
    "contrastive": "contrastive divergence",
}
COLOURS = {
    "denoising": "#1f4e79",
    "sliced": "#c9952b",
    "exact": "#3c8d5a",
    "contrastive": "#b5482a",
}
BOUNDS, POINTS, TOLERANCE = ((-10.0, 10.0), (-10.0, 10.0)), 600, 1e-3
EXTENT, PIXELS = 4.6, 140
BROAD = 3.0
"""Standard deviation in data units of the Gaussian where chains restart and
annealing begins.
"""


@dataclasses.dataclass(frozen=True)
class Config(training.Optimisation):
    """An energy network fitted to a density in the plane, its KL and its log Z."""

    out: pathlib.Path = pathlib.Path("runs/energy_model")
    """Folder for figures, config.json, metrics.json and checkpoints."""
    seed: int = 0
    """Seed of data, networks, training and chains."""
    target: Literal["moons", "circles", "eight_gaussians"] = "moons"
    """The density of the data."""
    objectives: tuple[Literal["denoising", "sliced", "exact", "contrastive"], ...] = (
        "denoising",
        "sliced",
        "exact",
        "contrastive",
    )
    """The objectives to compare."""
    sigma: float = 0.1
    """Noise level of denoising score matching, in data units."""
    chains: int = 256
    """Persistent chains of contrastive divergence."""
    chain_steps: int = 10
    """MALA steps of each chain in a training step."""
    chain_step_size: float = 0.05
    """Initial ε of these chains, in squared data units. It then follows their
    acceptance.
    """
    restart: float = 0.01
    """Share of the chains that start anew, in N(0, 3²), in a training step."""
    penalty: float = 1e-3
    """Weight of the squares of the log densities in contrastive divergence."""
    examples: int = 65536
    """Training examples, exact samples of the density."""
    width: int = 64
    """Features of the network."""
    depth: int = 2
    """Blocks of the network."""
    steps: int = 2000
    """Training steps of each network."""
    batch_size: int = 256
    """Examples per step."""
    contrastive_rate: float = 1e-3
    """Peak learning rate of contrastive divergence, whose chains must keep up
    with the density.
    """
    learning_rate: float = 3e-3
    """Peak learning rate: linear warm-up over a tenth of the steps, then a cosine
    to 0.
    """
    save_every: int = 1000
    """Steps between checkpoints."""
    levels: tuple[int, ...] = (8, 32, 128)
    """Numbers of levels between the broad Gaussian and the learned density, for
    log Z.
    """
    walkers: int = 256
    """Chains of an estimate of log Z."""


_FIELDS = (
    "target",
    "sigma",
    "chains",
    "chain_steps",
    "chain_step_size",
    "restart",
    "penalty",
    "examples",
    "width",
    "depth",
)


def run(config: Config) -> dict[str, Any]:
    """Fit, normalise, estimate and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    check(config)
    out = files.open_folder(config)
    clock, target = cli.Clock(), TOYS[config.target]()
    fitted = {}
    for name in config.objectives:
        fitted[name] = fit(config, out, target, name)
        clock.lap(name)
    # Each `fit` wrote the configuration of its network. This is that of the
    # whole run.
    files.write_config(out, config)
    results: dict[str, Any] = {
        "objectives": {
            name: compare(config, target, distribution)
            for name, distribution in fitted.items()
        }
    }
    results["gaussian_kl"] = divergence(target, divergences.moment_matched(target))
    clock.lap("quadrature")
    with cli.progress(
        len(fitted) * 2 * len(config.levels), label="log Z", unit="estimate"
    ) as bar:
        for name, distribution in fitted.items():
            results["objectives"][name]["estimates"] = log_z_estimates(
                config, distribution, bar
            )
    clock.lap("log Z")
    results["seconds"] = clock.laps
    files.write_json(out / "metrics.json", results)
    save_figure(draw_densities(target, fitted, results), out / "densities.png")
    save_figure(draw_log_z(config, results), out / "log_z.png")
    print_results(results)
    return results


def check(config: Config) -> None:
    """Raise ValueError for flags that are out of range."""
    for name in ("objectives", "levels"):
        if not getattr(config, name):
            raise ValueError(f"{name} must hold at least one entry, got none")
    training.check_optimisation(config)
    for name in ("chains", "chain_steps", "width"):
        checks.integer(name, getattr(config, name), 1)
    checks.integer("depth", config.depth, 0)
    checks.integer("walkers", config.walkers, 2)
    checks.integer("examples", config.examples, config.batch_size)
    for count in config.levels:
        checks.integer("levels", count, 1)
    for name in ("sigma", "chain_step_size", "contrastive_rate"):
        checks.positive(name, getattr(config, name))
    checks.within("restart", config.restart, 0.0, 1.0)
    checks.non_negative("penalty", config.penalty)


# --------------------------------------------------------------------- fitting


def key_of(config: Config, number: int) -> jax.Array:
    """The key of one purpose."""
    return jax.random.fold_in(jax.random.key(config.seed), 1000 + number)


def broad() -> targets.Mixture:
    """The Gaussian where chains restart, and where those for log Z begin."""
    return targets.gaussian([0.0, 0.0], BROAD)


def distribution_of(config: Config, params: Any) -> targets.Energy:
    """The unnormalised density of a network's parameters."""
    return energies.reconstruction(
        functools.partial(image, config.width, config.depth, params)
    )


def image(width: int, depth: int, params: Any, x: jax.Array) -> jax.Array:
    """f(x), bounded because its last layer follows a layer norm."""
    return MLP(width=width, depth=depth).apply(params, x, 0.0)


def fit(config: Config, out: pathlib.Path, target: Any, name: str) -> targets.Energy:
    """Fit an energy to samples of the target by one objective."""
    data = np.asarray(
        jax.vmap(target.sample)(jax.random.split(key_of(config, 0), config.examples))
    )

    def one(distribution, key, x):
        if name == "denoising":
            return (
                energies.denoising(key, distribution, x, config.sigma) / config.sigma**2
            )
        return (
            energies.sliced(key, distribution, x)
            if name == "sliced"
            else energies.exact(distribution, x)
        )

    def loss(params, key, batch):
        distribution = distribution_of(config, params["network"])
        if name == "contrastive":
            drawn = params["chains"].xs
            drawn = drawn[jnp.arange(len(batch)) % len(drawn)]
            return jnp.mean(
                jax.vmap(
                    functools.partial(
                        energies.contrastive, distribution, penalty=config.penalty
                    )
                )(batch, drawn)
            )
        return jnp.mean(
            jax.vmap(functools.partial(one, distribution))(
                jax.random.split(key, len(batch)), batch
            )
        )

    def init(key):
        params = {
            "network": MLP(width=config.width, depth=config.depth).init(
                key, jnp.zeros(2), 0.0
            )
        }
        if name != "contrastive":
            return params
        starts = jax.vmap(target.sample)(
            jax.random.split(key_of(config, 1), config.chains)
        )
        chains = energies.persistent_chains(starts)._replace(updates=jnp.zeros(()))
        return params | {"chains": chains, "log_size": jnp.log(config.chain_step_size)}

    def move(params, key, step):
        """Move the chains, and raise or lower ε with their acceptance."""
        kernel = langevin.mala(
            distribution_of(config, params["network"]), jnp.exp(params["log_size"])
        )
        chains = params["chains"]
        chains = chains._replace(xs=devices.shared(chains.xs), updates=step)
        chains, result = energies.advance(
            key,
            chains,
            kernel,
            config.chain_steps,
            restarts=broad(),
            share=config.restart,
        )
        log_size = params["log_size"] + 0.1 * (result.acceptance.mean() - 0.574)
        return params | {
            "chains": chains._replace(updates=jnp.zeros(())),
            "log_size": log_size,
        }

    settings, before = config, None
    if name == "contrastive":
        settings, before = (
            dataclasses.replace(config, learning_rate=config.contrastive_rate),
            move,
        )
    params, _ = training.fit(
        settings,
        out,
        loss,
        init,
        arrays=data,
        fields=_FIELDS,
        label=TITLES[name],
        name=f"{name}_",
        before=before,
    )
    return distribution_of(config, params["network"])


# ------------------------------------------------------------------ comparison


def compare(
    config: Config, target: Any, distribution: targets.Energy
) -> dict[str, float]:
    """log Z by quadrature and KL(p‖q) in nats, and KL of the data with
    denoising's noise from q.
    """
    log_z, noised = (
        normaliser(distribution.log_prob),
        target.noised(schedules.edm(), config.sigma),
    )
    normalised = targets.energy(distribution.log_prob, log_z)
    return {
        "kl": divergence(target, normalised),
        "kl_from_noised": divergence(noised, normalised),
        "log_z": log_z,
    }


def normaliser(log_density: Callable) -> float:
    """log Z by quadrature."""
    return float(
        quadrature.log_integral(log_density, BOUNDS, POINTS, tolerance=TOLERANCE)
    )


def divergence(p: Any, q: Any) -> float:
    """KL(p‖q) in nats by quadrature, both normalised."""
    return float(
        divergences.kl_by_quadrature(p, q, BOUNDS, POINTS, tolerance=TOLERANCE)
    )


def mala_of(distribution: Any, beta: Any) -> langevin.Kernel:
    """MALA whose step shortens on the way from the broad Gaussian to the learned
    density.
    """
    return langevin.mala(distribution, 0.04 + 0.5 * (1 - beta) ** 2)


def log_z_estimates(
    config: Config, distribution: targets.Energy, bar: Any
) -> dict[str, list[dict[str, float]]]:
    """Estimates of log Z by number of levels.

    Annealed importance sampling and thermodynamic integration have about equal
    cost.
    """
    estimates: dict[str, list[dict[str, float]]] = {
        "importance": [],
        "thermodynamic": [],
    }
    for count in config.levels:
        betas, key = np.linspace(0, 1, count + 1) ** 2, key_of(config, count)
        ais = shared_chains.annealed_importance_sampling(
            key,
            broad(),
            distribution,
            betas,
            make_kernel=mala_of,
            count=config.walkers,
            steps=10,
        )
        estimates["importance"].append(
            {
                "levels": count,
                "log_z": float(ais.log_z),
                "standard_error": float(ais.standard_error),
                "effective_size": float(ais.effective_size),
            }
        )
        bar.update()
        few = max(2, config.walkers // 4)
        ti = shared_chains.thermodynamic_integration(
            key,
            broad(),
            distribution,
            betas,
            make_kernel=mala_of,
            count=few,
            steps=30,
            warm_up=10,
        )
        estimates["thermodynamic"].append(
            {
                "levels": count,
                "log_z": float(ti.log_z),
                "standard_error": float(ti.standard_error),
                "discretisation": float(ti.discretisation),
            }
        )
        bar.update()
    return estimates


def print_results(results: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"\nKL(p‖q) in nats; of the best Gaussian {results['gaussian_kl']:.3f}")
    for name, row in results["objectives"].items():
        print(
            f"{TITLES[name]:28}{row['kl']:.4f}   from the noised data "
            f"{row['kl_from_noised']:.4f}"
        )
    print("\nlog Z less the one by quadrature ± standard error, by number of levels")
    for name, row in results["objectives"].items():
        for kind, estimates in row["estimates"].items():
            cells = (
                f"{e['log_z'] - row['log_z']:+.3f} ± {e['standard_error']:.3f}"
                for e in estimates
            )
            print(f"{TITLES[name]:28}{kind:15}" + "   ".join(cells))


# --------------------------------------------------------------------- figures


def draw_densities(target: Any, fitted: dict[str, Any], results: dict[str, Any]) -> Any:
    """Draw the exact density and the learned ones, normalised by quadrature, in
    one scale.
    """
    side = np.linspace(-EXTENT, EXTENT, PIXELS)
    places = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    rows = results["objectives"]
    distributions = {"exact density": (target, 0.0)}
    distributions |= {
        f"{TITLES[k]}\nKL {rows[k]['kl']:.3f} nats": (distribution, rows[k]["log_z"])
        for k, distribution in fitted.items()
    }
    figure, axes = plt.subplots(
        1,
        len(distributions),
        figsize=(3.1 * len(distributions) + 0.7, 3.6),
        sharey=True,
        layout="constrained",
    )
    top = None
    for axis, (title, (distribution, log_z)) in zip(
        axes, distributions.items(), strict=True
    ):
        density = np.exp(
            jax.jit(jax.vmap(distribution.log_prob))(places) - log_z
        ).reshape(PIXELS, PIXELS)
        top = density.max() if top is None else top
        image = axis.pcolormesh(
            side, side, density.T, cmap="magma", vmin=0, vmax=top, rasterized=True
        )
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="$x_1$ (data units)", aspect="equal")
    axes[0].set_ylabel("$x_2$ (data units)")
    figure.colorbar(image, ax=axes, pad=0.01).set_label(
        "density (1 / data unit²)", fontsize=9
    )
    return figure


def draw_log_z(config: Config, results: dict[str, Any]) -> Any:
    """Draw the errors of the two estimates against the number of levels, one
    panel each.
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(9.5, 3.8), sharey=True, layout="constrained"
    )
    kinds = {
        "importance": "annealed importance sampling",
        "thermodynamic": "thermodynamic integration",
    }
    for axis, (kind, title) in zip(axes, kinds.items(), strict=True):
        for i, (name, row) in enumerate(results["objectives"].items()):
            estimates = row["estimates"][kind]
            levels = np.array([e["levels"] for e in estimates]) * 1.07 ** (i - 1.5)
            errors = [e["log_z"] - row["log_z"] for e in estimates]
            bars = [2 * e["standard_error"] for e in estimates]
            axis.errorbar(
                levels,
                errors,
                bars,
                fmt="o-",
                ms=4,
                lw=0.8,
                capsize=2,
                color=COLOURS[name],
                label=TITLES[name],
            )
        axis.axhline(0, color="black", lw=0.6)
        axis.set_xscale("log", base=2)
        axis.set_xticks(config.levels, [str(n) for n in config.levels])
        axis.set(xlabel="levels from the broad to the learned density", title=title)
    axes[0].set_ylabel("log Z less quadrature's (nats), ± 2 standard errors")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
