"""Forward, reverse, flow and Langevin dynamics carry the distributions that
they claim to carry.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import predictions, schedules, sde, targets
from tests.families import (
    DISTINCT,
    SCHEDULES,
    TARGETS,
    assert_raises,
    every,
    times_at_noise,
)

X = np.array([0.4, -0.3])


def log_density(target, schedule):
    """(x, t) -> log p_t(x), exact."""
    return lambda x, t: target.noised(schedule, t).log_prob(x)


def at_states(schedule, function):
    """function(x, t) at three noise levels, at a point of each distribution's bulk.

    Jitted once.
    """
    t = times_at_noise(schedule, (0.3, 1.0, 3.0))
    x = schedule.alpha(t)[:, None] * jnp.array([0.4, -0.3]) + schedule.sigma(t)[
        :, None
    ] * jnp.array([1.2, -0.7])
    return jax.jit(jax.vmap(function))(x, t)


def assert_same_rate(rate, exact, scale):
    """Equal to 1e-9 of the terms that sum to the rate: they are of size
    1/(time to change), and cancel.
    """
    assert np.all(np.abs(rate - exact) <= 1e-9 * (np.abs(exact) + scale)), np.abs(
        rate - exact
    )


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
def test_each_sde_carries_the_exact_distribution(schedule, x64):
    """∂log p_t/∂t by autodiff of the exact p_t equals the Fokker–Planck rate
    of the forward SDE, of the flow and of the reverse SDE at every noise level
    η.

    Run downwards in t the reverse SDE is, in time τ = −t, dx = −drift dτ + ηg
    dw: its Fokker–Planck rate with the drift negated is ∂log p/∂τ = −∂log
    p/∂t.
    """
    schedule = SCHEDULES[schedule]()
    target = TARGETS["diagonal"]()
    log_p, denoiser = log_density(target, schedule), targets.denoiser(target, schedule)

    def everything(x, t):
        exact = jax.grad(log_p, 1)(x, t)
        scale = (schedules.diffusion_coefficient(schedule, t) / schedule.sigma(t)) ** 2
        flow = sde.SDE(
            sde.probability_flow(schedule, denoiser), lambda x, t: jnp.zeros(())
        )
        rates = [
            sde.fokker_planck(sde.forward(schedule), log_p)(x, t),
            sde.fokker_planck(flow, log_p)(x, t),
        ]

        def backwards(noise):
            return sde.fokker_planck(
                sde.reverse(schedule, denoiser, noise=noise), log_p, downwards=True
            )(x, t)

        return (
            exact,
            scale,
            jnp.append(
                jnp.stack(rates), jax.vmap(backwards)(jnp.array([0.0, 0.5, 1.0, 2.0]))
            ),
        )

    exact, scale, rates = at_states(schedule, everything)
    assert_same_rate(rates, exact[:, None], scale[:, None])


def test_a_wrong_sde_is_found_out(x64):
    """VP's forward SDE under sub-VP's distribution misses the rate by more
    than 5 %: the test above can fail.
    """
    target, schedule = TARGETS["diagonal"](), schedules.sub_vp()
    log_p = log_density(target, schedule)
    x = jnp.asarray(X)
    exact, wrong = jax.jit(
        lambda x: (
            jax.grad(log_p, 1)(x, 0.4),
            sde.fokker_planck(sde.forward(schedules.vp_linear()), log_p)(x, 0.4),
        )
    )(x)
    assert abs(float(wrong - exact)) > 0.05 * abs(float(exact))


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
def test_reverse_drift_is_anderson_with_noise_level(schedule, x64):
    """drift = f x − ½(1 + η²)g²∇log p_t and diffusion ηg, from the target's
    own score. Η = 0 is the flow.
    """
    schedule = SCHEDULES[schedule]()
    target = TARGETS["full"]()
    denoiser = targets.denoiser(target, schedule)

    def both(x, t):
        score = targets.score(target.noised(schedule, t), x)
        f, g = (
            schedules.drift_coefficient(schedule, t),
            schedules.diffusion_coefficient(schedule, t),
        )
        computed, expected = [], []
        for noise in (0.0, 0.7, 1.0, jnp.array(1.5)):
            process = sde.reverse(schedule, denoiser, noise=noise)
            computed.append(jnp.append(process.drift(x, t), process.diffusion(x, t)))
            expected.append(
                jnp.append(f * x - 0.5 * (1 + noise**2) * g**2 * score, noise * g)
            )
        computed.append(jnp.append(sde.probability_flow(schedule, denoiser)(x, t), 0.0))
        expected.append(jnp.append(f * x - 0.5 * g**2 * score, 0.0))
        return jnp.stack(computed), jnp.stack(expected)

    computed, expected = at_states(schedule, both)
    scale = np.abs(expected).max((1, 2), keepdims=True)
    np.testing.assert_allclose(computed / scale, expected / scale, atol=1e-11)


def test_reverse_without_noise_is_the_probability_flow():
    """The same pytree, to the treedef: nothing is traced for a g² that η = 0
    would only multiply by 0.
    """
    schedule, denoiser = schedules.vp_cosine(), lambda x, t: x
    flow, drift = (
        sde.probability_flow(schedule, denoiser),
        sde.reverse(schedule, denoiser, noise=0.0).drift,
    )
    assert jax.tree.structure(flow) == jax.tree.structure(drift)


@pytest.mark.parametrize("kind", ["data", "velocity"])
@pytest.mark.parametrize("form", ["probability_flow", "reverse"])
def test_flow_is_regular_where_f_and_g_are_not(kind, form):
    """Rectified flow at t = 1, α = 0: dx/dt = ε − x_0, eagerly and as a traced
    argument of a jitted function.
    """
    schedule, x0, noise = (
        schedules.rectified_flow(t_max=1.0),
        jnp.array([0.5, -1.0]),
        jnp.array([1.5, 0.25]),
    )
    exact = x0 if kind == "data" else noise - x0
    denoiser = predictions.denoiser(schedule, lambda x, t: exact, kind)
    made = (
        sde.probability_flow(schedule, denoiser)
        if form == "probability_flow"
        else sde.reverse(schedule, denoiser, noise=0.0).drift
    )
    assert not np.isfinite(schedules.drift_coefficient(schedule, 1.0))
    np.testing.assert_array_equal(
        made(noise, 1.0), noise - x0
    )  # dyadic numbers: no rounding
    np.testing.assert_array_equal(
        jax.jit(lambda flow, x, t: flow(x, t))(made, noise, 1.0), noise - x0
    )


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_one_denoiser_call_per_drift(noise):
    """A reverse drift composed of a velocity and a score would evaluate the
    network twice: count traced calls.
    """
    calls = []

    def denoiser(x, t):
        calls.append(1)
        return jnp.tanh(x)

    process = sde.reverse(schedules.vp_linear(), denoiser, noise=noise)
    jax.make_jaxpr(process.drift)(jnp.asarray(X), 0.5)
    assert len(calls) == 1
    jax.make_jaxpr(process.diffusion)(jnp.asarray(X), 0.5)
    assert len(calls) == 1


def test_noise_level_may_be_traced(x64):
    """vmap over η: each drift is that of its η, η = 0 included."""
    schedule = schedules.edm()
    denoiser = targets.denoiser(TARGETS["isotropic"](), schedule)
    levels = jnp.array([0.0, 0.5, 1.0])
    together = jax.vmap(
        lambda noise: sde.reverse(schedule, denoiser, noise=noise).drift(
            jnp.asarray(X), 0.7
        )
    )(levels)
    apart = [
        sde.reverse(schedule, denoiser, noise=float(noise)).drift(jnp.asarray(X), 0.7)
        for noise in levels
    ]
    np.testing.assert_allclose(together, apart, rtol=1e-13)


def test_langevin_leaves_its_density_at_rest(x64):
    """dx = ½∇log p dt + dw is stationary at p, normalised or not.

    Twice the drift with the same noise is not.
    """
    target = TARGETS["full"]()
    process = sde.langevin(target.log_prob)
    energy = sde.langevin(lambda x: target.log_prob(x) + 3.0)
    for x in (X, np.array([-1.5, 1.0])):
        for dynamics in (process, energy):
            rate = sde.fokker_planck(dynamics, lambda x, t: target.log_prob(x))(
                jnp.asarray(x), 0.0
            )
            assert abs(float(rate)) < 1e-12
    doubled = sde.SDE(lambda x, t: 2 * process.drift(x, t), process.diffusion)
    # drift ∇log p with unit noise has the density p²
    squared = sde.fokker_planck(doubled, lambda x, t: 2 * target.log_prob(x))(
        jnp.asarray(X), 0.0
    )
    assert abs(float(squared)) < 1e-12
    assert (
        abs(
            float(
                sde.fokker_planck(doubled, lambda x, t: target.log_prob(x))(
                    jnp.asarray(X), 0.0
                )
            )
        )
        > 0.1
    )


def test_fokker_planck_of_an_ornstein_uhlenbeck_process_in_closed_form(x64):
    """dx_i = −a_i x_i dt + b_i dw_i from N(0, V(0)):

    V_i(t) = b²/2a + (V(0) − b²/2a) e^{−2at}. B varies.
    """
    a, b, start = jnp.array([0.5, 2.0]), jnp.array([1.0, 0.3]), jnp.array([2.0, 1.0])
    rest = b**2 / (2 * a)

    def log_p(x, t):
        variance = rest + (start - rest) * jnp.exp(-2 * a * t)
        return jnp.sum(-0.5 * x**2 / variance - 0.5 * jnp.log(2 * jnp.pi * variance))

    process = sde.SDE(lambda x, t: -a * x, lambda x, t: b)
    for t in (0.0, 0.4):
        rate = sde.fokker_planck(process, log_p)(jnp.asarray(X), t)
        assert float(rate) == pytest.approx(float(jax.grad(log_p, 1)(X, t)), rel=1e-12)


def test_fokker_planck_takes_examples_of_any_shape(x64):
    schedule = schedules.vp_linear()
    flat = sde.fokker_planck(sde.forward(schedule), lambda x, t: -0.25 * jnp.sum(x**4))
    x = jnp.arange(6.0) / 5
    assert float(flat(x.reshape(2, 3), 0.4)) == pytest.approx(
        float(flat(x, 0.4)), rel=1e-13
    )


ERRORS = {
    "noise": (
        lambda: sde.reverse(schedules.edm(), lambda x, t: x, noise=-0.5),
        ValueError,
        "noise must be 0 or more, got -0.5",
    ),
    "denoiser": (
        lambda: sde.reverse(schedules.edm(), 3),
        TypeError,
        r"denoiser must be callable as denoiser\(x, t\), got 3",
    ),
    "flow": (
        lambda: sde.probability_flow(schedules.edm(), None),
        TypeError,
        "denoiser must be callable",
    ),
    "schedule": (lambda: sde.forward("vp"), TypeError, "schedule must have alpha"),
    "log_prob": (
        lambda: sde.langevin(1.0),
        TypeError,
        r"log_prob must be callable as log_prob\(x\), got 1.0",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name):
    assert_raises(*ERRORS[name])
