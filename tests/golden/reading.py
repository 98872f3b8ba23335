"""The golden files, and the random arrays that tests and makers draw by name."""

import functools
import pathlib
import zlib

import numpy as np

__all__ = ["generator", "golden"]

FOLDER = pathlib.Path(__file__).parent


@functools.cache
def golden(file: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file by key.

    Args:
      file: Its name without the ending.

    Returns:
      The arrays.
    """
    with np.load(FOLDER / f"{file}.npz") as arrays:
        return dict(arrays)


def generator(name: str) -> np.random.Generator:
    """The random numbers that belong to a name, the same in every process."""
    return np.random.default_rng(zlib.crc32(name.encode()))
