"""log Z and KL of a fitted energy: by quadrature, and estimates by chains."""

from collections.abc import Callable
from typing import Any

import numpy as np

from diffjax import (
    divergences,
    langevin,
    quadrature,
    schedules,
    targets,
)
from experiments.energy_model.config import Config
from experiments.energy_model.fitting import broad, key_of
from experiments.shared import chains as shared_chains

BOUNDS, POINTS, TOLERANCE = ((-10.0, 10.0), (-10.0, 10.0)), 600, 1e-3


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
