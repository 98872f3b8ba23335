"""Blocks of a training run: how many steps each has, and its batches ahead of time."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from .. import checks
from . import parallel
from .data import Prefetch, SharedSource

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
        batches: Any,
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
        self._rows = None
        if jax.process_count() > 1 and mesh is not None:
            if isinstance(batches, SharedSource):
                self._rows = parallel.local_rows(batches.batch_size, mesh)
        source: Any = self
        self._ahead, self._count = Prefetch(source, self._device_put), 0

    def __enter__(self) -> "Blocks":
        self._ahead.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ahead.__exit__(*error)

    def start(self, step: int) -> None:
        """Start to read the block from `step` on, if it is not the end."""
        if step >= self._total:
            return
        ends = [
            (step // length + 1) * length for length in (self._length, self._save_every)
        ]
        self._count = min(*ends, self._total) - step
        self._ahead.start(step, self._count)

    def take(self, stop: Sequence[int] = ()) -> tuple[Any, np.int32] | None:
        """Wait for the block of which `start` was called.

        Args:
          stop: The signals received. The wait ends once there is one.

        Returns:
          Its batches, with leaves (K, B, ...) on the devices, and the number of
          them that are no padding. None after a signal.
        """
        batches = self._ahead.take(lambda: stop)
        return None if batches is None else (batches, np.int32(self._count))

    def singly(self, batches: Any) -> Any:
        """Let all blocks have one step, the first of this one.

        Args:
          batches: A block, of which no step but the first is to be taken.

        Returns:
          It as a block of K = 1. `batches` themselves if the number of steps
          is fixed.
        """
        if not self._timed:
            return batches
        self._size = self._length = 1
        return jax.tree.map(lambda leaf: leaf[:1], batches)

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

    def block(self, step: int, count: int) -> Any:
        """The batches of a block, padded. Called by the thread that reads.

        Args:
          step: Its first step.
          count: Number of its steps.

        Returns:
          Leaves (K, B, ...), of this process's rows if it reads no others.
        """
        fraction, batches, rows = 1.0, self._batches, self._rows
        if rows is None:
            stacked = batches.block(step, count)
        else:
            stacked = batches.share(step, count, rows)
            fraction = len(rows) / batches.batch_size
        _check_count(stacked, step, count)
        if self._size is None:
            # Of the batch alone, so that a resumed run has the same program.
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(stacked)) / count
            fitting = MOST_BYTES * fraction / max(size, 1)
            self._size = min(_power_of_two(fitting), MOST_STEPS)
        size = self._size
        return jax.tree.map(lambda leaf: _padded(leaf, size), stacked)

    def _device_put(self, stacked: Any) -> Any:
        if self._mesh is None:
            with jax.default_device(self._device):
                return jax.device_put(stacked)
        if self._rows is None:
            return parallel.shard_batch(stacked, self._mesh, axis=1)
        size = self._batches.batch_size
        return parallel.global_block(stacked, self._rows, size, self._mesh)


def _power_of_two(bound: float) -> int:
    """The largest power of two that is at most `bound`, and at least 1."""
    return 2 ** max(0, int(bound).bit_length() - 1)


def _check_count(stacked: Any, step: int, count: int) -> None:
    """Raise ValueError unless a source returned `count` batches.

    Zeros would take the place of missing ones.
    """
    leaves = jax.tree_util.tree_leaves_with_path(stacked)
    called = f"batches.block({step}, {count})"
    checks.require(leaves, f"{called} must return arrays, got {stacked!r}")
    for path, leaf in leaves:
        is_array = isinstance(leaf, np.ndarray | jax.Array)
        got = f"shape {leaf.shape}" if is_array else type(leaf).__name__
        checks.require(
            is_array and leaf.shape[:1] == (count,),
            f"{called}{jax.tree_util.keystr(path)} must be an array ({count}, "
            f"batch_size, …), got {got}",
        )


def _padded(leaf: Any, size: int) -> Any:
    """An array (n, ...) as one of (size, ...)."""
    if len(leaf) == size:
        return leaf
    padded = np.zeros((size, *leaf.shape[1:]), leaf.dtype)
    padded[: len(leaf)] = leaf
    return padded
