"""Batches by step number, and arrays of one's own from .npy and .npz files."""

import pathlib
import zipfile
from typing import Any

import jax
import numpy as np

from .. import checks
from ..types import PyTree

_EXAMPLE_NAMES = ("x", "images", "data")
_LABEL_NAMES = ("y", "labels")


class Batches:
    """Batches of `arrays` by step number: the position in the data is the step alone, never a history.

    Epoch e visits the examples in the order of `numpy.random.default_rng([seed, e]).permutation`; the stream of all
    epochs is cut into batches of `batch_size`, so that a batch may straddle epochs and each example comes exactly
    once in each.
    arrays: a pytree of numpy arrays (memory maps too) with the same leading axis, the number of examples.
    Raises ValueError for unequal leading axes, no examples, or a batch size or seed out of range.
    """

    def __init__(self, arrays: PyTree, batch_size: int, seed: int = 0):
        self.examples = _leading_axis("arrays", arrays)
        self.arrays = jax.tree.map(np.asanyarray, arrays)
        self.batch_size = checks.integer("batch_size", batch_size, 1)
        self.seed = checks.integer("seed", seed, 0, None)
        self._orders: dict[int, np.ndarray] = {}

    def at(self, step: int) -> PyTree:
        """The batch of step `step` = 0, 1, …: leaves (batch_size, ...)."""
        return jax.tree.map(lambda leaf: leaf[0], self.block(step, 1))

    def block(self, step: int, count: int) -> PyTree:
        """The batches of steps step, …, step + count − 1, stacked: leaves (count, batch_size, ...)."""
        step, count = (
            checks.integer("step", step, 0, 2**62),
            checks.integer("count", count, 1),
        )
        chosen = self._indices(step * self.batch_size, (step + count) * self.batch_size)
        shape = (count, self.batch_size)
        return jax.tree.map(
            lambda leaf: np.asarray(leaf[chosen]).reshape(shape + leaf.shape[1:]),
            self.arrays,
        )

    def _indices(self, start: int, stop: int) -> np.ndarray:
        """The examples at positions start, …, stop − 1 of the stream."""
        parts = []
        for epoch in range(start // self.examples, (stop - 1) // self.examples + 1):
            offset = epoch * self.examples
            parts.append(self._order(epoch)[max(start - offset, 0) : stop - offset])
        return np.concatenate(parts)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            while (
                len(self._orders) > 1
            ):  # two epochs are enough for batches in sequence
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(
                self.examples
            )
        return self._orders[epoch]


def load(path: str | pathlib.Path, *, dtype: Any = np.float32) -> np.ndarray:
    """Examples stored in a .npy or .npz file.

    Values keep their units (8-bit images stay in 0…255).

    Args:
      path: A .npy file of one array of rank 2 or more, or an .npz file of one array, or of
        several of which one is named `x`, `images` or `data`. The leading axis is that of the
        examples.
      dtype: Type of the result. None keeps the stored one.

    Returns:
      The examples (N, ...), N ≥ 1.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is neither .npy nor .npz, cannot be read, is empty, has a rank
        below 2, or does not hold finite real numbers (objects are never unpickled). Also if
        `dtype` would round values by more than a thousandth of their standard deviation, over
        a column of a table (N, D) and over the whole array otherwise.

    Example:
      >>> np.save("times.npy", 1.7e9 + np.arange(6.0).reshape(3, 2))  # float32 cannot tell them apart
      >>> dj.training.load("times.npy", dtype=np.float64).shape
      (3, 2)
    """
    path = pathlib.Path(path)
    return _examples(path, _read(path), dtype)


def load_labelled(
    path: str | pathlib.Path, *, dtype: Any = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Examples and labels stored in an .npz file.

    Args:
      path: A file as of `load`, with labels (N, ...) in an array named `y` or `labels`.
      dtype: Type of the examples, and of labels that are no integers. None keeps the stored one.

    Returns:
      (examples, labels). Integer labels are int32.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: As `load`, and if labels are missing, are not N, or do not fit int32.

    Example:
      >>> np.savez("images.npz", x=np.zeros((3, 8, 8)), y=[0, 1, 1])
      >>> images, classes = dj.training.load_labelled("images.npz")
      >>> images.shape, classes.tolist()
      ((3, 8, 8), [0, 1, 1])
    """
    path = pathlib.Path(path)
    stored = _read(path)
    x = _examples(path, stored, dtype)
    names = [name for name in _LABEL_NAMES if name in stored]
    if not names:
        raise ValueError(
            f"{path} must be an .npz with labels named 'y' or 'labels', got arrays {sorted(stored)}"
        )
    labels = stored[names[0]]
    if labels.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"{path}: {names[0]!r} must have {len(x)} entries, one an example, got shape {labels.shape}"
        )
    labels = _real(
        path, names[0], labels, np.int32 if labels.dtype.kind in "iu" else dtype
    )
    return x, labels


def split(
    arrays: PyTree, held_out: int | float, seed: int = 0
) -> tuple[PyTree, PyTree]:
    """(training, held-out): a random split of the leading axis, the same for the same seed and number of examples.

    arrays: a pytree of arrays (N, ...). held_out: how many examples (an integer), or which fraction of N
    (a float in (0, 1), rounded); both parts must keep at least one.
    """
    examples = _leading_axis("arrays", arrays)
    count: Any = held_out
    if isinstance(held_out, float) and 0.0 < held_out < 1.0:
        count = round(held_out * examples)
    if (
        isinstance(count, bool)
        or not isinstance(count, int | np.integer)
        or not 0 < count < examples
    ):
        raise ValueError(
            f"held_out must be a count between 1 and {examples - 1} or a fraction in (0, 1) that leaves both parts "
            f"at least one of {examples} examples, got {held_out!r}"
        )
    order = np.random.default_rng(checks.integer("seed", seed, 0, None)).permutation(
        examples
    )
    held, training = np.sort(order[:count]), np.sort(order[count:])
    take = lambda chosen: jax.tree.map(lambda leaf: np.asanyarray(leaf)[chosen], arrays)
    return take(training), take(held)


def _leading_axis(name: str, arrays: PyTree) -> int:
    """The number of examples, the leading axis that all leaves share."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    if not leaves:
        raise ValueError(f"{name} must hold at least one array, got {arrays!r}")
    shapes = {
        name + jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves
    }
    if (
        any(shape == () for shape in shapes.values())
        or len({shape[0] for shape in shapes.values()}) != 1
    ):
        raise ValueError(
            f"{name} must have one leading axis in common, the examples; got shapes {shapes}"
        )
    examples = next(iter(shapes.values()))[0]
    if examples == 0:
        raise ValueError(f"{name} must hold at least one example, got shapes {shapes}")
    return examples


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays stored at `path` by name; the one of an .npy is called 'x'."""
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(
            f"{path} must be a .npy or .npz file, got suffix {path.suffix!r}"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file: data must be an existing .npy or .npz file"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return {"x": stored}
        with stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        what = (
            "holds Python objects, not numbers"
            if "Object arrays" in str(error)
            else "cannot be read"
        )
        raise ValueError(f"{path} {what}: {error}") from error


def _examples(
    path: pathlib.Path, stored: dict[str, np.ndarray], dtype: Any
) -> np.ndarray:
    """The examples among the arrays stored at `path`, checked, as `dtype`."""
    names = [name for name in _EXAMPLE_NAMES if name in stored] or list(stored)
    if len(names) != 1:
        raise ValueError(
            f"{path} must hold one array, or one named 'x', 'images' or 'data'; got {sorted(stored)}"
        )
    x = stored[names[0]]
    if x.ndim < 2:
        raise ValueError(
            f"{path} must hold an array (examples, ...) of rank 2 or more, got shape {x.shape}"
        )
    if x.size == 0:
        raise ValueError(f"{path} must hold at least one example, got shape {x.shape}")
    return _real(path, names[0], x, dtype)


_ROUNDING = 1e-3
"""Greatest rounding error of a conversion, relative to the standard deviation."""


def _real(path: pathlib.Path, name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """`array` as `dtype` (None: unchanged), raising ValueError unless real, finite and kept apart by that type."""
    if array.dtype.kind not in "iuf":
        raise ValueError(
            f"{path}: {name!r} must hold real numbers, got dtype {array.dtype}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array if dtype is None else array.astype(dtype)
    nan, bad = (
        int(np.isnan(array).sum()),
        int(array.size - np.isfinite(converted).sum()),
    )
    if bad:
        raise ValueError(
            f"{path}: {name!r} must be finite, got {nan} NaN and {bad - nan} infinite of {array.size}"
        )
    if np.can_cast(array.dtype, converted.dtype):
        return converted
    if converted.dtype.kind in "iu":
        if not np.array_equal(converted, array):
            raise ValueError(
                f"{path}: {name!r} must fit {converted.dtype}, got {array.min()} to {array.max()}"
            )
        return converted
    axis = 0 if array.ndim == 2 else None
    # from the least value, so that integers and times far from 0 lose nothing before they are compared
    above = (array - array.min(axis)).astype(np.float64)
    largest = above.max(axis)
    spread = largest * (above / np.where(largest > 0, largest, 1)).std(
        axis
    )  # of numbers whose squares do not vanish
    rounding = np.abs(converted.astype(np.float64) - array.astype(np.float64)).max(axis)
    rounded = (spread > 0) & (rounding > _ROUNDING * spread)
    if np.any(rounded):
        first = int(np.argmax(rounded))
        where, start = (
            (f"column {first} of {name!r}", array[0, first])
            if axis == 0
            else (repr(name), array.flat[0])
        )
        raise ValueError(
            f"{path}: {where} varies too little about {start} for {converted.dtype}, which rounds it by up to "
            f"{np.ravel(rounding)[first]:.3g}; choose dtype=np.float64, or subtract an offset"
        )
    return converted
