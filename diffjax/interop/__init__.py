"""Weights of other libraries, read from the user's files.

- diffusers: its networks, weights and schedulers
- checkpoints: files of other codebases
- inception, dinov2: feature extractors

A feature extractor is a callable pytree, images (B, H, W, C) -> features (B, D).
Images are uint8, or floats in [−1, 1], with one or three channels. It passes
through `jit`. Nothing in diffjax imports this package.
"""

from . import checkpoints, diffusers, dinov2, images, inception, weights

__all__ = ["checkpoints", "diffusers", "dinov2", "images", "inception", "weights"]


def __dir__() -> list[str]:
    return __all__
