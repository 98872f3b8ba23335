"""Experiments: one folder per question, run as `python -m experiments.NAME`.

`--help` lists the flags of an experiment. Parts that several experiments use
are in `experiments.shared`.
"""

import os
import signal
import sys


def stop_at_once(number, frame):
    """End the process at once, as nothing needs saving before the start."""
    os.write(2, b"\nstopped before the start\n")
    os._exit(130)


# While `python -m` looks for the module to run, sys.argv is ["-m"]. The
# imports of that module take seconds, in which an interrupt must not show a
# traceback.
if sys.argv[:1] == ["-m"]:
    for _descriptor in (0, 1, 2):
        try:
            os.fstat(_descriptor)
        except OSError:
            # A closed descriptor: the next file opened would get its number,
            # and receive all that is printed.
            os.open(os.devnull, os.O_RDWR)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop_at_once)
