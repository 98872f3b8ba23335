"""The chain's bound on −log p of one example, term by term, and what it says of rate and distortion."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checks, schedules, types
from ..distributions.lattice import bits_per_dim, level_index
from ..distributions.normal import Gaussian, check_gaussian, gaussian_kl
from ..noise import normal
from ..schedules import DiscreteChain, Schedule
from ..schedules.derived import as_time
from ..solvers.requirements import check_example
from ..types import (
    Array,
    ArrayLike,
    Denoiser,
    Key,
    Scalar,
    as_one_program,
    combine,
    partition,
)
from .kernels import entry, model_of


class Bound(NamedTuple):
    """A bound on −log p(x) of one example, in nats, term by term: in expectation over the noise total ≥ −log p(x).

    prior: (), L_T = KL(q(x_T | x_0) ‖ p(x_T)). denoising: (n,), summed. reconstruction: (), L_0 = −log p(x_0 | x_1).
    """

    prior: Array
    denoising: Array
    reconstruction: Array

    @property
    def total(self) -> Array:
        """The sum of all terms, −ELBO; shape ()."""
        return self.prior + jnp.sum(self.denoising, -1) + self.reconstruction

    def bits_per_dim(
        self, x_shape: tuple[int, ...], bins: int, width: float = 1.0
    ) -> Array:
        """The total as a code length, `distributions.bits_per_dim`.

        width: 1 where levels were given, whose total bounds −log P; for a Gaussian decoder of dequantised data the
        lattice's spacing.
        """
        return bits_per_dim(-self.total, x_shape, bins, width)


def elbo(
    key: Key,
    denoiser: Denoiser,
    chain: DiscreteChain,
    x: ArrayLike,
    variance: str = "posterior",
    levels: ArrayLike | None = None,
    decoder_variance: ArrayLike | None = None,
    prior: Gaussian | None = None,
    chunk: int | None = None,
) -> Bound:
    """The bound of the chain on −log p(x) of one example, one draw of x_t ~ q(x_t | x) for each term.

    L_T = KL(q(x_T | x) ‖ p(x_T)) exactly; denoising: (T − 1,), entry i for index t = i + 2: L_{t−1} = KL(q(x_{t−1} |
    x_t, x) ‖ p(x_{t−1} | x_t)); L_0 = −log p(x | x_1). x: one example. variance: "forward", "posterior", "optimal" or
    "learned", see `VARIANCES`: with β̃, "posterior", the bound stays above −log p for spread-out data however great T,
    with "optimal" it does not. It is also the decoder's unless decoder_variance, () or of x's shape, is given. levels:
    (K,), the values that entries of lattice data take: the decoder is then `discretised_log_prob`, and the total bounds
    −log P(x). prior: p(x_T), default N(0, I). chunk: indices at a time, to bound memory, in the gradient too; default
    all T.

    Gradients flow to the denoiser, to x and to the betas of `from_betas`, the noise held. Tables are made in float64 on
    the host where the chain is concrete. Raises ValueError for unknown variances, entries of x that are no level,
    decoder_variance ≤ 0, chunk < 1; TypeError for a chain that is none. Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021,
    eq. 4–7.
    """
    model, x, prior, chunk = _elbo_arguments(
        key, denoiser, chain, x, variance, levels, decoder_variance, prior, chunk
    )
    arrays, static = partition(model)
    return Bound(*_elbo_terms(static, chunk, arrays, key, x, prior))


def two_variable_elbo(
    key: Key,
    denoiser: Denoiser,
    chain: DiscreteChain,
    x: ArrayLike,
    variance: str = "posterior",
    levels: ArrayLike | None = None,
    decoder_variance: ArrayLike | None = None,
    prior: Gaussian | None = None,
    chunk: int | None = None,
) -> Bound:
    """The same bound as `elbo` in expectation, split without q(x_{t−1} | x_t, x_0): two draws for each term.

    prior: KL(q(x_T | x_{T−1}) ‖ p(x_T)). denoising: (T − 1,), entry i for t = i + 1: E log q(x_t | x_{t−1}) / p(x_t |
    x_{t+1}) given draws of x_{t−1} and x_{t+1}, in closed form over the bridge b = q(x_t | x_{t−1}, x_{t+1}) as KL(b ‖
    p(x_t | x_{t+1})) − KL(b ‖ q(x_t | x_{t−1})). Often printed is KL(q(x_t | x_{t−1}) ‖ p(x_t | x_{t+1})), which draws
    x_t without regard to x_{t+1}: that is looser, by a nat a term and dimension where steps are small. For comparison;
    `elbo` has the smaller variance. Arguments and errors as in `elbo`.
    """
    model, x, prior, chunk = _elbo_arguments(
        key, denoiser, chain, x, variance, levels, decoder_variance, prior, chunk
    )
    arrays, static = partition(model)
    return Bound(*_two_variable_terms(static, chunk, arrays, key, x, prior))


class RateDistortion(NamedTuple):
    """rate: (T,), bits per dimension spent until x_t is known. rmse: (T,), √mean (x_0 − D(x_t))². By index 1 … T."""

    rate: Array
    rmse: Array


def rate_distortion(
    key: Key,
    denoiser: Denoiser,
    chain: DiscreteChain,
    x: ArrayLike,
    variance: str = "posterior",
    prior: Gaussian | None = None,
    chunk: int | None = None,
) -> RateDistortion:
    """What one example costs and how well x̂_0 = D(x_t) shows it, when the chain is sent from x_T down to x_t.

    The rate at t is L_T + Σ_{s>t} L_{s−1}; what remains at index 1 is L_0, after which nothing is lost. Draws are those
    of `elbo` under the same key. Arguments and errors as in `elbo`. Ho et al. 2020, section 4.3.
    """
    model, x, prior, chunk = _elbo_arguments(
        key, denoiser, chain, x, variance, None, None, prior, chunk
    )
    arrays, static = partition(model)
    return RateDistortion(*_rate_distortion(static, chunk, arrays, key, x, prior))


@types.compiled(static_argnums=(0, 1))
def _rate_distortion(static, chunk, arrays, key, x, prior):
    """(rate, rmse) of `rate_distortion`, each (T,)."""
    nats, errors = _terms(static, chunk, arrays, key, x)
    chain = combine(arrays, static).chain
    after = jnp.concatenate(
        [nats[1:], prior_matching(chain, x, prior)[None]]
    )  # what reaching each index adds
    spent = jnp.cumsum(after[::-1])[::-1]
    positive = errors > 0  # the root of 0 has no gradient
    rmse = jnp.where(positive, jnp.sqrt(jnp.where(positive, errors, 1)), 0)
    return bits_per_dim(-spent, x.shape, 2, 1.0), rmse


def _elbo_arguments(
    key, denoiser, chain, x, variance, levels, decoder_variance, prior, chunk
):
    checks.key("key", key)
    x = check_example("x", x)
    model = model_of(denoiser, chain, variance, levels, decoder_variance, x.shape)
    if levels is not None:
        level_index(x, model.levels)
    return model, x, check_prior(prior, 1.0, x.shape), check_chunk(chunk)


def check_prior(
    prior: Gaussian | None, variance: Scalar, shape: tuple[int, ...]
) -> Gaussian:
    """The prior given, refused unless a Gaussian over examples of this shape, or N(0, variance)."""
    if prior is not None and not isinstance(prior, Gaussian):
        raise TypeError(
            f"prior must be a distributions.Gaussian(loc, var), got {prior!r}"
        )
    if prior is None:
        return Gaussian(0.0, variance)
    return check_gaussian("prior", prior, shape)


def check_chunk(chunk: int | None) -> int | None:
    """None, or a Python int of 1 at least."""
    return None if chunk is None else checks.integer("chunk", chunk, minimum=1)


def prior_matching(schedule: Schedule, x: Array, prior: Gaussian) -> Array:
    """L_T = KL(q(x_T | x_0 = x) ‖ p(x_T)) in nats, shape ()."""
    return as_one_program(_prior_matching, schedule, x, prior)


def _prior_matching(schedule, x, prior):
    t = as_time(schedule.t_max)
    return gaussian_kl(Gaussian(schedule.alpha(t) * x, schedule.sigma(t) ** 2), prior)


@types.compiled(static_argnums=(0, 1))
def _elbo_terms(static, chunk, arrays, key, x, prior):
    """(prior (), denoising (T − 1,), reconstruction ()) of `elbo`."""
    nats, _ = _terms(static, chunk, arrays, key, x)
    return _prior_matching(combine(arrays, static).chain, x, prior), nats[1:], nats[0]


@types.compiled(static_argnums=(0, 1))
def _terms(static, chunk, arrays, key, x):
    """The nats of L_0 … L_{T−1} and the mean squared errors of D at the indices 1 … T, each (T,)."""
    model = combine(arrays, static)

    def observed(term, index):
        row, data, spread = model.observe(key, x, index)
        return term(row, x, data, spread), jnp.mean((x - data) ** 2)

    first = observed(model.reconstruction, 1)
    rest = map_chunks(
        functools.partial(observed, model.denoising),
        jnp.arange(2, model.chain.steps + 1),
        chunk,
    )
    return jax.tree.map(
        lambda one, others: jnp.concatenate([one[None], others]), first, rest
    )


@types.compiled(static_argnums=(0, 1))
def _two_variable_terms(static, chunk, arrays, key, x, prior):
    """(prior (), denoising (T − 1,), reconstruction ()) of `two_variable_elbo`."""
    model = combine(arrays, static)
    steps = model.chain.steps

    def before(index):
        """A draw of x_{index−1}; x_0 itself for index 1."""
        t = (index - 1) / steps
        noisy = schedules.perturb(
            model.chain, x, t, normal(key, index, x.shape, x.dtype)
        )
        return jnp.where(index == 1, x, noisy)

    def term(index):
        here, after = entry(model.rows, index), entry(model.rows, index + 1)
        keep, keep_after = 1 - here.beta, 1 - after.beta
        x_before, spread = (
            before(index),
            after.beta + keep_after * here.beta,
        )  # of x_{t+1} given x_{t−1}
        noise = normal(key, steps + index, x.shape, x.dtype)
        x_after = jnp.sqrt(keep * keep_after) * x_before + jnp.sqrt(spread) * noise
        towards = (
            jnp.sqrt(keep) * after.beta * x_before
            + jnp.sqrt(keep_after) * here.beta * x_after
        )
        bridge = Gaussian(towards / spread, here.beta * after.beta / spread)
        model_step = model.step(after, x_after, *model.predict(after, x_after))
        return gaussian_kl(bridge, model_step) - gaussian_kl(
            bridge, Gaussian(jnp.sqrt(keep) * x_before, here.beta)
        )

    last = entry(model.rows, steps)
    prior_term = gaussian_kl(
        Gaussian(jnp.sqrt(1 - last.beta) * before(steps), last.beta), prior
    )
    row, data, spread = model.observe(jax.random.fold_in(key, 0), x, 1)
    return (
        prior_term,
        map_chunks(term, jnp.arange(1, steps), chunk),
        model.reconstruction(row, x, data, spread),
    )


def map_chunks(function: Callable, values: Array, chunk: int | None) -> Any:
    """`function` over the leading axis, `chunk` of it at a time; its gradient then recomputes what it needs."""
    if chunk is None:
        return jax.vmap(function)(values)
    return jax.lax.map(jax.checkpoint(function), values, batch_size=chunk)
