"""Posterior samplers against exact posteriors: a correlated Gaussian and two
moons in 2-D.

Nothing is trained. The denoisers of the prior and of the posterior, a mixture,
are exact. Both problems observe x_1 with noise τ, in data units. Steps are
small, so that the distance of a method's samples from the exact posterior is
the method's error.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np

import diffjax as dj
from diffjax import grids, inverse, metrics, solvers, targets
from experiments.shared import cli, devices
from experiments.shared.figures import grid_points, save_figure

NOISE_STD = 0.2
"""τ, in data units."""

STEP_SIZE = 0.3
"""ζ of DPS by its paper's steps. No noise level enters it, so no value fits all τ
and grids.
"""

SCHEDULE = dj.schedules.vp_linear(t_min=1e-4)
SETS = 5
"""Further sets of exact samples. Their distances to another set are the floor."""


class ExactPosterior(NamedTuple):
    """A prior, the observation y of its x_1, and the exact posterior."""

    prior: targets.Mixture
    operator: inverse.LinearOperator
    y: np.ndarray
    posterior: targets.Mixture


def problem(prior: targets.Mixture, observed: float) -> ExactPosterior:
    """The problem in which x_1 of `prior` was observed as `observed`."""
    operator, y = inverse.inpainting([True, False]), np.array([observed], np.float32)
    return ExactPosterior(
        prior, operator, y, inverse.exact_posterior(prior, operator, y, NOISE_STD)
    )


PROBLEMS: dict[str, Callable[[], ExactPosterior]] = {
    "Gaussian": lambda: problem(
        targets.gaussian([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]]), 1.5
    ),
    "two moons": lambda: problem(targets.moons(nodes=32), 0.5),
}


class ExactMethod(NamedTuple):
    """A denoiser of an exact or approximate posterior, and the solver for it."""

    denoiser: Any
    solver: solvers.Solver
    grid: Any


def methods(p: ExactPosterior, steps: int) -> dict[str, ExactMethod]:
    """Every method of `diffjax.inverse` on one problem."""
    prior = targets.denoiser(p.prior, SCHEDULE)
    grid = grids.to_zero(grids.log_snr(SCHEDULE, steps))
    spread = float(np.sqrt(np.trace(np.asarray(p.prior.covariance())) / 2))
    replaced = inverse.replacement(prior, p.operator, p.y)
    guided = functools.partial(_guided, prior, p)
    variance = inverse.gaussian_variance(SCHEDULE, spread)
    return {
        "exact posterior's denoiser": ExactMethod(
            targets.denoiser(p.posterior, SCHEDULE), solvers.heun(), grid
        ),
        "ΠGDM": ExactMethod(
            guided(inverse.pigdm, variance=variance), solvers.heun(), grid
        ),
        "DPS": ExactMethod(guided(inverse.dps), solvers.heun(), grid),
        "DPS, paper's steps": ExactMethod(
            inverse.dps_steps(
                SCHEDULE, prior, p.operator, p.y, grid=grid, step_size=STEP_SIZE
            ),
            solvers.ddpm(),
            grid,
        ),
        "replacement": ExactMethod(replaced, solvers.ddpm(), grid),
        "RePaint": ExactMethod(replaced, inverse.repaint(), grid),
    }


def _guided(prior, p, make, **settings):
    return make(SCHEDULE, prior, p.operator, p.y, noise_std=NOISE_STD, **settings)


def exact_samples(key: jax.Array, p: ExactPosterior, count: int) -> jax.Array:
    """Draws of the exact posterior, (count, 2)."""
    return jax.vmap(p.posterior.sample)(jax.random.split(key, count))


def measure(p: ExactPosterior, xs: Any, reference: Any) -> dict[str, Any]:
    """Errors of mean and covariance of samples, and their energy distance to exact
    samples.
    """
    centred = np.asarray(xs, np.float64)
    return {
        "mean": centred.mean(0),
        "covariance": np.cov(centred.T),
        "mean_error": float(
            np.linalg.norm(centred.mean(0) - np.asarray(p.posterior.mean()))
        ),
        "covariance_error": float(
            np.linalg.norm(np.cov(centred.T) - np.asarray(p.posterior.covariance()))
        ),
        "energy_distance": float(metrics.energy_distance(xs, reference)),
    }


def run(out: Any, seed: int, count: int, steps: int) -> dict[str, dict[str, Any]]:
    """Sample every method on both problems, print the tables and write
    posteriors.png.

    Returns:
      The numbers by problem.
    """
    results: dict[str, dict[str, Any]] = {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    problems = {name: make() for name, make in PROBLEMS.items()}
    with cli.progress(
        6 * len(problems), label="exact posteriors", unit="method"
    ) as bar:
        for i, (name, p) in enumerate(problems.items()):
            keys = jax.random.split(
                jax.random.fold_in(jax.random.key(seed), i), SETS + 2
            )
            reference, *others = (exact_samples(key, p, count) for key in keys[1:])
            floor = [measure(p, xs, reference) for xs in others]
            largest = {
                k: max(row[k] for row in floor)
                for k in ("mean_error", "covariance_error", "energy_distance")
            }
            results[name], drawn[name] = {"exact samples, largest": largest}, {}
            for method, (denoiser, solver, grid) in methods(p, steps).items():
                bar.set_postfix_str(method)
                xs = dj.sample_many(
                    keys[0],
                    count,
                    denoiser,
                    SCHEDULE,
                    solver=solver,
                    grid=grid,
                    shape=(2,),
                    mesh=devices.mesh(),
                )
                xs = drawn[name][method] = devices.on_host(xs)
                results[name][method] = measure(p, xs, reference)
                bar.update()
    save_figure(draw(problems, drawn), out / "posteriors.png")
    print_results(problems, results)
    return results


def print_results(
    problems: dict[str, ExactPosterior], results: dict[str, dict[str, Any]]
) -> None:
    """Print the distances of each method's samples from the exact posterior, one
    table per problem.
    """
    for name, rows in results.items():
        exact = problems[name].posterior
        print(
            f"\n{name}: posterior mean {np.asarray(exact.mean()).round(3)}, variances",
            end=" ",
        )
        print(np.diag(np.asarray(exact.covariance())).round(4))
        print(
            f"{'':28}{'mean off by':>12}{'covariance':>12}"
            f"{'energy distance²':>18}{'variances':>22}"
        )
        for method, row in rows.items():
            variances = (
                f"{np.diag(row['covariance']).round(4)!s:>22}"
                if "covariance" in row
                else ""
            )
            print(
                f"{method:28}{row['mean_error']:12.4f}{row['covariance_error']:12.4f}{row['energy_distance']:18.5f}"
                + variances
            )


def draw(
    problems: dict[str, ExactPosterior], drawn: dict[str, dict[str, np.ndarray]]
) -> Any:
    """Draw samples over the exact posterior's density, one row per problem and
    one column per method.

    Lines are contours of the prior.
    """
    columns = len(next(iter(drawn.values())))
    figure, axes = plt.subplots(
        len(drawn),
        columns,
        figsize=(2.65 * columns, 3.1 * len(drawn)),
        squeeze=False,
        sharex="row",
        sharey="row",
        layout="constrained",
    )
    for row, (name, sets) in zip(axes, drawn.items(), strict=True):
        p = problems[name]
        side = 1.1 * max(float(np.abs(p.prior.means).max()) + 0.6, 2.4)
        edges = np.linspace(-side, side, 181)
        centres = 0.5 * (edges[1:] + edges[:-1])
        points = grid_points(centres)
        posterior, prior = (
            np.exp(np.asarray(jax.jit(jax.vmap(distribution.log_prob))(points)))
            .reshape(180, 180)
            .T
            for distribution in (p.posterior, p.prior)
        )
        for axis, (method, xs) in zip(row, sets.items(), strict=True):
            axis.pcolormesh(
                edges,
                edges,
                posterior,
                cmap="Oranges",
                vmax=1.3 * posterior.max(),
                rasterized=True,
            )
            axis.contour(
                centres,
                centres,
                prior / prior.max(),
                (0.1, 0.3, 0.5, 0.7, 0.9),
                colors="#9a9a9a",
                linewidths=0.5,
            )
            axis.scatter(*xs[:500].T, s=2.5, color="#1f4e79", alpha=0.55, linewidths=0)
            axis.axvline(p.y[0], color="black", lw=0.6, ls=":")
            axis.set_aspect("equal")
            axis.set(xlim=(-side, side), ylim=(-side, side), title=method)
            axis.title.set_fontsize(10)
        row[0].set_ylabel(f"{name}\n$x_2$ (data units)")
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$ (data units), observed")
    figure.suptitle(
        "500 samples (blue) over the exact posterior (orange) of $y = x_1 + "
        f"{NOISE_STD}\\,n$ (dotted); grey: the prior"
    )
    return figure
