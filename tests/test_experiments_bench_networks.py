"""`bench_networks`: its rows, with PyTorch and without."""

import importlib.util
import json

import numpy as np
import pytest

from experiments.bench_networks import __main__ as bench_networks


@pytest.mark.slow
def test_every_network_and_program_has_a_row_and_equals_its_peer(tmp_path):
    # Raises where a peer differs.
    rows = bench_networks.run(bench_networks.Config(out=tmp_path, quick=True))
    names = {(row.network, row.program) for row in rows}
    programs = ("forward", "forward + backward", "2 steps of DDIM")
    assert names == {(n, p) for n in ("unet", "dit") for p in programs}
    with_peer = importlib.util.find_spec("torch") is not None
    assert all(bool(row.peer) == with_peer for row in rows)
    assert len(json.loads((tmp_path / "metrics.json").read_text())["rows"]) == 6
    assert (tmp_path / "ratios.png").stat().st_size > 0


def test_without_a_peer_the_times_stand_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = bench_networks.Config(out=tmp_path, quick=True, networks=("dit",))
    rows = bench_networks.run(config)
    assert all(row.ratio is None and row.seconds > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "the extra `peers`" in printed and "dit, forward + backward" in printed


def test_a_gradient_that_differs_in_one_small_tensor_raises(tmp_path):
    """Tensors are compared by name, each in units of its own size."""
    peers = pytest.importorskip("experiments.bench_networks.torch_peers")
    gradient = {"Dense_0": {"kernel": np.ones((2, 3)), "bias": np.full(3, 1e-6)}}
    tensors = {
        "Dense_0.weight": peers.torch.ones(3, 2),
        "Dense_0.bias": peers.torch.full((3,), 2e-6),
    }
    programs = lambda: {"params": gradient}, lambda: tensors
    with pytest.raises(ValueError, match="the two programs of dit must agree"):
        bench_networks.compared("dit", *programs, 1)
    tensors["Dense_0.bias"] /= 2
    times = bench_networks.compared("dit", *programs, 1)
    assert times["quartiles"] == (times["ratio"], times["ratio"])


@pytest.mark.parametrize(
    "field, value",
    [
        ("networks", ("vit",)),
        ("networks", ()),
        ("threads", 10**6),
        ("alternations", 0),
    ],
)
def test_bad_flags_are_named(field, value, tmp_path):
    with pytest.raises(ValueError, match=field):
        bench_networks.run(bench_networks.Config(out=tmp_path, **{field: value}))
