"""Densities of bounded support are 0 outside it, with finite gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import distributions, flows


def minus_exponential(x):
    return -jnp.exp(-x)


def minus_logarithm(y):
    return -jnp.log(-y)


def minus(x):
    return -x


def power(x):
    return jnp.exp(3 * x)


def third_root(y):
    return jnp.log(y) / 3


def power_log_slope(x):
    return math.log(3) + 3 * x


INF = math.inf
BOUNDED = {
    "exponential": (flows.exponential(), 0.0, INF),
    "softplus": (flows.positive(), 0.0, INF),
    "tanh": (flows.tanh(), -1.0, 1.0),
    "sigmoid": (flows.sigmoid(), 0.0, 1.0),
    "logit": (flows.logit(-1.0, 16.0, margin=0.0), -1.0, 16.0),
    "power": (
        flows.elementwise(power, third_root, power_log_slope, image=(0.0, INF)),
        0.0,
        INF,
    ),
    "below 0": (
        flows.elementwise(minus_exponential, minus_logarithm, minus, image=(-INF, 0.0)),
        -INF,
        0.0,
    ),
    "chain": (
        flows.chain(
            flows.lu_linear(2), flows.sigmoid(), flows.affine(jnp.full(2, -3.0), 2.0)
        ),
        -3.0,
        -1.0,
    ),
    "stack": (
        flows.stack([flows.chain(flows.affine(jnp.zeros(2)), flows.tanh())] * 2),
        -math.tanh(1),
        math.tanh(1),
    ),
    "inverse": (
        flows.chain(
            flows.affine(jnp.zeros(2)), flows.inverse(flows.inverse(flows.tanh()))
        ),
        -1.0,
        1.0,
    ),
}
"""name -> (bijector, lower and upper end of its image)."""
MODELS = {
    name: flows.flow(distributions.standard_normal((2,)), row[0])
    for name, row in BOUNDED.items()
}


def points(lower, upper):
    """Two points inside. Then, for each finite bound, one on it and one beyond it."""
    start = lower if math.isfinite(lower) else upper - 2
    end = upper if math.isfinite(upper) else lower + 2
    inside = [start + 0.4 * (end - start), start + 0.7 * (end - start)]
    outside = [
        v
        for bound, sign in ((lower, -1), (upper, 1))
        if math.isfinite(bound)
        for v in (bound, bound + sign)
    ]
    return np.array(
        [inside, inside[::-1], *([inside[0], v] for v in outside)], np.float32
    )


@jax.jit
def examine(models, xs):
    """log p, its gradients by x and by the flow, and the latents of every model."""
    results = {}
    for name, model in models.items():
        by_both = jax.value_and_grad(
            lambda x, model: model.log_prob(x), argnums=(0, 1), allow_int=True
        )
        results[name] = (
            *jax.vmap(by_both, (0, None))(xs[name], model),
            jax.vmap(model.encode)(xs[name]),
        )
    return results


XS = {name: points(*row[1:]) for name, row in BOUNDED.items()}


@pytest.fixture(scope="module")
def examined():
    return jax.tree.map(np.asarray, examine(MODELS, XS))


@pytest.mark.parametrize("name", BOUNDED)
def test_a_density_is_zero_outside_its_support(name, examined):
    """−∞ on a bound and beyond it, finite inside. Gradients are finite everywhere."""
    log_p, gradients, latents = examined[name]
    assert np.all(np.isfinite(log_p[:2]))
    assert np.all(log_p[2:] == -np.inf)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    assert np.all(np.isfinite(latents[:2]))
    assert np.all(np.isnan(latents[2:]).any(1))


def test_concrete_examples_outside_the_support_have_density_zero_and_no_latent():
    """NaN in the data stays an error, or NaN where it is traced."""
    model = MODELS["chain"]
    assert float(model.log_prob(np.float32([-2.0, 0.5]))) == -np.inf
    with pytest.raises(ValueError, match="y must lie in"):
        model.encode(np.float32([-2.0, 0.5]))
    assert np.isnan(jax.jit(model.log_prob)(np.float32([-2.0, np.nan])))


def test_what_a_reversed_map_cannot_reach_is_no_sample():
    """inverse(sigmoid) outside (0, 1) is NaN.

    It is neither a finite sample nor a density of +∞.
    """
    model = flows.flow(
        distributions.standard_normal((8,)), flows.inverse(flows.sigmoid())
    )
    x, log_p = jax.jit(model.sample_and_log_prob)(jax.random.key(0))
    assert np.isnan(log_p) and np.isnan(x).all()


def test_initialise_names_examples_outside_the_image():
    model = flows.flow(
        distributions.standard_normal((2,)),
        flows.chain(flows.actnorm(2), flows.sigmoid()),
    )
    with pytest.raises(
        ValueError, match="batch must lie inside the image of the bijector"
    ):
        flows.initialise(model, np.float32([[0.2, 0.3], [0.5, 1.5], [0.1, 0.9]]))
