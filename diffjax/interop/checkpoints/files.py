"""Arrays by name in .npz and .safetensors files, written whole or not at all."""

import importlib
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ... import checks

__all__ = ["PICKLES", "read", "write"]

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
"""Ends of the names of files that are pickles."""


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Read all arrays of a file.

    Args:
      path: A file .npz or .safetensors.

    Returns:
      Arrays by name, with the dtypes that are stored.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it has another format or is damaged. Pickles are never read.
    """
    path = _known(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        return (_read_npz if path.suffix == ".npz" else _read_safetensors)(path)
    except (OSError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # each format has errors of its own
        raise ValueError(f"{path} is no readable checkpoint: {error}") from error


def write(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays into one file, whole or not at all.

    Args:
      path: The file, .npz or .safetensors. Its folder is made if it is absent.
      arrays: Arrays by name, of booleans, integers, floats or bfloat16.

    Raises:
      ValueError: If the file's name ends otherwise.
    """
    path = _known(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process in the name keeps two writers apart.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    arrays = {k: np.array(v, order="C", copy=None) for k, v in arrays.items()}
    try:
        with open(partial, "wb") as file:
            (_write_npz if path.suffix == ".npz" else _write_safetensors)(file, arrays)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _known(path):
    path = pathlib.Path(path)
    stem = path.stem
    checks.require(
        path.suffix.lower() not in PICKLES,
        f"{path.name} is a pickle, which can run any code and is not read. Convert "
        "it where torch is installed: state = torch.load("
        f"{path.name!r}, map_location='cpu', weights_only=True); "
        "state = state.get('ema', state); "
        f"safetensors.torch.save_file(state, {stem + '.safetensors'!r})",
    )
    accepted = f"path must end in .npz or .safetensors, got {path.name}"
    checks.require(path.suffix in (".npz", ".safetensors"), accepted)
    return path


def _read_npz(path):
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    # NumPy stores bfloat16 as two bytes without a type.
    return {
        k: v.view(jnp.bfloat16) if v.dtype == np.dtype("V2") else v
        for k, v in arrays.items()
    }


def _read_safetensors(path):
    safetensors: Any = importlib.import_module("safetensors")
    with safetensors.safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def _write_npz(file, arrays):
    # Not np.savez, whose own arguments would clash with names.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, value, allow_pickle=False)


def _write_safetensors(file, arrays):
    safetensors: Any = importlib.import_module("safetensors.numpy")
    file.write(safetensors.save(arrays))
