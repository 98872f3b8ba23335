"""Samples from a denoiser, one or many; encoding and interpolation through the probability flow."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from . import checks, grids, schedules
from .numerics import float_dtype
from .schedules import Schedule
from .solvers import driver
from .solvers.base import Solver
from .solvers.multistep import unipc
from .types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    PyTree,
    as_pytree,
    as_pytree_callable,
    combine,
    compiled,
    one_program,
    partition,
    pytree,
)

_EXAMPLES = "examples"
"""The name of the axis over which `sample_many` maps."""

EVALUATIONS, STEPS = 64, 32
"""How many evaluations a default grid takes, and how many steps it has at the least."""


def _default_grid(schedule, solver):
    cost = grids.cost_of_step(solver)
    return grids.recommended(
        schedule,
        solver,
        EVALUATIONS if cost is None else max(EVALUATIONS, STEPS * cost),
    )


DEFAULT = (unipc(3), _default_grid)
"""The default solver, and (schedule, solver) -> the default grid."""


def sample(
    key: Key | None,
    denoiser: Denoiser,
    schedule: Schedule,
    *,
    solver: Solver | None = None,
    grid: ArrayLike | None = None,
    shape: tuple[int, ...] | None = None,
    x_init: ArrayLike | None = None,
    path: bool = False,
    info: bool = False,
    noise: Any = None,
) -> Any:
    """One sample of the distribution that `denoiser` describes, at noise level σ(grid[-1]).

    Song et al. 2021, section 3; Karras et al. 2022.

    Args:
      key: Typed key; the sample depends on it alone. None where x_init and, for a stochastic solver, noise are given.
      denoiser: (x, t) -> E[x_0 | x_t = x], any callable. Arrays that it reaches may change between calls, see
        `types.as_pytree_callable`.
      schedule: A schedule.
      solver: Default `unipc(3)`.
      grid: Decreasing times (N + 1,), by default `grids.recommended` for 64 evaluations and at least 32 steps, or
        `grids.uniform` with 64 steps where α(t_max) = 0. It may end at exactly 0, where the last step returns D. It may
        start below t_max.
      shape: Shape of one example; the start is then drawn from N(0, σ(grid[0])²).
      x_init: A start at grid[0] in place of a shape, taken unchanged.
      path: Whether to return the states at all N + 1 times, (N + 1, *shape).
      info: Whether to return (result, Info).
      noise: The solver's noise in place of draws from the key, an array (N, draws, *shape) or another of the forms that
        `solvers.integrate` takes.

    Returns:
      The sample, of the given shape; see `path` and `info`.

    Raises:
      ValueError: If neither shape nor x_init is given, for a bad grid or noise, or a missing key.
      TypeError: If the solver cannot take a denoiser.

    Example:
      >>> x = dj.sample(key, denoiser, schedule, shape=(2,))
      >>> noise = jax.random.normal(key, (8, 1, 2))  # of 8 steps with one draw each
      >>> settings = dict(solver=dj.solvers.ddim(1.0), grid=grid, noise=noise)
      >>> x = dj.sample(None, denoiser, schedule, x_init=jnp.ones(2), **settings)
    """
    if x_init is None and shape is None:
        raise ValueError(
            "shape must be given, the shape of one example, unless x_init is"
        )
    if x_init is not None:
        x_init = driver.check_example("x_init", x_init)
        if shape is not None:
            checks.one_of_shapes("x_init", x_init, [checks.shape("shape", shape)])
    shape = checks.shape("shape", shape) if x_init is None else x_init.shape
    zero_end = grid is not None and driver.may_end_at_zero(grid)
    solver, grid = prepare(solver, grid, denoiser, schedule, DEFAULT)
    noise = driver.check_noise(noise, shape, grid)
    if key is not None or (solver.stochastic and noise is None) or x_init is None:
        checks.key("key", key)
    arrays, static = partition(
        (as_pytree_callable(denoiser), as_pytree(schedule), noise)
    )
    settings = (solver, static, shape, bool(path), zero_end)
    result, report = _sample_one(settings, arrays, key, grid, x_init)
    driver.warn_if_exhausted(solver, report)
    return (result, report) if info else result


def sample_many(
    key: Key,
    count: int,
    denoiser: Denoiser,
    schedule: Schedule,
    *,
    solver: Solver | None = None,
    grid: ArrayLike | None = None,
    shape: tuple[int, ...] | None = None,
    condition: PyTree = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    x_init: ArrayLike | None = None,
    path: bool = False,
    info: bool = False,
    noise: ArrayLike | None = None,
) -> Any:
    """`count` samples: example i is `sample(fold_in(key, i), …)` whatever count, chunk and mesh are.

    Args:
      key: Typed key.
      count: How many.
      denoiser: As in `sample`; called as denoiser(x, t, condition_i) where a condition is given.
      schedule: As in `sample`.
      solver: As in `sample`.
      grid: As in `sample`.
      shape: Shape of one example.
      condition: Pytree of arrays with leading axis count.
      chunk: Examples at a time, to bound memory; default all (all of a device's share).
      mesh: A device mesh over all of whose axes examples are sharded; its axis types do not matter.
      x_init: Starts (count, *shape) at grid[0] in place of prior draws.
      path: Whether to return the states at all times, (count, N + 1, *shape).
      info: Whether to return (result, Info), leaves (count,) where the work depends on the data.
      noise: The solver's noise, (count, N, draws, *shape), in place of draws from the key: see `solvers.integrate`.

    Returns:
      The samples, (count, *shape).

    Raises:
      ValueError: As `sample`, and for a count or chunk below 1 or a condition of another length.
      TypeError: As `sample`, and for a mesh that is none.

    Example:
      >>> dj.sample_many(key, 16, denoiser, schedule, shape=(2,)).shape
      (16, 2)
      >>> noise = jax.random.normal(key, (16, 8, 1, 2))  # one's own, of 8 steps
      >>> settings = dict(solver=dj.solvers.ddim(1.0), grid=grid, noise=noise)
      >>> dj.sample_many(key, 16, denoiser, schedule, shape=(2,), **settings).shape
      (16, 2)
    """
    checks.key("key", key)
    count = checks.integer("count", count, minimum=1)
    chunk = None if chunk is None else checks.integer("chunk", chunk, minimum=1)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {mesh!r}")
    checks.leading_axis("condition", condition, "count", count)
    if x_init is not None:
        x_init = driver.check_example("x_init", x_init)
        checks.leading_axis("x_init", x_init, "count", count)
        if shape is not None:
            checks.one_of_shapes(
                "x_init", x_init, [(count, *checks.shape("shape", shape))]
            )
        shape = x_init.shape[1:]
    elif shape is None:
        raise ValueError(
            "shape must be given, the shape of one example, unless x_init is"
        )
    zero_end = grid is not None and driver.may_end_at_zero(grid)
    solver, grid = prepare(solver, grid, denoiser, schedule, DEFAULT)
    if solver.across_examples and (chunk is not None or mesh is not None):
        name = "mesh" if chunk is None else "chunk"
        raise ValueError(
            f"{name} must be None for {solver.name}, whose steps depend on all examples of the batch"
        )
    shape = checks.shape("shape", shape)
    noise = (
        None
        if noise is None
        else driver.check_draws(noise, shape, grid, batch=(count,))
    )
    arrays, static = partition(
        (as_pytree_callable(denoiser), as_pytree(schedule), None)
    )
    settings = (
        (solver, static, shape, bool(path), zero_end),
        count,
        chunk,
        _automatic(mesh),
    )
    result, report = _sample_many(settings, arrays, key, grid, condition, x_init, noise)
    driver.warn_if_exhausted(solver, report)
    return (result, report) if info else result


def initial(
    key: Key, schedule: Schedule, grid: ArrayLike, shape: tuple[int, ...]
) -> tuple[Key, Array]:
    """What `sample` makes of its key: (the solver's key, the start x ~ N(0, σ(grid[0])²)).

    With these, `solvers.start` and `solvers.advance` take the steps of `sample`, in as many parts as is wanted.

    Args:
      key: Typed key.
      schedule: A schedule.
      grid: Decreasing times, of which the first counts.
      shape: Shape of one example.

    Returns:
      (key, x), x of the given shape.

    Raises:
      TypeError: If key is no typed key or shape no tuple of positive integers.
      ValueError: If the grid is not one, or does not decrease.

    Example:
      >>> key_run, x = dj.sampling.initial(key, schedule, grid, (2,))
      >>> run = dj.solvers.start(dj.solvers.unipc(3), dj.solvers.diffusion(schedule, denoiser), x, grid)
    """
    checks.key("key", key)
    shape = checks.shape("shape", shape)
    grid = grids.check("grid", grid, schedules.check(schedule), zero_end=True)
    grids.check_decreasing("grid", grid)
    arrays, static = partition(as_pytree(schedule))
    return _initial((static, shape), arrays, key, grid)


def encode(
    denoiser: Denoiser,
    schedule: Schedule,
    x: ArrayLike,
    *,
    solver: Solver | None = None,
    grid: ArrayLike | None = None,
    path: bool = False,
) -> Array:
    """x at grid[0] from x at grid[-1], by the probability flow upwards; `sample(x_init=…)` on the same grid inverts it.

    x: one example at grid[-1]. grid: a decreasing grid, walked backwards; it may not end at 0, where the flow has no
    start. solver, default `unipc(3)`: a deterministic one; with `ddim()` this is DDIM inversion. Raises ValueError and
    TypeError as `sample`. Song et al. 2021, D.4.
    """
    solver, grid = prepare(solver, grid, denoiser, schedule, DEFAULT, flow=True)
    problem, upwards = driver.diffusion(schedule, denoiser), reverse(grid)
    driver.check_grid("grid", solver, problem, upwards)
    x = driver.check_example("x", x)
    return driver.integrate(None, solver, problem, x, upwards, path=path)


def interpolate(
    denoiser: Denoiser,
    schedule: Schedule,
    start: ArrayLike,
    end: ArrayLike,
    *,
    weights: ArrayLike,
    solver: Solver | None = None,
    grid: ArrayLike | None = None,
) -> Array:
    """Examples between two: both encoded, their latents interpolated spherically, decoded; (len(weights), *x.shape).

    weights: (K,), 0 gives `start`, 1 gives `end`, up to the solver's error. z = (sin((1 − w)θ) z_a + sin(wθ) z_b)/sin
    θ, θ the angle between the latents. Song et al. 2021 (DDIM), eq. 67. Raises ValueError where the shapes differ.
    """
    start, end, weights = driver.check_between(start, end, weights)
    solver, grid = prepare(solver, grid, denoiser, schedule, DEFAULT, flow=True)
    problem = driver.diffusion(schedule, denoiser)
    driver.check_grid("grid", solver, problem, reverse(grid))
    arrays, static = partition(problem)
    between, report = _interpolate((solver, static), arrays, start, end, weights, grid)
    driver.warn_if_exhausted(solver, report)
    return between


@compiled
def _interpolate(settings, arrays, start, end, weights, grid):
    solver, static = settings
    problem = combine(arrays, static)

    def flow(ts, x):
        return driver.run(
            driver.noise_of(None, x, ts), solver, problem, x, ts, zero_end=False
        )

    up, _ = jax.vmap(functools.partial(flow, grid[::-1]))(jnp.stack([start, end]))
    return jax.vmap(functools.partial(flow, grid))(
        jax.vmap(functools.partial(spherical, *up))(weights)
    )


def reverse(grid: ArrayLike) -> ArrayLike:
    """A grid upwards, without a program of its own where it is concrete."""
    return grid[::-1] if checks.is_traced(grid) else np.asarray(grid)[::-1]


@one_program
def spherical(start: Array, end: Array, weight: ArrayLike) -> Array:
    """(sin((1 − w)θ) a + sin(wθ) b)/sin θ, θ the angle between a and b; shape of a.

    Straight where θ is small. Shoemake 1985.
    """
    norms = jnp.sqrt(jnp.sum(start**2) * jnp.sum(end**2))
    cosine = jnp.sum(start * end) / jnp.where(norms > 0, norms, 1)
    angle = jnp.arccos(jnp.clip(cosine, -1 + 1e-6, 1 - 1e-6))
    return (
        jnp.sin((1 - weight) * angle) * start + jnp.sin(weight * angle) * end
    ) / jnp.sin(angle)


def prepare(
    solver: Solver | None,
    grid: ArrayLike | None,
    denoiser: Denoiser,
    schedule: Schedule,
    default: tuple[Solver, Callable[[Schedule, Solver], Array]],
    flow: bool = False,
) -> tuple[Solver, Array]:
    """(solver, grid) checked, with defaults (solver, grid of a schedule and solver) filled in.

    The default grid is `grids.uniform` where α(t_max) = 0 and the log-SNR has no end. flow: whether the probability
    flow is to be followed, upwards too, so that the solver must be deterministic and the grid may not end at 0.
    """
    schedules.check(schedule)
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    solver, default_grid = default[0] if solver is None else solver, default[1]
    driver.check_solver(solver)
    driver.check_coupling(solver, denoiser)
    if flow and solver.stochastic:
        raise TypeError(
            f"solver must be deterministic to follow the flow, {solver.name} draws noise"
        )
    if grid is None:
        finite = checks.is_traced(schedule) or schedules.is_finite(schedule)
        if not finite:
            grid = grids.uniform(schedule, EVALUATIONS)
        else:
            grid = default_grid(schedule, solver)
        if checks.is_traced(schedule):
            bounded = jnp.isfinite(schedules.log_snr(schedule, schedule.t_max))
            grid = jnp.where(bounded, grid, grids.uniform(schedule, grid.shape[0] - 1))
    grid = grids.check("grid", grid, schedule, zero_end=not flow)
    grids.check_decreasing("grid", grid)
    if not checks.is_traced(grid):
        driver.check_grid("grid", solver, driver.diffusion(schedule, denoiser), grid)
    return solver, grid


@pytree
class _Conditioned:
    denoiser: Any
    condition: Any

    def __call__(self, x, t):
        return self.denoiser(x, t, self.condition)


@compiled
def _sample_one(settings, arrays, key, grid, x_init):
    return _run(settings, arrays, None, key, grid, x_init)


def _run(settings, arrays, condition, key, grid, x_init, noise=None, mean=None):
    solver, static, shape, path, zero_end = settings
    denoiser, schedule, given = combine(arrays, static)
    noise = given if noise is None else noise
    denoiser = denoiser if condition is None else _Conditioned(denoiser, condition)
    if key is not None:
        key, start = _start(key, schedule, grid, shape)
        x_init = start if x_init is None else x_init
    source = driver.noise_of(key, x_init, grid, noise)._replace(mean=mean)
    return driver.run(
        source,
        solver,
        driver.diffusion(schedule, denoiser),
        x_init,
        grid,
        path,
        zero_end,
    )


def _start(key, schedule, grid, shape):
    """(the solver's key, a start from the prior at grid[0])."""
    key, key_init = jax.random.split(key)
    return key, schedules.prior_std(schedule, grid[0]) * jax.random.normal(
        key_init, shape, float_dtype()
    )


@compiled
def _initial(settings, arrays, key, grid):
    static, shape = settings
    return _start(key, combine(arrays, static), grid, shape)


@compiled
def _sample_many(settings, arrays, key, grid, condition, x_init, noise):
    each, count, chunk, mesh = settings

    def one(arrays, grid, example):
        index, condition, start, noise = example
        return _run(
            each,
            arrays,
            condition,
            jax.random.fold_in(key, index),
            grid,
            start,
            noise,
            mean=lambda value: jax.lax.pmean(value, _EXAMPLES),
        )

    def many(arrays, grid, examples):
        batch = jax.vmap(functools.partial(one, arrays, grid), axis_name=_EXAMPLES)
        size = examples[0].shape[0]
        if chunk is None or chunk >= size:
            return batch(examples)
        pieces = jax.tree.map(lambda a: a.reshape(-1, chunk, *a.shape[1:]), examples)
        return jax.tree.map(
            lambda a: a.reshape(-1, *a.shape[2:]), jax.lax.map(batch, pieces)
        )

    devices = 1 if mesh is None else mesh.size
    share = math.ceil(count / devices)
    share = (
        share if chunk is None or chunk >= share else math.ceil(share / chunk) * chunk
    )
    padding = share * devices - count
    examples = jax.tree.map(
        lambda a: _pad(a, padding), (jnp.arange(count), condition, x_init, noise)
    )
    if mesh is not None:
        spread, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
        many = jax.shard_map(
            many,
            mesh=mesh,
            in_specs=(whole, whole, spread),
            out_specs=spread,
            check_vma=False,
        )
    return jax.tree.map(lambda a: a[:count], many(arrays, grid, examples))


def _pad(leaf, padding):
    """Repeat the last example `padding` times: the surplus is cut off after the run."""
    return (
        jnp.concatenate([leaf, jnp.repeat(leaf[-1:], padding, 0)]) if padding else leaf
    )


def _automatic(mesh):
    """The mesh with automatic axes: sharding is stated here, not inferred from explicit types."""
    return (
        None
        if mesh is None
        else Mesh(
            mesh.devices,
            mesh.axis_names,
            axis_types=(AxisType.Auto,) * mesh.devices.ndim,
        )
    )
