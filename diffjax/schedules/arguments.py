"""Bounds that several constructors of schedules check."""

import numpy as np

from .. import checks
from ..types import Scalar

__all__ = ["LEAST_TIME", "betas_in_order", "interval", "sigmas_in_order"]

LEAST_TIME = float(np.finfo(np.float32).tiny)
"""The least normal number of float32. A lesser time is flushed to 0, where σ = 0."""


def _ordered(low_name, low, high_name, high):
    low, high = checks.positive(low_name, low), checks.positive(high_name, high)
    checks.greater(high_name, high, low_name, low)
    return low, high


def betas_in_order(beta_min: Scalar, beta_max: Scalar) -> tuple[Scalar, Scalar]:
    """Check that 0 < beta_min < beta_max.

    Args:
      beta_min, beta_max: Scalars, which are returned.
    """
    return _ordered("beta_min", beta_min, "beta_max", beta_max)


def sigmas_in_order(sigma_min: Scalar, sigma_max: Scalar) -> tuple[Scalar, Scalar]:
    """Check that 0 < sigma_min < sigma_max, both within [1e-15, 1e15].

    Args:
      sigma_min, sigma_max: Scalars, which are returned.
    """
    sigma_min, sigma_max = _ordered("sigma_min", sigma_min, "sigma_max", sigma_max)
    # Squares and ratios must stay within the range of float32.
    checks.within("sigma_min", sigma_min, 1e-15, 1e15)
    checks.within("sigma_max", sigma_max, 1e-15, 1e15)
    return sigma_min, sigma_max


def interval(t_min: Scalar, t_max: Scalar) -> tuple[Scalar, Scalar]:
    """Check that `LEAST_TIME` ≤ t_min < t_max.

    Args:
      t_min, t_max: Scalars, which are returned.
    """
    t_min, t_max = _ordered("t_min", t_min, "t_max", t_max)
    checks.require(
        checks.is_traced(t_min) or float(t_min) >= LEAST_TIME,
        f"t_min must be at least {LEAST_TIME:.3g}, the least normal number of float32, "
        f"got {t_min}",
    )
    return t_min, t_max
