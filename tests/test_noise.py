"""Per-example noise: normal, independent over keys, counters and entries, the same under every transformation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax import noise

COUNT = 200_000


def draws(dtype="float32", key=0, counters=20):
    """(counters, COUNT / counters) draws of one key."""
    normal = jax.vmap(lambda c: noise.normal(jax.random.key(key), c, (COUNT // counters,), dtype))
    return np.asarray(jax.jit(normal)(jnp.arange(counters)), np.float64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_law_is_standard_normal(dtype):
    """Kolmogorov–Smirnov, four moments and both tails."""
    with jax.enable_x64(dtype == "float64"):
        z = draws(dtype).ravel()
    assert math.sqrt(COUNT) * stats.kstest(z, "norm").statistic < 2.5  # P < 1e-5
    # moments 1 to 4 are 0, 1, 0, 3 with variances 1, 2, 15, 96
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - moment) < 4.5 * math.sqrt(variance / COUNT), power
    for side in (z, -z):
        for threshold in (2.0, 3.0, 4.0):
            expected = COUNT * stats.norm.sf(threshold)
            assert abs(np.sum(side > threshold) - expected) < 4.5 * math.sqrt(expected), threshold


def test_reaches_as_far_as_its_lattice():
    """The extreme float32 words map to ±5.17, finite: the lattice is centred, so that ±1 is never reached."""
    words = jnp.array([0, 2**23 - 1], jnp.uint32)
    centred = (words.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-22) - 1
    np.testing.assert_array_equal(centred, [-1 + 2.0**-23, 1 - 2.0**-23])
    assert np.abs(draws()).max() < stats.norm.isf(2.0**-24) + 0.01


def test_float64_draws_fill_their_mantissa(x64):
    """Float64 noise is not float32 noise widened."""
    z = draws("float64")[0]
    assert np.mean(z == z.astype(np.float32)) < 1e-3


def test_no_correlation_between_keys_counters_or_entries():
    """Correlations over n pairs are within 4.5/√n of 0, between neighbouring keys, counters, entries and their
    squares.
    """
    z, other = draws(), draws(key=1)
    pairs = {
        "keys": (z, other),
        "counters": (z[1:], z[:-1]),
        "entries": (z[:, 1:], z[:, :-1]),
        "counter and entry": (z[1:, :-1], z[:-1, 1:]),
        "halves": (z[:, : z.shape[1] // 2], z[:, z.shape[1] // 2 :]),  # the two words of one hash
    }
    for name, (a, b) in pairs.items():
        bound = 4.5 / math.sqrt(a.size)
        assert abs(np.mean(a * b)) < bound, name
        assert abs(np.mean((a**2 - 1) * (b**2 - 1)) / 2) < bound, name


def test_no_number_repeats_across_counters_keys_and_entries():
    """Draws of 40 (key, counter) pairs are distinct lattice points but for the birthday rate n²/2^24."""
    z = np.concatenate([draws(key=k)[:, :64].ravel() for k in (0, 1)])
    # the lattice has 2²³ cells of equal mass: the expected number of coincidences is n(n − 1)/2 / 2²³
    expected = z.size * (z.size - 1) / 2 / 2**23
    assert z.size - np.unique(z).size <= expected + 5 * math.sqrt(expected) + 1


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_same_under_jit_vmap_and_scan(shape, impl):
    """Example i of a batch gets what it gets alone; a traced counter is a concrete one."""
    keys = jax.random.split(jax.random.key(5, impl=impl), 3)
    alone = np.stack([noise.normal(key, 7, shape) for key in keys])
    assert alone.shape == (3, *shape) and np.unique(alone).size == alone.size
    np.testing.assert_array_equal(jax.jit(lambda k, c: noise.normal(k, c, shape))(keys[0], 7), alone[0])
    _, scanned = jax.lax.scan(lambda c, i: (c, noise.normal(keys[1], i, shape)), 0, jnp.arange(6, 9))
    np.testing.assert_array_equal(scanned[1], alone[1])
    if impl == "threefry2x32":  # rbg's fold_in and bits are documented by JAX not to commute with vmap
        np.testing.assert_array_equal(jax.vmap(lambda k: noise.normal(k, 7, shape))(keys), alone)


def test_other_key_types_fall_back_to_fold_in():
    key = jax.random.key(0, impl="rbg")
    expected = jax.random.normal(jax.random.fold_in(key, 3), (4,), jnp.float32)
    np.testing.assert_array_equal(noise.normal(key, 3, (4,)), expected)


def test_steps_times_draws_never_collide():
    """A solver's counter is step · DRAWS_PER_STEP + draw: each (step, draw) has its own noise up to 2³² /
    DRAWS_PER_STEP steps.
    """
    steps, key = np.array([0, 1, 2, 1000, 2**32 // noise.DRAWS_PER_STEP - 1], np.uint32), jax.random.key(0)
    counters = (steps[:, None] * noise.DRAWS_PER_STEP + np.arange(noise.DRAWS_PER_STEP, dtype=np.uint32)).ravel()
    z = jax.vmap(lambda c: noise.normal(key, c, (4,)))(jnp.asarray(counters, jnp.uint32))
    assert np.unique(np.asarray(z), axis=0).shape[0] == steps.size * noise.DRAWS_PER_STEP


def test_dtype_follows_the_house_rule():
    key = jax.random.key(0)
    assert noise.normal(key, 0, (3,)).dtype == jnp.float32
    assert noise.normal(key, 0, (3,), jnp.bfloat16).dtype == jnp.bfloat16
    narrow, wide = noise.normal(key, 0, (3,), jnp.bfloat16), noise.normal(key, 0, (3,), jnp.float32)
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
    with jax.enable_x64(True):
        assert noise.normal(key, 0, (3,)).dtype == jnp.float64
