"""Classes as pytrees."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

__all__ = ["pytree", "static_field"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree whose treedef names the class.

    Fields are children, except those declared with `static_field()`, which
    must be hashable. JAX compares the treedefs of two `register_dataclass`
    classes by field names alone, so that two schedules with equal fields would
    share compiled code. Here the class is part of the auxiliary data.

    Values are equal, and have one hash, where their fields do. A value that
    holds an array, or anything else without a hash, equals only itself. So
    `jax.jit` accepts every instance with a `__call__` as the function itself.

    It then compiles the instance's arrays in as constants, as it does with
    those of a closure. To trace them, pass the instance as an argument:
    `jax.jit(lambda d, x, t: d(x, t))`.

    Args:
      cls: A class with annotated fields.

    Returns:
      The class.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    children = [f.name for f in fields if not f.metadata.get("static")]
    static = [f.name for f in fields if f.metadata.get("static")]

    def flatten_with_keys(value):
        keyed = [
            (jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in children
        ]
        return keyed, (cls, tuple(getattr(value, name) for name in static))

    def flatten(value):
        leaves = [getattr(value, name) for name in children]
        return leaves, (cls, tuple(getattr(value, name) for name in static))

    def unflatten(aux, values):
        # Without __init__: constructors check arguments, and here values may
        # be tracers, None or the placeholders of jax.tree.map.
        value = object.__new__(cls)
        for name, child in zip(children, values, strict=True):
            object.__setattr__(value, name, child)
        for name, entry in zip(static, aux[1], strict=True):
            object.__setattr__(value, name, entry)
        return value

    cls.__hash__ = _hash  # type: ignore[method-assign]
    cls.__eq__ = _equal  # type: ignore[method-assign]
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def _contents(value: Any) -> Any:
    """(class, fields) if they can be hashed, otherwise None."""
    contents = (
        type(value),
        *(getattr(value, field.name) for field in dataclasses.fields(value)),
    )
    try:
        hash(contents)
    except TypeError:
        return None
    return contents


def _hash(value: Any) -> int:
    contents = _contents(value)
    return object.__hash__(value) if contents is None else hash(contents)


def _equal(value: Any, other: Any) -> Any:
    # The == of dataclasses compares arrays, whose truth value is an error.
    # JAX's cache of jitted functions compares any two entries that share a
    # bucket.
    if value is other or type(value) is not type(other):
        return value is other or NotImplemented
    contents = _contents(value)
    return contents is not None and contents == _contents(other)


def static_field(**kwargs: Any) -> Any:
    """A dataclass field that is part of the treedef, not a child.

    Its value must be hashable. Keywords are those of `dataclasses.field`.
    """
    return dataclasses.field(metadata={"static": True}, **kwargs)
