"""Options of UNet2DConditionModel, and what follows from them."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import options
from ..configured import slots
from ..options import Rule
from .layers import ACTIVATIONS, timestep_array

__all__ = [
    "OPTIONS",
    "RULES",
    "condition_shapes",
    "inputs",
    "named",
    "per_level",
    "time_features",
    "transformer_layers",
]

SDXL_POOLED = 1280
"""Length of the pooled text embedding of Stable Diffusion XL."""


def per_level(o: dict[str, Any], key: str) -> tuple[Any, ...]:
    """The value of an option for each resolution, from the full one down.

    Args:
      o: The checked options.
      key: An option with one value, or one per resolution.

    Returns:
      One value per resolution.
    """
    value = o[key]
    return (
        value if isinstance(value, tuple) else (value,) * len(o["block_out_channels"])
    )


def transformer_layers(o: dict[str, Any], level: int, up: bool) -> tuple[int, ...]:
    """Number of transformer blocks after each residual block of a resolution.

    Args:
      o: The checked options.
      level: The resolution, from the full one down.
      up: Whether on the way up.

    Returns:
      One number per residual block.
    """
    value = per_level(o, "transformer_layers_per_block")[level]
    if up and o["reverse_transformer_layers_per_block"] is not None:
        index = len(o["block_out_channels"]) - 1 - level
        value = o["reverse_transformer_layers_per_block"][index]
    layers = per_level(o, "layers_per_block")[level] + 1
    return value if isinstance(value, tuple) else (value,) * layers


def time_features(o: dict[str, Any]) -> int:
    """Number of features of the time's embedding."""
    factor = 2 if o["time_embedding_type"] == "fourier" else 4
    return o["time_embedding_dim"] or factor * o["block_out_channels"][0]


def condition_shapes(o: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the conditions after x and t, by name and in their order.

    Args:
      o: The checked options.

    Returns:
      The shape of each. The first axis of "text" may have another length.
    """
    text = o["encoder_hid_dim"] or per_level(o, "cross_attention_dim")[0]
    shapes: dict[str, tuple[int, ...]] = {"text": (4, text)}
    projected = o["projection_class_embeddings_input_dim"]
    kind = o["class_embed_type"]
    if kind is not None or o["num_class_embeds"] is not None:
        of_kind = {"identity": (time_features(o),), None: (), "timestep": ()}
        shapes["class"] = of_kind.get(kind, (projected,))
    if o["addition_embed_type"] == "text_time":
        count, features = 6, o["addition_time_embed_dim"]
        if projected - 5 * features == SDXL_POOLED:
            count = 5
        shapes["pooled"] = (projected - count * features,)
        shapes["sizes"] = (count,)
    if o["time_cond_proj_dim"] is not None:
        shapes["guidance"] = (o["time_cond_proj_dim"],)
    return shapes


def _is_index(o, name):
    return name == "class" and o["class_embed_type"] is None


def named(o: dict[str, Any], conditions: Any, dtype: Any) -> dict[str, Any]:
    """The conditions of a call by name, as floats but for a class index.

    Args:
      o: The checked options.
      conditions: The conditions, in the order of `condition_shapes`.
      dtype: The dtype of the computation. Sizes and a class that is a timestep have
        float32 at least.

    Returns:
      Arrays by name.
    """
    pairs = zip(condition_shapes(o), conditions, strict=True)
    numbers = {"sizes"} | ({"class"} if o["class_embed_type"] == "timestep" else set())
    arrays = {name: jnp.asarray(value) for name, value in pairs}
    return {
        name: value
        if _is_index(o, name)
        else timestep_array(value, dtype)
        if name in numbers
        else value.astype(dtype)
        for name, value in arrays.items()
    }


def inputs(o: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the inputs of one example at a small size, by name."""
    side = 2 ** len(o["block_out_channels"])
    x = (side, side, o["in_channels"])
    shapes = slots({"x": x, "t": (), **condition_shapes(o)})
    index = jax.ShapeDtypeStruct((), jnp.int32)
    return {k: index if _is_index(o, k) else value for k, value in shapes.items()}


def _lengths_agree(o):
    count = len(o["block_out_channels"])
    return all(
        not isinstance(o[key], tuple) or len(o[key]) == count
        for key in (*PER_LEVEL, "reverse_transformer_layers_per_block")
    )


PER_LEVEL = (
    "down_block_types",
    "up_block_types",
    "only_cross_attention",
    "layers_per_block",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "attention_head_dim",
)


def _nested_layers_fit(o):
    """Whether nested lists of transformer layers have one entry per residual block."""
    levels = range(len(o["block_out_channels"]))
    down = [transformer_layers(o, level, False) for level in levels]
    up = [transformer_layers(o, level, True) for level in levels]
    blocks = per_level(o, "layers_per_block")
    return all(
        len(down[i]) >= blocks[i] and len(up[i]) >= blocks[i] + 1 for i in levels
    )


def _heads_exist(o):
    """Whether each attention has a head of at most its channels."""
    heads = per_level(o, "attention_head_dim")
    widths = o["block_out_channels"]
    down = zip(widths, heads, o["down_block_types"], strict=True)
    up = zip(widths[::-1], heads, o["up_block_types"], strict=True)
    channels = all(w >= h for w, h, kind in [*down, *up] if kind.startswith("Attn"))
    return channels and all(w >= h for w, h in zip(widths, heads, strict=True))


RULES = (
    Rule(
        _lengths_agree,
        "options per resolution must have as many entries as block_out_channels "
        "{block_out_channels}: " + ", ".join(PER_LEVEL),
    ),
    Rule(
        _nested_layers_fit,
        "nested transformer_layers_per_block needs one number per residual block, and "
        "reverse_transformer_layers_per_block with one more per resolution, got "
        "{transformer_layers_per_block} and {reverse_transformer_layers_per_block}",
    ),
    Rule(
        lambda o: len(set(per_level(o, "cross_attention_dim"))) == 1,
        "cross_attention_dim must be the same at all resolutions, got "
        "{cross_attention_dim}",
    ),
    Rule(
        lambda o: (
            o["encoder_hid_dim"] is None or isinstance(o["cross_attention_dim"], int)
        ),
        "encoder_hid_dim needs one cross_attention_dim, got {cross_attention_dim}",
    ),
    Rule(
        lambda o: o["encoder_hid_dim_type"] is None or o["encoder_hid_dim"],
        "encoder_hid_dim_type needs encoder_hid_dim, got null",
    ),
    Rule(
        lambda o: (
            o["class_embed_type"] not in ("projection", "simple_projection")
            or o["projection_class_embeddings_input_dim"]
        ),
        "class_embed_type {class_embed_type} needs "
        "projection_class_embeddings_input_dim, got null",
    ),
    Rule(
        lambda o: (
            o["addition_embed_type"] != "text_time"
            or (
                o["addition_time_embed_dim"]
                and o["projection_class_embeddings_input_dim"]
                and condition_shapes(o)["pooled"][0] > 0
            )
        ),
        "addition_embed_type text_time needs addition_time_embed_dim and "
        "projection_class_embeddings_input_dim above six times that, got "
        "{addition_time_embed_dim} and {projection_class_embeddings_input_dim}",
    ),
    Rule(
        lambda o: (
            o["addition_embed_type"] != "text"
            or condition_shapes(o)["text"][1] % o["addition_embed_type_num_heads"] == 0
        ),
        "addition_embed_type_num_heads must divide the text embeddings' length, got "
        "{addition_embed_type_num_heads}",
    ),
    Rule(
        lambda o: not o["class_embeddings_concat"] or "class" in condition_shapes(o),
        "class_embeddings_concat needs a class embedding",
    ),
    Rule(
        lambda o: not (o["class_embeddings_concat"] and o["addition_embed_type"]),
        "class_embeddings_concat cannot be combined with addition_embed_type "
        "{addition_embed_type}",
    ),
    Rule(
        _heads_exist,
        "attention_head_dim must be at most the channels of its resolution, got "
        "{attention_head_dim} for block_out_channels {block_out_channels}",
    ),
    Rule(
        lambda o: o["conv_in_kernel"] % 2 and o["conv_out_kernel"] % 2,
        "conv_in_kernel and conv_out_kernel must be odd, got {conv_in_kernel} and "
        "{conv_out_kernel}",
    ),
    Rule(
        lambda o: o["block_out_channels"][0] // 2 > o["freq_shift"],
        "block_out_channels[0] must be above 2 freq_shift + 1, got "
        "{block_out_channels} and {freq_shift}",
    ),
    Rule(
        lambda o: time_features(o) % 2 == 0 or o["time_embedding_type"] == "positional",
        "time_embedding_dim must be even with time_embedding_type fourier, got "
        "{time_embedding_dim}",
    ),
)

_ACTIVATION = options.optional(options.choice(None, *ACTIVATIONS))
_COUNT = options.optional(options.positive_integer(None))

OPTIONS = {
    "sample_size": options.ignored(),
    "in_channels": options.positive_integer(4),
    "out_channels": options.positive_integer(4),
    "center_input_sample": options.flag(False),
    "flip_sin_to_cos": options.flag(True),
    "freq_shift": options.integer(0),
    "down_block_types": options.list_of_choices(
        (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        *("CrossAttnDownBlock2D", "DownBlock2D"),
        *("AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    ),
    "mid_block_type": options.choice("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "up_block_types": options.list_of_choices(
        ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        *("CrossAttnUpBlock2D", "UpBlock2D"),
        *("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    ),
    "only_cross_attention": options.one_or_list(options.flag(False)),
    "block_out_channels": options.list_of(
        options.positive_integer(1), (320, 640, 1280, 1280)
    ),
    "layers_per_block": options.one_or_list(options.positive_integer(2)),
    "downsample_padding": options.choice(1, 0),
    "mid_block_scale_factor": options.number(1, above=0),
    "dropout": options.ignored(0.0),
    "act_fn": options.choice(*ACTIVATIONS),
    "norm_num_groups": options.positive_integer(32),
    "norm_eps": options.number(1e-5, above=0),
    "cross_attention_dim": options.one_or_list(options.positive_integer(1280)),
    "transformer_layers_per_block": options.one_or_list(
        options.one_or_list(options.positive_integer(1))
    ),
    "reverse_transformer_layers_per_block": options.optional(
        options.one_or_list(options.one_or_list(options.positive_integer(None)))
    ),
    "encoder_hid_dim": _COUNT,
    "encoder_hid_dim_type": options.choice(None, "text_proj"),
    "attention_head_dim": options.one_or_list(options.positive_integer(8)),
    "num_attention_heads": options.only(None),
    "dual_cross_attention": options.only(False),
    "use_linear_projection": options.flag(False),
    "class_embed_type": options.choice(
        None, "timestep", "identity", "projection", "simple_projection"
    ),
    "addition_embed_type": options.choice(None, "text", "text_time"),
    "addition_time_embed_dim": _COUNT,
    "num_class_embeds": _COUNT,
    "upcast_attention": options.ignored(False),
    "resnet_time_scale_shift": options.choice("default", "scale_shift"),
    "resnet_skip_time_act": options.flag(False),
    "resnet_out_scale_factor": options.number(1.0, above=0),
    "time_embedding_type": options.choice("positional", "fourier"),
    "time_embedding_dim": _COUNT,
    "time_embedding_act_fn": _ACTIVATION,
    "timestep_post_act": _ACTIVATION,
    "time_cond_proj_dim": _COUNT,
    "conv_in_kernel": options.positive_integer(3),
    "conv_out_kernel": options.positive_integer(3),
    "projection_class_embeddings_input_dim": _COUNT,
    "attention_type": options.only("default"),
    "class_embeddings_concat": options.flag(False),
    "mid_block_only_cross_attention": options.ignored(),
    "cross_attention_norm": options.only(None),
    "addition_embed_type_num_heads": options.positive_integer(64),
}
"""By their keys, with the defaults of diffusers 0.42."""
