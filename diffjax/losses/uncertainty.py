"""Weights that are learned: the logarithm u of the loss at each noise level.

The objective loss/e^u + u is least at u = log E[loss | noise level]. The gradient
in the network's parameters is then that of the loss divided by its expectation, so
that every noise level counts alike, whatever its weight was (Karras et al. 2024,
section 2.1 and appendix B.2, after Kendall et al. 2018).
"""

from typing import Protocol

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..numerics import float_dtype
from ..schedules import Schedule
from ..types import Array, ArrayLike, Scalar, pytree, static_field

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

    # No leaves but the parameters: a decay of weights would shrink the others.
    weights: Array  # (features,)
    bias: Array  # ()
    bandwidth: float = static_field()
    seed: int = static_field()

    def __call__(self, log_sigma: Scalar) -> Array:
        """u at one noise level log σ/α."""
        count = len(self.weights)
        # RandomState, because NumPy keeps its stream (NEP 19).
        draws = np.random.RandomState(self.seed)
        frequencies = 2 * np.pi * self.bandwidth * draws.standard_normal(count)
        phases = 2 * np.pi * draws.uniform(size=count)
        # c_noise = ¼ log σ, the input of a network of EDM
        dtype = self.weights.dtype
        angles = frequencies.astype(dtype) * log_sigma / 4 + phases.astype(dtype)
        return jnp.cos(angles) @ self.weights * (2 / count) ** 0.5 + self.bias


@pytree
class Table:
    """Linear interpolation between equidistant levels. Made by `table`."""

    values: Array  # (count,)
    lowest: float = static_field()
    highest: float = static_field()

    def __call__(self, log_sigma: Scalar) -> Array:
        """u at one noise level log σ/α."""
        last = self.values.shape[0] - 1
        position = (log_sigma - self.lowest) / (self.highest - self.lowest)
        position = jnp.clip(position, 0.0, 1.0) * last
        index = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, last - 1)
        rest = position - index.astype(position.dtype)
        return (1 - rest) * self.values[index] + rest * self.values[index + 1]


@checks.arguments(
    features=(checks.width, 1),
    bandwidth=checks.positive,
    seed=(checks.integer, 0, 2**32 - 1),
)
def fourier(
    features: int = 128, bandwidth: float = 1.0, *, seed: int = 0
) -> Uncertainty:
    """u as a linear function of random Fourier features of the noise level.

        u = b + √(2/n) Σ_i w_i cos(2π(f_i ¼ log σ/α + φ_i))

    f_i ~ N(0, bandwidth²) and φ_i ~ U(0, 1) are functions of `seed`, no
    parameters. It starts at u = 0, where the objective is the loss itself.

    Args:
      features: n, the number of features.
      bandwidth: Standard deviation of the frequencies.
      seed: Seed of frequencies and phases, at least 0.

    Returns:
      u, a pytree with the leaves `weights` and `bias`.

    Raises:
      ValueError: If a number is out of range.

    Example:
      >>> u = dj.losses.uncertainty.fourier(features=8)
      >>> float(u(0.5))
      0.0
    """
    dtype = float_dtype()
    weights, bias = jnp.zeros(features, dtype), jnp.zeros((), dtype)
    return Fourier(weights, bias, float(bandwidth), seed)


@checks.arguments(count=(checks.integer, 2))
def table(lowest: float, highest: float, count: int = 32) -> Uncertainty:
    """u as a table over log σ/α, interpolated linearly and constant beyond its ends.

    It starts at u = 0, where the objective is the loss itself.

    Args:
      lowest: Least log σ/α of the table.
      highest: Greatest log σ/α of the table.
      count: Number of its equidistant levels, 2 or more.

    Returns:
      u, a pytree with the leaf `values`.

    Raises:
      ValueError: If a number is out of range, or `highest` is not above
        `lowest`.

    Example:
      >>> u = dj.losses.uncertainty.table(-6.0, 4.0)
      >>> u.values.shape, float(u(0.5))
      ((32,), 0.0)
    """
    lowest, highest = checks.number("lowest", lowest), checks.number("highest", highest)
    checks.greater("highest", highest, "lowest", lowest)
    values = jnp.zeros(count, float_dtype())
    return Table(values, float(lowest), float(highest))


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
