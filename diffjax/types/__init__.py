"""Type aliases, pytrees, and compiled programs of functions that hold arrays."""

from .aliases import Array, ArrayLike, Denoiser, Key, PyTree, Scalar, Velocity
from .classes import pytree, static_field
from .functions import Function, PartialPytree, as_pytree, as_pytree_callable
from .partitions import Static, combine, is_array, partition
from .programs import (
    PROGRAMS,
    as_one_program,
    check_integers,
    compiled,
    is_eager,
    one_program,
)

__all__ = [
    "Array",
    "ArrayLike",
    "Denoiser",
    "Function",
    "Key",
    "PROGRAMS",
    "PartialPytree",
    "PyTree",
    "Scalar",
    "Static",
    "Velocity",
    "as_one_program",
    "as_pytree",
    "as_pytree_callable",
    "check_integers",
    "combine",
    "compiled",
    "is_array",
    "is_eager",
    "one_program",
    "partition",
    "pytree",
    "static_field",
]


def __dir__() -> list[str]:
    return __all__
