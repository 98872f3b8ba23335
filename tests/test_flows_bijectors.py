"""Single layers: precision, actnorms, bounded scales, masked conditioners."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import distributions, flows
from diffjax.flows.conditioners.masked import autoregressive_masks
from tests.flow_members import KEY, MEMBERS, coupled, glow_like, shaken

ENTRYWISE = {
    "exponential": flows.exponential(),
    "positive": flows.positive(),
    "tanh": flows.tanh(),
    "sigmoid": flows.sigmoid(),
    "leaky_relu": flows.leaky_relu(),
    "sinh_arcsinh": flows.sinh_arcsinh(0.3, 1.2),
}


@functools.cache
def entrywise(dtype):
    """f and log|det| by name, at numbers in dtype and at the same ones in float32."""
    x = np.array([1, -2] if dtype == "int32" else np.full(2000, -3.0))
    run = jax.jit(
        lambda x: {
            name: bijector.forward_and_log_det(x)
            for name, bijector in ENTRYWISE.items()
        }
    )
    return run(x.astype(dtype)), run(x.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "int32"])
@pytest.mark.parametrize("name", ENTRYWISE)
def test_low_precision_and_integers_are_computed_in_float32(name, dtype):
    """f and log|det| at half-precision and integer examples are those in float32."""
    (y, log_det), (expected_y, expected) = (
        outputs[name] for outputs in entrywise(dtype)
    )
    assert y.dtype == log_det.dtype == jnp.float32
    np.testing.assert_array_equal(y, expected_y)
    assert float(log_det) == float(expected)
    low = jax.eval_shape(
        ENTRYWISE[name].inverse_and_log_det, jax.ShapeDtypeStruct((3,), jnp.float16)
    )
    assert low[1].dtype == jnp.float32


def test_sinh_arcsinh_without_skew_or_tail_is_the_identity_however_far_out():
    """log slope 0 where x² is beyond float32, not −infinity."""
    y, log_det = flows.sinh_arcsinh().forward_and_log_det(jnp.array([1e25, -1e25, 0.3]))
    np.testing.assert_allclose(
        y, [1e25, -1e25, 0.3], rtol=60 * np.finfo(np.float32).eps
    )  # e^58 of a rounded 58
    assert float(log_det) == 0


def test_a_condition_keeps_its_fractions_beside_an_integer_example():
    layer = shaken(MEMBERS["affine, conditional"].make(KEY))
    x, condition = np.array([1, -2, 3]), np.float32([0.7, -0.4])
    forward = jax.jit(
        lambda layer, x, real: (
            layer.forward(x, condition),
            layer.forward(real, condition),
        )
    )
    np.testing.assert_array_equal(*forward(layer, x, np.float32(x)))


def actnorms_in_a_flow(size):
    scan = flows.stack(
        [flows.chain(flows.leaky_relu(0.5), flows.actnorm(size)) for _ in range(2)]
    )
    bijector = flows.chain(flows.actnorm(size), flows.leaky_relu(0.2), scan)
    return flows.flow(distributions.standard_normal((size,)), bijector)


UNITS = [1.0, 1e-5, 1e-12, 1e12, 1e-25, 1e25]


@pytest.mark.parametrize("unit", UNITS)
def test_actnorm_normalises_the_batch_through_a_flow_in_any_unit(unit):
    """After `initialise`, what leaves an actnorm has mean 0 and variance 1.

    In each channel, whatever the unit of the data. A constant channel is
    exactly 0 after every layer, and none scales it.

    Means of 500 numbers of size 50 σ, less as much, leave some 50 roundings
    times √3 layers. e^{log s} of |log s| < 60 is off by 60 roundings.
    """
    model = actnorms_in_a_flow(3)
    draws = np.random.default_rng(0).standard_normal((500, 3))
    batch = np.float32(
        unit * (np.array([5.0, -3.0, 2.1]) + np.array([4.0, 0.1, 0.0]) * draws)
    )
    fitted = flows.initialise(model, batch)
    z = np.asarray(jax.vmap(fitted.encode)(batch))
    np.testing.assert_allclose(z.mean(0), 0, atol=300 * np.finfo(np.float32).eps)
    np.testing.assert_allclose(z.std(0)[:2], 1, rtol=200 * np.finfo(np.float32).eps)
    assert np.all(z[:, 2] == 0)
    first, _, scan = fitted.bijector.bijectors
    inner, outer = (
        jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], scan.layers).bijectors[-1]
        for i in (0, 1)
    )
    batch = batch.astype(np.float64)
    np.testing.assert_allclose(outer.shift, batch.mean(0), rtol=1e-5)
    assert outer.shift[2] == batch[0, 2] and inner.shift[2] == first.shift[2] == 0
    np.testing.assert_allclose(
        outer.log_scale[:2], np.log(batch.std(0)[:2]), rtol=1e-5, atol=1e-5
    )
    assert outer.log_scale[2] == inner.log_scale[2] == first.log_scale[2] == 0
    assert jax.tree.structure(fitted) == jax.tree.structure(model)


@pytest.mark.parametrize("unit", UNITS)
def test_actnorm_does_not_amplify_the_rounding_of_a_constant_channel(unit):
    """A channel of two neighbouring floats is centred.

    Its rounding r leaves the actnorms as r, or as 1 where r is more: none
    learns from it. The leaky maps between them stretch by 5 and 2 and 2. All
    channels may be constant.
    """
    two = np.float32(
        [2.1 * unit, np.nextafter(np.float32(2.1 * unit), np.float32(np.inf))]
    )
    batch = np.stack(
        [
            np.resize(two, 40),
            np.full(40, -3 * unit, np.float32),
            np.zeros(40, np.float32),
        ],
        -1,
    )
    fitted = flows.initialise(actnorms_in_a_flow(3), batch)
    z = np.asarray(jax.vmap(fitted.encode)(batch))
    assert np.all(np.abs(z[:, 0]) <= 20 * min(np.ptp(two), 1) * (1 + 1e-5)) and np.all(
        z[:, 1:] == 0
    )
    for leaf in (
        fitted.bijector.bijectors[0].log_scale,
        fitted.bijector.bijectors[-1].layers.bijectors[-1].log_scale,
    ):
        assert np.all(np.asarray(leaf)[..., 1:] == 0) and np.all(
            np.asarray(leaf)[..., 0] >= 0
        )


def test_actnorm_normalises_every_scale_of_a_multiscale_flow():
    """Each latent channel has mean 0, and the mean square over a scale's
    channels is 1.

    Towards the base, actnorms come before the convolutions, which rotate.
    """
    scales = glow_like(KEY).bijectors[1]
    batch = np.float32(3 + 2 * np.random.default_rng(1).standard_normal((400, 4, 4, 2)))
    deep, shallow = jax.jit(
        lambda scales, batch: jax.vmap(flows.initialise(scales, batch).inverse)(batch)
    )(scales, batch)
    for z in (deep, shallow):
        np.testing.assert_allclose(np.mean(z, (0, 1, 2)), 0, atol=1e-4)
    assert float(np.mean(np.square(deep))) == pytest.approx(1, rel=1e-4)


def test_the_jacobian_of_a_coupling_is_triangular_and_a_shuffle_moves_all(x64):
    """∂y/∂x = [[1, 0], [?, diag e^a]], so that log|det| = Σ a, with a ≠ 0.

    Two of one mask leave the first half as it came. With a reversal between them
    every entry of y depends on its own and on the others, and none is copied.
    """
    kept = 2  # of four entries
    make = coupled(flows.bounded_affine(), flows.half_mask(4), (4,))
    layer = shaken(make(KEY), size=0.5)

    @jax.jit
    def everything(layer, x):
        twice = flows.chain(layer, layer)
        mixed = flows.chain(layer, flows.reversal(4), layer)
        jacobians = [jax.jacfwd(b.forward)(x) for b in (layer, twice, mixed)]
        return layer.forward_and_log_det(x)[1], jacobians, twice.forward(x)

    x = np.array([0.4, -1.0, 0.3, 0.8])
    log_det, (one, two, mixed), after = everything(layer, x)
    np.testing.assert_array_equal(one[:kept], np.eye(4)[:kept])
    block = np.asarray(one)[kept:, kept:]
    np.testing.assert_array_equal(block, np.diag(np.diag(block)))
    assert float(log_det) == pytest.approx(np.log(np.diag(block)).sum(), rel=1e-12)
    assert np.abs(np.log(np.diag(block))).min() > 0.01
    np.testing.assert_array_equal(two[:kept], np.eye(4)[:kept])
    np.testing.assert_array_equal(after[:kept], x[:kept])
    unit = np.eye(4)
    rows = [np.asarray(row) for row in mixed]
    assert not any(np.array_equal(row, column) for row in rows for column in unit)


def test_a_bounded_scale_keeps_any_conditioner_invertible():
    """|log slope| ≤ c even where the network runs away to 1e6.

    So the round trip keeps its digits but for e^c.
    """
    layer = flows.coupling(
        lambda x, c: np.float32([[1e6, 3.0], [-1e6, 3.0]]),
        flows.bounded_affine(2.0),
        flows.half_mask(4),
    )
    x = 5 * np.random.default_rng(0).standard_normal(4).astype(np.float32)
    y, log_det, back = jax.jit(
        lambda x: (*(pair := layer.forward_and_log_det(x)), layer.inverse(pair[0]))
    )(x)
    np.testing.assert_allclose(
        np.log(((np.asarray(y) - 3) / x)[2:]), [2.0, -2.0], rtol=1e-5
    )
    assert float(log_det) == 0
    assert np.all(
        np.abs(back - x)
        < 4 * np.finfo(np.float32).eps * math.exp(2.0) * (np.abs(x) + 3)
    )


@pytest.mark.parametrize("size", [2, 65, 66, 100, 300])
@pytest.mark.parametrize("condition_size", [0, 3])
def test_every_entry_of_a_masked_network_sees_all_before_it(size, condition_size):
    """At the default width weights connect y_j with θ_i for every j < i, and
    no other.

    They connect the condition with every θ_i. At one unit less than the least
    width they do not, and the network says so.
    """
    make = lambda width: jax.eval_shape(
        lambda key: flows.masked_perceptron(
            key, size, 2, width=width, condition_size=condition_size
        ),
        KEY,
    )
    network = make(None)
    widths = tuple(weight.shape[1] for weight in network.weights[:-1])
    masks = [
        mask.astype(np.float32)
        for mask in autoregressive_masks(size, widths, 2, condition_size > 0)
    ]
    paths = (
        functools.reduce(np.matmul, masks) > 0
    )  # (D, 2 D), paths from each input to each output
    np.testing.assert_array_equal(
        paths, np.repeat(np.tri(size, k=-1, dtype=bool).T, 2, axis=1)
    )
    if condition_size:
        assert np.all(functools.reduce(np.matmul, masks[1:]).sum(0) > 0)
    least = size - 1 + (condition_size > 0)
    assert make(least).weights[0].shape == (size, least)
    if least > 1:
        with pytest.raises(
            ValueError, match=f"width must be at least {least} for {size} entries"
        ):
            make(least - 1)


@pytest.mark.parametrize(
    "make", [flows.maf, pytest.param(flows.iaf, marks=pytest.mark.slow)]
)
def test_neighbours_in_the_middle_of_a_wide_flow_depend_on_each_other(make):
    """∂z_i/∂x_j is non-zero for all i, j.

    A flow of 66 entries with two masked layers, the second of which is
    reversed.

    The first layer alone makes the half with j ≤ i, the second the rest.
    """
    model = shaken(jax.jit(lambda key: make(key, (66,), layers=2))(KEY), size=0.05)
    method = "inverse" if make is flows.maf else "forward"  # the direction of one pass
    jacobian = jax.jit(lambda model, x: jax.jacfwd(getattr(model.bijector, method))(x))
    assert np.all(
        np.asarray(jacobian(model, np.linspace(-1, 1, 66, dtype=np.float32))) != 0
    )


@pytest.mark.parametrize("condition_size", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_masked_and_causal_conditioners_see_only_what_comes_before(condition_size):
    """∂θ_i/∂y_j is 0 for j ≥ i, and not for j < i, nor by the condition."""
    condition = np.ones(condition_size, np.float32) if condition_size else None
    rows = {"masked": (5,), "causal": (5, 2)}
    networks = {
        "masked": flows.masked_perceptron(
            KEY, 5, 3, width=32, condition_size=condition_size
        ),
        "causal": flows.causal_transformer(
            KEY, 5, 2, 3, width=16, heads=2, condition_size=condition_size
        ),
    }

    @jax.jit
    def jacobians(networks):
        outputs = {}
        for name, network in networks.items():
            y = np.random.default_rng(1).standard_normal(rows[name]).astype(np.float32)
            outputs[name] = jax.jacfwd(lambda pair, network=network: network(*pair))(
                (y, condition)
            )
        return outputs

    for name, (by_y, by_condition) in jacobians(shaken(networks)).items():
        size = (
            np.abs(by_y).reshape(5, -1, *rows[name]).sum(1).reshape(5, 5, -1).sum(-1)
        )  # (i, j)
        assert np.all((size != 0) == np.tri(5, k=-1, dtype=bool)), name
        if condition_size:
            assert np.all(np.abs(by_condition).reshape(5, -1).sum(1) != 0), name


@pytest.mark.parametrize("condition_size", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_a_sample_by_remembered_keys_and_values_is_that_by_whole_passes(
    condition_size, x64
):
    """The same y and log|det| to rounding, at less than half the arithmetic per row.

    A row's parameters are sums of some tens of terms, and the seven rows
    amplify each other's rounding by gains below 10.
    """
    condition = np.ones(condition_size) if condition_size else None
    network = shaken(
        flows.causal_transformer(
            KEY, 7, 2, 2, width=16, heads=2, condition_size=condition_size
        )
    )
    remembering = flows.autoregressive(network, flows.bounded_affine())
    forgetful = flows.autoregressive(lambda y, c: network(y, c), flows.bounded_affine())
    x = np.random.default_rng(1).standard_normal((3, 7, 2))
    programs = [
        jax.jit(
            jax.vmap(
                lambda x, bijector=bijector: bijector.forward_and_log_det(x, condition)
            )
        ).lower(x)
        for bijector in (remembering, forgetful)
    ]
    (y, log_det), (expected, expected_log_det) = (
        program.compile()(x) for program in programs
    )
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(log_det, expected_log_det, rtol=1e-12, atol=1e-12)
    assert np.abs(expected - x).max() > 0.1  # not the identity
    operations = [
        program.cost_analysis()["flops"] for program in programs
    ]  # a loop's body counted once
    assert operations[0] < 0.5 * operations[1]
