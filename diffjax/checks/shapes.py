"""Checks of the shapes of arrays."""

import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import finite, finite_array, real_array
from .numbers import LARGEST_SIZE, _shape

__all__ = [
    "as_many",
    "axes",
    "batch",
    "broadcastable",
    "column",
    "example_shaped",
    "finite_batch",
    "finite_shaped",
    "image",
    "last_axis",
    "leading_axis",
    "one_of_shapes",
    "real_shaped",
    "scalar_of",
    "shape",
]


def shape(name: str, value: Any) -> tuple[int, ...]:
    """A shape as a tuple of positive Python ints. () is the shape of a scalar.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The tuple.

    Raises:
      TypeError: If it is no tuple or list of positive integers.
      ValueError: If it has more than `LARGEST_SIZE` entries.
    """
    if not isinstance(value, tuple | list) or not all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0
        for n in value
    ):
        raise TypeError(f"{name} must be a tuple of positive integers, got {value!r}")
    if math.prod(map(int, value)) > LARGEST_SIZE:
        raise ValueError(
            f"{name} must have at most {LARGEST_SIZE} entries, got {tuple(value)}"
        )
    return tuple(int(n) for n in value)


def one_of_shapes(name: str, value: Any, shapes: Collection[tuple]) -> None:
    """Raise ValueError unless an array has one of several shapes.

    Args:
      name, value: The name of the argument, for messages, and its value.
      shapes: The shapes that are accepted.

    Raises:
      TypeError: If it holds no numbers.
    """
    if _shape(name, value) not in shapes:
        real_array(name, value)
        batch = np.shape(value)[1:] in shapes and 0 not in np.shape(value)
        hint = " (one example: use jax.vmap for a batch)" if batch else ""
        raise ValueError(
            f"{name} must have shape {' or '.join(map(str, shapes))}, "
            f"got {np.shape(value)}{hint}"
        )


def real_shaped(name: str, value: Any, *shapes: tuple) -> Any:
    """A `real_array` of one of several shapes.

    Args:
      name, value: The name of the argument, for messages, and its value.
      *shapes: The shapes that are accepted.

    Returns:
      The array.
    """
    one_of_shapes(name, value, shapes)
    return real_array(name, value)


def finite_shaped(name: str, value: Any, *shapes: tuple) -> Any:
    """A `finite_array` of one of several shapes.

    Args:
      name, value: The name of the argument, for messages, and its value.
      *shapes: The shapes that are accepted.

    Returns:
      The array.
    """
    value = finite_array(name, value)
    one_of_shapes(name, value, shapes)
    return value


def leading_axis(name: str, tree: Any, beside: str, count: int) -> None:
    """Raise ValueError unless all arrays of a pytree have one leading axis.

    Args:
      name: The name of the argument, for the message.
      tree: The argument, a pytree of arrays.
      beside: The name of the argument that shares the axis.
      count: The length of the axis.
    """
    for leaf in jax.tree.leaves(tree):
        if np.shape(leaf)[:1] != (count,):
            raise ValueError(
                f"{name} must have leading axis {count} as {beside}, "
                f"got shape {np.shape(leaf)}"
            )


def last_axis(name: str, value: Any, length: int) -> None:
    """Raise ValueError unless the last axis of an array, its channels, has a length.

    Args:
      name, value: The name of the argument, for the message, and its value.
      length: The length of the axis.
    """
    if np.shape(value)[-1:] != (length,):
        raise ValueError(
            f"{name} must have {length} channels on its last axis, got shape "
            f"{np.shape(value)}"
        )


def broadcastable(name: str, value: Any, x: Any) -> None:
    """Raise ValueError unless an array broadcasts to the shape of an example.

    Args:
      name, value: The name of the array, for the message, and its value.
      x: The example.
    """
    small, target = np.shape(value), np.shape(x)
    beside = small[::-1], target[::-1]
    if len(small) > len(target) or any(
        n not in (1, m) for n, m in zip(*beside, strict=False)
    ):
        raise ValueError(
            f"{name} of shape {small} must be broadcastable to the example's shape, "
            f"got {target}"
        )


def image(
    name: str, value: tuple, symbol: str = "1", divisor: int = 1, hint: str = ""
) -> None:
    """Raise ValueError unless a shape is that of an image with divisible sides.

    Args:
      name: The name of the argument, for the message.
      value: The shape, which should be (H, W, C).
      symbol: The name of the divisor, for the message.
      divisor: What should divide both sides.
      hint: What to do, for the end of the message.
    """
    if len(value) != 3 or value[0] % divisor or value[1] % divisor:
        sides = f" with sides divisible by {symbol}={divisor}" if divisor > 1 else ""
        raise ValueError(f"{name} must be (H, W, C){sides}, got {value}{hint}")


def batch(name: str, value: Any, least: int = 1) -> Any:
    """A `real_array` of one example or more on its leading axis.

    Args:
      name, value: The name of the argument, for messages, and its value.
      least: The least number of examples.

    Returns:
      The array, of shape (N, ...).

    Raises:
      ValueError: If it has no axis, no entry, or too few examples.
    """
    value = real_array(name, value)
    if value.ndim == 0 or value.size == 0 or len(value) < least:
        raise ValueError(
            f"{name} must have shape (N, ...) with N at least {least}, got "
            f"{value.shape}"
        )
    return value


def finite_batch(name: str, value: Any, least: int = 1) -> Any:
    """A `batch` without NaN or infinity, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.
      least: The least number of examples.

    Returns:
      The array, of shape (N, ...).
    """
    value = batch(name, value, least)
    finite(name, value)
    return value


def example_shaped(name: str, value: Any, x: Any) -> Any:
    """A value of the shape of x, the example for which a function returned it.

    Args:
      name: The name of the function, for the message.
      value: The value.
      x: The example.

    Returns:
      The value.

    Raises:
      ValueError: If it has another shape.
    """
    if jnp.shape(value) != jnp.shape(x):
        raise ValueError(
            f"{name} must return its example's shape {jnp.shape(x)}, got "
            f"{jnp.shape(value)}"
        )
    return value


def column(
    name: str, value: Any, letter: str, least: int, description: str = ""
) -> Any:
    """An array with one axis, of at least a given length.

    Args:
      name, value: The name of the argument, for messages, and its value.
      letter: The letter of its length, for the message.
      least: The least length.
      description: What it holds, for the message where a number stands in its
        place.

    Returns:
      The array.
    """
    if np.ndim(value) != 1 or len(value) < least:
        hint = f": {description}" if description and np.ndim(value) == 0 else ""
        raise ValueError(
            f"{name} must have shape ({letter},) with {letter} at least {least}, "
            f"got {np.shape(value)}{hint}"
        )
    return value


def axes(name: str, value: Any, form: str) -> Any:
    """An array with a given number of axes.

    Args:
      name, value: The name of the argument, for messages, and its value.
      form: The shape in letters, for example "(K, D)".

    Returns:
      The array.

    Raises:
      ValueError: If it has another number of axes.
    """
    rank = len([letter for letter in form.strip("()").split(",") if letter.strip()])
    if np.ndim(value) != rank:
        raise ValueError(f"{name} must have shape {form}, got {np.shape(value)}")
    return value


def scalar_of(name: str, value: Any) -> Any:
    """The value of a function that returns scalars.

    Args:
      name: The name of the function, for the message.
      value: What it returned.

    Returns:
      The value, of shape ().

    Raises:
      ValueError: If it has another shape.
    """
    if jnp.shape(value) != ():
        raise ValueError(f"{name} must return a scalar, got shape {jnp.shape(value)}")
    return value


def as_many(name: str, value: Any, beside: str, others: Any) -> None:
    """Raise ValueError unless two sequences have one length.

    Args:
      name, value: The name of the argument, for the message, and its value.
      beside, others: The same of the other one.
    """
    if len(value) != len(others):
        raise ValueError(
            f"{name} must be as many as {beside}, {len(others)}, got {len(value)}"
        )
