"""The experiment on couplings of noise and data, at its smallest setting."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import flow_matching


@pytest.mark.slow
def test_flow_matching_writes_what_it_promises_and_resumes(tmp_path, capsys):
    """Numbers are finite, log p on the exact velocity falls below 1e-3 nats with RK4, and a second run trains nothing."""
    config = flow_matching.Config(
        out=tmp_path, couplings=("independent", "sinkhorn", "optimal", "reflow"), examples=64, steps=4, batch_size=8,
        width=8, depth=1, samples=96, likelihoods=96,
    )  # fmt: skip
    flow_matching.run(config)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert set(found["couplings"]) == set(config.couplings)
    for row in found["couplings"].values():
        values = [row["curvature"], row["cost"], row["nats_above_floor"], *row["sliced_wasserstein"]["euler"].values()]
        assert np.all(np.isfinite(values)) and row["curvature"] >= 0
    assert found["log_prob_error"]["rk4"][-1]["error"] < 1e-3
    assert {"paths.png", "error.png", "log_prob.png"} <= {path.name for path in tmp_path.iterdir()}
    capsys.readouterr()
    flow_matching.run(config)
    assert capsys.readouterr().out.count("resuming after step 4") == len(config.couplings)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("couplings", ("reflow",), "couplings must name independent before reflow"),
        ("couplings", (), "couplings must name at least one of"),
        ("couplings", ("optimal", "optimal"), "each once"),
        ("samples", 10, "samples must be at least 96, got 10"),
        ("examples", 10, "examples must be at least 128, got 10"),
        ("regularisation", 0.0, "regularisation must be positive, got 0"),
        ("ema_decay", 2.0, "ema_decay must lie in"),
        ("steps", 0, "steps must be at least 1, got 0"),
    ],
)
def test_flow_matching_refuses(field, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        flow_matching.run(dataclasses.replace(flow_matching.Config(out=tmp_path), **{field: value}))
