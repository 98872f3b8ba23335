"""Linear operators A of one example, with what inverse problems ask of them: A, Aᵀ and (c A Aᵀ + d I)⁻¹."""

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


@pytree
class LinearOperator:
    """A linear map A of one example, its transpose, and the inverse of c A Aᵀ + d I. See `linear_operator`."""

    function: Any
    spectrum: (
        Any  # eigenvalues of A Aᵀ: (M,), or () where it is a multiple of the identity
    )
    basis: Any  # None | (M, M), its eigenvectors in columns
    deviation: Any  # None | (M, M), 0 in value: the derivative of A Aᵀ in the basis. See `spectral`
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
        """(signal · A Aᵀ + noise · I)⁻¹ y, by the pseudo-inverse where the matrix is singular.

        Args:
          y: Of shape `measured`.
          signal: The factor of A Aᵀ, 0 or more.
          noise: The factor of I, 0 or more. One number, or one for each entry of y if A Aᵀ is a multiple of the
            identity.

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
    columns = jax.vmap(operator.function)(
        identity.reshape(-1, *operator.shape)
    )  # (D, *measured)
    return columns.reshape(identity.shape[0], -1).T


def linear_operator(
    function: Callable[[Array], Array], shape: tuple[int, ...]
) -> LinearOperator:
    """The operator of any linear function of one example; its transpose is derived.

    function: x -> A x for x of the given shape. A Aᵀ (M, M) is formed and diagonalised once, in M calls: the named
    operators, whose A Aᵀ is known, are for images. Raises ValueError where function(0) ≠ 0, TypeError where it
    has no transpose, not being linear, or returns complex numbers.
    """
    checks.callable_("function", function, "function(x)")
    function, shape = as_pytree_callable(function), checks.shape("shape", shape)
    offset = function(jnp.zeros(shape))
    if not checks.is_traced(offset) and np.any(np.asarray(offset) != 0):
        raise ValueError(
            f"function must be linear, got function(0) = {np.asarray(offset)}"
        )
    if jnp.iscomplexobj(offset):
        raise TypeError(f"function must return real numbers, got dtype {offset.dtype}")
    measured, count = jnp.shape(offset), int(np.prod(jnp.shape(offset)))
    identity = jnp.eye(count).reshape(count, *measured)  # (M, *measured)
    try:
        gram = jax.vmap(lambda y: function(_transpose(function, shape, y)))(
            identity
        ).reshape(count, count)
    except (NotImplementedError, AssertionError, jax.errors.JAXTypeError) as error:
        raise TypeError(
            "function must be linear, but JAX finds no transpose of it"
        ) from error
    return LinearOperator(function, *_eigh(gram), shape=shape, measured=measured)


def matrix(entries: ArrayLike) -> LinearOperator:
    """The operator y = A x for A of shape (M, D) and x of shape (D,). Raises ValueError for another shape or NaN.

    Singular values of a concrete A are found in float64. Those within its rounding of 0 count as 0.
    """
    given, entries = entries, checks.real_array("entries", entries)
    if entries.ndim != 2 or entries.size == 0:
        raise ValueError(f"entries must have shape (M, D), got {entries.shape}")
    checks.finite("entries", entries)
    if checks.is_traced(entries):
        factors = _eigh(entries @ entries.T)
    else:
        given = np.asarray(given)
        rounding = np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps
        basis, singular, _ = np.linalg.svd(given.astype(np.float64))
        singular = np.where(
            singular > max(entries.shape) * rounding * singular[0], singular, 0
        )
        spectrum = np.pad(singular**2, (0, len(basis) - len(singular)))
        factors = (
            *(
                jnp.asarray(np.asarray(value, entries.dtype), entries.dtype)
                for value in (spectrum, basis)
            ),
            None,
        )
    return LinearOperator(
        _Product(entries), *factors, shape=entries.shape[1:], measured=entries.shape[:1]
    )


def inpainting(mask: ArrayLike) -> LinearOperator:
    """The entries of x where the mask is True, in order: y = operator.forward(x) of shape (M,), A Aᵀ = I.

    mask: booleans of the example's shape, at least one True. Raises TypeError for a mask that is traced or not boolean,
    ValueError where nothing is observed.
    """
    if checks.is_traced(mask):
        raise TypeError(
            "mask must be concrete, not traced: it fixes the measurement's shape"
        )
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(
            f"mask must be boolean, True where x is observed, got dtype {mask.dtype}"
        )
    indices = np.flatnonzero(mask)
    if not indices.size:
        raise ValueError(
            f"mask must be True somewhere, got none of {mask.size} entries"
        )
    entries = _Entries(jnp.asarray(indices.astype(np.int32), np.int32))
    return LinearOperator(
        entries, 1.0, None, None, shape=mask.shape, measured=(indices.size,)
    )


def colourisation(shape: tuple[int, ...]) -> LinearOperator:
    """The mean over the C channels, the last axis: y of shape[:-1], A Aᵀ = I/C. shape: of x, (…, C)."""
    shape = checks.shape("shape", shape)
    if not shape:
        raise ValueError(f"shape must have a channel axis, got {shape}")
    return LinearOperator(
        as_pytree_callable(_channel_mean),
        1 / shape[-1],
        None,
        None,
        shape=shape,
        measured=shape[:-1],
    )


def downsampling(shape: tuple[int, ...], factor: int) -> LinearOperator:
    """Means of factor × factor blocks of the first two axes: y of shape (H/f, W/f, …), A Aᵀ = I/f².

    shape: of x, (H, W, …). Raises ValueError where factor does not divide H and W.
    """
    shape, factor = (
        checks.shape("shape", shape),
        checks.integer("factor", factor, minimum=1),
    )
    if len(shape) < 2 or shape[0] % factor or shape[1] % factor:
        raise ValueError(
            f"shape must be (H, W, …) with H and W multiples of factor={factor}, got {shape}"
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
        height, width, f = (
            x.shape[0] // self.factor,
            x.shape[1] // self.factor,
            self.factor,
        )
        return jnp.mean(
            x.reshape(height, f, width, f, *x.shape[2:]), (1, 3)
        )  # (H, f, W, f, …) -> (H, W, …)


def _channel_mean(x):
    return jnp.mean(x, -1)


def _transpose(function, shape, y):
    answer = jax.eval_shape(function, jax.ShapeDtypeStruct(shape, y.dtype)).dtype
    (x,) = jax.linear_transpose(function, jax.ShapeDtypeStruct(shape, y.dtype))(
        y.astype(answer)
    )
    return x


def _eigh(gram):
    """Eigenvalues, what is rounding below the greatest made 0, eigenvectors, and the deviation of a traced A Aᵀ."""
    if checks.is_traced(gram):
        values, basis, deviation = spectral.decompose(gram)
        return (
            jnp.where(_is_above_rounding(values, gram.dtype), values, 0),
            basis,
            deviation,
        )
    values, basis = np.linalg.eigh(np.asarray(gram, np.float64))
    values = np.where(_is_above_rounding(values, gram.dtype), values, 0)
    return (
        *(
            jnp.asarray(np.asarray(value, gram.dtype), gram.dtype)
            for value in (values, basis)
        ),
        None,
    )


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
    """The operator diag(1/τ) A for τ > 0 of the measured shape."""
    weights = 1 / noise_std
    if operator.basis is None:
        gram = operator.spectrum * jnp.diag(weights.reshape(-1) ** 2)
    else:
        rows = weights.reshape(-1, 1) * operator.basis  # A Aᵀ = B (diag(v) + Δ) Bᵀ
        inner = jnp.diag(operator.spectrum)
        gram = (
            rows
            @ (inner if operator.deviation is None else inner + operator.deviation)
            @ rows.T
        )
    function = _Weighted(operator.function, weights)
    return LinearOperator(
        function, *_eigh(gram), shape=operator.shape, measured=operator.measured
    )


def check_operator(operator: Any, shape: tuple[int, ...] | None = None) -> None:
    """Refuse what is no operator, or one that takes examples of another shape."""
    if not isinstance(operator, LinearOperator):
        raise TypeError(
            f"operator must be made by diffjax.inverse, such as inpainting(mask), got {operator!r}"
        )
    if shape is not None and operator.shape != shape:
        raise ValueError(
            f"operator must take examples of the target's shape {shape}, got {operator.shape}"
        )


def measurement(operator: LinearOperator, y: ArrayLike) -> Array:
    """y as an array of the operator's measured shape, refused if of another or not finite."""
    check_operator(operator)
    y = checks.real_array("y", y)
    checks.one_of_shapes("y", y, [operator.measured])
    checks.finite("y", y)
    return y


def noise_stds(
    operator: LinearOperator, noise_std: ArrayLike, *, positive: bool = False
) -> Any:
    """τ as one number or an array of the operator's measured shape, or the argument's error."""
    check_operator(operator)
    if np.shape(noise_std) == ():
        return (checks.positive if positive else checks.non_negative)(
            "noise_std", noise_std
        )
    noise_std = checks.real_array("noise_std", noise_std)
    checks.one_of_shapes("noise_std", noise_std, [(), operator.measured])
    checks.finite("noise_std", noise_std)
    if not checks.is_traced(noise_std):
        least = float(np.min(np.asarray(noise_std)))
        if least < 0 or (positive and least == 0):
            raise ValueError(
                f"noise_std must be {'positive' if positive else '0 or more'}, got {least} in an entry"
            )
    return noise_std
