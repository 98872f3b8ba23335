"""Grids of published models and of chains of discrete steps."""

import jax.numpy as jnp
import numpy as np

from .. import checks
from ..numerics import float_dtype
from ..schedules import Indexed, Schedule
from ..types import Array, ArrayLike
from .editing import to_zero
from .times import at_ratios

ALIGN_YOUR_STEPS = {
    "stable_diffusion_1.5": (
        14.615,
        6.475,
        3.861,
        2.697,
        1.886,
        1.396,
        0.963,
        0.652,
        0.399,
        0.152,
        0.029,
    ),
    "sdxl": (
        14.615,
        6.315,
        3.771,
        2.181,
        1.342,
        0.862,
        0.555,
        0.380,
        0.234,
        0.113,
        0.029,
    ),
    "deepfloyd": (
        160.41,
        8.081,
        3.315,
        1.885,
        1.207,
        0.785,
        0.553,
        0.293,
        0.186,
        0.030,
        0.006,
    ),
    "svd": (
        700.00,
        54.5,
        15.886,
        7.977,
        4.248,
        1.789,
        0.981,
        0.403,
        0.173,
        0.034,
        0.002,
    ),
}
"""model -> σ/α at the 11 times of its 10 steps. Sabour et al. 2024, Table 3."""


def align_your_steps(
    schedule: Schedule, steps: int, table: str = "stable_diffusion_1.5"
) -> Array:
    """Levels σ/α fitted to a published model, log-linearly interpolated from its 10 steps to `steps`, (steps + 1,).

    table: the model, a key of `ALIGN_YOUR_STEPS`. Ends of the table are read to their printed digits: up to 5e-4
    outside of the schedule's range they are its end. The paper's samplers append a step to 0: `to_zero`. Raises
    ValueError where the schedule does not reach the table's levels. Sabour et al. 2024, Table 3.
    """
    levels = np.array(ALIGN_YOUR_STEPS[checks.choice("table", table, ALIGN_YOUR_STEPS)])
    steps = checks.integer("steps", steps, minimum=1)
    at, nodes = (np.linspace(0, 1, count) for count in (steps + 1, len(levels)))
    ratios = np.exp(np.interp(at, nodes, np.log(levels)))
    return at_ratios(f"the levels of table {table!r}", schedule, ratios, slack=5e-4)


def ddpm(
    schedule: Indexed, steps: int, spacing: str = "leading", steps_offset: int = 0
) -> Array:
    """Times of `steps` of a chain's T indices, then 0: shape (steps + 1,).

    Counted from 1, falling, for i = 0 … steps − 1: "leading" 1 + steps_offset + i ⌊T / steps⌋, "linspace" 1 +
    round(i (T − 1)/(steps − 1)), "trailing" round(T − i T / steps), halves to even. steps_offset is for "leading"
    alone; 1 for Stable Diffusion. Raises TypeError for a schedule without indices, ValueError for more steps than T or
    indices past T. diffusers' timestep_spacing and steps_offset; Lin et al. 2024, Table 2.
    """
    total = _chain(schedule).steps
    steps = checks.integer("steps", steps, minimum=1, maximum=total)
    steps_offset = checks.integer("steps_offset", steps_offset, minimum=0)
    if steps_offset and spacing != "leading":
        raise ValueError(
            f"steps_offset must be 0 unless spacing is 'leading', got {steps_offset} with {spacing!r}"
        )
    rules = {
        "leading": lambda: (1 + steps_offset + np.arange(steps) * (total // steps))[
            ::-1
        ],
        "linspace": lambda: 1 + np.round(np.linspace(0, total - 1, steps))[::-1],
        "trailing": lambda: np.round(
            np.arange(total, 0, -total / steps)[:steps]
        ),  # its rounding may give one more
    }
    return to_zero(
        from_indices(
            schedule, rules[checks.choice("spacing", spacing, rules)]().astype(int)
        )
    )


def from_indices(schedule: Indexed, indices: ArrayLike) -> Array:
    """Times index / T of a chain's or ladder's indices in 1 … T, shape of indices: decreasing integers.

    Raises TypeError for a schedule that has no indices or indices that are not integers, ValueError for indices out of
    range or not decreasing.
    """
    total = _chain(schedule).steps
    values = np.asarray(indices)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"indices must be integers, got dtype {values.dtype}")
    if values.ndim != 1 or values.size == 0 or np.any(np.diff(values) >= 0):
        raise ValueError(f"indices must be a decreasing sequence, got {values}")
    if values[-1] < 1 or values[0] > total:
        raise ValueError(
            f"indices must lie in 1 … {total}, got {values[0]} … {values[-1]}"
        )
    return jnp.asarray(values / total, float_dtype())


def _chain(schedule: Schedule) -> Indexed:
    if not isinstance(schedule, Indexed):
        made = "schedules.from_sigmas or schedules.from_betas"
        raise TypeError(
            f"schedule must be made by {made} to have indices, got {type(schedule).__name__}"
        )
    return schedule
