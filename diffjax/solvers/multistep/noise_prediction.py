"""Multistep methods that interpolate the noise, as a polynomial in ρ or t."""

import jax.numpy as jnp
import numpy as np

from ... import checks, schedules
from ..affine import from_noise, multistep
from ..base import Solver, factory
from ..interpolation import (
    adams,
    growing_moments,
    in_log_ratio,
    in_ratio,
)
from .parts import at_all_times, published

__all__ = ["adams_bashforth", "deis", "gradient_estimation", "ipndm"]


@factory
@checks.arguments(order=(checks.integer, 1, 4))
def adams_bashforth(order: int = 4, guarded: bool = True) -> Solver:
    """Adams–Bashforth of dy = ε̂ dρ, k-diffusion's LMS and DEIS's ρAB.

        y ← y + ∫ P(ρ) dρ over the step

    P is the polynomial in ρ = σ/α through the last outputs ε̂.

    Args:
      order: How many outputs the polynomial passes through, 1 to 4.
      guarded: Lower the order of a step where extrapolation may fail: to 2
        where the step is longer than π/4 in λ = log α/σ, to 1 where it is
        longer than π, and where the earlier outputs weigh more than 1.5 times
        the step. False is the published method.

    Returns:
      A solver of order `order` with one denoiser evaluation per step.

    Raises:
      ValueError: Unless 1 ≤ order ≤ 4.

    References:
      Hairer et al. 1993, section III.5. Zhang & Chen 2023, section 4.

    Example:
      >>> solver = dj.solvers.adams_bashforth(2)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """

    def predict(schedule, steps):
        rho = at_all_times(steps, "rho")
        length = steps.end.rho - steps.start.rho
        moments = lambda n, window: [length[window] / (k + 1) for k in range(n)]
        bounds = in_ratio(steps) if guarded else None
        return from_noise(steps, adams(rho, order, moments, bounds=bounds))

    name = f"adams_bashforth({order}{published(guarded)})"
    return multistep(name, predict, order=order, past=order - 1, kind="noise")


COORDINATES = ("t", "rho", "log_rho")


@factory
@checks.arguments(order=(checks.integer, 1, 3), coordinate=(checks.choice, COORDINATES))
def deis(order: int = 3, coordinate: str = "t", guarded: bool = True) -> Solver:
    """DEIS (Zhang & Chen 2023, equation 15).

        y ← y + ∫ P dρ over the step

    P is a polynomial through the last outputs ε̂.

    Args:
      order: How many outputs the polynomial passes through, 1 to 3.
      coordinate: The coordinate of the polynomial. "t" is the paper's
        tAB-DEIS, its weights by 16-point Gauss–Legendre quadrature in log ρ.
        "rho" is ρAB-DEIS, which is `adams_bashforth`. "log_rho" is diffusers'
        DEIS, an exponential Adams method.
      guarded: Lower the order of a step where extrapolation may fail: where
        the earlier outputs weigh more than 1.5 times the step. Further in "t"
        and "rho" to 2 where the step is longer than π/4 in λ = log α/σ and to
        1 where it is longer than π, in "log_rho" as `dpmpp_2m` does. False is
        the published method.

    Returns:
      A solver of order `order` with one denoiser evaluation per step.

    Raises:
      ValueError: Unless 1 ≤ order ≤ 3, and for another coordinate.

    Example:
      >>> solver = dj.solvers.deis(2, "log_rho")
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """
    name = f"deis({order}, {coordinate}{published(guarded)})"
    if coordinate == "rho":
        return adams_bashforth(order, guarded)._replace(name=name)

    def predict_in_t(schedule, steps):
        v, weights = _time_quadrature(schedule, steps)  # (N, Q)
        moments = lambda n, window: [
            jnp.sum(weights[window] * v[window] ** k, -1) for k in range(n)
        ]
        bounds = in_ratio(steps) if guarded else None
        times = at_all_times(steps, "t")
        return from_noise(steps, adams(times, order, moments, bounds=bounds))

    def predict_in_log_rho(schedule, steps):
        h, rho = steps.log_step, steps.end.rho
        moments = lambda n, window: [
            -rho[window] * m for m in growing_moments(h[window], n)
        ]
        bounds = in_log_ratio(steps) if guarded else None
        positions = -jnp.log(at_all_times(steps, "rho"))
        return from_noise(steps, adams(positions, order, moments, bounds=bounds))

    predict = predict_in_t if coordinate == "t" else predict_in_log_rho
    return multistep(name, predict, order=order, past=order - 1, kind="noise")


def _time_quadrature(schedule, steps, nodes=16):
    """Nodes v = (τ − t)/(s − t) and weights of ∫ · dρ over each step, (N, Q) each."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    u = 0.5 * (1 + points)
    h = steps.log_step[:, None]
    rho = steps.start.rho[:, None] * jnp.exp(-h * u)
    tau = schedules.time_of_log_snr(schedule, -2 * jnp.log(rho))
    t, s = steps.start.t[:, None], steps.end.t[:, None]
    return (tau - t) / (s - t), -h * rho * (0.5 * weights)


@factory
@checks.arguments(order=(checks.integer, 1, 4))
def ipndm(order: int = 4, guarded: bool = True) -> Solver:
    """iPNDM, Adams–Bashforth with the weights of even spacing (Liu et al. 2022).

        y ← y + (ρ_s − ρ_t) Σ_j w_j ε̂_j
        w = (3, −1)/2,    (23, −16, 5)/12,    (55, −59, 37, −9)/24

    It is DDIM's step with ε̂ extrapolated (equation 12).

    Args:
      order: How many outputs a step uses, 1 to 4.
      guarded: Use at most two outputs on a step that is longer than π/4 in λ =
        log α/σ, and one where it is longer than π: extrapolation may fail
        there. False is the published method.

    Returns:
      A solver with one denoiser evaluation per step. It has order `order` only
      where the grid's steps in ρ = σ/α are even. On a grid whose neighbouring
      steps tend to equal length, as all of `grids` do, two outputs give order
      2 and more add none, which is declared.

    Raises:
      ValueError: Unless 1 ≤ order ≤ 4.

    References:
      Liu et al. 2022 (PNDM). Zhang & Chen 2023, section 4 (iPNDM).

    Example:
      >>> solver = dj.solvers.ipndm(2)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """

    def predict(schedule, steps):
        length = steps.end.rho - steps.start.rho
        # the weights of integer times, whatever the grid
        even = jnp.arange(length.shape[0] + 1, dtype=length.dtype)
        moments = lambda n, window: [
            jnp.full_like(length[window], 1 / (k + 1)) for k in range(n)
        ]
        bounds = in_ratio(steps) if guarded else None
        weights = adams(even, order, moments, bounds=bounds)
        return from_noise(steps, [length * weight for weight in weights])

    name = f"ipndm({order}{published(guarded)})"
    return multistep(name, predict, order=min(order, 2), past=order - 1, kind="noise")


@factory
@checks.arguments(gamma=checks.number)
def gradient_estimation(gamma: float = 2.0) -> Solver:
    """Gradient-estimation sampler (Permenter & Yuan 2024, algorithm 2).

        y ← y + (ρ_s − ρ_t) (γ ε̂ + (1 − γ) ε̂_before)

    The first step is DDIM's.

    Args:
      gamma: γ. 1 is DDIM and 3/2 is `ipndm(2)`. The paper takes 2.

    Returns:
      A solver with one denoiser evaluation per step, of order 2 at γ = 3/2 and of order
      1 for any other γ, with an error proportional to γ − 3/2.

    Raises:
      TypeError: If gamma is not a number.

    Example:
      >>> solver = dj.solvers.gradient_estimation()
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """

    def predict(schedule, steps):
        length = steps.end.rho - steps.start.rho
        first = jnp.arange(length.shape[0]) == 0
        weights = jnp.where(first, 1, gamma), jnp.where(first, 0, 1 - gamma)
        return from_noise(steps, [length * weight for weight in weights])

    order = 2 if gamma == 1.5 else 1
    name = f"gradient_estimation({gamma:g})"
    return multistep(name, predict, order=order, past=1, kind="noise")
