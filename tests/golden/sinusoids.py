"""Sinusoidal features in float64, which makers put in place of float32 ones."""

import math
from typing import Any

__all__ = ["sinusoids"]


def sinusoids(
    xp: Any, t: Any, dim: int, *, cosine_first: bool, shift: float, period: float = 1e4
) -> Any:
    """[sin ω_i t, cos ω_i t],    ω_i = period^(−i/(dim // 2 − shift)).

    Args:
      xp: torch or jax.numpy.
      t: Times (N,).
      dim: Number of features. An odd number ends with a 0.
      cosine_first: Whether the cosines come first.
      shift: 0 or 1. With 1 the lowest frequency is 1/period.
      period: Inverse of the lowest frequency.

    Returns:
      (N, dim).
    """
    index = xp.arange(dim // 2, dtype=xp.float64)
    omega = xp.exp(-math.log(period) * index / (dim // 2 - shift))
    angles = t[:, None] * omega
    waves = [xp.sin(angles), xp.cos(angles)]
    waves = waves[::-1] if cosine_first else waves
    zeros = xp.zeros((len(t), dim % 2), dtype=xp.float64)
    return xp.concatenate([*waves, zeros], axis=-1)
