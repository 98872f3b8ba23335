"""Parts that multistep methods share."""

from typing import Any

import jax.numpy as jnp

from ...types import Array

__all__ = ["at_all_times", "published"]


def published(guarded: bool) -> str:
    """The part of a solver's name that marks the published, unguarded method."""
    return "" if guarded else ", published"


def at_all_times(steps: Any, field: str) -> Array:
    """An entry of the noise level at all times of a grid.

    Args:
      steps: Steps from noise levels to noise levels.
      field: The name of the entry.

    Returns:
      The entry, (N + 1,).
    """
    return jnp.concatenate([getattr(steps.start, field)[:1], getattr(steps.end, field)])
