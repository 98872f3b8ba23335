"""The Gaussian, or mixture of K Gaussians, that is nearest to a density in either direction of the KL divergence.

Forward, min_q KL(p ‖ q): q must have mass wherever p has some, and covers it; for one Gaussian it is p's moments.
Reverse, min_q KL(q ‖ p): q may have mass only where p has some, and settles in a mode; it needs no normaliser of p and
has in general several local minima, of which the start decides.

The family is that of the start: as many components as it has, with isotropic, diagonal or full covariances as its
scales are. Component k is the law of m_k + L_k z, z standard normal and L_k lower triangular, and moves relative to its
start: m_k + L_k δ and L_k T, so that the search, by L-BFGS, sees no units. Forward and reverse fits differ in their
objective alone.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp

from .. import checks, quadrature
from ..distributions.normal import Gaussian
from ..numerics import float_dtype
from ..targets import Mixture, gaussian, gaussian_mixture
from ..types import Array, ArrayLike, Key, combine, compiled, partition
from . import measures

REACH = 8.0
"""Standard deviations on either side of a component over which a reverse fit integrates: all but 1e-15 of its mass."""


class FittedMixture(NamedTuple):
    """mixture: the member of the family. kl: the divergence in the direction of the fit, (), nats.

    standard_error: of kl, (); 0 by quadrature. gradient_norm: of the objective at the law, by log-weights, means in
    standard deviations and factors relative to the law's, (): 0 at an optimum. steps: of the search, ().
    """

    mixture: Mixture
    kl: Array
    standard_error: Array
    gradient_norm: Array
    steps: Array


# ------------------------------------------------------------------------------------------------------------- forward


def moment_matched(
    p: Any,
    bounds: ArrayLike | None = None,
    points: int = 512,
    *,
    tolerance: float = 1e-4,
) -> Mixture:
    """The Gaussian with p's mean and covariance: the minimum over all Gaussians of KL(p ‖ q), in closed form.

    p: with mean() and covariance(), in any dimension; without them, by quadrature over the bounds, (1, 2) or (2, 2),
    as in `kl_by_quadrature`. Raises ValueError where p has neither those nor bounds, or cannot be integrated.
    """
    if bounds is None:
        if not (hasattr(p, "mean") and hasattr(p, "covariance")):
            raise ValueError(
                f"bounds must be given where p has no mean() and covariance(), got p={p!r}"
            )
        return gaussian(p.mean(), p.covariance())
    measures.check_law("p", p)
    return gaussian(*_moments(*_density_rule(p, bounds, points, tolerance)))


@jax.jit
def _moments(nodes, weights):
    mean = weights @ nodes
    return mean, (weights[:, None] * (nodes - mean)).T @ (nodes - mean)


def fit_forward(
    p: Any,
    start: Mixture,
    bounds: ArrayLike,
    points: int = 512,
    *,
    steps: int = 200,
    gradient_norm: float = 1e-5,
    tolerance: float = 1e-4,
) -> FittedMixture:
    """A local minimum of KL(p ‖ q) over the family of `start`, in one or two dimensions, by quadrature.

    For one Gaussian there is one minimum, p's mean and covariance (their diagonal, or mean of it, for a diagonal or
    isotropic family). start: from `targets.gaussian` or `gaussian_mixture`; components that start equal stay equal.
    bounds, points, tolerance: as in `kl_by_quadrature`, bounds (D, 2). The search ends after `steps`, where the
    objective's gradient has fallen below gradient_norm, or where rounding lets the objective fall no further; see
    `FittedMixture.gradient_norm`. Raises ValueError where p cannot be integrated or is not normalised, shapes do not fit, the
    start has no density where p has mass, or a component loses all of its weight.
    """
    measures.check_law("p", p)
    _check_start(start, within_plane=True)
    checks.one_of_shapes("bounds", bounds, [(*start.shape, 2)])
    nodes, weights = _density_rule(p, bounds, points, tolerance)
    law, _, report = _fit(
        _cross_entropy, p, nodes, weights, start, steps, gradient_norm
    )
    kl = measures.kl_by_quadrature(p, law, bounds, points, tolerance=tolerance)
    return FittedMixture(law, kl, jax.device_put(np.zeros((), kl.dtype)), *report)


def fit_forward_by_samples(
    key: Key,
    p: Any,
    start: Mixture,
    count: int = 4096,
    *,
    steps: int = 200,
    gradient_norm: float = 1e-5,
) -> FittedMixture:
    """`fit_forward` in any dimension, by `count` samples of p: maximum likelihood. kl is over as many fresh samples."""
    measures.check_law("p", p)
    measures.check_sampler("p", p)
    _check_start(start)
    checks.key("key", key)
    count = checks.integer("count", count, 2)
    arrays, static = partition(p)
    xs, key_kl = _draws((static, count), arrays, key)
    if xs.shape[1:] != start.shape:
        raise ValueError(
            f"start must be a law of p's shape {xs.shape[1:]}, got {start.shape}"
        )
    weights = np.full((count,), 1 / count, xs.dtype)
    law, _, report = _fit(
        _cross_entropy, None, xs, weights, start, steps, gradient_norm
    )
    return FittedMixture(law, *measures.kl_by_samples(key_kl, p, law, count), *report)


@compiled
def _draws(settings, arrays, key):
    """(samples of p (count, *shape), another key)."""
    static, count = settings
    key_fit, key_rest = jax.random.split(key)
    return jax.vmap(combine(arrays, static).sample)(
        jax.random.split(key_fit, count)
    ), key_rest


def _density_rule(p, bounds, points, tolerance):
    """Nodes (N, D) and p(x) dx there, (N,), of sum 1."""
    checks.one_of_shapes("bounds", bounds, [(1, 2), (2, 2)])
    measures.check_mass("p", p, bounds, points, tolerance)
    nodes = quadrature.rule(bounds, points).nodes
    log_p = quadrature.evaluate(
        measures.LogProb(p), nodes
    )  # by the program that the mass was taken with
    if checks.is_traced(log_p):
        return nodes, jax.nn.softmax(log_p)
    exact = np.asarray(log_p, np.float64)
    masses = np.exp(exact - exact.max())
    return nodes, (masses / masses.sum()).astype(nodes.dtype)


def _cross_entropy(_, nodes, weights, components):
    """−E_p log q over nodes x_i (N, *shape) of weight p(x_i) dx, (N,)."""
    return -weights @ components.log_prob(nodes.reshape(len(nodes), -1))


# ------------------------------------------------------------------------------------------------------------- reverse


def fit_reverse(
    p: Any,
    start: Mixture,
    points: int = 256,
    *,
    steps: int = 200,
    gradient_norm: float = 1e-5,
    tolerance: float = 1e-3,
) -> FittedMixture:
    """The local minimum of KL(q ‖ p) over the family of `start` that lies below it, in one or two dimensions.

    E_q is taken by the midpoint rule in each component's own z, of `points` cells along each axis within 8 standard
    deviations: no bounds are needed, and q cannot leave them. p: with log_prob, up to log Z; kl is then KL − log Z. How
    the search ends: as in `fit_forward`. tolerance: by how many nats kl may differ on a rule of twice the points.

    Raises ValueError where p's log density is −infinity where q has mass (KL is infinite there), NaN or +infinity;
    where p's features are too narrow for the points; where shapes do not fit or a component loses all of its weight.
    """
    measures.check_law("p", p)
    _check_start(start, within_plane=True)
    points, dimension = checks.integer("points", points, 6), start.shape[0]
    law, kl, report = _fit(
        _reverse_objective,
        p,
        *_normal_rule(dimension, points),
        start,
        steps,
        gradient_norm,
    )
    check = _reverse_divergence(p, law, *_normal_rule(dimension, 2 * points))
    if (
        not checks.is_traced(kl, check)
        and not abs(float(kl) - float(check)) <= tolerance
    ):
        raise ValueError(
            f"points must resolve p within the fit, got {points}: kl is {float(kl):.6g} there and {float(check):.6g} "
            f"with twice as many"
        )
    return FittedMixture(law, check, jax.device_put(np.zeros((), check.dtype)), *report)


def fit_reverse_by_samples(
    key: Key,
    p: Any,
    start: Mixture,
    count: int = 4096,
    *,
    steps: int = 200,
    gradient_norm: float = 1e-5,
) -> FittedMixture:
    """`fit_reverse` in any dimension, over `count` draws of z that are held fixed: a deterministic objective.

    kl is over as many fresh samples of q. For other families, and gradients over fresh draws, `flows.reverse_kl`.
    """
    measures.check_law("p", p)
    _check_start(start)
    checks.key("key", key)
    count = checks.integer("count", count, 2)
    noise, key_kl = _normals((count, start.means.shape[1]), key)
    weights = np.full((count,), 1 / count, noise.dtype)
    law, _, report = _fit(
        _reverse_objective, p, noise, weights, start, steps, gradient_norm
    )
    return FittedMixture(law, *measures.kl_by_samples(key_kl, law, p, count), *report)


@functools.partial(jax.jit, static_argnums=0)
def _normals(shape, key):
    """(standard normals, another key)."""
    key_fit, key_rest = jax.random.split(key)
    return jax.random.normal(key_fit, shape, float_dtype()), key_rest


def _normal_rule(dimension, points):
    """Nodes z (N, D) and N(z; 0, I) dz there, (N,), of sum 1."""
    nodes = quadrature.rule([(-REACH, REACH)] * dimension, points).nodes
    weights = np.exp(-0.5 * np.sum(np.asarray(nodes, np.float64) ** 2, -1))
    return nodes, (weights / weights.sum()).astype(nodes.dtype)


def _reverse_objective(p, noise, weights, components):
    """E_q [log q − log p] = Σ_k w_k E_z [log q(m_k + L_k z) − log p(m_k + L_k z)], z the nodes (N, D)."""
    places = components.means[:, None] + jnp.einsum(
        "kij,nj->kni", components.factors, noise
    )  # (K, N, D)
    flat = places.reshape(-1, places.shape[-1])
    gap = components.log_prob(flat) - jax.vmap(p.log_prob)(flat)  # (K N,)
    return jnp.exp(components.log_weights) @ (gap.reshape(places.shape[:2]) @ weights)


def _reverse_divergence(p, law, noise, weights):
    arrays, static = partition(p)
    return _reverse_value(static, arrays, noise, weights, law)


@compiled
def _reverse_value(static, arrays, noise, weights, law):
    return _reverse_objective(combine(arrays, static), noise, weights, _components(law))


# ---------------------------------------------------------------------------------------------------------- the search


class _Components(NamedTuple):
    """log_weights (K,), means (K, D), factors (K, D, D), lower triangular with a positive diagonal."""

    log_weights: Array
    means: Array
    factors: Array

    def log_prob(self, xs):
        """log q at xs (N, D), (N,)."""
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


def _components(start):
    """Those of a mixture."""
    if start.bases is None:
        factors = jax.vmap(jnp.diag)(
            jnp.sqrt(jnp.broadcast_to(start.variances, start.means.shape))
        )
    else:
        factors = jnp.linalg.cholesky(start.covariances())
    return _Components(jnp.log(start.weights), start.means, factors)


class _Move(NamedTuple):
    """Relative to _Components: logits (K,), shifts (K, D), log_scales (K, 1 | D), shears (K, D, D) | None."""

    logits: Array
    shifts: Array
    log_scales: Array
    shears: Any


def _no_move(base, start):
    count, dimension = base.means.shape
    shears = (
        None
        if start.bases is None
        else np.zeros(base.factors.shape, base.factors.dtype)
    )
    zeros = functools.partial(np.zeros, dtype=base.means.dtype)
    return _Move(
        zeros(count),
        zeros((count, dimension)),
        zeros((count, start.variances.shape[1])),
        shears,
    )


def _moved(base, move):
    """The components m_k + L_k δ_k with factors L_k T_k."""
    scales = jnp.broadcast_to(jnp.exp(move.log_scales), base.means.shape)
    shapes = jax.vmap(jnp.diag)(scales)
    shapes = shapes if move.shears is None else shapes + jnp.tril(move.shears, -1)
    means = base.means + jnp.einsum("kij,kj->ki", base.factors, move.shifts)
    return _Components(
        jax.nn.log_softmax(base.log_weights + move.logits), means, base.factors @ shapes
    )


def _fit(objective, p, nodes, weights, start, steps, gradient_norm):
    """(law, objective, (gradient norm, steps)): two searches, the second with the scales that the first one found."""
    steps = checks.integer("steps", steps, 1)
    gradient_norm = checks.positive("gradient_norm", gradient_norm)
    arrays, static = partition(p)
    found = _searches(
        (objective, static), arrays, nodes, weights, start, steps, gradient_norm
    )
    if not checks.is_traced(found) and not np.isfinite(found.start_value):
        raise ValueError(
            f"start must have a finite divergence, got {float(found.start_value)}: p's log density or its own is "
            f"infinite or NaN at some of {len(nodes)} nodes"
        )
    if not checks.is_traced(found) and not np.isfinite(found.norm):
        raise ValueError(
            f"p must have finite gradients of its log density at the fit, got a gradient norm of {found.norm}"
        )
    return _law(found, start), found.value, (found.norm, found.steps)


class _Found(NamedTuple):
    """What the searches found. scales: of the kind of the start."""

    weights: Any
    means: Any
    scales: Any
    start_value: Any
    value: Any
    norm: Any
    steps: Any


@compiled
def _searches(settings, arrays, nodes, weights, start, steps, gradient_norm):
    first = base = _components(start)
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
        scales = base.factors @ base.factors.swapaxes(1, 2)
    else:
        scales = jnp.diagonal(base.factors, axis1=1, axis2=2)
        scales = scales[:, 0] if start.variances.shape[1] == 1 else scales
    return _Found(
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
    """(components, steps used) by L-BFGS with a line search; Nocedal & Wright 2006, algorithm 7.5."""
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


def _law(found, start):
    """The mixture, of the kind of `start`."""
    lost = (
        None
        if checks.is_traced(found)
        else np.flatnonzero(~(np.asarray(found.weights) > 0))
    )
    if lost is not None and lost.size:
        count = len(found.weights)
        raise ValueError(
            f"start must keep its components, got no weight left in component {lost[0]} of {count}"
        )
    law = gaussian_mixture(found.weights, found.means, found.scales)
    return dataclasses.replace(law, shape=start.shape)


def _check_start(start, within_plane=False):
    if not isinstance(start, Mixture):
        raise TypeError(
            f"start must be made by targets.gaussian or targets.gaussian_mixture, got {start!r}"
        )
    if within_plane and start.shape not in [(1,), (2,)]:
        raise ValueError(
            f"start must be a law of shape (1,) or (2,), got {start.shape}; in more dimensions by samples"
        )
