"""Flow maps that are a network's, and the identity where both times are equal."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checks, schedules
from ..predictions import noise_input
from ..schedules import Schedule
from ..types import (
    Array,
    Scalar,
    as_pytree,
    as_pytree_callable,
    pytree,
    static_field,
)

__all__ = ["KINDS", "Coefficients", "NetworkFlowMap", "flow_map"]


class Coefficients(NamedTuple):
    """a and b of X_{t→s}(x) = a x + b F(x, t, s), each ()."""

    a: Array
    b: Array


def _average_velocity(schedule, sigma_data, t, s):
    return Coefficients(jnp.ones_like(t), s - t)


def _denoised(schedule, sigma_data, t, s):
    ratio = schedule.sigma(s) / schedule.sigma(t)
    return Coefficients(ratio, schedule.alpha(s) - schedule.alpha(t) * ratio)


def _rotation(schedule, sigma_data, t, s):
    radius, angle = _polar(schedule, sigma_data, t)
    end, end_angle = _polar(schedule, sigma_data, s)
    turn = angle - end_angle
    return Coefficients(end / radius * jnp.cos(turn), -end * jnp.sin(turn))


def _polar(schedule, sigma_data, t):
    """√(α² σ_d² + σ²), and the angle whose tangent is σ/(α σ_d)."""
    signal, noise = schedule.alpha(t) * sigma_data, schedule.sigma(t)
    return jnp.hypot(signal, noise), jnp.arctan2(noise, signal)


KINDS: dict[str, Callable[..., Coefficients]] = {
    "average_velocity": _average_velocity,
    "denoised": _denoised,
    "rotation": _rotation,
}
"""(schedule, sigma_data, t, s) -> a and b, by kind."""

INPUTS = ("raw", "scaled")


@pytree
class NetworkFlowMap:
    """X_{t→s}(x) = a x + b F(x, t, s) of a network F, made by `flow_map`.

    It may be called with conditions after x, t and s, which are passed to the network.
    """

    schedule: Any
    net: Any
    sigma_data: Scalar
    kind: str = static_field()
    inputs: str = static_field()

    def __call__(self, x: Array, t: Scalar, s: Scalar, *condition: Any) -> Array:
        """The state at s of the trajectory through x at t.

        Args:
          x: One example.
          t: Time of x, ().
          s: Time of the result, ().
          *condition: Further arguments of the network.

        Returns:
          An array of x's shape.
        """
        t, s = _times(t, s, x)
        a, b = self._coefficients(t, s)
        return a * x + b * self.predict(x, t, s, *condition)

    def predict(self, x: Array, t: Scalar, s: Scalar, *condition: Any) -> Array:
        """The output F of the network itself.

        Args:
          x: One example.
          t: Time of x, ().
          s: Time of the result, ().
          *condition: Further arguments of the network.

        Returns:
          F, shape of x.

        Raises:
          ValueError: If a time is not scalar, or the network returns another shape.
        """
        t, s = _times(t, s, x)
        arguments = x, t, s
        if self.inputs == "scaled":
            radius, _ = _polar(self.schedule, self.sigma_data, t)
            levels = [noise_input(self.schedule, time) for time in (t, s)]
            arguments = x / radius, *levels
        return checks.example_shaped("net", self.net(*arguments, *condition), x)

    def scale(self, t: Scalar, s: Scalar) -> Array:
        """b, the change of the map per unit of the network's output.

        Args:
          t: Time of the start, ().
          s: Time of the result, ().

        Returns:
          b, ().
        """
        t, s = _times(t, s, 0.0)
        return self._coefficients(t, s).b

    def average_velocity(
        self, x: Array, t: Scalar, s: Scalar, *condition: Any
    ) -> Array:
        """(X_{t→s}(x) − x)/(s − t), and the velocity where s = t.

        Args:
          x: One example.
          t: Time of x, ().
          s: The other end of the average, ().
          *condition: Further arguments of the network.

        Returns:
          An array of x's shape, in data units per time.
        """
        t, s = _times(t, s, x)
        output = self.predict(x, t, s, *condition)
        if self.kind == "average_velocity":
            return output
        of_end = lambda s: self._coefficients(t, s)
        rates = jax.jvp(of_end, (t,), (jnp.ones_like(t),))[1]
        same = s == t
        length = jnp.where(same, 1, s - t)
        a, b = of_end(s)
        slope_a = jnp.where(same, rates.a, (a - 1) / length)
        slope_b = jnp.where(same, rates.b, b / length)
        return slope_a * x + slope_b * output

    def _coefficients(self, t, s):
        return KINDS[self.kind](self.schedule, self.sigma_data, t, s)

    def velocity(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """The velocity ∂_s X_{t→s}(x) at s = t that the map implies.

        Args:
          x: One example.
          t: A time, ().
          *condition: Further arguments of the network.

        Returns:
          An array of x's shape, in data units per time.
        """
        return self.average_velocity(x, t, t, *condition)


def _times(t, s, like):
    for name, value in (("t", t), ("s", s)):
        checks.one_of_shapes(name, value, [()])
    dtype = checks.promoted(jnp.result_type(like), jnp.float32)
    return jnp.asarray(t, dtype), jnp.asarray(s, dtype)


@checks.arguments(
    schedule=schedules.argument,
    net=(checks.callable_, "net(x, t, s)"),
    kind=(checks.choice, KINDS),
    sigma_data=checks.positive,
    inputs=(checks.choice, INPUTS),
)
def flow_map(
    schedule: Schedule,
    net: Callable,
    kind: str = "average_velocity",
    *,
    sigma_data: Scalar = 0.5,
    inputs: str = "raw",
) -> NetworkFlowMap:
    """The flow map of a network, X_{t→s}(x) = a x + b F(x, t, s).

    a is 1 and b is 0 where s = t, so that the map is then the identity. By kind:

    - "average_velocity": x + (s − t) F (Geng et al. 2025)
    - "denoised": a DDIM step from t to s with F in place of D (Kim et al. 2024). At s
      with σ_s = 0 it is F
    - "rotation": r_s (cos(θ_t − θ_s) x/r_t − sin(θ_t − θ_s) F) with
      r² = α² σ_d² + σ² and tan θ = σ/(α σ_d), the TrigFlow map (Lu & Song 2025) on any
      schedule

    Args:
      schedule: The noise schedule.
      net: F, called as net(x, t, s, *condition).
      kind: A name of `KINDS`.
      sigma_data: Standard deviation σ_d of the data, for "rotation" and scaled inputs.
      inputs: "raw" calls the network with x, t and s. "scaled" divides x by
        √(α² σ_d² + σ²) and replaces both times by ¼ log(σ/α). Those need σ > 0.

    Returns:
      A pytree callable (x, t, s, *condition) -> X of one example.

    Raises:
      TypeError: If net is not callable.
      ValueError: If kind or inputs is unknown, or sigma_data is not positive.

    Example:
      >>> m = dj.flow_maps.flow_map(schedule, lambda x, t, s: -x)
      >>> m(jnp.ones(2), 0.5, 0.5).tolist()
      [1.0, 1.0]
    """
    return NetworkFlowMap(
        as_pytree(schedule), as_pytree_callable(net), sigma_data, kind, inputs
    )
