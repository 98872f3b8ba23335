"""Priors of a latent, fitted to encoded examples, with log_prob(z) and sample(key)."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import checks, grids, likelihood, sampling, schedules, targets
from ..schedules import Schedule
from ..solvers.base import Solver
from ..solvers.requirements import check_solver
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    as_pytree_callable,
    pytree,
    static_field,
)

__all__ = ["DiffusionPrior", "diffusion", "fitted_gaussian"]


def fitted_gaussian(zs: ArrayLike) -> targets.Mixture:
    """The Gaussian of largest likelihood for latents.

    It has their mean and their covariance, divided by N.

    Args:
      zs: The latents, (N, d) with N > d.

    Returns:
      A target over latents of shape (d,).

    Raises:
      ValueError: For other shapes, concrete NaN or infinity, and a covariance
        without full rank.

    Example:
      >>> prior = dj.vaes.priors.fitted_gaussian([[0.0], [2.0]])
      >>> prior.mean().tolist(), prior.variance().tolist()
      ([1.0], [1.0])
    """
    zs = checks.finite_array("zs", zs)
    full = zs.ndim == 2 and zs.shape[0] > zs.shape[1]
    checks.require(full, f"zs must have shape (N, d) with N > d, got {zs.shape}")
    return targets.gaussian(*_moments(zs))


@jax.jit
def _moments(zs):
    """(mean, covariance) of zs (N, d)."""
    mean = jnp.mean(zs, 0)
    covariance = (zs - mean).T @ (zs - mean) / zs.shape[0]
    # Symmetric to the last bit, which rounding of the product alone is not.
    return mean, 0.5 * (covariance + covariance.T)


@pytree
class DiffusionPrior:
    """The distribution that a denoiser describes. See `diffusion`."""

    denoiser: Any
    schedule: Any
    grid: Any
    likelihood_grid: Any
    shape: tuple = static_field()
    solver: Any = static_field(default=None)

    def log_prob(self, z: ArrayLike) -> Array:
        """log p(z) in nats, shape (), along the probability flow.

        By `likelihood.log_prob` with the exact divergence.
        """
        z = checks.real_array("z", z)
        checks.one_of_shapes("z", z, [self.shape])
        return likelihood.log_prob(
            self.denoiser, self.schedule, z, grid=self.likelihood_grid
        )

    def sample(self, key: Key) -> Array:
        """One draw by `sampling.sample`, a function of the key alone."""
        return sampling.sample(
            key,
            self.denoiser,
            self.schedule,
            solver=self.solver,
            grid=self.grid,
            shape=self.shape,
        )


@checks.arguments(
    denoiser=(checks.callable_, "denoiser(z, t)"),
    schedule=schedules.argument,
    shape=checks.shape,
    solver=checks.optional(check_solver),
)
def diffusion(
    denoiser: Denoiser,
    schedule: Schedule,
    shape: tuple[int, ...],
    *,
    solver: Solver | None = None,
    grid: ArrayLike | None = None,
    likelihood_grid: ArrayLike | None = None,
) -> DiffusionPrior:
    """Diffusion of the latents as a prior (Vahdat et al. 2021, Rombach et al. 2022).

    Followed by a decoder it is a latent diffusion model. The log density is
    that of the probability flow. A stochastic solver's samples share it only
    where the denoiser is exact. Scale the latents to about unit variance
    first, and the prior back by `flows.flow(prior, flows.affine(mean, std))`.

    Args:
      denoiser: (z, t) -> D of latents of this shape, trained by
        `losses.batch_loss` on encoded examples.
      schedule: A schedule.
      shape: The shape of a latent.
      solver: As in `sampling.sample`, with its default.
      grid: As in `sampling.sample`, with its default.
      likelihood_grid: As in `likelihood.log_prob`, with its default.

    Returns:
      A prior with log_prob(z) and sample(key).

    Raises:
      TypeError: For what is no denoiser, schedule, shape or solver.
      ValueError: For a grid that is not monotone inside the schedule's
        interval.

    Example:
      >>> grid = [1.0, 0.5, 0.1]
      >>> prior = dj.vaes.priors.diffusion(denoiser, schedule, (2,), grid=grid)
      >>> prior.sample(key).shape
      (2,)
    """
    grid = checks.optional(grids.check, schedule, True)("grid", grid)
    check = checks.optional(grids.check, schedule)
    likelihood_grid = check("likelihood_grid", likelihood_grid)
    return DiffusionPrior(
        as_pytree_callable(denoiser),
        schedule,
        grid,
        likelihood_grid,
        shape=shape,
        solver=solver,
    )
