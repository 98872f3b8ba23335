"""The model that `train` trains: network, conditions and denoisers, and loading it
from a folder.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

import diffjax as dj
from diffjax import guidance
from experiments.shared import datasets, files, schedules, scoring, sizes
from experiments.shared.datasets import Dataset
from experiments.shared.training import DenoiserModel
from experiments.train import augmentation, networks
from experiments.train.config import Config
from experiments.train.data import RANDOM, open_data

CONTINUOUS_FLOOR = 0.002
"""Least σ/α for data that are no lattice, EDM's σ_min."""


@dataclasses.dataclass(frozen=True)
class Model(DenoiserModel):
    """A network, conditioned on a class, the label of an augmentation, or both.

    Attributes:
      classes: Number of classes, None for a network without.
      condition_dim: Entries of the augmentation's label, None for none.
    """

    classes: int | None = None
    condition_dim: int | None = None

    def condition(self, label: Any = None, changes: Any = None) -> Any:
        """The condition of one example, in the form that the network takes.

        Args:
          label: The class, (). None for no class.
          changes: The augmentation's label. None for an unchanged image.

        Returns:
          An array, a pair of them, or None.
        """
        parts = []
        if self.classes is not None:
            parts.append(jnp.asarray(self.classes if label is None else label, int))
        if self.condition_dim is not None:
            none = jnp.zeros(self.condition_dim)
            parts.append(none if changes is None else changes)
        return parts[0] if len(parts) == 1 else tuple(parts) or None

    def sampled(self, params: Any, label: Any = None, scale: float = 1.0) -> Any:
        """The denoiser (x, t) that is sampled and scored.

        Args:
          params: The network's parameters.
          label: The class, (). None for no class.
          scale: Of classifier-free guidance. 1 for none.

        Returns:
          A callable pytree.
        """
        denoiser, condition = self.denoiser(params), self.condition(label)
        if condition is None:
            return denoiser
        if label is None:
            scale = 1.0
        return guidance.classifier_free_batched(
            denoiser, condition, self.condition(), scale
        )


def make_model(config: Config, data: Dataset, classes: int | None = None) -> Model:
    """Make the model that the flags select.

    Args:
      config: The flags.
      data: The data set.
      classes: Number of classes of a network with labels. Default: the data's.

    Returns:
      The model.

    Raises:
      ValueError: If the flags exclude each other or do not fit the data.
    """
    augmentation.check(config, data)
    prediction = sizes.prediction(config.prediction, data)
    floor = scoring.noise_floor(config.noise_floor, data, CONTINUOUS_FLOOR)
    if not config.labels:
        classes = None
    elif classes is None:
        classes = data.classes
    dim = augmentation.condition_dim(config)
    return Model(
        data,
        schedules.with_noise_floor(config.schedule, floor),
        networks.make(config, data, classes, dim),
        prediction,
        classes,
        dim,
    )


# --------------------------------------------------------------------- loading


DESCRIPTION = "data_description"
"""The entry of config.json that holds `datasets.describe` of the data."""

AVERAGES = "averages"
"""The folder of the snapshots of power-function averages."""

TAKEN = "taken"
"""The entry of config.json that holds the values which the run chose by itself."""


def about(config: Config, model: Model) -> dict[str, Any]:
    """The entries of config.json beside the flags."""
    return {
        "experiment": "train",
        DESCRIPTION: datasets.describe(model.data),
        TAKEN: {"prediction": model.prediction, "classes": model.classes},
    }


def load(folder: pathlib.Path, *, examples: bool = False) -> tuple[Model, Any]:
    """Load the model and the denoiser that a run trained into a folder.

    Args:
      folder: `out` of the run.
      examples: Whether to open the run's data too, for training and held-out
        images.

    Returns:
      (model, denoiser (x, t) without a class, of the averaged parameters that
        the run samples).

    Raises:
      FileNotFoundError: If there is no such run, or its data are gone and
        `examples` is true.
      ValueError: If config.json is damaged, or, with `examples`, the file now
        holds other data.
    """
    cure = "run again with the flags that it was trained with"
    stored = files.read_json(folder / "config.json", cure, DESCRIPTION, TAKEN, "final")
    config = stored_config(stored)
    description = stored[DESCRIPTION]
    data = datasets.described(description)
    if examples:
        data = _reopened(config, description)
    model = make_model(config, data, stored[TAKEN]["classes"])
    return model, model.sampled(load_params(folder, config))


def stored_config(stored: dict[str, Any]) -> Config:
    """The flags of config.json, with what the run chose by itself."""
    known = {field.name for field in dataclasses.fields(Config)} - {"out"}
    # JSON has lists for tuples.
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored.items()
        if name in known
    }
    return Config(**values | {"prediction": stored[TAKEN]["prediction"]})


def load_params(folder: pathlib.Path, config: Config) -> Any:
    """The averaged parameters that a run samples and scores, from its folder.

    Args:
      folder: `out` of the run.
      config: The flags.

    Returns:
      The parameters of the network.

    Raises:
      FileNotFoundError: If they were removed.
    """
    try:
        if config.average is not None:
            params = dj.training.reconstruct(folder / AVERAGES, config.average)
        else:
            checkpoints = "best" if config.final == "best" else "checkpoints"
            params = dj.training.load_ema(folder / checkpoints)
    except FileNotFoundError as error:
        flags = "--final last --average None"
        raise FileNotFoundError(f"{error}: train again with {flags}") from None
    return jax.tree.map(jnp.asarray, params["network"])


def _reopened(config, description):
    if config.data == RANDOM:
        return open_data(config)
    return datasets.reopen_dataset(
        description, config.held_out, config.seed, validation=config.validation
    )
