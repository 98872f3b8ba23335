"""Data parallelism over one mesh axis named "data".

The batch is split over the devices, and the state is whole on each.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .. import checks
from ..types import PyTree, check_integers

__all__ = ["AXIS", "data_mesh", "replicate", "shard_batch"]

AXIS = "data"
"""Name of the axis over which the batch is split."""


def _devices(name, value):
    devices = list(jax.devices() if value is None else value)
    checks.require(devices, f"{name} must hold at least one device, got none")
    for device in devices:
        checks.instance(name, device, jax.Device, "a sequence of JAX's devices")
    return devices


def _data_mesh(name, mesh):
    checks.made_by(name, mesh, Mesh, "data_mesh")
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    checks.require(
        AXIS in kinds and set(kinds.values()) == {AxisType.Auto},
        f"{name} must have an axis {AXIS!r} and Auto alone, see data_mesh, got {kinds}",
    )


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, "data", of type Auto.

    Under Auto a compiled step needs no change: the mean over a split batch
    makes XLA add the sums over devices.

    Args:
      devices: JAX's devices. None for all of them.

    Returns:
      The mesh.

    Raises:
      ValueError: If there is no device.
      TypeError: If an entry is no device of JAX.

    Example:
      >>> mesh = dj.training.data_mesh(jax.devices()[:1])
    """
    devices = _devices("devices", devices)
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


@checks.arguments(mesh=_data_mesh)
def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of a pytree whole on each device of a mesh.

    Args:
      tree: A pytree of arrays.
      mesh: As `data_mesh` makes it.

    Returns:
      The pytree.

    Raises:
      ValueError: If the mesh has no axis "data", or an axis of another type
        than Auto.
      TypeError: If `mesh` is no mesh.
    """
    check_integers("tree", tree)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


@checks.arguments(mesh=_data_mesh, axis=(checks.integer, 0))
def shard_batch(batch: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """Split one axis of every leaf of a batch over the devices of a mesh.

    Args:
      batch: A pytree of arrays.
      mesh: As `data_mesh` makes it.
      axis: 0 for a batch (B, ...), 1 for a block of batches (K, B, ...).

    Returns:
      The batch on the devices.

    Raises:
      ValueError: If B is no multiple of the number of devices, with both
        numbers.
      TypeError: If a leaf is no array, or `mesh` is no mesh.
    """
    devices = mesh.shape[AXIS]
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name = "batch" + jax.tree_util.keystr(key_path)
        checks.instance(name, leaf, jax.Array | np.ndarray | np.generic, "an array")
        checks.require(
            leaf.ndim > axis and leaf.shape[axis] % devices == 0,
            f"{name} must have axis {axis}, a multiple of {devices}, got {leaf.shape}",
        )
    spec = PartitionSpec(*[None] * axis, AXIS)
    return jax.device_put(batch, NamedSharding(mesh, spec))
