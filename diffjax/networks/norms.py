"""Group norm of one example, with the modulation and SiLU that follow it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .. import checks
from ..types import Array
from .stored import stored

__all__ = ["GroupNorm"]


class GroupNorm(nn.Module):
    """Group norm (Wu & He 2018, equation 1) of one example.

        (h − mean)/√(variance + epsilon) · scale + bias

    over all positions and the channels of a group. Parameters are those of
    `flax.linen.GroupNorm`, names included. A modulation and SiLU can follow in
    the same pass. Statistics are in float32 or wider.

    On CPU it takes half the time of Flax's: sums run over positions first, so
    that channels fill a vector register, and over a group's channels last. On
    one core, 16 × 32×32×128 with SiLU takes 3.2 ms against 6.5, and 7.2 against
    16.1 with its gradient.

    Args:
      num_groups: Number of groups. It divides the channels.
      epsilon: Added to the variance.
      use_bias: Whether there is a bias.
      use_scale: Whether there is a scale.
      silu: Whether SiLU follows.
      dtype: Of the result. None for that of h.

    Raises:
      ValueError: If num_groups does not divide the channels.

    Example:
      >>> norm = dj.networks.GroupNorm(num_groups=2, silu=True)
      >>> params = norm.init(key, jnp.ones((4, 4, 8)))
    """

    num_groups: int = 32
    epsilon: float = 1e-6
    use_bias: bool = True
    use_scale: bool = True
    silu: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, h: Array, shift: Array | None = None, scale: Array | None = None
    ) -> Array:
        """The norm of h (..., C), then (1 + scale) h + shift, then SiLU.

        Args:
          h: (..., C).
          shift: (C,). None for no shift.
          scale: (C,). None for no scale.

        Returns:
          Of h's shape.
        """
        channels = h.shape[-1]
        checks.divides("num_groups", self.num_groups, "channels", channels)
        wide = checks.promoted(h.dtype, jnp.float32)
        slope, offset = jnp.ones(channels, wide), jnp.zeros(channels, wide)
        if self.use_scale:
            slope = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        if self.use_bias:
            offset = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        slope, offset = slope.astype(wide), offset.astype(wide)
        if scale is not None:
            factor = 1 + scale.astype(wide)
            slope, offset = slope * factor, offset * factor
        if shift is not None:
            offset += shift.astype(wide)
        normalise = _normalise(self.num_groups, self.epsilon, self.silu)
        return normalise(h, slope, offset).astype(self.dtype or h.dtype)


@functools.cache
def _normalise(groups: int, epsilon: float, silu: bool) -> Any:
    """The stored function (h (..., C), slope (C,), offset (C,)) -> normalised h."""

    # `jax.checkpoint` makes the backward pass read h alone. `prevent_cse=False`
    # is safe because the calls of `stored` are separate, so XLA cannot merge the
    # two computations.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def affine(h: Array, mean: Array, slope: Array, offset: Array) -> Array:
        y = (h - mean) * slope + offset
        return y * jax.lax.logistic(y) if silu else y

    @stored
    def normalise(h: Array, slope: Array, offset: Array) -> Array:
        wide = h.astype(slope.dtype)
        mean, variance = _statistics(wide, groups)
        slope = slope * jax.lax.rsqrt(variance + epsilon)
        return affine(wide, mean, slope, offset).astype(h.dtype)

    return normalise


def _statistics(h: Array, groups: int) -> tuple[Array, Array]:
    """Mean and variance (C,) of the group of each channel, of h (..., C)."""
    channels = h.shape[-1]
    rows = h.reshape(-1, channels)  # (N, C)
    # Subtracting the first row avoids cancellation where the mean is large.
    origin = jax.lax.stop_gradient(rows[0])
    first, second = _moments(rows, origin)  # (C,)
    # (C,) -> (groups, C / groups)
    means = (first + origin).reshape(groups, -1)
    variances = (second - first**2).reshape(groups, -1)
    mean = means.mean(-1, keepdims=True)
    variance = (variances + (means - mean) ** 2).mean(-1, keepdims=True)
    repeated = (jnp.broadcast_to(s, means.shape) for s in (mean, variance))
    mean, variance = (s.reshape(channels) for s in repeated)
    return mean, jnp.maximum(variance, 0)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _moments(rows: Array, origin: Array) -> tuple[Array, Array]:
    """First and second moment (C,) of rows (N, C) about the origin (C,)."""
    centred = rows - origin
    return centred.mean(0), (centred**2).mean(0)
