"""Arithmetic that naive code gets wrong: φ-functions, traces, log-differences."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import checks
from .types import Array, ArrayLike

__all__ = [
    "NUMBERS_AT_ONCE",
    "array_module",
    "basis",
    "divergence",
    "float_dtype",
    "hutchinson",
    "keys_cubic",
    "log_expm1",
    "phi",
    "pullbacks",
    "standard_error",
]


def __dir__() -> list[str]:
    return __all__


def float_dtype(*values: ArrayLike) -> jnp.dtype:
    """The dtype in which states and updates are computed.

    It is float32 at least, and float64 where x64 is enabled.
    """
    return checks.promoted(
        checks.promoted(*values, jnp.float32), jnp.result_type(float)
    )


def array_module(*values: Any) -> Any:
    """`jax.numpy` if any leaf of the values is traced, otherwise NumPy.

    Args:
      *values: Pytrees.

    Returns:
      The module. NumPy computes in float64 on the host, without compiling.
    """
    return jnp if checks.is_traced(*values) else np


@checks.arguments(order=(checks.integer, 0, 30), z=checks.real_array)
def phi(order: int, z: ArrayLike) -> Array:
    """The functions φ_k, the weights of exponential integrators.

        φ_k(z) = Σ_j z^j / (j + k)!,    φ_0 = e^z,    φ_k = (φ_{k−1} − 1/(k−1)!) / z

    The recurrence cancels near 0. In float32, φ_3 is off by 0.7 % at z = 0.01.
    So the series is used for |z| < max(1, k), where its terms fall.

    Args:
      order: k, between 0 and 30.
      z: Real numbers, of any shape.

    Returns:
      φ_k(z), shape of z.

    Raises:
      ValueError: If the order is negative.

    References:
      Hochbruck & Ostermann 2010, equations 2.10–2.11.

    Example:
      >>> float(dj.numerics.phi(1, 0.0))
      1.0
    """
    return _phi(order, z)


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
    """log(e^x − 1) for x > 0, exact to rounding at both ends. Shape of x."""
    return _log_expm1(checks.real_array("x", x))


@jax.jit
def _log_expm1(x):
    return x + jnp.log(-jnp.expm1(-x))


def keys_cubic(x: ArrayLike, a: float = -0.5) -> Array:
    """Cubic convolution kernel, for interpolation between equidistant values.

        (a + 2)|x|³ − (a + 3)|x|² + 1       for |x| ≤ 1
        a|x|³ − 5a|x|² + 8a|x| − 4a         for 1 < |x| < 2, and 0 beyond

    Args:
      x: Distances in units of the spacing, any shape.
      a: Slope at |x| = 1. −1/2 reproduces quadratic polynomials (Keys 1981,
        and Pillow). −3/4 is that of OpenCV and torch.

    Returns:
      The weights, shape of x.

    Example:
      >>> x = np.array([0.0, 0.5, 1.0, 1.5])
      >>> dj.numerics.keys_cubic(x).tolist()
      [1.0, 0.5625, 0.0, -0.0625]
    """
    xp = array_module(x)
    x = xp.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return xp.where(x <= 1, near, xp.where(x < 2, far, 0))


def standard_error(values: Array) -> Array:
    """Standard error s/√n of the mean of independent values over their leading axis.

    s² is the unbiased variance, so that it is NaN for one value. Takes arrays
    of NumPy as well, and returns the same kind.
    """
    return values.std(0, ddof=1) / math.sqrt(values.shape[0])


def pullbacks(
    field: Callable[[Array], Array], x: Array, directions: Array
) -> tuple[Array, Array]:
    """Value and pullbacks of a field, as one batch.

    Args:
      field: x -> array of x's shape.
      x: One example.
      directions: Directions e, (P, *x.shape).

    Returns:
      field(x), shape of x, and eᵀ ∂field/∂x for all directions e, (P,
      *x.shape).
    """
    value, pullback = jax.vjp(field, x)
    return value, jax.vmap(lambda e: pullback(e.astype(value.dtype))[0])(directions)


def basis(x: Array) -> Array:
    """The D unit directions of the entries of x, row by row, (D, *x.shape)."""
    return jnp.asarray(np.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape))


NUMBERS_AT_ONCE = 2**20
"""The most numbers that the directions of one batch of pullbacks hold together."""


def divergence(
    field: Callable[[Array], Array], x: Array, chunk: int | None = None
) -> tuple[Array, Array]:
    """The value of a field and the exact trace of its Jacobian.

    The trace costs x.size pullbacks. Use it for x.size up to a few thousand,
    and `hutchinson` beyond.

    Args:
      field: x -> array of x's shape.
      x: One example.
      chunk: Pullbacks at a time. The memory is that of `chunk` evaluations of
        the field and as many arrays like x. By default as many as hold 2^20
        numbers together, which are all of them for x.size up to 1024.

    Returns:
      field(x), shape of x, and tr ∂field/∂x, ().

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
        # All 0 beyond the last entry
        direction = (jnp.arange(size) == i).astype(value.dtype).reshape(x.shape)
        return jnp.sum(jnp.where(direction != 0, pullback(direction)[0], 0))

    indices = jnp.arange(-(-size // chunk) * chunk).reshape(-1, chunk)
    return value, jnp.sum(jax.lax.map(jax.vmap(diagonal_entry), indices))


def hutchinson(
    field: Callable[[Array], Array], x: Array, probes: Array, *, forward: bool = False
) -> tuple[Array, Array]:
    """Hutchinson's estimates of the trace of a field's Jacobian.

        εᵀ (∂field/∂x) ε

    Args:
      field: x -> array of x's shape.
      x: One example.
      probes: Probes ε with E[εεᵀ] = I, (P, *x.shape). The estimates are then
        unbiased.
      forward: True for (∂field/∂x) ε in forward mode. The estimate is the same.
        It stores no intermediate values, but the field must have a forward
        mode, which fused attention kernels lack.

    Returns:
      field(x), shape of x, and one estimate per probe, (P,).

    References:
      Hutchinson 1990. Grathwohl et al. 2019, equation 7, for flows.
    """
    axes = tuple(range(1, probes.ndim))
    if forward:
        push = lambda e: jax.jvp(field, (x,), (e.astype(x.dtype),))
        # The value does not depend on the probe, so that it is computed once.
        value, columns = jax.vmap(push, out_axes=(None, 0))(probes)
        return value, jnp.sum(probes * columns, axis=axes)
    value, rows = pullbacks(field, x, probes)
    return value, jnp.sum(probes * rows, axis=axes)
