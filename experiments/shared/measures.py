"""The numbers of a set of images against the training images."""

import functools
from typing import Any, NamedTuple

import numpy as np
from sklearn.decomposition import PCA

from diffjax import metrics

UNITS = {
    "frechet": "squared units of features",
    "frechet_slope": "squared units of features × images",
    "kernel": "squared MMD",
    "precision": "share of the images",
    "recall": "share of training images",
    "density": "no unit, 1 expected of the data",
    "coverage": "share of training images",
}
"""Units of `distances` by the first words of the names."""

COPYING_UNITS = {
    "value": "share or probability",
    "expected": "the same, of fresh draws",
    "deviation": "the same, of fresh draws",
    "z_score": "deviations",
}
"""Units of `memorisation`."""


class Reference(NamedTuple):
    """Features that sets are compared with.

    Attributes:
      features: (N, D), in random order.
      project: Features (n, D) to the coordinates of the Fréchet distance.
      moments: Moments of these coordinates of all N.
    """

    features: np.ndarray
    project: Any
    moments: metrics.Moments


def reference_of(features: np.ndarray, components: int | None, seed: int) -> Reference:
    """Prepare the features of the training images.

    Args:
      features: (N, D), in random order.
      components: Number of principal components that the Fréchet distance is
        measured on, None for all features.
      seed: Seed of their randomised search.

    Returns:
      The reference.
    """
    project = _unchanged
    if components is not None and components < features.shape[1]:
        few = features[:_FOR_COMPONENTS]
        components = min(components, len(few) - 1)
        project = PCA(components, random_state=seed).fit(few).transform
    return Reference(features, project, metrics.moments(project(features)))


PIXEL_COMPONENTS = 64
"""Principal components of pixels for the Fréchet distance, by default."""

_FOR_COMPONENTS = 5000
"""Most examples that principal components are computed from."""


def _unchanged(features):
    return features


def groups_of(features: np.ndarray, reference: Reference, count: int) -> list:
    """Moments of `count` groups of nearly equal size.

    Args:
      features: (n, D).
      reference: Has the projection of the features.
      count: Number of groups.

    Returns:
      `metrics.Moments` of each.
    """
    return [
        metrics.moments(part)
        for part in np.array_split(reference.project(features), count)
    ]


def distances(
    features: np.ndarray,
    reference: Reference,
    *,
    groups: int,
    pairs: int,
    k: int,
    seed: int = 0,
) -> tuple[dict[str, float], metrics.Extrapolation]:
    """All distances and scores of a set of features.

    Args:
      features: (n, D), of independent images.
      reference: What they are compared with.
      groups: Number of groups of the jackknife and the extrapolation.
      pairs: Most examples of either set whose pairs are visited.
      k: Neighbour that the balls of precision and recall reach.
      seed: Seed of the order in which the examples are taken.

    Returns:
      (numbers by name, the extrapolation of the Fréchet distance).
    """
    # Stored images may be sorted, by class or by place. Groups and the first
    # examples must be random ones.
    features = features[np.random.default_rng(seed).permutation(len(features))]
    parts = groups_of(features, reference, groups)
    whole = functools.reduce(metrics.Moments.merged, parts)
    jackknife = metrics.frechet_jackknife(parts, [reference.moments])
    line = metrics.frechet_extrapolated(parts, reference.moments)
    exact = reference.moments
    fixed = metrics.stated_moments(exact.mean, exact.covariance)
    x, y = features[:pairs], reference.features[:pairs]
    kernel = metrics.kernel_jackknife(x, y)
    precision, recall = metrics.precision_recall(x, y, k)
    density, coverage = metrics.density_coverage(x, y, k)
    numbers = {
        "images": len(features),
        "frechet": jackknife.plug_in,
        "frechet_corrected": jackknife.value,
        "frechet_standard_error": jackknife.standard_error,
        "frechet_extrapolated": line.value,
        "frechet_slope": line.slope,
        "frechet_gaussian_bias": metrics.frechet_bias(whole, fixed),
        "kernel": kernel.value,
        "kernel_standard_error": kernel.standard_error,
        "precision": float(precision),
        "recall": float(recall),
        "density": float(density),
        "coverage": float(coverage),
    }
    return numbers, line


def memorisation(
    features: np.ndarray, reference: Reference, held_out: np.ndarray
) -> dict[str, dict[str, float]]:
    """Both statistics of memorisation, beside their null distributions.

    Args:
      features: (n, D), of samples.
      reference: The training images.
      held_out: (H, D), of held-out images.

    Returns:
      Statistic, expected value, standard deviation and z-score by name.
    """
    rows = {
        "nearest_share": metrics.nearest_share(features, reference.features, held_out),
        "data_copying": metrics.data_copying(features, reference.features, held_out),
    }
    return {
        name: {**row._asdict(), "z_score": row.z_score} for name, row in rows.items()
    }
