"""Conditioners of dense layers."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from ... import checks
from ...types import Array, Key, pytree, static_field
from ..bijectors import promoted
from ..checks import NETWORK, check_condition
from .weights import dense_parameters

__all__ = ["PerceptronConditioner", "dense", "perceptron"]


@pytree
class PerceptronConditioner:
    """A network of dense layers, (x, condition) -> outputs. See `perceptron`."""

    weights: tuple
    biases: tuple
    outputs: tuple = static_field()
    condition_size: int = static_field()

    def __call__(self, x: Array, condition: Any = None) -> Array:
        """Parameters of shape `outputs`: Linear ∘ SiLU ∘ … ∘ Linear of [x, condition].

        Args:
          x: What stays, of any shape.
          condition: An array of condition_size entries, or None.
        """
        check_condition(condition, self.condition_size)
        h = promoted(jnp.ravel(x))
        if condition is not None:
            h = jnp.concatenate([h, jnp.ravel(condition).astype(h.dtype)])
        entries = self.weights[0].shape[0] - self.condition_size
        message = f"x must have {entries} entries, got {jnp.size(x)}"
        checks.require(jnp.size(x) == entries, message)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = jax.nn.silu(h @ weight + bias)  # (width,)
        return (h @ self.weights[-1] + self.biases[-1]).reshape(self.outputs)


@checks.arguments(
    **NETWORK, inputs=(checks.width, 0), outputs=checks.shape, depth=(checks.depth, 0)
)
def perceptron(
    key: Key,
    inputs: int,
    outputs: tuple,
    *,
    width: int = 64,
    depth: int = 2,
    condition_size: int = 0,
) -> PerceptronConditioner:
    """Conditioner of dense layers with SiLU between them.

    Its output is 0 at first, so that a layer starts as the identity.

    Args:
      key: Key of the hidden weights, N(0, 1/fan-in).
      inputs: Entries of the part that stays.
      outputs: Shape of the result, (*moved.shape, P) with P parameters per
        entry.
      width: Units per hidden layer.
      depth: Number of hidden layers.
      condition_size: Entries of the condition, 0 for none.

    Returns:
      A pytree callable (kept, condition) -> parameters of shape `outputs`.

    Raises:
      ValueError: If a size is out of range, or when called with other sizes.

    Example:
      >>> scalar_map = dj.flows.bounded_affine()
      >>> network = dj.flows.perceptron(key, 1, (2, scalar_map.count), width=4)
      >>> layer = dj.flows.coupling(network, scalar_map, dj.flows.half_mask(3))
    """
    return perceptron_of_sizes(
        key, PerceptronSizes(inputs, outputs, width, depth, condition_size)
    )


@dataclasses.dataclass(frozen=True)
class PerceptronSizes:
    """Sizes of a perceptron, see `perceptron`."""

    inputs: int
    outputs: tuple
    width: int
    depth: int
    condition_size: int


@functools.partial(jax.jit, static_argnums=1)
def perceptron_of_sizes(key: Key, sizes: PerceptronSizes) -> PerceptronConditioner:
    """`perceptron` of arguments that are checked already, as one program.

    Args:
      key: A typed key.
      sizes: Its sizes.
    """
    hidden = [sizes.width] * sizes.depth
    inputs = sizes.inputs + sizes.condition_size
    weights, biases = dense_parameters(key, (inputs, *hidden, math.prod(sizes.outputs)))
    return PerceptronConditioner(weights, biases, sizes.outputs, sizes.condition_size)


@checks.arguments(kept=checks.shape)
def dense(
    key: Key, kept: tuple, outputs: tuple, *, width: int = 64, condition_size: int = 0
) -> PerceptronConditioner:
    """`perceptron` of two hidden layers with the arguments of `convolutional`.

    It sees the whole of what stays at once. For images of a few pixels it
    takes less time per step, and it has weights of its own for each pixel.

    Args:
      key: Key of the hidden weights, N(0, 1/fan-in).
      kept: Shape of the part that stays.
      outputs: Shape of the result, (*moved.shape, P) with P parameters per
        entry.
      width: Units per hidden layer.
      condition_size: Entries of the condition, 0 for none.

    Returns:
      A pytree callable (kept, condition) -> parameters of shape `outputs`.

    Example:
      >>> network = dj.flows.dense(key, (2, 2, 1), (2, 2, 1, 2), width=4)
    """
    return perceptron(
        key, math.prod(kept), outputs, width=width, condition_size=condition_size
    )
