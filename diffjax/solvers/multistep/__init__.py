"""Methods that interpolate the last outputs, with one evaluation per step.

Each integrates the polynomial through its last outputs against the weight of
the probability flow, in the coordinate that it names. From exact earlier outputs
the order is the one declared. The first steps have fewer outputs to build on:
on grids that start where that flow is not yet nearly linear this caps the order
at 2.

Below y = x/α, ρ = σ/α and λ = −log ρ. A step goes from t to s and has h = λ_s
− λ_t. D = E[x_0 | x_t] is the denoiser's output and ε̂ = (y − D)/ρ the noise
that it implies.
"""

from .data_prediction import (
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    sa_solver,
    unipc,
)
from .extended import er_sde
from .noise_prediction import adams_bashforth, deis, gradient_estimation, ipndm

__all__ = [
    "adams_bashforth",
    "deis",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "er_sde",
    "gradient_estimation",
    "ipndm",
    "sa_solver",
    "unipc",
]


def __dir__() -> list[str]:
    return __all__
