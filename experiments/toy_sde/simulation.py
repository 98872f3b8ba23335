"""Simulated paths of the forward SDE, the reverse SDE and the probability flow."""

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

import jax
import numpy as np

import diffjax as dj
from diffjax import grids, schedules, sde, solvers, targets
from experiments.shared import devices
from experiments.shared.datasets import TOYS
from experiments.shared.mapping import map_examples
from experiments.shared.schedules import ScheduleName, make
from experiments.toy_sde.config import Config

TARGETS: dict[str, Callable[[], Any]] = TOYS | {
    "two_modes": lambda: targets.gaussian_mixture(
        [0.3, 0.7], [[-2.0, -1.0], [2.0, 1.0]], [0.4, 0.6]
    ),
}
_SIGMAS = {"sigma_min": 0.01, "sigma_max": 12.0}
SETTINGS = {"ve": _SIGMAS, "edm": _SIGMAS}
"""Settings of the schedules whose defaults do not suit data of this size."""
NOISE_TO_SIGNAL = (0.25, 0.7, 2.0)
"""σ/α at the snapshots between the two ends.

On each schedule the distributions there are the same, up to a factor α.
"""
PATHS = 16


@dataclasses.dataclass(frozen=True)
class Simulation:
    """One schedule's simulations by kind: all samples at five times, and a few
    whole paths.

    Attributes:
      ts: (N + 1,), increasing.
      times: (S,), those of the snapshots.
      snapshots: (S, samples, 2) by kind.
      paths: (PATHS, N + 1) by kind, the first coordinate.
    """

    ts: np.ndarray
    times: np.ndarray
    snapshots: dict[str, np.ndarray]
    paths: dict[str, np.ndarray]


def simulate(config: Config, target: Any, name: str, bar: Any) -> Simulation:
    """All paths of one schedule: upwards from exact p at t_min, downwards from
    exact p at t_max.
    """
    key = schedule_key(config, name)
    key_start, key_forward, key_end, key_reverse = jax.random.split(key, 4)
    schedule = make(name, SETTINGS)
    denoiser = targets.denoiser(target, schedule)
    # The grid decreases. The forward SDE walks it upwards.
    grid = grids.log_snr(schedule, config.steps)
    data = exact_samples(key_start, target, schedule, schedule.t_min, config.samples)
    noise = exact_samples(key_end, target, schedule, schedule.t_max, config.samples)

    def upwards(_, key, x):
        return solvers.integrate(
            key,
            solvers.euler_maruyama(),
            sde.forward(schedule),
            x=x,
            ts=grid[::-1],
            path=True,
        )

    def downwards(solver):
        paths = dj.sample_many(
            key_reverse,
            config.samples,
            denoiser,
            schedule,
            solver=solver,
            grid=grid,
            x_init=noise,
            path=True,
            mesh=devices.mesh(),
        )
        return devices.on_host(paths)[:, ::-1]

    ts = np.asarray(grid[::-1])
    at = snapshot_indices(schedule, ts)
    simulation = Simulation(ts, ts[at], {}, {})
    for kind, run in {
        "forward SDE": lambda: map_examples(
            upwards,
            (),
            (jax.random.split(key_forward, config.samples), data),
            chunk=config.samples,
        ),
        "reverse SDE": lambda: downwards(solvers.euler_maruyama()),
        "probability flow": lambda: downwards(solvers.heun()),
    }.items():
        states = run()  # (samples, N + 1, 2)
        simulation.snapshots[kind] = states[:, at].swapaxes(0, 1)
        # A view would keep all paths alive.
        simulation.paths[kind] = states[:PATHS, :, 0].copy()
        bar.update()
    return simulation


def schedule_key(config: Config, name: str) -> jax.Array:
    """The key of one schedule's draws."""
    return jax.random.fold_in(
        jax.random.key(config.seed), list(get_args(ScheduleName)).index(name)
    )


def exact_samples(
    key: jax.Array, target: Any, schedule: schedules.Schedule, t: Any, count: int
) -> jax.Array:
    """Samples of the exact p_t, (count, 2)."""
    return _samples(target, schedule, t, jax.random.split(key, count))


@jax.jit
def _samples(target, schedule, t, keys):
    return jax.vmap(target.noised(schedule, t).sample)(keys)


def snapshot_indices(schedule: schedules.Schedule, ts: np.ndarray) -> np.ndarray:
    """Indices of both ends and of the times nearest to the noise-to-signal
    ratios, increasing.
    """
    inner = _times(schedule, -2 * np.log(NOISE_TO_SIGNAL).astype(np.float32))
    return np.unique(
        [0, *(np.argmin(np.abs(ts - float(t))) for t in inner), len(ts) - 1]
    )


_times = jax.jit(schedules.time_of_log_snr)
