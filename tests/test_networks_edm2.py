"""Magnitude-preserving layers keep a mean square of 1, whatever their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

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


KEPT = 0.7**2 / (0.7**2 + 0.3**2)
"""Part of the mean square of a sum that comes from its first branch."""

CROSS = 2 * 0.7 * 0.3 / (0.7**2 + 0.3**2)
"""Weight of the mean product of the branches in the mean square of their sum."""


def mean_square_of_branch(n):
    """That of two convolutions 3 × 3 with mp_silu before each, of white n × n images.

    A convolution of k pixels out of 9, at the border, has the variance k/9 over
    its random weights.
    """
    count = np.convolve(np.ones(n), np.ones(3), "same")  # 2, 3, …, 3, 2
    variance = np.outer(count, count) / 9
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    hidden = np.sqrt(variance)[..., None] * nodes
    silu = hidden / (1 + np.exp(-hidden)) / magnitude.SILU_RMS
    squares = silu**2 @ weights / np.sqrt(2 * np.pi)  # (n, n)
    return np.sum(squares * variance) / n**2


@pytest.mark.parametrize("encoder", [True, False])
def test_a_block_keeps_the_mean_square_at_initialisation(encoder):
    n, channels = 8, 64
    block = EDM2Block(channels, encoder, heads=1)
    h, c = normal32(2, n, n, channels), normal32(3, 16)
    out, _ = quick(block.init_with_output)(jax.random.key(0), h, c)
    # The encoder has a norm. Attention adds from nothing to 1, as it averages
    # values of mean square 1 over pixels.
    start = 1 if encoder else mean_square(h)
    middle = KEPT * start + (1 - KEPT) * mean_square_of_branch(n)
    least, most = KEPT * middle, KEPT * middle + 1 - KEPT
    # In each of two sums the branches' mean product, over n² C pairs, is 0 on
    # average over the random weights.
    slack = 5 * CROSS * (2 / (n * n * channels)) ** 0.5
    assert least - slack < mean_square(out) < most + slack


@pytest.mark.slow
def test_activations_of_a_network_have_unit_magnitude_at_initialisation():
    """Block by block: an encoder's block starts at 1, as it has a norm, and one of
    the decoder from its input. Each sum keeps `KEPT` of it, and adds no more than
    fills it to 1.
    """
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
        kinds, squares = [], []

        def record(function, arguments, settings, context):
            out = function(*arguments, **settings)
            block = context.module
            if isinstance(block, EDM2Block) and context.method_name == "__call__":
                kinds.append((block.encoder, 1 + (block.heads > 0)))
                squares.append([jnp.mean(h**2) for h in (arguments[0], out)])
            return out

        with nn.intercept_methods(record):
            model.init_with_output(key, x, 0.5)
        return jnp.array(squares), jnp.array(kinds, int)

    squares, kinds = map(np.asarray, run(jax.random.key(0)))
    assert len(squares) == 1 + 2 + 2 + 2 + 1 + 2
    # The fewest pairs of a mean product are those of 32 channels that were 4 × 4
    # pixels before their sides were doubled.
    slack = 5 * CROSS * (2 / (4 * 4 * 32)) ** 0.5
    for (before, after), (encoder, sums) in zip(squares, kinds, strict=True):
        start = 1 if encoder else before
        assert KEPT**sums * start - slack < after < max(start, 1) + slack


def test_blocks_of_the_decoder_have_no_pixel_norm():
    h, c = normal32(5, 2, 2, 4), normal32(6, 4)
    for encoder, invariant in ((True, True), (False, False)):
        block = EDM2Block(4, encoder)
        variables = quick(block.init)(jax.random.key(0), h, c)
        apply = quick(block.apply)
        a, b = (np.asarray(apply(variables, np.float32(s) * h, c)) for s in (1, 4))
        assert np.array_equal(a, b) == invariant
