"""Fitting a flow: maximum likelihood, reverse KL and importance estimates
against closed forms.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import flows
from tests.families import assert_raises
from tests.flow_members import KEY, NORMAL


def test_maximum_likelihood_finds_a_gaussian(x64):
    """The best affine flow has the data's mean and covariance.

    At the maximum the gradient vanishes exactly: b = mean, A Aᵀ = covariance
    (over n). The loss there is the Gaussian's entropy estimate.
    """
    xs = np.random.default_rng(0).standard_normal((200, 2)) @ [
        [1.0, 0.4],
        [0.0, 0.5],
    ] + [2.0, -1.0]
    mean, covariance = xs.mean(0), np.cov(xs.T, bias=True)
    factor = np.linalg.cholesky(covariance)
    linear = flows.triangular(2)
    best = type(linear)(
        factor, np.log(np.diag(factor) - linear.floor), mean, linear.floor
    )
    model = flows.flow(NORMAL, best)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda model: flows.negative_log_likelihood(model, xs)[0])
    )(model)
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
    assert float(value) == pytest.approx(entropy, abs=1e-10)
    assert all(np.all(np.abs(leaf) < 1e-10) for leaf in jax.tree.leaves(gradient))


def test_reverse_kl_is_exact_on_gaussians_and_its_path_gradient_is_the_gradient(x64):
    """E[log q − log p̃] = KL(q‖p) − log Z in closed form.

    Its gradient has a closed form too, by either estimator. At q = p the path
    gradient of every sample vanishes, the other one does not.
    """
    count, log_z = 4000, 1.7
    target = lambda x: -0.5 * jnp.sum(x**2) - jnp.log(2 * jnp.pi) + log_z

    @jax.jit
    def estimates(model, key):
        results = {}
        for path in (False, True):
            value = lambda model, path=path: flows.reverse_kl(
                key, model, target, count, path_gradient=path
            )[0]
            results[path] = jax.value_and_grad(value)(model)
        return results

    model = flows.flow(
        NORMAL, flows.affine(jnp.array([0.5, -0.2]), jnp.array([0.7, 1.3]))
    )
    shift, scale = np.array([0.5, -0.2]), np.array([0.7, 1.3])
    kl = 0.5 * np.sum(scale**2 + shift**2 - 1 - 2 * np.log(scale))
    results = estimates(model, KEY)
    for value, gradient in results.values():
        # standard deviations of one sample are below 2 in each number
        assert float(value) == pytest.approx(kl - log_z, abs=4 * 2 / math.sqrt(count))
        np.testing.assert_allclose(
            gradient.bijector.shift, shift, atol=4 * 2 / math.sqrt(count)
        )
        np.testing.assert_allclose(
            gradient.bijector.log_scale, scale**2 - 1, atol=4 * 2.5 / math.sqrt(count)
        )
    assert float(results[True][0]) == pytest.approx(float(results[False][0]), abs=1e-12)
    fitted = estimates(flows.flow(NORMAL, flows.affine(jnp.zeros(2), jnp.ones(2))), KEY)
    assert all(
        np.all(np.abs(leaf) < 1e-12) for leaf in jax.tree.leaves(fitted[True][1])
    )
    assert any(
        np.any(np.abs(leaf) > 1e-4) for leaf in jax.tree.leaves(fitted[False][1])
    )


@dj.types.pytree
class HalfDensity:
    """N(0, I) that says `value` for its log-density where z_1 ≤ 0."""

    value: Any

    def log_prob(self, z):
        return jnp.where(z[0] > 0, -0.5 * jnp.sum(z**2), self.value)

    def sample(self, key):
        return jax.random.normal(key, (2,))


def test_importance_estimates_log_z_with_its_error_and_effective_size(x64):
    """log Ẑ is right within 4.5 standard errors.

    For q = N(0, s²I) and p = N(0, I) in 2-D, ESS/n → (E w)²/E w² = (2s² −
    1)/s⁴.
    """
    log_z, s, count = -2.3, 1.3, 20000
    target = lambda x: -0.5 * jnp.sum(x**2) - jnp.log(2 * jnp.pi) + log_z
    model = flows.flow(NORMAL, flows.affine(jnp.zeros(2), s))
    half = lambda x: jnp.where(x[0] > 0, target(x), -jnp.inf)

    @jax.jit
    def estimates(key):
        standard = flows.flow(NORMAL, flows.chain())
        return (
            flows.importance_log_z(key, model, target, count),
            flows.importance_log_z(key, standard, target, 10),
            flows.importance_log_z(key, standard, half, 10000),
        )

    results, exact, halved = estimates(KEY)
    assert abs(float(results.log_z) - log_z) < 4.5 * float(results.standard_error)
    # E w² = ∫ p²/q = Π s²/√(2s² − 1) over two dimensions
    expected = (2 * s**2 - 1) / s**4
    assert float(results.effective_size) / count == pytest.approx(expected, rel=0.05)
    assert float(exact.log_z) == pytest.approx(log_z, abs=1e-12) and float(
        exact.effective_size
    ) == pytest.approx(10)
    assert abs(float(halved.log_z) - log_z + math.log(2)) < 4.5 * float(
        halved.standard_error
    )  # weights 0 count


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_a_flow_without_a_density_at_its_samples_is_named(value):
    """log q that is not finite raises ValueError with its number.

    Under jit the estimate is NaN, where e^{−inf} = 0 or 1/0 would pass for
    weights. The same holds for weights that are all 0, which have no effective
    size.
    """
    model = flows.flow(HalfDensity(jnp.float32(value)), flows.chain())
    target = lambda x: -0.5 * jnp.sum(x**2)
    for use in (flows.importance_log_z, flows.reverse_kl):
        assert_raises(
            lambda use=use: use(KEY, model, target, 50),
            ValueError,
            "flow must have a finite density at its own samples, got",
        )
    results = jax.jit(lambda model: flows.importance_log_z(KEY, model, target, 50))(
        model
    )
    assert np.all(
        np.isnan([results.log_z, results.effective_size, results.standard_error])
    )
    fine, nothing = flows.flow(NORMAL, flows.chain()), lambda x: -jnp.inf
    assert_raises(
        lambda: flows.importance_log_z(KEY, fine, nothing, 50),
        ValueError,
        "50 weights that are all 0",
    )
    results = jax.jit(lambda flow: flows.importance_log_z(KEY, flow, nothing, 50))(fine)
    assert np.all(
        np.isnan([results.log_z, results.effective_size, results.standard_error])
    )
