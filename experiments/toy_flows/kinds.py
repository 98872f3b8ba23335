"""The flows of `toy_flows`, and the settings of their fits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from diffjax import distributions, flows, networks
from diffjax.types import pytree, static_field

KNOTS = flows.rational_quadratic(32, bound=4.0)
"""Splines for standardised data, whose densities here end within ±2.5.

They have many bins, for a density with jumps.
"""
REGULAR = 0.01
"""Weight of ∫‖u‖² dt and of ∫‖∂u/∂x‖² dt in a continuous flow's fit by
likelihood.
"""
Loss = Callable[[flows.density.Flow, jax.Array, jax.Array], jax.Array]
"""A loss (flow, key, batch) -> ()."""


class Kind(NamedTuple):
    """A flow and the settings of its fit."""

    title: str
    make: Callable[[jax.Array], flows.density.Flow]
    steps: int
    learning_rate: float
    batch_size: int = 512
    loss: Loss | None = None  # None for maximum likelihood


@pytree
class Harmonics:
    """A network that sees sines of its input too, so that its output may change
    abruptly.
    """

    network: Any
    count: int = static_field()

    def __call__(self, x: jax.Array, condition: Any = None) -> jax.Array:
        return self.network(networks.fourier_inputs(x, self.count), condition)


def spline_coupling(
    key: jax.Array, layers: int = 2, harmonics: int = 4
) -> flows.density.Flow:
    """Spline couplings of alternating halves.

    Their networks see sin and cos of 2^k π x, k below `harmonics`.
    """

    def layer(key, swap):
        network = flows.perceptron(key, 1 + 2 * harmonics, (1, KNOTS.count))
        return flows.coupling(
            Harmonics(network, harmonics), KNOTS, flows.half_mask(2, swap)
        )

    pairs = [
        flows.chain(layer(a, False), layer(b, True))
        for a, b in jax.random.split(key, (layers // 2, 2))
    ]
    return planar(flows.stack(pairs))


def planar(*bijectors: Any) -> flows.density.Flow:
    """The flow of a standard normal pair through bijectors and, at the data's
    end, an actnorm.
    """
    return flows.flow(
        distributions.standard_normal((2,)), flows.chain(*bijectors, flows.actnorm(2))
    )


def standardised(flow: flows.density.Flow, batch: jax.Array) -> tuple[Any, jax.Array]:
    """(the ODE's bijection, the batch before the actnorm at the data's end).

    The actnorm is not trained.
    """
    ode, norm = flow.bijector.bijectors
    return ode, jax.vmap(jax.lax.stop_gradient(norm).inverse)(batch)


def matching(flow: flows.density.Flow, key: jax.Array, batch: jax.Array) -> jax.Array:
    """The regression of the flow's velocity on those of straight paths from
    standardised data to noise.
    """
    ode, xs = standardised(flow, batch)
    return flows.matching_loss(key, ode.velocity, flows.interpolant(), xs)[0]


def regular_likelihood(
    flow: flows.density.Flow, key: jax.Array, batch: jax.Array
) -> jax.Array:
    """−log q in nats per dimension by the exact trace, with a penalty on long and
    bent paths.

    Without it the velocity learns to exploit the error of the few steps that
    it is trained with.
    """
    ode, xs = standardised(flow, batch)
    return flows.transport_loss(
        None, flows.flow(flow.base, ode), xs, kinetic=REGULAR, jacobian=REGULAR
    )[0]


def likelihood(flow: flows.density.Flow, key: jax.Array, batch: jax.Array) -> jax.Array:
    """The mean of −log q over the batch."""
    return flows.negative_log_likelihood(flow, batch)[0]


KINDS: dict[str, Kind] = {
    "real_nvp": Kind(
        "RealNVP, 16 layers",
        lambda key: flows.real_nvp(key, (2,), layers=16, mix=False),
        1000,
        5e-3,
    ),
    "spline": Kind("spline coupling, 2 layers", spline_coupling, 3000, 5e-3),
    "maf": Kind(
        "MAF with splines, 2 layers",
        lambda key: flows.maf(
            key, (2,), layers=2, width=128, depth=3, scalar_map=KNOTS
        ),
        2000,
        5e-3,
    ),
    "cnf": Kind(
        "continuous, by likelihood",
        lambda key: planar(
            flows.neural_ode(key, (2,), width=64, depth=3, steps=6, checkpoint=False)
        ),
        800,
        5e-3,
        batch_size=128,
        loss=regular_likelihood,
    ),
    "matching": Kind(
        "continuous, by matching",
        lambda key: planar(flows.neural_ode(key, (2,), width=96, depth=4)),
        4000,
        2e-3,
        loss=matching,
    ),
}
