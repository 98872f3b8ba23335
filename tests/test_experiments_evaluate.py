"""The evaluation of a trained folder at its smallest: its files, the meaning of its
numbers, its independence of devices, and its errors.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import metrics
from experiments.evaluate import __main__ as evaluate
from experiments.evaluate import features as networks
from experiments.evaluate.__main__ import Config
from experiments.score_sde import model as score_sde
from experiments.shared import datasets, files, measures, runs
from experiments.shared import training as shared_training

SMALL = Config(
    samples=14, steps=2, reference=40, groups=5, pairs=12, k=2, likelihood_steps=2
)
SMALL_FLAGS = """--samples 14 --steps 2 --reference 40 --groups 5 --pairs 12 --k 2
--likelihood-steps 2""".split()


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


def read_whole(data):
    raise AssertionError("all training examples were read into memory")


def test_a_folder_is_measured(trained, tmp_path, capsys, monkeypatch):
    """Figures and numbers appear, with held-out images and the exact expectations
    of memorisation beside the samples. Training images are read some at a time.
    """
    monkeypatch.setattr(datasets.Dataset, "train", property(read_whole))
    config = dataclasses.replace(
        SMALL, run=trained, out=tmp_path, bits=True, samples=16, likelihood_examples=3
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
    assert stored["test_examples_scored"] == 3
    (line,) = [
        line
        for line in capsys.readouterr().out.split("\n")
        if line.startswith("frechet_corrected ")
    ]
    assert line.endswith("  squared units of features")


def test_samples_depend_on_the_seed_and_their_index_alone(trained):
    """Not on the chunk or the number of samples. The test of eight devices is
    `test_eight_devices_measure_as_one`.
    """
    opened = runs.open_run(trained)
    assert opened.experiment == "score_sde"
    draws = [
        evaluate.draw(opened, dataclasses.replace(SMALL, chunk=chunk), count)
        for chunk, count in ((64, 9), (2, 7))
    ]
    np.testing.assert_array_equal(draws[0][:7], draws[1])
    assert set(np.unique(draws[0])) <= set(opened.model.data.levels)


@pytest.mark.slow
def test_eight_devices_measure_as_one(trained, tmp_path):
    """Images are the same, so that their distances are, and the score is to
    rounding.
    """
    results = {}
    for count in ("1", "8"):
        flags = "--xla_backend_optimization_level=0 "
        flags += "--xla_force_host_platform_device_count=8"
        command = [sys.executable, "-m", "experiments.evaluate", "--run", trained]
        command += ["--out", tmp_path / count, "--devices", count, "--bits"]
        done = subprocess.run(
            [*map(str, command), *SMALL_FLAGS],
            cwd=pathlib.Path(__file__).parents[1],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert f" on {count} × " in done.stdout.partition("\n")[0]
        results[count] = json.loads((tmp_path / count / "metrics.json").read_text())
    one, eight = results["1"], results["8"]
    # Samples are rounded to levels 0.5 apart, far above the errors of float32.
    assert one["sets"] == eight["sets"] and one["memorisation"] == eight["memorisation"]
    # About 100 additions of float32, each with an error of at most 2⁻²⁴.
    score = [r["test_bits_per_dim"] for r in (one, eight)]
    assert score[0] == pytest.approx(score[1], rel=100 * 2**-24)


def test_perfect_samples_are_at_distance_zero():
    """The corrected distance of fresh draws is within its errors, and the
    uncorrected one is not.

    Given the reference of m images, the corrected distance has the mean b, the
    distance of the reference itself. That is a sum of D + D(D + 1)/2 = 152
    squares with the mean `frechet_bias`, below twice of it by 8 deviations.
    Terms of order 1/n² are D/n = 0.04 of the bias of n images, a tenth of the
    bound.
    """
    rng, dimension = np.random.default_rng(0), 16
    train, samples = np.split(rng.normal(size=(20_400, dimension)), [20_000])
    reference = measures.reference_of(train, None, 0)
    row, _ = measures.distances(samples, reference, groups=10, pairs=100, k=3)
    exact = metrics.stated_moments(np.zeros(dimension), np.eye(dimension))
    of_reference = metrics.frechet_bias(reference.moments, exact)
    bound = 4 * row["frechet_standard_error"] + 2 * of_reference
    assert abs(row["frechet_corrected"]) < bound < row["frechet"]


def test_copies_are_seen_and_fresh_draws_are_not():
    """Fresh draws have z-scores of at most 4. Of n copies the z-scores follow from
    n, T and H alone: all are nearest to a training image, at distance 0.
    """
    rng = np.random.default_rng(0)
    train, held_out, samples = np.split(rng.normal(size=(600, 3)), [300, 450])
    reference = measures.reference_of(train, None, 0)
    for values in measures.memorisation(samples, reference, held_out).values():
        assert abs(values["z_score"]) < 4
    n, t, h = 150, 300, 150
    copies = measures.memorisation(train[:n], reference, held_out)
    assert all(values["value"] == 1 for values in copies.values())
    pool = t + h
    variance = n / pool * (1 - n / pool) * pool / (pool - 1)
    expected = {
        "nearest_share": h / pool * n / np.sqrt(t * h / pool * variance),
        "data_copying": 0.5 / np.sqrt((n + h + 1) / (12 * n * h)),
    }
    for name, z_score in expected.items():
        np.testing.assert_allclose(copies[name]["z_score"], z_score)


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
    signed = networks._of_images(network, data.limits, x)
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


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schedule": "nothing"}, "config.json is damaged .*'nothing'.*: run the"),
        ({"data_description": {}}, "config.json is damaged .*: run the experiment"),
        ({"width": 16}, "holds the parameters of another network .*: run the"),
    ],
)
def test_a_changed_config_is_named_with_its_cure(changes, message, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    stored = json.loads((trained / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored | changes))
    with pytest.raises(ValueError, match=message):
        runs.open_run(tmp_path / "run")


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
