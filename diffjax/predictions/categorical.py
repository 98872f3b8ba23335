"""The denoiser of lattice data by a softmax over the levels."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks, schedules
from ..distributions.discretised import level_moments
from ..distributions.lattice import check_levels
from ..schedules import Schedule
from ..types import (
    Array,
    ArrayLike,
    Scalar,
    as_pytree,
    as_pytree_callable,
    one_program,
    pytree,
)
from .kinds import noise_input
from .network import NetworkDenoiser, denoiser

__all__ = ["Categorical", "Moments", "categorical", "level_evidence", "moments"]


@pytree
class Categorical:
    """x̂_0 of lattice data as the mean of a softmax over its levels.

    It is made by `categorical`, which describes it. Calls take conditions
    after x and t, and keywords, for the network.
    """

    schedule: Any
    net: Any
    levels: Any  # (K,)

    def __call__(
        self, x: Array, t: Scalar, *condition: Any, **net_kwargs: Any
    ) -> Array:
        """Σ_k c_k softmax_k(ℓ_k + net_k), shape of x."""
        evidence, logits = self._logits(x, t, *condition, **net_kwargs)
        return _level_moments(evidence, logits, self.levels)[0]

    def probabilities(
        self, x: Array, t: Scalar, *condition: Any, **net_kwargs: Any
    ) -> Array:
        """The distribution of each entry of x_0 given x_t.

        Args:
          x: One example x_t.
          t: A time, ().
          *condition: Further arguments of the network.
          **net_kwargs: The same, by keyword.

        Returns:
          softmax_k(ℓ_k + net_k), (*x.shape, K).
        """
        return _level_probabilities(*self._logits(x, t, *condition, **net_kwargs))

    def moments(self, x: Array, t: Scalar, *condition: Any) -> tuple[Array, Array]:
        """Mean and variance of each entry of x_0 given x_t.

        Args:
          x: One example x_t.
          t: A time, ().
          *condition: Further arguments of the network.

        Returns:
          The means and the variances, each of x's shape.
        """
        return _level_moments(*self._logits(x, t, *condition), self.levels)

    def _logits(self, x, t, *condition, **net_kwargs):
        features, evidence, c_noise = _level_features(self.schedule, self.levels, x, t)
        logits = self.net(features, c_noise, *condition, **net_kwargs)
        if not hasattr(logits, "shape"):
            raise TypeError(f"net must return an array of logits, got {logits!r}")
        checks.require(
            logits.size == evidence.size,
            f"net must return logits {evidence.shape} or as many, got {logits.shape}",
        )
        return evidence, logits


@one_program
def _level_features(schedule, levels, x, t):
    # The features (*shape[:-1], C K), the evidence (*shape, K), and c_noise.
    count = levels.shape[0]
    evidence = level_evidence(schedule, x, t, levels)
    # Mean 0 and variance 1 where one of the levels is certain.
    features = (count * jnp.exp(evidence) - 1) / math.sqrt(count - 1)
    merged = (*x.shape[:-1], -1) if x.ndim else (-1,)
    return features.reshape(merged), evidence, noise_input(schedule, t)


@one_program
def _level_probabilities(evidence, logits):
    return jax.nn.softmax(evidence + logits.reshape(evidence.shape))


@one_program
def _level_moments(evidence, logits, levels):
    return level_moments(evidence + logits.reshape(evidence.shape), levels)


@one_program
def level_evidence(schedule: Schedule, x: Array, t: Scalar, levels: Array) -> Array:
    """Log-probabilities of the levels of each entry, given that entry of x_t alone.

        log softmax_k(−(x − α c_k)² / 2σ²)

    Args:
      schedule: The noise schedule.
      x: One example x_t.
      t: A time, ().
      levels: The levels c_k, (K,).

    Returns:
      Log-probabilities in nats, (*x.shape, K).
    """
    x, levels = checks.real_array("x", x), checks.real_array("levels", levels)
    alpha, sigma = schedules.check(schedule).alpha(t), schedule.sigma(t)
    return jax.nn.log_softmax(-0.5 * ((x[..., None] - alpha * levels) / sigma) ** 2)


@checks.arguments(
    schedule=schedules.argument,
    net=(checks.callable_, "net(features, c_noise)"),
    levels=check_levels,
)
def categorical(
    schedule: Schedule, net: Callable, levels: ArrayLike
) -> NetworkDenoiser:
    """The denoiser of data whose entries take K known levels c_k.

        D = Σ_k c_k softmax_k(ℓ_k + net_k),    ℓ_k = −(x − α c_k)² / 2σ²

    ℓ is the evidence of the entry itself, so that the network adds only what
    the other entries imply. With logits of 0, D is exact for independent
    uniform entries. With logits log p_k it is exact for independent entries of
    probabilities p_k. At little noise the rounding to a level is exact
    whatever the network returns. It is a prediction of kind "data".

    Args:
      schedule: The noise schedule.
      net: (features, c_noise) -> logits, both (*shape[:-1], C K) for x of
        shape (*shape[:-1], C). The features are the K probabilities e^ℓ of
        each entry, shifted and scaled to unit variance, and c_noise = −λ/8.
      levels: (K,), increasing, K ≥ 2.

    Returns:
      The denoiser.

    Raises:
      ValueError: If there are fewer than two levels, or they do not increase.
      TypeError: If net cannot be called.

    Example:
      >>> net = lambda features, c_noise: jnp.zeros_like(features)
      >>> denoiser = dj.predictions.categorical(schedule, net, [-1.0, 1.0])
      >>> denoiser(jnp.zeros(2), 0.5).shape
      (2,)
    """
    net = Categorical(as_pytree(schedule), as_pytree_callable(net), levels)
    return denoiser(schedule, net, "data")


@pytree
class Moments:
    """(x, t) -> (D, Var) of a softmax over levels, made by `moments`."""

    categorical: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> tuple[Array, Array]:
        """E[x_0 | x_t = x] and the variance of each entry, shapes of x."""
        return self.categorical.moments(x, t, *condition)


def moments(denoiser: NetworkDenoiser) -> Moments:
    """Mean and variance of a `categorical` denoiser from one call of its network.

    It is the pair that the variance "optimal" of `ddpm` uses. A squared error
    trains the mean of the softmax alone. Its variance is trained by
    `ddpm.bound_loss` with that variance.

    Args:
      denoiser: Made by `categorical`.

    Returns:
      (x, t) -> (E[x_0 | x_t = x], Var[x_0 | x_t = x] of each entry), shapes of
      x.

    Raises:
      TypeError: If the denoiser is of another kind.
    """
    net = getattr(denoiser, "net", None)
    kind, maker = type(denoiser).__name__, "predictions.categorical"
    message = f"denoiser must be made by {maker}, got {kind}"
    checks.require(isinstance(net, Categorical), message, TypeError)
    return Moments(net)
