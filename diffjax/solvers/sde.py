"""One-step methods for dx = drift dt + diffusion dw; run downwards they sample a diffusion's reverse SDE."""

import jax.numpy as jnp

from .. import schedules
from .base import Solver, evaluate, factory, intervals, per_step, stage, unless_zero


def _noise_scale(interval):
    """√|dt|, and 0 on a step to 0."""
    return jnp.sqrt(jnp.abs(interval.dt))


@factory
def euler_maruyama() -> Solver:
    """x ← x + drift dt + g √|dt| z: weak order 1, one evaluation a step. Maruyama 1955; Song et al. 2021, section
    4.1.
    """

    def prepare(problem, ts):
        steps = intervals(problem.sde.drift, ts)
        return steps, stage(problem.sde.drift, ts[:-1])

    def step(problem, inputs, draw, x, state):
        interval, at = inputs
        noise = problem.sde.diffusion(x, at.t) * _noise_scale(interval) * draw(0)
        return interval.keep * x + interval.gain * evaluate(problem.sde.drift, at, x) + noise, state

    return Solver("euler_maruyama", "sde", 1, True, per_step(1), prepare, step)


@factory
def stochastic_heun() -> Solver:
    """Heun's method with one Wiener increment for both stages: weak order 2 where g does not depend on x.

    x̃ = x + drift(x, t) dt + g(t) ΔW, x ← x + ½(drift(x, t) + drift(x̃, s)) dt + ½(g(t) + g(s)) ΔW. Two evaluations a
    step, one on a step to 0, which returns D. Kloeden & Platen 1992, section 15.1, for additive noise.
    """

    def prepare(problem, ts):
        drift = problem.sde.drift
        steps = intervals(drift, ts)
        return steps, stage(drift, ts[:-1]), stage(drift, ts[:-1] + steps.dt)

    def step(problem, inputs, draw, x, state):
        interval, at, to = inputs
        increment = _noise_scale(interval) * draw(0)
        slope = evaluate(problem.sde.drift, at, x)
        before = problem.sde.diffusion(x, at.t)
        predicted = interval.keep * x + interval.gain * slope + before * increment

        def correct(predicted):
            mean_slope = 0.5 * (slope + evaluate(problem.sde.drift, to, predicted))
            return x + interval.dt * mean_slope + 0.5 * (before + problem.sde.diffusion(predicted, to.t)) * increment

        return unless_zero(interval, correct, predicted), state

    return Solver("stochastic_heun", "sde", 2, True, per_step(2), prepare, step)


@factory
def reverse_diffusion() -> Solver:
    """The reverse of the forward chain's exact transition from s to t > s: weak order 1, one evaluation a step.

    With a = α_t/α_s and G² = σ_t² − a² σ_s², x ← (2 − a) x + G² ∇log p_t(x) + G z; for DDPM's chain a = √(1 − β), G² =
    β. A step to 0 returns D. Song et al. 2021, eq. 46 with f, G of eq. 47–48 for any schedule.
    """

    def prepare(problem, ts):
        schedule, t, s = problem.schedule, ts[:-1], ts[1:]
        at_zero = s == 0
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        log_snr_gain = schedules.log_snr(schedule, jnp.where(at_zero, t, s)) - schedules.log_snr(schedule, t)
        ratio = alpha / schedule.alpha(jnp.where(at_zero, t, s))
        variance = -(sigma**2) * jnp.expm1(-log_snr_gain)  # σ_t² − a² σ_s², without its cancellation
        keep = jnp.where(at_zero, 0, 2 - ratio - variance / sigma**2)
        gain = jnp.where(at_zero, 1, variance * alpha / sigma**2)
        std = jnp.where(at_zero, 0, jnp.sqrt(jnp.where(at_zero, 1, variance)))  # two wheres: no inf · 0 in gradients
        return t, keep, gain, std

    def step(problem, inputs, draw, x, state):
        t, keep, gain, std = inputs
        return keep * x + gain * problem.denoiser(x, t) + std * draw(0), state

    return Solver("reverse_diffusion", "denoiser", 1, True, per_step(1), prepare, step)
