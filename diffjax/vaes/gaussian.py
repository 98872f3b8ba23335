"""Variational autoencoders with one Gaussian latent: the evidence's lower bound, and the importance-weighted one.

An encoder maps one example x to the law q(z | x), as (mean, log_std) or a `ddpm.Gaussian`; a decoder maps z to the law
p(x | z), anything with log_prob(x) and sample(key), as those of `decoders`. Bind a network's parameters by
`functools.partial(model.apply, params)`. A prior is anything with log_prob(z) and sample(key); None is N(0, I).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from .. import checks
from ..ddpm.bound import check_prior
from ..ddpm.gaussian import Gaussian, check_variance, gaussian_kl, kl_entries
from ..flows.compiled import call
from ..flows.density import StandardNormal
from ..noise import normal
from ..solvers.driver import check_example
from ..types import Array, ArrayLike, Key, Scalar, as_pytree_callable
from .decoders import variance_of

Encoder = Callable[[Array], Any]
"""x -> (mean, log_std) of z, two arrays of its shape, or a `ddpm.Gaussian`."""
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

    The KL is in closed form where the prior is N(0, I) or a `ddpm.Gaussian`, otherwise by the same draw. beta: β, the
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
    if charged and not (prior is None or isinstance(prior, StandardNormal | Gaussian)):
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
    prior = prior_of(prior, q.mean.shape)
    z = draw(key, 1, q)
    reconstruction = log_prob_of("decoder", decoder(z), x)
    if isinstance(prior, Gaussian):
        entries = kl_entries(
            q.variance, prior.variance, jnp.asarray(q.mean - prior.mean)
        )
        kl, charged = (
            jnp.sum(entries),
            jnp.sum(jnp.maximum(entries, 0.0 if free_bits is None else free_bits)),
        )
    else:
        kl = charged = kl_of("prior", q, prior, z)
    return Elbo(reconstruction, kl, reconstruction - beta * charged)


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
    prior = prior_of(prior, q.mean.shape)

    def log_weight(i):
        z = draw(key, i, q)
        return (
            log_prob_of("decoder", decoder(z), x)
            + log_prob_of("prior", prior, z)
            - q.log_prob(z)
        )

    return logsumexp(jax.vmap(log_weight)(jnp.arange(1, samples + 1))) - math.log(
        samples
    )


def encode(encoder: Encoder, x: ArrayLike) -> Gaussian:
    """q(z | x) of one example. Raises ValueError for shapes that do not fit and concrete NaN or infinity."""
    checks.callable_("encoder", encoder, "encoder(x) -> (mean, log_std)")
    return gaussian_of("encoder", encoder(check_example("x", x)))


def sample(key: Key, decoder: Decoder, prior: Any) -> Array:
    """One draw of x ~ p(x | z), z ~ prior, a function of the key alone.

    prior: anything with sample(key), as `flows.standard_normal(shape)`. Raises TypeError for a prior or a decoder's law
    without.
    """
    key_prior, key_data = jax.random.split(checks.key("key", key))
    checks.callable_("decoder", decoder, "decoder(z) -> law")
    z = drawable("prior", prior, "flows.standard_normal(shape)").sample(key_prior)
    return drawable("decoder's law", decoder(z), "those of vaes.decoders").sample(
        key_data
    )


# ----------------------------------------------------------------------------------------------- what all levels share


def gaussian_of(
    name: str, output: Any, shape: tuple[int, ...] | None = None
) -> Gaussian:
    """What a kernel answered, (mean, log_std) or a Gaussian, as a Gaussian whose mean has the variable's shape.

    shape: of the variable, where it is known. Raises TypeError for what is neither, ValueError for shapes that do not
    fit, concrete NaN or infinity, and a concrete variance that is not positive, as e^{2 log_std} of a log_std out of
    the dtype's range.
    """
    if not isinstance(output, tuple | list) or len(output) != 2:
        raise TypeError(
            f"{name} must return (mean, log_std) or a ddpm.Gaussian, got {type(output).__name__}"
        )
    spread_name = (
        f"{name}'s variance" if isinstance(output, Gaussian) else f"{name}'s log_std"
    )
    mean, spread = (
        checks.real_array(f"{name}'s mean", output[0]),
        checks.real_array(spread_name, output[1]),
    )
    shape = mean.shape if shape is None else shape
    checks.one_of_shapes(f"{name}'s mean", mean, [shape])
    checks.one_of_shapes(spread_name, spread, list({(), shape}))
    checks.finite(f"{name}'s mean", mean)
    checks.finite(spread_name, spread)
    if isinstance(output, Gaussian):
        check_variance(spread_name, spread)
        return Gaussian(mean, spread)
    return Gaussian(mean, variance_of(spread_name, spread))


def law_of(name: str, output: Any, shape: tuple[int, ...] | None = None) -> Any:
    """A Gaussian for (mean, log_std) and for a Gaussian, checked as `gaussian_of`; any other law as it is."""
    if isinstance(output, Gaussian) or not callable(getattr(output, "log_prob", None)):
        return gaussian_of(name, output, shape)
    return output


def draw(key: Key, counter: Any, law: Gaussian) -> Array:
    """mean + std·ε, the ε a function of (key, counter): the reparameterisation."""
    return law.mean + jnp.sqrt(law.variance) * normal(
        key, counter, law.mean.shape, law.mean.dtype
    )


def log_prob_of(name: str, law: Any, x: Array) -> Array:
    """log p(x) of a law, refused unless of shape ()."""
    if not callable(getattr(law, "log_prob", None)):
        raise TypeError(f"{name} must be a law with log_prob, got {type(law).__name__}")
    if isinstance(law, Gaussian) and jnp.shape(law.mean) not in ((), x.shape):
        raise ValueError(
            f"{name} must be a law of arrays of shape {x.shape}, got a mean of shape {jnp.shape(law.mean)}"
        )
    value = law.log_prob(x)
    if jnp.shape(value) != ():
        raise ValueError(
            f"{name}'s log_prob must have shape (), got {jnp.shape(value)}"
        )
    return value


def kl_of(name: str, q: Gaussian, p: Any, z: Array) -> Array:
    """KL(q ‖ p) in nats, shape (): exactly between Gaussians, otherwise log q(z) − log p(z) at the draw z of q."""
    if not isinstance(p, Gaussian):
        return q.log_prob(z) - log_prob_of(name, p, z)
    return gaussian_kl(q, p)


def prior_of(prior: Any, shape: tuple[int, ...]) -> Any:
    """The prior of latents of this shape: N(0, I) for None and for `flows.standard_normal` in closed form."""
    if isinstance(prior, StandardNormal) and prior.shape != shape:
        raise ValueError(
            f"prior must be a law of latents of shape {shape}, got shape {prior.shape}"
        )
    if prior is None or isinstance(prior, StandardNormal | Gaussian):
        return check_prior(prior if isinstance(prior, Gaussian) else None, 1.0, shape)
    return prior


def check_prior_type(prior: Any) -> None:
    """Raises TypeError for a prior without log_prob."""
    if prior is not None and (
        not callable(getattr(prior, "log_prob", None)) or isinstance(prior, type)
    ):
        raise TypeError(f"prior must have log_prob(z), got {type(prior).__name__}")


def drawable(name: str, law: Any, example: str) -> Any:
    """`law`, refused unless it can be sampled, with an example of what can."""
    if not callable(getattr(law, "sample", None)) or isinstance(law, type):
        raise TypeError(f"{name} must have sample(key), as {example}, got {law!r}")
    return law


def mean_of(name: str, law: Any) -> Array:
    """A law's mean, an attribute as of `decoders` or a method as of `targets`; TypeError where it has none."""
    if not hasattr(law, "mean") or not hasattr(law, "log_prob"):
        raise TypeError(f"{name} must have a mean, got {law!r}")
    return law.mean() if callable(law.mean) else law.mean


def not_finite(values: Any) -> Any:
    """Entries that are NaN or infinite."""
    return ~np.isfinite(values)


def _checked(key, encoder, decoder, x, prior):
    checks.key("key", key)
    checks.callable_("encoder", encoder, "encoder(x) -> (mean, log_std)")
    checks.callable_("decoder", decoder, "decoder(z) -> law")
    check_prior_type(prior)
    return (
        check_example("x", x),
        as_pytree_callable(encoder),
        as_pytree_callable(decoder),
        prior,
    )
