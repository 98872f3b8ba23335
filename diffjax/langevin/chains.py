"""Running one chain or many: thinning, warm-up, an adapted step size, and a report of the chains that diverged."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import (
    Array,
    ArrayLike,
    Key,
    PyTree,
    Scalar,
    as_pytree_callable,
    combine,
    compiled,
    partition,
)
from .kernels import Kernel, StepInfo, draw_velocity

NEVER = -1
"""`diverged_at` of a chain that did not diverge."""


class Chains(NamedTuple):
    """What `run` and `run_many` return; for many chains each entry has a leading axis, one entry a chain.

    samples: (S, *shape), the places after every `thinning` steps; NaN from the step on at which the chain diverged, so
    that no average is taken over what follows unnoticed. infos: the kept steps' `StepInfo`, (S,). acceptance: the mean
    acceptance probability of all steps after the warm-up, (); NaN for a diverged chain. diverged_at: the number of the
    first step, counted from 0 with the warm-up, whose `StepInfo.finite` is False; −1 for none, (). state: the kernel's
    state after the last step, from which another run goes on.
    """

    samples: Array
    infos: StepInfo
    acceptance: Array
    diverged_at: Array
    state: PyTree

    def check(self) -> "Chains":
        """This result, if no chain diverged; FloatingPointError with the number of every chain and step otherwise."""
        refuse_diverged(self.diverged_at)
        return self


def run(
    key: Key,
    kernel: Kernel,
    x: ArrayLike,
    steps: int,
    *,
    thinning: int = 1,
    warm_up: int = 0,
) -> Chains:
    """One chain from x: `warm_up` steps that are left out, then `steps`, of which every `thinning`-th is kept.

    Step n = 0, 1, … has the key fold_in(key, n), so that a longer run begins as a shorter one. kernel: of `kernels`, or
    of one's own; a bare closure in it retraces in every call. x: one place, from which a kinetic kernel starts with a
    velocity of N(0, I), or a state of the kernel, as `Chains.state` holds. Raises ValueError for steps that are no
    multiple of thinning, fewer than 1 step or a start that is not finite; TypeError for what is no kernel.
    """
    checks.key("key", key)
    kept, bounds = _settings(kernel, steps, thinning, warm_up)
    arrays, static = partition(_callables(kernel))
    fresh = not _is_state(x)
    if fresh:
        x = checks.real_array("x", x)
        checks.finite("x", x)
        x = _init(static, arrays, x)
        check_start("x", x)
    return _run_one((static, kept, fresh), arrays, key, x, bounds)


def run_many(
    key: Key,
    kernel: Kernel,
    xs: ArrayLike,
    steps: int,
    *,
    thinning: int = 1,
    warm_up: int = 0,
) -> Chains:
    """Many chains, from xs (count, *shape): chain i is `run(fold_in(key, i), kernel, xs[i], …)` whatever count is.

    xs: places, or states with that leading axis. Raises as `run`.
    """
    checks.key("key", key)
    kept, bounds = _settings(kernel, steps, thinning, warm_up)
    arrays, static = partition(_callables(kernel))
    fresh = not _is_state(xs)
    if fresh:
        xs = checks.real_array("xs", xs)
        checks.finite("xs", xs)
        if xs.ndim == 0 or xs.shape[0] == 0:
            raise ValueError(
                f"xs must have shape (count, ...) with count at least 1, got {xs.shape}"
            )
        xs = _init_many(static, arrays, xs)
        check_start("xs", xs)
    return _run_many((static, kept, fresh), arrays, key, xs, bounds)


def check_start(name: str, states: Any) -> None:
    """Refuse concrete states of which one has no finite log density; ValueError names the first such chain."""
    values = getattr(states, "log_density", None)
    if values is None or checks.is_traced(values):
        return
    values = np.atleast_1d(np.asarray(values))
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(
            f"{name} must lie where the log density is finite, got {values[bad[0]]} for chain {bad[0]} and {bad.size} "
            f"of {values.size} chains in all"
        )


def refuse_diverged(diverged_at: ArrayLike, what: str = "step") -> None:
    """Raise FloatingPointError if any concrete entry is not −1, naming the chains and their steps; at most eight."""
    if checks.is_traced(diverged_at):
        return
    steps = np.atleast_1d(np.asarray(diverged_at))
    bad = np.flatnonzero(steps != NEVER)
    if bad.size:
        listed = ", ".join(f"chain {i} at {what} {steps[i]}" for i in bad[:8]) + (
            ", …" if bad.size > 8 else ""
        )
        raise FloatingPointError(
            f"{bad.size} of {steps.size} chains diverged: {listed}; the state or the log density was NaN or +infinity, "
            "or the log density too large for its differences to be resolved (subtract a constant, or enable x64)"
        )


# ------------------------------------------------------------------------------------------------------------ one step


def advance(
    kernel: Kernel, key: Key, n: ArrayLike, carry: tuple[PyTree, Array]
) -> tuple[tuple[PyTree, Array], StepInfo]:
    """Step number n of a chain, with its key fold_in(key, n): carry is (state, diverged_at), and info the step's.

    From the step on at which it diverges the chain's place is NaN, in the state too, and stays so.
    """
    state, diverged_at = carry
    state, info = kernel.step(jax.random.fold_in(key, n), state)
    first = (diverged_at == NEVER) & ~info.finite
    diverged_at = jnp.where(first, n, diverged_at).astype(jnp.int32)
    x = jnp.where(
        diverged_at == NEVER, state.x, jnp.nan
    )  # in the state: as a value of its own it would be a copy
    state = (
        state._replace(x=x)
        if hasattr(state, "_replace")
        else dataclasses.replace(state, x=x)
    )
    return (state, diverged_at), info


def start(state: PyTree) -> tuple[PyTree, Array]:
    """The carry of `advance` before the first step."""
    return state, jnp.full((), NEVER, jnp.int32)


def at_start(key: Key, state: PyTree, n: ArrayLike = 0) -> PyTree:
    """The state that `init` made of a place, before step number n: with a velocity drawn, where it has one."""
    return draw_velocity(jax.random.fold_in(key, n), state)


def _chain(settings, arrays, key, state, bounds):
    """bounds: the number of steps before each sample, after the warm-up's at its head, or None for 0, 1, 2, …"""
    static, kept, fresh = settings
    kernel = combine(arrays, static)
    state = at_start(key, state) if fresh else state

    def step(n, carry):
        chain, total, _ = carry
        chain, info = advance(kernel, key, n, chain)
        if bounds is not None:  # without, the kept infos tell it
            total = total + jnp.where(n >= bounds[0], info.acceptance, 0)
        return chain, total, info

    def block(carry, i):
        # one loop for warm-up and thinning alike, so that the step is compiled once
        if bounds is None:
            chain, total, info = step(i, (*carry, nothing))
        else:
            first = jnp.where(i == 0, 0, bounds[i])
            chain, total, info = jax.lax.fori_loop(
                first, bounds[i + 1], step, (*carry, nothing)
            )
        return (chain, total), (chain[0].x, info)

    nothing = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), _info_of(kernel, key, state)
    )
    begin = (start(state), jnp.zeros_like(nothing.log_alpha))
    ((state, diverged_at), total), (samples, infos) = jax.lax.scan(
        block, begin, jnp.arange(kept)
    )
    mean = (
        jnp.mean(infos.acceptance)
        if bounds is None
        else total / (bounds[-1] - bounds[0]).astype(total.dtype)
    )
    acceptance = jnp.where(diverged_at == NEVER, mean, jnp.nan)
    return Chains(samples, infos, acceptance, diverged_at, state)


def _info_of(kernel, key, state):
    return jax.eval_shape(lambda key, state: kernel.step(key, state)[1], key, state)


@compiled
def _init(static, arrays, x):
    return combine(arrays, static).init(x)


@compiled
def _init_many(static, arrays, xs):
    return jax.vmap(combine(arrays, static).init)(xs)


_run_one = compiled(_chain)


@compiled
def _run_many(settings, arrays, key, states, bounds):
    count = jax.tree.leaves(states)[0].shape[0]
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    return jax.vmap(lambda key, state: _chain(settings, arrays, key, state, bounds))(
        keys, states
    )


# ----------------------------------------------------------------------------------------------------------- step size


class _Averaging(NamedTuple):
    """Dual averaging's memory of the step sizes tried: log ε, its weighted average, and H̄."""

    log_size: Array
    log_average: Array
    error: Array


def adapt_step_size(
    key: Key,
    make_kernel: Callable[[Array], Kernel],
    x: ArrayLike,
    steps: int,
    *,
    target_acceptance: float = 0.574,
    initial: Scalar = 1.0,
) -> tuple[Array, PyTree]:
    """(step size, state): one whose mean acceptance comes near the target, and where a warm-up of `steps` arrived.

    Dual averaging of log ε with γ = 0.05, t_0 = 10, κ = 0.75 and μ = log(10 ε_0). make_kernel: ε -> Kernel, traced, as
    `functools.partial(mala, target)`. x: one place; `vmap` over keys and places for many. target_acceptance: 0.574 is
    MALA's optimum in many dimensions, `underdamped` wants more. initial: ε_0. Run on with the kernel of that size and
    that state: draws made while the step size still moves do not have the stationary law. Raises ValueError for a
    target outside (0, 1), fewer than 1 step or ε_0 ≤ 0, FloatingPointError where the chain diverges (NaN under jit).
    Hoffman & Gelman 2014, section 3.2.1; Roberts & Rosenthal 1998.
    """
    checks.key("key", key)
    checks.callable_("make_kernel", make_kernel, "make_kernel(step_size) -> Kernel")
    steps = checks.integer("steps", steps, minimum=1)
    target_acceptance = checks.within(
        "target_acceptance", target_acceptance, 1e-3, 1 - 1e-3
    )
    initial = checks.positive("initial", initial)
    arrays, static = partition(as_pytree_callable(make_kernel))
    fresh = not _is_state(x)
    if fresh:
        x = checks.real_array("x", x)
        checks.finite("x", x)
        x = _init_adapted(static, arrays, x, initial)
        check_start("x", x)
    size, state, diverged_at = _adapt(
        (static, fresh), arrays, key, x, steps, target_acceptance, initial
    )
    refuse_diverged(diverged_at)
    return size, state


@compiled
def _init_adapted(static, arrays, x, initial):
    return check_kernel(
        "make_kernel(step_size)", combine(arrays, static)(initial)
    ).init(x)


@compiled
def _adapt(settings, arrays, key, state, steps, target_acceptance, initial):
    static, fresh = settings
    make_kernel = combine(arrays, static)
    state = at_start(key, state) if fresh else state
    log_initial = jnp.log(jnp.asarray(initial, state.x.dtype))

    def step(n, carry):
        chain, averaging = carry
        kernel = check_kernel(
            "make_kernel(step_size)", make_kernel(jnp.exp(averaging.log_size))
        )
        chain, info = advance(kernel, key, n, chain)
        return chain, _average(
            averaging, n, target_acceptance - info.acceptance, log_initial
        )

    averaging = _Averaging(
        log_initial, jnp.zeros_like(log_initial), jnp.zeros_like(log_initial)
    )
    (state, diverged_at), averaging = jax.lax.fori_loop(
        0, steps, step, (start(state), averaging)
    )
    return (
        jnp.where(diverged_at == NEVER, jnp.exp(averaging.log_average), jnp.nan),
        state,
        diverged_at,
    )


def _average(averaging, n, error, log_initial):
    """The memory after trial n + 1 whose acceptance fell short of its target by `error`."""
    t = n + 1.0
    total = (1 - 1 / (t + 10)) * averaging.error + error / (t + 10)
    log_size = log_initial + jnp.log(10.0) - jnp.sqrt(t) / 0.05 * total
    weight = t**-0.75
    return _Averaging(
        log_size, weight * log_size + (1 - weight) * averaging.log_average, total
    )


# -------------------------------------------------------------------------------------------------------------- checks


def check_kernel(name: str, kernel: Any) -> Kernel:
    """`kernel`, or a TypeError where it has no `init` and `step`."""
    if not (hasattr(kernel, "init") and callable(getattr(kernel, "step", None))):
        raise TypeError(
            f"{name} must have init(x) and step(key, state), got {kernel!r}"
        )
    return kernel


def _settings(kernel, steps, thinning, warm_up):
    check_kernel("kernel", kernel)
    steps = checks.integer("steps", steps, minimum=1)
    thinning = checks.integer("thinning", thinning, minimum=1)
    if steps % thinning:
        raise ValueError(
            f"steps must be a multiple of thinning={thinning}, got {steps}"
        )
    warm_up = checks.integer("warm_up", warm_up, minimum=0)
    if thinning == 1 and warm_up == 0:
        return steps, None
    bounds = warm_up + thinning * np.arange(steps // thinning + 1)
    return steps // thinning, bounds.astype(np.int32)


def _callables(kernel):
    return Kernel(as_pytree_callable(kernel.init), as_pytree_callable(kernel.step))


def _is_state(value):
    """A state is a NamedTuple or pytree with a place `x`; an array has none."""
    return hasattr(value, "x") and not hasattr(value, "shape")
