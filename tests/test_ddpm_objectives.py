"""Training objectives of the discrete chain, and the bound in continuous time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import ddpm, predictions, schedules, targets
from diffjax.noise import normal
from tests.chains import (
    KEY,
    STD,
    assert_mean,
    bounds,
    draws,
    end_distribution,
    exact,
    normal_1d,
    tables,
    vp_betas,
)
from tests.families import EPS32, every, quick

# ------------------------------------------------------------------ training objectives


@pytest.mark.parametrize("variance", every(ddpm.VARIANCES, ("optimal", "posterior")))
def test_bound_losses_are_the_terms_of_the_bound(variance, x64):
    """`bound_loss` at index t under the same key is `elbo`'s own term of index
    t, with levels and without.
    """
    chain = schedules.from_betas(vp_betas(6))
    denoiser = lambda x, t: jnp.tanh(2 * x) / (1 + t)
    if variance in ddpm.PAIRED:
        denoiser = ddpm.paired(denoiser, lambda x, t: 0.3 + 0.1 * jnp.cos(x))

    def all_terms(x, levels):
        bound = ddpm.elbo(KEY, denoiser, chain, x, variance=variance, levels=levels)
        loss = lambda i: ddpm.bound_loss(
            KEY, denoiser, chain, x, index=i, variance=variance, levels=levels
        )
        return bound, jax.vmap(loss)(jnp.arange(1, 7)), loss(3)

    for bound, result, third in quick(
        lambda x: [all_terms(x, levels) for levels in (None, [-1.0, 0.0, 0.5])]
    )(np.array([0.5])):
        np.testing.assert_allclose(
            result, [bound.reconstruction, *bound.denoising], rtol=1e-12
        )
        assert float(third) == pytest.approx(float(result[2]), rel=1e-12)


@pytest.mark.parametrize("index", every([1, 2, 500, 1000], (2,)))
def test_bound_loss_of_a_certain_softmax_has_its_gradient(index):
    """A float32 softmax that is certain has Var = 0.

    Certain of the truth it costs 0. Certain of the next level, off by Δ, ½
    (SNR_{t−1} − SNR_t) Σ Δ² at t > 1. Either way it is saturated, and its
    gradient 0, not NaN.
    """
    chain, levels = (
        schedules.from_betas(ddpm.linear_betas(1000)),
        np.linspace(-1, 1, 17, dtype=np.float32),
    )

    @quick
    @jax.vmap
    @jax.value_and_grad
    def loss(logits):
        net = lambda features, c_noise: logits.reshape(features.shape)
        pair = predictions.moments(predictions.categorical(chain, net, levels))
        return ddpm.bound_loss(
            KEY, pair, chain, levels, index=index, variance="optimal", levels=levels
        )

    snr = tables(chain)["snr"]
    offsets = (0, 1) if index > 1 else (0,)
    saids = [np.minimum(np.arange(17) + offset, 16) for offset in offsets]
    values, slopes = loss(
        np.stack([1e6 * np.eye(17, dtype=np.float32)[said] for said in saids])
    )
    for said, value, slope in zip(saids, values, slopes, strict=True):
        expected = (
            0.5
            * (snr[index - 2] - snr[index - 1])
            * np.sum((levels[said] - levels) ** 2)
        )
        np.testing.assert_allclose(value, expected, rtol=32 * EPS32, atol=1e-30)
        np.testing.assert_array_equal(slope, 0)


def test_simple_loss_is_the_error_of_the_noise(x64):
    """‖ε̂ − ε‖²/D with ε̂ the denoiser's own view, where the network's ε̂ is
    ε + δ: δ² at every index.
    """
    chain, x, delta = schedules.from_betas(vp_betas(6)), jnp.array([0.5, -0.2]), 0.3

    def loss(index):
        row_t = index / 6
        net = lambda x_t, t: (x_t - chain.alpha(row_t) * x) / chain.sigma(row_t) + delta
        return ddpm.simple_loss(
            KEY, predictions.denoiser(chain, net, "noise"), chain, x, index=index
        )

    np.testing.assert_allclose(
        quick(lambda: [loss(index) for index in (1, 4, 6)])(), delta**2, rtol=1e-10
    )


@pytest.mark.parametrize("variance", ["forward", "posterior"])
def test_bound_loss_is_the_weighted_loss(variance, x64):
    """Up to what no network changes, L_{t−1} is β²/(2v(1 − β)(1 − ᾱ))
    ‖ε̂ − ε‖²: equal differences between networks.
    """
    chain, x, index = schedules.from_betas(vp_betas(6)), jnp.array([0.5, -0.2]), 4
    known = tables(chain)
    v = known["beta" if variance == "forward" else "posterior"][index - 1]
    beta, bar = known["beta"][index - 1], np.prod(1 - chain.betas[:index])

    @quick
    @jax.vmap
    def both(slope):
        denoiser = predictions.denoiser(chain, lambda x, t: slope * x, "noise")
        bound = ddpm.bound_loss(KEY, denoiser, chain, x, index=index, variance=variance)
        return bound, 2 * ddpm.simple_loss(KEY, denoiser, chain, x, index=index)

    bound, simple = map(np.asarray, both(np.array([0.4, 0.9])))
    weighted = beta**2 / (2 * v * (1 - beta) * (1 - bar)) * simple
    assert bound[0] - bound[1] == pytest.approx(weighted[0] - weighted[1], rel=1e-10)


@pytest.mark.parametrize("variance", ["forward", "posterior"])
def test_bound_loss_is_the_error_of_the_mean(variance, x64):
    """L_{t−1} = ‖μ̃ − μ‖²/2σ_t² + C with C = D/2 (r − 1 − log r), r = β̃/σ_t².

    C is 0 for σ_t² = β̃. μ̃ = (x_t − β ε/√(1 − ᾱ))/√(1 − β) with the ε of x_t given
    x_0, not that of the last step.
    """
    chain, x = schedules.from_betas(vp_betas(6)), jnp.array([0.5, -0.2])
    indices, known = np.arange(2, 7), tables(schedules.from_betas(vp_betas(6)))
    denoiser = lambda x, t: jnp.tanh(2 * x) / (1 + t)

    @quick
    @jax.vmap
    def parts(index):
        t = index / chain.steps
        noise = normal(KEY, index, x.shape, x.dtype)
        x_t = schedules.perturb(chain, x, t, noise)
        exact = ddpm.posterior(chain, x_t, x, index)
        model = ddpm.reverse_step(denoiser, chain, x_t, index, variance=variance)
        loss = ddpm.bound_loss(KEY, denoiser, chain, x, index=index, variance=variance)
        return x_t, noise, exact.loc, model, loss

    x_t, noise, exact, model, loss = jax.tree.map(np.asarray, parts(indices))
    beta, bars = chain.betas[1:, None], chain.alpha_bars[1:, None]
    printed = (x_t - beta * noise / np.sqrt(1 - bars)) / np.sqrt(1 - beta)
    np.testing.assert_allclose(exact, printed, rtol=1e-10, atol=1e-12)
    ratio = known["posterior"][1:] / model.var.reshape(-1)
    constant = 0.5 * x.size * (ratio - 1 - np.log(ratio))
    squares = np.sum((exact - model.loc) ** 2, -1) / (2 * model.var.reshape(-1))
    np.testing.assert_allclose(loss, squares + constant, rtol=1e-9)
    if variance == "posterior":
        np.testing.assert_allclose(constant, 0, atol=1e-12)


def test_hybrid_loss_stops_the_mean_in_the_bound(x64):
    """∂/∂(mean) is that of the simple loss, ∂/∂(variance) that of λ T/D times
    the bound. Its value is their sum.
    """
    chain, x, index = schedules.from_betas(vp_betas(6)), jnp.array([0.5, -0.2]), 3

    def denoiser(params):
        data = predictions.denoiser(chain, lambda x, t: params["mean"] * x, "noise")
        return ddpm.paired(data, lambda x, t: jax.nn.sigmoid(params["variance"] * x))

    params = {"mean": 0.8, "variance": 0.4}
    simple = lambda p: ddpm.simple_loss(KEY, denoiser(p).first, chain, x, index=index)
    bound = lambda p: ddpm.bound_loss(
        KEY, denoiser(p), chain, x, index=index, variance="learned"
    )
    hybrid = lambda p: ddpm.hybrid_loss(
        KEY, denoiser(p), chain, x, index=index, bound_weight=0.01
    )
    scale = 0.01 * 6 / 2
    both = quick(lambda p: [jax.value_and_grad(f)(p) for f in (hybrid, simple, bound)])(
        params
    )
    (value, gradient), (value_simple, of_simple), (value_bound, of_bound) = both
    assert float(value) == pytest.approx(
        float(value_simple) + scale * float(value_bound), rel=1e-12
    )
    assert float(gradient["mean"]) == pytest.approx(float(of_simple["mean"]), rel=1e-12)
    assert float(gradient["variance"]) == pytest.approx(
        scale * float(of_bound["variance"]), rel=1e-12
    )
    assert abs(float(of_bound["mean"])) > 1e-3


def test_random_index_is_uniform_and_makes_the_losses_unbiased(x64):
    """E over key of T × bound_loss is the bound without L_T, within 4 standard
    errors.
    """
    chain, target, count = schedules.from_betas(vp_betas(6)), normal_1d(), 40_000
    denoiser, xs = exact(target, chain), np.full((count, 1), 0.4)
    run = jax.vmap(lambda key, x: 6 * ddpm.bound_loss(key, denoiser, chain, x))
    one = np.asarray(
        quick(lambda xs: run(jax.random.split(jax.random.key(5), count), xs))(xs)
    )
    all_terms = jax.tree.map(np.asarray, bounds(ddpm.elbo, denoiser, chain, xs))
    whole = all_terms.denoising.sum(-1) + all_terms.reconstruction
    error = math.sqrt(one.var() / count + whole.var() / count)
    assert abs(one.mean() - whole.mean()) < 4 * error


def test_importance_sampling_is_unbiased_with_the_least_variance(x64):
    """Σ p_t w_t L_t is the mean of L whatever the history, floor and p.

    With L_t known and no floor w L is constant.
    """
    losses = np.array([5.0, 0.1, 0.7, 2.0])
    history = ddpm.loss_history(4, 3)
    probabilities = quick(ddpm.index_probabilities)
    record = quick(
        lambda history: ddpm.record(history, jnp.arange(1, 5), jnp.asarray(losses))
    )
    sample = quick(lambda key, history: ddpm.sample_indices(key, 5, history, 0.1))
    for seed in range(3):
        p = np.asarray(probabilities(history, 0.1))
        assert p.sum() == pytest.approx(1, rel=1e-14)
        np.testing.assert_allclose(p, 0.25)  # until all are full
        history = record(history)
        indices, weights = map(np.asarray, sample(jax.random.key(seed), history))
        p = np.asarray(probabilities(history, 0.1))
        np.testing.assert_allclose(weights, 1 / (4 * p[indices - 1]), rtol=1e-12)
    p = np.asarray(probabilities(history, 0.0))
    np.testing.assert_allclose(p, losses / losses.sum(), rtol=1e-14)
    np.testing.assert_allclose(
        losses / (4 * p), losses.mean(), rtol=1e-14
    )  # no variance at all
    mixed = np.asarray(probabilities(history, 0.2))
    np.testing.assert_allclose(mixed, 0.8 * p + 0.05, rtol=1e-14)
    sample = quick(
        lambda history: ddpm.sample_indices(jax.random.key(9), 40_000, history, 0.2)
    )
    indices, weights = map(np.asarray, sample(history))
    assert_mean(weights * losses[indices - 1], losses.mean())
    for index in range(1, 5):
        assert_mean(indices == index, float(mixed[index - 1]))


def test_history_keeps_the_last_losses(x64):
    """Of an index seen n + 2 times, also twice in a batch, the last n losses
    remain, and p ∝ √mean L².
    """
    history = jax.jit(ddpm.record)(
        ddpm.loss_history(2, 2),
        jnp.array([1, 1, 2, 1]),
        jnp.array([9.0, 3.0, 1.0, 4.0]),
    )
    np.testing.assert_array_equal(history.counts, [3, 1])
    np.testing.assert_array_equal(ddpm.index_probabilities(history), [0.5, 0.5])
    history = ddpm.record(history, [2, 2], [2.0, 0.0])
    np.testing.assert_array_equal(np.sort(history.losses), [[3.0, 4.0], [0.0, 2.0]])
    scale = np.sqrt([12.5, 2.0])
    np.testing.assert_allclose(
        ddpm.index_probabilities(history, 0.0), scale / scale.sum(), rtol=1e-14
    )


# ---------------------------------------------------------------------- continuous time


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.learned(
            jax.random.key(0), log_snr_max=5.0, log_snr_min=-12.0
        ),
        lambda: schedules.vp_linear(t_min=5e-3, t_max=1.0),
        lambda: schedules.rectified_flow(t_min=0.1, t_max=0.995),
    ],
)
def test_continuous_bound_of_a_coin_is_log_two(make, x64):
    """½∫₀^∞ mmse dSNR = ln 2 for data ±1, and the lattice decoder adds nothing
    where ±1 are distinguished: on any schedule.

    What lies below the schedule's least SNR is at most half of it (4e-5 for
    linear VP), and the prior's KL as much. Above the greatest, 80 at least,
    the mmse is under e^{−SNR/2}.
    """
    schedule, coin = make(), targets.empirical([[-1.0], [1.0]])
    denoiser, xs = targets.denoiser(coin, schedule), draws(coin, 4000)
    run = jax.vmap(
        lambda key, x: ddpm.continuous_elbo(
            key, denoiser, schedule, x, count=64, levels=[-1.0, 1.0], chunk=16
        )
    )
    result = quick(lambda xs: run(jax.random.split(jax.random.key(1), len(xs)), xs))(xs)
    assert result.denoising.shape == (4000, 64)
    assert_mean(result.total, math.log(2), most=0.02)


def test_continuous_bound_of_a_gaussian_has_no_gap(x64):
    """With p(x_T) = q_T and decoder variance Var(x_0 | x_{t_min}),
    E[bound] = −log p(x) at every x.
    """
    schedule, target = schedules.vp_linear(t_min=1e-2), normal_1d()
    xs = np.full((4000, 1), 0.9)
    alpha, sigma, log_p = quick(
        lambda x: (
            *(f(schedule.t_min) for f in (schedule.alpha, schedule.sigma)),
            target.log_prob(x),
        )
    )(xs[0])
    settings = {
        "count": 256,
        "decoder_variance": STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2),
        "prior": end_distribution(target, schedule),
    }
    run = lambda key, x: (
        ddpm.continuous_elbo(
            key, targets.denoiser(target, schedule), schedule, x, **settings
        ).total
    )
    result = quick(lambda xs: jax.vmap(run)(jax.random.split(KEY, len(xs)), xs))(xs)
    assert_mean(result, -float(log_p), most=0.02)


def test_gradient_by_a_learned_schedule_is_that_of_the_variance(x64):
    """For a Gaussian h = ½ SNR (x_0 − D)² has E h = ½ SNR V, E h² = 3 (E h)²:
    the mean loss ∫|λ′| E h dt does not move with the schedule's shape (but for
    what t_min > 0 lets through, 1e-5 of it), the mean square is 3∫ λ′² (E h)²
    dt, and both gradients are those of the samples within 4.5 standard errors.
    """
    start, target = (
        schedules.learned(
            jax.random.key(1), hidden=3, log_snr_max=6.0, log_snr_min=-6.0
        ),
        normal_1d(),
    )
    count = 40_000
    xs = draws(target, count)
    shape = {"weight": jnp.array([0.3, -0.8, 0.5]), "slope": start.slope}

    def schedule_of(shape):
        return type(start)(**{**vars(start), **shape})

    def mean_square(shape):
        schedule = schedule_of(shape)
        t = jnp.linspace(schedule.t_min, schedule.t_max, 4001)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        rate = schedules.log_snr_rate(schedule, t)
        known = 0.5 * alpha**2 * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return (
            3 * jnp.trapezoid(rate**2 * known**2, t) * (schedule.t_max - schedule.t_min)
        )

    def sampled(loss, shape, keys, xs):
        def of_shape(shape, key, x):
            schedule = schedule_of(shape)
            return loss(key, targets.denoiser(target, schedule), schedule, x)

        return jax.vmap(jax.grad(of_shape), (None, 0, 0))(shape, keys, xs)

    @quick
    def gradients(shape, xs):
        keys = jax.random.split(jax.random.key(7), count)
        both = [
            sampled(loss, shape, keys, xs)
            for loss in (ddpm.continuous_loss, ddpm.schedule_variance_loss)
        ]
        return *both, jax.grad(mean_square)(shape)

    flat = lambda tree: np.concatenate(
        [np.asarray(tree["weight"]), np.asarray(tree["slope"])], -1
    )
    mean, square, expected = map(flat, gradients(shape, xs))
    assert np.abs(expected).max() > 0.1
    for k in range(6):
        assert_mean(mean[:, k], 0.0, sigmas=4.5)
        assert_mean(square[:, k], expected[k], sigmas=4.5)


SETTINGS = {"count": 8, "times": "log_snr", "chunk": 8}


@pytest.mark.parametrize("decoder", every(["denoised", "evidence"], ("evidence",)))
def test_bound_over_log_snrs_of_a_coin_is_log_two(decoder, x64):
    """As over uniform times, with eight times in place of 64: both decoders add
    nothing where ±1 are distinguished, and the truncated ends add 4e-5.
    """
    schedule, coin = schedules.vp_linear(t_min=5e-3), targets.empirical([[-1.0], [1.0]])
    denoiser, xs = targets.denoiser(coin, schedule), draws(coin, 4000)
    settings = SETTINGS | {"levels": [-1.0, 1.0], "decoder": decoder}
    run = lambda key, x: (
        ddpm.continuous_elbo(key, denoiser, schedule, x, **settings).total
    )
    result = quick(lambda xs: jax.vmap(run)(jax.random.split(KEY, len(xs)), xs))(xs)
    assert_mean(result, math.log(2), most=0.03)


def test_bound_over_log_snrs_has_the_lesser_variance_at_little_noise(x64):
    """Down to σ/α = 1e-3, where SNR = 10⁶, a Gaussian's term in λ is ½ ε² per
    unit: the mean is that of uniform times, which almost never see the last
    e-folds of the noise.
    """
    schedule, target = schedules.vp_linear(t_min=1e-5), normal_1d()
    x = np.full(1, 0.9)
    denoiser = targets.denoiser(target, schedule)
    prior = end_distribution(target, schedule)

    def total(times):
        run = lambda key: (
            ddpm.continuous_elbo(
                key,
                denoiser,
                schedule,
                x,
                count=16,
                times=times,
                prior=prior,
            ).total
        )
        return np.asarray(quick(jax.vmap(run))(jax.random.split(KEY, 4000)))

    log_p = float(target.log_prob(x))
    even = total("log_snr")
    assert_mean(even, -log_p, most=0.05)
    assert total("uniform").var() > 4 * even.var()


def test_the_decoder_by_evidence_needs_levels():
    schedule, x = schedules.vp_linear(), jnp.zeros(2)
    for settings in ({}, {"levels": [-1.0, 0.0], "decoder_variance": 1.0}):
        with pytest.raises(ValueError, match="decoder 'evidence' needs levels"):
            ddpm.continuous_elbo(
                KEY, lambda x, t: x, schedule, x, decoder="evidence", **settings
            )
