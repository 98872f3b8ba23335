"""Networks of diffusers against diffusers' own outputs, and models as values: files,
batches, denoisers.

`tests/golden/make_diffusers_networks.py` describes the golden file and makes it.
"""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import diffjax as dj
from diffjax.interop import diffusers, state_dicts
from diffjax.interop.diffusers import architectures, folder, model
from tests import diffusers_models
from tests.families import every
from tests.golden import reading
from tests.golden.diffusers_rows import LARGE, ROWS, inputs, weights

GOLDEN = pathlib.Path(__file__).parent / "golden"
FOLDERS = {
    "unet_2d/ddpm": GOLDEN / "diffusers_unet_2d_ddpm",
    "dit/plain": GOLDEN / "diffusers_dit_plain",
}
"""Models as diffusers saved them."""
FAST = ("unet_2d/resnet", "unet_2d_condition/sdxl", "dit/affine")
FAST += ("autoencoder/attention",)
"""Rows whose outputs are compared in every run of the tests."""
STEM = "diffusion_pytorch_model"


golden = functools.partial(reading.golden, "diffusers_networks")


def config_of(row):
    return json.loads(str(golden()[f"{row}/config"]))


def model_of(row):
    """The model of a row with its weights."""
    return diffusers_models.model_of(config_of(row))


@jax.jit
def outputs(network, arrays):
    """The outputs of a row, by their names in the golden file."""
    if not isinstance(network, model.Autoencoder):
        return {"output": network(*arrays)}
    mean, log_variance = network.encode(*arrays)
    decoded = network.decode(mean)
    return {"mean": mean, "log_variance": log_variance, "decoded": decoded}


def error(row, network):
    """Greatest error of a row's outputs, relative to their greatest entry."""
    dtype = jax.tree.leaves(network.params)[0].dtype
    arrays = [
        jnp.asarray(value, dtype if value.dtype.kind == "f" else None)
        for value in inputs(row, config_of(row)).values()
    ]
    results = outputs(network, arrays)
    assert {value.dtype for value in results.values()} == {dtype}
    errors = [
        np.abs(value - golden()[f"{row}/{name}"]).max()
        / np.abs(golden()[f"{row}/{name}"]).max()
        for name, value in results.items()
    ]
    return max(errors)


MARKED = [
    row if row in FAST else pytest.param(row, marks=pytest.mark.slow)
    for row in (ROWS | LARGE)
]


@pytest.mark.parametrize("row", MARKED)
def test_outputs_in_float64_are_those_of_diffusers(row, x64):
    """A thousand roundings of float64 are 2e-13 of each output. The aim is 1e-9."""
    assert error(row, model_of(row)) <= 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS | LARGE)
def test_outputs_in_float32_are_those_of_diffusers_in_float64(row):
    assert error(row, model_of(row)) <= 1e-4


LONG = [pytest.param(row, marks=pytest.mark.slow) for row in LARGE]


@pytest.mark.parametrize("row", [*ROWS, *LONG])
def test_names_and_shapes_of_tensors_are_those_of_diffusers(row):
    text = json.dumps(config_of(row))
    shapes = state_dicts.tensor_shapes(architectures.configured(text).params)
    stated = json.loads(str(golden()[f"{row}/tensors"]))
    assert shapes == {name: tuple(shape) for name, shape in stated.items()}


def test_the_cifar10_network_has_its_published_size():
    """35.7 million parameters (Ho et al. 2020, appendix B)."""
    text = json.dumps(config_of("unet_2d/cifar10"))
    shapes = state_dicts.tensor_shapes(architectures.configured(text).params)
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    assert round(count / 1e6, 1) == 35.7


# ------------------------------------------------------------------ folders


@pytest.mark.parametrize("row", FOLDERS)
def test_folders_that_diffusers_saved_are_loaded(row):
    """One file, and five parts with their index."""
    network = diffusers.load(FOLDERS[row])
    tensors = state_dicts.to_tensors(network.params)
    for name, value in weights({k: v.shape for k, v in tensors.items()}).items():
        np.testing.assert_array_equal(tensors[name], value.astype(np.float32))
    assert error(row, network) <= 1e-4


def test_a_saved_model_comes_back_bit_for_bit(tmp_path):
    network = diffusers.load(FOLDERS["dit/plain"])
    diffusers.save(tmp_path, network)
    stored = load_file(tmp_path / f"{STEM}.safetensors")
    original = folder.read_tensors(FOLDERS["dit/plain"])
    assert stored.keys() == original.keys()
    assert all(np.array_equal(stored[name], original[name]) for name in stored)
    again = diffusers.load(tmp_path)
    assert again.config == network.config == folder.read_config(FOLDERS["dit/plain"])
    equal = jax.tree.map(np.array_equal, again.params, network.params)
    assert jax.tree.all(equal)


def test_a_model_of_random_parameters_has_its_classs_tensors(tmp_path):
    network = diffusers.initialised(jax.random.key(0), config_of("dit/plain"))
    diffusers.save(tmp_path, network)
    shapes = {k: v.shape for k, v in folder.read_tensors(tmp_path).items()}
    stated = json.loads(str(golden()["dit/plain/tensors"]))
    assert shapes == {name: tuple(shape) for name, shape in stated.items()}
    leaves = jax.tree.leaves(network.params)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    other = diffusers.initialised(jax.random.key(1), network.config)
    assert jax.tree.structure(other) == jax.tree.structure(network)


@pytest.fixture
def saved(tmp_path):
    """A folder with a tiny model to damage."""
    return pathlib.Path(shutil.copytree(FOLDERS["unet_2d/ddpm"], tmp_path / "model"))


def change_config(path, **changes):
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


def change_tensors(path, change):
    file = path / f"{STEM}.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda path: change_config(path, _class_name="FluxTransformer2DModel"),
            "_class_name must be one of AutoencoderKL, .*got 'FluxTransformer2DModel'",
        ),
        (
            lambda path: change_config(path, down_block_types=["KDownBlock2D"] * 2),
            'down_block_types must be a list of .*got ."KDownBlock2D"',
        ),
        (
            lambda path: change_config(path, new_option=1),
            "UNet2DModel is not supported: the option new_option = 1 is unknown",
        ),
        (
            lambda path: change_config(path, norm_num_groups=5),
            "UNet2DModel is not supported",
        ),
        (
            lambda path: change_config(path, attention_head_dim=32),
            "attention_head_dim must be at most the channels",
        ),
        (
            lambda path: change_config(path, block_out_channels=8),
            "block_out_channels must be a list with entries that are .*got 8",
        ),
        (
            lambda path: change_config(path, block_out_channels=[8, 16, 24]),
            "block_out_channels, down_block_types and up_block_types must have one",
        ),
        (
            lambda path: change_config(path, downsample_padding=2),
            "downsample_padding must be 1 or 0, got 2",
        ),
        (
            lambda path: change_config(path, block_out_channels=[8, 24]),
            "of another shape: ",
        ),
        (
            lambda path: change_config(path, layers_per_block=2),
            "missing: down_blocks.0.resnets.1",
        ),
        (
            lambda path: change_tensors(path, lambda t: t.pop("conv_in.bias")),
            "UNet2DModel of .*missing: conv_in.bias",
        ),
        (
            lambda path: change_tensors(
                path, lambda t: t.update(lora=np.ones(1, np.float32))
            ),
            "unknown: lora",
        ),
    ],
)
def test_what_does_not_fit_raises_by_name(saved, damage, message):
    damage(saved)
    with pytest.raises(ValueError, match=message):
        diffusers.load(saved)


def test_old_files_of_a_dit_are_loaded(tmp_path):
    """Their class has another name, and they hold the position code."""
    row = "dit/plain"
    config = config_of(row) | {
        "_class_name": "Transformer2DModel",
        "num_vector_embeds": None,
        "only_cross_attention": False,
    }
    tensors = folder.read_tensors(FOLDERS[row])
    tensors["pos_embed.pos_embed"] = np.zeros((1, 16, 16), np.float32)
    folder.write_tensors(tmp_path, tensors)
    folder.write_config(tmp_path, config)
    loaded = diffusers.load(tmp_path)
    equal = jax.tree.map(np.array_equal, loaded.params, model_of(row).params)
    assert jax.tree.all(equal)


def test_only_models_with_their_own_parameters_are_saved(tmp_path):
    with pytest.raises(TypeError, match="model must be made by diffusers.load"):
        diffusers.save(tmp_path, {"a": np.ones(2)})
    network = diffusers.load(FOLDERS["dit/plain"])
    changed = model.Model(
        network.params["pos_embed.proj"], config_json=network.config_json
    )
    with pytest.raises(ValueError, match="DiTTransformer2DModel.*missing"):
        diffusers.save(tmp_path, changed)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ models


def test_a_batch_of_examples_gives_what_each_gives_alone():
    row = "dit/affine"
    network = model_of(row)
    arrays = [jnp.asarray(v) for v in inputs(row, config_of(row)).values()]  # float32
    batch = [jnp.stack([v, (0.5 * v).astype(v.dtype)]) for v in arrays]
    together = jax.jit(jax.vmap(network))(*batch)
    alone = outputs(network, [v[1] for v in batch])["output"]
    # Rounding of sums in another order.
    np.testing.assert_allclose(together[1], alone, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((8, 8, 3), ()), r"takes \(x, t, text, pooled, sizes\), got 2 inputs"),
        (((8, 8, 4), (), (5, 6), (16,), (6,)), r"x must have shape \(…, …, 3\)"),
        (((2, 8, 8, 3), (), (5, 6), (16,), (6,)), "jax.vmap for a batch"),
        (((8, 8, 3), (1,), (5, 6), (16,), (6,)), "t must be a scalar"),
        (((8, 8, 3), (), (6,), (16,), (6,)), r"text must have shape \(…, 6\)"),
    ],
)
def test_inputs_of_other_shapes_raise_by_name(arguments, message):
    text = json.dumps(config_of("unet_2d_condition/sdxl") | {"in_channels": 3})
    network = model.Model({}, config_json=text)
    with pytest.raises(ValueError, match=message):
        network(*[jnp.zeros(shape) for shape in arguments])


@pytest.mark.parametrize(
    "label, error", [(6, ValueError), (-1, ValueError), (1.5, TypeError)]
)
def test_a_class_out_of_range_raises_and_is_nan_where_it_is_traced(label, error):
    """Five classes and none of them, index 5."""
    network = model_of("dit/plain")
    x = jnp.ones((8, 8, 4))
    with pytest.raises(error, match="the index of a class or timestep must be"):
        network(x, 1, label)
    if error is ValueError:
        assert np.isnan(jax.jit(lambda m, x, y: m(x, 1, y))(network, x, label)).all()


def test_the_denoiser_inverts_the_prediction_of_the_noise():
    """D = (x − σ ε)/α with ε of the timestep i − 1 at index i. Of eight output
    channels, the four of the learned variance are left out.
    """
    network = diffusers.load(FOLDERS["dit/plain"])
    schedule = dj.schedules.from_betas(dj.ddpm.linear_betas(1000))
    denoiser = network.denoiser(schedule, "noise")
    x, label = jnp.asarray(inputs("dit/plain", config_of("dit/plain"))["x"]), 3
    x, t = x.astype(jnp.float32), 0.488
    noise = outputs(network, [x, jnp.asarray(487.0), jnp.asarray(label)])["output"]
    assert noise.shape == (8, 8, 8)
    expected = (x - schedule.sigma(t) * noise[..., :4]) / schedule.alpha(t)
    got = jax.jit(lambda d, x: d(x, t, label))(denoiser, x)
    np.testing.assert_allclose(
        got, expected, atol=2e-5 * float(jnp.abs(expected).max())
    )


@pytest.mark.parametrize(
    "row",
    every(["unet_2d/resnet", "unet_2d_condition/sdxl", "dit/affine"], ("dit/affine",)),
)
def test_a_timestep_is_not_rounded_to_bfloat16(row):
    """996 and 997 are one number in bfloat16, and their features differ."""
    network, arrays = (
        model_of(row),
        map(np.asarray, inputs(row, config_of(row)).values()),
    )
    x, _, *conditions = (
        jnp.asarray(v, jnp.bfloat16 if v.dtype.kind == "f" else v.dtype) for v in arrays
    )
    ts = jnp.array([996.0, 997.0])
    first, second = jax.jit(jax.vmap(lambda t: network(x, t, *conditions)))(ts)
    assert first.dtype == jnp.bfloat16
    assert not np.array_equal(first, second)


def test_a_denoiser_needs_a_schedule_with_timesteps():
    network = model_of("dit/affine")
    with pytest.raises(TypeError, match="made by schedules.from_betas"):
        network.denoiser(dj.schedules.vp_linear(), "noise")


def test_options_of_a_model_are_its_own():
    first, second = model_of("dit/affine"), model_of("dit/affine")
    first.options["patch_size"] = 99
    assert second.options["patch_size"] == config_of("dit/affine")["patch_size"]


def test_new_parameters_do_not_compile_again():
    first = diffusers.load(FOLDERS["dit/plain"])
    second = model.Model(
        jax.tree.map(jnp.negative, first.params), config_json=first.config_json
    )
    traced = []

    @jax.jit
    def run(network, x):
        traced.append(1)
        return network(x, 1, 2)

    x = jnp.ones((8, 8, 4))
    assert not np.array_equal(run(first, x), run(second, x))
    assert len(traced) == 1


# ------------------------------------------------------------------ live


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("row", ROWS | LARGE)
def test_models_go_both_ways_between_the_libraries(row, dtype, tolerance, tmp_path):
    """Of random weights that diffusers saved in parts, outputs agree. Options and
    tensors come back from this library's files bit for bit.
    """
    torch = pytest.importorskip("torch")
    maker = pytest.importorskip("tests.golden.make_diffusers_networks")
    config = config_of(row)
    cls = getattr(maker.diffusers, config["_class_name"])
    torch.manual_seed(0)
    theirs = cls.from_config(config).to(getattr(torch, dtype)).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="50MB")
    arrays = {
        k: np.asarray(v, dtype if v.dtype.kind == "f" else None)
        for k, v in inputs(row, config).items()
    }
    with torch.no_grad():
        expected = maker.outputs(row, theirs, arrays)
    with jax.enable_x64(dtype == "float64"):
        ours = diffusers.load(tmp_path / "theirs")
        got = outputs(ours, [jnp.asarray(value) for value in arrays.values()])
        diffusers.save(tmp_path / "ours", ours)
    for name, value in expected.items():
        size = np.abs(value).max()
        assert got[name].dtype == dtype
        np.testing.assert_allclose(got[name], value, atol=tolerance * size)
    again = cls.from_pretrained(tmp_path / "ours", torch_dtype=getattr(torch, dtype))
    options = [
        {k: v for k, v in network.config.items() if not k.startswith("_")}
        for network in (again, theirs)
    ]
    assert options[0] == options[1]
    assert again.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
