"""The networks NCSN++, DDPM++ and DDPM of Song et al. 2021, of one example.

Names of submodules are those of the authors' Flax code, github.com/yang-song/score_sde,
so that its checkpoints fit. Flax numbers the layers of a class in the order in which
a network calls them.
"""

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ...networks import GroupNorm, attention
from ...types import Array, Scalar
from ..diffusers.fir import filtered, smoothly_doubled, smoothly_halved
from ..diffusers.layers import (
    FourierTimes,
    convolution,
    doubled,
    halved,
    sinusoids,
    timestep_array,
)

__all__ = ["ACTIVATIONS", "NCSNpp"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "swish": nn.silu,
    "elu": nn.elu,
    "relu": nn.relu,
    "lrelu": functools.partial(nn.leaky_relu, negative_slope=0.2),
}
"""By their names in configurations."""

GROUPS = 32
"""Groups of channels in DDPM's norms, and the most in those of the others."""


def numbered() -> Callable[[str], str]:
    """A function from the name of a class to that of its next layer, "Conv_0" …"""
    counts = collections.defaultdict(itertools.count)
    return lambda kind: f"{kind}_{next(counts[kind])}"


def normed(h: Array, name: str, act: str | None, groups: int | None) -> Array:
    """Group norm of an image, then an activation.

    Args:
      h: (H, W, C).
      name: Name of the norm.
      act: Name of the activation. None for none.
      groups: Number of groups of channels. None for C/4, at most 32.

    Returns:
      (H, W, C).
    """
    if groups is None:
        groups = min(h.shape[-1] // 4, GROUPS)
    swish = act == "swish"
    h = GroupNorm(num_groups=groups, silu=swish, dtype=h.dtype, name=name)(h)
    return h if swish or act is None else ACTIVATIONS[act](h)


class NIN(nn.Module):
    """A linear map of the channels.

    Args:
      features: Number of output channels.
    """

    features: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (…, C) to (…, features)."""
        shape = (h.shape[-1], self.features)
        weight = self.param("W", nn.initializers.lecun_normal(), shape)
        bias = self.param("b", nn.initializers.zeros, (self.features,))
        return h @ weight.astype(h.dtype) + bias.astype(h.dtype)


class SmoothConvolution(nn.Module):
    """A 3 × 3 convolution that doubles or halves the sides of a filtered image.

    Args:
      channels: Number of output channels.
      taps: The filter along one axis.
      up: Whether it doubles them.

    References:
      Karras et al. 2020 (StyleGAN 2), appendix B.
    """

    channels: int
    taps: tuple[float, ...]
    up: bool

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (H, W, C) to (2 H, 2 W, channels) or (H / 2, W / 2, channels)."""
        shape = (3, 3, h.shape[-1], self.channels)
        weight = self.param("weight", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        convolve = functools.partial(
            jax.lax.conv_general_dilated,
            rhs=weight.astype(h.dtype),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        size = len(self.taps)
        if self.up:
            # The filter of sum 4 comes after the convolution.
            h = convolve(
                h[None],
                window_strides=(1, 1),
                padding=[(2, 2)] * 2,
                lhs_dilation=(2, 2),
            )[0]  # (2 H + 1, 2 W + 1, channels)
            extra = size - 4
            h = 4 * filtered(h, self.taps, ((extra + 1) // 2 + 1, extra // 2 + 1))
        else:
            h = filtered(h, self.taps, ((size + 1) // 2, size // 2))
            h = convolve(h[None], window_strides=(2, 2), padding="VALID")[0]
        return h + bias.astype(h.dtype)


class Resampled(nn.Module):
    """Twice or half the sides of an image.

    Args:
      channels: Number of output channels, if there is a convolution.
      up: Whether the sides are doubled.
      convolved: Whether there is a 3 × 3 convolution.
      taps: The filter along one axis. None for none.
    """

    channels: int
    up: bool
    convolved: bool
    taps: tuple[float, ...] | None

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (H, W, C) to (2 H, 2 W, C') or (H / 2, W / 2, C')."""
        if not self.convolved:
            return resampled(h, self.up, self.taps)
        if self.taps is not None:
            layer = SmoothConvolution(
                self.channels, self.taps, self.up, name="Conv2d_0"
            )
            return layer(h)
        convolve = functools.partial(convolution, self.channels, "Conv_0", h.dtype)
        if self.up:
            return convolve()(doubled(h))
        return convolve(strides=(2, 2), padding="SAME")(h)


def resampled(h: Array, up: bool, taps: tuple[float, ...] | None) -> Array:
    """Twice or half the sides of an image, without parameters.

    Args:
      h: (H, W, C).
      up: Whether the sides are doubled.
      taps: The filter along one axis. None for repeated pixels and for means.

    Returns:
      (2 H, 2 W, C) or (H / 2, W / 2, C).
    """
    if taps is None:
        return doubled(h) if up else halved(h)
    return smoothly_doubled(h, taps) if up else smoothly_halved(h, taps)


class Residual(nn.Module):
    """Residual block, skip(R h) + conv₁(act(norm₁(conv₀(R act(norm₀(h))) + e))).

    e is a linear map of the embedding of the noise level. R may resample.

    Args:
      channels: Number of output channels.
      act: Name of the activation.
      rescale: Whether the sum is divided by √2.
      groups: Groups of the norms. None for C/4, at most 32.
      project: "NIN" or "Conv", the class of the linear map on the skip.
      up: True: R doubles the sides. False: R halves them. None: there is no R.
      taps: The filter of R along one axis. None for none.
    """

    channels: int
    act: str
    rescale: bool
    groups: int | None
    project: str
    up: bool | None = None
    taps: tuple[float, ...] | None = None

    @nn.compact
    def __call__(self, h: Array, embedding: Array | None) -> Array:
        """Map h (H, W, C) with an embedding (dim,) or None to (H', W', channels)."""
        dtype, change = h.dtype, h.shape[-1] != self.channels
        branch = normed(h, "GroupNorm_0", self.act, self.groups)
        if self.up is not None:
            branch = resampled(branch, self.up, self.taps)
            h = resampled(h, self.up, self.taps)
        branch = convolution(self.channels, "Conv_0", dtype)(branch)
        if embedding is not None:
            dense = nn.Dense(self.channels, dtype=dtype, name="Dense_0")
            branch = branch + dense(ACTIVATIONS[self.act](embedding))
        branch = normed(branch, "GroupNorm_1", self.act, self.groups)
        branch = convolution(self.channels, "Conv_1", dtype)(branch)
        if self.project == "NIN" and change:
            h = NIN(self.channels, name="NIN_0")(h)
        if self.project == "Conv" and (change or self.up is not None):
            h = convolution(self.channels, "Conv_2", dtype, side=1)(h)
        return summed(h, branch, self.rescale)


class Attention(nn.Module):
    """Attention of one head over all pixels, h + attention(norm(h)).

    Args:
      rescale: Whether the sum is divided by √2.
      groups: Groups of the norm. None for C/4, at most 32.
    """

    rescale: bool
    groups: int | None

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Map (H, W, C) to (H, W, C)."""
        channels = h.shape[-1]
        tokens = normed(h, "GroupNorm_0", None, self.groups).reshape(-1, 1, channels)
        # (H W, 1, C)
        q, k, v = (NIN(channels, name=f"NIN_{i}")(tokens) for i in range(3))
        out = NIN(channels, name="NIN_3")(attention(q, k, v))
        return summed(h, out.reshape(h.shape), self.rescale)


class Combined(nn.Module):
    """A 1 × 1 convolution of an image, added to features or beside them.

    Args:
      method: "sum" or "cat".
    """

    method: str

    @nn.compact
    def __call__(self, image: Array, h: Array) -> Array:
        """Map an image (H, W, C') and h (H, W, C) to (H, W, C) or (H, W, 2 C)."""
        image = convolution(h.shape[-1], "Conv_0", h.dtype, side=1)(image)
        return image + h if self.method == "sum" else jnp.concatenate([image, h], -1)


def summed(h: Array, branch: Array, rescale: bool) -> Array:
    """h + branch, divided by √2 if `rescale`.

    Args:
      h: An array.
      branch: One of its shape.
      rescale: Whether the sum has the variance of its terms.

    Returns:
      The sum.
    """
    return (h + branch) / np.sqrt(2).item() if rescale else h + branch


class NCSNpp(nn.Module):
    """NCSN++, DDPM++ or DDPM (Song et al. 2021, appendix H).

    Args:
      features: Channels of the first convolution.
      multipliers: Channels of each resolution, in units of `features`.
      blocks: Residual blocks per resolution.
      attention_at: Heights of images at which there is attention.
      act: Name of the activation.
      centered: Whether images are in [−1, 1]. Otherwise they are in [0, 1].
      conditional: Whether blocks take the noise level.
      resample_convolved: Whether resampling between resolutions has a 3 × 3
        convolution. Ignored for "biggan" blocks.
      taps: The filter of resampling along one axis. None for none.
      rescale: Whether sums of two branches are divided by √2.
      block: Class of the residual blocks, "ddpm" or "biggan". The second resamples.
      output_pyramid: "none", "output_skip" or "residual".
      input_pyramid: "none", "input_skip" or "residual".
      combine: How a pyramid of images enters, "sum" or "cat".
      fourier: Whether the noise level is embedded by random Fourier features of
        its logarithm, rather than by sinusoids.
      fourier_scale: Standard deviation of the frequencies of these features.
      divide_by: By what the output is divided: "none", "level" for the noise level
        of the label, or "label" for the label itself.
      sigmas: Noise levels by label, for "level".
      original: Whether the network is DDPM, whose layers have other names.
    """

    features: int
    multipliers: tuple[int, ...]
    blocks: int
    attention_at: tuple[int, ...]
    act: str = "swish"
    centered: bool = False
    conditional: bool = True
    resample_convolved: bool = True
    taps: tuple[float, ...] | None = None
    rescale: bool = False
    block: str = "ddpm"
    output_pyramid: str = "none"
    input_pyramid: str = "none"
    combine: str = "sum"
    fourier: bool = False
    fourier_scale: float = 16.0
    divide_by: str = "none"
    sigmas: tuple[float, ...] = ()
    original: bool = False

    @nn.compact
    def __call__(self, x: Array, label: Scalar) -> Array:
        """Evaluate the network at one example.

        Args:
          x: (H, W, C).
          label: The label of its noise level, ().

        Returns:
          (H, W, C), in x's dtype.
        """
        name = numbered()
        label = timestep_array(label, x.dtype)
        embedding = self._embedding(label, x.dtype, name)
        image = x if self.centered else 2 * x - 1
        skips = self._down(image, embedding, name)
        h = self._residual(skips[-1], embedding, name)
        h = self._attention(h, name)
        h = self._residual(h, embedding, name)
        h = self._up(
            h, skips, embedding=embedding, name=name, image_channels=x.shape[-1]
        )
        return self._divided(h, label)

    @property
    def _groups(self):
        """Groups of all norms, or None."""
        return GROUPS if self.original else None

    def _embedding(self, label, dtype, name):
        if self.fourier:
            layer = FourierTimes(
                self.features,
                self.fourier_scale,
                parameter="W",
                name=name("GaussianFourierProjection"),
            )
            h = layer(label)
        else:
            h = sinusoids(label, self.features, cosine_first=False, shift=1)
        if not self.conditional:
            return None
        h = h.astype(dtype)
        for act in (lambda h: h, ACTIVATIONS[self.act]):
            h = nn.Dense(4 * self.features, dtype=dtype, name=name("Dense"))(act(h))
        return h

    def _divided(self, h, label):
        """The output of a network whose last layer returns h."""
        if self.divide_by == "none":
            return h
        level = label
        if self.divide_by == "level":
            level = jnp.asarray(self.sigmas, label.dtype)[label.astype(jnp.int32)]
        return (h.astype(label.dtype) / level).astype(h.dtype)

    def _down(self, image, embedding, name):
        """The inputs of the skips, from the image down."""
        pyramid = image
        skips = [convolution(self.features, name("Conv"), image.dtype)(image)]
        for level, multiplier in enumerate(self.multipliers):
            for _ in range(self.blocks):
                channels = self.features * multiplier
                h = self._residual(skips[-1], embedding, name, channels)
                skips.append(self._attention_here(h, name))
            if level < len(self.multipliers) - 1:
                h = self._resampled(skips[-1], embedding, name, up=False)
                h, pyramid = self._with_input(h, pyramid, name)
                skips.append(h)
        return skips

    def _with_input(self, h, pyramid, name):
        """Features with the halved pyramid of images, and that pyramid."""
        if self.input_pyramid == "none":
            return h, pyramid
        residual = self.input_pyramid == "residual"
        resize = Resampled(
            h.shape[-1], False, residual, self.taps, name=name("Downsample")
        )
        pyramid = resize(pyramid)
        if residual:
            h = summed(pyramid, h, self.rescale)
            return h, h
        return Combined(self.combine, name=name("Combine"))(pyramid, h), pyramid

    def _up(self, h, skips, *, embedding, name, image_channels):
        """The output before its division."""
        pyramid: Any = None
        skips = list(skips)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], -1)
                h = self._residual(h, embedding, name, self.features * multiplier)
            h = self._attention_here(h, name)
            if self.output_pyramid != "none":
                h, pyramid = self._with_output(h, pyramid, name, image_channels)
            if level:
                h = self._resampled(h, embedding, name, up=True)
        if self.output_pyramid == "output_skip":
            return pyramid
        return self._head(h, name, image_channels)

    def _with_output(self, h, pyramid, name, image_channels):
        """Features and the doubled pyramid of outputs, with what they add to it."""
        residual = self.output_pyramid == "residual"
        channels = h.shape[-1] if residual else image_channels
        if pyramid is None:
            return h, self._head(h, name, channels)
        resize = Resampled(channels, True, residual, self.taps, name=name("Upsample"))
        pyramid = resize(pyramid)
        if residual:
            h = summed(pyramid, h, self.rescale)
            return h, h
        return h, pyramid + self._head(h, name, channels)

    def _head(self, h, name, channels):
        h = normed(h, name("GroupNorm"), self.act, self._groups)
        return convolution(channels, name("Conv"), h.dtype)(h)

    def _residual(self, h, embedding, name, channels=None, up=None):
        biggan = self.block == "biggan"
        kind = "ResnetBlock" + ("BigGAN" if biggan else "DDPM")
        layer = Residual(
            channels=channels or h.shape[-1],
            act=self.act,
            rescale=self.rescale,
            groups=self._groups,
            project="Conv" if biggan else "NIN",
            up=up,
            taps=self.taps,
            name=name(kind + ("" if self.original else "pp")),
        )
        return layer(h, embedding)

    def _resampled(self, h, embedding, name, up):
        if self.block == "biggan":
            return self._residual(h, embedding, name, up=up)
        kind = name("Upsample" if up else "Downsample")
        return Resampled(
            h.shape[-1], up, self.resample_convolved, self.taps, name=kind
        )(h)

    def _attention(self, h, name):
        kind = name("AttnBlock" + ("" if self.original else "pp"))
        return Attention(self.rescale, self._groups, name=kind)(h)

    def _attention_here(self, h, name):
        """Attention if this is one of its resolutions."""
        return self._attention(h, name) if h.shape[0] in self.attention_at else h
