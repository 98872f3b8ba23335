"""The bound of the discrete chain is what the exact distributions say that it
must be, term by term.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import ddpm, distributions, predictions, schedules, targets
from tests.chains import (
    KEY,
    STD,
    assert_mean,
    betas_of_log_snrs,
    bounds,
    draws,
    end_distribution,
    exact,
    log_probs,
    mixture_1d,
    normal_1d,
    tables,
    vp_betas,
)
from tests.families import EPS32, counted_programs, every, quick

# ---------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("steps", every([2, 10, 100], (2, 10)))
def test_optimal_bound_of_a_gaussian_has_no_gap(steps, x64):
    """With v = β̃ + c_0² Var, decoder N(D, Var(x_0 | x_1)) and p(x_T) = q_T the
    model is the chain itself: E[bound | x] = −log p(x), for every x.
    """
    chain, target, count = schedules.from_betas(vp_betas(steps)), normal_1d(), 8000
    prior = end_distribution(target, chain)
    values = np.array([[0.3], [1.1]])
    xs = np.repeat(values, count, axis=0)
    result = bounds(
        ddpm.elbo,
        exact(target, chain, "optimal"),
        chain,
        xs,
        variance="optimal",
        prior=prior,
    )
    for total, log_p in zip(
        np.split(np.asarray(result.total), 2), log_probs(target, values), strict=True
    ):
        assert_mean(total, -log_p, most=0.03)


def gaps(chain, variance):
    """The mean gap per dimension of each term t ≥ 2 for the exact denoiser of
    N(·, STD²): the optimal step's KL.

    The step's variance is right times w, w = 1/(1 + u) for β̃,
    u = (SNR_{t−1} − SNR_t) Var, and the gap ½(1/w − 1 + log w).
    """
    known = tables(chain)
    ratio = 1 + (known["snr"][:-1] - known["snr"][1:]) * known["var"][1:]
    if variance == "forward":
        ratio = ratio * known["posterior"][1:] / known["beta"][1:]
    return 0.5 * (ratio - 1 - np.log(ratio))


@pytest.mark.parametrize(
    "variance, expected",
    [
        ("posterior", {10: 0.206, 100: 0.773, 1000: 0.443}),
        pytest.param(
            "forward", {10: 0.077, 100: 0.0108, 1000: 0.00109}, marks=pytest.mark.slow
        ),
    ],
)
def test_gap_of_the_fixed_variances(variance, expected, x64):
    """E[bound + log p] = ½ Σ [u − log(1 + u)] per Gaussian dimension with β̃,
    which does not vanish as T grows. With β it falls as 1/T. Its sum over
    t = 2 … T for linear β is as stated, and the bound's mean agrees.
    """
    for steps, gap in expected.items():
        chain = schedules.from_betas(vp_betas(steps))
        assert gaps(chain, variance).sum() == pytest.approx(gap, rel=5e-3)
    for steps, count in ((10, 20_000), (100, 4000)):
        chain, target = schedules.from_betas(vp_betas(steps)), normal_1d()
        prior = end_distribution(target, chain)
        xs = draws(target, count)
        decoder = tables(chain)["var"][0]
        result = bounds(
            ddpm.elbo,
            exact(target, chain),
            chain,
            xs,
            variance=variance,
            prior=prior,
            decoder_variance=decoder,
        )
        gap = result.total + log_probs(target, xs)
        assert_mean(gap, gaps(chain, variance).sum(), most=0.03)


def test_gap_of_the_posterior_variance_tends_to_half_eulers_constant():
    """At t = i/T the SNR falls as 1/i at first, u → 1/(i − 1), and ½ Σ
    [1/k − log(1 + 1/k)] = γ/2 = 0.2886.
    """
    snr = np.exp(
        schedules.from_betas(
            ddpm.betas_of(schedules.vp_linear(t_min=1e-7), 1_000_000)
        ).log_snrs
    )
    u = (snr[:-1] - snr[1:]) / (STD**-2 + snr[1:])
    # the rest falls as the reverse of T: 0.1546 over it at T = 1000, 0.0039 at 1e5
    assert 0.5 * np.sum(u - np.log1p(u)) == pytest.approx(
        0.5 * np.euler_gamma, abs=2e-3
    )


@pytest.mark.parametrize("variance", ["forward", "posterior"])
def test_each_term_of_a_gaussian(variance, x64):
    """E[L_{t−1}] = ½ [β̃/v − 1 + log(v/β̃) + c_0² Var(x_0 | x_t)/v], over data
    too, and L_T in closed form.
    """
    chain, target, count = schedules.from_betas(vp_betas(8)), normal_1d(), 20_000
    xs = draws(target, count)
    result = bounds(ddpm.elbo, exact(target, chain), chain, xs, variance=variance)
    known = {name: column[1:] for name, column in tables(chain).items()}
    v = known["beta"] if variance == "forward" else known["posterior"]
    ratio = v / known["posterior"]
    expected = 0.5 * (
        1 / ratio - 1 + np.log(ratio) + known["data"] ** 2 * known["var"] / v
    )
    assert result.denoising.shape == (count, 7)
    for term, value in zip(np.asarray(result.denoising).T, expected, strict=True):
        assert_mean(term, value)
    bar = np.prod(1 - chain.betas)
    np.testing.assert_allclose(
        result.prior,
        0.5 * (1 - bar - 1 - np.log(1 - bar) + bar * np.asarray(xs)[:, 0] ** 2),
        rtol=1e-9,
    )


def test_gap_is_the_kl_of_the_posteriors(x64):
    """log p(x) + E[bound] = KL(q(x_{1:T} | x) ‖ p(x_{1:T} | x)), all Gaussian
    and linear: from matrices.

    Both distributions are x = A z + b of standard normal z in the order of
    their own chains.
    """
    steps = 12
    chain, target = schedules.from_betas(vp_betas(steps)), normal_1d()
    denoiser, x = exact(target, chain), 0.8
    p_mean, p_map = np.zeros(steps + 1), np.zeros((steps + 1, steps + 1))
    p_map[steps, steps] = 1.0
    q_mean, q_map = np.array([x] + [0.0] * steps), np.zeros((steps + 1, steps + 1))
    both = jax.vmap(lambda i, x: ddpm.reverse_step(denoiser, chain, x, i), (None, 0))
    at = quick(jax.vmap(both, (0, None)))(
        np.arange(1, steps + 1), np.array([[0.0], [1.0]])
    )
    means, variances = np.asarray(at.loc)[..., 0], np.asarray(at.var)[:, 0]
    for i in range(steps, 0, -1):
        offset, slope = means[i - 1, 0], means[i - 1, 1] - means[i - 1, 0]
        p_mean[i - 1], p_map[i - 1] = offset + slope * p_mean[i], slope * p_map[i]
        p_map[i - 1, i - 1] = math.sqrt(variances[i - 1])
    for i in range(1, steps + 1):
        keep = math.sqrt(1 - chain.betas[i - 1])
        q_mean[i], q_map[i] = keep * q_mean[i - 1], keep * q_map[i - 1]
        q_map[i, i] = math.sqrt(chain.betas[i - 1])
    joint = p_map @ p_map.T
    gain = joint[1:, 0] / joint[0, 0]
    mean, cov = (
        p_mean[1:] + gain * (x - p_mean[0]),
        joint[1:, 1:] - np.outer(gain, joint[0, 1:]),
    )
    q_cov, gap = (q_map @ q_map.T)[1:, 1:], q_mean[1:] - mean
    inverse = np.linalg.inv(cov)
    kl = 0.5 * (np.trace(inverse @ q_cov) - steps + gap @ inverse @ gap)
    kl += 0.5 * (np.linalg.slogdet(cov)[1] - np.linalg.slogdet(q_cov)[1])
    log_p = -0.5 * (
        (x - p_mean[0]) ** 2 / joint[0, 0] + math.log(2 * math.pi * joint[0, 0])
    )
    result = bounds(ddpm.elbo, denoiser, chain, jnp.full((20_000, 1), x))
    assert_mean(np.asarray(result.total) + log_p, kl, most=kl / 10)


def path_bounds(denoiser, chain, xs, variance, seed=3):
    """log q(x_{1:T} | x) − log p(x, x_{1:T}) of whole sampled paths, (N,)."""

    def one(key, x):
        def move(before, i):
            step = ddpm.forward_step(chain, before, i)
            state = step.sample(jax.random.fold_in(key, i))
            model = ddpm.reverse_step(denoiser, chain, state, i, variance=variance)
            return state, step.log_prob(state) - model.log_prob(before)

        last, terms = jax.lax.scan(move, x, jnp.arange(1, chain.steps + 1))
        return jnp.sum(terms) - distributions.Gaussian(0.0, 1.0).log_prob(last)

    return quick(
        lambda xs: jax.vmap(one)(jax.random.split(jax.random.key(seed), len(xs)), xs)
    )(xs)


def test_path_weights_average_to_the_density_of_the_model(x64):
    """E_q[p(x_{0:T})/q(x_{1:T} | x_0)] = p_θ(x_0), and E_q[log of it] is below its log.

    For N(m, s²) all steps of the model are linear and Gaussian, so that p_θ(x_0) is
    the Gaussian whose moments they propagate from N(0, 1).
    """
    chain, x, count = schedules.from_betas(vp_betas(4)), 0.8, 20_000
    denoiser = exact(normal_1d(), chain)
    both = jax.vmap(lambda i, x: ddpm.reverse_step(denoiser, chain, x, i), (None, 0))
    at = quick(jax.vmap(both, (0, None)))(np.arange(4, 0, -1), np.eye(2)[:, 1:])
    mean, variance = 0.0, 1.0
    for (offset, end), step in zip(np.asarray(at.loc)[..., 0], at.var, strict=True):
        slope = end - offset
        mean, variance = offset + slope * mean, slope**2 * variance + float(step[0])
    exact_log_p = -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))
    logs = -path_bounds(denoiser, chain, jnp.full((count, 1), x), "posterior")
    logs = np.asarray(logs)
    assert_mean(np.exp(logs), math.exp(exact_log_p), most=math.exp(exact_log_p) / 50)
    error = logs.std(ddof=1) / math.sqrt(count)
    assert logs.mean() < exact_log_p - 4 * error


@pytest.mark.parametrize(
    "variance", every(["forward", "posterior", "optimal"], ("optimal",))
)
def test_three_routes_to_the_bound_agree(variance, x64):
    """E over noise of `elbo`, of the split with two random variables, and of
    whole paths' log densities is one number.

    On a mixture, so that no term is Gaussian in closed form. The same x in all
    three.
    """
    chain, target, count = (
        schedules.from_betas(ddpm.linear_betas(4, 0.05, 0.6)),
        mixture_1d(),
        40_000,
    )
    denoiser, xs = exact(target, chain, variance), draws(target, count)
    result = [
        np.asarray(bounds(f, denoiser, chain, xs, variance=variance).total, np.float64)
        for f in (ddpm.elbo, ddpm.two_variable_elbo)
    ]
    result.append(np.asarray(path_bounds(denoiser, chain, xs, variance)))
    for other in result[1:]:
        assert_mean(other - result[0], 0.0, most=0.03)
    # and all exceed the entropy: a bound in expectation
    log_p = log_probs(target, xs)
    assert (result[0] + log_p).mean() > 4 * (result[0] + log_p).std() / math.sqrt(count)


def test_the_split_often_printed_is_looser(x64):
    """Σ E KL(q(x_t | x_{t−1}) ‖ p(x_t | x_{t+1})) draws x_t without regard to
    x_{t+1}, and exceeds the bound's terms by Σ_t k Cov(x_t,
    x_{t+1} | x_{t−1})/v = Σ_t k √(1 − β_{t+1}) β_t / v, where k = c_0
    ∂D/∂x + c_{t+1} and v are of index t + 1.
    """
    steps, count = 5, 20_000
    chain, target = (
        schedules.from_betas(ddpm.linear_betas(steps, 0.02, 0.1)),
        normal_1d(),
    )
    denoiser, xs = exact(target, chain), draws(normal_1d(), count)

    def printed(key, x):
        def term(t):
            keys = jax.random.split(jax.random.fold_in(key, t), 3)
            before = jnp.where(
                t == 1,
                x,
                ddpm.forward_marginal(chain, x, jnp.maximum(t - 1, 1)).sample(keys[0]),
            )
            here = ddpm.forward_step(chain, before, t)
            after = ddpm.forward_step(chain, here.sample(keys[1]), t + 1).sample(
                keys[2]
            )
            return distributions.gaussian_kl(
                here, ddpm.reverse_step(denoiser, chain, after, t + 1)
            )

        return jnp.sum(jax.vmap(term)(jnp.arange(1, steps)))

    result = quick(
        lambda xs: jax.vmap(printed)(jax.random.split(jax.random.key(3), count), xs)
    )(xs)
    right = np.asarray(
        bounds(ddpm.two_variable_elbo, denoiser, chain, xs).denoising
    ).sum(-1)
    known = tables(chain)
    gain = (
        np.sqrt(known["snr"] * (1 + known["snr"])) * known["var"]
    )  # ∂D/∂x = α Var/σ², σ² = 1/(1 + SNR)
    slope = (known["data"] * gain + known["state"])[1:]
    excess = np.sum(
        slope * np.sqrt(1 - chain.betas[1:]) * chain.betas[:-1] / known["posterior"][1:]
    )
    assert excess > steps - 1  # more than a nat a term
    assert_mean(result - right, excess)


@pytest.mark.slow
def test_bound_of_a_mixture_tightens_with_the_number_of_steps(x64):
    """At fixed log-SNR end points E[bound + log p] falls as 1/T: a Riemann sum
    of the mmse over SNR. Slope within 0.2.

    The ends ±8 add nothing visible: the decoder N(D, σ²/α²) errs by (σ/α
    s)⁴/4 < 1e-5 nats, the prior by less.
    """
    target, count, result = mixture_1d(), 20_000, []
    xs = draws(target, count)
    log_p = log_probs(target, xs)
    counts = (64, 128, 256)
    for steps in counts:
        chain = schedules.from_betas(betas_of_log_snrs(np.linspace(8, -8, steps)))
        total = bounds(
            ddpm.elbo, exact(target, chain), chain, xs, decoder_variance=math.exp(-8)
        ).total
        gap = np.asarray(total) + log_p
        result.append(gap.mean())
        assert result[-1] > 4 * gap.std() / math.sqrt(count)
    slope = np.polyfit(np.log(counts), np.log(result), 1)[0]
    assert slope == pytest.approx(-1, abs=0.2)


def test_rates_and_distortions(x64):
    """The rates are the bound's own terms summed from the top, in bits per
    dimension. E[rmse²] is Var(x_0 | x_t).
    """
    chain, target, count = schedules.from_betas(vp_betas(10)), normal_1d(), 10_000
    denoiser, xs = exact(target, chain), draws(target, count)

    @quick
    def both(xs):
        keys = jax.random.split(jax.random.key(2), count)
        parts = jax.vmap(
            lambda key, x: ddpm.rate_distortion(key, denoiser, chain, x, chunk=4)
        )(keys, xs)
        return parts, jax.vmap(lambda key, x: ddpm.elbo(key, denoiser, chain, x))(
            keys, xs
        )

    result, bound = jax.tree.map(np.asarray, both(xs))
    assert result.rate.shape == result.rmse.shape == (count, 10)
    np.testing.assert_allclose(
        result.rate[:, -1] * math.log(2), bound.prior, rtol=1e-12
    )
    terms = -np.diff(result.rate, axis=-1) * math.log(2)
    np.testing.assert_allclose(terms, bound.denoising, rtol=1e-9, atol=1e-12)
    for square, value in zip(result.rmse.T**2, tables(chain)["var"], strict=True):
        assert_mean(square, value)
    bits = bound.bits_per_dim((1,), 256)
    np.testing.assert_allclose(
        result.rate[:, 0] + bound.reconstruction / math.log(2),
        bits,
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3, 9, 50])
def test_chunks_change_nothing(chunk, x64):
    """The noise of an index depends on key and index alone, so any chunk gives
    the same terms and gradients, for any denoiser.
    """
    chain, x = schedules.from_betas(vp_betas(9)), np.array([0.4])

    def total(scale, estimator, chunk):
        denoiser = lambda x, t: jnp.tanh(scale * x) / (1 + t)
        return estimator(KEY, denoiser, chain, x, variance="forward", chunk=chunk).total

    @quick
    def both(scale):
        return [
            [jax.value_and_grad(total)(scale, estimator, c) for c in (None, chunk)]
            for estimator in (ddpm.elbo, ddpm.two_variable_elbo)
        ]

    for whole, parts in both(np.array([0.7])):
        np.testing.assert_allclose(np.hstack(parts), np.hstack(whole), rtol=1e-12)


def test_chunks_bound_the_memory():
    """447 examples of 64 entries over 1000 indices: all at once need
    1000 × 447 × 64 floats, 20 of them 1/50 of that.
    """
    chain = schedules.from_betas(ddpm.linear_betas(1000))
    denoiser = predictions.denoiser(chain, lambda x, t: jnp.sin(x), "noise")
    xs, keys = jnp.zeros((447, 64)), jax.random.split(KEY, 447)

    def scratch(chunk):
        run = jax.vmap(
            lambda key, x: ddpm.elbo(key, denoiser, chain, x, chunk=chunk).total
        )
        return quick(run).lower(keys, xs).compile().memory_analysis().temp_size_in_bytes

    whole, parts = scratch(None), scratch(20)
    assert whole > 1000 * 447 * 64 * 4
    assert parts < whole / 20  # some copies of one chunk


def test_lattice_bound_of_a_coin_is_tight(x64):
    """Data ±1 with the exact D = tanh(αx/σ²): −log P = ln 2, and the bound's
    excess is the Riemann sum's alone.

    Σ ½ (SNR_{t−1} − SNR_t) mmse(SNR_t) ≥ ln 2, by at most the greatest log-SNR
    step h: mmse falls, so the sum lies between ½∫ mmse dSNR and e^h of it.
    """
    coin = targets.empirical([[-1.0], [1.0]])
    steps, count = 200, 10_000
    chain = schedules.from_betas(betas_of_log_snrs(np.linspace(5, -12, steps)))
    xs = draws(coin, count)
    denoiser = targets.denoiser(coin, chain)
    x, t = np.array([[0.3], [-1.2]]), np.array([0.2, 0.9])
    denoised, scale = quick(
        lambda x, t: (jax.vmap(denoiser)(x, t), chain.alpha(t) / chain.sigma(t) ** 2)
    )(x, t)
    np.testing.assert_allclose(
        denoised, np.tanh(np.asarray(scale)[:, None] * x), rtol=1e-12
    )
    result = bounds(ddpm.elbo, denoiser, chain, xs, levels=[-1.0, 1.0])
    total = np.asarray(result.total)
    error = total.std() / math.sqrt(count)
    assert total.mean() > math.log(2) - 4 * error
    assert total.mean() < math.log(2) * math.exp(17 / (steps - 1)) + 4 * error
    bits = result.bits_per_dim((1,), 2)
    np.testing.assert_allclose(bits, total / math.log(2), rtol=1e-13)


@pytest.mark.slow
def test_gradient_by_the_betas_is_that_of_finite_differences(x64):
    """The noise is held, so the bound is a smooth function of the betas:
    central differences of step h, error h².
    """
    betas, x = vp_betas(6), jnp.array([0.7])

    def total(betas, variance):
        chain = schedules.from_betas(betas)
        return ddpm.elbo(
            KEY, exact(mixture_1d(), chain, variance), chain, x, variance=variance
        ).total

    for variance in ("forward", "posterior", "optimal"):
        value = jax.jit(jax.value_and_grad(functools.partial(total, variance=variance)))
        gradient = np.asarray(value(betas)[1])
        result = [
            (value(betas + d)[0] - value(betas - d)[0]) / (2 * d.sum())
            for d in np.diag(1e-5 * betas)
        ]
        # h² f‴ relative 1e-9, rounding ε|f|/(hf′) 1e-9 for terms of size 10
        np.testing.assert_allclose(
            gradient, result, rtol=1e-6, atol=1e-6 * np.abs(gradient).max()
        )


def test_new_betas_and_parameters_do_not_retrace():
    def elbo(shift):
        chain = schedules.from_betas(ddpm.linear_betas(7) - shift / 100)
        denoiser = targets.denoiser(targets.gaussian([0.1, shift], 0.5), chain)
        return ddpm.elbo(KEY, denoiser, chain, np.array([0.4, shift]))

    elbo(0.0)
    with counted_programs() as programs:
        elbo(0.001)
    assert not programs


def test_float32_bound_is_float64s():
    """At T = 1000 the tables are made in float64 on the host: each float32
    term errs by rounding, not by the table.

    D − x_0 rounds to ε(|x_0| + |D|), its square over Var relative to 2ε/√Var,
    Var from 1e-4 on: 2e-5. Log-SNR in float32 moves x_t by 1e-6 of σ. With
    D = 0 only the coefficients remain: ½ c_0²/β̃ x², to a few ε.
    """
    chain = schedules.from_betas(ddpm.linear_betas(1000))
    zero = lambda x, t: jnp.zeros_like(x)
    result = ddpm.elbo(KEY, zero, chain, np.array([0.7], np.float32)).denoising
    snr = np.asarray(tables(chain)["snr"])
    np.testing.assert_allclose(
        result, 0.5 * (snr[:-1] - snr[1:]) * np.float32(0.7) ** 2, rtol=10 * EPS32
    )
