"""Checkpoints: trees of arrays come back bit by bit, DiT and SiT compute the outputs of
their repositories, damaged files raise by name, and pickles are never read.

`tests/golden/make_checkpoints.py` describes the golden file and makes it.
"""

import collections
import functools
import json
import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.interop import files
from diffjax.interop.checkpoints import dit, sit, trees
from tests.golden import reading
from tests.golden.checkpoint_rows import ROWS, SMALL, inputs
from tests.golden.diffusers_rows import weights

SUFFIXES = ("npz", "safetensors")


class State(NamedTuple):
    mean: object
    count: object


def a_tree():
    return {
        "file": jnp.arange(6.0).reshape(2, 3).T,  # a name that np.savez takes
        "layers": [
            {"w": jnp.ones(2, jnp.bfloat16)},
            (np.float64(0.1), np.int64(2**40)),
        ],
        "empty": np.zeros((0, 3), np.float32),
        "dotted.name": np.array(True),
    }


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_tree_comes_back_with_its_structure_and_dtypes(tmp_path, suffix):
    path = tmp_path / "new" / f"tree.{suffix}"
    trees.save(path, a_tree())
    same(trees.load(path), a_tree())
    same(trees.load(path, a_tree()), a_tree())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_like_gives_named_tuples_and_dtypes(tmp_path):
    path = tmp_path / "state.npz"
    trees.save(path, State(jnp.ones(3, jnp.bfloat16), 4))
    assert set(trees.load(path)) == {"mean", "count"}
    like = State(jax.ShapeDtypeStruct((3,), jnp.float32), np.int32(0))
    state = trees.load(path, like)
    assert isinstance(state, State) and state.mean.dtype == np.float32
    assert state.count.dtype == np.int32


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_like_never_changes_integers_nor_makes_floats_infinite(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    stored = {"n": np.int64(2**40 + 5), "big": np.array([1e300, np.inf]), "x": 0.1}
    trees.save(path, stored)
    like = {"n": np.int64(0), "big": np.zeros(2), "x": np.float32(0)}
    assert trees.load(path, like)["x"] == np.float32(0.1)
    small = {"n": np.int32(0), "big": np.zeros(2, np.float32), "x": np.float32(0)}
    with pytest.raises(ValueError, match=r"large .*like: n int64 for int32, big fl\S+"):
        trees.load(path, small)
    trees.save(path, {"big": np.float32(np.inf)})  # infinite before
    assert trees.load(path, {"big": jnp.bfloat16(0)})["big"] == np.inf


def test_containers_of_other_classes_are_stored_and_made_by_like(tmp_path):
    tree = collections.defaultdict(list, {"a": [np.ones(2)]})
    trees.save(tmp_path / "a.npz", {"inner": tree})
    same(trees.load(tmp_path / "a.npz"), {"inner": dict(tree)})
    inner = trees.load(tmp_path / "a.npz", {"inner": tree})["inner"]
    assert inner["missing"] == [] and inner["a"][0].shape == (2,)


def test_every_name_keeps_its_array(tmp_path):
    """NumPy takes the name "a.npy" for that of the array "a"."""
    for tree in ({"a": 1.0, "a.npy": 2.0}, {"a.npy": 2.0, "a.npy.npy": 3.0}):
        trees.save(tmp_path / "a.npz", tree)
        assert trees.load(tmp_path / "a.npz") == tree
    trees.save(tmp_path / "a.npz", {"__metadata__": 1.0})
    with pytest.raises(ValueError, match="__metadata__"):
        trees.save(tmp_path / "a.safetensors", {"__metadata__": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_names_of_other_programs_nest_at_slashes(tmp_path):
    np.savez(tmp_path / "a.npz", **{"net/w": np.ones(2), "net/b": np.zeros(1)})
    assert set(trees.load(tmp_path / "a.npz")["net"]) == {"w", "b"}
    pair = [("net", np.ones(2)), ("net/b", np.zeros(1))]
    for ordered in (pair, pair[::-1]):
        np.savez(tmp_path / "b.npz", **dict(ordered))
        with pytest.raises(ValueError, match=f"{ordered[1][0]} names an array inside"):
            trees.load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    "like, message",
    [
        ({"a": np.ones(2), "c": 1.0}, "missing: c; unknown: b"),
        ({"a": np.ones(3), "b": 1.0}, r"float64\[2\] for float64\[3\]"),
        ({"a": np.ones(2), "b": 1}, r"b float64\[\] for int64"),
    ],
)
def test_entries_that_are_not_those_of_like_are_named(tmp_path, like, message):
    trees.save(tmp_path / "a.npz", {"a": np.ones(2), "b": 1.0})
    with pytest.raises(ValueError, match=message):
        trees.load(tmp_path / "a.npz", like)


@pytest.mark.parametrize(
    "tree",
    [{"a": {}}, {"a": []}, {"a/b": 1.0}, {"[0]": 1.0}, {"(1)": 1.0}, {"": 1.0}]
    + [{1: 1.0}, {"a": None}, {"a": "text"}, {"a": 1j}, 3.0],
    ids=str,
)
def test_a_tree_that_would_not_come_back_is_not_written(tmp_path, tree):
    with pytest.raises(ValueError, match="tree must be nested"):
        trees.save(tmp_path / "a.npz", tree)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_raises_and_a_failed_write_keeps_the_old(
    tmp_path, suffix, monkeypatch
):
    path = tmp_path / f"a.{suffix}"
    trees.save(path, {"a": np.arange(1000.0)})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            trees.load(path)
    path.write_bytes(whole)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        trees.save(path, {"b": np.ones(1)})
    assert path.read_bytes() == whole and [*tmp_path.iterdir()] == [path]


def test_pickles_are_not_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('run')",))

    for name in ("a.pt", "a.pth", "a.ckpt", "a.bin", "a.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(ValueError, match=r"torch\.load.*safetensors.*save_file"):
            trees.load(tmp_path / name)
    np.savez(tmp_path / "a.npz", a=np.array([Trap()], object))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        trees.load(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError):
        trees.load(tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"\.npz or \.safetensors"):
        trees.load(tmp_path / "a.h5")


golden = functools.partial(reading.golden, "checkpoints")


def tensors_of(row):
    shapes = json.loads(str(golden()[f"{row}/tensors"]))
    return weights({name: tuple(shape) for name, shape in shapes.items()})


def model_of(row, folder, **settings):
    """The model of a row, read from a file."""
    path = folder / "model.safetensors"
    files.write(path, tensors_of(row))
    heads = (ROWS | SMALL)[row]["num_heads"]
    module = dit if row.startswith("DiT") else sit
    return module.load(path, **{"heads": heads} | settings)


@jax.jit
def outputs(model, x, t, label):
    return model.output(x, t, label)


def error(row, folder, dtype):
    """Greatest error of a row's output, relative to its greatest entry."""
    model = model_of(row, folder, dtype=dtype)
    arrays = inputs(row, (ROWS | SMALL)[row])
    x, t = jnp.asarray(arrays["x"], dtype), jnp.asarray(arrays["t"], dtype)
    output = outputs(model, x, t, arrays["label"])
    expected = golden()[f"{row}/output"]
    assert output.dtype == dtype
    # The repository SiT drops the channels that are not trained itself.
    output = output[..., : expected.shape[-1]]
    return np.abs(output - expected).max() / np.abs(expected).max()


LONG = [pytest.param(row, marks=pytest.mark.slow) for row in SMALL]


@pytest.mark.parametrize("row", [*ROWS, *LONG])
def test_outputs_in_float64_are_those_of_the_repository(row, tmp_path, x64):
    """A thousand roundings of float64 are 2e-13 of each output."""
    assert error(row, tmp_path, jnp.float64) <= 1e-11


@pytest.mark.parametrize("row", ["DiT/tiny", *LONG])
def test_outputs_in_float32_are_those_of_the_repository(row, tmp_path):
    """A thousand roundings of float32 are 1e-4 of each output."""
    assert error(row, tmp_path, jnp.float32) <= 1e-4


def test_timesteps_are_not_rounded_to_the_dtype_of_images(tmp_path):
    """bfloat16 has no 997, and 996 would change the output by 8 %.

    It rounds by up to 2⁻⁹. A path through both blocks has some eight roundings.
    """
    model, label = model_of("DiT/tiny", tmp_path), 2
    x = jnp.asarray(inputs("DiT/tiny", ROWS["DiT/tiny"])["x"], jnp.bfloat16)
    exact = outputs(model, x.astype(jnp.float32), 997.0, label)
    rounded = outputs(model, x, 997.0, label)
    assert rounded.dtype == jnp.bfloat16
    scale = np.abs(exact).max()
    assert np.abs(rounded.astype(jnp.float32) - exact).max() <= 8 * 2**-9 * scale


def test_the_denoiser_of_dit_is_that_of_ddpm(tmp_path, x64):
    """x_0 = (x − √(1 − ᾱ) ε)/√ᾱ (Ho et al. 2020) at timestep 487, the index 488.

    The output's error of up to 1e-11 is divided by √ᾱ = 0.3, and ᾱ is a product of
    488 rounded factors.
    """
    model = model_of("DiT/tiny", tmp_path)
    x, _, label = inputs("DiT/tiny", ROWS["DiT/tiny"]).values()
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[487]
    noise = golden()["DiT/tiny/output"][..., :4]
    expected = (x - np.sqrt(1 - kept) * noise) / np.sqrt(kept)
    denoised = model.denoiser(dit.schedule())(x, 0.488, label)
    np.testing.assert_allclose(denoised, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["velocity", "noise", "score"])
def test_the_denoiser_of_sit_turns_its_time(kind, tmp_path, x64):
    """SiT has x = s x_0 + (1 − s) ε at its time s = 0.3 (Ma et al. 2024).

    The output's error of up to 1e-11 is multiplied by at most 1/s.
    """
    model = model_of("SiT/tiny", tmp_path)
    x, s, label = inputs("SiT/tiny", ROWS["SiT/tiny"]).values()
    output = golden()["SiT/tiny/output"]
    expected = {
        "velocity": x + (1 - s) * output,  # of x_0 − ε
        "noise": (x - (1 - s) * output) / s,
        "score": (x + (1 - s) ** 2 * output) / s,  # of −ε/(1 − s)
    }[kind]
    denoised = model.denoiser(sit.schedule(), kind)(x, 1 - s, label)
    np.testing.assert_allclose(denoised, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model(x, 1 - s, label), -output, rtol=1e-9, atol=1e-9)


def test_models_are_values_that_are_sampled_in_batches(tmp_path):
    model = model_of("SiT/tiny", tmp_path)
    assert model.shape == (8, 8, 4) and model.sizes.labels == 6
    denoiser = model.denoiser(sit.schedule())
    samples = dj.sample_many(
        jax.random.key(0),
        2,
        denoiser,
        sit.schedule(),
        solver=dj.solvers.heun(),
        grid=jnp.linspace(0.99, 0.01, 3),
        shape=model.shape,
        condition=jnp.array([5, 1]),
    )
    assert samples.shape == (2, 8, 8, 4) and np.isfinite(samples).all()


def test_half_precision_is_read_as_float32(tmp_path):
    tensors = {k: v.astype(jnp.bfloat16) for k, v in tensors_of("DiT/tiny").items()}
    files.write(tmp_path / "a.safetensors", tensors)
    params = dit.load(tmp_path / "a.safetensors", heads=2).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def without(name):
    return lambda t: t.pop(name)


def wrong(name, *shape):
    return lambda t: t.update({name: np.ones(shape, np.float32)})


DAMAGED = {
    "blocks.1.attn.qkv.bias": without("blocks.1.attn.qkv.bias"),
    "pos_embed with 3 axes": without("pos_embed"),
    "x_embedder.proj.weight with 4 axes": wrong("x_embedder.proj.weight", 16, 16),
    "blocks.0.attn.proj.weight": wrong("blocks.0.attn.proj.weight", 16, 17),
    "pos_embed": wrong("pos_embed", 1, 15, 16),
    "final_layer.linear.weight": wrong("final_layer.linear.weight", 31, 16),
    "unknown: blocks.0.attn.q_norm.weight": wrong("blocks.0.attn.q_norm.weight", 8),
    "missing: blocks.2": wrong("blocks.999999999.mlp.fc1.weight", 64, 16),
    "not of finite numbers: t_embedder.mlp.0.bias": lambda t: t[
        "t_embedder.mlp.0.bias"
    ].fill(np.nan),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_a_state_dict_of_another_network_raises_by_name(message, tmp_path):
    tensors = tensors_of("DiT/tiny")
    DAMAGED[message](tensors)
    files.write(tmp_path / "a.npz", tensors)
    with pytest.raises(ValueError, match=message):
        dit.load(tmp_path / "a.npz", heads=2)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "{}-M/2"}, "^name must be one of '{}-S/2', .*; got '{}-M/2'$"),
        ({"name": "XiT-S/2"}, "^name must be one of '{}-S/2', .*; got 'XiT-S/2'$"),
        ({"name": "{}-S/2"}, "^weights must be those of {}-S/2 of "),
        ({}, "^heads must be stated for a transformer of width 16"),
        ({"heads": 3}, r"^heads must divide the width"),
        ({"heads": 0}, "^heads must be at least 1, got 0"),
    ],
)
@pytest.mark.parametrize("kind", [dit.DiT, sit.SiT])
def test_sizes_that_are_not_those_of_the_file_raise(tmp_path, kind, settings, message):
    files.write(tmp_path / "a.npz", tensors_of("DiT/tiny"))
    if "name" in settings:
        settings = {"name": settings["name"].format(kind.__name__)}
    with pytest.raises(ValueError, match=message.replace("{}", kind.__name__)):
        kind.load(tmp_path / "a.npz", **settings)


@pytest.mark.parametrize("dtype", [jnp.int32, bool, "words"])
def test_parameters_are_of_a_floating_type(tmp_path, dtype):
    with pytest.raises(TypeError, match="^dtype must be a floating type, got "):
        model_of("DiT/tiny", tmp_path, dtype=dtype)


@pytest.mark.parametrize("make", [dj.schedules.vp_linear, dj.schedules.edm])
def test_dit_is_defined_on_chains_alone(tmp_path, make):
    model = model_of("DiT/tiny", tmp_path)
    with pytest.raises(TypeError, match=r"^schedule must be made by .*from_betas, got"):
        model.denoiser(make())


def test_an_input_of_another_kind_raises_by_name(tmp_path):
    model, x = model_of("DiT/tiny", tmp_path), jnp.ones((8, 8, 4))
    bad = {"x": (x[:4], 0, 0), "t": (x, jnp.zeros(1), 0), "label": (x, 0, jnp.zeros(1))}
    for name, arguments in bad.items():
        with pytest.raises(ValueError, match=rf"^{name} must have shape \("):
            model(*arguments)
    with pytest.raises(TypeError, match="^the dtype of x must be a floating type"):
        model(x.astype(jnp.uint8), 0, 0)
    with pytest.raises(TypeError, match="^the index of a class .* integer"):
        model(x, 0, 0.5)
    with pytest.raises(ValueError, match="^the index of a class .* got 6"):
        model(x, 0, 6)


@pytest.mark.parametrize("load", [dit.load, sit.load])
def test_published_files_are_pickles_and_not_read(tmp_path, load):
    (tmp_path / "XL-2-256x256.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"torch\.load.*save_file"):
        load(tmp_path / "XL-2-256x256.pt")
