"""AutoencoderKL of diffusers: images to latents and back."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from ... import checks
from ...types import Array
from .. import options
from ..configured import Architecture, slots
from ..options import Rule
from .blocks import Stage
from .layers import (
    ACTIVATIONS,
    Downsample2D,
    ResnetBlock2D,
    SelfAttention,
    Upsample2D,
    convolution,
    group_norm,
)

__all__ = ["ARCHITECTURE", "AutoencoderKL"]

EPSILON = 1e-6
"""Added to the variances of all norms."""

LOG_VARIANCES = (-30.0, 20.0)
"""Bounds of the latents' log-variance."""


class Pyramid(nn.Module):
    """Blocks and last layers of an encoder or a decoder.

    Args:
      options: The checked options of the configuration.
    """

    options: Any

    def _residual(self, channels, name, inputs=None):
        o = self.options
        groups, act = o["norm_num_groups"], o["act_fn"]
        return ResnetBlock2D(channels, groups, EPSILON, act, name=name)

    def _attention(self, channels, name):
        groups = self.options["norm_num_groups"]
        return SelfAttention(1, channels, groups, EPSILON, name=name)

    def _stage(self, kind, prefix, channels, layers):
        """One resolution, of a block type `kind`."""
        return Stage(
            prefix,
            layers,
            functools.partial(self._residual, channels),
            functools.partial(self._attention, channels) if "Attn" in kind else None,
            None,
        )

    def _middle(self, h):
        width = h.shape[-1]
        h = self._residual(width, "mid_block.resnets.0")(h)
        if self.options["mid_block_add_attention"]:
            h = self._attention(width, "mid_block.attentions.0")(h)
        return self._residual(width, "mid_block.resnets.1")(h)

    def _last(self, h, channels):
        groups = self.options["norm_num_groups"]
        normed = group_norm(groups, EPSILON, "conv_norm_out", h.dtype)(h)
        return convolution(channels, "conv_out", h.dtype)(nn.silu(normed))


class Encoder(Pyramid):
    """The encoder of images, whose output has twice the latents' channels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map an image (H, W, C) to (h, w, 2 latent channels)."""
        o = self.options
        widths = o["block_out_channels"]
        h = convolution(widths[0], "conv_in", x.dtype)(x)
        for index, kind in enumerate(o["down_block_types"]):
            prefix, width = f"down_blocks.{index}", widths[index]
            stage = self._stage(kind, prefix, width, o["layers_per_block"])
            for layer in range(stage.layers):
                h = stage.layer(layer, h, None)
            if index < len(widths) - 1:
                h = Downsample2D(width, 0, name=f"{prefix}.downsamplers.0")(h)
        return self._last(self._middle(h), 2 * o["latent_channels"])


class Decoder(Pyramid):
    """The decoder of latents."""

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Map latents (h, w, latent channels) to an image (H, W, C)."""
        o = self.options
        widths = o["block_out_channels"][::-1]
        h = self._middle(convolution(widths[0], "conv_in", z.dtype)(z))
        for index, kind in enumerate(o["up_block_types"]):
            prefix, width = f"up_blocks.{index}", widths[index]
            stage = self._stage(kind, prefix, width, o["layers_per_block"] + 1)
            for layer in range(stage.layers):
                h = stage.layer(layer, h, None)
            if index < len(widths) - 1:
                h = Upsample2D(width, name=f"{prefix}.upsamplers.0")(h)
        return self._last(h, o["out_channels"])


class AutoencoderKL(nn.Module):
    """The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1).

    Args:
      options: The checked options of its configuration.
    """

    options: Any

    def setup(self):
        """Make the encoder, the decoder and the 1 × 1 convolutions between them."""
        o = self.options
        self.encoder = Encoder(o)
        self.decoder = Decoder(o)
        latent = o["latent_channels"]
        if o["use_quant_conv"]:
            self.quant_conv = nn.Conv(2 * latent, (1, 1))
        if o["use_post_quant_conv"]:
            self.post_quant_conv = nn.Conv(latent, (1, 1))

    def encode(self, x: Array) -> tuple[Array, Array]:
        """The normal distribution of the latents of an image.

        Args:
          x: (H, W, in_channels). Its sides are halved between resolutions, and
            rounded down.

        Returns:
          Its mean and log-variance, each (h, w, latent_channels).

        Raises:
          ValueError: If a side is too small to be halved so often.
        """
        o = self.options
        least = 2 ** (len(o["block_out_channels"]) - 1)
        small = f"sides of x must be at least {least}, got {x.shape}"
        checks.require(min(x.shape[:2]) >= least, small)
        h = self.encoder(x)
        if o["use_quant_conv"]:
            # Layers made in `setup` do not know the dtype of their inputs.
            h = self.quant_conv(h).astype(x.dtype)
        mean, log_variance = jnp.split(h, 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCES)

    def decode(self, z: Array) -> Array:
        """The image (H, W, out_channels) of latents z (h, w, latent_channels)."""
        if self.options["use_post_quant_conv"]:
            z = self.post_quant_conv(z).astype(z.dtype)
        return self.decoder(z)

    def __call__(self, x: Array) -> Array:
        """Decode the mean of the latents of an image (H, W, in_channels)."""
        return self.decode(self.encode(x)[0])


def _one_per_channel(o):
    """Whether means and deviations of latents come together, one per channel."""
    both = (o["latents_mean"], o["latents_std"])
    sizes = [None if value is None else len(value) for value in both]
    return sizes in ([None, None], [o["latent_channels"]] * 2)


def _inputs(o):
    side = 2 ** len(o["block_out_channels"])
    return slots({"x": (side, side, o["in_channels"])})


ARCHITECTURE = Architecture(
    name="AutoencoderKL",
    options={
        "in_channels": options.positive_integer(3),
        "out_channels": options.positive_integer(3),
        "down_block_types": options.list_of_choices(
            ("DownEncoderBlock2D",), "DownEncoderBlock2D", "AttnDownEncoderBlock2D"
        ),
        "up_block_types": options.list_of_choices(
            ("UpDecoderBlock2D",), "UpDecoderBlock2D", "AttnUpDecoderBlock2D"
        ),
        "block_out_channels": options.list_of(options.positive_integer(1), (64,)),
        "layers_per_block": options.positive_integer(1),
        "act_fn": options.choice(*ACTIVATIONS),
        "latent_channels": options.positive_integer(4),
        "norm_num_groups": options.positive_integer(32),
        "sample_size": options.ignored(32),
        "scaling_factor": options.number(0.18215, above=0),
        "shift_factor": options.optional(options.number(None)),
        "latents_mean": options.numbers(),
        "latents_std": options.numbers(above=0),
        "force_upcast": options.ignored(True),
        "use_quant_conv": options.flag(True),
        "use_post_quant_conv": options.flag(True),
        "mid_block_add_attention": options.flag(True),
    },
    rules=(
        options.same_length("block_out_channels", "down_block_types", "up_block_types"),
        Rule(
            _one_per_channel,
            "latents_mean and latents_std must both be null, or both have "
            "{latent_channels} numbers, got {latents_mean} and {latents_std}",
        ),
    ),
    make=lambda o: AutoencoderKL(o),
    inputs=_inputs,
    autoencoder=True,
)
