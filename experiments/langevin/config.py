"""The flags of `langevin`."""

import dataclasses
import pathlib

from experiments.shared import devices


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    """Langevin chains against exact distributions: paths, histograms, biases, and
    far modes.
    """

    out: pathlib.Path = pathlib.Path("runs/langevin")
    """Folder for figures, config.json and metrics.json."""
    seed: int = 0
    """Seed of all draws."""
    chains: int = 1000
    """Chains of each kind."""
    steps: int = 1000
    """Steps of each chain, a multiple of 10 and 80 or more, after a warm-up of 100."""
    step_sizes: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0)
    """ε of the comparison of biases, in squared data units, below 4."""
    levels: int = 40
    """Levels of annealing between a broad Gaussian and the far modes."""
