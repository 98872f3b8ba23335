"""What follows from a schedule's α and σ: log-SNR and its inverse, drift, diffusion, rates."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..types import Array, ArrayLike, Scalar, is_array

_BISECTIONS = 64


@runtime_checkable
class Schedule(Protocol):
    """What every schedule states: α(t), σ(t) and the interval of t."""

    @property
    def t_min(self) -> Any:
        """The least time, above 0."""
        ...

    @property
    def t_max(self) -> Any:
        """The greatest time."""
        ...

    def alpha(self, t: Scalar) -> Array:
        """Signal scale α(t), shape of t."""
        ...

    def sigma(self, t: Scalar) -> Array:
        """Noise standard deviation σ(t), shape of t."""
        ...


def log_snr(schedule: Schedule, t: ArrayLike) -> Array:
    """λ(t) = log(α²/σ²), shape of t. Strictly decreasing. Kingma et al. 2021, section 3.1."""
    t = as_time(t)
    if hasattr(schedule, "log_snr"):
        return schedule.log_snr(t)
    return 2 * (jnp.log(schedule.alpha(t)) - jnp.log(schedule.sigma(t)))


def time_of_log_snr(schedule: Schedule, log_snr: ArrayLike) -> Array:
    """t with λ(t) = log_snr, shape of log_snr; values beyond λ(t_max), λ(t_min) go to the nearer end.

    Without a closed form, bisection followed by one Newton step, which also carries the implicit derivative: dt/dλ =
    1/λ′(t) and −∂λ/∂θ / λ′(t) for a parameter θ of the schedule.
    """
    target = as_time(log_snr)
    if hasattr(schedule, "time_of_log_snr"):
        t = schedule.time_of_log_snr(target)
    else:
        held = jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if is_array(leaf) else leaf, schedule)
        t = _newton_step(schedule, _bisect(held, jax.lax.stop_gradient(target)), target)
    return jnp.clip(t, schedule.t_min, schedule.t_max)


def drift_coefficient(schedule: Schedule, t: ArrayLike) -> Array:
    """f(t) = d log α / dt of the forward SDE dx = f x dt + g dw, shape of t. Song et al. 2021, appendix B."""
    t = as_time(t)
    if hasattr(schedule, "drift_coefficient"):
        return schedule.drift_coefficient(t)
    return _derivative(lambda u: jnp.log(schedule.alpha(u)), t)


def diffusion_coefficient(schedule: Schedule, t: ArrayLike) -> Array:
    """g(t) = √(dσ²/dt − 2fσ²) = σ √(−λ′(t)) of the forward SDE, shape of t. Kingma et al. 2021, eq. 9.

    The second form does not cancel.
    """
    t = as_time(t)
    if hasattr(schedule, "diffusion_coefficient"):
        return schedule.diffusion_coefficient(t)
    return schedule.sigma(t) * jnp.sqrt(-log_snr_rate(schedule, t))


def log_snr_rate(schedule: Schedule, t: ArrayLike) -> Array:
    """λ′(t) = d log(α²/σ²) / dt < 0, shape of t."""
    return _derivative(lambda u: log_snr(schedule, u), as_time(t))


class Rates(NamedTuple):
    """α, σ and their time derivatives α′, σ′, each of t's shape."""

    alpha: Array
    sigma: Array
    alpha_rate: Array
    sigma_rate: Array


def rates(schedule: Schedule, t: ArrayLike) -> Rates:
    """α(t), σ(t), α′(t), σ′(t): all that a velocity α′ x_0 + σ′ ε needs, finite where f and g² diverge."""
    t = as_time(t)
    alpha, alpha_rate = jax.jvp(schedule.alpha, (t,), (jnp.ones_like(t),))
    sigma, sigma_rate = jax.jvp(schedule.sigma, (t,), (jnp.ones_like(t),))
    return Rates(alpha, sigma, alpha_rate, sigma_rate)


def perturb(schedule: Schedule, x0: ArrayLike, t: Scalar, noise: ArrayLike) -> Array:
    """x_t = α(t) x_0 + σ(t) ε; x0 and noise of one shape, t of shape ()."""
    checks.one_of_shapes("noise", noise, [np.shape(x0)])
    return schedule.alpha(t) * jnp.asarray(x0) + schedule.sigma(t) * jnp.asarray(noise)


def prior_std(schedule: Schedule) -> Array:
    """σ(t_max): the standard deviation of the noise that sampling starts from, shape ().

    N(0, σ(t_max)²) is not p_T exactly: data of mean m and variance s² have mean α m and variance α²s² + σ² there.
    """
    return schedule.sigma(schedule.t_max)


def is_finite(schedule: Schedule) -> bool:
    """Whether the log-SNR is finite at both ends: False where α(t_max) = 0. The schedule must be concrete."""
    with jax.ensure_compile_time_eval():
        return all(np.isfinite(float(log_snr(schedule, t))) for t in (schedule.t_min, schedule.t_max))


def log_snr_range(schedule: Schedule) -> tuple[Array, Array]:
    """(λ(t_max), λ(t_min)), each of shape (). Raises ValueError where a concrete schedule has α(t_max) = 0."""
    if not checks.is_traced(schedule) and not is_finite(schedule):
        raise ValueError(
            f"schedule must have a finite log-SNR at both ends, but α(t_max) = 0 at t_max={schedule.t_max}; lower t_max"
        )
    return log_snr(schedule, schedule.t_max), log_snr(schedule, schedule.t_min)


def alpha_of_log_snr(log_snr: Array) -> Array:
    """α = √sigmoid(λ), for α² + σ² = 1; σ is that of −λ. Shape of log_snr."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(log_snr))


def check(schedule: Any) -> Schedule:
    """`schedule`, or a TypeError that says what it lacks."""
    missing = [name for name in ("alpha", "sigma", "t_min", "t_max") if not hasattr(schedule, name)]
    if missing or isinstance(schedule, type):
        lack = f"lacks {', '.join(missing)}" if missing else "is a class, not an instance"
        raise TypeError(f"schedule must have alpha(t), sigma(t), t_min and t_max; {schedule!r} {lack}")
    return schedule


def as_time(t: ArrayLike) -> Array:
    """t as an array of float32 at least, of the working precision where it is a Python number."""
    dtype = jnp.promote_types(t.dtype, jnp.float32) if hasattr(t, "dtype") else float_dtype(t)
    return jnp.asarray(t, jax.dtypes.canonicalize_dtype(dtype))


def _derivative(function: Callable[[Array], Array], t: Array) -> Array:
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def _bisect(schedule: Schedule, target: Array) -> Array:
    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        above = log_snr(schedule, middle) > target
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low = jnp.full_like(target, schedule.t_min)
    high = jnp.full_like(target, schedule.t_max)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    return 0.5 * (low + high)


def _newton_step(schedule: Schedule, t: Array, target: Array) -> Array:
    slope = jax.lax.stop_gradient(log_snr_rate(schedule, t))
    return t - (log_snr(schedule, t) - target) / slope
