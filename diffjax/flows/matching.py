"""Flow matching: fits a velocity to those of random paths from data to noise.

An interpolant x_t = α(t) x_0 + σ(t) x_1 + γ(t) z has data at t = 0, noise at t
= 1 and the velocity α′ x_0 + σ′ x_1 + γ′ z. Regressing it on x_t gives E[velocity |
x_t]. The flow of that field has the distribution of x_t at every t, whatever
the pairing of x_0 and x_1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checks, losses, predictions, sde
from ..numerics import float_dtype
from ..predictions import NetworkDenoiser
from ..solvers import requirements
from ..types import (
    Array,
    ArrayLike,
    Key,
    PyTree,
    Scalar,
    Velocity,
    as_pytree_callable,
    pytree,
)
from .compiled import call
from .continuous import MADE, VELOCITY, Continuous, check_parts
from .interpolants import INTERPOLANT, BridgeVariance, Interpolant, with_spread
from .pairings import Pairing, check_pairing, independent

__all__ = [
    "Examples",
    "bridge_loss",
    "bridge_sde",
    "curvature",
    "examples",
    "matching_loss",
    "reflow_pairs",
    "velocity_denoiser",
]

NOISE = (checks.callable_, "noise(x, t)")


class Examples(NamedTuple):
    """A batch to regress on. Every array has the leading axis B.

    Attributes:
      x: x_t.
      t: Times, (B,).
      velocity: dx_t/dt.
      z: Standard normal noise, None without γ.
      x0: Data.
      x1: Noise.
      condition: Condition of x_0.
    """

    x: Array
    t: Array
    velocity: Array
    z: Array | None
    x0: Array
    x1: Array
    condition: PyTree


@checks.arguments(
    key=checks.key,
    interpolant=INTERPOLANT,
    x0=checks.finite_batch,
    x1=checks.optional(requirements.check_example),
    pairing=checks.optional(check_pairing),
    times=losses.times.argument,
)
def examples(
    key: Key,
    interpolant: Interpolant,
    x0: ArrayLike,
    x1: ArrayLike | None = None,
    *,
    pairing: Pairing | None = None,
    condition: PyTree = None,
    times: str | losses.times.TimeDistribution = "uniform",
) -> Examples:
    """Random states x_t at stratified random times, with the velocities to fit to.

    Args:
      key: A typed key.
      interpolant: Made by `interpolant` or `bridge`.
      x0: Data, (B, *shape).
      x1: Noise, shape of x0. Drawn from N(0, I) by default.
      pairing: One of `flows.pairings`, which reorders the noise. Default
        `independent()`, which leaves a given x1 in its order. Where it returns
        an index out of range, as `sinkhorn` does for NaN, the noise is NaN.
      condition: Pytree of leading axis B, which stays with x0.
      times: Distribution of the times, one of `losses.times` or a name of
        `losses.TIME_DISTRIBUTIONS`.

    Returns:
      The batch.

    Raises:
      TypeError: If an argument has another type.
      ValueError: If shapes do not fit, or concrete values are NaN or infinite.

    Example:
      >>> xs = target.sample(key)[None]
      >>> dj.flows.examples(key, dj.flows.interpolant(), xs).velocity.shape
      (1, 2)
    """
    pairing = independent() if pairing is None else pairing
    x0 = x0.astype(float_dtype(x0))
    checks.optional(checks.one_of_shapes, [x0.shape])("x1", x1)
    checks.leading_axis("condition", condition, "x0", x0.shape[0])
    return call(_examples, key, interpolant, x0, x1, pairing, condition, times=times)


def _examples(key, interpolant, x0, x1, pairing, condition, times):
    key_noise, key_pairs, key_time, key_z = jax.random.split(key, 4)
    if x1 is None:
        x1 = jax.random.normal(key_noise, x0.shape, x0.dtype)
    # The noise moves and the data stay, so that conditions stay with their data.
    index = jnp.asarray(pairing(key_pairs, x0, x1))
    returned = f"{index.dtype} of shape {index.shape}"
    message = f"pairing must return {len(x0)} integers, got {returned}"
    fits = index.shape == x0.shape[:1] and jnp.issubdtype(index.dtype, jnp.integer)
    checks.require(fits, message)
    # an index out of range means that there is no noise for this example
    x1 = x1.at[index].get(mode="fill", fill_value=jnp.nan)
    t = losses.sample_times(key_time, x0.shape[0], interpolant.schedule, times)
    t = t.astype(x0.dtype)
    z = None
    if interpolant.variance is not None:
        z = jax.random.normal(key_z, x0.shape, x0.dtype)
    x = jax.vmap(interpolant.state)(x0, x1, t, z)
    velocity = jax.vmap(interpolant.velocity)(x0, x1, t, z)
    return Examples(x, t, velocity, z, x0, x1, condition)


@checks.arguments(velocity=VELOCITY)
def matching_loss(
    key: Key,
    velocity: Velocity,
    interpolant: Interpolant,
    x0: ArrayLike,
    *,
    x1: ArrayLike | None = None,
    pairing: Pairing | None = None,
    condition: PyTree = None,
    times: str | losses.times.TimeDistribution = "uniform",
) -> tuple[Array, Array]:
    """Flow matching loss (Lipman et al. 2023, Theorem 2).

        L = E ‖u(x_t, t) − dx_t/dt‖²/D

    Its gradient is that of ‖u(x_t, t) − E[dx_t/dt | x_t]‖², and the flow of
    that mean has the distribution of x_t (Tong et al. 2023, Theorem 3.2).

    Args:
      key: A typed key.
      velocity: u(x, t) of one example, or u(x, t, condition_i) with a
        condition.
      interpolant: As in `examples`.
      x0: As in `examples`.
      x1: As in `examples`.
      pairing: As in `examples`.
      condition: As in `examples`.
      times: As in `examples`.

    Returns:
      (mean, losses) over the batch, shapes () and (B,).

    Raises:
      TypeError: As `examples`, and if velocity cannot be called.
      ValueError: As `examples`, and if velocity returns another shape than
        x's.

    Example:
      >>> loss, losses = dj.flows.matching_loss(
      ...     key, lambda x, t: -x, dj.flows.interpolant(), jnp.ones((4, 2)))
      >>> losses.shape
      (4,)
    """
    batch = examples(
        key, interpolant, x0, x1, pairing=pairing, condition=condition, times=times
    )
    return call(_matching_loss, as_pytree_callable(velocity), batch)


def _matching_loss(velocity, batch):
    losses = _errors("velocity(x, t)", velocity, batch, batch.velocity)
    return jnp.mean(losses), losses


@checks.arguments(velocity=VELOCITY, noise=NOISE)
def bridge_loss(
    key: Key,
    velocity: Velocity,
    interpolant: Interpolant,
    x0: ArrayLike,
    *,
    noise: Callable,
    x1: ArrayLike | None = None,
    pairing: Pairing | None = None,
    condition: PyTree = None,
) -> tuple[Array, Array]:
    """Loss of velocity and score at once (Tong et al. 2024, [SF]²M).

        L = E (‖u(x_t, t) − dx_t/dt‖² + ‖ẑ(x_t, t) − z‖²)/D

    z is independent of x_0 and x_1 under every pairing, so that −E[z | x_t]/γ
    is the score of x_t. With `bridge(s)` and the pairing `sinkhorn(s**2)`, the
    `bridge_sde` of the two is the Schrödinger bridge.

    Args:
      key: A typed key.
      velocity: u(x, t) of one example, or u(x, t, condition_i) with a
        condition.
      interpolant: One with γ, as made by `bridge`.
      x0: As in `examples`.
      noise: ẑ, called as velocity.
      x1: As in `examples`.
      pairing: As in `examples`.
      condition: As in `examples`.

    Returns:
      (mean, losses) over the batch, shapes () and (B,).

    Raises:
      TypeError: As `matching_loss`.
      ValueError: As `matching_loss`, and for an interpolant without γ.

    Example:
      >>> loss, _ = dj.flows.bridge_loss(
      ...     key, lambda x, t: -x, dj.flows.bridge(0.5), jnp.ones((4, 2)),
      ...     noise=lambda x, t: x)
      >>> loss.shape
      ()
    """
    batch = examples(
        key, with_spread(interpolant), x0, x1, pairing=pairing, condition=condition
    )
    fields = as_pytree_callable(velocity), as_pytree_callable(noise)
    return call(_bridge_loss, *fields, batch)


def _bridge_loss(velocity, noise, batch):
    losses = _errors("velocity(x, t)", velocity, batch, batch.velocity)
    losses = losses + _errors("noise(x, t)", noise, batch, batch.z)
    return jnp.mean(losses), losses


def _errors(name, field, batch, target):
    """‖field − target‖²/D of each example, (B,)."""
    conditions = () if batch.condition is None else (batch.condition,)

    # without a condition the velocity takes two arguments
    def one(x, t, target, *condition):
        value = field(x, t, *condition)
        checks.one_of_shapes(name, value, [jnp.shape(x)])
        return jnp.mean((value - target) ** 2)

    return jax.vmap(one)(batch.x, batch.t, target, *conditions)


@checks.arguments(interpolant=INTERPOLANT, pairing=checks.optional(check_pairing))
def velocity_denoiser(
    interpolant: Interpolant, velocity: Velocity, pairing: Pairing | None = None
) -> NetworkDenoiser:
    """Denoiser E[x_0 | x_t] of a velocity fitted to an interpolant without γ.

    It is `predictions.denoiser` of kind "velocity". On straight lines D = x −
    t u.

    Args:
      interpolant: What the velocity was fitted to, without γ.
      velocity: The fitted velocity, called as u(x, t).
      pairing: What it was fitted under, default `independent()`. Under another
        the noise depends on the data and the denoiser has `independent=False`.
        Deterministic solvers, `encode` and `log_prob` then remain valid. Stochastic
        solvers, `predictions.score` and guidance by scores raise TypeError.

    Returns:
      The denoiser (x, t) -> E[x_0 | x_t = x].

    Raises:
      TypeError: If interpolant or pairing has another type.
      ValueError: If the interpolant has γ: its velocity does not determine
        x_0. Use `continuous` there.

    Example:
      >>> straight = dj.flows.interpolant()
      >>> D = dj.flows.velocity_denoiser(straight, lambda x, t: jnp.ones_like(x))
      >>> D(jnp.array([2.0, 3.0]), 0.5).tolist()
      [1.5, 2.5]
    """
    message = (
        "interpolant must have no variance γ² for its velocity to give E[x_0 | x_t]; "
        "use flows.continuous"
    )
    checks.require(interpolant.variance is None, message)
    # Tweedie's formula for the score needs noise that is independent of the data.
    independent = pairing is None or pairing.independent
    return predictions.denoiser(
        interpolant.schedule, velocity, "velocity", independent=independent
    )


@pytree
class _BridgeDrift:
    """u + ½ g² ẑ/γ."""

    interpolant: Any
    velocity: Any
    noise: Any
    diffusion: Any

    def __call__(self, x, t):
        # −½ g² times the score −ẑ/γ, since the SDE runs downwards in time
        gain = 0.5 * self.diffusion(x, t) ** 2
        spread = self.interpolant.spread(t)[0]
        return self.velocity(x, t) + gain * self.noise(x, t) / spread


@pytree
class _Constant:
    value: Any

    def __call__(self, x, t):
        return jnp.asarray(self.value, jnp.result_type(x))


@checks.arguments(velocity=VELOCITY, noise=NOISE)
def bridge_sde(
    interpolant: Interpolant,
    velocity: Velocity,
    noise: Callable,
    diffusion: Scalar | None = None,
) -> sde.SDE:
    """SDE with the distribution of x_t at every t, whatever g ≥ 0 (Tong et al. 2024).

        dx = (u + ½ g² ẑ/γ) dt + g dw̄

    It runs downwards from noise to data. −ẑ/γ is the score. Solve it within
    the interpolant's interval, since ẑ/γ has no value at the ends.

    Args:
      interpolant: What the two were fitted to, with γ.
      velocity: u, fitted by `bridge_loss`.
      noise: ẑ, fitted by `bridge_loss`.
      diffusion: g, a constant. Default the s of `bridge(s)`, which makes it
        the Schrödinger bridge: the ends (x_0, x_1) of its paths are then
        distributed as in the entropic plan.

    Returns:
      The SDE.

    Raises:
      TypeError: If an argument has another type.
      ValueError: If the interpolant has no γ, or g is negative, or it is
        missing and the interpolant was not made by `bridge`.

    Example:
      >>> bridge = dj.flows.bridge(0.5)
      >>> process = dj.flows.bridge_sde(bridge, lambda x, t: -x, lambda x, t: x)
      >>> float(process.diffusion(jnp.zeros(2), 0.5))
      0.5
    """
    variance = with_spread(interpolant).variance
    if diffusion is None:
        message = (
            "diffusion must be given for an interpolant that is not made by "
            "flows.bridge, got None"
        )
        checks.require(isinstance(variance, BridgeVariance), message)
        diffusion = variance.std
    gain = _Constant(checks.non_negative("diffusion", diffusion))
    fields = as_pytree_callable(velocity), as_pytree_callable(noise)
    return sde.SDE(_BridgeDrift(interpolant, *fields, gain), gain)


@checks.arguments(key=checks.key, flow=check_parts, count=(checks.integer, 1))
def reflow_pairs(
    key: Key, flow: Any, count: int, condition: PyTree = None
) -> tuple[Array, Array]:
    """Noise and its image under a flow, to fit a straighter flow to (reflow).

    Fit with `matching_loss(key, …, x0, x1=x1, pairing=fixed_pairs())`. The
    distribution of x_0 stays the same, and every convex cost of the pairs
    falls or stays (Liu et al. 2023, Theorem 3.5).

    Args:
      key: A typed key. Pair i has the key fold_in(key, i).
      flow: Anything with a base, which has sample(key), and a bijector with
        forward.
      count: Number of pairs.
      condition: Pytree of leading axis count.

    Returns:
      (x_0, x_1): images and noise, (count, *shape) both.

    Raises:
      TypeError: If flow has no base or no bijector.
      ValueError: If count is below 1 or condition has another leading axis.

    Example:
      >>> base = dj.distributions.standard_normal((2,))
      >>> flow = dj.flows.flow(base, dj.flows.exponential())
      >>> x0, x1 = dj.flows.reflow_pairs(key, flow, 3)
      >>> bool(jnp.allclose(x0, jnp.exp(x1)))
      True
    """
    checks.leading_axis("condition", condition, "count", count)
    return call(_reflow_pairs, key, flow, condition, count=count)


def _reflow_pairs(key, flow, condition, count):
    # fold_in rather than split: pair i does not depend on count
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    x1 = jax.vmap(flow.base.sample)(keys)
    return jax.vmap(flow.bijector.forward)(x1, condition), x1


@checks.arguments(bijector=MADE, x=requirements.check_example)
def curvature(bijector: Continuous, x: ArrayLike, condition: PyTree = None) -> Array:
    """Distance of one path from a straight line (Liu et al. 2023).

        ∫ ‖(x_1 − x_0)/T − u(x_t, t)‖² dt,    T the length of the time interval

    By the trapezoid rule over the bijector's times. Its mean over the base is
    the straightness S of the paper, 0 where one Euler step is exact.

    Args:
      bijector: Made by `continuous`. With an adaptive solver it must have been
        given some times between its ends.
      x: One example at the base's end.
      condition: As the velocity takes it.

    Returns:
      The integral, in squared data units, shape ().

    Raises:
      TypeError: For a bijector of another kind.
      ValueError: For one of a single interval, and NaN or infinity in x.

    Example:
      >>> shift = dj.flows.continuous(lambda x, t: jnp.ones_like(x), 4)
      >>> float(dj.flows.curvature(shift, jnp.zeros(2)))
      0.0
    """
    message = (
        "bijector must have times between its ends for the path to be seen, got "
        f"{bijector.times}"
    )
    checks.require(len(bijector.times) >= 3, message)
    return call(_curvature, bijector, x, condition)


def _curvature(bijector, x, condition):
    states, times = bijector.path(x, condition), jnp.asarray(bijector.times)
    conditions = () if condition is None else (condition,)
    chord = (states[0] - states[-1]) / (times[0] - times[-1])
    slopes = jax.vmap(lambda x, t: bijector.velocity(x, t, *conditions))(
        states, times.astype(states.dtype)
    )
    axes = tuple(range(1, slopes.ndim))
    squares = jnp.sum((slopes - chord) ** 2, axis=axes)  # (N + 1,)
    # the bijector's times decrease, from the base to the data
    return jnp.trapezoid(squares[::-1], times[::-1])
