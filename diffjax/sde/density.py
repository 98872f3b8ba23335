"""Densities of an SDE: their current and ∂p/∂t, by autodiff and by differences.

A density is a function log_prob(x, t) -> log p_t(x), (), of one example x of
any shape. A pytree callable does not retrace.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks
from ..numerics import divergence, float_dtype
from ..types import (
    Array,
    Scalar,
    Velocity,
    as_one_program,
    as_pytree_callable,
    pytree,
    static_field,
)
from .processes import SDE, check_sde

__all__ = [
    "CurrentVelocity",
    "FokkerPlanck",
    "RateAlongFlow",
    "Residual",
    "current_velocity",
    "fokker_planck",
    "fokker_planck_residual",
    "rate_along_flow",
]

LogDensity = Callable[[Array, Scalar], Array]


@pytree
class CurrentVelocity:
    """(x, t) -> f ∓ ½ (g² ∇log p + ∂g²), made by `current_velocity`."""

    sde: Any
    log_prob: Any
    downwards: bool = static_field(default=False)

    def __call__(self, x: Array, t: Scalar) -> Array:
        """Shape of x."""
        return as_one_program(_current, self, x, t)


def _current(of, x, t):
    def diffusion(flat):
        return jnp.broadcast_to(
            of.sde.diffusion(flat.reshape(x.shape), t), x.shape
        ).ravel()

    flat = jnp.ravel(x)
    noise = diffusion(flat).reshape(x.shape)
    # ∂_i g_i, 0 for g = g(t), for which XLA drops the derivative
    slopes = jnp.diagonal(jax.jacfwd(diffusion)(flat)).reshape(x.shape)
    # g² ∇log p + ∂g², without the square, which would leave the range of
    # float32 in small or large units
    spread = noise * (noise * jax.grad(of.log_prob)(x, t) + 2 * slopes)
    return of.sde.drift(x, t) + (0.5 if of.downwards else -0.5) * spread


@pytree
class FokkerPlanck:
    """(x, t) -> ∂p/∂t / p, made by `fokker_planck`."""

    velocity: Any

    def __call__(self, x: Array, t: Scalar) -> Array:
        """Shape (), 1 / time."""
        return as_one_program(_rate, self, x, t)


def _rate(of, x, t):
    x = jnp.asarray(x, float_dtype(x))
    velocity, spread = divergence(lambda y: of.velocity(y, t), x)
    return -spread - jnp.sum(velocity * jax.grad(of.velocity.log_prob)(x, t))


@pytree
class RateAlongFlow:
    """(x, t) -> −tr ∂v/∂x, made by `rate_along_flow`."""

    velocity: Any

    def __call__(self, x: Array, t: Scalar) -> Array:
        """Shape (), nats / time."""
        return as_one_program(_rate_along, self, x, t)


def _rate_along(of, x, t):
    return -divergence(lambda y: of.velocity(y, t), jnp.asarray(x, float_dtype(x)))[1]


@pytree
class Residual:
    """(x, t) -> the residual of the Fokker–Planck equation by central differences.

    It is made by `fokker_planck_residual`.
    """

    sde: Any
    log_prob: Any
    dx: Any
    dt: Any

    def __call__(self, x: Array, t: Scalar) -> Array:
        """Shape (), 1 / time."""
        return as_one_program(_residual, self, x, t)


def _residual(of, x, t):
    x = jnp.asarray(x, float_dtype(x))
    size = x.size
    shifts = of.dx * jnp.eye(size, dtype=x.dtype)
    # The shifts 0, dx e_i and −dx e_i, (2D + 1, D)
    shifts = jnp.concatenate([jnp.zeros((1, size), x.dtype), shifts, -shifts])
    points = x + shifts.reshape(-1, *x.shape)
    log_p = jax.vmap(lambda y: of.log_prob(y, t))(points)  # (2D + 1,)
    # Relative to p_t(x), so that it is of order 1 however small p is
    p = jnp.exp(log_p - log_p[0])

    def flux_and_heat(y, p):
        return of.sde.drift(y, t) * p, jnp.broadcast_to(
            (of.sde.diffusion(y, t) / of.dx) ** 2 * p, x.shape
        )

    def along_axes(values):
        # Component i of f p or g² p/dx² at x, x + dx e_i and x − dx e_i: (2D +
        # 1, *shape) -> three of (D,).
        here, up, down = jnp.split(values.reshape(-1, size), (1, 1 + size))
        return here[0], jnp.diagonal(up), jnp.diagonal(down)

    (_, flux_up, flux_down), (heat, heat_up, heat_down) = map(
        along_axes, jax.vmap(flux_and_heat)(points, p)
    )
    transport = jnp.sum(flux_up - flux_down) / (2 * of.dx)
    spread = 0.5 * jnp.sum(heat_up - 2 * heat + heat_down)
    ts = jnp.asarray(t) + of.dt * jnp.array([1, -1])
    later, earlier = jnp.exp(jax.vmap(lambda s: of.log_prob(x, s))(ts) - log_p[0])
    return (
        (later - earlier) / (2 * jnp.abs(of.dt)) + jnp.sign(of.dt) * transport - spread
    )


@pytree
class _Scalar:
    # A log-density, whose value is checked while it is traced.

    log_prob: Any

    def __call__(self, x, t):
        return checks.scalar_of("log_prob", self.log_prob(x, t))


def _density(name, value):
    return _Scalar(as_pytree_callable(checks.callable_(name, value, "log_prob(x, t)")))


@checks.arguments(sde=check_sde, log_prob=_density, downwards=checks.boolean)
def current_velocity(
    sde: SDE, log_prob: LogDensity, *, downwards: bool = False
) -> CurrentVelocity:
    """The velocity v of the probability current J = p v of an SDE.

        ∂p/∂t = −div(v p),    v_i = f_i − ½ (g_i² ∂_i log p + ∂_i g_i²)

    in Itô's sense. It is the probability flow of any SDE whose density is p.
    It is 0 where a Langevin SDE is at its stationary distribution.

    Args:
      sde: The SDE.
      log_prob: (x, t) -> log p_t(x), ().
      downwards: True for an SDE that runs down in time, like that of
        `reverse`. Then v has + in place of −.

    Returns:
      (x, t) -> v, shape of x.

    Raises:
      TypeError: If sde is no SDE, or log_prob cannot be called.

    References:
      Risken 1989, equation 4.110. Song et al. 2021, equations 13 and 37.
    """
    return CurrentVelocity(sde, log_prob, downwards=downwards)


def fokker_planck(
    sde: SDE, log_prob: LogDensity, *, downwards: bool = False
) -> FokkerPlanck:
    """The relative rate ∂p/∂t / p that an SDE implies at a density.

        −tr ∂v/∂x − v·∇log p,    v the `current_velocity`

    For a diffusion without x this is −div(f) − f·∇log p + ½ Σ_i g_i² (∂_i² log
    p + (∂_i log p)²). For the density that the SDE carries it equals ∂log
    p_t(x)/∂t at a fixed x. At a stationary distribution it is 0. It is
    computed by automatic differentiation, at the cost of D pullbacks for D
    entries.

    Args:
      sde: The SDE.
      log_prob: (x, t) -> log p_t(x), ().
      downwards: True for an SDE that runs down in time.

    Returns:
      (x, t) -> ∂p/∂t / p, (), per time.

    Raises:
      TypeError: If sde is no SDE, or log_prob cannot be called.

    References:
      Risken 1989, equation 4.94a. Song et al. 2021, appendix D.1.

    Example:
      >>> log_prob = lambda x, t: target.noised(schedule, t).log_prob(x)
      >>> rate = dj.sde.fokker_planck(dj.sde.forward(schedule), log_prob)
      >>> rate(jnp.ones(2), 0.5).shape
      ()
    """
    return FokkerPlanck(current_velocity(sde, log_prob, downwards=downwards))


@checks.arguments(velocity=(checks.callable_, "velocity(x, t)"))
def rate_along_flow(velocity: Velocity) -> RateAlongFlow:
    """The rate of log p along a trajectory of a flow (Chen et al. 2018, Theorem 1).

        d log p_t(x(t))/dt = −tr ∂v/∂x,    dx/dt = v

    It exceeds ∂log p_t(x)/∂t at a fixed point, `fokker_planck`, by v·∇log p.
    The cost is D pullbacks for D entries.

    Args:
      velocity: (x, t) -> dx/dt, shape of x.

    Returns:
      (x, t) -> the rate, (), in nats per time.

    Raises:
      TypeError: If velocity cannot be called.
    """
    return RateAlongFlow(as_pytree_callable(velocity))


@checks.arguments(
    sde=check_sde, log_prob=_density, dx=checks.positive, dt=checks.number
)
def fokker_planck_residual(
    sde: SDE, log_prob: LogDensity, dx: Scalar, dt: Scalar
) -> Residual:
    """The residual of the Fokker–Planck equation by central differences.

        (∂p/∂t + div(f p) − ½ Σ_i ∂_i²(g_i² p)) / p

    Nothing is differentiated. It takes 2D + 1 evaluations of the SDE and the
    density at x ± dx e_i, and two more of the density at t ± dt. For the
    density that the SDE carries it falls as O(dx² + dt²) until rounding, about
    eps (g/dx)² + eps/dt, takes over. The diffusion may depend on x, in Itô's
    sense.

    Args:
      sde: The SDE.
      log_prob: (x, t) -> log p_t(x), ().
      dx: Distance of the differences in x, (), in data units.
      dt: Distance in t, (). It is negative for an SDE that runs down in time,
        like that of `reverse`, since then −∂p/∂t = div(f p) + ½ Σ_i ∂_i²(g_i²
        p).

    Returns:
      (x, t) -> the residual, (), per time.

    Raises:
      ValueError: Unless dx > 0 and dt ≠ 0.
      TypeError: If sde is no SDE, or log_prob cannot be called.
    """
    checks.require(dt != 0, f"dt must not be 0, got {dt}")
    return Residual(sde, log_prob, dx, dt)
