"""Distances of simulated paths from the exact densities of `toy_sde`."""

import functools
from typing import Any

import jax
import numpy as np

import diffjax as dj
from diffjax import grids, metrics, schedules, targets
from experiments.shared.mapping import map_examples
from experiments.shared.schedules import make
from experiments.toy_sde.config import Config
from experiments.toy_sde.simulation import (
    SETTINGS,
    Simulation,
    exact_samples,
    schedule_key,
)

EXACT_SETS = 5
LIKELIHOOD_STEPS = 128


def measure(
    config: Config, target: Any, name: str, simulation: Simulation
) -> dict[str, Any]:
    """Distances of both samplers to exact samples, forward moments, and log p of
    the flow.

    The energy distance is in data units, the sliced Wasserstein distance is
    squared. "exact" is the mean over EXACT_SETS sets of exact samples,
    "exact_largest" the largest of them: the distance of two finite sets of one
    distribution.
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
    - variance_error_standard_error: its standard error.
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
        "variance_error_standard_error": float(squares.std() / exact / np.sqrt(len(x))),
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
