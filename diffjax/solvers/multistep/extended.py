"""ER-SDE, which interpolates D as a polynomial in ρ, at any noise level."""

import jax.numpy as jnp
import numpy as np

from ... import checks
from ..affine import multistep
from ..base import Solver, factory
from ..eta import Eta, check_eta, eta_er_sde, integral, label
from ..interpolation import adams, in_log_ratio
from .parts import at_all_times, noisy_update, published

__all__ = ["er_sde"]

RECOMMENDED = eta_er_sde()
"""η of the paper's fifth noise scale function."""


@factory
@checks.arguments(order=(checks.integer, 1, 3), eta=check_eta)
def er_sde(
    order: int = 3,
    eta: Eta = RECOMMENDED,
    corrected: bool = True,
    guarded: bool = True,
) -> Solver:
    """ER-SDE-Solver-1, -2 or -3 (Cui et al. 2023).

        y ← (φ_s/φ_t) y + φ_s ∫ (φ′/φ²) P dρ + √(ρ_s² − ρ_t² (φ_s/φ_t)²) z

    P is the polynomial in ρ through the last `order` outputs, the integral
    runs from ρ_s to ρ_t, and φ(ρ) is the paper's noise scale function. It
    states the reverse SDE of noise level η with η² = ρ φ′/φ − 1. So φ = ρ is
    η = 0, φ = ρ² is η = 1, and a constant η has φ = ρ^{1 + η²}. One formula
    serves every schedule.

    Order 1 is `ddim()` at η = 0 and `ddim(1.0)`, DDPM's posterior, at η = 1.

    Args:
      order: How many outputs the polynomial passes through, 1 to 3.
      eta: η in [0, 1], or a function of the noise level. `eta_er_sde()` is the
        paper's φ = ρ (exp(ρ^0.3) + 10).
      corrected: True for the polynomial itself. The published method takes its
        derivative at the start of a step from two outputs at order 3 too,
        which leaves order 2.
      guarded: As in `dpmpp_2m`.

    Returns:
      A solver with one denoiser evaluation per step. Without noise it has order
      `order`, 2 for an order 3 as published. With noise that is weak and at
      most 2.

    Raises:
      ValueError: Unless 1 ≤ order ≤ 3, or if eta lies outside [0, 1].

    References:
      Departs in the integrals, which are Gauss–Legendre sums of 16 nodes in log
      ρ where the paper's are Riemann sums of 100 in ρ. Their variance is not
      cut off below 1e-6.

    Example:
      >>> solver = dj.solvers.er_sde(2)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """

    def predict(schedule, steps):
        rho = at_all_times(steps, "rho")
        v, weights = _quadrature(steps, eta)  # (N, Q)
        whole = -jnp.expm1(-steps.log_step - integral(eta, steps.start, steps.end))
        weights = weights * (whole / jnp.sum(weights, -1))[:, None]
        # the output before the newest, in units of the step
        length = steps.end.rho - steps.start.rho
        back = jnp.concatenate([jnp.zeros_like(length[:1]), -length[:-1]]) / length

        def moments(nodes, window):
            powers = v[window, None] ** np.arange(nodes)[:, None]  # (N, nodes, Q)
            first = list(jnp.sum(weights[window, None] * powers, -1).T)
            if nodes == 3 and not corrected:
                first[2] += back[window] * first[1]
            return first

        bounds = in_log_ratio(steps) if guarded else None
        return noisy_update(steps, adams(rho, order, moments, bounds=bounds), eta)

    exact = order if corrected else min(order, 2)
    name = f"er_sde({order}, {label(eta)}, {corrected}{published(guarded)})"
    return multistep(
        name,
        predict,
        order=min(exact, 2) if eta else exact,
        past=order - 1,
        stochastic=bool(eta),
    )


def _quadrature(steps, eta, nodes=16):
    """Nodes v = (ρ − ρ_t)/(ρ_s − ρ_t) and weights of φ_s (φ′/φ²) dρ, (N, Q) each."""
    h = steps.log_step[:, None]
    rule = np.stack(np.polynomial.legendre.leggauss(nodes)).astype(h.dtype)
    u, weights = 0.5 * (1 + rule[0]), 0.5 * rule[1]
    start, end = steps.start.rho[:, None], steps.end.rho[:, None]
    rho = start * jnp.exp(-h * u)
    if isinstance(eta, float):
        squared, left = eta**2, eta**2 * h * (1 - u)
    else:
        squared, left = eta.squared(rho), eta.integral(rho, end)
    # φ_s/φ = e^{−h (1 − u) − E} from a node to the end of the step
    decay = jnp.exp(-h * (1 - u) - left)
    v = jnp.expm1(-h * u) / jnp.expm1(-h)
    return v, weights * h * (1 + squared) * decay
