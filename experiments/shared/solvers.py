"""The solvers that benchmarks compare, and the reference solution that they are
compared with.
"""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from diffjax import solvers
from diffjax.solvers import driver, noise_source
from experiments.shared import schedules

SOLVERS: dict[str, tuple[str, tuple]] = {
    "euler": ("euler", ()),
    "heun": ("heun", ()),
    "midpoint": ("midpoint", ()),
    "rk4": ("rk4", ()),
    "ddim": ("ddim", ()),
    "dpm_2": ("dpm_2", ()),
    "heunpp": ("heunpp", ()),
    "dpm_solver(2)": ("dpm_solver", (2,)),
    "dpm_solver(3)": ("dpm_solver", (3,)),
    "exponential_runge_kutta(3)": ("exponential_runge_kutta", (3,)),
    "exponential_runge_kutta(4)": ("exponential_runge_kutta", (4,)),
    "dpmpp_2s": ("dpmpp_2s", ()),
    "adams_bashforth(2)": ("adams_bashforth", (2,)),
    "adams_bashforth(3)": ("adams_bashforth", (3,)),
    "adams_bashforth(4)": ("adams_bashforth", (4,)),
    "ipndm(2)": ("ipndm", (2,)),
    "ipndm(4)": ("ipndm", (4,)),
    "deis(2)": ("deis", (2,)),
    "deis(3)": ("deis", (3,)),
    "deis(3, log_rho)": ("deis", (3, "log_rho")),
    "dpmpp_2m": ("dpmpp_2m", ()),
    "dpmpp_3m": ("dpmpp_3m", ()),
    "dpmpp_3m(published)": ("dpmpp_3m", (False,)),
    "unipc(2)": ("unipc", (2,)),
    "unipc(3)": ("unipc", (3,)),
    "sa_solver(3, 4, 0)": ("sa_solver", (3, 4, 0.0)),
    "picard": ("picard", ()),
    "adaptive(1e-2)": ("adaptive", (1e-2, 1e-2)),
    "adaptive(1e-3)": ("adaptive", (1e-3, 1e-3)),
    "adaptive(1e-5)": ("adaptive", (1e-5, 1e-5)),
    "euler_maruyama": ("euler_maruyama", ()),
    "reverse_diffusion": ("reverse_diffusion", ()),
    "stochastic_heun": ("stochastic_heun", ()),
    "sra1": ("sra1", ()),
    "ddim(1)": ("ddim", (1.0,)),
    "ddim(0.5)": ("ddim", (0.5,)),
    "ddpm": ("ddpm", ()),
    "ddpm(forward)": ("ddpm", ("forward",)),
    "euler_ancestral": ("euler_ancestral", ()),
    "dpm_2_ancestral": ("dpm_2_ancestral", ()),
    "dpmpp_2s(1)": ("dpmpp_2s", (1.0,)),
    "dpmpp_sde": ("dpmpp_sde", ()),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", ()),
    "dpmpp_3m_sde": ("dpmpp_3m_sde", ()),
    "sa_solver": ("sa_solver", ()),
    "sa_solver(between)": (
        "sa_solver",
        (2, 2, solvers.eta_between(0.05, 1.0)),
    ),
    "er_sde(1)": ("er_sde", (1,)),
    "er_sde(2)": ("er_sde", (2,)),
    "er_sde(3)": ("er_sde", (3,)),
    "er_sde(3, 1)": ("er_sde", (3, 1.0)),
    "seeds(2)": ("seeds", (2,)),
    "seeds(2, 0.5)": ("seeds", (2, 0.5)),
    "seeds(3)": ("seeds", (3,)),
    "seeds(3, 0.5)": ("seeds", (3, 0.5)),
    "edm_stochastic(10)": ("edm_stochastic", (10.0, 0.05, 50.0, 1.0)),
    "predictor_corrector": ("predictor_corrector", ()),
    "restart": ("restart", ()),
    "adaptive_sde": ("adaptive_sde", ()),
}
"""Factory of diffjax.solvers and its arguments, by the name shown in tables and
figures.
"""


def make(name: str, guarded: bool = True) -> solvers.Solver:
    """Make the solver of this name in the table.

    Args:
      name: Its name.
      guarded: False makes a multistep method as published.

    Returns:
      The solver. Those without a guard are the same either way.
    """
    factory, arguments = getattr(solvers, SOLVERS[name][0]), SOLVERS[name][1]
    if not guarded and "guarded" in inspect.signature(factory).parameters:
        return factory(*arguments, guarded=False)
    return factory(*arguments)


SETTINGS = {"vp_linear": {"t_min": 1e-3}, "sub_vp": {"t_min": 1e-3}}
"""Settings of the schedules on which solvers are compared."""


def make_schedule(name: str) -> Any:
    """Make a schedule with the settings of the benchmarks."""
    return schedules.make(name, SETTINGS)


@functools.partial(jax.jit, static_argnums=3)
def flow_ends(denoiser: Any, schedule: Any, starts: Any, tolerance: float) -> Any:
    """Solve the probability flow from t_max to t_min with the adaptive solver.

    Args:
      denoiser: The denoiser.
      schedule: Its schedule.
      starts: (N, *shape), states at t_max.
      tolerance: Absolute and relative tolerance.

    Returns:
      States at t_min, of the shape of starts.
    """
    ends = jnp.asarray([schedule.t_max, schedule.t_min], float)
    problem = driver.diffusion(schedule, denoiser)
    truth = solvers.adaptive(tolerance, tolerance, 100_000)
    return jax.vmap(
        lambda x: driver.run(
            noise_source.source_of(None, x, ends),
            truth,
            problem,
            x=x,
            ts=ends,
            zero_end=False,
        )[0]
    )(starts)
