"""A U-Net of residual blocks and attention, in the manner of DDPM++."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike, Scalar
from . import fields
from .embeddings import TIME_FREQUENCIES, Conditioning, OneProgram, fourier_inputs
from .layers import Attention, Modulation, as_image
from .norms import GroupNorm
from .products import Dense
from .pyramid import downsample, sides, upsample
from .remat import rematerialised
from .stored import residual_sum

__all__ = ["UNet"]

HALF = 0.5**0.5
"""Factor of a sum of two branches, which keeps the variance of independent ones."""


def group_norm(
    channels: int, dtype: Any, affine: bool = True, silu: bool = False
) -> GroupNorm:
    """Group norm of one image (H, W, channels).

    It has `groups_of(channels)` groups.

    Args:
      channels: Number of channels.
      dtype: Of the computation.
      affine: Whether it has a bias and a scale.
      silu: Whether SiLU follows.

    Returns:
      The module.
    """
    return GroupNorm(
        num_groups=groups_of(channels),
        use_bias=affine,
        use_scale=affine,
        silu=silu,
        dtype=dtype,
    )


def groups_of(channels: int) -> int:
    """The most equal groups, up to 32, of at least 4 channels each."""
    most = max(1, min(32, channels // 4))
    return next(g for g in range(most, 0, -1) if channels % g == 0)


class ResidualBlock(nn.Module):
    """Residual block of DDPM++ (Song et al. 2021, appendix H.2).

        (skip(h) + conv₂ dropout(SiLU(modulate(GN(conv₁ SiLU(GN(h))), c))))/√2

    It is skip(h)/√2 at initialisation. skip is a 1 × 1 convolution where the
    number of channels changes. Scale and shift by c are those of Dhariwal &
    Nichol 2021, section 3. Dropout comes before the last linear map, so that the
    mean over its masks is the block without dropout.

    Args:
      channels: Number of channels of the output.
      dropout: Probability of a feature to be dropped.
      dtype: Of the computation.
    """

    channels: int
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array, c: Array, train: bool = False) -> Array:
        """Map h (H, W, C), modulated by c (dim,), to (H, W, channels)."""
        branch = group_norm(h.shape[-1], self.dtype, silu=True)(h)
        branch = nn.Conv(self.channels, (3, 3), dtype=self.dtype)(branch)
        shift, scale = Modulation(2, self.channels, self.dtype)(c)
        norm = group_norm(self.channels, self.dtype, affine=False, silu=True)
        branch = norm(branch, shift, scale)
        branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
        branch = nn.Conv(
            self.channels, (3, 3), kernel_init=nn.initializers.zeros, dtype=self.dtype
        )(branch)
        if h.shape[-1] != self.channels:
            h = Dense(self.channels, dtype=self.dtype)(h)
        return residual_sum(h, branch, HALF)


class AttentionBlock(nn.Module):
    """(h + attention(GN(h)))/√2 over all pixels, h/√2 at initialisation.

    Args:
      heads: Number of heads.
      dtype: Of the computation.
      attention: See `attention`, `implementation`.
    """

    heads: int
    dtype: Any = None
    attention: str = "auto"

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map h (H, W, C) to (H, W, C)."""
        channels = h.shape[-1]
        tokens = group_norm(channels, self.dtype)(h).reshape(-1, channels)  # (H W, C)
        branch = Attention(
            self.heads,
            zero_output=True,
            dtype=self.dtype,
            implementation=self.attention,
        )(tokens)
        return residual_sum(h, branch.reshape(h.shape), HALF)


class UNet(OneProgram, nn.Module):
    """U-Net F(x, t, condition), exactly 0 at initialisation.

    Resolution l has sides H/2^l and W/2^l and width · multipliers[l] channels.
    It has `blocks` residual blocks on the way down, and blocks + 1 on the way
    up, each of which reads one activation of the way down. Attention stands in
    the middle, and after each block of `attention_resolutions`. The network is
    of one example. Batch it with `jax.vmap`.

    Args:
      width: Number of channels before the multipliers.
      multipliers: Factor of the channels at each resolution, from the full one
        down.
      blocks: Number of residual blocks per resolution.
      attention_resolutions: Numbers l of the resolutions with attention.
      heads: Number of attention heads. It divides the channels wherever
        attention stands.
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

    References:
      Ho et al. 2020, appendix B. DDPM++ of Song et al. 2021, appendix H, where
      resampling has blocks of its own. Here it stands between blocks (mean,
      nearest), because such blocks are slow at small sizes on CPU.

    Example:
      >>> net = dj.networks.UNet(width=4, multipliers=(1,), blocks=1, heads=1,
      ...                        attention_resolutions=())
      >>> params = net.init(key, jnp.zeros((4, 4, 1)), 0.5)
    """

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 2
    attention_resolutions: tuple[int, ...] = (1,)
    heads: int = 4
    dropout: float = 0.0
    num_classes: int | None = None
    condition_dim: int | None = None
    input_frequencies: int = 0
    time_frequencies: tuple[float, float] = TIME_FREQUENCIES
    time_features: Callable[[Array], Array] | None = None
    dtype: Any = None
    attention: str = "auto"
    remat: bool | str = "none"

    def __post_init__(self):
        sizes = {"blocks": (checks.depth, 1), "heads": (checks.width, 1)}
        many = (checks.integer_tuple, 1, checks.LARGEST_WIDTH, 1)
        fields.check_network(self, **sizes, multipliers=many)
        fields.check_attention(self)
        last = len(self.multipliers) - 1
        checks.attributes(self, attention_resolutions=(checks.integer_tuple, 0, last))
        # The middle, with attention, has the last resolution's channels.
        for resolution in {*self.attention_resolutions, last}:
            name = f"width * multipliers[{resolution}]"
            channels = self.width * self.multipliers[resolution]
            checks.divides("heads", self.heads, name, channels)
        # Tuples, because fields must be hashable.
        self.multipliers = tuple(self.multipliers)
        self.attention_resolutions = tuple(self.attention_resolutions)
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
        h, skips = self._descend(h, c, train, dtype)
        h = self._residual(h.shape[-1], dtype)(h, c, train)
        h = self._attend(dtype)(h)
        h = self._residual(h.shape[-1], dtype)(h, c, train)
        h = self._ascend(h, skips, c, train, dtype)
        h = group_norm(h.shape[-1], dtype, silu=True)(h)
        return nn.Conv(
            x.shape[2], (3, 3), kernel_init=nn.initializers.zeros, dtype=x.dtype
        )(h).reshape(shape)

    def _descend(
        self, h: Array, c: Array, train: bool, dtype: Any
    ) -> tuple[Array, list[Array]]:
        """The last activation, and those for the way up, blocks + 1 per resolution."""
        skips = [h]
        for resolution, multiplier in enumerate(self.multipliers):
            if resolution > 0:
                h = downsample(h)
                skips.append(h)
            for _ in range(self.blocks):
                h = self._block(resolution, multiplier, h, c, train, dtype)
                skips.append(h)
        return h, skips

    def _ascend(
        self, h: Array, skips: list[Array], c: Array, train: bool, dtype: Any
    ) -> Array:
        """The way up, which reads the skips from the last to the first."""
        for resolution, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(resolution, multiplier, h, c, train, dtype)
            if resolution > 0:
                h = upsample(h)
        return h

    def _block(
        self,
        resolution: int,
        multiplier: int,
        h: Array,
        c: Array,
        train: bool,
        dtype: Any,
    ) -> Array:
        h = self._residual(multiplier * self.width, dtype)(h, c, train)
        if resolution in self.attention_resolutions:
            h = self._attend(dtype)(h)
        return h

    def _residual(self, channels: int, dtype: Any) -> nn.Module:
        block = rematerialised(ResidualBlock, self.remat)
        return block(channels, self.dropout, dtype)

    def _attend(self, dtype: Any) -> nn.Module:
        block = rematerialised(AttentionBlock, self.remat)
        return block(self.heads, dtype, self.attention)
