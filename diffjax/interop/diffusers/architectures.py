"""The classes of networks that can be loaded, by their names in diffusers."""

import functools
import json
from typing import Any

from ... import checks
from . import autoencoder, dit, options, parameters, unet_2d, unet_2d_condition
from .options import Architecture

__all__ = [
    "ARCHITECTURES",
    "buffers",
    "checked",
    "inputs",
    "is_autoencoder",
    "network",
    "parameter_shapes",
]

ARCHITECTURES: dict[str, Architecture] = {
    module.ARCHITECTURE.name: module.ARCHITECTURE
    for module in (autoencoder, dit, unet_2d, unet_2d_condition)
}
"""By `_class_name`."""


def _architecture(config):
    name = config.get("_class_name")
    # What older files call this class.
    if name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        name = "DiTTransformer2DModel"
    known = ", ".join(ARCHITECTURES)
    message = f"_class_name must be one of {known}; got {name!r}"
    checks.require(name in tuple(ARCHITECTURES), message)  # a list has no hash
    return ARCHITECTURES[name]


# A model carries its configuration as JSON, which can be hashed.
@functools.lru_cache(maxsize=64)
def checked(config: str) -> dict[str, Any]:
    """The options of a configuration.

    Args:
      config: The configuration as JSON.

    Returns:
      The value of each option that its class has.

    Raises:
      ValueError: If the class or an option is not supported.
    """
    stated = json.loads(config)
    architecture = _architecture(stated)
    return options.read(
        stated, architecture.name, architecture.options, architecture.rules
    )


@functools.lru_cache(maxsize=64)
def network(config: str) -> Any:
    """The Linen module of a configuration as JSON."""
    return _architecture(json.loads(config)).make(checked(config))


@functools.lru_cache(maxsize=64)
def inputs(config: str) -> tuple[Any, ...]:
    """Shapes of one example's inputs, for a configuration as JSON."""
    return _architecture(json.loads(config)).inputs(checked(config))


def parameter_shapes(config: str) -> Any:
    """Shapes of the parameters, for a configuration as JSON."""
    module, examples = network(config), inputs(config)
    try:
        return parameters.shapes(module, examples)
    except ValueError as error:  # groups that do not divide channels, for example
        name = _architecture(json.loads(config)).name
        message = f"this configuration of {name} is not supported: {error}"
        raise ValueError(message) from error


def buffers(config: str) -> tuple[str, ...]:
    """Names of tensors that a file may hold and that are ignored."""
    return _architecture(json.loads(config)).buffers


def is_autoencoder(config: str) -> bool:
    """Whether the network of a configuration encodes and decodes."""
    return _architecture(json.loads(config)).autoencoder
