"""Functions whose results XLA keeps instead of computing them again."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from ..types import Array

__all__ = ["gelu", "residual_sum", "stored"]


def stored(function: Callable) -> Callable:
    """Decorator of a function whose results XLA stores on CPU.

    XLA fuses cheap operations into each of their readers. In the backward pass
    of a residual network, where a cotangent is a sum over all blocks that
    follow, every block then computes that sum again.

    XLA does not fuse across a call that is not inlined, nor across the calls of
    its derivatives. `jax.lax.optimization_barrier` does not help: XLA removes it
    before it fuses.

    The gradient of a U-Net of 6.5 M parameters, 16 × 32×32×3 on one core, takes
    1.53 s with stored norms and residual sums, and 2.6 s without. On other
    platforms the function is unchanged.

    Args:
      function: A function of arrays.

    Returns:
      The function, with all derivatives.
    """

    @jax.jit
    @functools.wraps(function)
    def compiled(*args: Any, **kwargs: Any) -> Any:
        # Without this, jitted functions inside `function` would become calls too.
        with set_xla_metadata(inlineable="true"):
            return function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jax.default_backend() != "cpu":
            return function(*args, **kwargs)
        with set_xla_metadata(inlineable="false"):
            return compiled(*args, **kwargs)

    return call


@stored
def residual_sum(h: Array, branch: Array, factor: float = 1.0) -> Array:
    """factor (h + branch), stored.

    Args:
      h: The input of a residual block.
      branch: The output of its branch, of the same shape.
      factor: Of the sum.

    Returns:
      The output of the block.

    Example:
      >>> h = dj.networks.stored.residual_sum(jnp.ones(3), jnp.ones(3), factor=0.5)
    """
    return (h + branch) * factor


@stored
@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(h: Array) -> Array:
    """`jax.nn.gelu`, stored. The backward pass reads h alone."""
    return jax.nn.gelu(h)
