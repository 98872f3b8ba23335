"""The flags of `energy_model`."""

import dataclasses
import pathlib
from typing import Literal

from experiments.shared import training


@dataclasses.dataclass(frozen=True)
class Config(training.Optimisation):
    """An energy network fitted to a density in the plane, its KL and its log Z."""

    out: pathlib.Path = pathlib.Path("runs/energy_model")
    """Folder for figures, config.json, metrics.json and checkpoints."""
    seed: int = 0
    """Seed of data, networks, training and chains."""
    target: Literal["moons", "circles", "eight_gaussians"] = "moons"
    """The density of the data."""
    objectives: tuple[Literal["denoising", "sliced", "exact", "contrastive"], ...] = (
        "denoising",
        "sliced",
        "exact",
        "contrastive",
    )
    """The objectives to compare."""
    sigma: float = 0.1
    """Noise level of denoising score matching, in data units."""
    chains: int = 256
    """Persistent chains of contrastive divergence."""
    chain_steps: int = 10
    """MALA steps of each chain in a training step."""
    chain_step_size: float = 0.05
    """Initial ε of these chains, in squared data units. It then follows their
    acceptance.
    """
    restart: float = 0.01
    """Share of the chains that start anew, in N(0, 3²), in a training step."""
    penalty: float = 1e-3
    """Weight of the squares of the log densities in contrastive divergence."""
    examples: int = 65536
    """Training examples, exact samples of the density."""
    width: int = 64
    """Features of the network."""
    depth: int = 2
    """Blocks of the network."""
    steps: int = 2000
    """Training steps of each network."""
    batch_size: int = 256
    """Examples per step."""
    contrastive_rate: float = 1e-3
    """Peak learning rate of contrastive divergence, whose chains must keep up
    with the density.
    """
    learning_rate: float = 3e-3
    """Peak learning rate: linear warm-up over a tenth of the steps, then a cosine
    to 0.
    """
    save_every: int = 1000
    """Steps between checkpoints."""
    levels: tuple[int, ...] = (8, 32, 128)
    """Numbers of levels between the broad Gaussian and the learned density, for
    log Z.
    """
    walkers: int = 256
    """Chains of an estimate of log Z."""
