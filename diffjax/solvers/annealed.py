"""Annealed Langevin dynamics: Langevin steps at each noise level of a grid, the state carried from one to the next."""

import jax

from .. import checks
from ..langevin.kernels import langevin_step
from ..types import Array
from .affine import NoiseLevel, noise_steps
from .base import Problem, Solver, Traits, factory, needs, per_step

_DRAW = 2
"""Which draw of its number a Langevin step takes: the first that no given Brownian path stands for."""


def score_at(problem: Problem, at: NoiseLevel, x: Array) -> Array:
    """∇log p(x) = (α D − x)/σ² at given levels, shape of x."""
    return (at.alpha * problem.denoiser(x, at.t) - x) / at.sigma**2


@factory
def annealed_langevin(corrections: int = 100, step_size: float = 0.2) -> Solver:
    """Carry x/α to the next level s, then take Langevin steps x ← x + ½ε ∇log p_s(x) + √ε z, ε = step_size · σ_s².

    Song & Ermon's ε_i = ε σ_i²/σ_L² with their least level σ_L is step_size = ε/σ_L²; the defaults are theirs for
    CIFAR-10, ε = 2e-5 at σ_L = 0.01 with T = 100 steps a level. `predictor_corrector`'s r is step_size = 4r².
    corrections: T, each an evaluation. A step to 0 returns D (Jolicoeur-Martineau et al. 2021, section 3.1). The start
    is taken to have the law of the first level, where no steps are made; Algorithm 1 makes T there too.

    No order is declared: on N(0, v) at a level the stationary law is N(0, v/(1 − ε/4v)), whose variance for v ≥ σ_s² is
    at most v/(1 − step_size/4), and a variance's distance from it falls by (1 − ε/2v)² a step. Raises ValueError for
    corrections < 1 and unless 0 < step_size < 4, beyond which the steps diverge where v = σ_s². Song & Ermon 2019,
    Algorithm 1.
    """
    checks.integer("corrections", corrections, 1)
    checks.positive("step_size", step_size)
    if step_size >= 4:
        raise ValueError(
            f"step_size must be below 4, where Langevin steps diverge, got {step_size}"
        )

    def prepare(problem, ts):
        steps = noise_steps(problem, ts)
        return (
            steps.start.t,
            steps.end.alpha / steps.start.alpha,
            steps.end,
            steps.at_zero,
        )

    def step(problem, inputs, draw, x, state):
        t, ratio, at, at_zero = inputs
        size = step_size * at.sigma**2

        def one(k, x):
            return langevin_step(
                x, score_at(problem, at, x), size, draw.repeated(k, corrections, _DRAW)
            )

        def walk(x):
            return jax.lax.fori_loop(0, corrections, one, ratio * x)

        if at_zero is None:
            return walk(x), state
        return jax.lax.cond(at_zero, lambda x: problem.denoiser(x, t), walk, x), state

    name = f"annealed_langevin({corrections}, {step_size:g})"
    return Solver(name, "denoiser", None, True, per_step(corrections), prepare, step,
                  traits=Traits(needs(name, finite_start=True), composed=True))  # fmt: skip
