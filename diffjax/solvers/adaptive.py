"""Methods that choose their own steps, each example its own: an embedded Runge–Kutta method, and one for SDEs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checks
from .base import Info, Solver, factory, intervals, needs, unless_zero, weighted_sum

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

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


class _State(NamedTuple):
    memory: Any  # what an accepted step leaves to the next: its last slope, () for an SDE
    step: Any  # (), proposed |dt|
    accepted: Any
    rejected: Any
    evaluations: Any
    exhausted: Any


@factory
def adaptive(rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 4096) -> Solver:
    """Dormand–Prince 5(4) with local extrapolation; every grid time is hit, an inner loop stepping between them.

    A step is accepted where the root mean square of error / (atol + rtol max(|x|, |x_new|)) is at most 1. Under `vmap`
    each example has its own step sizes. max_steps bounds attempted steps in a whole run: where it is hit, or the step
    falls below the resolution of t, the result is NaN, `info=True` says `exhausted`, and a call outside `jit` warns. A
    grid of two times suffices. Not reverse-differentiable (JAX cannot reverse a `while_loop`): use `jax.jvp` or a
    fixed-step solver. Raises ValueError unless rtol ≥ 0, atol > 0, max_steps ≥ 1. Dormand & Prince 1980; Hairer et al.
    1993, section II.4.
    """
    checks.non_negative("rtol", rtol)
    checks.positive("atol", atol)
    checks.integer("max_steps", max_steps, minimum=1)

    def prepare(problem, ts):
        return intervals(problem.velocity, ts, problem.zero_end), ts[:-1], ts[1:]

    def init(problem, x, inputs):
        interval, t, s = inputs
        slope = problem.velocity(x, t)
        first = 0.01 * _size(x, x, rtol, atol) / jnp.maximum(_size(slope, x, rtol, atol), 1e-10)
        zero = jnp.zeros((), jnp.int32)
        step = jnp.clip(first, 1e-6 * jnp.abs(s - t), jnp.abs(s - t))
        return _State(slope, step, zero, zero, zero + 1, jnp.zeros((), bool))

    def step(problem, inputs, draw, x, state):
        interval, t, s = inputs
        end = weighted_sum((interval.keep, x), (interval.gain, state.memory))

        def trial(x, now, dt, slope):
            x_new, slope_new, error = _trial(problem.velocity, x, now, dt, slope)
            return x_new, slope_new, _size(error, _larger(x, x_new), rtol, atol)

        def advance(_):
            return _advance(trial, _FIFTH_ORDER, x, t, s, state, max_steps)

        return unless_zero(interval.at_zero, advance, (end, state))

    return Solver("adaptive", "velocity", None, False, lambda grid: None, prepare, step, init, _report)


@factory
def adaptive_sde(rtol: float = 1e-2, atol: float = 1e-2, max_steps: int = 4096) -> Solver:
    """Stochastic Heun with steps by its difference from Euler–Maruyama; every grid time is hit.

    A step is accepted where the root mean square of difference / (atol + rtol max(|x|, |x_new|)) is at most 1, and the
    next is 0.9 error^{−0.9} times as long. Both results take their increment from one Brownian path, of which a
    rejected step has revealed the end: a shorter one follows the same path, so that rejections leave the law alone. Two
    evaluations an attempt. max_steps, `info=True`, derivatives as in `adaptive`; on a step to 0 D is returned. Rounding
    may change which steps are accepted: a sample is the same in other batches to the tolerance only. Raises ValueError
    unless rtol ≥ 0, atol > 0, max_steps ≥ 1. Jolicoeur-Martineau et al. 2021, Algorithm 1, without the
    memory of x′ in its tolerance and with the path kept.
    """
    checks.non_negative("rtol", rtol)
    checks.positive("atol", atol)
    checks.integer("max_steps", max_steps, minimum=1)

    def prepare(problem, ts):
        return intervals(problem.sde.drift, ts, problem.zero_end), ts[:-1], ts[1:]

    def init(problem, x, inputs):
        _, t, s = inputs
        zero = jnp.zeros((), jnp.int32)
        return _State((), 0.01 * jnp.abs(s - t), zero, zero, zero, jnp.zeros((), bool))

    def step(problem, inputs, draw, x, state):
        interval, t, s = inputs
        drift, diffusion = problem.sde.drift, problem.sde.diffusion
        path = draw.path(t, s)

        def trial(x, now, dt, _):
            increment = jnp.sqrt(jnp.abs(dt)) * path.increment(now, now + dt)[0].astype(x.dtype)
            slope, before = drift(x, now), diffusion(x, now)
            euler = x + dt * slope + before * increment
            mean_slope = 0.5 * (slope + drift(euler, now + dt))
            heun = x + dt * mean_slope + 0.5 * (before + diffusion(euler, now + dt)) * increment
            return heun, (), _size(heun - euler, _larger(x, heun), rtol, atol)

        def advance(_):
            return _advance(trial, _STOCHASTIC, x, t, s, state, max_steps)

        def to_zero(_):
            data = interval.keep * x + interval.gain * drift(x, t)
            return data, state._replace(evaluations=state.evaluations + 1)

        if interval.at_zero is None:
            return advance(None)
        return jax.lax.cond(interval.at_zero, to_zero, advance, None)

    refuse = needs("adaptive_sde", finite_start=True)
    return Solver("adaptive_sde", "sde", None, True, lambda grid: None, prepare, step, init, _report, refuse)


class _Control(NamedTuple):
    power: float  # of the error in the next step's length
    cost: int  # evaluations an attempt


_FIFTH_ORDER, _STOCHASTIC = _Control(0.2, 6), _Control(0.9, 2)


def _larger(a, b):
    return jax.tree.map(lambda a, b: jnp.maximum(jnp.abs(a), jnp.abs(b)), a, b)


def _advance(trial, control, x, t, s, state, max_steps):
    """(x, state) at s from x at t by steps of the controller's choice.

    trial(x, now, dt, memory) -> (x, memory, error ratio) after a step, accepted where the ratio is at most 1.
    """
    direction = jnp.sign(s - t)

    def unfinished(carry):
        _, now, state = carry
        return (now != s) & ~state.exhausted

    def attempt(carry):
        x, now, state = carry
        left = jnp.abs(s - now)
        last = state.step >= left
        dt = direction * jnp.minimum(state.step, left)
        x_new, memory, ratio = trial(x, now, dt, state.memory)
        accept = ratio <= 1  # False for NaN
        factor = jnp.where(jnp.isfinite(ratio), _SAFETY * jnp.maximum(ratio, 1e-10) ** -control.power, _SHRINK)
        size = jnp.abs(dt) * jnp.clip(factor, _SHRINK, jnp.where(accept, _GROW, 1.0))
        size = jnp.where(
            accept & last, jnp.maximum(size, state.step), size
        )  # a step cut short says nothing of the next
        accepted, rejected = state.accepted + accept, state.rejected + ~accept
        stuck = ~accept & ((now + direction * size == now) | jnp.isnan(size))
        x = jax.tree.map(lambda new, old: jnp.where(accept, new, old), x_new, x)
        memory = jax.tree.map(lambda new, old: jnp.where(accept, new, old), memory, state.memory)
        now = jnp.where(accept, jnp.where(last, s, now + dt), now)
        exhausted = stuck | ((accepted + rejected >= max_steps) & (now != s))
        return x, now, _State(memory, size, accepted, rejected, state.evaluations + control.cost, exhausted)

    x, _, state = jax.lax.while_loop(unfinished, attempt, (x, t, state))
    return _forward_only(x), state


def _trial(velocity, x, t, dt, slope):
    """x at t + dt by the fifth-order formula, the velocity there, and its difference from the fourth-order one."""
    slopes = [slope]
    inner = x
    for node, row in zip(_NODES, _MATRIX, strict=True):
        inner = weighted_sum((1, x), *((dt * a, k) for a, k in zip(row, slopes, strict=True) if a))
        slopes.append(velocity(inner, t + node * dt))
    return inner, slopes[-1], weighted_sum(*((dt * e, k) for e, k in zip(_ERROR, slopes, strict=True) if e))


def _size(value, scale, rtol, atol):
    """Root mean square of value / (atol + rtol |scale|) over all entries of a pytree, shape ()."""
    parts = jax.tree.map(lambda v, x: jnp.sum((v / (atol + rtol * jnp.abs(x))) ** 2), value, scale)
    count = sum(leaf.size for leaf in jax.tree.leaves(value))
    return jnp.sqrt(sum(jax.tree.leaves(parts)) / count)


def _report(state):
    return Info(state.evaluations, state.accepted, state.rejected, state.exhausted)


@jax.custom_jvp
def _forward_only(x):
    """x, with an error that says what to do where a reverse-mode derivative meets it."""
    return x


@_forward_only.defjvp
def _forward_only_jvp(primals, tangents):
    return primals[0], jax.custom_derivatives.linear_call(lambda _, v: v, _refuse_reverse, (), tangents[0])


def _refuse_reverse(_, cotangent):
    raise TypeError(
        "the adaptive solver has no reverse-mode derivative: use jax.jvp, or a fixed-step solver such as rk4()"
    )
