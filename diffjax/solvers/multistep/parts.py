"""Parts that multistep methods share."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ...types import Array
from ..affine import Steps, Update
from ..eta import Eta, integral, root

__all__ = ["at_all_times", "noisy_update", "published"]


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


def noisy_update(steps: Steps, gains: Sequence, eta: Eta) -> Update:
    """The exact solution of the reverse SDE of noise level η for an interpolated D.

        y_s = e^{−h−E} y + Σ gains D + ρ_s √(1 − e^{−2E}) z,    E = ∫ η² dλ

    Args:
      steps: Steps between noise levels.
      gains: Those of the outputs, newest first, (N,) each.
      eta: η.

    Returns:
      The update of y = x/α.
    """
    added = integral(eta, steps.start, steps.end)
    stds = (steps.end.rho * root(-jnp.expm1(-2 * added)),) if eta else ()
    # `keep` is a multiple of ρ_s/ρ_t = e^{−h}, see `Update`
    return Update(steps.end, jnp.exp(-added), gains, stds)
