"""The distribution of a flow.

Closed forms, temperature, its base, interpolation and bounds for lattice data.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import diffjax as dj
from diffjax import distributions, flows
from tests.flow_members import KEY, NORMAL, glow_like, shaken


def test_a_linear_flow_is_the_gaussian_with_its_covariance(x64):
    """x = A z + b of a standard normal z has the distribution N(b, A Aᵀ).

    That holds whichever layer is A.
    """
    bijector = shaken(
        flows.chain(
            flows.lu_linear(2),
            flows.triangular(2),
            flows.affine(jnp.array([1.0, -2.0])),
        )
    )
    model = flows.flow(distributions.standard_normal((2,)), bijector)

    @jax.jit
    def everything(model):
        x, log_p = model.sample_and_log_prob(jax.random.key(0))
        moments = (
            model.bijector.forward(jnp.zeros(2)),
            jax.jacfwd(model.bijector.forward)(jnp.zeros(2)),
        )
        return x, log_p, model.log_prob(x), model.decode(model.encode(x)), moments

    x, log_p, again, back, (mean, matrix) = everything(model)
    covariance = np.asarray(matrix) @ np.asarray(matrix).T
    expected = scipy.stats.multivariate_normal(mean, covariance).logpdf(x)
    assert float(log_p) == pytest.approx(float(expected), abs=1e-10)
    assert float(again) == pytest.approx(float(expected), abs=1e-10)
    np.testing.assert_allclose(back, x, atol=1e-10)


def test_temperature_scales_the_base_about_its_mean():
    """T = 0 gives the image of the base's mean.

    Where |det| is constant the distribution at T is ∝ p^{1/T²}, here N(m,
    T²Σ).
    """
    base = dj.targets.gaussian([1.0, -1.0], [0.5, 2.0])
    model = flows.flow(base, flows.affine(jnp.array([3.0, 0.0]), 2.0))
    key = jax.random.key(0)
    np.testing.assert_allclose(
        model.sample(key, temperature=0.0), [5.0, -2.0], rtol=1e-6
    )
    centre = model.sample(key, 0.0)
    np.testing.assert_allclose(
        model.sample(key, 0.7) - centre, 0.7 * (model.sample(key) - centre), rtol=1e-5
    )


def test_temperature_one_needs_nothing_of_the_base():
    """T = 1 leaves a draw unchanged, so that a base without a mean will do.

    That holds whether 1 is a float or an array.
    """
    model = flows.flow(flows.flow(NORMAL, flows.affine(1.0)), flows.chain())
    np.testing.assert_array_equal(model.sample(KEY, jnp.float32(1)), model.sample(KEY))


def test_the_base_is_held_fixed_by_default():
    base = dj.targets.gaussian([1.0, -1.0], 0.5)
    for train_base in (False, True):
        model = flows.flow(base, flows.affine(jnp.zeros(2)), train_base=train_base)
        gradient = jax.jit(jax.grad(lambda model: model.log_prob(jnp.ones(2))))(model)
        assert np.any(np.asarray(gradient.base.means) != 0) == train_base
        assert np.any(np.asarray(gradient.bijector.shift) != 0)


def test_a_base_need_not_be_a_pytree():
    """Any object with log_prob and sample will do, as another library's
    distribution.

    The results are the same to a rounding, since a pytree runs as one compiled
    program.
    """

    class Standard:
        def log_prob(self, z):
            return NORMAL.log_prob(z)

        def sample(self, key):
            return NORMAL.sample(key)

    bijector = flows.affine(jnp.ones(2), 2.0)
    plain, ours = flows.flow(Standard(), bijector), flows.flow(NORMAL, bijector)
    assert float(plain.log_prob(jnp.zeros(2))) == float(ours.log_prob(jnp.zeros(2)))
    np.testing.assert_allclose(
        plain.sample(KEY), ours.sample(KEY), rtol=2 * np.finfo(np.float32).eps
    )


def test_a_multiscale_flow_has_the_density_of_its_flat_twin():
    """Latents enter a flow as a tuple or as one vector, with one density and
    one sample.
    """
    member = shaken(glow_like(jax.random.key(0)))
    levels = member.bijectors[1]
    deep = flows.flow(distributions.standard_normal(levels.latent_shapes), levels)
    flat = flows.flow(distributions.standard_normal((32,)), member)
    assert levels.latent_shapes == ((1, 1, 16), (2, 2, 4))

    @jax.jit
    def everything(deep, flat):
        x = deep.sample(jax.random.key(1), temperature=0.7)
        z = deep.encode(x)
        return (
            x,
            deep.log_prob(x),
            flat.log_prob(x),
            levels.flatten(z),
            flat.encode(x),
            deep.decode(z),
        )

    x, log_p, twin_log_p, z, twin_z, back = everything(deep, flat)
    assert x.shape == (4, 4, 2)
    assert float(log_p) == pytest.approx(float(twin_log_p), rel=1e-5)
    np.testing.assert_allclose(z, twin_z, rtol=1e-5)
    np.testing.assert_allclose(back, x, atol=1e-4)


def test_interpolation_is_about_the_mean_of_the_base():
    """Latents m + e_1 and m + e_2 of N(m, I) have m + (e_1 + e_2)/√2 halfway.

    It is not a point of the circle about 0.
    """
    model = flows.flow(dj.targets.gaussian([100.0, 50.0], 1.0), flows.chain())
    middle = flows.interpolate(
        model, jnp.array([101.0, 50.0]), jnp.array([100.0, 51.0]), jnp.array([0.5])
    )
    np.testing.assert_allclose(
        middle[0],
        np.array([100.0, 50.0]) + math.sqrt(0.5),
        rtol=4 * np.finfo(np.float32).eps,
    )


def test_dequantised_bounds_average_below_the_mass_of_the_cell(x64):
    """E log P̂ ≤ log ∫_cell p, with equality for the exact dequantiser.

    p = N(0.2, 1) on cells of width ½ around ±¼. The exact posterior on the
    cell is x + width (v − ½) with v through the normal distribution's
    quantiles. log P̂ is then the mass, whatever the draw.
    """
    from jax.scipy.special import ndtr, ndtri

    model = flows.flow(
        distributions.standard_normal((1,)), flows.affine(jnp.array([0.2]))
    )
    x, width = np.array([0.25]), 0.5
    mass = math.log(scipy.stats.norm.cdf(0.3) - scipy.stats.norm.cdf(-0.2))

    class Exact:
        def sample_and_log_prob(self, key, condition):
            low, high = ndtr(condition - 0.45), ndtr(condition + 0.05)
            u = ndtri(low + jax.random.uniform(key, (1,)) * (high - low)) + 0.2
            log_q = jnp.sum(
                -0.5 * (u - 0.2) ** 2
                - 0.5 * math.log(2 * math.pi)
                - jnp.log(high - low)
                + math.log(width)
            )
            return (u - condition) / width + 0.5, log_q

    @jax.jit
    def bounds(keys):
        draws = jax.vmap(lambda key: flows.lattice_log_prob(key, model, x, width))(keys)
        return draws, flows.lattice_log_prob(
            keys[0], model, x, width, dequantiser=Exact()
        )

    draws, exact = map(np.asarray, bounds(jax.random.split(jax.random.key(0), 4000)))
    assert draws.mean() < mass + 3 * draws.std() / math.sqrt(4000)
    assert draws.mean() == pytest.approx(
        mass, abs=0.02
    )  # the density varies by a factor e^¼ in the cell
    assert float(exact) == pytest.approx(mass, abs=1e-9)


def test_a_learned_dequantiser_is_an_importance_estimate_of_the_mass(x64):
    """E exp(log P̂) = P(cell) whatever the conditional flow q(v | x).

    Here it has random parameters. 1/q on (0, 1) is e^{z²/2 − 4|z|} in the
    base's z, up to a factor. That is bounded for |z| < 8, beyond which no draw
    falls.
    """
    scalar_map = flows.rational_quadratic(4, 3.0)
    network = flows.perceptron(KEY, 1, (1, scalar_map.count), width=4)
    layers = flows.chain(
        flows.conditional(network, scalar_map), flows.affine(0.0, 4.0), flows.sigmoid()
    )
    dequantiser = shaken(
        flows.flow(distributions.standard_normal((1,)), layers), size=0.2
    )
    model, x = (
        flows.flow(distributions.standard_normal((1,)), flows.affine(jnp.array([0.2]))),
        np.array([0.25]),
    )
    draw = jax.jit(
        jax.vmap(
            lambda key: flows.lattice_log_prob(
                key, model, x, 0.5, dequantiser=dequantiser
            )
        )
    )
    draws = np.exp(draw(jax.random.split(KEY, 20000)))
    assert abs(
        draws.mean() - (scipy.stats.norm.cdf(0.3) - scipy.stats.norm.cdf(-0.2))
    ) < 4.5 * draws.std() / math.sqrt(20000)
    assert draws.std() > 0.01 * draws.mean()
