"""Magnitude-preserving layers keep a mean square of 1, whatever their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.networks import EDM2, MLP, magnitude, normalise_weights
from diffjax.networks.edm2 import EDM2Block
from diffjax.networks.magnitude import MPConv, MPDense, MPFourier
from tests.families import normal32, quick

EPS = float(np.finfo(np.float32).eps)


def mean_square(x):
    return float(np.mean(np.square(np.asarray(x, np.float64))))


def test_outputs_of_a_layer_have_variance_one_for_white_inputs():
    dense, conv = MPDense(5), MPConv(5)

    @quick
    def jacobians(scale):
        weights = {"params": {"weight": scale * normal32(0, 7, 5)}}
        kernel = {"params": {"weight": scale * normal32(1, 3, 3, 7, 5)}}
        # the pixel in the middle, which no border touches
        middle = lambda h: conv.apply(kernel, h)[1, 1]
        linear = lambda h: dense.apply(weights, h)
        return (
            jax.jacrev(linear)(np.zeros(7, np.float32)),
            jax.jacrev(middle)(np.zeros((3, 3, 7), np.float32)),
        )

    # The variance of a linear map of white inputs is the square of its rows.
    for scale in (1e-3, 1.0, 50.0):
        for rows in jacobians(scale):
            squares = np.sum(np.square(rows).reshape(5, -1), -1)
            np.testing.assert_allclose(squares, 1, rtol=70 * EPS)


def test_activation_sum_and_concatenation_keep_the_mean_square():
    # Gauss–Hermite of 64 nodes: SiLU is smooth, and 0.596 has three digits
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    squares = np.asarray(magnitude.mp_silu(jnp.asarray(nodes, jnp.float32))) ** 2
    mean = np.sum(weights * squares) / np.sqrt(2 * np.pi)
    assert abs(mean - 1) < 2 * 0.0005 / 0.596
    a, b = np.float32([1.0, 0.0]), np.float32([0.0, 1.0])  # as if independent
    for t in (0.0, 0.3, 0.5):
        total = magnitude.mp_sum(a, b, t)
        np.testing.assert_allclose(np.sum(total**2), 1, rtol=4 * EPS)
        joined = magnitude.mp_concatenate(np.ones(3), np.ones(9), t)
        assert abs(mean_square(joined) - 1) < 4 * EPS
        # contributions in the ratio 1 − t to t
        share = np.sum(joined[3:] ** 2) / np.sum(joined**2)
        np.testing.assert_allclose(share, t**2 / ((1 - t) ** 2 + t**2), rtol=9 * EPS)


def test_fourier_features_have_mean_square_one_at_every_time():
    features, n = MPFourier(4096), 4096
    for t in (0.0, 0.3, -1.0):
        out = features.apply({}, jnp.float32(t))
        # 2 cos² has variance 1/2
        assert abs(mean_square(out) - 1) < 5 * (0.5 / n) ** 0.5


def test_normalised_weights_are_the_same_network_and_a_fixed_point():
    model = EDM2(
        width=4, multipliers=(1,), blocks=1, attention_resolutions=(), head_channels=4
    )
    x = normal32(0, 2, 2, 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, 0.5)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda s: np.float32(1 + rng.standard_normal(s.shape)), shapes
    )
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 4 * leaf if path[-1].key == "weight" else leaf, params
    )
    normalised = normalise_weights(params)

    @quick
    def run(variables):
        return jax.vmap(lambda v: model.apply(v, x, 0.5))(variables)

    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), params, scaled, normalised)
    plain, other, same = np.asarray(run(stacked))
    assert np.any(plain)
    np.testing.assert_array_equal(other, plain)  # a power of two has no rounding
    # some 15 layers, each rounded once more
    np.testing.assert_allclose(same, plain, atol=100 * EPS * np.abs(plain).max())
    for path, leaf in jax.tree_util.tree_leaves_with_path(normalised):
        if path[-1].key == "weight":
            squares = np.mean(np.square(leaf), axis=tuple(range(leaf.ndim - 1)))
            np.testing.assert_allclose(squares, 1, rtol=50 * EPS)
    again = normalise_weights(normalised)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=10 * EPS)
    jax.tree.map(close, again, normalised)


def test_other_networks_have_no_weights_to_normalise():
    params = MLP(width=4, depth=1).init(jax.random.key(0), jnp.zeros(2), 0.5)
    unchanged = jax.tree.map(lambda a, b: a is b, params, normalise_weights(params))
    assert all(jax.tree.leaves(unchanged))


def test_a_weight_of_zero_stays_zero():
    zero = {"weight": np.zeros((3, 2), np.float32)}
    assert not np.any(normalise_weights(zero)["weight"])


@pytest.mark.parametrize("encoder", [True, False])
def test_a_block_keeps_the_mean_square_at_initialisation(encoder):
    n, channels = 8, 64
    block = EDM2Block(channels, encoder, heads=1)
    h, c = normal32(2, n, n, 32), normal32(3, 16)
    out, _ = quick(block.init_with_output)(jax.random.key(0), h, c)
    # Each sum of two branches is 1 up to their random correlation, of order
    # 1/√(n² C). The branch loses a share of 1/n of each side to the border of
    # each convolution, at its weight of 0.3²/(0.7² + 0.3²). Attention averages
    # over pixels, so that its branch is smaller than 1.
    share = 0.3**2 / (0.7**2 + 0.3**2)
    least = (1 - share) * (1 - share * 4 / n) - 5 * (2 / (n * n * channels)) ** 0.5
    assert least < mean_square(out) < 1 + 0.05


@pytest.mark.slow
def test_activations_of_a_network_have_unit_magnitude_at_initialisation():
    model = EDM2(
        width=32,
        multipliers=(1, 2),
        blocks=1,
        attention_resolutions=(1,),
        head_channels=32,
    )
    x = normal32(4, 8, 8, 3)

    @quick
    def run(key):
        return model.init_with_output(key, x, 0.5, capture_intermediates=True)

    _, state = run(jax.random.key(0))
    blocks = [
        leaf["__call__"][0]
        for name, leaf in state["intermediates"].items()
        if name.startswith("EDM2Block")
    ]
    assert len(blocks) == 1 + 2 + 2 + 2 + 1 + 2
    # A sum of correlated branches exceeds 1, one of smaller ones stays below.
    for out in blocks:
        assert 0.8 < mean_square(out) ** 0.5 < 1.1


def test_blocks_of_the_decoder_have_no_pixel_norm():
    h, c = normal32(5, 2, 2, 4), normal32(6, 4)
    for encoder, invariant in ((True, True), (False, False)):
        block = EDM2Block(4, encoder)
        variables = quick(block.init)(jax.random.key(0), h, c)
        apply = quick(block.apply)
        a, b = (np.asarray(apply(variables, np.float32(s) * h, c)) for s in (1, 4))
        assert np.array_equal(a, b) == invariant
