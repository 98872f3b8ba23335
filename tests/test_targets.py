"""Densities known exactly at every noise level: each distribution against
quadrature, autodiff or sampling.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import datasets

from diffjax import schedules, targets
from tests.families import (
    DISTINCT,
    EPS32,
    SCHEDULES,
    TARGETS,
    TOYS,
    every,
    times_at_noise,
)


def batched_log_prob(target, x):
    return jax.jit(lambda target, x: jax.vmap(target.log_prob)(x))(target, x)


def square(half_width, points):
    """Points (points², 2) and the cell's area of the midpoint rule on
    [−half_width, half_width]².
    """
    edge = (np.arange(points) + 0.5) / points * 2 * half_width - half_width
    grid = np.stack(np.meshgrid(edge, edge, indexing="ij"), -1).reshape(-1, 2)
    return jnp.asarray(grid), (2 * half_width / points) ** 2


# --------------------------------------------------- distributions at a noise level


@pytest.mark.parametrize("name", TARGETS)
def test_noised_distribution_is_a_density_and_its_moments_follow(name, x64):
    """∫p_t = 1, E x_t = α E x_0, Cov x_t = α² Cov x_0 + σ² I at each noise
    level, by quadrature.

    The midpoint rule is exact to e^{−2π²(s/h)²} for a Gaussian of std s ≥ 0.3:
    below 1e-13 at h = 0.12. Tails beyond 8 are below 1e-10.
    """
    target, schedule = TARGETS[name](), schedules.vp_linear()
    x, area = square(8.0, 134)
    moments = []
    for t in (0.25, 0.5, 0.9):
        p = np.exp(batched_log_prob(target.noised(schedule, t), x)) * area
        assert p.sum() == pytest.approx(1, abs=1e-9)
        mean = p @ x
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        covariance = (x.T * p) @ x - np.outer(mean, mean)
        moments.append((mean / alpha, (covariance - sigma**2 * np.eye(2)) / alpha**2))
    for mean, covariance in moments[
        :2
    ]:  # at t = 0.9 division by α² would amplify the quadrature's tails
        np.testing.assert_allclose(mean, moments[0][0], atol=1e-6)
        np.testing.assert_allclose(covariance, moments[0][1], atol=1e-6)
    if hasattr(target, "covariance"):
        np.testing.assert_allclose(target.mean(), moments[0][0], atol=1e-6)
        np.testing.assert_allclose(target.covariance(), moments[0][1], atol=1e-6)


@pytest.mark.parametrize("name", TARGETS)
def test_noised_distribution_and_posterior_mean_are_convolutions(name, x64):
    """p_t(x) = ∫p_0(y) N(x | αy, σ²) dy and D = ∫y p_0(y) N(x | αy, σ²)
    dy / p_t(x), by brute force over y.

    Boxes are summed by the midpoint rule aligned with their edges, whose error
    is h²/24 of the second derivative.
    """
    target, schedule, t = TARGETS[name](), schedules.vp_linear(), 0.3
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    y, area = square(5.0, 400)
    p0 = np.exp(batched_log_prob(target, y)) * area
    points = jnp.array([[0.3, -0.2], [-1.2, 0.9], [2.0, 1.0]])
    denoiser = targets.denoiser(target, schedule)
    tolerance = 2e-4 if name == "boxes" else 1e-10
    for x in points:
        kernel = np.exp(
            -np.sum((np.asarray(x) - alpha * y) ** 2, -1) / (2 * sigma**2)
        ) / (2 * np.pi * sigma**2)
        density = p0 @ kernel
        np.testing.assert_allclose(
            target.noised(schedule, t).log_prob(x), np.log(density), atol=tolerance
        )
        np.testing.assert_allclose(
            denoiser(x, t), (p0 * kernel) @ y / density, atol=tolerance
        )


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
def test_denoiser_is_tweedies_on_every_schedule(schedule, x64):
    """D = (x + σ²∇log p_t)/α for both kinds of mixture, with the score by
    autodiff of the closed-form log p_t.
    """
    schedule = SCHEDULES[schedule]()

    @jax.jit
    @jax.vmap
    def both(t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = alpha * jnp.array([0.4, -0.3]) + sigma * jnp.array([1.2, -0.7])
        result = []
        for target in (TARGETS["diagonal"](), TARGETS["full"]()):
            tweedie = (
                x + sigma**2 * targets.score(target.noised(schedule, t), x)
            ) / alpha
            result.append((targets.denoiser(target, schedule)(x, t), tweedie))
        return result

    for denoised, tweedie in both(times_at_noise(schedule)):
        # Tweedie's difference cancels by x/α ≤ 3 at worst
        np.testing.assert_allclose(denoised, tweedie, rtol=1e-11, atol=1e-12)


def test_convolutions_compose(x64):
    """Noise added twice is noise added once: (α₂α₁, √(α₂²σ₁² + σ₂²))."""
    x = jnp.array([0.3, 0.1])
    for make in TARGETS.values():
        target = make()
        twice = target.convolved(0.8, 0.5).convolved(0.6, 0.3)
        once = target.convolved(0.48, math.hypot(0.6 * 0.5, 0.3))
        assert float(twice.log_prob(x)) == pytest.approx(
            float(once.log_prob(x)), rel=1e-12
        )


@pytest.mark.parametrize("name", list(TARGETS) + list(TOYS))
def test_samples_have_the_stated_distribution(name):
    """Mean and covariance within 4.5 s.e., and −E log p of samples equals the
    entropy by quadrature of the same log p.
    """
    target = (TARGETS | {toy: make for toy, (make, _) in TOYS.items()})[name]()
    count = 8000
    x = jax.jit(jax.vmap(target.sample))(jax.random.split(jax.random.key(0), count))
    # the distribution of x + small noise: smooth enough for the grid (h = 0.075, std at
    # least 0.15)
    smooth = target.convolved(1.0, 0.15)
    x = np.asarray(x + 0.15 * jax.random.normal(jax.random.key(1), x.shape), np.float64)
    grid, area = square(6.0, 160)
    log_p = np.asarray(batched_log_prob(smooth, grid), np.float64)
    p = np.exp(log_p) * area
    assert p.sum() == pytest.approx(1, abs=1e-4)
    mean = p @ grid
    covariance = (grid.T * p) @ grid - np.outer(mean, mean)
    centred = x - mean
    products = np.stack(
        [centred[:, 0] ** 2, centred[:, 1] ** 2, centred[:, 0] * centred[:, 1]], -1
    )
    expected = [covariance[0, 0], covariance[1, 1], covariance[0, 1]]
    scores = np.asarray(
        batched_log_prob(smooth, jnp.asarray(x, jnp.float32)), np.float64
    )
    tail = np.where(p > 0, p * np.maximum(log_p, -1e4), 0).sum()
    for values, expectation in ((x, mean), (products, expected), (scores, tail)):
        standard_error = values.std(0) / math.sqrt(count)
        assert np.all(
            np.abs(values.mean(0) - expectation) < 4.5 * standard_error + 1e-4
        )


@pytest.mark.parametrize("name", TOYS)
def test_toy_entropies(name):
    """−∫p log p of each toy density, by quadrature, to the three digits that
    its docstring states.
    """
    make, entropy = TOYS[name]
    # the boards' edges lie on the cells' edges; mixtures have std ≥ 0.2 against
    # h = 0.05
    grid, area = square(8.0, 320)
    target = make()
    log_p = np.asarray(
        jax.lax.map(
            lambda rows: jax.vmap(target.log_prob)(rows), grid.reshape(64, -1, 2)
        ),
        np.float64,
    )
    p = np.exp(log_p) * area
    assert p.sum() == pytest.approx(1, abs=1e-5)
    result = -np.where(p > 0, p * np.maximum(log_p, -1e4), 0).sum()
    assert result == pytest.approx(entropy, abs=5e-4)


# ------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
def test_data_plus_minus_one_is_a_hyperbolic_tangent(schedule, x64):
    """For x_0 = ±1 with equal odds D = tanh(αx/σ²), on every schedule."""
    coin, schedule = targets.empirical([[-1.0], [1.0]]), SCHEDULES[schedule]()

    @jax.jit
    @jax.vmap
    def both(t):
        x = schedule.alpha(t) * 0.6 + schedule.sigma(t) * np.array([-0.4])
        return targets.denoiser(coin, schedule)(x, t), jnp.tanh(
            schedule.alpha(t) * x / schedule.sigma(t) ** 2
        )

    denoised, expected = both(times_at_noise(schedule, (0.3, 1.0, 3.0)))
    np.testing.assert_allclose(denoised, expected, rtol=1e-11)


def test_data_plus_minus_one_costs_log_two(x64):
    """I-MMSE: ½∫₀^∞ mmse dSNR = log 2, the entropy of a fair coin, with the
    library's denoiser under the integral.

    SNR = u²: mmse(u) is smooth and decays like e^{−u²/2}. Gauss–Hermite in the
    noise, trapezoid in u up to 12.
    """
    coin, schedule = targets.empirical([[-1.0], [1.0]]), schedules.edm(1e-3, 1e4)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights /= weights.sum()
    u = np.linspace(0, 12, 481)[1:]

    def error(u):  # by symmetry x_0 = 1 suffices
        denoised = jax.vmap(
            lambda z: targets.denoiser(coin, schedule)(jnp.array([1 + z / u]), 1 / u)[0]
        )(jnp.asarray(nodes))
        return jnp.asarray(weights) @ (1 - denoised) ** 2

    integrand = np.concatenate([[0.0], u * np.asarray(jax.jit(jax.vmap(error))(u))])
    assert np.trapezoid(integrand, dx=12 / 480) == pytest.approx(
        math.log(2), abs=2e-4
    )  # h²/12 · [f′] = 5e-5


def test_gaussian_denoiser_is_wieners(x64):
    """N(m, V): D = m + αV(α²V + σ²)⁻¹(x − αm) for a full covariance, by a
    linear solve.
    """
    mean, covariance = (
        np.array([0.5, -1.0, 0.2]),
        np.array([[1.0, 0.4, 0.1], [0.4, 0.7, -0.2], [0.1, -0.2, 0.5]]),
    )
    target, schedule = targets.gaussian(mean, covariance), schedules.sub_vp()
    x = np.array([0.3, 0.9, -0.4])
    for t in (0.1, 0.4, 0.8):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        noised = alpha**2 * covariance + sigma**2 * np.eye(3)
        expected = mean + alpha * covariance @ np.linalg.solve(noised, x - alpha * mean)
        np.testing.assert_allclose(
            targets.denoiser(target, schedule)(x, t), expected, rtol=1e-12
        )
        log_prob = stats.multivariate_normal(alpha * mean, noised).logpdf(x)
        assert float(target.noised(schedule, t).log_prob(x)) == pytest.approx(
            log_prob, rel=1e-12
        )
    np.testing.assert_allclose(target.covariance(), covariance, rtol=1e-13)


def test_scales_covariances_and_scalars_state_the_same_distribution(x64):
    """(K,), (K, D) and (K, D, D) scales that mean the same give the same
    density and denoiser.
    """
    weights, means = [0.3, 0.7], [[-1.0, 0.4], [0.8, -0.2]]
    stds = np.array([0.5, 0.8])
    forms = [stds, np.stack([stds, stds], -1), stds[:, None, None] ** 2 * np.eye(2)]
    x, schedule = jnp.array([0.1, 0.6]), schedules.vp_cosine()
    members = [targets.gaussian_mixture(weights, means, scales) for scales in forms]
    for distribution in members[1:]:
        assert float(distribution.log_prob(x)) == pytest.approx(
            float(members[0].log_prob(x)), rel=1e-13
        )
        expected = targets.denoiser(members[0], schedule)(x, 0.3)
        np.testing.assert_allclose(
            targets.denoiser(distribution, schedule)(x, 0.3), expected, rtol=1e-12
        )


def test_empirical_denoiser_is_a_softmax_and_collapses(x64):
    """D = Σ softmax_i(−‖x − αx_i‖²/2σ²) x_i for examples of any shape.

    At tiny noise it is the nearest datum.
    """
    data = np.asarray(jax.random.normal(jax.random.key(0), (6, 2, 2)))
    schedule = schedules.rectified_flow()
    denoiser = targets.denoiser(targets.empirical(data), schedule)
    x, t = jnp.array([[0.2, -0.1], [0.4, 0.0]]), 0.6
    logits = -np.sum((np.asarray(x) - 0.4 * data) ** 2, (1, 2)) / (2 * 0.6**2)
    weights = np.exp(logits - logits.max())
    np.testing.assert_allclose(
        denoiser(x, t),
        np.einsum("n,nij->ij", weights / weights.sum(), data),
        rtol=1e-12,
    )
    near = 0.999 * data[3] + 1e-3 * np.asarray(
        jax.random.normal(jax.random.key(1), (2, 2))
    )
    np.testing.assert_allclose(denoiser(jnp.asarray(near), 1e-3), data[3], atol=1e-14)


def test_empirical_samples_are_the_data_in_equal_shares():
    data = np.arange(5.0)[:, None]
    draws = np.asarray(
        jax.vmap(targets.empirical(data).sample)(
            jax.random.split(jax.random.key(0), 5000)
        )
    )[:, 0]
    counts = np.array([np.sum(draws == value) for value in data[:, 0]])
    assert counts.sum() == 5000
    assert np.all(np.abs(counts - 1000) < 4.5 * math.sqrt(5000 * 0.2 * 0.8))
    with pytest.raises(ValueError, match="empirical data have no density at noise 0"):
        targets.empirical(data).log_prob(jnp.zeros(1))


def test_uniform_boxes_are_sharp_at_noise_zero():
    """The checkerboard is 1/32 on its dark squares and 0 elsewhere, neighbours
    included.
    """
    board = targets.checkerboard()
    assert float(board.log_prob(jnp.array([-3.0, -3.0]))) == pytest.approx(
        -math.log(32), rel=1e-6
    )
    assert float(board.log_prob(jnp.array([1.0, -3.0]))) == pytest.approx(
        -math.log(32), rel=1e-6
    )
    for empty in ([-1.0, -3.0], [5.0, 1.0]):
        assert float(board.log_prob(jnp.array(empty))) == -math.inf


def test_energy_is_a_continuous_softmax():
    """log p = function − log Z with its gradient.

    A function that returns a vector is a ValueError.
    """
    energy = targets.energy(lambda x: -0.5 * jnp.sum(x**2), math.log(2 * math.pi))
    x = jnp.array([0.3, -1.2])
    assert float(energy.log_prob(x)) == pytest.approx(
        stats.norm.logpdf(x).sum(), rel=4 * EPS32
    )
    np.testing.assert_allclose(targets.score(energy, x), -x, rtol=2 * EPS32)
    with pytest.raises(ValueError, match=r"must return a scalar, got shape \(2,\)"):
        targets.energy(lambda x: x).log_prob(x)
    with pytest.raises(TypeError, match="target must have noised"):
        targets.denoiser(energy, schedules.edm())


# --------------------------------------------------- precision, derivatives, and no NaN


@pytest.mark.parametrize("condition", [1e6, 1e8])
def test_covariances_are_decomposed_before_they_are_rounded(condition):
    """log p in float32 of N(0, V) for a float64 V: only the basis is rounded,
    by ε √condition of a coordinate.

    c²/v with c off by δ = ε √condition is off by 2|z|δ + δ² for |z| ≤ 4 in
    each of 4 coordinates, and log p by half.
    """
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    covariance = basis * np.geomspace(1 / condition, 1, 4) @ basis.T
    x = rng.multivariate_normal(np.zeros(4), covariance, size=200).astype(np.float32)
    result = batched_log_prob(
        targets.gaussian(np.zeros(4), 0.5 * (covariance + covariance.T)), x
    )
    exact = stats.multivariate_normal(np.zeros(4), covariance).logpdf(x.astype(float))
    slack = EPS32 * math.sqrt(condition)
    assert np.max(np.abs(result - exact)) < 4 * (4 * slack + slack**2) + 32 * EPS32


def test_moments_of_components_far_from_zero():
    """At 10⁶ + {0, 1} (exact in float32) the covariance is that at {0, 1}, and
    the mean is within a unit of rounding.
    """
    near, far = (
        targets.gaussian_mixture([0.25, 0.75], [[m], [m + 1.0]], [0.5, 0.5])
        for m in (0.0, 1e6)
    )
    np.testing.assert_allclose(far.covariance(), near.covariance(), rtol=4 * EPS32)
    np.testing.assert_allclose(far.mean(), [1e6 + 0.75], rtol=EPS32)


MATRICES = {
    "repeated": 0.64 * np.eye(3),
    "twice": np.diag([0.64, 0.64, 0.3]),
    "nearly": np.diag([0.64, 0.64 + 1e-9, 0.3]),
    "distinct": np.array([[0.9, 0.2, 0.1], [0.2, 0.6, -0.1], [0.1, -0.1, 0.4]]),
}
"""Symmetric positive definite matrices, by how their eigenvalues lie."""


def of_covariance(c, mean, x, alpha, sigma):
    """Functions of the covariance of a Gaussian, (5,), smooth in every argument."""
    distribution = targets.gaussian_mixture(
        [0.4, 0.6], jnp.stack([mean, -mean]), jnp.stack([c, 2 * c @ c])
    )
    noised = distribution.convolved(alpha, sigma)
    along = jnp.array([1.0, 2.0, -1.0])
    sample = jnp.sin(targets.gaussian(mean, c).sample(jax.random.key(3)))
    return jnp.stack(
        [
            noised.log_prob(x),
            targets.score(noised, x) @ along,
            distribution.posterior_mean(x, alpha, sigma) @ along,
            sample @ along,
            jnp.sum(jnp.sin(distribution.covariance())),
        ]
    )


@jax.jit
def along_line(points, rates, step):
    """of_covariance, its first and second derivative along a line, forwards
    and in reverse. (5,) each.
    """

    def move(e):
        return of_covariance(*(p + e * r for p, r in zip(points, rates, strict=True)))

    def of_sum(weights):
        return jax.grad(lambda e: jnp.vdot(weights, move(e)))

    forward = lambda e: jax.jvp(move, (e,), (1.0,))[1]
    reverse = jax.vmap(lambda w: of_sum(w)(step))(jnp.eye(5))
    second = jax.vmap(lambda w: jax.grad(of_sum(w))(step))(jnp.eye(5))
    return move(step), forward(step), reverse, second


@pytest.mark.parametrize("name", MATRICES)
def test_derivatives_by_a_covariance_are_those_of_differences(name, x64):
    """By all arguments at once, first and second (reverse over reverse):
    central differences with h = 1e-5.

    Their error is h²/6 of the third derivative and ε/h of the value: below
    1e-6 of values and derivatives up to 1e3.
    """
    rng, h = np.random.default_rng(1), 1e-5
    turn = rng.normal(size=(3, 3))
    points = (
        MATRICES[name],
        np.array([0.5, -0.2, 0.3]),
        np.array([0.1, 0.4, -0.3]),
        0.8,
        0.5,
    )
    rates = 0.1 * (turn + turn.T), rng.normal(size=3), rng.normal(size=3), 0.3, -0.2
    (low, slope_low, *_), (_, forward, reverse, second), (high, slope_high, *_) = (
        along_line(points, rates, e) for e in (-h, 0.0, h)
    )
    np.testing.assert_allclose(forward, (high - low) / (2 * h), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(reverse, forward, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(
        second, (slope_high - slope_low) / (2 * h), rtol=1e-5, atol=1e-5
    )


EVERYWHERE = TARGETS | {
    "checkerboard": targets.checkerboard,
    "data": lambda: targets.empirical(np.eye(3)[:, :2]),
}


@pytest.mark.parametrize("name", every(EVERYWHERE, ("diagonal", "full", "data")))
def test_no_value_or_derivative_is_nan(name):
    """On and off the support, far away, at noise 0, where α = 0 and between:
    every output and every reverse sweep.
    """
    target = EVERYWHERE[name]()
    points = np.array([[0.3, -0.2], [-1.0, -3.0], [0.0, 0.2], [1e4, -1e4]], np.float32)
    levels = np.array(
        [[1.0, 0.0], [0.7, 0.0], [0.9, 1e-6], [0.6, 0.8], [1e-4, 1.0], [0.0, 1.0]],
        np.float32,
    )
    points, levels = (
        np.repeat(points, len(levels), 0),
        np.tile(levels, (len(points), 1)),
    )

    def outputs(target, x, alpha, sigma):
        noised = target.convolved(alpha, sigma)
        return noised.log_prob(x), target.posterior_mean(x, alpha, sigma)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def all_of(target, x, level):
        (log_p, denoised), pull_back = jax.vjp(outputs, target, x, *level)
        return (
            log_p,
            denoised,
            jax.vmap(pull_back)((np.float32([1, 0]), np.float32([[0, 0], [1, 1]]))),
        )

    for leaf in jax.tree.leaves(all_of(target, points, levels)):
        assert not np.any(np.isnan(leaf))


def test_boxes_much_narrower_than_the_noise(x64):
    """At α = 1e-9 and 0 the density is N(x | 0, 1) and D the mean of the boxes
    to O(α). Float64's log Φ would be 0/0.
    """
    boxes, x = TARGETS["boxes"](), np.array([0.7, -1.2])
    for alpha in (1e-9, 0.0):
        assert float(boxes.convolved(alpha, 1.0).log_prob(x)) == pytest.approx(
            stats.norm.logpdf(x).sum(), rel=1e-8
        )
        np.testing.assert_allclose(
            boxes.posterior_mean(x, alpha, 1.0), boxes.mean(), atol=1e-8
        )


def test_boxes_posterior_mean_is_tweedies(x64):
    """(x + σ²∇log p_t)/α, where the difference does not cancel: α = 0.8,
    σ = 0.3 and 2, with a std of the boxes' own.
    """
    for sigma in (0.3, 2.0):
        boxes = TARGETS["boxes"]().convolved(1.0, 0.4)
        for x in np.array([[0.7, -1.2], [-0.3, 0.1]]):
            tweedie = (
                x + sigma**2 * targets.score(boxes.convolved(0.8, sigma), x)
            ) / 0.8
            np.testing.assert_allclose(
                boxes.posterior_mean(x, 0.8, sigma), tweedie, rtol=1e-9, atol=1e-10
            )


# -------------------------------------------------------------------- toys' definitions


def energy_distance(x, y):
    """2E|X − Y| − E|X − X′| − E|Y − Y′|, unbiased."""

    def mean_distance(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).sum()

    n, m = len(x), len(y)
    between = mean_distance(x, y) / (n * m)
    within = mean_distance(x, x) / (n * (n - 1)) + mean_distance(y, y) / (m * (m - 1))
    return 2 * between - within


@pytest.mark.parametrize("name", ["moons", "circles"])
def test_toys_are_distributed_as_scikit_learns(name):
    """Energy distance to scikit-learn's generator stays within that
    generator's distance to itself (20 seeds).
    """
    n = 600
    if name == "moons":
        ours = targets.moons()
        pool = 2 * datasets.make_moons(20_000, noise=0.1, random_state=0)[0] + np.array(
            [-1, -0.2]
        )
    else:
        ours = targets.circles()
        pool = (
            3 * datasets.make_circles(20_000, noise=0.08, factor=0.5, random_state=0)[0]
        )

    def theirs(seed):  # the generator spaces its angles evenly: draw from a large pool
        return pool[np.random.default_rng(seed).integers(len(pool), size=n)]

    null = np.array(
        [energy_distance(theirs(2 * seed), theirs(2 * seed + 1)) for seed in range(20)]
    )
    sample = np.asarray(
        jax.vmap(ours.sample)(jax.random.split(jax.random.key(0), n)), np.float64
    )
    distance = energy_distance(sample, theirs(99))
    assert distance < 5 * null.std()
    assert (
        energy_distance(sample + np.array([0.6, 0]), theirs(99)) > 5 * null.std()
    )  # the test has power


# ------------------------------------------------------------------------------ float32


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        ("sub_vp", "full"),
        pytest.param("sub_vp", "checkerboard", marks=pytest.mark.slow),
        ("edm", "isotropic"),
        ("edm", "checkerboard"),
        pytest.param("sub_vp", "isotropic", marks=pytest.mark.slow),
        pytest.param("edm", "full", marks=pytest.mark.slow),
    ],
)
def test_float32_denoiser_and_score_at_every_noise(schedule, name):
    """In float32, D and the score are within rounding of float64 from t_min to
    t_max, on the support and off it.

    D's rounding is that of x/α. The score's is that of x − αm, of x's size,
    over σ². sub-VP has the least noise (σ = 1e-6 at t_min), EDM the most (80),
    where a box's Φ(b) − Φ(a) loses σ/(α width) of its digits.
    """
    makers, eps = TARGETS | {"checkerboard": targets.checkerboard}, EPS32
    distribution = SCHEDULES[schedule]()
    t = np.array(
        [
            distribution.t_min,
            0.5 * (distribution.t_min + distribution.t_max),
            distribution.t_max,
        ],
        np.float32,
    )
    t = np.repeat(
        np.clip(t, np.float32(distribution.t_min), np.float32(distribution.t_max)), 2
    )
    alpha, sigma = (
        np.asarray(distribution.alpha(t))[:, None],
        np.asarray(distribution.sigma(t))[:, None],
    )
    x = alpha * np.array([[0.7, 0.3], [1.7, -2.6]] * 3, np.float32) + sigma * np.array(
        [0.5, -1.0], np.float32
    )

    def evaluate(dtype):
        distribution, target = SCHEDULES[schedule](), makers[name]()

        def both(x, t):
            return targets.denoiser(target, distribution)(x, t), targets.score(
                target.noised(distribution, t), x
            )

        return [
            np.asarray(value, np.float64)
            for value in jax.jit(jax.vmap(both))(x.astype(dtype), t.astype(dtype))
        ]

    denoised, score = evaluate("float32")
    with jax.enable_x64(True):
        exact_denoised, exact_score = evaluate("float64")
    size = np.abs(x / alpha).max(1, keepdims=True) + 3
    if name == "checkerboard":
        size = size * (1 + sigma / alpha)
    assert np.all(np.abs(denoised - exact_denoised) < 32 * eps * size)
    assert np.all(
        np.abs(score - exact_score)
        < 64 * eps * (np.abs(exact_score) + size * alpha / sigma**2)
    )


# ------------------------------------------------------------------------------- errors

ERRORS = {
    "weights sum": (
        lambda: targets.gaussian_mixture([0.5, 0.6], np.zeros((2, 1)), [1, 1]),
        "weights must be positive and sum to 1",
    ),
    "weights sign": (
        lambda: targets.gaussian_mixture([1.5, -0.5], np.zeros((2, 1)), [1, 1]),
        "weights must be positive and sum",
    ),
    "weights NaN": (
        lambda: targets.gaussian_mixture([np.nan, 1.0], np.zeros((2, 1)), [1, 1]),
        "weights must be finite",
    ),
    "weights shape": (
        lambda: targets.gaussian_mixture([1.0], np.zeros((2, 1)), [1, 1]),
        r"weights must have shape \(2,\), got \(1,\)",
    ),
    "means shape": (
        lambda: targets.gaussian_mixture([1.0], np.zeros(2), [1.0]),
        r"means must have shape \(K, D\), got \(2,\)",
    ),
    "means NaN": (lambda: targets.gaussian([np.nan], 1.0), "means must be finite"),
    "scales sign": (
        lambda: targets.gaussian([0.0], 0.0),
        "scales must be positive, got 0",
    ),
    "scales NaN": (lambda: targets.gaussian([0.0], np.nan), "scales must be finite"),
    "scales shape": (
        lambda: targets.gaussian([0.0, 0.0], [1.0, 1.0, 1.0]),
        r"scale must have shape .* got \(3,\)",
    ),
    "not definite": (
        lambda: targets.gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]),
        "positive definite, got smallest",
    ),
    "not symmetric": (
        lambda: targets.gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]),
        "symmetric covariances",
    ),
    "no data": (
        lambda: targets.empirical(np.zeros((0, 2))),
        r"data must have shape \(N, ...\)",
    ),
    "data NaN": (
        lambda: targets.empirical([[np.nan]]),
        "data must be finite, got 1 NaN",
    ),
    "boxes order": (
        lambda: targets.uniform_boxes([1.0], [[1.0]], [[0.0]]),
        "upper must exceed lower everywhere",
    ),
    "boxes shape": (
        lambda: targets.uniform_boxes([1.0], [1.0], [2.0]),
        r"lower must have shape \(K, D\)",
    ),
    "event shape": (
        lambda: targets.eight_gaussians().log_prob(jnp.zeros(3)),
        r"x must have shape \(2,\), got \(3,\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_thousand_float32_weights_sum_to_one():
    """Weights that sum to 1 up to rounding are accepted."""
    weights = np.full(1000, 1 / 1000, np.float32)
    assert float(
        targets.gaussian_mixture(weights, np.zeros((1000, 1)), np.ones(1000)).log_prob(
            jnp.zeros(1)
        )
    ) == pytest.approx(-0.5 * math.log(2 * math.pi), abs=1e-5)


@pytest.mark.parametrize("unit", [1e-10, 1e10])
def test_derivatives_of_a_mixture_know_no_unit(unit):
    """D(c x, c t) = c D(x, t) under EDM for data of scale c, hence ∂D/∂t is
    the same: to 64 roundings of a unit.
    """
    x, ts = np.float32([0.3, -0.2]), np.float32([0.01, 1.0, 50.0])
    weights, means, scales = (
        [0.4, 0.6],
        np.array([[1.5, 0.0], [-1.0, 0.5]]),
        np.array([0.4, 0.7]),
    )
    result = []
    for scale in (1.0, unit):
        target = targets.gaussian_mixture(weights, means * scale, scales * scale)
        denoiser = targets.denoiser(target, schedules.edm(0.002 * scale, 80 * scale))
        slope = jax.jit(jax.vmap(jax.jacrev(denoiser, 1), (None, 0)))
        result.append(slope(np.float32(x * scale), np.float32(ts * scale)))
    size = float(np.abs(result[0]).max())
    np.testing.assert_allclose(
        result[1], result[0], rtol=64 * EPS32, atol=64 * EPS32 * size
    )
