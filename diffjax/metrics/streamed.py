"""Fréchet distance from streamed moments, its bias and its standard error.

Everything here runs on the host in float64, one chunk of features at a time.
Features of any network can so be reduced to their `Moments` chunk by chunk,
process by process, and merged.

The plug-in Fréchet distance of n examples is too large by b/n + O(1/n²). Three
functions estimate b: `frechet_jackknife` and `frechet_extrapolated` from the
examples, `frechet_bias` from the moments of a Gaussian.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .. import checks
from ..types import ArrayLike

__all__ = [
    "Extrapolation",
    "Jackknife",
    "Moments",
    "frechet_bias",
    "frechet_extrapolated",
    "frechet_jackknife",
    "frechet_of_moments",
    "moments",
    "stated_moments",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and covariance of a set of examples. See `moments`.

    Attributes:
      count: Number of examples n. Infinite for a distribution that is known.
      mean: (D,), float64.
      spread: Σᵢ (xᵢ − mean)(xᵢ − mean)ᵀ / n, (D, D), float64.
    """

    count: float
    mean: np.ndarray
    spread: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, Σᵢ (xᵢ − mean)(xᵢ − mean)ᵀ / (n − 1)."""
        return self.spread * _unbiased(self.count)

    def merged(self, other: "Moments") -> "Moments":
        """The moments of both sets together (Chan, Golub & LeVeque 1983).

        Args:
          other: Those of the other set.

        Returns:
          The moments.

        Raises:
          ValueError: If the dimensions differ.
        """
        checks.instance("other", other, Moments, "Moments, see metrics.moments")
        _check_dimensions("other", other, "the first set's", self)
        count = self.count + other.count
        weight = 1.0 if math.isinf(other.count) else other.count / count
        shift = other.mean - self.mean
        between = weight * (1 - weight) * np.outer(shift, shift)
        spread = (1 - weight) * self.spread + weight * other.spread + between
        return Moments(count, self.mean + weight * shift, spread)

    @functools.cached_property
    def _factor(self) -> np.ndarray:
        """A of shape (D, D) with AᵀA = covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def _unbiased(count):
    return 1.0 if math.isinf(count) else count / max(count - 1, 1)


def moments(x: ArrayLike) -> Moments:
    """Mean and covariance of a set or a chunk of examples.

    They are summed in float64 on the host, around the chunk's mean. Merging
    the moments of chunks, of one or of several processes, gives those of the
    whole set to rounding, in any order.

    Args:
      x: (n, …), n ≥ 1. Examples are flattened to D numbers.

    Returns:
      The moments.

    Raises:
      ValueError: If x has no example, or holds NaN or infinity.

    Example:
      >>> chunks = np.split(np.arange(12.0).reshape(6, 2), 3)
      >>> whole = dj.metrics.moments(chunks[0])
      >>> for chunk in chunks[1:]:
      ...     whole = whole.merged(dj.metrics.moments(chunk))
      >>> whole.count, whole.mean.tolist()
      (6, [5.0, 6.0])
    """
    checks.finite_batch("x", x)
    values = np.asarray(x, np.float64).reshape(np.shape(x)[0], -1)
    mean = values.mean(0)
    deviations = values - mean
    return Moments(len(values), mean, deviations.T @ deviations / len(values))


@checks.arguments(mean=checks.finite_array, covariance=checks.finite_array)
def stated_moments(mean: ArrayLike, covariance: ArrayLike) -> Moments:
    """Moments that are known, or that were published without their count.

    Args:
      mean: (D,).
      covariance: (D, D), symmetric.

    Returns:
      The moments, with an infinite count.

    Raises:
      ValueError: If the shapes differ, the covariance is not symmetric or has a
        negative variance, or a value is NaN or infinite.

    Example:
      >>> exact = dj.metrics.stated_moments(np.zeros(3), np.eye(3))
      >>> exact.count
      inf
    """
    mean, covariance = (np.asarray(a, np.float64) for a in (mean, covariance))
    square = mean.shape * 2
    message = f"covariance must have shape {square}, got {covariance.shape}"
    checks.require(mean.ndim == 1 and covariance.shape == square, message)
    gap = np.abs(covariance - covariance.T).max(initial=0.0)
    # Far above the rounding of a sum in float32, and far below a mistake.
    symmetric = gap <= 1e-4 * np.abs(covariance).max(initial=0.0)
    checks.require(symmetric, f"covariance must be symmetric, got entries {gap:g} off")
    least = covariance.diagonal().min(initial=0.0)
    checks.require(least >= 0, f"covariance must have no variance below 0, got {least}")
    return Moments(math.inf, mean, covariance)


def frechet_of_moments(x: Moments, y: Moments) -> float:
    """Squared Fréchet distance of the Gaussians with these moments.

        ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 Σᵢ √mᵢ,    m the eigenvalues of Σ₁Σ₂

    It equals `frechet_distance` of the examples to rounding, where Σ has full
    rank. Where it has not, rounding lowers it by up to 1e-8 of the largest variance
    per missing direction.

    The estimate is biased upwards, by about `frechet_bias`.

    Args:
      x: Moments of n ≥ 2 examples.
      y: Moments of m ≥ 2 examples, of the same dimension.

    Returns:
      The distance, in squared units of the features.

    Raises:
      ValueError: If the dimensions differ, or a count is below 2.

    Example:
      >>> x = dj.metrics.moments([[0.0], [2.0]])
      >>> y = dj.metrics.stated_moments([4.0], [[2.0]])
      >>> round(dj.metrics.frechet_of_moments(x, y), 6)
      9.0
    """
    _check_moments(x, y)
    traces = np.trace(x.covariance) + np.trace(y.covariance)
    means = np.sum((x.mean - y.mean) ** 2)
    # 0 for equal moments, from which rounding may take away
    return float(max(means + traces - 2 * _roots(x, y).sum(), 0.0))


def _check_moments(x, y):
    for name, value in (("x", x), ("y", y)):
        checks.instance(name, value, Moments, "Moments, see metrics.moments")
        few = f"{name} must be of at least 2 examples, got {value.count}"
        checks.require(value.count >= 2, few)
    _check_dimensions("y", y, "x's", x)


def _check_dimensions(name, value, whose, reference):
    expected, actual = reference.mean.size, value.mean.size
    message = f"{name} must have {whose} dimension {expected}, got {actual}"
    checks.require(actual == expected, message)


def _roots(x, y):
    """Square roots of the eigenvalues of Σ₁Σ₂, (D,)."""
    # Those of the symmetric A Σ₁ Aᵀ, with AᵀA = Σ₂, which are real.
    product = y._factor @ x.covariance @ y._factor.T
    return np.sqrt(np.maximum(np.linalg.eigvalsh(0.5 * (product + product.T)), 0))


def frechet_bias(x: Moments, y: Moments) -> float:
    """First-order bias of `frechet_of_moments` for examples of two Gaussians.

        tr Σ₁/n + tr Σ₂/m + ½ (1/(n−1) + 1/(m−1)) B
        B = Σᵢⱼ rᵢ rⱼ/(rᵢ + rⱼ) + ½ Σᵢ rᵢ,    r² the eigenvalues of Σ₁Σ₂

    The traces come from the means. B is the curvature of tr (Σ₁Σ₂)^½, averaged
    over the Wishart distribution of an estimated covariance. For Σ₁ = Σ₂ = σ²I
    and a known second distribution it is σ² (D/n + D(D+1)/(4(n−1))).

    It assumes Gaussian features, and n, m ≫ D. Terms of 1/n² are left out.

    Args:
      x: Moments of n examples.
      y: Moments of m examples. An infinite count adds nothing.

    Returns:
      The expected excess of the distance.

    Raises:
      ValueError: If the dimensions differ, or a count is below 2.

    Example:
      >>> x = dj.metrics.moments([[0.0], [2.0]])  # n = 2 and variance 2
      >>> exact = dj.metrics.stated_moments([1.0], [[2.0]])
      >>> round(dj.metrics.frechet_bias(x, exact), 6)
      2.0
    """
    _check_moments(x, y)
    r = _roots(x, y)
    sums = r[:, None] + r
    harmonic = np.divide(np.outer(r, r), sums, out=np.zeros_like(sums), where=sums > 0)
    curvature = harmonic.sum() + 0.5 * r.sum()
    return float(
        sum(
            np.trace(side.covariance) / side.count + 0.5 * curvature / (side.count - 1)
            for side in (x, y)
        )
    )


class Jackknife(NamedTuple):
    """An estimate by the jackknife.

    Attributes:
      value: The estimate, without its bias of order 1/n.
      standard_error: Its standard error.
      plug_in: The statistic of all examples.
    """

    value: float
    standard_error: float
    plug_in: float


def frechet_jackknife(
    x_groups: Sequence[Moments], y_groups: Sequence[Moments]
) -> Jackknife:
    """Fréchet distance without its bias of order 1/n, and its standard error.

    With f₋ᵢ the distance without group i of K, and f̄ the mean of these:

        value = f − (K − 1)(f̄ − f),    error² = (K − 1)/K Σᵢ (f₋ᵢ − f̄)²

    It is the grouped jackknife (Quenouille 1956, Tukey 1958), for x and for y
    if y has several groups. A single group of y is a fixed reference, whose
    own bias and error are left out.

    Groups must be of independent examples in random order. The value keeps a
    bias of order 1/n², which is small where n ≫ D. The squared error is nearly
    unbiased, with K − 1 degrees of freedom.

    Args:
      x_groups: Moments of K ≥ 2 groups whose counts differ by 1 at most.
      y_groups: Those of the reference: one, or at least 2 such groups.

    Returns:
      The estimate. Its value may be negative near 0.

    Raises:
      ValueError: For too few groups, or groups of different sizes.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(200, 3))
      >>> groups = [dj.metrics.moments(part) for part in np.array_split(x, 10)]
      >>> exact = dj.metrics.stated_moments(np.zeros(3), np.eye(3))
      >>> estimate = dj.metrics.frechet_jackknife(groups, [exact])
      >>> estimate.value < estimate.plug_in
      True
    """
    x_groups = _groups("x_groups", x_groups, 2)
    y_groups = _groups("y_groups", y_groups, 1)
    whole = _merged(x_groups), _merged(y_groups)
    plug_in = frechet_of_moments(*whole)
    bias, variance = 0.0, 0.0
    for groups, other in ((x_groups, whole[1]), (y_groups, whole[0])):
        count = len(groups)
        if count == 1:
            continue
        others = [
            frechet_of_moments(_merged(groups[:i] + groups[i + 1 :]), other)
            for i in range(count)
        ]
        bias += (count - 1) * (np.mean(others) - plug_in)
        variance += (count - 1) * np.var(others)
    return Jackknife(float(plug_in - bias), math.sqrt(variance), plug_in)


def _groups(name, groups, least):
    groups = tuple(groups)
    few = f"{name} must hold at least {least} Moments, got {len(groups)}"
    checks.require(len(groups) >= least, few)
    for i, group in enumerate(groups):
        checks.instance(f"{name}[{i}]", group, Moments, "Moments, see metrics.moments")
    counts = [group.count for group in groups]
    message = f"{name} must have counts that differ by 1 at most, got {counts}"
    checks.require(len(groups) == 1 or max(counts) - min(counts) <= 1, message)
    return groups


def _merged(groups):
    return functools.reduce(Moments.merged, groups)


class Extrapolation(NamedTuple):
    """A statistic of subsets, and its line in 1/n.

    Attributes:
      value: The intercept, the statistic of infinitely many examples.
      slope: The coefficient of 1/n.
      counts: Sizes n of the subsets.
      distances: The statistic of each.
    """

    value: float
    slope: float
    counts: np.ndarray
    distances: np.ndarray


@checks.arguments(sizes=(checks.integer, 2))
def frechet_extrapolated(
    groups: Sequence[Moments], reference: Moments, sizes: int = 5
) -> Extrapolation:
    """Fréchet distance extrapolated to infinitely many examples (FID-infinity).

    A line in 1/n is fitted by least squares to the distances of subsets of n
    examples (Chong & Forsyth 2020, section 4). Here n goes from half of the
    examples to all of them, since the line holds for n ≫ D only. There it goes
    from a tenth.

    The bias of order 1/n of the examples is removed. That of the reference is
    left: it is the same for all samples that are compared with it.

    Args:
      groups: Moments of at least `sizes` groups of independent examples, whose
        counts differ by 1 at most. Subsets are made of whole groups.
      reference: Moments of the reference.
      sizes: Most subsets, 2 or more. Those of equal size count once.

    Returns:
      The intercept and what it was fitted to.

    Raises:
      ValueError: For too few groups, or groups of different sizes.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(200, 3))
      >>> groups = [dj.metrics.moments(part) for part in np.array_split(x, 10)]
      >>> exact = dj.metrics.stated_moments(np.zeros(3), np.eye(3))
      >>> dj.metrics.frechet_extrapolated(groups, exact).slope > 0
      True
    """
    groups = _groups("groups", groups, sizes)
    total, first = len(groups), 0
    subsets = []
    for size in np.unique(
        np.linspace(-(-total // 2), total, sizes).round().astype(int)
    ):
        # Each window begins where the last one ended, so that all groups count.
        members = [groups[(first + i) % total] for i in range(size)]
        subsets.append(_merged(members))
        first += size
    counts = np.array([subset.count for subset in subsets])
    distances = np.array([frechet_of_moments(subset, reference) for subset in subsets])
    slope, value = np.polyfit(counts[-1] / counts, distances, 1)
    return Extrapolation(float(value), float(slope * counts[-1]), counts, distances)
