"""Defaults that follow from the size of the data: what a network predicts, its
shape, and how many examples are sampled and scored.
"""

import dataclasses
import math
from typing import Any

import jax

LEVELS_FEATURES = 64
"""Greatest number of features per position of a softmax over levels. The first
and the last layer of the default networks have 24 to 96.
"""

LEVELS_ENTRIES = 2**16
"""Greatest number of logits of an example: a quarter of a megabyte in float32."""

SAMPLED_ENTRIES = 2**18
"""Entries of all samples, or of all scored examples, by default."""

TOKENS = 256
"""Patches of an image for a transformer, at most, where its sides allow it."""


def levels_features(data: Any) -> int:
    """Numbers per position that a softmax over the levels reads and returns.

    Args:
      data: A `datasets.Dataset` on a lattice.

    Returns:
      Levels times channels for images (H, W, C), the levels for vectors.
    """
    channels = data.shape[-1] if len(data.shape) == 3 else 1
    return len(data.levels) * channels


def default_prediction(data: Any) -> str:
    """The prediction of a network unless a flag says otherwise.

    A softmax over the levels is the best head of few levels: it knows the
    lattice. But it multiplies the network's channels by their number. 17
    levels of a grey image are 17 channels, 256 levels of a colour image are
    768. Then EDM's preconditioning is taken (Karras et al. 2022), whose
    network has the channels of the image. To it 256 levels are a continuum.

    Args:
      data: A `datasets.Dataset`.

    Returns:
      "levels" for lattice data of at most `LEVELS_FEATURES` per position and
        `LEVELS_ENTRIES` in all, else "edm".
    """
    if data.levels is None:
        return "edm"
    entries = len(data.levels) * math.prod(data.shape)
    few = levels_features(data) <= LEVELS_FEATURES and entries <= LEVELS_ENTRIES
    return "levels" if few else "edm"


def prediction(name: str, data: Any) -> str:
    """The prediction that a flag selects.

    Args:
      name: "auto" for `default_prediction`, or a prediction.
      data: A `datasets.Dataset`.

    Returns:
      The prediction.

    Raises:
      ValueError: If it is "levels" and the data lie on no lattice.
    """
    if name == "levels" and data.levels is None:
        raise ValueError(
            f"prediction 'levels' needs data on a lattice, {data.name} is not; use "
            "edm, v, noise, …"
        )
    return default_prediction(data) if name == "auto" else name


def with_sizes(config: Any, data: Any) -> Any:
    """The flags with the numbers that follow from the size of the data.

    Args:
      config: Flags with `samples`, `likelihood_examples`, `likelihood_error` and
        `chunk`.
      data: A `datasets.Dataset`.

    Returns:
      Flags without None for `samples`, `likelihood_examples` and `chunk`. All
      test examples may be scored where a precision is stated.
    """
    count = len(data.stored_test)
    to_a_precision = config.likelihood_error is not None
    defaults = {
        "samples": sample_count(data.shape),
        "likelihood_examples": count
        if to_a_precision
        else scored_count(data.shape, count),
        "chunk": chunk_size(data.shape),
    }
    missing = {
        name: value for name, value in defaults.items() if getattr(config, name) is None
    }
    return dataclasses.replace(config, **missing)


def levels_cost(data: Any, batch_size: int) -> str:
    """The cost of a softmax over many levels, as a warning.

    Args:
      data: A `datasets.Dataset` on a lattice.
      batch_size: Examples per training step.

    Returns:
      One line with the channels and the memory of a step.
    """
    # Evidence, features, logits and softmax, and the gradients of these.
    arrays = 8
    size = 4 * arrays * batch_size * len(data.levels) * math.prod(data.shape)
    return (
        f"warning: prediction levels makes the network read and return "
        f"{levels_features(data)} features per position, and holds about "
        f"{size / 1e9:.2g} GB per step of {batch_size} examples beside the network's "
        f"activations; the default for these data is {default_prediction(data)}"
    )


def check_images(network: str, data: Any) -> None:
    """Raise ValueError unless a data set has the images that a network needs.

    Args:
      network: Name of the network.
      data: A `datasets.Dataset`.
    """
    if len(data.shape) != 3:
        raise ValueError(
            f"network {network!r} needs images (H, W, C), {data.name} has examples of "
            f"shape {data.shape}; use mlp"
        )


def network_fields(network: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Default fields of a network that follow from the shape of an example.

    A U-Net halves the sides until they are at most 8, and has attention there
    only: at 64 positions attention costs less than a convolution, at 1024 most
    of the step. Above 16 pixels a side it has half the features.

    Args:
      network: "unet", "dit" or "mlp".
      shape: Of an example.

    Returns:
      Fields by name, among them "width".
    """
    if network == "unet":
        sides, multipliers = shape[:2], [1, 2]
        while _halves(sides, 2 ** len(multipliers)) and (
            min(sides) > 8 * 2 ** (len(multipliers) - 1)
        ):
            multipliers.append(4)
        return {
            "width": 48 if max(sides) <= 16 else 24,
            "multipliers": tuple(multipliers),
            "attention_resolutions": (len(multipliers) - 1,),
        }
    if network == "dit":
        patch = 2
        while _halves(shape[:2], 2 * patch) and (
            math.prod(shape[:2]) > TOKENS * patch**2
        ):
            patch *= 2
        return {"width": 96, "patch": patch}
    return {"width": 256}


def _halves(sides, factor):
    return all(side % factor == 0 for side in sides)


def sample_count(shape: tuple[int, ...], most: int = 447) -> int:
    """Number of samples to draw by default.

    Args:
      shape: Of an example.
      most: Number of small samples.

    Returns:
      As many as have `SAMPLED_ENTRIES`, from 16 to `most`.
    """
    return min(most, max(16, SAMPLED_ENTRIES // math.prod(shape)))


def scored_count(shape: tuple[int, ...], examples: int) -> int:
    """Number of test examples to score by default.

    Args:
      shape: Of an example.
      examples: Number of test examples.

    Returns:
      As many as have `SAMPLED_ENTRIES`, at least 32, at most all.
    """
    return min(examples, max(32, SAMPLED_ENTRIES // math.prod(shape)))


def chunk_size(shape: tuple[int, ...]) -> int:
    """Number of examples to sample or score at a time by default.

    No result depends on it. Processors gain nothing from many examples, and
    few let the progress bar move every few seconds. Accelerators need many.

    Args:
      shape: Of an example.

    Returns:
      As many as have 2^13 entries on a processor, at most 64, and 2^20 on an
        accelerator, at most 1024.
    """
    on_cpu = jax.default_backend() == "cpu"
    entries, most = (2**13, 64) if on_cpu else (2**20, 1024)
    return min(most, max(1, entries // math.prod(shape)))
