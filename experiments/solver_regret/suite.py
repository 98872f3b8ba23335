"""The suite of problems: exact denoisers of 1 to 64 dimensions and trained
networks, half held out.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax import losses, predictions, schedules, targets
from diffjax.networks import MLP
from experiments.shared import datasets
from experiments.shared.solvers import flow_ends, make_schedule

SCHEDULES = ("vp_linear", "edm", "rectified_flow")

DIMENSION, COMPONENTS = 64, 8
"""Sizes to which every mixture is padded, so that one compiled program serves all
of them.

A padded entry is an independent Gaussian. It changes no posterior weight, and
its error does not count.
"""


class DiagonalMixture(NamedTuple):
    """A mixture of diagonal Gaussians before padding.

    It has weights (K,), means (K, D) and standard deviations (K, D).
    """

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray


def random_mixture(
    seed: int, dimension: int, low: float, high: float, spread: float = 1.0
) -> DiagonalMixture:
    """Eight components around N(0, spread²), with standard deviations log-uniform
    in [low, high].
    """
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(COMPONENTS, 3.0))
    means = spread * rng.normal(size=(COMPONENTS, dimension))
    return DiagonalMixture(
        weights,
        means,
        np.exp(rng.uniform(np.log(low), np.log(high), (COMPONENTS, dimension))),
    )


def anisotropic(seed: int, dimension: int, low: float, high: float) -> DiagonalMixture:
    """Two components whose standard deviations run geometrically from `low` to
    `high` over the entries.
    """
    rng = np.random.default_rng(seed)
    stds = np.geomspace(low, high, dimension)
    means = 0.7 * stds * rng.choice([-1.0, 1.0], (2, dimension))
    return DiagonalMixture(np.array([0.4, 0.6]), means, np.stack([stds, 0.8 * stds]))


def line(weights: Any, means: Any, stds: Any) -> DiagonalMixture:
    """A mixture on the line."""
    return DiagonalMixture(
        np.asarray(weights), np.asarray(means)[:, None], np.asarray(stds)[:, None]
    )


CHOOSING: dict[str, DiagonalMixture] = {
    "1-D, two narrow modes": line([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1]),
    "2-D, overlapping": random_mixture(1, 2, 0.25, 0.6),
    "2-D, apart by 16": DiagonalMixture(
        np.array([0.3, 0.7]), np.array([[-8.0, 0.0], [8.0, 1.0]]), np.full((2, 2), 0.5)
    ),
    "4-D, overlapping": random_mixture(2, 4, 0.25, 0.6),
    "10-D, anisotropic": anisotropic(3, 10, 0.01, 2.0),
    "64-D, overlapping": random_mixture(4, 64, 0.25, 0.6),
}
"""The mixtures on which a recommendation is chosen."""

HELD_OUT: dict[str, DiagonalMixture] = {
    "1-D, three scales": line([0.3, 0.3, 0.4], [-1.0, 0.5, 0.0], [0.02, 0.3, 1.5]),
    "2-D, eight on a lattice": DiagonalMixture(
        np.full(8, 1 / 8),
        3.0 * np.array([[i % 3 - 1, i // 3 - 1] for i in range(9) if i != 4]),
        np.full((8, 2), 0.3),
    ),
    "3-D, unequal": random_mixture(11, 3, 0.03, 1.0, spread=2.0),
    "6-D, overlapping": random_mixture(12, 6, 0.25, 0.6),
    "16-D, overlapping": random_mixture(13, 16, 0.25, 0.6),
    "32-D, anisotropic": anisotropic(14, 32, 0.02, 1.5),
}
"""The mixtures that no choice has seen."""


def padded(mixture: DiagonalMixture) -> targets.Mixture:
    """Pad a mixture to DIMENSION entries and COMPONENTS components.

    Its first component is split into equal ones.
    """
    count, dimension = mixture.means.shape
    copies = COMPONENTS - count
    weights = np.concatenate(
        [mixture.weights, np.full(copies, mixture.weights[0] / (copies + 1))]
    )
    weights[0] /= copies + 1
    rows = [*range(count), *[0] * copies]
    means = np.zeros((COMPONENTS, DIMENSION))
    stds = np.full((COMPONENTS, DIMENSION), 0.5)
    means[:, :dimension], stds[:, :dimension] = mixture.means[rows], mixture.stds[rows]
    return targets.gaussian_mixture(weights, means, stds)


class Group(NamedTuple):
    """Problems of one structure, solved by one program.

    Attributes:
      names: Of the problems.
      held_out: Whether each was kept from choosing.
      schedule_name: Of the schedule.
      schedule: The schedule.
      denoisers: A pytree with a leading axis of problems.
      starts: (P, S, D), where the exact flow begins.
      ends: (P, S, D), where it ends.
      active: (P, D), 1 for the entries whose error counts.
    """

    names: tuple[str, ...]
    held_out: tuple[bool, ...]
    schedule_name: str
    schedule: Any
    denoisers: Any
    starts: Any
    ends: Any
    active: Any


def groups(seed: int, starts: int, train_steps: int) -> list[Group]:
    """Make the whole suite. Runs in float64.

    Args:
      seed: Of the starts and of the networks' training.
      starts: Starts per problem. Problems of more memory take half.
      train_steps: Optimiser steps of each trained network.

    Returns:
      Groups of problems that share a structure.
    """
    key = jax.random.key(seed)
    made = []
    for name in SCHEDULES:
        key, mixture_key, digit_key = jax.random.split(key, 3)
        made.append(_mixtures(name, make_schedule(name), mixture_key, starts))
        made += _digits(name, make_schedule(name), digit_key, starts // 2)
    for name, data, held_out in (
        ("moons", _moons(), False),
        ("digits", _all_digits(), True),
    ):
        for schedule_name in ("vp_linear", "edm"):
            key, network_key = jax.random.split(key)
            made.append(
                _network(
                    f"network on {name}",
                    data,
                    held_out,
                    schedule_name,
                    network_key,
                    starts // 2,
                    train_steps,
                )
            )
    return made


def _mixtures(schedule_name, schedule, key, starts):
    mixtures = CHOOSING | HELD_OUT
    distributions = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(padded(m) for m in mixtures.values())
    )
    active = np.array(
        [[i < m.means.shape[1] for i in range(DIMENSION)] for m in mixtures.values()],
        float,
    )
    denoisers, begin, end = _exact(distributions, schedule, key, starts)
    held_out = (False,) * len(CHOOSING) + (True,) * len(HELD_OUT)
    return Group(
        tuple(mixtures),
        held_out,
        schedule_name,
        schedule,
        denoisers,
        begin,
        end,
        active,
    )


def _digits(schedule_name, schedule, key, starts):
    data = np.asarray(_all_digits(), np.float64)
    for held_out, images in ((False, data[:128]), (True, data[128:256])):
        key, group_key = jax.random.split(key)
        distribution = jax.tree.map(
            lambda leaf: jnp.asarray(leaf)[None], targets.empirical(images)
        )
        denoisers, begin, end = _exact(distribution, schedule, group_key, starts)
        name = "64-D, digits" + (" not seen" if held_out else "")
        yield Group(
            (name,),
            (held_out,),
            schedule_name,
            schedule,
            denoisers,
            begin,
            end,
            np.ones((1, DIMENSION)),
        )


@functools.partial(jax.jit, static_argnums=3)
def _exact(distributions, schedule, key, starts):
    """(denoisers, starts, ends) for stacked targets.

    Starts are draws of the exact distribution at t_max, ends those of the
    exact flow.
    """

    def one(distribution, key):
        denoiser = targets.denoiser(distribution, schedule)
        begin = jax.vmap(distribution.noised(schedule, schedule.t_max).sample)(
            jax.random.split(key, starts)
        )
        return denoiser, begin, flow_ends(denoiser, schedule, begin, 1e-10)

    count = jax.tree.leaves(distributions)[0].shape[0]
    return jax.lax.map(
        lambda pair: one(*pair), (distributions, jax.random.split(key, count))
    )


def _moons():
    target = targets.moons()
    return jax.vmap(target.sample)(jax.random.split(jax.random.key(0), 4096)) / 2


def _all_digits():
    return datasets.open_dataset("digits", 300, 0).train.reshape(-1, DIMENSION)


def _network(name, data, held_out, schedule_name, key, starts, train_steps):
    """An MLP trained to predict noise, and the flow that it learned."""
    schedule = make_schedule(schedule_name)
    init_key, train_key, start_key = jax.random.split(key, 3)
    denoiser = _trained(
        schedule, jnp.asarray(data, jnp.float32), init_key, train_key, train_steps
    )
    dimension = data.shape[1]
    begin = schedules.prior_std(schedule) * jax.random.normal(
        start_key, (starts, dimension), jnp.float64
    )
    end = flow_ends(denoiser, schedule, begin, 1e-9)
    stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], denoiser)
    return Group(
        (name,),
        (held_out,),
        schedule_name,
        schedule,
        stacked,
        begin[None],
        end[None],
        np.ones((1, dimension)),
    )


def _trained(schedule, data, init_key, train_key, steps):
    model = MLP(width=128, depth=3)
    scale = float(data.std())

    def make(params):
        net = jax.tree_util.Partial(model.apply, params)
        return predictions.denoiser(
            schedule, net, kind="noise", sigma_data=scale, inputs="scaled"
        )

    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            batch_key, loss_key = jax.random.split(key)
            batch = data[jax.random.randint(batch_key, (256,), 0, data.shape[0])]
            gradient = jax.grad(
                lambda p: losses.batch_loss(loss_key, make(p), batch)[0]
            )(params)
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(
            step, (params, optimiser.init(params)), jax.random.split(train_key, steps)
        )[0][0]

    with jax.enable_x64(False):
        params = train(model.init(init_key, data[0], jnp.float32(0.0)))
    return make(jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params))
