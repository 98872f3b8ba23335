"""Schedules with α = 1: variance exploding, and EDM."""

import jax.numpy as jnp

from ..types import Scalar, pytree
from .arguments import interval, sigmas_in_order
from .protocol import of_time

__all__ = ["EDM", "VE", "edm", "ve"]


@pytree
class VE:
    """The schedule α = 1, σ = σ_min (σ_max/σ_min)^t, made by `ve`."""

    sigma_min: Scalar
    sigma_max: Scalar
    t_min: Scalar
    t_max: Scalar

    def log_sigma(self, t):
        """log σ(t), linear in t."""
        return jnp.log(self.sigma_min) + t * (
            jnp.log(self.sigma_max) - jnp.log(self.sigma_min)
        )

    @of_time
    def alpha(self, t):
        """One, at all times."""
        return jnp.ones_like(t)

    @of_time
    def sigma(self, t):
        """σ_min (σ_max/σ_min)^t."""
        return jnp.exp(self.log_sigma(t))

    def log_snr(self, t):
        """−2 log σ."""
        return -2 * self.log_sigma(t)

    def time_of_log_snr(self, log_snr):
        """(−λ/2 − log σ_min) / log(σ_max/σ_min)."""
        return (-0.5 * log_snr - jnp.log(self.sigma_min)) / (
            jnp.log(self.sigma_max) - jnp.log(self.sigma_min)
        )


def ve(
    sigma_min: Scalar = 0.01,
    sigma_max: Scalar = 50.0,
    t_min: Scalar = 1e-5,
    t_max: Scalar = 1.0,
) -> VE:
    """Variance-exploding schedule.

        α = 1,    σ = σ_min (σ_max/σ_min)^t,    f = 0,    g² = 2 log(σ_max/σ_min) σ²

    σ_max should exceed the largest distance between data points.

    Args:
      sigma_min: σ at t = 0, (), in data units.
      sigma_max: σ at t = 1, (), in data units.
      t_min: The least time, ().
      t_max: The greatest time, ().

    Returns:
      The schedule on [t_min, t_max].

    Raises:
      ValueError: Unless 0 < sigma_min < sigma_max and 0 < t_min < t_max.

    References:
      Song et al. 2021, equation 30. There the variance starts at 0.

    Example:
      >>> round(float(dj.schedules.ve(0.01, 50.0).sigma(1.0)), 4)
      50.0
    """
    return VE(*sigmas_in_order(sigma_min, sigma_max), *interval(t_min, t_max))


@pytree
class EDM:
    """The schedule α = 1, σ = t, made by `edm`."""

    t_min: Scalar
    t_max: Scalar

    @of_time
    def alpha(self, t):
        """One, at all times."""
        return jnp.ones_like(t)

    @of_time
    def sigma(self, t):
        """The time t itself."""
        return t

    def log_snr(self, t):
        """−2 log t."""
        return -2 * jnp.log(t)

    def time_of_log_snr(self, log_snr):
        """e^{−λ/2}."""
        return jnp.exp(-0.5 * log_snr)

    def diffusion_coefficient(self, t):
        """√(2t)."""
        return jnp.sqrt(2 * t)


def edm(sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0) -> EDM:
    """EDM's schedule, whose time is the noise level.

        α = 1,    σ = t,    f = 0,    g² = 2t

    Args:
      sigma_min: The least noise level and time, (), in data units.
      sigma_max: The greatest noise level and time, (), in data units.

    Returns:
      The schedule on [sigma_min, sigma_max].

    Raises:
      ValueError: Unless 0 < sigma_min < sigma_max.

    References:
      Karras et al. 2022, section 3.

    Example:
      >>> float(dj.schedules.edm().sigma(0.5))
      0.5
    """
    return EDM(*sigmas_in_order(sigma_min, sigma_max))
