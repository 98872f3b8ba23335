"""Training data of grain: ArrayRecord, Parquet, parallel reading and decoding."""

import importlib.metadata
import itertools
import json
import sys
from typing import Any

import jax
import numpy as np

from ... import checks
from ...types import PyTree

__all__ = ["GrainSource"]

_STATES = 8
"""Number of states that are kept: of the block that trains, and those read ahead."""


class GrainSource:
    """Batches of a data set of grain, whose threads read and decode ahead.

    The data set yields single examples, pytrees of arrays. A `MapDataset` is
    repeated without end, and shuffled anew in each epoch where it has a
    `shuffle`. Its position is the step alone, as for `Batches`: a batch may
    straddle epochs.

    An `IterDataset`, such as one of Parquet files, has no random access. It too
    is repeated without end, each time in the same order. To go on from a step
    it reads and drops the examples before. With `Checkpoints(source=)` the
    state of its iterator is in the checkpoints, and it drops none, for grain's
    own transformations. The batches are the same.

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
        self._states: dict[int, Any] = {}  # of the iterator, by step

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
            if not self._random_access:
                self._record()
            return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        except BaseException:
            self._close()  # The next call starts at its step again.
            raise

    def position(self, step: int) -> Any:
        """The state of the iterator at a step, or at one of the last before it.

        Args:
          step: A step up to which batches were read.

        Returns:
          A JSON value. None for a `MapDataset`, whose position is the step, and
          for iterators without a state.
        """
        states = dict(self._states)  # to which a thread may add
        nearest = max((n for n in states if n <= step), default=None)
        if nearest is None:
            return None
        return {"step": nearest, "state": states[nearest], "grain": _version()}

    def continue_from(self, position: Any) -> None:
        """Go on from a position, unless it is of another version of grain.

        Args:
          position: As `position` returned it, perhaps in another process.
        """
        if position is not None and position["grain"] == _version():
            self._close()
            self._states = {position["step"]: position["state"]}

    def _record(self) -> None:
        """Record the state of the iterator, at the step that is next."""
        try:
            state = json.dumps(self._iterator.get_state())
        except (AttributeError, NotImplementedError, TypeError):
            return  # one of the user's, without a state
        self._states[self._next] = json.loads(state)
        while len(self._states) > _STATES:
            del self._states[next(iter(self._states))]

    def _iterator_at(self, step: int) -> Any:
        if self._iterator is not None and self._next == step:
            return self._iterator
        if self._random_access:
            self._close()
            rest = self._dataset.slice(slice(step, None))
            return iter(rest.to_iter_dataset(self._options))
        if self._iterator is None or step < self._next:
            self._close()
            self._iterator = iter(self._dataset)
            self._next = max((n for n in self._states if n <= step), default=0)
            if self._next:
                self._iterator.set_state(self._states[self._next])
        for _ in itertools.islice(self._iterator, step - self._next):
            pass
        return self._iterator

    def _close(self) -> None:
        """End the threads of the iterator."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def _version() -> str:
    """The version of grain, which alone can read its states."""
    return importlib.metadata.version("grain")
