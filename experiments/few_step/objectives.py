"""The objectives that are compared: what each learns from, and at which times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffjax import flow_maps, schedules

__all__ = ["FLOW_MATCHING", "OBJECTIVES", "PROGRESSIVE_STEPS", "Draw", "Objective"]

FIRST_STEPS, LAST_STEPS = 5, 80
"""Fewest and most steps of the grid of discrete consistency, which doubles."""

DISTILLED_STEPS = 16
"""Steps of the grid of consistency distillation, each one of Heun's method."""

LEVELS = 7
"""Halvings of the interval that shortcut models compose."""

PROGRESSIVE_STEPS = (16, 8, 4, 2, 1)
"""Steps of the student in each stage of progressive distillation. The first stage,
whose network begins at 0, takes as many training steps as two others.
"""


class Draw(NamedTuple):
    """Arguments of the loss of one example, beside the map.

    Attributes:
      x0: An example.
      noise: Standard normal, of its shape.
      u: (3,), uniform in [0, 1).
      condition: Further arguments of denoiser and map.
      progress: The share of training that is done, ().
      steps: Steps of the student of progressive distillation, ().
      teacher: The map that it learns from, of the stage before.
    """

    x0: Any
    noise: Any
    u: Any
    condition: tuple
    progress: Any
    steps: Any
    teacher: Any


def _state(task, draw, t):
    return schedules.perturb(task.schedule, draw.x0, t, draw.noise)


def _of_path(task, draw, x, t):
    """dx/dt of the straight path of the example."""
    return flow_maps.conditional_velocity(task.schedule, draw.x0, draw.noise, t)


def _of_teacher(task, draw, x, t):
    """dx/dt of the exact flow."""
    return task.velocity(x, t, *draw.condition)


def _from_start(task, u):
    """t = t_max in half of the cases and uniform in the others, s uniform below t."""
    low, high = task.schedule.t_min, task.schedule.t_max
    t = jnp.where(u[2] < 0.5, high, low + (high - low) * u[0])
    return t, low + (t - low) * u[1]


def _to_end(task, u):
    """t uniform, s = t_min in half of the cases and uniform below t in the others."""
    low, high = task.schedule.t_min, task.schedule.t_max
    t = low + (high - low) * u[0]
    return t, jnp.where(u[2] < 0.5, low, low + (t - low) * u[1])


def _on_grid(task, u, steps):
    """Neighbours t > r of a grid of equal steps, and s ≤ r as in `_to_end`."""
    low, high = task.schedule.t_min, task.schedule.t_max
    index = jnp.floor(u[0] * steps)
    r = low + (high - low) * index / steps
    t = low + (high - low) * (index + 1) / steps
    return t, r, jnp.where(u[2] < 0.5, low, low + (r - low) * u[1])


def _per_time(length):
    """The square of an error per unit of time, so that errors of the network's output
    count alike at all times.
    """
    return lambda error: flow_maps.squared(error / length)


def consistency_training(task, m, draw):
    """Both states lie on the path of one example."""
    steps = flow_maps.consistency_steps(
        jnp.int32(1000 * draw.progress), 1000, fewest=FIRST_STEPS, most=LAST_STEPS
    )
    t, r, s = _on_grid(task, draw.u, steps)
    return flow_maps.consistency_loss(
        m, _state(task, draw, t), t, *draw.condition,
        earlier=_state(task, draw, r), r=r, s=s, distance=_per_time(t - s),
    )  # fmt: skip


def consistency_distillation(task, m, draw):
    """The second state is that of a step of Heun's method on the teacher."""
    t, r, s = _on_grid(task, draw.u, DISTILLED_STEPS)
    x = _state(task, draw, t)
    slope = task.velocity(x, t, *draw.condition)
    ahead = task.velocity(x + (r - t) * slope, r, *draw.condition)
    earlier = x + 0.5 * (r - t) * (slope + ahead)
    return flow_maps.consistency_loss(
        m, x, t, *draw.condition,
        earlier=earlier, r=r, s=s, distance=_per_time(t - s),
    )  # fmt: skip


def continuous_consistency(task, m, draw, velocity=_of_teacher):
    """With normalised tangents."""
    t, s = _to_end(task, draw.u)
    x = _state(task, draw, t)
    return flow_maps.continuous_consistency_loss(
        m, x, t, *draw.condition, velocity=velocity(task, draw, x, t), s=s
    )


def mean_flow(task, m, draw, velocity=_of_teacher):
    """MeanFlow, without the adaptive weight."""
    t, s = _to_end(task, draw.u)
    x = _state(task, draw, t)
    return flow_maps.mean_flow_loss(
        m, x, t, *draw.condition, velocity=velocity(task, draw, x, t), s=s
    )


def shortcut(task, m, draw, velocity=_of_teacher):
    """One step against two of its own, on dyadic grids, and flow matching."""
    low, high = task.schedule.t_min, task.schedule.t_max
    steps = 2.0 ** jnp.floor(LEVELS * draw.u[0])
    index = jnp.floor(draw.u[1] * steps)
    s = low + (high - low) * index / steps
    t = low + (high - low) * (index + 1) / steps
    composed = flow_maps.composition_loss(
        m, _state(task, draw, t), t, *draw.condition, r=0.5 * (t + s), s=s
    )
    time = low + (high - low) * draw.u[2]
    x = _state(task, draw, time)
    slope = velocity(task, draw, x, time)
    matched = flow_maps.squared(m.velocity(x, time, *draw.condition) - slope)
    return composed + matched


def progressive(task, m, draw):
    """One step against two of the stage before, whose first is DDIM."""
    low, high = task.schedule.t_min, task.schedule.t_max
    index = jnp.floor(draw.u[0] * draw.steps)
    s = low + (high - low) * index / draw.steps
    t = low + (high - low) * (index + 1) / draw.steps

    def teacher(x, t, s, *condition):
        # A step of DDIM on rectified flow is one of Euler's method.
        euler = x + (s - t) * task.velocity(x, t, *condition)
        student = draw.teacher(x, t, s, *condition)
        return jnp.where(draw.steps == PROGRESSIVE_STEPS[0], euler, student)

    return flow_maps.composition_loss(
        m, _state(task, draw, t), t, *draw.condition,
        r=0.5 * (t + s), s=s, teacher=teacher,
    )  # fmt: skip


def lagrangian(task, m, draw):
    """Where the map leads, it must move with the teacher's velocity."""
    t, s = _from_start(task, draw.u)
    velocity = lambda x, t: task.velocity(x, t, *draw.condition)
    return flow_maps.lagrangian_loss(
        m, _state(task, draw, t), t, *draw.condition, velocity=velocity, s=s
    )


def eulerian(task, m, draw):
    """The map must not change along the teacher's flow."""
    t, s = _to_end(task, draw.u)
    x = _state(task, draw, t)
    return flow_maps.eulerian_loss(
        m, x, t, *draw.condition, velocity=_of_teacher(task, draw, x, t), s=s
    )


def flow_map_matching(task, m, draw):
    """The example is carried to t by the map, and back."""
    t, s = _from_start(task, draw.u)
    x = _state(task, draw, s)
    return flow_maps.flow_map_matching_loss(
        m, x, s, *draw.condition, velocity=_of_path(task, draw, x, s), t=t
    )


def _of_data(objective):
    """The objective with the velocity of paths in place of the teacher's."""
    return lambda task, m, draw: objective(task, m, draw, velocity=_of_path)


class Objective(NamedTuple):
    """A row of the comparison.

    Attributes:
      loss: (task, map, draw) -> the loss of one example.
      source: "data" or "teacher", what it learns from.
    """

    loss: Callable
    source: str


OBJECTIVES: dict[str, Objective] = {
    "consistency_training": Objective(consistency_training, "data"),
    "consistency_distillation": Objective(consistency_distillation, "teacher"),
    "continuous_consistency": Objective(continuous_consistency, "teacher"),
    "mean_flow": Objective(mean_flow, "teacher"),
    "shortcut": Objective(shortcut, "teacher"),
    "progressive": Objective(progressive, "teacher"),
    "lagrangian": Objective(lagrangian, "teacher"),
    "eulerian": Objective(eulerian, "teacher"),
    "flow_map_matching": Objective(flow_map_matching, "data"),
    "continuous_consistency_of_data": Objective(
        _of_data(continuous_consistency), "data"
    ),
    "mean_flow_of_data": Objective(_of_data(mean_flow), "data"),
    "shortcut_of_data": Objective(_of_data(shortcut), "data"),
}
"""The objectives by name."""


def _flow_matching(task, m, draw):
    low, high = task.schedule.t_min, task.schedule.t_max
    t = low + (high - low) * draw.u[0]
    x = _state(task, draw, t)
    return flow_maps.squared(m.velocity(x, t) - _of_path(task, draw, x, t))


FLOW_MATCHING = Objective(_flow_matching, "data")
"""The objective of a teacher that is a network. It gives a velocity, not a map."""
