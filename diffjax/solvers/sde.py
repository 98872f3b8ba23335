"""One-step methods for dx = drift dt + diffusion dw; run downwards they sample a diffusion's reverse SDE."""

import math

import jax.numpy as jnp

from .base import (
    Solver,
    evaluate,
    factory,
    inner_times,
    intervals,
    needs,
    per_step,
    stage,
    unless_zero,
)


def _noise_scale(interval):
    """√|dt|, and 0 on a step to 0."""
    return jnp.sqrt(jnp.abs(interval.dt))


@factory
def euler_maruyama() -> Solver:
    """x ← x + drift dt + g √|dt| z: weak order 1, one evaluation a step. Maruyama 1955; Song et al. 2021, section
    4.1.
    """

    def prepare(problem, ts):
        steps = intervals(problem.sde.drift, ts, problem.zero_end)
        return steps, stage(problem.sde.drift, ts[:-1])

    def step(problem, inputs, draw, x, state):
        interval, at = inputs
        noise = problem.sde.diffusion(x, at.t) * _noise_scale(interval) * draw(0)
        return interval.keep * x + interval.gain * evaluate(
            problem.sde.drift, at, x
        ) + noise, state

    return Solver(
        "euler_maruyama",
        "sde",
        1,
        True,
        per_step(1),
        prepare,
        step,
        check_grid=needs("euler_maruyama", finite_start=True, drift=True),
    )


@factory
def stochastic_heun() -> Solver:
    """Heun's method with one Wiener increment for both stages: weak order 2 where g does not depend on x.

    x̃ = x + drift(x, t) dt + g(t) ΔW, x ← x + ½(drift(x, t) + drift(x̃, s)) dt + ½(g(t) + g(s)) ΔW. Two evaluations a
    step, one on a step to 0, which returns D. Kloeden & Platen 1992, section 15.1, for additive noise.
    """

    def prepare(problem, ts):
        drift = problem.sde.drift
        steps = intervals(drift, ts, problem.zero_end)
        return steps, stage(drift, ts[:-1]), stage(drift, inner_times(ts, steps, 1.0))

    def step(problem, inputs, draw, x, state):
        interval, at, to = inputs
        increment = _noise_scale(interval) * draw(0)
        slope = evaluate(problem.sde.drift, at, x)
        before = problem.sde.diffusion(x, at.t)
        predicted = interval.keep * x + interval.gain * slope + before * increment

        def correct(predicted):
            mean_slope = 0.5 * (slope + evaluate(problem.sde.drift, to, predicted))
            return (
                x
                + interval.dt * mean_slope
                + 0.5 * (before + problem.sde.diffusion(predicted, to.t)) * increment
            )

        return unless_zero(interval.at_zero, correct, predicted), state

    return Solver(
        "stochastic_heun",
        "sde",
        2,
        True,
        per_step(2),
        prepare,
        step,
        check_grid=needs("stochastic_heun", finite_start=True, drift=True),
    )


@factory
def sra1() -> Solver:
    """Rößler's SRA1 for a diffusion g(t) alone: strong order 1.5, weak order 2, two evaluations a step.

    x̃ = x + ¾ f(x, t) dt + (3/2) g(s) I/h, x ← x + (⅓ f(x, t) + ⅔ f(x̃, t + ¾ dt)) dt + g(s) ΔW + (g(t) − g(s)) I/h,
    with h = |dt| and I = ∫ (W(u) − W(t)) du over the step, which is drawn with ΔW. On a step to 0 D is returned. Rößler
    2010, Table 6.2.
    """

    def prepare(problem, ts):
        drift = problem.sde.drift
        steps = intervals(drift, ts, problem.zero_end)
        return steps, *(
            stage(drift, inner_times(ts, steps, c)) for c in (0.0, 0.75, 1.0)
        )

    def step(problem, inputs, draw, x, state):
        interval, at, inner, to = inputs
        scale = _noise_scale(interval)
        increment, area = (
            scale * draw(0),
            scale * (0.5 * draw(0) + math.sqrt(1 / 12) * draw(1)),
        )  # ΔW, I/h
        slope = evaluate(problem.sde.drift, at, x)
        data = (
            None
            if interval.at_zero is None
            else interval.keep * x + interval.gain * slope
        )

        def finish(_):
            before, after = (
                problem.sde.diffusion(x, at.t),
                problem.sde.diffusion(x, to.t),
            )
            there = x + 0.75 * interval.dt * slope + 1.5 * after * area
            mean_slope = (slope + 2 * evaluate(problem.sde.drift, inner, there)) / 3
            return (
                x
                + interval.dt * mean_slope
                + after * increment
                + (before - after) * area
            )

        return unless_zero(interval.at_zero, finish, data), state

    check_grid = needs("sra1", finite_start=True, drift=True)
    return Solver(
        "sra1", "sde", 2, True, per_step(2), prepare, step, check_grid=check_grid
    )
