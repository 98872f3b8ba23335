"""A small training problem, and comparisons of its states bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax import training
from diffjax.training import Batches, Checkpoints

FEATURES, WIDTH, EXAMPLES, BATCH = (
    3,
    100,
    22,
    8,
)  # orbax stores arrays above 1 kB, as w is, in another way
CONFIG = {"learning_rate": 0.01, "network": {"width": 4}, "steps": 20}


def loss_fn(params, key, batch):
    """A regression through tanh, shifted by the key's last word, so that a
    wrong key changes the result.
    """
    x = (
        batch["x"]
        + 0.1 * (jax.random.key_data(key)[-1] % 1024).astype(jnp.float32) / 1024
    )
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    residual = hidden.sum(axis=-1) - batch["y"]
    return jnp.mean(residual**2), {"bias": params["b"].mean()}


def parameters():
    w = np.random.default_rng(1).normal(size=(FEATURES, WIDTH)) / 5
    return {"w": w.astype(np.float32), "b": np.zeros(WIDTH, np.float32)}


def arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    return {"x": x, "y": np.sin(x).sum(axis=-1)}


def batches():
    return Batches(arrays(), BATCH, seed=3)


OPTIMISER = optax.sgd(1e-4, momentum=0.9)


def initial():
    return training.init(jax.random.key(7), parameters(), OPTIMISER)


STEP = training.make_step(loss_fn, OPTIMISER, ema_decay=0.9)
STEPS = training.make_steps(STEP)


def bits(state):
    """Every leaf of the state as numpy, keys as their words."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    words = {
        p: jax.random.key_data(leaf) if is_key(leaf) else leaf for p, leaf in leaves
    }
    return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in words.items()}


def assert_bitwise(one, other):
    one, other = bits(one), bits(other)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert one[name].tobytes() == other[name].tobytes(), (
            f"{name}: {one[name]} and {other[name]}"
        )


@functools.lru_cache
def trained(steps=3):
    state = initial()
    for n in range(steps):
        state, _ = STEP(state, batches().at(n))
    return state


def restored_from(directory):
    with Checkpoints(directory, CONFIG) as checkpoints:
        return checkpoints.restore_latest(initial())


def steps_in(directory):
    return sorted(p.name for p in directory.iterdir() if p.name.isdigit())
