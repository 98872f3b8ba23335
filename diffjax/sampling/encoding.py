"""Latents of examples, and interpolation between two of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..schedules import Schedule
from ..solvers import driver, noise_source, requirements
from ..solvers.base import Solver
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    combine,
    compiled,
    one_program,
    partition,
)
from .preparation import DEFAULT, prepare

__all__ = ["encode", "interpolate", "reverse", "spherical"]


@checks.arguments(x=requirements.check_example)
def encode(
    denoiser: Denoiser,
    schedule: Schedule,
    x: ArrayLike,
    *,
    solver: Solver | None = None,
    grid: ArrayLike | None = None,
    path: bool = False,
) -> Array:
    """Encode an example as a latent at grid[0] (Song et al. 2021, appendix D.4).

    Integrates the probability flow upwards. `sample(x_init=…)` on the same
    grid inverts it. With `ddim()` this is DDIM inversion.

    Args:
      denoiser: As in `sample`.
      schedule: A schedule.
      x: One example at grid[-1].
      solver: A deterministic solver, default `unipc(3)`.
      grid: Decreasing times (N + 1,), walked backwards. It may not end at 0,
        where the probability flow has no start. Default as in `sample`.
      path: True for the states at all times, from grid[-1] upwards.

    Returns:
      The latent, shape of x.

    Raises:
      ValueError: If the grid is not one or ends at 0, or x is not finite.
      TypeError: If the solver draws noise.

    Example:
      >>> z = dj.encode(denoiser, schedule, [1.0, 0.5], grid=grid)
      >>> x = dj.sample(None, denoiser, schedule, x_init=z, grid=grid)
    """
    solver, grid, problem = _both_ways(solver, grid, denoiser, schedule)
    return driver.integrate(None, solver, problem, x=x, ts=reverse(grid), path=path)


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
    """Interpolate two examples through their latents (DDIM, equation 67).

        z = (sin((1 − w) θ) z_a + sin(w θ) z_b)/sin θ,    θ the angle between z_a, z_b

    Both examples are encoded, their latents interpolated spherically, and the
    results decoded.

    Args:
      denoiser: As in `sample`.
      schedule: A schedule.
      start: One example at grid[-1].
      end: Another of its shape.
      weights: w, (K,). 0 gives `start` and 1 gives `end`, up to the solver's
        error.
      solver: As in `encode`.
      grid: As in `encode`.

    Returns:
      The examples between, (K, *shape).

    Raises:
      ValueError: If the shapes differ, and as `encode`.
      TypeError: As `encode`.

    References:
      Song, Meng & Ermon 2021 (DDIM).

    Example:
      >>> ends = [1.0, 0.5], [-1.0, 0.0]
      >>> xs = dj.interpolate(denoiser, schedule, *ends, weights=[0.2, 0.5], grid=grid)
      >>> xs.shape
      (2, 2)
    """
    start, end, weights = requirements.check_between(start, end, weights)
    solver, grid, problem = _both_ways(solver, grid, denoiser, schedule)
    arrays, static = partition(problem)
    between, report = _interpolate(solver, static, arrays, start, end, weights, grid)
    driver.warn_if_exhausted(solver, report)
    return between


def _both_ways(solver, grid, denoiser, schedule):
    """(solver, grid, problem) of a probability flow to be walked upwards too."""
    solver, grid = prepare(
        solver, grid, denoiser, schedule, default=DEFAULT, probability_flow=True
    )
    problem = driver.diffusion(schedule, denoiser)
    requirements.check_grid("grid", solver, problem, reverse(grid))
    return solver, grid, problem


@compiled(static_argnums=(0, 1))
def _interpolate(solver, static, arrays, start, end, weights, grid):
    problem = combine(arrays, static)

    def follow(ts, x):
        return driver.run(
            noise_source.source_of(None, x, ts),
            solver,
            problem,
            x=x,
            ts=ts,
            zero_end=False,
        )

    encode = jax.vmap(functools.partial(follow, grid[::-1]))
    decode = jax.vmap(functools.partial(follow, grid))
    latents, _ = encode(jnp.stack([start, end]))  # (2, *shape)
    between = jax.vmap(functools.partial(spherical, *latents))(weights)  # (K, *shape)
    return decode(between)


def reverse(grid: ArrayLike) -> ArrayLike:
    """A grid upwards. A concrete one is reversed on the host, without a program."""
    return grid[::-1] if checks.is_traced(grid) else np.asarray(grid)[::-1]


@one_program
def spherical(start: Array, end: Array, weight: ArrayLike) -> Array:
    """Spherical interpolation (Shoemake 1985).

        (sin((1 − w) θ) a + sin(w θ) b)/sin θ,    θ the angle between a and b

    Where θ is small it is linear.

    Args:
      start: a.
      end: b, of its shape.
      weight: w, ().

    Returns:
      A point between, of a's shape.
    """
    norms = jnp.sqrt(jnp.sum(start**2) * jnp.sum(end**2))
    cosine = jnp.sum(start * end) / jnp.where(norms > 0, norms, 1)
    # Away from ±1, where sin θ = 0 and arccos has no derivative.
    angle = jnp.arccos(jnp.clip(cosine, -1 + 1e-6, 1 - 1e-6))
    parts = jnp.sin((1 - weight) * angle) * start + jnp.sin(weight * angle) * end
    return parts / jnp.sin(angle)
