"""The main job at its smallest: its files, the meaning of its numbers, its data
and their units, its errors.
"""

import dataclasses
import importlib
import io
import json
import math
import sys
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import metrics
from experiments.score_sde import __main__ as score_sde
from experiments.score_sde import background as ahead
from experiments.score_sde import model as score_model
from experiments.score_sde.__main__ import Config
from experiments.shared import cli, datasets, scoring
from experiments.shared.datasets import dataset
from experiments.shared.schedules import ScheduleName, with_noise_floor

SMALL = Config(
    network="mlp",
    width=16,
    depth=0,
    steps=6,
    batch_size=16,
    save_every=3,
    samples=4,
    sde_steps=4,
    ode_steps=2,
    likelihood_steps=3,
    likelihood_examples=4,
    probes=2,
    chunk=4,
)


def read_whole(data):
    raise AssertionError("all training examples were read into memory")


def small(out, **changes):
    return dataclasses.replace(SMALL, out=out, **changes)


def test_the_main_job_writes_what_it_promises_and_is_loaded_from_anywhere(
    tmp_path, monkeypatch
):
    """Figures, metrics and checkpoints appear. Other flags raise ValueError and
    leave them.

    The model is loaded from another folder, with the units of its data. Its
    examples are loaded only while the data file is unchanged.
    """
    values = np.random.default_rng(0).integers(0, 17, (40, 8, 8)).astype(np.uint8)
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "here" / "images.npy", values)
    np.save(tmp_path / "elsewhere" / "images.npy", 3 * values)
    monkeypatch.chdir(tmp_path / "here")
    out = tmp_path / "out"
    config = small(out, data="images.npy")
    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "train", property(read_whole))
        first = score_sde.run(config)
    files = {path.name for path in out.iterdir()}
    figures = {"samples.png", "denoising.png", "neighbours.png", "loss.png"}
    assert files >= {"config.json", "metrics.json", "losses.json", *figures}
    stored = json.loads((out / "metrics.json").read_text())
    assert stored["test_bits_per_dim"] == first["test_bits_per_dim"]
    assert len(json.loads((out / "losses.json").read_text())["loss"]) == 6
    data = datasets.open_dataset("images.npy", config.held_out, config.seed)
    with pytest.raises(ValueError, match="learning_rate"):
        changed = dataclasses.replace(config, learning_rate=0.5)
        score_model.train(changed, score_model.make_model(changed, data), out)
    assert (
        json.loads((out / "config.json").read_text())["learning_rate"]
        == config.learning_rate
    )

    monkeypatch.chdir(tmp_path / "elsewhere")
    model, _ = score_model.load(out)
    assert (model.data.shift, model.data.scale, model.data.shape) == (
        8.0,
        8.0,
        (8, 8, 1),
    )
    assert model.data.spread == data.spread and len(model.data.train) == 0
    np.testing.assert_array_equal(model.data.levels, data.levels)
    whole, _ = score_model.load(out, examples=True)
    np.testing.assert_array_equal(whole.data.test, data.test)
    np.save(
        tmp_path / "here" / "images.npy", values + 1
    )  # the same once they are scaled
    with pytest.raises(
        ValueError, match="must hold the data that the run was trained on"
    ):
        score_model.load(out, examples=True)
    described = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(
        json.dumps({k: v for k, v in described.items() if k != score_model.DESCRIPTION})
    )
    with pytest.raises(ValueError, match="must describe the data of the run"):
        score_model.load(out)


@pytest.mark.parametrize("schedule", get_args(ScheduleName))
def test_the_floor_is_where_the_flag_says(schedule):
    data = datasets.Dataset(
        "points",
        np.zeros((4, 2), np.float32),
        np.zeros((1, 2), np.float32),
        None,
        0.0,
        1.0,
    )
    measured = score_model.make_model(
        dataclasses.replace(SMALL, schedule=schedule, noise_floor=0.05), data
    ).schedule
    np.testing.assert_allclose(
        measured.sigma(measured.t_min) / measured.alpha(measured.t_min), 0.05, rtol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("schedule", get_args(ScheduleName))
def test_every_schedule_trains_and_samples_a_toy(schedule, tmp_path):
    """By Gibbs' inequality no density scores the test set better than the exact
    one, but for the sampling error of the difference.
    """
    config = small(
        tmp_path,
        data="moons",
        schedule=schedule,
        noise_floor=0.05,
        likelihood_steps=64,
        likelihood_examples=64,
    )
    results = score_sde.run(config)
    gap = results["test_nats_per_dim"] - results["exact_test_nats_per_dim"]
    assert gap > -4 * results["test_nats_per_dim_standard_error"]


class Uniform:
    """A network that is 0 everywhere, in place of a Flax module."""

    def apply(self, params, x, t):
        return jnp.zeros(x.shape)


def test_uniform_logits_score_uniform_data_at_its_entropy():
    """A categorical model with logits 0 is exact for independent uniform levels:
    its test score is log2(K) bits/dim, up to what a sixth of the spacing blurs
    (under 0.02 bits) and the flow's error, which is stated.
    """
    rng = np.random.default_rng(0)
    levels = np.linspace(-1, 1, 5).astype(np.float32)
    images = levels[rng.integers(0, 5, (64, 4))]
    data = datasets.Dataset("uniform", images, images, levels, 0.0, 1.0)
    model = dataclasses.replace(score_model.make_model(SMALL, data), module=Uniform())
    scores = scoring.score(
        jax.random.key(2),
        data,
        model.schedule,
        model.denoiser({}),
        steps=16,
        probes=2,
        chunk=64,
    )
    slack = (
        4 * scores["test_bits_per_dim_standard_error"]
        + scores["test_bits_per_dim_error_of_steps"]
    )
    assert abs(scores["test_bits_per_dim"] - np.log2(5)) < 0.02 + slack
    assert scores["test_bits_per_dim_error_of_steps"] < 0.02


def scored(data, values, coarse=None, chunk=4):
    """`scoring.score` where the program's log-likelihoods are `values`, and
    `coarse` on the grid of half the steps.
    """
    schedule = with_noise_floor("vp", 0.02)
    fine = scoring.likelihood_grid(schedule, 8)

    def program(state, keys, examples):
        is_fine = np.array_equal(state[1], fine)
        measured = values if is_fine or coarse is None else coarse
        rows = np.asarray(examples)[:, 0].astype(int)  # an example is its own number
        return np.asarray(measured, np.float64)[rows], np.full(len(rows), 0.1)

    return scoring.score(
        jax.random.key(0),
        data,
        schedule,
        None,
        steps=8,
        probes=2,
        chunk=chunk,
        program=program,
    )


def numbered(count, levels=None, scale=1.0):
    """Two-dimensional test examples whose first entry is their number."""
    test = np.stack([np.arange(count), np.zeros(count)], 1).astype(np.float32)
    return datasets.Dataset("numbered", test, test, levels, 0.0, scale)


def test_scores_are_in_units_of_the_data_with_the_errors_of_approximations():
    """The score is −log p/D plus the mean log of the columns' scales, with errors
    by hand.

    The error of the grid is that of RK4 at half the steps.
    """
    values = np.array([-3.0, -5.0, -4.0, -8.0, -1.0])
    measured = scored(
        numbered(5, scale=np.array([10.0, 1000.0])), values, values + 0.07, chunk=3
    )
    assert measured["test_nats_per_dim_of_scaled_data"] == pytest.approx(2.1)
    assert measured["test_nats_per_dim"] == pytest.approx(2.1 + math.log(100))
    assert measured["test_nats_per_dim_standard_error"] == pytest.approx(
        values.std(ddof=1) / 2 / 5**0.5
    )
    assert measured["test_nats_per_dim_standard_error_of_probes"] == pytest.approx(
        0.05 / 5**0.5
    )
    assert measured["test_nats_per_dim_change_from_half_the_steps"] == pytest.approx(
        0.035
    )
    assert measured["test_nats_per_dim_error_of_steps"] == pytest.approx(0.005)


def test_one_test_example_has_a_score_without_standard_error(capsys):
    data = numbered(1)
    measured = scored(data, [-2.0])
    assert (
        measured["test_nats_per_dim"],
        measured["test_nats_per_dim_standard_error"],
    ) == (
        1.0,
        None,
    )
    distances = score_sde.distances({"sde": data.test, "ode": data.test}, data, 0)
    assert set(distances.values()) == {None} and len(distances) == 9
    assert "no standard error" in capsys.readouterr().out
    cli.print_results(measured | distances)


def test_a_score_that_cannot_be_raises():
    """No code is shorter than 0 bits: log₂ P = 190 over two pixels would be −95
    bits/dim.
    """
    lattice = np.linspace(-1, 1, 5).astype(np.float32)
    with pytest.raises(
        FloatingPointError,
        match=r"test_bits_per_dim -9\d.* cannot be.*raise likelihood_steps or noise_fl",
    ):
        scored(numbered(3, lattice), [125.0, 130.0, 135.0])
    assert (
        scored(numbered(3, lattice), [0.1, 0.0, 0.2])["test_bits_per_dim"] < 0
    )  # within its errors
    assert (
        scored(numbered(3), [125.0, 130.0, 135.0])["test_nats_per_dim"] == -65
    )  # a density may be any
    with pytest.raises(FloatingPointError, match="1 of 6 test log-likelihoods"):
        scored(numbered(3), [0.0, np.nan, 0.0], [0.0, 0.0, 0.0])


def test_likelihood_grids_fall_from_end_to_end():
    for name in get_args(ScheduleName):
        schedule = with_noise_floor(name, 0.02)
        grid = np.asarray(scoring.likelihood_grid(schedule, 16))
        assert grid.shape == (17,) and np.all(np.diff(grid) < 0)
        assert grid[0] == np.float32(schedule.t_max) and grid[-1] == np.float32(
            schedule.t_min
        )


def test_programs_compile_ahead():
    """Of a function that cannot be traced the error comes with its call, and does
    not prevent the others.
    """
    with ahead.Ahead() as thread:
        double = thread.compile(lambda x: 2 * x, jax.ShapeDtypeStruct((3,), np.float32))
        broken = thread.compile(
            lambda x: x.no_such_member, jax.ShapeDtypeStruct((3,), np.float32)
        )
        later = thread.submit(lambda: 5)
        np.testing.assert_array_equal(double(np.ones(3, np.float32)), 2)
        with pytest.raises(AttributeError, match="no_such_member"):
            broken(np.ones(3, np.float32))
        assert later.result() == 5


EXPERIMENTS = (
    "bench_networks",
    "bench_solvers",
    "bench_speed",
    "ddpm",
    "energy_model",
    "flow_matching",
    "fokker_planck",
    "glow",
    "guidance",
    "inverse_problems",
    "kl_directions",
    "langevin",
    "ncsn",
    "progressive_vae",
    "score_sde",
    "toy_flows",
    "toy_sde",
    "vae",
)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_help_is_written_in_any_encoding(encoding, monkeypatch):
    """The help of every experiment is written with its signs spelt out. That of
    the main job has σ/α.
    """
    for name in EXPERIMENTS:
        module = importlib.import_module(f"experiments.{name}.__main__")
        pipe = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "argv", [name, "--help"])
        with pytest.raises(SystemExit) as stop:
            cli.main(module.run, module.Config, module.__doc__)
        pipe.flush()
        written = pipe.buffer.getvalue().decode(encoding)
        assert not stop.value.code and "--out" in written
        assert name != "score_sde" or "sigma/alpha" in written


def test_signs_that_an_encoding_lacks_are_spelt():
    cli.write_any_text()
    text = "σ/α ≥ −½ → é ‖x̂‖ ─│╭ 漢"
    assert (
        text.encode("ascii", "spell").decode() == "sigma/alpha >= -1/2 -> e ||x|| -|+ ?"
    )
    assert "é ½".encode("latin-1", "spell").decode("latin-1") == "é ½"


def test_baselines_on_data_of_known_entropy():
    """Histograms reach the entropy of independent entries, 1 bit for a fair coin,
    within the cost of estimating it.
    """
    images = (
        np.random.default_rng(0).integers(0, 2, (4000, 8)).astype(np.float32) * 2 - 1
    )
    data = datasets.Dataset(
        "coins",
        images[:3000],
        images[3000:],
        np.array([-1.0, 1.0], np.float32),
        0.0,
        1.0,
    )
    np.testing.assert_allclose(datasets.histogram_bits(data), 1.0, atol=1e-3)


def test_digits_are_split_as_promised():
    data = datasets.open_dataset("digits", 447, 0)
    assert (
        data.train.shape == (1350, 8, 8, 1)
        and data.test.shape == (447, 8, 8, 1)
        and len(data.levels) == 17
    )
    assert data.classes == 10 and np.bincount(data.train_labels).min() > 100
    assert data.train.min() == -1 and data.train.max() == 1 and data.spacing == 0.125
    again = datasets.open_dataset("digits", 447, 0)
    np.testing.assert_array_equal(data.test, again.test)


def test_files_of_ones_own(tmp_path):
    """8-bit images become a lattice on [−1, 1], real images have one scale, and
    tables one a column.
    """
    rng = np.random.default_rng(0)
    np.save(tmp_path / "bytes.npy", rng.integers(0, 256, (40, 6, 6)).astype(np.uint8))
    images = datasets.open_dataset(str(tmp_path / "bytes.npy"), 10, 0)
    assert images.shape == (6, 6, 1) and len(images.levels) <= 256
    assert (
        np.isclose(np.concatenate([images.train, images.test]).max(), 1)
        and len(images.test) == 10
    )
    with pytest.raises(ValueError, match="data must have labels"):
        _ = images.classes
    np.savez(tmp_path / "vectors.npz", x=rng.normal(3, 2, (40, 5)), y=np.arange(40) % 3)
    vectors = datasets.open_dataset(str(tmp_path / "vectors.npz"), 10, 0)
    assert (
        vectors.classes == 3
        and len(vectors.test_labels) == 10
        and vectors.levels is None
    )
    np.testing.assert_allclose(vectors.train.std(0), 1, rtol=1e-6)
    real = rng.normal(size=(40, 6, 6)) * np.linspace(1, 2, 6)
    np.save(tmp_path / "real.npy", real)
    scaled = datasets.open_dataset(str(tmp_path / "real.npy"), 10, 0)
    np.testing.assert_allclose(scaled.train.std(), 1, rtol=1e-6)
    assert np.ndim(scaled.scale) == 0 and scaled.train.std((0, 1, 3)).max() > 1.3


def all_of(data):
    return np.sort(np.concatenate([data.train, data.test])[:, 0])


OFFSETS = {
    "levels far from 0": (10**9 + np.arange(200), 10**9 + 99.5, 99.5),
    "levels beyond 2^53": (2**62 + np.arange(200), 2.0**62 + 99.5, 99.5),
    "unsigned beyond 2^63": (
        np.uint64(2**64 - 200) + np.arange(200, dtype=np.uint64),
        2.0**64 - 100.5,
        99.5,
    ),
    "8 bits with a sign": (np.arange(-128, 72).astype(np.int8), -28.5, 99.5),
    "float64 levels": (1e9 + np.arange(200.0), 1e9 + 99.5, 99.5),
}


@pytest.mark.parametrize("name", OFFSETS)
def test_integers_far_from_0_become_the_lattice_of_their_differences(name, tmp_path):
    values, shift, scale = OFFSETS[name]
    np.save(tmp_path / "x.npy", values[:, None])
    data = datasets.open_dataset(str(tmp_path / "x.npy"), 50, 0)
    np.testing.assert_allclose(all_of(data), np.linspace(-1, 1, 200), atol=1e-7)
    assert len(data.levels) == 200 and data.scale == scale and data.shift == shift


TABLES = {
    "Unix times": 1.7e9 + np.linspace(0, 1e3, 200) ** 1.1,
    "nanoseconds": 1_700_000_000_000_000_000 + np.arange(200) ** 3,
    "map coordinates": 4_649_776.22 + 1e-3 * np.arange(200) ** 2,
    "tiny": 1e-200 * np.arange(200) ** 1.5,
    "huge": 1e300 * np.arange(200) ** 1.5,
    "the whole range of int64": np.linspace(-(2**63), 2**63 - 1025, 200).astype(
        np.int64
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_values_far_from_0_are_standardised_as_their_differences_are(name, tmp_path):
    """Results equal those of Python's exact integers, or of extended precision
    from the least value.

    So do columns of any scales.
    """
    column = TABLES[name]
    exact = (
        [int(v) - int(column.min()) for v in column]
        if column.dtype.kind == "i"
        else column - column.min()
    )
    exact = np.array([v / (max(exact) or 1) for v in exact], np.float64)
    table = np.stack(
        [column.astype(object), np.arange(200)[::-1], np.full(200, 3)], 1
    ).astype(column.dtype)
    np.save(tmp_path / "x.npy", table)
    data = datasets.open_dataset(str(tmp_path / "x.npy"), 50, 0)
    order = np.argsort(data.train[:, 1])[::-1]
    chosen = np.searchsorted(
        np.arange(200),
        np.rint(199 - (data.train[:, 1] * data.scale[1] + data.shift[1])),
    )[order]
    expected = (exact[chosen] - exact[chosen].mean()) / exact[chosen].std()
    np.testing.assert_allclose(data.train[order, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(data.train[:, 2], 0)  # a constant column
    assert data.scale[2] == 1 and data.shift[2] == 3 and np.isfinite(data.test).all()


def test_columns_of_any_scales_have_one_noise_floor(tmp_path):
    """N(0, 1) beside N(0, 10⁶): both are of scale 1, and the density's units are
    given back by log_scale.
    """
    table = np.random.default_rng(0).normal(size=(2000, 2)) * [1.0, 1000.0]
    np.save(tmp_path / "x.npy", table)
    data = datasets.open_dataset(str(tmp_path / "x.npy"), 500, 0)
    np.testing.assert_allclose(data.train.std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(
        data.log_scale, np.log(1000) / 2, atol=4 / np.sqrt(2 * 1500)
    )
    rebuilt = datasets.described(json.loads(json.dumps(datasets.describe(data))))
    np.testing.assert_array_equal(rebuilt.scale, data.scale)
    np.testing.assert_array_equal(rebuilt.shift, data.shift)
    assert (rebuilt.shape, rebuilt.spread, rebuilt.path) == (
        data.shape,
        data.spread,
        data.path,
    )


HELD_OUT = ("ddpm", "glow", "guidance", "progressive_vae", "score_sde", "vae")


@pytest.mark.parametrize("name", HELD_OUT)
def test_a_hold_out_that_leaves_too_little_raises_before_training(name, tmp_path):
    """Too much is 1796 or more of 1797 digits. Too little is 1 where distances
    and standard errors need more.
    """
    module = importlib.import_module(f"experiments.{name}.__main__")
    config = module.Config(out=tmp_path / "out")
    for held_out in (1796, 1797, 5000):
        with pytest.raises(
            ValueError,
            match=f"held_out must leave at least 2 of the 1797 .* got {held_out}",
        ):
            module.run(dataclasses.replace(config, held_out=held_out))
    if name != "score_sde":
        with pytest.raises(ValueError, match="held_out must be at least 2, got 1"):
            module.run(dataclasses.replace(config, held_out=1))
    assert not (tmp_path / "out").exists()


def test_baselines_of_few_examples():
    """Two training examples share one histogram, and have one Gaussian."""
    data = datasets.open_dataset("digits", 1795, 0)
    assert len(data.train) == 2 and datasets.histograms(data).shared
    assert np.isfinite(datasets.gaussian_mixture_bits(data))


def test_histograms_are_shared_where_examples_are_few():
    """16 of 256 levels at random have 4 bits. A shared histogram of n training
    entries costs χ²/(2 n ln 2) more, with 15 degrees of freedom, and log₂(1 + 1/n)
    for its pseudo-count. The mean of n test entries has the deviation
    √(2 cost/(n ln 2)). One histogram per entry would cost over 10 bits where a
    level is new.
    """
    levels = np.linspace(-1, 1, 256).astype(np.float32)
    x = levels[16 * np.random.default_rng(0).integers(0, 16, (40, 64))]
    data = datasets.Dataset("bytes", x[:20], x[20:], levels, 0.0, 1.0)
    bits, shared = datasets.histograms(data)
    n, ln_2 = 20 * 64, math.log(2)
    cost = (15 + 4 * math.sqrt(2 * 15)) / (2 * n * ln_2) + math.log2(1 + 1 / n)
    assert shared and abs(bits - 4) < cost + 4 * math.sqrt(2 * cost / (n * ln_2))
    digits = datasets.open_dataset("digits", 447, 0)
    bits, shared = datasets.histograms(digits)
    assert not shared and round(bits, 2) == 2.42


@pytest.fixture
def small_pieces(monkeypatch):
    """Stored examples are read 3 at a time."""
    few = lambda array: (array[i : i + 3] for i in range(0, len(array), 3))
    monkeypatch.setattr(dataset, "pieces", few)


def test_examples_are_read_some_at_a_time(small_pieces, tmp_path):
    """Rows, limits, histograms and nearest neighbours are those of all training
    examples in memory, of a memory map too.
    """
    rng = np.random.default_rng(0)
    np.save(tmp_path / "real.npy", rng.normal(3, 2, (20, 4, 4)).astype(np.float32))
    np.save(tmp_path / "bytes.npy", rng.integers(0, 9, (20, 4, 4)).astype(np.uint8))
    for name in ("real", "bytes"):
        data = datasets.open_dataset(str(tmp_path / f"{name}.npy"), 5, 0)
        assert isinstance(data.stored_train.array, np.memmap)
        rows = np.array([[4, 0, 14], [7, 7, 1]])
        loaded = data.loaded(data.stored_train, rows)
        np.testing.assert_array_equal(loaded, data.train[rows])
        if name == "real":
            assert data.limits == (data.train.min(), data.train.max())
        x = np.concatenate([data.test, data.train[8:9]])
        nearest = score_sde.nearest_training(x, data, 3)
        expected = metrics.nearest_neighbours(x, data.train, 3)
        np.testing.assert_array_equal(nearest[0], expected[0])
        np.testing.assert_allclose(nearest[1], expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_no_samples_are_drawn_where_none_are_wanted(tmp_path):
    results = score_sde.run(small(tmp_path, samples=0))
    assert results["test_bits_per_dim"] > 0 and (tmp_path / "loss.png").exists()
    assert not (tmp_path / "samples.png").exists()
    assert not any("frechet" in name or "nearest" in name for name in results)


def test_bad_input_is_named(tmp_path):
    np.save(tmp_path / "nan.npy", np.full((8, 4), np.nan))
    np.save(tmp_path / "flat.npy", np.ones(8))
    np.save(tmp_path / "reals.npy", np.linspace(0, 1, 32).reshape(8, 4))
    np.save(tmp_path / "constant.npy", np.ones((8, 4)))
    (tmp_path / "empty.npy").touch()
    cases = [
        (FileNotFoundError, "missing.npy", {"data": str(tmp_path / "missing.npy")}),
        (ValueError, r"is empty \(0 bytes\)", {"data": str(tmp_path / "empty.npy")}),
        (ValueError, "NaN", {"data": str(tmp_path / "nan.npy")}),
        (ValueError, "rank 2", {"data": str(tmp_path / "flat.npy")}),
        (ValueError, "more than one value", {"data": str(tmp_path / "constant.npy")}),
        (ValueError, "data must be 'digits'", {"data": "cifar"}),
        (
            ValueError,
            "needs data on a lattice",
            {"data": str(tmp_path / "reals.npy"), "prediction": "levels"},
        ),
        (
            ValueError,
            "needs images",
            {"data": str(tmp_path / "reals.npy"), "network": "dit"},
        ),
        (ValueError, "steps must be at least 1, got 0", {"steps": 0}),
        (ValueError, "width must be", {"width": 0}),
        (ValueError, "samples must be 0, or 2 or more, got 1", {"samples": 1}),
        (
            ValueError,
            "likelihood_examples must be at least 2, got 1",
            {"likelihood_examples": 1},
        ),
        (ValueError, "noise_floor must lie in", {"noise_floor": 3.0}),
        (
            ValueError,
            "noise_floor must be at least 0.00521.* got 0.001",
            {"noise_floor": 0.001},
        ),
        (
            ValueError,
            "learning_rate must be positive, got -1.0",
            {"learning_rate": -1.0},
        ),
    ]
    for error, match, changes in cases:
        with pytest.raises(error, match=match):
            score_sde.run(small(tmp_path / "out", **changes))
