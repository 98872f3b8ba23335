"""The features in which images are compared: pixels, or a network's."""

import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.interop import dinov2, inception
from experiments.shared.datasets import Dataset
from experiments.shared.mapping import map_examples

FeaturesName = Literal["pixels", "inception", "dinov2"]
NETWORKS: dict[str, Callable[[pathlib.Path], Any]] = {
    "inception": inception.load,
    "dinov2": dinov2.load,
}
"""Loader of the extractor (images of [−1, 1]) -> (B, features), by name."""


def extractor(name: FeaturesName, weights: pathlib.Path | None, data: Dataset) -> Any:
    """Load a feature extractor.

    Args:
      name: Of the features.
      weights: The file of a network's weights.
      data: The data set.

    Returns:
      A callable pytree, scaled examples (B, *shape) -> features (B, D).

    Raises:
      ValueError: If weights are missing or not wanted, need a library that is
        not there, or hold another network, or if the data are no images.
    """
    if name == "pixels":
        if weights is not None:
            raise ValueError(f"weights must be left out for pixels, got {weights}")
        return jax.tree_util.Partial(_flattened)
    if weights is None:
        raise ValueError(f"weights must name the file of weights of {name}")
    if not data.is_image:
        raise ValueError(
            f"features must be pixels, as examples of shape {data.shape} are no images"
        )
    try:
        network = NETWORKS[name](weights)
    except ModuleNotFoundError as error:  # the message says how to do without
        raise ValueError(f"weights cannot be read: {error}") from None
    return jax.tree_util.Partial(_of_images, network, data.limits)


def _flattened(x):
    return x.reshape(len(x), -1)


def _of_images(network, limits, x):
    low, high = limits
    return network(jnp.clip(2 * (x - low) / (high - low) - 1, -1, 1))


def features_of(
    extract: Any, x: Any, *, scale: Callable, chunk: int, label: str
) -> np.ndarray:
    """The features of many examples.

    Args:
      extract: As `extractor` returns it.
      x: Examples (N, *shape), scaled or stored.
      scale: Map of x to scaled examples, such as `data.scaled`.
      chunk: Examples at a time, on all devices together.
      label: Text before the progress bar.

    Returns:
      (N, D), in float32.

    Raises:
      FloatingPointError: If a feature is not finite.
    """
    values = map_examples(
        lambda extract, batch: extract(scale(batch)).astype(jnp.float32),
        extract,
        (x,),
        chunk=chunk,
        label=label,
        batched=True,
    )
    bad = int(np.sum(~np.isfinite(values).all(1)))
    if bad:
        raise FloatingPointError(f"{bad} of {len(values)} {label} are not finite")
    return values
