"""State dicts of torch modules as variables of Linen modules, and back.

A Linen module here carries the name of its counterpart. So the names on the path
to a parameter, joined by dots, are the tensor's name, but for the last part.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from .. import checks
from ..types import Array

__all__ = ["from_tensors", "parameter", "shapes", "tensor_shapes", "to_tensors"]

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
"""Last part of a parameter's name in Linen and in torch, where they differ."""

RENAMED = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
"""Names of attention's layers before diffusers 0.15, and today's."""


def _name(path):
    *modules, leaf = path
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


# Axes of a kernel in the order of torch, (O, I) or (O, I, kh, kw), from Linen's
# (I, O) or (kh, kw, I, O), and the reverse.
TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}
FROM_TORCH = {2: (1, 0), 4: (2, 3, 1, 0)}


def _ordered(leaf, array, axes):
    return array.transpose(axes[array.ndim]) if leaf == "kernel" else array


def shapes(network: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Shapes of a network's parameters, without their memory.

    Args:
      network: The network.
      inputs: Shapes of its inputs, `jax.ShapeDtypeStruct`s.

    Returns:
      A nested dict of `jax.ShapeDtypeStruct`, as `init` returns it under "params".
    """
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]


def tensor_shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of the state dict by name."""
    flat = traverse_util.flatten_dict(params)
    return {
        _name(path): _ordered(path[-1], np.broadcast_to(0, leaf.shape), TO_TORCH).shape
        for path, leaf in flat.items()
    }


@checks.arguments(dtype=checks.optional(checks.floating))
def from_tensors(
    tensors: Mapping[str, np.ndarray], like: Any, network: str, dtype: Any = None
) -> dict[str, Any]:
    """The parameters of a state dict.

    Args:
      tensors: The state dict, every tensor of the network and no other.
      like: The parameters' shapes, see `shapes`.
      network: What the network is called, for messages.
      dtype: The dtype of the parameters. None for float32, or float64 where it is
        stored and enabled in JAX.

    Returns:
      A nested dict of arrays.

    Raises:
      TypeError: If `dtype` is not a floating type.
      ValueError: If a tensor is missing, unknown, of another shape, or not of
        finite floating-point numbers.
    """
    expected = tensor_shapes(like)
    tensors = {_current(name, expected): value for name, value in tensors.items()}
    checks.state_dict(network, tensors, expected, exact=True)
    flat = traverse_util.flatten_dict(like)
    return traverse_util.unflatten_dict(
        {
            path: parameter(_ordered(path[-1], tensors[_name(path)], FROM_TORCH), dtype)
            for path in flat
        }
    )


def _current(name, expected):
    """Today's name of a tensor that may have an older one."""
    if name in expected:
        return name
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def parameter(array: np.ndarray, dtype: Any = None) -> Array:
    """A parameter of a network from the array of a file.

    Args:
      array: Floating-point numbers.
      dtype: The dtype of the parameter. None for float32, or float64 where it is
        stored and enabled in JAX.

    Returns:
      The parameter.
    """
    wide = np.promote_types(array.dtype, np.float32)
    return jnp.asarray(array.astype(dtype or wide))


def to_tensors(params: Any) -> dict[str, np.ndarray]:
    """The state dict of parameters.

    Args:
      params: A nested dict of arrays, as `from_tensors` returns it.

    Returns:
      Arrays by the names that torch modules give them.
    """
    flat = traverse_util.flatten_dict(params)
    return {
        _name(path): _ordered(path[-1], np.asarray(leaf), TO_TORCH)
        for path, leaf in flat.items()
    }
