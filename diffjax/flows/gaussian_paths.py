"""The path of flow matching in closed form where data and noise are jointly Gaussian: its law, velocity and score."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..types import Array, ArrayLike, Scalar, at_once, pytree
from .matching import BridgeVariance, Path, check_path


@pytree
class GaussianPath:
    """The law of x_t and its velocity where x_0 and x_1 are jointly Gaussian. See `gaussian_path`."""

    path: Any
    mean: Any
    std: Any
    covariance: Any

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        """(α m, α² s² + σ² + 2ασ c + γ²): mean and variance of each entry of x_t."""
        alpha, sigma = self.path.schedule.alpha(t), self.path.schedule.sigma(t)
        extra = (
            0.0 if self.path.variance is None else self.path.variance(jnp.asarray(t))
        )
        return alpha * self.mean, (
            alpha * self.std
        ) ** 2 + sigma**2 + 2 * alpha * sigma * self.covariance + extra

    def velocity(self, x: Array, t: Scalar) -> Array:
        """E[dx_t/dt | x_t = x] = m_t′ + (v_t′/2v_t)(x − m_t), shape of x."""
        t = jnp.asarray(t, float_dtype(t))
        (mean, variance), (mean_rate, rate) = jax.jvp(
            self.moments, (t,), (jnp.ones_like(t),)
        )
        return mean_rate + 0.5 * rate / variance * (x - mean)

    def score(self, x: Array, t: Scalar) -> Array:
        """∇log p_t = −(x − m_t)/v_t, shape of x."""
        mean, variance = self.moments(t)
        return (mean - x) / variance

    def noise(self, x: Array, t: Scalar) -> Array:
        """E[z | x_t = x] = −γ ∇log p_t, shape of x."""
        return -self.path.spread(t)[0] * self.score(x, t)


def gaussian_path(
    path: Path, mean: ArrayLike, std: ArrayLike, coupling: str = "independent"
) -> GaussianPath:
    """Closed forms for data N(m, s²) in each entry and noise N(0, 1), coupled in one of three ways.

    coupling: "independent", of covariance c = 0 · "optimal", c = s: without γ the optimal transport, on straight lines
    u = (x − (1 − t) m)(1 − s)/((1 − t) s + t) − m · "entropic", c = `entropic_covariance(s, S²)` with S of `bridge(S)`:
    the Schrödinger bridge. mean, std: of one shape or std of (), finite, s > 0. Raises ValueError otherwise. Bunne et
    al. 2023.
    """
    check_path(path)
    mean, std = checks.real_array("mean", mean), checks.real_array("std", std)
    checks.finite("mean", mean)
    checks.finite("std", std)
    if not checks.is_traced(std) and not np.all(np.asarray(std) > 0):
        raise ValueError(f"std must be positive, got {np.min(np.asarray(std))}")
    checks.one_of_shapes("std", std, [(), mean.shape])
    checks.choice("coupling", coupling, ("independent", "optimal", "entropic"))
    if coupling == "entropic" and not isinstance(path.variance, BridgeVariance):
        raise ValueError("path must be made by flows.bridge for the entropic coupling")
    covariance = (
        jax.device_put(np.zeros(std.shape, std.dtype))
        if coupling == "independent"
        else std
    )
    if coupling == "entropic":
        covariance = entropic_covariance(std, path.variance.std**2)
    return GaussianPath(path, mean, std, covariance)


def entropic_covariance(std: ArrayLike, regularisation: Scalar) -> Array:
    """(√(4s² + ε²) − ε)/2, the covariance of N(m, s²) and N(0, 1) in the plan of `sinkhorn(ε)`; shape of std.

    Written 2s²/(√(4s² + ε²) + ε), which does not cancel; s at ε = 0, 0 at s = 0 and at ε = ∞. std: s ≥ 0, in data
    units. regularisation: ε ≥ 0, in squared data units. Raises ValueError otherwise. Janati et al. 2020.
    """
    std, regularisation = (
        checks.real_array("std", std),
        checks.non_negative("regularisation", regularisation),
    )
    checks.finite("std", std)
    if not checks.is_traced(std) and np.any(np.asarray(std) < 0):
        raise ValueError(f"std must be 0 or more, got {np.min(np.asarray(std))}")
    return _entropic_covariance(std, regularisation)


@at_once
def _entropic_covariance(std, regularisation):
    total = jnp.hypot(2 * std, regularisation) + regularisation
    return 2 * std**2 / jnp.where(total > 0, total, 1)
