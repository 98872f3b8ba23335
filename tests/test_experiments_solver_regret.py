"""The regret of solvers and grids on hand-made errors."""

import json

import numpy as np
import pytest

from diffjax import grids, schedules
from experiments.shared import solvers as solver_table
from experiments.solver_regret import __main__ as solver_regret
from experiments.solver_regret.measure import (
    GRIDS,
    MEASURES,
    RESOLUTION,
    Errors,
    regrets,
)


def error(problem, held_out, solver, value, budget=8, scale=1.0):
    return Errors(
        problem, held_out, solver, "log_snr", budget, scale, value, value, value
    )


ROWS = [
    error("seen", False, "a", 0.1),
    error("seen", False, "b", 0.3),
    error("seen", False, "c", np.nan),
    error("unseen", True, "a", 0.5),
    error("unseen", True, "b", 0.1),
    error("unseen", True, "c", 0.1),
]


def test_the_regret_is_the_error_over_the_least():
    table = regrets(ROWS, 8, "rms")
    expected = {"a": (1, 5), "b": (3, 1), "c": (np.inf, 1)}
    for solver, values in expected.items():
        measured = table[solver, "log_snr"]
        np.testing.assert_allclose(
            [measured["seen"], measured["unseen"]], values, rtol=10 * RESOLUTION / 0.1
        )
    assert regrets(ROWS, 16, "rms") == {}


def test_errors_below_the_resolution_are_alike():
    rows = [
        error("p", False, "a", 1e-9, scale=2.0),
        error("p", False, "b", 1e-6, scale=2.0),
    ]
    measured = regrets(rows, 8, "median")
    assert measured["a", "log_snr"]["p"] == 1
    np.testing.assert_allclose(
        measured["b", "log_snr"]["p"], 1 + 1e-6 / (2 * RESOLUTION), rtol=1e-5
    )


def test_the_held_out_half_does_not_enter_the_choice():
    """Solver a is best where one may look and worst where one may not."""
    summary = solver_regret.summarise(ROWS, (8,), kept=2)
    assert summary["problems"] == {"chosen on": ["seen"], "held out": ["unseen"]}
    for measured in MEASURES:
        first, second = summary["least worst regret"][f"8 evaluations, {measured}"]
        assert (first["solver"], second["solver"]) == ("a", "b")
        assert first["held out"]["worst"] > second["held out"]["worst"]
    assert summary["recommended"] == {}  # the pair was not measured


@pytest.mark.parametrize("budget", [8, 27, 28, 48])
def test_what_is_reported_as_recommended_is_what_sample_takes(budget):
    solver, grid = solver_regret.recommendation(budget)
    schedule = schedules.edm()
    np.testing.assert_array_equal(
        GRIDS[grid](schedule, budget),
        grids.recommended(schedule, solver_table.make(solver), budget),
    )


def test_errors_are_read_back_and_not_mixed_with_those_of_another_suite(tmp_path):
    config = solver_regret.Config(out=tmp_path)
    assert solver_regret.read_errors(tmp_path / "errors.json") == []
    solver_regret.write_errors(tmp_path / "errors.json", ROWS[:2])
    assert solver_regret.read_errors(tmp_path / "errors.json") == ROWS[:2]
    assert [path.name for path in tmp_path.iterdir()] == ["errors.json"]
    for text in ("[\n{", '[{"problem": "a"}]', "[3]", "3"):
        (tmp_path / "damaged.json").write_text(text)
        with pytest.raises(ValueError, match="damaged.json is damaged .*remove it"):
            solver_regret.read_errors(tmp_path / "damaged.json")
    values = {
        "seed": 1,
        "budgets": list(config.budgets),
        "starts": 128,
        "train_steps": 2000,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="seed must be 1 as in"):
        solver_regret.check_same_suite(config)
