"""Conditioners: the networks that compute the parameters of scalar maps.

A conditioner is a pytree callable whose arrays are trained. A coupling layer
calls it with the part that stays, an autoregressive layer with all that comes
before. Any other pytree callable of the same shapes serves as well.
"""

from .convolutions import Convolutional, convolutional
from .masked import MaskedPerceptron, masked_perceptron
from .perceptrons import PerceptronConditioner, dense, perceptron
from .protocols import Conditioner, PartwiseConditioner
from .transformer import CausalTransformer, causal_transformer

__all__ = [
    "CausalTransformer",
    "Conditioner",
    "Convolutional",
    "MaskedPerceptron",
    "PartwiseConditioner",
    "PerceptronConditioner",
    "causal_transformer",
    "convolutional",
    "dense",
    "masked_perceptron",
    "perceptron",
]
