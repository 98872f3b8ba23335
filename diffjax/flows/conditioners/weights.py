"""Initial weights of conditioners, and how a condition enters a hidden layer."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...numerics import float_dtype
from ...types import Array, Key
from ..bijectors import full
from ..checks import check_condition

__all__ = [
    "dense_parameters",
    "from_condition",
    "networks_in_turn",
    "normal_weights",
]


def dense_parameters(key: Key, sizes: tuple) -> tuple[tuple, tuple]:
    """Weights and biases of dense layers, whose output is 0 at first.

    Args:
      key: A typed key.
      sizes: Number of inputs, of each layer's hidden units, and of outputs.

    Returns:
      (weights, biases). Weights are N(0, 1/fan-in), those of the last layer
      and all biases are 0.
    """
    hidden = normal_weights(key, list(zip(sizes[:-2], sizes[1:-1], strict=True)))
    return (*hidden, jnp.zeros(sizes[-2:], float_dtype())), tuple(
        full((size,)) for size in sizes[1:]
    )


def normal_weights(key: Key, shapes: list, fans_in: list | None = None) -> list[Array]:
    """Weights N(0, 1/fan-in) of several shapes.

    Args:
      key: A typed key.
      shapes: Shapes of the weights.
      fans_in: Their fan-ins, by default the product of all axes but the last.

    Returns:
      One array per shape.
    """
    fans_in = (
        [math.prod(shape[:-1]) for shape in shapes] if fans_in is None else fans_in
    )
    # One draw for all: a draw per shape would compile a generator per shape,
    # which is half of what making a small flow costs.
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    draws = jax.random.normal(key, (ends[-1] if ends else 0,), float_dtype())
    return [
        draws[end - math.prod(shape) : end].reshape(shape) * max(fan_in, 1) ** -0.5
        for shape, fan_in, end in zip(shapes, fans_in, ends, strict=True)
    ]


def networks_in_turn(
    key: Key, layers: int, make: Callable, sizes: Any, *, second: Any = None
) -> tuple[Any, Any, Any]:
    """Networks of layers that alternate in kind, made by one compiled program.

    Args:
      key: A typed key.
      layers: Number of layers, at least 1.
      make: A module-level function make(key, sizes) -> network.
      sizes: Sizes of the networks, hashable.
      second: Sizes of every second network, where they differ.

    Returns:
      (first, second, last). The networks of the first and of the second layer
      of each pair have a leading axis of layers // 2, as in a `Stack`, and are
      None where there is no pair. `last` is the network of the last layer of
      an odd number, else None.
    """
    return _networks_in_turn(
        key, layers, make, sizes=(sizes, sizes if second is None else second)
    )


@functools.partial(jax.jit, static_argnums=(1, 2), static_argnames="sizes")
def _networks_in_turn(key, layers, make, *, sizes):
    pairs: tuple = (None, None)
    if layers > 1:
        keys = jax.random.split(key, (layers // 2, 2))
        pairs = tuple(
            jax.vmap(lambda key, size=size: make(key, size))(keys[:, i])
            for i, size in enumerate(sizes)
        )
    odd = layers % 2
    last = make(jax.random.fold_in(key, layers - 1), sizes[0]) if odd else None
    return *pairs, last


def from_condition(condition: Any, weight: Array | None, like: Array) -> Array | float:
    """Bias of a hidden layer that is linear in the condition, c W.

    Args:
      condition: c, an array of condition_size entries, or None.
      weight: W, of shape (condition_size, width). None where no condition is
        expected.
      like: An array of the dtype to compute in.

    Returns:
      An array (width,), or 0 where no condition is expected.

    Raises:
      ValueError: If the condition has another number of entries.
    """
    size = 0 if weight is None else weight.shape[0]
    check_condition(condition, size)
    return jnp.ravel(condition).astype(like.dtype) @ weight if size else 0.0
