"""Arithmetic that naive code gets wrong: φ-functions, traces, log-differences, dequantisation, bits/dim."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, log_ndtr

from . import checks
from .types import Array, ArrayLike, Key


def float_dtype(*values: ArrayLike) -> jnp.dtype:
    """The dtype in which states and updates are computed: float32 at least, float64 where x64 is enabled."""
    return checks.promoted(
        checks.promoted(*values, jnp.float32), jnp.result_type(float)
    )


def phi(order: int, z: ArrayLike) -> Array:
    """φ_k(z) = Σ_j z^j / (j + k)!, the weights of exponential integrators; shape of z.

    φ_0 = e^z, φ_k(z) = (φ_{k−1}(z) − 1/(k−1)!) / z. The recurrence cancels near 0 (in float32, φ_3 is off by 0.7 % at z
    = 0.01), so the series serves for |z| < max(1, k), where its terms fall. order: k, 0 or more. Raises ValueError for
    a negative order. Hochbruck & Ostermann 2010, eq. 2.10–2.11.
    """
    order = checks.integer("order", order, 0, 30)
    return _phi(order, checks.real_array("z", z))


@functools.partial(jax.jit, static_argnums=0)
def _phi(order, z):
    if order == 0:
        return jnp.exp(z)
    reach = max(1, order)
    small = jnp.abs(z) < reach
    inside = jnp.where(small, z, 0)
    outside = jnp.where(small, reach, z)
    series = jnp.zeros_like(z)
    for j in reversed(range(18 + 3 * order)):
        series = series * inside + 1 / math.factorial(j + order)
    recurrence = jnp.expm1(outside) / outside
    for k in range(2, order + 1):
        recurrence = (recurrence - 1 / math.factorial(k - 1)) / outside
    return jnp.where(small, series, recurrence)


def log_expm1(x: ArrayLike) -> Array:
    """log(e^x − 1) for x > 0, exact to rounding at both ends; shape of x."""
    return _log_expm1(checks.real_array("x", x))


@jax.jit
def _log_expm1(x):
    return x + jnp.log(-jnp.expm1(-x))


def log_normal_interval(lower: ArrayLike, upper: ArrayLike) -> Array:
    """log(Φ(upper) − Φ(lower)) of the standard normal distribution for lower < upper; broadcast shape.

    Value and gradient keep their digits for narrow intervals and far into either tail. A narrow one, of width h around
    m with h (1 + |m|) ≤ 1, is log φ(m) + log h + log mean_s e^{−ms − s²/2} by 8 Gauss–Legendre nodes s, in which no
    term cancels. Elsewhere, with Φ(z) = q(z) e^{−z²/2} and upper = b ≤ 0, it is −½b² + log q(b) + log(1 − q(a)/q(b)
    e^{(b² − a²)/2}), and an interval around 0 is a difference of two error functions.
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
    wide = _log_wide_interval(jnp.where(narrow, -1, lower), jnp.where(narrow, 1, upper))
    return jnp.where(narrow, inside, wide)


def _log_narrow_interval(middle, width):
    nodes, weights = np.polynomial.legendre.leggauss(8)
    shares = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        s = (0.5 * node) * width
        shares = shares + (0.5 * weight) * jnp.expm1(-s * (middle + 0.5 * s))
    return (
        -0.5 * middle**2
        - 0.5 * math.log(2 * math.pi)
        + jnp.log(width)
        + jnp.log1p(shares)
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
    """log q(z) = log Φ(z) + ½z² for z ≤ 0, by the asymptotic series where the two terms would cancel."""
    far = z < -12
    near, z = jnp.where(far, -12, z), jnp.where(far, z, -12)
    series = jnp.zeros_like(z)
    for n in reversed(range(1, 14)):
        series = -(2 * n - 1) / z**2 * (1 + series)
    return jnp.where(
        far,
        jnp.log1p(series) - jnp.log(-z) - 0.5 * math.log(2 * math.pi),
        log_ndtr(near) + 0.5 * near**2,
    )


def standard_error(values: Array) -> Array:
    """Standard error s/√n of the mean of independent values over their leading axis.

    s² is the unbiased variance, so that it is NaN for one value. Takes arrays of NumPy
    as well, and returns the same kind.
    """
    return values.std(0, ddof=1) / math.sqrt(values.shape[0])


def normal_log_prob(x: Array, std: ArrayLike) -> Array:
    """log N(x; 0, std² I) in nats, shape (); x of any shape is one example, std is ()."""
    return -0.5 * jnp.sum((x / std) ** 2) - x.size * (
        jnp.log(std) + 0.5 * math.log(2 * math.pi)
    )


def pullbacks(
    field: Callable[[Array], Array], x: Array, directions: Array
) -> tuple[Array, Array]:
    """(field(x), eᵀ ∂field/∂x for each direction e) from one vjp, the pullbacks run as one batch.

    directions: (P, *x.shape). Shapes of x and (P, *x.shape).
    """
    value, pullback = jax.vjp(field, x)
    return value, jax.vmap(lambda e: pullback(e.astype(value.dtype))[0])(directions)


def basis(x: Array) -> Array:
    """The D unit directions of x's entries, in row-major order; (D, *x.shape)."""
    return jnp.asarray(np.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape))


NUMBERS_AT_ONCE = 2**20
"""How many numbers the directions of one batch of pullbacks may hold together."""


def divergence(
    field: Callable[[Array], Array], x: Array, chunk: int | None = None
) -> tuple[Array, Array]:
    """The value of a field and the exact trace of its Jacobian.

    The trace costs x.size pullbacks: use it for x.size up to a few thousand, `hutchinson` beyond.

    Args:
      field: x -> array of x's shape.
      x: One example.
      chunk: Pullbacks at a time. The memory is that of `chunk` evaluations of the field and as many arrays like x.
        Default: as many as hold 2^20 numbers together, all of them for x.size up to 1024.

    Returns:
      (field(x), tr ∂field/∂x), shapes of x and ().

    Example:
      >>> value, trace = dj.numerics.divergence(lambda x: x**2, jnp.array([1.0, 2.0]))
      >>> float(trace)
      6.0
    """
    size = x.size
    chunk = max(1, NUMBERS_AT_ONCE // max(size, 1)) if chunk is None else chunk
    if chunk >= size:
        value, rows = pullbacks(field, x, basis(x))
        return value, jnp.trace(rows.reshape(size, size))
    value, pullback = jax.vjp(field, x)

    def diagonal_entry(i):
        direction = (
            (jnp.arange(size) == i).astype(value.dtype).reshape(x.shape)
        )  # all 0 beyond the last entry
        return jnp.sum(jnp.where(direction != 0, pullback(direction)[0], 0))

    indices = jnp.arange(-(-size // chunk) * chunk).reshape(-1, chunk)
    return value, jnp.sum(jax.lax.map(jax.vmap(diagonal_entry), indices))


def hutchinson(
    field: Callable[[Array], Array], x: Array, probes: Array
) -> tuple[Array, Array]:
    """(field(x), εᵀ(∂field/∂x)ε for each probe ε) from one vjp; shapes of x and (P,).

    probes: (P, *x.shape), with E[εεᵀ] = I; each estimate is then unbiased for the trace.
    Hutchinson 1990; its use for flows: Grathwohl et al. 2019, eq. 7.
    """
    value, rows = pullbacks(field, x, probes)
    return value, jnp.sum(probes * rows, axis=tuple(range(1, probes.ndim)))


def dequantise(key: Key, x: ArrayLike, width: float) -> Array:
    """x + width·u, u ~ U(−½, ½) for each entry: a density's sample from lattice points x; shape of x.

    x: bin centres, spaced `width` apart (data units). E_u log p(x + width·u) + D log width bounds the lattice's log
    P(x) from below. Raises ValueError unless width > 0. Theis et al. 2016, section 3.1.
    """
    checks.key("key", key)
    width = checks.positive("width", width)
    x = checks.real_array("x", x)
    return x + width * jax.random.uniform(key, x.shape, x.dtype, -0.5, 0.5)


def bits_per_dim(
    log_prob: ArrayLike, x_shape: tuple[int, ...], bins: int, width: float
) -> Array:
    """−(log p + D log width) / (D log 2): the code length of lattice data under a density, in bits per dimension.

    log_prob: any shape, nats, of the density at dequantised data of one example each; x_shape: the example's shape, of
    D entries; width: the lattice's spacing in the units of that density, (data range) / bins. A uniform density over
    the range bins·width scores log2(bins). Raises ValueError for bins < 2, width ≤ 0 or an empty shape.
    """
    checks.integer("bins", bins, minimum=2)
    width = checks.positive("width", width)
    if isinstance(x_shape, tuple | list) and 0 in x_shape:
        raise ValueError(f"x_shape must have at least one entry, got {x_shape}")
    dimensions = math.prod(checks.shape("x_shape", x_shape))
    log_prob = checks.real_array("log_prob", log_prob)
    if not checks.is_traced(width):
        return _bits(log_prob, dimensions, math.log(float(width)))
    return _bits(log_prob, dimensions, jnp.log(width))


@jax.jit
def _bits(log_prob, dimensions, log_width):
    return -(log_prob / dimensions + log_width) / math.log(2)
