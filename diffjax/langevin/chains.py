"""Runs of one chain or many, with warm-up, thinning, and an adapted step size."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

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
from .kernels import Kernel, StepInfo, draw_velocity, raise_unless_finite

__all__ = ["NEVER", "Chains", "adapt_step_size", "run", "run_many"]

NEVER = -1
"""`diverged_at` of a chain that did not diverge."""

METHODS = ("init(x)", "step(key, state)")
"""Methods of a kernel, for `checks.has_methods`."""


class Chains(NamedTuple):
    """Result of `run` and `run_many`.

    For many chains each entry has a leading axis, with one entry per chain.

    Attributes:
      samples: Positions after every `thinning` steps, (S, *shape). They are
        NaN from the step on at which the chain diverged, so that an average of
        them is NaN too.
      infos: `StepInfo` of the kept steps, (S,).
      acceptance: Mean acceptance probability of all steps after the warm-up,
        (). NaN for a diverged chain.
      diverged_at: Number of the first step, counted from 0 with the warm-up,
        whose `StepInfo.finite` is False, (). −1 if there is none.
      state: The kernel's state after the last step, from which another run
        goes on.
    """

    samples: Array
    infos: StepInfo
    acceptance: Array
    diverged_at: Array
    state: PyTree

    def check(self) -> "Chains":
        """This result. Raises FloatingPointError if any chain diverged."""
        raise_if_diverged(self.diverged_at)
        return self


def raise_if_diverged(diverged_at: ArrayLike) -> None:
    """Raise FloatingPointError if a chain diverged, naming chains and steps."""
    if checks.is_traced(diverged_at):
        return
    steps = np.atleast_1d(np.asarray(diverged_at))
    bad = np.flatnonzero(steps != NEVER)
    if bad.size:  # at most eight chains are listed
        listed = ", ".join(f"chain {i} at step {steps[i]}" for i in bad[:8])
        listed += ", …" if bad.size > 8 else ""
        raise FloatingPointError(
            f"{bad.size} of {steps.size} chains diverged: {listed}; the state or log "
            "density is NaN, +infinity or too large for its differences to be resolved "
            "(subtract a constant, enable x64)"
        )


# ---- runs

_RUN = {
    "key": checks.key,
    "kernel": (checks.has_methods, *METHODS),
    "steps": (checks.integer, 1),
    "thinning": (checks.integer, 1),
    "warm_up": (checks.integer, 0),
}
"""Checks of the arguments of a run."""


@checks.arguments(**_RUN)
def run(
    key: Key,
    kernel: Kernel,
    x: ArrayLike,
    steps: int,
    *,
    thinning: int = 1,
    warm_up: int = 0,
) -> Chains:
    """Run one chain.

    Step n = 0, 1, … has the key fold_in(key, n), so that a longer run begins
    as a shorter one.

    Args:
      key: A typed key.
      kernel: A `Kernel`, made by this package or by the user. One that holds a
        bare closure retraces at every call.
      x: A position, of any shape. A kinetic kernel then draws its velocity
        from N(0, I). Or a state of the kernel, such as `Chains.state`.
      steps: Number of steps after the warm-up.
      thinning: Every `thinning`-th step is kept. It must divide `steps`.
      warm_up: Number of steps before those, which are left out.

    Returns:
      The kept steps and the last state, as `Chains`.

    Raises:
      ValueError: If a number is out of range, `steps` is no multiple of
        `thinning`, or the start or its log density is not finite.
      TypeError: If `kernel` has no `init` and `step`.

    Example:
      >>> chain = dj.langevin.run(key, dj.langevin.ula(target, 0.01), jnp.zeros(2), 20)
      >>> chain.samples.shape
      (20, 2)
    """
    kept, bounds = _kept_steps(steps, thinning, warm_up)
    arrays, static = partition(_callables(kernel))
    fresh = not _is_state(x)
    if fresh:
        x = _init(static, arrays, checks.finite_array("x", x))
        raise_unless_finite("x", x)
    return _run_one((static, kept, fresh), arrays, key, x, bounds)


@checks.arguments(**_RUN)
def run_many(
    key: Key,
    kernel: Kernel,
    xs: ArrayLike,
    steps: int,
    *,
    thinning: int = 1,
    warm_up: int = 0,
) -> Chains:
    """Run many chains at once.

    Chain i is `run(fold_in(key, i), kernel, xs[i], …)`, whatever the number of
    chains.

    Args:
      key: A typed key.
      kernel: As in `run`.
      xs: Positions (count, *shape), or states with that leading axis.
      steps: Number of steps after the warm-up.
      thinning: Every `thinning`-th step is kept. It must divide `steps`.
      warm_up: Number of steps before those, which are left out.

    Returns:
      `Chains` with a leading axis: samples (count, steps // thinning, *shape).

    Raises:
      ValueError: If a number is out of range, `steps` is no multiple of
        `thinning`, or a start or its log density is not finite.
      TypeError: If `kernel` has no `init` and `step`.

    Example:
      >>> kernel = dj.langevin.mala(target, 0.3)
      >>> chains = dj.langevin.run_many(key, kernel, jnp.zeros((4, 2)), 20, thinning=2)
      >>> chains.check().samples.shape
      (4, 10, 2)
    """
    kept, bounds = _kept_steps(steps, thinning, warm_up)
    arrays, static = partition(_callables(kernel))
    fresh = not _is_state(xs)
    if fresh:
        xs = _init_many(static, arrays, checks.finite_batch("xs", xs))
        raise_unless_finite("xs", xs)
    return _run_many((static, kept, fresh), arrays, key, xs, bounds)


def _kept_steps(steps, thinning, warm_up):
    """The number S of kept steps, and the bounds between them.

    The bounds (S + 1,) count steps from the first. None means 0, 1, 2, …, S.
    """
    checks.divides("thinning", thinning, "steps", steps)
    if thinning == 1 and warm_up == 0:
        return steps, None
    bounds = warm_up + thinning * np.arange(steps // thinning + 1)
    return steps // thinning, bounds.astype(np.int32)


def _callables(kernel):
    return Kernel(as_pytree_callable(kernel.init), as_pytree_callable(kernel.step))


def _is_state(value):
    # A state is a NamedTuple or pytree with a position `x`, which an array has
    # not.
    return hasattr(value, "x") and not hasattr(value, "shape")


@compiled
def _init(static, arrays, x):
    return combine(arrays, static).init(x)


@compiled
def _init_many(static, arrays, xs):
    return jax.vmap(combine(arrays, static).init)(xs)


# ---- one step


def advance(
    kernel: Kernel, key: Key, n: ArrayLike, carry: tuple[PyTree, Array]
) -> tuple[tuple[PyTree, Array], StepInfo]:
    """Step number n of a chain, with the key fold_in(key, n).

    From the step on at which the chain diverges its position is NaN, in the
    state too.

    Args:
      kernel: A kernel.
      key: The chain's key.
      n: Number of the step, from 0.
      carry: (state, diverged_at), as `start` makes it.

    Returns:
      The carry after the step, and the step's report.
    """
    state, diverged_at = carry
    state, info = kernel.step(jax.random.fold_in(key, n), state)
    first = (diverged_at == NEVER) & ~info.finite
    diverged_at = jnp.where(first, n, diverged_at).astype(jnp.int32)
    # Written into the state: as a value beside it, XLA would keep a second
    # copy of x.
    x = jnp.where(diverged_at == NEVER, state.x, jnp.nan)
    if hasattr(state, "_replace"):
        state = state._replace(x=x)
    else:
        state = dataclasses.replace(state, x=x)
    return (state, diverged_at), info


def start(state: PyTree) -> tuple[PyTree, Array]:
    """The carry of `advance` before the first step."""
    return state, jnp.full((), NEVER, jnp.int32)


def at_start(key: Key, state: PyTree, n: ArrayLike = 0) -> PyTree:
    """State of `init` before its first step, with a velocity drawn if it has one.

    Args:
      key: The chain's key.
      state: The state that `init` made.
      n: Number of its first step.

    Returns:
      The state.
    """
    return draw_velocity(jax.random.fold_in(key, n), state)


def _chain(settings, arrays, key, state, bounds):
    static, kept, fresh = settings
    kernel = combine(arrays, static)
    state = at_start(key, state) if fresh else state

    def step(n, carry):
        chain, total, _ = carry
        chain, info = advance(kernel, key, n, chain)
        if bounds is not None:  # otherwise every step is kept, with its acceptance
            total = total + jnp.where(n >= bounds[0], info.acceptance, 0)
        return chain, total, info

    def block(carry, i):
        # One loop for warm-up and thinning alike, so that the step is compiled
        # once.
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
    if bounds is None:
        mean = jnp.mean(infos.acceptance)
    else:
        mean = total / (bounds[-1] - bounds[0]).astype(total.dtype)
    acceptance = jnp.where(diverged_at == NEVER, mean, jnp.nan)
    return Chains(samples, infos, acceptance, diverged_at, state)


def _info_of(kernel, key, state):
    return jax.eval_shape(lambda key, state: kernel.step(key, state)[1], key, state)


_run_one = compiled(_chain)


@compiled
def _run_many(settings, arrays, key, states, bounds):
    count = jax.tree.leaves(states)[0].shape[0]
    keys = chain_keys(key, count)
    return jax.vmap(lambda key, state: _chain(settings, arrays, key, state, bounds))(
        keys, states
    )


def chain_keys(key: Key, count: int) -> Key:
    """fold_in(key, i) for each chain i.

    Args:
      key: The key of the run.
      count: Number of chains.

    Returns:
      The keys, (count,).
    """
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))


# ---- step size


class _Averaging(NamedTuple):
    """State of dual averaging: log ε, its weighted average, and H̄."""

    log_size: Array
    log_average: Array
    error: Array


@checks.arguments(
    key=checks.key,
    make_kernel=(checks.callable_, "make_kernel(step_size) -> Kernel"),
    steps=(checks.integer, 1),
    target_acceptance=(checks.within, 1e-3, 1 - 1e-3),
    initial=checks.positive,
)
def adapt_step_size(
    key: Key,
    make_kernel: Callable[[Array], Kernel],
    x: ArrayLike,
    steps: int,
    *,
    target_acceptance: float = 0.574,
    initial: Scalar = 1.0,
) -> tuple[Array, PyTree]:
    """Adapt a step size to a target acceptance by dual averaging of log ε.

        H̄_t = (1 − 1/(t + t_0)) H̄_{t−1} + (α* − α_t)/(t + t_0)
        log ε_{t+1} = μ − √t/γ H̄_t,    μ = log(10 ε_0)
        log ε̄_{t+1} = t^{−κ} log ε_{t+1} + (1 − t^{−κ}) log ε̄_t

    with γ = 0.05, t_0 = 10 and κ = 0.75 (Hoffman & Gelman 2014, section
    3.2.1).

    Go on with the kernel of that step size from that state. Draws made while
    the step size still moves do not have the stationary distribution.

    Args:
      key: A typed key.
      make_kernel: ε -> Kernel, traced, such as `functools.partial(mala,
        target)`.
      x: One position, or a state of the kernel. For many, `vmap` over keys and
        positions.
      steps: Number of steps.
      target_acceptance: α*, the mean acceptance wanted. 0.574 is MALA's
        optimum in many dimensions (Roberts & Rosenthal 1998). `underdamped`
        wants more.
      initial: ε_0, the first step size.

    Returns:
      The averaged step size ε̄, (), and the state after the last step.

    Raises:
      ValueError: If `target_acceptance` lies outside [0.001, 0.999], `steps`
        is below 1, or ε_0 is not positive.
      FloatingPointError: If the chain diverges. Under jit the step size is NaN
        instead.

    Example:
      >>> import functools
      >>> make_kernel = functools.partial(dj.langevin.mala, target)
      >>> size, state = dj.langevin.adapt_step_size(key, make_kernel, jnp.zeros(2), 50)
    """
    arrays, static = partition(as_pytree_callable(make_kernel))
    fresh = not _is_state(x)
    if fresh:
        x = _init_adapted(static, arrays, checks.finite_array("x", x), initial)
        raise_unless_finite("x", x)
    size, state, diverged_at = _adapt(
        (static, fresh), arrays, key, x, steps, target_acceptance, initial
    )
    raise_if_diverged(diverged_at)
    return size, state


_checked_kernel = functools.partial(checks.has_methods, "make_kernel(step_size)")


@compiled
def _init_adapted(static, arrays, x, initial):
    return _checked_kernel(combine(arrays, static)(initial), *METHODS).init(x)


@compiled
def _adapt(settings, arrays, key, state, steps, target_acceptance, initial):
    static, fresh = settings
    make_kernel = combine(arrays, static)
    state = at_start(key, state) if fresh else state
    log_initial = jnp.log(jnp.asarray(initial, state.x.dtype))

    def step(n, carry):
        chain, averaging = carry
        kernel = _checked_kernel(make_kernel(jnp.exp(averaging.log_size)), *METHODS)
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
    size = jnp.where(diverged_at == NEVER, jnp.exp(averaging.log_average), jnp.nan)
    return size, state, diverged_at


def _average(averaging, n, error, log_initial):
    """Dual averaging after trial t = n + 1, for error = α* − α_t."""
    t = n + 1.0
    total = (1 - 1 / (t + 10)) * averaging.error + error / (t + 10)
    log_size = log_initial + jnp.log(10.0) - jnp.sqrt(t) / 0.05 * total
    weight = t**-0.75
    return _Averaging(
        log_size, weight * log_size + (1 - weight) * averaging.log_average, total
    )
