"""Guidance where every density is known: two pairs of distributions in one
dimension.

At each noise level the guided score is that of p_u^{1−γ} p_c^γ. At noise 0
this is the tilted density p(y|x)^γ p(x) up to a constant. Those densities are
not one distribution under growing noise, and for γ > 1 neither the flow nor
the SDE samples any of them.
"""

import functools
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy.interpolate import CubicSpline

import diffjax as dj
from diffjax import grids, guidance, metrics, solvers, targets
from experiments.shared import cli, devices
from experiments.shared.figures import save_figure
from experiments.shared.mapping import map_examples

SCALES = (1.0, 2.0, 4.0)
WIDE, NARROW, MEAN = 1.0, 0.25, 1.0
"""Variances S² and s² of the unconditional N(0, S²) and the conditional N(m, s²),
and m.
"""

SCHEDULE = dj.schedules.edm(sigma_min=1e-3, sigma_max=200.0)
STEPS = 200
COMPARED = 2048
"""Samples in each set that energy distances compare."""
SETS = 5
POINTS = np.linspace(-4.0, 5.0, 3001)


class Pair(NamedTuple):
    """The distribution of a class, p_c = p(x | y), and that of all classes, p_u."""

    conditional: targets.Mixture
    unconditional: targets.Mixture


def gaussians() -> Pair:
    """N(m, s²) and N(0, S²), where the variances of flow, SDE and tilted density
    have closed forms.
    """
    return Pair(
        targets.gaussian([MEAN], np.sqrt(NARROW)),
        targets.gaussian([0.0], np.sqrt(WIDE)),
    )


def two_classes() -> Pair:
    """A class of two modes, one of which it shares with the other class, and both
    classes equally.
    """
    weights, means, stds = (
        np.array([0.5, 0.5]),
        np.array([[-1.2], [1.2]]),
        np.array([0.35, 0.5]),
    )
    other_mean, other_std = np.array([[2.0]]), np.array([0.6])
    both = targets.gaussian_mixture(
        np.append(0.5 * weights, 0.5),
        np.concatenate([means, other_mean]),
        np.append(stds, other_std),
    )
    return Pair(targets.gaussian_mixture(weights, means, stds), both)


PAIRS = {"Gaussians": gaussians, "two classes": two_classes}


class GuidedDensities(NamedTuple):
    """Samples and densities at one scale.

    Samples (n,) are of flow and SDE. Densities at POINTS are of the flow, the
    tilted distribution and the conditional one.
    """

    flow: np.ndarray
    sde: np.ndarray
    flow_density: np.ndarray
    tilted: np.ndarray
    conditional: np.ndarray


def simulate(key: jax.Array, pair: Pair, scale: float, count: int) -> GuidedDensities:
    """Samples by `heun` and `stochastic_heun` on the exact guided denoiser, and
    densities by quadrature.

    The flow's density follows from the instantaneous change of variables,
    `dj.log_prob`.
    """
    exact = (targets.denoiser(distribution, SCHEDULE) for distribution in pair)
    # A function as scale keeps one kind of denoiser at scale 1 too.
    denoiser = guidance.classifier_free(*exact, functools.partial(constant, scale))
    grid, keys = grids.log_snr(SCHEDULE, STEPS), jax.random.split(key)
    flow, sde = (
        devices.on_host(
            dj.sample_many(
                k,
                count,
                denoiser,
                SCHEDULE,
                solver=solver,
                grid=grid,
                shape=(1,),
                mesh=devices.mesh(),
            )
        )[:, 0]
        for k, solver in zip(
            keys, (solvers.heun(), solvers.stochastic_heun()), strict=True
        )
    )
    # log_prob is smooth, so that a tenth of the points can be interpolated.
    few = POINTS[::10]
    flow_log_density = CubicSpline(
        few,
        map_examples(
            _flow_log_prob,
            (denoiser, grid),
            (few[:, None].astype(np.float32),),
            chunk=len(few),
        ),
    )(POINTS)
    log_conditional, log_unconditional = (
        np.asarray(
            _log_probs(distribution, POINTS[:, None].astype(np.float32)), np.float64
        )
        for distribution in pair
    )
    tilted = np.exp((1 - scale) * log_unconditional + scale * log_conditional)
    return GuidedDensities(
        flow,
        sde,
        np.exp(flow_log_density),
        tilted / np.trapezoid(tilted, POINTS),
        np.exp(log_conditional),
    )


def _flow_log_prob(state, x):
    denoiser, grid = state
    return dj.log_prob(denoiser, SCHEDULE, x, solver=solvers.rk4(), grid=grid)


@jax.jit
def _log_probs(distribution, xs):
    return jax.vmap(distribution.log_prob)(xs)


def constant(scale: Any, t: Any) -> Any:
    """The same scale at every time."""
    return scale


def closed_forms(scale: float) -> dict[str, float]:
    """Variances of the Gaussian pair on σ(t) = t from σ → ∞.

    flow              S^{2(1−γ)} s^{2γ} reverse SDE       ∫₀^∞ (1 +
    u/S²)^{−2(1−γ)} (1 + u/s²)^{−2γ} du tilted density    1/((1 − γ)/S² + γ/s²)
    """
    u = np.concatenate([[0.0], np.geomspace(1e-9, 1e9, 400_001)])
    decay = np.exp(
        -2 * (1 - scale) * np.log1p(u / WIDE) - 2 * scale * np.log1p(u / NARROW)
    )
    return {
        "flow": WIDE ** (1 - scale) * NARROW**scale,
        "sde": float(np.trapezoid(decay, u)),
        "tilted": 1 / ((1 - scale) / WIDE + scale / NARROW),
    }


def draw_from(density: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Samples (count, 1) of a density at POINTS, by its distribution function."""
    cumulative = np.cumsum(density)
    return np.interp(rng.uniform(size=count), cumulative / cumulative[-1], POINTS)[
        :, None
    ].astype(np.float32)


def measure(
    pair_name: str, scale: float, distributions: GuidedDensities, seed: int
) -> dict[str, Any]:
    """Means, variances and energy distances of flow and SDE.

    Distances are to the tilted distribution and to the conditional one. The
    floor is the greatest distance of SETS sets of exact samples to another
    one.
    """
    rng = np.random.default_rng(seed)
    exact, *others = (
        draw_from(distributions.tilted, rng, COMPARED) for _ in range(SETS + 1)
    )
    conditional = draw_from(distributions.conditional, rng, COMPARED)
    sets = {
        name: getattr(distributions, name)[:COMPARED, None] for name in ("flow", "sde")
    }
    distance = lambda x, y: float(metrics.energy_distance(x, y))
    mean = np.trapezoid(POINTS * distributions.tilted, POINTS)
    # Standard error of the variance of a Gaussian sample, relative to it.
    results: dict[str, Any] = {
        "scale": scale,
        "mean": {
            "flow": distributions.flow.mean(),
            "sde": distributions.sde.mean(),
            "tilted": mean,
        },
        "variance": {
            "flow": distributions.flow.var(ddof=1),
            "sde": distributions.sde.var(ddof=1),
            "tilted": np.trapezoid((POINTS - mean) ** 2 * distributions.tilted, POINTS),
        },
        "variance_relative_standard_error": np.sqrt(2 / (len(distributions.flow) - 1)),
        "distance_to_tilted": {name: distance(xs, exact) for name, xs in sets.items()}
        | {"floor": max(distance(xs, exact) for xs in others)},
        "distance_to_conditional": {
            name: distance(xs, conditional) for name, xs in sets.items()
        }
        | {"tilted": distance(exact, conditional)},
    }
    return results | (
        {"closed_form_variance": closed_forms(scale)}
        if pair_name == "Gaussians"
        else {}
    )


def run(out: Any, seed: int, count: int) -> dict[str, list[dict[str, Any]]]:
    """Simulate both pairs at every scale, print the tables and write the figure.

    Returns:
      The numbers by pair.
    """
    results: dict[str, list] = {name: [] for name in PAIRS}
    drawn: dict[str, list] = {name: [] for name in PAIRS}
    with cli.progress(
        len(PAIRS) * len(SCALES), label="exact densities", unit="density"
    ) as bar:
        for i, (name, make) in enumerate(PAIRS.items()):
            for j, scale in enumerate(SCALES):
                key = jax.random.fold_in(jax.random.key(seed), len(SCALES) * i + j)
                distributions = simulate(key, make(), scale, count)
                drawn[name].append(distributions)
                results[name].append(measure(name, scale, distributions, seed))
                bar.update()
    save_figure(draw(drawn), out / "densities.png")
    print_results(results)
    return results


def print_results(results: dict[str, list[dict[str, Any]]]) -> None:
    """Print variances of the Gaussian pair beside the closed forms, and distances
    of the two classes.
    """
    print(
        "\nvariance of N(m, ¼) guided against N(0, 1): measured ± standard error "
        "(closed form)"
    )
    for row in results["Gaussians"]:
        cells = []
        for name in ("flow", "sde", "tilted"):
            value = row["variance"][name]
            deviation = value * row["variance_relative_standard_error"]
            error = "" if name == "tilted" else f" ± {deviation:.5f}"
            cells.append(
                f"{name} {value:.5f}{error} ({row['closed_form_variance'][name]:.5f})"
            )
        print(f"  scale {row['scale']:g}:  " + "   ".join(cells))
    print(
        "energy distance of two classes' guided samples, to the tilted density "
        "(floor: exact samples) and to p(x|y)"
    )
    for row in results["two classes"]:
        to_tilted, to_conditional = (
            row["distance_to_tilted"],
            row["distance_to_conditional"],
        )
        print(
            f"  scale {row['scale']:g}:  to tilted: flow {to_tilted['flow']:.4f}, SDE "
            f"{to_tilted['sde']:.4f}, floor "
            f"{to_tilted['floor']:.4f}   to p(x|y): flow {to_conditional['flow']:.4f}, "
            f"SDE {to_conditional['sde']:.4f}"
        )


def draw(drawn: dict[str, list[GuidedDensities]]) -> Any:
    """Draw histograms and densities, one row per pair and one column per scale."""
    figure, axes = plt.subplots(
        len(drawn), len(SCALES), figsize=(13.5, 6.6), sharex=True, layout="constrained"
    )
    for row, (name, all_laws) in zip(axes, drawn.items(), strict=True):
        for axis, scale, distributions in zip(row, SCALES, all_laws, strict=True):
            top = 1.08 * max(
                distributions.flow_density.max(),
                distributions.tilted.max(),
                distributions.conditional.max(),
            )
            bins = np.linspace(-2.5, 3.5, 121)
            width = bins[1] - bins[0]
            density = lambda xs, bins=bins, width=width: (
                np.histogram(xs, bins)[0] / len(xs) / width
            )
            axis.stairs(
                density(distributions.flow),
                bins,
                fill=True,
                color="#a9c8e6",
                label="flow, samples",
            )
            axis.plot(
                POINTS,
                distributions.flow_density,
                color="#1f4e79",
                lw=1.4,
                label="flow, density by log_prob",
            )
            axis.stairs(
                density(distributions.sde),
                bins,
                color="#5a9f4e",
                lw=1.2,
                label="reverse SDE, samples",
            )
            axis.plot(
                POINTS,
                distributions.tilted,
                color="#c0392b",
                lw=1.6,
                ls="--",
                label="p(y|x)$^γ$ p(x), normalised",
            )
            axis.plot(
                POINTS,
                distributions.conditional,
                color="black",
                lw=1,
                ls=":",
                label="p(x|y)",
            )
            axis.set(
                xlim=(-2.5, 3.5), ylim=(0, top), title=f"{name}, scale γ = {scale:g}"
            )
        row[0].set_ylabel("density (1 / data unit)")
    for axis in axes[-1]:
        axis.set_xlabel("x (data units)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        "What the exact guided score samples, and the tilted density that it is the "
        "score of at noise 0"
    )
    return figure
