"""Hierarchical and progressive VAEs: the diffusion is a special case term by
term, bounds hold, phase one has a floor.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import ddpm, distributions, predictions, schedules, targets
from diffjax.vaes import gaussian, hierarchical, progressive
from tests.families import assert_raises

KEY = jax.random.key(0)
EPS = float(np.finfo(np.float64).eps)


def keys_of(count, seed=1):
    return jax.random.split(jax.random.key(seed), count)


# ------------------------------------------------------ the diffusion as a special case


def chain_of(steps):
    """A chain of the linear variance-preserving schedule."""
    return schedules.from_betas(ddpm.betas_of(schedules.vp_linear(), steps))


def mixture():
    return targets.gaussian_mixture([0.4, 0.6], [[-0.9, 0.1], [0.7, -0.2]], [0.3, 0.4])


def as_hierarchy(chain, denoiser, variance, sequences):
    """(inference, decoder, generative) of DDPM's chain, level l being its
    index: as functions of the level, or as sequences of one kernel a level.
    """
    steps = chain.steps
    top = lambda x: ddpm.forward_marginal(chain, x, steps)
    marginal = lambda l, x: ddpm.forward_marginal(chain, x, l)
    posterior = lambda l, z, x: ddpm.posterior(chain, z, x, l)
    reverse = lambda l, z: ddpm.reverse_step(denoiser, chain, z, l, variance=variance)
    decoder = functools.partial(reverse, 1)
    if not sequences:
        return (
            hierarchical.top_down(top, posterior, marginal, layers=steps),
            decoder,
            reverse,
        )
    of_layers = lambda function, first: [
        functools.partial(function, l) for l in range(first, steps + 1)
    ]
    return (
        hierarchical.top_down(top, of_layers(posterior, 2), of_layers(marginal, 1)),
        decoder,
        of_layers(reverse, 2),
    )


@pytest.mark.parametrize(
    "steps, variance, sequences",
    [
        (20, "posterior", False),
        pytest.param(5, "optimal", True, marks=pytest.mark.slow),
        pytest.param(2, "forward", False, marks=pytest.mark.slow),
    ],
)
def test_ddpm_s_bound_is_the_hierarchical_one(steps, variance, sequences, x64):
    """Term by term under one key: the reconstruction, every level's KL, the prior's.

    To rounding: KLs are differences of means scaled by 1/σ, and the schedule's
    tables are reached by two ways, 1e3 ulp of the terms' greatest.
    """
    chain = chain_of(steps)
    denoiser = targets.denoiser(mixture(), chain)
    if variance == "optimal":
        denoiser = ddpm.paired(denoiser, predictions.variance(chain, denoiser))
    inference, decoder, generative = as_hierarchy(chain, denoiser, variance, sequences)

    @jax.jit
    def both(x):
        result = hierarchical.elbo(KEY, inference, decoder, generative, x=x)
        return result, ddpm.elbo(KEY, denoiser, chain, x, variance=variance)

    result, expected = jax.tree.map(np.asarray, both(np.array([0.3, -0.2])))
    scale = float(np.sum(expected.denoising))
    kl = np.append(expected.denoising, expected.prior)
    np.testing.assert_allclose(result.kl, kl, rtol=1e-9, atol=1e3 * EPS * scale)
    np.testing.assert_allclose(
        result.reconstruction, -expected.reconstruction, rtol=1e-9
    )
    np.testing.assert_allclose(result.total, -expected.total, rtol=1e-9)


def test_one_trace_serves_all_levels():
    """A function of the level is traced as often for 50 levels as for 5."""
    counts = []
    for steps in (5, 50):
        chain, calls = chain_of(steps), []
        denoiser = targets.denoiser(mixture(), chain)

        def counted(x, t, calls=calls, denoiser=denoiser):
            calls.append(1)
            return denoiser(x, t)

        inference, decoder, generative = as_hierarchy(
            chain, counted, "posterior", False
        )
        jax.make_jaxpr(
            lambda x: hierarchical.elbo(KEY, inference, decoder, generative, x=x).total
        )(jnp.zeros(2))
        counts.append(len(calls))
    assert counts[0] == counts[1] == 2  # the decoder's and the levels'


# ---------------------------------------------------------------- linear-Gaussian chain


class LinearChain:
    """z_2 ~ N(0, I_2), z_1 = A z_2 + a ε in 3 dimensions, x = B z_1 + b ε in
    4: all distributions are Gaussian.
    """

    def __init__(self):
        rng = np.random.default_rng(0)
        self.a, self.b = 0.5, 0.4
        self.A, self.B = rng.normal(size=(3, 2)), rng.normal(size=(4, 3))
        self.z_1 = self.A @ self.A.T + self.a**2 * np.eye(3)  # covariance
        self.x = self.B @ self.z_1 @ self.B.T + self.b**2 * np.eye(4)

    def decoder(self, z):
        return distributions.gaussian(jnp.asarray(self.B) @ z, math.log(self.b))

    def generative(self, z):
        return jnp.asarray(self.A) @ z, jnp.full(3, math.log(self.a))

    def posterior(self, weights, spread, prior, y):
        """Mean and covariance of z given y = W z + s ε, z ~ N(0, prior)."""
        gain = (
            prior
            @ weights.T
            @ np.linalg.inv(
                weights @ prior @ weights.T + spread**2 * np.eye(len(weights))
            )
        )
        return jnp.asarray(gain) @ y, prior - gain @ weights @ prior

    def bottom_up(self, scale=1.0):
        """Diagonal encoders with the exact posteriors' means and `scale` times
        their standard deviations.
        """

        def kernel(weights, spread, prior, y):
            mean, covariance = self.posterior(weights, spread, prior, y)
            return mean, jnp.log(scale * np.sqrt(np.diag(covariance)))

        return hierarchical.bottom_up(
            [
                functools.partial(kernel, self.B, self.b, self.z_1),
                functools.partial(kernel, self.A, self.a, np.eye(2)),
            ]
        )

    def top_down(self):
        """The diagonal distributions q(z_2 | x) and q(z_1 | z_2, x), the
        second conditional on both.
        """

        def top(x):
            mean, covariance = self.posterior(self.B @ self.A, 1.0, np.eye(2), x)
            return mean, 0.5 * np.log(np.diag(covariance))

        def below(z, x):
            precision = np.eye(3) / self.a**2 + self.B.T @ self.B / self.b**2
            covariance = np.linalg.inv(precision)
            pull = (
                jnp.asarray(self.A) @ z / self.a**2
                + jnp.asarray(self.B.T) @ x / self.b**2
            )
            return jnp.asarray(covariance) @ pull, 0.5 * np.log(np.diag(covariance))

        return hierarchical.top_down(top, [below])

    def log_prob(self, xs):
        squares = np.einsum("ni,ij,nj->n", xs, np.linalg.inv(self.x), xs)
        return -0.5 * (squares + np.linalg.slogdet(2 * math.pi * self.x)[1])


def test_the_bound_of_two_levels_is_below_the_evidence(x64):
    """E total < log p by more than 5 standard errors (the encoders are
    diagonal, the posteriors are not), and by less than an encoder of twice the
    spread leaves. The KLs of `top_down` are each positive.
    """
    chain = LinearChain()
    model = chain.decoder, [chain.generative]

    @jax.jit
    @jax.vmap
    def draw_and_bounds(key_x, key):
        x = hierarchical.sample(key_x, *model, distributions.standard_normal((2,)))
        bottom_up = jax.vmap(
            lambda scale: hierarchical.elbo(key, chain.bottom_up(scale), *model, x=x)
        )(jnp.array([1.0, 2.0]))
        return x, bottom_up, hierarchical.elbo(key, chain.top_down(), *model, x=x)

    xs, bottom_up, top_down = jax.tree.map(
        np.asarray, draw_and_bounds(keys_of(2000), keys_of(2000, 2))
    )
    covariance = (
        xs.T @ xs / len(xs)
    )  # its entries' standard errors are √((C_ii C_jj + C_ij²)/N)
    spread = np.sqrt(
        (np.outer(np.diag(chain.x), np.diag(chain.x)) + chain.x**2) / len(xs)
    )
    assert np.all(np.abs(covariance - chain.x) < 4.5 * spread)

    narrow, wide = chain.log_prob(xs) - np.asarray(bottom_up.total).T
    for gaps in (narrow, chain.log_prob(xs) - np.asarray(top_down.total)):
        assert gaps.mean() > 5 * gaps.std(ddof=1) / math.sqrt(len(xs)), gaps.mean()
    assert top_down.kl.min() >= 0
    assert narrow.mean() < wide.mean()


def test_one_level_is_the_plain_vae(x64):
    """With L = 1 both inferences give `gaussian.elbo` under the same key."""
    encoder = lambda x: (0.3 * x[:2], np.array([-0.4, 0.1]))
    decoder = lambda z: distributions.gaussian(jnp.concatenate([z, z[:1]]), -0.2)
    inferences = hierarchical.bottom_up([encoder]), hierarchical.top_down(encoder, [])

    @jax.jit
    def everything(x):
        levels = [
            hierarchical.elbo(KEY, inference, decoder, [], x=x)
            for inference in inferences
        ]
        return gaussian.elbo(KEY, encoder, decoder, x), levels

    plain, levels = everything(np.array([0.4, -1.0, 0.3]))
    for result in levels:
        np.testing.assert_allclose(result.kl, [plain.kl], rtol=1e-14)
        np.testing.assert_allclose(result.total, plain.total, rtol=1e-14)


def test_functions_of_the_level_and_sequences_agree(x64):
    """The same kernels as one function and as a sequence give the same bound
    and the same samples, for all inferences.
    """
    step = lambda l, z: ((0.3 + 0.1 * l) * jnp.sin(z), jnp.full(2, -0.5) + 0.05 * l)
    back = lambda l, z: (jnp.cos(z) / (1.0 + l), jnp.full(2, -0.2))
    posterior = lambda l, z, x: (z / (1.0 + l) + 0.1 * x, jnp.full(2, -0.7))
    top = lambda x: (x / 3, jnp.zeros(2))
    of_layers = lambda function, first: [
        functools.partial(function, l) for l in range(first, 4)
    ]
    decoder = lambda z: distributions.gaussian(z, 0.0)
    pairs = {
        "bottom_up": (
            hierarchical.bottom_up(step, layers=3),
            hierarchical.bottom_up(of_layers(step, 1)),
        ),
        "top_down": (
            hierarchical.top_down(top, posterior, layers=3),
            hierarchical.top_down(top, of_layers(posterior, 2)),
        ),
    }
    prior = distributions.standard_normal((2,))

    @jax.jit
    def everything(x, z):
        bounds = [
            (
                hierarchical.elbo(KEY, one, decoder, back, x=x),
                hierarchical.elbo(KEY, many, decoder, of_layers(back, 2), x=x),
            )
            for one, many in pairs.values()
        ]
        samples = [
            hierarchical.sample(KEY, decoder, back, prior, layers=3),
            hierarchical.sample(KEY, decoder, of_layers(back, 2), prior),
        ]
        means = (
            hierarchical.decode(
                KEY, decoder, of_layers(back, 2), z, layer=3, mean=True
            ),
            back(2, back(3, z)[0])[0],
        )
        return bounds, samples, means

    bounds, samples, means = everything(np.array([0.5, -0.3]), np.array([0.1, 0.2]))
    for stacked, listed in bounds:
        np.testing.assert_allclose(stacked.kl, listed.kl, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(stacked.total, listed.total, rtol=1e-12)
    np.testing.assert_allclose(*samples, rtol=1e-13)
    np.testing.assert_allclose(*means, rtol=1e-14)


def test_means_of_any_distribution_are_passed_down():
    """mean=True takes the mean of a target, a method, as of a decoder, an attribute."""
    distribution = lambda z: targets.gaussian(2 * z, 0.5)
    result = hierarchical.decode(
        KEY, distribution, [distribution], X, layer=2, mean=True
    )
    np.testing.assert_allclose(result, 4 * X, rtol=1e-6)


# -------------------------------------------------------------------------- progressive


def test_phase_one_is_bounded_below_and_unbounded_without_it(x64):
    """E −ln p(z_1 | z_2) ≥ h(z_1) − capacity for bounded encoders, z_1 ~ N(0,
    1), with the best linear Gaussian decoder of the draws. Without the bound a
    mean that grows tenfold gains ln 10, for ever, and passes that floor.
    """
    noise_std = 0.3
    floor = 0.5 * math.log(2 * math.pi * math.e) - float(
        progressive.capacity(1, noise_std)
    )
    zs = np.random.default_rng(0).normal(size=20000)
    noise = np.random.default_rng(1).normal(size=20000)

    def loss(mean):
        """Of the decoder N(c z_2, v), c and v by least squares: ½ log(2πe v)."""
        above = mean + noise_std * noise
        slope = (above @ zs) / (above @ above)
        return 0.5 * math.log(2 * math.pi * math.e * np.mean((zs - slope * above) ** 2))

    means = jax.jit(
        jax.vmap(
            lambda gain: (
                progressive.bounded_encoder(lambda z: gain * z, noise_std)(zs).loc
            )
        )
    )
    losses = [
        loss(mean) for mean in np.asarray(means(np.array([0.1, 0.5, 1.0, 10.0, 1e4])))
    ]
    assert min(losses) > floor
    unbounded = [loss(gain * zs) for gain in (1.0, 10.0, 100.0, 1000.0)]
    # without the bound v → s²/gain², and each factor of 10 gains ln 10, for ever: from
    # gain 10 on to ½(s/gain)² and, as the draws' correlation is within 4.5/√N of 0,
    # twice that times s/gain
    off = 0.5 * (noise_std / 10) ** 2 + 2 * 4.5 / math.sqrt(len(zs)) * noise_std / 10
    np.testing.assert_allclose(np.diff(unbounded)[1:], -math.log(10), rtol=0, atol=off)
    assert unbounded[1] < floor


def test_exact_layers_and_the_exact_prior_are_the_data(x64):
    """With p(z_{l−1} | z_l) the encoders' own and p(z_L) their marginal, the bound is
    log p(x) for every encoder, in expectation, and samples have the data's moments.

    For N(0, 1) and encoders N(c z, s²): p(z_{l−1} | z_l) = N(c v z/w, v s²/w), where
    w = c² v + s² and v are the variances of z_l and z_{l−1}.
    """
    gains, spreads, variances = (0.7, 1.3), (0.4, 0.8), [1.0]
    for gain, spread in zip(gains, spreads, strict=True):
        variances.append(gain**2 * variances[-1] + spread**2)
    encoders = [
        lambda z, c=c, s=s: (c * z, jnp.full_like(z, math.log(s)))
        for c, s in zip(gains, spreads, strict=True)
    ]
    layers = [
        lambda z, c=c, s=s, v=v, w=w: distributions.gaussian(
            c * v * z / w, 0.5 * math.log(v * s**2 / w)
        )
        for c, s, v, w in zip(gains, spreads, variances, variances[1:], strict=False)
    ]
    prior = distributions.Gaussian(np.zeros(1), np.array([variances[-1]]))
    inference, count, x = hierarchical.bottom_up(encoders), 4000, np.array([0.8])

    @jax.jit
    @jax.vmap
    def both(key):
        model = layers[0], layers[1:]
        bound = hierarchical.elbo(key, inference, *model, x=x, prior=prior)
        return bound.total, hierarchical.sample(key, *model, prior)[0]

    totals, xs = map(np.asarray, both(keys_of(count)))
    log_p = -0.5 * (x[0] ** 2 + math.log(2 * math.pi))
    error = totals.std(ddof=1) / math.sqrt(count)
    assert abs(totals.mean() - log_p) < 4 * error < 0.05
    assert abs(xs.mean()) < 4 / math.sqrt(count)
    assert abs(xs.var() - 1) < 4 * math.sqrt(2 / count)


def test_losses_of_a_layer_pass_no_gradient_below_and_are_its_decoder_s(x64):
    """−ln p(z_{l−1} | z_l) at the draws.

    The gradient of layer 2's loss by layer 1's parameters is 0, its own is
    not. Parameters that are shared are moved by both. Noise_std by none.
    """
    x = np.array([0.3, -0.6])

    def run(a, b, c, d, noise_std=0.2):
        encoders = [
            progressive.bounded_encoder(lambda z, w=w: w * z, noise_std) for w in (a, b)
        ]
        kernels = [lambda z, w=w: distributions.gaussian(w * z, -0.3) for w in (c, d)]
        return progressive.reconstruction_losses(KEY, encoders, kernels, x)

    values = (0.5, 0.8, 1.1, 0.9)

    @jax.jit
    def everything(*values):
        losses, latents = run(*values)
        expected = [
            -distributions.gaussian(1.1 * latents[0], -0.3).log_prob(x),
            -distributions.gaussian(0.9 * latents[1], -0.3).log_prob(latents[0]),
        ]
        slopes = jax.jacobian(lambda *v: run(*v)[0], argnums=(0, 1, 2, 3, 4))(
            *values, 0.2
        )
        return (
            losses,
            expected,
            slopes,
            jax.jacobian(lambda w: run(w, w, 1.1, 0.9)[0])(values[0]),
        )

    losses, expected, slopes, shared = jax.tree.map(np.asarray, everything(*values))
    np.testing.assert_allclose(losses, expected, rtol=1e-14)
    assert np.all(
        (np.transpose(slopes) != 0)
        == np.array([[1, 0, 1, 0, 0], [0, 1, 0, 1, 0]], bool)
    )
    assert np.all(shared != 0)


def test_information_is_between_its_bounds(x64):
    """z = m + s ε with m uniform on ±1, a channel whose information is known
    by quadrature: both lower bounds are below it, the second with the exact
    posterior as decoder meets it. Gaussian bound and capacity are above.
    """
    noise_std, count = 0.7, 3000
    grid = np.linspace(-8, 8, 4001)
    density = lambda m: (
        np.exp(-0.5 * ((grid - m) / noise_std) ** 2)
        / (noise_std * math.sqrt(2 * math.pi))
    )
    p = 0.5 * (density(1) + density(-1))
    entropy = -np.sum(p * np.log(np.maximum(p, 1e-300))) * (grid[1] - grid[0])
    noise = float(progressive.noise_entropy(1, noise_std))
    np.testing.assert_allclose(
        noise, 0.5 * math.log(2 * math.pi * math.e * noise_std**2), rtol=1e-14
    )
    exact = entropy - noise
    bits = np.random.default_rng(0).integers(0, 2, (count, 1)).astype(float)
    encoder = lambda b: distributions.Gaussian(2 * b - 1, noise_std**2)
    decoder = lambda z: distributions.bernoulli(2 * z / noise_std**2)
    measure = jax.jit(
        lambda key: progressive.information(key, encoder, decoder, bits)[0]
    )
    result = jax.tree.map(np.asarray, jax.vmap(measure)(keys_of(4)))
    # each draw's information density has a standard deviation below 1
    error = 4 / math.sqrt(4 * count)
    lower = result.lower(math.log(2))
    np.testing.assert_allclose(
        result.reconstruction.mean() + math.log(2), exact, atol=error
    )
    np.testing.assert_allclose(result.contrastive.mean(), exact, atol=error + 1 / count)
    assert np.all(lower >= result.contrastive) and lower.mean() < exact + error
    gaussian_bound = 0.5 * math.log(1 + 1 / noise_std**2)  # of a mean with variance 1
    assert (
        exact + error
        < result.gaussian.mean()
        <= float(progressive.capacity(1, noise_std)) + 1e-12
    )
    exact_bound = 0.5 * math.log(
        1 + np.var(2 * bits - 1) / noise_std**2
    )  # the examples' variance, just below 1
    np.testing.assert_allclose(result.gaussian, exact_bound, rtol=1e-12)
    np.testing.assert_allclose(
        progressive.capacity(3, noise_std), 3 * gaussian_bound, rtol=1e-14
    )


def test_information_of_a_linear_gaussian_channel(x64):
    """y = A x + s ε with x ~ N(0, I_2): I = ½ log det(I + AAᵀ/s²).

    The exact posterior as decoder meets I, the contrastive bound stays below,
    the Gaussian one meets it less half its log det's bias, d (d + 3)/4N at
    most.
    """
    count, spread, repeats = 400, 0.8, 24
    gain = np.array([[1.2, 0.3], [-0.4, 0.7]])
    exact = 0.5 * np.linalg.slogdet(np.eye(2) + gain @ gain.T / spread**2)[1]
    noise = gain @ gain.T + spread**2 * np.eye(2)
    back = gain.T @ np.linalg.inv(noise)  # E x | y
    factor = np.linalg.cholesky(np.eye(2) - back @ gain)

    class Posterior:
        def __init__(self, y):
            self.mean = jnp.asarray(back) @ y

        def log_prob(self, x):
            scaled = jnp.asarray(np.linalg.inv(factor)) @ (x - self.mean)
            return (
                -0.5 * jnp.sum(scaled**2)
                - math.log(2 * math.pi)
                - math.log(np.prod(np.diag(factor)))
            )

    encoder = lambda x: distributions.Gaussian(jnp.asarray(gain) @ x, spread**2)
    xs = jax.random.normal(jax.random.key(5), (repeats, count, 2))
    run = jax.jit(
        jax.vmap(
            lambda key, xs: progressive.information(key, encoder, Posterior, xs)[0]
        )
    )
    result = jax.tree.map(np.asarray, run(keys_of(repeats), xs))
    errors = jax.tree.map(lambda v: 4.5 * v.std(ddof=1) / math.sqrt(repeats), result)
    entropy = math.log(2 * math.pi * math.e)  # of x
    assert abs(result.reconstruction.mean() + entropy - exact) < errors.reconstruction
    assert result.contrastive.mean() < exact + errors.contrastive
    assert (
        exact - 10 / (4 * count) - errors.gaussian
        < result.gaussian.mean()
        < exact + errors.gaussian
    )
    assert np.all(result.contrastive <= math.log(count))


def test_a_contrastive_bound_cannot_pass_log_n():
    """Where N examples are distinguished without fail the bound is log N, and
    no more.
    """
    zs = 100.0 * np.arange(16.0, dtype=np.float32)[:, None]
    channel = lambda z: (z, np.zeros(1)), lambda z: distributions.gaussian(z, 0.0)
    result, above = jax.jit(lambda zs: progressive.information(KEY, *channel, zs))(zs)
    np.testing.assert_allclose(result.contrastive, math.log(16), rtol=1e-6)
    assert above.shape == zs.shape


@pytest.mark.slow
def test_two_phases_give_a_bound_near_the_entropy(x64):
    """Two layers trained without a prior on correlated Gaussians, then a
    Gaussian on the top: the mean bound is below the mean log p, by at most a
    nat, where a model without latents, the product of the marginals, is below
    it by 1.5.
    """
    target = targets.gaussian(
        np.zeros(3), np.array([[1.0, 0.9, 0.8], [0.9, 1.0, 0.9], [0.8, 0.9, 1.0]])
    )
    xs = jax.vmap(target.sample)(keys_of(2000))
    params = {
        "e": (0.5 * jnp.eye(3)[:2], 0.5 * jnp.eye(2)[:1]),
        "d": ((0.1 * jnp.ones((3, 2)), jnp.zeros(3)), (jnp.ones((2, 1)), jnp.zeros(2))),
    }

    def kernels(params):
        encoders = [
            progressive.bounded_encoder(functools.partial(jnp.matmul, w), 0.2)
            for w in params["e"]
        ]
        return encoders, [
            lambda z, w=w, s=s: distributions.gaussian(w @ z, s) for w, s in params["d"]
        ]

    def loss(params, keys):
        return jnp.mean(
            jax.vmap(
                lambda k, x: progressive.reconstruction_losses(k, *kernels(params), x)[
                    0
                ].sum()
            )(keys, xs)
        )

    optimiser = optax.adam(optax.cosine_decay_schedule(2e-2, 800))

    def step(carry, key):
        params, state = carry
        updates, state = optimiser.update(
            jax.grad(loss)(params, jax.random.split(key, len(xs))), state
        )
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(
        lambda keys: jax.lax.scan(step, (params, optimiser.init(params)), keys)[0][0]
    )
    encoders, layers = kernels(run(keys_of(800, 2)))
    tops = jax.vmap(
        lambda k, x: progressive.reconstruction_losses(k, encoders, layers, x)[1][1]
    )(keys_of(2000, 3), xs)
    prior = targets.gaussian(tops.mean(0), tops.std(0))
    inference = hierarchical.bottom_up(encoders)
    bound = jax.vmap(
        lambda k, x: (
            hierarchical.elbo(
                k, inference, layers[0], layers[1:], x=x, prior=prior
            ).total
        )
    )
    gap = np.asarray(
        jax.vmap(target.log_prob)(xs) - jax.jit(bound)(keys_of(2000, 4), xs)
    )
    assert 4 * gap.std(ddof=1) / math.sqrt(len(xs)) < gap.mean() < 1.0, gap.mean()


# ------------------------------------------------------------------------------- errors

PAIR = lambda z: (z, jnp.zeros_like(z))
PLAIN = lambda z: distributions.gaussian(z, 0.0)
X = jnp.array([0.1, 0.2])
TWO = hierarchical.bottom_up([PAIR, PAIR])
WIDE = lambda z: (jnp.zeros(3), jnp.zeros(3))
ERRORS = {
    "too few": (
        lambda: hierarchical.elbo(KEY, TWO, PLAIN, [], x=X),
        ValueError,
        "generative must be 1 kernels for 2 layers, got 0",
    ),
    "too many": (
        lambda: hierarchical.elbo(KEY, TWO, PLAIN, [PAIR, PAIR], x=X),
        ValueError,
        "generative must be 1 kernels for 2 layers, got 2",
    ),
    "posteriors": (
        lambda: hierarchical.top_down(PAIR, [PAIR], layers=4),
        ValueError,
        "posteriors must be 3 kernels for 4 layers, got 1",
    ),
    "marginals": (
        lambda: hierarchical.top_down(PAIR, [PAIR], [PAIR]),
        ValueError,
        "marginals must be 2 kernels for 2 layers, got 1",
    ),
    "levels": (
        lambda: hierarchical.bottom_up(lambda l, z: PAIR(z)),
        ValueError,
        "layers must be given: kernels is callable",
    ),
    "no levels": (
        lambda: hierarchical.bottom_up(lambda l, z: PAIR(z), layers=0),
        ValueError,
        "layers must be between 1 and 1000, got 0",
    ),
    "none": (
        lambda: hierarchical.bottom_up([]),
        ValueError,
        "kernels must be 1 kernels for 1 layers, got 0",
    ),
    "no kernels": (
        lambda: hierarchical.bottom_up(3),
        TypeError,
        "kernels must be a sequence of callables, or one function of the layer, got 3",
    ),
    "inference": (
        lambda: hierarchical.elbo(KEY, PAIR, PLAIN, [PAIR], x=X),
        TypeError,
        "inference must be made by bottom_up or top_down",
    ),
    "generative's shape": (
        lambda: hierarchical.elbo(KEY, TWO, PLAIN, [WIDE], x=X),
        ValueError,
        r"generative\[2\]'s mean must have shape \(2,\), got \(3,\)",
    ),
    "decoder's shape": (
        lambda: hierarchical.elbo(
            KEY, TWO, lambda z: distributions.gaussian(jnp.zeros(3), 0.0), [PAIR], x=X
        ),
        ValueError,
        r"decoder's mean must have shape \(\) or \(2,\)",
    ),
    "marginals' shape": (
        lambda: hierarchical.elbo(
            KEY,
            hierarchical.top_down(PAIR, [lambda z, x: PAIR(z)], [WIDE, PAIR]),
            PLAIN,
            [PAIR],
            x=X,
        ),
        ValueError,
        r"posteriors\[2\]'s mean must have shape \(3,\), got \(2,\)",
    ),
    "top marginal": (
        lambda: hierarchical.elbo(
            KEY,
            hierarchical.top_down(PAIR, [lambda z, x: PAIR(z)], [PAIR, WIDE]),
            PLAIN,
            [PAIR],
            x=X,
        ),
        ValueError,
        r"marginals\[2\]'s mean must have shape \(2,\), got \(3,\)",
    ),
    "stacked posteriors": (
        lambda: hierarchical.elbo(
            KEY,
            hierarchical.top_down(PAIR, lambda l, z, x: WIDE(z), layers=3),
            PLAIN,
            lambda l, z: PAIR(z),
            x=X,
        ),
        ValueError,
        r"posteriors's mean must have shape \(2,\), got \(3,\)",
    ),
    "stacked decoding": (
        lambda: hierarchical.decode(KEY, PLAIN, lambda l, z: WIDE(z), X, layer=3),
        ValueError,
        r"generative's mean must have shape \(2,\), got \(3,\)",
    ),
    "no distribution": (
        lambda: hierarchical.decode(KEY, PAIR, [], X, layer=1),
        TypeError,
        r"decoder's output must have sample\(key\)",
    ),
    "no mean": (
        lambda: hierarchical.decode(KEY, PAIR, [], X, layer=1, mean=True),
        TypeError,
        "decoder's output must have mean",
    ),
    "negative noise": (
        lambda: progressive.noise_entropy(2, -1.0),
        ValueError,
        "noise_std must be positive, got -1.0",
    ),
    "nan": (
        lambda: hierarchical.elbo(
            KEY,
            hierarchical.bottom_up([PAIR, lambda z: (z * math.nan, z)]),
            PLAIN,
            [PAIR],
            x=X,
        ),
        ValueError,
        r"kernels\[2\]'s mean must be finite",
    ),
    "nan in x": (
        lambda: hierarchical.elbo(KEY, TWO, PLAIN, [PAIR], x=X * math.nan),
        ValueError,
        "x must be finite, got 2 NaN",
    ),
    "prior's type": (
        lambda: hierarchical.elbo(KEY, TWO, PLAIN, [PAIR], x=X, prior=3.0),
        TypeError,
        r"prior must have log_prob\(z\), got 3.0",
    ),
    "prior": (
        lambda: hierarchical.elbo(
            KEY, TWO, PLAIN, [PAIR], x=X, prior=distributions.standard_normal((3,))
        ),
        ValueError,
        r"prior must be a distribution of latents of shape \(2,\)",
    ),
    "level": (
        lambda: hierarchical.decode(KEY, PLAIN, [PAIR], X, layer=3),
        ValueError,
        "layer must be between 1 and 2, got 3",
    ),
    "noise": (
        lambda: progressive.bounded_encoder(PAIR, 0.0),
        ValueError,
        "noise_std must be positive, got 0.0",
    ),
    "layers": (
        lambda: progressive.reconstruction_losses(KEY, [PAIR, PAIR], [PLAIN], X),
        ValueError,
        "decoders must be as many as encoders, 2, got 1",
    ),
    "layer's shape": (
        lambda: progressive.reconstruction_losses(KEY, [PAIR, PAIR], [PLAIN, WIDE], X),
        ValueError,
        r"decoders\[1\]'s mean must have shape \(2,\), got \(3,\)",
    ),
    "examples": (
        lambda: progressive.information(KEY, PAIR, PLAIN, X[None]),
        ValueError,
        r"zs must have shape \(N, ...\) with N at least 2, got \(1, 2\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name):
    assert_raises(*ERRORS[name])
