"""Weights of the denoising error ‖D − x_0‖² at a time.

Each is a function (schedule, t, sigma_data) -> w(t). Since ε̂ − ε = −(α/σ)(D − x_0),
w(t) σ²/α² is the same weight of the noise's error. Each states that too, without
an α² that underflows or a σ⁻² that overflows.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp

from .. import checks, schedules
from ..schedules import Schedule
from ..types import Array, Scalar, pytree

__all__ = [
    "MIN_SNR_CLIP",
    "WEIGHTINGS",
    "Weight",
    "edm",
    "likelihood",
    "min_snr",
    "p2",
    "sigmoid",
    "simple",
]

MIN_SNR_CLIP = 5.0


class Weight(Protocol):
    """Protocol of a weight of ‖D − x_0‖², of which a plain function is enough.

    Optional members: `of_noise_error` of `NoiseWeight`, and `over_time`, True for a
    weight to be divided by the density of the training time.
    """

    def __call__(self, schedule: Schedule, t: Scalar, sigma_data: Scalar) -> Array:
        """w(t), shape ()."""
        ...


class NoiseWeight(Weight, Protocol):
    """Protocol of a weight that is also known as one of ‖ε̂ − ε‖²."""

    def of_noise_error(self, schedule: Schedule, t: Scalar, sigma_data: Scalar) -> Any:
        """The same weight of the noise's error.

        Args:
          schedule: The noise schedule.
          t: Time, ().
          sigma_data: Standard deviation of the data, ().

        Returns:
          w(t) (σ/α)², shape ().
        """
        ...


def _snr(schedule, t):
    # not e^λ: the derivative is finite where α = 0 and λ = −∞
    return (schedule.alpha(t) / schedule.sigma(t)) ** 2


def _inverse_snr(schedule, t):
    return jnp.exp(-schedules.log_snr(schedule, t))


def _bounded_snr(schedule, t):
    # No limit of a weight below is farther from its value here than rounding.
    snr = _snr(schedule, t)
    return jnp.minimum(snr, jnp.finfo(snr.dtype).max ** 0.5)


@pytree
class Simple(NoiseWeight):
    """α²/σ². Made by `simple`."""

    def __call__(self, schedule, t, sigma_data):
        return _snr(schedule, t)

    def of_noise_error(self, schedule, t, sigma_data):
        return 1.0


@pytree
class Likelihood(NoiseWeight):
    """½ |d(α²/σ²)/dt|. Made by `likelihood`."""

    over_time = True

    def __call__(self, schedule, t, sigma_data):
        # −½ dSNR/dt = (α/σ) W/σ² with the Wronskian W = ασ′ − α′σ, finite where
        # λ = −∞. Nothing cancels, since both of its terms are positive: σ grows
        # and α falls. σ² could underflow.
        r = schedules.rates(schedule, t)
        wronskian = r.alpha * r.sigma_rate - r.alpha_rate * r.sigma
        return (r.alpha / r.sigma) * (wronskian / r.sigma) / r.sigma

    def of_noise_error(self, schedule, t, sigma_data):
        return -0.5 * schedules.log_snr_rate(schedule, t)


@pytree
class EDM(NoiseWeight):
    """1/σ_d² + α²/σ². Made by `edm`."""

    def __call__(self, schedule, t, sigma_data):
        # 1/c_out² = (σ_d² + σ²/α²)/(σ_d σ/α)², finite where α = 0
        return 1 / sigma_data**2 + _snr(schedule, t)

    def of_noise_error(self, schedule, t, sigma_data):
        return 1 + _inverse_snr(schedule, t) / sigma_data**2


@pytree
class MinSNR(NoiseWeight):
    """min(α²/σ², γ). Made by `min_snr`."""

    gamma: Scalar

    def __call__(self, schedule, t, sigma_data):
        return jnp.minimum(_snr(schedule, t), self.gamma)

    def of_noise_error(self, schedule, t, sigma_data):
        return jnp.minimum(1.0, self.gamma * _inverse_snr(schedule, t))


@pytree
class P2(NoiseWeight):
    """(α²/σ²)/(k + α²/σ²)^γ. Made by `p2`."""

    gamma: Scalar
    k: Scalar

    def __call__(self, schedule, t, sigma_data):
        return _bounded_snr(schedule, t) * self.of_noise_error(schedule, t, sigma_data)

    def of_noise_error(self, schedule, t, sigma_data):
        return (self.k + _bounded_snr(schedule, t)) ** -self.gamma


@pytree
class Sigmoid(NoiseWeight):
    """(α²/σ²) sigmoid(b − λ). Made by `sigmoid`."""

    bias: Scalar

    def __call__(self, schedule, t, sigma_data):
        return _bounded_snr(schedule, t) * self.of_noise_error(schedule, t, sigma_data)

    def of_noise_error(self, schedule, t, sigma_data):
        return 1 / (1 + jnp.exp(-self.bias) * _bounded_snr(schedule, t))


# --------------------------------------------------------------------- constructors


def simple() -> Weight:
    """α²/σ², which is ‖ε̂ − ε‖² (Ho et al. 2020, equation 14).

    Returns:
      The weight, also named "simple".
    """
    return Simple()


def likelihood() -> Weight:
    """Half the rate of the signal-to-noise ratio, over the density of the time.

        w(t) = ½ |d(α²/σ²)/dt|

    It is the same as ½g² on the score's error. Divided by the density of the
    training time, which `batch_loss` does, its expectation is one bound of the
    likelihood under any distribution of the time.

    Returns:
      The weight, also named "likelihood".

    References:
      Song et al. 2021, Theorem 1. Kingma et al. 2021, section 5.
    """
    return Likelihood()


def edm() -> Weight:
    """1/σ_d² + α²/σ² = 1/c_out² (Karras et al. 2022, Table 1).

    Returns:
      The weight, also named "edm".
    """
    return EDM()


@checks.arguments(gamma=checks.positive)
def min_snr(gamma: Scalar = MIN_SNR_CLIP) -> Weight:
    """The least of the signal-to-noise ratio and a bound (Hang et al. 2023).

        w = min(α²/σ², γ),    of the noise's error min(1, γ σ²/α²)

    Args:
      gamma: γ, positive.

    Returns:
      The weight, with its default also named "min_snr".

    Raises:
      ValueError: If gamma is not positive.

    References:
      Section 3.4 of the paper.

    Example:
      >>> weight = dj.losses.weights.min_snr(1.0)
      >>> float(weight(dj.schedules.edm(), 0.5, 0.5))  # the ratio is 4
      1.0
    """
    return MinSNR(gamma)


@checks.arguments(gamma=checks.non_negative, k=checks.positive)
def p2(gamma: Scalar = 1.0, k: Scalar = 1.0) -> Weight:
    """Perception-prioritised weight (Choi et al. 2022, equation 8).

        of the noise's error (k + α²/σ²)^−γ,    w = α²/σ² (k + α²/σ²)^−γ

    Args:
      gamma: γ, 0 or more. 0 is `simple`.
      k: Positive. The weight of the noise's error is k^−γ at much noise.

    Returns:
      The weight.

    Raises:
      ValueError: If gamma is negative or k is not positive.

    Example:
      >>> weight = dj.losses.weights.p2()
      >>> round(float(weight(dj.schedules.edm(), 0.5, 0.5)), 2)  # 4/(1 + 4)
      0.8
    """
    return P2(gamma, k)


@checks.arguments(bias=checks.number)
def sigmoid(bias: Scalar = -2.0) -> Weight:
    """Sigmoid of the log-SNR (Kingma & Gao 2023, Hoogeboom et al. 2024).

        of the noise's error sigmoid(b − λ)
        w = α²/σ² sigmoid(b − λ) = e^b sigmoid(λ − b)

    The papers integrate it over λ. So it is theirs, up to one constant factor,
    under the distribution "log_snr" of the training time.

    Args:
      bias: b. Noise levels of a log-SNR far above b hardly count. Lower for
        larger images.

    Returns:
      The weight.

    Raises:
      ValueError: If bias is not finite.

    Example:
      >>> weight = dj.losses.weights.sigmoid(0.0)
      >>> round(float(weight(dj.schedules.edm(), 0.5, 0.5)), 2)  # 4/(1 + 4)
      0.8
    """
    return Sigmoid(bias)


WEIGHTINGS: dict[str, Callable[..., Any] | None] = {
    "uniform": None,
    "simple": Simple(),
    "likelihood": Likelihood(),
    "edm": EDM(),
    "min_snr": MinSNR(MIN_SNR_CLIP),
}
"""Weight w(t) of ‖D − x_0‖² for each name.

- uniform: 1 on the network's own error ‖F − target‖², whatever its kind.
- simple, likelihood, edm, min_snr: those of the functions of these names, with
  their defaults.
"""
