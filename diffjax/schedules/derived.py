"""Functions of any schedule: log-SNR and its inverse, drift, diffusion, rates."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..types import Array, ArrayLike, Scalar, as_one_program, is_array, is_eager
from .protocol import Schedule, as_time, at_times, check, in_float64

__all__ = [
    "Rates",
    "alpha_of_log_snr",
    "diffusion_coefficient",
    "drift_coefficient",
    "is_finite",
    "log_snr",
    "log_snr_at",
    "log_snr_range",
    "log_snr_rate",
    "log_snrs_in_float64",
    "noisiest_time",
    "perturb",
    "prior_std",
    "rates",
    "time_at_log_snr",
    "time_of_log_snr",
    "without_signal",
]

_BISECTIONS = 64


def log_snr(schedule: Schedule, t: ArrayLike) -> Array:
    """Log-SNR λ(t) = log(α²/σ²) (Kingma et al. 2021, section 3.1).

    It decreases strictly with t.

    Args:
      schedule: The noise schedule.
      t: Times, of any shape.

    Returns:
      λ, shape of t.

    Example:
      >>> float(dj.schedules.log_snr(dj.schedules.edm(), 1.0))
      -0.0
    """
    return at_times(log_snr_at, schedule, t)


def log_snr_at(schedule: Schedule, t: Array) -> Array:
    """`log_snr` without checks, also under a transformation.

    Args:
      schedule: The noise schedule.
      t: Times, of any shape.

    Returns:
      λ, shape of t.
    """
    if hasattr(schedule, "log_snr"):
        return schedule.log_snr(t)
    return 2 * (jnp.log(schedule.alpha(t)) - jnp.log(schedule.sigma(t)))


def time_of_log_snr(schedule: Schedule, log_snr: ArrayLike) -> Array:
    """The time t with λ(t) = log_snr.

    Values beyond λ(t_max) or λ(t_min) go to the nearer end. Without a closed
    form, the time is found by bisection and one Newton step. That step also
    carries the implicit derivatives: dt/dλ = 1/λ′(t), and −∂λ/∂θ / λ′(t) for a
    parameter θ of the schedule.

    Concrete values are computed in float64 and rounded once. In traced
    float32, t has the absolute error of λ's own rounding, |λ| 6e-8 / |λ′(t)|,
    however small t is.

    Args:
      schedule: The noise schedule.
      log_snr: λ, of any shape.

    Returns:
      Times, shape of log_snr.

    Example:
      >>> float(dj.schedules.time_of_log_snr(dj.schedules.edm(), 0.0))
      1.0
    """
    return at_times(time_at_log_snr, schedule, log_snr, "log_snr")


def time_at_log_snr(schedule: Schedule, target: Array) -> Array:
    """`time_of_log_snr` without checks, also under a transformation.

    Args:
      schedule: The noise schedule.
      target: λ, of any shape.

    Returns:
      Times, shape of target.
    """
    if hasattr(schedule, "time_of_log_snr"):
        t = schedule.time_of_log_snr(target)
    else:
        # No derivative passes the bisection, whose comparisons have none. The
        # Newton step carries all of it.
        held = jax.tree.map(
            lambda leaf: jax.lax.stop_gradient(leaf) if is_array(leaf) else leaf,
            schedule,
        )
        t = _newton_step(schedule, _bisect(held, jax.lax.stop_gradient(target)), target)
    return jnp.clip(t, schedule.t_min, schedule.t_max)


def drift_coefficient(schedule: Schedule, t: ArrayLike) -> Array:
    """Drift coefficient f(t) = d log α / dt of the forward SDE.

        dx = f x dt + g dw

    Args:
      schedule: The noise schedule.
      t: Times, of any shape.

    Returns:
      f, shape of t.

    References:
      Song et al. 2021, appendix B.
    """
    return at_times(_drift_coefficient, schedule, t)


def _drift_coefficient(schedule, t):
    if hasattr(schedule, "drift_coefficient"):
        return schedule.drift_coefficient(t)
    return _derivative(lambda u: jnp.log(schedule.alpha(u)), t)


def diffusion_coefficient(schedule: Schedule, t: ArrayLike) -> Array:
    """Diffusion coefficient g(t) of the forward SDE (Kingma et al. 2021, equation 9).

        g² = dσ²/dt − 2 f σ² = −σ² λ′(t)

    The second form, which is used, does not cancel.

    Args:
      schedule: The noise schedule.
      t: Times, of any shape.

    Returns:
      g, shape of t.
    """
    return at_times(_diffusion_coefficient, schedule, t)


def _diffusion_coefficient(schedule, t):
    if hasattr(schedule, "diffusion_coefficient"):
        return schedule.diffusion_coefficient(t)
    # Not √(dσ²/dt − 2 f σ²), whose terms cancel for small noise.
    return schedule.sigma(t) * jnp.sqrt(-_log_snr_rate(schedule, t))


def log_snr_rate(schedule: Schedule, t: ArrayLike) -> Array:
    """Time derivative of the log-SNR, λ′(t) < 0.

    Args:
      schedule: The noise schedule.
      t: Times, of any shape.

    Returns:
      λ′, shape of t.
    """
    return at_times(_log_snr_rate, schedule, t)


def _log_snr_rate(schedule, t):
    return _derivative(lambda u: log_snr_at(schedule, u), t)


class Rates(NamedTuple):
    """α, σ and their time derivatives α′ and σ′, each of t's shape."""

    alpha: Array
    sigma: Array
    alpha_rate: Array
    sigma_rate: Array


def rates(schedule: Schedule, t: ArrayLike) -> Rates:
    """α, σ and their time derivatives.

    A velocity α′ x_0 + σ′ ε needs nothing else. They are finite where f and g²
    diverge.

    Args:
      schedule: The noise schedule.
      t: Times, of any shape.

    Returns:
      α(t), σ(t), α′(t) and σ′(t), each of t's shape.
    """
    return at_times(_rates, schedule, t)


def _rates(schedule, t):
    alpha, alpha_rate = jax.jvp(schedule.alpha, (t,), (jnp.ones_like(t),))
    sigma, sigma_rate = jax.jvp(schedule.sigma, (t,), (jnp.ones_like(t),))
    return Rates(alpha, sigma, alpha_rate, sigma_rate)


def perturb(schedule: Schedule, x0: ArrayLike, t: Scalar, noise: ArrayLike) -> Array:
    """Add noise to an example: x_t = α(t) x_0 + σ(t) ε.

    Args:
      schedule: The noise schedule.
      x0: One example, of any shape.
      t: A time, ().
      noise: ε, shape of x0.

    Returns:
      x_t, shape of x0.

    Raises:
      ValueError: If noise has another shape than x0, or t is no scalar.

    Example:
      >>> dj.schedules.perturb(schedule, jnp.ones(2), 0.5, jnp.zeros(2)).shape
      (2,)
    """
    check(schedule)
    noise = checks.real_shaped("noise", noise, np.shape(x0))
    x0 = checks.real_array("x0", x0)
    return as_one_program(_perturb, schedule, x0, checks.number("t", t), noise)


def _perturb(schedule, x0, t, noise):
    return schedule.alpha(t) * x0 + schedule.sigma(t) * noise


def prior_std(schedule: Schedule, t: Scalar | None = None) -> Array:
    """Standard deviation σ(t) of the noise that sampling starts from.

    N(0, σ(t)²) is not p_t exactly. Data of mean m and variance s² have mean α
    m and variance α²s² + σ² there.

    Args:
      schedule: The noise schedule.
      t: The time at which sampling starts, the first of its grid, (). By
        default t_max.

    Returns:
      σ(t), ().
    """
    return as_one_program(
        _prior_std, check(schedule), as_time(schedule.t_max if t is None else t)
    )


def _prior_std(schedule, t):
    return schedule.sigma(t)


def without_signal(schedule: Schedule, t: ArrayLike) -> Array:
    """True where α(t) is 0 to rounding, so that x_t holds noise alone.

    There σ/α, λ and the map between noise and x_0 cannot be used. For a
    schedule that states its own log-SNR, which computes a small α to full
    precision, α(t) must be 0 or less, or the log-SNR infinite.

    Any other α counts as 0 below two units of rounding of α(t_min). cos(π/2)
    is −4e-8 in float32 and 6e-17 in float64, and α = 1 − t is of that size one
    rounding before t = 1. At such an α, α D lies below the rounding of the
    state x_t = α D + σ ε̂, so that x_t = σ ε̂ holds to the last digit.

    Args:
      schedule: Any schedule.
      t: Times in [t_min, t_max], of any shape. They may be traced.

    Returns:
      Booleans, shape of t.

    Example:
      >>> bool(dj.schedules.without_signal(dj.schedules.rectified_flow(t_max=1.0), 1.0))
      True
    """
    return as_one_program(_without_signal, check(schedule), as_time(t))


def _without_signal(schedule, t):
    alpha = schedule.alpha(t)
    if hasattr(schedule, "log_snr"):
        return ~(alpha > 0) | ~(schedule.log_snr(t) > -jnp.inf)
    return ~(
        alpha > 2 * jnp.finfo(alpha.dtype).eps * schedule.alpha(as_time(schedule.t_min))
    )


def is_finite(schedule: Schedule) -> bool:
    """True if the log-SNR is finite at both ends of a concrete schedule.

    False where α(t_max) is 0 to rounding, see `without_signal`.
    """
    check(schedule)
    if is_eager():
        return bool(as_one_program(_is_finite, schedule))
    with jax.ensure_compile_time_eval():
        return bool(_is_finite(schedule))


def _is_finite(schedule):
    ends = jnp.stack([as_time(end) for end in (schedule.t_min, schedule.t_max)])
    return jnp.all(
        jnp.isfinite(log_snr_at(schedule, ends)) & ~_without_signal(schedule, ends)
    )


def noisiest_time(schedule: Schedule) -> Scalar:
    """The greatest time of finite log-SNR.

    It is t_max, or index T − 1 of a chain whose last index holds no signal.
    """
    return getattr(check(schedule), "noisiest_time", schedule.t_max)


def log_snr_range(schedule: Schedule) -> tuple[Array, Array]:
    """The least and the greatest log-SNR, λ(t_max) and λ(t_min), each of shape ().

    The least is λ at index T − 1 for a chain of zero terminal SNR. Raises
    ValueError if another concrete schedule has α(t_max) = 0.
    """
    check(schedule)
    ends = [noisiest_time(schedule), schedule.t_min]
    if not is_eager(schedule):
        known = hasattr(schedule, "noisiest_time") or checks.is_traced(schedule)
        if not (known or is_finite(schedule)):
            raise _no_signal(schedule)
        return log_snr(schedule, ends[0]), log_snr(schedule, ends[1])
    least, greatest = log_snrs_in_float64(schedule, ends)
    return jnp.asarray(least, float_dtype()), jnp.asarray(greatest, float_dtype())


def log_snrs_in_float64(schedule: Schedule, ends: list) -> np.ndarray:
    """λ in float64 at the noisiest and the least time.

    Args:
      schedule: The noise schedule.
      ends: The two times, the noisiest first.

    Returns:
      (2,), on the host.

    Raises:
      ValueError: If the schedule has no signal at the first.
    """
    log_snrs, lacking = in_float64(_signal, schedule, np.array(ends, float_dtype()))
    if lacking.any() or not np.all(np.isfinite(log_snrs)):
        raise _no_signal(schedule)
    return log_snrs


def _signal(schedule, t):
    return log_snr_at(schedule, t), _without_signal(schedule, t)


def _no_signal(schedule):
    return ValueError(
        "schedule must have a finite log-SNR at both ends, but α(t_max) = 0 at "
        f"t_max={schedule.t_max}; lower t_max"
    )


def alpha_of_log_snr(log_snr: Array) -> Array:
    """α = √sigmoid(λ), if α² + σ² = 1. Shape of log_snr. σ is that of −λ."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(log_snr))


def _derivative(function: Callable[[Array], Array], t: Array) -> Array:
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def _bisect(schedule: Schedule, target: Array) -> Array:
    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        above = log_snr_at(schedule, middle) > target
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low = jnp.full_like(target, schedule.t_min)
    high = jnp.full_like(target, schedule.t_max)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    return 0.5 * (low + high)


def _newton_step(schedule: Schedule, t: Array, target: Array) -> Array:
    # Held, so that the derivative of the step is that of the implicit
    # function.
    slope = jax.lax.stop_gradient(_log_snr_rate(schedule, t))
    return t - (log_snr_at(schedule, t) - target) / slope
