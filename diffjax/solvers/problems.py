"""Problems for solvers: what users give, and the fields that follow from it."""

import dataclasses
from typing import Any

from .. import checks, sde
from ..types import as_pytree, as_pytree_callable
from .base import Problem, Solver

__all__ = ["as_problem", "derive", "diffusion"]


def as_problem(problem: Any) -> Problem:
    """A `Problem` of pytree callables from an SDE, a velocity or a `Problem`.

    Raises TypeError for anything else.
    """
    if isinstance(problem, Problem):
        schedule = problem.schedule and as_pytree(problem.schedule)
        fields = problem.denoiser, problem.velocity
        denoiser, velocity = (
            None if field is None else as_pytree_callable(field) for field in fields
        )
        return Problem(
            schedule, denoiser, velocity, problem.sde and as_problem(problem.sde).sde
        )
    if isinstance(problem, sde.SDE):
        return Problem(
            sde=sde.SDE(
                as_pytree_callable(problem.drift), as_pytree_callable(problem.diffusion)
            )
        )
    checks.callable_("problem", problem, "velocity(x, t), or be an SDE or a Problem")
    return Problem(velocity=as_pytree_callable(problem))


def diffusion(schedule: Any, denoiser: Any) -> Problem:
    """The problem of sampling from a denoiser, for every solver.

    Args:
      schedule: Any schedule.
      denoiser: E[x_0 | x_t = x], called as denoiser(x, t).

    Returns:
      The problem.

    Example:
      >>> problem = dj.solvers.diffusion(schedule, denoiser)
      >>> solver, x = dj.solvers.heun(), jnp.ones(2)
      >>> dj.solvers.integrate(None, solver, problem, x=x, ts=grid).shape
      (2,)
    """
    return Problem(as_pytree(schedule), as_pytree_callable(denoiser))


def derive(solver: Solver, problem: Problem) -> Problem:
    """The problem with the field that a solver consumes.

    Args:
      solver: The solver.
      problem: Whose field follows from schedule and denoiser where it is not
        stated.

    Returns:
      The problem with that field.
    """
    if getattr(problem, solver.consumes) is not None:
        return problem
    if solver.consumes == "velocity":
        velocity = sde.probability_flow(problem.schedule, problem.denoiser)
        return dataclasses.replace(problem, velocity=velocity)
    reverse = sde.reverse(problem.schedule, problem.denoiser)
    return dataclasses.replace(problem, sde=reverse)
