"""Rows of `bench_speed` on many Langevin chains, against a scan by hand and
blackjax.
"""

import functools
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import langevin, noise, targets
from experiments.bench_speed.ratios import Config, RatioRow, compare
from experiments.bench_speed.solvers import mixture

CHAINS, STEPS = 1000, 1000
STEP_SIZE = 0.1


@functools.partial(jax.jit, static_argnums=3)
def mala_by_hand(
    target: targets.Mixture, key: jax.Array, xs: jax.Array, steps: int
) -> jax.Array:
    """MALA chains from xs (B, D), by one scan over the batch, with the draws of
    `run_many`.

    Returns:
      (positions after every step (B, S, D), acceptances (B,)).
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(xs)))
    both = jax.vmap(jax.value_and_grad(target.log_prob))

    def draws(n):
        now = jax.vmap(lambda key: jax.random.fold_in(key, n))(keys)
        normal = jax.vmap(lambda key: noise.normal(key, 1, xs.shape[1:]))(now)
        return normal, jnp.log(jax.vmap(jax.random.uniform)(now))

    def body(state, n):
        x, value, score = state
        z, log_u = draws(n)
        y = x + 0.5 * STEP_SIZE * score + jnp.sqrt(STEP_SIZE) * z
        new, slope = both(y)
        back = jnp.sum((x - y - 0.5 * STEP_SIZE * slope) ** 2, -1)
        there = jnp.sum((y - x - 0.5 * STEP_SIZE * score) ** 2, -1)
        take = log_u < jnp.minimum(0, new - value + (there - back) / (2 * STEP_SIZE))
        state = (
            jnp.where(take[:, None], y, x),
            jnp.where(take, new, value),
            jnp.where(take[:, None], slope, score),
        )
        return state, (state[0], take)

    _, (path, taken) = jax.lax.scan(body, (xs, *both(xs)), jnp.arange(steps))
    return path.swapaxes(0, 1), taken.mean(0)


def chains(config: Config) -> Iterator[RatioRow]:
    """`run_many` of MALA, every step kept, against the scan by hand and
    blackjax's MALA in a scan.
    """
    target, xs, key, steps = problem(config)

    def library() -> Any:
        result = langevin.run_many(key, langevin.mala(target, STEP_SIZE), xs, steps)
        return result.samples, result.acceptance

    by_hand = functools.partial(mala_by_hand, target, key, xs, steps)
    check_same(library()[0], by_hand()[0])
    yield compare(
        f"run_many, mala, {len(xs)} × {steps}",
        library,
        by_hand,
        config.alternations,
        1.1,
    )
    if importlib.util.find_spec("blackjax") is None:
        print(
            "blackjax is not installed: its row is left out (pip install "
            "'diffjax[chains]')"
        )
        return
    peer = functools.partial(mala_by_blackjax, target, key, xs, steps)
    yield compare(
        f"run_many, mala, {len(xs)} × {steps}, against blackjax",
        library,
        peer,
        config.alternations,
        1.0,
    )


def check_same(ours: jax.Array, by_hand: jax.Array) -> None:
    """Raise ValueError unless 99 % of the chains agree.

    An acceptance that rounding decides separates two chains.
    """
    apart = float(
        np.mean(np.any(np.abs(np.asarray(ours) - np.asarray(by_hand)) > 1e-3, (1, 2)))
    )
    if not apart < 0.01:
        raise ValueError(
            f"run_many and its scan by hand must agree, got {apart:.0%} of the chains "
            "that differ"
        )


def problem(config: Config) -> tuple[targets.Mixture, jax.Array, jax.Array, int]:
    """The mixture in six dimensions, exact starts (B, 6), a key, and the number
    of steps.
    """
    target, _, key, _ = mixture(config)
    count, steps = (50, 20) if config.quick else (CHAINS, STEPS)
    return target, _starts(target, key, count), key, steps


@functools.partial(jax.jit, static_argnums=2)
def _starts(target, key, count):
    return jax.vmap(target.sample)(jax.random.split(key, count))


@functools.partial(jax.jit, static_argnums=3)
def mala_by_blackjax(
    target: targets.Mixture, key: jax.Array, xs: jax.Array, steps: int
) -> Any:
    """The same chains by blackjax, every step kept.

    Its step is ε/2 in the convention of this library.
    """
    blackjax = importlib.import_module("blackjax")
    kernel = blackjax.mala(target.log_prob, 0.5 * STEP_SIZE)

    def one(key, x):
        def body(state, key):
            state, info = kernel.step(key, state)
            return state, (state.position, info.is_accepted)

        return jax.lax.scan(body, kernel.init(x), jax.random.split(key, steps))[1]

    path, taken = jax.vmap(one)(jax.random.split(key, len(xs)), xs)
    return path, taken.mean(1)
