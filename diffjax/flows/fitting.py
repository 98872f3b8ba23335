"""Objectives of a flow, and estimates of log Z with it.

By maximum likelihood a flow is fitted to data, by reverse KL to an
unnormalised density. Importance sampling with a fitted flow estimates the
density's log Z.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..langevin.normalisers import ImportanceEstimate, importance_estimate
from ..types import Array, ArrayLike, Key, PyTree, one_program
from .compiled import call
from .density import FLOW, Flow

__all__ = ["importance_log_z", "negative_log_likelihood", "reverse_kl"]

_TO_A_DENSITY = {
    "key": checks.key,
    "flow": FLOW,
    "log_density": (checks.callable_, "log_density(x) -> ()"),
    "count": (checks.integer, 1),
}
"""Checks of the arguments that fit a flow to a density."""


@checks.arguments(flow=(checks.has_methods, "log_prob(x)"), xs=checks.finite_batch)
def negative_log_likelihood(
    flow: Flow, xs: ArrayLike, conditions: PyTree = None
) -> tuple[Array, Array]:
    """Objective of maximum likelihood.

        L = −(1/N) Σ_i log p(x_i)

    Its expectation is KL(data‖flow) plus the data's entropy, which is the
    least it can reach.

    Args:
      flow: Anything with log_prob(x, condition).
      xs: Data, (N, *shape).
      conditions: Pytree of leading axis N.

    Returns:
      (mean, losses) in nats, shapes () and (N,). NaN is never dropped: one NaN
      makes the mean NaN.

    Raises:
      TypeError: If flow has no log_prob.
      ValueError: For concrete NaN or infinity in xs, and leading axes that
        differ.

    Example:
      >>> flow = dj.flows.flow(dj.distributions.standard_normal(()), dj.flows.chain())
      >>> loss, _ = dj.flows.negative_log_likelihood(flow, jnp.zeros(3))
      >>> round(float(loss), 3)  # ½ log 2π
      0.919
    """
    checks.leading_axis("conditions", conditions, "xs", xs.shape[0])
    return call(_negative_log_likelihood, flow, xs, conditions)


def _negative_log_likelihood(flow, xs, conditions):
    losses = -jax.vmap(flow.log_prob)(xs, conditions)
    return jnp.mean(losses), losses


@checks.arguments(**_TO_A_DENSITY, path_gradient=checks.boolean)
def reverse_kl(
    key: Key,
    flow: Flow,
    log_density: Callable,
    count: int = 256,
    *,
    path_gradient: bool = False,
    condition: Any = None,
) -> tuple[Array, Array]:
    """Reverse KL of a flow q to an unnormalised density.

        L = (1/n) Σ_i log q(x_i) − log p̃(x_i),    x_i drawn from q

    Rezende & Mohamed 2015, eq. 15. Its expectation is KL(q‖p) − log Z. It
    needs no data, and prefers modes to mass.

    Args:
      key: A typed key.
      flow: Made by `flow` or one of its constructors.
      log_density: x -> log p̃(x), known up to log Z.
      count: n, the number of samples.
      path_gradient: Whether to leave the score ∂_θ log q at fixed x out of the
        gradient, by an inverse pass through parameters held fixed. Its mean is
        0, and the value stays the same. The gradient's variance then vanishes
        where q = p (Roeder et al. 2017, eq. 6, and Vaitl et al. 2022).
      condition: Of all samples, as the flow takes it.

    Returns:
      (mean, values), shapes () and (n,).

    Raises:
      TypeError: If flow is none, or log_density cannot be called.
      ValueError: Where concrete log p̃ are NaN or +infinity, or log q is not
        finite at the flow's own samples, with their number. Under jit the mean
        shows it.

    Example:
      >>> flow = dj.flows.flow(dj.distributions.standard_normal((2,)), dj.flows.chain())
      >>> loss, _ = dj.flows.reverse_kl(key, flow, target.log_prob, 8)
      >>> loss.shape
      ()
    """
    xs, log_q = _draws(key, flow, count, condition, path_gradient)
    values, mean = _compare(log_density, xs, log_q)
    return mean, values


@checks.arguments(**_TO_A_DENSITY)
def importance_log_z(
    key: Key,
    flow: Flow,
    log_density: Callable,
    count: int = 1024,
    *,
    condition: Any = None,
) -> ImportanceEstimate:
    """Importance estimate of log Z with samples of a flow q (Kong 1992).

        log Ẑ = log (1/n) Σ w_i,    w_i = p̃(x_i)/q(x_i),    x_i drawn from q

    Ẑ is unbiased where q > 0 wherever p̃ > 0. E log Ẑ ≤ log Z, by about
    Var(w)/(2 n Z²). The standard error is √(1/ESS − 1/n). A small effective
    size means that few samples carry the estimate, and that neither is to be
    trusted.

    Expectations under p are Σ w_i f(x_i)/Σ w_i.

    Args:
      key: A typed key.
      flow: Made by `flow` or one of its constructors.
      log_density: x -> log p̃(x). A weight 0 (−infinity) is allowed, but not
        all of them: there is no estimate then.
      count: n, the number of samples.
      condition: Of all samples, as the flow takes it.

    Returns:
      log Ẑ with its standard error, effective size, weights and samples.

    Raises:
      TypeError: If flow is none, or log_density cannot be called.
      ValueError: Where concrete log p̃ are NaN or +infinity, log q is not
        finite at the flow's own samples, or all weights are 0. Under jit the
        estimate is NaN then.

    Example:
      >>> flow = dj.flows.flow(dj.distributions.standard_normal((2,)), dj.flows.chain())
      >>> result = dj.flows.importance_log_z(key, flow, lambda x: -(x @ x) / 2, 8)
      >>> round(float(result.log_z), 3)  # log 2π
      1.838
    """
    xs, log_q = _draws(key, flow, count, condition)
    values, _ = _compare(log_density, xs, log_q, weights=True)
    return importance_estimate(values, xs)


def _draws(key, flow, count, condition, path_gradient=False):
    xs, log_q, result = call(
        _drawn, key, flow, condition, count=count, path_gradient=path_gradient
    )
    bad = 0 if checks.is_traced(log_q) else int(np.sum(~np.isfinite(log_q)))
    message = (
        "flow must have a finite density at its own samples, got "
        f"{bad} of {count} that are not"
    )
    checks.require(not bad, message)
    return xs, result


def _drawn(key, flow, condition, count, path_gradient):
    """(samples, log q at them, log q to be differentiated)."""
    keys = jax.random.split(key, count)  # (count,)
    xs, log_q = jax.vmap(lambda key: flow.sample_and_log_prob(key, condition))(keys)
    if not path_gradient:
        return xs, log_q, log_q
    # a second pass, whose gradient reaches the parameters through xs alone
    fixed = jax.lax.stop_gradient(flow)
    return xs, log_q, jax.vmap(lambda x: fixed.log_prob(x, condition))(xs)


def _compare(log_density, xs, log_q, weights=False):
    log_p, values, mean = _compared(log_density, xs, log_q, weights)
    # −infinity is a density of 0, which a sample may have
    checks.below_infinity("log_density", log_p)
    return values, mean


@one_program
def _compared(log_density, xs, log_q, weights):
    """(log p̃, log q − log p̃ or the log-weights, their mean)."""
    log_p = checks.real_array("log_density(x)", jax.vmap(log_density)(xs))
    message = f"log_density must return shape (), got {log_p.shape[1:]}"
    checks.require(log_p.shape == (len(xs),), message)
    # under jit, where nothing can be raised, a log q that is not finite gives NaN
    if weights:
        values = log_p - jnp.where(jnp.isfinite(log_q), log_q, jnp.nan)
    else:
        values = log_q - log_p
    return log_p, values, jnp.mean(values)
