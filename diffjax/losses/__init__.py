"""Training objectives: denoising score matching with every weighting and prediction.

`denoising_loss` is of one example at one time, `batch_loss` of a batch at
random times. `times` holds distributions of the training time, `weights`
weights of the error, and `uncertainty` weights that are learned.
"""

from . import times, uncertainty, weights
from .objectives import batch_loss, denoising_loss
from .times import (
    LOG_SIGMA_MEAN,
    LOG_SIGMA_STD,
    TIME_DISTRIBUTIONS,
    sample_times,
    time_density,
)
from .uncertainty import with_uncertainty
from .weights import MIN_SNR_CLIP, WEIGHTINGS

__all__ = [
    "LOG_SIGMA_MEAN",
    "LOG_SIGMA_STD",
    "MIN_SNR_CLIP",
    "TIME_DISTRIBUTIONS",
    "WEIGHTINGS",
    "batch_loss",
    "denoising_loss",
    "sample_times",
    "time_density",
    "times",
    "uncertainty",
    "weights",
    "with_uncertainty",
]


def __dir__() -> list[str]:
    return __all__
