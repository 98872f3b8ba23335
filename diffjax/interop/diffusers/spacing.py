"""The times at which diffusers' schedulers step, in float64 on the host."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ... import checks

__all__ = [
    "chain_times",
    "ddim_times",
    "edm_times",
    "flow_times",
    "is_by_formula",
    "rounded_ratio_times",
    "ratio_times",
]


RHO = 7.0
"""ρ of Karras et al. 2022, which diffusers fixes."""


def _timesteps(o, steps, *, open_end=False, whole=True):
    """The decreasing timesteps of a `timestep_spacing`.

    `open_end` makes steps + 1 timesteps and drops the last. `whole` rounds those of
    "linspace".
    """
    last = _last_timestep(o)
    count = steps + open_end
    if o["timestep_spacing"] == "linspace":
        spaced = np.linspace(0, last - 1, count)
        return (spaced.round() if whole else spaced)[::-1][:steps]
    if o["timestep_spacing"] == "leading":
        spaced = np.arange(count) * float(last // count)
        return spaced[::-1][:steps] + o["steps_offset"]
    return np.arange(last, 0, -o["num_train_timesteps"] / steps).round() - 1.0


def _last_timestep(o):
    """T, or fewer where `lambda_min_clipped` leaves out the noisiest indices."""
    least = o.get("lambda_min_clipped", -math.inf)
    if least == -math.inf:
        return o["num_train_timesteps"]
    return o["num_train_timesteps"] - int(np.sum(0.5 * o["log_snrs"] < least))


def _ended(times, last):
    """The times with `last` appended, unless they end there."""
    return np.append(times, last) if times[-1] - last > 1e-12 else times


def _last(o):
    """The time at which a run ends: 0, or the first index."""
    to_zero = o.get("set_alpha_to_one", o.get("final_sigmas_type", "zero") == "zero")
    return 0.0 if to_zero else 1 / o["num_train_timesteps"]


def ddim_times(o: Mapping[str, Any], steps: int) -> np.ndarray:
    """The grid of DDIM, whose step from timestep i goes to i − T // steps.

    Args:
      o: Options of the scheduler.
      steps: Number of steps.

    Returns:
      Decreasing times of a chain.
    """
    indices = _timesteps(o, steps) + 1
    end = indices[-1] - o["num_train_timesteps"] // steps
    last = end / o["num_train_timesteps"] if end >= 1 else _last(o)
    return _ended(indices / o["num_train_timesteps"], last)


def chain_times(o: Mapping[str, Any], steps: int, **spacing: bool) -> np.ndarray:
    """The grid of a scheduler whose steps go from each timestep to the next.

    Args:
      o: Options of the scheduler.
      steps: Number of steps.
      **spacing: `open_end` and `whole`.

    Returns:
      Decreasing times of a chain.
    """
    indices = _timesteps(o, steps, **spacing) + 1
    return _ended(indices / o["num_train_timesteps"], _last(o))


def _by_formula(o, ends, steps):
    """Values of σ/α between two ends, spaced by the formula of the options."""
    return _spaced(ends, steps, RHO if o.get("use_karras_sigmas") else None)


def _spaced(ends, steps, rho):
    """Noise levels between two ends, even in σ^(1/ρ), or in log σ without ρ."""
    if rho is None:
        return np.exp(np.linspace(*np.log(ends), steps))
    return np.linspace(*(end ** (1 / rho) for end in ends), steps) ** rho


def is_by_formula(o: Mapping[str, Any]) -> bool:
    """Whether a formula spaces the noise levels, in place of the timesteps."""
    return bool(o.get("use_karras_sigmas") or o.get("use_exponential_sigmas"))


def _times_of_ratios(o, ratios):
    indices = np.arange(1, len(o["log_snrs"]) + 1)
    return np.interp(2 * np.log(ratios), -o["log_snrs"], indices) / len(indices)


def ratio_times(o: Mapping[str, Any], steps: int) -> np.ndarray:
    """The grid of Euler and Heun in σ/α.

    Args:
      o: Options of the scheduler.
      steps: Number of steps.

    Returns:
      Decreasing times of a chain.
    """
    times = chain_times(o, steps, whole=False)
    if not is_by_formula(o):
        return times
    table = np.exp(-0.5 * o["log_snrs"])
    ends = np.interp(
        _timesteps(o, steps, whole=False)[[0, -1]], np.arange(len(table)), table
    )
    return _ended(_times_of_ratios(o, _by_formula(o, ends, steps)), _last(o))


def rounded_ratio_times(o: Mapping[str, Any], steps: int) -> np.ndarray:
    """The grid of multistep methods.

    Args:
      o: Options of the scheduler.
      steps: Number of steps.

    Returns:
      Decreasing times of a chain.
    """
    if not is_by_formula(o):
        return chain_times(o, steps, open_end=True)
    ends = np.exp(-0.5 * o["log_snrs"][[-1, 0]])
    return _ended(_times_of_ratios(o, _by_formula(o, ends, steps)), _last(o))


def edm_times(o: Mapping[str, Any], steps: int) -> np.ndarray:
    """The grid of EDM's schedulers, in σ.

    Args:
      o: Options of the scheduler.
      steps: Number of steps.

    Returns:
      Decreasing noise levels.
    """
    ends = o["sigma_max"], o["sigma_min"]
    rho = o["rho"] if o["sigma_schedule"] == "karras" else None
    sigmas = _spaced(ends, steps, rho)
    # Powers round, and no level lies outside of the schedule.
    sigmas = np.clip(sigmas, *ends[::-1])
    return _ended(sigmas, 0.0 if o["final_sigmas_type"] == "zero" else ends[1])


def flow_times(o: Mapping[str, Any], steps: int, mu: float | None = None) -> np.ndarray:
    """The grid of a flow.

    Args:
      o: Options of the scheduler.
      steps: Number of steps.
      mu: The shift of dynamic shifting.

    Returns:
      Decreasing times of a flow.
    """
    shift = o["shift"]
    shifted = lambda s: shift * s / (1 + (shift - 1) * s)
    ends = np.array([1.0, 1 / o["num_train_timesteps"]])
    if o["use_dynamic_shifting"]:
        moved = math.exp(mu) if o["time_shift_type"] == "exponential" else mu
        shifted = lambda s: moved / (moved + 1 / s - 1)
    else:
        # diffusers shifts the ends of the table, then all times once more
        ends = shifted(ends)
    times = shifted(np.linspace(*ends, steps))
    if o["shift_terminal"]:
        checks.integer("steps with shift_terminal", steps, 2)
        times = 1 - (1 - times) * (1 - o["shift_terminal"]) / (1 - times[-1])
    times = _by_formula(o, times[[0, -1]], steps) if is_by_formula(o) else times
    return np.append(np.minimum(times, 1.0), 0.0)
