"""Checks of numbers, real and whole."""

import math
from typing import Any

import jax
import numpy as np

from .edge import require

__all__ = [
    "between",
    "concrete",
    "depth",
    "divides",
    "even",
    "greater",
    "integer",
    "integer_tuple",
    "is_traced",
    "known",
    "lengths",
    "non_negative",
    "number",
    "ordered",
    "positive",
    "positive_up_to",
    "width",
    "within",
]


def is_traced(*values: Any) -> bool:
    """True if any leaf of the values is a tracer, which has no value yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def _shape(name: str, value: Any) -> tuple[int, ...]:
    try:
        return np.shape(value)
    except ValueError:  # a list of lists of several lengths
        message = f"{name} must be an array of real numbers, got {value!r}"
        raise TypeError(message) from None


def known(name: str, value: Any, reason: str) -> None:
    """Raise TypeError if a leaf of a value is a tracer.

    Args:
      name, value: The name of the argument, for the message, and its value.
      reason: Why the value must be known, for the message.
    """
    if is_traced(value):
        raise TypeError(f"{name} must be concrete {reason}, got traced values")


def number(name: str, value: Any) -> Any:
    """A finite real scalar: a Python float where it is concrete and no JAX array.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The float, or the array of shape () itself.

    Raises:
      TypeError: If it is no real number.
      ValueError: If it is no scalar, or not finite.
    """
    if isinstance(value, bool | str) or value is None:
        raise TypeError(f"{name} must be a real number, got {value!r}")
    if _shape(name, value) != ():
        raise ValueError(f"{name} must be a scalar, got shape {np.shape(value)}")
    if is_traced(value):
        return value
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {value!r}") from None
    except OverflowError:
        raise ValueError(
            f"{name} must be finite in float64, got an integer of "
            f"{value.bit_length()} bits"
        ) from None
    if not np.isfinite(result):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return value if isinstance(value, jax.Array) else result


def concrete(name: str, value: Any) -> float:
    """A `number` as a Python float.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The float.

    Raises:
      TypeError: If it is traced.
    """
    if is_traced(value):
        raise TypeError(f"{name} must be a concrete number, got a traced one")
    return float(number(name, value))


def positive(name: str, value: Any) -> Any:
    """A `number` greater than 0.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The number.
    """
    value = number(name, value)
    if not is_traced(value) and not float(value) > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def positive_up_to(name: str, value: Any, most: float) -> float:
    """A `concrete` number in (0, most].

    Args:
      name, value: The name of the argument, for messages, and its value.
      most: The greatest number that is accepted.

    Returns:
      The float.
    """
    value = concrete(name, value)
    require(0 < value <= most, f"{name} must lie in (0, {most:g}], got {value}")
    return value


def non_negative(name: str, value: Any) -> Any:
    """A `number` of 0 or more.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The number.
    """
    value = number(name, value)
    if not is_traced(value) and not float(value) >= 0:
        raise ValueError(f"{name} must be 0 or more, got {value}")
    return value


def greater(name: str, value: Any, bound_name: str, bound: Any) -> None:
    """Raise ValueError unless a value is greater than another argument.

    Args:
      name, value: The name of the argument, for the message, and its value.
      bound_name, bound: The same of the other one.
    """
    if not is_traced(value, bound) and not float(value) > float(bound):
        raise ValueError(
            f"{name} must be greater than {bound_name}={bound}, got {value}"
        )


def within(name: str, value: Any, lower: float, upper: float) -> Any:
    """A `number` in [lower, upper].

    Args:
      name, value: The name of the argument, for messages, and its value.
      lower, upper: The least and the greatest number that are accepted.

    Returns:
      The number.
    """
    value = number(name, value)
    if not is_traced(value) and not lower <= float(value) <= upper:
        raise ValueError(f"{name} must lie in [{lower}, {upper}], got {value}")
    return value


def between(name: str, value: Any, lower: float, upper: float) -> float:
    """A `concrete` number in the open interval (lower, upper).

    Args:
      name, value: The name of the argument, for messages, and its value.
      lower, upper: The ends of the interval, which are not accepted.

    Returns:
      The float.

    Raises:
      ValueError: If it lies outside.
    """
    value = concrete(name, value)
    require(
        lower < value < upper, f"{name} must lie in ({lower:g}, {upper:g}), got {value}"
    )
    return value


LARGEST = 10**8
"""The greatest number of steps, points or samples: more run for hours."""


LARGEST_DEPTH = 1000
"""The greatest number of layers that are traced one by one."""


LARGEST_WIDTH = 2**16
"""The greatest side of a square matrix of parameters. It then takes 16 GiB."""


LARGEST_SIZE = 2**31
"""The greatest number of entries of one example."""


def integer(name: str, value: Any, minimum: int, maximum: int | None = LARGEST) -> int:
    """An integer as a Python int.

    Args:
      name: The name of the argument, for messages.
      value: An int or a NumPy integer.
      minimum: The least that is accepted.
      maximum: The greatest that is accepted. None for none, as for a seed.

    Returns:
      The int.

    Raises:
      TypeError: If it is no integer.
      ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        shown = repr(value) if len(repr(value)) < 200 else type(value).__name__
        raise TypeError(f"{name} must be an integer, got {shown}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be between {minimum} and {maximum}, got {value}")
    if value < minimum:
        accepted = (
            f"at least {minimum}"
            if maximum in (None, LARGEST)
            else f"between {minimum} and {maximum}"
        )
        raise ValueError(f"{name} must be {accepted}, got {value}")
    return int(value)


def depth(name: str, value: Any, minimum: int) -> int:
    """An `integer` of at most `LARGEST_DEPTH`, for what is traced layer by layer.

    Args:
      name, value: The name of the argument, for messages, and its value.
      minimum: The least that is accepted.

    Returns:
      The int.
    """
    return integer(name, value, minimum, LARGEST_DEPTH)


def width(name: str, value: Any, minimum: int) -> int:
    """An `integer` of at most `LARGEST_WIDTH`, for the side of a matrix of parameters.

    Args:
      name, value: The name of the argument, for messages, and its value.
      minimum: The least that is accepted.

    Returns:
      The int.
    """
    return integer(name, value, minimum, LARGEST_WIDTH)


def integer_tuple(
    name: str, value: Any, minimum: int, maximum: int | None, least: int = 0
) -> tuple[int, ...]:
    """A tuple of integers as Python ints.

    Args:
      name: The name of the argument, for messages.
      value: A tuple or list.
      minimum, maximum: The range of each entry, as in `integer`.
      least: The least number of entries, 0 or 1.

    Returns:
      The tuple.

    Raises:
      TypeError: If it is no tuple or list, or too short, or an entry is no
        integer.
    """
    if not isinstance(value, tuple | list) or len(value) < least:
        accepted = "one or more integers" if least else "integers"
        raise TypeError(f"{name} must be a tuple of {accepted}, got {value!r}")
    return tuple(
        integer(f"{name}[{i}]", n, minimum, maximum) for i, n in enumerate(value)
    )


def lengths(name: str, value: Any) -> tuple[int, ...]:
    """A shape as a tuple of Python ints, whose axes may be empty.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The tuple.

    Raises:
      TypeError: If it is no tuple or list of integers.
      ValueError: If a length is negative, or there are more than
        `LARGEST_SIZE` entries.
    """
    entries = integer_tuple(name, value, 0, None)
    require(
        math.prod(entries) <= LARGEST_SIZE,
        f"{name} must have at most {LARGEST_SIZE} entries, got {value}",
    )
    return entries


def even(name: str, value: Any) -> int:
    """A positive even `width`.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The int.

    Raises:
      ValueError: If it is odd or out of range.
    """
    value = width(name, value, 2)
    require(value % 2 == 0, f"{name} must be even, got {value}")
    return value


def divides(name: str, value: int, whole_name: str, whole: int) -> None:
    """Raise ValueError unless one number divides another.

    Args:
      name, value: The name of the number that must divide, and the number.
      whole_name, whole: The same of the one to be divided.
    """
    require(whole % value == 0, f"{name} must divide {whole_name}={whole}, got {value}")


def ordered(lower_name: str, lower: Any, upper_name: str, upper: Any) -> None:
    """Raise ValueError unless 0 < lower < upper.

    Args:
      lower_name, lower: The name of the lower number, and the number.
      upper_name, upper: The same of the upper one.
    """
    positive(lower_name, lower)
    greater(upper_name, positive(upper_name, upper), lower_name, lower)
