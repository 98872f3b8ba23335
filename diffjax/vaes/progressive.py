"""Progressive VAEs: layers trained one by one before any prior, and a prior after.

Phase one trains encoder l and decoder l on E[−ln p(z_{l−1} | z_l)], z_0 = x,
with z_{l−1} as the encoders below make it: `reconstruction_losses`. For a
continuous z_{l−1} this is bounded below only because the encoder's noise is
fixed and its mean bounded (`bounded_encoder`):

    E[−ln p(z_{l−1} | z_l)] ≥ h(z_{l−1} | z_l) = h(z_{l−1}) − I(z_{l−1}, z_l)

`capacity` then bounds I. Phase two fits a prior to the top latent, one of
`priors`, a flow or any other distribution.

Encoders, decoders and prior are then a hierarchical VAE with inference
`hierarchical.bottom_up(encoders)`. Its bound on log p(x) is
`hierarchical.elbo`, and its samples are `hierarchical.sample`. Layers share
parameters where their kernels are bound to the same ones. The parameters are
then moved by the loss of every layer.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from .. import checks
from ..distributions.normal import Gaussian
from ..flows.compiled import call
from ..solvers.requirements import check_example
from ..types import Array, ArrayLike, Key, Scalar, as_pytree_callable, pytree
from .conditional import (
    as_distribution,
    as_gaussian,
    log_prob,
    not_finite,
    reparameterised,
)

__all__ = [
    "BoundedEncoder",
    "Information",
    "bounded_encoder",
    "capacity",
    "information",
    "noise_entropy",
    "reconstruction_losses",
]


@pytree
class BoundedEncoder:
    """x -> N(tanh f(x), s²). See `bounded_encoder`."""

    network: Any
    noise_std: Any

    def __call__(self, *arguments: Any) -> Gaussian:
        """The distribution of the latent, for the network's arguments."""
        # Trained, the noise would shrink without end: in phase one no prior charges
        # for the information that passes.
        return Gaussian(
            jnp.tanh(self.network(*arguments)),
            jax.lax.stop_gradient(jnp.square(self.noise_std)),
        )


@checks.arguments(
    network=(checks.callable_, "network(z) -> array"), noise_std=checks.positive
)
def bounded_encoder(network: Callable, noise_std: Scalar) -> BoundedEncoder:
    """Encoder with fixed noise and a mean in (−1, 1).

        q(z_l | z_{l−1}) = N(tanh f(z_{l−1}), s² I)

    Args:
      network: f, whose output has the latent's shape.
      noise_std: s, positive. No gradient flows to it.

    Returns:
      A pytree callable that returns a `distributions.Gaussian`.

    Raises:
      ValueError: Unless s > 0.
      TypeError: For a network that cannot be called.

    Example:
      >>> encoder = dj.vaes.progressive.bounded_encoder(lambda x: 9 * x, 0.1)
      >>> encoder(jnp.zeros(2)).mean().tolist()
      [0.0, 0.0]
    """
    return BoundedEncoder(as_pytree_callable(network), noise_std)


@checks.arguments(key=checks.key, x=check_example)
def reconstruction_losses(
    key: Key, encoders: Sequence[Callable], decoders: Sequence[Callable], x: ArrayLike
) -> tuple[Array, tuple[Array, ...]]:
    """Losses of phase one for one example (McAllester 2022, lecture notes).

        −ln p(z_{l−1} | z_l),    l = 1 … L

    No gradient of a layer's loss passes to the layers below, so that the sum
    trains every layer as if those below were fixed. At the optimum it equals
    training them one after the other.

    Args:
      key: A typed key.
      encoders: L callables z_{l−1} -> (mean, log_std) or a
        `distributions.Gaussian`.
      decoders: L callables z_l -> distribution of z_{l−1}.
      x: One example.

    Returns:
      (losses in nats (L,), latents z_1 … z_L).

    Raises:
      ValueError: For numbers or shapes that do not fit, and concrete NaN or
        infinity.
      TypeError: For encoders or decoders that are no sequences of callables.

    Example:
      >>> encoder = dj.vaes.progressive.bounded_encoder(lambda x: x, 0.5)
      >>> decoder = lambda z: dj.distributions.gaussian(z, 0.0)
      >>> losses, latents = dj.vaes.progressive.reconstruction_losses(
      ...     key, [encoder], [decoder], jnp.ones(2)
      ... )
      >>> losses.shape, latents[0].shape
      ((1,), (2,))
    """
    for name, kernels in (("encoders", encoders), ("decoders", decoders)):
        checks.callables(name, kernels, 1)
    checks.as_many("decoders", decoders, "encoders", encoders)
    encoders, decoders = (
        tuple(map(as_pytree_callable, kernels)) for kernels in (encoders, decoders)
    )
    return call(
        _reconstruction_losses,
        key,
        encoders,
        decoders,
        x,
        faulty=not_finite,
    )


def _reconstruction_losses(key, encoders, decoders, x):
    below, losses, latents = x, [], []
    for layer, (encoder, decoder) in enumerate(zip(encoders, decoders, strict=True), 1):
        name = f"decoders[{layer - 1}]"
        z = reparameterised(
            key, layer, as_gaussian(f"encoders[{layer - 1}]", encoder(below))
        )
        losses.append(
            -log_prob(name, as_distribution(name, decoder(z), below.shape), below)
        )
        # Cut here, the loss of a layer cannot move the encoders below it.
        below = jax.lax.stop_gradient(z)
        latents.append(below)
    return jnp.stack(losses), tuple(latents)


# ------------------------------------------------------------------- information


@checks.arguments(size=(checks.width, 1), noise_std=checks.positive)
def noise_entropy(size: int, noise_std: Scalar) -> Array:
    """Entropy of the encoder's noise, the least that z_l can have.

        h(z_l | z_{l−1}) = ½ d log(2πe s²)

    Args:
      size: d, the number of entries of the latent.
      noise_std: s, positive.

    Returns:
      Nats, shape ().

    Raises:
      ValueError: For d < 1, or unless s > 0.
    """
    return size * (0.5 * math.log(2 * math.pi * math.e) + jnp.log(noise_std))


@checks.arguments(size=(checks.width, 1), noise_std=checks.positive)
def capacity(size: int, noise_std: Scalar) -> Array:
    """Greatest information through a `bounded_encoder` (Shannon 1948, section 25).

        I(z_{l−1}, z_l) ≤ ½ d log(1 + 1/s²)

    It holds for every distribution of z_{l−1}. An entry of the mean has a
    second moment of at most 1, and among distributions of z_l with second
    moments 1 + s² the Gaussian has the greatest entropy. Hence the loss of
    phase one is at least h(z_{l−1}) − capacity, and h(z_{l−1}) is at least
    `noise_entropy` for l ≥ 2.

    Args:
      size: d, the number of entries of the latent.
      noise_std: s, positive.

    Returns:
      Nats, shape ().

    Raises:
      ValueError: For d < 1, or unless s > 0.

    Example:
      >>> round(float(dj.vaes.progressive.capacity(2, 1.0)), 4)
      0.6931
    """
    return 0.5 * size * jnp.log1p(jnp.square(1 / noise_std))


class Information(NamedTuple):
    """Bounds on I = I(z_{l−1}, z_l), each of shape (), in nats. See `information`.

    Attributes:
      reconstruction: The mean of log p(z_{l−1} | z_l). I ≥ h(z_{l−1}) +
        reconstruction.
      contrastive: A lower bound on I in expectation, at most log N.
      gaussian: An upper bound on I.
    """

    reconstruction: Array
    contrastive: Array
    gaussian: Array

    def lower(self, entropy: Scalar) -> Array:
        """The greater lower bound, for h(z_{l−1}) or a lower bound on it."""
        return jnp.maximum(self.contrastive, entropy + self.reconstruction)


@checks.arguments(key=checks.key, zs=check_example, chunk=(checks.integer, 1))
def information(
    key: Key, encoder: Callable, decoder: Callable, zs: ArrayLike, *, chunk: int = 64
) -> tuple[Information, Array]:
    """Bounds on I(z_{l−1}, z_l) from independent examples of z_{l−1}.

    With a draw of z_l for every example. The three bounds are:

    reconstruction: the mean of log p(z_{l−1} | z_l). As the decoder's
    cross-entropy is at least the conditional entropy, I = h(z_{l−1}) −
    h(z_{l−1} | z_l) ≥ h(z_{l−1}) + reconstruction (Barber & Agakov 2003).
    h(z_{l−1}) must be known. For l ≥ 2 it is I(z_{l−2}, z_{l−1}) +
    `noise_entropy`, so that bounds go up from layer to layer.

    contrastive: the mean of log q(z_i | z_{l−1,i}) − log (1/N) Σ_j q(z_i |
    z_{l−1,j}). It is at most I in expectation, and never above log N. No bound
    from N examples can be, without assumptions on their distribution (van den
    Oord et al. 2018, Poole et al. 2019, equation 12, McAllester & Stratos
    2020).

    gaussian: ½ log det(Cov m + E v) − ½ E Σ log v for means m and variances v
    of the encoder. It is at least I, as z_l has at most the entropy of a
    Gaussian of its covariance. The covariance is that of the examples, divided
    by N. ½ log det of that estimate is too small, by at most d (d + 3)/4N to
    first order in 1/N where the means are Gaussian.

    Args:
      key: A typed key.
      encoder: z_{l−1} -> (mean, log_std) of z_l, or a
        `distributions.Gaussian`.
      decoder: z_l -> distribution of z_{l−1}.
      zs: Independent examples of z_{l−1}, (N, …) with N at least 2.
      chunk: How many draws at once are compared with all examples, to bound
        memory.

    Returns:
      (bounds, the draws of z_l (N, …)).

    Raises:
      ValueError: For shapes that do not fit, N < 2, and concrete NaN or
        infinity.
    """
    checks.batch("zs", zs, 2)
    kernels = as_pytree_callable(encoder), as_pytree_callable(decoder)
    return call(_information, key, *kernels, zs, faulty=not_finite, chunk=chunk)


def _information(key, encoder, decoder, zs, chunk):
    count = len(zs)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    # With a var of every entry, so that Σ log v below counts all d of them
    qs = jax.vmap(lambda z: _spread(as_gaussian("encoder", encoder(z))))(zs)
    above = jax.vmap(lambda key, q: reparameterised(key, 1, q))(keys, qs)  # (N, …)

    def likelihood(z, below):
        output = as_distribution("decoder", decoder(z), below.shape)
        return log_prob("decoder", output, below)

    def gain(pair):
        z, q = pair
        # One example's z under every encoder's output
        others = jax.vmap(lambda other: other.log_prob(z))(qs)  # (N,)
        # In logarithms: the densities themselves underflow in many dimensions.
        return q.log_prob(z) - logsumexp(others) + math.log(count)

    # N² densities. `lax.map` makes chunk × N of them at a time.
    contrastive = jnp.mean(jax.lax.map(gain, (above, qs), batch_size=chunk))
    means, variances = (leaf.reshape(count, -1) for leaf in (qs.loc, qs.var))
    # Cov z_l = Cov m + E v by the law of total variance
    centred = means - jnp.mean(means, 0)
    covariance = centred.T @ centred / count + jnp.diag(jnp.mean(variances, 0))
    gaussian = 0.5 * (
        jnp.linalg.slogdet(covariance)[1] - jnp.mean(jnp.sum(jnp.log(variances), -1))
    )
    reconstruction = jnp.mean(jax.vmap(likelihood)(above, zs))
    return Information(reconstruction, contrastive, gaussian), above


def _spread(q):
    """A Gaussian whose var has the shape of its loc."""
    return Gaussian(q.loc, jnp.broadcast_to(q.var, q.loc.shape))
