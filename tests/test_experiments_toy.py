"""The experiments on exact densities and on speed, at their smallest settings."""

import json

import pytest

from experiments import bench_speed, toy_sde


def test_toy_sde_agrees_with_the_exact_densities(tmp_path):
    config = toy_sde.Config(out=tmp_path, schedules=("vp",), samples=512, steps=100, likelihoods=32)
    toy_sde.run(config)
    result = json.loads((tmp_path / "metrics.json").read_text())["schedules"]["vp"]
    distances = result["energy_distance"]
    # Of two exact sets of n samples the distance is a quadratic form of mean 2 E‖X − X′‖/n: five times that is rare.
    assert 0 < distances["exact"] <= distances["exact_largest"]
    assert max(distances["reverse_SDE"], distances["probability_flow"]) < 5 * 2 * 3.6 / config.samples
    assert result["log_prob_error"]["mean"] < 1e-4
    for moments in result["forward_moments"]:
        assert moments["mean_error"] < 5 * moments["mean_noise"]
        # A left-point step of Δλ = 0.24 in log-SNR overstates the noise's variance by Δλ/2 at most.
        assert abs(moments["variance_error"]) < 4 * moments["variance_noise"] + 0.12
    assert {path.name for path in tmp_path.iterdir()} >= {"paths.png", "density_vp.png", "score.png", "config.json"}


def test_toy_sde_refuses_too_few_samples(tmp_path):
    with pytest.raises(ValueError, match="samples must be at least 32, got 8"):
        toy_sde.run(toy_sde.Config(out=tmp_path, samples=8))


@pytest.mark.parametrize("network", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bench_speed_compares_equal_programs_and_memory_does_not_grow(network, tmp_path):
    rows = bench_speed.run(bench_speed.Config(out=tmp_path, quick=True, network=network))  # raises where loops differ
    assert {"sample_many, euler", "sample_many, euler_maruyama", "import diffjax, beyond jax and flax"} <= set(rows)
    flat, path = (rows[f"memory at 2000 steps against 20, path={path}"] for path in (False, True))
    assert flat.median <= flat.at_most
    assert path.median > 10
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert set(report["rows"]) == set(rows)
    assert (tmp_path / "ratios.png").stat().st_size > 0


def test_bench_speed_refuses_loops_that_differ():
    with pytest.raises(ValueError, match="must agree within 0.001"):
        bench_speed.same("a", lambda: 1.0, lambda: 1.01)
