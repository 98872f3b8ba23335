"""Layers that the networks of diffusers share, of one example, channels last.

Names of submodules are those of the torch modules, so that weights fit.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ... import checks
from ...networks import GroupNorm, attention
from ...networks.pyramid import downsample
from ...networks.pyramid import upsample as doubled
from ...types import Array, Scalar

__all__ = [
    "ACTIVATIONS",
    "Downsample2D",
    "FourierTimes",
    "ResnetBlock2D",
    "SelfAttention",
    "Table",
    "TimestepEmbedding",
    "Upsample2D",
    "convolution",
    "doubled",
    "group_norm",
    "gelu",
    "halved",
    "multi_head",
    "sinusoids",
    "timestep_array",
]


def mish(h: Array) -> Array:
    """h tanh(softplus(h)) (Misra 2019)."""
    return h * jnp.tanh(nn.softplus(h))


def gelu(h: Array) -> Array:
    """h Φ(h), without approximation."""
    return nn.gelu(h, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "mish": mish,
    "gelu": gelu,
    "relu": nn.relu,
}
"""By their names in configurations."""


def group_norm(
    groups: int, epsilon: float, name: str, dtype: Any, *, act: str | None = None
) -> Callable[..., Array]:
    """Group norm of one image, or of tokens, and an activation.

    Args:
      groups: Number of groups of channels.
      epsilon: Added to the variances.
      name: The module's name.
      dtype: The dtype of the computation.
      act: Name of the activation. None for no activation.

    Returns:
      A function of (..., C), and of shift and scale (C,) if there are any.
    """
    # SiLU in the pass of the norm.
    silu = act in ("silu", "swish")
    norm = GroupNorm(groups, epsilon, silu=silu, dtype=dtype, name=name)
    if act is None or silu:
        return norm
    return lambda h, *modulation: ACTIVATIONS[act](norm(h, *modulation))


def convolution(
    channels: int, name: str, dtype: Any, *, side: int = 3, **settings: Any
) -> nn.Module:
    """Convolution with a square kernel of odd side, which keeps the image's sides.

    Args:
      channels: Number of output channels.
      name: The module's name.
      dtype: The dtype of the computation.
      side: Side of the kernel in pixels.
      **settings: Other fields of `flax.linen.Conv`.

    Returns:
      The module.
    """
    settings = {"padding": [(side // 2, side // 2)] * 2} | settings
    return nn.Conv(channels, (side, side), dtype=dtype, name=name, **settings)


def halved(h: Array) -> Array:
    """Means of 2 × 2 pixels of (H, W, C), (H // 2, W // 2, C).

    The last row or column of an odd side is left out.
    """
    return downsample(h[: h.shape[0] // 2 * 2, : h.shape[1] // 2 * 2])


class Downsample2D(nn.Module):
    """A 3 × 3 convolution of stride 2.

    Args:
      channels: Number of output channels.
      padding: Zeros on each side. 0 stands for one row below and one column on
        the right.
    """

    channels: int
    padding: int = 1

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (H, W, C) to half the sides, (H', W', channels)."""
        side = (self.padding, self.padding) if self.padding else (0, 1)
        return convolution(
            self.channels, "conv", h.dtype, strides=(2, 2), padding=[side, side]
        )(h)


class Upsample2D(nn.Module):
    """Each pixel four times, then a 3 × 3 convolution.

    Args:
      channels: Number of output channels.
    """

    channels: int

    @nn.compact
    def __call__(self, h: Array, shape: tuple[int, int] | None = None) -> Array:
        """Map (H, W, C) to twice the sides, (2 H, 2 W, channels).

        Args:
          h: (H, W, C).
          shape: Height and width of the output, where the way down had odd
            sides. Nearest pixels are repeated. None for twice the sides.

        Returns:
          (2 H, 2 W, channels), or of the height and width of `shape`.
        """
        double = (2 * h.shape[0], 2 * h.shape[1])
        if shape is None or tuple(shape) == double:
            h = doubled(h)
        else:
            rows, columns = (
                np.arange(new) * old // new
                for new, old in zip(shape, h.shape, strict=False)
            )
            h = h[rows][:, columns]
        return convolution(self.channels, "conv", h.dtype)(h)


class ResnetBlock2D(nn.Module):
    """Residual block of a U-Net or an autoencoder.

        (skip(R h) + conv₂(act(norm₂(conv₁(R act(norm₁(h))) + e))))/scale

    e is a linear map of the embedding of the time. R may resample.

    Args:
      channels: Number of output channels.
      groups: Groups of the first norm.
      epsilon: Added to the variances of the norms.
      act: Name of the activation.
      groups_out: Groups of the second norm. None for those of the first.
      modulation: "default" adds the projected embedding before the second norm.
        "scale_shift" scales and shifts the norm's output.
      activate_embedding: Whether the activation acts on the embedding.
      scale: Divisor of the sum of both branches.
      resample: A function of an image, applied on both branches. None to keep the
        sides.
      project: Whether the skip has a 1 × 1 convolution. None where the number
        of channels changes.
    """

    channels: int
    groups: int
    epsilon: float
    act: str
    groups_out: int | None = None
    modulation: str = "default"
    activate_embedding: bool = True
    scale: float = 1.0
    resample: Callable[[Array], Array] | None = None
    project: bool | None = None

    @nn.compact
    def __call__(self, h: Array, embedding: Array | None = None) -> Array:
        """Map h (H, W, C) with an embedding (dim,) or None to (H', W', channels)."""
        act, dtype = self.act, h.dtype
        resample = self.resample or (lambda image: image)
        branch = group_norm(self.groups, self.epsilon, "norm1", dtype, act=act)(h)
        branch = convolution(self.channels, "conv1", dtype)(resample(branch))
        groups = self.groups_out or self.groups
        norm = group_norm(groups, self.epsilon, "norm2", dtype, act=act)
        branch = self._modulated(branch, norm, embedding)
        branch = convolution(self.channels, "conv2", dtype)(branch)
        skip = resample(h)
        change = h.shape[-1] != self.channels
        if change if self.project is None else self.project:
            skip = convolution(self.channels, "conv_shortcut", dtype, side=1)(skip)
        return (skip + branch) / self.scale

    def _modulated(self, branch, norm, embedding):
        if embedding is None:
            return norm(branch)
        if self.activate_embedding:
            embedding = ACTIVATIONS[self.act](embedding)
        scaled = self.modulation == "scale_shift"
        features = self.channels * (2 if scaled else 1)
        vector = nn.Dense(features, dtype=branch.dtype, name="time_emb_proj")(embedding)
        if not scaled:
            return norm(branch + vector)
        factor, shift = jnp.split(vector, 2)
        return norm(branch, shift, factor)


def multi_head(
    tokens: Array,
    context: Array,
    *,
    heads: int,
    head_channels: int,
    bias: bool,
    prefix: str = "",
) -> Array:
    """Attention of tokens to a context, projected, in the scope of the caller.

    Args:
      tokens: (N, C).
      context: (M, K), or the tokens themselves.
      heads: Number of heads.
      head_channels: Channels of a head.
      bias: Whether queries, keys and values have one.
      prefix: Prefix of the dense layers' names, such as "attn1.".

    Returns:
      (N, C).
    """
    width = heads * head_channels
    q, k, v = (
        nn.Dense(width, use_bias=bias, dtype=tokens.dtype, name=f"{prefix}to_{name}")(
            source
        ).reshape(-1, heads, head_channels)
        for name, source in zip("qkv", (tokens, context, context), strict=True)
    )  # (N or M, heads, head channels)
    mixed = attention(q, k, v).reshape(-1, width)
    out = nn.Dense(tokens.shape[-1], dtype=tokens.dtype, name=f"{prefix}to_out.0")
    return out(mixed)


class SelfAttention(nn.Module):
    """Attention over all pixels, (h + attention(norm(h)))/scale.

    Args:
      heads: Number of heads.
      head_channels: Channels of a head.
      groups: Groups of the norm. None for no norm.
      epsilon: Added to the variances of the norm.
      scale: Divisor of the sum.
    """

    heads: int
    head_channels: int
    groups: int | None
    epsilon: float
    scale: float = 1.0

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (H, W, C) to (H, W, C)."""
        channels, dtype = h.shape[-1], h.dtype
        normed = h
        if self.groups is not None:
            normed = group_norm(self.groups, self.epsilon, "group_norm", dtype)(h)
        tokens = normed.reshape(-1, channels)  # (H W, C)
        out = multi_head(
            tokens,
            tokens,
            heads=self.heads,
            head_channels=self.head_channels,
            bias=True,
        )
        return (h + out.reshape(h.shape)) / self.scale


class Table(nn.Embed):
    """A table of embeddings by an index: a class, or a timestep.

    Raises:
      TypeError: If a concrete index is no integer.
      ValueError: If it is out of range. A traced one gives NaN there.
    """

    def __call__(self, index: Any) -> Array:
        """The row of an index ()."""
        last = self.num_embeddings - 1
        if not checks.is_traced(index):
            checks.integer(
                "the index of a class or timestep", np.asarray(index).item(), 0, last
            )
        # JAX counts negative indices from the end.
        index = jnp.asarray(index)
        return super().__call__(jnp.where(index < 0, last + 1, index))


def timestep_array(t: Any, dtype: Any) -> Array:
    """A timestep in float32 at least. In bfloat16 996 and 997 are the same.

    Args:
      t: The timestep, or any number that sinusoids are computed of.
      dtype: The dtype of the computation.

    Returns:
      The array.
    """
    return jnp.asarray(t, checks.promoted(dtype, jnp.float32))


def sinusoids(t: Scalar, features: int, *, cosine_first: bool, shift: float) -> Array:
    """Sinusoidal features of a timestep.

        [sin ω_i t, cos ω_i t],    ω_i = 10⁴^(−i/(n − shift)),    i = 0 … n − 1

    with n = features // 2. An odd number of features ends with a 0.

    Args:
      t: A timestep, (), in float32 at least, see `timestep_array`.
      features: Number of features.
      cosine_first: Whether the cosines come first.
      shift: 0 or 1. With 1 the lowest frequency is 10⁻⁴.

    Returns:
      (features,), in t's dtype.

    References:
      Vaswani et al. 2017, section 3.5.
    """
    t = jnp.asarray(t)
    t = t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.float32)
    half = features // 2
    # In float64 on the host, because t multiplies the rounding of a frequency.
    omega = np.exp(-np.log(1e4) * np.arange(half) / (half - shift))
    angles = t * omega.astype(t.dtype)
    parts = [jnp.sin(angles), jnp.cos(angles)]
    parts = parts[::-1] if cosine_first else parts
    return jnp.concatenate([*parts, jnp.zeros(features % 2, t.dtype)])


class FourierTimes(nn.Module):
    """Random Fourier features of log t, whose frequencies are stored with the weights.

        [sin 2π w_i log t, cos 2π w_i log t],    w_i ~ N(0, scale²)

    Args:
      count: Number of frequencies.
      scale: Their standard deviation.
      cosine_first: Whether the cosines come first.
      log: Whether the features are of log t, or of t.
      parameter: Name of the frequencies among the weights.

    References:
      Song et al. 2021, appendix C.1.
    """

    count: int
    scale: float = 16.0
    cosine_first: bool = False
    log: bool = True
    parameter: str = "weight"

    @nn.compact
    def __call__(self, t: Array) -> Array:
        """The features (2 count,) of a timestep ()."""
        normal = nn.initializers.normal(self.scale)
        stored = self.param(self.parameter, normal, (self.count,))
        frequencies = jax.lax.stop_gradient(stored).astype(t.dtype)
        angles = 2 * np.pi * (jnp.log(t) if self.log else t) * frequencies
        waves = [jnp.sin(angles), jnp.cos(angles)]
        return jnp.concatenate(waves[::-1] if self.cosine_first else waves)


class TimestepEmbedding(nn.Module):
    """Two dense layers on features of the timestep (Ho et al. 2020, appendix B).

    Args:
      features: Number of output features.
      act: Name of the activation between them.
      act_after: Name of an activation after them. None for no activation.
    """

    features: int
    act: str = "silu"
    act_after: str | None = None

    @nn.compact
    def __call__(self, times: Array, condition: Array | None = None) -> Array:
        """Embed features (K,), and add a condition (dim,) to them if there is one.

        Args:
          times: (K,).
          condition: (dim,), mapped to K features by a dense layer without bias.

        Returns:
          (features,).
        """
        dtype = times.dtype
        if condition is not None:
            project = nn.Dense(
                times.shape[-1], use_bias=False, dtype=dtype, name="cond_proj"
            )
            times = times + project(condition)
        hidden = nn.Dense(self.features, dtype=dtype, name="linear_1")(times)
        out = nn.Dense(self.features, dtype=dtype, name="linear_2")(
            ACTIVATIONS[self.act](hidden)
        )
        return ACTIVATIONS[self.act_after](out) if self.act_after else out
