"""What an SDE does to a density: its current, ∂p/∂t at a fixed point and along a path, by autodiff and by differences.

A density is given by log_prob: (x, t) -> log p_t(x), shape (), of one example x of any shape; as a pytree callable it
does not retrace.
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
from .processes import SDE

LogDensity = Callable[[Array, Scalar], Array]


@pytree
class CurrentVelocity:
    """(x, t) -> f ∓ ½(g²∇log p + ∂g²). See `current_velocity`."""

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
    slopes = jnp.diagonal(jax.jacfwd(diffusion)(flat)).reshape(
        x.shape
    )  # ∂_i g_i, 0 and free for g = g(t)
    # g²∇log p + ∂g², without the square, which would leave float32's range in small or large units
    spread = noise * (noise * jax.grad(of.log_prob)(x, t) + 2 * slopes)
    return of.sde.drift(x, t) + (0.5 if of.downwards else -0.5) * spread


@pytree
class FokkerPlanck:
    """(x, t) -> ∂p/∂t / p. See `fokker_planck`."""

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
    """(x, t) -> −tr ∂v/∂x. See `rate_along_flow`."""

    velocity: Any

    def __call__(self, x: Array, t: Scalar) -> Array:
        """Shape (), nats / time."""
        return as_one_program(_rate_along, self, x, t)


def _rate_along(of, x, t):
    return -divergence(lambda y: of.velocity(y, t), jnp.asarray(x, float_dtype(x)))[1]


@pytree
class Residual:
    """(x, t) -> the Fokker–Planck equation's residual by central differences. See `fokker_planck_residual`."""

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
    shifts = jnp.concatenate(
        [jnp.zeros((1, size), x.dtype), shifts, -shifts]
    )  # 0, dx e_i, −dx e_i: (2D + 1, D)
    places = x + shifts.reshape(-1, *x.shape)
    log_p = jax.vmap(lambda y: of.log_prob(y, t))(places)  # (2D + 1,)
    p = jnp.exp(
        log_p - log_p[0]
    )  # over p_t(x), so that it is of order 1 however small p is

    def flux_and_heat(y, p):
        return of.sde.drift(y, t) * p, jnp.broadcast_to(
            (of.sde.diffusion(y, t) / of.dx) ** 2 * p, x.shape
        )

    def along_axes(values):
        """Component i of f p or g² p/dx² at x, x + dx e_i and x − dx e_i: (2D + 1, *shape) -> three of (D,)."""
        here, up, down = jnp.split(values.reshape(-1, size), (1, 1 + size))
        return here[0], jnp.diagonal(up), jnp.diagonal(down)

    (_, flux_up, flux_down), (heat, heat_up, heat_down) = map(
        along_axes, jax.vmap(flux_and_heat)(places, p)
    )
    transport = jnp.sum(flux_up - flux_down) / (2 * of.dx)
    spread = 0.5 * jnp.sum(heat_up - 2 * heat + heat_down)
    ts = jnp.asarray(t) + of.dt * jnp.array([1, -1])
    later, earlier = jnp.exp(jax.vmap(lambda s: of.log_prob(x, s))(ts) - log_p[0])
    return (
        (later - earlier) / (2 * jnp.abs(of.dt)) + jnp.sign(of.dt) * transport - spread
    )


def current_velocity(
    sde: SDE, log_prob: LogDensity, *, downwards: bool = False
) -> CurrentVelocity:
    """The velocity v of the probability current J = p v, shape of x: ∂p/∂t = −div(v p).

    v_i = f_i − ½ (g_i² ∂_i log p + ∂_i g_i²), Itô's; downwards, for an SDE that runs so as `reverse` gives, with + in
    place of −. It is the probability flow of any SDE whose density is p, and 0 where a Langevin SDE is at its
    stationary law. Raises TypeError for what is no SDE or density. Risken 1989, eq. 4.110; Song et al. 2021, eq. 13
    and 37.
    """
    return CurrentVelocity(
        _sde(sde), _log_prob(log_prob), downwards=checks.boolean("downwards", downwards)
    )


def fokker_planck(
    sde: SDE, log_prob: LogDensity, *, downwards: bool = False
) -> FokkerPlanck:
    """(x, t) -> ∂p/∂t / p that the SDE implies at a density: −tr ∂v/∂x − v·∇log p with v its `current_velocity`, shape
    ().

    For a diffusion without x, −div(f) − f·∇log p + ½Σ_i g_i²(∂_i²log p + (∂_i log p)²). For the density that the SDE
    carries this equals ∂log p_t(x)/∂t at a fixed x; at a stationary law it is 0. downwards and what is raised as in
    `current_velocity`. By automatic differentiation: the cost is D pullbacks. Risken 1989, eq. 4.94a; Song et al. 2021,
    appendix D.1.
    """
    return FokkerPlanck(current_velocity(sde, log_prob, downwards=downwards))


def rate_along_flow(velocity: Velocity) -> RateAlongFlow:
    """(x, t) -> d log p_t(x(t))/dt = −tr ∂v/∂x along a path dx/dt = v of a flow, shape (), nats / time.

    It exceeds ∂log p_t(x)/∂t at a fixed point, `fokker_planck`, by v·∇log p. The cost is D pullbacks. Raises TypeError
    for what cannot be called. Chen et al. 2018, Theorem 1.
    """
    checks.callable_("velocity", velocity, "velocity(x, t)")
    return RateAlongFlow(as_pytree_callable(velocity))


def fokker_planck_residual(
    sde: SDE, log_prob: LogDensity, dx: Scalar, dt: Scalar
) -> Residual:
    """(x, t) -> (∂p/∂t + div(f p) − ½Σ_i ∂_i²(g_i² p)) / p by central differences of the density itself, shape ().

    Nothing is differentiated: 2D + 1 evaluations of the SDE and the density at x ± dx e_i, two more of the density at
    t ± dt. For the density that the SDE carries it falls as O(dx² + dt²) until rounding, about eps (g/dx)² + eps/dt,
    takes over. The diffusion may depend on x, as Itô's.

    dx: (), in data units; dt: (), in units of t, negative for an SDE that runs downwards, as `reverse` gives, since
    then −∂p/∂t = div(f p) + ½Σ_i ∂_i²(g_i² p). Raises ValueError unless dx > 0 and dt ≠ 0.
    """
    dx, dt = checks.positive("dx", dx), checks.number("dt", dt)
    if not checks.is_traced(dt) and float(dt) == 0:
        raise ValueError(f"dt must not be 0, got {dt}")
    return Residual(_sde(sde), _log_prob(log_prob), dx, dt)


def _sde(value):
    if not isinstance(value, SDE):
        raise TypeError(f"sde must be an SDE(drift, diffusion), got {value!r}")
    return SDE(as_pytree_callable(value.drift), as_pytree_callable(value.diffusion))


@pytree
class _Scalar:
    """A log-density whose answer is refused while it is traced unless of shape ()."""

    log_prob: Any

    def __call__(self, x, t):
        value = self.log_prob(x, t)
        if jnp.shape(value) != ():
            raise ValueError(
                f"log_prob must return a scalar, got shape {jnp.shape(value)}"
            )
        return value


def _log_prob(value):
    return _Scalar(
        as_pytree_callable(checks.callable_("log_prob", value, "log_prob(x, t)"))
    )
