"""Posterior samplers by the gradient of an approximate likelihood: DPS and ΠGDM."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..guidance import StepScale, arguments, check_signal, ratio_of_steps, shifted
from ..schedules import Schedule
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    Scalar,
    as_one_program,
    as_pytree_callable,
    pytree,
)
from .operators import (
    LinearOperator,
    measurement,
    noise_stds,
    whitened,
)

__all__ = [
    "GaussianVariance",
    "LikelihoodGuided",
    "ResidualSteps",
    "dps",
    "dps_steps",
    "gaussian_variance",
    "pigdm",
]

_INDEPENDENT = (arguments.independent_denoiser, "guidance by a likelihood")


@pytree
class LikelihoodGuided:
    """The denoiser of `dps` and `pigdm`.

    D + γ (σ²/α) Jᵀ Aᵀ (r² A Aᵀ + τ² I)⁻¹ (y − A D),    J = ∂D/∂x
    """

    schedule: Any
    denoiser: Any
    operator: Any
    y: Any
    noise_std: Any
    variance: Any
    scale: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The approximate E[x_0 | x_t = x, y], shape of x.

        A condition is passed to the denoiser.
        """
        denoised, residual, pulled = _measured(self, x, t, condition)
        variance = 0.0 if self.variance is None else self.variance(t)
        gradient = pulled(self.operator.solve(residual, variance, self.noise_std**2))
        return shifted(self.schedule, t, denoised, self.scale * gradient)


def _measured(guided, x, t, condition):
    """(D, y − A D, v -> Jᵀ Aᵀ v) at x_t = x, by one call of the denoiser."""
    denoised, pullback = jax.vjp(
        lambda x: arguments.denoised_at(guided.denoiser, x, t, *condition), x
    )

    def pulled(v):
        return pullback(guided.operator.transpose(v).astype(denoised.dtype))[0]

    return denoised, guided.y - guided.operator.forward(denoised), pulled


@pytree
class GaussianVariance:
    """The variance of x_0 given x_t for Gaussian data, see `gaussian_variance`."""

    schedule: Any
    std: Any

    def __call__(self, t: Scalar) -> Array:
        """r²(t), shape ()."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return (self.std * sigma) ** 2 / ((alpha * self.std) ** 2 + sigma**2)


@checks.arguments(schedule=schedules.argument, std=checks.positive)
def gaussian_variance(schedule: Schedule, std: Scalar = 1.0) -> GaussianVariance:
    """Variance of x_0 given x_t for data N(m, s² I) (Bishop 2006, equation 2.117).

        r²(t) = s² σ²/(α² s² + σ²)

    Song et al. 2023 (ΠGDM), section 3.2, take s = 1.

    Args:
      schedule: A schedule.
      std: s > 0, in data units.

    Returns:
      A function t -> r², of shape ().

    Raises:
      ValueError: Unless s > 0.

    Example:
      >>> variance = dj.inverse.gaussian_variance(dj.schedules.edm(), 1.0)
      >>> float(variance(1.0))
      0.5
    """
    return GaussianVariance(schedule, std)


def dps(
    schedule: Schedule,
    denoiser: Denoiser,
    operator: LinearOperator,
    y: ArrayLike,
    *,
    noise_std: ArrayLike,
    scale: Scalar = 1.0,
) -> LikelihoodGuided:
    """Diffusion posterior sampling, DPS (Chung et al. 2023, Theorem 1).

        D + γ (σ²/α) ∇_x log N(y | A D(x, t), diag(τ²))

    This is `guidance.classifier` with p(y | x_t) replaced by p(y | x_0 = D).
    The probability flow is stiff where τ is small. `dps_steps` has the paper's
    step size.

    The method ignores Var(x_0 | x_t) and is too narrow. On N(0, s²) with α =
    1, A = 1 and γ = 1 the probability flow's variance is s² e^{−z}, z = s²/τ²,
    where the posterior has s²/(1 + z).

    Args:
      schedule: A schedule with α(t_max) > 0.
      denoiser: E[x_0 | x_t] of the prior. Each evaluation makes one call and
        one pullback.
      operator: A.
      y: The measurement, of shape operator.measured.
      noise_std: τ > 0, one number or one for each entry of y.
      scale: γ.

    Returns:
      A denoiser for any solver.

    Raises:
      TypeError: For an operator or denoiser of another kind.
      ValueError: For y, noise_std or scale that does not fit, or α(t_max) = 0.

    Example:
      >>> first = dj.inverse.inpainting([True, False])
      >>> guided = dj.inverse.dps(schedule, denoiser, first, [1.0], noise_std=0.5)
      >>> dj.sample(key, guided, schedule, grid=grid, shape=(2,)).shape
      (2,)
    """
    y, noise_std = (
        measurement(operator, y),
        noise_stds(operator, noise_std, positive=True),
    )
    return _guided(schedule, denoiser, operator, y, noise_std, None, scale)


@pytree
class ResidualSteps:
    """The denoiser D − (ζ/b) ∇_x ‖y − A D(x, t)‖ of `dps_steps`.

    Attributes:
      denoiser: Of the prior.
      operator: A.
      y: The measurement.
      gain: ζ/b of each step, a `StepScale`.
    """

    denoiser: Any
    operator: Any
    y: Any
    gain: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The shifted D, shape of x. A condition is passed to the denoiser."""
        denoised, residual, pulled = _measured(self, x, t, condition)
        square = jnp.sum(residual**2)
        norm = jnp.sqrt(jnp.where(square > 0, square, 1))
        return denoised + self.gain(t) * pulled(residual / norm)


@checks.arguments(
    denoiser=(arguments.independent_denoiser, "dps_steps"),
    step_size=checks.non_negative,
)
def dps_steps(
    schedule: Schedule,
    denoiser: Denoiser,
    operator: LinearOperator,
    y: ArrayLike,
    *,
    grid: ArrayLike,
    step_size: Scalar = 1.0,
) -> ResidualSteps:
    """DPS with the paper's step size (Chung et al. 2023, Algorithm 1).

        x ← x − ζ ∇_x ‖y − A D(x_t, t)‖ after each step of `ddpm()` on this grid

    As a denoiser it is D − (ζ/b) ∇_x ‖y − A D‖ for each step from t to s. Here
    b = α_s (1 − ρ_s²/ρ_t²) with ρ = σ/α is the gain of D in that step, 1 where
    the step ends at 0. Another solver or grid turns it into other steps.

    No noise level of the measurement enters, and no posterior is sampled.

    Args:
      schedule: A schedule.
      denoiser: E[x_0 | x_t] of the prior. Each evaluation makes one call and
        one pullback.
      operator: A.
      y: The measurement, of shape operator.measured.
      grid: Decreasing times (N + 1,) that `ddpm()` will walk. It may end at 0.
      step_size: ζ ≥ 0.

    Returns:
      A denoiser for `ddpm()` on this grid.

    Raises:
      TypeError: For an operator or denoiser of another kind.
      ValueError: For a y, grid or step size that does not fit.

    References:
      The paper writes ζ_i ∇‖y − A D‖² with ζ_i = ζ′/‖y − A D‖. This is that
      with ζ = 2ζ′.

    Example:
      >>> first = dj.inverse.inpainting([True, False])
      >>> guided = dj.inverse.dps_steps(schedule, denoiser, first, [1.0], grid=grid)
      >>> ddpm = dj.solvers.ddpm()
      >>> x = dj.sample(key, guided, schedule, solver=ddpm, grid=grid, shape=(2,))
    """
    y, ratio = measurement(operator, y), ratio_of_steps(schedule, grid)
    strength = as_one_program(_step_strengths, schedule, ratio, step_size)
    # The message only where it is due: an entry of an array takes two small programs.
    if not checks.is_traced(strength) and not np.all(np.isfinite(strength)):
        raise ValueError(
            "grid must reach α > 0 in its first step, got α = 0 at "
            f"t={ratio.steps.end[0]}: start it later"
        )
    return ResidualSteps(denoiser, operator, y, StepScale(ratio.steps.start, strength))


def _step_strengths(schedule, ratio, step_size):
    """ζ/b of each step, (N,)."""
    alpha = schedule.alpha(ratio.steps.end)
    # 1 − r² as (1 − r)(1 + r), without cancellation for close steps
    gain = jnp.where(ratio.steps.at_zero, 1, alpha * ratio.gap * (1 + ratio.value))
    return step_size / gain


@checks.arguments(variance=checks.optional(checks.callable_, "r²(t)"))
def pigdm(
    schedule: Schedule,
    denoiser: Denoiser,
    operator: LinearOperator,
    y: ArrayLike,
    *,
    noise_std: ArrayLike,
    variance: Callable | None = None,
    scale: Scalar = 1.0,
) -> LikelihoodGuided:
    """Pseudoinverse guidance, ΠGDM (Song et al. 2023, section 3).

        D + γ (σ²/α) Jᵀ Aᵀ (r² A Aᵀ + diag(τ²))⁻¹ (y − A D),    J = ∂D/∂x

    The distribution of x_0 given x_t is taken as N(D, r² I).

    Args:
      schedule: A schedule with α(t_max) > 0.
      denoiser: E[x_0 | x_t] of the prior. Each evaluation makes one call and
        one pullback.
      operator: A.
      y: The measurement, of shape operator.measured.
      noise_std: τ ≥ 0, one number or one for each entry of y. One for each
        entry must be positive unless A Aᵀ is a multiple of the identity, as
        for `inpainting`.
      variance: r²(t), by default `gaussian_variance(schedule, 1.0)` for data
        of unit variance. The method is exact for N(m, s² I) with
        `gaussian_variance(schedule, s)`.
      scale: γ.

    Returns:
      A denoiser for any solver.

    Raises:
      TypeError: For an operator, denoiser or variance of another kind.
      ValueError: For y, noise_std or scale that does not fit, or α(t_max) = 0.

    References:
      The paper's own solver, Algorithm 1, weights the gradient in each step.
      Those weights are left out.

    Example:
      >>> first = dj.inverse.inpainting([True, False])
      >>> guided = dj.inverse.pigdm(schedule, denoiser, first, [1.0], noise_std=0.1)
      >>> dj.sample(key, guided, schedule, grid=grid, shape=(2,)).shape
      (2,)
    """
    y = measurement(operator, y)
    per_entry = np.ndim(noise_std) > 0 and operator.basis is not None
    noise_std = noise_stds(operator, noise_std, positive=per_entry)
    variance = gaussian_variance(schedule) if variance is None else variance
    return _guided(
        schedule, denoiser, operator, y, noise_std, as_pytree_callable(variance), scale
    )


@checks.arguments(schedule=check_signal, denoiser=_INDEPENDENT, scale=checks.number)
def _guided(schedule, denoiser, operator, y, noise_std, variance, scale):
    if np.ndim(noise_std) and operator.basis is not None:
        # Dividing each row by its τ leaves an operator with noise 1.
        operator, y = whitened(operator, noise_std), y / noise_std
        noise_std = jnp.ones((), noise_std.dtype)
    return LikelihoodGuided(schedule, denoiser, operator, y, noise_std, variance, scale)
