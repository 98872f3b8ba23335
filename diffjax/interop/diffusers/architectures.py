"""The classes of networks that can be loaded, by their names in diffusers."""

import functools
import json

from ... import checks
from .. import configured as shared
from ..configured import Architecture, Configured
from . import autoencoder, dit, unet_2d, unet_2d_condition

__all__ = ["ARCHITECTURES", "configured"]

ARCHITECTURES: dict[str, Architecture] = {
    module.ARCHITECTURE.name: module.ARCHITECTURE
    for module in (autoencoder, dit, unet_2d, unet_2d_condition)
}
"""By `_class_name`."""


@functools.lru_cache(maxsize=64)
def configured(text: str) -> Configured:
    """The network of a configuration.

    Args:
      text: The configuration as JSON.

    Returns:
      The network, with its options and shapes.

    Raises:
      ValueError: If the class or an option is not supported.
    """
    config = json.loads(text)
    name = config.get("_class_name")
    # Older files have this name.
    if name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        name = "DiTTransformer2DModel"
    known = ", ".join(ARCHITECTURES)
    message = f"_class_name must be one of {known}; got {name!r}"
    checks.require(name in tuple(ARCHITECTURES), message)  # a list has no hash
    return shared.configured(ARCHITECTURES[name], config)
