"""Weights that are learned: the logarithm u of the loss at each noise level.

The objective loss/e^u + u is least at u = log E[loss | noise level]. The gradient
in the network's parameters is then that of the loss divided by its expectation, so
that every noise level counts alike, whatever its weight was (Karras et al. 2024,
section 2.1 and appendix B.2, after Kendall et al. 2018).
"""

from typing import Protocol

import jax
import jax.numpy as jnp

from .. import checks, schedules
from ..numerics import float_dtype
from ..schedules import Schedule
from ..types import Array, ArrayLike, Key, Scalar, pytree

__all__ = ["Uncertainty", "at_time", "fourier", "table", "with_uncertainty"]

_FARTHEST = 40.0  # of log σ/α, which is infinite where there is no signal


class Uncertainty(Protocol):
    """Protocol of u: any callable pytree whose leaves are its parameters."""

    def __call__(self, log_sigma: Scalar) -> Array:
        """u at one noise level log σ/α, shape ()."""
        ...


@pytree
class Fourier:
    """A linear function of random Fourier features. Made by `fourier`."""

    frequencies: Array  # (features,), no parameter
    phases: Array  # (features,), no parameter
    weights: Array  # (features,)
    bias: Array  # ()

    def __call__(self, log_sigma: Scalar) -> Array:
        """u at one noise level log σ/α."""
        frequencies = jax.lax.stop_gradient(self.frequencies)
        # c_noise = ¼ log σ, the input of a network of EDM
        angles = frequencies * log_sigma / 4 + jax.lax.stop_gradient(self.phases)
        features = jnp.cos(angles) * (2 / len(frequencies)) ** 0.5
        return features @ self.weights + self.bias


@pytree
class Table:
    """Linear interpolation between equidistant levels. Made by `table`."""

    lowest: Scalar  # no parameter
    highest: Scalar  # no parameter
    values: Array  # (count,)

    def __call__(self, log_sigma: Scalar) -> Array:
        """u at one noise level log σ/α."""
        lowest, highest = jax.lax.stop_gradient((self.lowest, self.highest))
        last = self.values.shape[0] - 1
        place = jnp.clip((log_sigma - lowest) / (highest - lowest), 0.0, 1.0) * last
        index = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, last - 1)
        share = place - index.astype(place.dtype)
        return (1 - share) * self.values[index] + share * self.values[index + 1]


@checks.arguments(key=checks.key, features=(checks.width, 1), bandwidth=checks.positive)
def fourier(key: Key, features: int = 128, bandwidth: float = 1.0) -> Uncertainty:
    """u as a linear function of random Fourier features of the noise level.

        u = b + √(2/n) Σ_i w_i cos(2π(f_i ¼ log σ/α + φ_i))

    f_i ~ N(0, bandwidth²) and φ_i ~ U(0, 1) are drawn once and get no gradient.
    It starts at u = 0, where the objective is the loss itself.

    Args:
      key: A typed key.
      features: n, the number of features.
      bandwidth: Standard deviation of the frequencies.

    Returns:
      u, a pytree whose leaves `weights` and `bias` are fitted.

    Raises:
      ValueError: If a number is out of range.

    Example:
      >>> u = dj.losses.uncertainty.fourier(key, features=8)
      >>> float(u(0.5))
      0.0
    """
    key_frequency, key_phase = jax.random.split(key)
    dtype = float_dtype()
    frequencies = jax.random.normal(key_frequency, (features,), dtype)
    phases = jax.random.uniform(key_phase, (features,), dtype)
    turn = 2 * jnp.pi
    return Fourier(
        turn * bandwidth * frequencies,
        turn * phases,
        jnp.zeros(features, dtype),
        jnp.zeros((), dtype),
    )


@checks.arguments(count=(checks.integer, 2))
def table(lowest: float, highest: float, count: int = 32) -> Uncertainty:
    """u as a table over log σ/α, interpolated linearly and constant beyond its ends.

    It starts at u = 0, where the objective is the loss itself.

    Args:
      lowest: Least log σ/α of the table.
      highest: Greatest log σ/α of the table.
      count: Number of its equidistant levels, 2 or more.

    Returns:
      u, a pytree whose leaf `values` is fitted.

    Raises:
      ValueError: If a number is out of range.
    """
    lowest, highest = checks.number("lowest", lowest), checks.number("highest", highest)
    checks.greater("highest", highest, "lowest", lowest)
    ends = [jnp.asarray(end, float_dtype()) for end in (lowest, highest)]
    return Table(*ends, jnp.zeros(count, float_dtype()))


@checks.arguments(
    schedule=schedules.argument, u=(checks.callable_, "u(log_sigma) -> u")
)
def at_time(u: Uncertainty, schedule: Schedule, t: Scalar) -> Array:
    """u at a time of a schedule.

    Args:
      u: A function of log σ/α, as `fourier` and `table` make it.
      schedule: The noise schedule.
      t: A time, ().

    Returns:
      u(log σ/α), ().
    """
    log_sigma = -0.5 * schedules.log_snr(schedule, t)
    return u(jnp.clip(log_sigma, -_FARTHEST, _FARTHEST))


def with_uncertainty(loss: ArrayLike, u: ArrayLike) -> Array:
    """The objective of a loss and its learned uncertainty.

        loss e^−u + u

    Args:
      loss: Weighted losses, any shape.
      u: u at their noise levels, shape of loss.

    Returns:
      The objective, shape of loss. It is least at u = log E[loss], where it is
      1 + log E[loss].

    References:
      Karras et al. 2024, appendix B.2, equation 21.

    Example:
      >>> float(dj.losses.with_uncertainty(3.0, 0.0))
      3.0
    """
    loss, u = jnp.asarray(loss), jnp.asarray(u)
    return loss * jnp.exp(-u) + u
