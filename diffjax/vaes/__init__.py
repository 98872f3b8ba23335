"""Variational autoencoders: of one latent (`gaussian`), of a Markov chain of them (`hierarchical`), and trained layer
by layer before any prior (`progressive`). Priors, and a network for both ends. What decoders return is in
`distributions`.
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
