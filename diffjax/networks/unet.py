"""A U-Net of residual blocks and attention, in the manner of DDPM++."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from .. import checks
from ..types import Array, ArrayLike, Scalar
from .embeddings import TIME_FREQUENCIES, Conditioning, OneProgram, fourier_inputs
from .layers import (
    Attention,
    Modulation,
    check_network_fields,
    divides,
    image,
    modulate,
)

HALF = 0.5**0.5
"""A sum of two branches is divided by √2, which keeps the variance of independent ones."""


def group_norm(channels: int, dtype: Any, affine: bool = True) -> nn.GroupNorm:
    """Group norm of one image (H, W, channels): as many equal groups as divide it, of 4 channels or more, up to 32."""
    groups = next(
        g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0
    )
    return nn.GroupNorm(
        num_groups=groups,
        reduction_axes=(0, 1, 2),
        epsilon=1e-6,
        use_bias=affine,
        use_scale=affine,
        dtype=dtype,
    )


def downsample(h: Array) -> Array:
    """The mean of each 2 × 2 block: (H, W, C) -> (H/2, W/2, C)."""
    height, width, channels = h.shape
    return h.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


def upsample(h: Array) -> Array:
    """Each pixel as a 2 × 2 block: (H, W, C) -> (2H, 2W, C)."""
    return jnp.repeat(jnp.repeat(h, 2, axis=0), 2, axis=1)


class ResidualBlock(nn.Module):
    """(skip(h) + conv₂ dropout(SiLU(modulate(GN(conv₁ SiLU(GN(h))), c))))/√2, skip(h)/√2 at first.

    h: (H, W, C). c: (dim,). Returns (H, W, channels); skip is a 1 × 1 convolution where C differs from channels.
    Dropout comes before the last linear map, so that the mean over its masks is the block without dropout.
    Song et al. 2021, appendix H.2; scale and shift by c: Dhariwal & Nichol 2021, section 3.
    """

    channels: int
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array, c: Array, train: bool = False) -> Array:
        branch = nn.silu(group_norm(h.shape[-1], self.dtype)(h))
        branch = nn.Conv(self.channels, (3, 3), dtype=self.dtype)(
            branch
        )  # (H, W, channels)
        shift, scale = Modulation(2, self.channels, self.dtype)(c)
        branch = nn.silu(
            modulate(
                group_norm(self.channels, self.dtype, affine=False)(branch),
                shift,
                scale,
            )
        )
        branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
        branch = nn.Conv(
            self.channels, (3, 3), kernel_init=nn.initializers.zeros, dtype=self.dtype
        )(branch)
        if h.shape[-1] != self.channels:
            h = nn.Dense(self.channels, dtype=self.dtype)(h)
        return (h + branch) * HALF


class AttentionBlock(nn.Module):
    """(h + attention(GN(h)))/√2 over all pixels, h/√2 at first. h: (H, W, C)."""

    heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array) -> Array:
        tokens = group_norm(h.shape[-1], self.dtype)(h).reshape(
            -1, h.shape[-1]
        )  # (H W, C)
        branch = Attention(self.heads, zero_output=True, dtype=self.dtype)(tokens)
        return (h + branch.reshape(h.shape)) * HALF


class UNet(OneProgram, nn.Module):
    """U-Net F(x, t, condition), of x's shape; exactly 0 at initialisation.

    Level l has sides H/2^l, W/2^l and width · multipliers[l] channels, and `blocks` residual blocks on the way down,
    blocks + 1 on the way up, each of which reads one activation of the way down. Attention stands in the middle, and
    after each block of the levels in attention_levels.

    x: one image (H, W, C) or (H, W), both sides multiples of 2^(levels − 1). t: ().
    condition: see `ConditionEmbedding`.
    train: whether dropout is on (then `apply` needs rngs={"dropout": key}).
    Returns x's shape, in float32 or x's dtype if wider. Batch with `jax.vmap`.

    width, multipliers, blocks: see above. heads: of the attention, a divisor of the channels wherever it stands.
    dropout: probability of a feature to be dropped before a block's second convolution.
    num_classes, condition_dim: kind of condition, see `ConditionEmbedding`; both None for none.
    input_frequencies: Fourier features of x, see `fourier_inputs`.
    time_frequencies, time_features: see `TimeEmbedding`.
    dtype: of the computation (parameters and the last layer stay float32 at least); None for float32 or x's if wider.
    Raises ValueError or TypeError for fields or arguments other than these, by name.
    Ho et al. 2020, appendix B; DDPM++ of Song et al. 2021, appendix H. Resampling (mean, nearest) stands between blocks
    instead of in blocks of its own, which would be slow at small sizes on CPU.
    """

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (1,)
    heads: int = 4
    dropout: float = 0.0
    num_classes: int | None = None
    condition_dim: int | None = None
    input_frequencies: int = 0
    time_frequencies: tuple[float, float] = TIME_FREQUENCIES
    time_features: Callable[[Array], Array] | None = None
    dtype: Any = None

    def __post_init__(self):
        check_network_fields(self)
        _check_levels(self)
        self.multipliers, self.attention_levels = (
            tuple(self.multipliers),
            tuple(self.attention_levels),
        )  # hashable
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        t: Scalar,
        condition: ArrayLike | None = None,
        train: bool = False,
    ) -> Array:
        shape = jnp.shape(x)
        x = image(x)  # (H, W, C)
        self._check_sides(x)
        dtype = self.dtype or x.dtype
        c = Conditioning(
            4 * self.width,
            self.num_classes,
            self.condition_dim,
            self.time_frequencies,
            self.time_features,
            dtype,
        )(t, condition)  # (4 width,)
        h = nn.Conv(self.width, (3, 3), dtype=dtype)(
            fourier_inputs(x, self.input_frequencies)
        )  # (H, W, width)
        h, skips = self._descend(h, c, train, dtype)
        h = ResidualBlock(h.shape[-1], self.dropout, dtype)(h, c, train)
        h = AttentionBlock(self.heads, dtype)(h)
        h = ResidualBlock(h.shape[-1], self.dropout, dtype)(h, c, train)
        h = self._ascend(h, skips, c, train, dtype)
        h = nn.silu(group_norm(h.shape[-1], dtype)(h))
        return nn.Conv(
            x.shape[2], (3, 3), kernel_init=nn.initializers.zeros, dtype=x.dtype
        )(h).reshape(shape)

    def _descend(
        self, h: Array, c: Array, train: bool, dtype: Any
    ) -> tuple[Array, list[Array]]:
        """The way down: the last activation, and all that the way up reads, blocks + 1 a level."""
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                h = downsample(h)
                skips.append(h)
            for _ in range(self.blocks):
                h = self._block(level, multiplier, h, c, train, dtype)
                skips.append(h)
        return h, skips

    def _ascend(
        self, h: Array, skips: list[Array], c: Array, train: bool, dtype: Any
    ) -> Array:
        """The way up, which reads the skips from the last to the first."""
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(level, multiplier, h, c, train, dtype)
            if level > 0:
                h = upsample(h)
        return h

    def _block(
        self, level: int, multiplier: int, h: Array, c: Array, train: bool, dtype: Any
    ) -> Array:
        h = ResidualBlock(multiplier * self.width, self.dropout, dtype)(h, c, train)
        return (
            AttentionBlock(self.heads, dtype)(h)
            if level in self.attention_levels
            else h
        )

    def _check_sides(self, x: Array) -> None:
        factor = 2 ** (len(self.multipliers) - 1)
        if x.shape[0] % factor or x.shape[1] % factor:
            raise ValueError(
                f"x must have sides H and W divisible by 2^(levels − 1) = {factor}, where levels = "
                f"{len(self.multipliers)} is the length of multipliers={self.multipliers}, got H={x.shape[0]}, "
                f"W={x.shape[1]}; pad the image or take fewer levels"
            )


def _check_levels(network: UNet) -> None:
    """Refuse wrong multipliers, attention levels, blocks or heads by name."""
    if not isinstance(network.multipliers, tuple | list) or not network.multipliers:
        raise TypeError(
            f"multipliers must be a tuple of one or more integers, got {network.multipliers!r}"
        )
    if not isinstance(network.attention_levels, tuple | list):
        raise TypeError(
            f"attention_levels must be a tuple of integers, got {network.attention_levels!r}"
        )
    for i, multiplier in enumerate(network.multipliers):
        checks.width(f"multipliers[{i}]", multiplier, 1)
    for i, level in enumerate(network.attention_levels):
        checks.integer(f"attention_levels[{i}]", level, 0, len(network.multipliers) - 1)
    checks.depth("blocks", network.blocks, 1)
    checks.width("heads", network.heads, 1)
    for level in {
        *network.attention_levels,
        len(network.multipliers) - 1,
    }:  # the middle has the last level's channels
        divides(
            "heads",
            network.heads,
            f"width * multipliers[{level}]",
            network.width * network.multipliers[level],
        )
