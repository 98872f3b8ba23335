"""Residuals of the density equation by central differences, on every schedule."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import schedules, sde, targets
from diffjax.numerics import divergence
from experiments.fokker_planck.config import Config
from experiments.fokker_planck.processes import NOISE_TO_SIGNAL
from experiments.shared import schedules as schedule_table
from experiments.shared.schedules import ScheduleChoice

SCHEDULES = schedule_table.SCHEDULES | {
    "from_betas": ScheduleChoice(
        "from 1000 betas",
        lambda: schedules.from_betas(dj.ddpm.linear_betas(1000)),
    ),
    "learned": ScheduleChoice("learned", lambda: schedules.learned(jax.random.key(0))),
}
"""Title and factory of each schedule whose residuals are measured."""
LEVELS = {
    "forward": "forward SDE",
    "flow": "probability flow",
    "reverse": "reverse SDE, run downwards",
}
"""Titles of the processes that carry p_t."""
COARSEST = 1 / 4
"""The largest step: Δx in units of σ, Δt in units of 1/|λ′(t)|."""
MEASURED = 6
"""Number of steps, whose last two give the orders. There fourth-order terms
are negligible and rounding is not yet visible.
"""


def residuals_of(config: Config, schedule: schedules.Schedule) -> dict[str, np.ndarray]:
    """Root mean squares of the residual over exact samples of p_t at three noise
    levels.

    They are in units of g²/σ² = |λ′|, one row per process of LEVELS. "wrong"
    is that of the flow with f + ½g²∇log p, "wrong_gap" the same less its limit
    g²Δp/p.

    Returns:
      (halvings + 1,) by process.
    """
    target = targets.gaussian_mixture(
        [0.4, 0.6], [[-1.0, 0.4], [0.8, -0.2]], [[0.3, 0.8], [0.6, 0.2]]
    )
    denoiser = targets.denoiser(target, schedule)
    forward, flow = sde.forward(schedule), sde.probability_flow(schedule, denoiser)

    def log_p(x, t):
        return target.noised(schedule, t).log_prob(x)

    def still(velocity):
        return sde.SDE(velocity, lambda x, t: jnp.zeros(()))

    def residuals(step, x, t, length, duration):
        def residual(process, direction=1):
            return sde.fokker_planck_residual(
                process, log_p, step * length, direction * step * duration
            )(x, t)

        variance = forward.diffusion(x, t) ** 2
        gradient, laplacian = divergence(lambda y: jax.grad(log_p)(y, t), x)
        wrong = residual(still(lambda x, t: 2 * forward.drift(x, t) - flow(x, t)))
        rows = {
            "forward": residual(forward),
            "flow": residual(still(flow)),
            "reverse": residual(sde.reverse(schedule, denoiser), -1),
            "wrong": wrong,
            "wrong_gap": wrong - variance * (laplacian + jnp.sum(gradient**2)),
        }
        return jax.tree.map(lambda r: r / (variance / length**2), rows)

    over_points = jax.vmap(residuals, in_axes=(None, 0, None, None, None))
    over_levels = jax.vmap(over_points, in_axes=(None, 0, 0, 0, 0))
    over_steps = jax.vmap(over_levels, in_axes=(0, None, None, None, None))

    @jax.jit
    def everything(key):
        t, length, duration = scales(schedule)
        keys = jax.random.split(key, (len(t), config.points))
        x = jax.vmap(lambda keys, t: jax.vmap(target.noised(schedule, t).sample)(keys))(
            keys, t
        )  # (3, points, 2)
        return over_steps(step_sizes(config), x, t, length, duration)

    return jax.tree.map(
        lambda r: np.sqrt(np.mean(np.square(r), (1, 2))),
        everything(jax.random.key(config.seed)),
    )


def step_sizes(config: Config) -> np.ndarray:
    """Relative steps, each half of the one before."""
    return COARSEST * 0.5 ** np.arange(config.halvings + 1)


def scales(schedule: schedules.Schedule) -> tuple[Any, Any, Any]:
    """Times at NOISE_TO_SIGNAL, far from t_min, and the units σ and 1/|λ′| of Δx
    and Δt, (3,) each.

    A chain's p_t is smooth only between two indices. There t is the middle of
    an interval and the largest Δt 0.4 of it.
    """
    t = schedules.time_of_log_snr(schedule, -2 * jnp.log(jnp.asarray(NOISE_TO_SIGNAL)))
    duration = (schedule.sigma(t) / schedules.diffusion_coefficient(schedule, t)) ** 2
    if isinstance(schedule, schedules.Indexed):
        t = (jnp.floor(t * schedule.steps) + 0.5) / schedule.steps
        duration = jnp.full_like(t, 0.4 / schedule.steps / COARSEST)
    return t, schedule.sigma(t), duration


def summary(sizes: dict[str, np.ndarray]) -> dict[str, Any]:
    """Measured orders, the residual at the finest step, and all residuals."""
    falling = [name for name in sizes if name != "wrong"]
    order = {
        name: float(np.log2(sizes[name][MEASURED - 2] / sizes[name][MEASURED - 1]))
        for name in falling
    }
    return {
        "order": order,
        "wrong": float(sizes["wrong"][MEASURED - 1]),
        "residuals": sizes,
    }
