"""Divergences between densities in nats, by quadrature and by samples, and fits of the
nearest mixture of Gaussians.
"""

from .fits import (
    FittedMixture,
    fit_forward,
    fit_forward_by_samples,
    fit_reverse,
    fit_reverse_by_samples,
    moment_matched,
)
from .measures import (
    Estimate,
    fisher_by_quadrature,
    fisher_by_samples,
    jensen_shannon_by_quadrature,
    jensen_shannon_by_samples,
    kl_by_quadrature,
    kl_by_samples,
)

__all__ = [
    "Estimate",
    "FittedMixture",
    "fisher_by_quadrature",
    "fisher_by_samples",
    "fit_forward",
    "fit_forward_by_samples",
    "fit_reverse",
    "fit_reverse_by_samples",
    "jensen_shannon_by_quadrature",
    "jensen_shannon_by_samples",
    "kl_by_quadrature",
    "kl_by_samples",
    "moment_matched",
]


def __dir__() -> list[str]:
    return __all__
