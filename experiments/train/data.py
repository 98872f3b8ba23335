"""The data of `experiments.train`: opened, or drawn at random to measure speed."""

from typing import Any

import numpy as np

from experiments.shared import datasets
from experiments.shared.datasets import Dataset, Scaling
from experiments.train.config import Config

RANDOM = "random"
"""The name of data that hold nothing but noise."""

RANDOM_EXAMPLES = 2048
"""Training examples of random data. More would not change the speed."""


def open_data(config: Config) -> Dataset:
    """Open the data that the flags name.

    Args:
      config: The flags.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: If there is no such file or folder.
      ValueError: If the data are not usable.
    """
    if config.data == RANDOM:
        if config.validation:
            raise ValueError(
                f"validation must be 0 for random data, got {config.validation}"
            )
        return random_data(config)
    try:
        return datasets.open_dataset(
            config.data,
            config.held_out,
            config.seed,
            least_test=2,
            size=config.size,
            validation=config.validation,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; name yours by --data, or measure speed with --data {RANDOM}"
        ) from None


def random_data(config: Config) -> Dataset:
    """Noise in the form of data: bytes of images, or numbers of other channels.

    Args:
      config: Has its shape, the number of classes and the seed.

    Returns:
      The data set.
    """
    rng, shape = np.random.default_rng(config.seed), config.random_shape
    counts = RANDOM_EXAMPLES, min(config.held_out, RANDOM_EXAMPLES // 4)
    labels = [
        rng.integers(0, config.random_classes, count).astype(np.int32)
        for count in counts
    ]
    # So that both parts know all classes, however few examples they have.
    for part in labels:
        part[0] = config.random_classes - 1
    if shape[-1] in (1, 3):
        parts = [
            rng.integers(0, 256, (count, *shape)).astype(np.uint8) for count in counts
        ]
        levels = ((np.arange(256) - 127.5) / 127.5).astype(np.float32)
        scaling = Scaling(np.asarray(np.uint8(0)), 127.5, 127.5, True)
    else:
        parts = [rng.normal(size=(n, *shape)).astype(np.float32) for n in counts]
        levels, scaling = None, None
    scale = 1.0 if scaling is None else scaling.scale
    shift = 0.0 if scaling is None else scaling.shift
    return Dataset(RANDOM, *parts, levels, shift, scale, None, *labels, scaling=scaling)


def training_arrays(config: Config, data: Dataset) -> dict[str, Any]:
    """The arrays of which a training batch is made: images, and labels if wanted."""
    arrays = {"x": data.stored_train}
    if config.labels:
        arrays["label"] = data.train_labels
    return arrays
