"""EDM2: a magnitude-preserving U-Net."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike, Scalar
from . import fields
from .dot_product import attention
from .embeddings import OneProgram, condition_parts
from .layers import as_image
from .magnitude import (
    MPConv,
    MPDense,
    MPFourier,
    mp_concatenate,
    mp_silu,
    mp_sum,
    normalise,
)
from .pyramid import pyramid, resample, sides
from .remat import rematerialised

__all__ = ["EDM2"]

BRANCH = 0.3
"""Weight of the residual branch, and of the attention, in a sum."""

LARGEST = 256.0
"""Activations are clipped to ± this, for float16."""


class EDM2Block(nn.Module):
    """Block of an encoder or decoder (Karras et al. 2024, figure 2c).

        h ← pixel norm(skip(R h))    in the encoder, and skip(R h) in the decoder
        h ← mp_sum(h, conv₂ dropout(mp_silu(c conv₁ mp_silu(h))))
        h ← mp_sum(h, attention(h))

    R halves or doubles the sides. skip is a 1 × 1 convolution where the number
    of channels changes. In the decoder it is not applied to what conv₁ reads.

    Args:
      channels: Number of channels of the output.
      encoder: Whether it is a block of the encoder.
      change: Of the sides, as in `pyramid.resample`.
      heads: Number of attention heads. 0 for no attention.
      dropout: Probability of a feature to be dropped.
      dtype: Of the computation.
      attention: See `attention`, `implementation`.
    """

    channels: int
    encoder: bool
    change: str = "same"
    heads: int = 0
    dropout: float = 0.0
    dtype: Any = None
    attention: str = "auto"

    @nn.compact
    def __call__(self, h: Array, c: Array, train: bool = False) -> Array:
        """Map h (H, W, C), modulated by c (dim,), to (H', W', channels)."""
        h = resample(h, self.change)
        skip = h
        if h.shape[-1] != self.channels:
            skip = MPDense(self.channels, dtype=self.dtype, name="skip")(h)
        if self.encoder:
            h = skip = normalise(skip, -1)
        conv = functools.partial(MPConv, self.channels, dtype=self.dtype)
        branch = conv(name="first")(mp_silu(h))
        gain = self.param("modulation_gain", nn.initializers.zeros, ())
        scale = MPDense(self.channels, dtype=self.dtype, name="modulation")(c, gain)
        branch = mp_silu(branch * (1 + scale))
        branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
        branch = conv(name="second")(branch)
        h = mp_sum(skip, branch, BRANCH)
        if self.heads:
            h = mp_sum(h, self._attend(h), BRANCH)
        return jnp.clip(h, -LARGEST, LARGEST)

    def _attend(self, h: Array) -> Array:
        """Cosine attention: q, k and v have mean square 1 per pixel and head."""
        channels = h.shape[-1]
        tokens = h.reshape(-1, channels)  # (H W, C)
        qkv = MPDense(3 * channels, dtype=self.dtype, name="qkv")(tokens)
        # (N, 3 C) -> (N, 3, heads, C/heads)
        qkv = qkv.reshape(tokens.shape[0], 3, self.heads, channels // self.heads)
        q, k, v = jnp.unstack(normalise(qkv, -1), axis=1)
        mixed = attention(q, k, v, self.attention).reshape(tokens.shape)
        out = MPDense(channels, dtype=self.dtype, name="projection")(mixed)
        return out.reshape(h.shape)


class EDM2(OneProgram, nn.Module):
    """EDM2 U-Net F(x, t, condition), exactly 0 at initialisation.

    The magnitude-preserving network of Karras et al. 2024, configuration G.
    Call `normalise_weights` on the parameters after each training step. x
    should have entries of mean square about 1, and t is ln(σ)/4 there, both of
    which the EDM parametrisation provides. The network is of one example.
    Batch it with `jax.vmap`.

    Args:
      width: Number of channels before the multipliers.
      multipliers: Factor of the channels at each resolution, from the full one
        down.
      blocks: Number of blocks per resolution.
      attention_resolutions: Numbers l of the resolutions, of sides H/2^l, with
        attention.
      head_channels: Channels of an attention head.
      dropout: Probability of a feature to be dropped before a block's second
        convolution.
      num_classes: Number of classes of the condition. A dropped label is the
        null label, num_classes, whose embedding is learned and as large as a
        class's. In the authors' program it is all zero. None for no class.
      condition_dim: Entries of a condition that is a vector, of mean square
        about 1 where it is given. A dropped one is 0, whose embedding is all
        zero. With num_classes too, the condition is a pair, see
        `ConditionEmbedding`. None for no vector.
      dtype: Of the computation. None for float32, or x's dtype if wider.
        Parameters, embeddings and the last layer stay float32 at least.
      attention: See `attention`, `implementation`.
      remat: What the backward pass computes again to save memory, see
        `rematerialised`. True is "blocks", False is "none".

    Raises:
      ValueError: If a field is out of range. The message has its name.
      TypeError: If a field has the wrong type.

    Example:
      >>> net = dj.networks.EDM2(width=4, multipliers=(1,), blocks=1,
      ...                        attention_resolutions=(), head_channels=4)
      >>> params = net.init(key, jnp.zeros((4, 4, 1)), 0.5)
    """

    width: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_resolutions: tuple[int, ...] = (2, 3)
    head_channels: int = 64
    dropout: float = 0.0
    num_classes: int | None = None
    condition_dim: int | None = None
    dtype: Any = None
    attention: str = "auto"
    remat: bool | str = "none"

    def __post_init__(self):
        shared = {name: fields.NETWORK[name] for name in ("width", "dropout", "dtype")}
        checks.attributes(self, **shared)
        fields.condition(self)
        fields.check_resolutions(self)
        fields.check_attention(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        t: Scalar,
        condition: ArrayLike | None = None,
        train: bool = False,
    ) -> Array:
        """Evaluate the network at one image.

        Args:
          x: (H, W, C) or (H, W), both sides multiples of 2^(resolutions − 1).
          t: Time, ().
          condition: See `ConditionEmbedding`.
          train: Whether dropout is on. Then `apply` needs rngs={"dropout":
            key}.

        Returns:
          F, of x's shape, in float32 or x's dtype if wider.

        Raises:
          ValueError: If x has another number of axes, or sides that cannot be
            halved.
        """
        shape = jnp.shape(x)
        x = as_image(x)  # (H, W, C)
        sides(x, len(self.multipliers))
        dtype = self.dtype or x.dtype
        c = self._embed(checks.real_shaped("t", t, ()), condition)
        # A channel of ones takes the place of biases.
        ones = jnp.ones((*x.shape[:2], 1), x.dtype)
        h = jnp.concatenate([x, ones], axis=-1)
        h = MPConv(self.width, dtype=dtype, name="first")(h)  # (H, W, width)
        h = pyramid(
            h,
            [self.width * multiplier for multiplier in self.multipliers],
            blocks=self.blocks,
            attention_resolutions=self.attention_resolutions,
            encode=functools.partial(self._block, c, train, dtype, True),
            decode=functools.partial(self._block, c, train, dtype, False),
            join=mp_concatenate,
        )
        gain = self.param("gain", nn.initializers.zeros, ())
        last = MPConv(x.shape[2], dtype=x.dtype, name="last")
        return last(h, gain).reshape(shape)

    def _embed(self, t: Array, condition: Any) -> Array:
        """The vector (width · largest multiplier,) that modulates every block."""
        dim = self.width * max(self.multipliers)
        embedding = MPDense(dim, name="time")(MPFourier(self.width)(t))
        label, vector = condition_parts(condition, self.num_classes, self.condition_dim)
        if label is not None and self.num_classes is not None:
            size = self.num_classes + 1  # the last is the null label
            row = jax.nn.one_hot(label, size) * size**0.5
            embedding = mp_sum(embedding, MPDense(dim, name="label")(row))
        if vector is not None:
            embedding = mp_sum(embedding, MPDense(dim, name="vector")(vector))
        return mp_silu(embedding)

    def _block(
        self,
        c: Array,
        train: bool,
        dtype: Any,
        encoder: bool,
        h: Array,
        channels: int,
        change: str,
        attend: bool,
    ) -> Array:
        block = rematerialised(EDM2Block, self.remat)
        return block(
            channels,
            encoder,
            change,
            channels // self.head_channels if attend else 0,
            self.dropout,
            dtype,
            self.attention,
        )(h, c, train)
