"""Guidance by the gradient of a classifier trained on noisy examples."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .. import checks, schedules
from ..schedules import Schedule
from ..types import (
    Array,
    Denoiser,
    Scalar,
    as_one_program,
    as_pytree_callable,
    pytree,
)
from . import arguments
from .stepwise import scale_at

__all__ = ["Classifier", "check_signal", "classifier", "shifted"]


@pytree
class Classifier:
    """The denoiser D + γ (σ²/α) ∇_x log p(y | x_t), see `classifier`."""

    schedule: Any
    denoiser: Any
    log_prob_y: Any
    scale: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The guided D, shape of x. A condition is passed to the classifier."""

        def log_prob(x):
            value = self.log_prob_y(x, t, *condition)
            return checks.scalar_of("log_prob_y", value)

        denoised = arguments.denoised_at(self.denoiser, x, t)
        gradient = scale_at(self.scale, t) * jax.grad(log_prob)(x)
        return shifted(self.schedule, t, denoised, gradient)


def shifted(schedule: Schedule, t: Scalar, denoised: Array, gradient: Array) -> Array:
    """The denoised value whose score is the original one plus a gradient.

        D + (σ²/α) ∇

    This is Tweedie's formula D = (x + σ² s)/α with s + ∇ in place of s.

    Args:
      schedule: A schedule with α(t) > 0.
      t: Time, shape ().
      denoised: D(x, t), shape of x.
      gradient: ∇, what is added to the score, shape of x.

    Returns:
      The shifted D, shape of x.

    Example:
      >>> edm = dj.schedules.edm()
      >>> dj.guidance.shifted(edm, 2.0, jnp.zeros(2), jnp.ones(2))
      Array([4., 4.], dtype=float32)
    """
    return denoised + schedule.sigma(t) ** 2 / schedule.alpha(t) * gradient


def check_signal(name: str, schedule: Schedule) -> Schedule:
    """The schedule, if α(t_max) is positive.

    Where α rounds to 0 the factor σ²/α of a gradient has no value.

    Args:
      name: The argument's name, for the message.
      schedule: The argument.

    Returns:
      The schedule.

    Raises:
      TypeError: If it is no schedule.
      ValueError: If α(t_max) is 0 or rounds to it.
    """
    schedules.argument(name, schedule)
    if not checks.is_traced(schedule):
        with jax.ensure_compile_time_eval():
            level, alpha = map(float, as_one_program(_first_level, schedule))
        checks.require(
            math.isfinite(level) and alpha >= float(np.finfo(np.float32).tiny),
            f"{name} must have α(t_max) > 0, but α = {alpha:.3g} at "
            f"t_max={schedule.t_max}, 0 to rounding: lower t_max",
        )
    return schedule


def _first_level(schedule):
    """(λ(t_max), α(t_max))."""
    return schedules.log_snr(schedule, schedule.t_max), schedule.alpha(schedule.t_max)


@checks.arguments(
    schedule=check_signal,
    denoiser=(arguments.independent_denoiser, "classifier guidance"),
    log_prob_y=(checks.callable_, "f(x, t)"),
    scale=arguments.scale,
)
def classifier(
    schedule: Schedule,
    denoiser: Denoiser,
    log_prob_y: Callable,
    scale: Scalar | Callable = 1.0,
) -> Classifier:
    """Classifier guidance (Dhariwal & Nichol 2021, Algorithm 2).

        D + γ (σ²/α) ∇_x log p(y | x_t)

    The score becomes s + γ ∇_x log p(y | x_t). At γ = 1 this is the score of
    p_t(x | y), by Bayes' rule.

    Args:
      schedule: A schedule with α(t_max) > 0.
      denoiser: (x, t) -> D. It is called once per evaluation.
      log_prob_y: (x, t) -> log p(y | x_t = x) in nats, (), up to a constant,
        of a classifier trained on noisy x. A condition given to `sample_many`
        is passed to it as a third argument. Its gradient is taken once per
        evaluation.
      scale: γ, a number or a function of t.

    Returns:
      A denoiser.

    Raises:
      TypeError: If the denoiser or the classifier cannot be called, or the
        denoiser has `independent=False`.
      ValueError: If the scale is not finite, or α(t_max) = 0, where the shift
        has no value.

    References:
      Song et al. 2021, section 5, for the score of the conditional
      distribution.

    Example:
      >>> log_prob_y = lambda x, t: jax.nn.log_sigmoid(4 * x[0])  # y: "on the right"
      >>> guided = dj.guidance.classifier(schedule, denoiser, log_prob_y, 2.0)
      >>> guided(jnp.zeros(2), 0.5)[0] > denoiser(jnp.zeros(2), 0.5)[0]
      Array(True, dtype=bool)
    """
    return Classifier(schedule, denoiser, as_pytree_callable(log_prob_y), scale)
