"""Two processes on loopback train as one does, write one checkpoint, and end together.

Each process has two simulated devices. Run as a program, this file is one of them.
"""

import errno
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import training
from diffjax.training import arrays, manifest, processes

ROOT = pathlib.Path(__file__).parents[1]
STEPS, HALF, BATCH, RATE = 8, 4, 16, 1e-2

LATE = 40
"""Seconds, more than the 30 that collectives over CPUs wait."""


def loss_fn(params, key, batch):
    """A regression with noise, whose parameters are large enough to be split."""
    noise = jax.random.normal(key, batch["x"].shape)
    hidden = jnp.tanh((batch["x"] + 0.1 * noise) @ params["w"])
    return jnp.mean((hidden @ params["v"] - batch["y"]) ** 2), {}


def setting():
    """(state, steps, batches), the same in every process."""
    rng = np.random.default_rng(0)
    params = {
        "w": rng.normal(size=(32, 64)).astype(np.float32) / 6,
        "v": rng.normal(size=64).astype(np.float32) / 8,
    }
    rule = training.optimiser(RATE)
    x = rng.normal(size=(40, 32)).astype(np.float32)
    arrays = {"x": x, "y": np.sin(x).sum(axis=-1)}
    steps = training.make_steps(training.make_step(loss_fn, rule, 0.9))
    state = training.init(jax.random.key(3), params, rule)
    return state, steps, training.Batches(arrays, BATCH)


def train(folder, total, index, killed, number, apart, late):
    """Train over all devices up to `total` steps, from the checkpoints in `folder`.
    If `apart`, it is another folder for each process. Process `late` compiles for
    `LATE` seconds longer than the others.
    """
    state, steps, batches = setting()
    if index == late:
        quick = steps

        def steps(*arguments):
            time.sleep(LATE)  # once, in its trace
            return quick(*arguments)

    state = training.shard_state(state, training.data_mesh())
    folder = f"{folder}.of_{index}" if apart and index else folder
    losses, sent, send = [], [], arrays.from_first
    arrays.from_first = lambda *of: sent.append(True) or send(*of)

    def record(step, metrics):
        losses.extend(metrics["loss"].tolist())
        if index == killed and step > HALF:
            os.kill(os.getpid(), number)

    with training.Checkpoints(folder, {}) as checkpoints:
        state = checkpoints.restore_latest(state) or state
        begun, split = int(state.step), state.params["w"].sharding.shard_shape((32, 64))
        state = training.fit(
            state,
            steps,
            batches,
            total,
            checkpoints=checkpoints,
            block=2,
            save_every=HALF,
            on_block=record,
            mesh=training.data_mesh(),
        )
        latest = checkpoints.latest_step()
    params = processes.to_host(state.params)
    return {
        "begun": begun,
        "losses": losses,
        "latest": latest,
        "split": str(split),
        "sent": bool(sent),
        "params": {name: value.tolist() for name, value in params.items()},
    }


def main(folder, total, index, count, port, killed, number, apart, late):
    """One process of `count`."""
    training.start_processes(f"localhost:{port}", count, index, patience=30)
    result = train(folder, total, index, killed, number, apart, late)
    pathlib.Path(f"{folder}.{index}.json").write_text(json.dumps(result))


def launch(
    folder, total, count, killed=-1, number=signal.SIGKILL, apart=False, late=-1
):
    """(exit status, result or None, errors) of each of `count` processes.

    Process `killed` gets the signal `number` after step HALF.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0"
        f" --xla_force_host_platform_device_count={4 // count}",
    }
    children = [
        subprocess.Popen(
            [sys.executable, __file__]
            + [
                str(value)
                for value in (
                    *(folder, total, i, count, port, killed, int(number), int(apart)),
                    late,
                )
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    ended = []
    for i, child in enumerate(children):
        _, errors = child.communicate(timeout=300)
        file = pathlib.Path(f"{folder}.{i}.json")
        result = json.loads(file.read_text()) if file.exists() else None
        file.unlink(missing_ok=True)
        ended.append((child.returncode, result, errors))
    return ended


def assert_same(one, other):
    """Equal to rounding: sums over 32 inputs, 64 hidden features and 16 examples err by
    c = √(32 + 64 + 16) ε/2 of their terms, in either run.

    A loss errs so at each step. Adam divides an entry of the gradient by its own
    size. The smallest of n entries is about 1/n of the others, so that its
    step of the rate errs by n c of that rate.
    """
    rounding = (32 + 64 + BATCH) ** 0.5 * np.finfo(np.float32).eps
    tolerance = STEPS * rounding
    np.testing.assert_allclose(one["losses"], other["losses"], rtol=tolerance)
    atol = RATE * (32 * 64 + 64) * rounding
    for name, value in one["params"].items():
        np.testing.assert_allclose(value, other["params"][name], rtol=0, atol=atol)


def completed(folder, total, count, apart=False, late=-1):
    """The results of processes that all end well."""
    ended = launch(folder, total, count, apart=apart, late=late)
    assert [status for status, _, _ in ended] == [0] * count, ended[0][2] + ended[-1][2]
    return [result for _, result, _ in ended]


@pytest.mark.slow
def test_two_processes_train_as_one_and_each_resumes_the_other(tmp_path):
    (one,) = completed(tmp_path / "one", STEPS, 1)
    two = completed(tmp_path / "two", STEPS, 2)
    assert two[0] == two[1] and two[0]["split"] == one["split"] == "(32, 16)"
    assert_same(one, two[0])
    assert sorted(p.name for p in (tmp_path / "two").iterdir() if p.is_dir()) == [
        str(HALF),
        str(STEPS),
    ]
    for first, second in ((1, 2), (2, 1)):
        folder = tmp_path / f"{first}{second}"
        half = completed(folder, HALF, first)[0]
        rest = completed(folder, STEPS, second)[0]
        assert rest["begun"] == half["latest"] == HALF and rest["latest"] == STEPS
        assert not rest["sent"]  # each has read its own part
        assert_same(one, rest | {"losses": half["losses"] + rest["losses"]})


@pytest.mark.slow
def test_a_process_that_does_not_see_the_folder_gets_the_arrays(tmp_path):
    half = completed(tmp_path / "run", HALF, 2, apart=True)[0]
    two = completed(tmp_path / "run", STEPS, 2, apart=True)
    (one,) = completed(tmp_path / "one", STEPS, 1)
    assert two[0] == two[1] and two[0]["sent"] and two[0]["begun"] == HALF
    assert two[0]["split"] == one["split"] == "(32, 16)"
    assert not (tmp_path / "run.of_1").exists()
    assert_same(one, two[0] | {"losses": half["losses"] + two[0]["losses"]})


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_a_process_may_be_late(tmp_path, late):
    one, two = completed(tmp_path / "run", STEPS, 2, late=late)
    assert one == two and one["latest"] == STEPS


def test_processes_meet_at_barriers_of_new_names(monkeypatch):
    """In each process the same ones, before each collective."""
    names = []

    class Client:
        def wait_at_barrier(self, name, timeout_in_ms):
            assert timeout_in_ms > 24 * 3600 * 1000
            names.append(name)

    # Both of these would start the backend with the client.
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    monkeypatch.setattr(processes.distributed.global_state, "client", Client())
    processes.meet()
    assert not names  # of one process
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gather = processes.multihost_utils
    monkeypatch.setattr(gather, "process_allgather", lambda x: np.stack([x, x + 1]))
    monkeypatch.setattr(gather, "broadcast_one_to_all", lambda x: x)
    assert processes.any_of(3) == 4
    assert processes.from_first({"a": 1}) == {"a": 1}
    assert len(set(names)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_of_two_processes_killed_ends_the_other_and_both_resume(tmp_path, killed):
    """The other ends within the 30 seconds of its `patience` (300 is the timeout)."""
    ended = launch(tmp_path / "run", STEPS, 2, killed)
    assert ended[killed][0] == -9
    status, result, errors = ended[1 - killed]
    assert status not in (0, -9) and result is None
    assert "another process has ended" in errors or "another task died" in errors
    resumed = completed(tmp_path / "run", STEPS, 2)[0]
    (one,) = completed(tmp_path / "one", STEPS, 1)
    # A kill of process 0 may come before its first save is whole.
    assert resumed["begun"] in ((HALF,) if killed else (0, HALF))
    assert_same(one | {"losses": one["losses"][resumed["begun"] :]}, resumed)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_after_a_checkpoint(tmp_path):
    ended = launch(tmp_path / "run", STEPS, 2, 1, signal.SIGTERM)
    assert [status for status, _, _ in ended] == [128 + signal.SIGTERM] * 2
    resumed = completed(tmp_path / "run", STEPS, 1)[0]
    assert HALF < resumed["begun"] <= STEPS


@pytest.mark.parametrize(
    "fault",
    [manifest.Damaged(), MemoryError(), PermissionError(errno.EACCES, "no permission")],
)
def test_a_process_that_cannot_read_gets_the_arrays_of_the_first(
    tmp_path, monkeypatch, fault
):
    """It must not raise: the others wait for it."""
    state, _, _ = setting()
    read = arrays.read

    def own_part_fails(*args, on_host, **named):
        if not on_host:
            raise fault
        return read(*args, on_host=on_host, **named)

    with training.Checkpoints(tmp_path, {}) as saved:
        saved.save(0, state)
        items = arrays.items_of(state)
        monkeypatch.setattr(arrays, "read", own_part_fails)
        restored = arrays.state_of(state, saved._read_together(items))
    words = jax.random.key_data(restored.key)
    np.testing.assert_array_equal(words, jax.random.key_data(state.key))
    for one, other in zip(
        jax.tree.leaves((restored.params, restored.opt_state, restored.ema)),
        jax.tree.leaves((state.params, state.opt_state, state.ema)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


class Lost:
    """A source that does not know its position, or states one that is not JSON."""

    def __init__(self, position):
        self.position_at = position

    def position(self, step):
        return self.position_at()

    def continue_from(self, position):
        pass


@pytest.mark.parametrize("position", [lambda: 1 // 0, lambda: {"step": {1}}])
def test_an_error_of_a_source_is_that_of_all_processes(tmp_path, monkeypatch, position):
    """The first sends it before any of them waits for the arrays of the others."""
    state, _, _ = setting()
    sent = []
    with training.Checkpoints(tmp_path, {}, source=Lost(position)) as saved:
        monkeypatch.setattr(processes, "from_first", lambda v: sent.append(v) or v)
        monkeypatch.setattr(arrays, "to_host", lambda _: pytest.fail("a gather"))
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises((ZeroDivisionError, TypeError)):
            saved.save(0, state)
        monkeypatch.undo()
        assert [*sent[0]] == ["value"] and [*sent[1]] == ["error", "message"]
        assert saved.latest_step() is None


def test_start_processes_names_missing_and_wrong_arguments(monkeypatch):
    for name in ("DIFFJAX_COORDINATOR", "DIFFJAX_PROCESSES", "DIFFJAX_PROCESS_INDEX"):
        monkeypatch.delenv(name, raising=False)
    assert training.start_processes() == 1
    assert training.start_processes("localhost:1", 1, 0) == 1
    with pytest.raises(ValueError, match=r"index \(or DIFFJAX_PROCESS_INDEX\) must be"):
        training.start_processes("localhost:1", 2)
    with pytest.raises(ValueError, match="index must be .*got 2"):
        training.start_processes("localhost:1", 2, 2)
    with pytest.raises(ValueError, match="coordinator must be host:port .*'here'"):
        training.start_processes("here", 2, 1)
    monkeypatch.setenv("DIFFJAX_PROCESSES", "two")
    with pytest.raises(ValueError, match="count must be an integer, got 'two'"):
        training.start_processes("localhost:1", index=0)


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    main(folder, *map(int, numbers))
