"""The discrete chain: its betas are their laws, its kernels Bayes' rule, its decoders sum to one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import ddpm, sampling, schedules, solvers
from diffjax.solvers import driver
from tests.chains import (
    KEY,
    MEAN,
    STD,
    assert_mean,
    bounds,
    draws,
    exact,
    mixture_1d,
    normal_1d,
    spread_of,
    tables,
    vp_betas,
)
from tests.families import EPS64, every

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
    """Σ_k P(c_k) = 1 whatever mean and variance, for its ends reach to infinity; so that Σ_k ∂P(c_k) = 0."""
    levels = jnp.asarray(levels)

    def log_p(mean, variance, level):
        return ddpm.discretised_log_prob(ddpm.Gaussian(mean, variance), level, levels)

    run = jax.jit(jax.vmap(jax.value_and_grad(log_p, (0, 1)), (None, None, 0)))
    for mean in (-40.0, -0.3, 0.05, 7.0):
        for variance in (1e-4, 0.1, 30.0):
            values, slopes = run(mean, variance, levels)
            # K log-masses, each relative to ε |log P|: at most 745 where it is not 0
            assert float(jnp.sum(jnp.exp(values))) == pytest.approx(1, abs=levels.size * 800 * EPS64)
            for slope in slopes:  # Σ_k P_k ∂log P_k, each product to its own rounding; a NaN would fail
                rates = np.exp(values) * slope
                assert abs(np.sum(rates)) <= levels.size * 800 * EPS64 * np.abs(rates).max()


def test_discretised_decoder_is_the_density_times_the_spacing(x64):
    """P(c) = ∫ over the bin = width · N(c) (1 + width² N″/24N + …): for inner levels, width 0.01 and unit variance."""
    levels = jnp.linspace(-3, 3, 601)
    law = ddpm.Gaussian(0.2, 1.0)
    x = levels[200:400:20]
    found = jax.jit(jax.vmap(lambda c: ddpm.discretised_log_prob(law, c, levels)))(x)
    expected = jax.vmap(law.log_prob)(x) + math.log(0.01) + 0.01**2 * ((x - 0.2) ** 2 - 1) / 24
    np.testing.assert_allclose(found, expected, atol=0.01**4)


def test_a_chain_without_terminal_signal_has_finite_bounds(x64):
    """β_T = 1: L_T = 0, the terms and their gradient by the denoiser's scale are finite, losses of the last index too.

    The term at T is ½ (SNR_{T−1} − 0) E‖x_0 − D‖²: exactly, for D = s x at x_T = ε, which `reverse_step` shows.
    """
    chain = schedules.from_betas(schedules.rescale_zero_terminal_snr(np.linspace(0.02, 0.4, 8)))
    key, x0 = jax.random.key(0), jnp.array([0.7, -1.2])

    @jax.jit
    def all_terms(scale):
        def denoiser(x, t):
            return scale * x

        bound = ddpm.elbo(key, denoiser, chain, x0)
        two = ddpm.two_variable_elbo(key, denoiser, chain, x0)
        return bound, two, ddpm.simple_loss(key, denoiser, chain, x0, 8), ddpm.bound_loss(key, denoiser, chain, x0, 8)

    bound, two, simple, last = all_terms(0.3)
    slopes = jax.jit(jax.jacfwd(all_terms))(0.3)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((bound, two, slopes)))
    assert float(bound.prior) == 0 and float(simple) == 0  # the noise's error at α = 0
    bar = np.cumprod(1 - np.asarray(chain.betas))[-2]
    step = ddpm.reverse_step(lambda x, t: 0.3 * x, chain, x0, 8)
    np.testing.assert_allclose(step.mean, np.sqrt(bar) * 0.3 * x0, rtol=1e-12)
    noise = np.asarray(ddpm.kernels.state_at(key, chain, x0, 8, 1.0))
    np.testing.assert_allclose(last, 0.5 * bar / (1 - bar) * np.sum((x0 - 0.3 * noise) ** 2), rtol=1e-10)


def test_values_that_are_no_level_have_no_probability_when_traced():
    """Traced pixels 0 and 255 of levels −1 … 1 are not on the lattice: −∞, not the probability of the nearest level."""
    levels = np.linspace(-1, 1, 256, dtype=np.float32)
    score = jax.jit(jax.vmap(lambda x: ddpm.discretised_log_prob(ddpm.Gaussian(0.0, 0.25), x, levels)))
    found = score(np.float32([[levels[3], levels[200]], [0.0, 255.0], [levels[3], 0.5 * (levels[7] + levels[8])]]))
    np.testing.assert_array_equal(np.isneginf(found), [False, True, True])
    np.testing.assert_allclose(
        found[0], ddpm.discretised_log_prob(ddpm.Gaussian(0.0, 0.25), levels[[3, 200]], levels), rtol=1e-5
    )
