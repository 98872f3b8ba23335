"""Checkpoints and networks of Song et al. 2021 against the outputs of their code.

`tests/golden/make_checkpoints_score_sde.py` describes the golden file and makes it.
"""

import functools
import json
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util

import diffjax as dj
from diffjax.interop.checkpoints import score_sde
from tests.golden import reading
from tests.golden.score_sde_rows import (
    DDPMPP,
    FOURIER,
    LARGE,
    ROWS,
    TIME,
    VE,
    config,
    discrete,
    example,
    weights,
)

golden = functools.partial(reading.golden, "score_sde")


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


FAST = ("ncsnpp/residual",)
MARKED = [
    row if row in FAST else pytest.param(row, marks=pytest.mark.slow) for row in ROWS
]


@pytest.mark.parametrize("row", MARKED)
def test_outputs_and_scores_in_float64_are_those_of_the_authors(row, x64, tmp_path):
    """score = (α D(x) − x)/σ² (Tweedie). A chain has its label 300 at index 301.

    A thousand roundings of float64 are 2e-13 of each output. The score is the small
    difference of two images, and its label has passed through t.
    """
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
    """A thousand roundings of float32 are 1e-4 of each output."""
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
    newer = score_sde.load(written(tmp_path, tiny_state()), ROWS[ROW], weights="target")
    traces = []
    traced = jax.jit(lambda model: traces.append(1) or model.params)
    traced(model), traced(newer)
    assert len(traces) == 1
    assert model.config["model"]["nf"] == ROWS[ROW]["model"]["nf"]
    assert isinstance(model.schedule, dj.schedules.VE)


@pytest.mark.slow
def test_a_new_model_has_the_shapes_of_the_authors():
    model = score_sde.initialised(jax.random.key(0), ROWS[ROW])
    flat = traverse_util.flatten_dict(model.params, sep=".")
    assert {name: leaf.shape for name, leaf in flat.items()} == shapes_of(ROW)


SMALLEST = {"nf": 4, "ch_mult": [1], "attn_resolutions": []}


def test_labels_are_not_rounded_to_the_dtype_of_images():
    """bfloat16 has no 997, and 996 would change the output by 4 %.

    It rounds by up to 2⁻⁹. A path through the network has some eight roundings.
    """
    settings = DDPMPP | SMALLEST | {"scale_by_sigma": True}
    text = score_sde._text(config(settings, discrete(VE), side=4))
    like = traverse_util.flatten_dict(score_sde._configured(text).params, sep=".")
    arrays = weights({name: leaf.shape for name, leaf in like.items()})
    params = {name: array.astype(np.float32) for name, array in arrays.items()}
    model = score_sde.ScoreModel(
        traverse_util.unflatten_dict(params, sep="."), config_json=text
    )
    x = jax.random.normal(jax.random.key(1), (4, 4, 3), jnp.bfloat16)
    rounded = jax.jit(model)(x, 997)
    exact = jax.jit(model)(x.astype(jnp.float32), 997)
    assert rounded.dtype == jnp.bfloat16
    assert relative_error(rounded.astype(jnp.float32), exact) <= 8 * 2**-9


def test_fourier_frequencies_have_the_scale_that_is_stated_and_are_not_trained():
    name = "GaussianFourierProjection_0"
    x = jnp.ones((4, 4, 3))

    def stored(scale):
        settings = FOURIER | SMALLEST | {"fourier_scale": scale}
        text = score_sde._text(config(settings, VE, side=4))
        network = score_sde._configured(text).network

        @jax.jit  # without the layers that do not affect the results
        def of(key):
            params = network.init(key, x, 2.0)["params"]

            def loss(frequencies):
                changed = params | {name: {"W": frequencies}}
                return (network.apply({"params": changed}, x, 2.0) ** 2).sum()

            return params[name]["W"], jax.grad(loss)(params[name]["W"])

        return of(jax.random.key(0))

    (narrow, gradient), (wide, _) = stored(4), stored(16)
    np.testing.assert_array_equal(4 * narrow, wide)
    assert not gradient.any() and narrow.all()


KERNEL = "ResnetBlockBigGANpp_0.Conv_0.kernel"
DAMAGED = {
    f"missing: {KERNEL}. ": {KERNEL: None},
    "unknown: Conv_9.kernel. ": {"Conv_9.kernel": np.zeros((3, 3, 8, 8))},
    f"of another shape: {KERNEL} (3, 3, 8, 9) for (3, 3, 8, 8). ": {
        KERNEL: np.zeros((3, 3, 8, 9))
    },
    f"not of finite numbers: {KERNEL}. ": {KERNEL: np.full((3, 3, 8, 8), np.nan)},
}


@pytest.mark.parametrize("message", DAMAGED)
def test_arrays_that_are_not_those_of_the_network_raise_by_name(message, tmp_path):
    path = written(tmp_path, state_of(ROW, **DAMAGED[message]))
    with pytest.raises(ValueError, match=re.escape(message)):
        score_sde.load(path, ROWS[ROW])


def test_files_that_are_no_checkpoint_raise(tmp_path):
    whole = serialization.msgpack_serialize(tiny_state())
    contents = {
        whole[: len(whole) // 2]: "is not a Flax checkpoint",
        b"": "is not a Flax checkpoint",
        b"\x07": "is not a Flax checkpoint of a dict",
        serialization.msgpack_serialize({"params_ema": 1.0}): "missing: ",
        serialization.msgpack_serialize({"step": 1}): r"params_ema not in \['step'\]",
        serialization.msgpack_serialize({}): r"params_ema not in \[\]",
        b"PK\x03\x04": "is a file of torch or a pickle",
    }
    contents |= {
        pickle.dumps({"params_ema": {}}, protocol): "is a file of torch or a pickle"
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    }
    for stored, message in contents.items():
        path = tmp_path / "checkpoint_3"
        path.write_bytes(stored)
        with pytest.raises(ValueError, match=message):
            score_sde.load(path, ROWS[ROW])
    with pytest.raises(FileNotFoundError, match="checkpoint_4"):
        score_sde.load(tmp_path / "checkpoint_4", ROWS[ROW])
    with pytest.raises(ValueError, match="^weights must be one of 'params_ema'"):
        score_sde.load(path, ROWS[ROW], weights="averages")
    with pytest.raises(TypeError, match="^dtype must be a floating type, got int32"):
        score_sde.load(path, ROWS[ROW], dtype=jnp.int32)


UNSUPPORTED = [
    ("model", {"name": "ncsnv2"}, "model.name must be one of"),
    ("model", {"nf": "many"}, "nf must be an integer"),
    ("model", {"ch_mult": []}, "ch_mult is empty"),
    ("model", {"ch_mult": [1, 1, 1, 1, 1]}, "image_size = 8 cannot be halved"),
    ("model", {"attention_type": "linear"}, "attention_type must be"),
    ("model", {"normalization": "InstanceNorm++"}, "normalization must be"),
    ("model", {"nonlinearity": "gelu"}, "nonlinearity must be"),
    ("model", {"fir_kernel": []}, "fir_kernel is empty"),
    ("model", {"fourier_scale": 0}, "fourier_scale must be a finite number greater"),
    ("model", {"progressive": "skip"}, "progressive must be"),
    ("model", {"skip_rescale": None}, r"does not state \['skip_rescale'\]"),
    ("model", {"sigma_min": 60}, "sigma_min < sigma_max"),
    ("model", {"unheard_of": 1}, "the option unheard_of = 1 is unknown"),
    ("model", {"unheard_of": {1, 2}}, r"config must hold .*, got {1, 2}"),
    ("model", {"nf": 36, "ch_mult": [1, 4]}, "num_groups"),
    ("data", {"centered": 1}, "centered must be"),
    ("training", {"sde": "edm"}, "sde must be"),
    ("training", {"continuous": False}, '"fourier" needs continuous = true'),
]


@pytest.mark.parametrize(("section", "change", "message"), UNSUPPORTED)
def test_options_that_are_not_supported_raise_by_name(section, change, message):
    stated = ROWS[ROW] | {section: ROWS[ROW][section] | change}
    with pytest.raises(ValueError, match=rf"(^|\W){message}"):
        score_sde.initialised(jax.random.key(0), stated)


def test_sections_that_are_absent_or_no_mappings_raise_by_name():
    for stated in ({"model": ROWS[ROW]["model"]}, ROWS[ROW] | {"data": 3}):
        with pytest.raises(ValueError, match=r"^config must have \['data'"):
            score_sde.initialised(jax.random.key(0), stated)


def test_a_configuration_may_hold_numbers_of_numpy():
    model = ROWS[ROW]["model"] | {
        "nf": np.int64(8),
        "ch_mult": np.array([1, 2]),
        "sigma_max": np.float32(50),
    }
    stated, plain = (ROWS[ROW] | {"model": model}), ROWS[ROW]
    assert json.loads(score_sde._text(stated)) == json.loads(score_sde._text(plain))


def test_schedules_and_images_of_another_kind_raise(tmp_path):
    model = score_sde.load(written(tmp_path, tiny_state()), ROWS[ROW])
    with pytest.raises(TypeError, match="^schedule must be made by schedules.ve, edm"):
        model.denoiser(dj.schedules.vp_linear())
    x = jnp.zeros((8, 8, 3))
    with pytest.raises(ValueError, match=r"^x must have shape \(8, 8, 3\)"):
        model(x[None], 1.0)
    with pytest.raises(ValueError, match=r"^label must have shape \(\), got \(3,\)"):
        model(x, jnp.ones(3))
    with pytest.raises(TypeError, match="^the dtype of x must be a floating type"):
        model(x.astype(jnp.uint8), 1.0)
