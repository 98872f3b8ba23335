"""Networks of diffusers that tests compare with: configurations, inputs, weights.

A weight is a function of its tensor's name and shape, so that files hold inputs and
outputs alone.
"""

import numpy as np

from tests.golden.reading import generator

__all__ = ["LARGE", "ROWS", "inputs", "weights"]

UNET = {
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "sample_size": 8,
}
TEXT = {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "sample_size": 8,
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 5,
}
CODER = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "sample_size": 8,
}

ROWS: dict[str, dict] = {
    "unet_2d/ddpm": {"_class_name": "UNet2DModel", **UNET, "attention_head_dim": 4},
    "unet_2d/skip": {
        "_class_name": "UNet2DModel",
        **UNET,
        "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"],
        "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"],
        "block_out_channels": [32, 32],
        "norm_num_groups": None,
        "time_embedding_type": "fourier",
        "mid_block_scale_factor": 2**0.5,
        "attention_head_dim": None,
    },
    "unet_2d/resnet": {
        "_class_name": "UNet2DModel",
        **UNET,
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": 5,
        "act_fn": "gelu",
        "in_channels": 1,
        "out_channels": 2,
        "center_input_sample": True,
        "attention_head_dim": 8,
        "attn_norm_num_groups": 2,
    },
    "unet_2d/learned": {
        "_class_name": "UNet2DModel",
        **UNET,
        "time_embedding_type": "learned",
        "num_train_timesteps": 1000,
        "class_embed_type": "timestep",
        "downsample_padding": 0,
        "mid_block_type": None,
        "act_fn": "mish",
        "time_embedding_dim": 20,
    },
    "unet_2d_condition/sd1": {"_class_name": "UNet2DConditionModel", **TEXT},
    "unet_2d_condition/sd2": {
        "_class_name": "UNet2DConditionModel",
        **TEXT,
        "use_linear_projection": True,
        "attention_head_dim": [1, 2],
        "only_cross_attention": [True, False],
        "upcast_attention": True,
        "num_class_embeds": 5,
        "time_cond_proj_dim": 6,
    },
    "unet_2d_condition/sdxl": {
        "_class_name": "UNet2DConditionModel",
        **TEXT,
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 40,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "unet_2d_condition/pooled": {
        "_class_name": "UNet2DConditionModel",
        **TEXT,
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "mid_block_type": "UNetMidBlock2D",
        "encoder_hid_dim": 8,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "time_embedding_type": "fourier",
        "timestep_post_act": "silu",
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 1.5,
    },
    "dit/plain": {"_class_name": "DiTTransformer2DModel", **DIT, "out_channels": 8},
    "dit/affine": {
        "_class_name": "DiTTransformer2DModel",
        **DIT,
        "attention_bias": False,
        "norm_elementwise_affine": True,
        "activation_fn": "geglu",
        "patch_size": 4,
        "in_channels": 3,
    },
    "autoencoder/sd": {"_class_name": "AutoencoderKL", **CODER},
    "autoencoder/attention": {
        "_class_name": "AutoencoderKL",
        **CODER,
        "down_block_types": ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"],
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "latent_channels": 3,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 2,
    },
    "autoencoder/deep": {
        "_class_name": "AutoencoderKL",
        **CODER,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [4, 12, 8],
        "act_fn": "mish",
        "out_channels": 4,
        "latent_channels": 2,
        "norm_num_groups": 2,
        "use_post_quant_conv": False,
        "shift_factor": 0.1,
        "scaling_factor": 0.5,
    },
}
"""Tiny configurations by name."""

LARGE: dict[str, dict] = {
    # google/ddpm-cifar10-32
    "unet_2d/cifar10": {
        "_class_name": "UNet2DModel",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": [
            "DownBlock2D",
            "AttnDownBlock2D",
            "DownBlock2D",
            "DownBlock2D",
        ],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    },
    # The U-Net of Stable Diffusion 1.5 with a tenth of its channels.
    "unet_2d_condition/sd15": {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [32, 64, 128, 128],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    },
    # DiT-S/2 (Peebles & Xie 2023, table 1).
    "dit/small": {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": 6,
        "attention_head_dim": 64,
        "num_layers": 12,
        "patch_size": 2,
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 8,
        "num_embeds_ada_norm": 1000,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_zero",
    },
    # The autoencoder of Stable Diffusion 1.
    "autoencoder/sd1": {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 512,
    },
}
"""Published configurations, of millions of parameters."""

SIDES = {"dit/small": (32, 32), "unet_2d/cifar10": (32, 32)}
SIDES |= {"autoencoder/sd1": (32, 32), "autoencoder/deep": (14, 11)}
"""Sides of the images, 8 for the other tiny rows and 16 for the other large ones."""


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Tensors for which activations keep a size of about 1, in float64.

    Args:
      shapes: Shape of each by name, as torch has it.

    Returns:
      Matrices and kernels of variance 1/inputs, other weights near 1, and biases
      near 0.
    """
    tensors = {}
    for name, shape in shapes.items():
        rng = generator(name)
        values = rng.normal(size=shape)
        if len(shape) > 1:
            tensors[name] = values / np.sqrt(np.prod(shape[1:]))
        else:
            tensors[name] = name.endswith("weight") + 0.1 * values
    return tensors


def inputs(row: str, config: dict) -> dict[str, np.ndarray]:
    """The inputs of a row by name, of one example with the channels last.

    Args:
      row: Its name.
      config: Its configuration.

    Returns:
      x, t and the conditions in the order in which models take them.
    """
    rng = generator(row)
    sides = SIDES.get(row, (8, 8) if row in ROWS else (16, 16))
    channels = config.get("in_channels", 3 if "unet_2d/" in row else 4)
    channels = config.get("in_channels", 3) if "autoencoder" in row else channels
    arrays = {"x": rng.normal(size=(*sides, channels))}
    if "autoencoder" in row:
        return arrays
    arrays["t"] = np.float64(487)
    if row.startswith("dit"):
        return arrays | {"class": np.int64(3)}
    if row.startswith("unet_2d_condition"):
        text = config.get("encoder_hid_dim") or config["cross_attention_dim"]
        arrays["text"] = rng.normal(size=(5, text))
    if config.get("class_embed_type") == "timestep":
        arrays["class"] = np.float64(3)
    if config.get("num_class_embeds"):
        arrays["class"] = np.int64(3)
    if config.get("addition_embed_type") == "text_time":
        arrays["pooled"] = rng.normal(size=16)
        arrays["sizes"] = np.array([64.0, 48, 0, 8, 64, 64])
    if config.get("time_cond_proj_dim"):
        arrays["guidance"] = rng.normal(size=config["time_cond_proj_dim"])
    return arrays
