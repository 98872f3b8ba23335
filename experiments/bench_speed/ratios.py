"""Comparison of two programs' costs: settings, rows of the table, ratios of
alternating runs.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

Program = Callable[[], Any]
"""A function () -> arrays."""


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


def summary(
    name: str, values: list[float], at_most: float | None = None, unit: str = ""
) -> RatioRow:
    """The row with the median and quartiles of values."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return RatioRow(name, float(middle), (float(low), float(high)), at_most, unit)


def same(name: str, a: Program, b: Program, tolerance: float = 1e-3) -> None:
    """Raise ValueError unless both programs compute the same array, up to
    rounding.

    Otherwise their ratio would be meaningless.
    """
    x, y = np.asarray(a()), np.asarray(b())
    error = np.abs(x - y).max() / np.abs(y).max()
    if not error < tolerance:
        raise ValueError(
            f"{name} and its loop by hand must agree within {tolerance}, got a "
            f"relative error of {error}"
        )


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
    yield summary(name.format(least), seconds[least], unit="seconds")
    for size in sorted(seconds)[1:]:
        ratios = [b / a for a, b in zip(seconds[least], seconds[size], strict=True)]
        yield summary(f"{name.format(size)} against {least}", ratios, at_most)


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
