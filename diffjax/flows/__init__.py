"""Normalizing flows, and velocities that are matched to interpolants.

Bijectors have exact log-determinants both ways. A flow is a base distribution
and a bijector. Flow matching fits the velocity of a continuous flow by
regression.
"""

from .autoregressive import autoregressive, iaf, maf, tarflow
from .composition import chain, initialise, inverse, stack
from .conditioners import (
    causal_transformer,
    convolutional,
    dense,
    masked_perceptron,
    perceptron,
)
from .continuous import (
    Continuous,
    Transport,
    continuous,
    neural_ode,
    transport,
    transport_loss,
)
from .coupling import (
    alternate_mask,
    checkerboard_mask,
    coupling,
    coupling_flow,
    half_mask,
    nice,
    real_nvp,
    spline_coupling,
)
from .density import flow, interpolate, lattice_log_prob
from .elementwise import (
    actnorm,
    affine,
    elementwise,
    exponential,
    leaky_relu,
    logit,
    positive,
    sigmoid,
    sinh_arcsinh,
    tanh,
)
from .fitting import importance_log_z, negative_log_likelihood, reverse_kl
from .glow import dequantiser, glow
from .interpolants import (
    GaussianInterpolant,
    Interpolant,
    bridge,
    entropic_covariance,
    gaussian_interpolant,
    interpolant,
)
from .linear import invertible_convolution, lu_linear, triangular
from .matching import (
    Examples,
    bridge_loss,
    bridge_sde,
    curvature,
    examples,
    matching_loss,
    reflow_pairs,
    velocity_denoiser,
)
from .pairings import (
    fixed_pairs,
    independent,
    optimal_assignment,
    sinkhorn,
    sinkhorn_plan,
    transport_cost,
)
from .scalar_maps import additive, bounded_affine, conditional, pointwise
from .shapes import multiscale, permutation, reshape, reversal, shuffle, squeeze
from .splines import (
    inverse_rational_quadratic_spline,
    rational_quadratic,
    rational_quadratic_spline,
)
from .velocities import neural_velocity

__all__ = [  # noqa: RUF022
    # A flow: base distribution and bijector
    "flow",
    "initialise",
    "interpolate",
    # Flows ready to train
    "coupling_flow",
    "nice",
    "real_nvp",
    "spline_coupling",
    "maf",
    "iaf",
    "tarflow",
    "glow",
    "neural_ode",
    # Losses and densities
    "negative_log_likelihood",
    "reverse_kl",
    "importance_log_z",
    "lattice_log_prob",
    "dequantiser",
    # Bijectors of bijectors
    "chain",
    "inverse",
    "stack",
    "multiscale",
    # Bijectors of entries
    "affine",
    "actnorm",
    "elementwise",
    "exponential",
    "leaky_relu",
    "logit",
    "pointwise",
    "positive",
    "sigmoid",
    "sinh_arcsinh",
    "tanh",
    # Linear bijectors
    "invertible_convolution",
    "lu_linear",
    "triangular",
    # Bijectors that move entries
    "permutation",
    "reshape",
    "reversal",
    "shuffle",
    "squeeze",
    # Layers with conditioners, and their masks
    "coupling",
    "autoregressive",
    "conditional",
    "alternate_mask",
    "checkerboard_mask",
    "half_mask",
    # Scalar maps of layers
    "additive",
    "bounded_affine",
    "rational_quadratic",
    "rational_quadratic_spline",
    "inverse_rational_quadratic_spline",
    # Conditioners
    "perceptron",
    "masked_perceptron",
    "causal_transformer",
    "convolutional",
    "dense",
    # Continuous flows
    "Continuous",
    "continuous",
    "neural_velocity",
    "Transport",
    "transport",
    "transport_loss",
    # Flow matching
    "Examples",
    "examples",
    "matching_loss",
    "reflow_pairs",
    "velocity_denoiser",
    "curvature",
    "bridge_loss",
    "bridge_sde",
    # Interpolants between noise and data
    "Interpolant",
    "interpolant",
    "bridge",
    "GaussianInterpolant",
    "gaussian_interpolant",
    "entropic_covariance",
    # Pairings of noise with data
    "fixed_pairs",
    "independent",
    "optimal_assignment",
    "sinkhorn",
    "sinkhorn_plan",
    "transport_cost",
]


def __dir__() -> list[str]:
    return __all__
