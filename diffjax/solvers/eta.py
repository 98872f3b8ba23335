"""The stochasticity η of a solver, constant or a function of the noise level.

With y = x/α, ρ = σ/α and λ = −log ρ, the reverse SDE

    dy = −(1 + η²) (y − D) dλ + √2 η ρ dW

has the distributions of the diffusion for every function η(ρ) ≥ 0. Where D is
constant its solution over a step h = log ρ_t/ρ_s is

    y_s = D + e^{−h−E} (y − D) + ρ_s √(1 − e^{−2E}) z,    E = ∫ η² dλ

A solver needs no more of η than the integral E of each step. Its decay and its
variance are then exact, also over a step in which η changes.
"""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array

__all__ = [
    "Eta",
    "EtaFunction",
    "check_eta",
    "eta_between",
    "eta_er_sde",
    "integral",
    "label",
    "mean_square",
    "root",
]


@runtime_checkable
class EtaFunction(Protocol):
    """η as a function of ρ = σ/α. It must be hashable, as frozen dataclasses are."""

    def squared(self, rho: Array) -> Array:
        """η(ρ)².

        Args:
          rho: ρ, of any shape.

        Returns:
          The squares, of rho's shape.
        """

    def integral(self, start: Array, end: Array) -> Array:
        """E = ∫ η² d log ρ from `end` up to `start`.

        Args:
          start: The larger ρ, of any shape.
          end: The smaller ρ, of that shape.

        Returns:
          The integrals, of that shape.
        """


Eta = float | EtaFunction
"""A constant η or a function."""


@dataclasses.dataclass(frozen=True)
class _Between:
    """η where low ≤ ρ ≤ high, and 0 elsewhere."""

    low: float
    high: float
    eta: float

    def __repr__(self) -> str:
        return f"eta_between({self.low:g}, {self.high:g}, {self.eta:g})"

    def squared(self, rho: Array) -> Array:
        return jnp.where((rho >= self.low) & (rho <= self.high), self.eta**2, 0.0)

    def integral(self, start: Array, end: Array) -> Array:
        h = jnp.log(start / end)

        def above(level):  # the part of the step above a level
            # bounds of all ρ in float32: the log of level 0 stays finite
            level = math.log(min(max(level, 1e-30), 1e30))
            return jnp.clip(jnp.log(start) - level, 0, h)

        return self.eta**2 * (above(self.low) - above(self.high))


@dataclasses.dataclass(frozen=True)
class _Exponential:
    """η² = ρ φ′/φ − 1 of φ(ρ) = ρ (exp(ρ^power) + offset)."""

    power: float
    offset: float

    def __repr__(self) -> str:
        return f"eta_er_sde({self.power:g}, {self.offset:g})"

    def squared(self, rho: Array) -> Array:
        return self.power * rho**self.power * self._share(rho)

    def integral(self, start: Array, end: Array) -> Array:
        # log (e^a + c)/(e^b + c) as d + log(1 + (1 − s)(e^{−d} − 1)), d = a − b:
        # nothing overflows, and a small d keeps its digits
        d = end**self.power * jnp.expm1(self.power * jnp.log(start / end))
        return d + jnp.log1p((1 - self._share(end)) * jnp.expm1(-d))

    def _share(self, rho):
        """e^b/(e^b + c) with b = ρ^power."""
        return jax.nn.sigmoid(rho**self.power - math.log(self.offset))


@checks.arguments(
    low=checks.non_negative, high=checks.positive, eta=(checks.positive_up_to, 1)
)
def eta_between(low: float, high: float, eta: float = 1.0) -> EtaFunction:
    """The stochasticity η inside an interval of noise levels, and 0 outside.

    It is SA-Solver's τ (Xue et al. 2023), and serves every solver with an `eta`.

    Args:
      low: The least ρ = σ/α with noise, 0 or more.
      high: The greatest, above low.
      eta: η inside, in (0, 1].

    Returns:
      A hashable value. Equal settings give equal values and the same solver.

    Raises:
      ValueError: Unless 0 ≤ low < high and 0 < eta ≤ 1.

    Example:
      >>> solver = dj.solvers.sa_solver(eta=dj.solvers.eta_between(0.05, 1.0))
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    checks.greater("high", high, "low", low)
    return _Between(float(low), float(high), float(eta))


@checks.arguments(power=checks.positive, offset=checks.positive)
def eta_er_sde(power: float = 0.3, offset: float = 10.0) -> EtaFunction:
    """The stochasticity of ER-SDE's noise scale function (Cui et al. 2023).

        φ(ρ) = ρ (exp(ρ^power) + offset),    η² = ρ φ′/φ − 1

    The defaults are the paper's fifth function, its recommendation. η falls
    with the noise level and exceeds 1 above ρ = 99. Solvers that split their
    noise, such as `ddim`, take 1 there.

    Args:
      power: The exponent of ρ.
      offset: The added constant.

    Returns:
      A hashable value for the `eta` of any solver.

    Raises:
      ValueError: Unless both are positive.

    Example:
      >>> eta = dj.solvers.eta_er_sde()
      >>> dj.solvers.er_sde() is dj.solvers.er_sde(3, eta)
      True
    """
    return _Exponential(float(power), float(offset))


def check_eta(name: str, value: Any) -> Eta:
    """Check that a value is a constant in [0, 1] or a function of the noise level.

    Args:
      name: The argument's name.
      value: The argument.

    Returns:
      The value.

    Raises:
      TypeError: For another type, also for a class of such functions, or a plain
        function.
      ValueError: For a number outside [0, 1].
    """
    # a class has the methods of the Protocol too
    if isinstance(value, EtaFunction) and not isinstance(value, type):
        return value
    if callable(value):
        raise TypeError(
            f"{name} must be a number or an EtaFunction, such as "
            f"eta_between(low, high), got {value!r}"
        )
    return checks.within(name, value, 0, 1)


def label(eta: Eta) -> str:
    """The part of a solver's name that states η."""
    return repr(eta) if isinstance(eta, EtaFunction) else f"{eta:g}"


def integral(eta: Eta, start: Any, end: Any) -> Array:
    """E = ∫ η² d log ρ between two noise levels.

    Args:
      eta: η.
      start: The `NoiseLevel` at which a step starts.
      end: That at which it ends.

    Returns:
      The integrals, (N,).
    """
    if isinstance(eta, EtaFunction):
        return eta.integral(start.rho, end.rho)
    return eta**2 * jnp.log(start.rho / end.rho)


def mean_square(eta: Eta, start: Any, end: Any) -> Any:
    """The mean of η² over log ρ between two noise levels, at most 1.

    Args:
      eta: η.
      start: The `NoiseLevel` at which a step starts.
      end: That at which it ends.

    Returns:
      The means (N,), or a number for a constant.
    """
    if not isinstance(eta, EtaFunction):
        return eta**2
    h = jnp.log(start.rho / end.rho)
    # 0 over a part of a step that rounding leaves no length
    mean = eta.integral(start.rho, end.rho) / jnp.where(h > 0, h, 1)
    return jnp.minimum(mean, 1)


def root(variance: Array) -> Array:
    """The square root, with gradient 0 where the variance is 0."""
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)
