"""The experiment on annealing at its smallest setting."""

import json

import pytest

from experiments.ncsn import __main__ as ncsn


@pytest.mark.slow
def test_annealing_brings_the_shares_right_and_the_excess_loss_is_the_score_error(
    tmp_path,
):
    config = ncsn.Config(
        out=tmp_path,
        samples=600,
        levels=8,
        corrections=30,
        level_counts=(2,),
        budgets=(100,),
        steps=30,
        batch_size=64,
        width=16,
    )
    ncsn.run(config)
    result = json.loads((tmp_path / "metrics.json").read_text())
    shares = result["heavy_mode"]
    # four standard errors of 0.02: the starts' share by symmetry, the weight, and an
    # annealed share apart from the former
    assert (
        abs(shares["plain"]["share"] - 0.5) < 0.08
        and abs(shares["exact"]["share"] - 0.8) < 0.08
    )
    assert (
        abs(result["levels"]["100"]["2"]["share"] - 0.5)
        < 0.08
        < shares["annealed"]["share"] - 0.5
    )
    # E of the loss less that of the exact score is the mean over levels of
    # ½σ²‖s_θ − s‖², twice σ²‖s_θ − s‖²/D halved; both are means over draws, the second
    # of at least as many
    loss, errors = result["loss"], [row["error"] for row in result["score_error"]]
    assert (
        abs(loss["excess"] - sum(errors) / len(errors))
        < 6 * loss["excess_standard_error"]
    )
    assert {path.name for path in tmp_path.iterdir()} >= {
        "samples.png",
        "annealing.png",
        "score_error.png",
        "config.json",
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"levels": 1}, "levels must be at least 2, got 1"),
        (
            {"sigma_min": 30.0},
            "sigma_max must be greater than sigma_min=30.0, got 20.0",
        ),
        ({"samples": 8}, "samples must be at least 100, got 8"),
        ({"plain_step": 5.0}, "plain_step must lie between 0 and 4, .* got 5.0"),
        ({"budgets": ()}, r"budgets must be integers of at least 1, got \(\)"),
    ],
)
def test_bad_flags_are_named(flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ncsn.run(ncsn.Config(out=tmp_path, **flags))
    assert not list(tmp_path.iterdir())
