"""The schedules of diffusers' schedulers, from the options of their configurations."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ... import ddpm, schedules
from ...schedules.chain import interpolated
from ...types import pytree, static_field

__all__ = ["BETAS", "Chain", "configured_betas", "chain_of", "flow_of"]


@pytree
class Chain(schedules.DiscreteChain):
    """A chain with diffusers' interpolation between its indices.

    Attributes:
      linear_ratio: Whether σ/α is linear between the indices, in place of λ.
      whole_timesteps: Whether the network is called at the nearest index.
    """

    linear_ratio: bool = static_field(default=False)
    whole_timesteps: bool = static_field(default=False)

    @property
    def _ratios(self):
        return jnp.exp(-0.5 * jnp.asarray(self.log_snrs))

    def log_snr(self, t):
        """Piecewise linear in t, or −2 log of a piecewise linear σ/α."""
        if not self.linear_ratio:
            return super().log_snr(t)
        return -2 * jnp.log(interpolated(t, self._ratios, self.steps))

    def time_of_log_snr(self, log_snr):
        """The inverse of `log_snr`."""
        if not self.linear_ratio:
            return super().time_of_log_snr(log_snr)
        return jnp.interp(jnp.exp(-0.5 * log_snr), self._ratios, self.times)


def _scaled_linear(start, end, steps):
    return np.linspace(start**0.5, end**0.5, steps) ** 2


def _exponential(start, end, steps):
    bars = np.exp(-12 * np.arange(steps + 1) / steps)
    return np.minimum(1 - bars[1:] / bars[:-1], 0.999)


BETAS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "linear": lambda start, end, steps: ddpm.linear_betas(steps, start, end),
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": lambda start, end, steps: ddpm.cosine_betas(steps),
    "sigmoid": lambda start, end, steps: ddpm.sigmoid_betas(steps, start, end),
    "exp": _exponential,
}
"""(beta_start, beta_end, num_train_timesteps) -> betas, by `beta_schedule`."""

LEAST_ALPHA_BAR = 2.0**-24
"""ᾱ_T after rescaling to zero terminal SNR, where σ/α must be finite."""


def configured_betas(o: Mapping[str, Any]) -> np.ndarray:
    """The betas of a configuration in float64, before any rescaling.

    Args:
      o: Its options.

    Returns:
      The betas, (T,).
    """
    if o["trained_betas"] is not None:
        return np.asarray(o["trained_betas"], np.float64)
    make = BETAS[o["beta_schedule"]]
    return make(o["beta_start"], o["beta_end"], o["num_train_timesteps"])


def chain_of(
    o: Mapping[str, Any],
    *,
    finite: bool = False,
    linear_ratio: bool = False,
    whole_timesteps: bool = False,
) -> schedules.DiscreteChain:
    """The chain of a configuration.

    Args:
      o: Its options.
      finite: Whether ᾱ_T is 2⁻²⁴ in place of 0 after rescaling.
      linear_ratio: As in `Chain`.
      whole_timesteps: As in `Chain`.

    Returns:
      A schedule.
    """
    betas = configured_betas(o)
    if o.get("rescale_betas_zero_snr"):
        betas = schedules.rescale_zero_terminal_snr(betas)
        betas = _ending_finite(betas) if finite else np.append(betas[:-1], 1.0)
    chain = schedules.from_betas(betas)
    if not (linear_ratio or whole_timesteps):
        return chain
    return Chain(
        chain.betas,
        chain.log_snrs,
        zero_terminal=chain.zero_terminal,
        linear_ratio=linear_ratio,
        whole_timesteps=whole_timesteps,
    )


def _ending_finite(betas):
    """Rescaled betas with ᾱ_T = 2⁻²⁴.

    diffusers raises the last ᾱ alone, which can then exceed the ᾱ before it. Here the
    entries below 2⁻²⁴ are replaced by a geometric descent to it.
    """
    bars = np.cumprod(1 - betas)
    first = int(np.argmax(bars <= LEAST_ALPHA_BAR))
    bars[first - 1 :] = np.geomspace(
        bars[first - 1], LEAST_ALPHA_BAR, len(bars) - first + 1
    )
    return np.append(betas[0], 1 - bars[1:] / bars[:-1])


def flow_of(o: Mapping[str, Any]) -> schedules.RectifiedFlow:
    """The rectified flow of a configuration, up to t = 1."""
    least = 1 / o["num_train_timesteps"]
    for _ in range(2):
        least = min(least, o["shift"] * least / (1 + (o["shift"] - 1) * least))
    return schedules.rectified_flow(t_max=1.0, t_min=1e-3 * least)
