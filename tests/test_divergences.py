"""Divergences against closed forms and identities between them.

Fits against minima found without them.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from diffjax import distributions, divergences, targets
from diffjax.types import pytree
from tests.families import assert_raises

BOX = [(-12.0, 12.0)] * 2
LINE = [(-12.0, 12.0)]
LOG_Z = 0.5 * math.log(2 * math.pi)


@pytree
class Uniform:
    """U[low, high], x of shape (1,)."""

    low: Any
    high: Any

    def log_prob(self, x):
        """−log(high − low), −infinity outside."""
        inside = (x[0] >= self.low) & (x[0] < self.high)
        return jnp.where(inside, -jnp.log(self.high - self.low), -jnp.inf) + 0 * x[0]

    def sample(self, key):
        """One draw."""
        return jax.random.uniform(key, (1,), minval=self.low, maxval=self.high)


def two_modes():
    """Σ w_k N(m_k, s_k²) with modes at −2 and 2, far enough apart for a
    reverse optimum in each.
    """
    return targets.gaussian_mixture([0.35, 0.65], [[-2.0], [2.0]], [0.6, 0.8])


# ---- by quadrature


def test_gaussians_have_their_closed_forms(x64):
    """KL is invariant under x -> A x, hence that of the diagonal Gaussians.

    Fisher's is a quadratic form's expectation.

    The rule's error at a cell of 0.12 and standard deviations of at least 0.5
    is below e^{−2π²(0.5/0.12)²}. The tails beyond 12 hold less than e^{−40}.
    """
    means, variances = (
        np.array([[0.4, -0.2], [-0.3, 0.5]]),
        np.array([[0.6, 1.2], [0.9, 0.5]]),
    )
    shear = np.array([[1.0, 0.0], [0.7, 0.9]])
    exact = distributions.gaussian_kl(
        *(distributions.Gaussian(m, v) for m, v in zip(means, variances, strict=True))
    )
    covariances = [shear @ np.diag(v) @ shear.T for v in variances]
    p, q = (
        targets.gaussian(shear @ m, c) for m, c in zip(means, covariances, strict=True)
    )
    assert divergences.kl_by_quadrature(p, q, BOX, 200) == pytest.approx(
        float(exact), abs=1e-11
    )
    inverses = [np.linalg.inv(c) for c in covariances]
    slope, shift = (
        inverses[1] - inverses[0],
        inverses[1] @ shear @ (means[0] - means[1]),
    )
    fisher = np.trace(slope @ covariances[0] @ slope.T) + shift @ shift
    assert divergences.fisher_by_quadrature(p, q, BOX, 200) == pytest.approx(
        fisher, rel=1e-11
    )


def test_noise_lowers_kl_at_half_the_fisher_divergence(x64):
    """d/dt KL(p ∗ N(0, t) ‖ q ∗ N(0, t)) = −½ Fisher (Lyu 2009, Theorem 1),
    the derivative exact by autodiff.
    """
    p, q = two_modes(), targets.gaussian([0.5], 1.5)

    def kl(t):
        noised = (density.convolved(1.0, jnp.sqrt(t)) for density in (p, q))
        return divergences.kl_by_quadrature(*noised, [(-20.0, 20.0)], 600)

    _, rate = jax.jvp(kl, (0.3,), (1.0,))
    noised = (density.convolved(1.0, jnp.sqrt(0.3)) for density in (p, q))
    fisher = divergences.fisher_by_quadrature(*noised, [(-20.0, 20.0)], 600)
    assert fisher > 0.1
    assert rate == pytest.approx(-0.5 * float(fisher), rel=1e-9)


def test_jensen_shannon_is_the_mean_kl_to_the_middle(x64):
    """½ KL(p‖m) + ½ KL(q‖m) with m stated as a mixture.

    It is symmetric, and 0 for p = q.
    """
    p, q = targets.gaussian([-0.5], 0.7), targets.gaussian([0.9], 1.1)
    middle = targets.gaussian_mixture([0.5, 0.5], [[-0.5], [0.9]], [0.7, 1.1])
    expected = 0.5 * sum(
        divergences.kl_by_quadrature(density, middle, LINE) for density in (p, q)
    )
    result = divergences.jensen_shannon_by_quadrature(p, q, LINE)
    assert 0.1 < result < math.log(2)
    assert result == pytest.approx(float(expected), abs=1e-12)
    assert result == pytest.approx(
        float(divergences.jensen_shannon_by_quadrature(q, p, LINE)), abs=1e-12
    )
    assert divergences.jensen_shannon_by_quadrature(p, p, LINE) == pytest.approx(
        0, abs=1e-12
    )


def test_where_one_distribution_has_no_mass():
    """U[0, ½] within U[0, 1]: KL log 2 one way and infinite the other. Of
    disjoint intervals JS is log 2, its maximum.
    """
    whole, half, apart = Uniform(0.0, 1.0), Uniform(0.0, 0.5), Uniform(2.0, 2.5)
    rule = (
        [(-2.0, 4.0)],
        360,
    )  # the intervals' ends are edges of cells: the rule is exact
    assert divergences.kl_by_quadrature(half, whole, *rule) == pytest.approx(
        math.log(2), rel=1e-5
    )
    assert divergences.kl_by_quadrature(whole, half, *rule) == math.inf
    assert divergences.fisher_by_quadrature(whole, half, *rule) == math.inf
    assert divergences.jensen_shannon_by_quadrature(
        half, apart, *rule
    ) == pytest.approx(math.log(2), rel=1e-5)
    key = jax.random.key(0)
    within = divergences.kl_by_samples(key, half, whole, 64)
    assert within.value == pytest.approx(math.log(2), rel=1e-5)
    assert within.standard_error == pytest.approx(
        0, abs=1e-6
    )  # the log ratio is constant
    assert divergences.kl_by_samples(key, whole, half, 64) == (math.inf, math.inf)


def test_kl_is_infinite_where_the_density_underflows():
    """N(0, 1) on (−30, 30) is 0 in float32 from 15 on, where the interval (−2,
    2) has no mass either: not 0 · ∞.
    """
    normal, interval = targets.gaussian([0.0], 1.0), Uniform(-2.0, 2.0)
    for divergence in (divergences.kl_by_quadrature, divergences.fisher_by_quadrature):
        assert divergence(normal, interval, [(-30.0, 30.0)], 600) == math.inf


# ---- by samples


def test_samples_agree_with_the_closed_form_in_six_dimensions():
    """A flow's base to a shifted one: KL ‖Δ‖²/2, whose log p/q has standard
    deviation ‖Δ‖, and Fisher ‖Δ‖², constant.
    """
    key, count, shift = jax.random.key(1), 4096, np.linspace(-0.4, 0.5, 6)
    p, q = distributions.standard_normal((6,)), targets.gaussian(shift, 1.0)
    kl = divergences.kl_by_samples(key, p, q, count)
    assert abs(kl.value - 0.5 * shift @ shift) < 4.5 * kl.standard_error
    expected = np.linalg.norm(shift) / math.sqrt(count)
    assert kl.standard_error == pytest.approx(expected, rel=4.5 / math.sqrt(2 * count))
    fisher = divergences.fisher_by_samples(key, p, q, count)
    np.testing.assert_allclose(fisher.value, shift @ shift, rtol=1e-5)
    assert fisher.standard_error < 1e-5


def test_samples_agree_with_quadrature():
    """KL and JS of two mixtures, within 4.5 standard errors."""
    p = targets.gaussian_mixture([0.5, 0.5], [[-1.0], [1.0]], [0.8, 0.6])
    q, key = two_modes(), jax.random.key(2)
    for by_samples, by_quadrature in (
        (divergences.kl_by_samples, divergences.kl_by_quadrature),
        (
            divergences.jensen_shannon_by_samples,
            divergences.jensen_shannon_by_quadrature,
        ),
    ):
        result, exact = by_samples(key, p, q, 4096), float(by_quadrature(p, q, LINE))
        assert 0 < result.standard_error < 0.1 * exact
        assert abs(result.value - exact) < 4.5 * result.standard_error


# ---- bad input


def energy(score, log_z=LOG_Z):
    return targets.energy(score, log_z)


GOOD, FLAT = (-8.0, 8.0), energy(lambda x: 0.0 * x)
NORMAL = energy(lambda x: -0.5 * x**2)


@pytest.mark.parametrize(
    "p, q, bounds, error, message",
    [
        (3.0, NORMAL, GOOD, TypeError, "p must have log_prob"),
        (NORMAL, max, GOOD, TypeError, "q must have log_prob"),
        (FLAT, NORMAL, GOOD, ValueError, "p.log_prob must have decayed at the bounds"),
        (
            energy(lambda x: -0.5 * x**2, 0.0),
            NORMAL,
            GOOD,
            ValueError,
            "p must be normalised, got a mass of 2.50663",
        ),
        (
            NORMAL,
            energy(lambda x: -0.5 * x**2, 0.0),
            GOOD,
            ValueError,
            "q must be normalised, got a mass of 2.50663",
        ),
        (NORMAL, NORMAL, (-1.0, 1.0), ValueError, "p.log_prob must have decayed"),
        (
            NORMAL,
            NORMAL,
            (1.0, -1.0),
            ValueError,
            "bounds must increase, got -1.0 after 1.0",
        ),
        (
            energy(lambda x: x * jnp.nan),
            NORMAL,
            GOOD,
            ValueError,
            "p.log_prob must be below infinity, got nan",
        ),
        (
            NORMAL,
            energy(lambda x: jnp.where(x > 7, jnp.nan, -0.5 * x**2)),
            GOOD,
            ValueError,
            "q.log_prob .* 32 NaN or",
        ),
        (
            NORMAL,
            energy(lambda x: jnp.stack([x, x])),
            GOOD,
            ValueError,
            "must return a scalar, got shape",
        ),
    ],
)
def test_quadrature_raises(p, q, bounds, error, message):
    assert_raises(lambda: divergences.kl_by_quadrature(p, q, bounds), error, message)


def test_nan_is_nan_under_jit():
    """NaN beyond p's mass is not averaged away where no error can be raised."""
    q = energy(lambda x: jnp.where(x > 7, jnp.nan, -0.5 * x**2))
    assert np.isnan(jax.jit(lambda: divergences.kl_by_quadrature(NORMAL, q, GOOD))())


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"key": 0}, TypeError, "key must be a typed key"),
        ({"count": 1}, ValueError, "count must be at least 2, got 1"),
        ({"p": NORMAL}, TypeError, r"p must have log_prob\(x\) and sample\(key\)"),
        (
            {"q": energy(lambda x: x[0] * jnp.nan)},
            ValueError,
            "q.log_prob must be below infinity, got 8 NaN .* of 8",
        ),
    ],
)
def test_samples_raise(change, error, message):
    arguments = {
        "key": jax.random.key(0),
        "p": two_modes(),
        "q": two_modes(),
        "count": 8,
    } | change
    assert_raises(lambda: divergences.kl_by_samples(**arguments), error, message)


# ---- fits


X = np.linspace(-16, 16, 4001)
Z = np.linspace(-8, 8, 801)


def log_two_modes(x):
    """log p of `two_modes` in NumPy."""
    parts = [
        math.log(w / s) - 0.5 * ((x - m) / s) ** 2
        for w, m, s in ((0.35, -2, 0.6), (0.65, 2, 0.8))
    ]
    return np.logaddexp(*parts) - 0.5 * math.log(2 * math.pi)


def forward_kl(place):
    """KL(p ‖ N(m, s²)) at (m, log s) by the trapezoid rule."""
    log_p, m, s = log_two_modes(X), place[0], math.exp(place[1])
    return np.trapezoid(
        np.exp(log_p)
        * (log_p + 0.5 * ((X - m) / s) ** 2 + math.log(s * math.sqrt(2 * math.pi))),
        X,
    )


def reverse_kl(place):
    """KL(N(m, s²) ‖ p) at (m, log s) by the trapezoid rule in z."""
    normal = np.exp(-0.5 * Z**2) / math.sqrt(2 * math.pi)
    entropy = 0.5 * math.log(2 * math.pi * math.e) + place[1]
    return -entropy - np.trapezoid(
        normal * log_two_modes(place[0] + math.exp(place[1]) * Z), Z
    )


def minima_of(divergence):
    """Every (m, log s), from left to right, from which a grid's local minima
    lead downhill.
    """
    means, logs = np.linspace(-4, 4, 41), np.linspace(-1.2, 1.6, 29)
    values = np.array([[divergence((m, l)) for l in logs] for m in means])
    inner, shifts = (
        values[1:-1, 1:-1],
        [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)],
    )
    lowest = np.all([inner < values[i : 39 + i, j : 27 + j] for i, j in shifts], axis=0)
    starts = [(means[i + 1], logs[j + 1]) for i, j in np.argwhere(lowest)]
    options = {"xatol": 1e-9, "fatol": 1e-15}
    return [
        optimize.minimize(divergence, place, method="Nelder-Mead", options=options).x
        for place in starts
    ]


def place_of(density):
    return float(density.means[0, 0]), 0.5 * math.log(float(density.covariance()[0, 0]))


def test_fits_are_the_minima_that_a_search_finds(x64):
    """One forward minimum, p's moments.

    Two reverse ones, reached from the left and from the right.

    A gradient below 1e-5 leaves an error of 1e-5 over the least curvature, 0.4
    of the scaled problems.
    """
    p, unit = two_modes(), lambda mean: targets.gaussian([mean], 1.0)
    (forward,), (left, right) = minima_of(forward_kl), minima_of(reverse_kl)
    fits = {
        tuple(forward): (
            divergences.fit_forward(p, unit(-1.0), [(-16.0, 16.0)]),
            forward_kl,
        ),
        tuple(left): (divergences.fit_reverse(p, unit(-3.0)), reverse_kl),
        tuple(right): (divergences.fit_reverse(p, unit(3.0)), reverse_kl),
    }
    for place, (result, divergence) in fits.items():
        assert result.gradient_norm < 1e-5
        np.testing.assert_allclose(place_of(result.mixture), place, atol=5e-5)
        assert result.kl == pytest.approx(divergence(place), abs=1e-8)
    np.testing.assert_allclose(
        place_of(divergences.moment_matched(p)), forward, atol=1e-7
    )
    by_nodes = divergences.moment_matched(p, [(-16.0, 16.0)])
    np.testing.assert_allclose(
        place_of(by_nodes), place_of(divergences.moment_matched(p)), atol=1e-12
    )


@pytest.mark.slow
def test_independent_factors_of_a_correlated_gaussian(x64):
    """Diagonal q for N(μ, Σ): forward the variances Σ_ii, reverse 1/(Σ⁻¹)_ii,
    which are smaller. Their KL is known in closed form.

    Bishop 2006, section 10.1.2.
    """
    covariance = np.array([[1.0, 0.8], [0.8, 1.5]])
    p, start = (
        targets.gaussian([0.3, -0.5], covariance),
        targets.gaussian([0.0, 0.0], [1.0, 1.0]),
    )
    precision = np.diag(np.linalg.inv(covariance))
    log_det = np.linalg.slogdet(covariance)[1]
    forward, reverse = (
        divergences.fit_forward(p, start, BOX, 128),
        divergences.fit_reverse(p, start, 96),
    )
    for result, variances, kl in (
        (
            forward,
            np.diag(covariance),
            0.5 * (np.log(np.diag(covariance)).sum() - log_det),
        ),
        (reverse, 1 / precision, 0.5 * (np.log(precision).sum() + log_det)),
    ):
        np.testing.assert_allclose(result.mixture.variances[0], variances, rtol=1e-4)
        np.testing.assert_allclose(result.mixture.means[0], [0.3, -0.5], atol=1e-4)
        assert result.kl == pytest.approx(kl, abs=1e-7)


@pytest.mark.slow
def test_a_mixture_is_found_again_in_either_direction(x64):
    """The family holds p itself: both divergences fall to 0 from a start of
    other weights, means and covariances.
    """
    p = targets.gaussian_mixture(
        [0.4, 0.6],
        [[-1.5, 0.2], [1.2, -0.4]],
        [[[0.6, 0.2], [0.2, 0.5]], 0.5 * np.eye(2)],
    )
    start = targets.gaussian_mixture(
        [0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], np.stack([np.eye(2)] * 2)
    )
    for result in (
        divergences.fit_forward(p, start, BOX, 128),
        divergences.fit_reverse(p, start, 96),
    ):
        assert result.kl == pytest.approx(0, abs=1e-9)
        np.testing.assert_allclose(result.mixture.weights, p.weights, atol=1e-4)
        np.testing.assert_allclose(result.mixture.means, p.means, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_fits_by_samples_find_a_gaussian_again(direction):
    """In three dimensions, means and variances within 4.5 standard errors of
    the draws: √(Σ_ii/n) and Σ_ii√(2/n).
    """
    covariance = np.array([[1.0, 0.5, 0.1], [0.5, 0.8, -0.2], [0.1, -0.2, 0.6]])
    p, start, count = (
        targets.gaussian([0.5, -1.0, 0.2], covariance),
        targets.gaussian(np.zeros(3), np.eye(3)),
        2048,
    )
    fit = {
        "forward": divergences.fit_forward_by_samples,
        "reverse": divergences.fit_reverse_by_samples,
    }[direction]
    result = fit(jax.random.key(0), p, start, count)
    variances = np.diag(covariance)
    assert np.all(
        np.abs(result.mixture.mean() - p.mean()) < 4.5 * np.sqrt(variances / count)
    )
    assert np.all(
        np.abs(np.diag(result.mixture.covariance()) - variances)
        < 4.5 * variances * math.sqrt(2 / count)
    )
    # n times twice the divergence is χ² of 9 parameters: 1e-5 of such exceed
    # 40
    assert (
        -4.5 * result.standard_error
        < result.kl
        < 40 / (2 * count) + 4.5 * result.standard_error
    )


UNIT = functools.partial(targets.gaussian, [0.0], 1.0)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: divergences.fit_reverse(two_modes(), 1.0),
            TypeError,
            "start must be made by targets.gaussian",
        ),
        (
            lambda: divergences.fit_reverse(
                two_modes(), targets.gaussian(np.zeros(3), 1.0)
            ),
            ValueError,
            r"start must be a mixture of shape \(1,\) or \(2,\)",
        ),
        (
            lambda: divergences.fit_reverse(Uniform(0.0, 1.0), UNIT()),
            ValueError,
            "start must have a finite divergence, got inf",
        ),
        (
            lambda: divergences.fit_reverse(
                targets.energy(lambda x: x[0] * jnp.nan), UNIT()
            ),
            ValueError,
            "start must have a finite divergence, got nan",
        ),
        (
            lambda: divergences.fit_reverse(two_modes(), UNIT(), steps=0),
            ValueError,
            "steps must be at least 1, got 0",
        ),
        (
            lambda: divergences.fit_forward(
                targets.energy(lambda x: 0.0 * x[0]), UNIT(), LINE
            ),
            ValueError,
            "p.log_prob must have decayed",
        ),
        (
            lambda: divergences.fit_forward(two_modes(), UNIT(), BOX),
            ValueError,
            "bounds must have shape",
        ),
        (
            lambda: divergences.moment_matched(targets.energy(lambda x: -x @ x)),
            ValueError,
            "bounds must be given where p has no mean",
        ),
    ],
)
def test_fits_raise(call, error, message):
    assert_raises(call, error, message)


@pytest.mark.parametrize("unit", [1e-20, 1e-12, 1e12, 1e18])
def test_divergences_by_quadrature_do_not_depend_on_the_unit(unit):
    """In the plane the volume of a cell and the density both leave float32's
    range: KL of N(0, s²) from N(0, 4s²) is 2 (log 2 + ⅛ − ½) for every s, to
    the rounding of log densities of a hundred nats.
    """

    class Normal:
        def __init__(self, scale):
            self.scale = np.float32(scale)

        def log_prob(self, x):
            return jnp.sum(
                -0.5 * (x / self.scale) ** 2
                - jnp.log(self.scale)
                - 0.5 * np.log(2 * np.pi)
            )

    value = divergences.kl_by_quadrature(
        Normal(unit), Normal(2 * unit), [(-9 * unit, 9 * unit)] * 2, 64
    )
    assert float(value) == pytest.approx(2 * (np.log(2) + 1 / 8 - 1 / 2), abs=1e-4)
