"""VAEs of one latent: the bound is the evidence where the encoder is exact,
and bounds are in order.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffjax as dj
from diffjax import distributions, flows, targets
from diffjax.vaes import Perceptron, gaussian, priors
from tests.families import assert_raises

KEY = jax.random.key(0)
LEVELS = np.array([-1.0, -0.6, 0.1, 1.0])  # not equally spaced


# ----------------------------------------------------------------------------- decoders


def test_a_gaussian_decoder_is_a_density(x64):
    """∫ p = 1 by the trapezoid rule, which is exact to rounding for a Gaussian
    on a grid of a fifth of its width.
    """
    xs = np.arange(-6, 6, 0.1)[:, None]
    log_p = jax.jit(
        jax.vmap(
            lambda x: distributions.gaussian(np.array([0.3]), np.log([0.5])).log_prob(x)
        )
    )(xs)
    np.testing.assert_allclose(0.1 * np.sum(np.exp(log_p)), 1, rtol=1e-12)


# ------------------------------------------------------------------ linear-Gaussian VAE


class Ppca:
    """Probabilistic PCA of a covariance S: x = W z + σ ε at the greatest
    likelihood, and its exact posterior.

    W = U (Λ − σ²)^½ of the largest eigenvalues, σ² the mean of the rest
    (Tipping & Bishop 1999, eq. 7–8). WᵀW is diagonal, so that the posterior
    N(WᵀC⁻¹x, I − WᵀC⁻¹W) is.
    """

    def __init__(self, covariance, size):
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[::-1], vectors[:, ::-1]
        self.variance = values[size:].mean()
        self.weights = vectors[:, :size] * np.sqrt(
            values[:size] - self.variance
        )  # (D, d)
        self.data_covariance = self.weights @ self.weights.T + self.variance * np.eye(
            len(values)
        )
        gain = self.weights.T @ np.linalg.inv(self.data_covariance)
        self.gain, self.spread = gain, 1 - np.diag(gain @ self.weights)

    def encoder(self, x):
        return jnp.asarray(self.gain) @ x, 0.5 * np.log(self.spread)

    def decoder(self, z):
        return distributions.Gaussian(
            jnp.asarray(self.weights) @ z, jnp.asarray(self.variance)
        )

    def log_prob(self, xs):
        """log N(x | 0, C), (N,)."""
        _, log_det = np.linalg.slogdet(self.data_covariance)
        squares = np.einsum("ni,ij,nj->n", xs, np.linalg.inv(self.data_covariance), xs)
        return -0.5 * (squares + log_det + xs.shape[1] * math.log(2 * math.pi))


def ppca_data(count=400):
    """Centred examples of 5 entries with two strong directions."""
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(count, 2)) @ (
        rng.normal(size=(2, 5)) * [[1.5], [0.8]]
    ) + 0.4 * rng.normal(size=(count, 5))
    return xs - xs.mean(0)


def keys_of(count, seed=1):
    return jax.random.split(jax.random.key(seed), count)


class OpenNormal:
    """N(0, I) that hides its form, so that its KL is by a draw."""

    def log_prob(self, z):
        return distributions.Gaussian(0.0, 1.0).log_prob(z)


def test_the_exact_encoder_s_bound_is_the_evidence(x64):
    """With the posterior as encoder log p(x, z)/q(z | x) = log p(x) for every
    z: one draw, and the weighted bound of any k, are log p(x) to rounding for
    each example. By the KL in closed form the mean is, within its standard
    error.
    """
    xs = ppca_data()
    model = Ppca(xs.T @ xs / len(xs), 2)
    keys, exact = keys_of(len(xs)), model.log_prob(xs)

    @jax.jit
    @jax.vmap
    def bounds(key, x):
        model_of_x = model.encoder, model.decoder, x
        weighted = gaussian.importance_weighted_bound(key, *model_of_x, samples=7)
        return (
            gaussian.elbo(key, *model_of_x, prior=OpenNormal()),
            weighted,
            gaussian.elbo(key, *model_of_x),
        )

    drawn, weighted, closed = bounds(keys, xs)
    np.testing.assert_allclose(drawn.total, exact, rtol=1e-11)
    np.testing.assert_allclose(weighted, exact, rtol=1e-11)
    gap = np.asarray(closed.total) - exact
    assert abs(gap.mean()) < 4 * gap.std(ddof=1) / math.sqrt(len(xs))
    np.testing.assert_allclose(
        closed.total, np.subtract(closed.reconstruction, closed.kl), rtol=1e-14
    )


def test_the_gap_of_the_bound_is_the_kl_to_the_posterior(x64):
    """log p(x) = E[total] + KL(q(z | x) ‖ p(z | x)) for a wrong encoder.

    The mean gap is that KL in closed form within 4 standard errors.
    """
    model = Ppca(np.diag([4.0, 2.0, 0.3, 0.3, 0.3]), 2)
    x, count = jnp.array([1.0, -0.4, 0.2, 0.5, -0.3]), 4000
    exact = gaussian.encode(model.encoder, x)
    wrong = distributions.gaussian(exact.loc + 0.3, 0.5 * jnp.log(exact.var) + 0.4)
    bound = lambda key: gaussian.elbo(
        key, lambda x: wrong, model.decoder, x, prior=OpenNormal()
    )
    totals = np.asarray(jax.jit(jax.vmap(bound))(keys_of(count)).total)
    gap = model.log_prob(np.asarray(x)[None])[0] - totals
    kl = float(distributions.gaussian_kl(wrong, exact))
    assert abs(gap.mean() - kl) < 4 * gap.std(ddof=1) / math.sqrt(count) < kl / 5


def test_latents_are_reparameterised(x64):
    """z = m + s ε, and ∂z/∂m = 1, ∂z/∂log s = s ε, with the ε of the key alone."""
    mean, log_std = jnp.array([0.3, -1.0]), jnp.array([-0.5, 0.2])
    encoder = lambda mean, log_std: lambda x: (mean, log_std)
    draw = lambda *moments: gaussian.encode(encoder(*moments), jnp.zeros(2)).sample(KEY)
    noise, std = draw(jnp.zeros(2), jnp.zeros(2)), np.exp(log_std)
    by_mean, by_log_std = jax.jacobian(draw, (0, 1))(mean, log_std)
    np.testing.assert_allclose(draw(mean, log_std), mean + std * noise, rtol=1e-14)
    np.testing.assert_allclose(by_mean, np.eye(2), rtol=1e-14)
    np.testing.assert_allclose(by_log_std, np.diag(std * noise), rtol=1e-13)


def fit_linear_vae(xs, size, steps=3000, draws=4):
    """Parameters of a linear-Gaussian VAE after Adam on the bound, all
    examples a step.
    """
    keys = jax.random.split(KEY, 2)
    params = {
        "encoder": (
            0.1 * jax.random.normal(keys[0], (size, xs.shape[1])),
            jnp.zeros(size),
        ),
        "decoder": (
            0.1 * jax.random.normal(keys[1], (xs.shape[1], size)),
            jnp.zeros(()),
        ),
    }
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-2, steps))

    def loss(params, key):
        encoder, decoder = linear_vae(params)
        keys = jax.random.split(key, (len(xs), draws))
        one = lambda k, x: (
            gaussian.elbo(k, encoder, decoder, x, prior=OpenNormal()).total
        )
        return -jnp.mean(jax.vmap(jax.vmap(one, (0, None)))(keys, xs))

    def step(carry, key):
        params, state = carry
        updates, state = optimiser.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(
        lambda params, keys: jax.lax.scan(step, (params, optimiser.init(params)), keys)[
            0
        ][0]
    )
    return run(params, jax.random.split(jax.random.key(2), steps))


def linear_vae(params):
    """(encoder, decoder) of the parameters."""
    gain, log_std = params["encoder"]
    weights, log_noise = params["decoder"]
    encoder = lambda x: (gain @ x, log_std)
    decoder = lambda z: distributions.gaussian(weights @ z, log_noise)
    return encoder, decoder


@pytest.mark.slow
def test_a_trained_linear_vae_reaches_the_evidence_of_probabilistic_pca(x64):
    """The mean bound after training is the greatest evidence of probabilistic
    PCA to 1e-3 nats, and not above it.

    A diagonal encoder suffices, as the bound itself turns W so that WᵀW is
    diagonal (Lucas et al. 2019). The mean is over 64 draws an example: near
    the optimum the draws' total has nearly no variance, so that the standard
    error is far below 1e-3, as asserted.
    """
    xs = ppca_data()
    evidence = Ppca(xs.T @ xs / len(xs), 2).log_prob(xs).mean()
    encoder, decoder = linear_vae(fit_linear_vae(jnp.asarray(xs), 2))
    one = lambda k, x: gaussian.elbo(k, encoder, decoder, x, prior=OpenNormal()).total
    keys = jax.random.split(jax.random.key(3), (len(xs), 64))
    totals = np.asarray(jax.jit(jax.vmap(jax.vmap(one, (0, None))))(keys, xs))
    error = totals.std(1, ddof=1).mean() / math.sqrt(totals.size)
    assert error < 2e-4
    assert -1e-3 < totals.mean() - evidence < 4 * error, totals.mean() - evidence


def test_bounds_are_in_order(x64):
    """ELBO < IWAE_4 < IWAE_32 < log p in expectation where the encoder is
    wrong, each gap more than 5 standard errors.

    The encoder has twice the posterior's standard deviation and a shifted
    mean, so that each weight varies.
    """
    xs = np.tile(ppca_data(), (10, 1))
    model = Ppca(xs.T @ xs / len(xs), 2)
    keys = keys_of(len(xs))

    def encoder(x):
        mean, log_std = model.encoder(x)
        return mean + 0.2, log_std + math.log(2)

    @jax.jit
    @jax.vmap
    def bounds(key, x):
        few = [
            gaussian.importance_weighted_bound(
                key, encoder, model.decoder, x, samples=k
            )
            for k in (4, 32)
        ]
        return jnp.stack([gaussian.elbo(key, encoder, model.decoder, x).total, *few])

    result = np.column_stack([bounds(keys, xs), model.log_prob(xs)])
    gaps = np.diff(result, axis=1)  # (N, 3)
    assert np.all(gaps.mean(0) > 5 * gaps.std(0, ddof=1) / math.sqrt(len(xs))), (
        gaps.mean(0)
    )


def test_one_draw_weighted_is_the_bound_by_a_draw(x64):
    """IWAE of k = 1 is the ELBO whose KL is by the same draw."""
    model = Ppca(np.diag([4.0, 2.0, 0.3, 0.3, 0.3]), 2)
    encoder = lambda x: (model.encoder(x)[0], np.zeros(2))

    @jax.jit
    def both(x):
        one = gaussian.elbo(KEY, encoder, model.decoder, x, prior=OpenNormal()).total
        return gaussian.importance_weighted_bound(
            KEY, encoder, model.decoder, x, samples=1
        ), one

    np.testing.assert_allclose(*both(np.array([0.3, -1.0, 0.2, 0.5, 0.1])), rtol=1e-13)


def test_beta_and_free_bits_are_their_formulas(x64):
    """total = reconstruction − β Σ max(λ, KL_i) with KL_i = ½(m² + s² − 1 − log s²).

    Below λ no gradient pushes.
    """
    mean, log_std = np.array([0.1, 1.5, 0.0]), np.array([0.05, -1.0, 0.0])
    kl = 0.5 * (mean**2 + np.exp(2 * log_std) - 1 - 2 * log_std)
    decoder = lambda z: distributions.gaussian(z[:2], 0.0)

    def bound(log_std, **settings):
        return gaussian.elbo(
            KEY, lambda x: (mean, log_std), decoder, np.array([0.4, 0.2]), **settings
        )

    result = jax.jit(lambda **settings: bound(log_std, **settings))
    plain = jax.tree.map(np.asarray, result())
    np.testing.assert_allclose(plain.kl, kl.sum(), rtol=1e-13)
    for beta, free in ((1.0, 0.0), (4.0, 0.0), (0.0, 0.0), (2.0, 0.3)):
        terms = result(beta=beta, free_bits=free)
        expected = plain.reconstruction - beta * np.maximum(kl, free).sum()
        np.testing.assert_allclose(terms.total, expected, rtol=1e-13)
        np.testing.assert_allclose(terms.kl, plain.kl, rtol=1e-14)

    def charged(log_std):
        terms = bound(log_std, free_bits=0.3)
        return terms.total - terms.reconstruction

    slope = np.asarray(jax.jit(jax.grad(charged))(log_std))
    assert slope[0] == 0 == slope[2] and slope[1] != 0


def test_one_draw_weighted_has_the_bound_s_expectation(x64):
    """E IWAE_1 = ELBO with the KL in closed form: E log p(x | z) of a
    linear-Gaussian model is known, so both means are compared with the exact
    bound, within 4.5 standard errors.
    """
    x, mean, std = np.array([0.4, -0.2]), np.array([0.7, -0.3]), np.array([0.5, 1.5])
    encoder, decoder = (
        (lambda x: (mean, np.log(std))),
        (lambda z: distributions.gaussian(2 * z, math.log(0.8))),
    )
    misfit = np.sum((x - 2 * mean) ** 2 + 4 * std**2) / 0.8**2
    kl = 0.5 * np.sum(mean**2 + std**2 - 1 - 2 * np.log(std))
    exact = -0.5 * misfit - math.log(2 * math.pi * 0.8**2) - kl
    n = 20000
    one = lambda k: gaussian.elbo(k, encoder, decoder, x).total
    many = lambda k: gaussian.importance_weighted_bound(
        k, encoder, decoder, x, samples=1
    )
    both = jax.jit(lambda: (jax.vmap(one)(keys_of(n)), jax.vmap(many)(keys_of(n, 2))))
    for result in map(np.asarray, both()):
        assert abs(result.mean() - exact) < 4.5 * result.std() / math.sqrt(n)


def test_no_free_bits_may_be_an_array(x64):
    """λ = 0 as an array is λ = 0, under a prior without closed form too."""
    result = [
        gaussian.elbo(KEY, PAIR, PLAIN, X, prior=OpenNormal(), free_bits=zero)
        for zero in (0, jnp.zeros(()))
    ]
    np.testing.assert_array_equal(result[0], result[1])


def test_new_parameters_do_not_retrace():
    """A kernel bound by Partial brings its parameters as leaves: one trace for
    any parameters, β and key.
    """
    traces = []
    network = Perceptron((2, 2), width=4, depth=0)

    def encode(params, x):
        return tuple(network.apply(params, x))

    @jax.jit
    def bound(encoder, key, x, beta):
        traces.append(1)
        return gaussian.elbo(key, encoder, PLAIN, x, beta=beta).total

    params = network.init(KEY, X)
    values = [
        bound(jax.tree_util.Partial(encode, p), key, X, beta)
        for p, key, beta in (
            (params, KEY, 1.0),
            (jax.tree.map(lambda v: v + 1, params), KEY, 1.0),
            (params, jax.random.key(1), 2.0),
        )
    ]
    assert len(traces) == 1 and len({float(v) for v in values}) == 3


def test_a_prior_may_be_any_distribution(x64):
    """A Gaussian prior in closed form, the same as a target, as a flow's base,
    and as `distributions.standard_normal`, agree in expectation. Samples are
    those of p(z) and p(x | z), and repeat under their key.
    """
    mean, log_std = np.array([0.3, -0.2]), np.array([-0.5, 0.2])
    encoder, decoder = (
        (lambda x: (mean, log_std)),
        (lambda z: distributions.gaussian(z, math.log(0.5))),
    )
    x, keys = np.array([0.1, 0.2]), keys_of(4000)

    @jax.jit
    def everything(keys, prior):
        kl = lambda key, prior=None: (
            gaussian.elbo(key, encoder, decoder, x, prior=prior).kl
        )
        closed = (
            kl(KEY, distributions.Gaussian(np.full(2, 0.5), np.full(2, 2.0))),
            kl(KEY, distributions.standard_normal((2,))),
            kl(KEY),
        )
        draws = jax.vmap(
            lambda key: (kl(key, prior), gaussian.sample(key, decoder, prior))
        )(keys)
        return closed, *draws, gaussian.sample(keys[1], decoder, prior)

    prior = targets.gaussian([0.5, 0.5], math.sqrt(2.0))
    (exact, standard, plain), drawn, xs, again = jax.tree.map(
        np.asarray, everything(keys, prior)
    )
    np.testing.assert_allclose(standard, plain, rtol=1e-14)
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / math.sqrt(4000)
    assert np.all(np.abs(xs.mean(0) - 0.5) < 4.5 * math.sqrt(2.25 / 4000))
    assert np.all(np.abs(xs.var(0) - 2.25) < 4.5 * 2.25 * math.sqrt(2 / 4000))
    np.testing.assert_array_equal(again, xs[1])


def test_fitted_gaussian_has_the_moments_of_its_latents(x64):
    """Its mean and covariance are those of the data, divided by N: no other
    Gaussian has a greater likelihood.
    """
    zs = ppca_data(50)[:, :3] + 0.3
    distribution = priors.fitted_gaussian(zs)
    np.testing.assert_allclose(distribution.mean(), zs.mean(0), rtol=1e-13)
    np.testing.assert_allclose(
        distribution.covariance(), np.cov(zs.T, bias=True), rtol=1e-10, atol=1e-13
    )


def test_a_diffusion_prior_is_the_distribution_of_its_denoiser(x64):
    """With an exact denoiser its log density is the target's at t_min but for
    its start: N(0, I) stands for p_T, whose mean is α_T m, so that log p is
    off by α_T m·x_T at most, with |x_T| < 5. Samples have the target's
    moments, and both pass through vmap and jit.
    """
    schedule, target = (
        dj.schedules.vp_linear(),
        targets.gaussian([0.4, -0.2], [0.7, 0.5]),
    )
    grid = dj.grids.log_snr(schedule, 32)
    denoiser = targets.denoiser(target, schedule)
    prior = priors.diffusion(
        denoiser,
        schedule,
        (2,),
        solver=dj.solvers.dpmpp_2m(),
        grid=dj.grids.to_zero(grid),
        likelihood_grid=grid,
    )
    zs = np.random.default_rng(0).normal([0.4, -0.2], [0.7, 0.5], (6, 2))

    @jax.jit
    def everything(zs, keys):
        exact = jax.vmap(target.noised(schedule, schedule.t_min).log_prob)(zs)
        return jax.vmap(prior.log_prob)(zs), exact, jax.vmap(prior.sample)(keys)

    result, exact, drawn = map(np.asarray, everything(zs, keys_of(2000)))
    np.testing.assert_allclose(
        result,
        exact,
        rtol=0,
        atol=float(schedule.alpha(1.0)) * math.hypot(0.4, 0.2) * 5,
    )
    std = np.array([0.7, 0.5])
    assert np.all(np.abs(drawn.mean(0) - [0.4, -0.2]) < 4.5 * std / math.sqrt(2000))
    assert np.all(np.abs(drawn.std(0) / std - 1) < 4.5 / math.sqrt(4000))
    np.testing.assert_allclose(prior.sample(keys_of(2000)[3]), drawn[3], rtol=1e-9)


def test_the_perceptron_has_the_shape_requested():
    """A small output at first, of the outputs' shape for an input of any.

    Parameters do not depend on the batch.
    """
    network = Perceptron((2, 3), width=8, depth=1, dropout=0.5)
    x = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)

    @jax.jit
    def outputs(x):
        apply = functools.partial(network.apply, network.init(KEY, x))
        return (
            apply(x),
            jax.vmap(apply)(jnp.stack([x, -x]))[0],
            apply(x, train=True, rngs={"dropout": KEY}),
        )

    plain, batched, dropped = outputs(x)
    assert plain.shape == (2, 3) and np.abs(plain).max() < 1
    np.testing.assert_allclose(batched, plain, rtol=1e-5, atol=1e-6)
    assert not np.allclose(dropped, plain)


# ------------------------------------------------------------------------------- errors


def encoder_of(mean, log_std):
    return lambda x: (jnp.asarray(mean), jnp.asarray(log_std))


PAIR, X = encoder_of([0.0, 0.0], [0.0, 0.0]), jnp.array([0.1, 0.2])
PLAIN = lambda z: distributions.gaussian(z, 0.0)
STILL = lambda x: (x, 0 * x)
SHIFTED = flows.flow(distributions.standard_normal((2,)), flows.affine(np.zeros(2)))
ERRORS = {
    "nan in x": (
        lambda: gaussian.elbo(KEY, PAIR, PLAIN, [0.1, math.nan]),
        ValueError,
        "x must be finite, got 1 NaN",
    ),
    "key": (
        lambda: gaussian.elbo(0, PAIR, PLAIN, X),
        TypeError,
        "key must be a typed key",
    ),
    "nan in mean": (
        lambda: gaussian.elbo(KEY, encoder_of([0, math.nan], 0.0), PLAIN, X),
        ValueError,
        "encoder's mean must be finite",
    ),
    "log_std": (
        lambda: gaussian.elbo(KEY, encoder_of([0.0, 0.0], [0.0] * 3), PLAIN, X),
        ValueError,
        r"encoder's log_std must have shape .*got \(3,\)",
    ),
    "no pair": (
        lambda: gaussian.elbo(KEY, lambda x: x, PLAIN, X),
        TypeError,
        r"encoder's output must be a pair \(mean, log_std\) or a Gaussian",
    ),
    "decoder": (
        lambda: gaussian.elbo(KEY, PAIR, lambda z: z, X),
        TypeError,
        r"decoder must have log_prob\(x\), got",
    ),
    "decoder's shape": (
        lambda: gaussian.elbo(
            KEY, PAIR, lambda z: distributions.gaussian(jnp.zeros(3), 0.0), X
        ),
        ValueError,
        (
            r"decoder's mean must have shape \(\) or \(2,\), got "
            r"\(3,\)"
        ),
    ),
    "decoder's distribution": (
        lambda: gaussian.elbo(
            KEY, PAIR, lambda z: distributions.bernoulli(jnp.zeros(3)), X
        ),
        ValueError,
        r"x must have shape \(3,\), got \(2,\)",
    ),
    "variance": (
        lambda: gaussian.elbo(KEY, lambda x: distributions.Gaussian(x, -1.0), PLAIN, X),
        ValueError,
        "encoder's variance must be positive, got -1",
    ),
    "tiny log_std": (
        lambda: gaussian.elbo(KEY, encoder_of([0.0, 0.0], -60.0), PLAIN, X),
        ValueError,
        "the variance of encoder's log_std must be positive, got 0",
    ),
    "huge log_std": (
        lambda: gaussian.elbo(KEY, encoder_of([0.0, 0.0], 60.0), PLAIN, X),
        ValueError,
        "the variance of encoder's log_std must be finite",
    ),
    "prior's class": (
        lambda: gaussian.elbo(KEY, PAIR, PLAIN, X, prior=OpenNormal),
        TypeError,
        r"prior must have log_prob\(z\), got <class",
    ),
    "decoder's draw": (
        lambda: gaussian.sample(KEY, lambda z: z, distributions.standard_normal((2,))),
        TypeError,
        r"decoder's output must have sample\(key\)",
    ),
    "diffusion's schedule": (
        lambda: priors.diffusion(lambda z, t: z, 3, (2,)),
        TypeError,
        "schedule must have alpha",
    ),
    "diffusion's solver": (
        lambda: priors.diffusion(
            lambda z, t: z, dj.schedules.vp_linear(), (2,), solver=dj.solvers.heun
        ),
        TypeError,
        "solver must be made by a factory",
    ),
    "diffusion's grid": (
        lambda: priors.diffusion(
            lambda z, t: z, dj.schedules.vp_linear(), (2,), grid=[1.0, math.nan]
        ),
        ValueError,
        "grid must be finite",
    ),
    "likelihood_grid": (
        lambda: priors.diffusion(
            lambda z, t: z, dj.schedules.vp_linear(), (2,), likelihood_grid=[1.0, 0.0]
        ),
        ValueError,
        "likelihood_grid must lie in the schedule's interval",
    ),
    "beta": (
        lambda: gaussian.elbo(KEY, PAIR, PLAIN, X, beta=-1.0),
        ValueError,
        "beta must be 0 or more, got -1.0",
    ),
    "free_bits": (
        lambda: gaussian.elbo(KEY, PAIR, PLAIN, X, prior=OpenNormal(), free_bits=0.1),
        ValueError,
        "free_bits must be 0 where the prior is no Gaussian, got 0.1",
    ),
    "free_bits, of what is compiled": (
        lambda: gaussian.elbo(KEY, STILL, PLAIN, X, prior=SHIFTED, free_bits=0.1),
        ValueError,
        "free_bits must be 0 where the prior is no Gaussian, got 0.1",
    ),
    "prior": (
        lambda: gaussian.elbo(KEY, PAIR, PLAIN, X, prior=3.0),
        TypeError,
        r"prior must have log_prob\(z\), got 3.0",
    ),
    "prior's shape": (
        lambda: gaussian.elbo(
            KEY, PAIR, PLAIN, X, prior=distributions.standard_normal((3,))
        ),
        ValueError,
        r"prior must be a distribution of latents of shape \(2,\), got shape \(3,\)",
    ),
    "prior's mean": (
        lambda: gaussian.elbo(
            KEY, PAIR, PLAIN, X, prior=distributions.Gaussian(jnp.zeros(3), 1.0)
        ),
        ValueError,
        r"prior.loc must have shape \(\) or \(2,\), got \(3,\)",
    ),
    "prior's draw": (
        lambda: gaussian.sample(KEY, PLAIN, OpenNormal()),
        TypeError,
        r"prior must have sample\(key\)",
    ),
    "samples": (
        lambda: gaussian.importance_weighted_bound(KEY, PAIR, PLAIN, X, samples=0),
        ValueError,
        "samples must be at least 1, got 0",
    ),
    "latents": (
        lambda: priors.fitted_gaussian(np.zeros((3, 3))),
        ValueError,
        r"zs must have shape \(N, d\) with N > d, got \(3, 3\)",
    ),
    "outputs": (
        lambda: Perceptron((2, 0)),
        TypeError,
        "outputs must be a tuple of positive integers",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name):
    assert_raises(*ERRORS[name])
