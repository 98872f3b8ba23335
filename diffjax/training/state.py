"""One training step as a pure function of (state, batch), and K of them in one device call."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks, types
from ..types import Array, ArrayLike, Key, PyTree

LossFunction = Callable[[PyTree, Key, PyTree], tuple[Array, dict[str, Array]]]
"""(params, key, batch) -> (loss of shape (), dict of scalars)."""
Step = Callable[..., tuple["TrainState", dict[str, Array]]]
"""(state, batch, take=True) -> (state, metrics)."""

_OWN_METRICS = ("loss", "grad_norm", "finite")


@types.pytree
class TrainState:
    """All that training needs to go on: with the data it determines every later state.

    step: () int32, the steps taken so far, which is also the position in the data.
    params: the parameters; ema: their exponential moving average, in float32 at least.
    opt_state: the optimiser's state. key: one typed key, which training never changes.
    """

    step: Array
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    key: Key


def init(
    key: Key, params: PyTree, optimiser: optax.GradientTransformation
) -> TrainState:
    """The state before the first step; its arrays are copies, so that donating it leaves the caller's alive.

    params: a pytree of arrays. The average starts at `params`.
    Raises TypeError for an untyped key, ValueError where `params` has no leaves.
    """
    checks.key("key", key)
    if not jax.tree.leaves(params):
        raise ValueError(f"params must hold at least one array, got {params!r}")
    types.check_integers("params", params)
    check_optimiser(optimiser)
    params = jax.tree.map(_own, params)
    # one program instead of one per shape; where leaves lie on several devices, eagerly, which keeps their placement
    start = (
        jax.jit(optimiser.init)
        if all(map(_on_one_device, jax.tree.leaves(params)))
        else optimiser.init
    )
    opt_state = jax.tree.map(_own, start(params))
    step = jax.device_put(np.zeros((), np.int32))
    return TrainState(
        step, params, _average(params), opt_state, jax.device_put(key, may_alias=False)
    )


def check_optimiser(optimiser: Any) -> None:
    """Raise TypeError for what has no `init` and `update`."""
    if isinstance(optimiser, type) or not all(
        callable(getattr(optimiser, name, None)) for name in ("init", "update")
    ):
        raise TypeError(
            f"optimiser must be a transformation of optax, got {optimiser!r}"
        )


def warmup_cosine(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int | None,
    final_fraction: float = 0.0,
):
    """The schedule n -> learning rate of step n = 0, 1, …, with η = `learning_rate`.

    η min(1, (n + 1) / warmup_steps), times f + (1 − f)(1 + cos πu)/2 where `total_steps` is given,
    with u = (n − warmup_steps) / (total_steps − warmup_steps) clipped to [0, 1] and f = `final_fraction`
    (Loshchilov & Hutter 2017, Eq. 5, without restarts). The first step has η / warmup_steps, not optax's 0.
    """
    checks.positive("learning_rate", learning_rate)
    checks.integer("warmup_steps", warmup_steps, 0)
    checks.within("final_fraction", final_fraction, 0.0, 1.0)
    if total_steps is not None:
        checks.integer("total_steps", total_steps, 1, 2**62)
        checks.greater("total_steps", total_steps, "warmup_steps", warmup_steps)

    def schedule(n):
        rate = learning_rate * jnp.minimum(1.0, (n + 1) / max(warmup_steps, 1))
        if total_steps is None:
            return rate
        u = jnp.clip((n - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
        return rate * (
            final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + jnp.cos(jnp.pi * u))
        )

    return jax.jit(schedule, inline=True)


def optimiser(
    learning_rate: float = 1e-3,
    *,
    warmup_steps: int = 0,
    total_steps: int | None = None,
    final_fraction: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam (AdamW where weight_decay > 0) after clipping the gradient to global norm `clip_norm`; None: no clipping.

    The rate is `warmup_cosine`: a linear warm-up, then constant, or a cosine decay ending at `total_steps` if given
    (a resumed run with another `total_steps` is another run). Any optax transformation serves in its place.
    Kingma & Ba 2015, Algorithm 1; Loshchilov & Hutter 2019, Algorithm 2 (the decay is multiplied by the rate).
    """
    rate: Any = checks.positive("learning_rate", learning_rate)
    if warmup_steps or total_steps is not None:
        rate = warmup_cosine(learning_rate, warmup_steps, total_steps, final_fraction)
    checks.non_negative("weight_decay", weight_decay)
    if weight_decay > 0:
        adam = optax.adamw(rate, beta_1, beta_2, epsilon, weight_decay=weight_decay)
    else:
        adam = optax.adam(rate, beta_1, beta_2, epsilon)
    if clip_norm is None:
        return adam
    return optax.chain(
        optax.clip_by_global_norm(checks.positive("clip_norm", clip_norm)), adam
    )


def ema_decay_at(step: Array | int, ema_decay: float) -> Array:
    """The average's decay at step n = 0, 1, …: min(ema_decay, (1 + n)/(10 + n)), shape ().

    The warm-up keeps the initial parameters from lingering: `num_updates` of TensorFlow's
    `tf.train.ExponentialMovingAverage`, used by Song et al. 2021 (score_sde, `models/ema.py`), who count from n = 1.
    """
    step, ema_decay = (
        checks.non_negative("step", step),
        checks.within("ema_decay", ema_decay, 0.0, 1.0),
    )
    with jax.numpy_dtype_promotion("standard"):  # of integers and real numbers
        return jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))


def make_step(
    loss_fn: LossFunction,
    optimiser: optax.GradientTransformation,
    ema_decay: float = 0.999,
) -> Step:
    """The pure function step(state, batch, take=True) -> (state, metrics), one gradient step.

    loss_fn(params, key, batch) -> (loss (), dict of scalars). Its key is fold_in(state.key, state.step), so that its
    randomness (times, noise, dropout) depends on the run's key and the step number only.
    ema ← d ema + (1 − d) params, with d = `ema_decay_at`(state.step, ema_decay) and the new parameters.
    metrics: loss, grad_norm (before clipping), what loss_fn adds, each (); and `finite`, () bool: whether all of these
    are. If not, or where take, () bool, is False, the step is not taken: the state comes back as it was.
    Raises ValueError, while tracing, where a metric of loss_fn is no scalar or bears one of these names.
    """
    checks.within("ema_decay", ema_decay, 0.0, 1.0)
    checks.callable_(
        "loss_fn", loss_fn, "loss_fn(params, key, batch) -> (loss, metrics)"
    )
    check_optimiser(optimiser)
    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def step(
        state: TrainState, batch: PyTree, take: ArrayLike = True
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, extra), grads = gradient(state.params, key, batch)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **_scalars(extra)}
        finite = functools.reduce(
            jnp.logical_and, [jnp.isfinite(value) for value in metrics.values()]
        )

        def taken(state):
            with jax.numpy_dtype_promotion("standard"):  # optax divides integers
                updates, opt_state = optimiser.update(
                    grads, state.opt_state, state.params
                )
                params = optax.apply_updates(state.params, updates)
            d = ema_decay_at(state.step, ema_decay)
            ema = jax.tree.map(
                lambda e, p: (d * e + (1.0 - d) * p).astype(e.dtype), state.ema, params
            )
            return TrainState(state.step + 1, params, ema, opt_state, state.key)

        # not jnp.where: that copies the whole state in every step on a CPU (11 % of a 4 M parameter step)
        state = jax.lax.cond(finite & take, taken, lambda state: state, state)
        return state, {**metrics, "finite": finite}

    return jax.jit(step, inline=True)


def make_steps(step: Step) -> Step:
    """The compiled steps(state, batches) -> (state, metrics): K steps as one device call by `lax.scan`.

    step: as `make_step` returns it. batches: every leaf has a leading axis K (as `Batches.block` returns); metrics
    have shape (K,). From the first step that is not finite on none is taken and `finite` is False: the state is the
    last good one, and the other metrics after that step are of steps not taken.
    The state's buffers are donated: do not use the state passed in afterwards (`fit` works on a copy).
    """

    def body(carry, batch):
        state, good = carry
        state, metrics = step(state, batch, good)
        good = good & metrics["finite"]
        return (state, good), {**metrics, "finite": good}

    @functools.partial(jax.jit, donate_argnums=0)
    def steps(state, batches):
        (state, _), metrics = jax.lax.scan(body, (state, jnp.array(True)), batches)
        return state, metrics

    return steps


def _own(leaf: Any) -> Array:
    """A strongly typed copy, in a buffer of its own."""
    dtype = jnp.result_type(leaf)
    if isinstance(leaf, jax.core.Tracer):
        return jnp.array(leaf, dtype, copy=True)
    if not isinstance(leaf, jax.Array) or getattr(
        leaf, "weak_type", False
    ):  # a key has none
        leaf = np.asarray(leaf, dtype)
    return jax.device_put(leaf, may_alias=False)


def _on_one_device(leaf: Array) -> bool:
    return isinstance(leaf, jax.core.Tracer) or len(leaf.devices()) == 1


@jax.jit
def _average(params: PyTree) -> PyTree:
    """The average's first value: copies of the parameters, in float32 at least."""
    return jax.tree.map(
        lambda p: jnp.array(p, checks.promoted(p.dtype, jnp.float32), copy=True), params
    )


def _scalars(extra: dict[str, Array]) -> dict[str, Array]:
    for name, value in extra.items():
        if name in _OWN_METRICS:
            raise ValueError(
                f"loss_fn's metric {name!r} is a name that the step itself uses: {_OWN_METRICS}"
            )
        if jnp.shape(value) != ():
            raise ValueError(
                f"loss_fn's metric {name!r} must be a scalar, got shape {jnp.shape(value)}"
            )
    return {name: jnp.asarray(value) for name, value in extra.items()}
