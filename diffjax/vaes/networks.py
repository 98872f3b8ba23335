"""A dense network between two shapes, for encoders and decoders."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from .. import checks
from ..networks.embeddings import OneProgram
from ..types import Array, ArrayLike

__all__ = ["Perceptron"]


class Perceptron(OneProgram, nn.Module):
    """Residual perceptron of one example (blocks of He et al. 2016).

        h = W x
        h ← h + W₂ dropout(SiLU(W₁ LayerNorm(h))),    `depth` times
        W LayerNorm(h)

    The last layer is small at first, with a tenth of the usual standard
    deviation, so that an encoder starts near the centre of its distribution.
    Batch with `jax.vmap`.

    Args:
      outputs: The shape of the outputs, as (2, d) for a mean and a log_std of
        d entries each.
      width: The number of features.
      depth: The number of blocks.
      dropout: The probability of a hidden feature to be dropped where
        train=True. `apply` then needs rngs={"dropout": key}.
      dtype: Of the computation. None for float32, or x's if that is wider. The
        last layer stays float32 at least.

    Raises:
      ValueError: For fields out of range, by name.
      TypeError: For fields of another type.

    Example:
      >>> network = dj.vaes.Perceptron((2, 1), width=4)
      >>> params = network.init(key, jnp.ones(3))
      >>> network.apply(params, jnp.ones(3)).shape
      (2, 1)
    """

    outputs: tuple[int, ...]
    width: int = 256
    depth: int = 2
    dropout: float = 0.0
    dtype: Any = None

    def __post_init__(self):
        checks.shape("outputs", self.outputs)
        checks.width("width", self.width, 1)
        checks.depth("depth", self.depth, 0)
        checks.within("dropout", self.dropout, 0.0, 1.0)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: ArrayLike, train: bool = False) -> Array:
        x = checks.real_array("x", x)
        dtype = self.dtype or x.dtype
        h = nn.Dense(self.width, dtype=dtype)(jnp.ravel(x))  # (width,)
        for _ in range(self.depth):
            branch = nn.silu(
                nn.Dense(self.width, dtype=dtype)(nn.LayerNorm(dtype=dtype)(h))
            )
            branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
            h = h + nn.Dense(self.width, dtype=dtype)(branch)
        # A variance of 0.01 of the usual one, so a tenth of its standard deviation.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        last = nn.Dense(math.prod(self.outputs), kernel_init=small, dtype=x.dtype)
        return last(nn.LayerNorm(dtype=dtype)(h)).reshape(self.outputs)
