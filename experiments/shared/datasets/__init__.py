"""Data for the experiments: scikit-learn's digits and photographs, the exact toy
densities, files and folders of images.
"""

from .baselines import (
    Histograms,
    gaussian_mixture_bits,
    histogram_bits,
    histograms,
    with_replaced,
)
from .dataset import Dataset
from .descriptions import describe, described, reopen_dataset
from .digests import digest
from .opening import MAX_LEVELS, MIN_TRAIN, open_dataset
from .patches import PATCHES, patches
from .scaling import Scaling
from .toys import TOY_EXAMPLES, TOYS, ToyName

__all__ = [
    "MAX_LEVELS",
    "MIN_TRAIN",
    "PATCHES",
    "TOYS",
    "TOY_EXAMPLES",
    "Dataset",
    "Histograms",
    "Scaling",
    "ToyName",
    "describe",
    "described",
    "digest",
    "gaussian_mixture_bits",
    "histogram_bits",
    "histograms",
    "open_dataset",
    "patches",
    "reopen_dataset",
    "with_replaced",
]
