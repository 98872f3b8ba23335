"""Comparison of two programs' costs: settings, rows of the table, ratios of
alternating runs.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from experiments.shared import timing
from experiments.shared.timing import Program


@dataclasses.dataclass(frozen=True)
class Config:
    """Ratios of the library's time, compilation and memory to those of loops by
    hand.
    """

    out: pathlib.Path = pathlib.Path("runs/bench_speed")
    """Folder for config.json, metrics.json and ratios.png."""
    seed: int = 0
    """Seed of all draws. No ratio should depend on it."""
    samples: int = 8192
    """Samples of the mixture at a time."""
    alternations: int = 25
    """Pairs of runs behind each ratio of run times."""
    network: bool = True
    """Whether to run the U-Net's rows, where no parts are named."""
    parts: tuple[str, ...] = ()
    """Names of the parts of the table to measure, as the progress bar shows them.
    Default: all.
    """
    quick: bool = False
    """Few samples and repetitions and a tiny U-Net, only to see that everything
    runs.
    """


class RatioRow(NamedTuple):
    """One measured quantity, a ratio or seconds. `at_most` is its limit, None
    where there is none.
    """

    name: str
    median: float
    quartiles: tuple[float, float]
    at_most: float | None = None
    unit: str = ""


def compare(
    name: str, a: Program, b: Program, alternations: int, at_most: float | None = None
) -> RatioRow:
    """The row of time(a) / time(b), after each has run once."""
    seconds = timing.alternated((a, b), alternations)
    return row_of(name, seconds[:, 0] / seconds[:, 1], at_most)


def row_of(
    name: str,
    values: Sequence[float] | np.ndarray,
    at_most: float | None = None,
    unit: str = "",
) -> RatioRow:
    """The row with the median and quartiles of values."""
    return RatioRow(name, *timing.summary(values), at_most, unit)


def compiled_at(
    lowered: Callable[[int], Any], sizes: tuple[int, ...], repetitions: int
) -> dict[int, list[float]]:
    """Seconds to trace, lower and compile `lowered(size)` by size, in turns,
    without any cache.
    """
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    with without_compilation_cache():
        for _ in range(repetitions):
            for size in sizes:
                jax.clear_caches()
                start = time.perf_counter()
                lowered(size).compile()
                seconds[size].append(time.perf_counter() - start)
    return seconds


def growth(
    name: str, seconds: dict[int, list[float]], at_most: float | None = None
) -> Iterator[RatioRow]:
    """Rows of the time at the least size, and of the others' ratios to it.

    `name` has {} for the size.
    """
    least = min(seconds)
    yield row_of(name.format(least), seconds[least], unit="seconds")
    for size in sorted(seconds)[1:]:
        ratios = [b / a for a, b in zip(seconds[least], seconds[size], strict=True)]
        yield row_of(f"{name.format(size)} against {least}", ratios, at_most)


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Compile without reading or writing the persistent cache."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()
