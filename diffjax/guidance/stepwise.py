"""Guidance scales that belong to the steps of a grid: CFG++."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from .. import checks, grids, schedules
from ..grids.steps import Steps, steps_of
from ..schedules import Schedule
from ..types import Array, ArrayLike, Scalar, as_one_program, pytree

__all__ = ["Ratios", "StepScale", "cfg_plus_plus_scale", "ratio_of_steps"]


@pytree
class StepScale:
    """A scale for each step of a grid, for denoisers called at the step's start.

    Attributes:
      times: Start of each step, (N,).
      values: Its scale, (N,).
    """

    times: Array
    values: Array

    def __call__(self, t: Scalar) -> Array:
        """γ of the step that starts at the grid time nearest to t, shape ()."""
        return self.values[jnp.argmin(jnp.abs(self.times - t))]


@checks.arguments(scale=checks.non_negative)
def cfg_plus_plus_scale(
    schedule: Schedule, grid: ArrayLike, scale: Scalar
) -> StepScale:
    """CFG++ as a guidance scale (Chung et al. 2024, Algorithm 2).

        γ(t) = λ / (1 − ρ_s/ρ_t),    ρ = σ/α, for each step from t to s

    CFG++ steps to x_s = α_s ((1 − λ) D_u + λ D_c) + σ_s ε̂_u, from guided data
    and unguided noise. That is the `ddim()` step of `classifier_free` with
    this scale on the same grid, for as many denoiser calls.

    As steps shrink γ grows without bound. CFG++ therefore belongs to its grid
    and does not discretise any probability flow.

    Args:
      schedule: A schedule.
      grid: Decreasing times (N + 1,). It may end at 0.
      scale: λ, 0 or more, as a rule at most 1.

    Returns:
      A function t -> γ, for the `scale` of `classifier_free`.

    Raises:
      ValueError: If the grid does not decrease or the scale is negative.

    Example:
      >>> part = dj.targets.denoiser(dj.targets.gaussian([1.5, 0.0], 0.4), schedule)
      >>> scale = dj.guidance.cfg_plus_plus_scale(schedule, grid, 0.6)
      >>> guided = dj.guidance.classifier_free(part, denoiser, scale)
      >>> x = dj.sample(
      ...     key, guided, schedule, solver=dj.solvers.ddim(), grid=grid, shape=(2,)
      ... )
    """
    ratio = ratio_of_steps(schedule, grid)
    return StepScale(ratio.steps.start, scale / ratio.gap)


class Ratios(NamedTuple):
    """The ratios ρ_s/ρ_t of steps from t to s, ρ = σ/α.

    Attributes:
      steps: The steps, from times to times.
      value: ρ_s/ρ_t, (N,), 0 where s = 0 or α(t) = 0.
      gap: 1 − ρ_s/ρ_t, (N,).
    """

    steps: Steps
    value: Array
    gap: Array


def ratio_of_steps(schedule: Schedule, grid: ArrayLike) -> Ratios:
    """The ratio ρ_s/ρ_t of each step from t to s, ρ = σ/α.

    Args:
      schedule: A schedule.
      grid: Decreasing times (N + 1,). It may end at 0.

    Returns:
      The ratios, with what they lack to 1.

    Raises:
      ValueError: If the grid is not one or does not decrease.

    Example:
      >>> ratios = dj.guidance.ratio_of_steps(dj.schedules.edm(), [1.0, 0.5, 0.25])
      >>> ratios.value.shape
      (2,)
    """
    grid = grids.decreasing("grid", grid, schedules.check(schedule), zero_end=True)
    return as_one_program(_ratios, schedule, grid)


def _ratios(schedule, grid):
    steps = steps_of(grid)
    t, s = steps.start, steps.end
    noise = schedule.sigma(s) * schedule.alpha(t)
    signal = schedule.alpha(s) * schedule.sigma(t)
    # α may underflow where the log-SNR is still finite. Both products are then too
    # small to divide, and the ratio follows from the log-SNR.
    by_log_snr = 0.5 * (schedules.log_snr(schedule, t) - schedules.log_snr(schedule, s))
    info = jnp.finfo(noise.dtype)
    small = jnp.minimum(noise, signal) < info.tiny / info.eps
    # From α = 0 every step is a whole one: ρ_s/ρ_t = 0.
    known = jnp.where(jnp.isfinite(by_log_snr), by_log_snr, -jnp.inf)
    safe = jnp.where(small, 1, signal)
    value = jnp.where(small, jnp.exp(known), noise / safe)
    # Not 1 − value: that cancels for close steps.
    gap = jnp.where(small, -jnp.expm1(known), (signal - noise) / safe)
    at_zero = steps.at_zero
    return Ratios(steps, jnp.where(at_zero, 0, value), jnp.where(at_zero, 1, gap))


def scale_at(scale: Any, t: Scalar) -> Any:
    """A guidance scale at time t.

    Args:
      scale: γ, a number or a function of t.
      t: Time, shape ().

    Returns:
      γ(t), shape ().

    Raises:
      ValueError: If a function returns an array of another shape.
    """
    value = scale(t) if callable(scale) else scale
    return checks.scalar_of("scale(t)", value)
