"""Linear bijectors of the last axis: triangular, and by LU factors.

The latter is also the invertible 1 × 1 convolution of images.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import lu, solve_triangular

from .. import checks
from ..numerics import float_dtype
from ..types import Array, Key, pytree, static_field
from .bijectors import Bijector, full

__all__ = ["invertible_convolution", "lu_linear", "triangular"]

HIGHEST = jax.lax.Precision.HIGHEST
FLOOR = 1e-3
"""Least absolute value of a diagonal entry, which bounds the gain of the inverse."""

FLOORS = (checks.between, 0, 1)
"""Rule of the least value of a diagonal entry."""


@pytree
class Triangular(Bijector):
    """A lower triangular matrix T along the last axis, and a shift b.

        forward   y = T x + b,       log|det| = n Σ_i log T_ii
        inverse   x = T⁻¹(y − b),   log|det| = −n Σ_i log T_ii

    Here n is the number of positions before the last axis. See `triangular`.
    """

    below: Array  # (C, C), where the part below the diagonal counts
    log_diagonal: Array  # (C,)
    shift: Array  # (C,)
    floor: float = static_field(default=FLOOR)

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        diagonal = self.floor + jnp.exp(self.log_diagonal)
        y = apply_matrix(jnp.tril(self.below, -1) + jnp.diag(diagonal), x) + self.shift
        return y, log_det_of(diagonal, x)

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        diagonal = self.floor + jnp.exp(self.log_diagonal)
        matrix = jnp.tril(self.below, -1) + jnp.diag(diagonal)
        checks.last_axis("y", y, diagonal.shape[0])
        inverse = solve_triangular(
            matrix, jnp.eye(diagonal.shape[0], dtype=diagonal.dtype), lower=True
        )
        return apply_inverse(matrix, inverse, y - self.shift), -log_det_of(diagonal, y)


@checks.arguments(size=(checks.width, 1), floor=FLOORS)
def triangular(size: int, floor: float = FLOOR) -> Triangular:
    """Triangular map along the last axis, the identity at first.

        y = T x + b,   log|det ∂y/∂x| = (positions) Σ_i log T_ii

    T is lower triangular with the diagonal T_ii = floor + e^{d_i}.

    Args:
      size: C, the length of the last axis.
      floor: Lower bound of the diagonal, in (0, 1).

    Returns:
      A bijector.

    Raises:
      ValueError: If an argument is out of range.

    Example:
      >>> y = dj.flows.triangular(2).forward(jnp.ones(2))
    """
    return Triangular(
        full((size, size)), full((size,), math.log1p(-floor)), full((size,)), floor
    )


@pytree
class LULinear(Bijector):
    """A matrix along the last axis by its LU factors.

        forward   y = P L U x,           log|det| = n Σ_i log|U_ii|
        inverse   x = U⁻¹ L⁻¹ Pᵀ y,   log|det| = −n Σ_i log|U_ii|

    Here n is the number of positions before the last axis. See `lu_linear` and
    `invertible_convolution`.
    """

    lower: Array  # (C, C), where the part below the diagonal counts
    upper: Array  # (C, C), where the part above the diagonal counts
    log_diagonal: Array  # (C,)
    sign: Array  # (C,), whose signs count: no gradient moves it
    ranks: Array  # (C,), whose order is the permutation's: no gradient moves it
    floor: float = static_field(default=FLOOR)

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        lower, upper, diagonal = self._factors()
        return apply_matrix(self._matrix(lower, upper), x), log_det_of(diagonal, x)

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        lower, upper, diagonal = self._factors()
        checks.last_axis("y", y, diagonal.shape[0])
        row = jnp.argsort(jnp.argsort(self.ranks))  # where each row went
        transpose = jnp.eye(diagonal.shape[0], dtype=diagonal.dtype)[row]  # Pᵀ
        inverse = solve_triangular(
            upper, solve_triangular(lower, transpose, lower=True, unit_diagonal=True)
        )
        return (
            apply_inverse(self._matrix(lower, upper), inverse, y),
            -log_det_of(diagonal, y),
        )

    def _matrix(self, lower, upper):
        """P L U."""
        return jnp.matmul(lower, upper, precision=HIGHEST)[jnp.argsort(self.ranks)]

    def _factors(self):
        """L, U and |diagonal of U|."""
        diagonal = self.floor + jnp.exp(self.log_diagonal)
        identity = jnp.eye(diagonal.shape[0], dtype=diagonal.dtype)
        upper = jnp.triu(self.upper, 1) + jnp.diag(
            jnp.where(self.sign < 0, -diagonal, diagonal)
        )
        return jnp.tril(self.lower, -1) + identity, upper, diagonal


@checks.arguments(size=(checks.width, 1), floor=FLOORS)
def lu_linear(size: int, floor: float = FLOOR) -> LULinear:
    """Linear map along the last axis by LU factors, the identity at first.

        y = P L U x,   |U_ii| = floor + e^{d_i},
        log|det ∂y/∂x| = (positions) Σ_i log|U_ii|

    Two triangular solves make the inverse matrix. The permutation P and the
    signs of the diagonal are fixed: the leaves that hold them have gradient 0.

    Args:
      size: C, the length of the last axis.
      floor: Lower bound of |U_ii|, in (0, 1).

    Returns:
      A bijector.

    Raises:
      ValueError: If an argument is out of range.

    Example:
      >>> y = dj.flows.lu_linear(2).forward(jnp.ones(2))
    """
    square, ranks = (
        full((size, size)),
        jax.device_put(np.arange(size, dtype=float_dtype())),
    )
    return LULinear(
        square,
        square,
        full((size,), math.log1p(-floor)),
        full((size,), 1.0),
        ranks,
        floor,
    )


@checks.arguments(key=checks.key, channels=(checks.width, 1), floor=FLOORS)
def invertible_convolution(key: Key, channels: int, floor: float = FLOOR) -> LULinear:
    """Invertible 1 × 1 convolution (Kingma & Dhariwal 2018, equations 10–11).

        y_{ij} = P L U x_{ij},   log|det ∂y/∂x| = H W Σ_k log|U_kk|

    A random rotation of the channels at first, otherwise as `lu_linear`. P and
    the signs stay those of the rotation's own factors, and |U_kk| stays above
    floor.

    Args:
      key: Key of the rotation.
      channels: C, the length of the last axis.
      floor: Lower bound of |U_kk|, in (0, 1).

    Returns:
      A bijector.

    Raises:
      ValueError: If an argument is out of range.

    References:
      Kingma & Dhariwal 2018, section 3.2.

    Example:
      >>> y = dj.flows.invertible_convolution(key, 2).forward(jnp.ones((3, 3, 2)))
    """
    return _invertible_convolution(key, channels, floor)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _invertible_convolution(key, channels, floor):
    rotation, _ = jnp.linalg.qr(
        jax.random.normal(key, (channels, channels), float_dtype())
    )
    order, lower, upper = lu(rotation)  # rotation = order @ lower @ upper
    diagonal = jnp.diag(upper)
    log_diagonal = jnp.log(jnp.maximum(jnp.abs(diagonal) - floor, floor))
    ranks = jnp.argsort(jnp.argmax(order, axis=1)).astype(diagonal.dtype)
    return LULinear(
        jnp.tril(lower, -1),
        jnp.triu(upper, 1),
        log_diagonal,
        jnp.sign(diagonal),
        ranks,
        floor,
    )


def apply_matrix(matrix: Array, x: Array) -> Array:
    """matrix @ x_i at every position i before the last axis.

    In full precision on every device.

    Args:
      matrix: An array (D, C).
      x: An array (..., C).

    Returns:
      An array (..., D).
    """
    checks.last_axis("x", x, matrix.shape[1])
    return jnp.einsum("dc,...c->...d", matrix, x, precision=HIGHEST)


def apply_inverse(matrix: Array, inverse: Array, y: Array) -> Array:
    """matrix⁻¹ y_i at every position i before the last axis.

    Products with an inverse computed beforehand take, for many vectors, a
    small part of a triangular solve's time. One step of refinement, x ← x +
    M⁻¹(y − M x), makes up for the rounding of the inverse. The error is then
    at most a few times a solve's, with which it shares the bound rounding ·
    condition number.

    Args:
      matrix: An array (C, C).
      inverse: Its inverse.
      y: An array (..., C).

    Returns:
      An array (..., C).

    References:
      Higham 2002, Accuracy and Stability of Numerical Algorithms, chapter 12.
    """
    x = apply_matrix(inverse, y)
    return x + apply_matrix(inverse, y - apply_matrix(matrix, x))


def log_det_of(diagonal: Array, x: Array) -> Array:
    """Σ log diagonal, once for each position before the last axis.

    Args:
      diagonal: Positive numbers (C,).
      x: An array (..., C).

    Returns:
      An array of shape ().
    """
    return math.prod(jnp.shape(x)[:-1]) * jnp.sum(jnp.log(diagonal))
