"""Explicit Runge–Kutta methods for an ODE dx/dt = velocity(x, t); x is any pytree."""

from .base import (
    Solver,
    evaluate,
    factory,
    inner_times,
    intervals,
    per_step,
    stage,
    unless_zero,
    weighted_sum,
)


def _runge_kutta(
    name: str, order: int, nodes: tuple, matrix: tuple, weights: tuple
) -> Solver:
    """k_i = u(x + dt Σ_j a_ij k_j, t + c_i dt), x ← x + dt Σ_i b_i k_i, from the Butcher tableau (c, A, b).

    On a step to 0 of a diffusion's flow only the first stage is evaluated and D returned.
    """

    def prepare(problem, ts):
        field = problem.velocity
        steps = intervals(field, ts, problem.zero_end)
        return steps, {
            c: stage(field, inner_times(ts, steps, c)) for c in nodes
        }  # one a distinct node: shared in the loop

    def step(problem, inputs, draw, x, state):
        interval, stages = inputs
        first = evaluate(problem.velocity, stages[nodes[0]], x)
        euler = weighted_sum((interval.keep, x), (interval.gain, first))

        def finish(_):
            slopes = [first]
            for c, row in zip(nodes[1:], matrix, strict=True):
                inner = weighted_sum(
                    (1, x),
                    *(
                        (interval.dt * a, k)
                        for a, k in zip(row, slopes, strict=True)
                        if a
                    ),
                )
                slopes.append(evaluate(problem.velocity, stages[c], inner))
            return weighted_sum(
                (1, x),
                *(
                    (interval.dt * b, k)
                    for b, k in zip(weights, slopes, strict=True)
                    if b
                ),
            )

        if len(nodes) == 1:
            return euler, state
        idle = interval.at_zero
        if (
            idle is None and len(nodes) > 2
        ):  # never true: a branch keeps XLA from fusing stages, +17 % on CPU
            idle = interval.dt == 0
        return unless_zero(idle, finish, euler), state

    return Solver(name, "velocity", order, False, per_step(len(nodes)), prepare, step)


@factory
def euler() -> Solver:
    """x ← x + dt u(x, t): order 1, one evaluation a step. On a diffusion with α = 1, σ = t it is DDIM."""
    return _runge_kutta("euler", 1, (0.0,), (), (1.0,))


@factory
def heun() -> Solver:
    """Euler, then the mean of the slopes at both ends: order 2, two evaluations a step, one on a step to 0.

    Karras et al. 2022, Algorithm 1.
    """
    return _runge_kutta("heun", 2, (0.0, 1.0), ((1.0,),), (0.5, 0.5))


@factory
def midpoint() -> Solver:
    """The slope half-way in t: order 2, two evaluations a step, one on a step to 0."""
    return _runge_kutta("midpoint", 2, (0.0, 0.5), ((0.5,),), (0.0, 1.0))


@factory
def rk4() -> Solver:
    """The classical Runge–Kutta method: order 4, four evaluations a step, one on a step to 0. Kutta 1901."""
    return _runge_kutta(
        "rk4",
        4,
        (0.0, 0.5, 0.5, 1.0),
        ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    )
