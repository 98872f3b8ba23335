"""Predictions of a network as the denoiser D(x, t) = E[x_0 | x_t = x], and back.

A kind of prediction is F = a x_0 + b ε with two coefficients a(t) and b(t).
With x = α x_0 + σ ε this gives x_0 = (σ F − b x) / (aσ − bα).
"""

from .categorical import Categorical, Moments, categorical, level_evidence, moments
from .kinds import (
    INPUTS,
    KINDS,
    Scalings,
    input_scalings,
    noise_input,
    scalings,
)
from .network import NetworkDenoiser, check_independent, denoiser, is_independent
from .views import TweedieVariance, View, noise, score, v, variance, velocity

__all__ = [
    "INPUTS",
    "KINDS",
    "Categorical",
    "Moments",
    "NetworkDenoiser",
    "Scalings",
    "TweedieVariance",
    "View",
    "categorical",
    "check_independent",
    "denoiser",
    "input_scalings",
    "is_independent",
    "level_evidence",
    "moments",
    "noise",
    "noise_input",
    "scalings",
    "score",
    "v",
    "variance",
    "velocity",
]


def __dir__() -> list[str]:
    return __all__
