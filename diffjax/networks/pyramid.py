"""The walk through the resolutions of a U-Net whose blocks resample."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from .. import checks
from ..types import Array

__all__ = ["downsample", "pyramid", "resample", "sides", "upsample"]


def downsample(h: Array) -> Array:
    """The mean of each 2 × 2 block: (H, W, C) -> (H/2, W/2, C)."""
    height, width, channels = h.shape
    # (H/2, 2, W/2, 2, C)
    return h.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


def upsample(h: Array) -> Array:
    """Each pixel as a 2 × 2 block: (H, W, C) -> (2H, 2W, C)."""
    height, width, channels = h.shape
    # A broadcast instead of `jnp.repeat`, a gather, whose gradient scatters.
    repeated = jnp.broadcast_to(
        h[:, None, :, None, :], (height, 2, width, 2, channels)
    )  # (H, 2, W, 2, C)
    return repeated.reshape(2 * height, 2 * width, channels)


def resample(h: Array, change: str) -> Array:
    """An image at half or double its sides.

    Args:
      h: (H, W, C).
      change: "down", "up", or "same" for h unchanged.

    Returns:
      (H', W', C).
    """
    return {"down": downsample, "up": upsample, "same": lambda h: h}[change](h)


def sides(x: Array, resolutions: int) -> None:
    """Raise ValueError unless the sides of an image can be halved often enough.

    Args:
      x: (H, W, C).
      resolutions: Number of resolutions.
    """
    hint = "; pad the image or take fewer resolutions"
    checks.image("x", x.shape, "2^(resolutions − 1)", 2 ** (resolutions - 1), hint)


def pyramid(
    h: Array,
    channels: Sequence[int],
    *,
    blocks: int,
    attention_resolutions: Sequence[int],
    last_only: bool = False,
    encode: Callable[[Array, int, str, bool], Array],
    decode: Callable[[Array, int, str, bool], Array],
    join: Callable[[Array, Array], Array],
) -> Array:
    """Down to the lowest resolution and up again, as in Karras et al. 2022 and 2024.

    Each resolution has `blocks` blocks on the way down, and blocks + 1 on the
    way up, each of which reads one activation of the way down. Two blocks
    stand in the middle. The first of them has attention. A change of the
    resolution is a block of its own, which keeps the number of channels.

    Args:
      h: Features (H, W, C) of the input.
      channels: Number of channels at each resolution, from the full one down.
      blocks: Number of blocks per resolution.
      attention_resolutions: Numbers of the resolutions whose blocks have
        attention.
      last_only: Whether on the way up only the last of those blocks has it.
      encode: (h, channels, change, attend) -> h, a block of the way down.
        `change` is as in `resample`.
      decode: The same for the middle and the way up.
      join: (h, skip) -> the input of a block of the way up.

    Returns:
      (H, W, channels[0]).
    """
    skips = [h]
    for resolution, width in enumerate(channels):
        if resolution > 0:
            h = encode(h, h.shape[-1], "down", False)
            skips.append(h)
        for _ in range(blocks):
            h = encode(h, width, "same", resolution in attention_resolutions)
            skips.append(h)
    h = decode(h, channels[-1], "same", True)
    h = decode(h, channels[-1], "same", False)
    for resolution, width in reversed(list(enumerate(channels))):
        if resolution < len(channels) - 1:
            h = decode(h, h.shape[-1], "up", False)
        for block in range(blocks + 1):
            h = join(h, skips.pop())
            attend = block == blocks or not last_only
            attend = attend and resolution in attention_resolutions
            h = decode(h, width, "same", attend)
    return h
