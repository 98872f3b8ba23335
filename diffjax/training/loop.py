"""The training loop: blocks of compiled steps, checkpoints, and what to do when the run is stopped or goes wrong."""

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

_STOP = [
    signal.SIGTERM,
    signal.SIGINT,
    *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []),
]


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
    """The state after `total_steps` steps in all, counting those that `state` has taken.

    steps_fn: as `make_steps` returns it. One call runs a block of steps that ends at the next multiple of `block`, or
    at `total_steps`; then on_block(step, metrics) is called, metrics as numpy arrays (steps in the block,).
    checkpoints: a `Checkpoints`, or None; saved at the first block's end in every `save_every` steps, and at the end.
    Resume with `fit(checkpoints.restore_latest(state) or state, ...)`: blocks end at the same steps whatever step a run
    starts from, so that a run killed and resumed compiles and runs the same programs on the same batches, and equals
    the uninterrupted one bit for bit (same machine, same `block`; the state saved when stopped is at a block's end).
    Two blocks of batches are on the device at a time: take a smaller `block` for large examples.
    mesh: of `data_mesh`; the state is then on every device and each batch is split over them.
    `state` itself stays usable: the run works on a copy.

    SIGTERM, SIGHUP (a closed terminal) and Ctrl-C let the block end, save, then raise SystemExit(143),
    SystemExit(129) and KeyboardInterrupt. A second Ctrl-C interrupts at once. Signals that are ignored, as under
    nohup, stay ignored. In another thread than the main one signals are left alone.
    Raises FloatingPointError at the first step with a loss, gradient norm or other metric that is not finite, after
    saving the last good state: it names the step, those metrics, and the checkpoint. Parameters that are not finite
    are never saved; they raise it too.
    Raises ValueError where the checkpoints are ahead of `state`.
    """
    checks.made_by("state", state, TrainState, "training.init")
    checks.callable_(
        "steps_fn", steps_fn, "steps_fn(state, batches) -> (state, metrics)"
    )
    checks.callable_(
        "batches.block", getattr(batches, "block", None), "block(first, count)"
    )
    step, block = int(state.step), checks.integer("block", block, 1, 2**62)
    checks.integer("total_steps", total_steps, 0, 2**62)
    checks.integer("save_every", save_every, 1, 2**62)
    if checkpoints is not None and (checkpoints.latest_step() or 0) > step:
        raise ValueError(
            f"state is at step {step}, but {checkpoints.directory} holds step {checkpoints.latest_step()}: "
            f"start from checkpoints.restore_latest(state), or use another directory"
        )
    state = _placed_copy(state, mesh)
    with _deferred_signals() as received:
        batch = _block(batches, step, total_steps, block, mesh)
        while batch is not None and not received:
            count = _block_end(step, total_steps, block) - step
            state, pending = steps_fn(state, batch)
            batch = _block(
                batches, step + count, total_steps, block, mesh
            )  # prepared while the device works
            metrics = jax.device_get(pending)
            if not metrics["finite"].all():
                good = int(np.argmin(metrics["finite"]))
                if on_block is not None and good:
                    on_block(
                        step + good,
                        {name: values[:good] for name, values in metrics.items()},
                    )
                raise FloatingPointError(
                    _failure(step, metrics, state, checkpoints)
                )  # which saves `state` first
            before, step = step, step + count
            if on_block is not None:
                on_block(
                    step, metrics
                )  # before the save: what it records then covers every checkpoint
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
    """The batches of the block that starts at `step`, on the device(s); None after the last."""
    if step >= total_steps:
        return None
    stacked = batches.block(step, _block_end(step, total_steps, block) - step)
    return (
        jax.device_put(stacked)
        if mesh is None
        else parallel.shard_batch(stacked, mesh, axis=1)
    )


def _placed_copy(state: TrainState, mesh: Mesh | None) -> TrainState:
    """A copy whose buffers may be donated, on every device of `mesh`."""
    state = jax.device_put(state, may_alias=False)
    return state if mesh is None else parallel.replicate(state, mesh)


def _failure(
    start: int, metrics: dict[str, np.ndarray], state: TrainState, checkpoints: Any
) -> str:
    """Save the last good state, and say what happened."""
    bad = int(np.argmin(metrics["finite"]))
    values = {
        name: float(entries[bad])
        for name, entries in metrics.items()
        if name != "finite"
    }
    what = ", ".join(
        f"{name}={value}" for name, value in values.items() if not np.isfinite(value)
    )
    message = f"step {start + bad} (on batches.at({start + bad})) was not finite: {what}; it was not taken"
    if checkpoints is None:
        return f"{message}; no checkpoints are kept"
    _save(checkpoints, start + bad, state)
    checkpoints.wait()
    return f"{message}; the last good state, after {start + bad} steps, is {checkpoints.path(start + bad)}"


def _save(checkpoints: Any, step: int, state: TrainState) -> None:
    """Save `state`, unless its parameters are not finite (an update may overflow from a finite gradient)."""
    finite = jax.device_get(_all_finite((state.params, state.ema)))
    for name, tree in zip(("params", "ema"), finite, strict=True):
        for path, good in jax.tree_util.tree_leaves_with_path(tree):
            if not good:
                latest = checkpoints.latest_step()
                kept = (
                    "there is no checkpoint"
                    if latest is None
                    else f"the last checkpoint is {checkpoints.path(latest)}"
                )
                name += jax.tree_util.keystr(path)
                raise FloatingPointError(
                    f"{name} is not finite after {step} steps, which are not saved; {kept}"
                )
    checkpoints.save(step, state)


@jax.jit
def _all_finite(tree: Any) -> Any:
    """Of each leaf, whether all its entries are finite."""
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def _stopped(number: int, step: int) -> BaseException:
    return (
        KeyboardInterrupt(f"stopped after {step} steps")
        if number == signal.SIGINT
        else SystemExit(128 + number)
    )


@contextlib.contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Collect the signals to stop in the list it yields; the handlers before are put back on leaving."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def receive(number, frame):
        received.append(number)
        if number == signal.SIGINT:  # the next Ctrl-C is not deferred
            signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        for number in _STOP:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, receive) or signal.SIG_DFL
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
