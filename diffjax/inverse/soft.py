"""Inpainting with a soft mask: how far each entry follows the observation."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..guidance import arguments
from ..schedules import Schedule
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    Scalar,
    as_one_program,
    as_pytree_callable,
    pytree,
)

__all__ = [
    "ReleaseMask",
    "SoftInpainted",
    "TrustMask",
    "release_mask",
    "soft_inpainting",
    "trust_mask",
]


@pytree
class SoftInpainted:
    """The denoiser D + m(t) (y − D), see `soft_inpainting`."""

    denoiser: Any
    y: Any
    mask: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The blended D, shape of x. A condition is passed to the denoiser."""
        checks.one_of_shapes("x", x, [jnp.shape(self.y)])
        denoised = arguments.denoised_at(self.denoiser, x, t, *condition)
        mask = self.mask(t) if callable(self.mask) else self.mask
        checks.one_of_shapes("mask(t)", mask, [(), denoised.shape])
        return denoised + mask * (self.y - denoised)


@checks.arguments(denoiser=arguments.denoiser, y=checks.finite_array)
def soft_inpainting(
    denoiser: Denoiser, y: ArrayLike, mask: ArrayLike | Callable
) -> SoftInpainted:
    """Inpainting in which a mask says how far each entry follows the observation.

        D + m(t) (y − D)

    An entry of mask 1 is y, one of mask 0 is left to the denoiser. A mask of
    zeros and ones is `replacement` with `inpainting`. Two masks between these
    vary with t:

    - `trust_mask` weighs y by its measurement noise. This is exact for
      independent Gaussian entries.
    - `release_mask` holds an entry at y at high noise and releases it at a
      noise level of its own (Levin & Fried 2023).

    A constant mask between 0 and 1 pulls x to y at every noise level. It pulls
    harder the more steps are taken.

    Args:
      denoiser: E[x_0 | x_t].
      y: The observation, of the example's shape. Entries of mask 0 are
        ignored, but must be finite.
      mask: Numbers in [0, 1] of y's shape or (), or a function t -> such
        numbers.

    Returns:
      A denoiser for any solver.

    Raises:
      TypeError: For a denoiser that cannot be called.
      ValueError: For a mask outside [0, 1] or of another shape, or a y that is
        not finite. In use: for an x of another shape than y.

    Example:
      >>> mask = dj.inverse.trust_mask(schedule, [0.01, 0.5])  # trust the first more
      >>> informed = dj.inverse.soft_inpainting(denoiser, [1.0, -1.0], mask)
      >>> dj.sample_many(key, 8, informed, schedule, shape=(2,)).shape
      (8, 2)
    """
    if callable(mask):
        return SoftInpainted(denoiser, y, as_pytree_callable(mask))
    return SoftInpainted(denoiser, y, _fractions(mask, y.shape))


@pytree
class TrustMask:
    """The mask r²(t)/(r²(t) + τ²), see `trust_mask`."""

    schedule: Any
    noise_std: Any
    std: Any

    def __call__(self, t: Scalar) -> Array:
        """The mask at t, of the shape of τ."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        signal = (self.std * sigma) ** 2
        noise = self.noise_std**2 * ((alpha * self.std) ** 2 + sigma**2)
        # Where both are 0 the observation is exact: the mask is 1, not 0/0.
        observed = signal + noise > 0
        return jnp.where(observed, signal / jnp.where(observed, signal + noise, 1), 1)


@checks.arguments(schedule=schedules.argument)
def trust_mask(
    schedule: Schedule, noise_std: ArrayLike, std: ArrayLike = 1.0
) -> TrustMask:
    """Mask for `soft_inpainting` from the noise of each observed entry.

        m_i(t) = r_i²(t)/(r_i²(t) + τ_i²),    r_i² = s_i² σ²/(α² s_i² + σ²)

    The observation is y_i = x_i + τ_i n_i. r² is the variance of x_0 given x_t
    for data of standard deviation s. With this mask D + m (y − D) is E[x_0 |
    x_t, y] for independent Gaussian entries.

    For other data it ignores how an observed entry informs about the others.
    `pigdm` with noise per entry does not, and `exact_posterior` is the truth
    for mixtures.

    Args:
      schedule: The noise schedule.
      noise_std: τ ≥ 0, one number or an array of the example's shape. 0 is an
        exact observation.
      std: s > 0 of the data, one number or an array of the example's shape.

    Returns:
      A function t -> mask, of the shape of τ and s.

    Raises:
      ValueError: For a negative τ, an s that is not positive, or values that
        are not finite.

    Example:
      >>> mask = dj.inverse.trust_mask(dj.schedules.edm(), [0.0, 1.0])
      >>> print(mask(1.0))  # r² = 1/2: 1 for an exact observation, 1/3 for noise 1
      [1.         0.33333334]
    """
    noise_std = checks.non_negative_array("noise_std", noise_std)
    std = checks.positive_array("std", std)
    sizes = noise_std.size, std.size
    checks.require(all(sizes), f"noise_std and std must have entries, got {sizes}")
    return TrustMask(schedule, noise_std, std)


@pytree
class ReleaseMask:
    """1 while less than a share m of the log-SNR range is covered, then 0.

    See `release_mask`.

    Attributes:
      schedule: The noise schedule.
      start: λ(t_max).
      span: λ(t_min) − λ(t_max).
      mask: m, above 1 for entries that are never released.
    """

    schedule: Any
    start: Any
    span: Any
    mask: Any

    def __call__(self, t: Scalar) -> Array:
        """The mask at t, zeros and ones of the mask's shape."""
        covered = (schedules.log_snr(self.schedule, t) - self.start) / self.span
        return (covered < self.mask).astype(self.mask.dtype)


@checks.arguments(schedule=schedules.argument)
def release_mask(schedule: Schedule, mask: ArrayLike) -> ReleaseMask:
    """Mask for differential diffusion (Levin & Fried 2023) by `soft_inpainting`.

    Entry i is held at the observation over the first share m_i of the log-SNR
    range, and then released. An entry of mask 1 is kept to the end, one of
    mask 0 is free. One between may change its detail, but keeps what was
    settled before its release.

    Args:
      schedule: The noise schedule, with a finite log-SNR at t_max.
      mask: Numbers in [0, 1], of the example's shape.

    Returns:
      A function t -> zeros and ones of the mask's shape.

    Raises:
      ValueError: For a mask outside [0, 1], or α(t_max) = 0.

    Example:
      >>> mask = dj.inverse.release_mask(schedule, [0.0, 0.5, 1.0])
      >>> print(mask(schedule.t_max), mask(schedule.t_min))
      [0. 1. 1.] [0. 0. 1.]
      >>> mask = dj.inverse.release_mask(schedule, [0.3, 1.0])
      >>> edited = dj.inverse.soft_inpainting(denoiser, [1.0, -1.0], mask)
      >>> x = dj.sample(key, edited, schedule, shape=(2,))  # x[1] stays at −1
    """
    mask = _fractions(mask, np.shape(mask))
    released = as_one_program(_release, schedule, mask)
    if not checks.is_traced(released) and not np.isfinite(released.span):
        schedules.log_snr_range(schedule)  # raises
    return released


def _release(schedule, mask):
    first, last = (
        schedules.log_snr(schedule, t) for t in (schedule.t_max, schedule.t_min)
    )
    # The last step starts above t_min, but may end at 0: 2 is above any share covered.
    above = jnp.where(mask >= 1, 2, mask)
    return ReleaseMask(schedule, first, last - first, above)


def _fractions(mask, shape):
    """The mask as floats in [0, 1], of the given shape or ()."""
    if isinstance(mask, bool | list | tuple):
        mask = np.asarray(mask, float)
    mask = checks.finite_shaped("mask", mask, (), shape)
    checks.require(mask.size, "mask must have an entry, got none")
    return checks.all_within("mask", mask, 0, 1)
