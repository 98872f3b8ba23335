"""Langevin chains.

Kernels (unadjusted, Metropolis-adjusted, kinetic, annealed), runs of one chain
or many, estimates of log Z, and diagnostics of convergence.
"""

from .chains import Chains, adapt_step_size, run, run_many
from .densities import score_only, tempered
from .diagnostics import effective_sample_size, r_hat, standard_error
from .kernels import Kernel, StepInfo
from .kinetic import baoab, underdamped
from .normalisers import (
    ImportanceEstimate,
    ThermodynamicEstimate,
    annealed_importance_sampling,
    thermodynamic_integration,
)
from .overdamped import annealed, mala, sgld, ula

__all__ = [
    "Chains",
    "ImportanceEstimate",
    "Kernel",
    "StepInfo",
    "ThermodynamicEstimate",
    "adapt_step_size",
    "annealed",
    "annealed_importance_sampling",
    "baoab",
    "effective_sample_size",
    "mala",
    "r_hat",
    "run",
    "run_many",
    "score_only",
    "sgld",
    "standard_error",
    "tempered",
    "thermodynamic_integration",
    "ula",
    "underdamped",
]


def __dir__() -> list[str]:
    return __all__
