"""Linear operators A of one example, with Aᵀ and (c A Aᵀ + d I)⁻¹."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, spectral
from ..numerics import float_dtype
from ..types import (
    Array,
    ArrayLike,
    Scalar,
    as_one_program,
    as_pytree_callable,
    pytree,
    static_field,
)

__all__ = [
    "LinearOperator",
    "colourisation",
    "downsampling",
    "inpainting",
    "linear_operator",
    "matrix",
]


@pytree
class LinearOperator:
    """A linear map A of one example, its transpose, and the inverse of c A Aᵀ + d I.

    Attributes:
      function: x -> A x.
      spectrum: Eigenvalues of A Aᵀ, (M,), or () where it is a multiple of the
        identity.
      basis: Its eigenvectors in columns, (M, M), or None for such a multiple.
      deviation: (M, M), 0 in value, with the derivative of A Aᵀ in the basis.
        None where no derivative is wanted. See `spectral`.
      shape: Shape of x.
      measured: Shape of A x.
    """

    function: Any
    spectrum: Any
    basis: Any
    deviation: Any
    shape: tuple = static_field()
    measured: tuple = static_field()

    def forward(self, x: Array) -> Array:
        """A x, of shape `measured`, for x of shape `shape`."""
        checks.one_of_shapes("x", x, [self.shape])
        return self.function(jnp.asarray(x))

    def transpose(self, y: Array) -> Array:
        """Aᵀ y, of shape `shape`, for y of shape `measured`."""
        checks.one_of_shapes("y", y, [self.measured])
        return _transpose(self.function, self.shape, jnp.asarray(y))

    def solve(self, y: Array, signal: Scalar, noise: ArrayLike) -> Array:
        """The solution of a linear system in A Aᵀ.

            (signal · A Aᵀ + noise · I)⁻¹ y

        Where the matrix is singular its pseudo-inverse is used.

        Args:
          y: Of shape `measured`.
          signal: The factor of A Aᵀ, 0 or more.
          noise: The factor of I, 0 or more. One number, or one for each entry
            of y if A Aᵀ is a multiple of the identity.

        Returns:
          An array of y's shape.
        """
        total = signal * self.spectrum + noise
        if self.basis is None:
            return spectral.pseudo_solve(jnp.asarray(total), None, y)
        deviation = None if self.deviation is None else signal * self.deviation
        rotated = spectral.pseudo_solve(total, deviation, self.basis.T @ y.reshape(-1))
        return (self.basis @ rotated).reshape(y.shape)

    def dense(self) -> Array:
        """A as a matrix (M, D) of flat examples."""
        if isinstance(self.function, _Product):
            return self.function.entries
        return as_one_program(_dense, self)


def _dense(operator):
    identity = np.eye(int(np.prod(operator.shape)), dtype=float_dtype())
    units = identity.reshape(-1, *operator.shape)  # (D, *shape)
    columns = jax.vmap(operator.function)(units)  # (D, *measured)
    return columns.reshape(identity.shape[0], -1).T  # (M, D)


@checks.arguments(function=(checks.callable_, "function(x)"), shape=checks.shape)
def linear_operator(
    function: Callable[[Array], Array], shape: tuple[int, ...]
) -> LinearOperator:
    """The operator of any linear function of one example.

    Its transpose is derived. A Aᵀ, (M, M), is formed and diagonalised once, in
    M calls. For images use the named operators, whose A Aᵀ is known.

    Args:
      function: x -> A x, for x of this shape.
      shape: Shape of x.

    Returns:
      The operator.

    Raises:
      ValueError: If function(0) ≠ 0.
      TypeError: If it has no transpose because it is not linear, or returns
        complex numbers.

    Example:
      >>> steps = dj.inverse.linear_operator(jnp.diff, (3,))
      >>> steps.forward(jnp.array([0.0, 1.0, 3.0]))
      Array([1., 2.], dtype=float32)
    """
    function = as_pytree_callable(function)
    offset = checks.real_array("function(0)", function(jnp.zeros(shape)))
    checks.require(
        checks.is_traced(offset) or not np.any(np.asarray(offset)),
        f"function must be linear, got function(0) = {offset}",
    )
    measured, count = jnp.shape(offset), int(np.prod(jnp.shape(offset)))
    identity = jnp.eye(count).reshape(count, *measured)  # (M, *measured)
    try:
        gram = jax.vmap(lambda y: function(_transpose(function, shape, y)))(identity)
        gram = gram.reshape(count, count)  # A Aᵀ, (M, M)
    except (NotImplementedError, AssertionError, jax.errors.JAXTypeError) as error:
        raise TypeError("function must be linear: JAX finds no transpose") from error
    return LinearOperator(function, *_eigh(gram), shape=shape, measured=measured)


def matrix(entries: ArrayLike) -> LinearOperator:
    """The operator of a matrix, y = A x.

    Singular values of a concrete A are computed in float64. Those within its
    rounding of 0 count as 0.

    Args:
      entries: A, (M, D), for x of shape (D,).

    Returns:
      The operator.

    Raises:
      ValueError: For another shape, or NaN.

    Example:
      >>> total = dj.inverse.matrix([[1.0, 1.0]])
      >>> total.forward(jnp.array([0.5, 2.0]))
      Array([2.5], dtype=float32)
    """
    exact, entries = entries, checks.finite_batch("entries", entries)
    checks.axes("entries", entries, "(M, D)")
    if checks.is_traced(entries):
        factors = _eigh(entries @ entries.T)
    else:
        exact = np.asarray(exact)
        rounding = np.finfo(exact.dtype if exact.dtype.kind == "f" else np.float64).eps
        basis, singular, _ = np.linalg.svd(exact.astype(np.float64))
        least = max(entries.shape) * rounding * singular[0]
        singular = np.where(singular > least, singular, 0)
        spectrum = np.pad(singular**2, (0, len(basis) - len(singular)))  # (M,)
        factors = (*_rounded(entries.dtype, spectrum, basis), None)
    return LinearOperator(
        _Product(entries), *factors, shape=entries.shape[1:], measured=entries.shape[:1]
    )


def inpainting(mask: ArrayLike) -> LinearOperator:
    """The operator that keeps the entries of x where a mask is True.

    y = operator.forward(x) has shape (M,), in the order of x's entries. A Aᵀ =
    I.

    Args:
      mask: Booleans of the example's shape, at least one True.

    Returns:
      The operator.

    Raises:
      TypeError: For a mask that is traced or not boolean.
      ValueError: If nothing is observed.

    Example:
      >>> operator = dj.inverse.inpainting([[True, False], [True, True]])
      >>> operator.forward(jnp.arange(4.0).reshape(2, 2))
      Array([0., 2., 3.], dtype=float32)
    """
    checks.known("mask", mask, "(it fixes the shape of y)")
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"mask must be boolean, True where observed, got {mask.dtype}")
    indices = np.flatnonzero(mask)
    checks.require(indices.size, "mask must be True somewhere, got all False")
    entries = _Entries(jnp.asarray(indices.astype(np.int32), np.int32))
    return LinearOperator(
        entries, 1.0, None, None, shape=mask.shape, measured=(indices.size,)
    )


@checks.arguments(shape=checks.shape)
def colourisation(shape: tuple[int, ...]) -> LinearOperator:
    """The operator that takes the mean over the channels, the last axis.

    y has shape[:-1]. A Aᵀ = I/C for C channels.

    Args:
      shape: Shape of x, (…, C).

    Returns:
      The operator.

    Raises:
      ValueError: If x has no axis.

    Example:
      >>> dj.inverse.colourisation((8, 8, 3)).measured
      (8, 8)
    """
    checks.require(shape, f"shape must have a channel axis, got {shape}")
    return LinearOperator(
        as_pytree_callable(_channel_mean),
        1 / shape[-1],
        None,
        None,
        shape=shape,
        measured=shape[:-1],
    )


@checks.arguments(shape=checks.shape, factor=(checks.integer, 1))
def downsampling(shape: tuple[int, ...], factor: int) -> LinearOperator:
    """The operator that takes means of factor × factor blocks of the first two axes.

    y has shape (H/f, W/f, …). A Aᵀ = I/f².

    Args:
      shape: Shape of x, (H, W, …).
      factor: f, a divisor of H and W.

    Returns:
      The operator.

    Raises:
      ValueError: If factor does not divide H and W.

    Example:
      >>> dj.inverse.downsampling((8, 8, 3), 4).measured
      (2, 2, 3)
    """
    checks.require(
        len(shape) >= 2 and shape[0] % factor == 0 and shape[1] % factor == 0,
        f"shape must be (H, W, …), both multiples of factor={factor}, got {shape}",
    )
    measured = (shape[0] // factor, shape[1] // factor, *shape[2:])
    return LinearOperator(
        _BlockMean(factor), 1 / factor**2, None, None, shape=shape, measured=measured
    )


@pytree
class _Product:
    entries: Any

    def __call__(self, x):
        return self.entries @ x


@pytree
class _Entries:
    indices: Any

    def __call__(self, x):
        return x.reshape(-1)[self.indices]


@pytree
class _BlockMean:
    factor: int = static_field()

    def __call__(self, x):
        f = self.factor
        height, width = x.shape[0] // f, x.shape[1] // f
        blocks = x.reshape(height, f, width, f, *x.shape[2:])
        return jnp.mean(blocks, (1, 3))  # (H/f, f, W/f, f, …) -> (H/f, W/f, …)


def _channel_mean(x):
    return jnp.mean(x, -1)


def _transpose(function, shape, y):
    example = jax.ShapeDtypeStruct(shape, y.dtype)
    dtype = jax.eval_shape(function, example).dtype
    (x,) = jax.linear_transpose(function, example)(y.astype(dtype))
    return x


def _eigh(gram):
    """(eigenvalues, eigenvectors, deviation or None) of A Aᵀ.

    Eigenvalues within rounding of 0, beside the greatest, are made 0.
    """
    if checks.is_traced(gram):
        values, basis, deviation = spectral.decompose(gram)
        values = jnp.where(_is_above_rounding(values, gram.dtype), values, 0)
        return values, basis, deviation
    values, basis = np.linalg.eigh(np.asarray(gram, np.float64))
    values = np.where(_is_above_rounding(values, gram.dtype), values, 0)
    return (*_rounded(gram.dtype, values, basis), None)


def _rounded(dtype, *values):
    """Arrays of the host rounded there, and not by a program."""
    return (jnp.asarray(np.asarray(value, dtype), dtype) for value in values)


def _is_above_rounding(values, dtype):
    return values > values.shape[0] * np.finfo(dtype).eps * values[-1]


@pytree
class _Weighted:
    """The rows of another operator's function, each multiplied by a number."""

    function: Any
    weights: Any

    def __call__(self, x):
        return self.weights * self.function(x)


def whitened(operator: LinearOperator, noise_std: Array) -> LinearOperator:
    """The operator diag(1/τ) A.

    Args:
      operator: A.
      noise_std: τ > 0, of the measured shape.

    Returns:
      An operator whose measurements have noise of standard deviation 1.
    """
    weights = 1 / noise_std
    if operator.basis is None:
        gram = operator.spectrum * jnp.diag(weights.reshape(-1) ** 2)
    else:
        rows = weights.reshape(-1, 1) * operator.basis  # A Aᵀ = B (diag(v) + Δ) Bᵀ
        inner = jnp.diag(operator.spectrum)
        if operator.deviation is not None:
            inner = inner + operator.deviation
        gram = rows @ inner @ rows.T
    function = _Weighted(operator.function, weights)
    return LinearOperator(
        function, *_eigh(gram), shape=operator.shape, measured=operator.measured
    )


def measurement(operator: LinearOperator, y: ArrayLike) -> Array:
    """A measurement as an array.

    Args:
      operator: The operator that made it.
      y: The measurement.

    Returns:
      y, of the operator's measured shape.

    Raises:
      TypeError: If the operator is none.
      ValueError: If y has another shape or is not finite.
    """
    maker = "made by diffjax.inverse, such as inpainting(mask)"
    checks.instance("operator", operator, LinearOperator, maker)
    return checks.finite_shaped("y", y, operator.measured)


def noise_stds(
    operator: LinearOperator, noise_std: ArrayLike, *, positive: bool = False
) -> Any:
    """The noise of a measurement, as one number or one for each entry.

    Args:
      operator: The operator of the measurement.
      noise_std: τ.
      positive: True where 0 is not accepted.

    Returns:
      τ, a number or an array of the operator's measured shape.

    Raises:
      ValueError: If τ is negative, not finite or has another shape.
    """
    if np.shape(noise_std) == ():
        scalar = checks.positive if positive else checks.non_negative
        return scalar("noise_std", noise_std)
    noise_std = checks.finite_shaped("noise_std", noise_std, (), operator.measured)
    entries = checks.all_positive if positive else checks.all_non_negative
    return entries("noise_std", noise_std)
