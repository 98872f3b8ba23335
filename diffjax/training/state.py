"""The training state, one step of it as a pure function, and K steps in one call."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks, types
from ..types import Array, ArrayLike, Key, PyTree
from . import accumulation, parallel
from . import averages as power_averages
from .optimisers import FRACTION, TRANSFORMATION

__all__ = [
    "BlockFunction",
    "LossFunction",
    "StepFunction",
    "TrainState",
    "ema_decay_at",
    "init",
    "make_step",
    "make_steps",
]

LossFunction = Callable[[PyTree, Key, PyTree], tuple[Array, dict[str, Array]]]
"""(params, key, batch) -> (loss of shape (), dict of scalars)."""
StepFunction = Callable[..., tuple["TrainState", dict[str, Array]]]
"""A step of `make_step`: (state, batch, take=True) -> (state, metrics)."""
BlockFunction = Callable[..., tuple["TrainState", dict[str, Array]]]
"""Steps of `make_steps`: (state, batches, count=None) -> (state, metrics)."""


@types.pytree
class TrainState:
    """All that training needs to go on. With the data it determines every later state.

    Attributes:
      step: Number of steps taken so far, () int32. It is also the position in
        the data.
      params: The parameters.
      ema: Their exponential moving average, in float32 at least.
      opt_state: The optimiser's state.
      key: One typed key, which training never changes.
      averages: Power-function averages of the parameters, in float32 at least.
      lengths: Their relative lengths σ_rel, static.
    """

    step: Array
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    key: Key
    averages: tuple[PyTree, ...] = ()
    lengths: tuple[float, ...] = types.static_field(default=())


@checks.arguments(
    key=checks.key, optimiser=TRANSFORMATION, averages=power_averages.lengths
)
def init(
    key: Key,
    params: PyTree,
    optimiser: optax.GradientTransformation,
    *,
    averages: tuple[float, ...] = (),
) -> TrainState:
    """The state before the first step.

    Its arrays are copies, so that donating it leaves the caller's alive.

    Args:
      key: A typed key, from which every step derives its own.
      params: A pytree of arrays. The average starts at them.
      optimiser: A transformation of optax, such as `optimiser` makes.
      averages: Relative lengths σ_rel in [1e-9, 1/√12] of the power-function
        averages that training keeps beside `ema`, see `averages`. (0.05, 0.10)
        are those of Karras et al. 2024, from which `snapshots` reconstructs
        others. Each takes the memory of the parameters in float32.

    Returns:
      The state.

    Raises:
      ValueError: If `params` hold no array, or a length is out of range.
      TypeError: If the key is not typed, or `optimiser` has no `init` and
        `update`.

    Example:
      >>> rule = dj.training.optimiser(1e-3)
      >>> state = dj.training.init(key, {"w": jnp.ones(3)}, rule)
    """
    checks.require(jax.tree.leaves(params), f"params must hold arrays, got {params!r}")
    types.check_integers("params", params)
    params = jax.tree.map(_copy, params)
    # One program instead of one per shape. Where leaves lie on several devices
    # it runs eagerly, which keeps their placement.
    if all(map(_on_one_device, jax.tree.leaves(params))):
        opt_state = jax.jit(optimiser.init)(params)
    else:
        opt_state = optimiser.init(params)
    opt_state = jax.tree.map(_copy, opt_state)
    step = jax.device_put(np.zeros((), np.int32))
    return TrainState(
        step,
        params,
        power_averages.start(params),
        opt_state,
        jax.device_put(key, may_alias=False),
        tuple(power_averages.start(params) for _ in averages),
        averages,
    )


@checks.arguments(step=checks.non_negative, ema_decay=FRACTION)
def ema_decay_at(step: Array | int, ema_decay: float) -> Array:
    """Decay of the parameters' average at a step.

        min(ema_decay, (1 + n)/(10 + n))

    The warm-up keeps the initial parameters from lingering. It is
    `num_updates` of TensorFlow's `tf.train.ExponentialMovingAverage`, used by
    Song et al. 2021 (score_sde, `models/ema.py`), who count from n = 1.

    Args:
      step: n = 0, 1, …
      ema_decay: The decay after the warm-up, in [0, 1].

    Returns:
      The decay, ().

    Raises:
      ValueError: If `ema_decay` lies outside [0, 1] or `step` is negative.
    """
    # Mixes integers and real numbers, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))


@checks.arguments(
    ema_decay=FRACTION,
    accumulate=(checks.integer, 1),
    optimiser=TRANSFORMATION,
    loss_fn=(checks.callable_, "loss_fn(params, key, batch) -> (loss, metrics)"),
)
def make_step(
    loss_fn: LossFunction,
    optimiser: optax.GradientTransformation,
    ema_decay: float = 0.999,
    *,
    accumulate: int = 1,
) -> StepFunction:
    """The pure function of one gradient step.

        step(state, batch, take=True) -> (state, metrics)
        ema ← d ema + (1 − d) params,    d = ema_decay_at(state.step, ema_decay)

    with the new parameters, and likewise `state.averages`, see `averages`. If
    the loss, the gradient norm or another metric is not finite, or where
    `take`, () bool, is False, the step is not taken. The state is then
    returned unchanged.

    Args:
      loss_fn: (params, key, batch) -> (loss of shape (), dict of scalars). Its
        key is fold_in(state.key, state.step), so that its randomness (times,
        noise, dropout) depends on the run's key and the step number only.
      optimiser: A transformation of optax.
      ema_decay: Decay of the average after its warm-up.
      accumulate: Number n of micro-batches, one after the other, of which a
        batch of B examples is made. Memory is then that of B/n examples.
        Micro-batch i = 0, …, n − 1 has the examples i, i + n, i + 2n, … and the
        key fold_in(fold_in(state.key, state.step), i). Loss, gradient and
        metrics are means over micro-batches, to rounding those of the whole
        batch where `loss_fn` is a mean that uses no key.

    Returns:
      The compiled step. Its metrics, () each, are `loss`, `grad_norm` before
      clipping, those of `loss_fn`, and `finite`: whether all of them are. Those
      of real numbers have type float32 at least.

    Raises:
      ValueError: If `ema_decay` lies outside [0, 1]. While tracing, if a
        metric of `loss_fn` is no scalar or has one of those names, or the batch
        cannot be split evenly.
      TypeError: If `loss_fn` cannot be called, or `optimiser` has no `init`
        and `update`.

    Example:
      >>> def loss_fn(params, key, batch):
      ...     return jnp.mean((params["w"] - batch) ** 2), {}
      >>> rule = dj.training.optimiser(0.1)
      >>> step = dj.training.make_step(loss_fn, rule)
      >>> state = dj.training.init(key, {"w": jnp.zeros(())}, rule)
      >>> state, metrics = step(state, np.ones(4, np.float32))
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate > 1:
        gradient = accumulation.accumulated(gradient, accumulate)

    def step(
        state: TrainState, batch: PyTree, take: ArrayLike = True
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        whole = parallel.gathered(state.params)
        (loss, extra), grads = gradient(whole, key, batch)
        grads = parallel.split(grads)
        metrics = _metrics(loss, extra, grads)
        finite = functools.reduce(
            jnp.logical_and, [jnp.isfinite(value) for value in metrics.values()]
        )
        # Not jnp.where, which copies the whole state at every step on a CPU
        # (11 % of a step of 4 M parameters).
        state = jax.lax.cond(
            finite & take,
            lambda state: _updated(state, grads, optimiser, ema_decay),
            lambda state: state,
            state,
        )
        return state, {**metrics, "finite": finite}

    return jax.jit(step, inline=True)


def _metrics(loss: Array, extra: dict[str, Array], grads: PyTree) -> dict[str, Array]:
    """The metrics of a step by name, in float32 at least."""
    metrics = {"loss": loss, "grad_norm": _norm(grads), **accumulation.scalars(extra)}
    return {name: accumulation.wide(value) for name, value in metrics.items()}


def _updated(
    state: TrainState,
    grads: PyTree,
    optimiser: optax.GradientTransformation,
    ema_decay: float,
) -> TrainState:
    """The state after the step of a gradient."""
    # optax divides integers, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    d = ema_decay_at(state.step, ema_decay)
    ema = jax.tree.map(
        lambda e, p: (d * e + (1.0 - d) * p).astype(e.dtype), state.ema, params
    )
    averages = tuple(
        power_averages.updated(average, params, state.step + 1, length)
        for average, length in zip(state.averages, state.lengths, strict=True)
    )
    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        ema=ema,
        opt_state=opt_state,
        averages=averages,
    )


def make_steps(step: StepFunction) -> BlockFunction:
    """Compile up to K steps as one device call.

        steps(state, batches, count=None) -> (state, metrics)

    One program serves every `count`, which bounds its loop at run time. So the
    bits of a state depend on K and the steps taken, and not on how calls divide
    them. They are the same for any K where the compiler computes a loop's body
    as it would outside: not on CPUs for convolutions, which K = 1 computes in
    up to 1/25 of the time.

    The loop ends before `count` at the first step that is not finite. The state
    is then the last good one.

    Args:
      step: As `make_step` returns it.

    Returns:
      The compiled function. Every leaf of its batches has a leading axis K, as
      `Batches.block` returns them. Steps are taken on the first `count` of
      them, () integer, or on all for None. Its metrics have shape (K,), with
      zeros, and a `finite` of False, after the step at which the loop ended.
      The state's buffers are donated: do not use the state passed in
      afterwards. (`fit` works on a copy.)

    Example:
      >>> def loss_fn(params, key, batch):
      ...     return jnp.mean((params["w"] - batch) ** 2), {}
      >>> rule = dj.training.optimiser(0.1)
      >>> steps = dj.training.make_steps(dj.training.make_step(loss_fn, rule))
      >>> state = dj.training.init(key, {"w": jnp.zeros(())}, rule)
      >>> state, metrics = steps(state, np.ones((8, 4), np.float32), count=3)
      >>> int(state.step), metrics["finite"].tolist()[:4]
      (3, [True, True, True, False])
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def steps(state, batches, count=None):
        size = jax.tree.leaves(batches)[0].shape[0]
        bound = jnp.asarray(size if count is None else count, jnp.int32)
        bound = jnp.minimum(bound, size)
        isolated = functools.partial(_isolated, step, batches)
        zero, some = jnp.zeros((), jnp.int32), bound > 0
        if size == 1:  # no loop, in which XLA on CPUs has slow convolutions
            state, metrics = isolated(state, zero, some)
            records = {name: value[None] for name, value in metrics.items()}
            return state, {**records, "finite": records["finite"] & some}
        _, forms = jax.eval_shape(isolated, state, zero)
        records = {n: jnp.zeros((size,), form.dtype) for n, form in forms.items()}
        return _looped(isolated, state, bound, records)

    return steps


def _isolated(step, batches, state, i, take=True):
    """Step i of a block, which XLA compiles alike whatever surrounds it."""
    batch = accumulation.row(batches, i)
    # Without the barriers K decides what is fused with the selection of a batch
    # and with the record of a metric, and so how both round.
    state, batch = jax.lax.optimization_barrier((state, batch))
    state, metrics = step(state, batch, take)
    return jax.lax.optimization_barrier((state, metrics))


def _looped(isolated, state, bound, records):
    """The state after `bound` steps, or those up to one that is not finite."""

    def body(carry):
        i, _, state, records = carry
        state, metrics = isolated(state, i)
        records = {
            name: jax.lax.dynamic_update_index_in_dim(records[name], value, i, 0)
            for name, value in metrics.items()
        }
        return i + 1, metrics["finite"], state, records

    # A scan has a length that XLA knows, by which it specialises its body.
    _, _, state, records = jax.lax.while_loop(
        lambda carry: carry[1] & (carry[0] < bound),
        body,
        (jnp.zeros((), jnp.int32), jnp.array(True), state, records),
    )
    return state, records


def _norm(grads: PyTree) -> Array:
    """The global norm, of which bfloat16 would keep two digits."""
    return optax.tree.norm(jax.tree.map(accumulation.wide, grads))


def _copy(leaf: Any) -> Array:
    """A strongly typed copy, in a buffer that nothing else uses."""
    dtype = jnp.result_type(leaf)
    if isinstance(leaf, jax.core.Tracer):
        return jnp.array(leaf, dtype, copy=True)
    # A typed key has no weak_type.
    if not isinstance(leaf, jax.Array) or getattr(leaf, "weak_type", False):
        leaf = np.asarray(leaf, dtype)
    return jax.device_put(leaf, may_alias=False)


def _on_one_device(leaf: Array) -> bool:
    return isinstance(leaf, jax.core.Tracer) or len(leaf.devices()) == 1
