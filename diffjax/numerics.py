"""Arithmetic that naive code gets wrong: φ-functions, traces, log-differences."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from . import checks
from .types import Array, ArrayLike


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


def standard_error(values: Array) -> Array:
    """Standard error s/√n of the mean of independent values over their leading axis.

    s² is the unbiased variance, so that it is NaN for one value. Takes arrays of NumPy
    as well, and returns the same kind.
    """
    return values.std(0, ddof=1) / math.sqrt(values.shape[0])


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
