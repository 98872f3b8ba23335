"""The flags of `ddpm`."""

import dataclasses
import pathlib
from typing import Literal

from experiments.shared import training


@dataclasses.dataclass(frozen=True)
class Config(training.Training):
    """Train a DDPM, bound its code length term by term, sample and compress."""

    out: pathlib.Path = pathlib.Path("runs/ddpm")
    """Folder for config.json, metrics.json, figures and checkpoints. A run on the
    same folder resumes.
    """
    data: str = "digits"
    """"digits", or the path of an .npy or .npz file of integers (N, H, W[, C]) or
    (N, D).
    """
    network: Literal["auto", "dit", "unet", "mlp"] = "mlp"
    """Network. A patch transformer (dit, auto for images of even sides) needs
    fewer steps, each ten times as long.
    """
    steps: int = 3000
    """Training steps."""
    betas: Literal["linear", "cosine", "sigmoid", "constant"] = "linear"
    """Forward variances."""
    chain_steps: int = 1000
    """T, the length of the chain."""
    prediction: Literal["levels", "noise", "data", "v", "edm"] = "levels"
    """The network's prediction. levels is a softmax over the values that pixels
    take, exact in rounding.
    """
    objective: Literal["simple", "bound", "hybrid"] = "simple"
    """simple is L_simple, bound the bound itself (noisy to train by), hybrid
    L_simple for the mean and the bound for the variance alone.
    """
    variance: Literal["forward", "posterior", "optimal"] = "optimal"
    """Variance of p(x_{t−1} | x_t): β, β̃, or β̃ plus the softmax's variance
    (prediction levels only).
    """
    bound_examples: int | None = None
    """Test examples whose bound is computed. Default: all."""
    likelihood_steps: int | None = None
    """Runge-Kutta steps of the probability flow upwards for log p, each of four
    evaluations. None for 96 for 8-bit images, else 16.
    """
    probes: int = 2
    """Hutchinson probes per test example, 2 or more."""
    exact: bool = True
    """Whether to print the gaps of exact denoisers too."""
    samples: int = 128
    """Samples of the chain."""
    few_steps: int = 50
    """Steps of the samples that visit only a part of the indices."""
    chunk: int = 16
    """Test examples at a time."""
