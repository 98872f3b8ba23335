"""The interface of Langevin kernels, their states, and the steps that they share.

A kernel is a pair of pure functions for one chain, `state = init(x)` and
`state, info = step(key, state)`. The position x has any shape, and is the
field `x` of the state. Many chains are a `vmap`, which `chains.run_many` does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, noise
from ..numerics import float_dtype
from ..types import Array, Key, Scalar, as_pytree_callable

__all__ = ["Kernel", "Kinetic", "Position", "Scored", "StepInfo", "langevin_step"]


class Kernel(NamedTuple):
    """A Markov transition of one chain, as two pure functions.

    Both are pytrees, so that new parameters do not retrace.

    Attributes:
      init: x -> state, a NamedTuple or frozen dataclass with the position as
        `x`.
      step: (key, state) -> (state, info), with a `StepInfo`.
    """

    init: Callable[[Array], Any]
    step: Callable[[Key, Any], tuple[Any, "StepInfo"]]


class StepInfo(NamedTuple):
    """Report of one step. All entries have shape ().

    Attributes:
      log_alpha: log α, where α is the probability of accepting the proposal.
        It is 0 for kernels that accept every step.
      accepted: Whether the proposal was accepted.
      finite: False if the chain has diverged: the state or the density at the
        proposal is NaN, or a density is +infinity. Also False if the log
        densities are so large that their rounding, above ½ nat, decides the
        acceptance (float32 resolves about 4e6 nats). A density of 0 (log
        density −infinity) is never accepted, and counts as finite.
    """

    log_alpha: Array
    accepted: Array
    finite: Array

    @property
    def acceptance(self) -> Array:
        """The acceptance probability α."""
        return jnp.exp(self.log_alpha)


class Position(NamedTuple):
    """State of an unadjusted chain: its position and the number of steps taken."""

    x: Array
    count: Array


class Scored(NamedTuple):
    """State with log p(x), up to a constant, and the score ∇log p(x)."""

    x: Array
    log_density: Array
    score: Array


class Kinetic(NamedTuple):
    """State with a velocity of x's shape. `log_density` is 0 where it is not used."""

    x: Array
    velocity: Array
    log_density: Array
    score: Array


def langevin_step(x: Array, score: Array, size: Scalar, z: Array) -> Array:
    """Euler–Maruyama step of dx = ½ ∇log p dt + dw over the time ε.

        x + ½ ε ∇log p(x) + √ε z

    Args:
      x: Position, of any shape.
      score: ∇log p(x), shape of x.
      size: ε, in squared units of x, ().
      z: Standard normal noise, shape of x.

    Returns:
      The new position, shape of x.
    """
    return x + 0.5 * size * score + jnp.sqrt(size) * z


def log_proposal(y: Array, x: Array, score: Array, size: Scalar) -> Array:
    """Log density of `langevin_step` from x to y, without its normaliser.

        log N(y | x + ½ ε ∇log p(x), ε) + constant

    Args:
      y: Position after the step.
      x: Position before it, shape of y.
      score: ∇log p(x), shape of y.
      size: ε, ().

    Returns:
      The log density in nats, ().
    """
    # Divided by √ε before the square, which would leave float32's range in
    # small or large units.
    root = jnp.sqrt(size)
    return -0.5 * jnp.sum(((y - x) / root - 0.5 * root * score) ** 2)


def refresh(v: Array, decay: Scalar, z: Array) -> Array:
    """Exact Ornstein–Uhlenbeck step of a velocity with stationary distribution N(0, I).

        e^{−d} v + √(1 − e^{−2d}) z

    Args:
      v: Velocity.
      decay: d, the friction times the duration, ().
      z: Standard normal noise, shape of v.

    Returns:
      The new velocity, shape of v.
    """
    return jnp.exp(-decay) * v + jnp.sqrt(-jnp.expm1(-2 * decay)) * z


def normal(key: Key, x: Array, draw: int = 0) -> Array:
    """Standard normal noise of a step.

    Args:
      key: The step's key.
      x: An array of the noise's shape and dtype.
      draw: Number of the draw within the step, from 0.

    Returns:
      The noise, shape of x.
    """
    # Counters start at 1, because `metropolis` takes what the key hashes to at
    # 0.
    return noise.normal(key, 1 + draw, x.shape, x.dtype)


def draw_velocity(key: Key, state: Any) -> Any:
    """A kinetic state with a velocity drawn from N(0, I).

    With the velocity 0 of `init` a state does not have the kernel's stationary
    distribution, whatever the distribution of x.

    Args:
      key: The key of the chain's first step.
      state: A state. One that is not kinetic is returned unchanged.

    Returns:
      The state.
    """
    if not isinstance(state, Kinetic):
        return state
    return state._replace(velocity=normal(key, state.x, 2))


# ---- acceptance

_UNRESOLVED = 0.5
"""Rounding of log densities, in nats, above which it must not decide an acceptance."""


def always(*parts: Array) -> StepInfo:
    """Report of an unadjusted step, from the parts of the state after it."""
    finite = jnp.stack([jnp.all(jnp.isfinite(part)) for part in parts]).all()
    return StepInfo(jnp.zeros((), parts[0].dtype), jnp.ones((), bool), finite)


def metropolis(key: Key, before: Array, after: Array, balance: Array) -> StepInfo:
    """Metropolis' acceptance of a proposal.

        log α = min(0, log p(y) − log p(x) + balance)

    Args:
      key: The step's key.
      before: log p(x) at the position x, ().
      after: log p(y) at the proposal y, ().
      balance: The other terms of the log acceptance ratio, ().

    Returns:
      The report, with the decision in `accepted`.
    """
    log_ratio = after - before + balance
    outside = jnp.isneginf(after)
    log_alpha = jnp.where(outside, -jnp.inf, jnp.minimum(log_ratio, 0))
    accepted = jnp.log(jax.random.uniform(key, (), log_alpha.dtype)) < log_alpha
    # Far from the mode the difference is large beside the rounding, and the
    # decision is certain however large both log densities are. The comparison
    # is False for NaN.
    rounding = jnp.finfo(log_alpha.dtype).eps * jnp.maximum(
        jnp.abs(before), jnp.abs(after)
    )
    difference = jnp.maximum(jnp.abs(after - before), jnp.abs(log_ratio))
    close = difference <= 2 * rounding
    lost = (rounding > _UNRESOLVED) & jnp.isfinite(rounding) & close
    finite = ~(jnp.isnan(log_alpha) | jnp.isposinf(after) | lost)
    return StepInfo(log_alpha, accepted & finite, finite)


def choose(accepted: Array, proposal: Any, state: Any) -> Any:
    """One of two states.

    Args:
      accepted: Whether it is the proposal, ().
      proposal: A state.
      state: Another, of the same structure.

    Returns:
      The proposal where it was accepted, the state elsewhere.
    """
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal, state)


# ---- construction of kernels and states


def kernel(algorithm: Any) -> Kernel:
    """The kernel of a pytree with methods `init` and `step`."""
    return Kernel(
        as_pytree_callable(algorithm.init), as_pytree_callable(algorithm.step)
    )


def value_and_score(density: Any, x: Array) -> tuple[Array, Array]:
    """Log density and score, the latter 0 instead of NaN where the density is 0.

    Args:
      density: A `LogDensity` or `Tempered`.
      x: Position.

    Returns:
      log p(x), (), and ∇log p(x), shape of x.
    """
    value, score = density.value_and_score(x)
    return value, jnp.where(jnp.isneginf(value), 0, score)


def scored(density: Any, x: Array) -> Scored:
    """The first state at a position.

    Args:
      density: A `LogDensity` or `Tempered`.
      x: Position.

    Returns:
      The state.

    Raises:
      ValueError: If the log density at x is concrete and not finite.
    """
    state = Scored(x, *value_and_score(density, x))
    raise_unless_finite("x", state)
    return state


def start_position(x: Any) -> Array:
    """A finite first position, in float32 at least. ValueError if it is not finite."""
    x = checks.finite_array("x", x)
    return x.astype(float_dtype(x))


def check_step_size(name: str, value: Any) -> Any:
    """Check a step size.

    Args:
      name: The argument's name.
      value: A number.

    Returns:
      The number.

    Raises:
      ValueError: If it is not positive, or 0 or infinite in the dtype of the
        state.
    """
    limits = np.finfo(float_dtype(checks.positive(name, value)))
    return checks.within(name, value, float(limits.tiny), float(limits.max))


def raise_unless_finite(name: str, states: Any) -> None:
    """Check that chains start where the density is finite and not 0.

    Args:
      name: The argument's name.
      states: States of one chain or, with a leading axis, of many. Those that
        are traced or have no `log_density` are not checked.

    Raises:
      ValueError: If a log density is not finite. The message names the first
        such chain.
    """
    values = getattr(states, "log_density", None)
    if values is None or checks.is_traced(values):
        return
    values = np.atleast_1d(np.asarray(values))
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        position = np.asarray(states.x).reshape(values.size, -1)[bad[0]]
        raise ValueError(
            f"{name} must lie where the log density is finite, got {values[bad[0]]} at "
            f"{position} for chain {bad[0]}, the first of {bad.size} of {values.size}"
        )
