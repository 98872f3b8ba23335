"""Interpolants: random paths between data and noise, with closed forms for Gaussians.

Flow matching regresses on these paths. `interpolant` makes one of a schedule,
`bridge` one with Brownian bridges about straight lines. `gaussian_interpolant`
gives the distribution, velocity and score of x_t where data and noise are
jointly Gaussian.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..numerics import float_dtype
from ..schedules import Schedule
from ..types import Array, ArrayLike, Scalar, as_pytree_callable, one_program, pytree

__all__ = [
    "BridgeVariance",
    "GaussianInterpolant",
    "Interpolant",
    "bridge",
    "entropic_covariance",
    "gaussian_interpolant",
    "interpolant",
]


@pytree
class Interpolant:
    """x_t = α(t) x_0 + σ(t) x_1 + γ(t) z, made by `interpolant` or `bridge`.

    Attributes:
      schedule: α, σ and the interval of t.
      variance: t -> γ²(t), or None where there is no z.
    """

    schedule: Any
    variance: Any

    def state(self, x0: Array, x1: Array, t: Scalar, z: Array | None = None) -> Array:
        """x_t of one pair.

        Args:
          x0: Data, one example.
          x1: Noise, shape of x0.
          t: Time, shape ().
          z: Standard normal noise, shape of x0. Not needed where there is no
            γ.

        Returns:
          x_t, shape of x0.
        """
        rates = schedules.rates(self.schedule, t)
        return self._mixed(rates.alpha, rates.sigma, self.spread(t)[0], x0, x1, z)

    def velocity(
        self, x0: Array, x1: Array, t: Scalar, z: Array | None = None
    ) -> Array:
        """dx_t/dt = α′ x_0 + σ′ x_1 + γ′ z of one pair.

        Args:
          x0: Data, one example.
          x1: Noise, shape of x0.
          t: Time, shape ().
          z: Standard normal noise, shape of x0. Not needed where there is no
            γ.

        Returns:
          dx_t/dt, shape of x0.
        """
        rates = schedules.rates(self.schedule, t)
        gain = self.spread(t)[1]
        return self._mixed(rates.alpha_rate, rates.sigma_rate, gain, x0, x1, z)

    def spread(self, t: Scalar) -> tuple[Array, Array]:
        """(γ, γ′) at t, shape () both. 0 where there is no γ."""
        t = jnp.asarray(t)
        if self.variance is None:
            return jnp.zeros_like(t), jnp.zeros_like(t)
        variance, rate = jax.jvp(self.variance, (t,), (jnp.ones_like(t),))
        std = jnp.sqrt(variance)
        return std, 0.5 * rate / std  # γ′ = (γ²)′/2γ

    def _mixed(self, a, b, c, x0, x1, z):
        # without γ z may be None
        smooth = a * x0 + b * x1
        return smooth if self.variance is None else smooth + c * z


@pytree
class BridgeVariance:
    """Variance of a Brownian bridge, γ²(t) = s² t (1 − t). See `bridge`."""

    std: Scalar

    def __call__(self, t: Scalar) -> Array:
        """γ²(t), shape ()."""
        return self.std * self.std * t * (1 - t)


INTERPOLANT = (checks.made_by, Interpolant, "flows.interpolant or flows.bridge")
"""Rule of an interpolant."""


@checks.arguments(variance=checks.optional(checks.callable_, "variance(t)"))
def interpolant(
    schedule: Schedule | None = None, variance: Callable | None = None
) -> Interpolant:
    """Random paths between data x_0 and noise x_1 (Lipman et al. 2023, eq. 10–11).

        x_t = α(t) x_0 + σ(t) x_1 + γ(t) z,    z ~ N(0, I) independent of x_0 and x_1

    With a γ it is a stochastic interpolant (Albergo et al. 2023).

    Args:
      schedule: α, σ and the interval of t. Default
        `rectified_flow(t_max=1.0)`: straight lines of constant velocity. With
        a variance the default is `rectified_flow()`, whose interval stays away
        from the ends.
      variance: t -> γ²(t), of shape (), positive within the schedule's
        interval. It should be 0 at t = 0 and 1 if the paths are to meet both
        ends. There γ′ has no value, so that the schedule's interval must stay
        away from them. None for no z.

    Returns:
      The interpolant, with `state`, `velocity` and `spread`.

    Raises:
      TypeError: If schedule is no schedule, or variance cannot be called.
      ValueError: If γ² is not positive and finite at both ends of the
        interval.

    Example:
      >>> straight = dj.flows.interpolant()
      >>> float(straight.state(2.0, 0.0, 0.25))
      1.5
    """
    if schedule is None:
        # without γ′, which has no value at t = 1, the interval may end there
        ends = {"t_max": 1.0} if variance is None else {}
        schedule = schedules.rectified_flow(**ends)
    schedules.check(schedule)
    if variance is None:
        return Interpolant(schedule, None)
    variance = as_pytree_callable(variance)
    if not checks.is_traced(schedule, variance):
        for t in (schedule.t_min, schedule.t_max):
            with jax.ensure_compile_time_eval():
                value = variance(np.asarray(t, float_dtype()))
                checks.positive(f"variance(t={float(t):g})", value)
    return Interpolant(schedule, variance)


@checks.arguments(std=checks.positive, t_min=checks.positive)
def bridge(std: Scalar, t_min: Scalar = 1e-3) -> Interpolant:
    """Straight lines with Brownian bridges about them (Tong et al. 2023).

        x_t = (1 − t) x_0 + t x_1 + γ(t) z,    γ² = s² t (1 − t)

    The interval is [t_min, 1 − t_min]. This is SB-CFM, section 3.2 of the
    paper. With the pairing `sinkhorn(std**2)` its distribution is the
    Schrödinger bridge of Brownian motion of variance s² t: of all processes
    with the two given ends, the nearest to it in KL (Léonard 2014).

    Args:
      std: s > 0, in data units.
      t_min: Distance of the interval from both ends, in (0, ½). γ′ has no
        value there.

    Returns:
      The interpolant.

    Raises:
      ValueError: If an argument is out of range.

    Example:
      >>> gamma, _ = dj.flows.bridge(0.8).spread(0.5)
      >>> round(float(gamma), 3)
      0.4
    """
    message = f"t_min must be less than 0.5, half of the interval, got {t_min}"
    checks.require(checks.is_traced(t_min) or t_min < 0.5, message)
    lines = schedules.rectified_flow(t_max=1 - t_min, t_min=t_min)
    return interpolant(lines, BridgeVariance(std))


@pytree
class GaussianInterpolant:
    """x_t of jointly Gaussian x_0 and x_1. See `gaussian_interpolant`.

    Attributes:
      interpolant: The random paths.
      mean: m, mean of each entry of x_0.
      std: s, standard deviation of each entry of x_0.
      covariance: c, covariance of each entry of x_0 and the same entry of x_1.
    """

    interpolant: Any
    mean: Any
    std: Any
    covariance: Any

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        """Mean α m and variance α² s² + σ² + 2ασ c + γ² of each entry of x_t."""
        schedule, extra = self.interpolant.schedule, self.interpolant.variance
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        variance = (alpha * self.std) ** 2 + sigma**2
        variance = variance + 2 * alpha * sigma * self.covariance
        variance = variance + (0.0 if extra is None else extra(jnp.asarray(t)))
        return alpha * self.mean, variance

    def velocity(self, x: Array, t: Scalar) -> Array:
        """E[dx_t/dt | x_t = x] = m_t′ + (v_t′/2v_t)(x − m_t).

        Args:
          x: One example.
          t: Time, shape ().

        Returns:
          The velocity, shape of x.
        """
        # rates by automatic differentiation of the moments, for every interpolant
        t = jnp.asarray(t, float_dtype(t))
        (mean, variance), (mean_rate, rate) = jax.jvp(
            self.moments, (t,), (jnp.ones_like(t),)
        )
        return mean_rate + 0.5 * rate / variance * (x - mean)

    def score(self, x: Array, t: Scalar) -> Array:
        """∇log p_t(x) = −(x − m_t)/v_t.

        Args:
          x: One example.
          t: Time, shape ().

        Returns:
          The score, shape of x.
        """
        mean, variance = self.moments(t)
        return (mean - x) / variance

    def noise(self, x: Array, t: Scalar) -> Array:
        """E[z | x_t = x] = −γ ∇log p_t(x).

        Args:
          x: One example.
          t: Time, shape ().

        Returns:
          The mean of z, shape of x.
        """
        return -self.interpolant.spread(t)[0] * self.score(x, t)


PAIRINGS = ("independent", "optimal", "entropic")
"""Pairings of Gaussians whose covariance is known."""


@checks.arguments(
    interpolant=INTERPOLANT,
    mean=checks.finite_array,
    std=checks.positive_array,
    pairing=(checks.choice, PAIRINGS),
)
def gaussian_interpolant(
    interpolant: Interpolant,
    mean: ArrayLike,
    std: ArrayLike,
    pairing: str = "independent",
) -> GaussianInterpolant:
    """Closed forms for data N(m, s²) in each entry and noise N(0, 1).

    Each entry of the data has the covariance c with the same entry of the
    noise (Bunne et al. 2023):

        c = 0                            independent
        c = s                            optimal
        c = entropic_covariance(s, S²)   entropic, with the S of `bridge(S)`

    Without γ the optimal pairing is the optimal transport. On straight lines

        u = (x − (1 − t) m)(1 − s)/((1 − t) s + t) − m

    The entropic pairing is that of the Schrödinger bridge.

    Args:
      interpolant: The random paths, made by `interpolant` or `bridge`.
      mean: m, finite.
      std: s > 0, finite, of mean's shape or ().
      pairing: "independent", "optimal" or "entropic".

    Returns:
      x_t's moments, velocity, score and noise.

    Raises:
      TypeError: If interpolant is none.
      ValueError: If another argument is out of range, or pairing is "entropic"
        and the interpolant was not made by `bridge`.

    Example:
      >>> exact = dj.flows.gaussian_interpolant(dj.flows.interpolant(), 1.0, 0.5)
      >>> [float(moment) for moment in exact.moments(0.0)]
      [1.0, 0.25]
    """
    checks.one_of_shapes("std", std, [(), mean.shape])
    entropic = pairing == "entropic"
    if entropic:
        message = "interpolant must be made by flows.bridge for the entropic pairing"
        checks.require(isinstance(interpolant.variance, BridgeVariance), message)
        covariance = entropic_covariance(std, interpolant.variance.std**2)
    elif pairing == "optimal":
        covariance = std
    else:
        # NumPy's zeros need no compiled program
        covariance = jax.device_put(np.zeros(std.shape, std.dtype))
    return GaussianInterpolant(interpolant, mean, std, covariance)


@checks.arguments(std=checks.non_negative_array, regularisation=checks.non_negative)
def entropic_covariance(std: ArrayLike, regularisation: Scalar) -> Array:
    """Covariance of N(m, s²) and N(0, 1) in the plan of `sinkhorn`.

        c = (√(4s² + ε²) − ε)/2

    Janati et al. 2020. It is s at ε = 0, and 0 at s = 0 and at ε = ∞.

    Args:
      std: s ≥ 0, in data units, any shape.
      regularisation: ε ≥ 0, in squared data units.

    Returns:
      c, shape of std.

    Raises:
      ValueError: If an argument is negative or not finite.
    """
    return _entropic_covariance(std, regularisation)


@one_program
def _entropic_covariance(std, regularisation):
    # 2s²/(√(4s² + ε²) + ε), which does not cancel at large ε
    total = jnp.hypot(2 * std, regularisation) + regularisation
    return 2 * std**2 / jnp.where(total > 0, total, 1)


def with_spread(value: Any) -> Interpolant:
    """`value` if it is an interpolant with γ, otherwise an error."""
    message = (
        "interpolant must have a variance γ², as made by flows.bridge, for z to carry "
        "the score"
    )
    checks.made_by("interpolant", value, *INTERPOLANT[1:])
    checks.require(value.variance is not None, message)
    return value
