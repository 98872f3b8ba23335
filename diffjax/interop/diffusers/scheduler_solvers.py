"""Solvers that take the steps of diffusers' schedulers, start and end included.

They differ from `diffjax.solvers` where diffusers fixes a setting: the order of the
last steps, simplified weights, and DDIM's last times.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ... import checks, solvers
from ...grids.steps import noise_level
from ...solvers.affine import Update, from_noise, multistep
from ...solvers.base import Solver, factory
from ...solvers.interpolation import adams, decaying_moments, growing_moments
from ...solvers.multistep.parts import at_all_times

__all__ = [
    "ancestral",
    "ddim",
    "ddpm",
    "deis",
    "dpm",
    "heun",
    "euler",
    "unipc",
]


def _final_orders(count: int, order: int, lowered: str) -> np.ndarray:
    """The highest order of each step. The last steps may have lower orders."""
    left = np.arange(count, 0, -1)
    orders = np.full(count, order)
    if lowered == "always" or ("few" in lowered and count < 15):
        orders = np.minimum(order, left)
    orders[-1] = 1 if "euler" in lowered else orders[-1]
    return orders


def _up_to(orders):
    """Bounds for `adams`: the order of each step."""
    return lambda used, window, gains, earlier: jnp.asarray(orders[window] >= used)


@factory
def _data_multistep(order, weights, lowered, eta, corrected) -> Solver:
    """A multistep method that interpolates D, of DPM-Solver++ or UniPC."""

    def moments(a, count):
        exact = decaying_moments(a, count)
        return _published(exact, a, weights)

    def interpolated(steps, ahead):
        a = (1 + eta**2) * steps.log_step
        orders = _final_orders(a.shape[0], order, lowered)
        return adams(
            -jnp.log(at_all_times(steps, "rho")),
            order,
            lambda n, window: moments(a[window], n),
            ahead=ahead,
            bounds=_up_to(orders),
        )

    def predict(schedule, steps):
        h = steps.log_step
        stds = (steps.end.rho * jnp.sqrt(-jnp.expm1(-2 * eta**2 * h)),) if eta else ()
        gains = interpolated(steps, ahead=False)
        return Update(steps.end, jnp.exp(-(eta**2) * h), gains, stds)

    name = f"diffusers' {'unipc' if corrected else 'dpm++'}({order}, {weights})"
    return multistep(
        name,
        predict,
        order=order + 1 if corrected else min(order, 2),
        past=order if corrected else order - 1,
        stochastic=eta > 0,
        correct=(lambda schedule, steps: interpolated(steps, True))
        if corrected
        else None,
    )


def _published(exact, step, weights):
    """The moments of the interpolation weights, as the methods published them.

    UniPC replaces the second of two by B(h)/2, with B = h for "bh1" and the first
    moment for "bh2". DPM-Solver's "midpoint" equals "bh2". DPM-Solver halves the third
    of three.
    """
    if len(exact) == 2 and weights == "bh1":
        return [exact[0], 0.5 * step]
    if len(exact) == 2 and weights in ("midpoint", "bh2"):
        return [exact[0], 0.5 * exact[0]]
    if len(exact) == 3 and weights in ("midpoint", "heun"):
        return [*exact[:2], 0.5 * exact[2]]
    return exact


@factory
def _noise_multistep(order, weights, lowered) -> Solver:
    """A multistep method that interpolates ε̂, of DPM-Solver or DEIS."""

    def predict(schedule, steps):
        h, rho = steps.log_step, steps.end.rho

        def moments(count, window):
            exact = growing_moments(h[window], count)
            return [-rho[window] * m for m in _published(exact, h[window], weights)]

        orders = _final_orders(h.shape[0], order, lowered)
        positions = -jnp.log(at_all_times(steps, "rho"))
        return from_noise(
            steps, adams(positions, order, moments, bounds=_up_to(orders))
        )

    name = f"diffusers' dpm({order}, {weights})"
    return multistep(name, predict, order=min(order, 2), past=order - 1, kind="noise")


@factory
def _ddim(dropped_steps) -> Solver:
    """DDIM with diffusers' length of a step.

    A step leads from timestep i to i − T // N, also where the next time of the grid is
    another.
    """

    def predict(schedule, steps):
        count = steps.start.t.shape[0]
        length = schedule.steps // (count + dropped_steps)
        index = jnp.round(steps.start.t * schedule.steps) - length
        stated = noise_level(schedule, jnp.maximum(index, 1) / schedule.steps)
        last = jnp.arange(count) == count - 1
        at = type(stated)(
            *(jnp.where(last, e, s) for e, s in zip(steps.end, stated, strict=True))
        )
        return Update(at, 1.0, [1 - at.rho / steps.start.rho])

    name = "diffusers' ddim"
    return multistep(name, predict, order=None)


def ddim(o: Mapping[str, Any]) -> Solver:
    """DDIM. With "leading" timesteps, diffusers' steps equal those of the grid."""
    if o["timestep_spacing"] == "leading":
        return solvers.ddim()
    ends_early = o["timestep_spacing"] == "linspace" and not o["set_alpha_to_one"]
    return _ddim(int(ends_early))


def ddpm(o: Mapping[str, Any]) -> Solver:
    """DDPM with a variance that the network does not predict."""
    fixed = ("fixed_small", "fixed_small_log", "fixed_large")
    message = (
        f"variance_type must be {', '.join(fixed)} for a solver, got "
        f"{o['variance_type']!r}; solvers.ddpm('learned') takes a denoiser that "
        "returns (D, v)"
    )
    checks.require(o["variance_type"] in fixed, message)
    large = o["variance_type"] == "fixed_large"
    return solvers.ddpm("forward" if large else "posterior")


def _lowered(o):
    few = "few" if o["lower_order_final"] else "never"
    return few + (", euler" if o.get("euler_at_final") else "")


def dpm(o: Mapping[str, Any]) -> Solver:
    """Multistep DPM-Solver or DPM-Solver++ (Lu et al. 2022)."""
    order, weights = o["solver_order"], o["solver_type"]
    if o["algorithm_type"] == "dpmsolver":
        return _noise_multistep(order, weights, _lowered(o))
    eta = 1.0 if o["algorithm_type"] == "sde-dpmsolver++" else 0.0
    return _data_multistep(order, weights, _lowered(o), eta, False)


def deis(o: Mapping[str, Any]) -> Solver:
    """DEIS in log ρ (Zhang & Chen 2023)."""
    return _noise_multistep(o["solver_order"], "exact", _lowered(o))


def unipc(o: Mapping[str, Any]) -> Solver:
    """UniPC (Zhao et al. 2023)."""
    lowered = "always" if o["lower_order_final"] else "never"
    return _data_multistep(o["solver_order"], o["solver_type"], lowered, 0.0, True)


def euler(o: Mapping[str, Any]) -> Solver:
    """Euler's method in σ/α, which is DDIM."""
    return solvers.ddim()


def ancestral(o: Mapping[str, Any]) -> Solver:
    """Euler ancestral."""
    return solvers.euler_ancestral(1.0)


def heun(o: Mapping[str, Any]) -> Solver:
    """Heun's method in σ/α, which is EDM's sampler without noise."""
    return solvers.edm_stochastic(churn=0.0, noise_scale=1.0)
