"""Guidance by a second, weaker denoiser: classifier-free guidance and autoguidance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array, Denoiser, PyTree, Scalar, pytree, static_field
from . import arguments
from .arguments import denoised_at
from .conditions import BOTH, Conditioned, check_alike, chosen
from .stepwise import scale_at

__all__ = [
    "Batched",
    "Extrapolated",
    "autoguidance",
    "classifier_free",
    "classifier_free_batched",
]

_SCALES = {"scale": arguments.scale, "rescale": checks.optional(checks.within, 0, 1)}


@pytree
class Extrapolated:
    """The denoiser (1 − γ) D_− + γ D_+, see `classifier_free` and `autoguidance`.

    Attributes:
      better: D_+.
      worse: D_−.
      scale: γ, a number or a function of t.
      rescale: φ, or None.
      shared: True where the worse denoiser takes the condition too.
    """

    better: Any
    worse: Any
    scale: Any
    rescale: Any
    shared: bool = static_field()

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The guided D, shape of x."""
        better = denoised_at(self.better, x, t, *condition)
        shared = condition if self.shared else ()
        worse = denoised_at(self.worse, x, t, *shared)
        return extrapolate(better, worse, scale_at(self.scale, t), self.rescale)


@pytree
class Batched:
    """The denoiser (1 − γ) D(x, t, ∅) + γ D(x, t, c) by one call on a batch of two.

    See `classifier_free_batched`.
    """

    denoiser: Any
    condition: Any
    null: Any
    scale: Any
    rescale: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The guided D, shape of x. A condition passed here replaces the bound one."""
        condition = chosen(condition, self.condition)
        check_alike(condition, self.null)
        # Leaves (*shape) become (2, *shape): c first, then ∅.
        pair = jax.tree.map(lambda *leaves: jnp.stack(leaves), condition, self.null)
        both = jax.vmap(lambda c: denoised_at(self.denoiser, x, t, c))
        better, worse = both(pair)
        return extrapolate(better, worse, scale_at(self.scale, t), self.rescale)


def extrapolate(
    better: Array, worse: Array, scale: Scalar, rescale: Scalar | None
) -> Array:
    """The guided denoised value from two others.

        D = (1 − γ) D_− + γ D_+,    D ← D (φ std D_+ / std D + 1 − φ)

    Args:
      better: D_+, of any shape.
      worse: D_−, of the same shape.
      scale: γ, ().
      rescale: φ, or None for no rescaling.

    Returns:
      D, of their shape.
    """
    guided = (1 - scale) * worse + scale * better
    if rescale is None:
        return guided
    spread = jnp.var(guided)
    # The square root of 0 has no gradient, so both roots are taken of 1 there.
    known = (spread > 0) & (jnp.var(better) > 0)
    ratio = jnp.sqrt(jnp.where(known, jnp.var(better), 1) / jnp.where(known, spread, 1))
    ratio = jnp.where(jnp.var(better) > 0, ratio, 0)
    return guided * jnp.where(spread > 0, rescale * ratio + 1 - rescale, 1)


@checks.arguments(
    conditional=arguments.denoiser, unconditional=arguments.denoiser, **_SCALES
)
def classifier_free(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Scalar | Callable,
    *,
    rescale: Scalar | None = None,
) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2021, equation 6).

        (1 − γ) D_u + γ D_c

    The same holds for scores and noises: (1 − γ) s_u + γ s_c. Two denoiser
    calls are made per evaluation. `classifier_free_batched` makes one.

    Args:
      conditional: D_c, (x, t) -> D. A condition given to `sample_many` is
        passed to it as a third argument.
      unconditional: D_u, (x, t) -> D.
      scale: γ, a number or a function of t. 0 is unconditional, 1 conditional,
        more than 1 extrapolates. The number 1 returns `conditional` itself.
      rescale: φ in [0, 1], for D ← D (φ std D_c / std D + 1 − φ) with standard
        deviations over the entries of the example.

    Returns:
      A denoiser.

    Raises:
      TypeError: If a denoiser cannot be called.
      ValueError: If the scale is not finite or rescale lies outside [0, 1].

    References:
      The paper's w is γ − 1. Rescaling is from Lin et al. 2024, section 3.4,
      who rescale a prediction of the network. Here D is rescaled.

    Example:
      >>> part = dj.targets.denoiser(dj.targets.gaussian([1.5, 0.0], 0.4), schedule)
      >>> guided = dj.guidance.classifier_free(part, denoiser, 2.0)
      >>> dj.sample_many(key, 4, guided, schedule, grid=grid, shape=(2,)).shape
      (4, 2)
    """
    if _is_one(scale):
        return conditional
    return Extrapolated(conditional, unconditional, scale, rescale, shared=False)


@checks.arguments(
    denoiser=(arguments.denoiser, "denoiser(x, t, condition)"), **BOTH, **_SCALES
)
def classifier_free_batched(
    denoiser: Denoiser,
    condition: PyTree,
    null_condition: PyTree,
    scale: Scalar | Callable,
    *,
    rescale: Scalar | None = None,
) -> Denoiser:
    """Classifier-free guidance of one network, called once on the pair (c, ∅).

    The result is that of `classifier_free` (Ho & Salimans 2021, Algorithm 2).
    The two conditions are stacked, so that the network runs once on a batch of
    two.

    Args:
      denoiser: (x, t, condition) -> D.
      condition: Pytree, one example's condition c. None where `sample_many`
        gives one to each example.
      null_condition: ∅, of the same structure and shapes, as trained with
        `drop_condition`.
      scale: γ, as in `classifier_free`. The number 1 makes one plain call on
        the condition alone.
      rescale: φ, as in `classifier_free`.

    Returns:
      A denoiser.

    Raises:
      TypeError: If the denoiser cannot be called or the dtype of ∅ does not
        fit.
      ValueError: If the conditions differ in structure or shape, the scale is
        not finite or rescale lies outside [0, 1].

    Example:
      >>> network = lambda x, t, shift: denoiser(x, t) + shift
      >>> guided = dj.guidance.classifier_free_batched(network, 1.0, 0.0, 3.0)
      >>> guided(jnp.zeros(2), 0.5).shape
      (2,)
    """
    if condition is not None:
        check_alike(condition, null_condition)
    if _is_one(scale):
        return Conditioned(denoiser, condition)
    return Batched(denoiser, condition, null_condition, scale, rescale)


@checks.arguments(denoiser=arguments.denoiser, worse=arguments.denoiser, **_SCALES)
def autoguidance(
    denoiser: Denoiser,
    worse: Denoiser,
    scale: Scalar | Callable,
    *,
    rescale: Scalar | None = None,
) -> Denoiser:
    """Autoguidance (Karras et al. 2024, equation 3).

        (1 − γ) D_− + γ D_+

    Guides away from a worse model of the same distribution, smaller or less
    trained.

    Args:
      denoiser: D_+, (x, t) -> D.
      worse: D_−. A condition given to `sample_many` is passed to both.
      scale: γ, as in `classifier_free`. The number 1 returns `denoiser`
        itself.
      rescale: φ, as in `classifier_free`.

    Returns:
      A denoiser.

    Raises:
      TypeError: If a denoiser cannot be called.
      ValueError: If the scale is not finite or rescale lies outside [0, 1].

    Example:
      >>> blurred = lambda x, t: 0.9 * denoiser(x, t)  # stands for a smaller network
      >>> guided = dj.guidance.autoguidance(denoiser, blurred, 1.5)
      >>> guided(jnp.ones(2), 0.5).shape
      (2,)
    """
    if _is_one(scale):
        return denoiser
    return Extrapolated(denoiser, worse, scale, rescale, shared=True)


def _is_one(scale):
    return not callable(scale) and not checks.is_traced(scale) and float(scale) == 1
