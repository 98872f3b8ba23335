"""Kullback–Leibler, Jensen–Shannon and Fisher divergence of two distributions p and q.

A distribution is any object with `log_prob(x)`, normalised and in nats. The
estimates by samples also need `sample(key)`. Targets, flows, and an `energy`
whose log Z is known are distributions.

Each divergence is an expectation E_p[r(x)], or the mean of two. So it is
stated once, as r, for both ways of computing it. By quadrature, in one or two
dimensions, it is exact up to the error of the rule. By samples, in any
dimension, it is unbiased and has a standard error.

Where p is 0 nothing is added. Where q is 0 and p is not, the KL and Fisher
divergences are +infinity. All raise ValueError where concrete log densities
are NaN or +infinity, with their number. Under jit the result is NaN instead.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, quadrature
from ..numerics import standard_error
from ..targets import score
from ..types import Array, ArrayLike, Key, combine, compiled, partition, pytree

__all__ = [
    "Estimate",
    "fisher_by_quadrature",
    "fisher_by_samples",
    "jensen_shannon_by_quadrature",
    "jensen_shannon_by_samples",
    "kl_by_quadrature",
    "kl_by_samples",
]

AT_ONCE = 2**14
"""Positions that are evaluated as one batch."""

DENSITY = (checks.has_methods, "log_prob(x)")
"""Check of a distribution whose density is needed."""

SAMPLED = {"key": checks.key, "count": (checks.integer, 2)}
"""Checks of the arguments of a mean over samples."""


class Estimate(NamedTuple):
    """A mean over samples.

    Attributes:
      value: The mean, ().
      standard_error: Standard error of the mean, (). Infinite where the value
        is.
    """

    value: Array
    standard_error: Array


# ---- the integrands r(x), each with log p(x) and log q(x)


def _log_ratio(p, q, x):
    """r = log p(x) − log q(x)."""
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    return log_p, log_q, log_p - log_q


def _log_ratio_to_middle(p, q, x):
    """r = log p(x) − log ½(p(x) + q(x)) = log 2 − log(1 + q/p), at most log 2."""
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    return log_p, log_q, math.log(2) - jax.nn.softplus(log_q - log_p)


def _squared_score_gap(p, q, x):
    """r = ‖∇log p(x) − ∇log q(x)‖², +infinity where q is 0."""
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    gap = jnp.sum((score(p, x) - score(q, x)) ** 2)
    return log_p, log_q, jnp.where(log_q == -jnp.inf, jnp.inf, gap)


# ---- by quadrature


@checks.arguments(p=DENSITY, q=DENSITY)
def kl_by_quadrature(
    p: Any,
    q: Any,
    bounds: ArrayLike,
    points: int = 512,
    *,
    tolerance: float | None = 1e-4,
) -> Array:
    """Kullback–Leibler divergence by the midpoint rule, in one or two dimensions.

        KL(p ‖ q) = ∫ p (log p − log q) dx

    Args:
      p: A distribution with `log_prob`.
      q: Likewise. It may reach beyond the bounds.
      bounds: A box that holds the mass of p, as in `quadrature.rule`: (2,) for
        x of shape (), or (1, 2) or (2, 2) for x of shape (1,) or (2,).
      points: Number of cells along each axis.
      tolerance: Greatest accepted difference from 1 of p's mass, which is what
        the bounds or the cells leave out. None for no such check.

    Returns:
      The divergence in nats, ().

    Raises:
      ValueError: If p has not decayed at the bounds, is not resolved by the
        points or is not normalised, or if q's mass within the bounds exceeds
        1.
      TypeError: If p or q has no `log_prob`.

    Example:
      >>> p, q = dj.targets.gaussian([0.0], 1.0), dj.targets.gaussian([1.0], 1.0)
      >>> half = dj.divergences.kl_by_quadrature(p, q, [(-9, 9)])  # ½ to rounding
    """
    return _expectation_by_quadrature(_log_ratio, p, q, bounds, points, tolerance)


@checks.arguments(p=DENSITY, q=DENSITY)
def jensen_shannon_by_quadrature(
    p: Any,
    q: Any,
    bounds: ArrayLike,
    points: int = 512,
    *,
    tolerance: float | None = 1e-4,
) -> Array:
    """Jensen–Shannon divergence by the midpoint rule (Lin 1991, equation 5.1).

        ½ KL(p ‖ m) + ½ KL(q ‖ m),    m = ½ (p + q)

    It is symmetric and lies between 0 and log 2.

    Args:
      p: A distribution with `log_prob`.
      q: Likewise.
      bounds: A box that holds the mass of both, as in `kl_by_quadrature`.
      points: Number of cells along each axis.
      tolerance: As in `kl_by_quadrature`, for both.

    Returns:
      The divergence in nats, ().

    Raises:
      ValueError: As `kl_by_quadrature`, for both.
      TypeError: If p or q has no `log_prob`.
    """
    settings = bounds, points, tolerance
    of_p = _expectation_by_quadrature(_log_ratio_to_middle, p, q, *settings)
    of_q = _expectation_by_quadrature(_log_ratio_to_middle, q, p, *settings, names="qp")
    return _mean_of(of_p, of_q)


@checks.arguments(p=DENSITY, q=DENSITY)
def fisher_by_quadrature(
    p: Any,
    q: Any,
    bounds: ArrayLike,
    points: int = 512,
    *,
    tolerance: float | None = 1e-4,
) -> Array:
    """Fisher divergence by the midpoint rule (Hyvärinen 2005, equation 2).

        E_p ‖∇log p − ∇log q‖²

    Explicit score matching minimises half of it. It is −2 times the rate at
    which KL(p ‖ q) falls when noise of variance t is added to both (Lyu 2009,
    Theorem 1). It does not see the weights of modes that are far apart.

    Args:
      p: A distribution with `log_prob`.
      q: Likewise.
      bounds: A box that holds the mass of p, as in `kl_by_quadrature`.
      points: Number of cells along each axis.
      tolerance: As in `kl_by_quadrature`.

    Returns:
      The divergence in nats² per squared unit of x, ().

    Raises:
      ValueError: As `kl_by_quadrature`.
      TypeError: If p or q has no `log_prob`.
    """
    return _expectation_by_quadrature(
        _squared_score_gap, p, q, bounds, points, tolerance
    )


def _expectation_by_quadrature(ratio, p, q, bounds, points, tolerance, names="pq"):
    """∫ p r."""
    rule = quadrature.rule(bounds, points)
    if tolerance is not None:
        raise_unless_normalised(names[0], p, bounds, points, tolerance=tolerance)
    arrays, static = partition((p, q))
    value, mass, report = _integral(
        (ratio, static), arrays, rule.nodes, math.log(rule.weight)
    )
    _raise_if_bad(names, report, len(rule.nodes))
    if tolerance is not None and not checks.is_traced(mass):
        _check_mass(names[1], float(mass), not float(mass) > 1 + tolerance)
    return value


@compiled
def _integral(settings, arrays, nodes, log_weight):
    """∫ p r, ∫ q, and the report of bad values."""
    log_p, log_q, values = _evaluate(settings, arrays, nodes)
    inside = log_p > -jnp.inf
    report = _report(log_p, log_q, values)
    # The mass of a cell, because a density or a volume alone may leave
    # float32's range in small or large units. It is 1 where r is infinite: p
    # may underflow, and 0 · ∞ would be NaN.
    mass = jnp.where(inside & (values == jnp.inf), 1, jnp.exp(log_p + log_weight))
    total = jnp.sum(jnp.where(inside, mass * jnp.where(inside, values, 0), 0))
    return _nan_if_bad(total, report), jnp.sum(jnp.exp(log_q + log_weight)), report


def raise_unless_normalised(
    name: str, p: Any, bounds: ArrayLike, points: int, *, tolerance: float
) -> None:
    """Raise ValueError unless a density is resolved, has decayed and has mass 1.

    Args:
      name: The argument's name, for the message.
      p: A distribution with `log_prob`.
      bounds: The box, as in `quadrature.rule`.
      points: Number of cells along each axis.
      tolerance: Greatest accepted difference from 1. Traced masses are not
        checked.
    """
    log_mass = quadrature.log_integral(
        LogProb(p), bounds, points, tolerance=tolerance, name=f"{name}.log_prob"
    )
    if not checks.is_traced(log_mass):
        mass = math.exp(float(log_mass))
        _check_mass(name, mass, abs(float(log_mass)) <= tolerance)


def _check_mass(name, mass, fits):
    got = f"got a mass of {mass:.6g} within the bounds"
    checks.require(fits, f"{name} must be normalised, {got}")


# ---- by samples


@checks.arguments(p=checks.distribution, q=DENSITY, **SAMPLED)
def kl_by_samples(key: Key, p: Any, q: Any, count: int = 4096) -> Estimate:
    """Unbiased estimate of the Kullback–Leibler divergence KL(p ‖ q).

        (1/n) Σ_i (log p(x_i) − log q(x_i)),    x_i drawn from p

    For the other direction exchange p and q. The estimate may be negative, by
    its standard error. Where q is far smaller than p at positions that are
    rarely drawn, the standard error is too small. Where a log density is known
    up to log Z alone, the result is off by that log Z.

    Args:
      key: A typed key.
      p: A distribution with `log_prob` and `sample`.
      q: A distribution with `log_prob`.
      count: Number n of samples, at least 2.

    Returns:
      The estimate in nats with its standard error.

    Raises:
      ValueError: If p is 0 at a sample of p, log densities are NaN or
        +infinity, or `count` is below 2.
      TypeError: If p or q lacks a method.

    Example:
      >>> broad = dj.targets.gaussian([0.0, 0.0], 2.0)
      >>> value, error = dj.divergences.kl_by_samples(key, target, broad, 64)
    """
    return _expectation_by_samples(_log_ratio, key, p, q, count)


@checks.arguments(p=checks.distribution, q=checks.distribution, **SAMPLED)
def jensen_shannon_by_samples(key: Key, p: Any, q: Any, count: int = 4096) -> Estimate:
    """Unbiased estimate of the Jensen–Shannon divergence (Lin 1991, equation 5.1).

        ½ mean of log p/m over samples of p + ½ mean of log q/m over samples of q

    with m = ½ (p + q). The terms are at most log 2. So the standard error can
    be trusted however far apart the distributions are. Both must be
    normalised.

    Args:
      key: A typed key.
      p: A distribution with `log_prob` and `sample`.
      q: Likewise.
      count: Number of samples of each, at least 2.

    Returns:
      The estimate in nats with its standard error.

    Raises:
      ValueError: As `kl_by_samples`, for both.
      TypeError: If p or q lacks a method.
    """
    key_p, key_q = _two_keys(key)
    of_p = _expectation_by_samples(_log_ratio_to_middle, key_p, p, q, count)
    of_q = _expectation_by_samples(_log_ratio_to_middle, key_q, q, p, count, names="qp")
    return _mean_of_estimates(of_p, of_q)


@checks.arguments(p=checks.distribution, q=DENSITY, **SAMPLED)
def fisher_by_samples(key: Key, p: Any, q: Any, count: int = 4096) -> Estimate:
    """Unbiased estimate of the Fisher divergence, in any dimension.

        (1/n) Σ_i ‖∇log p(x_i) − ∇log q(x_i)‖²,    x_i drawn from p

    No log Z is needed. See `fisher_by_quadrature`.

    Args:
      key: A typed key.
      p: A distribution with `log_prob` and `sample`.
      q: A distribution with `log_prob`.
      count: Number n of samples, at least 2.

    Returns:
      The estimate in nats² per squared unit of x, with its standard error.

    Raises:
      ValueError: As `kl_by_samples`.
      TypeError: If p or q lacks a method.
    """
    return _expectation_by_samples(_squared_score_gap, key, p, q, count)


def _expectation_by_samples(ratio, key, p, q, count, names="pq"):
    """Mean of r over samples of p, with its standard error."""
    arrays, static = partition((p, q))
    value, error, absent, report = _mean((ratio, static, count), arrays, key)
    _raise_if_bad(names, report, count)
    drawn = f"at samples of {names[0]}, got {absent} -infinity of {count}"
    fits = checks.is_traced(absent) or not absent
    checks.require(fits, f"{names[0]}.log_prob must be finite {drawn}")
    return Estimate(value, error)


@compiled
def _mean(settings, arrays, key):
    """Mean, standard error, number of samples at which p is 0, report of bad values."""
    ratio, static, count = settings
    p, _ = combine(arrays, static)
    xs = jax.vmap(p.sample)(jax.random.split(key, count))
    log_p, log_q, values = _evaluate((ratio, static), arrays, xs)
    report = _report(log_p, log_q, values)
    bounded = jnp.isfinite(values).all()
    error = standard_error(jnp.where(bounded, values, 0))
    error = jnp.where(bounded, error, jnp.inf)
    mean = _nan_if_bad(jnp.mean(values), report)
    return mean, error, jnp.sum(log_p == -jnp.inf), report


@jax.jit
def _two_keys(key):
    first, second = jax.random.split(key)
    return first, second


@jax.jit
def _mean_of(a, b):
    return 0.5 * (a + b)


@jax.jit
def _mean_of_estimates(a, b):
    return Estimate(
        0.5 * (a.value + b.value), 0.5 * jnp.hypot(a.standard_error, b.standard_error)
    )


# ---- evaluation, and the report of bad values


@pytree
class LogProb:
    """x -> log p(x) of a distribution, as a callable pytree."""

    distribution: Any

    def __call__(self, x: Array) -> Array:
        """log p(x), ()."""
        return self.distribution.log_prob(x)


def _evaluate(settings, arrays, xs):
    """log p, log q and r at positions (N, *shape), (N,) each."""
    ratio: Callable = settings[0]
    p, q = combine(arrays, settings[1])

    def at(x):
        values = tuple(map(jnp.asarray, ratio(p, q, x)))
        for name, value in zip(("p", "q"), values[:2], strict=True):
            checks.scalar_of(f"{name}.log_prob", value)
        return values

    return jax.lax.map(at, xs, batch_size=min(AT_ONCE, len(xs)))


def _report(log_p, log_q, values):
    """Numbers of bad values, (3,).

    They count log p and log q that are NaN or +infinity, and r that are NaN
    where p is not 0 and both log densities are good.
    """
    bad_p, bad_q = (jnp.isnan(v) | (v == jnp.inf) for v in (log_p, log_q))
    bad_values = jnp.isnan(values) & (log_p > -jnp.inf) & ~bad_p & ~bad_q
    return jnp.stack([bad_p.sum(), bad_q.sum(), bad_values.sum()])


def _nan_if_bad(value, report):
    return jnp.where(report.any(), jnp.nan, value)


def _raise_if_bad(names, report, count):
    if checks.is_traced(report):
        return
    of_p, of_q, of_ratio = np.asarray(report).tolist()
    for name, bad in zip(names, (of_p, of_q), strict=True):
        got = f"got {bad} NaN or +infinity of {count} values"
        checks.require(not bad, f"{name}.log_prob must be below infinity, {got}")
    got = f"got {of_ratio} NaN of {count}"
    checks.require(not of_ratio, f"scores of p and q must be finite where p > 0, {got}")
