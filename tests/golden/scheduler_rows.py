"""Runs of diffusers' schedulers that tests compare with."""

from typing import Any

import numpy as np

__all__ = ["ROWS", "START", "draw", "network"]

START = np.array([[0.9, -0.4, 0.2], [-1.3, 0.7, 0.5]])
WEIGHTS = np.cos(np.arange(9.0)).reshape(3, 3)


def network(xp: Any, x: Any, t: Any) -> Any:
    """A smooth nonlinear function that stands for a network.

    Args:
      xp: torch or jax.numpy.
      x: A state, (..., 3).
      t: A timestep, ().

    Returns:
      (..., 3).
    """
    phases = 1.0 + np.arange(3)
    hidden = xp.tanh(x @ xp.asarray(WEIGHTS) + xp.cos(xp.asarray(phases) * t * 0.002))
    return 0.6 * hidden + 0.3 * x


def draw(xp: Any, i: Any) -> Any:
    """The noise (3,) of draw i, of every example. Or (N, 3) of draws i (N, 1)."""
    return xp.cos(1.7 * i + np.arange(3.0))


UNCLIPPED = dict(clip_sample=False)
SAMPLERS = {
    "DDIM": UNCLIPPED,
    "DPMSolverMultistep": {},
    "UniPCMultistep": {},
    "EulerDiscrete": {},
}
BETAS = {
    "leading": "linear",
    "linspace": "scaled_linear",
    "trailing": "squaredcos_cap_v2",
}
"""The betas by the spacing of the timesteps."""
NOISY = dict(timestep_spacing="trailing", prediction_type="v_prediction")
END = dict(final_sigmas_type="sigma_min")
KARRAS = dict(use_karras_sigmas=True)

ROWS: dict[str, tuple[str, dict[str, Any]]] = {}
"""name -> (class without "Scheduler", its options, `steps` and `mu` of the run)."""
for name, options in SAMPLERS.items():
    ROWS |= {
        f"{name}/{kind}/{spacing}": (
            name,
            dict(
                prediction_type=kind,
                timestep_spacing=spacing,
                beta_schedule=betas,
                steps_offset=1,
                **options,
            ),
        )
        for kind in ("epsilon", "sample", "v_prediction")
        for spacing, betas in BETAS.items()
    }
    ROWS[f"{name}/zero_snr"] = (
        name,
        dict(rescale_betas_zero_snr=True, **NOISY, **options),
    )
ROWS |= {
    "ddim_first": ("DDIM", dict(**UNCLIPPED, set_alpha_to_one=False)),
    "ddim_first_offset": (
        "DDIM",
        dict(**UNCLIPPED, set_alpha_to_one=False, steps_offset=1),
    ),
    "ddim_uneven": (
        "DDIM",
        dict(**UNCLIPPED, timestep_spacing="trailing", steps=7),
    ),
    "ddpm": ("DDPM", dict(**UNCLIPPED, prediction_type="v_prediction")),
    "ddpm_large": (
        "DDPM",
        dict(**UNCLIPPED, variance_type="fixed_large", beta_schedule="sigmoid"),
    ),
    "dpm_order_3": ("DPMSolverMultistep", dict(solver_order=3)),
    "dpm_order_3_heun": (
        "DPMSolverMultistep",
        dict(solver_order=3, solver_type="heun", **END),
    ),
    "dpm_heun_euler": (
        "DPMSolverMultistep",
        dict(solver_type="heun", euler_at_final=True, **END),
    ),
    "dpm_short": ("DPMSolverMultistep", dict(solver_order=3, **END, steps=10)),
    "dpm_karras": ("DPMSolverMultistep", KARRAS),
    "dpm_sde": ("DPMSolverMultistep", dict(algorithm_type="sde-dpmsolver++")),
    "dpm_noise": (
        "DPMSolverMultistep",
        dict(algorithm_type="dpmsolver", solver_order=3, **END),
    ),
    "dpm_clipped": (
        "DPMSolverMultistep",
        dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
    ),
    "deis": ("DEISMultistep", dict(solver_order=3)),
    "unipc_order_3": (
        "UniPCMultistep",
        dict(solver_order=3, solver_type="bh1", **END),
    ),
    "unipc_short": ("UniPCMultistep", dict(solver_order=3, steps=10)),
    "unipc_karras": ("UniPCMultistep", KARRAS),
    "euler_karras": ("EulerDiscrete", KARRAS),
    "euler_exponential": (
        "EulerDiscrete",
        dict(use_exponential_sigmas=True, **END, **NOISY),
    ),
    "euler_end": ("EulerDiscrete", END),
    "ancestral": ("EulerAncestralDiscrete", NOISY),
    "heun": ("HeunDiscrete", NOISY),
    "edm": ("EDMEuler", {}),
    "edm_exponential": ("EDMEuler", dict(sigma_schedule="exponential", **END)),
    "edm_dpm": ("EDMDPMSolverMultistep", dict(solver_order=2)),
    "flow": ("FlowMatchEulerDiscrete", dict(shift=3.0)),
    "flow_dynamic": (
        "FlowMatchEulerDiscrete",
        dict(use_dynamic_shifting=True, mu=1.15),
    ),
    "flow_terminal": (
        "FlowMatchEulerDiscrete",
        dict(shift=2.0, shift_terminal=0.1, **KARRAS),
    ),
}
