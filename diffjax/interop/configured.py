"""Networks that follow from a configuration, and models that carry one as JSON."""

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array, pytree, static_field
from . import options, state_dicts
from .options import Option, Rule

__all__ = ["Architecture", "Configured", "ConfiguredModel", "configured", "slots"]


class Architecture(NamedTuple):
    """A class of networks.

    Attributes:
      name: Its name in configurations.
      options: The supported options by key.
      rules: Relations between them, checked in order after the options.
      make: The network of checked options, options -> Linen module.
      inputs: Shapes of one example's inputs at a small size, by name and in
        their order, options -> dict of `jax.ShapeDtypeStruct`.
      autoencoder: Whether the module has the methods `encode` and `decode`.
      buffers: Names of tensors that files may hold and that are ignored, because
        they follow from the options.
    """

    name: str
    options: Mapping[str, Option]
    rules: tuple[Rule, ...]
    make: Callable[[dict[str, Any]], Any]
    inputs: Callable[[dict[str, Any]], dict[str, jax.ShapeDtypeStruct]]
    autoencoder: bool = False
    buffers: tuple[str, ...] = ()


class Configured(NamedTuple):
    """A network with a checked configuration.

    Attributes:
      architecture: Its class.
      options: The value of each option.
      network: The Linen module.
      inputs: Shapes of one example's inputs at a small size, by name.
      params: Shapes of the parameters, a nested dict of `jax.ShapeDtypeStruct`.
    """

    architecture: Architecture
    options: dict[str, Any]
    network: Any
    inputs: dict[str, jax.ShapeDtypeStruct]
    params: dict[str, Any]

    def initialised(self, key: Array) -> Any:
        """Random parameters.

        Args:
          key: A typed key.

        Returns:
          A nested dict of arrays.

        Raises:
          TypeError: If `key` is no typed key.
        """
        checks.key("key", key)
        zeros = [jnp.zeros(value.shape, value.dtype) for value in self.inputs.values()]
        return jax.jit(self.network.init)(key, *zeros)["params"]


def slots(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jax.ShapeDtypeStruct]:
    """Float32 inputs by name, from their shapes."""
    return {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}


def configured(architecture: Architecture, stated: Mapping[str, Any]) -> Configured:
    """The network of a configuration.

    Args:
      architecture: Its class.
      stated: The options that the configuration states.

    Returns:
      The network, with its options and shapes.

    Raises:
      ValueError: If an option is unknown, has a value that is not supported, or a
        relation between options does not hold.
    """
    name = architecture.name
    values = options.read(stated, name, architecture.options, architecture.rules)
    network, inputs = architecture.make(values), architecture.inputs(values)
    try:
        params = state_dicts.shapes(network, tuple(inputs.values()))
    except ValueError as error:  # groups that do not divide channels, for example
        message = f"this configuration of {name} is not supported: {error}"
        raise ValueError(message) from error
    return Configured(architecture, values, network, inputs, params)


@pytree
class ConfiguredModel:
    """A network with its parameters and its configuration, of one example.

    Attributes:
      params: Parameters, a nested dict of arrays by the names of the layers in the
        code that trained them.
      config_json: The configuration as JSON, which can be hashed.
    """

    params: Any
    config_json: str = static_field()

    configure: ClassVar[Callable[[str], Configured]]
    """Configuration as JSON -> the network, which a subclass states."""

    @property
    def configured(self) -> Configured:
        """The network with its options and shapes."""
        return type(self).configure(self.config_json)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration."""
        return json.loads(self.config_json)

    @property
    def options(self) -> dict[str, Any]:
        """The value of each option, with the defaults of those not stated."""
        return dict(self.configured.options)

    @property
    def network(self) -> Any:
        """The Linen module."""
        return self.configured.network

    def apply(self, *inputs: Any, method: Any = None) -> Any:
        """The output of the network, or of a method of it.

        Args:
          *inputs: Its inputs. They are not checked.
          method: Name of the method. None for the network itself.

        Returns:
          The output.
        """
        return self.network.apply({"params": self.params}, *inputs, method=method)
