"""Prepares blocks of batches in a thread, while the device works."""

import collections
import concurrent.futures
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import jax

from ... import checks
from ...types import PyTree
from .batches import Source

__all__ = ["Prefetch"]

_POLL = 0.05
"""Seconds between two looks at whether a wait is to end."""


class Prefetch:
    """Blocks of a source, prepared and moved to the device by a thread.

    Use it as a context manager. Blocks are taken in the order in which they
    were started. Two at a time hide the variations of slow storage. Leaving
    the context does not wait for a block in preparation, which is dropped.

    Args:
      source: The data. Only the thread calls it.
      place: Moves a block to the device, such as `jax.device_put`.

    Attributes:
      waited: Seconds that `take` has waited for blocks so far. Divided by the
        duration of training it is the input stall.

    Raises:
      TypeError: If `source` has no `block`, or `place` cannot be called.

    Example:
      >>> source = dj.training.Batches(np.arange(8.0), batch_size=4)
      >>> with dj.training.Prefetch(source) as blocks:
      ...     blocks.start(0, 2)
      ...     for step in (2, 4):
      ...         blocks.start(step, 2)
      ...         block = blocks.take()
      >>> block.shape
      (2, 4)
    """

    @checks.arguments(
        source=(checks.has_methods, "block(step, count)"),
        place=(checks.callable_, "place(block) -> block"),
    )
    def __init__(
        self, source: Source, place: Callable[[PyTree], PyTree] = jax.device_put
    ):
        self.waited = 0.0
        self._source, self._place = source, place
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        self._blocks: collections.deque[concurrent.futures.Future] = collections.deque()
        self._closed = threading.Event()
        # A daemon: a source that hangs does not keep the program from ending.
        self._thread = threading.Thread(
            target=self._work, name="diffjax-prefetch", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._closed.set()
        self._requests.put(None)
        self._thread.join(_POLL)

    def start(self, step: int, count: int) -> None:
        """Begin to prepare a block.

        Args:
          step: Its first step.
          count: Number of its steps.
        """
        block: concurrent.futures.Future = concurrent.futures.Future()
        self._blocks.append(block)
        self._requests.put((block, step, count))

    @property
    def pending(self) -> int:
        """Number of blocks that were started and not taken."""
        return len(self._blocks)

    def take(self, stopped: Callable[[], Any] | None = None) -> PyTree | None:
        """The block that was started first, when it is ready.

        Args:
          stopped: Ends the wait once it returns true, such as after a signal.

        Returns:
          The block, or None if the wait was ended. The block then stays the
          next one.

        Raises:
          ValueError: If no block was started, or outside of the context, where
            none is prepared.
          BaseException: What the source or `place` raised, with its traceback.
        """
        checks.require(self._blocks, "take must follow a start, got no block started")
        began = time.perf_counter()
        try:
            while stopped is None or not stopped():
                try:
                    block = self._blocks[0].result(_POLL)
                except concurrent.futures.TimeoutError:
                    # The source may raise this error too.
                    if self._is_under_way():
                        continue
                    raise
                self._blocks.popleft()
                return block
            return None
        finally:
            self.waited += time.perf_counter() - began

    def _is_under_way(self) -> bool:
        working = self._thread.is_alive()  # read first, as it ends with a block done
        done = self._blocks[0].done()
        outside = "take must be called within `with Prefetch(...)`, got a block outside"
        checks.require(working or done, outside)
        return not done

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            block, step, count = request
            if self._closed.is_set():
                return
            try:
                prepared = self._source.block(step, count)
                # Not after the end, when the device may be gone.
                if self._closed.is_set():
                    return
                block.set_result(self._place(prepared))
            except BaseException as error:
                block.set_exception(error)
                del error
            # No reference keeps a block on the device while the thread waits.
            prepared = request = block = None
