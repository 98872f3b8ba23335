"""Magnitude-preserving layers (Karras et al. 2024, EDM2, section 2 and appendix B).

Each maps entries of mean square 1, independent where it matters, to entries of
mean square 1, so that no norm is needed and no activation grows with training.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .. import checks
from ..types import Array, PyTree, one_program

__all__ = [
    "MPDense",
    "MPFourier",
    "MPConv",
    "mp_concatenate",
    "mp_silu",
    "mp_sum",
    "normalise",
    "normalise_weights",
]

SILU_RMS = 0.596
"""Root mean square of SiLU(z) for z ~ N(0, 1), to three digits."""


def normalise(x: Array, axes: int | tuple[int, ...]) -> Array:
    """Divide by the root mean square over some axes (equations 30 and 66).

    Args:
      x: Any shape.
      axes: The axes of the mean.

    Returns:
      x of mean square 1 over the axes, of x's dtype. 0 stays 0.
    """
    wide = x.astype(checks.promoted(x.dtype, jnp.float32))
    square = jnp.mean(jnp.square(wide), axes, keepdims=True)
    tiny = float(jnp.finfo(wide.dtype).tiny)
    return (wide * jax.lax.rsqrt(jnp.maximum(square, tiny))).astype(x.dtype)


def normalise_weights(params: PyTree) -> PyTree:
    """Normalise the weights of magnitude-preserving layers (appendix B.5, equation 66).

        w_i ← w_i √n / ‖w_i‖,    of the n weights of each output i

    Call it on the parameters after each step of the optimiser. The network is
    the same function before and after. What changes is that the effective
    learning rate no longer falls as the weights grow.

    Args:
      params: Parameters or variables of any network. Leaves that are not named
        `weight` are unchanged.

    Returns:
      The parameters, of the same structure.

    Example:
      >>> net = dj.networks.EDM2(width=4, multipliers=(1,), blocks=1,
      ...                        attention_resolutions=(), head_channels=4)
      >>> params = net.init(key, jnp.zeros((4, 4, 1)), 0.5)
      >>> params = dj.networks.normalise_weights(params)
    """

    named, structure = jax.tree_util.tree_flatten_with_path(params)
    leaves = [leaf for _, leaf in named]
    # a bare array has an empty path
    names = [getattr(entry, "key", None) for path, _ in named for entry in path[-1:]]
    positions = [i for i, name in enumerate(names) if name == "weight"]
    weights = _of_weights([leaves[i] for i in positions])
    for i, weight in zip(positions, weights, strict=True):
        leaves[i] = weight
    return jax.tree.unflatten(structure, leaves)


@one_program
def _of_weights(weights):
    return [normalise(weight, tuple(range(weight.ndim - 1))) for weight in weights]


def mp_silu(x: Array) -> Array:
    """SiLU(x)/0.596 (equation 81), of mean square 1 for x ~ N(0, 1)."""
    return nn.silu(x) / SILU_RMS


def mp_sum(a: Array, b: Array, weight: float = 0.5) -> Array:
    """Weighted sum of two branches (equation 88).

        ((1 − t) a + t b)/√((1 − t)² + t²)

    Args:
      a: Any shape.
      b: The same shape.
      weight: t, the weight of b in [0, 1].

    Returns:
      The sum, of the same shape.
    """
    return ((1 - weight) * a + weight * b) / math.hypot(1 - weight, weight)


def mp_concatenate(a: Array, b: Array, weight: float = 0.5) -> Array:
    """Concatenation along the last axis (equation 103).

    The magnitudes that a and b contribute to a dense layer are in the ratio
    1 − t to t, whatever their numbers of channels are.

    Args:
      a: (..., A).
      b: (..., B).
      weight: t, the weight of b in [0, 1].

    Returns:
      (..., A + B).
    """
    sizes = a.shape[-1], b.shape[-1]
    scale = sum(sizes) ** 0.5 / math.hypot(1 - weight, weight)
    a = a * (scale * (1 - weight) / sizes[0] ** 0.5)
    b = b * (scale * weight / sizes[1] ** 0.5)
    return jnp.concatenate([a, b], axis=-1)


class MPFourier(nn.Module):
    """Random Fourier features of a number, √2 cos(2π(w_i t + u_i)) (equation 75).

    w ~ N(0, bandwidth²) and u ~ U(0, 1) are functions of the seed, and no
    variables.

    Args:
      dim: Number of features.
      bandwidth: Standard deviation of w, in units of 1/t.
      seed: Seed of w and u.
    """

    dim: int
    bandwidth: float = 1.0
    seed: int = 0

    def __call__(self, t: Array) -> Array:
        """The features (dim,) of t (), in float32 or wider."""
        # RandomState, because NumPy keeps its stream (NEP 19).
        random = np.random.RandomState(self.seed)
        frequencies = self.bandwidth * random.standard_normal(self.dim)
        phases = random.uniform(size=self.dim)
        angles = t * (2 * np.pi * frequencies).astype(t.dtype)
        return np.sqrt(2, dtype=t.dtype) * jnp.cos(
            angles + (2 * np.pi * phases).astype(t.dtype)
        )


class MPConv(nn.Module):
    """Convolution without bias, whose weights have norm 1 per output (equation 47).

    The weights are divided by their norm at each call, in float32. So their
    scale does not matter, and gradients are orthogonal to them.

    Args:
      channels: Number of output channels.
      kernel: Sides of the kernel.
      dtype: Of the computation.
    """

    channels: int
    kernel: tuple[int, int] = (3, 3)
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array, gain: Array | float = 1.0) -> Array:
        """Map h (H, W, C) to (H, W, channels), times a gain ()."""
        weight = _weight(self, (*self.kernel, h.shape[-1], self.channels), gain)
        dtype = self.dtype or h.dtype
        out = jax.lax.conv_general_dilated(
            h[None].astype(dtype),
            weight.astype(dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out[0]


class MPDense(nn.Module):
    """Dense layer without bias, whose weights have norm 1 per output (equation 47).

    Args:
      channels: Number of output features.
      dtype: Of the computation.
    """

    channels: int
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array, gain: Array | float = 1.0) -> Array:
        """Map h (..., C) to (..., channels), times a gain ()."""
        weight = _weight(self, (h.shape[-1], self.channels), gain)
        dtype = self.dtype or h.dtype
        return h.astype(dtype) @ weight.astype(dtype)


def _weight(module, shape, gain):
    """The weights that a layer multiplies with, of norm `gain` per output."""
    weight = module.param("weight", nn.initializers.normal(1.0), shape)
    axes = tuple(range(len(shape) - 1))
    return normalise(weight, axes) * (gain / math.prod(shape[:-1]) ** 0.5)
