"""Normalizing flows: the law of a bijector's output under a base law, examples between two, bounds for a lattice."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks
from ..sampling import spherical
from ..solvers import driver
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
from .bijectors import check_bijector
from .compiled import call
from .composition import initialised


@pytree
class Flow:
    """The law of x = f(z), z of the base law. See `flow`."""

    base: Any
    bijector: Any
    train_base: bool = static_field(default=False)

    def log_prob(self, x: ArrayLike, condition: Any = None) -> Array:
        """log p(x) = log p_base(f⁻¹(x)) + log|det ∂f⁻¹/∂x| in nats, shape (); x: one example.

        It is −∞ outside the image of the bijector, as for a sigmoid outside (0, 1), with finite gradients. Raises
        ValueError for concrete NaN or infinity.
        """
        return call(_log_prob, self, _checked("x", x), condition)

    def sample(
        self, key: Key, temperature: Scalar = 1.0, condition: Any = None
    ) -> Array:
        """One draw x = f(m + T (z − m)), z of the base with mean m: its standard deviation times the temperature T ≥ 0.

        For a Gaussian base this is the law ∝ p(x)^{1/T²} only where |det ∂f/∂z| is constant, as for `additive`
        couplings; elsewhere it is a law of its own. Raises ValueError for a negative T, TypeError for T ≠ 1 where the
        base has no mean(). Kingma & Dhariwal 2018, section 6.
        """
        temperature = checks.non_negative("temperature", temperature)
        scaled = checks.is_traced(temperature) or float(temperature) != 1
        if scaled and not hasattr(self.base, "mean"):
            raise TypeError(
                f"base must have mean() to be scaled by temperature={temperature}, got {self.base!r}"
            )
        return call(
            _sample,
            self,
            checks.key("key", key),
            temperature if scaled else None,
            condition,
        )

    def sample_and_log_prob(
        self, key: Key, condition: Any = None
    ) -> tuple[Array, Array]:
        """(x, log p(x)) of one draw, by one pass forward."""
        return call(_sample_and_log_prob, self, checks.key("key", key), condition)

    def encode(self, x: ArrayLike, condition: Any = None) -> PyTree:
        """The latent z = f⁻¹(x). Raises ValueError for concrete NaN, infinity, or x outside the bijector's image."""
        return call(_encode, self, _checked("x", x), condition)

    def decode(self, z: PyTree, condition: Any = None) -> Array:
        """x = f(z). Raises ValueError for concrete NaN or infinity."""
        return call(
            _decode, self, jax.tree.map(lambda part: _checked("z", part), z), condition
        )

    def initialised(self, ys: Array, conditions: Any) -> tuple["Flow", PyTree]:
        """The flow with its bijector initialised by data, and the batch of latents."""
        bijector, zs = initialised(self.bijector, ys, conditions)
        return Flow(self.base, bijector, self.train_base), zs

    def _base(self):
        if self.train_base:
            return self.base
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
    if temperature is not None:
        z = jax.tree.map(
            lambda z, m: _scaled(z, jnp.reshape(m, jnp.shape(z)), temperature),
            z,
            base.mean(),
        )
    return flow.bijector.forward(z, condition)


def _sample_and_log_prob(flow, key, condition):
    z = flow._base().sample(key)
    x, log_det = flow.bijector.forward_and_log_det(z, condition)
    return x, flow._base().log_prob(z) - log_det


def _encode(flow, x, condition):
    return flow.bijector.inverse(x, condition)


def _decode(flow, z, condition):
    return flow.bijector.forward(z, condition)


def _scaled(z, mean, temperature):
    return mean + temperature * (z - mean)


def flow(base: Any, bijector: Any, train_base: bool = False) -> Flow:
    """The law of x = f(z), z ~ base: a pytree with log_prob(x), sample(key), encode(x) and decode(z).

    base: anything with log_prob(z) and sample(key), as `standard_normal(shape)`, a target, another flow. Its leaves are
    held fixed, since a mixture's weights, say, are no free parameters; train_base=True trains them. bijector: from base
    to data. Train by `jax.grad(lambda flow: -jnp.mean(jax.vmap(flow.log_prob)(xs)))(flow)`. Raises TypeError for a base
    or a bijector without these methods.
    """
    for method in ("log_prob", "sample"):
        if not callable(getattr(base, method, None)) or isinstance(base, type):
            raise TypeError(f"base must have log_prob(z) and sample(key), got {base!r}")
    return Flow(
        base,
        check_bijector("bijector", bijector),
        checks.boolean("train_base", train_base),
    )


def interpolate(
    flow: Flow,
    start: ArrayLike,
    end: ArrayLike,
    weights: ArrayLike,
    *,
    condition: Any = None,
) -> Array:
    """Examples between two: both encoded, their latents interpolated spherically, each of a tuple by itself, decoded.

    weights: (K,), 0 gives `start` and 1 gives `end`. Shape (K, *start.shape). A straight line between two latents would
    pass through lengths that the base hardly draws. The sphere is around the base's mean, or 0 where it has no mean().
    Raises ValueError where the shapes differ, TypeError for what is no flow.
    """
    start, end, weights = driver.check_between(start, end, weights)
    return call(_interpolate, check_flow(flow), start, end, weights, condition)


def _interpolate(flow, start, end, weights, condition):
    first, last = (
        flow.bijector.inverse(start, condition),
        flow.bijector.inverse(end, condition),
    )
    mean = (
        flow.base.mean()
        if hasattr(flow.base, "mean")
        else jax.tree.map(jnp.zeros_like, first)
    )

    def between(weight):
        around = lambda a, b, m: m + spherical(a - m, b - m, weight)
        return flow.bijector.forward(jax.tree.map(around, first, last, mean), condition)

    return jax.vmap(between)(weights)


def check_flow(value: Any) -> Flow:
    """`value` if it was made by `flow`."""
    if not isinstance(value, Flow):
        raise TypeError(
            f"flow must be made by flows.flow or one of its constructors, got {value!r}"
        )
    return value


def lattice_log_prob(
    key: Key,
    flow: Flow,
    x: ArrayLike,
    width: Scalar,
    *,
    dequantiser: Flow | None = None,
    condition: Any = None,
) -> Array:
    """log P(x) of lattice data from below, by one draw of dequantisation noise, in nats; shape ().

    log P(x) ≥ E_v[log p(x + width (v − ½)) + D log width − log q(v | x)] with v in (0, 1)^D, and P(x) the flow's mass
    on the cell around x. x: bin centres, `width` apart in the flow's units. dequantiser: the law q, a flow onto (0,
    1)^D of which x is the condition, as `dequantiser`; default uniform, log q = 0, under which a smooth density pays
    for the edges of each cell. Train both by its mean. −log₂ P / D is bits/dim. Raises ValueError unless width > 0, and
    for concrete NaN, TypeError for a dequantiser that does not draw with its density. Theis et al. 2016, section 3.1;
    Ho et al. 2019, eq. 12.
    """
    checks.key("key", key)
    if not callable(getattr(flow, "log_prob", None)) or isinstance(flow, type):
        raise TypeError(f"flow must have log_prob(x, condition), got {flow!r}")
    if dequantiser is not None and not callable(
        getattr(dequantiser, "sample_and_log_prob", None)
    ):
        raise TypeError(
            f"dequantiser must be a flow, with sample_and_log_prob(key, condition), got {dequantiser!r}"
        )
    return call(
        _lattice_log_prob,
        key,
        flow,
        _checked("x", x),
        checks.positive("width", width),
        dequantiser,
        condition,
    )


def _lattice_log_prob(key, flow, x, width, dequantiser, condition):
    if dequantiser is None:
        v, log_q = jax.random.uniform(key, x.shape, x.dtype), 0.0
    else:
        v, log_q = dequantiser.sample_and_log_prob(key, x)
        checks.one_of_shapes("the dequantiser's sample", v, [x.shape])
    lp = flow.log_prob(x + width * (v - 0.5), condition)
    return lp + math.prod(x.shape) * jnp.log(width) - log_q


def _checked(name, x):
    x = checks.real_array(name, x)
    checks.finite(name, x)
    return x
