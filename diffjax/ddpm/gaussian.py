"""Gaussians of one example: densities, divergences, and their rounding to the levels of lattice data."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from .. import checks
from ..numerics import float_dtype, log_normal_interval, phi
from ..predictions import check_levels, level_index, off_levels
from ..types import Array, ArrayLike, Key


class Gaussian(NamedTuple):
    """N(mean, diag(variance)): the two broadcast against one example."""

    mean: Any
    variance: Any

    def log_prob(self, x: Array) -> Array:
        """log N(x; mean, variance) in nats, shape ()."""
        entries = (x - self.mean) ** 2 / self.variance + jnp.log(
            2 * math.pi * self.variance
        )
        return -0.5 * jnp.sum(jnp.broadcast_to(entries, jnp.shape(x)))

    def sample(self, key: Key) -> Array:
        """One draw, of the shape to which mean and variance broadcast."""
        shape = jnp.broadcast_shapes(jnp.shape(self.mean), jnp.shape(self.variance))
        return self.mean + jnp.sqrt(self.variance) * jax.random.normal(
            key, shape, float_dtype(self.mean)
        )


def gaussian_kl(p: Gaussian, q: Gaussian) -> Array:
    """KL(p ‖ q) = ½ Σ [v_p/v_q − 1 + log(v_q/v_p) + (m_p − m_q)²/v_q] in nats, shape ()."""
    return _kl(_check_gaussian("p", p), _check_gaussian("q", q))


def _check_gaussian(name, law):
    if isinstance(law, type) or not (hasattr(law, "mean") and hasattr(law, "variance")):
        raise TypeError(
            f"{name} must be a Gaussian, with mean and variance, got {law!r}"
        )
    return law


@jax.jit
def _kl(p, q):
    return kl_of_gap(p.variance, q.variance, jnp.asarray(p.mean - q.mean))


def kl_of_gap(variance: ArrayLike, other: ArrayLike, gap: Array) -> Array:
    """`gaussian_kl` from the variances and the means' difference, whose shape is the example's."""
    return jnp.sum(kl_entries(variance, other, gap))


def kl_entries(variance: ArrayLike, other: ArrayLike, gap: Array) -> Array:
    """What each entry adds to `kl_of_gap`, of the gap's shape.

    With r = log(v_q/v_p), e^{−r} − 1 + r = r² φ_2(−r): nothing cancels where the variances are nearly equal.
    """
    r = jnp.log(other / variance)
    return 0.5 * (jnp.broadcast_to(r**2 * phi(2, -r), gap.shape) + gap**2 / other)


def discretised_log_prob(law: Gaussian, x: ArrayLike, levels: ArrayLike) -> Array:
    """log P(x) of lattice data under a Gaussian rounded to the nearest level, in nats, shape ().

    An entry's P is the Gaussian's mass between the midpoints to its level's neighbours; the first bin reaches to −∞ and
    the last to ∞, so that the levels' P sum to one. x: one example, entries among levels: (K,), increasing. An entry
    that is no level has P = 0: −∞ where x is traced. Raises ValueError where a concrete entry of x is no level or a
    variance is not positive. Ho et al. 2020, eq. 13.
    """
    levels = check_levels(levels)
    check_variance("law.variance", _check_gaussian("law", law).variance)
    x = checks.real_array("x", x)
    if checks.is_traced(x, levels):
        return decoder_log_prob(law, x, levels)
    level_index(x, levels)
    return _decoder_log_prob(law, x, levels)


@jax.jit
def _decoder_log_prob(law, x, levels):
    return decoder_log_prob(law, x, levels)


def check_variance(name: str, variance: ArrayLike) -> None:
    """Refuse a concrete variance that is not positive everywhere."""
    if not checks.is_traced(variance) and not np.all(np.asarray(variance) > 0):
        raise ValueError(f"{name} must be positive, got {np.min(np.asarray(variance))}")


def decoder_log_prob(law: Gaussian, x: Array, levels: Array | None) -> Array:
    """log p(x) of a Gaussian, or of its discretisation where levels are given: −∞ for entries that are no level."""
    if levels is None:
        return law.log_prob(x)
    cell, std = cell_of(x, levels), jnp.sqrt(law.variance)
    lower, upper = (cell.lower - law.mean) / std, (cell.upper - law.mean) / std
    edge = cell.first | cell.last
    inner = log_normal_interval(
        jnp.where(edge, -1.0, lower), jnp.where(edge, 1.0, upper)
    )
    value = jnp.sum(
        jnp.where(edge, log_ndtr(jnp.where(cell.last, -lower, upper)), inner)
    )
    return impossible_off_levels(value, cell)


class Cell(NamedTuple):
    """The interval of values that round to each entry's level: it ends at the midpoints to the neighbours.

    lower, upper: its ends. first, last: whether it is the lowest, which reaches to −∞ (`lower` is then no end), or the
    highest, which reaches to ∞. off: whether the entry is no level, by `predictions.level_slack`. Each of x's shape.
    """

    lower: Array
    upper: Array
    first: Array
    last: Array
    off: Array


def impossible_off_levels(log_prob: Array, cell: Cell) -> Array:
    """`log_prob` (), or −∞ where an entry is no level."""
    return jnp.where(jnp.any(cell.off), -jnp.inf, log_prob)


def cell_of(x: Array, levels: Array) -> Cell:
    """The cells of lattice data's entries. Raises ValueError where a concrete entry is no level."""
    index = level_index(x, levels)
    middles = 0.5 * (levels[1:] + levels[:-1])  # (K − 1,)
    lower, upper = (
        middles[jnp.maximum(index - 1, 0)],
        middles[jnp.minimum(index, middles.shape[0] - 1)],
    )
    off = off_levels(x, levels, index)
    return Cell(lower, upper, index == 0, index == levels.shape[0] - 1, off)
