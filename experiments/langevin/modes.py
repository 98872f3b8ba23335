"""Shares of two far modes by four ways of sampling."""

from typing import Any

import jax
import numpy as np

from diffjax import langevin, ncsn, schedules, targets
from experiments.langevin.chains import exact_samples, key_of
from experiments.langevin.config import Config
from experiments.shared import chains as shared_chains

HEAVY, FAR, PER_LEVEL = 0.8, 5.0, 20
TITLES = {
    "exact": "exact draws",
    "mala": "MALA",
    "annealed": "annealed Langevin dynamics",
    "importance": "annealed importance sampling",
}


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
    base = targets.gaussian([0.0, 0.0], FAR)
    weighed = weighted_samples(config, base, target)
    plain, moved = chains_from(config, base, target)
    exact = exact_samples(key_of(config, "modes"), target, config.chains)
    uniform = np.full(config.chains, 1 / config.chains)
    weights = np.asarray(jax.nn.softmax(weighed.log_weights))
    places = {
        "exact": (np.asarray(exact), uniform),
        "mala": (plain.samples[:, -1], uniform),
        "annealed": (moved.samples[:, -1], uniform),
        "importance": (np.asarray(weighed.samples), weights),
    }
    results: dict[str, Any] = {name: share(*pair) for name, pair in places.items()}
    unweighted = share(places["importance"][0], uniform)["share"]
    results["importance"] |= {
        "unweighted": unweighted,
        "log_z": float(weighed.log_z),
        "log_z_standard_error": float(weighed.standard_error),
    }
    results["mala"]["r_hat"] = float(langevin.r_hat(plain.samples).max())
    return results, places


def weighted_samples(
    config: Config, base: Any, target: Any
) -> langevin.ImportanceEstimate:
    """Samples with weights, by annealed importance sampling."""
    return shared_chains.annealed_importance_sampling(
        key_of(config, "weights"),
        base,
        target,
        np.linspace(0, 1, config.levels + 1) ** 2,
        make_kernel=lambda density, beta: langevin.mala(density, 1.0),
        count=config.chains,
        steps=PER_LEVEL,
    )


def chains_from(
    config: Config, base: Any, target: Any
) -> tuple[langevin.Chains, langevin.Chains]:
    """Chains of MALA and of annealed dynamics from draws of the base."""
    starts = exact_samples(key_of(config, "broad"), base, config.chains)
    steps = config.levels * PER_LEVEL
    sigmas = ncsn.geometric_sigmas(config.levels, 0.1, 10.0)[::-1]
    schedule = schedules.edm(0.05, 20.0)
    ladder = langevin.annealed(
        [target.noised(schedule, s) for s in sigmas], 0.3 * (1 + sigmas**2), PER_LEVEL
    )
    plain = shared_chains.run_many(
        key_of(config, "plain"), langevin.mala(target, 1.0), starts, steps, thinning=10
    )
    moved = shared_chains.run_many(
        key_of(config, "annealed"), ladder, starts, steps, thinning=steps
    )
    return plain.check(), moved.check()


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
