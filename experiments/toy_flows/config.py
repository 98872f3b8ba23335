"""The flags of `toy_flows`."""

import dataclasses
import pathlib
from typing import Literal

from experiments.shared import devices
from experiments.shared.datasets import ToyName


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    """Flows fitted to 2-D densities that are known exactly: gaps, densities,
    samples.
    """

    out: pathlib.Path = pathlib.Path("runs/toy_flows")
    """Folder for figures, config.json, metrics.json and the fits' checkpoints."""
    seed: int = 0
    """Seed of data, parameters and batches."""
    targets: tuple[ToyName, ...] = (
        "eight_gaussians",
        "checkerboard",
        "circles",
        "moons",
    )
    """The densities, one row of the figures each."""
    flows: tuple[Literal["real_nvp", "spline", "maf", "cnf", "matching"], ...] = (
        "real_nvp",
        "spline",
        "maf",
        "cnf",
        "matching",
    )
    """The flows, one column of the figures each."""
    steps: int | None = None
    """Steps of each fit at batch 512, a multiple of 100. Default: set per flow."""
    learning_rate: float | None = None
    """Peak learning rate: linear warm-up over a tenth of the steps, then a cosine
    to 0. Default: set per flow.
    """
    train: int = 100_000
    """Samples to fit to."""
    test: int = 10_000
    """Fresh samples over which the gap is averaged."""
