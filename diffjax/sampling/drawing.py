"""Samples from a denoiser, one or many."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

from .. import checks, grids, schedules
from ..numerics import float_dtype
from ..schedules import Schedule
from ..solvers import driver, noise_source, requirements
from ..solvers.base import Solver
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    PyTree,
    as_pytree,
    as_pytree_callable,
    combine,
    compiled,
    partition,
    pytree,
)
from .preparation import DEFAULT, prepare, shape_and_start

__all__ = ["initial", "sample", "sample_many"]


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
    remat: bool = False,
) -> Any:
    """Draw one sample of the distribution that a denoiser describes.

    The start is drawn from N(0, σ(grid[0])²), and the solver integrates the
    probability flow or the reverse SDE down the grid. The result has the noise
    level σ(grid[-1]).

    Args:
      key: Typed key. The sample depends on it alone. It may be None where
        x_init and, for a stochastic solver, noise are given.
      denoiser: (x, t) -> E[x_0 | x_t = x], any callable. Arrays that it
        reaches may change between calls without a new compilation, see
        `types.as_pytree_callable`.
      schedule: A schedule.
      solver: Default `unipc(3)`.
      grid: Decreasing times (N + 1,). The default is `grids.recommended` for
        64 evaluations and at least 32 steps, or `grids.uniform` with 64 steps
        where α(t_max) = 0. It may start below t_max. It may end at exactly 0,
        where the last step returns D.
      shape: Shape of one example.
      x_init: A start at grid[0], taken unchanged, in place of a draw of this
        shape.
      path: True for the states at all N + 1 times, (N + 1, *shape).
      info: True for (result, Info).
      noise: The solver's noise in place of draws from the key, an array (N,
        draws, *shape) or another of the forms that `solvers.integrate` takes.
      remat: Whether a gradient through the sampler computes each step again,
        to save memory. See `solvers.integrate`.

    Returns:
      The sample, of the given shape. See `path` and `info`.

    Raises:
      ValueError: If neither shape nor x_init is given, for a bad grid or
        noise, or a missing key.
      TypeError: If the solver cannot take a denoiser.

    References:
      Song et al. 2021, section 3. Karras et al. 2022.

    Example:
      >>> x = dj.sample(key, denoiser, schedule, shape=(2,))
      >>> noise = jax.random.normal(key, (8, 1, 2))  # 8 steps with one draw each
      >>> settings = dict(solver=dj.solvers.ddim(1.0), grid=grid, noise=noise)
      >>> x = dj.sample(None, denoiser, schedule, x_init=jnp.ones(2), **settings)
    """
    shape, x_init = shape_and_start(shape, x_init)
    zero_end = grid is not None and requirements.may_end_at_zero(grid)
    solver, grid = prepare(solver, grid, denoiser, schedule, default=DEFAULT)
    noise = requirements.check_noise(noise, shape, grid)
    if key is not None or (solver.stochastic and noise is None) or x_init is None:
        checks.key("key", key)
    arrays, static = partition(
        (as_pytree_callable(denoiser), as_pytree(schedule), noise)
    )
    remat = requirements.check_remat(solver, remat)
    run = _SampleRun(solver, static, shape, bool(path), zero_end, remat)
    result, report = _sample_one(run, arrays, key, grid, x_init)
    driver.warn_if_exhausted(solver, report)
    return (result, report) if info else result


@checks.arguments(
    key=checks.key,
    count=(checks.integer, 1),
    chunk=checks.optional(checks.integer, 1),
    mesh=checks.optional(checks.instance, Mesh, "a jax.sharding.Mesh"),
)
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
    remat: bool = False,
) -> Any:
    """Draw many samples at once, over many devices if wanted.

    Example i is `sample(fold_in(key, i), …)`, whatever count, chunk and mesh
    are.

    With a mesh each device draws its share of the examples. Conditions, starts
    and noise are split in the same way. The denoiser's arrays, the schedule
    and the grid are copied to every device. Neither the samples nor their
    order depend on the mesh.

    The count need not be a multiple of the number of devices. If it is, the
    result stays sharded along its first axis. Otherwise each device has all of
    it.

    Args:
      key: Typed key.
      count: Number of samples.
      denoiser: As in `sample`. It is called as denoiser(x, t, condition_i)
        where a condition is given.
      schedule: As in `sample`.
      solver: As in `sample`.
      grid: As in `sample`.
      shape: Shape of one example.
      condition: Pytree of arrays with leading axis count.
      chunk: Number of examples at a time on each device, to bound memory. By
        default a device draws its whole share at once.
      mesh: A `jax.sharding.Mesh`. Examples are spread over all of its axes.
        The types of its axes do not matter. None for the default device.
      x_init: Starts (count, *shape) at grid[0] in place of draws.
      path: True for the states at all times, (count, N + 1, *shape).
      info: True for (result, Info), with leaves of shape (count,).
      noise: The solver's noise, (count, N, draws, *shape), in place of draws
        from the key. See `solvers.integrate`.
      remat: As in `sample`.

    Returns:
      The samples, (count, *shape). See `path` and `info`.

    Raises:
      ValueError: As `sample`, for a count or chunk below 1, a condition of
        another length, and for chunk or mesh with a solver whose steps depend
        on all examples.
      TypeError: As `sample`, and for a mesh of another type.

    Example:
      >>> dj.sample_many(key, 16, denoiser, schedule, shape=(2,)).shape
      (16, 2)
      >>> devices = np.array(jax.devices())
      >>> mesh = jax.sharding.Mesh(devices, ("devices",))
      >>> dj.sample_many(key, 16, denoiser, schedule, shape=(2,), mesh=mesh).shape
      (16, 2)
      >>> noise = jax.random.normal(key, (16, 8, 1, 2))  # 8 steps with one draw each
      >>> settings = dict(solver=dj.solvers.ddim(1.0), grid=grid, noise=noise)
      >>> dj.sample_many(key, 16, denoiser, schedule, shape=(2,), **settings).shape
      (16, 2)
    """
    checks.leading_axis("condition", condition, "count", count)
    shape, x_init = shape_and_start(shape, x_init, (count,))
    zero_end = grid is not None and requirements.may_end_at_zero(grid)
    solver, grid = prepare(solver, grid, denoiser, schedule, default=DEFAULT)
    checks.require(
        not solver.traits.across_examples or (chunk is None and mesh is None),
        f"chunk and mesh must be None for {solver.name}, which averages over the batch",
    )
    if noise is not None:
        noise = requirements.check_draws(noise, shape, grid, batch=(count,))
    arrays, static = partition(
        (as_pytree_callable(denoiser), as_pytree(schedule), None)
    )
    remat = requirements.check_remat(solver, remat)
    run = _SampleRun(solver, static, shape, bool(path), zero_end, remat)
    batch = _Batch(run, count, chunk, _automatic(mesh))
    result, report = _sample_many(batch, arrays, key, grid, condition, x_init, noise)
    driver.warn_if_exhausted(solver, report)
    return (result, report) if info else result


@checks.arguments(key=checks.key, schedule=schedules.argument, shape=checks.shape)
def initial(
    key: Key, schedule: Schedule, grid: ArrayLike, shape: tuple[int, ...]
) -> tuple[Key, Array]:
    """The solver's key and the start that `sample` derives from its key.

        x ~ N(0, σ(grid[0])²)

    With these, `solvers.start` and `solvers.advance` take the steps of
    `sample` in as many parts as is wanted.

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
      >>> problem = dj.solvers.diffusion(schedule, denoiser)
      >>> run = dj.solvers.start(dj.solvers.unipc(3), problem, x=x, ts=grid)
    """
    grid = grids.decreasing("grid", grid, schedule, zero_end=True)
    arrays, static = partition(as_pytree(schedule))
    return _initial(static, shape, arrays, key, grid)


@pytree
class _ConditionedDenoiser:
    denoiser: Any
    condition: Any

    def __call__(self, x, t, *end):
        return self.denoiser(x, t, *end, self.condition)


class _SampleRun(NamedTuple):
    """Settings of one example's run, fixed at compilation."""

    solver: Solver
    static: Any  # of the denoiser, the schedule and the noise
    shape: tuple[int, ...]
    path: bool
    zero_end: bool
    remat: bool


class _Batch(NamedTuple):
    """Settings of a run of many examples, fixed at compilation."""

    run: _SampleRun
    count: int
    chunk: int | None
    mesh: Mesh | None


@compiled
def _sample_one(run, arrays, key, grid, x_init):
    return _solve(run, arrays, None, key, grid, x_init)


def _solve(run, arrays, condition, key, grid, x_init, noise=None, mean=None):
    denoiser, schedule, stated = combine(arrays, run.static)
    noise = stated if noise is None else noise
    denoiser = (
        denoiser if condition is None else _ConditionedDenoiser(denoiser, condition)
    )
    if key is not None:
        key, start = _start(key, schedule, grid, run.shape)
        x_init = start if x_init is None else x_init
    return driver.run(
        noise_source.source_of(key, x_init, grid, noise)._replace(mean=mean),
        run.solver,
        driver.diffusion(schedule, denoiser),
        x=x_init,
        ts=grid,
        path=run.path,
        zero_end=run.zero_end,
        remat=run.remat,
    )


def _start(key, schedule, grid, shape):
    """(the solver's key, a start from the prior at grid[0])."""
    key, key_init = jax.random.split(key)
    return key, schedules.prior_std(schedule, grid[0]) * jax.random.normal(
        key_init, shape, float_dtype()
    )


@compiled(static_argnums=(0, 1))
def _initial(static, shape, arrays, key, grid):
    return _start(key, combine(arrays, static), grid, shape)


_EXAMPLES = "examples"
"""The name of the axis over which `sample_many` maps."""


@compiled
def _sample_many(settings, arrays, key, grid, condition, x_init, noise):
    count, mesh = settings.count, settings.mesh
    devices = 1 if mesh is None else mesh.size
    share = math.ceil(count / devices)
    chunk = share if settings.chunk is None else min(settings.chunk, share)
    share = math.ceil(share / chunk) * chunk
    padding = share * devices - count
    examples = jax.tree.map(
        lambda a: _pad(a, padding), (jnp.arange(count), condition, x_init, noise)
    )
    many = functools.partial(_many, settings.run, chunk, key)
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


def _many(run, chunk, key, arrays, grid, examples):
    """One device's share of the examples, `chunk` of them at a time."""

    def one(example):
        index, condition, start, noise = example
        key_i = jax.random.fold_in(key, index)
        mean = lambda value: jax.lax.pmean(value, _EXAMPLES)
        return _solve(run, arrays, condition, key_i, grid, start, noise, mean)

    batch = jax.vmap(one, axis_name=_EXAMPLES)
    if chunk == examples[0].shape[0]:
        return batch(examples)
    # (share, …) -> (share/chunk, chunk, …) and back
    pieces = jax.tree.map(lambda a: a.reshape(-1, chunk, *a.shape[1:]), examples)
    results = jax.lax.map(batch, pieces)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), results)


def _pad(leaf, padding):
    """Repeat the last example `padding` times. The surplus is cut off after the run."""
    if not padding:
        return leaf
    return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], padding, 0)])


def _automatic(mesh):
    """The mesh with automatic axes, for sharding is stated here and not inferred."""
    if mesh is None:
        return None
    types = (AxisType.Auto,) * mesh.devices.ndim
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)
