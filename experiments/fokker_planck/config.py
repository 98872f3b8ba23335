"""The flags of `fokker_planck`."""

import dataclasses
import pathlib
from typing import Literal, get_args

ScheduleName = Literal[
    "vp_linear",
    "vp_cosine",
    "sub_vp",
    "ve",
    "edm",
    "rectified_flow",
    "from_betas",
    "learned",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """The Fokker–Planck equation: residual, solution, and simulated paths."""

    out: pathlib.Path = pathlib.Path("runs/fokker_planck")
    """Folder for figures, config.json and metrics.json."""
    seed: int = 0
    """Seed of all draws."""
    processes: tuple[Literal["vp", "ve", "langevin"], ...] = ("vp", "ve", "langevin")
    """The processes that are simulated and solved."""
    schedules: tuple[ScheduleName, ...] = get_args(ScheduleName)
    """The schedules whose residuals are measured."""
    halvings: int = 11
    """Number of times that Δx and Δt are halved together."""
    points: int = 32
    """Exact samples at each of three noise levels at which residuals are measured."""
    paths: int = 20000
    """Euler–Maruyama paths of each process."""
    steps: int = 4000
    """Steps of each simulation, and of the solver."""
    cells: int = 800
    """Cells of the solver."""
    devices: int | None = None
    """Number of devices to use. Default: all."""
