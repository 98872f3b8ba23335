"""Networks F(x, t, condition=None, train=False) for one example x, as Flax Linen modules."""

from .dit import DiT
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
    "fourier_inputs",
    "sinusoidal",
]
