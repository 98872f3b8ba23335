"""Variational autoencoders: of one latent (`gaussian`), of a Markov chain of them (`hierarchical`), and trained layer
by layer before any prior (`progressive`); the laws that decoders answer with, priors, and a network for both ends.
"""

from . import decoders, gaussian, hierarchical, priors, progressive
from .networks import Perceptron

__all__ = [
    "Perceptron",
    "decoders",
    "gaussian",
    "hierarchical",
    "priors",
    "progressive",
]
