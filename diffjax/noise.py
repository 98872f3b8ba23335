"""Gaussian noise of one example: a function of its own key and a counter alone, or of its key and of time."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from . import checks
from .numerics import float_dtype
from .types import Array, Key, Scalar, pytree, static_field

DRAWS_PER_STEP = 8
"""How many independent draws a solver may ask for in one step."""

_PATH = 0x42726F77
"""Folded into a key before a path is drawn from it, so that the path shares no counter with draws from the key."""


def normal(key: Key, counter: Array | int, shape: tuple[int, ...], dtype=None) -> Array:
    """Standard normal noise of the given shape, independent for each (key, counter).

    counter: (), an integer below 2³². For threefry keys the pair (counter, index) is hashed with the key in one pass
    and mapped through the inverse error function: a `fold_in` and its second hash are saved, which counts for
    small examples. Other key types fold the counter in. float32 draws have a 2⁻²³ lattice before the map, float64 2⁻⁵².
    Salmon et al. 2011 (threefry).
    """
    key, number, shape = checks.key("key", key), _counter(counter), _shape(shape)
    dtype = jnp.dtype(dtype or float_dtype())
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating type, got {dtype}")
    draw = _normal if checks.is_traced((key, number)) else _compiled_normal
    return draw(key, number, shape, dtype)


def _counter(counter):
    """`counter` checked: a NumPy uint32, or an array of integers as given."""
    if isinstance(counter, int | np.integer):
        return np.uint32(checks.integer("counter", counter, 0, 2**32 - 1))
    if (
        not hasattr(counter, "dtype")
        or counter.shape != ()
        or not jnp.issubdtype(counter.dtype, jnp.integer)
    ):
        raise TypeError(f"counter must be an integer of shape (), got {counter!r}")
    return counter


def _shape(shape):
    """`shape` checked. An axis may be empty."""
    if isinstance(shape, tuple | list):
        checks.shape(
            "shape",
            [1 if type(length) is int and length == 0 else length for length in shape],
        )
        return tuple(shape)
    return checks.shape("shape", shape)


def _normal(key, counter, shape, dtype):
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.normal(jax.random.fold_in(key, counter), shape, dtype)
    size = 1
    for length in shape:
        size *= length
    wide = dtype == jnp.float64
    pairs = size if wide else (size + 1) // 2
    index = jnp.arange(pairs, dtype=jnp.uint32)
    counters = jnp.concatenate([jnp.full((pairs,), counter, jnp.uint32), index])
    words = threefry_2x32(jax.random.key_data(key), counters)  # (2 pairs,)
    if wide:
        bits = (
            words[:pairs].astype(jnp.uint64) << 32 | words[pairs:].astype(jnp.uint64)
        ) >> 12
        centred = (bits.astype(dtype) + 0.5) * 2.0**-51 - 1
    else:
        bits = words[:size] >> 9
        centred = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-22) - 1
    return (
        (jnp.sqrt(2.0).astype(centred.dtype) * jax.lax.erf_inv(centred))
        .astype(dtype)
        .reshape(shape)
    )


_compiled_normal = jax.jit(_normal, static_argnums=(2, 3))


def part(
    key: Key, level: Array, index: Array, shape: tuple[int, ...], dtype: Any
) -> Array:
    """√2^level times the increment of a standard Brownian motion over the index-th of 2^level equal parts of [0, 1].

    Standard normal, and the halves of a part add up to it: z ← (z ± ξ)/√2 down the tree of halvings, ξ hashed from the
    node's number. No time is rounded, so that the same part has the same increment in every program.

    Args:
      key: Typed key of the motion.
      level: Halvings, (), an integer between 0 and 30.
      index: Which part, (), an integer below 2^level.
      shape: Of the motion.
      dtype: Of the result.

    Returns:
      The normalised increment, of the given shape.
    """
    key, index = _path_key(key), jnp.asarray(index, jnp.uint32)

    def halve(depth, z):
        depth = jnp.asarray(depth, jnp.uint32)
        below = (
            jnp.asarray(level, jnp.uint32) - depth
        )  # halvings from this node to the part
        xi = normal(key, jnp.uint32(1) << depth | index >> below, shape, dtype)
        second = index >> (below - 1) & 1
        return (z + jnp.where(second == 1, -xi, xi)) * math.sqrt(0.5)

    return jax.lax.fori_loop(0, level, halve, normal(key, 0, shape, dtype))


# ------------------------------------------------------------------------------------------------------ Brownian path


def brownian(
    key: Key, start: Scalar, end: Scalar, shape: tuple[int, ...] = (), levels: int = 16
) -> "BrownianPath":
    """One standard Brownian motion W on the interval between start and end, a function of its key alone.

    Its clock runs from start, where W = 0, towards end, which may lie on either side. shape: of W. levels: 1 … 24
    halvings of the interval. Values at times of which no two lie strictly inside one of the 2^levels leaves follow the
    joint law exactly: the resolution is |end − start| / 2^levels. Two times inside one leaf see one draw of its bridge,
    which is smoother than W. Raises TypeError for a key that is not typed or a shape that is no tuple of integers,
    ValueError unless start ≠ end are finite and for levels out of range.
    """
    checks.key("key", key)
    start, end = _time("start", start), _time("end", end)
    if not checks.is_traced(start, end) and start == end:
        raise ValueError(f"end must differ from start={start}, got {end}")
    if not isinstance(shape, tuple):
        raise TypeError(f"shape must be a tuple of integers, got {shape!r}")
    shape = tuple(
        checks.integer(f"shape[{i}]", length, minimum=0)
        for i, length in enumerate(shape)
    )
    return BrownianPath(
        _path_key(key), start, end, shape, checks.integer("levels", levels, 1, 24)
    )


@pytree
class BrownianPath:
    """A Brownian motion that can be evaluated at any times in any order, made by `brownian`.

    The interval is halved `levels` times, each half's increment and area following from the whole's and from two draws
    hashed with the half's place in the tree, and the leaf that holds t is split once more at t itself, by the same law
    (`_split`). Nothing is stored; a value costs levels + 1 draws of 2 × shape. Times carry no gradient: W has none.
    """

    key: Any
    start: Any
    end: Any
    shape: tuple[int, ...] = static_field()
    levels: int = static_field()

    def __call__(self, t: Scalar) -> tuple[Array, Array]:
        """W(t) and I(t) = ∫ W over the time elapsed from start to t, each of the path's shape.

        t: (), between start and end. Raises ValueError elsewhere (beyond a rounding of 4 ulp of the greater end); a
        traced t elsewhere gives NaN.
        """
        return _value(self, self._checked("t", t))

    def increment(self, t: Scalar, s: Scalar) -> tuple[Array, Array]:
        """z_0, z_1 of the step from t to s, independent and standard normal, each of the path's shape.

        With h = |s − t|: W(s) − W(t) = √h z_0 and ∫_t^s (W(u) − W(t)) du = h^{3/2} (z_0/2 + z_1/(2√3)) in time elapsed,
        which is Kloeden & Platen's I_(1,0). A step against the clock has −z_0 and the same z_1. The increment is summed
        from the pieces between t and s alone, so that its rounding is relative to √h; h itself is known to within the
        rounding of the times. Where both times lie in one leaf the z are the path's, hence not normal. Raises
        ValueError where t or s lies outside the path or s = t; traced times outside give NaN, s = t finite z.
        Kloeden & Platen 1992, eq. 10.4.3.
        """
        t, s = self._checked("t", t), self._checked("s", s)
        if not checks.is_traced(t, s) and t == s:
            raise ValueError(f"s must differ from t={t}, got {s}")
        return _increment(self, t, s)

    def _checked(self, name, t):
        t = _time(name, t)
        if not checks.is_traced(t, self.start, self.end):
            low, high = sorted((float(self.start), float(self.end)))
            rounding = _rounding(self)
            if not low - rounding <= t <= high + rounding:
                raise ValueError(f"{name} must lie in [{low}, {high}], got {t}")
        return t


class _Piece(NamedTuple):
    """The path over an interval of length h: w = its increment, area = ∫ (W(u) − W(left end)) du."""

    h: Array
    w: Array
    area: Array


def _piece(h, z):
    """The piece of length h with w = √h z_0, area = h^{3/2} (z_0/2 + z_1/(2√3))."""
    return _Piece(
        h, jnp.sqrt(h) * z[0], h * jnp.sqrt(h) * (z[0] / 2 + z[1] / (2 * math.sqrt(3)))
    )


def _join(first, second):
    """The piece made of two adjacent ones."""
    area = first.area + second.area + first.w * second.h
    return _Piece(first.h + second.h, first.w + second.w, area)


def _rest(whole, first):
    """The piece that joined to `first` makes `whole`."""
    h = whole.h - first.h
    return _Piece(h, whole.w - first.w, whole.area - first.area - first.w * h)


def _split(z, draws, f):
    """Standard normals of the parts [0, f] and [f, 1] of an interval given its own: ((x_0, x_1), (y_0, y_1)).

    z = (z_0, z_1) and draws = (ξ_0, ξ_1) are independent standard normals, and with g = 1 − f the map is a rotation:
    joining the parts is z_0 = √f x_0 + √g y_0, z_1 = √(3fg) v + f^{3/2} x_1 + g^{3/2} y_1, v = √g x_0 − √f y_0, where
    the coefficients of z_1 have the norm f³ + g³ + 3fg = 1. So (v, x_1, y_1) given z_1 is z_1 times these coefficients
    plus noise in the plane orthogonal to them. No term is singular at f = 0 or 1, where the whole part has exactly z.
    The law is that of (ΔW, space–time Lévy area), Foster, Lyons & Oberhauser 2020, section 3 (there f = ½).
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
    """The pieces left and right of a point within the node of depth `top` that holds it, in units of the interval.

    leaf, fraction: the point's leaf, 0 … 2^levels − 1, and its place there, in [0, 1]. Nodes are numbered as in a heap,
    the children of node n being 2n and 2n + 1; the root's normals are the draw of number 0.
    """

    def draw(node):
        return normal(path.key, node, (2, *path.shape), fraction.dtype)

    def halve(depth, carry):
        z, h, before, after = carry
        depth, h = jnp.asarray(depth, jnp.uint32), h / 2
        node = jnp.uint32(1) << depth | leaf >> (path.levels - depth)
        in_second = (leaf >> (path.levels - 1 - depth) & 1).astype(bool)
        first, second = _split(z, draw(node), jnp.asarray(0.5, fraction.dtype))
        sibling = _piece(h, _where(in_second, first, second))
        before = _where((depth >= top) & in_second, _join(before, sibling), before)
        after = _where((depth >= top) & ~in_second, _join(sibling, after), after)
        return _where(in_second, second, first), h, before, after

    root = draw(jnp.uint32(0))
    length, zero = jnp.ones_like(fraction), jnp.zeros_like(root[0])
    nothing = _Piece(jnp.zeros_like(fraction), zero, zero)
    z, h, before, after = jax.lax.fori_loop(
        0, path.levels, halve, ((root[0], root[1]), length, nothing, nothing)
    )
    first, second = _split(z, draw(jnp.uint32(1 << path.levels) | leaf), fraction)
    return _join(before, _piece(h * fraction, first)), _join(
        _piece(h * (1 - fraction), second), after
    )


def _locate(path, t):
    """The leaf that holds t and t's place in it (NaN outside the path), measured from the end that rounds less.

    A time on the border of two leaves is the second one's start.
    """
    elapsed, remaining = (
        (t - path.start) / (path.end - path.start),
        (path.end - t) / (path.end - path.start),
    )
    leaves = 1 << path.levels
    place = jnp.maximum(jnp.minimum(elapsed, remaining), 0) * leaves
    whole = jnp.floor(place)
    part = place - whole
    borders = (whole > 0) & (
        1 - part == 1
    )  # seen from the end, a leaf's place 1 is the next one's 0
    from_end = (leaves - 1 - whole + borders, jnp.where(borders, 0, 1 - part))
    leaf, fraction = _where(elapsed <= remaining, (whole, part), from_end)
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
    # Where the two times part, at depth `common`, one lies in each child: between them is what the one child has after
    # its time and the other before. Times in one leaf never part, and are both measured from its start.
    in_one_leaf = first[0] == second[0]
    common = path.levels - 32 + jax.lax.clz(first[0] ^ second[0]).astype(jnp.int32)
    top = jnp.minimum(common + 1, path.levels)
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
    return BrownianPath(path.key, start, end, path.shape, path.levels), *times


def _rounding(path):
    """How far outside the path a time may round: 4 ulp of the end that is greater in absolute value."""
    largest = np.maximum if not checks.is_traced(path.start, path.end) else jnp.maximum
    return 4 * np.finfo(path.start.dtype).eps * largest(abs(path.start), abs(path.end))


def _path_key(key):
    """The threefry key of the path of `key`, whose draws commute with vmap as other types' do not."""
    words = jax.random.key_data(jax.random.fold_in(key, _PATH))
    pair = words[:2]
    for i in range(2, words.size, 2):
        pair = threefry_2x32(pair, words[i : i + 2])
    return jax.random.wrap_key_data(pair, impl="threefry2x32")


def _time(name, value):
    value = checks.number(name, value)
    if checks.is_traced(value):
        return value.astype(float_dtype())
    with np.errstate(over="ignore"):
        time = np.asarray(value, float_dtype())
    if not np.isfinite(time):
        raise ValueError(f"{name} must be finite in {time.dtype}, got {value}")
    return time
