"""The loop: the same bits however steps are divided into blocks, signals that are
noticed during slow calls, micro-batches, precision, and faults during a save.
"""

import itertools
import os
import resource
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffjax import networks, training
from diffjax.training import Checkpoints
from diffjax.training.blocks import MOST_BYTES, Blocks
from tests.families import counted_programs
from tests.forked import ROOT, Nursery
from tests.training_problem import (
    CONFIG,
    STEP,
    STEPS,
    assert_bitwise,
    batches,
    initial,
    restored_from,
    steps_in,
    trained,
)


@pytest.fixture(scope="module")
def nursery():
    training.fit(initial(), STEPS, batches(), 4)  # compiled into the cache
    nursery = Nursery("test_training_loop")
    yield nursery
    nursery.close()


# ---- blocks


def in_blocks(steps, state, source, size, counts):
    """The state after blocks of these counts, padded to `size` with NaN, and its
    losses.
    """
    losses, start = [], int(state.step)
    for count in counts:
        taken = source.block(start, count)
        padded = jax.tree.map(
            lambda leaf, n=count: np.concatenate(
                [leaf, np.full((size - n, *leaf.shape[1:]), np.nan, leaf.dtype)]
            ),
            taken,
        )
        state, metrics = steps(state, padded, count)
        assert metrics["finite"].tolist() == [True] * count + [False] * (size - count)
        assert not metrics["loss"][count:].any()
        losses += metrics["loss"][:count].tolist()
        start += count
    return state, losses


def test_no_division_into_blocks_changes_a_bit():
    whole, losses = in_blocks(STEPS, initial(), batches(), 8, [6])
    assert_bitwise(whole, trained(6))
    for size, counts in ((1, [1] * 6), (2, [1, 2, 2, 1]), (8, [3, 3]), (64, [2, 4])):
        state, others = in_blocks(STEPS, initial(), batches(), size, counts)
        assert_bitwise(state, whole)
        assert others == losses


def network_problem(name, dtype):
    shape = (8, 8, 1) if name == "unet" else (6,)
    net = {
        "mlp": lambda: networks.MLP(width=32, depth=2, dropout=0.1, dtype=dtype),
        "unet": lambda: networks.UNet(
            width=8,
            multipliers=(1, 2),
            blocks=1,
            attention_resolutions=(1,),
            dropout=0.1,
            dtype=dtype,
        ),
    }[name]()

    def loss(params, key, batch):
        def one(key, x):
            noise = jax.random.normal(key, x.shape)
            output = net.apply(
                params, x + noise, 0.3, train=True, rngs={"dropout": key}
            )
            return jnp.mean((output - noise) ** 2)

        return jax.vmap(one)(jax.random.split(key, len(batch)), batch).mean(), {}

    rule = training.optimiser(1e-3, warmup_steps=3, total_steps=30)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros(shape), 0.5)
    data = np.random.default_rng(0).normal(size=(50, *shape)).astype(np.float32)
    steps = training.make_steps(training.make_step(loss, rule))
    start = lambda: training.init(jax.random.key(1), params, rule)
    return steps, start, training.Batches(data, 8)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_blocks_of_networks_agree_bit_for_bit(name, dtype):
    """With dropout, attention and bfloat16, from restarts at any step.

    XLA on CPUs computes convolutions otherwise outside of a loop, where K = 1.
    """
    steps, start, source = network_problem(name, dtype)
    whole, losses = in_blocks(steps, start(), source, 64, [12])
    for size in (1, 2, 8):
        counts = [min(size, 12 - n) for n in range(0, 12, size)]
        state, others = in_blocks(steps, start(), source, size, counts)
        if name == "mlp" or size > 1:
            assert_bitwise(state, whole)
            assert others == losses
    for cut in range(1, 12):
        state, _ = in_blocks(steps, start(), source, 64, [cut, 12 - cut])
        assert_bitwise(state, whole)


def test_convolutions_on_cpus_are_taken_singly():
    def loss(params, key, batch):
        convolved = jax.lax.conv(batch, params["w"], (1, 1), "SAME")
        return jnp.mean((convolved - batch) ** 2), {}

    rule = optax.sgd(0.1)
    step = training.make_step(loss, rule)
    steps = training.make_steps(step)
    start = training.init(jax.random.key(0), {"w": jnp.ones((2, 2, 3, 3))}, rule)
    data = np.random.default_rng(0).normal(size=(9, 2, 4, 4)).astype(np.float32)
    source, seen = training.Batches(data, 4), []
    one = training.fit(
        start, steps, source, 5, on_block=lambda n, m: seen.append((n, len(m["loss"])))
    )
    assert seen == [(n, 1) for n in range(1, 6)]
    program = steps.lower(start, source.block(0, 1), np.int32(1)).as_text()
    assert "stablehlo.while" not in program
    resumed = training.fit(training.fit(start, steps, source, 2), steps, source, 5)
    assert_bitwise(resumed, one)


@pytest.mark.parametrize("block", [None, 4])
def test_a_run_compiles_one_program(block):
    steps = training.make_steps(STEP)
    with counted_programs() as programs:
        state = training.fit(initial(), steps, batches(), 11, block=block)
        first = len(programs)
        for stop in (12, 19):
            state = training.fit(state, steps, batches(), stop, block=block)
    assert sum("steps" in str(program) for program in programs) == 1, programs
    assert len(programs) == first
    assert_bitwise(state, trained(19))


def test_a_block_is_as_long_as_fits_two_seconds():
    blocks = Blocks(batches(), 10**6, None, save_every=1000, mesh=None)
    lengths = []
    with blocks:
        step = 0
        for seconds_of_a_step in (0.1, 0.1, 0.1, 1e-6, 1e-6, 3.0, 3.0, 0.1):
            blocks.start(step)
            stacked, count = blocks.take()
            assert stacked["x"].shape[0] == 1024
            np.testing.assert_array_equal(
                stacked["x"][:count], batches().block(step, int(count))["x"]
            )
            step += int(count)
            lengths.append(int(count))
            blocks.measured(int(count), seconds_of_a_step * int(count), [], [])
    # 16 steps of 0.1 s; aligned; a save at 1000; no block longer than 1024
    assert lengths == [1, 15, 16, 16, 952, 24, 1, 1]


def test_blocks_are_bounded_by_their_bytes():
    for examples, size in ((MOST_BYTES // 5, 4), (2 * MOST_BYTES, 1)):
        source = training.Batches(np.zeros((1, examples), np.uint8), 1)
        blocks = Blocks(source, 9, None, save_every=9, mesh=None)
        assert blocks.block(0, 1).shape == (size, 1, examples)


def test_buffers_are_donated():
    state = initial()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)) * 3
    lowered = STEPS.lower(state, batches().block(0, 8), np.int32(3))
    assert lowered.compile().memory_analysis().alias_size_in_bytes >= size
    held, shape = [], state.params["w"].shape

    def on_block(step, metrics):
        held.append(sum(leaf.shape == shape for leaf in jax.live_arrays()))

    final = training.fit(
        state, STEPS, batches(), 24, block=4, on_block=on_block, donate=True
    )
    assert state.params["w"].is_deleted() and state.key.is_deleted()
    assert len(held) == 6 and max(held) == held[0]  # no copy more per block
    assert_bitwise(final, trained(24))


# ---- signals


class Lowered:
    """Steps whose compilation takes until `finish` is set."""

    def __init__(self):
        self.begun, self.finish = threading.Event(), threading.Event()

    def __call__(self, *arguments):
        raise AssertionError("not compiled yet")

    def lower(self, *arguments):
        return self

    def as_text(self):
        return ""

    def compile(self):
        self.begun.set()
        self.finish.wait(60)


class Slow:
    """Batches of which those from `first` on take until `finish` is set."""

    def __init__(self, first):
        self.first = first
        self.begun, self.finish = threading.Event(), threading.Event()

    def block(self, step, count):
        if step >= self.first:
            self.begun.set()
            self.finish.wait(60)
        return batches().block(step, count)


def send(number, begun, times=1):
    """Send a signal to this process once `begun` is set."""

    def wait():
        begun.wait(60)
        for _ in range(times):
            os.kill(os.getpid(), number)
            threading.Event().wait(0.2)

    threading.Thread(target=wait).start()


@pytest.fixture
def handled():
    """Handlers as at the start of a program, also where tests ignore Ctrl-C."""
    previous = {
        number: signal.signal(number, handler)
        for number, handler in (
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGTERM, signal.SIG_DFL),
            (signal.SIGHUP, signal.SIG_DFL),
        )
    }
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


ENDS = {signal.SIGTERM: SystemExit, signal.SIGINT: KeyboardInterrupt}


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_does_not_wait_for_the_compiler(tmp_path, number, handled):
    steps = Lowered()
    send(number, steps.begun)
    with Checkpoints(tmp_path, CONFIG) as checkpoints, pytest.raises(ENDS[number]):
        training.fit(trained(3), steps, batches(), 9, checkpoints=checkpoints)
    assert not steps.finish.is_set()
    steps.finish.set()
    assert_bitwise(restored_from(tmp_path), trained(3))


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_does_not_wait_for_the_data(tmp_path, number, handled):
    source = Slow(4)
    send(number, source.begun)
    with Checkpoints(tmp_path, CONFIG) as checkpoints, pytest.raises(ENDS[number]):
        training.fit(initial(), STEPS, source, 99, checkpoints=checkpoints, block=4)
    assert not source.finish.is_set()
    source.finish.set()
    assert_bitwise(restored_from(tmp_path), trained(4))


def test_an_error_of_the_data_is_raised_after_the_block_before(tmp_path):
    class Broken(Slow):
        def block(self, step, count):
            if step >= 4:
                raise OSError("images/7.png cannot be read")
            return batches().block(step, count)

    seen = []
    with pytest.raises(OSError, match=r"images/7\.png"):
        training.fit(
            initial(),
            STEPS,
            Broken(4),
            9,
            block=4,
            on_block=lambda n, m: seen.append(n),
        )
    assert seen == [4]


class Returning:
    """A source that returns what a function makes of batches."""

    batch_size = 4

    def __init__(self, change):
        self.change = change

    def block(self, step, count):
        return self.change(np.ones((count, 4, 2), np.float32))


@pytest.mark.parametrize(
    "change, got",
    [
        (lambda block: block[:-1], r"shape \(3, "),  # zeros would take its place
        (lambda block: np.concatenate([block, block[:1]]), r"shape \(5, "),
        (lambda block: block.tolist(), "float"),
        (lambda block: {"x": block, "y": 1.0}, r"'y'\] must be .* got float"),
        (lambda block: None, "must return arrays, got None"),
        (lambda block: {}, r"must return arrays, got \{\}"),
    ],
)
def test_a_source_that_returns_another_number_of_batches_raises(change, got):
    with pytest.raises(ValueError, match=rf"batches\.block\(0, 4\).*{got}"):
        training.fit(initial(), STEPS, Returning(change), 8, block=4)


def waiting_steps(finish, begun):
    """Steps that each wait until `finish` is set."""

    def wait(value):
        begun.set()
        finish.wait(60)
        return value

    def loss(params, key, batch):
        value = jnp.mean((params["w"] - batch) ** 2)
        form = jax.ShapeDtypeStruct((), value.dtype)
        waited = jax.pure_callback(wait, form, jax.lax.stop_gradient(value))
        return value, {"waited": waited}

    rule = optax.sgd(0.1)
    state = training.init(jax.random.key(0), {"w": jnp.zeros(())}, rule)
    source = training.Batches(np.arange(4, dtype=np.float32), 2)
    return training.make_steps(training.make_step(loss, rule)), state, source


def test_a_signal_during_a_slow_step_saves_the_state_after_it(tmp_path, handled):
    begun, finish = threading.Event(), threading.Event()
    steps, state, source = waiting_steps(finish, begun)
    send(signal.SIGTERM, begun)
    threading.Timer(0.6, finish.set).start()
    with Checkpoints(tmp_path, {}) as checkpoints:
        with pytest.raises(SystemExit) as stopped:
            training.fit(state, steps, source, 10**6, checkpoints=checkpoints)
        saved = checkpoints.restore_latest(state)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert_bitwise(saved, training.fit(state, steps, source, int(saved.step)))


@pytest.mark.slow
def test_a_second_interrupt_does_not_wait_for_the_step(handled):
    def loss(params, key, batch):
        # Seconds on any machine, of products that XLA does not take for cheap:
        # those it would compute before the call returns.
        turn = lambda i, x: jnp.sin(x @ x)
        return jax.lax.fori_loop(0, 20_000, turn, params["w"]).mean(), {}

    class Signalled(Slow):
        def block(self, step, count):
            if step:  # read while the device takes the first step
                self.begun.set()
            return np.ones((count, 4), np.float32)

    source, rule, reported = Signalled(0), optax.sgd(0.0), []
    # No gradient of a loop of that length.
    step = training.make_step(lambda *of: jax.lax.stop_gradient(loss(*of)), rule)
    state = training.init(jax.random.key(0), {"w": jnp.ones((128, 128))}, rule)
    send(signal.SIGINT, source.begun, times=2)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        training.fit(
            state,
            training.make_steps(step),
            source,
            10**6,
            on_block=lambda n, m: reported.append(n),
        )
    assert not reported and not interrupted.value.args


COMPILES_LONG = """
import jax, jax.numpy as jnp, numpy as np, os, signal, sys, threading
from diffjax import training
# A shell that starts the tests in the background has them ignore Ctrl-C, and
# nohup has them ignore SIGHUP. A child inherits both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def loss(params, key, batch):
    x = params["w"]
    for i in range(1500):
        x = jnp.sin(x @ x) + jnp.cumsum(x, axis=i % 2)
    return x.mean(), {}
rule = training.optimiser()
state = training.init(jax.random.key(0), {"w": jnp.ones((8, 8))}, rule)
steps = training.make_steps(training.make_step(loss, rule))
lower = type(steps).lower
class Signalled:
    def lower(self, *arguments):
        lowered = steps.lower(*arguments)
        threading.Timer(0.3, os.kill, (os.getpid(), int(sys.argv[2]))).start()
        return lowered
    def __call__(self, *arguments):
        return steps(*arguments)
with training.Checkpoints(sys.argv[1], {}) as checkpoints:
    training.fit(state, Signalled(), training.Batches(np.zeros((4, 2)), 2), 3,
                 checkpoints=checkpoints, on_block=print)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_program_ends_while_xla_compiles(tmp_path, number):
    """With the exit code of the signal, though a thread is still in the compiler."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    ended = subprocess.run(
        [sys.executable, "-c", COMPILES_LONG, str(tmp_path / "run"), str(int(number))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 128 + number, ended.stderr
    assert steps_in(tmp_path / "run") == ["0"] and ended.stdout == ""


# ---- micro-batches


def regression(params, key, batch):
    residual = batch["x"] @ params["w"] - batch["y"]
    return jnp.mean(residual**2), {"largest": jnp.mean(jnp.abs(residual))}


DYADIC = optax.sgd(0.25, momentum=0.5)


def dyadic(examples):
    """(state, data) of small integers, and an average that is the parameters.

    Rates and batch sizes are powers of two. So products and sums are exact in
    float32, in any order, and so are the parameters of two steps.
    """
    rng = np.random.default_rng(0)
    data = {"x": rng.integers(-2, 3, (examples, 3)), "y": rng.integers(-3, 4, examples)}
    params = {"w": jnp.array([1.0, -2.0, 1.0])}
    state = training.init(jax.random.key(7), params, DYADIC)
    return state, jax.tree.map(np.float32, data)


def test_micro_batches_have_the_mean_of_the_whole_batch():
    start, batch = dyadic(8)
    whole, expected = training.make_step(regression, DYADIC, 0.0)(start, batch)
    assert np.all(whole.params["w"] != start.params["w"])
    for n in (2, 4, 8):
        step = training.make_step(regression, DYADIC, 0.0, accumulate=n)
        state, metrics = step(start, batch)
        assert_bitwise(state, whole)
        assert_bitwise(metrics, expected)


def test_keys_and_examples_of_micro_batches():
    def loss(params, key, batch):
        word = jax.random.key_data(key)[-1].astype(jnp.float32)
        return 0 * params["w"] + batch @ jnp.array([1.0, 100.0]), {"word": word}

    rule, n = optax.sgd(0.1), 3
    state = training.init(jax.random.key(5), {"w": jnp.ones(())}, rule)
    _, metrics = training.make_step(loss, rule, accumulate=n)(
        state, np.arange(2.0 * n, dtype=np.float32)
    )
    keys = [jax.random.fold_in(jax.random.fold_in(state.key, 0), i) for i in range(n)]
    words = np.array([jax.random.key_data(key)[-1] for key in keys], np.float32)
    # Two sums and a division by 3, by its rounded inverse at the most.
    rounding = 2 * np.finfo(np.float32).eps
    mean = words.mean(dtype=np.float64)
    np.testing.assert_allclose(metrics["word"], mean, rtol=rounding)
    losses = [i + 100.0 * (i + n) for i in range(n)]
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=rounding)


def test_a_batch_that_cannot_be_split_is_named():
    step = training.make_step(regression, DYADIC, accumulate=3)
    message = r"batch_size must be a multiple of accumulate=3, got .*\(8, 3\).*\['x'\]"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step, *dyadic(8))
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        training.make_step(regression, DYADIC, accumulate=0)


def micro_batches_on_eight_devices():
    """In a child."""
    os.environ["XLA_FLAGS"] = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    )
    mesh = training.data_mesh()
    start, data = dyadic(32)
    step = training.make_step(regression, DYADIC, 0.0, accumulate=2)
    steps = training.make_steps(step)
    source = training.Batches(data, 32)
    state = training.fit(start, steps, source, 2, mesh=mesh)
    plain, _ = steps(dyadic(32)[0], source.block(0, 2))
    assert_bitwise(state, plain)
    # No example moves from one device to another.
    placed = jax.device_put(source.at(0), NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        program = step.lower(training.replicate(start, mesh), placed).compile()
    for moves in ("all-to-all", "collective-permute", "all-gather"):
        assert moves not in program.as_text(), moves


def test_micro_batches_are_spread_over_devices(tmp_path, nursery):
    ((status, _, errors),) = nursery.run(
        tmp_path / "output", ("micro_batches_on_eight_devices",)
    )
    assert status == 0, errors


# ---- precision


def test_bfloat16_networks_have_float32_states_and_metrics():
    steps, start, source = network_problem("mlp", jnp.bfloat16)
    state, metrics = jax.eval_shape(steps, start(), source.block(0, 2))
    real = [
        leaf.dtype
        for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state, metrics))
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert set(real) == {np.dtype(np.float32)}


def test_the_norm_of_a_bfloat16_gradient_is_that_of_its_entries():
    params = {"w": jnp.ones(1000, jnp.bfloat16)}
    rule = optax.sgd(1.0)
    step = training.make_step(lambda p, key, batch: (jnp.sum(p["w"]), {}), rule)
    _, metrics = step(training.init(jax.random.key(0), params, rule), {})
    # Each entry of the gradient is 1. A sum in bfloat16 ends at 256.
    # The sum of squares is exact, and the root rounds once.
    rounding = np.finfo(np.float32).eps
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(1000), rtol=rounding)
    assert metrics["loss"].dtype == jnp.float32


# ---- faults during a save


def killed_in_a_save(directory, at):
    """In a child, which is killed when it has written `at` parts of its second
    checkpoint.
    """
    from diffjax.training import manifest

    parts, real = itertools.count(), manifest.describe

    def describe(*arguments):
        # Called for each part, between the arrays and the manifest.
        if next(parts) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    manifest.describe = describe
    with Checkpoints(directory, CONFIG) as checkpoints:
        training.fit(
            initial(), STEPS, batches(), 8, checkpoints=checkpoints, save_every=4
        )


def test_killed_in_a_save_the_checkpoint_before_counts(tmp_path, nursery):
    run = tmp_path / "run"
    ((status, _, _),) = nursery.run(
        tmp_path / "output", ("killed_in_a_save", str(run), 2)
    )
    assert status == -signal.SIGKILL
    assert steps_in(run) == ["4"] and (run / "8.writing").exists()
    with Checkpoints(run, CONFIG) as checkpoints:
        state = checkpoints.restore_latest(initial())
        assert_bitwise(state, trained(4))
        training.fit(state, STEPS, batches(), 8, checkpoints=checkpoints)
    assert_bitwise(restored_from(run), trained(8))


def full_disk(directory):
    """In a child, whose files can no longer grow once a checkpoint is saved."""

    def on_block(step, metrics):
        if step == 8:
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    with Checkpoints(directory, CONFIG) as checkpoints:
        training.fit(
            initial(),
            STEPS,
            batches(),
            8,
            checkpoints=checkpoints,
            block=4,
            save_every=4,
            on_block=on_block,
        )


def test_a_disk_that_is_full_in_a_save_loses_no_checkpoint(tmp_path, nursery):
    run = tmp_path / "run"
    ((status, _, errors),) = nursery.run(tmp_path / "output", ("full_disk", str(run)))
    assert status == 1
    assert steps_in(run) == ["4"]
    with Checkpoints(run, CONFIG) as checkpoints:
        state = checkpoints.restore_latest(initial())
        training.fit(state, STEPS, batches(), 8, checkpoints=checkpoints)
    assert_bitwise(restored_from(run), trained(8))
