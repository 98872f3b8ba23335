"""Checkpoints of other projects, read without unpickling.

- dit, sit: state dicts of the repositories DiT and SiT, saved as safetensors
- score_sde: Flax checkpoints of NCSN++, DDPM++ and DDPM by Song et al. 2021
- trees: nested arrays in .npz and .safetensors files, read and written
"""

from . import dit, score_sde, sit, trees

__all__ = ["dit", "score_sde", "sit", "trees"]


def __dir__() -> list[str]:
    return __all__
