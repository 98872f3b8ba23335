"""UNet2DConditionModel of diffusers: a U-Net with attention to text embeddings."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ...networks import attention
from ...networks.pyramid import sides
from ...types import Array, Scalar
from ..configured import Architecture
from .blocks import Stage, ascend, descend
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
from .transformers import Transformer2D
from .unet_2d_condition_options import (
    OPTIONS,
    RULES,
    inputs,
    named,
    per_level,
    time_features,
    transformer_layers,
)

__all__ = ["ARCHITECTURE", "TextPooling", "UNet2DCondition"]


class TextPooling(nn.Module):
    """One vector of text embeddings, by attention of their mean to them all.

    Args:
      heads: Number of heads.
      features: Number of output features.
    """

    heads: int
    features: int

    @nn.compact
    def __call__(self, text: Array) -> Array:
        """Map embeddings (L, D) to (features,)."""
        width, dtype = text.shape[-1], text.dtype
        text = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name="norm1")(text)
        zeros = nn.initializers.zeros
        shift = self.param("pool.positional_embedding", zeros, (1, width))
        mean = text.mean(0, keepdims=True) + shift.astype(dtype)
        tokens = jnp.concatenate([mean, text])  # (1 + L, D)
        q, k, v = (
            nn.Dense(width, dtype=dtype, name=f"pool.{name}_proj")(source).reshape(
                -1, self.heads, width // self.heads
            )
            for name, source in (("q", mean), ("k", tokens), ("v", tokens))
        )
        pooled = attention(q, k, v).reshape(width)
        out = nn.Dense(self.features, dtype=dtype, name="proj")(pooled)
        return nn.LayerNorm(epsilon=1e-5, dtype=dtype, name="norm2")(out)


class UNet2DCondition(nn.Module):
    """The U-Net of latent diffusion (Rombach et al. 2022), as diffusers has it.

    Args:
      options: The checked options of its configuration.
    """

    options: Any

    @nn.compact
    def __call__(self, x: Array, t: Scalar, *conditions: Any) -> Array:
        """Evaluate the network at one image.

        Args:
          x: (H, W, in_channels). ResnetUpsampleBlock2D needs sides that can be
            halved between resolutions.
          t: The timestep, ().
          *conditions: The text embeddings (L, D). Then, as far as the
            configuration has them and in this order: the class, the pooled text
            embedding and the size conditions, the embedding of the guidance.

        Returns:
          (H, W, out_channels), in x's dtype.
        """
        o, dtype = self.options, x.dtype
        if "ResnetUpsampleBlock2D" in o["up_block_types"][:-1]:
            # Other blocks resize to the sides of the way down.
            sides(x, len(o["block_out_channels"]))
        values = named(o, conditions, dtype)
        embedding = self._embedding(timestep_array(t, dtype), values, dtype)
        text = values["text"]
        if o["encoder_hid_dim"] is not None:
            project = nn.Dense(
                o["cross_attention_dim"], dtype=dtype, name="encoder_hid_proj"
            )
            text = project(text)
        image = 2 * x - 1 if o["center_input_sample"] else x
        side = o["conv_in_kernel"]
        first = o["block_out_channels"][0]
        h = convolution(first, "conv_in", dtype, side=side)(image)
        h, skips = self._descend(h, embedding, text)
        h = self._middle(h, embedding, text)
        h = self._ascend(h, skips, embedding, text)
        groups, epsilon = o["norm_num_groups"], o["norm_eps"]
        h = ACTIVATIONS[o["act_fn"]](
            group_norm(groups, epsilon, "conv_norm_out", dtype)(h)
        )
        side = o["conv_out_kernel"]
        return convolution(o["out_channels"], "conv_out", dtype, side=side)(h)

    def _sinusoids(self, features):
        o = self.options
        return functools.partial(
            sinusoids,
            features=features,
            cosine_first=o["flip_sin_to_cos"],
            shift=o["freq_shift"],
        )

    def _embedding(self, t, values, dtype):
        """The embedding of the timestep and of what is added to it."""
        o, first = self.options, self.options["block_out_channels"][0]
        features = time_features(o)
        if o["time_embedding_type"] == "fourier":
            project = FourierTimes(
                features // 2,
                cosine_first=o["flip_sin_to_cos"],
                log=False,
                name="time_proj",
            )
        else:
            project = self._sinusoids(first)
        embed = TimestepEmbedding(
            features, o["act_fn"], o["timestep_post_act"], name="time_embedding"
        )
        embedding = embed(project(t).astype(dtype), values.get("guidance"))
        if "class" in values:
            label = self._class(values["class"], project, features, dtype)
            join = o["class_embeddings_concat"]
            embedding = (
                jnp.concatenate([embedding, label]) if join else embedding + label
            )
        if o["addition_embed_type"] == "text":
            heads = o["addition_embed_type_num_heads"]
            embedding += TextPooling(heads, features, name="add_embedding")(
                values["text"]
            )
        if o["addition_embed_type"] == "text_time":
            wave = self._sinusoids(o["addition_time_embed_dim"])
            sizes = jax.vmap(wave)(values["sizes"]).reshape(-1).astype(dtype)
            vector = jnp.concatenate([values["pooled"], sizes])
            embedding += TimestepEmbedding(features, name="add_embedding")(vector)
        act = o["time_embedding_act_fn"]
        return ACTIVATIONS[act](embedding) if act else embedding

    def _class(self, label, project, features, dtype):
        o, name = self.options, "class_embedding"
        kind = o["class_embed_type"]
        if kind is None:
            table = Table(o["num_class_embeds"], features, name=name)
            return table(label).astype(dtype)
        if kind == "timestep":
            times = project(label).astype(dtype)
            return TimestepEmbedding(features, o["act_fn"], name=name)(times)
        if kind == "projection":
            return TimestepEmbedding(features, name=name)(label)
        if kind == "simple_projection":
            return nn.Dense(features, dtype=dtype, name=name)(label)
        return label

    def _residual(self, channels, name, inputs=None, **settings):
        o = self.options
        return ResnetBlock2D(
            channels,
            o["norm_num_groups"],
            o["norm_eps"],
            o["act_fn"],
            modulation=o["resnet_time_scale_shift"],
            name=name,
            **settings,
        )

    def _resampling_settings(self):
        """Settings of the blocks that resample by residual blocks."""
        o = self.options
        return {
            "activate_embedding": not o["resnet_skip_time_act"],
            "scale": o["resnet_out_scale_factor"],
        }

    def _stage(self, kind, prefix, level, layers, text, *, up):
        """One resolution, `level` counted from the full one down."""
        o, channels = self.options, self.options["block_out_channels"][level]
        groups = o["norm_num_groups"]
        more = self._resampling_settings() if kind.startswith("Resnet") else {}
        attend = None
        if kind.startswith("Attn"):
            # diffusers does not reverse these on the way up.
            index = len(o["block_out_channels"]) - 1 - level if up else level
            head = per_level(o, "attention_head_dim")[index]
            attend = functools.partial(
                SelfAttention, channels // head, head, groups, o["norm_eps"]
            )
        if kind.startswith("CrossAttn"):
            attend = functools.partial(self._transformer, level, text, up)
        return Stage(
            prefix,
            layers,
            functools.partial(self._residual, channels, **more),
            attend and (lambda name: attend(name=name)),
            None,
        )

    def _transformer(self, level, text, up, name):
        """The transformer after a residual block, as a function of an image."""
        o = self.options
        heads = per_level(o, "attention_head_dim")[level]
        channels = o["block_out_channels"][level]
        layer = 0 if name.startswith("mid") else int(name.rsplit(".", 1)[1])
        only = per_level(o, "only_cross_attention")[level]
        module = Transformer2D(
            heads,
            channels // heads,
            transformer_layers(o, level, up)[layer],
            o["norm_num_groups"],
            o["use_linear_projection"],
            only and not name.startswith("mid"),
            name=name,
        )
        return lambda h: module(h, text)

    def _descend(self, h, embedding, text):
        o, skips = self.options, [h]
        for level, kind in enumerate(o["down_block_types"]):
            prefix = f"down_blocks.{level}"
            layers = per_level(o, "layers_per_block")[level]
            stage = self._stage(kind, prefix, level, layers, text, up=False)
            if level < len(o["block_out_channels"]) - 1:
                stage = stage._replace(resample=self._halving(kind, prefix, level))
            h, more = descend(stage, h, embedding)
            skips += more
        return h, skips

    def _halving(self, kind, prefix, level):
        o, name = self.options, f"{prefix}.downsamplers.0"
        channels = o["block_out_channels"][level]
        if kind.startswith("Resnet"):
            settings = self._resampling_settings()
            return self._residual(channels, name, resample=halved, **settings)
        down = Downsample2D(channels, o["downsample_padding"], name=name)
        return lambda h, embedding: down(h)

    def _middle(self, h, embedding, text):
        o, kind = self.options, self.options["mid_block_type"]
        if kind is None:
            return h
        scale, width = o["mid_block_scale_factor"], h.shape[-1]
        h = self._residual(width, "mid_block.resnets.0", scale=scale)(h, embedding)
        if kind == "UNetMidBlock2D":
            return h
        level = len(o["block_out_channels"]) - 1
        name = "mid_block.attentions.0"
        h = self._transformer(level, text, False, name)(h)
        return self._residual(width, "mid_block.resnets.1", scale=scale)(h, embedding)

    def _ascend(self, h, skips, embedding, text):
        o = self.options
        last = len(o["block_out_channels"]) - 1
        for index, kind in enumerate(o["up_block_types"]):
            prefix, level = f"up_blocks.{index}", last - index
            layers = per_level(o, "layers_per_block")[level] + 1
            stage = self._stage(kind, prefix, level, layers, text, up=True)
            h = ascend(stage, h, skips, embedding)
            if index < last:
                shape = skips[-1].shape[:2]
                h = self._doubling(kind, prefix, level, h, embedding, shape)
        return h

    def _doubling(self, kind, prefix, level, h, embedding, shape):
        name = f"{prefix}.upsamplers.0"
        channels = self.options["block_out_channels"][level]
        if kind.startswith("Resnet"):
            settings = self._resampling_settings()
            block = self._residual(channels, name, resample=doubled, **settings)
            return block(h, embedding)
        return Upsample2D(channels, name=name)(h, shape)


ARCHITECTURE = Architecture(
    name="UNet2DConditionModel",
    options=OPTIONS,
    rules=RULES,
    make=lambda o: UNet2DCondition(o),
    inputs=inputs,
)
