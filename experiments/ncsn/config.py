"""The flags of `ncsn`."""

import dataclasses
import pathlib

from experiments.shared import devices


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    """Plain and annealed Langevin dynamics on two far modes, with exact and
    learned scores.
    """

    out: pathlib.Path = pathlib.Path("runs/ncsn")
    """Folder for figures, config.json and metrics.json."""
    seed: int = 0
    """Seed of all draws."""
    samples: int = 8192
    """Samples of each kind."""
    levels: int = 20
    """Noise levels of the ladder, in geometric progression."""
    sigma_min: float = 0.1
    """The least noise level, in data units."""
    sigma_max: float = 20.0
    """The greatest noise level, in data units: above the modes' distance of 14."""
    corrections: int = 50
    """Langevin steps at each level."""
    step_size: float = 0.2
    """Annealed Langevin's step ε over σ² at each level, below 4."""
    plain_step: float = 0.1
    """Plain Langevin's step ε, in squared data units, below 4."""
    level_counts: tuple[int, ...] = (2, 5, 10, 20, 50)
    """Numbers of levels to compare, between the same ends."""
    budgets: tuple[int, ...] = (250, 1000, 4000)
    """Langevin steps of a whole run in that comparison."""
    steps: int = 2000
    """Training steps of the network."""
    batch_size: int = 512
    """Samples of the target per training step."""
    width: int = 64
    """Features of the network's hidden layers."""
