"""Arrays by name in .npz and .safetensors files, written whole or not at all."""

import contextlib
import importlib
import os
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import checks

__all__ = ["PICKLES", "conversion", "read", "replacing", "write"]

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
"""Suffixes of pickle files."""


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
        return READERS[path.suffix.lower()](path)
    except (OSError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # each format has errors of its own
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error


def write(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays into one file, whole or not at all.

    Args:
      path: The file, .npz or .safetensors. Its folder is made if it is absent.
      arrays: Arrays by name, of booleans, integers, floats or bfloat16.

    Raises:
      ValueError: If the file's name ends otherwise, or an array in a .safetensors
        file is called "__metadata__".
    """
    path = _known(path)
    arrays = {k: np.array(v, order="C", copy=None) for k, v in arrays.items()}
    with replacing(path) as partial, open(partial, "wb") as file:
        WRITERS[path.suffix.lower()](file, arrays)


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A context to write a file whole or not at all.

    Args:
      path: The file. Its folder is made if it is absent.

    Yields:
      The path of a partial file beside it, which replaces it at the end. After an
      error it is removed.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process in the name keeps two writers apart.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def conversion(name: str) -> str:
    """Instructions to convert a pickle.

    Args:
      name: Name of the file.

    Returns:
      Sentences for an error message.
    """
    return (
        "Pickles can run any code, so they are not read. Convert the file where torch "
        "is installed: import torch, safetensors.torch; state = torch.load("
        f"{name!r}, map_location='cpu', weights_only=True); "
        "state = state.get('ema', state); "
        "safetensors.torch.save_file(state, "
        f"{pathlib.PurePath(name).stem + '.safetensors'!r})"
    )


def _known(path):
    path = pathlib.Path(path)
    is_pickle = path.suffix.lower() in PICKLES
    checks.require(not is_pickle, f"{path.name} is a pickle. {conversion(path.name)}")
    accepted = f"path must end in .npz or .safetensors, got {path.name}"
    checks.require(path.suffix.lower() in READERS, accepted)
    return path


def _read_npz(path):
    with np.load(path, allow_pickle=False) as file:
        # By the names of the members: file["a.npy"] is the array "a", even beside an
        # array "a.npy".
        members = file.zip.namelist()
        arrays = {name.removesuffix(".npy"): file[name] for name in members}
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
    message = 'the format .safetensors reserves the name "__metadata__"'
    checks.require("__metadata__" not in arrays, message)
    file.write(safetensors.save(arrays))


READERS = {".npz": _read_npz, ".safetensors": _read_safetensors}
WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors}
