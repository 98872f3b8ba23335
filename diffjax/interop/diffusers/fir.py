"""Halving and doubling an image with the smoothing filter of StyleGAN 2."""

import jax
import jax.numpy as jnp
import numpy as np

from ...types import Array

__all__ = ["TAPS", "filtered", "smoothly_doubled", "smoothly_halved"]

TAPS = (1.0, 3.0, 3.0, 1.0)
"""The filter along one axis, up to a factor."""


def filtered(
    h: Array,
    taps: tuple[float, ...],
    padding: tuple[int, int],
    *,
    up: int = 1,
    down: int = 1,
) -> Array:
    """The image convolved with outer(taps, taps), channel by channel.

    The 2-D filter sums to up².

    Args:
      h: (H, W, C).
      taps: The filter along one axis.
      padding: Zeros before and after, along each axis. Negative numbers crop.
      up: Factor of zero insertion: up − 1 zeros follow each pixel.
      down: Every `down`-th pixel is kept.

    Returns:
      (H', W', C).
    """
    scaled = np.asarray(taps, np.float64) * (up / sum(taps))
    # Flipped, because XLA correlates.
    kernel = jnp.asarray(np.outer(scaled, scaled)[::-1, ::-1], h.dtype)
    channels, size = h.shape[-1], len(taps)
    return jax.lax.conv_general_dilated(
        h[None],
        jnp.broadcast_to(kernel[:, :, None, None], (size, size, 1, channels)),
        window_strides=(down, down),
        padding=[(padding[0], padding[1] + up - 1)] * 2,
        lhs_dilation=(up, up),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )[0]


def smoothly_halved(h: Array, taps: tuple[float, ...] = TAPS) -> Array:
    """Every second pixel of the filtered image, (H, W, C) -> (H / 2, W / 2, C).

    Args:
      h: (H, W, C) of even sides.
      taps: The filter along one axis.

    Returns:
      (H / 2, W / 2, C).
    """
    extra = len(taps) - 2
    return filtered(h, taps, ((extra + 1) // 2, extra // 2), down=2)


def smoothly_doubled(h: Array, taps: tuple[float, ...] = TAPS) -> Array:
    """The filtered image with zeros between pixels, (H, W, C) -> (2 H, 2 W, C).

    Args:
      h: (H, W, C).
      taps: The filter along one axis.

    Returns:
      (2 H, 2 W, C).
    """
    extra = len(taps) - 2
    return filtered(h, taps, ((extra + 1) // 2 + 1, extra // 2), up=2)
