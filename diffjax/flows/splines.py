"""Monotone rational-quadratic splines with linear tails.

Their values, inverses and slopes are finite everywhere, and so are the
gradients.
"""

import functools
import math

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array, ArrayLike
from .checks import check_spline, check_spline_bounds
from .scalar_maps import ScalarMap

__all__ = [
    "inverse_rational_quadratic_spline",
    "rational_quadratic",
    "rational_quadratic_spline",
]


def rational_quadratic_spline(
    x: ArrayLike, x_knots: ArrayLike, y_knots: ArrayLike, slopes: ArrayLike
) -> tuple[Array, Array]:
    """Monotone spline through given points (Durkan et al. 2019, equations 4–5).

    The increasing C¹ spline through (x_k, y_k) with slopes d_k. In the bin k
    of width w and height h, with s = h/w and ξ = (x − x_k)/w,

        y = y_k + h (s ξ² + d_k ξ(1 − ξ)) / (s + (d_{k+1} + d_k − 2s) ξ(1 − ξ))

    Below x_0 and above x_K it goes on in straight lines with the slopes d_0
    and d_K.

    Args:
      x: An array of any shape.
      x_knots, y_knots: x_k and y_k, increasing, of shape (K + 1,) or
        (*x.shape, K + 1).
      slopes: d_k, positive, of shape (K + 1,) or (*x.shape, K + 1).

    Returns:
      (y, log dy/dx), both of the shape of x.

    Raises:
      ValueError: If the shapes do not fit. For concrete values also if knots
        are out of order, slopes are not positive, or anything is NaN or
        infinite.

    References:
      Gregory & Delbourgo 1982. Durkan et al. 2019.

    Example:
      >>> knots, slopes = jnp.array([0.0, 0.5, 1.0]), jnp.array([1.0, 2.0, 1.0])
      >>> y, log_slope = dj.flows.rational_quadratic_spline(0.3, knots, knots, slopes)
    """
    return _forward(*check_spline("x", x, x_knots, y_knots, slopes))


def inverse_rational_quadratic_spline(
    y: ArrayLike, x_knots: ArrayLike, y_knots: ArrayLike, slopes: ArrayLike
) -> tuple[Array, Array]:
    """Inverse of `rational_quadratic_spline` (Durkan et al. 2019, equations 6–8).

    The root of a quadratic in each bin. It is solved from the nearer corner of
    the bin and in the form that does not cancel, unlike in the paper. So x is
    exact for a y that is off by a few roundings.

    Args:
      y: An array of any shape.
      x_knots, y_knots: Of the spline, see there.
      slopes: Of the spline, see there.

    Returns:
      (x, log dx/dy), both of the shape of y.

    Raises:
      ValueError: As by `rational_quadratic_spline`.

    Example:
      >>> knots, slopes = jnp.array([0.0, 0.5, 1.0]), jnp.array([1.0, 2.0, 1.0])
      >>> x, _ = dj.flows.inverse_rational_quadratic_spline(0.3, knots, knots, slopes)
    """
    return _inverse(*check_spline("y", y, x_knots, y_knots, slopes))


@checks.arguments(
    bins=(checks.integer, 2),
    bound=checks.positive,
    floor=checks.positive,
    ceiling=checks.optional(checks.positive),
)
def rational_quadratic(
    bins: int = 8, bound: float = 5.0, floor: float = 1e-3, ceiling: float | None = None
) -> ScalarMap:
    """Rational-quadratic spline as a scalar map (Durkan et al. 2019, section 3.1).

    The spline acts on [−bound, bound] and is the identity beyond. It has 3K −
    1 unconstrained parameters θ. Widths and heights of the K bins are

        2 bound (floor + (1 − K floor) softmax(θ)).

    Inner slopes are, without and with a ceiling,

        floor + softplus(θ + const)
        floor + (ceiling − floor) sigmoid(θ + const).

    They are 1 at θ = 0. The slopes at both ends are 1, so that the map is C¹.

    A bin's mean slope s lies between m = floor/(1 − (K − 1) floor) and 1/m.
    Between knots of slopes d and e, the slope of the spline lies in

        [min(d, e, s, s²/max(d, e)), max(d, e, 2s)].

    With a ceiling all slopes lie in

        [min(floor, m²/ceiling), max(ceiling, 2/m)].

    Without one, as published, they have no lower bound: slopes below 1e-7
    occur at parameters of size 4. The inverse multiplies rounding by 1/slope, layer
    upon layer. Where the product of a flow's slopes comes near the rounding of
    a float, there is no round trip. The bounds limit that product.

    Args:
      bins: K, at least 2.
      bound: Half the length of the interval.
      floor: Least width, height and inner slope, the first two as fractions of
        the interval. At least the rounding of a float, so that knots do not
        coincide, and below 1/K. The published value is 1e-3.
      ceiling: Greatest inner slope, above 1 and at most 1/rounding. Default
        none, as published. ceiling=10 with floor=0.02 keeps the slopes of 8
        bins between 5e-5 and 90.

    Returns:
      A scalar map.

    Raises:
      ValueError: If an argument lies outside its range.

    Example:
      >>> scalar_map = dj.flows.rational_quadratic(bins=3, bound=4.0)
      >>> y, log_slope = scalar_map.forward(jnp.zeros(2), jnp.zeros((2, 8)))
    """
    bound, floor = float(bound), float(floor)
    ceiling = None if ceiling is None else float(ceiling)
    check_spline_bounds(bins, floor, ceiling)
    return _rational_quadratic(bins, bound, floor, ceiling)


@functools.cache
def _rational_quadratic(bins, bound, floor, ceiling):
    def inner_slopes(raw):
        """floor + …, 1 at raw = 0."""
        if ceiling is None:
            return floor + jax.nn.softplus(raw + math.log(math.expm1(1 - floor)))
        return floor + (ceiling - floor) * jax.nn.sigmoid(
            raw + math.log((1 - floor) / (ceiling - 1))
        )

    def knots(raw):
        """(…, K) -> (…, K + 1), increasing from −bound to bound."""
        widths = 2 * bound * (floor + (1 - bins * floor) * jax.nn.softmax(raw, -1))
        ends = jnp.full((*raw.shape[:-1], 1), bound, raw.dtype)
        return jnp.concatenate(
            [-ends, jnp.cumsum(widths[..., :-1], -1) - bound, ends], -1
        )

    def spline(parameters):
        inner = inner_slopes(parameters[..., 2 * bins :])  # (…, K − 1)
        one = jnp.ones((*inner.shape[:-1], 1), inner.dtype)
        slopes = jnp.concatenate([one, inner, one], -1)  # (…, K + 1)
        return (
            knots(parameters[..., :bins]),
            knots(parameters[..., bins : 2 * bins]),
            slopes,
        )

    settings = (
        f"{bins}, {bound}"
        if ceiling is None
        else f"{bins}, {bound}, {floor}, {ceiling}"
    )
    name = f"rational_quadratic({settings})"
    return ScalarMap(
        name,
        3 * bins - 1,
        lambda x, p: _forward(x, *spline(p)),
        lambda y, p: _inverse(y, *spline(p)),
    )


def _forward(x, x_knots, y_knots, slopes):
    # False for NaN, which the tails then carry on.
    inside = (x > x_knots[..., 0]) & (x < x_knots[..., -1])
    # Replaced before the arithmetic, so that no gradient of it is NaN.
    within = jnp.where(inside, x, x_knots[..., 0])
    bin_ = _Bin(within, x_knots, x_knots, y_knots, slopes)
    xi, rest = (within - bin_.x[0]) / bin_.width, (bin_.x[1] - within) / bin_.width
    tail, log_tail = _tail(x, x_knots, y_knots, slopes)
    return jnp.where(inside, bin_.value(xi, rest), tail), jnp.where(
        inside, bin_.log_slope(xi, rest), log_tail
    )


def _inverse(y, x_knots, y_knots, slopes):
    inside = (y > y_knots[..., 0]) & (y < y_knots[..., -1])
    within = jnp.where(inside, y, y_knots[..., 0])
    bin_ = _Bin(within, y_knots, x_knots, y_knots, slopes)
    x, xi, rest = bin_.root(within)
    tail, log_tail = _tail(y, y_knots, x_knots, 1 / slopes)
    return jnp.where(inside, x, tail), jnp.where(
        inside, -bin_.log_slope(xi, rest), log_tail
    )


def _tail(x, x_knots, y_knots, slopes):
    """The straight lines beyond both ends, and their log slopes."""
    above = x > x_knots[..., 0]
    end = lambda values: jnp.where(above, values[..., -1], values[..., 0])
    slope = end(slopes)
    return end(y_knots) + slope * (x - end(x_knots)), jnp.log(slope) + jnp.zeros_like(x)


class _Bin:
    """The bin that holds each value.

    It has both corners, and the slopes at both ends in units of the bin's mean
    slope. With ξ = (x − x_k)/w and η = 1 − ξ the spline is

        (y − y_k)/h = (ξ² + d_k ξη) / (ξ² + η² + (d_k + d_{k+1}) ξη),

    in which nothing cancels. Exchanging ξ and η, d_k and d_{k+1} turns the bin
    upside down.
    """

    def __init__(self, values, knots, x_knots, y_knots, slopes):
        bins = knots.shape[-1] - 1
        index = jnp.sum(values[..., None] >= knots[..., 1:-1], -1)
        # (…, K). A sum over it is faster than a gather and its gradient.
        here = index[..., None] == jnp.arange(bins)
        pick = lambda v: jnp.sum(jnp.where(here, v, 0), -1)
        both = lambda v: (pick(v[..., :-1]), pick(v[..., 1:]))
        self.x, self.y = both(x_knots), both(y_knots)
        self.width = pick(jnp.diff(x_knots, axis=-1))
        self.height = pick(jnp.diff(y_knots, axis=-1))
        self.mean_slope = self.height / self.width
        self.left, self.right = (slope / self.mean_slope for slope in both(slopes))

    def value(self, xi, rest):
        """y at ξ and η = 1 − ξ, measured from the nearer corner."""
        denominator = self._denominator(xi, rest)
        rise = self.height * (xi**2 + self.left * xi * rest) / denominator
        fall = self.height * (rest**2 + self.right * xi * rest) / denominator
        return jnp.where(xi < rest, self.y[0] + rise, self.y[1] - fall)

    def log_slope(self, xi, rest):
        """log dy/dx at ξ and η = 1 − ξ in [0, 1]."""
        numerator = self.right * xi**2 + 2 * xi * rest + self.left * rest**2
        return (
            jnp.log(self.mean_slope)
            + jnp.log(numerator)
            - 2 * jnp.log(self._denominator(xi, rest))
        )

    def root(self, y):
        """(x, ξ, η) at y, with ξ and η in [0, 1].

        With r = (y − y_k)/h, q = 1 − r and b = q d_k − r d_{k+1} + 2r, ξ
        solves

            (1 − b) ξ² + b ξ − r = 0.

        The radicand b² + 4r(1 − b) is at least b²/9 for ξ ≤ ½, so that it
        loses no digits there. Near ξ = 1 it would, where the right slope is
        small. So y is measured from the corner that is at most half a width
        away.
        """
        rise, fall = (y - self.y[0]) / self.height, (self.y[1] - y) / self.height
        low = rise * (1 + self.right) <= fall * (1 + self.left)  # ξ ≤ ½
        pair = lambda a, b: (jnp.where(low, a, b), jnp.where(low, b, a))
        (r, q), (near, far) = pair(rise, fall), pair(self.left, self.right)
        b = q * near - r * far + 2 * r
        size = jnp.abs(b) + jnp.sqrt(
            jnp.maximum(b**2 + 4 * r * (1 - b), jnp.finfo(y.dtype).tiny)
        )
        # Of the two forms of the root, the one that adds numbers of one sign.
        concave = b > 0
        root = jnp.where(concave, 2 * r, size) / jnp.where(concave, size, 2 * (1 - b))
        # Rounding alone may have moved it out of [0, 1], so its gradient
        # stays.
        root = root + jax.lax.stop_gradient(jnp.clip(root, 0, 1) - root)
        x = jnp.where(low, self.x[0] + root * self.width, self.x[1] - root * self.width)
        return x, *pair(root, 1 - root)

    def _denominator(self, xi, rest):
        return xi**2 + rest**2 + (self.left + self.right) * xi * rest
