"""The protocol of a schedule, and the evaluation of its functions at times."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..types import Array, ArrayLike, Scalar, as_one_program, is_eager

__all__ = [
    "Schedule",
    "argument",
    "as_time",
    "as_time_dtype",
    "at_times",
    "check",
    "in_float64",
    "of_time",
]


@runtime_checkable
class Schedule(Protocol):
    """Protocol of a schedule: α(t), σ(t) and the interval of t.

    Optional members, where they are more exact or faster than what the
    functions of these names derive: `log_snr(t)`, `time_of_log_snr(log_snr)`,
    `drift_coefficient(t)` and `diffusion_coefficient(t)`, and `noisiest_time`,
    the greatest time of finite log-SNR where that is not t_max.

    Example:
      >>> import dataclasses
      >>> @dataclasses.dataclass(frozen=True)
      ... class Cosine:
      ...     t_min: float = 1e-3
      ...     t_max: float = 0.99
      ...     def alpha(self, t):
      ...         return jnp.cos(0.5 * jnp.pi * t)
      ...     def sigma(self, t):
      ...         return jnp.sin(0.5 * jnp.pi * t)
      >>> denoiser = dj.targets.denoiser(target, Cosine())
      >>> dj.sample(key, denoiser, Cosine(), shape=(2,)).shape
      (2,)
    """

    @property
    def t_min(self) -> Any:
        """The least time, above 0."""
        ...

    @property
    def t_max(self) -> Any:
        """The greatest time."""
        ...

    def alpha(self, t: Scalar) -> Array:
        """Signal scale α(t), shape of t."""
        ...

    def sigma(self, t: Scalar) -> Array:
        """Noise standard deviation σ(t), shape of t."""
        ...


def check(schedule: Any) -> Schedule:
    """`argument("schedule", schedule)`."""
    return argument("schedule", schedule)


def argument(name: str, value: Any) -> Schedule:
    """Check that an argument is a schedule, for `checks.arguments`.

    Args:
      name: Its name, for the message.
      value: The argument.

    Returns:
      The argument.

    Raises:
      TypeError: If it is a class, or lacks one of alpha, sigma, t_min and
        t_max.
    """
    members = ("alpha", "sigma", "t_min", "t_max")
    missing = [member for member in members if not hasattr(value, member)]
    if missing or isinstance(value, type):
        lack = "is a class, not an instance"
        if missing:
            lack = f"lacks {', '.join(missing)}"
        raise TypeError(
            f"{name} must have alpha(t), sigma(t), t_min and t_max; {value!r} {lack}"
        )
    return value


def as_time(t: ArrayLike) -> Array:
    """t as an array of float32 at least. A Python number gets the working precision."""
    t = checks.number("t", t) if type(t) is int else t
    return jnp.asarray(t, as_time_dtype(t))


def as_time_dtype(t: ArrayLike) -> np.dtype:
    """The dtype of `as_time(t)`."""
    dtype = (
        checks.promoted(t.dtype, jnp.float32) if hasattr(t, "dtype") else float_dtype(t)
    )
    return jax.dtypes.canonicalize_dtype(dtype)


# ------------------------------------------------------- few programs at a first call


def in_float64(function: Callable, schedule: Schedule, *values: Any) -> Any:
    """Call a function as one program in float64, whatever the working precision.

    Only for eager calls, see `types.is_eager`.

    Args:
      function: A function (schedule, *values) of a module.
      schedule: The noise schedule.
      *values: Further arguments.

    Returns:
      The function's value, with NumPy arrays as leaves.
    """
    with jax.enable_x64(True):
        # A copy: once a float32 program has captured an array, JAX keeps a
        # float32 buffer of it and passes that to other programs too.
        schedule, values = jax.tree.map(
            lambda v: np.array(v, np.float64) if _narrow(v) else v, (schedule, values)
        )
        return jax.tree.map(np.asarray, as_one_program(function, schedule, *values))


def of_time(method: Callable) -> Callable:
    """Decorator of a schedule's method of time.

    t becomes an array. Concrete times are one program, computed in float64.
    """

    @functools.wraps(method)
    def of_any_time(self, t):
        return at_times(method, self, t)

    return of_any_time


def at_times(function: Callable, schedule: Any, t: Any, name: str = "t") -> Any:
    """Call a function of a schedule and times in the dtype of `as_time(t)`.

    Eager calls go through float64, as one program.

    Args:
      function: A function (schedule, t) of a module.
      schedule: The noise schedule.
      t: Times, or other numbers, of any shape.
      name: Their name, for messages.

    Returns:
      The function's value.
    """
    check(schedule)
    if type(t) is int:
        t = checks.number(name, t)
    if not is_eager(schedule, t):
        return function(schedule, as_time(t))
    dtype = as_time_dtype(t)
    result = in_float64(function, schedule, np.asarray(t).astype(dtype))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), result)


def _narrow(leaf):
    return isinstance(leaf, jax.Array | np.ndarray | np.generic) and jnp.issubdtype(
        leaf.dtype, jnp.floating
    )
