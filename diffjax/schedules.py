"""Noise schedules: x_t = α(t) x_0 + σ(t) ε. Each states α and σ; drift, diffusion and log-SNR are derived.

A schedule is any pytree with `alpha(t)`, `sigma(t)`, `t_min` and `t_max`, where α²/σ² falls strictly with t. One of
your own needs nothing else; the closed forms that some schedules add (`log_snr`, `time_of_log_snr`,
`drift_coefficient`, `diffusion_coefficient`, methods of the same names as the functions here) are more exact or faster
than the derived ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from . import checks
from .numerics import float_dtype, log_expm1
from .types import Array, ArrayLike, Key, Scalar, is_array, pytree

_BISECTIONS = 64


@runtime_checkable
class Schedule(Protocol):
    """What every schedule states: α(t), σ(t) and the interval of t."""

    t_min: Any
    t_max: Any

    def alpha(self, t: Scalar) -> Array:
        """Signal scale α(t), shape of t."""
        ...

    def sigma(self, t: Scalar) -> Array:
        """Noise standard deviation σ(t), shape of t."""
        ...


# ---------------------------------------------------------------------------------------------- derived from α and σ


def log_snr(schedule: Schedule, t: ArrayLike) -> Array:
    """λ(t) = log(α²/σ²), shape of t. Strictly decreasing. Kingma et al. 2021, section 3.1."""
    t = _as_time(t)
    if hasattr(schedule, "log_snr"):
        return schedule.log_snr(t)
    return 2 * (jnp.log(schedule.alpha(t)) - jnp.log(schedule.sigma(t)))


def time_of_log_snr(schedule: Schedule, log_snr: ArrayLike) -> Array:
    """t with λ(t) = log_snr, shape of log_snr; values beyond λ(t_max), λ(t_min) go to the nearer end.

    Without a closed form, bisection followed by one Newton step, which also carries the implicit derivative: dt/dλ =
    1/λ′(t) and −∂λ/∂θ / λ′(t) for a parameter θ of the schedule.
    """
    target = _as_time(log_snr)
    if hasattr(schedule, "time_of_log_snr"):
        t = schedule.time_of_log_snr(target)
    else:
        held = jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if is_array(leaf) else leaf, schedule)
        t = _newton_step(schedule, _bisect(held, jax.lax.stop_gradient(target)), target)
    return jnp.clip(t, schedule.t_min, schedule.t_max)


def drift_coefficient(schedule: Schedule, t: ArrayLike) -> Array:
    """f(t) = d log α / dt of the forward SDE dx = f x dt + g dw, shape of t. Song et al. 2021, appendix B."""
    t = _as_time(t)
    if hasattr(schedule, "drift_coefficient"):
        return schedule.drift_coefficient(t)
    return _derivative(lambda u: jnp.log(schedule.alpha(u)), t)


def diffusion_coefficient(schedule: Schedule, t: ArrayLike) -> Array:
    """g(t) = √(dσ²/dt − 2fσ²) = σ √(−λ′(t)) of the forward SDE, shape of t. Kingma et al. 2021, eq. 9.

    The second form does not cancel.
    """
    t = _as_time(t)
    if hasattr(schedule, "diffusion_coefficient"):
        return schedule.diffusion_coefficient(t)
    return schedule.sigma(t) * jnp.sqrt(-log_snr_rate(schedule, t))


def log_snr_rate(schedule: Schedule, t: ArrayLike) -> Array:
    """λ′(t) = d log(α²/σ²) / dt < 0, shape of t."""
    return _derivative(lambda u: log_snr(schedule, u), _as_time(t))


class Rates(NamedTuple):
    """α, σ and their time derivatives α′, σ′, each of t's shape."""

    alpha: Array
    sigma: Array
    alpha_rate: Array
    sigma_rate: Array


def rates(schedule: Schedule, t: ArrayLike) -> Rates:
    """α(t), σ(t), α′(t), σ′(t): all that a velocity α′ x_0 + σ′ ε needs, finite where f and g² diverge."""
    t = _as_time(t)
    alpha, alpha_rate = jax.jvp(schedule.alpha, (t,), (jnp.ones_like(t),))
    sigma, sigma_rate = jax.jvp(schedule.sigma, (t,), (jnp.ones_like(t),))
    return Rates(alpha, sigma, alpha_rate, sigma_rate)


def perturb(schedule: Schedule, x0: ArrayLike, t: Scalar, noise: ArrayLike) -> Array:
    """x_t = α(t) x_0 + σ(t) ε; x0 and noise of one shape, t of shape ()."""
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


def check(schedule: Any) -> Schedule:
    """`schedule`, or a TypeError that says what it lacks."""
    missing = [name for name in ("alpha", "sigma", "t_min", "t_max") if not hasattr(schedule, name)]
    if missing or isinstance(schedule, type):
        lack = f"lacks {', '.join(missing)}" if missing else "is a class, not an instance"
        raise TypeError(f"schedule must have alpha(t), sigma(t), t_min and t_max; {schedule!r} {lack}")
    return schedule


def _as_time(t: ArrayLike) -> Array:
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


# ------------------------------------------------------------------------------------------------- variance preserving


@pytree
class VPLinear:
    """log α = −¼(β_max − β_min)t² − ½β_min t, σ = √(1 − α²). See `vp_linear`."""

    beta_min: Scalar
    beta_max: Scalar
    t_min: Scalar
    t_max: Scalar

    def log_alpha(self, t):
        """log α(t) = −½∫β."""
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def alpha(self, t):
        """e^{−½∫β}."""
        return jnp.exp(self.log_alpha(_as_time(t)))

    def sigma(self, t):
        """√(1 − e^{−∫β}), through expm1: the plain form is off by 1 % at t = 1e-5 in float32."""
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(_as_time(t))))

    def log_snr(self, t):
        """−log(e^{∫β} − 1)."""
        return -log_expm1(-2 * self.log_alpha(t))

    def time_of_log_snr(self, log_snr):
        """t = 2L / (β_min + √(β_min² + 2ΔβL)), L = softplus(−λ) = ∫β."""
        return _time_of_integrated_beta(self, jax.nn.softplus(-log_snr))

    def drift_coefficient(self, t):
        """−½β(t)."""
        return -0.5 * self.beta(t)

    def diffusion_coefficient(self, t):
        """√β(t)."""
        return jnp.sqrt(self.beta(t))

    def beta(self, t):
        """β(t) = β_min + t(β_max − β_min)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)


def vp_linear(beta_min: Scalar = 0.1, beta_max: Scalar = 20.0, t_min: Scalar = 1e-5, t_max: Scalar = 1.0) -> VPLinear:
    """Variance-preserving schedule with linear β(t) = β_min + t(β_max − β_min).

    log α = −¼(β_max − β_min)t² − ½β_min t, σ² = 1 − α², f = −½β, g² = β. All arguments have shape ().
    Raises ValueError unless 0 < beta_min < beta_max and 0 < t_min < t_max. Song et al. 2021, eq. 32–33.
    """
    return VPLinear(*_check_betas(beta_min, beta_max), *_check_interval(t_min, t_max))


@pytree
class SubVP:
    """log α as in `vp_linear`, σ = 1 − α². See `sub_vp`."""

    beta_min: Scalar
    beta_max: Scalar
    t_min: Scalar
    t_max: Scalar

    log_alpha = VPLinear.log_alpha
    alpha = VPLinear.alpha
    beta = VPLinear.beta
    drift_coefficient = VPLinear.drift_coefficient

    def sigma(self, t):
        """1 − e^{−∫β}: a standard deviation."""
        return -jnp.expm1(2 * self.log_alpha(_as_time(t)))

    def time_of_log_snr(self, log_snr):
        """−log α = asinh(e^{−λ/2} / 2), since α² + e^{−λ/2} α = 1."""
        return _time_of_integrated_beta(self, 2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * log_snr)))

    def diffusion_coefficient(self, t):
        """√(β(t)(1 − e^{−2∫β}))."""
        return jnp.sqrt(-self.beta(t) * jnp.expm1(4 * self.log_alpha(t)))


def sub_vp(beta_min: Scalar = 0.1, beta_max: Scalar = 20.0, t_min: Scalar = 1e-5, t_max: Scalar = 1.0) -> SubVP:
    """Sub-VP schedule: α of `vp_linear`, σ = 1 − α² (a standard deviation, below that of VP).

    f = −½β, g² = β(1 − e^{−2∫β}). Raises ValueError unless 0 < beta_min < beta_max and 0 < t_min < t_max.
    Song et al. 2021, eq. 27–29. The noise falls like t, not √t, towards 0.
    """
    return SubVP(*_check_betas(beta_min, beta_max), *_check_interval(t_min, t_max))


def _time_of_integrated_beta(schedule, integral):
    """t with β_min t + ½Δβ t² = ∫β, in the form that does not cancel."""
    integral = jnp.minimum(integral, 1e20)  # beyond any t_max, so that an infinite one is clipped there, not NaN
    beta_min, spread = schedule.beta_min, schedule.beta_max - schedule.beta_min
    return 2 * integral / (beta_min + jnp.sqrt(beta_min**2 + 2 * spread * integral))


@pytree
class VPCosine:
    """α = cos((t + s)/(1 + s)·π/2) / cos(s/(1 + s)·π/2), σ² = 1 − α². See `vp_cosine`."""

    offset: Scalar
    t_min: Scalar
    t_max: Scalar

    def _angles(self, t):
        quarter_turn = 0.5 * jnp.pi / (1 + self.offset)
        return quarter_turn * t, quarter_turn * self.offset

    def alpha(self, t):
        """cos(a) / cos(a_0)."""
        turned, start = self._angles(_as_time(t))
        return jnp.cos(start + turned) / jnp.cos(start)

    def sigma(self, t):
        """√(sin(a + a_0) sin(a − a_0)) / cos(a_0) = √(1 − α²), without its cancellation."""
        turned, start = self._angles(_as_time(t))
        return jnp.sqrt(jnp.sin(2 * start + turned) * jnp.sin(turned)) / jnp.cos(start)


def vp_cosine(offset: Scalar = 0.008, t_min: Scalar = 1e-5, t_max: Scalar = 0.9946) -> VPCosine:
    """Variance-preserving cosine schedule, α ∝ cos((t + offset)/(1 + offset)·π/2), α(0) = 1.

    α → 0 at t = 1, where f and g² diverge: t_max stays below (0.9946: Lu et al. 2022, appendix D.3). Raises ValueError
    unless offset > 0 and 0 < t_min < t_max < 1. Nichol & Dhariwal 2021, eq. 17.
    """
    t_min, t_max = _check_interval(t_min, t_max)
    checks.greater("1", 1.0, "t_max", t_max)
    return VPCosine(checks.positive("offset", offset), t_min, t_max)


# ---------------------------------------------------------------------------------------------------- other families


@pytree
class VE:
    """α = 1, σ = σ_min (σ_max/σ_min)^t. See `ve`."""

    sigma_min: Scalar
    sigma_max: Scalar
    t_min: Scalar
    t_max: Scalar

    def log_sigma(self, t):
        """log σ(t), linear in t."""
        return jnp.log(self.sigma_min) + t * (jnp.log(self.sigma_max) - jnp.log(self.sigma_min))

    def alpha(self, t):
        """1."""
        return jnp.ones_like(_as_time(t))

    def sigma(self, t):
        """σ_min (σ_max/σ_min)^t."""
        return jnp.exp(self.log_sigma(_as_time(t)))

    def log_snr(self, t):
        """−2 log σ."""
        return -2 * self.log_sigma(t)

    def time_of_log_snr(self, log_snr):
        """(−λ/2 − log σ_min) / log(σ_max/σ_min)."""
        return (-0.5 * log_snr - jnp.log(self.sigma_min)) / (jnp.log(self.sigma_max) - jnp.log(self.sigma_min))


def ve(sigma_min: Scalar = 0.01, sigma_max: Scalar = 50.0, t_min: Scalar = 1e-5, t_max: Scalar = 1.0) -> VE:
    """Variance-exploding schedule: α = 1, σ(t) = σ_min (σ_max/σ_min)^t in data units.

    f = 0, g² = 2 log(σ_max/σ_min) σ². σ_max should exceed the largest distance between data points. Raises ValueError
    unless 0 < sigma_min < sigma_max and 0 < t_min < t_max. Song et al. 2021, eq. 30 (there σ² starts at 0).
    """
    return VE(*_check_sigmas(sigma_min, sigma_max), *_check_interval(t_min, t_max))


@pytree
class EDM:
    """α = 1, σ = t. See `edm`."""

    t_min: Scalar
    t_max: Scalar

    def alpha(self, t):
        """1."""
        return jnp.ones_like(_as_time(t))

    def sigma(self, t):
        """t."""
        return _as_time(t)

    def log_snr(self, t):
        """−2 log t."""
        return -2 * jnp.log(t)

    def time_of_log_snr(self, log_snr):
        """e^{−λ/2}."""
        return jnp.exp(-0.5 * log_snr)

    def diffusion_coefficient(self, t):
        """√(2t)."""
        return jnp.sqrt(2 * t)


def edm(sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0) -> EDM:
    """EDM schedule: α = 1, σ = t, t from sigma_min to sigma_max in data units. f = 0, g² = 2t.

    Raises ValueError unless 0 < sigma_min < sigma_max. Karras et al. 2022, section 3.
    """
    return EDM(*_check_sigmas(sigma_min, sigma_max))


@pytree
class RectifiedFlow:
    """α = 1 − t, σ = t. See `rectified_flow`."""

    t_min: Scalar
    t_max: Scalar

    def alpha(self, t):
        """1 − t."""
        return 1 - _as_time(t)

    def sigma(self, t):
        """t."""
        return _as_time(t)

    def time_of_log_snr(self, log_snr):
        """sigmoid(−λ/2)."""
        return jax.nn.sigmoid(-0.5 * log_snr)


def rectified_flow(t_max: Scalar = 0.999, t_min: Scalar = 1e-3) -> RectifiedFlow:
    """Rectified flow (flow matching with t = 1 the noise): α = 1 − t, σ = t.

    f = −1/(1 − t) and g² = 2t/(1 − t) diverge at t = 1, and a noise or score prediction cannot give D there: t_max = 1
    serves the data and velocity kinds with probability-flow solvers on grids uniform in t. Raises ValueError unless 0 <
    t_min < t_max ≤ 1. Liu et al. 2023, eq. 1; Lipman et al. 2023, eq. 20.
    """
    t_min, t_max = _check_interval(t_min, t_max)
    checks.within("t_max", t_max, 0.0, 1.0)
    return RectifiedFlow(t_min, t_max)


# -------------------------------------------------------------------------------------------------- tables and learned


class Posterior(NamedTuple):
    """Coefficients of q(x_{t−1} | x_t, x_0) = N(c_0 x_0 + c_t x_t, β̃), each (T,), entry i for index i + 1."""

    data: Any
    state: Any
    variance: Any
    log_variance: Any


@pytree
class DiscreteChain:
    """DDPM's chain as a schedule: λ at t = index / T, linear between. See `from_betas`."""

    betas: Any
    log_snrs: Any

    @property
    def steps(self) -> int:
        """T, the chain's length."""
        return self.log_snrs.shape[0]

    @property
    def t_min(self) -> float:
        """1 / T, the first index."""
        return 1 / self.steps

    @property
    def t_max(self) -> float:
        """1, the last index."""
        return 1.0

    @property
    def times(self) -> np.ndarray:
        """Index / T for the indices 1 … T, shape (T,)."""
        return np.arange(1, self.steps + 1) / self.steps

    @property
    def alpha_bars(self):
        """ᾱ = ∏(1 − β) = sigmoid(λ), shape (T,)."""
        return jax.nn.sigmoid(jnp.asarray(self.log_snrs))

    def log_snr(self, t):
        """Piecewise linear in t between the table's entries."""
        return jnp.interp(t, self.times, jnp.asarray(self.log_snrs))

    def alpha(self, t):
        """√sigmoid(λ) = √ᾱ at the table's entries."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(self.log_snr(_as_time(t))))

    def sigma(self, t):
        """√sigmoid(−λ) = √(1 − ᾱ) at the table's entries."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(-self.log_snr(_as_time(t))))

    def time_of_log_snr(self, log_snr):
        """The inverse of the piecewise linear table."""
        return jnp.interp(-log_snr, -jnp.asarray(self.log_snrs), self.times)

    def posterior(self) -> Posterior:
        """Coefficients of q(x_{t−1} | x_t, x_0), in float64 on the host where the betas are concrete.

        c_0 = √ᾱ_{t−1} β_t / (1 − ᾱ_t), c_t = √(1 − β_t) (1 − ᾱ_{t−1}) / (1 − ᾱ_t), β̃_t = β_t (1 − ᾱ_{t−1}) / (1 −
        ᾱ_t). β̃_1 = 0; its logarithm takes the second index's. Ho et al. 2020, eq. 6–7; Nichol & Dhariwal 2021, section
        3.1.
        """
        xp = jnp if checks.is_traced(self.betas) else np
        betas = xp.asarray(self.betas)
        log_bars = xp.cumsum(xp.log1p(-betas))
        previous = xp.concatenate([xp.zeros_like(log_bars[:1]), log_bars[:-1]])
        noise, noise_before = -xp.expm1(log_bars), -xp.expm1(previous)
        variance = betas * noise_before / noise
        log_variance = xp.log(xp.concatenate([variance[1:2], variance[1:]]))
        return Posterior(
            xp.exp(0.5 * previous) * betas / noise, xp.sqrt(1 - betas) * noise_before / noise, variance, log_variance
        )


def from_betas(betas: ArrayLike) -> DiscreteChain:
    """The schedule of a DDPM chain with the given forward variances: t = index / T, indices 1 … T.

    ᾱ_i = ∏_{j≤i}(1 − β_j), α = √ᾱ, σ = √(1 − ᾱ) at the indices; between them the log-SNR is linear in t.
    betas: (T,), T ≥ 2, each in (0, 1); tables are made in float64 on the host. Raises ValueError otherwise.
    Ho et al. 2020, eq. 2 and 4.
    """
    xp: Any = jnp if checks.is_traced(betas) else np
    try:
        betas = xp.asarray(betas, None if xp is jnp else np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"betas must be an array of real numbers, got {betas!r}") from None
    if betas.ndim != 1 or betas.shape[0] < 2:
        raise ValueError(f"betas must have shape (T,) with T at least 2, got {betas.shape}")
    if xp is np and not bool(np.all((betas > 0) & (betas < 1))):
        outside = betas[~((betas > 0) & (betas < 1))]
        raise ValueError(f"betas must lie in (0, 1), got {outside[0]} among {outside.size} outside")
    log_bars = xp.cumsum(xp.log1p(-betas))
    return DiscreteChain(betas, log_bars - xp.log(-xp.expm1(log_bars)))


@pytree
class LearnedVP:
    """Variance-preserving schedule with a trainable monotone log-SNR. See `learned`."""

    log_snr_max: Any
    log_snr_min: Any
    weight: Any
    slope: Any
    centre: Any
    t_min: Scalar
    t_max: Scalar

    def _progress(self, t):
        bump = jnp.sum(jnp.exp(self.weight) * jax.nn.sigmoid(jnp.exp(self.slope) * (t[..., None] - self.centre)), -1)
        return t + bump

    def log_snr(self, t):
        """λ_max − (λ_max − λ_min) h(t), h increasing from 0 at t = 0 to 1 at t = 1."""
        start, end = self._progress(jnp.zeros(())), self._progress(jnp.ones(()))
        return self.log_snr_max - (self.log_snr_max - self.log_snr_min) * (self._progress(t) - start) / (end - start)

    def alpha(self, t):
        """√sigmoid(λ)."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(self.log_snr(_as_time(t))))

    def sigma(self, t):
        """√sigmoid(−λ)."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(-self.log_snr(_as_time(t))))


def learned(
    key: Key, hidden: int = 32, log_snr_max: Scalar = 13.3, log_snr_min: Scalar = -5.0, t_min: Scalar = 1e-5
) -> LearnedVP:
    """A variance-preserving schedule whose log-SNR is a monotone network of t: its array fields are trainable.

    λ(t) = λ_max − (λ_max − λ_min) h(t), h(t) ∝ t + Σ_k e^{w_k} sigmoid(e^{a_k}(t − c_k)), normalised to h(0) = 0, h(1)
    = 1; the exponentials keep h increasing. Defaults are VDM's end points. hidden: number of sigmoids. Raises
    ValueError unless hidden ≥ 1 and log_snr_min < log_snr_max. Kingma et al. 2021, appendix H (another monotone
    network).
    """
    checks.key("key", key)
    hidden = checks.integer("hidden", hidden, minimum=1)
    high, low = checks.number("log_snr_max", log_snr_max), checks.number("log_snr_min", log_snr_min)
    checks.greater("log_snr_max", high, "log_snr_min", low)
    weight = 0.1 * jax.random.normal(key, (hidden,)) - jnp.log(hidden)
    centre = (jnp.arange(hidden) + 0.5) / hidden
    t_min, t_max = _check_interval(t_min, 1.0)
    return LearnedVP(
        jnp.asarray(high), jnp.asarray(low), weight, jnp.full((hidden,), jnp.log(4.0)), centre, t_min, t_max
    )


def _check_ordered(low_name, low, high_name, high):
    low, high = checks.positive(low_name, low), checks.positive(high_name, high)
    checks.greater(high_name, high, low_name, low)
    return low, high


def _check_betas(beta_min, beta_max):
    return _check_ordered("beta_min", beta_min, "beta_max", beta_max)


def _check_sigmas(sigma_min, sigma_max):
    return _check_ordered("sigma_min", sigma_min, "sigma_max", sigma_max)


def _check_interval(t_min, t_max):
    return _check_ordered("t_min", t_min, "t_max", t_max)
