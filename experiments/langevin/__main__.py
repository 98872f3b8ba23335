"""Which errors do Langevin chains make, and do a Metropolis step and annealing
correct them?

    python -m experiments.langevin [--chains 1000] [--steps 1000] [--out DIR] [--seed N]

Every distribution is known exactly: a Gaussian, a two-mode mixture on the line
whose moments come by quadrature, and two far modes in the plane. Unadjusted
chains converge to another distribution, the further from the target the longer
the step, or diverge. A Metropolis step removes that bias at any step size, and
BAOAB has none on a Gaussian.

No such chain crosses between far modes. Annealed dynamics gets their weights
nearly right. Annealed importance sampling corrects the weights of its chains
by importance weights, and gets log Z as well. Figures in OUT:

- paths.png: one chain of each kind over the exact density of a mixture in the
  plane.
- histogram.png: all chains' states on the mixture on the line against its
  exact density, at a long step.
- bias.png: error of the mean square against step size, on the Gaussian beside
  ULA's exact distribution, and on the mixture. Crosses mark chains that
  diverged, which enter no average.
- modes.png: positions of chains on two far modes of weight 0.8 and 0.2, by
  four ways of sampling.

Hardware and time: a minute and a half on 2 CPU cores.

Expect on N(0, 1) at ε = 1 the mean square 1.333 = 1/(1 − ε/4) of ULA, and 1 of
MALA, BAOAB and underdamped chains, all within a standard error of 0.0025. On
the line at ε = 0.5 histograms are off by 0.23 (ULA), 0.03 (BAOAB), 0.012
(MALA) and 0.009 (underdamped), exact draws by 0.01. There ULA and BAOAB
diverge from ε = 2 on.

The heavy mode, of weight 0.8, gets 0.52 of MALA's chains, 0.79 of the annealed
ones and 0.79 by annealed importance sampling, all ± 0.015. Without its weights
the last would give it 0.54.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from diffjax import checks, langevin, ncsn, numerics, quadrature, schedules, targets
from experiments.shared import chains as shared_chains
from experiments.shared import cli, devices, files
from experiments.shared.figures import PALE_GREYS, save_figure

KERNELS: dict[str, tuple[str, Callable, Callable, str]] = {
    "ula": ("ULA", langevin.ula, lambda e: e, "#b5482a"),
    "mala": ("MALA", langevin.mala, lambda e: e, "#1f4e79"),
    "baoab": ("BAOAB", langevin.baoab, math.sqrt, "#c9952b"),
    "underdamped": (
        "underdamped, adjusted",
        langevin.underdamped,
        math.sqrt,
        "#3c8d5a",
    ),
}
"""name -> (title, factory, its step size for ε, colour).

A kinetic step h moves as far as a Langevin step of ε = h².
"""

LINE = ((0.4, 0.6), ((-1.5,), (1.0,)), (0.4, 0.7))
PLANE = ((0.4, 0.35, 0.25), ((1.5, 0.0), (-1.0, 0.5), (0.0, -2.0)), (0.5, 0.7, 0.4))
HEAVY, FAR = 0.8, 5.0
BOUNDS, CELLS = (-5.0, 5.0), 80
LONG = 0.5
"""ε of the histograms and the paths."""
PATH_STEPS, WARM_UP = 150, 100
FAR_GONE = 1e3
"""A chain whose last position is this far from 0, in root mean squares of the
target, has diverged.
"""


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    """Langevin chains against exact distributions: paths, histograms, biases, and
    far modes.
    """

    out: pathlib.Path = pathlib.Path("runs/langevin")
    """Folder for figures, config.json and metrics.json."""
    seed: int = 0
    """Seed of all draws."""
    chains: int = 1000
    """Chains of each kind."""
    steps: int = 1000
    """Steps of each chain, a multiple of 10, after a warm-up of 100."""
    step_sizes: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0)
    """ε of the comparison of biases, in squared data units, below 4."""
    levels: int = 40
    """Levels of annealing between a broad Gaussian and the far modes."""


def run(config: Config) -> dict[str, Any]:
    """Run all chains, measure and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    check(config)
    out = files.start(config)
    clock, line = cli.Clock(), targets.gaussian_mixture(*LINE)
    with cli.progress(
        2 + len(KERNELS) * (1 + 2 * len(config.step_sizes)), label="chains", unit="run"
    ) as bar:
        histograms, counts = on_a_line(config, line, bar)
        clock.lap("histograms")
        biases = {
            "gaussian": bias(config, targets.gaussian([0.0], 1.0), bar),
            "mixture": bias(config, line, bar),
        }
        clock.lap("bias")
        paths = {name: path(config, name) for name in KERNELS}
        bar.update()
        modes, places = far_modes(config)
        bar.update()
        clock.lap("far modes")
    metrics = {
        "histograms": histograms,
        "bias": biases,
        "heavy_mode": modes,
        "seconds": clock.laps,
    }
    files.write_json(out / "metrics.json", metrics)
    save_figure(draw_paths(paths), out / "paths.png")
    save_figure(draw_histograms(line, counts, histograms), out / "histogram.png")
    save_figure(draw_bias(config, biases), out / "bias.png")
    save_figure(draw_modes(places, modes), out / "modes.png")
    print_results(metrics)
    return metrics


def check(config: Config) -> None:
    """Raise ValueError for flags that are out of range."""
    checks.integer("chains", config.chains, 50)
    checks.integer("levels", config.levels, 2)
    if config.steps < 10 or config.steps % 10:
        raise ValueError(f"steps must be a positive multiple of 10, got {config.steps}")
    if not config.step_sizes:
        raise ValueError("step_sizes must hold at least one size, got none")
    for size in config.step_sizes:
        if not 0 < size < 4:
            raise ValueError(
                "step_sizes must lie between 0 and 4, beyond which ULA diverges, got "
                f"{size}"
            )


def key_of(config: Config, purpose: str) -> jax.Array:
    """The key of one purpose."""
    return jax.random.fold_in(
        jax.random.key(config.seed), sum(i * ord(c) for i, c in enumerate(purpose, 1))
    )


def exact_samples(key: jax.Array, target: Any, count: int) -> jax.Array:
    """Exact draws, (count, D)."""
    return jax.jit(jax.vmap(target.sample))(jax.random.split(key, count))


def kernel_of(name: str, target: Any, size: float) -> langevin.Kernel:
    """The kernel that moves by ε = size."""
    _, factory, scale, _ = KERNELS[name]
    return factory(target, scale(size))


def chains(
    config: Config, name: str, target: Any, size: float, thinning: int = 1
) -> langevin.Chains:
    """All chains of a kernel from exact draws of the target. They may leave it
    and diverge.
    """
    starts = exact_samples(key_of(config, "starts"), target, config.chains)
    kernel = kernel_of(name, target, size)
    return shared_chains.run_many(
        key_of(config, name),
        kernel,
        starts,
        config.steps,
        thinning=thinning,
        warm_up=WARM_UP,
    )


# ---------------------------------------------------------------- measurements


def on_a_line(
    config: Config, line: Any, bar: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Distance ½Σ|frequency − probability| of each kernel's histogram, and of as
    many exact draws.
    """
    edges = np.linspace(*BOUNDS, CELLS + 1)
    mass = np.array(
        [
            float(
                jnp.exp(
                    quadrature.log_integral(line.log_prob, [pair], 8, tolerance=None)
                )
            )
            for pair in pairs(edges)
        ]
    )
    results, counts = {}, {}
    for name in KERNELS:
        result = chains(config, name, line, LONG, thinning=10).check()
        counts[name] = frequencies(result.samples, edges)
        results[name] = {
            "distance": float(0.5 * np.abs(counts[name] - mass).sum()),
            "acceptance": float(result.acceptance.mean()),
            "effective_sample_size": float(
                langevin.effective_sample_size(result.samples)[0]
            ),
            "r_hat": float(langevin.r_hat(result.samples)[0]),
        }
        bar.update()
    exact = exact_samples(
        key_of(config, "exact"), line, config.chains * config.steps // 10
    )
    results["exact"] = {
        "distance": float(0.5 * np.abs(frequencies(exact, edges) - mass).sum())
    }
    return results, counts


def pairs(edges: np.ndarray) -> np.ndarray:
    """Cells as pairs of edges, (N, 2)."""
    return np.stack([edges[:-1], edges[1:]], -1)


def frequencies(samples: Any, edges: np.ndarray) -> np.ndarray:
    """The share of samples in each cell."""
    return np.histogram(np.asarray(samples).ravel(), edges)[0] / np.size(samples)


def bias(config: Config, target: Any, bar: Any) -> dict[str, Any]:
    """Relative error of the mean square by kernel and step size, with its
    standard error between chains.

    It is None where a chain diverged, and the number of those is reported.
    """
    exact = float(
        quadrature.integrate(
            lambda x: x[0] ** 2 * jnp.exp(target.log_prob(x)), [(-9, 9)], 400
        )
    )
    biases = {}
    for name in KERNELS:
        rows = []
        for size in config.step_sizes:
            result = chains(config, name, target, size)
            row: dict[str, Any] = {
                "step_size": size,
                "bias": None,
                "standard_error": None,
            }
            # A chain that diverges overflows late. Its size shows it long before.
            gone = ~(
                np.abs(np.asarray(result.samples[:, -1, 0]))
                < FAR_GONE * math.sqrt(exact)
            )
            if not gone.any():
                means = np.asarray(jnp.mean(result.samples**2, (1, 2)), np.float64)
                row["standard_error"] = numerics.standard_error(means) / exact
                row["bias"] = means.mean() / exact - 1
            else:
                row["diverged"] = int(gone.sum())
            rows.append(row)
            bar.update()
        biases[name] = rows
    return {"mean_square": exact, "kernels": biases}


def path(config: Config, name: str) -> np.ndarray:
    """One chain on the mixture in the plane, (steps, 2)."""
    kernel = kernel_of(name, targets.gaussian_mixture(*PLANE), LONG / 5)
    return np.asarray(
        langevin.run(key_of(config, "path"), kernel, jnp.array([1.5, 0.0]), PATH_STEPS)
        .check()
        .samples
    )


def far_modes(
    config: Config,
) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The heavy mode's share by exact draws, MALA, annealed dynamics and annealed
    importance sampling.

    All start in N(0, 5²), and all but the exact draws make levels · 20 steps.
    The noise ladder falls from σ = 10 to 0.1 as in `ncsn`. Importance sampling
    passes through p_0^{1−β} p^β, β = (k/K)², with weights.

    Returns:
      (shares, positions and their weights).
    """
    target = targets.gaussian_mixture(
        [HEAVY, 1 - HEAVY], [[FAR, FAR], [-FAR, -FAR]], [1.0, 1.0]
    )
    base, per_level = targets.gaussian([0.0, 0.0], FAR), 20
    starts = exact_samples(key_of(config, "broad"), base, config.chains)
    steps, uniform = (
        config.levels * per_level,
        np.full(config.chains, 1 / config.chains),
    )
    sigmas = ncsn.geometric_sigmas(config.levels, 0.1, 10.0)[::-1]
    schedule = schedules.edm(0.05, 20.0)
    ladder = langevin.annealed(
        [target.noised(schedule, s) for s in sigmas], 0.3 * (1 + sigmas**2), per_level
    )
    betas = np.linspace(0, 1, config.levels + 1) ** 2
    weighed = shared_chains.annealed_importance_sampling(
        key_of(config, "weights"),
        base,
        target,
        betas,
        make_kernel=lambda density, beta: langevin.mala(density, 1.0),
        count=config.chains,
        steps=per_level,
    )
    plain = shared_chains.run_many(
        key_of(config, "plain"), langevin.mala(target, 1.0), starts, steps, thinning=10
    ).check()
    moved = shared_chains.run_many(
        key_of(config, "annealed"), ladder, starts, steps, thinning=steps
    ).check()
    places = {
        "exact": (
            exact_samples(key_of(config, "modes"), target, config.chains),
            uniform,
        ),
        "mala": (plain.samples[:, -1], uniform),
        "annealed": (moved.samples[:, -1], uniform),
        "importance": (
            weighed.samples,
            np.asarray(jax.nn.softmax(weighed.log_weights)),
        ),
    }
    places = {name: (np.asarray(x), w) for name, (x, w) in places.items()}
    results: dict[str, Any] = {name: share(*pair) for name, pair in places.items()}
    results["importance"]["unweighted"] = share(places["importance"][0], uniform)[
        "share"
    ]
    results["importance"]["log_z"] = float(weighed.log_z)
    results["importance"]["log_z_standard_error"] = float(weighed.standard_error)
    results["mala"]["r_hat"] = float(langevin.r_hat(plain.samples).max())
    return results, places


def share(x: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """The weight of positions on the heavy mode's side, and its standard error √Σ
    w²(1[x] − share)².
    """
    heavy = x.sum(-1) > 0
    estimate = float(weights @ heavy)
    return {
        "share": estimate,
        "standard_error": float(np.sqrt(weights**2 @ (heavy - estimate) ** 2)),
    }


def exact_bias(name: str, size: np.ndarray) -> np.ndarray:
    """Relative bias of the variance on N(0, 1): ε/4 / (1 − ε/4) of ULA, none of
    the others.
    """
    return size / 4 / (1 - size / 4) if name == "ula" else np.zeros_like(size)


def print_results(metrics: dict[str, Any]) -> None:
    """Print the tables."""
    print(
        f"\non the line at ε = {LONG}: distance to the exact histogram, exact draws ",
        end="",
    )
    print(f"{metrics['histograms']['exact']['distance']:.4f}")
    for name in KERNELS:
        row = metrics["histograms"][name]
        print(
            f"{KERNELS[name][0]:24}{row['distance']:.4f}   accepted "
            f"{row['acceptance']:.3f}   R̂ {row['r_hat']:.4f}"
        )
    for distribution, by_kernel in metrics["bias"].items():
        print(f"\nrelative bias of E x² on the {distribution} (± standard error), by ε")
        for name, rows in by_kernel["kernels"].items():
            print(f"{KERNELS[name][0]:24}" + "".join(map(cell, rows)))
    print(f"\nheavy mode's share, exactly {HEAVY}")
    for name, row in metrics["heavy_mode"].items():
        print(f"{TITLES[name]:32}{row['share']:.3f} ± {row['standard_error']:.3f}")


def cell(row: dict[str, Any]) -> str:
    """A bias with its error, or the number of chains that diverged."""
    if row["bias"] is None:
        return f"{row['diverged']:9d} diverged"
    return f"{row['bias']:+9.4f} ± {row['standard_error']:.4f}"


# --------------------------------------------------------------------- figures

TITLES = {
    "exact": "exact draws",
    "mala": "MALA",
    "annealed": "annealed Langevin dynamics",
    "importance": "annealed importance sampling",
}


def draw_paths(paths: dict[str, np.ndarray]) -> Any:
    """Draw one chain of each kind over the density."""
    target, extent = targets.gaussian_mixture(*PLANE), 3.6
    figure, axes = plt.subplots(
        1,
        len(paths),
        figsize=(3.4 * len(paths), 3.7),
        sharey=True,
        layout="constrained",
    )
    for axis, (name, x) in zip(axes, paths.items(), strict=True):
        shade(axis, target, extent)
        axis.plot(*x.T, color=KERNELS[name][3], lw=0.8, marker="o", ms=2)
        axis.set_title(KERNELS[name][0], fontsize=10)
        axis.set_xlabel("$x_1$ (data units)")
    axes[0].set_ylabel("$x_2$ (data units)")
    figure.suptitle(
        f"One chain of {PATH_STEPS} steps, ε = {LONG / 5:g}, over the exact density"
    )
    return figure


def shade(axis: Any, target: Any, extent: float) -> None:
    """Draw the density in pale greys."""
    side = np.linspace(-extent, extent, 120)
    places = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    density = np.exp(jax.jit(jax.vmap(target.log_prob))(places)).reshape(120, 120)
    axis.pcolormesh(side, side, density.T, cmap=PALE_GREYS, rasterized=True)
    axis.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")


def draw_histograms(
    line: Any, counts: dict[str, np.ndarray], results: dict[str, Any]
) -> Any:
    """Draw histograms of all kept states against the density."""
    edges = np.linspace(*BOUNDS, CELLS + 1)
    x = np.linspace(*BOUNDS, 500)
    density = np.exp(jax.vmap(line.log_prob)(x[:, None]))
    figure, axes = plt.subplots(
        1,
        len(counts),
        figsize=(3.4 * len(counts), 3.2),
        sharey=True,
        layout="constrained",
    )
    for axis, (name, count) in zip(axes, counts.items(), strict=True):
        axis.stairs(
            count / np.diff(edges), edges, fill=True, color=KERNELS[name][3], alpha=0.45
        )
        axis.plot(x, density, color="black", lw=1.2)
        axis.set(xlabel="$x$ (data units)", xlim=(-4, 4))
        distance, floor = results[name]["distance"], results["exact"]["distance"]
        axis.set_title(
            f"{KERNELS[name][0]}\noff by {distance:.4f}, exact draws {floor:.4f}",
            fontsize=9,
        )
    axes[0].set_ylabel("density (1 / data unit)")
    figure.suptitle(
        f"States of all chains at ε = {LONG:g} against the exact density (line)"
    )
    return figure


def draw_bias(config: Config, biases: dict[str, Any]) -> Any:
    """Draw the relative bias against step size. Lines are the exact biases of the
    steps.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
    fine = np.geomspace(min(config.step_sizes), max(config.step_sizes), 100)
    for axis, (distribution, by_kernel) in zip(axes, biases.items(), strict=True):
        # Below 0, so that every bar is visible, however few the chains.
        lowest = -0.05
        for i, (name, rows) in enumerate(by_kernel["kernels"].items()):
            title, _, _, colour = KERNELS[name]
            gone = [row["step_size"] for row in rows if row["bias"] is None]
            settled = [row for row in rows if row["bias"] is not None]
            sizes, values, errors = (
                np.array([row[entry] for row in settled])
                for entry in ("step_size", "bias", "standard_error")
            )
            axis.plot(
                gone,
                [5.0 + i for _ in gone],
                "x",
                color=colour,
                label=f"{title}: diverged" if gone else None,
            )
            lowest = min([lowest, *(1.2 * (values - 2 * errors))])
            # Moved apart, so that the bars do not hide each other.
            moved = sizes * 1.04 ** (i - 1.5)
            axis.errorbar(
                moved,
                values,
                2 * errors,
                fmt="o",
                ms=4,
                color=colour,
                label=title,
                capsize=2,
            )
            if distribution == "gaussian" and name == "ula":
                axis.plot(
                    fine,
                    exact_bias(name, fine),
                    color=colour,
                    lw=1,
                    label="ULA's exact value, 1/(1 − ε/4)",
                )
            if distribution == "mixture":
                axis.plot(moved, values, color=colour, lw=0.6)
        axis.axhline(0, color="black", lw=0.6)
        axis.set_xscale("log")
        axis.set_yscale("symlog", linthresh=0.02)
        axis.set_xlabel("step size ε, or h² of kinetic chains (squared data units)")
        axis.set_ylabel("relative error of E x², ± 2 standard errors")
        axis.set_title(
            "N(0, 1)" if distribution == "gaussian" else "two modes on the line",
            fontsize=10,
        )
        axis.set_ylim(lowest, 10)
        axis.legend(frameon=False, fontsize=8)
    return figure


def draw_modes(places: dict[str, tuple], modes: dict[str, Any]) -> Any:
    """Draw the positions of the chains, sized by their weights."""
    figure, axes = plt.subplots(
        1,
        len(places),
        figsize=(3.2 * len(places), 4.2),
        sharey=True,
        layout="constrained",
    )
    for axis, (name, (x, weights)) in zip(axes, places.items(), strict=True):
        axis.scatter(
            *x.T,
            s=3 * weights * len(weights),
            alpha=0.4,
            linewidths=0,
            color="#26456e",
            rasterized=True,
        )
        row = modes[name]
        axis.set_title(
            f"{TITLES[name]}\nheavy mode {row['share']:.3f} ± "
            f"{row['standard_error']:.3f}",
            fontsize=9,
        )
        axis.set(
            xlim=(-10, 10), ylim=(-10, 10), aspect="equal", xlabel="$x_1$ (data units)"
        )
    axes[0].set_ylabel("$x_2$ (data units)")
    figure.suptitle(
        f"Two far modes, the upper of weight {HEAVY}; dots of importance sampling are "
        "as large as their weight"
    )
    return figure


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
