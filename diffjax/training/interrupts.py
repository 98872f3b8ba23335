"""Signals to stop, and slow calls during which they are noticed.

Python runs the handler of a signal in the main thread, between two of its
instructions. While XLA compiles there, or a file is read, none runs. So such
calls are made in threads, for which the main thread waits.
"""

import atexit
import concurrent.futures
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["Call", "deferred_signals", "stopped"]

_STOP = [
    signal.SIGTERM,
    signal.SIGINT,
    *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []),
]

_POLL = 0.1
"""Seconds after which a waiting thread looks for signals."""


class Call:
    """A call in a thread of its own, which does not keep the program alive.

    Args:
      function: What is called.
      *arguments: Its arguments.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self._future: concurrent.futures.Future = concurrent.futures.Future()
        self._call = function, arguments
        _running.add(self)
        threading.Thread(target=self._run, daemon=True).start()

    def wait(self, received: Sequence[int] = ()) -> bool:
        """Wait for the end of the call, or for a signal.

        Args:
          received: As `deferred_signals` yields it. The wait ends once there is
            one.

        Returns:
          Whether the call ended first.
        """
        while not received:
            if concurrent.futures.wait([self._future], _POLL).done:
                return True
        return False

    def result(self) -> Any:
        """Wait for the end, then return or raise as the function did."""
        self.wait()
        return self._future.result()

    def _run(self) -> None:
        function, arguments = self._call
        del self._call
        try:
            self._future.set_result(function(*arguments))
        except BaseException as error:
            self._future.set_exception(error)
        finally:
            _running.discard(self)


_running: set[Call] = set()
_last: list[int] = []
"""The last signal to stop that was received."""


@contextlib.contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect the signals to stop in the list that it yields.

    On leaving, the handlers that stood before are put back.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def receive(number, frame):
        received.append(number)
        _last[:] = [number]
        if number == signal.SIGINT:  # the next Ctrl-C is not deferred
            signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        for number in _STOP:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, receive) or signal.SIG_DFL
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stopped(number: int, step: int) -> BaseException:
    """The exception by which a signal ends a run.

    Args:
      number: The signal.
      step: Number of steps taken.

    Returns:
      KeyboardInterrupt after Ctrl-C, SystemExit(128 + number) otherwise.
    """
    if number == signal.SIGINT:
        return KeyboardInterrupt(f"stopped after {step} steps")
    return SystemExit(128 + number)


def _leave() -> None:
    """End a program that leaves a call under way.

    A thread that compiles cannot be ended, and aborts the program when it
    returns to an interpreter that is gone.
    """
    if _running and _last:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(128 + _last[0])


# Before those that a program registers, so that it runs after them.
atexit.register(_leave)
