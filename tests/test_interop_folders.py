"""Folders of diffusers: configurations, tables of options, safetensors in parts,
state dicts by the names of modules. Damaged ones raise by name, with nothing loaded.
"""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file, save_file

from diffjax.interop import options, state_dicts
from diffjax.interop.diffusers import architectures, folder

STEM = "diffusion_pytorch_model"


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Conv(3, (3, 2), name="conv")(x)
        return nn.GroupNorm(1, name="norm")(h)


class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = Inner(name="blocks.0")(x)
        h = h + nn.Embed(5, 3, name="table")(jnp.asarray(2))
        return nn.Dense(4, name="out.0")(h)


INPUTS = (jax.ShapeDtypeStruct((4, 4, 2), jnp.float32),)

SHAPES = {
    "blocks.0.conv.weight": (3, 2, 3, 2),
    "blocks.0.conv.bias": (3,),
    "blocks.0.norm.weight": (3,),
    "blocks.0.norm.bias": (3,),
    "table.weight": (5, 3),
    "out.0.weight": (4, 3),
    "out.0.bias": (4,),
}
"""Of the tensors of the same network in torch."""


def state_dict(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=v).astype(dtype) for k, v in SHAPES.items()}


def from_tensors(tensors, dtype=None):
    like = state_dicts.shapes(Outer(), INPUTS)
    return state_dicts.from_tensors(tensors, like, "Outer", dtype)


def test_names_and_shapes_are_those_of_torch():
    assert state_dicts.tensor_shapes(state_dicts.shapes(Outer(), INPUTS)) == SHAPES


def test_a_state_dict_comes_back_and_its_layers_are_those_of_torch():
    """Row o, i of a dense weight and entry o, i, a, b of a convolution's multiply
    input i: one unit vector in, one column out.
    """
    tensors = state_dict()
    params = from_tensors(tensors)
    back = state_dicts.to_tensors(params)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)
    out = nn.Dense(4).apply({"params": params["out.0"]}, jnp.array([0.0, 1, 0]))
    expected = tensors["out.0.weight"][:, 1] + tensors["out.0.bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    x = np.zeros((3, 2, 2), np.float32)
    x[1, 0, 1] = 1  # the middle row, the first of two columns
    kernel = params["blocks.0"]["conv"]
    out = nn.Conv(3, (3, 2), padding="VALID").apply({"params": kernel}, x)[0, 0]
    weight = tensors["blocks.0.conv.weight"][:, 1, 1, 0]
    np.testing.assert_allclose(out, weight + tensors["blocks.0.conv.bias"], rtol=1e-6)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_parameters_are_float32_unless_a_dtype_is_named(stored):
    params = from_tensors(state_dict(stored))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    half = from_tensors(state_dict(stored), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype("bfloat16")}


def test_old_names_of_attention_are_todays():
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            heads = [nn.Dense(2, name=f"a.to_{k}")(x) for k in "qkv"]
            return nn.Dense(2, name="a.to_out.0")(sum(heads))

    like = state_dicts.shapes(Attention(), (jax.ShapeDtypeStruct((2,), jnp.float32),))
    new = {
        k: np.ones(v, np.float32) for k, v in state_dicts.tensor_shapes(like).items()
    }
    old = {
        k.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out.0", "proj_attn"): v
        for k, v in new.items()
    }
    assert old.keys() != new.keys()
    equal = jax.tree.map(
        np.array_equal,
        state_dicts.from_tensors(old, like, "attention"),
        state_dicts.from_tensors(new, like, "attention"),
    )
    assert jax.tree.all(equal)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("table.weight"), "missing: table.weight"),
        (lambda t: t.update(extra=np.ones(1, np.float32)), "unknown: extra"),
        (
            lambda t: t.update({"out.0.bias": np.ones(3, np.float32)}),
            r"of another shape: out.0.bias \(3,\) for \(4,\)",
        ),
        (
            lambda t: t.update({"out.0.bias": np.full(4, np.nan, np.float32)}),
            "not of finite numbers: out.0.bias",
        ),
        # The numbers of a quantised model mean nothing without their scales.
        (
            lambda t: t.update({"out.0.bias": np.ones(4, np.int8)}),
            "not of finite numbers: out.0.bias",
        ),
    ],
)
def test_tensors_that_do_not_fit_raise_by_name(change, message):
    tensors = state_dict()
    change(tensors)
    with pytest.raises(ValueError, match=f"must be those of Outer.*{message}"):
        from_tensors(tensors)


# -------------------------------------------------------------------- files


def test_whole_files_parts_and_variants_hold_the_same_tensors(tmp_path):
    tensors = state_dict()
    folder.write_tensors(tmp_path / "whole", tensors)
    save_file(tensors, write(tmp_path / "v" / f"{STEM}.fp16.safetensors"))
    names = list(tensors)
    parts = {
        name: f"{STEM}-0000{1 + i % 2}-of-00002.safetensors"
        for i, name in enumerate(names)
    }
    for part in set(parts.values()):
        path = write(tmp_path / "parts" / part)
        save_file({n: tensors[n] for n in names if parts[n] == part}, path)
    index = tmp_path / "parts" / f"{STEM}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    for read in (
        folder.read_tensors(tmp_path / "whole"),
        folder.read_tensors(tmp_path / "v", "fp16"),
        folder.read_tensors(tmp_path / "parts"),
    ):
        assert read.keys() == tensors.keys()
        for name in tensors:
            np.testing.assert_array_equal(read[name], tensors[name])
    # A whole file takes the place of the parts, and of variants.
    for earlier in ("parts", "v"):
        folder.write_tensors(tmp_path / earlier, {"one": np.zeros(1, np.float32)})
        names = [path.name for path in (tmp_path / earlier).iterdir()]
        assert names == [f"{STEM}.safetensors"]
    assert list(load_file(tmp_path / "parts" / f"{STEM}.safetensors")) == ["one"]


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_damaged_files_raise_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no such folder"):
        folder.read_config(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not a JSON file"):
        folder.read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="JSON object with a string _class_name"):
        folder.read_config(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"{STEM}.safetensors does not exist"):
        folder.read_tensors(tmp_path)
    (tmp_path / f"{STEM}.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="Pickles can run any code.*save_file"):
        folder.read_tensors(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "config.json").rename(tmp_path / "unet" / "config.json")
    with pytest.raises(FileNotFoundError, match=r"a pipeline's folder.*\['unet'\]"):
        folder.read_config(tmp_path)
    folder.write_tensors(tmp_path, state_dict())
    whole = tmp_path / f"{STEM}.safetensors"
    whole.write_bytes(whole.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        folder.read_tensors(tmp_path)


@pytest.mark.parametrize(
    "index, error, message",
    [
        ("{}", ValueError, "is not an index of parts"),
        ('{"weight_map": {"a": "b.safetensors"}}', FileNotFoundError, "are missing"),
        ('{"weight_map": {"a": "../b.safetensors"}}', ValueError, "outside of"),
        ('{"weight_map": {"a": "part.safetensors"}}', ValueError, r"lack: \['a'\]"),
    ],
)
def test_a_wrong_index_raises(tmp_path, index, error, message):
    save_file({"b": np.zeros(1, np.float32)}, tmp_path / "part.safetensors")
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(index)
    with pytest.raises(error, match=message):
        folder.read_tensors(tmp_path)


# -------------------------------------------------------------------- options

TABLE = {
    "size": options.optional(options.positive_integer(None)),
    "width": options.one_or_list(options.positive_integer(4)),
    "kind": options.choice("a", "b", None),
    "kinds": options.list_of_choices(("x",), "x", "y"),
    "on": options.flag(False),
    "epsilon": options.number(1e-5, above=0),
    "fixed": options.only(None),
    "free": options.ignored(),
}
RULES = (options.Rule(lambda o: o["width"] != 5, "width must not be 5, got {width}"),)


def read(**config):
    return options.read(config, "Net", TABLE, RULES)


def test_options_have_defaults_and_lists_become_tuples():
    values = read(_class_name="Net", width=[1, 2], kinds=["y", "x"], size=None)
    assert values["width"] == (1, 2) and values["kinds"] == ("y", "x")
    assert values["kind"] == "a" and "_class_name" not in values


@pytest.mark.parametrize(
    "config, message",
    [
        ({"other": 1}, "the option other = 1 is unknown"),
        ({"width": 0}, "width must be an integer of at least 1, or a list"),
        ({"width": []}, "width must be"),
        ({"width": True}, "width must be"),
        ({"width": 2.0}, "width must be"),
        ({"kind": "c"}, 'kind must be "a" or "b" or null, got "c"'),
        ({"kinds": ["x", "z"]}, 'kinds must be a list of "x", "y"'),
        ({"kinds": "x"}, "kinds must be"),
        ({"on": 1}, "on must be true or false, got 1"),
        ({"on": None}, "on must be"),
        ({"epsilon": 0}, "epsilon must be a finite number greater than 0"),
        ({"epsilon": float("nan")}, "epsilon must be"),
        ({"fixed": 3}, "fixed must be null, got 3"),
        ({"width": 5}, "width must not be 5, got 5"),
    ],
)
def test_options_that_are_not_supported_raise_by_name(config, message):
    with pytest.raises(ValueError, match=f"configuration of Net.*{message}"):
        read(**config)


def test_all_faults_are_named_at_once():
    with pytest.raises(ValueError, match="fixed must be null.*on must be true"):
        read(fixed=1, on=2)


@pytest.mark.parametrize("name", [["DiTTransformer2DModel"], {}, 3, None])
def test_a_class_that_is_no_string_raises_by_name(name):
    with pytest.raises(ValueError, match="_class_name must be one of"):
        architectures.configured(json.dumps({"_class_name": name}))


def test_a_deeply_nested_configuration_raises_by_name(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is not a JSON file"):
        folder.read_config(tmp_path)


def test_interrupted_writing_leaves_no_configuration_of_another_model(tmp_path):
    folder.write_config(tmp_path, {"_class_name": "Earlier"})
    folder.write_tensors(tmp_path, {"weight": np.zeros(2, np.float32)})
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        folder.read_config(tmp_path)
