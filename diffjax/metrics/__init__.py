"""Distances between two sets of samples, and nearest neighbours.

Each distance takes n examples on the leading axis of `x` and m on that of `y`,
of one shape, flattened to D numbers each, and returns a scalar in at least
float32. Each is the *squared* one, which the literature reports under these
names: FID, KID, E(X, Y), SW₂². All are pure functions of their arrays and pass
through `jit`. No n × m × D array is held: pairs are visited in blocks of rows.

All raise ValueError where an array has no leading axis, too few examples, NaN
or infinity (concrete arrays only), or where the shapes of the two sets'
examples differ.
"""

from .discrepancy import (
    GaussianKernel,
    PolynomialKernel,
    gaussian_kernel,
    kernel_distance,
    polynomial_kernel,
)
from .distances import energy_distance, frechet_distance, sliced_wasserstein
from .neighbours import nearest_neighbours
from .sets import KernelFunction

__all__ = [
    "GaussianKernel",
    "KernelFunction",
    "PolynomialKernel",
    "energy_distance",
    "frechet_distance",
    "gaussian_kernel",
    "kernel_distance",
    "nearest_neighbours",
    "polynomial_kernel",
    "sliced_wasserstein",
]


def __dir__() -> list[str]:
    return __all__
