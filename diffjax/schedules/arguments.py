"""Bounds that factories of schedules check alike."""

import numpy as np

from .. import checks

LEAST_TIME = float(np.finfo(np.float32).tiny)
"""Below the least normal number of float32 a time is flushed to 0, where σ = 0."""


def _ordered(low_name, low, high_name, high):
    low, high = checks.positive(low_name, low), checks.positive(high_name, high)
    checks.greater(high_name, high, low_name, low)
    return low, high


def betas_in_order(beta_min, beta_max):
    """(beta_min, beta_max), refused unless 0 < beta_min < beta_max."""
    return _ordered("beta_min", beta_min, "beta_max", beta_max)


def sigmas_in_order(sigma_min, sigma_max):
    """(sigma_min, sigma_max), refused unless 0 < sigma_min < sigma_max."""
    sigma_min, sigma_max = _ordered("sigma_min", sigma_min, "sigma_max", sigma_max)
    checks.within("sigma_min", sigma_min, 1e-15, 1e15)
    checks.within(
        "sigma_max", sigma_max, 1e-15, 1e15
    )  # squares and ratios must stay within float32
    return sigma_min, sigma_max


def interval(t_min, t_max):
    """(t_min, t_max). Raises ValueError unless `LEAST_TIME` ≤ t_min < t_max."""
    t_min, t_max = _ordered("t_min", t_min, "t_max", t_max)
    if not checks.is_traced(t_min) and float(t_min) < LEAST_TIME:
        raise ValueError(
            f"t_min must be at least {LEAST_TIME:.3g}, the least normal number of float32, got {t_min}"
        )
    return t_min, t_max
