"""Linear bijectors of the last axis: triangular, and by LU factors, which is also the invertible 1 × 1 convolution."""

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
from .bijectors import Bijector, check_channels, full

HIGHEST = jax.lax.Precision.HIGHEST
FLOOR = 1e-3
"""The least absolute value of a diagonal entry, at which the gain of the inverse is bounded."""


@pytree
class Triangular(Bijector):
    """y = T x + shift with T lower triangular. See `triangular`."""

    below: Array  # (C, C), of which the part below the diagonal counts
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
        check_channels("y", y, diagonal.shape[0])
        inverse = solve_triangular(
            matrix, jnp.eye(diagonal.shape[0], dtype=diagonal.dtype), lower=True
        )
        return apply_inverse(matrix, inverse, y - self.shift), -log_det_of(diagonal, y)


def triangular(size: int, floor: float = FLOOR) -> Triangular:
    """y = T x + b along the last axis, T lower triangular with diagonal floor + e^{d_i}; the identity at first.

    log|det| = (positions) Σ log T_ii. size: C. floor: positive and below 1.
    """
    size, floor = checks.width("size", size, 1), _check_floor(floor)
    return Triangular(
        full((size, size)), full((size,), math.log1p(-floor)), full((size,)), floor
    )


@pytree
class LULinear(Bijector):
    """y = P L U x. See `lu_linear` and `invertible_convolution`."""

    lower: Array  # (C, C), of which the part below the diagonal counts
    upper: Array  # (C, C), of which the part above the diagonal counts
    log_diagonal: Array  # (C,)
    sign: Array  # (C,), of which the signs count: no gradient moves it
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
        check_channels("y", y, diagonal.shape[0])
        place = jnp.argsort(jnp.argsort(self.ranks))  # where each row went
        rows = jnp.eye(diagonal.shape[0], dtype=diagonal.dtype)[place]  # Pᵀ
        inverse = solve_triangular(
            upper, solve_triangular(lower, rows, lower=True, unit_diagonal=True)
        )
        return apply_inverse(self._matrix(lower, upper), inverse, y), -log_det_of(
            diagonal, y
        )

    def _matrix(self, lower, upper):
        """P L U."""
        return jnp.matmul(lower, upper, precision=HIGHEST)[jnp.argsort(self.ranks)]

    def _factors(self):
        """L, U and |s|; U's diagonal is sign · |s|."""
        diagonal = self.floor + jnp.exp(self.log_diagonal)
        identity = jnp.eye(diagonal.shape[0], dtype=diagonal.dtype)
        upper = jnp.triu(self.upper, 1) + jnp.diag(
            jnp.where(self.sign < 0, -diagonal, diagonal)
        )
        return jnp.tril(self.lower, -1) + identity, upper, diagonal


def lu_linear(size: int, floor: float = FLOOR) -> LULinear:
    """y = P L U x along the last axis, with |U_ii| = floor + e^{d_i}; the identity at first.

    log|det| = (positions) Σ log|U_ii|; two triangular solves make the inverse matrix. The permutation P and the signs
    of the diagonal are fixed: the leaves that hold them have gradient 0. size: C. floor: positive and below 1.
    """
    size, floor = checks.width("size", size, 1), _check_floor(floor)
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


def invertible_convolution(key: Key, channels: int, floor: float = FLOOR) -> LULinear:
    """The invertible 1 × 1 convolution y_{ij} = P L U x_{ij} over the channels, a random rotation at first.

    As `lu_linear`: P and the signs stay those of the rotation's own factors, and |U_ii| stays above floor. log|det| =
    H W Σ log|U_ii|. Kingma & Dhariwal 2018, section 3.2, eq. 10–11.
    """
    checks.key("key", key)
    return _invertible_convolution(
        key, checks.width("channels", channels, 1), _check_floor(floor)
    )


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
    """matrix @ x_i at every position i before the last axis of x (..., C), in full precision on every device."""
    check_channels("x", x, matrix.shape[1])
    return jnp.einsum("dc,...c->...d", matrix, x, precision=HIGHEST)


def apply_inverse(matrix: Array, inverse: Array, y: Array) -> Array:
    """matrix⁻¹ y_i at every position, by products with an inverse computed beforehand and one step of refinement.

    Products with many vectors take a small part of a triangular solve's time. The step x ← x + M⁻¹(y − M x) makes up
    for the rounding of the inverse: the error is at most a few times a solve's, with which it shares the bound rounding
    · condition number. Higham 2002, chapter 12.
    """
    x = apply_matrix(inverse, y)
    return x + apply_matrix(inverse, y - apply_matrix(matrix, x))


def log_det_of(diagonal: Array, x: Array) -> Array:
    """Σ log diagonal, once for each position before the last axis of x; shape ()."""
    return math.prod(jnp.shape(x)[:-1]) * jnp.sum(jnp.log(diagonal))


def _check_floor(floor):
    floor = float(checks.positive("floor", floor))
    if floor >= 1:
        raise ValueError(f"floor must be less than 1, got {floor}")
    return floor
