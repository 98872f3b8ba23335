"""The experiments on exact densities and on speed, at their smallest settings."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import grids, solvers, targets
from experiments.bench_speed import __main__ as bench_speed
from experiments.bench_speed import ratios as speed_ratios
from experiments.bench_speed import solvers as speed_solvers
from experiments.fokker_planck import __main__ as fokker_planck
from experiments.shared import timing, training
from experiments.toy_flows import __main__ as toy_flows
from experiments.toy_flows.fitting import FitConfig
from experiments.toy_flows.kinds import KINDS
from experiments.toy_sde import __main__ as toy_sde


@pytest.mark.slow
def test_toy_sde_agrees_with_the_exact_densities(tmp_path):
    config = toy_sde.Config(
        out=tmp_path, schedules=("vp",), samples=512, steps=100, likelihoods=32
    )
    toy_sde.run(config)
    result = json.loads((tmp_path / "metrics.json").read_text())["schedules"]["vp"]
    distances = result["energy_distance"]
    # Of two exact sets of n samples the distance is a quadratic form of mean 2
    # E‖X − X′‖/n: five times that is rare.
    assert 0 < distances["exact"] <= distances["exact_largest"]
    assert (
        max(distances["reverse_SDE"], distances["probability_flow"])
        < 5 * 2 * 3.6 / config.samples
    )
    assert result["log_prob_error"]["mean"] < 1e-4
    for moments in result["forward_moments"]:
        assert moments["mean_error"] < 5 * moments["mean_noise"]
        # A left-point step of Δλ = 0.24 in log-SNR overstates the noise's variance by
        # Δλ/2 at most.
        assert abs(moments["variance_error"]) < (
            4 * moments["variance_error_standard_error"] + 0.12
        )
    assert {path.name for path in tmp_path.iterdir()} >= {
        "paths.png",
        "density_vp.png",
        "score.png",
        "config.json",
    }


def test_toy_sde_raises_on_too_few_samples(tmp_path):
    with pytest.raises(ValueError, match="samples must be at least 32, got 8"):
        toy_sde.run(toy_sde.Config(out=tmp_path, samples=8))


@pytest.mark.slow
def test_toy_flows_measures_the_gap_to_the_entropy(tmp_path):
    """A hundred steps leave the moons' gap below 0.5 nats, where the best
    Gaussian has about 0.9. KL is positive.
    """
    config = toy_flows.Config(
        out=tmp_path,
        targets=("moons",),
        flows=("spline",),
        steps=100,
        train=4000,
        test=2000,
    )
    toy_flows.run(config)
    measured = json.loads((tmp_path / "metrics.json").read_text())
    row = measured["targets"]["moons"]["spline"]
    assert (
        -4 * row["standard_error"] < row["gap"] == measured["best_gap"]["moons"] < 0.5
    )
    assert row["nll"] - row["entropy"] == pytest.approx(row["gap"], abs=1e-6)
    assert [point["steps"] for point in row["curve"]] == [50, 100]
    assert (
        row["curve"][0]["gap"]
        > row["curve"][1]["gap"]
        == pytest.approx(row["gap"], abs=1e-6)
    )  # of the same examples
    assert {path.name for path in tmp_path.iterdir()} >= {
        "densities.png",
        "samples.png",
        "config.json",
    }


def test_a_run_stopped_where_it_is_measured_goes_on_from_there(tmp_path, capsys):
    """A run stopped at its first stop calls that again, and ends as a run that
    was never stopped.

    Parameters and losses are equal, and other flags raise ValueError. Every
    experiment that trains does so by `training.fit`.
    """

    @dataclasses.dataclass(frozen=True)
    class Flags(FitConfig):
        out: str = ""

    config = Flags(
        target="line", flow="line", steps=100, learning_rate=0.1, batch_size=4
    )
    arrays, called = np.arange(8.0, dtype=np.float32), []

    def fit(config, out, on_stop):
        loss = lambda params, key, batch: jnp.mean((params["w"] - batch) ** 2)
        start = lambda key: {"w": jnp.zeros(())}
        return training.fit(
            config,
            out,
            loss,
            start,
            arrays=arrays,
            stops=(50,),
            on_stop=on_stop,
            about={"more": 1},
        )

    def kill(step, ema):
        called.append(step)
        raise KeyboardInterrupt

    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()
    whole, losses = fit(config, tmp_path / "once", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "twice", kill)
    again, losses_again = fit(
        config, tmp_path / "twice", lambda step, ema: called.append(step)
    )
    assert "resuming after step 50" in capsys.readouterr().out and called == [50, 50]
    np.testing.assert_array_equal(losses_again, losses)
    np.testing.assert_array_equal(again["w"], whole["w"])
    with pytest.raises(ValueError, match="learning_rate"):
        fit(dataclasses.replace(config, learning_rate=0.5), tmp_path / "twice", kill)
    stored = json.loads((tmp_path / "twice" / "config.json").read_text())
    assert (stored["learning_rate"], stored["more"]) == (0.1, 1)


@pytest.mark.slow
def test_toy_flows_measures_every_kind(tmp_path):
    """Each gap is positive to its standard error, and log q of an ODE stands
    whatever the steps of its solver.
    """
    toy_flows.run(
        toy_flows.Config(
            out=tmp_path, targets=("circles",), steps=100, train=4000, test=2000
        )
    )
    row = json.loads((tmp_path / "metrics.json").read_text())["targets"]["circles"]
    assert set(row) == set(KINDS)
    for kind, measured in row.items():
        assert -4 * measured["standard_error"] < measured["gap"] < 3
        assert ("solver_change" in measured) == (kind in ("cnf", "matching"))
        assert measured.get("solver_change", 0) < 1e-2


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("steps", 150, "steps must be a positive multiple of 100, got 150"),
        ("train", 10, "train must be at least 512, got 10"),
        ("learning_rate", 0.0, "learning_rate must be positive, got 0.0"),
        ("targets", (), "targets must name at least one of"),
    ],
)
def test_toy_flows_raises(tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        toy_flows.run(toy_flows.Config(**{"out": tmp_path, field: value}))


def check_fokker_planck(config):
    """Orders are within 0.1 of 2, histograms within 4 standard deviations of as
    many exact draws, or of χ².
    """
    fokker_planck.run(config)
    measured = json.loads((config.out / "metrics.json").read_text())
    assert set(measured["densities"]) == set(config.processes) and set(
        measured["residuals"]
    ) == set(config.schedules)
    for row in measured["densities"].values():
        assert row["mass_error"] < 1e-12
        assert row.get("solver_order", 2) == pytest.approx(2, abs=0.2)
        for snapshot in row["snapshots"]:
            slack = 4 * snapshot["histogram_l1_std"] + (snapshot["solver_l1"] or 0)
            assert snapshot["histogram_l1"] < snapshot["histogram_l1_floor"] + slack
            assert abs(snapshot["z"]) < 4
    for row in measured["residuals"].values():
        np.testing.assert_allclose(list(row["order"].values()), 2, atol=0.1)
        assert row["wrong"] > 0.1
    path = measured["along_a_path"]
    assert path["along_error_twice_the_step"] / path["along_error"] == pytest.approx(
        4, abs=0.3
    )
    assert path["largest_difference_of_the_two"] > 100 * max(
        path["along_error"], path["fixed_error"]
    )
    figures = {"densities.png", "residuals.png", "along_a_path.png"}
    assert figures <= {file.name for file in config.out.iterdir()}


def test_fokker_planck_holds(tmp_path):
    check_fokker_planck(
        fokker_planck.Config(
            out=tmp_path,
            processes=("vp",),
            schedules=("edm",),
            halvings=5,
            points=4,
            paths=500,
            steps=100,
            cells=200,
        )
    )


@pytest.mark.slow
def test_fokker_planck_holds_for_every_process(tmp_path):
    check_fokker_planck(
        fokker_planck.Config(out=tmp_path, halvings=5, paths=2000, steps=1000)
    )


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("cells", 201, "cells must be even, to be halved, got 201"),
        ("paths", 10, "paths must be at least 500, got 10"),
        ("halvings", 2, "halvings must be between 5 and 16, got 2"),
        ("processes", (), "processes must name at least one of"),
        ("schedules", (), "schedules must name at least one of"),
    ],
)
def test_fokker_planck_raises(field, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fokker_planck.run(
            dataclasses.replace(fokker_planck.Config(out=tmp_path), **{field: value})
        )


@pytest.mark.parametrize(
    "parts", [("memory",), pytest.param((), marks=pytest.mark.slow)]
)
def test_bench_speed_compares_equal_programs_and_memory_does_not_grow(parts, tmp_path):
    rows = bench_speed.run(
        bench_speed.Config(out=tmp_path, quick=True, parts=parts)
    )  # raises where loops differ
    flat, path = (
        rows[f"memory at 2000 steps against 20, path={path}"] for path in (False, True)
    )
    assert flat.median <= flat.at_most
    assert path.median > 10
    if not parts:
        expected = {
            "sample_many, euler",
            "sample_many, euler_maruyama",
            "import diffjax, beyond jax and flax",
        }
        expected |= {"run_many, mala, 50 × 20"}
        assert expected | {
            "real_nvp, density, 8 × 64",
            "real_nvp, sample, 8 × 64",
        } <= set(rows)
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert set(report["rows"]) == set(rows)
    assert (tmp_path / "ratios.png").stat().st_size > 0


def test_a_loop_by_hand_is_the_librarys(tmp_path):
    """Of one stochastic solver, at its own noise."""
    target, schedule, key, x = speed_solvers.mixture(
        speed_ratios.Config(out=tmp_path, samples=8)
    )
    denoiser, solver = targets.denoiser(target, schedule), solvers.euler_maruyama()
    grid = grids.log_snr(schedule, 10)
    library = dj.sample_many(
        key, len(x), denoiser, schedule, solver=solver, grid=grid, x_init=x
    )

    def by_hand():
        return speed_solvers.loop_by_hand(
            "euler_maruyama",
            speed_solvers.mixture_denoiser,
            target,
            schedule,
            key,
            x,
            grid,
        )

    timing.same("euler_maruyama", lambda: library, by_hand)


def test_bench_speed_raises_on_loops_that_differ_and_parts_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="must agree within 0.001"):
        timing.same("a", lambda: 1.0, lambda: 1.01)
    with pytest.raises(ValueError, match="parts must be among loops, .*, got flow"):
        bench_speed.run(bench_speed.Config(out=tmp_path, parts=("flow",)))
