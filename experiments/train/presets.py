"""The presets of `experiments.train`: published recipes, and two that need no data."""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

from experiments.train.config import Config, PresetName

__all__ = ["PRESETS", "SUMMARIES", "chosen", "ema_decay"]


def ema_decay(half_life: float, batch_size: int) -> float:
    """Decay per step of an average with a half-life.

    Args:
      half_life: Number of images.
      batch_size: Images per step.

    Returns:
      The decay.
    """
    return 0.5 ** (batch_size / half_life)


_PATCHES32 = Config(
    preset="patches32",
    out=pathlib.Path("runs/patches32"),
    data="patches32",
    augment="flip",
    network="unet",
    width=32,
    depth=1,
    multipliers=(1, 2, 3),
    attention_resolutions=(2,),
    dropout=0.0,
    steps=3000,
    batch_size=32,
    learning_rate=2e-3,
    ema_decay=0.998,
    save_every=250,
    likelihood_examples=32,
    samples=256,
)

_DIGITS_BEST = Config(
    preset="digits_best",
    out=pathlib.Path("runs/digits_best"),
    data="digits",
    held_out=447,
    augment="digits",
    augment_probability=0.7,
    network="dit",
    width=96,
    depth=4,
    heads=4,
    patch=2,
    dropout=0.1,
    schedule="vp",
    prediction="levels",
    steps=20_000,
    batch_size=96,
    learning_rate=2e-3,
    ema_decay=0.999,
    save_every=500,
    evaluate_every=2000,
    evaluate_examples=447,
    evaluate_samples=64,
)

# Karras et al. 2022 (EDM), table 7, column CIFAR-10, with the network DDPM++
# of appendix F.4 and the augmentation of F.2: 200 million images in batches of
# 512, Adam at 10⁻³ after a warm-up of 10 million, no decay, dropout 13 %,
# augmentation 12 %, and an average with a half-life of 0.5 million images.
# Their program computes in float32, and its average is shorter in the first 10
# million images.
_CIFAR10 = Config(
    preset="cifar10",
    out=pathlib.Path("runs/cifar10"),
    data="cifar10.npz",
    held_out=10_000,
    augment="edm",
    augment_probability=0.12,
    network="ddpmpp",
    width=128,
    depth=4,
    multipliers=(2, 2, 2),
    attention_resolutions=(1,),
    dropout=0.13,
    dtype="bfloat16",
    prediction="edm",
    times_mean=-1.2,
    times_std=1.2,
    steps=200_000_000 // 512,
    batch_size=512,
    learning_rate=1e-3,
    warmup=10_000_000 // 512,
    decay="constant",
    clip_norm=None,
    ema_decay=ema_decay(0.5e6, 512),
    save_every=2500,
    evaluate_every=10_000,
    evaluate_examples=1024,
    evaluate_samples=64,
    evaluate_frechet=1024,
    samples=10_000,
)

# Karras et al. 2024 (EDM2), the model S of ImageNet-64 in section 4 and in
# table 6, that of all models, in appendix D: width 192, 2²⁰ · 1024 images in
# batches of 2048, learning rate 0.01 that falls as 1/√step from step 35 000 on
# (equation 67) after a warm-up of 10 million images, β₂ = 0.99, no dropout,
# times of mean −0.8 and deviation 1.6, u(σ), and averages of lengths 0.05 and
# 0.10 (section 3), from whose snapshots 0.075 is made, the best length by
# Fréchet distance. Snapshots take 2.3 GB each. A tenth of the labels is left
# out here, for guidance by one network.
_IMAGENET64 = Config(
    preset="imagenet64",
    out=pathlib.Path("runs/imagenet64"),
    data="imagenet64",
    size=64,
    held_out=10_000,
    random_shape=(64, 64, 3),
    random_classes=1000,
    labels=True,
    augment="flip",
    network="edm2_s",
    dropout=0.0,
    dtype="bfloat16",
    prediction="edm",
    times_mean=-0.8,
    times_std=1.6,
    uncertainty=True,
    steps=2**30 // 2048,
    batch_size=2048,
    learning_rate=0.01,
    warmup=10_000_000 // 2048,
    decay="inverse_sqrt",
    decay_after=35_000,
    beta_2=0.99,
    clip_norm=None,
    ema_decay=0.9999,
    averages=(0.05, 0.10),
    snapshot_every=2**14,
    average=0.075,
    save_every=2500,
    evaluate_every=10_000,
    evaluate_examples=1024,
    evaluate_samples=64,
    samples=10_000,
    likelihood_examples=0,
)

# Peebles & Xie 2023 (DiT), section 4: DiT-B/2 on latents of 32 × 32 × 4, AdamW
# at 10⁻⁴ without warm-up, decay of weights or clipping, batches of 256, an
# average of decay 0.9999, a tenth of the labels left out, 400 000 steps as in
# their table 4. They also mirror images, ahead of the encoder. The objective
# is that of Esser et al. 2024, section 5.1: the velocity of a rectified flow
# at logit-normal times (0, 1).
_LATENTS32 = Config(
    preset="latents32",
    out=pathlib.Path("runs/latents32"),
    data="latents32.npz",
    held_out=10_000,
    random_shape=(32, 32, 4),
    random_classes=1000,
    labels=True,
    network="dit_b_2",
    dropout=0.0,
    dtype="bfloat16",
    prediction="velocity",
    schedule="rectified_flow",
    times="logit_normal",
    times_mean=0.0,
    times_std=1.0,
    weighting="uniform",
    steps=400_000,
    batch_size=256,
    learning_rate=1e-4,
    warmup=1,
    decay="constant",
    clip_norm=None,
    ema_decay=0.9999,
    save_every=5000,
    evaluate_every=10_000,
    evaluate_examples=1024,
    evaluate_samples=64,
    samples=10_000,
    likelihood_examples=0,
)

PRESETS: dict[PresetName, Config] = {
    config.preset: config
    for config in (_PATCHES32, _DIGITS_BEST, _CIFAR10, _IMAGENET64, _LATENTS32)
}
"""The configuration of each preset."""

SUMMARIES: dict[PresetName, str] = {
    "patches32": "colour patches of two photographs, 30 minutes on 2 CPU cores",
    "digits_best": "8 × 8 digits, the best bits/dim, 25 minutes on 2 CPU cores",
    "cifar10": "your cifar10.npz: DDPM++ as EDM trains it",
    "imagenet64": "your folder imagenet64: EDM2-S, with u(σ) and classes",
    "latents32": "your latents32.npz (N, 32, 32, 4): DiT-B/2 as a rectified flow",
}
"""A line on each preset."""


def chosen(words: Sequence[str]) -> Config:
    """The preset that a command line names, or the first.

    Args:
      words: The words after the program's name.

    Returns:
      The preset. One that is not known is left to the parser of the flags.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", default="patches32")
    name = parser.parse_known_args(list(words))[0].preset
    return PRESETS.get(name, PRESETS["patches32"])


def described() -> str:
    """The presets and their lines, for `--help`."""
    return "\n".join(f"- {name}: {line}." for name, line in SUMMARIES.items())


def changed(config: Config) -> dict[str, object]:
    """The flags whose values differ from those of the preset."""
    preset = PRESETS[config.preset]
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(Config)
        if getattr(config, field.name) != getattr(preset, field.name)
    }
