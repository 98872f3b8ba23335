"""Errors of students and of solvers at a few evaluations."""

from typing import Any, NamedTuple

import jax
import numpy as np

import diffjax as dj
from diffjax import grids, metrics, solvers, tuning
from experiments.few_step.students import Student
from experiments.few_step.tasks import Bound, Task

EVALUATIONS = (1, 2, 4, 8)
"""Evaluations of the map, or of the denoiser by solvers."""

SOLVERS = {"ddim": (solvers.ddim(), 1), "unipc(3)": (solvers.unipc(3), 2)}
"""Solvers by name, and the fewest steps that each can make."""


class Ends(NamedTuple):
    """Where a method leads, (conditions or 1, n, *shape) by evaluations.

    Attributes:
      ends: From the starts of the task.
      renoised: With new noise in each step, γ = 1, or none.
    """

    ends: dict[int, Any]
    renoised: dict[int, Any]


def of_student(task: Task, student: Student, seed: int) -> Ends:
    """Ends of a map on grids of equal steps, without and with re-noising.

    Args:
      task: The flow.
      student: The maps.
      seed: Of the noise.
    """
    ends, renoised, key = {}, {}, jax.random.key(seed)
    for count in EVALUATIONS:
        grid = grids.uniform(task.schedule, count)
        m = student.of(count)
        ends[count] = _run(task, m, solvers.flow_map(), grid, key)
        if count > 1 and not task.guided:
            # In each step the map leads to the end, which only one step's student
            # has learned where each number of steps has one.
            whole = student.of(1)
            renoised[count] = _run(task, whole, solvers.flow_map(1.0), grid, key)
    return Ends(ends, renoised)


def of_solvers(task: Task, seed: int, small: bool) -> dict[str, Ends]:
    """Ends of solvers on the recommended grid, and on one fitted to the denoiser.

    Args:
      task: The flow.
      seed: Of the starts that grids are fitted to, which are not the task's.
      small: Whether the fit is a short one, for a run of seconds.
    """
    ends: dict[str, Ends] = {}
    key = jax.random.key(seed)
    for name, (solver, fewest) in SOLVERS.items():
        recommended, fitted = {}, {}
        for count in (n for n in EVALUATIONS if n >= fewest):
            grid = grids.recommended(task.schedule, solver, count)
            recommended[count] = _run(task, task.denoiser, solver, grid, key)
            if task.guided:
                continue
            if count > 1:
                grid = _fitted(task, solver, count, key, small)
            fitted[count] = _run(task, task.denoiser, solver, grid, key)
        ends[f"{name}, recommended grid"] = Ends(recommended, {})
        if fitted:
            ends[f"{name}, fitted grid"] = Ends(fitted, {})
    return ends


def _fitted(task, solver, count, key, small):
    return tuning.optimised_grid(
        task.schedule,
        task.denoiser,
        count,
        jax.random.fold_in(key, 1),
        solver=solver,
        shape=task.shape,
        examples=8 if small else 32 if task.name == "digits" else 256,
        iterations=0 if small else 100,
    )


def _run(task, function, solver, grid, key):
    bound = [Bound(function, scale) for scale in task.conditions] or [function]
    ends = [
        dj.sample_many(
            key,
            len(task.starts),
            one,
            task.schedule,
            solver=solver,
            grid=grid,
            x_init=task.starts,
        )
        for one in bound
    ]
    return np.stack(ends)


def errors(task: Task, reached: Ends) -> dict[str, Any]:
    """The numbers of one method.

    - rms: root mean square of the distance ‖x − X‖ from the exact flow's end, over
      starts and conditions, in data units, with its standard error.
    - rms_by_scale: the same at each guidance scale.
    - frechet: squared Fréchet distance to the target, in squared data units.
    - frechet_renoised: the same of samples with new noise in each step, γ = 1.

    Args:
      task: The flow.
      reached: Its ends by the method.

    Returns:
      Numbers by measure and evaluations.
    """
    numbers: dict[str, Any] = {"rms": {}, "rms_standard_error": {}}
    for count, ends in reached.ends.items():
        squares = np.sum((ends - task.ends) ** 2, -1)  # (conditions or 1, n)
        rms = float(np.sqrt(np.mean(squares)))
        deviation = float(np.std(squares)) / np.sqrt(squares.size)
        numbers["rms"][count] = rms
        numbers["rms_standard_error"][count] = deviation / (2 * max(rms, 1e-30))
        for scale, part in zip(task.conditions, squares, strict=False):
            by_scale = numbers.setdefault("rms_by_scale", {})
            by_scale.setdefault(scale, {})[count] = float(np.sqrt(np.mean(part)))
    if task.reference is not None:
        numbers["frechet"] = frechet(task, reached.ends)
        if reached.renoised:
            numbers["frechet_renoised"] = frechet(task, reached.renoised)
    return numbers


def frechet(task: Task, ends: dict[int, Any]) -> dict[int, float]:
    """Squared Fréchet distance of sets of samples to the task's target.

    Args:
      task: The flow, with the moments of its target.
      ends: (1, n, *shape) by evaluations.
    """
    return {
        count: metrics.frechet_of_moments(
            metrics.moments(x[0].reshape(len(x[0]), -1)), task.reference
        )
        for count, x in ends.items()
    }


def best(methods: dict[str, Any], count: int, measure: str = "rms") -> str:
    """The name of the method of least error at a number of evaluations."""
    values = {k: v[measure].get(count, np.inf) for k, v in methods.items()}
    return min(values, key=lambda k: values[k])
