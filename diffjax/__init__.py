"""Diffusion models, normalizing flows and SDE samplers, with exact ground truth."""

import importlib
from typing import Any

from . import (
    checks,
    ddpm,
    distributions,
    divergences,
    energies,
    flow_maps,
    grids,
    guidance,
    inverse,
    langevin,
    likelihood,
    losses,
    metrics,
    ncsn,
    noise,
    numerics,
    predictions,
    quadrature,
    sampling,
    schedules,
    sde,
    solvers,
    targets,
    tuning,
    types,
)
from .distributions import bits_per_dim, dequantise
from .likelihood import log_prob
from .sampling import encode, interpolate, sample, sample_many

__version__ = "0.2.0.dev0"

_LAZY = ("flows", "networks", "training", "vaes")

__all__ = [
    "bits_per_dim",
    "checks",
    "ddpm",
    "dequantise",
    "distributions",
    "divergences",
    "encode",
    "energies",
    "flow_maps",
    "flows",
    "grids",
    "guidance",
    "interpolate",
    "inverse",
    "langevin",
    "likelihood",
    "log_prob",
    "losses",
    "metrics",
    "ncsn",
    "networks",
    "noise",
    "numerics",
    "predictions",
    "quadrature",
    "sample",
    "sample_many",
    "sampling",
    "schedules",
    "sde",
    "solvers",
    "targets",
    "training",
    "tuning",
    "types",
    "vaes",
]


def __getattr__(name: str) -> Any:
    """Rooms that import flax or orbax are loaded on first use."""
    if name in _LAZY:
        return importlib.import_module(f"diffjax.{name}")
    raise AttributeError(f"module 'diffjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
