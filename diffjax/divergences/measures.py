"""Kullback–Leibler, Jensen–Shannon and Fisher divergence of two laws p and q.

A law is a pytree, or any object, with `log_prob(x)`, in nats and normalised, and for the estimates by samples with
`sample(key)`: a target, a flow, an `energy` whose log Z is known. Each divergence is an expectation E_p[r(x)], or the
mean of two, so that it is stated once, as r, for both ways.

By quadrature, in one or two dimensions, it is exact but for the rule's error. By samples, in any dimension, it is
unbiased, and comes with its standard error.

Where p is 0 nothing is added; where q is 0 and p is not, KL and Fisher divergence are +infinity. All raise TypeError
for what is no such law, and ValueError where concrete log densities are NaN or +infinity, with their number; under jit
the result is NaN then.
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

AT_ONCE = 2**14
"""Places that are evaluated as one batch."""


class Estimate(NamedTuple):
    """value: the mean over the samples, (). standard_error: of that mean, (); infinite where the value is."""

    value: Array
    standard_error: Array


# ------------------------------------------------------------------------------------- what each is the expectation of


def _log_ratio(p, q, x):
    """log p(x) − log q(x)."""
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    return log_p, log_q, log_p - log_q


def _log_ratio_to_middle(p, q, x):
    """log p(x) − log ½(p(x) + q(x)) = log 2 − log(1 + q/p), at most log 2."""
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    return log_p, log_q, math.log(2) - jax.nn.softplus(log_q - log_p)


def _squared_score_gap(p, q, x):
    """‖∇log p(x) − ∇log q(x)‖², +infinity where q is 0."""
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    gap = jnp.sum((score(p, x) - score(q, x)) ** 2)
    return log_p, log_q, jnp.where(log_q == -jnp.inf, jnp.inf, gap)


# ------------------------------------------------------------------------------------------------------- by quadrature


def kl_by_quadrature(
    p: Any,
    q: Any,
    bounds: ArrayLike,
    points: int = 512,
    *,
    tolerance: float | None = 1e-4,
) -> Array:
    """KL(p ‖ q) = ∫ p (log p − log q) in nats, shape ().

    bounds, points: as in `quadrature.rule`: (2,) for x of shape (), (1, 2) or (2, 2) for x of shape (1,) or (2,). They
    must hold the mass of p; q may reach beyond. tolerance: by how much p's mass may differ from 1, which is what its
    beyond the bounds or between the nodes leave out; None for no such check.

    Raises ValueError where p has not decayed at the bounds, is not resolved by the points, or is not normalised, and
    where q's mass within the bounds exceeds 1.
    """
    return _expectation_by_quadrature(_log_ratio, p, q, bounds, points, tolerance)


def jensen_shannon_by_quadrature(
    p: Any,
    q: Any,
    bounds: ArrayLike,
    points: int = 512,
    *,
    tolerance: float | None = 1e-4,
) -> Array:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = ½(p + q), in nats, shape (); symmetric, between 0 and log 2.

    Arguments as in `kl_by_quadrature`; the bounds must hold the mass of both. Lin 1991, eq. 5.1.
    """
    halves = [_expectation_by_quadrature(_log_ratio_to_middle, *pair, bounds, points, tolerance, names=names)
              for pair, names in (((p, q), "pq"), ((q, p), "qp"))]  # fmt: skip
    return _mean_of(*halves)


def fisher_by_quadrature(
    p: Any,
    q: Any,
    bounds: ArrayLike,
    points: int = 512,
    *,
    tolerance: float | None = 1e-4,
) -> Array:
    """E_p ‖∇log p − ∇log q‖², shape (), in nats² per squared unit of x.

    It is what explicit score matching minimises, and −2 times the rate at which KL(p ‖ q) falls when noise of variance
    t is added to both. Blind to the weights of modes that are far apart. Arguments as in `kl_by_quadrature`. Hyvärinen
    2005, eq. 2 (there with ½); Lyu 2009, Theorem 1.
    """
    return _expectation_by_quadrature(
        _squared_score_gap, p, q, bounds, points, tolerance
    )


def _expectation_by_quadrature(ratio, p, q, bounds, points, tolerance, names="pq"):
    """∫ p r."""
    for name, law in zip(names, (p, q), strict=True):
        check_law(name, law)
    rule = quadrature.rule(bounds, points)
    if tolerance is not None:
        check_mass(names[0], p, bounds, points, tolerance)
    arrays, static = partition((p, q))
    value, mass, report = _integral(
        (ratio, static), arrays, rule.nodes, math.log(rule.weight)
    )
    _refuse(names, report, len(rule.nodes))
    if (
        tolerance is not None
        and not checks.is_traced(mass)
        and float(mass) > 1 + tolerance
    ):
        raise ValueError(
            f"{names[1]} must be normalised, got a mass of {float(mass):.6g} within the bounds"
        )
    return value


@compiled
def _integral(settings, arrays, nodes, log_weight):
    """(∫ p r, ∫ q, report)."""
    log_p, log_q, values = _evaluate(settings, arrays, nodes)
    inside = log_p > -jnp.inf
    report = _report(log_p, log_q, values)
    # The mass of a cell: a density or a volume alone may leave float32's range in small or large units.
    mass = jnp.where(
        inside & (values == jnp.inf), 1, jnp.exp(log_p + log_weight)
    )  # p may underflow: 0 · inf
    total = jnp.sum(jnp.where(inside, mass * jnp.where(inside, values, 0), 0))
    return _nan_if_bad(total, report), jnp.sum(jnp.exp(log_q + log_weight)), report


def check_mass(
    name: str, law: Any, bounds: ArrayLike, points: int, tolerance: float
) -> Array:
    """log ∫ law over the box; refused by name unless the law is resolved, has decayed at the bounds and mass 1."""
    log_mass = quadrature.log_integral(
        LogProb(law), bounds, points, tolerance=tolerance, name=f"{name}.log_prob"
    )
    if not checks.is_traced(log_mass) and not abs(float(log_mass)) <= tolerance:
        raise ValueError(
            f"{name} must be normalised, got a mass of {math.exp(float(log_mass)):.6g} within the bounds"
        )
    return log_mass


# ---------------------------------------------------------------------------------------------------------- by samples


def kl_by_samples(key: Key, p: Any, q: Any, count: int = 4096) -> Estimate:
    """The mean of log p(x_i) − log q(x_i) over samples of p: an unbiased estimate of KL(p ‖ q) in nats.

    count: samples, 2 or more. For the other direction swap p and q. It may be negative, by its standard error; where q
    is far smaller than p in places that are rarely drawn, so is the standard error too small. Where a log density is
    known up to log Z alone, the result is off by that log Z.
    """
    return _expectation_by_samples(_log_ratio, key, p, q, count)


def jensen_shannon_by_samples(key: Key, p: Any, q: Any, count: int = 4096) -> Estimate:
    """½ the mean of log p/m over `count` samples of p, and ½ that of log q/m over as many of q, m = ½(p + q); in nats.

    Both laws are sampled. The summands are at most log 2, so that the standard error can be trusted however far apart
    the laws are. Both must be normalised. Lin 1991, eq. 5.1.
    """
    key_p, key_q = two_keys(checks.key("key", key))
    of_p = _expectation_by_samples(_log_ratio_to_middle, key_p, p, q, count)
    of_q = _expectation_by_samples(_log_ratio_to_middle, key_q, q, p, count, names="qp")
    return _mean_of_estimates(of_p, of_q)


def fisher_by_samples(key: Key, p: Any, q: Any, count: int = 4096) -> Estimate:
    """The mean of ‖∇log p(x_i) − ∇log q(x_i)‖² over samples of p: `fisher_by_quadrature` in any dimension.

    No log Z is needed.
    """
    return _expectation_by_samples(_squared_score_gap, key, p, q, count)


def _expectation_by_samples(ratio, key, p, q, count, names="pq"):
    """Mean of r over samples of p, with its standard error."""
    for name, law in zip(names, (p, q), strict=True):
        check_law(name, law)
    check_sampler(names[0], p)
    checks.key("key", key)
    count = checks.integer("count", count, 2)
    arrays, static = partition((p, q))
    value, error, absent, report = _mean((ratio, static, count), arrays, key)
    _refuse(names, report, count)
    if not checks.is_traced(absent) and absent:
        name = names[0]
        raise ValueError(
            f"{name}.log_prob must be finite at {name}'s own samples, got {absent} -infinity of {count}"
        )
    return Estimate(value, error)


@compiled
def _mean(settings, arrays, key):
    """(mean, standard error, samples at which p is 0, report)."""
    ratio, static, count = settings
    p, _ = combine(arrays, static)
    places = jax.vmap(p.sample)(jax.random.split(key, count))
    log_p, log_q, values = _evaluate((ratio, static), arrays, places)
    report = _report(log_p, log_q, values)
    bounded = jnp.isfinite(values).all()
    error = jnp.where(
        bounded,
        standard_error(jnp.where(bounded, values, 0)),
        jnp.inf,
    )
    return (
        _nan_if_bad(jnp.mean(values), report),
        error,
        jnp.sum(log_p == -jnp.inf),
        report,
    )


@jax.jit
def two_keys(key: Key) -> tuple[Key, Key]:
    """`jax.random.split(key)` as a pair, by one program."""
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


# -------------------------------------------------------------------------------------------------- evaluation, checks


@pytree
class LogProb:
    """x -> log p(x) of a law, as a pytree callable."""

    law: Any

    def __call__(self, x: Array) -> Array:
        """Shape ()."""
        return self.law.log_prob(x)


def check_law(name: str, law: Any) -> None:
    """Refuse what has no `log_prob`."""
    if not callable(getattr(law, "log_prob", None)):
        raise TypeError(f"{name} must have log_prob(x), got {law!r}")


def check_sampler(name: str, law: Any) -> None:
    """Refuse what has no `sample`."""
    if not callable(getattr(law, "sample", None)):
        raise TypeError(f"{name} must have sample(key), got {law!r}")


def _evaluate(settings, arrays, places):
    """log p, log q and r at places (N, *shape), each (N,)."""
    ratio: Callable = settings[0]
    p, q = combine(arrays, settings[1])

    def at(x):
        found = tuple(map(jnp.asarray, ratio(p, q, x)))
        for name, value in zip(("p", "q"), found[:2], strict=True):
            if value.shape != ():
                raise ValueError(
                    f"{name}.log_prob must return a scalar, got shape {value.shape}"
                )
        return found

    return jax.lax.map(at, places, batch_size=min(AT_ONCE, len(places)))


def _report(log_p, log_q, values):
    """How many log p, log q and, where p is not 0, how many r are no numbers or +infinity (r: no numbers), (3,)."""
    bad_p, bad_q = (jnp.isnan(v) | (v == jnp.inf) for v in (log_p, log_q))
    return jnp.stack(
        [
            bad_p.sum(),
            bad_q.sum(),
            (jnp.isnan(values) & (log_p > -jnp.inf) & ~bad_p & ~bad_q).sum(),
        ]
    )


def _nan_if_bad(value, report):
    return jnp.where(report.any(), jnp.nan, value)


def _refuse(names, report, count):
    if checks.is_traced(report):
        return
    of_p, of_q, of_ratio = np.asarray(report).tolist()
    for name, bad in zip(names, (of_p, of_q), strict=True):
        if bad:
            raise ValueError(
                f"{name}.log_prob must be below infinity, got {bad} NaN or +infinity of {count} values"
            )
    if of_ratio:
        raise ValueError(
            f"the scores of p and q must be finite where p is positive, got {of_ratio} NaN of {count}"
        )
