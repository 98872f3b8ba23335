"""Fits of mixtures of Gaussians to a density, by KL in either direction.

Forward fits minimise KL(p ‖ q). The fit q must have mass wherever p has some,
and so covers it. For one Gaussian it has p's moments. Reverse fits minimise
KL(q ‖ p). Here q may have mass only where p has some, and settles in a mode.
No normaliser of p is needed. There are in general several local minima, and
the start decides between them.

The start also states the family: its number of components, with isotropic,
diagonal or full covariances as its scales are. Forward and reverse fits differ
in their objective alone.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, quadrature
from ..numerics import float_dtype
from ..targets import Mixture, gaussian
from ..types import Array, ArrayLike, Key, combine, compiled, partition
from . import measures
from .measures import DENSITY, SAMPLED
from .search import components, search

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
    flat = start.shape in [(1,), (2,)]
    accepted = "a mixture of shape (1,) or (2,), beyond which fit by samples"
    checks.require(flat, f"{name} must be {accepted}, got {start.shape}")


_SEARCH = {"steps": (checks.integer, 1), "gradient_norm": checks.positive}
"""Checks of the arguments of a search."""

_BY_SAMPLES = {"start": MIXTURE, **SAMPLED, **_SEARCH}
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
            "bounds must be given where p has no mean() and covariance(), got None",
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
    q, _, report = search(
        _cross_entropy,
        p,
        nodes,
        weights,
        start=start,
        steps=steps,
        gradient_norm=gradient_norm,
    )
    kl = measures.kl_by_quadrature(p, q, bounds, points, tolerance=tolerance)
    return FittedMixture(q, kl, jax.device_put(np.zeros((), kl.dtype)), *report)


@checks.arguments(p=checks.distribution, **_BY_SAMPLES)
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
    shape = xs.shape[1:]
    message = f"start must be a mixture of p's shape {shape}, got {start.shape}"
    checks.require(shape == start.shape, message)
    weights = np.full((count,), 1 / count, xs.dtype)
    q, _, report = search(
        _cross_entropy,
        None,
        xs,
        weights,
        start=start,
        steps=steps,
        gradient_norm=gradient_norm,
    )
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
    q, kl, report = search(
        _reverse_objective,
        p,
        nodes,
        weights,
        start=start,
        steps=steps,
        gradient_norm=gradient_norm,
    )
    finer = _reverse_divergence(p, q, *_normal_rule(dimension, 2 * points))
    if not checks.is_traced(kl, finer):
        change = abs(float(kl) - float(finer))
        got = f"got {points}, where kl changes by {change:.3g} at twice as many"
        checks.require(
            change <= tolerance, f"points must resolve p within the fit, {got}"
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
    q, _, report = search(
        _reverse_objective,
        p,
        noise,
        weights,
        start=start,
        steps=steps,
        gradient_norm=gradient_norm,
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
    return _reverse_objective(combine(arrays, static), noise, weights, components(q))
