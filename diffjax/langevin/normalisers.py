"""log Z of an unnormalised density by chains: annealed importance sampling and thermodynamic integration.

Both walk the path p_β ∝ p_0^{1−β} p̃^β from a normalised base p_0, which can be sampled, to the density asked for, by a
kernel that leaves each p_β as it is. In one or two dimensions `quadrature.log_integral` is the exact answer beside.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from .. import checks
from ..numerics import float_dtype, standard_error
from ..types import (
    Array,
    ArrayLike,
    Key,
    Scalar,
    as_pytree_callable,
    combine,
    compiled,
    partition,
)
from .chains import NEVER, advance, at_start, check_kernel, refuse_diverged, start
from .densities import Tempered, as_log_density
from .kernels import Kernel


class ImportanceEstimate(NamedTuple):
    """log_z: log Ẑ, (). standard_error: of log Ẑ, by the delta method, (). effective_size: (Σw)²/Σw², (), of `count` at
    most. log_weights: log w_i, (count,). samples: (count, *shape), to be weighted by w.
    """

    log_z: Array
    standard_error: Array
    effective_size: Array
    log_weights: Array
    samples: Array


def importance_estimate(log_weights: Array, samples: Array) -> ImportanceEstimate:
    """log Ẑ = log (1/n) Σ w_i from log w_i, (n,), with standard error √(1/ESS − 1/n) and ESS = (Σw)²/Σw².

    One weight has no spread: its error is NaN. Raises ValueError for weights that are all 0, of which there is no
    estimate; NaN under jit. Kong 1992.
    """
    log_z, error, size, total = _summary_of_weights(log_weights)
    if not checks.is_traced(total) and np.isneginf(total):
        count = log_weights.shape[0]
        raise ValueError(
            f"log_density must be above -infinity somewhere, got {count} weights that are all 0"
        )
    return ImportanceEstimate(log_z, error, size, log_weights, samples)


@jax.jit
def _summary_of_weights(log_weights):
    """(log Ẑ, its standard error, effective size, log of the sum of the weights over the greatest)."""
    count = log_weights.shape[0]
    top = jnp.max(log_weights)
    shifted = log_weights - jnp.where(
        jnp.isfinite(top), top, 0
    )  # a large log Z would round 2 total - squares
    total, squares = logsumexp(shifted), logsumexp(2 * shifted)
    size = jnp.minimum(jnp.exp(2 * total - squares), count)  # its rounding
    error = (
        jnp.sqrt(jnp.maximum(1 / size - 1 / count, 0))
        if count > 1
        else jnp.full_like(size, jnp.nan)
    )
    log_z = jnp.where(jnp.isneginf(total), jnp.nan, top + (total - jnp.log(count)))
    return log_z, error, size, total


class ThermodynamicEstimate(NamedTuple):
    """log_z: (). standard_error: of it, from the spread between chains, (). discretisation: what the correction for the
    finite number of β amounts to, (): the error that is left is of higher order. means, variances: of log p̃ − log p_0
    under p_β, (K + 1,). chain_values: each chain's own estimate, (count,). acceptance: mean at each β, (K + 1,).
    """

    log_z: Array
    standard_error: Array
    discretisation: Array
    means: Array
    variances: Array
    chain_values: Array
    acceptance: Array


DRAWS = 4096
"""The least number of draws from the base at which thermodynamic integration looks for a density of 0."""

MakeKernel = Callable[[Any, Scalar], Kernel]
"""(law p_β with `log_prob`, β) -> a kernel that leaves it as it is."""


def annealed_importance_sampling(
    key: Key,
    base: Any,
    target: Any,
    betas: ArrayLike,
    *,
    make_kernel: MakeKernel,
    count: int = 512,
    steps: int = 1,
) -> ImportanceEstimate:
    """log Z of `target` from `count` chains that start in the base and pass through all β, each with its weight.

    log w = Σ_k (β_{k+1} − β_k)(log p̃(x_k) − log p_0(x_k)), with x_0 of the base and x_k from x_{k−1} by `steps` steps
    of the kernel of β_k. The mean of w is unbiased for Z at any number of steps and any mixing, so that E log Ẑ ≤ log
    Z, by about Var(w)/(2 n Z²); the weighted samples stand for p. A small effective size says that few chains carry the
    estimate, and that its error is not to be trusted either.

    base: a normalised law with `log_prob` and `sample`, positive wherever p̃ is. target: anything with `log_prob`, or a
    log density x -> (). betas: increasing from 0 to 1, (K + 1,). make_kernel: (law, β) -> Kernel, traced, such as
    `lambda law, beta: mala(law, 0.1)`; one that leaves the law only nearly as it is, such as `ula` or `baoab`, makes
    the estimate biased; a kinetic one draws a new velocity at each β. Chain i has the key fold_in(key, i). Raises
    ValueError for betas that are not so, TypeError for laws that lack a method, FloatingPointError naming chains that
    diverged and their steps (under jit the estimate is NaN then). Neal 2001, eq. 3 and section 2.
    """
    arrays, static, betas = _prepare(key, base, target, betas, make_kernel)
    steps, count = checks.integer("steps", steps, 1), checks.integer("count", count, 1)
    log_weights, samples, diverged_at = _anneal(
        (static, steps, count), arrays, key, betas
    )
    _report(log_weights, diverged_at)
    return importance_estimate(log_weights, samples)


def thermodynamic_integration(
    key: Key,
    base: Any,
    target: Any,
    betas: ArrayLike,
    *,
    make_kernel: MakeKernel,
    count: int = 64,
    steps: int = 50,
    warm_up: int = 20,
) -> ThermodynamicEstimate:
    """log Z = ∫₀¹ E_{p_β}[log p̃ − log p_0] dβ by the trapezoid rule, E estimated along `count` chains.

    Each chain starts in the base and passes through the β in order, at each one making `warm_up` steps that are left
    out and `steps` that are averaged. As the chains are independent, the spread of their own estimates gives the
    standard error, bias by poor mixing not included. As dE/dβ = Var, the rule is corrected by −Δβ²/12 (Var_{k+1} −
    Var_k): `discretisation` is the correction's size. Arguments and errors as `annealed_importance_sampling`.

    At β = 0 the density must be positive wherever the base is, or the integrand is −infinity: ValueError where a chain,
    or one of n independent draws from the base, met a density of 0 (NaN under jit); n is count · steps, or 4096 where
    that is more. A part m of the base's mass is missed with probability (1 − m)^n. The estimate is then that of the
    base cut to the target's support, log Z − log(1 − m): an m missed once in twenty times is 3/n, and so is the error.
    Gelman & Meng 1998, eq. 6; Friel, Hurn & Wyse 2014, eq. 5.
    """
    arrays, static, betas = _prepare(key, base, target, betas, make_kernel)
    steps, count = checks.integer("steps", steps, 1), checks.integer("count", count, 2)
    warm_up = checks.integer("warm_up", warm_up, 0)
    settings = (static, steps, warm_up, count)
    at_base, (means, spreads, acceptance), diverged_at = _integrate(
        settings, arrays, key, betas
    )  # (count, K + 1)
    _report(at_base, diverged_at)
    _report(means, diverged_at)
    _check_support(at_base, means)
    return _summary_of_means(at_base, means, spreads, acceptance, betas)


@jax.jit
def _summary_of_means(at_base, means, spreads, acceptance, betas):
    means = jnp.where(
        jnp.isfinite(at_base)[:, None], means, jnp.nan
    )  # where the callers could not raise
    mean = means.mean(0)
    variances = (spreads + (means - mean) ** 2).mean(0)
    gaps = jnp.diff(betas)
    trapezoid = means @ (0.5 * (jnp.append(gaps, 0) + jnp.append(0, gaps)))
    correction = -jnp.sum(gaps**2 / 12 * jnp.diff(variances))
    values = trapezoid + correction
    return ThermodynamicEstimate(
        values.mean(),
        standard_error(values),
        jnp.abs(correction),
        mean,
        variances,
        values,
        acceptance.mean(0),
    )


# ----------------------------------------------------------------------------------------------------------- the walks


@compiled
def _anneal(settings, arrays, key, betas):
    static, steps, count = settings
    base, target, make_kernel = combine(arrays, static)

    def one(key):
        key_start, key_steps = jax.random.split(key)
        x = base.sample(key_start)
        base_law = as_log_density("base", base)

        def level(carry, k):
            log_weight, x, diverged_at = carry
            gain = _difference(base_law, target, x)
            log_weight = log_weight + (betas[k + 1] - betas[k]) * gain
            kernel = check_kernel(
                "make_kernel(law, beta)",
                make_kernel(Tempered(base_law, target, betas[k + 1]), betas[k + 1]),
            )
            state, bad = _walk(kernel, key_steps, k * steps, steps, x, diverged_at)
            return (log_weight, state.x, bad), None

        # the last increment needs no step after it: the loop ends at β_{K−1}
        begin = (jnp.zeros((), x.dtype), x, start(x)[1])
        (log_weight, x, bad), _ = jax.lax.scan(
            level, begin, jnp.arange(betas.shape[0] - 2)
        )
        log_weight = log_weight + (betas[-1] - betas[-2]) * _difference(
            base_law, target, x
        )
        return jnp.where(bad == NEVER, log_weight, jnp.nan), x, bad

    return jax.vmap(one)(_keys(key, count))


@compiled
def _integrate(settings, arrays, key, betas):
    static, steps, warm_up, count = settings
    base, target, make_kernel = combine(arrays, static)
    each = warm_up + steps

    def one(key):
        key_start, key_steps, key_draws = jax.random.split(key, 3)
        x = base.sample(key_start)
        base_law = as_log_density("base", base)

        def with_draw(n, total):
            return total + _difference(
                base_law, target, base.sample(jax.random.fold_in(key_draws, n))
            )

        # infinite where a draw from the base meets a density of 0, which a chain may never do
        at_base = jax.lax.fori_loop(
            0,
            max(steps, -(-DRAWS // count)),
            with_draw,
            _difference(base_law, target, x),
        )

        def level(carry, k):
            x, diverged_at = carry
            kernel = check_kernel(
                "make_kernel(law, beta)",
                make_kernel(Tempered(base_law, target, betas[k]), betas[k]),
            )
            state, bad = _walk(kernel, key_steps, k * each, warm_up, x, diverged_at)

            def measured(carry, n):
                carry, info = advance(kernel, key_steps, n, carry)
                value = _difference(base_law, target, carry[0].x)
                return carry, (value, info.acceptance)

            (state, bad), (values, acceptances) = jax.lax.scan(
                measured, (state, bad), k * each + warm_up + jnp.arange(steps)
            )
            value = jnp.where(bad == NEVER, values.mean(), jnp.nan)
            return (state.x, bad), (value, values.var(), acceptances.mean())

        (x, bad), parts = jax.lax.scan(
            level, (x, start(x)[1]), jnp.arange(betas.shape[0])
        )
        return at_base, parts, bad

    return jax.vmap(one)(_keys(key, count))


def _walk(kernel, key, first, steps, x, diverged_at):
    """`steps` steps of a kernel from x, numbered from `first`: (state, diverged_at); a velocity is drawn anew."""

    def step(n, carry):
        return advance(kernel, key, n, carry)[0]

    return jax.lax.fori_loop(
        first, first + steps, step, (at_start(key, kernel.init(x), first), diverged_at)
    )


def _difference(base, target, x):
    return target.log_prob(x) - base.log_prob(x)


def _prepare(key, base, target, betas, make_kernel):
    """(arrays, static) of (base, target, make_kernel), and β as an array, all checked."""
    checks.key("key", key)
    for method in ("log_prob", "sample"):
        if not callable(getattr(base, method, None)):
            raise TypeError(f"base must have log_prob(x) and sample(key), got {base!r}")
    checks.callable_("make_kernel", make_kernel, "make_kernel(law, beta) -> Kernel")
    if not checks.is_traced(betas):
        checks.real_array("betas", betas)
        values = np.asarray(betas, np.float64)
        if (
            values.ndim != 1
            or values.size < 2
            or not (values[0] == 0 and values[-1] == 1 and np.all(np.diff(values) > 0))
        ):
            raise ValueError(f"betas must increase from 0 to 1, got {values.tolist()}")
    arrays, static = partition(
        (base, as_log_density("target", target), as_pytree_callable(make_kernel))
    )
    betas = jnp.asarray(
        betas if checks.is_traced(betas) else values.astype(float_dtype()),
        float_dtype(),
    )
    return arrays, static, betas


def _report(values, diverged_at):
    """Refuse diverged chains, and NaN or +infinity among the concrete values of log p̃ − log p_0."""
    refuse_diverged(diverged_at)
    if not checks.is_traced(values):
        bad = int(np.sum(np.isnan(values) | np.isposinf(values)))
        if bad:
            raise FloatingPointError(
                f"log p̃ − log p_0 must be below infinity, got {bad} NaN or +infinity of {values.size}"
            )


def _check_support(at_base, means):
    """Raise ValueError where the base, or a tempered density, reached places at which the target's density is 0."""
    if checks.is_traced(at_base, means):
        return
    outside = np.isneginf(np.asarray(at_base)) | np.isneginf(np.asarray(means)).any(1)
    if outside.any():
        raise ValueError(
            f"target must be positive wherever base is: log p̃ is -infinity on the way of {int(outside.sum())} of "
            f"{len(outside)} chains or at draws from the base beside them, and so is the integrand; use "
            "annealed_importance_sampling, or a base within the target's support"
        )


def _keys(key, count):
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
