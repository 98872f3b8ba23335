"""Training over many devices: a mesh, a rule of sharding, and batches split over it.

Every device computes its share of each batch. Parameters, averages and
optimiser state are split too (fully sharded data parallelism, Rajbhandari et
al. 2020): a device keeps its part, and a step gathers the parameters while it
needs them.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from .. import checks
from ..types import PyTree, check_integers

__all__ = [
    "AXIS",
    "MODEL_AXIS",
    "SMALL",
    "data_mesh",
    "partition_spec",
    "replicate",
    "shard_batch",
    "shard_state",
]

AXIS = "data"
"""Name of the axis over which batches and states are split."""

MODEL_AXIS = "model"
"""Name of the axis over which a second axis of each array is split."""

SMALL = 1024
"""Arrays of fewer entries stay whole on each device."""


def _devices(name, value):
    devices = list(jax.devices() if value is None else value)
    checks.require(devices, f"{name} must hold at least one device, got none")
    for device in devices:
        checks.instance(name, device, jax.Device, "a sequence of JAX's devices")
    return devices


def _data_mesh(name, mesh):
    checks.made_by(name, mesh, Mesh, "data_mesh")
    _check_axes(name, mesh)


def _any_data_mesh(name, mesh):
    checks.made_by(name, mesh, Mesh | AbstractMesh, "data_mesh")
    _check_axes(name, mesh)


def _check_axes(name, mesh):
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    checks.require(
        AXIS in kinds and set(kinds.values()) == {AxisType.Auto},
        f"{name} must have an axis {AXIS!r} and Auto alone, see data_mesh, got {kinds}",
    )


@checks.arguments(model=(checks.integer, 1))
def data_mesh(devices: Sequence[Any] | None = None, *, model: int = 1) -> Mesh:
    """A mesh of two axes, "data" and "model", of type Auto.

    Under Auto a compiled step needs no change: the mean over a split batch
    makes XLA add the sums over devices.

    Args:
      devices: JAX's devices. None for all of them, those of other processes
        included.
      model: Number of devices along the axis "model". Above 1 each array is
        split along two of its axes, see `partition_spec`.

    Returns:
      The mesh, of shape (devices/model, model).

    Raises:
      ValueError: If there is no device, or their number is no multiple of
        `model`.
      TypeError: If an entry is no device of JAX.

    Example:
      >>> mesh = dj.training.data_mesh(jax.devices()[:1])
    """
    devices = _devices("devices", devices)
    checks.divides("model", model, "the number of devices", len(devices))
    return jax.make_mesh(
        (len(devices) // model, model),
        (AXIS, MODEL_AXIS),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices,
    )


@checks.arguments(mesh=_any_data_mesh)
def partition_spec(shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The rule by which `shard_state` splits an array.

    The largest axis that the size of "data" divides is split over it, the
    first of equal ones. Then the largest axis left that the size of "model"
    divides is split over "model". If none is left, the axis that is split
    already is split further where it can be.

    Arrays of fewer than `SMALL` entries stay whole. So do those without such
    an axis.

    Args:
      shape: The array's shape.
      mesh: As `data_mesh` makes it, or an `AbstractMesh` of such axes.

    Returns:
      The name of the mesh's axis for each axis of the array.

    Raises:
      ValueError: If the mesh has no axis "data", or an axis of another type
        than Auto.
      TypeError: If `mesh` is no mesh.

    Example:
      >>> automatic = (jax.sharding.AxisType.Auto,) * 2
      >>> mesh = jax.sharding.AbstractMesh((8, 1), ("data", "model"), automatic)
      >>> tuple(dj.training.partition_spec((3, 3, 64, 128), mesh))
      (None, None, None, 'data')
    """
    names: dict[int, tuple[str, ...]] = {}  # axis of the array -> axes of the mesh
    largest_first = sorted(range(len(shape)), key=lambda axis: -shape[axis])
    if math.prod(shape) < SMALL:
        return PartitionSpec()
    for name in (AXIS, *(other for other in mesh.axis_names if other != AXIS)):
        if mesh.shape[name] == 1:
            continue
        # Axes that are not split yet come first.
        for axis in sorted(largest_first, key=lambda axis: axis in names):
            split = names.get(axis, ())
            if shape[axis] % math.prod(mesh.shape[n] for n in (*split, name)) == 0:
                names[axis] = (*split, name)
                break
    last = max(names, default=-1)
    spec = [names.get(axis) for axis in range(last + 1)]
    return PartitionSpec(
        *(entry[0] if entry and len(entry) == 1 else entry for entry in spec)
    )


@checks.arguments(mesh=_data_mesh)
def shard_state(state: PyTree, mesh: Mesh) -> PyTree:
    """A copy of a training state split over the devices of a mesh.

    Args:
      state: A `TrainState`, or any pytree of arrays. With several processes,
        arrays that lie on this one's devices must be equal in all of them.
      mesh: As `data_mesh` makes it.

    Returns:
      The state. Each array is split by `partition_spec`.

    Raises:
      ValueError: If the mesh has no axis "data", or an axis of another type
        than Auto.
      TypeError: If `mesh` is no mesh.

    Example:
      >>> rule = dj.training.optimiser(1e-3)
      >>> state = dj.training.init(key, {"w": jnp.ones((64, 64))}, rule)
      >>> state = dj.training.shard_state(state, dj.training.data_mesh())
    """
    check_integers("state", state)
    return jax.tree.map(
        lambda leaf: placed(
            leaf, NamedSharding(mesh, partition_spec(np.shape(leaf), mesh))
        ),
        state,
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

    Example:
      >>> mesh = dj.training.data_mesh()
      >>> params = dj.training.replicate({"w": jnp.ones(3)}, mesh)
      >>> params["w"].sharding.is_fully_replicated
      True
    """
    check_integers("tree", tree)
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: placed(leaf, sharding), tree)


@checks.arguments(mesh=_data_mesh, axis=(checks.integer, 0))
def shard_batch(batch: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """Split one axis of every leaf of a batch over all devices of a mesh.

    Args:
      batch: A pytree of arrays. With several processes it is the whole batch
        in each of them.
      mesh: As `data_mesh` makes it.
      axis: 0 for a batch (B, ...), 1 for a block of batches (K, B, ...).

    Returns:
      The batch on the devices.

    Raises:
      ValueError: If B is no multiple of the number of devices, with both
        numbers.
      TypeError: If a leaf is no array, or `mesh` is no mesh.

    Example:
      >>> mesh = dj.training.data_mesh()
      >>> batch = {"x": jnp.ones((2 * mesh.size, 3))}
      >>> part = dj.training.shard_batch(batch, mesh)["x"].sharding
      >>> part.shard_shape((2 * mesh.size, 3))
      (2, 3)
    """
    devices = mesh.size
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name = "batch" + jax.tree_util.keystr(key_path)
        checks.instance(name, leaf, jax.Array | np.ndarray | np.generic, "an array")
        checks.require(
            leaf.ndim > axis and leaf.shape[axis] % devices == 0,
            f"{name} must have axis {axis}, a multiple of {devices}, got {leaf.shape}",
        )
    sharding = batch_sharding(mesh, axis)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda leaf: placed(leaf, sharding), batch)


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """The rows of a batch that devices of this process hold.

    Args:
      batch_size: Number of rows of the batch, a multiple of the mesh's size.
      mesh: As `data_mesh` makes it.

    Returns:
      Their positions, increasing.
    """
    checks.divides("the number of devices", mesh.size, "batch_size", batch_size)
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[at] for at in held.values()]
    return np.sort(np.concatenate(rows))


def global_block(
    local: PyTree, rows: np.ndarray, batch_size: int, mesh: Mesh
) -> PyTree:
    """A block of batches. Each process has the rows of its devices.

    Args:
      local: A pytree with leaves (K, n, ...), the rows of this process.
      rows: Their positions in the batch, as of `local_rows`.
      batch_size: Number of rows of the batch.
      mesh: As `data_mesh` makes it.

    Returns:
      A pytree with leaves (K, batch_size, ...), as of `shard_batch`.
    """
    sharding = batch_sharding(mesh, 1)

    def whole(leaf):
        def shard(at):
            start = np.searchsorted(rows, at[1].start or 0)
            stop = np.searchsorted(
                rows, batch_size if at[1].stop is None else at[1].stop
            )
            return leaf[:, start:stop]

        shape = (leaf.shape[0], batch_size, *leaf.shape[2:])
        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(whole, local)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The placement of an array with one axis split over all devices of a mesh.

    Args:
      mesh: As `data_mesh` makes it.
      axis: The axis that is split.

    Returns:
      The placement.
    """
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))


def placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """A copy of an array in buffers of its own, placed anew.

    Args:
      leaf: The array. One on devices of this process alone must be equal in
        all processes.
      sharding: Its new placement.

    Returns:
      The copy.
    """
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return _copied_to(sharding)(leaf)
    if sharding.is_fully_addressable:
        # On several devices `may_alias` is no promise: part of the array, or all
        # of it, may stay in the buffer that it is in.
        if isinstance(leaf, jax.Array) and len(leaf.devices()) > 1:
            leaf = _copied_to(leaf.sharding)(leaf)
        else:
            leaf = jax.device_put(leaf, may_alias=False)
        return jax.device_put(leaf, sharding)
    # Of the devices of other processes, only a callback need not know.
    if is_key := jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        kind, leaf = jax.random.key_impl(leaf), jax.random.key_data(leaf)
    host = np.asarray(leaf, jnp.result_type(leaf))
    placed = jax.make_array_from_callback(host.shape, sharding, lambda at: host[at])
    return jax.random.wrap_key_data(placed, impl=kind) if is_key else placed


@functools.lru_cache(maxsize=64)
def _copied_to(sharding):
    return jax.jit(jnp.copy, out_shardings=sharding)


# ---- the steps of a state that is split


def placed_state(state: PyTree, mesh: Mesh | None) -> PyTree:
    """A copy of a state whose buffers may be donated, on the devices of `mesh`.

    Args:
      state: A `TrainState`, or any pytree of arrays.
      mesh: As `data_mesh` makes it, or None for where the state is.

    Returns:
      The copy. A state that lies on all devices of the mesh already keeps its
      placement. Any other is split by `shard_state`.
    """
    if mesh is None:
        return jax.device_put(state, may_alias=False)
    wanted = set(mesh.devices.flat)
    leaves = jax.tree.leaves(state)
    if all(
        isinstance(leaf, jax.Array) and leaf.sharding.device_set == wanted
        for leaf in leaves
    ) and any(isinstance(leaf.sharding, NamedSharding) for leaf in leaves):
        return jax.tree.map(lambda leaf: placed(leaf, leaf.sharding), state)
    return shard_state(state, mesh)


def pinned(
    steps_fn: Callable[..., Any], state: PyTree, mesh: Mesh | None
) -> Callable[..., Any]:
    """Compiled steps that return a state placed as the one that they are called with.

    Nothing is then laid out anew between calls, and its buffers are donated.
    Metrics are whole on each device.

    Args:
      steps_fn: (state, batches) -> (state, metrics), a function that JAX can
        trace.
      state: A state in its placement.
      mesh: Its mesh. None returns `steps_fn`.

    Returns:
      A function of the same arguments.
    """
    if mesh is None:
        return steps_fn
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    leaves, structure = jax.tree.flatten(shardings)
    return _pinned(steps_fn, mesh, tuple(leaves), structure)


# Kept, for `fit` is called anew for each part of a run.
@functools.lru_cache(maxsize=16)
def _pinned(steps_fn, mesh, leaves, structure):
    placement = jax.tree.unflatten(structure, leaves)
    whole_metrics = NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(
        lambda *arguments: steps_fn(*arguments),
        donate_argnums=0,
        out_shardings=(placement, whole_metrics),
    )
    # Replicated states need neither `gathered` nor `split`.
    replicated = all(leaf.is_fully_replicated for leaf in leaves)
    return _Pinned(compiled, None if replicated else mesh)


class _Pinned:
    """A compiled function whose program belongs to a mesh, if there is one."""

    def __init__(self, compiled: Any, mesh: Mesh | None):
        self._compiled, self._mesh = compiled, mesh

    # A mesh in the context is part of the key of JAX's caches, so that
    # `gathered` may depend on it.
    def _context(self) -> Any:
        return (
            contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)
        )

    def __call__(self, *arguments: Any) -> Any:
        with self._context():
            return self._compiled(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """The program for these arguments, not compiled yet."""
        with self._context():
            return self._compiled.lower(*arguments)


def gathered(params: PyTree) -> PyTree:
    """The parameters whole on each device, in a step that `pinned` compiles.

    Without this XLA may split the computation along the parameters' axes
    instead of gathering them, which exchanges activations.
    """
    if not _in_data_mesh():
        return params
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), params
    )


def split(gradient: PyTree) -> PyTree:
    """The gradient split as the state is, in a step that `pinned` compiles.

    Each device then sums, measures and applies its part of it alone.
    """
    if not _in_data_mesh():
        return gradient
    mesh = jax.sharding.get_abstract_mesh()
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(
            leaf, partition_spec(leaf.shape, mesh)
        ),
        gradient,
    )


def _in_data_mesh() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return AXIS in mesh.axis_names and set(mesh.axis_types) == {AxisType.Auto}
