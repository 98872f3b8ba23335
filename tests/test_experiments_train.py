"""The general trainer at its smallest: presets, resuming, records, and errors."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffjax as dj
from diffjax.training import arrays
from experiments.shared import cli, datasets, runs
from experiments.train import __main__ as train
from experiments.train import (
    augmentation,
    model,
    objective,
    optimisation,
    presets,
    records,
    speed,
)
from experiments.train import data as train_data
from experiments.train.config import FREE, Config, check
from experiments.train.evaluation import Evaluation, write_mosaic

SMALL = Config(
    data="random",
    random_shape=(4, 4, 3),
    random_classes=3,
    held_out=20,
    network="mlp",
    width=8,
    depth=0,
    dropout=0.0,
    steps=4,
    batch_size=8,
    save_every=2,
    evaluate_every=2,
    evaluate_examples=6,
    evaluate_samples=4,
    samples=20,
    solver="euler",
    solver_steps=2,
    likelihood_examples=0,
    chunk=8,
)


def changed(**values):
    return dataclasses.replace(SMALL, **values)


def made(config):
    return model.make_model(config, train_data.open_data(config))


# --------------------------------------------------------------------- presets

# Published: 56, 280 and 130 million.
PARAMETERS = {
    "patches32": 1_748_803,
    "digits_best": 722_372,
    "cifar10": 55_733_251,
    "imagenet64": 280_210_021,
    "latents32": 130_177_552,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_is_valid_and_has_the_stated_size(name):
    """Its flags agree, and its network initialises, without any arithmetic."""
    config = presets.PRESETS[name]
    assert config.preset == name and config.out.name == name
    check(config)
    if name not in ("patches32", "digits_best"):
        config = dataclasses.replace(config, data="random")
    made_model = made(config)
    shapes = jax.eval_shape(
        lambda key: objective.init(config, made_model, key)["network"],
        jax.random.key(0),
    )
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == PARAMETERS[name]


def test_the_command_line_chooses_the_preset():
    assert presets.PRESETS.keys() == presets.SUMMARIES.keys()
    choose = lambda line: presets.chosen(line.split()).preset
    assert choose("") == choose("--steps 3") == choose("--preset nothing")
    assert choose("--steps 3 --preset cifar10 --help") == "cifar10"
    assert choose("--preset=imagenet64") == "imagenet64"


# -------------------------------------------------------------------- training


def lines_of(folder):
    return [json.loads(text) for text in (folder / "metrics.jsonl").open()]


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch):
    """Bit for bit, with every step in exactly one line and the best kept aside.
    The run is interrupted in its first evaluation, after records that no
    checkpoint covers.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train.run(changed(out=whole))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(changed(out=parts))
    with (parts / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "steps": 1, "loss": 7.0}\n{"step": 4, "st')
    results = train.run(changed(out=parts))
    for part, other in zip(
        *(
            jax.tree.leaves(dj.training.load_ema(f / "checkpoints"))
            for f in (whole, parts)
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(part, other)
    for folder in (whole, parts):
        lines = lines_of(folder)
        assert sum(line.get("steps", 0) for line in lines) == 4
        steps = [line["step"] for line in lines]
        assert steps == sorted(steps)
        losses = {x["step"]: x["held_out_loss"] for x in lines if "held_out_loss" in x}
        best = min(losses, key=losses.get)
        assert [path.name for path in (folder / "best").iterdir()] == [str(best)]
        assert {path.name for path in (folder / "samples").iterdir()} == {
            *("00000002.png", "00000004.png")
        }
    for name in ("held_out_loss", "best_held_out_loss", "distances"):
        assert results[name] == expected[name]
    total = lambda folder: sum(
        x["loss"] * x["steps"] for x in lines_of(folder) if "loss" in x
    )
    assert total(whole) == pytest.approx(total(parts), rel=1e-6)
    before = lines_of(parts)
    again = train.run(changed(out=parts))
    assert again["distances"] == results["distances"]
    assert lines_of(parts) == before
    opened = runs.open_run(parts)
    assert opened.experiment == "train"
    x = jnp.ones(SMALL.random_shape)
    params = model.load_params(parts, SMALL)
    np.testing.assert_array_equal(
        opened.denoiser(x, 1.0), made(SMALL).sampled(params)(x, 1.0)
    )


@pytest.mark.slow
def test_all_parts_work_together(tmp_path):
    """EDM2 with classes, u(σ), augmentation, averages, micro-batches, bfloat16,
    rematerialisation and guidance, and an average of a length that was not kept.
    """
    pytest.importorskip("tensorboardX")
    config = changed(
        out=tmp_path,
        network="edm2",
        random_shape=(8, 8, 3),
        depth=1,
        multipliers=(1, 2),
        attention_resolutions=(1,),
        head_channels=4,
        labels=True,
        uncertainty=True,
        averages=(0.05, 0.1),
        accumulate=2,
        augment="edm",
        guidance=2.0,
        decay="inverse_sqrt",
        decay_after=2,
        average=0.07,
        dtype="bfloat16",
        remat="blocks",
        tensorboard=True,
        dropout=0.1,
        evaluate_frechet=20,
        likelihood_examples=2,
        likelihood_steps=2,
        bound_times=2,
    )
    results = train.run(config)
    assert math.isfinite(results["test_bits_per_dim"])
    lines = lines_of(tmp_path)
    assert all("error" in line for line in lines if "steps" in line)
    assert all("frechet" in line for line in lines if "held_out_loss" in line)
    assert list((tmp_path / "tensorboard").iterdir())
    runs.open_run(tmp_path)


@pytest.mark.slow
def test_checkpoints_belong_to_the_flags_that_change_the_training(tmp_path):
    """Others may change when a run resumes."""
    names = {field.name for field in dataclasses.fields(Config)}
    assert names >= FREE
    quiet = changed(out=tmp_path, evaluate_every=None, samples=0, steps=2)
    train.run(quiet)
    train.run(dataclasses.replace(quiet, save_every=1, chunk=2))
    with pytest.raises(ValueError, match="width"):
        train.run(dataclasses.replace(quiet, width=4))


# --------------------------------------------------------------------- records


def recorder(out, **settings):
    one = records.Records(
        out,
        batch_size=4,
        learning_rate=lambda n: 0.1 * (n + 1),
        operations=10,
        peak=settings.pop("peak", None),
        **settings,
    )
    return one


def block(*losses):
    return {"loss": np.array(losses), "grad_norm": np.ones(len(losses))}


def test_lines_hold_means_over_their_steps(tmp_path):
    one = recorder(tmp_path, peak=1e9)
    one.open(0)
    one.block(2, block(1.0, 2.0))
    one.block(3, block(6.0))
    one.evaluation(3, {"held_out_loss": 0.5})
    first, second = lines_of(tmp_path)
    assert (first["step"], first["steps"], first["loss"]) == (3, 3, 3.0)
    assert first["learning_rate"] == pytest.approx(0.3)
    # Of the second block alone, as the first was compiled.
    utilisation = first["images_per_second"] * 10 / 4 / 1e9
    assert first["model_flop_utilisation"] == pytest.approx(utilisation, rel=1e-5)
    assert second["held_out_loss"] == 0.5 and one.evaluated(3) and not one.evaluated(2)


def test_records_go_on_after_the_checkpoint(tmp_path, capsys):
    """Lines after it and damaged ones are removed. Lost ones are reported."""
    one = recorder(tmp_path)
    one.open(0)
    for step in (1, 2, 3):
        one.block(step, block(float(step)))
        one.flush()
    with one.file.open("a") as stream:
        stream.write('{"step": 4, "lo')
    two = recorder(tmp_path)
    two.open(2)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]
    assert "warning" not in capsys.readouterr().out
    whole = one.file.read_text()
    for damaged in ('{"step": 2, "steps": "x"}', '{"step": NaN}', "[2]", "{}", "\0"):
        one.file.write_text(f"{damaged}\n{whole}")
        recorder(tmp_path).open(2)
        assert "0 of 2 steps" in capsys.readouterr().out
    one.file.unlink()
    recorder(tmp_path).open(2)
    assert "0 of 2 steps" in capsys.readouterr().out
    no_number = '{"step": 1, "steps": 1, "held_out_loss": NaN}\n'
    one.file.write_text(no_number + whole.replace("loss", "held_out_loss"))
    two.open(2)
    best = two.best()
    assert best is not None and math.isfinite(best["held_out_loss"])
    recorder(tmp_path).open(0)
    assert lines_of(tmp_path) == []


def test_the_best_checkpoint_stands_alone(tmp_path):
    best = tmp_path / "best"
    for step in (2, 4):
        checkpoint = tmp_path / str(step)
        checkpoint.mkdir()
        (checkpoint / "manifest.json").write_text(str(step))
        records.keep_best(checkpoint, best)
        records.keep_best(checkpoint, best)
    (file,) = best.rglob("*.json")
    assert file.read_text() == "4" and file.parent.name == "4"


# -------------------------------------------------- learning rate and optimiser


def test_the_learning_rate_is_the_stated_one():
    n = np.array([0, 9, 99, 399, 1599])
    config = changed(
        learning_rate=2.0, warmup=10, decay="inverse_sqrt", decay_after=400
    )
    expected = 2 * np.minimum(1, (n + 1) / 10) / np.sqrt(np.maximum(1, n / 400))
    rate = optimisation.learning_rate(config)
    np.testing.assert_allclose([rate(i) for i in n], expected, rtol=1e-6)
    constant = optimisation.learning_rate(changed(warmup=2, decay="constant"))
    np.testing.assert_allclose([constant(i) for i in (0, 1, 99)], [5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("network", ["dit", "edm2"])
def test_the_optimiser_is_a_chain_whose_parts_name_the_moments(network, clip_norm):
    """The names are those in checkpoints, and the update is optax's bit for bit."""
    config = changed(network=network, clip_norm=clip_norm, weight_decay=0.1)
    parts = [optax.adamw(optimisation.learning_rate(config), weight_decay=0.1)]
    if clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if network == "edm2":
        parts.append(optimisation.normalising())
    params, updates = {"weight": jnp.arange(6.0).reshape(2, 3)}, []
    for rule in (optax.chain(*parts), optimisation.optimiser(config)):
        state = rule.init(params)
        update, state = rule.update(params, state, params)
        names = arrays.flatten(state, "opt_state").keys()
        updates.append((list(names), np.asarray(update["weight"]).tolist()))
    assert updates[0] == updates[1]


def test_weights_of_magnitude_preserving_networks_stay_normalised():
    rule = optimisation.optimiser(changed(network="edm2_s", learning_rate=0.1))
    params = {"a": {"weight": jnp.ones((4, 3))}, "b": jnp.ones(3)}
    updates, _ = rule.update(
        jax.tree.map(
            lambda p: jnp.arange(p.size, dtype=float).reshape(p.shape), params
        ),
        rule.init(params),
        params,
    )
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(jnp.mean(moved["a"]["weight"] ** 2, 0), 1, rtol=1e-5)
    assert float(moved["b"][2]) < 1


# --------------------------------------------------------- conditions and loss


def test_conditions_take_the_form_of_the_network():
    """A label, a vector, a pair or none. The null label is the number of classes."""
    forms = {
        (None, None): None,
        (3, None): 3,
        (None, 2): np.zeros(2),
        (3, 2): (3, np.zeros(2)),
    }
    base = made(SMALL)
    for (classes, dim), null in forms.items():
        one = dataclasses.replace(base, classes=classes, condition_dim=dim)
        jax.tree.map(np.testing.assert_array_equal, one.condition(), null)
    pair = one.condition(1, jnp.ones(2))
    assert int(pair[0]) == 1 and pair[1].sum() == 2


def test_a_model_without_examples_has_the_recorded_number_of_classes():
    config = changed(labels=True)
    one = made(config)
    about = json.loads(json.dumps(model.about(config, one)))
    data = datasets.described(about[model.DESCRIPTION])
    assert data.train_labels is None
    loaded = model.make_model(config, data, about[model.TAKEN]["classes"])
    assert loaded.classes == one.classes == 3


def test_labels_are_dropped_and_images_scaled():
    config = changed(labels=True, label_dropout=1.0)
    one = made(config)
    prepare = objective.preparation(config, one)
    batch = {"x": one.data.stored_train[:8], "label": one.data.train_labels[:8]}
    x, condition = prepare(jax.random.key(0), batch)
    np.testing.assert_array_equal(x, one.data.train[:8])
    assert set(np.asarray(condition)) == {3}
    kept = objective.preparation(changed(labels=True, label_dropout=1e-9), one)
    np.testing.assert_array_equal(kept(jax.random.key(0), batch)[1], batch["label"])


def test_warped_digits_stay_on_the_levels():
    """The label is 0 exactly where the image is unchanged."""
    levels = ((np.arange(17) - 8) / 8).astype(np.float32)
    rng = np.random.default_rng(0)
    images = jnp.asarray(levels[rng.integers(0, 17, (32, 8, 8, 1))])
    keys = jax.random.split(jax.random.key(0), 32)
    warp = lambda key, x: augmentation.warped(key, x, 0.5, levels)
    warped, labels = jax.vmap(warp)(keys, images)
    assert set(np.unique(warped)) <= set(levels)
    unchanged = np.all(np.asarray(labels) == 0, 1)
    assert 4 < unchanged.sum() < 28  # P < 10⁻⁵ beyond, for a binomial of 32
    np.testing.assert_array_equal(warped[unchanged], images[unchanged])
    assert np.any(np.asarray(warped != images), (1, 2, 3))[~unchanged].all()


def test_the_held_out_loss_does_not_depend_on_chunks(tmp_path):
    """Its times and noises are fixed."""
    config = changed(evaluate_samples=0)
    one = made(config)
    params = one.init(jax.random.key(0))
    evaluations = [
        Evaluation(dataclasses.replace(config, chunk=chunk), one, tmp_path)
        for chunk in (2, 8)
    ]
    losses = [evaluation(params, 1)["held_out_loss"] for evaluation in evaluations]
    # Sums of float32 in another order.
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params)
    with pytest.raises(FloatingPointError, match="6 of 6 held-out losses .* step 3: l"):
        evaluations[0](broken, 3)


# ----------------------------------------------------------------------- speed


def test_operations_of_a_step_do_not_depend_on_rematerialisation():
    config = changed(
        network="dit", random_shape=(4, 4, 3), width=8, depth=1, heads=2, patch=2
    )
    counts = set()
    for remat in ("none", "blocks"):
        one = dataclasses.replace(config, remat=remat)
        arrays = train_data.training_arrays(one, made(one).data)
        counts.add(speed.step_operations(one, made(one), arrays))
    assert len(counts) == 1 and counts.pop() > 0


def test_peaks_are_found_by_the_longest_name():
    assert speed.peak("NVIDIA H100 80GB HBM3") == speed.PEAKS["H100"]
    assert speed.peak("NVIDIA H100 PCIe") == speed.PEAKS["H100 PCIe"]
    assert speed.peak("NVIDIA H200 NVL") == speed.PEAKS["H200 NVL"]
    assert speed.peak("NVIDIA A100-SXM4-40GB") == speed.PEAKS["A100"]
    assert speed.peak("TPU v5 lite") == speed.PEAKS["TPU v5 lite"]
    assert speed.peak("TPU v5e") == speed.PEAKS["TPU v5 lite"]
    assert speed.peak("TPU v5p") == speed.PEAKS["TPU v5"]
    assert speed.peak("NVIDIA L4") == speed.PEAKS["L4"]
    assert speed.peak("NVIDIA L40") is None
    assert speed.peak("cpu") is None


def test_mosaics_are_images_pixel_by_pixel(tmp_path):
    from PIL import Image

    images = np.stack([np.full((2, 2, 4), value) for value in (-1.0, 0.0, 1.0)])
    write_mosaic(tmp_path / "a.png", images, (-1.0, 1.0))
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert pixels.shape == (5 * 32, 5 * 32, 3)
    assert pixels[0, 0].tolist() == [0, 0, 0] and pixels[-1, 0].tolist() == [255] * 3


# ------------------------------------------------------------------------ help


@pytest.mark.parametrize("width", [80, 120])
def test_help_is_wrapped_once(width, monkeypatch, capsys):
    """No line is too long, and none ends before it is full."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.argv", ["train", "--help"])
    with pytest.raises(SystemExit):
        cli.main(train.run, Config, train.__doc__, defaults=presets.chosen)
    written = capsys.readouterr().out
    assert max(map(len, written.splitlines())) <= width
    assert "--samples 0   " in written  # a line of code
    lines = [line.strip("│| ") for line in written.splitlines()]
    for begin, end, narrower in (
        ("During training, OUT", "on the same devices.", 0),
        ("Changes of training images.", "(default: flip)", 10),  # in the box
    ):
        first = next(i for i, line in enumerate(lines) if line.startswith(begin))
        last = next(i for i, line in enumerate(lines) if i >= first and end in line)
        for line, following in zip(lines[first:last], lines[first + 1 :], strict=False):
            assert len(f"{line} {following.split()[0]}") > width - narrower


# ---------------------------------------------------------------------- errors

WRONG = [
    ({"guidance": 2.0}, "guidance"),
    ({"labels": True, "label_dropout": 0.0}, "label_dropout"),
    ({"times": "uniform", "times_mean": 0.0}, "times_mean"),
    ({"weighting_parameter": 1.0}, "weighting_parameter"),
    ({"decay": "inverse_sqrt"}, "decay_after"),
    ({"decay_after": 3}, "decay_after"),
    ({"accumulate": 3}, "accumulate"),
    ({"devices": 99}, "devices"),
    ({"solver": "magic"}, "solver"),
    ({"samples": 1}, "samples"),
    ({"evaluate_frechet": 1}, "evaluate_frechet"),
    ({"random_shape": (0, 4, 3)}, r"random_shape\[0\]"),
    ({"random_classes": 0}, "random_classes"),
    ({"labels": True, "guidance": float("nan")}, "guidance"),
    ({"clip_norm": 0.0}, "clip_norm"),
    ({"clip_norm": -1.0}, "clip_norm"),
    ({"beta_2": 1.0}, "beta_2"),
    ({"weight_decay": -0.1}, "weight_decay"),
    ({"final": "best", "evaluate_every": None}, "evaluate_every"),
    ({"averages": (0.5,)}, "averages"),
    ({"average": 0.1}, "average"),
    ({"average": 0.1, "averages": (0.05,), "final": "best"}, "average"),
    ({"network": "dit_s_2", "multipliers": (1,)}, "multipliers"),
    ({"patch": 2}, "patch"),
    ({"data": "digits", "network": "mlp", "labels": False, "size": -1}, "size"),
    ({"random_shape": (3,)}, r"random_shape must be \(H, W, C\), got \(3,\)"),
    (
        {"network": "unet", "depth": 1, "random_shape": (6, 4, 3)}
        | {"multipliers": (1, 2, 2)},
        r"examples of random .* 2\^\(multipliers − 1\)=4, got \(6, 4, 3\)",
    ),
    (
        {"network": "dit", "patch": 4, "random_shape": (6, 4, 3)},
        "examples of random .* patch=4",
    ),
    ({"random_shape": (4, 4, 2), "prediction": "levels"}, "prediction"),
    ({"random_shape": (4, 4, 2), "augment": "digits"}, "augment"),
    ({"data": "nothing.npz"}, "--data random"),
]


@pytest.mark.parametrize("values, word", WRONG)
def test_wrong_flags_end_before_anything_is_written(values, word, tmp_path):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=word):
        train.run(changed(out=tmp_path / "out", **values))
    assert not (tmp_path / "out").exists()
