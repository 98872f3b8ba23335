"""Sampling with a flow map, in one step or in several with noise between them."""

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from .base import Solver, factory

__all__ = ["flow_map"]


@factory
@checks.arguments(gamma=(checks.within, 0, 1))
def flow_map(gamma: float = 0.0) -> Solver:
    """Steps of a flow map, with or without new noise (Kim et al. 2024, algorithm 3).

        x_r = X_{t→r}(x_t),    ρ_r = √(1 − γ²) ρ_s
        x_s = (α_s/α_r) x_r + √(σ_s² − (α_s σ_r/α_r)²) z

    with ρ = σ/α. Pass the map where other solvers take a denoiser. It is called as
    m(x, t, s, *condition). The last step of a grid adds no noise.

    Args:
      gamma: γ in [0, 1]. 0 follows the map from time to time and is deterministic. 1
        goes to the last time of the grid in each step and adds all noise anew, which
        is the multistep sampling of consistency models (Song et al. 2023, algorithm
        1). Between them it is that of consistency trajectory models.

    Returns:
      A solver with one evaluation per step. No order is declared: with the exact map
      every grid is exact for γ = 0, and samples have the exact distribution for any γ.

    Raises:
      ValueError: If gamma lies outside [0, 1].

    Example:
      >>> m = dj.targets.flow_map(dj.targets.gaussian([1.0, 0.0], 0.1), schedule)
      >>> dj.sample(
      ...     key, m, schedule, solver=dj.solvers.flow_map(),
      ...     grid=[schedule.t_max, schedule.t_min], shape=(2,)
      ... ).shape
      (2,)
    """

    def prepare(problem, ts):
        start, end = ts[:-1], ts[1:]
        if gamma == 0:
            return start, end, jnp.ones_like(end), jnp.zeros_like(end)
        return start, *_lowered(problem.schedule, end, gamma)

    def step(problem, inputs, draw, x, state):
        t, r, scale, std = inputs
        x = problem.denoiser(x, t, r)
        return (scale * x + std * draw(0) if gamma else x), state

    name = f"flow_map({gamma:g})"
    return Solver(name, "denoiser", None, gamma > 0, _evaluations, prepare, step)


def _evaluations(steps, to_zero=False):
    return steps


def _lowered(schedule, end, gamma):
    """Times r below each end s, α_s/α_r, and the standard deviation of new noise."""
    last = end[-1]
    # The last time may be 0, which has no log-SNR.
    inner = jnp.where(end > last, end, schedule.t_max)
    r = jnp.broadcast_to(last, end.shape)
    if gamma < 1:
        log_snr = schedules.log_snr(schedule, inner) - np.log1p(-(gamma**2))
        lowest = schedules.time_of_log_snr(schedule, log_snr)
        r = jnp.maximum(lowest, last)
    r = jnp.where(end > last, r, last)
    scale = jnp.where(end > last, schedule.alpha(end) / schedule.alpha(r), 1)
    variance = schedule.sigma(end) ** 2 - (scale * schedule.sigma(r)) ** 2
    return r, scale, jnp.sqrt(jnp.where(end > last, variance, 0))
