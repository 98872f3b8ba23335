"""Glow (Kingma & Dhariwal 2018), a multiscale flow of images. A learned dequantiser."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from .. import checks
from ..distributions.normal import standard_normal
from ..numerics import float_dtype
from ..types import Key
from .bijectors import Bijector, full
from .checks import NETWORK
from .composition import Stack, chain, inverse, stack
from .conditioners import convolutional, dense
from .coupling import Coupling, coupling, half_mask, real_nvp
from .density import Flow, flow
from .elementwise import actnorm, affine, sigmoid
from .linear import invertible_convolution
from .scalar_maps import bounded_affine
from .shapes import multiscale, squeeze

__all__ = ["dequantiser", "glow"]


@checks.arguments(
    **NETWORK,
    shape=checks.shape,
    scales=(checks.depth, 1),
    steps=(checks.depth, 1),
    bound=checks.positive,
    network=(checks.callable_, "network(key, kept, outputs, *, width, condition_size)"),
)
def glow(
    key: Key,
    shape: tuple,
    *,
    scales: int = 2,
    steps: int = 8,
    width: int = 64,
    condition_size: int = 0,
    bound: float = 2.0,
    network: Callable = convolutional,
) -> Flow:
    """Glow, a multiscale flow of images (Kingma & Dhariwal 2018, figure 2).

    A rotation at first, so that its distribution is N(0, I) until it is
    trained.

    Towards the base each scale squeezes, (H, W, C) -> (H/2, W/2, 4C), and
    takes `steps` steps. A step is an actnorm, an invertible 1 × 1 convolution
    and an affine coupling of half of the channels.

    Then half of the channels leave as a latent. The distribution of a latent
    given the deeper ones is one more coupling, N(μ(h), σ(h)²). The deepest has
    a mean and a scale for each entry.

    Latents are a tuple, the deepest first, for `encode`, `decode` and
    `interpolate`. `initialise(glow, batch)` sets the actnorms. The 1 × 1
    convolutions are products towards the base, hence in `log_prob`, and solves
    towards the data. The steps of one scale are one scan.

    Args:
      key: Key of all weights.
      shape: (H, W, C), with H and W divisible by 2^scales.
      scales: Number of scales.
      steps: Steps per scale.
      width: Channels of the hidden layers of the couplings' networks.
      condition_size: Entries of the condition, which all couplings see, 0 for
        none.
      bound: Bound of a coupling's log scale, see `bounded_affine`.
      network: A function (key, kept, outputs, *, width, condition_size) ->
        conditioner, for example `convolutional` or `dense`.

    Returns:
      A flow whose base is the standard normal distribution of the tuple of
      latents.

    Raises:
      ValueError: If shape is not that of an image with such sides.
      TypeError: If network cannot be called.

    References:
      Kingma & Dhariwal 2018, figure 2. The conditional latents are in their
      published code only.

    Example:
      >>> flow = dj.flows.glow(key, (2, 2, 1), scales=1, steps=1, width=4)
    """
    checks.image("shape", shape, "2^scales", 2**scales)
    # The compiled program of a network that is a closure would be kept for
    # ever.
    shared = network in (convolutional, dense)
    build = _compiled_scales if shared else _bijectors_of_scales
    built = build(
        key, shape, scales, steps, width, condition_size, float(bound), network
    )
    condition = (
        jax.ShapeDtypeStruct((condition_size,), float_dtype())
        if condition_size
        else None
    )
    bijector = multiscale(shape, *reversed(built), condition=condition)
    return flow(standard_normal(bijector.latent_shapes), bijector)


def _bijectors_of_scales(
    key, shape, scales, steps, width, condition_size, bound, network
):
    """The bijectors of the scales, that of the data first."""
    height, columns, channels = shape
    scalar_map = bounded_affine(bound)

    def half(key: Key, squeezed: tuple, swap: bool) -> Coupling:
        mask = half_mask(squeezed[-1], swap)
        kept = (*squeezed[:2], len(mask.kept))
        outputs = (*squeezed[:2], len(mask.moved), scalar_map.count)
        conditioner = network(
            key, kept, outputs, width=width, condition_size=condition_size
        )
        return coupling(conditioner, scalar_map, mask)

    def step(key: Key, squeezed: tuple) -> Bijector:
        key_coupling, key_mixing = jax.random.split(key)
        mixing = inverse(invertible_convolution(key_mixing, squeezed[-1]))
        return chain(
            half(key_coupling, squeezed, swap=False), mixing, actnorm(squeezed[-1])
        )

    built = []
    for i, key_scale in enumerate(jax.random.split(key, scales)):
        squeezed = (height >> (i + 1), columns >> (i + 1), channels * 2 ** (i + 2))
        key_prior, *keys = jax.random.split(key_scale, steps + 1)
        # A network of the user's may not be one that runs under vmap.
        if network in (convolutional, dense):
            layers = Stack(
                jax.vmap(lambda key, squeezed=squeezed: step(key, squeezed))(
                    jnp.stack(keys)
                )
            )
        else:
            layers = stack([step(key, squeezed) for key in keys])
        deepest = i == scales - 1
        prior = (
            affine(jnp.zeros(squeezed), jnp.ones(squeezed))
            if deepest
            else half(key_prior, squeezed, swap=True)
        )
        built.append(chain(prior, layers, inverse(squeeze())))
    return built


_compiled_scales = jax.jit(_bijectors_of_scales, static_argnums=range(1, 8))


@checks.arguments(shape=checks.shape)
def dequantiser(key: Key, shape: tuple, *, layers: int = 4, width: int = 64) -> Flow:
    """Learned dequantisation noise q(v | x) (Ho et al. 2019, section 3.1).

    For `lattice_log_prob`. A RealNVP flow onto (0, 1)^D whose condition is the
    lattice point x. It is nearly uniform at first, because sigmoid(1.702 z) is
    within 0.01 of Φ(z).

    Args:
      key: Key of the conditioners' weights.
      shape: Shape of x and of v.
      layers: Number of coupling layers, see `real_nvp`.
      width: Units per hidden layer of the conditioners.

    Returns:
      A flow with condition_size = D.

    Example:
      >>> noise = dj.flows.dequantiser(key, (2, 2, 1), layers=2, width=4)
      >>> v = noise.sample(key, condition=jnp.zeros((2, 2, 1)))
    """
    size = math.prod(shape)
    body = real_nvp(key, shape, layers=layers, width=width, condition_size=size)
    return flow(
        body.base,
        chain(body.bijector, affine(full(shape), full(shape, 1.702)), sigmoid()),
    )
