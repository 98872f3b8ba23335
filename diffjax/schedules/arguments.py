"""Bounds that factories of schedules check alike."""

from .. import checks


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
    checks.within("sigma_max", sigma_max, 1e-15, 1e15)  # squares and ratios must stay within float32
    return sigma_min, sigma_max


def interval(t_min, t_max):
    """(t_min, t_max), refused unless 0 < t_min < t_max."""
    return _ordered("t_min", t_min, "t_max", t_max)
