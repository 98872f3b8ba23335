"""The exact denoiser of a target, and its score."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import checks, schedules
from ..distributions.base import as_array, compiled_eagerly
from ..schedules import Schedule
from ..types import Array, Scalar, as_one_program, pytree
from .base import Target
from .boxes import UniformBoxes
from .mixtures import Mixture

__all__ = ["ExactDenoiser", "denoiser", "score"]


@pytree
class ExactDenoiser:
    """(x, t) -> E[x_0 | x_t = x] of a target under a schedule. See `denoiser`."""

    target: Any
    schedule: Any

    def __call__(self, x: Array, t: Scalar) -> Array:
        """E[x_0 | x_t = x], shape of x."""
        checks.one_of_shapes("t", t, [()])
        return as_one_program(ExactDenoiser._denoised, self, as_array(x), as_array(t))

    def _denoised(self, x, t):
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if hasattr(self.target, "posterior_mean"):
            return self.target.posterior_mean(x, alpha, sigma)
        tweedie = x + sigma**2 * score(self.target.noised(self.schedule, t), x)
        if not hasattr(self.target, "mean"):
            return tweedie / alpha
        return jnp.where(
            alpha > 0,
            tweedie / jnp.where(alpha > 0, alpha, 1),
            self.target.mean().reshape(x.shape),
        )


_TARGET = (checks.has_methods, "noised(schedule, t)")


@checks.arguments(target=_TARGET, schedule=schedules.argument)
def denoiser(target: Target, schedule: Schedule) -> ExactDenoiser:
    """Exact denoiser of a target.

        D(x, t) = E[x_0 | x_t = x]

    It has a closed form where the target has `posterior_mean(x, α, σ)`, as
    mixtures and data sets have. Otherwise it follows from Tweedie's formula D
    = (x + σ² ∇log p_t) / α (Efron 2011, equation 1.4). Where α = 0 it is then
    the target's `mean()`, if there is one.

    Args:
      target: A target of this module, or any pytree with `log_prob(x)` and
        `noised(schedule, t)`.
      schedule: A schedule.

    Returns:
      A pytree callable (x, t) -> D for one example x and a scalar t.

    Raises:
      TypeError: Unless the target has `noised` and the schedule is one.

    Example:
      >>> normal = dj.targets.gaussian([0.0], 1.0)
      >>> denoiser = dj.targets.denoiser(normal, dj.schedules.edm())
      >>> print(jax.jit(denoiser)(jnp.ones(1), 1.0))
      [0.5]
    """
    return ExactDenoiser(target, schedule)


def score(target: Target, x: Array) -> Array:
    """Score ∇log p(x) of a target.

    Args:
      target: Anything with a differentiable log_prob(x).
      x: One example.

    Returns:
      An array of x's shape.

    Example:
      >>> dj.targets.score(dj.targets.gaussian([0.0], 1.0), jnp.ones(1)).tolist()
      [-1.0]
    """
    if isinstance(target, Mixture | UniformBoxes):
        return _score(target, x)
    return jax.grad(target.log_prob)(x)


@compiled_eagerly
def _score(target, x):
    return jax.grad(target.log_prob)(jnp.asarray(x))
