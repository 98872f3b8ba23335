"""Checks of arguments, whose errors name the argument, the value and what is accepted.

A check takes the name of an argument and its value, and returns the value to
go on with. Traced arrays are checked by shape and dtype alone, since they have
no values yet.
"""

import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "all_greater",
    "all_non_negative",
    "all_positive",
    "all_within",
    "arguments",
    "arrays",
    "as_many",
    "axes",
    "batch",
    "below_infinity",
    "boolean",
    "callable_",
    "callables",
    "choice",
    "column",
    "concrete",
    "counter",
    "denoised",
    "denoiser",
    "depth",
    "divides",
    "even",
    "example_shaped",
    "finite",
    "finite_array",
    "finite_batch",
    "floating",
    "greater",
    "has_methods",
    "increasing",
    "index",
    "instance",
    "integer",
    "integer_tuple",
    "integers",
    "is_traced",
    "key",
    "leading_axis",
    "lengths",
    "made_by",
    "non_negative",
    "number",
    "one_of_shapes",
    "optional",
    "ordered",
    "positive",
    "positive_array",
    "probabilities",
    "promoted",
    "real_array",
    "require",
    "scalar_of",
    "shape",
    "width",
    "within",
]


def __dir__() -> list[str]:
    return __all__


P = ParamSpec("P")
R = TypeVar("R")


def arguments(**rules: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that checks the arguments of a function before it runs.

    Defaults that the caller leaves alone are not checked.

    Args:
      **rules: A check for each argument that needs one. It is a function
        (name, value) -> value, or a tuple of a function of more arguments and
        these: `eta=(checks.within, 0, 1)`. What it returns replaces the value,
        unless it is None.

    Returns:
      The decorator.

    Example:
      >>> @dj.checks.arguments(steps=(dj.checks.integer, 1))
      ... def halved(steps):
      ...     return steps // 2
      >>> halved(0)
      Traceback (most recent call last):
      ValueError: steps must be at least 1, got 0
    """

    def decorate(function):
        signature = inspect.signature(function)
        unknown = rules.keys() - signature.parameters.keys()
        require(not unknown, f"{function.__name__} has no arguments {unknown}")
        steps = [
            (name, *(rule if isinstance(rule, tuple) else (rule,)))
            for name, rule in rules.items()
        ]

        @functools.wraps(function)
        def checked(*args, **kwargs):
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # Python's message names the function
            for name, check, *more in steps:
                if name in bound.arguments:
                    value = check(name, bound.arguments[name], *more)
                    if value is not None:
                        bound.arguments[name] = value
            return function(*bound.args, **bound.kwargs)

        return checked

    return decorate


def optional(check: Callable[..., Any], *more: Any) -> Callable[[str, Any], Any]:
    """The same check, which also accepts None.

    Args:
      check: A check (name, value, *more) -> value.
      *more: Its further arguments.

    Returns:
      A check (name, value) -> value or None.
    """
    return lambda name, value: None if value is None else check(name, value, *more)


def require(condition: Any, message: str, error: type[Exception] = ValueError) -> None:
    """Raise an error unless a condition holds.

    It serves rules that concern several arguments. Most others have a check of
    their own.

    Args:
      condition: Anything with a truth value. A traced one has none yet, and
        passes.
      message: The message. It is formatted whether or not the condition holds,
        so it should not print large arrays.
      error: The type of the error.

    Raises:
      Exception: The error, if the condition is false.
    """
    if not isinstance(condition, jax.core.Tracer) and not condition:
        raise error(message)


def has_methods(name: str, value: Any, *signatures: str) -> Any:
    """The value, if it has the methods, for example "log_prob(x)" and "sample(key)".

    Args:
      name: The name of the argument, for the message.
      value: An object, not a class.
      *signatures: The names of the methods with their arguments.

    Returns:
      The value.

    Raises:
      TypeError: If it is a class, or one of the methods is missing.
    """
    names = [signature.partition("(")[0] for signature in signatures]
    if isinstance(value, type) or not all(
        callable(getattr(value, method, None)) for method in names
    ):
        raise TypeError(f"{name} must have {' and '.join(signatures)}, got {value!r}")
    return value


def is_traced(*values: Any) -> bool:
    """True if any leaf of the values is a tracer, which has no value yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def _shape(name: str, value: Any) -> tuple[int, ...]:
    try:
        return np.shape(value)
    except ValueError:  # a list of lists of several lengths
        message = f"{name} must be an array of real numbers, got {value!r}"
        raise TypeError(message) from None


def number(name: str, value: Any) -> Any:
    """A finite real scalar: a Python float where it is concrete and no JAX array.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The float, or the array of shape () itself.

    Raises:
      TypeError: If it is no real number.
      ValueError: If it is no scalar, or not finite.
    """
    if isinstance(value, bool | str) or value is None:
        raise TypeError(f"{name} must be a real number, got {value!r}")
    if _shape(name, value) != ():
        raise ValueError(f"{name} must be a scalar, got shape {np.shape(value)}")
    if is_traced(value):
        return value
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {value!r}") from None
    except OverflowError:
        raise ValueError(
            f"{name} must be finite in float64, got an integer of "
            f"{value.bit_length()} bits"
        ) from None
    if not np.isfinite(result):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return value if isinstance(value, jax.Array) else result


def concrete(name: str, value: Any) -> float:
    """A `number` as a Python float.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The float.

    Raises:
      TypeError: If it is traced.
    """
    if is_traced(value):
        raise TypeError(f"{name} must be a concrete number, got a traced one")
    return float(number(name, value))


def positive(name: str, value: Any) -> Any:
    """A `number` greater than 0.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The number.
    """
    value = number(name, value)
    if not is_traced(value) and not float(value) > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def non_negative(name: str, value: Any) -> Any:
    """A `number` of 0 or more.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The number.
    """
    value = number(name, value)
    if not is_traced(value) and not float(value) >= 0:
        raise ValueError(f"{name} must be 0 or more, got {value}")
    return value


def greater(name: str, value: Any, bound_name: str, bound: Any) -> None:
    """Raise ValueError unless a value is greater than another argument.

    Args:
      name, value: The name of the argument, for the message, and its value.
      bound_name, bound: The same of the other one.
    """
    if not is_traced(value, bound) and not float(value) > float(bound):
        raise ValueError(
            f"{name} must be greater than {bound_name}={bound}, got {value}"
        )


def within(name: str, value: Any, lower: float, upper: float) -> Any:
    """A `number` in [lower, upper].

    Args:
      name, value: The name of the argument, for messages, and its value.
      lower, upper: The least and the greatest number that are accepted.

    Returns:
      The number.
    """
    value = number(name, value)
    if not is_traced(value) and not lower <= float(value) <= upper:
        raise ValueError(f"{name} must lie in [{lower}, {upper}], got {value}")
    return value


LARGEST = 10**8
"""The greatest number of steps, points or samples: more run for hours."""

LARGEST_DEPTH = 1000
"""The greatest number of layers that are traced one by one."""

LARGEST_WIDTH = 2**16
"""The greatest side of a square matrix of parameters. It then takes 16 GiB."""

LARGEST_SIZE = 2**31
"""The greatest number of entries of one example."""


def integer(name: str, value: Any, minimum: int, maximum: int | None = LARGEST) -> int:
    """An integer as a Python int.

    Args:
      name: The name of the argument, for messages.
      value: An int or a NumPy integer.
      minimum: The least that is accepted.
      maximum: The greatest that is accepted. None for none, as for a seed.

    Returns:
      The int.

    Raises:
      TypeError: If it is no integer.
      ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        shown = repr(value) if len(repr(value)) < 200 else type(value).__name__
        raise TypeError(f"{name} must be an integer, got {shown}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be between {minimum} and {maximum}, got {value}")
    if value < minimum:
        accepted = (
            f"at least {minimum}"
            if maximum in (None, LARGEST)
            else f"between {minimum} and {maximum}"
        )
        raise ValueError(f"{name} must be {accepted}, got {value}")
    return int(value)


def depth(name: str, value: Any, minimum: int) -> int:
    """An `integer` of at most `LARGEST_DEPTH`, for what is traced layer by layer.

    Args:
      name, value: The name of the argument, for messages, and its value.
      minimum: The least that is accepted.

    Returns:
      The int.
    """
    return integer(name, value, minimum, LARGEST_DEPTH)


def width(name: str, value: Any, minimum: int) -> int:
    """An `integer` of at most `LARGEST_WIDTH`, for the side of a matrix of parameters.

    Args:
      name, value: The name of the argument, for messages, and its value.
      minimum: The least that is accepted.

    Returns:
      The int.
    """
    return integer(name, value, minimum, LARGEST_WIDTH)


def boolean(name: str, value: Any) -> bool:
    """True or False, as a Python bool.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The bool.

    Raises:
      TypeError: If it is anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: Any, options: Iterable[str]) -> str:
    """One of several strings.

    Args:
      name, value: The name of the argument, for messages, and its value.
      options: The strings that are accepted.

    Returns:
      The value.

    Raises:
      ValueError: If it is not one of them.
    """
    accepted = list(options)
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, accepted))}; got {value!r}"
        )
    return value


def shape(name: str, value: Any) -> tuple[int, ...]:
    """A shape as a tuple of positive Python ints. () is the shape of a scalar.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The tuple.

    Raises:
      TypeError: If it is no tuple or list of positive integers.
      ValueError: If it has more than `LARGEST_SIZE` entries.
    """
    if not isinstance(value, tuple | list) or not all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0
        for n in value
    ):
        raise TypeError(f"{name} must be a tuple of positive integers, got {value!r}")
    if math.prod(map(int, value)) > LARGEST_SIZE:
        raise ValueError(
            f"{name} must have at most {LARGEST_SIZE} entries, got {tuple(value)}"
        )
    return tuple(int(n) for n in value)


def lengths(name: str, value: Any) -> tuple[int, ...]:
    """A shape as a tuple of Python ints, whose axes may be empty.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The tuple.

    Raises:
      TypeError: If it is no tuple or list of integers.
      ValueError: If a length is negative, or there are more than
        `LARGEST_SIZE` entries.
    """
    entries = integer_tuple(name, value, 0, None)
    require(
        math.prod(entries) <= LARGEST_SIZE,
        f"{name} must have at most {LARGEST_SIZE} entries, got {value}",
    )
    return entries


def integer_tuple(
    name: str, value: Any, minimum: int, maximum: int | None, least: int = 0
) -> tuple[int, ...]:
    """A tuple of integers as Python ints.

    Args:
      name: The name of the argument, for messages.
      value: A tuple or list.
      minimum, maximum: The range of each entry, as in `integer`.
      least: The least number of entries, 0 or 1.

    Returns:
      The tuple.

    Raises:
      TypeError: If it is no tuple or list, or too short, or an entry is no
        integer.
    """
    if not isinstance(value, tuple | list) or len(value) < least:
        accepted = "one or more integers" if least else "integers"
        raise TypeError(f"{name} must be a tuple of {accepted}, got {value!r}")
    return tuple(
        integer(f"{name}[{i}]", n, minimum, maximum) for i, n in enumerate(value)
    )


def even(name: str, value: Any) -> int:
    """A positive even `width`.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The int.

    Raises:
      ValueError: If it is odd or out of range.
    """
    value = width(name, value, 2)
    require(value % 2 == 0, f"{name} must be even, got {value}")
    return value


def divides(name: str, value: int, whole_name: str, whole: int) -> None:
    """Raise ValueError unless one number divides another.

    Args:
      name, value: The name of the number that must divide, and the number.
      whole_name, whole: The same of the one to be divided.
    """
    require(whole % value == 0, f"{name} must divide {whole_name}={whole}, got {value}")


def ordered(lower_name: str, lower: Any, upper_name: str, upper: Any) -> None:
    """Raise ValueError unless 0 < lower < upper.

    Args:
      lower_name, lower: The name of the lower number, and the number.
      upper_name, upper: The same of the upper one.
    """
    positive(lower_name, lower)
    greater(upper_name, positive(upper_name, upper), lower_name, lower)


def floating(name: str, value: Any) -> np.dtype:
    """A floating-point dtype.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The dtype.

    Raises:
      TypeError: If it is another dtype.
    """
    dtype = jnp.dtype(value)
    require(
        jnp.issubdtype(dtype, jnp.floating),
        f"{name} must be a floating type, got {dtype}",
        TypeError,
    )
    return dtype


def counter(name: str, value: Any) -> Any:
    """An integer of shape () below 2³², which may be traced.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      A NumPy uint32, or the array of integers itself.

    Raises:
      TypeError: If it is no integer of shape ().
      ValueError: If it is out of range.
    """
    if isinstance(value, int | np.integer):
        return np.uint32(integer(name, value, 0, 2**32 - 1))
    if (
        not hasattr(value, "dtype")
        or value.shape != ()
        or not jnp.issubdtype(value.dtype, jnp.integer)
    ):
        raise TypeError(f"{name} must be an integer of shape (), got {value!r}")
    return value


def one_of_shapes(name: str, value: Any, shapes: Collection[tuple]) -> None:
    """Raise ValueError unless an array has one of several shapes.

    Args:
      name, value: The name of the argument, for messages, and its value.
      shapes: The shapes that are accepted.

    Raises:
      TypeError: If it holds no numbers.
    """
    if _shape(name, value) not in shapes:
        real_array(name, value)
        batch = np.shape(value)[1:] in shapes and 0 not in np.shape(value)
        hint = " (one example: use jax.vmap for a batch)" if batch else ""
        raise ValueError(
            f"{name} must have shape {' or '.join(map(str, shapes))}, "
            f"got {np.shape(value)}{hint}"
        )


def leading_axis(name: str, tree: Any, beside: str, count: int) -> None:
    """Raise ValueError unless all arrays of a pytree have one leading axis.

    Args:
      name: The name of the argument, for the message.
      tree: The argument, a pytree of arrays.
      beside: The name of the argument that shares the axis.
      count: The length of the axis.
    """
    for leaf in jax.tree.leaves(tree):
        if np.shape(leaf)[:1] != (count,):
            raise ValueError(
                f"{name} must have leading axis {count} as {beside}, "
                f"got shape {np.shape(leaf)}"
            )


def finite(name: str, value: Any) -> None:
    """Raise ValueError if a concrete array holds NaN or infinity.

    Args:
      name, value: The name of the argument, for messages, and its value.
    """
    if is_traced(value):
        return
    array = np.asarray(value)
    bad = int(np.size(array) - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ValueError(
            f"{name} must be finite, got {bad} NaN or infinite entries of "
            f"{np.size(array)}"
        )


def finite_array(name: str, value: Any) -> Any:
    """A `real_array` without NaN or infinity, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.
    """
    value = real_array(name, value)
    finite(name, value)
    return value


def batch(name: str, value: Any) -> Any:
    """A `real_array` of one example or more on its leading axis.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array, of shape (N, ...).

    Raises:
      ValueError: If it has no axis, or no entry.
    """
    value = real_array(name, value)
    if value.ndim == 0 or value.size == 0:
        raise ValueError(
            f"{name} must have shape (N, ...) with N at least 1, got {value.shape}"
        )
    return value


def finite_batch(name: str, value: Any) -> Any:
    """A `batch` without NaN or infinity, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array, of shape (N, ...).
    """
    value = batch(name, value)
    finite(name, value)
    return value


def promoted(*values: Any) -> Any:
    """`jnp.result_type` by the standard rules, also under strict dtype promotion."""
    known = [
        jax.dtypes.canonicalize_dtype(value) if isinstance(value, np.dtype) else value
        for value in values
    ]
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*known)


def real_array(name: str, value: Any) -> Any:
    """An array of real numbers in float32 at least. Integers are promoted.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.

    Raises:
      TypeError: If it is complex, or holds no numbers.
    """
    original = value
    try:
        value = (
            value if is_traced(value) or hasattr(value, "dtype") else np.asarray(value)
        )
        dtype = jnp.result_type(value)
        if jnp.issubdtype(dtype, jax.dtypes.extended):
            raise TypeError("a key holds no numbers")
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{name} must be an array of real numbers, got {original!r}"
        ) from None
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real, got dtype {dtype}")
    dtype = jax.dtypes.canonicalize_dtype(promoted(dtype, jnp.float32))
    if not isinstance(value, jax.Array):
        with np.errstate(over="ignore"):
            # On the host: a conversion by JAX would be a compiled program.
            value = np.asarray(value).astype(dtype)
    return jnp.asarray(value, dtype)


def example_shaped(name: str, value: Any, x: Any) -> Any:
    """A value of the shape of x, the example for which a function returned it.

    Args:
      name: The name of the function, for the message.
      value: The value.
      x: The example.

    Returns:
      The value.

    Raises:
      ValueError: If it has another shape.
    """
    if jnp.shape(value) != jnp.shape(x):
        raise ValueError(
            f"{name} must return its example's shape {jnp.shape(x)}, got "
            f"{jnp.shape(value)}"
        )
    return value


def made_by(name: str, value: Any, kind: type, maker: str) -> Any:
    """A value of one type, that of the values which a function makes.

    Args:
      name, value: The name of the argument, for messages, and its value.
      kind: The type.
      maker: The name of the function, for the message.

    Returns:
      The value.

    Raises:
      TypeError: If it is of another type.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be made by {maker}, got {type(value).__name__}")
    return value


def instance(name: str, value: Any, kind: Any, description: str) -> Any:
    """A value of one type, or of one of several.

    Args:
      name, value: The name of the argument, for messages, and its value.
      kind: The type, or a union of types.
      description: What the message calls it, for example "a Gaussian(loc, var)".

    Returns:
      The value.

    Raises:
      TypeError: If it is of another type.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {description}, got {value!r}")
    return value


def all_positive(name: str, value: Any) -> Any:
    """An array whose entries are positive, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.
    """
    if not is_traced(value) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name} must be positive, got {np.min(np.asarray(value))}")
    return value


def positive_array(name: str, value: Any) -> Any:
    """A `finite_array` whose entries are positive, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.
    """
    return all_positive(name, finite_array(name, value))


def below_infinity(name: str, value: Any, error: type[Exception] = ValueError) -> None:
    """Raise an error if a concrete array of log densities holds NaN or +infinity.

    Args:
      name, value: The name of the array, for the message, and the array.
      error: The type of the error.
    """
    if is_traced(value):
        return
    values = np.asarray(value)
    bad = int(np.sum(np.isnan(values) | np.isposinf(values)))
    if bad:
        raise error(
            f"{name} must be below infinity, got {bad} NaN or +infinity of "
            f"{values.size} values"
        )


def all_non_negative(name: str, value: Any) -> Any:
    """An array whose entries are 0 or more, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.
    """
    if is_traced(value):
        return value
    values = np.asarray(value)  # on the host: JAX would compile a program for min
    least = np.min(values)
    if least < 0:
        raise ValueError(
            f"{name} must be 0 or more, got {least} in entry {np.argmin(values)}"
        )
    return value


def all_within(name: str, value: Any, lower: float, upper: float) -> Any:
    """An array whose entries lie in [lower, upper], where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.
      lower, upper: The least and the greatest number that are accepted.

    Returns:
      The array.
    """
    if is_traced(value):
        return value
    values = np.asarray(value)
    outside = values[~((values >= lower) & (values <= upper))]
    if outside.size:
        raise ValueError(
            f"{name} must lie in [{lower:.12g}, {upper:.12g}], got {outside[0]} among "
            f"{outside.size} outside"
        )
    return value


def index(name: str, value: Any, last: int) -> Any:
    """An index in 1 … last. Of a traced one only the type is checked.

    Args:
      name: The name of the argument, for messages.
      value: An integer, or an integer array of shape ().
      last: The greatest index.

    Returns:
      A Python int, or the traced array itself.
    """
    is_array = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.integer)
    if is_array and value.ndim == 0:
        if is_traced(value):
            return value
        value = int(value)
    return integer(name, value, minimum=1, maximum=last)


def increasing(name: str, value: Any) -> Any:
    """An array of shape (N,) whose entries increase, where it is concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.

    Raises:
      ValueError: If an entry is not greater than the one before it, with both.
    """
    if is_traced(value):
        return value
    values = np.asarray(value)
    falls = np.flatnonzero(~(np.diff(values) > 0))
    if falls.size:
        before, after = values[falls[0] : falls[0] + 2]
        raise ValueError(
            f"{name} must increase, got {after} after {before} at index {falls[0] + 1}"
        )
    return value


def probabilities(name: str, value: Any) -> Any:
    """Positive numbers whose sum is 1, where they are concrete.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The value.
    """
    if is_traced(value):
        return value
    finite(name, value)
    total = float(np.sum(np.asarray(value, np.float64)))
    if not abs(total - 1) < 1e-5 or not np.all(np.asarray(value) > 0):
        raise ValueError(
            f"{name} must be positive and sum to 1, got {np.asarray(value)} "
            f"with sum {total}"
        )
    return value


def all_greater(name: str, value: Any, bound_name: str, bound: Any) -> None:
    """Raise ValueError unless an array exceeds another in every entry.

    Args:
      name, value: The name of the argument, for the message, and its value.
      bound_name, bound: The same of the other one, of the same shape.
    """
    if is_traced(value, bound) or np.all(np.asarray(value) > np.asarray(bound)):
        return
    raise ValueError(
        f"{name} must exceed {bound_name} everywhere, "
        f"got {bound_name} {np.asarray(bound).tolist()}, "
        f"{name} {np.asarray(value).tolist()}"
    )


def column(name: str, value: Any, letter: str, least: int) -> Any:
    """An array with one axis, of at least a given length.

    Args:
      name, value: The name of the argument, for messages, and its value.
      letter: The letter of its length, for the message.
      least: The least length.

    Returns:
      The array.
    """
    if np.ndim(value) != 1 or len(value) < least:
        raise ValueError(
            f"{name} must have shape ({letter},) with {letter} at least {least}, "
            f"got {np.shape(value)}"
        )
    return value


def axes(name: str, value: Any, form: str) -> Any:
    """An array with a given number of axes.

    Args:
      name, value: The name of the argument, for messages, and its value.
      form: The shape in letters, for example "(K, D)".

    Returns:
      The array.

    Raises:
      ValueError: If it has another number of axes.
    """
    rank = len([letter for letter in form.strip("()").split(",") if letter.strip()])
    if np.ndim(value) != rank:
        raise ValueError(f"{name} must have shape {form}, got {np.shape(value)}")
    return value


def scalar_of(name: str, value: Any) -> Any:
    """The value of a function that returns scalars.

    Args:
      name: The name of the function, for the message.
      value: What it returned.

    Returns:
      The value, of shape ().

    Raises:
      ValueError: If it has another shape.
    """
    if jnp.shape(value) != ():
        raise ValueError(f"{name} must return a scalar, got shape {jnp.shape(value)}")
    return value


def callables(name: str, value: Any, least: int = 0, more: str = "") -> Any:
    """A tuple or list of values that can be called.

    Args:
      name, value: The name of the argument, for messages, and its value.
      least: The least number of them.
      more: What else is accepted, for the message.

    Returns:
      The value.

    Raises:
      TypeError: If it is anything else.
    """
    is_sequence = isinstance(value, tuple | list) and len(value) >= least
    if not is_sequence or not all(map(callable, value)):
        raise TypeError(f"{name} must be a sequence of callables{more}, got {value!r}")
    return value


def as_many(name: str, value: Any, beside: str, others: Any) -> None:
    """Raise ValueError unless two sequences have one length.

    Args:
      name, value: The name of the argument, for the message, and its value.
      beside, others: The same of the other one.
    """
    if len(value) != len(others):
        raise ValueError(
            f"{name} must be as many as {beside}, {len(others)}, got {len(value)}"
        )


def arrays(name: str, tree: Any) -> Any:
    """A pytree of numbers or arrays, with each leaf as an array of JAX.

    Args:
      name: The name of the argument, for the message.
      tree: The argument.

    Returns:
      The pytree of arrays.

    Raises:
      TypeError: If a leaf is no array.
    """
    try:
        return jax.tree.map(jnp.asarray, tree)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{name} must be a pytree of arrays, got {_describe(tree)}"
        ) from None


def integers(name: str, value: Any) -> jax.Array:
    """An array of integers.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The array.

    Raises:
      TypeError: If it holds anything else.
    """
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{name} must be an array of integers, got {_describe(value)}"
        ) from None
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got dtype {value.dtype}")
    return value


def denoised(value: Any, x: Any) -> Any:
    """The value of a denoiser at x.

    Args:
      value: What the denoiser returned. A pair (denoised, second) is a
        TypeError, because guidance comes before `ddpm.paired`.
      x: The example with which it was called.

    Returns:
      The value, an array of real numbers of x's shape.

    Raises:
      TypeError: If it is no array of real numbers.
      ValueError: If it has another shape.
    """
    expected = f"denoiser must return an array of its example's shape {jnp.shape(x)}"
    if isinstance(value, tuple):
        raise TypeError(
            f"{expected}, got a tuple of {len(value)}; to pair a guided one, "
            "ddpm.paired(guided, second)"
        )
    if not hasattr(value, "shape"):
        raise TypeError(f"{expected}, got {value!r}")
    if value.shape != jnp.shape(x):
        raise ValueError(
            f"denoiser must return its example's shape {jnp.shape(x)}, "
            f"got {value.shape}"
        )
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(f"denoiser must return real numbers, got dtype {value.dtype}")
    return value


def key(name: str, value: Any) -> Any:
    """One typed key, made by `jax.random.key`.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The key.

    Raises:
      TypeError: If it is no typed key.
      ValueError: If it is an array of keys.
    """
    if not (
        isinstance(value, jax.Array)
        and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    ):
        raise TypeError(
            f"{name} must be a typed key made by jax.random.key(seed), "
            f"got {_describe(value)}"
        )
    if value.shape != ():
        raise ValueError(
            f"{name} must be one key of shape (), got shape {value.shape}; "
            "jax.vmap over many keys"
        )
    return value


def callable_(name: str, value: Any, signature: str) -> Any:
    """A function, or another value that can be called.

    Args:
      name: The name of the argument, for the message.
      value: The argument.
      signature: How it is called, for the message.

    Returns:
      The value.

    Raises:
      TypeError: If it cannot be called.
    """
    if not callable(value):
        raise TypeError(
            f"{name} must be callable as {signature}, got {_describe(value)}"
        )
    return value


def denoiser(name: str, value: Any) -> Any:
    """A denoiser, as far as it can be called.

    Args:
      name, value: The name of the argument, for messages, and its value.

    Returns:
      The value.

    Raises:
      TypeError: If it cannot be called.
    """
    return callable_(name, value, "denoiser(x, t)")


def _describe(value: Any) -> str:
    return (
        f"an array of dtype {value.dtype}" if hasattr(value, "dtype") else repr(value)
    )
