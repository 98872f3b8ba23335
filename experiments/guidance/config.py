"""The flags of `guidance`."""

import dataclasses
import pathlib
from typing import Literal, get_args

from experiments.shared import training

Variant = Literal[
    "limited",
    "rescaled",
    "static_threshold",
    "dynamic_threshold",
    "autoguidance",
    "cfg_plus_plus",
    "ddim",
]
VARIANTS = get_args(Variant)
"""Kinds beside plain classifier-free guidance. ddim is the plain one with the
solver of CFG++.
"""


@dataclasses.dataclass(frozen=True)
class Config(training.Training):
    """Guide towards classes, exactly and on data."""

    out: pathlib.Path = pathlib.Path("runs/guidance")
    """Folder for config.json, metrics.json, figures and checkpoints. A run on the
    same folder resumes.
    """
    data: str = "digits"
    """"digits", or the path of an .npz file with examples x (N, ...) and integer
    labels y (N,).
    """
    steps: int = 800
    """Training steps."""
    drop: float = 0.15
    """Probability that a training example's label is dropped, from which the
    unconditional denoiser is learnt.
    """
    classifier_steps: int = 1500
    """Training steps of the classifier of noisy inputs."""
    weak_width: int = 48
    """Features of the weaker network for autoguidance."""
    weak_depth: int = 2
    """Blocks of the weaker network."""
    weak_steps: int = 200
    """Training steps of the weaker network."""
    kinds: tuple[Literal["classifier_free", "classifier"], ...] = (
        "classifier_free",
        "classifier",
    )
    """Guidances that are drawn at every scale."""
    scales: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 8.0)
    """Guidance scales γ on data: (1 − γ) D_u + γ D_c. 0 is unguided, 1
    conditional. The exact part has a list that is fixed.
    """
    samples: int = 500
    """Samples at each scale, the classes in turn."""
    labels: tuple[int, ...] = ()
    """Classes to draw. Default: all."""
    sampling_steps: int = 24
    """Steps of unipc(3), uniform in log-SNR, before the last to noise 0, each of
    one evaluation.
    """
    variants: tuple[Variant, ...] = VARIANTS
    """Other kinds of classifier-free guidance, drawn at --variant-scale."""
    variant_scale: float = 4.0
    """Scale γ of the variants."""
    interval: tuple[float, float] = (0.1, 0.4)
    """Times between which the limited variant guides. 0.1 has σ/α = 0.34 and 0.4
    has 2.2.
    """
    exact: bool = True
    """Whether to run the part on exact distributions."""
    exact_samples: int = 20_000
    """Samples of each exact distribution, 2048 or more."""
    chunk: int = 250
    """Examples at a time in sampling."""
