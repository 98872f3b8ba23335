"""Changes of training images, and their labels that condition the network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.training import augmentation
from experiments.shared.datasets import Dataset
from experiments.train.config import Config

DIGITS_LABELS = 6
"""Entries of the label of `warped`."""

ROTATION, SCALING, TRANSLATION, SHEAR = 0.15, 0.08, 0.5, 0.12
"""Standard deviations of the warps of digits: radians, logarithms of scales,
pixels, and the slope of a shear.
"""


def condition_dim(config: Config) -> int | None:
    """Entries of the label of the flags' augmentation, None where it has none."""
    return {"edm": augmentation.LABELS, "digits": DIGITS_LABELS}.get(config.augment)


def check(config: Config, data: Dataset) -> None:
    """Raise ValueError if the flags' augmentation does not fit the data."""
    if config.augment == "none":
        return
    if len(data.shape) != 3:
        raise ValueError(
            f"augment must be none for examples of shape {data.shape}, got "
            f"{config.augment!r}"
        )
    if config.augment == "digits" and data.levels is None:
        raise ValueError(
            f"augment must not be digits for {data.name}, which are not on a lattice"
        )


def make(config: Config, data: Dataset) -> Callable[..., Any] | None:
    """The augmentation that the flags select.

    Args:
      config: The flags, which fit the data.
      data: The data set.

    Returns:
      A function (key, image) -> (image, label or None) of one scaled image, or
        None for no changes.
    """
    p = config.augment_probability
    if config.augment == "flip":
        return lambda key, x: (augmentation.horizontal_flip(key, x)[0], None)
    if config.augment == "edm":
        return augmentation.NonLeaking(
            y_flip=p, scaling=p, rotation=p, anisotropy=p, translation=p
        )
    if config.augment == "digits":
        return lambda key, x: warped(key, x, p, data.levels)
    return None


def warped(
    key: jax.Array, x: jax.Array, probability: float, levels: Any
) -> tuple[jax.Array, jax.Array]:
    """A small affine map of an image on a lattice, rounded to the levels.

    Half of the maps turn the image too. Beyond its edges the image has the
    least level.

    Args:
      key: Of the map.
      x: (H, W, C), values among the levels.
      probability: Of a change.
      levels: (K,), equidistant.

    Returns:
      (image, label (6,)). The label holds the parameters over their standard
        deviations, and zeros for an unchanged image.
    """
    keys = jax.random.split(key, 3)
    changed, turned = jax.random.bernoulli(keys[0], jnp.array([probability, 0.5]))
    label = jax.random.normal(keys[1], (DIGITS_LABELS,))
    label = label.at[0].multiply(turned)
    angle, shear = ROTATION * label[0], SHEAR * label[5]
    c, s = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.array([[c, -s], [s, c]]) @ jnp.array([[1.0, shear], [0.0, 1.0]])
    matrix = matrix * jnp.exp(SCALING * label[1:3])
    sides = np.array(x.shape[:2])
    centre = ((sides - 1) / 2)[:, None, None]
    grid = np.indices(sides) - centre  # (2, H, W)
    source = jnp.einsum("ij,jhw->ihw", matrix, grid) + centre
    source = source + TRANSLATION * label[3:5, None, None]
    sample = lambda channel: jax.scipy.ndimage.map_coordinates(
        channel, list(source), order=1, cval=float(levels[0])
    )
    image = jax.vmap(sample, -1, -1)(x)  # (H, W, C)
    spacing = levels[1] - levels[0]
    index = jnp.round((image - levels[0]) / spacing).astype(int)
    image = jnp.asarray(levels)[jnp.clip(index, 0, len(levels) - 1)]
    return jnp.where(changed, image, x), jnp.where(changed, label, 0.0)
