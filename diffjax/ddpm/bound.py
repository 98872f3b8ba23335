"""The chain's bound on −log p of one example, term by term, its rate and distortion."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checks, schedules, types
from ..distributions.lattice import bits_per_dim
from ..distributions.normal import Gaussian, check_gaussian, gaussian_kl
from ..noise import normal
from ..schedules import DiscreteChain, Schedule
from ..schedules.protocol import as_time
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
from .reverse import reverse_model
from .transitions import entry

__all__ = ["Bound", "RateDistortion", "elbo", "rate_distortion", "two_variable_elbo"]


class Bound(NamedTuple):
    """A bound on −log p(x) of one example, in nats, term by term.

    In expectation over the noise total ≥ −log p(x).

    Attributes:
      prior: (), L_T = KL(q(x_T | x_0) ‖ p(x_T)).
      denoising: (n,), the terms of the steps, to be summed.
      reconstruction: (), L_0 = −log p(x_0 | x_1).
    """

    prior: Array
    denoising: Array
    reconstruction: Array

    @property
    def total(self) -> Array:
        """The sum of all terms, −ELBO, shape ()."""
        return self.prior + jnp.sum(self.denoising, -1) + self.reconstruction

    def bits_per_dim(
        self, x_shape: tuple[int, ...], bins: int, width: Scalar = 1.0
    ) -> Array:
        """The total as a code length, see `distributions.bits_per_dim`.

        Args:
          x_shape: The shape of an example.
          bins: The number of levels of an entry.
          width: 1 where levels were given, whose total bounds −log P. For a
            Gaussian decoder of dequantised data, the lattice's spacing.

        Returns:
          Bits per dimension, shape ().
        """
        return bits_per_dim(-self.total, x_shape, bins, width)


CHUNK = checks.optional(checks.integer, 1)


def elbo(
    key: Key,
    denoiser: Denoiser,
    chain: DiscreteChain,
    x: ArrayLike,
    *,
    variance: str = "posterior",
    levels: ArrayLike | None = None,
    decoder_variance: ArrayLike | None = None,
    prior: Gaussian | None = None,
    chunk: int | None = None,
) -> Bound:
    """The chain's bound on −log p(x) of one example (Ho et al. 2020, equation 5).

        L_T = KL(q(x_T | x) ‖ p(x_T))
        L_{t−1} = KL(q(x_{t−1} | x_t, x) ‖ p(x_{t−1} | x_t)),    t = 2 … T
        L_0 = −log p(x | x_1)

    L_T is exact. Every other term is one draw of x_t ~ q(x_t | x). Gradients
    flow to the denoiser, to x and to the betas of `from_betas`, with the noise
    held. Tables are made in float64 on the host where the chain is concrete.

    Args:
      key: A typed key.
      denoiser: (x, t) -> D, or a pair for the variances "optimal" and
        "learned", see `paired`.
      chain: A chain made by `schedules.from_betas`.
      x: One example.
      variance: A name of `VARIANCES`. With "posterior" the bound stays above
        −log p for spread-out data however great T is. With "optimal" it does
        not.
      levels: (K,), increasing, the values that entries of lattice data take.
        The decoder is then `distributions.discretised_log_prob`, and the total
        bounds −log P(x).
      decoder_variance: The variance of p(x | x_1), () or of x's shape.
        Default: that of the model's step.
      prior: p(x_T), a `distributions.Gaussian`. Default N(0, I).
      chunk: How many indices at a time, to bound memory, of the gradient too.
        Default: all T.

    Returns:
      The bound, whose `denoising` (T − 1,) has entry i for t = i + 2.

    Raises:
      ValueError: For an unknown variance, entries of x that are no level, a
        decoder_variance that is not positive, or chunk < 1.
      TypeError: For another schedule or prior.

    References:
      Nichol & Dhariwal 2021, equations 4–7.

    Example:
      >>> chain = dj.schedules.from_betas(dj.ddpm.linear_betas(8))
      >>> bound = dj.ddpm.elbo(key, lambda x, t: 0.5 * x, chain, jnp.ones(2))
      >>> bound.denoising.shape, bound.total.shape
      ((7,), ())
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
    *,
    variance: str = "posterior",
    levels: ArrayLike | None = None,
    decoder_variance: ArrayLike | None = None,
    prior: Gaussian | None = None,
    chunk: int | None = None,
) -> Bound:
    """The bound of `elbo`, split without q(x_{t−1} | x_t, x_0), for comparison.

        E log q(x_t | x_{t−1}) / p(x_t | x_{t+1}),    t = 1 … T − 1

    It equals `elbo` in expectation, whose variance is smaller. Given draws of
    x_{t−1} and x_{t+1}, a term has a closed form over the bridge b = q(x_t |
    x_{t−1}, x_{t+1}):

        KL(b ‖ p(x_t | x_{t+1})) − KL(b ‖ q(x_t | x_{t−1}))

    Often printed is KL(q(x_t | x_{t−1}) ‖ p(x_t | x_{t+1})), which draws x_t
    without regard to x_{t+1}. That is looser, by a nat per term and dimension
    where steps are small.

    Args:
      key: A typed key.
      denoiser: As in `elbo`.
      chain: As in `elbo`.
      x: One example.
      variance: As in `elbo`.
      levels: As in `elbo`.
      decoder_variance: As in `elbo`.
      prior: As in `elbo`.
      chunk: As in `elbo`.

    Returns:
      The bound. Its prior term is KL(q(x_T | x_{T−1}) ‖ p(x_T)), and
      `denoising` (T − 1,) has entry i for t = i + 1.

    Raises:
      ValueError: As `elbo`.
      TypeError: As `elbo`.
    """
    model, x, prior, chunk = _elbo_arguments(
        key, denoiser, chain, x, variance, levels, decoder_variance, prior, chunk
    )
    arrays, static = partition(model)
    return Bound(*_two_variable_terms(static, chunk, arrays, key, x, prior))


class RateDistortion(NamedTuple):
    """Rate and distortion of one example by index 1 … T.

    Attributes:
      rate: (T,), bits per dimension spent until x_t is known.
      rmse: (T,), √mean (x_0 − D(x_t))².
    """

    rate: Array
    rmse: Array


def rate_distortion(
    key: Key,
    denoiser: Denoiser,
    chain: DiscreteChain,
    x: ArrayLike,
    *,
    variance: str = "posterior",
    prior: Gaussian | None = None,
    chunk: int | None = None,
) -> RateDistortion:
    """Rate and distortion of sending x_T down to x_t (Ho et al. 2020, section 4.3).

    The rate at t is L_T + Σ_{s>t} L_{s−1}. What remains at index 1 is L_0,
    after which nothing is lost. The distortion is the error of x̂_0 = D(x_t).
    The draws are those of `elbo` under the same key.

    Args:
      key: A typed key.
      denoiser: As in `elbo`.
      chain: As in `elbo`.
      x: One example.
      variance: As in `elbo`.
      prior: As in `elbo`.
      chunk: As in `elbo`.

    Returns:
      Rates and distortions, each (T,).

    Raises:
      ValueError: As `elbo`.
      TypeError: As `elbo`.
    """
    model, x, prior, chunk = _elbo_arguments(
        key, denoiser, chain, x, variance, None, None, prior, chunk
    )
    arrays, static = partition(model)
    return RateDistortion(*_rate_distortion(static, chunk, arrays, key, x, prior))


@types.compiled(static_argnums=(0, 1))
def _rate_distortion(static, chunk, arrays, key, x, prior):
    nats, errors = _terms(static, chunk, arrays, key, x)
    chain = combine(arrays, static).chain
    # nats that reaching every index adds, from the prior's term at T downwards
    after = jnp.concatenate([nats[1:], prior_matching(chain, x, prior)[None]])
    spent = jnp.cumsum(after[::-1])[::-1]
    # At 0 the square root has no gradient.
    positive = errors > 0
    rmse = jnp.where(positive, jnp.sqrt(jnp.where(positive, errors, 1)), 0)
    return bits_per_dim(-spent, x.shape, 2, 1.0), rmse


@checks.arguments(key=checks.key, x=check_example, chunk=CHUNK)
def _elbo_arguments(
    key, denoiser, chain, x, variance, levels, decoder_variance, prior, chunk
):
    model = reverse_model(
        denoiser,
        chain,
        variance,
        levels=levels,
        decoder_variance=decoder_variance,
        x=x,
    )
    prior = checks.optional(check_gaussian, x.shape)("prior", prior)
    return model, x, Gaussian(0.0, 1.0) if prior is None else prior, chunk


def prior_matching(schedule: Schedule, x: Array, prior: Gaussian) -> Array:
    """L_T = KL(q(x_T | x_0 = x) ‖ p(x_T)).

    Args:
      schedule: A schedule.
      x: One example.
      prior: p(x_T), a `Gaussian`.

    Returns:
      Nats, shape ().
    """
    return as_one_program(_prior_matching, schedule, x, prior)


def _prior_matching(schedule, x, prior):
    t = as_time(schedule.t_max)
    return gaussian_kl(Gaussian(schedule.alpha(t) * x, schedule.sigma(t) ** 2), prior)


@types.compiled(static_argnums=(0, 1))
def _elbo_terms(static, chunk, arrays, key, x, prior):
    nats, _ = _terms(static, chunk, arrays, key, x)
    return _prior_matching(combine(arrays, static).chain, x, prior), nats[1:], nats[0]


@types.compiled(static_argnums=(0, 1))
def _terms(static, chunk, arrays, key, x):
    """Nats of L_0 … L_{T−1}, and mean squared errors of D at 1 … T, each (T,)."""
    model = combine(arrays, static)

    def observed(term, index):
        step, denoised, second = model.observe(key, x, index)
        return term(step, x, denoised, second), jnp.mean((x - denoised) ** 2)

    # Index 1 has the decoder's term, all others a KL divergence: two traces.
    first = observed(model.reconstruction_term, 1)
    rest = map_chunks(
        functools.partial(observed, model.denoising_term),
        jnp.arange(2, model.chain.steps + 1),
        chunk,
    )
    return jax.tree.map(
        lambda one, others: jnp.concatenate([one[None], others]), first, rest
    )


@types.compiled(static_argnums=(0, 1))
def _two_variable_terms(static, chunk, arrays, key, x, prior):
    model = combine(arrays, static)
    steps = model.chain.steps

    def before(index):
        """A draw of x_{index−1}, for index 1 x_0 itself."""
        t = (index - 1) / steps
        noisy = schedules.perturb(
            model.chain, x, t, normal(key, index, x.shape, x.dtype)
        )
        return jnp.where(index == 1, x, noisy)

    def term(index):
        here, after = entry(model.steps, index), entry(model.steps, index + 1)
        keep, keep_after = 1 - here.beta, 1 - after.beta
        x_before = before(index)
        # x_{t+1} in one draw given x_{t−1}, without x_t between: the bridge covers it.
        spread = after.beta + keep_after * here.beta  # Var(x_{t+1} | x_{t−1})
        # A counter past T, so that it is independent of the noise of x_{t−1}
        noise = normal(key, steps + index, x.shape, x.dtype)
        x_after = jnp.sqrt(keep * keep_after) * x_before + jnp.sqrt(spread) * noise
        # Precisions add up: 1/β_t + (1 − β_{t+1})/β_{t+1} = spread/(β_t β_{t+1})
        towards = (
            jnp.sqrt(keep) * after.beta * x_before
            + jnp.sqrt(keep_after) * here.beta * x_after
        )
        bridge = Gaussian(towards / spread, here.beta * after.beta / spread)
        p = model.transition(after, x_after, *model.predict(after, x_after))
        q = Gaussian(jnp.sqrt(keep) * x_before, here.beta)
        return gaussian_kl(bridge, p) - gaussian_kl(bridge, q)

    # The prior's term compares one step from x_{T−1}, not the marginal at T.
    last = entry(model.steps, steps)
    prior_term = gaussian_kl(
        Gaussian(jnp.sqrt(1 - last.beta) * before(steps), last.beta), prior
    )
    step, denoised, second = model.observe(jax.random.fold_in(key, 0), x, 1)
    return (
        prior_term,
        map_chunks(term, jnp.arange(1, steps), chunk),
        model.reconstruction_term(step, x, denoised, second),
    )


def map_chunks(function: Callable, values: Array, chunk: int | None) -> Any:
    """A function over a leading axis, some entries at a time.

    The gradient then recomputes the function's intermediate values.

    Args:
      function: A function of one entry.
      values: An array with a leading axis.
      chunk: How many entries at once. None for all, without recomputation.

    Returns:
      The stacked results.
    """
    if chunk is None:
        return jax.vmap(function)(values)
    # Recomputed: the gradient would keep what every chunk computed, as `vmap` does.
    return jax.lax.map(jax.checkpoint(function), values, batch_size=chunk)
