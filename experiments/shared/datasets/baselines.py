"""Simple models of images on a lattice, and training images with replaced pixels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .dataset import Dataset

MIXTURE_ENTRIES = 2**24
"""Most numbers that a mixture is fitted to."""


def histogram_bits(data: Dataset) -> float:
    """Test bits/dim of independent histograms, one per entry.

    One pseudo-count is spread over the levels.
    """
    train, test = _level_indices(data, data.train), _level_indices(data, data.test)
    count, total = len(data.levels), 0.0
    # One entry at a time: counts of all of them would take D times K numbers.
    for of_train, of_test in zip(train.T, test.T, strict=True):
        counts = np.bincount(of_train, minlength=count) + 1 / count
        total += np.log2(counts / (len(train) + 1))[of_test].sum()
    return float(-total / test.size)


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
    stride = -(-data.train.size // MIXTURE_ENTRIES)
    noisy = [
        x.reshape(len(x), -1)
        + data.spacing * rng.uniform(-0.5, 0.5, (len(x), x[0].size))
        for x in (data.train[::stride], data.test)
    ]
    components = max(1, min(components, len(noisy[0]) // 4))
    model = GaussianMixture(
        components, covariance_type="diag", reg_covar=1e-4, random_state=seed
    ).fit(noisy[0])
    log_prob = model.score_samples(noisy[1]).mean()
    return float(-(log_prob / noisy[1].shape[1] + np.log(data.spacing)) / np.log(2))


def _level_indices(data, x):
    indices = np.rint((x.reshape(len(x), -1) - data.levels[0]) / data.spacing)
    return indices.astype(np.int32)


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
