"""Functions of symmetric matrices whose derivatives hold where eigenvalues repeat.

JAX differentiates `eigh` through 1/(v_j − v_i), which is wrong or NaN at repeated and nearly repeated eigenvalues.
Functions of the matrix itself are smooth there. Here a matrix is U (diag(v) + Δ) Uᵀ: the eigenvectors U are constants,
and Δ is 0 in value but carries the derivative. Values cost what they cost in the eigenbasis. Derivatives of every order
and in both modes follow from implicit differentiation.

`deviation` is Δ, or None for a matrix that depends on v alone. Leading axes of `values` (…, D), `deviation` (…, D, D)
and vectors (…, D) are batches.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from .types import Array


def decompose(matrix: Array) -> tuple[Array, Array, Array]:
    """Eigenvalues (…, D), ascending, eigenvectors (…, D, D) and deviation (…, D, D) of a symmetric matrix."""
    matrix = 0.5 * (matrix + jnp.swapaxes(matrix, -1, -2))
    values, basis = jnp.linalg.eigh(jax.lax.stop_gradient(matrix))
    rotated = jnp.einsum("...ji,...jk,...kl->...il", basis, matrix, basis)
    return values, basis, rotated - jax.lax.stop_gradient(rotated)


def product(values: Array, deviation: Any, x: Array) -> Array:
    """(diag(v) + Δ) x for vectors x (…, D)."""
    return values * x if deviation is None else _product(values, deviation, x)


def solve(values: Array, deviation: Any, x: Array) -> Array:
    """(diag(v) + Δ)⁻¹ x for vectors x (…, D); the pseudo-inverse where an eigenvalue is 0 or less."""
    return _inverse_of(values) * x if deviation is None else _solve(values, deviation, x)


def log_det(values: Array, deviation: Any) -> Array:
    """log |diag(v) + Δ|, shape (…)."""
    return jnp.sum(jnp.log(values), -1) if deviation is None else _log_det(values, deviation)


def square_root(values: Array, deviation: Any, x: Array) -> Array:
    """(diag(v) + Δ)^½ x for vectors x (…, D), the symmetric root."""
    return jnp.sqrt(values) * x if deviation is None else _times(_root(values, deviation), x)


def polar(matrix: Array) -> Array:
    """The orthogonal matrix W (…, D, D) for which Wᵀ M is symmetric and positive semi-definite."""
    return _polar(matrix)


# ---------------------------------------------------------------------------------------------------------------- rules


def _inverse_of(values):
    positive = values > 0
    return jnp.where(positive, 1 / jnp.where(positive, values, 1), 0)


def _times(matrix, x):
    return jnp.einsum("...ij,...j->...i", matrix, x)


def _diagonal(values):
    return values[..., None] * jnp.eye(values.shape[-1], dtype=values.dtype)


def _known(tangent):
    return not isinstance(tangent, SymbolicZero)


def _shift(value_rate, deviation_rate, x):
    """(diag(v̇) + Δ̇) x, or None where both rates are known to be 0."""
    terms = [value_rate * x] if _known(value_rate) else []
    terms += [_times(deviation_rate, x)] if _known(deviation_rate) else []
    return sum(terms) if terms else None


def _matrix_rate(value_rate, deviation_rate):
    """diag(v̇) + Δ̇."""
    terms = [_diagonal(value_rate)] if _known(value_rate) else []
    return sum(terms + ([deviation_rate] if _known(deviation_rate) else []))


@jax.custom_jvp
def _product(values, deviation, x):
    return values * x


def _product_rule(primals, tangents):
    values, deviation, x = primals
    value_rate, deviation_rate, x_rate = tangents
    rate = _shift(value_rate, deviation_rate, x)
    if _known(x_rate):
        moved = _product(values, deviation, x_rate)
        rate = moved if rate is None else rate + moved
    return _product(values, deviation, x), rate


_product.defjvp(_product_rule, symbolic_zeros=True)


@jax.custom_jvp
def _solve(values, deviation, x):
    return _inverse_of(values) * x


def _solve_rule(primals, tangents):
    """Ẏ of y = M⁺x: M⁺(ẋ − Ṁ y), and where M is singular, of constant rank, M⁺M⁺Ṁ(x − M y) + (I − M⁺M)Ṁ M⁺ y."""
    values, deviation, x = primals
    value_rate, deviation_rate, x_rate = tangents
    y = _solve(values, deviation, x)
    shift = _shift(value_rate, deviation_rate, y)
    if shift is None:
        return y, _solve(values, deviation, x_rate)
    rate = _solve(values, deviation, x_rate - shift if _known(x_rate) else -shift)
    outside = _shift(value_rate, deviation_rate, x - _product(values, deviation, y))
    rate = rate + _solve(values, deviation, _solve(values, deviation, outside))
    turned = _shift(value_rate, deviation_rate, _solve(values, deviation, y))
    return y, rate + turned - _solve(values, deviation, _product(values, deviation, turned))


_solve.defjvp(_solve_rule, symbolic_zeros=True)


@jax.custom_jvp
def _inverse(values, deviation):
    return _diagonal(1 / values)


def _inverse_rule(primals, tangents):
    inverse = _inverse(*primals)
    return inverse, -inverse @ _matrix_rate(*tangents) @ inverse


_inverse.defjvp(_inverse_rule, symbolic_zeros=True)


@jax.custom_jvp
def _log_det(values, deviation):
    return jnp.sum(jnp.log(values), -1)


def _log_det_rule(primals, tangents):
    return _log_det(*primals), jnp.sum(_inverse(*primals) * _matrix_rate(*tangents), (-2, -1))


_log_det.defjvp(_log_det_rule, symbolic_zeros=True)


@jax.custom_jvp
def _sylvester(values, deviation, right):
    """X with X H + H X = E for H = diag(h) + Δ, h ≥ 0; 0 where h_i + h_j = 0."""
    return right * _inverse_of(values[..., :, None] + values[..., None, :])


def _sylvester_rule(primals, tangents):
    values, deviation, right = primals
    value_rate, deviation_rate, right_rate = tangents
    x = _sylvester(values, deviation, right)
    moved = right_rate if _known(right_rate) else 0
    if _known(value_rate) or _known(deviation_rate):
        rate = _matrix_rate(value_rate, deviation_rate)
        moved = moved - x @ rate - rate @ x
    return x, _sylvester(values, deviation, moved)


_sylvester.defjvp(_sylvester_rule, symbolic_zeros=True)


@jax.custom_jvp
def _root(values, deviation):
    return _diagonal(jnp.sqrt(values))


def _root_rule(primals, tangents):
    values, _ = primals
    root, held = _root(*primals), jax.lax.stop_gradient(jnp.sqrt(values))
    return root, _sylvester(held, root - _diagonal(held), _matrix_rate(*tangents))


_root.defjvp(_root_rule, symbolic_zeros=True)


@jax.custom_jvp
def _polar(matrix):
    u, _, v = jnp.linalg.svd(matrix)
    return jnp.matmul(u, v, precision=jax.lax.Precision.HIGHEST)


@_polar.defjvp
def _polar_rule(primals, tangents):
    """Ẇ = W Ω, Ω antisymmetric with Ω H + H Ω = WᵀṀ − ṀᵀW, H = WᵀM. Higham 2008, section 8.2."""
    (matrix,), (rate,) = primals, tangents
    rotation = _polar(matrix)
    transposed = jnp.swapaxes(rotation, -1, -2)
    values, basis, deviation = decompose(transposed @ matrix)
    skew = transposed @ rate
    skew = jnp.swapaxes(basis, -1, -2) @ (skew - jnp.swapaxes(skew, -1, -2)) @ basis
    turn = _sylvester(jnp.maximum(values, 0), deviation, skew)
    return rotation, rotation @ basis @ turn @ jnp.swapaxes(basis, -1, -2)
