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

from experiments.fokker_planck import config as fokker_planck
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


def test_processes_of_a_density_equation_are_none_of_the_run(monkeypatch):
    """`--processes` of fokker_planck names SDEs, and starts nothing."""
    for name in ("COORDINATOR", "PROCESSES", "PROCESS_INDEX"):
        monkeypatch.delenv(f"DIFFJAX_{name}", raising=False)
    devices.start(fokker_planck.Config(processes=("vp",)))
    assert not jax.distributed.is_initialized()


def run(name, flags, folder, count):
    """The finished run of an experiment on `count` simulated devices."""
    simulated = f"--xla_force_host_platform_device_count={count}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 {simulated}",
    }
    command = [sys.executable, "-m", f"experiments.{name}", *flags, "--out", folder]
    return subprocess.run(
        [*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def numbers(value, name=""):
    """All numbers of metrics.json by their place in it, without times."""
    if isinstance(value, dict | list):
        rows = value.items() if isinstance(value, dict) else enumerate(value)
        return {
            place: number
            for key, part in rows
            if "seconds" not in str(key)
            for place, number in numbers(part, f"{name}/{key}").items()
        }
    return {name: value} if isinstance(value, int | float) else {}


@pytest.mark.slow
def test_score_sde_has_the_same_numbers_on_one_two_and_eight_devices(tmp_path):
    """A batch that eight cannot share is an error. A run on eight resumes on two."""
    measured = {}
    for name, count, flags in (
        ("1", 1, ()),
        ("8", 8, ()),
        ("2", 8, ("--devices", "2")),
        ("8", 8, ("--devices", "2")),
    ):
        done = run("score_sde", [*TINY, *flags], tmp_path / name, count)
        assert done.returncode == 0, done.stderr
        used = flags[-1] if flags else count
        assert f" on {used} × " in done.stdout.partition("\n")[0]
        results = json.loads((tmp_path / name / "metrics.json").read_text())
        measured[name, used] = [
            value
            for key, value in results.items()
            if isinstance(value, float) and not key.startswith("seconds")
        ]
    assert "resuming after step 12" in done.stdout
    one = measured.pop(("1", 1))
    # Sums of up to 128 features of the time err by √128 ε/2 in either run, at each of
    # 12 steps of training and 4 of a solver. Scores are of degree 3 in the samples at
    # most. Differences of nearly equal numbers are known to the numbers' rounding.
    rounding = (12 + 4) * 128**0.5 * np.finfo(np.float32).eps
    for others in measured.values():
        np.testing.assert_allclose(others, one, rtol=3 * rounding, atol=rounding)
    done = run("score_sde", [*TINY, "--batch-size", "20"], tmp_path / "error", 8)
    assert done.returncode == 1
    assert "batch_size must be a multiple of the number of devices, 8" in done.stderr
    assert "take 24, or --devices 5" in done.stderr


SMALLEST = {
    "ddpm": """--width 16 --depth 1 --steps 4 --batch-size 16 --chain-steps 24
--bound-examples 5 --likelihood-steps 3 --samples 6 --few-steps 4 --chunk 4
--no-exact""",
    "energy_model": """--objectives denoising contrastive --levels 4 --walkers 10
--chain-steps 2 --examples 512 --steps 8 --batch-size 64 --width 8 --depth 1
--chains 24""",
    "flow_matching": """--target moons --pairings independent reflow --examples 64
--steps 4 --batch-size 8 --width 8 --depth 1 --samples 97 --likelihoods 97""",
    "fokker_planck": """--processes vp --schedules edm --halvings 5 --points 4
--paths 501 --steps 100 --cells 200""",
    "glow": """--levels 1 --flow-steps 1 --width 8 --dequantiser-layers 2 --steps 4
--batch-size 16 --held-out 13 --draws 2 --samples 13 --chunk 6""",
    "guidance": """--network mlp --width 16 --depth 0 --steps 4 --batch-size 16
--scales 2 --kinds classifier_free --variants --samples 13 --sampling-steps 3
--chunk 12 --exact-samples 2049""",
    "inverse_problems": "--tasks --exact-samples 65 --exact-steps 48",
    "langevin": "--chains 53 --steps 80 --step-sizes 0.5 --levels 4",
    "ncsn": """--samples 101 --levels 3 --corrections 2 --level-counts 2 --budgets 4
--steps 3 --batch-size 16 --width 4""",
    "progressive_vae": """--latents 4 3 --width 8 --depth 1 --steps 4 --prior-steps 4
--prior-batch-size 16 --prior-width 8 --seeds 2 --sets 2 --batch-size 16 --held-out 13
--chunk 6""",
    # At a larger rate rounding grows tenfold a step, on one device too.
    "toy_flows": """--targets moons --flows spline --steps 100 --train 512 --test 513
--learning-rate 1e-5""",
    "toy_sde": "--schedules vp --samples 33 --steps 10 --likelihoods 33",
    "vae": """--latent 3 --width 8 --depth 1 --steps 4 --batch-size 16 --held-out 13
--draws 2 --chunk 6""",
}
"""Flags of each experiment at its smallest. Eight devices share none of the numbers of
samples and test examples evenly.
"""

ROUNDING = 3 * 200 * 128**0.5 * np.finfo(np.float32).eps
"""Sums of up to 128 features of the time err by √128 ε/2 in either run, at each of the
at most 200 steps of training, of a chain or of a solver. Scores are of degree 3 in the
samples at most.
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_one_and_eight_devices_give_the_same_numbers(name, tmp_path):
    measured = {}
    for count in (1, 8):
        folder = tmp_path / str(count)
        done = run(name, SMALLEST[name].split(), folder, count)
        assert done.returncode == 0, done.stderr
        assert f" on {count} × " in done.stdout.partition("\n")[0]
        measured[count] = numbers(json.loads((folder / "metrics.json").read_text()))
    one, eight = measured[1], measured[8]
    assert one.keys() == eight.keys()
    for place, value in one.items():
        # Which steps an adaptive solver accepts at its least tolerance, below float32's
        # spacing at 1, is for the rounding to say.
        if "/adaptive/2/" in place:
            continue
        assert abs(eight[place] - value) <= ROUNDING * (1 + abs(value)), (place, value)


SHARED = """
import jax, numpy as np
from experiments.shared import devices

def walk(key):
    def step(i, x):
        return x + jax.random.normal(jax.random.fold_in(key, i))
    return jax.lax.fori_loop(0, 10, step, 0.0)

def many(key, share):
    return share(jax.vmap(walk)(jax.random.split(key, 64)))

work, ends = [], []
for share in (lambda xs: xs, devices.shared):
    program = jax.jit(many, static_argnums=1).lower(jax.random.key(0), share).compile()
    work.append(program.cost_analysis()["flops"])
    ends.append(np.asarray(program(jax.random.key(0))))
np.testing.assert_array_equal(*ends)
print(work[1] / work[0])
"""


@pytest.mark.slow
def test_a_shared_result_splits_the_work_that_leads_to_it():
    """Each of eight devices makes an eighth of the operations, 5 % apart: those on
    the loop's counter are whole on each. The values are the same.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARED],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert abs(8 * float(done.stdout) - 1) < 0.05
