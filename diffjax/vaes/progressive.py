"""Progressive VAEs: encoders and decoders trained layer by layer before any prior; a prior on the top latent after.

Phase one trains encoder l and decoder l on E[−ln p(z_{l−1} | z_l)], z_0 = x, with z_{l−1} as the encoders below make
it: `reconstruction_losses`. For a continuous z_{l−1} this is bounded below only because the encoder's noise is fixed
and its mean bounded (`bounded_encoder`): E[−ln p(z_{l−1} | z_l)] ≥ h(z_{l−1} | z_l) = h(z_{l−1}) − I(z_{l−1}; z_l), and
then `capacity` bounds I. Phase two fits a prior to the top latent (`priors`, a flow, or any other law). Encoders,
decoders and prior are then a hierarchical VAE with inference `hierarchical.bottom_up(encoders)`: its bound on log p(x)
is `hierarchical.elbo`, its samples `hierarchical.sample`.

Layers share parameters where their kernels are bound to the same ones: each is then moved by every layer's loss.
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


@pytree
class BoundedEncoder:
    """x -> N(tanh f(x), s²). See `bounded_encoder`."""

    network: Any
    noise_std: Any

    def __call__(self, *arguments: Any) -> Gaussian:
        """The law of the latent; arguments are the network's: z, or (level, z)."""
        return Gaussian(
            jnp.tanh(self.network(*arguments)),
            jax.lax.stop_gradient(jnp.square(self.noise_std)),
        )


def bounded_encoder(network: Callable, noise_std: Scalar) -> BoundedEncoder:
    """The kernel q(z_l | z_{l−1}) = N(tanh f(z_{l−1}), s² I), whose noise is fixed and whose mean is in (−1, 1).

    network: f, of any output shape, which is the latent's. noise_std: s > 0, no parameter to train: no gradient flows
    to it. Raises ValueError unless s > 0.
    """
    checks.callable_("network", network, "network(z) -> array")
    return BoundedEncoder(
        as_pytree_callable(network), checks.positive("noise_std", noise_std)
    )


def reconstruction_losses(
    key: Key, encoders: Sequence[Callable], decoders: Sequence[Callable], x: ArrayLike
) -> tuple[Array, tuple[Array, ...]]:
    """Phase one's losses −ln p(z_{l−1} | z_l) of one example, l = 1 … L, in nats (L,), and the latents z_1 … z_L.

    encoders: L callables z_{l−1} -> (mean, log_std) or a `distributions.Gaussian`; decoders: L callables z_l -> law of z_{l−1}.
    No gradient of a layer's loss passes to the layers below, so that the sum trains every layer as if those below were
    fixed; at the optimum nothing tells it from training one after the other. Raises ValueError for numbers or shapes
    that do not fit and concrete NaN or infinity. McAllester 2022 (lecture notes), phase one.
    """
    checks.key("key", key)
    for name, kernels in (("encoders", encoders), ("decoders", decoders)):
        if (
            not isinstance(kernels, tuple | list)
            or not kernels
            or not all(map(callable, kernels))
        ):
            raise TypeError(f"{name} must be a sequence of callables, got {kernels!r}")
    if len(decoders) != len(encoders):
        raise ValueError(
            f"decoders must be as many as encoders, {len(encoders)}, got {len(decoders)}"
        )
    encoders, decoders = (
        tuple(map(as_pytree_callable, kernels)) for kernels in (encoders, decoders)
    )
    return call(
        _reconstruction_losses,
        key,
        encoders,
        decoders,
        check_example("x", x),
        faulty=not_finite,
    )


def _reconstruction_losses(key, encoders, decoders, x):
    below, losses, latents = x, [], []
    for level, (encoder, decoder) in enumerate(zip(encoders, decoders, strict=True), 1):
        name = f"decoders[{level - 1}]"
        z = reparameterised(
            key, level, as_gaussian(f"encoders[{level - 1}]", encoder(below))
        )
        losses.append(
            -log_prob(name, as_distribution(name, decoder(z), below.shape), below)
        )
        below = jax.lax.stop_gradient(z)
        latents.append(below)
    return jnp.stack(losses), tuple(latents)


# --------------------------------------------------------------------------------------------------------- information


def noise_entropy(size: int, noise_std: Scalar) -> Array:
    """h(z_l | z_{l−1}) = ½ d log(2πe s²) in nats: the entropy of the encoder's noise, the least that z_l can have."""
    return checks.width("size", size, 1) * (
        0.5 * math.log(2 * math.pi * math.e)
        + jnp.log(checks.positive("noise_std", noise_std))
    )


def capacity(size: int, noise_std: Scalar) -> Array:
    """½ d log(1 + 1/s²) in nats: no law of z_{l−1} lets I(z_{l−1}; z_l) pass it for `bounded_encoder`.

    Each entry of the mean has a second moment of at most 1, and among laws of z_l with second moments 1 + s² the
    Gaussian has the greatest entropy: I = h(z_l) − h(z_l | z_{l−1}) ≤ ½ Σ_i log(1 + 1/s²). Hence phase one's loss is at
    least h(z_{l−1}) − capacity, and h(z_{l−1}) at least `noise_entropy` for l ≥ 2. Shannon 1948, section 25.
    """
    return (
        0.5
        * checks.width("size", size, 1)
        * jnp.log1p(jnp.square(1 / checks.positive("noise_std", noise_std)))
    )


class Information(NamedTuple):
    """What is known of I = I(z_{l−1}; z_l), each of shape (), in nats. See `information`."""

    reconstruction: Array
    contrastive: Array
    gaussian: Array

    def lower(self, entropy: Scalar) -> Array:
        """The greater of the two lower bounds, given h(z_{l−1}) or a lower bound on it, in nats."""
        return jnp.maximum(self.contrastive, entropy + self.reconstruction)


def information(
    key: Key, encoder: Callable, decoder: Callable, zs: ArrayLike, chunk: int = 64
) -> tuple[Information, Array]:
    """Bounds on I(z_{l−1}; z_l) from N independent examples zs of z_{l−1}, (N, …), and a draw of z_l for each.

    reconstruction: the mean of log p(z_{l−1} | z_l). I = h(z_{l−1}) − h(z_{l−1} | z_l) ≥ h(z_{l−1}) + reconstruction,
    as the decoder's cross-entropy is at least the conditional entropy (Barber & Agakov 2003). h(z_{l−1}) is to be
    known: for l ≥ 2 it is I(z_{l−2}; z_{l−1}) + `noise_entropy`, so that bounds go up from level to level.
    contrastive: the mean of log q(z_i | z_{l−1,i}) − log (1/N) Σ_j q(z_i | z_{l−1,j}), at most I in expectation and at
    most log N ever, as any bound from N examples that asks nothing of their law (van den Oord et al. 2018; Poole et al.
    2019, eq. 12; McAllester & Stratos 2020).
    gaussian: ½ log det(Cov m + E v) − ½ E Σ log v for means m and variances v of the encoder, at least I: z_l has at
    most the entropy of a Gaussian of its covariance. The covariance is the examples' own (divided by N): half its
    log det is below the truth's, by d (d + 3)/4N at most to first order in 1/N where the means are Gaussian.

    Raises ValueError for shapes that do not fit, N < 2, concrete NaN or infinity.
    """
    checks.key("key", key)
    zs, chunk = check_example("zs", zs), checks.integer("chunk", chunk, minimum=1)
    if zs.ndim == 0 or zs.shape[0] < 2:
        raise ValueError(f"zs must have shape (N, …) with N at least 2, got {zs.shape}")
    kernels = as_pytree_callable(encoder), as_pytree_callable(decoder)
    return call(_information, key, *kernels, zs, faulty=not_finite, chunk=chunk)


def _information(key, encoder, decoder, zs, chunk):
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(zs)))
    laws = jax.vmap(lambda z: _spread(as_gaussian("encoder", encoder(z))))(zs)
    above = jax.vmap(lambda key, law: reparameterised(key, 1, law))(
        keys, laws
    )  # (N, …)
    likelihoods = jax.vmap(
        lambda z, below: log_prob(
            "decoder", as_distribution("decoder", decoder(z), below.shape), below
        )
    )

    def gain(own):
        z, law = own
        return (
            law.log_prob(z)
            - logsumexp(jax.vmap(lambda other: other.log_prob(z))(laws))
            + math.log(len(zs))
        )

    contrastive = jnp.mean(jax.lax.map(gain, (above, laws), batch_size=chunk))
    means, variances = (v.reshape(len(zs), -1) for v in (laws.loc, laws.var))
    centred = means - jnp.mean(means, 0)
    covariance = centred.T @ centred / len(zs) + jnp.diag(jnp.mean(variances, 0))
    gaussian = 0.5 * (
        jnp.linalg.slogdet(covariance)[1] - jnp.mean(jnp.sum(jnp.log(variances), -1))
    )
    return Information(jnp.mean(likelihoods(above, zs)), contrastive, gaussian), above


def _spread(law):
    """A Gaussian whose variance has its mean's shape."""
    return Gaussian(law.loc, jnp.broadcast_to(law.var, law.loc.shape))
