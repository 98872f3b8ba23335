"""Solvers that choose their own steps, for each example separately: an embedded Runge–Kutta method, and one for SDEs.

Both halve the interval between two grid times until a step meets the tolerance. All times are dyadic fractions of the
interval, so that a Brownian path is read at the same times whatever the rounding of the states. A step that misses the
tolerance by less than a factor of 2 is not thrown away: the result is a weighted mean of it and of the shorter steps
that replace it, with a weight that falls from 1 to 0. The result is therefore a continuous function of the states, and
two programs that round differently, such as two batch sizes, agree to rounding and not only to the tolerance.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checks
from ..types import PyTree
from .base import (
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

# Dormand & Prince 1980, RK5(4)7M: the last stage of an accepted step is the first of the next.
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

_LEVELS = 30
"""How often an interval between two grid times can be halved."""

_PENDING = 3
"""How many nested steps can wait for the shorter steps that they are averaged with."""

_UNRESOLVED = 2.0
"""The error ratio from which a step has no weight. At most 2, so that weight times error stays within the tolerance."""


class _State(NamedTuple):
    memory: Any  # the slope at x for an ODE, () for an SDE
    step: Any  # (), the longest |dt| worth a trial
    accepted: Any
    rejected: Any
    evaluations: Any
    exhausted: Any


@factory
def adaptive(rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 4096) -> Solver:
    """The Dormand–Prince method of order 5 with adaptive steps (Dormand & Prince 1980; Hairer et al. 1993, II.4).

    Every grid time is hit, and a grid of two times suffices. A step is accepted where the root mean square of
    error / (atol + rtol max(|x|, |x_new|)) is at most 1. Each example has its own step sizes, which are halvings of the
    grid's intervals. Where the ratio lies between 1 and 2, the step is averaged with the two halves that replace it.
    The result is then a continuous function of the start, and samples agree to rounding at any batch size.

    JAX cannot reverse a `while_loop`: for derivatives use `jax.jvp` or a solver of fixed steps.

    Args:
      rtol: Relative tolerance, 0 or more.
      atol: Absolute tolerance, positive.
      max_steps: Most steps that are tried in a whole run. Where they are used up, or an interval was halved 30 times,
        the result is NaN, `info=True` reports `exhausted`, and a call outside `jit` warns.

    Returns:
      A solver. `info=True` reports its evaluations.

    Raises:
      ValueError: If an argument is out of range.
    """
    checks.non_negative("rtol", rtol)
    checks.positive("atol", atol)
    checks.integer("max_steps", max_steps, minimum=1)

    def prepare(problem, ts):
        steps = steps_along(problem.velocity, ts, problem.zero_end)
        euler = euler_step(problem.velocity, steps)
        # ends of the grid itself: XLA would fuse the choice of another end into s − t
        # and round it otherwise when a run is taken in parts
        return steps._replace(end=ts[1:]), euler

    def init(problem, x, inputs):
        (t, s, _), _ = inputs
        slope = problem.velocity(x, t)
        # A step in which x changes by its own size: too long as a rule, and shortened by rejections.
        step = _size(x, x, rtol, atol) / jnp.maximum(_size(slope, x, rtol, atol), 1e-10)
        zero = jnp.zeros((), jnp.int32)
        step = jnp.clip(step, 1e-6 * jnp.abs(s - t), jnp.abs(s - t))
        return _State(slope, step, zero, zero, zero + 1, jnp.zeros((), bool))

    def step(problem, inputs, draw, x, state):
        (t, s, at_zero), euler = inputs
        end = euler(x, state.memory)

        def trial(point, _, span):
            x, slope = point
            x_new, slope_new, error = _dormand_prince(problem.velocity, x, span, slope)
            return _Trial(
                (x_new, slope_new),
                (),
                _size(error, _larger(x, x_new), rtol, atol),
                True,
            )

        def advance(_):
            (x_end, slope), after = _advance(
                trial, _FIFTH_ORDER, (x, state.memory), (), t, s, state, max_steps
            )
            x_end = forward_only("adaptive", "a fixed-step solver such as rk4()", x_end)
            return x_end, after._replace(memory=slope)

        return unless_zero(at_zero, advance, (end, state))

    return Solver(
        "adaptive",
        "velocity",
        None,
        False,
        lambda steps, to_zero=False: None,
        prepare,
        step,
        init,
        _report,
    )


@factory
def adaptive_sde(
    rtol: float = 1e-2, atol: float = 1e-2, max_steps: int = 4096
) -> Solver:
    """Stochastic Heun with adaptive steps (Jolicoeur-Martineau et al. 2021, Algorithm 1, for methods and tolerance).

    The error of a step is its difference from Euler–Maruyama's, measured as in `adaptive`. Where drift and noise happen
    to cancel, so that x moves less than is typical, the difference is divided by that share (¼ at least), as it would
    hide the error of a long step. A step that is not accepted is replaced by its two halves on the same Brownian path,
    so that rejections leave the distribution alone. Where the ratio lies between 1 and 2 both are averaged. A sample
    depends on rounding, hence on the batch size, about as little as that of a solver of fixed steps.

    A Brownian path given as noise is read at times in floating point, and its own rounding comes on top of that.
    A step to 0 returns D. For derivatives see `adaptive`.

    Args:
      rtol: Relative tolerance, 0 or more.
      atol: Absolute tolerance, positive.
      max_steps: As in `adaptive`.

    Returns:
      A solver with two evaluations per accepted step and one per rejected one.

    Raises:
      ValueError: If an argument is out of range.
    """
    checks.non_negative("rtol", rtol)
    checks.positive("atol", atol)
    checks.integer("max_steps", max_steps, minimum=1)

    def prepare(problem, ts):
        steps = steps_along(problem.sde.drift, ts, problem.zero_end)
        euler = euler_step(problem.sde.drift, steps)
        # ends of the grid itself: XLA would fuse the choice of another end into s − t
        # and round it otherwise when a run is taken in parts
        return steps._replace(end=ts[1:]), euler

    def init(problem, x, inputs):
        (t, s, _), _ = inputs
        zero = jnp.zeros((), jnp.int32)
        return _State(
            (), jnp.full_like(t, jnp.inf), zero, zero, zero, jnp.zeros((), bool)
        )

    def step(problem, inputs, draw, x, state):
        (t, s, at_zero), euler = inputs
        drift, diffusion = problem.sde.drift, problem.sde.diffusion

        def trial(x, start, span):
            # One evaluation per turn of the loop, first at the start of a step (`known` false), then at Euler's end.
            # A rejected step leaves the first to the shorter one that replaces it.
            z = draw.part(span.now, span.end, span.level, span.index).astype(x.dtype)
            increment = jnp.sqrt(jnp.abs(span.dt)) * z
            predicted = x + span.dt * start.slope + start.spread * increment
            at, time = (
                jnp.where(start.known, predicted, x),
                jnp.where(start.known, span.end, span.now),
            )
            slope, spread = (
                drift(at, time),
                jnp.broadcast_to(diffusion(at, time), x.shape),
            )
            heun = x + 0.5 * (
                span.dt * (start.slope + slope) + (start.spread + spread) * increment
            )
            moved = jnp.mean((predicted - x) ** 2)
            typical = jnp.mean(
                (span.dt * start.slope) ** 2 + start.spread**2 * jnp.abs(span.dt)
            )
            share = jnp.clip(
                jnp.sqrt(moved / jnp.where(typical > 0, typical, 1)), 0.25, 1
            )
            ratio = _size(heun - predicted, _larger(x, heun), rtol, atol) / share
            return _Trial(heun, _Start(slope, spread, ~start.known), ratio, start.known)

        def advance(_):
            start = _Start(jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros((), bool))
            end, after = _advance(trial, _STOCHASTIC, x, start, t, s, state, max_steps)
            return forward_only(
                "adaptive_sde", "a fixed-step solver such as stochastic_heun()", end
            ), after

        def to_zero(_):
            return euler(x, drift(x, t)), state._replace(
                evaluations=state.evaluations + 1
            )

        if at_zero is None:
            return advance(None)
        return jax.lax.cond(at_zero, to_zero, advance, None)

    check_grid = needs("adaptive_sde", finite_start=True, drift=True)
    return Solver(
        "adaptive_sde",
        "sde",
        None,
        True,
        lambda steps, to_zero=False: None,
        prepare,
        step,
        init,
        _report,
        traits=Traits(check_grid),
    )


class _Start(NamedTuple):
    """Drift and diffusion at the start of a step, and whether they have been evaluated."""

    slope: Any
    spread: Any
    known: Any


# ------------------------------------------------------------------------------------------- the choice of steps


class _Control(NamedTuple):
    order: float  # of the error ratio in the step size
    margin: float  # a step is not tried where it is predicted to miss _UNRESOLVED by this factor
    cost: int  # evaluations per turn of the loop


_FIFTH_ORDER, _STOCHASTIC = _Control(5.0, 4.0, 6), _Control(1.5, math.inf, 1)


class _Span(NamedTuple):
    """A step: the index-th of 2^level equal parts of an interval between two grid times. dt is negative downwards."""

    now: Any
    end: Any
    dt: Any
    level: Any
    index: Any


class _Trial(NamedTuple):
    """A step that was tried: where it leads, what is remembered of its start, its error ratio.

    complete: False where only the start was evaluated.
    """

    point: Any
    start: Any
    ratio: Any
    complete: Any


class _Waiting(NamedTuple):
    """Nested steps with a weight between 0 and 1 that wait for the shorter steps to their end."""

    points: Any
    weights: Any
    ends: Any  # in units of 2^-_LEVELS of the interval
    count: Any


def _advance(trial, control, point, start, t, s, state, max_steps):
    """(point, state) at s from `point` at t.

    trial(point, start, span) -> _Trial. start: what is remembered at the beginning, in the structure of _Trial.start.
    """
    length, whole = s - t, jnp.uint32(1 << _LEVELS)

    def time(n):
        """The time after n units, measured from the nearer end so that both ends are exact."""
        unit = length * 2.0**-_LEVELS
        return jnp.where(
            n <= whole // 2,
            t + unit * n.astype(t.dtype),
            s - unit * (whole - n).astype(t.dtype),
        )

    def unfinished(carry):
        _, _, n, _, _, state = carry
        return (n < whole) & ~state.exhausted

    def turn(carry):
        point, start, n, wanted, waiting, state = carry
        # The first of the levels wanted at which a part begins here.
        level = jnp.maximum(wanted, _LEVELS - _trailing_zeros(n))
        units = whole >> level.astype(jnp.uint32)
        dt = length * (units.astype(t.dtype) * 2.0**-_LEVELS)
        span = _Span(time(n), time(n + units), dt, level, n // units)
        tried = trial(point, start, span)
        ratio = jax.lax.stop_gradient(tried.ratio)
        weight = jnp.where(
            jnp.isnan(ratio),
            0,
            jnp.clip((_UNRESOLVED - ratio) / (_UNRESOLVED - 1), 0, 1),
        )
        accept, reject = tried.complete & (weight == 1), tried.complete & (weight < 1)

        waiting = _push(waiting, reject & (weight > 0), tried.point, weight, n + units)
        start = _where(
            reject, start, tried.start
        )  # the shorter step begins where the rejected one did
        n = jnp.where(accept, n + units, n)
        point, waiting = _pop(waiting, _where(accept, tried.point, point), n)

        gain = _halvings_spared(control, ratio)
        wanted = jnp.where(
            accept,
            level - gain,
            jnp.where(reject, level + jnp.maximum(1, -gain), wanted),
        )
        wanted = jnp.maximum(wanted, 0)
        accepted, rejected = state.accepted + accept, state.rejected + reject
        exhausted = (wanted > _LEVELS) | (
            (accepted + rejected >= max_steps) & (n < whole)
        )
        counts = {
            "accepted": accepted,
            "rejected": rejected,
            "evaluations": state.evaluations + control.cost,
        }
        return (
            point,
            start,
            n,
            wanted,
            waiting,
            state._replace(**counts, exhausted=exhausted),
        )

    wanted = jnp.clip(
        jnp.ceil(jnp.log2(jnp.abs(length) / state.step)), 0, _LEVELS
    ).astype(jnp.int32)
    carry = (
        point,
        start,
        jnp.zeros_like(whole),
        wanted,
        _nothing_waiting(point, t.dtype),
        state,
    )
    point, _, _, wanted, _, state = jax.lax.while_loop(unfinished, turn, carry)
    step = (
        jnp.full_like(t, jnp.inf)
        if math.isinf(control.margin)
        else jnp.abs(length) * 2.0 ** -wanted.astype(t.dtype)
    )
    return point, state._replace(step=step)


def _halvings_spared(control, ratio):
    """The levels by which the next step may be longer than one of this error ratio; negative for a shorter one."""
    if math.isinf(control.margin):
        return jnp.full((), _LEVELS, jnp.int32)
    levels = jnp.floor(jnp.log2(control.margin * _UNRESOLVED / ratio) / control.order)
    return jnp.where(jnp.isnan(ratio), -2, jnp.clip(levels, -4, 4)).astype(jnp.int32)


def _trailing_zeros(n):
    """Of an unsigned integer up to 2^_LEVELS; _LEVELS for 0."""
    lowest = n & (~n + jnp.uint32(1))
    return jnp.where(n == 0, _LEVELS, 31 - jax.lax.clz(lowest).astype(jnp.int32))


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
    here = condition & (
        jnp.arange(_PENDING) == waiting.count
    )  # (_PENDING,), all False where there is no room

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
    """(point, waiting) after averaging with the steps that end after n units, the innermost first."""
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


def _dormand_prince(velocity, x, span, slope):
    """x at the end of a step by the fifth-order formula, the velocity there, and its difference from the fourth-order
    one."""
    slopes, dt = [slope], span.dt
    inner = x
    for node, row in zip(_NODES, _MATRIX, strict=True):
        inner = weighted_sum(
            (1, x), *((dt * a, k) for a, k in zip(row, slopes, strict=True) if a)
        )
        # From the nearer end, so that the last stages stand at the end itself and none beyond it.
        time = span.now + node * dt if node <= 0.5 else span.end - (1 - node) * dt
        slopes.append(velocity(inner, time))
    return (
        inner,
        slopes[-1],
        weighted_sum(*((dt * e, k) for e, k in zip(_ERROR, slopes, strict=True) if e)),
    )


def _size(value, scale, rtol, atol):
    """Root mean square of value / (atol + rtol |scale|) over all entries of a pytree, shape ()."""
    parts = jax.tree.map(
        lambda v, x: jnp.sum((v / (atol + rtol * jnp.abs(x))) ** 2), value, scale
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(value))
    return jnp.sqrt(sum(jax.tree.leaves(parts)) / count)


def _report(state):
    return Info(state.evaluations, state.accepted, state.rejected, state.exhausted)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def forward_only(name: str, cure: str, x: PyTree) -> PyTree:
    """x, with an error that names the solver and the cure where a reverse-mode derivative meets it."""
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
