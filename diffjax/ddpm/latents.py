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
from .kernels import VARIANCES, check_chain, check_index


def interpolate(
    key: Key,
    denoiser: Denoiser,
    chain: DiscreteChain,
    start: ArrayLike,
    end: ArrayLike,
    weights: ArrayLike,
    index: int,
    variance: str = "posterior",
) -> Array:
    """Examples between two: their latents at an index interpolated and decoded by the chain; (len(weights), *x.shape).

    x̄ = (1 − w) x_i + w x_i′ with x_i ~ q(x_i | start), x_i′ ~ q(x_i | end), its noise divided by √((1 − w)² + w²) so
    that x̄ ~ N(√ᾱ_i x_w, 1 − ᾱ_i) as a latent of x_w = (1 − w) start + w end is; then x̄_0 ~ p(x_0 | x̄), ending with
    D. All weights share the noise, of both kinds, so that frames differ by w alone; a greater index keeps less of the
    two.

    weights: (K,). index: 1 … T. variance: a name of `VARIANCES`. Raises ValueError for shapes that differ and an index
    out of range. Ho et al. 2020, section 4.4, which does not divide.
    """
    checks.key("key", key)
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    if checks.is_traced(index):
        raise TypeError(
            "index must be concrete, it fixes the number of steps; got a traced value"
        )
    index = int(check_index(index, check_chain(chain)))
    checks.choice("variance", variance, VARIANCES)
    start, end, weights = requirements.check_between(start, end, weights)
    arrays, static = partition((as_pytree_callable(denoiser), chain))
    grid = np.append(chain.times[:index][::-1], 0.0).astype(start.dtype)
    return _decoded(static, variance, arrays, key, start, end, weights, grid)


@compiled(static_argnums=(0, 1))
def _decoded(static, variance, arrays, key, start, end, weights, grid):
    """The frames of `interpolate`, (K, *shape), on a grid from the latents' time to 0."""
    denoiser, chain = combine(arrays, static)
    key_noise, key_chain = jax.random.split(key)
    noises = [normal(key_noise, i, start.shape, start.dtype) for i in range(2)]
    problem, solver, t = (
        driver.diffusion(chain, denoiser),
        solvers.ddpm(variance),
        grid[0],
    )

    def one(w):
        noise = ((1 - w) * noises[0] + w * noises[1]) / jnp.hypot(1 - w, w)
        latent = chain.alpha(t) * ((1 - w) * start + w * end) + chain.sigma(t) * noise
        return driver.integrate(key_chain, solver, problem, x=latent, ts=grid)

    return jax.vmap(one)(weights)
