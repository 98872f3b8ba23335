"""Experiments on one and on many devices: the same numbers, and errors that help."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.shared import devices, files
from experiments.shared import training as shared_training

ROOT = pathlib.Path(__file__).parents[1]

TINY = """--data moons --network mlp --width 32 --depth 1 --steps 12 --samples 13
--sde-steps 4 --ode-steps 4 --likelihood-steps 4 --likelihood-examples 32 --chunk 16
--held-out 40""".split()


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    out: pathlib.Path = pathlib.Path("out")


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    """Each test starts without a choice of devices, and leaves none."""
    monkeypatch.setattr(devices, "_used", None)


@pytest.mark.parametrize("name", ["DIFFJAX_PROCESSES", "DIFFJAX_PROCESS_INDEX"])
def test_a_variable_alone_does_not_start_a_run_alone(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match=r"coordinator \(or DIFFJAX_COORDINATOR\)"):
        devices.start(Config())


def test_the_first_line_says_how_many_devices_work(tmp_path, capsys):
    files.open_folder(Config(out=tmp_path))
    assert f" on {jax.device_count()} × " in capsys.readouterr().out
    assert devices.mesh().size == jax.device_count()
    files.open_folder(dataclasses.replace(Config(out=tmp_path), devices=1))
    assert " on 1 × " in capsys.readouterr().out


def test_more_devices_than_there_are_raise():
    count = jax.device_count()
    with pytest.raises(ValueError, match=f"devices must be at most {count}, got"):
        devices.use(Config(devices=count + 1))
    with pytest.raises(ValueError, match="devices must be .*got 0"):
        devices.use(Config(devices=0))


def test_checkpoints_do_not_belong_to_devices():
    assert not set(shared_training.FIELDS) & set(devices.NAMES)


def score_sde(folder, count, *flags):
    """The finished run of score_sde on `count` simulated devices."""
    simulated = f"--xla_force_host_platform_device_count={count}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 {simulated}",
    }
    command = [sys.executable, "-m", "experiments.score_sde", *TINY, "--out", folder]
    return subprocess.run(
        [*map(str, command), *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_score_sde_has_the_same_numbers_on_one_two_and_eight_devices(tmp_path):
    """A batch that eight cannot share is an error. A run on eight resumes on two."""
    numbers = {}
    for name, count, flags in (
        ("1", 1, ()),
        ("8", 8, ()),
        ("2", 8, ("--devices", "2")),
        ("8", 8, ("--devices", "2")),
    ):
        done = score_sde(tmp_path / name, count, *flags)
        assert done.returncode == 0, done.stderr
        used = flags[-1] if flags else count
        assert f" on {used} × " in done.stdout.partition("\n")[0]
        results = json.loads((tmp_path / name / "metrics.json").read_text())
        numbers[name, used] = [
            value
            for key, value in results.items()
            if isinstance(value, float) and not key.startswith("seconds")
        ]
    assert "resuming after step 12" in done.stdout
    one = numbers.pop(("1", 1))
    # Sums of up to 128 features of the time err by √128 ε/2 in either run, at each of
    # 12 steps of training and 4 of a solver. Scores are of degree 3 in the samples at
    # most. Differences of nearly equal numbers are known to the numbers' rounding.
    rounding = (12 + 4) * 128**0.5 * np.finfo(np.float32).eps
    for others in numbers.values():
        np.testing.assert_allclose(others, one, rtol=3 * rounding, atol=rounding)
    done = score_sde(tmp_path / "error", 8, "--batch-size", "20")
    assert done.returncode == 1
    assert "batch_size must be a multiple of the number of devices, 8" in done.stderr
    assert "take 24, or --devices 5" in done.stderr
