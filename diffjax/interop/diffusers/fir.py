"""Halving and doubling an image with the filter (1, 3, 3, 1) of StyleGAN 2."""

import jax
import jax.numpy as jnp

from ...types import Array

__all__ = ["smoothly_doubled", "smoothly_halved"]

TAPS = (1.0, 3.0, 3.0, 1.0)


def _filtered(h, gain, **settings):
    """The image (H, W, C) under the filter of sum `gain`, channel by channel."""
    taps = jnp.asarray(TAPS, h.dtype)
    kernel = jnp.outer(taps, taps) * (gain / sum(TAPS) ** 2)
    channels = h.shape[-1]
    kernels = jnp.broadcast_to(kernel[:, :, None, None], (4, 4, 1, channels))
    return jax.lax.conv_general_dilated(
        h[None],
        kernels,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
        **settings,
    )[0]


def smoothly_halved(h: Array) -> Array:
    """Every second pixel of the filtered image, (H, W, C) -> (H / 2, W / 2, C)."""
    return _filtered(h, 1.0, window_strides=(2, 2), padding=[(1, 1)] * 2)


def smoothly_doubled(h: Array) -> Array:
    """The filtered image with zeros between pixels, (H, W, C) -> (2 H, 2 W, C)."""
    return _filtered(
        h, 4.0, window_strides=(1, 1), padding=[(2, 2)] * 2, lhs_dilation=(2, 2)
    )
