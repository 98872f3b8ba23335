"""SDEs dx = drift(x, t) dt + diffusion(x, t) dw: forward, reverse, probability flow, Langevin."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks, predictions, schedules
from ..schedules import Schedule
from ..types import Array, Denoiser, Scalar, as_one_program, as_pytree_callable, pytree


@pytree
class SDE:
    """dx = drift(x, t) dt + diffusion(x, t) dw, Itô; both are pytree callables, diffusion broadcastable to x."""

    drift: Any
    diffusion: Any


@pytree
class Semilinear:
    """The field A(t) x + B(t) D(x, t): one denoiser call.

    `coefficients(t)` gives (A, B), each of shape (). A solver that knows them can end at t = 0 exactly, where it
    returns D.
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
    """A = σ′/σ, B = α′ − α A, the velocity's; a class of its own, since g² may diverge where the velocity does not."""

    schedule: Any

    def __call__(self, t):
        r = schedules.rates(self.schedule, t)
        a = r.sigma_rate / r.sigma
        return a, r.alpha_rate - r.alpha * a


@pytree
class _ReverseCoefficients:
    """A = σ′/σ + ½η²g²/σ², B = α′ − α A: the velocity's and the score's share."""

    schedule: Any
    noise: Any

    def __call__(self, t):
        a, b = _FlowCoefficients(self.schedule)(t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        churn = (
            0.5
            * (self.noise * schedules.diffusion_coefficient(self.schedule, t) / sigma)
            ** 2
        )
        return a + churn, b - alpha * churn


@pytree
class _Linear:
    """f(t) x."""

    schedule: Any

    def __call__(self, x, t):
        return as_one_program(_linear, self.schedule, x, t)


def _linear(schedule, x, t):
    return schedules.drift_coefficient(schedule, t) * x


@pytree
class _Diffusion:
    """η g(t)."""

    schedule: Any
    scale: Any

    def __call__(self, x, t):
        return self.scale * schedules.diffusion_coefficient(self.schedule, t)


@pytree
class _HalfGradient:
    """½ ∇ log p(x)."""

    log_prob: Any

    def __call__(self, x, t):
        return 0.5 * jax.grad(self.log_prob)(x)


def forward(schedule: Schedule) -> SDE:
    """dx = f(t) x dt + g(t) dw, whose law given x_0 is N(α x_0, σ²) when started at α = 1, σ = 0.

    Song et al. 2021, eq. 5.
    """
    schedules.check(schedule)
    return SDE(_Linear(schedule), _Diffusion(schedule, 1.0))


def reverse(schedule: Schedule, denoiser: Denoiser, *, noise: Scalar = 1.0) -> SDE:
    """The SDE that, run downwards in t from p_T, has the law p_t at every t, for any noise level η = noise ≥ 0.

    dx = [f x − ½(1 + η²) g² ∇log p_t] dt + η g dw̄, written A(t) x + B(t) D so that a step costs one denoiser call.
    η = 1 is Anderson's reverse SDE, η = 0 the probability flow. Raises ValueError for noise < 0, TypeError for a
    denoiser marked `coupled` unless η = 0.
    Song et al. 2021, eq. 6; Huang et al. 2021, eq. 18.
    """
    schedules.check(schedule)
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    noise = checks.non_negative("noise", noise)
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


def probability_flow(schedule: Schedule, denoiser: Denoiser) -> Semilinear:
    """The velocity (x, t) -> dx/dt = α′ D + σ′ (x − α D)/σ of the ODE whose law is p_t at every t. Song et al. 2021,
    eq. 13.

    Written as (σ′/σ) x + (α′ − ασ′/σ) D, it is regular where α → 0 and f, g² are not.
    """
    schedules.check(schedule)
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    return Semilinear(_FlowCoefficients(schedule), as_pytree_callable(denoiser))


def langevin(log_prob: Callable[[Array], Array]) -> SDE:
    """dx = ½ ∇log p(x) dt + dw, whose stationary law is p. log_prob: x -> (), up to a constant.

    Raises TypeError for what cannot be called. Welling & Teh 2011; Song & Ermon 2019, eq. 4.
    """
    checks.callable_("log_prob", log_prob, "log_prob(x)")
    return SDE(_HalfGradient(as_pytree_callable(log_prob)), as_pytree_callable(_unit))


def _unit(x, t):
    return jnp.ones(())
