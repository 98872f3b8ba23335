"""Markovian hierarchical VAEs: the bound layer by layer, and ancestral sampling.

    x ← z_1 ← … ← z_L
    p(x, z_1 … z_L) = p(z_L) p(x | z_1) Π_{l=2}^L p(z_{l−1} | z_l)

A kernel is a callable that returns (mean, log_std) or a
`distributions.Gaussian`. A kernel of the model may also return any object with
log_prob and sample.

The kernels of L layers are a sequence of L callables, for latents of any
shapes. Or they are one function of (layer, z) with `layers` stated, for
latents of one shape. It is then traced once, however many layers there are.

A diffusion is the second kind, with the inference that `top_down` makes of its
marginals and posteriors.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checks
from ..flows.compiled import call
from ..solvers.requirements import check_example
from ..types import Array, ArrayLike, Key, as_pytree_callable, pytree, static_field
from .conditional import (
    as_distribution,
    as_gaussian,
    as_prior,
    kl,
    log_prob,
    not_finite,
    reparameterised,
)
from .gaussian import DECODER, DRAWABLE, DRAWABLE_PRIOR, PRIOR, Decoder

__all__ = [
    "BottomUp",
    "HierarchicalElbo",
    "TopDown",
    "bottom_up",
    "decode",
    "elbo",
    "sample",
    "top_down",
]


class HierarchicalElbo(NamedTuple):
    """A lower bound on log p(x) of one example, in nats: E total ≤ log p(x).

    Attributes:
      reconstruction: (), log p(x | z_1).
      kl: (L,), the cost of every latent given the one above. Entry l − 1 is
        that of layer l, and the last is KL(q(z_L | ·) ‖ p(z_L)).
    """

    reconstruction: Array
    kl: Array

    @property
    def total(self) -> Array:
        """reconstruction − Σ kl, shape ()."""
        return self.reconstruction - jnp.sum(self.kl, -1)


@pytree
class Kernels:
    """The kernels of layers first … last: a tuple, or one function of (layer, …)."""

    functions: Any
    first: int = static_field()
    last: int = static_field()

    @property
    def stacked(self) -> bool:
        """True for one function of all layers. The layer may then be traced."""
        return not isinstance(self.functions, tuple)

    def __call__(self, layer: Any, *arguments: Any) -> Any:
        """The output of the kernel of a layer."""
        if self.stacked:
            return self.functions(layer, *arguments)
        return self.functions[layer - self.first](*arguments)


@pytree
class BottomUp:
    """The inference q(z_1 | x) Π q(z_l | z_{l−1}). See `bottom_up`."""

    kernels: Any

    @property
    def layers(self) -> int:
        """L."""
        return self.kernels.last


@pytree
class TopDown:
    """The inference q(z_L | x) Π q(z_{l−1} | z_l, x). See `top_down`."""

    top: Any
    posteriors: Any
    marginals: Any

    @property
    def layers(self) -> int:
        """L."""
        return self.posteriors.last


def bottom_up(
    kernels: Sequence[Callable] | Callable, *, layers: int | None = None
) -> BottomUp:
    """Inference drawn upwards, q(z_1 | x) Π_{l=2}^L q(z_l | z_{l−1}).

    The term of layer l in the bound is log q(z_l | z_{l−1}) − log p(z_l |
    z_{l+1}) at a draw. Only the sum of these terms is sure to be positive in
    expectation. Only the top layer's is a KL divergence in closed form.

    Args:
      kernels: L callables z_{l−1} -> (mean, log_std) of z_l, or a Gaussian,
        z_0 = x. Or one function (l, z_{l−1}) with `layers`.
      layers: L, if kernels are one function.

    Returns:
      An inference for `elbo`.

    Raises:
      TypeError: For kernels that are neither.
      ValueError: For layers that do not fit.

    Example:
      >>> first, second = lambda x: (x, 0.0), lambda z: (z, 0.0)
      >>> dj.vaes.hierarchical.bottom_up([first, second]).layers
      2
    """
    return BottomUp(_kernels("kernels", kernels, 1, layers))


def top_down(
    top: Callable,
    posteriors: Sequence[Callable] | Callable,
    marginals: Sequence[Callable] | Callable | None = None,
    *,
    layers: int | None = None,
) -> TopDown:
    """Inference drawn downwards, q(z_L | x) Π_{l=2}^L q(z_{l−1} | z_l, x).

    Every term of the bound is then a KL divergence.

    Args:
      top: x -> (mean, log_std) of z_L, or a Gaussian.
      posteriors: L − 1 callables (z_l, x) -> (mean, log_std) of z_{l−1}, or a
        Gaussian, for l = 2 … L. Or one function (l, z_l, x) with `layers`.
      marginals: L callables x -> (mean, log_std) of z_l, or a Gaussian. Or one
        function (l, x). Only where q(z_l | x) is known: every term then has a
        draw that passes through no other layer. Without them the draws go down
        from the top, one joint draw for all terms.
      layers: L, if posteriors are one function.

    Returns:
      An inference for `elbo`.

    Raises:
      TypeError: For kernels that are neither.
      ValueError: For layers that do not fit.

    Example:
      >>> top, posterior = lambda x: (x, 0.0), lambda z, x: (0.5 * (z + x), 0.0)
      >>> dj.vaes.hierarchical.top_down(top, [posterior]).layers
      2
    """
    checks.callable_("top", top, "top(x) -> (mean, log_std)")
    posteriors = _kernels("posteriors", posteriors, 2, layers)
    if marginals is not None:
        marginals = _kernels("marginals", marginals, 1, posteriors.last)
    return TopDown(as_pytree_callable(top), posteriors, marginals)


INFERENCE = checks.instance, BottomUp | TopDown, "made by bottom_up or top_down"


@checks.arguments(inference=INFERENCE, decoder=DECODER, prior=PRIOR, x=check_example)
def elbo(
    key: Key,
    inference: BottomUp | TopDown,
    decoder: Decoder,
    generative: Sequence[Callable] | Callable,
    *,
    x: ArrayLike,
    prior: Any = None,
) -> HierarchicalElbo:
    """Bound on log p(x) of one example, layer by layer (Luo 2022, equations 23–24).

    By `top_down` inference:

        E log p(x | z_1)
          − Σ_{l=2}^L E KL(q(z_{l−1} | z_l, x) ‖ p(z_{l−1} | z_l))
          − KL(q(z_L | x) ‖ p(z_L))

    Every expectation is by one draw of z_l ~ q(z_l | x), a function of (key,
    l). A KL divergence between Gaussians is exact, another is by a draw. For
    `bottom_up` inference see there.

    Args:
      key: A typed key.
      inference: Made by `bottom_up` or `top_down`.
      decoder: z_1 -> distribution of x.
      generative: L − 1 callables z_l -> distribution of z_{l−1}, for l = 2 …
        L. Or one function (l, z_l).
      x: One example.
      prior: The distribution of z_L, any object with log_prob(z). None is N(0,
        I).

    Returns:
      The bound.

    Raises:
      TypeError: For an inference, kernels or a prior of another kind.
      ValueError: For layers or shapes that do not fit, and concrete NaN or
        infinity, with the kernel's name.

    References:
      Sohl-Dickstein et al. 2015, equation 14. Ho et al. 2020, equation 5.

    Example:
      >>> inference = dj.vaes.hierarchical.bottom_up([lambda x: (x, jnp.zeros(2))])
      >>> decoder = lambda z: dj.distributions.gaussian(z, 0.0)
      >>> dj.vaes.hierarchical.elbo(key, inference, decoder, [], x=jnp.ones(2)).kl.shape
      (1,)
    """
    generative = _kernels("generative", generative, 2, inference.layers)
    decoder = as_pytree_callable(decoder)
    return call(_elbo, key, inference, decoder, generative, x, prior, faulty=not_finite)


def _elbo(key, inference, decoder, generative, x, prior):
    terms = _bottom_up_terms if isinstance(inference, BottomUp) else _top_down_terms
    z, below, top = terms(key, inference, generative, x, prior)
    return HierarchicalElbo(
        log_prob("decoder", decoder(z), x), jnp.concatenate([below, top[None]])
    )


@checks.arguments(key=checks.key, decoder=DECODER, z=check_example, mean=checks.boolean)
def decode(
    key: Key,
    decoder: Decoder,
    generative: Sequence[Callable] | Callable,
    z: ArrayLike,
    *,
    layer: int,
    mean: bool = False,
) -> Array:
    """One draw of x from a latent of a layer downwards, a function of the key.

        z_{l−1} ~ p(z_{l−1} | z_l),    x ~ p(x | z_1)

    Args:
      key: A typed key.
      decoder: As in `elbo`.
      generative: As in `elbo`, of `layer` or more layers.
      z: The latent.
      layer: Its layer, 1 or more.
      mean: True takes the mean of every distribution and draws nothing.

    Returns:
      One example.

    Raises:
      ValueError: For a layer without kernels, or shapes that do not fit.
      TypeError: For a distribution without sample(key) or mean().
    """
    layers = checks.depth("layer", layer, 1) if callable(generative) else None
    kernels = _kernels("generative", generative, 2, layers)
    layer = checks.integer("layer", layer, 1, kernels.last)
    decoder, options = as_pytree_callable(decoder), {"layer": layer, "mean": mean}
    return call(_decode, key, decoder, kernels, z, faulty=not_finite, **options)


def _decode(key, decoder, kernels, z, layer, mean):
    def value_of(name, distribution, l):
        if mean:
            return checks.has_methods(name, distribution, "mean()").mean()
        checks.has_methods(name, distribution, DRAWABLE)
        return distribution.sample(jax.random.fold_in(key, l))

    def below(l, z):
        name, shape = f"generative{_at(l)}", z.shape if kernels.stacked else None
        output = as_distribution(name, kernels(l, z), shape)
        return value_of(f"{name}'s output", output, l - 1)

    # Latents of one shape are drawn in a loop, which is traced once for all layers.
    if kernels.stacked:
        z = jax.lax.fori_loop(0, layer - 1, lambda i, z: below(layer - i, z), z)
    else:
        for l in range(layer, 1, -1):
            z = below(l, z)
    return value_of("decoder's output", decoder(z), 0)


@checks.arguments(key=checks.key, prior=DRAWABLE_PRIOR)
def sample(
    key: Key,
    decoder: Decoder,
    generative: Sequence[Callable] | Callable,
    prior: Any,
    *,
    layers: int | None = None,
) -> Array:
    """One draw of x, ancestrally from z_L ~ prior, a function of the key alone.

    Args:
      key: A typed key.
      decoder: As in `elbo`.
      generative: As in `elbo`.
      prior: Any object with sample(key), as
        `distributions.standard_normal(shape)`.
      layers: L, if generative is one function.

    Returns:
      One example.

    Raises:
      ValueError: For layers or shapes that do not fit.
      TypeError: For a prior or an output without sample(key).

    Example:
      >>> normal = dj.distributions.standard_normal((2,))
      >>> decoder = lambda z: dj.distributions.gaussian(z, 0.0)
      >>> dj.vaes.hierarchical.sample(key, decoder, [], normal).shape
      (2,)
    """
    layers = _kernels("generative", generative, 2, layers).last
    # `decode` draws with counters 0 … layers − 1, so that no noise is used twice.
    z = prior.sample(jax.random.fold_in(key, layers))
    return decode(key, decoder, generative, z, layer=layers)


# ---------------------------------------------------------------------------- terms


def _top_down_terms(key, inference, generative, x, prior):
    """(z_1, the terms of the layers below the top (L − 1,), the top's)."""
    layers, posteriors = inference.layers, inference.posteriors
    marginals = inference.marginals
    zs: Any = None
    q_top = as_gaussian("top", inference.top(x))
    stacked = (
        posteriors.stacked
        and generative.stacked
        and (marginals is None or marginals.stacked)
    )

    # With marginals every term draws its own latent, and none depends on another.
    def marginal(layer):
        shape = q_top.loc.shape if stacked or layer == layers else None
        return reparameterised(
            key,
            layer,
            as_gaussian(f"marginals{_at(layer)}", inference.marginals(layer, x), shape),
        )

    if marginals is None:
        zs = _descend(key, posteriors, q_top, x)
    elif not stacked:
        zs = [marginal(layer) for layer in range(1, layers + 1)]

    def state(layer):
        return marginal(layer) if zs is None else zs[layer - 1]

    def term(layer):
        z, below = state(layer), q_top.loc.shape if stacked else zs[layer - 2].shape
        q = as_gaussian(f"posteriors{_at(layer)}", posteriors(layer, z, x), below)
        p = as_distribution(
            f"generative{_at(layer)}", generative(layer, z), q.loc.shape
        )
        return kl(
            f"generative{_at(layer)}", q, p, reparameterised(key, layers + layer, q)
        )

    top = kl("prior", q_top, as_prior(prior, q_top.loc.shape), state(layers))
    return state(1), _for_layers(term, layers, stacked), top


def _descend(key, posteriors, q_top, x):
    """z_1 … z_L drawn from the top down, an array or a list."""
    layers, z = posteriors.last, reparameterised(key, posteriors.last, q_top)

    def below(layer, z):
        name = f"posteriors{_at(layer)}"
        shape = z.shape if posteriors.stacked else None
        return reparameterised(
            key, layer - 1, as_gaussian(name, posteriors(layer, z, x), shape)
        )

    if posteriors.stacked:
        # zs: (L − 1, *shape), from layer L − 1 down to 1
        _, zs = jax.lax.scan(
            lambda z, layer: (below(layer, z),) * 2, z, jnp.arange(layers, 1, -1)
        )
        return jnp.concatenate([zs[::-1], z[None]])
    zs = [z]
    for layer in range(layers, 1, -1):
        zs.append(below(layer, zs[-1]))
    return zs[::-1]


def _bottom_up_terms(key, inference, generative, x, prior):
    """As `_top_down_terms`, with the terms below the top by the same draws."""
    layers, kernels = inference.layers, inference.kernels
    zs, log_q, q_top = _ascend(key, kernels, x)

    def term(layer):
        """log q(z_{l−1} | z_{l−2}) − log p(z_{l−1} | z_l)."""
        name, z = f"generative{_at(layer)}", zs[layer - 2]
        return log_q[layer - 2] - log_prob(
            name, as_distribution(name, generative(layer, zs[layer - 1]), z.shape), z
        )

    top = kl("prior", q_top, as_prior(prior, q_top.loc.shape), zs[layers - 1])
    return zs[0], _for_layers(term, layers, kernels.stacked and generative.stacked), top


def _ascend(key, kernels, x):
    """(z_1 … z_L, log q(z_l | z_{l−1}), the last Gaussian), as arrays or as lists."""

    def above(layer, z):
        q = as_gaussian(
            f"kernels{_at(layer)}",
            kernels(layer, z),
            z.shape if kernels.stacked else None,
        )
        z = reparameterised(key, layer, q)
        return z, (z, q.log_prob(z), q)

    if kernels.stacked:
        # zs: (L, *shape), log_q: (L,)
        _, (zs, log_q, gaussians) = jax.lax.scan(
            lambda z, layer: above(layer, z), x, jnp.arange(1, kernels.last + 1)
        )
        return zs, log_q, jax.tree.map(lambda leaf: leaf[-1], gaussians)
    z, rows = x, []
    for layer in range(1, kernels.last + 1):
        z, row = above(layer, z)
        rows.append(row)
    zs, log_q, gaussians = zip(*rows, strict=True)
    return zs, log_q, gaussians[-1]


def _for_layers(term, layers, stacked):
    """term(2) … term(L), (L − 1,), by one trace for all where stacked."""
    if layers == 1:
        return jnp.zeros((0,))
    if stacked:
        # The layer is a traced number here: one trace of the kernels for all terms.
        return jax.vmap(term)(jnp.arange(2, layers + 1))
    return jnp.stack([term(layer) for layer in range(2, layers + 1)])


def _at(layer):
    """The layer in a kernel's name, where it is a number."""
    return f"[{layer}]" if isinstance(layer, int) else ""


def _kernels(name, kernels, first, layers):
    """Checked kernels of the layers from `first` on."""
    if callable(kernels):
        checks.require(layers is not None, f"layers must be given: {name} is callable")
        last = checks.depth("layers", layers, 1)
        return Kernels(as_pytree_callable(kernels), first, last)
    checks.callables(name, kernels, 0, ", or one function of the layer")
    count, last = len(kernels), len(kernels) + first - 1
    layers = max(last, 1) if layers is None else layers
    wanted = layers - first + 1
    checks.require(
        count == wanted,
        f"{name} must be {wanted} kernels for {layers} layers, got {count}",
    )
    return Kernels(tuple(map(as_pytree_callable, kernels)), first, last)
