"""The flags of `toy_sde`."""

import dataclasses
import pathlib
from typing import Literal

from experiments.shared import devices
from experiments.shared.datasets import ToyName
from experiments.shared.schedules import ScheduleName


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    """Forward SDE, reverse SDE and probability flow of a 2-D density against
    exact p_t.
    """

    out: pathlib.Path = pathlib.Path("runs/toy_sde")
    """Folder for figures, config.json and metrics.json."""
    seed: int = 0
    """Seed of all draws."""
    target: Literal[ToyName, "two_modes"] = "eight_gaussians"
    """The density at noise 0."""
    schedules: tuple[ScheduleName, ...] = ("vp", "sub_vp", "ve")
    """The noise schedules to compare, one row of the figures each."""
    samples: int = 8192
    """Paths simulated of each kind, and exact samples that they are compared with."""
    steps: int = 1000
    """Steps of every solver, uniform in log-SNR."""
    likelihoods: int = 512
    """Exact samples whose log p is computed by the probability flow."""
