"""Functions, methods and objects as pytrees of the arrays that they reach."""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import jax

from .. import _capture
from .classes import pytree

__all__ = ["Function", "PartialPytree", "as_pytree", "as_pytree_callable"]


@jax.tree_util.register_pytree_node_class
class Function:
    """A function, method or object as a pytree, whose leaves are the arrays it reaches.

    See `as_pytree_callable`. It is taken apart whenever it is flattened, so
    that arrays replaced since then are seen. Its attributes are those of the
    object.
    """

    def __init__(self, function: Any) -> None:
        self._function: Any = function
        self._parts: Any = None

    @property
    def function(self) -> Any:
        """The function itself, made again from its parts at the first use."""
        if self._function is _UNMADE:
            self._function = _capture.restore(self._parts[1], iter(self._parts[0]))
        return self._function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's value."""
        return self.function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("_function", "_parts"):
            raise AttributeError(name)
        return getattr(self.function, name)

    def __reduce__(self) -> tuple:
        # By default copy and pickle look for attributes of an object that has
        # none yet, and __getattr__ would recurse without end.
        return type(self), (self.function,)

    def __repr__(self) -> str:
        return f"Function({self._function!r})"

    def tree_flatten(self) -> tuple[list[Any], Any]:
        """The arrays, and a description of the rest."""
        return _capture.capture(self._function) if self._parts is None else self._parts

    @classmethod
    def tree_unflatten(cls, spec: Any, arrays: Any) -> "Function":
        """The inverse of `tree_flatten`.

        Args:
          spec: The description.
          arrays: The arrays, or others in their places.

        Returns:
          The function, which is made at its first use.
        """
        value = object.__new__(cls)
        value._function, value._parts = _UNMADE, (list(arrays), spec)
        return value


_UNMADE: Any = object()


@pytree
class PartialPytree:
    """`functools.partial` as a pytree, whose function is a child too.

    Attributes:
      func: The function, a callable pytree.
      args: Its first arguments.
      keywords: Arguments by keyword.
    """

    func: Any
    args: tuple
    keywords: dict

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """func(*self.args, *args, **self.keywords, **kwargs)."""
        return self.func(*self.args, *args, **{**self.keywords, **kwargs})


def as_pytree_callable(function: Callable) -> Callable:
    """A function as a pytree, whose leaves are the arrays that it reaches.

    Arrays bound by `functools.partial` are leaves. So are those in closures,
    in the attributes of plain objects, and in the globals that a function of
    the user names (see `diffjax._capture`).

    They are looked up whenever the pytree is flattened, hence at each call of
    `sample` and the like. So arrays replaced in between are seen, and closures
    of one piece of code share one compiled program.

    A method bound to a pytree, such as `target.log_prob`, has the leaves of
    that pytree. A module that is a pytree already (NNX, Equinox, a value of
    diffjax) is returned unchanged.

    Args:
      function: Any callable.

    Returns:
      A callable pytree.
    """
    if isinstance(function, MethodType) and not jax.tree_util.all_leaves(
        [function.__self__]
    ):
        return jax.tree_util.Partial(function.__func__, function.__self__)
    if isinstance(function, functools.partial):
        if _capture.is_fixed(function.func):
            same = isinstance(function, jax.tree_util.Partial)
            return (
                function
                if same
                else jax.tree_util.Partial(
                    function.func, *function.args, **function.keywords
                )
            )
        return PartialPytree(
            as_pytree_callable(function.func), function.args, dict(function.keywords)
        )
    return as_pytree(function)


def as_pytree(value: Any) -> Any:
    """The value if it is a pytree, otherwise a `Function` of it.

    The arrays of a plain dataclass, say, are then leaves.
    """
    return Function(value) if jax.tree_util.all_leaves([value]) else value
