"""The test score of a denoiser: log p along the probability flow, with estimates
of its errors.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from experiments.shared import cli
from experiments.shared.training import DenoiserModel

LEAST_FLOOR = 1 / 24
"""Least σ/α at t_min for lattice data, in spacings of the levels."""

_ORDER = 3
"""Order by which errors of the grid are estimated. RK4 has 4 on finer grids than
those used here.
"""


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


def likelihoods(model: DenoiserModel, probes: int) -> Callable:
    """Log-likelihoods of a batch along the probability flow, as a function to be
    compiled.

    Lattice data are dequantised by Gaussian noise
    (`likelihood.lattice_log_prob`).

    Args:
      model: A network and the recipe for its denoiser.
      probes: Hutchinson probes per example.

    Returns:
      A function (params, grid, keys, examples) -> (log p, its standard error
        over probes), both in nats, (B,).
    """

    def many(params, grid, keys, examples):
        denoiser = model.denoiser(params)
        flow: dict[str, Any] = {
            "divergence": "hutchinson",
            "probes": probes,
            "solver": dj.solvers.rk4(),
            "grid": grid,
        }

        def one(key, x):
            if model.data.levels is None:
                values, details = dj.log_prob(
                    denoiser, model.schedule, x, key=key, info=True, **flow
                )
            else:
                values, details = dj.likelihood.lattice_log_prob(
                    key,
                    denoiser,
                    model.schedule,
                    x,
                    levels=model.data.levels,
                    info=True,
                    **flow,
                )
            return values, details.standard_error

        return jax.vmap(one)(keys, examples)

    return many


def arguments(
    model: DenoiserModel, params: Any, test: np.ndarray, steps: int, chunk: int
) -> tuple:
    """Shapes of the arguments of `likelihoods` in `score`, for compiling ahead of
    time.

    Args:
      model: As in `score`.
      params: The network's parameters, or their shapes.
      test: The examples (N, *shape) that will be scored.
      steps: As in `score`.
      chunk: As in `score`.

    Returns:
      (params, grid, keys, examples) of one chunk.
    """
    size = _chunk_size(len(test), chunk)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
    return (
        params,
        likelihood_grid(model.schedule, steps),
        keys,
        jax.ShapeDtypeStruct((size, *model.data.shape), float),
    )


def score(
    key: jax.Array,
    model: DenoiserModel,
    params: Any,
    test: np.ndarray,
    *,
    steps: int,
    probes: int,
    chunk: int,
    program: Callable | None = None,
) -> dict[str, Any]:
    """Score test examples in bits/dim (lattice data) or nats per dimension.

    Nats are in the units of the data before scaling.

    Args:
      key: Of dequantisation and probes.
      model: A network and the recipe for its denoiser.
      params: The network's parameters.
      test: The examples (N, *shape).
      steps: Runge-Kutta steps on `likelihood_grid`, 2 or more, each of four
        evaluations.
      probes: Hutchinson probes per example, 2 or more.
      chunk: Largest number of examples at a time.
      program: `likelihoods(model, probes)`, compiled for the shapes of
        `arguments`.

    Returns:
      The score with its standard errors over examples and over probes, and the
        error of the grid, estimated on the first chunk from a grid of half the
        steps. The standard error over one example is None.

    Raises:
      ValueError: If steps is below 2.
      FloatingPointError: If a log-likelihood is not finite, or the score of
        lattice data is below 0, which no code length is.
    """
    # Half of one step would be the same grid, with an estimated error of 0.
    dj.checks.integer("steps", steps, 2)
    model_data, dimension = model.data, math.prod(model.data.shape)
    program = jax.jit(likelihoods(model, probes)) if program is None else program
    size, keys = _chunk_size(len(test), chunk), jax.random.split(key, len(test))
    grid, coarse = (likelihood_grid(model.schedule, n) for n in (steps, steps // 2))
    # Steps of length 0 make the coarse grid fit the same program.
    coarse = np.pad(coarse, (0, len(grid) - len(coarse)), mode="edge")

    def evaluate(grid, start):
        # The last chunk is padded, so that one compiled program serves all
        # chunks.
        rows = np.minimum(np.arange(start, start + size), len(test) - 1)
        outputs = program(params, grid, keys[rows], test[rows])
        return [
            np.asarray(part)[: len(test) - start].astype(np.float64) / dimension
            for part in outputs
        ]

    with cli.progress(
        len(test), label=f"test likelihood, {steps} steps", unit="example"
    ) as bar:
        parts = []
        for start in range(0, len(test), size):
            parts.append(evaluate(grid, start))
            bar.update(len(parts[-1][0]))
        few, _ = evaluate(coarse, 0)
    values, errors = (np.concatenate(part) for part in zip(*parts, strict=True))
    bad = int(np.sum(~np.isfinite(values)) + np.sum(~np.isfinite(few)))
    if bad:
        raise FloatingPointError(
            f"{bad} of {len(values) + len(few)} test log-likelihoods are not finite"
        )

    lattice = model_data.levels is not None
    unit, name = (
        (1 / math.log(2), "test_bits_per_dim")
        if lattice
        else (1.0, "test_nats_per_dim")
    )
    change = unit * float(few.mean() - values[: len(few)].mean())
    deviation = standard_error(values)
    results: dict[str, Any] = {
        name: -unit * float(values.mean()) + (0.0 if lattice else model_data.log_scale),
        f"{name}_standard_error": None if deviation is None else unit * deviation,
        f"{name}_standard_error_of_probes": float(
            unit * np.sqrt(np.sum(errors**2)) / len(values)
        ),
        f"{name}_error_of_steps": abs(change) / (2**_ORDER - 1),
        f"{name}_change_from_half_the_steps": change,
        "test_examples_scored": len(values),
    }
    if not lattice and model_data.log_scale:
        results[f"{name}_of_scaled_data"] = -float(values.mean())
    slack = (
        4
        * (
            (results[f"{name}_standard_error"] or 0.0)
            + results[f"{name}_standard_error_of_probes"]
        )
        + 1e-3
    )
    if lattice and results[name] < -slack:
        raise FloatingPointError(
            f"{name} {results[name]:.4g} cannot be, as no code is shorter than 0 bits: "
            f"the grid of {steps} steps is "
            f"too coarse for the least noise, σ/α = {_floor(model.schedule):.3g}; "
            "raise likelihood_steps or noise_floor"
        )
    if abs(change) > 0.1:
        print(
            f"warning: {name} still moves with the grid; raise --likelihood-steps "
            f"above {steps}"
        )
    return results


def standard_error(values: np.ndarray) -> float | None:
    """The standard error of the mean of independent values, None for a single
    value.
    """
    return (
        float(dj.numerics.standard_error(np.asarray(values)))
        if len(values) > 1
        else None
    )


def check_floor(floor: float, data: Any) -> float:
    """Check a noise floor against the levels of the data.

    Args:
      floor: The least σ/α, in units of the scaled data.
      data: A `datasets.Dataset`.

    Returns:
      The floor.

    Raises:
      ValueError: If it lies so far below the spacing of the levels that no
        grid resolves it.
    """
    if data.levels is not None and floor < LEAST_FLOOR * data.spacing:
        raise ValueError(
            f"noise_floor must be at least {LEAST_FLOOR * data.spacing:.3g}, a 24th of "
            f"the spacing of {data.name}'s "
            f"levels, below which the score does not improve; got {floor:g}"
        )
    return floor


def _floor(schedule):
    return float(schedule.sigma(schedule.t_min) / schedule.alpha(schedule.t_min))


def _chunk_size(count, chunk):
    """The size of a chunk when the examples are split into the fewest chunks of
    nearly equal size.
    """
    return math.ceil(count / math.ceil(count / chunk))
