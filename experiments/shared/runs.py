"""Opening the folder of any experiment that trained a denoiser."""

import importlib
import importlib.util
import pathlib
from typing import Any, NamedTuple, Protocol

import flax.errors
import jax
import jax.numpy as jnp

from experiments.shared import files
from experiments.shared.datasets import Dataset


class TrainedModel(Protocol):
    """The data and the schedule that a denoiser was trained with."""

    @property
    def data(self) -> Dataset:
        """The data set, with its training and test examples."""
        ...

    @property
    def schedule(self) -> Any:
        """The noise schedule."""
        ...


class Loader(Protocol):
    """`load` in the module experiments.NAME.model of an experiment."""

    def __call__(
        self, folder: pathlib.Path, *, examples: bool
    ) -> tuple[TrainedModel, Any]:
        """Load a run.

        Args:
          folder: `out` of the run.
          examples: Whether the data set holds its examples.

        Returns:
          (model, denoiser (x, t) of one example, a callable pytree).
        """
        ...


class Run(NamedTuple):
    """A run that was opened.

    Attributes:
      experiment: Name of the experiment.
      model: Its data set and noise schedule.
      denoiser: (x, t) -> E[x_0 | x_t = x] with the averaged parameters.
    """

    experiment: str
    model: TrainedModel
    denoiser: Any


def open_run(folder: pathlib.Path) -> Run:
    """Open a run with its examples.

    An experiment takes part with `experiments/NAME/model.py`, whose `load` is a
    `Loader`, and with its NAME under "experiment" in config.json.

    Args:
      folder: `out` of the run.

    Returns:
      The run.

    Raises:
      FileNotFoundError: If the folder holds no run, or its data are gone.
      ValueError: If config.json is damaged, names no such experiment, or states
        another network than the checkpoints hold.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no run in {folder}: train one first, with --out {folder}"
        )
    stored = files.read_json(
        folder / "config.json", "run the experiment again with the same flags"
    )
    name = stored.get(files.EXPERIMENT, "score_sde")  # of an older version
    module = f"experiments.{name}.model"
    known = str(name).isidentifier() and importlib.util.find_spec(f"experiments.{name}")
    loader = importlib.import_module(module) if known and _exists(module) else None
    if not hasattr(loader, "load"):
        raise ValueError(
            f"{folder}/config.json must name an experiment whose model can be loaded, "
            f"got {name!r}"
        )
    cure = "run the experiment again with the flags that it was trained with"
    try:
        model, denoiser = loader.load(folder, examples=True)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}/config.json is damaged ({error!r}): {cure}"
        ) from error
    try:
        x = jax.ShapeDtypeStruct(model.data.shape, jnp.float32)
        jax.eval_shape(denoiser, x, model.schedule.t_max)
    except flax.errors.FlaxError as error:
        reason = str(error).partition(" (https")[0]
        raise ValueError(
            f"{folder} holds the parameters of another network than its config.json "
            f"states ({reason}): {cure}"
        ) from error
    return Run(name, model, denoiser)


def _exists(module):
    return importlib.util.find_spec(module) is not None
