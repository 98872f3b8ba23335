"""Transformer layers of diffusers, of the tokens (N, C) of one example."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from ...types import Array
from .layers import convolution, gelu, group_norm, multi_head

__all__ = ["FEED_FORWARD", "FeedForward", "Transformer2D", "TransformerBlock"]

FEED_FORWARD: dict[str, tuple[bool, Callable[..., Array]]] = {
    "gelu": (False, gelu),
    "gelu-approximate": (False, nn.gelu),
    "geglu": (True, gelu),
    "geglu-approximate": (False, lambda h: h * nn.sigmoid(1.702 * h)),
    "swiglu": (True, nn.silu),
    "linear-silu": (False, nn.silu),
}
"""Whether a feed-forward layer has a gate, and its activation, by `activation_fn`."""


class FeedForward(nn.Module):
    """Two dense layers with four times the features between them (Shazeer 2020).

    Args:
      act: Name of the activation, see `FEED_FORWARD`.
    """

    act: str

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (N, C) to (N, C)."""
        gated, act = FEED_FORWARD[self.act]
        width, dtype = h.shape[-1], h.dtype
        features = 4 * width * (2 if gated else 1)
        hidden = nn.Dense(features, dtype=dtype, name="net.0.proj")(h)
        if gated:
            hidden, gate = jnp.split(hidden, 2, axis=-1)
            hidden = hidden * act(gate)
        else:
            hidden = act(hidden)
        return nn.Dense(width, dtype=dtype, name="net.2")(hidden)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each added.

    Args:
      heads: Number of heads.
      head_channels: Channels of a head.
      only_cross: Whether the first attention is to the context too.
    """

    heads: int
    head_channels: int
    only_cross: bool = False

    @nn.compact
    def __call__(self, h: Array, context: Array | None) -> Array:
        """Map tokens (N, C), with a context (M, K), to (N, C)."""

        def attend(h, context, index):
            normed = nn.LayerNorm(epsilon=1e-5, dtype=h.dtype, name=f"norm{index}")(h)
            return multi_head(
                normed,
                normed if context is None else context,
                heads=self.heads,
                head_channels=self.head_channels,
                bias=False,
                prefix=f"attn{index}.",
            )

        h = h + attend(h, context if self.only_cross else None, 1)
        h = h + attend(h, context, 2)
        normed = nn.LayerNorm(epsilon=1e-5, dtype=h.dtype, name="norm3")(h)
        return h + FeedForward("geglu", name="ff")(normed)


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels of an image, added to it.

    Args:
      heads: Number of heads.
      head_channels: Channels of a head.
      layers: Number of blocks.
      groups: Groups of the norm before them.
      linear: Whether the projections around them are dense layers, in place of
        1 × 1 convolutions, whose weights have other shapes in files.
      only_cross: Whether the first attention of each block is to the context too.
    """

    heads: int
    head_channels: int
    layers: int
    groups: int
    linear: bool
    only_cross: bool

    @nn.compact
    def __call__(self, h: Array, context: Array | None) -> Array:
        """Map (H, W, C), with a context (M, K), to (H, W, C)."""
        channels, dtype = h.shape[-1], h.dtype
        width = self.heads * self.head_channels

        def project(features, name):
            if self.linear:
                return nn.Dense(features, dtype=dtype, name=name)
            return convolution(features, name, dtype, side=1)

        normed = group_norm(self.groups, 1e-6, "norm", dtype)(h)
        tokens = project(width, "proj_in")(normed).reshape(-1, width)  # (H W, width)
        for index in range(self.layers):
            tokens = TransformerBlock(
                self.heads,
                self.head_channels,
                self.only_cross,
                name=f"transformer_blocks.{index}",
            )(tokens, context)
        out = tokens.reshape(*h.shape[:2], width)
        return h + project(channels, "proj_out")(out)
