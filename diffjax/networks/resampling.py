"""U-Nets whose blocks resample: DDPM++ and ADM."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from ..types import Array, ArrayLike, Scalar
from . import fields
from .embeddings import TIME_FREQUENCIES, Conditioning, OneProgram, fourier_inputs
from .layers import Attention, Modulation, as_image
from .products import Dense
from .pyramid import pyramid, resample, sides
from .remat import rematerialised
from .stored import residual_sum
from .unet import HALF, group_norm

__all__ = ["ADM", "DDPMpp"]


class Style(NamedTuple):
    """Choices of a family of U-Nets.

    Attributes:
      scaled: If True, c scales and shifts what the second norm returns. If
        False, c shifts what that norm reads.
      projected: If True, the skip of a block that resamples has a 1 × 1
        convolution. If False, it has one only where the number of channels
        changes.
      factor: Factor of a sum of two branches.
      last_only: If True, only the last block of a resolution has attention on
        the way up. If False, all of its blocks have.
    """

    scaled: bool
    projected: bool
    factor: float
    last_only: bool


class ResamplingBlock(nn.Module):
    """Residual block that may resample, then attention.

        h ← f (skip(R h) + conv₂ dropout(SiLU(norm(conv₁ R SiLU(GN(h)), c))))
        h ← f (h + attention(GN(h)))

    R halves or doubles the sides, and f is the factor. Both branches are 0 at
    initialisation. Dropout comes before the last linear map, so that the mean
    over its masks is the block without dropout.

    Args:
      channels: Number of channels of the output.
      style: Of the family.
      change: Of the sides, as in `pyramid.resample`.
      heads: Number of attention heads. 0 for no attention.
      dropout: Probability of a feature to be dropped.
      dtype: Of the computation.
      attention: See `attention`, `implementation`.
    """

    channels: int
    style: Style
    change: str = "same"
    heads: int = 0
    dropout: float = 0.0
    dtype: Any = None
    attention: str = "auto"

    @nn.compact
    def __call__(self, h: Array, c: Array, train: bool = False) -> Array:
        """Map h (H, W, C), modulated by c (dim,), to (H', W', channels)."""
        conv = functools.partial(nn.Conv, self.channels, (3, 3), dtype=self.dtype)
        branch = group_norm(h.shape[-1], self.dtype, silu=True)(h)
        branch = conv()(resample(branch, self.change))  # (H', W', channels)
        branch = self._norm(branch, c)
        branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
        branch = conv(kernel_init=nn.initializers.zeros)(branch)
        skip = resample(h, self.change)
        projected = self.style.projected and self.change != "same"
        if projected or h.shape[-1] != self.channels:
            skip = Dense(self.channels, dtype=self.dtype)(skip)
        h = residual_sum(skip, branch, self.style.factor)
        return self._attend(h) if self.heads else h

    def _norm(self, branch: Array, c: Array) -> Array:
        """The second norm, with the modulation by c, and SiLU."""
        norm = group_norm(self.channels, self.dtype, silu=True)
        if self.style.scaled:
            shift, scale = Modulation(2, self.channels, self.dtype)(c)
            return norm(branch, shift, scale)
        return norm(branch + Dense(self.channels, dtype=self.dtype)(c))

    def _attend(self, h: Array) -> Array:
        tokens = group_norm(self.channels, self.dtype)(h).reshape(-1, self.channels)
        branch = Attention(
            self.heads,
            zero_output=True,
            dtype=self.dtype,
            implementation=self.attention,
        )(tokens)  # (H' W', channels)
        return residual_sum(h, branch.reshape(h.shape), self.style.factor)


class DDPMpp(OneProgram, nn.Module):
    """DDPM++ U-Net F(x, t, condition), exactly 0 at initialisation.

    The network of Song et al. 2021, appendix H, in the form and with the sizes
    of Karras et al. 2022, appendices F.3 and F.4, for CIFAR-10. Blocks that
    resample stand between the resolutions. Attention has one head. Sums of two
    branches are divided by √2. `pyramid.pyramid` has the order of the blocks.

    Here q, k and v have no bias, see `Attention`. A condition is added to the
    embedding of the time after the dense layers. Karras et al. add it before
    them. The network is of one example. Batch it with `jax.vmap`.

    Args:
      width: Number of channels before the multipliers.
      multipliers: Factor of the channels at each resolution, from the full one
        down.
      blocks: Number of residual blocks per resolution.
      attention_resolutions: Numbers l of the resolutions, of sides H/2^l, with
        attention.
      head_channels: Channels of an attention head. None for one head.
      dropout: Probability of a feature to be dropped before a block's second
        convolution.
      num_classes: Number of classes of the condition, see
        `ConditionEmbedding`. None for no class.
      condition_dim: Entries of a condition that is a vector. None for no
        vector.
      input_frequencies: Number of Fourier features of x, see `fourier_inputs`.
      time_frequencies: See `TimeEmbedding`, `frequencies`.
      time_features: See `TimeEmbedding`, `features`.
      dtype: Of the computation. None for float32, or x's dtype if wider.
        Parameters, embeddings and the last layer stay float32 at least.
      attention: See `attention`, `implementation`.
      remat: What the backward pass computes again to save memory, see
        `rematerialised`. True is "blocks", False is "none".

    Raises:
      ValueError: If a field is out of range. The message has its name.
      TypeError: If a field has the wrong type.

    Example:
      >>> net = dj.networks.DDPMpp(width=4, multipliers=(1,), blocks=1,
      ...                          attention_resolutions=())
      >>> params = net.init(key, jnp.zeros((4, 4, 1)), 0.5)
    """

    width: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention_resolutions: tuple[int, ...] = (1,)
    head_channels: int | None = None
    dropout: float = 0.13
    num_classes: int | None = None
    condition_dim: int | None = None
    input_frequencies: int = 0
    time_frequencies: tuple[float, float] = TIME_FREQUENCIES
    time_features: Callable[[Array], Array] | None = None
    dtype: Any = None
    attention: str = "auto"
    remat: bool | str = "none"

    style: ClassVar[Style] = Style(
        scaled=False, projected=True, factor=HALF, last_only=True
    )

    def __post_init__(self):
        fields.check_network(self)
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
        c = Conditioning.of(self, 4 * self.width, x.dtype)(t, condition)  # (4 width,)
        h = nn.Conv(self.width, (3, 3), dtype=dtype)(
            fourier_inputs(x, self.input_frequencies)
        )  # (H, W, width)
        h = self._resolutions(h, functools.partial(self._block, c, train, dtype))
        h = group_norm(h.shape[-1], dtype, silu=True)(h)
        zeros = nn.initializers.zeros
        last = nn.Conv(x.shape[2], (3, 3), kernel_init=zeros, dtype=x.dtype)
        return last(h).reshape(shape)

    def _resolutions(self, h: Array, block: Callable[..., Array]) -> Array:
        """The walk of h (H, W, width) through all resolutions."""
        return pyramid(
            h,
            [self.width * multiplier for multiplier in self.multipliers],
            blocks=self.blocks,
            attention_resolutions=self.attention_resolutions,
            last_only=self.style.last_only,
            encode=block,
            decode=block,
            join=lambda h, skip: jnp.concatenate([h, skip], axis=-1),
        )

    def _block(
        self,
        c: Array,
        train: bool,
        dtype: Any,
        h: Array,
        channels: int,
        change: str,
        attend: bool,
    ) -> Array:
        heads = channels // (self.head_channels or channels)
        block = rematerialised(ResamplingBlock, self.remat)
        return block(
            channels,
            self.style,
            change,
            heads if attend else 0,
            self.dropout,
            dtype,
            self.attention,
        )(h, c, train)


class ADM(DDPMpp):
    """ADM U-Net F(x, t, condition), exactly 0 at initialisation.

    The network of Dhariwal & Nichol 2021, section 3, with their sizes for
    ImageNet at 64 × 64. It differs from `DDPMpp`, whose fields it has: heads
    of 64 channels, attention at three resolutions and in all of their blocks,
    scale and shift by c after a block's second norm, no convolution in the
    skip of a block that resamples, and sums that are not divided.

    Theirs has biases of q, k and v, and 192 features of the time. Ours has no
    such biases and 128 features.

    Example:
      >>> net = dj.networks.ADM(width=4, multipliers=(1,), blocks=1,
      ...                       attention_resolutions=(), head_channels=4)
      >>> params = net.init(key, jnp.zeros((4, 4, 1)), 0.5)
    """

    width: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_resolutions: tuple[int, ...] = (1, 2, 3)
    head_channels: int | None = 64
    dropout: float = 0.1

    style: ClassVar[Style] = Style(
        scaled=True, projected=False, factor=1.0, last_only=False
    )
