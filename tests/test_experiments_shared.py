"""The parts of all experiments: a folder with one writer, output without a
reader, training that resumes.
"""

import dataclasses
import errno
import importlib
import io
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffjax.training import lock
from experiments.shared import cli, figures, files, histories, mapping, training
from experiments.vae import config as vae_config
from tests.families import counted_programs

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Config(training.Training):
    """A run of two blocks."""

    out: pathlib.Path = pathlib.Path("out")
    steps: int = 100
    batch_size: int = 4
    save_every: int = 50


# ---- output


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def closed_file():
    file = io.StringIO()
    file.close()
    return file


@pytest.mark.parametrize(
    "make", [closed_pipe, closed_file, lambda: None], ids=["pipe", "file", "none"]
)
def test_output_that_nobody_reads_is_dropped(make):
    """As after `| head -1`, in a closed terminal, or with `2>&-`."""
    file = make()
    stream = cli.Stream(file)
    for _ in range(3):
        print("x" * 100_000, file=stream, flush=True)
    with cli.tqdm.tqdm(total=2, file=stream) as bar:
        bar.update(2)
    if file is not None:
        file.close()  # flushes what is buffered: into nowhere by now


def run_main(monkeypatch, run, out):
    monkeypatch.setattr(sys, "argv", ["experiment", "--out", str(out)])
    cli.main(run, Config, "An experiment.")


def test_a_run_outlives_the_readers_of_its_output(monkeypatch, tmp_path):
    def run(config):
        out = files.open_folder(config)
        with cli.progress(3) as bar:
            for _ in range(3):
                print("y" * 100_000)
                bar.update()
        files.write_json(out / "metrics.json", {"a": 1})

    with closed_pipe() as out, closed_pipe() as errors:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", errors)
        run_main(monkeypatch, run, tmp_path)
        assert (sys.stdout, sys.stderr) == (out, errors)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


START = """
import os, signal, sys
# a background job of a shell lacks this handler
signal.signal(signal.SIGINT, signal.default_int_handler)
os.close(0); os.close(1)
sys.argv[0] = "-m"  # as while Python looks for the module to run
import experiments
null = os.stat(os.devnull).st_rdev
assert [os.fstat(number).st_rdev for number in (0, 1)] == [null] * 2
os.kill(os.getpid(), signal.SIGINT)
"""


def test_an_interrupt_before_the_start_is_one_line():
    run = subprocess.run(
        [sys.executable, "-c", START], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert run.returncode == 130 and run.stderr == "\nstopped before the start\n"


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_seeds_have_32_bits(monkeypatch, capsys, seed):
    """2³² would be the key of 0, and 2⁷⁰ none."""
    monkeypatch.setattr(sys, "argv", ["experiment", "--seed", str(seed)])
    with pytest.raises(SystemExit):
        cli.main(lambda config: None, Config, "An experiment.")
    assert "error: seed must be" in capsys.readouterr().err


def test_numbers_are_printed_with_their_units(capsys):
    """Of two beginnings of a name the longer one says its unit."""
    units = {"time": "h", "time_share": "%"}
    results = {"time_all": 1.5, "time_share": 3, "other": None, "seconds_all": 2}
    cli.print_results(results, units)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        *(["time_all", "1.5000", "h"], ["time_share", "3", "%"]),
        *(["other", "None"], ["seconds_all", "2", "s"]),
    ]
    cli.print_table(
        {"a": {"time": 2.0, "n": 3}, "b": {"time": 4.0, "n": 5}}, "x", units
    )
    assert [line.split() for line in capsys.readouterr().out.split("\n")[:3]] == [
        *(["x", "a", "b"], ["time", "2", "4", "h"], ["n", "3", "5"])
    ]


# ---- the folder


def test_a_folder_in_use_raises_by_name(monkeypatch, tmp_path, capsys):
    def run(config):
        files.open_folder(config)
        files.open_folder(config)  # again in one run
        with pytest.raises(BlockingIOError, match="is in use by process"):
            lock.Lock(tmp_path)

    run_main(monkeypatch, run, tmp_path)
    held = lock.Lock(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_main(monkeypatch, run, tmp_path)
    held.release()
    assert stopped.value.code == 1
    assert re.search(
        rf"error: {tmp_path} is in use by process {os.getpid()} on .* since ",
        capsys.readouterr().err,
    )


def test_what_kills_left_is_removed(monkeypatch, tmp_path):
    for name in (".losses.jsonab1_cdef", ".metrics.json.writing"):
        (tmp_path / name).write_text("{")
    other_files = [".bashrc", "a.json", ".a.json.old", ".a.json"]
    for name in other_files:
        (tmp_path / name).write_text("mine")
    run_main(monkeypatch, files.open_folder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(other_files)


def test_an_interrupt_says_that_it_stopped(monkeypatch, tmp_path, capsys):
    def run(config):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run_main(monkeypatch, run, tmp_path)
    assert "\nstopped; run again" in capsys.readouterr().err


def test_a_full_disk_names_the_file(monkeypatch, tmp_path):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    figure = figures.plt.figure()
    monkeypatch.setattr(pathlib.Path, "write_text", full)
    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics\.json'"):
        files.write_json(tmp_path / "metrics.json", {})
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.png'"):
        figures.save_figure(figure, tmp_path / "a.png")


def test_the_rate_of_a_bar_leaves_out_the_first_update(monkeypatch):
    """It compiles for 30 s here. Ten steps of 2 s follow, and 989 are left."""
    now = [0.0]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with cli.progress(1000) as bar:
        monkeypatch.setattr(bar, "_time", lambda: now[0])
        bar.start_t = bar.last_print_t = 0.0
        now[0] += 30
        bar.update()
        assert "00:30<?" in str(bar)
        for _ in range(10):
            now[0] += 2
            bar.update()
        assert "00:50<32:58,  2.00s/step" in str(bar)


@pytest.mark.parametrize(
    "count, columns",
    [(1, 1), (2, 2), (4, 2), (6, 3), (8, 4), (9, 3), (12, 4), (32, 8), (64, 8)],
)
def test_a_grid_of_images_has_no_blank_cell(count, columns):
    assert figures.near_square(count) == columns


def test_a_grid_of_a_prime_number_is_square():
    assert figures.near_square(13) == 4


@pytest.mark.parametrize("name", ["energy_model", "guidance", "ncsn"])
def test_a_folder_of_another_experiment_stays_unchanged(tmp_path, name):
    """Also one without checkpoints. Runs of an older version name no experiment."""
    make = importlib.import_module(f"experiments.{name}.config").Config
    assert files.experiment_of(make()) == name
    files.write_config(tmp_path, vae_config.Config(out=tmp_path))
    before = (tmp_path / "config.json").read_bytes()
    begin = files.start if name == "ncsn" else files.open_folder
    with pytest.raises(ValueError, match=rf"{tmp_path} is that of vae .* is {name}:"):
        begin(make(out=tmp_path))
    assert (tmp_path / "config.json").read_bytes() == before
    files.open_folder(vae_config.Config(out=tmp_path))
    for text in ("{", "[]", '{"seed": 0}'):
        (tmp_path / "config.json").write_text(text)
        files.open_folder(make(out=tmp_path))


def test_a_removed_folder_ends_the_run(monkeypatch, tmp_path, capsys):
    def run(config):
        out = files.open_folder(config)
        shutil.rmtree(out)
        if config.seed == 0:
            out.mkdir()  # by a program that writes into it
        files.write_json(out / "metrics.json", {})

    for seed in ("0", "1"):
        monkeypatch.setattr(
            sys, "argv", ["experiment", "--out", str(tmp_path / "out"), "--seed", seed]
        )
        with pytest.raises(SystemExit) as stopped:
            cli.main(run, Config, None)
        assert stopped.value.code == 1
        assert (
            "out was removed during the run: metrics.json is not written"
            in capsys.readouterr().err
        )


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"loss": [1.0, 2',
        "[1]",
        '{"other": 1}',
        "\0\0",
        "3",
        pytest.param("[" * 99_999, id="deep"),
    ],
)
def test_a_damaged_file_is_named_with_its_cure(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(
        ValueError, match=rf"{tmp_path}/config\.json is damaged \(.+\): train again"
    ):
        files.read_json(tmp_path / "config.json", "train again", "loss")


# ---- training


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (None, []),
        ("", []),
        ("{", []),
        ("[1]", []),
        ('{"a": 1}', []),
        ('{"loss": ["x"]}', []),
        ('{"loss": 2}', []),
        pytest.param("[" * 99_999, [], id="deep"),
        pytest.param(f'{{"loss": [1{"0" * 400}]}}', [], id="huge"),
        ('{"loss": [1, null, 3]}', [1, math.nan, 3]),
        ('{"loss": [1, 2, 3, 4, 5, 6]}', [1, 2, 3, 4, 5]),
    ],
)
def test_a_lost_history_is_nan(tmp_path, capsys, text, kept):
    path = tmp_path / "losses.json"
    if text is not None:
        path.write_text(text)
    np.testing.assert_array_equal(
        histories.read_history(path, 5), kept + [math.nan] * (5 - len(kept))
    )
    assert (str(path) in capsys.readouterr().out) == (len(kept) < 5)
    aside = tmp_path / "losses.json.unreadable"
    assert (
        aside.read_text() == text
        if text is not None and not kept
        else not aside.exists()
    )
    assert histories.read_history(path, 0) == []


def test_a_run_that_stops_resumes_and_needs_no_history(tmp_path):
    """A run that was stopped ends bit for bit as the uninterrupted run, losses
    included.

    Tests of experiments need not prove it again.
    """
    data = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)

    def loss(params, key, batch):
        return ((batch @ params["w"]) ** 2).mean() + (
            jax.random.key_data(key)[-1] % 8
        ) * params["w"].sum() / 100

    def fit(out, **settings):
        out.mkdir(exist_ok=True)
        init = lambda key: {"w": np.ones((3, 2), np.float32)}
        return training.fit(
            Config(out=out), out, loss, init, arrays=data, stops=(50,), **settings
        )

    def stop(step, params):
        raise InterruptedError(step)

    whole, history = fit(tmp_path / "whole")
    assert history.shape == (100,) and np.isfinite(history).all()
    assert (
        json.loads((tmp_path / "whole" / "losses.json").read_text())["loss"]
        == history.tolist()
    )
    with pytest.raises(InterruptedError):
        fit(tmp_path / "a", on_stop=stop)
    path = tmp_path / "a" / "losses.json"
    assert len(json.loads(path.read_text())["loss"]) == 50
    for text, expected in ((None, history), ('{"loss": [1.0,', np.full(100, math.nan))):
        if text is not None:
            path.write_text(text)
        params, losses = fit(tmp_path / "a")
        assert np.asarray(params["w"]).tobytes() == np.asarray(whole["w"]).tobytes()
        np.testing.assert_array_equal(losses, expected)
        assert (
            len(json.loads(path.read_text())["loss"]) == 100
        )  # finished, for those who read the file


def test_data_that_changed_since_the_checkpoint_are_named(tmp_path):
    data = np.ones((10, 3), np.float32)

    def fit(data):
        loss = lambda params, key, batch: ((batch @ params["w"]) ** 2).mean()
        init = lambda key: {"w": np.ones((3, 2), np.float32)}
        return training.fit(Config(out=tmp_path), tmp_path, loss, init, arrays=data)

    fit(data)
    fit(data.copy())  # as read again
    data[7, 1] += 1e-6
    with pytest.raises(ValueError, match="data_digest: stored .*, new "):
        fit(data)


def test_one_program_maps_every_set_of_examples():
    def one(scale, x, y):
        return scale["a"] * x.sum() + y

    x, y = (
        np.arange(14.0, dtype=np.float32).reshape(7, 2),
        np.arange(7.0, dtype=np.float32),
    )
    with counted_programs() as programs:
        for scale in (2.0, 3.0):
            measured = mapping.map_examples(
                one, {"a": np.float32(scale)}, (x, y), chunk=3, label="mapping"
            )
            np.testing.assert_array_equal(measured, scale * x.sum(1) + y)
    assert len(programs) == 1, programs
