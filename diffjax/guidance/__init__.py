"""Guidance: rules that map denoisers to denoisers, for any solver.

`classifier` shifts a denoiser by the gradient of log p(y | x_t).
`classifier_free` and `autoguidance` extrapolate from a weaker denoiser to a
better one. `limited` guides in an interval of times
only. The thresholds clip D. `drop_condition` is for training.

For γ other than 0 and 1 the guided field (1 − γ) s_u + γ s_c is the score of
p_u^{1−γ} p_c^γ at each noise level. These densities are not noised versions of
one distribution. The distribution that a sampler draws from therefore depends
on the sampler: the probability flow and each reverse SDE have different ones.

An example on VE with p_u = N(0, S²), p_c = N(m, s²) and σ(t_max) → ∞: the
probability flow's variance is S^{2(1−γ)} s^{2γ}, where that of p_u^{1−γ} p_c^γ
is 1/((1 − γ)/S² + γ/s²).
"""

from .bounds import (
    DynamicThreshold,
    Limited,
    Thresholded,
    dynamic_threshold,
    limited,
    static_threshold,
)
from .classifiers import Classifier, check_signal, classifier, shifted
from .conditions import Conditioned, drop_condition
from .extrapolation import (
    Batched,
    Extrapolated,
    autoguidance,
    classifier_free,
    classifier_free_batched,
)
from .stepwise import Ratios, StepScale, cfg_plus_plus_scale, ratio_of_steps

__all__ = [
    "Batched",
    "Classifier",
    "Conditioned",
    "DynamicThreshold",
    "Extrapolated",
    "Limited",
    "Ratios",
    "StepScale",
    "Thresholded",
    "autoguidance",
    "cfg_plus_plus_scale",
    "check_signal",
    "classifier",
    "classifier_free",
    "classifier_free_batched",
    "drop_condition",
    "dynamic_threshold",
    "limited",
    "ratio_of_steps",
    "shifted",
    "static_threshold",
]


def __dir__() -> list[str]:
    return __all__
