"""An embedded Runge–Kutta method that chooses its own steps, for each example its own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checks
from .base import Info, Solver, factory, intervals, unless_zero, weighted_sum

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
    slope: Any  # velocity(x, t): the first stage, kept from the last accepted step
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
        return intervals(problem.velocity, ts), ts[:-1], ts[1:]

    def init(problem, x, inputs):
        interval, t, s = inputs
        slope = problem.velocity(x, t)
        first = 0.01 * _size(x, x, rtol, atol) / jnp.maximum(_size(slope, x, rtol, atol), 1e-10)
        zero = jnp.zeros((), jnp.int32)
        step = jnp.clip(first, 1e-6 * jnp.abs(s - t), jnp.abs(s - t))
        return _State(slope, step, zero, zero, zero + 1, jnp.zeros((), bool))

    def step(problem, inputs, draw, x, state):
        interval, t, s = inputs
        end = weighted_sum((interval.keep, x), (interval.gain, state.slope))

        def advance(_):
            return _advance(problem.velocity, x, t, s, state, rtol, atol, max_steps)

        return unless_zero(interval, advance, (end, state))

    return Solver("adaptive", "velocity", None, False, lambda grid: None, prepare, step, init, _report)


def _advance(velocity, x, t, s, state, rtol, atol, max_steps):
    """(x, state) at s from x at t by steps of the controller's choice."""
    direction = jnp.sign(s - t)

    def unfinished(carry):
        _, now, state = carry
        return (now != s) & ~state.exhausted

    def attempt(carry):
        x, now, state = carry
        left = jnp.abs(s - now)
        last = state.step >= left
        dt = direction * jnp.minimum(state.step, left)
        x_new, slope_new, error = _trial(velocity, x, now, dt, state.slope)
        ratio = _size(error, jax.tree.map(lambda a, b: jnp.maximum(jnp.abs(a), jnp.abs(b)), x, x_new), rtol, atol)
        accept = ratio <= 1  # False for NaN
        factor = jnp.where(jnp.isfinite(ratio), _SAFETY * jnp.maximum(ratio, 1e-10) ** -0.2, _SHRINK)
        size = jnp.abs(dt) * jnp.clip(factor, _SHRINK, jnp.where(accept, _GROW, 1.0))
        size = jnp.where(
            accept & last, jnp.maximum(size, state.step), size
        )  # a step cut short says nothing of the next
        accepted, rejected = state.accepted + accept, state.rejected + ~accept
        stuck = ~accept & (now + direction * size == now)
        x = jax.tree.map(lambda new, old: jnp.where(accept, new, old), x_new, x)
        slope = jax.tree.map(lambda new, old: jnp.where(accept, new, old), slope_new, state.slope)
        now = jnp.where(accept, jnp.where(last, s, now + dt), now)
        exhausted = stuck | ((accepted + rejected >= max_steps) & (now != s))
        return x, now, _State(slope, size, accepted, rejected, state.evaluations + 6, exhausted)

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
        "the adaptive solver has no reverse-mode derivative: use jax.jvp or jax.jacfwd, "
        "or a fixed-step solver such as rk4()"
    )
