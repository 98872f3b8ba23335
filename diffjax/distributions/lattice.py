"""Data on a lattice: the levels of its entries, dequantisation, bits per dimension."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..types import Array, ArrayLike, Key, Scalar

__all__ = [
    "Cell",
    "bits_per_dim",
    "cell_of",
    "check_levels",
    "dequantise",
    "level_index",
    "log_evidence",
    "nearest_level",
    "off_levels",
]


def check_levels(name: str, value: ArrayLike) -> Array:
    """Levels as an array (K,).

    Args:
      name: The argument's name, for the messages.
      value: Its value.

    Returns:
      The array.

    Raises:
      ValueError: Unless K ≥ 2, and they are finite and increase.
    """
    levels = checks.column(name, checks.finite_array(name, value), "K", 2)
    return checks.increasing(name, levels)


def level_slack(xp: Any, levels: Any) -> Any:
    """The distance from a level within which an entry still counts as the level.

    It is 1e-4 of the levels' range, but at most a quarter of a gap.

    Args:
      xp: `numpy` or `jax.numpy`.
      levels: (K,), increasing.

    Returns:
      The distance, shape ().
    """
    return xp.minimum(1e-4 * (levels[-1] - levels[0]), 0.25 * xp.min(xp.diff(levels)))


def level_index(x: Array, levels: Array) -> Array:
    """Index of the level of every entry.

    Args:
      x: Lattice data of any shape.
      levels: (K,), increasing.

    Returns:
      Integers of x's shape. A traced entry gets the nearest level:
      `off_levels` says where it is none.

    Raises:
      ValueError: Where a concrete entry is no level, by `level_slack`.
    """
    if checks.is_traced(x, levels):
        return _nearest(jnp, x, levels)
    entries, values = np.asarray(x), np.asarray(levels)
    index = _nearest(np, entries, values).astype(np.int32)
    off = np.max(np.abs(entries - values[index]))
    checks.require(
        off <= level_slack(np, values),  # False for NaN
        f"x must take values among the {len(values)} levels, got an entry {off} away "
        "from all",
    )
    return index


def _nearest(xp, x, levels):
    """Index of the nearest level of every entry, the lower of two as near."""
    # A search among the midpoints needs no array (*shape, K) of distances.
    return xp.searchsorted(0.5 * (levels[1:] + levels[:-1]), x)


def off_levels(x: Array, levels: Array, index: Array) -> Array:
    """Whether an entry is no level. NaN is none.

    Args:
      x: Lattice data of any shape.
      levels: (K,), increasing.
      index: The index of the level nearest to every entry, from `level_index`.

    Returns:
      Booleans of x's shape.
    """
    return ~(jnp.abs(x - levels[index]) <= level_slack(jnp, levels))


def nearest_level(x: Array, levels: Array) -> Array:
    """The level nearest to every entry.

    Args:
      x: Any shape.
      levels: (K,), increasing.

    Returns:
      Levels, of x's shape and dtype.
    """
    return levels[_nearest(jnp, x, levels)].astype(x.dtype)


def log_evidence(x: Array, noise: Array, ratio: Scalar, levels: Array) -> Array:
    """Log-probability of lattice data given a noisy copy of every entry alone.

        log Π_i P(x_i | x_i + r ε_i),    P(c_k | y) ∝ exp(−(y − c_k)² / 2r²)

    Per entry it is −log Σ_k exp(u_k (ε − u_k/2)), with u_k = (c_k − x)/r. The
    sum runs over the levels one by one: the memory is that of x, not K times
    that.

    Args:
      x: Lattice data of any shape.
      noise: ε, of x's shape.
      ratio: The noise level r = σ/α, () in units of x.
      levels: c_k, (K,), increasing.

    Returns:
      Nats, shape (). An entry that is no level has probability 0: −∞ where x
      is traced.

    Raises:
      ValueError: Where a concrete entry is no level.

    References:
      Kingma et al. 2021, equation 12.

    Example:
      >>> levels = jnp.array([-1.0, 1.0])
      >>> noise = jnp.zeros(2)
      >>> log_p = dj.distributions.lattice.log_evidence(levels, noise, 1.0, levels)
      >>> bool(jnp.isclose(log_p, -2 * jnp.log1p(jnp.exp(-2.0))))
      True
    """
    index = level_index(x, levels)
    level = levels[index]
    # An entry may be slightly off its level, from which the noise counts.
    noise = noise + (x - level) / ratio
    dtype = jnp.result_type(noise, ratio, levels, float_dtype(noise))

    def add(total, other):
        # The difference of the two exponents, with its squares cancelled by hand:
        # each is of order (1/r)², where float32 has no digits left. It is at most
        # ε²/2, so that the sum does not overflow.
        step = (other - level) / ratio
        return total + jnp.exp(step * (noise - 0.5 * step)), None

    total, _ = jax.lax.scan(add, jnp.zeros(noise.shape, dtype), levels)
    impossible = jnp.any(off_levels(x, levels, index))
    return jnp.where(impossible, -jnp.inf, -jnp.sum(jnp.log(total)))


class Cell(NamedTuple):
    """The interval of values that round to the level of every entry.

    It ends at the midpoints to the neighbouring levels. All fields have x's
    shape.

    Attributes:
      lower: Its lower end.
      upper: Its upper end.
      first: True in the lowest cell, which reaches to −∞. `lower` is then no
        end.
      last: True in the highest cell, which reaches to ∞. `upper` is then no
        end.
      off: True where the entry is no level, see `off_levels`.
    """

    lower: Array
    upper: Array
    first: Array
    last: Array
    off: Array

    def impossible_off_levels(self, log_prob: Array) -> Array:
        """`log_prob` (), or −∞ where an entry is no level."""
        return jnp.where(jnp.any(self.off), -jnp.inf, log_prob)


def cell_of(x: Array, levels: Array) -> Cell:
    """The cells of the entries of lattice data.

    Args:
      x: Lattice data of any shape.
      levels: (K,), increasing.

    Returns:
      A `Cell` whose fields have x's shape.

    Raises:
      ValueError: Where a concrete entry is no level.
    """
    index = level_index(x, levels)
    middles = 0.5 * (levels[1:] + levels[:-1])  # (K − 1,)
    lower = middles[jnp.maximum(index - 1, 0)]
    upper = middles[jnp.minimum(index, middles.shape[0] - 1)]
    off = off_levels(x, levels, index)
    return Cell(lower, upper, index == 0, index == levels.shape[0] - 1, off)


# -------------------------------------------------------- densities of lattice data


@checks.arguments(key=checks.key, x=checks.real_array, width=checks.positive)
def dequantise(key: Key, x: ArrayLike, width: Scalar) -> Array:
    """Uniform dequantisation (Theis et al. 2016, section 3.1).

        x + width · u,    u ~ U(−½, ½) for every entry

    E_u log p(x + width·u) + D log width bounds the lattice's log P(x) from
    below.

    Args:
      key: A typed key.
      x: Bin centres, spaced `width` apart, in data units. Any shape.
      width: The spacing, positive.

    Returns:
      An array of x's shape.

    Raises:
      ValueError: Unless width > 0.

    Example:
      >>> bool(jnp.abs(dj.dequantise(key, jnp.zeros(3), 0.1)).max() <= 0.05)
      True
    """
    return x + width * jax.random.uniform(key, x.shape, x.dtype, -0.5, 0.5)


def _shape_with_entries(name, value):
    empty = isinstance(value, tuple | list) and 0 in value
    checks.require(not empty, f"{name} must have at least one entry, got {value}")
    return checks.shape(name, value)


_BINS = (checks.integer, 2)


@checks.arguments(
    log_prob=checks.real_array,
    x_shape=_shape_with_entries,
    bins=_BINS,
    width=checks.positive,
)
def bits_per_dim(
    log_prob: ArrayLike, x_shape: tuple[int, ...], bins: int, width: Scalar
) -> Array:
    """Code length of lattice data under a density, in bits per dimension.

        −(log p + D log width) / (D log 2)

    A uniform density over the range bins · width scores log2(bins).

    Args:
      log_prob: Log densities of dequantised examples in nats, any shape.
      x_shape: The shape of an example, of D entries.
      bins: The number of bins, 2 or more.
      width: The lattice's spacing in the units of that density, (data range) /
        bins.

    Returns:
      Bits per dimension, of log_prob's shape.

    Raises:
      ValueError: For bins < 2, width ≤ 0 or an empty shape.

    Example:
      >>> float(dj.bits_per_dim(0.0, (2,), bins=8, width=1 / 8))
      3.0
    """
    dimensions = math.prod(x_shape)
    if not checks.is_traced(width):
        return _bits(log_prob, dimensions, math.log(float(width)))
    return _bits(log_prob, dimensions, jnp.log(width))


@jax.jit
def _bits(log_prob, dimensions, log_width):
    return -(log_prob / dimensions + log_width) / math.log(2)
