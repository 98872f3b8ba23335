"""The decorator that checks the arguments of a function, and rules over several."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

__all__ = ["arguments", "attributes", "optional", "require", "warn"]


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


def attributes(holder: Any, **rules: Any) -> None:
    """Check attributes of an object, such as the fields of a module.

    Args:
      holder: The object, whose attributes are set.
      **rules: A check for each attribute that needs one, as in `arguments`.
    """
    for name, rule in rules.items():
        check, *more = rule if isinstance(rule, tuple) else (rule,)
        check(name, getattr(holder, name), *more)


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


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the caller's program, outside of this package.

    The number of frames between is not fixed: decorators and JAX add some.

    Args:
      message: The message.
      category: The type of the warning.
    """
    inside = (__name__.partition(".")[0], "jax")
    frame, level = inspect.currentframe(), 0
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if level and name.partition(".")[0] not in inside:
            break
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level + 1)
