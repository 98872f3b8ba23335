"""Argument errors of flows, beside those of `diffjax.checks`.

Each names the argument, the value received and what is accepted.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks
from ..numerics import float_dtype

__all__ = [
    "BIJECTOR",
    "METHODS",
    "NETWORK",
    "check_condition",
    "check_initialisable",
    "check_latent_shapes",
    "check_order",
    "check_parameters",
    "check_spline",
    "check_spline_bounds",
    "check_stackable",
]

METHODS = ("forward", "inverse", "forward_and_log_det", "inverse_and_log_det")
"""The methods of a bijector."""

BIJECTOR = (checks.has_methods, *(f"{name}(x)" for name in METHODS))
"""Rule of a bijector."""

NETWORK = {
    "key": checks.key,
    "width": (checks.width, 1),
    "condition_size": (checks.width, 0),
}
"""Rules of the arguments that all constructors of networks share."""


def check_stackable(name: str, values: Iterable) -> tuple:
    """The values as a tuple if they are bijectors of one structure with parameters.

    Args:
      name: The argument's name, for the message.
      values: The argument.

    Raises:
      TypeError: If one of them is no bijector.
      ValueError: If there are none, or they differ, or they have no parameters.
    """
    kind = lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf))
    values = checks.each(name, values, *BIJECTOR, least=1)
    kinds = [list(map(kind, jax.tree.leaves(value))) for value in values]
    forms = list(zip(kinds, map(jax.tree.structure, values), strict=True))
    message = f"{name} must have parameters to be stacked, or be chained; got none"
    checks.require(kinds[0], message)
    for i, form in enumerate(forms):
        if form != forms[0]:
            raise ValueError(
                f"{name}[{i}] must have the structure and leaves of {name}[0], "
                f"{kinds[0]}, or be chained; got {kinds[i]} of {values[i]!r}"
            )
    return values


def check_initialisable(name: str, value: Any) -> None:
    """Raise TypeError unless the value is a bijector or a flow.

    Args:
      name: The argument's name, for the message.
      value: The argument.
    """
    fits = hasattr(value, "initialised") or hasattr(value, "inverse")
    message = f"{name} must be a bijector or a flow, got {value!r}"
    checks.require(fits and not isinstance(value, type), message, TypeError)


def check_latent_shapes(latents: Any, shapes: tuple) -> None:
    """Raise ValueError unless latents are a tuple of arrays of given shapes.

    Args:
      latents: The argument.
      shapes: One shape per scale.
    """
    several = isinstance(latents, tuple | list)
    actual: Any = tuple(map(jnp.shape, latents)) if several else jnp.shape(latents)
    message = f"latents must be a tuple of arrays of shapes {shapes}, got {actual}"
    checks.require(actual == shapes, message)


def check_order(name: str, value: Any) -> tuple[int, ...]:
    """The value as a tuple of the integers 0 … C − 1, each once.

    Args:
      name: The argument's name, for the message.
      value: The argument.

    Raises:
      TypeError: If it is no sequence of integers, or is traced.
      ValueError: If it is no permutation.
    """
    checks.known(name, value, "(permute outside jit)")
    values = value.tolist() if hasattr(value, "tolist") else value
    indices = checks.integer_tuple(name, values, 0, None)
    wanted = list(range(max(len(indices), 1)))  # [0] where there are none
    message = f"{name} must be a permutation of 0 … {wanted[-1]}, got {indices}"
    checks.require(sorted(indices) == wanted, message)
    return indices


def check_spline(name: str, x: Any, *knots: Any) -> tuple:
    """The arguments of a spline as arrays.

    Args:
      name: Name of x, for the message.
      x: Where the spline is evaluated.
      *knots: x_knots, y_knots and slopes.

    Returns:
      (x, x_knots, y_knots, slopes).

    Raises:
      ValueError: If the shapes do not fit. For concrete values also if knots are out of
        order, slopes are not positive, or anything is NaN or infinite.
    """
    x = checks.finite_array(name, x)
    names = ("x_knots", "y_knots", "slopes")
    rows = list(map(checks.finite_array, names, knots))
    count = max([2, *(row.shape[-1] for row in rows if row.ndim)])
    shapes = dict.fromkeys([(count,), (*x.shape, count)])  # one for x of shape ()
    for row_name, row in zip(names, rows, strict=True):
        checks.one_of_shapes(row_name, row, shapes)
        (checks.all_positive if row is rows[2] else checks.increasing)(row_name, row)
    return x, *rows


def check_spline_bounds(bins: int, floor: float, ceiling: float | None) -> None:
    """Raise ValueError unless the bounds of a spline fit its bins and the precision.

    Args:
      bins: Number of bins.
      floor: Least width, height and inner slope.
      ceiling: Greatest inner slope, or None.
    """
    rounding = float(jnp.finfo(float_dtype()).eps)
    bounds = f"the rounding {rounding:.2g} and less than 1/bins={1 / bins:g}"
    message = f"floor must be at least {bounds}, got {floor}"
    checks.require(rounding <= floor < 1 / bins, message)
    message = f"ceiling must be above 1 and at most {1 / rounding:.2g}, got {ceiling}"
    checks.require(ceiling is None or 1 < ceiling <= 1 / rounding, message)


def check_parameters(parameters: Any, shape: tuple, scalar_map: Any) -> Any:
    """The parameters if there are as many as the map needs.

    Args:
      parameters: What a conditioner returned.
      shape: Shape of the entries that move.
      scalar_map: Their map, with its number of parameters P.

    Raises:
      ValueError: If the shape is not (*shape, P).
    """
    returned, wanted = jnp.shape(parameters), (*shape, scalar_map.count)
    message = f"conditioner must return shape {wanted} for {scalar_map.name}"
    checks.require(returned == wanted, f"{message}, got {returned}")
    return parameters


def check_condition(condition: Any, size: int) -> None:
    """Raise ValueError unless a condition has the number of entries expected.

    Args:
      condition: An array of any shape, or None.
      size: Number of its entries, 0 for None.
    """
    entries = 0 if condition is None else jnp.size(condition)
    message = f"condition must have condition_size={size} entries, got {entries}"
    checks.require(entries == size, message)
