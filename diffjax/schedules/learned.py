"""A variance-preserving schedule with a trainable log-SNR."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Key, Scalar, pytree
from .arguments import interval
from .derived import alpha_of_log_snr, of_time


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


def learned(
    key: Key,
    *,
    hidden: int = 32,
    log_snr_max: Scalar = 13.3,
    log_snr_min: Scalar = -5.0,
    t_min: Scalar = 1e-5,
) -> LearnedVP:
    """A variance-preserving schedule whose log-SNR is a monotone network of t: its array fields are trainable.

    λ(t) = λ_max − (λ_max − λ_min) h(t), h(t) ∝ t + Σ_k e^{w_k} sigmoid(e^{a_k}(t − c_k)), normalised to h(0) = 0, h(1)
    = 1; the exponentials keep h increasing. Defaults are VDM's end points. hidden: number of sigmoids. Raises
    ValueError unless hidden ≥ 1 and log_snr_min < log_snr_max. Kingma et al. 2021, appendix H (another monotone
    network).
    """
    checks.key("key", key)
    hidden = checks.integer("hidden", hidden, 1, 2**20)
    high, low = (
        checks.number("log_snr_max", log_snr_max),
        checks.number("log_snr_min", log_snr_min),
    )
    checks.greater("log_snr_max", high, "log_snr_min", low)
    t_min, t_max = interval(t_min, 1.0)
    return LearnedVP(
        jnp.asarray(high), jnp.asarray(low), *_initial(key, hidden), t_min, t_max
    )


@functools.partial(jax.jit, static_argnums=1)
def _initial(key, hidden):
    """(weight, slope, centre), each (hidden,)."""
    weight = 0.1 * jax.random.normal(key, (hidden,)) - math.log(hidden)
    return weight, jnp.full((hidden,), jnp.log(4.0)), jnp.arange(0.5, hidden) / hidden
