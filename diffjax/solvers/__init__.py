"""Solvers, each made by a factory such as `heun()`, run by `integrate` or `sample`.

To add a sampler, state its coefficients: a function (schedule, steps) ->
`Update` for `affine.multistep`, whose docstring has an example, or a list of
them for `affine.one_step`. For anything else write the functions of a
`Solver`, as `euler_maruyama` does.
"""

from .adaptive import adaptive, adaptive_sde
from .ancestral import (
    ddim,
    ddpm,
    dpm_2,
    dpm_2_ancestral,
    edm_stochastic,
    euler_ancestral,
    heunpp,
    reverse_diffusion,
)
from .annealed import annealed_langevin
from .base import Info, Problem, Solver, Traits
from .composed import picard, predictor_corrector, restart
from .driver import Progress, advance, diffusion, integrate, start, steps_within
from .eta import Eta, EtaFunction, eta_between, eta_er_sde
from .exponential import (
    dpm_solver,
    dpmpp_2s,
    dpmpp_sde,
    exponential_runge_kutta,
    seeds,
)
from .flow_maps import flow_map
from .multistep import (
    adams_bashforth,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    er_sde,
    gradient_estimation,
    ipndm,
    sa_solver,
    unipc,
)
from .ode import euler, heun, midpoint, rk4
from .sde import euler_maruyama, sra1, stochastic_heun
from .tabulated import output_weights, tabulated

__all__ = [
    "Eta",
    "EtaFunction",
    "Info",
    "Problem",
    "Progress",
    "Solver",
    "Traits",
    "adams_bashforth",
    "adaptive",
    "adaptive_sde",
    "advance",
    "annealed_langevin",
    "ddim",
    "ddpm",
    "deis",
    "diffusion",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "edm_stochastic",
    "er_sde",
    "eta_between",
    "eta_er_sde",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "exponential_runge_kutta",
    "flow_map",
    "gradient_estimation",
    "heun",
    "heunpp",
    "integrate",
    "ipndm",
    "midpoint",
    "output_weights",
    "picard",
    "predictor_corrector",
    "restart",
    "reverse_diffusion",
    "rk4",
    "sa_solver",
    "seeds",
    "sra1",
    "start",
    "steps_within",
    "stochastic_heun",
    "tabulated",
    "unipc",
]


def __dir__() -> list[str]:
    return __all__
