"""The data of `flow_matching`: examples to train on, others to compare with, and
a network for them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import flows
from diffjax.networks import MLP
from experiments.shared import datasets

HELD_OUT = 447
"""Test digits, and images in each set of others."""
EXACT_SETS = 8
DEFAULTS = {"width": 128, "depth": 4, "examples": 65536}
DIGITS_DEFAULTS = {"width": 384, "depth": 3, "examples": 8192}
DIGITS_PAIR_STEPS = 8


@dataclasses.dataclass(frozen=True)
class MatchingTask:
    """Data, exact samples to compare with, and a network.

    Attributes:
      name: Of the target.
      train: (N, *shape).
      exact: (n, *shape), the reference of n samples.
      others: Sets of n examples of the same distribution, for the least
        distance to expect.
      neural_velocity: key -> Partial of (x, t) with its parameters as args[0].
      pair_steps: Steps of RK4 for the pairs of reflow.
      target: The exact distribution, where it is known.
    """

    name: str
    train: np.ndarray
    exact: np.ndarray
    others: list[np.ndarray]
    neural_velocity: Callable[[jax.Array], Any]
    pair_steps: int
    target: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.train.shape[1:]


def open_problem(config: Any) -> MatchingTask:
    """The 8×8 digits on [−1, 1], or exact samples of a density of the plane, as
    the flags select.
    """
    if config.target == "digits":
        data = datasets.open_dataset("digits", HELD_OUT, config.seed)
        others = [
            data.train[i : i + HELD_OUT]
            for i in range(0, len(data.train) - HELD_OUT + 1, HELD_OUT)
        ]
        velocity = functools.partial(
            dense_velocity, data.shape, config.width, config.depth
        )
        return MatchingTask(
            "digits", data.train, data.test, others, velocity, DIGITS_PAIR_STEPS
        )
    target = datasets.TOYS[config.target]()
    train = exact_samples(key_of(config, "data"), target, config.examples)
    exact = exact_samples(key_of(config, "exact"), target, config.samples)
    keys = jax.random.split(jax.random.fold_in(key_of(config, "exact"), 1), EXACT_SETS)
    others = [exact_samples(key, target, config.samples) for key in keys]

    def velocity(key):
        return flows.neural_velocity(key, (2,), config.width, config.depth)

    return MatchingTask(config.target, train, exact, others, velocity, 32, target)


def dense_velocity(
    shape: tuple[int, ...], width: int, depth: int, key: jax.Array
) -> jax.tree_util.Partial:
    """A residual MLP (x, t) -> dx/dt for one example of `shape`, which is 0
    initially.

    Its parameters are leaves.
    """
    module = MLP(width=width, depth=depth)
    return jax.tree_util.Partial(
        module.apply, jax.jit(module.init)(key, jnp.zeros(shape), jnp.zeros(()))
    )


def exact_samples(key: jax.Array, target: Any, count: int) -> np.ndarray:
    """Exact samples of a target, (count, 2)."""
    return np.asarray(jax.jit(jax.vmap(target.sample))(jax.random.split(key, count)))


def key_of(config: Any, purpose: str) -> jax.Array:
    """The key of one purpose."""
    kinds = ("data", "reflow", "noise", "exact", "directions", "likelihood")
    return jax.random.fold_in(jax.random.key(config.seed), kinds.index(purpose))
