"""The learning rate of `train`, its optimiser, and its compiled steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffjax import networks, training
from experiments.train.config import Config


def learning_rate(config: Config) -> Callable[[Any], Any]:
    """The learning rate of step n = 0, 1, … that the flags select.

        η min(1, (n + 1)/warmup) / √max(1, n/decay_after)

    for the decay inverse_sqrt (Karras et al. 2024, equation 67), and
    `training.warmup_cosine` for the others.
    """
    warmup = config.warmup or max(1, config.steps // 10)
    if config.decay != "inverse_sqrt":
        total = config.steps + 1 if config.decay == "cosine" else None
        if total is not None:
            warmup = min(warmup, config.steps)
        return training.warmup_cosine(config.learning_rate, warmup, total)
    after = config.decay_after

    def rate(n):
        rising = jnp.minimum(1.0, (n + 1) / warmup)
        return (
            config.learning_rate * rising * jax.lax.rsqrt(jnp.maximum(1.0, n / after))
        )

    return jax.jit(rate, inline=True)


def optimiser(config: Config) -> optax.GradientTransformation:
    """Adam, or AdamW, of the flags.

    The weights of magnitude-preserving networks are normalised after each
    step.
    """
    rate = learning_rate(config)
    parts = []
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    parts.append(
        optax.adamw(rate, b2=config.beta_2, weight_decay=config.weight_decay)
        if config.weight_decay
        else optax.adam(rate, b2=config.beta_2)
    )
    if config.network.startswith("edm2"):
        parts.append(normalising())
    return optax.chain(*parts)


def normalising() -> optax.GradientTransformation:
    """The last part of a chain, after which updated weights are normalised.

    update ← N(params + update) − params,    N = networks.normalise_weights
    """

    def update(updates, state, params=None):
        moved = networks.normalise_weights(optax.apply_updates(params, updates))
        return jax.tree.map(jnp.subtract, moved, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_steps(config: Config, loss: Callable) -> Any:
    """Compiled training steps, see `training.make_steps`."""
    step = training.make_step(
        loss, optimiser(config), config.ema_decay, accumulate=config.accumulate
    )
    return training.make_steps(step)
