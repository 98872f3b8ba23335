"""Batches by step number, splits, and the user's arrays from .npy and .npz files."""

import pathlib
import zipfile
from typing import Any

import jax
import numpy as np

from .. import checks
from ..types import PyTree

__all__ = ["Batches", "load", "load_labelled", "split"]

_EXAMPLE_NAMES = ("x", "images", "data")
_LABEL_NAMES = ("y", "labels")

_ROUNDING = 1e-3
"""Greatest accepted rounding error of a conversion, in standard deviations."""


class Batches:
    """Batches of arrays by step number.

    The position in the data is the step alone, never a history. Epoch e visits
    the examples in the order of `numpy.random.default_rng([seed,
    e]).permutation`. The stream of all epochs is cut into batches of
    `batch_size`, so that a batch may straddle epochs and each example comes
    exactly once in each.

    Args:
      arrays: A pytree of NumPy arrays (memory maps too) with the same leading
        axis, the number of examples.
      batch_size: Number of examples of a batch.
      seed: Seed of the orders, at least 0.

    Raises:
      ValueError: If leading axes differ, there are no examples, or a number is
        out of range.

    Example:
      >>> batches = dj.training.Batches({"x": np.zeros((10, 2))}, batch_size=4)
      >>> batches.at(0)["x"].shape
      (4, 2)
    """

    @checks.arguments(batch_size=(checks.integer, 1), seed=(checks.integer, 0, None))
    def __init__(self, arrays: PyTree, batch_size: int, seed: int = 0):
        self.examples = _leading_axis("arrays", arrays)
        self.arrays = jax.tree.map(np.asanyarray, arrays)
        self.batch_size = batch_size
        self.seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def at(self, step: int) -> PyTree:
        """The batch of step 0, 1, …, with leaves (batch_size, ...)."""
        return jax.tree.map(lambda leaf: leaf[0], self.block(step, 1))

    @checks.arguments(step=(checks.integer, 0, 2**62), count=(checks.integer, 1))
    def block(self, step: int, count: int) -> PyTree:
        """The batches of several steps, stacked.

        Args:
          step: The first step.
          count: Number of steps.

        Returns:
          A pytree with leaves (count, batch_size, ...).
        """
        chosen = self._indices(step * self.batch_size, (step + count) * self.batch_size)

        def take(leaf):
            # (count · batch_size, ...) -> (count, batch_size, ...)
            shape = (count, self.batch_size, *leaf.shape[1:])
            return np.asarray(leaf[chosen]).reshape(shape)

        return jax.tree.map(take, self.arrays)

    def _indices(self, start: int, stop: int) -> np.ndarray:
        """The examples at positions start, …, stop − 1 of the stream."""
        parts = []
        for epoch in range(start // self.examples, (stop - 1) // self.examples + 1):
            offset = epoch * self.examples
            parts.append(self._order(epoch)[max(start - offset, 0) : stop - offset])
        return np.concatenate(parts)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            # Two epochs are enough for batches in sequence.
            while len(self._orders) > 1:
                self._orders.pop(next(iter(self._orders)))
            generator = np.random.default_rng([self.seed, epoch])
            self._orders[epoch] = generator.permutation(self.examples)
        return self._orders[epoch]


def load(file: str | pathlib.Path, *, dtype: Any = np.float32) -> np.ndarray:
    """Examples stored in a .npy or .npz file.

    Values keep their units (8-bit images stay in 0…255).

    Args:
      file: A .npy file of one array of rank 2 or more, or an .npz file of one
        array, or of several of which one is named `x`, `images` or `data`. The
        leading axis is that of the examples.
      dtype: Type of the result. None keeps the stored one.

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
    return _examples(file, _read(file), dtype)


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


@checks.arguments(seed=(checks.integer, 0, None))
def split(
    arrays: PyTree, held_out: int | float, seed: int = 0
) -> tuple[PyTree, PyTree]:
    """Random split of the leading axis.

    It depends on the seed and the number of examples only.

    Args:
      arrays: A pytree of arrays (N, ...).
      held_out: Number of examples that are held out (an integer), or fraction
        of N (a float in (0, 1), rounded). Both parts must keep at least one.
      seed: Seed of the split, at least 0.

    Returns:
      (training, held-out), each in the stored order.

    Raises:
      ValueError: If leading axes differ, or a part would be empty.

    Example:
      >>> training, held_out = dj.training.split(np.zeros((10, 2)), 0.2)
      >>> len(training), len(held_out)
      (8, 2)
    """
    examples = _leading_axis("arrays", arrays)
    count: Any = held_out
    if isinstance(held_out, float) and 0.0 < held_out < 1.0:
        count = round(held_out * examples)
    integral = isinstance(count, int | np.integer) and not isinstance(count, bool)
    checks.require(
        integral and 0 < count < examples,
        f"held_out must be between 1 and {examples - 1}, or such a fraction of "
        f"{examples}, got {held_out!r}",
    )
    order = np.random.default_rng(seed).permutation(examples)
    held, training = np.sort(order[:count]), np.sort(order[count:])
    take = lambda chosen: jax.tree.map(lambda leaf: np.asanyarray(leaf)[chosen], arrays)
    return take(training), take(held)


def _leading_axis(name: str, arrays: PyTree) -> int:
    """The number of examples, the leading axis that all leaves share."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    shapes = {
        name + jax.tree_util.keystr(key_path): np.shape(leaf)
        for key_path, leaf in leaves
    }
    # The first axis of every leaf, () where it has none.
    counts = {shape[:1] for shape in shapes.values()}
    checks.require(
        len(counts) == 1 and counts.isdisjoint({(), (0,)}),
        f"{name} must have one leading axis in common, of at least 1, got {shapes}",
    )
    return counts.pop()[0]


# ---- files of arrays


def _read(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays stored at `file` by name. The one of an .npy is called 'x'."""
    message = f"{file} is not a file: data must be an existing .npy or .npz file"
    stored_as = file.suffix in (".npy", ".npz")
    checks.require(stored_as, f"{file} must be a .npy or .npz file")
    checks.require(file.is_file(), message, FileNotFoundError)
    checks.require(file.stat().st_size, f"{file} is empty (0 bytes)")
    try:
        stored = np.load(file, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return {"x": stored}
        with stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        objects = "Object arrays" in str(error)
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
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array if dtype is None else array.astype(dtype)
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
