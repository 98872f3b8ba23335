"""Bijectors and flows as one family: log-determinants against autodiff both ways, round trips, densities, errors."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import assert_refused, every

import diffjax as dj
from diffjax import flows
from diffjax.flows.glow import convolution

NORMAL, KEY = flows.standard_normal((2,)), jax.random.key(0)


class Member(NamedTuple):
    """make(key) -> bijector; shape of a base example; the standard deviation that counts as far out of distribution;
    whether a condition of shape (2,) goes in.
    """

    make: Any
    shape: tuple
    far: float = 5.0
    conditional: bool = False


def glow_like(key):
    """Two levels of squeeze, actnorm and convolution: (4, 4, 2) from latents of 2 × 2 × 4 and 1 × 1 × 16."""
    keys = jax.random.split(key, 2)
    deep = flows.chain(flows.invertible_convolution(keys[0], 16), flows.actnorm(16), flows.inverse(flows.squeeze()))
    data = flows.chain(flows.invertible_convolution(keys[1], 8), flows.actnorm(8), flows.inverse(flows.squeeze()))
    levels = flows.multiscale((4, 4, 2), deep, data)
    return flows.chain(Vector(levels), levels)


@dj.types.pytree
class Vector:
    """A vector to the latents of a multiscale bijector, so that it has a square Jacobian."""

    levels: Any

    def forward_and_log_det(self, x, condition=None):
        """Unflattened."""
        return jax.lax.stop_gradient(self.levels).unflatten(x), jnp.zeros(())

    def inverse_and_log_det(self, y, condition=None):
        """Flattened."""
        return jax.lax.stop_gradient(self.levels).flatten(y), jnp.zeros(())

    forward = inverse = None


Vector.forward = lambda self, x, condition=None: self.forward_and_log_det(x)[0]
Vector.inverse = lambda self, y, condition=None: self.inverse_and_log_det(y)[0]


def glow(network, condition_size=0):
    """key -> a Glow of two levels for (4, 4, 1), of a vector."""

    def make(key):
        model = flows.glow(key, (4, 4, 1), 2, steps=2, width=4, condition_size=condition_size, network=network)
        return flows.chain(Vector(model.bijector), model.bijector)

    return make


def coupled(scalar_map, mask, shape, condition_size=0):
    """key -> a coupling of a perceptron for examples of this shape."""
    kept, moved = (part.shape for part in mask.parts(jnp.zeros(shape)))

    def make(key):
        outputs = (*moved, scalar_map.count)
        network = flows.perceptron(key, math.prod(kept), outputs, width=8, condition_size=condition_size)
        return flows.coupling(network, scalar_map, mask)

    return make


def conditioned(key):
    """A conditional spline of a vector."""
    scalar_map = flows.rational_quadratic(5, 3.0)
    return flows.conditional(flows.perceptron(key, 2, (3, scalar_map.count), width=8), scalar_map)


SPLINE = flows.rational_quadratic(5, 3.0)

MEMBERS = {
    "identity": Member(lambda key: flows.chain(), (3,)),
    "affine": Member(lambda key: flows.affine([0.3, -1.0, 2.0], [0.5, 1.0, 3.0]), (3,)),
    "affine broadcast": Member(lambda key: flows.affine(0.3, 0.5), (2, 2)),
    "actnorm": Member(lambda key: flows.actnorm(2), (2, 2, 2)),
    "exponential": Member(lambda key: flows.exponential(), (3,)),
    "positive": Member(lambda key: flows.positive(), (3,)),
    "tanh": Member(lambda key: flows.tanh(), (3,), far=2.0),
    "sigmoid": Member(lambda key: flows.sigmoid(), (3,)),
    "logit": Member(lambda key: flows.logit(-1.0, 16.0), (3,)),
    "leaky_relu": Member(lambda key: flows.leaky_relu(0.2), (3,)),
    "sinh_arcsinh": Member(lambda key: flows.sinh_arcsinh([0.2, 0.0, -1.0], [0.8, 1.0, 1.3]), (3,)),
    "permutation": Member(lambda key: flows.permutation([2, 0, 1]), (2, 3)),
    "shuffle": Member(lambda key: flows.shuffle(key, 5), (5,)),
    "reversal": Member(lambda key: flows.reversal(3), (3,)),
    "reshape": Member(lambda key: flows.reshape((4,), (2, 2)), (4,)),
    "squeeze": Member(lambda key: flows.squeeze(), (2, 4, 2)),
    "triangular": Member(lambda key: flows.triangular(4), (4,)),
    "lu_linear": Member(lambda key: flows.lu_linear(4), (4,)),
    "invertible_convolution": Member(lambda key: flows.invertible_convolution(key, 3), (2, 2, 3)),
    "multiscale": Member(glow_like, (32,)),
    "inverse": Member(lambda key: flows.inverse(flows.triangular(3)), (3,)),
    "stack": Member(
        lambda key: flows.stack([flows.chain(flows.lu_linear(3), flows.leaky_relu(0.5), flows.affine(jnp.zeros(3)))] * 4),
        (3,),
    ),
    "additive, half": Member(coupled(flows.additive(), flows.half_mask(3), (3,)), (3,)),
    "affine, half": Member(coupled(flows.bounded_affine(), flows.half_mask(4, swap=True), (4,)), (4,)),
    "affine, alternate": Member(coupled(flows.bounded_affine(1.0), flows.alternate_mask(5), (5,)), (5,)),
    "affine, channels": Member(coupled(flows.bounded_affine(), flows.half_mask(2), (2, 2, 2)), (2, 2, 2)),
    "affine, checkerboard": Member(coupled(flows.bounded_affine(), flows.checkerboard_mask(), (2, 3, 2)), (2, 3, 2)),
    "spline, half": Member(coupled(SPLINE, flows.half_mask(3), (3,)), (3,)),
    "spline, checkerboard": Member(coupled(SPLINE, flows.checkerboard_mask(True), (2, 2, 1)), (2, 2, 1)),
    "affine, conditional": Member(coupled(flows.bounded_affine(), flows.half_mask(3), (3,), 2), (3,), conditional=True),
    "pointwise spline": Member(lambda key: flows.pointwise((3,), SPLINE), (3,)),
    "conditional spline": Member(conditioned, (3,), conditional=True),
    "nice": Member(lambda key: flows.nice(key, (3,), layers=4, width=8).bijector, (3,)),
    "real_nvp": Member(lambda key: flows.real_nvp(key, (2, 2), layers=4, width=8).bijector, (4,)),
    "maf": Member(lambda key: flows.maf(key, (3,), layers=2, width=8).bijector, (3,)),
    "maf, splines": Member(lambda key: flows.autoregressive(flows.masked_perceptron(key, 4, SPLINE.count, 8), SPLINE), (4,)),
    "maf, conditional": Member(lambda key: flows.autoregressive(flows.masked_perceptron(key, 3, 2, 8, condition_size=2), flows.bounded_affine()), (3,), conditional=True),
    "maf of one entry": Member(lambda key: flows.autoregressive(flows.masked_perceptron(key, 1, 2, 8), flows.bounded_affine()), (1,)),
    "iaf": Member(lambda key: flows.iaf(key, (2, 2), layers=2, width=8).bijector, (4,)),
    "tarflow": Member(lambda key: flows.tarflow(key, (4, 4, 1), layers=2, width=8, depth=1, heads=2).bijector, (4, 4)),
    "causal_transformer": Member(lambda key: flows.autoregressive(flows.causal_transformer(key, 3, 2, 2, 8, 1, 2, 2), flows.bounded_affine()), (3, 2), conditional=True),
    "spline_coupling": Member(lambda key: flows.spline_coupling(key, (2,), width=8, condition_size=2).bijector, (2,), conditional=True),
    "glow": Member(glow(flows.convolutional), (16,)),
    "glow, dense, conditional": Member(glow(flows.dense, 2), (16,), conditional=True),
}  # fmt: skip
"""name -> member. Parameters are shaken before each test, so that nothing holds at the initial values alone."""

FAST = ["stack-float32", "lu_linear-float64", "spline, half-float64", "maf, conditional-float32"]


def shaken(tree, seed=1, size=0.3):
    """Every parameter plus N(0, size²)."""
    draws = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + size * draws.standard_normal(leaf.shape), leaf.dtype), tree)


@jax.jit
def examine(bijector, xs, conditions):
    """For each x: f, log-determinants both ways, both Jacobians by autodiff, the round trip, and a scan's results."""

    def jacobian(method, x, c):
        """∂ method(x)/∂x (D, D), flat, and what the method returned."""

        def flat(v):
            y, log_det = method(v.reshape(x.shape), c)
            return jnp.ravel(y), (y, log_det)

        return jax.jacfwd(flat, has_aux=True)(jnp.ravel(x))

    def one(x, c):
        forward, (y, log_det) = jacobian(bijector.forward_and_log_det, x, c)
        backward, (back, inverse_log_det) = jacobian(bijector.inverse_and_log_det, y, c)
        return dict(y=y.ravel(), log_det=log_det, back=back.ravel(), inverse_log_det=inverse_log_det,
                    forward=forward, backward=backward, x=x.ravel())  # fmt: skip

    def both(x, c):
        y, log_det = bijector.forward_and_log_det(x, c)
        return log_det, bijector.inverse_and_log_det(y, c)[1]

    def total(bijector):
        log_dets = jax.vmap(lambda x, c: bijector.inverse_and_log_det(bijector.forward(x, c), c)[1])(xs, conditions)
        return jnp.sum(log_dets)

    scanned = jax.lax.scan(lambda carry, xc: (carry, both(*xc)), 0, (xs, conditions))[1]
    return jax.vmap(one)(xs, conditions), scanned, jax.grad(total)(bijector)


@pytest.mark.parametrize("case", every([f"{name}-float{bits}" for name in MEMBERS for bits in (32, 64)], FAST))
def test_log_det_is_that_of_autodiff_and_the_map_inverts(case):
    """log|det| = autodiff's slogdet of f and of f⁻¹, f⁻¹(f(x)) = x, all under jit and vmap; a scan gives the same.

    In and out of distribution. y is off by rounding · (‖y‖ + ‖J‖‖x‖), which f⁻¹ amplifies by ‖J⁻¹‖; a determinant is
    off by rounding · condition number, and a log-determinant by its own sensitivity to x besides.
    """
    name, dtype = case.rsplit("-", 1)
    member = MEMBERS[name]
    with jax.enable_x64(dtype == "float64"):
        eps = float(jnp.finfo(jnp.zeros(()).dtype).eps)
        bijector = shaken(member.make(jax.random.key(0)))
        spread = jnp.array([1.0, 1.0, member.far, member.far]).reshape(-1, *[1] * len(member.shape))
        xs = spread * jax.random.normal(jax.random.key(2), (4, *member.shape), float)
        conditions = jax.random.normal(jax.random.key(3), (4, 2), float) if member.conditional else None
        found, scanned, gradient = examine(bijector, xs, conditions)
    found = {key: np.asarray(value, np.float64) for key, value in found.items()}
    size = lambda v: np.linalg.norm(v.reshape(len(v), -1), axis=1)  # noqa: E731
    norm = lambda m: np.linalg.norm(m, 2, axis=(1, 2))  # noqa: E731
    assert jnp.shape(scanned[0]) == (4,) and found["log_det"].shape == (4,)
    condition = norm(found["forward"]) * norm(found["backward"])
    drift = norm(found["backward"]) * (size(found["y"]) + norm(found["forward"]) * size(found["x"])) + size(found["x"])
    assert np.all(size(found["back"] - found["x"]) <= 50 * eps * drift)
    tolerance = 100 * eps * (condition + drift + np.abs(found["log_det"]) + math.prod(member.shape))
    for matrix, value in (("forward", "log_det"), ("backward", "inverse_log_det")):
        assert np.all(np.abs(np.linalg.slogdet(found[matrix])[1] - found[value]) <= tolerance), matrix
    assert np.all(np.abs(found["log_det"] + found["inverse_log_det"]) <= tolerance)
    for value, key in zip(scanned, ("log_det", "inverse_log_det"), strict=True):
        assert np.all(np.abs(np.asarray(value, np.float64) - found[key]) <= tolerance)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", MEMBERS)
def test_parameters_are_floating_point_leaves_and_treedefs_are_stable(name):
    """A bijector made twice has one treedef, hence one compiled program; all of its leaves may be trained."""
    one, two = (MEMBERS[name].make(jax.random.key(seed)) for seed in (0, 0))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(one))


# ------------------------------------------------------------------------------------------------------ initialisation


def test_actnorm_normalises_the_batch_through_a_flow():
    """After `initialise`, what each actnorm hands towards the base has mean 0 and variance 1 in each channel; a
    constant channel gets the gain 1/ε.
    """
    scan = flows.stack([flows.chain(flows.leaky_relu(0.5), flows.actnorm(3)) for _ in range(2)])
    model = flows.flow(flows.standard_normal((3,)), flows.chain(flows.actnorm(3), flows.leaky_relu(0.2), scan))
    batch = jnp.array([5.0, -3.0, 2.0]) + jnp.array([4.0, 0.1, 0.0]) * jax.random.normal(jax.random.key(0), (500, 3))
    fitted = flows.initialise(model, batch)
    z = np.asarray(jax.vmap(fitted.encode)(batch))
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(0)[:2], 1, rtol=0.02)  # σ / (σ + ε), once an actnorm
    assert z.std(0)[2] == 0
    outer = jax.tree.map(lambda leaf: leaf[-1], fitted.bijector.bijectors[-1].layers).bijectors[-1]
    np.testing.assert_allclose(outer.shift, batch.mean(0), rtol=1e-5)
    np.testing.assert_allclose(outer.log_scale[2], math.log(1e-3), rtol=1e-3)
    assert jax.tree.structure(fitted) == jax.tree.structure(model)


def test_actnorm_normalises_every_level_of_a_multiscale_flow():
    """Actnorms come before the convolutions towards the base, which rotate: each latent channel has mean 0, and the
    mean square over a level's channels is 1.
    """
    levels = glow_like(KEY).bijectors[1]
    batch = 3 + 2 * jax.random.normal(jax.random.key(1), (400, 4, 4, 2))
    deep, shallow = jax.jit(lambda levels, batch: jax.vmap(flows.initialise(levels, batch).inverse)(batch))(
        levels, batch
    )
    for z in (deep, shallow):
        np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-4)
    assert float(jnp.mean(deep**2)) == pytest.approx(1, rel=3e-3)  # σ² / (σ + ε)²


# ------------------------------------------------------------------------------------------------------------ the flow


def test_a_linear_flow_is_the_gaussian_with_its_covariance(x64):
    """x = A z + b of a standard normal z has the law N(b, A Aᵀ), whichever layer is A."""
    bijector = shaken(flows.chain(flows.lu_linear(2), flows.triangular(2), flows.affine(jnp.array([1.0, -2.0]))))
    matrix = jax.jacfwd(bijector.forward)(jnp.zeros(2))
    exact = dj.targets.gaussian(bijector.forward(jnp.zeros(2)), matrix @ matrix.T)
    model = flows.flow(flows.standard_normal((2,)), bijector)

    @jax.jit
    def everything(model):
        x, log_p = model.sample_and_log_prob(jax.random.key(0))
        return x, log_p, model.log_prob(x), exact.log_prob(x), model.decode(model.encode(x))

    x, log_p, again, expected, back = everything(model)
    assert float(log_p) == pytest.approx(float(expected), abs=1e-10)
    assert float(again) == pytest.approx(float(expected), abs=1e-10)
    np.testing.assert_allclose(back, x, atol=1e-10)


def test_temperature_scales_the_base_about_its_mean():
    """T = 0 is the image of the base's mean; where |det| is constant the law at T is ∝ p^{1/T²}, here N(m, T²Σ)."""
    base = dj.targets.gaussian([1.0, -1.0], [0.5, 2.0])
    model = flows.flow(base, flows.affine(jnp.array([3.0, 0.0]), 2.0))
    key = jax.random.key(0)
    np.testing.assert_allclose(model.sample(key, temperature=0.0), [5.0, -2.0], rtol=1e-6)
    centre = model.sample(key, 0.0)
    np.testing.assert_allclose(model.sample(key, 0.7) - centre, 0.7 * (model.sample(key) - centre), rtol=1e-5)


def test_the_base_is_held_fixed_unless_asked_otherwise():
    base = dj.targets.gaussian([1.0, -1.0], 0.5)
    for train_base in (False, True):
        model = flows.flow(base, flows.affine(jnp.zeros(2)), train_base=train_base)
        gradient = jax.jit(jax.grad(lambda model: model.log_prob(jnp.ones(2))))(model)
        assert np.any(np.asarray(gradient.base.means) != 0) == train_base
        assert np.any(np.asarray(gradient.bijector.shift) != 0)


def test_a_multiscale_flow_has_the_density_of_its_flat_twin():
    """Latents enter a flow as a tuple or as one vector: one density, one sample up to the draw."""
    member = shaken(glow_like(jax.random.key(0)))
    levels = member.bijectors[1]
    deep = flows.flow(flows.standard_normal(levels.latent_shapes), levels)
    flat = flows.flow(flows.standard_normal((32,)), member)
    assert levels.latent_shapes == ((1, 1, 16), (2, 2, 4))

    @jax.jit
    def everything(deep, flat):
        x = deep.sample(jax.random.key(1), temperature=0.7)
        z = deep.encode(x)
        return x, deep.log_prob(x), flat.log_prob(x), levels.flatten(z), flat.encode(x), deep.decode(z)

    x, log_p, twin_log_p, z, twin_z, back = everything(deep, flat)
    assert x.shape == (4, 4, 2)
    assert float(log_p) == pytest.approx(float(twin_log_p), rel=1e-5)
    np.testing.assert_allclose(z, twin_z, rtol=1e-5)
    np.testing.assert_allclose(back, x, atol=1e-4)


def test_dequantised_bounds_average_below_the_mass_of_the_cell(x64):
    """E log P̂ ≤ log ∫_cell p, and a dequantiser that is p itself on the cell attains it for every draw.

    p = N(0.2, 1) on cells of width ½ around ±¼. The exact posterior on the cell is x + width (v − ½) with v through the
    normal law's quantiles: log P̂ is then the mass, whatever the draw.
    """
    from jax.scipy.special import ndtr, ndtri

    model = flows.flow(flows.standard_normal((1,)), flows.affine(jnp.array([0.2])))
    x, width = jnp.array([0.25]), 0.5
    mass = math.log(float(ndtr(x[0] + 0.05) - ndtr(x[0] - 0.45)))
    draw = jax.jit(jax.vmap(lambda key: flows.lattice_log_prob(key, model, x, width)))
    draws = draw(jax.random.split(jax.random.key(0), 4000))
    error = float(jnp.std(draws)) / math.sqrt(4000)
    assert float(jnp.mean(draws)) < mass + 3 * error
    assert float(jnp.mean(draws)) == pytest.approx(mass, abs=0.02)  # the density varies by a factor e^¼ in the cell

    class Exact:
        def sample_and_log_prob(self, key, condition):
            low, high = ndtr(condition - 0.45), ndtr(condition + 0.05)
            u = ndtri(low + jax.random.uniform(key, (1,)) * (high - low)) + 0.2
            log_q = jnp.sum(-0.5 * (u - 0.2) ** 2 - 0.5 * math.log(2 * math.pi) - jnp.log(high - low) + math.log(width))
            return (u - condition) / width + 0.5, log_q

    exact = flows.lattice_log_prob(jax.random.key(1), model, x, width, Exact())
    assert float(exact) == pytest.approx(mass, abs=1e-9)


def test_a_learned_dequantiser_is_an_importance_estimate_of_the_mass(x64):
    """E exp(log P̂) = P(cell) whatever the conditional flow q(v | x): here one of random parameters.

    1/q on (0, 1) is e^{z²/2 − 4|z|} in the base's z, up to a factor: bounded for |z| < 8, beyond which no draw falls.
    """
    from jax.scipy.special import ndtr

    scalar_map = flows.rational_quadratic(4, 3.0)
    network = flows.perceptron(KEY, 1, (1, scalar_map.count), width=4)
    layers = flows.chain(flows.conditional(network, scalar_map), flows.affine(0.0, 4.0), flows.sigmoid())
    dequantiser = shaken(flows.flow(flows.standard_normal((1,)), layers), size=0.2)
    model, x = flows.flow(flows.standard_normal((1,)), flows.affine(jnp.array([0.2]))), jnp.array([0.25])
    draw = jax.jit(jax.vmap(lambda key: flows.lattice_log_prob(key, model, x, 0.5, dequantiser)))
    draws = np.exp(draw(jax.random.split(KEY, 20000)))
    assert abs(draws.mean() - float(ndtr(0.3) - ndtr(-0.2))) < 4.5 * draws.std() / math.sqrt(20000)
    assert draws.std() > 0.01 * draws.mean()


# ------------------------------------------------------------------------------------------------------------- splines


def test_a_spline_goes_through_its_knots_with_its_slopes_and_on_in_straight_lines(x64):
    """y(x_k) = y_k, y′(x_k) = d_k, inside and at both ends; beyond them lines of the end slopes; the inverse inverts."""
    x_knots, y_knots = jnp.array([-2.0, -1.0, 0.5, 3.0]), jnp.array([-1.0, 0.5, 1.0, 4.0])
    slopes = jnp.array([0.5, 2.0, 0.3, 1.5])
    points = jnp.concatenate([x_knots, jnp.array([-5.0, 5.0]), jnp.linspace(-3.0, 4.0, 50)])

    @jax.jit
    def everything(points):
        y, log_slope = flows.rational_quadratic_spline(points, x_knots, y_knots, slopes)
        derivative = jax.vmap(jax.grad(lambda x: flows.rational_quadratic_spline(x, x_knots, y_knots, slopes)[0]))
        return y, log_slope, derivative(points), *flows.inverse_rational_quadratic_spline(y, x_knots, y_knots, slopes)

    y, log_slope, derivative, back, log_inverse_slope = everything(points)
    np.testing.assert_allclose(y[:4], y_knots, atol=1e-12)
    np.testing.assert_allclose(jnp.exp(log_slope[:4]), slopes, atol=1e-12)
    np.testing.assert_allclose(y[4:6], [-1.0 - 3 * 0.5, 4.0 + 2 * 1.5], atol=1e-12)
    np.testing.assert_allclose(back, points, atol=1e-11)
    np.testing.assert_allclose(log_inverse_slope, -log_slope, atol=1e-10)
    np.testing.assert_allclose(jnp.log(derivative), log_slope, atol=1e-11)


def test_a_spline_is_flowjaxs(x64):
    """Values and log slopes both ways of flowjax 19.1.2's RationalQuadraticSpline at one set of knots, in float64."""
    x_knots = jnp.array(
        [
            -3.0,
            -1.892010878703541,
            -1.332779716324343,
            -0.24099065419070564,
            1.5801353070295896,
            2.3974823996101975,
            3.0,
        ]
    )
    y_knots = jnp.array(
        [
            -3.0,
            -1.4147567785936783,
            -0.6703890951464007,
            -0.16535190965745272,
            1.0229563295590172,
            2.4281217548210616,
            3.0,
        ]
    )
    slopes = jnp.array(
        [
            1.4140326795018074,
            1.0030211110375888,
            0.6666104720093916,
            1.0964785898030402,
            1.386100050768655,
            0.8254997685793289,
            0.7234590588899813,
        ]
    )
    points = jnp.array([-2.5, -1.0, 0.1, 0.9, 2.2, 2.99])
    found = [
        *flows.rational_quadratic_spline(points, x_knots, y_knots, slopes),
        *flows.inverse_rational_quadratic_spline(points, x_knots, y_knots, slopes),
    ]
    theirs = [
        [-2.2299856285213386, -0.5250407820057471, 0.10573973990764635, 0.4911318654938056, 2.191522767416674, 2.992684003127836],
        [0.4517054624089659, -1.1276348285862556, -0.514227693059032, -0.7021095942577649, 0.4506177728771562, -0.3014904474926117],
        [-2.6705087794753024, -1.60401939172546, 0.09045758457379538, 1.480227346095006, 2.2054356290035417, 2.986385836598562],
        [-0.45967049288243694, -0.4869875805617452, 0.5024060491352778, -0.09048188933105752, -0.4381424716962926, 0.29363197488683185],
    ]  # fmt: skip
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-14)


def test_spline_gradients_are_finite_and_right_at_the_edge_and_beyond():
    """d/dx = slope, d/dθ finite, at ±B, at a knot, far out, in float32, both ways, for extreme parameters too.

    At and beyond the edge the map is the identity: slope 1, log slope 0, and no parameter moves it.
    """
    scalar_map = flows.rational_quadratic(4, 2.0)
    points = jnp.array(
        [-1e6, -2.0, np.nextafter(np.float32(-2), 0), -1.0, 0.0, 1.0, np.nextafter(np.float32(2), 0), 2.0, 3.0]
    )

    @jax.jit
    def derivatives(parameters):
        found = {}
        for name, method in (("forward", scalar_map.forward), ("inverse", scalar_map.inverse)):
            for i, what in enumerate(("value", "log_slope")):
                by_both = jax.grad(lambda x, p, method=method, i=i: method(x, p)[i], argnums=(0, 1))
                found[f"{name} {what}"] = jax.vmap(by_both, (0, None))(points, parameters)
            found[name] = jax.vmap(method, (0, None))(points, parameters)
        return found

    for size in (0.0, 1.0, 30.0):
        found = derivatives(size * jax.random.normal(jax.random.key(0), (scalar_map.count,)))
        for leaf in jax.tree.leaves(found):
            assert np.all(np.isfinite(leaf))
        for name in ("forward", "inverse"):
            by_x, by_parameters = found[f"{name} value"]
            np.testing.assert_allclose(by_x, np.exp(found[name][1]), rtol=3e-3 if size > 1 else 1e-4)
            outside = np.abs(points) >= 2
            np.testing.assert_array_equal(found[name][0][outside], points[outside])
            np.testing.assert_array_equal(by_x[outside], 1)
            np.testing.assert_array_equal(by_parameters[outside], 0)


# ----------------------------------------------------------------------------------------------------------- couplings

CONSTRUCTORS = {
    "nice": flows.nice,
    "real_nvp": flows.real_nvp,
    "spline_coupling": flows.spline_coupling,
    "maf": flows.maf,
    "iaf": flows.iaf,
}
"""name -> (key, shape, layers=, width=, condition_size=) -> Flow."""


@pytest.mark.parametrize("name", every(CONSTRUCTORS, ["maf"]))
def test_a_flow_starts_as_the_identity_and_conditions_matter_after(name):
    """At first f(z) = z and log p is the base's; a shaken flow's density depends on the condition."""
    model = CONSTRUCTORS[name](jax.random.key(0), (2,), width=8, condition_size=2)
    x, log_prob = jnp.array([0.3, -1.2]), jax.jit(lambda model, c: (model.encode(x, c), model.log_prob(x, c)))
    z, lp = log_prob(model, jnp.ones(2))
    np.testing.assert_allclose(z, x, atol=1e-5)
    assert float(lp) == pytest.approx(float(NORMAL.log_prob(x)), abs=1e-5)
    moved = shaken(model)
    assert abs(float(log_prob(moved, jnp.ones(2))[1] - log_prob(moved, -jnp.ones(2))[1])) > 1e-3


@pytest.mark.parametrize("name", every(CONSTRUCTORS, ["spline_coupling"]))
def test_densities_integrate_to_one(name):
    """∫ p over the plane by the midpoint rule in a flow of random parameters.

    Its map is C¹ at least, so that p has at most kinks and the rule's error falls like h² = 1/100 of the density's own
    curvature; the actnorm scales by ½, which keeps tails inside [−10, 10]².
    """
    model = shaken(CONSTRUCTORS[name](jax.random.key(0), (2,), layers=2, width=8), size=0.2)
    edge = (jnp.arange(300) + 0.5) / 300 * 24 - 12
    grid = jnp.stack(jnp.meshgrid(edge, edge, indexing="ij"), -1).reshape(-1, 2)
    log_p = jax.jit(lambda model: jax.vmap(model.log_prob)(grid))(model)
    assert float(jnp.sum(jnp.exp(log_p))) * (24 / 300) ** 2 == pytest.approx(1, abs=1e-3)


def test_a_deeper_stack_does_not_compile_to_a_longer_program():
    """The compiled program of 16 layers has as many operations as that of 4."""

    def operations(layers):
        model = flows.real_nvp(jax.random.key(0), (2,), layers=layers, width=8)
        return len(jax.jit(jax.grad(lambda model: model.log_prob(jnp.ones(2)))).lower(model).as_text().splitlines())

    assert operations(16) == operations(4)


def test_a_bounded_scale_keeps_any_conditioner_invertible():
    """|log slope| ≤ c even where the network runs away to 1e6, so that the round trip keeps its digits but for e^c."""
    layer = flows.coupling(
        lambda x, c: jnp.array([[1e6, 3.0], [-1e6, 3.0]]), flows.bounded_affine(2.0), flows.half_mask(4)
    )
    x = 5 * jax.random.normal(jax.random.key(0), (4,))
    y, log_det = layer.forward_and_log_det(x)
    np.testing.assert_allclose(jnp.log((y - 3) / x)[2:], [2.0, -2.0], rtol=1e-5)
    assert float(log_det) == 0
    assert np.all(np.abs(layer.inverse(y) - x) < 4 * np.finfo(np.float32).eps * math.exp(2.0) * (np.abs(x) + 3))


# ---------------------------------------------------------------------------------------------------------------- glow


def test_a_convolution_as_a_matrix_product_is_the_convolution():
    """From few channels to many and back it is the 3 × 3 cross-correlation with zeros around the image; a parameter of a
    position depends on what two of them reach.
    """
    for channels, features in ((2, 5), (5, 2)):
        h = jax.random.normal(KEY, (3, 4, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, features))
        numbers = ("NHWC", "HWIO", "NHWC")
        expected = jax.lax.conv_general_dilated(h[None], kernel, (1, 1), "SAME", dimension_numbers=numbers)[0]
        np.testing.assert_allclose(convolution(h, kernel), expected, atol=1e-5)
    network = shaken(flows.convolutional(KEY, (1, 7, 2), (1, 7, 1), width=4))
    reach = jax.jit(jax.jacrev(lambda x: network(x)[0, 3, 0]))(jnp.ones((1, 7, 2)))
    np.testing.assert_array_equal(np.any(reach[0] != 0, -1), [False, True, True, True, True, True, False])


def test_a_glow_starts_as_a_rotation():
    """At first log p is that of N(0, I), and lengths stay."""
    model = flows.glow(KEY, (4, 8, 2), levels=2, steps=2, width=4)
    x = jax.random.normal(jax.random.key(1), (4, 8, 2))
    z, log_p = jax.jit(lambda model: (model.encode(x), model.log_prob(x)))(model)
    assert tuple(part.shape for part in z) == model.base.shape == ((1, 2, 16), (2, 4, 4))
    assert float(sum(jnp.sum(part**2) for part in z)) == pytest.approx(float(jnp.sum(x**2)), rel=1e-4)
    assert float(log_p) == pytest.approx(float(flows.standard_normal((4, 8, 2)).log_prob(x)), rel=1e-4)


def test_initialise_normalises_after_every_actnorm_of_a_glow():
    """Mean 0 and standard deviation σ/(σ + ε) in each channel of what leaves each actnorm towards the base."""
    model = shaken(flows.glow(KEY, (4, 4, 1), levels=2, steps=2, width=4), size=0.1)
    batch = 3 + 2 * jax.random.normal(jax.random.key(1), (200, 4, 4, 1))

    @jax.jit
    def normalised(model):
        ys, found = batch, []
        for level in reversed(flows.initialise(model, batch).bijector.levels):
            prior, layers, unsqueeze = level.bijectors
            ys = jax.vmap(unsqueeze.inverse)(ys)
            for i in (1, 0):
                *others, actnorm = jax.tree.map(lambda leaf, i=i: leaf[i], layers.layers).bijectors
                found.append(jax.vmap(actnorm.inverse)(ys))
                ys = jax.vmap(flows.chain(*others).inverse)(found[-1])
            ys = jax.vmap(prior.inverse)(ys)
            ys = ys[..., ys.shape[-1] // 2 :]
        return found

    for h in normalised(model):
        np.testing.assert_allclose(h.mean((0, 1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(h.std((0, 1, 2)), 1, rtol=5e-3)


def test_lattice_probabilities_of_a_glow_add_up_to_its_mass(x64):
    """Σ_x exp of the mean bound ≤ Σ_x E P̂(x) = the flow's mass on the cells, counted among its samples, for uniform and
    learned noise: 3⁴ lattice points of (2, 2, 1), within 4.5 standard errors. The weight 1/q of a draw has no tail up to
    6.8 standard deviations of the base, where e^{z²/2 − 2·1.702 |z|} is 1 again.
    """
    model = shaken(flows.glow(KEY, (2, 2, 1), levels=1, steps=2, width=4), size=0.2)
    levels = jnp.array([-1.0, 0.0, 1.0])
    points = jnp.stack(jnp.meshgrid(*[levels] * 4, indexing="ij"), -1).reshape(81, 2, 2, 1)
    samples = jax.jit(jax.vmap(model.sample))(jax.random.split(jax.random.key(1), 20000))
    inside = np.all(np.abs(samples) < 1.5, (1, 2, 3))
    error = inside.std() / math.sqrt(len(inside))
    learned = shaken(flows.dequantiser(jax.random.key(2), (2, 2, 1), layers=2, width=4), size=0.1)
    draws = 400
    keys = jax.random.split(jax.random.key(3), (81, draws))

    @jax.jit
    def bounds(model, dequantiser):
        one = lambda key, x: flows.lattice_log_prob(key, model, x, 1.0, dequantiser)  # noqa: E731
        return jax.vmap(lambda keys, x: jax.vmap(lambda key: one(key, x))(keys))(keys, points)

    for dequantiser in (None, learned):
        values = np.asarray(bounds(model, dequantiser))  # (81, draws)
        each = np.exp(values)
        deviation = math.sqrt(np.sum(each.var(1)) / draws)
        assert abs(each.mean(1).sum() - inside.mean()) < 4.5 * math.hypot(error, deviation)
        assert np.exp(values.mean(1)).sum() < 1 + 4.5 * deviation
        assert 4.5 * math.hypot(error, deviation) < 0.1


def test_interpolation_runs_along_great_circles_of_every_latent():
    """Ends are the examples; a latent's length halfway is that of two of one length whose angle is halved."""
    model = shaken(flows.glow(KEY, (4, 4, 1), levels=2, steps=2, width=4), size=0.1)
    start, end = jax.random.normal(KEY, (2, 4, 4, 1))

    @jax.jit
    def everything(model):
        frames = flows.interpolate(model, start, end, jnp.array([0.0, 0.5, 1.0]))
        return frames, model.encode(start), model.encode(end), model.encode(frames[1])

    frames, first, last, middle = everything(model)
    np.testing.assert_allclose(frames[0], start, atol=1e-4)
    np.testing.assert_allclose(frames[2], end, atol=1e-4)
    for a, b, m in zip(first, last, middle, strict=True):
        np.testing.assert_allclose(m, dj.sampling.spherical(a, b, 0.5), atol=1e-4)
    with pytest.raises(ValueError, match="end must have shape"):
        flows.interpolate(model, start, end[0], jnp.array([0.5]))


# ------------------------------------------------------------------------------------------------------ autoregressive


@pytest.mark.parametrize("condition_size", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_masked_and_causal_conditioners_see_only_what_comes_before(condition_size):
    """∂θ_i/∂y_j = 0 for j ≥ i, and not for j < i, nor by the condition: autoregressive, and as wide as it may be."""
    condition = jnp.ones(condition_size) if condition_size else None
    rows = {"masked": (5,), "causal": (5, 2)}
    networks = {
        "masked": flows.masked_perceptron(KEY, 5, 3, width=32, condition_size=condition_size),
        "causal": flows.causal_transformer(KEY, 5, 2, 3, width=16, heads=2, condition_size=condition_size),
    }

    @jax.jit
    def jacobians(networks):
        found = {}
        for name, network in networks.items():
            y = jax.random.normal(jax.random.key(1), rows[name])
            found[name] = jax.jacrev(lambda pair, network=network: network(*pair))((y, condition))
        return found

    for name, (by_y, by_condition) in jacobians(shaken(networks)).items():
        size = np.abs(by_y).reshape(5, -1, *rows[name]).sum(1).reshape(5, 5, -1).sum(-1)  # (i, j)
        assert np.all((size != 0) == np.tri(5, k=-1, dtype=bool)), name
        if condition_size:
            assert np.all(np.abs(by_condition).reshape(5, -1).sum(1) != 0), name


# ------------------------------------------------------------------------------------------------------------- fitting


def test_maximum_likelihood_finds_a_gaussian(x64):
    """The best affine flow has the data's mean and covariance; the loss there is the Gaussian's entropy estimate.

    At the maximum the gradient vanishes exactly: b = mean, A Aᵀ = covariance (over n).
    """
    xs = jax.random.normal(KEY, (200, 2)) @ jnp.array([[1.0, 0.4], [0.0, 0.5]]) + jnp.array([2.0, -1.0])
    mean, covariance = xs.mean(0), jnp.cov(xs.T, bias=True)
    factor = jnp.linalg.cholesky(covariance)
    linear = flows.triangular(2)
    best = type(linear)(factor, jnp.log(jnp.diag(factor) - linear.floor), mean, linear.floor)
    model = flows.flow(NORMAL, best)
    value, gradient = jax.jit(jax.value_and_grad(lambda model: flows.negative_log_likelihood(model, xs)[0]))(model)
    entropy = 0.5 * float(jnp.linalg.slogdet(2 * jnp.pi * jnp.e * covariance)[1])
    assert float(value) == pytest.approx(entropy, abs=1e-10)
    assert all(np.all(np.abs(leaf) < 1e-10) for leaf in jax.tree.leaves(gradient))


def test_reverse_kl_is_exact_on_gaussians_and_its_path_gradient_is_the_gradient(x64):
    """E[log q − log p̃] = KL(q‖p) − log Z in closed form, its gradient too by either estimator; at q = p the path
    gradient of every sample vanishes, the other's does not.
    """
    count, log_z = 4000, 1.7
    target = lambda x: -0.5 * jnp.sum(x**2) - jnp.log(2 * jnp.pi) + log_z  # noqa: E731

    @jax.jit
    def estimates(model, key):
        found = {}
        for path in (False, True):
            value = lambda model, path=path: flows.reverse_kl(key, model, target, count, path)[0]  # noqa: E731
            found[path] = jax.value_and_grad(value)(model)
        return found

    model = flows.flow(NORMAL, flows.affine(jnp.array([0.5, -0.2]), jnp.array([0.7, 1.3])))
    shift, scale = np.array([0.5, -0.2]), np.array([0.7, 1.3])
    kl = 0.5 * np.sum(scale**2 + shift**2 - 1 - 2 * np.log(scale))
    found = estimates(model, KEY)
    for value, gradient in found.values():
        # standard deviations of one sample are below 2 in each number
        assert float(value) == pytest.approx(kl - log_z, abs=4 * 2 / math.sqrt(count))
        np.testing.assert_allclose(gradient.bijector.shift, shift, atol=4 * 2 / math.sqrt(count))
        np.testing.assert_allclose(gradient.bijector.log_scale, scale**2 - 1, atol=4 * 2.5 / math.sqrt(count))
    assert float(found[True][0]) == pytest.approx(float(found[False][0]), abs=1e-12)
    fitted = estimates(flows.flow(NORMAL, flows.affine(jnp.zeros(2), jnp.ones(2))), KEY)
    assert all(np.all(np.abs(leaf) < 1e-12) for leaf in jax.tree.leaves(fitted[True][1]))
    assert any(np.any(np.abs(leaf) > 1e-4) for leaf in jax.tree.leaves(fitted[False][1]))


@dj.types.pytree
class HalfDensity:
    """N(0, I) that says `value` for its log-density where z_1 ≤ 0."""

    value: Any

    def log_prob(self, z):
        return jnp.where(z[0] > 0, -0.5 * jnp.sum(z**2), self.value)

    def sample(self, key):
        return jax.random.normal(key, (2,))


def test_importance_estimates_log_z_with_its_error_and_effective_size(x64):
    """log Ẑ within 4.5 standard errors; for q = N(0, s²I), p = N(0, I) in 2-D, ESS/n → (E w)²/E w² = (2s² − 1)/s⁴."""
    log_z, s, count = -2.3, 1.3, 20000
    target = lambda x: -0.5 * jnp.sum(x**2) - jnp.log(2 * jnp.pi) + log_z  # noqa: E731
    model = flows.flow(NORMAL, flows.affine(jnp.zeros(2), s))
    half = lambda x: jnp.where(x[0] > 0, target(x), -jnp.inf)  # noqa: E731

    @jax.jit
    def estimates(key):
        standard = flows.flow(NORMAL, flows.chain())
        return (
            flows.importance_log_z(key, model, target, count),
            flows.importance_log_z(key, standard, target, 10),
            flows.importance_log_z(key, standard, half, 10000),
        )

    found, exact, halved = estimates(KEY)
    assert abs(float(found.log_z) - log_z) < 4.5 * float(found.standard_error)
    # E w² = ∫ p²/q = Π s²/√(2s² − 1) over two dimensions
    expected = (2 * s**2 - 1) / s**4
    assert float(found.effective_size) / count == pytest.approx(expected, rel=0.05)
    assert float(exact.log_z) == pytest.approx(log_z, abs=1e-12) and float(exact.effective_size) == pytest.approx(10)
    assert abs(float(halved.log_z) - log_z + math.log(2)) < 4.5 * float(halved.standard_error)  # weights 0 count


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_a_flow_without_a_density_at_its_samples_is_named(value):
    """log q that is not finite is refused with its number, and is NaN in the estimate under jit, where e^{−inf} = 0 or
    1/0 would pass for weights; so are weights that are all 0, of which no effective size can be told."""
    model = flows.flow(HalfDensity(jnp.float32(value)), flows.chain())
    target = lambda x: -0.5 * jnp.sum(x**2)  # noqa: E731
    for use in (flows.importance_log_z, flows.reverse_kl):
        assert_refused(
            lambda use=use: use(KEY, model, target, 50),
            ValueError,
            "flow must have a finite density at its own samples, got",
        )
    found = jax.jit(lambda model: flows.importance_log_z(KEY, model, target, 50))(model)
    assert np.all(np.isnan([found.log_z, found.effective_size, found.standard_error]))
    fine, nothing = flows.flow(NORMAL, flows.chain()), lambda x: -jnp.inf
    assert_refused(lambda: flows.importance_log_z(KEY, fine, nothing, 50), ValueError, "50 weights that are all 0")
    found = jax.jit(lambda flow: flows.importance_log_z(KEY, flow, nothing, 50))(fine)
    assert np.all(np.isnan([found.log_z, found.effective_size, found.standard_error]))


# -------------------------------------------------------------------------------------------------------------- errors


REFUSED = {
    "odd squeeze": (lambda: flows.squeeze().forward(jnp.zeros((3, 4, 1))), ValueError, "x must have sides divisible by factor=2"),
    "squeeze axes": (lambda: flows.squeeze().forward(jnp.zeros((4, 4))), ValueError, r"x must have shape \(H, W, C\)"),
    "unsqueeze": (lambda: flows.squeeze().inverse(jnp.zeros((2, 2, 3))), ValueError, "channels divisible by factor²=4"),
    "split of one channel": (lambda: flows.multiscale((2, 2, 1), flows.chain(), flows.chain()), ValueError, "even number of channels"),
    "latents": (lambda: flows.multiscale((2,), flows.chain()).forward((jnp.zeros(3),)), ValueError, "latents must be a tuple"),
    "no permutation": (lambda: flows.permutation([0, 2, 2]), ValueError, "order must be a permutation of 0 … 2"),
    "permuted length": (lambda: flows.reversal(3).forward(jnp.zeros(2)), ValueError, "3 channels on its last axis, got shape"),
    "logit range": (lambda: flows.logit().inverse(jnp.array([0.5, 1.2])), ValueError, r"y must lie in .* got 1.2"),
    "logit NaN": (lambda: flows.logit().inverse(jnp.array([jnp.nan])), ValueError, "y must lie in .* got nan"),
    "logit bounds": (lambda: flows.logit(1.0, 0.0), ValueError, "upper must be greater than lower"),
    "logit margin": (lambda: flows.logit(margin=0.5), ValueError, "margin must be at least 0 and less than 0.5"),
    "scale": (lambda: flows.affine(0.0, -1.0), ValueError, "scale must be positive, got -1"),
    "shift": (lambda: flows.affine(jnp.nan), ValueError, "shift must be finite"),
    "broadcast": (lambda: flows.affine(jnp.zeros(3)).forward(jnp.zeros(2)), ValueError, "shift of shape .* must be broadcastable"),
    "slope": (lambda: flows.leaky_relu(-1.0), ValueError, "slope must be positive"),
    "reshape": (lambda: flows.reshape((4,), (3,)), ValueError, "target must have the 4 entries"),
    "floor": (lambda: flows.lu_linear(2, floor=1.0), ValueError, "floor must be less than 1"),
    "channels": (lambda: flows.lu_linear(2).forward(jnp.zeros(3)), ValueError, "x must have 2 channels"),
    "no bijector": (lambda: flows.chain(jnp.tanh), TypeError, r"bijectors\[0\] must be a bijector"),
    "a class": (lambda: flows.inverse(flows.bijectors.Affine), TypeError, "bijector must be a bijector"),
    "empty stack": (lambda: flows.stack([]), ValueError, "at least one layer"),
    "uneven stack": (lambda: flows.stack([flows.affine(0.0), flows.tanh()]), ValueError, r"bijectors\[1\] must have the structure"),
    "uneven leaves": (lambda: flows.stack([flows.lu_linear(2), flows.lu_linear(3)]), ValueError, r"bijectors\[1\] must have leaves"),
    "batch NaN": (lambda: flows.initialise(flows.actnorm(1), jnp.full((2, 1), jnp.nan)), ValueError, "batch must be finite"),
    "batch of one": (lambda: flows.initialise(flows.actnorm(1), jnp.zeros((1, 1))), ValueError, "N at least 2"),
    "actnorm inside": (lambda: flows.initialise(flows.inverse(flows.actnorm(1)), jnp.zeros((2, 1))), ValueError, "inside inverse"),
    "base": (lambda: flows.flow(None, flows.chain()), TypeError, "base must have log_prob"),
    "data NaN": (lambda: flows.flow(NORMAL, flows.chain()).log_prob([0.0, jnp.nan]), ValueError, "x must be finite, got 1 NaN"),
    "data batch": (lambda: flows.flow(NORMAL, flows.affine(0.0)).log_prob(jnp.zeros((5, 2))), ValueError, r"z must have shape \(2,\), got \(5, 2\)"),
    "temperature": (lambda: flows.flow(NORMAL, flows.chain()).sample(jax.random.key(0), -1.0), ValueError, "temperature must be 0 or more"),
    "no mean": (lambda: flows.flow(flows.flow(NORMAL, flows.chain()), flows.chain()).sample(jax.random.key(0), 0.5), TypeError, r"base must have mean\(\)"),
    "knots": (lambda: flows.rational_quadratic_spline(0.0, [0.0, 2.0, 1.0], [0.0, 1.0, 2.0], [1.0, 1.0, 1.0]), ValueError, "x_knots must increase, got"),
    "slopes": (lambda: flows.rational_quadratic_spline(0.0, [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]), ValueError, "slopes must be positive"),
    "knots apart": (lambda: flows.rational_quadratic_spline(0.0, [0.0, 1.0], [0.0, 1.0], [1.0]), ValueError, "slopes must have shape"),
    "bins": (lambda: flows.rational_quadratic(1), ValueError, "bins must be at least 2"),
    "spline floor": (lambda: flows.rational_quadratic(8, floor=0.2), ValueError, "floor must be less than 1/bins"),
    "mask of one": (lambda: flows.half_mask(1), ValueError, "size must be at least 2"),
    "mask size": (lambda: coupled(flows.additive(), flows.half_mask(2), (2,))(KEY).forward(jnp.zeros(3)), ValueError, "x must have 2 entries"),
    "no mask": (lambda: flows.coupling(jnp.tanh, flows.additive(), None), TypeError, "mask must be a half_mask"),
    "no scalar map": (lambda: flows.coupling(jnp.tanh, jnp.exp, flows.half_mask(2)), TypeError, "scalar_map must be a scalar map"),
    "conditioner shape": (lambda: flows.coupling(lambda x, c: x, flows.additive(), flows.half_mask(2)).forward(jnp.zeros(2)), ValueError, r"conditioner must return shape \(1, 1\)"),
    "condition missing": (lambda: flows.real_nvp(KEY, (2,), condition_size=3).log_prob(jnp.zeros(2)), ValueError, "condition must have condition_size=3 entries, got 0"),
    "conditional": (lambda: conditioned(KEY).forward(jnp.zeros(3)), ValueError, "condition must be given"),
    "odd layers": (lambda: flows.real_nvp(KEY, (2,), layers=3), ValueError, "layers must be even"),
    "one entry": (lambda: flows.real_nvp(KEY, (1,)), ValueError, "shape must have at least 2 entries"),
    "affine bound": (lambda: flows.bounded_affine(0.0), ValueError, "bound must be positive"),
    "odd masked layers": (lambda: flows.maf(KEY, (2,), layers=3), ValueError, "layers must be even"),
    "heads": (lambda: flows.causal_transformer(KEY, 2, 2, 2, width=6, heads=4), ValueError, "heads must divide width=6"),
    "patch": (lambda: flows.tarflow(KEY, (3, 4, 1)), ValueError, "sides divisible by patch=2"),
    "masked condition": (lambda: flows.maf(KEY, (2,)).log_prob(jnp.zeros(2), jnp.ones(1)), ValueError, "condition must have condition_size=0 entries, got 1"),
    "glow sides": (lambda: flows.glow(KEY, (4, 6, 1)), ValueError, r"shape must have sides divisible by 2\^levels=4, got \(4, 6, 1\)"),
    "glow shape": (lambda: flows.glow(KEY, (4, 4)), ValueError, r"shape must be \(H, W, C\), got \(4, 4\)"),
    "glow condition": (lambda: flows.glow(KEY, (2, 2, 1), 1, 1).log_prob(jnp.zeros((2, 2, 1)), jnp.ones(3)), ValueError, "condition must have condition_size=0 entries, got 3"),
    "convolution of a vector": (lambda: flows.convolutional(KEY, (4,), (4, 2)), ValueError, r"kept must be the shape \(H, W, C\)"),
    "convolution sides": (lambda: flows.convolutional(KEY, (4, 4, 1), (2, 2, 2)), ValueError, r"outputs must begin with the sides \(4, 4\)"),
    "interpolated weights": (lambda: flows.interpolate(flows.maf(KEY, (2,)), jnp.zeros(2), jnp.ones(2), 0.5), ValueError, r"weights must have shape \(K,\)"),
    "loss NaN": (lambda: flows.negative_log_likelihood(flows.maf(KEY, (2,)), [[0.0, jnp.nan]]), ValueError, "xs must be finite"),
    "loss conditions": (lambda: flows.negative_log_likelihood(flows.maf(KEY, (2,)), jnp.zeros((3, 2)), jnp.zeros(2)), ValueError, "conditions must have leading axis 3"),
    "density NaN": (lambda: flows.reverse_kl(KEY, flows.flow(NORMAL, flows.chain()), lambda x: jnp.log(x[0]), 50), ValueError, "log_density must be below infinity, got .* NaN"),
    "density shape": (lambda: flows.importance_log_z(KEY, flows.flow(NORMAL, flows.chain()), jnp.exp, 5), ValueError, r"log_density must return shape \(\)"),
    "no flow": (lambda: flows.reverse_kl(KEY, flows.chain(), jnp.sum), TypeError, "flow must be made by flows.flow"),
    "seed for a key": (lambda: flows.flow(NORMAL, flows.chain()).sample(0), TypeError, "key must be a typed key"),
    "shape": (lambda: flows.standard_normal((0,)), TypeError, "shape must be a tuple of positive integers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    assert_refused(*REFUSED[name])


def test_nan_under_jit_is_reported_not_hidden():
    """Where a value cannot be inspected, NaN data have NaN density."""
    model = flows.flow(NORMAL, flows.chain(flows.leaky_relu(), flows.lu_linear(2)))
    assert np.isnan(jax.jit(model.log_prob)(jnp.array([0.0, jnp.nan])))
