"""Distributions of the training time as values: densities, quantiles and moments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax import flows, losses, predictions, schedules
from diffjax.losses import times
from diffjax.types import pytree
from tests.families import EPS32, Own, quick

KEY = jax.random.key(5)


@pytree
class Bare:
    """A user's distribution, which states its quantiles and density alone."""

    def quantile(self, schedule, u):
        return schedule.t_min + u**2 * (schedule.t_max - schedule.t_min)

    def density(self, schedule, t):
        width = schedule.t_max - schedule.t_min
        return 0.5 / jnp.sqrt((t - schedule.t_min) * width)


def within(schedule, u):
    """Between powers and the ends, with a range of shares at the upper end."""
    share = jnp.minimum(1.25 * u, 1.0)
    return schedule.t_min + (schedule.t_max - schedule.t_min) * share * (1 + share) / 2


DISTRIBUTIONS = {
    "uniform": times.uniform,
    "log_snr": times.log_snr,
    "log_normal": times.log_normal,
    "log_normal in a tail": lambda: times.log_normal(-7.0, 0.7),
    "logit_normal": lambda: times.logit_normal(0.5, 0.8),
    "shifted uniform": lambda: times.shifted("uniform", 3.0),
    "shifted down": lambda: times.shifted(times.log_normal(), 0.4),
    "shifted log_snr": lambda: times.shifted("log_snr", 2.0),
    "from_quantile": lambda: times.from_quantile(within),
    "of a user, shifted": lambda: times.shifted(Bare(), 1.5),
}
SCHEDULES = {
    "vp_linear": schedules.vp_linear,
    "edm": schedules.edm,
    "rectified_flow": schedules.rectified_flow,
    "own": lambda: Own(1.5, 1e-3, 0.99),
}
PAIRS = [(name, "rectified_flow") for name in DISTRIBUTIONS] + [
    ("log_normal in a tail", "edm"),
    ("shifted uniform", "own"),
    ("shifted down", "vp_linear"),
    ("shifted log_snr", "edm"),
]
NODES, WEIGHTS = (array for array in np.polynomial.legendre.leggauss(300))


@pytest.mark.parametrize(("name", "schedule"), PAIRS)
def test_density_quantile_and_cdf_are_of_one_distribution(name, schedule, x64):
    """The density integrates to one, to each CDF, and is 1/q′.

    The integral is Gauss–Legendre's in log-SNR between the quantiles of 0 and
    of 1 (0.01 for a density with a root's singularity there).
    """
    distribution, schedule = DISTRIBUTIONS[name](), SCHEDULES[schedule]()
    first = 0.01 if "user" in name else 0.0
    shares = jnp.array([first, 0.1, 0.35, 0.7, 0.95, 1.0])

    @quick
    def known(schedule):
        quantiles = distribution.quantile(schedule, shares)
        back = times.cdf(distribution, schedule, quantiles)
        slope = jax.vmap(jax.grad(lambda u: distribution.quantile(schedule, u)))
        product = slope(shares[1:-1]) * distribution.density(schedule, quantiles[1:-1])
        # log-SNRs between neighbouring quantiles, and their weights
        ends = schedules.log_snr(schedule, quantiles)
        low, high = ends[1:, None], ends[:-1, None]
        log_snrs = low + (high - low) * (NODES + 1) / 2
        t = schedules.time_of_log_snr(schedule, log_snrs)
        rate = -schedules.log_snr_rate(schedule, t)
        heights = distribution.density(schedule, t) / rate * (high - low) / 2
        return quantiles, back, product, heights @ WEIGHTS

    quantiles, back, product, masses = map(np.asarray, known(schedule))
    assert (np.diff(quantiles) > 0).all()
    assert quantiles[-1] <= schedule.t_max * (1 + 1e-12)
    # Bisection and the Newton step of t(λ) are to rounding, about 1e-13 of a share.
    np.testing.assert_allclose(back, shares, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(product, 1, rtol=1e-7)
    np.testing.assert_allclose(np.cumsum(masses), shares[1:] - first, rtol=1e-8)


def test_what_lies_beyond_the_schedule_is_cut_off_exactly(x64):
    """A normal of log σ, cut to σ in [0.002, 80], against SciPy's."""
    schedule, mean, std = schedules.edm(), 3.0, 1.5
    ends = np.log([0.002, 80.0])
    cut = stats.truncnorm(*(ends - mean) / std, loc=mean, scale=std)
    sigma = np.array([0.5, 5.0, 60.0, 79.0])
    distribution = times.log_normal(mean, std)
    density = distribution.density(schedule, sigma)
    np.testing.assert_allclose(density, cut.pdf(np.log(sigma)) / sigma, rtol=1e-12)
    quantiles = distribution.quantile(schedule, np.array([0.1, 0.5, 0.99]))
    np.testing.assert_allclose(np.log(quantiles), cut.ppf([0.1, 0.5, 0.99]), rtol=1e-9)


def test_a_far_tail_keeps_its_precision_in_float32():
    """Eight standard deviations above the mean, where 1 − Φ rounds to 0."""
    schedule = schedules.edm(sigma_min=1.0, sigma_max=80.0)
    distribution = times.log_normal(-8.0, 1.0)
    t = losses.sample_times(KEY, 64, schedule, distribution)
    assert len(np.unique(t)) == 64 and 1 <= t.min() and t.max() < 3
    with pytest.raises(ValueError, match=r"times must have mass in log σ/α in \[0, "):
        losses.sample_times(KEY, 64, schedule, times.log_normal(-20.0, 1.0))


def test_moments_are_those_of_the_closed_forms(x64):
    """Within 4.5 standard errors of independent draws, which strata only lower.

    The mean of s u/(1 + (s − 1) u) at s = 3 is 3/2 − ¾ log 3.
    """
    count = 4096
    wide = schedules.ve(sigma_min=1e-6, sigma_max=1e6)
    flow = schedules.rectified_flow(t_max=1 - 1e-6)
    t = losses.sample_times(KEY, count, wide, times.log_normal(0.3, 2))
    log_sigma = np.log(wide.sigma(t))
    error = 4.5 / count**0.5
    assert abs(log_sigma.mean() - 0.3) < 2 * error
    assert abs(log_sigma.std() - 2) < 2 * error / 2**0.5
    t = np.asarray(losses.sample_times(KEY, count, flow, times.logit_normal(0.4, 0.7)))
    logit = np.log(t) - np.log1p(-t)
    assert abs(logit.mean() - 0.4) < 0.7 * error
    assert abs(logit.std() - 0.7) < 0.7 * error / 2**0.5
    t = np.asarray(losses.sample_times(KEY, count, flow, times.shifted("uniform", 3.0)))
    assert abs(t.mean() - (1.5 - 0.75 * np.log(3))) < error * t.std() + 1e-5


def test_shifts_are_those_of_the_paper(x64):
    """t ← s t/(1 + (s − 1) t) on a rectified flow, and log s of a mean elsewhere."""
    flow, u = schedules.rectified_flow(t_max=1 - 1e-9), np.array([0.2, 0.5, 0.9])
    t = times.uniform().quantile(flow, u)
    moved = times.shifted("uniform", 2.5).quantile(flow, u)
    # What moves out cuts 1e-9 of the shares off.
    np.testing.assert_allclose(moved, 2.5 * t / (1 + 1.5 * t), rtol=1e-7)
    wide = schedules.ve(sigma_min=1e-9, sigma_max=1e9)
    moved = times.shifted(times.log_normal(-1.0, 0.8), 2.5).density(wide, u)
    known = times.log_normal(-1.0 + np.log(2.5), 0.8).density(wide, u)
    np.testing.assert_allclose(moved, known, rtol=1e-9)


def test_names_and_values_give_the_same_bits():
    schedule = schedules.vp_linear()
    x0 = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2)
    prediction = predictions.denoiser(schedule, lambda x, t: t * x, "v")
    t = jnp.linspace(0.1, 0.9, 4)
    calls = [
        lambda d: losses.sample_times(KEY, 5, schedule, d),
        lambda d: losses.time_density(schedule, t, d),
        lambda d: losses.batch_loss(
            KEY, prediction, x0, weighting="likelihood", times=d
        )[1],
        lambda d: flows.examples(KEY, flows.interpolant(), x0, times=d).t,
    ]
    for name in losses.TIME_DISTRIBUTIONS:
        value = getattr(times, name)()
        for call in calls:
            np.testing.assert_array_equal(call(name), call(value))


def test_a_new_parameter_does_not_retrace_and_has_a_gradient():
    schedule = schedules.edm()
    traces = []

    @jax.jit
    def mean(distribution):
        traces.append(1)
        t = distribution.quantile(schedule, jnp.array([0.3, 0.6]))
        return jnp.mean(jnp.log(t))

    for value in (-1.0, 0.0):
        mean(times.log_normal(value, jnp.float32(1.0)))
    assert len(traces) == 1
    slope = jax.grad(lambda m: mean(times.log_normal(m, 1.0)))(0.0)
    # A quantile z of N(0, 1) cut to [a, b] has dz/dm = −((1 − u) φ(a) + u φ(b))/φ(z)
    # as both ends move by −dm, here −3e-5. log σ rounds by ε at up to log 80.
    a, b, u = np.log(0.002), np.log(80.0), np.array([0.3, 0.6])
    z = stats.norm.ppf(stats.norm.cdf(a) * (1 - u) + stats.norm.cdf(b) * u)
    cut = ((1 - u) * stats.norm.pdf(a) + u * stats.norm.pdf(b)) / stats.norm.pdf(z)
    assert float(slope) == pytest.approx(1 - cut.mean(), abs=4.4 * EPS32)


BAD = {
    "std": lambda: times.log_normal(0.0, 0.0),
    "mean": lambda: times.logit_normal(np.inf),
    "shift": lambda: times.shifted("uniform", -1.0),
    "distribution must be one of": lambda: times.shifted("uniformly", 1.0),
    "quantile must be callable|quantile": lambda: times.from_quantile(0.5),
    r"distribution must have quantile\(schedule, u\)": functools.partial(
        losses.sample_times, KEY, 2, schedules.edm(), object()
    ),
    r"std must be at most .*, got 1e\+06: .* log_snr": functools.partial(
        losses.sample_times, KEY, 2, schedules.edm(), times.log_normal(0.0, 1e6)
    ),
    "quantile must grow with u": functools.partial(
        losses.sample_times,
        KEY,
        2,
        schedules.edm(),
        times.from_quantile(lambda schedule, u: 1.0 - u),
    ),
    r"α\(t_max\)|α > 0|alpha": functools.partial(
        losses.sample_times,
        KEY,
        2,
        schedules.rectified_flow(t_max=1.0),
        times.shifted("uniform", 2.0),
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_raises(message):
    with pytest.raises((TypeError, ValueError), match=message):
        BAD[message]()


BEYOND = times.log_normal(100.0)
BACKWARDS = times.from_quantile(lambda schedule, u: 1.0 - u)


@pytest.mark.parametrize("distribution", [BEYOND, BACKWARDS])
@pytest.mark.parametrize("schedule", [schedules.edm(), schedules.vp_cosine()])
def test_a_concrete_distribution_is_checked_in_a_compiled_step_too(
    distribution, schedule
):
    with pytest.raises(ValueError, match="times must have mass|must grow with u"):
        jax.eval_shape(lambda k: losses.sample_times(k, 2, schedule, distribution), KEY)


def test_functions_of_a_uniform_number_serve_compiled_steps():
    """With numbers of their own, known or traced, and without."""
    schedule = schedules.rectified_flow()
    net = jax.tree_util.Partial(lambda x, t: 0.0 * x)
    prediction = predictions.denoiser(schedule, net, "velocity")

    def loss(key, power):
        distribution = times.from_quantile(lambda schedule, u: 0.01 + 0.9 * u**power)
        return losses.batch_loss(key, prediction, jnp.ones((4, 1)), times=distribution)

    known = jax.jit(lambda key: loss(key, 2.0)[0])(KEY)
    assert float(known) == pytest.approx(float(jax.jit(loss)(KEY, 2.0)[0]), rel=1e-6)
    assert float(known) == pytest.approx(float(loss(KEY, 2.0)[0]), rel=1e-6)


def test_shares_lie_between_zero_and_one_at_the_ends():
    """Rounding would take them out, as those of a distribution shifted afterwards."""
    schedule = schedules.edm()
    ends = np.array([schedule.t_min, schedule.t_max])
    for distribution in (times.log_normal(8.0, 0.5), times.log_normal(-7.0, 0.7)):
        shares = times.cdf(distribution, schedule, jnp.asarray(ends))
        np.testing.assert_array_equal(np.clip(shares, 0, 1), shares)
