"""Noise schedules x_t = α(t) x_0 + σ(t) ε, and all that follows from α and σ.

A schedule is any pytree with `alpha(t)`, `sigma(t)`, `t_min` and `t_max`,
where α²/σ² falls strictly with t. Your own schedule needs nothing else. Some
schedules add closed forms that are more exact or faster than the derived ones.
These are methods of the names `log_snr`, `time_of_log_snr`,
`drift_coefficient` and `diffusion_coefficient`.
"""

from .chain import (
    DiscreteChain,
    Indexed,
    NoiseLadder,
    Posterior,
    from_betas,
    from_sigmas,
    index_of_time,
    rescale_zero_terminal_snr,
)
from .derived import (
    Rates,
    diffusion_coefficient,
    drift_coefficient,
    is_finite,
    log_snr,
    log_snr_range,
    log_snr_rate,
    noisiest_time,
    perturb,
    prior_std,
    rates,
    time_of_log_snr,
    without_signal,
)
from .learned import LearnedVP, learned
from .protocol import Schedule, argument, check
from .rectified import RectifiedFlow, rectified_flow
from .ve import EDM, VE, edm, ve
from .vp import SubVP, VPCosine, VPLinear, sub_vp, vp_cosine, vp_linear

__all__ = [
    "EDM",
    "VE",
    "DiscreteChain",
    "Indexed",
    "LearnedVP",
    "NoiseLadder",
    "Posterior",
    "Rates",
    "RectifiedFlow",
    "Schedule",
    "SubVP",
    "VPCosine",
    "VPLinear",
    "argument",
    "check",
    "diffusion_coefficient",
    "drift_coefficient",
    "edm",
    "from_betas",
    "from_sigmas",
    "index_of_time",
    "is_finite",
    "learned",
    "log_snr",
    "log_snr_range",
    "log_snr_rate",
    "noisiest_time",
    "perturb",
    "prior_std",
    "rates",
    "rectified_flow",
    "rescale_zero_terminal_snr",
    "sub_vp",
    "time_of_log_snr",
    "ve",
    "vp_cosine",
    "vp_linear",
    "without_signal",
]


def __dir__() -> list[str]:
    return __all__
