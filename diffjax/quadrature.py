"""Integrals over a line or a plane by the midpoint rule, and the normaliser log ∫ e^{score} of a density known to it.

The midpoint rule on equal cells converges faster than any power of the cell for an analytic integrand that has decayed
at the bounds, as densities do (Trefethen & Weideman 2014, section 5), and is exact for boxes whose edges are cells'
edges. No node lies on a bound.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import checks
from .numerics import float_dtype
from .types import Array, ArrayLike, as_pytree_callable, combine, compiled, partition

_AT_ONCE = 2**16
"""Nodes that are evaluated as one batch."""


class Rule(NamedTuple):
    """∫ f ≈ weight · Σ f(nodes). nodes: (N, *shape) in row-major order of the cells. weight: a cell's volume.

    counts: cells along each axis, one or two numbers.
    """

    nodes: Array
    weight: float
    counts: tuple[int, ...]


def rule(bounds: ArrayLike, points: int = 512) -> Rule:
    """The midpoint rule with `points` cells along each axis of a box.

    bounds: (2,), the ends of an interval, for x of shape (); or (D, 2), D = 1 or 2, for x of shape (D,). Raises
    ValueError for other shapes, unless lower < upper are finite, and for points < 6.
    """
    points = checks.integer("points", points, minimum=6)
    try:
        box = np.asarray(
            bounds, np.float64
        )  # in numpy: under jit a jnp array would be traced
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"bounds must be an array of real numbers that is not traced, got {bounds!r}"
        ) from None
    checks.one_of_shapes("bounds", box, [(2,), (1, 2), (2, 2)])
    checks.finite("bounds", box)
    if not np.all(box[..., 0] < box[..., 1]):
        raise ValueError(f"bounds must have lower < upper, got {box.tolist()}")
    axes = [
        low + (high - low) * (np.arange(points) + 0.5) / points
        for low, high in box.reshape(-1, 2)
    ]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *box.shape[:-1])
    lengths = box[..., 1] - box[..., 0]
    return Rule(
        jax.device_put(nodes.astype(float_dtype())),
        float(np.prod(lengths / points)),
        (points,) * len(axes),
    )


def integrate(
    function: Callable[[Array], Array], bounds: ArrayLike, points: int = 512
) -> Array:
    """∫ function(x) dx over a box, of the function's shape.

    function: x -> an array, for one x as in `rule`; what it does beyond the bounds is not seen. Raises ValueError for
    concrete values that are NaN or infinite, with the place of the first.
    """
    checks.callable_("function", function, "function(x)")
    used = rule(bounds, points)
    values = evaluate(function, used.nodes)
    if checks.is_traced(values):
        return used.weight * jnp.sum(values, 0)
    exact = np.asarray(values, np.float64)
    _refuse("function", "finite", ~np.isfinite(exact), used, exact)
    return jax.device_put(np.asarray(used.weight * exact.sum(0), float_dtype(values)))


def log_integral(
    log_density: Callable[[Array], Array],
    bounds: ArrayLike,
    points: int = 512,
    *,
    tolerance: float | None = 1e-4,
    name: str = "log_density",
) -> Array:
    """log ∫ e^{log_density(x)} dx over a box, in nats, shape (): log Z of an unnormalised density.

    log_density: x -> (), for one x as in `rule`; −infinity is a density of 0. tolerance: the relative error of the
    integral above which it is refused; None for no such check. Two errors are estimated from the values at hand: what
    lies beyond the bounds, as if the density at each face went on for the box's length, and what the cells are too
    coarse for, by which the sums over every third node along an axis differ. A density with jumps inside cells needs a
    tolerance of the order of a cell, one that is cut off at the bounds needs wider bounds or None. name: what errors
    call log_density.

    Raises ValueError where log_density does not return a scalar, is NaN or +infinity, or is −infinity everywhere; where
    the density has not decayed at the bounds, hence perhaps is not integrable; and where the cells do not resolve it.
    Under jit nothing is refused, and NaN gives NaN.
    """
    checks.callable_(name, log_density, f"{name}(x) -> ()")
    tolerance = None if tolerance is None else checks.positive("tolerance", tolerance)
    used = rule(bounds, points)
    values = evaluate(log_density, used.nodes)
    if values.shape != used.nodes.shape[:1]:
        raise ValueError(f"{name} must return a scalar, got shape {values.shape[1:]}")
    if checks.is_traced(values):
        return jax.scipy.special.logsumexp(values) + np.log(used.weight)
    exact = np.asarray(values, np.float64)
    _refuse(name, "below infinity", np.isnan(exact) | np.isposinf(exact), used, exact)
    top = exact.max()
    if np.isneginf(top):
        raise ValueError(
            f"{name} must be above -infinity somewhere within bounds {np.asarray(bounds).tolist()}"
        )
    density = np.exp(exact - top).reshape(used.counts)
    if tolerance is not None:
        _check_decay(name, density, np.asarray(bounds), tolerance)
        _check_resolution(name, density, points, tolerance)
    return jax.device_put(
        np.asarray(top + np.log(density.sum() * used.weight), float_dtype(values))
    )


def evaluate(function: Callable[[Array], Array], nodes: Array) -> Array:
    """The function at nodes (N, *shape), with leading axis N, by one program."""
    checks.callable_("function", function, "function(x)")
    nodes = checks.real_array("nodes", nodes)
    if nodes.ndim == 0 or nodes.shape[0] == 0:
        raise ValueError(
            f"nodes must have shape (N, *shape) with N at least 1, got {nodes.shape}"
        )
    arrays, static = partition(as_pytree_callable(function))
    return _values(static, arrays, nodes)


@compiled
def _values(static, arrays, nodes):
    function = combine(arrays, static)
    return jax.lax.map(
        lambda x: jnp.asarray(function(x)), nodes, batch_size=min(_AT_ONCE, len(nodes))
    )


def _refuse(name, accepted, bad, used, values):
    if bad.any():
        first = np.argwhere(bad)[0]
        place = np.array2string(np.asarray(used.nodes)[first[0]], precision=4)
        found = f"{values[tuple(first)]} at {place}, the first of {int(bad.sum())} such values"
        raise ValueError(f"{name} must be {accepted}, got {found}")


def _check_decay(name, density, bounds, tolerance):
    """The faces' cells times the number of cells along their normal, each as a share of the whole."""
    total = density.sum()
    for axis, count in enumerate(density.shape):
        faces = np.moveaxis(density, axis, 0)[[0, -1]].reshape(2, -1).sum(1)
        shares = count * faces / total
        if shares.max() > tolerance:
            side = ("lower", "upper")[int(shares.argmax())]
            bound = float(bounds.reshape(-1, 2)[axis, int(shares.argmax())])
            raise ValueError(
                f"{name} must have decayed at the bounds, got a density at the {side} bound {bound:g} of axis "
                f"{axis} that would add {shares.max():.3g} of the integral if it went on: widen the bounds; if that "
                f"does not help, it is not integrable"
            )


def _check_resolution(name, density, points, tolerance):
    """Sums over the nodes of index 0, 1 and 2 modulo 3 along an axis: rules of three times the cell."""
    for axis in range(density.ndim):
        slices = np.moveaxis(density, axis, 0).reshape(points, -1).sum(1)
        thirds = np.array([slices[i::3].sum() for i in range(3)]) / slices.sum() * 3
        if np.ptp(thirds) > tolerance:
            raise ValueError(
                f"points must resolve {name} along axis {axis}, got {points}, of which every third differs by "
                f"{np.ptp(thirds):.3g} of the integral: raise points, or narrow the bounds"
            )
