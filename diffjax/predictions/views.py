"""Views of a denoiser: the score, noise, v, velocity and variance that it implies."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import checks, schedules
from ..schedules import Schedule
from ..types import (
    Array,
    Denoiser,
    Scalar,
    as_pytree,
    as_pytree_callable,
    one_program,
    pytree,
    static_field,
)
from .kinds import KINDS, rates_for
from .network import check_independent

__all__ = ["TweedieVariance", "View", "noise", "score", "v", "variance", "velocity"]


@pytree
class View:
    """(x, t) -> a D + b ε̂ of a denoiser, with the coefficients of a kind.

    It is made by `score`, `noise`, `v` and `velocity`.
    """

    schedule: Any
    denoiser: Any
    kind: str = static_field()

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """a D + b (x − α D)/σ, shape of x."""
        denoised = self.denoiser(x, t, *condition)
        return _as_kind(self.schedule, self.kind, x, t, denoised)


@one_program
def _as_kind(schedule, kind, x, t, denoised):
    r = rates_for(kind, schedule, t)
    a, b = KINDS[kind](r, None)
    # a and b are those of F = a x_0 + b ε, with D for x_0 and ε̂ = (x − α D)/σ
    # for ε.
    return a * denoised + b * (x - r.alpha * denoised) / r.sigma


def score(schedule: Schedule, denoiser: Denoiser) -> View:
    """The score ∇log p_t = (α D − x)/σ² of a denoiser, by Tweedie's formula.

    The noise must be independent of x_0.

    Args:
      schedule: The noise schedule.
      denoiser: (x, t) -> E[x_0 | x_t = x].

    Returns:
      (x, t) -> array of x's shape. NaN where σ = 0, outside [t_min,
        t_max].

    Raises:
      TypeError: If the denoiser has independent=False, see
        `check_independent`.

    Example:
      >>> dj.predictions.score(schedule, denoiser)(jnp.ones(2), 0.5).shape
      (2,)
    """
    check_independent("score", denoiser)
    return _view(schedule, denoiser, "score")


def noise(schedule: Schedule, denoiser: Denoiser) -> View:
    """The noise ε̂ = (x − α D)/σ that a denoiser implies.

    Args:
      schedule: The noise schedule.
      denoiser: (x, t) -> E[x_0 | x_t = x].

    Returns:
      (x, t) -> array of x's shape. NaN where σ = 0, outside [t_min,
        t_max].

    Example:
      >>> dj.predictions.noise(schedule, denoiser)(jnp.ones(2), 0.5).shape
      (2,)
    """
    return _view(schedule, denoiser, "noise")


def v(schedule: Schedule, denoiser: Denoiser) -> View:
    """The v prediction (α ε̂ − σ D)/√(α² + σ²) that a denoiser implies.

    Args:
      schedule: The noise schedule.
      denoiser: (x, t) -> E[x_0 | x_t = x].

    Returns:
      (x, t) -> array of x's shape. NaN where σ = 0, outside [t_min,
        t_max].

    Example:
      >>> dj.predictions.v(schedule, denoiser)(jnp.ones(2), 0.5).shape
      (2,)
    """
    return _view(schedule, denoiser, "v")


def velocity(schedule: Schedule, denoiser: Denoiser) -> View:
    """The velocity dx/dt = α′ D + σ′ ε̂ of the probability flow.

    It is regular where the drift and the diffusion coefficient are not.

    Args:
      schedule: The noise schedule.
      denoiser: (x, t) -> E[x_0 | x_t = x].

    Returns:
      (x, t) -> array of x's shape, in data units per time.
        NaN where σ = 0, outside [t_min, t_max].

    Example:
      >>> dj.predictions.velocity(schedule, denoiser)(jnp.ones(2), 0.5).shape
      (2,)
    """
    return _view(schedule, denoiser, "velocity")


@checks.arguments(schedule=schedules.argument, denoiser=checks.denoiser)
def _view(schedule, denoiser, kind):
    return View(as_pytree(schedule), as_pytree_callable(denoiser), kind=kind)


@pytree
class TweedieVariance:
    """(x, t) -> (σ²/α) ∂D_i/∂x_i, made by `variance`."""

    schedule: Any
    denoiser: Any

    @one_program
    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """Var(x_0 | x_t = x) of each entry, shape of x."""
        flat = lambda y: jnp.ravel(self.denoiser(y.reshape(x.shape), t, *condition))
        # In forward mode, which stores no activations of the network.
        slopes = jnp.diagonal(jax.jacfwd(flat)(jnp.ravel(x)))  # (D,)
        ratio = self.schedule.sigma(t) ** 2 / self.schedule.alpha(t)
        return (ratio * slopes).reshape(x.shape)


@checks.arguments(schedule=schedules.argument, denoiser=checks.denoiser)
def variance(schedule: Schedule, denoiser: Denoiser) -> TweedieVariance:
    """The variance of each entry of x_0 given x_t, by Tweedie's second formula.

        Var(x_0 | x_t = x)_i = (σ²/α) ∂D_i/∂x_i

    It is exact where D is, and costs D pushforwards for D entries. With
    `ddpm.paired` it gives the variance "optimal".

    Args:
      schedule: The noise schedule.
      denoiser: (x, t) -> E[x_0 | x_t = x].

    Returns:
      (x, t) -> array of x's shape.

    Raises:
      TypeError: If an argument is no schedule or no denoiser, or the denoiser
        has independent=False, see `check_independent`.

    References:
      Efron 2011. Bao et al. 2022, Lemma 4.
    """
    check_independent("variance", denoiser)
    return TweedieVariance(as_pytree(schedule), as_pytree_callable(denoiser))
