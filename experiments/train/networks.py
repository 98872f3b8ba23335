"""The networks of `experiments.train` by name."""

import dataclasses
from typing import Any

import jax.numpy as jnp

import diffjax as dj
from diffjax import networks
from experiments.shared import sizes
from experiments.shared.datasets import Dataset
from experiments.train.config import Config

CLASSES = {
    "ddpmpp": networks.DDPMpp,
    "adm": networks.ADM,
    "edm2": networks.EDM2,
    "unet": networks.UNet,
    "dit": networks.DiT,
    "mlp": networks.MLP,
}
"""Networks without a published size, which flags give."""

FIELDS = (
    *("width", "depth", "multipliers", "attention_resolutions"),
    *("patch", "heads", "head_channels"),
)
"""Flags of the size. None leaves the network's default."""


def make(
    config: Config, data: Dataset, classes: int | None, condition_dim: int | None
) -> Any:
    """Make the network that the flags select.

    Args:
      config: The flags.
      data: The data set.
      classes: Number of class labels, None for a network without.
      condition_dim: Entries of the vector of its condition, None for none.

    Returns:
      A Linen module of one example.

    Raises:
      ValueError: If the network does not fit the data, or lacks a flag's field.
    """
    name, _, size = config.network.partition("_")
    if name != "mlp":
        sizes.check_images(config.network, data)
    fields: dict[str, Any] = {
        "dropout": config.dropout,
        "dtype": jnp.dtype(config.dtype),
        "num_classes": classes,
        "condition_dim": condition_dim,
    }
    if name != "mlp":
        fields["remat"] = config.remat
    fields |= _size(config, CLASSES[name])
    if name == "dit" and size:
        module = networks.dit(size.upper().replace("_", "/"), **fields)
    elif name == "edm2" and size:
        module = networks.edm2(size.upper(), **fields)
    else:
        if name in ("unet", "dit", "mlp"):
            fields = sizes.network_fields(name, data.shape) | fields
        module = CLASSES[name](**fields)
    _check_sides(module, data)
    return module


def _check_sides(module, data):
    """Raise ValueError unless the sides of the images can be cut, or halved."""
    name = f"examples of {data.name}"
    if isinstance(module, networks.DiT):
        dj.checks.image(name, data.shape, "patch", module.patch)
    elif not isinstance(module, networks.MLP):
        halved = len(module.multipliers) - 1
        dj.checks.image(name, data.shape, "2^(multipliers − 1)", 2**halved)


def _size(config, network):
    """The fields that flags give. Raises ValueError for those it has not."""
    known, chosen = {field.name for field in dataclasses.fields(network)}, {}
    for flag in FIELDS:
        value = getattr(config, flag)
        # Blocks per resolution have the name of the depth.
        field = "blocks" if flag == "depth" and "blocks" in known else flag
        if value is not None and field not in known:
            raise ValueError(
                f"{flag} must be left out with network {config.network!r}, which has "
                f"none, got {value}"
            )
        if value is not None:
            chosen[field] = value
    return chosen
