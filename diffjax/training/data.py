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
        self.seed = checks.integer("seed", seed, 0)
        self._orders: dict[int, np.ndarray] = {}

    def at(self, step: int) -> PyTree:
        """The batch of step `step` = 0, 1, …: leaves (batch_size, ...)."""
        return jax.tree.map(lambda leaf: leaf[0], self.block(step, 1))

    def block(self, step: int, count: int) -> PyTree:
        """The batches of steps step, …, step + count − 1, stacked: leaves (count, batch_size, ...)."""
        step, count = checks.integer("step", step, 0), checks.integer("count", count, 1)
        chosen = self._indices(step * self.batch_size, (step + count) * self.batch_size)
        shape = (count, self.batch_size)
        return jax.tree.map(lambda leaf: np.asarray(leaf[chosen]).reshape(shape + leaf.shape[1:]), self.arrays)

    def _indices(self, start: int, stop: int) -> np.ndarray:
        """The examples at positions start, …, stop − 1 of the stream."""
        parts = []
        for epoch in range(start // self.examples, (stop - 1) // self.examples + 1):
            offset = epoch * self.examples
            parts.append(self._order(epoch)[max(start - offset, 0) : stop - offset])
        return np.concatenate(parts)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            while len(self._orders) > 1:  # two epochs are enough for batches in sequence
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.examples)
        return self._orders[epoch]


def load(path: str | pathlib.Path) -> np.ndarray:
    """The examples stored at `path`, float32 (N, ...), values as they are stored (8-bit images stay in 0…255).

    .npy: one array of rank 2 or more, N ≥ 1. .npz: one array, or the array named `x`, `images` or `data`.
    Raises FileNotFoundError where there is no such file, and ValueError, naming the path, where it is neither .npy nor
    .npz, cannot be read, is empty, has a rank below 2, is not of real numbers (objects are never unpickled), or holds
    NaN or infinity.
    """
    path = pathlib.Path(path)
    return _examples(path, _read(path))


def load_labelled(path: str | pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The examples, as `load` returns them, and the labels of an .npz: array `y` or `labels`, leading axis N.

    Integer labels come as int32, real ones as float32. Raises as `load` does, and ValueError where labels are missing
    or are not N.
    """
    path = pathlib.Path(path)
    stored = _read(path)
    x = _examples(path, stored)
    names = [name for name in _LABEL_NAMES if name in stored]
    if not names:
        raise ValueError(f"{path} must be an .npz with labels named 'y' or 'labels', got arrays {sorted(stored)}")
    labels = stored[names[0]]
    if labels.shape[:1] != x.shape[:1]:
        raise ValueError(f"{path}: {names[0]!r} must have {len(x)} entries, one an example, got shape {labels.shape}")
    labels = _real(path, names[0], labels)
    return x, labels


def split(arrays: PyTree, held_out: int | float, seed: int = 0) -> tuple[PyTree, PyTree]:
    """(training, held-out): a random split of the leading axis, the same for the same seed and number of examples.

    arrays: a pytree of arrays (N, ...). held_out: how many examples (an integer), or which fraction of N
    (a float in (0, 1), rounded); both parts must keep at least one.
    """
    examples = _leading_axis("arrays", arrays)
    count: Any = held_out
    if isinstance(held_out, float) and 0.0 < held_out < 1.0:
        count = round(held_out * examples)
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 0 < count < examples:
        raise ValueError(
            f"held_out must be a count between 1 and {examples - 1} or a fraction in (0, 1) that leaves both parts "
            f"at least one of {examples} examples, got {held_out!r}"
        )
    order = np.random.default_rng(checks.integer("seed", seed, 0)).permutation(examples)
    held, training = np.sort(order[:count]), np.sort(order[count:])
    take = lambda chosen: jax.tree.map(lambda leaf: np.asanyarray(leaf)[chosen], arrays)  # noqa: E731
    return take(training), take(held)


def _leading_axis(name: str, arrays: PyTree) -> int:
    """The number of examples, the leading axis that all leaves share."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    if not leaves:
        raise ValueError(f"{name} must hold at least one array, got {arrays!r}")
    shapes = {name + jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}
    if any(shape == () for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) != 1:
        raise ValueError(f"{name} must have one leading axis in common, the examples; got shapes {shapes}")
    examples = next(iter(shapes.values()))[0]
    if examples == 0:
        raise ValueError(f"{name} must hold at least one example, got shapes {shapes}")
    return examples


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays stored at `path` by name; the one of an .npy is called 'x'."""
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"{path} must be a .npy or .npz file, got suffix {path.suffix!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return {"x": stored}
        with stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        what = "holds Python objects, not numbers" if "Object arrays" in str(error) else "cannot be read"
        raise ValueError(f"{path} {what}: {error}") from error


def _examples(path: pathlib.Path, stored: dict[str, np.ndarray]) -> np.ndarray:
    """The examples among the arrays stored at `path`, checked, as float32."""
    names = [name for name in _EXAMPLE_NAMES if name in stored] or list(stored)
    if len(names) != 1:
        raise ValueError(f"{path} must hold one array, or one named 'x', 'images' or 'data'; got {sorted(stored)}")
    x = stored[names[0]]
    if x.ndim < 2:
        raise ValueError(f"{path} must hold an array (examples, ...) of rank 2 or more, got shape {x.shape}")
    if x.size == 0:
        raise ValueError(f"{path} must hold at least one example, got shape {x.shape}")
    return _real(path, names[0], x, np.float32)


def _real(path: pathlib.Path, name: str, array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """`array` as `dtype` (None: int32 for integers, float32 for reals), refused unless real and finite."""
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {name!r} must hold real numbers, got dtype {array.dtype}")
    if dtype is None:
        dtype = np.float32 if array.dtype.kind == "f" else np.int32
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    nan, bad = int(np.isnan(array).sum()), int(array.size - np.isfinite(converted).sum())
    if bad:
        raise ValueError(f"{path}: {name!r} must be finite, got {nan} NaN and {bad - nan} infinite of {array.size}")
    return converted
