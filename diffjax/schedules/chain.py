"""Discrete chains as schedules: the chain of DDPM, and the noise levels of NCSN."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import array_module, float_dtype
from ..types import Array, ArrayLike, pytree, static_field
from .derived import alpha_of_log_snr
from .protocol import as_time, of_time

__all__ = [
    "LEAST_ALPHA",
    "DiscreteChain",
    "Indexed",
    "NoiseLadder",
    "Posterior",
    "from_betas",
    "from_sigmas",
    "index_of_time",
    "interpolated",
    "rescale_zero_terminal_snr",
]


class Posterior(NamedTuple):
    """Coefficients of q(x_{t−1} | x_t, x_0) = N(c_0 x_0 + c_t x_t, β̃).

    Each has shape (T,), with entry i for index i + 1.

    Attributes:
      data: c_0.
      state: c_t.
      variance: β̃.
      log_variance: log β̃, with the second index's in place of log 0.
    """

    data: Any
    state: Any
    variance: Any
    log_variance: Any


class Indexed:
    """A schedule that is a table over the indices 1 … T.

    The table holds λ at t = index / T. Between two indices λ is linear in t.
    """

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
        return interpolated(t, jnp.asarray(self.log_snrs), self.steps)

    def time_of_log_snr(self, log_snr):
        """The inverse of the piecewise linear table."""
        return jnp.interp(-log_snr, -jnp.asarray(self.log_snrs), self.times)


def interpolated(t: Any, table: Any, steps: int) -> Array:
    """The table over the indices 1, 2, … at index = t steps.

    It is linear between indices and constant beyond. At an index the slope is
    the mean of both sides, which is the derivative of a smooth λ to second
    order. A time counts as an index within four units of rounding of float32.
    The times of a grid are mostly indices, and rounding would choose a side
    for each of them.

    Args:
      t: Times, of any shape.
      table: One value per index.
      steps: How many indices the unit of time has.

    Returns:
      The values, of t's shape.
    """
    held = jax.lax.stop_gradient(t)
    value = jnp.interp(held, np.arange(1, table.shape[0] + 1) / steps, table)
    position = held * steps - 1
    index = jnp.round(position)
    slack = jnp.minimum(2 * np.finfo(np.float32).eps * held * steps, 0.25)
    at_index = jnp.abs(position - index) <= slack
    slopes = jnp.diff(table) * steps
    sides = [
        jnp.where(at_index, index - 1, jnp.floor(position)),
        jnp.where(at_index, index, jnp.floor(position)),
    ]
    left, right = (
        slopes[jnp.clip(side, 0, slopes.shape[0] - 1).astype(int)] for side in sides
    )
    inside = (position >= -slack) & (position <= slopes.shape[0] + slack)
    return value + jnp.where(inside, 0.5 * (left + right), 0) * (t - held)


@pytree
class DiscreteChain(Indexed):
    """The chain of DDPM as a schedule, made by `from_betas`.

    Attributes:
      betas: β_i, (T,).
      log_snrs: λ_i, (T,).
      zero_terminal: True where β_T = 1, so that α(t_max) = 0. Between the
        indices T − 1 and T, α is then linear in t.
    """

    betas: Any
    log_snrs: Any
    zero_terminal: bool = static_field(default=False)

    @property
    def alpha_bars(self):
        """ᾱ = ∏(1 − β) = sigmoid(λ), shape (T,)."""
        return jax.nn.sigmoid(jnp.asarray(self.log_snrs))

    @property
    def noisiest_time(self) -> float:
        """The time of the last index with signal: index T, or T − 1 if β_T = 1."""
        return (self.steps - 1) / self.steps if self.zero_terminal else 1.0

    def _before_last(self):
        # α at index T − 1.
        return alpha_of_log_snr(jnp.asarray(self.log_snrs)[-2])

    def _last_alpha(self, t):
        # α(t) from index T − 1 on, falling to exactly 0 at t = 1.
        return self._before_last() * jnp.clip(self.steps * (1 - t), 0, 1)

    def _inner_log_snr(self, t):
        # λ up to index T − 1, constant from there on.
        return interpolated(t, jnp.asarray(self.log_snrs)[:-1], self.steps)

    def log_snr(self, t):
        """Piecewise linear in t, but log(α²/(1 − α²)) after index T − 1 if β_T = 1."""
        if not self.zero_terminal:
            return super().log_snr(t)
        inner = self._inner_log_snr(t)
        last = t > self.noisiest_time
        alpha = jnp.where(last, self._last_alpha(t), 0.5)
        return jnp.where(last, 2 * jnp.log(alpha) - jnp.log1p(-(alpha**2)), inner)

    def time_of_log_snr(self, log_snr):
        """The inverse of `log_snr`."""
        if not self.zero_terminal:
            return super().time_of_log_snr(log_snr)
        table = jnp.asarray(self.log_snrs)[:-1]
        inner = jnp.interp(-log_snr, -table, self.times[:-1])
        last = log_snr < table[-1]
        alpha = alpha_of_log_snr(jnp.where(last, log_snr, table[-1]))
        return jnp.where(last, 1 - alpha / (self.steps * self._before_last()), inner)

    @of_time
    def alpha(self, t):
        """√sigmoid(λ) = √ᾱ at the table's entries."""
        if not self.zero_terminal:
            return alpha_of_log_snr(self.log_snr(t))
        inner = alpha_of_log_snr(self._inner_log_snr(t))
        return jnp.where(t > self.noisiest_time, self._last_alpha(t), inner)

    @of_time
    def sigma(self, t):
        """√sigmoid(−λ) = √(1 − ᾱ) at the table's entries."""
        if not self.zero_terminal:
            return alpha_of_log_snr(-self.log_snr(t))
        inner = alpha_of_log_snr(-self._inner_log_snr(t))
        return jnp.where(
            t > self.noisiest_time, jnp.sqrt(1 - self._last_alpha(t) ** 2), inner
        )

    def posterior(self) -> Posterior:
        """Coefficients of q(x_{t−1} | x_t, x_0), see `Posterior`.

            c_0 = √ᾱ_{t−1} β_t / (1 − ᾱ_t)
            c_t = √(1 − β_t) (1 − ᾱ_{t−1}) / (1 − ᾱ_t)
            β̃_t = β_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t)

        They are computed in float64 on the host where the betas are concrete.
        β̃_1 = 0, and its logarithm is that of the second index.

        References:
          Ho et al. 2020, equations 6–7. Nichol & Dhariwal 2021, section 3.1.
        """
        xp = array_module(self.betas)
        betas = xp.asarray(self.betas)
        log_bars = _log_bars(xp, betas)
        previous = xp.concatenate([xp.zeros_like(log_bars[:1]), log_bars[:-1]])
        noise, noise_before = -xp.expm1(log_bars), -xp.expm1(previous)
        variance = betas * noise_before / noise
        log_variance = xp.log(xp.concatenate([variance[1:2], variance[1:]]))
        return Posterior(
            xp.exp(0.5 * previous) * betas / noise,
            xp.sqrt(1 - betas) * noise_before / noise,
            variance,
            log_variance,
        )


def from_betas(betas: ArrayLike) -> DiscreteChain:
    """The schedule of a DDPM chain with the given forward variances.

        t = i / T,    ᾱ_i = ∏_{j≤i}(1 − β_j),    α = √ᾱ,    σ = √(1 − ᾱ)

    at the indices i = 1 … T. Between them the log-SNR is linear in t. The
    tables are made in float64 on the host where the betas are concrete.

    Args:
      betas: (T,), T ≥ 2, each in (0, 1). The last may be 1, so that no signal
        is left at index T, see `rescale_zero_terminal_snr`. Such a chain
        serves networks that predict the data, v or the velocity. Traced betas
        must all be below 1.

    Returns:
      A schedule on [1/T, 1].

    Raises:
      ValueError: If a beta lies outside of (0, 1), except a last one of 1. If
        √ᾱ falls below 1e-18 without being 0, so that σ/α or its square leaves
        the range of float32.
      TypeError: If betas are no real numbers.

    References:
      Ho et al. 2020, equations 2 and 4.

    Example:
      >>> chain = dj.schedules.from_betas(dj.ddpm.linear_betas(1000))
      >>> round(float(chain.alpha(1.0)), 4)
      0.0064
    """
    xp, betas = _table("betas", betas)
    if xp is not np:
        return DiscreteChain(betas, _log_snrs(jnp, betas))
    zero_terminal = _has_zero_terminal(betas)
    log_snrs = _log_snrs(np, betas)
    least = log_snrs[-2 if zero_terminal else -1]
    least_alpha = LEAST_ALPHA[float_dtype()]
    checks.require(
        least >= 2 * math.log(least_alpha),
        f"betas must leave a signal √ᾱ of at least {least_alpha:.0e}, got "
        f"e^{0.5 * least:.4g} after {len(betas)} steps: scale them with the number of "
        "steps, as ddpm.linear_betas(steps) does, or let the last be 1",
    )
    return DiscreteChain(betas, log_snrs, zero_terminal=zero_terminal)


def _has_zero_terminal(betas: np.ndarray) -> bool:
    """Whether the last β is 1. Raises ValueError unless the others lie in (0, 1)."""
    zero_terminal = bool(betas[-1] == 1)
    checks.all_between("betas", betas[:-1] if zero_terminal else betas, 0, 1)
    return zero_terminal


LEAST_ALPHA = {jnp.dtype("float32"): 1e-18, jnp.dtype("float64"): 1e-150}
"""The least √ᾱ of a chain that is not 0, by dtype: (σ/α)² must stay within range."""


def rescale_zero_terminal_snr(betas: ArrayLike) -> np.ndarray:
    """Betas shifted and scaled so that no signal is left at the last index.

        √ᾱ′_i = √ᾱ_1 (√ᾱ_i − √ᾱ_T) / (√ᾱ_1 − √ᾱ_T),    ᾱ′_T = 0,    β′_T = 1

    The first index keeps its noise. Sampling then starts from pure noise, as
    training sees it, and images reach the full range of brightness.

    Args:
      betas: (T,), T ≥ 2, concrete, each in (0, 1). The last may be 1. Then
        nothing changes except by rounding.

    Returns:
      (T,) in float64, for `from_betas`. The network must predict the data, v
      or the velocity, since at index T the noise does not determine x_0.

    Raises:
      ValueError: If a beta lies outside of (0, 1).
      TypeError: If betas are traced or no real numbers.

    References:
      Lin et al. 2024, algorithm 1.

    Example:
      >>> betas = dj.schedules.rescale_zero_terminal_snr(dj.ddpm.linear_betas(1000))
      >>> float(dj.schedules.from_betas(betas).alpha(1.0))
      0.0
    """
    checks.known("betas", betas, "to be rescaled")
    betas = _table("betas", betas)[1]
    _has_zero_terminal(betas)
    log_bars = _log_bars(np, betas)
    # β′ depends on ratios of neighbours alone, so that √ᾱ_1 may be divided
    # out.
    scales = np.exp(0.5 * (log_bars - log_bars[0]))
    scales = (scales - scales[-1]) / (1 - scales[-1])
    alphas = np.exp(0.5 * log_bars[0]) * scales
    previous = np.concatenate([[1.0], alphas[:-1]])
    return np.where(
        np.arange(len(betas)) == 0,
        betas,
        (previous - alphas) * (previous + alphas) / previous**2,
    )


def _log_bars(xp, betas):
    # log ᾱ, (T,). The last is −∞ where β_T = 1.
    with np.errstate(divide="ignore"):
        return xp.cumsum(xp.log1p(-betas))


def _log_snrs(xp, betas):
    log_bars = _log_bars(xp, betas)
    return log_bars - xp.log(-xp.expm1(log_bars))


INDEXED = (
    checks.made_by,
    Indexed,
    "schedules.from_sigmas or schedules.from_betas to have indices",
)
"""Check of a chain or ladder."""


@checks.arguments(schedule=INDEXED)
def index_of_time(schedule: Indexed, t: ArrayLike) -> Array:
    """The index 1 … T of a chain or ladder that is nearest to time t = index / T.

    It rounds t T rather than cutting it off. `int(t * T)` is one too low at 5
    of 1000 indices in float32. The index is exact at the times of all indices
    up to T = 10⁶.

    Args:
      schedule: Made by `from_betas` or `from_sigmas`.
      t: Times, of any shape. They may be traced.

    Returns:
      int32, shape of t.

    Raises:
      TypeError: If schedule has no indices.
      ValueError: If a concrete time is NaN or infinite.

    Example:
      >>> chain = dj.schedules.from_betas(dj.ddpm.linear_betas(1000))
      >>> int(dj.schedules.index_of_time(chain, 0.009))
      9
    """
    t = checks.number("t", t) if type(t) is int else t
    if checks.is_traced(t):
        return _nearest(jnp, as_time(t), schedule.steps)
    checks.finite("t", t)
    return jnp.asarray(_nearest(np, np.asarray(t, np.float64), schedule.steps))


def _nearest(xp, t, steps):
    return xp.clip(xp.round(t * steps), 1, steps).astype(xp.int32)


@pytree
class NoiseLadder(Indexed):
    """The noise levels of NCSN as a schedule, made by `from_sigmas`."""

    sigmas: Any
    log_snrs: Any

    @property
    def increments(self):
        """The variance that each step of the forward chain adds, (L,).

        σ_i² − σ_{i−1}², σ_0 = 0
        """
        xp = array_module(self.sigmas)
        sigmas = xp.asarray(self.sigmas)
        before = xp.concatenate([xp.zeros_like(sigmas[:1]), sigmas[:-1]])
        return (sigmas - before) * (sigmas + before)

    @of_time
    def alpha(self, t):
        """One, at all times."""
        return jnp.ones_like(t)

    @of_time
    def sigma(self, t):
        """e^{−λ/2}, the noise level at an index, geometric in t between two."""
        return jnp.exp(-0.5 * self.log_snr(t))


def from_sigmas(sigmas: ArrayLike) -> NoiseLadder:
    """The schedule of a ladder of noise levels (Song & Ermon 2019, section 4.1).

        α = 1,    σ = σ_i  at  t = i / L

    at the indices i = 1 … L. Between them log σ is linear. A geometric ladder
    is `ve`, on [1/L, 1] in place of [0, 1]. The table is made in float64 on
    the host.

    Args:
      sigmas: (L,), L ≥ 2, in data units, positive and increasing, like the
        time. The index of Song & Ermon runs the other way.

    Returns:
      A schedule on [1/L, 1].

    Raises:
      ValueError: If sigmas do not increase, or one lies outside of [1e-15,
        1e15].
      TypeError: If sigmas are no real numbers.

    Example:
      >>> ladder = dj.schedules.from_sigmas([0.1, 1.0, 10.0])
      >>> float(ladder.sigma(1.0))
      10.0
    """
    xp, sigmas = _table("sigmas", sigmas)
    # Squares and ratios must stay within the range of float32.
    checks.all_within("sigmas", sigmas, 1e-15, 1e15)
    checks.increasing("sigmas", sigmas)
    return NoiseLadder(sigmas, -2 * xp.log(sigmas))


def _table(name: str, values: Any) -> tuple[Any, Any]:
    # np and float64 values on the host, or jnp and values that are traced.
    checks.real_array(name, values)
    xp = array_module(values)
    values = xp.asarray(values, None if xp is jnp else np.float64)
    return xp, checks.column(name, values, "T" if name == "betas" else "L", 2)
