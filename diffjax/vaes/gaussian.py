"""Variational autoencoders with one Gaussian latent: the evidence's lower bound, and the importance-weighted one.

An encoder maps one example x to the law q(z | x), as (mean, log_std) or a `distributions.Gaussian`; a decoder maps z to the law
p(x | z), anything with log_prob(x) and sample(key), as those of `distributions`. Bind a network's parameters by
`functools.partial(model.apply, params)`. A prior is anything with log_prob(z) and sample(key); None is N(0, I).
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

DRAWABLE, DRAWABLE_PRIOR = (
    f"sample(key), as {example}"
    for example in ("those of distributions", "distributions.standard_normal(shape)")
)

Encoder = Callable[[Array], Any]
"""x -> (mean, log_std) of z, two arrays of its shape, or a `distributions.Gaussian`."""
Decoder = Callable[[Array], Any]
"""z -> the law of x, with log_prob(x) and sample(key)."""


class Elbo(NamedTuple):
    """A lower bound on log p(x) of one example, in nats, each of shape (): E[reconstruction − kl] ≤ log p(x).

    reconstruction: log p(x | z) at one draw of z. kl: KL(q(z | x) ‖ p(z)), or log q(z | x) − log p(z) at that draw
    where the prior has no closed form. total: reconstruction − β·kl, or with free bits what stands in its place: to
    maximise.
    """

    reconstruction: Array
    kl: Array
    total: Array


def elbo(
    key: Key,
    encoder: Encoder,
    decoder: Decoder,
    x: ArrayLike,
    prior: Any = None,
    beta: Scalar = 1.0,
    free_bits: Scalar = 0.0,
) -> Elbo:
    """The bound on log p(x) of one example by one draw z = m(x) + s(x) ε, differentiable in the encoder (see `Elbo`).

    The KL is in closed form where the prior is N(0, I) or a `distributions.Gaussian`, otherwise by the same draw. beta: β, the
    KL's weight; 1 for a bound on log p. free_bits: λ nats that each entry of z has for nothing, total = reconstruction
    − β Σ_i max(λ, KL_i): per example, where Kingma et al. take the maximum after the mean over a batch. Raises
    ValueError for β < 0, λ < 0, λ > 0 or traced under a prior without closed form, an encoder or decoder whose shapes
    do not fit, and in x or in what they answer concrete NaN, infinity, or a variance that is not positive.
    Kingma & Welling 2014, eq. 10; Higgins et al. 2017, eq. 4; Kingma et al. 2016, eq. 15.
    """
    beta, free_bits = (
        checks.non_negative("beta", beta),
        checks.non_negative("free_bits", free_bits),
    )
    charged = checks.is_traced(free_bits) or float(free_bits) != 0
    x, encoder, decoder, prior = _checked(key, encoder, decoder, x, prior)
    if charged and not has_closed_form(prior):
        raise ValueError(
            f"free_bits must be 0 where the prior is no Gaussian, got {free_bits}"
        )
    return call(
        _elbo,
        key,
        encoder,
        decoder,
        x,
        prior,
        beta,
        free_bits if charged else None,
        faulty=not_finite,
    )


def _elbo(key, encoder, decoder, x, prior, beta, free_bits):
    q = encode(encoder, x)
    prior = as_prior(prior, q.loc.shape)
    z = reparameterised(key, 1, q)
    reconstruction = log_prob("decoder", decoder(z), x)
    if isinstance(prior, Gaussian):
        entries = gaussian_kl_entries(q.var, prior.var, q.loc - prior.loc)
        divergence, charged = (
            jnp.sum(entries),
            jnp.sum(jnp.maximum(entries, 0.0 if free_bits is None else free_bits)),
        )
    else:
        divergence = charged = kl("prior", q, prior, z)
    return Elbo(reconstruction, divergence, reconstruction - beta * charged)


def importance_weighted_bound(
    key: Key,
    encoder: Encoder,
    decoder: Decoder,
    x: ArrayLike,
    samples: int,
    prior: Any = None,
) -> Array:
    """log (1/k) Σ_i p(x | z_i) p(z_i) / q(z_i | x) by k = `samples` draws of q, in nats, shape ().

    Its expectation rises with k from the ELBO, at k = 1, to log p(x). Raises ValueError for k < 1 and as `elbo` does.
    Burda et al. 2016, eq. 8.
    """
    samples = checks.integer("samples", samples, minimum=1)
    x, encoder, decoder, prior = _checked(key, encoder, decoder, x, prior)
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

    def log_weight(i):
        z = reparameterised(key, i, q)
        return (
            log_prob("decoder", decoder(z), x)
            + log_prob("prior", prior, z)
            - q.log_prob(z)
        )

    return logsumexp(jax.vmap(log_weight)(jnp.arange(1, samples + 1))) - math.log(
        samples
    )


def encode(encoder: Encoder, x: ArrayLike) -> Gaussian:
    """q(z | x) of one example. Raises ValueError for shapes that do not fit and concrete NaN or infinity."""
    checks.callable_("encoder", encoder, "encoder(x) -> (mean, log_std)")
    return as_gaussian("encoder", encoder(check_example("x", x)))


def sample(key: Key, decoder: Decoder, prior: Any) -> Array:
    """One draw of x ~ p(x | z), z ~ prior, a function of the key alone.

    prior: anything with sample(key), as `distributions.standard_normal(shape)`. Raises TypeError for a prior or a decoder's law
    without.
    """
    key_prior, key_data = jax.random.split(checks.key("key", key))
    checks.callable_("decoder", decoder, "decoder(z) -> law")
    checks.has_methods("prior", prior, DRAWABLE_PRIOR)
    output = decoder(prior.sample(key_prior))
    return checks.has_methods("decoder's output", output, DRAWABLE).sample(key_data)


def _checked(key, encoder, decoder, x, prior):
    checks.key("key", key)
    checks.callable_("encoder", encoder, "encoder(x) -> (mean, log_std)")
    checks.callable_("decoder", decoder, "decoder(z) -> law")
    if prior is not None:
        checks.has_methods("prior", prior, "log_prob(z)")
    return (
        check_example("x", x),
        as_pytree_callable(encoder),
        as_pytree_callable(decoder),
        prior,
    )
