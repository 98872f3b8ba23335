"""The flags of `vae`."""

import dataclasses
import pathlib
from typing import Literal

from experiments.shared import training


@dataclasses.dataclass(frozen=True)
class Config(training.ImageTraining):
    """Train a VAE, bound its code length, reconstruct, sample, traverse and
    interpolate.
    """

    out: pathlib.Path = pathlib.Path("runs/vae")
    """Folder for config.json, metrics.json, figures and checkpoints. A run on the
    same folder resumes.
    """
    decoder: Literal["logistic", "gaussian", "bernoulli"] = "logistic"
    """Distribution of a pixel given the latent: a logistic or a Gaussian rounded
    to the levels, or a bit. Levels above the middle are then 1, and the
    figures are those of black and white images.
    """
    latent: int = 16
    """Entries of the latent."""
    width: int = 256
    """Features of the encoder and of the decoder."""
    depth: int = 2
    """Residual blocks of each."""
    dropout: float = 0.2
    """Dropout probability in training."""
    beta: float = 1.0
    """Weight of the KL in training. Scores are bounds for any weight."""
    free_bits: float = 0.0
    """Nats per entry of the latent that cost nothing in training."""
    steps: int = 4000
    """Training steps."""
    batch_size: int = 128
    """Examples per step."""
    learning_rate: float = 1e-3
    """Peak learning rate: linear warm-up over a tenth of the steps, then a cosine
    to 0.
    """
    ema_decay: float = 0.995
    """Decay of the averaged parameters, which are the ones sampled and scored."""
    save_every: int = 1000
    """Steps between checkpoints."""
    draws: int = 256
    """Draws of the latent for each test example."""
    chunk: int = 32
    """Examples at a time in scores and samples."""
