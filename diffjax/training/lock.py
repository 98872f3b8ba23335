"""One writer per folder, by a lock file that a dead holder does not keep.

A process counts as alive while a process of its number and start time exists,
so that a recycled number does not keep a lock. A holder on another machine,
whose processes cannot be seen, counts as alive while it touches the file.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ["NAME", "SILENT_AFTER", "TOUCH_EVERY", "Lock"]

NAME = ".lock"
"""Name of the lock file."""

TOUCH_EVERY = 60.0
"""Seconds between the times at which a holder touches the file."""

SILENT_AFTER = 300.0
"""Seconds after which a holder on another machine counts as dead."""


class Lock:
    """The exclusive right of one object in one process to write to a folder.

    Holder, process number, host and start time are in the file `.lock` there.
    The lock ends with `release`, with the object, or with its process, however
    that ends.

    Args:
      directory: An existing folder.

    Raises:
      BlockingIOError: If a live process, or another object of this one, holds
        the lock. The message names it.

    Example:
      >>> lock = dj.training.lock.Lock(".")
      >>> lock.release()
    """

    def __init__(self, directory: str | os.PathLike):
        self.file = pathlib.Path(directory).absolute() / NAME
        self._entry = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": _start_time(os.getpid()),
            "machine": _machine(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "token": uuid.uuid4().hex,
        }
        self.renew()
        stop = threading.Event()
        self._finalizer = weakref.finalize(self, _release, self.file, self._entry, stop)
        threading.Thread(
            target=_touch, args=(self.file, self._entry, stop), name="lock", daemon=True
        ).start()

    def renew(self) -> None:
        """Check that the lock is still held, and take it again if the file is gone.

        Raises:
          BlockingIOError: If another holder has it.
          FileNotFoundError: If the folder is gone.
        """
        with _guard(self.file.parent):
            holder = _read(self.file)
            if holder == self._entry:
                return
            temporary = self.file.with_name(f"{NAME}.{self._entry['token']}")
            try:
                temporary.write_text(json.dumps(self._entry))
                if holder is not None and _is_alive(
                    holder, self.file, now=temporary.stat().st_mtime
                ):
                    raise BlockingIOError(_in_use(self.file, holder))
                os.replace(temporary, self.file)
            finally:
                # Left over by this attempt, and by killed ones.
                for left_over in self.file.parent.glob(f"{NAME}.*"):
                    with contextlib.suppress(OSError):
                        left_over.unlink()

    def release(self) -> None:
        """Give the lock up."""
        self._finalizer()


def _in_use(file: pathlib.Path, holder: dict[str, Any]) -> str:
    here = holder.get("machine") == _machine()
    who = f"process {holder.get('pid')} on {holder.get('host')}"
    if here and holder.get("pid") == os.getpid():
        who += " (this process)"
    cure = "wait for it to end, or use another folder"
    if not here:
        cure += (
            f"; if it is dead, try again {SILENT_AFTER:.0f} seconds after its end, or "
            f"remove {file}"
        )
    return f"{file.parent} is in use by {who} since {holder.get('since')}: {cure}"


def _release(file: pathlib.Path, entry: dict[str, Any], stop: threading.Event) -> None:
    stop.set()
    if entry["pid"] == os.getpid():  # not in a forked child
        with contextlib.suppress(OSError), _guard(file.parent):
            if _read(file) == entry:
                file.unlink()


def _touch(file: pathlib.Path, entry: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(TOUCH_EVERY):
        with contextlib.suppress(OSError):
            # Another may have taken over while this process was suspended.
            if _read(file) == entry:
                os.utime(file)


def _read(file: pathlib.Path) -> dict[str, Any] | None:
    """The holder in the file, or None without one."""
    # A file that cannot be parsed was cut by a crash.
    try:
        holder = json.loads(file.read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return holder if isinstance(holder, dict) else None


@contextlib.contextmanager
def _guard(directory: pathlib.Path) -> Iterator[None]:
    """Keep other processes from the lock file, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_alive(holder: dict[str, Any], file: pathlib.Path, now: float) -> bool:
    if holder.get("machine") == _machine() and isinstance(
        pid := holder.get("pid"), int
    ):
        return (start := _start_time(pid)) is not None and start == holder.get("start")
    return now - file.stat().st_mtime < SILENT_AFTER  # both times are the file server's


def _machine() -> str:
    """Identity of the set of processes that can see one another."""
    # The running kernel, and the name space of process numbers.
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """When a process started, in the system's form. None for a dead process."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
        # The fields after the command's name, which may hold spaces: state
        # first, and start time 20th. Z and X are the states of dead processes.
        fields = status.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if pathlib.Path("/proc/self/stat").exists():
            return None
    with contextlib.suppress(FileNotFoundError):
        listing = subprocess.run(
            ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True
        )
        return listing.stdout.strip() or None
    return None
