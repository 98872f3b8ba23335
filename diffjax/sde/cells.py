"""The Fokker–Planck equation in one dimension, solved on a uniform grid of cells."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, grids
from ..numerics import float_dtype
from ..types import Array, ArrayLike, combine, compiled, partition
from .processes import SDE, check_sde

__all__ = ["solve_fokker_planck"]


def _density_on_cells(name, p):
    return checks.all_non_negative(name, checks.finite_array(name, p))


def _uniform_edges(name, edges):
    edges = checks.column(name, checks.finite_array(name, edges), "cells + 1", 4)
    rounding = 8 * np.finfo(edges.dtype).eps
    edges = edges.astype(float_dtype(edges))
    if checks.is_traced(edges):
        return edges
    values = np.asarray(edges, np.float64)
    widths = np.diff(checks.increasing(name, values))
    least, greatest = widths.min(), widths.max()
    checks.require(
        greatest - least <= rounding * np.abs(values).max() + 1e-6 * widths.mean(),
        f"{name} must be uniform, got cells of width {least} to {greatest}",
    )
    return edges


@checks.arguments(
    sde=check_sde, edges=_uniform_edges, ts=grids.check, p=_density_on_cells
)
def solve_fokker_planck(
    sde: SDE, p: ArrayLike, edges: ArrayLike, ts: ArrayLike
) -> Array:
    """Solve the Fokker–Planck equation in one dimension, on a uniform grid of cells.

        ∂p/∂t = −∂J/∂x,    J = f p − ½ ∂(g² p)/∂x

    by finite volumes. There is no flux through the two ends, so that Σ p Δx is
    kept to rounding. At a face the drift and the diffusion are fitted
    exponentially, so that the discrete stationary distribution is positive on
    any grid. In time it is Crank–Nicolson with the coefficients of the middle
    of each step, and one tridiagonal solve per step.

    The method is of second order in Δx and Δt together. Where g = 0 the
    fit is upwind, of first order in Δx. A p with steps rings, and may fall
    below 0, unless g² Δt is at most about Δx².

    Args:
      sde: Its functions take one example of shape (1,). The diffusion may
        depend on x, in Itô's sense.
      p: The density at ts[0], (C,), in 1 / data unit. Means over cells or
        values at their centres, which agree to O(Δx²). It need not have mass
        1.
      edges: (C + 1,), uniform and increasing, in data units.
      ts: (N + 1,), strictly monotone. Decreasing for an SDE that runs down in
        time, like that of `reverse`.

    Returns:
      Densities at the times ts, (N + 1, C).

    Raises:
      TypeError: If sde is no SDE.
      ValueError: If the edges are not uniform, p is negative or not finite, or
        the times are not monotone.

    References:
      Chang & Cooper 1970. Scharfetter & Gummel 1969.

    Example:
      >>> edges = np.linspace(-4, 4, 33)
      >>> p = np.where(np.arange(32) == 16, 4.0, 0.0)
      >>> sde = dj.sde.langevin(lambda x: -0.5 * jnp.sum(x**2))
      >>> ps = dj.sde.solve_fokker_planck(sde, p, edges, [0.0, 0.1, 0.2])
      >>> print(ps.shape, np.round(np.sum(ps, axis=1) * 0.25, 4))
      (3, 32) [1. 1. 1.]
    """
    checks.one_of_shapes("p", p, [(edges.shape[0] - 1,)])
    arrays, static = partition(sde)
    return _solve(static, arrays, p.astype(float_dtype(p, edges)), edges, ts)


@compiled
def _solve(static, arrays, p, edges, ts):
    sde, cells = combine(arrays, static), _cells(edges)

    def step(p, interval):
        t, s = interval
        exchange = _exchange(sde, cells, 0.5 * (t + s), jnp.sign(s - t))
        p = p + _crank_nicolson(exchange, p, jnp.abs(s - t))
        return p, p

    return jnp.concatenate([p[None], jax.lax.scan(step, p, (ts[:-1], ts[1:]))[1]])


class _Cells(NamedTuple):
    # Centres (C, 1) and inner faces (C − 1, 1) as examples, and the width, ().

    centres: Array
    faces: Array
    width: Array


class _Exchange(NamedTuple):
    # Rates, in 1 / time, of the exchange J/Δx = out p_left − back p_right
    # through the right face of each cell: (C,) each, 0 at the walls.

    out: Array
    back: Array


def _cells(edges):
    return _Cells(
        0.5 * (edges[1:] + edges[:-1])[:, None],
        edges[1:-1, None],
        (edges[-1] - edges[0]) / (len(edges) - 1),
    )


def _exchange(sde, cells, t, direction):
    """Rates of exchange between neighbours (Scharfetter & Gummel 1969).

        out = D_left B(−w),    back = D_right B(w),    B(w) = w/(e^w − 1)

    with D = ½ (g/Δx)² and w = (f/Δx)/D at the face. They are (D_left, D_right)
    ± ½ f/Δx up to O(Δx). Where D = 0 they are f⁺/Δx and f⁻/Δx.
    """

    def drift_at(x):
        return _of_shape("drift", sde.drift(x, t), x)

    def diffusion_at(x):
        return _of_shape("diffusion", sde.diffusion(x, t), x)

    drift = direction * jax.vmap(drift_at)(cells.faces) / cells.width
    here, between = (
        0.5 * (jax.vmap(diffusion_at)(points) / cells.width) ** 2
        for points in (cells.centres, cells.faces)
    )
    noisy = between > 0
    w = drift / jnp.where(noisy, between, 1)
    out = jnp.where(noisy, here[:-1] * _bernoulli(-w), jnp.maximum(drift, 0))
    back = jnp.where(noisy, here[1:] * _bernoulli(w), jnp.maximum(-drift, 0))
    wall = jnp.zeros(1, out.dtype)
    return _Exchange(jnp.concatenate([out, wall]), jnp.concatenate([back, wall]))


def _of_shape(name, value, x):
    # A value of the SDE at one example of shape (1,), as a scalar.
    shapes = [(1,), ()] if name == "diffusion" else [(1,)]
    checks.one_of_shapes(f"{name}'s value", value, shapes)
    return jnp.broadcast_to(value, x.shape)[0]


def _bernoulli(w):
    # w/(e^w − 1), which is 1 at 0, and 0 where e^w is beyond float32.
    tiny, large = jnp.abs(w) < 1e-8, w > 80
    inner = jnp.where(tiny | large, 1, w)
    return jnp.where(tiny, 1 - 0.5 * w, jnp.where(large, 0, inner / jnp.expm1(inner)))


def _crank_nicolson(exchange, p, h):
    """The increment δ of one Crank–Nicolson step.

        (I − ½ h L) δ = h L p,    (L p)_i = (J_{i−½} − J_{i+½})/Δx

    Σ h L p telescopes and the columns of L sum to 0, so that Σ δ is a rounding
    of the increment, not of p.
    """
    out, back = exchange
    # Through the right face of each cell, (C,), which is 0 for the last
    flux = out * p - back * jnp.roll(p, -1)
    gain = h * (jnp.roll(flux, 1) - flux)
    half = 0.5 * h
    # Of the face on the left of each cell. The first of these is a wall.
    before_out, before_back = jnp.roll(out, 1), jnp.roll(back, 1)
    diagonal = 1 + half * (out + before_back)
    return jax.lax.linalg.tridiagonal_solve(
        -half * before_out, diagonal, -half * back, gain[:, None]
    )[:, 0]
