"""Files of weights as dictionaries of arrays."""

import importlib
import pathlib
from typing import Any

import numpy as np

from .. import checks
from . import files

__all__ = ["read"]

TORCH = (".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model", "model_state_dict")


def read(path: str | pathlib.Path, source: str = "") -> dict[str, np.ndarray]:
    """Read a state dict.

    Args:
      path: A file .safetensors, .npz, or one of torch's: .pth, .pt, .bin, .ckpt.
        The last kind needs torch. Tensors alone are unpickled from it.
      source: Where to get the file, a sentence for the error's message.

    Returns:
      Arrays by name, in float32 where they are floats.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file has another format, or holds other things.
      ModuleNotFoundError: If the library that reads it is missing.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file of weights {path}. {source}".rstrip()
        )
    kinds = dict.fromkeys((".safetensors", ".npz"), files.read)
    kinds |= dict.fromkeys(TORCH, _of_torch)
    suffix = path.suffix.lower()
    message = f"path must end in {', '.join(kinds)}, got {path.name}"
    checks.require(suffix in kinds, message)
    try:
        stored = kinds[suffix](path)
        return {str(name): _float32(value) for name, value in stored.items()}
    except (ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:  # each format has errors of its own
        raise ValueError(f"{path} is no readable {suffix} file: {error}") from error


def _of_torch(path):
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path} is a file of torch, which is not installed. Install it, or "
            "convert the file where it is: safetensors.torch.save_file(torch.load("
            f"{path.name!r}, weights_only=True), {path.stem + '.safetensors'!r})"
        ) from None
    stored = torch.load(path, map_location="cpu", weights_only=True)
    while len(wrapped := [name for name in WRAPPERS if name in stored]) == 1:
        stored = stored[wrapped[0]]
    tensors = {k: v for k, v in stored.items() if isinstance(v, torch.Tensor)}
    return {
        k: (v.float() if v.is_floating_point() else v).numpy()
        for k, v in tensors.items()
    }


def _float32(value):
    value = np.asarray(value)
    # bfloat16 has kind V
    return value.astype(np.float32) if value.dtype.kind in "fV" else value
