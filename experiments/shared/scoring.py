"""The test score of a denoiser: log p along the probability flow, with estimates
of its errors.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from experiments.shared import cli, devices, mapping
from experiments.shared.datasets import Dataset

LEAST_FLOOR = 1 / 24
"""Least σ/α at t_min for lattice data, in spacings of the levels."""

_ORDER = 3
"""Order by which errors of the grid are estimated. RK4 has 4 on finer grids than
those used here.
"""


def default_steps(data: Dataset, steps: int | None = None) -> int:
    """Runge-Kutta steps of the score of a data set.

    The least noise is a part of the levels' spacing. A U-Net of 1.7 M on 32 × 32
    patches at 256 levels had errors of the steps of 2.3 bits/dim at 16 steps,
    0.10 at 48 and 0.008 at 96. A DiT on digits at 17 levels had 0.003 at 16.

    Args:
      data: Has the levels.
      steps: The number that the user gave, if any.

    Returns:
      That number, or without one 96 for more than 64 levels, else 16.
    """
    if steps is not None:
        return steps
    many = data.levels is not None and len(data.levels) > 64
    return 96 if many else 16


def likelihood_grid(schedule: Any, steps: int) -> jax.Array:
    """A grid for log p that is dense in log-SNR where the denoiser changes.

        density of the steps: 0.1 + sigmoid(log-SNR/2 − 1)

    Above σ/α = 1 the denoiser barely moves. Levels of lattice data and details
    resolve within a few units of log-SNR at little noise, where a grid with
    large steps overestimates log p.

    Args:
      schedule: A schedule with a finite log-SNR at t_max.
      steps: The number of steps.

    Returns:
      Decreasing times from t_max to t_min, (steps + 1,).
    """
    low, high = np.asarray(_log_snr_range(schedule), np.float64)
    values = np.linspace(low, high, 2001)
    density = 0.1 + 1 / (1 + np.exp(1 - values / 2))
    total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    placed = np.interp(np.linspace(0, total[-1], steps + 1), total, values)
    return _times(schedule, placed.astype(dj.numerics.float_dtype()))


@jax.jit
def _log_snr_range(schedule):
    return jnp.stack(
        [dj.schedules.log_snr(schedule, t) for t in (schedule.t_max, schedule.t_min)]
    )


@jax.jit
def _times(schedule, log_snrs):
    """Times of increasing log-SNR. The ends are set to t_max and t_min exactly."""
    return (
        dj.schedules.time_of_log_snr(schedule, log_snrs)
        .at[0]
        .set(schedule.t_max)
        .at[-1]
        .set(schedule.t_min)
    )


def likelihood(
    data: Dataset, schedule: Any, *, probes: int, bound_times: int = 0
) -> Callable:
    """The log-likelihood of one example along the probability flow, for
    `mapping.over_examples`.

    Lattice data are dequantised by Gaussian noise
    (`likelihood.lattice_log_prob`). No array has an axis of levels unless the
    network predicts levels.

    Args:
      data: Has the levels.
      schedule: The noise schedule.
      probes: Hutchinson probes per example.
      bound_times: Times of the variational bound per example
        (`ddpm.continuous_elbo`), 0 for none.

    Returns:
      A function ((denoiser, grid), key, example) -> (log p, its standard error
        over probes), both in nats. With times, also minus the variational
        bound.
    """
    # XLA computes transposed convolutions within loops on CPUs twenty times as
    # slowly as others. Forward mode has none.
    on_cpu = jax.default_backend() == "cpu"
    flow: dict[str, Any] = {
        "divergence": "hutchinson_forward" if on_cpu else "hutchinson",
        "probes": probes,
        "solver": dj.solvers.rk4(),
        "info": True,
    }
    levels = data.levels

    def one(state, key, x):
        denoiser, grid = state
        if levels is None:
            values, details = dj.log_prob(
                denoiser, schedule, x, key=key, grid=grid, **flow
            )
        else:
            values, details = dj.likelihood.lattice_log_prob(
                key, denoiser, schedule, x, levels=levels, grid=grid, **flow
            )
        if not bound_times:
            return values, details.standard_error
        bound = variational_bound(
            key, denoiser, schedule, x, levels=levels, times=bound_times
        )
        return values, details.standard_error, -bound

    return one


def variational_bound(
    key: jax.Array,
    denoiser: Any,
    schedule: Any,
    x: jax.Array,
    *,
    levels: np.ndarray | None,
    times: int,
) -> jax.Array:
    """An estimate of the variational bound on −log p(x), in nats.

    Its times are even in the log-SNR. The decoder of lattice data is the
    evidence of the levels at the noise floor, the same as that of the flow.

    Args:
      key: Of times and noise.
      denoiser: The denoiser.
      schedule: The noise schedule.
      x: One example.
      levels: Of lattice data, else None.
      times: Number of times.

    Returns:
      Nats, ().
    """
    return dj.ddpm.continuous_elbo(
        jax.random.fold_in(key, 0),
        denoiser,
        schedule,
        x,
        count=times,
        times="log_snr",
        levels=levels,
        decoder="denoised" if levels is None else "evidence",
        chunk=1,
    ).total


def arguments(
    data: Dataset, denoiser: Any, *, steps: int | None, chunk: int, count: int
) -> tuple:
    """Shapes of the arguments of the program in `score`, for compiling ahead of
    time.

    Args:
      data: As in `score`.
      denoiser: The shapes of the denoiser's arrays.
      steps: As in `score`.
      chunk: As in `score`.
      count: The greatest number of examples that will be scored.

    Returns:
      ((denoiser, grid), keys, examples) of one chunk.
    """
    size = chunk_size(count, chunk)
    count_of_times = default_steps(data, steps) + 1
    grid = jax.ShapeDtypeStruct((count_of_times,), dj.numerics.float_dtype())
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
    examples = jax.ShapeDtypeStruct((size, *data.shape), float)
    return devices.whole_shapes((denoiser, grid)), keys, examples


def order(key: jax.Array, count: int) -> np.ndarray:
    """The random order in which `score` takes its examples.

    Args:
      key: The key of `score`.
      count: The number of test examples.

    Returns:
      A permutation of 0 … count − 1. Of a run that scores n examples the first
        n count.
    """
    # A counter beyond those of the examples' own keys
    return np.asarray(jax.random.permutation(jax.random.fold_in(key, 2**31), count))


LEAST_EXAMPLES = 32
"""Fewest examples after which a score may stop. A standard error over n has itself
the relative error 1/√(2(n − 1)) for normal values, an eighth at 32.
"""


def is_precise(values: np.ndarray, error: float) -> bool:
    """Whether the mean of examples drawn so far is known to a precision.

        s/√n · (1 + 1/√(2(n − 1))) ≤ error,    n ≥ 32

    The factor is one standard error of the standard error itself. Without it,
    stopping where the estimate happens to be small would favour estimates that
    are too small.

    Args:
      values: (n,), the scores so far.
      error: The precision, in the same unit.

    Returns:
      The truth value.
    """
    count = len(values)
    if count < LEAST_EXAMPLES:
        return False
    slack = 1 + 1 / math.sqrt(2 * (count - 1))
    return bool(dj.numerics.standard_error(np.asarray(values)) * slack <= error)


@dataclasses.dataclass(frozen=True)
class _Unit:
    """The unit of a score: bits per dimension, or nats in the data's own units."""

    name: str
    label: str
    factor: float
    offset: float
    is_code: bool

    @staticmethod
    def of(data: Dataset) -> "_Unit":
        if data.levels is None:
            return _Unit("test_nats_per_dim", "nats/dim", 1.0, data.log_scale, False)
        return _Unit("test_bits_per_dim", "bits/dim", 1 / math.log(2), 0.0, True)

    def scores(self, log_probs: np.ndarray) -> np.ndarray:
        """Scores of log-likelihoods in nats per dimension."""
        return self.offset - self.factor * log_probs

    def show(self, log_probs: np.ndarray) -> str:
        """The running mean with its standard error."""
        error = standard_error(self.factor * log_probs)
        deviation = "" if error is None else f" ± {error:.3f} (examples)"
        return f"{self.scores(log_probs).mean():.3f}{deviation} {self.label}"


def score(
    key: jax.Array,
    data: Dataset,
    schedule: Any,
    denoiser: Any,
    *,
    steps: int | None,
    probes: int,
    chunk: int,
    program: Callable | None = None,
    examples: int | None = None,
    error: float | None = None,
    bound_times: int = 0,
) -> dict[str, Any]:
    """Score test examples in bits/dim (lattice data) or nats per dimension.

    Nats are in the units of the data before scaling. Examples are taken in the
    random order of `order`, with keys of their own, so that a score of some is
    an unbiased estimate of that of all.

    Args:
      key: Of the order, dequantisation and probes.
      data: The data set with its test examples.
      schedule: The noise schedule.
      denoiser: (x, t) -> E[x_0 | x_t = x], a callable pytree.
      steps: Runge-Kutta steps on `likelihood_grid`, 2 or more, each of four
        evaluations. None for `default_steps`.
      probes: Hutchinson probes per example, 2 or more.
      chunk: Largest number of examples at a time.
      program: `mapping.over_examples` of `likelihood`, compiled for the shapes
        of `arguments`.
      examples: Number of examples to score, None for all.
      error: The standard error over examples at which to stop, see
        `is_precise`. None for no such stop.
      bound_times: As in `likelihood`.

    Returns:
      The score with its standard errors over examples and over probes, and the
        error of the grid, estimated on the first sixteenth of the examples
        from a grid of half the steps. The standard error over one example is
        None.

    Raises:
      ValueError: If steps is below 2.
      FloatingPointError: If a log-likelihood is not finite, or the score of
        lattice data is below 0, which no code length is.
    """
    steps = default_steps(data, steps)
    # Half of one step would be the same grid, with an estimated error of 0.
    dj.checks.integer("steps", steps, 2)
    unit, count = _Unit.of(data), len(data.stored_test)
    if program is None:
        program = mapping.over_examples(
            likelihood(data, schedule, probes=probes, bound_times=bound_times)
        )
    chosen = order(key, count)[:examples]
    scored = (
        jax.random.split(key, count)[chosen],
        data.loaded(data.stored_test, chosen),
    )
    size = chunk_size(len(chosen), chunk)
    scorer = _Scorer(program, devices.whole(denoiser), size)
    fine, coarse = _grids(schedule, steps)
    label = f"test likelihood, {steps} steps"
    with cli.progress(len(chosen), label=f"{label}, compiling", unit="example") as bar:
        parts = scorer.chunks(fine, scored)
        columns = _until_precise(parts, bar, unit, error=error, label=label)
        bar.total = len(columns[0])
        bar.set_description(f"{label}, then half")
        # Whole chunks, at least a sixteenth of the examples.
        compared = size * -(-len(columns[0]) // (16 * size))
        scored = tuple(part[:compared] for part in scored)
        few = np.concatenate([part[0] for part in scorer.chunks(coarse, scored)])
    _check_finite(np.concatenate([columns[0], few]))
    results = _summary(unit, columns, few, data)
    print(_score_line(results, unit, steps), flush=True)
    _check_score(results, unit, schedule, steps)
    return results


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """The program of `score` with a denoiser, in nats per dimension."""

    program: Callable
    denoiser: Any
    size: int

    def chunks(self, grid: Any, scored: tuple) -> Iterator[list[np.ndarray]]:
        """Log-likelihoods, their errors, and minus the bounds, chunk by chunk."""
        state, dimension = (self.denoiser, devices.whole(grid)), scored[1][0].size
        for parts in mapping.chunks(self.program, state, scored, self.size):
            yield [part.astype(np.float64) / dimension for part in parts]


def _grids(schedule, steps):
    """The grid of the score, and that of half the steps."""
    fine, coarse = (likelihood_grid(schedule, n) for n in (steps, steps // 2))
    # Steps of length 0 make the coarse grid fit the same program.
    return fine, np.pad(coarse, (0, len(fine) - len(coarse)), mode="edge")


def _until_precise(chunks, bar, unit, *, error, label):
    """The columns of all chunks, or of those until the mean is precise or a value
    is not finite.
    """
    parts: list[list[np.ndarray]] = []
    for part in chunks:
        parts.append(part)
        values = np.concatenate([part[0] for part in parts])
        bar.set_description(label, refresh=False)
        bar.set_postfix_str(unit.show(values), refresh=False)
        bar.update(len(part[0]))
        if not np.isfinite(values).all():
            break
        if error is not None and is_precise(unit.factor * values, error):
            break
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _check_finite(values):
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise FloatingPointError(
            f"{bad} of {len(values)} test log-likelihoods are not finite"
        )


def _summary(unit, columns, few, data):
    """The entries of `score` from log-likelihoods per dimension."""
    values, errors, *bounds = columns
    name, factor = unit.name, unit.factor
    change = factor * float(few.mean() - values[: len(few)].mean())

    def with_error(name, values):
        deviation = standard_error(values)
        return {
            name: float(unit.scores(values).mean()),
            f"{name}_standard_error": None if deviation is None else factor * deviation,
        }

    results: dict[str, Any] = with_error(name, values) | {
        f"{name}_standard_error_of_probes": float(
            factor * np.sqrt(np.sum(errors**2)) / len(values)
        ),
        f"{name}_error_of_steps": abs(change) / (2**_ORDER - 1),
        f"{name}_change_from_half_the_steps": change,
        "test_examples_scored": len(values),
    }
    for bound in bounds:
        results |= with_error(f"{name}_of_variational_bound", bound)
    if data.levels is None and data.log_scale:
        results[f"{name}_of_scaled_data"] = -float(values.mean())
    return results


def _score_line(results, unit, steps):
    """The score with both its errors, as either may be the larger."""
    error = results[f"{unit.name}_standard_error"]
    examples = "unknown" if error is None else f"{error:.4f}"
    return (
        f"{unit.name} {results[unit.name]:.4f} {unit.label}, ± {examples} (standard "
        f"error over {results['test_examples_scored']} examples) "
        f"± {results[f'{unit.name}_error_of_steps']:.4f} (grid of {steps} steps)"
    )


def _check_score(results, unit, schedule, steps):
    """Raise FloatingPointError for a code length below 0, and warn of a coarse
    grid.
    """
    name = unit.name
    deviation = results[f"{name}_standard_error"] or 0.0
    slack = 4 * (deviation + results[f"{name}_standard_error_of_probes"]) + 1e-3
    if unit.is_code and results[name] < -slack:
        raise FloatingPointError(
            f"{name} {results[name]:.4g} cannot be, as no code is shorter than 0 bits: "
            f"the grid of {steps} steps is "
            f"too coarse for the least noise, σ/α = {_floor(schedule):.3g}; "
            "raise likelihood_steps or noise_floor"
        )
    if abs(results[f"{name}_change_from_half_the_steps"]) > 0.1:
        print(
            f"warning: {name} still moves with the grid; raise --likelihood-steps "
            f"above {steps}"
        )


def standard_error(values: np.ndarray) -> float | None:
    """The standard error of the mean of independent values, None for a single
    value.
    """
    return (
        float(dj.numerics.standard_error(np.asarray(values)))
        if len(values) > 1
        else None
    )


def noise_floor(floor: float | None, data: Dataset, continuous: float) -> float:
    """The least σ/α of a schedule, in units of the scaled data.

    Args:
      floor: The flag's value, or None for a sixth of the levels' spacing.
      data: The data set.
      continuous: The default for data that lie on no lattice.

    Returns:
      The floor.

    Raises:
      ValueError: If it lies so far below the spacing of the levels that no
        grid resolves it, or outside of [0.0001, 1].
    """
    if floor is None:
        return continuous if data.levels is None else data.spacing / 6
    dj.checks.within("noise_floor", floor, 1e-4, 1.0)
    if data.levels is not None and floor < LEAST_FLOOR * data.spacing:
        raise ValueError(
            f"noise_floor must be at least {LEAST_FLOOR * data.spacing:.3g}, a 24th of "
            f"the spacing of {data.name}'s "
            f"levels, below which the score does not improve; got {floor:g}"
        )
    return floor


def _floor(schedule):
    return float(schedule.sigma(schedule.t_min) / schedule.alpha(schedule.t_min))


def chunk_size(count: int, chunk: int) -> int:
    """The size of a chunk when examples are split into the fewest chunks of nearly
    equal size, rounded up so that the devices of the run can share it.

    Args:
      count: The number of examples.
      chunk: The largest size.

    Returns:
      The size. The last chunk may be smaller.
    """
    return devices.padded(math.ceil(count / math.ceil(count / chunk)))
