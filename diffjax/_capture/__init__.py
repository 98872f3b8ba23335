"""The arrays that a function or an object holds, and a key that stands for the rest.

A closure, a bound method or an instance is split into the `jax.Array`s that it
reaches and a hashable `Spec`. It can be made again from the spec, with other
arrays in their places. Two closures of one piece of code have equal specs,
whatever their arrays are, so that a program compiled for one serves the other.
Nothing that is kept by its spec keeps arrays.

Reached are closure cells, defaults and attributes of functions, the globals
that a function of the user names, the attributes of instances of the user's
classes, and whatever pytrees, containers and bound methods among these hold.

A NumPy array of up to `LIMIT` bytes stays one and counts by its contents, as
numbers and strings do. A larger one is treated as a `jax.Array`. What cannot
be taken apart counts by its identity.

The state of a class, of a module and of a container that is no pytree cannot
be exchanged, since there is one of each. The arrays in it count by their
identity. So a replaced one is seen, at the price of another program.
"""

from typing import Any

from .making import restore
from .specs import Identity, Spec
from .walk import LIMIT, OBJECTS, Walk

__all__ = [
    "LIMIT",
    "OBJECTS",
    "Identity",
    "Spec",
    "capture",
    "is_fixed",
    "opened",
    "restore",
]


def __dir__() -> list[str]:
    return __all__


def capture(value: Any) -> tuple[list[Any], Spec]:
    """Split a function, an object or a leaf into its arrays and a `Spec`.

    `restore` makes it again. Raises TypeError if it reaches more than
    `OBJECTS` things.
    """
    walk = Walk(value)
    spec, _, _ = walk.visit(value)
    return walk.arrays, spec


def opened(spec: Spec) -> bool:
    """Whether a spec describes more than one object known by its identity or value."""
    return spec.kind not in ("array", "identity", "numpy", "value")


def is_fixed(function: Any) -> bool:
    """True for a function of a library or in C, which reaches nothing that changes."""
    return Walk(function).visitor(function) is None
