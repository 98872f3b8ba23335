"""Checkpoints and networks of Song et al. 2021 against the outputs of their code.

`tests/golden/make_checkpoints_score_sde.py` describes the golden file and makes it.
"""

import functools
import json
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util

import diffjax as dj
from diffjax.interop.checkpoints import score_sde
from tests.golden.score_sde_rows import LARGE, ROWS, TIME, example, weights

FILE = pathlib.Path(__file__).parent / "golden" / "score_sde.npz"


@functools.cache
def golden():
    """The arrays of the file by key."""
    with np.load(FILE) as arrays:
        return dict(arrays)


def shapes_of(row):
    """Shape of each array as the authors' code has it."""
    stated = json.loads(str(golden()[f"{row}/arrays"]))
    return {name: tuple(shape) for name, shape in stated.items()}


def state_of(row, **changes):
    """A training state of the authors' code, by the names of its fields.

    Flax 0.3 has norms with parameters (1, 1, 1, C).
    """
    arrays = weights(shapes_of(row)) | changes
    arrays = {
        name: array.reshape(1, 1, 1, -1) if "GroupNorm" in name else array
        for name, array in arrays.items()
        if array is not None
    }
    params = traverse_util.unflatten_dict(arrays, sep=".")
    raw = jax.tree.map(np.zeros_like, params)
    return {
        "step": 7,
        "optimizer": {"target": raw, "state": {"step": 7, "param_states": {}}},
        "lr": 2e-4,
        "model_state": {},
        "ema_rate": 0.999,
        "params_ema": params,
        "rng": np.zeros(2, np.uint32),
    }


@functools.cache
def folder():
    """Rows' checkpoints, written once."""
    return {row: serialization.msgpack_serialize(state_of(row)) for row in ROWS}


def model_of(row, tmp_path, **settings):
    path = tmp_path / "checkpoint_1"
    path.write_bytes(folder()[row])
    return score_sde.load(path, ROWS[row], **settings)


def relative_error(value, expected):
    return np.abs(np.asarray(value) - expected).max() / np.abs(expected).max()


def label_of(row):
    return 37.5 if ROWS[row]["training"]["continuous"] else 37


@jax.jit
def evaluated(model, x, label, times):
    """The output at a label, and the denoised image at a time."""
    schedule = model.schedule
    denoised = model.denoiser(schedule)(x, times)
    return model(x, label), denoised, schedule.alpha(times), schedule.sigma(times)


FAST = ("ncsnpp/residual", "ddpm/vp")
MARKED = [
    row if row in FAST else pytest.param(row, marks=pytest.mark.slow) for row in ROWS
]


@pytest.mark.parametrize("row", MARKED)
def test_outputs_and_scores_in_float64_are_those_of_the_authors(row, x64, tmp_path):
    """score = (α D(x) − x)/σ² (Tweedie). A chain has its label 300 at index 301."""
    model = model_of(row, tmp_path)
    chain = isinstance(model.schedule, dj.schedules.DiscreteChain)
    ladder = isinstance(model.schedule, dj.schedules.NoiseLadder)
    time = 301 / 1000 if chain or ladder else TIME
    x = example(row, ROWS[row])
    output, denoised, alpha, sigma = evaluated(model, x, label_of(row), time)
    assert output.dtype == jnp.float64
    assert relative_error(output, golden()[f"{row}/output"]) <= 1e-11
    score = (alpha * denoised - x) / sigma**2
    assert relative_error(score, golden()[f"{row}/score"]) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_outputs_in_float32_are_those_of_the_authors_in_float64(row, tmp_path):
    model = model_of(row, tmp_path)
    output = jax.jit(model)(example(row, ROWS[row]), label_of(row))
    assert output.dtype == jnp.float32
    assert relative_error(output, golden()[f"{row}/output"]) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("row", LARGE)
def test_names_and_shapes_of_published_configurations_are_those_of_the_authors(row):
    text = score_sde._text(LARGE[row])
    flat = traverse_util.flatten_dict(score_sde._configured(text).params, sep=".")
    assert {name: leaf.shape for name, leaf in flat.items()} == shapes_of(row)


# -------------------------------------------------------------------- files

ROW = "ncsnpp/ve"


def written(tmp_path, state):
    path = tmp_path / "checkpoint_2"
    path.write_bytes(serialization.msgpack_serialize(state))
    return path


@functools.cache
def tiny_state():
    return state_of(ROW)


def test_the_parameters_are_those_of_the_place_that_is_named(tmp_path):
    path = written(tmp_path, tiny_state())
    raw = score_sde.load(path, ROWS[ROW], weights="target")
    assert all(not leaf.any() for leaf in jax.tree.leaves(raw.params))
    newer = written(tmp_path, {"params": {"params": tiny_state()["params_ema"]}})
    model = score_sde.load(newer, ROWS[ROW], weights="params", dtype=jnp.float16)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {
        np.dtype(np.float16)
    }


def test_a_model_is_a_value(tmp_path):
    model = score_sde.load(written(tmp_path, tiny_state()), ROWS[ROW])
    leaves, structure = jax.tree.flatten(model)
    assert jax.tree.unflatten(structure, leaves).config == model.config
    assert model.config["model"]["nf"] == ROWS[ROW]["model"]["nf"]
    assert isinstance(model.schedule, dj.schedules.VE)


@pytest.mark.slow
def test_a_new_model_has_the_shapes_of_the_authors():
    model = score_sde.initialised(jax.random.key(0), ROWS[ROW])
    flat = traverse_util.flatten_dict(model.params, sep=".")
    assert {name: leaf.shape for name, leaf in flat.items()} == shapes_of(ROW)


KERNEL = "ResnetBlockBigGANpp_0.Conv_0.kernel"
DAMAGED = {
    "missing": {KERNEL: None},
    "unknown": {"Conv_9.kernel": np.zeros((3, 3, 8, 8))},
    "shape": {KERNEL: np.zeros((3, 3, 8, 9))},
    "not finite": {KERNEL: np.full((3, 3, 8, 8), np.nan)},
}


@pytest.mark.parametrize("changes", DAMAGED.values(), ids=DAMAGED)
def test_arrays_that_are_not_those_of_the_network_raise_by_name(changes, tmp_path):
    path = written(tmp_path, state_of(ROW, **changes))
    with pytest.raises(ValueError, match=next(iter(changes)).replace(".", r"\.")):
        score_sde.load(path, ROWS[ROW])


def test_files_that_are_no_checkpoint_raise(tmp_path):
    whole = serialization.msgpack_serialize(tiny_state())
    contents = {
        whole[: len(whole) // 2]: "no Flax checkpoint",
        b"": "no Flax checkpoint",
        b"\x07": "no Flax checkpoint",
        serialization.msgpack_serialize({"params_ema": 1.0}): "missing",
        serialization.msgpack_serialize({"step": 1}): r"params_ema not in \['step'\]",
        pickle.dumps({"params_ema": {}}): "pickle",
        b"PK\x03\x04": "pickle",
    }
    for stored, message in contents.items():
        path = tmp_path / "checkpoint_3"
        path.write_bytes(stored)
        with pytest.raises(ValueError, match=message):
            score_sde.load(path, ROWS[ROW])
    with pytest.raises(FileNotFoundError, match="checkpoint_4"):
        score_sde.load(tmp_path / "checkpoint_4", ROWS[ROW])
    with pytest.raises(ValueError, match="weights"):
        score_sde.load(path, ROWS[ROW], weights="averages")


REFUSED = [
    ("model", {"name": "ncsnv2"}, "ncsnv2"),
    ("model", {"nf": "many"}, "nf"),
    ("model", {"ch_mult": []}, "ch_mult"),
    ("model", {"ch_mult": [1, 1, 1, 1, 1]}, "image_size"),
    ("model", {"attention_type": "linear"}, "attention_type"),
    ("model", {"normalization": "InstanceNorm++"}, "normalization"),
    ("model", {"nonlinearity": "gelu"}, "nonlinearity"),
    ("model", {"fir_kernel": []}, "fir_kernel"),
    ("model", {"progressive": "skip"}, "progressive"),
    ("model", {"skip_rescale": None}, "skip_rescale"),
    ("model", {"sigma_min": 60}, "sigma_min"),
    ("model", {"unheard_of": 1}, "unheard_of"),
    ("model", {"nf": 36, "ch_mult": [1, 4]}, "num_groups"),
    ("data", {"centered": 1}, "centered"),
    ("training", {"sde": "edm"}, "sde"),
    ("training", {"continuous": False}, "fourier"),
]


@pytest.mark.parametrize(("section", "change", "named"), REFUSED)
def test_options_that_are_not_supported_raise_by_name(section, change, named):
    config = ROWS[ROW] | {section: ROWS[ROW][section] | change}
    with pytest.raises(ValueError, match=named):
        score_sde.initialised(jax.random.key(0), config)


def test_sections_that_are_absent_or_no_mappings_raise_by_name():
    for config in ({"model": ROWS[ROW]["model"]}, ROWS[ROW] | {"data": 3}):
        with pytest.raises(ValueError, match="data"):
            score_sde.initialised(jax.random.key(0), config)


def test_schedules_and_images_of_another_kind_raise(tmp_path):
    model = score_sde.load(written(tmp_path, tiny_state()), ROWS[ROW])
    with pytest.raises(TypeError, match="schedule"):
        model.denoiser(dj.schedules.vp_linear())
    with pytest.raises(ValueError, match=r"x must have shape \(8, 8, 3\)"):
        model(jnp.zeros((2, 8, 8, 3)), 1.0)
