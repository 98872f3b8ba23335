"""Fits of mixtures of Gaussians to a density, by KL in either direction.

Forward fits minimise KL(p ‖ q). The fit q must have mass wherever p has some,
and so covers it. For one Gaussian it has p's moments. Reverse fits minimise
KL(q ‖ p). Here q may have mass only where p has some, and settles in a mode.
No normaliser of p is needed. There are in general several local minima, and
the start decides between them.

The start also states the family: its number of components, with isotropic,
diagonal or full covariances as its scales are. Component k is the distribution
of m_k + L_k z, with z standard normal and L_k lower triangular. It moves
relative to its start, to m_k + L_k δ and L_k T, so that the search by L-BFGS
sees no units. Forward and reverse fits differ in their objective alone.
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
from .measures import DENSITY, SAMPLER

__all__ = [
    "FittedMixture",
    "fit_forward",
    "fit_forward_by_samples",
    "fit_reverse",
    "fit_reverse_by_samples",
    "moment_matched",
]

REACH = 8.0
"""Standard deviations on either side of a component that a reverse fit integrates over.

All but 1e-15 of its mass lies there.
"""


class FittedMixture(NamedTuple):
    """Result of a fit.

    Attributes:
      mixture: The member of the family.
      kl: The divergence in the direction of the fit, in nats, ().
      standard_error: Standard error of `kl`, (). 0 by quadrature.
      gradient_norm: Norm of the objective's gradient at the fit, (). It is
        taken by log-weights, means in standard deviations and relative
        factors. 0 at an optimum.
      steps: Number of steps of the search, ().
    """

    mixture: Mixture
    kl: Array
    standard_error: Array
    gradient_norm: Array
    steps: Array


MIXTURE = (checks.made_by, Mixture, "targets.gaussian or targets.gaussian_mixture")
"""Check of the first mixture of a search."""


def _planar_start(name, start):
    checks.made_by(name, start, *MIXTURE[1:])
    checks.require(
        start.shape in [(1,), (2,)],
        f"{name} must be a mixture of shape (1,) or (2,), got {start.shape}; in more "
        "dimensions fit by samples",
    )


_SEARCH = {"steps": (checks.integer, 1), "gradient_norm": checks.positive}
"""Checks of the arguments of a search."""

_BY_SAMPLES = {
    "start": MIXTURE,
    "key": checks.key,
    "count": (checks.integer, 2),
    **_SEARCH,
}
"""Checks of the arguments of a search by samples."""


# ---- forward


def moment_matched(
    p: Any,
    bounds: ArrayLike | None = None,
    points: int = 512,
    *,
    tolerance: float = 1e-4,
) -> Mixture:
    """The Gaussian with p's mean and covariance.

    It is the minimum of KL(p ‖ q) over all Gaussians q, in closed form.

    Args:
      p: With mean() and covariance(), in any dimension. Or, where `bounds` are
        given, a normalised distribution with `log_prob` in one or two
        dimensions.
      bounds: A box that holds the mass of p, (1, 2) or (2, 2). The moments are
        then taken by quadrature.
      points: Number of cells along each axis.
      tolerance: As in `kl_by_quadrature`.

    Returns:
      The Gaussian, a mixture of one component.

    Raises:
      ValueError: If p has no moments and there are no bounds, or p cannot be
        integrated.

    Example:
      >>> fit = dj.divergences.moment_matched(target)
    """
    if bounds is None:
        checks.require(
            hasattr(p, "mean") and hasattr(p, "covariance"),
            f"bounds must be given where p has no mean() and covariance(), got p={p!r}",
        )
        return gaussian(p.mean(), p.covariance())
    checks.has_methods("p", p, "log_prob(x)")
    return gaussian(*_moments(*_density_rule(p, bounds, points, tolerance)))


@jax.jit
def _moments(nodes, weights):
    mean = weights @ nodes
    return mean, (weights[:, None] * (nodes - mean)).T @ (nodes - mean)


@checks.arguments(p=DENSITY, start=_planar_start, **_SEARCH)
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
    """Local minimum of KL(p ‖ q) over a family of mixtures, by quadrature.

    For one Gaussian there is one minimum: p's mean and covariance. It has the
    diagonal of the covariance for a diagonal family, and the diagonal's mean
    for an isotropic one.

    The search ends after `steps`, where the objective's gradient has fallen
    below `gradient_norm`, or where rounding lets the objective fall no
    further. See `FittedMixture.gradient_norm` for how near it came.

    Args:
      p: A normalised distribution with `log_prob`, in D = 1 or 2 dimensions.
      start: Where the search begins, from `targets.gaussian` or
        `gaussian_mixture`. It states the family. Components that start equal
        stay equal.
      bounds: A box that holds the mass of p, (D, 2).
      points: Number of cells along each axis.
      steps: Greatest number of steps.
      gradient_norm: Norm of the gradient at which the search ends.
      tolerance: As in `kl_by_quadrature`.

    Returns:
      The fit, with KL(p ‖ q) by quadrature.

    Raises:
      ValueError: If p cannot be integrated or is not normalised, shapes do not
        fit, the start has no density where p has mass, or a component loses
        all of its weight.
      TypeError: If p has no `log_prob`, or `start` is no mixture.
    """
    checks.one_of_shapes("bounds", bounds, [(*start.shape, 2)])
    nodes, weights = _density_rule(p, bounds, points, tolerance)
    q, _, report = _fit(_cross_entropy, p, nodes, weights, start, steps, gradient_norm)
    kl = measures.kl_by_quadrature(p, q, bounds, points, tolerance=tolerance)
    return FittedMixture(q, kl, jax.device_put(np.zeros((), kl.dtype)), *report)


@checks.arguments(p=SAMPLER, **_BY_SAMPLES)
def fit_forward_by_samples(
    key: Key,
    p: Any,
    start: Mixture,
    count: int = 4096,
    *,
    steps: int = 200,
    gradient_norm: float = 1e-5,
) -> FittedMixture:
    """Local minimum of KL(p ‖ q) over a family of mixtures, by samples.

    This is maximum likelihood, and `fit_forward` in any dimension.

    Args:
      key: A typed key.
      p: A distribution with `log_prob` and `sample`.
      start: Where the search begins, as in `fit_forward`.
      count: Number of samples of p, at least 2.
      steps: Greatest number of steps.
      gradient_norm: Norm of the gradient at which the search ends.

    Returns:
      The fit, with an estimate of KL(p ‖ q) over as many fresh samples.

    Raises:
      ValueError: As `fit_forward`, and if `start` has another shape than p's
        samples.
      TypeError: If p lacks a method, or `start` is no mixture.
    """
    arrays, static = partition(p)
    xs, key_kl = _draws((static, count), arrays, key)
    checks.require(
        xs.shape[1:] == start.shape,
        f"start must be a mixture of p's shape {xs.shape[1:]}, got {start.shape}",
    )
    weights = np.full((count,), 1 / count, xs.dtype)
    q, _, report = _fit(_cross_entropy, None, xs, weights, start, steps, gradient_norm)
    return FittedMixture(q, *measures.kl_by_samples(key_kl, p, q, count), *report)


@compiled
def _draws(settings, arrays, key):
    """Samples of p, (count, *shape), and another key."""
    static, count = settings
    key_fit, key_rest = jax.random.split(key)
    keys = jax.random.split(key_fit, count)
    return jax.vmap(combine(arrays, static).sample)(keys), key_rest


def _density_rule(p, bounds, points, tolerance):
    """Nodes (N, D), and p(x) dx there, (N,), of sum 1."""
    checks.one_of_shapes("bounds", bounds, [(1, 2), (2, 2)])
    measures.raise_unless_normalised("p", p, bounds, points, tolerance=tolerance)
    nodes = quadrature.rule(bounds, points).nodes
    # LogProb is the function that the mass was taken of, so that its program
    # is reused.
    log_p = quadrature.evaluate(measures.LogProb(p), nodes)
    if checks.is_traced(log_p):
        return nodes, jax.nn.softmax(log_p)
    exact = np.asarray(log_p, np.float64)
    masses = np.exp(exact - exact.max())
    return nodes, (masses / masses.sum()).astype(nodes.dtype)


def _cross_entropy(_, nodes, weights, components):
    """−E_p log q over nodes x_i (N, *shape) of weight p(x_i) dx, (N,)."""
    return -weights @ components.log_prob(nodes.reshape(len(nodes), -1))


# ---- reverse


@checks.arguments(p=DENSITY, start=_planar_start, points=(checks.integer, 6), **_SEARCH)
def fit_reverse(
    p: Any,
    start: Mixture,
    points: int = 256,
    *,
    steps: int = 200,
    gradient_norm: float = 1e-5,
    tolerance: float = 1e-3,
) -> FittedMixture:
    """Local minimum of KL(q ‖ p) over a family of mixtures, in one or two dimensions.

    E_q is taken by the midpoint rule in each component's z, within 8 standard
    deviations. So no bounds are needed, and q cannot leave them. The search
    ends as in `fit_forward`.

    Args:
      p: With `log_prob`, up to a constant log Z.
      start: Where the search begins. It states the family, and decides in
        which mode the fit settles.
      points: Number of cells along each axis of z.
      steps: Greatest number of steps.
      gradient_norm: Norm of the gradient at which the search ends.
      tolerance: Greatest accepted change of `kl`, in nats, on a rule of twice
        the points.

    Returns:
      The fit, with KL(q ‖ p) − log Z.

    Raises:
      ValueError: If p's log density is −infinity where q has mass (KL is
        infinite there), NaN or +infinity. If p's features are too narrow for
        the points, shapes do not fit, or a component loses all of its weight.
      TypeError: If p has no `log_prob`, or `start` is no mixture.
    """
    dimension = start.shape[0]
    nodes, weights = _normal_rule(dimension, points)
    q, kl, report = _fit(
        _reverse_objective, p, nodes, weights, start, steps, gradient_norm
    )
    finer = _reverse_divergence(p, q, *_normal_rule(dimension, 2 * points))
    if not checks.is_traced(kl, finer):
        change = abs(float(kl) - float(finer))
        checks.require(
            change <= tolerance,
            f"points must resolve p within the fit, got {points}: kl is "
            f"{float(kl):.6g} there and {float(finer):.6g} with twice as many",
        )
    return FittedMixture(q, finer, jax.device_put(np.zeros((), finer.dtype)), *report)


@checks.arguments(p=DENSITY, **_BY_SAMPLES)
def fit_reverse_by_samples(
    key: Key,
    p: Any,
    start: Mixture,
    count: int = 4096,
    *,
    steps: int = 200,
    gradient_norm: float = 1e-5,
) -> FittedMixture:
    """Local minimum of KL(q ‖ p) over a family of mixtures, by samples.

    This is `fit_reverse` in any dimension. The draws of z are held fixed,
    which makes the objective deterministic. For other families, and gradients
    over fresh draws, see `flows.reverse_kl`.

    Args:
      key: A typed key.
      p: With `log_prob`, up to a constant log Z.
      start: Where the search begins, as in `fit_reverse`.
      count: Number of draws of z, at least 2.
      steps: Greatest number of steps.
      gradient_norm: Norm of the gradient at which the search ends.

    Returns:
      The fit, with an estimate of KL(q ‖ p) − log Z over as many fresh samples
      of q.

    Raises:
      ValueError: As `fit_reverse`.
      TypeError: If p has no `log_prob`, or `start` is no mixture.
    """
    noise, key_kl = _normals((count, start.means.shape[1]), key)
    weights = np.full((count,), 1 / count, noise.dtype)
    q, _, report = _fit(
        _reverse_objective, p, noise, weights, start, steps, gradient_norm
    )
    return FittedMixture(q, *measures.kl_by_samples(key_kl, q, p, count), *report)


@functools.partial(jax.jit, static_argnums=0)
def _normals(shape, key):
    """Standard normals and another key."""
    key_fit, key_rest = jax.random.split(key)
    return jax.random.normal(key_fit, shape, float_dtype()), key_rest


def _normal_rule(dimension, points):
    """Nodes z (N, D), and N(z | 0, I) dz there, (N,), of sum 1."""
    nodes = quadrature.rule([(-REACH, REACH)] * dimension, points).nodes
    weights = np.exp(-0.5 * np.sum(np.asarray(nodes, np.float64) ** 2, -1))
    return nodes, (weights / weights.sum()).astype(nodes.dtype)


def _reverse_objective(p, noise, weights, components):
    """Σ_k w_k E_z [log q(m_k + L_k z) − log p(m_k + L_k z)], over nodes z (N, D)."""
    xs = components.means[:, None] + jnp.einsum(
        "kij,nj->kni", components.factors, noise
    )  # (K, N, D)
    flat = xs.reshape(-1, xs.shape[-1])  # (K N, D)
    gap = components.log_prob(flat) - jax.vmap(p.log_prob)(flat)  # (K N,)
    return jnp.exp(components.log_weights) @ (gap.reshape(xs.shape[:2]) @ weights)


def _reverse_divergence(p, q, noise, weights):
    arrays, static = partition(p)
    return _reverse_value(static, arrays, noise, weights, q)


@compiled
def _reverse_value(static, arrays, noise, weights, q):
    return _reverse_objective(combine(arrays, static), noise, weights, _components(q))


# ---- the search


class _Components(NamedTuple):
    """A mixture of normal distributions of m_k + L_k z, with L_k lower triangular."""

    log_weights: Array  # (K,)
    means: Array  # (K, D)
    factors: Array  # (K, D, D), with a positive diagonal

    def log_prob(self, xs):
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


def _components(mixture):
    if mixture.bases is None:
        factors = jax.vmap(jnp.diag)(
            jnp.sqrt(jnp.broadcast_to(mixture.variances, mixture.means.shape))
        )
    else:
        factors = jnp.linalg.cholesky(mixture.covariances())
    return _Components(jnp.log(mixture.weights), mixture.means, factors)


class _Move(NamedTuple):
    """Change relative to `_Components`. No correlations: `shears` are None."""

    logits: Array  # (K,)
    shifts: Array  # (K, D)
    log_scales: Array  # (K, 1 | D)
    shears: Any  # (K, D, D), of which the part below the diagonal counts


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
    return _Components(log_weights, means, base.factors @ shapes)


def _fit(objective, p, nodes, weights, start, steps, gradient_norm):
    """The mixture, the objective, and (gradient norm, steps), of two searches.

    The second search has the scales that the first one found as its units.
    """
    arrays, static = partition(p)
    result = _searches(
        (objective, static), arrays, nodes, weights, start, steps, gradient_norm
    )
    if not checks.is_traced(result):
        checks.require(
            np.isfinite(result.start_value),
            f"start must have a finite divergence, got {float(result.start_value)}: "
            f"p's log density or that of start is infinite or NaN at some of "
            f"{len(nodes)} nodes",
        )
        checks.require(
            np.isfinite(result.norm),
            "p must have finite gradients of its log density at the fit, got a "
            f"gradient norm of {result.norm}",
        )
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
        if lost.size:
            raise ValueError(
                "start must keep its components, got no weight left in component "
                f"{lost[0]} of {len(result.weights)}"
            )
    mixture = gaussian_mixture(result.weights, result.means, result.scales)
    return dataclasses.replace(mixture, shape=start.shape)
