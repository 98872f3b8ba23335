"""Images as the networks of other libraries take them."""

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array, ArrayLike

__all__ = ["resized", "signed"]


def signed(images: ArrayLike) -> Array:
    """A batch of colour images with values in [−1, 1].

        byte / 127.5 − 1

    Args:
      images: (B, H, W, C), uint8 or floats in [−1, 1]. A single channel is
        repeated.

    Returns:
      (B, H, W, 3), float32.

    Raises:
      ValueError: If images have another shape, or are integers of another type,
        or are concrete floats beyond [−1, 1].
    """
    images = jnp.asarray(images)
    message = f"images must have shape (B, H, W, 1 or 3), got {images.shape}"
    checks.require(images.ndim == 4 and images.shape[3] in (1, 3), message)
    integer = jnp.issubdtype(images.dtype, jnp.integer)
    message = f"images must be uint8 or floats, got {images.dtype}"
    checks.require(not integer or images.dtype == jnp.uint8, message)
    values = images.astype(jnp.float32)
    if integer:
        values = values / 127.5 - 1
    else:
        # A margin for what was computed with a precision of 16 bits
        checks.all_near("floats of images", values, -1, 1, (0.01, 0.01))
    return jnp.broadcast_to(values, (*values.shape[:3], 3))


def resized(images: Array, side: int, method: str, antialias: bool) -> Array:
    """Square images of another side, sampled at the centres of pixels.

    Args:
      images: (B, H, W, 3).
      side: The side.
      method: "bilinear" or "cubic", of `jax.image.resize`.
      antialias: Whether the kernel widens where images shrink.

    Returns:
      (B, side, side, 3).
    """
    shape = (len(images), side, side, images.shape[3])
    precision = jax.lax.Precision.HIGHEST
    return jax.image.resize(
        images, shape, method, antialias=antialias, precision=precision
    )
