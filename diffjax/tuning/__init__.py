"""Grids and solvers fitted to a model: the best use of a number of evaluations."""

from .fitted_grids import GridErrors, optimised_grid
from .fitted_solvers import FittedSolver, optimised_solver
from .references import FAMILIES, HELD_OUT, NODES

__all__ = [
    "FAMILIES",
    "FittedSolver",
    "GridErrors",
    "HELD_OUT",
    "NODES",
    "optimised_grid",
    "optimised_solver",
]


def __dir__() -> list[str]:
    return __all__
