"""The two networks of `vae` and their training."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import distributions
from diffjax.vaes import Perceptron, gaussian
from experiments.shared import datasets, training
from experiments.vae.config import Config

LOG_STD_LIMIT = 4.0
_FIELDS = (
    "data",
    "decoder",
    "latent",
    "width",
    "depth",
    "dropout",
    "beta",
    "free_bits",
    "replaced",
)


@dataclasses.dataclass(frozen=True, eq=False)
class AutoencoderModel:
    """The two networks, with the distributions that their outputs describe."""

    config: Config
    data: datasets.Dataset

    @property
    def networks(self):
        """(encoder, decoder): (2, latent) of an image, and (1 or 2, *shape) of a
        latent.
        """
        c = self.config
        outputs = (1 if c.decoder == "bernoulli" else 2, *self.data.shape)
        sizes = {"width": c.width, "depth": c.depth, "dropout": c.dropout}
        return Perceptron((2, c.latent), **sizes), Perceptron(outputs, **sizes)

    def init(self, key):
        """Initial parameters of both."""
        keys = jax.random.split(key)
        inputs = jnp.zeros(self.data.shape), jnp.zeros(self.config.latent)
        return tuple(
            net.init(k, x)
            for net, k, x in zip(self.networks, keys, inputs, strict=True)
        )

    def encode(self, params, key, x):
        """(mean, log_std) of z. A key turns dropout on."""
        mean, log_std = _apply(self.networks[0], params, key, x)
        return mean, LOG_STD_LIMIT * jnp.tanh(log_std / LOG_STD_LIMIT)

    def decode(self, params, key, z):
        """The distribution of an image. A key turns dropout on."""
        raw = _apply(self.networks[1], params, key, z)
        if self.config.decoder == "bernoulli":
            return distributions.bernoulli(raw[0])
        distribution = (
            distributions.discretised_logistic
            if self.config.decoder == "logistic"
            else distributions.discretised_gaussian
        )
        return distribution(raw[0], raw[1] - 1.0, self.data.levels)

    def bound(self, params, key=None):
        """(encoder, decoder) as pytrees with the parameters as leaves."""
        keys = (None, None) if key is None else jax.random.split(key)
        parts = zip((self.encode, self.decode), params, keys, strict=True)
        return tuple(
            jax.tree_util.Partial(part, part_params, key)
            for part, part_params, key in parts
        )


def _apply(network, params, key, x):
    if key is None:
        return network.apply(params, x)
    return network.apply(params, x, train=True, rngs={"dropout": key})


def train(
    config: Config, data: datasets.Dataset, model: AutoencoderModel, out: pathlib.Path
) -> tuple[Any, np.ndarray]:
    """Train both networks, resuming from the checkpoints in `out`.

    Returns:
      (averaged parameters, loss of every step in bits/dim).
    """
    bits = 1 / (math.prod(data.shape) * math.log(2))

    def one(params, key, x):
        key_noise, key_dropout = jax.random.split(key)
        encoder, decoder = model.bound(params, key_dropout)
        return (
            -bits
            * gaussian.elbo(
                key_noise,
                encoder,
                decoder,
                x,
                prior=None,
                beta=config.beta,
                free_bits=config.free_bits,
            ).total
        )

    loss = training.image_loss(config, data, one)
    return training.fit(
        config, out, loss, model.init, arrays=data.train, fields=_FIELDS
    )  # type: ignore
