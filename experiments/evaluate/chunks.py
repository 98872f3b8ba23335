"""Maps over many examples: chunk by chunk, on all devices, with progress."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax import training
from experiments.shared import cli


def over_devices(
    function: Callable[[Any, Any], jax.Array],
    state: Any,
    examples: Any,
    *,
    chunk: int,
    mesh: Mesh,
    label: str,
) -> np.ndarray:
    """Apply a function to all examples, `chunk` at a time on each device.

    Each device takes its share of a chunk and a whole copy of the state. One
    program is compiled, as the last chunk is padded. The result of an example
    does not depend on the chunk or the number of devices, to rounding.

    Args:
      function: (state, batch) -> an array with the batch's leading axis.
      state: A pytree, such as a denoiser or a feature extractor.
      examples: (N, …), an array or anything else that rows are read from.
      chunk: Examples at a time on each device.
      mesh: The devices.
      label: Text before the progress bar.

    Returns:
      The results, (N, …).
    """
    whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    arrays, static = jax.tree.flatten(state)
    spread = jax.shard_map(
        lambda arrays, batch: function(jax.tree.unflatten(static, arrays), batch),
        mesh=mesh,
        in_specs=(whole, split),
        out_specs=split,
        check_vma=False,
    )
    # Whole on each device, so that every process can read it.
    program = jax.jit(spread, out_shardings=NamedSharding(mesh, whole))
    arrays = training.replicate(arrays, mesh)
    count = len(examples)
    share = min(chunk, -(-count // mesh.size))
    results = []
    with cli.progress(count, label=label, unit="example") as bar:
        for start in range(0, count, share * mesh.size):
            rows = np.minimum(np.arange(start, start + share * mesh.size), count - 1)
            batch = training.shard_batch(np.asarray(examples[rows]), mesh)
            results.append(np.asarray(program(arrays, batch)))
            bar.update(min(len(rows), count - start))
    return np.concatenate(results)[:count]
