"""The timestep that a model of diffusers is called with at a time of a schedule."""

from typing import Any

import jax.numpy as jnp

from ... import checks, schedules
from ...schedules import Schedule
from ...schedules.protocol import as_time
from ...types import Array, Scalar, pytree
from .chains import Chain

__all__ = ["TRAIN_STEPS", "AtTimestep", "check_schedule", "timestep"]

TRAIN_STEPS = 1000
"""Timesteps per unit of time of a rectified flow."""


ACCEPTED = (schedules.DiscreteChain, schedules.RectifiedFlow, schedules.EDM)
"""Schedules that have timesteps."""


def check_schedule(schedule: Schedule) -> None:
    """Raise TypeError unless a schedule has timesteps."""
    makers = "schedules.from_betas, rectified_flow or edm to have timesteps"
    checks.made_by("schedule", schedule, ACCEPTED, makers)


def timestep(schedule: Schedule, t: Scalar) -> Array:
    """The timestep of a model at time t.

    In a chain of T steps the time t = i/T is the timestep i − 1, and T t − 1 between
    them. A rectified flow has the timestep 1000 t, and EDM's schedule ¼ log t.

    Args:
      schedule: As `load_scheduler` returns it, or made by `from_betas`,
        `rectified_flow` or `edm`.
      t: A time, ().

    Returns:
      The timestep, (), a float.

    Raises:
      TypeError: If the schedule is of another kind.

    Example:
      >>> from diffjax.interop import diffusers
      >>> chain = dj.schedules.from_betas(dj.ddpm.linear_betas(1000))
      >>> float(diffusers.timestep(chain, 1.0))
      999.0
    """
    check_schedule(schedule)
    t = as_time(t)
    if isinstance(schedule, schedules.EDM):
        return 0.25 * jnp.log(t)
    if isinstance(schedule, schedules.RectifiedFlow):
        return TRAIN_STEPS * t
    position = schedule.steps * t - 1
    index = jnp.round(position)
    # Times of a grid are rounded, so that within four ulp of an index it is the index.
    slack = 4 * jnp.finfo(t.dtype).eps * schedule.steps
    whole = isinstance(schedule, Chain) and schedule.whole_timesteps
    near = whole or jnp.abs(position - index) <= slack
    return jnp.where(near, index, position)


@pytree
class AtTimestep:
    """A model that is called with a timestep, as a function of the schedule's time.

    Attributes:
      model: A callable (x, timestep, *condition). Only as many channels of its
        output are used as x has. Further ones are a learned variance.
      schedule: A schedule that `timestep` accepts, or None to call the model with t.
    """

    model: Any
    schedule: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The prediction of the model at an example and a time ().

        Args:
          x: (H, W, C).
          t: The time, ().
          *condition: Further inputs of the model.

        Returns:
          (H, W, C).
        """
        at = t if self.schedule is None else timestep(self.schedule, t)
        output = self.model(x, at, *condition)
        return output[..., : x.shape[-1]]
