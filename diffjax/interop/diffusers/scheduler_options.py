"""Options of diffusers' schedulers, with each class's schedule, times and solver."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ... import schedules
from ...solvers import Solver
from ..options import (
    Option,
    Rule,
    choice,
    flag,
    ignored,
    integer,
    number,
    numbers,
    only,
    optional,
    positive_integer,
)
from . import scheduler_solvers as solvers
from . import spacing
from .chains import BETAS, chain_of, flow_of

__all__ = ["KINDS", "SCHEDULERS", "Scheduler", "without_leftovers"]

KINDS = {
    "epsilon": "noise",
    "sample": "data",
    "v_prediction": "v",
}
"""Kinds of prediction of diffjax by `prediction_type`."""


class Scheduler(NamedTuple):
    """A class of schedulers.

    Attributes:
      options: The supported options by key.
      rules: Relations between them.
      schedule: options -> the noise schedule.
      times: (options, steps) -> the decreasing times of a run.
      solver: options -> the solver.
      kind: The kind of prediction where no option states it.
    """

    options: Mapping[str, Option]
    rules: tuple[Rule, ...]
    schedule: Callable[[dict[str, Any]], Any]
    times: Callable[..., np.ndarray]
    solver: Callable[[dict[str, Any]], Solver]
    kind: str | None = None


def _chain(*schedule_names, start=0.0001, end=0.02, spacing="leading"):
    """Options of every scheduler with a chain."""
    names = [name for name in BETAS if name in ("linear", "scaled_linear")]
    return {
        "num_train_timesteps": integer(1000, 2),
        "beta_start": number(start, 0.0, 1.0),
        "beta_end": number(end, 0.0, 1.0),
        "beta_schedule": choice(*names, "squaredcos_cap_v2", *schedule_names),
        "trained_betas": numbers(),
        "prediction_type": choice("epsilon", "sample", "v_prediction"),
        "timestep_spacing": choice(spacing, "leading", "linspace", "trailing"),
        "steps_offset": integer(0),
    }


THRESHOLDING = {
    "thresholding": only(False),
    "dynamic_thresholding_ratio": ignored(0.995),
    "sample_max_value": ignored(1.0),
}
RESCALED = {"rescale_betas_zero_snr": flag(False)}
CLIP = {"clip_sample": flag(True), "clip_sample_range": number(1.0, 0.0)}
SIGMAS = {
    "use_karras_sigmas": optional(flag(False)),
    "use_exponential_sigmas": optional(flag(False)),
    "use_beta_sigmas": choice(False, None),
}
FINAL = {"final_sigmas_type": choice("zero", "sigma_min")}
NO_FLOW = {
    "use_flow_sigmas": only(False),
    "flow_shift": ignored(1.0),
    "use_dynamic_shifting": only(False),
    "time_shift_type": ignored("exponential"),
}
MULTISTEP = {
    **_chain(spacing="linspace"),
    **THRESHOLDING,
    **NO_FLOW,
    "use_karras_sigmas": optional(flag(False)),
    "use_exponential_sigmas": choice(False, None),
    "use_beta_sigmas": choice(False, None),
    "solver_order": choice(2, 1, 3),
    "lower_order_final": flag(True),
}
LEAST_LOG_RATIO = Option(
    -math.inf,
    lambda v: type(v) in (int, float) and v < math.inf,
    "a number, or -Infinity",
)
MIDPOINT = ("midpoint", "heun")
"""Weights of DPM-Solver's second order."""

EDM = {
    "sigma_min": number(0.002, 0.0),
    "sigma_max": number(80.0, 0.0),
    "sigma_data": number(0.5, 0.0),
    "sigma_schedule": choice("karras", "exponential"),
    "num_train_timesteps": positive_integer(1000),
    "prediction_type": only("epsilon"),
    "rho": number(7.0, 0.0),
    **FINAL,
}

COUNT = Rule(
    lambda o: (
        o["trained_betas"] is None
        or len(o["trained_betas"]) == o["num_train_timesteps"]
    ),
    "trained_betas must hold num_train_timesteps = {num_train_timesteps} numbers",
)
ONE_SPACING = Rule(
    lambda o: not (o["use_karras_sigmas"] and o["use_exponential_sigmas"]),
    "only one of use_karras_sigmas and use_exponential_sigmas can be true",
)
SIGNAL = Rule(
    lambda o: not (o["rescale_betas_zero_snr"] and o["prediction_type"] == "epsilon"),
    "prediction_type must be sample or v_prediction with rescale_betas_zero_snr: "
    "noise alone does not determine the data",
)
MONOTONE = Rule(
    lambda o: not (o["rescale_betas_zero_snr"] and spacing.is_by_formula(o)),
    "use_karras_sigmas and use_exponential_sigmas must be false with "
    "rescale_betas_zero_snr: the noise levels of diffusers do not increase there",
)
FULL_LAST = Rule(
    lambda o: not (o["use_karras_sigmas"] and o["final_sigmas_type"] == "sigma_min"),
    "final_sigmas_type must be zero with use_karras_sigmas: otherwise the last "
    "step starts and ends at the same noise level",
)
WHOLE = Rule(
    lambda o: (
        not (o["use_karras_sigmas"] and o["beta_schedule"] == "squaredcos_cap_v2")
    ),
    "use_karras_sigmas must be false with squaredcos_cap_v2: diffusers cuts these "
    "timesteps off to integers",
)
NOISE_END = Rule(
    lambda o: (
        o["algorithm_type"] != "dpmsolver" or o["final_sigmas_type"] == "sigma_min"
    ),
    "final_sigmas_type must be sigma_min for algorithm_type dpmsolver",
)
SDE_ORDER = Rule(
    lambda o: o["algorithm_type"] != "sde-dpmsolver++" or o["solver_order"] < 3,
    "solver_order must be 1 or 2 for sde-dpmsolver++: diffusers' third order has a "
    "term of the wrong sign",
)
EDM_ENDS = Rule(
    lambda o: o["sigma_min"] < o["sigma_max"],
    "sigma_min = {sigma_min} must be less than sigma_max = {sigma_max}",
)
EDM_LAST = Rule(
    lambda o: o["final_sigmas_type"] == "zero",
    "final_sigmas_type must be zero: otherwise the last step starts and ends at the "
    "same noise level",
)


def _edm_schedule(o):
    return schedules.edm(o["sigma_min"], o["sigma_max"])


def _ratio_chain(o):
    """The chain of Euler and Heun.

    σ/α is linear between indices, or λ is where a formula spaces the noise levels.
    """
    formula = spacing.is_by_formula(o)
    return chain_of(o, finite=True, linear_ratio=not formula)


def _multistep_chain(o):
    return chain_of(o, finite=True, whole_timesteps=bool(o["use_karras_sigmas"]))


SCHEDULERS: dict[str, Scheduler] = {
    "DDIMScheduler": Scheduler(
        {
            **_chain(),
            **CLIP,
            **THRESHOLDING,
            **RESCALED,
            "set_alpha_to_one": flag(True),
        },
        (COUNT, SIGNAL),
        chain_of,
        spacing.ddim_times,
        solvers.ddim,
    ),
    "DDPMScheduler": Scheduler(
        {
            **_chain("sigmoid"),
            **CLIP,
            **THRESHOLDING,
            **RESCALED,
            "variance_type": choice(
                "fixed_small",
                "fixed_small_log",
                "fixed_large",
                "learned",
                "learned_range",
            ),
        },
        (COUNT, SIGNAL),
        chain_of,
        spacing.chain_times,
        solvers.ddpm,
    ),
    "DPMSolverMultistepScheduler": Scheduler(
        {
            **MULTISTEP,
            **RESCALED,
            **FINAL,
            "algorithm_type": choice("dpmsolver++", "dpmsolver", "sde-dpmsolver++"),
            "solver_type": choice(*MIDPOINT),
            "euler_at_final": flag(False),
            "use_lu_lambdas": only(False),
            "lambda_min_clipped": LEAST_LOG_RATIO,
            "variance_type": choice(None, "learned", "learned_range"),
        },
        (COUNT, MONOTONE, FULL_LAST, WHOLE, NOISE_END, SDE_ORDER),
        _multistep_chain,
        spacing.rounded_ratio_times,
        solvers.dpm,
    ),
    "DEISMultistepScheduler": Scheduler(
        {
            **MULTISTEP,
            "use_karras_sigmas": choice(False, None),
            "algorithm_type": only("deis"),
            "solver_type": only("logrho"),
        },
        (COUNT,),
        _multistep_chain,
        # DEIS ends at the first index.
        lambda o, steps: spacing.rounded_ratio_times(
            {**o, "final_sigmas_type": "sigma_min"}, steps
        ),
        solvers.deis,
    ),
    "UniPCMultistepScheduler": Scheduler(
        {
            **MULTISTEP,
            **RESCALED,
            **FINAL,
            "predict_x0": only(True),
            "solver_type": choice("bh2", "bh1"),
            "disable_corrector": only(()),
            "solver_p": only(None),
            "sigma_min": only(None),
            "sigma_max": only(None),
            "shift_terminal": only(None),
        },
        (COUNT, MONOTONE, FULL_LAST),
        _multistep_chain,
        spacing.rounded_ratio_times,
        solvers.unipc,
    ),
    "EulerDiscreteScheduler": Scheduler(
        {
            **_chain(spacing="linspace"),
            **SIGMAS,
            **RESCALED,
            **FINAL,
            "interpolation_type": only("linear"),
            "timestep_type": only("discrete"),
            "sigma_min": only(None),
            "sigma_max": only(None),
        },
        (COUNT, MONOTONE, ONE_SPACING),
        _ratio_chain,
        spacing.ratio_times,
        solvers.euler,
    ),
    "EulerAncestralDiscreteScheduler": Scheduler(
        {
            **_chain(spacing="linspace"),
            **RESCALED,
            "prediction_type": choice("epsilon", "v_prediction"),
        },
        (COUNT,),
        _ratio_chain,
        spacing.ratio_times,
        solvers.ancestral,
    ),
    "HeunDiscreteScheduler": Scheduler(
        {
            **_chain("exp", start=0.00085, end=0.012, spacing="linspace"),
            **SIGMAS,
            "clip_sample": flag(False),
            "clip_sample_range": number(1.0, 0.0),
        },
        (COUNT, ONE_SPACING),
        _ratio_chain,
        spacing.ratio_times,
        solvers.heun,
    ),
    "EDMEulerScheduler": Scheduler(
        EDM, (EDM_ENDS,), _edm_schedule, spacing.edm_times, solvers.euler, "edm"
    ),
    "EDMDPMSolverMultistepScheduler": Scheduler(
        {
            **EDM,
            **THRESHOLDING,
            "solver_order": MULTISTEP["solver_order"],
            "algorithm_type": choice("dpmsolver++", "sde-dpmsolver++"),
            "solver_type": choice(*MIDPOINT),
            "lower_order_final": flag(True),
            "euler_at_final": flag(False),
        },
        (EDM_ENDS, EDM_LAST, SDE_ORDER),
        _edm_schedule,
        spacing.edm_times,
        solvers.dpm,
        "edm",
    ),
    "FlowMatchEulerDiscreteScheduler": Scheduler(
        {
            "num_train_timesteps": only(1000),
            "shift": number(1.0, 0.0),
            "use_dynamic_shifting": flag(False),
            "base_shift": ignored(0.5),
            "max_shift": ignored(1.15),
            "base_image_seq_len": ignored(256),
            "max_image_seq_len": ignored(4096),
            "invert_sigmas": only(False),
            "shift_terminal": optional(number(None, 0.0, 1.0)),
            **SIGMAS,
            "time_shift_type": choice("exponential", "linear"),
            "stochastic_sampling": only(False),
        },
        (ONE_SPACING,),
        flow_of,
        spacing.flow_times,
        solvers.euler,
        "velocity",
    ),
}
"""By `_class_name`."""

KNOWN_KEYS = {
    *(key for scheduler in SCHEDULERS.values() for key in scheduler.options),
    *("skip_prk_steps", "original_inference_steps", "timestep_scaling", "tau_func"),
    *("predictor_order", "corrector_order"),
}
"""Options of any class of schedulers."""


def without_leftovers(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration without the options that its class does not have.

    Published configurations keep options of the classes that they were made from,
    which diffusers ignores.

    Args:
      config: The configuration.
      name: The class that reads it.

    Returns:
      The configuration without options of other classes. If it was written for
      another class, only those that both have are left.
    """
    options = SCHEDULERS[name].options
    same_class = config["_class_name"] == name
    return {
        key: value
        for key, value in config.items()
        if key in options or (same_class and key not in KNOWN_KEYS)
    }
