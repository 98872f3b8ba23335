"""Bounds of guidance: an interval of times in which it acts, and a range of values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, grids, schedules
from ..schedules import Schedule
from ..types import Array, Denoiser, Scalar, pytree
from . import arguments
from .arguments import denoised_at

__all__ = [
    "DynamicThreshold",
    "Limited",
    "Thresholded",
    "dynamic_threshold",
    "limited",
    "static_threshold",
]


@pytree
class Limited:
    """One denoiser for low < t ≤ high, another at other times. See `limited`."""

    guided: Any
    otherwise: Any
    low: Any
    high: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The active denoiser's D, shape of x."""

        def call(denoiser):
            return lambda x, t: denoised_at(denoiser, x, t, *condition).astype(x.dtype)

        active = (self.low < t) & (t <= self.high)
        return jax.lax.cond(active, call(self.guided), call(self.otherwise), x, t)


@checks.arguments(
    schedule=schedules.argument, guided=arguments.denoiser, otherwise=arguments.denoiser
)
def limited(
    schedule: Schedule,
    guided: Denoiser,
    otherwise: Denoiser,
    interval: tuple[Scalar, Scalar],
) -> Limited:
    """Guidance in a limited interval of times (Kynkäänniemi et al. 2024, section 3).

    The result calls `guided` for t_low < t ≤ t_high, and `otherwise` at all
    other times. Only one of them is evaluated in a step, as long as the
    examples of a batch share t. With an adaptive solver they do not, and both
    are.

    Args:
      schedule: The schedule that t belongs to.
      guided: The denoiser inside the interval, (x, t) -> D.
      otherwise: The denoiser outside, as a rule the conditional one without
        guidance.
      interval: (t_low, t_high), times of the schedule. On an EDM schedule t is
        σ.

    Returns:
      A denoiser.

    Raises:
      TypeError: If a denoiser cannot be called or the interval is no pair.
      ValueError: Unless t_min ≤ t_low < t_high ≤ t_max.

    Example:
      >>> blurred = lambda x, t: 0.9 * denoiser(x, t)  # stands for a smaller network
      >>> guided = dj.guidance.autoguidance(denoiser, blurred, 2.0)
      >>> guided = dj.guidance.limited(schedule, guided, denoiser, (0.2, 0.7))
      >>> bool((guided(jnp.ones(2), 0.9) == denoiser(jnp.ones(2), 0.9)).all())
      True
    """
    low, high = _interval(schedule, interval)
    return Limited(guided, otherwise, low, high)


def _interval(schedule, interval):
    interval = checks.pair("interval", interval, "(t_low, t_high)")
    low, high = map(checks.number, ("t_low", "t_high"), interval)
    checks.greater("t_high", high, "t_low", low)
    if not checks.is_traced(low, high):
        grids.check_interval("interval", np.float32([low, high]), schedule)
    return low, high


@pytree
class Thresholded:
    """The denoiser clip(D, low, high), see `static_threshold`."""

    denoiser: Any
    low: Any
    high: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The clipped D, shape of x."""
        denoised = denoised_at(self.denoiser, x, t, *condition)
        return jnp.clip(denoised, self.low, self.high)


@checks.arguments(low=checks.number, high=checks.number, denoiser=arguments.denoiser)
def static_threshold(
    denoiser: Denoiser, low: Scalar = -1.0, high: Scalar = 1.0
) -> Thresholded:
    """Static thresholding (Saharia et al. 2022, Imagen, section 2.3).

        clip(D, low, high)

    Noise and score follow from the clipped D.

    Args:
      denoiser: (x, t) -> D.
      low: The least value of the data.
      high: The greatest value of the data.

    Returns:
      A denoiser.

    Raises:
      TypeError: If the denoiser cannot be called.
      ValueError: Unless low < high.

    Example:
      >>> clipped = dj.guidance.static_threshold(denoiser, -1.0, 1.0)
      >>> float(clipped(jnp.array([9.0, 0.0]), 0.1).max())
      1.0
    """
    checks.greater("high", high, "low", low)
    return Thresholded(denoiser, low, high)


@pytree
class DynamicThreshold:
    """The denoiser clip(D, −s, s) · bound/s, see `dynamic_threshold`."""

    denoiser: Any
    quantile: Any
    bound: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The thresholded D, shape of x."""
        denoised = denoised_at(self.denoiser, x, t, *condition)
        reach = jnp.maximum(jnp.quantile(jnp.abs(denoised), self.quantile), self.bound)
        return jnp.clip(denoised, -reach, reach) * (self.bound / reach)


@checks.arguments(
    quantile=(checks.within, 0, 1), bound=checks.positive, denoiser=arguments.denoiser
)
def dynamic_threshold(
    denoiser: Denoiser, quantile: Scalar = 0.995, bound: Scalar = 1.0
) -> DynamicThreshold:
    """Dynamic thresholding (Saharia et al. 2022, Imagen, section 2.3).

        clip(D, −s, s) · bound/s,    s = max(quantile of |D|, bound)

    Args:
      denoiser: (x, t) -> D.
      quantile: In [0, 1]. The quantile is taken over the entries of the
        example.
      bound: The data lie in [−bound, bound].

    Returns:
      A denoiser.

    Raises:
      TypeError: If the denoiser cannot be called.
      ValueError: Unless 0 ≤ quantile ≤ 1 and bound > 0.

    Example:
      >>> bounded = dj.guidance.dynamic_threshold(denoiser, 0.9, bound=1.0)
      >>> bool((abs(bounded(jnp.array([9.0, 0.0]), 0.1)) <= 1).all())
      True
    """
    return DynamicThreshold(denoiser, quantile, bound)
