"""Variance-preserving schedules with linear β and of cosine shape, and sub-VP."""

import jax
import jax.numpy as jnp

from .. import checks
from ..numerics import log_expm1
from ..types import Scalar, pytree
from .arguments import betas_in_order, interval
from .protocol import of_time

__all__ = ["SubVP", "VPCosine", "VPLinear", "sub_vp", "vp_cosine", "vp_linear"]


@pytree
class VPLinear:
    """The variance-preserving schedule with linear β, made by `vp_linear`."""

    beta_min: Scalar
    beta_max: Scalar
    t_min: Scalar
    t_max: Scalar

    def log_alpha(self, t):
        """log α(t) = −½∫β."""
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    @of_time
    def alpha(self, t):
        """e^{−½∫β}."""
        return jnp.exp(self.log_alpha(t))

    @of_time
    def sigma(self, t):
        """√(1 − e^{−∫β})."""
        # √(1 − α²) as written is off by 1 % at t = 1e-5 in float32.
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(t)))

    def log_snr(self, t):
        """−log(e^{∫β} − 1)."""
        return -log_expm1(-2 * self.log_alpha(t))

    def time_of_log_snr(self, log_snr):
        """t = 2L / (β_min + √(β_min² + 2ΔβL)), L = softplus(−λ) = ∫β."""
        return _time_of_integrated_beta(self, jax.nn.softplus(-log_snr))

    def drift_coefficient(self, t):
        """−½β(t)."""
        return -0.5 * self.beta(t)

    def diffusion_coefficient(self, t):
        """√β(t)."""
        return jnp.sqrt(self.beta(t))

    def beta(self, t):
        """β(t) = β_min + t(β_max − β_min)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)


def vp_linear(
    beta_min: Scalar = 0.1,
    beta_max: Scalar = 20.0,
    t_min: Scalar = 1e-5,
    t_max: Scalar = 1.0,
) -> VPLinear:
    """Variance-preserving schedule with linear β (Song et al. 2021, equations 32–33).

        β = β_min + t (β_max − β_min),    f = −½β,    g² = β
        log α = −¼ (β_max − β_min) t² − ½ β_min t,    σ² = 1 − α²

    Args:
      beta_min: β at t = 0, ().
      beta_max: β at t = 1, ().
      t_min: The least time, ().
      t_max: The greatest time, ().

    Returns:
      The schedule on [t_min, t_max].

    Raises:
      ValueError: Unless 0 < beta_min < beta_max and 0 < t_min < t_max.

    Example:
      >>> schedule = dj.schedules.vp_linear()
      >>> float(schedule.alpha(0.5) ** 2 + schedule.sigma(0.5) ** 2)
      1.0
    """
    return VPLinear(*betas_in_order(beta_min, beta_max), *interval(t_min, t_max))


@pytree
class SubVP:
    """The schedule with log α of `vp_linear` and σ = 1 − α², made by `sub_vp`."""

    beta_min: Scalar
    beta_max: Scalar
    t_min: Scalar
    t_max: Scalar

    log_alpha = VPLinear.log_alpha
    alpha = VPLinear.alpha
    beta = VPLinear.beta
    drift_coefficient = VPLinear.drift_coefficient

    @of_time
    def sigma(self, t):
        """1 − e^{−∫β}, a standard deviation."""
        return -jnp.expm1(2 * self.log_alpha(t))

    def time_of_log_snr(self, log_snr):
        """−log α = asinh(e^{−λ/2} / 2), since α² + e^{−λ/2} α = 1."""
        return _time_of_integrated_beta(
            self, 2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * log_snr))
        )

    def diffusion_coefficient(self, t):
        """√(β(t)(1 − e^{−2∫β}))."""
        return jnp.sqrt(-self.beta(t) * jnp.expm1(4 * self.log_alpha(t)))


def sub_vp(
    beta_min: Scalar = 0.1,
    beta_max: Scalar = 20.0,
    t_min: Scalar = 1e-5,
    t_max: Scalar = 1.0,
) -> SubVP:
    """Sub-VP schedule (Song et al. 2021, equations 27–29).

        α of `vp_linear`,    σ = 1 − α²,    f = −½β,    g² = β (1 − e^{−2∫β})

    σ is a standard deviation, below that of VP. Towards t = 0 it falls like t,
    not like √t.

    Args:
      beta_min: β at t = 0, ().
      beta_max: β at t = 1, ().
      t_min: The least time, ().
      t_max: The greatest time, ().

    Returns:
      The schedule on [t_min, t_max].

    Raises:
      ValueError: Unless 0 < beta_min < beta_max and 0 < t_min < t_max.

    Example:
      >>> dj.schedules.sub_vp().sigma(0.5) < dj.schedules.vp_linear().sigma(0.5)
      Array(True, dtype=bool)
    """
    return SubVP(*betas_in_order(beta_min, beta_max), *interval(t_min, t_max))


def _time_of_integrated_beta(schedule, integral):
    # The root t of β_min t + ½Δβ t² = ∫β, in the form that does not cancel. An
    # infinite integral would give NaN. 1e20 lies beyond any t_max, to which it
    # is then clipped.
    integral = jnp.minimum(integral, 1e20)
    beta_min, spread = schedule.beta_min, schedule.beta_max - schedule.beta_min
    return 2 * integral / (beta_min + jnp.sqrt(beta_min**2 + 2 * spread * integral))


@pytree
class VPCosine:
    """The cosine schedule, made by `vp_cosine`."""

    offset: Scalar
    t_min: Scalar
    t_max: Scalar

    def _angles(self, t):
        quarter_turn = 0.5 * jnp.pi / (1 + self.offset)
        return quarter_turn * t, quarter_turn * self.offset

    @of_time
    def alpha(self, t):
        """cos(a) / cos(a_0), with a the angle at t and a_0 that at 0."""
        # For t > ½ as the sine of π/2 − a: 1 − t is exact there, while a is
        # rounded.
        turned, start = self._angles(t)
        left = 0.5 * jnp.pi / (1 + self.offset) * (1 - t)
        return jnp.where(t > 0.5, jnp.sin(left), jnp.cos(start + turned)) / jnp.cos(
            start
        )

    @of_time
    def sigma(self, t):
        """√(1 − α²) = √(sin(a + a_0) sin(a − a_0)) / cos(a_0)."""
        # The second form does not cancel where α is close to 1.
        turned, start = self._angles(t)
        return jnp.sqrt(jnp.sin(2 * start + turned) * jnp.sin(turned)) / jnp.cos(start)


def vp_cosine(
    offset: Scalar = 0.008, t_min: Scalar = 1e-5, t_max: Scalar = 0.9946
) -> VPCosine:
    """Variance-preserving cosine schedule (Nichol & Dhariwal 2021, equation 17).

        α = cos((t + s)/(1 + s) · π/2) / cos(s/(1 + s) · π/2),    σ² = 1 − α²

    α falls to 0 at t = 1, where f and g² diverge, so t_max stays below 1. The
    default 0.9946 is that of Lu et al. 2022, appendix D.3.

    Args:
      offset: s, ().
      t_min: The least time, ().
      t_max: The greatest time, ().

    Returns:
      The schedule on [t_min, t_max].

    Raises:
      ValueError: Unless offset > 0 and 0 < t_min < t_max < 1.

    Example:
      >>> round(float(dj.schedules.vp_cosine().alpha(0.5)), 4)
      0.7027
    """
    t_min, t_max = interval(t_min, t_max)
    checks.require(
        checks.is_traced(t_max) or t_max < 1,
        f"t_max must be below 1, where α = 0, got {t_max}",
    )
    return VPCosine(checks.positive("offset", offset), t_min, t_max)
