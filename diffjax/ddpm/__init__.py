"""DDPM's discrete chain: its betas, transitions, training objectives and bound.

Indices run over 1 … T. The denoiser is called at t = index / T, and
distributions are of one example. β̃ is the variance of q(x_{t−1} | x_t, x_0),
and c_0 the weight of x_0 in its mean. As c_0²/β̃ = SNR_{t−1} − SNR_t, the term
of index t in the bound is ½ (SNR_{t−1} − SNR_t) ‖x_0 − D‖² nats where the
model keeps the variance β̃.
"""

from .betas import betas_of, constant_betas, cosine_betas, linear_betas, sigmoid_betas
from .bound import Bound, RateDistortion, elbo, rate_distortion, two_variable_elbo
from .continuous import continuous_elbo, continuous_loss, schedule_variance_loss
from .latents import interpolate
from .objectives import (
    LossHistory,
    bound_loss,
    hybrid_loss,
    index_probabilities,
    loss_history,
    record,
    sample_indices,
    simple_loss,
)
from .reverse import PAIRED, VARIANCES, Paired, paired, reverse_step
from .transitions import forward_marginal, forward_step, posterior

__all__ = [
    "PAIRED",
    "VARIANCES",
    "Bound",
    "LossHistory",
    "Paired",
    "RateDistortion",
    "betas_of",
    "bound_loss",
    "constant_betas",
    "continuous_elbo",
    "continuous_loss",
    "cosine_betas",
    "elbo",
    "forward_marginal",
    "forward_step",
    "hybrid_loss",
    "index_probabilities",
    "interpolate",
    "linear_betas",
    "loss_history",
    "paired",
    "posterior",
    "rate_distortion",
    "record",
    "reverse_step",
    "sample_indices",
    "schedule_variance_loss",
    "sigmoid_betas",
    "simple_loss",
    "two_variable_elbo",
]


def __dir__() -> list[str]:
    return __all__
