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
from .solvers.driver import BATCH
from .solvers.ode import heun
from .types import Array, ArrayLike, Denoiser, Key, PyTree, as_pytree_callable, combine, compiled, partition, pytree

DEFAULT = (heun(), grids.karras, 32)


def sample(
    key: Key,
    denoiser: Denoiser,
    schedule: Schedule,
    solver: Solver | None = None,
    grid: ArrayLike | None = None,
    shape: tuple[int, ...] | None = None,
    x_init: ArrayLike | None = None,
    path: bool = False,
    info: bool = False,
) -> Any:
    """One sample of the law that `denoiser` describes, of the given shape, at noise σ(grid[-1]).

    key: typed key; the sample depends on it alone. denoiser: (x, t) -> E[x_0 | x_t = x]. solver: default `heun()`.
    grid: decreasing times (N + 1,), default 32 steps of `grids.karras` (of `grids.uniform` where α(t_max) = 0); it may
    end at exactly 0, where the last step returns D. shape: of one example; the start is then N(0, prior_std²). x_init:
    a start at grid[0] instead of a shape, taken as it is. path=True returns the states at all N + 1 times, (N + 1,
    *shape). info=True returns (result, Info).

    Raises ValueError for a missing shape, a bad grid, a stochastic solver without key; TypeError for a solver that
    cannot take a denoiser. Song et al. 2021, section 3; Karras et al. 2022.
    """
    if x_init is None and shape is None:
        raise ValueError("shape must be given, the shape of one example, unless x_init is")
    if x_init is not None:
        x_init = driver.check_example("x_init", x_init)
        if shape is not None:
            checks.one_of_shapes("x_init", x_init, [checks.shape("shape", shape)])
    shape = checks.shape("shape", shape) if x_init is None else x_init.shape
    zero_end = grid is not None and driver.may_end_at_zero(grid)
    solver, grid = prepare(solver, grid, denoiser, schedule, DEFAULT)
    if key is not None or solver.stochastic or x_init is None:
        checks.key("key", key)
    arrays, static = partition((as_pytree_callable(denoiser), schedule))
    settings = (solver, static, shape, bool(path), zero_end)
    result, report = _sample_one(settings, arrays, key, grid, x_init)
    driver.warn_if_exhausted(solver, report)
    return (result, report) if info else result


def sample_many(
    key: Key,
    count: int,
    denoiser: Denoiser,
    schedule: Schedule,
    solver: Solver | None = None,
    grid: ArrayLike | None = None,
    shape: tuple[int, ...] | None = None,
    condition: PyTree = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    x_init: ArrayLike | None = None,
    path: bool = False,
    info: bool = False,
) -> Any:
    """`count` samples, (count, *shape): example i is `sample(fold_in(key, i), …)` whatever count, chunk and mesh are.

    solver, grid, shape, path (then (count, N + 1, *shape)), info (leaves (count,) where the work depends on the data)
    as in `sample`. condition: pytree of arrays with leading axis count; example i is sampled with denoiser(x, t,
    condition_i). chunk: examples at a time, to bound memory; default all (all of a device's share). mesh: a device mesh
    over all of whose axes examples are sharded; its axis types do not matter. x_init: starts (count, *shape) in place
    of prior draws.

    Raises ValueError and TypeError as `sample`, and for a count or chunk below 1 or a condition of another length.
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
            checks.one_of_shapes("x_init", x_init, [(count, *checks.shape("shape", shape))])
        shape = x_init.shape[1:]
    elif shape is None:
        raise ValueError("shape must be given, the shape of one example, unless x_init is")
    zero_end = grid is not None and driver.may_end_at_zero(grid)
    solver, grid = prepare(solver, grid, denoiser, schedule, DEFAULT)
    arrays, static = partition((as_pytree_callable(denoiser), schedule))
    settings = ((solver, static, checks.shape("shape", shape), bool(path), zero_end), count, chunk, _automatic(mesh))
    result, report = _sample_many(settings, arrays, key, grid, condition, x_init)
    driver.warn_if_exhausted(solver, report)
    return (result, report) if info else result


def encode(
    denoiser: Denoiser,
    schedule: Schedule,
    x: ArrayLike,
    solver: Solver | None = None,
    grid: ArrayLike | None = None,
    path: bool = False,
) -> Array:
    """x_T from x_0 by the probability flow upwards, shape of x; `sample(x_init=…)` on the same grid inverts it.

    x: one example at grid[-1]. grid: a decreasing grid, walked backwards; it may not end at 0, where the flow has no
    start. solver, default `heun()`: a deterministic one; with `ddim()` this is DDIM inversion. Raises ValueError and
    TypeError as `sample`. Song et al. 2021, D.4.
    """
    solver, grid = prepare(solver, grid, denoiser, schedule, DEFAULT, flow=True)
    problem = driver.diffusion(schedule, denoiser)
    driver.check_grid("grid", solver, problem, grid[::-1])
    x = driver.check_example("x", x)
    return driver.integrate(None, solver, problem, x, grid[::-1], path=path)


def interpolate(
    denoiser: Denoiser,
    schedule: Schedule,
    start: ArrayLike,
    end: ArrayLike,
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
    driver.check_grid("grid", solver, problem, grid[::-1])
    latents = [driver.integrate(None, solver, problem, x, grid[::-1]) for x in (start, end)]
    between = jax.vmap(lambda w: spherical(*latents, w))(weights)
    return jax.vmap(lambda z: driver.integrate(None, solver, problem, z, grid))(between)


def spherical(start: Array, end: Array, weight: ArrayLike) -> Array:
    """(sin((1 − w)θ) a + sin(wθ) b)/sin θ, θ the angle between a and b; shape of a.

    Straight where θ is small. Shoemake 1985.
    """
    norms = jnp.sqrt(jnp.sum(start**2) * jnp.sum(end**2))
    cosine = jnp.sum(start * end) / jnp.where(norms > 0, norms, 1)
    angle = jnp.arccos(jnp.clip(cosine, -1 + 1e-6, 1 - 1e-6))
    return (jnp.sin((1 - weight) * angle) * start + jnp.sin(weight * angle) * end) / jnp.sin(angle)


def prepare(
    solver: Solver | None,
    grid: ArrayLike | None,
    denoiser: Denoiser,
    schedule: Schedule,
    default: tuple[Solver, Callable[[Schedule, int], Array], int],
    flow: bool = False,
) -> tuple[Solver, Array]:
    """(solver, grid) checked, with defaults (solver, family of grids, steps) filled in.

    The default grid is `grids.uniform` where α(t_max) = 0 and the log-SNR has no end. flow: whether the probability
    flow is to be followed, upwards too, so that the solver must be deterministic and the grid may not end at 0.
    """
    schedules.check(schedule)
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    solver, (_, family, steps) = default[0] if solver is None else solver, default
    driver.check_solver(solver)
    driver.check_coupling(solver, denoiser)
    if flow and solver.stochastic:
        raise TypeError(f"solver must be deterministic to follow the flow, {solver.name} draws noise")
    if grid is None:
        finite = checks.is_traced(schedule) or schedules.is_finite(schedule)
        grid = (family if finite else grids.uniform)(schedule, steps)
        if checks.is_traced(schedule):
            bounded = jnp.isfinite(schedules.log_snr(schedule, schedule.t_max))
            grid = jnp.where(bounded, grid, grids.uniform(schedule, steps))
    grid = grids.check("grid", grid, schedule, zero_end=not flow)
    if not checks.is_traced(grid):
        start, end = np.asarray(grid)[[0, -1]]
        if start < end:
            raise ValueError(f"grid must decrease, got {start} … {end}")
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


def _run(settings, arrays, condition, key, grid, x_init):
    solver, static, shape, path, zero_end = settings
    denoiser, schedule = combine(arrays, static)
    denoiser = denoiser if condition is None else _Conditioned(denoiser, condition)
    if key is not None:
        key, key_init = jax.random.split(key)
    if x_init is None:
        x_init = schedules.prior_std(schedule) * jax.random.normal(key_init, shape, float_dtype())
    return driver.run(
        driver.noise_of(key, x_init, grid), solver, driver.diffusion(schedule, denoiser), x_init, grid, path, zero_end
    )


@compiled
def _sample_many(settings, arrays, key, grid, condition, x_init):
    each, count, chunk, mesh = settings

    def one(arrays, grid, example):
        index, condition, start = example
        return _run(each, arrays, condition, jax.random.fold_in(key, index), grid, start)

    def many(arrays, grid, examples):
        batch = jax.vmap(functools.partial(one, arrays, grid), axis_name=BATCH)
        size = examples[0].shape[0]
        if chunk is None or chunk >= size:
            return batch(examples)
        pieces = jax.tree.map(lambda a: a.reshape(-1, chunk, *a.shape[1:]), examples)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), jax.lax.map(batch, pieces))

    devices = 1 if mesh is None else mesh.size
    share = math.ceil(count / devices)
    share = share if chunk is None or chunk >= share else math.ceil(share / chunk) * chunk
    padding = share * devices - count
    examples = jax.tree.map(lambda a: _pad(a, padding), (jnp.arange(count), condition, x_init))
    if mesh is not None:
        spread, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
        many = jax.shard_map(many, mesh=mesh, in_specs=(whole, whole, spread), out_specs=spread, check_vma=False)
    return jax.tree.map(lambda a: a[:count], many(arrays, grid, examples))


def _pad(leaf, padding):
    """Repeat the last example `padding` times: the surplus is cut off after the run."""
    return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], padding, 0)]) if padding else leaf


def _automatic(mesh):
    """The mesh with automatic axes: sharding is stated here, not inferred from explicit types."""
    return (
        None if mesh is None else Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    )
