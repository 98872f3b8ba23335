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
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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

_HALVINGS = 30
"""How often an interval between two grid times can be halved."""

_PENDING = 3
"""How many nested steps can wait for the shorter steps that they are averaged with."""

_UNRESOLVED = 2.0
"""The error ratio from which a step has no weight.

At most 2, so that weight times error stays within the tolerance.
"""


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


class _State(NamedTuple):
    memory: Any  # the slope at x for an ODE, () for an SDE
    step: Any  # (), the longest |dt| worth a trial
    accepted: Any
    rejected: Any
    evaluations: Any
    exhausted: Any


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

    JAX cannot reverse a `while_loop`: for derivatives use `jax.jvp` or a solver of
    fixed steps.

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
        ratio = settings.size(error, _larger(x, x_new))
        return _Trial((x_new, slope_new), (), ratio, True)

    def advance(_):
        interval = _Interval(inputs.start, inputs.end, settings.max_steps)
        point = x, state.memory
        (x_end, slope), after = _advance(
            trial, _FIFTH_ORDER, interval, point, (), state
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
    return _State(slope, step, zero, zero, zero + 1, jnp.zeros((), bool))


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
        interval = _Interval(inputs.start, inputs.end, settings.max_steps)
        start = _Start(jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros((), bool))
        end, after = _advance(trial, _STOCHASTIC, interval, x, start, state)
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
    ratio = settings.size(heun - predicted, _larger(x, heun)) / share
    return _Trial(heun, _Start(slope, spread, ~start.known), ratio, start.known)


def _start_adaptive_sde(problem, x, inputs):
    zero = jnp.zeros((), jnp.int32)
    longest = jnp.full_like(inputs.start, jnp.inf)
    return _State((), longest, zero, zero, zero, jnp.zeros((), bool))


# -------------------------------------------------------------- the choice of steps


class _Control(NamedTuple):
    order: float  # of the error ratio in the step size
    margin: float  # no trial where it is predicted to miss _UNRESOLVED by this factor
    cost: int  # evaluations per turn of the loop


_FIFTH_ORDER, _STOCHASTIC = _Control(5.0, 4.0, 6), _Control(1.5, math.inf, 1)


class _Interval(NamedTuple):
    """The interval between two grid times, and the most steps of the whole run."""

    start: Any
    end: Any
    max_steps: int


class _Span(NamedTuple):
    """A step: the index-th of 2^depth equal parts of an interval."""

    now: Any
    end: Any
    dt: Any  # negative downwards
    depth: Any
    index: Any


class _Trial(NamedTuple):
    """A step that was tried."""

    point: Any  # where it leads
    start: Any  # what is remembered of its start
    ratio: Any  # its error ratio
    complete: Any  # False where only the start was evaluated


class _Waiting(NamedTuple):
    """Nested steps with a weight between 0 and 1.

    They wait for the shorter steps to their end.
    """

    points: Any
    weights: Any
    ends: Any  # in units of 2^-_HALVINGS of the interval
    count: Any


class _IntervalState(NamedTuple):
    """The state of the loop over the steps of one interval."""

    point: Any
    start: Any  # what is remembered of the start of the next step
    n: Any  # units of 2^-_HALVINGS of the interval that are behind
    depth: Any  # wanted for the next step
    waiting: _Waiting
    state: _State


def _advance(trial: Callable, control, interval, point, start, state):
    """(point, state) at the end of an interval, from `point` at its start.

    trial: (point, start, span) -> _Trial. start: what is remembered at the beginning,
    in the structure of _Trial.start.
    """
    t, length = interval.start, interval.end - interval.start
    whole = jnp.uint32(1 << _HALVINGS)
    depth = jnp.ceil(jnp.log2(jnp.abs(length) / state.step))
    depth = jnp.clip(depth, 0, _HALVINGS).astype(jnp.int32)
    waiting = _nothing_waiting(point, t.dtype)
    run = jax.lax.while_loop(
        lambda run: (run.n < whole) & ~run.state.exhausted,
        functools.partial(_turn, trial, control, interval),
        _IntervalState(point, start, jnp.zeros_like(whole), depth, waiting, state),
    )
    if math.isinf(control.margin):
        step = jnp.full_like(t, jnp.inf)
    else:
        step = jnp.abs(length) * 2.0 ** -run.depth.astype(t.dtype)
    return run.point, run.state._replace(step=step)


def _turn(trial, control, interval, run):
    """One trial, and what follows from its error."""
    whole = jnp.uint32(1 << _HALVINGS)
    span, units = _next_span(interval, run)
    tried = trial(run.point, run.start, span)
    ratio = jax.lax.stop_gradient(tried.ratio)
    weight = jnp.clip((_UNRESOLVED - ratio) / (_UNRESOLVED - 1), 0, 1)
    weight = jnp.where(jnp.isnan(ratio), 0, weight)
    accept, reject = tried.complete & (weight == 1), tried.complete & (weight < 1)

    waits = reject & (weight > 0)
    waiting = _push(run.waiting, waits, tried.point, weight, run.n + units)
    # After a rejection the shorter step begins where the rejected one did.
    start = _where(reject, run.start, tried.start)
    n = jnp.where(accept, run.n + units, run.n)
    point, waiting = _pop(waiting, _where(accept, tried.point, run.point), n)

    spared = _halvings_spared(control, ratio)
    deeper = jnp.where(reject, span.depth + jnp.maximum(1, -spared), run.depth)
    depth = jnp.maximum(jnp.where(accept, span.depth - spared, deeper), 0)
    accepted = run.state.accepted + accept
    rejected = run.state.rejected + reject
    out_of_steps = (accepted + rejected >= interval.max_steps) & (n < whole)
    state = run.state._replace(
        accepted=accepted,
        rejected=rejected,
        evaluations=run.state.evaluations + control.cost,
        exhausted=(depth > _HALVINGS) | out_of_steps,
    )
    return _IntervalState(point, start, n, depth, waiting, state)


def _next_span(interval, run):
    """The step to try, and its length in units of 2^-_HALVINGS of the interval."""
    t, s = interval.start, interval.end
    length, whole = s - t, jnp.uint32(1 << _HALVINGS)

    def time(n):
        # From the nearer end, so that both ends are exact.
        unit = length * 2.0**-_HALVINGS
        return jnp.where(
            n <= whole // 2,
            t + unit * n.astype(t.dtype),
            s - unit * (whole - n).astype(t.dtype),
        )

    # The first depth from the wanted one on at which a part begins here.
    depth = jnp.maximum(run.depth, _HALVINGS - _trailing_zeros(run.n))
    units = whole >> depth.astype(jnp.uint32)
    dt = length * (units.astype(t.dtype) * 2.0**-_HALVINGS)
    now, end = time(run.n), time(run.n + units)
    return _Span(now, end, dt, depth, run.n // units), units


def _halvings_spared(control, ratio):
    """Halvings by which the next step may be longer, from the error ratio of this one.

    Negative for a shorter one.
    """
    if math.isinf(control.margin):
        return jnp.full((), _HALVINGS, jnp.int32)
    spared = jnp.floor(jnp.log2(control.margin * _UNRESOLVED / ratio) / control.order)
    return jnp.where(jnp.isnan(ratio), -2, jnp.clip(spared, -4, 4)).astype(jnp.int32)


def _trailing_zeros(n):
    """Trailing zero bits of an unsigned integer up to 2^_HALVINGS. For 0 _HALVINGS."""
    lowest = n & (~n + jnp.uint32(1))
    return jnp.where(n == 0, _HALVINGS, 31 - jax.lax.clz(lowest).astype(jnp.int32))


def _nothing_waiting(point, dtype):
    points = jax.tree.map(
        lambda leaf: jnp.zeros((_PENDING, *leaf.shape), leaf.dtype), point
    )
    return _Waiting(
        points,
        jnp.zeros(_PENDING, dtype),
        jnp.zeros(_PENDING, jnp.uint32),
        jnp.zeros((), jnp.int32),
    )


def _push(waiting, condition, point, weight, end):
    """`waiting` with one more step on top, if the condition holds and there is room."""
    # (_PENDING,), all False where there is no room
    here = condition & (jnp.arange(_PENDING) == waiting.count)

    def put(stack, leaf):
        return jnp.where(here.reshape(-1, *[1] * jnp.ndim(leaf)), leaf, stack)

    points = jax.tree.map(put, waiting.points, point)
    return _Waiting(
        points,
        put(waiting.weights, weight),
        put(waiting.ends, end),
        waiting.count + jnp.any(here),
    )


def _pop(waiting, point, n):
    """(point, waiting) after averaging with the steps that end after n units.

    The innermost come first.
    """
    count = waiting.count
    for i in reversed(range(_PENDING)):
        ends = (i < count) & (waiting.ends[i] == n)
        weight = waiting.weights[i]
        mean = jax.tree.map(
            lambda stack, leaf: weight * stack[i] + (1 - weight) * leaf,  # noqa: B023
            waiting.points,
            point,
        )
        point, count = _where(ends, mean, point), count - ends
    return point, waiting._replace(count=count)


def _where(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _larger(a, b):
    return jax.tree.map(lambda a, b: jnp.maximum(jnp.abs(a), jnp.abs(b)), a, b)


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
    def no_transpose(_, cotangent):
        raise TypeError(
            f"the {name} solver has no reverse-mode derivative: use jax.jvp, or {cure}"
        )

    return primals[0], jax.custom_derivatives.linear_call(
        lambda _, v: v, no_transpose, (), tangents[0]
    )
