"""Fitting a flow to data or to an unnormalised density, and estimates of log Z with it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..langevin.normalisers import ImportanceEstimate, importance_estimate
from ..types import Array, ArrayLike, Key, PyTree, one_program
from .compiled import call
from .density import Flow, check_flow


def negative_log_likelihood(
    flow: Flow, xs: ArrayLike, conditions: PyTree = None
) -> tuple[Array, Array]:
    """(mean, losses) of −log p(x_i) in nats, shapes () and (N,): the objective of maximum likelihood.

    Its expectation is KL(data‖flow) plus the data's entropy, which is the least it can reach. xs: (N, *shape).
    conditions: pytree with leading axis N. NaN is never dropped: one NaN makes the mean NaN. Raises ValueError for
    concrete NaN or infinity in xs, and leading axes that differ.
    """
    checks.callable_(
        "flow.log_prob", getattr(flow, "log_prob", None), "flow.log_prob(x)"
    )
    xs = checks.real_array("xs", xs)
    checks.finite("xs", xs)
    if xs.ndim == 0 or xs.shape[0] == 0:
        raise ValueError(
            f"xs must have shape (N, ...) with N at least 1, got {xs.shape}"
        )
    checks.leading_axis("conditions", conditions, "xs", xs.shape[0])
    return call(_negative_log_likelihood, flow, xs, conditions)


def _negative_log_likelihood(flow, xs, conditions):
    losses = -jax.vmap(flow.log_prob)(xs, conditions)
    return jnp.mean(losses), losses


def reverse_kl(
    key: Key,
    flow: Flow,
    log_density: Callable,
    count: int = 256,
    *,
    path_gradient: bool = False,
    condition: Any = None,
) -> tuple[Array, Array]:
    """(mean, values) of log q(x_i) − log p̃(x_i) at `count` samples x_i of the flow q, shapes () and (count,).

    Its expectation is KL(q‖p) − log Z: it needs no data, and prefers modes to mass. log_density: x -> log p̃(x), known
    up to log Z. path_gradient: leave out the score ∂_θ log q at fixed x, whose mean is 0, from the gradient, by an
    inverse pass through parameters held fixed: the value is the same, and the gradient's variance vanishes where q = p.
    condition: of all samples, as the flow takes it. Raises ValueError where concrete log p̃ are NaN or +infinity, or log
    q at the flow's own samples is not finite, with their number; under jit the mean shows it. Rezende & Mohamed 2015,
    eq. 15; Roeder et al. 2017, eq. 6; Vaitl et al. 2022.
    """
    path_gradient = checks.boolean("path_gradient", path_gradient)
    xs, log_q = _draws(key, flow, log_density, count, condition, path_gradient)
    values, mean = _compare(log_density, xs, log_q)
    return mean, values


def importance_log_z(
    key: Key,
    flow: Flow,
    log_density: Callable,
    count: int = 1024,
    *,
    condition: Any = None,
) -> ImportanceEstimate:
    """log Ẑ = log (1/n) Σ w_i with w_i = p̃(x_i)/q(x_i), x_i of the flow q; with its standard error and effective size.

    Ẑ is unbiased where q > 0 wherever p̃ > 0, and E log Ẑ ≤ log Z, by about Var(w)/(2 n Z²). The standard error is
    √(1/ESS − 1/n); a small effective size says that few samples carry the estimate and that neither is to be trusted. A
    weight 0 (log density −infinity) is allowed, but not all of them: there is no estimate then. Expectations under p: Σ
    w_i f(x_i)/Σ w_i. condition: of all samples, as the flow takes it. Raises ValueError where concrete log p̃ are NaN or
    +infinity, log q at the flow's own samples is not finite or all weights are 0; under jit the estimate is NaN then.
    Kong 1992.
    """
    xs, log_q = _draws(key, flow, log_density, count, condition)
    values, _ = _compare(log_density, xs, log_q, weights=True)
    return importance_estimate(values, xs)


def _draws(key, flow, log_density, count, condition, path_gradient=False):
    checks.key("key", key)
    checks.callable_("log_density", log_density, "log_density(x) -> ()")
    check_flow(flow)
    count = checks.integer("count", count, 1)
    xs, log_q, result = call(
        _drawn, key, flow, condition, count=count, path_gradient=path_gradient
    )
    if not checks.is_traced(log_q):
        bad = int(np.sum(~np.isfinite(log_q)))
        if bad:
            raise ValueError(
                f"flow must have a finite density at its own samples, got {bad} of {count} that are not"
            )
    return xs, result


def _drawn(key, flow, condition, count, path_gradient):
    """(samples, log q there, log q without the score of the parameters where path_gradient is set)."""
    xs, log_q = jax.vmap(lambda key: flow.sample_and_log_prob(key, condition))(
        jax.random.split(key, count)
    )
    if not path_gradient:
        return xs, log_q, log_q
    fixed = jax.lax.stop_gradient(flow)
    return xs, log_q, jax.vmap(lambda x: fixed.log_prob(x, condition))(xs)


def _compare(log_density, xs, log_q, weights=False):
    """(log q − log p̃ at xs, their mean), or log p̃ − log q where these are to be weights."""
    log_p, values, mean = _compared(log_density, xs, log_q, weights)
    if not checks.is_traced(log_p):
        bad = int(np.sum(np.isnan(log_p) | np.isposinf(log_p)))
        if bad:
            raise ValueError(
                f"log_density must be below infinity, got {bad} NaN or +infinity of {len(xs)} values"
            )
    return values, mean


@one_program
def _compared(log_density, xs, log_q, weights):
    log_p = checks.real_array("log_density(x)", jax.vmap(log_density)(xs))
    if log_p.shape != (len(xs),):
        raise ValueError(f"log_density must return shape (), got {log_p.shape[1:]}")
    values = (
        log_p - jnp.where(jnp.isfinite(log_q), log_q, jnp.nan)
        if weights
        else log_q - log_p
    )
    return log_p, values, jnp.mean(values)
