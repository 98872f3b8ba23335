"""Discrete chains as schedules: DDPM's, and NCSN's ladder of noise levels."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import ArrayLike, pytree
from .derived import alpha_of_log_snr, as_time


class Posterior(NamedTuple):
    """Coefficients of q(x_{t−1} | x_t, x_0) = N(c_0 x_0 + c_t x_t, β̃), each (T,), entry i for index i + 1."""

    data: Any
    state: Any
    variance: Any
    log_variance: Any


class Indexed:
    """A schedule given by a table over the indices 1 … T: λ at t = index / T, linear between."""

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

    def log_snr(self, t):
        """Piecewise linear in t between the table's entries."""
        return jnp.interp(t, self.times, jnp.asarray(self.log_snrs))

    def time_of_log_snr(self, log_snr):
        """The inverse of the piecewise linear table."""
        return jnp.interp(-log_snr, -jnp.asarray(self.log_snrs), self.times)


@pytree
class DiscreteChain(Indexed):
    """DDPM's chain as a schedule. See `from_betas`."""

    betas: Any
    log_snrs: Any

    @property
    def alpha_bars(self):
        """ᾱ = ∏(1 − β) = sigmoid(λ), shape (T,)."""
        return jax.nn.sigmoid(jnp.asarray(self.log_snrs))

    def alpha(self, t):
        """√sigmoid(λ) = √ᾱ at the table's entries."""
        return alpha_of_log_snr(self.log_snr(as_time(t)))

    def sigma(self, t):
        """√sigmoid(−λ) = √(1 − ᾱ) at the table's entries."""
        return alpha_of_log_snr(-self.log_snr(as_time(t)))

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
    xp, betas = _table("betas", betas)
    if xp is np and not bool(np.all((betas > 0) & (betas < 1))):
        outside = betas[~((betas > 0) & (betas < 1))]
        raise ValueError(f"betas must lie in (0, 1), got {outside[0]} among {outside.size} outside")
    log_bars = xp.cumsum(xp.log1p(-betas))
    return DiscreteChain(betas, log_bars - xp.log(-xp.expm1(log_bars)))


@pytree
class NoiseLadder(Indexed):
    """NCSN's noise levels as a schedule. See `from_sigmas`."""

    sigmas: Any
    log_snrs: Any

    @property
    def increments(self):
        """σ_i² − σ_{i−1}² with σ_0 = 0: the variance that each step of the forward chain adds, shape (L,)."""
        xp = jnp if checks.is_traced(self.sigmas) else np
        sigmas = xp.asarray(self.sigmas)
        before = xp.concatenate([xp.zeros_like(sigmas[:1]), sigmas[:-1]])
        return (sigmas - before) * (sigmas + before)

    def alpha(self, t):
        """1."""
        return jnp.ones_like(as_time(t))

    def sigma(self, t):
        """e^{−λ/2}: the level at an index, geometric in t between two."""
        return jnp.exp(-0.5 * self.log_snr(as_time(t)))


def from_sigmas(sigmas: ArrayLike) -> NoiseLadder:
    """The schedule of a ladder of noise levels: α = 1, σ = σ_i at t = i / L, indices 1 … L; between them log σ is
    linear.

    sigmas: (L,), L ≥ 2, in data units, positive and increasing, as time does here: Song & Ermon's index runs the other
    way. The table is made in float64 on the host. A geometric ladder is `ve`, on [1 / L, 1] in place of [0, 1]. Raises
    ValueError otherwise. Song & Ermon 2019, section 4.1.
    """
    xp, sigmas = _table("sigmas", sigmas)
    if xp is np:
        outside = sigmas[~((sigmas >= 1e-15) & (sigmas <= 1e15))]  # squares and ratios must stay within float32
        if outside.size:
            raise ValueError(f"sigmas must be positive, within [1e-15, 1e15], got {outside[0]}")
        falls = np.flatnonzero(np.diff(sigmas) <= 0)
        if falls.size:
            before, after = sigmas[falls[0] : falls[0] + 2]
            raise ValueError(f"sigmas must increase with the index, got {after} after {before}")
    return NoiseLadder(sigmas, -2 * xp.log(sigmas))


def _table(name: str, values: Any) -> tuple[Any, Any]:
    """(jnp or np, values (T,)): float64 on the host unless traced. Raises ValueError for another shape."""
    xp: Any = jnp if checks.is_traced(values) else np
    try:
        values = xp.asarray(values, None if xp is jnp else np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array of real numbers, got {values!r}") from None
    if values.ndim != 1 or values.shape[0] < 2:
        letter = "T" if name == "betas" else "L"
        raise ValueError(f"{name} must have shape ({letter},) with {letter} at least 2, got {values.shape}")
    return xp, values
