"""The training loop: blocks of compiled steps, checkpoints, signals and failures."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .. import checks
from . import parallel, processes
from .blocks import Blocks
from .data import Batches
from .interrupts import Call, deferred_signals, stopped
from .state import BlockFunction, TrainState

__all__ = ["fit"]


@checks.arguments(
    state=(checks.made_by, TrainState, "training.init"),
    steps_fn=(checks.callable_, "steps_fn(state, batches, count) -> (state, metrics)"),
    batches=(checks.has_methods, "block(first, count)"),
    block=checks.optional(checks.integer, 1, 2**62),
    total_steps=(checks.integer, 0, 2**62),
    save_every=(checks.integer, 1, 2**62),
)
def fit(
    state: TrainState,
    steps_fn: BlockFunction,
    batches: Batches,
    total_steps: int,
    *,
    checkpoints: Any = None,
    block: int | None = None,
    save_every: int = 1000,
    on_block: Callable[[int, dict[str, np.ndarray]], Any] | None = None,
    mesh: Mesh | None = None,
    donate: bool = False,
) -> TrainState:
    """Train until `total_steps` steps have been taken, those of `state` included.

    One call of `steps_fn` runs a block of steps, and one program runs all
    blocks. A block takes about two seconds, or one step where that takes
    longer. A block ends where a checkpoint is due.

    A run that was killed and resumed by
    `fit(checkpoints.restore_latest(state) or state, ...)` runs the same
    program on the same batches. It equals the uninterrupted run bit for bit on
    the same machine, wherever blocks end.

    SIGTERM, SIGHUP (a closed terminal) and Ctrl-C let the block end, save the
    state, and raise SystemExit(143), SystemExit(129) and KeyboardInterrupt.
    They do not wait while batches are read or the steps are compiled. A second
    Ctrl-C interrupts at once.

    Signals that are ignored, as under nohup, stay ignored. In another thread
    than the main one signals are left alone. With several processes a signal
    to one stops all of them at the same step.

    Args:
      state: The state to start from. It stays usable unless `donate`, as the
        run works on a copy.
      steps_fn: As `make_steps` returns it.
      batches: The data, by step number. They are read in another thread, one
        block ahead.
      total_steps: Number of steps in all, those that `state` has taken
        included.
      checkpoints: A `Checkpoints`, or None. It saves every `save_every` steps,
        and at the end.
      block: Number of steps per device call, which end at its multiples. None
        for as many as take two seconds: a power of two of at most 1024, for
        batches of at most 32 MB. Two blocks are on the device at a time. The
        leading axis K of a block's batches follows from the size of a batch
        for None, and is `block` otherwise, whatever a block's number of steps.
        K = 1 for networks with convolutions on CPUs, see `make_steps`.
      save_every: Number of steps between checkpoints.
      on_block: Called as on_block(step, metrics) after each block, with the
        metrics as NumPy arrays (steps in the block,).
      mesh: As `data_mesh` makes it. Each batch is then split over its
        devices, and so is the state, by `shard_state`. A state that lies on
        all of them already, such as one of `replicate`, keeps its placement.
      donate: Whether to delete `state` once it is copied, which saves its
        memory.

    Returns:
      The state after `total_steps` steps.

    Raises:
      FloatingPointError: At the first step with a loss, gradient norm or other
        metric that is not finite, after saving the last good state. The
        message has the step, those metrics, and the checkpoint. Also for
        parameters that are not finite, which are never saved.
      ValueError: If the checkpoints are ahead of `state`, or a number is out
        of range.
      RuntimeError: If another process that trains with this one has ended.
      TypeError: If `state`, `steps_fn` or `batches` has the wrong type.

    Example:
      >>> def loss_fn(params, key, batch):
      ...     return jnp.mean((params["w"] - batch) ** 2), {}
      >>> rule = dj.training.optimiser(0.1)
      >>> steps = dj.training.make_steps(dj.training.make_step(loss_fn, rule))
      >>> state = dj.training.init(key, {"w": jnp.zeros(())}, rule)
      >>> batches = dj.training.Batches(np.ones(8, np.float32), batch_size=4)
      >>> state = dj.training.fit(state, steps, batches, 4)
    """
    step, compiled = int(state.step), False
    _raise_if_behind(checkpoints, step)
    state = _donatable(state, mesh, donate)
    steps_fn = parallel.pinned(steps_fn, state, mesh)
    saves = total_steps if checkpoints is None else save_every
    blocks = Blocks(batches, total_steps, block, save_every=saves, mesh=mesh)
    with processes.together(), deferred_signals() as received, blocks:
        stop = received if jax.process_count() == 1 else []
        blocks.start(step)
        begun = time.perf_counter()
        while step < total_steps and (taken := blocks.take(stop)):
            if not compiled:
                taken = _compile(steps_fn, state, taken, blocks, stop)
                if taken is None:
                    break
                compiled, begun = True, time.perf_counter()
            processes.meet()  # compiling and `on_block` take some longer
            state, pending = steps_fn(state, *taken)
            before, step = step, step + int(taken[1])
            blocks.start(step)  # while the device works
            metrics = Call(jax.device_get, pending).result()
            metrics = {
                name: values[: step - before] for name, values in metrics.items()
            }
            blocks.measured(step - before, time.perf_counter() - begun, received, stop)
            if not metrics["finite"].all():
                _fail(before, metrics, state, checkpoints, on_block)
            if on_block is not None:
                # Before the save, so that its records cover every checkpoint.
                on_block(step, metrics)
            if checkpoints is not None and step // save_every > before // save_every:
                _save(checkpoints, step, state)
            begun = time.perf_counter()
        if checkpoints is not None:
            _save(checkpoints, step, state)
            checkpoints.wait()
        if stop:
            raise stopped(stop[0], step)
    return state


def _raise_if_behind(checkpoints: Any, step: int) -> None:
    """Raise ValueError if there is a checkpoint of a later step."""
    if checkpoints is None:
        return
    latest, where = checkpoints.latest_step() or 0, checkpoints.directory
    checks.require(
        step >= latest,
        f"state is at step {step}, but {where} holds step {latest}: start from "
        "checkpoints.restore_latest(state), or use another directory",
    )


def _donatable(state: TrainState, mesh: Mesh | None, donate: bool) -> TrainState:
    """A copy whose buffers may be donated, on the devices of `mesh`.

    With `donate` the state itself is deleted.
    """
    copy = parallel.placed_state(state, mesh)
    if donate:
        for leaf in jax.tree.leaves(state):
            if isinstance(leaf, jax.Array):
                leaf.delete()
    return copy


@runtime_checkable
class _Compilable(Protocol):
    """A function of `jax.jit`, or one around it."""

    def lower(self, *arguments: Any) -> Any: ...


def _compile(
    steps_fn: BlockFunction,
    state: TrainState,
    taken: tuple,
    blocks: Blocks,
    stop: Sequence[int],
) -> tuple | None:
    """Compile ahead of the first call, which finds the program in JAX's cache.

    Returns the block for that call, or None as soon as a signal arrives.
    """
    if not isinstance(steps_fn, _Compilable):
        return taken
    lowered = steps_fn.lower(state, *taken)
    if _platform([state.step]) == "cpu" and _convolves(lowered):
        # XLA on CPUs has fast convolutions in a program's outermost computation
        # only. In a loop they take up to 25 times as long.
        taken = (blocks.singly(taken[0]), taken[1])
        lowered = steps_fn.lower(state, *taken)
    call = None if stop else Call(lowered.compile)
    if call is None or not call.wait(stop):
        return None
    call.result()
    return taken


def _convolves(lowered: Any) -> bool:
    return "stablehlo.convolution" in lowered.as_text()


def _fail(
    start: int,
    metrics: dict[str, np.ndarray],
    state: TrainState,
    checkpoints: Any,
    on_block: Callable[[int, dict[str, np.ndarray]], Any] | None,
) -> NoReturn:
    """Save the last good state, and raise FloatingPointError."""
    bad = int(np.argmin(metrics["finite"]))
    step = start + bad
    if on_block is not None and bad:
        on_block(step, {name: values[:bad] for name, values in metrics.items()})
    values = {name: float(entries[bad]) for name, entries in metrics.items()}
    culprits = ", ".join(
        f"{name}={value}"
        for name, value in values.items()
        if name != "finite" and not np.isfinite(value)
    )
    kept = "no checkpoints are kept"
    if checkpoints is not None:
        _save(checkpoints, step, state)
        checkpoints.wait()
        kept = f"the last good state, after {step} steps, is {checkpoints.folder(step)}"
    raise FloatingPointError(
        f"step {step} (on batches.at({step})) was not finite: {culprits}; it was not "
        f"taken; {kept}"
    )


def _save(checkpoints: Any, step: int, state: TrainState) -> None:
    """Save `state`, unless its parameters are not finite."""
    # An update may overflow from a finite gradient.
    finite = _finite((state.params, state.ema, state.averages))
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


def _finite(tree: Any) -> Any:
    """Whether all entries of each leaf are finite."""
    leaves = jax.tree.leaves(tree)
    if all(leaf.is_fully_addressable for leaf in leaves) and _platform(leaves) == "cpu":
        # The host reads these arrays in place. A signal to stop leaves no time to
        # compile.
        return jax.tree.map(lambda leaf: np.isfinite(np.asarray(leaf)).all(), tree)
    return jax.device_get(_all_finite(tree))


@jax.jit
def _all_finite(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def _platform(leaves: list[jax.Array]) -> str:
    (platform,) = {device.platform for leaf in leaves for device in leaf.devices()}
    return platform
