"""Langevin chains: kernels (unadjusted, Metropolis-adjusted, kinetic, annealed), runs of many, log Z, diagnostics."""

from .chains import Chains, adapt_step_size, run, run_many
from .densities import score_only, tempered
from .diagnostics import effective_sample_size, r_hat, standard_error
from .kernels import (
    Kernel,
    StepInfo,
    annealed,
    baoab,
    mala,
    sgld,
    ula,
    underdamped,
)
from .normalisers import (
    ImportanceEstimate,
    ThermodynamicEstimate,
    annealed_importance_sampling,
    thermodynamic_integration,
)

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
