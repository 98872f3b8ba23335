"""Nearest neighbours, and the scores that rest on them."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import Array, ArrayLike
from .sets import for_each, in_common_unit, two_sets

__all__ = [
    "DensityCoverage",
    "NullComparison",
    "PrecisionRecall",
    "data_copying",
    "density_coverage",
    "nearest_neighbours",
    "nearest_share",
    "precision_recall",
]


def nearest_neighbours(
    x: ArrayLike, reference: ArrayLike, k: int = 1
) -> tuple[Array, Array]:
    """The k nearest examples of a reference set, for each example of x.

    Distances are computed from the differences themselves: 0 exactly for a
    copy. The lower index comes first in a tie.

    Args:
      x: (n, …), n ≥ 1.
      reference: (m, …), m ≥ 1.
      k: Number of neighbours, between 1 and m.

    Returns:
      (indices, distances), (n, k) both, the nearest first. Distances are
      Euclidean, in data units.

    Raises:
      ValueError: If k is out of range.

    Example:
      >>> x, reference = jnp.array([[0.9]]), jnp.array([[0.0], [1.0]])
      >>> dj.metrics.nearest_neighbours(x, reference)[0].tolist()
      [[1]]
    """
    x, reference = two_sets(x, reference, "reference", minimum=1)
    return _nearest_neighbours(x, reference, checks.integer("k", k, 1, len(reference)))


@functools.partial(jax.jit, static_argnums=2)
def _nearest_neighbours(x: Array, reference: Array, k: int) -> tuple[Array, Array]:
    x, reference, unit = in_common_unit(x, reference)

    def of_one(example):
        closeness, indices = jax.lax.top_k(-_squares(example, reference), k)
        return indices, unit * jnp.sqrt(-closeness)

    return for_each(of_one, x, reference.size)


class PrecisionRecall(NamedTuple):
    """See `precision_recall`. Both are scalars in [0, 1].

    Attributes:
      precision: Share of the samples within the real examples' balls.
      recall: Share of the real examples within the samples' balls.
    """

    precision: Array
    recall: Array


class DensityCoverage(NamedTuple):
    """See `density_coverage`.

    Attributes:
      density: Mean number of balls around a sample, over k, 0 or more.
      coverage: Share of the balls that hold a sample, in [0, 1].
    """

    density: Array
    coverage: Array


@checks.arguments(k=(checks.integer, 1))
def precision_recall(x: ArrayLike, y: ArrayLike, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    A ball around each real example reaches to its k-th neighbour among the
    other real ones. Precision is the share of the samples that lie in any of
    them. Recall exchanges the two sets.

    Both depend on n, m and k, so that only values at the same n, m and k
    compare. Fresh draws of the real distribution do not reach 1, and their
    values follow from no formula: measure them on held-out examples. A real
    outlier has a large ball, which raises precision.

    Args:
      x: Samples (n, …), n > k.
      y: Real examples (m, …), m > k.
      k: Neighbour that the balls reach. The paper has 3, with 50 000 examples.

    Returns:
      Precision and recall.

    Raises:
      ValueError: If k is 0, or a set has k examples or fewer.

    Example:
      >>> x, y = np.array([[0.4], [9.0]]), np.array([[0.0], [1.0], [2.0]])
      >>> [float(value) for value in dj.metrics.precision_recall(x, y, 1)]
      [0.5, 1.0]
    """
    x, y = two_sets(x, y, minimum=k + 1)
    return _precision_recall(x, y, k)


@functools.partial(jax.jit, static_argnums=2)
def _precision_recall(x: Array, y: Array, k: int) -> PrecisionRecall:
    x, y, _ = in_common_unit(x, y)
    fractions = (
        (_balls_around(a, b, _squared_radii(b, k)) > 0).mean()
        for a, b in ((x, y), (y, x))
    )
    return PrecisionRecall(*fractions)


@checks.arguments(k=(checks.integer, 1))
def density_coverage(x: ArrayLike, y: ArrayLike, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020).

    A ball around each of m real examples reaches to its k-th neighbour among
    the other real ones. Density is the mean number of balls that a sample lies
    in, over k. Coverage is the share of the balls that hold a sample.

    For n fresh draws of a continuous real distribution, whatever it is, the
    means are exactly

        E density = 1,    E coverage = 1 − Π_{i<k} (m − 1 − i)/(m + n − 1 − i)

    since all orders of the m − 1 + n distances from a real example are equally
    likely. Coverage depends on n/m and k, and compares only where they agree.

    Args:
      x: Samples (n, …), n ≥ 1.
      y: Real examples (m, …), m > k.
      k: Neighbour that the balls reach. The paper has 5.

    Returns:
      Density and coverage.

    Raises:
      ValueError: If k is 0, or y has k examples or fewer.

    Example:
      >>> x, y = np.array([[0.4], [9.0]]), np.array([[0.0], [1.0], [2.0]])
      >>> density, coverage = dj.metrics.density_coverage(x, y, 1)
      >>> float(density), round(float(coverage), 3)
      (1.0, 0.667)
    """
    x, y = two_sets(x, y, minimum=1)
    few = f"y must hold at least {k + 1} examples, got {len(y)}"
    checks.require(len(y) > k, few)
    return _density_coverage(x, y, k)


@functools.partial(jax.jit, static_argnums=2)
def _density_coverage(x: Array, y: Array, k: int) -> DensityCoverage:
    x, y, _ = in_common_unit(x, y)
    radii = _squared_radii(y, k)
    nearest = for_each(lambda example: _squares(example, x).min(), y, x.size)
    density = _balls_around(x, y, radii).mean() / k
    return DensityCoverage(density, (nearest <= radii).mean())


def _squares(example: Array, others: Array) -> Array:
    """Squared distances (m,) of an example (D,) to others (m, D)."""
    return jnp.sum((example - others) ** 2, axis=1)


def _squared_radii(y: Array, k: int) -> Array:
    """Squared distance of each example to the k-th nearest other one, (m,)."""
    # The nearest of all is the example itself, at 0.
    farthest = lambda example: -jax.lax.top_k(-_squares(example, y), k + 1)[0][-1]
    return for_each(farthest, y, y.size)


def _balls_around(x: Array, y: Array, radii: Array) -> Array:
    """Number of balls around examples of y that each x lies in, (n,)."""
    count = lambda example: jnp.sum(_squares(example, y) <= radii)
    return for_each(count, x, y.size)


class NullComparison(NamedTuple):
    """A statistic beside its distribution under the null hypothesis.

    Attributes:
      value: The statistic.
      expected: Its mean for fresh draws of the data's distribution.
      deviation: Its standard deviation for these.
    """

    value: float
    expected: float
    deviation: float

    @property
    def z_score(self) -> float:
        """(value − expected)/deviation, infinite where that deviation is 0."""
        gap = self.value - self.expected
        infinite = math.copysign(math.inf, gap) if gap else 0.0
        return gap / self.deviation if self.deviation else infinite


def nearest_share(
    x: ArrayLike, train: ArrayLike, held_out: ArrayLike
) -> NullComparison:
    """Share of the samples whose nearest real example is a training example.

    For fresh draws, all splits of the T + H real examples into training and
    held-out ones are equally likely. So the expected share is T/(T + H)
    exactly. With wᵢ the number of samples nearest to real example i, the
    deviation over all splits is exactly

        √(T H/(T + H) s²)/n,    s² the unbiased variance of w

    The value exceeds the expected one where a model memorises. A model can
    also exceed it by a little where it has learned the training set's
    fluctuations, as every fitted model does.

    It assumes that the split was random. A sample at equal distances from
    several nearest examples counts the same part for each.

    Args:
      x: Samples (n, …).
      train: Training examples (T, …), T ≥ 1.
      held_out: Held-out examples (H, …), H ≥ 1.

    Returns:
      The share beside its null distribution.

    Raises:
      ValueError: As all distances.

    Example:
      >>> x = np.array([[0.1], [0.9], [2.2]])
      >>> dj.metrics.nearest_share(x, [[0.0], [1.0]], [[2.0], [3.0]]).expected
      0.5
    """
    _check_three(x, train, held_out)
    pool = np.concatenate([np.asarray(train), np.asarray(held_out)])
    indices, tied = _all_nearest(x, pool)
    counts = np.zeros(len(pool))
    np.add.at(counts, indices, tied / tied.sum(1, keepdims=True))
    n, size = len(indices), len(np.asarray(train))
    share = size / len(pool)
    deviation = math.sqrt((len(pool) - size) * share * counts.var(ddof=1)) / n
    return NullComparison(float(counts[:size].sum()) / n, share, deviation)


def _all_nearest(x, reference):
    """Neighbours (n, k), among them all the nearest ones, and which those are."""
    k = 2
    while True:
        k = min(k, len(reference))
        indices, distances = map(np.asarray, nearest_neighbours(x, reference, k))
        tied = distances == distances[:, :1]
        if k == len(reference) or not tied[:, -1].any():
            return indices, tied
        # Rare, but for data of few levels, whose examples repeat.
        k *= 4


def _check_three(x, train, held_out):
    two_sets(x, train, "train", minimum=1)
    two_sets(x, held_out, "held_out", minimum=1)


def data_copying(x: ArrayLike, train: ArrayLike, held_out: ArrayLike) -> NullComparison:
    """Probability that a sample is nearer to the training set than held-out data.

        P(d(x, train) < d(held_out, train)) + ½ P(equal)

    Here d is the distance to the nearest training example. It is the statistic
    of Mann & Whitney, which Meehan et al. 2020 apply to data copying, over the
    whole space as one cell. Their Z_U is the z-score with the other sign.

    For n fresh draws and H held-out examples, given the training set, all
    distances are independent and of one distribution. Then the mean is ½ and
    the variance (n + H + 1)/(12 n H), exactly where no distances are equal.

    Above ½ the samples are nearer than held-out data: copies. Below ½ they are
    farther: a poor or a broad model. The two can cancel, which `nearest_share`
    does not suffer from.

    Args:
      x: Samples (n, …), n ≥ 1.
      train: Training examples (T, …), T ≥ 1.
      held_out: Held-out examples (H, …), H ≥ 1.

    Returns:
      The probability beside its null distribution.

    Raises:
      ValueError: As all distances.

    Example:
      >>> x = np.array([[0.1], [0.9], [2.2]])
      >>> dj.metrics.data_copying(x, [[0.0], [1.0]], [[2.0], [3.0]]).value
      0.8333333333333334
    """
    _check_three(x, train, held_out)
    both = np.concatenate([np.asarray(x), np.asarray(held_out)])
    distances = np.asarray(nearest_neighbours(both, train)[1])[:, 0]
    n, held = np.shape(x)[0], np.shape(held_out)[0]
    ours, theirs = distances[:n], np.sort(distances[n:])
    farther = held - np.searchsorted(theirs, ours, "right")
    equal = held - farther - np.searchsorted(theirs, ours, "left")
    value = float(np.mean(farther + 0.5 * equal)) / held
    return NullComparison(value, 0.5, math.sqrt((n + held + 1) / (12 * n * held)))
