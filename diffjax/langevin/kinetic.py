"""Kernels with a velocity: BAOAB without, and OBABO with acceptance by Metropolis.

Both split dx = v dt, dv = ∇log p dt − γ v dt + √(2γ) dw into A (x moves with
v), B (v moves with the score) and O (v is refreshed, exactly).
"""

from typing import Any

import jax.numpy as jnp

from .. import checks
from ..types import Scalar, pytree
from .densities import as_density, as_log_density
from .kernels import (
    Kernel,
    Kinetic,
    always,
    check_step_size,
    choose,
    kernel,
    metropolis,
    normal,
    refresh,
    scored,
    start_position,
    value_and_score,
)

__all__ = ["baoab", "underdamped"]


@pytree
class _Baoab:
    density: Any
    size: Any
    friction: Any

    def init(self, x):
        x = start_position(x)
        return Kinetic(
            x, jnp.zeros_like(x), jnp.zeros((), x.dtype), self.density.score(x)
        )

    def step(self, key, state):
        h = self.size
        v = state.velocity + 0.5 * h * state.score  # B
        x = state.x + 0.5 * h * v  # A
        v = refresh(v, self.friction * h, normal(key, x))  # O
        x = x + 0.5 * h * v  # A
        score = self.density.score(x)
        v = v + 0.5 * h * score  # B
        return Kinetic(x, v, state.log_density, score), always(x, v)


SIZES = {"step_size": check_step_size, "friction": checks.positive}
"""Rules of the arguments of kinetic dynamics."""


@checks.arguments(target=as_density, **SIZES)
def baoab(target: Any, step_size: Scalar, friction: Scalar = 1.0) -> Kernel:
    """Kinetic Langevin dynamics, unadjusted: the splitting BAOAB.

        v ← v + ½ h ∇log p(x)
        x ← x + ½ h v
        v ← e^{−γh} v + √(1 − e^{−2γh}) z
        x ← x + ½ h v
        v ← v + ½ h ∇log p(x)

    On a Gaussian the distribution of x is exact for every h below twice the
    least standard deviation. On N(0, 1), Var x = 1 and Var v = 1 − h²/4 for h
    < 2. Elsewhere the bias is of order h².

    `init` sets the velocity to 0. `run`, `run_many` and `adapt_step_size` draw
    it from N(0, I) when they start from a position.

    Args:
      target: Anything with `log_prob`, a log density x -> (), or
        `score_only(score)`.
      step_size: h, in units of time, in which the velocity has variance 1.
        These are the units of x, not their square.
      friction: γ > 0.

    Returns:
      A kernel with one score per step.

    Raises:
      TypeError: If `target` states no density.
      ValueError: If h or γ is not positive, or h is out of the range of its
        dtype.

    Example:
      >>> kernel = dj.langevin.baoab(target, 0.2, friction=2.0)
    """
    return kernel(_Baoab(target, step_size, friction))


@pytree
class _Obabo:
    density: Any
    size: Any
    friction: Any

    def init(self, x):
        start = scored(self.density, start_position(x))
        return Kinetic(start.x, jnp.zeros_like(start.x), start.log_density, start.score)

    def step(self, key, state):
        h, decay = self.size, 0.5 * self.friction * self.size
        v = refresh(state.velocity, decay, normal(key, state.x))  # O, over h/2
        half = v + 0.5 * h * state.score  # B
        x = state.x + h * half  # A
        log_density, score = value_and_score(self.density, x)
        end = half + 0.5 * h * score  # B
        # Twice the kinetic energy that the leapfrog step lost.
        lost = jnp.sum(v**2) - jnp.sum(end**2)
        info = metropolis(key, state.log_density, log_density, 0.5 * lost)
        moved = Kinetic(x, end, log_density, score)
        # A step that is not accepted reverses the velocity: this leaves p(x)
        # N(v) invariant.
        state = choose(info.accepted, moved, state._replace(velocity=-v))
        v = refresh(state.velocity, decay, normal(key, x, 1))  # O, over h/2
        return state._replace(velocity=v), info


@checks.arguments(target=as_log_density, **SIZES)
def underdamped(target: Any, step_size: Scalar, friction: Scalar = 1.0) -> Kernel:
    """Kinetic Langevin dynamics, Metropolis-adjusted: the splitting OBABO.

        v ← e^{−γh/2} v + √(1 − e^{−γh}) z
        (x′, v′) = leapfrog step over h from (x, v)
        α = min(1, p(x′) e^{−‖v′‖²/2} / (p(x) e^{−‖v‖²/2}))
        (x, v) ← (x′, v′) with probability α, else (x, −v)
        v ← e^{−γh/2} v + √(1 − e^{−γh}) z

    It leaves p(x) N(v | 0, I) invariant at every h, where `baoab` is exact on
    Gaussians only. Detailed balance holds up to the sign of v. Without the
    acceptance, OBABO on N(0, 1) would have Var x = 1/(1 − h²/4).

    `init` sets the velocity to 0, as in `baoab`.

    Args:
      target: Anything with `log_prob`, or a log density x -> ().
      step_size: h, in units of x.
      friction: γ > 0.

    Returns:
      A kernel with one density and its gradient per step. Its `init` raises
      ValueError where the log density is not finite.

    Raises:
      TypeError: If `target` states no log density.
      ValueError: If h or γ is not positive, or h is out of the range of its
        dtype.

    References:
      Horowitz 1991. Bussi & Parrinello 2007.

    Example:
      >>> kernel = dj.langevin.underdamped(target, 0.3)
    """
    return kernel(_Obabo(target, step_size, friction))
