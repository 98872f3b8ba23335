"""Rules that space the times between t_max and t_min."""

import math

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..numerics import float_dtype
from ..schedules import Schedule
from ..types import Array, Scalar
from .times import arguments, between, between_log_snrs, with_ends

__all__ = [
    "angular",
    "beta",
    "exponential",
    "karras",
    "karras_between",
    "log_snr",
    "polyexponential",
    "quadratic",
    "shifted",
    "uniform",
]


# --------------------------------------------------------------- rules in time


@arguments()
def uniform(schedule: Schedule, steps: int) -> Array:
    """Times of even spacing.

        t_i = t_max + (i/N) (t_min − t_max)

    Args:
      schedule: Any schedule.
      steps: N, 1 or more.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Example:
      >>> times = dj.grids.uniform(dj.schedules.rectified_flow(t_max=1.0), 2)
      >>> print(np.asarray(times).round(4))
      [1.     0.5005 0.001 ]
    """
    return between(schedule, steps, lambda u, start, end: start + u * (end - start))


@arguments()
def quadratic(schedule: Schedule, steps: int) -> Array:
    """Times whose square roots have even spacing (Song et al. 2021, DDIM, D.2).

        t_i = (√t_max + (i/N) (√t_min − √t_max))²

    Args:
      schedule: Any schedule.
      steps: N, 1 or more.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Example:
      >>> times = dj.grids.quadratic(dj.schedules.edm(), 2)
      >>> print(np.asarray(times).round(2))
      [80.   20.2   0.  ]
    """

    def time(u, start, end):
        return (start**0.5 + u * (end**0.5 - start**0.5)) ** 2

    return between(schedule, steps, time)


@arguments(a=(checks.positive_up_to, 1e4), b=(checks.positive_up_to, 1e4))
def beta(schedule: Schedule, steps: int, a: float = 0.6, b: float = 0.6) -> Array:
    """Times at the quantiles of a Beta distribution (Lee et al. 2024).

        t_i = t_min + (t_max − t_min) I⁻¹(1 − i/N)

    I is the distribution function I_t(a, b) of Beta(a, b). Below 1 both
    parameters place more steps near both ends.

    Args:
      schedule: Any schedule.
      steps: N, 1 or more.
      a: First parameter of the distribution, positive. Smaller places more
        steps near t_min.
      b: Second parameter, positive. Smaller places more steps near t_max.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Raises:
      ValueError: If a or b is not positive.
      TypeError: If a or b is traced.

    Example:
      >>> times = dj.grids.beta(dj.schedules.rectified_flow(t_max=1.0), 4)
      >>> print(np.asarray(times).round(3))
      [1.    0.824 0.501 0.177 0.001]
    """
    shares = _beta_quantiles(a, b, np.linspace(1, 0, steps + 1))
    return between(schedule, steps, lambda u, start, end: end + shares * (start - end))


def _beta_quantiles(a, b, shares):
    """x with I_x(a, b) = shares by bisection, exact at 0 and 1."""
    low, high = np.zeros(shares.shape), np.ones(shares.shape)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = _beta_distribution(a, b, middle) < shares
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    ends = (shares <= 0) | (shares >= 1)
    return np.where(ends, np.clip(shares, 0.0, 1.0), 0.5 * (low + high))


def _beta_distribution(a, b, x):
    """The regularised incomplete beta function I_x(a, b).

    By its continued fraction (DLMF 8.17.22).

    The fraction converges quickly left of (a + 1) / (a + b + 2). Right of it,
    I_x(a, b) = 1 − I_{1−x}(b, a).
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


# ---------------------------------------------------- rules in the noise level


@arguments(shift=checks.positive)
def shifted(schedule: Schedule, steps: int, shift: float = 3.0) -> Array:
    """The resolution shift of flow models (Esser et al. 2024, equation 23).

        τ′ = s τ / (1 + (s − 1) τ),    τ = σ / (α + σ)

    τ is the time of rectified flow at the same noise ratio, t itself there. It
    is uniform before the shift, between the values that give t_max and t_min
    after it. The shift multiplies σ/α by s. Images of m times more pixels take
    s = √m.

    Args:
      schedule: Any schedule. α(t_max) may be 0.
      steps: N, 1 or more.
      shift: s, positive. 1 is uniform in τ, greater spends more steps at much
        noise.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Raises:
      ValueError: If shift is not positive.

    Example:
      >>> times = dj.grids.shifted(dj.schedules.rectified_flow(t_max=1.0), 2)
      >>> print(np.asarray(times).round(3))
      [1.    0.75  0.001]
    """

    def spacing(xp, u, start, end, shift):
        # in ratios r = σ/α the shift is r → s r, and τ = r/(1 + r) = 1/(1 + e^{λ/2})
        # without overflow at λ = −∞
        before = [1 / (1 + shift * xp.exp(0.5 * end)) for end in (start, end)]
        tau = before[0] + u * (before[1] - before[0])
        with np.errstate(divide="ignore"):  # τ = 1 is λ = −∞
            return 2 * (xp.log1p(-tau) - xp.log(tau) - xp.log(shift))

    return between_log_snrs(schedule, steps, spacing, shift, t_start=schedule.t_max)


@arguments()
def log_snr(schedule: Schedule, steps: int) -> Array:
    """Times of even spacing in the log-SNR λ (Lu et al. 2022, section 3.4).

        λ_i = λ(t_max) + (i/N) (λ(t_min) − λ(t_max))

    Args:
      schedule: Any schedule with a finite log-SNR at t_max, or a chain of zero
        terminal SNR, on which the grid starts at index T − 1.
      steps: N, 1 or more.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Raises:
      ValueError: Where α(t_max) = 0 on a schedule that is no chain.

    Example:
      >>> times = dj.grids.log_snr(dj.schedules.edm(), 2)
      >>> print(np.asarray(times).round(2))
      [80.   0.4  0. ]
    """

    def spacing(xp, u, start, end):
        return start + u * (end - start)

    return between_log_snrs(schedule, steps, spacing)


def exponential(schedule: Schedule, steps: int) -> Array:
    """k-diffusion's name of `log_snr`: σ/α falls geometrically.

    Args:
      schedule: As in `log_snr`.
      steps: N, 1 or more.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Example:
      >>> np.asarray(dj.grids.exponential(dj.schedules.edm(0.01, 1.0), 2)).round(3)
      array([1.  , 0.1 , 0.01], dtype=float32)
    """
    return log_snr(schedule, steps)


@arguments(rho=checks.positive)
def polyexponential(schedule: Schedule, steps: int, rho: Scalar = 1.0) -> Array:
    """k-diffusion's polynomial spacing of log σ/α.

        log s_i = log s_min + (1 − i/N)^ρ (log s_max − log s_min),    s = σ/α

    Args:
      schedule: As in `log_snr`.
      steps: N, 1 or more.
      rho: ρ, positive. 1 is `log_snr`, greater spends more steps at little
        noise.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Raises:
      ValueError: If rho is not positive, or as `log_snr`.

    Example:
      >>> times = dj.grids.polyexponential(dj.schedules.edm(), 2, rho=2.0)
      >>> print(np.asarray(times).round(2))
      [8.e+01 3.e-02 0.e+00]
    """

    def spacing(xp, u, start, end, rho):
        return end + (1 - u) ** rho * (start - end)

    return between_log_snrs(schedule, steps, spacing, rho)


@arguments(rho=checks.positive)
def karras(schedule: Schedule, steps: int, rho: Scalar = 7.0) -> Array:
    """Times of even spacing in (σ/α)^{1/ρ} (Karras et al. 2022, equation 5).

        s_i = (s_max^{1/ρ} + (i/N) (s_min^{1/ρ} − s_max^{1/ρ}))^ρ,    s = σ/α

    The last of the N + 1 times is t_min. The paper's samplers append a step to
    0, see `to_zero`.

    Args:
      schedule: As in `log_snr`.
      steps: N, 1 or more.
      rho: ρ, positive. Greater spends more steps at little noise.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Raises:
      ValueError: If rho is not positive, or as `log_snr`.

    Example:
      >>> times = dj.grids.karras(dj.schedules.edm(), 4)
      >>> print(np.asarray(times).round(2))
      [80.   17.53  2.52  0.17  0.  ]
    """
    return between_log_snrs(schedule, steps, _karras_log_snr, rho)


def _karras_log_snr(xp, u, start, end, rho):
    # σ/α itself may leave the range of float32
    start, end = xp.exp(-0.5 / rho * start), xp.exp(-0.5 / rho * end)
    return -2 * rho * xp.log(start + u * (end - start))


@arguments(rho=checks.positive, start=checks.number, end=checks.number)
def karras_between(
    schedule: Schedule, steps: int, start: Scalar, end: Scalar, *, rho: Scalar = 7.0
) -> Array:
    """The grid of `karras` between two times, which may be traced.

    Args:
      schedule: Any schedule.
      steps: N, 1 or more.
      start: The first time.
      end: The last time, below it.
      rho: As in `karras`.

    Returns:
      Decreasing times (steps + 1,), ends exact.

    Example:
      >>> np.asarray(dj.grids.karras_between(dj.schedules.edm(), 2, 1.0, 0.25)).round(3)
      array([1.   , 0.517, 0.25 ], dtype=float32)
    """
    dtype = float_dtype(start, end)
    u = jnp.linspace(0, 1, steps + 1)
    ends = jnp.stack([jnp.asarray(end, dtype) for end in (start, end)])
    ends = schedules.log_snr(schedule, ends)
    log_snrs = _karras_log_snr(jnp, u, *ends, rho)
    return with_ends(schedules.time_of_log_snr(schedule, log_snrs), start, end)


def _share(name, value):
    return checks.concrete(name, checks.within(name, value, 0.0, 1.0))


@arguments(share=_share)
def angular(schedule: Schedule, steps: int, share: float = 0.5) -> Array:
    """Times of even spacing in a mean of the angle arctan(σ/α) and of the log-SNR.

        u(λ) = share · (φ(λ) − φ_0)/(φ_1 − φ_0) + (1 − share) · (λ − λ_0)/(λ_1 − λ_0)
        φ = arctan e^{−λ/2}

    The angle changes most where signal and noise are of one size, which is
    where the denoiser changes most for data of unit scale. The log-SNR keeps
    steps at both ends. The grid depends on σ/α alone, so that it visits the
    same noise levels on every schedule.

    Args:
      schedule: As in `log_snr`.
      steps: N, 1 or more.
      share: Weight of the angle, in [0, 1]. 0 is `log_snr`.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).

    Raises:
      ValueError: If share lies outside [0, 1], or as `log_snr`.
      TypeError: If share is traced.

    Example:
      >>> times = dj.grids.angular(dj.schedules.edm(), 4)
      >>> print(np.asarray(times).round(2))
      [80.    3.09  0.8   0.15  0.  ]
    """

    def spacing(xp, u, start, end):
        # the inverse of u(λ), interpolated in a table
        table = start + xp.linspace(0, 1, 4097) * (end - start)
        angles = xp.arctan(xp.exp(-0.5 * table))
        angles = (angles - angles[0]) / (angles[-1] - angles[0])
        straight = (table - start) / (end - start)
        return xp.interp(u, share * angles + (1 - share) * straight, table)

    return between_log_snrs(schedule, steps, spacing)
