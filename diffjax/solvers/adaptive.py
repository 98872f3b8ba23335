"""Solvers that choose their own steps, for each example separately.

`adaptive` is an embedded Runge–Kutta method for ODEs, `adaptive_sde` a method for
SDEs. Both halve the interval between two grid times until a step meets the
tolerance. All times are dyadic fractions of the interval. A Brownian path is
therefore read at the same times whatever the rounding of the states.

A step that misses the tolerance by less than a factor of 2 is not thrown away. The
result is a weighted mean of it and of the shorter steps that replace it, with a
weight that falls from 1 to 0. It is therefore a continuous function of the states.
Two programs that round differently, such as two batch sizes, agree to rounding and
not only to the tolerance.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .. import checks
from ..types import Array, PyTree
from .base import (
    EulerStep,
    Info,
    Solver,
    Traits,
    euler_step,
    factory,
    needs,
    steps_along,
    unless_zero,
    weighted_sum,
)
from .step_choice import (
    FIFTH_ORDER,
    STOCHASTIC,
    Interval,
    State,
    Trial,
    advance_interval,
    larger,
)

__all__ = ["adaptive", "adaptive_sde", "forward_only"]

# Dormand & Prince 1980, RK5(4)7M: the last stage of an accepted step is the first of
# the next.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_MATRIX = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclasses.dataclass(frozen=True)
class _Tolerances:
    rtol: float
    atol: float
    max_steps: int

    def size(self, value, scale):
        """Root mean square of value / (atol + rtol |scale|) over all entries, ()."""
        parts = jax.tree.map(
            lambda v, x: jnp.sum((v / (self.atol + self.rtol * jnp.abs(x))) ** 2),
            value,
            scale,
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(value))
        return jnp.sqrt(sum(jax.tree.leaves(parts)) / count)


_RULES = {
    "rtol": checks.non_negative,
    "atol": checks.positive,
    "max_steps": (checks.integer, 1),
}


class _AdaptiveInputs(NamedTuple):
    start: Array
    end: Array  # of the grid itself, 0 on a step to 0
    at_zero: Array | None
    euler: EulerStep


def _report(state):
    return Info(state.evaluations, state.accepted, state.rejected, state.exhausted)


def _no_number(steps, to_zero=False):
    return None


def _prepare(field, ts, zero_end):
    steps = steps_along(field, ts, zero_end)
    # The ends are those of the grid itself. XLA would fuse the choice of another end
    # into s − t, and round it otherwise when a run is taken in parts.
    return _AdaptiveInputs(steps.start, ts[1:], steps.at_zero, euler_step(field, steps))


# ------------------------------------------------------------------- ODEs: adaptive


@factory
@checks.arguments(**_RULES)
def adaptive(rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 4096) -> Solver:
    """Dormand–Prince method of order 5 with adaptive steps (Dormand & Prince 1980).

    A step is accepted where the root mean square of
    error / (atol + rtol max(|x|, |x_new|)) is at most 1. Every grid time is hit, and
    a grid of two times suffices. Each example has its own step sizes, which are
    halvings of the grid's intervals.

    Where the ratio lies between 1 and 2, the step is averaged with the two halves
    that replace it. The result is then a continuous function of the start, and
    samples agree to rounding at any batch size.

    JAX cannot reverse a `while_loop`: for derivatives use `jax.jvp`, `jax.jacfwd` or a
    solver of fixed steps.

    Args:
      rtol: Relative tolerance, 0 or more.
      atol: Absolute tolerance, positive.
      max_steps: Most steps that are tried in a whole run. Where they are used up, or
        an interval was halved 30 times, the result is NaN, `info=True` reports
        `exhausted`, and a call outside `jit` warns.

    Returns:
      A solver. `info=True` reports its evaluations.

    Raises:
      ValueError: If an argument is out of range.

    References:
      Hairer et al. 1993, section II.4, on the choice of steps.

    Example:
      >>> solver = dj.solvers.adaptive(rtol=1e-3, atol=1e-3)
      >>> x = dj.sample(
      ...     key, denoiser, schedule, solver=solver, grid=[1.0, 1e-3], shape=(2,)
      ... )
    """
    settings = _Tolerances(rtol, atol, max_steps)
    return Solver(
        "adaptive",
        "velocity",
        None,
        False,
        _no_number,
        lambda problem, ts: _prepare(problem.velocity, ts, problem.zero_end),
        functools.partial(_adaptive_step, settings),
        functools.partial(_start_adaptive, settings),
        _report,
    )


def _adaptive_step(settings, problem, inputs, draw, x, state):
    def trial(point, _, span):
        x, slope = point
        x_new, slope_new, error = _dormand_prince(problem.velocity, x, span, slope)
        ratio = settings.size(error, larger(x, x_new))
        return Trial((x_new, slope_new), (), ratio, True)

    def advance(_):
        interval = Interval(inputs.start, inputs.end, settings.max_steps)
        point = x, state.memory
        (x_end, slope), after = advance_interval(
            trial, interval, point, state, control=FIFTH_ORDER, start=()
        )
        x_end = forward_only("adaptive", "a fixed-step solver such as rk4()", x_end)
        return x_end, after._replace(memory=slope)

    denoised = inputs.euler(x, state.memory)
    return unless_zero(inputs.at_zero, advance, (denoised, state))


def _start_adaptive(settings, problem, x, inputs):
    t, s = inputs.start, inputs.end
    slope = problem.velocity(x, t)
    # A step in which x changes by its own size: too long as a rule, and shortened by
    # rejections.
    step = settings.size(x, x) / jnp.maximum(settings.size(slope, x), 1e-10)
    zero = jnp.zeros((), jnp.int32)
    step = jnp.clip(step, 1e-6 * jnp.abs(s - t), jnp.abs(s - t))
    return State(slope, step, zero, zero, zero + 1, jnp.zeros((), bool))


def _dormand_prince(velocity, x, span, slope):
    """A step of the fifth-order formula.

    Returns (x at its end, the velocity there, the difference from the fourth order).
    """
    slopes, dt = [slope], span.dt
    inner = x
    for node, row in zip(_NODES, _MATRIX, strict=True):
        terms = [(dt * a, k) for a, k in zip(row, slopes, strict=True) if a]
        inner = weighted_sum((1, x), *terms)
        # From the nearer end, so that the last stages stand at the end itself and
        # none beyond it.
        time = span.now + node * dt if node <= 0.5 else span.end - (1 - node) * dt
        slopes.append(velocity(inner, time))
    terms = [(dt * e, k) for e, k in zip(_ERROR, slopes, strict=True) if e]
    return inner, slopes[-1], weighted_sum(*terms)


# --------------------------------------------------------------- SDEs: adaptive_sde


@factory
@checks.arguments(**_RULES)
def adaptive_sde(
    rtol: float = 1e-2, atol: float = 1e-2, max_steps: int = 4096
) -> Solver:
    """Stochastic Heun with adaptive steps (Jolicoeur-Martineau et al. 2021).

    The error of a step is its difference from Euler–Maruyama's, measured as in
    `adaptive`. Where drift and noise happen to cancel, x moves less than is typical,
    and the error of a long step would be hidden. The difference is therefore divided
    by the ratio of the move to a typical one, ¼ at least.

    A step that is not accepted is replaced by its two halves on the same Brownian
    path, so that rejections leave the distribution unchanged. Where the ratio lies
    between 1 and 2 both are averaged. A sample depends on rounding, hence on the
    batch size, about as little as that of a solver of fixed steps.

    A Brownian path given as noise is read at times in floating point, and its own
    rounding comes on top of that. A step to 0 returns D. For derivatives see
    `adaptive`.

    Args:
      rtol: Relative tolerance, 0 or more.
      atol: Absolute tolerance, positive.
      max_steps: As in `adaptive`.

    Returns:
      A solver with two evaluations per accepted step and one per rejected one.

    Raises:
      ValueError: If an argument is out of range.

    References:
      Algorithm 1 of the paper, for the two methods and the tolerance.

    Example:
      >>> solver = dj.solvers.adaptive_sde(rtol=0.1, atol=0.1)
      >>> x = dj.sample(
      ...     key, denoiser, schedule, solver=solver, grid=[0.9, 1e-3], shape=(2,)
      ... )
    """
    settings = _Tolerances(rtol, atol, max_steps)
    return Solver(
        "adaptive_sde",
        "sde",
        None,
        True,
        _no_number,
        lambda problem, ts: _prepare(problem.sde.drift, ts, problem.zero_end),
        functools.partial(_adaptive_sde_step, settings),
        _start_adaptive_sde,
        _report,
        traits=Traits(needs("adaptive_sde", finite_start=True, drift=True)),
    )


class _Start(NamedTuple):
    """Drift and diffusion at the start of a step."""

    slope: Any
    spread: Any
    known: Any  # whether they have been evaluated


def _adaptive_sde_step(settings, problem, inputs, draw, x, state):
    drift = problem.sde.drift

    def advance(_):
        trial = functools.partial(_heun_trial, settings, problem.sde, draw)
        interval = Interval(inputs.start, inputs.end, settings.max_steps)
        start = _Start(jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros((), bool))
        end, after = advance_interval(
            trial, interval, x, state, control=STOCHASTIC, start=start
        )
        cure = "a fixed-step solver such as stochastic_heun()"
        return forward_only("adaptive_sde", cure, end), after

    def to_zero(_):
        denoised = inputs.euler(x, drift(x, inputs.start))
        return denoised, state._replace(evaluations=state.evaluations + 1)

    if inputs.at_zero is None:
        return advance(None)
    return jax.lax.cond(inputs.at_zero, to_zero, advance, None)


def _heun_trial(settings, sde, draw, x, start, span):
    # One evaluation per turn of the loop, first at the start of a step (`known` is
    # false), then at the end of Euler's step. A rejected step leaves the first to the
    # shorter one that replaces it.
    z = draw.part(span.now, span.end, span.depth, span.index).astype(x.dtype)
    increment = jnp.sqrt(jnp.abs(span.dt)) * z
    predicted = x + span.dt * start.slope + start.spread * increment
    at = jnp.where(start.known, predicted, x)
    time = jnp.where(start.known, span.end, span.now)
    slope = sde.drift(at, time)
    spread = jnp.broadcast_to(sde.diffusion(at, time), x.shape)
    heun = x + 0.5 * (
        span.dt * (start.slope + slope) + (start.spread + spread) * increment
    )
    moved = jnp.mean((predicted - x) ** 2)
    typical = jnp.mean(
        (span.dt * start.slope) ** 2 + start.spread**2 * jnp.abs(span.dt)
    )
    share = jnp.clip(jnp.sqrt(moved / jnp.where(typical > 0, typical, 1)), 0.25, 1)
    ratio = settings.size(heun - predicted, larger(x, heun)) / share
    return Trial(heun, _Start(slope, spread, ~start.known), ratio, start.known)


def _start_adaptive_sde(problem, x, inputs):
    zero = jnp.zeros((), jnp.int32)
    longest = jnp.full_like(inputs.start, jnp.inf)
    return State((), longest, zero, zero, zero, jnp.zeros((), bool))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def forward_only(name: str, cure: str, x: PyTree) -> PyTree:
    """The identity, without a reverse-mode derivative.

    Args:
      name: The solver's name, for the message.
      cure: What to use in its place, for the message.
      x: A pytree of arrays.

    Returns:
      x.

    Raises:
      TypeError: In use, where a reverse-mode derivative is taken.
    """
    return x


@forward_only.defjvp
def _forward_only_jvp(name, cure, primals, tangents):
    # A primitive, because `custom_derivatives.linear_call` cannot be batched, and
    # `jax.jacfwd` batches a jvp.
    leaves, structure = jax.tree.flatten(tangents[0])
    marked = untransposed_p.bind(*leaves, name=name, cure=cure)
    return primals[0], jax.tree.unflatten(structure, marked)


untransposed_p = Primitive("untransposed")
"""The identity of tangents, whose transposition raises TypeError."""

untransposed_p.multiple_results = True
untransposed_p.def_impl(lambda *tangents, **_: list(tangents))
untransposed_p.def_abstract_eval(lambda *tangents, **_: list(tangents))
mlir.register_lowering(
    untransposed_p, mlir.lower_fun(lambda *tangents, **_: tangents, True)
)


def _batched(tangents, axes, **settings):
    return untransposed_p.bind(*tangents, **settings), axes


batching.primitive_batchers[untransposed_p] = _batched


def _raise_on_transpose(cotangents, *tangents, name, cure):
    raise TypeError(
        f"the {name} solver has no reverse-mode derivative: use jax.jvp, or {cure}"
    )


ad.deflinear2(untransposed_p, _raise_on_transpose)
