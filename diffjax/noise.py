"""Gaussian noise of one example, from its key and a counter, and Brownian paths."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from . import checks
from .numerics import array_module, float_dtype
from .types import Array, Key, Scalar, pytree, static_field

__all__ = ["DRAWS_PER_STEP", "BrownianPath", "brownian", "normal", "part"]


def __dir__() -> list[str]:
    return __all__


DRAWS_PER_STEP = 8
"""The most independent draws that a solver may take in one step."""

_PATH = 0x42726F77
"""Folded into a key before a Brownian path is drawn from it.

The path then shares no counter with other draws from the key.
"""


@checks.arguments(
    key=checks.key,
    counter=checks.counter,
    shape=checks.lengths,
    dtype=checks.optional(checks.floating),
)
def normal(
    key: Key, counter: Array | int, shape: tuple[int, ...], dtype: Any = None
) -> Array:
    """Standard normal noise, independent for each pair (key, counter).

    For threefry keys the pair (counter, index of the entry) is hashed with the
    key in one pass and mapped through the inverse error function. This saves a
    `fold_in` and its second hash, which counts for small examples. Other key
    types fold the counter in. Draws of float32 have a lattice of 2⁻²³ before
    the map, those of float64 2⁻⁵².

    Args:
      key: One typed key.
      counter: An integer below 2³², shape (). It may be traced.
      shape: The shape of the noise. An axis may be empty.
      dtype: A floating type, by default that of `numerics.float_dtype()`.

    Returns:
      The noise.

    Raises:
      TypeError: If the key is not typed, the counter is no integer, or the
        dtype is not a floating one.
      ValueError: If the counter or the shape is out of range.

    References:
      Salmon et al. 2011 (threefry).

    Example:
      >>> dj.noise.normal(key, 0, (2,)).shape
      (2,)
    """
    dtype = float_dtype() if dtype is None else dtype
    draw = _normal if checks.is_traced((key, counter)) else _compiled_normal
    return draw(key, counter, shape, dtype)


def _normal(key, counter, shape, dtype):
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.normal(jax.random.fold_in(key, counter), shape, dtype)
    size = math.prod(shape)
    wide = dtype == jnp.float64
    # One hash gives a pair of 32-bit words: two float32 draws, or one float64
    # draw.
    pairs = size if wide else (size + 1) // 2
    index = jnp.arange(pairs, dtype=jnp.uint32)
    counters = jnp.concatenate([jnp.full((pairs,), counter, jnp.uint32), index])
    words = threefry_2x32(jax.random.key_data(key), counters)  # (2 pairs,)
    # The midpoints of 2²³ (2⁵²) equal parts of (−1, 1): never an end, where
    # the inverse error function is infinite.
    if wide:
        bits = (
            words[:pairs].astype(jnp.uint64) << 32 | words[pairs:].astype(jnp.uint64)
        ) >> 12
        centred = (bits.astype(dtype) + 0.5) * 2.0**-51 - 1
    else:
        bits = words[:size] >> 9
        centred = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-22) - 1
    root_two = jnp.sqrt(2.0).astype(centred.dtype)
    return (root_two * jax.lax.erf_inv(centred)).astype(dtype).reshape(shape)


_compiled_normal = jax.jit(_normal, static_argnums=(2, 3))


def part(
    key: Key, depth: Array, index: Array, *, shape: tuple[int, ...], dtype: Any
) -> Array:
    """Scaled increment of a standard Brownian motion over one of 2^depth equal parts.

        √(2^depth) (W((index + 1)/2^depth) − W(index/2^depth))    of W on [0, 1]

    The increment is standard normal, and those of the halves of a part add up
    to the part's. It is z ← (z ± ξ)/√2 down the tree of halvings, where ξ is
    hashed from the node's number. No time is rounded, so that a part has the
    same increment in every program.

    Args:
      key: Typed key of the motion.
      depth: Number of halvings, (), an integer between 0 and 30.
      index: Which part, (), an integer below 2^depth.
      shape: Shape of the motion.
      dtype: Dtype of the result.

    Returns:
      The scaled increment, of the motion's shape.
    """
    key, index = _path_key(key), jnp.asarray(index, jnp.uint32)

    def halve(above, z):
        above = jnp.asarray(above, jnp.uint32)
        # The halvings that remain from this node down to the part.
        below = jnp.asarray(depth, jnp.uint32) - above
        xi = normal(key, jnp.uint32(1) << above | index >> below, shape, dtype)
        second = index >> (below - 1) & 1
        return (z + jnp.where(second == 1, -xi, xi)) * math.sqrt(0.5)

    return jax.lax.fori_loop(0, depth, halve, normal(key, 0, shape, dtype))


# -------------------------------------------------------------------- Brownian path


def _time(name, value):
    value = checks.number(name, value)
    if checks.is_traced(value):
        return value.astype(float_dtype())
    with np.errstate(over="ignore"):
        time = np.asarray(value, float_dtype())
    checks.require(np.isfinite(time), f"{name} must fit {time.dtype}, got {value}")
    return time


@checks.arguments(
    key=checks.key,
    start=_time,
    end=_time,
    shape=checks.lengths,
    depth=(checks.integer, 1, 24),
)
def brownian(
    key: Key,
    start: Scalar,
    end: Scalar,
    *,
    shape: tuple[int, ...] = (),
    depth: int = 16,
) -> "BrownianPath":
    """One standard Brownian path W between two times, a function of its key alone.

    Its clock runs from `start`, where W = 0, towards `end`, which may lie on
    either side.

    The interval is halved `depth` times. Values at several times have their
    exact joint distribution if no two of the times lie strictly inside one of
    the 2^depth leaves. So the resolution is |end − start| / 2^depth. Two times
    inside one leaf see one draw of its bridge, which is smoother than W.

    Args:
      key: One typed key.
      start: Where W = 0, (), in units of time.
      end: The other end, (), in units of time.
      shape: Shape of W.
      depth: Halvings of the interval, between 1 and 24.

    Returns:
      The Brownian path, to be evaluated at any time between the two.

    Raises:
      TypeError: If the key is not typed, or the shape is no tuple of integers.
      ValueError: If start = end, one of them is not finite, or depth is out of
        range.

    Example:
      >>> w, integral = dj.noise.brownian(key, 0.0, 1.0, shape=(2,))(0.5)
      >>> w.shape
      (2,)
    """
    checks.require(start != end, f"end must differ from start={start}, got {end}")
    return BrownianPath(_path_key(key), start, end, shape, depth)


@pytree
class BrownianPath:
    """A Brownian path that can be evaluated at any times in any order.

    It is made by `brownian`. The interval is halved `depth` times. The
    increment and the area of each half follow from those of the whole and from
    two draws, hashed with the number of the half in the tree. The leaf that
    holds t is split once more, at t itself, in the same way.

    Nothing is stored. A value costs depth + 1 draws of 2 × shape. Times carry
    no gradient, since W has none.
    """

    key: Any
    start: Any
    end: Any
    shape: tuple[int, ...] = static_field()
    depth: int = static_field()

    def __call__(self, t: Scalar) -> tuple[Array, Array]:
        """W(t) and its integral I(t) = ∫ W over the time elapsed from start to t.

        Args:
          t: A time between start and end, (). A traced time elsewhere gives
            NaN.

        Returns:
          W(t) and I(t), each of the shape of W.

        Raises:
          ValueError: If t lies outside by more than a rounding of 4 ulp of the
            greater end.
        """
        return _value(self, self._checked("t", t))

    def increment(self, t: Scalar, s: Scalar) -> tuple[Array, Array]:
        """Standard normals z_0 and z_1 of the step from t to s, independent.

            W(s) − W(t) = √h z_0
            ∫_t^s (W(u) − W(t)) du = h^{3/2} (z_0/2 + z_1/(2√3))

        in time elapsed, with h = |s − t|. The integral is Kloeden & Platen's
        I_(1,0). A step against the clock has −z_0 and the same z_1. The
        increment is summed from the pieces between t and s alone, so that its
        rounding is relative to √h. h itself is known to within the rounding of
        the times.

        Where both times lie in one leaf, z_0 and z_1 come from the one bridge that
        is drawn for it, and are not normal.

        Args:
          t: Where the step starts, (). A traced time outside the interval
            gives NaN.
          s: Where it ends, (). A traced s = t gives finite numbers.

        Returns:
          z_0 and z_1, each of the shape of W.

        Raises:
          ValueError: If t or s lies outside the interval, or s = t.

        References:
          Kloeden & Platen 1992, equation 10.4.3.
        """
        t, s = self._checked("t", t), self._checked("s", s)
        checks.require(t != s, f"s must differ from t={t}, got {s}")
        return _increment(self, t, s)

    def _checked(self, name, t):
        t = _time(name, t)
        if not checks.is_traced(t, self.start, self.end):
            low, high = sorted((float(self.start), float(self.end)))
            rounding = _rounding(self)
            checks.all_near(name, t, low, high, (rounding, rounding))
        return t


class _Piece(NamedTuple):
    # The path over an interval of length h, which starts at a: its increment w
    # and its area ∫ (W(u) − W(a)) du.

    h: Array
    w: Array
    area: Array


def _piece(h, z):
    area = h * jnp.sqrt(h) * (z[0] / 2 + z[1] / (2 * math.sqrt(3)))
    return _Piece(h, jnp.sqrt(h) * z[0], area)


def _join(first, second):
    area = first.area + second.area + first.w * second.h
    return _Piece(first.h + second.h, first.w + second.w, area)


def _rest(whole, first):
    # The inverse of _join: what follows `first` in `whole`.
    h = whole.h - first.h
    return _Piece(h, whole.w - first.w, whole.area - first.area - first.w * h)


def _split(z, draws, f):
    """Standard normals (x_0, x_1) and (y_0, y_1) of the parts [0, f] and [f, 1].

        z_0 = √f x_0 + √g y_0,    z_1 = √(3fg) v + f^{3/2} x_1 + g^{3/2} y_1

    are those of the whole interval, with g = 1 − f and v = √g x_0 − √f y_0.

    The coefficients of z_1 have the norm f³ + g³ + 3fg = 1. So (v, x_1, y_1)
    given z_1 is z_1 times these coefficients plus noise, made of the draws
    (ξ_0, ξ_1), in the plane orthogonal to them. The map from (z, ξ) is a
    rotation. No term is singular at f = 0 or 1, where one part is the whole.

    This is the distribution of the increment and the space–time Lévy area,
    Foster, Lyons & Oberhauser 2020, section 3 (there f = ½).
    """
    g = 1 - f
    c = jnp.sqrt(3 * f * g)
    norm = jnp.sqrt(1 - 3 * f * g)  # of (f^{3/2}, g^{3/2}), at least ½
    left, right = f * jnp.sqrt(f), g * jnp.sqrt(g)
    v = c * z[1] + norm * draws[0]
    along, across = z[1] - c / norm * draws[0], draws[1] / norm
    first = (jnp.sqrt(f) * z[0] + jnp.sqrt(g) * v, left * along + right * across)
    second = (jnp.sqrt(g) * z[0] - jnp.sqrt(f) * v, right * along - left * across)
    return first, second


def _descend(path, leaf, fraction, top):
    """Pieces left and right of a point, within its ancestor of depth `top` in the tree.

    The point lies in leaf 0 … 2^depth − 1, at a fraction in [0, 1] of it.
    Lengths are in units of the interval. Nodes are numbered as in a heap: the
    children of node n are 2n and 2n + 1. The normals of the root are draw
    number 0.
    """

    def draw(node):
        return normal(path.key, node, (2, *path.shape), fraction.dtype)

    def halve(depth, carry):
        z, h, before, after = carry
        depth, h = jnp.asarray(depth, jnp.uint32), h / 2
        node = jnp.uint32(1) << depth | leaf >> (path.depth - depth)
        in_second = (leaf >> (path.depth - 1 - depth) & 1).astype(bool)
        first, second = _split(z, draw(node), jnp.asarray(0.5, fraction.dtype))
        sibling = _piece(h, _where(in_second, first, second))
        before = _where((depth >= top) & in_second, _join(before, sibling), before)
        after = _where((depth >= top) & ~in_second, _join(sibling, after), after)
        return _where(in_second, second, first), h, before, after

    root = draw(jnp.uint32(0))
    length, zero = jnp.ones_like(fraction), jnp.zeros_like(root[0])
    nothing = _Piece(jnp.zeros_like(fraction), zero, zero)
    z, h, before, after = jax.lax.fori_loop(
        0, path.depth, halve, ((root[0], root[1]), length, nothing, nothing)
    )
    first, second = _split(z, draw(jnp.uint32(1 << path.depth) | leaf), fraction)
    before = _join(before, _piece(h * fraction, first))
    return before, _join(_piece(h * (1 - fraction), second), after)


def _locate(path, t):
    """The leaf that holds t, and where in it t lies: a fraction, NaN outside the path.

    Both are measured from the end that rounds less. A time on the border of
    two leaves is the start of the second.
    """
    length = path.end - path.start
    elapsed, remaining = (t - path.start) / length, (path.end - t) / length
    leaves = 1 << path.depth
    position = jnp.maximum(jnp.minimum(elapsed, remaining), 0) * leaves
    whole = jnp.floor(position)
    fraction = position - whole
    # Seen from the end, fraction 1 of a leaf is fraction 0 of the next one.
    borders = (whole > 0) & (1 - fraction == 1)
    from_end = (leaves - 1 - whole + borders, jnp.where(borders, 0, 1 - fraction))
    leaf, fraction = _where(elapsed <= remaining, (whole, fraction), from_end)
    low, high = jnp.minimum(path.start, path.end), jnp.maximum(path.start, path.end)
    inside = (t >= low - _rounding(path)) & (t <= high + _rounding(path))
    return leaf.astype(jnp.uint32), jnp.where(inside, fraction, jnp.nan)


@jax.jit
def _value(path, t):
    path, t = _without_gradient(path, t)
    piece, _ = _descend(path, *_locate(path, t), 0)
    span = jnp.abs(path.end - path.start)
    return jnp.sqrt(span) * piece.w, span * jnp.sqrt(span) * piece.area


@jax.jit
def _increment(path, t, s):
    path, t, s = _without_gradient(path, t, s)
    first, second = _locate(path, t), _locate(path, s)
    backwards = (first[0] > second[0]) | (
        (first[0] == second[0]) & (first[1] > second[1])
    )
    first, second = _where(backwards, (second, first), (first, second))
    # The two times part at depth `common`, where one lies in each child.
    # Between them is the rest of the first child after its time, and the
    # second one before its time. Times in one leaf never part, and are both
    # measured from its start.
    in_one_leaf = first[0] == second[0]
    common = path.depth - 32 + jax.lax.clz(first[0] ^ second[0]).astype(jnp.int32)
    top = jnp.minimum(common + 1, path.depth)
    before_first, after_first = _descend(path, *first, top)
    before_second, _ = _descend(path, *second, top)
    between = _where(
        in_one_leaf,
        _rest(before_second, before_first),
        _join(after_first, before_second),
    )
    h = jnp.abs(s - t) / jnp.abs(path.end - path.start)
    h = jnp.where(h > 0, h, 1)
    z0 = between.w / jnp.sqrt(h)
    z1 = 2 * math.sqrt(3) * (between.area / (h * jnp.sqrt(h)) - z0 / 2)
    return jnp.where(backwards, -z0, z0), z1


def _where(condition, a, b):
    return jax.tree.map(lambda *leaves: jnp.where(condition, *leaves), a, b)


def _without_gradient(path, *times):
    start, end, *times = (
        jax.lax.stop_gradient(t) for t in (path.start, path.end, *times)
    )
    return BrownianPath(path.key, start, end, path.shape, path.depth), *times


def _rounding(path):
    # A time may round outside by 4 ulp of the end that is greater in absolute
    # value.
    largest = array_module(path.start, path.end).maximum(abs(path.start), abs(path.end))
    return 4 * np.finfo(path.start.dtype).eps * largest


def _path_key(key):
    # A threefry key whatever the type of `key`: its draws commute with vmap.
    words = jax.random.key_data(jax.random.fold_in(key, _PATH))
    pair = words[:2]
    for i in range(2, words.size, 2):
        pair = threefry_2x32(pair, words[i : i + 2])
    return jax.random.wrap_key_data(pair, impl="threefry2x32")
