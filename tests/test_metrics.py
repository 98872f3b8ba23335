"""Distances between samples against closed forms, double loops and known moments."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads

from diffjax import metrics
from tests.families import counted_programs, normal

DISTANCES = {
    "frechet": metrics.frechet_distance,
    "kernel": metrics.kernel_distance,
    "energy": metrics.energy_distance,
    "sliced": lambda x, y: metrics.sliced_wasserstein(
        jax.random.key(0), x, y, projections=16
    ),
}
each_distance = pytest.mark.parametrize(
    "distance", DISTANCES.values(), ids=DISTANCES.keys()
)


def with_moments(seed, n, mean, covariance):
    """n examples with exactly the given sample mean and unbiased covariance, n > D."""
    white = normal(seed, n, len(mean))
    q, _ = np.linalg.qr(white - white.mean(0))
    values, vectors = np.linalg.eigh(covariance)
    return mean + np.sqrt(n - 1) * (q * np.sqrt(np.maximum(values, 0))) @ vectors.T


def random_covariance(seed, dimension, rank):
    factor = normal(seed, dimension, rank)
    return factor @ factor.T / rank


@pytest.mark.parametrize("rank", [5, 3], ids=["full rank", "deficient"])
def test_frechet_is_the_closed_form_of_the_sample_moments(rank, x64):
    mean_x, mean_y = normal(0, 2, 5)
    sigma_x, sigma_y = random_covariance(1, 5, rank), random_covariance(2, 5, 5)
    root = scipy.linalg.sqrtm(sigma_y)
    cross = np.linalg.eigvalsh(root @ sigma_x @ root)
    expected = (
        np.sum((mean_x - mean_y) ** 2)
        + np.trace(sigma_x + sigma_y)
        - 2 * np.sqrt(np.maximum(cross, 0)).sum()
    )
    x, y = with_moments(3, 40, mean_x, sigma_x), with_moments(4, 23, mean_y, sigma_y)
    # the reference's own square root of an eigenvalue 1e-16 leaves 1e-8
    np.testing.assert_allclose(metrics.frechet_distance(x, y), expected, rtol=1e-7)


def test_frechet_of_axis_parallel_gaussians_in_float32():
    x = with_moments(0, 500, np.zeros(3), np.diag([1.0, 4.0, 0.0]))
    y = with_moments(1, 300, np.array([1.0, 0.0, 2.0]), np.diag([9.0, 1.0, 0.0]))
    distance = metrics.frechet_distance(x, y)
    assert distance.dtype == jnp.float32
    np.testing.assert_allclose(distance, 5 + (3 - 1) ** 2 + (2 - 1) ** 2, rtol=1e-5)


def test_frechet_with_fewer_examples_than_dimensions(x64):
    """Two examples span one line: Σ = vvᵀ/2 for v = x₂ − x₁.

    (Σ₁Σ₂)^½ then has trace |v·w|/2.
    """
    x, y = normal(0, 2, 7), normal(1, 2, 7)
    v, w = x[1] - x[0], y[1] - y[0]
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + (v @ v + w @ w) / 2 - abs(v @ w)
    np.testing.assert_allclose(metrics.frechet_distance(x, y), expected, rtol=1e-10)


def test_frechet_gradient(x64):
    y = normal(1, 12, 3)
    check_grads(
        lambda x: metrics.frechet_distance(x, y),
        (jnp.asarray(normal(0, 9, 3)),),
        order=1,
        modes=["rev"],
    )


@pytest.mark.parametrize("repeated", [False, True], ids=["distinct", "repeated"])
def test_frechet_derivatives_are_those_of_differences(repeated, x64):
    """First and second derivatives are those of differences with h = 1e-5.

    At distinct and at equal singular values of the product of covariance
    factors.
    """
    x, y, rate, h = normal(0, 12, 3), normal(1, 9, 3), normal(2, 12, 3), 1e-5
    if repeated:
        x, y = (with_moments(3, len(z), np.zeros(3), np.eye(3)) for z in (x, y))
    value = lambda e: metrics.frechet_distance(x + e * rate, y)
    all_three = jax.jit(
        jax.vmap(lambda e: (value(e), jax.grad(value)(e), jax.grad(jax.grad(value))(e)))
    )
    (low, _, high), (slope_low, slope, slope_high), (_, bend, _) = map(
        np.asarray, all_three(np.array([-h, 0, h]))
    )
    assert slope == pytest.approx((high - low) / (2 * h), abs=1e-7)
    assert bend == pytest.approx((slope_high - slope_low) / (2 * h), abs=1e-6)


POWERS = {"frechet": 2, "energy": 1, "sliced": 2}


@pytest.mark.parametrize("name", POWERS)
def test_distances_scale_with_the_unit_and_know_no_origin(name):
    """The unit of the data enters by its power, and their origin not at all.

    In units of 2^±60, exact in float32, squares are 2^±120. Float64 data at
    10⁹ + x are shifted before they are rounded, and have the distance of x.
    """
    distance, x, y = (
        DISTANCES[name],
        np.float32(normal(0, 20, 3)),
        np.float32(1.5 * normal(1, 20, 3)),
    )
    plain = float(distance(x, y))
    for exponent in (-60, -33, 33, 60):
        value = np.float64(distance(np.ldexp(x, exponent), np.ldexp(y, exponent)))
        assert np.ldexp(value, -exponent * POWERS[name]) == pytest.approx(
            plain, rel=1e-5
        )
    far = [np.float64(np.round(z * 1024) / 1024) for z in (x, y)]
    assert float(distance(*(z + 1e9 for z in far))) == pytest.approx(
        float(distance(*far)), rel=1e-5
    )


@pytest.mark.parametrize(
    "kernel",
    [metrics.polynomial_kernel(), metrics.gaussian_kernel(1.0)],
    ids=["cubic", "gauss"],
)
def test_kernel_distance_of_small_data_keeps_its_digits(kernel):
    """Data of size s ≪ 1 have s² times the distance of the kernel's linear
    term.

    That is 3 a·b/D or a·b, since the constant drops out. The next term is a
    share s² of it, 1e-10.
    """
    x, y = normal(0, 9, 3), normal(1, 13, 3) + 0.5
    linear = 3 / 3 if isinstance(kernel, metrics.PolynomialKernel) else 1.0
    within = [
        np.mean([a @ b for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
        for z in (x, y)
    ]
    square = sum(within) - 2 * x.mean(0) @ y.mean(0)
    if linear == 1.0 and isinstance(kernel, metrics.GaussianKernel):
        square = 0.5 * (
            2 * np.mean(np.sum((x[:, None] - y[None]) ** 2, -1))
            - sum(
                np.sum((z[:, None] - z[None]) ** 2) / (len(z) * (len(z) - 1))
                for z in (x, y)
            )
        )
    value = metrics.kernel_distance(1e-5 * x, 1e-5 * y, kernel)
    assert float(value) == pytest.approx(1e-10 * linear * square, rel=1e-4)


@pytest.mark.parametrize("name", ["frechet", "energy", "sliced"])
def test_zero_for_equal_sets_in_any_order(name):
    x = normal(0, 60, 4, 2).astype(np.float32)
    shuffled = x[np.random.default_rng(1).permutation(60)]
    rounding = (
        4 * np.finfo(np.float32).eps * np.sum(x.var(0))
    )  # of means of squares, each about the total variance
    np.testing.assert_allclose(DISTANCES[name](x, x), 0, atol=rounding)
    np.testing.assert_allclose(DISTANCES[name](x, shuffled), 0, atol=rounding)


@each_distance
def test_symmetric(distance, x64):
    x, y = normal(0, 20, 3), 2 * normal(1, 31, 3) + 1
    np.testing.assert_allclose(distance(x, y), distance(y, x), rtol=1e-10)


@each_distance
def test_same_under_jit_and_for_any_event_shape(distance, x64):
    x, y = normal(0, 8, 3, 2, 2), normal(1, 9, 3, 2, 2)
    expected = distance(x, y)
    assert expected.shape == ()
    np.testing.assert_allclose(jax.jit(distance)(x, y), expected, rtol=1e-12)
    np.testing.assert_allclose(
        distance(x.reshape(8, 12), y.reshape(9, 12)), expected, rtol=1e-12
    )


def test_a_shift_moves_the_frechet_distance_by_its_square(x64):
    x, shift = normal(0, 30, 4), np.array([1.0, -2.0, 0.0, 0.5])
    np.testing.assert_allclose(
        metrics.frechet_distance(x, x + shift), shift @ shift, rtol=1e-12
    )


@each_distance
def test_a_shift_of_both_sets_changes_nothing(distance, x64):
    x, y = normal(0, 20, 3), normal(1, 25, 3)
    if (
        distance is metrics.kernel_distance
    ):  # the default kernel depends on a·b, a Gaussian one on a − b
        distance = functools.partial(distance, kernel=metrics.gaussian_kernel(1.5))
    np.testing.assert_allclose(distance(x + 3, y + 3), distance(x, y), rtol=1e-9)


KERNELS = {
    "cubic": (None, lambda a, b: (a @ b / a.size + 1) ** 3),
    "polynomial": (
        metrics.polynomial_kernel(2, 0.5),
        lambda a, b: (a @ b / a.size + 0.5) ** 2,
    ),
    "gaussian": (
        metrics.gaussian_kernel(0.7),
        lambda a, b: np.exp(-np.sum((a - b) ** 2) / (2 * 0.7**2)),
    ),
    "one's own": (
        lambda a, b: jnp.exp(-jnp.abs(a - b).sum()),
        lambda a, b: np.exp(-np.abs(a - b).sum()),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_distance_is_the_double_sum(name, x64, small_blocks):
    kernel, k = KERNELS[name]
    x, y = normal(0, 9, 3), normal(1, 13, 3) + 0.5
    within = [
        np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
        for z in (x, y)
    ]
    expected = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
    np.testing.assert_allclose(
        metrics.kernel_distance(x, y, kernel), expected, rtol=1e-10
    )


@pytest.mark.parametrize(
    "kernel",
    [metrics.polynomial_kernel(), metrics.gaussian_kernel(1.0)],
    ids=["cubic", "gauss"],
)
def test_kernel_distance_is_zero_on_average_for_one_distribution(kernel):
    """Over 2000 independent pairs of sets the mean is 0 within 4 standard
    errors.

    That holds for sets as small as 4 and 6.
    """
    x, y = (
        jax.random.normal(jax.random.key(0), (2000, 4, 2)),
        jax.random.normal(jax.random.key(1), (2000, 6, 2)),
    )
    estimates = jax.vmap(lambda x, y: metrics.kernel_distance(x, y, kernel))(x, y)
    assert abs(estimates.mean()) < 4 * estimates.std() / np.sqrt(2000)
    assert estimates.min() < 0


def test_kernel_distance_does_not_compile_anew_for_another_bandwidth():
    x, y = normal(0, 5, 2), normal(1, 5, 2)
    metrics.kernel_distance(x, y, metrics.gaussian_kernel(1.0))
    with counted_programs() as programs:
        metrics.kernel_distance(x, y, metrics.gaussian_kernel(2.0))
    assert not programs


def test_energy_distance_is_the_double_sum(x64, small_blocks):
    x, y = normal(0, 9, 3), normal(1, 13, 3) + 0.5
    xy, xx, yy = (
        np.mean([np.linalg.norm(a - b) for a in u for b in v])
        for u, v in ((x, y), (x, x), (y, y))
    )
    expected = 2 * xy - xx - yy
    np.testing.assert_allclose(metrics.energy_distance(x, y), expected, rtol=1e-10)


def test_energy_distance_in_one_dimension_is_twice_the_squared_gap_of_cdfs(
    x64,
):
    x, y = normal(0, 11), normal(1, 17) + 0.3
    ends = np.sort(np.concatenate([x, y]))
    gaps = (x[:, None] <= ends).mean(0) - (y[:, None] <= ends).mean(0)
    np.testing.assert_allclose(
        metrics.energy_distance(x, y),
        2 * np.sum(gaps[:-1] ** 2 * np.diff(ends)),
        rtol=1e-10,
    )


def test_energy_distance_has_a_finite_gradient_where_examples_coincide():
    x = np.zeros((3, 2), np.float32)
    assert np.isfinite(jax.grad(metrics.energy_distance)(x, x)).all()


def test_sliced_wasserstein_of_a_shift_is_its_square_over_the_dimension():
    """SW₂² = E(θ·c)² = ‖c‖²/D.

    (θ·c)²/‖c‖² is Beta(½, (D−1)/2), of variance 2(D−1)/(D²(D+2)).
    """
    x, shift, dimension, projections = (
        normal(0, 50, 6),
        np.array([3.0, 0, 0, -4.0, 0, 0]),
        6,
        4000,
    )
    distance = metrics.sliced_wasserstein(
        jax.random.key(2), x, x + shift, projections=projections
    )
    std = 25 * np.sqrt(
        2 * (dimension - 1) / (dimension**2 * (dimension + 2)) / projections
    )
    assert abs(distance - 25 / dimension) < 4 * std


def test_sliced_wasserstein_in_one_dimension_is_exact(x64):
    x, y = normal(0, 20), 3 * normal(1, 20) + 1
    for key in jax.random.split(jax.random.key(0), 2):
        distance = metrics.sliced_wasserstein(key, x, y, projections=3)
        np.testing.assert_allclose(
            distance, np.mean((np.sort(x) - np.sort(y)) ** 2), rtol=1e-12
        )


def test_sliced_wasserstein_of_unequal_sizes_is_that_of_the_repeated_sets(x64):
    """Repeated examples leave the distributions unchanged.

    6 and 4 examples, repeated 2 and 3 times, are 12 examples each.
    """
    x, y = normal(0, 6, 3), normal(1, 4, 3)
    distance = DISTANCES["sliced"]
    np.testing.assert_allclose(
        distance(x, y), distance(np.repeat(x, 2, 0), np.repeat(y, 3, 0)), rtol=1e-12
    )


def test_nearest_neighbours_against_brute_force(x64, small_blocks):
    x, reference = normal(0, 7, 2, 3), normal(1, 31, 2, 3)
    all_distances = np.linalg.norm(
        (x[:, None] - reference[None]).reshape(7, 31, 6), axis=-1
    )
    indices, distances = metrics.nearest_neighbours(x, reference, k=4)
    np.testing.assert_array_equal(indices, np.argsort(all_distances, axis=1)[:, :4])
    np.testing.assert_allclose(
        distances, np.sort(all_distances, axis=1)[:, :4], rtol=1e-12
    )


def test_a_copy_is_its_own_neighbour_at_distance_zero_far_from_the_origin():
    reference = normal(0, 50, 3).astype(np.float32) + 1000
    indices, distances = metrics.nearest_neighbours(reference[7:9], reference)
    assert indices.tolist() == [[7], [8]] and distances.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("traced", [False, True])
def test_neighbours_keep_their_digits_beside_a_sample_that_diverged(traced):
    reference = normal(0, 50, 2).astype(np.float32)
    near = (reference[:5] + 1e-3 * normal(1, 5, 2)).astype(np.float32)
    x = np.concatenate([np.full((1, 2), 1e6, np.float32), near])
    find = jax.jit(metrics.nearest_neighbours) if traced else metrics.nearest_neighbours
    indices, distances = find(x, reference)
    exact = np.linalg.norm(near.astype(np.float64) - reference[:5], axis=1)
    assert indices[1:, 0].tolist() == list(range(5))
    # each of 2 × 2 entries is centred and scaled, and so rounded twice; those of the
    # reference are below 4
    atol = 2 * 2 * np.sqrt(2) * 4 * np.finfo(np.float32).eps
    np.testing.assert_allclose(distances[1:, 0], exact, atol=atol, rtol=1e-6)


@each_distance
@pytest.mark.parametrize(
    "x, y, message",
    [
        (
            1.0,
            np.ones((3, 2)),
            "x must have examples on its leading axis, got shape ()",
        ),
        (
            np.ones((3, 2)),
            np.ones((1, 2)),
            "y must hold at least 2 examples, got shape (1, 2)",
        ),
        (
            np.ones((3, 2)),
            np.ones((3, 4)),
            "y must hold examples of x's shape (2,), got (4,)",
        ),
        (
            np.array([[1.0], [np.nan]]),
            np.ones((3, 1)),
            "x must be finite, got 1 NaN or infinite entries of 2",
        ),
    ],
)
def test_bad_sets_raise_by_name(distance, x, y, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        distance(x, y)


def test_other_bad_arguments_raise_by_name():
    x = np.ones((3, 2))
    with pytest.raises(
        ValueError,
        match="kernel must be finite on x and y, .*; divide both sets by their scale",
    ):
        metrics.kernel_distance(1e15 * x, -1e15 * x)
    with pytest.raises(ValueError, match="k must be between 1 and 3, got 4"):
        metrics.nearest_neighbours(x, x, k=4)
    with pytest.raises(
        ValueError,
        match=re.escape("reference must hold at least 1 example, got shape (0, 2)"),
    ):
        metrics.nearest_neighbours(x, x[:0])
    with pytest.raises(ValueError, match="projections must be at least 1, got 0"):
        metrics.sliced_wasserstein(jax.random.key(0), x, x, projections=0)
    with pytest.raises(TypeError, match="key must be a typed key"):
        metrics.sliced_wasserstein(0, x, x)
    with pytest.raises(ValueError, match="bandwidth must be positive, got -1"):
        metrics.gaussian_kernel(-1.0)
    with pytest.raises(ValueError, match="degree must be at least 1, got 0"):
        metrics.polynomial_kernel(0)
    with pytest.raises(TypeError, match="kernel must be callable"):
        metrics.kernel_distance(x, x, "gaussian")
