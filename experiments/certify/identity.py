"""Which solver a table of coefficients is, and what is wrong with one that errs."""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from experiments.certify.coefficients import (
    NotAffine,
    NotFinite,
    Table,
    measure,
)
from experiments.certify.recording import Sampler

__all__ = [
    "Fault",
    "Known",
    "Match",
    "difference",
    "faults",
    "grids",
    "nearest",
    "tables",
]

SAME = 1e-5
"""Largest difference of two tables of one method, relative to the largest entry. The
tables of some libraries are in float32. Different methods are 1e-3 apart or more.
"""

TOLERANCE = 1e-4
"""Relative deviation from which a coefficient counts as inconsistent."""


class Match(NamedTuple):
    """A comparison of a known solver with a sampler.

    Attributes:
      name: The solver's name.
      difference: Greatest difference of the tables, infinite if they call the denoiser
        at other noise levels.
      same: States, from the first on, that agree, of how many. On the grid that does
        not end at 0.
      where: Where they differ first, in words. Empty where they do not.
    """

    name: str
    difference: float
    same: tuple[int, int]
    where: str


@functools.cache
def grids() -> tuple[np.ndarray, ...]:
    """The grids on which tables are compared, uneven so that no two methods agree."""
    uneven = np.array([6.0, 4.9, 3.7, 3.05, 2.2, 1.8, 1.35])
    return uneven, np.append(uneven[:-1], 0.0)


def tables(sampler: Sampler) -> tuple[Table | None, ...]:
    """The tables of a sampler on `grids`, None where it has none."""

    def of(grid):
        try:
            return measure(sampler, grid)
        except (NotAffine, NotFinite):
            return None

    return tuple(of(grid) for grid in grids())


def difference(name: str, one: Table, other: Table) -> Match:
    """The greatest difference of two tables on one grid.

    Noise is compared by its covariance, which does not depend on how draws are named.

    Args:
      name: Name of the second.
      one: A table.
      other: Another.

    Returns:
      The difference, relative to the scale of the start.
    """
    total = len(one.sigmas) + 1
    common = min(len(one.sigmas), len(other.sigmas))
    apart = np.abs(one.sigmas[:common] / other.sigmas[:common] - 1) > SAME
    called = int(np.argmax(apart)) if apart.any() else common
    same = SAME if one.exact and other.exact else 0.05
    for kind, ours, theirs in (
        ("coefficient", one.states, other.states),
        ("noise", one.noise @ one.noise.T, other.noise @ other.noise.T),
    ):
        rows = (
            called
            if called < total - 1 or len(one.sigmas) != len(other.sigmas)
            else total
        )
        entries = np.abs(ours[:rows, :rows] - theirs[:rows, :rows])
        if (entries > same).any():
            row, column = np.argwhere(entries > same)[0]
            state = "result" if row == total - 1 else f"state at call {row + 1}"
            where = (
                f"at the {state} the coefficient of {_coefficient(kind, column)} is "
                f"{ours[row, column]:.4g}, in {name} {theirs[row, column]:.4g}"
            )
            largest = float("inf") if rows < total else float(entries.max())
            return Match(name, largest, (int(row), total), where)
    if rows < total:
        where = (
            f"call {called + 1} is at σ = {one.sigmas[called]:.4g}, not "
            f"{other.sigmas[called]:.4g}"
            if called < common
            else f"{len(one.sigmas)} calls, not {len(other.sigmas)}"
        )
        return Match(name, float("inf"), (called, total), where)
    largest = max(np.abs(one.states - other.states).max(), 0.0)
    return Match(name, float(largest), (total, total), "")


def _coefficient(kind, column):
    if kind == "noise":
        return f"the noise, as its covariance with that at call {column + 1},"
    return "the start" if column == 0 else f"denoised output {column}"


class Known(NamedTuple):
    """A solver that others are compared with.

    Attributes:
      name: Its name.
      calls: Its evaluations in the steps of the first of `grids`.
      stochastic: Whether it adds noise.
      tables: () -> its tables on `grids`.
    """

    name: str
    calls: int | None
    stochastic: bool
    tables: Callable[[], tuple[Table | None, ...]]


def nearest(sampler: Sampler, known: Iterable[Known]) -> list[Match]:
    """Known solvers with as many calls, by the difference of their tables.

    Args:
      sampler: The sampler.
      known: The solvers to compare it with.

    Returns:
      The matches, nearest first.

    Raises:
      NotAffine: If the sampler has no table.
    """
    measured = tables(sampler)
    if measured[0] is None:
        raise NotAffine("there is no table to compare")
    alike = len(measured[0].sigmas), measured[0].stochastic
    matches = []
    for solver in known:
        if (solver.calls, solver.stochastic) != alike:
            continue
        pairs = [
            difference(solver.name, one, other)
            for one, other in zip(measured, solver.tables(), strict=True)
            if one is not None and other is not None
        ]
        if pairs:
            apart = next((pair for pair in pairs if pair.where), pairs[0])
            largest = max(pair.difference for pair in pairs)
            to_zero = apart is not pairs[0]
            where = f"{apart.where}, of a run to 0" if to_zero else apart.where
            matches.append(Match(solver.name, largest, pairs[0].same, where))
    return sorted(matches, key=lambda match: (match.difference, -match.same[0]))


# ------------------------------------------------------------------------- faults


ALPHAS = {
    "variance-preserving": lambda sigma: 1 / np.sqrt(1 + sigma**2),
    "linear path": lambda sigma: 1 / (1 + sigma),
}
"""α of a noise level σ/α on the schedules in which samplers are written."""


class Fault(NamedTuple):
    """An inconsistency of a table.

    Attributes:
      text: What it is, in words.
      recognised: Whether it is a known mistake. Others may vanish with short steps.
    """

    text: str
    recognised: bool


def faults(table: Table) -> list[Fault]:
    """The inconsistent coefficients of a table.

    With x_0 = c and every output c, a state c + σ ε must become c + σ' ε'. The
    coefficients of a step are compared with that.

    Args:
      table: A table of a grid with evenly many calls per step.

    Returns:
      The faults. Empty for a consistent table.
    """
    sentences = _unused(table)
    per_step = _calls_per_step(table)
    rows = np.arange(1, len(table.sigmas) + 1)
    for stage in range(per_step):
        wrong = _level_of_another_step(
            table, np.arange(stage, len(table.sigmas), per_step)
        )
        if wrong is not None and stage == 0:
            sentences.append(wrong)
            continue
        states = _States.of(table, rows[rows % per_step == stage], per_step)
        where = "next state" if stage == 0 else f"state at call {stage + 1} of a step"
        for fault in (_signal_fault(states), _noise_fault(states, table.stochastic)):
            if fault is not None:
                sentences.append(fault._replace(text=f"{where}: {fault.text}"))
    return sentences


def _calls_per_step(table):
    return max(1, round(len(table.sigmas) / (len(table.grid) - 1)))


def _unused(table):
    used = np.abs(table.states[:, 1:]).max(0) > 0
    per_step = _calls_per_step(table)
    stages = [k + 1 for k in range(per_step) if not used[k::per_step].any()]
    listed = ", ".join(map(str, stages))
    text = f"the denoised output of call {listed} of a step is not used"
    return [Fault(text, True)] if stages else []


def _level_of_another_step(table, calls):
    """Whether all these calls state a level that is not that of their state."""
    spread = (table.states[calls, 0] * table.grid[0]) ** 2
    level = np.sqrt(spread + (table.noise[calls] ** 2).sum(1))
    stated = table.sigmas[calls]
    apart = np.abs(level / np.where(stated > 0, stated, 1) - 1) > TOLERANCE
    near = np.abs(level[:, None] / table.grid[table.grid > 0] - 1).min(1) < TOLERANCE
    # The last call may have no further level to be confused with.
    if not (apart[:-1].all() and near.all() and len(calls) > 1):
        return None
    return Fault(
        f"the denoiser is called with the noise level of another step: σ = "
        f"{stated[0]:.4g} for the first state, which has {level[0]:.4g}",
        True,
    )


class _States(NamedTuple):
    """States of one stage, as steps from the state at their step's first call."""

    before: np.ndarray
    stated: np.ndarray
    keep: np.ndarray
    signal: np.ndarray
    noise: np.ndarray

    @classmethod
    def of(cls, table, rows, per_step):
        bases = (rows - 1) // per_step * per_step
        levels = np.append(table.sigmas, table.grid[-1])
        start = table.states[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            keep = start[rows] / start[bases]
        gains = table.states[rows] - keep[:, None] * table.states[bases]
        noise = table.noise[rows] - keep[:, None] * table.noise[bases]
        signal = keep + gains[:, 1:].sum(1)
        spread = np.sqrt((noise**2).sum(1))
        return cls(levels[bases], levels[rows], keep, signal, spread)


def _signal_fault(states):
    """The factor of a constant c in the new state, which should be 1."""
    factor = states.signal
    if not np.isfinite(factor).all() or np.abs(factor - 1).max() < TOLERANCE:
        return None
    for schedule, alpha in ALPHAS.items():
        ratio = alpha(states.before) / alpha(states.stated)
        for exponent, used, due in ((1, "α_t", "α_s"), (-1, "α_s", "α_t")):
            if np.abs(factor / ratio**exponent - 1).max() < TOLERANCE:
                return Fault(
                    f"a constant denoised output enters it {used}/{due} times, not "
                    f"once. {used} stands where {due} belongs (t is the step's start, "
                    f"s its end, α that of the {schedule})",
                    True,
                )
    return Fault(
        f"a constant denoised output enters it {factor.min():.4g} to "
        f"{factor.max():.4g} times, not once. The share of the state and those of the "
        "outputs do not add up to 1",
        False,
    )


def _noise_fault(states, stochastic):
    """The noise level of the new state, which should be the stated one."""
    level = np.sqrt((states.keep * states.before) ** 2 + states.noise**2)
    before, due = states.before, states.stated
    apart = np.where(due > 0, np.abs(level - due) / np.where(due > 0, due, 1), 0)
    if not np.isfinite(level).all() or apart.max() < TOLERANCE:
        return None
    places = {
        "that of the step's start: the step to it is missing": before[0],
        "halfway in σ: half of the step to it is missing": (before + due)[0] / 2,
        "halfway in log σ: half of the step to it is missing": np.sqrt(before * due)[0],
    }
    numbers = (
        f"its noise level is {level[0]:.4g} in the first step, where the denoiser "
        f"is called with {due[0]:.4g}"
    )
    # Only the first step starts from a state that is right.
    for words, place in places.items():
        if abs(level[0] / place - 1) < TOLERANCE:
            return Fault(f"{numbers}. It is {words}", True)
    if stochastic and level[0] < due[0] and not states.noise.any():
        return Fault(f"{numbers}. Noise is missing", True)
    return Fault(numbers, False)
