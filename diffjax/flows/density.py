"""Normalizing flows: distributions of a bijector's output under a base.

Besides `flow`: examples between two, and a bound for lattice data.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks
from ..sampling import spherical
from ..solvers import requirements
from ..types import (
    Array,
    ArrayLike,
    Key,
    PyTree,
    Scalar,
    is_array,
    pytree,
    static_field,
)
from .checks import BIJECTOR
from .compiled import call
from .composition import initialised

__all__ = ["Flow", "flow", "interpolate", "lattice_log_prob"]


def _finite_parts(name, value):
    return jax.tree.map(lambda part: checks.finite_array(name, part), value)


@pytree
class Flow:
    """Distribution of x = f(z), z drawn from a base. See `flow`.

    Attributes:
      base: Distribution of the latent z.
      bijector: f, from base to data.
      train_base: Whether gradients reach the base's leaves.
    """

    base: Any
    bijector: Any
    train_base: bool = static_field(default=False)

    @checks.arguments(x=checks.finite_array)
    def log_prob(self, x: ArrayLike, condition: Any = None) -> Array:
        """Log density of one example in nats, by the change of variables.

            log p(x) = log p_base(f⁻¹(x)) + log|det ∂f⁻¹/∂x|

        Args:
          x: One example.
          condition: As the bijector takes it.

        Returns:
          log p(x), shape (). It is −∞, with finite gradients, outside the
          image of the bijector, as for a sigmoid outside (0, 1).

        Raises:
          ValueError: For concrete NaN or infinity in x.
        """
        return call(_log_prob, self, x, condition)

    @checks.arguments(key=checks.key, temperature=checks.non_negative)
    def sample(
        self, key: Key, temperature: Scalar = 1.0, condition: Any = None
    ) -> Array:
        """One draw, at a temperature (Kingma & Dhariwal 2018, section 6).

            x = f(m + T (z − m)),    z drawn from the base, m its mean

        For a Gaussian base this is the distribution ∝ p(x)^{1/T²} only where
        |det ∂f/∂z| is constant, as for `additive` couplings. Elsewhere it is another
        one.

        Args:
          key: A typed key.
          temperature: T ≥ 0, a factor of the base's standard deviation.
          condition: As the bijector takes it.

        Returns:
          x, one example.

        Raises:
          TypeError: If T ≠ 1 and the base has no mean().
          ValueError: If T is negative.
        """
        # T = 1 needs no mean of the base
        scaled = checks.is_traced(temperature) or float(temperature) != 1
        message = (
            f"base must have mean() to be scaled by temperature={temperature}, got "
            f"{type(self.base).__name__}"
        )
        checks.require(not scaled or hasattr(self.base, "mean"), message, TypeError)
        return call(_sample, self, key, temperature if scaled else None, condition)

    @checks.arguments(key=checks.key)
    def sample_and_log_prob(
        self, key: Key, condition: Any = None
    ) -> tuple[Array, Array]:
        """(x, log p(x)) of one draw, by one pass forward.

        Args:
          key: A typed key.
          condition: As the bijector takes it.

        Returns:
          x, one example, and its log density, shape ().
        """
        return call(_sample_and_log_prob, self, key, condition)

    @checks.arguments(x=checks.finite_array)
    def encode(self, x: ArrayLike, condition: Any = None) -> PyTree:
        """Latent z = f⁻¹(x).

        Args:
          x: One example.
          condition: As the bijector takes it.

        Returns:
          z, as the base draws it.

        Raises:
          ValueError: For concrete NaN or infinity, or x outside the bijector's
            image.
        """
        return call(_encode, self, x, condition)

    @checks.arguments(z=_finite_parts)
    def decode(self, z: PyTree, condition: Any = None) -> Array:
        """Data x = f(z).

        Args:
          z: One latent, as the base draws it.
          condition: As the bijector takes it.

        Returns:
          x, one example.

        Raises:
          ValueError: For concrete NaN or infinity.
        """
        return call(_decode, self, z, condition)

    def initialised(self, ys: Array, conditions: Any) -> tuple["Flow", PyTree]:
        """The flow with its bijector initialised by data.

        Args:
          ys: Data, (N, *shape).
          conditions: Pytree of leading axis N.

        Returns:
          The flow and the batch of latents.
        """
        bijector, zs = initialised(self.bijector, ys, conditions)
        return Flow(self.base, bijector, self.train_base), zs

    def _base(self):
        if self.train_base:
            return self.base
        # gradients of the base's leaves are then 0, and the flow's structure stays
        return jax.tree.map(
            lambda leaf: jax.lax.stop_gradient(leaf) if is_array(leaf) else leaf,
            self.base,
        )


def _log_prob(flow, x, condition):
    z, log_det = flow.bijector.inverse_and_log_det(x, condition)
    return flow._base().log_prob(z) + log_det


def _sample(flow, key, temperature, condition):
    base = flow._base()
    z = base.sample(key)

    def scaled(z, mean):
        mean = jnp.reshape(mean, jnp.shape(z))
        return mean + temperature * (z - mean)

    # T = 1 leaves the draw unchanged, to the bit
    if temperature is not None:
        z = jax.tree.map(scaled, z, base.mean())
    return flow.bijector.forward(z, condition)


def _sample_and_log_prob(flow, key, condition):
    z = flow._base().sample(key)
    # log_det is that of z -> x, by which the density is divided
    x, log_det = flow.bijector.forward_and_log_det(z, condition)
    return x, flow._base().log_prob(z) - log_det


def _encode(flow, x, condition):
    return flow.bijector.inverse(x, condition)


def _decode(flow, z, condition):
    return flow.bijector.forward(z, condition)


@checks.arguments(
    base=checks.distribution, bijector=BIJECTOR, train_base=checks.boolean
)
def flow(base: Any, bijector: Any, train_base: bool = False) -> Flow:
    """Normalizing flow: the distribution of x = f(z), z drawn from a base.

    Train it by `jax.grad(lambda flow:
    -jnp.mean(jax.vmap(flow.log_prob)(xs)))(flow)`.

    Args:
      base: Anything with log_prob(z) and sample(key): a distribution, a
        target, another flow. Its leaves are held fixed, since for example a
        mixture's weights are no free parameters.
      bijector: f, from base to data.
      train_base: True trains the base's leaves as well.

    Returns:
      A pytree with log_prob(x), sample(key), encode(x) and decode(z).

    Raises:
      TypeError: If base or bijector lacks these methods.

    Example:
      >>> base = dj.distributions.standard_normal((2,))
      >>> flow = dj.flows.flow(base, dj.flows.exponential())
      >>> float(flow.log_prob(jnp.array([-1.0, 1.0])))  # e^z is positive
      -inf
    """
    return Flow(base, bijector, train_base)


FLOW = (checks.made_by, Flow, "flows.flow or one of its constructors")
"""Rule of a flow."""


@checks.arguments(flow=FLOW)
def interpolate(
    flow: Flow,
    start: ArrayLike,
    end: ArrayLike,
    weights: ArrayLike,
    *,
    condition: Any = None,
) -> Array:
    """Examples between two, by spherical interpolation of their latents.

    A straight line between two latents would pass through lengths that the
    base hardly draws. The sphere is around the base's mean, or around 0 where
    it has no mean(). The parts of a tuple of latents are interpolated
    separately.

    Args:
      flow: Made by `flow` or one of its constructors.
      start: One example.
      end: Another of its shape.
      weights: (K,). 0 gives `start` and 1 gives `end`.
      condition: As the bijector takes it.

    Returns:
      The examples, (K, *start.shape).

    Raises:
      TypeError: If flow is none.
      ValueError: If the shapes differ.

    Example:
      >>> base = dj.distributions.standard_normal((2,))
      >>> flow = dj.flows.flow(base, dj.flows.affine(jnp.zeros(2), 2.0))
      >>> ends = jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0])
      >>> dj.flows.interpolate(flow, *ends, jnp.array([0.0, 0.5])).shape
      (2, 2)
    """
    start, end, weights = requirements.check_between(start, end, weights)
    return call(_interpolate, flow, start, end, weights, condition)


def _interpolate(flow, start, end, weights, condition):
    first = flow.bijector.inverse(start, condition)
    last = flow.bijector.inverse(end, condition)
    if hasattr(flow.base, "mean"):
        mean = flow.base.mean()
    else:
        mean = jax.tree.map(jnp.zeros_like, first)

    # of a tuple of latents, every part moves on a sphere of its own
    def between(weight):
        around = lambda a, b, m: m + spherical(a - m, b - m, weight)
        return flow.bijector.forward(jax.tree.map(around, first, last, mean), condition)

    return jax.vmap(between)(weights)


@checks.arguments(
    key=checks.key,
    flow=(checks.has_methods, "log_prob(x, condition)"),
    x=checks.finite_array,
    width=checks.positive,
    dequantiser=checks.optional(checks.has_methods, "sample_and_log_prob(key, x)"),
)
def lattice_log_prob(
    key: Key,
    flow: Flow,
    x: ArrayLike,
    width: Scalar,
    *,
    dequantiser: Flow | None = None,
    condition: Any = None,
) -> Array:
    """Lower bound of log P(x) for lattice data, by one draw of dequantisation noise.

        log P(x) ≥ E_v[log p(x + width (v − ½)) + D log width − log q(v | x)]

    v lies in (0, 1)^D, and P(x) is the flow's mass on the cell around x. −log₂
    P / D is bits/dim (Theis et al. 2016, section 3.1, and Ho et al. 2019, eq.
    12).

    Args:
      key: A typed key.
      flow: Distribution of the data.
      x: One example, of bin centres.
      width: Distance of neighbouring bin centres, in the flow's units.
      dequantiser: The distribution q, a flow onto (0, 1)^D with x as
        condition, as made by `dequantiser`. Train both by the bound's mean.
        Default uniform, log q = 0, under which a smooth density pays for the
        edges of each cell.
      condition: As the flow takes it.

    Returns:
      One draw of the bound, in nats, shape ().

    Raises:
      TypeError: If dequantiser does not draw with its density.
      ValueError: If width is not positive, or for concrete NaN or infinity in
        x.

    Example:
      >>> base = dj.distributions.standard_normal((2,))
      >>> dj.flows.lattice_log_prob(key, dj.flows.flow(base, dj.flows.tanh()),
      ...                           jnp.zeros(2), 0.5).shape
      ()
    """
    return call(_lattice_log_prob, key, flow, x, width, dequantiser, condition)


def _lattice_log_prob(key, flow, x, width, dequantiser, condition):
    if dequantiser is None:
        v, log_q = jax.random.uniform(key, x.shape, x.dtype), 0.0
    else:
        v, log_q = dequantiser.sample_and_log_prob(key, x)
        checks.one_of_shapes("the dequantiser's sample", v, [x.shape])
    # a point of the cell around x
    log_p = flow.log_prob(x + width * (v - 0.5), condition)
    return log_p + math.prod(x.shape) * jnp.log(width) - log_q
