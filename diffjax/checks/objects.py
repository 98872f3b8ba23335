"""Checks of names, flags, functions, keys and objects."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .edge import require
from .numbers import integer

__all__ = [
    "boolean",
    "callable_",
    "callables",
    "choice",
    "counter",
    "denoiser",
    "distribution",
    "each",
    "floating",
    "has_methods",
    "instance",
    "key",
    "made_by",
    "pair",
]


def boolean(name: str, value: Any) -> bool:
    """True or False, as a Python bool.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The bool.

    Raises:
      TypeError: If it is anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: Any, options: Iterable[str]) -> str:
    """One of several strings.

    Args:
      name, value: The name of the argument, for messages, and its value.
      options: The strings that are accepted.

    Returns:
      The value.

    Raises:
      ValueError: If it is not one of them.
    """
    accepted = list(options)
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, accepted))}; got {value!r}"
        )
    return value


def has_methods(name: str, value: Any, *signatures: str) -> Any:
    """The value, if it has the methods, for example "log_prob(x)" and "sample(key)".

    Args:
      name: The name of the argument, for the message.
      value: An object, not a class.
      *signatures: The names of the methods with their arguments.

    Returns:
      The value.

    Raises:
      TypeError: If it is a class, or one of the methods is missing.
    """
    names = [signature.partition("(")[0] for signature in signatures]
    if isinstance(value, type) or not all(
        callable(getattr(value, method, None)) for method in names
    ):
        raise TypeError(f"{name} must have {' and '.join(signatures)}, got {value!r}")
    return value


def distribution(name: str, value: Any) -> Any:
    """A distribution: anything that states its density and can be sampled.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The value.
    """
    return has_methods(name, value, "log_prob(x)", "sample(key)")


def made_by(name: str, value: Any, kind: type, maker: str) -> Any:
    """A value of one type, that of the values which a function makes.

    Args:
      name, value: The name of the argument, for messages, and its value.
      kind: The type.
      maker: The name of the function, for the message.

    Returns:
      The value.

    Raises:
      TypeError: If it is of another type.
    """
    if not isinstance(value, kind):
        got = repr(value) if isinstance(value, str) else type(value).__name__
        if inspect.isfunction(value):  # as a rule the maker itself
            got = f"{value!r}; call it: {value.__name__}()"
        raise TypeError(f"{name} must be made by {maker}, got {got}")
    return value


def instance(name: str, value: Any, kind: Any, description: str) -> Any:
    """A value of one type, or of one of several.

    Args:
      name, value: The name of the argument, for messages, and its value.
      kind: The type, or a union of types.
      description: What the message calls it, for example "a Gaussian(loc, var)".

    Returns:
      The value.

    Raises:
      TypeError: If it is of another type.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {description}, got {value!r}")
    return value


def pair(name: str, value: Any, form: str) -> Any:
    """A tuple or list of two values.

    Args:
      name, value: The name of the argument, for messages, and its value.
      form: The two by name, for the message, for example "(t_low, t_high)".

    Returns:
      The value.

    Raises:
      TypeError: If it is anything else.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name} must be a pair {form}, got {value!r}")
    return value


def callable_(name: str, value: Any, signature: str) -> Any:
    """A function, or another value that can be called.

    Args:
      name: The name of the argument, for the message.
      value: The argument.
      signature: How it is called, for the message.

    Returns:
      The value.

    Raises:
      TypeError: If it cannot be called.
    """
    if not callable(value):
        raise TypeError(
            f"{name} must be callable as {signature}, got {_describe(value)}"
        )
    return value


def callables(name: str, value: Any, least: int = 0, more: str = "") -> Any:
    """A tuple or list of values that can be called.

    Args:
      name, value: The name of the argument, for messages, and its value.
      least: The least number of them.
      more: What else is accepted, for the message.

    Returns:
      The value.

    Raises:
      TypeError: If it is anything else.
    """
    is_sequence = isinstance(value, tuple | list) and len(value) >= least
    if not is_sequence or not all(map(callable, value)):
        raise TypeError(f"{name} must be a sequence of callables{more}, got {value!r}")
    return value


def each(
    name: str, values: Iterable, check: Callable[..., Any], *more: Any, least: int = 0
) -> tuple:
    """A tuple of values, each of which passes a check under the name `name[i]`.

    Args:
      name: The name of the argument, for messages.
      values: The argument.
      check: A check (name, value, *more) -> value.
      *more: Its further arguments.
      least: The least number of values, 0 or 1.

    Returns:
      The tuple of what the check returned.

    Raises:
      ValueError: If there are too few.
    """
    values = tuple(values)
    require(len(values) >= least, f"{name} must hold at least one, got none")
    return tuple(check(f"{name}[{i}]", value, *more) for i, value in enumerate(values))


def denoiser(name: str, value: Any) -> Any:
    """A denoiser, as far as it can be called.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The value.

    Raises:
      TypeError: If it cannot be called.
    """
    return callable_(name, value, "denoiser(x, t)")


def key(name: str, value: Any) -> Any:
    """One typed key, made by `jax.random.key`.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The key.

    Raises:
      TypeError: If it is no typed key.
      ValueError: If it is an array of keys.
    """
    if not (
        isinstance(value, jax.Array)
        and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    ):
        raise TypeError(
            f"{name} must be a typed key made by jax.random.key(seed), "
            f"got {_describe(value)}"
        )
    if value.shape != ():
        raise ValueError(
            f"{name} must be one key of shape (), got shape {value.shape}; "
            "jax.vmap over many keys"
        )
    return value


def floating(name: str, value: Any) -> np.dtype:
    """A floating-point dtype.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The dtype.

    Raises:
      TypeError: If it is another dtype.
    """
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise TypeError(f"{name} must be a floating type, got {value!r}") from None
    require(
        jnp.issubdtype(dtype, jnp.floating),
        f"{name} must be a floating type, got {dtype}",
        TypeError,
    )
    return dtype


def counter(name: str, value: Any) -> Any:
    """An integer of shape () below 2³², which may be traced.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      A NumPy uint32, or the array of integers itself.

    Raises:
      TypeError: If it is no integer of shape ().
      ValueError: If it is out of range.
    """
    if isinstance(value, int | np.integer):
        return np.uint32(integer(name, value, 0, 2**32 - 1))
    if (
        not hasattr(value, "dtype")
        or value.shape != ()
        or not jnp.issubdtype(value.dtype, jnp.integer)
    ):
        raise TypeError(f"{name} must be an integer of shape (), got {value!r}")
    return value


def _describe(value: Any) -> str:
    return (
        f"an array of dtype {value.dtype}" if hasattr(value, "dtype") else repr(value)
    )
