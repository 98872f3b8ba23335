"""Data parallelism over one mesh axis named "data": the batch is split over the devices, the state is on each."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .. import checks
from ..types import PyTree, check_integers

AXIS = "data"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, "data", of type Auto, over `devices` (default: all of them).

    Under Auto a compiled step needs no change: the mean over a split batch makes XLA add the sums over devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices must hold at least one device, got none")
    for device in devices:
        if not isinstance(device, jax.Device):
            raise TypeError(
                f"devices must be a sequence of JAX's devices, got {device!r}"
            )
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """`tree` with every leaf whole on each device of `mesh`. Raises ValueError for a mesh that `data_mesh` would not
    make (no axis "data", or an axis of type Explicit)."""
    _check(mesh)
    check_integers("tree", tree)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(batch: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """`batch` with axis `axis` of every leaf split over the devices: 0 for a batch (B, ...), 1 for a block (K, B, ...).

    Raises ValueError, with both numbers, where B is no multiple of the number of devices on the axis "data".
    """
    _check(mesh)
    devices, axis = mesh.shape[AXIS], checks.integer("axis", axis, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name = "batch" + jax.tree_util.keystr(path)
        if not hasattr(leaf, "ndim"):
            raise TypeError(f"{name} must be an array, got {leaf!r}")
        if leaf.ndim <= axis:
            raise ValueError(
                f"{name} must have an axis {axis} to split, got shape {leaf.shape}"
            )
        if leaf.shape[axis] % devices:
            raise ValueError(
                f"{name}: batch size {leaf.shape[axis]} must be a multiple of the {devices} devices"
            )
    return jax.device_put(
        batch, NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))
    )


def _check(mesh: Mesh) -> None:
    checks.made_by("mesh", mesh, Mesh, "data_mesh")
    if AXIS not in mesh.axis_names:
        raise ValueError(
            f"mesh must have an axis named {AXIS!r}, got axes {mesh.axis_names}"
        )
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True):
        if kind != AxisType.Auto:
            raise ValueError(
                f"mesh axis {name!r} must have type Auto, got {kind}; make the mesh with data_mesh()"
            )
