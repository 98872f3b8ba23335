"""The discrete chain: its kernels are Bayes' rule, and its bound is what the exact laws say it must be."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import ddpm, predictions, sampling, schedules, solvers, targets
from diffjax.ddpm import bound
from diffjax.solvers import driver
from tests.families import assert_refused, every

EPS32, EPS64 = float(np.finfo(np.float32).eps), float(np.finfo(np.float64).eps)
MEAN, STD = 0.3, 0.5
KEY = jax.random.key(0)


def vp_betas(steps):
    """β of the variance-preserving schedule with β(t) = 0.1 + 19.9 t, at t = i/T: "linear β" at any T."""
    return ddpm.betas_of(schedules.vp_linear(), steps)


def betas_of_log_snrs(log_snrs):
    """The betas whose chain has the given log-SNR at its indices."""
    log_bars = -np.logaddexp(0, -np.asarray(log_snrs))
    return -np.expm1(np.diff(log_bars, prepend=0.0))


def normal_1d(mean=MEAN, std=STD):
    return targets.gaussian([mean], std)


def mixture_1d():
    return targets.gaussian_mixture([0.4, 0.6], [[-0.9], [0.7]], [0.3, 0.4])


def spread_of(target, schedule):
    """Var(x_0 | x_t) of a target."""
    return predictions.variance(schedule, targets.denoiser(target, schedule))


def exact(target, chain, variance="posterior"):
    """The exact denoiser of a one-dimensional target, paired with Var(x_0 | x_t) for the variance "optimal"."""
    denoiser = targets.denoiser(target, chain)
    return ddpm.paired(denoiser, spread_of(target, chain)) if variance in ddpm.PAIRED else denoiser


def tables(chain):
    """SNR (T,), β, β̃, c_0, c_t and Var(x_0 | x_t) of N(·, STD²), each from the betas by the textbook's formula."""
    betas = np.asarray(chain.betas)
    bars = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], bars[:-1]])
    return {
        "snr": bars / (1 - bars),
        "beta": betas,
        "posterior": betas * (1 - before) / (1 - bars),
        "data": np.sqrt(before) * betas / (1 - bars),
        "state": np.sqrt(1 - betas) * (1 - before) / (1 - bars),
        "var": STD**2 * (1 - bars) / (bars * STD**2 + 1 - bars),
    }


def draws(target, count, seed=1):
    return jax.vmap(target.sample)(jax.random.split(jax.random.key(seed), count))


def bounds(estimator, denoiser, chain, xs, seed=2, **settings):
    """The estimator's Bound for each x, leading axis N."""
    run = jax.jit(jax.vmap(functools.partial(estimator, denoiser=denoiser, chain=chain, **settings)))
    return run(jax.random.split(jax.random.key(seed), len(xs)), x=xs)


def assert_mean(values, expected, sigmas=4.0, most=math.inf):
    """The mean of independent values is `expected` within 4 standard errors, which are at most `most`."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / math.sqrt(values.size)
    assert error < most, error
    assert abs(values.mean() - expected) < sigmas * error, (values.mean(), expected, error)


# ----------------------------------------------------------------------------------------------------------- β tables

BETAS = {
    "linear": ddpm.linear_betas,
    "cosine": ddpm.cosine_betas,
    "sigmoid": ddpm.sigmoid_betas,
    "constant": ddpm.constant_betas,
}


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_betas_are_a_chain(name, steps):
    """T float64 values in (0, 1) that never fall, from which `from_betas` makes a chain of T steps."""
    betas = BETAS[name](steps)
    assert betas.shape == (steps,) and betas.dtype == np.float64
    assert np.all(np.diff(betas) >= 0)
    assert schedules.from_betas(betas).steps == steps


def test_betas_are_their_laws():
    """Linear and constant as stated; cosine ᾱ_t = f(t/T)/f(0) below the clipping; sigmoid symmetric about its middle."""
    linear = ddpm.linear_betas(1000)
    assert (linear[0], linear[-1]) == (1e-4, 0.02)
    np.testing.assert_allclose(np.diff(linear), (0.02 - 1e-4) / 999, rtol=1e-10)  # differences of 0.02 to 2e-5
    np.testing.assert_array_equal(ddpm.constant_betas(3, 0.1), [0.1] * 3)
    cosine = ddpm.cosine_betas(1000)
    f = np.cos(0.5 * np.pi * (np.arange(1, 1000) / 1000 + 0.008) / 1.008) ** 2
    start = np.cos(0.5 * np.pi * 0.008 / 1.008) ** 2
    np.testing.assert_allclose(np.cumprod(1 - cosine[:-1]), f / start, rtol=1000 * EPS64 * 10)
    assert cosine[-1] == 0.999 and np.all(cosine[:-1] < 0.999)
    sigmoid = ddpm.sigmoid_betas(101, 0.001, 0.3, 5.0)
    np.testing.assert_allclose(sigmoid + sigmoid[::-1], 0.301, rtol=1e-14)
    np.testing.assert_allclose(sigmoid[0], 0.001 + 0.299 / (1 + math.exp(5.0)), rtol=1e-14)


# ------------------------------------------------------------------------------------------------------------ kernels


def test_forward_steps_compose_to_the_marginal(x64):
    """q(x_i | x_0) = ∫ q(x_i | x_{i−1}) q(x_{i−1} | x_0): means multiply, variances add, at every index."""
    chain, x0 = schedules.from_betas(ddpm.cosine_betas(20)), jnp.array([0.7, -1.2])
    mean, variance = x0, 0.0
    for i in range(1, 21):
        step = ddpm.forward_step(chain, mean, i)
        mean, variance = step.mean, (1 - chain.betas[i - 1]) * variance + step.variance
        marginal = ddpm.forward_marginal(chain, x0, i)
        np.testing.assert_allclose(marginal.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(marginal.variance, variance, rtol=1e-12)


@pytest.mark.parametrize("index", [2, 3, 10])
def test_posterior_is_bayes_rule(index, x64):
    """log q(x_{i−1} | x_i, x_0) = log q(x_i | x_{i−1}) + log q(x_{i−1} | x_0) − log q(x_i | x_0), at any three points."""
    chain = schedules.from_betas(ddpm.linear_betas(10, 0.01, 0.4))
    x0, before, x = (jax.random.normal(jax.random.key(i), (2, 3)) for i in range(3))
    found = ddpm.posterior(chain, x, x0, index).log_prob(before)
    step = ddpm.forward_step(chain, before, index).log_prob(x)
    marginals = [ddpm.forward_marginal(chain, x0, i).log_prob(y) for i, y in ((index - 1, before), (index, x))]
    size = max(abs(float(value)) for value in (found, step, *marginals))
    # the log densities round relatively; 1 − ᾱ and β̃ come by two routes, each to about 1e-13
    assert abs(float(found - (step + marginals[0] - marginals[1]))) < 1e-12 * size


@pytest.mark.parametrize("index", [1, 2, 10])
def test_optimal_step_of_a_gaussian_is_the_reverse_chain(index, x64):
    """With D and Var(x_0 | x_t) exact, p(x_{i−1} | x_i) is q(x_{i−1} | x_i), by Bayes' rule on the noised laws."""
    chain, target = schedules.from_betas(ddpm.linear_betas(10, 0.01, 0.4)), normal_1d()
    x, before = jnp.array([0.6]), jnp.array([0.1])
    found = ddpm.reverse_step(exact(target, chain, "optimal"), chain, x, index, "optimal").log_prob(before)
    law = target if index == 1 else target.noised(chain, (index - 1) / 10)
    step = ddpm.forward_step(chain, before, index).log_prob(x)
    expected = step + law.log_prob(before) - target.noised(chain, index / 10).log_prob(x)
    assert float(found) == pytest.approx(float(expected), rel=1e-11)


@pytest.mark.parametrize("index", every([2, 6, 10], (6,)))
def test_unconditioned_posterior_of_a_mixture(index, x64):
    """q(x_{i−1} | x_i) = ∫ q(x_{i−1} | x_i, x_0) q(x_0 | x_i) dx_0, by quadrature over x_0, is Bayes' rule on the noised
    mixtures, a mixture that is not Gaussian; the model's "optimal" step has its mean and variance.

    Trapezoid rule on analytic integrands of width at least √β̃ or 0.3 (spacings a tenth of that): exact to rounding.
    """
    chain, target = schedules.from_betas(ddpm.linear_betas(10, 0.05, 0.4)), mixture_1d()
    x, t = jnp.array([0.2]), index / 10
    x0 = jnp.linspace(-5, 5, 2001)[:, None]
    width = math.sqrt(float(chain.posterior().variance[index - 1]))
    before = jnp.arange(-5, 5, width / 10)[:, None]
    evidence = jax.vmap(lambda a: ddpm.forward_marginal(chain, a, index).log_prob(x) + target.log_prob(a))(x0)
    weights = jax.nn.softmax(evidence)  # q(x_0 | x_i)

    @jax.jit
    @jax.vmap
    def density_at(b):
        kernel = jax.vmap(lambda a: ddpm.posterior(chain, x, a, index).log_prob(b))(x0)
        return jnp.exp(kernel) @ weights

    density = density_at(before)
    step = jax.vmap(lambda b: ddpm.forward_step(chain, b, index).log_prob(x))(before)
    law = jax.vmap(target.noised(chain, (index - 1) / 10).log_prob)(before)
    expected = jnp.exp(step + law - target.noised(chain, t).log_prob(x))
    np.testing.assert_allclose(density, expected, rtol=1e-9, atol=1e-12)
    mean = float(jnp.sum(density * before[:, 0]) * width / 10)
    variance = float(jnp.sum(density * (before[:, 0] - mean) ** 2) * width / 10)
    model = ddpm.reverse_step(exact(target, chain, "optimal"), chain, x, index, "optimal")
    assert float(model.mean[0]) == pytest.approx(mean, rel=1e-9)
    assert float(model.variance[0]) == pytest.approx(variance, rel=1e-9)


def test_the_step_in_terms_of_the_noise(x64):
    """μ = (x − β ε̂/√(1 − ᾱ))/√(1 − β), as Algorithm 2 (20.2) is printed, is the mean of `reverse_step`."""
    chain, x = schedules.from_betas(vp_betas(10)), jnp.array([0.4, -2.0])
    for index in (1, 2, 10):
        beta, bar = chain.betas[index - 1], chain.alpha_bars[index - 1]
        noise = (x - jnp.sqrt(bar) * jnp.tanh(x)) / jnp.sqrt(1 - bar)
        printed = (x - beta * noise / jnp.sqrt(1 - bar)) / jnp.sqrt(1 - beta)
        found = ddpm.reverse_step(lambda x, t: jnp.tanh(x), chain, x, index).mean
        np.testing.assert_allclose(found, printed, rtol=1e-9)  # 1 − ᾱ and β cancel at little noise


def test_reverse_kernels_of_a_mixture_tend_to_gaussians(x64):
    """As β → 0 q(x_{t−1} | x_t) of a mixture becomes N(μ̃(D), β̃ + c_0² Var): its skewness falls as β^{3/2}, at one x_t."""
    target, schedule, t, skewness = mixture_1d(), schedules.vp_linear(), 0.3, []
    for step in (0.02, 0.005, 0.00125):
        alpha, sigma = (np.asarray([f(t - step), f(t)]) for f in (schedule.alpha, schedule.sigma))
        ratio = alpha[1] / alpha[0]
        before = (
            np.asarray(target.noised(schedule, t - step).means)[:, 0],
            *np.asarray([target.weights, target.noised(schedule, t - step).variances[:, 0]]),
        )
        means, weights, variances = before
        noise = sigma[1] ** 2 - ratio**2 * sigma[0] ** 2  # x_t given x_{t−1}
        x = np.linspace(-1, 1, 4001) * 12 * np.sqrt(noise) + 0.2 / ratio
        p = np.sum(weights * np.exp(-0.5 * (x[:, None] - means) ** 2 / variances) / np.sqrt(variances), -1)
        p = p * np.exp(-0.5 * (0.2 - ratio * x) ** 2 / noise)
        p = p / p.sum()
        mean = p @ x
        skewness.append(abs(p @ (x - mean) ** 3) / (p @ (x - mean) ** 2) ** 1.5)
        chain = schedules.from_betas([1 - alpha[0] ** 2, 1 - ratio**2])
        pair = exact(target, chain, "optimal")
        law = ddpm.reverse_step(pair, chain, jnp.array([0.2]), 2, "optimal")
        np.testing.assert_allclose([law.mean[0], law.variance[0]], [mean, p @ (x - mean) ** 2], rtol=1e-6)
    slopes = np.diff(np.log(skewness)) / np.log(0.25)
    np.testing.assert_allclose(slopes, 1.5, atol=0.15)  # third cumulant β³ over variance β^{3/2}


def test_autoregressive_reading_of_the_bound(x64):
    """KL(q_T ‖ p) + Σ E KL(q(x_{t−1} | x_t) ‖ p(x_{t−1} | x_t)) + H(x_0) is the bound's mean over the data.

    For N(m, s²) every unconditioned kernel is Gaussian; the last is q(x_0 | x_1) against the decoder.
    """
    chain, target = schedules.from_betas(vp_betas(4)), normal_1d()
    denoiser, known, count = exact(target, chain), tables(chain), 20_000
    xs = draws(target, count)
    end = target.noised(chain, 1.0)
    total = ddpm.gaussian_kl(ddpm.Gaussian(end.means[0], end.variances[0]), ddpm.Gaussian(0.0, 1.0))
    for index in range(1, 5):
        right = known["posterior"][index - 1] + known["data"][index - 1] ** 2 * known["var"][index - 1]
        own = known["posterior"][max(index, 2) - 1]
        total = total + ddpm.gaussian_kl(ddpm.Gaussian(jnp.zeros(1), right), ddpm.Gaussian(jnp.zeros(1), own))
    total = total + 0.5 * np.log(2 * np.pi * np.e * STD**2)
    assert_mean(bounds(ddpm.elbo, denoiser, chain, xs).total, float(total))


def test_learned_variance_lies_between_the_two(x64):
    """Share 0 is β̃ (the second index's at the first), 1 is β, ½ their geometric mean."""
    chain, x = schedules.from_betas(vp_betas(10)), jnp.array([0.4])
    plain = exact(normal_1d(), chain)
    for index in (1, 2, 10):
        low, high = (ddpm.reverse_step(plain, chain, x, index, name).variance for name in ("posterior", "forward"))
        for share, expected in ((0.0, low), (1.0, high), (0.5, jnp.sqrt(low * high))):
            pair = ddpm.paired(plain, lambda x, t, share=share: jnp.full_like(x, share))
            found = ddpm.reverse_step(pair, chain, x, index, "learned").variance
            np.testing.assert_allclose(found, expected, rtol=1e-13)
    assert float(ddpm.reverse_step(plain, chain, x, 1).variance) == pytest.approx(chain.posterior().variance[1])


@pytest.mark.parametrize("variance", ddpm.VARIANCES)
def test_reverse_step_is_the_solvers(variance, x64):
    """`solvers.ddpm` on consecutive indices is `reverse_step`: its mean and standard deviation, without and with noise
    of 1, to rounding."""
    chain, x = schedules.from_betas(vp_betas(8)), jnp.array([0.9])
    second = {"learned": lambda x, t: jnp.full_like(x, 0.3), "optimal": spread_of(mixture_1d(), chain)}
    denoiser = exact(mixture_1d(), chain)
    denoiser = ddpm.paired(denoiser, second[variance]) if variance in ddpm.PAIRED else denoiser
    problem, grid = driver.diffusion(chain, denoiser), jnp.array([5 / 8, 4 / 8])
    mean, above = (
        driver.run(driver.Source(lambda *_, z=z: jnp.full(1, z)), solvers.ddpm(variance), problem, x, grid)[0]
        for z in (0.0, 1.0)
    )
    law = ddpm.reverse_step(denoiser, chain, x, 5, variance)
    np.testing.assert_allclose(mean, law.mean, rtol=64 * EPS64)
    np.testing.assert_allclose((above - mean) ** 2, np.broadcast_to(law.variance, (1,)), rtol=1e-12)


def test_optimal_variance_samples_a_gaussian_exactly_in_few_steps(x64):
    """With Var(x_0 | x_t) known a step of any length keeps the law of a Gaussian, and at a zero end returns D."""
    chain, target = schedules.from_betas(vp_betas(64)), normal_1d()
    problem, solver = driver.diffusion(chain, exact(target, chain, "optimal")), solvers.ddpm("optimal")
    grid = jnp.array([1.0, 0.4, 0.1, 1 / 64])

    def end(x, noise):
        return driver.run(driver.Source(lambda step, _: noise[step]), solver, problem, x, grid)[0]

    start, exact_end = (target.noised(chain, t) for t in (1.0, 1 / 64))
    by_start, by_noise = jax.jit(jax.jacfwd(end, argnums=(0, 1)))(start.mean(), jnp.zeros((3, 1)))
    variance = by_start[0, 0] ** 2 * start.covariance()[0, 0] + jnp.sum(by_noise**2)
    np.testing.assert_allclose(variance, exact_end.covariance()[0, 0], rtol=1e-10)
    last = sampling.sample(KEY, problem.denoiser, chain, solver, jnp.array([1 / 64, 0.0]), x_init=jnp.array([0.2]))
    np.testing.assert_allclose(last, problem.denoiser.first(jnp.array([0.2]), 1 / 64), rtol=1e-12)


def test_interpolation_has_the_law_of_latents_between(x64):
    """On N(m, s²) with the optimal variance: mean m + K√ᾱ(x_w − m) and variance V_i + K²(1 − ᾱ_i) − V_1, K the gain of
    E[x_0 | x_i] and V_i = Var(x_0 | x_i); V_1 is what the last step, D, leaves out."""
    chain, index, count = schedules.from_betas(vp_betas(32)), 9, 20_000
    denoiser, weights = exact(normal_1d(), chain, "optimal"), jnp.array([0.0, 0.3, 1.0])
    run = jax.jit(jax.vmap(lambda key: ddpm.interpolate(
        key, denoiser, chain, jnp.array([-1.0]), jnp.array([2.0]), weights, index, "optimal")))  # fmt: skip
    found = run(jax.random.split(KEY, count))[..., 0]  # (count, 3)
    alpha, noise = np.sqrt(chain.alpha_bars[index - 1]), 1 - chain.alpha_bars[index - 1]
    spread = tables(chain)["var"]
    gain = alpha * STD**2 / (alpha**2 * STD**2 + noise)
    variance = spread[index - 1] + gain**2 * noise - spread[0]
    for k, between in enumerate(-1.0 + 3.0 * np.asarray(weights)):
        mean = MEAN + gain * alpha * (between - MEAN)
        assert_mean(found[:, k], mean)
        assert_mean((found[:, k] - mean) ** 2, variance)


def test_kl_of_gaussians(x64):
    """KL = E_p[log p − log q], by Gauss–Hermite quadrature, exact for these quadratics; and no cancellation near 0."""
    p, q = ddpm.Gaussian(jnp.array([0.3, -1.0]), 0.4), ddpm.Gaussian(jnp.array([0.1, 0.2]), jnp.array([0.9, 0.2]))
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    total = 0.0
    for a, wa in zip(nodes, weights, strict=True):
        for b, wb in zip(nodes, weights, strict=True):
            x = p.mean + math.sqrt(p.variance) * jnp.array([a, b])
            total += wa * wb / (2 * math.pi) * (p.log_prob(x) - q.log_prob(x))
    assert float(ddpm.gaussian_kl(p, q)) == pytest.approx(float(total), rel=1e-13)
    h = 1e-6  # KL(N(0,1) ‖ N(0, 1 + h)) = h²/4 − h³/3 + …; log(1 + h) rounds to ε/h
    found = ddpm.gaussian_kl(ddpm.Gaussian(jnp.zeros(1), 1.0), ddpm.Gaussian(jnp.zeros(1), 1 + h))
    assert float(found) == pytest.approx(h**2 / 4, rel=4 / 3 * h + 4 * EPS64 / h)


def test_gaussian_samples_its_density(x64):
    law = ddpm.Gaussian(jnp.array([0.5, -1.0]), jnp.array([0.25, 4.0]))
    x = np.asarray(jax.vmap(law.sample)(jax.random.split(KEY, 20_000)))
    for d in range(2):
        assert_mean(x[:, d], float(law.mean[d]))
        assert_mean((x[:, d] - float(law.mean[d])) ** 2, float(law.variance[d]))


# ----------------------------------------------------------------------------------------------------------- decoders


@pytest.mark.parametrize("levels", [np.linspace(-1, 1, 256), np.linspace(0, 16, 17), [-1.0, 0.1, 0.2, 3.0], [0.0, 1.0]])
def test_discretised_decoder_sums_to_one(levels, x64):
    """Σ_k P(c_k) = 1 whatever mean and variance, for its ends reach to infinity; each gradient is finite."""
    levels = jnp.asarray(levels)

    def log_p(mean, variance, level):
        return ddpm.discretised_log_prob(ddpm.Gaussian(mean, variance), level, levels)

    run = jax.jit(jax.vmap(jax.value_and_grad(log_p, (0, 1)), (None, None, 0)))
    for mean in (-40.0, -0.3, 0.05, 7.0):
        for variance in (1e-4, 0.1, 30.0):
            values, slopes = run(mean, variance, levels)
            # K log-masses, each relative to ε |log P|: at most 745 where it is not 0
            assert float(jnp.sum(jnp.exp(values))) == pytest.approx(1, abs=levels.size * 800 * EPS64)
            assert np.all(np.isfinite(slopes))


def test_discretised_decoder_is_the_density_times_the_spacing(x64):
    """P(c) = ∫ over the bin = width · N(c) (1 + width² N″/24N + …): for inner levels, width 0.01 and unit variance."""
    levels = jnp.linspace(-3, 3, 601)
    law = ddpm.Gaussian(0.2, 1.0)
    x = levels[200:400:20]
    found = jax.jit(jax.vmap(lambda c: ddpm.discretised_log_prob(law, c, levels)))(x)
    expected = jax.vmap(law.log_prob)(x) + math.log(0.01) + 0.01**2 * ((x - 0.2) ** 2 - 1) / 24
    np.testing.assert_allclose(found, expected, atol=0.01**4)


# ---------------------------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("steps", every([2, 10, 100], (2, 10)))
def test_optimal_bound_of_a_gaussian_has_no_gap(steps, x64):
    """With v = β̃ + c_0² Var, decoder N(D, Var(x_0 | x_1)) and p(x_T) = q_T the model is the chain itself: E[bound |
    x] = −log p(x), for every x.
    """
    chain, target, count = schedules.from_betas(vp_betas(steps)), normal_1d(), 8000
    end = target.noised(chain, 1.0)
    prior = ddpm.Gaussian(end.means[0], end.variances[0])
    for x in (0.3, 1.1):
        xs = jnp.full((count, 1), x)
        found = bounds(ddpm.elbo, exact(target, chain, "optimal"), chain, xs, variance="optimal", prior=prior)
        assert_mean(found.total, -float(target.log_prob(xs[0])), most=0.03)


def gaps(chain, variance):
    """The mean gap per dimension of each term t ≥ 2 for the exact denoiser of N(·, STD²): the optimal step's KL.

    The step's variance is right times w, w = 1/(1 + u) for β̃, u = (SNR_{t−1} − SNR_t) Var, and the gap ½(1/w − 1 + log
    w).
    """
    known = tables(chain)
    ratio = 1 + (known["snr"][:-1] - known["snr"][1:]) * known["var"][1:]
    if variance == "forward":
        ratio = ratio * known["posterior"][1:] / known["beta"][1:]
    return 0.5 * (ratio - 1 - np.log(ratio))


@pytest.mark.parametrize(
    "variance, expected",
    [("posterior", {10: 0.206, 100: 0.773, 1000: 0.443}), ("forward", {10: 0.077, 100: 0.0108, 1000: 0.00109})],
)
def test_gap_of_the_fixed_variances(variance, expected, x64):
    """E[bound + log p] = ½ Σ [u − log(1 + u)] per Gaussian dimension with β̃, which does not vanish as T grows; with β it
    falls as 1/T. Its sum over t = 2 … T for linear β is as stated, and the bound's mean agrees.
    """
    for steps, gap in expected.items():
        chain = schedules.from_betas(vp_betas(steps))
        assert gaps(chain, variance).sum() == pytest.approx(gap, rel=5e-3)
    for steps, count in ((10, 20_000), (100, 4000)):
        chain, target = schedules.from_betas(vp_betas(steps)), normal_1d()
        end = target.noised(chain, 1.0)
        prior = ddpm.Gaussian(end.means[0], end.variances[0])
        xs = draws(target, count)
        decoder = tables(chain)["var"][0]
        found = bounds(
            ddpm.elbo, exact(target, chain), chain, xs, variance=variance, prior=prior, decoder_variance=decoder
        )
        gap = found.total + jax.vmap(target.log_prob)(xs)
        assert_mean(gap, gaps(chain, variance).sum(), most=0.03)


def test_gap_of_the_posterior_variance_tends_to_half_eulers_constant():
    """At t = i/T the SNR falls as 1/i at first, u → 1/(i − 1), and ½ Σ [1/k − log(1 + 1/k)] = γ/2 = 0.2886."""
    snr = np.exp(schedules.from_betas(ddpm.betas_of(schedules.vp_linear(t_min=1e-7), 1_000_000)).log_snrs)
    u = (snr[:-1] - snr[1:]) / (STD**-2 + snr[1:])
    # the rest falls as the reverse of T: 0.1546 over it at T = 1000, 0.0039 at 1e5
    assert 0.5 * np.sum(u - np.log1p(u)) == pytest.approx(0.5 * np.euler_gamma, abs=2e-3)


@pytest.mark.parametrize("variance", ["forward", "posterior"])
def test_each_term_of_a_gaussian(variance, x64):
    """E[L_{t−1}] = ½ [β̃/v − 1 + log(v/β̃) + c_0² Var(x_0 | x_t)/v], over data too, and L_T in closed form."""
    chain, target, count = schedules.from_betas(vp_betas(8)), normal_1d(), 20_000
    xs = draws(target, count)
    found = bounds(ddpm.elbo, exact(target, chain), chain, xs, variance=variance)
    known = {name: column[1:] for name, column in tables(chain).items()}
    v = known["beta"] if variance == "forward" else known["posterior"]
    ratio = v / known["posterior"]
    expected = 0.5 * (1 / ratio - 1 + np.log(ratio) + known["data"] ** 2 * known["var"] / v)
    assert found.denoising.shape == (count, 7)
    for term, value in zip(np.asarray(found.denoising).T, expected, strict=True):
        assert_mean(term, value)
    bar = np.prod(1 - chain.betas)
    np.testing.assert_allclose(
        found.prior, 0.5 * (1 - bar - 1 - np.log(1 - bar) + bar * np.asarray(xs)[:, 0] ** 2), rtol=1e-9
    )


def test_gap_is_the_kl_of_the_posteriors(x64):
    """log p(x) + E[bound] = KL(q(x_{1:T} | x) ‖ p(x_{1:T} | x)), all Gaussian and linear: from matrices.

    Both laws are x = A z + b of standard normal z in the order of their own chains.
    """
    steps = 12
    chain, target = schedules.from_betas(vp_betas(steps)), normal_1d()
    denoiser, x = exact(target, chain), 0.8
    p_mean, p_map = np.zeros(steps + 1), np.zeros((steps + 1, steps + 1))
    p_map[steps, steps] = 1.0
    q_mean, q_map = np.array([x] + [0.0] * steps), np.zeros((steps + 1, steps + 1))
    for i in range(steps, 0, -1):
        at = [ddpm.reverse_step(denoiser, chain, jnp.array([value]), i) for value in (0.0, 1.0)]
        offset, slope = float(at[0].mean[0]), float(at[1].mean[0] - at[0].mean[0])
        p_mean[i - 1], p_map[i - 1] = offset + slope * p_mean[i], slope * p_map[i]
        p_map[i - 1, i - 1] = math.sqrt(float(at[0].variance))
    for i in range(1, steps + 1):
        keep = math.sqrt(1 - chain.betas[i - 1])
        q_mean[i], q_map[i] = keep * q_mean[i - 1], keep * q_map[i - 1]
        q_map[i, i] = math.sqrt(chain.betas[i - 1])
    joint = p_map @ p_map.T
    gain = joint[1:, 0] / joint[0, 0]
    mean, cov = p_mean[1:] + gain * (x - p_mean[0]), joint[1:, 1:] - np.outer(gain, joint[0, 1:])
    q_cov, gap = (q_map @ q_map.T)[1:, 1:], q_mean[1:] - mean
    inverse = np.linalg.inv(cov)
    kl = 0.5 * (np.trace(inverse @ q_cov) - steps + gap @ inverse @ gap)
    kl += 0.5 * (np.linalg.slogdet(cov)[1] - np.linalg.slogdet(q_cov)[1])
    log_p = -0.5 * ((x - p_mean[0]) ** 2 / joint[0, 0] + math.log(2 * math.pi * joint[0, 0]))
    found = bounds(ddpm.elbo, denoiser, chain, jnp.full((20_000, 1), x))
    assert_mean(np.asarray(found.total) + log_p, kl, most=kl / 10)


def path_bounds(denoiser, chain, xs, variance, seed=3):
    """log q(x_{1:T} | x) − log p(x, x_{1:T}) of whole sampled paths, (N,)."""

    def one(key, x):
        total, before = 0.0, x
        for i in range(1, chain.steps + 1):
            step = ddpm.forward_step(chain, before, i)
            state = step.sample(jax.random.fold_in(key, i))
            model = ddpm.reverse_step(denoiser, chain, state, i, variance)
            total, before = total + step.log_prob(state) - model.log_prob(before), state
        return total - ddpm.Gaussian(0.0, 1.0).log_prob(before)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), len(xs)), xs)


@pytest.mark.parametrize("variance", every(["forward", "posterior", "optimal"], ("optimal",)))
def test_three_routes_to_the_bound_agree(variance, x64):
    """E over noise of `elbo`, of the split with two random variables, and of whole paths' log densities is one number.

    On a mixture, so that no term is Gaussian in closed form; the same x in all three.
    """
    chain, target, count = schedules.from_betas(ddpm.linear_betas(4, 0.05, 0.6)), mixture_1d(), 40_000
    denoiser, xs = exact(target, chain, variance), draws(target, count)
    found = [np.asarray(bounds(f, denoiser, chain, xs, variance=variance).total, np.float64)
             for f in (ddpm.elbo, ddpm.two_variable_elbo)]  # fmt: skip
    found.append(np.asarray(path_bounds(denoiser, chain, xs, variance)))
    for other in found[1:]:
        assert_mean(other - found[0], 0.0, most=0.03)
    # and all exceed the entropy: a bound in expectation
    log_p = np.asarray(jax.vmap(target.log_prob)(xs))
    assert (found[0] + log_p).mean() > 4 * (found[0] + log_p).std() / math.sqrt(count)


def test_the_split_often_printed_is_looser(x64):
    """Σ E KL(q(x_t | x_{t−1}) ‖ p(x_t | x_{t+1})) draws x_t without regard to x_{t+1}, and exceeds the bound's terms by
    Σ_t k Cov(x_t, x_{t+1} | x_{t−1})/v = Σ_t k √(1 − β_{t+1}) β_t / v, where k = c_0 ∂D/∂x + c_{t+1} and v are of
    index t + 1.
    """
    steps, count = 5, 20_000
    chain, target = schedules.from_betas(ddpm.linear_betas(steps, 0.02, 0.1)), normal_1d()
    denoiser, xs = exact(target, chain), draws(normal_1d(), count)

    def printed(key, x):
        total = 0.0
        for t in range(1, steps):
            keys = jax.random.split(jax.random.fold_in(key, t), 3)
            before = x if t == 1 else ddpm.forward_marginal(chain, x, t - 1).sample(keys[0])
            here = ddpm.forward_step(chain, before, t)
            after = ddpm.forward_step(chain, here.sample(keys[1]), t + 1).sample(keys[2])
            total = total + ddpm.gaussian_kl(here, ddpm.reverse_step(denoiser, chain, after, t + 1))
        return total

    found = jax.jit(jax.vmap(printed))(jax.random.split(jax.random.key(3), count), xs)
    right = bounds(ddpm.two_variable_elbo, denoiser, chain, xs).denoising.sum(-1)
    known = tables(chain)
    gain = np.sqrt(known["snr"] * (1 + known["snr"])) * known["var"]  # ∂D/∂x = α Var/σ², σ² = 1/(1 + SNR)
    slope = (known["data"] * gain + known["state"])[1:]
    excess = np.sum(slope * np.sqrt(1 - chain.betas[1:]) * chain.betas[:-1] / known["posterior"][1:])
    assert excess > steps - 1  # more than a nat a term
    assert_mean(found - right, excess)


def test_bound_of_a_mixture_tightens_with_the_number_of_steps(x64):
    """At fixed log-SNR end points E[bound + log p] falls as 1/T: a Riemann sum of the mmse over SNR. Slope within 0.2.

    The ends ±8 add nothing visible: the decoder N(D, σ²/α²) errs by (σ/α s)⁴/4 < 1e-5 nats, the prior by less.
    """
    target, count, found = mixture_1d(), 20_000, []
    xs = draws(target, count)
    log_p = np.asarray(jax.vmap(target.log_prob)(xs))
    counts = (64, 128, 256)
    for steps in counts:
        chain = schedules.from_betas(betas_of_log_snrs(np.linspace(8, -8, steps)))
        total = bounds(ddpm.elbo, exact(target, chain), chain, xs, decoder_variance=math.exp(-8)).total
        gap = np.asarray(total) + log_p
        found.append(gap.mean())
        assert found[-1] > 4 * gap.std() / math.sqrt(count)
    slope = np.polyfit(np.log(counts), np.log(found), 1)[0]
    assert slope == pytest.approx(-1, abs=0.2)


def test_rates_and_distortions(x64):
    """The rates are the bound's own terms summed from the top, in bits per dimension; E[rmse²] is Var(x_0 | x_t)."""
    chain, target, count = schedules.from_betas(vp_betas(10)), normal_1d(), 10_000
    denoiser, xs = exact(target, chain), draws(target, count)
    keys = jax.random.split(jax.random.key(2), count)
    found = jax.vmap(lambda key, x: ddpm.rate_distortion(key, denoiser, chain, x, chunk=4))(keys, xs)
    bound = jax.vmap(lambda key, x: ddpm.elbo(key, denoiser, chain, x))(keys, xs)
    assert found.rate.shape == found.rmse.shape == (count, 10)
    np.testing.assert_allclose(found.rate[:, -1] * math.log(2), bound.prior, rtol=1e-12)
    terms = -np.diff(found.rate, axis=-1) * math.log(2)
    np.testing.assert_allclose(terms, bound.denoising, rtol=1e-9, atol=1e-12)
    for square, value in zip(np.asarray(found.rmse).T ** 2, tables(chain)["var"], strict=True):
        assert_mean(square, value)
    bits = bound.bits_per_dim((1,), 256)
    np.testing.assert_allclose(found.rate[:, 0] + bound.reconstruction / math.log(2), bits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", every([1, 3, 9, 50], (3,)))
def test_chunks_change_nothing(chunk, x64):
    """The noise of an index depends on key and index alone, so any chunk gives the same terms and gradients."""
    chain, x = schedules.from_betas(vp_betas(9)), jnp.array([0.4])

    def total(mean, estimator, chunk):
        denoiser = targets.denoiser(targets.gaussian(mean, STD), chain)
        return estimator(KEY, denoiser, chain, x, variance="forward", chunk=chunk).total

    for estimator in (ddpm.elbo, ddpm.two_variable_elbo):
        whole, parts = (jax.value_and_grad(total)(jnp.array([MEAN]), estimator, c) for c in (None, chunk))
        np.testing.assert_allclose(np.hstack(parts), np.hstack(whole), rtol=1e-12)


def test_chunks_bound_the_memory():
    """447 examples of 64 entries over 1000 indices: all at once need 1000 × 447 × 64 floats, 20 of them 1/50 of that."""
    chain = schedules.from_betas(ddpm.linear_betas(1000))
    denoiser = predictions.denoiser(chain, lambda x, t: jnp.sin(x), "noise")
    xs, keys = jnp.zeros((447, 64)), jax.random.split(KEY, 447)

    def scratch(chunk):
        run = jax.vmap(lambda key, x: ddpm.elbo(key, denoiser, chain, x, chunk=chunk).total)
        return jax.jit(run).lower(keys, xs).compile().memory_analysis().temp_size_in_bytes

    whole, parts = scratch(None), scratch(20)
    assert whole > 1000 * 447 * 64 * 4
    assert parts < whole / 20  # some copies of one chunk


def test_lattice_bound_of_a_coin_is_tight(x64):
    """Data ±1 with the exact D = tanh(αx/σ²): −log P = ln 2, and the bound's excess is the Riemann sum's alone.

    Σ ½ (SNR_{t−1} − SNR_t) mmse(SNR_t) ≥ ln 2, by at most the greatest log-SNR step h: mmse falls, so the sum lies
    between ½∫ mmse dSNR and e^h of it.
    """
    coin = targets.empirical([[-1.0], [1.0]])
    steps, count = 200, 10_000
    chain = schedules.from_betas(betas_of_log_snrs(np.linspace(5, -12, steps)))
    xs = draws(coin, count)
    denoiser = targets.denoiser(coin, chain)
    for x, t in ((0.3, 0.2), (-1.2, 0.9)):
        closed = math.tanh(chain.alpha(t) * x / chain.sigma(t) ** 2)
        assert float(denoiser(jnp.array([x]), t)[0]) == pytest.approx(closed, rel=1e-12)
    found = bounds(ddpm.elbo, denoiser, chain, xs, levels=[-1.0, 1.0])
    total = np.asarray(found.total)
    error = total.std() / math.sqrt(count)
    assert total.mean() > math.log(2) - 4 * error
    assert total.mean() < math.log(2) * math.exp(17 / (steps - 1)) + 4 * error
    bits = found.bits_per_dim((1,), 2)
    np.testing.assert_allclose(bits, total / math.log(2), rtol=1e-13)


def test_gradient_by_the_betas_is_that_of_finite_differences(x64):
    """The noise is held, so the bound is a smooth function of the betas: central differences of step h, error h²."""
    betas, x = vp_betas(6), jnp.array([0.7])

    def total(betas, variance):
        chain = schedules.from_betas(betas)
        return ddpm.elbo(KEY, exact(mixture_1d(), chain, variance), chain, x, variance=variance).total

    for variance in ("forward", "posterior", "optimal"):
        value = jax.jit(jax.value_and_grad(functools.partial(total, variance=variance)))
        gradient = np.asarray(value(betas)[1])
        found = [(value(betas + d)[0] - value(betas - d)[0]) / (2 * d.sum()) for d in np.diag(1e-5 * betas)]
        # h² f‴ relative 1e-9, rounding ε|f|/(hf′) 1e-9 for terms of size 10
        np.testing.assert_allclose(gradient, found, rtol=1e-6, atol=1e-6 * np.abs(gradient).max())


def test_new_betas_and_parameters_do_not_retrace():
    before = bound._terms._cache_size()
    for shift in (0.0, 0.001):
        chain = schedules.from_betas(ddpm.linear_betas(7) + shift)
        denoiser = targets.denoiser(targets.gaussian([0.1, shift], 0.5), chain)
        ddpm.elbo(KEY, denoiser, chain, np.array([0.4, shift]))
    assert bound._terms._cache_size() == before + 1


def test_float32_bound_is_float64s():
    """At T = 1000 the tables are made in float64 on the host: each float32 term errs by rounding, not by the table.

    D − x_0 rounds to ε(|x_0| + |D|), its square over Var relative to 2ε/√Var, Var from 1e-4 on: 2e-5; log-SNR in float32
    moves x_t by 1e-6 of σ. With D = 0 only the coefficients remain: ½ c_0²/β̃ x², to a few ε.
    """
    chain = schedules.from_betas(ddpm.linear_betas(1000))
    zero = lambda x, t: jnp.zeros_like(x)  # noqa: E731
    found = ddpm.elbo(KEY, zero, chain, np.array([0.7], np.float32)).denoising
    snr = np.asarray(tables(chain)["snr"])
    np.testing.assert_allclose(found, 0.5 * (snr[:-1] - snr[1:]) * np.float32(0.7) ** 2, rtol=10 * EPS32)


# ------------------------------------------------------------------------------------------------- training objectives


@pytest.mark.parametrize("variance", every(ddpm.VARIANCES, ("optimal", "posterior")))
def test_bound_losses_are_the_terms_of_the_bound(variance, x64):
    """`bound_loss` at index t under the same key is `elbo`'s own term of index t, with levels and without."""
    chain = schedules.from_betas(vp_betas(6))
    second = spread_of(normal_1d(), chain) if variance == "optimal" else lambda x, t: 0.3 + 0.1 * jnp.cos(x)
    denoiser = exact(normal_1d(), chain)
    denoiser = ddpm.paired(denoiser, second) if variance in ddpm.PAIRED else denoiser
    for levels in (None, [-1.0, 0.0, 0.5]):
        x = jnp.array([0.5])
        bound = ddpm.elbo(KEY, denoiser, chain, x, variance=variance, levels=levels)
        loss = lambda i, x=x, levels=levels: ddpm.bound_loss(KEY, denoiser, chain, x, i, variance, levels)  # noqa: E731
        found = jax.jit(jax.vmap(loss))(jnp.arange(1, 7))
        np.testing.assert_allclose(found, jnp.concatenate([bound.reconstruction[None], bound.denoising]), rtol=1e-12)
        assert float(loss(3)) == pytest.approx(float(found[2]), rel=1e-12)


@pytest.mark.parametrize("index", every([1, 2, 500, 1000], (1, 2)))
def test_bound_loss_of_a_certain_softmax_has_a_finite_gradient(index):
    """In float32 a softmax over levels is certain at little noise: Var = 0 there, and the bound still trains."""
    chain, levels = schedules.from_betas(ddpm.linear_betas(1000)), np.linspace(-1, 1, 17, dtype=np.float32)

    def loss(shift):
        net = lambda features, c_noise: features + shift  # noqa: E731
        pair = predictions.moments(predictions.categorical(chain, net, levels))
        return ddpm.bound_loss(KEY, pair, chain, levels, index, "optimal", levels)

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.arange(17.0 * 17))
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_simple_loss_is_the_error_of_the_noise(x64):
    """‖ε̂ − ε‖²/D with ε̂ the denoiser's own view, where the network's ε̂ is ε + δ: δ² at every index."""
    chain, x, delta = schedules.from_betas(vp_betas(6)), jnp.array([0.5, -0.2]), 0.3
    for index in (1, 4, 6):
        row_t = index / 6

        def net(x_t, t, row_t=row_t):
            return (x_t - chain.alpha(row_t) * x) / chain.sigma(row_t) + delta

        denoiser = predictions.denoiser(chain, net, "noise")
        assert float(ddpm.simple_loss(KEY, denoiser, chain, x, index)) == pytest.approx(delta**2, rel=1e-10)


@pytest.mark.parametrize("variance", ["forward", "posterior"])
def test_bound_loss_is_the_weighted_loss(variance, x64):
    """Up to what no network changes, L_{t−1} is β²/(2v(1 − β)(1 − ᾱ)) ‖ε̂ − ε‖²: equal differences between networks."""
    chain, x, index = schedules.from_betas(vp_betas(6)), jnp.array([0.5, -0.2]), 4
    known = tables(chain)
    v = known["beta" if variance == "forward" else "posterior"][index - 1]
    beta, bar = known["beta"][index - 1], np.prod(1 - chain.betas[:index])
    losses = []
    for slope in (0.4, 0.9):
        denoiser = predictions.denoiser(chain, lambda x, t, slope=slope: slope * x, "noise")
        simple = ddpm.simple_loss(KEY, denoiser, chain, x, index) * 2
        bound = ddpm.bound_loss(KEY, denoiser, chain, x, index, variance)
        losses.append((float(bound), float(beta**2 / (2 * v * (1 - beta) * (1 - bar)) * simple)))
    (bound_a, weighted_a), (bound_b, weighted_b) = losses
    assert bound_a - bound_b == pytest.approx(weighted_a - weighted_b, rel=1e-10)


def test_hybrid_loss_stops_the_mean_in_the_bound(x64):
    """∂/∂(mean) is that of the simple loss, ∂/∂(variance) that of λ T/D times the bound; its value is their sum."""
    chain, x, index = schedules.from_betas(vp_betas(6)), jnp.array([0.5, -0.2]), 3

    def denoiser(params):
        data = predictions.denoiser(chain, lambda x, t: params["mean"] * x, "noise")
        return ddpm.paired(data, lambda x, t: jax.nn.sigmoid(params["variance"] * x))

    params = {"mean": jnp.array(0.8), "variance": jnp.array(0.4)}
    simple = lambda p: ddpm.simple_loss(KEY, denoiser(p).first, chain, x, index)  # noqa: E731
    bound = lambda p: ddpm.bound_loss(KEY, denoiser(p), chain, x, index, "learned")  # noqa: E731
    hybrid = lambda p: ddpm.hybrid_loss(KEY, denoiser(p), chain, x, index, bound_weight=0.01)  # noqa: E731
    scale = 0.01 * 6 / 2
    assert float(hybrid(params)) == pytest.approx(float(simple(params) + scale * bound(params)), rel=1e-12)
    gradient, of_simple, of_bound = (jax.grad(f)(params) for f in (hybrid, simple, bound))
    assert float(gradient["mean"]) == pytest.approx(float(of_simple["mean"]), rel=1e-12)
    assert float(gradient["variance"]) == pytest.approx(scale * float(of_bound["variance"]), rel=1e-12)
    assert abs(float(of_bound["mean"])) > 1e-3


def test_random_index_is_uniform_and_makes_the_losses_unbiased(x64):
    """E over key of T × bound_loss is the bound without L_T, within 4 standard errors."""
    chain, target, count = schedules.from_betas(vp_betas(6)), normal_1d(), 40_000
    denoiser, xs = exact(target, chain), jnp.full((count, 1), 0.4)
    keys = jax.random.split(jax.random.key(5), count)
    one = jax.jit(jax.vmap(lambda key, x: 6 * ddpm.bound_loss(key, denoiser, chain, x)))(keys, xs)
    all_terms = bounds(ddpm.elbo, denoiser, chain, xs)
    whole = np.asarray(all_terms.denoising.sum(-1) + all_terms.reconstruction)
    error = math.sqrt(np.var(one) / count + whole.var() / count)
    assert abs(float(jnp.mean(one)) - whole.mean()) < 4 * error


def test_importance_sampling_is_unbiased_with_the_least_variance(x64):
    """Σ p_t w_t L_t is the mean of L whatever the history, floor and p; with L_t known and no floor w L is constant."""
    losses = np.array([5.0, 0.1, 0.7, 2.0])
    history = ddpm.loss_history(4, 3)
    for seed in range(3):
        p = ddpm.index_probabilities(history, 0.1)
        assert float(p.sum()) == pytest.approx(1, rel=1e-14)
        np.testing.assert_allclose(p, 0.25)  # until all are full
        history = ddpm.record(history, np.arange(1, 5), losses)
        indices, weights = ddpm.sample_indices(jax.random.key(seed), 5, history, 0.1)
        np.testing.assert_allclose(weights, 1 / (4 * ddpm.index_probabilities(history, 0.1)[indices - 1]), rtol=1e-12)
    p = ddpm.index_probabilities(history, 0.0)
    np.testing.assert_allclose(p, losses / losses.sum(), rtol=1e-14)
    np.testing.assert_allclose(losses / (4 * p), losses.mean(), rtol=1e-14)  # no variance at all
    mixed = ddpm.index_probabilities(history, 0.2)
    np.testing.assert_allclose(mixed, 0.8 * p + 0.05, rtol=1e-14)
    indices, weights = ddpm.sample_indices(jax.random.key(9), 40_000, history, 0.2)
    assert_mean(weights * losses[np.asarray(indices) - 1], losses.mean())
    for index in range(1, 5):
        assert_mean(np.asarray(indices) == index, float(mixed[index - 1]))


def test_history_keeps_the_last_losses(x64):
    """Of an index seen n + 2 times, also twice in a batch, the last n losses remain, and p ∝ √mean L²."""
    history = jax.jit(ddpm.record)(ddpm.loss_history(2, 2), jnp.array([1, 1, 2, 1]), jnp.array([9.0, 3.0, 1.0, 4.0]))
    np.testing.assert_array_equal(history.counts, [3, 1])
    np.testing.assert_array_equal(ddpm.index_probabilities(history), [0.5, 0.5])
    history = ddpm.record(history, [2, 2], [2.0, 0.0])
    np.testing.assert_array_equal(np.sort(history.losses), [[3.0, 4.0], [0.0, 2.0]])
    scale = np.sqrt([12.5, 2.0])
    np.testing.assert_allclose(ddpm.index_probabilities(history, 0.0), scale / scale.sum(), rtol=1e-14)


# ------------------------------------------------------------------------------------------------------ continuous time


@pytest.mark.parametrize("make", [
    lambda: schedules.learned(jax.random.key(0), log_snr_max=5.0, log_snr_min=-12.0),
    lambda: schedules.vp_linear(t_min=5e-3, t_max=1.0),
    lambda: schedules.rectified_flow(t_min=0.1, t_max=0.995),
])  # fmt: skip
def test_continuous_bound_of_a_coin_is_log_two(make, x64):
    """½∫₀^∞ mmse dSNR = ln 2 for data ±1, and the lattice decoder adds nothing where ±1 are told apart: on any schedule.

    What lies below the schedule's least SNR is at most half of it (4e-5 for linear VP), and the prior's KL as much; above
    the greatest, 80 at least, the mmse is under e^{−SNR/2}.
    """
    schedule, coin = make(), targets.empirical([[-1.0], [1.0]])
    denoiser, xs = targets.denoiser(coin, schedule), draws(coin, 4000)
    keys = jax.random.split(jax.random.key(1), len(xs))
    run = jax.jit(jax.vmap(
        lambda key, x: ddpm.continuous_elbo(key, denoiser, schedule, x, 64, levels=[-1.0, 1.0], chunk=16)
    ))  # fmt: skip
    found = run(keys, xs)
    assert found.denoising.shape == (4000, 64)
    assert_mean(found.total, math.log(2), most=0.02)


def test_continuous_bound_of_a_gaussian_has_no_gap(x64):
    """With p(x_T) = q_T and decoder variance Var(x_0 | x_{t_min}), E[bound] = −log p(x) at every x."""
    schedule, target = schedules.vp_linear(t_min=1e-2), normal_1d()
    alpha, sigma = schedule.alpha(schedule.t_min), schedule.sigma(schedule.t_min)
    end = target.noised(schedule, 1.0)
    xs = jnp.full((4000, 1), 0.9)
    settings = {
        "count": 256,
        "decoder_variance": STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2),
        "prior": ddpm.Gaussian(end.means[0], end.variances[0]),
    }
    run = lambda key, x: ddpm.continuous_elbo(key, targets.denoiser(target, schedule), schedule, x, **settings).total  # noqa: E731
    found = jax.jit(jax.vmap(run))(jax.random.split(KEY, len(xs)), xs)
    assert_mean(found, -float(target.log_prob(xs[0])), most=0.02)


def test_gradient_by_a_learned_schedule_is_that_of_the_variance(x64):
    """For a Gaussian h = ½ SNR (x_0 − D)² has E h = ½ SNR V, E h² = 3 (E h)²: the mean loss ∫|λ′| E h dt does not move
    with the schedule's shape (but for what t_min > 0 lets through, 1e-5 of it), the mean square is 3∫ λ′² (E h)² dt, and
    both gradients are those of the samples within 4.5 standard errors.
    """
    start, target = schedules.learned(jax.random.key(1), hidden=3, log_snr_max=6.0, log_snr_min=-6.0), normal_1d()
    count = 40_000
    xs, keys = draws(target, count), jax.random.split(jax.random.key(7), count)
    shape = {"weight": jnp.array([0.3, -0.8, 0.5]), "slope": start.slope}

    def schedule_of(shape):
        return type(start)(**{**vars(start), **shape})

    def mean_square(shape):
        schedule = schedule_of(shape)
        t = jnp.linspace(schedule.t_min, schedule.t_max, 4001)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        rate = schedules.log_snr_rate(schedule, t)
        known = 0.5 * alpha**2 * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return 3 * jnp.trapezoid(rate**2 * known**2, t) * (schedule.t_max - schedule.t_min)

    def sampled(loss):
        def of_shape(shape, key, x):
            schedule = schedule_of(shape)
            return loss(key, targets.denoiser(target, schedule), schedule, x)

        return jax.jit(jax.vmap(jax.grad(of_shape), (None, 0, 0)))(shape, keys, xs)

    flat = lambda tree: np.concatenate([np.asarray(tree["weight"]), np.asarray(tree["slope"])], -1)  # noqa: E731
    mean, square, expected = (
        flat(tree)
        for tree in (sampled(ddpm.continuous_loss), sampled(ddpm.schedule_variance_loss), jax.grad(mean_square)(shape))
    )
    assert np.abs(expected).max() > 0.1
    for k in range(6):
        assert_mean(mean[:, k], 0.0, sigmas=4.5)
        assert_mean(square[:, k], expected[k], sigmas=4.5)


# -------------------------------------------------------------------------------------------------------------- errors

CHAIN = schedules.from_betas([0.1, 0.2, 0.3])
PLAIN = lambda x, t: x  # noqa: E731
X = np.array([0.0, 1.0], np.float32)
REFUSED = {
    "steps": (lambda: ddpm.linear_betas(1), ValueError, "steps must be at least 2, got 1"),
    "steps type": (lambda: ddpm.cosine_betas(10.0), TypeError, "steps must be an integer"),
    "first": (lambda: ddpm.linear_betas(10, 0.0), ValueError, r"first must lie in \(0, 1\), got 0.0"),
    "last": (lambda: ddpm.sigmoid_betas(10, last=1.0), ValueError, r"last must lie in \(0, 1\), got 1.0"),
    "beta": (lambda: ddpm.constant_betas(10, -0.1), ValueError, r"beta must lie in \(0, 1\), got -0.1"),
    "offset": (lambda: ddpm.cosine_betas(10, 0.0), ValueError, "offset must be positive, got 0"),
    "clip": (lambda: ddpm.cosine_betas(10, clip=1.5), ValueError, r"clip must lie in \(0, 1\), got 1.5"),
    "reach": (lambda: ddpm.sigmoid_betas(10, reach=-1.0), ValueError, "reach must be positive, got -1"),
    "index low": (lambda: ddpm.posterior(CHAIN, X, X, 0), ValueError, "index must be between 1 and 3, got 0"),
    "index high": (lambda: ddpm.forward_step(CHAIN, X, 4), ValueError, "index must be between 1 and 3, got 4"),
    "index type": (lambda: ddpm.forward_marginal(CHAIN, X, 0.5), TypeError, "index must be an integer, got 0.5"),
    "index array": (lambda: ddpm.simple_loss(KEY, PLAIN, CHAIN, X, jnp.int32(9)), ValueError, "between 1 and 3, got 9"),
    "chain": (
        lambda: ddpm.elbo(KEY, PLAIN, schedules.vp_linear(), X),
        TypeError,
        "chain must be made by schedules.from_betas",
    ),
    "variance": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, variance="small"),
        ValueError,
        "variance must be one of 'forward', 'posterior', 'optimal', 'learned'; got 'small'",
    ),
    "pair": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, variance="learned"),
        ValueError,
        "denoiser must return a pair for variance 'learned', see ddpm.paired",
    ),
    "shape": (
        lambda: ddpm.reverse_step(lambda x, t: x[:1], CHAIN, X, 2),
        ValueError,
        r"denoiser must return its example's shape \(2,\), got \(1,\)",
    ),
    "level": (lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X + 0.2, levels=[0, 1]), ValueError, "x must take values among the 2"),
    "levels": (lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, levels=[1, 0]), ValueError, "levels must increase"),
    "decoder": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, decoder_variance=0.0),
        ValueError,
        "decoder_variance must be positive, got 0",
    ),
    "prior": (lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, prior=1.0), TypeError, "prior must be a ddpm.Gaussian"),
    "chunk": (lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, chunk=0), ValueError, "chunk must be at least 1, got 0"),
    "key": (lambda: ddpm.elbo(0, PLAIN, CHAIN, X), TypeError, "key must be a typed key"),
    "nan": (lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X * np.nan), ValueError, "x must be finite, got 2 NaN"),
    "denoiser": (lambda: ddpm.simple_loss(KEY, 3, CHAIN, X), TypeError, r"denoiser must be callable as denoiser\(x, t\)"),
    "second": (lambda: ddpm.paired(PLAIN, None), TypeError, r"second must be callable as second\(x, t\)"),
    "bound weight": (
        lambda: ddpm.hybrid_loss(KEY, PLAIN, CHAIN, X, bound_weight=-1.0),
        ValueError,
        "bound_weight must be 0 or more, got -1",
    ),
    "history": (
        lambda: ddpm.record(ddpm.loss_history(3), [1, 2], [0.1]),
        ValueError,
        r"losses must have shape \(2,\), got \(1,\)",
    ),
    "floor": (lambda: ddpm.index_probabilities(ddpm.loss_history(3), 2.0), ValueError, r"floor must lie in \[0, 1\], got 2"),
    "count": (lambda: ddpm.continuous_elbo(KEY, PLAIN, CHAIN, X, count=0), ValueError, "count must be at least 1, got 0"),
    "posterior shapes": (lambda: ddpm.posterior(CHAIN, X, X[:1], 2), ValueError, r"x0 must have shape \(2,\), got \(1,\)"),
    "history index": (
        lambda: ddpm.record(ddpm.loss_history(3), [0, 4], [0.1, 0.2]),
        ValueError,
        r"indices must lie in 1 … 3, got \[0, 4\]",
    ),
    "decoder shape": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, decoder_variance=np.ones(3)),
        ValueError,
        r"decoder_variance must have shape \(\) or \(2,\), got \(3,\)",
    ),
    "prior variance": (
        lambda: ddpm.elbo(KEY, PLAIN, CHAIN, X, prior=ddpm.Gaussian(0.0, -1.0)),
        ValueError,
        "prior.variance must be positive, got -1",
    ),
    "law variance": (
        lambda: ddpm.discretised_log_prob(ddpm.Gaussian(0.0, 0.0), X, [0, 1]),
        ValueError,
        "law.variance must be positive, got 0",
    ),
    "continuous time": (
        lambda: ddpm.continuous_loss(KEY, PLAIN, CHAIN, X, t=5.0),
        ValueError,
        r"t must lie in \[0.33.*, 1.0\], got 5",
    ),
    "continuous shape": (
        lambda: ddpm.continuous_elbo(KEY, lambda x, t: x[:1], CHAIN, X),
        ValueError,
        r"denoiser must return its example's shape \(2,\), got \(1,\)",
    ),
    "betas of": (lambda: ddpm.betas_of(schedules.edm(), 10), ValueError, "schedule must have t_max = 1, got 80"),
    "betas of ve": (lambda: ddpm.betas_of(schedules.ve(), 10), ValueError, "schedule must preserve variance"),
    "interpolate": (
        lambda: ddpm.interpolate(KEY, PLAIN, CHAIN, X, X[:1], [0.5], 2),
        ValueError,
        r"end must have shape \(2,\), got \(1,\)",
    ),
    "interpolate index": (
        lambda: ddpm.interpolate(KEY, PLAIN, CHAIN, X, X, [0.5], 4),
        ValueError,
        "index must be between 1 and 3, got 4",
    ),
    "unpaired": (
        lambda: sampling.sample(KEY, PLAIN, CHAIN, solvers.ddpm("optimal"), shape=(2,)),
        TypeError,
        r"denoiser must return a pair \(D, second\), see ddpm.paired",
    ),
    "paired": (
        lambda: sampling.sample(KEY, ddpm.paired(PLAIN, PLAIN), CHAIN, solvers.ddpm(), shape=(2,)),
        TypeError,
        "denoiser must return an array of its example's shape",
    ),
    "schedule": (lambda: ddpm.continuous_loss(KEY, PLAIN, 1.0, X), TypeError, "schedule must have alpha"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    assert_refused(*REFUSED[name])
