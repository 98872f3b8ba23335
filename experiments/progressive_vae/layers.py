"""The layers of `progressive_vae`, their training without a prior, and the priors
of the top latent.
"""

import dataclasses
import math
import operator
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import distributions, flows
from diffjax.networks import MLP
from diffjax.vaes import Perceptron, priors, progressive
from experiments.shared import datasets, devices, files, training
from experiments.shared.mapping import map_examples

LAYER_FIELDS = (
    "data",
    "latents",
    "noise_std",
    "shared",
    "width",
    "depth",
    "dropout",
    "replaced",
)
"""The flags that phase one's checkpoints belong to."""
PRIOR_FIELDS = (*LAYER_FIELDS, "prior_steps", "prior_width", "seeds")
"""The flags that phase two's checkpoints belong to."""
SCHEDULE = dj.schedules.vp_cosine()
"""The schedule of the diffusion of the top latent."""
SOLVER, SOLVER_STEPS = dj.solvers.unipc(3), 24
DRAWS = 16
"""Draws of the top latent per training example, to which priors are fitted."""
ENCODED = 4096
"""Examples that are encoded at a time."""


# ------------------------------------------------------------------- phase one


@dataclasses.dataclass(frozen=True, eq=False)
class Layers:
    """The networks of all layers, with the conditional distributions that their
    outputs describe.
    """

    config: Any
    data: datasets.Dataset

    @property
    def sizes(self):
        """Sizes of z_1 … z_L."""
        return self.config.latents

    def _networks(self, layer):
        """(encoder, decoder) of a layer."""
        c, size = self.config, self.sizes[layer - 1]
        below = self.data.shape if layer == 1 else (self.sizes[layer - 2],)
        fields = {"width": c.width, "depth": c.depth, "dropout": c.dropout}
        return Perceptron((size,), **fields), Perceptron((2, *below), **fields)

    def init(self, key):
        """Initial parameters, a pair (encoder, decoder) per layer.

        Where parameters are shared there is one pair for the first layer and
        one for all others.
        """
        pairs = 2 if self.config.shared and len(self.sizes) > 1 else len(self.sizes)
        params = []
        for layer, pair in enumerate(jax.random.split(key, (pairs, 2)), 1):
            below = jnp.zeros(
                self.data.shape if layer == 1 else (self.sizes[layer - 2],)
            )
            inputs = (
                self._marked(layer, below),
                self._marked(layer, jnp.zeros(self.sizes[layer - 1])),
            )
            params.append(
                tuple(
                    net.init(k, x)
                    for net, k, x in zip(
                        self._networks(layer), pair, inputs, strict=True
                    )
                )
            )
        return tuple(params)

    def _marked(self, layer, z):
        """z, with the layer's indicator where parameters are shared."""
        if not self.config.shared or layer == 1:
            return z
        return jnp.concatenate([z, jax.nn.one_hot(layer - 2, len(self.sizes) - 1)])

    def _mean(self, layer, params, key, x):
        return _apply(self._networks(layer)[0], params, key, self._marked(layer, x))

    def _distribution(self, layer, params, key, z):
        """The distribution of the layer below."""
        location, log_scale = _apply(
            self._networks(layer)[1], params, key, self._marked(layer, z)
        )
        if layer == 1:
            return distributions.discretised_logistic(
                location, log_scale - 1.0, self.data.levels
            )
        return distributions.gaussian(
            location, log_scale + math.log(self.config.noise_std)
        )

    def bound(self, params, key=None):
        """(encoders, decoders) of all layers with the parameters as leaves. A key
        turns dropout on.
        """
        encoders, layers = [], []
        for layer in range(1, len(self.sizes) + 1):
            pair = params[min(layer, len(params)) - 1]
            keys = (
                (None, None)
                if key is None
                else jax.random.split(jax.random.fold_in(key, layer))
            )
            mean = LayerConditional(pair[0], keys[0], self._mean, layer)
            encoders.append(progressive.bounded_encoder(mean, self.config.noise_std))
            layers.append(LayerConditional(pair[1], keys[1], self._distribution, layer))
        return tuple(encoders), tuple(layers)


@dj.types.pytree
class LayerConditional:
    """The conditional distribution x -> function(layer, params, key, x)."""

    params: Any
    key: Any
    function: Any = dj.types.static_field()
    layer: int = dj.types.static_field()

    def __call__(self, x):
        """The distribution that the layer's network describes at x."""
        return self.function(self.layer, self.params, self.key, x)


def _apply(network, params, key, *inputs):
    if key is None:
        return network.apply(params, *inputs)
    return network.apply(params, *inputs, train=True, rngs={"dropout": key})


def train_layers(
    config: Any, layers: Layers, out: pathlib.Path
) -> tuple[Any, np.ndarray]:
    """Train all layers, resuming from the checkpoints in `out`.

    Returns:
      (averaged parameters, loss of every step in nats).
    """
    data = layers.data

    def one(params, key, x):
        key_noise, key_dropout = jax.random.split(key)
        return jnp.sum(
            progressive.reconstruction_losses(
                key_noise, *layers.bound(params, key_dropout), x
            )[0]
        )

    loss = training.image_loss(config, data, one)
    return training.fit(
        config,
        out,
        loss,
        layers.init,
        arrays=data.train,
        fields=LAYER_FIELDS,
        label="phase one",
    )  # type: ignore


# ------------------------------------------------------------------- phase two


def encode(encoders: tuple, key: jax.Array, x: Any) -> jax.Array:
    """A draw of the top latent of one example, (d,)."""
    for layer, encoder in enumerate(encoders):
        x = encoder(x).sample(jax.random.fold_in(key, layer))
    return x


def encode_many(
    encoders: tuple, key: jax.Array, xs: np.ndarray, draws: int = 1
) -> np.ndarray:
    """Draws of the top latent of each example, (len(xs) · draws, d)."""
    count = draws * len(xs)
    return map_examples(
        encode,
        encoders,
        (jax.random.split(key, count), np.repeat(xs, draws, 0)),
        chunk=ENCODED,
    )


def fit_priors(
    config: Any, layers: Layers, params: Any, out: pathlib.Path
) -> tuple[dict[str, list], dict]:
    """Fit the priors of the top latent.

    Returns:
      (distributions by name, one per seed, losses of every step by name).
    """
    key, size = jax.random.key(config.seed + 3), layers.sizes[-1]
    zs = jnp.asarray(
        encode_many(layers.bound(params)[0], key, layers.data.train, DRAWS)
    )
    mean, std = zs.mean(0), zs.std(0)
    arrays = np.asarray((zs - mean) / std)
    module = MLP(width=config.prior_width, depth=3)
    nothing = jnp.zeros(size), jnp.zeros(())

    def flow_of(key):
        return flows.real_nvp(
            key, (size,), layers=4, width=max(1, config.prior_width // 2)
        )

    def flow_loss(flow, key, zs):
        return flows.negative_log_likelihood(flow, zs)[0]

    def diffusion_loss(params, key, zs):
        return dj.losses.batch_loss(key, denoiser_of(module, params), zs)[0]

    fitted, flow_history = fit_seeds(config, out, "flow", flow_of, flow_loss, arrays)
    networks, history = fit_seeds(
        config,
        out,
        "diffusion",
        lambda key: module.init(key, *nothing),
        diffusion_loss,
        arrays,
    )
    scaling = flows.affine(mean, std)
    by_name = {
        "gaussian": [priors.fitted_gaussian(zs)] * config.seeds,
        "flow": [flows.flow(flow, scaling) for flow in fitted],
        "diffusion": [
            flows.flow(diffusion_prior(module, params, size), scaling)
            for params in networks
        ],
    }
    return by_name, {"flow": flow_history, "diffusion": history}


def fit_seeds(
    config: Any, out: pathlib.Path, name: str, init: Any, loss: Any, arrays: np.ndarray
) -> tuple[list, Any]:
    """Fit the stacked parameters of all seeds at once.

    Each seed has initial parameters and random times that are independent.
    Batches, and the norm to which gradients are clipped, are common.

    Returns:
      (fitted parameters of each seed, mean loss of every step).
    """

    def total(stacked, key, batch):
        return jnp.mean(
            jax.vmap(loss, (0, 0, None))(
                stacked, jax.random.split(key, config.seeds), batch
            )
        )

    def init_all(key):
        members = [jax.jit(init)(one) for one in jax.random.split(key, config.seeds)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)

    devices.check_batch("prior_batch_size", config.prior_batch_size)
    settings = dataclasses.replace(
        config, steps=config.prior_steps, batch_size=config.prior_batch_size
    )
    stacked, history = training.fit(
        settings,
        out,
        total,
        init_all,
        arrays=arrays,
        fields=PRIOR_FIELDS,
        label=f"phase two, {name}",
        name=f"{name}_",
    )
    files.write_config(out, config)
    return [
        jax.tree.map(operator.itemgetter(i), stacked) for i in range(config.seeds)
    ], history


@dj.types.pytree
class Network:
    """A function (z, t) -> F(z, t)."""

    params: Any
    module: Any = dj.types.static_field()

    def __call__(self, z, t):
        """The module's value."""
        return self.module.apply(self.params, z, t)


def denoiser_of(module: Any, params: Any) -> Any:
    """The network as a denoiser of scaled latents."""
    return dj.predictions.denoiser(
        SCHEDULE, Network(params, module), "v", sigma_data=1.0, inputs="scaled"
    )


def diffusion_prior(module: Any, params: Any, size: int) -> Any:
    """The distribution of scaled latents that the network describes."""
    grid = dj.grids.log_snr(SCHEDULE, SOLVER_STEPS)
    return priors.diffusion(
        denoiser_of(module, params),
        SCHEDULE,
        (size,),
        solver=SOLVER,
        grid=dj.grids.to_zero(grid),
        likelihood_grid=grid,
    )
