"""The forward and reverse SDEs, the probability flow and Langevin dynamics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks, predictions, schedules
from ..schedules import Schedule
from ..types import Array, Denoiser, Scalar, as_one_program, as_pytree_callable, pytree

__all__ = [
    "SDE",
    "Semilinear",
    "check_sde",
    "forward",
    "langevin",
    "probability_flow",
    "reverse",
]


@pytree
class SDE:
    """The Itô SDE dx = drift(x, t) dt + diffusion(x, t) dw.

    Attributes:
      drift: Callable pytree (x, t) -> array of x's shape.
      diffusion: Callable pytree (x, t) -> array that broadcasts to x.
    """

    drift: Any
    diffusion: Any


@pytree
class Semilinear:
    """The vector field A(t) x + B(t) D(x, t), from one denoiser call.

    A solver that knows the coefficients can end at t = 0 exactly, where it
    returns D.

    Attributes:
      coefficients: t -> (A, B), each of shape ().
      denoiser: (x, t) -> E[x_0 | x_t = x].
    """

    coefficients: Any
    denoiser: Any

    def __call__(self, x: Array, t: Scalar) -> Array:
        """A(t) x + B(t) D(x, t), shape of x."""
        return as_one_program(_semilinear, self, x, t)


def _semilinear(field, x, t):
    a, b = field.coefficients(t)
    return a * x + b * field.denoiser(x, t)


@pytree
class _FlowCoefficients:
    # Of the velocity: A = σ′/σ and B = α′ − α A. Not _ReverseCoefficients with
    # η = 0, since g² may diverge where the velocity does not.

    schedule: Any

    def __call__(self, t):
        r = schedules.rates(self.schedule, t)
        a = r.sigma_rate / r.sigma
        return a, r.alpha_rate - r.alpha * a


@pytree
class _ReverseCoefficients:
    # Of the velocity, plus the score's share: A = σ′/σ + ½ η² g²/σ² and B = α′
    # − α A.

    schedule: Any
    noise: Any

    def __call__(self, t):
        a, b = _FlowCoefficients(self.schedule)(t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        diffusion = self.noise * schedules.diffusion_coefficient(self.schedule, t)
        churn = 0.5 * (diffusion / sigma) ** 2
        return a + churn, b - alpha * churn


@pytree
class _Linear:
    # f(t) x

    schedule: Any

    def __call__(self, x, t):
        return as_one_program(_linear, self.schedule, x, t)


def _linear(schedule, x, t):
    return schedules.drift_coefficient(schedule, t) * x


@pytree
class _Diffusion:
    # η g(t)

    schedule: Any
    scale: Any

    def __call__(self, x, t):
        return self.scale * schedules.diffusion_coefficient(self.schedule, t)


@pytree
class _HalfGradient:
    # ½ ∇log p(x)

    log_prob: Any

    def __call__(self, x, t):
        return 0.5 * jax.grad(self.log_prob)(x)


def check_sde(name: str, value: Any) -> SDE:
    """Check that an argument is an SDE, for `checks.arguments`.

    Args:
      name: The name of the argument, for the message.
      value: The argument.

    Returns:
      The SDE, with callable pytrees as functions.

    Raises:
      TypeError: If it is anything else.
    """
    checks.instance(name, value, SDE, "an SDE(drift, diffusion)")
    return SDE(as_pytree_callable(value.drift), as_pytree_callable(value.diffusion))


@checks.arguments(schedule=schedules.argument)
def forward(schedule: Schedule) -> SDE:
    """The forward SDE of a schedule (Song et al. 2021, equation 5).

        dx = f(t) x dt + g(t) dw

    Started at α = 1, σ = 0, it has the distribution N(α x_0, σ²) given x_0.

    Args:
      schedule: The noise schedule.

    Raises:
      TypeError: If it is no schedule.

    Example:
      >>> dj.sde.forward(schedule).drift(jnp.ones(2), 0.5).shape
      (2,)
    """
    return SDE(_Linear(schedule), _Diffusion(schedule, 1.0))


@checks.arguments(
    schedule=schedules.argument, denoiser=checks.denoiser, noise=checks.non_negative
)
def reverse(schedule: Schedule, denoiser: Denoiser, *, noise: Scalar = 1.0) -> SDE:
    """A reverse SDE, which has the distribution p_t at every t.

        dx = [f x − ½ (1 + η²) g² ∇log p_t] dt + η g dw̄

    It runs downwards in t from p_T, for any η ≥ 0. η = 1 is Anderson's reverse
    SDE, η = 0 the probability flow. The drift is written A(t) x + B(t) D, so
    that a step costs one denoiser call.

    Args:
      schedule: The noise schedule.
      denoiser: (x, t) -> E[x_0 | x_t = x].
      noise: The noise level η, ().

    Returns:
      The SDE.

    Raises:
      ValueError: If noise < 0.
      TypeError: If η is not 0 and the denoiser has independent=False, see
        `predictions.check_independent`.

    References:
      Song et al. 2021, equation 6. Huang et al. 2021, equation 18.

    Example:
      >>> dj.sde.reverse(schedule, denoiser).drift(jnp.ones(2), 0.5).shape
      (2,)
    """
    deterministic = not checks.is_traced(noise) and noise == 0
    if not deterministic:
        predictions.check_independent("the reverse SDE", denoiser)
    coefficients = (
        _FlowCoefficients(schedule)
        if deterministic
        else _ReverseCoefficients(schedule, noise)
    )
    return SDE(
        Semilinear(coefficients, as_pytree_callable(denoiser)),
        _Diffusion(schedule, noise),
    )


@checks.arguments(schedule=schedules.argument, denoiser=checks.denoiser)
def probability_flow(schedule: Schedule, denoiser: Denoiser) -> Semilinear:
    """The velocity of the probability flow (Song et al. 2021, equation 13).

        dx/dt = α′ D + σ′ (x − α D)/σ = (σ′/σ) x + (α′ − α σ′/σ) D

    The ODE has the distribution p_t at every t. The second form, which is
    used, is regular where α → 0 and f and g² are not.

    Args:
      schedule: The noise schedule.
      denoiser: (x, t) -> E[x_0 | x_t = x].

    Returns:
      (x, t) -> dx/dt, shape of x, in data units per time.

    Raises:
      TypeError: If an argument is no schedule or no denoiser.

    Example:
      >>> dj.sde.probability_flow(schedule, denoiser)(jnp.ones(2), 0.5).shape
      (2,)
    """
    return Semilinear(_FlowCoefficients(schedule), as_pytree_callable(denoiser))


@checks.arguments(log_prob=(checks.callable_, "log_prob(x)"))
def langevin(log_prob: Callable[[Array], Array]) -> SDE:
    """Langevin dynamics, whose stationary distribution is p.

        dx = ½ ∇log p(x) dt + dw

    Args:
      log_prob: x -> log p(x) up to a constant, ().

    Raises:
      TypeError: If log_prob cannot be called.

    References:
      Welling & Teh 2011. Song & Ermon 2019, equation 4.

    Example:
      >>> dj.sde.langevin(target.log_prob).drift(jnp.ones(2), 0.0).shape
      (2,)
    """
    return SDE(_HalfGradient(as_pytree_callable(log_prob)), as_pytree_callable(_unit))


def _unit(x, t):
    return jnp.ones(())
