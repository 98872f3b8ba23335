"""Training objectives: weights, and distributions of the training time.

Their identities make them likelihood bounds.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax import losses, predictions, schedules, targets
from tests.families import (
    DISTINCT,
    EPS32,
    SCHEDULES,
    assert_raises,
    every,
    interior,
    quick,
    times_at_noise,
)

X0, NOISE, SIGMA_DATA = np.array([0.4, -1.3, 0.9]), np.array([-0.7, 0.2, 1.5]), 0.8


def snr(schedule, t):
    return (schedule.alpha(t) / schedule.sigma(t)) ** 2


# The weight of ‖D − x_0‖², each written from its paper with α, σ (and g) alone.
WEIGHTS = {
    "simple": snr,
    "likelihood": lambda s, t: (
        0.5
        * (schedules.diffusion_coefficient(s, t) * s.alpha(t) / s.sigma(t) ** 2) ** 2
    ),
    "edm": lambda s, t: 1 / SIGMA_DATA**2 + snr(s, t),  # (σ̃² + σ_d²)/(σ̃σ_d)², σ̃ = σ/α
    "min_snr": lambda s, t: jnp.minimum(snr(s, t), 5.0),
}


def test_every_weighting_is_tested():
    assert {"uniform", *WEIGHTS} == losses.WEIGHTINGS.keys()


def net(x, t):
    """Some network."""
    return jnp.sin(2 * x) + 0.1 * t


PAIRS = [("v", schedule) for schedule in SCHEDULES] + [
    (kind, "own") for kind in predictions.KINDS if kind != "v"
]
"""Every schedule with one kind, and every kind on one schedule.

`test_predictions` takes all pairs.
"""


@pytest.mark.parametrize(("kind", "schedule"), PAIRS)
def test_loss_is_the_weighted_squared_error_of_the_denoiser(kind, schedule, x64):
    """w(t)‖D(x_t, t) − x_0‖²/D for every weighting.

    "uniform" is the network's error ‖F − target‖²/D.
    """

    @functools.partial(jax.vmap, in_axes=(None, 0))
    def both(schedule, t):
        prediction = predictions.denoiser(schedule, net, kind, sigma_data=SIGMA_DATA)
        x = schedules.perturb(schedule, X0, t, NOISE)
        error = jnp.mean((prediction(x, t) - X0) ** 2)
        network_error = jnp.mean(
            (prediction.predict(x, t) - prediction.target(X0, NOISE, t)) ** 2
        )

        def loss(weighting):
            return losses.denoising_loss(prediction, X0, NOISE, t, weighting=weighting)

        computed = [
            loss("uniform"),
            *map(loss, WEIGHTS),
            loss(lambda schedule, t, sigma_data: 3 * t * sigma_data),
        ]
        expected = [
            network_error,
            *(weight(schedule, t) * error for weight in WEIGHTS.values()),
            3 * t * SIGMA_DATA * error,
        ]
        return jnp.stack(computed), jnp.stack(expected)

    computed, expected = quick(lambda s: both(s, times_at_noise(s, (0.1, 1.0, 5.0))))(
        SCHEDULES[schedule]()
    )
    np.testing.assert_allclose(computed, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["noise", "v", "edm"])
def test_float32_loss_at_the_least_noise(kind):
    """Where D − x_0 is all cancellation, "simple" is still ‖ε̂ − ε‖²/D to
    rounding.

    σ = 1e-3, in every kind. A network off by δ in ε has a loss of δ² at any t.
    Computed through D its error would be ε|x|/σδ, 10 %.
    """
    schedule, t, delta = schedules.vp_linear(), jnp.float32(1e-5), 1e-3
    x0, noise = np.float32(X0), np.float32(NOISE)

    @quick
    def scale_and_loss(x0, noise, t):
        exact = predictions.denoiser(
            schedule, lambda x, t: x, kind, sigma_data=SIGMA_DATA
        )
        scale = (
            schedule.sigma(t) / schedule.alpha(t) / exact.output_scale(t)
        )  # an error of δ in ε, in units of F
        output = exact.target(x0, noise, t) + delta * scale
        wrong = predictions.denoiser(
            schedule, lambda x, t: output, kind, sigma_data=SIGMA_DATA
        )
        return scale, losses.denoising_loss(wrong, x0, noise, t, weighting="simple")

    scale, loss = scale_and_loss(x0, noise, t)
    # F + δ·scale rounds to ε|F|, relative to δ·scale, twice (squared); F ≤ 4
    assert float(loss) == pytest.approx(
        delta**2, rel=2 * 4 * 2 * EPS32 / (delta * float(scale))
    )


@pytest.mark.parametrize("kind", predictions.KINDS)
def test_the_exact_denoiser_minimises(kind, x64):
    """E[loss | x_t] is stationary at F = the kind's view of the exact
    denoiser.

    It rises by the squared perturbation. The exact two-point posterior of ±1
    data stands for posterior samples, so that there is no Monte Carlo error.
    """
    schedule = schedules.vp_linear()
    coin, t, x = targets.empirical([[-1.0], [1.0]]), 0.4, np.array([0.3])
    parts = quick(
        lambda x: (
            schedule.alpha(t),
            schedule.sigma(t),
            targets.denoiser(coin, schedule)(x, t),
        )
    )(x)
    alpha, sigma, mean = map(np.asarray, parts)
    # F is linear in (x_0, ε): its value at x_0 = D, ε = (x − αD)/σ is E[F | x_t]

    def expected_loss(shift):
        best = predictions.denoiser(schedule, net, kind, sigma_data=SIGMA_DATA).target(
            mean, (x - alpha * mean) / sigma, t
        )
        prediction = predictions.denoiser(
            schedule, lambda x, t: best + shift, kind, sigma_data=SIGMA_DATA
        )
        total = 0.0
        for x0, odds in ((1.0, (1 + mean[0]) / 2), (-1.0, (1 - mean[0]) / 2)):
            noise = (x - alpha * x0) / sigma
            total += odds * losses.denoising_loss(prediction, jnp.array([x0]), noise, t)
        return total

    values, slopes = quick(jax.vmap(jax.value_and_grad(expected_loss)))(
        np.array([0.0, 0.1])
    )
    assert abs(float(slopes[0])) < 1e-13 * float(values[0] + 1) * 10
    assert float(values[1] - values[0]) == pytest.approx(0.01, rel=1e-10)


# ---------------------------------------------------------------- distributions of time


def edges_of_equal_log_snr(schedule):
    """60 times from t_max to t_min, equally spaced in log-SNR."""
    ends = [
        schedules.log_snr(schedule, jnp.asarray(end))
        for end in (schedule.t_max, schedule.t_min)
    ]
    return schedules.time_of_log_snr(schedule, jnp.linspace(*ends, 60))


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
@pytest.mark.parametrize("distribution", losses.TIME_DISTRIBUTIONS)
def test_time_density_integrates_to_one_and_is_the_distribution_of_the_samples(
    distribution, schedule, x64
):
    """∫density = 1, and its integral up to the i-th stratified time is (i +
    u)/count.

    Gauss–Legendre between neighbouring times in log-SNR. For a chain it is in
    t, since the rate jumps at the entries of its table.
    """
    schedule = SCHEDULES[schedule]()
    key, count = jax.random.key(3), 6
    run = quick(
        lambda key, s: (
            losses.sample_times(key, count, s, distribution),
            edges_of_equal_log_snr(s),
        )
    )
    times, within = run(key, schedule)
    times = np.sort(times)
    if hasattr(schedule, "times"):
        edges = np.unique(np.concatenate([times, schedule.times]))
    else:
        edges = np.unique(np.concatenate([times, np.asarray(within)]))
    nodes, weights = np.polynomial.legendre.leggauss(8)
    low, high = edges[:-1, None], edges[1:, None]
    inner = 0.5 * (low + high) + 0.5 * (high - low) * nodes
    density = np.asarray(
        quick(lambda s, t: losses.time_density(s, t, distribution))(schedule, inner)
    )
    mass = np.concatenate(
        [[0.0], np.cumsum(0.5 * (high - low)[:, 0] * (density @ weights))]
    )
    assert mass[-1] == pytest.approx(1, abs=1e-9)
    reached = mass[np.searchsorted(edges, times)]
    # one u for all strata; log-SNR distributions count from the noisy or the clean end
    gaps = np.diff(reached)
    np.testing.assert_allclose(gaps, 1 / count, atol=1e-9)
    assert 0 <= reached[0] < 1 / count


@pytest.mark.parametrize("distribution", losses.TIME_DISTRIBUTIONS)
@pytest.mark.parametrize("count", [49, 98, 103])
def test_exactly_count_times_one_in_each_stratum(count, distribution):
    """Every one of B strata gets one time, in float32.

    `arange(0, 1, 1/B)` would have B + 1 entries for B = 49, 98, 103.
    """
    schedule = schedules.vp_linear()
    draw = quick(lambda key: losses.sample_times(key, count, schedule, distribution))
    t = np.asarray(draw(jax.random.key(0)), np.float64)
    assert t.shape == (count,)
    if distribution == "uniform":
        quantile = (t - schedule.t_min) / (schedule.t_max - schedule.t_min)
    else:
        log_snr, *ends = (
            -np.log(np.expm1(0.1 * u + 9.95 * u**2))
            for u in (t, schedule.t_max, schedule.t_min)
        )
        if distribution == "log_snr":
            quantile = (log_snr - ends[0]) / (ends[1] - ends[0])
        else:
            score = stats.norm(-1.2, 1.2).cdf
            low, high = score(-0.5 * ends[1]), score(-0.5 * ends[0])
            quantile = (score(-0.5 * log_snr) - low) / (high - low)
    strata = np.sort(quantile) * count - np.arange(count)
    # all strata share u; float32 moves a quantile by a few ulp of the density times λ's
    # rounding
    assert np.all(np.abs(strata - strata[0]) < 64 * EPS32 * count)
    assert -64 * EPS32 * count <= strata[0] <= 1


def draws_of_times(schedule, count, batches, distribution="uniform", seed=0):
    """`sample_times` of independent keys, (batches, count), in float64."""
    draw = jax.vmap(lambda key: losses.sample_times(key, count, schedule, distribution))
    return np.asarray(
        quick(lambda: draw(jax.random.split(jax.random.key(seed), batches)))(),
        np.float64,
    )


@pytest.mark.parametrize("distribution", losses.TIME_DISTRIBUTIONS)
def test_every_position_has_the_distribution_of_its_name(distribution):
    """Over keys, the quantile of the time at each position of a batch is U(0,
    1).

    By Kolmogorov–Smirnov tests with P < 1e-5 values. A fixed stratum (i + u)/B
    per position would give statistics of √4000 (1 − 1/B) = 50.
    """
    schedule, count = schedules.edm(), 5
    t = draws_of_times(schedule, count, 4000, distribution)
    low, high = schedule.t_min, schedule.t_max
    cdf = {
        "uniform": stats.uniform(low, high - low).cdf,
        "log_snr": stats.loguniform(low, high).cdf,
        "log_normal": stats.truncnorm(
            *((math.log(end) + 1.2) / 1.2 for end in (low, high))
        ).cdf,
    }[distribution]
    quantiles = np.clip(
        cdf((np.log(t) + 1.2) / 1.2 if distribution == "log_normal" else t), 0, 1
    )
    for i in range(count):
        assert (
            math.sqrt(4000) * stats.kstest(quantiles[:, i], "uniform").statistic < 2.5
        )
    # and each batch still has one time in each stratum, to the float32 rounding of the
    # test above
    strata = np.sort(quantiles, axis=1) * count - np.arange(count)
    assert (
        strata.min() >= -64 * EPS32 * count and strata.max() <= 1 + 64 * EPS32 * count
    )


def test_examples_in_a_fixed_order_learn_all_noise_levels():
    """Examples in a fixed order learn as with independent times.

    A line a + bt is fitted to the noisy targets of one position. Its squared
    error over [0, 1] is 2/n per unit variance of the noise after n batches,
    exactly given the times, at every position.

    With one stratum per position, (i + u)/B, each would know a piece of 1/B of
    the interval alone: 66/n at the least. In the basis 1, √12(t − ½) the error
    times n is tr S⁻¹ = 2 − tr(S − I) + tr(S − I)² − …. Its first order has the
    variance 0.8/n, and the second is at most 20/n.
    """
    schedule, count, batches = schedules.edm(1e-3, 1.0), 8, 4000
    t = (draws_of_times(schedule, count, batches, seed=1) - 1e-3) / 0.999
    basis = np.stack(
        [np.ones_like(t), math.sqrt(12) * (t - 0.5)], -1
    )  # (batches, count, 2)
    moments = np.einsum("nia,nib->iab", basis, basis) / batches
    errors = np.trace(np.linalg.inv(moments), axis1=1, axis2=2)
    np.testing.assert_allclose(
        errors, 2, atol=4.5 * math.sqrt(0.8 / batches) + 20 / batches
    )


def test_log_normal_distribution_is_edms(x64):
    """On EDM's schedule log σ ~ N(−1.2, 1.2²).

    The truncation at σ_min and σ_max removes 1e-4 of the mass.
    """
    schedule = schedules.edm()
    sigma = np.asarray(
        losses.sample_times(jax.random.key(0), 1000, schedule, "log_normal")
    )
    quantiles = np.sort(stats.norm(-1.2, 1.2).cdf(np.log(sigma)))
    np.testing.assert_allclose(
        quantiles, (np.arange(1000) + 0.5) / 1000, atol=0.5 / 1000 + 1e-4
    )


# --------------------------------------------------------------------------- batch_loss


def denoiser_of_gaussian(schedule):
    """A network that is a little wrong on N(0, 0.8²), of the data kind."""

    def data(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return 0.9 * alpha * SIGMA_DATA**2 / (alpha**2 * SIGMA_DATA**2 + sigma**2) * x

    return predictions.denoiser(schedule, data, "data", sigma_data=SIGMA_DATA)


def test_likelihood_loss_is_the_same_under_every_distribution_of_time(x64):
    """E[loss] = ½∫|dSNR/dt| E‖D − x_0‖² dt / D whatever the distribution of t.

    By importance weights, within 4.5 standard errors. For this Gaussian D = c
    x and E(D − x_0)² = (cα − 1)²s² + c²σ². The integral is by quadrature in
    log-SNR.
    """
    schedule = schedules.vp_linear(t_min=1e-3)
    prediction = denoiser_of_gaussian(schedule)
    count, dimension = 16_384, 4
    x0 = SIGMA_DATA * np.random.default_rng(0).standard_normal((count, dimension))

    @quick
    def known():
        ends = [
            schedules.log_snr(schedule, jnp.asarray(end))
            for end in (schedule.t_max, schedule.t_min)
        ]
        log_snr = jnp.linspace(*ends, 4001)
        t = schedules.time_of_log_snr(schedule, log_snr)
        return log_snr, schedule.alpha(t), schedule.sigma(t)

    log_snr, alpha, sigma = map(np.asarray, known())
    gain = 0.9 * alpha * SIGMA_DATA**2 / (alpha**2 * SIGMA_DATA**2 + sigma**2)
    error = (gain * alpha - 1) ** 2 * SIGMA_DATA**2 + gain**2 * sigma**2
    exact = np.trapezoid(0.5 * np.exp(log_snr) * error, log_snr)
    run = quick(losses.batch_loss, static_argnames=("weighting", "times"))
    for distribution in losses.TIME_DISTRIBUTIONS:
        mean, values = map(
            np.asarray,
            run(
                jax.random.key(1),
                prediction,
                x0,
                weighting="likelihood",
                times=distribution,
            ),
        )
        assert float(mean) == pytest.approx(values.mean(), rel=1e-13)
        # stratification only lowers the variance of independent times
        assert abs(float(mean) - exact) < 4.5 * values.std() / math.sqrt(count), (
            distribution
        )


def test_each_example_has_its_own_time_noise_and_dropout_key():
    """With dropout the network receives a key per example.

    All differ, and differ from those of another step.
    """
    seen = []

    def net(x, t, key):
        jax.debug.callback(
            lambda *values: seen.append(tuple(map(np.asarray, values))),
            x,
            t,
            jax.random.key_data(key),
        )
        return x

    prediction = predictions.denoiser(schedules.edm(), net, "data")
    for seed in (0, 1):
        losses.batch_loss(
            jax.random.key(seed), prediction, np.zeros((5, 2)), dropout=True
        )
    jax.effects_barrier()
    assert len(seen) == 10
    for part in range(3):
        assert len({values[part].tobytes() for values in seen}) == 10


def test_conditions_reach_their_examples():
    """Example i gets condition i: with x_0 = condition and F = condition the
    loss is exactly 0.
    """
    prediction = predictions.denoiser(
        schedules.ve(), lambda x, t, c: c["label"], "data"
    )
    x0 = jnp.arange(6.0).reshape(3, 2)
    _, values = losses.batch_loss(
        jax.random.key(0), prediction, x0, condition={"label": x0}
    )
    np.testing.assert_array_equal(values, np.zeros(3))
    _, values = losses.batch_loss(
        jax.random.key(0), prediction, x0, condition={"label": x0[::-1]}
    )
    np.testing.assert_array_equal(values, [16.0, 0.0, 16.0])


def test_nan_is_reported_not_averaged_away():
    data = np.zeros((3, 2))
    data[1, 0] = np.nan
    mean, values = losses.batch_loss(
        jax.random.key(0), denoiser_of_gaussian(schedules.edm()), data
    )
    assert np.isnan(mean)
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])


PREDICTION, KEY = denoiser_of_gaussian(schedules.edm()), jax.random.key(0)
BAD_ARGUMENTS = {
    "weighting": (
        lambda: losses.batch_loss(KEY, PREDICTION, np.zeros((2, 2)), weighting="snr"),
        ValueError,
        (
            "weighting must be one of 'uniform', 'simple', 'likelihood', 'edm', "
            "'min_snr'; got 'snr'"
        ),
    ),
    "times": (
        lambda: losses.batch_loss(KEY, PREDICTION, np.zeros((2, 2)), times="cosine"),
        ValueError,
        "times must be one of 'uniform', 'log_snr', 'log_normal'; got 'cosine'",
    ),
    "condition": (
        lambda: losses.batch_loss(
            KEY, PREDICTION, np.zeros((2, 2)), condition=np.zeros(3)
        ),
        ValueError,
        r"condition must have leading axis 2 as x0, got shape \(3,\)",
    ),
    "key": (
        lambda: losses.batch_loss(0, PREDICTION, np.zeros((2, 2))),
        TypeError,
        "key must be a typed key",
    ),
    "no signal": (
        lambda: losses.sample_times(
            KEY, 4, schedules.rectified_flow(t_max=1.0), "log_snr"
        ),
        ValueError,
        "t_max=1.0; lower t_max",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_raises(name):
    assert_raises(*BAD_ARGUMENTS[name])


@pytest.mark.parametrize("distribution", losses.TIME_DISTRIBUTIONS)
def test_times_stay_inside_the_interval(distribution):
    """In float32, on every schedule, no time leaves [t_min, t_max] by more
    than rounding.
    """
    rows = [make() for make in SCHEDULES.values()]
    draw = quick(
        lambda key, rows: [
            losses.sample_times(key, 64, schedule, distribution) for schedule in rows
        ]
    )
    for schedule, t in zip(
        rows, map(np.asarray, draw(jax.random.key(1), rows)), strict=True
    ):
        assert t.min() >= float(schedule.t_min) * (1 - 2 * EPS32) and t.max() <= float(
            schedule.t_max
        ) * (1 + 2 * EPS32)
        assert np.unique(t).size == 64


def test_interior_times_have_positive_density(x64):
    """Every distribution reaches every interior time (its density divides the
    likelihood weight).
    """
    rows = [make() for make in SCHEDULES.values()]
    densities = quick(
        lambda rows: [
            losses.time_density(schedule, interior(schedule), distribution)
            for schedule in rows
            for distribution in losses.TIME_DISTRIBUTIONS
        ]
    )
    assert np.all(np.stack(densities(rows)) > 0)


ZERO = schedules.from_betas(
    schedules.rescale_zero_terminal_snr(np.linspace(1e-3, 0.2, 100))
)


@pytest.mark.parametrize("kind", ["data", "v", "velocity"])
def test_losses_at_no_signal_are_exact(kind):
    """Losses at α = 0, where SNR = 0 and D = −F for v.

    "edm" weighs ‖D − x_0‖² by 1/σ_d², "simple", "min_snr" and "likelihood" by
    0. "likelihood" is (α/σ)(σ′α − α′σ)/σ² = 0 there. Gradients by a parameter
    of the network likewise.
    """
    x0, noise = np.float32([0.4, -1.3]), np.float32([-0.7, 0.2])
    names = [name for name in losses.WEIGHTINGS if name != "uniform"]

    def all_losses(scale, schedule):
        t, prediction = (
            jnp.float32(1.0),
            predictions.denoiser(
                schedule, lambda x, t: scale * x, kind, sigma_data=SIGMA_DATA
            ),
        )
        error = prediction(schedules.perturb(schedule, x0, t, noise), t) - x0
        computed = [
            losses.denoising_loss(prediction, x0, noise, t, weighting=name)
            for name in names
        ]
        return jnp.stack(computed), jnp.mean(error**2) / SIGMA_DATA**2 * np.array(
            [name == "edm" for name in names]
        )

    rows = (schedules.rectified_flow(1.0), ZERO)
    run = quick(
        lambda scale: [
            jax.jvp(lambda s, row=row: all_losses(s, row), (scale,), (1.0,))
            for row in rows
        ]
    )
    for pair in run(0.3):
        for computed, expected in pair:  # values, then slopes
            np.testing.assert_allclose(computed, expected, rtol=32 * EPS32)


def test_weights_have_a_slope_in_time_where_there_is_no_signal():
    """SNR = ((1 − t)/t)² has value and slope 0 and second derivative 2 at t =
    1.

    "likelihood" has −½ of it.
    """
    schedule, expected = (
        schedules.rectified_flow(1.0),
        {"simple": 0.0, "edm": 0.0, "min_snr": 0.0, "likelihood": -1.0},
    )
    weigh = lambda t: {
        name: losses.WEIGHTINGS[name](schedule, t, SIGMA_DATA) for name in expected
    }
    for name, slope in quick(jax.jacfwd(weigh))(1.0).items():
        assert slope == pytest.approx(expected[name], rel=32 * EPS32), name


def test_a_noise_network_has_finite_weights_where_alpha_squared_underflows():
    """ "simple" is ‖ε̂ − ε‖² at any α, "likelihood" ½|λ′| times it.

    That is of the size of β(t) at t = 1 of VP with ∫β = 150.
    """
    schedule, x0, noise = (
        schedules.vp_linear(0.1, 300.0),
        jnp.float32([0.4, -1.3]),
        jnp.float32([-0.7, 0.2]),
    )
    prediction = predictions.denoiser(schedule, lambda x, t: 0.5 * x, "noise")
    names = ("simple", "likelihood")

    @quick
    def both(t):
        computed = [
            losses.denoising_loss(prediction, x0, noise, t, weighting=name)
            for name in names
        ]
        return 0.5 * schedules.perturb(schedule, x0, t, noise) - noise, computed

    for t in (1.0, 1e-5):
        error, computed = both(jnp.float32(t))
        # λ′ = −β/(1 − e^{−∫β}), with ∫β in float64
        integral, beta = 0.1 * t + 0.5 * 299.9 * t**2, 0.1 + 299.9 * t
        for weight, loss in zip(
            (1.0, -0.5 * beta / math.expm1(-integral)), computed, strict=True
        ):
            np.testing.assert_allclose(
                loss, weight * np.mean(np.asarray(error) ** 2), rtol=64 * EPS32
            )
