"""Densities known exactly at every noise level: if x_0 has one of these laws, so has x_t = α x_0 + σ ε.

A target is a pytree with `log_prob(x)` in nats, `sample(key)` and `noised(schedule, t)`, which is again a target: the
exact p_t. `denoiser(target, schedule)` is the exact E[x_0 | x_t].
"""

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from . import checks, schedules
from .numerics import log_normal_interval
from .schedules import Schedule
from .types import Array, ArrayLike, Key, Scalar, as_pytree_callable, pytree, static_field


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


# ----------------------------------------------------------------------------------------------- exact denoiser, score


@pytree
class ExactDenoiser:
    """(x, t) -> E[x_0 | x_t = x] of a target under a schedule. See `denoiser`."""

    target: Any
    schedule: Any

    def __call__(self, x: Array, t: Scalar) -> Array:
        """E[x_0 | x_t = x], shape of x."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if hasattr(self.target, "posterior_mean"):
            return self.target.posterior_mean(x, alpha, sigma)
        tweedie = x + sigma**2 * score(self.target.noised(self.schedule, t), x)
        if not hasattr(self.target, "mean"):
            return tweedie / alpha
        return jnp.where(alpha > 0, tweedie / jnp.where(alpha > 0, alpha, 1), self.target.mean().reshape(x.shape))


def denoiser(target: Target, schedule: Schedule) -> ExactDenoiser:
    """The exact denoiser D(x, t) = E[x_0 | x_t = x]; a pytree callable for one example x and a scalar t.

    target: one of this module, or any pytree with `log_prob` and `noised`. In closed form where the target has
    `posterior_mean(x, α, σ)`, as mixtures and data sets have; else by Tweedie's formula D = (x + σ²∇log p_t) / α (Efron
    2011, eq. 1.4), and `mean()`, if it has one, where α = 0. Raises TypeError unless the target has `noised` and the
    schedule is one.
    """
    if not hasattr(target, "noised"):
        raise TypeError(f"target must know its law under added noise, noised(schedule, t), got {target!r}")
    return ExactDenoiser(target, schedules.check(schedule))


def score(target: Target, x: Array) -> Array:
    """∇ log p(x), shape of x."""
    return jax.grad(target.log_prob)(x)


def _noised(target, schedule, t):
    return target.convolved(schedule.alpha(t), schedule.sigma(t))


# ------------------------------------------------------------------------------------------------------------ mixtures


@pytree
class Mixture:
    """Σ_k w_k N(m_k, U_k diag(v_k) U_kᵀ), or of isotropic or diagonal components. See `gaussian_mixture`."""

    weights: Array  # (K,)
    means: Array  # (K, D)
    variances: Array  # (K, 1) isotropic | (K, D) along the columns of bases, or along the axes where bases is None
    bases: Any  # None | (K, D, D), orthonormal columns
    shape: tuple = static_field(default=())

    def convolved(self, alpha: Scalar, sigma: Scalar) -> "Mixture":
        """The law of α x + σ ε: means α m_k, variances α² v_k + σ² in the same bases."""
        variances = alpha**2 * self.variances + sigma**2
        return Mixture(self.weights, alpha * self.means, variances, self.bases, shape=self.shape)

    noised = _noised

    def log_prob(self, x: Array) -> Array:
        """log p(x) in nats, shape (); x of the event shape."""
        return logsumexp(self._log_joint(self._flat(x)))

    def posterior_mean(self, x: Array, alpha: Scalar, sigma: Scalar) -> Array:
        """E[x_0 | α x_0 + σ ε = x] = Σ_k r_k (m_k + c_k (x − α m_k)), c_k = α v_k / (α² v_k + σ²) in the basis of k;
        shape of x.

        r_k are the posterior weights of the components. Where the bases are the axes, the sum is two matrix products.
        """
        flat = self._flat(x)
        noised = self.convolved(alpha, sigma)
        r = jax.nn.softmax(noised._log_joint(flat))  # (K,)
        gain = alpha * self.variances / noised.variances  # (K, 1) | (K, D)
        if self.bases is None:
            result = (r @ gain) * flat + r @ ((1 - alpha * gain) * self.means)
        else:
            residual = gain * self._coordinates(flat - noised.means)  # (K, D)
            result = r @ (self.means + jnp.einsum("kij,kj->ki", self.bases, residual))
        return result.reshape(x.shape)

    def sample(self, key: Key) -> Array:
        """One draw, of the event shape."""
        key_component, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_component, jnp.log(self.weights))
        noise = jnp.sqrt(self.variances[k]) * jax.random.normal(key_noise, self.means.shape[1:], self.means.dtype)
        noise = noise if self.bases is None else self.bases[k] @ noise
        return (self.means[k] + noise).reshape(self.shape)

    def mean(self) -> Array:
        """Σ w_k m_k, flat: (D,)."""
        return self.weights @ self.means

    def covariance(self) -> Array:
        """Σ w_k (V_k + m_k m_kᵀ) − m mᵀ, (D, D)."""
        dimension = self.means.shape[1]
        variances = jnp.broadcast_to(self.variances, self.means.shape)
        bases = jnp.broadcast_to(jnp.eye(dimension), (1, dimension, dimension)) if self.bases is None else self.bases
        within = jnp.einsum("k,kij,kj,klj->il", self.weights, jnp.broadcast_to(bases, (*variances.shape, dimension)),
                            variances, jnp.broadcast_to(bases, (*variances.shape, dimension)))  # fmt: skip
        centred = self.means - self.mean()
        return within + jnp.einsum("k,ki,kj->ij", self.weights, centred, centred)

    def _flat(self, x):
        checks.one_of_shapes("x", x, [self.shape])
        return jnp.asarray(x).reshape(-1)

    def _coordinates(self, residual):
        return residual if self.bases is None else jnp.einsum("kij,ki->kj", self.bases, residual)

    def _log_joint(self, x):
        """log w_k + log N(x; m_k, V_k), shape (K,)."""
        residual = self._coordinates(x - self.means)
        variances = jnp.broadcast_to(self.variances, residual.shape)
        exponent = jnp.sum(residual**2 / variances + jnp.log(2 * math.pi * variances), -1)
        return jnp.log(self.weights) - 0.5 * exponent


def gaussian_mixture(weights: ArrayLike, means: ArrayLike, scales: ArrayLike) -> Mixture:
    """Σ_k w_k N(m_k, V_k).

    weights: (K,), positive, summing to 1. means: (K, D). scales: standard deviations (K,) or (K, D), or covariances (K,
    D, D). Raises ValueError for weights that do not sum to 1, scales that are not positive, covariances that are not
    symmetric positive definite, or shapes that do not fit.
    """
    weights, means, scales = (
        checks.real_array(name, value) for name, value in (("weights", weights), ("means", means), ("scales", scales))
    )
    if means.ndim != 2 or means.size == 0:
        raise ValueError(f"means must have shape (K, D), got {means.shape}")
    components, dimension = means.shape
    checks.one_of_shapes("weights", weights, [(components,)])
    shapes = [(components,), (components, dimension), (components, dimension, dimension)]
    checks.one_of_shapes("scales", scales, shapes)
    _check_weights(weights)
    checks.finite("means", means)
    checks.finite("scales", scales)
    if scales.ndim == 3:
        return Mixture(weights, means, *_decompose(scales), shape=(dimension,))
    if not checks.is_traced(scales) and not np.all(np.asarray(scales) > 0):
        raise ValueError(f"scales must be positive, got {np.min(scales)}")
    return Mixture(weights, means, jnp.reshape(scales, (components, -1)) ** 2, None, shape=(dimension,))


def gaussian(mean: ArrayLike, scale: ArrayLike) -> Mixture:
    """N(mean, scale²) as a mixture of one. mean: (D,). scale: () or (D,) standard deviations, or a covariance (D, D).

    Raises ValueError for scales that are not positive or a covariance that is not symmetric positive definite.
    """
    mean, scale = checks.real_array("mean", mean), checks.real_array("scale", scale)
    if mean.ndim != 1:
        raise ValueError(f"mean must have shape (D,), got {mean.shape}")
    checks.one_of_shapes("scale", scale, [(), mean.shape, (*mean.shape, *mean.shape)])
    return gaussian_mixture(jnp.ones((1,), mean.dtype), mean[None], scale[None])


def _check_weights(weights):
    if checks.is_traced(weights):
        return
    checks.finite("weights", weights)
    total = float(np.sum(np.asarray(weights, np.float64)))
    if not abs(total - 1) < 1e-5 or not np.all(np.asarray(weights) > 0):
        raise ValueError(f"weights must be positive and sum to 1, got {np.asarray(weights)} with sum {total}")


def _decompose(covariances):
    """Eigenvalues (K, D) and bases (K, D, D); in float64 on the host where concrete."""
    if checks.is_traced(covariances):
        return jnp.linalg.eigh(covariances)
    exact = np.asarray(covariances, np.float64)
    if not np.allclose(exact, exact.swapaxes(1, 2), rtol=1e-5, atol=1e-8):
        raise ValueError(f"scales must hold symmetric covariances, got {exact.tolist()}")
    values, bases = np.linalg.eigh(exact)
    if not np.all(values > 0):
        raise ValueError(f"scales must hold positive definite covariances, got smallest eigenvalue {values.min():.3g}")
    return jnp.asarray(values, covariances.dtype), jnp.asarray(bases, covariances.dtype)


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
        raise ValueError("empirical data have no density at noise 0; take log_prob of target.noised(schedule, t)")

    def sample(self, key: Key) -> Array:
        """One example of the data."""
        return self.data[jax.random.randint(key, (), 0, self.data.shape[0])]

    def _atoms(self):
        count = self.data.shape[0]
        weights = jnp.full((count,), 1 / count, self.data.dtype)
        flat = self.data.reshape(count, -1)  # (N, D)
        return Mixture(weights, flat, jnp.zeros((count, 1), flat.dtype), None, shape=self.data.shape[1:])


def empirical(data: ArrayLike) -> Empirical:
    """The empirical law of a data set; its denoiser is the one that a network which memorises would reach.

    data: (N, *shape). Raises ValueError for no examples, NaN or infinity.
    """
    data = checks.real_array("data", data)
    if data.ndim < 1 or data.shape[0] == 0:
        raise ValueError(f"data must have shape (N, ...) with N at least 1, got {data.shape}")
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

    def convolved(self, alpha: Scalar, sigma: Scalar) -> "UniformBoxes":
        """The law of α x + σ ε: boxes scaled by α, std √(α² std² + σ²)."""
        return UniformBoxes(
            self.weights, alpha * self.lower, alpha * self.upper, jnp.hypot(alpha * self.std, jnp.asarray(sigma))
        )

    noised = _noised

    def log_prob(self, x: Array) -> Array:
        """log Σ_k w_k ∏_d (Φ((x − a)/s) − Φ((x − b)/s)) / (b − a), the indicator at s = 0; shape ()."""
        checks.one_of_shapes("x", x, [self.lower.shape[1:]])
        sharp = jnp.asarray(self.std) == 0
        scale = jnp.where(sharp, 1, self.std)
        smooth = log_normal_interval((x - self.upper) / scale, (x - self.lower) / scale)
        inside = jnp.where((x >= self.lower) & (x < self.upper), 0.0, -jnp.inf)
        log_density = jnp.where(sharp, inside, smooth) - jnp.log(self.upper - self.lower)
        return logsumexp(jnp.log(self.weights) + log_density.sum(-1))

    def mean(self) -> Array:
        """Σ w_k (a_k + b_k)/2, (D,)."""
        return self.weights @ (0.5 * (self.lower + self.upper))

    def covariance(self) -> Array:
        """Σ w_k (diag((b_k − a_k)²/12) + c_k c_kᵀ) + std² I, c_k the centre less the mean; (D, D)."""
        centred = 0.5 * (self.lower + self.upper) - self.mean()
        spread = self.weights @ ((self.upper - self.lower) ** 2 / 12) + self.std**2
        return jnp.diag(spread) + jnp.einsum("k,ki,kj->ij", self.weights, centred, centred)

    def sample(self, key: Key) -> Array:
        """One draw, (D,)."""
        key_box, key_place, key_noise = jax.random.split(key, 3)
        k = jax.random.categorical(key_box, jnp.log(self.weights))
        place = jax.random.uniform(key_place, self.lower.shape[1:], self.lower.dtype)
        noise = jax.random.normal(key_noise, place.shape, place.dtype)
        return self.lower[k] + place * (self.upper[k] - self.lower[k]) + self.std * noise


def uniform_boxes(weights: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> UniformBoxes:
    """Σ_k w_k U([a_k, b_k]). weights: (K,), summing to 1; lower, upper: (K, D) corners, lower < upper.

    Under added noise each factor is a difference of two normal distribution functions. Raises ValueError otherwise.
    """
    weights, lower, upper = (
        checks.real_array(name, value) for name, value in (("weights", weights), ("lower", lower), ("upper", upper))
    )
    if lower.ndim != 2:
        raise ValueError(f"lower must have shape (K, D), got {lower.shape}")
    checks.one_of_shapes("upper", upper, [lower.shape])
    checks.one_of_shapes("weights", weights, [lower.shape[:1]])
    _check_weights(weights)
    checks.finite("lower", lower)
    checks.finite("upper", upper)
    if not checks.is_traced(lower, upper) and not np.all(np.asarray(upper) > np.asarray(lower)):
        raise ValueError(f"upper must exceed lower everywhere, got lower {lower.tolist()}, upper {upper.tolist()}")
    return UniformBoxes(weights, lower, upper, jnp.zeros((), lower.dtype))


# -------------------------------------------------------------------------------------------------- toy densities, 2-D


def eight_gaussians() -> Mixture:
    """Eight Gaussians of standard deviation √⅛ on a circle of radius √8. Entropy 2.832 nats."""
    angles = 2 * np.pi * np.arange(8) / 8
    means = np.sqrt(8.0) * np.stack([np.cos(angles), np.sin(angles)], -1)
    return gaussian_mixture(np.full(8, 1 / 8), means, np.full(8, np.sqrt(1 / 8)))


def checkerboard() -> UniformBoxes:
    """The eight dark 2 × 2 squares of a board on [−4, 4]². Entropy log 32 = 3.466 nats."""
    lower = np.array([(2 * i - 4, 2 * j - 4) for i in range(4) for j in range(4) if (i + j) % 2 == 0], np.float32)
    return uniform_boxes(np.full(8, 1 / 8), lower, lower + 2)


def circles(std: float = 0.24, nodes: int = 128) -> Mixture:
    """Two circles of radius 3 and 1.5 with Gaussian noise `std` (0.24: entropy 3.268 nats).

    Each circle is the mixture of `nodes` equally spaced Gaussians, which is the exact law but for the trapezoid rule's
    error, below e^{−2π²(std/spacing)²}: under 1e-20 at the defaults.
    """
    angles = 2 * np.pi * np.arange(nodes) / nodes
    ring = np.stack([np.cos(angles), np.sin(angles)], -1)
    means = np.concatenate([3.0 * ring, 1.5 * ring])
    return gaussian_mixture(np.full(2 * nodes, 0.5 / nodes), means, np.full(2 * nodes, std))


def moons(std: float = 0.2, nodes: int = 128) -> Mixture:
    """Two interleaved half circles of radius 2 with Gaussian noise `std` (0.2: entropy 2.394 nats).

    scikit-learn's moons, doubled and shifted by (−1, −0.2). Each arc is a mixture over the nodes of a Gauss–Legendre
    rule in the angle, exact to rounding while std is not much below the spacing.
    """
    abscissae, rule = np.polynomial.legendre.leggauss(nodes)
    angles = 0.5 * np.pi * (abscissae + 1)
    upper = np.stack([np.cos(angles), np.sin(angles)], -1)
    lower = np.stack([1 - np.cos(angles), 0.5 - np.sin(angles)], -1)
    means = 2 * np.concatenate([upper, lower]) + np.array([-1.0, -0.2])
    return gaussian_mixture(np.concatenate([rule, rule]) / 4, means, np.full(2 * nodes, std))


# ------------------------------------------------------------------------------------------------------------ energies


@pytree
class Energy:
    """The continuous softmax e^{score(x)} / Z. See `energy`."""

    function: Any
    log_normaliser: Any

    def log_prob(self, x: Array) -> Array:
        """score(x) − log Z, shape ()."""
        value = self.function(x)
        if jnp.shape(value) != ():
            raise ValueError(f"an energy's function must return a scalar, got shape {jnp.shape(value)}")
        return value - self.log_normaliser


def energy(function: Any, log_normaliser: Scalar = 0.0) -> Energy:
    """The density e^{function(x)} / Z; with log Z left at 0 it is known up to a constant, enough for chains.

    function: x -> (), the unnormalised log density in nats. Its law under added noise is not known, so it has no exact
    denoiser.
    """
    checks.callable_("function", function, "function(x) -> ()")
    return Energy(as_pytree_callable(function), checks.number("log_normaliser", log_normaliser))
