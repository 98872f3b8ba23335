"""Conditions that a run must meet, checked before it is traced."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, predictions
from ..noise import BrownianPath
from ..numerics import float_dtype
from ..types import Array, ArrayLike, PyTree, as_pytree_callable, pytree, static_field
from .base import Problem, Solver, without_signal

__all__ = [
    "Checked",
    "check_between",
    "check_consumes",
    "check_draws",
    "check_example",
    "check_grid",
    "check_key",
    "check_noise",
    "check_pairing",
    "check_remat",
    "check_path",
    "check_solver",
    "check_state",
    "ends_at_zero",
    "may_end_at_zero",
]


# ----------------------------------------------------- solver, problem and key


_RULES = {
    "single": (
        lambda solver: not solver.traits.composed,
        "must not itself be made of solvers, as {0.name} is",
    ),
    "unpaired": (
        lambda solver: not solver.traits.paired,
        "must take a denoiser that returns D alone, {0.name} needs a pair",
    ),
    "fixed": (
        lambda solver: solver.evaluations(1) is not None,
        "must take one fixed step after another, got {0.name}",
    ),
    "memoryless": (
        lambda solver: not solver.traits.past,
        "must not remember earlier steps, as {0.name} does",
    ),
    "deterministic": (
        lambda solver: not solver.stochastic,
        "must be deterministic to follow the probability flow, {0.name} draws noise",
    ),
    "stoppable": (
        lambda solver: solver.solve is None,
        "must take one step after another to be stopped, {0.name} takes all at once",
    ),
    "stepwise": (
        lambda solver: solver.solve is None,
        "must take one step after another where remat is True, {0.name} takes all "
        "at once",
    ),
    "velocity": (
        lambda solver: solver.consumes == "velocity",
        "must consume a velocity, {0.name} consumes a {0.consumes}",
    ),
}
"""Rules that a solver may have to meet: (solver -> whether it does, the message)."""

INNER = "single", "unpaired", "fixed"
"""The rules for a solver that is part of another."""


def check_solver(name: str, solver: Any, *rules: str) -> None:
    """Raise TypeError unless this is a solver. An uncalled factory is named.

    Args:
      name: The argument's name, for the message.
      solver: The argument.
      *rules: What else it must be: "single" if it may not be made of solvers,
        "unpaired" if its denoiser returns D alone, "fixed" if its steps are
        those of the grid, "memoryless", "deterministic", "stoppable",
        "stepwise", or "velocity" if it must consume one.
    """
    checks.made_by(name, solver, Solver, "a factory of diffjax.solvers such as heun()")
    for holds, message in map(_RULES.__getitem__, rules):
        checks.require(holds(solver), f"{name} {message.format(solver)}", TypeError)


def check_remat(solver: Solver, remat: Any) -> bool:
    """Check whether the steps of a solver shall be computed again.

    Args:
      solver: The solver.
      remat: True only for one that takes one step after another.

    Returns:
      The bool.
    """
    remat = checks.boolean("remat", remat)
    check_solver("solver", solver, *(["stepwise"] if remat else []))
    return remat


def check_consumes(solver: Solver, problem: Problem) -> None:
    """Raise TypeError for a problem that lacks the field that a solver consumes.

    Args:
      solver: The solver.
      problem: Its denoiser serves with its schedule only.
    """
    # velocity and reverse SDE follow from a denoiser, but only with its schedule
    checks.require(
        {"schedule", "denoiser"} <= {*problem.stated} or _is_stated(solver, problem),
        f"problem needs a {solver.consumes} for {solver.name}, got {problem.stated}",
        TypeError,
    )


def _is_stated(solver, problem):
    """Whether a solver's field is stated, and not derived from a schedule."""
    return solver.consumes != "denoiser" and solver.consumes in problem.stated


def check_pairing(solver: Solver, denoiser: Any) -> None:
    """Raise TypeError for a stochastic solver where the noise depended on the data.

    Args:
      solver: The solver.
      denoiser: Marked where it was fitted to such noise.
    """
    if solver.stochastic:
        predictions.check_independent(f"the stochastic solver {solver.name}", denoiser)


def check_key(solver: Solver, key: Any, noise: Any = None) -> Any:
    """Check the key of a run.

    Args:
      solver: A stochastic one must have a key unless its noise is given.
      key: A typed key or None.
      noise: The solver's noise or None.

    Returns:
      The key.
    """
    checks.require(
        key is not None or noise is not None or not solver.stochastic,
        f"key must be given for the stochastic solver {solver.name}, got None",
    )
    return None if key is None else checks.key("key", key)


# ----------------------------------------------------------------------- noise


def check_noise(noise: Any, shape: tuple[int, ...] | None, ts: ArrayLike) -> Any:
    """Check the noise of a run.

    Args:
      noise: None, a Brownian path, an array, or a function (step, draw) ->
        array.
      shape: Of x. None where it is no array.
      ts: The grid (N + 1,).

    Returns:
      The noise, a function as a pytree.

    Raises:
      TypeError: For noise where x is a pytree.
      ValueError: For noise of another shape, or a path that does not cover the
        grid.
    """
    if noise is None:
        return None
    if shape is None:
        raise TypeError(f"noise must be None where x is a pytree, got {noise!r}")
    if isinstance(noise, BrownianPath):
        check_path(noise, shape, ts)
        return noise
    if callable(noise):
        return as_pytree_callable(noise)
    return check_draws(noise, shape, ts)


def check_draws(
    noise: ArrayLike, shape: tuple[int, ...], ts: ArrayLike, batch: tuple[int, ...] = ()
) -> Array:
    """Check an array of noise for runs over a grid.

    Args:
      noise: Standard normals (*batch, N, draws, *shape).
      shape: Of x.
      ts: The grid (N + 1,).
      batch: The leading axes.

    Returns:
      The array.
    """
    noise = checks.finite_array("noise", noise)
    expected = (*batch, np.shape(ts)[0] - 1, "draws", *shape)
    if noise.ndim != len(expected) or any(
        n not in (m, "draws") for n, m in zip(expected, noise.shape, strict=True)
    ):
        form = ", ".join(map(str, expected))
        raise ValueError(f"noise must have shape ({form}), got {noise.shape}")
    return noise


def check_path(path: BrownianPath, shape: tuple[int, ...], ts: ArrayLike) -> None:
    """Raise ValueError for a Brownian path that does not fit.

    Args:
      path: The path, of x's shape. It must cover the grid.
      shape: Of x.
      ts: The grid (N + 1,).
    """
    checks.require(
        path.shape == shape,
        f"noise must be a Brownian path of x's shape {shape}, got {path.shape}",
    )
    if checks.is_traced(path, ts):
        return
    low, high = sorted((float(path.start), float(path.end)))
    values = np.asarray(ts)
    # the grid's rounding at the path's ends
    slack = 4 * np.finfo(values.dtype).eps * max(abs(low), abs(high))
    checks.require(
        low - slack <= values.min() and values.max() <= high + slack,
        f"noise must be a Brownian path that covers the grid, got [{low}, {high}] "
        f"for {values[0]} … {values[-1]}",
    )


# ------------------------------------------------------------------------ grid


def check_grid(name: str, solver: Solver, problem: Problem, ts: ArrayLike) -> None:
    """Raise ValueError for a concrete grid that a solver cannot walk.

    Args:
      name: The grid's name in messages.
      solver: The solver.
      problem: On its schedule some solvers have limits.
      ts: The grid (N + 1,).
    """
    if checks.is_traced(ts):
        return
    values = np.asarray(ts)
    first, last = values[0], values[-1]
    if solver.consumes == "denoiser" and first < last:
        checks.require(
            not solver.stochastic,
            f"{name} must decrease for {solver.name}, got {first} … {last}",
        )
        checks.require(
            not without_signal(problem.schedule, last),
            f"{name} must end below t={last} upwards for {solver.name}: α = 0 there",
        )
    # the limits concern fields that are derived from the schedule
    schedule = None if _is_stated(solver, problem) else problem.schedule
    solver.traits.check_grid(schedule, values)


def ends_at_zero(ts: ArrayLike) -> bool:
    """Whether the grid's last time is seen to be 0. False for what is no grid."""
    if checks.is_traced(ts):
        return False
    try:
        values = np.asarray(ts, float)
    except (TypeError, ValueError, OverflowError):
        return False
    return values.ndim == 1 and values.size > 0 and bool(values[-1] == 0)


def may_end_at_zero(ts: ArrayLike) -> bool:
    """Whether the grid's last time is 0, or cannot be seen."""
    return checks.is_traced(ts) or ends_at_zero(ts)


# ---------------------------------------------------------------------- states


def check_example(name: str, x: ArrayLike) -> Array:
    """Check one example.

    Args:
      name: Its name in messages.
      x: An array without NaN and infinity.

    Returns:
      x as an array of the working dtype.
    """
    x = checks.finite_array(name, x)
    return x.astype(float_dtype(x))


def check_state(name: str, x: PyTree) -> PyTree:
    """Check a pytree of examples.

    Args:
      name: Its name in messages.
      x: The pytree, see `check_example`.

    Returns:
      x with arrays of the working dtype.
    """
    return jax.tree.map(functools.partial(check_example, name), x)


def check_between(
    start: ArrayLike, end: ArrayLike, weights: ArrayLike
) -> tuple[Array, Array, Array]:
    """Check two examples of one shape and weights between them.

    Args:
      start: The first example.
      end: The second.
      weights: An array (K,).

    Returns:
      All three as arrays.
    """
    start, end = check_example("start", start), check_example("end", end)
    checks.one_of_shapes("end", end, [start.shape])
    weights = checks.axes("weights", checks.finite_array("weights", weights), "(K,)")
    return start, end, weights


# -------------------------------------------------------------------- denoiser


@pytree
class Checked:
    """A denoiser that checks its output while it is traced.

    The output has the dtype of the example.

    Attributes:
      denoiser: The denoiser.
      paired: Whether it returns (D, second) with second of shape () or x's.
    """

    denoiser: Any
    paired: bool = static_field(default=False)

    def __call__(self, x: Array, t: Array, *end: Array) -> Any:
        """D(x, t), of x's shape, or the pair.

        Args:
          x: One example.
          t: The time.
          *end: The time to which a flow map leads.

        Raises:
          TypeError: If the output is no array of real numbers, or no pair
            where one is due.
          ValueError: If it has another shape than x.
        """
        denoised = self.denoiser(x, t, *end)
        if not self.paired:
            return checks.denoised(denoised, x).astype(x.dtype)
        checks.pair("denoiser's value", denoised, "(D, second), see ddpm.paired")
        denoised, second = denoised[0], jnp.asarray(denoised[1])
        checks.one_of_shapes("denoiser's second value", second, [(), x.shape])
        return checks.denoised(denoised, x).astype(x.dtype), second.astype(x.dtype)
