"""Discrete distributions: bits, levels, and continuous ones rounded to levels.

Entries are independent. Probabilities sum to one over the values that an entry
may take.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from .. import checks
from ..types import Array, ArrayLike, Key, pytree
from .lattice import cell_of, check_levels, level_index, nearest_level
from .normal import (
    GAUSSIAN,
    Gaussian,
    gaussian,
    location_and_scale,
    log_normal_interval,
)

__all__ = [
    "Bernoulli",
    "DiscretisedGaussian",
    "DiscretisedLogistic",
    "bernoulli",
    "discretised_gaussian",
    "discretised_log_prob",
    "discretised_logistic",
    "level_moments",
]


def level_moments(logits: Array, levels: Array) -> tuple[Array, Array]:
    """Mean and variance of entries with a softmax over their levels.

    Args:
      logits: (*shape, K).
      levels: (K,).

    Returns:
      (mean, variance), each of the example's shape.
    """
    p = jax.nn.softmax(logits)
    levels = levels.astype(p.dtype)
    mean = p @ levels
    return mean, jnp.sum(p * (levels - mean[..., None]) ** 2, -1)


@pytree
class Bernoulli:
    """Independent bits, P(x_i = 1) = 1/(1 + e^{−logit_i}). See `bernoulli`."""

    logits: Any

    def log_prob(self, x: ArrayLike) -> Array:
        """Σ x·logit − log(1 + e^{logit}) in nats, shape ().

        An entry that is neither 0 nor 1, such as a pixel of 255, has
        probability 0: −∞ where x is traced, ValueError where it is concrete.
        """
        x = _example(x, self.logits)
        if not checks.is_traced(x):
            values = np.asarray(x)
            extent = f"got values from {values.min()} to {values.max()}"
            binary = np.all((values == 0) | (values == 1))
            checks.require(binary, f"x must be 0 or 1 in every entry, {extent}")
        value = jnp.sum(x * self.logits - jax.nn.softplus(self.logits))
        return jnp.where(jnp.any((x != 0) & (x != 1) & ~jnp.isnan(x)), -jnp.inf, value)

    def sample(self, key: Key) -> Array:
        """One draw, of zeros and ones."""
        return jax.random.bernoulli(key, self.mean()).astype(self.logits.dtype)

    def mean(self) -> Array:
        """The probability of a 1 in every entry."""
        return jax.nn.sigmoid(self.logits)

    def variance(self) -> Array:
        """p (1 − p) in every entry."""
        return jax.nn.sigmoid(self.logits) * jax.nn.sigmoid(-self.logits)


def bernoulli(logits: ArrayLike) -> Bernoulli:
    """Independent bits with log-odds `logits`, of the example's shape.

    Raises:
      ValueError: For concrete NaN or infinity.
    """
    return Bernoulli(checks.finite_array("logits", logits))


# ----------------------------------------------------- rounded to the nearest level


def _mean(levels, cumulative):
    """Mean of entries rounded to levels, from their distribution function F.

    Summation by parts: E f = f(l_K) − Σ_k (f(l_{k+1}) − f(l_k)) F(m_k), with
    the midpoints m_k between the levels.
    """
    below = _below_midpoints(levels, cumulative)
    return levels[-1] - jnp.tensordot(jnp.diff(levels), below, 1)


def _variance(levels, cumulative):
    """Variance, as `_mean` with f(l) = (l − mean)²."""
    below = _below_midpoints(levels, cumulative)
    column = levels.reshape(-1, *[1] * (below.ndim - 1))  # (K, 1, …)
    squares = (column - _mean(levels, cumulative)) ** 2  # (K, *shape)
    return squares[-1] - jnp.sum(jnp.diff(squares, axis=0) * below, 0)


def _below_midpoints(levels, cumulative):
    """F at the midpoints, (K − 1, *shape)."""
    # Rounding to the nearest level changes at the midpoints.
    return jax.vmap(cumulative)(0.5 * (levels[1:] + levels[:-1]))


@pytree
class DiscretisedLogistic:
    """A logistic distribution rounded to levels. See `discretised_logistic`."""

    location: Any
    log_scale: Any
    levels: Any  # (K,)

    def log_prob(self, x: ArrayLike) -> Array:
        """Σ log [s((b − m)/r) − s((a − m)/r)] over the entries' cells [a, b], shape ().

        s is the sigmoid, m the location, r the scale, the result in nats. An
        entry that is no level has probability 0: −∞ where x is traced,
        ValueError where it is concrete.
        """
        cell = cell_of(_example(x, self.location), self.levels)
        lower, upper = self._standard(cell.lower), self._standard(cell.upper)
        edge = cell.first | cell.last
        # The difference is s(b)·s(−a)·(1 − e^{a − b}) of the standardised ends, with
        # b − a from the cell's own width: no digit cancels in either tail.
        width = (cell.upper - cell.lower) * jnp.exp(-self.log_scale)
        inner = (
            jax.nn.log_sigmoid(upper)
            + jax.nn.log_sigmoid(-lower)
            + jnp.log(-jnp.expm1(-jnp.where(edge, 1.0, width)))
        )
        outer = jax.nn.log_sigmoid(jnp.where(cell.last, -lower, upper))
        return cell.impossible_off_levels(jnp.sum(jnp.where(edge, outer, inner)))

    def sample(self, key: Key) -> Array:
        """One draw, of levels."""
        # A scale of shape () serves all entries, but every entry has a draw of its own.
        scale = jnp.broadcast_to(jnp.exp(self.log_scale), self.location.shape)
        noise = jax.random.logistic(key, self.location.shape, self.location.dtype)
        return nearest_level(self.location + scale * noise, self.levels)

    def mean(self) -> Array:
        """Σ level · P(level) of every entry."""
        return _mean(self.levels, self._cumulative)

    def variance(self) -> Array:
        """Σ (level − mean)² P(level) of every entry."""
        return _variance(self.levels, self._cumulative)

    def _cumulative(self, value):
        return jax.nn.sigmoid(self._standard(value))

    def _standard(self, value):
        return (value - self.location) * jnp.exp(-self.log_scale)


@checks.arguments(levels=check_levels)
def discretised_logistic(
    location: ArrayLike, log_scale: ArrayLike, levels: ArrayLike
) -> DiscretisedLogistic:
    """Logistic distribution of every entry, rounded to the nearest level.

    The first and the last level take the tails.

    Args:
      location: Of the example's shape.
      log_scale: The logarithm of the scale, () or of location's shape.
      levels: (K,), increasing.

    Returns:
      The distribution.

    Raises:
      ValueError: For shapes that do not fit, levels that do not increase, and
        concrete NaN or infinity.

    References:
      Kingma et al. 2016, section 5. Salimans et al. 2017, section 2.1.

    Example:
      >>> pixel = dj.distributions.discretised_logistic([0.0], 0.0, [-1.0, 0.0, 1.0])
      >>> pixel.mean().tolist()
      [0.0]
    """
    location, log_scale = location_and_scale(
        "location", location, "log_scale", log_scale
    )
    return DiscretisedLogistic(location, log_scale, levels)


@pytree
class DiscretisedGaussian:
    """A Gaussian rounded to the nearest level. See `discretised_gaussian`."""

    gaussian: Any
    levels: Any  # (K,)

    def log_prob(self, x: ArrayLike) -> Array:
        """Σ log of the Gaussian's mass in the entries' cells, in nats, shape ().

        An entry that is no level has probability 0: −∞ where x is traced,
        ValueError where it is concrete.
        """
        cell = cell_of(_example(x, self.gaussian.loc), self.levels)
        std = jnp.sqrt(self.gaussian.var)
        lower = (cell.lower - self.gaussian.loc) / std
        upper = (cell.upper - self.gaussian.loc) / std
        edge = cell.first | cell.last
        inner = log_normal_interval(
            jnp.where(edge, -1.0, lower), jnp.where(edge, 1.0, upper)
        )
        outer = log_ndtr(jnp.where(cell.last, -lower, upper))
        return cell.impossible_off_levels(jnp.sum(jnp.where(edge, outer, inner)))

    def sample(self, key: Key) -> Array:
        """One draw, of levels."""
        return nearest_level(self.gaussian.sample(key), self.levels)

    def mean(self) -> Array:
        """Σ level · P(level) of every entry."""
        return _mean(self.levels, self._cumulative)

    def variance(self) -> Array:
        """Σ (level − mean)² P(level) of every entry."""
        return _variance(self.levels, self._cumulative)

    def _cumulative(self, value):
        std = jnp.sqrt(self.gaussian.var)
        return jax.scipy.special.ndtr((value - self.gaussian.loc) / std)


@checks.arguments(levels=check_levels)
def discretised_gaussian(
    mean: ArrayLike, log_std: ArrayLike, levels: ArrayLike
) -> DiscretisedGaussian:
    """Gaussian of every entry, rounded to the nearest level.

    The first and the last level take the tails. See `discretised_log_prob`.

    Args:
      mean: Of the example's shape.
      log_std: The logarithm of the standard deviation, () or of mean's shape.
      levels: (K,), increasing.

    Returns:
      The distribution.

    Raises:
      ValueError: As `discretised_logistic`.

    Example:
      >>> bit = dj.distributions.discretised_gaussian([0.0], 0.0, [-1.0, 1.0])
      >>> round(float(bit.log_prob(jnp.ones(1))), 4)
      -0.6931
    """
    return DiscretisedGaussian(gaussian(mean, log_std), levels)


@checks.arguments(gaussian=GAUSSIAN, x=checks.real_array, levels=check_levels)
def discretised_log_prob(gaussian: Gaussian, x: ArrayLike, levels: ArrayLike) -> Array:
    """Log probability of lattice data under a Gaussian rounded to the nearest level.

    The probability of an entry is the Gaussian's mass between the midpoints to
    the neighbouring levels. The first cell reaches to −∞ and the last to ∞, so
    that the probabilities of the levels sum to one.

    Args:
      gaussian: A `Gaussian` whose loc and var have x's shape or ().
      x: One example with entries among the levels.
      levels: (K,), increasing.

    Returns:
      Nats, shape (). An entry that is no level has probability 0: −∞ where x
      is traced.

    Raises:
      ValueError: Where a concrete entry of x is no level, or a variance is not
        positive.
      TypeError: For another distribution.

    References:
      Ho et al. 2020, equation 13.
    """
    checks.all_positive("gaussian.var", gaussian.var)
    if checks.is_traced(x, levels):
        return _discretised_log_prob(gaussian, x, levels)
    # Raises for an entry that is no level, before the program that gives it −∞
    level_index(x, levels)
    return _discretised_log_prob_compiled(gaussian, x, levels)


def _discretised_log_prob(gaussian, x, levels):
    loc = jnp.broadcast_to(gaussian.loc, x.shape)
    return DiscretisedGaussian(Gaussian(loc, gaussian.var), levels).log_prob(x)


_discretised_log_prob_compiled = jax.jit(_discretised_log_prob)


def _example(x, location):
    x = checks.finite_array("x", x)
    checks.one_of_shapes("x", x, [jnp.shape(location)])
    return x
