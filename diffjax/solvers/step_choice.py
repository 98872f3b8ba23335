"""The choice of steps between two times of a grid, for adaptive solvers."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = [
    "FIFTH_ORDER",
    "STOCHASTIC",
    "Interval",
    "State",
    "Trial",
    "advance_interval",
    "larger",
]

_HALVINGS = 30
"""The most halvings of an interval between two grid times."""

_PENDING = 3
"""The most nested steps that wait for the shorter ones they are averaged with."""

_UNRESOLVED = 2.0
"""The error ratio from which a step has no weight.

At most 2, so that weight times error stays within the tolerance.
"""


class State(NamedTuple):
    """The state of a run between two intervals."""

    memory: Any  # the slope at x for an ODE, () for an SDE
    step: Any  # (), the longest |dt| worth a trial
    accepted: Any
    rejected: Any
    evaluations: Any
    exhausted: Any


class _Control(NamedTuple):
    order: float  # of the error ratio in the step size
    margin: float  # no trial where it is predicted to miss _UNRESOLVED by this factor
    cost: int  # evaluations per turn of the loop


FIFTH_ORDER, STOCHASTIC = _Control(5.0, 4.0, 6), _Control(1.5, math.inf, 1)


class Interval(NamedTuple):
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


class Trial(NamedTuple):
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
    state: State


def advance_interval(trial: Callable, interval, point, state, *, control, start):
    """Walk from the start of an interval to its end.

    Args:
      trial: (point, start, span) -> Trial.
      control: `FIFTH_ORDER` or `STOCHASTIC`.
      interval: The interval.
      point: Where the walk starts.
      start: What is remembered of the start, in the structure of Trial.start.
      state: The state of the run so far.

    Returns:
      (point, state) at the end of the interval.
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


def larger(a, b):
    """The larger absolute value of two pytrees, entry by entry.

    Args:
      a: A pytree of arrays.
      b: Another of its structure.

    Returns:
      max(|a|, |b|).
    """
    return jax.tree.map(lambda a, b: jnp.maximum(jnp.abs(a), jnp.abs(b)), a, b)
