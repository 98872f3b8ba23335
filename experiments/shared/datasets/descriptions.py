"""A data set described by JSON values, rebuilt from them, and opened again."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from .dataset import Dataset
from .opening import open_dataset
from .toys import TOYS


def describe(data: Dataset) -> dict[str, Any]:
    """Describe a data set without its examples, as JSON values. `described` is
    the inverse.
    """
    return {
        "name": data.name,
        "path": data.path,
        "shape": list(data.shape),
        "shift": np.asarray(data.shift).tolist(),
        "scale": np.asarray(data.scale).tolist(),
        "spread": data.spread,
        "levels": None if data.levels is None else data.levels.tolist(),
        "training_examples": len(data.stored_train),
        "test_examples": len(data.stored_test),
        "digest": data.digest,
    }


def described(description: dict[str, Any]) -> Dataset:
    """The data set that `describe` described, without its examples."""
    none = np.zeros((0, *description["shape"]), np.float32)
    levels, name = description["levels"], description["name"]
    target = TOYS[name]() if name in TOYS else None
    return Dataset(
        name,
        none,
        none,
        None if levels is None else np.array(levels, np.float32),
        np.asarray(description["shift"], np.float64)[()],
        np.asarray(description["scale"], np.float64)[()],
        target,
        path=description["path"],
        known_spread=description["spread"],
    )


def reopen_dataset(
    description: dict[str, Any], held_out: int, seed: int, *, validation: int = 0
) -> Dataset:
    """The described data set with its examples, from its file.

    Args:
      description: As `describe` returned it.
      held_out: Number of test examples when it was described.
      seed: Seed of the split when it was described.
      validation: As in `open_dataset`, when it was described.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: If the file is gone.
      ValueError: If the file holds other data than those described.
    """
    name = description["path"] or description["name"]
    # Images that were cut to a size are square, and others are not cut again.
    sides = description["shape"][:2]
    size = sides[0] if len(set(sides)) == 1 and pathlib.Path(name).is_dir() else None
    data = open_dataset(name, held_out, seed, size=size, validation=validation)
    data = dataclasses.replace(data, name=description["name"])
    if data.digest != description["digest"]:
        raise ValueError(
            f"{name} must hold the data that the run was trained on (digest "
            f"{description['digest']}), "
            f"it has others now (digest {data.digest})"
        )
    return data
