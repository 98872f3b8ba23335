"""Inpainting with a soft mask: how far each entry follows the observation, a number in [0, 1] that may vary with t."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
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


@pytree
class SoftInpainted:
    """D + m(t) (y − D). See `soft_inpainting`."""

    denoiser: Any
    y: Any
    mask: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The blended D, shape of x; a condition is passed to the denoiser."""
        checks.one_of_shapes("x", x, [jnp.shape(self.y)])
        denoised = checks.denoised(self.denoiser(x, t, *condition), x)
        mask = self.mask(t) if callable(self.mask) else self.mask
        if jnp.shape(mask) not in ((), jnp.shape(denoised)):
            raise ValueError(
                f"mask(t) must have shape () or {jnp.shape(denoised)}, got {jnp.shape(mask)}"
            )
        return denoised + mask * (self.y - denoised)


def soft_inpainting(
    denoiser: Denoiser, y: ArrayLike, mask: ArrayLike | Callable
) -> SoftInpainted:
    """Inpainting in which each entry follows the observation as far as a mask says.

        D + m(t) (y − D)

    An entry of mask 1 is y, one of mask 0 is left to the denoiser: a mask of zeros and ones is `replacement` with
    `inpainting`. Between, two masks that vary with t have a meaning. `trust_mask` weighs y by its measurement noise,
    which is exact for independent Gaussian entries. `release_mask` holds an entry at y at high noise and releases it at
    a noise level of its own (Levin & Fried 2023). A constant mask between 0 and 1 pulls x to y at every noise level,
    the more the more steps are taken.

    Args:
      denoiser: E[x_0 | x_t].
      y: The observation, of the example's shape. Entries of mask 0 are ignored, but must be finite.
      mask: Numbers in [0, 1] of y's shape or (), or a function t -> such numbers.

    Returns:
      A denoiser for any solver.

    Raises:
      TypeError: For a denoiser that cannot be called.
      ValueError: For a mask outside [0, 1] or of another shape, or a y that is not finite. The denoiser raises it for
        an x of another shape than y.

    Example:
      >>> mask = dj.inverse.trust_mask(schedule, [0.01, 0.5])  # the first entry is known well, the second is not
      >>> informed = dj.inverse.soft_inpainting(denoiser, [1.0, -1.0], mask)
      >>> dj.sample_many(key, 8, informed, schedule, shape=(2,)).shape
      (8, 2)
    """
    denoiser = as_pytree_callable(
        checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    )
    y = checks.real_array("y", y)
    checks.finite("y", y)
    if callable(mask):
        return SoftInpainted(denoiser, y, as_pytree_callable(mask))
    return SoftInpainted(denoiser, y, _fractions(mask, y.shape))


@pytree
class TrustMask:
    """r²(t)/(r²(t) + τ²). See `trust_mask`."""

    schedule: Any
    noise_std: Any
    std: Any

    def __call__(self, t: Scalar) -> Array:
        """The mask at t, of the shape of τ."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        signal, noise = (
            (self.std * sigma) ** 2,
            self.noise_std**2 * ((alpha * self.std) ** 2 + sigma**2),
        )
        observed = signal + noise > 0
        return jnp.where(observed, signal / jnp.where(observed, signal + noise, 1), 1)


def trust_mask(
    schedule: Schedule, noise_std: ArrayLike, std: ArrayLike = 1.0
) -> TrustMask:
    """The mask of an observation y_i = x_i + τ_i n_i with noise τ_i per entry, for `soft_inpainting`.

        m_i(t) = r_i²(t)/(r_i²(t) + τ_i²),    r_i² = s_i² σ²/(α² s_i² + σ²)

    r² is the variance of x_0 given x_t for data of standard deviation s. With it D + m (y − D) is E[x_0 | x_t, y] for
    independent Gaussian entries. For other data it ignores what an observed entry says of the others; `pigdm` with
    noise per entry passes that on, and `exact_posterior` is the truth for mixtures.

    Args:
      schedule: The noise schedule.
      noise_std: τ ≥ 0, one number or an array of the example's shape. 0 is an exact observation.
      std: s > 0 of the data, one number or an array of the example's shape.

    Returns:
      A function t -> mask, of the shape of τ and s.

    Raises:
      ValueError: For a negative τ, an s that is not positive, or values that are not finite.

    Example:
      >>> mask = dj.inverse.trust_mask(dj.schedules.edm(), [0.0, 1.0])
      >>> print(mask(1.0))  # r² = 1/2: an exact observation is taken whole, one of noise 1 by a third
      [1.         0.33333334]
    """
    noise_std, std = (
        checks.real_array("noise_std", noise_std),
        checks.real_array("std", std),
    )
    for name, value, accepted in (
        ("noise_std", noise_std, "0 or more"),
        ("std", std, "positive"),
    ):
        checks.finite(name, value)
        if not checks.is_traced(value):
            least = float(np.min(np.asarray(value)))
            if least < 0 or (name == "std" and least == 0):
                raise ValueError(f"{name} must be {accepted} everywhere, got {least}")
    return TrustMask(schedules.check(schedule), noise_std, std)


@pytree
class ReleaseMask:
    """1 while less than a share m of the log-SNR range is covered, else 0. See `release_mask`."""

    schedule: Any
    start: Any
    span: Any
    mask: Any

    def __call__(self, t: Scalar) -> Array:
        """The mask at t, zeros and ones of the mask's shape."""
        covered = (schedules.log_snr(self.schedule, t) - self.start) / self.span
        return (covered < self.mask).astype(self.mask.dtype)


def release_mask(schedule: Schedule, mask: ArrayLike) -> ReleaseMask:
    """A mask that holds entry i at the observation over the first share m_i of the log-SNR range, then releases it.

    This is differential diffusion (Levin & Fried 2023), for `soft_inpainting`: an entry of mask 1 is kept to the end,
    one of mask 0 is free, and one between may change its detail but not what has been settled before its release.

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
      >>> edited = dj.inverse.soft_inpainting(denoiser, [1.0, -1.0], dj.inverse.release_mask(schedule, [0.3, 1.0]))
      >>> x = dj.sample(key, edited, schedule, shape=(2,))  # the second entry stays at −1
    """
    mask = _fractions(mask, np.shape(mask))
    schedules.check(schedule)
    released = as_one_program(_release, schedule, mask)
    if not checks.is_traced(released) and not np.isfinite(released.span):
        schedules.log_snr_range(schedule)  # raises
    return released


def _release(schedule, mask):
    first, last = (
        schedules.log_snr(schedule, t) for t in (schedule.t_max, schedule.t_min)
    )
    above = jnp.where(
        mask >= 1, 2, mask
    )  # the last step starts above t_min, but may end at 0
    return ReleaseMask(schedule, first, last - first, above)


def _fractions(mask, shape):
    """The mask as floats in [0, 1], of the given shape or ()."""
    mask = checks.real_array(
        "mask",
        np.asarray(mask, float) if isinstance(mask, bool | list | tuple) else mask,
    )
    checks.one_of_shapes("mask", mask, [(), shape])
    checks.finite("mask", mask)
    if not checks.is_traced(mask):
        least, greatest = (
            float(np.min(np.asarray(mask))),
            float(np.max(np.asarray(mask))),
        )
        if not 0 <= least <= greatest <= 1:
            raise ValueError(
                f"mask must lie in [0, 1], got values from {least} to {greatest}"
            )
    return mask
