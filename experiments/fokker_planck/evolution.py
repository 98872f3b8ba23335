"""Densities in time: solved on cells, simulated by paths, and exact."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import sde, solvers
from experiments.fokker_planck.config import Config
from experiments.fokker_planck.processes import Process, over_line
from experiments.shared.mapping import map_examples

DRAWN_BINS = 44
"""Bins across a drawn window."""

EXPECTED = 10
"""Least count expected of a bin of χ²."""


@dataclasses.dataclass(frozen=True)
class Evolution:
    """One process at its snapshots.

    Attributes:
      edges: (C + 1,), edges of the cells.
      times: (S,).
      solved: (S, C), densities of the solver.
      exact: (S, C), exact densities. A row is NaN where the distribution is
        not known.
      counts: (S, C), counts of paths.
      rest: (C,), the stationary density where `exact` has unknown rows, else
        None.
    """

    process: Process
    edges: np.ndarray
    times: np.ndarray
    solved: np.ndarray
    exact: np.ndarray
    rest: np.ndarray | None
    counts: np.ndarray
    metrics: dict[str, Any]


def evolve(config: Config, process: Process, key: jax.Array) -> Evolution:
    """Solve and simulate one process, and compare.

    The solver runs in float64 on `cells` and `steps` and on half as many, the
    simulation in the working precision.
    """
    ts = np.linspace(*process.times, config.steps + 1)
    at = np.unique(
        [
            0,
            *(2 * np.argmin(np.abs(ts[::2] - t)) for t in process.snapshots),
            config.steps,
        ]
    )
    with jax.enable_x64(True):
        edges, solved, exact, rest = solve(process, config.cells, ts, at)
        _, coarse, coarse_exact, _ = solve(process, config.cells // 2, ts[::2], at // 2)
    paths = simulate(config, process, key, ts, at)  # (S, paths)
    counts = np.stack([np.histogram(x, edges)[0] for x in paths])
    width = edges[1] - edges[0]
    rows = zip(ts[at], solved, exact, counts, strict=True)
    metrics: dict[str, Any] = {
        "snapshots": [compare(config.paths, t, p, q, n, width) for t, p, q, n in rows]
    }
    metrics["mass_error"] = float(np.abs(solved.sum(1) * width - 1).max())
    if rest is None:
        errors = (
            distance(coarse[-1], coarse_exact[-1], 2 * width),
            distance(solved[-1], exact[-1], width),
        )
        metrics["solver_order"] = float(np.log2(errors[0] / errors[1]))
    else:
        metrics["l1_to_rest"] = distance(solved[-1], rest, width)
    return Evolution(process, edges, ts[at], solved, exact, rest, counts, metrics)


def distance(p: np.ndarray, q: np.ndarray, width: float) -> float:
    """L1 distance of two densities on cells, at most 2."""
    return float(np.abs(p - q).sum() * width)


def solve(
    process: Process, cells: int, ts: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Solve the density equation on cells.

    Returns:
      Edges, the solver's densities at the snapshots and the exact ones, (S,
        C), and the stationary one or None.
    """
    edges = np.linspace(*process.ends, cells + 1)
    centres, width = 0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0]
    exact = np.array(jax.jit(over_line(process.log_prob))(centres, ts[at]))
    solved = sde.solve_fokker_planck(
        process.sde, exact[0] / (exact[0].sum() * width), edges, ts
    )[at]
    if process.at_rest is None:
        return edges, np.asarray(solved), exact, None
    exact[1:] = np.nan
    rest = np.exp(np.asarray(jax.vmap(process.at_rest)(centres[:, None])))
    return edges, np.asarray(solved), exact, rest / (rest.sum() * width)


def simulate(
    config: Config, process: Process, key: jax.Array, ts: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """Euler–Maruyama paths from exact starts at the snapshots, (S, paths)."""

    def walk(_, key):
        key_start, key_path = jax.random.split(key)
        states = [process.sample(key_start)]
        # States between snapshots are not kept.
        for i, (start, end) in enumerate(zip(at, at[1:], strict=False)):
            piece = jax.random.fold_in(key_path, i)
            method = solvers.euler_maruyama()
            states.append(
                solvers.integrate(
                    piece, method, process.sde, x=states[-1], ts=ts[start : end + 1]
                )
            )
        return jnp.stack(states)[:, 0]

    keys = jax.random.split(key, config.paths)
    return map_examples(walk, (), (keys,), chunk=config.paths).T


def compare(
    paths: int, t: float, solved: Any, exact: Any, counts: Any, width: float
) -> dict[str, Any]:
    """Distances at one time, all of cells (C,).

    - solver_l1: of the solver to the exact density, None where that is not
      known.
    - histogram_l1: of bins to the exact distribution or else to the solver,
      with the mean (floor) and standard deviation for as many draws of that
      distribution itself.
    - χ²: of bins to the solver. For such draws its mean is `degrees` = bins −
      1 and its variance twice that. z is the distance from the mean in
      standard deviations.
    """
    known = bool(np.all(np.isfinite(exact)))
    distribution = (exact if known else solved) * width
    starts = bins_of(distribution, paths)
    share, frequency = (
        np.add.reduceat(distribution, starts),
        np.add.reduceat(counts, starts) / paths,
    )
    # Frequencies are nearly normal: E|·| = √(2/π) std, Var|·| = (1 − 2/π)
    # variance.
    variance = share * (1 - share) / paths
    starts = bins_of(solved * width, paths)
    expected = paths * np.add.reduceat(solved * width, starts)
    chi_squared = float(
        np.sum((np.add.reduceat(counts, starts) - expected) ** 2 / expected)
    )
    degrees = len(starts) - 1
    return {
        "t": float(t),
        "solver_l1": distance(solved, exact, width) if known else None,
        "histogram_l1": float(np.abs(frequency - share).sum()),
        "histogram_l1_floor": float(np.sum(np.sqrt(2 / np.pi * variance))),
        "histogram_l1_std": float(np.sqrt(np.sum((1 - 2 / np.pi) * variance))),
        "chi_squared": chi_squared,
        "degrees": degrees,
        "z": float((chi_squared - degrees) / np.sqrt(2 * degrees)),
    }


def bins_of(masses: np.ndarray, count: int) -> np.ndarray:
    """First cells of at most DRAWN_BINS bins of equal mass, each with EXPECTED of
    `count` or more.
    """
    bins = int(min(DRAWN_BINS, count // (2 * EXPECTED)))
    below = np.concatenate([[0.0], np.cumsum(masses)[:-1]])
    cuts = np.unique(np.searchsorted(below, np.arange(bins) / bins * masses.sum()))
    cuts[0] = 0
    large = np.add.reduceat(masses, cuts) * count >= EXPECTED
    return cuts[np.concatenate([[True], large[1:]])]
