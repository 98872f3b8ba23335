"""Uniform distributions on boxes, and these under Gaussian noise."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..distributions.base import compiled_eagerly
from ..distributions.mixtures import exactly, log_sum
from ..distributions.normal import log_normal_interval
from ..types import Array, ArrayLike, Key, Scalar, pytree
from .base import noised

__all__ = ["UniformBoxes", "uniform_boxes"]


@pytree
class UniformBoxes:
    """A mixture of uniform distributions on boxes, convolved with N(0, std²).

    The boxes are parallel to the axes. See `uniform_boxes`.
    """

    weights: Array  # (K,)
    lower: Array  # (K, D)
    upper: Array  # (K, D)
    std: Any  # (), 0 for sharp boxes

    @compiled_eagerly
    def convolved(self, alpha: Scalar, sigma: Scalar) -> "UniformBoxes":
        """The distribution of α x + σ ε.

        The boxes are scaled by α, and std becomes √(α² std² + σ²).

        Args:
          alpha, sigma: α and σ, each of shape ().

        Returns:
          A target of the same kind.
        """
        return UniformBoxes(
            self.weights,
            alpha * self.lower,
            alpha * self.upper,
            _hypotenuse(alpha * self.std, sigma),
        )

    noised = noised

    @compiled_eagerly
    def log_prob(self, x: Array) -> Array:
        """log p(x) in nats, shape ().

            log Σ_k w_k ∏_d (Φ((x − a)/s) − Φ((x − b)/s)) / (b − a)

        For s = 0 the factors are indicators.
        """
        checks.one_of_shapes("x", x, [self.lower.shape[1:]])
        return log_sum(self._log_joint(x))

    @compiled_eagerly
    def posterior_mean(self, x: Array, alpha: Scalar, sigma: Scalar) -> Array:
        """E[x_0 | α x_0 + σ ε = x].

            Σ_k r_k (y_k + α std²/s² (x − α y_k)),    s² = α² std² + σ²

        y_k is the mean of a normal distribution truncated to box k, and r_k
        the posterior weight of the box.

        Args:
          x: One example.
          alpha, sigma: α and σ, each of shape ().

        Returns:
          An array of x's shape.
        """
        checks.one_of_shapes("x", x, [self.lower.shape[1:]])
        seen = _hypotenuse(alpha * self.std, sigma) == 0  # α x_0 itself is observed
        noised = self.convolved(alpha, jnp.where(seen, 1, sigma))
        width, centre = self.upper - self.lower, 0.5 * (self.lower + self.upper)
        scale, share = noised.std, jnp.where(alpha == 0, 1, alpha)
        a, b, delta = noised._standardised(x)
        middle = 0.5 * (a + b)
        narrow, thin = _is_narrow(middle, delta)
        _, slope = jax.jvp(
            log_normal_interval, _wide(narrow | thin, a, b), (jnp.ones_like(a),) * 2
        )
        # in a box that is narrow beside the noise the last form divides 0 by α
        shift = jnp.where(
            thin, _thin_shift(middle, delta, thin), _narrow_shift(middle, delta, narrow)
        )
        inside = jnp.where(
            narrow | thin, centre + shift * width, (x + scale * slope) / share
        )
        y = jnp.clip(inside, self.lower, self.upper)
        y = y + alpha * (self.std / scale) ** 2 * (x - alpha * y)
        posterior = jax.nn.softmax(noised._log_joint(x)) @ y
        return jnp.where(seen, x / share, posterior)

    def _standardised(self, x):
        """((x − b)/s, (x − a)/s, (b − a)/s), (K, D) each, s = 1 for sharp boxes."""
        scale = jnp.where(self.std == 0, 1, self.std)
        return (
            (x - self.upper) / scale,
            (x - self.lower) / scale,
            (self.upper - self.lower) / scale,
        )

    def _log_joint(self, x):
        """log w_k + log of the density of box k, (K,)."""
        a, b, delta = self._standardised(x)
        middle = 0.5 * (a + b)
        narrow, thin = _is_narrow(middle, delta)
        interval = log_normal_interval(*_wide(narrow | thin, a, b)) - jnp.log(
            jnp.where(narrow | thin, 1, delta)
        )
        smooth = jnp.where(narrow, _narrow_interval(middle, delta, narrow), interval)
        smooth = jnp.where(thin, _thin_interval(middle, delta, thin), smooth)
        sharp = self.std == 0
        width = jnp.where(sharp & (delta > 0), delta, 1)
        inside = jnp.where(
            (x >= self.lower) & (x < self.upper), -jnp.log(width), -jnp.inf
        )
        log_density = jnp.where(
            sharp, inside, smooth - jnp.log(jnp.where(sharp, 1, self.std))
        )
        return jnp.log(self.weights) + log_density.sum(-1)

    @compiled_eagerly
    def mean(self) -> Array:
        """Σ w_k (a_k + b_k)/2, (D,)."""
        return self.weights @ (0.5 * (self.lower + self.upper))

    @compiled_eagerly
    def covariance(self) -> Array:
        """Σ w_k (diag((b_k − a_k)²/12) + c_k c_kᵀ) + std² I, (D, D).

        c_k is the centre of box k less the mean.
        """
        centred = 0.5 * (self.lower + self.upper) - self.mean()
        spread = self.weights @ ((self.upper - self.lower) ** 2 / 12) + self.std**2
        return jnp.diag(spread) + jnp.einsum(
            "k,ki,kj->ij", self.weights, centred, centred
        )

    @compiled_eagerly
    def variance(self) -> Array:
        """The diagonal of the covariance, (D,)."""
        return jnp.diagonal(self.covariance())

    @compiled_eagerly
    def sample(self, key: Key) -> Array:
        """One draw, (D,)."""
        key_box, key_inside, key_noise = jax.random.split(key, 3)
        k = jax.random.categorical(key_box, jnp.log(self.weights))
        inside = jax.random.uniform(key_inside, self.lower.shape[1:], self.lower.dtype)
        noise = jax.random.normal(key_noise, inside.shape, inside.dtype)
        x = self.lower[k] + inside * (self.upper[k] - self.lower[k])
        return x + self.std * noise


def _hypotenuse(a, b):
    """√(a² + b²), with the gradient 0 where both are 0."""
    zero = (a == 0) & (b == 0)
    return jnp.where(zero, 0.0, jnp.hypot(jnp.where(zero, 1, a), b))


_NARROW = 0.05
"""Half the width of a standardised interval, times its distance from 0.

Up to this value four terms of a series suffice.
"""


def _is_narrow(middle, delta):
    """(narrow, thin): the series suffices, or the interval is thin but too far out."""
    narrow = (1 + jnp.abs(middle)) * delta < _NARROW
    return narrow, ~narrow & (delta < (1e-3 if delta.dtype == jnp.float32 else 1e-6))


def _thin_interval(middle, delta, thin):
    """log((Φ(m + δ/2) − Φ(m − δ/2)) / δ) for δ ≪ 1, to δ²/8.

    It is log φ(m) + log(sinh h / h) with h = mδ/2.
    """
    m, h = jnp.where(thin, middle, 1), jnp.abs(jnp.where(thin, 0.5 * middle * delta, 1))
    return (
        -0.5 * m**2
        - 0.5 * math.log(2 * math.pi)
        + h
        + jnp.log(-jnp.expm1(-2 * h))
        - jnp.log(2 * h)
    )


def _thin_shift(middle, delta, thin):
    """½ (coth h − 1/h), the derivative of log(sinh h / h) by m over δ."""
    h = jnp.where(thin, 0.5 * middle * delta, 1)
    return 0.5 * (1 / jnp.tanh(h) - 1 / h)


def _wide(narrow, a, b):
    """The interval's ends, or any others where it is narrow."""
    return jnp.where(narrow, -1, a), jnp.where(narrow, 1, b)


def _narrow_interval(middle, delta, narrow):
    """log((Φ(m + δ/2) − Φ(m − δ/2)) / δ) for δ(1 + |m|) < 0.05.

    To a relative error of δ⁶m⁶/322560 < 1e-13.
    """
    m, delta = jnp.where(narrow, middle, 0), jnp.where(narrow, delta, 0)
    p, q = (m * delta) ** 2, delta**2
    series = (p - q) / 24 + (p**2 - 6 * p * q + 3 * q**2) / 1920
    return -0.5 * m**2 - 0.5 * math.log(2 * math.pi) + jnp.log1p(series)


def _narrow_shift(middle, delta, narrow):
    """E[u]/δ for u of density ∝ φ(m − u) on [−δ/2, δ/2], between −½ and ½.

    It is the derivative of `_narrow_interval`.
    """
    m, delta = jnp.where(narrow, middle, 0), jnp.where(narrow, delta, 0)
    p, q = (m * delta) ** 2, delta**2
    series = (p - q) / 24 + (p**2 - 6 * p * q + 3 * q**2) / 1920
    return m * delta * (1 / 12 + (p - 3 * q) / 480) / (1 + series)


def uniform_boxes(
    weights: ArrayLike, lower: ArrayLike, upper: ArrayLike
) -> UniformBoxes:
    """The mixture Σ_k w_k U([a_k, b_k]) of uniform distributions on boxes.

    Under added noise each factor is a difference of two normal distribution
    functions.

    Args:
      weights: (K,), positive, summing to 1.
      lower: (K, D), the lower corners a_k.
      upper: (K, D), the upper corners b_k.

    Returns:
      A target over examples of shape (D,).

    Raises:
      ValueError: For weights that do not sum to 1, shapes that do not fit, or
        unless lower < upper everywhere, also after both are rounded to the
        working precision.

    Example:
      >>> box = dj.targets.uniform_boxes([1.0], [[0.0]], [[2.0]])
      >>> round(float(box.log_prob([0.5])), 4)
      -0.6931
    """
    (weights, exact_weights), (lower, _), (upper, _) = (
        exactly(name, value)
        for name, value in (("weights", weights), ("lower", lower), ("upper", upper))
    )
    checks.axes("lower", lower, "(K, D)")
    checks.one_of_shapes("upper", upper, [lower.shape])
    checks.one_of_shapes("weights", weights, [lower.shape[:1]])
    checks.probabilities("weights", exact_weights)
    checks.finite("lower", lower)
    checks.finite("upper", upper)
    checks.all_greater("upper", upper, "lower", lower)
    return UniformBoxes(weights, lower, upper, jnp.asarray(np.zeros((), lower.dtype)))
