"""Schedulers of diffusers as schedule, prediction kind, grid and solver."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ... import checks, grids, schedules
from ...schedules import Schedule
from ...solvers import Solver
from ...types import Array
from .. import options
from . import folder as folders
from .chains import BETAS
from .scheduler_options import KINDS, SCHEDULERS, Scheduler, without_leftovers

__all__ = ["Grid", "load_scheduler", "save_scheduler", "solver"]

CLIP_WARNING = (
    "clip_sample is true, but diffjax does not clip denoisers. To clip, pass "
    "dj.guidance.static_threshold(denoiser, -{clip_sample_range}, {clip_sample_range})."
    " The results differ slightly: DDIM of diffusers computes the noise from the "
    "unclipped output, diffjax from the clipped one"
)
SIGMA_DATA_WARNING = (
    "this configuration has sigma_data = {sigma_data}. Call model.denoiser(schedule, "
    "kind, sigma_data={sigma_data})"
)

SCHEDULE_TYPES = {
    None: (schedules.DiscreteChain, "schedules.from_betas for this class"),
    "edm": (schedules.EDM, "schedules.edm for this class"),
    "velocity": (schedules.RectifiedFlow, "schedules.rectified_flow for this class"),
}
"""Schedules that `save_scheduler` can write, by the kind that a class fixes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The times at which a scheduler of diffusers steps.

    Attributes:
      scheduler: Entry of `SCHEDULERS`.
      options: The checked options, with `log_snrs` for a chain.
      schedule: The noise schedule.
    """

    scheduler: Scheduler
    options: Mapping[str, Any]
    schedule: Schedule

    def __call__(self, steps: int, *, mu: float | None = None) -> Array:
        """The decreasing times of a run.

        Args:
          steps: `num_inference_steps` of diffusers.
          mu: The shift of `use_dynamic_shifting`, which pipelines compute from an
            image's size.

        Returns:
          Times of the schedule, (steps + 1,), or (steps,) where the last step of
          diffusers would start and end at the same time. The last may be 0.

        Raises:
          ValueError: If mu is missing, or is given without use_dynamic_shifting, or
            if the timesteps of diffusers are not distinct.
        """
        checks.integer("steps", steps, 1)
        dynamic = bool(self.options.get("use_dynamic_shifting"))
        word = "be given" if dynamic else "be None"
        message = f"mu must {word} with use_dynamic_shifting = {dynamic}, got {mu}"
        checks.require((mu is None) != dynamic, message)
        shift = {} if mu is None else {"mu": mu}
        times = self.scheduler.times(self.options, steps, **shift)
        return grids.checks.decreasing("grid(steps)", times, self.schedule, True)


def _read(folder, class_name):
    """The class of a folder's scheduler and its options."""
    config = folders.read_config(folder, folders.SCHEDULER_CONFIG)
    name = class_name or config["_class_name"]
    message = (
        f"the scheduler must be one of {', '.join(SCHEDULERS)}; got {name!r}. Pass "
        "class_name to read its configuration as one of these"
    )
    checks.require(name in SCHEDULERS, message)
    scheduler = SCHEDULERS[name]
    config = without_leftovers(config, name)
    return scheduler, options.read(config, name, scheduler.options, scheduler.rules)


def load_scheduler(
    folder: str | pathlib.Path, class_name: str | None = None
) -> tuple[Schedule, str, Grid]:
    """Read a scheduler's configuration.

    Args:
      folder: The folder of scheduler_config.json.
      class_name: A class to read the file for, as diffusers' `from_config` does.
        Options that it does not have are ignored. None for the class in the file.

    Returns:
      The schedule, the kind of prediction of `predictions.denoiser`, and the grid.
      `grid(steps)` returns the times of diffusers' timesteps.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the class or an option is not supported.

    Example:
      >>> from diffjax.interop import diffusers
      >>> chain = dj.schedules.from_betas(dj.ddpm.linear_betas(1000))
      >>> diffusers.save_scheduler("scheduler", chain, "noise", clip_sample=False)
      >>> schedule, kind, grid = diffusers.load_scheduler("scheduler")
      >>> [int(diffusers.timestep(schedule, t)) for t in grid(4)[:-1]]
      [750, 500, 250, 0]
    """
    scheduler, o = _read(folder, class_name)
    if o.get("clip_sample"):
        checks.warn(CLIP_WARNING.format(**o))
    if o.get("sigma_data", 0.5) != 0.5:
        checks.warn(SIGMA_DATA_WARNING.format(**o))
    schedule = scheduler.schedule(o)
    if isinstance(schedule, schedules.DiscreteChain):
        o = {**o, "log_snrs": np.asarray(schedule.log_snrs)}
    kind = scheduler.kind or KINDS[o["prediction_type"]]
    return schedule, kind, Grid(scheduler, o, schedule)


def solver(folder: str | pathlib.Path, class_name: str | None = None) -> Solver:
    """The solver whose steps are those of a scheduler of diffusers.

    Use it with the schedule and the grid of `load_scheduler`. In float64 its runs
    agree with diffusers' to rounding, including the lower orders of the last steps.
    DDPM of diffusers adds noise in its last step too, unless that is at timestep 0.
    Ours ends with the denoised example.

    Args:
      folder: The folder of scheduler_config.json.
      class_name: As in `load_scheduler`.

    Returns:
      The solver.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the class or an option is not supported.
    """
    scheduler, o = _read(folder, class_name)
    return scheduler.solver(o)


def save_scheduler(
    folder: str | pathlib.Path,
    schedule: Schedule,
    kind: str,
    *,
    class_name: str = "DDIMScheduler",
    **settings: Any,
) -> None:
    """Write scheduler_config.json for diffusers.

    Args:
      folder: The folder, made if it is absent.
      schedule: Made by `from_betas`, `edm` or `rectified_flow`.
      kind: What the network predicts: "noise", "data" or "v", "edm" for the EDM
        classes, "velocity" for FlowMatchEulerDiscreteScheduler.
      class_name: The class of diffusers that will read it.
      **settings: Further options of that class.

    Raises:
      ValueError: If the class has no such kind or option, or a setting contradicts
        the schedule or the kind.
      TypeError: If the class has no such schedule.

    Example:
      >>> from diffjax.interop import diffusers
      >>> edm = dj.schedules.edm()
      >>> diffusers.save_scheduler(
      ...     "edm", edm, "edm", class_name="EDMEulerScheduler"
      ... )
    """
    checks.choice("class_name", class_name, SCHEDULERS)
    scheduler = SCHEDULERS[class_name]
    accepted = {scheduler.kind} if scheduler.kind else {"noise", "data", "v"}
    checks.choice("kind", kind, sorted(accepted))
    checks.made_by("schedule", schedule, *SCHEDULE_TYPES[scheduler.kind])
    stated = _stated(schedule, scheduler.options)
    if scheduler.kind is None:
        stated["prediction_type"] = {v: k for k, v in KINDS.items()}[kind]
    twice = sorted(settings.keys() & (stated.keys() | SCHEDULE_OPTIONS))
    message = f"settings must not have {twice}, which follow from schedule and kind"
    checks.require(not twice, message)
    stated |= settings
    o = options.read(stated, class_name, scheduler.options, scheduler.rules)
    config = {"_class_name": class_name, "_diffusers_version": "0.42.1", **o}
    folders.write_config(folder, config, folders.SCHEDULER_CONFIG)


SCHEDULE_OPTIONS = {"beta_start", "beta_end", "beta_schedule", "trained_betas"}
SCHEDULE_OPTIONS |= {"num_train_timesteps", "rescale_betas_zero_snr"}
"""Options that state betas."""


def _stated(schedule, accepted):
    """The options that state a schedule, among the accepted ones of a class."""
    if isinstance(schedule, schedules.EDM):
        return {
            "sigma_min": float(schedule.t_min),
            "sigma_max": float(schedule.t_max),
        }
    if isinstance(schedule, schedules.RectifiedFlow):
        return {}
    betas = np.asarray(schedule.betas, np.float64)
    ends = {"beta_start": float(betas[0]), "beta_end": float(betas[-1])}
    count = {"num_train_timesteps": len(betas)}
    names = () if schedule.zero_terminal else BETAS
    for name in filter(accepted["beta_schedule"].accepts, names):
        made = BETAS[name](betas[0], betas[-1], len(betas))
        # Formulas of the same betas round differently.
        if np.allclose(made, betas, rtol=1e-9, atol=0):
            return {**count, **ends, "beta_schedule": name}
    rescaled = {"rescale_betas_zero_snr": True} if schedule.zero_terminal else {}
    return {**count, "trained_betas": betas.tolist(), **rescaled}
