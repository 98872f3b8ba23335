"""Measurements of a certificate: order, distribution, ends, independence of rows.

A table of coefficients is all that the first three need: with it a run is simulated
with any denoiser.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from experiments.certify.coefficients import Table, measure, moments, signal_and_noise
from experiments.certify.recording import Sampler, record

__all__ = [
    "BUDGETS",
    "batch_differences",
    "direct_distribution_error",
    "direct_error",
    "distribution_errors",
    "graded",
    "karras",
    "kl",
    "mixture",
    "order",
    "plain",
    "repeats",
    "rounding",
    "simulate",
    "steps_for",
    "uneven",
]

BUDGETS = (8, 16, 32)
"""Evaluations at which distributions are compared."""

MEAN, VARIANCE = 0.5, 0.25
"""The normal distribution whose samples are compared, in data units."""

ORDER_LEVELS = (5.0, 0.3)
"""Noise levels between which orders are measured."""

ORDER_STEPS = (40, 72, 136)
"""Steps of the grids on which orders are measured."""

START_STEPS, GROWTH = 24, 1.25
"""Steps of a graded start, and the ratio of one's length to that before it. The first
has 1.25^−24 ≈ 5e-3 of a whole step, so that the error of an Euler step there, of order
2, is 2e-5 of that of a whole one. Steps that grow faster meet the guard of multistep
methods.
"""

UNEVEN = 1.8
"""Ratio of neighbouring steps of an uneven grid."""

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[1.0, 0.5], [-0.5, 0.0]])
SPREADS = np.array([0.6, 0.8])


@functools.cache
def karras(steps: int, high: float = 80.0, low: float = 0.002) -> np.ndarray:
    """The levels of `grids.karras` between two, (steps + 1,)."""
    schedule = dj.schedules.edm(low, high)
    grid = np.array(dj.grids.karras(schedule, steps), np.float64)
    grid.flags.writeable = False
    return grid


def plain(steps: int) -> np.ndarray:
    """Levels between `ORDER_LEVELS`, evenly spaced in log σ, (steps + 1,)."""
    return np.geomspace(*ORDER_LEVELS, steps + 1)


def uneven(steps: int) -> np.ndarray:
    """Levels of `graded` whose steps are alternately 1 and `UNEVEN` long.

    A multistep method whose coefficients do not follow the lengths loses its order.
    """
    along = np.arange(steps, dtype=float) - START_STEPS
    return _levels(np.minimum(1.0, GROWTH**along) * np.where(along % 2, 1.0, UNEVEN))


def _levels(lengths):
    share = np.append(0.0, np.cumsum(lengths)) / lengths.sum()
    return ORDER_LEVELS[0] * (ORDER_LEVELS[1] / ORDER_LEVELS[0]) ** share


def graded(steps: int) -> np.ndarray:
    """Levels of `plain` after a start of `START_STEPS` short steps, (steps + 1,).

    Multistep methods begin at order 1. Here that costs nothing, so that the order is
    that of the steps after it.
    """
    along = np.arange(steps, dtype=float) - START_STEPS
    return _levels(np.minimum(1.0, GROWTH**along))


def steps_for(sampler: Sampler, budget: int) -> tuple[int, Table | None]:
    """The most steps of a Karras grid within a number of evaluations.

    Args:
      sampler: The sampler.
      budget: Evaluations.

    Returns:
      The steps and their table. (0, None) where one step takes more.
    """
    per_step = len(measure(sampler, karras(2)).sigmas) / 2
    for steps in range(min(budget, int(budget / per_step) + 1), 0, -1):
        table = measure(sampler, karras(steps))
        if len(table.sigmas) <= budget:
            return steps, table
    return 0, None


# ------------------------------------------------------------------------ runs


def simulate(
    table: Table, x: np.ndarray, denoiser: Callable[[np.ndarray, float], np.ndarray]
) -> np.ndarray:
    """The result of a run without noise, from a table.

    Args:
      table: The table.
      x: Starts (B, D).
      denoiser: (x (B, D), σ) -> (B, D).

    Returns:
      The result (B, D).
    """
    terms = np.zeros((table.states.shape[1], *x.shape))
    terms[0] = x
    for k, sigma in enumerate(table.sigmas):
        state = np.tensordot(table.states[k, : k + 1], terms[: k + 1], 1)
        terms[k + 1] = denoiser(state, sigma)
    return np.tensordot(table.states[-1], terms, 1)


def mixture(x: np.ndarray, sigma: float) -> np.ndarray:
    """The exact denoiser of the mixture on which orders are measured.

    It is that of `targets.denoiser` in NumPy, because a compiled program that waits for
    it must not start another.

    Args:
      x: States (B, 2).
      sigma: Their noise level.

    Returns:
      E[x_0 | x], (B, 2).
    """
    totals = SPREADS**2 + sigma**2  # (K,)
    apart = x[:, None] - MEANS  # (B, K, 2)
    logits = np.log(WEIGHTS) - (apart**2).sum(-1) / (2 * totals) - np.log(totals)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    parts = MEANS + (SPREADS**2 / totals)[:, None] * apart
    return (shares[..., None] * parts).sum(1)


@functools.cache
def flow() -> tuple[np.ndarray, np.ndarray]:
    """Starts (16, 2) at the first of `ORDER_LEVELS`, and the ends of the exact flow."""
    high, low = ORDER_LEVELS
    target = dj.targets.gaussian_mixture(WEIGHTS, MEANS, SPREADS)
    exact = dj.targets.flow_map(target, dj.schedules.edm(low, high))
    x = high * np.random.default_rng(0).normal(size=(16, 2))
    ends = jax.jit(jax.vmap(lambda x: exact(x, high, low)))(jnp.asarray(x))
    return x, np.asarray(ends)


# ------------------------------------------------------------------------ errors


def rounding(table: Table) -> float:
    """A bound of the rounding in a table.

    A sampler that is consistent but for float32 carries a constant to 1e-7.
    """
    apart = float(np.abs(signal_and_noise(table)[0] - 1).max())
    return max(1e-13, apart if apart < 1e-5 else 0.0)


def error(table: Table) -> float:
    """The error of a run between `ORDER_LEVELS`.

    Returns:
      Without noise, the root mean square distance from the end of the exact flow on a
      mixture. With noise, the root mean square relative error of the mean and the
      variances on normal distributions.
    """
    if not table.stochastic:
        x, exact = flow()
        with np.errstate(all="ignore"):
            return float(np.sqrt(np.mean((simulate(table, x, mixture) - exact) ** 2)))
    errors = []
    for variance in (0.1, 0.25, 1.0):
        mean, spread = moments(table, 1.0, variance)
        errors += [mean - 1.0, spread / (variance + table.grid[-1] ** 2) - 1]
    return float(np.sqrt(np.mean(np.square(errors))))


def order(
    sampler: Sampler, grid: Callable[[int], np.ndarray], counts: tuple = ORDER_STEPS
) -> tuple[float, list[float]]:
    """The measured order, weak for a sampler with noise.

    Args:
      sampler: The sampler.
      grid: `graded` or `plain`.
      counts: Numbers of steps, increasing.

    Returns:
      The order between the two finest grids whose errors are above rounding, nan
      without two, and the errors.
    """
    tables = [measure(sampler, grid(steps)) for steps in counts]
    errors = [error(table) for table in tables]
    if tables[0].stochastic and not tables[0].exact:
        # The noise is known to about 1 %.
        floors = [0.05] * len(tables)
    else:
        floors = [30 * rounding(table) for table in tables]
    longest = [np.abs(np.diff(np.log(grid(steps)))).max() for steps in counts]
    slopes = [
        np.log(errors[i] / errors[i + 1]) / np.log(longest[i] / longest[i + 1])
        for i in range(len(counts) - 1)
        if errors[i + 1] > floors[i + 1] and np.isfinite(errors[i])
    ]
    return (float(slopes[-1]) if slopes else float("nan")), errors


def kl(mean: float, variance: float, exact: tuple[float, float]) -> float:
    """KL(N(mean, variance) ‖ N(exact)) in nats, infinite without variance."""
    if not variance > 0:
        return float("inf") if variance == 0 else float("nan")
    normal = dj.distributions.Gaussian
    p, q = (normal(*map(jnp.asarray, pair)) for pair in ((mean, variance), exact))
    return float(dj.distributions.gaussian_kl(p, q))


def distribution_errors(table: Table) -> float:
    """KL in nats of the result from the exact distribution at the last level."""
    exact = MEAN, VARIANCE + table.grid[-1] ** 2
    return kl(*moments(table, MEAN, VARIANCE), exact)


# ------------------------------------------------------- runs without a table


def direct_error(sampler: Sampler, sigmas: np.ndarray) -> tuple[float, int]:
    """The error of a run between `ORDER_LEVELS`, and its calls.

    Args:
      sampler: A sampler without noise, which need not be affine.
      sigmas: The grid.

    Returns:
      The root mean square distance from the end of the exact flow, and the calls.
    """
    x, exact = flow()
    run = record(sampler, x, sigmas, lambda call, rows, sigma: mixture(rows, sigma))
    return float(np.sqrt(np.mean((run.end - exact) ** 2))), len(run.sigmas)


def direct_distribution_error(
    sampler: Sampler, sigmas: np.ndarray
) -> tuple[float, int]:
    """KL of the Gaussian with the moments of the result, and the calls.

    The starts are Gauss–Hermite nodes, which integrate polynomials of degree up to 63.

    Args:
      sampler: A sampler without noise, which need not be affine.
      sigmas: The grid.

    Returns:
      KL in nats, and the calls.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(32)
    weights = weights / weights.sum()
    x = MEAN + np.sqrt(VARIANCE + sigmas[0] ** 2) * nodes[:, None]
    gain = lambda sigma: VARIANCE / (VARIANCE + sigma**2)
    denoiser = lambda call, rows, sigma: MEAN + gain(sigma) * (rows - MEAN)
    run = record(sampler, x, sigmas, denoiser)
    mean = float(weights @ run.end[:, 0])
    variance = float(weights @ (run.end[:, 0] - mean) ** 2)
    exact = MEAN, VARIANCE + sigmas[-1] ** 2
    return kl(mean, variance, exact), len(run.sigmas)


def repeats(sampler: Sampler) -> bool:
    """Whether two runs with other seeds have the same result."""
    x, _ = flow()
    outputs = lambda call, rows, sigma: mixture(rows, sigma)
    one, other = (
        record(sampler, x, plain(8), outputs, seed=seed).end for seed in (0, 1)
    )
    return bool(np.array_equal(one, other))


# ------------------------------------------------------------------ independence


def batch_differences(sampler: Sampler) -> dict[str, Any]:
    """Changes of a row when the rest of its batch changes.

    Args:
      sampler: The sampler.

    Returns:
      The greatest change of the first row, in a batch of 3. `equal`: when the same run
      is made again. `memory`: when one on another grid came between. `rows`: when the
      other rows change. `size`: when there are no others. All with the sampler's own
      random numbers and one seed.
    """
    rng = np.random.default_rng(1)
    grid = karras(6, 10.0, 0.1)
    x = 10.0 * rng.normal(size=(3, 2))
    other = np.concatenate([x[:1], 10.0 * rng.normal(size=(2, 2))])
    outputs = lambda call, rows, sigma: mixture(rows, sigma)
    first = lambda x, grid=grid: record(sampler, x, grid, outputs).end[0]
    before = first(x)
    changes = {"equal": first(x)}
    first(x, karras(4, 5.0, 0.05))
    changes |= {"memory": first(x), "rows": first(other), "size": first(x[:1])}
    return {name: float(np.abs(end - before).max()) for name, end in changes.items()}
