"""Checkpoints of a whole `TrainState` over orbax, each with its configuration and a checksum of every array."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from .. import checks
from ..types import PyTree
from . import lock, manifest
from .state import TrainState

_CONFIG = "training_config.json"
_ITEMS = (
    "ema",
    "rest",
)  # apart, so that the average can be read without knowing the optimiser
_ABSENT = "absent"
_STEP = re.compile("0|[1-9][0-9]*")
_TEMPORARY = re.compile(r"[0-9]+\.(writing|deleting|orbax-checkpoint-tmp)")
_MARKS = {
    manifest.NAME,
    "_METADATA",
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
}  # files that only checkpoints hold
_ORBAX = (
    threading.RLock()
)  # orbax numbers its operations by a global counter, which threads must not share


class Checkpoints:
    """The checkpoints in a folder, one folder per step, of which the newest are kept.

    A checkpoint holds params, ema, opt_state, the key and the step, which is the position in the data; beside them
    the configuration and a checksum of every array. It appears under its name only when whole. One that is damaged is
    renamed `STEP.unreadable…` with a warning, and the newest good one counts. Folders that hold anything else than
    the library's own files are never touched.

    Only one object at a time may write to a folder, over all processes (`lock.Lock`). Saving happens in the
    background on copies, so that buffers may be donated at once. A context manager: leaving it waits for the last
    save and gives the folder free.

    Args:
      directory: The folder, made if it is missing.
      config: The run's configuration, JSON values by name.
      keep: How many checkpoints are kept.
      ignore: Top-level fields of `config` that may differ from the stored ones, such as the number of steps.

    Raises:
      ValueError: If the newest checkpoint is of another configuration. The message names each field with both values.
      TypeError: If `config` has a value that JSON cannot hold.
      BlockingIOError: If another process, or another object of this one, writes to the folder. The message names it.

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
    ):
        self._keep = checks.integer("keep", keep, 1)
        self.directory = pathlib.Path(directory).absolute()
        self._config = _as_json(config)
        self._damaged: dict[int, str] = {}  # step -> what is wrong
        self._saving: threading.Thread | None = None
        self._error: Exception | None = None
        self._pending: int | None = None
        self.directory.mkdir(parents=True, exist_ok=True)
        self._parent = _identity(self.directory.parent)
        self._lock = lock.Lock(self.directory) if jax.process_index() == 0 else None
        _open.add(self)
        try:
            self._clean()
            self._check_config(ignore)
            self._write_config()
        except BaseException:
            self.close()
            raise

    def save(self, step: int, state: TrainState) -> None:
        """Save a state in the background. Nothing happens if `step` is the latest already.

        Args:
          step: The number of the checkpoint, which must be that of the state.
          state: What is saved. It may be donated as soon as this returns.

        Raises:
          ValueError: If `step` differs from state.step or lies before the latest checkpoint.
          OSError: If the save before this one failed, or the folder is gone together with the one that held it.
          BlockingIOError: If another process has taken the folder.
        """
        if step != int(state.step):
            raise ValueError(
                f"step must equal state.step={int(state.step)}, got {step}"
            )
        latest = self.latest_step()
        if latest is not None and step < latest:
            raise ValueError(
                f"step must be {latest} or more, the latest checkpoint in {self.directory}, got {step}"
            )
        self.wait()
        self._hold_folder()
        if step == self.latest_step():
            return
        if self.path(step).exists() and _is_own(self.path(step)):
            _set_aside(self.path(step), "it is not whole")
        elif self.path(step).exists():
            raise FileExistsError(
                f"{self.path(step)} is no checkpoint and is left alone: step {step} cannot be saved"
            )
        items = {name: _to_host(part) for name, part in _items(state).items()}
        self._pending = step
        self._damaged.pop(step, None)
        self._saving = threading.Thread(
            target=self._save, args=(step, items), name=f"saving {self.path(step)}"
        )
        self._saving.start()

    def restore_latest(self, state_template: TrainState) -> TrainState | None:
        """The state of the newest undamaged checkpoint, or None where there is none yet.

        Args:
          state_template: A state of the same structure, as `init` returns it, or its `jax.eval_shape`. Arrays come
            back with its dtypes, key type and shardings, bit for bit as they were saved.

        Returns:
          The state. The checkpoints found to be damaged are set aside with a warning.

        Raises:
          ValueError: If the stored arrays have other names, shapes or dtypes.
          RuntimeError: If there are checkpoints but all are damaged.
        """
        self.wait()
        items = _items(state_template)
        while (step := self.latest_step()) is not None:
            folder = self.path(step)
            try:
                _, stored = manifest.read(folder)
                restored = {
                    k: leaf
                    for item in _ITEMS
                    for k, leaf in _read(folder, item, stored, items[item]).items()
                }
                if int(restored["step"]) != step:  # a folder copied under another name
                    raise manifest.Damaged(
                        f"it is the checkpoint of step {int(restored['step'])}"
                    )
                return _unflatten(state_template, restored)
            except manifest.Damaged as error:
                self._reject(folder, str(error))
        if self._damaged:
            reasons = "; ".join(
                f"{self.path(step)}: {reason}" for step, reason in self._damaged.items()
            )
            raise RuntimeError(
                f"no checkpoint can be read: {reasons}; a run started again begins anew"
            )
        return None

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint (one being saved counts), or None."""
        steps = [
            step for step in _whole_steps(self.directory) if step not in self._damaged
        ]
        return max(
            steps if self._pending is None else [*steps, self._pending], default=None
        )

    def path(self, step: int) -> pathlib.Path:
        """The folder of the checkpoint of `step`."""
        return self.directory / str(step)

    def wait(self) -> None:
        """Return once the save under way is whole on disk.

        Raises:
          OSError: If it failed.
        """
        if self._saving is not None:
            self._saving.join()
            self._saving = self._pending = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Wait for the save under way and give the folder free."""
        try:
            self.wait()
        finally:
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _save(self, step: int, items: dict[str, dict[str, Any]]) -> None:
        """What the thread that saves does."""
        try:
            self._write(step, items)
            for old in _whole_steps(self.directory)[: -self._keep]:
                if jax.process_index() == 0 and _is_own(self.path(old)):
                    _delete(self.path(old))
        except Exception as error:  # raised by `wait`
            self._error = OSError(
                f"the checkpoint of step {step} could not be saved in {self.directory}: {_message(error)}"
            )
            self._error.__cause__ = error

    def _write(self, step: int, items: dict[str, dict[str, Any]]) -> None:
        """Write a temporary folder, then rename it. The savers wait for one another where there are several hosts."""
        temporary, primary = (
            self.directory / f"{step}.writing",
            jax.process_index() == 0,
        )
        if primary:
            _remove_temporary(temporary)
            temporary.mkdir()
        with _ORBAX:
            for item, arrays in items.items():
                saver = ocp.Checkpointer(ocp.StandardCheckpointHandler())
                saver.save(temporary / item, args=ocp.args.StandardSave(arrays))
        described = {item: manifest.describe(arrays) for item, arrays in items.items()}
        if primary:
            manifest.write(temporary, self._config, described)
            os.rename(temporary, self.path(step))
        if jax.process_count() > 1:
            ocp.multihost.sync_global_processes(f"diffjax checkpoint {self.path(step)}")

    def _clean(self) -> None:
        """Finish what a kill left unfinished, and set aside what cannot be a checkpoint."""
        if jax.process_index():
            return
        for folder in self.directory.iterdir():
            if _TEMPORARY.fullmatch(folder.name) and folder.is_dir():
                try:
                    _remove_temporary(folder)
                except FileExistsError as error:
                    warnings.warn(str(error), stacklevel=3)
        whole = _whole_steps(self.directory)
        for folder in _step_folders(self.directory):
            if int(folder.name) in whole:
                continue
            if not _is_own(folder):
                warnings.warn(
                    f"{folder} is no checkpoint: it is left alone", stacklevel=3
                )
            elif any(path.is_file() for path in folder.rglob("*")):
                self._reject(
                    folder,
                    f"it has no {manifest.NAME}: it is damaged, or of an earlier version",
                )
            # an empty folder is nobody's: it is in the way of the checkpoint of that step only

    def _check_config(self, ignore: Collection[str]) -> None:
        """Compare `config` with that of the newest checkpoint whose manifest can be read."""
        while (step := self.latest_step()) is not None:
            try:
                stored, _ = manifest.read(self.path(step))
                return _refuse_other_config(
                    self.path(step), stored, self._config, ignore
                )
            except manifest.Damaged as error:
                self._reject(self.path(step), str(error))

    def _write_config(self) -> None:
        """For the reader: what counts is the configuration in each checkpoint."""
        if jax.process_index() == 0:
            _write_atomically(
                self.directory / _CONFIG,
                json.dumps(self._config, indent=2, sort_keys=True) + "\n",
            )

    def _hold_folder(self) -> None:
        """Check that the folder is still ours. It, or its lock, is made anew with a warning if it alone was removed."""
        if self._lock is None:
            return
        if not self._lock.path.exists():
            if _identity(self.directory.parent) != self._parent:
                raise FileNotFoundError(
                    f"{self.directory.parent} was removed during the run: nothing is saved there"
                )
            lost = self._lock.path if self.directory.exists() else self.directory
            self.directory.mkdir(exist_ok=True)
            warnings.warn(
                f"{lost} was removed during the run, and is made anew", stacklevel=3
            )
            self._write_config()
        self._lock.renew()

    def _reject(self, folder: pathlib.Path, reason: str) -> None:
        self._damaged[int(folder.name)] = reason
        if jax.process_index() == 0:
            _set_aside(folder, reason)


_open: weakref.WeakSet[Checkpoints] = weakref.WeakSet()


def _finish() -> None:
    for checkpoints in list(_open):
        try:
            checkpoints.close()
        except Exception as error:
            print(f"error: {error}", file=sys.stderr)


if hasattr(threading, "_register_atexit"):
    threading._register_atexit(
        _finish
    )  # a program that ends with a save under way; atexit is too late for orbax


def load_ema(
    directory: str | os.PathLike,
    template: PyTree | None = None,
    step: int | None = None,
) -> PyTree:
    """The averaged parameters of a checkpoint, on the first device. No optimiser and no configuration is needed.

    Args:
      directory: The folder of the checkpoints. It is only read, and may be in use by a training run.
      template: A pytree of arrays or `jax.ShapeDtypeStruct`s whose structure the parameters come back in. None: nested
        dicts by name, which is what Flax parameters are.
      step: Of which checkpoint. None: the newest undamaged one; damaged ones are passed over with a warning.

    Returns:
      The parameters, bit for bit as they were saved.

    Raises:
      FileNotFoundError: If there is no checkpoint, or none of `step`.
      ValueError: If the template has other arrays, or the checkpoint of `step` (or each of them) is damaged.

    Example:
      >>> state = dj.training.init(key, {"w": jnp.ones(3)}, dj.training.optimiser(0.1))
      >>> with dj.training.Checkpoints("another_run", {}) as checkpoints:
      ...     checkpoints.save(0, state)
      >>> print(dj.training.load_ema("another_run")["w"])
      [1. 1. 1.]
    """
    directory = pathlib.Path(directory).absolute()
    steps = _whole_steps(directory)
    if not steps or (step is not None and step not in steps):
        wanted = "" if step is None else f" of step {step}"
        raise FileNotFoundError(
            f"{directory} holds no whole checkpoint{wanted}; it has steps {steps}"
        )
    failures: dict[int, str] = {}
    # listed anew each time: a training may have replaced what was about to be read
    while (
        left := (set(_whole_steps(directory)) if step is None else {step})
        - failures.keys()
    ):
        folder = directory / str(max(left))
        try:
            return _read_ema(folder, template)
        except manifest.Damaged as error:
            failures[max(left)] = f"{folder}: {error}"
            warnings.warn(
                f"the checkpoint {folder} cannot be read: {error}", stacklevel=2
            )
    raise ValueError(f"no checkpoint can be read: {'; '.join(failures.values())}")


def _read_ema(folder: pathlib.Path, template: PyTree | None) -> PyTree:
    _, stored = manifest.read(folder)
    if template is not None:
        return _unflatten(
            template, _read(folder, "ema", stored, _flat(template, "ema")), "ema"
        )
    forms = {
        name: jax.ShapeDtypeStruct(entry["shape"], entry["dtype"])
        for name, entry in stored["ema"].items()
    }
    tree: dict[str, Any] = {}
    for name, leaf in _read(folder, "ema", stored, forms).items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree["ema"]


# ---- a state as flat dicts of arrays by name: orbax then meets no custom node, no empty node and no key


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    rest = _flat(state.params, "params") | _flat(state.opt_state, "opt_state")
    return {
        "ema": _flat(state.ema, "ema"),
        "rest": rest | {"step": state.step, "key": state.key},
    }


def _flat(tree: PyTree, prefix: str) -> dict[str, Any]:
    """The leaves by name, as "params/dense/kernel"; arrays of size 0, which orbax cannot store, are left out."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {_name(prefix, path): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError(
            f"{prefix} has two leaves of one name among {[_name(prefix, path) for path, _ in leaves]}"
        )
    return {name: leaf for name, leaf in flat.items() if leaf.size}


def _unflatten(template: PyTree, flat: dict[str, Any], prefix: str = "") -> PyTree:
    def leaf_at(path, leaf):
        return (
            flat[_name(prefix, path)]
            if leaf.size
            else jnp.zeros(leaf.shape, leaf.dtype)
        )

    return jax.tree_util.tree_map_with_path(leaf_at, template)


def _name(prefix: str, path: Any) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return "/".join(part for part in (prefix, name) if part)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(flat: dict[str, Any]) -> dict[str, Any]:
    """Copies on the host, which no later step can donate; on the devices where no host has the whole array."""

    def copy(leaf):
        leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        return (
            np.array(leaf)
            if leaf.is_fully_addressable or leaf.is_fully_replicated
            else leaf.copy()
        )

    return {name: copy(leaf) for name, leaf in flat.items()}


def _stored_form(leaf: Any) -> Any:
    """Shape, dtype and placement under which a leaf of a template is stored: keys as their words."""
    form = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(form.shape, form.dtype, sharding=sharding)


def _key_type(leaf: Any) -> Any:
    """The implementation of a template's key, which may be a `ShapeDtypeStruct`."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]


def _read(
    folder: pathlib.Path, item: str, stored: dict[str, Any], part: dict[str, Any]
) -> dict[str, Any]:
    """The arrays of `item` in the forms of `part`, whose names, shapes and dtypes must be the stored ones."""
    forms = {name: _stored_form(leaf) for name, leaf in part.items()}
    key_types = {name: _key_type(leaf) for name, leaf in part.items() if _is_key(leaf)}
    _refuse_other_arrays(folder, stored[item], forms)
    try:
        with _ORBAX:
            restored = ocp.StandardCheckpointHandler().restore(
                folder / item, args=ocp.args.StandardRestore(forms)
            )
    except Exception as error:  # orbax and tensorstore raise a dozen kinds for damaged files, bare `Exception` too
        if _is_fault_of_machine(error):
            raise
        raise manifest.Damaged(
            f"it cannot be read ({_message(error)[:200]})"
        ) from error
    manifest.verify(restored, stored[item])
    for name, key_type in key_types.items():
        restored[name] = jax.random.wrap_key_data(restored[name], impl=key_type)
    return restored


def _is_fault_of_machine(error: Exception) -> bool:
    """Whether a whole checkpoint may raise it too: no memory, no permission, too many open files."""
    shortages = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    if (
        isinstance(error, MemoryError | jax.errors.JaxRuntimeError)
        or getattr(error, "errno", None) in shortages
    ):
        return True
    return any(
        word in str(error) for word in ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED")
    )


class _OtherArrays(ValueError):
    """The stored arrays are not those of the template."""


def _refuse_other_arrays(
    folder: pathlib.Path, stored: manifest.Arrays, forms: dict[str, Any]
) -> None:
    """orbax by itself casts a dtype silently and names no leaf where a shape differs."""
    kept = {
        name: (tuple(entry["shape"]), np.dtype(entry["dtype"]))
        for name, entry in stored.items()
    }
    wanted = {
        name: (tuple(form.shape), np.dtype(form.dtype)) for name, form in forms.items()
    }
    for name in sorted(kept.keys() | wanted.keys()):
        if kept.get(name) != wanted.get(name):
            here, there = (_describe(arrays.get(name)) for arrays in (kept, wanted))
            raise _OtherArrays(
                f"{folder}: array {name!r} is {here} in the checkpoint, {there} in the template"
            )


def _describe(entry: tuple | None) -> str:
    return _ABSENT if entry is None else f"{entry[1]}{list(entry[0])}"


# ---- the directory


def _step_folders(directory: pathlib.Path) -> list[pathlib.Path]:
    """The folders named by a number, whoever made them."""
    if not directory.is_dir():
        return []
    return [
        folder
        for folder in directory.iterdir()
        if _STEP.fullmatch(folder.name) and folder.is_dir()
    ]


def _whole_steps(directory: pathlib.Path) -> list[int]:
    """Steps whose folder is complete: it is renamed to its step once the manifest, the last file, is written."""
    parts = (manifest.NAME, *_ITEMS)
    return sorted(
        int(folder.name)
        for folder in _step_folders(directory)
        if all((folder / part).exists() for part in parts)
    )


def _is_own(folder: pathlib.Path) -> bool:
    """Whether a folder holds nothing but what the library writes: no files at all, or a checkpoint's."""
    if not folder.is_dir() or not {entry.name for entry in folder.iterdir()} <= {
        *_ITEMS,
        *_MARKS,
    }:
        return False
    files = {path.name for path in folder.rglob("*") if not path.is_dir()}
    return not files or bool(files & _MARKS)


def _identity(folder: pathlib.Path) -> tuple[int, int] | None:
    """What tells a folder from another that was made at the same place; None if there is none."""
    with contextlib.suppress(FileNotFoundError):
        status = folder.stat()
        return status.st_dev, status.st_ino
    return None


def _message(error: Exception) -> str:
    """The message without what tensorstore adds to it, a page of settings."""
    return str(error).partition(" [tensorstore_spec=")[0]


def _set_aside(folder: pathlib.Path, reason: str) -> None:
    aside = tempfile.mkdtemp(prefix=f"{folder.name}.unreadable-", dir=folder.parent)
    os.rename(folder, aside)
    warnings.warn(
        f"the checkpoint {folder} is set aside as {aside}: {reason}", stacklevel=4
    )


def _delete(folder: pathlib.Path) -> None:
    """Rename, then delete: a kill in between leaves nothing that looks like a checkpoint."""
    doomed = folder.with_name(f"{folder.name}.deleting")
    _remove_temporary(doomed)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def _remove_temporary(folder: pathlib.Path) -> None:
    """Remove what a kill left half written or half deleted. Raises FileExistsError if it holds files of others."""
    if not folder.exists():
        return
    parts = tuple(
        f"{item}." for item in _ITEMS
    )  # as orbax names a part that it has not finished
    for entry in folder.iterdir():
        if entry.name not in {*_ITEMS, *_MARKS} and not entry.name.startswith(parts):
            raise FileExistsError(
                f"{folder} holds {entry.name}, which is not of a checkpoint, and is left alone"
            )
    shutil.rmtree(folder)


def _write_atomically(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(
        f".{path.name}.writing"
    )  # the same each time, so that kills leave one at most
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _as_json(config: dict[str, Any]) -> dict[str, Any]:
    """`config` as JSON would return it (tuples become lists), each value checked."""
    for name, value in config.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"config[{name!r}] must be a JSON value, got {value!r}: {error}"
            ) from None
    return json.loads(json.dumps(config))


def _refuse_other_config(
    folder: pathlib.Path,
    stored: dict[str, Any],
    config: dict[str, Any],
    ignore: Collection[str],
) -> None:
    ignored = set(ignore)
    old, new = (
        _leaves({k: v for k, v in each.items() if k not in ignored})
        for each in (stored, config)
    )
    differing = [
        name
        for name in sorted(old.keys() | new.keys())
        if not _same(old.get(name), new.get(name))
    ]
    if differing:
        lines = [
            f"{name}: stored {old.get(name, _ABSENT)}, new {new.get(name, _ABSENT)}"
            for name in differing
        ]
        raise ValueError(
            f"the checkpoint {folder} is of another configuration ({'; '.join(lines)}); "
            f"use another directory, or the stored configuration to resume"
        )


def _leaves(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted name -> value as JSON text, for every entry of nested dicts that is not a dict with entries."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            found |= _leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.dumps(value)
    return found


def _same(old: str | None, new: str | None) -> bool:
    if old is None or new is None:
        return old == new
    return old == new or json.loads(old) == json.loads(
        new
    )  # as text NaN equals itself, as values 1 equals 1.0
