"""Objectives of flow maps, each of one example at given times.

A map m is anything that is called as m(x, t, s, *condition), such as
`flow_maps.flow_map` makes it. The gradient goes through the map that is trained. What
it is compared with is held fixed (`stop_gradient`), unless the docstring says
otherwise. An expectation over data, noise and times is the caller's mean.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks, schedules
from ..schedules import Schedule
from ..types import Array, ArrayLike, Scalar

__all__ = [
    "composition_loss",
    "conditional_velocity",
    "consistency_loss",
    "consistency_steps",
    "continuous_consistency_loss",
    "eulerian_loss",
    "flow_map_matching_loss",
    "lagrangian_loss",
    "mean_flow_loss",
    "pseudo_huber",
    "squared",
]


def squared(error: Array) -> Array:
    """The mean of the squared entries, ()."""
    return jnp.mean(error**2)


def pseudo_huber(c: float) -> Callable[[Array], Array]:
    """The pseudo-Huber distance √(‖e‖² + c²) − c (Song & Dhariwal 2024, section 3.4).

    Args:
      c: The length at which it turns from quadratic to linear, positive. The paper
        takes 0.00054 √D for D entries.

    Returns:
      A function of an error that returns the distance, ().

    Raises:
      ValueError: If c is not positive.
    """
    checks.positive("c", c)
    return lambda error: jnp.sqrt(jnp.sum(error**2) + c**2) - c


def conditional_velocity(
    schedule: Schedule, x0: ArrayLike, noise: ArrayLike, t: Scalar
) -> Array:
    """The velocity α′ x_0 + σ′ ε of the path of one example.

    Its conditional expectation given x_t is the velocity of the probability flow.

    Args:
      schedule: The noise schedule.
      x0: One example.
      noise: ε, shape of x0.
      t: A time, ().

    Returns:
      An array of x0's shape, in data units per time.
    """
    rates = schedules.rates(schedule, t)
    return rates.alpha_rate * jnp.asarray(x0) + rates.sigma_rate * jnp.asarray(noise)


# ---------------------------------------------------------------- consistency


def consistency_steps(
    step: ArrayLike, total: int, *, fewest: int = 10, most: int = 1280
) -> Array:
    """The number N of steps of the grid of times, which doubles during training.

        N(k) = min(fewest · 2^⌊k/K′⌋, most),   K′ = ⌊total / (log₂⌊most/fewest⌋ + 1)⌋

    Args:
      step: Training step k, from 0.
      total: Number of training steps.
      fewest: N at the start.
      most: The greatest N.

    Returns:
      N, an integer of step's shape.

    Raises:
      ValueError: If `total` or `fewest` is below 1, or `most` below `fewest`.

    References:
      Song & Dhariwal 2024, section 3.4, whose N counts the times, one more.

    Example:
      >>> [int(dj.flow_maps.consistency_steps(k, 800)) for k in (0, 100, 799)]
      [10, 20, 1280]
    """
    checks.integer("total", total, 1)
    checks.integer("fewest", fewest, 1)
    checks.integer("most", most, fewest)
    period = max(1, math.floor(total / (math.log2(most // fewest) + 1)))
    doublings = jnp.minimum(jnp.asarray(step) // period, 30)
    return jnp.minimum(fewest * 2.0**doublings, most).astype(jnp.int32)


def consistency_loss(
    m: Callable,
    x: Array,
    t: Scalar,
    *condition: Any,
    earlier: Array,
    r: Scalar,
    s: Scalar,
    target: Callable | None = None,
    distance: Callable[[Array], Array] = squared,
) -> Array:
    """Discrete consistency loss (Song et al. 2023, algorithms 2 and 3).

        d(m(x, t, s) − m⁻(earlier, r, s))

    x and `earlier` are taken from one trajectory. In consistency training `earlier` is
    α_r x_0 + σ_r ε with the x_0 and ε of x. In distillation it is a step of a solver
    from x. As r tends to t, the gradient per (t − r) tends to that of
    `continuous_consistency_loss`.

    Args:
      m: The map that is trained.
      x: One example at time t.
      t: Time of x, ().
      *condition: Further arguments of the map.
      earlier: The example at time r, shape of x.
      r: A time between s and t, ().
      s: Where both maps end, (), the least time for a consistency model.
      target: m⁻, such as an average of m's weights. None for m itself.
      distance: A function of the error, () for the loss.

    Returns:
      The loss, ().
    """
    fixed = jax.lax.stop_gradient((target or m)(earlier, r, s, *condition))
    return distance(m(x, t, s, *condition) - fixed)


def continuous_consistency_loss(
    m: Callable,
    x: Array,
    t: Scalar,
    *condition: Any,
    velocity: Array,
    s: Scalar,
    target: Callable | None = None,
    normalise: float | None = 0.1,
) -> Array:
    """Continuous-time consistency loss of the network's output (Lu & Song 2025).

        ‖F(x, t, s) − F⁻ + b g‖²/D,    g = dm⁻/dt = ∂_t m⁻ + (∂m⁻/∂x) velocity

    F is the output of m, and b its factor in m = a x + b F. Its gradient is the limit
    of the discrete one, E[∇m · g]. The sign of time here makes g vanish on the exact
    map.

    Args:
      m: The map that is trained, made by `flow_map`.
      x: One example at time t.
      t: Time of x, ().
      *condition: Further arguments of the map.
      velocity: dx/dt, shape of x: of a teacher, or `conditional_velocity`.
      s: Where the maps end, ().
      target: m⁻, made by `flow_map`. None for m itself.
      normalise: c of the tangent normalisation g/(‖g‖ + c), with which the gradient is
        bounded. None for no normalisation.

    Returns:
      The loss, ().

    References:
      Lu & Song 2025, section 4, for TrigFlow. Any schedule and kind of map is allowed
      here.
    """
    fixed = target or m
    _, change = _along(fixed, x, t, s, velocity, condition)
    tangent = m.scale(t, s) * change
    if normalise is not None:
        tangent = tangent / (jnp.linalg.norm(tangent.ravel()) + normalise)
    goal = fixed.predict(x, t, s, *condition) - tangent
    return squared(m.predict(x, t, s, *condition) - jax.lax.stop_gradient(goal))


def _along(m, x, t, s, velocity, condition):
    """m(x, t, s), and its derivative along dx/dt = velocity with s fixed."""
    t = jnp.asarray(t, jnp.result_type(x))
    of_start = lambda x, t: m(x, t, s, *condition)
    return jax.jvp(of_start, (x, t), (velocity, jnp.ones_like(t)))


# --------------------------------------------------------------- average velocity


def mean_flow_loss(
    m: Callable,
    x: Array,
    t: Scalar,
    *condition: Any,
    velocity: Array,
    s: Scalar,
    power: float = 0.0,
    floor: float = 1e-3,
) -> Array:
    """MeanFlow's loss of the average velocity u (Geng et al. 2025).

        w ‖u(x, t, s) − u⁻‖²/D,    u⁻ = velocity + (s − t) (∂_t u + (∂u/∂x) velocity)

    Where s = t it is flow matching.

    Args:
      m: The map that is trained, with `average_velocity`.
      x: One example at time t.
      t: Time of x, ().
      *condition: Further arguments of the map.
      velocity: dx/dt, shape of x: of a teacher, or `conditional_velocity`.
      s: The other end of the average, ().
      power: p of the adaptive weight w = 1/(‖error‖² + floor)^p, held fixed. 0 for
        w = 1. The paper takes 1.
      floor: Added to the squared error in the weight.

    Returns:
      The loss, ().
    """
    average = lambda x, t, s, *condition: m.average_velocity(x, t, s, *condition)
    u, change = _along(average, x, t, s, velocity, condition)
    error = u - jax.lax.stop_gradient(velocity + (s - t) * change)
    weight = (jnp.sum(error**2) + floor) ** -power
    return jax.lax.stop_gradient(weight) * squared(error)


def composition_loss(
    m: Callable,
    x: Array,
    t: Scalar,
    *condition: Any,
    r: Scalar,
    s: Scalar,
    teacher: Callable | None = None,
) -> Array:
    """The loss of one step against two, per unit of time.

        ‖(m(x, t, s) − m⁻(m⁻(x, t, r), r, s))/(s − t)‖²/D

    With m⁻ = m and r = (t + s)/2 it is the self-consistency of shortcut models (Frans
    et al. 2025). With a frozen teacher's DDIM steps it is progressive
    distillation (Salimans & Ho 2022, algorithm 2).

    Args:
      m: The map that is trained.
      x: One example at time t.
      t: Time of x, ().
      *condition: Further arguments of the maps.
      r: Where the first of two steps ends, between t and s, ().
      s: Where both ways end, (), not t.
      teacher: m⁻, called as m. None for m itself.

    Returns:
      The loss, ().
    """
    two = teacher or m
    middle = jax.lax.stop_gradient(two(x, t, r, *condition))
    fixed = jax.lax.stop_gradient(two(middle, r, s, *condition))
    return squared((m(x, t, s, *condition) - fixed) / (s - t))


# ------------------------------------------------------------- equations of the map


def lagrangian_loss(
    m: Callable,
    x: Array,
    t: Scalar,
    *condition: Any,
    velocity: Callable,
    s: Scalar,
    hold: bool = False,
) -> Array:
    """Lagrangian map distillation (Boffi et al. 2024).

        ‖∂_s m(x, t, s) − v(m(x, t, s), s)‖²/D

    The gradient goes through both terms. Zero loss at all times means that m is the
    flow map of v.

    Args:
      m: The map that is trained.
      x: One example at time t.
      t: Time of x, ().
      *condition: Further arguments of the map.
      velocity: v, a teacher's velocity (x, t) -> dx/dt.
      s: Time of the result, ().
      hold: Whether the velocity's value is held fixed, which saves its gradient.

    Returns:
      The loss, ().
    """
    end, rate = _of_end(m, x, t, s, condition)
    goal = velocity(end, s)
    return squared(rate - (jax.lax.stop_gradient(goal) if hold else goal))


def _of_end(m, x, t, s, condition):
    """m(x, t, s), and its derivative by s."""
    s = jnp.asarray(s, jnp.result_type(x))
    of_end = lambda s: m(x, t, s, *condition)
    return jax.jvp(of_end, (s,), (jnp.ones_like(s),))


def eulerian_loss(
    m: Callable, x: Array, t: Scalar, *condition: Any, velocity: Array, s: Scalar
) -> Array:
    """Eulerian map distillation (Boffi et al. 2024).

        ‖∂_t m(x, t, s) + (∂m/∂x) velocity‖²/D

    The gradient goes through the derivatives. With a teacher's velocity, zero loss at
    all times means that m is its flow map. `conditional_velocity` would add the
    variance of (∂m/∂x) velocity to the loss, whose minimum is then another map.

    Args:
      m: The map that is trained.
      x: One example at time t.
      t: Time of x, ().
      *condition: Further arguments of the map.
      velocity: A teacher's dx/dt at x, shape of x.
      s: Time of the result, ().

    Returns:
      The loss, ().
    """
    return squared(_along(m, x, t, s, velocity, condition)[1])


def flow_map_matching_loss(
    m: Callable, x: Array, s: Scalar, *condition: Any, velocity: Array, t: Scalar
) -> Array:
    """Flow map matching, from data alone (Boffi et al. 2024).

        ‖∂_s m(y, t, s) − velocity‖²/D + ‖m(y, t, s) − x‖²/D,    y = m(x, s, t)

    The example is carried from s to t by the map itself, and back. The gradient goes
    through all three evaluations.

    Args:
      m: The map that is trained.
      x: One example at time s, α_s x_0 + σ_s ε.
      s: Time of x, ().
      *condition: Further arguments of the map.
      velocity: `conditional_velocity` at s, shape of x.
      t: Another time, ().

    Returns:
      The loss, ().
    """
    start = m(x, s, t, *condition)
    back, rate = _of_end(m, start, t, s, condition)
    return squared(rate - velocity) + squared(back - x)
