"""The main job at its smallest: every file it promises, resuming, its numbers' meaning, and its errors."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import datasets, models, score_sde
from experiments.score_sde import Config
from tests.families import every

SMALL = Config(
    network="mlp", width=16, depth=1, steps=6, batch_size=16, save_every=3, samples=6, sde_steps=4, ode_steps=2,
    likelihood_steps=3, likelihood_examples=5, probes=2, chunk=4,
)  # fmt: skip


def small(out, **changes):
    return dataclasses.replace(SMALL, out=out, **changes)


def test_the_main_job_writes_what_it_promises_and_resumes(tmp_path, capsys):
    """Figures, metrics and checkpoints appear; a second run trains no further step and repeats every number."""
    config = small(tmp_path)
    first = score_sde.run(config)
    files = {path.name for path in tmp_path.iterdir()}
    assert files >= {
        "config.json",
        "metrics.json",
        "losses.json",
        "samples.png",
        "denoising.png",
        "neighbours.png",
        "loss.png",
    }
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["test_bits_per_dim"] == first["test_bits_per_dim"]
    assert len(json.loads((tmp_path / "losses.json").read_text())["loss"]) == 6
    capsys.readouterr()
    again = score_sde.run(config)
    assert "resuming after step 6" in capsys.readouterr().out
    same = [name for name in first if not name.startswith("seconds")]
    assert {name: first[name] for name in same} == {name: again[name] for name in same}
    with pytest.raises(ValueError, match="learning_rate"):
        score_sde.run(dataclasses.replace(config, learning_rate=0.5))
    assert json.loads((tmp_path / "config.json").read_text())["learning_rate"] == config.learning_rate


@pytest.mark.parametrize("schedule", every(score_sde.SCHEDULES, ("ve",)))
def test_every_schedule_trains_and_samples_a_toy(schedule, tmp_path):
    """The floor puts σ/α at t_min where the flag says, and by Gibbs' inequality no density scores the test set better
    than the exact one, but for the sampling error of the difference."""
    config = small(
        tmp_path, data="moons", schedule=schedule, noise_floor=0.05, likelihood_steps=64, likelihood_examples=64
    )
    model = score_sde.make_model(config, datasets.open_dataset("moons", 10, 0))
    t = model.schedule.t_min
    np.testing.assert_allclose(model.schedule.sigma(t) / model.schedule.alpha(t), 0.05, rtol=1e-3)
    results = score_sde.run(config)
    gap = results["test_nats_per_dim"] - results["exact_test_nats_per_dim"]
    assert gap > -4 * results["test_nats_per_dim_standard_error"]


def test_uniform_logits_score_uniform_data_at_its_entropy():
    """A categorical model with logits 0 is exact for independent uniform levels: its test score is log2(K) bits/dim, up
    to what a sixth of the spacing blurs (under 0.02 bits) and the flow's error."""
    rng = np.random.default_rng(0)
    levels = np.linspace(-1, 1, 5).astype(np.float32)
    images = levels[rng.integers(0, 5, (64, 4))]
    data = datasets.Dataset("uniform", images, images, levels, 0.0, 1.0)
    model = score_sde.make_model(SMALL, data)
    denoiser = model.denoiser(model.init(jax.random.key(0)))
    scores = models.score(jax.random.key(2), model, denoiser, images, 64, probes=4, chunk=64)
    assert abs(scores["test_bits_per_dim"] - np.log2(5)) < 0.02 + 4 * scores["test_bits_per_dim_standard_error"]


def test_baselines_on_data_of_known_entropy():
    """Histograms reach the entropy of independent entries, 1 bit for a fair coin, within the cost of estimating it."""
    images = np.random.default_rng(0).integers(0, 2, (4000, 8)).astype(np.float32) * 2 - 1
    data = datasets.Dataset("coins", images[:3000], images[3000:], np.array([-1.0, 1.0], np.float32), 0.0, 1.0)
    np.testing.assert_allclose(datasets.histogram_bits(data), 1.0, atol=1e-3)


def test_digits_are_split_as_promised():
    data = datasets.open_dataset("digits", 447, 0)
    assert data.train.shape == (1350, 8, 8, 1) and data.test.shape == (447, 8, 8, 1) and len(data.levels) == 17
    assert data.classes == 10 and np.bincount(data.train_labels).min() > 100
    assert data.train.min() == -1 and data.train.max() == 1 and data.spacing == 0.125
    again = datasets.open_dataset("digits", 447, 0)
    np.testing.assert_array_equal(data.test, again.test)


def test_files_of_ones_own(tmp_path):
    """8-bit images become a lattice on [−1, 1], real vectors are standardised."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "bytes.npy", rng.integers(0, 256, (40, 6, 6)).astype(np.uint8))
    np.savez(tmp_path / "vectors.npz", x=rng.normal(3, 2, (40, 5)), y=np.arange(40) % 3)
    images = datasets.open_dataset(str(tmp_path / "bytes.npy"), 10, 0)
    assert images.shape == (6, 6, 1) and len(images.levels) <= 256
    assert np.isclose(np.concatenate([images.train, images.test]).max(), 1) and len(images.test) == 10
    vectors = datasets.open_dataset(str(tmp_path / "vectors.npz"), 10, 0)
    assert vectors.classes == 3 and len(vectors.test_labels) == 10
    with pytest.raises(ValueError, match="data must have labels"):
        _ = images.classes
    assert vectors.levels is None and abs(vectors.train.std() - 1) < 1e-5 and abs(vectors.train.mean()) < 1e-5


def test_bad_input_is_named(tmp_path):
    np.save(tmp_path / "nan.npy", np.full((8, 4), np.nan))
    np.save(tmp_path / "flat.npy", np.ones(8))
    np.save(tmp_path / "constant.npy", np.ones((8, 4)))
    (tmp_path / "empty.npy").touch()
    cases = [
        (FileNotFoundError, "missing.npy", {"data": str(tmp_path / "missing.npy")}),
        (ValueError, "empty", {"data": str(tmp_path / "empty.npy")}),
        (ValueError, "NaN", {"data": str(tmp_path / "nan.npy")}),
        (ValueError, "rank 2", {"data": str(tmp_path / "flat.npy")}),
        (ValueError, "more than one value", {"data": str(tmp_path / "constant.npy")}),
        (ValueError, "data must be 'digits'", {"data": "cifar"}),
        (ValueError, "needs data on a lattice", {"data": "moons", "prediction": "levels"}),
        (ValueError, "needs images", {"data": "moons", "network": "dit"}),
        (ValueError, "steps must be at least 1, got 0", {"steps": 0}),
        (ValueError, "width must be", {"width": 0}),
        (ValueError, "likelihood_examples must be at least 2, got 1", {"likelihood_examples": 1}),
        (ValueError, "noise_floor must lie in", {"noise_floor": 3.0}),
        (ValueError, "learning_rate must be positive, got -1.0", {"learning_rate": -1.0}),
    ]
    for error, match, changes in cases:
        with pytest.raises(error, match=match):
            score_sde.run(small(tmp_path / "out", **changes))
