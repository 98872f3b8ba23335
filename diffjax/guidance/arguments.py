"""Checks that guidance rules and inverse problems share, and calls of denoisers."""

from typing import Any

from .. import checks, predictions
from ..types import Array, Denoiser, Scalar, as_pytree_callable

__all__ = [
    "denoised_at",
    "denoiser",
    "independent_denoiser",
    "scale",
]


def denoised_at(denoiser: Denoiser, x: Array, t: Scalar, *condition: Any) -> Array:
    """The value of a denoiser, of its example's shape.

    Args:
      denoiser: (x, t, *condition) -> D.
      x: One example.
      t: Time, shape ().
      *condition: Passed to the denoiser.

    Returns:
      D, shape of x.

    Raises:
      TypeError: If the denoiser returns no array of real numbers.
      ValueError: If it returns one of another shape.
    """
    return checks.denoised(denoiser(x, t, *condition), x)


def denoiser(name: str, value: Any, signature: str = "denoiser(x, t)") -> Denoiser:
    """The denoiser as a pytree that can be called.

    Args:
      name: The argument's name, for the message.
      value: The argument.
      signature: How it is called, for the message.

    Returns:
      A callable pytree.

    Raises:
      TypeError: If it cannot be called.
    """
    return as_pytree_callable(checks.callable_(name, value, signature))


def independent_denoiser(name: str, value: Any, purpose: str) -> Denoiser:
    """A denoiser fitted to noise that is independent of the data.

    Args:
      name: The argument's name, for the message.
      value: The argument.
      purpose: What needs it, for the message.

    Returns:
      A callable pytree.

    Raises:
      TypeError: If it cannot be called, or has `independent=False`.
    """
    predictions.check_independent(purpose, value)
    return denoiser(name, value)


def scale(name: str, value: Any) -> Any:
    """A guidance scale γ: a finite number, or a function of t as a pytree.

    Args:
      name: The argument's name, for the message.
      value: The argument.

    Returns:
      The number or the callable pytree.

    Raises:
      TypeError: If it is neither a number nor callable.
      ValueError: If it is not finite or no scalar.
    """
    return as_pytree_callable(value) if callable(value) else checks.number(name, value)
