"""Measures of a model in training: held-out loss, samples, and their distance."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

import diffjax as dj
from diffjax import losses, metrics
from experiments.shared import devices, files, measures, sampling, solvers
from experiments.shared.datasets import Dataset
from experiments.shared.mapping import map_examples
from experiments.train import objective
from experiments.train.config import Config
from experiments.train.model import Model


def sampler(config: Config, model: Model) -> Callable:
    """The function that draws one sample.

    Args:
      config: Has solver, steps and scale of guidance.
      model: The model.

    Returns:
      ((params, key), index, label) -> a sample. The label is not used without
        classes.
    """
    one = sampling.by_name(
        model.schedule, config.solver, config.solver_steps, model.data.shape
    )

    def draw(state, index, label):
        params, key = state
        label = None if model.classes is None else label
        return one((model.sampled(params, label, config.guidance), key), index)

    return draw


def evaluations_per_sample(config: Config) -> int | None:
    """Evaluations of the denoiser for a sample, None where they vary."""
    return solvers.make(config.solver).evaluations(config.solver_steps + 1, True)


def sample_labels(model: Model, count: int) -> np.ndarray:
    """Labels of samples (count,): all classes alike."""
    return np.arange(count, dtype=np.int32) % (model.classes or 1)


def held_out_loss(config: Config, model: Model) -> Callable:
    """The loss of one held-out image at a fixed time with fixed noise.

    Args:
      config: Has the weight and the distribution of times.
      model: The model.

    Returns:
      (params, stored image, label, index, share) -> the loss. The time is the
        quantile of the share, and the noise depends on the index alone.
    """
    distribution, weighting = objective.times_of(config), objective.weighting_of(config)
    key = jax.random.key(config.seed + 2)

    def loss(params, stored, label, index, share):
        x, schedule = model.data.scaled(stored), model.schedule
        t = distribution.quantile(schedule, share)
        condition = model.condition(None if model.classes is None else label)
        return losses.denoising_loss(
            model.denoiser(params),
            x,
            jax.random.normal(jax.random.fold_in(key, index), x.shape),
            t,
            *(() if condition is None else (condition,)),
            weighting=weighting,
            density=distribution.density(schedule, t),
        )

    return loss


class Evaluation:
    """Measures averaged parameters during training.

    Args:
      config: The flags.
      model: The model.
      out: The folder, in which `samples/STEP.png` are written.
    """

    def __init__(self, config: Config, model: Model, out: pathlib.Path):
        self.config, self.model, self.out = config, model, out
        self._loss = held_out_loss(config, model)
        self._sample = sampler(config, model)
        self._settings: dict[str, Any] = {"chunk": config.chunk or 1, "unit": "image"}

    def __call__(self, params: Any, step: int) -> dict[str, float]:
        """Measure parameters, and draw the grid of samples.

        Args:
          params: Averaged parameters of the network.
          step: The number of steps taken.

        Returns:
          Numbers by name, among them `held_out_loss`.

        Raises:
          FloatingPointError: If a loss or a sample is not finite.
        """
        config, data = self.config, self.model.data
        # Fixed, so that the change of two numbers is that of the parameters.
        order = np.random.default_rng(config.seed).permutation(len(data.stored_test))
        rows = order[: config.evaluate_examples]
        shares = (np.arange(len(rows)) + 0.5) / len(rows)
        labels = np.zeros(len(rows), np.int32)
        if self.model.classes is not None:
            labels = np.asarray(data.test_labels)[rows]
        examples = data.stored_test[rows], labels, rows, _floats(shares)
        values = map_examples(self._loss, params, examples, **self._settings)
        bad = int(np.sum(~np.isfinite(values)))
        if bad:
            raise FloatingPointError(
                f"{bad} of {len(values)} held-out losses are not finite after step "
                f"{step}: lower --learning-rate, or take --dtype float32"
            )
        results = {"held_out_loss": float(values.mean(dtype=np.float64))}
        count = max(config.evaluate_samples, config.evaluate_frechet)
        if count:
            drawn = self.samples(params, count)
            write_mosaic(
                self.out / "samples" / f"{step:08d}.png",
                drawn[: config.evaluate_samples],
                data.limits,
            )
            if config.evaluate_frechet:
                results["frechet"] = self._frechet(drawn[: config.evaluate_frechet])
        return results

    def samples(self, params: Any, count: int, label: str | None = None) -> np.ndarray:
        """Samples 0, …, count − 1 of the run, rounded to the levels of a lattice.

        Args:
          params: Averaged parameters of the network.
          count: Number of samples.
          label: Text before a progress bar. None for no bar.

        Returns:
          (count, *shape).

        Raises:
          FloatingPointError: If a sample is not finite.
        """
        return sampling.draw(
            self._sample,
            (params, jax.random.key(self.config.seed + 1)),
            (np.arange(count), sample_labels(self.model, count)),
            self.model.data,
            label=label,
            **self._settings,
        )

    def _frechet(self, drawn):
        reference = self._reference
        return metrics.frechet_of_moments(
            metrics.moments(reference.project(_flat(drawn))), reference.moments
        )

    @functools.cached_property
    def _reference(self):
        return held_out_reference(self.model.data, self.config.seed)


def held_out_reference(data: Dataset, seed: int) -> measures.Reference:
    """The held-out examples as what sets of samples are compared with."""
    order = np.random.default_rng(seed).permutation(len(data.test))
    pixels = _flat(data.test)[order]
    return measures.reference_of(pixels, measures.PIXEL_COMPONENTS, seed)


def _flat(x):
    return np.asarray(x).reshape(len(x), -1)


def _floats(x):
    return x.astype(dj.numerics.float_dtype())


def write_mosaic(
    path: pathlib.Path, images: np.ndarray, ends: tuple[float, float]
) -> None:
    """Write images as one PNG, pixel by pixel.

    Args:
      path: The file.
      images: (N, H, W, C). Of other channels than 1 or 3 the first 3 are drawn,
        or the first. Examples of another shape are not drawn.
      ends: The values that are drawn black and white.
    """
    if images.ndim != 4 or not len(images) or not devices.is_first():
        return
    count, height, width, channels = images.shape
    images = images[..., :3] if channels >= 3 else images[..., :1]
    columns = int(np.ceil(count**0.5))
    rows = -(-count // columns)
    zoom = max(1, 64 // height)
    bytes_ = np.clip((images - ends[0]) / (ends[1] - ends[0]), 0, 1) * 255
    canvas = np.full(
        (rows * (height + 1) - 1, columns * (width + 1) - 1, images.shape[-1]), 128
    )
    for i, image in enumerate(np.rint(bytes_)):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    canvas = canvas.astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
    path.parent.mkdir(exist_ok=True)
    with files.naming(path):
        Image.fromarray(canvas[..., 0] if canvas.shape[-1] == 1 else canvas).save(path)
