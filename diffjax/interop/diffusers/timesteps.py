"""The timestep that a model of diffusers is called with at a time of a schedule."""

import jax.numpy as jnp
import numpy as np

from ... import checks, schedules
from ...schedules import Schedule
from ...types import Array, Scalar

__all__ = ["TRAIN_STEPS", "timestep"]

TRAIN_STEPS = 1000
"""Timesteps of a flow's unit of time."""


def timestep(
    schedule: Schedule, t: Scalar, *, num_train_timesteps: int = TRAIN_STEPS
) -> Array:
    """The timestep of a model at time t.

    A chain of T indices has the timesteps i − 1 = T t − 1, and the values between
    them. A rectified flow has the timestep `num_train_timesteps` · t.

    Args:
      schedule: Made by `from_betas` or `rectified_flow`.
      t: A time, ().
      num_train_timesteps: Timesteps of a flow's unit of time.

    Returns:
      The timestep, (), a float.

    Raises:
      TypeError: If the schedule is of another kind.
    """
    accepted = (schedules.DiscreteChain, schedules.RectifiedFlow)
    makers = "schedules.from_betas or schedules.rectified_flow to have timesteps"
    checks.made_by("schedule", schedule, accepted, makers)
    if isinstance(schedule, schedules.RectifiedFlow):
        return num_train_timesteps * jnp.asarray(t)
    position = schedule.steps * jnp.asarray(t) - 1
    index = jnp.round(position)
    # Times are rounded. One within four units of rounding of an index is the index.
    slack = 4 * np.finfo(np.float32).eps * schedule.steps
    return jnp.where(jnp.abs(position - index) <= slack, index, position)
