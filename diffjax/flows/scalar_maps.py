"""Scalar maps: increasing maps of one number with given parameters.

Coupling and autoregressive layers apply one to each entry.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from .. import checks
from ..types import Array, as_pytree_callable, pytree, static_field
from .bijectors import Bijector, full
from .checks import check_parameters

__all__ = ["ScalarMap", "additive", "bounded_affine", "conditional", "pointwise"]


class ScalarMap(NamedTuple):
    """An increasing map y = τ(x, θ) as a tuple of pure functions.

    The identity at θ = 0. Made by cached factories, so that equal arguments
    give the same object and nothing retraces.

    Attributes:
      name: Its name with its settings, for messages.
      count: P, the number of parameters of an entry.
      forward: A function (x, θ) -> (y, log ∂y/∂x), elementwise. x is of any
        shape, θ of shape (*x.shape, P), and both results have the shape of x.
      inverse: A function (y, θ) -> (x, log ∂x/∂y), likewise. For y outside the
        range of τ, if that has bounds, it returns a finite x and a log slope
        of −∞.
    """

    name: str
    count: int
    forward: Callable
    inverse: Callable


def additive() -> ScalarMap:
    """y = x + t, with log slope 0 (Dinh et al. 2015, NICE, equation 15)."""
    return _ADDITIVE


def _shift(x, parameters, sign):
    y = x + sign * parameters[..., 0]
    return y, jnp.zeros_like(y)


_ADDITIVE = ScalarMap(
    "additive", 1, functools.partial(_shift, sign=1), functools.partial(_shift, sign=-1)
)


@checks.arguments(bound=checks.positive)
def bounded_affine(bound: float = 2.0) -> ScalarMap:
    """Affine map with a bounded scale (Dinh et al. 2017, RealNVP, equations 7–8).

        y = x e^a + t,   a = c tanh(s/c),   log slope a

    The gain of a layer lies in e^{±c}, with c = bound, a positive number. The
    bound is what keeps a trained flow invertible far from its data. There an
    unbounded s sends numbers beyond any precision.
    """
    return _bounded_affine(float(bound))


@functools.cache
def _bounded_affine(bound):
    def split(parameters):
        return bound * jnp.tanh(parameters[..., 0] / bound), parameters[..., 1]

    def forward(x, parameters):
        log_scale, shift = split(parameters)
        return x * jnp.exp(log_scale) + shift, log_scale

    def inverse(y, parameters):
        log_scale, shift = split(parameters)
        return (y - shift) * jnp.exp(-log_scale), -log_scale

    return ScalarMap(f"bounded_affine({bound})", 2, forward, inverse)


SCALAR_MAP = (
    checks.instance,
    ScalarMap,
    "a scalar map such as bounded_affine() or rational_quadratic()",
)
"""Rule of a scalar map."""


@pytree
class Pointwise(Bijector):
    """A scalar map of each entry with free parameters.

        forward   y_i = τ(x_i, θ_i),     log|det| = Σ log ∂τ/∂x_i
        inverse   x_i = τ⁻¹(y_i, θ_i),   log|det| = Σ log ∂τ⁻¹/∂y_i

    See `pointwise`.
    """

    parameters: Array  # (*shape, P)
    scalar_map: ScalarMap = static_field()

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        checks.one_of_shapes("x", x, [self.parameters.shape[:-1]])
        y, log_slope = self.scalar_map.forward(x, self.parameters)
        return y, jnp.sum(log_slope)

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        checks.one_of_shapes("y", y, [self.parameters.shape[:-1]])
        x, log_slope = self.scalar_map.inverse(y, self.parameters)
        return x, jnp.sum(log_slope)


@checks.arguments(shape=checks.shape, scalar_map=SCALAR_MAP)
def pointwise(shape: tuple, scalar_map: ScalarMap) -> Pointwise:
    """Learned monotone map of each entry, the identity at first.

        y_i = τ(x_i, θ_i),   log|det ∂y/∂x| = Σ log τ′

    Args:
      shape: Shape of an example.
      scalar_map: τ, for example `rational_quadratic()`.

    Returns:
      A bijector with the parameters θ, of shape (*shape, P).

    Raises:
      TypeError: If scalar_map is no scalar map.

    Example:
      >>> y = dj.flows.pointwise((2,), dj.flows.bounded_affine()).forward(jnp.ones(2))
    """
    return Pointwise(full((*shape, scalar_map.count)), scalar_map)


@pytree
class Conditional(Bijector):
    """A scalar map of each entry whose parameters are a function of the condition c.

        forward   y_i = τ(x_i, θ_i(c)),     log|det| = Σ log ∂τ/∂x_i
        inverse   x_i = τ⁻¹(y_i, θ_i(c)),   log|det| = Σ log ∂τ⁻¹/∂y_i

    See `conditional`.
    """

    conditioner: Any
    scalar_map: ScalarMap = static_field()

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        y, log_slope = self.scalar_map.forward(x, self._parameters(x, condition))
        return y, jnp.sum(log_slope)

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        x, log_slope = self.scalar_map.inverse(y, self._parameters(y, condition))
        return x, jnp.sum(log_slope)

    def _parameters(self, x, condition):
        message = "condition must be given to a conditional bijector, got None"
        checks.require(condition is not None, message)
        parameters = self.conditioner(condition)
        return check_parameters(parameters, jnp.shape(x), self.scalar_map)


@checks.arguments(
    conditioner=(checks.callable_, "conditioner(condition) -> (*shape, P)"),
    scalar_map=SCALAR_MAP,
)
def conditional(conditioner: Callable, scalar_map: ScalarMap) -> Conditional:
    """Map of each entry whose parameters are a function of the condition c alone.

        y_i = τ(x_i, θ_i(c)),   log|det ∂y/∂x| = Σ log τ′

    Args:
      conditioner: θ, a function c -> (*shape, P). A pytree callable, whose
        arrays are trained, for example `perceptron`.
      scalar_map: τ, for example `bounded_affine()`.

    Returns:
      A bijector.

    Raises:
      TypeError: If an argument is of another kind.
      ValueError: When called, if there is no condition or the shape of the
        conditioner's result does not fit.

    Example:
      >>> scalar_map = dj.flows.bounded_affine()
      >>> network = dj.flows.perceptron(key, 2, (1, scalar_map.count), width=4)
      >>> bijector = dj.flows.conditional(network, scalar_map)
    """
    return Conditional(as_pytree_callable(conditioner), scalar_map)
