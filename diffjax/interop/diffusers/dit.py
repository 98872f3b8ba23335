"""DiTTransformer2DModel of diffusers: a transformer over patches, by class."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ... import checks
from ...networks.dit import unpatchify
from ...types import Array, Scalar
from .. import options
from ..configured import Architecture, slots
from ..options import Rule
from .layers import (
    Table,
    TimestepEmbedding,
    multi_head,
    sinusoids,
    timestep_array,
)
from .transformers import FEED_FORWARD, FeedForward

__all__ = ["ARCHITECTURE", "DiTTransformer2D", "position_embedding"]

TIME_FEATURES = 256


def position_embedding(rows: int, columns: int, width: int, base: int) -> np.ndarray:
    """The embedding of the patches' positions, row by row.

        [sin ω_i c, cos ω_i c, sin ω_i r, cos ω_i r],    ω_i = 10⁻⁴ⁱ⁄ⁿ

    with n = width/4, for the column c and the row r. Positions are rescaled to the
    range seen in training.

    Args:
      rows: Number of rows of patches.
      columns: Number of columns.
      width: Length of the embedding, a multiple of 4.
      base: Rows, and columns, in training.

    Returns:
      (rows columns, width), float32.
    """
    r, c = (
        np.arange(count, dtype=np.float32) / np.float32(count / base)
        for count in (rows, columns)
    )
    omega = 1e4 ** -(np.arange(width // 4) / (width / 4))
    axes = [
        np.broadcast_to(c, (rows, columns)),
        np.broadcast_to(r[:, None], (rows, columns)),
    ]
    angles = [axis.reshape(-1, 1) * omega for axis in axes]  # (rows columns, n)
    parts = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    # Rounded, because networks were trained on rounded embeddings.
    return np.concatenate(parts, axis=-1).astype(np.float32)


class DiTBlock(nn.Module):
    """Attention and a feed-forward layer with adaLN-zero (Peebles & Xie 2023).

    Args:
      options: The checked options of the configuration.
    """

    options: Any

    @nn.compact
    def __call__(self, h: Array, t: Array, label: Array) -> tuple[Array, Array]:
        """Map tokens (N, width) at a timestep () with a class index ().

        Args:
          h: (N, width).
          t: ().
          label: ().

        Returns:
          (N, width), and this block's embedding of t and the label, (width,).
        """
        o, width, dtype = self.options, h.shape[-1], h.dtype
        embedding, modulation = self._modulation(t, label, width, dtype)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6)
        branch = _bare_norm(dtype)(h) * (1 + scale1) + shift1
        heads = o["num_attention_heads"]
        h = h + gate1 * multi_head(
            branch,
            branch,
            heads=heads,
            head_channels=width // heads,
            bias=o["attention_bias"],
            prefix="attn1.",
        )
        affine = o["norm_elementwise_affine"]
        norm = nn.LayerNorm(
            epsilon=o["norm_eps"],
            use_bias=affine,
            use_scale=affine,
            dtype=dtype,
            name="norm3",
        )
        branch = norm(h) * (1 + scale2) + shift2
        return h + gate2 * FeedForward(o["activation_fn"], name="ff")(branch), embedding

    def _modulation(self, t, label, width, dtype):
        """The embedding (width,) of t and the label, and a dense layer of it."""
        times = sinusoids(t, TIME_FEATURES, cosine_first=True, shift=1).astype(dtype)
        embed = TimestepEmbedding(width, name="norm1.emb.timestep_embedder")
        table = Table(
            self.options["num_embeds_ada_norm"] + 1,
            width,
            name="norm1.emb.class_embedder.embedding_table",
        )
        embedding = embed(times) + table(label).astype(dtype)  # (width,)
        dense = nn.Dense(6 * width, dtype=dtype, name="norm1.linear")
        return embedding, dense(nn.silu(embedding))


def _bare_norm(dtype):
    return nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype)


class DiTTransformer2D(nn.Module):
    """The diffusion transformer of Peebles & Xie 2023, as diffusers has it.

    Args:
      options: The checked options of its configuration.
    """

    options: Any

    @nn.compact
    def __call__(self, x: Array, t: Scalar, label: Array) -> Array:
        """Evaluate the network at one image.

        Args:
          x: (H, W, in_channels), whose sides are multiples of patch_size.
          t: The timestep, ().
          label: The class index, (). num_embeds_ada_norm stands for no class.

        Returns:
          (H, W, out_channels), in x's dtype. Where out_channels is twice
          in_channels, the second half is a learned variance.
        """
        o, dtype = self.options, x.dtype
        t = timestep_array(t, dtype)
        patch = o["patch_size"]
        width = o["num_attention_heads"] * o["attention_head_dim"]
        (height, length), channels = x.shape[:2], o["out_channels"] or o["in_channels"]
        checks.divides("patch_size", patch, "both sides of x", np.gcd(height, length))
        rows, columns = height // patch, length // patch
        embed = nn.Conv(
            width,
            (patch, patch),
            (patch, patch),
            padding="VALID",
            dtype=dtype,
            name="pos_embed.proj",
        )
        position = position_embedding(rows, columns, width, o["sample_size"] // patch)
        h = embed(x).reshape(-1, width) + position.astype(
            dtype
        )  # (rows columns, width)
        embeddings = []
        for index in range(o["num_layers"]):
            h, embedding = DiTBlock(o, name=f"transformer_blocks.{index}")(h, t, label)
            embeddings.append(embedding)
        # diffusers modulates the output by the embedding of the first block.
        modulation = nn.Dense(2 * width, dtype=dtype, name="proj_out_1")
        shift, scale = jnp.split(modulation(nn.silu(embeddings[0])), 2)
        h = _bare_norm(dtype)(h) * (1 + scale) + shift
        out = nn.Dense(patch**2 * channels, dtype=dtype, name="proj_out_2")(h)
        return unpatchify(out, (height, length, channels), patch)


def _inputs(o):
    side = o["patch_size"] * 2
    shapes = slots({"x": (side, side, o["in_channels"]), "t": ()})
    return shapes | {"class": jax.ShapeDtypeStruct((), jnp.int32)}


ARCHITECTURE = Architecture(
    name="DiTTransformer2DModel",
    options={
        "num_attention_heads": options.positive_integer(16),
        "attention_head_dim": options.positive_integer(72),
        "in_channels": options.positive_integer(4),
        "out_channels": options.optional(options.positive_integer(None)),
        "num_layers": options.positive_integer(28),
        "dropout": options.ignored(0.0),
        "norm_num_groups": options.ignored(32),
        "attention_bias": options.flag(True),
        "sample_size": options.positive_integer(32),
        "patch_size": options.positive_integer(2),
        "activation_fn": options.choice("gelu-approximate", *FEED_FORWARD),
        "num_embeds_ada_norm": options.positive_integer(1000),
        "upcast_attention": options.ignored(False),
        "norm_type": options.only("ada_norm_zero"),
        "norm_elementwise_affine": options.flag(False),
        "norm_eps": options.number(1e-5, above=0),
        # Options of Transformer2DModel, the name of this class in older files.
        "attention_type": options.only("default"),
        "caption_channels": options.only(None),
        "cross_attention_dim": options.only(None),
        "double_self_attention": options.only(False),
        "interpolation_scale": options.only(None),
        "num_vector_embeds": options.only(None),
        "only_cross_attention": options.only(False),
        "use_additional_conditions": options.only(None),
        "use_linear_projection": options.ignored(False),
    },
    rules=(
        Rule(
            lambda o: o["num_attention_heads"] * o["attention_head_dim"] % 4 == 0,
            "num_attention_heads · attention_head_dim must be a multiple of 4, got "
            "{num_attention_heads} · {attention_head_dim}",
        ),
        Rule(
            lambda o: o["sample_size"] >= o["patch_size"],
            "sample_size must be at least patch_size, got {sample_size} and "
            "{patch_size}",
        ),
    ),
    make=lambda o: DiTTransformer2D(o),
    inputs=_inputs,
    # Older files hold the position embedding.
    buffers=("pos_embed.pos_embed",),
)
