"""Batches by step number, their protocol, and splits."""

import abc
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from ... import checks
from ...types import PyTree

__all__ = [
    "Batches",
    "Examples",
    "PositionedSource",
    "Rows",
    "SharedSource",
    "Source",
    "split",
]


@runtime_checkable
class Source(Protocol):
    """Training data, as `fit` reads them: the batches of given steps.

    The position in the data is the step alone. `block` returns the same
    batches for the same steps, whatever was read before, so that a resumed run
    goes on bit for bit. Randomness comes from seeds made of the step.

    Attributes:
      batch_size: Number of examples of a batch.

    Example:
      >>> class Gaussian:
      ...     batch_size = 4
      ...
      ...     def block(self, step, count):
      ...         def draw(n):
      ...             return np.random.default_rng([7, n]).normal(size=(4, 2))
      ...
      ...         return np.stack([draw(n) for n in range(step, step + count)])
      >>> source = Gaussian()
      >>> isinstance(source, dj.training.Source), source.block(0, 8).shape
      (True, (8, 4, 2))
    """

    batch_size: int

    def block(self, step: int, count: int) -> PyTree:
        """The batches of steps step, …, step + count − 1, stacked.

        Args:
          step: The first step, at least 0.
          count: Number of steps, at least 1.

        Returns:
          A pytree of NumPy arrays with leaves (count, batch_size, ...).
        """
        ...


@runtime_checkable
class SharedSource(Source, Protocol):
    """A source whose rows are divided among several processes.

    A source without `share` is read whole by each process.
    """

    def share(self, step: int, count: int, rows: Any) -> PyTree:
        """Some rows of each batch of `block`.

        Args:
          step: The first step.
          count: Number of steps.
          rows: Positions in the batch, increasing integers (n,).

        Returns:
          A pytree with leaves (count, n, ...).
        """
        ...


@runtime_checkable
class PositionedSource(Source, Protocol):
    """A source that goes on from a stored position without reading all before.

    Its batches are the same without the position. `Checkpoints(source=)` saves
    and restores it.
    """

    def position(self, step: int) -> Any:
        """Where the batches from a step on begin, or earlier ones.

        Args:
          step: A step up to which batches were read.

        Returns:
          A JSON value. None where the step alone is the position.
        """
        ...

    def continue_from(self, position: Any) -> None:
        """Go on from a position.

        Args:
          position: As `position` returned it, perhaps in another process.
        """
        ...


class Examples(abc.ABC):
    """Examples that are read from storage when they are indexed.

    `Batches` takes them in place of arrays.

    Attributes:
      shape: (N, ...).
      dtype: The type of an entry.
      digest: Hexadecimal digits that identify the examples, or None where only
        their values do.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    digest: str | None = None

    @abc.abstractmethod
    def __getitem__(self, rows: Any) -> np.ndarray:
        """The examples of some rows: an integer, a slice or integers (M,)."""

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class Rows(Examples):
    """Some rows of an array, which are read when they are indexed.

    They give the training part of a memory map without a copy.

    Args:
      array: An array (N, ...), a memory map, or other `Examples`.
      rows: Integers (M,) in [0, N), M at least 1.

    Raises:
      ValueError: If a row lies outside of the array, or there are none.

    Example:
      >>> images = dj.training.Rows(np.arange(12).reshape(6, 2), [5, 0])
      >>> images.shape, images[0].tolist()
      ((2, 2), [10, 11])
    """

    def __init__(self, array: Any, rows: Any):
        rows = np.asarray(rows)
        inside = rows.ndim == 1 and rows.size and rows.dtype.kind in "iu"
        checks.require(
            inside and 0 <= rows.min() <= rows.max() < len(array),
            f"rows must be integers (M,) in [0, {len(array)}), M ≥ 1, got {rows!r}",
        )
        self.array, self.rows = array, rows
        self.shape, self.dtype = (len(rows), *array.shape[1:]), array.dtype

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.asarray(self.array[self.rows[rows]])


class Batches:
    """Batches of arrays by step number.

    The position in the data is the step alone, never a history. Epoch e visits
    the examples in the order of `numpy.random.default_rng([seed,
    e]).permutation`. The stream of all epochs is cut into batches of
    `batch_size`, so that a batch may straddle epochs and each example comes
    exactly once in each.

    Args:
      arrays: A pytree of arrays, memory maps or `Examples` with the same
        leading axis, the number of examples. Batches keep their dtype, so that
        bytes are bytes until the device converts them.
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
        self.arrays = jax.tree.map(_indexable, arrays)
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
        return self.share(step, count, slice(None))

    def share(self, step: int, count: int, rows: Any) -> PyTree:
        """Some rows of each batch of `block`. No other example is read.

        Args:
          step: The first step.
          count: Number of steps.
          rows: Positions in the batch, integers (n,), or a slice of them.

        Returns:
          A pytree with leaves (count, n, ...).
        """
        chosen = self._indices(step * self.batch_size, (step + count) * self.batch_size)
        chosen = chosen.reshape(count, self.batch_size)[:, rows]

        def take(leaf):
            taken = np.asarray(leaf[chosen.reshape(-1)])
            # Devices know no swapped bytes, which files may have.
            taken = taken.astype(taken.dtype.newbyteorder("="), copy=False)
            # (count · n, ...) -> (count, n, ...)
            return taken.reshape(*chosen.shape, *leaf.shape[1:])

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
    take = lambda chosen: jax.tree.map(lambda leaf: _indexable(leaf)[chosen], arrays)
    return take(training), take(held)


def _indexable(leaf: Any) -> Any:
    """The leaf, as an array unless it is read when indexed."""
    return leaf if isinstance(leaf, Examples) else np.asanyarray(leaf)


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
