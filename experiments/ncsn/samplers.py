"""Plain and annealed Langevin dynamics on two far modes, and the modes' shares."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import grids, ncsn, predictions, schedules, sde, solvers, targets
from experiments.ncsn.config import Config
from experiments.shared import devices
from experiments.shared.mapping import map_examples

WEIGHTS, MEANS = (0.8, 0.2), ((5.0, 5.0), (-5.0, -5.0))
SHOWN_LEVELS = 6


def exact_samples(key: jax.Array, distribution: Any, count: int) -> jax.Array:
    """Independent samples of a target, (count, 2)."""
    return jax.vmap(distribution.sample)(jax.random.split(key, count))


def langevin_steps(config: Config) -> int:
    """The Langevin steps of a whole run.

    The first level makes none, as the run starts there, and neither does the
    last step, which denoises.
    """
    return (config.levels - 1) * config.corrections


def plain(
    config: Config, key: jax.Array, denoiser: Any, ladder: Any, bar: Any
) -> np.ndarray:
    """Samples from N(0, σ_max²) by Langevin steps at the least level alone,
    (samples, 2).

    x ← x + ½ε ∇log p + √ε z
    """
    ts = config.plain_step * jnp.arange(langevin_steps(config) + 1)
    starts = config.sigma_max * jax.random.normal(key, (config.samples, 2))
    keys = jax.random.split(jax.random.fold_in(key, 1), config.samples)

    def end(denoiser, key, start):
        score = predictions.score(ladder, denoiser)
        dynamics = sde.SDE(
            lambda x, t: 0.5 * score(x, ladder.t_min), lambda x, t: jnp.ones(())
        )
        return solvers.integrate(
            key, solvers.euler_maruyama(), dynamics, x=start, ts=ts
        )

    ends = map_examples(end, denoiser, (keys, starts), chunk=config.samples)
    bar.update()
    return ends


def annealed(
    config: Config, key: jax.Array, denoiser: Any, ladder: Any, bar: Any
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Samples by annealed Langevin down the ladder and to noise 0, (samples, 2).

    The second result has the states at a few indices of the ladder.
    """
    grid = grids.to_zero(grids.from_indices(ladder, range(ladder.steps, 0, -1)))
    solver = solvers.annealed_langevin(config.corrections, config.step_size)
    path = devices.on_host(
        dj.sample_many(
            key,
            config.samples,
            denoiser,
            ladder,
            solver=solver,
            grid=grid,
            shape=(2,),
            path=True,
            mesh=devices.mesh(),
        )
    )
    indices = np.unique(
        np.rint(np.linspace(ladder.steps, 1, SHOWN_LEVELS)).astype(int)
    )[::-1]
    bar.update()
    return path[:, -1], {int(i): path[:, ladder.steps - i] for i in indices}


def levels_alone(
    config: Config, key: jax.Array, target: Any, levels: int, budget: int, bar: Any
) -> dict[str, float]:
    """The heavy mode's share after about `budget` Langevin steps spread over
    `levels` levels.

    The ends of the ladder are the same.
    """
    ladder = schedules.from_sigmas(
        ncsn.geometric_sigmas(levels, config.sigma_min, config.sigma_max)
    )
    spread = dataclasses.replace(
        config, levels=levels, corrections=max(1, round(budget / (levels - 1)))
    )
    return share(
        annealed(spread, key, targets.denoiser(target, ladder), ladder, bar)[0]
    )


def share(x: np.ndarray) -> dict[str, float]:
    """The share of samples (n, 2) on the heavy mode's side, and its standard
    error.

    The modes lie seven standard deviations from the line between the sides.
    Without noise the exact share is the weight, to 1e-11.
    """
    p = float(np.mean(x.sum(-1) > 0))
    return {
        "share": p,
        "standard_error": math.sqrt(max(p * (1 - p), 1 / len(x)) / len(x)),
    }


def exact_share(sigma: float) -> float:
    """The exact share on the heavy mode's side at a noise level."""
    reach = math.hypot(*MEANS[0]) / math.hypot(1, sigma)
    above = 0.5 * (1 + math.erf(reach / math.sqrt(2)))
    return WEIGHTS[0] * above + WEIGHTS[1] * (1 - above)
