"""The experiment on inverse problems at its smallest: the meaning of its numbers,
its files, and its errors.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import inverse
from experiments.inverse_problems import __main__ as inverse_problems
from experiments.inverse_problems import exact as inverse_exact
from experiments.inverse_problems.__main__ import Config
from experiments.score_sde import model as score_sde
from experiments.shared import datasets, files, training

SMALL = Config(
    tasks=("inpainting",),
    methods=("replacement",),
    images=3,
    draws=2,
    steps=2,
    repeats=2,
    exact=False,
    exact_samples=64,
    exact_steps=4,
    chunk=6,
)


def small_model(folder):
    """A tiny network as `score_sde` leaves one, trained for two steps by its
    loss's gradient, which is 0.
    """
    config = score_sde.Config(
        out=folder, network="mlp", width=8, depth=0, steps=2, batch_size=8, save_every=1
    )
    model = score_sde.make_model(
        config, datasets.open_dataset(config.data, config.held_out, config.seed)
    )
    about = {score_sde.DESCRIPTION: datasets.describe(model.data)}
    flat = lambda params, key, batch: jnp.zeros(())
    training.fit(
        config,
        files.open_folder(config),
        flat,
        model.init,
        arrays=model.data.train,
        about=about,
    )


@pytest.mark.parametrize(
    "methods",
    [
        SMALL.methods,
        pytest.param(tuple(inverse_problems.METHODS), marks=pytest.mark.slow),
    ],
)
def test_images_are_reconstructed_into_what_it_promises(methods, tmp_path):
    """A figure and a row of numbers appear for each method. Replacement and
    RePaint end in y.

    The truth's residual is χ. Its mean square has the standard error √(2/96)
    over 3 images of 32 measured pixels.
    """
    small_model(tmp_path / "model")
    config = dataclasses.replace(
        SMALL, out=tmp_path / "out", model=tmp_path / "model", methods=methods
    )
    inverse_problems.run(config)
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["images"][
        "inpainting"
    ]
    assert set(rows) == {
        *(inverse_problems.METHODS[m] for m in methods),
        "training images alone",
        "truth",
    }
    assert (
        max(
            rows[name]["residual"]
            for name in rows
            if name in ("replacement", "RePaint")
        )
        < 1e-4
    )
    assert abs(rows["truth"]["residual"] ** 2 - 1) < 4.5 * np.sqrt(2 / 96)
    assert (tmp_path / "out" / "inpainting.png").stat().st_size > 0
    losses = tmp_path / "model" / "losses.json"
    losses.write_text(json.dumps({"loss": [1.0]}))
    with pytest.raises(ValueError, match="model must be a finished run"):
        inverse_problems.open_model(tmp_path / "model")


def test_draws_of_the_truths_own_distribution_are_calibrated():
    """Truth and draws are N(0, s²) in the hidden pixels.

    The error is √2 s, the spread s, the error of the mean s √(1 + 1/n), and
    the residual of y = A x + τ n is 1. All hold within 4.5 standard errors of
    a root mean square over 200 images of 8 hidden pixels, 1/√(2 · 1600).
    """
    rng, spread, tau = np.random.default_rng(0), 0.7, 0.3
    mask = np.arange(16).reshape(4, 4, 1) < 8
    operator = inverse.inpainting(mask)
    images = rng.normal(0, spread, (200, 4, 4, 1))
    xs = np.where(mask, images[:, None], rng.normal(0, spread, (200, 5, 4, 4, 1)))
    ys = images.reshape(200, 16)[:, :8] + tau * rng.normal(size=(200, 8))
    measured = inverse_problems.measure(operator, tau, images, ys, xs)
    expected = {
        "error": 2**0.5 * spread,
        "spread": spread,
        "mean_error": 1.2**0.5 * spread,
        "residual": 1.0,
    }
    for name, value in (expected | {"calibration": 1.0}).items():
        assert abs(measured[name] / value - 1) < 4.5 / np.sqrt(2 * 1600), name


def test_the_training_images_posterior_knows_them():
    """A measured training image, at little noise, is drawn itself."""
    data = datasets.open_dataset("digits", 447, 0)
    operator = inverse_problems.make_operator("downsampling", data.shape)
    images = data.train[:5]
    ys = np.asarray(jax.vmap(operator.forward)(images))
    config = dataclasses.replace(SMALL, noise_std=1e-3)
    drawn = inverse_problems.from_training_images(
        config, operator, data, ys, np.random.default_rng(0)
    )
    np.testing.assert_array_equal(drawn, np.repeat(images[:, None], config.draws, 1))


@pytest.mark.slow
def test_exact_posteriors_are_reached_by_their_own_denoiser(tmp_path):
    """Its samples are as far from exact ones as exact sets are, of mean 2 E‖X −
    X′‖/n. Five times that is rare.

    DPS and replacement are further off on the Gaussian.
    """
    count = 512
    results = inverse_exact.run(tmp_path, 0, count, 48)
    assert (tmp_path / "posteriors.png").stat().st_size > 0
    for name, rows in results.items():
        pairs = np.asarray(
            inverse_exact.exact_samples(
                jax.random.key(1), inverse_exact.PROBLEMS[name](), 2 * count
            )
        ).reshape(2, count, 2)
        floor = 2 * np.linalg.norm(pairs[0] - pairs[1], axis=-1).mean() / count
        assert rows["exact posterior's denoiser"]["energy_distance"] < 5 * floor
        assert rows["DPS"]["energy_distance"] > 10 * floor
    assert (
        results["Gaussian"]["replacement"]["energy_distance"]
        > 10 * results["Gaussian"]["ΠGDM"]["energy_distance"]
    )


def test_bad_input_is_named(tmp_path):
    cases = [
        ("noise_std must be positive, got 0.0", {"noise_std": 0.0}),
        ("images must be at least 1, got 0", {"images": 0}),
        ("draws must be at least 2, got 1", {"draws": 1}),
        ("repeats must be at least 1, got 0", {"repeats": 0}),
        ("step_size must be 0 or more, got -1.0", {"step_size": -1.0}),
        ("exact_samples must be at least 32, got 8", {"exact_samples": 8}),
    ]
    for match, changes in cases:
        with pytest.raises(ValueError, match=match):
            inverse_problems.run(
                dataclasses.replace(SMALL, out=tmp_path / "out", **changes)
            )
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="multiples of factor=2"):
        inverse_problems.make_operator("downsampling", (7, 8, 1))
