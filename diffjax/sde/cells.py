"""The Fokker–Planck equation in one dimension, solved on a uniform grid of cells."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, grids
from ..numerics import float_dtype
from ..types import Array, ArrayLike, as_pytree_callable, combine, compiled, partition
from .processes import SDE


def solve_fokker_planck(
    sde: SDE, p: ArrayLike, edges: ArrayLike, ts: ArrayLike
) -> Array:
    """Densities (N + 1, C) on C cells at the times ts of what has the density p at ts[0] and follows the SDE: ∂p/∂t =
    −∂J/∂x, J = f p − ½∂(g² p)/∂x.

    Finite volumes with no flux through the two ends, so that Σ p Δx is kept to rounding; at a face the drift and the
    diffusion are fitted exponentially (Chang & Cooper 1970; Scharfetter & Gummel 1969): the discrete stationary law is
    positive on any grid. In time Crank–Nicolson with the coefficients of each step's middle, one tridiagonal solve a
    step. Second order in Δx and Δt together; where g = 0 (a flow) the fit is upwind, first order in Δx. A p with steps
    rings, and may undershoot 0, unless g² Δt is at most about Δx².

    sde: its functions take one example of shape (1,); the diffusion may depend on x, as Itô's. p: (C,), 1 / data unit,
    means over cells or values at their centres, which agree to O(Δx²); need not have mass 1. edges: (C + 1,), uniform
    and increasing, in data units. ts: (N + 1,), strictly monotone; decreasing for an SDE that runs downwards, as
    `reverse` gives. Raises TypeError for what is no SDE, ValueError for edges that are not uniform, p that is negative
    or not finite, and times that are not monotone.
    """
    if not isinstance(sde, SDE):
        raise TypeError(f"sde must be an SDE(drift, diffusion), got {sde!r}")
    edges, ts = _check_edges(edges), grids.check("ts", ts)
    p = checks.real_array("p", p)
    checks.one_of_shapes("p", p, [(edges.shape[0] - 1,)])
    checks.finite("p", p)
    if not checks.is_traced(p) and np.min(p) < 0:
        raise ValueError(
            f"p must be 0 or more in every cell, got {np.min(p)} in cell {np.argmin(p)}"
        )
    arrays, static = partition(
        SDE(as_pytree_callable(sde.drift), as_pytree_callable(sde.diffusion))
    )
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
    """Centres (C, 1) and inner faces (C − 1, 1) as examples; width, ()."""

    centres: Array
    faces: Array
    width: Array


class _Exchange(NamedTuple):
    """What passes a face, J/Δx = out p_left − back p_right, by the cell: (C,) each, 0 at the walls.

    out, back: of the face on a cell's right, of which it is the left. Rates, 1 / time.
    """

    out: Array
    back: Array


def _cells(edges):
    return _Cells(
        0.5 * (edges[1:] + edges[:-1])[:, None],
        edges[1:-1, None],
        (edges[-1] - edges[0]) / (len(edges) - 1),
    )


def _exchange(sde, cells, t, direction):
    """out = D_left B(−w) and back = D_right B(w), D = ½(g/Δx)², w = (f/Δx)/D at the face, B(w) = w/(e^w − 1).

    They are (D_left, D_right) ± ½f/Δx up to O(Δx), and f⁺/Δx, f⁻/Δx where D = 0.
    """
    faces, centres, width = cells.faces, cells.centres, cells.width
    drift = (
        direction
        * jax.vmap(lambda x: _of_shape("drift", sde.drift(x, t), x))(faces)
        / width
    )
    here, between = (
        0.5
        * (
            jax.vmap(lambda x: _of_shape("diffusion", sde.diffusion(x, t), x))(places)
            / width
        )
        ** 2
        for places in (centres, faces)
    )
    noisy = between > 0
    w = drift / jnp.where(noisy, between, 1)
    out = jnp.where(noisy, here[:-1] * _bernoulli(-w), jnp.maximum(drift, 0))
    back = jnp.where(noisy, here[1:] * _bernoulli(w), jnp.maximum(-drift, 0))
    wall = jnp.zeros(1, out.dtype)
    return _Exchange(jnp.concatenate([out, wall]), jnp.concatenate([back, wall]))


def _of_shape(name, value, x):
    """A value of the SDE at one example of shape (1,), as a scalar."""
    if jnp.shape(value) != (1,) and not (
        name == "diffusion" and jnp.shape(value) == ()
    ):
        raise ValueError(
            f"{name} must return the shape {x.shape} of its example, got {jnp.shape(value)}"
        )
    return jnp.broadcast_to(value, x.shape)[0]


def _bernoulli(w):
    """w/(e^w − 1), 1 at 0 and 0 where e^w is beyond float32; shape of w."""
    tiny, large = jnp.abs(w) < 1e-8, w > 80
    inner = jnp.where(tiny | large, 1, w)
    return jnp.where(tiny, 1 - 0.5 * w, jnp.where(large, 0, inner / jnp.expm1(inner)))


def _crank_nicolson(exchange, p, h):
    """The increment δ of one step: (I − ½hL) δ = h L p with (L p)_i = (J_{i−½} − J_{i+½})/Δx.

    Σ h L p telescopes and L's columns sum to 0, so that Σ δ is rounding of the increment, not of p.
    """
    out, back = exchange
    flux = out * p - back * jnp.roll(
        p, -1
    )  # (C,), through each cell's right face, 0 through the last
    gain = h * (jnp.roll(flux, 1) - flux)
    half = 0.5 * h
    before_out, before_back = (
        jnp.roll(out, 1),
        jnp.roll(back, 1),
    )  # of the face on the left; the first is a wall
    diagonal = 1 + half * (out + before_back)
    return jax.lax.linalg.tridiagonal_solve(
        -half * before_out, diagonal, -half * back, gain[:, None]
    )[:, 0]


def _check_edges(edges: Any) -> Array:
    """Edges of at least three cells as floats, refused unless increasing and uniform to rounding."""
    edges = checks.real_array("edges", edges)
    if edges.ndim != 1 or edges.shape[0] < 4:
        raise ValueError(
            f"edges must have shape (cells + 1,) with at least 3 cells, got {edges.shape}"
        )
    rounding = 8 * np.finfo(edges.dtype).eps
    edges = edges.astype(float_dtype(edges))
    if checks.is_traced(edges):
        return edges
    checks.finite("edges", edges)
    values = np.asarray(edges, np.float64)
    widths = np.diff(values)
    if not np.all(widths > 0):
        i = int(np.argmin(widths))
        raise ValueError(
            f"edges must increase, got {values[i]} then {values[i + 1]} at {i}"
        )
    if np.ptp(widths) > rounding * np.abs(values).max() + 1e-6 * widths.mean():
        raise ValueError(
            f"edges must be uniform, got cells of width {widths.min()} to {widths.max()}"
        )
    return edges
