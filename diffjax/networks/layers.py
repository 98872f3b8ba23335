"""Layers that more than one network is made of: modulation, layer norm, attention."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike
from .dot_product import attention
from .products import Dense

__all__ = [
    "AdaptiveLayerNorm",
    "Attention",
    "Modulation",
    "as_image",
    "layer_norm",
    "modulate",
]


class Modulation(nn.Module):
    """Shifts, scales and gates, linear in c and zero at initialisation.

    This is adaLN-zero (Peebles & Xie 2023, DiT, section 3.2).

    Args:
      count: Number of vectors.
      width: Their width.
      dtype: Of the computation.
    """

    count: int
    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, c: Array) -> Array:
        """The vectors (count, width) of a conditioning vector c (dim,)."""
        vectors = Dense(
            self.count * self.width, kernel_init=nn.initializers.zeros, dtype=self.dtype
        )(c)
        return vectors.reshape(self.count, self.width)


def modulate(h: Array, shift: Array, scale: Array) -> Array:
    """(1 + scale) h + shift, feature by feature.

    Args:
      h: (..., F).
      shift: (F,).
      scale: (F,).

    Returns:
      (..., F).
    """
    return h * (1 + scale) + shift


class AdaptiveLayerNorm(nn.Module):
    """Layer norm with a shift and a scale, linear in c and zero at initialisation."""

    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array, c: Array) -> Array:
        """modulate(LayerNorm(h), shift, scale), of h (..., F) and c (dim,)."""
        shift, scale = Modulation(2, h.shape[-1], self.dtype)(c)
        return modulate(layer_norm(self.dtype)(h), shift, scale)


def layer_norm(dtype: Any) -> nn.LayerNorm:
    """Layer norm without parameters, which the modulation that follows holds."""
    return nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype)


class Attention(nn.Module):
    """Multi-head self-attention, projected (Vaswani et al. 2017, section 3.2).

        softmax_k(q·k/√d) v per head

    Neither q, k nor v has a bias. A bias of k cancels in the softmax, and one
    of v is the output's.

    Args:
      heads: Number of heads.
      zero_output: Whether the projection starts at zero.
      implementation: See `attention`.
      dtype: Of the computation.
    """

    heads: int
    zero_output: bool = False
    implementation: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map tokens (N, width) to (N, width), where heads divides width."""
        n, width = h.shape
        qkv = Dense(3 * width, use_bias=False, dtype=self.dtype)(h)  # (N, 3 width)
        # (N, 3 width) -> three of (N, heads, d)
        q, k, v = jnp.unstack(
            qkv.reshape(n, 3, self.heads, width // self.heads), axis=1
        )
        mixed = attention(q, k, v, self.implementation).reshape(n, width)
        zeros, random = nn.initializers.zeros, nn.initializers.lecun_normal()
        kernel_init = zeros if self.zero_output else random
        return Dense(width, kernel_init=kernel_init, dtype=self.dtype)(mixed)


def as_image(x: ArrayLike) -> Array:
    """An image as (H, W, C) in float32 or wider, where (H, W) gains C = 1.

    Raises:
      ValueError: If x has another number of axes, or no entry.
    """
    x = checks.real_array("x", x)
    got = f"got {x.shape}; jax.vmap over a batch"
    checks.require(x.ndim in (2, 3), f"x must have shape (H, W) or (H, W, C), {got}")
    checks.require(x.size, f"x must have at least one entry, got shape {x.shape}")
    return x if x.ndim == 3 else x[..., None]
