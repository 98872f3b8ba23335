"""Rules that space the times between t_max and t_min."""

import math

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..schedules import Schedule
from ..types import Array, ArrayLike, Scalar
from .times import between, between_log_snrs


def uniform(schedule: Schedule, steps: int) -> Array:
    """t_i = t_max + (i / N)(t_min − t_max), shape (steps + 1,)."""
    return between(schedule, steps, lambda u, start, end: start + u * (end - start))


def quadratic(schedule: Schedule, steps: int) -> Array:
    """√t uniform: t_i = (√t_max + (i / N)(√t_min − √t_max))², shape (steps + 1,).

    Song et al. 2021 (DDIM), appendix D.2.
    """
    return between(
        schedule,
        steps,
        lambda u, start, end: (start**0.5 + u * (end**0.5 - start**0.5)) ** 2,
    )


def beta(schedule: Schedule, steps: int, a: float = 0.6, b: float = 0.6) -> Array:
    """Times at the quantiles of a Beta distribution: t_i = t_min + (t_max − t_min) I⁻¹(1 − i/N; a, b).

    Below 1 both parameters place more steps near both ends. Lee et al. 2024.

    Args:
      schedule: Any schedule.
      steps: N, 1 or more.
      a: First parameter of the distribution, positive; smaller places more steps near t_min.
      b: Second parameter, positive; smaller places more steps near t_max.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Raises:
      ValueError: If a or b is not positive.
      TypeError: If a or b is traced.

    Example:
      >>> print(np.asarray(dj.grids.beta(dj.schedules.rectified_flow(t_max=1.0), 4)).round(3))
      [1.    0.824 0.501 0.177 0.001]
    """
    a, b = (
        checks.concrete(name, checks.within(name, checks.positive(name, value), 0, 1e4))
        for name, value in (("a", a), ("b", b))
    )
    steps = checks.integer("steps", steps, minimum=1)
    shares = _beta_quantiles(a, b, np.linspace(1, 0, steps + 1))
    return between(schedule, steps, lambda u, start, end: end + shares * (start - end))


def _beta_quantiles(a, b, shares):
    """x with I(x; a, b) = shares, float64 on the host: bisection on [0, 1] to its rounding, and exact at 0 and 1."""
    low, high = np.zeros(shares.shape), np.ones(shares.shape)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = _beta_distribution(a, b, middle) < shares
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(
        (shares <= 0) | (shares >= 1), np.clip(shares, 0.0, 1.0), 0.5 * (low + high)
    )


def _beta_distribution(a, b, x):
    """I(x; a, b), the regularised incomplete beta function, by its continued fraction (DLMF 8.17.22) on the host.

    The fraction converges quickly left of (a + 1) / (a + b + 2); right of it, I(x; a, b) = 1 − I(1 − x; b, a).
    """
    left = x < (a + 1) / (a + b + 2)
    p, q, x = np.where(left, a, b), np.where(left, b, a), np.where(left, x, 1 - x)
    fraction = np.ones_like(x)
    for n in range(int(30 + 4 * max(a, b) ** 0.5), 0, -1):
        m = n // 2
        if n % 2:
            term = -(p + m) * (p + q + m) / ((p + 2 * m) * (p + 2 * m + 1))
        else:
            term = m * (q - m) / ((p + 2 * m - 1) * (p + 2 * m))
        fraction = 1 + term * x / fraction
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    with np.errstate(divide="ignore"):  # the density at the ends: exp(−∞) = 0
        value = np.exp(p * np.log(x) + q * np.log1p(-x) - log_beta) / (p * fraction)
    return np.where(left, value, 1 - value)


def shifted(schedule: Schedule, steps: int, shift: float = 3.0) -> Array:
    """The resolution shift of flow models, on any schedule: σ/α multiplied by `shift`.

        τ′ = s τ / (1 + (s − 1) τ),    τ = σ / (α + σ)

    τ is the time of rectified flow at the same noise ratio, t itself there. It is uniform before the shift, between the
    values that give t_max and t_min after it. Images of m times more pixels take s = √m. Esser et al. 2024, equation
    23.

    Args:
      schedule: Any schedule; α(t_max) may be 0.
      steps: N, 1 or more.
      shift: s, positive; 1 is uniform in τ, greater spends more steps at much noise.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Raises:
      ValueError: If shift is not positive.

    Example:
      >>> print(np.asarray(dj.grids.shifted(dj.schedules.rectified_flow(t_max=1.0), 2)).round(3))
      [1.    0.75  0.001]
    """
    shift = checks.positive("shift", shift)

    def level(xp, u, start, end, shift):
        # in ratios r = σ/α, the shift is r → s r, and τ = r/(1 + r) = 1/(1 + e^{λ/2}) without overflow at λ = −∞
        before = [1 / (1 + shift * xp.exp(0.5 * level)) for level in (start, end)]
        tau = before[0] + u * (before[1] - before[0])
        with np.errstate(divide="ignore"):  # τ = 1 is λ = −∞
            return 2 * (xp.log1p(-tau) - xp.log(tau) - xp.log(shift))

    return between_log_snrs(
        schedule, steps, level, shift, t_start=schedules.check(schedule).t_max
    )


def log_snr(schedule: Schedule, steps: int) -> Array:
    """λ(t_i) uniform between λ(t_max) and λ(t_min), shape (steps + 1,). Lu et al. 2022, section 3.4.

    On a chain of zero terminal SNR it starts at index T − 1. Raises ValueError where λ(t_max) of another schedule is
    not finite (α = 0 there).
    """
    return between_log_snrs(
        schedule, steps, lambda xp, u, start, end: start + u * (end - start)
    )


def exponential(schedule: Schedule, steps: int) -> Array:
    """σ/α falling geometrically: another name of `log_snr`, k-diffusion's."""
    return log_snr(schedule, steps)


def polyexponential(schedule: Schedule, steps: int, rho: Scalar = 1.0) -> Array:
    """log s_i = log s_min + (1 − i / N)^ρ (log s_max − log s_min) for s = σ/α, shape (steps + 1,).

    rho: greater spends more steps at little noise; 1 is `log_snr`. Raises ValueError unless rho > 0. Where α(t_max) = 0
    it does as `log_snr`. k-diffusion's grid of this name.
    """
    rho = checks.positive("rho", rho)
    return between_log_snrs(
        schedule,
        steps,
        lambda xp, u, start, end, rho: end + (1 - u) ** rho * (start - end),
        rho,
    )


def karras(schedule: Schedule, steps: int, rho: Scalar = 7.0) -> Array:
    """s = σ/α with s^{1/ρ} uniform, shape (steps + 1,): s_i = (s_max^{1/ρ} + (i / N)(s_min^{1/ρ} − s_max^{1/ρ}))^ρ.

    rho: greater spends more steps at little noise. Raises ValueError unless rho > 0. Where α(t_max) = 0 it
    does as `log_snr`. Karras et al. 2022, eq. 5, with the last of the N + 1 times at t_min.
    """
    rho = checks.positive("rho", rho)
    return between_log_snrs(schedule, steps, _karras_levels, rho)


def karras_levels(u: ArrayLike, start: Scalar, end: Scalar, rho: Scalar = 7.0) -> Array:
    """The log-SNR at fractions u in [0, 1], shape of u, between log-SNRs start and end, with (σ/α)^{1/ρ} linear in
    u.
    """
    u, rho = checks.real_array("u", u), checks.positive("rho", rho)
    return _karras_levels(
        jnp, u, checks.number("start", start), checks.number("end", end), rho
    )


def _karras_levels(xp, u, start, end, rho):
    start, end = (
        xp.exp(-0.5 / rho * start),
        xp.exp(-0.5 / rho * end),
    )  # σ/α itself may leave the range of float32
    return -2 * rho * xp.log(start + u * (end - start))


def angular(schedule: Schedule, steps: int, share: float = 0.5) -> Array:
    """Times equally spaced in a mean of the angle arctan(σ/α) and of the log-SNR.

        u(λ) = share · (φ(λ) − φ_0)/(φ_1 − φ_0) + (1 − share) · (λ − λ_0)/(λ_1 − λ_0),    φ = arctan e^{−λ/2}

    The angle changes most where signal and noise are of one size, which is where the denoiser changes most for data of
    unit scale. The log-SNR keeps steps at both ends. The grid depends on σ/α alone, so that it is the same path of
    noise levels on every schedule.

    Args:
      schedule: Any schedule with a finite log-SNR at t_max, or a chain of zero terminal SNR, which starts at T − 1.
      steps: N, 1 or more.
      share: Weight of the angle, in [0, 1]. 0 is `log_snr`.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Raises:
      ValueError: If share lies outside [0, 1], or where α(t_max) = 0 on a schedule that is no chain.
      TypeError: If share is traced.

    Example:
      >>> print(np.asarray(dj.grids.angular(dj.schedules.edm(), 4)).round(2))
      [80.    3.09  0.8   0.15  0.  ]
    """
    share = checks.concrete("share", checks.within("share", share, 0.0, 1.0))

    def level(xp, u, start, end):
        levels = start + xp.linspace(0, 1, 4097) * (end - start)
        angles = xp.arctan(xp.exp(-0.5 * levels))
        angles = (angles - angles[0]) / (angles[-1] - angles[0])
        return xp.interp(
            u, share * angles + (1 - share) * (levels - start) / (end - start), levels
        )

    return between_log_snrs(schedule, steps, level)
