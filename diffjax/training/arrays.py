"""A training state as named arrays on disk, written and read by orbax.

orbax then meets no custom node, no empty node and no key.
"""

import dataclasses
import errno
import os
import pathlib
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from .. import checks
from ..types import PyTree
from . import folders, manifest, parallel, processes
from .configuration import ABSENT
from .state import TrainState

__all__ = [
    "OtherArrays",
    "flatten",
    "from_first",
    "items_of",
    "message",
    "nested",
    "read",
    "state_of",
    "to_host",
    "unflatten",
    "write",
    "write_whole",
]

_ORBAX = threading.RLock()
"""Held while orbax works, which numbers its operations by a counter of the process."""


_ALONE = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
"""Each process works alone, and waits for no other."""


class OtherArrays(ValueError):
    """The stored arrays are not those of the template."""


# ---- pytrees and flat dicts


def items_of(state: TrainState) -> dict[str, dict[str, Any]]:
    """The arrays of a state by item and name.

    Averages are named by their length, so that one never passes for another.
    """
    rest = flatten(state.params, "params") | flatten(state.opt_state, "opt_state")
    for length, average in zip(state.lengths, state.averages, strict=True):
        rest |= flatten(average, f"averages/{length!r}")
    return {
        "ema": flatten(state.ema, "ema"),
        "rest": rest | {"step": state.step, "key": state.key},
    }


def state_of(template: TrainState, flat: dict[str, Any]) -> TrainState:
    """The inverse of `items_of`.

    Args:
      template: A state of the structure.
      flat: Arrays by name, those of all items.

    Returns:
      The state. Arrays of size 0 are made anew.
    """
    averages = tuple(
        unflatten(average, flat, f"averages/{length!r}")
        for length, average in zip(template.lengths, template.averages, strict=True)
    )
    state = unflatten(dataclasses.replace(template, averages=()), flat)
    return dataclasses.replace(state, averages=averages)


def flatten(tree: PyTree, prefix: str) -> dict[str, Any]:
    """The leaves of a pytree by name, such as "params/dense/kernel".

    Args:
      tree: A pytree of arrays. Those of size 0, which orbax cannot store, are
        left out.
      prefix: First part of the names.

    Returns:
      The arrays by name.

    Raises:
      ValueError: If two leaves have one name.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {_name(prefix, key_path): leaf for key_path, leaf in leaves}
    names = [_name(prefix, key_path) for key_path, _ in leaves]
    checks.require(len(flat) == len(names), f"{prefix} names must differ, got {names}")
    return {name: leaf for name, leaf in flat.items() if leaf.size}


def unflatten(template: PyTree, flat: dict[str, Any], prefix: str = "") -> PyTree:
    """The inverse of `flatten`.

    Args:
      template: A pytree of the structure.
      flat: Arrays by name.
      prefix: First part of the names.

    Returns:
      The pytree. Arrays of size 0 are made anew.
    """

    def leaf_at(key_path, leaf):
        if leaf.size:
            return flat[_name(prefix, key_path)]
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(leaf_at, template)


def nested(flat: dict[str, Any]) -> Any:
    """Arrays as nested dicts by the parts of their names, as Flax parameters are.

    Args:
      flat: Arrays by name.

    Returns:
      The dicts. An array without a name stands alone.
    """
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree.get("", tree)


def _name(prefix: str, key_path: Any) -> str:
    name = jax.tree_util.keystr(key_path, simple=True, separator="/")
    return "/".join(part for part in (prefix, name) if part)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_host(flat: dict[str, Any]) -> dict[str, Any]:
    """Copies as NumPy arrays, which no later step can donate. Keys become words."""
    return processes.to_host({name: _words(leaf) for name, leaf in flat.items()})


def from_first(flat: dict[str, np.ndarray], template: dict[str, Any]) -> dict[str, Any]:
    """Arrays that process 0 has read, in all processes.

    Args:
      flat: Arrays by name in process 0, as `read` returns them on the host.
      template: Arrays by name, whose placement the others get. Those without
        one are put on a device of each process.

    Returns:
      The arrays by name.
    """
    mine = flat if jax.process_index() == 0 else None
    placed = {}
    for name, array in processes.arrays_from_first(mine).items():
        leaf: Any = template[name]
        sharding = getattr(leaf, "sharding", None)
        whole = sharding is None or sharding.is_fully_addressable
        value = _key(array, _key_type(leaf)) if _is_key(leaf) else array
        # What is split is never whole on a device.
        placed[name] = (
            jax.device_put(value) if whole else parallel.placed(value, sharding)
        )
    return placed


def _words(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _key(words: Any, kind: Any) -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(words), impl=kind)


# ---- orbax


def write(folder: pathlib.Path, items: dict[str, dict[str, Any]]) -> None:
    """Write arrays.

    Args:
      folder: An existing folder.
      items: Arrays by item and name.
    """
    with _ORBAX:
        for item, arrays in items.items():
            saver = ocp.Checkpointer(
                ocp.StandardCheckpointHandler(multiprocessing_options=_ALONE),
                multiprocessing_options=_ALONE,
            )
            saver.save(folder / item, args=ocp.args.StandardSave(arrays))


def write_whole(
    folder: pathlib.Path,
    config: dict[str, Any],
    items: dict[str, dict[str, Any]],
    position: Any = None,
) -> None:
    """Write arrays and their manifest so that a folder of this name is whole.

    It is written under another name and renamed. Of several processes the
    first alone calls this.

    Args:
      folder: The folder, which does not exist yet.
      config: The configuration, JSON values by name.
      items: Arrays by item and name.
      position: That of the source of data, a JSON value, or None.
    """
    temporary = folder.with_name(f"{folder.name}.writing")
    folders.remove_temporary(temporary, tuple(items))
    temporary.mkdir()
    write(temporary, items)
    described = {item: manifest.describe(part) for item, part in items.items()}
    manifest.write(temporary, manifest.Manifest(config, described, position))
    os.rename(temporary, folder)


def read(
    folder: pathlib.Path,
    item: str,
    *,
    stored: manifest.Arrays,
    template: dict[str, Any] | None = None,
    on_host: bool = False,
) -> dict[str, Any]:
    """Read the arrays of one item, and verify their checksums.

    Of an array that is spread over several processes each reads the part of its
    own devices. Such a part has no checksum.

    Args:
      folder: The checkpoint's folder.
      item: The item's name.
      stored: Its arrays in the manifest.
      template: Arrays, or their `jax.ShapeDtypeStruct`, by name. None for
        those in the manifest, on the first device.
      on_host: Whether to read NumPy arrays, and the words of keys.

    Returns:
      The arrays, with the template's key types and shardings.

    Raises:
      OtherArrays: If names, shapes or dtypes differ from the template's.
      manifest.Damaged: If the arrays cannot be read, or differ from their
        checksums.
    """
    if template is None:
        template = {
            name: jax.ShapeDtypeStruct(entry["shape"], entry["dtype"])
            for name, entry in stored.items()
        }
    forms = {name: _stored_form(leaf, on_host) for name, leaf in template.items()}
    _raise_if_other_arrays(folder, stored, forms)
    try:
        with _ORBAX:
            handler = ocp.StandardCheckpointHandler(multiprocessing_options=_ALONE)
            restored = handler.restore(
                folder / item, args=ocp.args.StandardRestore(forms)
            )
    # For damaged files orbax and tensorstore raise a dozen kinds, bare
    # `Exception` too.
    except Exception as error:
        if _is_fault_of_machine(error):
            raise
        raise manifest.Damaged(f"it cannot be read ({message(error)[:200]})") from error
    manifest.verify(restored, stored)
    for name, leaf in template.items():
        if _is_key(leaf) and not on_host:
            restored[name] = _key(restored[name], _key_type(leaf))
    return restored


def _stored_form(leaf: Any, on_host: bool = False) -> Any:
    """Stored shape, dtype and placement of a leaf. Keys are stored as words."""
    form = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    if on_host:  # orbax reads what has no placement as NumPy
        return jax.ShapeDtypeStruct(form.shape, form.dtype)
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(form.shape, form.dtype, sharding=sharding)


def _key_type(leaf: Any) -> Any:
    """The implementation of a template's key, which may be a `ShapeDtypeStruct`."""
    types = []
    jax.eval_shape(lambda key: types.append(jax.random.key_impl(key)), leaf)
    return types[0]


def _raise_if_other_arrays(
    folder: pathlib.Path, stored: manifest.Arrays, forms: dict[str, Any]
) -> None:
    # orbax by itself casts a dtype silently, and names no leaf where a shape
    # differs.
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
            raise OtherArrays(
                f"array {name!r} is {here} in {folder}, {there} in the template"
            )


def _describe(entry: tuple | None) -> str:
    return ABSENT if entry is None else f"{entry[1]}{list(entry[0])}"


def _is_fault_of_machine(error: Exception) -> bool:
    """Whether an undamaged checkpoint may raise the error too.

    Such faults are no memory, no permission, and too many open files.
    """
    shortages = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    if isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
        return True
    if getattr(error, "errno", None) in shortages:
        return True
    return any(
        word in str(error) for word in ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED")
    )


def message(error: Exception) -> str:
    """The message of an error without what tensorstore adds, a page of settings."""
    short = str(error).partition(" [tensorstore_spec=")[0]
    return short.partition(" See full TensorStore details")[0].rstrip(".")
