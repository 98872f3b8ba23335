"""The experiment on guidance at its smallest: its exact distributions, its files,
resuming, and its errors.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.guidance import __main__ as guidance
from experiments.guidance import classifiers
from experiments.guidance import exact as guidance_exact
from experiments.guidance.config import VARIANTS, Config
from experiments.shared import datasets

SMALL = Config(
    network="mlp",
    width=16,
    depth=0,
    steps=4,
    batch_size=16,
    save_every=2,
    weak_width=8,
    weak_depth=1,
    weak_steps=2,
    classifier_steps=3,
    scales=(0.0, 2.0),
    samples=12,
    sampling_steps=3,
    kinds=("classifier_free",),
    variants=(),
    exact=False,
    chunk=12,
)


def small(out, **changes):
    return dataclasses.replace(SMALL, out=out, **changes)


def test_guided_gaussians_have_the_closed_forms():
    """At γ = 2 flow, SDE and tilted density have variances 1/16, 7/64, 1/7,
    within 4.5 standard errors.

    The error of Heun's and of the weak second-order method is O(h²) for steps
    of h = 0.12 in log-SNR: under 2 %. The density by change of variables
    integrates to 1 and has the flow's variance, within 1e-3 and 1e-2, the
    error of the spline between 301 values.
    """
    forms = guidance_exact.closed_forms(2.0)
    np.testing.assert_allclose(
        [forms[k] for k in ("flow", "sde", "tilted")],
        [1 / 16, 7 / 64, 1 / 7],
        rtol=1e-5,
    )
    distributions = guidance_exact.simulate(
        jax.random.key(0), guidance_exact.gaussians(), 2.0, 4096
    )
    error = 4.5 * np.sqrt(2 / 4095) + 0.02
    assert abs(distributions.flow.var() / forms["flow"] - 1) < error
    assert abs(distributions.sde.var() / forms["sde"] - 1) < error
    points = guidance_exact.POINTS
    for density, variance in (
        (distributions.flow_density, forms["flow"]),
        (distributions.tilted, forms["tilted"]),
    ):
        mean = np.trapezoid(points * density, points)
        assert abs(np.trapezoid(density, points) - 1) < 1e-3
        assert (
            abs(np.trapezoid((points - mean) ** 2 * density, points) / variance - 1)
            < 1e-2
        )


@pytest.mark.slow
def test_the_exact_part_separates_the_distributions(tmp_path):
    """At γ = 1 both samplers draw the conditional distribution, which is the
    tilted one. Beyond, neither draws that.
    """
    results = guidance_exact.run(tmp_path, 0, guidance_exact.COMPARED)
    assert (tmp_path / "densities.png").stat().st_size > 0
    for rows in results.values():
        plain, *tilted = (row["distance_to_tilted"] for row in rows)
        assert max(plain["flow"], plain["sde"]) < 5 * plain["floor"]
        for row in tilted:
            assert min(row["flow"], row["sde"]) > 5 * row["floor"]


ALL = {"kinds": Config.kinds, "variants": VARIANTS}


@pytest.mark.parametrize(
    "changes", [{}, pytest.param(ALL, marks=pytest.mark.slow)], ids=["fewest", "all"]
)
def test_guidance_writes_what_it_promises(changes, tmp_path):
    """Figures appear, and a row of numbers for each kind and scale.

    At scale 0 a classifier changes nothing, as no guidance does. config.json
    has the flags of the run, not those of the last network.
    """
    config = small(tmp_path, **changes)
    result = guidance.run(config)
    files = {
        "config.json",
        "metrics.json",
        "losses.json",
        "loss.png",
        "accuracy.png",
        "samples.png",
    }
    assert {path.name for path in tmp_path.iterdir()} >= files | (
        {"variants.png"} if changes else set()
    )
    assert len(result["rows"]) == len(config.kinds) * len(config.scales) + len(
        config.variants
    )
    by = {
        (row["kind"], row["scale"]): row["frechet_distance"] for row in result["rows"]
    }
    for kind in config.kinds:
        assert by[kind, 0.0] == pytest.approx(by["classifier_free", 0.0], rel=1e-4)
        assert by[kind, 2.0] != pytest.approx(by["classifier_free", 0.0], rel=1e-4)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert (stored["steps"], stored["classifier_steps"]) == (
        config.steps,
        config.classifier_steps,
    )
    if changes:  # a finished run that is started again trains nothing
        again = guidance.run(config)["rows"]
        untimed = lambda rows: [row | {"seconds": None} for row in rows]
        assert untimed(again) == untimed(result["rows"])


def test_a_judge_recognises_real_digits():
    """Its share of test images recognised is its test accuracy, and another label
    than theirs is not seen in them.
    """
    data = datasets.open_dataset("digits", 447, 0)
    judge = classifiers.make_judge(
        (data.train, data.train_labels), (data.test, data.test_labels)
    )
    assert judge.recognised(data.test, data.test_labels).mean() == judge.accuracy > 0.97
    assert (
        judge.recognised(data.test, (data.test_labels + 1) % 10).mean()
        < 1 - judge.accuracy + 1e-12
    )


def test_bad_input_is_named(tmp_path):
    np.savez(
        tmp_path / "unlabelled.npz", x=np.random.default_rng(0).normal(size=(40, 5))
    )
    np.savez(
        tmp_path / "few.npz",
        x=np.random.default_rng(0).normal(size=(40, 5)),
        y=(np.arange(40) == 3).astype(int),
    )
    cases = [
        ("labels must be between 0 and 9, got 10", {"labels": (3, 10)}),
        (
            r"interval must lie in the schedule's .* got 1.5",
            {"interval": (0.1, 1.5)},
        ),
        (r"t_high must be greater than t_low=0.4, got 0.1", {"interval": (0.4, 0.1)}),
        ("scales must be 0 or more, got -1.0", {"scales": (1.0, -1.0)}),
        ("scales must hold at least one, got none", {"scales": ()}),
        ("kinds must hold at least one, got none", {"kinds": ()}),
        ("variant_scale must be 0 or more", {"variant_scale": -2.0}),
        ("drop must lie in", {"drop": 1.0}),
        ("samples must be at least 2, got 1", {"samples": 1}),
        ("exact_samples must be at least", {"exact_samples": 10}),
        (
            "data must hold several classes in the training set",
            {"data": str(tmp_path / "few.npz")},
        ),
        ("data must have labels", {"data": str(tmp_path / "unlabelled.npz")}),
    ]
    for match, changes in cases:
        with pytest.raises(ValueError, match=match):
            guidance.run(small(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
