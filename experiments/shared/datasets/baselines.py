"""Simple models of images on a lattice, and training images with replaced pixels."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .dataset import Dataset

MIXTURE_ENTRIES = 2**24
"""Most numbers that a mixture is fitted to."""


HISTOGRAM_COUNTS = 2**22
"""About as many counts are held at once."""


class Histograms(NamedTuple):
    """The score of independent histograms, see `histograms`.

    Attributes:
      bits: Test bits/dim.
      shared: Whether all entries share one histogram.
    """

    bits: float
    shared: bool

    @property
    def kind(self) -> str:
        """Which histograms they are, in words."""
        return "one shared by all entries" if self.shared else "one per entry"


def histogram_bits(data: Dataset) -> float:
    """Test bits/dim of `histograms`."""
    return histograms(data).bits


def histograms(data: Dataset) -> Histograms:
    """The score of a model in which all entries are independent.

    Each entry has a histogram of its own, or all share one. Few examples cannot
    fill a histogram of many levels per entry. Taken is the kind that codes the
    training entries in fewer bits, each by the counts without it.

        p(level) = (count + 1/K) / (number of entries counted + 1)

    Args:
      data: Data on a lattice of K levels.

    Returns:
      Bits/dim, and which kind was taken.
    """
    levels, dimension = len(data.levels), math.prod(data.shape)
    examples, tested = len(data.stored_train), len(data.stored_test)
    width = max(1, HISTOGRAM_COUNTS // levels)
    pooled, per_entry = np.zeros((2, levels)), np.zeros(2)
    for first in range(0, dimension, width):
        entries = slice(first, min(first + width, dimension))
        counts = [
            _level_counts(data, stored, entries)
            for stored in (data.stored_train, data.stored_test)
        ]
        per_entry += _bits_of_counts(*counts, examples)
        pooled += [part.sum(0) for part in counts]
    shared = _bits_of_counts(*pooled, examples * dimension)
    kinds = [(per_entry, False), (shared, True)]
    (_, bits), is_shared = min(kinds, key=lambda kind: kind[0][0])
    return Histograms(float(bits) / (tested * dimension), is_shared)


def _bits_of_counts(train, test, total):
    """Bits of all training entries, each by the counts without it, and bits of
    test entries by all counts.

    Counts have the levels on the last axis. `total` training entries make one
    histogram.
    """
    pseudo = 1 / train.shape[-1]
    left_out = train * np.log2((np.maximum(train - 1, 0) + pseudo) / total)
    tested = test * np.log2((train + pseudo) / (total + 1))
    return -np.array([left_out.sum(), tested.sum()])


def _level_counts(data, stored, entries):
    """Counts of the levels of some entries over all examples, (entries, K)."""
    levels = len(data.levels)
    shape = entries.stop - entries.start, levels
    counts = np.zeros(math.prod(shape), np.int64)
    for piece in data.loaded_pieces(stored):
        flat = piece.reshape(len(piece), -1)[:, entries]
        indices = np.rint((flat - data.levels[0]) / data.spacing).astype(np.int64)
        indices += levels * np.arange(shape[0])
        counts += np.bincount(indices.ravel(), minlength=counts.size)
    return counts.reshape(shape)


def gaussian_mixture_bits(data: Dataset, components: int = 30, seed: int = 0) -> float:
    """Test bits/dim of a mixture of diagonal Gaussians.

    scikit-learn's EM fits it to uniformly dequantised data. Of large training
    sets it takes every n-th example, of about `MIXTURE_ENTRIES` numbers in all.

    Args:
      data: Data on a lattice.
      components: Number of Gaussians, at most a quarter of the training
        examples.
      seed: Seed of the dequantisation and of the fit.

    Returns:
      The mean over the test examples.
    """
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(seed)
    count = len(data.stored_train)
    stride = -(-count * math.prod(data.shape) // MIXTURE_ENTRIES)
    train = data.loaded(data.stored_train, np.arange(0, count, stride))
    noisy = [
        x.reshape(len(x), -1)
        + data.spacing * rng.uniform(-0.5, 0.5, (len(x), x[0].size))
        for x in (train, data.test)
    ]
    components = max(1, min(components, len(noisy[0]) // 4))
    model = GaussianMixture(
        components, covariance_type="diag", reg_covar=1e-4, random_state=seed
    ).fit(noisy[0])
    log_prob = model.score_samples(noisy[1]).mean()
    return float(-(log_prob / noisy[1].shape[1] + np.log(data.spacing)) / np.log(2))


def with_replaced(key: jax.Array, x: jax.Array, share: float, levels: Any) -> jax.Array:
    """Replace each entry, with some probability, by a level drawn uniformly.

    Args:
      key: Of the draws.
      x: Examples on a lattice, of any shape.
      share: The probability.
      levels: (K,), the levels.

    Returns:
      An array of the shape of x.
    """
    key_where, key_level = jax.random.split(key)
    drawn = jax.random.choice(key_level, jnp.asarray(levels), x.shape)
    return jnp.where(jax.random.bernoulli(key_where, share, x.shape), drawn, x)
