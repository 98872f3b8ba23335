"""The grid to take when nothing is known of the data."""

from typing import Any

from .. import checks
from ..schedules import Schedule
from ..types import Array
from .spacing import angular, log_snr

__all__ = ["cost_of_step", "recommended", "recommended_share"]

DENSE = 28
"""From so many steps on, errors at the ends of the noise range dominate.

`recommended` then leaves more steps there.
"""


@checks.arguments(evaluations=(checks.integer, 1, 10**6))
def recommended(schedule: Schedule, solver: Any, evaluations: int = 64) -> Array:
    """The grid to take when nothing is known of the data, the default of `sample`.

    For a deterministic solver it is `angular` with share ½ up to 27 steps and
    ¼ from 28 on. By the worst regret of the median start over a suite of targets,
    schedules and networks, which `experiments.solver_regret` measures, it is the
    best of nine grids, or near it, with `ipndm(2)` at 12 and 16 evaluations and with
    `unipc(3)` from 24 on. For a stochastic solver it is `log_snr`.

    Args:
      schedule: Any schedule with a finite log-SNR at t_max, or a chain of zero
        terminal SNR.
      solver: A solver. Its cost per step decides how many steps there are.
      evaluations: The most evaluations of the denoiser. The further ones of
        `restart` and `repaint` come on top. There are 32 steps for a solver
        that chooses its own, as `adaptive` does.

    Returns:
      Decreasing times from t_max to t_min, or from index T − 1 of a chain of
      zero terminal SNR.

    Raises:
      ValueError: If the evaluations are too few for one step, or where
        α(t_max) = 0 on a schedule that is no chain.

    Example:
      >>> dj.grids.recommended(dj.schedules.edm(), dj.solvers.heun(), 16).shape
      (9,)
    """
    cost = cost_of_step(solver)
    if cost is None:
        return log_snr(schedule, 32)
    steps = evaluations // cost
    checks.integer(f"evaluations of {solver.name}", evaluations, cost)
    if solver.stochastic:
        return log_snr(schedule, steps)
    return angular(schedule, steps, recommended_share(steps))


def recommended_share(steps: int) -> float:
    """The share of `angular` with which `recommended` places so many steps."""
    return 0.5 if steps < DENSE else 0.25


def cost_of_step(solver: Any) -> int | None:
    """Evaluations of one step that does not end at 0, None where they are not fixed.

    The further evaluations of `restart` and `repaint` do not count.
    """
    checks.has_methods("solver", solver, "evaluations(steps), as solvers.heun() has")
    first, two = solver.evaluations(1), solver.evaluations(2)
    # restart adds to the first step, repaint to later ones: a plain one costs less
    return first if first is None else min(first, two - first)
