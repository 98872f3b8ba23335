"""The noise schedules that experiments compare, by the names of their flags."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from diffjax import schedules

__all__ = [
    "SCHEDULES",
    "ScheduleChoice",
    "ScheduleName",
    "choice",
    "make",
    "with_noise_floor",
]

ScheduleName = Literal["vp", "vp_cosine", "sub_vp", "ve", "edm", "rectified_flow"]
"""The type of a flag that names a schedule. The keys of `toy_sde` follow this order."""


class ScheduleChoice(NamedTuple):
    """A schedule's title in figures, and the factory that makes it."""

    title: str
    factory: Callable[..., schedules.Schedule]


SCHEDULES = {
    "vp_linear": ScheduleChoice("VP", schedules.vp_linear),
    "vp_cosine": ScheduleChoice("VP, cosine", schedules.vp_cosine),
    "sub_vp": ScheduleChoice("sub-VP", schedules.sub_vp),
    "ve": ScheduleChoice("VE", schedules.ve),
    "edm": ScheduleChoice("EDM", schedules.edm),
    "rectified_flow": ScheduleChoice("rectified flow", schedules.rectified_flow),
}
"""Every schedule by its name in diffjax."""


def choice(name: str) -> ScheduleChoice:
    """Look up a schedule in the table, where "vp" is short for "vp_linear"."""
    return SCHEDULES["vp_linear" if name == "vp" else name]


def make(name: str, settings: dict[str, dict[str, Any]] | None = None) -> Any:
    """Make a schedule of the table.

    Args:
      name: A key of `SCHEDULES`, or "vp".
      settings: Keyword arguments of the factories, by name. A schedule that is not
        mentioned takes its defaults.

    Returns:
      The schedule.
    """
    return choice(name).factory(**(settings or {}).get(name, {}))


def with_noise_floor(name: str, floor: float) -> Any:
    """A schedule whose noise ends where σ/α has a given value.

    Args:
      name: A key of `SCHEDULES`, or "vp".
      floor: σ/α at t_min.

    Returns:
      The schedule.
    """
    if name == "edm":
        return schedules.edm(sigma_min=floor)
    extra = {"sigma_min": min(0.01, floor / 2)} if name == "ve" else {}
    factory = functools.partial(choice(name).factory, **extra)
    return factory(
        t_min=float(_time_of_log_snr(factory(t_min=1e-6), -2 * math.log(floor)))
    )


_time_of_log_snr = jax.jit(schedules.time_of_log_snr)
