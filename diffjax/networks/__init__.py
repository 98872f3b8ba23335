"""Networks of one example as Flax Linen modules.

Each is F(x, t, condition=None, train=False), of x's shape.
"""

from .dit import DiT
from .dot_product import attention
from .embeddings import (
    ConditionEmbedding,
    FourierFeatures,
    TimeEmbedding,
    fourier_inputs,
    sinusoidal,
)
from .mlp import MLP
from .unet import UNet

__all__ = [
    "MLP",
    "ConditionEmbedding",
    "DiT",
    "FourierFeatures",
    "TimeEmbedding",
    "UNet",
    "attention",
    "fourier_inputs",
    "sinusoidal",
]


def __dir__() -> list[str]:
    return __all__
