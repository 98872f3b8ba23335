"""The exact flow map of a target: where the probability flow leads from t to s."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from .. import checks, predictions, schedules, solvers
from ..distributions.base import as_array
from ..schedules import Schedule
from ..types import Array, Scalar, as_one_program, pytree
from .base import Target
from .denoisers import denoiser
from .mixtures import Mixture

__all__ = ["FlowMap", "FlowMapDerivatives", "flow_map"]

MARGIN = 1e-4
"""Relative length of an interval, below which differences would lose digits."""

NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)


class FlowMapDerivatives(NamedTuple):
    """First derivatives of a function of (x, t, s).

    Attributes:
      x: Derivative by x, the function's shape and then x's.
      t: Derivative by the start t, the function's shape.
      s: Derivative by the end s, the function's shape.
    """

    x: Array
    t: Array
    s: Array


@pytree
class FlowMap:
    """(x, t, s) -> X_{t→s}(x) of a target under a schedule. See `flow_map`."""

    target: Any
    schedule: Any

    def __call__(self, x: Array, t: Scalar, s: Scalar) -> Array:
        """The state at time s of the trajectory through x at time t.

        Args:
          x: One example.
          t: Time of x, ().
          s: Time of the result, (), less or greater than t.

        Returns:
          An array of x's shape.
        """
        x, t, s = _checked(x, t, s)
        return x + (s - t) * self.average_velocity(x, t, s)

    def average_velocity(self, x: Array, t: Scalar, s: Scalar) -> Array:
        """The mean of the velocity along the trajectory, (X_{t→s}(x) − x)/(s − t).

        Where s = t it is the velocity at x. It loses no digits where s is near t.

        Args:
          x: One example.
          t: Time of x, ().
          s: The other end of the average, ().

        Returns:
          An array of x's shape, in data units per time.
        """
        x, t, s = _checked(x, t, s)
        return as_one_program(_average, self.target, self.schedule, x, t, s)

    def velocity(self, x: Array, t: Scalar) -> Array:
        """The velocity dx/dt of the probability flow.

        Args:
          x: One example.
          t: A time, ().

        Returns:
          An array of x's shape, in data units per time.
        """
        x, t, _ = _checked(x, t, t)
        return _velocity(self.target, self.schedule)(x, t)

    def jacobian(self, x: Array, t: Scalar, s: Scalar) -> Array:
        """The Jacobian ∂X_{t→s}(x)/∂x.

        Args:
          x: One example.
          t: Time of x, ().
          s: Time of the result, ().

        Returns:
          An array of x's shape twice.
        """
        return self.derivatives(x, t, s).x

    def derivatives(self, x: Array, t: Scalar, s: Scalar) -> FlowMapDerivatives:
        """First derivatives of the map.

        They satisfy ∂_s X = v(X, s) and ∂_t X = −(∂X/∂x) v(x, t).

        Args:
          x: One example.
          t: Time of x, ().
          s: Time of the result, ().

        Returns:
          The derivatives by x, t and s.
        """
        return as_one_program(_derivatives, FlowMap.__call__, self, *_checked(x, t, s))

    def average_velocity_derivatives(
        self, x: Array, t: Scalar, s: Scalar
    ) -> FlowMapDerivatives:
        """First derivatives of the average velocity u.

        They satisfy MeanFlow's identity (Geng et al. 2025, equation 6),
        u = v(x, t) + (s − t) (∂_t u + (∂u/∂x) v(x, t)).

        Args:
          x: One example.
          t: Time of x, ().
          s: The other end of the average, ().

        Returns:
          The derivatives by x, t and s.
        """
        arguments = _checked(x, t, s)
        return as_one_program(_derivatives, FlowMap.average_velocity, self, *arguments)


_TARGET = (checks.has_methods, "noised(schedule, t)")


@checks.arguments(target=_TARGET, schedule=schedules.argument)
def flow_map(target: Target, schedule: Schedule) -> FlowMap:
    """Exact flow map of a target's probability flow.

        X_{t→s}(x) = x + ∫_t^s v(x_τ, τ) dτ,    x_t = x

    A normal distribution has the closed form α_s m + C_s^½ C_t^{−½} (x − α_t m) with
    C_t = α_t² V + σ_t². For every other target the flow of its exact denoiser is
    solved to a relative tolerance of 1e-12 in float64 and 1e-6 in float32. So enable
    float64 (`jax.enable_x64`) for exact values.

    The map can be differentiated by x, t and s in forward and in reverse mode. The
    derivative with respect to the target or the schedule raises. It costs as many
    solutions as x has entries, and two more.

    Args:
      target: A target of this module.
      schedule: A schedule. Times in [t_min, t_max] are accepted.

    Returns:
      A pytree callable (x, t, s) -> X_{t→s}(x) of one example x and scalars t and s, in
      both directions of time.

    Raises:
      TypeError: Unless the target has `noised` and the schedule is one.

    References:
      Boffi et al. 2024, Flow map matching, on the map and its derivatives.

    Example:
      >>> target = dj.targets.gaussian([0.0], 1.0)
      >>> m = dj.targets.flow_map(target, dj.schedules.edm())
      >>> x = jnp.array([80.0])
      >>> bool(jnp.allclose(m(x, 80.0, 0.002), x / jnp.sqrt(1 + 80.0**2), rtol=1e-4))
      True
    """
    return FlowMap(target, schedule)


def _checked(x, t, s):
    for name, value in (("t", t), ("s", s)):
        checks.one_of_shapes(name, value, [()])
    x = checks.real_array("x", x)
    return x, *(jnp.asarray(as_array(v), x.dtype) for v in (t, s))


def _derivatives(function, flow, x, t, s):
    by = jax.jacfwd(lambda x, t, s: function(flow, x, t, s), (0, 1, 2))
    return FlowMapDerivatives(*by(x, t, s))


def _velocity(target, schedule):
    return predictions.velocity(schedule, denoiser(target, schedule))


# ------------------------------------------------------------- average velocity


@jax.custom_jvp
def _average(target, schedule, x, t, s):
    """(X_{t→s}(x) − x)/(s − t)."""
    if isinstance(target, Mixture) and target.weights.shape == (1,):
        return _average_of_normal(target, schedule, x, t, s)
    return _average_by_solver(target, schedule, x, t, s)


@functools.partial(_average.defjvp, symbolic_zeros=True)
def _average_jvp(primals, tangents):
    """The rule that makes reverse mode possible, which a `while_loop` has not."""
    target, schedule, *inputs = primals
    *of_target, dx, dt, ds = jax.tree.leaves(
        tangents, is_leaf=lambda v: isinstance(v, SymbolicZero)
    )
    fixed = all(isinstance(v, SymbolicZero) for v in of_target)
    checks.require(
        fixed, "a flow map has derivatives by x, t and s, not by the target", TypeError
    )
    function = lambda x, t, s: _values(target, schedule, x, t, s)
    by_x, by_t, by_s = jax.jacfwd(function, (0, 1, 2))(*inputs)
    value = function(*inputs)
    tangent = jnp.zeros_like(value)
    for slope, change in ((by_x, dx), (by_t, dt), (by_s, ds)):
        if not isinstance(change, SymbolicZero):
            tangent = tangent + jnp.tensordot(slope, change, change.ndim)
    return value, tangent


def _values(target, schedule, x, t, s):
    return _average.fun(target, schedule, x, t, s)


@pytree
class _AverageField:
    """dU/dr of the average velocity U up to the share r of the interval from t to s.

    X(r) = x + (s − t) U(r) is the trajectory, so that dU/dr = v(X(r), t + r (s − t))
    has no quotient of small differences.
    """

    velocity: Any
    x: Any
    t: Any
    s: Any

    def __call__(self, u, r):
        length = self.s - self.t
        # From the nearer end, so that both ends are exact.
        time = jnp.where(r < 0.5, self.t + r * length, self.s - (1 - r) * length)
        return self.velocity(self.x + length * u, time)


def _average_by_solver(target, schedule, x, t, s):
    field = _AverageField(_velocity(target, schedule), x, t, s)
    tolerance = 1e-12 if x.dtype == jnp.float64 else 1e-6
    solver = solvers.adaptive(rtol=tolerance, atol=tolerance, max_steps=100_000)
    ends = np.array([0.0, 1.0])
    return solvers.integrate(None, solver, field, x=jnp.zeros_like(x), ts=ends)


def _average_of_normal(target, schedule, x, t, s):
    """The closed form, with differences over s − t that lose no digits.

        u = δα m + (δC/(C_t^½ (C_t^½ + C_s^½))) (x − α_t m)

    δα and δC are the differences of α and of C = α² V + σ² over s − t.
    """
    mean, variances = target.means[0], target.variances[0]  # (D,), (1,) or (D,)

    def spreads(time):
        return schedule.alpha(time) ** 2 * variances + schedule.sigma(time) ** 2

    start, end = spreads(t), spreads(s)
    slope = _difference(spreads, t, s)
    gain = slope / (jnp.sqrt(start) * (jnp.sqrt(start) + jnp.sqrt(end)))
    residual = x.reshape(-1) - schedule.alpha(t) * mean
    if target.bases is not None:
        basis = target.bases[0]
        residual = basis @ (gain * (basis.T @ residual))
    else:
        residual = gain * residual
    return (_difference(schedule.alpha, t, s) * mean + residual).reshape(x.shape)


def _difference(function, t, s):
    """(f(s) − f(t))/(s − t), by Gauss–Legendre nodes of f′ where s is near t."""
    slope = lambda time: jax.jvp(function, (time,), (jnp.ones_like(time),))[1]
    middle, half = 0.5 * (t + s), 0.5 * (s - t)
    terms = [
        0.5 * w * slope(middle + half * z) for z, w in zip(NODES, WEIGHTS, strict=True)
    ]
    near = jnp.abs(s - t) < MARGIN * jnp.maximum(jnp.abs(t), jnp.abs(s))
    length = jnp.where(near, 1, s - t)
    return jnp.where(near, sum(terms), (function(s) - function(t)) / length)
