"""Explicit Runge–Kutta methods for an ODE dx/dt = u(x, t), where x is any pytree."""

import dataclasses

from .base import (
    Solver,
    euler_step,
    evaluate,
    factory,
    inner_times,
    per_step,
    stage,
    steps_along,
    unless_zero,
    weighted_sum,
)

__all__ = ["euler", "heun", "midpoint", "rk4"]


@dataclasses.dataclass(frozen=True)
class _Tableau:
    """Butcher tableau: the nodes c, the rows of A below its diagonal, the weights b."""

    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


def _runge_kutta(name: str, order: int, tableau: _Tableau) -> Solver:
    """An explicit Runge–Kutta method, which returns D on a step to 0.

    k_i = u(x + dt Σ_j a_ij k_j, t + c_i dt),    x ← x + dt Σ_i b_i k_i
    """
    nodes = tableau.nodes

    def prepare(problem, ts):
        field = problem.velocity
        steps = steps_along(field, ts, problem.zero_end)
        # one stage for each distinct node: rk4 evaluates twice at the middle
        stages = {c: stage(field, inner_times(steps, c)) for c in nodes}
        return steps.dt, steps.at_zero, euler_step(field, steps), stages

    def step(problem, inputs, draw, x, state):
        dt, at_zero, euler, stages = inputs
        first = evaluate(problem.velocity, stages[nodes[0]], x)

        def finish(_):
            slopes = [first]
            for c, row in zip(nodes[1:], tableau.matrix, strict=True):
                inner = moved(row, slopes)
                slopes.append(evaluate(problem.velocity, stages[c], inner))
            return moved(tableau.weights, slopes)

        def moved(weights, slopes):
            """x + dt Σ_j w_j k_j."""
            weighted = zip(weights, slopes, strict=True)
            return weighted_sum((1, x), *((dt * w, k) for w, k in weighted if w))

        result = euler(x, first)
        if len(nodes) == 1:
            return result, state
        if at_zero is None and len(nodes) > 2:
            # never true: the branch keeps XLA from fusing stages, +17 % on CPU
            at_zero = dt == 0
        return unless_zero(at_zero, finish, result), state

    return Solver(name, "velocity", order, False, per_step(len(nodes)), prepare, step)


@factory
def euler() -> Solver:
    """Euler's method.

        x ← x + dt u(x, t)

    On a diffusion with α = 1 and σ = t it is DDIM.

    Returns:
      A solver of order 1 with one evaluation per step.

    Example:
      >>> solver = dj.solvers.euler()
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    return _runge_kutta("euler", 1, _Tableau((0.0,), (), (1.0,)))


@factory
def heun() -> Solver:
    """Heun's method (Karras et al. 2022, Algorithm 1).

        x̃ = x + dt u(x, t)
        x ← x + ½ dt (u(x, t) + u(x̃, s))

    Returns:
      A solver of order 2 with two evaluations per step, one on a step to 0.

    Example:
      >>> solver = dj.solvers.heun()
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    return _runge_kutta("heun", 2, _Tableau((0.0, 1.0), ((1.0,),), (0.5, 0.5)))


@factory
def midpoint() -> Solver:
    """The explicit midpoint method.

        x ← x + dt u(x + ½ dt u(x, t), t + ½ dt)

    Returns:
      A solver of order 2 with two evaluations per step, one on a step to 0.

    Example:
      >>> velocity, solver = lambda x, t: -x, dj.solvers.midpoint()
      >>> x = dj.solvers.integrate(None, solver, velocity, x=1.0, ts=[0.0, 0.1])
      >>> round(float(x), 4)
      0.905
    """
    return _runge_kutta("midpoint", 2, _Tableau((0.0, 0.5), ((0.5,),), (0.0, 1.0)))


@factory
def rk4() -> Solver:
    """The classical Runge–Kutta method (Kutta 1901).

        k_1 = u(x, t),              k_2 = u(x + ½ dt k_1, t + ½ dt),
        k_3 = u(x + ½ dt k_2, t + ½ dt),    k_4 = u(x + dt k_3, s)
        x ← x + dt (k_1 + 2 k_2 + 2 k_3 + k_4)/6

    Returns:
      A solver of order 4 with four evaluations per step, one on a step to 0.

    Example:
      >>> velocity, solver = lambda x, t: -x, dj.solvers.rk4()
      >>> x = dj.solvers.integrate(None, solver, velocity, x=1.0, ts=[0.0, 0.1])
      >>> round(float(x), 5)
      0.90484
    """
    tableau = _Tableau(
        nodes=(0.0, 0.5, 0.5, 1.0),
        matrix=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        weights=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    )
    return _runge_kutta("rk4", 4, tableau)
