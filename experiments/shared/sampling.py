"""Samples by index: sample i depends on a key and on i alone."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import diffjax as dj
from experiments.shared import solvers
from experiments.shared.datasets import Dataset
from experiments.shared.mapping import map_examples


def by_index(
    schedule: Any, *, solver: Any, grid: Any, shape: tuple[int, ...]
) -> Callable[[tuple[Any, jax.Array], Any], jax.Array]:
    """A function that draws one sample, for `map_examples`.

    Args:
      schedule: The noise schedule.
      solver: A solver.
      grid: Decreasing times.
      shape: Of a sample.

    Returns:
      ((denoiser, key), i) -> the sample of the key fold_in(key, i), as in
        `sample_many`.
    """

    def draw(state, index):
        denoiser, key = state
        return dj.sample(
            jax.random.fold_in(key, index),
            denoiser,
            schedule,
            solver=solver,
            grid=grid,
            shape=shape,
        )

    return draw


def by_name(schedule: Any, name: str, steps: int, shape: tuple[int, ...]) -> Callable:
    """`by_index` with a solver of the standings, on its recommended grid.

    Args:
      schedule: The noise schedule.
      name: Of the solver, such as "heun".
      steps: Number of steps before the last to noise 0.
      shape: Of a sample.

    Returns:
      As `by_index`.
    """
    solver = solvers.make(name)
    cost = dj.grids.cost_of_step(solver) or 1
    grid = dj.grids.recommended(schedule, solver, steps * cost)
    grid = dj.grids.to_zero(grid)
    return by_index(schedule, solver=solver, grid=grid, shape=shape)


def draw(
    function: Callable, state: Any, examples: tuple, data: Dataset, **settings: Any
) -> np.ndarray:
    """Samples of a data set, rounded to the levels of a lattice.

    Args:
      function: (state, *example) -> a sample.
      state: As in `map_examples`.
      examples: Indices of the samples and what else each depends on.
      data: The data set.
      **settings: Further arguments of `map_examples`.

    Returns:
      (N, *shape).

    Raises:
      FloatingPointError: If a sample is not finite.
    """
    drawn = map_examples(function, state, examples, **settings)
    bad = int(np.sum(~np.isfinite(drawn.reshape(len(drawn), -1)).all(1)))
    if bad:
        raise FloatingPointError(f"{bad} of {len(drawn)} samples are not finite")
    return rounded(data, drawn)


def rounded(data: Dataset, x: np.ndarray) -> np.ndarray:
    """Samples of lattice data at their nearest levels, as a file of them holds.

    Args:
      data: The data set.
      x: Scaled samples (N, *shape).

    Returns:
      The samples. Those of other data are unchanged.
    """
    if data.levels is None:
        return x
    indices = np.rint((x - data.levels[0]) / data.spacing)
    return data.levels[np.clip(indices, 0, len(data.levels) - 1).astype(int)]
