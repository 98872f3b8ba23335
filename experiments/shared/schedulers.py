"""Runs of diffusers' schedulers on any noise levels, with a denoiser of x_0 + σ ε.

A scheduler makes its levels from its own configuration. Here they are replaced, so that
samplers of all libraries meet on one grid.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["run_scheduler"]


def run_scheduler(
    make: Any,
    config: dict[str, Any],
    denoiser: Callable[[Any, Any], Any],
    *,
    x: Any,
    sigmas: Any,
    begin: int = 0,
) -> Any:
    """Run a scheduler of diffusers.

    Args:
      make: Its class.
      config: Its settings. Beside them `eta` of DDIM and `tau` of SA-Solver.
      denoiser: (x, σ) -> E[x_0 | x_0 + σ ε = x], of PyTorch tensors.
      x: State (B, D) at sigmas[begin], as x_0 + σ ε. ε itself where that is ∞.
      sigmas: Decreasing levels (N + 1,), float64. The last may be 0.
      begin: The step at which the run starts.

    Returns:
      The state at the last level, (B, D).
    """
    names = (name for name in _RUNS if make.__name__.startswith(name))
    run = _RUNS.get(next(names, ""), _of_chain)
    return run(make, dict(config), denoiser, x, sigmas, begin)


def _steps(scheduler, sigmas, begin):
    """(σ, timestep) of the steps from `begin` on."""
    return list(zip(sigmas[:-1], scheduler.timesteps, strict=False))[begin:]


def _final(sigmas):
    return "zero" if sigmas[-1] == 0 else "sigma_min"


def _of_table(make, config, denoiser, x, sigmas, begin):
    """DDIM and DDPM, whose chain has one index per step and ᾱ = 1/(1 + σ²)."""
    eta = config.pop("eta", None)
    # A last level above 0 is one more index, whose step is not taken.
    levels = sigmas[:-1] if sigmas[-1] == 0 else sigmas
    scheduler = make(
        num_train_timesteps=len(levels),
        clip_sample=False,
        prediction_type="sample",
        **config,
    )
    scheduler.alphas_cumprod = (1 / (1 + levels**2)).flip(0)
    scheduler.set_timesteps(len(levels))
    x = _scaled(x, sigmas[begin], True)
    for sigma, t in _steps(scheduler, sigmas, begin):
        keywords = {} if eta is None else {"eta": eta}
        out = denoiser(_scaled(x, sigma, False), sigma)
        x = scheduler.step(out, t, x, **keywords).prev_sample
    return _scaled(x, sigmas[-1], False)


def _scaled(x, sigma, down):
    """x = x_0 + σ ε as a state of the variance-preserving chain, or back."""
    if sigma.isinf():
        return x
    scale = (1 + sigma**2).sqrt()
    return x / scale if down else x * scale


def _of_chain(make, config, denoiser, x, sigmas, begin):
    """Multistep methods on a chain, which read σ/α from `scheduler.sigmas`."""
    accepted = inspect.signature(make.__init__).parameters
    settings: dict[str, Any] = {}
    if "final_sigmas_type" in accepted:
        settings["final_sigmas_type"] = _final(sigmas)
    if "tau_func" in accepted:
        # SA-Solver's default depends on the numbers of the timesteps.
        tau = config.pop("tau", 1.0)
        settings["tau_func"] = lambda t: t.new_tensor(tau, dtype=sigmas.dtype)
    scheduler = make(prediction_type="sample", **settings, **config)
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(begin)
    x = _scaled(x, sigmas[begin], True)
    for sigma, t in _steps(scheduler, sigmas, begin):
        x = scheduler.step(denoiser(_scaled(x, sigma, False), sigma), t, x).prev_sample
    return _scaled(x, sigmas[-1], False)


def _of_levels(make, config, denoiser, x, sigmas, begin):
    """Euler, ancestral Euler, Heun and LMS, whose state is x_0 + σ ε."""
    scheduler = make(**config)
    scheduler.set_timesteps(len(sigmas) - 1)
    twice = make.__name__.startswith("Heun")
    if twice:
        inner = sigmas[1:] if sigmas[-1] > 0 else sigmas[1:-1]
        last = sigmas[-1:]
        sigmas = importlib.import_module("torch").cat(
            [sigmas[:1], inner.repeat_interleave(2), last]
        )
    scheduler.sigmas = sigmas
    at = 2 * begin if twice else begin
    scheduler.set_begin_index(at)
    calls = len(sigmas) - (2 if twice and sigmas[-1] > 0 else 1)
    for sigma in sigmas[at:calls]:
        # The index, not the timestep, says which levels a step has.
        scheduler.scale_model_input(x, scheduler.timesteps[0])
        noise = (x - denoiser(x, sigma)) / sigma
        x = scheduler.step(noise, scheduler.timesteps[0], x).prev_sample
    return x


def _of_edm(make, config, denoiser, x, sigmas, begin):
    """EDM's schedulers, whose network predicts by preconditioning."""
    scheduler = make(final_sigmas_type=_final(sigmas), **config)
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(begin)
    data = scheduler.config.sigma_data
    for sigma, t in _steps(scheduler, sigmas, begin):
        scheduler.scale_model_input(x, t)
        total = sigma**2 + data**2
        skip, out = data**2 / total, sigma * data / total.sqrt()
        x = scheduler.step((denoiser(x, sigma) - skip * x) / out, t, x).prev_sample
    return x


def _of_flow(make, config, denoiser, x, sigmas, begin):
    """Flow matching, x_t = (1 − t) x_0 + t ε with t = σ/(1 + σ)."""
    scheduler = make(**config)
    scheduler.set_timesteps(len(sigmas) - 1)
    levels = (sigmas / (1 + sigmas)).nan_to_num(nan=1.0)
    scheduler.sigmas = levels
    scheduler.set_begin_index(begin)
    x = x * (1 - levels[begin]) if levels[begin] < 1 else x
    for sigma, t in _steps(scheduler, sigmas, begin):
        level = sigma / (1 + sigma) if sigma.isfinite() else levels[0]
        denoised = denoiser(x / (1 - level) if level < 1 else x, sigma)
        x = scheduler.step((x - denoised) / level, t, x).prev_sample
    return x / (1 - levels[-1])


_RUNS: dict[str, Callable[..., Any]] = {
    "DDIMScheduler": _of_table,
    "DDPMScheduler": _of_table,
    "Euler": _of_levels,
    "Heun": _of_levels,
    "LMS": _of_levels,
    "EDM": _of_edm,
    "FlowMatch": _of_flow,
}
"""Start of a scheduler's name -> its loop. `_of_chain` runs the others."""
