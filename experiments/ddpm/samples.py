"""Samples of `ddpm`'s chain, examples sent progressively, and interpolations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import ddpm, schedules, solvers
from experiments.ddpm.config import Config
from experiments.ddpm.model import with_variance
from experiments.shared import cli, devices
from experiments.shared.mapping import map_examples
from experiments.shared.training import DenoiserModel

COMPRESSED = 64
"""Test examples over which rate and distortion are averaged."""


def draw_samples(
    config: Config, model: DenoiserModel, denoiser: Any
) -> dict[str, np.ndarray]:
    """Samples of the chain by all its steps, and by `few_steps` of them with each
    variance.
    """
    chain, drawn = model.schedule, {}
    whole = {
        f"all {chain.steps} steps, {config.variance}": (config.variance, chain.steps)
    }
    few = {
        f"{config.few_steps} steps, {name}": (name, config.few_steps)
        for name in ("optimal", "posterior", "forward")
        if name != "optimal" or config.prediction == "levels"
    }
    cases = whole | few
    with cli.progress(len(cases), label="samples", unit="sampler") as bar:
        for name, (variance, steps) in cases.items():
            grid = dj.grids.to_zero(
                dj.grids.from_indices(
                    chain, np.linspace(chain.steps, 1, steps).round().astype(int)
                )
            )
            xs = dj.sample_many(
                jax.random.key(config.seed + 1),
                config.samples,
                with_variance(denoiser, variance),
                chain,
                solver=solvers.ddpm(variance),
                grid=grid,
                shape=model.data.shape,
                chunk=64,
                mesh=devices.mesh(),
            )
            drawn[name] = devices.on_host(xs)
            bar.update()
    return drawn


def rate_distortion(
    config: Config, model: DenoiserModel, denoiser: Any
) -> ddpm.RateDistortion:
    """Rate and distortion by index 1 … T, over some test examples.

    Rate is in mean bits/dim, distortion is the √mean squared error in levels.
    """
    test = model.data.test[:COMPRESSED]
    keys = jax.random.split(jax.random.key(config.seed + 4), len(test))

    def one(denoiser, key, x):
        return ddpm.rate_distortion(
            key, denoiser, model.schedule, x, variance=config.variance, chunk=25
        )

    curve = map_examples(
        one,
        with_variance(denoiser, config.variance),
        (keys, test),
        chunk=config.chunk,
        label="rate–distortion",
    )
    return ddpm.RateDistortion(
        curve.rate.mean(0), np.sqrt((curve.rmse**2).mean(0)) / model.data.spacing
    )


def progressive(
    config: Config, model: DenoiserModel, denoiser: Any, count: int = 6, frames: int = 9
) -> Any:
    """The first test digits as sent progressively, with one noise for each digit.

    Returns:
      (indices (F,), x_t (count, F, …), x̂_0 (count, F, …)).
    """
    chain, xs = model.schedule, jnp.asarray(model.data.test[:count])
    indices = np.unique(
        np.geomspace(max(1, chain.steps // 100), chain.steps, frames)
        .round()
        .astype(int)
    )[::-1]
    keys = jax.random.split(jax.random.key(config.seed + 5), count)

    @jax.jit
    def show(key, x, t):
        noisy = schedules.perturb(chain, x, t, jax.random.normal(key, x.shape))
        return noisy, denoiser(noisy, t)

    show_all = jax.vmap(jax.vmap(show, (None, None, 0)), (0, 0, None))
    return indices, *show_all(keys, xs, jnp.asarray(indices / chain.steps, jnp.float32))


def interpolations(
    config: Config, model: DenoiserModel, denoiser: Any, frames: int = 9
) -> dict[str, np.ndarray]:
    """Frames between two test digits, through latents at three indices and the
    probability flow.
    """
    chain, (start, end) = model.schedule, model.data.test[:2]
    weights, drawn = jnp.linspace(0, 1, frames), {}
    for share in (0.1, 0.2, 0.4):
        index = max(1, round(share * chain.steps))
        drawn[f"latents x_{index}"] = ddpm.interpolate(
            jax.random.key(config.seed + 6),
            with_variance(denoiser, config.variance),
            chain,
            start=start,
            end=end,
            weights=weights,
            index=index,
            variance=config.variance,
        )
    grid = dj.grids.log_snr(chain, 32)
    drawn["probability flow"] = dj.interpolate(
        denoiser, chain, start, end, weights=weights, solver=solvers.heun(), grid=grid
    )
    return {name: np.asarray(images) for name, images in drawn.items()}
