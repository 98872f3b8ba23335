"""Interpolation between two examples in the chain's latents."""

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, solvers
from ..noise import normal
from ..schedules import DiscreteChain
from ..solvers import driver, requirements
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    as_pytree_callable,
    combine,
    compiled,
    partition,
)
from .reverse import VARIANCES
from .transitions import CHAIN

__all__ = ["interpolate"]


@checks.arguments(
    key=checks.key,
    denoiser=checks.denoiser,
    chain=CHAIN,
    variance=(checks.choice, VARIANCES),
)
def interpolate(
    key: Key,
    denoiser: Denoiser,
    chain: DiscreteChain,
    *,
    start: ArrayLike,
    end: ArrayLike,
    weights: ArrayLike,
    index: int,
    variance: str = "posterior",
) -> Array:
    """Interpolation in the latents of the chain (Ho et al. 2020, section 4.4).

        x̄ = (1 − w) x_i + w x_i′,    x_i ~ q(x_i | start), x_i′ ~ q(x_i | end)

    The latents at an index are interpolated and decoded by the chain, x̄_0 ~
    p(x_0 | x̄), ending with D. All weights share the noise of both kinds, so
    that frames differ by w alone. A greater index keeps less of the two
    examples.

    Args:
      key: A typed key.
      denoiser: (x, t) -> D, or a pair, see `paired`.
      chain: A chain made by `schedules.from_betas`.
      start: The example at w = 0.
      end: The example at w = 1, of the same shape.
      weights: (K,), w.
      index: i in 1 … T. Must be concrete, as it fixes the number of steps.
      variance: A name of `VARIANCES`.

    Returns:
      (K, *start.shape).

    Raises:
      ValueError: For shapes that differ, or an index out of range.
      TypeError: For a traced index, or another schedule.

    References:
      The noise of x̄ is divided by √((1 − w)² + w²), unlike in the paper, so
      that x̄ ~ N(√ᾱ_i x_w, 1 − ᾱ_i) as a latent of x_w = (1 − w) start + w end
      is.

    Example:
      >>> chain = dj.schedules.from_betas(dj.ddpm.linear_betas(8))
      >>> ends = {"start": jnp.zeros(2), "end": jnp.ones(2)}
      >>> frames = dj.ddpm.interpolate(
      ...     key, lambda x, t: x, chain, **ends, weights=[0.0, 0.5, 1.0], index=4
      ... )
      >>> frames.shape
      (3, 2)
    """
    traced = checks.is_traced(index)
    checks.require(not traced, "index must be concrete, got a traced one", TypeError)
    index = int(checks.index("index", index, chain.steps))
    start, end, weights = requirements.check_between(start, end, weights)
    arrays, static = partition((as_pytree_callable(denoiser), chain))
    # The times of indices i … 1, then 0, where the last step returns D
    grid = np.append(chain.times[:index][::-1], 0.0).astype(start.dtype)
    return _decoded(static, variance, arrays, key, start, end, weights, grid)


@compiled(static_argnums=(0, 1))
def _decoded(static, variance, arrays, key, start, end, weights, grid):
    denoiser, chain = combine(arrays, static)
    key_noise, key_chain = jax.random.split(key)
    noises = [normal(key_noise, i, start.shape, start.dtype) for i in range(2)]
    problem, solver, t = (
        driver.diffusion(chain, denoiser),
        solvers.ddpm(variance),
        grid[0],
    )

    # The noises are shared by all weights, so that frames differ by w alone.
    def one(w):
        # Divided by its standard deviation, as the mean of two noises has less than 1
        noise = ((1 - w) * noises[0] + w * noises[1]) / jnp.hypot(1 - w, w)
        latent = chain.alpha(t) * ((1 - w) * start + w * end) + chain.sigma(t) * noise
        return driver.integrate(key_chain, solver, problem, x=latent, ts=grid)

    return jax.vmap(one)(weights)
