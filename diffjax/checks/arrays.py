"""Checks of arrays: dtype, shape and values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .numbers import integer, is_traced
from .objects import _describe

__all__ = [
    "all_between",
    "all_greater",
    "all_near",
    "all_non_negative",
    "all_positive",
    "all_within",
    "arrays",
    "below_infinity",
    "decreasing",
    "denoised",
    "finite",
    "finite_array",
    "increasing",
    "index",
    "integers",
    "monotone",
    "non_negative_array",
    "positive_array",
    "probabilities",
    "promoted",
    "real_array",
]


def promoted(*values: Any) -> Any:
    """`jnp.result_type` by the standard rules, also under strict dtype promotion."""
    known = [
        jax.dtypes.canonicalize_dtype(value) if isinstance(value, np.dtype) else value
        for value in values
    ]
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*known)


def real_array(name: str, value: Any) -> Any:
    """An array of real numbers in float32 at least. Integers are promoted.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.

    Raises:
      TypeError: If it is complex, or holds no numbers.
    """
    original = value
    try:
        value = (
            value if is_traced(value) or hasattr(value, "dtype") else np.asarray(value)
        )
        dtype = jnp.result_type(value)
        if jnp.issubdtype(dtype, jax.dtypes.extended):
            raise TypeError("a key holds no numbers")
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{name} must be an array of real numbers, got {original!r}"
        ) from None
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real, got dtype {dtype}")
    dtype = jax.dtypes.canonicalize_dtype(promoted(dtype, jnp.float32))
    if not isinstance(value, jax.Array):
        with np.errstate(over="ignore"):
            # On the host: a conversion by JAX would be a compiled program.
            value = np.asarray(value).astype(dtype)
    return jnp.asarray(value, dtype)


def integers(name: str, value: Any) -> jax.Array:
    """An array of integers.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.

    Raises:
      TypeError: If it holds anything else.
    """
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{name} must be an array of integers, got {_describe(value)}"
        ) from None
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got dtype {value.dtype}")
    return value


def arrays(name: str, tree: Any) -> Any:
    """A pytree of numbers or arrays, with each leaf as an array of JAX.

    Args:
      name: The name of the argument, for the message.
      tree: The argument.

    Returns:
      The pytree of arrays.

    Raises:
      TypeError: If a leaf is no array.
    """
    try:
        return jax.tree.map(jnp.asarray, tree)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{name} must be a pytree of arrays, got {_describe(tree)}"
        ) from None


def finite(name: str, value: Any) -> None:
    """Raise ValueError if a concrete array holds NaN or infinity.

    Args:
      name, value: The name of the argument, for messages, and its value.
    """
    if is_traced(value):
        return
    array = np.asarray(value)
    bad = int(np.size(array) - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ValueError(
            f"{name} must be finite, got {bad} NaN or infinite entries of "
            f"{np.size(array)}"
        )


def finite_array(name: str, value: Any) -> Any:
    """A `real_array` without NaN or infinity, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.
    """
    value = real_array(name, value)
    finite(name, value)
    return value


def positive_array(name: str, value: Any) -> Any:
    """A `finite_array` whose entries are positive, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.
    """
    return all_positive(name, finite_array(name, value))


def non_negative_array(name: str, value: Any) -> Any:
    """A `finite_array` whose entries are 0 or more, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.
    """
    return all_non_negative(name, finite_array(name, value))


def below_infinity(name: str, value: Any, error: type[Exception] = ValueError) -> None:
    """Raise an error if a concrete array of log densities holds NaN or +infinity.

    Args:
      name, value: The name of the array, for the message, and the array.
      error: The type of the error.
    """
    if is_traced(value):
        return
    values = np.asarray(value)
    bad = int(np.sum(np.isnan(values) | np.isposinf(values)))
    if bad:
        raise error(
            f"{name} must be below infinity, got {bad} NaN or +infinity of "
            f"{values.size} values"
        )


def _entries(name, value, accepts, accepted):
    """Raise ValueError for the first concrete entry that is not accepted."""
    if is_traced(value):
        return value
    values = np.asarray(value)  # on the host: JAX would compile a program
    wrong = np.argwhere(~accepts(values))
    if len(wrong):
        first = tuple(wrong[0].tolist())
        where = f" in entry {first[0] if len(first) == 1 else first}" if first else ""
        more = f", the first of {len(wrong)}" if len(wrong) > 1 else ""
        raise ValueError(
            f"{name} must {accepted}, got {values[first]:.7g}{where}{more}"
        )
    return value


def all_positive(name: str, value: Any) -> Any:
    """An array whose entries are positive, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.

    Raises:
      ValueError: For the first other entry.
    """
    return _entries(name, value, lambda entries: entries > 0, "be positive")


def all_non_negative(name: str, value: Any) -> Any:
    """An array whose entries are 0 or more, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.

    Raises:
      ValueError: For the first other entry.
    """
    return _entries(name, value, lambda entries: entries >= 0, "be 0 or more")


def all_within(name: str, value: Any, lower: float, upper: float) -> Any:
    """An array whose entries lie in [lower, upper], where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.
      lower, upper: The least and the greatest number that are accepted.

    Returns:
      The array.

    Raises:
      ValueError: For the first other entry.
    """
    inside = lambda entries: (entries >= lower) & (entries <= upper)
    return _entries(name, value, inside, f"lie in [{lower:.12g}, {upper:.12g}]")


def all_near(
    name: str,
    value: Any,
    lower: float,
    upper: float,
    margins: tuple[float, float],
    interval: str = "",
) -> Any:
    """An array whose entries lie in an interval up to rounding, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.
      lower, upper: The ends of the interval.
      margins: How far below and above it an entry is accepted.
      interval: Words before and after the interval, divided by "[]", for the
        message.

    Returns:
      The array.

    Raises:
      ValueError: For the first other entry.
    """
    least, most = lower - margins[0], upper + margins[1]
    before, _, after = interval.partition("[]")
    return _entries(
        name,
        value,
        lambda entries: (entries >= least) & (entries <= most),
        f"lie in {before}[{lower:.6g}, {upper:.6g}]{after}",
    )


def all_between(name: str, value: Any, lower: float, upper: float) -> Any:
    """An array whose entries lie in (lower, upper), where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.
      lower, upper: The ends of the interval, which are not accepted. Where
        both are infinite every entry is accepted.

    Returns:
      The array.

    Raises:
      ValueError: For the first other entry.
    """
    if lower == -np.inf and upper == np.inf:
        return value
    inside = lambda entries: (entries > lower) & (entries < upper)
    return _entries(name, value, inside, f"lie in ({lower}, {upper})")


def all_greater(name: str, value: Any, bound_name: str, bound: Any) -> None:
    """Raise ValueError unless an array exceeds another in every entry.

    Args:
      name, value: The name of the argument, for the message, and its value.
      bound_name, bound: The same of the other one, of the same shape.
    """
    if is_traced(value, bound) or np.all(np.asarray(value) > np.asarray(bound)):
        return
    raise ValueError(
        f"{name} must exceed {bound_name} everywhere, "
        f"got {bound_name} {np.asarray(bound).tolist()}, "
        f"{name} {np.asarray(value).tolist()}"
    )


def _ordered(name, value, sign, accepted):
    """Raise ValueError for the first concrete entry against a direction, ±1 or None."""
    if is_traced(value):
        return value
    values = np.asarray(value)
    gaps = np.diff(values)
    wrong = np.argwhere(~(gaps * (sign or np.sign(gaps.flat[0]) or -1) > 0))
    if wrong.size:
        *row, last = wrong[0].tolist()
        before, after = values[(*row, slice(last, last + 2))]
        where = f" of row {row}" if row else ""
        raise ValueError(
            f"{name} must {accepted}, got {after!s} after {before!s} at index "
            f"{last + 1}{where}"
        )
    return value


def increasing(name: str, value: Any) -> Any:
    """An array (..., N) that increases along its last axis, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.

    Raises:
      ValueError: If an entry is not greater than the one before it, with both.
    """
    return _ordered(name, value, 1, "increase")


def decreasing(name: str, value: Any) -> Any:
    """An array of shape (N,) whose entries decrease, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.

    Raises:
      ValueError: If an entry is not less than the one before it, with both.
    """
    return _ordered(name, value, -1, "decrease")


def monotone(name: str, value: Any) -> Any:
    """An array of shape (N,), N ≥ 2, which increases or decreases, where concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.

    Raises:
      ValueError: If an entry repeats the one before it, or turns back from the
        direction of the first two. The message has both.
    """
    return _ordered(name, value, None, "be strictly monotone")


def probabilities(name: str, value: Any) -> Any:
    """Positive numbers whose sum is 1, where they are concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The value.
    """
    if is_traced(value):
        return value
    finite(name, value)
    total = float(np.sum(np.asarray(value, np.float64)))
    if not abs(total - 1) < 1e-5 or not np.all(np.asarray(value) > 0):
        raise ValueError(
            f"{name} must be positive and sum to 1, got {np.asarray(value)} "
            f"with sum {total}"
        )
    return value


def index(name: str, value: Any, last: int) -> Any:
    """An index in 1 … last. Of a traced one only the type is checked.

    Args:
      name: The name of the argument, for messages.
      value: An integer, or an integer array of shape ().
      last: The greatest index.

    Returns:
      A Python int, or the traced array itself.
    """
    is_array = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.integer)
    if is_array and value.ndim == 0:
        if is_traced(value):
            return value
        value = int(value)
    return integer(name, value, minimum=1, maximum=last)


def denoised(value: Any, x: Any) -> Any:
    """The value of a denoiser at x.

    Args:
      value: What the denoiser returned. A pair (denoised, second) is a
        TypeError, because guidance comes before `ddpm.paired`.
      x: The example with which it was called.

    Returns:
      The value, an array of real numbers of x's shape.

    Raises:
      TypeError: If it is no array of real numbers.
      ValueError: If it has another shape.
    """
    expected = f"denoiser must return an array of its example's shape {jnp.shape(x)}"
    if isinstance(value, tuple):
        raise TypeError(
            f"{expected}, got a tuple of {len(value)}; to pair a guided one, "
            "ddpm.paired(guided, second)"
        )
    if not hasattr(value, "shape"):
        raise TypeError(f"{expected}, got {value!r}")
    if value.shape != jnp.shape(x):
        raise ValueError(
            f"denoiser must return its example's shape {jnp.shape(x)}, "
            f"got {value.shape}"
        )
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(f"denoiser must return real numbers, got dtype {value.dtype}")
    return value
