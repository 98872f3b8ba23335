"""Variational autoencoders and their bounds on log p(x).

Of one latent (`gaussian`), of a Markov chain of them (`hierarchical`), and
trained layer by layer before any prior (`progressive`). `priors` fits
distributions of latents, and `Perceptron` is a network for both ends. Decoders
return `distributions`.
"""

from . import gaussian, hierarchical, priors, progressive
from .networks import Perceptron

__all__ = [
    "Perceptron",
    "gaussian",
    "hierarchical",
    "priors",
    "progressive",
]


def __dir__() -> list[str]:
    return __all__
