"""Laws of a latent fitted to encoded examples: each has log_prob(z) and sample(key), as a flow and a target have."""

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


def fitted_gaussian(zs: ArrayLike) -> targets.Mixture:
    """The Gaussian of largest likelihood: the mean and covariance (divided by N) of the latents zs, (N, d).

    Raises ValueError for other shapes, concrete NaN or infinity, and a covariance without full rank, as of N ≤ d.
    """
    zs = checks.real_array("zs", zs)
    if zs.ndim != 2 or zs.shape[0] <= zs.shape[1]:
        raise ValueError(f"zs must have shape (N, d) with N > d, got {zs.shape}")
    checks.finite("zs", zs)
    return targets.gaussian(*_moments(zs))


@jax.jit
def _moments(zs):
    """(mean, covariance) of zs (N, d)."""
    mean = jnp.mean(zs, 0)
    covariance = (zs - mean).T @ (zs - mean) / zs.shape[0]
    return mean, 0.5 * (covariance + covariance.T)


@pytree
class DiffusionPrior:
    """The law that a denoiser describes. See `diffusion`."""

    denoiser: Any
    schedule: Any
    grid: Any
    likelihood_grid: Any
    shape: tuple = static_field()
    solver: Any = static_field(default=None)

    def log_prob(self, z: ArrayLike) -> Array:
        """log p(z) in nats, shape (): `likelihood.log_prob` along the probability flow, by the exact divergence."""
        z = checks.real_array("z", z)
        checks.one_of_shapes("z", z, [self.shape])
        return likelihood.log_prob(
            self.denoiser, self.schedule, z, grid=self.likelihood_grid
        )

    def sample(self, key: Key) -> Array:
        """One draw, `sampling.sample`; a function of the key alone."""
        return sampling.sample(
            key,
            self.denoiser,
            self.schedule,
            solver=self.solver,
            grid=self.grid,
            shape=self.shape,
        )


def diffusion(
    denoiser: Denoiser,
    schedule: Schedule,
    shape: tuple[int, ...],
    solver: Solver | None = None,
    grid: ArrayLike | None = None,
    likelihood_grid: ArrayLike | None = None,
) -> DiffusionPrior:
    """A diffusion of the latents as a prior: a latent diffusion model once a decoder follows.

    denoiser: of latents of this shape, trained by `losses.batch_loss` on encoded examples. solver, grid: as in
    `sampling.sample`, with its defaults; likelihood_grid: as in `likelihood.log_prob`. The log density is that of the
    probability flow, which a stochastic solver's samples share only where the denoiser is exact. Scale the latents to
    about unit variance first, and the prior back by `flows.flow(prior, flows.affine(mean, std))`. Raises TypeError for
    what is no denoiser, schedule, shape or solver, ValueError for a grid that is not monotone inside the schedule's
    interval. Vahdat et al. 2021; Rombach et al. 2022.
    """
    checks.callable_("denoiser", denoiser, "denoiser(z, t)")
    shape = checks.shape("shape", shape)
    schedule = schedules.check(schedule)
    if solver is not None:
        check_solver(solver)
    if grid is not None:
        grid = grids.check("grid", grid, schedule, zero_end=True)
    if likelihood_grid is not None:
        likelihood_grid = grids.check("likelihood_grid", likelihood_grid, schedule)
    return DiffusionPrior(
        as_pytree_callable(denoiser),
        schedule,
        grid,
        likelihood_grid,
        shape=shape,
        solver=solver,
    )
