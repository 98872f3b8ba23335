"""Arithmetic that naive code gets wrong, against exact or independent values."""

import decimal
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from diffjax import distributions, numerics
from tests.families import EPS32, EPS64, quick


def exact_phi(order, z):
    """Σ_j z^j / (j + k)! in 60-digit decimals: the sum cancels by e^{2|z|} <
    10^27 at most.
    """
    with decimal.localcontext(prec=60):
        z = decimal.Decimal(float(z))
        term = decimal.Decimal(1) / math.factorial(order)
        total = decimal.Decimal(0)
        for j in range(1, 250):
            total += term
            term *= z / (order + j)
        return float(total)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_phi_to_rounding(dtype):
    """Relative error of a few ulp from 1e-6 to 30, both signs and both sides
    of the switch from series to recurrence.
    """
    with jax.enable_x64(dtype == "float64"):
        switches = np.arange(1, 6)[:, None] * (1 + np.array([-1e-6, 0, 1e-6]))
        sizes = np.concatenate([np.geomspace(1e-6, 30, 60), switches.ravel()])
        z = np.concatenate([sizes, -sizes]).astype(dtype)
        results = jax.jit(lambda z: [numerics.phi(order, z) for order in range(6)])(z)
        for order, result in enumerate(results):
            exact = np.array([exact_phi(order, value) for value in z])
            # each stage of the recurrence rounds once or twice, and cancels by less than 2 outside |z| < k
            np.testing.assert_allclose(
                np.asarray(result, np.float64),
                exact,
                rtol=4 * (order + 1) * np.finfo(dtype).eps,
            )


def test_phi_recurrence_and_limits(x64):
    """φ_k(0) = 1/k!, z φ_k = φ_{k−1} − 1/(k−1)!, φ_1′ = φ_1 − φ_2, with finite
    gradients at 0.
    """
    z = np.array([-20.0, -2.5, -0.5, 0.5, 2.5, 20.0, 0.0])
    slopes = jax.vmap(
        lambda u: [jax.grad(lambda v: numerics.phi(k, v))(u) for k in (1, 3)]
    )
    phi, slopes = quick(lambda z: ([numerics.phi(k, z) for k in range(6)], slopes(z)))(
        z
    )
    for k in range(1, 6):
        assert float(phi[k][-1]) == pytest.approx(1 / math.factorial(k), rel=EPS64)
        np.testing.assert_allclose(
            z * phi[k],
            phi[k - 1] - 1 / math.factorial(k - 1),
            rtol=1e-13,
            atol=16 * EPS64,
        )
    np.testing.assert_allclose(
        slopes[0], np.asarray(phi[1]) - np.asarray(phi[2]), rtol=1e-12
    )
    assert float(slopes[1][-1]) == pytest.approx(1 / 24, rel=4 * EPS64)


def test_phi_refuses_bad_orders():
    with pytest.raises(ValueError, match="order must be between 0 and 30, got -1"):
        numerics.phi(-1, 0.0)


def test_log_expm1_at_both_ends():
    """log(e^x − 1) in float32 from 1e-6 (where it is log x) to 300 (where e^x
    overflows).
    """
    x = np.geomspace(1e-6, 300, 100).astype(np.float32)
    exact = x.astype(np.float64) + np.log(-np.expm1(-x.astype(np.float64)))
    np.testing.assert_allclose(
        numerics.log_expm1(x), exact, rtol=4 * EPS32, atol=4 * EPS32
    )


# ---------------------------------------------------------------------------------------------- normal probabilities


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
    # at the series' switch, −12, log q is a difference of numbers of size 72; elsewhere of size 1
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


def test_normal_log_prob_is_the_product_of_marginals(x64):
    z = np.random.default_rng(0).standard_normal((2, 3))
    marginals = np.log(np.exp(-((z / 0.3) ** 2) / 2) / (0.3 * math.sqrt(2 * math.pi)))
    assert float(distributions.Gaussian(0.0, 0.3**2).log_prob(z)) == pytest.approx(
        marginals.sum(), rel=1e-14
    )


# ------------------------------------------------------------------------------------------------- traces of Jacobians


def field(x):
    """A nonlinear field on (2, 3) with a full Jacobian."""
    mixed = jnp.tanh(x @ jnp.arange(9.0).reshape(3, 3) / 9) + x[::-1] * x
    return mixed + jnp.sum(x)


def test_divergence_is_the_trace_of_the_jacobian(x64):
    x = np.random.default_rng(1).standard_normal((2, 3))
    parts = quick(
        lambda x: (*numerics.divergence(field, x), field(x), jax.jacfwd(field)(x))
    )(x)
    value, trace, expected, jacobian = map(np.asarray, parts)
    np.testing.assert_allclose(value, expected, rtol=1e-15)
    assert float(trace) == pytest.approx(np.trace(jacobian.reshape(6, 6)), rel=1e-13)


def test_hutchinson_of_every_sign_pattern_has_the_stated_mean_and_variance(x64):
    """Over all 2⁶ Rademacher probes the mean is tr J and the variance 2
    Σ_{i≠j} S_ij², S the symmetric part: exactly.
    """
    x = np.random.default_rng(1).standard_normal((2, 3))
    signs = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 6), -1).reshape(-1, 2, 3)
    parts = quick(
        lambda x: (
            *numerics.hutchinson(field, x, signs),
            field(x),
            jax.jacfwd(field)(x),
        )
    )(x)
    value, estimates, expected, jacobian = map(np.asarray, parts)
    jacobian = jacobian.reshape(6, 6)
    symmetric = 0.5 * (jacobian + jacobian.T)
    off_diagonal = symmetric - np.diag(np.diag(symmetric))
    np.testing.assert_allclose(value, expected, rtol=1e-15)
    np.testing.assert_allclose(estimates.mean(), np.trace(jacobian), rtol=1e-12)
    np.testing.assert_allclose(estimates.var(), 2 * np.sum(off_diagonal**2), rtol=1e-12)


def test_hutchinson_is_exact_for_a_diagonal_jacobian(x64):
    rng = np.random.default_rng(2)
    x, probes = rng.standard_normal(5), rng.choice([-1.0, 1.0], (4, 5))
    _, estimates = quick(lambda x: numerics.hutchinson(jnp.sin, x, probes))(x)
    np.testing.assert_allclose(estimates, np.full(4, np.sum(np.cos(x))), rtol=1e-14)


def test_hutchinson_with_gaussian_probes_has_variance_twice_the_frobenius_norm(x64):
    rng, count = np.random.default_rng(4), 40_000
    matrix, probes = rng.standard_normal((4, 4)), rng.standard_normal((count, 4))
    _, estimates = quick(
        lambda x, probes: numerics.hutchinson(lambda x: matrix @ x, x, probes)
    )(np.zeros(4), probes)
    variance = 2 * np.sum((0.5 * (matrix + matrix.T)) ** 2)
    centred = np.asarray(estimates) - np.trace(matrix)
    assert abs(centred.mean()) < 4 * math.sqrt(variance / count)
    standard_error = np.std(centred**2) / math.sqrt(count)
    assert abs(np.mean(centred**2) - variance) < 4 * standard_error


# ------------------------------------------------------------------------------------------- dequantisation, bits/dim


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: distributions.bits_per_dim(0.0, (2,), 1, 0.5),
            "bins must be at least 2, got 1",
        ),
        (
            lambda: distributions.bits_per_dim(0.0, (2,), 4, 0.0),
            "width must be positive, got 0",
        ),
        (
            lambda: distributions.bits_per_dim(0.0, (0,), 4, 0.5),
            "x_shape must have at least one entry",
        ),
        (
            lambda: distributions.dequantise(jax.random.key(0), jnp.zeros(2), -1.0),
            "width must be positive, got -1",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_float_dtype():
    assert numerics.float_dtype(jnp.ones(2, jnp.bfloat16), 3) == jnp.float32
    with jax.enable_x64(True):
        assert numerics.float_dtype(jnp.ones(2, jnp.bfloat16)) == jnp.float64


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
