"""Layers that more than one network is made of: modulation, layer norm, attention."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike

__all__ = [
    "AdaptiveLayerNorm",
    "Attention",
    "Modulation",
    "as_image",
    "layer_norm",
    "modulate",
]


class Modulation(nn.Module):
    """Shifts, scales and gates, linear in the conditioning vector and zero at first.

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
        vectors = nn.Dense(
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
    """Layer norm with a shift and a scale that are linear in c, and zero at first."""

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
    of v is the output's. Logits and the softmax's sums are in float32 or
    wider.

    It is written as einsums over one sequence, so that vmap adds a batch axis
    to each and nothing else. `jax.nn.dot_product_attention` under vmap takes
    up to twice its batched time on CPU.

    Args:
      heads: Number of heads.
      zero_output: Whether the projection starts at zero.
      dtype: Of the computation.
    """

    heads: int
    zero_output: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map tokens (N, width) to (N, width), where heads divides width."""
        n, width = h.shape
        d = width // self.heads
        qkv = nn.Dense(3 * width, use_bias=False, dtype=self.dtype)(h)  # (N, 3 width)
        # (N, 3, heads, d) -> (3, heads, N, d)
        q, k, v = qkv.reshape(n, 3, self.heads, d).transpose(1, 2, 0, 3)
        wide = checks.promoted(q.dtype, jnp.float32)
        logits = jnp.einsum("hqd,hkd->hqk", q * d**-0.5, k, preferred_element_type=wide)
        # (heads, N, N), at most 1
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        mixed = jnp.einsum(
            "hqk,hkd->hqd", weights.astype(v.dtype), v, preferred_element_type=wide
        )
        # Dividing the N d numbers of the result, not N² weights, saves half
        # the time.
        mixed /= weights.sum(-1, keepdims=True)  # (heads, N, d)
        mixed = mixed.transpose(1, 0, 2).reshape(
            n, width
        )  # (N, heads, d) -> (N, width)
        zeros, random = nn.initializers.zeros, nn.initializers.lecun_normal()
        kernel_init = zeros if self.zero_output else random
        return nn.Dense(width, kernel_init=kernel_init, dtype=self.dtype)(mixed)


def as_image(x: ArrayLike) -> Array:
    """An image as (H, W, C) in float32 or wider, where (H, W) gains C = 1.

    Raises:
      ValueError: If x has another number of axes.
    """
    x = checks.real_array("x", x)
    got = f"got {x.shape}; jax.vmap over a batch"
    checks.require(x.ndim in (2, 3), f"x must have shape (H, W) or (H, W, C), {got}")
    return x if x.ndim == 3 else x[..., None]
