"""Simple models of images on a lattice, and training images with replaced pixels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .dataset import Dataset


def histogram_bits(data: Dataset) -> float:
    """Test bits/dim of independent histograms, one per entry.

    One pseudo-count is spread over the levels.
    """
    train, test = _level_indices(data, data.train), _level_indices(data, data.test)
    count = len(data.levels)
    one_hot = np.eye(count)[train].sum(0)  # (D, K)
    probabilities = (one_hot + 1 / count) / (len(train) + 1)
    chosen = np.take_along_axis(probabilities[None], test[..., None], -1)
    return float(-np.log2(chosen).mean())


def gaussian_mixture_bits(data: Dataset, components: int = 30, seed: int = 0) -> float:
    """Test bits/dim of a mixture of diagonal Gaussians.

    scikit-learn's EM fits it to uniformly dequantised data.

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
    noisy = [
        x.reshape(len(x), -1)
        + data.spacing * rng.uniform(-0.5, 0.5, (len(x), x[0].size))
        for x in (data.train, data.test)
    ]
    components = max(1, min(components, len(data.train) // 4))
    model = GaussianMixture(
        components, covariance_type="diag", reg_covar=1e-4, random_state=seed
    ).fit(noisy[0])
    log_prob = model.score_samples(noisy[1]).mean()
    return float(-(log_prob / noisy[1].shape[1] + np.log(data.spacing)) / np.log(2))


def _level_indices(data, x):
    return np.rint((x.reshape(len(x), -1) - data.levels[0]) / data.spacing).astype(int)


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
