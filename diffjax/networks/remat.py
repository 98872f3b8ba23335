"""Rematerialisation: blocks whose backward pass computes activations again."""

import functools
import inspect
from typing import Any

import jax
from flax import linen as nn

from .. import checks

__all__ = ["POLICIES", "policy", "rematerialised"]

POLICIES = ("none", "blocks", "dots")
"""Names of the policies, the values of `remat` beside True and False."""


def policy(name: str, value: Any) -> str:
    """The policy that a field states: one of `POLICIES`.

    Args:
      name: The field's name.
      value: Its value. True is "blocks", False is "none".

    Returns:
      The policy.

    Raises:
      ValueError: If it is neither.
    """
    if isinstance(value, bool):
        return "blocks" if value else "none"
    return checks.choice(name, value, POLICIES)


@functools.cache
def rematerialised(block: type[nn.Module], remat: str) -> Any:
    """A class of blocks under a policy of rematerialisation.

    The parameters of its modules have the same names and values. XLA may
    schedule the second computation early on CPU, where memory is then no
    smaller.

    Args:
      block: The class. An argument `train` of its call is static, and given by
        position.
      remat: "none" keeps all activations for the backward pass. "blocks" keeps
        the input of a block alone, and computes the block again. "dots" keeps
        the results of dense layers and convolutions too, so that only norms,
        activations and attention are computed again.

    Returns:
      A class, called as the first.
    """
    if remat == "none":
        return block
    kept = products_without_batch if remat == "dots" else None
    # `train` chooses the program. Position 0 is the module itself.
    names = list(inspect.signature(block.__call__).parameters)
    static = (names.index("train"),) if "train" in names else ()
    wrapped = nn.remat(block, policy=kept, static_argnums=static)
    # Flax names parameters by the class of their module.
    wrapped.__name__ = block.__name__
    return wrapped


def products_without_batch(primitive: Any, *arguments: Any, **settings: Any) -> Any:
    """The policy of `jax.checkpoint` that keeps dense layers and convolutions.

    Under `jax.vmap` the products of an attention have a batch axis, and those
    with parameters have none. Convolutions and the products of `Dense` are no
    products for JAX's policies.

    Args:
      primitive: The primitive whose result may be kept.
      *arguments: Its abstract arguments.
      **settings: Its settings.

    Returns:
      Whether its result is kept.
    """
    if primitive.name in ("conv_general_dilated", "product"):
        return True
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return dots(primitive, *arguments, **settings)
