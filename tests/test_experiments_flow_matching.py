"""The experiment on pairings of noise and data, at its smallest setting."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from diffjax import targets
from experiments.flow_matching import __main__ as flow_matching
from experiments.flow_matching import measures as flow_matching_measures
from experiments.flow_matching.measures import STEPS, log_prob_errors, measure
from experiments.flow_matching.problem import MatchingTask, open_problem

SMALL = flow_matching.Config(
    pairings=("independent", "sinkhorn", "optimal", "reflow"),
    examples=64,
    steps=4,
    batch_size=8,
    width=8,
    depth=1,
    samples=96,
    likelihoods=96,
)


def test_the_measures_of_a_linear_velocity_are_the_closed_ones(monkeypatch):
    """Of u = x/2, noise becomes x_1 e^{−1/2}: curvature ‖x_1‖² (∫ e^{t−1}/4 dt −
    (1 − e^{−1/2})²), error of n Euler steps (1 − 1/2n)^n − e^{−1/2} and of
    midpoint's (1 − 1/2n + 1/8n²)^n − e^{−1/2} per unit of ‖x_1‖, log p that of
    N(0, I/e): to rounding, and the curvature to the trapezoid rule's 1/12·32²
    of it.
    """
    monkeypatch.setattr(
        flow_matching_measures, "STEPS", (4,)
    )  # each number of steps is a program
    target = targets.gaussian(np.zeros(2), 0.8)
    exact = 0.8 * np.random.default_rng(0).normal(size=(96, 2)).astype(np.float32)
    problem = MatchingTask(
        "gaussian", exact, exact, [exact], lambda key: None, 8, target
    )
    numbers, drawn = measure(SMALL, problem, jax.tree_util.Partial(lambda x, t: x / 2))
    noise = drawn["paths"][:, 0]
    square, shrunk = (
        float(numbers["cost"]) * 2 / (1 - np.exp(-0.5)) ** 2,
        np.exp(-0.5),
    )  # the mean of ‖x_1‖²
    np.testing.assert_allclose(drawn["paths"][:, -1], shrunk * noise, rtol=1e-5)
    assert abs(square - 2) < 4 * 2 / np.sqrt(96)  # of variance 4, E‖x_1‖² = 2
    curvature = ((1 - np.exp(-1)) / 4 - (1 - shrunk) ** 2) * square
    np.testing.assert_allclose(numbers["curvature"], curvature, rtol=1e-2)
    for n in (4,):
        euler, midpoint = (
            (1 - 1 / (2 * n)) ** n,
            (1 - 1 / (2 * n) + 1 / (8 * n**2)) ** n,
        )
        for name, cost, kept in (("euler", n, euler), ("midpoint", 2 * n, midpoint)):
            expected = abs(kept - shrunk) * np.sqrt(square)
            np.testing.assert_allclose(
                numbers["path_error"][name][cost], expected, rtol=1e-4, atol=1e-6
            )
    # E log p − log N(x; 0, I/e) over x ~ N(0, 0.64 I), in two dimensions: ½(0.64
    # e − 1) − ½ log(0.64 e) each
    kl = 0.64 * np.e - 1 - np.log(0.64 * np.e)
    assert (
        abs(numbers["nats_above_floor"] - kl)
        < 4 * numbers["nats_above_floor_standard_error"]
    )
    assert (
        numbers["nats_above_floor_standard_error"]
        < (0.64 * np.e - 1) / np.sqrt(96) * 1.5
    )  # distributed as χ²₂/2


@pytest.mark.slow
def test_log_p_on_the_exact_velocity_falls_with_the_solvers_order():
    """From 8 to 64 steps the error of Euler falls at least to a fifth and that of
    RK4, to below 1e-3 nats, more.
    """
    config = flow_matching.check(SMALL)
    measured = {
        name: [row["error"] for row in rows]
        for name, rows in log_prob_errors(config, targets.moons()).items()
    }
    assert measured["euler"][-1] < measured["euler"][0] / 5
    assert (
        measured["rk4"][-1] < 1e-3 and measured["rk4"][-1] < measured["euler"][-1] / 50
    )
    assert measured["adaptive"] == sorted(measured["adaptive"], reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "target, figures",
    [("moons", {"paths.png", "log_prob.png"}), ("digits", {"samples.png"})],
)
def test_flow_matching_writes_what_it_promises(target, figures, tmp_path):
    """Each pairing has the numbers that it is compared by.

    Four steps from a network that is 0 leave the noise nearly where it was: a
    cost below a tenth of that of independent pairs, at least half of E‖x_1‖² =
    D.
    """
    config = dataclasses.replace(SMALL, out=tmp_path, target=target)
    flow_matching.run(config)
    measured = json.loads((tmp_path / "metrics.json").read_text())
    dimension = 64 if target == "digits" else 2
    assert tuple(measured["couplings"]) == config.pairings
    for row in measured["couplings"].values():
        assert 0 <= row["cost"] < dimension / 20
        assert ("nats_above_floor" in row) == (target == "moons")
        assert list(row["path_error"]["euler"]) == list(map(str, STEPS))
    assert {"error.png", "metrics.json", "config.json", *figures} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_the_digits_are_compared_with_images_that_no_network_saw():
    """The test images are in neither the training set nor the further sets, which
    do not overlap.
    """
    problem = open_problem(
        flow_matching.check(dataclasses.replace(SMALL, target="digits"))
    )
    assert (
        problem.shape == (8, 8, 1)
        and len(problem.exact) == 447
        and len(problem.train) == 1350
    )
    assert [len(other) for other in problem.others] == [447] * 3
    rows = np.concatenate([problem.train[:1341], problem.exact]).reshape(-1, 64)
    np.testing.assert_array_equal(np.concatenate(problem.others), problem.train[:1341])
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("pairings", ("reflow",), "pairings must name independent before reflow"),
        ("pairings", (), "pairings must name at least one of"),
        ("pairings", ("optimal", "optimal"), "each once"),
        ("samples", 10, "samples must be at least 96, got 10"),
        ("examples", 10, "examples must be at least 128, got 10"),
        ("regularisation", 0.0, "regularisation must be positive, got 0"),
        ("ema_decay", 2.0, "ema_decay must lie in"),
        ("steps", 0, "steps must be at least 1, got 0"),
        ("width", 0, "width must be at least 1, got 0"),
        ("target", "faces", "target must be one of"),
    ],
)
def test_flow_matching_raises(field, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        flow_matching.run(
            dataclasses.replace(flow_matching.Config(out=tmp_path), **{field: value})
        )
