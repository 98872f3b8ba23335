"""Published architectures: sizes, order of the blocks, conditions and precision."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.networks import ADM, EDM2, MLP, DDPMpp, DiT, UNet, dit, edm2
from diffjax.networks.embeddings import ConditionEmbedding
from tests.families import every, quick

EPS = float(np.finfo(np.float32).eps)
SMALL = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (1,)}


def shapes(model, shape, condition=None):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, 0.5, condition)["params"]


def count(model, shape):
    """Number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(model, shape)))


# Sizes


PUBLISHED_MILLIONS = {"S": 280, "M": 498, "L": 777, "XL": 1119, "XXL": 1523}


@pytest.mark.parametrize(
    ("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)]
)
def test_a_dit_has_the_published_number_of_parameters(size, millions):
    # table 4 of Peebles & Xie 2023, for ImageNet's latents
    model = dit(f"{size}/2", num_classes=1000)
    assert round(count(model, (32, 32, 4)) / 1e6) == millions


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_parameters_of_a_dit_are_those_of_its_layers(patch):
    d, depth, channels = 384, 12, 4
    embeddings = (128 + 1 + d + 1) * d + 1001 * d + (patch**2 * channels + 1) * d
    attention = 3 * d * d + (d + 1) * d
    block = 6 * (d + 1) * d + attention + (d + 1) * 4 * d + (4 * d + 1) * d
    last = 2 * (d + 1) * d + (d + 1) * patch**2 * channels
    model = dit(f"S/{patch}", num_classes=1000)
    assert count(model, (32, 32, 4)) == embeddings + depth * block + last


def test_dit_xl_is_the_published_one_but_for_four_differences():
    d, published = 1152, 675_129_632
    biases = 28 * 3 * d  # of q, k and v
    variance = 2 * 2 * 4 * (d + 1)  # outputs for it
    positions = 16 * 16 * d  # kept as parameters that are not trained
    features = 128 * d  # 256 features of the time in place of 128
    ours = count(dit("XL/2", num_classes=1000), (32, 32, 4))
    assert ours == published - biases - variance - positions - features


def test_ddpmpp_is_that_of_edm_but_for_the_biases_of_attention():
    # 6 blocks with attention of 256 channels: 4 down, 1 in the middle, 1 up
    published = 55_733_891
    augmentation = 9 * 128  # their dense layer of 9 entries, none here
    ours = count(DDPMpp(), (32, 32, 3))
    assert ours == published - augmentation - 6 * 3 * 256


def test_adm_is_that_of_edm_but_for_three_differences():
    published = 295_899_267
    attention = 3 * (384 + 576 + 768) + 768 + 4 * (384 + 576 + 768)  # channels
    label, features = 768, (192 - 128) * 768
    ours = count(ADM(num_classes=1000), (64, 64, 3))
    assert ours == published - 3 * attention - features + label


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ("XS", 125),
        *(
            pytest.param(size, millions, marks=pytest.mark.slow)
            for size, millions in PUBLISHED_MILLIONS.items()
        ),
    ],
)
def test_edm2_has_the_published_number_of_parameters(size, millions):
    # tables 2 and 6 of Karras et al. 2024 (L is 777.5 in table 6)
    ours = count(edm2(size, num_classes=1000), (64, 64, 4))
    assert abs(ours / 1e6 - millions) < 0.6


@pytest.mark.parametrize("make", [dit, edm2])
def test_presets_raise_by_name_and_take_fields(make):
    with pytest.raises(ValueError, match="name must be one of .*; got 'H'"):
        make("H")
    name = "B/4" if make is dit else "M"
    assert make(name, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert make(name).clone(width=192) == make(name, width=192)


# The order of the blocks


def test_ddpmpp_has_blocks_that_resample_and_attention_where_stated():
    params = shapes(DDPMpp(**{**SMALL, "blocks": 2}), (4, 4, 1))
    blocks = [params[f"ResamplingBlock_{i}"] for i in range(14)]
    assert "ResamplingBlock_14" not in params
    read = [block["GroupNorm_0"]["scale"].size for block in blocks]
    # two at each resolution with a resampling one between, two in the middle,
    # then three at each
    assert read[:5] == [8, 8, 8, 8, 16] and read[5:7] == [16, 16]
    assert read[7:] == [16 + 16, 16 + 16, 16 + 8, 16, 16 + 8, 8 + 8, 8 + 8]
    attends = [i for i, block in enumerate(blocks) if "Attention_0" in block]
    assert attends == [3, 4, 5, 9]
    # a 1 × 1 convolution in the skip of those that resample
    assert all("Dense_1" in blocks[i] for i in (2, 10))
    adm = ADM(**{**SMALL, "blocks": 2}, head_channels=8)
    blocks = shapes(adm, (4, 4, 1))
    attends = [i for i in range(14) if "Attention_0" in blocks[f"ResamplingBlock_{i}"]]
    assert attends == [3, 4, 5, 7, 8, 9]
    assert all("Dense_0" not in blocks[f"ResamplingBlock_{i}"] for i in (2, 10))


@pytest.mark.parametrize(
    "network",
    [EDM2, *(pytest.param(n, marks=pytest.mark.slow) for n in (DDPMpp, ADM))],
)
def test_a_network_takes_a_label_and_a_vector(network):
    model = network(
        width=4,
        multipliers=(1,),
        blocks=1,
        attention_resolutions=(),
        head_channels=4,
        num_classes=3,
        condition_dim=2,
    )
    x, rng = jnp.ones((2, 2, 2)), np.random.default_rng(0)
    pairs = (np.int32([0, 1, 3, 3]), np.float32([[1, 0], [1, 0], [1, 0], [0, 0]]))
    variables = jax.tree.map(
        lambda leaf: np.float32(0.5 * rng.standard_normal(leaf.shape)),
        jax.eval_shape(model.init, jax.random.key(0), x, 0.5),
    )

    @quick
    def run(variables):
        apply = lambda condition: model.apply(variables, x, 0.5, condition)
        return jax.vmap(apply)(pairs), apply(None)

    batch, none = map(np.asarray, run(variables))
    # Ten convolutions of up to 72 terms, each of which errs by √72 ε/2 in either
    # program.
    rounding = 10 * 72**0.5 * EPS * np.abs(none).max()
    for i in range(4):
        for j in range(i):
            assert np.abs(batch[i] - batch[j]).max() > 100 * rounding
    # None is the null label and the zero vector
    np.testing.assert_allclose(batch[3], none, rtol=0, atol=rounding)


def test_embedding_of_a_pair_is_the_sum_of_both():
    both = ConditionEmbedding(4, num_classes=3, condition_dim=2)
    vector = np.float32([0.5, -1.0])
    params = both.init(jax.random.key(0), (1, vector))["params"]
    label = {"params": {"Embed_0": params["Embed_0"]}}
    dense = {"params": {"Dense_0": params["Dense_0"]}}
    expected = ConditionEmbedding(4, num_classes=3).apply(label, 1)
    expected += ConditionEmbedding(4, condition_dim=2).apply(dense, vector)
    np.testing.assert_array_equal(both.apply({"params": params}, (1, vector)), expected)


def test_dropping_a_label_keeps_the_vector():
    labels, vectors = jnp.arange(4) % 3, jnp.ones((4, 2))
    keys = jax.random.split(jax.random.key(0), 4)
    drop = jax.vmap(dj.guidance.drop_condition, (0, 0, None, None))
    condition = drop(keys, labels, jnp.array(3), 1.0), vectors
    model = MLP(width=4, depth=1, num_classes=3, condition_dim=2)
    variables = jax.tree.map(
        lambda leaf: leaf + 0.1, model.init(jax.random.key(1), jnp.ones(2), 0.5)
    )

    @quick
    def run(variables):
        apply = functools.partial(model.apply, variables, jnp.ones(2), 0.5)
        return jax.vmap(apply)(condition)[0], apply((None, vectors[0]))

    dropped, expected = map(np.asarray, run(variables))
    # A sum of 128 features of the time, and six layers of 4 terms, which err by √n ε/2
    # in either program.
    atol = (128**0.5 + 6 * 4**0.5) * EPS * np.abs(expected).max()
    np.testing.assert_allclose(dropped, expected, rtol=0, atol=atol)


# Precision


@pytest.mark.parametrize("network", every([UNet, DDPMpp, EDM2], (DDPMpp,)))
def test_bfloat16_keeps_parameters_gradients_and_norms_in_float32(network):
    heads = {"heads": 2} if network is UNet else {"head_channels": 4}
    model = network(**SMALL, **heads, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((4, 4, 2), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x, 0.5)
    loss = lambda v, x: jnp.sum(model.apply(v, x, 0.5) ** 2)
    value, gradients = jax.eval_shape(jax.value_and_grad(loss), variables, x)
    leaves = jax.tree.leaves((value, gradients, variables))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(loss)(variables, x))
    # the sums of norms and softmaxes
    assert "bf16" in text and "rsqrt" in text
    for line in text.splitlines():
        if any(name in line for name in (" rsqrt ", " exp ", " reduce_sum[")):
            assert "bf16" not in line.split("=")[0], line


def test_embeddings_and_the_last_layer_of_a_bfloat16_network_are_float32():
    model = DiT(width=8, depth=1, heads=2, dtype=jnp.bfloat16, num_classes=2)
    x = jax.ShapeDtypeStruct((4, 4, 1), jnp.float32)
    _, state = jax.eval_shape(
        lambda key: model.init_with_output(
            key, jnp.zeros(x.shape), 0.5, 1, capture_intermediates=True
        ),
        jax.random.key(0),
    )
    layers = state["intermediates"]
    assert layers["Conditioning_0"]["__call__"][0].dtype == jnp.float32
    assert layers["Dense_1"]["__call__"][0].dtype == jnp.float32
    assert layers["DiTBlock_0"]["__call__"][0].dtype == jnp.bfloat16
