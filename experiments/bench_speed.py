"""What does the library cost over a loop written by hand, and does anything grow with the number of steps?

    python -m experiments.bench_speed [--quick] [--out DIR] [--seed N]        (make bench)

Every row is a ratio of two programs measured in one process, alternated A B, B A, …: the median of the pairs' ratios
and its quartiles. "Limit" is what the library promises; rows without one are told for comparison. The first row times
one program against itself: what lies within its quartiles of 1 is noise.

TIME
"""

import contextlib
import dataclasses
import functools
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

import diffjax as dj
from diffjax import grids, networks, noise, predictions, schedules, solvers, targets
from experiments import record

COMPONENTS, DIMENSION = 8, 6
"""Of the exact mixture."""

IMPORT_LIMIT = 0.3
"""Seconds that `import diffjax` may add to importing jax and flax."""

STEPS = {"euler": 64, "heun": 32, "rk4": 16, "euler_maruyama": 64, "stochastic_heun": 32, "reverse_diffusion": 64}
"""Steps of each solver on the mixture: about 64 evaluations."""

Program = Callable[[], Any]
"""() -> its results, arrays."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Ratios of the library's time, compilation and memory to those of loops written by hand."""

    out: pathlib.Path = pathlib.Path("runs/bench_speed")
    """Folder for config.json, metrics.json and ratios.png."""
    seed: int = 0
    """Seed of all draws; no ratio should depend on it."""
    samples: int = 8192
    """Samples of the mixture at a time."""
    alternations: int = 25
    """Pairs of runs behind each ratio of run times."""
    network: bool = True
    """Whether to run the U-Net's rows."""
    quick: bool = False
    """Few samples and repetitions and a tiny U-Net: only to see that everything runs."""


class Row(NamedTuple):
    """One measured quantity: a ratio, or seconds. at_most: its limit, None where it is only told."""

    name: str
    median: float
    quartiles: tuple[float, float]
    at_most: float | None = None
    unit: str = ""


def run(config: Config) -> dict[str, Row]:
    """Measure every row, print the table, write metrics.json and ratios.png; the rows by name."""
    if config.quick:
        config = dataclasses.replace(config, samples=min(config.samples, 256), alternations=min(config.alternations, 3))
    if config.alternations < 1 or config.samples < 1:
        raise ValueError(f"alternations and samples must be positive, got {config.alternations} and {config.samples}")
    out = record.start(config)
    parts = [loops, noise_of_a_loop, peers, *([network_loops] if config.network else []), memory, compilation, imports]
    rows: list[Row] = []
    with record.progress(len(parts), what="measuring", unit="part") as bar:
        for part in parts:
            bar.set_postfix_str(part.__name__)
            rows += part(config)
            bar.update()
    results = {row.name: row for row in rows}
    record.write_json(out / "metrics.json", report(results))
    record.save_figure(draw(rows), out / "ratios.png")
    print_rows(rows)
    return results


# ----------------------------------------------------------------------------------------------------------- measuring


def compare(name: str, a: Program, b: Program, alternations: int, at_most: float | None = None) -> Row:
    """Row of time(a) / time(b), after each has run once."""
    programs = (a, b)
    for program in programs:
        jax.block_until_ready(program())
    ratios = []
    for i in range(alternations):
        seconds = {}
        for j in (0, 1) if i % 2 == 0 else (1, 0):
            start = time.perf_counter()
            jax.block_until_ready(programs[j]())
            seconds[j] = time.perf_counter() - start
        ratios.append(seconds[0] / seconds[1])
    return summary(name, ratios, at_most)


def summary(name: str, values: list[float], at_most: float | None = None, unit: str = "") -> Row:
    """Row of the median and quartiles of values."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return Row(name, float(middle), (float(low), float(high)), at_most, unit)


def same(name: str, a: Program, b: Program, tolerance: float = 1e-3) -> None:
    """Raise ValueError unless both programs compute the same array, up to rounding: else the ratio says nothing."""
    x, y = np.asarray(a()), np.asarray(b())
    error = np.abs(x - y).max() / np.abs(y).max()
    if not error < tolerance:
        raise ValueError(f"{name} and its loop by hand must agree within {tolerance}, got a relative error of {error}")


# ------------------------------------------------------------------------------------------------------ loops by hand


class Coefficients(NamedTuple):
    """Of one time: dx = (a x + b D) dt + g dw̄ downwards, a and b of the probability flow or of the reverse SDE; α, σ."""

    t: Any
    alpha: Any
    sigma: Any
    a: Any
    b: Any
    g: Any


def coefficients(schedule: schedules.VPLinear, t: jax.Array, stochastic: bool) -> Coefficients:
    """f x − ½(1 + η²) g² s with f = −½β, g² = β and s = (αD − x)/σ², η = 1 or 0."""
    alpha, sigma, beta = schedule.alpha(t), schedule.sigma(t), schedule.beta(t)
    share = (1.0 if stochastic else 0.5) * beta / sigma**2
    return Coefficients(t, alpha, sigma, share - 0.5 * beta, -share * alpha, jnp.sqrt(beta))


def euler_by_hand(field, draw, x, c, dt):
    return x + dt * field(x, c[0])


def heun_by_hand(field, draw, x, c, dt):
    first = field(x, c[0])
    return x + 0.5 * dt * (first + field(x + dt * first, c[2]))


def rk4_by_hand(field, draw, x, c, dt):
    k1 = field(x, c[0])
    k2 = field(x + 0.5 * dt * k1, c[1])
    k3 = field(x + 0.5 * dt * k2, c[1])
    k4 = field(x + dt * k3, c[2])
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def euler_maruyama_by_hand(field, draw, x, c, dt):
    return x + dt * field(x, c[0]) + c[0].g * jnp.sqrt(-dt) * draw()


def stochastic_heun_by_hand(field, draw, x, c, dt):
    increment = jnp.sqrt(-dt) * draw()
    first = field(x, c[0])
    second = field(x + dt * first + c[0].g * increment, c[2])
    return x + 0.5 * dt * (first + second) + 0.5 * (c[0].g + c[2].g) * increment


def reverse_diffusion_by_hand(field, draw, x, c, dt):
    ratio = c[0].alpha / c[2].alpha
    variance = c[0].sigma ** 2 - (ratio * c[2].sigma) ** 2
    score = (c[0].alpha * field.denoise(x, c[0]) - x) / c[0].sigma ** 2
    return (2 - ratio) * x + variance * score + jnp.sqrt(variance) * draw()
