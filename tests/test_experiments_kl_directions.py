"""The experiment on KL's two directions at its smallest setting."""

import json
import math

import pytest

from experiments.kl_directions import __main__ as kl_directions


@pytest.mark.slow
def test_kl_directions_finds_one_forward_and_two_reverse_optima(tmp_path):
    """A fit is no worse than the grid's minimum, and in a mode of weight w no
    worse than that mode itself: p ≥ w p_k.
    """
    config = kl_directions.Config(out=tmp_path, plane=False, grid=41, samples=2000)
    kl_directions.run(config)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    forward, left, right = (metrics["line"][name] for name in kl_directions.OPTIMA)
    assert forward["kl_p_q"] < min(left["kl_p_q"], right["kl_p_q"])
    assert (
        right["kl_q_p"] < forward["kl_q_p"] < left["kl_q_p"]
    )  # the left one is a minimum of its surroundings alone
    assert -0.02 < left["kl_q_p"] + math.log(config.weight) < 0
    assert -0.02 < right["kl_q_p"] + math.log(1 - config.weight) < 0
    assert len(metrics["grid"]["forward"]) == 1 and len(metrics["grid"]["reverse"]) == 2
    assert forward["kl_p_q"] <= metrics["grid"]["forward"][0]["kl"] + 1e-5
    for measured, least in zip((left, right), metrics["grid"]["reverse"], strict=True):
        assert measured["kl_q_p"] <= least["kl"] + 1e-5
        assert (
            abs(measured["kl_q_p_by_samples"] - measured["kl_q_p"])
            < 4.5 * measured["kl_q_p_by_samples_standard_error"]
        )
    assert {path.name for path in tmp_path.iterdir()} >= {
        "pictures.png",
        "landscape.png",
        "config.json",
    }


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("weight", 1.0, "weight must lie between 0 and 1, got 1.0"),
        ("separation", 0.0, "separation must lie between"),
        ("scales", (0.1, 1.0), "scales must lie between"),
        ("grid", 5, "grid must be at least 21, got 5"),
        ("samples", 1, "samples must be at least 2, got 1"),
    ],
)
def test_kl_directions_raises(tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        kl_directions.run(kl_directions.Config(**{"out": tmp_path, field: value}))
