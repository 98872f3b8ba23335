"""Posterior samplers by the gradient of an approximate likelihood: DPS and ΠGDM."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, predictions, schedules
from ..guidance import StepScale, check_signal, ratio_of_steps, shifted
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
    check_operator,
    measurement,
    noise_stds,
    whitened,
)


@pytree
class LikelihoodGuided:
    """D + γ (σ²/α) Jᵀ Aᵀ (r² A Aᵀ + τ² I)⁻¹ (y − A D), J = ∂D/∂x. See `dps` and `pigdm`."""

    schedule: Any
    denoiser: Any
    operator: Any
    y: Any
    noise_std: Any
    variance: Any
    scale: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The approximate E[x_0 | x_t = x, y], shape of x; a condition is the denoiser's."""
        data, residual, pulled = _measured(self, x, t, condition)
        variance = 0.0 if self.variance is None else self.variance(t)
        gradient = pulled(self.operator.solve(residual, variance, self.noise_std**2))
        return shifted(self.schedule, t, data, self.scale * gradient)


def _measured(guided, x, t, condition):
    """(D, y − A D, v -> Jᵀ Aᵀ v) at x_t = x, by one call of the denoiser."""
    data, pullback = jax.vjp(
        lambda x: checks.denoised(guided.denoiser(x, t, *condition), x), x
    )
    pulled = lambda v: pullback(guided.operator.transpose(v).astype(data.dtype))[0]
    return data, guided.y - guided.operator.forward(data), pulled


@pytree
class GaussianVariance:
    """r²(t) = s² σ²/(α² s² + σ²). See `gaussian_variance`."""

    schedule: Any
    std: Any

    def __call__(self, t: Scalar) -> Array:
        """Var(x_0 | x_t), shape ()."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return (self.std * sigma) ** 2 / ((alpha * self.std) ** 2 + sigma**2)


def gaussian_variance(schedule: Schedule, std: Scalar = 1.0) -> GaussianVariance:
    """r²(t) = s² σ²/(α² s² + σ²), the variance of x_0 given x_t for data N(m, s² I), shape ().

    std: s, in data units. Raises ValueError unless s > 0. Bishop 2006, eq. 2.117; Song et al. 2023 (ΠGDM), section 3.2
    with s = 1.
    """
    return GaussianVariance(schedules.check(schedule), checks.positive("std", std))


def dps(
    schedule: Schedule,
    denoiser: Denoiser,
    operator: LinearOperator,
    y: ArrayLike,
    *,
    noise_std: ArrayLike,
    scale: Scalar = 1.0,
) -> LikelihoodGuided:
    """Diffusion posterior sampling (Chung et al. 2023, Theorem 1), as a denoiser.

        D + γ (σ²/α) ∇_x log N(y; A D(x, t), diag(τ²))

    This is `guidance.classifier` with p(y | x_t) replaced by p(y | x_0 = D). It ignores Var(x_0 | x_t) and is too
    narrow: on N(0, s²) with α = 1, A = 1 and γ = 1 the probability flow's variance is s² e^{−z}, z = s²/τ², where the
    posterior has s²/(1 + z). The flow is stiff where τ is small; `dps_steps` has the paper's step size.

    Args:
      schedule: With α(t_max) > 0.
      denoiser: E[x_0 | x_t] of the prior. Each evaluation makes one call and one pullback.
      operator: A.
      y: The measurement, of shape operator.measured.
      noise_std: τ > 0, one number or one for each entry of y.
      scale: γ.

    Returns:
      A denoiser for any solver.

    Raises:
      TypeError: For an operator or denoiser of another kind.
      ValueError: For y, noise_std or scale that does not fit, or α(t_max) = 0.
    """
    noise_std = noise_stds(operator, noise_std, positive=True)
    return _guided(schedule, denoiser, operator, y, noise_std, None, scale)


@pytree
class ResidualSteps:
    """D − (ζ/b) ∇_x ‖y − A D(x, t)‖, b a step's gain of D. See `dps_steps`."""

    denoiser: Any
    operator: Any
    y: Any
    gain: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The shifted D, shape of x; a condition is the denoiser's."""
        data, residual, pulled = _measured(self, x, t, condition)
        square = jnp.sum(residual**2)
        return data + self.gain(t) * pulled(
            residual / jnp.sqrt(jnp.where(square > 0, square, 1))
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
    """DPS with the paper's steps: on this grid a step of `ddpm()`, then x ← x − ζ ∇_x ‖y − A D(x_t, t)‖.

    As a denoiser: D − (ζ/b) ∇‖y − A D‖ for each step from t to s, b = α_s (1 − ρ_s²/ρ_t²), ρ = σ/α, the gain of D in
    that step, 1 where it ends at 0. Another solver or grid makes other steps of it. step_size: ζ ≥ 0; no noise level
    enters, and no posterior is sampled. One denoiser call and one pullback. Raises TypeError and ValueError for an
    operator, y, grid or step_size that does not fit. Chung et al. 2023 (DPS), Algorithm 1, whose ζ_i ∇‖y − A D‖² with
    ζ_i = ζ′/‖y − A D‖ is this at ζ = 2ζ′.
    """
    denoiser = as_pytree_callable(
        checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    )
    predictions.check_independent("dps_steps", denoiser)
    y, step_size = measurement(operator, y), checks.non_negative("step_size", step_size)
    ratio = ratio_of_steps(schedule, grid)
    strength = as_one_program(_step_strengths, schedule, ratio, step_size)
    if not checks.is_traced(strength) and not np.all(np.isfinite(strength)):
        raise ValueError(
            f"grid must reach α > 0 in its first step, got α = 0 at t={ratio.end[0]}: start it later"
        )
    return ResidualSteps(denoiser, operator, y, StepScale(ratio.start, strength))


def _step_strengths(schedule, ratio, step_size):
    """ζ/b of each step, (N,)."""
    alpha = schedule.alpha(jnp.where(ratio.end == 0, ratio.start, ratio.end))
    return step_size / jnp.where(
        ratio.end == 0, 1, alpha * ratio.gap * (1 + ratio.value)
    )


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
    """Pseudoinverse guidance, ΠGDM (Song et al. 2023, section 3), as a denoiser.

        D + γ (σ²/α) Jᵀ Aᵀ (r² A Aᵀ + diag(τ²))⁻¹ (y − A D),    J = ∂D/∂x

    The distribution of x_0 given x_t is taken as N(D, r² I). The weights that the paper's own solver, Algorithm 1, puts
    on the gradient are left out.

    Args:
      schedule: With α(t_max) > 0.
      denoiser: E[x_0 | x_t] of the prior. Each evaluation makes one call and one pullback.
      operator: A.
      y: The measurement, of shape operator.measured.
      noise_std: τ ≥ 0, one number or one for each entry of y, then > 0 unless A Aᵀ is a multiple of the identity, as
        of `inpainting`.
      variance: r²(t), by default `gaussian_variance(schedule, 1.0)` for data of unit variance. The method is exact for
        N(m, s² I) with `gaussian_variance(schedule, s)`.
      scale: γ.

    Returns:
      A denoiser for any solver.

    Raises:
      TypeError: For an operator, denoiser or variance of another kind.
      ValueError: For y, noise_std or scale that does not fit, or α(t_max) = 0.
    """
    check_operator(operator)
    noise_std = noise_stds(
        operator,
        noise_std,
        positive=np.ndim(noise_std) > 0 and operator.basis is not None,
    )
    variance = (
        gaussian_variance(schedule)
        if variance is None
        else checks.callable_("variance", variance, "r²(t)")
    )
    return _guided(
        schedule, denoiser, operator, y, noise_std, as_pytree_callable(variance), scale
    )


def _guided(schedule, denoiser, operator, y, noise_std, variance, scale):
    check_signal("schedule", schedule)
    denoiser = as_pytree_callable(
        checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    )
    predictions.check_independent("guidance by a likelihood", denoiser)
    y, scale = measurement(operator, y), checks.number("scale", scale)
    if np.ndim(noise_std) and operator.basis is not None:
        operator, y, noise_std = (
            whitened(operator, noise_std),
            y / noise_std,
            jnp.ones((), noise_std.dtype),
        )
    return LikelihoodGuided(schedule, denoiser, operator, y, noise_std, variance, scale)
