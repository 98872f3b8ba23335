"""The coefficients of a sampler, measured from outside.

Most samplers are affine in their start, in the denoiser's outputs and in their normal
numbers once these are given. So the start is the first unit vector, output k the k-th
one after it, and each draw a further one. Every state then shows its coefficients.
"""

from typing import NamedTuple

import numpy as np

from experiments.certify.recording import Run, Sampler, record

__all__ = ["NotAffine", "NotFinite", "Table", "measure", "moments", "signal_and_noise"]

ROUNDING = 1e-6
"""Largest relative error of a run that its table predicts. float32 has 1e-7."""

CHECKED = 4
"""Entries of a run that only counts calls or tests a table."""

MULTIPLE = 32
"""Runs of compiled samplers have a multiple of this many entries."""

WIDTH = 2**13
"""Entries of a run that estimates the noise of a sampler with hidden draws."""


class NotFinite(ValueError):
    """A sampler whose result is not finite."""


class NotAffine(ValueError):
    """A sampler that no table of coefficients describes."""


class Table(NamedTuple):
    """The coefficients of a run of K calls and J draws.

    Attributes:
      grid: Noise levels of the run, (N + 1,).
      sigmas: Noise level of each call, (K,).
      states: Coefficients of the state at each call and of the result, by the
        start and the outputs, (K + 1, K + 1).
      noise: Those by the draws, (K + 1, J).
      exact: Whether `noise` was read off. Otherwise it has the covariance of `WIDTH`
        entries.
    """

    grid: np.ndarray
    sigmas: np.ndarray
    states: np.ndarray
    noise: np.ndarray
    exact: bool

    @property
    def stochastic(self) -> bool:
        """Whether the result has noise of its own."""
        return bool(np.abs(self.noise).max(initial=0) > 0)


def measure(sampler: Sampler, sigmas: np.ndarray) -> Table:
    """Measure the coefficients of a sampler on a grid.

    Args:
      sampler: The sampler.
      sigmas: Decreasing noise levels (N + 1,). The last may be 0.

    Returns:
      The table.

    Raises:
      NotAffine: If the calls depend on the outputs, as those of adaptive methods, or
        a run with other outputs does not follow the table.
    """
    zero = lambda *_: np.zeros(1)
    wide = _width(sampler, sigmas)
    nothing = lambda *_: np.zeros(wide)
    silent = record(sampler, np.zeros((1, wide)), sigmas, zero, noise=nothing)
    calls, draws = len(silent.sigmas), silent.draws
    _check_finite(sampler, sigmas, silent, wide)
    if silent.end.any() or silent.states.any():
        table = _with_hidden_noise(sampler, sigmas, calls)
    else:
        size = max(wide, 1 + calls + draws)
        unit = np.eye(size)
        run = record(
            sampler,
            unit[:1],
            sigmas,
            lambda call, *_: unit[min(call + 1, size - 1)],
            noise=lambda i: unit[min(1 + calls + i, size - 1)],
        )
        rows = _rows(run, calls)
        noise = rows[:, calls + 1 : calls + 1 + draws]
        table = Table(sigmas, run.sigmas, rows[:, : calls + 1], noise, True)
    _check(sampler, table, wide)
    return table


def _check_finite(sampler, sigmas, silent, wide):
    """Raise NotAffine if only a run of zeros is not finite, ValueError if every run."""
    if np.isfinite(silent.end).all():
        if not np.isfinite(silent.states).all():
            raise NotFinite("a state is not finite")
        return
    start = np.random.default_rng(0).normal(size=(1, wide))
    outputs = lambda call, rows, sigma: rows / (1 + sigma**2)
    quiet = lambda *_: np.zeros(wide)
    if np.isfinite(record(sampler, start, sigmas, outputs, noise=quiet).end).all():
        raise NotAffine("of a zero start and zero outputs the result is not finite")
    raise NotFinite("the result is not finite")


def _width(sampler, sigmas):
    """Entries of the runs, the same for all of a table where their number is known.

    Compiled samplers are then compiled once.
    """
    if sampler.evaluations is None:
        return CHECKED
    steps = len(sigmas) - 1
    calls = sampler.evaluations(steps, bool(sigmas[-1] == 0)) or 0
    wanted = 1 + calls + steps * sampler.draws
    return -(-wanted // MULTIPLE) * MULTIPLE


def _rows(run: Run, calls: int) -> np.ndarray:
    """States at the calls and the result, (K + 1, D). Raises NotAffine."""
    if len(run.sigmas) != calls:
        raise NotAffine("the number of calls depends on the denoiser's outputs")
    return np.concatenate([run.states[:, 0], run.end[:1]])


def _with_hidden_noise(sampler, sigmas, calls):
    """The table of a sampler whose random numbers cannot be replaced."""
    unit = np.eye(calls + 1)
    zero = lambda *_: np.zeros(1)
    with_unit = record(
        sampler, unit[:1], sigmas, lambda call, *_: unit[min(call + 1, calls)]
    )
    silent = record(sampler, 0 * unit[:1], sigmas, zero)
    again = record(sampler, 0 * unit[:1], sigmas, zero)
    if not np.array_equal(again.end, silent.end):
        raise NotAffine(
            "two equal runs differ: it keeps a state, or draws numbers without a seed. "
            "Draw them by numpy.random, torch or a fixed key"
        )
    states = _rows(with_unit, calls) - _rows(silent, calls)
    wide = _rows(record(sampler, np.zeros((1, WIDTH)), sigmas, zero, seed=1), calls)
    if any(row.any() and np.ptp(row) == 0 for row in wide):
        raise NotAffine("it adds a constant to the state")
    values, vectors = np.linalg.eigh(wide @ wide.T / WIDTH)
    noise = vectors * np.sqrt(np.maximum(values, 0))
    return Table(sigmas, with_unit.sigmas, states, noise, False)


def _check(sampler, table, wide):
    """Raise NotAffine unless a run with random outputs follows the table."""
    rng = np.random.default_rng(0)
    calls = len(table.sigmas)
    start, outputs = rng.normal(size=(1, wide)), rng.normal(size=(calls, wide))
    terms = table.states @ np.concatenate([start, outputs])
    if table.exact:
        draws = rng.normal(size=(table.noise.shape[1], wide))
        noise = lambda i: draws[min(i, len(draws) - 1)]
        terms += table.noise @ draws
    else:
        noise = None
        zero = record(sampler, 0 * start, table.grid, lambda *_: np.zeros(1))
        terms += _rows(zero, calls)
    of_call = lambda call, *_: outputs[min(call, calls - 1)]
    run = record(sampler, start, table.grid, of_call, noise=noise)
    error = np.abs(_rows(run, calls) - terms).max()
    if not error <= ROUNDING * np.abs(terms).max():
        raise NotAffine(
            "with random outputs the states differ from the table's by "
            f"{error / np.abs(terms).max():.1e}: it clips, rescales or adapts"
        )


def signal_and_noise(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Signal and noise that a state keeps where every output is the exact x_0.

    x_0 = c and x = c + σ ε. A state that is consistent with its call's noise level is
    c + σ ε' again. Both numbers are then 1.

    Args:
      table: A table.

    Returns:
      The factor of c, and the standard deviation of the noise over the level, (K + 1,)
      each, of the states at the calls and of the result. The noise is nan at level 0.
    """
    signal = table.states.sum(1)
    levels = np.append(table.sigmas, table.grid[-1])
    spread = np.sqrt(
        (table.states[:, 0] * table.grid[0]) ** 2 + (table.noise**2).sum(1)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.where(levels > 0, spread / levels, np.nan)
    return signal, noise


def moments(table: Table, mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance of the result for a normal distribution, exact denoiser.

        D(x, σ) = m + v/(v + σ²) (x − m)

    Args:
      table: A table.
      mean: m.
      variance: v.

    Returns:
      Mean and variance, exact but for rounding and, where the table has estimated
      noise, its standard error √(2/WIDTH).
    """
    calls = len(table.sigmas)
    start = table.grid[0]
    scaled = np.isfinite(start)
    # Columns: constant, start (of unit variance), draws.
    basis = np.zeros((calls + 1, 2 + table.noise.shape[1]))
    basis[0, 0] = mean if scaled else 0.0
    basis[0, 1] = np.sqrt(variance + start**2) if scaled else 1
    for k in range(calls + 1):
        state = table.states[k, : k + 1] @ basis[: k + 1]
        state[2:] += table.noise[k]
        if k == calls:
            return float(state[0]), float((state[1:] ** 2).sum())
        gain = variance / (variance + table.sigmas[k] ** 2)
        basis[k + 1] = gain * state
        basis[k + 1, 0] += (1 - gain) * mean
    raise AssertionError("a table has a last row")
