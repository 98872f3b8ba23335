"""UNet2DModel of diffusers: unconditional or by class."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ...networks.pyramid import sides
from ...types import Array, Scalar
from .. import options
from ..configured import Architecture, slots
from ..options import Rule
from .blocks import Stage, ascend, descend
from .fir import smoothly_doubled, smoothly_halved
from .layers import (
    ACTIVATIONS,
    Downsample2D,
    FourierTimes,
    ResnetBlock2D,
    SelfAttention,
    Table,
    TimestepEmbedding,
    Upsample2D,
    convolution,
    doubled,
    group_norm,
    halved,
    sinusoids,
    timestep_array,
)

__all__ = ["ARCHITECTURE", "UNet2D"]

SKIP_SCALE = 2**0.5
"""Divisor of the sums in blocks with a skip image beside them."""

SKIP_GROUPS = 32
"""Groups of the norms before their attention."""

DOWN = (
    "DownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "SkipDownBlock2D",
    "AttnSkipDownBlock2D",
)
UP = (
    "UpBlock2D",
    "AttnUpBlock2D",
    "ResnetUpsampleBlock2D",
    "SkipUpBlock2D",
    "AttnSkipUpBlock2D",
)


def _is_skip(kind):
    """Whether a block has the skip image of NCSN++ beside it."""
    return "Skip" in kind


def _few_groups(channels):
    """Groups of four channels, 32 at most."""
    return min(channels // 4, 32)


class UNet2D(nn.Module):
    """The U-Net of Ho et al. 2020 and of Song et al. 2021, as diffusers has it.

    Args:
      options: The checked options of its configuration.
    """

    options: Any

    @nn.compact
    def __call__(self, x: Array, t: Scalar, label: Any = None) -> Array:
        """Evaluate the network at one image.

        Args:
          x: (H, W, in_channels), whose sides can be halved between resolutions.
          t: The timestep, ().
          label: A class index (), a timestep () or an embedding (features,), by
            class_embed_type.

        Returns:
          (H, W, out_channels), in x's dtype.
        """
        o = self.options
        sides(x, len(o["block_out_channels"]))
        embedding = self._embedding(timestep_array(t, x.dtype), label, x.dtype)
        image = 2 * x - 1 if o["center_input_sample"] else x
        h = convolution(o["block_out_channels"][0], "conv_in", x.dtype)(image)
        h, skips = self._descend(h, image, embedding)
        h = self._middle(h, embedding)
        h, image = self._ascend(h, skips, embedding)
        first = o["block_out_channels"][0]
        groups = o["norm_num_groups"] or _few_groups(first)
        normed = group_norm(groups, o["norm_eps"], "conv_norm_out", x.dtype)(h)
        out = convolution(o["out_channels"], "conv_out", x.dtype)(nn.silu(normed))
        out = out if image is None else out + image
        if o["time_embedding_type"] == "fourier":
            out = out / jnp.asarray(t, x.dtype)
        return out

    def _embedding(self, t, label, dtype):
        o, width = self.options, self.options["block_out_channels"][0]
        features = o["time_embedding_dim"] or 4 * width
        project = self._projection(width)
        embedding = TimestepEmbedding(features, name="time_embedding")(
            project(t).astype(dtype)
        )
        if o["class_embed_type"] == "timestep":
            label = project(timestep_array(label, dtype)).astype(dtype)
            label = TimestepEmbedding(features, name="class_embedding")(label)
        elif o["class_embed_type"] is None and o["num_class_embeds"] is not None:
            table = Table(o["num_class_embeds"], features, name="class_embedding")
            label = table(label).astype(dtype)
        return embedding if label is None else embedding + label

    def _projection(self, width):
        """Features of a timestep, as a function of it."""
        o = self.options
        if o["time_embedding_type"] == "fourier":
            return FourierTimes(width, name="time_proj")
        if o["time_embedding_type"] == "learned":
            table = Table(o["num_train_timesteps"], width, name="time_proj")
            return lambda t: table(jnp.round(t).astype(jnp.int32)).astype(t.dtype)
        return functools.partial(
            sinusoids,
            features=width,
            cosine_first=o["flip_sin_to_cos"],
            shift=o["freq_shift"],
        )

    def _residual(self, channels, kind, name, inputs, *, groups=None, **settings):
        """A residual block of a block of type `kind`."""
        o, skip = self.options, _is_skip(kind)
        groups = groups or (_few_groups(inputs) if skip else o["norm_num_groups"])
        return ResnetBlock2D(
            channels,
            groups,
            o["norm_eps"],
            o["act_fn"],
            groups_out=_few_groups(channels) if skip else None,
            modulation=o["resnet_time_scale_shift"],
            scale=SKIP_SCALE if skip else 1.0,
            name=name,
            **settings,
        )

    def _attention(self, channels, name, groups, scale=1.0):
        o = self.options
        head = o["attention_head_dim"] or channels
        return SelfAttention(
            channels // head, head, groups, o["norm_eps"], scale, name=name
        )

    def _stage(self, kind, prefix, channels, layers, resample):
        skip = _is_skip(kind)
        groups = SKIP_GROUPS if skip else self.options["norm_num_groups"]
        scale = SKIP_SCALE if skip else 1.0
        attend = functools.partial(
            self._attention, channels, groups=groups, scale=scale
        )
        within = "Attn" in kind and kind != "AttnSkipUpBlock2D"
        return Stage(
            prefix,
            layers,
            functools.partial(self._residual, channels, kind),
            attend if within else None,
            resample,
        )

    def _descend(self, h, image, embedding):
        o = self.options
        widths, skips = o["block_out_channels"], [h]
        for index, kind in enumerate(o["down_block_types"]):
            last = index == len(widths) - 1
            prefix, width = f"down_blocks.{index}", widths[index]
            resample = None if last else self._halving(kind, prefix, width)
            stage = self._stage(kind, prefix, width, o["layers_per_block"], resample)
            h, more = descend(stage, h, embedding)
            if _is_skip(kind) and not last:
                image = smoothly_halved(image)
                name = f"{prefix}.skip_conv"
                h = h + convolution(width, name, h.dtype, side=1)(image)
                more[-1] = h
            skips += more
        return h, skips

    def _halving(self, kind, prefix, width):
        o = self.options
        if _is_skip(kind):
            return self._residual(
                width,
                kind,
                f"{prefix}.resnet_down",
                width,
                project=True,
                resample=smoothly_halved,
            )
        by_residual = kind == "ResnetDownsampleBlock2D" or (
            kind == "AttnDownBlock2D" and o["downsample_type"] == "resnet"
        )
        name = f"{prefix}.downsamplers.0"
        if by_residual:
            return self._residual(width, kind, name, width, resample=halved)
        down = Downsample2D(width, o["downsample_padding"], name=name)
        return lambda h, embedding: down(h)

    def _middle(self, h, embedding):
        o, width = self.options, h.shape[-1]
        if o["mid_block_type"] is None:
            return h
        groups = o["norm_num_groups"] or _few_groups(width)
        scale = o["mid_block_scale_factor"]
        block = functools.partial(
            ResnetBlock2D,
            width,
            groups,
            o["norm_eps"],
            o["act_fn"],
            modulation=o["resnet_time_scale_shift"],
            scale=scale,
        )
        h = block(name="mid_block.resnets.0")(h, embedding)
        if o["add_attention"]:
            plain = o["resnet_time_scale_shift"] == "default"
            norms = o["attn_norm_num_groups"] or (groups if plain else None)
            name = "mid_block.attentions.0"
            h = self._attention(width, name, norms, scale)(h)
        return block(name="mid_block.resnets.1")(h, embedding)

    def _ascend(self, h, skips, embedding):
        o, image = self.options, None
        widths = o["block_out_channels"][::-1]
        for index, kind in enumerate(o["up_block_types"]):
            last = index == len(widths) - 1
            prefix, width = f"up_blocks.{index}", widths[index]
            layers = o["layers_per_block"] + 1
            stage = self._stage(kind, prefix, width, layers, None)
            if kind == "AttnSkipUpBlock2D":
                stage = stage._replace(residual=self._with_skip_groups(stage, skips))
            h = ascend(stage, h, skips, embedding)
            if _is_skip(kind):
                h, image = self._image(kind, prefix, h, image, embedding, last)
            elif not last:
                h = self._doubling(kind, prefix, width)(h, embedding)
        return h, image

    def _with_skip_groups(self, stage, skips):
        """The stage's residual blocks, with groups by the channels of their skips."""
        lateral = iter([skip.shape[-1] for skip in reversed(skips)])

        def residual(name, inputs):
            channels = next(lateral)
            # diffusers writes min(inputs + skip // 4, 32), without parentheses.
            groups = min(inputs - channels + channels // 4, 32)
            return stage.residual(name, inputs, groups=groups)

        return residual

    def _image(self, kind, prefix, h, image, embedding, last):
        """The skip image of a resolution, and the change of sides."""
        o, width = self.options, h.shape[-1]
        if "Attn" in kind:
            name = f"{prefix}.attentions.0"
            h = self._attention(width, name, SKIP_GROUPS, SKIP_SCALE)(h)
        image = None if image is None else smoothly_doubled(image)
        if last:
            return h, image
        norm = group_norm(
            _few_groups(width), o["norm_eps"], f"{prefix}.skip_norm", h.dtype
        )
        more = convolution(3, f"{prefix}.skip_conv", h.dtype)(nn.silu(norm(h)))
        up = self._residual(
            width,
            kind,
            f"{prefix}.resnet_up",
            width,
            project=True,
            resample=smoothly_doubled,
        )
        return up(h, embedding), more if image is None else image + more

    def _doubling(self, kind, prefix, width):
        name = f"{prefix}.upsamplers.0"
        by_residual = kind == "ResnetUpsampleBlock2D" or (
            kind == "AttnUpBlock2D" and self.options["upsample_type"] == "resnet"
        )
        if by_residual:
            return self._residual(width, kind, name, width, resample=doubled)
        up = Upsample2D(width, name=name)
        return lambda h, embedding: up(h)


def _skip_blocks_are_outside(o):
    """Whether Skip blocks are the first ones down and the last ones up."""
    down = [_is_skip(kind) for kind in o["down_block_types"][:-1]]
    up = [_is_skip(kind) for kind in o["up_block_types"]]
    return down == sorted(down, reverse=True) and up == sorted(up)


def _has_images(o):
    return any(
        _is_skip(kind) for kind in (*o["down_block_types"], *o["up_block_types"])
    )


def _heads_exist(o):
    """Whether each attention has a head of at most its channels."""
    pairs = zip(o["block_out_channels"], o["down_block_types"], strict=True)
    ways = zip(o["block_out_channels"][::-1], o["up_block_types"], strict=True)
    widths = [width for width, kind in [*pairs, *ways] if "Attn" in kind]
    if o["add_attention"] and o["mid_block_type"]:
        widths.append(o["block_out_channels"][-1])
    return all(width >= (o["attention_head_dim"] or 1) for width in widths)


RULES = (
    options.same_length("block_out_channels", "down_block_types", "up_block_types"),
    Rule(
        _skip_blocks_are_outside,
        "Skip blocks must come first in down_block_types and last in up_block_types, "
        "got {down_block_types} and {up_block_types}",
    ),
    Rule(
        lambda o: not _has_images(o) or o["in_channels"] == o["out_channels"] == 3,
        "Skip blocks need in_channels = out_channels = 3, got {in_channels} and "
        "{out_channels}",
    ),
    Rule(
        lambda o: (
            o["norm_num_groups"] is not None
            or all(
                _is_skip(kind)
                for kind in (*o["down_block_types"], *o["up_block_types"])
            )
        ),
        "norm_num_groups must be an integer where a block is no Skip block, got null",
    ),
    Rule(
        _heads_exist,
        "attention_head_dim must be at most the channels wherever there is attention, "
        "got {attention_head_dim} for block_out_channels {block_out_channels}",
    ),
    Rule(
        lambda o: o["time_embedding_type"] != "learned" or o["num_train_timesteps"],
        "time_embedding_type learned needs num_train_timesteps, got null",
    ),
    Rule(
        lambda o: (
            o["time_embedding_type"] != "positional"
            or o["block_out_channels"][0] // 2 > o["freq_shift"]
        ),
        "block_out_channels[0] must be above 2 freq_shift + 1, got "
        "{block_out_channels} and {freq_shift}",
    ),
)


def _inputs(o):
    side = 2 ** len(o["block_out_channels"])
    shapes = slots({"x": (side, side, o["in_channels"]), "t": ()})
    features = o["time_embedding_dim"] or 4 * o["block_out_channels"][0]
    if o["class_embed_type"] == "identity":
        return shapes | slots({"class": (features,)})
    if o["class_embed_type"] == "timestep":
        return shapes | slots({"class": ()})
    if o["num_class_embeds"] is not None:
        return shapes | {"class": jax.ShapeDtypeStruct((), jnp.int32)}
    return shapes


ARCHITECTURE = Architecture(
    name="UNet2DModel",
    options={
        "sample_size": options.ignored(),
        "in_channels": options.positive_integer(3),
        "out_channels": options.positive_integer(3),
        "center_input_sample": options.flag(False),
        "time_embedding_type": options.choice("positional", "fourier", "learned"),
        "time_embedding_dim": options.optional(options.positive_integer(None)),
        "freq_shift": options.integer(0),
        "flip_sin_to_cos": options.flag(True),
        "down_block_types": options.list_of_choices(
            ("DownBlock2D", *["AttnDownBlock2D"] * 3), *DOWN
        ),
        "mid_block_type": options.choice("UNetMidBlock2D", None),
        "up_block_types": options.list_of_choices(
            (*["AttnUpBlock2D"] * 3, "UpBlock2D"), *UP
        ),
        "block_out_channels": options.list_of(
            options.positive_integer(1), (224, 448, 672, 896)
        ),
        "layers_per_block": options.positive_integer(2),
        "mid_block_scale_factor": options.number(1, above=0),
        "downsample_padding": options.choice(1, 0),
        "downsample_type": options.choice("conv", "resnet"),
        "upsample_type": options.choice("conv", "resnet"),
        "dropout": options.ignored(0.0),
        "act_fn": options.choice(*ACTIVATIONS),
        "attention_head_dim": options.optional(options.positive_integer(8)),
        "norm_num_groups": options.optional(options.positive_integer(32)),
        "attn_norm_num_groups": options.optional(options.positive_integer(None)),
        "norm_eps": options.number(1e-5, above=0),
        "resnet_time_scale_shift": options.choice("default", "scale_shift"),
        "class_embed_type": options.choice(None, "timestep", "identity"),
        "num_class_embeds": options.optional(options.positive_integer(None)),
        "num_train_timesteps": options.optional(options.positive_integer(None)),
        "add_attention": options.flag(True),
    },
    rules=RULES,
    make=lambda o: UNet2D(o),
    inputs=_inputs,
)
