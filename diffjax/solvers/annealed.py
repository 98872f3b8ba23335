"""Annealed Langevin dynamics: Langevin steps at each noise level of a grid."""

import dataclasses
import functools
from typing import NamedTuple

import jax

from .. import checks
from ..langevin.kernels import langevin_step
from ..types import Array
from .affine import NoiseLevel, noise_steps
from .base import Problem, Solver, Traits, factory, needs, per_step

__all__ = ["annealed_langevin"]

_DRAW = 2
"""Which draw of its number a Langevin step takes: the first that belongs to no
Brownian path."""


def score_at(problem: Problem, at: NoiseLevel, x: Array) -> Array:
    """The score at a noise level.

        ∇log p(x) = (α D − x)/σ²

    Args:
      problem: With a denoiser.
      at: The noise level.
      x: The state.

    Returns:
      The score, shape of x.
    """
    return (at.alpha * problem.denoiser(x, at.t) - x) / at.sigma**2


@dataclasses.dataclass(frozen=True)
class _Annealed:
    corrections: int
    step_size: float


class _AnnealedInputs(NamedTuple):
    t: Array  # of the start
    ratio: Array  # α_s/α_t
    end: NoiseLevel
    at_zero: Array | None


@factory
@checks.arguments(corrections=(checks.integer, 1), step_size=checks.positive)
def annealed_langevin(corrections: int = 100, step_size: float = 0.2) -> Solver:
    """Annealed Langevin dynamics (Song & Ermon 2019, Algorithm 1).

        x ← (α_s/α_t) x
        x ← x + ½ ε ∇log p_s(x) + √ε z,  `corrections` times,  ε = step_size · σ_s²

    A step to 0 returns D (Jolicoeur-Martineau et al. 2021, section 3.1).

    On N(0, v) at a noise level the stationary distribution is N(0, v/(1 − ε/4v)).
    Its variance for v ≥ σ_s² is at most v/(1 − step_size/4). The distance of a
    variance from it falls by (1 − ε/2v)² per step.

    Args:
      corrections: T, Langevin steps at each noise level, each an evaluation.
      step_size: ε/σ_s², between 0 and 4. Beyond 4 the steps diverge where
        v = σ_s².

    Returns:
      A solver. No order is declared.

    Raises:
      ValueError: For corrections below 1, and unless 0 < step_size < 4.

    References:
      The paper's ε_i = ε σ_i²/σ_L² with the least noise σ_L is
      step_size = ε/σ_L². The defaults are the paper's for CIFAR-10: ε = 2e-5 at
      σ_L = 0.01 and T = 100. The r of `predictor_corrector` is step_size = 4r².

      The start is taken to have the distribution of the first noise level,
      where no steps are made. Algorithm 1 makes T there too.

    Example:
      >>> solver = dj.solvers.annealed_langevin(corrections=5)
      >>> x = dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,))
    """
    checks.require(
        step_size < 4,
        f"step_size must be below 4, where Langevin steps diverge, got {step_size}",
    )
    name = f"annealed_langevin({corrections}, {step_size:g})"
    return Solver(
        name,
        "denoiser",
        None,
        True,
        per_step(corrections),
        _prepare,
        functools.partial(_annealed_step, _Annealed(corrections, step_size)),
        traits=Traits(needs(name, finite_start=True), composed=True),
    )


def _annealed_step(settings, problem, inputs, draw, x, state):
    corrections, at = settings.corrections, inputs.end
    size = settings.step_size * at.sigma**2

    def langevin(k, x):
        z = draw.repeated(k, corrections, _DRAW)
        return langevin_step(x, score_at(problem, at, x), size, z)

    def walk(x):
        return jax.lax.fori_loop(0, corrections, langevin, inputs.ratio * x)

    def denoise(x):
        return problem.denoiser(x, inputs.t)

    if inputs.at_zero is None:
        return walk(x), state
    return jax.lax.cond(inputs.at_zero, denoise, walk, x), state


def _prepare(problem, ts):
    steps = noise_steps(problem, ts)
    ratio = steps.end.alpha / steps.start.alpha
    return _AnnealedInputs(steps.start.t, ratio, steps.end, steps.at_zero)
