"""Weights as values, and weights that are learned, against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import losses, predictions, schedules
from diffjax.losses import uncertainty, weights
from diffjax.types import pytree
from tests.families import Own, quick

SIGMA_DATA, SPREAD = 0.5, 1.0
KEY = jax.random.key(2)

# Each weight of the noise's error, from its paper, as a function of the SNR.
OF_NOISE_ERROR = {
    "simple": (weights.simple(), lambda snr: np.ones_like(snr)),
    "edm": (weights.edm(), lambda snr: 1 + 1 / (snr * SIGMA_DATA**2)),
    "min_snr": (weights.min_snr(2.0), lambda snr: np.minimum(snr, 2.0) / snr),
    "p2": (weights.p2(0.7, 1.5), lambda snr: (1.5 + snr) ** -0.7),
    "sigmoid": (weights.sigmoid(-1.0), lambda snr: 1 / (1 + np.exp(1.0) * snr)),
}


@pytest.mark.parametrize("name", OF_NOISE_ERROR)
def test_weights_of_each_error_are_one_weight(name, x64):
    """w ‖D − x_0‖² = w σ²/α² ‖ε̂ − ε‖² = w σ²/(α² + σ²) ‖v̂ − v‖².

    The last is the published form for v, min(SNR, γ)/(SNR + 1) for min-SNR. A
    network off by δ has that weight times δ² as its loss.
    """
    weight, of_noise = OF_NOISE_ERROR[name]
    schedule, t = Own(1.5, 1e-3, 0.99), np.array([0.05, 0.3, 0.8])
    snr = np.asarray((schedule.alpha(t) / schedule.sigma(t)) ** 2)
    x0, noise, delta = np.array([0.4, -1.3]), np.array([0.9, 0.2]), 1e-2

    @quick
    def computed(schedule, t):
        def loss(kind, t):
            exact = predictions.denoiser(
                schedule, lambda x, t: x, kind, sigma_data=SIGMA_DATA
            )
            output = exact.target(x0, noise, t) + delta
            off = predictions.denoiser(
                schedule, lambda x, t: output, kind, sigma_data=SIGMA_DATA
            )
            return losses.denoising_loss(off, x0, noise, t, weighting=weight)

        kinds = ("data", "noise", "v")
        errors = [jax.vmap(lambda t, kind=kind: loss(kind, t))(t) for kind in kinds]
        return jnp.stack(errors) / delta**2

    expected = np.stack([of_noise(snr) * snr, of_noise(snr), of_noise(snr) * snr])
    expected[2] /= 1 + snr
    np.testing.assert_allclose(computed(schedule, t), expected, rtol=1e-9)


def test_names_are_the_values_with_their_defaults():
    for name, weight in losses.WEIGHTINGS.items():
        assert weight is None or weight == getattr(weights, name)()


@pytree
class Constant:
    """α and σ that do not depend on t, such as none or all signal."""

    a: float
    s: float
    t_min: float = 0.1
    t_max: float = 1.0

    def alpha(self, t):
        return jnp.full_like(t, self.a)

    def sigma(self, t):
        return jnp.full_like(t, self.s)


@pytest.mark.parametrize("name", ["min_snr", "p2", "sigmoid"])
def test_weights_are_finite_at_no_signal_and_at_no_noise(name):
    """In float32, where the SNR is 0 or overflows. Of the data's error the limits
    are 0 and γ, 1 and e^b, and of the noise's error 1, k^−γ, 1, and 0.
    """
    weight, at_no_noise, at_no_signal = {
        "min_snr": (weights.min_snr(3.0), 3.0, 1.0),
        "p2": (weights.p2(1.0, 4.0), 1.0, 0.25),
        "sigmoid": (weights.sigmoid(-2.0), np.exp(-2.0), 1.0),
    }[name]
    t = jnp.float32(0.5)
    none, full = Constant(0.0, 1.0), Constant(1.0, 1e-25)
    both = lambda s: [weight(s, t, 0.5), weight.of_noise_error(s, t, 0.5)]
    np.testing.assert_allclose(both(none), [0.0, at_no_signal], rtol=1e-6)
    np.testing.assert_allclose(both(full), [at_no_noise, 0.0], rtol=1e-6, atol=1e-15)
    slope = jax.grad(lambda t: weight(Own(1.5, 1e-3, 1.0), t, 0.5))(1.0)
    assert np.isfinite(slope)


def test_likelihood_is_one_integral_under_every_distribution(x64):
    """E[loss] = ½ log((1 + s² SNR_max)/(1 + s² SNR_min)) for N(0, s²) and its
    exact denoiser.

    Over t = q(u), by Gauss–Legendre in the logit of u for the tails. Over x_0 and
    ε by their four signs, which are exact for a square.
    """
    schedule, s = schedules.vp_linear(t_min=1e-2), 0.8
    nodes, shares = np.polynomial.legendre.leggauss(400)
    u = 1 / (1 + np.exp(-30 * nodes))
    shares = shares * 30 * u * (1 - u)
    signs = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])

    def denoised(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return alpha * s**2 / (alpha**2 * s**2 + sigma**2) * x

    prediction = predictions.denoiser(schedule, denoised, "data")

    @quick
    def expected(distribution):
        t = distribution.quantile(schedule, u)
        density = distribution.density(schedule, t)

        def at(t, density):
            one = lambda sign: losses.denoising_loss(
                prediction,
                s * sign[:1],
                sign[1:],
                t,
                weighting=weights.likelihood(),
                density=density,
            )
            return jnp.mean(jax.vmap(one)(signs))

        return jnp.sum(shares * jax.vmap(at)(t, density))

    snr = [schedule.alpha(t) / schedule.sigma(t) for t in (1e-2, schedule.t_max)]
    exact = 0.5 * np.log((1 + (s * snr[0]) ** 2) / (1 + (s * snr[1]) ** 2))
    times = losses.times
    for distribution in (
        times.uniform(),
        times.log_snr(),
        times.log_normal(0.0, 2.0),
        times.logit_normal(0.5, 3.0),
        times.shifted(times.log_normal(0.0, 2.0), 1.7),
    ):
        np.testing.assert_allclose(expected(distribution), exact, rtol=1e-8)


# ---- learned uncertainty

SIGMAS = np.exp(np.linspace(-4.0, 3.0, 9))


def expected_loss(gain, sigma):
    """E[loss] of EDM's weight for N(0, 1) and D = gain x/(1 + σ²), at α = 1.

    The error is (gain/(1 + σ²) − 1) x_0 + gain/(1 + σ²) σ ε.
    """
    scale = gain / (SPREAD**2 + sigma**2) * SPREAD**2
    error = (scale - 1) ** 2 * SPREAD**2 + scale**2 * sigma**2
    return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2 * error


def objective(u, gain):
    """The sum of E[loss] e^−u + u over the noise levels, by the library's loss."""
    schedule = schedules.edm(sigma_min=1e-3, sigma_max=1e3)
    signs = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    net = lambda x, t: gain * SPREAD**2 / (SPREAD**2 + t**2) * x
    prediction = predictions.denoiser(schedule, net, "data", sigma_data=SIGMA_DATA)

    def at(t):
        one = lambda sign: losses.denoising_loss(
            prediction, SPREAD * sign[:1], sign[1:], t, weighting="edm"
        )
        loss = jnp.mean(jax.vmap(one)(signs))
        return losses.with_uncertainty(loss, uncertainty.at_time(u, schedule, t))

    return jnp.sum(jax.vmap(at)(SIGMAS))


def test_gradient_steps_reach_the_logarithm_of_the_expected_loss(x64):
    """u* = log E[loss], between 0 and log 4 here, from u = 0.

    A step of ½ moves u − u* = d to d − ½(1 − e^−d). It takes d from −1.4 to 0.2 at
    once at most, and then at least a factor 0.75 off it.
    """
    u = uncertainty.table(-4.0, 3.0, count=9)

    @quick
    def fitted(u):
        slope = jax.grad(lambda values: objective(replaced(u, values), 1.0))

        def step(_, values):
            return values - 0.5 * slope(values)

        return jax.lax.fori_loop(0, 80, step, u.values)

    exact = np.log(expected_loss(1.0, SIGMAS))
    np.testing.assert_allclose(exact[-1], np.log(4), atol=0.01)
    np.testing.assert_allclose(fitted(u), exact, atol=1.4 * 0.75**80 + 1e-12)


def replaced(table, values):
    """The table with other values."""
    return uncertainty.Table(values, table.lowest, table.highest)


def test_gradient_of_the_network_is_that_of_the_loss_over_its_expectation(x64):
    """At u = log E[loss], d/dgain is the sum of d log E[loss]/dgain."""
    gain = 0.8
    values = jnp.log(expected_loss(gain, SIGMAS))
    u = replaced(uncertainty.table(-4.0, 3.0, count=9), values)
    computed = quick(jax.grad(lambda gain: objective(u, gain)))(gain)
    slope = jax.grad(lambda gain: jnp.sum(jnp.log(expected_loss(gain, SIGMAS))))
    assert float(computed) == pytest.approx(float(slope(gain)), rel=1e-9)


def test_fourier_features_fit_it_too(x64):
    """The objective is convex in the parameters that are fitted. Its gap to the
    least, Σ (1 + u*), bounds the errors d by Σ (e^−d − 1 + d). Nothing else is a
    leaf, which a decay of weights would change.
    """
    u = uncertainty.fourier(features=64)
    rule = optax.adam(0.05)

    @quick
    def fitted(u):
        def step(carry, _):
            u, state = carry
            value, slope = jax.value_and_grad(objective)(u, 1.0)
            updates, state = rule.update(slope, state)
            return (optax.apply_updates(u, updates), state), value

        (u, _), values = jax.lax.scan(step, (u, rule.init(u)), None, length=400)
        return u, values

    after, values = fitted(u)
    exact = np.log(expected_loss(1.0, SIGMAS))
    d = np.asarray(jax.vmap(after)(np.log(SIGMAS))) - exact
    gap = float(objective(after, 1.0)) - np.sum(1 + exact)
    assert gap == pytest.approx(np.sum(np.expm1(-d) + d), abs=1e-9)
    assert 0 <= gap < 1e-3 < values[0] - np.sum(1 + exact)
    assert {leaf.shape for leaf in jax.tree.leaves(u)} == {(64,), ()}
    assert len(jax.tree.leaves(u)) == 2


def test_batches_with_uncertainty():
    """A constant u is loss e^−u + u. The losses returned are those without it."""
    schedule = schedules.edm()
    prediction = predictions.denoiser(schedule, lambda x, t: 0.1 * x, "edm")
    x0 = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
    run = lambda u: losses.batch_loss(
        KEY, prediction, x0, weighting="edm", times="log_normal", uncertainty=u
    )
    table = uncertainty.table(-5.0, 5.0, count=3)
    mean, plain = losses.batch_loss(
        KEY, prediction, x0, weighting="edm", times="log_normal"
    )
    np.testing.assert_array_equal(run(table)[1], plain)
    assert float(run(table)[0]) == pytest.approx(float(mean), rel=1e-6)
    constant = replaced(table, jnp.full(3, 0.7))
    expected = float(mean) * np.exp(-0.7) + 0.7
    assert float(run(constant)[0]) == pytest.approx(expected, rel=1e-6)
    slope = jax.grad(lambda u: run(u)[0])(table)
    assert float(jnp.sum(slope.values)) == pytest.approx(1 - float(mean), rel=1e-5)


BAD = {
    "gamma must be": lambda: weights.min_snr(0.0),
    "k must be": lambda: weights.p2(1.0, 0.0),
    "bias must be": lambda: weights.sigmoid(np.nan),
    "features must be": lambda: uncertainty.fourier(features=0),
    "highest must": lambda: uncertainty.table(1.0, 1.0),
    "count must be": lambda: uncertainty.table(0.0, 1.0, count=1),
}


@pytest.mark.parametrize("message", BAD)
def test_raises(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
