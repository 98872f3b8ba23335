"""The experiments on chains and energies at their smallest settings."""

import json

import numpy as np
import pytest

from diffjax import targets
from experiments.bench_speed import __main__ as bench_speed
from experiments.bench_speed import langevin as speed_langevin
from experiments.energy_model import __main__ as energy_model
from experiments.energy_model.normalisers import divergence
from experiments.langevin import __main__ as langevin
from experiments.langevin.chains import exact_bias
from experiments.shared.datasets import TOYS


@pytest.mark.slow
def test_langevin_agrees_with_the_exact_distributions(tmp_path):
    """On the Gaussian every bias is its exact value within 4 standard errors.
    Chains that diverged have no bias.

    Far out ULA at ε = 3 multiplies x by 1 − ε/(2 · 0.7²) = −2.06 per step, and
    x² is beyond float32 within 70 of them.
    """
    config = langevin.Config(
        out=tmp_path, chains=400, steps=300, step_sizes=(0.5, 3.0), levels=20
    )
    langevin.run(config)
    measured = json.loads((tmp_path / "metrics.json").read_text())
    for name, rows in measured["bias"]["gaussian"]["kernels"].items():
        for row in rows:
            exact = exact_bias(name, np.array(row["step_size"]))
            assert abs(row["bias"] - exact) < 4 * row["standard_error"], (name, row)
    ula = measured["bias"]["mixture"]["kernels"]["ula"]
    assert ula[1]["bias"] is None and ula[1]["diverged"] > 0
    heavy = measured["heavy_mode"]
    assert (
        abs(heavy["importance"]["share"] - 0.8)
        < 4 * heavy["importance"]["standard_error"]
    )
    assert abs(heavy["mala"]["share"] - 0.5) < 0.15 and heavy["mala"]["r_hat"] > 1.1
    assert (
        abs(heavy["importance"]["log_z"])
        < 4 * heavy["importance"]["log_z_standard_error"]
    )
    figures = {"paths.png", "histogram.png", "bias.png", "modes.png", "config.json"}
    assert figures <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("steps", 15, "steps must be a positive multiple of 10, got 15"),
        ("steps", 20, "steps must be at least 80, got 20"),
        ("levels", 3, "levels must be at least 4, got 3"),
        (
            "step_sizes",
            (0.1, 4.0),
            "step_sizes must lie between 0 and 4, beyond which ULA diverges, got 4.0",
        ),
        ("step_sizes", (), "step_sizes must hold at least one size"),
        ("chains", 3, "chains must be at least 50, got 3"),
    ],
)
def test_langevin_raises(tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        langevin.run(langevin.Config(**{"out": tmp_path, field: value}))


SMALL = {
    "examples": 2000,
    "steps": 50,
    "batch_size": 64,
    "save_every": 50,
    "width": 16,
    "depth": 1,
    "chains": 64,
}


@pytest.mark.slow
def test_energy_model_fits_and_normalises(tmp_path):
    """Fifty steps of contrastive divergence bring the density nearer than N(0,
    1), the network's initial one.

    Its log Z by chains is that of quadrature. A second run resumes where the
    first one ended, at the same numbers.
    """
    config = energy_model.Config(
        out=tmp_path,
        objectives=("contrastive",),
        levels=(16,),
        walkers=128,
        chain_steps=4,
        **SMALL,
    )
    first = energy_model.run(config)["objectives"]["contrastive"]
    start = divergence(TOYS["moons"](), targets.gaussian([0.0, 0.0], 1.0))
    assert 0 < first["kl"] < start
    for rows in first["estimates"].values():
        error = 4 * rows[0]["standard_error"] + rows[0].get("discretisation", 0)
        assert abs(rows[0]["log_z"] - first["log_z"]) < error
    assert energy_model.run(config)["objectives"]["contrastive"]["kl"] == first["kl"]
    assert {"densities.png", "log_z.png", "metrics.json", "config.json"} <= {
        path.name for path in tmp_path.iterdir()
    }


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("objectives", (), "objectives must hold at least one entry"),
        ("sigma", 0.0, "sigma must be positive, got 0.0"),
        ("levels", (0,), "levels must be at least 1, got 0"),
        ("examples", 10, "examples must be at least 256, got 10"),
        ("restart", 2.0, "restart must lie in"),
    ],
)
def test_energy_model_raises(tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        energy_model.run(energy_model.Config(**{"out": tmp_path, field: value}))


@pytest.mark.slow
def test_chains_of_the_speed_table_are_those_by_hand(tmp_path):
    """The rows compare equal programs: `chains` raises where 1 % of them differ."""
    rows = list(
        speed_langevin.chains(
            bench_speed.Config(out=tmp_path, quick=True, alternations=1)
        )
    )
    assert rows[0].name == "run_many, mala, 50 × 20" and rows[0].at_most == 1.1


def test_chains_that_differ_from_those_by_hand_raise():
    apart = np.zeros((300, 2, 1))
    apart[:2] = 1
    speed_langevin.check_same(np.zeros((300, 2, 1)), apart)
    with pytest.raises(ValueError, match="got 100% of the chains that differ"):
        speed_langevin.check_same(np.zeros((3, 2, 1)), np.ones((3, 2, 1)))
