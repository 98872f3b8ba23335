"""Langevin chains as kernels: unadjusted, Metropolis-adjusted, kinetic, with stochastic gradients, annealed.

A kernel is a pair of pure functions for one chain, `state = init(x)` and `state, info = step(key, state)`, with x of
any shape; the state's `x` is the chain's place. Many chains are `vmap` (`chains.run_many`). House convention: x ← x +
½ε ∇log p(x) + √ε z, the Euler–Maruyama step of dx = ½∇log p dt + dw over the time ε = step_size.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, noise
from ..numerics import float_dtype
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


class Kernel(NamedTuple):
    """init: x -> state, a NamedTuple or frozen dataclass with the place `x`. step: (key, state) -> (state, info).

    Both are pytrees, so that new parameters do not retrace.
    """

    init: Callable[[Array], Any]
    step: Callable[[Key, Any], tuple[Any, "StepInfo"]]


class StepInfo(NamedTuple):
    """What a step did; all of shape ().

    log_alpha: log of the probability α with which it was accepted, 0 where every step is. accepted: whether it was.
    finite: False where the state, or the density at the position proposed, is NaN or a density is +infinity: the chain
    has diverged. False too where log densities are so large that their rounding, above ½ nat, decides the acceptance:
    float32 resolves about 4e6 nats. A density of 0 (−infinity) is never accepted, and finite.
    """

    log_alpha: Array
    accepted: Array
    finite: Array

    @property
    def acceptance(self) -> Array:
        """The probability α."""
        return jnp.exp(self.log_alpha)


class Position(NamedTuple):
    """State of a chain that needs to know its place alone, and how many steps it has made."""

    x: Array
    count: Array


class Scored(NamedTuple):
    """State with log p, up to a constant, and ∇log p at x."""

    x: Array
    log_density: Array
    score: Array


class Kinetic(NamedTuple):
    """State with a velocity of x's shape; log_density is 0 where it is not used."""

    x: Array
    velocity: Array
    log_density: Array
    score: Array


def langevin_step(x: Array, score: Array, size: Scalar, z: Array) -> Array:
    """x + ½ε ∇log p(x) + √ε z for ε = size, shape of x."""
    return x + 0.5 * size * score + jnp.sqrt(size) * z


def log_proposal(y: Array, x: Array, score: Array, size: Scalar) -> Array:
    """log N(y; x + ½ε ∇log p(x), ε) up to a constant, shape (): the law of `langevin_step` from x."""
    root = jnp.sqrt(
        size
    )  # divided by before the square, which would leave float32's range in small or large units
    return -0.5 * jnp.sum(((y - x) / root - 0.5 * root * score) ** 2)


# ----------------------------------------------------------------------------------------------- every step is accepted


@pytree
class _Unadjusted:
    """One score a step; gradient: (key, x) -> ∇log p, sizes: count -> ε."""

    gradient: Any
    sizes: Any

    def init(self, x):
        return Position(_start(x), jnp.zeros((), jnp.int32))

    def step(self, key, state):
        size = self.sizes(state.count)
        x = langevin_step(
            state.x,
            self.gradient(key, state.x, state.count),
            size,
            _normal(key, state.x),
        )
        return Position(x, state.count + 1), _always(x)


@pytree
class _Exact:
    density: Any

    def __call__(self, key, x, count):
        return self.density.score(x)


@pytree
class _Estimated:
    gradient: Any

    def __call__(self, key, x, count):
        value = self.gradient(jax.random.fold_in(key, _GRADIENT), x)
        if jnp.shape(value) != x.shape:
            raise ValueError(
                f"gradient must return its example's shape {x.shape}, got {jnp.shape(value)}"
            )
        return value


@pytree
class _Constant:
    value: Any

    def __call__(self, count):
        return self.value


@pytree
class _OfLevel:
    """The score of level min(count // steps, L − 1) of laws stacked on a leading axis."""

    laws: Any
    steps: Any

    def __call__(self, key, x, count):
        at_level = lambda leaf: (
            leaf[_level(count, self.steps, leaf.shape[0])] if is_array(leaf) else leaf
        )
        return jax.tree.map(at_level, self.laws)(x)


@pytree
class _SizeOfLevel:
    sizes: Any  # (L,)
    steps: Any

    def __call__(self, count):
        return self.sizes[_level(count, self.steps, self.sizes.shape[0])]


def _level(count, steps, levels):
    return jnp.minimum(count // steps, levels - 1)


def ula(target: Any, step_size: Scalar) -> Kernel:
    """The unadjusted Langevin algorithm: x ← x + ½ε ∇log p(x) + √ε z, every step accepted; one score a step.

    Its stationary law is p only as ε → 0: on N(0, 1) it is N(0, 1/(1 − ε/4)) for ε < 4, beyond which it diverges.
    target: anything with `log_prob`, a log density x -> (), or `score_only(score)`. step_size: ε, in squared data
    units. Raises TypeError for another target, ValueError unless ε > 0. Roberts & Tweedie 1996, section 1.4.1.
    """
    return _kernel(
        _Unadjusted(_Exact(as_density("target", target)), _Constant(_size(step_size)))
    )


def sgld(
    gradient: Callable[[Key, Array], Array],
    step_size: Scalar | Callable[[Array], Array],
) -> Kernel:
    """Stochastic-gradient Langevin dynamics: x ← x + ½ε_n ĝ(key, x) + √ε_n z with an unbiased estimate ĝ of ∇log p.

    On N(0, 1) with ĝ = −x + τξ, Var ξ = 1, and constant ε the law is N(0, (1 + ετ²/4)/(1 − ε/4)): the estimate's noise
    adds to the bias. gradient: (key, x) -> an array of x's shape. step_size: ε, or a function of the number of steps
    made, ε_n = step_size(n), for a decreasing sequence. Raises TypeError for a gradient that cannot be called,
    ValueError unless ε > 0. Welling & Teh 2011, eq. 4.
    """
    checks.callable_("gradient", gradient, "gradient(key, x) -> array of x's shape")
    sizes = (
        as_pytree_callable(step_size)
        if callable(step_size)
        else _Constant(_size(step_size))
    )
    return _kernel(_Unadjusted(_Estimated(as_pytree_callable(gradient)), sizes))


def annealed(ladder: Sequence[Any], step_sizes: ArrayLike, steps: int) -> Kernel:
    """Annealed Langevin dynamics: `steps` unadjusted steps at each law of a ladder, from the first to the last.

    Step n has the law of number min(n // steps, L − 1), so that it stays at the last one. ladder: L targets, log
    densities or `score_only` scores, all of one structure (of one family, or one function with other arrays bound by
    `functools.partial`): their arrays are stacked. step_sizes: ε of each level, (L,), or one for all, (). Nothing is
    exact at finite steps: at each level the law is that of `ula`. Raises ValueError for fewer than one law, laws of
    different structure, or step sizes that do not fit or are not positive, TypeError for what is no law. Song & Ermon
    2019, Algorithm 1, which is `solvers.annealed_langevin` for a denoiser; Neal 2001 on ladders of tempered densities.
    """
    steps = checks.integer("steps", steps, minimum=1)
    laws = [as_density(f"ladder[{i}]", law) for i, law in enumerate(ladder)]
    if not laws:
        raise ValueError("ladder must hold at least one law, got none")
    parts = [partition(as_pytree_callable(law.score)) for law in laws]
    for i, (arrays, static) in enumerate(parts):
        if static != parts[0][1] or [np.shape(a) for a in arrays] != [
            np.shape(a) for a in parts[0][0]
        ]:
            raise ValueError(
                f"ladder must hold laws of one structure, as targets of one family or one function with arrays bound "
                f"by functools.partial; ladder[{i}] differs from ladder[0]"
            )
    stacked = combine(
        [
            jnp.stack(level)
            for level in zip(*(arrays for arrays, _ in parts), strict=True)
        ],
        parts[0][1],
    )
    sizes = checks.real_array("step_sizes", step_sizes)
    checks.one_of_shapes("step_sizes", sizes, [(), (len(laws),)])
    if not checks.is_traced(sizes) and not np.all(np.asarray(sizes) > 0):
        raise ValueError(
            f"step_sizes must be positive, got {np.asarray(sizes).tolist()}"
        )
    sizes = jnp.broadcast_to(sizes, (len(laws),))
    return _kernel(
        _Unadjusted(
            _OfLevel(stacked, np.int32(steps)), _SizeOfLevel(sizes, np.int32(steps))
        )
    )


# --------------------------------------------------------------------------------------------- accepted by Metropolis


@pytree
class _Adjusted:
    density: Any
    size: Any

    def init(self, x):
        return _scored(self.density, _start(x))

    def step(self, key, state):
        y = langevin_step(state.x, state.score, self.size, _normal(key, state.x))
        proposal = Scored(y, *_value_and_score(self.density, y))
        backward = log_proposal(state.x, y, proposal.score, self.size)
        forward = log_proposal(y, state.x, state.score, self.size)
        info = _metropolis(
            key, state.log_density, proposal.log_density, backward - forward
        )
        return _choose(info.accepted, proposal, state), info


def mala(target: Any, step_size: Scalar) -> Kernel:
    """The Metropolis-adjusted Langevin algorithm: `ula`'s step y, accepted with probability α(x, y), else x again.

    log α = min(0, log p(y) + log q(x | y) − log p(x) − log q(y | x)), q(y | x) = N(y; x + ½ε∇log p(x), ε): detailed
    balance p(x) q(y | x) α(x, y) = p(y) q(x | y) α(y, x) holds at every ε, and the stationary law is p exactly. One
    density with its gradient a step; accepting 0.574 of the steps is about the best for a product law in many
    dimensions (Roberts & Rosenthal 1998). target: anything with `log_prob`, or a log density x -> (); −infinity
    outside its support. A density that is NaN or +infinity at a proposal marks the chain as diverged. Raises TypeError
    for another target or a score alone, ValueError unless ε > 0, and in `init` where the start has no finite log
    density. Roberts & Tweedie 1996, section 1.4.2; Besag 1994.
    """
    return _kernel(_Adjusted(as_log_density("target", target), _size(step_size)))


# ------------------------------------------------------------------------------------------------------------- kinetic


@pytree
class _Baoab:
    density: Any
    size: Any
    friction: Any

    def init(self, x):
        x = _start(x)
        return Kinetic(
            x, jnp.zeros_like(x), jnp.zeros((), x.dtype), self.density.score(x)
        )

    def step(self, key, state):
        h = self.size
        v = state.velocity + 0.5 * h * state.score
        x = state.x + 0.5 * h * v
        v = _refresh(v, self.friction * h, _normal(key, x))
        x = x + 0.5 * h * v
        score = self.density.score(x)
        v = v + 0.5 * h * score
        return Kinetic(x, v, state.log_density, score), _always(x, v)


@pytree
class _Obabo:
    """Half a refreshment, a leapfrog step accepted or turned round, half a refreshment."""

    density: Any
    size: Any
    friction: Any

    def init(self, x):
        start = _scored(self.density, _start(x))
        return Kinetic(start.x, jnp.zeros_like(start.x), start.log_density, start.score)

    def step(self, key, state):
        h, decay = self.size, 0.5 * self.friction * self.size
        v = _refresh(state.velocity, decay, _normal(key, state.x))
        half = v + 0.5 * h * state.score
        x = state.x + h * half
        log_density, score = _value_and_score(self.density, x)
        end = half + 0.5 * h * score
        energy = jnp.sum(v**2) - jnp.sum(
            end**2
        )  # twice the kinetic energy that was lost
        info = _metropolis(key, state.log_density, log_density, 0.5 * energy)
        moved = Kinetic(x, end, log_density, score)
        state = _choose(
            info.accepted, moved, state._replace(velocity=-v)
        )  # a refused step turns round
        v = _refresh(state.velocity, decay, _normal(key, x, 1))
        return state._replace(velocity=v), info


def baoab(target: Any, step_size: Scalar, friction: Scalar = 1.0) -> Kernel:
    """Kinetic Langevin dynamics dx = v dt, dv = ∇log p dt − γv dt + √(2γ) dw by the splitting BAOAB, unadjusted.

    With h = step_size: v += ½h∇log p(x); x += ½hv; v ← e^{−γh} v + √(1 − e^{−2γh}) z; x += ½hv; v += ½h∇log p(x); one
    score a step. On a Gaussian the law of x is exact for every h below twice the least standard deviation (on N(0, 1):
    Var x = 1 and Var v = 1 − h²/4 for h < 2); elsewhere its bias is of order h². target: as in `ula`. step_size: h, in
    units of time, of which the velocity's variance is 1: data units, not their square. friction: γ > 0. `init` sets the
    velocity to 0; what runs a kernel from a place draws it of N(0, I). Raises TypeError and ValueError as `ula`.
    Leimkuhler & Matthews 2013, eq. 10.
    """
    return _kernel(
        _Baoab(
            as_density("target", target),
            _size(step_size),
            checks.positive("friction", friction),
        )
    )


def underdamped(target: Any, step_size: Scalar, friction: Scalar = 1.0) -> Kernel:
    """Kinetic Langevin dynamics by the splitting OBABO, its leapfrog step BAB accepted by Metropolis: p exactly.

    With h = step_size: v ← e^{−γh/2} v + √(1 − e^{−γh}) z; (x, v) → leapfrog over h, accepted with probability min(1,
    p(x′)e^{−‖v′‖²/2} / p(x)e^{−‖v‖²/2}), else the velocity is turned round; the refreshment of v again. At every h it
    leaves p(x) N(v; 0, I) as it is (not in detailed balance: it is balanced up to the sign of v), where `baoab` is
    exact on Gaussians only; without the acceptance OBABO's variance on N(0, 1) would be 1/(1 − h²/4). One density with
    its gradient a step. target: as in `mala`. friction: γ > 0. Velocity: as in `baoab`. Raises TypeError and ValueError
    as `mala`. Horowitz 1991; Bussi & Parrinello 2007.
    """
    return _kernel(
        _Obabo(
            as_log_density("target", target),
            _size(step_size),
            checks.positive("friction", friction),
        )
    )


# -------------------------------------------------------------------------------------------------------------- shared

_GRADIENT = 0x47524144
"""Folded into a step's key for the key of a stochastic gradient."""


def _kernel(algorithm):
    return Kernel(
        as_pytree_callable(algorithm.init), as_pytree_callable(algorithm.step)
    )


def _size(value):
    value = checks.positive("step_size", value)
    if not checks.is_traced(value):
        dtype = np.dtype(float_dtype(value))
        with np.errstate(over="ignore", under="ignore"):
            inside = np.finfo(dtype).tiny <= np.asarray(value, dtype) < np.inf
        if not inside:
            raise ValueError(
                f"step_size must lie within the range of {dtype}, got {value}"
            )
    return value


def _start(x):
    x = checks.real_array("x", x)
    checks.finite("x", x)
    return x.astype(float_dtype(x))


def _scored(density, x):
    state = Scored(x, *_value_and_score(density, x))
    if not checks.is_traced(state.log_density) and not np.isfinite(state.log_density):
        raise ValueError(
            f"x must lie where the log density is finite, got {state.log_density} at {np.asarray(x)}"
        )
    return state


def _value_and_score(density, x):
    """(log p(x), ∇log p(x)); the gradient is 0, not NaN, where the density is 0."""
    value, score = density.value_and_score(x)
    return value, jnp.where(jnp.isneginf(value), 0, score)


def _normal(key, x, draw=0):
    """Draw number `draw` of a step; counters from 1 on, for `_metropolis` takes what key hashes at 0."""
    return noise.normal(key, 1 + draw, x.shape, x.dtype)


def draw_velocity(key: Key, state: Any) -> Any:
    """A kinetic state with a velocity of N(0, I) by the key of its first step; any other state as it is.

    At the velocity 0 of `init` a state is not of the law that the kernel leaves as it is, wherever x came from.
    """
    return (
        state._replace(velocity=_normal(key, state.x, 2))
        if isinstance(state, Kinetic)
        else state
    )


def _refresh(v, decay, z):
    """e^{−d} v + √(1 − e^{−2d}) z for d = decay."""
    return jnp.exp(-decay) * v + jnp.sqrt(-jnp.expm1(-2 * decay)) * z


_UNRESOLVED = 0.5
"""Rounding of log densities, in nats, from which an acceptance within that rounding is no longer made."""


def _metropolis(key, before, after, balance):
    """The StepInfo of a proposal from log density `before` to `after`, with its own uniform draw.

    balance: what the log acceptance ratio has beside their difference.
    """
    log_ratio = after - before + balance
    outside = jnp.isneginf(after)
    log_alpha = jnp.where(outside, -jnp.inf, jnp.minimum(log_ratio, 0))
    accepted = jnp.log(jax.random.uniform(key, (), log_alpha.dtype)) < log_alpha
    # Far from the mode the difference is large beside the rounding, and the decision is certain however large both are.
    rounding = jnp.finfo(log_alpha.dtype).eps * jnp.maximum(
        jnp.abs(before), jnp.abs(after)
    )
    close = (
        jnp.maximum(jnp.abs(after - before), jnp.abs(log_ratio)) <= 2 * rounding
    )  # False for NaN
    lost = (rounding > _UNRESOLVED) & jnp.isfinite(rounding) & close
    finite = ~(jnp.isnan(log_alpha) | jnp.isposinf(after) | lost)
    return StepInfo(log_alpha, accepted & finite, finite)


def _always(*parts):
    finite = jnp.stack([jnp.all(jnp.isfinite(part)) for part in parts]).all()
    return StepInfo(jnp.zeros((), parts[0].dtype), jnp.ones((), bool), finite)


def _choose(accepted, proposal, state):
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal, state)
