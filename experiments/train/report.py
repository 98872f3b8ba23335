"""The end of a run: samples, their distances, bits/dim, and figures."""

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.shared import cli, measures, scoring
from experiments.shared.figures import image_grid, save_figure
from experiments.train.config import Config
from experiments.train.evaluation import (
    Evaluation,
    evaluations_per_sample,
    held_out_reference,
)
from experiments.train.model import Model
from experiments.train.records import Records

GROUPS = 10
"""Groups of images, of which errors of distances are estimated."""

PAIRS = 2000
"""Most images of a set of which all pairs are visited."""


def sampled(
    config: Config, evaluation: Evaluation, params: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Draw the samples.

    Args:
      config: The flags, with the number of samples.
      evaluation: Has the compiled sampler.
      params: Averaged parameters.

    Returns:
      ((N, *shape), numbers by name).
    """
    count, cost = config.samples or 0, evaluations_per_sample(config)
    label = f"{count} samples by {config.solver}, {cost} evaluations"
    return evaluation.samples(params, count, label), {
        "samples": count,
        "evaluations_per_sample": cost,
    }


def distances(config: Config, model: Model, drawn: np.ndarray) -> dict[str, Any]:
    """Distances of samples to held-out examples, and of training ones as reference.

    Both sets have as many examples. Those of training examples are what a
    perfect sampler would get, or more where the split is not at random.

    Args:
      config: Has the seed.
      model: The model.
      drawn: The samples.

    Returns:
      Numbers by "samples" and "training images". None of them where there are
        too few examples.
    """
    data, count = model.data, len(drawn)
    count = min(count, len(data.stored_train))
    if min(count, len(data.stored_test)) < 2 * GROUPS:
        print(
            f"no distances: they need {2 * GROUPS} samples and held-out images, there "
            f"are {len(drawn)} and {len(data.stored_test)} (--samples, --held-out)"
        )
        return {}
    reference = held_out_reference(data, config.seed)
    order = np.random.default_rng(config.seed).permutation(len(data.stored_train))
    real = data.scaled(np.asarray(data.stored_train[np.sort(order[:count])]))
    sets = {"samples": drawn[:count], "training images": np.asarray(real)}
    return {
        name: measures.distances(
            x.reshape(count, -1), reference, groups=GROUPS, pairs=PAIRS, k=5
        )[0]
        for name, x in sets.items()
    }


def scored(config: Config, model: Model, params: Any) -> dict[str, Any]:
    """The score of held-out examples, see `scoring.score`.

    Args:
      config: The flags, with the sizes that follow from the data.
      model: The model.
      params: Averaged parameters.

    Returns:
      Numbers by name.
    """
    return scoring.score(
        jax.random.key(config.seed + 3),
        model.data,
        model.schedule,
        model.sampled(params),
        steps=config.likelihood_steps,
        probes=config.probes,
        chunk=config.chunk or 1,
        examples=config.likelihood_examples,
        error=config.likelihood_error,
        bound_times=0 if model.data.levels is None else config.bound_times,
    )


# --------------------------------------------------------------------- figures


def draw_samples(config: Config, model: Model, drawn: np.ndarray, out: Any) -> None:
    """Draw samples beside held-out images.

    Args:
      config: Names the run.
      model: Has the data.
      drawn: The samples.
      out: The folder.
    """
    if not model.data.is_image:
        return
    shown = min(64, len(drawn))
    order = np.random.default_rng(config.seed).permutation(len(model.data.stored_test))
    real = model.data.scaled(np.asarray(model.data.stored_test[order[:shown]]))
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.4))
    guided = "" if config.guidance == 1 else f", guidance {config.guidance:g}"
    title = f"samples, {config.solver}, {config.solver_steps} steps{guided}"
    panels = (("test images", np.asarray(real)), (title, drawn[:shown]))
    for axis, (title, images) in zip(axes, panels, strict=True):
        image_grid(axis, images, None, model.data.limits)
        axis.set_title(title)
    save_figure(figure, out / "samples.png")


def draw_curves(config: Config, records: Records, out: Any) -> None:
    """Draw the loss of training and of held-out images.

    Args:
      config: Names the run.
      records: Its records.
      out: The folder.
    """
    name = "error" if config.uncertainty else "loss"
    lines = [line for line in records.lines if name in line]
    evaluations = [line for line in records.lines if "held_out_loss" in line]
    figure, axis = plt.subplots(figsize=(6, 3.6))
    # Means over the steps of a line, drawn at their middle.
    middle = [line["step"] - (line["steps"] - 1) / 2 for line in lines]
    axis.plot(
        middle,
        [line[name] for line in lines],
        color="#1f4e79",
        lw=1,
        marker="." if len(lines) < 30 else None,
        label="training, mean since the last point",
    )
    if evaluations:
        axis.plot(
            [line["step"] for line in evaluations],
            [line["held_out_loss"] for line in evaluations],
            color="#c05020",
            marker="o",
            ms=3,
            label="held out, averaged parameters",
        )
    axis.set(
        xlabel="training step",
        ylabel=f"loss, {config.weighting} weighting",
        title=f"Training of {config.network} on {config.data}",
    )
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.legend(frameon=False)
    save_figure(figure, out / "loss.png")


def finish(
    config: Config, model: Model, params: Any, evaluation: Evaluation, clock: cli.Clock
) -> dict[str, Any]:
    """Sample, measure and score the trained network, and draw its samples.

    Args:
      config: The flags, with the sizes that follow from the data.
      model: The model.
      params: Averaged parameters.
      evaluation: Has the compiled sampler and the folder.
      clock: Records the time of each part.

    Returns:
      Numbers by name.
    """
    results: dict[str, Any] = {}
    if config.samples:
        drawn, results = sampled(config, evaluation, params)
        clock.lap("samples")
        results["distances"] = distances(config, model, drawn)
        draw_samples(config, model, drawn, evaluation.out)
        clock.lap("distances")
    if config.likelihood_examples:
        results |= scored(config, model, params)
        clock.lap("score")
    return results
