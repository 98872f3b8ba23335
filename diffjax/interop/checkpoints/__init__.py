"""Checkpoints of other codebases, read from files that are no pickles.

- dit, sit: state dicts of the repositories DiT and SiT, saved as safetensors
- trees: nested arrays in .npz and .safetensors files, read and written
"""

from . import dit, sit, trees

__all__ = ["dit", "sit", "trees"]


def __dir__() -> list[str]:
    return __all__
