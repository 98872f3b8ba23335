"""Training objectives of the chain for one example, and indices by importance."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, types
from ..losses import WEIGHTINGS
from ..numerics import float_dtype
from ..schedules import DiscreteChain, Schedule
from ..solvers.requirements import check_example
from ..types import Array, ArrayLike, Denoiser, Key, Scalar, combine, partition
from .reverse import reverse_model
from .transitions import index_or_draw

__all__ = [
    "LossHistory",
    "bound_loss",
    "hybrid_loss",
    "index_probabilities",
    "loss_history",
    "record",
    "sample_indices",
    "simple_loss",
]


def simple_loss(
    key: Key,
    denoiser: Denoiser,
    chain: DiscreteChain,
    x: ArrayLike,
    *,
    index: Any = None,
) -> Array:
    """Simple objective of DDPM for one example (Ho et al. 2020, equation 14).

        ‖ε̂ − ε‖² / D

    `losses.batch_loss` with weighting "simple" is the same on any schedule.

    Args:
      key: A typed key.
      denoiser: (x, t) -> D.
      chain: A chain made by `schedules.from_betas`.
      x: One example.
      index: i in 1 … T. Default: one drawn uniformly.

    Returns:
      The loss, shape ().

    Raises:
      ValueError: For an index out of range, or NaN in x.
      TypeError: For another schedule.

    References:
      Ho et al. 2020, Algorithm 1. Bishop & Bishop 2024, Algorithm 20.1.

    Example:
      >>> chain = dj.schedules.from_betas(dj.ddpm.linear_betas(8))
      >>> dj.ddpm.simple_loss(key, lambda x, t: 0.5 * x, chain, jnp.ones(2)).shape
      ()
    """
    model, x, index = _loss_arguments(
        key, denoiser, chain, x, index, "posterior", None, None
    )
    arrays, static = partition(model)
    return _simple_loss(static, arrays, key, x, index)


@types.compiled(static_argnums=0)
def _simple_loss(static, arrays, key, x, index):
    model = combine(arrays, static)
    index = index_or_draw(key, index, model.chain)
    step, denoised, _ = model.observe(key, x, index)
    return weighted_error("simple", model.chain, step.time, x - denoised) / x.size


def bound_loss(
    key: Key,
    denoiser: Denoiser,
    chain: DiscreteChain,
    x: ArrayLike,
    *,
    index: Any = None,
    variance: str = "posterior",
    levels: ArrayLike | None = None,
    decoder_variance: ArrayLike | None = None,
) -> Array:
    """One term L_{index−1} of `elbo` (Ho et al. 2020, equations 5 and 12).

    T times its mean over indices is −ELBO − L_T. For the variances "forward"
    and "posterior" its gradient is that of the weighted loss

        β²/(2v(1 − β)(1 − ᾱ)) ‖ε̂ − ε‖²

    Args:
      key: A typed key.
      denoiser: As in `elbo`.
      chain: As in `elbo`.
      x: One example.
      index: i in 1 … T. Default: one drawn uniformly.
      variance: As in `elbo`.
      levels: As in `elbo`.
      decoder_variance: As in `elbo`.

    Returns:
      The term in nats, shape ().

    Raises:
      ValueError: For an index out of range, and as `elbo`.
      TypeError: As `elbo`.
    """
    model, x, index = _loss_arguments(
        key, denoiser, chain, x, index, variance, levels, decoder_variance
    )
    arrays, static = partition(model)
    return _bound_loss(static, arrays, key, x, index)


@types.compiled(static_argnums=0)
def _bound_loss(static, arrays, key, x, index):
    model = combine(arrays, static)
    index = index_or_draw(key, index, model.chain)
    step, denoised, second = model.observe(key, x, index)
    return model.term(step, index, x, denoised, second=second)


@checks.arguments(bound_weight=checks.non_negative)
def hybrid_loss(
    key: Key,
    denoiser: Denoiser,
    chain: DiscreteChain,
    x: ArrayLike,
    *,
    index: Any = None,
    bound_weight: float = 1e-3,
    variance: str = "learned",
    levels: ArrayLike | None = None,
    decoder_variance: ArrayLike | None = None,
) -> Array:
    """Hybrid objective (Nichol & Dhariwal 2021, equation 16).

        L_simple + λ T L_{index−1} / D

    The gradient of D is stopped in the second part, so that the bound trains
    the variance alone. The denoiser returns the pair (D, v) and is called
    once.

    Args:
      key: A typed key.
      denoiser: (x, t) -> (D, v), see `paired`.
      chain: As in `elbo`.
      x: One example.
      index: i in 1 … T. Default: one drawn uniformly.
      bound_weight: λ, 0 or more.
      variance: As in `elbo`.
      levels: As in `elbo`.
      decoder_variance: As in `elbo`.

    Returns:
      The loss per dimension, shape ().

    Raises:
      ValueError: For a negative bound_weight or an x without entries, and as
        `bound_loss`.
      TypeError: As `elbo`.
    """
    model, x, index = _loss_arguments(
        key, denoiser, chain, x, index, variance, levels, decoder_variance
    )
    checks.require(x.size, f"x must have an entry, got shape {x.shape}")
    arrays, static = partition(model)
    return _hybrid_loss(static, arrays, key, x, index, bound_weight)


@types.compiled(static_argnums=0)
def _hybrid_loss(static, arrays, key, x, index, bound_weight):
    model = combine(arrays, static)
    index = index_or_draw(key, index, model.chain)
    step, denoised, second = model.observe(key, x, index)
    # The bound's gradient reaches the variance alone, through `second`.
    bound = model.term(step, index, x, jax.lax.stop_gradient(denoised), second=second)
    simple = weighted_error("simple", model.chain, step.time, x - denoised)
    return (simple + bound_weight * model.chain.steps * bound) / x.size


@checks.arguments(key=checks.key, x=check_example)
def _loss_arguments(key, denoiser, chain, x, index, variance, levels, decoder_variance):
    model = reverse_model(
        denoiser,
        chain,
        variance,
        levels=levels,
        decoder_variance=decoder_variance,
        x=x,
    )
    index = None if index is None else checks.index("index", index, chain.steps)
    return model, x, index


def weighted_error(name: str, schedule: Schedule, t: Scalar, error: Array) -> Array:
    """w(t) ‖error‖² for a named weighting.

    Args:
      name: A name of `losses.WEIGHTINGS`.
      schedule: A schedule.
      t: A time, shape ().
      error: x_0 − D.

    Returns:
      The weighted error, shape ().
    """
    weight: Any = WEIGHTINGS[name]
    return weight(schedule, t, None) * jnp.sum(error**2)


# ---------------------------------------------------------- indices by importance


class LossHistory(NamedTuple):
    """The last losses at every index. See `loss_history`.

    Attributes:
      losses: (T, n), the last n losses.
      counts: (T,), how many there have been.
    """

    losses: Array
    counts: Array


@checks.arguments(steps=(checks.integer, 1), length=(checks.integer, 1))
def loss_history(steps: int, length: int = 10) -> LossHistory:
    """Empty history of losses (Nichol & Dhariwal 2021, section 3.3).

    Args:
      steps: T, the number of indices.
      length: n, how many losses are kept at every index.

    Returns:
      A history without losses.

    Raises:
      ValueError: For fewer than one step or one loss.

    Example:
      >>> history = dj.ddpm.loss_history(8)
      >>> indices, weights = dj.ddpm.sample_indices(key, 3, history)
      >>> weights.tolist()
      [1.0, 1.0, 1.0]
    """
    return LossHistory(
        jnp.asarray(np.zeros((steps, length), float_dtype())),
        jnp.asarray(np.zeros((steps,), np.int32)),
    )


_HISTORY = (checks.made_by, LossHistory, "loss_history")
_FLOOR = (checks.within, 0, 1)


@checks.arguments(history=_HISTORY, indices=checks.integers, losses=checks.finite_array)
def record(history: LossHistory, indices: ArrayLike, losses: ArrayLike) -> LossHistory:
    """History after more losses. The oldest losses of an index are forgotten first.

    Args:
      history: A history made by `loss_history`.
      indices: (B,), in 1 … T.
      losses: (B,), values of `bound_loss`, not multiplied by their weights.

    Returns:
      The new history.

    Raises:
      ValueError: For shapes that differ, indices outside 1 … T, or losses that
        are not finite. Under jit such losses make `index_probabilities` NaN.
      TypeError: For indices that are no integers.
    """
    steps = history.counts.shape[0]
    checks.all_within("indices", indices, 1, steps)
    checks.axes("indices", indices, "(B,)")
    checks.one_of_shapes("losses", losses, [indices.shape])

    def one(history, seen):
        index, loss = seen
        # A ring: the oldest loss gives way to the newest.
        slot = history.counts[index - 1] % history.losses.shape[1]
        loss = loss.astype(history.losses.dtype)
        losses = history.losses.at[index - 1, slot].set(loss)
        return LossHistory(losses, history.counts.at[index - 1].add(1)), None

    # One by one, since an index may occur several times among them
    return jax.lax.scan(one, history, (indices, losses))[0]


@checks.arguments(history=_HISTORY, floor=_FLOOR)
def index_probabilities(history: LossHistory, floor: float = 1e-3) -> Array:
    """Importance of the indices (Nichol & Dhariwal 2021, equation 18).

        p_t = (1 − floor) √mean L_t² / Σ_s √mean L_s² + floor / T

    They are uniform until every index has a full history. p ∝ √E[L²] gives the
    weighted loss its least variance.

    Args:
      history: A history made by `loss_history`.
      floor: The share of the uniform distribution, in [0, 1].

    Returns:
      (T,), summing to one.

    Raises:
      ValueError: For a floor outside [0, 1].
    """
    return _index_probabilities(history, floor)


@jax.jit
def _index_probabilities(history, floor):
    steps, length = history.losses.shape
    # Squares of losses divided by the largest neither overflow nor underflow.
    largest = jnp.max(jnp.abs(history.losses))
    scaled = history.losses / jnp.where(largest > 0, largest, 1)
    scale = jnp.sqrt(jnp.mean(scaled**2, -1))
    full = jnp.all(history.counts >= length) & (largest != 0)  # NaN is not 0: it shows
    # Uniform until every index has its losses.
    scale = jnp.where(full, scale, 1.0)
    return (1 - floor) * scale / jnp.sum(scale) + floor / steps


@checks.arguments(
    key=checks.key, count=(checks.integer, 1), history=_HISTORY, floor=_FLOOR
)
def sample_indices(
    key: Key, count: int, history: LossHistory, floor: float = 1e-3
) -> tuple[Array, Array]:
    """Independent indices t ~ p with weights (Nichol & Dhariwal 2021, equation 18).

    The mean of weight × L_t over draws is without bias the mean of L_t over
    indices, where p_t > 0.

    Args:
      key: A typed key.
      count: How many, 1 or more.
      history: A history made by `loss_history`.
      floor: As in `index_probabilities`.

    Returns:
      (indices, weights 1 / (T p_t)), each (count,).

    Raises:
      ValueError: For another count, or a floor outside [0, 1].
    """
    return _sample_indices(key, count, history, floor)


@functools.partial(jax.jit, static_argnums=1)
def _sample_indices(key, count, history, floor):
    p = _index_probabilities(history, floor)
    # log 0 = −∞: an index of probability 0 is never drawn.
    drawn = jax.random.categorical(key, jnp.log(p), shape=(count,))
    return drawn + 1, 1 / (p.shape[0] * p[drawn])
