"""SDEs on the line whose densities are known, for `fokker_planck`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffjax import schedules, sde, targets

NOISE_TO_SIGNAL = (0.3, 1.0, 3.0)
"""σ/α where residuals are measured and, between the two ends, densities are drawn."""


@dataclasses.dataclass(frozen=True)
class Process:
    """An SDE on the line whose distribution at ts[0] is known.

    Attributes:
      sample: key -> x (1,) at the first time.
      log_prob: (x, t) -> (), exact at any t, or at the first only where
        `at_rest` is set.
      at_rest: x -> (), the distribution as t → ∞, up to a constant.
      ends: Ends of the line of cells.
      times: First and last time.
      snapshots: Times in between that are measured and drawn.
    """

    title: str
    sde: sde.SDE
    sample: Callable[[jax.Array], jax.Array]
    log_prob: Callable[[Any, Any], Any]
    ends: tuple[float, float]
    times: tuple[float, float]
    snapshots: tuple[float, ...]
    at_rest: Callable[[Any], Any] | None = None


def diffusing(title: str, schedule: schedules.Schedule, reach: float) -> Process:
    """A mixture carried to noise by the forward SDE."""
    target = targets.gaussian_mixture([0.35, 0.65], [[-1.5], [1.0]], [0.25, 0.5])
    inner = schedules.time_of_log_snr(
        schedule, -2 * jnp.log(jnp.asarray(NOISE_TO_SIGNAL))
    )
    return Process(
        title,
        sde.forward(schedule),
        target.noised(schedule, schedule.t_min).sample,
        lambda x, t: target.noised(schedule, t).log_prob(x),
        (-reach, reach),
        (float(schedule.t_min), float(schedule.t_max)),
        tuple(float(t) for t in inner),
    )


def double_well() -> Process:
    """Langevin dynamics at e^{−3(x² − 1)²/2}/Z from the right-hand well.

    Half of the mass crosses to the other well, at a rate of 0.3.
    """
    well = targets.energy(lambda x: -1.5 * jnp.sum((x**2 - 1) ** 2))
    start = targets.gaussian([1.0], 0.15)
    return Process(
        "Langevin in a double well",
        sde.langevin(well.log_prob),
        start.sample,
        lambda x, t: start.log_prob(x),
        (-2.5, 2.5),
        (0.0, 16.0),
        (0.08, 0.8, 3.2),
        at_rest=well.log_prob,
    )


PROCESSES: dict[str, Callable[[], Process]] = {
    "vp": lambda: diffusing("VP", schedules.vp_linear(), 7.0),
    "ve": lambda: diffusing("VE", schedules.ve(sigma_min=0.01, sigma_max=6.0), 32.0),
    "langevin": double_well,
}


def over_line(log_prob: Callable[[Any, Any], Any]) -> Callable[[Any, Any], jax.Array]:
    """Map a log density (x, t) to (centres (C,), ts (S,)) -> densities (S, C)."""
    at_point = jax.vmap(lambda x, t: jnp.exp(log_prob(x[None], t)), in_axes=(0, None))
    return jax.vmap(at_point, in_axes=(None, 0))
