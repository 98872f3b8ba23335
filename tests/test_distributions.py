"""Distributions against exact values: densities, moments, draws, and lattices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from diffjax import distributions, targets
from diffjax.distributions import lattice
from tests.families import EPS32, EPS64, assert_raises, quick

KEY = jax.random.key(0)
LEVELS = np.array([-1.0, -0.6, 0.1, 1.0])  # not equally spaced


# ------------------------------------------------------------------- the protocol


FAMILY = {
    "gaussian": lambda: distributions.gaussian([0.3, -1.0], [0.2, -0.4]),
    "standard normal": lambda: distributions.standard_normal((2,)),
    "mixture": lambda: distributions.gaussian_mixture(
        [0.3, 0.7], [[0.5, 0.0], [-1.0, 2.0]], [[0.4, 1.0], [0.7, 0.2]]
    ),
    "correlated mixture": lambda: distributions.gaussian_mixture(
        [0.3, 0.7], [[0.5, 0.0], [-1.0, 2.0]], [[[1.0, 0.6], [0.6, 0.5]], np.eye(2)]
    ),
    "bits": lambda: distributions.bernoulli([0.3, -2.0]),
    "logistic": lambda: distributions.discretised_logistic([0.2, -0.7], -1.0, LEVELS),
    "rounded": lambda: distributions.discretised_gaussian([0.2, -0.7], -1.0, LEVELS),
    "boxes": lambda: targets.uniform_boxes(
        [0.4, 0.6], [[0.0, -1.0], [2.0, 1.0]], [[1.0, 0.0], [4.0, 2.0]]
    ),
    "data": lambda: targets.empirical([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]]),
}
"""name -> a distribution of two entries."""


@pytest.mark.parametrize("name", FAMILY)
def test_draws_have_the_mean_and_the_variance(name, x64):
    """Within 4.5 standard errors over 20 000 draws, in every entry."""
    distribution, n = FAMILY[name](), 20_000
    xs = np.asarray(quick(jax.vmap(distribution.sample))(jax.random.split(KEY, n)))
    mean, variance = (
        np.asarray(distribution.mean()),
        np.asarray(distribution.variance()),
    )
    assert mean.shape == variance.shape == (2,)
    error = 4.5 / math.sqrt(n)
    assert np.all(np.abs(xs.mean(0) - mean) < error * xs.std(0))
    squares = (xs - mean) ** 2
    assert np.all(np.abs(squares.mean(0) - variance) < error * squares.std(0))


@pytest.mark.parametrize("name", ["bits", "logistic", "rounded"])
def test_moments_are_sums_over_the_values(name, x64):
    distribution = FAMILY[name]()
    values = np.array([0.0, 1.0]) if name == "bits" else LEVELS
    pairs = np.stack(np.meshgrid(values, values, indexing="ij"), -1).reshape(-1, 2)
    p = np.exp(quick(jax.vmap(distribution.log_prob))(pairs))
    np.testing.assert_allclose(distribution.mean(), p @ pairs, rtol=1e-12)
    squares = (pairs - p @ pairs) ** 2
    np.testing.assert_allclose(distribution.variance(), p @ squares, rtol=1e-11)


def test_a_tuple_of_latents_has_the_density_of_its_parts(x64):
    shapes = ((2,), (3, 1))
    normal = distributions.standard_normal(shapes)
    z = normal.sample(KEY)
    assert tuple(part.shape for part in z) == shapes
    parts = [distributions.standard_normal(shape) for shape in shapes]
    total = sum(part.log_prob(x) for part, x in zip(parts, z, strict=True))
    assert float(normal.log_prob(z)) == pytest.approx(float(total), rel=1e-14)
    assert [x.shape for x in normal.mean()] == [x.shape for x in normal.variance()]


def test_an_entry_without_variance_is_an_atom():
    """Its density is 0 beside the mean and infinite on it. NaN stays NaN."""
    log_prob = distributions.Gaussian(jnp.zeros(2), jnp.array([0.0, 1.0])).log_prob
    assert log_prob(jnp.array([1e-3, 0.0])) == -np.inf
    assert log_prob(jnp.zeros(2)) == np.inf
    assert np.isnan(distributions.Gaussian(0.0, jnp.nan).log_prob(jnp.zeros(2)))


# ------------------------------------------------------------------------ Gaussians


def test_kl_of_gaussians(x64):
    """KL = E_p[log p − log q], by Gauss–Hermite quadrature, exact for these
    quadratics, and nothing cancels near 0.
    """
    p, q = (
        distributions.Gaussian(jnp.array([0.3, -1.0]), 0.4),
        distributions.Gaussian(jnp.array([0.1, 0.2]), jnp.array([0.9, 0.2])),
    )
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    xs = np.asarray(p.loc) + math.sqrt(p.var) * np.stack(
        np.meshgrid(nodes, nodes), -1
    )  # (3, 3, 2)
    ratios = quick(jax.vmap(jax.vmap(lambda x: p.log_prob(x) - q.log_prob(x))))(xs)
    total = weights @ np.asarray(ratios) @ weights / (2 * math.pi)
    assert float(distributions.gaussian_kl(p, q)) == pytest.approx(
        float(total), rel=1e-13
    )
    h = 1e-6  # KL(N(0,1) ‖ N(0, 1 + h)) = h²/4 − h³/3 + …; log(1 + h) rounds to ε/h
    result = distributions.gaussian_kl(
        distributions.Gaussian(jnp.zeros(1), 1.0),
        distributions.Gaussian(jnp.zeros(1), 1 + h),
    )
    assert float(result) == pytest.approx(h**2 / 4, rel=4 / 3 * h + 4 * EPS64 / h)


# ------------------------------------------------------------ normal probabilities


def exact_log_interval(a, b):
    """log(Φ(b) − Φ(a)) and its derivatives in a and b, through erfcx on the
    left and erf around 0 (SciPy, float64).
    """
    if a + b > 0:
        value, by_a, by_b = exact_log_interval(-b, -a)
        return value, -by_b, -by_a
    root, fall = math.sqrt(0.5), math.exp(0.5 * (b - a) * (b + a))
    if b > 0:
        value = math.log(0.5 * (special.erf(b * root) - special.erf(a * root)))
        by_b = math.exp(-0.5 * b * b - value) / math.sqrt(2 * math.pi)
    else:
        scaled = 0.5 * special.erfcx(-b * root) - 0.5 * special.erfcx(-a * root) * fall
        value = -0.5 * b * b + math.log(scaled)
        by_b = 1 / (math.sqrt(2 * math.pi) * scaled)
    return value, -by_b * fall, by_b


INTERVALS = [
    (-0.7, 1.1),
    (-3.0, 0.0),
    (0.0, 0.5),
    (1.0, 2.0),
    (-7.0, 8.0),
    (-40.0, 40.0),
    (-12.5, -11.5),
    (5.0, 9.0),
]
INTERVALS += [
    (-1e3, -999.5),
    (1e3, 1e5),
    (1e4, 1.1e4),
    (-1e7, -9e6),
    (30.0, 30.25),
    (-1e6, 2.0),
]


NARROW = [
    (4.0, 1e-4),
    (1.0, 1e-4),
    (-5e-5, 1e-4),
    (0.2, 1e-3),
    (10.0, 1e-3),
    (-6.0, 0.1),
]
"""(lower end, width)."""


@functools.cache
def log_masses(dtype):
    """Ends (n, 2), values (n,) and gradients (n, 2) of the log-masses of
    INTERVALS, then of NARROW.
    """
    ends = np.array(
        [*INTERVALS, *((lower, lower + width) for lower, width in NARROW)], dtype
    )
    with jax.enable_x64(dtype == "float64"):
        both = jax.jit(
            jax.vmap(
                jax.value_and_grad(
                    lambda ends: distributions.log_normal_interval(ends[0], ends[1])
                )
            )
        )
        return ends, *map(np.asarray, both(ends))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_normal_interval(dtype):
    """Value and gradient against SciPy, from the centre to 10⁷ standard
    deviations out.
    """
    eps = np.finfo(dtype).eps
    exact = np.array([exact_log_interval(a, b) for a, b in INTERVALS])
    value, slopes = (part[: len(INTERVALS)] for part in log_masses(dtype)[1:])
    # at the series' switch, −12, log q is a difference of numbers of size 72; elsewhere
    # of size 1
    np.testing.assert_allclose(value, exact[:, 0], rtol=8 * eps, atol=128 * eps)
    larger = np.maximum(np.abs(exact[:, 1:]).max(1), 1e-30)  # ±40: both slopes are 0
    np.testing.assert_allclose(
        slopes / larger[:, None], exact[:, 1:] / larger[:, None], atol=256 * eps
    )


def test_log_normal_interval_of_a_partition_sums_to_one(x64):
    edges = np.array([-1e4, -3.0, -1.0, 0.0, 0.1, 4.0, 1e4])
    total = np.sum(
        np.exp(quick(distributions.log_normal_interval)(edges[:-1], edges[1:]))
    )
    assert float(total) == pytest.approx(1, abs=16 * EPS64)


@pytest.mark.parametrize("case", range(len(INTERVALS), len(INTERVALS) + len(NARROW)))
def test_narrow_intervals_keep_their_digits_in_float32(case):
    """Value and both derivatives against 40-node Gauss–Legendre masses in
    float64 of the same float32 ends.
    """
    ends, value, slopes = (part[case] for part in log_masses("float32"))
    low, high = ends.astype(float)
    nodes, weights = np.polynomial.legendre.leggauss(40)

    def density(z):
        return np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)

    mass = (
        0.5
        * (high - low)
        * (density(0.5 * (low + high) + 0.5 * (high - low) * nodes) @ weights)
    )
    # log φ(m) + log h: a few roundings of terms of size ½m² and |log h|
    np.testing.assert_allclose(
        value,
        math.log(mass),
        atol=4 * EPS32 * (1 + 0.5 * low**2 + abs(math.log(high - low))),
    )
    np.testing.assert_allclose(
        slopes, [-density(low) / mass, density(high) / mass], rtol=8 * EPS32
    )


def test_normal_log_prob_is_the_product_of_marginals(x64):
    z = np.random.default_rng(0).standard_normal((2, 3))
    marginals = np.log(np.exp(-((z / 0.3) ** 2) / 2) / (0.3 * math.sqrt(2 * math.pi)))
    assert float(distributions.Gaussian(0.0, 0.3**2).log_prob(z)) == pytest.approx(
        marginals.sum(), rel=1e-14
    )


# ----------------------------------------------------------------- discretised

LATTICE = {
    "bernoulli": (lambda m: distributions.bernoulli(m), np.array([0.0, 1.0])),
    "logistic": (
        lambda m: distributions.discretised_logistic(m, np.log([0.3, 0.02]), LEVELS),
        LEVELS,
    ),
    "gaussian": (
        lambda m: distributions.discretised_gaussian(m, np.log([0.3, 0.02]), LEVELS),
        LEVELS,
    ),
}
"""name -> (distribution of two entries from their locations, the values of an
entry).
"""


@pytest.mark.parametrize("name", LATTICE)
def test_a_decoder_s_probabilities_sum_to_one(name, x64):
    """Σ P = 1 over all pairs of values, E x = mean, and draws have these
    probabilities within 4.5 standard errors.
    """
    make, values = LATTICE[name]
    pairs = np.stack(np.meshgrid(values, values, indexing="ij"), -1).reshape(-1, 2)
    n = 4000

    @jax.jit
    def examine(location):
        distribution = make(location)
        keys = jax.random.split(KEY, n)
        return (
            jax.vmap(distribution.log_prob)(pairs),
            distribution.mean(),
            jax.vmap(distribution.sample)(keys),
            distribution.sample(keys[1]),
        )

    log_p, mean, xs, again = map(np.asarray, examine(np.array([0.2, -0.7])))
    p = np.exp(log_p)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(p @ pairs, mean, rtol=1e-12)
    result = np.array([np.mean(np.all(np.isclose(xs, x), -1)) for x in pairs])
    assert np.all(np.abs(result - p) <= 4.5 * np.sqrt(p * (1 - p) / n) + 1e-12)
    np.testing.assert_array_equal(again, xs[1])


@pytest.mark.parametrize("name", [*LATTICE, "ddpm"])
def test_what_a_decoder_cannot_take_has_probability_zero(name):
    """−∞ under jit and vmap for pixels 255 of bits, midpoints of levels and
    what is beyond them, NaN never above 0.
    """
    make, values = LATTICE.get(name, LATTICE["gaussian"])
    result = {"bernoulli": [255.0, 0.5, -1.0], "ddpm": [255.0, -0.8, 1.1]}.get(
        name, [255.0, -0.8, 1.1]
    )
    xs = np.float32(
        [
            [values[0], values[1]],
            *([values[0], value] for value in result),
            [values[0], np.nan],
        ]
    )

    @jax.jit
    def examine(location, xs):
        def log_prob(location, x):
            distribution = make(location)
            return (
                distributions.discretised_log_prob(distribution.gaussian, x, LEVELS)
                if name == "ddpm"
                else distribution.log_prob(x)
            )

        return jax.vmap(jax.value_and_grad(log_prob), (None, 0))(location, xs)

    log_p, gradient = jax.tree.map(np.asarray, examine(np.float32([0.2, -0.7]), xs))
    assert np.isfinite(log_p[0])
    assert np.all(log_p[1:4] == -np.inf)
    assert not log_p[4] > -np.inf
    assert np.all(np.isfinite(gradient[:4]))


def test_a_logistic_decoder_keeps_its_digits_in_the_tails():
    """100 scales from its location a cell of width w holds e^{−(b−m)/r}
    (e^{w/r} − 1) to first order: log P in float32 to rounding, with a finite
    gradient.
    """
    levels, scale = np.array([-1.0, 0.0, 1.0, 2.0]), 0.01
    log_p = lambda m: distributions.discretised_logistic(
        m, math.log(scale), levels
    ).log_prob(np.float32([1.0]))
    value, slope = jax.jit(jax.value_and_grad(log_p))(np.float32([-0.5]))
    np.testing.assert_allclose(
        value, -(0.5 + 0.5) / scale + math.log1p(-math.exp(-1 / scale)), rtol=1e-6
    )
    np.testing.assert_allclose(slope, [1 / scale], rtol=1e-6)


@jax.jit
def logistic_far_out(location, log_scale):
    """log P of 1/8 among 17 levels on [−1, 1], with slopes by location and
    log_scale.
    """

    def log_p(m, s):
        return distributions.discretised_logistic(
            m[None], s, np.linspace(-1.0, 1.0, 17)
        ).log_prob(np.float32([0.125]))

    return jax.value_and_grad(log_p, (0, 1))(location, log_scale)


@pytest.mark.parametrize("location", [1e3, -1e5])
def test_a_logistic_decoder_far_from_its_location_keeps_its_cell_s_width(location):
    """Ten scales r off, a cell of width w = 1/8 ≪ r holds s'(u) w/r to
    (w/r)² ≤ 2e-6, u its middle: log P = log(w/r) − u − 2 log(1 + e^{−u}), with
    slopes ∓tanh(u/2)/r in m and u tanh(u/2) − 1 in log r.

    In float32 the difference of the standardised ends, w/r ≪ u, would lose up
    to 4 % of w to rounding. Tolerances: log P to 4 ulp of its greatest term,
    log(w/r). The slopes, where the two sigmoids' parts add, to 16 ulp of u.
    """
    scale, ulp = abs(location) / 10, float(np.finfo(np.float32).eps)
    value, slopes = logistic_far_out(np.float32(location), np.log(np.float32(scale)))
    u = abs(location - 0.125) / scale
    exact = math.log(0.125 / scale) - u - 2 * math.log1p(math.exp(-u))
    np.testing.assert_allclose(value, exact, atol=2e-6 + 4 * ulp * abs(exact), rtol=0)
    np.testing.assert_allclose(
        slopes[0], -np.sign(location) * math.tanh(u / 2) / scale, rtol=2e-6 + 16 * ulp
    )
    np.testing.assert_allclose(
        slopes[1], u * math.tanh(u / 2) - 1, rtol=0, atol=2e-5 + 16 * ulp * u
    )


@pytest.mark.parametrize(
    "levels",
    [
        np.linspace(-1, 1, 256),
        np.linspace(0, 16, 17),
        [-1.0, 0.1, 0.2, 3.0],
        [0.0, 1.0],
    ],
)
def test_discretised_decoder_sums_to_one(levels, x64):
    """Σ_k P(c_k) = 1 whatever mean and variance, for its ends reach to
    infinity, so that Σ_k ∂P(c_k) = 0.
    """
    levels = np.asarray(levels)

    def log_p(mean, variance, level):
        return distributions.discretised_log_prob(
            distributions.Gaussian(mean, variance), level, levels
        )

    run = quick(jax.vmap(jax.value_and_grad(log_p, (0, 1)), (None, None, 0)))
    for mean in (-40.0, -0.3, 0.05, 7.0):
        for variance in (1e-4, 0.1, 30.0):
            values, slopes = run(mean, variance, levels)
            # K log-masses, each relative to ε |log P|: at most 745 where it is not 0
            assert float(np.sum(np.exp(values))) == pytest.approx(
                1, abs=levels.size * 800 * EPS64
            )
            for slope in (
                slopes
            ):  # Σ_k P_k ∂log P_k, each product to its own rounding; a NaN would fail
                rates = np.exp(values) * slope
                assert (
                    abs(np.sum(rates))
                    <= levels.size * 800 * EPS64 * np.abs(rates).max()
                )


def test_discretised_decoder_is_the_density_times_the_spacing(x64):
    """P(c) = ∫ over the bin = width · N(c) (1 + width² N″/24N + …): for inner
    levels, width 0.01 and unit variance.
    """
    levels = np.linspace(-3, 3, 601)
    distribution = distributions.Gaussian(0.2, 1.0)
    x = levels[200:400:20]
    both = jax.vmap(
        lambda c: (
            distributions.discretised_log_prob(distribution, c, levels),
            distribution.log_prob(c),
        )
    )
    result, density = map(np.asarray, quick(both)(x))
    expected = density + math.log(0.01) + 0.01**2 * ((x - 0.2) ** 2 - 1) / 24
    np.testing.assert_allclose(result, expected, atol=0.01**4)


def test_an_entry_between_two_levels_is_no_level_however_many_there_are():
    """Of 16-bit images levels lie 1.5e-5 of their range apart."""
    levels = np.linspace(-1, 1, 2**16, dtype=np.float32)
    on, between = levels[[4, 40_000]], 0.5 * (levels[[4, 40_000]] + levels[[5, 40_001]])
    score = functools.partial(
        distributions.discretised_log_prob,
        distributions.Gaussian(0.0, 0.25),
        levels=levels,
    )
    gap = 2 / (2**16 - 1)  # a float32 level is off by up to 2⁻²⁴, a gap by twice that
    exact = np.sum(
        -(on.astype(float) ** 2) / 0.5 - 0.5 * np.log(2 * np.pi * 0.25) + np.log(gap)
    )
    for value in (score(on), quick(score)(on)):
        np.testing.assert_allclose(value, exact, atol=2 * 2.0**-23 / gap)
    assert quick(score)(between) == -np.inf
    with pytest.raises(ValueError, match="x must take values among the 65536 levels"):
        score(between)


def test_values_that_are_no_level_have_no_probability_when_traced():
    """Traced pixels 0 and 255 of levels −1 … 1 are not on the lattice: −∞, not
    the probability of the nearest level.
    """
    levels = np.linspace(-1, 1, 256, dtype=np.float32)
    score = quick(
        jax.vmap(
            lambda x: distributions.discretised_log_prob(
                distributions.Gaussian(0.0, 0.25), x, levels
            )
        )
    )
    result = score(
        np.float32(
            [
                [levels[3], levels[200]],
                [0.0, 255.0],
                [levels[3], 0.5 * (levels[7] + levels[8])],
            ]
        )
    )
    np.testing.assert_array_equal(np.isneginf(result), [False, True, True])
    # both add two log-masses, each of four roundings of terms of one sign, at ends
    # z = 2c that are exact
    expected = distributions.discretised_log_prob(
        distributions.Gaussian(0.0, 0.25), levels[[3, 200]], levels
    )
    np.testing.assert_allclose(result[0], expected, rtol=8 * EPS32)


# ------------------------------------------------- dequantisation, bits per dimension


def test_dequantise_is_uniform_on_the_cell():
    """Each entry stays within ±width/2 of its centre, with mean 0, variance
    width²/12 and uniform quantiles.
    """
    width, count = 0.25, 20_000
    x = np.tile(np.float32([-1.0, 0.5]), (count // 2, 1))
    offset = (
        np.asarray(distributions.dequantise(jax.random.key(0), x, width)) - x
    ).ravel() / width
    assert np.abs(offset).max() <= 0.5 + 4 * EPS32 / width
    assert abs(offset.mean()) < 4 / math.sqrt(12 * count)
    # Kolmogorov: P(√n D > 2.5) = 2e^{−12.5} < 1e-5
    gap = np.abs(np.sort(offset) + 0.5 - (np.arange(count) + 0.5) / count).max()
    assert math.sqrt(count) * gap < 2.5


def test_dequantise_depends_on_its_key_and_promotes_integers():
    x = np.zeros((3,), np.int32)
    first, again, other = (
        distributions.dequantise(jax.random.key(i), x, 1.0) for i in (0, 0, 1)
    )
    assert first.dtype == jnp.float32
    np.testing.assert_array_equal(first, again)
    assert not np.any(np.asarray(first) == np.asarray(other))


@pytest.mark.parametrize("bins", [2, 17, 256])
@pytest.mark.parametrize("span", [1.0, 2.0, 255.0])
def test_bits_per_dim_of_a_uniform_density(bins, span, x64):
    """log p = −D log(span) costs log2(bins) bits a dimension, whatever the units."""
    shape = (4, 3, 2)
    bits = distributions.bits_per_dim(-24 * math.log(span), shape, bins, span / bins)
    assert float(bits) == pytest.approx(math.log2(bins), rel=1e-14)


def test_bits_per_dim_is_invariant_under_a_change_of_units(x64):
    """Stretching the data by c lowers log p by D log c and widens the lattice by c."""
    log_prob, stretch = jnp.array([-12.0, 3.5]), 7.3
    bits = distributions.bits_per_dim(log_prob, (5,), 16, 1 / 16)
    stretched = distributions.bits_per_dim(
        log_prob - 5 * math.log(stretch), (5,), 16, stretch / 16
    )
    np.testing.assert_allclose(bits, stretched, rtol=1e-14)


def test_bits_per_dim_is_the_code_length_of_a_piecewise_constant_density(x64):
    """The density P_i / width on cell i codes its lattice in the entropy of P,
    in bits.
    """
    probabilities = np.array([0.5, 0.25, 0.125, 0.125])
    bits = distributions.bits_per_dim(jnp.log(probabilities / 0.3), (1,), 4, 0.3)
    assert float(probabilities @ np.asarray(bits)) == pytest.approx(1.75, rel=1e-14)


ERRORS = {
    "log_std": (
        lambda: distributions.gaussian(jnp.zeros(2), -60.0),
        ValueError,
        "the variance of log_std must be positive, got 0",
    ),
    "bits": (
        lambda: distributions.bernoulli([0.0, 0.0]).log_prob(jnp.array([0.0, 0.5])),
        ValueError,
        "x must be 0 or 1 in every entry, got values from 0.0 to 0.5",
    ),
    "levels": (
        lambda: distributions.discretised_logistic([0.0], 0.0, [1.0, 0.0]),
        ValueError,
        "levels must increase",
    ),
    "no level": (
        lambda: distributions.discretised_logistic([0.0], 0.0, LEVELS).log_prob(
            jnp.array([0.5])
        ),
        ValueError,
        "x must take values among the 4 levels",
    ),
    "scale": (
        lambda: distributions.discretised_logistic([0.0, 0.0], [0.0] * 3, LEVELS),
        ValueError,
        "log_scale must have shape",
    ),
    "nan in logits": (
        lambda: distributions.bernoulli([math.nan]),
        ValueError,
        "logits must be finite",
    ),
    "bins": (
        lambda: distributions.bits_per_dim(0.0, (2,), 1, 0.5),
        ValueError,
        "bins must be at least 2, got 1",
    ),
    "width": (
        lambda: distributions.bits_per_dim(0.0, (2,), 4, 0.0),
        ValueError,
        "width must be positive, got 0",
    ),
    "x_shape": (
        lambda: distributions.bits_per_dim(0.0, (0,), 4, 0.5),
        ValueError,
        "x_shape must have at least one entry",
    ),
    "negative width": (
        lambda: distributions.dequantise(KEY, jnp.zeros(2), -1.0),
        ValueError,
        "width must be positive, got -1",
    ),
    "another distribution": (
        lambda: distributions.gaussian_kl(FAMILY["bits"](), FAMILY["gaussian"]()),
        TypeError,
        "p must be a distributions.Gaussian",
    ),
    "means": (
        lambda: distributions.gaussian_mixture([1.0], [0.0], [1.0]),
        ValueError,
        r"means must have shape \(K, D\), got \(1,\)",
    ),
    "parts": (
        lambda: distributions.standard_normal(((2,), (3,))).log_prob(jnp.zeros(2)),
        ValueError,
        "z must be a tuple of arrays of shapes",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name):
    assert_raises(*ERRORS[name])


# ------------------------------------------------------------ evidence of the levels


@pytest.mark.parametrize("count", [2, 5, 17, 256])
def test_evidence_of_a_noisy_copy_is_the_softmax_over_the_levels(count, x64):
    """Level by level it is the sum over an array (*shape, K), at noise of every
    size. In float32 the error is that of the sum of K terms, not of squares of
    1/r.
    """
    levels, rng = np.linspace(-1, 1, count), np.random.default_rng(0)
    x, noise = levels[rng.integers(0, count, (4, 3))], rng.normal(size=(4, 3))
    for ratio in (0.05 / count, 1 / count, 10.0):
        noisy = x + ratio * noise
        logits = -0.5 * ((noisy[..., None] - levels) / ratio) ** 2  # (4, 3, K)
        log_p = jax.nn.log_softmax(logits)
        index = np.rint((x + 1) / 2 * (count - 1)).astype(int)
        expected = np.take_along_axis(np.asarray(log_p), index[..., None], -1).sum()
        exact = lattice.log_evidence(x, noise, ratio, jnp.asarray(levels))
        np.testing.assert_allclose(exact, expected, rtol=1e-9, atol=1e-9)
        single = lattice.log_evidence(
            *(np.float32(part) for part in (x, noise, ratio)), jnp.float32(levels)
        )
        # The noise about a level has an error of eps/r, whose effect is at most
        # that times Σ |u| P(other level) = O(1) per entry.
        eps = np.finfo(np.float32).eps
        np.testing.assert_allclose(single, exact, atol=12 * eps * (count + 4 / ratio))


def test_evidence_needs_no_array_of_all_levels():
    """256 levels of 32 × 32 × 3: temporary memory of a few images, where one
    array (*shape, K) alone has 256.
    """
    x = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
    levels = jnp.linspace(-1, 1, 256)
    evidence = lambda x, noise: lattice.log_evidence(x, noise, 1e-3, levels)
    compiled = jax.jit(evidence).lower(x, x).compile()
    image = 4 * 32 * 32 * 3
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * image
