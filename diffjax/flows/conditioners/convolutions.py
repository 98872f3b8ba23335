"""Convolutional conditioner of images."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from ... import checks
from ...numerics import float_dtype
from ...types import Array, Key, pytree, static_field
from ..checks import NETWORK
from .weights import from_condition, normal_weights

__all__ = ["Convolutional", "convolution", "convolutional"]


@pytree
class Convolutional:
    """A network of three convolutions, (image, condition) -> parameters.

    See `convolutional`.
    """

    first: Array  # (3, 3, C, width)
    position: Array  # (H, W, width)
    embedding: Array  # (condition_size, width)
    second: Array  # (width, width)
    second_bias: Array  # (width,)
    last: Array  # (3, 3, width, F), F the product of what follows H, W in outputs
    last_bias: Array  # (H, W, F)
    outputs: tuple = static_field()

    def __call__(self, x: Array, condition: Any = None) -> Array:
        """Parameters of shape `outputs`: 3 × 3 ∘ SiLU ∘ 1 × 1 ∘ SiLU ∘ 3 × 3.

        Args:
          x: An image (H, W, C).
          condition: An array of condition_size entries, or None.
        """
        checks.one_of_shapes("x", x, [(*self.position.shape[:2], self.first.shape[2])])
        h = convolution(x, self.first) + self.position  # (H, W, width)
        h = h + from_condition(condition, self.embedding, h)
        h = jax.nn.silu(jax.nn.silu(h) @ self.second + self.second_bias)
        return (convolution(h, self.last) + self.last_bias).reshape(self.outputs)


def convolution(h: Array, weights: Array) -> Array:
    """3 × 3 convolution, with 0 beyond the edge.

        y_{ij} = Σ_{kl} h_{i+k−1, j+l−1} W_{kl}

    Args:
      h: An image (H, W, C).
      weights: W, of shape (3, 3, C, F).

    Returns:
      An image (H, W, F).
    """
    height, width, channels = h.shape
    features = weights.shape[-1]

    def shifts(values):
        padded = jnp.pad(values, ((1, 1), (1, 1), *[(0, 0)] * (values.ndim - 2)))
        return [
            padded[i : i + height, j : j + width] for i in range(3) for j in range(3)
        ]

    # One matrix product over all positions takes, on small images and CPUs, a
    # fraction of the time of a convolution primitive under vmap. Where C is
    # small it is of the nine shifts side by side, else of h alone, whose nine
    # products are then shifted.
    if channels <= features:
        return jnp.concatenate(shifts(h), -1) @ weights.reshape(9 * channels, features)
    products = h @ weights.reshape(9, channels, features).transpose(1, 0, 2).reshape(
        channels, 9 * features
    )
    shifted = shifts(products.reshape(height, width, 9, features))  # 9 × (H, W, 9, F)
    return sum(
        (part[..., k, :] for k, part in enumerate(shifted)), jnp.zeros((), h.dtype)
    )


@checks.arguments(**NETWORK, kept=checks.shape, outputs=checks.shape)
def convolutional(
    key: Key, kept: tuple, outputs: tuple, *, width: int = 64, condition_size: int = 0
) -> Convolutional:
    """Conditioner of images (Kingma & Dhariwal 2018, section 3.3).

    Convolutions 3 × 3, 1 × 1 and 3 × 3 with SiLU between them. The output is 0
    at first. The first and last biases differ from position to position, so
    that the network knows where it is: the rim of a digit is not its centre. A
    condition is added to every position by a linear map.

    Args:
      key: Key of the hidden weights, N(0, 1/fan-in).
      kept: (H, W, C), shape of the part that stays.
      outputs: (H, W, …), shape of the result.
      width: Channels of the hidden layers.
      condition_size: Entries of the condition, 0 for none.

    Returns:
      A pytree callable (kept, condition) -> parameters of shape `outputs`.

    Raises:
      ValueError: Unless kept and outputs are images of the same sides.

    Example:
      >>> network = dj.flows.convolutional(key, (2, 2, 1), (2, 2, 1, 2), width=4)
    """
    checks.image("kept", kept)
    message = f"outputs must begin with the sides {kept[:2]} of kept, got {outputs}"
    checks.require(outputs[:2] == kept[:2], message)
    return _convolutional(key, kept, outputs, width, condition_size)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _convolutional(key, kept, outputs, width, condition_size):
    sides, channels = kept[:2], kept[2]
    count, dtype = math.prod(outputs[2:]), float_dtype()
    first, embedding, second = normal_weights(
        key, [(3, 3, channels, width), (condition_size, width), (width, width)]
    )
    return Convolutional(
        first=first,
        position=jnp.zeros((*sides, width), dtype),
        embedding=embedding,
        second=second,
        second_bias=jnp.zeros((width,), dtype),
        last=jnp.zeros((3, 3, width, count), dtype),
        last_bias=jnp.zeros((*sides, count), dtype),
        outputs=outputs,
    )
