"""Checkpoints of a whole `TrainState` over orbax, beside the configuration that made them."""

import json
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from .. import checks
from ..types import PyTree
from .state import TrainState

_CONFIG = "training_config.json"
_ITEMS = ("ema", "rest")  # apart, so that the average can be read without knowing the optimiser
_ABSENT = "absent"
_UNREADABLE = (ValueError, KeyError, EOFError, FileNotFoundError)  # of damaged files; out of memory is none of these


class Checkpoints:
    """The checkpoints in `directory`, one folder a step, of which the newest `keep` are kept.

    A checkpoint holds params, ema, opt_state, the key and the step, which is the position in the data.
    It appears under its name only when whole: one cut short by a kill is never read; a folder that is not whole for
    another reason is renamed `STEP.unreadable…` with a warning, and the newest whole one counts.
    config: the run's configuration, JSON values by name, written beside the checkpoints.
    ignore: top-level fields of it that may differ from the stored ones (the number of steps, the output folder).

    Raises ValueError where the directory holds checkpoints of another configuration, naming each field with both
    values; TypeError for a value that JSON cannot hold. Saving happens in the background on copies: buffers may be
    donated at once. A context manager: leaving it waits for the last save.
    """

    def __init__(
        self, directory: str | os.PathLike, config: dict[str, Any], keep: int = 2, ignore: Collection[str] = ()
    ):
        checks.integer("keep", keep, 1)
        self.directory = pathlib.Path(directory).absolute()
        config = _as_json(config)
        self.directory.mkdir(parents=True, exist_ok=True)
        whole = _whole_steps(self.directory)
        if whole:
            _refuse_other_config(self.directory, config, ignore)
        if jax.process_index() == 0:
            for folder in _step_folders(self.directory):
                if int(folder.name) in whole:
                    continue
                if whole and int(folder.name) < whole[-1]:
                    shutil.rmtree(folder)  # a kill came while it was being deleted: finish that
                else:
                    _set_aside(folder, "it is not whole")
            _write_atomically(self.directory / _CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
        handlers = {item: ocp.StandardCheckpointHandler() for item in _ITEMS}
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._orbax = ocp.CheckpointManager(self.directory, item_handlers=handlers, options=options)

    def save(self, step: int, state: TrainState) -> None:
        """Save `state` as that of `step`, in the background; nothing to do where `step` is the latest already.

        Raises ValueError where `step` differs from state.step or lies before the latest checkpoint (which orbax would
        skip without a word), and what went wrong in the save before this one.
        """
        if step != int(state.step):
            raise ValueError(f"step must equal state.step={int(state.step)}, got {step}")
        latest = self.latest_step()
        if latest is not None and step < latest:
            raise ValueError(f"step must be {latest} or more, the latest checkpoint in {self.directory}, got {step}")
        if step == latest:
            return
        items = {name: ocp.args.StandardSave(_to_host(part)) for name, part in _items(state).items()}
        self._orbax.save(step, args=ocp.args.Composite(**items), force=True)

    def restore_latest(self, state_template: TrainState) -> TrainState | None:
        """The state of the newest readable checkpoint, or None where there is none yet.

        state_template: a state of the same structure (as `init` returns it, or its `jax.eval_shape`): arrays come back
        with its dtypes, key type and shardings, bit for bit as saved. Raises ValueError where the stored arrays have
        other names, shapes or dtypes, and RuntimeError where there are checkpoints but none can be read.
        """
        self.wait()
        items, failures = _items(state_template), []
        while (step := self.latest_step()) is not None:
            folder = self.path(step)
            try:
                restored = {name: leaf for item in _ITEMS for name, leaf in _read(folder, item, items[item]).items()}
                return _unflatten(state_template, restored)
            except _OtherArrays:
                raise
            except _UNREADABLE as error:
                failures.append(f"{folder}: {error}")
                _set_aside(folder, f"it cannot be read ({str(error)[:200]})")
                self._orbax.reload()
        if failures:
            raise RuntimeError("no checkpoint can be read: " + "; ".join(failures))
        return None

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint (one being saved counts), or None."""
        return self._orbax.latest_step()

    def path(self, step: int) -> pathlib.Path:
        """The folder of the checkpoint of `step`."""
        return self.directory / str(step)

    def wait(self) -> None:
        """Return once the save under way is whole on disk; raise what went wrong in it."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Wait for the save under way and release what orbax holds."""
        self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_ema(directory: str | os.PathLike, template: PyTree | None = None, step: int | None = None) -> PyTree:
    """The averaged parameters of the newest checkpoint in `directory` (or of `step`), on the first device.

    They come in the structure of `template` (arrays or `jax.ShapeDtypeStruct`s), or, without one, as nested dicts by
    name, which is what Flax parameters are. No optimiser and no configuration is needed.
    Raises FileNotFoundError where there is no whole checkpoint, ValueError where the template has other arrays.
    """
    directory = pathlib.Path(directory).absolute()
    steps = _whole_steps(directory)
    if not steps or (step is not None and step not in steps):
        wanted = "" if step is None else f" of step {step}"
        raise FileNotFoundError(f"{directory} holds no whole checkpoint{wanted}; it has steps {steps}")
    folder = directory / str(steps[-1] if step is None else step)
    if template is not None:
        return _unflatten(template, _read(folder, "ema", _flat(template, "ema")), "ema")
    stored = {name: jax.ShapeDtypeStruct(*form) for name, form in _metadata(folder / "ema").items()}
    tree: dict[str, Any] = {}
    for name, leaf in _read(folder, "ema", stored).items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree["ema"]


# ---- a state as flat dicts of arrays by name: orbax then meets no custom node, no empty node and no key


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    rest = _flat(state.params, "params") | _flat(state.opt_state, "opt_state")
    return {"ema": _flat(state.ema, "ema"), "rest": rest | {"step": state.step, "key": state.key}}


def _flat(tree: PyTree, prefix: str) -> dict[str, Any]:
    """The leaves by name, as "params/dense/kernel"; arrays of size 0, which orbax cannot store, are left out."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {_name(prefix, path): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError(f"{prefix} has two leaves of one name among {[_name(prefix, path) for path, _ in leaves]}")
    return {name: leaf for name, leaf in flat.items() if leaf.size}


def _unflatten(template: PyTree, flat: dict[str, Any], prefix: str = "") -> PyTree:
    def leaf_at(path, leaf):
        return flat[_name(prefix, path)] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(leaf_at, template)


def _name(prefix: str, path: Any) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return "/".join(part for part in (prefix, name) if part)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(flat: dict[str, Any]) -> dict[str, Any]:
    """Copies on the host: on a CPU orbax's own would be views of buffers about to be donated."""

    def copy(leaf):
        leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        return np.array(leaf) if leaf.is_fully_addressable or leaf.is_fully_replicated else leaf

    return {name: copy(leaf) for name, leaf in flat.items()}


def _stored_form(leaf: Any) -> Any:
    """Shape, dtype and placement under which a leaf of a template is stored: keys as their words."""
    form = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(form.shape, form.dtype, sharding=sharding)


def _key_type(leaf: Any) -> Any:
    """The implementation of a template's key, which may be a `ShapeDtypeStruct`."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]


def _read(folder: pathlib.Path, item: str, part: dict[str, Any]) -> dict[str, Any]:
    """The arrays of `item` in the forms of `part`, whose names, shapes and dtypes must be the stored ones."""
    forms = {name: _stored_form(leaf) for name, leaf in part.items()}
    key_types = {name: _key_type(leaf) for name, leaf in part.items() if _is_key(leaf)}
    _refuse_other_arrays(folder, _metadata(folder / item), forms)
    restored = ocp.StandardCheckpointHandler().restore(folder / item, args=ocp.args.StandardRestore(forms))
    for name, key_type in key_types.items():
        restored[name] = jax.random.wrap_key_data(restored[name], impl=key_type)
    return restored


def _metadata(folder: pathlib.Path) -> dict[str, tuple]:
    """Name -> (shape, dtype) of the arrays stored in `folder`."""
    tree: Any = ocp.StandardCheckpointHandler().metadata(folder).tree
    return {name: (tuple(entry.shape), np.dtype(entry.dtype)) for name, entry in tree.items()}


class _OtherArrays(ValueError):
    """The stored arrays are not those of the template."""


def _refuse_other_arrays(folder: pathlib.Path, stored: dict[str, tuple], forms: dict[str, Any]) -> None:
    """orbax by itself casts a dtype silently and names no leaf where a shape differs."""
    wanted = {name: (tuple(form.shape), np.dtype(form.dtype)) for name, form in forms.items()}
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            kept, asked = (_describe(arrays.get(name)) for arrays in (stored, wanted))
            raise _OtherArrays(f"{folder}: array {name!r} is {kept} in the checkpoint, {asked} in the template")


def _describe(entry: tuple | None) -> str:
    return _ABSENT if entry is None else f"{entry[1]}{list(entry[0])}"


# ---- the directory


def _step_folders(directory: pathlib.Path) -> list[pathlib.Path]:
    return [folder for folder in directory.iterdir() if folder.name.isdigit()] if directory.is_dir() else []


def _whole_steps(directory: pathlib.Path) -> list[int]:
    """Steps whose folder holds both items; orbax renames a folder to its step once it is written."""

    def is_whole(folder):
        marks = ["_CHECKPOINT_METADATA", *(f"{item}/_METADATA" for item in _ITEMS)]
        return all((folder / mark).is_file() for mark in marks)

    return sorted(int(folder.name) for folder in _step_folders(directory) if is_whole(folder))


def _set_aside(folder: pathlib.Path, reason: str) -> None:
    aside = tempfile.mkdtemp(prefix=f"{folder.name}.unreadable-", dir=folder.parent)
    os.rename(folder, aside)
    warnings.warn(f"the checkpoint {folder} is set aside as {aside}: {reason}", stacklevel=3)


def _write_atomically(path: pathlib.Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def _as_json(config: dict[str, Any]) -> dict[str, Any]:
    """`config` as JSON would return it (tuples become lists), each value checked."""
    for name, value in config.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError) as error:
            raise TypeError(f"config[{name!r}] must be a JSON value, got {value!r}: {error}") from None
    return json.loads(json.dumps(config))


def _refuse_other_config(directory: pathlib.Path, config: dict[str, Any], ignore: Collection[str]) -> None:
    path = directory / _CONFIG
    if not path.is_file():
        raise ValueError(f"{directory} holds checkpoints but no {_CONFIG}: they are not of this configuration")
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    ignored = set(ignore)
    old, new = ({k: v for k, v in each.items() if k not in ignored} for each in (stored, config))
    old, new = _leaves(old), _leaves(new)
    differing = [name for name in sorted(old.keys() | new.keys()) if not _same(old.get(name), new.get(name))]
    if differing:
        lines = [f"{name}: stored {old.get(name, _ABSENT)}, new {new.get(name, _ABSENT)}" for name in differing]
        raise ValueError(
            f"{directory} holds checkpoints of another configuration ({'; '.join(lines)}); "
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
    return old == new or json.loads(old) == json.loads(new)  # as text NaN equals itself, as values 1 equals 1.0
