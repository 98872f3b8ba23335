"""The bijectors and flows that tests run over.

A new one is a row here, and every theorem covers it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import distributions, flows

NORMAL, KEY = distributions.standard_normal((2,)), jax.random.key(0)


class Member(NamedTuple):
    """A bijector of the family.

    make: A function key -> bijector.
    shape: Shape of an example at the base.
    far: The standard deviation that counts as far out of distribution.
    conditional: True if it takes a condition of shape (2,).
    """

    make: Any
    shape: tuple
    far: float = 5.0
    conditional: bool = False


def glow_like(key):
    """Two scales of squeeze, actnorm and convolution.

    (4, 4, 2) from latents of 2 × 2 × 4 and 1 × 1 × 16.
    """
    keys = jax.random.split(key, 2)
    deep = flows.chain(
        flows.invertible_convolution(keys[0], 16),
        flows.actnorm(16),
        flows.inverse(flows.squeeze()),
    )
    data = flows.chain(
        flows.invertible_convolution(keys[1], 8),
        flows.actnorm(8),
        flows.inverse(flows.squeeze()),
    )
    levels = flows.multiscale((4, 4, 2), deep, data)
    return flows.chain(Vector(levels), levels)


@dj.types.pytree
class Vector:
    """A vector to the latents of a multiscale bijector, for a square Jacobian."""

    levels: Any

    def forward_and_log_det(self, x, condition=None):
        """Unflattened."""
        return jax.lax.stop_gradient(self.levels).unflatten(x), jnp.zeros(())

    def inverse_and_log_det(self, y, condition=None):
        """Flattened."""
        return jax.lax.stop_gradient(self.levels).flatten(y), jnp.zeros(())

    forward = inverse = None


Vector.forward = lambda self, x, condition=None: self.forward_and_log_det(x)[0]
Vector.inverse = lambda self, y, condition=None: self.inverse_and_log_det(y)[0]


def glow(network, condition_size=0):
    """A function key -> Glow of two scales for (4, 4, 1), of a vector."""

    def make(key):
        model = flows.glow(
            key,
            (4, 4, 1),
            scales=2,
            steps=2,
            width=4,
            condition_size=condition_size,
            network=network,
        )
        return flows.chain(Vector(model.bijector), model.bijector)

    return make


def coupled(scalar_map, mask, shape, condition_size=0):
    """A function key -> coupling of a perceptron for examples of this shape."""
    kept, moved = (part.shape for part in mask.parts(jnp.zeros(shape)))

    def make(key):
        outputs = (*moved, scalar_map.count)
        network = flows.perceptron(
            key, math.prod(kept), outputs, width=8, condition_size=condition_size
        )
        return flows.coupling(network, scalar_map, mask)

    return make


def conditioned(key):
    """A conditional spline of a vector."""
    scalar_map = flows.rational_quadratic(5, 3.0)
    return flows.conditional(
        flows.perceptron(key, 2, (3, scalar_map.count), width=8), scalar_map
    )


SPLINE = flows.rational_quadratic(5, 3.0)


MEMBERS = {
    "identity": Member(lambda key: flows.chain(), (3,)),
    "affine": Member(lambda key: flows.affine([0.3, -1.0, 2.0], [0.5, 1.0, 3.0]), (3,)),
    "affine broadcast": Member(lambda key: flows.affine(0.3, 0.5), (2, 2)),
    "actnorm": Member(lambda key: flows.actnorm(2), (2, 2, 2)),
    "exponential": Member(lambda key: flows.exponential(), (3,)),
    "positive": Member(lambda key: flows.positive(), (3,)),
    "tanh": Member(lambda key: flows.tanh(), (3,), far=2.0),
    "sigmoid": Member(lambda key: flows.sigmoid(), (3,)),
    "logit": Member(lambda key: flows.logit(-1.0, 16.0), (3,)),
    "leaky_relu": Member(lambda key: flows.leaky_relu(0.2), (3,)),
    "sinh_arcsinh": Member(
        lambda key: flows.sinh_arcsinh([0.2, 0.0, -1.0], [0.8, 1.0, 1.3]), (3,)
    ),
    "permutation": Member(lambda key: flows.permutation([2, 0, 1]), (2, 3)),
    "shuffle": Member(lambda key: flows.shuffle(key, 5), (5,)),
    "reversal": Member(lambda key: flows.reversal(3), (3,)),
    "reshape": Member(lambda key: flows.reshape((4,), (2, 2)), (4,)),
    "squeeze": Member(lambda key: flows.squeeze(), (2, 4, 2)),
    "triangular": Member(lambda key: flows.triangular(4), (4,)),
    "lu_linear": Member(lambda key: flows.lu_linear(4), (4,)),
    "invertible_convolution": Member(
        lambda key: flows.invertible_convolution(key, 3), (2, 2, 3)
    ),
    "multiscale": Member(glow_like, (32,)),
    "inverse": Member(lambda key: flows.inverse(flows.triangular(3)), (3,)),
    "stack": Member(
        lambda key: flows.stack(
            [
                flows.chain(
                    flows.lu_linear(3),
                    flows.leaky_relu(0.5),
                    flows.affine(jnp.zeros(3)),
                )
            ]
            * 4
        ),
        (3,),
    ),
    "additive, half": Member(coupled(flows.additive(), flows.half_mask(3), (3,)), (3,)),
    "affine, half": Member(
        coupled(flows.bounded_affine(), flows.half_mask(4, swap=True), (4,)), (4,)
    ),
    "affine, alternate": Member(
        coupled(flows.bounded_affine(1.0), flows.alternate_mask(5), (5,)), (5,)
    ),
    "affine, channels": Member(
        coupled(flows.bounded_affine(), flows.half_mask(2), (2, 2, 2)), (2, 2, 2)
    ),
    "affine, checkerboard": Member(
        coupled(flows.bounded_affine(), flows.checkerboard_mask(), (2, 3, 2)), (2, 3, 2)
    ),
    "spline, half": Member(coupled(SPLINE, flows.half_mask(3), (3,)), (3,)),
    "spline, checkerboard": Member(
        coupled(SPLINE, flows.checkerboard_mask(True), (2, 2, 1)), (2, 2, 1)
    ),
    "affine, conditional": Member(
        coupled(flows.bounded_affine(), flows.half_mask(3), (3,), 2),
        (3,),
        conditional=True,
    ),
    "pointwise spline": Member(lambda key: flows.pointwise((3,), SPLINE), (3,)),
    "conditional spline": Member(conditioned, (3,), conditional=True),
    "nice": Member(lambda key: flows.nice(key, (3,), layers=4, width=8).bijector, (3,)),
    "real_nvp": Member(
        lambda key: flows.real_nvp(key, (2, 2), layers=4, width=8).bijector, (4,)
    ),
    "real_nvp, three layers": Member(
        lambda key: flows.real_nvp(key, (3,), layers=3, width=8).bijector, (3,)
    ),
    "maf": Member(lambda key: flows.maf(key, (3,), layers=2, width=8).bijector, (3,)),
    "maf, splines": Member(
        lambda key: flows.autoregressive(
            flows.masked_perceptron(key, 4, SPLINE.count, width=8), SPLINE
        ),
        (4,),
    ),
    "maf, conditional": Member(
        lambda key: flows.autoregressive(
            flows.masked_perceptron(key, 3, 2, width=8, condition_size=2),
            flows.bounded_affine(),
        ),
        (3,),
        conditional=True,
    ),
    "maf of one entry": Member(
        lambda key: flows.autoregressive(
            flows.masked_perceptron(key, 1, 2, width=8), flows.bounded_affine()
        ),
        (1,),
    ),
    "iaf": Member(lambda key: flows.iaf(key, (2, 2), layers=2, width=8).bijector, (4,)),
    "iaf, one layer": Member(
        lambda key: flows.iaf(key, (3,), layers=1, width=8).bijector, (3,)
    ),
    "tarflow, three layers": Member(
        lambda key: (
            flows.tarflow(
                key, (2, 2, 1), patch=1, layers=3, width=8, depth=1, heads=2
            ).bijector
        ),
        (4, 1),
    ),
    "tarflow": Member(
        lambda key: (
            flows.tarflow(key, (4, 4, 1), layers=2, width=8, depth=1, heads=2).bijector
        ),
        (4, 4),
    ),
    "causal_transformer": Member(
        lambda key: flows.autoregressive(
            flows.causal_transformer(
                key, 3, 2, 2, width=8, depth=1, heads=2, condition_size=2
            ),
            flows.bounded_affine(),
        ),
        (3, 2),
        conditional=True,
    ),
    "spline_coupling": Member(
        lambda key: (
            flows.spline_coupling(key, (2,), width=8, condition_size=2).bijector
        ),
        (2,),
        conditional=True,
    ),
    "glow": Member(glow(flows.convolutional), (16,)),
    "glow, dense, conditional": Member(glow(flows.dense, 2), (16,), conditional=True),
}
"""name -> member.

Tests shake the parameters, so that results hold beyond the start.
"""


CONSTRUCTORS = {
    "nice": flows.nice,
    "real_nvp": flows.real_nvp,
    "spline_coupling": flows.spline_coupling,
    "maf": flows.maf,
    "iaf": flows.iaf,
}
"""name -> (key, shape, layers=, width=, condition_size=) -> Flow."""


def shaken(tree, seed=1, size=0.3):
    """Every parameter plus N(0, size²)."""
    draws = np.random.default_rng(seed)

    def moved(leaf):
        return (np.asarray(leaf) + size * draws.standard_normal(leaf.shape)).astype(
            leaf.dtype
        )

    return jax.device_put(jax.tree.map(moved, tree))
