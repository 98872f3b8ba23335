"""log Z of an unnormalised density, by chains.

There are annealed importance sampling and thermodynamic integration.

Both pass through p_β ∝ p_0^{1−β} p̃^β, from a normalised base p_0 that can be
sampled to the density p̃ in question, by kernels that leave each p_β
invariant. In one or two dimensions `quadrature.log_integral` computes the same
number.
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
from .chains import (
    METHODS,
    NEVER,
    advance,
    at_start,
    chain_keys,
    raise_if_diverged,
    start,
)
from .densities import Tempered, as_log_density
from .kernels import Kernel

__all__ = [
    "ImportanceEstimate",
    "MakeKernel",
    "ThermodynamicEstimate",
    "annealed_importance_sampling",
    "importance_estimate",
    "thermodynamic_integration",
]

DRAWS = 4096
"""Least number of draws from the base at which a density of 0 is looked for."""

MakeKernel = Callable[[Any, Scalar], Kernel]
"""(p_β with `log_prob`, β) -> a kernel that leaves p_β invariant."""


class ImportanceEstimate(NamedTuple):
    """Estimate of log Z by importance weights.

    Attributes:
      log_z: log Ẑ, ().
      standard_error: Standard error of log Ẑ by the delta method, ().
      effective_size: (Σw)²/Σw², at most the number of weights, ().
      log_weights: log w_i, (count,).
      samples: The samples (count, *shape) that stand for p with the weights w.
    """

    log_z: Array
    standard_error: Array
    effective_size: Array
    log_weights: Array
    samples: Array


class ThermodynamicEstimate(NamedTuple):
    """Estimate of log Z by thermodynamic integration.

    Attributes:
      log_z: log Ẑ, ().
      standard_error: Standard error of log Ẑ from the spread between chains,
        ().
      discretisation: Size of the correction for the finite number of β, ().
        The error that is left is of higher order.
      means: Mean of log p̃ − log p_0 under p_β, (K + 1,).
      variances: Variance of log p̃ − log p_0 under p_β, (K + 1,).
      chain_values: Estimate of each chain alone, (count,).
      acceptance: Mean acceptance probability at each β, (K + 1,).
    """

    log_z: Array
    standard_error: Array
    discretisation: Array
    means: Array
    variances: Array
    chain_values: Array
    acceptance: Array


def importance_estimate(log_weights: Array, samples: Array) -> ImportanceEstimate:
    """Estimate of log Z from importance weights (Kong 1992).

        log Ẑ = log (1/n) Σ w_i,    ESS = (Σw)²/Σw²,    standard error √(1/ESS − 1/n)

    One weight has no spread, and its standard error is NaN.

    Args:
      log_weights: log w_i, (n,).
      samples: The samples that they belong to, (n, *shape).

    Returns:
      The estimate.

    Raises:
      ValueError: If all weights are 0. Under jit the estimate is NaN instead.
    """
    log_z, error, size, total = _summary_of_weights(log_weights)
    got = f"got {len(log_weights)} weights that are all 0"
    message = f"log_density must be above -infinity somewhere, {got}"
    checks.require(checks.is_traced(total) or not np.isneginf(total), message)
    return ImportanceEstimate(log_z, error, size, log_weights, samples)


@jax.jit
def _summary_of_weights(log_weights):
    """log Ẑ, its standard error, the effective size, and log (Σw / max w)."""
    count = log_weights.shape[0]
    top = jnp.max(log_weights)
    # Without the shift a large log Z would be lost in the rounding of 2 total
    # − squares.
    shifted = log_weights - jnp.where(jnp.isfinite(top), top, 0)
    total, squares = logsumexp(shifted), logsumexp(2 * shifted)
    size = jnp.minimum(jnp.exp(2 * total - squares), count)  # rounding may exceed count
    if count > 1:
        error = jnp.sqrt(jnp.maximum(1 / size - 1 / count, 0))
    else:
        error = jnp.full_like(size, jnp.nan)
    log_z = jnp.where(jnp.isneginf(total), jnp.nan, top + (total - jnp.log(count)))
    return log_z, error, size, total


def _increasing(name, betas):
    """betas as an array, checked to increase from 0 to 1 where they are concrete."""
    if checks.is_traced(betas):
        return jnp.asarray(betas, float_dtype())
    checks.real_array(name, betas)
    values = np.asarray(betas, np.float64)
    rises = values.ndim == 1 and values.size >= 2 and np.all(np.diff(values) > 0)
    message = f"{name} must increase from 0 to 1, got {values.tolist()}"
    checks.require(rises and values[0] == 0 and values[-1] == 1, message)
    return jnp.asarray(values.astype(float_dtype()), float_dtype())


_ARGUMENTS = {
    "key": checks.key,
    "base": checks.distribution,
    "make_kernel": (checks.callable_, "make_kernel(density, beta) -> Kernel"),
    "betas": _increasing,
    "target": as_log_density,
    "steps": (checks.integer, 1),
}
"""Checks of the arguments that both estimates share."""


@checks.arguments(**_ARGUMENTS, count=(checks.integer, 1))
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
    """log Z by annealed importance sampling (Neal 2001, equation 3 and section 2).

        log w = Σ_k (β_{k+1} − β_k) (log p̃(x_k) − log p_0(x_k))

    x_0 is a draw of the base, and x_k follows from x_{k−1} by `steps` steps of
    the kernel of β_k. The mean of w is unbiased for Z at any number of steps
    and any mixing. Hence E log Ẑ ≤ log Z, by about Var(w)/(2 n Z²). The
    weighted samples stand for p.

    A small effective size means that few chains carry the estimate, and that
    its standard error cannot be trusted either.

    Args:
      key: A typed key. Chain i has the key fold_in(key, i).
      base: p_0, a normalised distribution with `log_prob` and `sample`. It
        must be positive wherever p̃ is.
      target: p̃, anything with `log_prob`, or a log density x -> ().
      betas: Increasing from 0 to 1, (K + 1,).
      make_kernel: (p_β, β) -> Kernel, traced. A kernel that leaves p_β only
        nearly invariant, such as `ula` or `baoab`, makes the estimate biased.
        A kinetic one draws a new velocity at each β.
      count: Number n of chains.
      steps: Number of steps at each β.

    Returns:
      The estimate with its weights and samples.

    Raises:
      ValueError: If `betas` do not increase from 0 to 1, or a number is out of
        range.
      TypeError: If `base` or `target` lacks a method.
      FloatingPointError: If chains diverged. The message has their steps.
        Under jit the estimate is NaN instead.

    Example:
      >>> base, betas = dj.targets.gaussian([0.0, 0.0], 2.0), jnp.linspace(0, 1, 5)
      >>> make_kernel = lambda density, beta: dj.langevin.mala(density, 0.3)
      >>> estimate = dj.langevin.annealed_importance_sampling(
      ...     key, base, target, betas, make_kernel=make_kernel
      ... )
    """
    arrays, static = partition((base, target, as_pytree_callable(make_kernel)))
    log_weights, samples, diverged_at = _anneal(
        (static, steps, count), arrays, key, betas
    )
    _raise_if_bad(log_weights, diverged_at)
    return importance_estimate(log_weights, samples)


@checks.arguments(**_ARGUMENTS, count=(checks.integer, 2), warm_up=(checks.integer, 0))
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
    """log Z by thermodynamic integration (Gelman & Meng 1998, equation 6).

        log Z = ∫₀¹ E_{p_β}[log p̃ − log p_0] dβ

    The integral is taken by the trapezoid rule, the expectation along chains.
    Each chain starts in the base and passes through the β in order. At each it
    makes `warm_up` steps that are left out and `steps` that are averaged.

    As dE/dβ = Var, the rule is corrected by −Δβ²/12 (Var_{k+1} − Var_k) per
    interval (Friel, Hurn & Wyse 2014, equation 5), of which `discretisation`
    is the size. As the chains are independent, the spread of their estimates
    gives the standard error. Bias by poor mixing is not included.

    At β = 0 the density must be positive wherever the base is, or the
    integrand is −infinity. Such points are looked for at the chains and at n
    independent draws from the base, where n is count · steps or 4096,
    whichever is more.

    A part m of the base's mass is missed with probability (1 − m)^n. The
    estimate is then that of the base cut to the target's support, log Z −
    log(1 − m). An m missed once in twenty times is 3/n, and so is the error.

    Args:
      key: A typed key. Chain i has the key fold_in(key, i).
      base: p_0, a normalised distribution with `log_prob` and `sample`.
      target: p̃, anything with `log_prob`, or a log density x -> ().
      betas: Increasing from 0 to 1, (K + 1,).
      make_kernel: (p_β, β) -> Kernel, as in `annealed_importance_sampling`.
      count: Number of chains, at least 2.
      steps: Number of steps at each β that are averaged.
      warm_up: Number of steps at each β that are left out.

    Returns:
      The estimate, with means and variances at each β.

    Raises:
      ValueError: If an argument is out of range, or a density of 0 was met
        where the base is positive. Under jit the estimate is NaN instead.
      TypeError: If `base` or `target` lacks a method.
      FloatingPointError: If chains diverged. Under jit the estimate is NaN
        instead.

    Example:
      >>> base, betas = dj.targets.gaussian([0.0, 0.0], 2.0), jnp.linspace(0, 1, 5)
      >>> make_kernel = lambda density, beta: dj.langevin.mala(density, 0.3)
      >>> estimate = dj.langevin.thermodynamic_integration(
      ...     key, base, target, betas, make_kernel=make_kernel
      ... )
    """
    arrays, static = partition((base, target, as_pytree_callable(make_kernel)))
    settings = (static, steps, warm_up, count)
    at_base, (means, spreads, acceptance), diverged_at = _integrate(
        settings, arrays, key, betas
    )  # means, spreads and acceptance: (count, K + 1)
    _raise_if_bad(at_base, diverged_at)
    _raise_if_bad(means, diverged_at)
    _raise_unless_supported(at_base, means)
    return _summary_of_means(at_base, means, spreads, acceptance, betas)


@jax.jit
def _summary_of_means(at_base, means, spreads, acceptance, betas):
    # Under jit nothing was raised for a density of 0: the estimate is NaN
    # instead.
    means = jnp.where(jnp.isfinite(at_base)[:, None], means, jnp.nan)
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


# ---- chains through all β


@compiled
def _anneal(settings, arrays, key, betas):
    static, steps, count = settings
    base, target, make_kernel = combine(arrays, static)

    def one(key):
        key_start, key_steps = jax.random.split(key)
        x = base.sample(key_start)
        base_density = as_log_density("base", base)

        def next_beta(carry, k):
            log_weight, x, diverged_at = carry
            gain = _difference(base_density, target, x)
            log_weight = log_weight + (betas[k + 1] - betas[k]) * gain
            kernel = _kernel_at(make_kernel, base_density, target, betas[k + 1])
            state, bad = _walk(kernel, key_steps, k * steps, steps, x, diverged_at)
            return (log_weight, state.x, bad), None

        # The last increment needs no step after it: the loop ends at β_{K−1}.
        begin = (jnp.zeros((), x.dtype), x, start(x)[1])
        (log_weight, x, bad), _ = jax.lax.scan(
            next_beta, begin, jnp.arange(betas.shape[0] - 2)
        )
        log_weight = log_weight + (betas[-1] - betas[-2]) * _difference(
            base_density, target, x
        )
        return jnp.where(bad == NEVER, log_weight, jnp.nan), x, bad

    return jax.vmap(one)(chain_keys(key, count))


@compiled
def _integrate(settings, arrays, key, betas):
    static, steps, warm_up, count = settings
    base, target, make_kernel = combine(arrays, static)
    steps_per_beta = warm_up + steps

    def one(key):
        key_start, key_steps, key_draws = jax.random.split(key, 3)
        x = base.sample(key_start)
        base_density = as_log_density("base", base)

        def with_draw(n, total):
            draw = base.sample(jax.random.fold_in(key_draws, n))
            return total + _difference(base_density, target, draw)

        # Infinite where a draw from the base meets a density of 0, which a
        # chain may never do.
        at_base = jax.lax.fori_loop(
            0,
            max(steps, -(-DRAWS // count)),
            with_draw,
            _difference(base_density, target, x),
        )

        def next_beta(carry, k):
            x, diverged_at = carry
            kernel = _kernel_at(make_kernel, base_density, target, betas[k])
            first = k * steps_per_beta
            state, bad = _walk(kernel, key_steps, first, warm_up, x, diverged_at)

            def measured(carry, n):
                carry, info = advance(kernel, key_steps, n, carry)
                value = _difference(base_density, target, carry[0].x)
                return carry, (value, info.acceptance)

            (state, bad), (values, acceptances) = jax.lax.scan(
                measured, (state, bad), first + warm_up + jnp.arange(steps)
            )
            value = jnp.where(bad == NEVER, values.mean(), jnp.nan)
            return (state.x, bad), (value, values.var(), acceptances.mean())

        (x, bad), parts = jax.lax.scan(
            next_beta, (x, start(x)[1]), jnp.arange(betas.shape[0])
        )
        return at_base, parts, bad

    return jax.vmap(one)(chain_keys(key, count))


def _kernel_at(make_kernel, base, target, beta):
    kernel = make_kernel(Tempered(base, target, beta), beta)
    return checks.has_methods("make_kernel(density, beta)", kernel, *METHODS)


def _walk(kernel, key, first, steps, x, diverged_at):
    """(state, diverged_at) after steps number first, first + 1, … from x."""

    def step(n, carry):
        return advance(kernel, key, n, carry)[0]

    state = at_start(key, kernel.init(x), first)
    return jax.lax.fori_loop(first, first + steps, step, (state, diverged_at))


def _difference(base, target, x):
    return target.log_prob(x) - base.log_prob(x)


def _raise_if_bad(values, diverged_at):
    """Raise FloatingPointError for diverged chains, and values of NaN or +infinity."""
    raise_if_diverged(diverged_at)
    checks.below_infinity("log p̃ − log p_0", values, FloatingPointError)


def _raise_unless_supported(at_base, means):
    """Raise ValueError where a draw or a chain met a density of 0."""
    if checks.is_traced(at_base, means):
        return
    outside = np.isneginf(np.asarray(at_base)) | np.isneginf(np.asarray(means)).any(1)
    checks.require(
        not outside.any(),
        "target must be positive wherever base is: log p̃ is -infinity on the way of "
        f"{int(outside.sum())} of {len(outside)} chains or at draws from the base "
        "beside them, and so is the integrand; use "
        "annealed_importance_sampling, or a base within the target's support",
    )
