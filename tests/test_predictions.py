"""Every prediction kind on every schedule: a network that is exact in its kind
gives the exact denoiser, and back.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from diffjax import predictions, schedules, targets
from tests.families import (
    DISTINCT,
    EPS32,
    SCHEDULES,
    Own,
    assert_raises,
    every,
    times_at_noise,
)

SIGMA_DATA = 0.8
X0, NOISE = np.array([0.4, -1.3, 0.9]), np.array([-0.7, 0.2, 1.5])


def edm_target(schedule, t, x0, noise):
    """(x_0 − c_skip x̃)/c_out at x̃ = x_0 + (σ/α) ε:

    Karras et al. 2022, eq. 8 with Table 1, written out.
    """
    s = schedule.sigma(t) / schedule.alpha(t)
    skip, out = (
        SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2),
        s * SIGMA_DATA / (s**2 + SIGMA_DATA**2) ** 0.5,
    )
    return (x0 - skip * (x0 + s * noise)) / out


def rates(schedule, t):
    return jax.jvp(schedule.alpha, (t,), (jnp.ones_like(t),))[1], jax.jvp(
        schedule.sigma, (t,), (jnp.ones_like(t),)
    )[1]


# What each kind predicts, from the definition in its paper: (schedule, t, x_0, ε) -> F.
QUANTITIES = {
    "noise": lambda s, t, x0, noise: noise,
    "data": lambda s, t, x0, noise: x0,
    "v": lambda s, t, x0, noise: (
        (s.alpha(t) * noise - s.sigma(t) * x0)
        / jnp.sqrt(s.alpha(t) ** 2 + s.sigma(t) ** 2)
    ),
    "score": lambda s, t, x0, noise: -noise / s.sigma(t),
    "velocity": lambda s, t, x0, noise: rates(s, t)[0] * x0 + rates(s, t)[1] * noise,
    "edm": edm_target,
}
VIEWS = {
    "noise": predictions.noise,
    "v": predictions.v,
    "score": predictions.score,
    "velocity": predictions.velocity,
}


def test_every_kind_is_tested():
    assert QUANTITIES.keys() == predictions.KINDS.keys()


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
def test_an_exact_network_gives_the_exact_denoiser(schedule, x64):
    """For every kind: with F replaced by the kind's quantity of (x_0, ε),
    D(x_t, t) = x_0, target(x_0, ε, t) = F, and the view of D is F.

    D − x_0 = c (F − target) defines output_scale c.
    """
    schedule = SCHEDULES[schedule]()

    @jax.jit
    @jax.vmap
    def found(t):
        return {kind: found_of(kind, t) for kind in QUANTITIES}

    def found_of(kind, t):
        exact = QUANTITIES[kind](schedule, t, X0, NOISE)
        x = schedule.alpha(t) * X0 + schedule.sigma(t) * NOISE
        denoiser = predictions.denoiser(
            schedule, lambda x, t: exact, kind, sigma_data=SIGMA_DATA
        )
        moved = predictions.denoiser(
            schedule, lambda x, t: exact + 1.0, kind, sigma_data=SIGMA_DATA
        )
        view = VIEWS[kind](schedule, denoiser)(x, t) if kind in VIEWS else exact
        error = jnp.abs(moved(x, t) - X0)
        return (
            denoiser(x, t),
            denoiser.target(X0, NOISE, t),
            view,
            exact,
            error,
            moved.output_scale(t),
        )

    ratios = (0.05, 1.0, 10.0)
    for kind, outputs in found(times_at_noise(schedule, ratios)).items():
        denoised, target, view, exact, error, scale = (
            np.asarray(output) for output in outputs
        )
        np.testing.assert_allclose(
            denoised, np.tile(X0, (3, 1)), rtol=1e-10, err_msg=kind
        )
        np.testing.assert_allclose(target, exact, rtol=1e-11, err_msg=kind)
        np.testing.assert_allclose(view, exact, rtol=1e-10, atol=1e-12, err_msg=kind)
        np.testing.assert_allclose(
            error, np.tile(scale[:, None], (1, 3)), rtol=1e-10, err_msg=kind
        )


@pytest.mark.parametrize("kind", ["data", "velocity"])
def test_regular_where_the_signal_is_gone(kind):
    """Rectified flow at t = 1: data and velocity networks give D, and the
    velocity view gives F back, in float32.
    """
    schedule, t = schedules.rectified_flow(t_max=1.0), jnp.float32(1.0)
    exact = jnp.asarray(QUANTITIES[kind](schedule, t, X0, NOISE), jnp.float32)
    denoiser = predictions.denoiser(schedule, lambda x, t: exact, kind)
    x = jnp.asarray(NOISE, jnp.float32)
    np.testing.assert_allclose(denoiser(x, t), X0, atol=4 * EPS32)
    np.testing.assert_allclose(
        predictions.velocity(schedule, denoiser)(x, t), NOISE - X0, atol=8 * EPS32
    )


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
def test_scaled_inputs_have_unit_variance(schedule, x64):
    """For data of variance σ_data² the network sees variance c_in²(α²σ_data² +
    σ²) = 1 and c_noise = ¼ log(σ/α).
    """
    schedule = SCHEDULES[schedule]()
    seen = []

    def net(x, t):
        seen.append((x, t))
        return x

    # x_t's variance is the sum over independent unit x_0/σ_data and ε of the squared
    # coefficients
    for t in times_at_noise(schedule):
        denoiser = predictions.denoiser(
            schedule, net, "data", sigma_data=SIGMA_DATA, inputs="scaled"
        )
        denoiser(jnp.array([schedule.alpha(t) * SIGMA_DATA, schedule.sigma(t)]), t)
        x, c_noise = seen.pop()
        assert float(jnp.sum(x**2)) == pytest.approx(1, rel=1e-12)
        assert float(c_noise) == pytest.approx(
            float(jnp.log(schedule.sigma(t) / schedule.alpha(t))) / 4, rel=1e-11
        )


def test_raw_inputs_are_passed_as_they_are():
    seen = []
    net = lambda x, t, c: seen.append((x, t, c)) or x
    x = jnp.ones(2)
    predictions.denoiser(schedules.ve(), net, "noise")(x, 0.3, "condition")
    assert seen[0][0] is x and seen[0][1:] == (0.3, "condition")


def test_edm_scalings_are_table_1(x64):
    """c_skip, c_out, c_in, c_noise at σ = 2, σ_data = ½, computed by hand.

    F has unit-variance targets at every σ.
    """
    c = predictions.scalings(2.0, 0.5)
    np.testing.assert_allclose(
        c, [0.25 / 4.25, 1 / 4.25**0.5, 1 / 4.25**0.5, np.log(2) / 4], rtol=1e-14
    )
    for sigma in (0.002, 0.3, 80.0):
        c = predictions.scalings(sigma, 0.5)
        # target (x_0 − c_skip(x_0 + σε))/c_out
        variance = ((1 - c.skip) ** 2 * 0.25 + c.skip**2 * sigma**2) / c.out**2
        assert float(variance) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    "schedule", ["vp_linear", "vp_cosine", "sub_vp", "rectified_flow", "own"]
)
def test_edm_kind_is_edm_at_the_rescaled_state(schedule, x64):
    """D(x, t) = D_EDM(x/α. Σ/α): one network, two schedules, one denoiser."""
    schedule = SCHEDULES[schedule]()
    net = lambda x, c_noise: jnp.sin(3 * x) + c_noise
    here = predictions.denoiser(schedule, net, "edm", sigma_data=SIGMA_DATA)
    there = predictions.denoiser(schedules.edm(), net, "edm", sigma_data=SIGMA_DATA)
    for t in times_at_noise(schedule):
        x = jnp.asarray(schedule.alpha(t) * X0 + schedule.sigma(t) * NOISE)
        s = schedule.sigma(t) / schedule.alpha(t)
        c = predictions.scalings(s, SIGMA_DATA)
        x_tilde = x / schedule.alpha(t)
        by_hand = c.skip * x_tilde + c.out * net(c.into * x_tilde, c.noise)
        np.testing.assert_allclose(here(x, t), by_hand, rtol=1e-11)
        np.testing.assert_allclose(there(x_tilde, s), by_hand, rtol=1e-11)


def test_views_of_the_exact_denoiser_are_the_exact_score_and_velocity(x64):
    """score = ∇log p_t, velocity = f x − ½g²∇log p_t, ε̂ = −σ score on a mixture."""
    schedule, t = schedules.sub_vp(), 0.4
    target = targets.gaussian_mixture(
        [0.3, 0.7], [[-1.0, 0.4], [0.8, -0.2]], [0.3, 0.6]
    )
    denoiser, x = targets.denoiser(target, schedule), jnp.array([0.2, 0.5])
    score = targets.score(target.noised(schedule, t), x)
    f, g = (
        schedules.drift_coefficient(schedule, t),
        schedules.diffusion_coefficient(schedule, t),
    )
    np.testing.assert_allclose(
        predictions.score(schedule, denoiser)(x, t), score, rtol=1e-11
    )
    np.testing.assert_allclose(
        predictions.noise(schedule, denoiser)(x, t),
        -schedule.sigma(t) * score,
        rtol=1e-11,
    )
    np.testing.assert_allclose(
        predictions.velocity(schedule, denoiser)(x, t),
        f * x - 0.5 * g**2 * score,
        rtol=1e-11,
    )


# ------------------------------------------------------------------ any kind of network


class Equinox(eqx.Module):
    weight: jax.Array

    def __call__(self, x, t):
        return jnp.tanh(self.weight * x) * t


class NNX(nnx.Module):
    def __init__(self, weight):
        self.weight = nnx.Param(weight)

    def __call__(self, x, t):
        return jnp.tanh(self.weight[...] * x) * t


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, t):
        return jnp.tanh(self.param("weight", linen.initializers.ones, x.shape) * x) * t


def function(weight, x, t):
    return jnp.tanh(weight * x) * t


MODEL = Linen()
NETS = {
    "closure": lambda w: lambda x, t: function(w, x, t),
    "partial": lambda w: functools.partial(function, w),
    "Partial": lambda w: jax.tree_util.Partial(function, w),
    "linen": lambda w: functools.partial(MODEL.apply, {"params": {"weight": w}}),
    "nnx": NNX,
    "equinox": Equinox,
}


@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_network_serves(name):
    """Functions, partials and modules of three libraries and closures give one
    D, and take new weights without retracing.
    """
    traces = []

    @jax.jit
    def denoise(denoiser, x, t):
        traces.append(1)
        return denoiser(x, t)

    x = jnp.array([0.3, -0.8, 0.1])
    for weight in (jnp.array([1.0, 2.0, 3.0]), jnp.array([-1.0, 0.5, 2.0])):
        denoiser = predictions.denoiser(schedules.vp_linear(), NETS[name](weight), "v")
        expected = predictions.denoiser(
            schedules.vp_linear(),
            lambda x, t: function(weight, x, t),
            "v",
        )(x, 0.3)
        np.testing.assert_allclose(denoise(denoiser, x, 0.3), expected, rtol=8 * EPS32)
    assert len(traces) == 1


def test_gradient_reaches_the_networks_parameters_and_the_schedule(x64):
    """d D/d weight of a linear data network is x.

    D D/dθ through a schedule's own parameter is the finite difference.
    """
    x = jnp.array([0.3, -0.8])
    linear = lambda w: predictions.denoiser(
        schedules.edm(), functools.partial(jnp.multiply, w), "data"
    )
    with pytest.raises(TypeError):
        linear(2.0)(
            x, 0.3, 1.0, 2.0
        )  # conditions are passed on, and rejected by a network that takes none

    def net(w, x, t):
        return w * x

    make = lambda w, scale: predictions.denoiser(
        Own(scale, 1e-3, 0.99), functools.partial(net, w), "noise"
    )
    value = lambda w, scale: jnp.sum(make(w, scale)(x, 0.3))
    gradient = jax.grad(value, (0, 1))(2.0, 1.5)
    h = 1e-6
    differences = (
        (value(2 + h, 1.5) - value(2 - h, 1.5)) / (2 * h),
        (value(2.0, 1.5 + h) - value(2.0, 1.5 - h)) / (2 * h),
    )
    np.testing.assert_allclose(gradient, differences, rtol=1e-8)


NET = lambda x, t: x
ERRORS = {
    "kind": (
        lambda: predictions.denoiser(schedules.edm(), NET, "epsilon"),
        ValueError,
        (
            "kind must be one of 'noise', 'data', 'v', 'score', 'velocity', 'edm'; got "
            "'epsilon'"
        ),
    ),
    "inputs": (
        lambda: predictions.denoiser(schedules.edm(), NET, "data", inputs="scale"),
        ValueError,
        "inputs must be one of 'raw', 'scaled', 'index', 'zero_index'; got 'scale'",
    ),
    "sigma_data": (
        lambda: predictions.denoiser(schedules.edm(), NET, "edm", sigma_data=0.0),
        ValueError,
        "sigma_data must be positive, got 0",
    ),
    "net": (
        lambda: predictions.denoiser(schedules.edm(), 3, "data"),
        TypeError,
        r"net must be callable as net\(x, t\), got 3",
    ),
    "schedule": (
        lambda: predictions.denoiser("vp", NET, "data"),
        TypeError,
        "schedule must have alpha",
    ),
    "view": (
        lambda: predictions.score(schedules.edm(), None),
        TypeError,
        "denoiser must be callable",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name):
    assert_raises(*ERRORS[name])


def test_categorical_is_exact_for_independent_entries(x64):
    """With logits log p_k the denoiser is the posterior mean of independent
    entries of distribution p, at every noise level.
    """
    levels, shares = jnp.array([-1.0, 0.0, 0.5, 1.0]), jnp.array([0.1, 0.2, 0.3, 0.4])
    schedule = schedules.vp_linear()
    net = lambda features, c_noise: jnp.tile(jnp.log(shares), 3)
    denoiser = predictions.categorical(schedule, net, levels)
    x = jnp.array([0.3, -2.0, 0.9])
    for t in (1e-3, 0.1, 0.5, 1.0):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        log_weights = jnp.log(shares) - (x[:, None] - alpha * levels) ** 2 / (
            2 * sigma**2
        )
        weights = jnp.exp(log_weights - log_weights.max(-1, keepdims=True))
        np.testing.assert_allclose(
            denoiser(x, t), (weights @ levels) / weights.sum(-1), rtol=1e-10, atol=1e-12
        )


def test_moments_of_independent_entries_are_tweedies(x64):
    """Where the logits do not depend on x, Var(x_0 | x_t) = (σ²/α) ∂D/∂x,
    entry by entry, beside D itself.
    """
    levels, schedule = jnp.array([-1.0, 0.0, 0.5, 1.0]), schedules.vp_linear()
    net = lambda features, c_noise: jnp.tile(jnp.arange(4.0), 3)
    denoiser = predictions.categorical(schedule, net, levels)
    moments = jax.jit(lambda x, t: predictions.moments(denoiser)(x, t))
    x = jnp.array([0.3, -2.0, 0.9])
    for t in (0.02, 0.1, 0.5, 1.0):
        mean, variance = moments(x, t)
        slope = jnp.diagonal(jax.jacfwd(denoiser)(x, t))
        np.testing.assert_allclose(mean, denoiser(x, t), rtol=1e-12)
        scale = schedule.sigma(t) ** 2 / schedule.alpha(t)
        np.testing.assert_allclose(variance, scale * slope, rtol=1e-9, atol=1e-14)
        tweedie = predictions.variance(schedule, denoiser)(x, t)
        np.testing.assert_allclose(tweedie, scale * slope, rtol=1e-12, atol=1e-18)
    with pytest.raises(
        TypeError, match=r"denoiser must be made by predictions\.categorical, got"
    ):
        predictions.moments(predictions.denoiser(schedule, net, "data"))


def test_categorical_gives_the_network_features_of_unit_variance(x64):
    """At little noise one level is certain: features of uniform data have mean
    0 and variance 1, and c_noise is −λ/8.
    """
    levels, seen = jnp.linspace(-1, 1, 5), {}

    def net(features, c_noise):
        seen.update(features=features, c_noise=c_noise)
        return 0 * features

    schedule = schedules.vp_linear()
    predictions.categorical(schedule, net, levels)(
        jnp.tile(levels, 7).reshape(7, 5), 1e-4
    )
    assert seen["features"].shape == (7, 25)
    np.testing.assert_allclose(
        [seen["features"].mean(), seen["features"].var()], [0, 1], atol=1e-9
    )
    np.testing.assert_allclose(seen["c_noise"], -schedules.log_snr(schedule, 1e-4) / 8)


@pytest.mark.parametrize("levels", [[1.0], [1.0, 0.0], [0.0, 0.0], [[0.0, 1.0]]])
def test_categorical_raises_on_levels_that_are_none(levels):
    with pytest.raises(ValueError, match="levels must"):
        predictions.categorical(schedules.vp_linear(), lambda x, t: x, levels)


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (None, TypeError, "net must return an array of logits, got None"),
        (
            np.zeros((3, 5)),
            ValueError,
            r"net must return logits \(3, 4\) or as many, got \(3, 5\)",
        ),
    ],
)
def test_categorical_raises_on_logits_of_another_shape(logits, error, message):
    net = lambda features, c_noise: logits
    denoiser = predictions.categorical(
        schedules.vp_linear(), net, np.linspace(-1.0, 1.0, 4)
    )
    with pytest.raises(error, match=message):
        denoiser(np.zeros(3), 0.5)


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [("noise", "raw"), ("score", "raw"), ("edm", "raw"), ("data", "scaled")],
)
def test_kinds_without_a_denoiser_at_the_end_raise_there(kind, inputs):
    """Where α(t_max) = 0 a noise or score says nothing of x_0, and scaled
    inputs have no c_noise.
    """
    with pytest.raises(ValueError, match="schedule must have α"):
        predictions.denoiser(
            schedules.rectified_flow(t_max=1.0), lambda x, t: x, kind, inputs=inputs
        )


@pytest.mark.parametrize("steps", [100, 1000, 4000])
def test_networks_of_indices_are_given_the_chains_own(steps):
    """Exact at every index, in float32 and under jit, where int(t · T) misses some."""
    chain = schedules.from_betas(np.linspace(1e-4, 0.02, steps))
    seen = jax.jit(jax.vmap(lambda t: schedules.index_of_time(chain, t)))(
        np.asarray(chain.times, np.float32)
    )
    np.testing.assert_array_equal(seen, np.arange(1, steps + 1))
    assert seen.dtype == np.int32
    for inputs, first in (("index", 1), ("zero_index", 0)):
        denoiser = predictions.denoiser(
            chain, lambda x, i: x + i, "data", inputs=inputs
        )
        assert float(denoiser(np.zeros(()), chain.t_min)) == first


def test_indices_need_a_chain():
    with pytest.raises(
        TypeError,
        match="schedule must be made by schedules.from_sigmas or schedules.from_betas",
    ):
        predictions.denoiser(schedules.edm(), lambda x, t: x, "noise", inputs="index")
