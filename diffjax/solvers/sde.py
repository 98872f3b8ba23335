"""One-step methods for dx = f(x, t) dt + g(x, t) dW, read as Itô's.

Run downwards they sample a diffusion's reverse SDE.
"""

import math

import jax.numpy as jnp

from .base import (
    Solver,
    Traits,
    euler_step,
    evaluate,
    factory,
    inner_times,
    needs,
    per_step,
    stage,
    steps_along,
    unless_zero,
)

__all__ = ["euler_maruyama", "sra1", "stochastic_heun"]


def _prepare(nodes):
    """`prepare` with the drift's stages at t + c dt for nodes c."""

    def prepare(problem, ts):
        drift = problem.sde.drift
        steps = steps_along(drift, ts, problem.zero_end)
        stages = tuple(stage(drift, inner_times(steps, c)) for c in nodes)
        return steps.dt, steps.at_zero, euler_step(drift, steps), stages

    return prepare


def _solver(name, order, nodes, step, evaluations):
    return Solver(
        name,
        "sde",
        order,
        True,
        per_step(evaluations),
        _prepare(nodes),
        step,
        traits=Traits(needs(name, finite_start=True, drift=True)),
    )


@factory
def euler_maruyama() -> Solver:
    """The Euler–Maruyama method (Maruyama 1955).

        x ← x + f(x, t) dt + g(x, t) ΔW

    Returns:
      A solver of weak order 1 with one evaluation per step. A step to 0
      returns D.

    References:
      For sampling: Song et al. 2021, section 4.1.

    Example:
      >>> solver = dj.solvers.euler_maruyama()
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """

    def step(problem, inputs, draw, x, state):
        dt, _, euler, (at,) = inputs
        increment = jnp.sqrt(jnp.abs(dt)) * draw(0)
        spread = problem.sde.diffusion(x, at.t)
        drifted = euler.keep * x + euler.gain * evaluate(problem.sde.drift, at, x)
        return drifted + spread * increment, state

    return _solver("euler_maruyama", 1, (0.0,), step, 1)


@factory
def stochastic_heun() -> Solver:
    """Heun's method with one Wiener increment for both stages.

        x̃ = x + f(x, t) dt + g(t) ΔW
        x ← x + ½ (f(x, t) + f(x̃, s)) dt + ½ (g(t) + g(s)) ΔW

    Returns:
      A solver of weak order 2 where g does not depend on x, with two
      evaluations per step and one on a step to 0, which returns D.

    References:
      Kloeden & Platen 1992, section 15.1, for additive noise.

    Example:
      >>> solver = dj.solvers.stochastic_heun()
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """

    def step(problem, inputs, draw, x, state):
        dt, at_zero, euler, (at, to) = inputs
        drift, diffusion = problem.sde.drift, problem.sde.diffusion
        increment = jnp.sqrt(jnp.abs(dt)) * draw(0)
        slope, spread = evaluate(drift, at, x), diffusion(x, at.t)
        predicted = euler.keep * x + euler.gain * slope + spread * increment

        def correct(predicted):
            mean_slope = 0.5 * (slope + evaluate(drift, to, predicted))
            mean_spread = 0.5 * (spread + diffusion(predicted, to.t))
            return x + dt * mean_slope + mean_spread * increment

        return unless_zero(at_zero, correct, predicted), state

    return _solver("stochastic_heun", 2, (0.0, 1.0), step, 2)


@factory
def sra1() -> Solver:
    """SRA1 for a diffusion g(t) that does not depend on x (Rößler 2010, Table 6.2).

        x̃ = x + ¾ f(x, t) dt + (3/2) g(s) I/h
        x ← x + (⅓ f(x, t) + ⅔ f(x̃, t + ¾ dt)) dt + g(s) ΔW + (g(t) − g(s)) I/h

    Here h = |dt| and I = ∫ (W(u) − W(t)) du over the step, which is drawn with
    ΔW.

    Returns:
      A solver of strong order 1.5 and weak order 2, with two evaluations per
      step and one on a step to 0, which returns D.

    Example:
      >>> solver = dj.solvers.sra1()
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """

    def step(problem, inputs, draw, x, state):
        dt, at_zero, euler, (at, inner, to) = inputs
        drift, diffusion = problem.sde.drift, problem.sde.diffusion
        scale = jnp.sqrt(jnp.abs(dt))
        increment = scale * draw(0)  # ΔW
        area = scale * (0.5 * draw(0) + math.sqrt(1 / 12) * draw(1))  # I/h
        slope = evaluate(drift, at, x)
        denoised = None
        if at_zero is not None:
            denoised = euler.keep * x + euler.gain * slope

        def finish(_):
            before, after = diffusion(x, at.t), diffusion(x, to.t)
            there = x + 0.75 * dt * slope + 1.5 * after * area
            mean_slope = (slope + 2 * evaluate(drift, inner, there)) / 3
            return x + dt * mean_slope + after * increment + (before - after) * area

        return unless_zero(at_zero, finish, denoised), state

    return _solver("sra1", 2, (0.0, 0.75, 1.0), step, 2)
