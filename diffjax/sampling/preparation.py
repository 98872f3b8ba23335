"""Solver, grid, shape and start of a run, checked and filled in."""

from collections.abc import Callable

import jax.numpy as jnp

from .. import checks, grids, schedules
from ..schedules import Schedule
from ..solvers import requirements
from ..solvers.base import Problem, Solver
from ..solvers.multistep import unipc
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
)

__all__ = ["DEFAULT", "EVALUATIONS", "STEPS", "prepare", "shape_and_start"]


EVALUATIONS, STEPS = 64, 32
"""Denoiser evaluations of a default grid, and the least number of its steps."""


def _default_grid(schedule, solver):
    cost = grids.cost_of_step(solver)
    return grids.recommended(
        schedule,
        solver,
        EVALUATIONS if cost is None else max(EVALUATIONS, STEPS * cost),
    )


DEFAULT = (unipc(3), _default_grid)
"""The default solver, and (schedule, solver) -> the default grid."""


@checks.arguments(
    solver=checks.optional(requirements.check_solver),
    denoiser=checks.denoiser,
    schedule=schedules.argument,
)
def prepare(
    solver: Solver | None,
    grid: ArrayLike | None,
    denoiser: Denoiser,
    schedule: Schedule,
    *,
    default: tuple[Solver, Callable[[Schedule, Solver], Array]],
    probability_flow: bool = False,
) -> tuple[Solver, Array]:
    """Check solver and grid, and fill in their defaults.

    The default grid is `grids.uniform` where α(t_max) = 0 and the log-SNR has
    no end.

    Args:
      solver: A solver, or None for the default.
      grid: Decreasing times (N + 1,), or None for the default.
      denoiser: A denoiser.
      schedule: A schedule.
      default: The default solver, and (schedule, solver) -> the default grid.
      probability_flow: True where it is to be followed, upwards too. The solver
        must then be deterministic, and the grid may not end at 0.

    Returns:
      (solver, grid).
    """
    solver, default_grid = default[0] if solver is None else solver, default[1]
    requirements.check_pairing(solver, denoiser)
    if probability_flow:
        requirements.check_solver("solver", solver, "deterministic")
    if grid is None:
        grid = _filled_in(default_grid, schedule, solver)
    grid = grids.decreasing("grid", grid, schedule, zero_end=not probability_flow)
    requirements.check_grid("grid", solver, Problem(schedule), grid)
    return solver, grid


def _filled_in(default_grid, schedule, solver):
    traced = checks.is_traced(schedule)
    if not traced and not schedules.is_finite(schedule):
        return grids.uniform(schedule, EVALUATIONS)
    grid = default_grid(schedule, solver)
    if not traced:
        return grid
    # The values of a traced schedule decide when the program runs.
    bounded = jnp.isfinite(schedules.log_snr(schedule, schedule.t_max))
    return jnp.where(bounded, grid, grids.uniform(schedule, grid.shape[0] - 1))


def shape_and_start(
    shape: tuple[int, ...] | None,
    x_init: ArrayLike | None,
    batch: tuple[int, ...] = (),
) -> tuple[tuple[int, ...], Array | None]:
    """Check the shape of one example and its start, of which one may be None.

    Args:
      shape: Shape of one example.
      x_init: The start or starts, (*batch, *shape).
      batch: The leading axes.

    Returns:
      (shape, x_init), x_init None where it is to be drawn.
    """
    message = "shape must be given, the shape of one example, unless x_init is"
    checks.require(shape is not None or x_init is not None, message)
    shape = None if shape is None else checks.shape("shape", shape)
    if x_init is None:
        return shape, None
    x_init = requirements.check_example("x_init", x_init)
    shape = x_init.shape[len(batch) :] if shape is None else shape
    checks.one_of_shapes("x_init", x_init, [(*batch, *shape)])
    return shape, x_init
