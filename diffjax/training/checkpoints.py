"""Checkpoints of a whole `TrainState`, each with its configuration and checksums."""

import contextlib
import json
import os
import pathlib
import sys
import threading
import warnings
import weakref
from collections.abc import Collection
from typing import Any

import jax

from .. import checks
from ..types import PyTree
from . import arrays, configuration, folders, lock, manifest, processes
from .data import PositionedSource
from .snapshots import Snapshots
from .state import TrainState

__all__ = ["Checkpoints", "load_ema"]

_CONFIG = "training_config.json"

_POSITIONED = checks.optional(
    checks.has_methods, "position(step)", "continue_from(position)"
)


class Checkpoints:
    """The checkpoints in a folder, one folder per step, of which the newest are kept.

    A checkpoint holds params, averages, opt_state, the key and the step, which is
    also the position in the data. Beside them stand the configuration and a
    checksum of every array. A checkpoint appears under its name only when it
    is whole.

    One that is damaged is renamed `STEP.unreadable…` with a warning, and the
    newest good one counts. Folders that hold anything but the library's files
    are never touched.

    Only one object at a time may write to a folder, over all processes
    (`lock.Lock`). Saving happens in the background on copies, so that buffers
    may be donated at once. Use it as a context manager. Leaving it waits for
    the last save and releases the folder.

    A state may be restored to other devices than it was saved from. Of several
    processes, which must all make the same calls, the first writes the files. It
    also verifies those that are restored. The others then read the parts of
    their own devices, or get them from the first where they do not see its
    folder.

    Args:
      directory: The folder, made if it is missing.
      config: The run's configuration, JSON values by name.
      keep: Number of checkpoints that are kept.
      ignore: Top-level fields of `config` that may differ from the stored
        ones, such as the number of steps.
      snapshots: A `Snapshots`, saved with the checkpoints where it is due, in
        another folder.
      source: A `PositionedSource` of the training's data, such as a
        `GrainSource`. Its position is saved with the checkpoints and restored
        with them, so that it need not read all data before.

    Raises:
      ValueError: If the newest checkpoint is of another configuration. The
        message names each field with both values.
      TypeError: If `config` has a value that JSON cannot hold, or `source`
        states no position.
      BlockingIOError: If another process, or another object of this one,
        writes to the folder. The message names it.

    Example:
      >>> state = dj.training.init(key, {"w": jnp.ones(3)}, dj.training.optimiser(0.1))
      >>> with dj.training.Checkpoints("run", {"learning_rate": 0.1}) as checkpoints:
      ...     state = checkpoints.restore_latest(state) or state
      ...     checkpoints.save(int(state.step), state)
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        config: dict[str, Any],
        keep: int = 2,
        ignore: Collection[str] = (),
        *,
        snapshots: Snapshots | None = None,
        source: PositionedSource | None = None,
    ):
        self._keep = checks.integer("keep", keep, 1)
        self.directory = pathlib.Path(directory).absolute()
        self._config = configuration.as_json(config)
        self._snapshots = snapshots
        self._source = _POSITIONED("source", source)
        self._position: Any = None  # of the source, at the restored step
        self._damaged: dict[int, str] = {}  # step -> reason
        self._saving: threading.Thread | None = None
        self._error: Exception | None = None
        self._pending: int | None = None
        self._lock: lock.Lock | None = None
        processes.on_first(self._take_folder, ignore)

    def save(self, step: int, state: TrainState) -> None:
        """Save a state in the background, unless `step` is the latest already.

        Args:
          step: The number of the checkpoint, which must be that of the state.
          state: What is saved. It may be donated as soon as this returns.

        Raises:
          ValueError: If `step` differs from state.step or lies before the
            latest checkpoint.
          OSError: If the save before this one failed, or the folder is gone
            together with the one that held it.
          BlockingIOError: If another process has taken the folder.
        """
        current = int(state.step)
        checks.require(
            step == current, f"step must be state.step={current}, got {step}"
        )
        if not processes.on_first(self._make_room, step):
            return
        position = None
        if self._source is not None:
            # Before the copies, for which all processes wait on one another.
            position = processes.on_first(self._source.position, step)
        if self._snapshots is not None:
            # Before the checkpoint, so that none is missing up to that.
            self._snapshots.save(state)
        items = arrays.items_of(state)
        items = {name: arrays.to_host(part) for name, part in items.items()}
        if jax.process_index():
            return
        self._pending = step
        self._damaged.pop(step, None)
        self._saving = threading.Thread(
            target=self._save,
            args=(step, items, position),
            name=f"saving {self.folder(step)}",
        )
        self._saving.start()

    def restore_latest(self, state_template: TrainState) -> TrainState | None:
        """The state of the newest undamaged checkpoint, or None if there is none yet.

        Args:
          state_template: A state of the same structure, as `init` returns it,
            or its `jax.eval_shape`. Arrays come back with its dtypes, key type
            and shardings, bit for bit as they were saved.

        Returns:
          The state. The checkpoints found to be damaged are set aside with a
          warning.

        Raises:
          ValueError: If the stored arrays have other names, shapes or dtypes.
          RuntimeError: If there are checkpoints but all are damaged.
        """
        items = arrays.items_of(state_template)
        if jax.process_count() == 1:
            restored = self._read_latest(items)
        else:
            restored = self._read_together(items)
        if restored is None:
            return None
        if self._source is not None:
            self._source.continue_from(processes.from_first(self._position))
        return arrays.state_of(state_template, restored)

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None. One being saved counts."""
        return processes.on_first(self._latest_step)

    def folder(self, step: int) -> pathlib.Path:
        """The folder of the checkpoint of `step`."""
        return self.directory / str(step)

    def wait(self) -> None:
        """Return once the save under way is whole on disk.

        Raises:
          OSError: If it failed.
        """
        processes.on_first(self._wait)

    def close(self) -> None:
        """Wait for the save under way and release the folder."""
        try:
            self._wait()
        finally:
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_folder(self, ignore: Collection[str]) -> None:
        """Make the folder, lock it, and compare the configuration."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._parent = folders.identity(self.directory.parent)
        self._lock = lock.Lock(self.directory)
        _open.add(self)
        try:
            self._damaged |= folders.clean(self.directory)
            self._compare_config(ignore)
            self._write_config()
        except BaseException:
            self.close()
            raise

    def _make_room(self, step: int) -> bool:
        """Whether `step` is to be saved. Its folder then does not exist."""
        latest = self._latest_step()
        checks.require(
            latest is None or step >= latest,
            f"step must be {latest} or more, as in {self.directory}, got {step}",
        )
        self._wait()
        self._hold_folder()
        if step == self._latest_step():
            return False
        folder = self.folder(step)
        if folder.exists():
            checks.require(
                folders.holds_only_ours(folder),
                f"{folder} is no checkpoint and is left alone: {step} cannot be saved",
                FileExistsError,
            )
            folders.set_aside(folder, "it is not whole")
        return True

    def _read_together(self, items: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
        """`_read_latest` in several processes, each of which reads its own part.

        Process 0 has read and verified whole arrays before, in its memory. It
        sends them where a process does not see the same folder, or cannot read it
        for whatever reason.
        """
        whole: dict[str, Any] = {}

        def read():
            whole.update(self._read_latest(items, on_host=True) or {})
            return int(whole["step"]) if whole else None

        if (step := processes.on_first(read)) is None:
            return None
        folder, restored = self.folder(step), None
        if processes.agree(manifest.fingerprint(folder)):
            # One process that raised alone would keep the others waiting.
            with contextlib.suppress(Exception):
                restored, _ = _read(folder, items)
        if processes.any_of(int(restored is None)):
            restored = arrays.from_first(whole, items["ema"] | items["rest"])
        return restored

    def _read_latest(
        self, items: dict[str, dict[str, Any]], on_host: bool = False
    ) -> dict[str, Any] | None:
        """The arrays of the newest undamaged checkpoint, by name."""
        self._wait()
        while (step := self._latest_step()) is not None:
            folder = self.folder(step)
            try:
                restored, self._position = _read(folder, items, on_host)
                # A folder may have been copied under another name.
                there = int(restored["step"])
                message = f"it is the checkpoint of step {there}"
                checks.require(there == step, message, manifest.Damaged)
                self._continue_from(step)
                return restored
            except manifest.Damaged as error:
                self._reject(folder, str(error))
        if self._damaged:
            reasons = "; ".join(
                f"{self.folder(step)}: {reason}"
                for step, reason in self._damaged.items()
            )
            raise RuntimeError(
                f"no checkpoint can be read: {reasons}; a run started again begins anew"
            )
        self._continue_from(0)
        return None

    def _latest_step(self) -> int | None:
        steps = set(folders.whole_steps(self.directory)) - self._damaged.keys()
        if self._pending is not None:
            steps.add(self._pending)
        return max(steps, default=None)

    def _wait(self) -> None:
        if self._saving is not None:
            self._saving.join()
            self._saving = self._pending = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _save(self, step: int, items: dict[str, dict[str, Any]], position: Any) -> None:
        """Save in the background, and delete old checkpoints."""
        try:
            arrays.write_whole(self.folder(step), self._config, items, position)
            for old in folders.whole_steps(self.directory)[: -self._keep]:
                if folders.holds_only_ours(self.folder(old)):
                    folders.delete(self.folder(old))
        except Exception as error:  # raised by `wait`
            self._error = OSError(
                f"the checkpoint of step {step} could not be saved in "
                f"{self.directory}: {arrays.message(error)}"
            )
            self._error.__cause__ = error

    def _continue_from(self, step: int) -> None:
        if self._snapshots is not None:
            self._snapshots.continue_from(step)

    def _compare_config(self, ignore: Collection[str]) -> None:
        """Compare `config` with that of the newest checkpoint."""
        # Those without a readable manifest are set aside.
        while (step := self._latest_step()) is not None:
            try:
                stored = manifest.read(self.folder(step)).config
                configuration.raise_if_other(
                    self.folder(step), stored, self._config, ignore
                )
                return
            except manifest.Damaged as error:
                self._reject(self.folder(step), str(error))

    def _write_config(self) -> None:
        """Write the configuration for the reader. The one in each checkpoint counts."""
        folders.write_atomically(
            self.directory / _CONFIG,
            json.dumps(self._config, indent=2, sort_keys=True) + "\n",
        )

    def _hold_folder(self) -> None:
        """Check that the folder is still held by this object.

        The folder, or its lock, is made anew with a warning if it alone was
        removed.
        """
        if self._lock is None:
            return
        if not self._lock.file.exists():
            parent = self.directory.parent
            checks.require(
                folders.identity(parent) == self._parent,
                f"{parent} was removed during the run: nothing is saved there",
                FileNotFoundError,
            )
            lost = self._lock.file if self.directory.exists() else self.directory
            self.directory.mkdir(exist_ok=True)
            warnings.warn(
                f"{lost} was removed during the run, and is made anew", stacklevel=5
            )
            self._write_config()
        self._lock.renew()

    def _reject(self, folder: pathlib.Path, reason: str) -> None:
        self._damaged[int(folder.name)] = reason
        folders.set_aside(folder, reason)


def _read(
    folder: pathlib.Path, items: dict[str, dict[str, Any]], on_host: bool = False
) -> tuple[dict[str, Any], Any]:
    """The arrays of a checkpoint by name, and the position of the source of data."""
    stored = manifest.read(folder)
    restored: dict[str, Any] = {}
    for item in folders.ITEMS:
        restored |= arrays.read(
            folder,
            item,
            stored=stored.items[item],
            template=items[item],
            on_host=on_host,
        )
    return restored, stored.position


_open: weakref.WeakSet[Checkpoints] = weakref.WeakSet()


def _finish() -> None:
    for checkpoints in list(_open):
        try:
            checkpoints.close()
        except Exception as error:
            print(f"error: {error}", file=sys.stderr)


# For a program that ends with a save under way. atexit is too late for orbax.
if hasattr(threading, "_register_atexit"):
    threading._register_atexit(_finish)


def load_ema(
    directory: str | os.PathLike,
    template: PyTree | None = None,
    step: int | None = None,
) -> PyTree:
    """The averaged parameters of a checkpoint, on the first device.

    No optimiser and no configuration is needed.

    Args:
      directory: The folder of the checkpoints. It is only read, and may be in
        use by a training run.
      template: A pytree of arrays or `jax.ShapeDtypeStruct`s whose structure
        the parameters are returned in. None for nested dicts by name, as Flax
        parameters are.
      step: Step of the checkpoint. None for the newest undamaged one. Damaged
        ones are passed over with a warning.

    Returns:
      The parameters, bit for bit as they were saved.

    Raises:
      FileNotFoundError: If there is no checkpoint, or none of `step`.
      ValueError: If the template has other arrays, or the checkpoint of `step`
        (or each of them) is damaged.

    Example:
      >>> state = dj.training.init(key, {"w": jnp.ones(3)}, dj.training.optimiser(0.1))
      >>> with dj.training.Checkpoints("another_run", {}) as checkpoints:
      ...     checkpoints.save(0, state)
      >>> print(dj.training.load_ema("another_run")["w"])
      [1. 1. 1.]
    """
    return folders.newest(directory, step, lambda left: _read_ema(left[-1], template))


def _read_ema(folder: pathlib.Path, template: PyTree | None) -> PyTree:
    stored = manifest.read(folder).items["ema"]
    if template is None:
        return arrays.nested(arrays.read(folder, "ema", stored=stored))["ema"]
    flat = arrays.read(
        folder, "ema", stored=stored, template=arrays.flatten(template, "ema")
    )
    return arrays.unflatten(template, flat, "ema")
