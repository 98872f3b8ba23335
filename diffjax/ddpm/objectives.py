"""Training objectives on the chain for one example, and training indices drawn by importance."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, types
from ..distributions.lattice import level_index
from ..losses import WEIGHTINGS
from ..numerics import float_dtype
from ..schedules import DiscreteChain, Schedule
from ..solvers.requirements import check_example
from ..types import Array, ArrayLike, Denoiser, Key, Scalar, combine, partition
from .kernels import check_index, index_or_draw, model_of


def simple_loss(
    key: Key, denoiser: Denoiser, chain: DiscreteChain, x: ArrayLike, index: Any = None
) -> Array:
    """‖ε̂ − ε‖² / D of one example at one index, shape ().

    index: 1 … T; default one drawn uniformly. `losses.batch_loss` with weighting "simple" is the same on any schedule.
    Raises ValueError for an index out of range or NaN in x, TypeError for no chain. Ho et al. 2020, eq. 14 and
    Algorithm 1; Bishop & Bishop 2024, Algorithm 20.1.
    """
    model, x, index = _loss_arguments(
        key, denoiser, chain, x, index, "posterior", None, None
    )
    arrays, static = partition(model)
    return _simple_loss(static, arrays, key, x, index)


@types.compiled(static_argnums=0)
def _simple_loss(static, arrays, key, x, index):
    model = combine(arrays, static)
    row, data, _ = model.observe(key, x, index_or_draw(key, index, model.chain))
    return weighted_error("simple", model.chain, row.time, x - data) / x.size


def bound_loss(
    key: Key,
    denoiser: Denoiser,
    chain: DiscreteChain,
    x: ArrayLike,
    index: Any = None,
    variance: str = "posterior",
    levels: ArrayLike | None = None,
    decoder_variance: ArrayLike | None = None,
) -> Array:
    """The term L_{index−1} of `elbo` of one example, in nats, shape (): T times its mean over indices is −ELBO − L_T.

    index: 1 … T; default one drawn uniformly. For the variances "forward" and "posterior" its gradient is that of the
    weighted loss β²/(2v(1 − β)(1 − ᾱ)) ‖ε̂ − ε‖². Other arguments and errors as in `elbo`. Ho et al. 2020, eq. 5 and
    12.
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
    row, data, spread = model.observe(key, x, index)
    return model.term(row, index, x, data, spread)


def hybrid_loss(
    key: Key,
    denoiser: Denoiser,
    chain: DiscreteChain,
    x: ArrayLike,
    index: Any = None,
    bound_weight: float = 1e-3,
    variance: str = "learned",
    levels: ArrayLike | None = None,
    decoder_variance: ArrayLike | None = None,
) -> Array:
    """L_simple + λ T L_{index−1} / D of one example at one index, shape (): the bound trains the variance alone.

    The gradient of D is stopped in the second part, which is `bound_loss` per dimension; λ = bound_weight. The denoiser
    returns the pair (D, v) and is called once. Other arguments and errors as in `bound_loss`. Nichol & Dhariwal 2021,
    eq. 16.
    """
    bound_weight = checks.non_negative("bound_weight", bound_weight)
    model, x, index = _loss_arguments(
        key, denoiser, chain, x, index, variance, levels, decoder_variance
    )
    arrays, static = partition(model)
    return _hybrid_loss(static, arrays, key, x, index, bound_weight)


@types.compiled(static_argnums=0)
def _hybrid_loss(static, arrays, key, x, index, bound_weight):
    model = combine(arrays, static)
    index = index_or_draw(key, index, model.chain)
    row, data, spread = model.observe(key, x, index)
    bound = model.term(row, index, x, jax.lax.stop_gradient(data), spread)
    simple = weighted_error("simple", model.chain, row.time, x - data)
    return (simple + bound_weight * model.chain.steps * bound) / x.size


def _loss_arguments(key, denoiser, chain, x, index, variance, levels, decoder_variance):
    checks.key("key", key)
    model = model_of(denoiser, chain, variance, levels, decoder_variance, jnp.shape(x))
    x = check_example("x", x)
    if levels is not None:
        level_index(x, model.levels)
    return model, x, None if index is None else check_index(index, chain)


def weighted_error(name: str, schedule: Schedule, t: Scalar, error: Array) -> Array:
    """w(t) ‖error‖² for a named weighting of `losses`, shape ()."""
    weight: Any = WEIGHTINGS[name]
    return weight(schedule, t, None) * jnp.sum(error**2)


class LossHistory(NamedTuple):
    """The last losses seen at each index, (T, n), and how many were seen there, (T,). See `loss_history`."""

    losses: Array
    counts: Array


def loss_history(steps: int, length: int = 10) -> LossHistory:
    """An empty history of the last `length` losses at each of `steps` indices. Nichol & Dhariwal 2021, section 3.3."""
    steps, length = (
        checks.integer("steps", steps, minimum=1),
        checks.integer("length", length, minimum=1),
    )
    return LossHistory(
        jnp.asarray(np.zeros((steps, length), float_dtype())),
        jnp.asarray(np.zeros((steps,), np.int32)),
    )


def record(history: LossHistory, indices: ArrayLike, losses: ArrayLike) -> LossHistory:
    """The history after losses (B,) at indices (B,) in 1 … T; the oldest of an index are forgotten first.

    losses: `bound_loss` itself, not multiplied by its weight. Raises ValueError for shapes that differ, indices outside
    1 … T and losses that are not finite, which under jit make `index_probabilities` NaN; TypeError for indices that are
    no integers.
    """
    checks.made_by("history", history, LossHistory, "loss_history")
    indices, losses = (
        checks.integers("indices", indices),
        checks.real_array("losses", losses),
    )
    steps = history.counts.shape[0]
    if not checks.is_traced(indices) and np.any(
        (np.asarray(indices) < 1) | (np.asarray(indices) > steps)
    ):
        raise ValueError(
            f"indices must lie in 1 … {steps}, got {np.asarray(indices).tolist()}"
        )
    checks.finite("losses", losses)
    if indices.ndim != 1:
        raise ValueError(f"indices must have shape (B,), got {indices.shape}")
    checks.one_of_shapes("losses", losses, [indices.shape])

    def one(history, seen):
        index, loss = seen
        place = history.counts[index - 1] % history.losses.shape[1]
        kept = history.losses.at[index - 1, place].set(
            loss.astype(history.losses.dtype)
        )
        return LossHistory(kept, history.counts.at[index - 1].add(1)), None

    return jax.lax.scan(one, history, (indices, losses))[0]


def index_probabilities(history: LossHistory, floor: float = 1e-3) -> Array:
    """p_t ∝ √mean L_t² over the history, mixed with a share `floor` of the uniform law; (T,), summing to one.

    Uniform until every index has a full history: p ∝ √E[L²] then gives the weighted loss its least variance. Raises
    ValueError for a floor outside [0, 1]. Nichol & Dhariwal 2021, eq. 18.
    """
    checks.made_by("history", history, LossHistory, "loss_history")
    return _index_probabilities(history, checks.within("floor", floor, 0, 1))


@jax.jit
def _index_probabilities(history, floor):
    steps, length = history.losses.shape
    largest = jnp.max(jnp.abs(history.losses))
    scale = jnp.sqrt(
        jnp.mean((history.losses / jnp.where(largest > 0, largest, 1)) ** 2, -1)
    )
    full = jnp.all(history.counts >= length) & (largest != 0)  # NaN is not 0: it shows
    scale = jnp.where(full, scale, 1.0)
    return (1 - floor) * scale / jnp.sum(scale) + floor / steps


def sample_indices(
    key: Key, count: int, history: LossHistory, floor: float = 1e-3
) -> tuple[Array, Array]:
    """(indices, weights), each (count,): independent indices t ~ p and 1 / (T p_t).

    The mean of weight × L_t over draws is without bias the mean of L_t over indices, where p_t > 0. count: 1 or more.
    Raises ValueError for another count or a floor outside [0, 1]. Nichol & Dhariwal 2021, eq. 18.
    """
    checks.key("key", key)
    count = checks.integer("count", count, minimum=1)
    checks.made_by("history", history, LossHistory, "loss_history")
    return _sample_indices(key, count, history, checks.within("floor", floor, 0, 1))


@functools.partial(jax.jit, static_argnums=1)
def _sample_indices(key, count, history, floor):
    p = _index_probabilities(history, floor)
    places = jax.random.categorical(key, jnp.log(p), shape=(count,))
    return places + 1, 1 / (p.shape[0] * p[places])
