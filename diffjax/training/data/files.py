"""The user's arrays from .npy and .npz files."""

import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ... import checks

__all__ = ["load", "load_labelled", "pieces"]

_EXAMPLE_NAMES = ("x", "images", "data")
_LABEL_NAMES = ("y", "labels")

_ROUNDING = 1e-3
"""Greatest accepted rounding error of a conversion, in standard deviations."""


def load(file: str | pathlib.Path, *, dtype: Any = np.float32) -> np.ndarray:
    """Examples stored in a .npy or .npz file.

    Values keep their units (8-bit images stay in 0…255).

    Args:
      file: A .npy file of one array of rank 2 or more, or an .npz file of one
        array, or of several of which one is named `x`, `images` or `data`. The
        leading axis is that of the examples.
      dtype: Type of the result. None keeps the stored one, and leaves the
        examples of a .npy file on disk: the result is a read-only memory map.

    Returns:
      The examples (N, ...), N ≥ 1.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is neither .npy nor .npz, cannot be read, is
        empty, has a rank below 2, or does not hold finite real numbers
        (objects are never unpickled). Also if `dtype` would round values by
        more than a thousandth of their standard deviation, over a column of a
        table (N, D) and over the whole array otherwise.

    Example:
      >>> times = 1.7e9 + np.arange(6.0).reshape(3, 2)  # float32 cannot separate them
      >>> np.save("times.npy", times)
      >>> dj.training.load("times.npy", dtype=np.float64).shape
      (3, 2)
    """
    file = pathlib.Path(file)
    return _examples(file, _read(file, mapped=dtype is None), dtype)


def load_labelled(
    file: str | pathlib.Path, *, dtype: Any = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Examples and labels stored in an .npz file.

    Args:
      file: A file as of `load`, with labels (N, ...) in an array named `y` or
        `labels`.
      dtype: Type of the examples, and of labels that are no integers. None
        keeps the stored one.

    Returns:
      (examples, labels). Integer labels are int32.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: As `load`, and if labels are missing, are not N, or do not
        fit int32.

    Example:
      >>> np.savez("images.npz", x=np.zeros((3, 8, 8)), y=[0, 1, 1])
      >>> images, classes = dj.training.load_labelled("images.npz")
      >>> images.shape, classes.tolist()
      ((3, 8, 8), [0, 1, 1])
    """
    file = pathlib.Path(file)
    stored = _read(file)
    x = _examples(file, stored, dtype)
    name = next((name for name in _LABEL_NAMES if name in stored), "")
    checks.require(name, f"{file} must be .npz with 'y' or 'labels', got {[*stored]}")
    labels = stored[name]
    checks.leading_axis(f"{file}: {name!r}", labels, "the examples", len(x))
    integral = labels.dtype.kind in "iu"
    return x, _real(file, name, labels, np.int32 if integral else dtype)


def pieces(array: Any, entries: int = 2**22) -> Iterator[np.ndarray]:
    """Consecutive rows of an array, read piece by piece.

    Args:
      array: An array (N, ...), a memory map, or `Examples`.
      entries: About as many numbers a piece has, one row at least.

    Yields:
      Arrays (rows, ...), which are views where `array` is in memory.
    """
    rows = max(1, entries // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _read(file: pathlib.Path, mapped: bool = False) -> dict[str, np.ndarray]:
    """The arrays stored at `file` by name. The one of an .npy is called 'x'."""
    message = f"{file} is not a file: data must be an existing .npy or .npz file"
    stored_as = file.suffix in (".npy", ".npz")
    checks.require(stored_as, f"{file} must be a .npy or .npz file")
    checks.require(file.is_file(), message, FileNotFoundError)
    checks.require(file.stat().st_size, f"{file} is empty (0 bytes)")
    try:
        mode = "r" if mapped and file.suffix == ".npy" else None
        stored = np.load(file, mmap_mode=mode, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return {"x": stored}
        with stored:
            return {name: stored[name] for name in stored.files}
    # Damaged headers and archives raise errors of a dozen kinds, no memory for what
    # they claim among them.
    except Exception as error:
        objects = "Object arrays" in str(error) or "Python objects" in str(error)
        fault = "holds Python objects, not numbers" if objects else "cannot be read"
        raise ValueError(f"{file} {fault}: {error}") from error


def _examples(
    file: pathlib.Path, stored: dict[str, np.ndarray], dtype: Any
) -> np.ndarray:
    """The examples among the arrays stored at `file`, checked, as `dtype`."""
    names = [name for name in _EXAMPLE_NAMES if name in stored] or list(stored)
    checks.require(
        len(names) == 1,
        f"{file} must hold one array, or an 'x', 'images' or 'data'; got {[*stored]}",
    )
    x = stored[names[0]]
    checks.require(
        x.ndim >= 2 and x.size,
        f"{file} must have rank 2 or more and at least one example, got {x.shape}",
    )
    return _real(file, names[0], x, dtype)


def _real(file: pathlib.Path, name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """An array of finite real numbers as `dtype`, or unchanged for None.

    Raises ValueError unless the numbers are real and finite, and differ in
    that type too.
    """
    where = f"{file}: {name!r}"
    real = array.dtype.kind in "iuf"
    checks.require(real, f"{where} must hold real numbers, got dtype {array.dtype}")
    if dtype is None:
        for piece in pieces(array) if array.dtype.kind == "f" else ():
            checks.finite(where, piece)
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
    checks.finite(where, converted)
    if np.can_cast(array.dtype, converted.dtype):
        return converted
    if converted.dtype.kind in "iu":
        extent = f"{array.min()} to {array.max()}" if array.size else "none"
        same = np.array_equal(converted, array)
        checks.require(same, f"{where} must fit {converted.dtype}, got {extent}")
        return converted
    _raise_if_rounded(file, name, array, converted)
    return converted


def _raise_if_rounded(file, name, array, converted):
    """Raise ValueError if a conversion rounds by a good part of the spread."""
    axis = 0 if array.ndim == 2 else None
    # Relative to the least value, so that integers and times far from 0 lose
    # nothing before they are compared.
    above = (array - array.min(axis)).astype(np.float64)
    # Relative to the largest, so that the squares in the spread do not
    # underflow.
    largest = above.max(axis)
    spread = largest * (above / np.where(largest > 0, largest, 1)).std(axis)
    rounding = np.abs(converted.astype(np.float64) - array.astype(np.float64)).max(axis)
    rounded = (spread > 0) & (rounding > _ROUNDING * spread)
    if not np.any(rounded):
        return
    first = int(np.argmax(rounded))
    if axis == 0:
        where, start = f"column {first} of {name!r}", array[0, first]
    else:
        where, start = repr(name), array.flat[0]
    raise ValueError(
        f"{file}: {where} varies too little about {start} for {converted.dtype}, which "
        f"rounds it by up to {np.ravel(rounding)[first]:.3g}; choose dtype=np.float64, "
        "or subtract an offset"
    )
