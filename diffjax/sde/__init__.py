"""SDEs dx = drift(x, t) dt + diffusion(x, t) dw: forward, reverse, flow, Langevin; the densities they carry.

The Fokker–Planck equation ∂p/∂t = −div(f p) + ½Σ_i ∂_i²(g_i² p) has the form ∂p/∂t = −div(v p) of a flow along the
current velocity v = f − ½g²∇log p: by automatic differentiation `fokker_planck`, by central differences of the density
`fokker_planck_residual`, along a path of a flow `rate_along_flow`, and solved on cells in one dimension
`solve_fokker_planck`.
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
