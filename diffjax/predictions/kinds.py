"""The kinds of prediction, and the scalings of a network's inputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from .. import schedules
from ..schedules import Rates, Schedule
from ..schedules.protocol import as_time
from ..types import Array, Scalar, one_program

__all__ = ["INPUTS", "KINDS", "Scalings", "input_scalings", "noise_input", "scalings"]


class Scalings(NamedTuple):
    """EDM preconditioning, D(x, σ) = c_skip x + c_out F(c_in x, c_noise).

    Attributes:
      skip: c_skip, ().
      out: c_out, ().
      into: c_in, ().
      noise: c_noise, ().
    """

    skip: Array
    out: Array
    into: Array
    noise: Array


@one_program
def scalings(sigma: Scalar, sigma_data: Scalar) -> Scalings:
    """EDM preconditioning at α = 1.

        c_skip = σ_d² / (σ² + σ_d²),    c_out = σ σ_d / √(σ² + σ_d²)
        c_in = 1 / √(σ² + σ_d²),        c_noise = ¼ log σ

    On another schedule use σ/α for sigma and x/α for x.

    Args:
      sigma: The noise level σ, (), in data units.
      sigma_data: The standard deviation σ_d of the data, ().

    Returns:
      The four scalings.

    References:
      Karras et al. 2022, Table 1.

    Example:
      >>> float(dj.predictions.scalings(0.5, sigma_data=0.5).skip)
      0.5
    """
    sigma, variance = jnp.asarray(sigma), sigma**2 + sigma_data**2
    return Scalings(
        sigma_data**2 / variance,
        sigma * sigma_data / jnp.sqrt(variance),
        1 / jnp.sqrt(variance),
        jnp.log(sigma) / 4,
    )


def _edm(r: Rates, sigma_data):
    # F = (x_0 − c_skip x)/c_out at α = 1, with x = x_0 + σ ε.
    sigma = r.sigma / r.alpha
    c = scalings(sigma, sigma_data)
    return sigma**2 / (sigma**2 + sigma_data**2) / c.out, -c.skip * sigma / c.out


KINDS: dict[str, Callable[[Rates, Any], tuple[Any, Any]]] = {
    "noise": lambda r, _: (0.0, 1.0),
    "data": lambda r, _: (1.0, 0.0),
    "v": lambda r, _: (
        -r.sigma / jnp.hypot(r.alpha, r.sigma),
        r.alpha / jnp.hypot(r.alpha, r.sigma),
    ),
    "score": lambda r, _: (0.0, -1 / r.sigma),
    "velocity": lambda r, _: (r.alpha_rate, r.sigma_rate),
    "edm": _edm,
}
"""Coefficients (a, b) of F = a x_0 + b ε for each kind of prediction.

They follow from α, σ, α′, σ′ and the standard deviation of the data.

- noise: ε (Ho et al. 2020)
- data: x_0
- v: (α ε − σ x_0)/√(α² + σ²) (Salimans & Ho 2022, appendix D, there α² + σ² = 1)
- score: −ε/σ (Song et al. 2021, equation 7)
- velocity: α′ x_0 + σ′ ε (Lipman et al. 2023)
- edm: EDM's F (Karras et al. 2022, equation 8)
"""

INPUTS = ("raw", "scaled", "index", "zero_index")
"""The inputs that a network can be called with, see `denoiser`."""


def rates_for(kind: str, schedule: Schedule, t: Scalar) -> Rates:
    """α and σ at t, and their derivatives if the kind needs them.

    The derivatives may diverge where α = 0, so only "velocity" computes them.

    Args:
      kind: One of `KINDS`.
      schedule: The noise schedule.
      t: A time, ().

    Returns:
      The rates, each of shape (). Derivatives that are not needed are None.
    """
    if kind == "velocity":
        return schedules.rates(schedule, t)
    t = as_time(t)
    return Rates(schedule.alpha(t), schedule.sigma(t), None, None)


@one_program
def noise_input(schedule: Schedule, t: Scalar) -> Array:
    """The noise level as a network with scaled inputs receives it.

        c_noise = −λ/8 = ¼ log(σ/α)

    Args:
      schedule: The noise schedule.
      t: A time, ().

    Returns:
      c_noise, ().
    """
    return -schedules.log_snr(schedules.check(schedule), t) / 8


@one_program
def input_scalings(
    schedule: Schedule, t: Scalar, sigma_data: Scalar
) -> tuple[Array, Array]:
    """The scale that gives a network inputs of unit variance, and `noise_input`.

        c_in = 1 / √(α² σ_d² + σ²)

    Args:
      schedule: The noise schedule.
      t: A time, ().
      sigma_data: The standard deviation σ_d of the data, ().

    Returns:
      c_in and c_noise, each of shape ().

    References:
      Karras et al. 2022, Table 1.
    """
    schedules.check(schedule)
    # hypot neither overflows nor underflows where a square would.
    c_in = 1 / jnp.hypot(schedule.alpha(t) * sigma_data, schedule.sigma(t))
    return c_in, noise_input(schedule, t)
