"""Variational autoencoders with one Gaussian latent, and two bounds on log p(x).

An encoder maps one example x to the distribution q(z | x), as (mean, log_std)
or a `distributions.Gaussian`. A decoder maps z to the distribution p(x | z),
any object with log_prob(x) and sample(key), as those of `distributions`. A
prior is any object with log_prob(z) and sample(key). None is N(0, I). Bind a
network's parameters by `functools.partial(model.apply, params)`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from .. import checks
from ..distributions.normal import Gaussian, gaussian_kl_entries
from ..flows.compiled import call
from ..solvers.requirements import check_example
from ..types import Array, ArrayLike, Key, Scalar, as_pytree_callable
from .conditional import (
    as_gaussian,
    as_prior,
    has_closed_form,
    kl,
    log_prob,
    not_finite,
    reparameterised,
)

__all__ = [
    "Decoder",
    "Elbo",
    "Encoder",
    "elbo",
    "encode",
    "importance_weighted_bound",
    "sample",
]

Encoder = Callable[[Array], Any]
"""x -> (mean, log_std) of z, two arrays of its shape, or a `distributions.Gaussian`."""
Decoder = Callable[[Array], Any]
"""z -> the distribution of x, with log_prob(x) and sample(key)."""

ENCODER = checks.callable_, "encoder(x) -> (mean, log_std)"
DECODER = checks.callable_, "decoder(z) -> distribution"
DRAWABLE = "sample(key), as those of distributions"
PRIOR = checks.optional(checks.has_methods, "log_prob(z)")
DRAWABLE_PRIOR = (
    checks.has_methods,
    "sample(key), as distributions.standard_normal(shape)",
)

_ARGUMENTS = {
    "key": checks.key,
    "encoder": ENCODER,
    "decoder": DECODER,
    "prior": PRIOR,
    "x": check_example,
}


class Elbo(NamedTuple):
    """A lower bound on log p(x) of one example, E[reconstruction − kl] ≤ log p(x).

    Attributes:
      reconstruction: (), log p(x | z) in nats at one draw of z.
      kl: (), KL(q(z | x) ‖ p(z)), or log q(z | x) − log p(z) at that draw
        where the prior has no closed form.
      total: (), reconstruction − β·kl, or with free bits its counterpart, to
        be maximised.
    """

    reconstruction: Array
    kl: Array
    total: Array


@checks.arguments(**_ARGUMENTS, beta=checks.non_negative, free_bits=checks.non_negative)
def elbo(
    key: Key,
    encoder: Encoder,
    decoder: Decoder,
    x: ArrayLike,
    *,
    prior: Any = None,
    beta: Scalar = 1.0,
    free_bits: Scalar = 0.0,
) -> Elbo:
    """Lower bound on log p(x) of one example (Kingma & Welling 2014, equation 10).

        E log p(x | z) − β KL(q(z | x) ‖ p(z)),    z = m(x) + s(x) ε

    By one draw of z, differentiable in the encoder. The KL divergence has a
    closed form where the prior is N(0, I) or a `distributions.Gaussian`.
    Otherwise it is by the same draw.

    Args:
      key: A typed key.
      encoder: x -> (mean, log_std) of z, or a Gaussian.
      decoder: z -> distribution of x.
      x: One example.
      prior: Any object with log_prob(z). None is N(0, I).
      beta: β, the weight of the KL divergence. 1 for a bound on log p.
      free_bits: λ nats of every entry of z that cost nothing: total =
        reconstruction − β Σ_i max(λ, KL_i).

    Returns:
      The bound and its two parts.

    Raises:
      ValueError: For β < 0, λ < 0, or λ > 0 or traced under a prior without a
        closed form. For shapes that do not fit, and in x or in the outputs for
        concrete NaN, infinity, or a variance that is not positive.
      TypeError: For an encoder, decoder or prior of another kind.

    References:
      β: Higgins et al. 2017, equation 4. Free bits: Kingma et al. 2016,
      equation 15, where the maximum is taken after the mean over a batch. Here
      it is taken for every example.

    Example:
      >>> encoder = lambda x: (0.5 * x, jnp.zeros(2))
      >>> decoder = lambda z: dj.distributions.gaussian(z, 0.0)
      >>> dj.vaes.gaussian.elbo(key, encoder, decoder, jnp.ones(2)).total.shape
      ()
    """
    charged = checks.is_traced(free_bits) or float(free_bits) != 0
    checks.require(
        not charged or has_closed_form(prior),
        f"free_bits must be 0 where the prior is no Gaussian, got {free_bits}",
    )
    encoder, decoder = as_pytree_callable(encoder), as_pytree_callable(decoder)
    settings = prior, beta, free_bits if charged else None
    return call(_elbo, key, encoder, decoder, x, *settings, faulty=not_finite)


def _elbo(key, encoder, decoder, x, prior, beta, free_bits):
    q = encode(encoder, x)
    prior = as_prior(prior, q.loc.shape)
    # Counter 1, as the first draw of `importance_weighted_bound`
    z = reparameterised(key, 1, q)
    reconstruction = log_prob("decoder", decoder(z), x)
    if isinstance(prior, Gaussian):
        # The KL divergence is a sum over entries, so free bits apply to every one.
        entries = gaussian_kl_entries(q.var, prior.var, q.loc - prior.loc)
        divergence, charged = (
            jnp.sum(entries),
            jnp.sum(jnp.maximum(entries, 0.0 if free_bits is None else free_bits)),
        )
    else:
        divergence = charged = kl("prior", q, prior, z)
    return Elbo(reconstruction, divergence, reconstruction - beta * charged)


@checks.arguments(**_ARGUMENTS, samples=(checks.integer, 1))
def importance_weighted_bound(
    key: Key,
    encoder: Encoder,
    decoder: Decoder,
    x: ArrayLike,
    *,
    samples: int,
    prior: Any = None,
) -> Array:
    """Importance-weighted bound on log p(x) (Burda et al. 2016, equation 8).

        log (1/k) Σ_i p(x | z_i) p(z_i) / q(z_i | x),    z_i ~ q(z | x)

    Its expectation rises with k from the ELBO, at k = 1, to log p(x).

    Args:
      key: A typed key.
      encoder: As in `elbo`.
      decoder: As in `elbo`.
      x: One example.
      samples: k, 1 or more.
      prior: As in `elbo`.

    Returns:
      The bound in nats, shape ().

    Raises:
      ValueError: For k < 1, and as `elbo`.
      TypeError: As `elbo`.
    """
    encoder, decoder = as_pytree_callable(encoder), as_pytree_callable(decoder)
    return call(
        _importance_weighted_bound,
        key,
        encoder,
        decoder,
        x,
        prior,
        faulty=not_finite,
        samples=samples,
    )


def _importance_weighted_bound(key, encoder, decoder, x, prior, samples):
    q = encode(encoder, x)
    prior = as_prior(prior, q.loc.shape)

    # Draw 1 is the draw of `elbo`, to which the bound with one sample is equal.
    def log_weight(i):
        z = reparameterised(key, i, q)
        return (
            log_prob("decoder", decoder(z), x)
            + log_prob("prior", prior, z)
            - q.log_prob(z)
        )

    # The mean of the weights in logarithms: the weights themselves underflow.
    return logsumexp(jax.vmap(log_weight)(jnp.arange(1, samples + 1))) - math.log(
        samples
    )


@checks.arguments(encoder=ENCODER, x=check_example)
def encode(encoder: Encoder, x: ArrayLike) -> Gaussian:
    """The distribution q(z | x) of the latent of one example.

    Args:
      encoder: x -> (mean, log_std) of z, or a Gaussian.
      x: One example.

    Returns:
      A `distributions.Gaussian`.

    Raises:
      ValueError: For shapes that do not fit, and concrete NaN or infinity.
      TypeError: For an encoder of another kind.

    Example:
      >>> q = dj.vaes.gaussian.encode(lambda x: (0.5 * x, jnp.zeros(2)), jnp.ones(2))
      >>> q.mean().tolist()
      [0.5, 0.5]
    """
    return as_gaussian("encoder", encoder(x))


@checks.arguments(key=checks.key, decoder=DECODER, prior=DRAWABLE_PRIOR)
def sample(key: Key, decoder: Decoder, prior: Any) -> Array:
    """One draw of x ~ p(x | z), z ~ prior, a function of the key alone.

    Args:
      key: A typed key.
      decoder: z -> distribution of x.
      prior: Any object with sample(key), as
        `distributions.standard_normal(shape)`.

    Returns:
      One example.

    Raises:
      TypeError: For a prior or a decoder's output without sample(key).

    Example:
      >>> normal = dj.distributions.standard_normal((2,))
      >>> decoder = lambda z: dj.distributions.gaussian(z, 0.0)
      >>> dj.vaes.gaussian.sample(key, decoder, normal).shape
      (2,)
    """
    # One key for each draw, so that the latent does not depend on the decoder.
    key_prior, key_data = jax.random.split(key)
    output = decoder(prior.sample(key_prior))
    return checks.has_methods("decoder's output", output, DRAWABLE).sample(key_data)
