"""The problems of `bench_solvers`: exact denoisers or a trained network, with
starts and exact ends.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from diffjax import schedules, targets
from experiments.score_sde import model as score_sde
from experiments.shared import datasets
from experiments.shared.solvers import flow_ends, make_schedule


def random_mixture(components: int, dimension: int, seed: int) -> targets.Mixture:
    """Overlapping components of equal weight.

    Standard deviations are 0.25 to 0.6, means are drawn from N(0, 1).
    """
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(components, dimension))
    return targets.gaussian_mixture(
        np.full(components, 1 / components),
        means,
        rng.uniform(0.25, 0.6, (components, dimension)),
    )


def digits(count: int = 256) -> targets.Empirical:
    """The distribution of equal mass on `count` of scikit-learn's digits, 64
    numbers each.
    """
    return targets.empirical(
        datasets.open_dataset("digits", 300, 0)
        .train[:count]
        .astype(np.float64)
        .reshape(count, -1)
    )


COVARIANCE = [[0.6, 0.25], [0.25, 0.3]]

TARGETS: dict[str, Callable[[], Any]] = {
    # Three times one component: a single Gaussian whose arrays have the shapes of
    # mixture_2d, so that the two share compiled programs.
    "gaussian": lambda: targets.gaussian_mixture(
        np.full(3, 1 / 3), np.tile([0.5, -1.0], (3, 1)), np.tile(COVARIANCE, (3, 1, 1))
    ),
    "mixture_2d": lambda: targets.gaussian_mixture(
        [0.2, 0.3, 0.5],
        [[1.0, 0.5], [-0.5, 0.0], [0.3, -1.2]],
        [
            [[0.3, 0.1], [0.1, 0.2]],
            [[0.2, 0.0], [0.0, 0.4]],
            [[0.1, -0.05], [-0.05, 0.1]],
        ],
    ),
    "mixture_6d": lambda: random_mixture(8, 6, seed=1),
    "mixture_16d": lambda: random_mixture(8, 16, seed=2),
    "held_out": lambda: random_mixture(8, 6, seed=11),
    "digits": digits,
    "other_2d": lambda: random_mixture(3, 2, seed=12),
}


class SolverTask(NamedTuple):
    """A denoiser under a schedule, with starts and the exact results.

    Starts are (seeds · starts, *shape), seed after seed. `distribution` maps t
    to the exact distribution of x_t. It is None for a trained network, of
    which only its flow is known.
    """

    target_name: str
    schedule_name: str
    denoiser: Any
    schedule: Any
    distribution: Any
    keys: Any
    starts: Any
    ends: Any
    exact: Any  # samples of p at t_min, shape of starts
    others: Any  # further ones


def is_run(name: str) -> bool:
    """Whether a target is named by the folder of a trained run."""
    return name not in TARGETS and (pathlib.Path(name) / "config.json").exists()


def problem(config: Any, target_name: str, schedule_name: str) -> SolverTask:
    """Starts, exact samples, and the ends of the exact flow."""
    target, schedule = TARGETS[target_name](), make_schedule(schedule_name)
    base = jax.random.key(config.seed)
    base = jax.random.fold_in(base, list(TARGETS).index(target_name))
    count = config.seeds * (
        config.starts if target_name != "digits" else max(config.starts // 8, 16)
    )
    distribution = functools.partial(target.noised, schedule)
    draws = [jax.random.split(key, count) for key in jax.random.split(base, 4)]
    starts = jax.vmap(distribution(schedule.t_max).sample)(draws[0])
    exact, others = (
        jax.vmap(distribution(schedule.t_min).sample)(keys) for keys in draws[1:3]
    )
    denoiser = targets.denoiser(target, schedule)
    ends = flow_ends(denoiser, schedule, starts, 1e-11)
    return SolverTask(
        target_name,
        schedule_name,
        denoiser,
        schedule,
        distribution,
        draws[3],
        starts,
        ends,
        exact,
        others,
    )


def trained_problem(config: Any, folder: str) -> SolverTask:
    """A trained network in float64 from draws of the prior, and the ends of its
    flow.

    It has a 64th of the starts.
    """
    model, denoiser = score_sde.load(pathlib.Path(folder), "float64")
    print(
        f"following the own flow of the network in {folder}, in float64: minutes for a "
        "large one",
        flush=True,
    )
    schedule = model.schedule
    keys = jax.random.split(
        jax.random.key(config.seed), config.seeds * max(config.starts // 64, 16)
    )
    draw = lambda key: (
        schedules.prior_std(schedule) * jax.random.normal(key, model.data.shape)
    )
    starts = jax.vmap(draw)(keys)
    ends = flow_ends(denoiser, schedule, starts, 1e-8)
    return SolverTask(
        folder, "of the run", denoiser, schedule, None, keys, starts, ends, None, None
    )
