"""Gaussians of one example: their density, their divergence, the standard normal."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, log_ndtr

from .. import checks
from ..numerics import float_dtype, phi
from ..types import Array, ArrayLike, Key, PyTree, pytree, static_field

__all__ = [
    "Gaussian",
    "StandardNormal",
    "gaussian",
    "gaussian_kl",
    "gaussian_kl_entries",
    "gaussian_log_density",
    "log_normal_interval",
    "standard_normal",
]


def gaussian_log_density(residual: Array, variances: Array) -> Array:
    """Logarithm of a Gaussian density along the last axis.

        −½ Σ_d [r_d²/v_d + log(2π v_d)]

    An entry of variance 0 is an atom at 0: the density is 0 beside it, and
    infinite on it.

    Args:
      residual: (…, D), the distance from the mean.
      variances: (…, D), or (…, 1) for one variance of all D entries.

    Returns:
      The log density in nats, shape (…).
    """
    count = residual.shape[-1] // max(variances.shape[-1], 1)  # D if isotropic
    spread = variances != 0  # NaN and negative variances go on, to NaN
    square = quotient(residual**2, jnp.where(spread, variances, 1))
    off = jnp.any((square > 0) & ~spread, -1)  # beside an atom: density 0
    log_volume = count * jnp.sum(
        jnp.where(
            spread, jnp.log(2 * math.pi * jnp.where(spread, variances, 1)), -jnp.inf
        ),
        -1,
    )
    return -jnp.where(
        off, jnp.inf, 0.5 * (jnp.sum(square, -1) + jnp.where(off, 0, log_volume))
    )


@jax.custom_jvp
def quotient(a: Array, b: Array) -> Array:
    """a / b, with a derivative that stays in range.

    The derivative is (a′ − (a / b) b′) / b. JAX's own holds 1 / b², which
    leaves float32's range early.

    Args:
      a: The numerator.
      b: The denominator.

    Returns:
      The quotient, of the broadcast shape.
    """
    return a / b


@quotient.defjvp
def _quotient_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    value = quotient(a, b)
    return value, quotient(da - value * db, b)


# --------------------------------------------------------------- diagonal Gaussians


@pytree
class Gaussian:
    """The normal distribution N(loc, diag(var)).

    The two broadcast against each other, and in `log_prob` against the
    example. No argument is checked. `gaussian` makes one from a log standard
    deviation.
    """

    loc: Any
    var: Any

    def log_prob(self, x: Array) -> Array:
        """log N(x | loc, var) in nats, shape ()."""
        residual = jnp.broadcast_to(x - self.loc, jnp.shape(x))
        variances = jnp.asarray(self.var)
        if variances.ndim:
            variances = jnp.broadcast_to(variances, residual.shape)
        return gaussian_log_density(residual.reshape(-1), variances.reshape(-1))

    def sample(self, key: Key) -> Array:
        """One draw, of the shape to which loc and var broadcast."""
        noise = jax.random.normal(key, self._shape(), float_dtype(self.loc))
        return self.loc + jnp.sqrt(self.var) * noise

    def mean(self) -> Array:
        """`loc`, of the shape to which loc and var broadcast."""
        return jnp.broadcast_to(self.loc, self._shape())

    def variance(self) -> Array:
        """`var`, of the shape to which loc and var broadcast."""
        return jnp.broadcast_to(self.var, self._shape())

    def _shape(self):
        return jnp.broadcast_shapes(jnp.shape(self.loc), jnp.shape(self.var))


def gaussian(mean: ArrayLike, log_std: ArrayLike) -> Gaussian:
    """Gaussian of given mean and log standard deviation, N(mean, e^{2 log_std}).

    As a decoder with a free `log_std`, its density of data on a lattice or on
    a plane is unbounded. Dequantise such data, or use `discretised_gaussian`.

    Args:
      mean: Any shape.
      log_std: The logarithm of the standard deviation, () or of mean's shape.

    Returns:
      The distribution, over examples of mean's shape.

    Raises:
      ValueError: For shapes that do not fit, concrete NaN or infinity, or a
        concrete log_std whose variance is 0 or infinite in the dtype, as −60
        in float32.

    Example:
      >>> round(float(dj.distributions.gaussian([0.0], 0.0).log_prob(jnp.ones(1))), 4)
      -1.4189
    """
    mean, log_std = location_and_scale("mean", mean, "log_std", log_std)
    return Gaussian(mean, variance_of_log_std("log_std", log_std))


def location_and_scale(
    location_name: str, location: Any, scale_name: str, scale: Any
) -> tuple[Array, Array]:
    """A location and a log scale as checked arrays.

    Args:
      location_name, location: The location's name and value, of any shape.
      scale_name, scale: The log scale's, of shape () or the location's.

    Returns:
      Both as arrays.
    """
    location = checks.finite_array(location_name, location)
    scale = checks.finite_array(scale_name, scale)
    checks.one_of_shapes(scale_name, scale, list({(), location.shape}))
    return location, scale


def variance_of_log_std(name: str, log_std: Array) -> Array:
    """e^{2 log_std}, checked to be neither 0 nor infinite in its dtype.

    Args:
      name: The argument's name, for messages.
      log_std: An array.

    Returns:
      The variance.
    """
    variance = jnp.exp(2 * log_std)
    checks.finite(f"the variance of {name}", variance)
    return checks.all_positive(f"the variance of {name}", variance)


GAUSSIAN = checks.instance, Gaussian, "a distributions.Gaussian(loc, var)"


def check_gaussian(name: str, value: Any, shape: tuple[int, ...]) -> Gaussian:
    """A `Gaussian` with finite loc and positive var.

    Args:
      name: The argument's name, for messages.
      value: A `Gaussian`.
      shape: Of an example. loc and var have it, or ().

    Returns:
      The Gaussian, with fields as arrays.
    """
    checks.instance(name, value, *GAUSSIAN[1:])
    loc = checks.finite_array(f"{name}.loc", value.loc)
    var = checks.finite_array(f"{name}.var", value.var)
    for field, array in ((f"{name}.loc", loc), (f"{name}.var", var)):
        checks.one_of_shapes(field, array, list({(), shape}))
    return Gaussian(loc, checks.all_positive(f"{name}.var", var))


# ---------------------------------------------------------------------- divergence


@checks.arguments(p=GAUSSIAN, q=GAUSSIAN)
def gaussian_kl(p: Gaussian, q: Gaussian) -> Array:
    """Kullback–Leibler divergence between two Gaussians.

        KL(p ‖ q) = ½ Σ [v_p/v_q − 1 + log(v_q/v_p) + (m_p − m_q)²/v_q]

    Args:
      p: A Gaussian with means m_p and variances v_p.
      q: Another, over examples of the same shape.

    Returns:
      The divergence in nats, shape ().

    Raises:
      TypeError: For another distribution.

    Example:
      >>> normal = dj.distributions.Gaussian
      >>> float(dj.distributions.gaussian_kl(normal(1.0, 1.0), normal(0.0, 1.0)))
      0.5
    """
    return _kl(p, q)


@jax.jit
def _kl(p, q):
    return jnp.sum(gaussian_kl_entries(p.var, q.var, jnp.asarray(p.loc - q.loc)))


def gaussian_kl_entries(
    variance: ArrayLike, other: ArrayLike, difference: Array
) -> Array:
    """Contribution of every entry to `gaussian_kl`.

    With r = log(v_q/v_p), e^{−r} − 1 + r = r² φ_2(−r). Nothing cancels where
    the variances are nearly equal.

    Args:
      variance: v_p, positive.
      other: v_q, positive.
      difference: m_p − m_q, of the example's shape.

    Returns:
      Nats, of the difference's shape.
    """
    r = jnp.log(other / variance)
    entries = jnp.broadcast_to(r**2 * phi(2, -r), difference.shape)
    return 0.5 * (entries + difference**2 / other)


# ------------------------------------------------------------------ standard normal


@pytree
class StandardNormal:
    """N(0, I) of one example, or of a tuple of latents. See `standard_normal`."""

    shape: tuple = static_field()

    def log_prob(self, z: PyTree) -> Array:
        """log N(z | 0, I) in nats, shape ()."""
        if not self._is_tuple():
            return Gaussian(0.0, 1.0).log_prob(checks.real_shaped("z", z, self.shape))
        is_tuple = isinstance(z, tuple | list)
        shapes = tuple(map(jnp.shape, z)) if is_tuple else jnp.shape(z)
        checks.require(
            shapes == self.shape,
            f"z must be a tuple of arrays of shapes {self.shape}, got {shapes}",
        )
        return sum(
            (Gaussian(0.0, 1.0).log_prob(checks.real_array("z", part)) for part in z),
            jnp.zeros((), float_dtype()),
        )

    def sample(self, key: Key) -> PyTree:
        """One draw of the shape, or a tuple of them."""
        if not self._is_tuple():
            return jax.random.normal(key, self.shape, float_dtype())
        keys = jax.random.split(key, len(self.shape))
        return tuple(
            jax.random.normal(part, shape, float_dtype())
            for part, shape in zip(keys, self.shape, strict=True)
        )

    def mean(self) -> PyTree:
        """0, of the shape, or a tuple of them."""
        return self._filled(jnp.zeros)

    def variance(self) -> PyTree:
        """1, of the shape, or a tuple of them."""
        return self._filled(jnp.ones)

    def _filled(self, make):
        if not self._is_tuple():
            return make(self.shape, float_dtype())
        return tuple(make(shape, float_dtype()) for shape in self.shape)

    def _is_tuple(self):
        return any(isinstance(entry, tuple) for entry in self.shape)


def standard_normal(shape: tuple) -> StandardNormal:
    """Standard normal distribution N(0, I), without parameters.

    Args:
      shape: Of an example. A tuple of shapes makes the distribution of a tuple
        of latents, as a multiscale flow has.

    Returns:
      The distribution.

    Raises:
      TypeError: If shape is neither.

    Example:
      >>> dj.distributions.standard_normal((2,)).sample(key).shape
      (2,)
    """
    is_tuple = isinstance(shape, tuple | list) and len(shape) > 0
    if is_tuple and all(isinstance(entry, tuple | list) for entry in shape):
        return StandardNormal(
            tuple(checks.shape(f"shape[{i}]", entry) for i, entry in enumerate(shape))
        )
    return StandardNormal(checks.shape("shape", shape))


# ------------------------------------------------------- probability of an interval


def log_normal_interval(lower: ArrayLike, upper: ArrayLike) -> Array:
    """Log probability of an interval under N(0, 1), log(Φ(upper) − Φ(lower)).

    Value and gradient keep their digits for narrow intervals and far into
    either tail. There are three cases.

    A narrow interval has width h and middle m with h (1 + |m|) ≤ 1. Its value
    is log φ(m) + log h + log mean_s e^{−ms − s²/2}, by 8 Gauss–Legendre nodes
    s, in which no term cancels.

    In the left tail b = upper ≤ 0. With Φ(z) = q(z) e^{−z²/2} the value is
    −½b² + log q(b) + log(1 − q(a)/q(b) e^{(b² − a²)/2}). The right tail is its
    mirror image.

    Around 0 it is a difference of two error functions.

    Args:
      lower: The lower end, any shape.
      upper: The upper end, above lower.

    Returns:
      Nats, of the broadcast shape.
    """
    return _log_normal_interval(
        checks.real_array("lower", lower), checks.real_array("upper", upper)
    )


@jax.jit
def _log_normal_interval(lower, upper):
    width, middle = upper - lower, 0.5 * (lower + upper)
    narrow = width * (1 + jnp.abs(middle)) <= 1
    inside = _log_narrow_interval(
        jnp.where(narrow, middle, 0), jnp.where(narrow, width, 1)
    )
    # Both branches are computed: the one not taken gets harmless arguments, so that
    # its gradient is no NaN.
    wide = _log_wide_interval(jnp.where(narrow, -1, lower), jnp.where(narrow, 1, upper))
    return jnp.where(narrow, inside, wide)


def _log_narrow_interval(middle, width):
    nodes, weights = np.polynomial.legendre.leggauss(8)
    excess = 0.0  # mean of e^{−ms − s²/2} − 1
    for node, weight in zip(nodes, weights, strict=True):
        s = (0.5 * node) * width
        excess = excess + (0.5 * weight) * jnp.expm1(-s * (middle + 0.5 * s))
    return (
        -0.5 * middle**2
        - 0.5 * math.log(2 * math.pi)
        + jnp.log(width)
        + jnp.log1p(excess)
    )


def _log_wide_interval(lower, upper):
    flip = lower + upper > 0  # Φ(b) − Φ(a) = Φ(−a) − Φ(−b): stay on the left
    a, b = jnp.where(flip, -upper, lower), jnp.where(flip, -lower, upper)
    around = b > 0
    a_in, b_in = jnp.where(around, a, -1), jnp.where(around, b, 1)
    centre = jnp.log(0.5 * (erf(b_in * math.sqrt(0.5)) - erf(a_in * math.sqrt(0.5))))
    a, b = jnp.where(around, -1, a), jnp.where(around, 0, b)
    log_q = _log_scaled_tail(b)
    tail = (
        -0.5 * b**2
        + log_q
        + jnp.log(-jnp.expm1(_log_scaled_tail(a) - log_q + 0.5 * (b - a) * (b + a)))
    )
    return jnp.where(around, centre, tail)


def _log_scaled_tail(z):
    """log q(z) = log Φ(z) + ½z² for z ≤ 0."""
    far = z < -12  # there the two terms would cancel: the asymptotic series instead
    near, z = jnp.where(far, -12, z), jnp.where(far, z, -12)
    series = jnp.zeros_like(z)
    for n in reversed(range(1, 14)):
        series = -(2 * n - 1) / z**2 * (1 + series)
    return jnp.where(
        far,
        jnp.log1p(series) - jnp.log(-z) - 0.5 * math.log(2 * math.pi),
        log_ndtr(near) + 0.5 * near**2,
    )
