"""The chain's experiment at its smallest: its files, the meaning of its table,
resuming, and its errors.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from experiments.ddpm import __main__ as ddpm
from experiments.ddpm import bounds as ddpm_bounds
from experiments.ddpm import exact as ddpm_exact
from experiments.ddpm import samples as ddpm_samples
from experiments.ddpm.config import Config
from experiments.ddpm.model import make_model, stratified_indices
from experiments.shared import datasets, scoring
from tests.families import assert_raises

SMALL = Config(
    network="mlp",
    width=16,
    depth=1,
    steps=4,
    batch_size=16,
    save_every=2,
    chain_steps=24,
    bound_examples=5,
    likelihood_steps=3,
    probes=2,
    samples=6,
    few_steps=4,
    chunk=4,
)


@pytest.mark.slow
def test_the_experiment_writes_what_it_promises(tmp_path, monkeypatch):
    """Figures and metrics appear, and terms add up to the total. A checkpoint of
    another chain raises ValueError.
    """
    monkeypatch.setattr(ddpm_samples, "COMPRESSED", 3)
    small = {"GAUSSIAN_STEPS": (), "MIXTURE_STEPS": (4,), "EXACT_DRAWS": 8}
    for name, value in small.items():
        monkeypatch.setattr(ddpm_exact, name, value)
    config = dataclasses.replace(SMALL, out=tmp_path)
    first = ddpm.run(config)
    figures = {
        "loss",
        "bound",
        "rate_distortion",
        "samples",
        "progressive",
        "interpolation",
    }
    assert {path.stem for path in tmp_path.glob("*.png")} == figures
    for row in json.loads((tmp_path / "metrics.json").read_text())["bound"].values():
        parts = row["prior"] + row["denoising"] + row["reconstruction"]
        np.testing.assert_allclose(parts, row["total"], rtol=1e-5)
    assert list(first["bound"]) == ["optimal", "posterior", "forward"]
    with pytest.raises(
        ValueError, match="chain_steps"
    ):  # a checkpoint of another chain
        ddpm.run(dataclasses.replace(config, chain_steps=30))


class Uniform:
    """A network that is 0 everywhere, in place of a Flax module."""

    def apply(self, params, x, t):
        return jnp.zeros(x.shape)


def test_uniform_logits_bound_uniform_data_above_its_entropy():
    """A softmax with logits 0 is the exact denoiser of independent uniform
    levels.

    The bound on −log2 P is then log2(K) bits per dimension or more. The excess
    is the gap that T steps of a diagonal Gaussian leave, under 0.1 bits here,
    for "optimal".
    """
    rng = np.random.default_rng(0)
    levels = np.linspace(-1, 1, 5).astype(np.float32)
    images = levels[rng.integers(0, 5, (64, 4))]
    data = datasets.Dataset("uniform", images, images, levels, 0.0, 1.0)
    config = dataclasses.replace(SMALL, chain_steps=1000, chunk=64)
    model = dataclasses.replace(make_model(config, data), module=Uniform())
    bounds = ddpm_bounds.bounds(config, model, model.denoiser({}), "optimal", images)
    measured = ddpm_bounds.summary(config, model, bounds)
    assert (
        -4 * measured["total_standard_error"]
        < measured["total"] - np.log2(5)
        < 0.1 + 4 * measured["total_standard_error"]
    )


@pytest.mark.slow
def test_exact_gaps_are_the_closed_forms():
    """N(0.3, 0.5²) on the smooth chain at T = 10: ½ Σ [u − log(1 + u)], u =
    (SNR_{t−1} − SNR_t) Var, for β̃, within 4 standard errors. That of the
    optimal variance is 0 (tests/test_ddpm_bound.py).
    """
    chain, target = ddpm_exact.vp_chain(10), dj.targets.gaussian([0.3], 0.5)
    snr = np.exp(np.asarray(chain.log_snrs))
    u = (snr[:-1] - snr[1:]) / (4 + snr[1:])  # Var = 1/(1/s² + SNR)
    gap = ddpm_exact.exact_gap(SMALL, target, chain, "posterior")
    expected = 0.5 * np.sum(u - np.log1p(u))
    assert (
        abs(gap.mean() - expected) < 4 * scoring.standard_error(gap) < 0.1
    )  # half of what β̃ leaves


def test_indices_are_stratified():
    """Each of B strata of 1 … T has one index, whatever the shift."""
    for seed in range(8):
        measured = np.sort(stratified_indices(jax.random.key(seed), 10, 1000))
        np.testing.assert_array_equal((measured - 1) // 100, np.arange(10))
    measured = stratified_indices(jax.random.key(0), 4096, 3)
    assert set(np.unique(measured)) == {1, 2, 3}


ERRORS = {
    "variance": (
        {"prediction": "v"},
        "variance 'optimal' needs prediction 'levels', got 'v'",
    ),
    "hybrid": (
        {"objective": "hybrid", "variance": "posterior"},
        "objective 'hybrid' trains a variance",
    ),
    "data": (
        {"data": "reals.npy"},
        "data must be integers of at most 256 levels, .*reals.npy is not",
    ),
    "few steps": ({"few_steps": 25}, "few_steps must be between 2 and 24, got 25"),
    "chain": ({"chain_steps": 1}, "chain_steps must be at least 2, got 1"),
    "betas": (
        {"chain_steps": 12, "few_steps": 3},
        "chain_steps must be at least 21 for betas 'linear', got 12",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name, tmp_path):
    changes, message = ERRORS[name]
    np.save(tmp_path / "reals.npy", np.linspace(0, 1, 64).reshape(8, 8))
    if "data" in changes:
        changes = {"data": str(tmp_path / changes["data"])}
    assert_raises(
        lambda: ddpm.run(dataclasses.replace(SMALL, out=tmp_path / "out", **changes)),
        ValueError,
        message,
    )
