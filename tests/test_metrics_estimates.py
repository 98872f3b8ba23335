"""Streamed Fréchet distance, its bias and errors, neighbours' scores and
memorisation, against closed forms, brute force and exact null distributions.
"""

import functools
import itertools
import math

import numpy as np
import pytest
from scipy.special import gammaln

from diffjax import metrics
from tests.families import normal


def groups_of(x, count):
    return [metrics.moments(part) for part in np.array_split(x, count)]


def standard(dimension, scale=1.0):
    return metrics.stated_moments(np.zeros(dimension), scale**2 * np.eye(dimension))


# ------------------------------------------------------------------------- moments


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_merged_moments_are_those_of_two_passes_in_any_order(offset):
    """Rounding is of float64 and relative to the deviations, not to the offset.

    The mean is rounded by ε times the offset, whose square is below all.
    """
    x = offset + normal(0, 500, 6) @ normal(1, 6, 6)
    chunks = np.split(x, [1, 40, 41, 300])
    forward = functools.reduce(metrics.Moments.merged, map(metrics.moments, chunks))
    tree = metrics.moments(chunks[4]).merged(
        metrics.moments(chunks[1]).merged(metrics.moments(chunks[0]))
    )
    tree = tree.merged(metrics.moments(chunks[3]).merged(metrics.moments(chunks[2])))
    for whole in (forward, tree):
        assert whole.count == 500
        np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(whole.covariance, np.cov(x.T), rtol=1e-9, atol=1e-9)


def test_the_distance_of_moments_is_that_of_the_examples(x64):
    x, y = normal(0, 90, 5) @ normal(2, 5, 5), 1.5 * normal(1, 70, 5) + 0.3
    np.testing.assert_allclose(
        metrics.frechet_of_moments(metrics.moments(x), metrics.moments(y)),
        metrics.frechet_distance(x, y),
        rtol=1e-10,
    )


def test_the_distance_of_known_gaussians_is_the_closed_form():
    x = metrics.stated_moments([1.0, 0.0], np.diag([4.0, 0.0]))
    y = metrics.stated_moments([0.0, 0.0], np.diag([1.0, 9.0]))
    assert metrics.frechet_of_moments(x, y) == pytest.approx(1 + 1 + 9, abs=1e-6)
    assert metrics.frechet_of_moments(x, x) == 0
    assert metrics.frechet_bias(x, y) == 0
    joined = metrics.moments(normal(0, 5, 2)).merged(y)
    assert math.isinf(joined.count) and joined.mean.tolist() == [0, 0]


# ---------------------------------------------------------------------------- bias


def test_the_bias_of_isotropic_gaussians_is_the_closed_form():
    """σ₁² D/n + σ₁σ₂ D(D+1)/(4(n−1)), and the same for the second set.

    In one dimension the exact bias is σ₁²/n + 2σ₁σ₂(1 − c₄), with
    c₄ = √(2/(n−1)) Γ(n/2)/Γ((n−1)/2) = E s/σ. The rest is below 1/n².
    """
    n, m, s, r = 50, 80, 1.5, 0.7
    for dimension in (1, 4):
        x = metrics.Moments(
            n, np.zeros(dimension), s**2 * (1 - 1 / n) * np.eye(dimension)
        )
        y = metrics.Moments(
            m, np.ones(dimension), r**2 * (1 - 1 / m) * np.eye(dimension)
        )
        pairs = dimension * (dimension + 1) / 4 * s * r
        expected = dimension * (s**2 / n + r**2 / m) + pairs * (
            1 / (n - 1) + 1 / (m - 1)
        )
        assert metrics.frechet_bias(x, y) == pytest.approx(expected, rel=1e-12)
        one_sided = metrics.frechet_bias(x, standard(dimension, r))
        c4 = math.sqrt(2 / (n - 1)) * math.exp(gammaln(n / 2) - gammaln((n - 1) / 2))
        if dimension == 1:
            exact = s**2 / n + 2 * s * r * (1 - c4)
            assert abs(one_sided - exact) < s * r / n**2


def test_biases_are_removed():
    """400 sets of 120 draws of N(0, I₃), compared with a known N(0, diag(1, 2, 4)).

    The plug-in distance errs by `frechet_bias` to order 1/n². The jackknife and
    the extrapolation err by less than 4 standard errors and D³/n². The
    jackknife's squared error is the variance of its value.
    """
    exact = metrics.stated_moments(np.zeros(3), np.diag([1.0, 2.0, 4.0]))
    truth = np.sum((np.sqrt([1.0, 2.0, 4.0]) - 1) ** 2)
    size, repeats = 120, 400
    rows = []
    for x in normal(0, repeats, size, 3):
        groups = groups_of(x, 8)
        jack = metrics.frechet_jackknife(groups, [exact])
        line = metrics.frechet_extrapolated(groups, exact, 4)
        whole = functools.reduce(metrics.Moments.merged, groups)
        bias = metrics.frechet_bias(whole, exact)
        rows.append(
            (jack.plug_in - bias, jack.value, line.value, jack.plug_in, jack[1])
        )
    corrected, jackknife, line, plug_in, errors = np.array(rows).T
    rest = 27 / size**2
    for values in (corrected, jackknife, line):
        assert abs(values.mean() - truth) < 4 * values.std() / repeats**0.5 + rest
    assert plug_in.mean() - truth > 6 * plug_in.std() / repeats**0.5
    assert errors_agree(jackknife, errors**2, 1.0, 0.05)


def errors_agree(values, squares, ratio, rest):
    """Whether squared errors are `ratio` times the variance of the values on
    average, within 4 standard errors of that ratio and a relative rest.
    """
    deviations = (values - values.mean()) ** 2
    spread = [part.std() / part.mean() for part in (deviations, squares)]
    measured = squares.mean() / deviations.mean()
    allowed = 4 * math.hypot(*spread) / math.sqrt(len(values)) + rest
    return abs(measured / ratio - 1) < allowed


def test_both_sides_of_the_jackknife_count():
    """Two sets of one distribution: both biases go, and both variances are added."""
    values = []
    for x, y in zip(normal(0, 200, 60, 2), normal(1, 200, 60, 2), strict=True):
        both = metrics.frechet_jackknife(groups_of(x, 6), groups_of(y, 6))
        # At distance 0 the variance has no leading term: it is 2 apart.
        apart = metrics.frechet_jackknife(groups_of(x, 6), groups_of(y + 2, 6))
        values.append((both.value, both.plug_in, apart.value, apart.standard_error))
    value, plug_in, apart, errors = np.array(values).T
    assert errors_agree(apart, errors**2, 1.0, 0.05)
    assert abs(value.mean()) < 4 * value.std() / 200**0.5 + 8 / 60**2
    first_order = 2 * (2 / 60 + 6 / (4 * 59))
    error = 4 * plug_in.std() / 200**0.5 + 8 / 60**2
    assert abs(plug_in.mean() - first_order) < error


def test_the_extrapolation_of_a_line_is_its_intercept(monkeypatch):
    from diffjax.metrics import streamed

    monkeypatch.setattr(
        streamed, "frechet_of_moments", lambda x, y: 3.0 + 20.0 / x.count
    )
    line = metrics.frechet_extrapolated(groups_of(normal(0, 100, 2), 10), standard(2))
    assert line.value == pytest.approx(3) and line.slope == pytest.approx(20)
    assert line.counts.tolist() == [50, 60, 80, 90, 100]


# ---------------------------------------------------------------------------- KID


@pytest.mark.parametrize("kernel", [None, metrics.gaussian_kernel(0.8)])
def test_the_kernels_jackknife_leaves_out_one_example(kernel, x64, small_blocks):
    x, y = normal(0, 7, 3), normal(1, 9, 3) + 0.5
    distance = functools.partial(metrics.kernel_distance, kernel=kernel)
    variance = 0
    for left, swapped in ((x, False), (y, True)):
        other = x if swapped else y
        values = [
            float(distance(np.delete(left, i, 0), other)) for i in range(len(left))
        ]
        variance += (len(left) - 1) * np.var(values)
    estimate = metrics.kernel_jackknife(x, y, kernel)
    assert estimate.standard_error == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert estimate.value == estimate.plug_in == float(distance(x, y))


@pytest.mark.parametrize("shift, ratio", [(2.0, 1.0), (0.0, 2.0)])
def test_the_kernels_squared_error_is_the_variance_or_twice_it(shift, ratio):
    """It is the variance where the distributions differ, and twice it where the
    statistic is degenerate, up to O(1/n) and 4 standard errors of both.
    """
    repeats, n, kernel = 500, 24, metrics.gaussian_kernel(1.0)
    rows = np.array(
        [
            metrics.kernel_jackknife(x, y + shift, kernel)[:2]
            for x, y in zip(
                normal(0, repeats, n, 1).astype(np.float32),
                normal(1, repeats, n, 1).astype(np.float32),
                strict=True,
            )
        ]
    )
    values, squares = rows[:, 0], rows[:, 1] ** 2
    assert errors_agree(values, squares, ratio, 3 / n)


# ---------------------------------------------------------------- neighbours' scores


def brute_balls(x, y, k):
    """(inside, distance) matrices of the balls around y, (n, m)."""
    within = np.linalg.norm(y[:, None] - y, axis=-1)
    radii = np.sort(within, 1)[:, k]
    return np.linalg.norm(x[:, None] - y, axis=-1) <= radii


@pytest.mark.parametrize("k", [1, 3])
def test_scores_are_those_of_all_pairs(k, x64, small_blocks):
    x, y = normal(0, 17, 3) + 0.4, normal(1, 23, 3)
    inside, back = brute_balls(x, y, k), brute_balls(y, x, k)
    precision, recall = metrics.precision_recall(x, y, k)
    density, coverage = metrics.density_coverage(x, y, k)
    measured = [precision, recall, density, coverage]
    shares = [inside.any(1).mean(), back.any(1).mean(), inside.sum() / (k * 17)]
    # means of counts are of float32
    np.testing.assert_allclose(measured, [*shares, inside.any(0).mean()], rtol=1e-6)


def test_equal_sets_have_perfect_scores():
    x = normal(0, 30, 4)
    assert metrics.precision_recall(x, x) == (1, 1)
    density, coverage = metrics.density_coverage(x, x)
    assert coverage == 1 and density == pytest.approx(6 / 5)


def test_density_and_coverage_of_fresh_draws_have_their_exact_means():
    """Whatever the distribution is: here a skewed one in two dimensions."""
    repeats, n, m, k = 400, 14, 10, 3
    draws = np.exp(normal(0, repeats, n + m, 2)).astype(np.float32)
    scores = np.array([metrics.density_coverage(d[:n], d[n:], k) for d in draws])
    none = np.prod([(m - 1 - i) / (m + n - 1 - i) for i in range(k)])
    errors = scores.std(0) / math.sqrt(repeats)
    assert np.all(np.abs(scores.mean(0) - [1, 1 - none]) < 4 * errors)


# ------------------------------------------------------------------- memorisation


def test_the_null_distribution_of_the_nearest_share_is_that_of_all_splits():
    pool, x = normal(0, 6, 2).astype(np.float32), normal(1, 9, 2).astype(np.float32)
    rows = []
    for chosen in itertools.combinations(range(6), 2):
        rest = [i for i in range(6) if i not in chosen]
        rows.append(metrics.nearest_share(x, pool[list(chosen)], pool[rest]))
    values = [row.value for row in rows]
    assert np.mean(values) == pytest.approx(1 / 3) == rows[0].expected
    for row in rows:
        assert row.deviation == pytest.approx(np.std(values))


def test_the_null_distribution_of_data_copying_is_that_of_all_orders():
    train, both = np.zeros((1, 1), np.float32), np.arange(1, 7.0)[:, None]
    rows = []
    for chosen in itertools.combinations(range(6), 2):
        rest = [i for i in range(6) if i not in chosen]
        rows.append(metrics.data_copying(both[list(chosen)], train, both[rest]))
    values = [row.value for row in rows]
    assert np.mean(values) == pytest.approx(0.5) == rows[0].expected
    assert rows[0].deviation == pytest.approx(np.std(values))


def test_copies_are_seen_and_ties_count_half():
    train, held_out = normal(0, 40, 3), normal(1, 20, 3)
    share = metrics.nearest_share(train[:10], train, held_out)
    copying = metrics.data_copying(train[:10], train, held_out)
    assert share.value == copying.value == 1
    assert share.expected == pytest.approx(2 / 3) and copying.z_score > 3
    tied = metrics.nearest_share(np.zeros((1, 1)), [[1.0]], [[-1.0]])
    assert tied.value == 0.5 and tied.z_score == 0
    assert metrics.data_copying(held_out, train, held_out).value == 0.5


def test_examples_that_repeat_share_a_sample_evenly():
    """Two of five copies are held out, of which the training ones come first."""
    copies = np.zeros((5, 2))
    far = np.ones((9, 2))
    share = metrics.nearest_share(np.zeros((4, 2)), copies[:3], copies[3:])
    assert share.value == pytest.approx(3 / 5, rel=1e-12) == share.expected
    share = metrics.nearest_share(
        np.zeros((4, 2)), np.vstack([copies[:3], far]), copies[3:]
    )
    assert share.value == pytest.approx(3 / 5, rel=1e-12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: metrics.moments(np.zeros((0, 2))), "x must"),
        (lambda x: metrics.moments([[np.nan]]), "x must be finite"),
        (lambda x: metrics.stated_moments([0.0], np.eye(2)), "covariance must have"),
        (
            lambda x: metrics.stated_moments([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]),
            "covariance must be symmetric, got entries 0.5 off",
        ),
        (
            lambda x: metrics.stated_moments([0.0, 0.0], np.diag([1.0, -1.0])),
            "covariance must have no variance below 0, got -1.0",
        ),
        (
            lambda x: metrics.moments(x).merged(metrics.moments(x[:, :1])),
            "other must have the first set's dimension 2, got 1",
        ),
        (
            lambda x: metrics.frechet_of_moments(metrics.moments(x[:1]), standard(2)),
            "x must be of at least 2 examples, got 1",
        ),
        (
            lambda x: metrics.frechet_of_moments(metrics.moments(x), standard(3)),
            "y must have x's dimension 2, got 3",
        ),
        (
            lambda x: metrics.frechet_jackknife([standard(2)], [standard(2)]),
            "x_groups must hold at least 2",
        ),
        (
            lambda x: metrics.frechet_jackknife(
                [metrics.moments(x[:2]), metrics.moments(x[2:])], [standard(2)]
            ),
            "x_groups must have counts that differ by 1 at most, got",
        ),
        (
            lambda x: metrics.frechet_extrapolated(groups_of(x, 3), standard(2)),
            "groups must hold at least 5",
        ),
        (lambda x: metrics.precision_recall(x, x, 9), "x must hold at least 10"),
        (lambda x: metrics.density_coverage(x, x, 9), "y must hold at least 10"),
        (lambda x: metrics.nearest_share(x, x, x[:, :1]), "held_out must hold"),
        (lambda x: metrics.data_copying(x, x[:, :1], x), "train must hold"),
        (lambda x: metrics.kernel_jackknife(x[:2], x), "x must hold at least 3"),
    ],
)
def test_bad_arguments_raise_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(0, 9, 2))
