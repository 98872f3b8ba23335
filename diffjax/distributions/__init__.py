"""Probability distributions of one example, with one protocol.

A distribution has `log_prob(x)` in nats, `sample(key)`, `mean()` and
`variance()`, and is a pytree of its parameters. Distributions known exactly at
every noise level are in `targets`, normalizing flows in `flows`.
"""

from .base import Distribution
from .discretised import (
    Bernoulli,
    DiscretisedGaussian,
    DiscretisedLogistic,
    bernoulli,
    discretised_gaussian,
    discretised_log_prob,
    discretised_logistic,
)
from .lattice import bits_per_dim, dequantise
from .mixtures import GaussianMixture, gaussian_mixture
from .normal import (
    Gaussian,
    StandardNormal,
    gaussian,
    gaussian_kl,
    log_normal_interval,
    standard_normal,
)

__all__ = [
    "Bernoulli",
    "DiscretisedGaussian",
    "DiscretisedLogistic",
    "Distribution",
    "Gaussian",
    "GaussianMixture",
    "StandardNormal",
    "bernoulli",
    "bits_per_dim",
    "dequantise",
    "discretised_gaussian",
    "discretised_log_prob",
    "discretised_logistic",
    "gaussian",
    "gaussian_kl",
    "gaussian_mixture",
    "log_normal_interval",
    "standard_normal",
]


def __dir__() -> list[str]:
    return __all__
