"""Several processes that train one model: their start, and values they agree on.

Each process runs the same program on its own devices, and the devices of all
compute together. Only process 0 touches files. With one process the
functions here only return or call what they are given.
"""

import atexit
import builtins
import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from .. import checks
from .interrupts import Call

__all__ = [
    "AUTO",
    "PATIENCE",
    "agree",
    "any_of",
    "arrays_from_first",
    "from_first",
    "meet",
    "on_first",
    "start_processes",
    "to_host",
    "together",
]

AUTO = "auto"
"""The coordinator that stands for JAX's own detection of a cluster."""

PATIENCE = 60
"""Seconds without a sign of life after which a process counts as dead."""

_ENVIRONMENT = {
    "coordinator": "DIFFJAX_COORDINATOR",
    "count": "DIFFJAX_PROCESSES",
    "index": "DIFFJAX_PROCESS_INDEX",
}
"""The variable that stands in for each argument of `start_processes`."""


def start_processes(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    patience: int = PATIENCE,
) -> int:
    """Join the processes that train together, before JAX is first used.

    Every process calls this, and then runs the same program. Without
    arguments and variables it does nothing. If one process ends early, the
    others raise an error at their next step, at the latest after `patience`
    seconds. A job started again resumes from the last checkpoint.

    Args:
      coordinator: host:port of process 0, which the others can reach. "auto"
        lets JAX find all three values, as it can on TPU slices, under SLURM,
        Open MPI and Kubernetes. None for the variable DIFFJAX_COORDINATOR.
      count: Number of processes. None for DIFFJAX_PROCESSES.
      index: Index of this process, 0, 1, … None for DIFFJAX_PROCESS_INDEX.
      patience: Seconds after which a silent process counts as dead.

    Returns:
      The number of processes.

    Raises:
      ValueError: If some of the three are missing, or one is out of range.
      RuntimeError: If JAX has been used already, or the others do not come.

    Example:
      >>> dj.training.start_processes()  # by the environment, here of one process
      1
    """
    values = {"coordinator": coordinator, "count": count, "index": index}
    for name, variable in _ENVIRONMENT.items():
        if values[name] is None:
            values[name] = os.environ.get(variable)
    coordinator = values["coordinator"]
    if set(values.values()) == {None} or jax.distributed.is_initialized():
        return jax.process_count() if jax.distributed.is_initialized() else 1
    checks.integer("patience", patience, 1)
    # Its handler of SIGTERM would stand in the way of `fit`'s.
    jax.config.update("jax_enable_preemption_service", False)
    if coordinator == AUTO:
        jax.distributed.initialize(heartbeat_timeout_seconds=patience)
        return jax.process_count()
    count, index = _number("count", values), _number("index", values)
    checks.integer("count", count, 1)
    checks.integer("index", index, 0, count - 1)
    if count == 1:
        return 1
    checks.require(
        re.fullmatch(r".+:\d+", coordinator or ""),
        f"coordinator must be host:port or {AUTO!r}, got {coordinator!r}",
    )
    jax.distributed.initialize(
        coordinator, count, index, heartbeat_timeout_seconds=patience
    )
    return count


def _number(name: str, values: dict[str, Any]) -> int:
    """An integer among the arguments and variables."""
    missing = [
        f"{other} (or {_ENVIRONMENT[other]})"
        for other, value in values.items()
        if value is None
    ]
    checks.require(
        not missing,
        f"{' and '.join(missing)} must be given for several processes, got {values}",
    )
    try:
        return int(values[name])
    except ValueError:
        raise ValueError(f"{name} must be an integer, got {values[name]!r}") from None


_LONGEST = 7 * 24 * 3600 * 1000
"""Milliseconds that `meet` waits. Processes that die end it much earlier."""

_meetings = itertools.count()


def meet() -> None:
    """Wait until all processes call this, however long they take.

    Collectives over CPUs fail where one process starts them 30 seconds later than
    another, as after a longer compilation or while process 0 writes. A barrier of
    the coordination service waits as long as all send signs of life.
    """
    client = distributed.global_state.client
    if jax.process_count() > 1 and client is not None:
        # The names must be new, and the same in all processes.
        name = f"diffjax_{next(_meetings)}"
        Call(client.wait_at_barrier, name, _LONGEST).result()


def any_of(value: int) -> int:
    """The greatest of the integers that the processes call this with."""
    if jax.process_count() == 1:
        return value
    meet()
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def agree(value: Any) -> bool:
    """Whether all processes call this with the same JSON value."""
    return not any_of(int(from_first(value) != value))


def from_first(value: Any) -> Any:
    """The value of process 0, a JSON value, in all processes."""
    if jax.process_count() == 1:
        return value
    meet()
    text = json.dumps(value).encode() if jax.process_index() == 0 else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    # One program serves many sizes.
    padded = np.zeros(1 << max(size - 1, 255).bit_length(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(padded)[:size].tobytes())


def on_first(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in process 0 alone.

    Args:
      function: It returns a JSON value.
      *arguments: Its arguments.

    Returns:
      The value, in all processes.

    Raises:
      Exception: That of the function, in all processes. The others than
        process 0 raise one of the same message.
    """
    if jax.process_count() == 1:
        return function(*arguments)
    outcome, failure = None, None
    if jax.process_index() == 0:
        try:
            outcome = {"value": function(*arguments)}
            json.dumps(outcome)  # a value that cannot be sent is an error too
        except Exception as error:
            failure = error
            known = next(filter(_is_plain, type(error).__mro__)).__name__
            outcome = {"error": known, "message": str(error)}
    outcome = from_first(outcome)
    if failure is not None:
        raise failure
    if "error" in outcome:
        kind = getattr(builtins, outcome["error"])
        raise kind(f"in process 0: {outcome['message']}")
    return outcome["value"]


def _is_plain(kind):
    """Whether an error is Python's own and made of a message alone."""
    if getattr(builtins, kind.__name__, None) is not kind:
        return False
    try:
        return str(kind("message")) == "message"
    except TypeError:  # such as UnicodeDecodeError, of five arguments
        return False


def arrays_from_first(arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """The NumPy arrays of process 0 by name, bit for bit, in all processes."""
    if jax.process_count() == 1:
        return arrays or {}
    forms = from_first(
        {name: [list(a.shape), str(a.dtype)] for name, a in (arrays or {}).items()}
    )
    received = {}
    for name, (shape, dtype) in forms.items():
        array = np.zeros(shape, dtype) if arrays is None else arrays[name]
        # As bytes: the sum over processes turns -0.0 to 0.0.
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        flat = np.asarray(multihost_utils.broadcast_one_to_all(flat))
        received[name] = flat.view(np.dtype(dtype)).reshape(shape)
    return received


def to_host(tree: Any) -> Any:
    """A pytree of arrays as NumPy arrays, whole in every process.

    Every process must call it, as devices of all may hold a part.

    Args:
      tree: A pytree of arrays without keys.

    Returns:
      The pytree. Its arrays share no buffer with a device.
    """

    meet()

    def whole(leaf):
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.array(leaf)

    return jax.tree.map(whole, tree)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raise RuntimeError where another process has ended.

    JAX would wait for that one when this process ends, and then abort it. So
    from then on this process ends with status 1 as soon as it can.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        atexit.register(_exit)
        reason = str(error).strip().partition("\n")[0][:300]
        raise RuntimeError(
            f"process {jax.process_index()} of {jax.process_count()} cannot go on, as "
            f"another process has ended or cannot be reached ({reason}); start all "
            "processes again, which resume from the last checkpoint"
        ) from error


def _exit() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
