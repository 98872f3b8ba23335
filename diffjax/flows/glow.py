"""Glow: a multiscale flow of images, the convolutional conditioner of its couplings, and a learned dequantiser."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks
from ..numerics import float_dtype
from ..types import Array, Key, pytree, static_field
from .bijectors import Bijector, actnorm, affine, full, sigmoid
from .composition import Stack, chain, inverse, stack
from .coupling import (
    Coupling,
    coupling,
    half_mask,
    normal_weights,
    perceptron,
    real_nvp,
)
from .density import Flow, flow, standard_normal
from .linear import invertible_convolution
from .scalar_maps import bounded_affine
from .shapes import multiscale, squeeze

# --------------------------------------------------------------------------------------------------------- conditioners


@pytree
class Convolutional:
    """(image, condition) -> parameters of each position, a network of three convolutions. See `convolutional`."""

    first: Array  # (3, 3, C, width)
    position: Array  # (H, W, width)
    embedding: Array  # (condition_size, width)
    second: Array  # (width, width)
    second_bias: Array  # (width,)
    last: Array  # (3, 3, width, ∏ of what comes after H, W in outputs)
    last_bias: Array  # (H, W, the same)
    outputs: tuple = static_field()

    def __call__(self, x: Array, condition: Any = None) -> Array:
        """3 × 3 ∘ SiLU ∘ 1 × 1 ∘ SiLU ∘ 3 × 3 of the image, of shape `outputs`."""
        expected, found = (
            self.embedding.shape[0],
            0 if condition is None else jnp.size(condition),
        )
        if found != expected:
            raise ValueError(
                f"condition must have condition_size={expected} entries, got {found}"
            )
        checks.one_of_shapes("x", x, [(*self.position.shape[:2], self.first.shape[2])])
        h = convolution(x, self.first) + self.position  # (H, W, width)
        if condition is not None:
            h = h + jnp.ravel(condition).astype(h.dtype) @ self.embedding
        h = jax.nn.silu(jax.nn.silu(h) @ self.second + self.second_bias)
        return (convolution(h, self.last) + self.last_bias).reshape(self.outputs)


def convolution(h: Array, kernel: Array) -> Array:
    """y_{ij} = Σ_{kl} h_{i+k−1, j+l−1} W_{kl}, 0 beyond the edge: (H, W, C) by (3, 3, C, F) -> (H, W, F).

    As one matrix product over all positions, on small images and CPUs a fraction of the time of a convolution primitive
    under vmap: of the nine shifts side by side where C is small, or else of h alone, whose nine products are shifted
    and added.
    """
    height, width, channels = h.shape
    features = kernel.shape[-1]

    def shifts(values):
        padded = jnp.pad(values, ((1, 1), (1, 1), *[(0, 0)] * (values.ndim - 2)))
        return [
            padded[i : i + height, j : j + width] for i in range(3) for j in range(3)
        ]

    if channels <= features:
        return jnp.concatenate(shifts(h), -1) @ kernel.reshape(9 * channels, features)
    products = h @ kernel.reshape(9, channels, features).transpose(1, 0, 2).reshape(
        channels, 9 * features
    )
    each = shifts(products.reshape(height, width, 9, features))  # nine of (H, W, 9, F)
    return sum((part[..., k, :] for k, part in enumerate(each)), jnp.zeros((), h.dtype))


def convolutional(
    key: Key, kept: tuple, outputs: tuple, width: int = 64, condition_size: int = 0
) -> Convolutional:
    """A conditioner of images: convolutions 3 × 3, 1 × 1, 3 × 3 with SiLU between; its output is 0 at first.

    The first and last biases are one a position, so that the network knows where it is (the rim of a digit is not its
    centre); a condition is added, by a linear map, to every position. kept: (H, W, C), shape of what stays. outputs:
    (H, W, …), shape of its result. condition_size: entries of the condition, 0 for none. Hidden weights are N(0,
    1/fan-in). Raises ValueError unless both are images of the same sides. Kingma & Dhariwal 2018, section 3.3.
    """
    checks.key("key", key)
    kept, outputs = checks.shape("kept", kept), checks.shape("outputs", outputs)
    width, condition_size = (
        checks.width("width", width, 1),
        checks.width("condition_size", condition_size, 0),
    )
    if len(kept) != 3:
        raise ValueError(f"kept must be the shape (H, W, C) of an image, got {kept}")
    if outputs[:2] != kept[:2]:
        raise ValueError(
            f"outputs must begin with the sides {kept[:2]} of kept, got {outputs}"
        )
    return _convolutional(key, kept, outputs, width, condition_size)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _convolutional(key, kept, outputs, width, condition_size):
    sides, channels = kept[:2], kept[2]
    count, dtype = math.prod(outputs[2:]), float_dtype()
    first, embedding, second = normal_weights(
        key, [(3, 3, channels, width), (condition_size, width), (width, width)]
    )
    return Convolutional(
        first=first,
        position=jnp.zeros((*sides, width), dtype),
        embedding=embedding,
        second=second,
        second_bias=jnp.zeros((width,), dtype),
        last=jnp.zeros((3, 3, width, count), dtype),
        last_bias=jnp.zeros((*sides, count), dtype),
        outputs=outputs,
    )


def dense(
    key: Key, kept: tuple, outputs: tuple, width: int = 64, condition_size: int = 0
) -> Any:
    """`perceptron` of two hidden layers with the arguments of `convolutional`: it sees the whole of what stays at once.

    For images of a few pixels: less time a step, and weights of its own for each pixel.
    """
    return perceptron(
        key, math.prod(checks.shape("kept", kept)), outputs, width, 2, condition_size
    )


# ----------------------------------------------------------------------------------------------------------------- flow


def glow(
    key: Key,
    shape: tuple,
    levels: int = 2,
    steps: int = 8,
    width: int = 64,
    condition_size: int = 0,
    bound: float = 2.0,
    network: Callable = convolutional,
) -> Flow:
    """Glow, a multiscale flow of images; a rotation at first, so that its law is N(0, I) until trained.

    Towards the base each level squeezes, (H, W, C) -> (H/2, W/2, 4C), and takes `steps` steps, each an actnorm, an
    invertible 1 × 1 convolution and an affine coupling of half of the channels; then half of the channels leave as a
    latent. A latent's law given the deeper ones is one more coupling, N(μ(h), σ(h)²); the deepest has a mean and scale
    for each entry. Latents are a tuple, the deepest first: `encode`, `decode`, `interpolate`. `initialise(glow, batch)`
    sets the actnorms. Towards the base, hence in `log_prob`, the convolutions are products, and towards the data
    solves; equal steps are one scan.

    shape: (H, W, C), H and W divisible by 2^levels. width: of the couplings' networks. condition_size: entries of the
    condition, which all couplings see, 0 for none. bound: of a coupling's log scale, see `bounded_affine`. network:
    (key, kept, outputs, width, condition_size) -> conditioner, as `convolutional` and `dense`. Raises ValueError for
    another shape. Kingma & Dhariwal 2018, figure 2; the conditional latents are of their published code.
    """
    checks.key("key", key)
    shape, levels = checks.shape("shape", shape), checks.depth("levels", levels, 1)
    steps = checks.depth("steps", steps, 1)
    checks.callable_(
        "network", network, "network(key, kept, outputs, width, condition_size)"
    )
    if len(shape) != 3:
        raise ValueError(f"shape must be (H, W, C), got {shape}")
    height, columns, channels = shape
    if height % 2**levels or columns % 2**levels:
        raise ValueError(
            f"shape must have sides divisible by 2^levels={2**levels}, got {shape}"
        )
    sizes = (
        checks.width("width", width, 1),
        checks.width("condition_size", condition_size, 0),
    )
    shared = network in (
        convolutional,
        dense,
    )  # a closure's compiled program would be kept for ever
    build = _levels if shared else _levels.__wrapped__
    built = build(
        key,
        shape,
        levels,
        steps,
        *sizes,
        float(checks.positive("bound", bound)),
        network,
    )
    condition = (
        jax.ShapeDtypeStruct((condition_size,), float_dtype())
        if condition_size
        else None
    )
    bijector = multiscale(shape, *reversed(built), condition=condition)
    return flow(standard_normal(bijector.latent_shapes), bijector)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6, 7))
def _levels(key, shape, levels, steps, width, condition_size, bound, network):
    """The bijectors of the levels, the data's first."""
    height, columns, channels = shape
    scalar_map = bounded_affine(bound)

    def half(key: Key, squeezed: tuple, swap: bool) -> Coupling:
        mask = half_mask(squeezed[-1], swap)
        kept, outputs = (
            (*squeezed[:2], len(mask.kept)),
            (*squeezed[:2], len(mask.moved), scalar_map.count),
        )
        return coupling(
            network(key, kept, outputs, width, condition_size), scalar_map, mask
        )

    def step(key: Key, squeezed: tuple) -> Bijector:
        key_coupling, key_mixing = jax.random.split(key)
        mixing = inverse(invertible_convolution(key_mixing, squeezed[-1]))
        return chain(
            half(key_coupling, squeezed, swap=False), mixing, actnorm(squeezed[-1])
        )

    built = []
    for i, key_level in enumerate(jax.random.split(key, levels)):
        squeezed = (height >> (i + 1), columns >> (i + 1), channels * 2 ** (i + 2))
        key_prior, *keys = jax.random.split(key_level, steps + 1)
        if network in (
            convolutional,
            dense,
        ):  # a network of the user's may not be one under vmap
            layers = Stack(
                jax.vmap(lambda key, squeezed=squeezed: step(key, squeezed))(
                    jnp.stack(keys)
                )
            )
        else:
            layers = stack([step(key, squeezed) for key in keys])
        deepest = i == levels - 1
        prior = (
            affine(jnp.zeros(squeezed), jnp.ones(squeezed))
            if deepest
            else half(key_prior, squeezed, swap=True)
        )
        built.append(chain(prior, layers, inverse(squeeze())))
    return built


def dequantiser(key: Key, shape: tuple, layers: int = 4, width: int = 64) -> Flow:
    """q(v | x), a RealNVP flow onto (0, 1)^D of which the lattice point x is the condition, for `lattice_log_prob`.

    Nearly uniform at first, as sigmoid(1.702 z) is within 0.01 of Φ(z). shape: of x and v. layers, width: see
    `real_nvp`. Ho et al. 2019, section 3.1.
    """
    shape = checks.shape("shape", shape)
    body = real_nvp(key, shape, layers, width, condition_size=math.prod(shape))
    return flow(
        body.base,
        chain(body.bijector, affine(full(shape), full(shape, 1.702)), sigmoid()),
    )
