"""The chain's experiment at its smallest: every file it promises, its table's meaning, resuming, and its errors."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import datasets, ddpm
from experiments.ddpm import Config
from tests.families import assert_refused

SMALL = Config(
    network="mlp", width=16, depth=1, steps=4, batch_size=16, save_every=2, chain_steps=24, bound_examples=5,
    likelihood_steps=3, probes=2, samples=6, few_steps=4, chunk=4,
)  # fmt: skip


def test_the_experiment_writes_what_it_promises_and_resumes(tmp_path, capsys, monkeypatch):
    """Figures and metrics appear, terms add up to the total, and a second run trains no further and repeats it all."""
    monkeypatch.setattr(ddpm, "COMPARED", 3)
    config = dataclasses.replace(SMALL, out=tmp_path)
    first = ddpm.run(config)
    figures = {"loss", "bound", "rate_distortion", "samples", "progressive", "interpolation"}
    assert {path.stem for path in tmp_path.glob("*.png")} == figures
    for row in json.loads((tmp_path / "metrics.json").read_text())["bound"].values():
        parts = row["prior"] + row["denoising"] + row["reconstruction"]
        np.testing.assert_allclose(parts, row["total"], rtol=1e-5)
    assert {name: row["examples"] for name, row in first["bound"].items()} == {
        "optimal": 5,
        "posterior": 3,
        "forward": 3,
    }
    capsys.readouterr()
    again = ddpm.run(config)
    assert "resuming after step 4" in capsys.readouterr().out
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in again.items() if k != "seconds"}
    with pytest.raises(ValueError, match="chain_steps"):  # a checkpoint of another chain
        ddpm.run(dataclasses.replace(config, chain_steps=30))


def test_uniform_logits_bound_uniform_data_above_its_entropy():
    """A softmax with logits 0 is the exact denoiser of independent uniform levels: the bound on −log2 P is log2(K) bits
    a dimension or more, and by the gap that T steps of a diagonal Gaussian leave, under 0.1 bits here, for "optimal".
    """
    rng = np.random.default_rng(0)
    levels = np.linspace(-1, 1, 5).astype(np.float32)
    images = levels[rng.integers(0, 5, (64, 4))]
    data = datasets.Dataset("uniform", images, images, levels, 0.0, 1.0)
    config = dataclasses.replace(SMALL, chain_steps=1000, chunk=64)
    model = ddpm.make_model(config, data)
    params = jax.tree.map(np.zeros_like, model.init(jax.random.key(0)))
    found = ddpm.summary(config, model, ddpm.bounds(config, model, model.denoiser(params), "optimal", images))
    assert -4 * found["total_standard_error"] < found["total"] - np.log2(5) < 0.1 + 4 * found["total_standard_error"]


def test_indices_are_stratified():
    """Each of B strata of 1 … T has one index, whatever the shift."""
    for seed in range(8):
        found = np.sort(ddpm.stratified_indices(jax.random.key(seed), 10, 1000))
        np.testing.assert_array_equal((found - 1) // 100, np.arange(10))
    found = ddpm.stratified_indices(jax.random.key(0), 4096, 3)
    assert set(np.unique(found)) == {1, 2, 3}


REFUSED = {
    "variance": ({"prediction": "v"}, "variance 'optimal' needs prediction 'levels', got 'v'"),
    "hybrid": ({"objective": "hybrid", "variance": "posterior"}, "objective 'hybrid' trains a variance"),
    "data": ({"data": "moons"}, "data must be integers of at most 256 levels, moons is not"),
    "few steps": ({"few_steps": 25}, "few_steps must be between 2 and 24, got 25"),
    "chain": ({"chain_steps": 1}, "chain_steps must be at least 2, got 1"),
    "betas": ({"chain_steps": 12, "few_steps": 3}, r"last must lie in \(0, 1\), got 1.66"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name, tmp_path):
    changes, message = REFUSED[name]
    assert_refused(lambda: ddpm.run(dataclasses.replace(SMALL, out=tmp_path, **changes)), ValueError, message)
