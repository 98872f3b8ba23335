"""SDEs dx = drift(x, t) dt + diffusion(x, t) dw, and the densities that they carry.

The Fokker–Planck equation ∂p/∂t = −div(f p) + ½ Σ_i ∂_i²(g_i² p) is that of a
flow, ∂p/∂t = −div(v p), along the current velocity v = f − ½ g² ∇log p.

`fokker_planck` evaluates it by automatic differentiation and
`fokker_planck_residual` by central differences. `rate_along_flow` follows a
point of a flow. `solve_fokker_planck` solves the equation on cells in one
dimension.
"""

from .cells import solve_fokker_planck
from .density import (
    current_velocity,
    fokker_planck,
    fokker_planck_residual,
    rate_along_flow,
)
from .processes import SDE, Semilinear, forward, langevin, probability_flow, reverse

__all__ = [
    "SDE",
    "Semilinear",
    "current_velocity",
    "fokker_planck",
    "fokker_planck_residual",
    "forward",
    "langevin",
    "probability_flow",
    "rate_along_flow",
    "reverse",
    "solve_fokker_planck",
]


def __dir__() -> list[str]:
    return __all__
