"""Checkpoints and networks of Song et al. 2021 against the outputs of their code.

`tests/golden/make_checkpoints_score_sde.py` describes the golden file and makes it.
"""

import functools
import json
import pathlib

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
    flat = traverse_util.flatten_dict(score_sde._parameter_shapes(text), sep=".")
    assert {name: leaf.shape for name, leaf in flat.items()} == shapes_of(row)
