"""Solvers: each is made by a factory, `heun()`, and run by `integrate` or `sample`."""

from .adaptive import adaptive
from .base import Info, Problem, Solver, diffusion, integrate
from .ode import euler, heun, midpoint, rk4
from .sde import euler_maruyama, reverse_diffusion, stochastic_heun

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
