"""Bijectors and flows as one family: log-determinants, round trips, densities."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import flows
from tests.families import every
from tests.flow_members import CONSTRUCTORS, KEY, MEMBERS, NORMAL, shaken

FAST = [
    "stack-float32",
    "spline, half-float64",
    "maf, conditional-float32",
    "real_nvp, three layers-float32",
]  # a stack of lu_linear and others


@jax.jit
def examine(bijector, xs, conditions):
    """f, log|det|, Jacobians by autodiff and the round trip at each x, by scan too."""

    def jacobian(method, x, c):
        """∂ method(x)/∂x (D, D), flat, and the method's results."""

        def flat(v):
            y, log_det = method(v.reshape(x.shape), c)
            return jnp.ravel(y), (y, log_det)

        return jax.jacfwd(flat, has_aux=True)(jnp.ravel(x))

    def one(x, c):
        forward, (y, log_det) = jacobian(bijector.forward_and_log_det, x, c)
        backward, (back, inverse_log_det) = jacobian(bijector.inverse_and_log_det, y, c)
        return dict(
            y=y.ravel(),
            log_det=log_det,
            back=back.ravel(),
            inverse_log_det=inverse_log_det,
            forward=forward,
            backward=backward,
            x=x.ravel(),
        )

    def both(x, c):
        y, log_det = bijector.forward_and_log_det(x, c)
        return log_det, bijector.inverse_and_log_det(y, c)[1]

    def total(bijector):
        log_dets = jax.vmap(
            lambda x, c: bijector.inverse_and_log_det(bijector.forward(x, c), c)[1]
        )(xs, conditions)
        return jnp.sum(log_dets)

    scanned = jax.lax.scan(lambda carry, xc: (carry, both(*xc)), 0, (xs, conditions))[1]
    return jax.vmap(one)(xs, conditions), scanned, jax.grad(total)(bijector)


@pytest.mark.parametrize(
    "case",
    every([f"{name}-float{bits}" for name in MEMBERS for bits in (32, 64)], FAST),
)
def test_log_det_is_that_of_autodiff_and_the_map_inverts(case):
    """log|det| is that of autodiff's Jacobian of f and of f⁻¹, and f⁻¹(f(x)) = x.

    All under jit and vmap, and a scan gives the same. In and out of
    distribution. y is off by rounding · (‖y‖ + ‖J‖‖x‖), which f⁻¹ amplifies by
    ‖J⁻¹‖. A determinant is off by rounding · condition number, and a
    log-determinant also by its own sensitivity to x.
    """
    name, dtype = case.rsplit("-", 1)
    member = MEMBERS[name]
    with jax.enable_x64(dtype == "float64"):
        eps = float(jnp.finfo(jnp.zeros(()).dtype).eps)
        bijector = shaken(member.make(jax.random.key(0)))
        spread = np.array([1.0, 1.0, member.far, member.far]).reshape(
            -1, *[1] * len(member.shape)
        )
        draws = np.random.default_rng(2)
        xs = (spread * draws.standard_normal((4, *member.shape))).astype(dtype)
        conditions = (
            draws.standard_normal((4, 2)).astype(dtype) if member.conditional else None
        )
        results, scanned, gradient = examine(bijector, xs, conditions)
    results = {key: np.asarray(value, np.float64) for key, value in results.items()}
    size = lambda v: np.linalg.norm(v.reshape(len(v), -1), axis=1)
    norm = lambda m: np.linalg.norm(m, 2, axis=(1, 2))
    assert jnp.shape(scanned[0]) == (4,) and results["log_det"].shape == (4,)
    condition = norm(results["forward"]) * norm(results["backward"])
    drift = norm(results["backward"]) * (
        size(results["y"]) + norm(results["forward"]) * size(results["x"])
    ) + size(results["x"])
    assert np.all(size(results["back"] - results["x"]) <= 50 * eps * drift)
    tolerance = (
        100
        * eps
        * (condition + drift + np.abs(results["log_det"]) + math.prod(member.shape))
    )
    for matrix, value in (("forward", "log_det"), ("backward", "inverse_log_det")):
        assert np.all(
            np.abs(np.linalg.slogdet(results[matrix])[1] - results[value]) <= tolerance
        ), matrix
    assert np.all(np.abs(results["log_det"] + results["inverse_log_det"]) <= tolerance)
    for value, key in zip(scanned, ("log_det", "inverse_log_det"), strict=True):
        assert np.all(np.abs(np.asarray(value, np.float64) - results[key]) <= tolerance)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", MEMBERS)
def test_parameters_are_floating_point_leaves_and_treedefs_are_stable(name):
    """A bijector made twice has one treedef, hence one compiled program.

    All of its leaves may be trained.
    """
    make = (
        MEMBERS[name].make
        if name == "shuffle"
        else lambda key: jax.eval_shape(MEMBERS[name].make, key)
    )
    one, two = (make(jax.random.key(seed)) for seed in (0, 0))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert all(
        jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(one)
    )


@pytest.mark.parametrize("layers", every([2, 3], [3]))
@pytest.mark.parametrize("name", every(CONSTRUCTORS, ["maf"]))
def test_a_flow_starts_as_the_identity_and_conditions_matter_after(name, layers):
    """At first f(z) = z and log p is that of the base.

    The density of a shaken flow depends on the condition.
    """
    model = CONSTRUCTORS[name](KEY, (2,), layers=layers, width=8, condition_size=2)
    x, ones = np.float32([0.3, -1.2]), np.ones(2, np.float32)
    log_prob = jax.jit(lambda model, c: (model.encode(x, c), model.log_prob(x, c)))
    z, lp = log_prob(model, ones)
    np.testing.assert_allclose(z, x, atol=1e-5)
    assert float(lp) == pytest.approx(-0.5 * np.sum(x**2) - np.log(2 * np.pi), abs=1e-5)
    moved = shaken(model)
    assert (
        abs(float(log_prob(moved, ones)[1]) - float(log_prob(moved, -ones)[1])) > 1e-3
    )


@pytest.mark.parametrize("name", every(CONSTRUCTORS, ["maf"]))
def test_an_odd_number_of_layers_is_one_layer_more(name):
    """The pairs of three layers are those of two. The third has weights of its own."""
    make = lambda layers: CONSTRUCTORS[name](KEY, (3,), layers=layers, width=8)
    two, three = make(2).bijector.bijectors, make(3).bijector.bijectors
    jax.tree.map(np.testing.assert_array_equal, two[0], three[0])
    weights = [leaf for leaf in jax.tree.leaves(three[1]) if leaf.ndim == 2]
    assert any(np.any(weight) for weight in weights)
    pairs = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(two[0])])
    for weight in weights:
        drawn = weight[weight != 0]
        assert not np.any(np.isin(drawn, pairs))


@pytest.mark.parametrize("name", every(CONSTRUCTORS, ["spline_coupling"]))
def test_densities_integrate_to_one(name):
    """∫ p over the plane by the midpoint rule, in a flow of random parameters.

    Its map is C¹ at least, so that p has at most kinks and the rule's error
    falls like h² = 0.0064 of the density's curvature. Mass beyond [−12, 12]²
    would be missing from the sum.
    """
    size = (
        0.1 if name == "spline_coupling" else 0.2
    )  # larger parameters make bins narrower than the rule's step
    model = shaken(
        CONSTRUCTORS[name](jax.random.key(0), (2,), layers=2, width=8), size=size
    )
    edge = np.float32((np.arange(300) + 0.5) / 300 * 24 - 12)
    grid = np.stack(np.meshgrid(edge, edge, indexing="ij"), -1).reshape(-1, 2)
    log_p = jax.jit(lambda model, grid: jax.vmap(model.log_prob)(grid))(model, grid)
    assert float(np.sum(np.exp(log_p))) * (24 / 300) ** 2 == pytest.approx(1, abs=1e-3)


def test_a_deeper_stack_does_not_compile_to_a_longer_program():
    """The uncompiled program of 16 layers has as many operations as that of 4."""

    def operations(layers):
        model = jax.eval_shape(
            lambda key: flows.real_nvp(key, (2,), layers=layers, width=8), KEY
        )
        return len(
            jax.jit(jax.grad(lambda model: model.log_prob(jnp.ones(2))))
            .lower(model)
            .as_text()
            .splitlines()
        )

    assert operations(16) == operations(4)


def test_a_flow_of_float32_parameters_runs_where_float64_is_enabled():
    """log p of a float32 flow is that without x64, to the rounding of float32."""
    model = flows.glow(KEY, (4, 4, 1), scales=1, steps=2, width=4, network=flows.dense)
    x = np.random.default_rng(0).standard_normal((4, 4, 1)).astype(np.float32)
    log_prob = jax.jit(lambda model, x: model.log_prob(x))
    expected = float(log_prob(model, x))
    with jax.enable_x64(True):
        results = float(log_prob(model, x))
    assert results == pytest.approx(expected, rel=1e-5)


def test_nan_under_jit_is_reported_not_hidden():
    """Where a value cannot be inspected, NaN data have NaN density."""
    model = flows.flow(NORMAL, flows.chain(flows.leaky_relu(), flows.lu_linear(2)))
    assert np.isnan(jax.jit(model.log_prob)(jnp.array([0.0, jnp.nan])))
