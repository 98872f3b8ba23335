"""Training data of grain: ArrayRecord, Parquet, parallel reading and decoding."""

import itertools
import sys
from typing import Any

import jax
import numpy as np

from ... import checks
from ...types import PyTree

__all__ = ["GrainSource"]


class GrainSource:
    """Batches of a data set of grain, whose threads read and decode ahead.

    The data set yields single examples, pytrees of arrays. A `MapDataset` is
    repeated without end, and shuffled anew in each epoch where it has a
    `shuffle`. Its position is the step alone, as for `Batches`: a batch may
    straddle epochs.

    An `IterDataset`, such as one of Parquet files, has no random access. To go
    on from a step it reads and drops the examples before, which gives the same
    batches and needs no state in checkpoints. It too is repeated without end,
    each time in the same order.

    Args:
      dataset: A `grain.MapDataset` or `grain.IterDataset` of single examples.
        `grain.MapDataset.source(grain.sources.ArrayRecordDataSource(files))`
        reads ArrayRecord.
      batch_size: Number of examples of a batch.
      threads: Number of threads that read a `MapDataset`.
      ahead: Number of batches that they prepare ahead.

    Raises:
      ImportError: If grain is not installed.
      TypeError: If `dataset` is no data set of grain.
      ValueError: If it has no examples, or filters those of a `MapDataset`,
        which leaves steps without data. Also if a number is out of range.

    Example:
      >>> import grain
      >>> images = np.zeros((10, 8, 8, 1), np.uint8)
      >>> dataset = grain.MapDataset.source(images).seed(0).shuffle()
      >>> source = dj.training.GrainSource(dataset, batch_size=4)
      >>> source.block(1000, 2).shape
      (2, 4, 8, 8, 1)
    """

    @checks.arguments(
        batch_size=(checks.integer, 1),
        threads=(checks.integer, 1),
        ahead=(checks.integer, 1),
    )
    def __init__(
        self, dataset: Any, batch_size: int, *, threads: int = 8, ahead: int = 8
    ):
        try:
            import grain
        except ImportError as error:
            raise ImportError("GrainSource needs grain: diffjax[grain]") from error
        kinds = grain.MapDataset | grain.IterDataset
        checks.instance(
            "dataset", dataset, kinds, "a grain.MapDataset or grain.IterDataset"
        )
        self.batch_size = batch_size
        self._random_access = isinstance(dataset, grain.MapDataset)
        # A data set without examples would be repeated forever without any.
        some = len(dataset) if self._random_access else any(True for _ in dataset)
        checks.require(some, "dataset must have examples, got none")
        if self._random_access:
            # One that is endless cannot be repeated.
            endless = len(dataset) > sys.maxsize // 2
            whole = dataset if endless else dataset.repeat()
            self._options = grain.ReadOptions(threads, ahead)
        else:
            whole = grain.experimental.RepeatIterDataset(dataset)
        self._dataset = whole.batch(batch_size, drop_remainder=True)
        self._iterator: Any = None
        self._next = 0

    @checks.arguments(step=(checks.integer, 0, 2**62), count=(checks.integer, 1))
    def block(self, step: int, count: int) -> PyTree:
        """The batches of several steps, stacked.

        Args:
          step: The first step. Steps in sequence are read ahead.
          count: Number of steps.

        Returns:
          A pytree with leaves (count, batch_size, ...).
        """
        self._iterator = self._iterator_at(step)
        self._next = step + count
        try:
            batches = list(itertools.islice(self._iterator, count))
            return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        except BaseException:
            self._close()  # The next call starts at its step again.
            raise

    def _iterator_at(self, step: int) -> Any:
        if self._iterator is not None and self._next == step:
            return self._iterator
        if self._random_access:
            self._close()
            rest = self._dataset.slice(slice(step, None))
            return iter(rest.to_iter_dataset(self._options))
        if self._iterator is None or step < self._next:
            self._iterator, self._next = iter(self._dataset), 0
        for _ in itertools.islice(self._iterator, step - self._next):
            pass
        return self._iterator

    def _close(self) -> None:
        """End the threads of the iterator."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None
