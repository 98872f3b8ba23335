"""The coupling flows of `diffjax.flows` rebuilt in flowjax and distrax, with the
same weights.

For the rows of `bench_speed` and for the files that tests compare with. Each
library is imported where it is used.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax import flows
from diffjax.flows.density import Flow

library: Callable[[str], Any] = importlib.import_module

AFFINE_BOUND = 2.0
BINS, SPLINE_BOUND, FLOOR = 8, 5.0, 1e-3
MAPS = {
    "affine": flows.bounded_affine(AFFINE_BOUND),
    "spline": flows.rational_quadratic(BINS, SPLINE_BOUND, FLOOR),
}
"""name -> our scalar map, of those that both libraries have."""


class ConditionerLayers(NamedTuple):
    """Dense layers of the conditioners, each with a leading axis of coupling
    layers in order.
    """

    weights: list[jax.Array]  # (layers, fan-in, fan-out)
    biases: list[jax.Array]  # (layers, fan-out)


def coupling_flow(
    kind: str,
    key: jax.Array,
    size: int,
    layers: int,
    width: int,
    size_of_weights: float = 0.3,
) -> Flow:
    """`flows.coupling_flow` without linear maps between its layers, moved away
    from the identity.
    """
    model = flows.coupling_flow(
        key, (size,), MAPS[kind], layers=layers, width=width, mix=False
    )
    stack, actnorm = model.bijector.bijectors
    return flows.flow(
        model.base, flows.chain(moved(stack, key, size_of_weights), actnorm)
    )


def moved(tree: Any, key: jax.Array, size: float) -> Any:
    """Add noise of standard deviation `size` to every array, less by √fan-in in a
    weight matrix.
    """

    def with_noise(i, p):
        scale = size / math.sqrt(p.shape[-2]) if p.ndim > 2 else size
        return p + scale * jax.random.normal(
            jax.random.fold_in(key, i), p.shape, p.dtype
        )

    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, [with_noise(i, p) for i, p in enumerate(leaves)])


def conditioners(flow: Flow) -> ConditionerLayers:
    """The networks' layers of a `coupling_flow`, first and second of each pair
    alternating.
    """
    first, second = (
        part.conditioner for part in flow.bijector.bijectors[0].layers.bijectors
    )
    turns = lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])
    return ConditionerLayers(
        [turns(*pair) for pair in zip(first.weights, second.weights, strict=True)],
        [turns(*pair) for pair in zip(first.biases, second.biases, strict=True)],
    )


def their_parameters(kind: str, raw: jax.Array, count: int) -> jax.Array:
    """Reorder our θ (…, m · P) as both libraries read it, to (…, m, P′) as (…, m
    · P′).

    affine: shift, then log scale. spline: widths, heights, and slopes with
    those of both ends, which stay 1 at 0.
    """
    raw = raw.reshape(*raw.shape[:-1], -1, count)
    if kind == "affine":
        raw = raw[..., ::-1]
    else:
        end = jnp.zeros_like(raw[..., :1])
        raw = jnp.concatenate(
            [raw[..., : 2 * BINS], end, raw[..., 2 * BINS :], end], -1
        )
    return raw.reshape(*raw.shape[:-2], -1)


def rearranged(kind: str, layers: ConditionerLayers) -> ConditionerLayers:
    """The layers with outputs in the order of the other libraries."""
    count = MAPS[kind].count
    return ConditionerLayers(
        [*layers.weights[:-1], their_parameters(kind, layers.weights[-1], count)],
        [*layers.biases[:-1], their_parameters(kind, layers.biases[-1], count)],
    )


# --------------------------------------------------------------------- flowjax


def flowjax_map(kind: str) -> Any:
    """flowjax's scalar bijection with the same formula."""
    equinox, bijections, paramax = (
        library("equinox"),
        library("flowjax.bijections"),
        library("paramax"),
    )
    if kind == "affine":
        scale = paramax.Parameterize(
            lambda s: jnp.exp(AFFINE_BOUND * jnp.tanh(s / AFFINE_BOUND)), jnp.zeros(())
        )
        return equinox.tree_at(
            lambda affine: affine.scale, bijections.Affine(), replace=scale
        )
    return bijections.RationalQuadraticSpline(
        knots=BINS - 1,
        interval=SPLINE_BOUND,
        min_derivative=FLOOR,
        min_width=2 * SPLINE_BOUND * FLOOR,
    )


def flowjax_flow(kind: str, flow: Flow) -> Any:
    """flowjax's Transformed of a Scan of Coupling and Permute, as its
    `coupling_flow` builds one.
    """
    equinox, bijections = library("equinox"), library("flowjax.bijections")
    distributions = library("flowjax.distributions")
    layers, size = rearranged(kind, conditioners(flow)), math.prod(flow.base.shape)
    width, depth = layers.weights[0].shape[-1], len(layers.weights) - 1
    halves = jnp.roll(jnp.arange(size), size // 2)

    def layer(weights, biases):
        made = bijections.Coupling(
            jax.random.key(0),
            transformer=flowjax_map(kind),
            untransformed_dim=size // 2,
            dim=size,
            nn_width=width,
            nn_depth=depth,
            nn_activation=jax.nn.silu,
        )
        made = equinox.tree_at(
            lambda c: [
                leaf
                for dense in c.conditioner.layers
                for leaf in (dense.weight, dense.bias)
            ],
            made,
            [
                leaf
                for weight, bias in zip(weights, biases, strict=True)
                for leaf in (weight.T, bias)
            ],
        )
        return bijections.Chain([made, bijections.Permute(halves)])

    stacked = equinox.filter_vmap(layer)(layers.weights, layers.biases)
    return distributions.Transformed(
        distributions.Normal(jnp.zeros(size)), bijections.Scan(stacked)
    )


# --------------------------------------------------------------------- distrax


def distrax_map(kind: str) -> Callable[[jax.Array], Any]:
    """parameters (…, P′) -> distrax's scalar bijector with the same formula."""
    distrax = library("distrax")
    if kind == "affine":
        return lambda p: distrax.ScalarAffine(
            p[..., 0], log_scale=AFFINE_BOUND * jnp.tanh(p[..., 1] / AFFINE_BOUND)
        )
    return lambda p: distrax.RationalQuadraticSpline(
        p, -SPLINE_BOUND, SPLINE_BOUND, "identity", 2 * SPLINE_BOUND * FLOOR, FLOOR
    )


def distrax_flow(kind: str, flow: Flow) -> Any:
    """distrax's Transformed of a Chain of SplitCoupling, one object per layer."""
    distrax = library("distrax")
    layers, size = rearranged(kind, conditioners(flow)), math.prod(flow.base.shape)

    def conditioner(i):
        def network(h):
            for weight, bias in zip(
                layers.weights[:-1], layers.biases[:-1], strict=True
            ):
                h = jax.nn.silu(h @ weight[i] + bias[i])
            h = h @ layers.weights[-1][i] + layers.biases[-1][i]
            return h.reshape(*h.shape[:-1], size // 2, -1)

        return network

    couplings = [
        distrax.SplitCoupling(
            size // 2, 1, conditioner(i), distrax_map(kind), swap=i % 2 == 1
        )
        for i in range(len(layers.weights[0]))
    ]
    base = distrax.MultivariateNormalDiag(jnp.zeros(size), jnp.ones(size))
    # A chain of distrax applies its last bijector first.
    return distrax.Transformed(base, distrax.Chain(couplings[::-1]))
