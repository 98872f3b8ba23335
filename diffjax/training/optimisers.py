"""Learning rates as functions of the step, and the optimiser of most trainings."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import checks

__all__ = ["optimiser", "warmup_cosine", "warmup_inverse_sqrt"]

TRANSFORMATION = (checks.has_methods, "init(params)", "update(updates, state, params)")
"""Check of a transformation of optax."""

FRACTION = (checks.within, 0.0, 1.0)
"""Check of a number in [0, 1]."""


@checks.arguments(
    learning_rate=checks.positive,
    warmup_steps=(checks.integer, 0),
    final_fraction=FRACTION,
    total_steps=checks.optional(checks.integer, 1, 2**62),
)
def warmup_cosine(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int | None,
    final_fraction: float = 0.0,
) -> optax.Schedule:
    """Learning rate with linear warm-up and cosine decay.

        η min(1, (n + 1)/warmup_steps) (f + (1 − f) (1 + cos πu)/2)
        u = (n − warmup_steps)/(total_steps − warmup_steps), clipped to [0, 1]

    This is Loshchilov & Hutter 2017, equation 5, without restarts. The first
    step n = 0 has η/warmup_steps, not optax's 0.

    Args:
      learning_rate: η, the greatest rate.
      warmup_steps: Number of steps of the warm-up. 0 for none.
      total_steps: Step at which the decay ends. None for a constant rate after
        the warm-up.
      final_fraction: f, the fraction of η at the end.

    Returns:
      The schedule, n -> learning rate of step n = 0, 1, …

    Raises:
      ValueError: If an argument is out of range, or `total_steps` does not
        exceed `warmup_steps`.
    """
    if total_steps is not None:
        checks.greater("total_steps", total_steps, "warmup_steps", warmup_steps)

    def schedule(n):
        rate = learning_rate * jnp.minimum(1.0, (n + 1) / max(warmup_steps, 1))
        if total_steps is None:
            return rate
        f = final_fraction
        u = jnp.clip((n - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
        return rate * (f + (1.0 - f) * 0.5 * (1.0 + jnp.cos(jnp.pi * u)))

    return jax.jit(schedule, inline=True)


@checks.arguments(
    learning_rate=checks.positive,
    warmup_steps=(checks.integer, 0),
    decay_after=(checks.integer, 1),
)
def warmup_inverse_sqrt(
    learning_rate: float, warmup_steps: int, decay_after: int
) -> optax.Schedule:
    """Learning rate with linear warm-up that later falls as the root of the step.

        η min(1, (n + 1)/warmup_steps) / √max(1, n/decay_after)

    It has no end, so that a training may be made longer afterwards.

    Args:
      learning_rate: η, the greatest rate.
      warmup_steps: Number of steps of the warm-up. 0 for none.
      decay_after: Step from which the rate falls.

    Returns:
      The schedule, n -> learning rate of step n = 0, 1, …

    Raises:
      ValueError: If an argument is out of range.

    References:
      Karras et al. 2024, equation 67, without the warm-up.

    Example:
      >>> rate = dj.training.warmup_inverse_sqrt(0.01, 10, 100)
      >>> [round(float(rate(n)), 4) for n in (0, 100, 400)]
      [0.001, 0.01, 0.005]
    """

    def schedule(n):
        rising = jnp.minimum(1.0, (n + 1) / max(warmup_steps, 1))
        return learning_rate * rising * jax.lax.rsqrt(jnp.maximum(1.0, n / decay_after))

    return jax.jit(schedule, inline=True)


def _rate(name: str, value: Any) -> Any:
    return value if callable(value) else checks.positive(name, value)


def _below_one(name: str, value: Any) -> None:
    checks.within(name, value, 0.0, 1.0)
    checks.require(value < 1, f"{name} must be below 1, got {value}")


@checks.arguments(
    learning_rate=_rate,
    weight_decay=checks.non_negative,
    clip_norm=checks.optional(checks.positive),
    beta_1=_below_one,
    beta_2=_below_one,
    epsilon=checks.non_negative,
    after=checks.optional(*TRANSFORMATION),
)
def optimiser(
    learning_rate: float | optax.Schedule = 1e-3,
    *,
    warmup_steps: int = 0,
    total_steps: int | None = None,
    final_fraction: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    after: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Adam after clipping of the gradient, or AdamW where the weights decay.

    The rate of a number is `warmup_cosine`: a linear warm-up, then constant, or
    a cosine decay if `total_steps` is given. A resumed run with another
    `total_steps` is another run. Any transformation of optax serves in place of
    this one.

    Args:
      learning_rate: The greatest rate, or a schedule, n -> rate of step n = 0,
        1, …, such as `warmup_inverse_sqrt`.
      warmup_steps: Number of steps of the warm-up.
      total_steps: Step at which the cosine decay ends. None for no decay.
      final_fraction: Fraction of the rate at the end of the decay.
      weight_decay: Decay of the weights, multiplied by the rate. 0 for Adam.
      clip_norm: Greatest global norm of the gradient. None for no clipping.
      beta_1: Decay of the first moment, in [0, 1).
      beta_2: Decay of the second moment, in [0, 1).
      epsilon: Added to the root of the second moment.
      after: A last transformation, of the update of the parameters. None for
        none.

    Returns:
      The transformation.

    Raises:
      ValueError: If an argument is out of range, or a warm-up or decay is given
        beside a schedule.
      TypeError: If `after` has no `init` and `update`.

    References:
      Kingma & Ba 2015, Algorithm 1. Loshchilov & Hutter 2019, Algorithm 2.

    Example:
      >>> rule = dj.training.optimiser(1e-3, warmup_steps=100, total_steps=1000)
      >>> rate = dj.training.warmup_inverse_sqrt(0.01, 100, 1000)
      >>> rule = dj.training.optimiser(rate, clip_norm=None)
    """
    rate: Any = learning_rate
    changing = warmup_steps or total_steps is not None
    if callable(rate):
        checks.require(
            not changing and not final_fraction,
            "warmup_steps, total_steps and final_fraction must be left out with a "
            f"schedule, got {warmup_steps}, {total_steps} and {final_fraction}",
        )
    elif changing:
        rate = warmup_cosine(rate, warmup_steps, total_steps, final_fraction)
    if weight_decay > 0:
        adam = optax.adamw(rate, beta_1, beta_2, epsilon, weight_decay=weight_decay)
    else:
        adam = optax.adam(rate, beta_1, beta_2, epsilon)
    clip = None if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    parts = [part for part in (clip, adam, after) if part is not None]
    return adam if len(parts) == 1 else optax.chain(*parts)
