"""Distances between two sets of samples, nearest neighbours and memorisation.

Each distance takes n examples on the leading axis of `x` and m on that of `y`,
of one shape, flattened to D numbers each, and returns a scalar in at least
float32. Each is the *squared* one, which the literature reports under these
names: FID, KID, E(X, Y), SW₂². All are pure functions of their arrays and pass
through `jit`. No n × m × D array is held: pairs are visited in blocks of rows.

`Moments` and what is computed from them run on the host in float64.

All raise ValueError where an array has no leading axis, too few examples, NaN
or infinity (concrete arrays only), or where the shapes of the two sets'
examples differ.
"""

from .discrepancy import (
    GaussianKernel,
    PolynomialKernel,
    gaussian_kernel,
    kernel_distance,
    kernel_jackknife,
    polynomial_kernel,
)
from .distances import energy_distance, frechet_distance, sliced_wasserstein
from .neighbours import (
    DensityCoverage,
    NullComparison,
    PrecisionRecall,
    data_copying,
    density_coverage,
    nearest_neighbours,
    nearest_share,
    precision_recall,
)
from .sets import KernelFunction
from .streamed import (
    Extrapolation,
    Jackknife,
    Moments,
    frechet_bias,
    frechet_extrapolated,
    frechet_jackknife,
    frechet_of_moments,
    moments,
    stated_moments,
)

__all__ = [
    "DensityCoverage",
    "Extrapolation",
    "GaussianKernel",
    "Jackknife",
    "KernelFunction",
    "Moments",
    "NullComparison",
    "PolynomialKernel",
    "PrecisionRecall",
    "data_copying",
    "density_coverage",
    "energy_distance",
    "frechet_bias",
    "frechet_distance",
    "frechet_extrapolated",
    "frechet_jackknife",
    "frechet_of_moments",
    "gaussian_kernel",
    "kernel_distance",
    "kernel_jackknife",
    "moments",
    "nearest_neighbours",
    "nearest_share",
    "polynomial_kernel",
    "precision_recall",
    "sliced_wasserstein",
    "stated_moments",
]


def __dir__() -> list[str]:
    return __all__
