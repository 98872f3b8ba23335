"""The denoiser of `ddpm` on its chain, and its training."""

import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import ddpm, schedules
from experiments.ddpm.config import Config
from experiments.shared import datasets, training
from experiments.shared.training import DenoiserModel

BETAS = {
    "linear": lambda steps: ddpm.linear_betas(steps, 0.1 / steps, 20 / steps),
    "cosine": ddpm.cosine_betas,
    "sigmoid": lambda steps: ddpm.sigmoid_betas(steps, 0.1 / steps, 20 / steps),
    "constant": lambda steps: ddpm.constant_betas(steps, 10 / steps),
}
"""β tables whose sum does not depend on the number of steps: that of Ho et al.
2020 at 1000 steps.
"""


def make_model(config: Config, data: datasets.Dataset) -> DenoiserModel:
    """Make the model that the flags select, on the chain. Raises ValueError for
    flags that exclude each other.
    """
    if data.levels is None:
        raise ValueError(
            f"data must be integers of at most {datasets.MAX_LEVELS} levels, "
            f"{data.name} is not"
        )
    if config.variance == "optimal" and config.prediction != "levels":
        raise ValueError(
            f"variance 'optimal' needs prediction 'levels', got {config.prediction!r}; "
            "use posterior"
        )
    if config.objective == "hybrid" and config.variance != "optimal":
        raise ValueError(
            "objective 'hybrid' trains a variance: it needs variance 'optimal', got "
            f"{config.variance!r}"
        )
    chain = schedules.from_betas(BETAS[config.betas](config.chain_steps))
    return DenoiserModel(
        data, chain, training.make_module(config, data), config.prediction
    )


def with_variance(denoiser: Any, variance: str) -> Any:
    """The denoiser as a variance needs it: D, or (D, Var) by one call."""
    return dj.predictions.moments(denoiser) if variance == "optimal" else denoiser


def train(
    config: Config, model: DenoiserModel, out: pathlib.Path
) -> tuple[Any, np.ndarray]:
    """Train the denoiser, resuming from the checkpoints in `out`.

    Returns:
      (averaged parameters, loss of every step).
    """
    chain = model.schedule
    term = {
        "simple": ddpm.simple_loss,
        "bound": functools.partial(
            ddpm.bound_loss, variance=config.variance, levels=model.data.levels
        ),
        "hybrid": functools.partial(
            ddpm.hybrid_loss, variance=config.variance, levels=model.data.levels
        ),
    }[config.objective]
    # Nats per dimension.
    scale = (
        chain.steps / math.prod(model.data.shape)
        if config.objective == "bound"
        else 1.0
    )

    def loss(params, key, batch):
        key_index, key_noise = jax.random.split(key)
        indices = stratified_indices(key_index, len(batch), chain.steps)

        def one(key, x, index):
            key_net, key_noise = jax.random.split(key)
            denoiser = model.denoiser(params, key_net if config.dropout else None)
            if config.objective != "simple":
                denoiser = with_variance(denoiser, config.variance)
            return term(key_noise, denoiser, chain, x, index=index)

        return scale * jnp.mean(
            jax.vmap(one)(jax.random.split(key_noise, len(batch)), batch, indices)
        )

    return training.fit(
        config, out, loss, model.init, arrays=model.data.train, fields=_FIELDS
    )


_FIELDS = ("data", "betas", "chain_steps", "prediction", "objective", "variance")


def stratified_indices(key: jax.Array, count: int, steps: int) -> jax.Array:
    """Indices of the chain, stratified over a batch.

        1 + ⌊T ((i/count + u) mod 1)⌋,    one u ~ U(0, 1)

    At each position i they are uniform on 1 … T.

    Returns:
      (count,) integers.
    """
    quantiles = jnp.mod(jnp.arange(count) / count + jax.random.uniform(key), 1)
    return jnp.minimum(1 + jnp.floor(steps * quantiles).astype(int), steps)
