"""Type aliases, pytree registration, and the split of any callable into arrays and the rest."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from types import MethodType
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
Key = jax.Array
"""A typed key, as made by `jax.random.key`."""
Scalar = jax.typing.ArrayLike
"""A number or an array of shape ()."""
PyTree = Any
Denoiser = Callable[..., Array]
"""(x, t) -> E[x_0 | x_t = x], for one example x of any shape and a scalar t."""
Velocity = Callable[..., Any]
"""(x, t) -> dx/dt."""

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and a pytree whose treedef names the class.

    Fields are children, save those declared with `static_field()`, which must be hashable.
    JAX compares the treedefs of two `register_dataclass` classes by field names alone, so that two schedules with
    equal fields would share compiled code; here the class itself is part of the auxiliary data.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    children = [f.name for f in fields if not f.metadata.get("static")]
    static = [f.name for f in fields if f.metadata.get("static")]

    def flatten_with_keys(value):
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in children]
        return keyed, (cls, tuple(getattr(value, name) for name in static))

    def flatten(value):
        return [getattr(value, name) for name in children], (cls, tuple(getattr(value, name) for name in static))

    def unflatten(aux, values):
        value = object.__new__(cls)  # argument checks belong to constructors: here values may be tracers or None
        for name, child in zip(children, values, strict=True):
            object.__setattr__(value, name, child)
        for name, entry in zip(static, aux[1], strict=True):
            object.__setattr__(value, name, entry)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def static_field(**kwargs: Any) -> Any:
    """A dataclass field that is part of the treedef, not a child. Its value must be hashable."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def as_pytree_callable(function: Callable) -> Callable:
    """`function` as a pytree: arrays bound by `functools.partial` become children, a plain function has none.

    A method bound to a pytree, such as `target.log_prob`, has that pytree's arrays as children. A module that is a
    pytree already (NNX, Equinox, a diffjax value) is returned as it is.
    """
    if isinstance(function, MethodType) and not jax.tree_util.all_leaves([function.__self__]):
        return jax.tree_util.Partial(function.__func__, function.__self__)
    if isinstance(function, functools.partial) and not isinstance(function, jax.tree_util.Partial):
        return jax.tree_util.Partial(function.func, *function.args, **function.keywords)
    leaves = jax.tree.leaves(function)
    if len(leaves) == 1 and leaves[0] is function:
        return jax.tree_util.Partial(function)
    return function


def is_array(leaf: Any) -> bool:
    """Whether a leaf is traced: arrays and Python floats are; functions, strings, integers and booleans are not."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | float | complex)


def partition(tree: PyTree) -> tuple[list[Any], tuple[Any, tuple[Hashable, ...]]]:
    """Split `tree` into (arrays, static): arrays may enter `jit` as an argument, static is hashable."""
    leaves, treedef = jax.tree.flatten(tree)
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    return arrays, (treedef, tuple(_ARRAY if is_array(leaf) else leaf for leaf in leaves))


def combine(arrays: list[Any], static: tuple[Any, tuple[Hashable, ...]]) -> PyTree:
    """The tree that `partition` split."""
    treedef, rest = static
    remaining = iter(arrays)
    return jax.tree.unflatten(treedef, [next(remaining) if leaf is _ARRAY else leaf for leaf in rest])


class _ArraySlot:
    """Marks in a static part where an array was taken out."""

    def __repr__(self) -> str:
        return "<array>"


_ARRAY = _ArraySlot()
