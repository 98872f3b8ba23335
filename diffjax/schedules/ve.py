"""Schedules with α = 1: variance exploding, and EDM."""

import jax.numpy as jnp

from ..types import Scalar, pytree
from .arguments import interval, sigmas_in_order
from .derived import of_time


@pytree
class VE:
    """α = 1, σ = σ_min (σ_max/σ_min)^t. See `ve`."""

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
        """1."""
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
    """Variance-exploding schedule: α = 1, σ(t) = σ_min (σ_max/σ_min)^t in data units.

    f = 0, g² = 2 log(σ_max/σ_min) σ². σ_max should exceed the largest distance between data points. Raises ValueError
    unless 0 < sigma_min < sigma_max and 0 < t_min < t_max. Song et al. 2021, eq. 30 (there σ² starts at 0).
    """
    return VE(*sigmas_in_order(sigma_min, sigma_max), *interval(t_min, t_max))


@pytree
class EDM:
    """α = 1, σ = t. See `edm`."""

    t_min: Scalar
    t_max: Scalar

    @of_time
    def alpha(self, t):
        """1."""
        return jnp.ones_like(t)

    @of_time
    def sigma(self, t):
        """t."""
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
    """EDM schedule: α = 1, σ = t, t from sigma_min to sigma_max in data units. f = 0, g² = 2t.

    Raises ValueError unless 0 < sigma_min < sigma_max. Karras et al. 2022, section 3.
    """
    return EDM(*sigmas_in_order(sigma_min, sigma_max))
