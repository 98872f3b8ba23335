"""Folders of models: config.json beside safetensors files, whole or in parts."""

import importlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ... import checks
from .. import files

__all__ = [
    "CONFIG",
    "SCHEDULER_CONFIG",
    "read_config",
    "read_tensors",
    "write_config",
    "write_tensors",
]

CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model"


def read_config(folder: str | pathlib.Path, name: str = CONFIG) -> dict[str, Any]:
    """Read a configuration.

    Args:
      folder: The folder.
      name: Name of the file in it.

    Returns:
      The configuration, with its `_class_name`.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is not a JSON object, or does not name a class.
    """
    folder = pathlib.Path(folder)
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.{_hint(folder, name)}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    named = isinstance(config, dict) and isinstance(config.get("_class_name"), str)
    checks.require(named, f"{path} must be a JSON object with a string _class_name")
    return config


def _hint(folder, name):
    """Where the file may be instead."""
    below = sorted(path.parent.name for path in folder.glob(f"*/{name}"))
    if below:
        return f" This is a pipeline's folder. {name} is in its subfolders {below}"
    return "" if folder.is_dir() else " There is no such folder."


def read_tensors(
    folder: str | pathlib.Path, variant: str | None = None
) -> dict[str, np.ndarray]:
    """Read the tensors of a model.

    Args:
      folder: The folder, with diffusion_pytorch_model.safetensors or with the
        index of its parts.
      variant: Such as "fp16", the part of the files' names before
        .safetensors.

    Returns:
      Arrays by name, as they are stored.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If a file is damaged or a pickle, or lacks a tensor that the index
        lists for it.
    """
    folder = pathlib.Path(folder)
    stem = WEIGHTS + (f".{variant}" if variant else "")
    whole = folder / f"{stem}.safetensors"
    index = (
        folder / f"{WEIGHTS}.safetensors.index{'.' + variant if variant else ''}.json"
    )
    if whole.is_file():
        return files.read(whole)
    if index.is_file():
        return _parts(folder, index)
    raise _no_weights(folder, whole)


def _no_weights(folder, expected):
    present = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in present if name.endswith(files.PICKLES)]
    if pickles:
        hint = files.conversion(pickles[0])
        return ValueError(f"{expected} is missing, but there is {pickles[0]}. {hint}")
    return FileNotFoundError(f"{expected} does not exist. The folder holds {present}")


def _parts(folder, index):
    """The tensors of all parts that an index names."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        places = {str(name): str(part) for name, part in places.items()}
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(f"{index} is not an index of parts: {error!r}") from error
    parts = {part: folder / part for part in sorted(set(places.values()))}
    inside = all(path.parent == folder for path in parts.values())
    checks.require(inside, f"{index} names files outside of its folder")
    absent = [part for part, path in parts.items() if not path.is_file()]
    if absent:
        raise FileNotFoundError(f"{index} names parts that are missing: {absent}")
    tensors = {part: files.read(path) for part, path in parts.items()}
    lost = [name for name, part in places.items() if name not in tensors[part]]
    checks.require(not lost, f"{index} names tensors that its parts lack: {lost[:4]}")
    return {name: tensors[part][name] for name, part in places.items()}


def write_config(
    folder: str | pathlib.Path, config: Mapping[str, Any], name: str = CONFIG
) -> None:
    """Write a configuration, whole or not at all.

    Args:
      folder: The folder, made if it is absent.
      config: The configuration.
      name: Name of the file in it.
    """
    folder = pathlib.Path(folder)
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
    with files.replacing(folder / name) as partial:
        partial.write_text(text, encoding="utf-8")


def write_tensors(
    folder: str | pathlib.Path, tensors: Mapping[str, np.ndarray]
) -> None:
    """Write the tensors of a model into one file, whole or not at all.

    Parts, variants and the configuration that an earlier model left in the folder are
    removed. So a folder whose writing was interrupted has no configuration, rather
    than one of another model.

    Args:
      folder: The folder, made if it is absent.
      tensors: Arrays by name.
    """
    safetensors: Any = importlib.import_module("safetensors.numpy")
    folder = pathlib.Path(folder)
    whole = folder / f"{WEIGHTS}.safetensors"
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with files.replacing(whole) as partial:
        safetensors.save_file(arrays, partial, metadata={"format": "pt"})
        (folder / CONFIG).unlink(missing_ok=True)
    for stale in folder.glob(f"{WEIGHTS}*.safetensors*"):
        if stale != whole and stale.suffix != ".partial":
            stale.unlink()
