"""Densities known exactly at every noise level: if x_0 has one of these laws, so has x_t = α x_0 + σ ε.

A target is a pytree with `log_prob(x)` in nats, `sample(key)` and `noised(schedule, t)`, which is again a target: the
exact p_t. `denoiser(target, schedule)` is the exact E[x_0 | x_t].
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from . import checks, schedules, spectral
from .distributions.normal import log_normal_interval
from .schedules import Schedule
from .types import (
    Array,
    ArrayLike,
    Key,
    Scalar,
    as_one_program,
    as_pytree_callable,
    one_program,
    pytree,
    static_field,
)


class Target(Protocol):
    """A density of one example, closed under scaling and added Gaussian noise."""

    def log_prob(self, x: Array) -> Array:
        """log p(x) in nats, shape ()."""
        ...

    def sample(self, key: Key) -> Array:
        """One draw."""
        ...

    def noised(self, schedule: Schedule, t: Scalar) -> "Target":
        """The law of α(t) x + σ(t) ε."""
        ...


def compiled_eagerly(method: Callable) -> Callable:
    """`types.one_program`, of a function that also accepts lists of numbers."""
    run = one_program(method)

    @functools.wraps(method)
    def call(*args, **kwargs):
        keywords = {name: _as_array(value) for name, value in kwargs.items()}
        return run(*map(_as_array, args), **keywords)

    return call


def _as_array(value):
    if type(value) is int:  # JAX would want it within 32 bits
        return checks.number("an argument", value)
    return np.asarray(value) if type(value) in (list, tuple) else value


# ----------------------------------------------------------------------------------------------- exact denoiser, score


@pytree
class ExactDenoiser:
    """(x, t) -> E[x_0 | x_t = x] of a target under a schedule. See `denoiser`."""

    target: Any
    schedule: Any

    def __call__(self, x: Array, t: Scalar) -> Array:
        """E[x_0 | x_t = x], shape of x."""
        checks.one_of_shapes("t", t, [()])
        return as_one_program(ExactDenoiser._denoised, self, _as_array(x), _as_array(t))

    def _denoised(self, x, t):
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if hasattr(self.target, "posterior_mean"):
            return self.target.posterior_mean(x, alpha, sigma)
        tweedie = x + sigma**2 * score(self.target.noised(self.schedule, t), x)
        if not hasattr(self.target, "mean"):
            return tweedie / alpha
        return jnp.where(
            alpha > 0,
            tweedie / jnp.where(alpha > 0, alpha, 1),
            self.target.mean().reshape(x.shape),
        )


def denoiser(target: Target, schedule: Schedule) -> ExactDenoiser:
    """The exact denoiser D(x, t) = E[x_0 | x_t = x]; a pytree callable for one example x and a scalar t.

    target: one of this module, or any pytree with `log_prob` and `noised`. In closed form where the target has
    `posterior_mean(x, α, σ)`, as mixtures and data sets have; else by Tweedie's formula D = (x + σ²∇log p_t) / α (Efron
    2011, eq. 1.4), and `mean()`, if it has one, where α = 0. Raises TypeError unless the target has `noised` and the
    schedule is one.

    Example:
      >>> denoiser = dj.targets.denoiser(dj.targets.gaussian([0.0], 1.0), dj.schedules.edm())
      >>> print(jax.jit(denoiser)(jnp.ones(1), 1.0))
      [0.5]
    """
    if not hasattr(target, "noised"):
        raise TypeError(
            f"target must know its law under added noise, noised(schedule, t), got {target!r}"
        )
    return ExactDenoiser(target, schedules.check(schedule))


def score(target: Target, x: Array) -> Array:
    """∇ log p(x), shape of x."""
    if isinstance(target, Mixture | UniformBoxes):
        return _score(target, x)
    return jax.grad(target.log_prob)(x)


@compiled_eagerly
def _score(target, x):
    return jax.grad(target.log_prob)(jnp.asarray(x))


def _noised(target, schedule, t):
    """The distribution of α(t) x + σ(t) ε, a target of the same kind."""
    schedules.check(schedule)
    return as_one_program(_convolved_at, target, schedule, _as_array(t))


def _convolved_at(target, schedule, t):
    return target.convolved(schedule.alpha(t), schedule.sigma(t))


def _log_sum(logs):
    """log Σ_k e^{logs_k}, with the gradient 0 where all are −∞ or one is +∞."""
    greatest = jax.lax.stop_gradient(jnp.max(logs))
    regular = jnp.isfinite(greatest)
    total = jnp.sum(
        jnp.exp(jnp.where(regular, logs - jnp.where(regular, greatest, 0), 0))
    )
    return greatest + jnp.where(regular, jnp.log(total), 0)


@jax.custom_jvp
def _quotient(a, b):
    """a / b, whose derivative (a′ − (a / b) b′) / b holds no 1 / b². It leaves float32's range early."""
    return a / b


@_quotient.defjvp
def _quotient_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    value = _quotient(a, b)
    return value, _quotient(da - value * db, b)


# ------------------------------------------------------------------------------------------------------------ mixtures


@pytree
class Mixture:
    """Σ_k w_k N(m_k, V_k), V_k = U_k (diag(v_k) + Δ_k) U_kᵀ. See `gaussian_mixture`.

    Δ is 0 in value. It carries the derivative of traced covariances, which is exact where eigenvalues repeat, and is
    None elsewhere. Components without bases are isotropic or diagonal.
    """

    weights: Array  # (K,)
    means: Array  # (K, D)
    variances: Array  # (K, 1) isotropic | (K, D) along the columns of bases, or along the axes where bases is None
    bases: Any  # None | (K, D, D), orthonormal columns
    deviation: Any = None  # None | (K, D, D), Δ in the bases
    shape: tuple = static_field(default=())

    @compiled_eagerly
    def convolved(self, alpha: Scalar, sigma: Scalar) -> "Mixture":
        """The distribution of α x + σ ε: means α m_k, variances α² v_k + σ² in the same bases."""
        variances = alpha**2 * self.variances + sigma**2
        deviation = None if self.deviation is None else alpha**2 * self.deviation
        return Mixture(
            self.weights,
            alpha * self.means,
            variances,
            self.bases,
            deviation,
            shape=self.shape,
        )

    noised = _noised

    @compiled_eagerly
    def log_prob(self, x: Array) -> Array:
        """log p(x) in nats, shape (); x of the event shape."""
        return _log_sum(self._log_joint(self._flat(x)))

    @compiled_eagerly
    def posterior_mean(self, x: Array, alpha: Scalar, sigma: Scalar) -> Array:
        """E[x_0 | α x_0 + σ ε = x] = Σ_k r_k (m_k + c_k (x − α m_k)), c_k = α v_k / (α² v_k + σ²) in the basis of k;
        shape of x.

        r_k are the posterior weights of the components. Where the bases are the axes, the sum is two matrix products.
        """
        flat = self._flat(x)
        seen = (sigma == 0) & (alpha != 0)  # α x_0 itself is observed
        noised = self.convolved(alpha, jnp.where(seen, 1, sigma))
        r = jax.nn.softmax(noised._log_joint(flat))  # (K,)
        if self.bases is None:
            gain = _quotient(
                alpha * self.variances, noised.variances
            )  # (K, 1) | (K, D)
            result = (r @ gain) * flat + r @ ((1 - alpha * gain) * self.means)
            return jnp.where(seen, flat / jnp.where(seen, alpha, 1), result).reshape(
                x.shape
            )
        coordinates = self._coordinates(flat - noised.means)  # (K, D)
        if self.deviation is None:
            residual = _quotient(alpha * self.variances, noised.variances) * coordinates
        else:
            whitened = spectral.solve(noised.variances, noised.deviation, coordinates)
            residual = alpha * spectral.product(
                self.variances, self.deviation, whitened
            )
        result = r @ (self.means + jnp.einsum("kij,kj->ki", self.bases, residual))
        return jnp.where(seen, flat / jnp.where(seen, alpha, 1), result).reshape(
            x.shape
        )

    @compiled_eagerly
    def sample(self, key: Key) -> Array:
        """One draw, of the event shape: m_k + V_k^½ z, differentiable in all but the weights."""
        key_component, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_component, jnp.log(self.weights))
        noise = jax.random.normal(key_noise, self.means.shape[1:], self.means.dtype)
        if self.bases is None:
            noise = jnp.sqrt(self.variances[k]) * noise
        else:
            deviation = None if self.deviation is None else self.deviation[k]
            noise = self.bases[k] @ spectral.square_root(
                self.variances[k], deviation, self.bases[k].T @ noise
            )
        return (self.means[k] + noise).reshape(self.shape)

    @compiled_eagerly
    def mean(self) -> Array:
        """Σ w_k m_k, flat: (D,)."""
        return self.means[0] + self.weights @ (
            self.means - self.means[0]
        )  # exact for means far from 0

    @compiled_eagerly
    def covariance(self) -> Array:
        """Σ w_k (V_k + m_k m_kᵀ) − m mᵀ, (D, D)."""
        apart = self.means - self.means[0]
        centred = apart - self.weights @ apart
        within = jnp.einsum("k,kij->ij", self.weights, self.covariances())
        return within + jnp.einsum("k,ki,kj->ij", self.weights, centred, centred)

    @compiled_eagerly
    def covariances(self) -> Array:
        """V_k of each component, (K, D, D)."""
        variances = jnp.broadcast_to(self.variances, self.means.shape)
        diagonal = variances[:, :, None] * jnp.eye(
            self.means.shape[1], dtype=variances.dtype
        )
        if self.bases is None:
            return diagonal
        inner = diagonal if self.deviation is None else diagonal + self.deviation
        return jnp.einsum("kij,kjl,kml->kim", self.bases, inner, self.bases)

    def _flat(self, x):
        checks.one_of_shapes("x", x, [self.shape])
        return jnp.asarray(x).reshape(-1)

    def _coordinates(self, residual):
        return (
            residual
            if self.bases is None
            else jnp.einsum("kij,ki->kj", self.bases, residual)
        )

    def _log_joint(self, x):
        """log w_k + log N(x; m_k, V_k), shape (K,)."""
        residual = self._coordinates(x - self.means)
        if self.deviation is not None:
            square = jnp.sum(
                residual * spectral.solve(self.variances, self.deviation, residual), -1
            )
            log_volume = spectral.log_det(
                2 * math.pi * self.variances, 2 * math.pi * self.deviation
            )
            return jnp.log(self.weights) - 0.5 * (square + log_volume)
        variances, count = (
            self.variances,
            residual.shape[-1] // self.variances.shape[-1],
        )  # count: D if isotropic
        spread = variances > 0
        square = _quotient(residual**2, jnp.where(spread, variances, 1))
        off = jnp.any((square > 0) & ~spread, -1)  # beside an atom: density 0
        volume = count * jnp.sum(
            jnp.where(
                spread, jnp.log(2 * math.pi * jnp.where(spread, variances, 1)), -jnp.inf
            ),
            -1,
        )
        return jnp.log(self.weights) - jnp.where(
            off, jnp.inf, 0.5 * (jnp.sum(square, -1) + jnp.where(off, 0, volume))
        )


def gaussian_mixture(
    weights: ArrayLike, means: ArrayLike, scales: ArrayLike
) -> Mixture:
    """The mixture Σ_k w_k N(m_k, V_k).

    Concrete arguments are squared and decomposed in float64 before they are rounded to the working precision. The
    derivative in traced covariances is exact, at repeated eigenvalues too.

    Args:
      weights: (K,), positive, summing to 1.
      means: (K, D).
      scales: Standard deviations (K,) or (K, D), or covariances (K, D, D).

    Returns:
      A target over examples of shape (D,).

    Raises:
      ValueError: For weights that do not sum to 1, scales that are not positive, covariances that are not symmetric
        positive definite, or shapes that do not fit.

    Example:
      >>> target = dj.targets.gaussian_mixture([0.4, 0.6], [[1.5, 0.0], [-1.0, 0.5]], [0.4, 0.7])
      >>> target.mean().shape
      (2,)
    """
    (weights, exact_weights), (means, _), (scales, exact_scales) = (
        _exactly(name, value)
        for name, value in (("weights", weights), ("means", means), ("scales", scales))
    )
    if means.ndim != 2 or means.size == 0:
        raise ValueError(f"means must have shape (K, D), got {means.shape}")
    components, dimension = means.shape
    checks.one_of_shapes("weights", weights, [(components,)])
    shapes = [
        (components,),
        (components, dimension),
        (components, dimension, dimension),
    ]
    checks.one_of_shapes("scales", scales, shapes)
    _check_weights(exact_weights)
    checks.finite("means", means)
    checks.finite("scales", scales)
    if scales.ndim == 3:
        return Mixture(
            weights, means, *_decompose(exact_scales, scales.dtype), shape=(dimension,)
        )
    if checks.is_traced(exact_scales):
        return Mixture(
            weights,
            means,
            jnp.reshape(scales, (components, -1)) ** 2,
            None,
            shape=(dimension,),
        )
    if not np.all(exact_scales > 0):
        raise ValueError(f"scales must be positive, got {np.min(exact_scales)}")
    variances = jnp.asarray(
        np.asarray(exact_scales.reshape(components, -1) ** 2, scales.dtype),
        scales.dtype,
    )
    return Mixture(weights, means, variances, None, shape=(dimension,))


def gaussian(mean: ArrayLike, scale: ArrayLike) -> Mixture:
    """The normal distribution N(mean, scale²), as a mixture of one component.

    Args:
      mean: (D,).
      scale: Standard deviations () or (D,), or a covariance (D, D).

    Returns:
      A target over examples of shape (D,).

    Raises:
      ValueError: For scales that are not positive, or a covariance that is not symmetric positive definite.

    Example:
      >>> float(dj.targets.gaussian([0.0], 2.0).covariance()[0, 0])
      4.0
    """
    (mean, _), (_, exact_scale) = _exactly("mean", mean), _exactly("scale", scale)
    if mean.ndim != 1:
        raise ValueError(f"mean must have shape (D,), got {mean.shape}")
    checks.one_of_shapes(
        "scale", exact_scale, [(), mean.shape, (*mean.shape, *mean.shape)]
    )
    one = np.ones((1,), mean.dtype)
    return gaussian_mixture(one, _with_axis(mean), _with_axis(exact_scale))


def _with_axis(value):
    return value[None] if checks.is_traced(value) else np.asarray(value)[None]


def _exactly(name, value):
    """(value in the working precision, value in float64 on the host); the former twice where it is traced."""
    rounded = checks.real_array(name, value)
    return rounded, rounded if checks.is_traced(value) else np.asarray(
        value, np.float64
    )


def _check_weights(weights):
    if checks.is_traced(weights):
        return
    checks.finite("weights", weights)
    total = float(np.sum(np.asarray(weights, np.float64)))
    if not abs(total - 1) < 1e-5 or not np.all(np.asarray(weights) > 0):
        raise ValueError(
            f"weights must be positive and sum to 1, got {np.asarray(weights)} with sum {total}"
        )


def _decompose(covariances, dtype):
    """Eigenvalues (K, D), bases (K, D, D) and deviation; in float64 on the host, without deviation, where concrete."""
    if checks.is_traced(covariances):
        return spectral.decompose(covariances)
    if not np.allclose(covariances, covariances.swapaxes(1, 2), rtol=1e-5, atol=1e-8):
        raise ValueError(
            f"scales must hold symmetric covariances, got {covariances.tolist()}"
        )
    values, bases = np.linalg.eigh(covariances)
    if not np.all(values > 0):
        raise ValueError(
            f"scales must hold positive definite covariances, got smallest eigenvalue {values.min():.3g}"
        )
    return tuple(
        jnp.asarray(np.asarray(value, dtype), dtype) for value in (values, bases)
    )


# ---------------------------------------------------------------------------------------------------------- a data set


@pytree
class Empirical:
    """The law that puts mass 1/N on each example of a data set. See `empirical`."""

    data: Array  # (N, *shape)

    def convolved(self, alpha: Scalar, sigma: Scalar) -> Mixture:
        """The law of α x + σ ε: the mixture (1/N) Σ N(α x_i, σ²)."""
        return self._atoms().convolved(alpha, sigma)

    noised = _noised

    def posterior_mean(self, x: Array, alpha: Scalar, sigma: Scalar) -> Array:
        """Σ_i softmax_i(−‖x − α x_i‖² / 2σ²) x_i, shape of x."""
        return self._atoms().posterior_mean(x, alpha, sigma)

    def log_prob(self, x: Array) -> Array:
        """Refused: a data set has no density. `noised(schedule, t)` has one."""
        raise ValueError(
            "empirical data have no density at noise 0; take log_prob of target.noised(schedule, t)"
        )

    def sample(self, key: Key) -> Array:
        """One example of the data."""
        return self.data[jax.random.randint(key, (), 0, self.data.shape[0])]

    def _atoms(self):
        count = self.data.shape[0]
        weights = jnp.full((count,), 1 / count, self.data.dtype)
        flat = self.data.reshape(count, -1)  # (N, D)
        return Mixture(
            weights,
            flat,
            jnp.zeros((count, 1), flat.dtype),
            None,
            shape=self.data.shape[1:],
        )


def empirical(data: ArrayLike) -> Empirical:
    """The empirical law of a data set; its denoiser is the one that a network which memorises would reach.

    data: (N, *shape). Raises ValueError for no examples, NaN or infinity.
    """
    data = checks.real_array("data", data)
    if data.ndim < 1 or data.shape[0] == 0:
        raise ValueError(
            f"data must have shape (N, ...) with N at least 1, got {data.shape}"
        )
    checks.finite("data", data)
    return Empirical(data)


# ------------------------------------------------------------------------------------------------------ uniform boxes


@pytree
class UniformBoxes:
    """A mixture of uniform laws on axis-parallel boxes, convolved with N(0, std²). See `uniform_boxes`."""

    weights: Array  # (K,)
    lower: Array  # (K, D)
    upper: Array  # (K, D)
    std: Any  # (), 0 for the sharp law

    @compiled_eagerly
    def convolved(self, alpha: Scalar, sigma: Scalar) -> "UniformBoxes":
        """The distribution of α x + σ ε: boxes scaled by α, std √(α² std² + σ²)."""
        return UniformBoxes(
            self.weights,
            alpha * self.lower,
            alpha * self.upper,
            _hypotenuse(alpha * self.std, sigma),
        )

    noised = _noised

    @compiled_eagerly
    def log_prob(self, x: Array) -> Array:
        """log Σ_k w_k ∏_d (Φ((x − a)/s) − Φ((x − b)/s)) / (b − a), the indicator at s = 0; shape ()."""
        checks.one_of_shapes("x", x, [self.lower.shape[1:]])
        return _log_sum(self._log_joint(x))

    @compiled_eagerly
    def posterior_mean(self, x: Array, alpha: Scalar, sigma: Scalar) -> Array:
        """E[x_0 | α x_0 + σ ε = x] = Σ_k r_k (y_k + α std²/s² (x − α y_k)), s² = α² std² + σ², shape of x.

        y_k is the mean of a normal distribution truncated to box k, r_k the posterior weight of the box.
        """
        checks.one_of_shapes("x", x, [self.lower.shape[1:]])
        seen = _hypotenuse(alpha * self.std, sigma) == 0  # α x_0 itself is observed
        noised = self.convolved(alpha, jnp.where(seen, 1, sigma))
        width, centre = self.upper - self.lower, 0.5 * (self.lower + self.upper)
        scale, share = noised.std, jnp.where(alpha == 0, 1, alpha)
        a, b, delta = noised._standardised(x)
        middle = 0.5 * (a + b)
        narrow, thin = _is_narrow(middle, delta)
        _, slope = jax.jvp(
            log_normal_interval, _wide(narrow | thin, a, b), (jnp.ones_like(a),) * 2
        )
        # in a box that is narrow beside the noise the last form divides 0 by α
        shift = jnp.where(
            thin, _thin_shift(middle, delta, thin), _narrow_shift(middle, delta, narrow)
        )
        inside = jnp.where(
            narrow | thin, centre + shift * width, (x + scale * slope) / share
        )
        y = jnp.clip(inside, self.lower, self.upper)
        y = y + alpha * (self.std / scale) ** 2 * (x - alpha * y)
        posterior = jax.nn.softmax(noised._log_joint(x)) @ y
        return jnp.where(seen, x / share, posterior)

    def _standardised(self, x):
        """((x − b)/s, (x − a)/s, (b − a)/s), (K, D) each, with s = 1 for sharp boxes."""
        scale = jnp.where(self.std == 0, 1, self.std)
        return (
            (x - self.upper) / scale,
            (x - self.lower) / scale,
            (self.upper - self.lower) / scale,
        )

    def _log_joint(self, x):
        """log w_k + log of the density of box k, (K,)."""
        a, b, delta = self._standardised(x)
        middle = 0.5 * (a + b)
        narrow, thin = _is_narrow(middle, delta)
        interval = log_normal_interval(*_wide(narrow | thin, a, b)) - jnp.log(
            jnp.where(narrow | thin, 1, delta)
        )
        smooth = jnp.where(narrow, _narrow_interval(middle, delta, narrow), interval)
        smooth = jnp.where(thin, _thin_interval(middle, delta, thin), smooth)
        sharp = self.std == 0
        width = jnp.where(sharp & (delta > 0), delta, 1)
        inside = jnp.where(
            (x >= self.lower) & (x < self.upper), -jnp.log(width), -jnp.inf
        )
        log_density = jnp.where(
            sharp, inside, smooth - jnp.log(jnp.where(sharp, 1, self.std))
        )
        return jnp.log(self.weights) + log_density.sum(-1)

    @compiled_eagerly
    def mean(self) -> Array:
        """Σ w_k (a_k + b_k)/2, (D,)."""
        return self.weights @ (0.5 * (self.lower + self.upper))

    @compiled_eagerly
    def covariance(self) -> Array:
        """Σ w_k (diag((b_k − a_k)²/12) + c_k c_kᵀ) + std² I, c_k the centre less the mean; (D, D)."""
        centred = 0.5 * (self.lower + self.upper) - self.mean()
        spread = self.weights @ ((self.upper - self.lower) ** 2 / 12) + self.std**2
        return jnp.diag(spread) + jnp.einsum(
            "k,ki,kj->ij", self.weights, centred, centred
        )

    @compiled_eagerly
    def sample(self, key: Key) -> Array:
        """One draw, (D,)."""
        key_box, key_place, key_noise = jax.random.split(key, 3)
        k = jax.random.categorical(key_box, jnp.log(self.weights))
        place = jax.random.uniform(key_place, self.lower.shape[1:], self.lower.dtype)
        noise = jax.random.normal(key_noise, place.shape, place.dtype)
        return (
            self.lower[k] + place * (self.upper[k] - self.lower[k]) + self.std * noise
        )


def _hypotenuse(a, b):
    """√(a² + b²), with the gradient 0 where both are 0."""
    zero = (a == 0) & (b == 0)
    return jnp.where(zero, 0.0, jnp.hypot(jnp.where(zero, 1, a), b))


_NARROW = 0.05
"""Half the width of a standardised interval, times its distance from 0, up to which four terms of a series serve."""


def _is_narrow(middle, delta):
    """(narrow, thin): where the series serves, and where a thin interval is so far out that it does not."""
    narrow = (1 + jnp.abs(middle)) * delta < _NARROW
    return narrow, ~narrow & (delta < (1e-3 if delta.dtype == jnp.float32 else 1e-6))


def _thin_interval(middle, delta, thin):
    """log((Φ(m + δ/2) − Φ(m − δ/2)) / δ) for δ ≪ 1, to δ²/8: log φ(m) + log(sinh h / h), h = mδ/2."""
    m, h = jnp.where(thin, middle, 1), jnp.abs(jnp.where(thin, 0.5 * middle * delta, 1))
    return (
        -0.5 * m**2
        - 0.5 * math.log(2 * math.pi)
        + h
        + jnp.log(-jnp.expm1(-2 * h))
        - jnp.log(2 * h)
    )


def _thin_shift(middle, delta, thin):
    """½ (coth h − 1/h), the derivative of log(sinh h / h) by m over δ."""
    h = jnp.where(thin, 0.5 * middle * delta, 1)
    return 0.5 * (1 / jnp.tanh(h) - 1 / h)


def _wide(narrow, a, b):
    """The interval's ends, or any others where it is narrow."""
    return jnp.where(narrow, -1, a), jnp.where(narrow, 1, b)


def _narrow_interval(middle, delta, narrow):
    """log((Φ(m + δ/2) − Φ(m − δ/2)) / δ) for δ(1 + |m|) < 0.05, to a relative error of δ⁶m⁶/322560 < 1e-13."""
    m, delta = jnp.where(narrow, middle, 0), jnp.where(narrow, delta, 0)
    p, q = (m * delta) ** 2, delta**2
    series = (p - q) / 24 + (p**2 - 6 * p * q + 3 * q**2) / 1920
    return -0.5 * m**2 - 0.5 * math.log(2 * math.pi) + jnp.log1p(series)


def _narrow_shift(middle, delta, narrow):
    """(E[u]/δ for u of density ∝ φ(m − u) on [−δ/2, δ/2]): −½ to ½. The derivative of `_narrow_interval`."""
    m, delta = jnp.where(narrow, middle, 0), jnp.where(narrow, delta, 0)
    p, q = (m * delta) ** 2, delta**2
    series = (p - q) / 24 + (p**2 - 6 * p * q + 3 * q**2) / 1920
    return m * delta * (1 / 12 + (p - 3 * q) / 480) / (1 + series)


def uniform_boxes(
    weights: ArrayLike, lower: ArrayLike, upper: ArrayLike
) -> UniformBoxes:
    """The mixture Σ_k w_k U([a_k, b_k]) of uniform distributions on boxes.

    Under added noise each factor is a difference of two normal distribution functions.

    Args:
      weights: (K,), positive, summing to 1.
      lower: (K, D), the lower corners a_k.
      upper: (K, D), the upper corners b_k.

    Returns:
      A target over examples of shape (D,).

    Raises:
      ValueError: For weights that do not sum to 1, shapes that do not fit, or unless lower < upper everywhere, also
        after both are rounded to the working precision.

    Example:
      >>> round(float(dj.targets.uniform_boxes([1.0], [[0.0]], [[2.0]]).log_prob([0.5])), 4)
      -0.6931
    """
    (weights, exact_weights), (lower, _), (upper, _) = (
        _exactly(name, value)
        for name, value in (("weights", weights), ("lower", lower), ("upper", upper))
    )
    if lower.ndim != 2:
        raise ValueError(f"lower must have shape (K, D), got {lower.shape}")
    checks.one_of_shapes("upper", upper, [lower.shape])
    checks.one_of_shapes("weights", weights, [lower.shape[:1]])
    _check_weights(exact_weights)
    checks.finite("lower", lower)
    checks.finite("upper", upper)
    if not checks.is_traced(lower, upper) and not np.all(
        np.asarray(upper) > np.asarray(lower)
    ):
        raise ValueError(
            f"upper must exceed lower everywhere, got lower {lower.tolist()}, upper {upper.tolist()}"
        )
    return UniformBoxes(weights, lower, upper, jnp.asarray(np.zeros((), lower.dtype)))


# -------------------------------------------------------------------------------------------------- toy densities, 2-D


def eight_gaussians() -> Mixture:
    """Eight Gaussians of standard deviation √⅛ on a circle of radius √8. Entropy 2.832 nats."""
    angles = 2 * np.pi * np.arange(8) / 8
    means = np.sqrt(8.0) * np.stack([np.cos(angles), np.sin(angles)], -1)
    return gaussian_mixture(np.full(8, 1 / 8), means, np.full(8, np.sqrt(1 / 8)))


def checkerboard() -> UniformBoxes:
    """The eight dark 2 × 2 squares of a board on [−4, 4]². Entropy log 32 = 3.466 nats."""
    lower = np.array(
        [
            (2 * i - 4, 2 * j - 4)
            for i in range(4)
            for j in range(4)
            if (i + j) % 2 == 0
        ],
        np.float32,
    )
    return uniform_boxes(np.full(8, 1 / 8), lower, lower + 2)


def circles(std: float = 0.24, nodes: int = 128) -> Mixture:
    """Two circles of radius 3 and 1.5 with Gaussian noise `std` (0.24: entropy 3.268 nats).

    Each circle is the mixture of `nodes` equally spaced Gaussians, which is the exact law but for the trapezoid rule's
    error, below e^{−2π²(std/spacing)²}: under 1e-20 at the defaults.
    """
    nodes = checks.integer("nodes", nodes, 1, 2**16)
    angles = 2 * np.pi * np.arange(nodes) / nodes
    ring = np.stack([np.cos(angles), np.sin(angles)], -1)
    means = np.concatenate([3.0 * ring, 1.5 * ring])
    return gaussian_mixture(
        np.full(2 * nodes, 0.5 / nodes), means, np.full(2 * nodes, std)
    )


def moons(std: float = 0.2, nodes: int = 128) -> Mixture:
    """Two interleaved half circles of radius 2 with Gaussian noise `std` (0.2: entropy 2.394 nats).

    scikit-learn's moons, doubled and shifted by (−1, −0.2). Each arc is a mixture over the nodes of a Gauss–Legendre
    rule in the angle, exact to rounding while std is not much below the spacing.
    """
    abscissae, rule = np.polynomial.legendre.leggauss(
        checks.integer("nodes", nodes, 1, 1024)
    )
    angles = 0.5 * np.pi * (abscissae + 1)
    upper = np.stack([np.cos(angles), np.sin(angles)], -1)
    lower = np.stack([1 - np.cos(angles), 0.5 - np.sin(angles)], -1)
    means = 2 * np.concatenate([upper, lower]) + np.array([-1.0, -0.2])
    return gaussian_mixture(
        np.concatenate([rule, rule]) / 4, means, np.full(2 * nodes, std)
    )


# ------------------------------------------------------------------------------------------------------------ energies


@pytree
class Energy:
    """The continuous softmax e^{score(x)} / Z. See `energy`."""

    function: Any
    log_normaliser: Any

    def log_prob(self, x: Array) -> Array:
        """score(x) − log Z, shape ()."""
        return _energy_log_prob(self, x)


@one_program
def _energy_log_prob(energy, x):
    value = energy.function(x)
    if jnp.shape(value) != ():
        raise ValueError(
            f"an energy's function must return a scalar, got shape {jnp.shape(value)}"
        )
    return value - energy.log_normaliser


def energy(function: Any, log_normaliser: Scalar = 0.0) -> Energy:
    """The density e^{function(x)} / Z; with log Z left at 0 it is known up to a constant, enough for chains.

    function: x -> (), the unnormalised log density in nats. Its law under added noise is not known, so it has no exact
    denoiser.
    """
    checks.callable_("function", function, "function(x) -> ()")
    return Energy(
        as_pytree_callable(function), checks.number("log_normaliser", log_normaliser)
    )
