"""Judges of guided samples, and their Fréchet distance from the test set."""

import time
from typing import Any, NamedTuple

import numpy as np

from diffjax import metrics
from experiments.guidance import classifiers
from experiments.guidance.config import Config
from experiments.guidance.networks import Networks
from experiments.guidance.samplers import CFG_PLUS_PLUS, draw, samplers
from experiments.shared import cli, datasets
from experiments.shared.training import DenoiserModel


class Judges(NamedTuple):
    """Two classifiers of samples.

    Attributes:
      train: Fitted to the training set, tested on the test set.
      held_out: The other way round.
    """

    train: classifiers.Judge
    held_out: classifiers.Judge


def make_judges(data: datasets.Dataset) -> Judges:
    """Two support vector machines. The second saw no example that a network was
    trained on.
    """
    train, test = (data.train, data.train_labels), (data.test, data.test_labels)
    return Judges(
        classifiers.make_judge(train, test), classifiers.make_judge(test, train)
    )


def measure(
    judges: Judges, data: datasets.Dataset, xs: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Measure samples: how many are recognised, and how far they are from the
    test set.

    Returns:
      Share recognised and its standard error, that by the other judge, Fréchet
        distance, range.
    """
    recognised = judges.train.recognised(xs, labels)
    # Smoothed: where all are recognised a standard error of 0 would be false.
    smoothed = (recognised.sum() + 1) / (len(xs) + 2)
    return {
        "accuracy": float(recognised.mean()),
        "accuracy_standard_error": float(np.sqrt(smoothed * (1 - smoothed) / len(xs))),
        "accuracy_by_held_out_judge": float(
            judges.held_out.recognised(xs, labels).mean()
        ),
        "frechet_distance": float(metrics.frechet_distance(xs, data.test)),
        "greatest_value": float(np.abs(xs).max()),
    }


def compare(
    config: Config, model: DenoiserModel, networks: Networks, judges: Judges
) -> tuple[list[dict], dict, np.ndarray]:
    """Draw and measure both guidances at every scale, and every variant at its
    scale.

    Returns:
      (rows, samples by (kind, scale), labels).
    """
    data, makers = model.data, samplers(config, model, networks)
    classes = config.labels or tuple(range(data.classes))
    labels = np.resize(np.array(classes), config.samples)
    asked = [(kind, scale) for kind in config.kinds for scale in config.scales]
    asked += [(kind, config.variant_scale) for kind in config.variants]
    rows, drawn = [], {}
    with cli.progress(len(asked), label="sampling", unit="set") as bar:
        for kind, scale in asked:
            bar.set_postfix_str(f"{kind} {scale:g}")
            began = time.perf_counter()
            xs = drawn[kind, scale] = draw(config, model, makers[kind](scale), labels)
            seconds = round(time.perf_counter() - began, 1)
            rows.append(
                {
                    "kind": kind,
                    "scale": scale,
                    **measure(judges, data, xs, labels),
                    "seconds": seconds,
                }
            )
            bar.update()
    return rows, drawn, labels


def references(
    config: Config, data: datasets.Dataset, judges: Judges
) -> dict[str, Any]:
    """Results for real examples: the judges' test accuracies, and the distance of
    training examples.
    """
    few = np.random.default_rng(config.seed).permutation(len(data.train))[
        : config.samples
    ]
    return {
        "judge_test_accuracy": judges.train.accuracy,
        "held_out_judge_test_accuracy": judges.held_out.accuracy,
        "frechet_distance_train": float(
            metrics.frechet_distance(data.train[few], data.test)
        ),
    }


def print_rows(rows: list[dict], real: dict[str, Any]) -> None:
    """Print the table of all kinds and scales."""
    print(
        f"\n{'guidance':20}{'scale':>6}{'recognised':>18}{'held-out judge':>16}"
        f"{'Fréchet':>9}{'max |x|':>9}"
    )
    for row in rows:
        scale = (
            f"λ={CFG_PLUS_PLUS:g}"
            if row["kind"] == "cfg_plus_plus"
            else f"{row['scale']:g}"
        )
        accuracy, error = (
            100 * row[name] for name in ("accuracy", "accuracy_standard_error")
        )
        accuracy = f"{accuracy:.1f} ± {error:.1f} %"
        print(
            f"{row['kind']:20}{scale:>6}{accuracy:>18}"
            f"{100 * row['accuracy_by_held_out_judge']:14.1f} %"
            f"{row['frechet_distance']:9.2f}{row['greatest_value']:9.2f}"
        )
    print(
        f"{'real examples':20}{'':6}{100 * real['judge_test_accuracy']:16.1f} %"
        f"{100 * real['held_out_judge_test_accuracy']:14.1f} "
        f"%{real['frechet_distance_train']:9.2f}"
    )
