"""The gap between the log density of a fitted flow and the exact one."""

from typing import Any

import jax
import numpy as np

import diffjax as dj
from diffjax import flows
from experiments.shared.datasets import TOYS
from experiments.shared.mapping import map_examples
from experiments.toy_flows.config import Config

FINE_STEPS = 16
"""Steps of RK4 with which an ODE is measured and drawn."""
CURVE, CURVE_EXAMPLES = (1 / 8, 1 / 4, 1 / 2, 1), 2000
"""Shares of the steps at which the gap is measured, and the number of examples."""


def samples(config: Config, name: str, stream: int, count: int) -> jax.Array:
    """Exact samples (count, 2) of a target. Training, testing and drawing have
    independent streams.
    """
    key = jax.random.fold_in(
        jax.random.fold_in(jax.random.key(config.seed), list(TOYS).index(name)),
        stream,
    )
    return jax.jit(jax.vmap(TOYS[name]().sample))(jax.random.split(key, count))


def is_ode(flow: flows.density.Flow) -> bool:
    """Whether the first bijector, from the base, is the flow of an ODE."""
    return isinstance(flow.bijector.bijectors[0], flows.Continuous)


def fine(flow: flows.density.Flow, steps: int = FINE_STEPS) -> flows.density.Flow:
    """The flow with this number of RK4 steps, if it is that of an ODE."""
    if not is_ode(flow):
        return flow
    ode, *rest = flow.bijector.bijectors
    return flows.flow(
        flow.base, flows.chain(flows.continuous(ode.velocity, steps), *rest)
    )


def log_probs(distribution: Any, xs: Any) -> np.ndarray:
    """log p of many points, (n,), some at a time."""
    return map_examples(_log_prob, distribution, (xs,), chunk=2000)


def _log_prob(distribution, x):
    return distribution.log_prob(x)


def measure(
    config: Config, name: str, model: flows.density.Flow, count: int | None = None
) -> dict[str, float]:
    """The gap, the mean of log p − log q over fresh samples of p in nats, and its
    standard error.

    `nll` is the mean of −log q. For an ODE, `solver_change` is the mean |log q
    − log q'| with q' by half the steps.
    """
    xs = samples(config, name, 1, config.test)[:count]
    log_p, log_q = (
        log_probs(distribution, xs).astype(np.float64)
        for distribution in (TOYS[name](), fine(model))
    )
    difference = log_p - log_q
    results = {
        "gap": float(difference.mean()),
        "standard_error": float(dj.numerics.standard_error(difference)),
        "nll": float(-log_q.mean()),
        "entropy": float(-log_p.mean()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
    }
    if not np.isfinite(log_q).all():
        raise FloatingPointError(
            f"{np.sum(~np.isfinite(log_q))} of {len(log_q)} log-likelihoods are not "
            "finite"
        )
    if is_ode(model) and count is None:
        few = xs[:CURVE_EXAMPLES]
        coarse = log_probs(fine(model, FINE_STEPS // 2), few)
        results["solver_change"] = float(np.abs(coarse - log_q[: len(few)]).mean())
    return results
