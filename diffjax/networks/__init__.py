"""Networks of one example as Flax Linen modules.

Each is F(x, t, condition=None, train=False), of x's shape.
"""

from .cost import flops
from .dit import DiT
from .dot_product import attention
from .edm2 import EDM2
from .embeddings import (
    ConditionEmbedding,
    FourierFeatures,
    TimeEmbedding,
    fourier_inputs,
    sinusoidal,
)
from .magnitude import normalise_weights
from .mlp import MLP
from .norms import GroupNorm
from .presets import dit, edm2
from .resampling import ADM, DDPMpp
from .unet import UNet

__all__ = [
    "ADM",
    "DDPMpp",
    "EDM2",
    "MLP",
    "ConditionEmbedding",
    "DiT",
    "FourierFeatures",
    "GroupNorm",
    "TimeEmbedding",
    "UNet",
    "attention",
    "dit",
    "edm2",
    "flops",
    "fourier_inputs",
    "normalise_weights",
    "sinusoidal",
]


def __dir__() -> list[str]:
    return __all__
