"""Which distribution does guidance sample, exactly and on digits as an
independent classifier reads them?

    python -m experiments.guidance [--scales 0 1 2 4 8] [--out DIR] [--seed N]
    python -m experiments.guidance --data images.npz      (arrays x, integer labels y)

Exact part (`densities.png`): the guided flow and SDE of two Gaussians and of a
two-class mixture beside the tilted density p(y|x)^γ p(x), whose guided score
they follow. For γ > 1 neither samples it.

Data part: trains a class-conditional denoiser whose condition is dropped at
random, a weaker one of the same kind and a classifier of noisy inputs. Draws
every class by classifier-free and by classifier guidance at several scales,
and by the other kinds of guidance at one.

A support vector machine fitted to clean examples says how often a sample is
recognised as its class (accuracy.png, samples.png, variants.png). Beside that
stands the Fréchet distance to the test set, where "train" is that of as many
training examples. A run on the same OUT resumes.

Units: `mean`, `distance_to_tilted`, `distance_to_conditional` and
`greatest_value` are in data units, `variance`, `closed_form_variance` and
`frechet_distance` in squared data units. Those of digits are of pixels from −1
to 1. Names with `seconds` are in seconds. `accuracy` is a share and `scale` a
factor, without unit.

Hardware and time: about 4 minutes on 2 CPU cores, 90 seconds of them training
the denoiser.

Expect variances of the guided Gaussian at γ = 2 near 1/16 (flow) and 7/64
(SDE) where the tilted density has 1/7. On digits at least 97 % of the
classifier-free samples of scale 2 are recognised, about 95 % at scale 1. The
Fréchet distance is least there, 1.1. At scale 4 it is 4.8, which CFG++ and a
limited interval reduce to 2 and 3.

The classifier of noisy inputs is not exact, and needs scale 4 for 99 %.
"""

import time
from typing import Any

import numpy as np

import diffjax as dj
from diffjax import guidance
from experiments.guidance import exact as guidance_exact
from experiments.guidance import figures as guidance_figures
from experiments.guidance.comparison import compare, make_judges, print_rows, references
from experiments.guidance.config import Config
from experiments.guidance.networks import make_model, train
from experiments.shared import cli, datasets, files, training
from experiments.shared.training import DenoiserModel


def check(config: Config) -> None:
    """Raise ValueError for flags that are not usable."""
    training.check(config)
    for name in (
        "classifier_steps",
        "weak_width",
        "weak_depth",
        "weak_steps",
        "sampling_steps",
        "chunk",
    ):
        dj.checks.integer(name, getattr(config, name), 1)
    dj.checks.integer("samples", config.samples, 2)
    dj.checks.integer("exact_samples", config.exact_samples, guidance_exact.COMPARED)
    dj.checks.within("drop", config.drop, 0.01, 0.99)
    for name in ("scales", "kinds"):
        if not getattr(config, name):
            raise ValueError(f"{name} must hold at least one, got none")
    for scale in config.scales:
        dj.checks.non_negative("scales", scale)
    dj.checks.non_negative("variant_scale", config.variant_scale)


def check_against(config: Config, model: DenoiserModel) -> None:
    """Raise ValueError for flags that do not fit the data or the schedule.

    These are labels that are no classes of the data, sets of one class, and an
    interval outside of the schedule.
    """
    for label in config.labels:
        dj.checks.integer("labels", label, 0, model.data.classes - 1)
    for part, count in (
        ("training", model.data.train_labels),
        ("test", model.data.test_labels),
    ):
        if len(np.unique(count)) < 2:
            raise ValueError(
                f"data must hold several classes in the {part} set, by which samples "
                f"are judged, {model.data.name} has "
                f"{len(np.unique(count))} among {len(count)} examples there; change "
                "held_out or seed"
            )
    guidance.limited(model.schedule, lambda x, t: x, lambda x, t: x, config.interval)


def run(config: Config) -> dict[str, Any]:
    """Run both parts.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    began = time.perf_counter()
    check(config)
    data = datasets.open_dataset(
        config.data, config.held_out, config.seed, least_test=2
    )
    model = make_model(config, data)
    check_against(config, model)
    out = files.open_folder(config)
    print(f"{data.sizes} of {data.classes} classes")
    results: dict[str, Any] = {}
    if config.exact:
        results["exact"] = guidance_exact.run(out, config.seed, config.exact_samples)
    started = time.perf_counter()
    networks, history = train(config, model, out)
    trained = time.perf_counter()
    judges = make_judges(data)
    rows, drawn, labels = compare(config, model, networks, judges)
    real = references(config, data, judges)
    training.draw_loss(
        history, "loss, edm weighting", f"Training, {config.data}", out / "loss.png"
    )
    guidance_figures.draw(data, rows, drawn, labels, real, out)
    results |= {"rows": rows, **real}
    results |= {
        "seconds_exact": round(started - began, 1),
        "seconds_training": round(trained - started, 1),
        "seconds_total": round(time.perf_counter() - began, 1),
    }
    files.write_results(out, results)
    print_rows(rows, real)
    return results


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
