"""Compilation in a thread while something else runs. XLA compiles without holding
Python's lock.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax


class Ahead:
    """A thread for programs that are needed later, used as a context manager.

    Leaving the context waits for the task that has begun and drops the others,
    so that a run that is stopped ends soon.

    Example:
      >>> with Ahead() as ahead:
      ...     program = ahead.compile(function, *arguments)
      ...     train()
      ...     values = program(*arguments)
    """

    def __enter__(self) -> "Ahead":
        self._thread = ThreadPoolExecutor(1, "ahead")
        return self

    def __exit__(self, *_) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def submit(self, function: Callable, *arguments: Any) -> Future:
        """Call function(*arguments) in the thread, after what was submitted before."""
        return self._thread.submit(function, *arguments)

    def compile(self, function: Callable, *arguments: Any) -> Callable:
        """Compile `function` in the thread.

        Args:
          function: A function of pytrees of arrays.
          *arguments: Arrays, or `jax.ShapeDtypeStruct`s, of the shapes that it
            will be called with.

        Returns:
          The compiled function. Its first call waits for the thread, and
            raises what compiling raised.
        """
        future = self.submit(lambda: jax.jit(function).lower(*arguments).compile())
        return lambda *values: future.result()(*values)
