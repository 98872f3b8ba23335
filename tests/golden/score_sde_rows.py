"""Configurations, weights and inputs of the networks of Song et al. 2021, in tests."""

import numpy as np

from tests.golden.reading import generator

VE = {"sde": "vesde", "continuous": True}
VP = {"sde": "vpsde", "continuous": True}
SUB_VP = {"sde": "subvpsde", "continuous": True}


def discrete(training):
    return training | {"continuous": False}


MODEL = {
    "scale_by_sigma": False,
    "normalization": "GroupNorm",
    "nonlinearity": "swish",
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (4,),
    "resamp_with_conv": True,
    "conditional": True,
    "dropout": 0.1,
    "ema_rate": 0.999,
    "sigma_min": 0.01,
    "sigma_max": 50,
    "num_scales": 1000,
    "beta_min": 0.1,
    "beta_max": 20.0,
    "embedding_type": "fourier",
}
DDPM = MODEL | {"name": "ddpm", "nf": 32}
DDPMPP = MODEL | {
    "name": "ncsnpp",
    "nf": 8,
    "fir": False,
    "fir_kernel": [1, 3, 3, 1],
    "skip_rescale": True,
    "resblock_type": "biggan",
    "progressive": "none",
    "progressive_input": "none",
    "progressive_combine": "sum",
    "attention_type": "ddpm",
    "init_scale": 0.0,
    "embedding_type": "positional",
    "fourier_scale": 16,
    "conv_size": 3,
}
FIR = DDPMPP | {"fir": True, "progressive_input": "residual"}
FOURIER = FIR | {"embedding_type": "fourier", "scale_by_sigma": True}


def config(model, training, centered=False, side=8, channels=3):
    """A configuration of three sections."""
    data = {"image_size": side, "num_channels": channels, "centered": centered}
    return {"model": model, "data": data, "training": training}


ROWS = {
    "ddpm/vp": config(DDPM, discrete(VP), centered=True),
    "ddpm/ve": config(
        DDPM | {"scale_by_sigma": True, "resamp_with_conv": False}, discrete(VE)
    ),
    "ddpm/unconditional": config(
        DDPM | {"conditional": False, "nonlinearity": "elu"}, SUB_VP, centered=True
    ),
    "ddpmpp/vp": config(DDPMPP, VP, centered=True),
    "ddpmpp/plain": config(
        DDPMPP | {"resblock_type": "ddpm", "resamp_with_conv": False}, discrete(VP)
    ),
    "ncsnpp/ve": config(FOURIER, VE),
    "ncsnpp/skips": config(
        FOURIER
        | {
            "progressive": "output_skip",
            "progressive_input": "input_skip",
            "ch_mult": (1, 1, 2),
            "num_res_blocks": 2,
        },
        VE,
    ),
    "ncsnpp/residual": config(
        FIR
        | {
            "progressive": "residual",
            "resblock_type": "ddpm",
            "skip_rescale": False,
            "nonlinearity": "lrelu",
            "fir_kernel": [1, 3, 2, 2],
            "nf": 12,
        },
        SUB_VP,
        centered=True,
    ),
    "ncsnpp/cat": config(
        FIR
        | {
            "fir": False,
            "progressive": "residual",
            "progressive_input": "input_skip",
            "progressive_combine": "cat",
            "resblock_type": "ddpm",
            "scale_by_sigma": True,
            "attn_resolutions": (),
            "nonlinearity": "relu",
        },
        discrete(VE),
        channels=1,
    ),
    "ncsnpp/three": config(
        FIR
        | {
            "progressive": "output_skip",
            "resblock_type": "biggan",
            "fir_kernel": [1, 2, 1],
            "conditional": False,
            "attn_resolutions": (4, 8),
        },
        VP,
    ),
}
"""Tiny configurations by name."""

CIFAR10 = {"ch_mult": (1, 2, 2, 2), "attn_resolutions": (16,), "nf": 128}
LARGE = {
    "ddpm": config(DDPM | CIFAR10 | {"num_res_blocks": 2}, VP, True, 32),
    "ddpmpp": config(DDPMPP | CIFAR10 | {"num_res_blocks": 4}, VP, True, 32),
    "ddpmpp_deep": config(DDPMPP | CIFAR10 | {"num_res_blocks": 8}, VP, True, 32),
    "ncsnpp": config(FOURIER | CIFAR10 | {"num_res_blocks": 4}, VE, False, 32),
    "ncsnpp_deep": config(FOURIER | CIFAR10 | {"num_res_blocks": 8}, VE, False, 32),
}
"""The published configurations for CIFAR-10."""

TIME = 300 / 999
"""Of the golden scores."""


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays for which activations keep a size of about 1, in float64.

    Args:
      shapes: Shape of each by name.

    Returns:
      Matrices and kernels of variance 1/inputs, scales near 1, frequencies of
      size 1, and biases near 0.
    """
    arrays = {}
    for name, shape in shapes.items():
        rng = generator(name)
        values = rng.normal(size=shape)
        if name.endswith("scale"):
            arrays[name] = 1 + 0.1 * values
        elif name.endswith("Projection_0.W"):
            arrays[name] = values
        else:
            fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 100
            arrays[name] = values / np.sqrt(fan_in)
    return arrays


def example(row: str, config: dict) -> np.ndarray:
    """The input x of a row.

    Args:
      row: Its name.
      config: Its configuration.

    Returns:
      (H, W, C).
    """
    data = config["data"]
    shape = (data["image_size"], data["image_size"], data["num_channels"])
    return generator(row).normal(size=shape)
