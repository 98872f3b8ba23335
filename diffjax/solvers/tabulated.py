"""Solvers that are a table of numbers, as they are fitted to a model."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import checks, grids, schedules
from ..schedules import Schedule
from ..types import Array, ArrayLike, combine, compiled, partition
from .affine import Update, multistep, noise_steps
from .base import Solver, factory
from .driver import diffusion, run
from .noise_source import source_of
from .requirements import check_grid, check_solver

__all__ = [
    "check_tabular",
    "of_weights",
    "output_weights",
    "tabulated",
    "weight_rows",
    "weights_of",
]


def _rows(name: str, weights: Any) -> tuple:
    """Check rows of 1, 2, … numbers."""
    checks.instance(name, weights, tuple, "a tuple of rows, tuples of numbers")
    for n, row in enumerate(weights, 1):
        checks.instance(f"{name}[{n - 1}]", row, tuple, "a tuple of numbers")
        checks.require(
            len(row) == n,
            f"{name}[{n - 1}] must have {n} numbers, a weight for each output before "
            f"the newest, got {len(row)}",
        )
        for weight in row:
            checks.number(f"{name}[{n - 1}]", weight)
    return weights


@factory
@checks.arguments(weights=_rows)
def tabulated(weights: tuple[tuple[float, ...], ...]) -> Solver:
    """Linear multistep method whose coefficients are a table of numbers.

        y ← (ρ_s/ρ_t) y + (1 − ρ_s/ρ_t) (D_n + Σ_{j<n} w_nj (D_j − D_n))

    with y = x/α and ρ = σ/α. It is DDIM's step with a weighted mean of all outputs so
    far, whose weights may be negative, in place of the newest one. Every method of one
    evaluation per step that follows the flow to a single point exactly has this form,
    non-stationary solvers (Shaul et al. 2024) among them.

    Args:
      weights: w, a row of n numbers for each step n = 1 … N − 1 after the first. As
        `tuning.optimised_solver` and `output_weights` return them.

    Returns:
      A solver of exactly N steps, with one denoiser evaluation per step. No order is
      declared.

    Raises:
      TypeError: If weights are not tuples of numbers.
      ValueError: If row n does not have n numbers.

    Example:
      >>> solver = dj.solvers.tabulated(((-0.5,), (0.1, -0.6)))
      >>> ts = dj.grids.log_snr(schedule, 3)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=ts, shape=(2,)).shape
      (2,)
    """
    table = np.zeros((len(weights) + 1,) * 2)
    for n, row in enumerate(weights, 1):
        table[n, :n] = row
    digest = f"{hash(weights) & 0xFFFFFF:06x}"
    return of_weights(f"tabulated({len(table)} steps, {digest})", table)


def of_weights(name: str, table: Array) -> Solver:
    """The solver of `tabulated`, of weights that may be traced.

    Args:
      name: The solver's name.
      table: (N, N). Entry (n, j) is w_nj. Those with j ≥ n are not read.

    Returns:
      The solver.
    """
    count = len(table)
    step, back = np.meshgrid(np.arange(count), np.arange(count), indexing="ij")
    earlier = (back > 0) & (back <= step)

    def predict(schedule, steps):
        share = -jnp.expm1(-steps.log_step)  # (N,)
        weights = jnp.asarray(table, share.dtype)[step, np.maximum(step - back, 0)]
        weights = jnp.where(earlier, weights, 0)  # (N, N), newest output first
        weights = weights.at[:, 0].set(1 - jnp.sum(weights, 1))
        return Update(steps.end, 1.0, list((share[:, None] * weights).T))

    def check_steps(schedule, ts):
        checks.require(
            len(ts) == count + 1,
            f"grid must have {count} steps for {name}, got {len(ts) - 1}",
        )

    return multistep(name, predict, order=None, past=count - 1, check_grid=check_steps)


def check_tabular(name: str, solver: Solver) -> None:
    """Raise unless a solver makes one evaluation of D per step, without noise.

    Args:
      name: The argument's name, for the message.
      solver: The argument.
    """
    check_solver(name, solver, "single", "unpaired", "fixed", "deterministic")
    checks.require(
        solver.consumes == "denoiser" and solver.evaluations(8) == 8,
        f"{name} must evaluate the denoiser once per step, {solver.name} consumes a "
        f"{solver.consumes} and makes {solver.evaluations(8)} evaluations in 8 steps",
        TypeError,
    )


def weights_of(solver: Solver, schedule: Schedule, ts: Array) -> Array:
    """The weights of a solver's outputs on a grid, as `of_weights` takes them.

    The solver runs from x = 0, where the n-th output is the n-th unit vector. Its
    states are then its coefficients.

    Args:
      solver: One that passes `check_tabular`.
      schedule: The noise schedule.
      ts: Times (N + 1,).

    Returns:
      The weights (N, N).
    """

    def output(x, t, *end):
        return (ts[:-1] == t).astype(x.dtype)

    problem = diffusion(schedule, output)
    zero = jnp.zeros(len(ts) - 1, ts.dtype)
    source = source_of(None, zero, ts)
    states, _ = run(source, solver, problem, x=zero, ts=ts, path=True, zero_end=False)
    steps = noise_steps(problem, ts)
    alphas = jnp.concatenate([steps.start.alpha[:1], steps.end.alpha])
    states = states / alphas[:, None]  # (N + 1, N)
    keep, share = jnp.exp(-steps.log_step), -jnp.expm1(-steps.log_step)
    return (states[1:] - keep[:, None] * states[:-1]) / share[:, None]


@checks.arguments(solver=check_tabular, schedule=schedules.argument)
def output_weights(
    solver: Solver, schedule: Schedule, grid: ArrayLike
) -> tuple[tuple[float, ...], ...]:
    """The weights with which a published multistep solver uses its outputs on a grid.

    `tabulated` of them is that solver on that grid.

    Args:
      solver: Deterministic, with one evaluation of the denoiser per step.
      schedule: One with a finite log-SNR at the first time.
      grid: Times (N + 1,) that do not end at 0.

    Returns:
      w, a row of n numbers for each step n = 1 … N − 1 after the first.

    Raises:
      TypeError: If the solver is not of one evaluation of D per step without noise.
      ValueError: If the solver cannot take the grid.

    Example:
      >>> ts = dj.grids.log_snr(schedule, 3)
      >>> weights = dj.solvers.output_weights(dj.solvers.dpmpp_2m(), schedule, ts)
      >>> [len(row) for row in weights]
      [1, 2]
    """
    grid = grids.check("grid", grid, schedule)
    check_grid("grid", solver, diffusion(schedule, lambda x, t: x), grid)
    arrays, static = partition(schedule)
    return weight_rows(_weights((solver, static), arrays, grid))


@compiled
def _weights(settings, arrays, grid):
    solver, static = settings
    return weights_of(solver, combine(arrays, static), grid)


def weight_rows(table: Array) -> tuple[tuple[float, ...], ...]:
    """The rows of `tabulated` of weights (N, N)."""
    rows = np.asarray(table, float).tolist()
    return tuple(tuple(row[:n]) for n, row in enumerate(rows) if n)
