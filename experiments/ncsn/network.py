"""The network of `ncsn`: its training by the ladder's objective, and its errors."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax import ncsn, predictions, targets
from diffjax.networks import MLP
from experiments.ncsn.config import Config
from experiments.shared import cli, devices
from experiments.shared.mapping import map_examples

ERROR_STATES = 2048
LOSS_DRAWS = 8192


def train(
    config: Config, key: jax.Array, target: Any, ladder: Any
) -> tuple[Any, list[float]]:
    """Train a network by `ncsn.score_loss` on fresh samples of the target.

    Returns:
      (denoiser, loss of every step).
    """
    model, sigma_data = (
        MLP(width=config.width, depth=2),
        float(jnp.sqrt(jnp.trace(target.covariance()) / 2)),
    )
    params = devices.whole(model.init(key, jnp.zeros(2), 0.0))
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, config.steps))

    def denoiser_of(params):
        net = functools.partial(model.apply, params)
        return predictions.denoiser(
            ladder, net, "noise", sigma_data=sigma_data, inputs="scaled"
        )

    def mean_loss(params, keys):
        one = functools.partial(loss_of_one, denoiser_of(params), ladder, target)
        return jnp.mean(jax.vmap(one)(keys))

    @jax.jit
    def update(params, state, key):
        keys = devices.shared(jax.random.split(key, config.batch_size))
        loss, gradient = jax.value_and_grad(mean_loss)(params, keys)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    # Placed as a step returns it, or the second step would compile anew.
    state, history = devices.whole(optimiser.init(params)), []
    with cli.progress(config.steps, label="training") as bar:
        for i in range(config.steps):
            params, state, loss = update(params, state, jax.random.fold_in(key, i))
            if i % 50 == 0 or i == config.steps - 1:
                history.append(float(loss))
                if not math.isfinite(history[-1]):
                    raise FloatingPointError(f"the loss is {history[-1]} at step {i}")
                bar.set_postfix(loss=f"{history[-1]:.3f}")
            bar.update()
    return denoiser_of(params), history


def loss_of_one(denoiser: Any, ladder: Any, target: Any, key: jax.Array) -> jax.Array:
    """`ncsn.score_loss` of a fresh sample at an index drawn uniformly, ()."""
    key_data, key_loss = jax.random.split(key)
    return ncsn.score_loss(key_loss, denoiser, ladder, target.sample(key_data))


def compare_losses(
    key: jax.Array, learned: Any, exact: Any, target: Any, ladder: Any
) -> dict[str, float]:
    """Mean losses of both denoisers on the same fresh draws, their difference and
    its standard error.

    In expectation the difference is the mean over levels of ½σ²‖s_θ − s‖²,
    that is `score_error` times half the number of entries. The network cannot
    reduce the loss of the exact score.
    """
    keys = jax.random.split(key, LOSS_DRAWS)
    one = lambda denoiser, key: loss_of_one(denoiser, ladder, target, key)
    both = [
        map_examples(one, denoiser, (keys,), chunk=LOSS_DRAWS).astype(np.float64)
        for denoiser in (learned, exact)
    ]
    excess = both[0] - both[1]
    return {
        "learned": float(both[0].mean()),
        "exact": float(both[1].mean()),
        "excess": float(excess.mean()),
        "excess_standard_error": float(excess.std() / math.sqrt(len(excess))),
    }


def score_errors(
    key: jax.Array, learned: Any, target: Any, ladder: Any
) -> list[dict[str, float]]:
    """At each level σ² E‖s_θ − s‖²/D, and σ² E‖s‖²/D of the exact score.

    The error is taken on states of that level and on states of the greatest.
    """
    wide = target.noised(ladder, ladder.t_max)

    def squares(state, key):
        denoiser, t = state
        distribution, score = (
            target.noised(ladder, t),
            predictions.score(ladder, denoiser),
        )
        true = lambda x: targets.score(distribution, x)
        square = lambda v: ladder.sigma(t) ** 2 * jnp.mean(v**2)
        error = lambda x: square(score(x, t) - true(x))
        near = distribution.sample(key)
        return error(near), error(wide.sample(key)), square(true(near))

    rows = []
    for i, (sigma, t) in enumerate(zip(ladder.sigmas, ladder.times, strict=True)):
        keys = jax.random.split(jax.random.fold_in(key, i), ERROR_STATES)
        parts = map_examples(squares, (learned, t), (keys,), chunk=ERROR_STATES)
        near, far, size = (float(part.mean()) for part in parts)
        rows.append(
            {
                "sigma": float(sigma),
                "error": near,
                "error_far": far,
                "exact_score": size,
            }
        )
    return rows
