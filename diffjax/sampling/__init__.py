"""Samples from a denoiser, one or many, and encoding through the probability flow."""

from .drawing import initial, sample, sample_many
from .encoding import (
    encode,
    interpolate,
    reverse,  # noqa: F401
    spherical,
)
from .preparation import (  # noqa: F401
    DEFAULT,
    EVALUATIONS,
    STEPS,
    prepare,
    shape_and_start,
)

__all__ = ["encode", "initial", "interpolate", "sample", "sample_many", "spherical"]


def __dir__() -> list[str]:
    return __all__
