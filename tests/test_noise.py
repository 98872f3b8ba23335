"""Per-example noise: normal, independent over keys, counters and entries, the
same under every transformation.

A Brownian path has the exact distribution of (W, ∫W) at any times, and is the
same path on every grid.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax import noise
from tests.families import every

COUNT = 200_000


@functools.cache
def draws(dtype="float32", key=0, counters=20):
    """(counters, COUNT / counters) draws of one key."""
    with jax.enable_x64(dtype == "float64"):
        return np.asarray(
            _draws(jax.random.key(key), np.arange(counters), dtype), np.float64
        )


@functools.partial(jax.jit, static_argnums=2)
def _draws(key, counters, dtype):
    return jax.vmap(lambda c: noise.normal(key, c, (COUNT // counters.size,), dtype))(
        counters
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distribution_is_standard_normal(dtype):
    """Kolmogorov–Smirnov, four moments and both tails."""
    z = draws(dtype).ravel()
    assert math.sqrt(COUNT) * stats.kstest(z, "norm").statistic < 2.5  # P < 1e-5
    # moments 1 to 4 are 0, 1, 0, 3 with variances 1, 2, 15, 96
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - moment) < 4.5 * math.sqrt(variance / COUNT), (
            power
        )
    for side in (z, -z):
        for threshold in (2.0, 3.0, 4.0):
            expected = COUNT * stats.norm.sf(threshold)
            assert abs(np.sum(side > threshold) - expected) < 4.5 * math.sqrt(
                expected
            ), threshold


def test_reaches_as_far_as_its_lattice():
    """The extreme float32 words map to ±5.17, finite: the lattice is centred,
    so that ±1 is never reached.
    """
    words = jnp.array([0, 2**23 - 1], jnp.uint32)
    centred = (words.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-22) - 1
    np.testing.assert_array_equal(centred, [-1 + 2.0**-23, 1 - 2.0**-23])
    assert np.abs(draws()).max() < stats.norm.isf(2.0**-24) + 0.01


def test_float64_draws_fill_their_mantissa():
    """Float64 noise is not float32 noise widened."""
    z = draws("float64")[0]
    assert np.mean(z == z.astype(np.float32)) < 1e-3


def test_no_correlation_between_keys_counters_or_entries():
    """Correlations over n pairs are within 4.5/√n of 0, between neighbouring
    keys, counters, entries and their squares.
    """
    z, other = draws(), draws(key=1)
    pairs = {
        "keys": (z, other),
        "counters": (z[1:], z[:-1]),
        "entries": (z[:, 1:], z[:, :-1]),
        "counter and entry": (z[1:, :-1], z[:-1, 1:]),
        "halves": (
            z[:, : z.shape[1] // 2],
            z[:, z.shape[1] // 2 :],
        ),  # the two words of one hash
    }
    for name, (a, b) in pairs.items():
        bound = 4.5 / math.sqrt(a.size)
        assert abs(np.mean(a * b)) < bound, name
        assert abs(np.mean((a**2 - 1) * (b**2 - 1)) / 2) < bound, name


def test_no_number_repeats_across_counters_keys_and_entries():
    """Draws of 40 (key, counter) pairs are distinct lattice points but for the
    birthday rate n²/2^24.
    """
    z = np.concatenate([draws(key=k)[:, :64].ravel() for k in (0, 1)])
    # the lattice has 2²³ cells of equal mass: the expected number of coincidences is
    # n(n − 1)/2 / 2²³
    expected = z.size * (z.size - 1) / 2 / 2**23
    assert z.size - np.unique(z).size <= expected + 5 * math.sqrt(expected) + 1


@pytest.mark.parametrize("shape", every([(), (3,), (2, 2, 2)], ((3,),)))
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_same_under_jit_vmap_and_scan(shape, impl):
    """Example i of a batch gets what it gets alone.

    A traced counter is a concrete one.
    """
    keys = jax.random.split(jax.random.key(5, impl=impl), 3)
    compiled = jax.jit(lambda k, c: noise.normal(k, c, shape))
    alone = np.stack([compiled(key, 7) for key in keys])
    assert alone.shape == (3, *shape) and np.unique(alone).size == alone.size
    if shape == (3,):
        np.testing.assert_array_equal(noise.normal(keys[0], 7, shape), alone[0])
    _, scanned = jax.lax.scan(
        lambda c, i: (c, noise.normal(keys[1], i, shape)), 0, jnp.arange(6, 9)
    )
    np.testing.assert_array_equal(scanned[1], alone[1])
    if (
        impl == "threefry2x32"
    ):  # rbg's fold_in and bits are documented by JAX not to commute with vmap
        np.testing.assert_array_equal(
            jax.vmap(lambda k: noise.normal(k, 7, shape))(keys), alone
        )


def test_other_key_types_fall_back_to_fold_in():
    key = jax.random.key(0, impl="rbg")
    expected = jax.random.normal(jax.random.fold_in(key, 3), (4,), jnp.float32)
    np.testing.assert_array_equal(noise.normal(key, 3, (4,)), expected)


def test_steps_times_draws_never_collide():
    """A solver's counter is step · DRAWS_PER_STEP + draw: each (step, draw)
    has its own noise up to 2³² / DRAWS_PER_STEP steps.
    """
    steps, key = (
        np.array([0, 1, 2, 1000, 2**32 // noise.DRAWS_PER_STEP - 1], np.uint32),
        jax.random.key(0),
    )
    counters = (
        steps[:, None] * noise.DRAWS_PER_STEP
        + np.arange(noise.DRAWS_PER_STEP, dtype=np.uint32)
    ).ravel()
    z = jax.vmap(lambda c: noise.normal(key, c, (4,)))(
        jnp.asarray(counters, jnp.uint32)
    )
    assert (
        np.unique(np.asarray(z), axis=0).shape[0] == steps.size * noise.DRAWS_PER_STEP
    )


def test_dtype_follows_the_house_rule():
    key = jax.random.key(0)
    assert noise.normal(key, 0, (3,)).dtype == jnp.float32
    assert noise.normal(key, 0, (3,), jnp.bfloat16).dtype == jnp.bfloat16
    narrow, wide = (
        noise.normal(key, 0, (3,), jnp.bfloat16),
        noise.normal(key, 0, (3,), jnp.float32),
    )
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
    with jax.enable_x64(True):
        assert noise.normal(key, 0, (3,)).dtype == jnp.float64


# ------------------------------------------------------------------------ Brownian path

KEYS = 20_000
ELAPSED = np.array([0.1, 0.25, 0.37, 0.5, 0.8, 1.0])
"""Fractions of the interval: borders of leaves, and at 2 depth or more at most
one time inside each leaf.
"""


def joint_covariance(a):
    """Cov of (W_a, I_a) at elapsed times a, shape (2n, 2n)."""
    first, second = np.minimum.outer(a, a), np.maximum.outer(a, a)
    rows, columns = (
        np.broadcast_to(a[:, None], first.shape),
        np.broadcast_to(a, first.shape),
    )
    w_i = np.where(rows <= columns, rows * columns - rows**2 / 2, columns**2 / 2)
    i_i = first**2 * second / 2 - first**3 / 6
    return np.block([[first, w_i], [w_i.T, i_i]])


def assert_centred_with_covariance(values, expected):
    """Means and second moments of (n, d) draws are within 4 standard errors of
    those of N(0, expected).
    """
    variance = np.diag(expected)
    assert np.all(np.abs(values.mean(0)) < 4 * np.sqrt(variance / len(values)))
    standard_error = np.sqrt((expected**2 + np.outer(variance, variance)) / len(values))
    np.testing.assert_array_less(
        np.abs(values.T @ values / len(values) - expected), 4 * standard_error
    )


def over_keys(function):
    """`function` of KEYS keys, its arrays joined to one (KEYS, d)."""
    outputs = jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(11), KEYS))
    return np.concatenate(
        [np.asarray(x, np.float64).reshape(KEYS, -1) for x in outputs], axis=1
    )


@pytest.mark.parametrize(
    "start, end, depth",
    [
        pytest.param(0.0, 2.0, 10, marks=pytest.mark.slow),
        (0.0, 1.0, 2),
        pytest.param(1.0, 0.0, 16, marks=pytest.mark.slow),
        (80.0, 0.002, 24),
    ],
)
def test_path_is_distributed_as_brownian_motion_and_its_integral(start, end, depth):
    """Mean and covariance of (W, I) at borders of leaves and inside them,
    upwards and downwards.
    """
    times = start + (end - start) * ELAPSED
    values = over_keys(
        lambda key: jax.vmap(noise.brownian(key, start, end, shape=(), depth=depth))(
            times
        )
    )
    assert_centred_with_covariance(values, joint_covariance(np.abs(times - start)))


@pytest.mark.parametrize(
    "start, end, depth",
    [pytest.param(0.0, 2.0, 6, marks=pytest.mark.slow), (1.0, 0.0, 24)],
)
def test_increments_are_independent_standard_normals(start, end, depth):
    """(z_0, z_1) of adjacent steps of unequal lengths, all uncorrelated with
    one another.
    """
    times = start + (end - start) * np.array(
        [0.0, 0.0625, 0.1, 0.37, 0.5, 0.52, 0.99, 1.0]
    )
    values = over_keys(
        lambda key: jax.vmap(
            noise.brownian(key, start, end, shape=(), depth=depth).increment
        )(times[:-1], times[1:])
    )
    assert_centred_with_covariance(values, np.eye(values.shape[1]))


def test_parts_of_a_motion_add_up_and_are_independent():
    """The halves of every part add up to it, and the eight parts of level 3
    are independent standard normals.
    """
    ends = jax.jit(
        jax.vmap(
            lambda key: [
                [noise.part(key, k, i, shape=(), dtype=np.float32) for i in range(2**k)]
                for k in range(4)
            ]
        )
    )
    depth = [
        np.stack(parts, -1) for parts in ends(jax.random.split(jax.random.key(3), KEYS))
    ]
    for above, below in zip(depth[:-1], depth[1:], strict=True):
        joined = (below[:, ::2] + below[:, 1::2]) * math.sqrt(0.5)
        np.testing.assert_allclose(
            joined, above, atol=4 * np.finfo(np.float32).eps * np.abs(below).max()
        )
    assert_centred_with_covariance(depth[3].astype(np.float64), np.eye(8))


@pytest.mark.parametrize("f", [0.0, 1e-6, 0.25, 0.5, 0.7, 1.0])
def test_split_is_a_rotation_that_joining_undoes(f, x64):
    """Normals of an interval and two draws become normals of its parts, whose
    union is the interval again.
    """
    identity = tuple(jnp.eye(4))
    first, second = noise._split(identity[:2], identity[2:], jnp.asarray(f))
    rotation = np.stack([*first, *second])
    np.testing.assert_allclose(
        rotation @ rotation.T, np.eye(4), atol=8 * np.finfo(float).eps
    )
    whole = noise._join(noise._piece(f, first), noise._piece(1 - f, second))
    np.testing.assert_allclose(whole.w, identity[0], atol=8 * np.finfo(float).eps)
    np.testing.assert_allclose(
        whole.area, noise._piece(1.0, identity[:2]).area, atol=8 * np.finfo(float).eps
    )
    if f in (
        0.0,
        1.0,
    ):  # the part that is all has the normals of the whole to the last bit
        np.testing.assert_array_equal(second if f == 0 else first, identity[:2])


def step(path, t, s):
    """h, ΔW, ∫(W − W_t) and max |z| of a step, in float64."""
    h = abs(float(s) - float(t))
    z0, z1 = (np.asarray(z, np.float64) for z in path.increment(t, s))
    area = h**1.5 * (z0 / 2 + z1 / (2 * math.sqrt(3)))
    return h, math.sqrt(h) * z0, area, max(np.abs(z0).max(), np.abs(z1).max())


def rounding(path):
    """Of z, relative to the largest: each of 2 × depth pieces and each of
    their rotations rounds about 8 times.
    """
    return 8 * 2 * path.depth * np.finfo(path(path.start)[0].dtype).eps


# multiples of 2⁻²⁰, whose differences and places in the tree do not round in float32
TRIPLES = [
    (0.0, 0.5, 1.0),
    (0.25, 0.3125, 0.75),
    (0.1, 0.4, 0.7),
    (0.3, 0.301, 0.303),
    (0.4999, 0.5, 0.5001),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("depth", [1, 16])
def test_increments_compose(depth, dtype):
    """ΔW_ac = ΔW_ab + ΔW_bc and I_ac = I_ab + I_bc + ΔW_ab h_bc to the
    rounding of the steps, not of the path. Times in one leaf included.
    """
    with jax.enable_x64(dtype == "float64"):
        times = np.round(np.array(TRIPLES) * 2**20) / 2**20
        path = noise.brownian(jax.random.key(2), 0.0, 1.0, shape=(100,), depth=depth)
        pairs = np.concatenate([times[:, [0, 1]], times[:, [1, 2]], times[:, [0, 2]]])
        z0, z1 = (
            np.asarray(z, np.float64)
            for z in jax.vmap(path.increment)(*pairs.astype(dtype).T)
        )
        h = np.diff(pairs)
        largest = np.max(np.maximum(np.abs(z0), np.abs(z1)), 1).reshape(3, -1).max(0)
        w, area = np.sqrt(h) * z0, h**1.5 * (z0 / 2 + z1 / (2 * math.sqrt(3)))
        (w_ab, w_bc, w_ac), (i_ab, i_bc, i_ac) = (
            np.split(values, 3) for values in (w, area)
        )
        (_, h_bc, h_ac), (a, _, c) = np.split(h, 3), times.T[:, :, None]
        one_leaf = (depth == 1) & ~(
            (a < 0.5) & (c > 0.5)
        )  # the difference of two values, each of the leaf's size
        bound = (
            rounding(path)
            * largest[:, None]
            * np.where(one_leaf, np.maximum(1, 1 / h_ac), 1)
        )
        assert np.all(np.abs(w_ab + w_bc - w_ac) < bound * np.sqrt(h_ac))
        assert np.all(np.abs(i_ab + i_bc + w_ab * h_bc - i_ac) < bound * h_ac**1.5)


@pytest.mark.parametrize("start, end", [(0.0, 1.0), (1.0, 0.0)])
def test_increments_are_those_of_the_values(start, end):
    """W(s) − W(t) and I(s) − I(t) − W(t) h, to the rounding of the values."""
    path = noise.brownian(jax.random.key(4), start, end, shape=(100,))
    for elapsed in ((0.0, 0.375), (0.25, 0.8125), (0.8125, 1.0)):
        t, s = (start + (end - start) * u for u in elapsed)
        (w_t, i_t), (w_s, i_s) = (
            [np.asarray(x, np.float64) for x in path(u)] for u in (t, s)
        )
        h, w, area, z = step(path, t, s)
        bound = rounding(path) * max(
            z, *(np.abs(x).max() for x in (w_t, w_s, i_t, i_s))
        )
        np.testing.assert_allclose(w, w_s - w_t, rtol=0, atol=2 * bound)
        np.testing.assert_allclose(area, i_s - i_t - w_t * h, rtol=0, atol=3 * bound)


def test_short_increments_keep_their_digits(monkeypatch):
    """Float32 z differ from those that float64 arithmetic makes of the same
    draws by eps √depth (root mean square) for steps down to 2⁻¹⁵ of the path,
    across its middle too: each of the rotations rounds by about eps, and
    amplifies nothing. Differences of values would be off by eps √(T / h).
    """
    steps = [(0.7, 2.0**-k) for k in (2, 5, 10, 15)] + [
        (0.5 - 2.0**-k / 3, 2.0**-k) for k in (5, 10, 15)
    ]
    times = [tuple(round(u * 2**20) / 2**20 for u in (t, t + h)) for t, h in steps]

    def increments():
        path = noise.brownian(jax.random.key(8), 0.0, 1.0, shape=(1000,))
        return [
            np.asarray(path.increment(t, s), np.float64) for t, s in times
        ], math.sqrt(path.depth)

    single, rotations = increments()
    narrow = noise.normal
    monkeypatch.setattr(
        noise, "normal", lambda *args: narrow(*args[:3], jnp.float32).astype(args[3])
    )
    try:
        with jax.enable_x64(True):
            double, _ = increments()
    finally:
        (
            noise._increment.clear_cache(),
            noise._value.clear_cache(),
        )  # what was traced with the draws replaced
    for got, expected in zip(single, double, strict=True):
        errors = np.sqrt(np.mean((got - expected) ** 2, axis=1))
        np.testing.assert_array_less(errors, np.finfo(np.float32).eps * rotations)


def test_finer_grids_follow_the_same_path():
    """Values at shared times are the same to the last bit, alone or among
    others, and so at borders of leaves for any number of depth.
    """
    key, coarse = jax.random.key(6), np.linspace(0.9, 0.0, 8)
    fine = np.linspace(0.9, 0.0, 15)
    path = noise.brownian(key, 1.0, 0.0, shape=(3,))
    for of_fine, of_coarse in zip(
        jax.vmap(path)(fine), jax.vmap(path)(coarse), strict=True
    ):
        np.testing.assert_array_equal(of_fine[::2], of_coarse)
    rough = noise.brownian(key, 1.0, 0.0, shape=(3,), depth=4)
    for t in np.arange(1, 17) / 16:
        np.testing.assert_array_equal(rough(t), path(t))
    bound = rounding(path) * max(np.abs(x).max() for x in rough(0.0))
    np.testing.assert_allclose(
        rough(0.0), path(0.0), rtol=0, atol=bound
    )  # summed from other pieces


def test_path_starts_at_zero_and_runs_either_way():
    """W = I = 0 at start. The clock runs from start to end.

    A step against it has −z_0 and the same z_1.
    """
    up, down = (
        noise.brownian(jax.random.key(3), *ends, shape=(4,))
        for ends in ((0.0, 2.0), (2.0, 0.0))
    )
    for path, start in ((up, 0.0), (down, 2.0)):
        np.testing.assert_array_equal(path(start), np.zeros((2, 4)))
    for t, s in ((0.25, 0.875), (0.5, 2.0), (1.0, 1.3125)):
        np.testing.assert_array_equal(up(t), down(2.0 - t))
        z0, z1 = up.increment(t, s)
        np.testing.assert_array_equal(up.increment(s, t), (-z0, z1))
        np.testing.assert_array_equal(down.increment(2.0 - t, 2.0 - s), (z0, z1))


def test_path_is_a_function_of_its_key_apart_from_other_draws():
    key = jax.random.key(0)
    path = noise.brownian(key, 0.0, 1.0, shape=(8,))
    np.testing.assert_array_equal(
        path(0.7), noise.brownian(jax.random.key(0), 0.0, 1.0, shape=(8,))(0.7)
    )
    assert not np.isin(
        path(0.7), noise.brownian(jax.random.key(1), 0.0, 1.0, shape=(8,))(0.7)
    ).any()
    with jax.enable_x64(True):  # where no two of so few draws coincide by chance
        of_path = np.stack(
            noise.brownian(key, 0.0, 1.0, shape=(8,)).increment(0.0, 1.0)
        )
        of_steps = jax.vmap(lambda c: noise.normal(key, c, (2, 8)))(jnp.arange(1000))
        assert (
            np.abs(of_path.reshape(-1, 1) - np.asarray(of_steps).reshape(1, -1)).min()
            > 1e-12
        )


@pytest.mark.parametrize(
    "impl", every(["threefry2x32", "rbg", "unsafe_rbg"], ("threefry2x32", "rbg"))
)
@pytest.mark.parametrize("dtype", every(["float32", "float64"], ("float32",)))
def test_path_is_the_same_under_jit_vmap_and_scan(impl, dtype):
    with jax.enable_x64(dtype == "float64"):
        key, ts = jax.random.key(5, impl=impl), jnp.array([0.1, 0.6, 0.6, 1.0])
        path = noise.brownian(key, 0.0, 1.0, shape=(3,))

        def of(path, t):
            return jnp.stack([*path(t), *path.increment(t, 0.45)])

        alone = np.stack([of(path, t) for t in ts])
        assert alone.dtype == dtype
        bound = {
            "rtol": 0,
            "atol": rounding(path) * np.abs(alone).max(),
        }  # fusion may round otherwise
        np.testing.assert_allclose(jax.jit(of)(path, ts[0]), alone[0], **bound)
        np.testing.assert_allclose(jax.vmap(of, (None, 0))(path, ts), alone, **bound)
        np.testing.assert_allclose(
            jax.lax.scan(lambda c, t: (c, of(path, t)), 0, ts)[1], alone, **bound
        )
        np.testing.assert_array_equal(alone[1], alone[2])


@pytest.mark.parametrize("impl", every(["threefry2x32", "rbg"], ("threefry2x32",)))
def test_batch_of_paths_is_a_loop_over_keys(impl):
    """Example i of a batch follows the path that it follows alone.

    Paths pass through transformations as values.
    """
    keys = jax.random.split(jax.random.key(5, impl=impl), 3)
    paths = jax.vmap(lambda key: noise.brownian(key, 1.0, 0.0, shape=(2,)))(keys)
    together = jax.vmap(lambda path: jnp.stack(path(0.3)))(paths)
    alone = [noise.brownian(key, 1.0, 0.0, shape=(2,)) for key in keys]
    expected = np.stack([np.stack(path(0.3)) for path in alone])
    np.testing.assert_allclose(
        together, expected, rtol=0, atol=rounding(alone[0]) * np.abs(expected).max()
    )
    assert np.unique(expected[:, 0]).size == 6


def test_times_carry_no_gradient():
    """z are constants of t: the gradient of √h z_0 is that of √h, and finite
    on the border of two leaves.
    """
    path = noise.brownian(jax.random.key(1), 0.0, 1.0)
    assert jax.grad(lambda t: path(t)[0])(0.3) == 0
    slope = jax.grad(lambda s: jnp.sqrt(s - 0.25) * path.increment(0.25, s)[0])(0.5)
    np.testing.assert_allclose(
        slope, path.increment(0.25, 0.5)[0], rtol=4 * np.finfo(np.float32).eps
    )  # 1/(2√¼) = 1


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"key": 0}, TypeError, "key must be a typed key"),
        (
            {"key": jax.random.split(jax.random.key(0))},
            ValueError,
            r"key must be one key of shape \(\), got shape \(2,\)",
        ),
        ({"start": "0"}, TypeError, "start must be a real number, got '0'"),
        ({"start": math.nan}, ValueError, "start must be finite, got nan"),
        ({"end": math.inf}, ValueError, "end must be finite, got inf"),
        ({"end": 1e39}, ValueError, "end must fit float32, got 1e[+]39"),
        ({"end": np.ones(2)}, ValueError, r"end must be a scalar, got shape \(2,\)"),
        ({"end": 0.0}, ValueError, "end must differ from start=0.0, got 0.0"),
        ({"end": 1e-50}, ValueError, "end must differ from start=0.0, got 0.0"),
        ({"shape": 3}, TypeError, "shape must be a tuple of integers, got 3"),
        ({"shape": (2, 1.5)}, TypeError, r"shape\[1\] must be an integer, got 1.5"),
        ({"shape": (-1,)}, ValueError, r"shape\[0\] must be at least 0, got -1"),
        ({"depth": 0}, ValueError, "depth must be between 1 and 24, got 0"),
        ({"depth": 25}, ValueError, "depth must be between 1 and 24, got 25"),
        ({"depth": 4.0}, TypeError, "depth must be an integer, got 4.0"),
    ],
)
def test_path_raises_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        noise.brownian(
            **{"key": jax.random.key(0), "start": 0.0, "end": 1.0} | arguments
        )


def test_times_outside_the_path_raise():
    """By name where they are known, as NaN where traced.

    A rounding beyond an end is the end.
    """
    path = noise.brownian(jax.random.key(0), 1.0, 0.5)
    for call, message in (
        (lambda: path(0.4), r"t must lie in \[0.5, 1\], got 0.4"),
        (lambda: path.increment(1.1, 0.7), "t must lie in"),
        (lambda: path.increment(0.7, 0.2), "s must lie in"),
        (lambda: path.increment(0.75, 0.75), "s must differ from t=0.75, got 0.75"),
        (lambda: path(np.ones(2)), r"t must be a scalar, got shape \(2,\)"),
        (lambda: path(None), "t must be a real number, got None"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    outside = jnp.array([0.4, 1.1, jnp.nan])
    assert np.isnan(jax.vmap(path)(outside)).all()
    assert np.isnan(jax.vmap(path.increment, (None, 0))(0.7, outside)).all()
    assert np.isfinite(jax.jit(path.increment)(0.7, 0.7)).all()
    beyond = np.nextafter(np.float32(1.0), np.float32(2.0))
    np.testing.assert_array_equal(path(beyond), path(1.0))


@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,)])
def test_path_has_the_shape_it_was_given(shape):
    path = noise.brownian(jax.random.key(0), 0, 1, shape=shape)
    values = jax.eval_shape(lambda path: (*path(0.3), *path.increment(0.3, 1.0)), path)
    assert [x.shape for x in values] == [shape] * 4
