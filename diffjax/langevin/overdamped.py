"""Kernels whose state is a position: ULA, SGLD, annealed dynamics and MALA.

The house convention is x ← x + ½ ε ∇log p(x) + √ε z, the Euler–Maruyama step
of dx = ½ ∇log p dt + dw over the time ε = step_size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import (
    Array,
    ArrayLike,
    Key,
    Scalar,
    as_pytree_callable,
    combine,
    is_array,
    partition,
    pytree,
)
from .densities import as_density, as_log_density
from .kernels import (
    Kernel,
    Position,
    Scored,
    always,
    check_step_size,
    choose,
    kernel,
    langevin_step,
    log_proposal,
    metropolis,
    normal,
    scored,
    start_position,
    value_and_score,
)

__all__ = ["annealed", "mala", "sgld", "ula"]

_GRADIENT = 0x47524144
"""Folded into a step's key to make the key of its stochastic gradient."""


@pytree
class _Unadjusted:
    """x ← x + ½ ε_n s_n(x) + √ε_n z at step number n, accepted whatever it is."""

    gradient: Any  # (key, x, n) -> s_n(x)
    sizes: Any  # n -> ε_n

    def init(self, x):
        return Position(start_position(x), jnp.zeros((), jnp.int32))

    def step(self, key, state):
        size = self.sizes(state.count)
        score = self.gradient(key, state.x, state.count)
        x = langevin_step(state.x, score, size, normal(key, state.x))
        return Position(x, state.count + 1), always(x)


@pytree
class _ExactGradient:
    density: Any

    def __call__(self, key, x, count):
        return self.density.score(x)


@pytree
class _StochasticGradient:
    gradient: Any

    def __call__(self, key, x, count):
        value = self.gradient(jax.random.fold_in(key, _GRADIENT), x)
        return checks.example_shaped("gradient", value, x)


@pytree
class _LadderGradient:
    scores: Any  # callable pytree, its arrays stacked on a leading axis (L, ...)
    steps: Any

    def __call__(self, key, x, count):
        def at_rung(leaf):
            if not is_array(leaf):
                return leaf
            return leaf[_rung(count, self.steps, leaf.shape[0])]

        return jax.tree.map(at_rung, self.scores)(x)


@pytree
class _ConstantSize:
    value: Any

    def __call__(self, count):
        return self.value


@pytree
class _LadderSize:
    sizes: Any  # (L,)
    steps: Any

    def __call__(self, count):
        return self.sizes[_rung(count, self.steps, self.sizes.shape[0])]


def _rung(count, steps, length):
    return jnp.minimum(count // steps, length - 1)


@checks.arguments(target=as_density, step_size=check_step_size)
def ula(target: Any, step_size: Scalar) -> Kernel:
    """Unadjusted Langevin algorithm (Roberts & Tweedie 1996, section 1.4.1).

        x ← x + ½ ε ∇log p(x) + √ε z

    Every step is accepted. The stationary distribution is p only as ε → 0. For
    p = N(0, 1) it is N(0, 1/(1 − ε/4)) where ε < 4. Beyond that the chain
    diverges.

    Args:
      target: Anything with `log_prob`, a log density x -> (), or
        `score_only(score)`.
      step_size: ε, in squared units of x.

    Returns:
      A kernel with one score per step.

    Raises:
      TypeError: If `target` states no density.
      ValueError: If ε is not positive, or out of the range of its dtype.

    Example:
      >>> kernel = dj.langevin.ula(target, 0.01)
      >>> state, info = kernel.step(key, kernel.init(jnp.zeros(2)))
    """
    return kernel(_Unadjusted(_ExactGradient(target), _ConstantSize(step_size)))


def _sizes(name, value):
    if callable(value):
        return as_pytree_callable(value)
    return _ConstantSize(check_step_size(name, value))


@checks.arguments(
    gradient=(checks.callable_, "gradient(key, x) -> array of x's shape"),
    step_size=_sizes,
)
def sgld(
    gradient: Callable[[Key, Array], Array],
    step_size: Scalar | Callable[[Array], Array],
) -> Kernel:
    """Stochastic-gradient Langevin dynamics (Welling & Teh 2011, equation 4).

        x ← x + ½ ε_n ĝ(key, x) + √ε_n z

    The noise of the estimate ĝ of ∇log p adds to the bias of a finite step.
    For p = N(0, 1), ĝ = −x + τ ξ with Var ξ = 1, and constant ε, the
    stationary distribution is N(0, (1 + ε τ²/4)/(1 − ε/4)).

    Args:
      gradient: (key, x) -> an unbiased estimate of ∇log p(x), of x's shape.
      step_size: ε, in squared units of x. Or a function of the number n of
        steps taken, ε_n = step_size(n), for a decreasing sequence.

    Returns:
      A kernel with one estimate per step.

    Raises:
      TypeError: If `gradient` cannot be called.
      ValueError: If ε is not positive, or out of the range of its dtype.

    Example:
      >>> kernel = dj.langevin.sgld(lambda key, x: -x, lambda n: 0.1 / (1 + n))
    """
    sizes: Any = step_size
    return kernel(_Unadjusted(_StochasticGradient(as_pytree_callable(gradient)), sizes))


@checks.arguments(steps=(checks.integer, 1))
def annealed(ladder: Sequence[Any], step_sizes: ArrayLike, steps: int) -> Kernel:
    """Annealed Langevin dynamics: unadjusted steps along a ladder of densities.

        x ← x + ½ ε_i ∇log p_i(x) + √ε_i z,    i = min(n // steps, L − 1) at step n

    The chain takes `steps` steps at each density, from the first to the last,
    and stays at the last one. Nothing is exact at finite steps: at each
    density the stationary distribution is that of `ula`.

    Args:
      ladder: L targets, log densities or `score_only` scores of one structure,
        whose arrays are stacked. They must be of one family, or one function
        with other arrays bound by `functools.partial`.
      step_sizes: ε at each density, (L,), or one for all, (), in squared units
        of x.
      steps: Number of steps at each density.

    Returns:
      A kernel with one score per step.

    Raises:
      ValueError: If the ladder is empty, its densities differ in structure, or
        the step sizes are not positive or have another shape.
      TypeError: If an entry of the ladder states no density.

    References:
      Song & Ermon 2019, Algorithm 1, which for a denoiser is
      `solvers.annealed_langevin`. Neal 2001, for ladders of tempered
      densities.

    Example:
      >>> ladder = [dj.targets.gaussian([0.0], scale) for scale in (3.0, 1.0)]
      >>> kernel = dj.langevin.annealed(ladder, [0.9, 0.1], steps=10)
    """
    scores = _stacked_scores(ladder)
    sizes = _ladder_sizes("step_sizes", step_sizes, len(ladder))
    return kernel(
        _Unadjusted(
            _LadderGradient(scores, np.int32(steps)),
            _LadderSize(sizes, np.int32(steps)),
        )
    )


def _stacked_scores(ladder):
    """The scores of a ladder as one callable pytree with leaves (L, ...)."""
    densities = checks.each("ladder", ladder, as_density, least=1)
    parts = [partition(as_pytree_callable(density.score)) for density in densities]
    first, static = parts[0]
    shapes = list(map(np.shape, first))
    for i, (arrays, other) in enumerate(parts):
        checks.require(
            other == static and list(map(np.shape, arrays)) == shapes,
            "ladder must hold densities of one structure, as targets of one family or "
            f"a functools.partial of one function; ladder[{i}] differs from ladder[0]",
        )
    rows = zip(*(arrays for arrays, _ in parts), strict=True)
    return combine([jnp.stack(row) for row in rows], static)


def _ladder_sizes(name, value, length):
    sizes = checks.positive_array(name, value)
    checks.one_of_shapes(name, sizes, [(), (length,)])
    return jnp.broadcast_to(sizes, (length,))


@pytree
class _Mala:
    """`ula`'s step y from x, accepted by Metropolis."""

    density: Any
    size: Any

    def init(self, x):
        return scored(self.density, start_position(x))

    def step(self, key, state):
        y = langevin_step(state.x, state.score, self.size, normal(key, state.x))
        proposal = Scored(y, *value_and_score(self.density, y))
        backward = log_proposal(state.x, y, proposal.score, self.size)
        forward = log_proposal(y, state.x, state.score, self.size)
        info = metropolis(
            key, state.log_density, proposal.log_density, backward - forward
        )
        return choose(info.accepted, proposal, state), info


@checks.arguments(target=as_log_density, step_size=check_step_size)
def mala(target: Any, step_size: Scalar) -> Kernel:
    """Metropolis-adjusted Langevin algorithm (Roberts & Tweedie 1996, section 1.4.2).

        y = x + ½ ε ∇log p(x) + √ε z
        log α(x, y) = min(0, log p(y) + log q(x | y) − log p(x) − log q(y | x))
        q(y | x) = N(y | x + ½ ε ∇log p(x), ε)

    The chain moves to y with probability α, and else stays at x (Besag 1994).
    Detailed balance, p(x) q(y | x) α(x, y) = p(y) q(x | y) α(y, x), holds at
    every ε, so that the stationary distribution is exactly p.

    Accepting 0.574 of the steps is about the best for a product distribution
    in many dimensions (Roberts & Rosenthal 1998). `adapt_step_size` finds such
    an ε. A density that is NaN or +infinity at a proposal marks the chain as
    diverged.

    Args:
      target: Anything with `log_prob`, or a log density x -> (), which is
        −infinity outside its support.
      step_size: ε, in squared units of x.

    Returns:
      A kernel with one density and its gradient per step. Its `init` raises
      ValueError where the log density is not finite.

    Raises:
      TypeError: If `target` states no log density.
      ValueError: If ε is not positive, or out of the range of its dtype.

    Example:
      >>> kernel = dj.langevin.mala(target, 0.3)
      >>> chains = dj.langevin.run_many(key, kernel, jnp.zeros((4, 2)), steps=10)
    """
    return kernel(_Mala(target, step_size))
