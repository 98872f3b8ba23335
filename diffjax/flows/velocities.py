"""Velocities of continuous flows that are trained: a dense network of x, t and the
condition.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .. import checks
from ..numerics import float_dtype
from ..types import Array, Key

__all__ = ["VelocityNetwork", "neural_velocity"]

TIME_HARMONICS = 2
"""A velocity network sees sin πkt and cos πkt, k = 1 … 2, beside t.

A flow in unit time need not turn faster, and a solver would need more steps for it.
"""


class VelocityNetwork(nn.Module):
    """Dense velocity u(x, t, condition) for densities of a few dimensions.

    `depth` SiLU layers of `width` features see x, t and the condition
    together. The last layer is 0 at first. There is no normalisation, which
    would hide how far x lies out. For images take a network of
    `diffjax.networks`.

    Attributes:
      width: Features of each layer.
      depth: Number of layers before the last.
    """

    width: int = 128
    depth: int = 4

    @nn.compact
    def __call__(self, x: Array, t: Any, condition: Array | None = None) -> Array:
        """dx/dt.

        Args:
          x: One example of any shape.
          t: Time, shape ().
          condition: (C,) or None.

        Returns:
          The velocity, shape of x.
        """
        t = jnp.asarray(t, x.dtype)
        angles = np.pi * t * jnp.arange(1, TIME_HARMONICS + 1, dtype=t.dtype)
        parts = [x.reshape(-1), t[None], jnp.sin(angles), jnp.cos(angles)]
        if condition is not None:
            parts.append(condition)
        # (D + 1 + 2 TIME_HARMONICS + C,)
        h = jnp.concatenate(parts).astype(x.dtype)
        for _ in range(self.depth):
            h = nn.silu(nn.Dense(self.width, dtype=x.dtype)(h))  # (width,)
        last = nn.Dense(x.size, kernel_init=nn.initializers.zeros, dtype=x.dtype)
        return last(h).reshape(x.shape)


@functools.cache
def _network(width: int, depth: int) -> VelocityNetwork:
    # One object per size: velocities of one size share what was compiled for it.
    return VelocityNetwork(width, depth)


@checks.arguments(
    key=checks.key,
    shape=checks.shape,
    width=(checks.width, 1),
    depth=(checks.depth, 1),
    condition_dim=checks.optional(checks.width, 1),
)
def neural_velocity(
    key: Key,
    shape: tuple[int, ...],
    width: int = 128,
    depth: int = 4,
    *,
    condition_dim: int | None = None,
) -> jax.tree_util.Partial:
    """A `VelocityNetwork` with its parameters as leaves, 0 at first.

    Args:
      key: A typed key.
      shape: Of one example.
      width: Features of each layer.
      depth: Number of layers before the last.
      condition_dim: C, for a velocity (x, t, condition) with condition (C,).
        None for one (x, t).

    Returns:
      The velocity (x, t) -> dx/dt.

    Raises:
      TypeError: For a size that is no integer.
      ValueError: For a size below 1.

    Example:
      >>> velocity = dj.flows.neural_velocity(key, (2,), width=4, depth=1)
      >>> velocity(jnp.ones(2), 0.5).tolist()
      [0.0, 0.0]
    """
    dtype, module = float_dtype(), _network(width, depth)
    condition = () if condition_dim is None else (jnp.zeros((condition_dim,)),)
    # at any x and t: the parameters depend on their shapes alone
    params = jax.jit(module.init)(
        key, jnp.zeros(shape, dtype), jnp.zeros((), dtype), *condition
    )
    return jax.tree_util.Partial(module.apply, params)
