"""Distributions known exactly at every noise level, and toy densities.

If x_0 has one of these distributions, then so has x_t = α x_0 + σ ε. A target
is a pytree with `log_prob(x)` in nats, `sample(key)` and `noised(schedule,
t)`, which is again a target: the exact p_t. `denoiser(target, schedule)` is
the exact E[x_0 | x_t], and `flow_map(target, schedule)` the exact map X_{t→s} of the
probability flow.
"""

from .base import Target
from .boxes import UniformBoxes, uniform_boxes
from .denoisers import ExactDenoiser, denoiser, score
from .flow_maps import FlowMap, FlowMapDerivatives, flow_map
from .mixtures import Empirical, Mixture, empirical, gaussian, gaussian_mixture
from .toys import checkerboard, circles, eight_gaussians, moons
from .unnormalised import Energy, energy

__all__ = [
    "Empirical",
    "Energy",
    "ExactDenoiser",
    "FlowMap",
    "FlowMapDerivatives",
    "Mixture",
    "Target",
    "UniformBoxes",
    "checkerboard",
    "circles",
    "denoiser",
    "eight_gaussians",
    "empirical",
    "energy",
    "flow_map",
    "gaussian",
    "gaussian_mixture",
    "moons",
    "score",
    "uniform_boxes",
]


def __dir__() -> list[str]:
    return __all__
