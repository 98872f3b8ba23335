"""Grids of published models, and of the indices of a chain."""

import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..schedules import Indexed, Schedule
from ..schedules.chain import INDEXED
from ..types import Array, ArrayLike
from .editing import to_zero
from .times import arguments, at_ratios

__all__ = ["ALIGN_YOUR_STEPS", "align_your_steps", "ddpm", "from_indices"]

# fmt: off
ALIGN_YOUR_STEPS = {
    "stable_diffusion_1.5": (
        14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029,
    ),
    "sdxl": (
        14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029,
    ),
    "deepfloyd": (
        160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006,
    ),
    "svd": (
        700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002,
    ),
}
# fmt: on
"""model -> σ/α at the 11 times of its 10 steps. Sabour et al. 2024, Table 3."""


@arguments(table=(checks.choice, ALIGN_YOUR_STEPS))
def align_your_steps(
    schedule: Schedule, steps: int, table: str = "stable_diffusion_1.5"
) -> Array:
    """Times at values of σ/α fitted to a published model (Sabour et al. 2024).

    They are interpolated log-linearly from the model's 10 steps. The paper's
    samplers append a step to 0, see `to_zero`.

    Args:
      schedule: A schedule that reaches the table's noise levels. Ends of the
        table are read to their printed digits: up to 5e-4 outside of the
        schedule's range they are its end.
      steps: N, 1 or more.
      table: The model, a key of `ALIGN_YOUR_STEPS`.

    Returns:
      Decreasing times, (steps + 1,).

    Raises:
      ValueError: For another model, or where the schedule does not reach the
        table's noise levels.

    Example:
      >>> np.asarray(dj.grids.align_your_steps(dj.schedules.edm(), 2, "sdxl")).round(3)
      array([14.615,  0.862,  0.029], dtype=float32)
    """
    fitted = np.array(ALIGN_YOUR_STEPS[table])
    at, nodes = (np.linspace(0, 1, count) for count in (steps + 1, len(fitted)))
    ratios = np.exp(np.interp(at, nodes, np.log(fitted)))
    return at_ratios(f"the ratios σ/α of table {table!r}", schedule, ratios, slack=5e-4)


SPACINGS = ("leading", "linspace", "trailing")


@checks.arguments(
    schedule=INDEXED,
    spacing=(checks.choice, SPACINGS),
    steps_offset=(checks.integer, 0),
)
def ddpm(
    schedule: Indexed, steps: int, spacing: str = "leading", steps_offset: int = 0
) -> Array:
    """Times of some of a chain's indices, then 0, as in diffusers.

    Counted from 1 and falling, for i = 0 … steps − 1, the indices are

        "leading"     1 + steps_offset + i ⌊T/steps⌋
        "linspace"    1 + round(i (T − 1)/(steps − 1))
        "trailing"    round(T − i T/steps)

    with halves rounded to even. These are diffusers' `timestep_spacing` and
    `steps_offset`.

    Args:
      schedule: A chain or ladder of T indices.
      steps: How many indices, 1 to T.
      spacing: The rule, see above.
      steps_offset: For "leading" alone, 0 or more. 1 for Stable Diffusion.

    Returns:
      Decreasing times and 0, (steps + 1,).

    Raises:
      TypeError: For a schedule without indices.
      ValueError: For more steps than T, or indices past T.

    References:
      Lin et al. 2024, Table 2.

    Example:
      >>> chain = dj.schedules.from_betas(dj.ddpm.linear_betas(1000))
      >>> np.asarray(dj.grids.ddpm(chain, 2, "trailing"))
      array([1. , 0.5, 0. ], dtype=float32)
    """
    total = schedule.steps
    steps = checks.integer("steps", steps, minimum=1, maximum=total)
    checks.require(
        spacing == "leading" or not steps_offset,
        f"steps_offset must be 0 unless spacing is 'leading', got {steps_offset}",
    )
    if spacing == "leading":
        indices = (1 + steps_offset + np.arange(steps) * (total // steps))[::-1]
    elif spacing == "linspace":
        indices = 1 + np.round(np.linspace(0, total - 1, steps))[::-1]
    else:  # the rounding of arange may make one more
        indices = np.round(np.arange(total, 0, -total / steps)[:steps])
    return to_zero(from_indices(schedule, indices.astype(int)))


@checks.arguments(schedule=INDEXED, indices=checks.integers)
def from_indices(schedule: Indexed, indices: ArrayLike) -> Array:
    """Times index / T of a chain's or ladder's indices.

    Args:
      schedule: A chain or ladder of T indices.
      indices: Decreasing integers in 1 … T.

    Returns:
      Decreasing times, of the shape of indices.

    Raises:
      TypeError: For a schedule that has no indices, or indices that are not
        integers.
      ValueError: For indices out of range or not decreasing.

    Example:
      >>> chain = dj.schedules.from_betas(dj.ddpm.linear_betas(1000))
      >>> np.asarray(dj.grids.from_indices(chain, [1000, 500, 1]))
      array([1.   , 0.5  , 0.001], dtype=float32)
    """
    checks.decreasing("indices", checks.column("indices", indices, "K", 1))
    checks.all_within("indices", indices, 1, schedule.steps)
    # Divided in float64 on the host and rounded once
    return jnp.asarray(np.asarray(indices) / schedule.steps, float_dtype())
