"""The discrete chain: its betas are their distributions, its kernels Bayes'
rule, its decoders sum to one.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import ddpm, distributions, predictions, sampling, schedules, solvers
from diffjax.solvers import driver, noise_source
from tests.chains import (
    KEY,
    MEAN,
    STD,
    assert_mean,
    bounds,
    draws,
    end_distribution,
    exact,
    mixture_1d,
    normal_1d,
    spread_of,
    tables,
    vp_betas,
)
from tests.families import EPS64, every, quick

# ----------------------------------------------------------------------------- β tables

BETAS = {
    "linear": ddpm.linear_betas,
    "cosine": ddpm.cosine_betas,
    "sigmoid": ddpm.sigmoid_betas,
    "constant": ddpm.constant_betas,
}


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_betas_are_a_chain(name, steps):
    """T float64 values in (0, 1) that never fall, from which `from_betas`
    makes a chain of T steps.
    """
    betas = BETAS[name](steps)
    assert betas.shape == (steps,) and betas.dtype == np.float64
    assert np.all(np.diff(betas) >= 0)
    assert schedules.from_betas(betas).steps == steps


def test_betas_are_their_formulas():
    """Linear and constant as stated.

    Cosine ᾱ_t = f(t/T)/f(0) below the clipping. Sigmoid symmetric about its
    middle.
    """
    linear = ddpm.linear_betas(1000)
    assert (linear[0], linear[-1]) == (1e-4, 0.02)
    np.testing.assert_allclose(
        np.diff(linear), (0.02 - 1e-4) / 999, rtol=1e-10
    )  # differences of 0.02 to 2e-5
    np.testing.assert_array_equal(ddpm.constant_betas(3, 0.1), [0.1] * 3)
    cosine = ddpm.cosine_betas(1000)
    f = np.cos(0.5 * np.pi * (np.arange(1, 1000) / 1000 + 0.008) / 1.008) ** 2
    start = np.cos(0.5 * np.pi * 0.008 / 1.008) ** 2
    np.testing.assert_allclose(
        np.cumprod(1 - cosine[:-1]), f / start, rtol=1000 * EPS64 * 10
    )
    assert cosine[-1] == 0.999 and np.all(cosine[:-1] < 0.999)
    sigmoid = ddpm.sigmoid_betas(101, 0.001, 0.3, 5.0)
    np.testing.assert_allclose(sigmoid + sigmoid[::-1], 0.301, rtol=1e-14)
    np.testing.assert_allclose(
        sigmoid[0], 0.001 + 0.299 / (1 + math.exp(5.0)), rtol=1e-14
    )


# ------------------------------------------------------------------------------ kernels


def test_forward_steps_compose_to_the_marginal(x64):
    """q(x_i | x_0) = ∫ q(x_i | x_{i−1}) q(x_{i−1} | x_0): means multiply,
    variances add, at every index.
    """
    chain, x0, indices = (
        schedules.from_betas(ddpm.cosine_betas(20)),
        np.array([0.7, -1.2]),
        np.arange(1, 21),
    )
    betas = jnp.asarray(chain.betas)

    @quick
    def members(x0):
        def move(state, i):
            step = ddpm.forward_step(chain, state[0], i)
            after = step.loc, (1 - betas[i - 1]) * state[1] + step.var
            return after, after

        composed = jax.lax.scan(move, (x0, 0.0), indices)[1]
        marginals = jax.vmap(lambda i: ddpm.forward_marginal(chain, x0, i))(indices)
        return composed, (marginals.loc, marginals.var)

    for composed, marginal in zip(*members(x0), strict=True):
        np.testing.assert_allclose(marginal, composed, rtol=1e-12)


def test_posterior_is_bayes_rule(x64):
    """log q(x_{i−1} | x_i, x_0) = log q(x_i | x_{i−1}) + log
    q(x_{i−1} | x_0) − log q(x_i | x_0), at any three points.
    """
    chain = schedules.from_betas(ddpm.linear_betas(10, 0.01, 0.4))
    x0, before, x = np.random.default_rng(0).standard_normal((3, 2, 3))

    @quick
    @jax.vmap
    def log_probs(index):
        return jnp.stack(
            [
                ddpm.posterior(chain, x, x0, index).log_prob(before),
                ddpm.forward_step(chain, before, index).log_prob(x),
                ddpm.forward_marginal(chain, x0, index - 1).log_prob(before),
                ddpm.forward_marginal(chain, x0, index).log_prob(x),
            ]
        )

    terms = np.asarray(log_probs(np.array([2, 3, 10])))
    # the log densities round relatively; 1 − ᾱ and β̃ come by two routes, each to about
    # 1e-13
    assert np.all(np.abs(terms @ [1, -1, -1, 1]) < 1e-12 * np.abs(terms).max(-1))


def test_optimal_step_of_a_gaussian_is_the_reverse_chain(x64):
    """With D and Var(x_0 | x_t) exact, p(x_{i−1} | x_i) is q(x_{i−1} | x_i),
    by Bayes' rule on the noised distributions.
    """
    chain, target = schedules.from_betas(ddpm.linear_betas(10, 0.01, 0.4)), normal_1d()

    def both(x, before, index):
        result = ddpm.reverse_step(
            exact(target, chain, "optimal"), chain, x, index, variance="optimal"
        ).log_prob(before)
        distribution = target if index == 1 else target.noised(chain, (index - 1) / 10)
        step = ddpm.forward_step(chain, before, index).log_prob(x)
        return result, step + distribution.log_prob(before) - target.noised(
            chain, index / 10
        ).log_prob(x)

    run = quick(lambda x, before: [both(x, before, index) for index in (1, 2, 10)])
    for result, expected in run(np.array([0.6]), np.array([0.1])):
        np.testing.assert_allclose(result, expected, rtol=1e-11)


@pytest.mark.parametrize("index", every([2, 6, 10], (6,)))
def test_unconditioned_posterior_of_a_mixture(index, x64):
    """q(x_{i−1} | x_i) = ∫ q(x_{i−1} | x_i, x_0) q(x_0 | x_i) dx_0, by
    quadrature over x_0, is Bayes' rule on the noised mixtures, a mixture that
    is not Gaussian. The model's "optimal" step has its mean and variance.

    Trapezoid rule on analytic integrands of width at least √β̃ or 0.3 (spacings
    a tenth of that): exact to rounding.
    """
    chain, target = schedules.from_betas(ddpm.linear_betas(10, 0.05, 0.4)), mixture_1d()
    x, t = np.array([0.2]), index / 10
    x0 = np.linspace(-5, 5, 2001)[:, None]
    width = math.sqrt(float(chain.posterior().variance[index - 1]))
    before = np.arange(-5, 5, width / 10)[:, None]

    @quick
    def densities(x, x0, before):
        evidence = jax.vmap(
            lambda a: (
                ddpm.forward_marginal(chain, a, index).log_prob(x) + target.log_prob(a)
            )
        )(x0)
        weights = jax.nn.softmax(evidence)  # q(x_0 | x_i)
        kernel = jax.vmap(
            lambda b: jax.vmap(
                lambda a: ddpm.posterior(chain, x, a, index).log_prob(b)
            )(x0)
        )(before)
        step = jax.vmap(lambda b: ddpm.forward_step(chain, b, index).log_prob(x))(
            before
        )
        distribution = jax.vmap(target.noised(chain, (index - 1) / 10).log_prob)(before)
        model = ddpm.reverse_step(
            exact(target, chain, "optimal"), chain, x, index, variance="optimal"
        )
        return (
            jnp.exp(kernel) @ weights,
            jnp.exp(step + distribution - target.noised(chain, t).log_prob(x)),
            model,
        )

    density, expected, model = jax.tree.map(np.asarray, densities(x, x0, before))
    np.testing.assert_allclose(density, expected, rtol=1e-9, atol=1e-12)
    mean = float(np.sum(density * before[:, 0]) * width / 10)
    variance = float(np.sum(density * (before[:, 0] - mean) ** 2) * width / 10)
    assert float(model.loc[0]) == pytest.approx(mean, rel=1e-9)
    assert float(model.var[0]) == pytest.approx(variance, rel=1e-9)


def test_the_step_in_terms_of_the_noise(x64):
    """μ = (x − β ε̂/√(1 − ᾱ))/√(1 − β), as Algorithm 2 (20.2) is printed, is
    the mean of `reverse_step`, and so is (x + β s)/√(1 − β) with the score s.
    """
    chain, x, indices = (
        schedules.from_betas(vp_betas(10)),
        np.array([0.4, -2.0]),
        np.array([1, 2, 10]),
    )
    denoiser = lambda x, t: jnp.tanh(x)
    step = jax.vmap(
        lambda x, index: (
            ddpm.reverse_step(denoiser, chain, x, index).loc,
            predictions.score(chain, denoiser)(x, index / chain.steps),
        ),
        (None, 0),
    )
    for index, result, score in zip(indices, *quick(step)(x, indices), strict=True):
        beta, bar = (
            np.asarray(chain.betas)[index - 1],
            np.asarray(chain.alpha_bars)[index - 1],
        )
        noise = (x - np.sqrt(bar) * np.tanh(x)) / np.sqrt(1 - bar)
        printed = (x - beta * noise / np.sqrt(1 - bar)) / np.sqrt(1 - beta)
        np.testing.assert_allclose(
            result, printed, rtol=1e-9
        )  # 1 − ᾱ and β cancel at little noise
        by_score = (x + beta * score) / np.sqrt(1 - beta)
        np.testing.assert_allclose(result, by_score, rtol=1e-9)


def test_reverse_kernels_of_a_mixture_tend_to_gaussians(x64):
    """As β → 0 q(x_{t−1} | x_t) of a mixture becomes N(μ̃(D), β̃ + c_0² Var):
    its skewness falls as β^{3/2}, at one x_t.
    """
    target, schedule, t, skewness = mixture_1d(), schedules.vp_linear(), 0.3, []

    @quick
    def parts(step):
        times, before = jnp.stack([t - step, t]), target.noised(schedule, t - step)
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        chain = schedules.from_betas(
            1 - jnp.stack([alpha[0], alpha[1] / alpha[0]]) ** 2
        )
        distribution = ddpm.reverse_step(
            exact(target, chain, "optimal"),
            chain,
            jnp.array([0.2]),
            2,
            variance="optimal",
        )
        return (
            alpha,
            sigma,
            before.means[:, 0],
            before.weights,
            before.variances[:, 0],
            distribution,
        )

    for step in (0.02, 0.005, 0.00125):
        alpha, sigma, means, weights, variances, distribution = jax.tree.map(
            np.asarray, parts(step)
        )
        ratio = alpha[1] / alpha[0]
        noise = sigma[1] ** 2 - ratio**2 * sigma[0] ** 2  # x_t given x_{t−1}
        x = np.linspace(-1, 1, 4001) * 12 * np.sqrt(noise) + 0.2 / ratio
        p = np.sum(
            weights
            * np.exp(-0.5 * (x[:, None] - means) ** 2 / variances)
            / np.sqrt(variances),
            -1,
        )
        p = p * np.exp(-0.5 * (0.2 - ratio * x) ** 2 / noise)
        p = p / p.sum()
        mean = p @ x
        skewness.append(abs(p @ (x - mean) ** 3) / (p @ (x - mean) ** 2) ** 1.5)
        np.testing.assert_allclose(
            [distribution.loc[0], distribution.var[0]],
            [mean, p @ (x - mean) ** 2],
            rtol=1e-6,
        )
    slopes = np.diff(np.log(skewness)) / np.log(0.25)
    np.testing.assert_allclose(
        slopes, 1.5, atol=0.15
    )  # third cumulant β³ over variance β^{3/2}


def test_autoregressive_reading_of_the_bound(x64):
    """KL(q_T ‖ p) + Σ E KL(q(x_{t−1} | x_t) ‖ p(x_{t−1} | x_t)) + H(x_0) is
    the bound's mean over the data.

    For N(m, s²) every unconditioned kernel is Gaussian. The last is
    q(x_0 | x_1) against the decoder.
    """
    chain, target = schedules.from_betas(vp_betas(4)), normal_1d()
    denoiser, known, count = exact(target, chain), tables(chain), 20_000
    xs = draws(target, count)
    kl = quick(distributions.gaussian_kl)
    total = float(kl(end_distribution(target, chain), distributions.Gaussian(0.0, 1.0)))
    right = known["posterior"] + known["data"] ** 2 * known["var"]
    model = known["posterior"][np.maximum(np.arange(4), 1)]
    total += float(
        kl(
            distributions.Gaussian(np.zeros(4), right),
            distributions.Gaussian(np.zeros(4), model),
        )
    )  # of four indices
    total += 0.5 * np.log(2 * np.pi * np.e * STD**2)
    assert_mean(bounds(ddpm.elbo, denoiser, chain, xs).total, total)


def test_learned_variance_lies_between_the_two(x64):
    """Share 0 is β̃ (the second index's at the first), 1 is β, ½ their
    geometric mean.
    """
    chain, x = schedules.from_betas(vp_betas(10)), np.array([0.4])
    plain, shares = exact(normal_1d(), chain), np.array([0.0, 1.0, 0.5])

    @quick
    @jax.vmap
    def variances(index):
        low, high = (
            ddpm.reverse_step(plain, chain, x, index, variance=name).var
            for name in ("posterior", "forward")
        )

        def learned(share):
            pair = ddpm.paired(plain, lambda x, t: jnp.full_like(x, share))
            return ddpm.reverse_step(pair, chain, x, index, variance="learned").var[0]

        return low, high, jax.vmap(learned)(shares)

    low, high, result = map(np.asarray, variances(np.array([1, 2, 10])))
    np.testing.assert_allclose(
        result, np.stack([low, high, np.sqrt(low * high)], -1), rtol=1e-13
    )
    assert low[0] == pytest.approx(chain.posterior().variance[1])


@pytest.mark.parametrize("variance", ddpm.VARIANCES)
def test_reverse_step_is_the_solvers(variance, x64):
    """`solvers.ddpm` on consecutive indices is `reverse_step`: its mean and
    standard deviation, without and with noise of 1, to rounding.
    """
    chain, x = schedules.from_betas(vp_betas(8)), jnp.array([0.9])
    second = {
        "learned": lambda x, t: jnp.full_like(x, 0.3),
        "optimal": spread_of(mixture_1d(), chain),
    }
    denoiser = exact(mixture_1d(), chain)
    denoiser = (
        ddpm.paired(denoiser, second[variance]) if variance in ddpm.PAIRED else denoiser
    )
    problem, grid, solver = (
        driver.diffusion(chain, denoiser),
        jnp.array([5 / 8, 4 / 8]),
        solvers.ddpm(variance),
    )

    @quick
    def steps(x, zs):
        run = lambda z: driver.run(
            noise_source.Source(lambda *_: z[None]), solver, problem, x=x, ts=grid
        )[0]
        return *jax.vmap(run)(zs), ddpm.reverse_step(
            denoiser, chain, x, 5, variance=variance
        )

    mean, above, distribution = jax.tree.map(np.asarray, steps(x, np.array([0.0, 1.0])))
    np.testing.assert_allclose(mean, distribution.loc, rtol=64 * EPS64)
    np.testing.assert_allclose(
        (above - mean) ** 2, np.broadcast_to(distribution.var, (1,)), rtol=1e-12
    )


def test_optimal_variance_samples_a_gaussian_exactly_in_few_steps(x64):
    """With Var(x_0 | x_t) known a step of any length keeps the distribution of
    a Gaussian, and at a zero end returns D.
    """
    chain, target = schedules.from_betas(vp_betas(64)), normal_1d()
    problem, solver = (
        driver.diffusion(chain, exact(target, chain, "optimal")),
        solvers.ddpm("optimal"),
    )
    grid = np.array([1.0, 0.4, 0.1, 1 / 64])

    def end(x, noise):
        return driver.run(
            noise_source.Source(lambda step, _: noise[step]),
            solver,
            problem,
            x=x,
            ts=grid,
        )[0]

    start, exact_end = (end_distribution(target, chain, t) for t in (1.0, 1 / 64))
    slopes = quick(jax.jacfwd(end, argnums=(0, 1)))(start.loc, np.zeros((3, 1)))
    by_start, by_noise = map(np.asarray, slopes)
    variance = by_start[0, 0] ** 2 * start.var[0] + np.sum(by_noise**2)
    np.testing.assert_allclose(variance, exact_end.var[0], rtol=1e-10)

    @quick
    def last_step(x):
        sample = sampling.sample(
            KEY,
            problem.denoiser,
            chain,
            solver=solver,
            grid=np.array([1 / 64, 0.0]),
            x_init=x,
        )
        return sample, problem.denoiser.first(x, 1 / 64)

    np.testing.assert_allclose(*last_step(np.array([0.2])), rtol=1e-12)


def test_interpolation_has_the_distribution_of_latents_between(x64):
    """On N(m, s²) with the optimal variance: mean m + K√ᾱ(x_w − m) and
    variance V_i + K²(1 − ᾱ_i) − V_1, K the gain of E[x_0 | x_i] and
    V_i = Var(x_0 | x_i). V_1 is what the last step, D, leaves out.
    """
    chain, index, count = schedules.from_betas(vp_betas(32)), 9, 20_000
    denoiser, weights = exact(normal_1d(), chain, "optimal"), jnp.array([0.0, 0.3, 1.0])
    run = jax.vmap(
        lambda key: ddpm.interpolate(
            key,
            denoiser,
            chain,
            start=jnp.array([-1.0]),
            end=jnp.array([2.0]),
            weights=weights,
            index=index,
            variance="optimal",
        )
    )
    result = np.asarray(quick(lambda: run(jax.random.split(KEY, count)))())[
        ..., 0
    ]  # (count, 3)
    alpha, noise = np.sqrt(chain.alpha_bars[index - 1]), 1 - chain.alpha_bars[index - 1]
    spread = tables(chain)["var"]
    gain = alpha * STD**2 / (alpha**2 * STD**2 + noise)
    variance = spread[index - 1] + gain**2 * noise - spread[0]
    for k, between in enumerate(-1.0 + 3.0 * np.asarray(weights)):
        mean = MEAN + gain * alpha * (between - MEAN)
        assert_mean(result[:, k], mean)
        assert_mean((result[:, k] - mean) ** 2, variance)


# ----------------------------------------------------------------------------- decoders


def test_a_chain_without_terminal_signal_has_finite_bounds(x64):
    """β_T = 1: L_T = 0, the terms and their gradient by the denoiser's scale
    are finite, losses of the last index too.

    The term at T is ½ (SNR_{T−1} − 0) E‖x_0 − D‖²: exactly, for D = s x at
    x_T = ε, which `reverse_step` shows.
    """
    chain = schedules.from_betas(
        schedules.rescale_zero_terminal_snr(np.linspace(0.02, 0.4, 8))
    )
    key, x0 = jax.random.key(0), np.array([0.7, -1.2])

    def all_terms(scale):
        def denoiser(x, t):
            return scale * x

        bound = ddpm.elbo(key, denoiser, chain, x0)
        two = ddpm.two_variable_elbo(key, denoiser, chain, x0)
        return (
            bound,
            two,
            ddpm.simple_loss(key, denoiser, chain, x0, index=8),
            ddpm.bound_loss(key, denoiser, chain, x0, index=8),
        )

    @quick
    def everything(scale):
        step = ddpm.reverse_step(lambda x, t: scale * x, chain, x0, 8)
        return (
            all_terms(scale),
            jax.jacfwd(all_terms)(scale),
            step.loc,
            ddpm.transitions.state_at(key, chain, x0, 8, time=1.0),
        )

    (bound, two, simple, last), slopes, mean, noise = everything(0.3)
    assert all(
        np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((bound, two, slopes))
    )
    assert float(bound.prior) == 0 and float(simple) == 0  # the noise's error at α = 0
    bar = np.cumprod(1 - np.asarray(chain.betas))[-2]
    np.testing.assert_allclose(mean, np.sqrt(bar) * 0.3 * x0, rtol=1e-12)
    noise = np.asarray(noise)
    np.testing.assert_allclose(
        last, 0.5 * bar / (1 - bar) * np.sum((x0 - 0.3 * noise) ** 2), rtol=1e-10
    )
