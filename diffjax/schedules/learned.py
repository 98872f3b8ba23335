"""A variance-preserving schedule with a trainable log-SNR."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Key, Scalar, pytree
from .arguments import interval
from .derived import alpha_of_log_snr
from .protocol import of_time

__all__ = ["LearnedVP", "learned"]


@pytree
class LearnedVP:
    """A variance-preserving schedule with a trainable log-SNR, made by `learned`."""

    log_snr_max: Any
    log_snr_min: Any
    weight: Any
    slope: Any
    centre: Any
    t_min: Scalar
    t_max: Scalar

    def _progress(self, t):
        bump = jnp.sum(
            jnp.exp(self.weight)
            * jax.nn.sigmoid(jnp.exp(self.slope) * (t[..., None] - self.centre)),
            -1,
        )
        return t + bump

    def log_snr(self, t):
        """λ_max − (λ_max − λ_min) h(t), h increasing from 0 at t = 0 to 1 at t = 1."""
        start, end = self._progress(jnp.zeros(())), self._progress(jnp.ones(()))
        return self.log_snr_max - (self.log_snr_max - self.log_snr_min) * (
            self._progress(t) - start
        ) / (end - start)

    @of_time
    def alpha(self, t):
        """√sigmoid(λ)."""
        return alpha_of_log_snr(self.log_snr(t))

    @of_time
    def sigma(self, t):
        """√sigmoid(−λ)."""
        return alpha_of_log_snr(-self.log_snr(t))


_HIDDEN = (checks.integer, 1, 2**20)


@checks.arguments(
    key=checks.key, hidden=_HIDDEN, log_snr_max=checks.number, log_snr_min=checks.number
)
def learned(
    key: Key,
    *,
    hidden: int = 32,
    log_snr_max: Scalar = 13.3,
    log_snr_min: Scalar = -5.0,
    t_min: Scalar = 1e-5,
) -> LearnedVP:
    """Variance-preserving schedule with a trainable, monotone log-SNR.

        λ(t) = λ_max − (λ_max − λ_min) h(t)
        h(t) ∝ t + Σ_k e^{w_k} sigmoid(e^{a_k} (t − c_k)),    h(0) = 0, h(1) = 1

    The exponentials keep h increasing. The array fields of the schedule are
    its parameters.

    Args:
      key: Typed key of the initial weights.
      hidden: The number of sigmoids.
      log_snr_max: λ at t = 0, (). The default is VDM's, as for λ_min.
      log_snr_min: λ at t = 1, ().
      t_min: The least time, ().

    Returns:
      The schedule on [t_min, 1].

    Raises:
      ValueError: Unless hidden ≥ 1 and log_snr_min < log_snr_max.

    References:
      Kingma et al. 2021, appendix H, which uses another monotone network.

    Example:
      >>> schedule = dj.schedules.learned(key, hidden=4)
      >>> round(float(dj.schedules.log_snr(schedule, 1.0)), 3)
      -5.0
    """
    checks.greater("log_snr_max", log_snr_max, "log_snr_min", log_snr_min)
    ends = jnp.asarray(log_snr_max), jnp.asarray(log_snr_min)
    return LearnedVP(*ends, *_initial(key, hidden), *interval(t_min, 1.0))


@functools.partial(jax.jit, static_argnums=1)
def _initial(key, hidden):
    # Weight, slope and centre of the sigmoids, each (hidden,).
    weight = 0.1 * jax.random.normal(key, (hidden,)) - math.log(hidden)
    return weight, jnp.full((hidden,), jnp.log(4.0)), jnp.arange(0.5, hidden) / hidden
