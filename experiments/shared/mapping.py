"""Maps over many examples: some at a time, each device of the run with its share."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from experiments.shared import cli, devices


def map_examples(
    function: Callable,
    state: Any,
    examples: tuple,
    *,
    chunk: int,
    label: str | None = None,
    unit: str = "example",
    batched: bool = False,
    program: Callable | None = None,
) -> Any:
    """Apply a function of a state and one example to all examples.

    The result of an example depends on no other one, and on neither the chunk
    nor the number of devices, to rounding. One program is compiled for each
    `function`, structure of `state` and size of a chunk.

    Args:
      function: (state, *example) -> pytree.
      state: A pytree of arrays, such as a denoiser. Each device has it whole.
      examples: Arrays with the same leading axis, or anything else that rows are
        read from, such as memory maps.
      chunk: Examples at a time, on all devices together.
      label: Text before the progress bar. None for no bar.
      unit: Name of an example in the bar.
      batched: Whether `function` takes a batch of examples instead, and returns
        results with its leading axis.
      program: `over_examples(function, batched)`, compiled ahead of time.

    Returns:
      The results as NumPy arrays with a leading axis of examples.
    """
    count, parts = len(examples[0]), []
    size = devices.padded(min(chunk, count))
    program = program or over_examples(function, batched)
    bar = cli.progress(count, label=label or "", unit=unit, hidden=label is None)
    with bar:
        for part in chunks(program, devices.whole(state), examples, size):
            parts.append(part)
            bar.update(len(jax.tree.leaves(part)[0]))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *parts)


def chunks(program: Callable, state: Any, examples: tuple, size: int) -> Iterator[Any]:
    """The results of a compiled map, chunk by chunk.

    Args:
      program: `over_examples` of a function.
      state: As in `map_examples`, whole on each device.
      examples: As in `map_examples`.
      size: Examples at a time, a multiple of the number of devices.

    Yields:
      Pytrees of NumPy arrays with a leading axis of at most `size` examples.
    """
    count = len(examples[0])
    for start in range(0, count, size):
        # The last chunk is padded, so that one compiled program serves all.
        rows = np.minimum(np.arange(start, start + size), count - 1)
        results = program(state, *(_read(part, rows) for part in examples))
        yield jax.tree.map(
            lambda part, start=start: part[: count - start], devices.on_host(results)
        )


def _read(part, rows):
    """Some rows, in memory. Arrays of JAX may be keys, which NumPy has not."""
    return part[rows] if isinstance(part, jax.Array) else np.asarray(part[rows])


def over_examples(function: Callable, batched: bool = False) -> Callable:
    """The compiled map of a function over examples, which the devices share.

    Args:
      function: As in `map_examples`.
      batched: As in `map_examples`.

    Returns:
      (state, *examples) -> results, both with a leading axis that is a multiple
        of the number of devices.
    """
    return _over_examples(function, batched, devices.mesh())


# Kept for the last few functions.
@functools.lru_cache(maxsize=16)
def _over_examples(function, batched, mesh):
    def mapped(state, *examples):
        return jax.vmap(lambda *example: function(state, *example))(*examples)

    many = function if batched else mapped

    def over_devices(state, *examples):
        shared, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
        return jax.shard_map(
            many,
            mesh=mesh,
            in_specs=(whole, *(shared for _ in examples)),
            out_specs=shared,
            check_vma=False,
        )(state, *examples)

    return jax.jit(many if mesh.size == 1 else over_devices)
