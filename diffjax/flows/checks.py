"""Argument errors of flows, beside those of `diffjax.checks`.

Each names the argument, the value received and what is accepted.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype

__all__ = [
    "METHODS",
    "check_bijector",
    "check_bijectors",
    "check_broadcast",
    "check_channels",
    "check_condition",
    "check_even_channels",
    "check_examples",
    "check_floor",
    "check_image",
    "check_initialisable",
    "check_inside",
    "check_latent_shapes",
    "check_latents",
    "check_order",
    "check_parameters",
    "check_spline",
    "check_spline_bounds",
    "check_squeezed",
    "check_stackable",
]

METHODS = ("forward", "inverse", "forward_and_log_det", "inverse_and_log_det")
"""The methods of a bijector."""


def check_bijector(name: str, value: Any) -> Any:
    """The value if it has the four methods of a bijector.

    Args:
      name: The argument's name, for the message.
      value: The argument.

    Raises:
      TypeError: If a method is missing, or the value is a class.
    """
    missing = [
        method for method in METHODS if not callable(getattr(value, method, None))
    ]
    if missing or isinstance(value, type):
        raise TypeError(
            f"{name} must be a bijector, with {', '.join(METHODS)}; got {value!r}"
        )
    return value


def check_bijectors(name: str, values: Iterable) -> tuple:
    """The values as a tuple if all are bijectors.

    Args:
      name: The argument's name, for the message.
      values: The argument.

    Raises:
      TypeError: If one of them is no bijector.
    """
    return tuple(
        check_bijector(f"{name}[{i}]", value) for i, value in enumerate(values)
    )


def check_stackable(name: str, values: Iterable) -> tuple:
    """The values as a tuple if they are bijectors of one structure with parameters.

    Args:
      name: The argument's name, for the message.
      values: The argument.

    Raises:
      TypeError: If one of them is no bijector.
      ValueError: If there are none, or they differ, or they have no parameters.
    """

    def kinds(bijector):
        return [
            (jnp.shape(leaf), jnp.result_type(leaf))
            for leaf in jax.tree.leaves(bijector)
        ]

    values = check_bijectors(name, values)
    if not values:
        raise ValueError(f"{name} must hold at least one layer, got none")
    first, *others = values
    if not kinds(first):
        raise ValueError(
            f"{name} must have parameters to be stacked; chain those without, such as "
            f"{first!r}"
        )
    for i, value in enumerate(others, 1):
        if jax.tree.structure(value) != jax.tree.structure(first):
            raise ValueError(
                f"{name}[{i}] must have the structure of {name}[0], or be chained; "
                f"got {value!r}"
            )
        if kinds(value) != kinds(first):
            raise ValueError(
                f"{name}[{i}] must have leaves like {name}[0], {kinds(first)}; "
                f"got {kinds(value)}"
            )
    return values


def check_initialisable(name: str, value: Any) -> Any:
    """The value if it is a bijector or a flow.

    Args:
      name: The argument's name, for the message.
      value: The argument.

    Raises:
      TypeError: If it is something else, or a class.
    """
    methods = [getattr(value, method, None) for method in ("initialised", "inverse")]
    if isinstance(value, type) or not any(map(callable, methods)):
        raise TypeError(f"{name} must be a bijector or a flow, got {value!r}")
    return value


def check_examples(name: str, value: Any) -> Any:
    """The value as a finite array (N, ...) of two examples or more.

    Args:
      name: The argument's name, for the message.
      value: The argument.

    Raises:
      ValueError: If there are fewer, or it has NaN or infinity.
    """
    value = checks.real_array(name, value)
    if value.ndim == 0 or value.shape[0] < 2:
        raise ValueError(
            f"{name} must have shape (N, ...) with N at least 2, got {value.shape}"
        )
    checks.finite(name, value)
    return value


def check_latents(name: str, latents: Any) -> None:
    """Raise ValueError for latents of a batch outside the image of a bijector.

    Args:
      name: The batch's name, for the message.
      latents: A pytree of arrays.
    """
    if not checks.is_traced(latents) and not all(
        np.all(np.isfinite(part)) for part in jax.tree.leaves(latents)
    ):
        raise ValueError(
            f"{name} must lie inside the image of the bijector, got examples without a "
            "latent"
        )


def check_channels(name: str, x: Any, channels: int) -> None:
    """Raise ValueError unless the last axis has the length `channels`.

    Args:
      name: The argument's name, for the message.
      x: An array.
      channels: Length of the last axis.
    """
    if jnp.shape(x)[-1:] != (channels,):
        raise ValueError(
            f"{name} must have {channels} channels on its last axis, "
            f"got shape {jnp.shape(x)}"
        )


def check_even_channels(x: Any) -> None:
    """Raise ValueError unless the last axis has an even length."""
    if jnp.ndim(x) == 0 or jnp.shape(x)[-1] % 2:
        raise ValueError(
            "a split needs an even number of channels on the last axis, "
            f"got shape {jnp.shape(x)}"
        )


def check_image(name: str, shape: tuple, symbol: str = "1", divisor: int = 1) -> None:
    """Raise ValueError unless a shape is that of an image with divisible sides.

    Args:
      name: The argument's name, for the message.
      shape: A shape, which should be (H, W, C).
      symbol: Name of the divisor, for the message.
      divisor: What should divide both sides.
    """
    if len(shape) != 3 or shape[0] % divisor or shape[1] % divisor:
        sides = f" with sides divisible by {symbol}={divisor}" if divisor > 1 else ""
        raise ValueError(f"{name} must be (H, W, C){sides}, got {shape}")


def check_squeezed(name: str, shape: tuple, factor: int) -> None:
    """Raise ValueError unless a shape is that of a squeezed image.

    Args:
      name: The argument's name, for the message.
      shape: A shape, which should be (H, W, f² C).
      factor: f, the side of the blocks.
    """
    check_image(name, shape)
    if shape[2] % factor**2:
        raise ValueError(
            f"{name} must have channels divisible by factor²={factor**2}, "
            f"got shape {shape}"
        )


def check_latent_shapes(latents: Any, shapes: tuple) -> None:
    """Raise ValueError unless latents are a tuple of arrays of given shapes.

    Args:
      latents: The argument.
      shapes: One shape per scale.
    """
    several = isinstance(latents, tuple | list)
    actual: Any = tuple(map(jnp.shape, latents)) if several else jnp.shape(latents)
    if actual != shapes:
        raise ValueError(
            f"latents must be a tuple of arrays of shapes {shapes}, got {actual}"
        )


def check_inside(name: str, y: Any, lower: float, upper: float) -> None:
    """Raise ValueError for concrete values outside an open interval.

    NaN lies outside an interval that has a bound.

    Args:
      name: The argument's name, for the message.
      y: An array. Traced values are not inspected.
      lower, upper: Ends of the interval that a bijector reaches.
    """
    if checks.is_traced(y) or (lower, upper) == (-math.inf, math.inf):
        return
    outside = ~((np.asarray(y) > lower) & (np.asarray(y) < upper))
    if np.any(outside):
        raise ValueError(
            f"{name} must lie in ({lower}, {upper}) to have an inverse, "
            f"got {np.asarray(y)[outside][0]}"
        )


def check_broadcast(name: str, shape: tuple, target: tuple) -> None:
    """Raise ValueError unless one shape broadcasts to another.

    Args:
      name: The parameter's name, for the message.
      shape: Shape of the parameter.
      target: Shape of the example.
    """
    try:
        fits = np.broadcast_shapes(shape, target) == tuple(target)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} of shape {shape} must be broadcastable to the example's shape, "
            f"got {target}"
        )


def check_order(name: str, value: Any) -> tuple[int, ...]:
    """The value as a tuple of the integers 0 … C − 1, each once.

    Args:
      name: The argument's name, for the message.
      value: The argument.

    Raises:
      TypeError: If it is no sequence of integers, or is traced.
      ValueError: If it is no permutation.
    """
    if checks.is_traced(value):
        raise TypeError(
            f"{name} must be concrete, since it is static; make the permutation "
            "outside jit, got a tracer"
        )
    try:
        array = np.asarray(value)
    except ValueError:  # rows of several lengths
        array = np.asarray(None)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise TypeError(f"{name} must be a sequence of integers, got {value!r}")
    indices = tuple(array.tolist())
    if not indices or sorted(indices) != list(range(len(indices))):
        raise ValueError(
            f"{name} must be a permutation of 0 … {max(len(indices) - 1, 0)}, "
            f"got {indices}"
        )
    return indices


def check_floor(name: str, value: Any) -> float:
    """The value as a float between 0 and 1, both excluded.

    Args:
      name: The argument's name, for the message.
      value: The argument.

    Raises:
      ValueError: If it lies outside.
    """
    value = float(checks.positive(name, value))
    if value >= 1:
        raise ValueError(f"{name} must be less than 1, got {value}")
    return value


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
    rows = []
    for row_name, row in zip(names, knots, strict=True):
        row = checks.finite_array(row_name, row)
        if row.ndim == 0 or row.shape[-1] < 2 or row.shape[:-1] not in ((), x.shape):
            raise ValueError(
                f"{row_name} must have shape (K + 1,) or {(*x.shape, 'K + 1')}, "
                f"got {row.shape}"
            )
        rows.append(row)
    if len({row.shape[-1] for row in rows}) > 1:
        raise ValueError(
            "x_knots, y_knots and slopes must be equally many, "
            f"got {[row.shape[-1] for row in rows]}"
        )
    for row_name, row in zip(names[:2], rows[:2], strict=True):
        if not checks.is_traced(row) and not np.all(
            np.diff(np.asarray(row), axis=-1) > 0
        ):
            raise ValueError(
                f"{row_name} must increase, got {np.asarray(row).tolist()}"
            )
    checks.all_positive("slopes", rows[2])
    return x, *rows


def check_spline_bounds(bins: int, floor: float, ceiling: float | None) -> None:
    """Raise ValueError unless the bounds of a spline fit its bins and the precision.

    Args:
      bins: Number of bins.
      floor: Least width, height and inner slope.
      ceiling: Greatest inner slope, or None.
    """
    rounding = float(jnp.finfo(float_dtype()).eps)
    if floor * bins >= 1:
        raise ValueError(f"floor must be less than 1/bins={1 / bins:g}, got {floor}")
    if floor < rounding:
        raise ValueError(
            f"floor must be at least the rounding {rounding:.2g}, got {floor}"
        )
    if ceiling is not None and not 1 < ceiling <= 1 / rounding:
        raise ValueError(
            f"ceiling must be above 1 and at most {1 / rounding:.2g}, got {ceiling}"
        )


def check_parameters(parameters: Any, shape: tuple, scalar_map: Any) -> Any:
    """The parameters if there are as many as the map needs.

    Args:
      parameters: What a conditioner returned.
      shape: Shape of the entries that move.
      scalar_map: Their map, with its number of parameters P.

    Raises:
      ValueError: If the shape is not (*shape, P).
    """
    wanted = (*shape, scalar_map.count)
    if jnp.shape(parameters) != wanted:
        raise ValueError(
            f"conditioner must return shape {wanted} for {scalar_map.name}, "
            f"got shape {jnp.shape(parameters)}"
        )
    return parameters


def check_condition(condition: Any, size: int) -> None:
    """Raise ValueError unless a condition has the number of entries expected.

    Args:
      condition: An array of any shape, or None.
      size: Number of its entries, 0 for None.
    """
    entries = 0 if condition is None else jnp.size(condition)
    if entries != size:
        raise ValueError(
            f"condition must have condition_size={size} entries, got {entries}"
        )
