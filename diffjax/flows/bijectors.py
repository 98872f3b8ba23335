"""The protocol of bijectors: invertible maps with their log-determinants.

A bijector is a frozen pytree that maps ONE example from the base to the data
by `forward(x)` and back by `inverse(y)`, or by `forward_and_log_det(x)` and
`inverse_and_log_det(y)`, each with an optional `condition`. Its leaves are its
parameters, floating-point arrays all of which may be trained. Shapes, masks
and permutations are static.

So `jax.grad` by a bijector, and `optax.apply_updates` to one, are all that
training needs.
"""

import functools
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..types import Array, ArrayLike, PyTree
from .checks import METHODS
from .compiled import call

__all__ = ["Bijector"]


def _one_program(method):
    """A method that compiles one program when it is called outside of others."""

    def apply(self, value, condition):
        if checks.is_traced(self, value, condition):
            return method(self, value, condition)
        return call(method, self, value, condition)

    # The argument keeps its name, since callers may pass it by keyword.
    if method.__name__.startswith("forward"):
        return functools.wraps(method)(
            lambda self, x, condition=None: apply(self, x, condition)
        )
    return functools.wraps(method)(
        lambda self, y, condition=None: apply(self, y, condition)
    )


class Bijector(Protocol):
    """An invertible map of one example, y = f(x, c) with an optional condition c.

    Classes that derive from this one state the two methods with
    log-determinants. The other two follow, under `jit` without the cost of the
    log-determinant. A method of such a class, called with concrete arrays,
    runs as one compiled program.

    A class whose parameters can be set by data also has `initialised`, see
    `composition.Initialised`.
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        for name in METHODS:
            method = cls.__dict__.get(name)
            if method is not None or cls.__bases__ == (Bijector,):
                setattr(cls, name, _one_program(method or getattr(cls, name)))

    def forward_and_log_det(
        self, x: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        """Map from the base to the data, with its log-determinant.

        Args:
          x: One example at the base.
          condition: One example of the condition, or None.

        Returns:
          (y, log|det ∂y/∂x|), the second of shape ().
        """
        ...

    def inverse_and_log_det(
        self, y: Array, condition: Any = None
    ) -> tuple[Array, Array]:
        """Map from the data to the base, with its log-determinant.

        No x maps to a y outside the image of f. There the log-determinant is
        −∞ and x is some finite point of the domain, so that a density by the
        change of variables is 0 and its gradient is finite.

        Args:
          y: One example of the data.
          condition: One example of the condition, or None.

        Returns:
          (x, log|det ∂x/∂y|), the second of shape ().
        """
        ...

    def forward(self, x: Array, condition: Any = None) -> Array:
        """y = f(x), from the base to the data.

        Args:
          x: One example at the base.
          condition: One example of the condition, or None.
        """
        return self.forward_and_log_det(x, condition)[0]

    def inverse(self, y: Array, condition: Any = None) -> Array:
        """x = f⁻¹(y), from the data to the base.

        Args:
          y: One example of the data.
          condition: One example of the condition, or None.

        Raises:
          ValueError: If y is concrete and lies outside the image of f. A
            traced y gives NaN there.
        """
        return self.inverse_and_log_det(y, condition)[0]


def promoted(x: ArrayLike, *parameters: PyTree) -> Array:
    """An example in the widest dtype of itself and the parameters, at least float32.

    The state of a loop over layers then keeps its dtype.

    Args:
      x: The example.
      *parameters: Pytrees of arrays.
    """
    leaves = jax.tree.leaves(parameters)
    return jnp.asarray(x, checks.promoted(checks.promoted(x, *leaves), jnp.float32))


def full(shape: tuple, value: float = 0.0) -> Array:
    """An array of one value, in the default floating-point dtype.

    Args:
      shape: Its shape.
      value: The value of all entries.
    """
    # Filled on the host, because jnp.asarray compiles a program per shape.
    return jax.device_put(np.full(shape, value, float_dtype()))


def moved_inside(y: Array, lower: float, upper: float) -> tuple[Array, Array]:
    """Replace entries outside an open interval by a point of it. NaN stays.

    Args:
      y: An array.
      lower, upper: Ends of the interval.

    Returns:
      (the array with entries replaced, which entries were outside).
    """
    if (lower, upper) == (-math.inf, math.inf):
        return y, jnp.zeros(jnp.shape(y), bool)
    if math.isfinite(lower) and math.isfinite(upper):
        inner = 0.5 * lower + 0.5 * upper
    else:
        inner = lower + 1 if math.isfinite(lower) else upper - 1
    outside = (y <= lower) | (y >= upper)
    return jnp.where(outside, inner, y), outside
