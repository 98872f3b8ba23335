"""Checkpoints of other codebases, read from files that are no pickles.

- trees: nested arrays in .npz and .safetensors files, read and written
"""

from . import trees

__all__ = ["trees"]


def __dir__() -> list[str]:
    return __all__
