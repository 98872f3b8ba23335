"""Increasing maps of one number with given parameters: what couplings and autoregressive layers apply to each entry."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from .. import checks
from ..types import Array, as_pytree_callable, pytree, static_field
from .bijectors import Bijector, full


class ScalarMap(NamedTuple):
    """y = τ(x; θ), increasing in x, as a tuple of pure functions; the identity at θ = 0.

    count: P, how many parameters an entry has. forward(x, θ) -> (y, log ∂y/∂x) and inverse(y, θ) -> (x, log ∂x/∂y),
    elementwise: x of any shape, θ (*x.shape, P), both results of x's shape. For y outside the range of τ, if it has
    bounds, the inverse returns a finite x and a log slope of −∞. Made by cached factories, so that equal
    arguments give the same object and nothing retraces.
    """

    name: str
    count: int
    forward: Callable
    inverse: Callable


def additive() -> ScalarMap:
    """y = x + t; log slope 0. Dinh et al. 2015 (NICE), eq. 15."""
    return _ADDITIVE


def _shift(x, parameters, sign):
    y = x + sign * parameters[..., 0]
    return y, jnp.zeros_like(y)


_ADDITIVE = ScalarMap(
    "additive", 1, functools.partial(_shift, sign=1), functools.partial(_shift, sign=-1)
)


def bounded_affine(bound: float = 2.0) -> ScalarMap:
    """y = x e^a + t with a = c tanh(s/c), so that a layer's gain lies in e^{±c}; log slope a.

    bound: c, positive. The bound is what keeps a trained flow invertible far from its data, where an unbounded s sends
    numbers beyond any precision. Raises ValueError unless it is positive. Dinh et al. 2017 (RealNVP), eq. 7–8.
    """
    return _bounded_affine(float(checks.positive("bound", bound)))


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


def check_scalar_map(name: str, value: Any) -> ScalarMap:
    """`value` if it is a scalar map."""
    if not isinstance(value, ScalarMap):
        raise TypeError(
            f"{name} must be a scalar map such as bounded_affine() or rational_quadratic(), got {value!r}"
        )
    return value


def check_parameters(parameters: Array, shape: tuple, scalar_map: ScalarMap) -> Array:
    """`parameters` if a conditioner gave as many as the map of entries of this shape needs."""
    wanted = (*shape, scalar_map.count)
    if jnp.shape(parameters) != wanted:
        raise ValueError(
            f"conditioner must return shape {wanted} for {scalar_map.name}, got shape {jnp.shape(parameters)}"
        )
    return parameters


@pytree
class Pointwise(Bijector):
    """A scalar map of each entry with parameters of its own. See `pointwise`."""

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


def pointwise(shape: tuple, scalar_map: ScalarMap) -> Pointwise:
    """y_i = τ(x_i; θ_i) with free parameters θ (*shape, P), the identity at first: a learned monotone marginal map."""
    shape, scalar_map = (
        checks.shape("shape", shape),
        check_scalar_map("scalar_map", scalar_map),
    )
    return Pointwise(full((*shape, scalar_map.count)), scalar_map)


@pytree
class Conditional(Bijector):
    """A scalar map of each entry whose parameters are a function of the condition. See `conditional`."""

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
        if condition is None:
            raise ValueError(
                "condition must be given to a conditional bijector, got None"
            )
        return check_parameters(
            self.conditioner(condition), jnp.shape(x), self.scalar_map
        )


def conditional(conditioner: Callable, scalar_map: ScalarMap) -> Conditional:
    """y_i = τ(x_i; θ_i(c)), the parameters a network's function of the condition c alone.

    conditioner: c -> (*shape, P), a pytree callable whose arrays are trained, as `perceptron`. scalar_map: τ, as
    `bounded_affine()`. Raises ValueError where no condition is given or the conditioner's shape does not fit.
    """
    scalar_map = check_scalar_map("scalar_map", scalar_map)
    checks.callable_(
        "conditioner",
        conditioner,
        f"conditioner(condition) -> (*shape, {scalar_map.count})",
    )
    return Conditional(as_pytree_callable(conditioner), scalar_map)
