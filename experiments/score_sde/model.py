"""The model that `score_sde` trains: its flags, its training, and loading it from
a folder.
"""

import dataclasses
import pathlib
from typing import Any, Literal

import jax
import numpy as np

import diffjax as dj
from diffjax import losses
from experiments.shared import datasets, files, schedules, scoring, sizes, training
from experiments.shared.training import DenoiserModel

CONTINUOUS_FLOOR = 0.01
"""Least σ/α for data that lie on no lattice."""


@dataclasses.dataclass(frozen=True)
class Config(training.Training):
    """Train, sample and score a diffusion."""

    steps: int = 1750
    """Training steps."""
    out: pathlib.Path = pathlib.Path("runs/score_sde")
    """Folder for config.json, metrics.json, figures and checkpoints. A run on the
    same folder resumes.
    """
    data: str = "digits"
    """"digits", eight_gaussians, checkerboard, circles, moons, or the path of an
    .npy or .npz file (N, ...).
    """
    schedule: schedules.ScheduleName = "vp"
    """Noise schedule."""
    noise_floor: float | None = None
    """σ/α at the least noise, in units of the scaled data. Default: a sixth of
    the levels' spacing, or 0.01.
    """
    prediction: Literal[
        "auto", "levels", "noise", "data", "v", "score", "velocity", "edm"
    ] = "auto"
    """The network's prediction. levels is a softmax over the data's levels. auto
    is levels where they are few (64 per pixel over all channels), else edm.
    """
    weighting: Literal["edm", "likelihood", "uniform", "simple", "min_snr"] = "edm"
    """Weight of the loss over noise levels."""
    times: Literal["log_normal", "log_snr", "uniform"] = "log_normal"
    """Distribution of the training times: EDM's log-normal, or uniform in log-SNR
    or in t.
    """
    samples: int | None = None
    """Samples drawn by each sampler. Default 447, fewer where images are large. 0
    for none.
    """
    sde_steps: int = 128
    """Euler-Maruyama steps of the reverse SDE."""
    ode_steps: int = 24
    """Heun steps of the probability flow, two evaluations each."""
    likelihood_steps: int | None = None
    """Runge-Kutta steps of the probability flow upwards for log p, each of four
    evaluations. None for 96 for 8-bit images, else 16.
    """
    likelihood_examples: int | None = None
    """Test examples scored at most. Default: all, fewer where images are large,
    and all with --likelihood-error.
    """
    likelihood_error: float | None = None
    """Stop scoring at this standard error over examples, in bits/dim (nats for
    other data), after 32 examples or more.
    """
    bound_times: int = 32
    """Noise levels of the variational bound of a test example on a lattice. 0 for
    no bound.
    """
    probes: int = 2
    """Hutchinson probes per test example, whose errors are far below those of the
    examples.
    """
    chunk: int | None = None
    """Examples at a time in sampling and scoring, which no result depends on.
    Default: as suits their size and the device.
    """


def make_model(config: Config, data: datasets.Dataset) -> DenoiserModel:
    """Make the model that the flags select.

    Args:
      config: The flags.
      data: The data set.

    Returns:
      The model.

    Raises:
      ValueError: If the flags exclude each other or do not fit the data.
    """
    prediction = sizes.prediction(config.prediction, data)
    floor = scoring.noise_floor(config.noise_floor, data, CONTINUOUS_FLOOR)
    return DenoiserModel(
        data,
        schedules.with_noise_floor(config.schedule, floor),
        training.make_module(config, data),
        prediction,
    )


def load(
    folder: pathlib.Path, dtype: str | None = None, examples: bool = False
) -> tuple[DenoiserModel, Any]:
    """Load the model and the denoiser that a run trained into a folder.

    Shape, levels, shift and scale of the data are those that the run stored.
    Its data file is not read unless `examples` is true.

    Args:
      folder: `out` of the run.
      dtype: Type of the network's parameters and arithmetic. None keeps that
        of the run.
      examples: Whether to open the run's data too, for training and test
        examples.

    Returns:
      (model, denoiser with the averaged parameters).

    Raises:
      FileNotFoundError: If there is no such run, or its data are gone and
        `examples` is true.
      ValueError: If the run did not describe its data, or, with `examples`,
        its file now holds other data.
    """
    cure = (
        "run again with the flags that it was trained with, "
        "which go on from its checkpoints"
    )
    stored = files.read_json(
        folder / "config.json", cure, "data", "schedule", "network"
    )
    known = {field.name for field in dataclasses.fields(Config)}
    config = Config(
        **{
            name: value
            for name, value in stored.items()
            if name in known and name != "out"
        }
    )
    config = dataclasses.replace(config, dtype=dtype or config.dtype)
    if DESCRIPTION not in stored:
        raise ValueError(
            f"{folder}/config.json must describe the data of the run under "
            f"{DESCRIPTION!r}; run score_sde on this "
            f"folder again, which trains no further and writes it"
        )
    described = stored[DESCRIPTION]
    data = datasets.described(described)
    if examples:
        data = datasets.reopen_dataset(described, config.held_out, config.seed)
    # Runs that do not say took levels wherever there were any.
    earlier = "edm" if data.levels is None else "levels"
    if config.prediction == "auto":
        taken = stored.get(PREDICTION, earlier)
        config = dataclasses.replace(config, prediction=taken)
    model = make_model(config, data)
    params = dj.training.load_ema(folder / "checkpoints")
    return model, model.denoiser(
        jax.tree.map(lambda p: p.astype(dtype) if dtype else p, params)
    )


DESCRIPTION = "data_description"
"""The entry of config.json that holds `datasets.describe` of the data."""

PREDICTION = "prediction_taken"
"""The entry of config.json that holds what the network predicts."""


def train(
    config: Config, model: DenoiserModel, out: pathlib.Path
) -> tuple[Any, np.ndarray]:
    """Train the denoiser, resuming from the checkpoints in `out`.

    Args:
      config: The flags.
      model: The model.
      out: The folder.

    Returns:
      (averaged parameters, loss of every step).
    """

    def loss(params, key, batch):
        denoiser = model.denoiser(params)
        return losses.batch_loss(
            key,
            denoiser,
            batch,
            weighting=config.weighting,
            times=config.times,
            dropout=config.dropout > 0,
        )[0]

    print(
        f"{type(model.module).__name__} with prediction {model.prediction}, schedule "
        f"{model.schedule}"
    )
    about = {
        DESCRIPTION: datasets.describe(model.data),
        PREDICTION: model.prediction,
    }
    return training.fit(
        config,
        out,
        loss,
        model.init,
        arrays=model.data.stored_train,
        convert=model.data.scaled,
        fields=_FIELDS,
        about=about,
    )


_FIELDS = ("data", "schedule", "noise_floor", "prediction", "weighting", "times")
