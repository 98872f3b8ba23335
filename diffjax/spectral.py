"""Functions of symmetric matrices whose derivatives hold where eigenvalues repeat.

JAX differentiates `eigh` through 1/(v_j − v_i), which is wrong or NaN at
repeated and nearly repeated eigenvalues. Functions of the matrix itself are
smooth there.

Here a matrix is U (diag(v) + Δ) Uᵀ. The eigenvectors U are constants, and Δ is
0 in value but carries the derivative. Values are computed in the eigenbasis.
Derivatives follow from implicit differentiation, in both modes and to every
order.

`deviation` is Δ, or None for a matrix that depends on v alone. Leading axes of
`values` (…, D), `deviation` (…, D, D) and vectors (…, D) are batches.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .types import Array

__all__ = [
    "decompose",
    "log_det",
    "polar",
    "product",
    "pseudo_solve",
    "solve",
    "square_root",
]


def __dir__() -> list[str]:
    return __all__


def decompose(matrix: Array) -> tuple[Array, Array, Array]:
    """Decompose a symmetric matrix.

    Args:
      matrix: (…, D, D).

    Returns:
      Eigenvalues (…, D), ascending, eigenvectors (…, D, D) and deviation (…,
      D, D).
    """
    matrix = 0.5 * (matrix + _transposed(matrix))
    values, basis = jnp.linalg.eigh(jax.lax.stop_gradient(matrix))
    rotated = _transposed(basis) @ matrix @ basis
    return values, basis, rotated - jax.lax.stop_gradient(rotated)


def product(values: Array, deviation: Any, x: Array) -> Array:
    """(diag(v) + Δ) x.

    Args:
      values: v, (…, D).
      deviation: Δ, (…, D, D), or None.
      x: Vectors, (…, D).

    Returns:
      (…, D).
    """
    return values * x if deviation is None else values * x + _times(deviation, x)


def solve(values: Array, deviation: Any, x: Array) -> Array:
    """(diag(v) + Δ)⁻¹ x.

    Args:
      values: v, (…, D).
      deviation: Δ, (…, D, D), or None.
      x: Vectors, (…, D).

    Returns:
      (…, D).
    """
    if deviation is None:
        return x / values
    return _implicit(lambda y: product(values, deviation, y), lambda b: b / values, x)


def pseudo_solve(values: Array, deviation: Any, x: Array) -> Array:
    """(diag(v) + Δ)⁺ x, with v ≥ 0 whose zeros stay zeros.

    Args:
      values: v, (…, D).
      deviation: Δ, (…, D, D), or None.
      x: Vectors, (…, D).

    Returns:
      (…, D).
    """
    if deviation is None:
        return _reciprocal(values) * x
    # With the projector P on the null space, M⁺ = (M + P)⁻¹ − P.
    null = _null_projector(values, deviation)
    filled = jnp.where(values > 0, values, 1)
    rest = deviation + null - _diagonal(filled - values)
    return solve(filled, rest, x) - _times(null, x)


def log_det(values: Array, deviation: Any) -> Array:
    """log |diag(v) + Δ|.

    Args:
      values: v, (…, D).
      deviation: Δ, (…, D, D), or None.

    Returns:
      (…).
    """
    return (
        jnp.sum(jnp.log(values), -1)
        if deviation is None
        else _log_det(values, deviation)
    )


def square_root(values: Array, deviation: Any, x: Array) -> Array:
    """(diag(v) + Δ)^½ x, with the symmetric root.

    Args:
      values: v, (…, D).
      deviation: Δ, (…, D, D), or None.
      x: Vectors, (…, D).

    Returns:
      (…, D).
    """
    return (
        jnp.sqrt(values) * x
        if deviation is None
        else _times(_root(values, deviation), x)
    )


@jax.custom_jvp
def polar(matrix: Array) -> Array:
    """The orthogonal W (…, D, D) with Wᵀ M symmetric and positive semi-definite."""
    u, _, v = jnp.linalg.svd(matrix)
    return jnp.matmul(u, v, precision=jax.lax.Precision.HIGHEST)


@polar.defjvp
def _polar_rule(primals, tangents):
    # Ẇ = W Ω, with Ω antisymmetric, Ω H + H Ω = WᵀṀ − ṀᵀW and H = WᵀM (Higham
    # 2008, section 8.2).
    (matrix,), (rate,) = primals, tangents
    rotation = polar(matrix)
    values, basis, deviation = decompose(_transposed(rotation) @ matrix)
    turned = _transposed(rotation @ basis) @ rate @ basis
    omega = _sylvester(jnp.maximum(values, 0), deviation, turned - _transposed(turned))
    return rotation, rotation @ basis @ omega @ _transposed(basis)


# -------------------------------------------------------------------------- helpers


def _transposed(matrix):
    return jnp.swapaxes(matrix, -1, -2)


def _times(matrix, x):
    return jnp.einsum("...ij,...j->...i", matrix, x)


def _diagonal(values):
    return values[..., None] * jnp.eye(values.shape[-1], dtype=values.dtype)


def _reciprocal(values):
    positive = values > 0
    return jnp.where(positive, 1 / jnp.where(positive, values, 1), 0)


def _implicit(map_, inverse, right):
    # The y with map_(y) = right, for a symmetric linear map with that inverse.
    # A custom rule on a function of `right` would not do: JAX drops it where
    # `right` is itself a tangent, and with it the mixed second derivatives of
    # reverse mode.
    return jax.lax.custom_linear_solve(
        map_, right, lambda _, b: inverse(b), symmetric=True
    )


def _columns(function, matrix):
    # A function of vectors (…, D), applied to each column of a matrix (…, D,
    # D).
    return jax.vmap(function, -1, -1)(matrix)


def _sylvester(values, deviation, right):
    # X with X H + H X = E for H = diag(h) + Δ and h ≥ 0. It is 0 where h_i +
    # h_j = 0.
    sums = values[..., :, None] + values[..., None, :]

    def both_sides(x):
        return sums * x + x @ deviation + deviation @ x

    return _implicit(both_sides, lambda b: b * _reciprocal(sums), right)


@jax.custom_jvp
def _log_det(values, deviation):
    return jnp.sum(jnp.log(values), -1)


@_log_det.defjvp
def _log_det_rule(primals, tangents):
    values, deviation = primals
    rate = _diagonal(tangents[0]) + tangents[1]
    return _log_det(*primals), jnp.trace(
        _columns(lambda x: solve(values, deviation, x), rate), axis1=-2, axis2=-1
    )


@jax.custom_jvp
def _root(values, deviation):
    return _diagonal(jnp.sqrt(values))


@_root.defjvp
def _root_rule(primals, tangents):
    # X² = M gives Ẋ X + X Ẋ = Ṁ.
    root, held = _root(*primals), jax.lax.stop_gradient(jnp.sqrt(primals[0]))
    return root, _sylvester(
        held, root - _diagonal(held), _diagonal(tangents[0]) + tangents[1]
    )


@jax.custom_jvp
def _null_projector(values, deviation):
    return _diagonal((values <= 0).astype(values.dtype))


@_null_projector.defjvp
def _null_projector_rule(primals, tangents):
    # Ṗ = −(M⁺ Ṁ P + P Ṁ M⁺) at constant rank.
    null, rate = _null_projector(*primals), _diagonal(tangents[0]) + tangents[1]
    half = _columns(lambda x: pseudo_solve(*primals, x), rate @ null)
    return null, -half - _transposed(half)
