"""Errors of a solver for `bench_solvers`: start by start, in distribution, or
from samples.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from diffjax import metrics, numerics
from experiments.bench_solvers.problems import SolverTask


def flow_error(task: SolverTask, ends: Any) -> tuple:
    """("rms", root mean square error over starts and entries, its interval, 0,
    details).
    """
    squares = np.mean(
        (np.asarray(ends) - np.asarray(task.ends)).reshape(len(ends), -1) ** 2, -1
    )
    error, interval = root_mean(squares)
    return "rms", error, interval, 0.0, {"largest": float(np.sqrt(squares.max()))}


def root_mean(squares: np.ndarray) -> tuple[float, tuple[float, float]]:
    """√mean and its 95 % interval, by the standard error of the mean."""
    mean, spread = (
        float(squares.mean()),
        1.96 * float(squares.std()) / math.sqrt(len(squares)),
    )
    return math.sqrt(mean), (
        math.sqrt(max(mean - spread, 0.0)),
        math.sqrt(mean + spread),
    )


def moments_error(task: SolverTask, mean: Any, covariance: Any) -> tuple:
    """("kl", KL(N(mean, covariance) ‖ p at t_min) in nats, no interval, 0,
    details).
    """
    exact = task.distribution(task.schedule.t_min)
    wanted_mean, wanted = np.asarray(exact.mean()), np.asarray(exact.covariance())
    mean, covariance = np.asarray(mean), np.asarray(covariance)
    if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(covariance))):
        return "kl", math.inf, (math.inf, math.inf), 0.0, {}
    error = gaussian_kl(mean, covariance, wanted_mean, wanted)
    scale = math.sqrt(np.trace(wanted))
    details = {
        "mean": float(np.linalg.norm(mean - wanted_mean)) / scale,
        "covariance": float(np.linalg.norm(covariance - wanted)) / scale**2,
    }
    return "kl", error, (error, error), 0.0, details


def gaussian_kl(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other: np.ndarray
) -> float:
    """KL between two Gaussians, in nats.

    KL(N(m, C) ‖ N(m′, C′)) = ½ (Σ (e − log(1 + e)) + ‖m − m′‖²_{C′}),  e =
    eig(C′⁻¹C − 1)
    """
    factor = np.linalg.cholesky(other)
    whitened = np.linalg.solve(factor, np.linalg.solve(factor, covariance - other).T)
    excess = np.maximum(
        np.linalg.eigvalsh(0.5 * (whitened + whitened.T)), np.nextafter(-1, 0)
    )
    shift = np.linalg.solve(factor, mean - other_mean)
    return float(0.5 * (np.sum(excess - np.log1p(excess)) + shift @ shift))


def sample_error(config: Any, task: SolverTask, ends: Any) -> tuple:
    """("sliced_wasserstein", its mean over seeds, interval, floor, details)."""
    key = jax.random.key(config.seed + 1)
    sets = [
        v.reshape(config.seeds, -1, v[0].size) for v in (ends, task.exact, task.others)
    ]
    sliced, energy, mean, covariance = (
        np.asarray(v) for v in distances(key, sets[0], sets[1])
    )
    floor = float(np.mean(distances(key, sets[2], sets[1])[0]))
    if not np.all(np.isfinite(sliced)):
        return "sliced_wasserstein", math.inf, (math.inf, math.inf), floor, {}
    half = float(stats.t.ppf(0.975, config.seeds - 1) * numerics.standard_error(sliced))
    error = float(sliced.mean())
    details = {
        "energy_distance": float(energy.mean()),
        "mean": float(mean.mean()),
        "covariance": float(covariance.mean()),
    }
    return (
        "sliced_wasserstein",
        error,
        (max(error - half, 0.0), error + half),
        floor,
        details,
    )


@jax.jit
def distances(key: Any, x: Any, y: Any) -> tuple:
    """Distances of each x to its y: sliced Wasserstein-2, energy, means and
    covariances.
    """

    def one(x, y):
        scale = jnp.sqrt(jnp.sum(jnp.var(y, 0)))
        mean = jnp.linalg.norm(x.mean(0) - y.mean(0)) / scale
        covariance = jnp.linalg.norm(jnp.cov(x.T) - jnp.cov(y.T)) / scale**2
        return (
            jnp.sqrt(metrics.sliced_wasserstein(key, x, y)),
            metrics.energy_distance(x, y),
            mean,
            covariance,
        )

    return jax.vmap(one)(x, y)
