"""Fits of an energy network by four objectives."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import (
    energies,
    langevin,
    targets,
)
from diffjax.networks import MLP
from experiments.energy_model.config import Config
from experiments.shared import devices, training

TITLES = {
    "denoising": "denoising score matching",
    "sliced": "sliced score matching",
    "exact": "exact score matching",
    "contrastive": "contrastive divergence",
}
BROAD = 3.0
"""Standard deviation in data units of the Gaussian where chains restart and
annealing begins.
"""
_FIELDS = (
    "target",
    "sigma",
    "chains",
    "chain_steps",
    "chain_step_size",
    "restart",
    "penalty",
    "examples",
    "width",
    "depth",
)


def key_of(config: Config, number: int) -> jax.Array:
    """The key of one purpose."""
    return jax.random.fold_in(jax.random.key(config.seed), 1000 + number)


def broad() -> targets.Mixture:
    """The Gaussian where chains restart, and where those for log Z begin."""
    return targets.gaussian([0.0, 0.0], BROAD)


def distribution_of(config: Config, params: Any) -> targets.Energy:
    """The unnormalised density of a network's parameters."""
    return energies.reconstruction(
        functools.partial(image, config.width, config.depth, params)
    )


def image(width: int, depth: int, params: Any, x: jax.Array) -> jax.Array:
    """f(x), bounded because its last layer follows a layer norm."""
    return MLP(width=width, depth=depth).apply(params, x, 0.0)


def fit(config: Config, out: pathlib.Path, target: Any, name: str) -> targets.Energy:
    """Fit an energy to samples of the target by one objective."""
    data = np.asarray(
        jax.vmap(target.sample)(jax.random.split(key_of(config, 0), config.examples))
    )
    settings, loss, init, before = config, matching_loss, network, None
    if name == "contrastive":
        settings = dataclasses.replace(config, learning_rate=config.contrastive_rate)
        loss, init = contrastive_loss, functools.partial(network_and_chains, target)
        before = functools.partial(move, config)
    params, _ = training.fit(
        settings,
        out,
        functools.partial(loss, config, name),
        functools.partial(init, config),
        arrays=data,
        fields=_FIELDS,
        label=TITLES[name],
        name=f"{name}_",
        before=before,
    )
    return distribution_of(config, params["network"])


def matching_loss(
    config: Config, name: str, params: Any, key: jax.Array, batch: jax.Array
) -> jax.Array:
    """The mean over a batch of an objective of score matching."""
    distribution = distribution_of(config, params["network"])

    def one(key, x):
        if name == "denoising":
            return (
                energies.denoising(key, distribution, x, config.sigma) / config.sigma**2
            )
        return (
            energies.sliced(key, distribution, x)
            if name == "sliced"
            else energies.exact(distribution, x)
        )

    return jnp.mean(jax.vmap(one)(jax.random.split(key, len(batch)), batch))


def contrastive_loss(
    config: Config, name: str, params: Any, key: jax.Array, batch: jax.Array
) -> jax.Array:
    """The mean over a batch of contrastive divergence, with the chains in turn."""
    distribution, drawn = (
        distribution_of(config, params["network"]),
        params["chains"].xs,
    )
    drawn = drawn[jnp.arange(len(batch)) % len(drawn)]
    one = functools.partial(energies.contrastive, distribution, penalty=config.penalty)
    return jnp.mean(jax.vmap(one)(batch, drawn))


def network(config: Config, key: jax.Array) -> dict[str, Any]:
    """Initial parameters of the network."""
    module = MLP(width=config.width, depth=config.depth)
    return {"network": module.init(key, jnp.zeros(2), 0.0)}


def network_and_chains(target: Any, config: Config, key: jax.Array) -> dict[str, Any]:
    """Initial parameters of the network, and of the chains, which start in the
    data, with their log ε.
    """
    starts = jax.vmap(target.sample)(jax.random.split(key_of(config, 1), config.chains))
    chains = energies.persistent_chains(starts)._replace(updates=jnp.zeros(()))
    log_size = jnp.log(config.chain_step_size)
    return network(config, key) | {"chains": chains, "log_size": log_size}


def move(config: Config, params: Any, key: jax.Array, step: jax.Array) -> Any:
    """Move the chains, and raise or lower ε with their acceptance."""
    kernel = langevin.mala(
        distribution_of(config, params["network"]), jnp.exp(params["log_size"])
    )
    chains = params["chains"]
    chains = chains._replace(xs=devices.shared(chains.xs), updates=step)
    chains, result = energies.advance(
        key,
        chains,
        kernel,
        config.chain_steps,
        restarts=broad(),
        share=config.restart,
    )
    log_size = params["log_size"] + 0.1 * (result.acceptance.mean() - 0.574)
    return params | {
        "chains": chains._replace(updates=jnp.zeros(())),
        "log_size": log_size,
    }
