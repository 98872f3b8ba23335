"""Solvers: each is made by a factory, `heun()`, and run by `integrate` or `sample`."""

from diffjax.solvers.adaptive import adaptive
from diffjax.solvers.base import Info, Problem, Solver, diffusion, integrate
from diffjax.solvers.ode import euler, heun, midpoint, rk4
from diffjax.solvers.sde import euler_maruyama, reverse_diffusion, stochastic_heun

__all__ = [
    "Info",
    "Problem",
    "Solver",
    "adaptive",
    "diffusion",
    "euler",
    "euler_maruyama",
    "heun",
    "integrate",
    "midpoint",
    "reverse_diffusion",
    "rk4",
    "stochastic_heun",
]
