"""Names of types in signatures."""

from collections.abc import Callable
from typing import Any

import jax

__all__ = [
    "Array",
    "ArrayLike",
    "Denoiser",
    "Key",
    "PyTree",
    "Scalar",
    "Velocity",
]

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
Key = jax.Array
"""A typed key, as made by `jax.random.key`."""
Scalar = jax.typing.ArrayLike
"""A number or an array of shape ()."""
PyTree = Any
Denoiser = Callable[..., Array]
"""(x, t) -> E[x_0 | x_t = x], for one example x of any shape and a scalar t."""
Velocity = Callable[..., Any]
"""(x, t) -> dx/dt."""
