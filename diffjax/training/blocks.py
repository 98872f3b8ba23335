"""Blocks of a training run: how many steps each has, and its batches ahead of time."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from . import parallel
from .data import Batches, SharedSource
from .interrupts import Call

__all__ = ["Blocks"]

SECONDS = 2.0
"""Time that a block should take."""

MOST_BYTES = 2**25
"""Bytes of the batches of a block, where it has more than one step."""

MOST_STEPS = 1024


class Blocks:
    """The blocks of one run, read in the background.

    All have the same leading axis K, so that one program serves the whole run.
    A block of fewer steps is padded with zeros, which no step sees.

    Args:
      batches: The data, by step number.
      total_steps: Step at which the last block ends.
      block: Number of steps of a block. None for as many as take two seconds.
      save_every: Blocks end at the multiples of this number.
      mesh: The devices over which batches are split, or None.
    """

    def __init__(
        self,
        batches: Batches,
        total_steps: int,
        block: int | None,
        *,
        save_every: int,
        mesh: Mesh | None,
    ):
        self._batches, self._total, self._mesh = batches, total_steps, mesh
        self._save_every, self._timed = save_every, block is None
        self._size = None if block is None else max(1, min(block, total_steps))
        self._length = 1 if block is None else block
        self._device = jax.config.jax_default_device  # each thread has its own
        self._reading: Call | None = None

    def start(self, step: int) -> None:
        """Start to read the block from `step` on, if it is not the end."""
        if step >= self._total:
            return
        ends = [
            (step // length + 1) * length for length in (self._length, self._save_every)
        ]
        self._reading = Call(self._read, step, min(*ends, self._total) - step)

    def take(self, stop: Sequence[int] = ()) -> tuple[Any, np.int32] | None:
        """Wait for the block of which `start` was called.

        Args:
          stop: The signals received. The wait ends once there is one.

        Returns:
          Its batches, with leaves (K, B, ...) on the devices, and the number of
          them that are no padding. None after a signal.
        """
        assert self._reading is not None
        return self._reading.result() if self._reading.wait(stop) else None

    def __enter__(self) -> "Blocks":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The data are at rest afterwards, unless the program is to end.
        if self._reading is not None and (kind is None or issubclass(kind, Exception)):
            self._reading.wait()

    def measured(
        self, count: int, seconds: float, received: Sequence[int], stop: list[int]
    ) -> None:
        """Choose the length of the blocks to come, alike in all processes.

        Args:
          count: Number of steps of the block that has ended.
          seconds: Time that it took.
          received: The signals that this process has received.
          stop: The list to which those of any process are added.
        """
        if jax.process_count() > 1:
            mine = np.array([seconds, max(received, default=0)], np.float32)
            seconds, number = multihost_utils.process_allgather(mine).max(axis=0)
            stop += [int(number)] if number else []
        if self._timed and self._size is not None:
            fitting = SECONDS * count / max(float(seconds), 1e-9)
            self._length = min(_power_of_two(fitting), self._size)

    def _read(self, step: int, count: int) -> tuple[Any, np.int32]:
        batches, rows = self._batches, None
        several = jax.process_count() > 1 and self._mesh is not None
        if several and isinstance(batches, SharedSource):
            rows = parallel.own_rows(batches.batch_size, self._mesh)
            stacked = batches.share(step, count, rows)
        else:
            stacked = batches.block(step, count)
        if self._size is None:
            # Of the batch alone, so that a resumed run has the same program.
            one = sum(leaf.nbytes for leaf in jax.tree.leaves(stacked)) / count
            one *= 1 if rows is None else batches.batch_size / len(rows)
            self._size = min(_power_of_two(MOST_BYTES / max(one, 1)), MOST_STEPS)
        size = self._size
        stacked = jax.tree.map(lambda leaf: _padded(leaf, size), stacked)
        if rows is not None:
            size = batches.batch_size
            placed = parallel.block_of_shares(stacked, rows, size, self._mesh)
        elif self._mesh is not None:
            placed = parallel.shard_batch(stacked, self._mesh, axis=1)
        else:
            with jax.default_device(self._device):
                placed = jax.device_put(stacked)
        return placed, np.int32(count)


def _power_of_two(bound: float) -> int:
    """The largest power of two that is at most `bound`, and at least 1."""
    return 2 ** max(0, int(bound).bit_length() - 1)


def _padded(leaf: Any, size: int) -> Any:
    """An array (n, ...) as one of (size, ...)."""
    if len(leaf) == size:
        return leaf
    padded = np.zeros((size, *leaf.shape[1:]), leaf.dtype)
    padded[: len(leaf)] = leaf
    return padded
