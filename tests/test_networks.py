"""Networks: theorems that hold for each of them, and for the parts that they
are made of.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.networks import (
    ADM,
    EDM2,
    MLP,
    DDPMpp,
    DiT,
    FourierFeatures,
    TimeEmbedding,
    UNet,
    fourier_inputs,
    sinusoidal,
)
from diffjax.networks.dit import DiTBlock, patchify, positions, unpatchify
from diffjax.networks.embeddings import ConditionEmbedding
from diffjax.networks.layers import Attention
from diffjax.networks.magnitude import MPFourier
from diffjax.networks.mlp import MLPBlock
from diffjax.networks.pyramid import downsample, upsample
from diffjax.networks.unet import ResidualBlock
from tests.families import every, normal32, quick

EPS = float(np.finfo(np.float32).eps)
BF16 = 2.0**-8
"""Spacing of bfloat16 at 1."""


class Row(NamedTuple):
    model: Any
    shape: tuple[int, ...]


LABELS, VECTOR = 3, 2
small_unet = functools.partial(UNet, width=8, blocks=1, heads=2, dropout=0.5)
ROWS = {
    "mlp_scalar": Row(
        MLP(width=16, depth=1, dropout=0.5, num_classes=LABELS, input_frequencies=2), ()
    ),
    "mlp": Row(
        MLP(
            width=16,
            depth=2,
            dropout=0.5,
            condition_dim=VECTOR,
            time_features=FourierFeatures(32, scale=2.0),
        ),
        (3, 5),
    ),
    "dit": Row(
        DiT(
            width=16,
            depth=2,
            heads=2,
            dropout=0.5,
            num_classes=LABELS,
            input_frequencies=1,
        ),
        (6, 4, 3),
    ),
    "dit_learned": Row(
        DiT(
            width=16,
            depth=1,
            heads=4,
            dropout=0.5,
            patch=1,
            learned_positions=True,
            condition_dim=VECTOR,
        ),
        (3, 5),
    ),
    "unet": Row(small_unet(num_classes=LABELS, attention_resolutions=()), (6, 4, 3)),
    "unet_flat": Row(
        small_unet(multipliers=(1,), attention_resolutions=(0,), condition_dim=VECTOR),
        (5, 3),
    ),
    "ddpmpp": Row(
        DDPMpp(width=8, multipliers=(1, 2), blocks=1, dropout=0.5, num_classes=LABELS),
        (6, 4, 3),
    ),
    "adm": Row(
        ADM(
            width=8,
            multipliers=(1, 2),
            blocks=1,
            attention_resolutions=(1,),
            head_channels=8,
            dropout=0.5,
            condition_dim=VECTOR,
        ),
        (6, 4, 3),
    ),
    "edm2": Row(
        EDM2(
            width=8,
            multipliers=(1, 2),
            blocks=1,
            attention_resolutions=(1,),
            head_channels=8,
            dropout=0.5,
            num_classes=LABELS,
        ),
        (6, 4, 3),
    ),
}
networks = pytest.mark.parametrize("name", every(ROWS, ("mlp", "dit", "unet_flat")))


@functools.partial(quick, static_argnums=0, static_argnames="train")
def run(model, variables, x, t, condition=None, train=False, key=None):
    return model.apply(
        variables,
        x,
        t,
        condition,
        train,
        rngs=None if key is None else {"dropout": key},
    )


@functools.partial(quick, static_argnums=0)
def run_batch(model, variables, x, t, condition):
    return jax.vmap(model.apply, (None, 0, 0, 0))(variables, x, t, condition)


@functools.cache
def initial(name):
    row = ROWS[name]
    x, t = np.zeros(row.shape, np.float32), np.float32(0)
    return quick(row.model.init)(jax.random.key(1), x, t, conditions(name, 1)[0])


@functools.cache
def perturbed(name):
    model, shape = ROWS[name]
    return randomised(
        model, np.zeros(shape, np.float32), np.float32(0), conditions(name, 1)[0]
    )


def randomised(model, *arguments):
    """Variables as of `model.init`, every entry drawn from N(0, 0.3²), so that
    none is zero.
    """
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments)
    return jax.tree.map(
        lambda leaf: np.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype),
        shapes,
    )


def conditions(name, count):
    """`count` conditions: the labels in turn, or random vectors."""
    if ROWS[name].model.num_classes:
        return np.arange(count, dtype=np.int32) % (LABELS + 1)
    return normal32(3, count, VECTOR)


def batch(name, count=16):
    x = normal32(4, count, *ROWS[name].shape)
    return x, np.linspace(0.1, 0.9, count, dtype=np.float32), conditions(name, count)


def relative(a, b):
    """Root mean square of a − b over that of b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))


# The whole family


@networks
def test_output_is_exactly_zero_at_initialisation(name):
    x, t, condition = batch(name)
    out = run_batch(ROWS[name].model, initial(name), x, t, condition)
    assert out.shape == x.shape and out.dtype == jnp.float32
    assert not np.any(out)


@networks
def test_parameters_are_float32_and_the_only_variables(name):
    assert set(initial(name)) == {"params"}
    assert {leaf.dtype for leaf in jax.tree.leaves(initial(name))} == {
        jnp.dtype("float32")
    }


@networks
def test_one_example_and_a_batch_agree_and_examples_do_not_mix(name):
    model, variables = ROWS[name].model, perturbed(name)
    x, t, condition = batch(name)
    out = np.asarray(run_batch(model, variables, x, t, condition))
    for i in (0, 3):
        single = run(model, variables, x[i], t[i], condition[i])
        assert (
            relative(out[i], single) < 100 * EPS
        )  # some hundred accumulated roundings, of random sign
    others = (
        np.concatenate([x[:1], -3 * x[1:]]),
        np.concatenate([t[:1], t[1:] + np.float32(0.05)]),
    )
    others = np.asarray(run_batch(model, variables, *others, condition))
    np.testing.assert_array_equal(others[0], out[0])
    assert relative(others[1], out[1]) > 0.01


@networks
def test_output_depends_on_time_near_one_and_near_eighty(name):
    model, variables = ROWS[name].model, perturbed(name)
    x = batch(name)[0][0]
    for t, s in [(0.0, 0.005), (0.5, 0.51), (-2.0, 2.0), (79.0, 80.0)]:
        out, moved = (
            run(model, variables, x, np.float32(u), conditions(name, 1)[0])
            for u in (t, s)
        )
        assert relative(moved, out) > 1e-3, (t, s)


@networks
def test_output_depends_on_the_condition_and_none_is_the_null_condition(name):
    model, variables = ROWS[name].model, perturbed(name)
    x, t = np.ones(ROWS[name].shape, np.float32), np.float32(0.3)
    outs = [
        run(model, variables, x, t, condition)
        for condition in conditions(name, LABELS + 1)
    ]
    for i in range(LABELS + 1):
        for j in range(i):
            assert relative(outs[i], outs[j]) > 1e-3
    null = np.int32(LABELS) if model.num_classes else np.zeros(VECTOR, np.float32)
    # two programs of the same arithmetic: some 20 layers of sums of 100 terms,
    # each rounded
    assert (
        relative(run(model, variables, x, t, null), run(model, variables, x, t, None))
        < 200 * np.finfo(np.float32).eps
    )


@networks
def test_every_output_depends_on_every_input(name):
    model, variables = ROWS[name].model, perturbed(name)
    x, t, condition = (leaf[0] for leaf in batch(name))
    jacobian = quick(jax.jacrev(lambda x: model.apply(variables, x, t, condition)))(x)
    jacobian = np.asarray(jacobian)
    assert np.all(np.isfinite(jacobian)) and np.all(jacobian != 0)


@networks
def test_no_parameter_is_dead(name):
    model = ROWS[name].model
    x, t, condition = batch(name)
    weights = normal32(5, *x.shape)
    loss = quick(
        jax.grad(
            lambda v: jnp.vdot(
                weights, jax.vmap(model.apply, (None, 0, 0, 0))(v, x, t, condition)
            )
        )
    )
    gradients = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(np.asarray, loss(perturbed(name)))
    )
    largest = max(float(np.abs(g).max()) for _, g in gradients)
    for path, g in gradients:
        assert np.all(np.isfinite(g)), jax.tree_util.keystr(path)
        # a parameter without effect has a gradient of rounding size, not
        # always exactly 0
        assert float(np.abs(g).max()) > 50 * EPS * largest, jax.tree_util.keystr(path)
        assert np.mean(g != 0) > 0.99, jax.tree_util.keystr(path)


@networks
def test_dropout_acts_in_training_only_and_follows_its_key(name):
    variables = perturbed(name)
    x, t, condition = (leaf[0] for leaf in batch(name))
    plain = run(
        ROWS[name].model, variables, x, t, condition
    )  # without a key, so without randomness
    a, again, b = (
        run(
            ROWS[name].model,
            variables,
            x,
            t,
            condition,
            train=True,
            key=jax.random.key(k),
        )
        for k in (6, 6, 7)
    )
    np.testing.assert_array_equal(a, again)
    assert relative(a, plain) > 1e-3 and relative(b, a) > 1e-3


@networks
def test_bfloat16_computes_within_its_rounding_and_returns_float32(name):
    x, t, condition = batch(name)
    exact = run_batch(ROWS[name].model, perturbed(name), x, t, condition)
    out = run_batch(
        ROWS[name].model.clone(dtype=jnp.bfloat16), perturbed(name), x, t, condition
    )
    assert out.dtype == jnp.float32
    # The effect of rounding the parameters alone measures the network's
    # condition. A layer rounds about ten more values (norm, its two
    # modulations, dense, bias, activation, gate, sum, …) of independent signs.
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16).astype(np.float32), perturbed(name)
    )
    once = relative(run_batch(ROWS[name].model, rounded, x, t, condition), exact)
    assert once / 2 < relative(out, exact) < 4 * once


@networks
def test_a_bfloat16_network_has_the_time_features_of_a_float32_one(name):
    """bfloat16 has steps of 1/2 near 79."""
    x, t, condition = (leaf[0] for leaf in batch(name))
    embeddings = lambda module, _: isinstance(module, TimeEmbedding | MPFourier)

    @functools.partial(quick, static_argnums=0)
    def features(model, x, t):
        _, state = model.apply(
            perturbed(name), x, t, condition, capture_intermediates=embeddings
        )
        return jax.tree.leaves(state["intermediates"])

    (exact,) = features(ROWS[name].model, x, t + 79)
    model = ROWS[name].model.clone(dtype=jnp.bfloat16)
    (ours,) = features(model, jnp.asarray(x, jnp.bfloat16), t + 79)
    assert ours.dtype == jnp.float32
    assert relative(ours, exact) < 100 * EPS


@pytest.mark.parametrize("name", ["mlp", "dit", "unet"])
def test_dtype_of_the_output_is_that_of_x_where_wider_than_float32(name):
    model, variables, shape = ROWS[name].model, perturbed(name), ROWS[name].shape
    condition = conditions(name, 1)[0]
    for dtype in (jnp.bfloat16, jnp.int32):
        assert (
            jax.eval_shape(
                model.apply, variables, jnp.ones(shape, dtype), 0.5, condition
            ).dtype
            == jnp.float32
        )
    with jax.enable_x64(True):
        t, wide, narrow = (
            jnp.asarray(0.5),
            jnp.ones(shape, jnp.float64),
            jnp.ones(shape, jnp.float32),
        )
        assert (
            jax.eval_shape(model.apply, variables, wide, t, condition).dtype
            == jnp.float64
        )
        assert (
            jax.eval_shape(model.apply, variables, narrow, t, condition).dtype
            == jnp.float32
        )
        assert {
            a.dtype.name
            for a in jax.tree.leaves(
                jax.eval_shape(model.init, jax.random.key(0), wide, t)
            )
        } == {"float32"}


def test_equal_fields_make_equal_hashable_networks():
    assert MLP(time_features=FourierFeatures(8)) == MLP(
        time_features=FourierFeatures(8)
    )
    assert hash(UNet(multipliers=[1, 2])) == hash(UNet(multipliers=(1, 2)))  # type: ignore[arg-type]


# Blocks


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (MLPBlock(dropout=0.4), (8,)),
        (DiTBlock(heads=2, dropout=0.4), (3, 8)),
        (ResidualBlock(8, dropout=0.4), (2, 2, 8)),
    ],
)
def test_mean_over_dropout_masks_is_the_block_without_dropout(block, shape):
    h, c = normal32(7, *shape), normal32(8, 6)
    variables = randomised(block, h, c)

    @quick
    def both(variables, h, c):
        keys = jax.random.split(jax.random.key(9), 1024)
        draws = jax.vmap(
            lambda k: block.apply(variables, h, c, True, rngs={"dropout": k})
        )(keys)
        return draws, block.apply(variables, h, c)

    draws, plain = map(np.asarray, both(variables, h, c))
    error = draws.std(0) / np.sqrt(len(draws))
    assert np.all(error > 0)
    assert np.all(np.abs(draws.mean(0) - plain) < 5 * error)


@pytest.mark.parametrize(
    ("block", "shape", "at_first"),
    [
        (MLPBlock(), (8,), 1.0),
        (DiTBlock(heads=2), (3, 8), 1.0),
        (ResidualBlock(8), (2, 2, 8), 0.5**0.5),
    ],
)
def test_blocks_are_the_rescaled_identity_at_initialisation(block, shape, at_first):
    h, c = normal32(7, *shape), normal32(8, 6)
    out, _ = quick(block.init_with_output)(jax.random.key(1), h, c)
    np.testing.assert_allclose(out, at_first * h, rtol=2 * EPS)


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_that_of_jax(heads):
    n, width = 7, 16
    h = normal32(10, n, width)
    attention = Attention(heads)
    params = randomised(attention, h)["params"]

    @quick
    def both(params, h):
        q, k, v = jnp.split(
            (h @ params["Dense_0"]["kernel"]).reshape(n, 3 * heads, width // heads),
            3,
            axis=1,
        )
        mixed = jax.nn.dot_product_attention(q[None], k[None], v[None])[0].reshape(
            n, width
        )
        expected = mixed @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
        return attention.apply({"params": params}, h), expected

    np.testing.assert_allclose(*both(params, h), atol=width * EPS * 10)


@pytest.mark.parametrize(
    ("block", "arguments"),
    [(Attention(2), ()), (DiTBlock(2), (np.ones(4, np.float32),))],
)
def test_attention_is_equivariant_to_permutations_of_the_tokens(block, arguments):
    h = normal32(11, 9, 8)
    order = np.random.default_rng(12).permutation(9)
    variables = randomised(block, h, *arguments)
    apply = quick(block.apply)
    out = np.asarray(apply(variables, h, *arguments))
    np.testing.assert_allclose(
        apply(variables, h[order], *arguments), out[order], rtol=1e-4, atol=100 * EPS
    )


def test_dit_distinguishes_positions():
    code = np.asarray(quick(lambda: positions(5, 3, 8))())
    distances = np.linalg.norm(code[:, None] - code[None], axis=-1) + np.eye(15)
    assert code.shape == (15, 8) and distances.min() > 0.1


@pytest.mark.parametrize(
    ("shape", "patch"), [((4, 6, 3), 2), ((3, 3, 1), 3), ((5, 2, 2), 1)]
)
def test_unpatchify_inverts_patchify_and_tokens_are_patches_row_by_row(shape, patch):
    x = np.arange(np.prod(shape)).reshape(shape)
    tokens, back = quick(
        lambda x: (patchify(x, patch), unpatchify(patchify(x, patch), shape, patch))
    )(x)
    np.testing.assert_array_equal(back, x)
    columns = shape[1] // patch
    for i, token in enumerate(np.asarray(tokens)):
        r, c = patch * (i // columns), patch * (i % columns)
        np.testing.assert_array_equal(token, x[r : r + patch, c : c + patch].ravel())


def test_unet_reads_every_skip_from_the_last_to_the_first():
    # skips: 8 (first convolution), 8, 8 (level 0), 8 (down), 16, 16 (level 1)
    model = small_unet(blocks=2)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((4, 4, 1)), 0.5)[
        "params"
    ]
    channels = [
        params[f"ResidualBlock_{i}"]["GroupNorm_0"]["scale"].size for i in range(12)
    ]
    assert channels[:4] == [8, 8, 8, 16]  # down
    assert channels[4:6] == [16, 16]  # middle
    assert channels[6:] == [16 + 16, 16 + 16, 16 + 8, 16 + 8, 8 + 8, 8 + 8]  # up


def test_downsample_is_a_left_inverse_of_upsample_and_keeps_the_mean():
    h = normal32(13, 4, 6, 2)
    back, down = map(
        np.asarray, quick(lambda h: (downsample(upsample(h)), downsample(h)))(h)
    )
    np.testing.assert_array_equal(back, h)
    np.testing.assert_allclose(down.mean((0, 1)), h.mean((0, 1)), atol=10 * EPS)


# Embeddings


def test_inner_products_of_sinusoidal_embeddings_depend_on_the_time_difference_only():
    dim, t = 64, np.linspace(-2.0, 2.0, 9, dtype=np.float32)
    embedding = np.asarray(quick(lambda t: sinusoidal(t, dim))(t), np.float64)
    frequencies = np.geomspace(0.02, 200.0, dim // 2)
    expected = np.cos(frequencies * (t[:, None] - t[None])[..., None]).sum(-1)
    # rounding of ω and of ω t each turn an angle by up to EPS ω |t|, two
    # angles a product
    np.testing.assert_allclose(
        embedding @ embedding.T, expected, atol=4 * EPS * 2.0 * frequencies.sum()
    )
    np.testing.assert_allclose(np.diag(embedding @ embedding.T), dim / 2, rtol=10 * EPS)


def test_sinusoidal_resolves_hundredths_and_orders_sigmas_up_to_seventy():
    t = np.concatenate([[0.5, 0.51], np.linspace(-75.0, 75.0, 100)]).astype(np.float32)
    embedded = np.asarray(quick(lambda t: sinusoidal(t, 128))(t))
    assert np.linalg.norm(embedded[0] - embedded[1]) > 1.0  # of √128 at most
    assert np.all(np.diff(embedded[2:, 0]) > 0)  # sin 0.02 t, |0.02 t| < π/2


def test_fourier_features_have_a_gaussian_kernel_and_no_variables():
    features, n = FourierFeatures(dim=8192, scale=2.0), 4096
    assert features.init(jax.random.key(0), 0.5) == {}
    other, t = (
        FourierFeatures(dim=8192, scale=2.0, seed=1),
        np.float32([0.3, 0.35, 0.4, 0.6]),
    )
    e, e_other = map(
        np.asarray, quick(lambda t: (features.apply({}, t), other.apply({}, t)))(t)
    )
    kernel = e @ e[0] / n
    gap = np.array([0.0, 0.05, 0.1, 0.3])
    np.testing.assert_allclose(
        kernel, np.exp(-((2 * np.pi * 2.0 * gap) ** 2) / 2), atol=5 / np.sqrt(2 * n)
    )
    assert np.any(e != e_other)


def test_fourier_inputs_have_period_two_and_unit_circles():
    x = np.float32([[-0.9, 0.25], [0.5, 0.7]])
    features, moved = map(
        np.asarray, quick(lambda x: (fourier_inputs(x, 3), fourier_inputs(x + 2, 3)))(x)
    )
    assert features.shape == (2, 14)
    np.testing.assert_array_equal(features[:, :2], x)
    np.testing.assert_allclose(
        features[:, 2:8] ** 2 + features[:, 8:] ** 2, 1.0, rtol=4 * EPS
    )
    np.testing.assert_allclose(
        moved[:, 2:], features[:, 2:], atol=4 * np.pi * 3 * 2 * EPS
    )
    np.testing.assert_array_equal(fourier_inputs(x, 0), x)


# Wrong arguments


def call(model, *arguments):
    return lambda: jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments))


IMAGE = np.zeros((4, 4, 1), np.float32)
ERRORS = [
    (lambda: sinusoidal(0.5, 7), ValueError, "dim must be even, got 7"),
    (
        lambda: sinusoidal(0.5, 8, 2.0, 1.0),
        ValueError,
        "max_frequency must be greater than min_frequency=2.0, got 1.0",
    ),
    (lambda: FourierFeatures(dim=3), ValueError, "dim must be even, got 3"),
    (lambda: FourierFeatures(scale=0.0), ValueError, "scale must be positive, got 0"),
    (
        lambda: TimeEmbedding(dim=8, features_dim=5),
        ValueError,
        "features_dim must be even, got 5",
    ),
    (
        lambda: ConditionEmbedding(dim=8),
        ValueError,
        "one of num_classes and condition_dim must be set",
    ),
    (lambda: MLP(width=0), ValueError, "width must be between 1 and 65536, got 0"),
    (lambda: MLP(depth=1.5), TypeError, "depth must be an integer, got 1.5"),  # type: ignore[arg-type]
    (
        lambda: MLP(dropout=1.5),
        ValueError,
        r"dropout must lie in \[0.0, 1.0\], got 1.5",
    ),
    (
        lambda: MLP(num_classes=0),
        ValueError,
        "num_classes must be between 1 and 65536, got 0",
    ),
    (
        call(MLP(num_classes=2, condition_dim=2), IMAGE, 0.5, 1),
        TypeError,
        r"condition must be a pair \(label, vector\)",
    ),
    (
        lambda: MLP(input_frequencies=-1),
        ValueError,
        "input_frequencies must be at least 0, got -1",
    ),
    (
        lambda: MLP(time_frequencies=(3.0, 1.0)),
        ValueError,
        r"time_frequencies\[1\] must be greater than",
    ),
    (lambda: MLP(time_frequencies=3.0), TypeError, "time_frequencies must be a pair"),  # type: ignore[arg-type]
    (
        lambda: MLP(dtype=jnp.int32),
        TypeError,
        "dtype must be a floating type",
    ),
    (lambda: DiT(width=96, heads=5), ValueError, "heads must divide width=96, got 5"),
    (
        lambda: DiT(width=6, heads=2),
        ValueError,
        "width must be a multiple of 4, got 6",
    ),
    (lambda: DiT(patch=0), ValueError, "patch must be between 1 and 65536, got 0"),
    (
        lambda: UNet(multipliers=()),
        TypeError,
        "multipliers must be a tuple of one or more integers",
    ),
    (
        lambda: UNet(attention_resolutions=(2,)),
        ValueError,
        r"attention_resolutions\[0\] must be between 0 and 1, got 2",
    ),
    (
        lambda: UNet(width=6, heads=4, attention_resolutions=(0,)),
        ValueError,
        r"heads must divide width \* multipliers\[0\]",
    ),
    (
        call(MLP(), IMAGE, np.zeros(3)),
        ValueError,
        r"t must have shape \(\), got \(3,\).*jax.vmap",
    ),
    (
        call(MLP(), IMAGE, 0.5, 2),
        ValueError,
        "condition must be None unless num_classes .* is set, got 2",
    ),
    (call(MLP(), IMAGE * 1j, 0.5), TypeError, "x must be real, got dtype complex64"),
    (
        call(MLP(num_classes=3), IMAGE, 0.5, 1.0),
        TypeError,
        "condition must be an integer label.* dtype float32",
    ),
    (
        call(MLP(num_classes=3), IMAGE, 0.5, np.arange(2)),
        ValueError,
        r"condition must be an integer label.* got shape",
    ),
    (
        call(MLP(num_classes=3), IMAGE, 0.5, 4),
        ValueError,
        r"in 0 … num_classes=3 .* got 4",
    ),
    (
        call(MLP(condition_dim=3), IMAGE, 0.5, np.zeros(2)),
        ValueError,
        r"condition must have shape \(3,\), got \(2,\)",
    ),
    (call(DiT(patch=3), IMAGE, 0.5), ValueError, "sides divisible by patch=3"),
    (call(DiT(), np.zeros((0, 4, 1)), 0.5), ValueError, "x must have at least one"),
    (call(EDM2(), np.zeros((8, 8, 0)), 0.5), ValueError, "x must have at least one"),
    (
        call(DiT(), np.zeros((2, 4, 4, 1)), 0.5),
        ValueError,
        r"x must have shape \(H, W\) or \(H, W, C\), got",
    ),
    (
        call(UNet(), IMAGE[:3], 0.5),
        ValueError,
        r"divisible by 2\^\(resolutions − 1\)=2, got \(3, 4, 1\)",
    ),
]


@pytest.mark.parametrize(
    ("action", "error", "message"),
    ERRORS,
    ids=[message[:40] for _, _, message in ERRORS],
)
def test_raises_by_name(action, error, message):
    with pytest.raises(error, match=message):
        action()
