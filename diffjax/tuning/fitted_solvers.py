"""Solvers fitted to a model: the grid and the coefficients of few steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..schedules import Schedule
from ..solvers.base import Solver
from ..solvers.multistep import unipc
from ..solvers.tabulated import (
    check_tabular,
    of_weights,
    tabulated,
    weight_rows,
    weights_of,
)
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    combine,
    compiled,
    pytree,
)
from .fitted_grids import descend
from .references import (
    Starts,
    begin,
    parts_of,
    run,
    times_of_shares,
    unit_of,
)

__all__ = ["FittedSolver", "optimised_solver"]

COMPARED = ("coefficients", "grid", "recommended", "unipc(3)")
"""Names of what is compared, see `FittedSolver`."""

GRID_ITERATIONS, GRID_RATE = 200, 0.1
"""Of the grid's descent, as in `optimised_grid`."""


class FittedSolver(NamedTuple):
    """A solver and its grid, with errors of them and of what they were compared with.

    Each error is the root mean square, over starts and components, of the difference
    between the solver's end and the exact flow's, in data units. The names are
    "coefficients" for fitted grid and coefficients, "grid" for the published solver on
    its fitted grid, "recommended" for it on the recommended grid, and "unipc(3)" for
    `unipc(3)` there. "coefficients" need not be what is returned.

    Attributes:
      solver: `solvers.tabulated(weights)`.
      grid: The times (N + 1,) that it is for.
      weights: Rows of numbers, from which a stored solver is made again.
      fitted: name -> error on the starts that were fitted.
      held_out: name -> error on starts that neither the descent nor the choice of its
        iterate has seen. The solver returned is the one of the least error here.
    """

    solver: Solver
    grid: Array
    weights: tuple[tuple[float, ...], ...]
    fitted: dict[str, float]
    held_out: dict[str, float]


@checks.arguments(
    schedule=schedules.argument,
    denoiser=checks.denoiser,
    steps=(checks.integer, 2),
    solver=checks.optional(check_tabular),
    iterations=(checks.integer, 0),
)
def optimised_solver(
    schedule: Schedule,
    denoiser: Denoiser,
    steps: int,
    key: Key | None = None,
    *,
    solver: Solver | None = None,
    shape: tuple[int, ...] | None = None,
    x_init: ArrayLike | None = None,
    examples: int = 256,
    iterations: int = 50,
) -> FittedSolver:
    """Multistep solver and grid fitted to a denoiser, for few evaluations.

    Step n takes the state and all outputs so far to

        y ← (ρ_s/ρ_t) y + (1 − ρ_s/ρ_t) (D_n + Σ_{j<n} w_nj (D_j − D_n))

    in y = x/α, ρ = σ/α, so that a constant output is integrated exactly whatever w is.
    The N(N−1)/2 weights and the times minimise

        Σ_k ‖x̂_k(w, t) − x_k‖²

    over the fitted starts, where x̂ is the solver's end and x the exact flow's, by rk4.
    They start from the weights of a published solver on the grid that is fitted to it
    as `optimised_grid` does. The descent is Levenberg's and Marquardt's: each iteration
    solves the linearised problem, with the best of four dampings. It needs forward
    derivatives of the denoiser only.

    The iterate is chosen on starts that were not fitted. Of it and the compared
    solvers, the best on further starts is returned. So its error on these is never
    greater than theirs.

    Cost in evaluations of the denoiser, beside that of `optimised_grid`, with
    P = N(N+1)/2 and n = examples. A forward derivative counts as two.

        (P + 3) n N · iterations

    Args:
      schedule: One with a finite log-SNR at t_max.
      denoiser: (x, t) -> E[x_0 | x_t = x].
      steps: N, the number of steps and evaluations, 2 or more.
      key: For drawing the starts, unless x_init is given.
      solver: The published solver to start from, deterministic with one evaluation of
        the denoiser per step. Default `unipc(3)`.
      shape: Of one example, as in `optimised_grid`.
      x_init: Starts (n, *shape) at t_max to use instead, as in `optimised_grid`.
      examples: Starts drawn for the descent, half of them fitted and half for choosing
        the iterate. A fit of too few has a much smaller error on them than on others.
      iterations: Iterations of the descent of the weights.

    Returns:
      A `FittedSolver`. Pass its `solver` and its `grid` to `sample`.

    Raises:
      TypeError: For a solver that is not of one evaluation of D per step without noise.
      ValueError: For starts neither given nor drawn, fewer than 2 of them, fewer than 2
        steps, α(t_max) = 0, or a denoiser that is not finite on the reference run.

    References:
      Shaul et al. 2023 (bespoke solvers, arXiv 2310.19075). Shaul et al. 2024
      (non-stationary ones, whose family this is with consistency imposed, arXiv
      2403.01329). Nocedal & Wright 2006, section 10.3.

    Example:
      >>> fit = dj.tuning.optimised_solver(
      ...     schedule, denoiser, 2, key, shape=(2,), examples=2, iterations=1)
      >>> dj.sample(
      ...     key, denoiser, schedule, solver=fit.solver, grid=fit.grid, shape=(2,)
      ... ).shape
      (2,)
    """
    solver = unipc(3) if solver is None else solver
    settings, arrays, prepared = begin(
        schedule,
        denoiser,
        Starts(key, shape, x_init, examples),
        solver=solver,
        steps=steps,
        iterations=GRID_ITERATIONS,
        weight_iterations=iterations,
        tried=slice(1),
    )
    best, fitted, held_out = _fit(settings, arrays, prepared)
    weights = weight_rows(best.weights)
    named = lambda errors: dict(
        zip(COMPARED, np.asarray(errors, float).tolist(), strict=True)
    )
    return FittedSolver(
        tabulated(weights), best.grid, weights, named(fitted), named(held_out)
    )


class _Table(NamedTuple):
    """Weights (N, N) and grid (N + 1,), or several with a leading axis."""

    weights: Any
    grid: Any


@pytree
class _Ends:
    """Differences between the ends of tables and those of the exact flow."""

    denoiser: Any
    schedule: Any
    unit: Any

    def differences(self, table, pairs):
        """In units of the data, flat."""
        starts, ends = pairs
        solver = of_weights("a fit", table.weights)
        x = run(solver, self.denoiser, self.schedule, grid=table.grid, starts=starts)
        return ((x - ends) / self.unit).ravel()

    def mean_square(self, table, pairs):
        """Infinite for a grid that does not decrease, and where not finite."""
        square = jnp.mean(self.differences(table, pairs) ** 2)
        allowed = jnp.isfinite(square) & jnp.all(jnp.diff(table.grid) < 0)
        return jnp.where(allowed, square, jnp.inf)


@compiled
def _fit(settings, arrays, prepared):
    """(the best `_Table`, errors of those in `COMPARED` on fitted and on held-out)."""
    grid, _ = descend(settings, arrays, GRID_RATE, prepared)
    candidates, starts, ends = prepared
    denoiser, schedule = combine(arrays, settings.static)
    fit, choice, judged = parts_of(settings.counts, starts, ends)
    of_ends = _Ends(denoiser, schedule, unit_of(ends))
    recommended = candidates[0]
    compared = (
        (settings.solver, grid),
        (settings.solver, recommended),
        (unipc(3), recommended),
    )
    tables = [_Table(weights_of(s, schedule, ts), ts) for s, ts in compared]
    descended = _descended(of_ends, fit, choice, tables[0], settings.weight_iterations)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), descended, *tables)
    error = lambda pairs: (
        of_ends.unit
        * jnp.sqrt(
            jax.lax.map(lambda table: of_ends.mean_square(table, pairs), stacked)
        )
    )
    held_out = error(judged)
    best = jax.tree.map(lambda leaf: leaf[jnp.argmin(held_out)], stacked)
    return best, error(fit), held_out


DAMPINGS = (0.1, 1.0, 10.0, 100.0)
"""Multiples of the damping so far, of which each iteration takes the best."""


def _damped_step(difference, square, numbers, damping):
    """One step of Levenberg–Marquardt, the best of `DAMPINGS`, and the next damping.

    The numbers stay where no damping lowers the mean square.
    """
    now = difference(numbers)
    # (P, n): one derivative at a time, in the memory of one run
    slope = lambda unit: jax.jvp(difference, (numbers,), (unit,))[1]
    slopes = jax.lax.map(slope, jnp.eye(len(numbers)))
    normal, gradient = slopes @ slopes.T, slopes @ now
    mean = jnp.trace(normal) / len(numbers)

    def tried(damping):
        damped = normal + damping * mean * jnp.eye(len(numbers))
        moved = numbers - jnp.linalg.solve(damped, gradient)
        return moved, square(moved)

    dampings = damping * jnp.array(DAMPINGS)
    trials, errors = jax.lax.map(tried, dampings)
    least = jnp.argmin(errors)
    lower = errors[least] < jnp.mean(now**2)
    numbers = jnp.where(lower, trials[least], numbers)
    damping = jnp.where(lower, dampings[least], 10 * dampings[-1])
    return numbers, jnp.clip(damping, jnp.finfo(numbers.dtype).eps, 1e6)


def _descended(of_ends, fit, choice, start, iterations):
    """The table of least error on `choice` among Levenberg–Marquardt's iterates."""
    schedule, count = of_ends.schedule, len(start.weights)
    triangle = np.tril_indices(count, -1)

    def table_of(numbers):
        log_shares, weights = jnp.split(numbers, [count])
        table = jnp.zeros((count, count), numbers.dtype).at[triangle].set(weights)
        return _Table(table, times_of_shares(schedule, log_shares))

    difference = lambda numbers: of_ends.differences(table_of(numbers), fit)
    square = lambda numbers, pairs: of_ends.mean_square(table_of(numbers), pairs)

    def iterate(carry, _):
        numbers, damping, best = carry
        squared = lambda numbers: square(numbers, fit)
        numbers, damping = _damped_step(difference, squared, numbers, damping)
        error = square(numbers, choice)
        pick = lambda new, old: jnp.where(error < best[0], new, old)
        return (numbers, damping, jax.tree.map(pick, (error, numbers), best)), None

    log_shares = jnp.log(jnp.diff(schedules.log_snr(schedule, start.grid)))
    numbers = jnp.concatenate([log_shares, start.weights[triangle]])
    carry = (
        numbers,
        jnp.asarray(1e-3, numbers.dtype),
        (square(numbers, choice), numbers),
    )
    (_, _, (_, numbers)), _ = jax.lax.scan(iterate, carry, length=iterations)
    return table_of(numbers)
