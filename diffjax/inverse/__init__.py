"""Inverse problems: x from y = A x + τ n, by denoisers of the posterior for any solver.

`exact_posterior` is the truth for a mixture. Every other method approximates
the posterior. Some are exact on some Gaussians, and the tests state how far
off they are on others.
"""

from .exact import exact_posterior
from .guided import dps, dps_steps, gaussian_variance, pigdm
from .operators import (
    LinearOperator,
    colourisation,
    downsampling,
    inpainting,
    linear_operator,
    matrix,
)
from .replaced import repaint, replacement
from .soft import release_mask, soft_inpainting, trust_mask

__all__ = [
    "LinearOperator",
    "colourisation",
    "downsampling",
    "dps",
    "dps_steps",
    "exact_posterior",
    "gaussian_variance",
    "inpainting",
    "linear_operator",
    "matrix",
    "pigdm",
    "release_mask",
    "repaint",
    "replacement",
    "soft_inpainting",
    "trust_mask",
]


def __dir__() -> list[str]:
    return __all__
