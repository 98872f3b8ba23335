"""The way down and the way up of a U-Net of diffusers, one resolution each.

These are functions that a network calls in its own scope. Submodules carry dotted
names, `down_blocks.0.resnets.1`, as in the torch modules.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from ...types import Array

__all__ = ["Stage", "ascend", "descend"]


class Stage(NamedTuple):
    """One resolution of a U-Net.

    Attributes:
      prefix: Name of the block, such as `down_blocks.0`.
      layers: Number of residual blocks.
      residual: Makes a residual block, (name, input channels) -> module.
      attend: Makes what follows a residual block, name -> function of (H, W, C),
        or None for nothing.
      resample: Changes the sides at the end, (image, embedding) -> image, or None
        for nothing.
    """

    prefix: str
    layers: int
    residual: Callable[[str, int], Any]
    attend: Callable[[str], Callable[[Array], Array]] | None
    resample: Callable[[Array, Array], Array] | None

    def layer(self, index: int, h: Array, embedding: Array) -> Array:
        """A residual block and what follows it.

        Args:
          index: Number of the residual block.
          h: (H, W, C).
          embedding: The time embedding, (dim,).

        Returns:
          (H, W, C').
        """
        name = f"{self.prefix}.resnets.{index}"
        h = self.residual(name, h.shape[-1])(h, embedding)
        if self.attend is None:
            return h
        return self.attend(f"{self.prefix}.attentions.{index}")(h)


def descend(stage: Stage, h: Array, embedding: Array) -> tuple[Array, list[Array]]:
    """One resolution of the way down.

    Args:
      stage: The resolution.
      h: (H, W, C).
      embedding: The time embedding, (dim,).

    Returns:
      Its output, and the images for the way up.
    """
    skips = []
    for index in range(stage.layers):
        h = stage.layer(index, h, embedding)
        skips.append(h)
    if stage.resample is not None:
        h = stage.resample(h, embedding)
        skips.append(h)
    return h, skips


def ascend(stage: Stage, h: Array, skips: list[Array], embedding: Array) -> Array:
    """One resolution of the way up, up to its change of sides.

    Args:
      stage: The resolution.
      h: (H, W, C).
      skips: Images of the way down. The last ones are taken away.
      embedding: The time embedding, (dim,).

    Returns:
      (H, W, C').
    """
    for index in range(stage.layers):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = stage.layer(index, h, embedding)
    return h
