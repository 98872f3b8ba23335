"""Training: the step is optax's, the data position is the step, and a run that
was killed is the run that was not.
"""

import collections
import errno
import functools
import json
import os
import pathlib
import shutil
import signal
import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from diffjax import training
from diffjax.training import Batches, Checkpoints, folders, lock, manifest
from experiments.shared import datasets
from tests.forked import Nursery
from tests.training_problem import (
    BATCH,
    CONFIG,
    EXAMPLES,
    FEATURES,
    OPTIMISER,
    STEP,
    STEPS,
    WIDTH,
    arrays,
    assert_bitwise,
    batches,
    bits,
    initial,
    loss_fn,
    parameters,
    restored_from,
    steps_in,
    trained,
)

# ---- step


GRADIENT = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def test_step_is_clipped_adamw_by_hand():
    params = {name: leaf.astype(np.float64) for name, leaf in parameters().items()}
    first, second = (
        {name: np.zeros_like(leaf) for name, leaf in params.items()} for _ in range(2)
    )
    rule = training.optimiser(
        0.01, warmup_steps=5, total_steps=40, weight_decay=0.01, clip_norm=0.5
    )
    step = training.make_step(loss_fn, rule)
    state = training.init(jax.random.key(7), parameters(), rule)
    for n in range(4):
        batch = batches().at(n)
        (loss, _), grads = GRADIENT(
            state.params, jax.random.fold_in(jax.random.key(7), n), batch
        )
        grads = {name: np.asarray(grad, np.float64) for name, grad in grads.items()}
        norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
        for name, grad in grads.items():
            grad = grad * min(1.0, 0.5 / norm)
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            mean, square = (
                first[name] / (1 - 0.9 ** (n + 1)),
                second[name] / (1 - 0.999 ** (n + 1)),
            )
            rate = 0.01 * (n + 1) / 5
            params[name] = params[name] - rate * (
                mean / (np.sqrt(square) + 1e-8) + 0.01 * params[name]
            )
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
        assert metrics["finite"]
    assert int(state.step) == 4
    # half a unit in the last place of entries below 1 a step, and the rounding of the
    # change
    for name in params:
        np.testing.assert_allclose(
            state.params[name], params[name], rtol=0, atol=4 * 2**-24 + 1e-5 * 0.01
        )


def test_a_first_state_is_strongly_typed_copies():
    params = {
        "a": np.ones((2, 2)),
        "b": jnp.asarray(2.0),
        "c": np.ones(3, jnp.bfloat16),
        "d": jax.device_put(np.ones(2)),
    }
    assert params["b"].weak_type
    state = training.init(jax.random.key(0), params, optax.adam(0.1))
    dtypes = {name: str(leaf.dtype) for name, leaf in state.params.items()}
    assert dtypes == {"a": "float32", "b": "float32", "c": "bfloat16", "d": "float32"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.ema)} == {"float32"}
    assert not any(
        leaf.weak_type
        for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state))
    )
    pointers = [
        tree["d"].unsafe_buffer_pointer() for tree in (params, state.params, state.ema)
    ]
    assert len(set(pointers)) == 3


def test_average_is_its_closed_form():
    # ema_N = Σ_n w_n p_n with w_n = (1 − d_n) Π_{m>n} d_m, and p_0 with Π d_m;
    # d_n = min(0.9, (1 + n)/(10 + n))
    state = initial()
    seen = [np.asarray(state.params["w"])]
    for n in range(12):
        state, _ = STEP(state, batches().at(n))
        seen.append(np.asarray(state.params["w"]))
    d = np.minimum(0.9, (1 + np.arange(12)) / (10 + np.arange(12)))
    weights = [np.prod(d)] + [(1 - d[n]) * np.prod(d[n + 1 :]) for n in range(12)]
    assert np.isclose(sum(weights), 1)
    expected = sum(
        w * np.asarray(p, np.float64) for w, p in zip(weights, seen, strict=True)
    )
    np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-5, atol=1e-6)
    assert training.ema_decay_at(0, 0.999) == np.float32(0.1)
    assert training.ema_decay_at(10**6, 0.999) == np.float32(0.999)


def test_average_is_kept_in_float32_for_bfloat16_parameters():
    state = training.init(
        jax.random.key(0), {"w": np.ones(3, jnp.bfloat16)}, optax.sgd(1e-3)
    )
    step = training.make_step(
        lambda p, key, b: (jnp.sum(p["w"] * b), {}), optax.sgd(1e-3)
    )
    state, _ = jax.eval_shape(step, state, np.ones(3, np.float32))
    assert (
        state.params["w"].dtype == jnp.bfloat16 and state.ema["w"].dtype == jnp.float32
    )


def test_learning_rate_warms_up_and_decays():
    rate = training.warmup_cosine(2.0, 4, 14, final_fraction=0.1)
    np.testing.assert_allclose(
        [rate(n) for n in range(4)], [0.5, 1.0, 1.5, 2.0], rtol=1e-6
    )
    np.testing.assert_allclose(
        [rate(9), rate(14), rate(99)], [2.0 * 0.55, 0.2, 0.2], rtol=1e-6
    )
    assert training.warmup_cosine(2.0, 0, None)(0) == 2.0
    n = np.array([0, 9, 99, 400, 1600])
    rate = training.warmup_inverse_sqrt(2.0, 10, 400)
    # Each of four operations rounds by 2⁻²⁴ at most, and the root by 2⁻²³.
    np.testing.assert_allclose(
        [rate(i) for i in n], [0.2, 2.0, 2.0, 2.0, 1.0], rtol=2**-21
    )
    assert training.warmup_inverse_sqrt(2.0, 0, 1)(0) == 2.0


def test_an_optimiser_takes_a_schedule_and_a_last_transformation():
    params, gradient = {"w": jnp.ones(3)}, {"w": jnp.arange(3.0)}
    updates = []
    for rule in (
        training.optimiser(0.1, warmup_steps=5, total_steps=9, clip_norm=0.5),
        training.optimiser(training.warmup_cosine(0.1, 5, 9), clip_norm=0.5),
        training.optimiser(
            0.1, warmup_steps=5, total_steps=9, clip_norm=0.5, after=optax.scale(2.0)
        ),
    ):
        updates.append(rule.update(gradient, rule.init(params), params)[0]["w"])
    np.testing.assert_array_equal(updates[1], updates[0])
    np.testing.assert_array_equal(updates[2], 2 * updates[0])
    with pytest.raises(ValueError, match="warmup_steps, .* left out with a schedule"):
        training.optimiser(optax.constant_schedule(0.1), warmup_steps=3)
    with pytest.raises(TypeError, match="after must have init"):
        training.optimiser(after=3)


def test_scan_of_steps_equals_single_steps_bit_for_bit():
    one, _ = STEPS(initial(), batches().block(0, 4))
    assert_bitwise(one, trained(4))


def test_steps_compile_once_and_own_their_buffers():
    params, key, traces = jax.device_put(parameters()), jax.random.key(7), []

    def counted(params, key, batch):
        traces.append(1)
        return jnp.mean((batch["x"] @ params["w"]) ** 2), {}

    steps = training.make_steps(training.make_step(counted, optax.sgd(0.1)))
    state = training.init(key, params, optax.sgd(0.1))
    for n in (0, 5, 10):
        state, metrics = steps(state, batches().block(n, 5))
    assert metrics["loss"].shape == metrics["finite"].shape == (5,)
    assert len(traces) == 1
    assert not params["w"].is_deleted() and not key.is_deleted()


NOT_FINITE = {"loss": 1, "gradient": 2, "metric": 3}


def sometimes_bad_loss(params, key, batch):
    """Of a batch that is no 0, one of loss, gradient and metric is not finite,
    by its number.
    """
    w, bad = params["w"], batch["bad"]
    loss = jnp.sum(w**2) + jnp.where(bad == NOT_FINITE["loss"], jnp.nan, 0.0)
    # d√u/du at 0 is infinite while the loss is finite
    loss += jnp.sqrt(
        jnp.where(bad == NOT_FINITE["gradient"], 0.0 * w[0], 1.0 + w[0] ** 2)
    )
    return loss, {"own": jnp.where(bad == NOT_FINITE["metric"], jnp.inf, 1.0)}


BAD_STEP = training.make_step(sometimes_bad_loss, optax.adam(0.1))
BAD_STEPS = training.make_steps(BAD_STEP)


@pytest.mark.parametrize("where", NOT_FINITE)
def test_a_step_that_is_not_finite_is_not_taken(where):
    state = training.init(
        jax.random.key(0), {"w": np.arange(1.0, 3.0, dtype=np.float32)}, optax.adam(0.1)
    )
    good, metrics = BAD_STEP(state, {"bad": np.int32(0)})
    assert metrics["finite"]
    after, metrics = BAD_STEP(good, {"bad": np.int32(NOT_FINITE[where])})
    assert not metrics["finite"]
    bad = {"loss": "loss", "gradient": "grad_norm", "metric": "own"}[where]
    assert not np.isfinite(metrics[bad])
    assert_bitwise(after, good)
    scanned, metrics = BAD_STEPS(
        state, {"bad": np.array([0, NOT_FINITE[where], 0, 0], np.int32)}
    )
    assert metrics["finite"].tolist() == [True, False, False, False]
    assert_bitwise(scanned, good)


def test_step_argument_errors():
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        training.init(jax.random.PRNGKey(0), parameters(), OPTIMISER)
    with pytest.raises(
        ValueError, match=r"ema_decay must lie in \[0.0, 1.0\], got 1.5"
    ):
        training.make_step(loss_fn, OPTIMISER, ema_decay=1.5)
    with pytest.raises(ValueError, match="'loss' must be none of"):
        training.make_step(lambda p, k, b: (p["b"].sum(), {"loss": 1.0}), OPTIMISER)(
            initial(), {}
        )
    with pytest.raises(ValueError, match=r"'own' must be a scalar, got shape \(100,\)"):
        training.make_step(lambda p, k, b: (p["b"].sum(), {"own": p["b"]}), OPTIMISER)(
            initial(), {}
        )
    with pytest.raises(
        ValueError, match="total_steps must be greater than warmup_steps=5, got 3"
    ):
        training.optimiser(warmup_steps=5, total_steps=3)
    with pytest.raises(ValueError, match="clip_norm must be positive, got 0"):
        training.optimiser(clip_norm=0.0)


# ---- data


@pytest.mark.parametrize("batch_size", [1, 8, 22, 50])
def test_every_example_exactly_once_an_epoch(batch_size):
    stream = (
        Batches(np.arange(EXAMPLES), batch_size, seed=1)
        .block(0, 5 * EXAMPLES)
        .reshape(-1)
    )
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
    with pytest.raises(
        ValueError, match=r"one leading axis in common.*\(3, 2\).*\(4,\)"
    ):
        Batches({"x": np.zeros((3, 2)), "y": np.zeros(4)}, 2)
    with pytest.raises(ValueError, match="leading axis in common, of at least 1, got"):
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
        np.testing.assert_array_equal(
            held["x"], training.split({"x": x}, held_out, seed=1)[1]["x"]
        )


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
        "no_such_file.npy": (None, FileNotFoundError, "not a file: data must be"),
        "suffix.txt": (
            "text",
            ValueError,
            "must be a .npy or .npz file",
        ),
        "no_bytes.npy": ("", ValueError, r"is empty \(0 bytes\)"),
        "no_examples.npy": (
            np.zeros((0, 2)),
            ValueError,
            r"at least one example.*\(0, 2\)",
        ),
        "rank_1.npy": (np.zeros(5), ValueError, r"rank 2 or more .*got \(5,\)"),
        "nan.npy": (nan, ValueError, "got 2 NaN or infinite entries of 8"),
        "too_large.npy": (
            np.full((2, 2), 1e300),
            ValueError,
            "got 4 NaN or infinite entries of 4",
        ),
        "text.npy": ("this is no array", ValueError, "cannot be read|Python objects"),
        "text.npz": ("this is no archive", ValueError, "cannot be read|Python objects"),
        "objects.npy": (
            np.array([[1, None]], dtype=object),
            ValueError,
            "Python objects",
        ),
        "strings.npy": (
            np.array([["a", "b"]]),
            ValueError,
            "real numbers, got dtype <U1",
        ),
        "complex.npy": (
            np.ones((2, 2), complex),
            ValueError,
            "real numbers, got dtype complex128",
        ),
        "several.npz": (
            {"p": np.ones((2, 2)), "q": np.ones((2, 2))},
            ValueError,
            r"one array, or.*\['p', 'q'\]",
        ),
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


def test_load_raises_on_a_file_cut_short(tmp_path):
    np.save(tmp_path / "cut.npy", np.ones((100, 2)))
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:500])
    with pytest.raises(ValueError, match="cut.npy cannot be read"):
        training.load(tmp_path / "cut.npy")


@pytest.mark.parametrize(
    ("suffix", "old", "new"),
    [
        (".npy", b"), }", b"(, }"),  # a header that no tokenizer ends
        (".npy", b"(8, 2)", b"(9**15,2)"[:6]),  # that is no literal
        (".npy", b"(8, 2)", b"(9999999999999, 2)"),  # more than any memory
        (".npz", None, b"\xff"),  # compressed numbers that are none
        (".npz", b"PK\x05\x06", b"PK\x05\x07"),  # no end of the archive
    ],
)
def test_load_names_a_damaged_file(tmp_path, suffix, old, new):
    file = tmp_path / f"damaged{suffix}"
    x = np.random.default_rng(0).integers(0, 9, (8, 2))
    np.save(file, x) if suffix == ".npy" else np.savez_compressed(file, x=x, y=x)
    stored = file.read_bytes()
    if old is None:
        # the first bytes of the first member, behind its header of 30 and its name
        start = 30 + stored[26] + stored[28]
        damaged = stored[:start] + new * 20 + stored[start + 20 :]
    else:
        assert stored.count(old) == 1
        damaged = stored.replace(old, new)
    file.write_bytes(damaged)
    for load in (training.load, lambda file: datasets.open_dataset(str(file), 2, 0)):
        with pytest.raises(ValueError, match=f"damaged{suffix} cannot be read"):
            load(file)


# ---- checkpoints


def saved(directory, *steps, keep=2):
    with Checkpoints(directory, CONFIG, keep=keep) as checkpoints:
        for n in steps:
            checkpoints.save(n, trained(n))


def test_checkpoint_holds_the_whole_state(tmp_path):
    state = trained.__wrapped__()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert (
            checkpoints.latest_step() is None
            and checkpoints.restore_latest(state) is None
        )
        checkpoints.save(3, state)
        STEPS(state, batches().block(3, 4))  # donates the buffers being saved
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
    assert_bitwise(
        training.load_ema(tmp_path, template=jax.eval_shape(parameters)), trained().ema
    )


def test_checkpoint_holds_structures_that_orbax_alone_does_not(tmp_path):
    """Custom pytrees, zero-size arrays, keys of another type, bfloat16, an
    optimiser without state.
    """
    one = np.ones((), np.float32)
    params = (
        training.TrainState(
            one, [np.ones(2, jnp.bfloat16)], {}, np.zeros((0, 3), np.float32), one
        ),
    )
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
        assert steps_in(tmp_path) == ["2", "3"]
        with pytest.raises(ValueError, match="step must be 3 or more"):
            checkpoints.save(1, trained(1))
        with pytest.raises(ValueError, match=r"state\.step=3, got 4"):
            checkpoints.save(4, trained(3))
        with pytest.raises(ValueError, match="state is at step 0, but .* holds step 3"):
            training.fit(initial(), STEPS, batches(), 20, checkpoints=checkpoints)


def test_a_checkpoint_under_another_number_is_set_aside(tmp_path):
    saved(tmp_path, 2, 3)
    shutil.copytree(tmp_path / "3", tmp_path / "5")
    with pytest.warns(
        UserWarning, match=r"/5 is set aside as .*: it is the checkpoint of step 3"
    ):
        assert as_bytes(restored_from(tmp_path)) == as_bytes(trained(3))


@pytest.mark.parametrize("beside", [None, "", "{", "[1, 2]", '{"learning_rate": 7}'])
def test_another_configuration_raises_by_field(tmp_path, beside):
    """The configuration in the checkpoint counts, not the file beside it."""
    path = tmp_path / "training_config.json"
    saved(tmp_path, 3)
    path.unlink() if beside is None else path.write_text(beside)
    for change, message in (
        ({"learning_rate": 0.02}, "learning_rate: stored 0.01, new 0.02"),
        ({"network": {"width": 8}}, r"network\.width: stored 4, new 8"),
        ({"seed": 1}, "seed: stored absent, new 1"),
        ({"steps": 40}, "steps: stored 20, new 40"),
    ):
        with pytest.raises(ValueError, match=message):
            Checkpoints(tmp_path, {**CONFIG, **change})
    with Checkpoints(
        tmp_path, {**CONFIG, "steps": 40}, ignore=("steps",)
    ) as checkpoints:
        assert checkpoints.latest_step() == 3
    assert json.loads(path.read_text())["steps"] == 40
    with pytest.raises(TypeError, match=r"config\['net'\] must be a JSON value"):
        Checkpoints(tmp_path, {"net": object()})


def test_other_arrays_raise_by_name(tmp_path):
    saved(tmp_path, 3)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        wider = training.init(
            jax.random.key(0), {**parameters(), "b": np.zeros(5, np.float32)}, OPTIMISER
        )
        with pytest.raises(
            ValueError,
            match=r"'ema/b' is float32\[100\] in .*, float32\[5\] in the",
        ):
            checkpoints.restore_latest(wider)
        other = training.init(jax.random.key(0), parameters(), optax.adam(0.1))
        with pytest.raises(ValueError, match=r"'opt_state/.*' is .*absent"):
            checkpoints.restore_latest(other)
        assert checkpoints.latest_step() == 3


# Damage: whatever happens to a file, what comes back is the newest state or,
# with a warning, the one before it.

DAMAGES = {
    "cut": lambda data, rng: data[: len(data) // 2],
    "emptied": lambda data, rng: b"",
    "zeroed": lambda data, rng: bytes(len(data)),
    "removed": lambda data, rng: None,
    "flipped": lambda data, rng: flipped(data, rng.integers(8 * len(data))),
}


def flipped(data, bit):
    data = bytearray(data)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


def as_bytes(state):
    return {name: leaf.tobytes() for name, leaf in bits(state).items()}


def after_damage(whole, directory, name, damage, rng):
    """'same', 'set aside' or 'silent': what a restore makes of a copy of
    `whole` with one damaged file.
    """
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(whole, directory)
    data = DAMAGES[damage]((directory / name).read_bytes(), rng)
    (directory / name).unlink() if data is None else (directory / name).write_bytes(
        data
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restored = restored_from(directory)
    aside = [
        str(warning.message)
        for warning in caught
        if "is set aside" in str(warning.message)
    ]
    if restored is None or as_bytes(restored) != as_bytes(
        trained(2) if aside else trained(3)
    ):
        return "silent"
    assert bool(aside) == (not (directory / "3").exists())
    return "set aside" if aside else "same"


def files_of(folder):
    return sorted(
        str(p.relative_to(folder.parent))
        for p in folder.rglob("*")
        if p.is_file() and p.stat().st_size
    )


tensorstores_noise = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@tensorstores_noise
def test_damage_is_never_silent(tmp_path):
    saved(tmp_path / "whole", 2, 3)
    files, rng = files_of(tmp_path / "whole" / "3"), np.random.default_rng(0)
    kinds = collections.Counter()
    for i, name in enumerate(files):
        damages = (
            DAMAGES
            if name.endswith("manifest.json")
            else [list(DAMAGES)[i % len(DAMAGES)]]
        )
        for damage in damages:
            kinds[
                after_damage(tmp_path / "whole", tmp_path / "copy", name, damage, rng)
            ] += 1
    # Of the files of data some are read again and some were only steps on the
    # way, by sizes that vary.
    read = [
        name
        for name in files
        if "/d/" in name
        and after_damage(tmp_path / "whole", tmp_path / "copy", name, "removed", rng)
        == "set aside"
    ]
    large = max(read, key=lambda name: (tmp_path / "whole" / name).stat().st_size)
    for damage in ("emptied", "zeroed"):
        assert (
            after_damage(tmp_path / "whole", tmp_path / "copy", large, damage, rng)
            == "set aside"
        ), damage
    # Its end may hold nothing that is read.
    assert (
        after_damage(tmp_path / "whole", tmp_path / "copy", large, "cut", rng)
        != "silent"
    )
    assert not kinds["silent"] and kinds["set aside"] > 10, kinds


@pytest.mark.slow
@tensorstores_noise
def test_two_thousand_flipped_bits(tmp_path):
    saved(tmp_path / "whole", 2, 3)
    files, rng = files_of(tmp_path / "whole" / "3"), np.random.default_rng(1)
    kinds = collections.Counter()
    for damage in ("cut", "emptied", "zeroed", "removed"):
        for name in files:
            kinds[
                after_damage(tmp_path / "whole", tmp_path / "copy", name, damage, rng)
            ] += 1
    for name in rng.choice(files, 2000):
        kinds[
            after_damage(tmp_path / "whole", tmp_path / "copy", name, "flipped", rng)
        ] += 1
    print(kinds)
    assert not kinds["silent"] and kinds["set aside"] > 500, kinds


@tensorstores_noise
def test_a_damaged_average_is_not_loaded(tmp_path):
    saved(tmp_path, 2, 3)
    files = [tmp_path / "3" / name for name in files_of(tmp_path / "3" / "ema")]
    large = max(files, key=lambda path: path.stat().st_size)
    data = large.read_bytes()
    large.write_bytes(flipped(data, 4 * len(data)))
    with pytest.warns(UserWarning, match="/3 cannot be read"):
        assert_bitwise(training.load_ema(tmp_path), trained(2).ema)
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="no checkpoint can be read: .*/3: "),
    ):
        training.load_ema(tmp_path, step=3)
    assert steps_in(tmp_path) == ["2", "3"]  # a reader renames nothing


@tensorstores_noise
def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path):
    saved(tmp_path, 2, 3)
    # as a kill during orbax's writing leaves it; an empty step folder; one that lost
    # all its files; and data lost under a good name
    for unfinished in ("5.orbax-checkpoint-tmp", "6.writing", "1.deleting"):
        (tmp_path / unfinished / "rest.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "9").mkdir()
    (tmp_path / "1" / "ema").mkdir(parents=True)
    for data in [
        *(tmp_path / "3" / "rest").glob("ocdbt.process_0/d/*"),
        *(tmp_path / "3" / "rest" / "d").glob("*"),
    ]:
        data.write_bytes(data.read_bytes()[:10])
    assert training.load_ema(tmp_path)["w"].shape == (
        FEATURES,
        WIDTH,
    )  # of step 3, whose average is whole
    with (
        pytest.warns(UserWarning, match="/1 is set aside.*it has no manifest"),
        Checkpoints(tmp_path, CONFIG) as checkpoints,
        pytest.warns(UserWarning, match="/3 is set aside.*cannot be read"),
    ):
        restored = checkpoints.restore_latest(initial())
    assert_bitwise(restored, trained(2))
    left = {p.name for p in tmp_path.iterdir()}
    assert not left & {
        "1",
        "3",
        "5.orbax-checkpoint-tmp",
        "6.writing",
        "1.deleting",
    }
    assert "9" in left
    saved(tmp_path, 3, 5)  # the steps whose folders were broken
    assert_bitwise(restored_from(tmp_path), trained(5))


def test_when_all_are_damaged_the_run_stops_once(tmp_path):
    saved(tmp_path, 3)
    (
        tmp_path / "3" / "manifest.json"
    ).unlink()  # as checkpoints of earlier versions, which had none
    with (
        pytest.warns(UserWarning, match="earlier version"),
        Checkpoints(tmp_path, CONFIG) as checkpoints,
    ):
        with pytest.raises(
            RuntimeError,
            match=r"no checkpoint can be read: .*/3: it has no manifest\.json",
        ):
            checkpoints.restore_latest(initial())
    assert restored_from(tmp_path) is None


def test_files_of_ones_own_are_left_alone(tmp_path):
    names = [
        "7/my_images.txt",
        "0/cat.png",
        "1/ema/cat.png.txt",
        "²/notes.txt",
        "5",
        "007/x",
        "9.txt",
        "2/ema/x",
        "2/y",
        "4/ema/x",
        "11.writing/my_images.txt",
        "3.deleting/rest/x",
        "3.deleting/notes.txt",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "1" / "notes.txt").write_text("")
    (tmp_path / "20").mkdir()  # for images of class 20, say
    with pytest.warns(UserWarning, match="/7 is no checkpoint: it is left alone"):
        checkpoints = Checkpoints(tmp_path, CONFIG, keep=1)
    with checkpoints:
        assert (tmp_path / "20").is_dir()
        assert (
            checkpoints.latest_step() is None
            and checkpoints.restore_latest(initial()) is None
        )
        for taken in (5, 7):
            with pytest.raises(
                FileExistsError, match=f"/{taken} is no checkpoint and is left alone"
            ):
                checkpoints.save(taken, trained(taken))
        checkpoints.save(8, trained(8))
        checkpoints.wait()
        (tmp_path / "8" / "notes.txt").write_text("mine")
        checkpoints.save(9, trained(9))
        checkpoints.save(10, trained(10))
    with pytest.warns(UserWarning):
        assert_bitwise(restored_from(tmp_path), trained(10))
    assert all((tmp_path / name).read_text() == name for name in names)
    assert (tmp_path / "8" / "notes.txt").exists() and not (tmp_path / "9").exists()


def test_load_ema_follows_a_training_that_replaces_what_it_reads(tmp_path, monkeypatch):
    saved(tmp_path, 2, 3)
    expected, read = training.load_ema(tmp_path, step=3)["w"], manifest.read

    def read_too_late(folder):
        monkeypatch.setattr(manifest, "read", read)
        (tmp_path / "3").rename(tmp_path / "4")  # a newer one came, and 3 is deleted
        return read(folder)

    monkeypatch.setattr(manifest, "read", read_too_late)
    with pytest.warns(UserWarning, match="/3 cannot be read: it has no manifest"):
        loaded = training.load_ema(tmp_path)["w"]
    np.testing.assert_array_equal(loaded, expected)  # of 4, not of 2


@pytest.mark.parametrize("step", [None, 3])
def test_load_ema_without_checkpoint(tmp_path, step, monkeypatch):
    with pytest.raises(FileNotFoundError, match="holds no whole checkpoint"):
        training.load_ema(tmp_path / "nowhere", step=step)

    # Folders that are deleted between two looks.
    listed = iter([[3]])
    monkeypatch.setattr(folders, "whole_steps", lambda *_: next(listed, []))
    with (
        pytest.warns(UserWarning, match="/3 cannot be read"),
        pytest.raises(ValueError, match="no checkpoint can be read: .*/3: it has no"),
    ):
        training.load_ema(tmp_path, step=step)


# One writer a folder.


def entry_of(directory):
    return json.loads((directory / ".lock").read_text())


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    with Checkpoints(tmp_path, CONFIG):
        with pytest.raises(
            BlockingIOError,
            match=rf"{tmp_path} is in use by process {os.getpid()} .*\(this process\)",
        ):
            Checkpoints(tmp_path, CONFIG)
    assert not (tmp_path / ".lock").exists()
    with pytest.raises(TypeError):
        Checkpoints(tmp_path, {"a": object()})
    saved(tmp_path, 3)
    with pytest.raises(ValueError, match="another configuration"):
        Checkpoints(tmp_path, {})
    dropped = Checkpoints(tmp_path, CONFIG)  # not closed: the lock goes with the object
    del dropped
    saved(tmp_path, 4)


OTHER_MACHINE = {"machine": "another kernel", "host": "other"}


@pytest.mark.parametrize(
    ("changes", "silent", "alive"),
    [
        ({}, 0.0, True),
        ({}, 1e6, True),  # one that can be seen needs no sign of life
        (
            {"pid": 2**22 + 1},
            0.0,
            False,
        ),  # no such process: Linux numbers them up to 2²²
        ({"start": "1"}, 0.0, False),  # a recycled number
        (OTHER_MACHINE, 0.0, True),
        (OTHER_MACHINE, lock.SILENT_AFTER + 1, False),
    ],
    ids=[
        "alive",
        "alive and silent",
        "dead",
        "recycled",
        "elsewhere",
        "elsewhere and silent",
    ],
)
def test_a_dead_holder_keeps_no_lock(tmp_path, changes, silent, alive):
    held = lock.Lock(tmp_path)
    entry = entry_of(tmp_path)
    held.release()
    path = tmp_path / ".lock"
    path.write_text(json.dumps({**entry, "token": "of another object", **changes}))
    os.utime(path, (path.stat().st_mtime - silent,) * 2)
    if alive:
        who = f"process {entry['pid']} on {changes.get('host', entry['host'])}"
        with pytest.raises(
            BlockingIOError,
            match=f"{tmp_path} is in use by {who}.* since {entry['since'][:10]}",
        ):
            lock.Lock(tmp_path)
    else:
        lock.Lock(tmp_path).release()


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "{}", pytest.param("[" * 99_999, id="deep")]
)
def test_a_lock_cut_by_a_crash_is_taken_over(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    os.utime(tmp_path / ".lock", (0, 0))
    (tmp_path / ".lock.0123").write_text("of a process killed as it took the lock")
    lock.Lock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_a_lock_lost_to_another_process_is_noticed(tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(2, trained(2))
        other = {**entry_of(tmp_path), "token": "another"}
        (tmp_path / ".lock").write_text(json.dumps(other))
        with pytest.raises(BlockingIOError, match="is in use by process"):
            checkpoints.save(3, trained(3))
    assert entry_of(tmp_path) == other  # not removed by the one that lost it


def race(directory, go, hold):
    """Take the lock at the time `go`, and write that into a file that only the
    holder may write.
    """
    time.sleep(max(0.0, go - time.time()))
    held = lock.Lock(directory)
    path = pathlib.Path(directory) / "held"
    assert not path.exists()
    path.write_text(str(os.getpid()))
    time.sleep(hold)
    assert path.read_text() == str(os.getpid())
    path.unlink()
    held.release()


@pytest.mark.parametrize("pairs", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_of_two_racing_processes_one_raises_by_name(tmp_path, nursery, pairs):
    for i in range(pairs):
        directory = tmp_path / str(i)
        directory.mkdir()
        if i % 2:  # both find the lock of a dead one
            entry = {
                "pid": 2**22 + 1,
                "machine": lock._machine(),
                "start": "1",
                "host": "h",
                "since": "",
                "token": "",
            }
            (directory / ".lock").write_text(json.dumps(entry))
        call = ("race", str(directory), time.time() + 0.2, 0.3)
        ends = sorted(nursery.run(tmp_path / "output", call, call))
        assert [status for status, _, _ in ends] == [0, 1], ends
        assert (
            "BlockingIOError" in ends[1][2]
            and f"{directory} is in use by process" in ends[1][2]
        ), ends
        assert list(directory.iterdir()) == []


@pytest.mark.slow
def test_of_two_racing_trainings_one_raises_and_nothing_is_lost(tmp_path, nursery):
    for i in range(5):
        directory = tmp_path / str(i)
        calls = [("train", str(directory), 28, -1, 0, rate) for rate in (0.01, 0.02)]
        ends = sorted(nursery.run(tmp_path / "output", *calls))
        assert [status for status, _, _ in ends] == [0, 1], ends
        assert (
            "is in use by process" in ends[1][2]
            or "learning_rate: stored" in ends[1][2]
        )
        rate = json.loads((directory / "28" / "manifest.json").read_text())["config"][
            "learning_rate"
        ]
        with Checkpoints(directory, {**CONFIG, "learning_rate": rate}) as checkpoints:
            assert_bitwise(checkpoints.restore_latest(initial()), trained(28))


def save_and_end(directory):
    """In a child, which ends without closing its checkpoints."""
    checkpoints = Checkpoints(directory, CONFIG)
    checkpoints.save(0, initial())
    threading._shutdown()


def test_a_save_under_way_at_the_end_of_the_program_is_finished(tmp_path, nursery):
    assert nursery.run(
        tmp_path / "output", ("save_and_end", str(tmp_path / "run"))
    ) == [(0, "", "")]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "0",
        "training_config.json",
    ]
    assert_bitwise(restored_from(tmp_path / "run"), initial())


def test_trainings_in_threads_do_not_meet(tmp_path):
    ends = {}

    def work(name):
        with Checkpoints(tmp_path / name, CONFIG) as checkpoints:
            training.fit(
                initial(),
                STEPS,
                batches(),
                8,
                checkpoints=checkpoints,
                block=4,
                save_every=4,
            )
            ends[name] = checkpoints.restore_latest(initial())

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ends) == list("abcd")
    for name, state in ends.items():
        assert_bitwise(state, trained(8))
        assert steps_in(tmp_path / name) == ["4", "8"]


# A folder that goes away.


def test_a_removed_folder_is_made_anew(tmp_path):
    directory = tmp_path / "checkpoints"
    with Checkpoints(directory, CONFIG) as checkpoints:
        checkpoints.save(2, trained(2))
        checkpoints.wait()
        shutil.rmtree(directory)
        with pytest.warns(
            UserWarning,
            match="checkpoints was removed during the run, and is made anew",
        ):
            checkpoints.save(3, trained(3))
    assert json.loads((directory / "training_config.json").read_text()) == CONFIG
    assert_bitwise(restored_from(directory), trained(3))


def test_a_folder_removed_with_the_one_around_it_ends_the_run(tmp_path):
    with Checkpoints(tmp_path / "out" / "checkpoints", CONFIG) as checkpoints:
        shutil.rmtree(tmp_path / "out")
        with pytest.raises(FileNotFoundError, match="out was removed during the run"):
            training.fit(
                initial(), STEPS, batches(), 4, checkpoints=checkpoints, block=4
            )
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_save_that_fails_is_named_and_leaves_no_thread(tmp_path, number, monkeypatch):
    def mkdir(path, *arguments, **settings):
        if path.name.endswith(".writing"):
            raise OSError(number, os.strerror(number), str(path))
        return make(path, *arguments, **settings)

    make = pathlib.Path.mkdir
    saved(tmp_path, 2)
    monkeypatch.setattr(pathlib.Path, "mkdir", mkdir)
    threads = set(threading.enumerate())
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(3, trained(3))
        with pytest.raises(
            OSError,
            match=f"step 3 could not be saved in {tmp_path}: .*{os.strerror(number)}",
        ):
            checkpoints.wait()
        assert checkpoints.latest_step() == 2
    lingering = [
        thread for thread in set(threading.enumerate()) - threads if not thread.daemon
    ]
    assert not lingering
    monkeypatch.undo()
    assert_bitwise(restored_from(tmp_path), trained(2))


# ---- loop


def test_fit_runs_aligned_blocks_and_leaves_its_argument_alive():
    state, seen = initial(), []
    fit = functools.partial(training.fit, steps_fn=STEPS, batches=batches(), block=4)
    final = fit(
        state, total_steps=10, on_block=lambda n, m: seen.append((n, len(m["loss"])))
    )
    assert seen == [(4, 4), (8, 4), (10, 2)] and int(final.step) == 10
    assert_bitwise(state, initial())
    assert_bitwise(final, trained(10))
    ends = []
    assert_bitwise(
        fit(trained(2), total_steps=10, on_block=lambda n, m: ends.append(n)), final
    )
    assert ends == [4, 8, 10]
    assert_bitwise(fit(final, total_steps=10), final)


def test_nan_in_the_data_names_step_and_checkpoint(tmp_path):
    data = arrays()
    order = Batches(np.arange(EXAMPLES), BATCH, seed=3)
    poisoned = next(
        n for n in order.at(2) if n not in order.block(0, 2)
    )  # first met at step 2
    data["x"][poisoned] = np.nan
    bad = Batches(data, BATCH, seed=3)
    with pytest.raises(
        FloatingPointError, match=r"step 2 .*grad_norm=nan, loss=nan.*no checkpoints"
    ):
        training.fit(initial(), STEPS, bad, 20, block=4)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        with pytest.raises(
            FloatingPointError,
            match=f"step 2 .*loss=nan.*after 2 steps, is {tmp_path}/2",
        ):
            training.fit(initial(), STEPS, bad, 20, checkpoints=checkpoints, block=4)
        restored = checkpoints.restore_latest(initial())
    assert all(np.isfinite(leaf).all() for leaf in bits(restored).values())
    assert_bitwise(restored, trained(2))


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    # the gradient 1e15 is finite and so is the loss before the update, which
    # overflows
    state = training.init(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(1e30))
    step = training.make_step(
        lambda p, key, b: (jnp.sum(p["w"]) * jnp.where(b[0] > 2, 1e15, 0.0), {}),
        optax.sgd(1e30),
    )
    data = Batches(np.arange(4), 1)
    last = int(
        np.argmax(data.block(0, 4)[:, 0])
    )  # the step that meets the large gradient
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(0, state)
        with pytest.raises(
            FloatingPointError,
            match=rf"params\['w'\] is not finite after {last + 1} steps.*{tmp_path}/",
        ):
            training.fit(
                state,
                training.make_steps(step),
                data,
                last + 1,
                checkpoints=checkpoints,
                block=1,
                save_every=1,
            )
        assert checkpoints.latest_step() == last
        assert np.isfinite(checkpoints.restore_latest(state).params["w"]).all()


def train(directory, total, kill_at=-1, number=0, rate=CONFIG["learning_rate"]):
    """In a child: a run that resumes, and that a signal meets at a step."""

    def on_block(step, metrics):
        print(step, flush=True)
        if step == kill_at:
            os.kill(os.getpid(), number)

    with Checkpoints(
        directory, {**CONFIG, "learning_rate": rate}, ignore=("steps",)
    ) as checkpoints:
        state = checkpoints.restore_latest(initial())
        state = initial() if state is None else state
        training.fit(
            state,
            STEPS,
            batches(),
            total,
            checkpoints=checkpoints,
            block=4,
            save_every=8,
            on_block=on_block,
        )


@pytest.fixture(scope="module")
def nursery():
    training.fit(
        initial(), STEPS, batches(), 4, block=4
    )  # compiled into the cache, for the children
    nursery = Nursery("test_training")
    yield nursery
    nursery.close()


def test_killed_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path, nursery, capfd
):
    directory = tmp_path / "run"
    (killed,) = nursery.run(
        tmp_path / "output", ("train", str(directory), 28, 20, int(signal.SIGKILL))
    )
    assert killed[0] == -signal.SIGKILL and killed[1].split()[-1] == "20"
    assert (directory / ".lock").exists()  # which a dead holder does not keep
    (stopped,) = nursery.run(
        tmp_path / "output", ("train", str(directory), 10**6, 24, int(signal.SIGTERM))
    )
    assert (
        stopped[0] == 128 + signal.SIGTERM and stopped[2] == ""
    )  # orbax has said nothing either
    assert (
        stopped[1].split()[-1] == "24" and 8 < int(stopped[1].split()[0]) < 24
    )  # it went on, not anew
    train(str(directory), 28)
    assert capfd.readouterr().out == "28\n"  # from the state saved at the signal
    assert_bitwise(restored_from(directory), trained(28))


def train_until(directory, total, seconds):
    """In a child, which an alarm ends without notice: `seconds` after the fourth
    block that it reports, when its second checkpoint is whole.
    """

    def on_block(step, metrics):
        blocks.append(step)
        # A save waits for the one before, and each block is followed by one.
        if len(blocks) == 4:
            signal.setitimer(signal.ITIMER_REAL, seconds)

    blocks = []
    with Checkpoints(directory, CONFIG) as checkpoints:
        state = checkpoints.restore_latest(initial()) or initial()
        training.fit(
            state,
            STEPS,
            batches(),
            total,
            checkpoints=checkpoints,
            block=4,
            save_every=4,
            on_block=on_block,
        )


@pytest.mark.slow
def test_killed_at_random_moments_equals_uninterrupted_bit_for_bit(tmp_path, nursery):
    """Twenty kills, most of them during a save, since one save follows the other.
    Each comes after checkpoints of its run, whatever the load of the machine, and
    none of these is lost.
    """
    rng, run, reached = np.random.default_rng(0), tmp_path / "run", 0
    train = lambda steps, seconds: nursery.run(
        tmp_path / "output", ("train_until", str(run), steps, seconds)
    )[0]
    for seconds in rng.uniform(1e-3, 0.5, size=20):
        status, _, errors = train(10**6, float(seconds))
        assert status == -signal.SIGALRM and "unreadable" not in errors, errors
        with Checkpoints(run, CONFIG) as checkpoints:
            assert checkpoints.latest_step() >= reached + 8
            reached = checkpoints.latest_step()
    total = reached + 8
    status, _, errors = train(total, 600.0)
    assert status == 0, errors
    straight = training.fit(initial(), STEPS, batches(), total, block=4)
    assert_bitwise(restored_from(tmp_path / "run"), straight)
    assert steps_in(run) == [str(total - 4), str(total)]
    assert not [
        path.name
        for path in (tmp_path / "run").iterdir()
        if path.name.endswith((".writing", ".deleting"))
    ]


@pytest.fixture
def restore():
    """(signal, handler) pairs to put back after the test."""
    handlers = []
    yield handlers
    for number, handler in handlers:
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_saves_first(tmp_path, number, restore):
    def on_block(step, metrics):
        if step == 12:
            os.kill(os.getpid(), number)
            time.sleep(0.05)

    # a shell that starts the tests in the background has them ignore Ctrl-C,
    # which `fit` would respect
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    restore.append((number, signal.signal(number, before)))
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        with pytest.raises(
            KeyboardInterrupt if number == signal.SIGINT else SystemExit
        ) as stopped:
            training.fit(
                initial(),
                STEPS,
                batches(),
                26,
                checkpoints=checkpoints,
                block=4,
                on_block=on_block,
            )
    assert signal.getsignal(number) is before
    assert number == signal.SIGINT or stopped.value.code == 128 + number
    assert_bitwise(restored_from(tmp_path), trained(12))


def test_an_ignored_signal_stays_ignored(restore):
    """As under nohup."""
    restore.append((signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_IGN)))
    hang_up = lambda step, metrics: os.kill(os.getpid(), signal.SIGHUP)
    assert (
        int(
            training.fit(initial(), STEPS, batches(), 8, block=4, on_block=hang_up).step
        )
        == 8
    )


# ---- meshes


def test_mesh_of_one_device_changes_nothing():
    mesh = training.data_mesh(jax.devices()[:1])
    assert mesh.axis_names == ("data", "model")
    assert mesh.axis_types == (AxisType.Auto,) * 2
    assert_bitwise(
        training.fit(initial(), STEPS, batches(), 8, block=4, mesh=mesh), trained(8)
    )


def test_mesh_errors():
    explicit = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(
        ValueError, match="mesh must have an axis 'data' and Auto alone.*Explicit"
    ):
        training.replicate(parameters(), explicit)
    other = jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=r"an axis 'data' .*got {'model': "):
        training.shard_batch(np.zeros((2, 3)), other)
    with pytest.raises(
        ValueError, match=r"batch\['y'\] must have axis 1, .*got \(4,\)"
    ):
        training.shard_batch(
            {"y": np.zeros(4)}, training.data_mesh(jax.devices()[:1]), axis=1
        )
    with pytest.raises(ValueError, match="at least one device"):
        training.data_mesh([])


def train_on_eight_devices(directory):
    """In a child."""
    os.environ["XLA_FLAGS"] = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    )
    assert len(jax.devices()) == 8
    mesh = training.data_mesh()
    with pytest.raises(
        ValueError,
        match=r"must have axis 0, a multiple of 8, got \(12",
    ):
        training.shard_batch(np.zeros((12, 3)), mesh)
    straight = training.fit(initial(), STEPS, batches(), 8, block=4, mesh=mesh)
    with Checkpoints(directory, CONFIG) as checkpoints:
        training.fit(
            initial(), STEPS, batches(), 4, checkpoints=checkpoints, block=4, mesh=mesh
        )
        state = checkpoints.restore_latest(training.replicate(initial(), mesh))
        assert all(
            leaf.sharding.is_fully_replicated and len(leaf.devices()) == 8
            for leaf in jax.tree.leaves(state)
        )
        resumed = training.fit(
            state, STEPS, batches(), 8, checkpoints=checkpoints, block=4, mesh=mesh
        )
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(resumed))
    assert_bitwise(resumed, straight)


def test_step_over_eight_devices_equals_one_device(tmp_path, nursery):
    ((status, _, errors),) = nursery.run(
        tmp_path / "output", ("train_on_eight_devices", str(tmp_path / "run"))
    )
    assert status == 0, errors
    one, eight = bits(trained(8)), bits(restored_from(tmp_path / "run"))
    for name in one:
        np.testing.assert_allclose(
            one[name], eight[name], rtol=1e-5, atol=1e-6, err_msg=name
        )


def test_what_on_block_records_covers_every_checkpoint(tmp_path):
    """A run stopped in the middle of a save has called on_block for every step saved.

    It is called for the steps before a NaN too.
    """
    reported = []

    class Stopped(Exception):
        pass

    class Stopping(training.Checkpoints):
        def save(self, step, state):
            super().save(step, state)
            raise Stopped

    with Stopping(tmp_path / "a", {}) as checkpoints, pytest.raises(Stopped):
        training.fit(
            initial(),
            STEPS,
            batches(),
            20,
            checkpoints=checkpoints,
            block=4,
            save_every=8,
            on_block=lambda n, m: reported.append(n),
        )
    assert reported[-1] == 8
