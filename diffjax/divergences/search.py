"""The search for the nearest mixture of Gaussians by L-BFGS.

Component k is the distribution of m_k + L_k z, with z standard normal and L_k lower
triangular. It moves relative to its start, to m_k + L_k δ and L_k T, so that the
search sees no units. The objective states the direction of the divergence.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp

from .. import checks
from ..distributions.normal import Gaussian
from ..targets import Mixture, gaussian_mixture
from ..types import Array, combine, compiled, partition

__all__ = ["Components", "components", "search"]


class Components(NamedTuple):
    """A mixture of normal distributions of m_k + L_k z, with L_k lower triangular."""

    log_weights: Array  # (K,)
    means: Array  # (K, D)
    factors: Array  # (K, D, D), with a positive diagonal

    def log_prob(self, xs: Array) -> Array:
        """log q at positions (N, D), (N,)."""
        identity = jnp.eye(self.means.shape[1], dtype=self.means.dtype)
        inverses = jax.vmap(
            lambda factor: solve_triangular(factor, identity, lower=True)
        )(self.factors)
        white = jnp.einsum(
            "kij,knj->kni", inverses, xs - self.means[:, None]
        )  # (K, N, D)
        log_det = jnp.sum(jnp.log(jnp.diagonal(self.factors, axis1=1, axis2=2)), -1)
        normals = jax.vmap(jax.vmap(Gaussian(0.0, 1.0).log_prob))(white)
        return logsumexp((self.log_weights - log_det)[:, None] + normals, axis=0)


def components(mixture: Mixture) -> Components:
    """The components of a mixture, with the factors L_k of their covariances."""
    if mixture.bases is None:
        factors = jax.vmap(jnp.diag)(
            jnp.sqrt(jnp.broadcast_to(mixture.variances, mixture.means.shape))
        )
    else:
        factors = jnp.linalg.cholesky(mixture.covariances())
    return Components(jnp.log(mixture.weights), mixture.means, factors)


class _Move(NamedTuple):
    """Change relative to `Components`. No correlations: `shears` are None."""

    logits: Array  # (K,)
    shifts: Array  # (K, D)
    log_scales: Array  # (K, 1 | D)
    shears: Any  # (K, D, D), where the part below the diagonal counts


def _no_move(base, start):
    count, dimension = base.means.shape
    zeros = functools.partial(np.zeros, dtype=base.means.dtype)
    shears = None
    if start.bases is not None:
        shears = np.zeros(base.factors.shape, base.factors.dtype)
    log_scales = zeros((count, start.variances.shape[1]))
    return _Move(zeros(count), zeros((count, dimension)), log_scales, shears)


def _moved(base, move):
    """The components m_k + L_k δ_k with factors L_k T_k."""
    scales = jnp.broadcast_to(jnp.exp(move.log_scales), base.means.shape)
    shapes = jax.vmap(jnp.diag)(scales)
    shapes = shapes if move.shears is None else shapes + jnp.tril(move.shears, -1)
    means = base.means + jnp.einsum("kij,kj->ki", base.factors, move.shifts)
    log_weights = jax.nn.log_softmax(base.log_weights + move.logits)
    return Components(log_weights, means, base.factors @ shapes)


def search(
    objective: Callable,
    p: Any,
    nodes: Array,
    weights: Array,
    *,
    start: Mixture,
    steps: int,
    gradient_norm: float,
) -> tuple[Mixture, Array, tuple[Array, Array]]:
    """The mixture of least objective near a start, by two searches.

    The second search has the scales that the first one found as its units.

    Args:
      objective: (p, nodes, weights, components) -> ().
      p: A distribution, or None for an objective without one.
      nodes: (N, D), at which the objective is evaluated.
      weights: Of the nodes, (N,).
      start: Where the search begins. It states the family.
      steps: Greatest number of steps.
      gradient_norm: Norm of the gradient at which a search ends.

    Returns:
      The mixture, the objective there, and (norm of the gradient, steps).
    """
    arrays, static = partition(p)
    result = _searches(
        (objective, static), arrays, nodes, weights, start, steps, gradient_norm
    )
    if not checks.is_traced(result):
        checks.require(
            np.isfinite(result.start_value),
            f"start must have a finite divergence, got {float(result.start_value)}: "
            f"its log density or p's is not finite at some of {len(nodes)} nodes",
        )
        got = f"got a gradient of norm {result.norm} at the fit"
        checks.require(np.isfinite(result.norm), f"p must have finite scores, {got}")
    return _mixture(result, start), result.value, (result.norm, result.steps)


class _SearchResult(NamedTuple):
    weights: Any
    means: Any
    scales: Any  # variances or covariances, of the kind of the start's
    start_value: Any
    value: Any
    norm: Any
    steps: Any


@compiled
def _searches(settings, arrays, nodes, weights, start, steps, gradient_norm):
    first = base = components(start)
    still, done = _no_move(base, start), 0
    for _ in range(2):
        base, used = _search(
            settings, arrays, nodes, weights, base, still, steps - done, gradient_norm
        )
        done = done + used
    start_value = _value_of(settings, arrays, nodes, weights, first)(still)
    value, gradient = jax.value_and_grad(
        _value_of(settings, arrays, nodes, weights, base)
    )(still)
    if start.bases is not None:
        scales = base.factors @ base.factors.swapaxes(1, 2)  # covariances (K, D, D)
    else:
        scales = jnp.diagonal(base.factors, axis1=1, axis2=2)  # (K, D)
        scales = scales[:, 0] if start.variances.shape[1] == 1 else scales
    return _SearchResult(
        jax.nn.softmax(base.log_weights),
        base.means,
        scales,
        start_value,
        value,
        optax.tree.norm(gradient),
        done,
    )


def _value_of(settings, arrays, nodes, weights, base):
    objective, static = settings
    p = combine(arrays, static)
    return lambda move: objective(p, nodes, weights, _moved(base, move))


def _search(settings, arrays, nodes, weights, base, move, steps, tolerance):
    """Components and number of steps by L-BFGS with a line search.

    Nocedal & Wright 2006, algorithm 7.5.
    """
    value_of = _value_of(settings, arrays, nodes, weights, base)
    optimiser = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(value_of)

    def advance(carry):
        move, state, step, stalled, (before, _) = carry
        value, gradient = value_and_gradient(move, state=state)
        updates, state = optimiser.update(
            gradient, state, move, value=value, grad=gradient, value_fn=value_of
        )
        after, slope = optax.tree.get(state, "value"), optax.tree.get(state, "grad")
        move = jax.tree.map(
            lambda now, change: jnp.where(after <= value, now + change, now),
            move,
            updates,
        )
        stalled = jnp.where(after < value, 0, stalled + 1)
        return move, state, step + 1, stalled, (after, optax.tree.norm(slope))

    def goes_on(carry):
        _, _, step, stalled, (_, norm) = carry
        return (step < steps) & (stalled < 2) & (norm > tolerance)

    first = (jnp.full((), jnp.inf, nodes.dtype),) * 2
    move, _, used, _, _ = jax.lax.while_loop(
        goes_on, advance, (move, optimiser.init(move), 0, 0, first)
    )
    return _moved(base, move), used


def _mixture(result, start):
    """The mixture of a search, of the kind of `start`."""
    if not checks.is_traced(result):
        lost = np.flatnonzero(~(np.asarray(result.weights) > 0))
        got = f"got no weight left in {lost.tolist()} of {len(result.weights)}"
        checks.require(not lost.size, f"start must keep its components, {got}")
    mixture = gaussian_mixture(result.weights, result.means, result.scales)
    return dataclasses.replace(mixture, shape=start.shape)
