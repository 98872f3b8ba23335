"""Which files a folder of images has, and whether all of them can be decoded."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import stat

from ... import checks
from .decoding import Facts, inspect_file

__all__ = ["listing", "verified"]

CACHE = ".diffjax_images"
"""Name of the file in the folder that remembers what was verified."""

_PIECE = 256
"""Number of files between two moments at which Ctrl-C ends the verification."""

_FORMAT = "diffjax images 1"


def listing(
    folder: pathlib.Path,
) -> tuple[tuple[str, ...], list[pathlib.Path], list[int]]:
    """The classes, files and labels of a folder of images.

    Args:
      folder: The folder.

    Returns:
      (names of the classes, files, the label of each file). There are no
      classes where files lie in the folder itself.

    Raises:
      FileNotFoundError: If there is no such folder.
      ValueError: If there are no files, an empty class, a folder in the folder
        of a class, or files both beside and in subfolders.
    """
    missing = f"{folder} is not a folder of images"
    checks.require(folder.is_dir(), missing, FileNotFoundError)
    files = _visible(folder)
    classes = [entry for entry in files if entry.is_dir()]
    beside = [entry for entry in files if not entry.is_dir()]
    checks.require(files, f"{folder} must hold images, got no files")
    if not classes:
        return (), beside, [0] * len(beside)
    checks.require(
        not beside,
        f"{folder} must hold either images or subfolders of classes, got both: "
        f"{', '.join(map(str, beside[:3]))} and {classes[0]}",
    )
    files, labels = [], []
    for label, subfolder in enumerate(classes):
        members = _visible(subfolder)
        checks.require(members, f"{subfolder} must hold images, got no files")
        for member in members:
            inner = f"{member} must be an image, got a folder inside of a class"
            checks.require(not member.is_dir(), inner)
        files += members
        labels += [label] * len(members)
    return tuple(subfolder.name for subfolder in classes), files, labels


def verified(folder: pathlib.Path, files: list[pathlib.Path]) -> list[Facts]:
    """Decode all files that are new or changed since they were last verified.

    Args:
      folder: The folder of images, in which the result is remembered.
      files: Its files.

    Returns:
      The facts of each file.

    Raises:
      ImportError: If Pillow is not installed.
      ValueError: If files cannot be decoded, naming all of them.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "folders of images need Pillow: pip install pillow"
        ) from error
    known, facts, faults = _remembered(folder), {}, {}

    def look(file):
        name = file.relative_to(folder).as_posix()
        try:
            status = file.stat()
            # To read a pipe would wait for its writer.
            checks.require(stat.S_ISREG(status.st_mode), "it is no regular file")
            # Taken before the file is read, so that a later change is seen.
            stamp = (status.st_size, status.st_mtime_ns)
            before, remembered = known.get(name, (None, None))
            facts[name] = stamp, (remembered if before == stamp else inspect_file(file))
        except (OSError, ValueError) as error:
            faults[file] = error

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            for start in range(0, len(files), _PIECE):
                list(threads.map(look, files[start : start + _PIECE]))
        finally:
            # After an interruption too: the next run goes on from there.
            if facts != known:
                _remember(folder, facts)
    lines = "\n".join(f"{file}: {faults[file]}" for file in sorted(faults))
    checks.require(
        not faults,
        f"{len(faults)} of {len(files)} files in {folder} cannot be used as "
        f"images:\n{lines}",
    )
    return [facts[file.relative_to(folder).as_posix()][1] for file in files]


def _visible(folder):
    """The entries that are not hidden, by name."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: entry.name)


def _remembered(folder):
    """{name: ((size, time of change), facts)}, empty where the file is no good."""
    try:
        with open(folder / CACHE, encoding="utf-8") as file:
            if file.readline().strip() != _FORMAT:
                return {}
            rows = [json.loads(line) for line in file]
        return {
            name: ((int(size), int(changed)), Facts(*map(int, numbers), str(digest)))
            for name, size, changed, *numbers, digest in rows
        }
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):
        return {}


def _remember(folder, known):
    """Write what was verified, unless the folder cannot be written."""
    temporary = folder / f"{CACHE}.{os.getpid()}"
    with contextlib.suppress(OSError):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(f"{_FORMAT}\n")
                for name, (stamp, facts) in known.items():
                    file.write(json.dumps([name, *stamp, *facts]) + "\n")
            os.replace(temporary, folder / CACHE)
        finally:
            temporary.unlink(missing_ok=True)
