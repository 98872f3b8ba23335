"""Tables of β for the discrete chain, in float64 on the host."""

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..schedules import Schedule, argument

__all__ = [
    "betas_of",
    "constant_betas",
    "cosine_betas",
    "linear_betas",
    "sigmoid_betas",
]


_STEPS = (checks.integer, 2)
_FRACTION = checks.optional(checks.between, 0, 1)


@checks.arguments(steps=_STEPS, first=_FRACTION, last=_FRACTION)
def linear_betas(
    steps: int, first: float | None = None, last: float | None = None
) -> np.ndarray:
    """Betas that rise in equal steps (Ho et al. 2020, section 4).

    Args:
      steps: T, 2 or more.
      first: β_1, in (0, 1). Default 0.1/T, the paper's 1e-4 at its 1000 steps.
      last: β_T, in (0, 1). Default 20/T, the paper's 0.02 at 1000 steps, but
        at most 0.999. Both defaults scale with 1/T so that every length leaves
        about the same signal: √ᾱ_T is 0.0064 at 1000 steps and 0.0045 at 100.

    Returns:
      (steps,) in float64, for `schedules.from_betas`.

    Raises:
      ValueError: If steps is below 2, or an end lies outside (0, 1).

    Example:
      >>> dj.ddpm.linear_betas(1000)[[0, -1]].tolist()
      [0.0001, 0.02]
    """
    first, last = _ends(steps, first, last)
    return np.linspace(first, last, steps)


@checks.arguments(steps=_STEPS, offset=checks.positive, clip=(checks.between, 0, 1))
def cosine_betas(steps: int, offset: float = 0.008, clip: float = 0.999) -> np.ndarray:
    """Cosine betas (Nichol & Dhariwal 2021, equation 17).

        β_t = min(1 − f(t/T)/f((t−1)/T), clip)
        f(u) = cos²(½π (u + offset)/(1 + offset))

    ᾱ_t is f(t/T)/f(0) up to the clipping, which keeps the last β below 1.

    Args:
      steps: T, 2 or more.
      offset: Positive.
      clip: The greatest β, in (0, 1).

    Returns:
      (steps,) in float64, for `schedules.from_betas`.

    Raises:
      ValueError: For fewer than 2 steps, an offset that is not positive, or a
        clip outside (0, 1).

    Example:
      >>> dj.ddpm.cosine_betas(4).shape
      (4,)
    """
    f = (
        np.cos(0.5 * np.pi * (np.arange(steps + 1) / steps + offset) / (1 + offset))
        ** 2
    )
    return np.minimum(1 - f[1:] / f[:-1], clip)


@checks.arguments(steps=_STEPS, first=_FRACTION, last=_FRACTION, reach=checks.positive)
def sigmoid_betas(
    steps: int,
    first: float | None = None,
    last: float | None = None,
    reach: float = 6.0,
) -> np.ndarray:
    """Betas along a sigmoid (Xu et al. 2022, appendix).

        β = first + (last − first) sigmoid(z)

    z rises from −reach to reach in equal steps.

    Args:
      steps: T, 2 or more.
      first: Lower limit of β, in (0, 1). Default 0.1/T.
      last: Upper limit of β, in (0, 1). Default 20/T, at most 0.999. See
        `linear_betas` for the scaling.
      reach: Positive. β_1 and β_T come within a share sigmoid(−reach) of the
        limits.

    Returns:
      (steps,) in float64, for `schedules.from_betas`.

    Raises:
      ValueError: If steps is below 2, a limit lies outside (0, 1), or reach is
        not positive.
    """
    first, last = _ends(steps, first, last)
    z = np.linspace(-1, 1, steps) * reach
    return first + (last - first) / (1 + np.exp(-z))


@checks.arguments(steps=_STEPS, beta=_FRACTION)
def constant_betas(steps: int, beta: float | None = None) -> np.ndarray:
    """The same β at every step.

    Args:
      steps: T, 2 or more.
      beta: In (0, 1). Default 20/T, at most 0.999, which leaves √ᾱ_T near
        e⁻¹⁰.

    Returns:
      (steps,) in float64, for `schedules.from_betas`.

    Raises:
      ValueError: If steps is below 2 or beta lies outside (0, 1).
    """
    return np.full(steps, _scaled(0.02, steps) if beta is None else beta, np.float64)


@checks.arguments(schedule=argument, steps=_STEPS)
def betas_of(schedule: Schedule, steps: int) -> np.ndarray:
    """Betas of a variance-preserving schedule (Song et al. 2021, appendix B).

        β_i = 1 − ᾱ(i/T)/ᾱ((i − 1)/T)

    The chain of `schedules.from_betas` then has the schedule's log-SNR at t =
    i/T, so that it tends to its SDE.

    Args:
      schedule: A schedule with α² + σ² = 1, t_max = 1 and ᾱ(0) = 1.
      steps: T, 2 or more.

    Returns:
      (steps,) in float64.

    Raises:
      ValueError: For fewer than 2 steps, t_max ≠ 1, or a schedule with α² + σ²
        ≠ 1.

    Example:
      >>> dj.ddpm.betas_of(dj.schedules.vp_linear(), 10).shape
      (10,)
    """
    t = np.arange(1, steps + 1) / steps
    # A step changes log ᾱ by about 1/T, which float32's rounding would blur.
    with jax.enable_x64(True):
        alpha, sigma = (
            np.asarray(f(jnp.asarray(t)), np.float64)
            for f in (schedule.alpha, schedule.sigma)
        )
    end, gap = float(schedule.t_max), np.max(np.abs(alpha**2 + sigma**2 - 1))
    checks.require(end == 1, f"schedule must have t_max = 1, got {end}")
    checks.require(gap <= 1e-6, f"schedule must have α² + σ² = 1, is off by {gap}")
    # 1 − ᾱ_i/ᾱ_{i−1} through log ᾱ: the ratio is near 1 for small steps.
    return -np.expm1(np.diff(2 * np.log(alpha), prepend=0.0))


def _ends(steps, first, last):
    """Ends of a rising table, by default scaled 1e-4 and 0.02."""
    return (
        _scaled(1e-4, steps) if first is None else first,
        _scaled(0.02, steps) if last is None else last,
    )


def _scaled(beta, steps):
    """A β made for 1000 steps at another number of them. Σβ stays below the limit."""
    return min(beta * (1000 / steps), 0.999)
