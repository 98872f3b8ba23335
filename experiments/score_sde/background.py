"""Compilation in a thread while something else runs. XLA compiles without holding
Python's lock.
"""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax

from diffjax.training.interrupts import Call


class Ahead:
    """A thread for programs that are needed later, used as a context manager.

    Leaving the context waits for the task that has begun and drops the others.
    A run that a signal stops does not wait.

    Example:
      >>> with Ahead() as ahead:
      ...     program = ahead.compile(function, *arguments)
      ...     train()
      ...     values = program(*arguments)
    """

    def __enter__(self) -> "Ahead":
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._left = False
        self._thread = Call(self._work)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._left = True
        self._tasks.put(None)
        if kind is None or issubclass(kind, Exception):
            self._thread.result()

    def submit(self, function: Callable, *arguments: Any) -> Future:
        """Call function(*arguments) in the thread, after what was submitted before."""
        future: Future = Future()
        self._tasks.put((future, function, arguments))
        return future

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function, arguments = task
            if self._left:
                future.cancel()
                continue
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

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
