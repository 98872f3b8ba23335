"""Times of programs that run in turns, and whether they compute the same."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

Program = Callable[[], Any]
"""A function () -> arrays."""


def alternated(programs: Sequence[Program], turns: int) -> np.ndarray:
    """Seconds of programs that run A B, B A, …, after each has run once.

    Args:
      programs: The programs.
      turns: How often each one is timed.

    Returns:
      Seconds, (turns, programs).
    """
    for program in programs:
        jax.block_until_ready(program())
    seconds = np.zeros((turns, len(programs)))
    for i in range(turns):
        order = range(len(programs))
        for j in order if i % 2 == 0 else reversed(order):
            start = time.perf_counter()
            jax.block_until_ready(programs[j]())
            seconds[i, j] = time.perf_counter() - start
    return seconds


def summary(values: Sequence[float] | np.ndarray) -> tuple[float, tuple[float, float]]:
    """The median and the quartiles of values."""
    low, middle, high = (float(q) for q in np.percentile(values, (25, 50, 75)))
    return middle, (low, high)


def same(name: str, a: Program, b: Program, tolerance: float = 1e-3) -> None:
    """Raise ValueError unless two programs compute the same, up to rounding.

    Otherwise their ratio would be meaningless.

    Args:
      name: Of the pair, for the message.
      a: A program.
      b: Another, whose arrays have the same structure.
      tolerance: Largest difference, in units of an array's largest entry.

    Raises:
      ValueError: If an array differs by more, or the structures differ.
    """
    error = max(jax.tree.leaves(jax.tree.map(_relative_error, a(), b())))
    if not error < tolerance:
        raise ValueError(
            f"the two programs of {name} must agree within {tolerance}, got a "
            f"relative error of {error}"
        )


def _relative_error(x, y):
    x, y = np.asarray(x), np.asarray(y)
    # An infinite error, unlike NaN, survives a maximum.
    error = np.abs(x - y).max() / np.abs(y).max()
    return float(error) if np.isfinite(error) else np.inf
