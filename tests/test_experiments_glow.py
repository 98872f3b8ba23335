"""The Glow experiment at its smallest: its files, the meaning of its numbers,
resuming, and its errors.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.glow import __main__ as glow
from experiments.shared import datasets
from tests.families import assert_raises

SMALL = glow.Config(
    levels=2,
    flow_steps=1,
    width=8,
    dequantiser_layers=2,
    steps=4,
    batch_size=16,
    save_every=2,
    held_out=12,
    draws=2,
    samples=64,
    chunk=6,
)


@pytest.mark.slow
@pytest.mark.parametrize("network", glow.NETWORKS)
def test_the_experiment_writes_what_it_promises(network, tmp_path):
    """Figures and metrics appear, and more draws give a tighter bound (Jensen).
    Checkpoints of another flow raise ValueError.
    """
    config = dataclasses.replace(SMALL, out=tmp_path, network=network)
    glow.run(config)
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        "loss",
        "samples",
        "interpolation",
    }
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert set(stored["frechet_distance"]) == {"0.5", "0.7", "1.0"}
    for row in (stored["test"], stored["train"]):
        assert row["bits_per_dim_importance_weighted"] < row["bits_per_dim"] < np.inf
    with pytest.raises(ValueError, match="levels"):  # a checkpoint of another flow
        glow.run(dataclasses.replace(config, levels=1))


def test_replaced_entries_are_of_the_share_and_of_the_levels():
    """Of N entries Np are drawn anew, within 4.5 standard deviations, each level
    equally. A share of 0 changes nothing.
    """
    levels = np.arange(17.0)
    x = np.full((200, 100), 20.0)
    measured = np.asarray(datasets.with_replaced(jax.random.key(0), x, 0.1, levels))
    drawn = measured[measured != 20]
    assert abs(drawn.size - 2000) < 4.5 * np.sqrt(20000 * 0.1 * 0.9)
    counts = np.bincount(drawn.astype(int), minlength=17)
    assert np.all(np.abs(counts - drawn.size / 17) < 4.5 * np.sqrt(drawn.size / 17))
    np.testing.assert_array_equal(
        datasets.with_replaced(jax.random.key(0), x, 0.0, levels), x
    )


ERRORS = {
    "replaced": ({"replaced": 1.5}, r"replaced must lie in \[0.0, 1.0\], got 1.5"),
    "levels": (
        {"levels": 4},
        r"levels must be such that 2\^levels divides the sides of \(8, 8, 1\), got 4",
    ),
    "data": (
        {"data": "reals.npy"},
        "data must be images of integers of at most 256 levels, .* is not",
    ),
    "one test example": ({"held_out": 1}, "held_out must be at least 2, got 1"),
    "no test example": ({"held_out": 0}, "held_out must be at least 1, got 0"),
    "network": (
        {"network": "convolution"},
        "network must be one of 'convolutional', 'dense'; got 'convolution'",
    ),
    "dequantisation": (
        {"dequantisation": "none"},
        "dequantisation must be one of 'variational', 'uniform'; got 'none'",
    ),
    "dequantiser": (
        {"dequantiser_layers": 3},
        "dequantiser_layers must be even, got 3",
    ),
    "samples": ({"samples": 1}, "samples must be at least 2, got 1"),
    "width": ({"width": 0}, "width must be at least 1, got 0"),
}


def test_a_file_that_leaves_one_test_example_raises_before_training(tmp_path):
    """One example has neither a standard error nor a distance. Four examples
    leave a quarter, which is one.
    """
    np.save(tmp_path / "few.npy", np.arange(64).reshape(4, 4, 4))
    config = dataclasses.replace(
        SMALL, out=tmp_path / "out", data=str(tmp_path / "few.npy")
    )
    assert_raises(
        lambda: glow.run(config),
        ValueError,
        (
            r"held_out must be at least 2, got 1 .*few.npy at most, which must hold 8 "
            r"examples"
        ),
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name, tmp_path):
    changes, message = ERRORS[name]
    np.save(tmp_path / "reals.npy", np.linspace(0, 1, 64).reshape(8, 8))
    if "data" in changes:
        changes = {"data": str(tmp_path / changes["data"])}
    assert_raises(
        lambda: glow.run(dataclasses.replace(SMALL, out=tmp_path / "out", **changes)),
        ValueError,
        message,
    )
