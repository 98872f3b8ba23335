"""The training loop: blocks of compiled steps, checkpoints, signals and failures."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .. import checks
from . import parallel
from .data import Batches
from .state import Step, TrainState

__all__ = ["fit"]

_STOP = [
    signal.SIGTERM,
    signal.SIGINT,
    *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []),
]


@checks.arguments(
    state=(checks.made_by, TrainState, "training.init"),
    steps_fn=(checks.callable_, "steps_fn(state, batches) -> (state, metrics)"),
    batches=(checks.has_methods, "block(first, count)"),
    block=(checks.integer, 1, 2**62),
    total_steps=(checks.integer, 0, 2**62),
    save_every=(checks.integer, 1, 2**62),
)
def fit(
    state: TrainState,
    steps_fn: Step,
    batches: Batches,
    total_steps: int,
    *,
    checkpoints: Any = None,
    block: int = 50,
    save_every: int = 1000,
    on_block: Callable[[int, dict[str, np.ndarray]], Any] | None = None,
    mesh: Mesh | None = None,
) -> TrainState:
    """Train until `total_steps` steps have been taken, those of `state` included.

    One call of `steps_fn` runs a block of steps. It ends at the next multiple
    of `block`, or at `total_steps`. Blocks end at the same steps whatever step
    a run starts from.

    So a run that was killed and resumed by
    `fit(checkpoints.restore_latest(state) or state, ...)` compiles and runs
    the same programs on the same batches. It equals the uninterrupted run bit
    for bit, on the same machine and with the same `block`.

    SIGTERM, SIGHUP (a closed terminal) and Ctrl-C let the block end, save the
    state, and raise SystemExit(143), SystemExit(129) and KeyboardInterrupt. A
    second Ctrl-C interrupts at once. Signals that are ignored, as under nohup,
    stay ignored. In another thread than the main one signals are left alone.

    Args:
      state: The state to start from. It stays usable, as the run works on a
        copy.
      steps_fn: As `make_steps` returns it.
      batches: The data, by step number.
      total_steps: Number of steps in all, those that `state` has taken
        included.
      checkpoints: A `Checkpoints`, or None. It saves at the first block's end
        in every `save_every` steps, and at the end.
      block: Number of steps per device call. Two blocks of batches are on the
        device at a time, so take a smaller one for large examples.
      save_every: Number of steps between checkpoints.
      on_block: Called as on_block(step, metrics) after each block, with the
        metrics as NumPy arrays (steps in the block,).
      mesh: As `data_mesh` makes it. Each batch is then split over its
        devices, and so is the state, by `shard_state`. A state that lies on
        all of them already, such as one of `replicate`, keeps its placement.

    Returns:
      The state after `total_steps` steps.

    Raises:
      FloatingPointError: At the first step with a loss, gradient norm or other
        metric that is not finite, after saving the last good state. The
        message has the step, those metrics, and the checkpoint. Also for
        parameters that are not finite, which are never saved.
      ValueError: If the checkpoints are ahead of `state`, or a number is out
        of range.
      TypeError: If `state`, `steps_fn` or `batches` has the wrong type.

    Example:
      >>> def loss_fn(params, key, batch):
      ...     return jnp.mean((params["w"] - batch) ** 2), {}
      >>> rule = dj.training.optimiser(0.1)
      >>> steps = dj.training.make_steps(dj.training.make_step(loss_fn, rule))
      >>> state = dj.training.init(key, {"w": jnp.zeros(())}, rule)
      >>> batches = dj.training.Batches(np.ones(8, np.float32), batch_size=4)
      >>> state = dj.training.fit(state, steps, batches, 4, block=2)
    """
    step = int(state.step)
    if checkpoints is not None:
        latest, where = checkpoints.latest_step() or 0, checkpoints.directory
        checks.require(
            step >= latest,
            f"state is at step {step}, but {where} holds step {latest}: start from "
            "checkpoints.restore_latest(state), or use another directory",
        )
    state = parallel.placed_state(state, mesh)
    steps_fn = parallel.pinned(steps_fn, state, mesh)
    with _deferred_signals() as received:
        batch = _block(batches, step, total_steps, block, mesh)
        while batch is not None and not received:
            count = _block_end(step, total_steps, block) - step
            state, pending = steps_fn(state, batch)
            # The next block is prepared while the device works.
            batch = _block(batches, step + count, total_steps, block, mesh)
            metrics = jax.device_get(pending)
            if not metrics["finite"].all():
                good = int(np.argmin(metrics["finite"]))
                if on_block is not None and good:
                    taken = {name: values[:good] for name, values in metrics.items()}
                    on_block(step + good, taken)
                message = _failure(step, metrics, state, checkpoints)  # saves `state`
                raise FloatingPointError(message)
            before, step = step, step + count
            if on_block is not None:
                # Before the save, so that its records cover every checkpoint.
                on_block(step, metrics)
            if checkpoints is not None and step // save_every > before // save_every:
                _save(checkpoints, step, state)
        if checkpoints is not None:
            _save(checkpoints, step, state)
            checkpoints.wait()
        if received:
            raise _stopped(received[0], step)
    return state


def _block_end(step: int, total_steps: int, block: int) -> int:
    return min((step // block + 1) * block, total_steps)


def _block(
    batches: Batches, step: int, total_steps: int, block: int, mesh: Mesh | None
) -> Any:
    """The batches of the block from `step` on, on the devices. None after the last."""
    if step >= total_steps:
        return None
    stacked = batches.block(step, _block_end(step, total_steps, block) - step)
    if mesh is None:
        return jax.device_put(stacked)
    return parallel.shard_batch(stacked, mesh, axis=1)


def _failure(
    start: int, metrics: dict[str, np.ndarray], state: TrainState, checkpoints: Any
) -> str:
    """Save the last good state, and make the message of the error."""
    bad = int(np.argmin(metrics["finite"]))
    step = start + bad
    values = {name: float(entries[bad]) for name, entries in metrics.items()}
    culprits = ", ".join(
        f"{name}={value}"
        for name, value in values.items()
        if name != "finite" and not np.isfinite(value)
    )
    message = (
        f"step {step} (on batches.at({step})) was not finite: {culprits}; it was not "
        "taken"
    )
    if checkpoints is None:
        return f"{message}; no checkpoints are kept"
    _save(checkpoints, step, state)
    checkpoints.wait()
    return (
        f"{message}; the last good state, after {step} steps, is "
        f"{checkpoints.folder(step)}"
    )


def _save(checkpoints: Any, step: int, state: TrainState) -> None:
    """Save `state`, unless its parameters are not finite."""
    # An update may overflow from a finite gradient.
    finite = jax.device_get(_all_finite((state.params, state.ema, state.averages)))
    bad = [
        name + jax.tree_util.keystr(key_path)
        for name, tree in zip(("params", "ema", "averages"), finite, strict=True)
        for key_path, good in jax.tree_util.tree_leaves_with_path(tree)
        if not good
    ]
    if bad:
        latest = checkpoints.latest_step()
        kept = "there is no checkpoint"
        if latest is not None:
            kept = f"the last checkpoint is {checkpoints.folder(latest)}"
        raise FloatingPointError(
            f"{bad[0]} is not finite after {step} steps, which are not saved; {kept}"
        )
    checkpoints.save(step, state)


@jax.jit
def _all_finite(tree: Any) -> Any:
    """Whether all entries of each leaf are finite."""
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)
