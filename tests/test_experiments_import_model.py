"""The experiment on folders of random weights, saved by the library itself."""

import json
import shutil
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.interop import diffusers
from experiments.import_model import __main__ as import_model
from experiments.import_model import compare, ranking
from experiments.import_model.__main__ import Config
from experiments.import_model.parts import Conditions, open_conditions, open_parts
from tests.diffusers_models import model_of
from tests.golden.diffusers_rows import CODER, DIT, ROWS, TEXT

SMALL = {
    "samples": 2,
    "steps": 2,
    "scored": 1,
    "likelihood_steps": 2,
    "starts": 1,
    "budgets": (3,),
    "candidates": ("ddim",),
    "reference": 2,
    "size": 8,
}
CHAIN = dj.schedules.from_betas(dj.ddpm.linear_betas(1000))


def pipeline(folder, **parts):
    """A folder of models of random weights by name, and a scheduler."""
    for name, config in parts.items():
        diffusers.save(folder / name, model_of(config))
    diffusers.save_scheduler(
        folder / "scheduler", CHAIN, "noise", clip_sample=False, steps_offset=1
    )
    return folder


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    """A transformer by class on latents."""
    return pipeline(
        tmp_path_factory.mktemp("latent"),
        transformer={"_class_name": "DiTTransformer2DModel", **DIT, "out_channels": 8},
        vae={"_class_name": "AutoencoderKL", **CODER},
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A U-Net by text."""
    unet = {"_class_name": "UNet2DConditionModel", **TEXT}
    return pipeline(tmp_path_factory.mktemp("text"), unet=unet)


def test_a_latent_model_is_sampled_and_decoded(latent, tmp_path):
    """Of two equal classes in turn the starts differ, so that the samples do too."""
    less = SMALL | {"scored": 0, "starts": 0}
    import_model.run(Config(latent, out=tmp_path, classes=(1,), **less))
    samples = np.load(tmp_path / "samples.npy")
    assert samples.shape == (2, 16, 16, 3) and np.isfinite(samples).all()
    assert not np.allclose(samples[0], samples[1])
    assert (tmp_path / "samples.png").stat().st_size > 0


@pytest.mark.parametrize("latent", [False, True])
def test_a_score_has_its_standard_error_beside_it(latent):
    """Of two values it is half their difference."""
    name = "bits_per_dim_of_latents" if latent else "bits_per_dim"
    summary = import_model._summary(np.log(2) * np.array([-4.0, -8.0]), 4, latent)
    assert summary[name] == pytest.approx(1.5)
    assert summary[f"{name}_standard_error"] == pytest.approx(0.5)
    assert set(import_model._summary(np.array([-1.0]), 4, latent)) == {"nats", name}


@pytest.mark.slow
def test_a_guided_latent_model_is_scored_and_ranked(latent, tmp_path):
    config = Config(latent, out=tmp_path, guidance=2.0, classes=(1,), **SMALL)
    results = import_model.run(config)
    assert np.isfinite(results["bits_per_dim_of_latents"])
    stored = json.loads((tmp_path / "metrics.json").read_text())
    ranked = sorted((row["solver"], row["evaluations"]) for row in stored["ranking"])
    # One evaluation per step of each.
    assert ranked == [("ddim", 3), ("the scheduler", 3)]
    for name in ("errors.png", "config.json"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize(
    "solver, of_scheduler", [("ddim", [(4, 4), (8, 8)]), ("heun", [(3, 2), (7, 4)])]
)
def test_candidates_take_the_most_steps_that_their_evaluations_allow(
    text, solver, of_scheduler
):
    """Heun's method has two evaluations per step and one on the step to 0."""
    chosen = {"candidates": ("heun", "ddim", "rk4"), "budgets": (4, 8)}
    config = Config(text, **SMALL | chosen)
    parts = open_parts(config)._replace(solver=import_model.solvers.make(solver))
    runs = list(ranking.candidates(config, parts))
    counts = [(run.name, run.evaluations, len(run.grid) - 1) for run in runs]
    assert counts == [
        ("heun", 3, 2),
        ("ddim", 4, 4),
        ("the scheduler", *of_scheduler[0]),
        ("heun", 7, 4),
        ("ddim", 8, 8),
        ("rk4", 5, 2),
        ("the scheduler", *of_scheduler[1]),
    ]
    for run in runs:
        assert run.grid[-1] == 0
        steps = len(run.grid) - 1
        assert run.evaluations == run.solver.evaluations(steps, to_zero=True)


@pytest.mark.parametrize("name", ["ddim", "heun", "rk4", "picard", "restart"])
def test_a_chosen_solver_takes_exactly_the_steps_of_the_flags(name):
    solver = import_model.solvers.make(name)
    assert len(ranking.grid_of(CHAIN, solver, 20)) == 21


def test_a_coarse_reference_ranks_nothing(capsys):
    rows = [ranking.Row("ddim", 8, 0.3), ranking.Row("heun", 15, 0.1)]
    import_model.print_ranking(rows, 0.2)
    printed = capsys.readouterr().out
    assert "within 8 evaluations take ddim" in printed
    assert "within 15 evaluations the reference is too coarse" in printed


@pytest.fixture
def known(text):
    """The parts of a model with a denoiser of one condition, by hand."""
    parts = open_parts(Config(text, **SMALL))
    denoiser = jax.tree_util.Partial(lambda x, t, condition: 0.1 * condition[0] + 0 * x)
    return parts._replace(schedule=dj.schedules.vp_linear(), shape=(2, 2, 3)), denoiser


def test_images_take_the_conditions_of_samples_in_turn(known, tmp_path):
    parts, denoiser = known
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    config = Config(tmp_path, images=tmp_path / "images.npy", **SMALL | {"scored": 3})
    x = import_model.scored_examples(config, parts, np.zeros((2, 2, 2, 3)))
    assert len(x) == 3

    def score(*values):
        rows = (np.asarray(values, np.float32),)
        return import_model.score(config, parts, denoiser, Conditions(rows, None), x)

    assert score(-1, 3) == score(-1, 3, -1) != score(-1, 3, 3)


def test_guided_samples_are_those_of_the_guided_denoiser(latent):
    """(1 − γ) D_u + γ D_c, with the null class 5 of five classes."""
    config = Config(latent, guidance=3.0, classes=(2,), **SMALL)
    parts = open_parts(config)
    conditions = open_conditions(config, parts.model)
    assert conditions.null[0] == 5
    guided = import_model.conditional(config, parts, conditions)
    plain = parts.model.denoiser(parts.schedule, parts.kind)
    x = jax.random.normal(jax.random.key(1), parts.shape)
    with_class, without, both = jax.jit(
        lambda plain, guided, x: (
            plain(x, 0.5, 2),
            plain(x, 0.5, 5),
            guided(x, 0.5, (2,)),
        )
    )(plain, guided, x)
    np.testing.assert_allclose(both, -2 * without + 3 * with_class, atol=1e-5)


def test_texts_come_from_a_file_in_turn(text, tmp_path):
    rows = np.arange(2.0 * 5 * 6).reshape(2, 5, 6)
    file = tmp_path / "texts.npz"
    np.savez(file, text=rows, null_text=np.zeros((5, 6)))
    config = Config(text, embeddings=file, guidance=2.0, **SMALL | {"samples": 3})
    conditions = conditions_of(config)
    np.testing.assert_array_equal(conditions.rows[0], rows[[0, 1, 0]])
    assert conditions.null[0].shape == (5, 6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, r"--embeddings needs a file with \['text'\]"),
        ({"candidates": ("magic",)}, "solver must be one of"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"budgets": (1,)}, "budgets must be at least 2"),
        ({"candidates": ("adaptive(1e-2)",)}, "fixed numbers of evaluations"),
        ({"solver": "ddim", "steps": 1}, "steps must be at least 2"),
        ({"classes": (1,)}, "--classes needs a model with class indices"),
    ],
)
def test_flags_that_do_not_fit_raise_before_anything_runs(
    text, tmp_path, changes, message
):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        import_model.run(Config(text, out=out, **SMALL | changes))
    assert not out.exists()


def conditions_of(config):
    return open_conditions(config, open_parts(config).model)


def test_missing_files_are_named_by_their_flag(text, tmp_path):
    absent = tmp_path / "absent"
    for changes in ({"folder": absent}, {"folder": text, "embeddings": absent}):
        config = Config(**SMALL | changes)
        with pytest.raises(FileNotFoundError, match=f"--{[*changes][-1]}: there is no"):
            conditions_of(config)


def test_conditions_that_the_model_does_not_take_raise(latent, tmp_path):
    np.savez(tmp_path / "texts.npz", text=np.zeros((1, 5, 6)))
    config = Config(latent, embeddings=tmp_path / "texts.npz", **SMALL)
    message = r"--embeddings has \['text'\], but the model takes \['class', 'null_cl"
    with pytest.raises(ValueError, match=message):
        conditions_of(config)


@pytest.mark.parametrize(
    "classes, message",
    [
        ((3, 99), "classes must be between 0 and 4, or 5 for no class, got"),
        ((), "--classes must name at least one class"),
    ],
)
def test_classes_out_of_range_raise(latent, classes, message):
    config = Config(latent, classes=classes, **SMALL)
    with pytest.raises(ValueError, match=message):
        conditions_of(config)


def test_texts_of_another_length_raise(text, tmp_path):
    np.savez(tmp_path / "wide.npz", text=np.zeros((1, 5, 7)))
    config = Config(text, embeddings=tmp_path / "wide.npz", **SMALL)
    message = r"text must have shape \(5, 6\) or \(N, 5, 6\), got \(1, 5, 7\)"
    with pytest.raises(ValueError, match=message):
        conditions_of(config)


class Conditional(NamedTuple):
    """A model of which only the conditions matter."""

    condition_shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any] = {}


XL = Conditional({"text": (4, 6), "pooled": (3,), "sizes": (2,)})
"""The conditions of Stable Diffusion XL."""


@pytest.mark.parametrize(
    "model, arrays, message",
    [
        (Conditional({}), {}, "guidance needs a model with conditions"),
        (XL, {}, "guidance needs null_text, null_pooled in the file of --embed"),
        (XL, {"null_text": (5, 6)}, "guidance needs null_pooled in the file"),
        (
            XL,
            {"null_text": (1, 5, 6), "null_pooled": (3,)},
            r"null_text must have shape \(5, 6\), got \(1, 5, 6\)",
        ),
        (
            Conditional({"class": ()}, {"num_class_embeds": None}),
            {},
            "guidance needs null_class in the file",
        ),
    ],
)
def test_guidance_needs_the_null_of_every_text_and_class(
    tmp_path, model, arrays, message
):
    stated = {"text": (5, 6), "pooled": (3,), "sizes": (2,)}
    stated = {k: v for k, v in stated.items() if k in model.condition_shapes}
    arrays = stated | arrays
    values = {name: np.zeros(shape) for name, shape in arrays.items()}
    np.savez(tmp_path / "conditions.npz", **values)
    config = Config(
        tmp_path, embeddings=tmp_path / "conditions.npz", guidance=2.0, **SMALL
    )
    with pytest.raises(ValueError, match=message):
        open_conditions(config, model)


def test_the_null_condition_keeps_the_sizes_of_each_sample(known, tmp_path):
    """The denoiser is the sum of its conditions."""
    sizes = np.asarray([[1.0, 2.0], [10.0, 20.0]])
    np.savez(
        tmp_path / "conditions.npz",
        text=np.ones((5, 6)),
        null_text=np.zeros((5, 6)),
        pooled=np.ones(3),
        null_pooled=np.zeros(3),
        sizes=sizes,
    )
    config = Config(
        tmp_path, embeddings=tmp_path / "conditions.npz", guidance=2.0, **SMALL
    )
    conditions = open_conditions(config, XL)
    parts, _ = known
    total = lambda x, t, *condition: 0 * x + sum(jnp.sum(c) for c in condition)
    model = types.SimpleNamespace(
        denoiser=lambda schedule, kind: jax.tree_util.Partial(total)
    )
    guided = import_model.conditional(config, parts._replace(model=model), conditions)
    for i in range(2):
        row = jax.tree.map(lambda value, i=i: value[i], conditions.rows)
        # (1 − γ) (0 + 0 + sizes) + γ (30 + 3 + sizes) of γ = 2
        expected = 2 * 33 + sizes[i].sum()
        assert guided(jnp.zeros(()), 0.5, row) == expected
    null = compare.null_rows(conditions)
    np.testing.assert_array_equal(null[2], sizes)
    assert null[0].shape == (2, 5, 6)


@pytest.mark.slow
def test_guided_samples_are_those_of_diffusers(tmp_path):
    """Of Stable Diffusion XL's conditions, with other sizes for each sample."""
    for library in ("torch", "diffusers"):
        pytest.importorskip(library)
    unet = {
        "_class_name": "UNet2DConditionModel",
        **TEXT,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 60,
    }
    folder = pipeline(tmp_path / "xl", unet=unet)
    normal = np.random.default_rng(0).normal
    np.savez(
        tmp_path / "conditions.npz",
        text=normal(size=(2, 5, 6)),
        null_text=normal(size=(5, 6)),
        pooled=normal(size=(3, 12)),
        null_pooled=normal(size=12),
        sizes=100 + normal(size=(3, 6)),
    )
    flags = {"samples": 3, "steps": 3, "scored": 0, "starts": 0, "guidance": 2.0}
    config = Config(
        folder,
        out=tmp_path / "out",
        embeddings=tmp_path / "conditions.npz",
        compare=True,
        **SMALL | flags,
    )
    # Rounding of float32.
    assert import_model.run(config)["greatest_difference"] < 5e-5


def test_a_folder_without_its_parts_raises(tmp_path):
    message = "there is no .*scheduler_config.json: pass --folder of a pipeline, or"
    with pytest.raises(FileNotFoundError, match=message):
        import_model.run(Config(tmp_path, out=tmp_path / "out", **SMALL))


def test_a_pipeline_with_two_denoising_networks_raises(latent, tmp_path):
    folder = shutil.copytree(latent, tmp_path / "pipeline")
    shutil.copytree(folder / "transformer", folder / "unet")
    with pytest.raises(ValueError, match="has both unet and transformer"):
        open_parts(Config(folder, **SMALL))


def test_grids_of_a_flow_reach_both_ends():
    """A flow starts at pure noise, where grids of finite log-SNR cannot be made."""
    flow = dj.schedules.rectified_flow(t_min=1e-6, t_max=1.0)
    grid = np.asarray(ranking.grid_of(flow, dj.solvers.ddim(), 8))
    assert len(grid) == 9 and grid[0] == 1 and grid[-1] == 0
    assert (np.diff(grid) < 0).all()


def test_a_pipeline_with_further_networks_raises_by_name(latent, tmp_path):
    folder = shutil.copytree(latent, tmp_path / "pipeline")
    (folder / "controlnet").mkdir()
    stated = json.dumps({"_class_name": "ControlNetModel"})
    (folder / "controlnet" / "config.json").write_text(stated)
    with pytest.raises(ValueError, match="'controlnet': 'ControlNetModel'"):
        open_parts(Config(folder, **SMALL))


def test_clipped_samples_stay_within_the_schedulers_range(tmp_path):
    """The last step of a sampler returns the denoised sample."""
    config = ROWS["unet_2d/ddpm"] | {"in_channels": 3, "out_channels": 3}
    pipeline(tmp_path, unet=config)
    settings = {"clip_sample": True, "clip_sample_range": 0.25}
    diffusers.save_scheduler(tmp_path / "scheduler", CHAIN, "noise", **settings)
    chosen = Config(tmp_path, **SMALL)
    with pytest.warns(UserWarning, match="clip_sample is true"):
        parts = open_parts(chosen)
    conditions = open_conditions(chosen, parts.model)
    denoiser = import_model.conditional(chosen, parts, conditions)
    drawn = import_model.draw(chosen, parts, denoiser, conditions)
    assert np.abs(drawn["samples"]).max() <= 0.25
