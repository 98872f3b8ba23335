"""The evaluation of a trained folder at its smallest: its files, the meaning of its
numbers, its independence of devices, and its errors.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import metrics, training
from experiments.evaluate import __main__ as evaluate
from experiments.evaluate import features as networks
from experiments.evaluate import measures
from experiments.evaluate.__main__ import Config
from experiments.evaluate.chunks import over_devices
from experiments.score_sde import model as score_sde
from experiments.shared import datasets, files, runs
from experiments.shared import training as shared_training

SMALL = Config(
    samples=14, steps=2, reference=40, groups=5, pairs=12, k=2, likelihood_steps=2
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny network on images of 4 × 4 as `score_sde` leaves one, after two steps
    of a loss whose gradient is 0.
    """
    folder = tmp_path_factory.mktemp("run")
    images = np.random.default_rng(0).integers(0, 5, (60, 4, 4)).astype(np.uint8)
    np.save(folder / "images.npy", images)
    config = score_sde.Config(
        out=folder / "out",
        data=str(folder / "images.npy"),
        network="mlp",
        width=8,
        depth=0,
        steps=2,
        batch_size=8,
        save_every=1,
    )
    data = datasets.open_dataset(config.data, config.held_out, config.seed)
    model = score_sde.make_model(config, data)
    shared_training.fit(
        config,
        files.open_folder(config),
        lambda params, key, batch: jnp.zeros(()),
        model.init,
        arrays=data.train,
        about={score_sde.DESCRIPTION: datasets.describe(data)},
    )
    return config.out


def test_a_folder_is_measured(trained, tmp_path, capsys):
    """Figures and numbers appear, with held-out images and the exact expectations
    of memorisation beside the samples.
    """
    config = dataclasses.replace(
        SMALL, run=trained, out=tmp_path, bits=True, samples=16
    )
    results = evaluate.run(config)
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert {p.name for p in tmp_path.iterdir()} >= {
        *("samples.png", "neighbours.png", "frechet.png", "config.json")
    }
    sets = stored["sets"]
    assert list(sets) == ["samples", "15 samples", "held-out"]
    assert [row["images"] for row in sets.values()] == [16, 15, 15]
    for row in sets.values():
        assert row["frechet_slope"] > 0 and 0 <= row["coverage"] <= 1
    assert stored["memorisation"]["nearest_share"]["expected"] == 40 / 55
    assert stored["memorisation"]["data_copying"]["expected"] == 0.5
    assert stored["test_bits_per_dim"] == results["test_bits_per_dim"] > 0
    assert "frechet_corrected" in capsys.readouterr().out


def test_samples_depend_on_the_seed_and_their_index_alone(trained):
    opened = runs.open_run(trained)
    assert opened.experiment == "score_sde"
    draws = []
    for chunk, count, devices in ((64, 9, 1), (2, 7, None)):
        mesh = training.data_mesh(jax.devices()[:devices])
        config = dataclasses.replace(SMALL, chunk=chunk)
        draws.append(evaluate.draw(opened, config, count, mesh))
    np.testing.assert_array_equal(draws[0][:7], draws[1])
    assert set(np.unique(draws[0])) <= set(opened.model.data.levels)


def test_every_example_is_mapped_once_in_order():
    for devices in (1, None):
        mesh = training.data_mesh(jax.devices()[:devices])
        doubled = over_devices(
            lambda factor, batch: factor * batch,
            jnp.float32(2),
            np.arange(11.0, dtype=np.float32),
            chunk=2,
            mesh=mesh,
            label="",
        )
        np.testing.assert_array_equal(doubled, 2 * np.arange(11))


def test_perfect_samples_are_at_distance_zero_and_copies_are_seen():
    """Fresh draws have a corrected distance and z-scores of 0 within 4 deviations."""
    rng = np.random.default_rng(0)
    train, held_out, samples = np.split(rng.normal(size=(600, 3)), [300, 450])
    reference = measures.reference_of(train, None, 0)
    row, _ = measures.distances(samples, reference, groups=10, pairs=100, k=3)
    # the reference is fixed: its own sampling bias, 2 D/n by chance, stays
    error = 4 * row["frechet_standard_error"] + metrics.frechet_bias(
        reference.moments, metrics.stated_moments(np.zeros(3), np.eye(3))
    )
    assert abs(row["frechet_corrected"]) < error
    for values in measures.memorisation(samples, reference, held_out).values():
        assert abs(values["z_score"]) < 4
    for values in measures.memorisation(train[:150], reference, held_out).values():
        assert values["z_score"] > 4 and values["value"] == 1


def test_stored_order_does_not_matter():
    """Held-out examples sorted by ten classes are at distance 0 too, within 4
    standard errors and the bias of the fixed reference.
    """
    rng = np.random.default_rng(0)
    classes = lambda n: np.repeat(np.arange(10.0), n)[:, None] + np.zeros(3)
    train = classes(100) + rng.normal(size=(1000, 3))
    held_out = classes(40) + rng.normal(size=(400, 3))
    reference = measures.reference_of(rng.permutation(train), None, 0)
    row, _ = measures.distances(held_out, reference, groups=10, pairs=100, k=3)
    exact = metrics.stated_moments(reference.moments.mean, reference.moments.covariance)
    error = 4 * row["frechet_standard_error"] + metrics.frechet_bias(
        reference.moments, exact
    )
    assert abs(row["frechet_corrected"]) < error
    assert row["precision"] > 0.8


def test_principal_components_are_those_of_largest_variance():
    scales = np.array([1e-3, 5.0, 2.0, 1e-3])
    features = np.random.default_rng(0).normal(size=(400, 4)) * scales
    reference = measures.reference_of(features, 2, 0)
    spread = np.sort(np.diag(reference.moments.covariance))
    np.testing.assert_allclose(spread, [4, 25], rtol=4 * np.sqrt(2 / 400))


def test_images_of_other_data_span_what_training_images_span():
    x = np.linspace(-2, 3, 12, dtype=np.float32).reshape(3, 2, 2, 1)
    data = datasets.Dataset("x", x, x, None, 0.0, 1.0)
    network = jax.tree_util.Partial(lambda images: images)
    signed = networks._of_images(network, networks.limits(data), x)
    np.testing.assert_allclose(
        signed, np.linspace(-1, 1, 12).reshape(x.shape), atol=1e-6
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"solver": "hein"}, "solver must be one of"),
        ({"samples": 9}, "samples must be at least 10, got 9"),
        ({"groups": 4}, "groups must be at least 5, got 4"),
        ({"devices": 10**6}, "devices must be at most"),
        ({"groups": 8, "samples": 16, "reference": 20, "pairs": 20}, "run must have"),
        ({"weights": "x.npz"}, "weights must be left out for pixels"),
        ({"features": "inception"}, "weights must name the file"),
    ],
)
def test_flags_that_cannot_be_used_raise_before_samples_are_drawn(
    changes, message, trained, tmp_path, monkeypatch
):
    def draw(*_):
        raise AssertionError("samples were drawn")

    monkeypatch.setattr(evaluate, "draw", draw)
    config = dataclasses.replace(SMALL, run=trained, out=tmp_path / "out", **changes)
    with pytest.raises(ValueError, match=message):
        evaluate.run(config)
    assert not (tmp_path / "out").exists()


def test_the_config_of_the_run_is_not_overwritten(trained):
    before = (trained / "config.json").read_bytes()
    with pytest.raises(ValueError, match="out must not be the folder of a trained run"):
        evaluate.run(dataclasses.replace(SMALL, run=trained, out=trained))
    assert (trained / "config.json").read_bytes() == before


def test_networks_are_loaded_from_files_that_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "net.pth").write_bytes(b"")
    data = datasets.open_dataset("digits", 447, 0)
    with pytest.raises(ValueError, match="weights cannot be read: .*convert the file"):
        networks.extractor("inception", tmp_path / "net.pth", data)
    toy = datasets.open_dataset("moons", 447, 0)
    with pytest.raises(ValueError, match="are no images"):
        networks.extractor("dinov2", tmp_path / "net.pth", toy)


def test_a_folder_must_name_an_experiment_with_a_loader(trained, tmp_path):
    with pytest.raises(FileNotFoundError):
        runs.open_run(tmp_path)
    stored = json.loads((trained / "config.json").read_text())
    for name in ("nowhere", "langevin", "../x", 3):
        (tmp_path / "config.json").write_text(json.dumps(stored | {"experiment": name}))
        with pytest.raises(ValueError, match="must name an experiment whose model"):
            runs.open_run(tmp_path)
