"""Grids fitted to a model: where a solver should put a number of steps."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks, schedules
from ..schedules import Schedule
from ..solvers import requirements
from ..solvers.base import Solver
from ..solvers.ode import heun
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    combine,
    compiled,
    pytree,
    static_field,
)
from .references import (
    FAMILIES,
    FitSettings,
    Prepared,
    Starts,
    begin,
    mean_norm,
    parts_of,
    run,
    times_of_shares,
    unit_of,
)

__all__ = ["GridErrors", "descend", "optimised_grid"]


class GridErrors(NamedTuple):
    """End errors of a fitted grid and of those that it was compared with.

    They are measured on starts held out from the descent and from the choice
    of its iterate. Each is the root mean square, over starts and components,
    of the difference between the solver's end and the reference's, in data
    units.

    Attributes:
      error: Of the grid returned, which is the best of all.
      descended: Of the descended grid.
      equidistributed: Of the grid that equidistributes the local error.
      baselines: Of each fixed family's grid, by its name in `FAMILIES`.
    """

    error: float
    descended: float
    equidistributed: float
    baselines: dict[str, float]


@checks.arguments(
    schedule=schedules.argument,
    denoiser=checks.denoiser,
    steps=(checks.integer, 1),
    solver=checks.optional(requirements.check_solver, "deterministic", "fixed"),
    iterations=(checks.integer, 0),
    learning_rate=checks.positive,
)
def optimised_grid(
    schedule: Schedule,
    denoiser: Denoiser,
    steps: int,
    key: Key | None = None,
    *,
    solver: Solver | None = None,
    shape: tuple[int, ...] | None = None,
    x_init: ArrayLike | None = None,
    examples: int = 256,
    iterations: int = 200,
    learning_rate: float = 0.1,
    info: bool = False,
) -> Any:
    """Grid fitted to a denoiser and a solver, for a small error of the samples.

    The error is the distance from the end of the exact probability flow.

    First the local error e(λ) of one step of the solver is measured against
    rk4 along it, on `NODES` steps of equal log-SNR. Equal local errors result
    where

        ∫ e^{1/(p+1)} dλ

    is cut into N equal parts (de Boor 1973, Hairer, Nørsett & Wanner 1993,
    II.4). p is the order of that step, 1 for a solver that builds on earlier
    ones. The integrand is smoothed over 5 nodes.

    Then the end error is descended from the best of that grid and all of
    `FAMILIES` but the first, by Adam with a cosine decay on the w of

        log (1/n) Σ_k ‖x̂_k(w) − x_k‖,    t_i = t(λ_i)

        λ_i = λ(t_max) + (λ(t_min) − λ(t_max)) Σ_{j≤i} softmax(w)_j

    x̂ is the solver's end, x that of rk4 from the same start. The mean of
    norms, unlike that of squares, does not depend mostly on the few starts
    near a watershed of the flow, whose ends lie far apart. Descent through the
    sampler is that of Watson et al. 2022, there of sample quality. Sabour et
    al. 2024 minimise a bound instead.

    The iterate is chosen on starts that were not fitted. Then the descended
    grid, the equidistributed one and the families are judged on further starts
    by their root mean square error, to which starts near a watershed do count.
    The best is returned.

    So on the judging starts the result is never worse than a family.
    Differences of a few such starts among `HELD_OUT · examples` are chance.

    Cost in evaluations of the denoiser, with n = examples and c that of one
    step. A gradient counts as two evaluations, and stages recomputed for it as
    well.

        (HELD_OUT + 1) · n · 256 max(4, ⌈N/8⌉) + 64 n c
        + (2.5 n · iterations + 6 (HELD_OUT + 1) n) · evaluations of the grid

    Args:
      schedule: One with a finite log-SNR at t_max.
      denoiser: (x, t) -> E[x_0 | x_t = x].
      steps: N, the number of steps.
      key: For drawing the starts, unless x_init is given.
      solver: Deterministic, of fixed steps. Default `heun()`.
      shape: Of one example. Starts are drawn from N(0, prior_std²) in this
        shape, as `sample` draws them.
      x_init: Starts (n, *shape) at t_max to use instead, distributed as those
        that the grid will be used from. The first quarter is fitted, the
        second chooses the iterate, the other half judges the grids.
      examples: Starts drawn for the descent, half of them fitted and half for
        choosing the iterate. Take more where the errors depend on a few
        starts.
      iterations: Iterations of the descent. With 0 the denoiser is not
        differentiated.
      learning_rate: Of the descent.
      info: Whether to return (grid, `GridErrors`).

    Returns:
      The grid, times (steps + 1,) from t_max to t_min, or (grid,
      `GridErrors`).

    Raises:
      TypeError: For a solver that is stochastic or chooses its own steps.
      ValueError: For starts neither given nor drawn, fewer than 2 of them,
        α(t_max) = 0, or a denoiser that is not finite on the reference run.

    Example:
      >>> grid = dj.tuning.optimised_grid(
      ...     schedule, denoiser, 2, key, shape=(2,), examples=2, iterations=0)
      >>> grid.shape
      (3,)
    """
    solver = heun() if solver is None else solver
    settings, arrays, prepared = begin(
        schedule,
        denoiser,
        Starts(key, shape, x_init, examples),
        solver=solver,
        steps=steps,
        iterations=iterations,
    )
    grid, errors = descend(settings, arrays, learning_rate, prepared)
    *baselines, equidistributed, descended = np.asarray(errors, float).tolist()
    if not info:
        return grid
    report = GridErrors(
        error=float(np.min(np.asarray(errors))),
        descended=descended,
        equidistributed=equidistributed,
        baselines=dict(zip(FAMILIES, baselines, strict=True)),
    )
    return grid, report


@pytree
class _Recomputed:
    """A denoiser that is evaluated again in the backward pass.

    A gradient then holds one state per step.
    """

    denoiser: Any

    def __call__(self, x, t):
        return jax.checkpoint(lambda x, t: self.denoiser(x, t))(x, t)


@pytree
class _EndError:
    """End errors of grids, differentiable in the grid. Pairs are (starts, ends)."""

    denoiser: Any
    schedule: Any
    unit: Any
    floor: Any
    solver: Solver = static_field()

    def differences(self, grid, pairs):
        starts, ends = pairs
        denoiser = _Recomputed(self.denoiser)
        x = run(self.solver, denoiser, self.schedule, grid=grid, starts=starts)
        return (x - ends) / self.unit

    def mean_norm(self, grid, pairs):
        """Mean over starts of the norm, infinite for a grid that does not decrease."""
        value = mean_norm(self.differences(grid, pairs), self.floor)
        return jnp.where(jnp.all(jnp.diff(grid) < 0), value, jnp.inf)

    def root_mean_square(self, grid, pairs):
        """In data units, infinite for a grid that does not decrease."""
        square = jnp.mean(self.differences(grid, pairs) ** 2)
        value = self.unit * jnp.sqrt(square)
        return jnp.where(jnp.all(jnp.diff(grid) < 0), value, jnp.inf)


@compiled
def descend(
    settings: FitSettings,
    arrays: Any,
    learning_rate: Any,
    prepared: Prepared,
) -> tuple[Array, Array]:
    """The best grid of a descent.

    Args:
      settings: The settings.
      arrays: Arrays of denoiser and schedule.
      learning_rate: Of the descent.
      prepared: From `prepare`. The descent is from the best of its candidates but
        the first.

    Returns:
      (the best grid, errors (K + 1,) of the candidates and of the descended grid).
    """
    denoiser, schedule = combine(arrays, settings.static)
    candidates, starts, ends = prepared
    fit, choice, judged = parts_of(settings.counts, starts, ends)
    unit = unit_of(ends)
    # against the norm's infinite slope at 0
    floor = jnp.finfo(ends.dtype).eps ** 2 * jnp.mean((ends / unit) ** 2)
    error = _EndError(denoiser, schedule, unit, floor, settings.solver)
    # without `angular`, so that the descent is the same in every unit of the data
    begun = candidates[1:]
    errors = jax.lax.map(lambda grid: error.mean_norm(grid, fit), begun)
    grid = begun[jnp.nanargmin(errors)]
    if settings.iterations:
        pairs = fit, choice
        grid = _best_iterate(error, pairs, grid, learning_rate, settings.iterations)
    grids_judged = jnp.concatenate([candidates, grid[None]])
    judge = lambda grid: error.root_mean_square(grid, judged)
    errors = jax.lax.map(judge, grids_judged)
    errors = jnp.nan_to_num(errors, nan=jnp.inf, posinf=jnp.inf)
    return grids_judged[jnp.argmin(errors)], errors


def _best_iterate(error, pairs, start, learning_rate, iterations):
    """Adam on the logits w of the shares of the log-SNR interval, from a grid."""
    (fit, choice), schedule = pairs, error.schedule
    optimiser = optax.adam(optax.cosine_decay_schedule(1.0, iterations))

    def grid_of(logits):
        return times_of_shares(schedule, logits)

    def objective(logits):
        return jnp.log(error.mean_norm(grid_of(logits), fit))

    def descend(carry, _):
        logits, state, best = carry
        grid = grid_of(logits)
        now = error.mean_norm(grid, choice)
        better = functools.partial(jnp.where, now < best[0])
        best = jax.tree.map(better, (now, grid), best)
        gradient = jax.grad(objective)(logits)
        with jax.numpy_dtype_promotion("standard"):  # optax divides integers
            updates, state = optimiser.update(gradient, state)
        return (logits + learning_rate * updates, state, best), None

    logits = jnp.log(jnp.diff(schedules.log_snr(schedule, start)))
    carry = logits, optimiser.init(logits), (error.mean_norm(start, choice), start)
    (_, _, (_, grid)), _ = jax.lax.scan(descend, carry, length=iterations)
    return grid
