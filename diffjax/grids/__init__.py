"""Where a solver steps: grids of steps + 1 decreasing times.

They run from t_max to t_min unless stated otherwise. Any decreasing array
serves as a grid.
"""

from .checks import check, check_interval, decreasing  # noqa: F401
from .defaults import (
    DENSE,  # noqa: F401
    cost_of_step,  # noqa: F401
    recommended,
    recommended_share,  # noqa: F401
)
from .editing import (
    from_noise_ratios,
    strength,
    to_zero,
    transport,
)
from .published import ALIGN_YOUR_STEPS, align_your_steps, ddpm, from_indices
from .spacing import (
    angular,
    beta,
    exponential,
    karras,
    karras_between,
    log_snr,
    polyexponential,
    quadratic,
    shifted,
    uniform,
)

__all__ = [
    "ALIGN_YOUR_STEPS",
    "align_your_steps",
    "angular",
    "beta",
    "ddpm",
    "exponential",
    "from_indices",
    "from_noise_ratios",
    "karras",
    "karras_between",
    "log_snr",
    "polyexponential",
    "quadratic",
    "recommended",
    "shifted",
    "strength",
    "to_zero",
    "transport",
    "uniform",
]


def __dir__() -> list[str]:
    return __all__
