"""The devices of a run: the flags that choose them, and arrays on all of them."""

import dataclasses
import functools
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

import diffjax as dj


@dataclasses.dataclass(frozen=True)
class Devices:
    """The flags of every experiment that works on several devices."""

    devices: int | None = None
    """Number of devices to use. Default: all."""
    coordinator: str | None = None
    """host:port of the first of several processes, or auto on a cluster that JAX
    knows. Start the same command in every process.
    """
    processes: int | None = None
    """Number of processes that train together."""
    process_index: int | None = None
    """Index of this process, from 0."""


NAMES = tuple(field.name for field in dataclasses.fields(Devices))
"""The flags, on which no result depends."""

_VARIABLES = ("DIFFJAX_COORDINATOR", "DIFFJAX_PROCESSES", "DIFFJAX_PROCESS_INDEX")

_used: int | None = None


def start(config: Any) -> None:
    """Join the other processes, if the flags or the environment name any.

    Args:
      config: The flags. Those without `devices` start nothing.
    """
    if not hasattr(config, "devices"):
        return
    # An experiment may have flags of its own by these names.
    source = config if isinstance(config, Devices) else Devices()
    flags = tuple(getattr(source, name) for name in NAMES[1:])
    # Any of the variables: a run that lacks one must not start as many alone.
    if set(flags) == {None} and not any(name in os.environ for name in _VARIABLES):
        return
    from diffjax.training import start_processes

    start_processes(*flags)


def is_first() -> bool:
    """Whether this process writes files and prints."""
    # Not `jax.process_index`, which takes the devices before they are needed.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


@functools.cache
def name() -> str:
    """The device as results name it: the model of the GPU, TPU or processor.

    JAX calls every processor "cpu", so that its model comes from the system.

    Returns:
      Such as "NVIDIA H200" or "AMD EPYC, 2 cores".
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    information = pathlib.Path("/proc/cpuinfo")
    text = information.read_text() if information.is_file() else ""
    models = [
        line.partition(":")[2].strip()
        for line in text.splitlines()
        if line.startswith("model name")
    ]
    model = models[0] if models else platform.processor() or platform.machine()
    count = os.cpu_count() or 1
    return f"{model or 'cpu'}, {count} core{'s' if count > 1 else ''}"


def use(config: Any) -> int:
    """Choose the devices of a run.

    Args:
      config: The flags. Those without `devices` use one.

    Returns:
      Their number. `mesh` returns them from now on.

    Raises:
      ValueError: If there are fewer devices than `devices`, or not all of them
        are used with several processes.
    """
    global _used
    count = getattr(config, "devices", None) if hasattr(config, "devices") else 1
    available = jax.device_count()
    if count is not None:
        dj.checks.integer("devices", count, 1)
        if count > available:
            raise ValueError(f"devices must be at most {available}, got {count}")
        if jax.process_count() > 1 and count != available:
            raise ValueError(
                f"devices must be all {available} with several processes, got {count}"
            )
    _used = available if count is None else count
    return _used


def mesh() -> Mesh:
    """The devices of the run, or all before `use`."""
    return _mesh(jax.device_count() if _used is None else _used)


@functools.lru_cache(maxsize=8)
def _mesh(count):
    # Imported here because it imports orbax, which takes a second.
    from diffjax.training import data_mesh

    return data_mesh(jax.devices()[:count])


def check_batch(name: str, batch_size: int) -> None:
    """Raise ValueError unless the devices of the run can share a batch evenly.

    Args:
      name: Name of the flag.
      batch_size: Its value.
    """
    count = mesh().size
    if batch_size % count:
        fewer = max(n for n in range(1, count) if batch_size % n == 0)
        raise ValueError(
            f"{name} must be a multiple of the number of devices, {count}, got "
            f"{batch_size}: take {padded(batch_size)}, or --devices {fewer}"
        )


def padded(count: int) -> int:
    """The least multiple of the number of devices that is at least `count`."""
    return -(-count // mesh().size) * mesh().size


def shared(tree: Any) -> Any:
    """Arrays of which each device of the run has its share.

    In a compiled function XLA then splits what they are computed from, example
    by example, and what is computed from them.

    Args:
      tree: Arrays with a leading axis of examples. One whose length is no
        multiple of the number of devices stays whole.

    Returns:
      The arrays.
    """
    if mesh().size == 1:
        return tree
    sharding = jax.sharding.NamedSharding(mesh(), PartitionSpec(mesh().axis_names))
    return jax.tree.map(
        lambda leaf: (
            leaf
            if len(leaf) % mesh().size
            else jax.lax.with_sharding_constraint(leaf, sharding)
        ),
        tree,
    )


def whole(tree: Any) -> Any:
    """A pytree of arrays, whole on each device of the run."""
    if mesh().size == 1:
        return tree
    from diffjax.training import replicate

    return replicate(tree, mesh())


def whole_shapes(tree: Any) -> Any:
    """Shapes for compiling ahead of time, of arrays that `whole` returns.

    Args:
      tree: A pytree of `jax.ShapeDtypeStruct`s.

    Returns:
      The pytree, with the placement.
    """
    if mesh().size == 1:
        return tree
    sharding = jax.sharding.NamedSharding(mesh(), PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type
        ),
        tree,
    )


def on_host(tree: Any) -> Any:
    """A pytree of arrays as NumPy arrays, in every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    from diffjax.training import processes

    return processes.to_host(tree)
