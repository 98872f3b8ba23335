"""Ancestral samplers: a deterministic step below the noise level aimed at, then noise up to it; and EDM's churn."""

import dataclasses
import math

import jax.numpy as jnp

from .. import checks
from ..types import Array
from .affine import (
    Steps,
    Update,
    multistep,
    noise_level_of_ratio,
    noise_steps,
    one_step,
)
from .base import Solver, factory, needs


def split(steps: Steps, eta: float) -> tuple[Array, Array]:
    """(ρ_↓, ρ_↑) with ρ_↓² + ρ_↑² = ρ_s²: ρ_↑ = η ρ_s √(1 − ρ_s²/ρ_t²), each of shape (N,).

    At η = 1 ρ_↑² is the variance of DDPM's posterior q(y_s | y_t, x_0), ρ_↓ = ρ_s²/ρ_t. Song et al. 2021 (DDIM), eq.
    16.
    """
    # 1 + η² expm1(−2h) would cancel to rounding at a large step h, and ρ_↓/ρ_s with it
    kept = (1 - eta**2) + eta**2 * jnp.exp(-2 * steps.log_step)
    lost = -(eta**2) * jnp.expm1(-2 * steps.log_step)
    return steps.end.rho * jnp.sqrt(kept), steps.end.rho * jnp.sqrt(lost)


def _ancestral(eta):
    """y ← D + (ρ_↓/ρ_t)(y − D) + ρ_↑ z."""

    def predict(schedule, steps):
        down, up = split(steps, eta)
        return Update(
            steps.end,
            down / steps.end.rho,
            (1 - down / steps.start.rho,),
            (up,) if eta else (),
        )

    return predict


@factory
def ddim(eta: float = 0.0) -> Solver:
    """x_s = α_s D + (x_t − α_t D) √(σ_s² − ς²)/σ_t + ς z, ς = η (σ_s/σ_t) √(σ_t² − (α_t/α_s)² σ_s²): one evaluation.

    eta = 0 is the exponential Euler step of the probability flow, order 1; eta = 1 samples DDPM's posterior, weak order
    1. It starts where α = 0 too. Raises ValueError unless 0 ≤ eta ≤ 1. Song et al. 2021 (DDIM), eq. 12 and 16.
    """
    checks.within("eta", eta, 0, 1)
    name = f"ddim({eta:g})"
    return multistep(
        name,
        _ancestral(eta),
        order=1,
        stochastic=eta > 0,
        check_grid=needs(name),
    )


@factory
def euler_ancestral(eta: float = 1.0) -> Solver:
    """y ← y + (ρ_↓ − ρ) ε̂, then noise ρ_↑ z, for y = x/α, ρ = σ/α: weak order 1, one evaluation a step.

    It is `ddim(eta)`: Euler's step in ρ is DDIM's. Raises ValueError unless 0 ≤ eta ≤ 1. Crowson 2022 (k-diffusion), on
    Karras et al. 2022's ODE.
    """
    checks.within("eta", eta, 0, 1)
    return ddim(eta)._replace(name=f"euler_ancestral({eta:g})")


@factory
def ddpm(variance: float | str = "posterior") -> Solver:
    """DDPM's ancestral step for any two times: the mean of q(x_s | x_t, x_0 = D), and noise. Weak order 1.

    variance: "posterior", β̃ = σ_{t|s}² σ_s²/σ_t² with σ_{t|s}² = σ_t² − (α_t/α_s)² σ_s²; "forward", β = σ_{t|s}²; or a
    number v in [0, 1], β^v β̃^{1−v}; "learned", the same where the denoiser returns (D, v); "optimal", β̃ + c_0²
    Var(x_0 | x_t), c_0 = α_s (1 − ρ_s²/ρ_t²), ρ = σ/α, where it returns (D, Var). Var and v have shape () or x's. On
    consecutive indices of `from_betas` these are the chain's. One evaluation a step. Raises ValueError otherwise. Ho et
    al. 2020, Algorithm 2 and section 3.2 (Bishop & Bishop 2024, Algorithm 20.2); Nichol & Dhariwal 2021, eq. 15; Bao et
    al. 2022, Theorem 1.
    """
    names = {"posterior": 0.0, "forward": 1.0}
    if isinstance(variance, str):
        checks.choice("variance", variance, (*names, *_PAIRED_STDS))
        if variance in _PAIRED_STDS:
            return _paired(variance)
    share = (
        names[variance]
        if isinstance(variance, str)
        else float(checks.within("variance", variance, 0, 1))
    )

    def predict(schedule, steps):
        row = _ancestral(1.0)(schedule, steps)
        (std,) = row.stds  # √β̃/α_s; β is larger than β̃ by (σ_t/σ_s)²
        scale = (steps.start.sigma / steps.end.sigma) ** share
        return row._replace(stds=(std * scale,))

    name = f"ddpm({variance if isinstance(variance, str) else format(variance, 'g')})"
    return multistep(name, predict, order=1, stochastic=True, check_grid=needs(name))


_PAIRED_STDS = {
    "learned": lambda std, ratio, gain, share: std * ratio**share,
    "optimal": lambda std, ratio, gain, spread: jnp.sqrt(std**2 + gain**2 * spread),
}
"""The noise's standard deviation from √β̃, σ_t/σ_s, c_0 and the denoiser's second value."""


def _paired(variance):
    """`ddpm` with a variance of which the denoiser tells."""
    base = ddpm("posterior")

    def prepare(problem, ts):
        steps = noise_steps(problem, ts)
        last = (
            jnp.zeros_like(steps.start.t, bool)
            if steps.at_zero is None
            else steps.at_zero
        )
        return base.prepare(problem, ts), steps.start.sigma / steps.end.sigma, last

    def step(problem, inputs, draw, x, state):
        (t, _, row, _), ratio, last = inputs
        data, second = problem.denoiser(x, t)
        std = _PAIRED_STDS[variance](
            row.stds[0], ratio, jnp.where(last, 0, row.gains[0]), second
        )
        return row.keep * x + row.gains[0] * data + std * draw(0), state

    return base._replace(
        name=f"ddpm({variance})",
        prepare=prepare,
        step=step,
        init=lambda *_: (),
        traits=dataclasses.replace(base.traits, paired=True),
    )


@factory
def reverse_diffusion() -> Solver:
    """The reverse of the forward chain's exact transition from s to t > s: weak order 1, one evaluation a step.

    With a = α_t/α_s and G² = σ_t² − a² σ_s², x ← (2 − a) x + G² ∇log p_t(x) + G z; for DDPM's chain a = √(1 − β), G² =
    β. A step to 0 returns D. Song et al. 2021, eq. 46 with f, G of eq. 47–48 for any schedule.
    """

    def predict(schedule, steps):
        start, end = steps.start, steps.end
        ratio, share = (
            start.alpha / end.alpha,
            -jnp.expm1(-2 * steps.log_step),
        )  # a, G²/σ_t²
        keep = (2 - ratio - share) * start.sigma / end.sigma
        return Update(
            end, keep, (share * ratio,), (jnp.sqrt(share) * start.sigma / end.alpha,)
        )

    check_grid = needs("reverse_diffusion", finite_start=True)
    return multistep(
        "reverse_diffusion", predict, order=1, stochastic=True, check_grid=check_grid
    )


@factory
def dpm_2() -> Solver:
    """The midpoint method in ρ = σ/α with the middle at √(ρ_t ρ_s): order 2, two evaluations, one on a step to 0.

    y_½ = y + (√(ρ_t ρ_s) − ρ_t) ε̂(y), y ← y + (ρ_s − ρ_t) ε̂(y_½), y = x/α. Crowson 2022 (k-diffusion), after Karras
    et al. 2022 and Lu et al. 2022.
    """
    return _midpoint("dpm_2", 0.0)


@factory
def dpm_2_ancestral(eta: float = 1.0) -> Solver:
    """`dpm_2` to ρ_↓, then noise ρ_↑ z: weak order 2, two evaluations a step, one on a step to 0.

    ρ_↓, ρ_↑ as in `euler_ancestral`. Raises ValueError unless 0 ≤ eta ≤ 1. Crowson 2022 (k-diffusion).
    """
    checks.within("eta", eta, 0, 1)
    return _midpoint(f"dpm_2_ancestral({eta:g})", eta)


def _midpoint(name, eta):
    def tableau(schedule, steps):
        start = steps.start
        down, up = split(steps, eta)
        middle = noise_level_of_ratio(schedule, jnp.sqrt(start.rho * down))
        euler = Update(middle, 1.0, [middle.rho - start.rho])
        return [
            Update(start, 1.0),
            euler,
            Update(
                steps.end,
                down / steps.end.rho,
                [0, down - start.rho],
                [up if eta else 0],
            ),
        ]

    return one_step(name, tableau, order=2, stages=2, kind="noise", stochastic=eta > 0)


@factory
def edm_stochastic(
    churn: float = 40.0,
    noise_min: float = 0.05,
    noise_max: float = 50.0,
    noise_scale: float = 1.003,
) -> Solver:
    """EDM's stochastic sampler: raise ρ = σ/α to ρ̂ = (1 + γ) ρ with fresh noise, then Heun's step in ρ to the next.

    γ = min(S_churn/N, √2 − 1) where noise_min ≤ ρ ≤ noise_max, else 0. The noise added has standard deviation S_noise
    √(ρ̂² − ρ²). The level never exceeds that of t_max. A step to 0 adds no noise, where Algorithm 2 may. Karras et al.
    2022, Algorithm 2.

    Args:
      churn: S_churn, 0 or more. The defaults are the paper's for ImageNet.
      noise_min: S_min, the least ρ at which noise is added.
      noise_max: S_max, the greatest.
      noise_scale: S_noise, 0 or more.

    Returns:
      A solver with two evaluations per step and one on a step to 0. Its weak order is 2 for S_noise = 1 as N grows at a
      fixed churn, where γ falls like 1/N. A churn that grows like N keeps γ, and with it the length of the step down,
      so that the error does not vanish. No order is declared for another S_noise, whose bias stays.

    Raises:
      ValueError: If churn or noise_scale is negative, and unless 0 ≤ noise_min < noise_max.

    Example:
      >>> silent = dj.solvers.edm_stochastic(noise_scale=0.0)  # raises the level and adds no noise
      >>> dj.sample(key, denoiser, schedule, solver=silent, grid=grid, shape=(2,)).shape
      (2,)
    """
    checks.non_negative("churn", churn)
    checks.non_negative("noise_min", noise_min)
    checks.greater("noise_max", noise_max, "noise_min", noise_min)
    checks.non_negative("noise_scale", noise_scale)

    def tableau(schedule, steps):
        start, end = steps.start, steps.end
        active = (start.rho >= noise_min) & (start.rho <= noise_max)
        active = active if steps.at_zero is None else active & ~steps.at_zero
        gamma = jnp.where(active, min(churn / start.rho.shape[0], math.sqrt(2) - 1), 0)
        top = schedule.sigma(schedule.t_max) / schedule.alpha(schedule.t_max)
        raised = jnp.minimum(start.rho * (1 + gamma), jnp.maximum(top, start.rho))
        churned = raised > start.rho
        variance = jnp.where(churned, raised**2 - start.rho**2, 1)
        noise = noise_scale * jnp.where(churned, jnp.sqrt(variance), 0)
        fresh = noise_level_of_ratio(schedule, raised)
        at = fresh._replace(
            **{
                k: jnp.where(churned, getattr(fresh, k), getattr(start, k))
                for k in start._fields
            }
        )
        euler = Update(end, 1.0, [end.rho - at.rho])
        return [
            Update(at, start.rho / at.rho, (), [noise]),
            euler,
            euler._replace(gains=[0.5 * (end.rho - at.rho)] * 2),
        ]

    order = 2 if noise_scale == 1 else None
    return one_step(
        "edm_stochastic",
        tableau,
        order=order,
        stages=2,
        kind="noise",
        stochastic=True,
    )
