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

CLIPPED = (
    "clip_sample is true, but no denoiser is clipped here. To clip it, pass lambda x, "
    "t: jnp.clip(denoiser(x, t), -{clip_sample_range}, {clip_sample_range}). DDIM of "
    "diffusers then keeps the noise of the unclipped output, where ours takes that of "
    "the clipped one"
)
SIGMA_DATA = "pass sigma_data={sigma_data} to model.denoiser(schedule, kind)"

MADE = {
    None: (schedules.DiscreteChain, "schedules.from_betas for this class"),
    "edm": (schedules.EDM, "schedules.edm for this class"),
    "velocity": (schedules.RectifiedFlow, "schedules.rectified_flow for this class"),
}
"""Schedules that `save_scheduler` can write, by the kind that a class fixes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The times at which a scheduler of diffusers steps.

    Attributes:
      scheduler: Its class.
      options: Its options.
      schedule: Its schedule.
    """

    scheduler: Scheduler
    options: Mapping[str, Any]
    schedule: Schedule

    def __call__(self, steps: int, *, mu: float | None = None) -> Array:
        """The decreasing times of a run.

        A last step that changes nothing, to the level at which it starts, is left
        out.

        Args:
          steps: `num_inference_steps` of diffusers.
          mu: The shift of `use_dynamic_shifting`, which pipelines compute from an
            image's size.

        Returns:
          Times of the schedule, (steps + 1,). The last may be 0.

        Raises:
          ValueError: If mu is missing or not used, and if diffusers has no such
            steps.
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
      class_name: Another class, which takes those options that it shares.

    Returns:
      The schedule, the kind of prediction of `predictions.denoiser`, and the grid:
      grid(steps) are the times of the timesteps that diffusers takes.

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
        checks.warn(CLIPPED.format(**o))
    if o.get("sigma_data", 0.5) != 0.5:
        checks.warn(SIGMA_DATA.format(**o))
    schedule = scheduler.schedule(o)
    if isinstance(schedule, schedules.DiscreteChain):
        o = {**o, "log_snrs": np.asarray(schedule.log_snrs)}
    kind = scheduler.kind or KINDS[o["prediction_type"]]
    return schedule, kind, Grid(scheduler, o, schedule)


def solver(folder: str | pathlib.Path, class_name: str | None = None) -> Solver:
    """The solver whose steps are those of a scheduler of diffusers.

    Use it with the schedule and the grid of `load_scheduler`. In float64 its runs
    agree with diffusers' to rounding, the orders of the last steps included. DDPM of
    diffusers adds noise in its last step too, unless that is at timestep 0. Ours
    ends with the denoised example.

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
      kind: What the network predicts.
      class_name: The class of diffusers that will read it.
      **settings: Further options of that class.

    Raises:
      ValueError: If the class has no such kind or option.
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
    checks.made_by("schedule", schedule, *MADE[scheduler.kind])
    stated = {**_stated(schedule), **settings}
    if scheduler.kind is None:
        stated["prediction_type"] = {v: k for k, v in KINDS.items()}[kind]
    o = options.read(stated, class_name, scheduler.options, scheduler.rules)
    config = {"_class_name": class_name, "_diffusers_version": "0.42.1", **o}
    folders.write_config(folder, config, folders.SCHEDULER_CONFIG)


def _stated(schedule):
    """The options that state a schedule."""
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
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        made = BETAS[name](betas[0], betas[-1], len(betas))
        if np.allclose(made, betas, rtol=1e-12, atol=0):
            return {**count, **ends, "beta_schedule": name}
    rescaled = {"rescale_betas_zero_snr": True} if schedule.zero_terminal else {}
    return {**count, "trained_betas": betas.tolist(), **rescaled}
