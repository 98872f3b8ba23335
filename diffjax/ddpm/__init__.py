"""DDPM's discrete chain: β tables, its kernels, training objectives, and the bound on −log p term by term.

Indices run over 1 … T, the denoiser is asked at t = index / T, and laws are of one example. β̃ is the variance of
q(x_{t−1} | x_t, x_0) and c_0 the weight of x_0 in its mean; as c_0²/β̃ = SNR_{t−1} − SNR_t, the term of index t is ½
(SNR_{t−1} − SNR_t) ‖x_0 − D‖² nats where the model keeps the variance β̃.
"""

from .betas import betas_of, constant_betas, cosine_betas, linear_betas, sigmoid_betas
from .bound import Bound, RateDistortion, elbo, rate_distortion, two_variable_elbo
from .continuous import continuous_elbo, continuous_loss, schedule_variance_loss
from .kernels import (
    PAIRED,
    VARIANCES,
    Paired,
    forward_marginal,
    forward_step,
    paired,
    posterior,
    reverse_step,
)
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
