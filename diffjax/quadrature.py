"""Integrals over a line or a plane by the midpoint rule, and log Z of a density.

On equal cells the midpoint rule converges faster than any power of the cell
for an analytic integrand that has decayed at the bounds, as densities do
(Trefethen & Weideman 2014, section 5). It is exact for boxes whose edges are
edges of cells. No node lies on a bound.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import checks
from .numerics import float_dtype
from .types import Array, ArrayLike, as_pytree_callable, combine, compiled, partition

__all__ = ["Rule", "evaluate", "integrate", "log_integral", "rule"]


def __dir__() -> list[str]:
    return __all__


_AT_ONCE = 2**16
"""Nodes that are evaluated as one batch."""


class Rule(NamedTuple):
    """A midpoint rule, ∫ f ≈ weight · Σ f(nodes).

    Attributes:
      nodes: Centres of the cells in row-major order, (N, *shape).
      weight: Volume of a cell.
      counts: Number of cells along each axis, one or two numbers.
    """

    nodes: Array
    weight: float
    counts: tuple[int, ...]


def _box(name, bounds):
    """bounds in float64, checked. In NumPy, because under jit a jnp array is traced."""
    try:
        box = np.asarray(bounds, np.float64)
    except (TypeError, ValueError, OverflowError):
        accepted = "an array of real numbers that is not traced"
        raise TypeError(f"{name} must be {accepted}, got {bounds!r}") from None
    checks.one_of_shapes(name, box, [(2,), (1, 2), (2, 2)])
    checks.finite(name, box)
    return checks.increasing(name, box)


@checks.arguments(points=(checks.integer, 6), bounds=_box)
def rule(bounds: ArrayLike, points: int = 512) -> Rule:
    """Midpoint rule on equal cells of a box.

    Args:
      bounds: (2,), the ends of an interval, for x of shape (). Or (D, 2) with
        D = 1 or 2, the ends along each axis, for x of shape (D,). Must be
        concrete.
      points: Number of cells along each axis, at least 6.

    Returns:
      The rule.

    Raises:
      ValueError: If `bounds` have another shape, or not lower < upper, or are
        not finite, or there are fewer than 6 points.
      TypeError: If `bounds` are traced, or no numbers.

    Example:
      >>> dj.quadrature.rule((0.0, 1.0), 8).weight
      0.125
    """
    box: Any = bounds
    axes = [
        low + (high - low) * (np.arange(points) + 0.5) / points
        for low, high in box.reshape(-1, 2)
    ]
    # (points, …, points, D) -> (N, *shape)
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
    """Integral of a function over a box, by the midpoint rule.

        ∫ f(x) dx

    Args:
      function: f, from one x as in `rule` to an array. Its values beyond the
        bounds are not seen.
      bounds: The box, as in `rule`.
      points: Number of cells along each axis, at least 6.

    Returns:
      The integral, of the shape of f(x).

    Raises:
      ValueError: If concrete values are NaN or infinite. The message has the
        first node with such a value. Also as `rule`.

    Example:
      >>> nine = dj.quadrature.integrate(jnp.square, (0.0, 3.0))  # to 1e-5
    """
    midpoints = rule(bounds, points)
    values = evaluate(function, midpoints.nodes)
    if checks.is_traced(values):
        return midpoints.weight * jnp.sum(values, 0)
    exact = np.asarray(values, np.float64)
    _raise_where(~np.isfinite(exact), exact, midpoints, "function must be finite")
    total = midpoints.weight * exact.sum(0)
    return jax.device_put(np.asarray(total, float_dtype(values)))


@checks.arguments(tolerance=checks.optional(checks.positive))
def log_integral(
    log_density: Callable[[Array], Array],
    bounds: ArrayLike,
    points: int = 512,
    *,
    tolerance: float | None = 1e-4,
    name: str = "log_density",
) -> Array:
    """log Z of an unnormalised density over a box, by the midpoint rule.

        log Z = log ∫ e^{log p̃(x)} dx

    Two errors are estimated from the values at the nodes, and compared with
    `tolerance`. One is the mass beyond the bounds, as if the density at each
    face went on for the box's length. The other is that of cells which are too
    coarse, by which the sums over every third node along an axis differ.

    Args:
      log_density: log p̃, from one x as in `rule` to (). −infinity is a
        density of 0.
      bounds: The box, as in `rule`.
      points: Number of cells along each axis, at least 6.
      tolerance: Greatest relative error of Z that is accepted. None for no
        such check. A density with jumps inside cells needs a tolerance of the
        order of a cell. One that is cut off at the bounds needs wider bounds,
        or None.
      name: Name of `log_density` in messages.

    Returns:
      log Z in nats, ().

    Raises:
      ValueError: If `log_density` does not return a scalar, is NaN or
        +infinity, or is −infinity everywhere. If the density has not decayed
        at the bounds, and so perhaps is not integrable. If the cells do not
        resolve it. Under jit values are not checked, and NaN gives NaN.

    Example:
      >>> log_z = dj.quadrature.log_integral(lambda x: -0.5 * x**2, (-8, 8))  # ½ log 2π
    """
    checks.callable_(name, log_density, f"{name}(x) -> ()")
    midpoints = rule(bounds, points)
    values = evaluate(log_density, midpoints.nodes)
    if values.shape != midpoints.nodes.shape[:1]:
        raise ValueError(f"{name} must return a scalar, got shape {values.shape[1:]}")
    if checks.is_traced(values):
        return jax.scipy.special.logsumexp(values) + np.log(midpoints.weight)
    exact = np.asarray(values, np.float64)
    bad = np.isnan(exact) | np.isposinf(exact)
    _raise_where(bad, exact, midpoints, f"{name} must be below infinity")
    top = exact.max()
    if np.isneginf(top):
        box = np.asarray(bounds).tolist()
        raise ValueError(f"{name} must be above -infinity somewhere within {box}")
    density = np.exp(exact - top).reshape(midpoints.counts)
    if tolerance is not None:
        _raise_unless_decayed(name, density, np.asarray(bounds), tolerance)
        _raise_unless_resolved(name, density, points, tolerance)
    total = top + np.log(density.sum() * midpoints.weight)
    return jax.device_put(np.asarray(total, float_dtype(values)))


@checks.arguments(function=(checks.callable_, "function(x)"), nodes=checks.batch)
def evaluate(function: Callable[[Array], Array], nodes: Array) -> Array:
    """Values of a function at nodes, by one program.

    Args:
      function: From one x to an array.
      nodes: (N, *shape).

    Returns:
      The values, with leading axis N.

    Raises:
      ValueError: If there are no nodes.
      TypeError: If `function` cannot be called.
    """
    arrays, static = partition(as_pytree_callable(function))
    return _values(static, arrays, nodes)


@compiled
def _values(static, arrays, nodes):
    function = combine(arrays, static)
    return jax.lax.map(
        lambda x: jnp.asarray(function(x)), nodes, batch_size=min(_AT_ONCE, len(nodes))
    )


def _raise_where(bad, values, midpoints, rule_text):
    if bad.any():
        first = np.argwhere(bad)[0]
        node = np.array2string(np.asarray(midpoints.nodes)[first[0]], precision=4)
        place = f"{node}, the first of {int(bad.sum())} such values"
        raise ValueError(f"{rule_text}, got {values[tuple(first)]} at {place}")


def _raise_unless_decayed(name, density, bounds, tolerance):
    """Compare each face, continued over the box's length, with the whole."""
    total = density.sum()
    for axis, count in enumerate(density.shape):
        faces = np.moveaxis(density, axis, 0)[[0, -1]].reshape(2, -1).sum(1)
        shares = count * faces / total
        worst = int(shares.argmax())
        if shares[worst] > tolerance:
            bound = float(bounds.reshape(-1, 2)[axis, worst])
            end = ("lower", "upper")[worst]
            raise ValueError(
                f"{name} must have decayed at the bounds, got a density at the {end} "
                f"bound {bound:g} of axis {axis} that would add {shares[worst]:.3g} of "
                "the integral if it went on: widen them if it is integrable at all"
            )


def _raise_unless_resolved(name, density, points, tolerance):
    """Compare the rules of three times the cell: nodes 0, 1 and 2 modulo 3."""
    for axis in range(density.ndim):
        slices = np.moveaxis(density, axis, 0).reshape(points, -1).sum(1)
        thirds = np.array([slices[i::3].sum() for i in range(3)]) / slices.sum() * 3
        if np.ptp(thirds) > tolerance:
            raise ValueError(
                f"points must resolve {name} along axis {axis}, got {points}, of which "
                f"thirds differ by {np.ptp(thirds):.3g}: raise them or narrow bounds"
            )
