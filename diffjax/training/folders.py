"""The folders of checkpoints on disk: which are whole, and which may be touched."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from .. import checks
from . import manifest

__all__ = [
    "ITEMS",
    "clean",
    "delete",
    "holds_only_ours",
    "identity",
    "newest",
    "remove_temporary",
    "set_aside",
    "step_folders",
    "whole_steps",
    "write_atomically",
]

ITEMS = ("ema", "rest")
"""Parts of a checkpoint. The average can be read without knowing the optimiser."""

_STEP = re.compile("0|[1-9][0-9]*")
_TEMPORARY = re.compile(r"[0-9]+\.(writing|deleting|orbax-checkpoint-tmp)")

_MARKS = {manifest.NAME, "_METADATA", "_CHECKPOINT_METADATA", "commit_success.txt"}
"""Names of files that only checkpoints hold."""


def step_folders(directory: pathlib.Path) -> list[pathlib.Path]:
    """The folders named by a number, whoever made them."""
    if not directory.is_dir():
        return []
    return [
        folder
        for folder in directory.iterdir()
        if _STEP.fullmatch(folder.name) and folder.is_dir()
    ]


def whole_steps(directory: pathlib.Path, items: tuple[str, ...] = ITEMS) -> list[int]:
    """The steps whose folder is complete, in order.

    A folder is renamed to its step once the manifest, its last file, is
    written.

    Args:
      directory: The folder of the folders.
      items: The parts that each of them has.

    Returns:
      The steps.
    """
    parts = (manifest.NAME, *items)
    return sorted(
        int(folder.name)
        for folder in step_folders(directory)
        if all((folder / part).exists() for part in parts)
    )


def holds_only_ours(folder: pathlib.Path, items: tuple[str, ...] = ITEMS) -> bool:
    """Whether a folder holds nothing but a checkpoint's files, or no files at all.

    Args:
      folder: The folder.
      items: The parts of a checkpoint.

    Returns:
      True if it does.
    """
    if not folder.is_dir():
        return False
    if not {entry.name for entry in folder.iterdir()} <= {*items, *_MARKS}:
        return False
    files = {file.name for file in folder.rglob("*") if not file.is_dir()}
    return not files or bool(files & _MARKS)


def identity(folder: pathlib.Path) -> tuple[int, int] | None:
    """Device and inode, by which a folder differs from a later one of its name.

    None if there is no such folder.
    """
    with contextlib.suppress(FileNotFoundError):
        status = folder.stat()
        return status.st_dev, status.st_ino
    return None


def set_aside(folder: pathlib.Path, reason: str, kind: str = "checkpoint") -> None:
    """Rename a damaged checkpoint, with a warning.

    Args:
      folder: The checkpoint's folder.
      reason: What is wrong with it, for the warning.
      kind: What it is, for the warning.
    """
    aside = tempfile.mkdtemp(prefix=f"{folder.name}.unreadable-", dir=folder.parent)
    os.rename(folder, aside)
    checks.warn(f"the {kind} {folder} is set aside as {aside}: {reason}")


def delete(folder: pathlib.Path, items: tuple[str, ...] = ITEMS) -> None:
    """Rename, then delete, so that a kill in between leaves no half checkpoint.

    Args:
      folder: The checkpoint's folder.
      items: The parts of a checkpoint.
    """
    doomed = folder.with_name(f"{folder.name}.deleting")
    remove_temporary(doomed, items)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def remove_temporary(folder: pathlib.Path, items: tuple[str, ...] = ITEMS) -> None:
    """Remove a folder that a kill left half written or half deleted.

    Args:
      folder: The folder, which may be missing.
      items: The parts of a checkpoint.

    Raises:
      FileExistsError: If it holds files that are not of a checkpoint.
    """
    if not folder.exists():
        return
    # orbax names a part that it has not finished with more after a dot.
    parts = tuple(f"{item}." for item in items)
    for entry in folder.iterdir():
        checks.require(
            entry.name in {*items, *_MARKS} or entry.name.startswith(parts),
            f"{folder} holds {entry.name}, not of a checkpoint, and is left alone",
            FileExistsError,
        )
    shutil.rmtree(folder)


def clean(
    directory: pathlib.Path,
    items: tuple[str, ...] = ITEMS,
    kind: str = "checkpoint",
) -> dict[int, str]:
    """Remove remains of a kill, and set damaged folders aside, with warnings.

    Folders that hold anything else are left alone. So is an empty one, which is
    in the way of nothing.

    Args:
      directory: The folder of the folders.
      items: The parts that each of them has.
      kind: What they are, for messages.

    Returns:
      The reason of each step that was set aside.
    """
    for folder in directory.iterdir():
        if _TEMPORARY.fullmatch(folder.name) and folder.is_dir():
            try:
                remove_temporary(folder, items)
            except FileExistsError as error:
                checks.warn(str(error))
    whole, damaged = whole_steps(directory, items), {}
    for folder in step_folders(directory):
        if int(folder.name) in whole:
            continue
        if not holds_only_ours(folder, items):
            checks.warn(f"{folder} is no {kind}: it is left alone")
        elif any(folder.iterdir()):  # empty subfolders are in the way too
            reason = (
                f"it has no {manifest.NAME}: it is damaged, or of an earlier version"
            )
            damaged[int(folder.name)] = reason
            set_aside(folder, reason, kind)
    return damaged


def newest(
    directory: str | os.PathLike,
    step: int | None,
    read: Callable[[list[pathlib.Path]], Any],
    *,
    items: tuple[str, ...] = ITEMS,
    kind: str = "checkpoint",
) -> Any:
    """The result of a function that reads the newest undamaged folder.

    Args:
      directory: The folder of the folders. It is only read, and may be in use
        by a training.
      step: The step to read. None for the newest that is undamaged.
      read: Folders in the order of their steps -> result. It reads the last of
        them, and the earlier ones if it needs them. It is called again without
        a folder for which it raises manifest.Damaged.
      items: The parts that each folder has.
      kind: What they are, for messages.

    Returns:
      The result.

    Raises:
      FileNotFoundError: If there is no whole folder, or none of `step`.
      ValueError: If the folder of `step`, or each of them, is damaged.
    """
    directory = pathlib.Path(directory).absolute()
    damaged: dict[pathlib.Path, str] = {}
    # Listed anew each time: a training may have replaced the one about to be
    # read.
    while left := [
        directory / str(n)
        for n in whole_steps(directory, items)
        if directory / str(n) not in damaged and (step is None or n <= step)
    ]:
        if step is not None and left[-1].name != str(step):
            break
        try:
            return read(left)
        except manifest.Damaged as error:
            folder = error.folder or left[-1]
            damaged[folder] = f"{folder}: {error}"
            checks.warn(f"the {kind} {folder} cannot be read: {error}")
    wanted = "" if step is None else f" of step {step}"
    checks.require(
        damaged,
        f"{directory} holds no whole {kind}{wanted}; it has steps "
        f"{whole_steps(directory, items)}",
        FileNotFoundError,
    )
    raise ValueError(f"no {kind} can be read: {'; '.join(damaged.values())}")


def write_atomically(file: pathlib.Path, text: str) -> None:
    """Write a text file so that it is either the old or the new one at any time.

    Args:
      file: The file.
      text: Its new content.
    """
    # The temporary name is the same each time, so that kills leave one at
    # most.
    temporary = file.with_name(f".{file.name}.writing")
    with open(temporary, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)
