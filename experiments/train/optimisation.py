"""The learning rate of `train`, its optimiser, and its compiled steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from diffjax import networks, training
from experiments.train.config import Config


def learning_rate(config: Config) -> optax.Schedule:
    """The learning rate of step n = 0, 1, … that the flags select."""
    warmup = config.warmup or max(1, config.steps // 10)
    if config.decay_after is not None:
        return training.warmup_inverse_sqrt(
            config.learning_rate, warmup, config.decay_after
        )
    if config.decay == "constant":
        return training.warmup_cosine(config.learning_rate, warmup, None)
    warmup = min(warmup, config.steps)
    return training.warmup_cosine(config.learning_rate, warmup, config.steps + 1)


def optimiser(config: Config) -> optax.GradientTransformation:
    """`training.optimiser` of the flags.

    The weights of magnitude-preserving networks are normalised after each
    step.
    """
    normalised = config.network.startswith("edm2")
    return training.optimiser(
        learning_rate(config),
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        beta_2=config.beta_2,
        # Always a chain, by whose parts checkpoints name the moments.
        after=normalising() if normalised else optax.identity(),
    )


def normalising() -> optax.GradientTransformation:
    """The last part of a chain, after which updated weights are normalised.

    update ← N(params + update) − params,    N = networks.normalise_weights
    """

    def update(updates, state, params=None):
        moved = networks.normalise_weights(optax.apply_updates(params, updates))
        return jax.tree.map(jnp.subtract, moved, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_steps(config: Config, loss: Callable) -> training.BlockFunction:
    """Compiled training steps, see `training.make_steps`."""
    step = training.make_step(
        loss, optimiser(config), config.ema_decay, accumulate=config.accumulate
    )
    return training.make_steps(step)
