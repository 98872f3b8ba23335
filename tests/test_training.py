"""Training: the step is optax's, the data position is the step, and a run that was killed is the run that was not."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from diffjax import training
from diffjax.training import Batches, Checkpoints

FEATURES, EXAMPLES, BATCH = 3, 22, 8
CONFIG = {"learning_rate": 0.01, "network": {"width": 4}, "steps": 20}
ROOT = pathlib.Path(__file__).parents[1]


def loss_fn(params, key, batch):
    """A regression through tanh with noise from the key, so that a wrong key changes the result."""
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    residual = hidden.sum(axis=-1) - batch["y"]
    return jnp.mean(residual**2), {"bias": params["b"].mean()}


def parameters():
    return {"w": jax.random.normal(jax.random.key(1), (FEATURES, 4)), "b": jnp.zeros(4)}


def arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    return {"x": x, "y": np.sin(x).sum(axis=-1)}


def batches():
    return Batches(arrays(), BATCH, seed=3)


def optimiser():
    return training.optimiser(0.01, warmup_steps=5, total_steps=40, weight_decay=0.01, clip_norm=0.5)


def initial():
    return training.init(jax.random.key(7), parameters(), optimiser())


STEP = training.make_step(loss_fn, optimiser(), ema_decay=0.9)
STEPS = training.make_steps(STEP)


def bits(state):
    """Every leaf of the state as numpy, keys as their words."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    words = {p: jax.random.key_data(leaf) if is_key(leaf) else leaf for p, leaf in leaves}
    return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in words.items()}


def assert_bitwise(one, other):
    one, other = bits(one), bits(other)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert one[name].tobytes() == other[name].tobytes(), f"{name}: {one[name]} and {other[name]}"


# ---- step


def test_step_is_a_hand_written_optax_update():
    rule = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(lambda n: training.warmup_cosine(0.01, 5, 40)(n), weight_decay=0.01),
    )
    params, opt_state = parameters(), rule.init(parameters())
    state = initial()
    for n in range(4):
        batch = batches().at(n)
        key = jax.random.fold_in(jax.random.key(7), n)
        (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, key, batch)
        updates, opt_state = rule.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        state, metrics = STEP(state, batch)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
        assert metrics["finite"]
    assert int(state.step) == 4
    for name in params:  # to the rounding of compiled against eager arithmetic, in units of the change
        np.testing.assert_allclose(state.params[name], params[name], rtol=0, atol=1e-5 * 0.01)


def test_average_is_its_closed_form():
    # ema_N = Σ_n w_n p_n with w_n = (1 − d_n) Π_{m>n} d_m, and p_0 with Π d_m; d_n = min(0.9, (1 + n)/(10 + n))
    state = initial()
    seen = [state.params["w"]]
    for n in range(12):
        state, _ = STEP(state, batches().at(n))
        seen.append(state.params["w"])
    d = np.minimum(0.9, (1 + np.arange(12)) / (10 + np.arange(12)))
    weights = [np.prod(d)] + [(1 - d[n]) * np.prod(d[n + 1 :]) for n in range(12)]
    assert np.isclose(sum(weights), 1)
    expected = sum(w * np.asarray(p, np.float64) for w, p in zip(weights, seen, strict=True))
    np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-5)
    assert training.ema_decay_at(0, 0.999) == np.float32(0.1)
    assert training.ema_decay_at(10**6, 0.999) == np.float32(0.999)


def test_average_is_kept_in_float32_for_bfloat16_parameters():
    state = training.init(jax.random.key(0), {"w": jnp.ones(3, jnp.bfloat16)}, optax.sgd(1e-3))
    step = training.make_step(lambda p, key, b: (jnp.sum(p["w"] * b), {}), optax.sgd(1e-3))
    state, _ = jax.jit(step)(state, jnp.ones(3))
    assert state.params["w"].dtype == jnp.bfloat16 and state.ema["w"].dtype == jnp.float32


def test_learning_rate_warms_up_and_decays():
    rate = training.warmup_cosine(2.0, 4, 14, final_fraction=0.1)
    np.testing.assert_allclose([rate(n) for n in range(4)], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose([rate(9), rate(14), rate(99)], [2.0 * 0.55, 0.2, 0.2], rtol=1e-6)
    assert training.warmup_cosine(2.0, 0, None)(0) == 2.0


def test_scan_of_steps_equals_single_steps_bit_for_bit():
    one, _ = STEPS(initial(), batches().block(0, 7))
    single = jax.jit(STEP)
    other = initial()
    for n in range(7):
        other, _ = single(other, batches().at(n))
    assert_bitwise(one, other)


def test_steps_compile_once_and_own_their_buffers():
    params, key = parameters(), jax.random.key(7)
    traces = []

    def counted(*args):
        traces.append(1)
        return loss_fn(*args)

    steps = training.make_steps(training.make_step(counted, optimiser()))
    state = training.init(key, params, optimiser())
    for n in (0, 5, 10):
        state, metrics = steps(state, batches().block(n, 5))
    assert metrics["loss"].shape == metrics["finite"].shape == (5,)
    assert len(traces) == 1
    assert not params["w"].is_deleted() and not key.is_deleted()


@pytest.mark.parametrize("where", ["loss", "gradient", "metric"])
def test_a_step_that_is_not_finite_is_not_taken(where):
    def bad_loss(params, key, batch):
        w, bad = params["w"], batch["bad"]
        good = jnp.sum(w**2)
        if where == "loss":
            return good + jnp.where(bad, jnp.nan, 0.0), {}
        if where == "gradient":  # d√u/du at 0 is infinite while the loss is finite
            return good + jnp.sqrt(jnp.where(bad, 0.0 * w[0], 1.0 + w[0] ** 2)), {}
        return good, {"own": jnp.where(bad, jnp.inf, 1.0)}

    step = training.make_step(bad_loss, optimiser())
    state = training.init(jax.random.key(0), {"w": jnp.arange(1.0, 3.0)}, optimiser())
    good, _ = jax.jit(step)(state, {"bad": False})
    after, metrics = jax.jit(step)(good, {"bad": True})
    assert not metrics["finite"]
    assert_bitwise(after, good)
    scanned, metrics = training.make_steps(step)(state, {"bad": np.array([False, True, False, False])})
    assert metrics["finite"].tolist() == [True, False, False, False]
    assert_bitwise(scanned, good)


def test_step_argument_errors():
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        training.init(jax.random.PRNGKey(0), parameters(), optimiser())
    with pytest.raises(ValueError, match=r"ema_decay must lie in \[0.0, 1.0\], got 1.5"):
        training.make_step(loss_fn, optimiser(), ema_decay=1.5)
    with pytest.raises(ValueError, match="'loss' is a name"):
        training.make_step(lambda p, k, b: (p["b"].sum(), {"loss": 1.0}), optimiser())(initial(), {})
    with pytest.raises(ValueError, match=r"'own' must be a scalar, got shape \(4,\)"):
        training.make_step(lambda p, k, b: (p["b"].sum(), {"own": p["b"]}), optimiser())(initial(), {})
    with pytest.raises(ValueError, match="total_steps must be greater than warmup_steps=5, got 3"):
        training.optimiser(warmup_steps=5, total_steps=3)
    with pytest.raises(ValueError, match="clip_norm must be positive, got 0"):
        training.optimiser(clip_norm=0.0)


# ---- data


@pytest.mark.parametrize("batch_size", [1, 8, 22, 50])
def test_every_example_exactly_once_an_epoch(batch_size):
    stream = Batches(np.arange(EXAMPLES), batch_size, seed=1).block(0, 5 * EXAMPLES).reshape(-1)
    epochs = stream.reshape(-1, EXAMPLES)  # 5 · batch_size of them
    assert (np.sort(epochs, axis=1) == np.arange(EXAMPLES)).all()
    assert (epochs[0] != epochs[1]).any()


def test_a_batch_depends_on_its_step_alone():
    one = batches()
    block = one.block(2, 9)
    assert block["x"].shape == (9, BATCH, FEATURES) and block["y"].shape == (9, BATCH)
    for step in (10, 2, 7):  # out of order, on an object with another history
        fresh, again = batches().at(step), one.at(step)
        for name in block:
            np.testing.assert_array_equal(block[name][step - 2], fresh[name])
            np.testing.assert_array_equal(block[name][step - 2], again[name])
    assert (Batches(arrays(), BATCH, seed=4).at(0)["x"] != batches().at(0)["x"]).any()


def test_data_argument_errors():
    with pytest.raises(ValueError, match=r"one leading axis in common.*\(3, 2\).*\(4,\)"):
        Batches({"x": np.zeros((3, 2)), "y": np.zeros(4)}, 2)
    with pytest.raises(ValueError, match="at least one example"):
        Batches(np.zeros((0, 2)), 2)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Batches(np.zeros((3, 2)), 0)
    with pytest.raises(ValueError, match="held_out must be .*between 1 and 2.*got 3"):
        training.split(np.zeros((3, 2)), 3)


def test_split_is_a_partition():
    x = np.arange(20)
    for held_out, count in ((5, 5), (0.25, 5)):
        rest, held = training.split({"x": x}, held_out, seed=1)
        assert len(held["x"]) == count
        assert sorted([*rest["x"], *held["x"]]) == x.tolist()
        np.testing.assert_array_equal(held["x"], training.split({"x": x}, held_out, seed=1)[1]["x"])


def test_load_reads_arrays_of_ones_own(tmp_path):
    x, y = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([1, 0])
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", anything=x)
    np.savez(tmp_path / "c.npz", images=x, labels=y, other=np.zeros(7))
    for name in ("a.npy", "b.npz", "c.npz"):
        loaded = training.load(tmp_path / name)
        assert loaded.dtype == np.float32 and (loaded == x).all()
    loaded, labels = training.load_labelled(str(tmp_path / "c.npz"))
    assert labels.dtype == np.int32 and (labels == y).all() and (loaded == x).all()
    with pytest.raises(ValueError, match="b.npz must be .*labels"):
        training.load_labelled(tmp_path / "b.npz")


def bad_files():
    nan = np.ones((4, 2))
    nan[1, 0] = nan[2, 1] = np.nan
    return {
        "no_such_file.npy": (None, FileNotFoundError, "not a file"),
        "suffix.txt": ("text", ValueError, "must be a .npy or .npz"),
        "no_bytes.npy": ("", ValueError, "empty"),
        "no_examples.npy": (np.zeros((0, 2)), ValueError, r"at least one example.*\(0, 2\)"),
        "rank_1.npy": (np.zeros(5), ValueError, r"rank 2 or more, got shape \(5,\)"),
        "nan.npy": (nan, ValueError, "2 NaN and 0 infinite of 8"),
        "too_large.npy": (np.full((2, 2), 1e300), ValueError, "0 NaN and 4 infinite of 4"),
        "text.npy": ("this is no array", ValueError, "cannot be read|Python objects"),
        "text.npz": ("this is no archive", ValueError, "cannot be read|Python objects"),
        "objects.npy": (np.array([[1, None]], dtype=object), ValueError, "Python objects"),
        "strings.npy": (np.array([["a", "b"]]), ValueError, "real numbers, got dtype <U1"),
        "complex.npy": (np.ones((2, 2), complex), ValueError, "real numbers, got dtype complex128"),
        "several.npz": ({"p": np.ones((2, 2)), "q": np.ones((2, 2))}, ValueError, r"one array, or.*\['p', 'q'\]"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_load_errors_name_the_file(tmp_path, name):
    content, kind, message = bad_files()[name]
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(kind, match=f"(?s){name}.*({message})"):
        training.load(path)


def test_load_refuses_a_file_cut_short(tmp_path):
    np.save(tmp_path / "cut.npy", np.ones((100, 2)))
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:500])
    with pytest.raises(ValueError, match="cut.npy cannot be read"):
        training.load(tmp_path / "cut.npy")


# ---- checkpoints


def trained(steps=3):
    return STEPS(initial(), batches().block(0, steps))[0]


def test_checkpoint_holds_the_whole_state(tmp_path):
    state = trained()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.latest_step() is None and checkpoints.restore_latest(state) is None
        checkpoints.save(3, state)
        STEPS(state, batches().block(3, 2))  # donates the buffers being saved
        checkpoints.wait()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.latest_step() == 3
        restored = checkpoints.restore_latest(initial())
        abstract = checkpoints.restore_latest(jax.eval_shape(initial))
    assert_bitwise(restored, trained())
    assert_bitwise(abstract, trained())
    assert jax.tree.structure(restored) == jax.tree.structure(trained())
    ema = training.load_ema(tmp_path)
    assert jax.tree.structure(ema) == jax.tree.structure(parameters())
    assert_bitwise(ema, trained().ema)
    assert_bitwise(training.load_ema(tmp_path, template=jax.eval_shape(parameters)), trained().ema)


def test_checkpoint_holds_structures_that_orbax_alone_does_not(tmp_path):
    """Custom pytrees, zero-size arrays, keys of another type, bfloat16, an optimiser without state."""
    params = (training.TrainState(jnp.ones(()), [jnp.ones(2, jnp.bfloat16)], {}, jnp.zeros((0, 3)), jnp.ones(3)),)
    state = training.init(jax.random.key(1, impl="rbg"), params, optax.sgd(0.1))
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(0, state)
        restored = checkpoints.restore_latest(state)
    assert restored is not None
    assert_bitwise(restored, state)
    assert str(jax.random.key_impl(restored.key)) == str(jax.random.key_impl(state.key))


def test_only_the_newest_are_kept_and_order_is_kept(tmp_path):
    with Checkpoints(tmp_path, CONFIG, keep=2) as checkpoints:
        for n in (1, 2, 3, 3):
            checkpoints.save(n, trained(n))
        checkpoints.wait()
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]
        with pytest.raises(ValueError, match="step must be 3 or more"):
            checkpoints.save(1, trained(1))
        with pytest.raises(ValueError, match=r"state\.step=3, got 4"):
            checkpoints.save(4, trained(3))
        with pytest.raises(ValueError, match="state is at step 0, but .* holds step 3"):
            training.fit(initial(), STEPS, batches(), 20, checkpoints)


def test_another_configuration_is_refused_by_field(tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(3, trained())
    for change, message in (
        ({"learning_rate": 0.02}, "learning_rate: stored 0.01, new 0.02"),
        ({"network": {"width": 8}}, r"network\.width: stored 4, new 8"),
        ({"seed": 1}, "seed: stored absent, new 1"),
        ({"steps": 40}, "steps: stored 20, new 40"),
    ):
        with pytest.raises(ValueError, match=message):
            Checkpoints(tmp_path, {**CONFIG, **change})
    with Checkpoints(tmp_path, {**CONFIG, "steps": 40}, ignore=("steps",)) as checkpoints:
        assert checkpoints.latest_step() == 3
    assert json.loads((tmp_path / "training_config.json").read_text())["steps"] == 40
    with pytest.raises(TypeError, match=r"config\['net'\] must be a JSON value"):
        Checkpoints(tmp_path, {"net": object()})


def test_other_arrays_are_refused_by_name(tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(3, trained())
        wider = training.init(jax.random.key(0), {**parameters(), "b": jnp.zeros(5)}, optimiser())
        with pytest.raises(ValueError, match=r"'ema/b' is float32\[4\] in the checkpoint, float32\[5\]"):
            checkpoints.restore_latest(wider)
        other = training.init(jax.random.key(0), parameters(), optax.sgd(0.1, momentum=0.9))
        with pytest.raises(ValueError, match=r"'opt_state/.*' is .*absent"):
            checkpoints.restore_latest(other)
        assert checkpoints.latest_step() == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore's reads of damaged files
def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(2, trained(2))
        checkpoints.save(3, trained(3))
    # as a kill during orbax's writing leaves it; an empty step folder; and data lost under a good name
    (tmp_path / "5.orbax-checkpoint-tmp" / "rest.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "9").mkdir()
    (tmp_path / "1" / "ema").mkdir(parents=True)  # as a kill during the deletion of an old one leaves it
    for data in (tmp_path / "3" / "rest").glob("ocdbt.process_0/d/*"):
        data.write_bytes(data.read_bytes()[:10])
    for data in (tmp_path / "3" / "rest" / "d").glob("*"):
        data.write_bytes(data.read_bytes()[:10])
    assert training.load_ema(tmp_path)["w"].shape == (FEATURES, 4)  # of step 3, whose average is whole
    with pytest.warns(UserWarning, match="/9 is set aside"):
        checkpoints = Checkpoints(tmp_path, CONFIG)
    with checkpoints, pytest.warns(UserWarning, match="/3 is set aside.*cannot be read"):
        restored = checkpoints.restore_latest(initial())
    assert_bitwise(restored, trained(2))
    assert not (tmp_path / "1").exists()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        for n in (3, 5):  # the steps whose folders were broken
            checkpoints.save(n, trained(n))
        assert_bitwise(checkpoints.restore_latest(initial()), trained(5))


def test_load_ema_without_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no whole checkpoint"):
        training.load_ema(tmp_path / "nowhere")


# ---- loop


def test_fit_runs_aligned_blocks_and_leaves_its_argument_alive():
    state, seen = initial(), []
    final = training.fit(state, STEPS, batches(), 20, block=8, on_block=lambda n, m: seen.append((n, len(m["loss"]))))
    assert seen == [(8, 8), (16, 8), (20, 4)] and int(final.step) == 20
    assert_bitwise(state, initial())
    ends = []
    middle = training.fit(state, STEPS, batches(), 3, block=8)
    training.fit(middle, STEPS, batches(), 20, block=8, on_block=lambda n, m: ends.append(n))
    assert ends == [8, 16, 20]
    assert_bitwise(training.fit(final, STEPS, batches(), 20), final)


def test_nan_in_the_data_names_step_and_checkpoint(tmp_path):
    data = arrays()
    order = Batches(np.arange(EXAMPLES), BATCH, seed=3)
    poisoned = next(n for n in order.at(2) if n not in order.block(0, 2))  # first met at step 2
    data["x"][poisoned] = np.nan
    bad = Batches(data, BATCH, seed=3)
    with pytest.raises(FloatingPointError, match=r"step 2 .*grad_norm=nan, loss=nan.*no checkpoints"):
        training.fit(initial(), STEPS, bad, 20, block=5)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        with pytest.raises(FloatingPointError, match=f"step 2 .*loss=nan.*after 2 steps, is {tmp_path}/2"):
            training.fit(initial(), STEPS, bad, 20, checkpoints, block=5)
        restored = checkpoints.restore_latest(initial())
    assert all(np.isfinite(leaf).all() for leaf in bits(restored).values())
    assert_bitwise(restored, trained(2))


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    # the gradient 1e15 is finite and so is the loss before the update, which overflows
    state = training.init(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(1e30))
    step = training.make_step(lambda p, key, b: (jnp.sum(p["w"]) * jnp.where(b[0] > 2, 1e15, 0.0), {}), optax.sgd(1e30))
    data = Batches(np.arange(4), 1)
    last = int(np.argmax(data.block(0, 4)[:, 0]))  # the step that meets the large gradient
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(0, state)
        with pytest.raises(
            FloatingPointError, match=rf"params\['w'\] is not finite after {last + 1} steps.*{tmp_path}/"
        ):
            training.fit(state, training.make_steps(step), data, last + 1, checkpoints, block=1, save_every=1)
        assert checkpoints.latest_step() == last
        assert np.isfinite(checkpoints.restore_latest(state).params["w"]).all()


CHILD = """
import os, signal, sys
sys.path.insert(0, "tests")
import test_training as t
from diffjax import training
directory, total, kill_at, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

def on_block(step, metrics):
    print(step, flush=True)
    if step == kill_at:
        os.kill(os.getpid(), number)

with training.Checkpoints(directory, t.CONFIG, ignore=("steps",)) as checkpoints:
    state = checkpoints.restore_latest(t.initial())
    state = t.initial() if state is None else state
    training.fit(state, t.STEPS, t.batches(), total, checkpoints, block=4, save_every=8, on_block=on_block)
"""


def child(directory, total, kill_at=-1, number=0):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-c", CHILD, *map(str, (directory, total, kill_at, int(number)))]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def restored_from(directory):
    with Checkpoints(directory, CONFIG) as checkpoints:
        return checkpoints.restore_latest(initial())


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    killed = child(tmp_path, 26, kill_at=20, number=signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL and killed.stdout.split()[-1] == "20"
    resumed = child(tmp_path, 26)
    assert resumed.returncode == 0 and resumed.stderr == "", resumed.stderr  # orbax has said nothing either
    assert resumed.stdout.split()[-1] == "26" and int(resumed.stdout.split()[0]) < 24  # it went on, not anew
    assert int(resumed.stdout.split()[0]) > 8
    straight = training.fit(initial(), STEPS, batches(), 26, block=4)
    assert_bitwise(restored_from(tmp_path), straight)


@pytest.fixture
def restore():
    """(signal, handler) pairs to put back after the test."""
    handlers = []
    yield handlers
    for number, handler in handlers:
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(tmp_path, number, restore):
    def on_block(step, metrics):
        if step == 12:
            os.kill(os.getpid(), number)
            time.sleep(0.05)

    # a shell that starts the tests in the background has them ignore Ctrl-C, which `fit` would respect
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    restore.append((number, signal.signal(number, before)))
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt) as stopped:
            training.fit(initial(), STEPS, batches(), 26, checkpoints, block=4, on_block=on_block)
    assert signal.getsignal(number) is before
    assert number == signal.SIGINT or stopped.value.code == 143
    assert_bitwise(restored_from(tmp_path), training.fit(initial(), STEPS, batches(), 12, block=4))


def test_sigterm_from_outside_saves_first(tmp_path):
    stopped = child(tmp_path, 10**6, kill_at=12, number=signal.SIGTERM)
    assert stopped.returncode == 143, stopped.stderr
    assert stopped.stdout.split()[-1] == "12" and stopped.stderr == ""
    assert_bitwise(restored_from(tmp_path), training.fit(initial(), STEPS, batches(), 12, block=4))


# ---- meshes


def test_mesh_of_one_device_changes_nothing():
    mesh = training.data_mesh(jax.devices()[:1])
    assert mesh.axis_names == ("data",) and mesh.axis_types == (AxisType.Auto,)
    sharded = training.fit(initial(), STEPS, batches(), 10, block=5, mesh=mesh)
    assert_bitwise(sharded, training.fit(initial(), STEPS, batches(), 10, block=5))


def test_mesh_errors():
    explicit = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match="mesh axis 'data' must have type Auto, got .*Explicit"):
        training.replicate(parameters(), explicit)
    other = jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=r"axis named 'data', got axes \('model',\)"):
        training.shard_batch(np.zeros((2, 3)), other)
    with pytest.raises(ValueError, match=r"batch\['y'\] must have an axis 1 to split, got shape \(4,\)"):
        training.shard_batch({"y": np.zeros(4)}, training.data_mesh(jax.devices()[:1]), axis=1)
    with pytest.raises(ValueError, match="at least one device"):
        training.data_mesh([])


EIGHT = """
import sys
sys.path.insert(0, "tests")
import jax, numpy as np, pytest
import test_training as t
from diffjax import training
assert len(jax.devices()) == 8
mesh = training.data_mesh()
with pytest.raises(ValueError, match="batch size 12 must be a multiple of the 8 devices"):
    training.shard_batch(np.zeros((12, 3)), mesh)
plain = training.fit(t.initial(), t.STEPS, t.batches(), 10, block=5)
with training.Checkpoints(sys.argv[1], t.CONFIG) as checkpoints:
    training.fit(t.initial(), t.STEPS, t.batches(), 5, checkpoints, block=5, mesh=mesh)
    state = checkpoints.restore_latest(training.replicate(t.initial(), mesh))
    assert all(leaf.sharding.is_fully_replicated and len(leaf.devices()) == 8 for leaf in jax.tree.leaves(state))
sharded = training.fit(state, t.STEPS, t.batches(), 10, block=5, mesh=mesh)
t.assert_bitwise(sharded, training.fit(t.initial(), t.STEPS, t.batches(), 10, block=5, mesh=mesh))
assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(sharded))
one, other = t.bits(plain), t.bits(sharded)
for name in one:
    np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6, err_msg=name)
"""


def test_step_over_eight_devices_equals_one_device(tmp_path):
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    command = [sys.executable, "-c", EIGHT, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_what_on_block_records_covers_every_checkpoint(tmp_path):
    """A run stopped in the middle of a save has told on_block of every step saved; steps before a NaN are told too."""
    told = []

    class Stopped(Exception):
        pass

    class Stopping(training.Checkpoints):
        def save(self, step, state):
            super().save(step, state)
            raise Stopped

    with Stopping(tmp_path / "a", {}) as checkpoints, pytest.raises(Stopped):
        training.fit(
            initial(), STEPS, batches(), 20, checkpoints, block=4, save_every=8, on_block=lambda n, m: told.append(n)
        )
    assert told[-1] == 8
