"""Sources of training data: the batches of a step, from arrays, files and folders."""

from .batches import (
    Batches,
    Examples,
    PositionedSource,
    Rows,
    SharedSource,
    Source,
    split,
)
from .files import load, load_labelled
from .grains import GrainSource
from .images import ImageFolder, Images
from .prefetch import Prefetch

__all__ = [
    "Batches",
    "Examples",
    "GrainSource",
    "ImageFolder",
    "Images",
    "PositionedSource",
    "Prefetch",
    "Rows",
    "SharedSource",
    "Source",
    "load",
    "load_labelled",
    "split",
]


def __dir__() -> list[str]:
    return __all__
