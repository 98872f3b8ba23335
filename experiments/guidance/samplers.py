"""Samples by every kind of guidance."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import guidance, solvers
from experiments.guidance.config import Config
from experiments.guidance.networks import Networks
from experiments.shared import datasets, devices
from experiments.shared.training import DenoiserModel

RESCALE, QUANTILE, CFG_PLUS_PLUS = 0.7, 0.95, 0.6
"""φ of the rescaled variant, quantile of the dynamic threshold, λ of CFG++."""


class Sampler(NamedTuple):
    """A guided denoiser with a solver and its grid."""

    denoiser: Any
    solver: solvers.Solver
    grid: Any


def samplers(
    config: Config, model: DenoiserModel, networks: Networks
) -> dict[str, Callable[[float], Sampler]]:
    """A function scale -> Sampler for each kind of guidance."""
    schedule, (denoiser, weak, log_prob_y, null) = model.schedule, networks
    grid = dj.grids.to_zero(dj.grids.log_snr(schedule, config.sampling_steps))

    def free(scale: Any, **extra: Any) -> Any:
        return guidance.classifier_free_batched(denoiser, None, null, scale, **extra)

    def by(
        make: Callable[[float], Any], solver: Any = None
    ) -> Callable[[float], Sampler]:
        return lambda scale: Sampler(make(scale), solver or solvers.unipc(3), grid)

    return {
        "classifier_free": by(free),
        "classifier": by(
            lambda scale: guidance.classifier(schedule, denoiser, log_prob_y, scale)
        ),
        "limited": by(
            lambda scale: guidance.limited(
                schedule, free(scale), free(1.0), config.interval
            )
        ),
        "rescaled": by(lambda scale: free(scale, rescale=RESCALE)),
        "static_threshold": by(
            lambda scale: guidance.static_threshold(free(scale), *_range(model.data))
        ),
        "dynamic_threshold": by(
            lambda scale: guidance.dynamic_threshold(
                free(scale), QUANTILE, max(map(abs, _range(model.data)))
            )
        ),
        "autoguidance": by(lambda scale: guidance.autoguidance(denoiser, weak, scale)),
        "cfg_plus_plus": by(
            lambda scale: free(
                guidance.cfg_plus_plus_scale(schedule, grid, CFG_PLUS_PLUS)
            ),
            solvers.ddim(),
        ),
        "ddim": by(free, solvers.ddim()),
    }


def _range(data: datasets.Dataset) -> tuple[float, float]:
    return float(data.train.min()), float(data.train.max())


def draw(
    config: Config, model: DenoiserModel, sampler: Sampler, labels: np.ndarray
) -> np.ndarray:
    """One sample per label, (N, *shape), every kind and scale from the same
    starts.
    """
    return devices.on_host(
        dj.sample_many(
            jax.random.key(config.seed + 1),
            len(labels),
            sampler.denoiser,
            model.schedule,
            solver=sampler.solver,
            grid=sampler.grid,
            shape=model.data.shape,
            condition=jnp.asarray(labels, jnp.int32),
            chunk=config.chunk,
            mesh=devices.mesh(),
        )
    )
