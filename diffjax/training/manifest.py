"""The manifest of a checkpoint: its configuration, and a checksum of every array.

orbax verifies no checksum, and restores a flipped bit silently.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import checks

__all__ = [
    "NAME",
    "Arrays",
    "Damaged",
    "Manifest",
    "describe",
    "fingerprint",
    "naming",
    "read",
    "verify",
    "write",
]

NAME = "manifest.json"
"""Name of the file in a checkpoint's folder."""

Arrays = dict[str, dict[str, Any]]
"""Shape, dtype and sha256 of arrays, by name."""


class Manifest(NamedTuple):
    """The contents of a manifest.

    Attributes:
      config: The configuration, JSON values by name.
      items: For each item of the checkpoint, its arrays as `describe` returns
        them.
      position: That of the source of data, a JSON value. None for the step
        alone.
    """

    config: dict[str, Any]
    items: dict[str, Arrays]
    position: Any = None


class Damaged(ValueError):
    """Raised for a checkpoint that differs from the one that was saved.

    Attributes:
      folder: Its folder, where one of several was read.
    """

    folder: pathlib.Path | None = None


@contextlib.contextmanager
def naming(folder: pathlib.Path) -> Iterator[None]:
    """Adds the folder to a `Damaged` raised inside."""
    try:
        yield
    except Damaged as error:
        error.folder = folder
        raise


def describe(arrays: dict[str, Any]) -> Arrays:
    """Shape, dtype and checksum of each array.

    Args:
      arrays: Arrays by name. One that is spread over several hosts gets no
        checksum: no host has all of it.

    Returns:
      A JSON value for each name.
    """
    return {
        name: {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "sha256": _checksum(array),
        }
        for name, array in arrays.items()
    }


def verify(arrays: dict[str, Any], described: Arrays) -> None:
    """Compare arrays with their description when they were saved.

    Args:
      arrays: Arrays by name, as restored.
      described: The entries of the same names in the manifest.

    Raises:
      Damaged: If a checksum differs. The message names the array.
    """
    for name, array in arrays.items():
        expected, actual = described[name]["sha256"], _checksum(array)
        same = None in (expected, actual) or expected == actual
        checks.require(same, f"array {name!r} differs from its checksum", Damaged)


def write(folder: pathlib.Path, contents: Manifest) -> None:
    """Write the manifest of a checkpoint.

    Args:
      folder: The checkpoint's folder.
      contents: What is written.
    """
    content = contents._asdict()
    if contents.position is None:
        del content["position"]
    with open(folder / NAME, "w") as file:
        json.dump({**content, "sha256": _text_checksum(content)}, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())


def read(folder: pathlib.Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Args:
      folder: The checkpoint's folder.

    Returns:
      Its contents.

    Raises:
      Damaged: If there is none, or it differs from the one that was written.
    """
    try:
        content = json.loads((folder / NAME).read_bytes())
        checksum = content.pop("sha256")
        if checksum == _text_checksum(content):
            return Manifest(
                content["config"], content["items"], content.get("position")
            )
    except FileNotFoundError:
        raise Damaged(f"it has no {NAME}") from None
    except (
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        RecursionError,
        IsADirectoryError,
    ):
        pass
    raise Damaged(f"its {NAME} is damaged")


def fingerprint(folder: pathlib.Path) -> str | None:
    """Digits that identify a checkpoint, None where there is none."""
    with contextlib.suppress(OSError):
        return hashlib.sha256((folder / NAME).read_bytes()).hexdigest()
    return None


def _checksum(array: Any) -> str | None:
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        return None
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _text_checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
