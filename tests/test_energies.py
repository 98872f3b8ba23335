"""Objectives for energies: their values and gradients against closed forms,
and chains that persist.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import energies, langevin, targets

DATA = functools.partial(targets.gaussian, [1.0, -0.5], [0.8, 1.3])


def model(mean, log_precision):
    """N(mean, 1/precision) up to its normaliser."""
    return targets.energy(functools.partial(quadratic, mean, log_precision))


def quadratic(mean, log_precision, x):
    """−½ Σ λ_i (x_i − m_i)²."""
    return -0.5 * jnp.sum(jnp.exp(log_precision) * (x - mean) ** 2)


def expected(objective, count=40_000):
    """Gradients of an objective (key, model, x) -> () at one model, for each
    of many exact draws of the data.
    """

    def gradient(key):
        key_x, key = jax.random.split(key)
        x = DATA().sample(key_x)
        return jax.grad(lambda parameters: objective(key, model(*parameters), x))(
            (MEAN, LOG_PRECISION)
        )

    result = jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(0), count))
    return jnp.concatenate(result, 1)


MEAN, LOG_PRECISION = jnp.array([0.6, 0.2]), jnp.array([0.1, -0.3])


def score_matching_gradient(variance):
    """Gradient over (m, log λ) of ½E‖s − ∇log p‖² = ½Σ [(λ − 1/v)² v + λ²(m −
    μ)²], data N(μ, v).
    """
    precision, bias = (
        np.exp(np.asarray(LOG_PRECISION)),
        np.asarray(MEAN) - np.array([1.0, -0.5]),
    )
    return np.concatenate(
        [
            precision**2 * bias,
            precision * (variance * precision - 1 + precision * bias**2),
        ]
    )


OBJECTIVES = {
    "exact": (lambda key, model, x: energies.exact(model, x), 0.0),
    "sliced": (lambda key, model, x: energies.sliced(key, model, x, 2), 0.0),
    "denoising": (
        lambda key, model, x: energies.denoising(key, model, x, 0.7) / 0.7**2,
        0.7,
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_the_fisher_divergence(name):
    """Averaged over exact data, the gradient of each objective is that of ½E‖s
    − ∇log p‖² in closed form, of the noised data for denoising, within 4
    standard errors.
    """
    objective, sigma = OBJECTIVES[name]
    gradients = np.asarray(expected(objective), np.float64)
    error = gradients.std(0, ddof=1) / np.sqrt(len(gradients))
    exact = score_matching_gradient(np.array([0.8, 1.3]) ** 2 + sigma**2)
    np.testing.assert_array_less(np.abs(gradients.mean(0) - exact), 4 * error)
    assert np.all(4 * error < 0.25 * np.abs(exact).max())


def test_contrastive_divergence_has_the_gradient_of_the_likelihood():
    """With draws of the model itself the mean gradient is that of −E log p:
    λ(m − μ) and ½(λ(v + (m − μ)²) − 1).
    """

    def objective(key, density, x):
        drawn = MEAN + jnp.exp(-0.5 * LOG_PRECISION) * jax.random.normal(key, (2,))
        return energies.contrastive(density, x, drawn)

    gradients = np.asarray(expected(objective), np.float64)
    precision, bias = (
        np.exp(np.asarray(LOG_PRECISION)),
        np.asarray(MEAN) - np.array([1.0, -0.5]),
    )
    exact = np.concatenate(
        [
            precision * bias,
            0.5 * (precision * (np.array([0.8, 1.3]) ** 2 + bias**2) - 1),
        ]
    )
    error = gradients.std(0, ddof=1) / np.sqrt(len(gradients))
    np.testing.assert_array_less(np.abs(gradients.mean(0) - exact), 4 * error)


def test_the_penalty_is_on_both_log_densities():
    density, x, drawn = (
        model(MEAN, LOG_PRECISION),
        jnp.array([1.0, 2.0]),
        jnp.array([0.0, -1.0]),
    )
    a, b = density.log_prob(x), density.log_prob(drawn)
    assert float(energies.contrastive(density, x, drawn, 0.1)) == pytest.approx(
        float(b - a + 0.1 * (a**2 + b**2)), rel=1e-5
    )


def test_values_for_scores_and_energies_agree():
    """A score alone serves score matching as its energy does, and `exact` is
    −tr + ½‖s‖² by hand: −Σλ + ½‖λ(x − m)‖².
    """
    density, x, key = (
        model(MEAN, LOG_PRECISION),
        jnp.array([0.3, -0.8]),
        jax.random.key(0),
    )
    score = langevin.score_only(jax.grad(density.log_prob))
    precision = jnp.exp(LOG_PRECISION)
    by_hand = -precision.sum() + 0.5 * jnp.sum((precision * (x - MEAN)) ** 2)
    assert float(energies.exact(density, x)) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(energies.exact(score, x)) == pytest.approx(float(by_hand), rel=1e-5)
    # the Hessian is diagonal: random signs give the trace itself
    assert float(energies.sliced(key, score, x)) == pytest.approx(
        float(by_hand), rel=1e-5
    )
    noise = jax.random.normal(key, (2,))
    slip = 0.7 * -precision * (x + 0.7 * noise - MEAN) + noise
    assert float(energies.denoising(key, density, x, 0.7)) == pytest.approx(
        0.5 * float(jnp.sum(slip**2)), rel=1e-5
    )


def test_persistent_chains_reach_the_model():
    """After 12 updates of 10 steps each from a far start, the second moments
    are the model's, within 4 standard errors. Updates differ though the key is
    one. Where share is 1 all chains restart, at 10⁴ and half of that per step.
    """
    density, key = model(jnp.zeros(2), jnp.zeros(2)), jax.random.key(0)
    kernel, far = langevin.mala(density, 1.0), targets.gaussian([1e4, 1e4], 0.1)
    update = jax.jit(
        lambda chains, share: energies.advance(
            key, chains, kernel, 10, restarts=far, share=share
        )
    )
    chains = energies.persistent_chains(jnp.full((2000, 2), 3.0))
    for _ in range(12):
        before = chains.xs
        chains, result = update(chains, 0.0)
    assert (
        int(chains.updates) == 12
        and np.all(result.diverged_at == -1)
        and np.all(before != chains.xs)
    )
    squares = np.asarray(chains.xs, np.float64) ** 2
    assert abs(squares.mean() - 1) < 4 * squares.std() / np.sqrt(squares.size)
    assert update(chains, 1.0)[0].xs.min() > 1e4 / 2**10 - 7


def test_a_reconstruction_is_a_density():
    """At f = 0 it is N(0, scale²) up to its normaliser, and at f = m that about m."""
    x = jnp.array([0.3, -1.0])
    density = energies.reconstruction(lambda x: jnp.full(2, 0.5), 2.0)
    difference = density.log_prob(x) - targets.gaussian([0.5, 0.5], 2.0).log_prob(x)
    assert float(difference) == pytest.approx(np.log(2 * np.pi * 4), rel=1e-5)
    with pytest.raises(ValueError, match="function must return its example's shape"):
        energies.reconstruction(jnp.sum).log_prob(x)


def restarted(restarts):
    chains = energies.persistent_chains(jnp.zeros((3, 2)))
    return energies.advance(
        jax.random.key(0), chains, langevin.mala(DATA(), 0.1), 1, restarts=restarts
    )


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: energies.exact(lambda x: x, jnp.ones(2)),
            ValueError,
            r"must return a scalar, got shape \(2,\)",
        ),
        (
            lambda: energies.exact(targets.energy(lambda x: x), jnp.ones(2)),
            ValueError,
            "must return a scalar",
        ),
        (
            lambda: energies.sliced(jax.random.key(0), DATA(), jnp.ones(2), 0),
            ValueError,
            "probes must be at least 1",
        ),
        (
            lambda: energies.denoising(jax.random.key(0), DATA(), jnp.ones(2), 0.0),
            ValueError,
            "sigma must be positive",
        ),
        (
            lambda: energies.contrastive(DATA(), jnp.ones(2), jnp.ones(3)),
            ValueError,
            r"x_model must have shape \(2,\), got \(3,\)",
        ),
        (
            lambda: energies.contrastive(DATA(), jnp.ones(2), jnp.ones(2), -1.0),
            ValueError,
            "penalty must be 0 or more",
        ),
        (
            lambda: energies.contrastive(
                langevin.score_only(jnp.negative), jnp.ones(2), jnp.ones(2)
            ),
            TypeError,
            "model must have a log density",
        ),
        (
            lambda: energies.persistent_chains(jnp.array([[np.nan]])),
            ValueError,
            "xs must be finite",
        ),
        (
            lambda: energies.advance(jax.random.key(0), jnp.ones((3, 2)), None),
            TypeError,
            "chains must be made by persistent_chains",
        ),
        (
            lambda: restarted(targets.gaussian([0.0], 1.0)),
            ValueError,
            r"a draw of restarts must have shape \(2,\), got \(1,\)",
        ),
        (lambda: restarted(3), TypeError, "restarts must have sample"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
