"""Ancestral samplers: a step below the next noise level, then noise up to it."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from .. import checks
from ..types import Array
from .affine import (
    NoiseLevel,
    Steps,
    Update,
    multistep,
    noise_level_of_ratio,
    noise_steps,
    one_step,
)
from .base import Solver, factory, needs
from .eta import Eta, check_eta, label, mean_square, root

__all__ = [
    "ddim",
    "ddpm",
    "dpm_2",
    "dpm_2_ancestral",
    "edm_stochastic",
    "euler_ancestral",
    "heunpp",
    "reverse_diffusion",
]


def split(steps: Steps, eta: Eta) -> tuple[Array, Array]:
    """Split the noise at the end of each step (Song et al. 2021, DDIM, equation 16).

        ρ_↓² + ρ_↑² = ρ_s²,    ρ_↑ = η ρ_s √(1 − ρ_s²/ρ_t²)

    At η = 1 ρ_↑² is the variance of DDPM's posterior q(y_s | y_t, x_0), and
    ρ_↓ = ρ_s²/ρ_t.

    Args:
      steps: Steps between noise levels.
      eta: η in [0, 1]. Of a function of the noise level η² is its mean over
        log ρ in each step, at most 1.

    Returns:
      (ρ_↓, ρ_↑), each of shape (N,).
    """
    squared = mean_square(eta, steps.start, steps.end)
    # 1 + η² expm1(−2h) would cancel to rounding at a large step h, and ρ_↓/ρ_s
    # with it.
    kept = (1 - squared) + squared * jnp.exp(-2 * steps.log_step)
    lost = -squared * jnp.expm1(-2 * steps.log_step)
    return steps.end.rho * jnp.sqrt(kept), steps.end.rho * root(lost)


def ancestral_update(steps: Steps, eta: Eta) -> Update:
    """The update y ← D + (ρ_↓/ρ_t)(y − D) + ρ_↑ z of each step.

    Args:
      steps: Steps between noise levels.
      eta: Of `split`.

    Returns:
      The update of y = x/α, entries (N,).
    """
    down, up = split(steps, eta)
    keep, gain = down / steps.end.rho, 1 - down / steps.start.rho
    return Update(steps.end, keep, (gain,), (up,) if eta else ())


@factory
@checks.arguments(eta=check_eta)
def ddim(eta: Eta = 0.0) -> Solver:
    """DDIM sampler (Song et al. 2021, equations 12 and 16).

        x_s = α_s D + √(σ_s² − ς²) (x_t − α_t D)/σ_t + ς z
        ς = η (σ_s/σ_t) √(σ_t² − (α_t/α_s)² σ_s²)

    Args:
      eta: η in [0, 1], or a function of the noise level as in `eta_between`. 0
        is deterministic: the exponential Euler step of the probability flow,
        of order 1. 1 samples DDPM's posterior, with weak order 1. Of a
        function a step takes the mean of η².

    Returns:
      A solver with one evaluation per step. It can start where α = 0.

    Raises:
      ValueError: If eta lies outside [0, 1].

    Example:
      >>> ddim = dj.solvers.ddim()
      >>> xs = dj.sample_many(
      ...     key, 4, denoiser, schedule, solver=ddim, grid=grid, shape=(2,)
      ... )
    """
    name = f"ddim({label(eta)})"
    return multistep(
        name,
        lambda schedule, steps: ancestral_update(steps, eta),
        order=1,
        stochastic=bool(eta),
        check_grid=needs(name),
    )


@factory
@checks.arguments(eta=check_eta)
def euler_ancestral(eta: Eta = 1.0) -> Solver:
    """Ancestral sampling with Euler steps (Crowson 2022, k-diffusion).

        y ← y + (ρ_↓ − ρ) ε̂ + ρ_↑ z,    y = x/α, ρ = σ/α
        ρ_↓² + ρ_↑² = ρ_s²,    ρ_↑ = η ρ_s √(1 − ρ_s²/ρ_t²)

    It is `ddim(eta)`, because Euler's step in ρ is DDIM's.

    Args:
      eta: As in `ddim`.

    Returns:
      A solver of weak order 1 with one evaluation per step.

    Raises:
      ValueError: If eta lies outside [0, 1].

    References:
      The ordinary differential equation is that of Karras et al. 2022.

    Example:
      >>> solver = dj.solvers.euler_ancestral()
      >>> x = dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,))
    """
    return ddim(eta)._replace(name=f"euler_ancestral({label(eta)})")


_SHARES = {"posterior": 0.0, "forward": 1.0}
"""v of the variances β^v β̃^{1−v} that have a name."""


def _variance(name, value):
    if isinstance(value, str):
        return checks.choice(name, value, (*_SHARES, *_PAIRED_STDS))
    return float(checks.within(name, value, 0, 1))


@factory
@checks.arguments(variance=_variance)
def ddpm(variance: float | str = "posterior") -> Solver:
    """DDPM's ancestral sampler between any two times (Ho et al. 2020, Algorithm 2).

        x_s ← the mean of q(x_s | x_t, x_0 = D), and noise of the given variance

    With σ_{t|s}² = σ_t² − (α_t/α_s)² σ_s² there are two variances,
    β = σ_{t|s}² and β̃ = σ_{t|s}² σ_s²/σ_t². On consecutive indices of
    `from_betas` these are the chain's.

    Args:
      variance: One of

        - "posterior": β̃.
        - "forward": β.
        - A number v in [0, 1]: β^v β̃^{1−v}.
        - "learned": the same, where the denoiser returns (D, v).
        - "optimal": β̃ + c_0² Var(x_0 | x_t), where the denoiser returns
          (D, Var). Here c_0 = α_s (1 − ρ_s²/ρ_t²) and ρ = σ/α.

        v and Var have shape () or x's.

    Returns:
      A solver of weak order 1 with one evaluation per step.

    Raises:
      ValueError: For another variance.

    References:
      Ho et al. 2020, section 3.2, and Bishop & Bishop 2024, Algorithm 20.2, for
      the two variances. Nichol & Dhariwal 2021, equation 15, for the learned
      one. Bao et al. 2022, Theorem 1, for the optimal one.

    Example:
      >>> solver = dj.solvers.ddpm("forward")
      >>> x = dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,))
    """
    if variance in _PAIRED_STDS:
        return _with_second_output(variance)
    share = _SHARES.get(variance, variance)  # type: ignore[arg-type]

    def predict(schedule, steps):
        update = ancestral_update(steps, 1.0)
        # Its noise is √β̃/α_s, and β is larger than β̃ by (σ_t/σ_s)².
        scale = (steps.start.sigma / steps.end.sigma) ** share
        return update._replace(stds=(update.stds[0] * scale,))

    name = f"ddpm({variance if isinstance(variance, str) else format(variance, 'g')})"
    return multistep(name, predict, order=1, stochastic=True, check_grid=needs(name))


_PAIRED_STDS = {
    "learned": lambda std, ratio, gain, share: std * ratio**share,
    "optimal": lambda std, ratio, gain, spread: jnp.sqrt(std**2 + gain**2 * spread),
}
"""Standard deviation of the noise, from √β̃, σ_t/σ_s, c_0 and the second output."""


class _PairedInputs(NamedTuple):
    mean: Any  # of ddpm("posterior")
    ratio: Array  # σ_t/σ_s, (N,)
    to_zero: Array  # (N,)


def _with_second_output(variance):
    """`ddpm` with a variance that follows from the denoiser's second output."""
    base = ddpm("posterior")

    def prepare(problem, ts):
        steps = noise_steps(problem, ts)
        to_zero = steps.at_zero
        if to_zero is None:
            to_zero = jnp.zeros_like(steps.start.t, bool)
        ratio = steps.start.sigma / steps.end.sigma
        return _PairedInputs(base.prepare(problem, ts), ratio, to_zero)

    def step(problem, inputs, draw, x, state):
        update = inputs.mean.update
        (std,), (gain,) = update.stds, update.gains
        denoised, second = problem.denoiser(x, inputs.mean.t)
        # On a step to 0 the gain of D is 1, but no noise is added.
        c_0 = jnp.where(inputs.to_zero, 0, gain)
        std = _PAIRED_STDS[variance](std, inputs.ratio, c_0, second)
        return update.keep * x + gain * denoised + std * draw(0), state

    return base._replace(
        name=f"ddpm({variance})",
        prepare=prepare,
        step=step,
        init=lambda *_: (),
        traits=dataclasses.replace(base.traits, paired=True),
    )


@factory
def reverse_diffusion() -> Solver:
    """Reverse diffusion sampler (Song et al. 2021, equation 46).

        x ← (2 − a) x + G² ∇log p_t(x) + G z
        a = α_t/α_s,  G² = σ_t² − a² σ_s²

    It reverses the exact transition of the forward chain from s to t > s. For
    DDPM's chain a = √(1 − β) and G² = β. A step to 0 returns D.

    Returns:
      A solver of weak order 1 with one evaluation per step.

    References:
      The f and G of equations 47 and 48, for any schedule.

    Example:
      >>> solver = dj.solvers.reverse_diffusion()
      >>> x = dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,))
    """

    def predict(schedule, steps):
        start, end = steps.start, steps.end
        a = start.alpha / end.alpha
        share = -jnp.expm1(-2 * steps.log_step)  # G²/σ_t²
        keep = (2 - a - share) * start.sigma / end.sigma
        std = jnp.sqrt(share) * start.sigma / end.alpha
        return Update(end, keep, (share * a,), (std,))

    check_grid = needs("reverse_diffusion", finite_start=True)
    return multistep(
        "reverse_diffusion", predict, order=1, stochastic=True, check_grid=check_grid
    )


@factory
def dpm_2() -> Solver:
    """DPM-2 (Crowson 2022, k-diffusion).

        y_½ = y + (√(ρ_t ρ_s) − ρ_t) ε̂(y)
        y ← y + (ρ_s − ρ_t) ε̂(y_½),    y = x/α, ρ = σ/α

    This is the midpoint method in ρ with the geometric mean as its middle.

    Returns:
      A deterministic solver of order 2 with two evaluations per step, and one
      on a step to 0.

    References:
      After Karras et al. 2022 and Lu et al. 2022.

    Example:
      >>> dj.solvers.dpm_2().evaluations(8, to_zero=True)
      15
    """
    return _midpoint("dpm_2", 0.0)


@factory
@checks.arguments(eta=check_eta)
def dpm_2_ancestral(eta: Eta = 1.0) -> Solver:
    """Ancestral DPM-2 (Crowson 2022, k-diffusion).

        y ← the step of `dpm_2` to ρ_↓, then y ← y + ρ_↑ z

    ρ_↓ and ρ_↑ are those of `euler_ancestral`.

    Args:
      eta: As in `ddim`.

    Returns:
      A solver of weak order 2 with two evaluations per step, and one on a step
      to 0.

    Raises:
      ValueError: If eta lies outside [0, 1].

    Example:
      >>> dj.solvers.dpm_2_ancestral(0.5).evaluations(8)
      16
    """
    return _midpoint(f"dpm_2_ancestral({label(eta)})", eta)


@factory
def heunpp() -> Solver:
    """Heun++, known as `heunpp2` in ComfyUI.

        y ← y + (ρ_1 − ρ_0) ((1 − w_1 − w_2) ε̂_0 + w_1 ε̂_1 + w_2 ε̂_2)
        w_i = ρ_i/(3 ρ_max)

    ε̂_0, ε̂_1 and ε̂_2 are those at the start of the step, at its end and at the
    end of the next step, each reached by Euler's step in ρ. ρ_max is the ratio
    at the start of the grid. The step before the last has w_1 = ρ_1/(2 ρ_max)
    and w_2 = 0, the last step is Euler's.

    The weights do not tend to those of a method of higher order, unless ρ_1 +
    2 ρ_2 = 3 ρ_max/2, so that the order is 1.

    Returns:
      A deterministic solver of order 1 with three evaluations per step, and one
      on a step to 0. ComfyUI leaves out the evaluations of weight 0: one in the
      step before the last, two in a last step above 0.

    References:
      The method has no paper. It comes from Carzit's sd-webui-samplers-scheduler,
      here without churn.

    Example:
      >>> dj.solvers.heunpp().evaluations(8, to_zero=True)
      22
    """

    def tableau(schedule, steps):
        start, end = steps.start, steps.end
        last = jnp.arange(start.t.shape[0]) == start.t.shape[0] - 1
        before_last = jnp.arange(start.t.shape[0]) == start.t.shape[0] - 2
        # the end of the next step, or of this one where it is the last
        ahead = NoiseLevel(*(jnp.concatenate([e[1:], e[-1:]]) for e in end))
        length = end.rho - start.rho
        share = end.rho / start.rho[0]
        first = jnp.where(last, 0, share / jnp.where(before_last, 2, 3))
        second = jnp.where(last | before_last, 0, ahead.rho / (3 * start.rho[0]))
        return [
            Update(start, 1.0),
            Update(end, 1.0, [length]),
            Update(ahead, 1.0, [length, ahead.rho - end.rho]),
            Update(
                end,
                1.0,
                [length * (1 - first - second), length * first, length * second],
            ),
        ]

    return one_step("heunpp", tableau, order=1, stages=3, kind="noise")


def _midpoint(name, eta):
    def tableau(schedule, steps):
        start, end = steps.start, steps.end
        down, up = split(steps, eta)
        middle = noise_level_of_ratio(schedule, jnp.sqrt(start.rho * down))
        # As gains of ε̂ at the start and in the middle.
        to_middle = [middle.rho - start.rho]
        to_end = [0, down - start.rho]
        return [
            Update(start, 1.0),
            Update(middle, 1.0, to_middle),
            Update(end, down / end.rho, to_end, [up if eta else 0]),
        ]

    return one_step(
        name, tableau, order=2, stages=2, kind="noise", stochastic=bool(eta)
    )


@factory
@checks.arguments(
    churn=checks.non_negative,
    noise_min=checks.non_negative,
    noise_scale=checks.non_negative,
)
def edm_stochastic(
    churn: float = 40.0,
    noise_min: float = 0.05,
    noise_max: float = 50.0,
    noise_scale: float = 1.003,
) -> Solver:
    """EDM's stochastic sampler (Karras et al. 2022, Algorithm 2).

        y ← y + S_noise √(ρ̂² − ρ²) z,    ρ̂ = (1 + γ) ρ
        y ← Heun's step in ρ from ρ̂ to the next noise level

    Here y = x/α and ρ = σ/α. γ = min(S_churn/N, √2 − 1) where S_min ≤ ρ ≤ S_max,
    and 0 elsewhere.

    Args:
      churn: S_churn, 0 or more. 0 is Heun's method in ρ, which draws no noise and
        needs no key. The defaults are the paper's for ImageNet.
      noise_min: S_min, the least ρ at which noise is added.
      noise_max: S_max, the greatest.
      noise_scale: S_noise, 0 or more.

    Returns:
      A solver with two evaluations per step and one on a step to 0.

      Its weak order is 2 for S_noise = 1 as N grows at a fixed churn, where γ
      falls like 1/N. A churn that grows like N keeps γ, and with it the length
      of the step down, so that the error does not vanish. No order is declared
      for another S_noise, whose bias stays.

    Raises:
      ValueError: If churn or noise_scale is negative, and unless
        0 ≤ noise_min < noise_max.

    References:
      Two departures from the paper. ρ̂ never exceeds the ratio at t_max. A step
      to 0 adds no noise, where Algorithm 2 may.

    Example:
      >>> silent = dj.solvers.edm_stochastic(noise_scale=0.0)  # adds no noise
      >>> dj.sample(key, denoiser, schedule, solver=silent, grid=grid, shape=(2,)).shape
      (2,)
    """
    checks.greater("noise_max", noise_max, "noise_min", noise_min)

    def tableau(schedule, steps):
        start, end = steps.start, steps.end
        active = (start.rho >= noise_min) & (start.rho <= noise_max)
        active = active if steps.at_zero is None else active & ~steps.at_zero
        gamma = jnp.where(active, min(churn / start.rho.shape[0], math.sqrt(2) - 1), 0)
        top = schedule.sigma(schedule.t_max) / schedule.alpha(schedule.t_max)
        raised = jnp.minimum(start.rho * (1 + gamma), jnp.maximum(top, start.rho))
        churned = raised > start.rho
        # The square root of 0 has no gradient, so it is taken of 1 there.
        variance = jnp.where(churned, raised**2 - start.rho**2, 1)
        noise = noise_scale * jnp.where(churned, jnp.sqrt(variance), 0)
        fresh = noise_level_of_ratio(schedule, raised)
        pairs = zip(fresh, start, strict=True)
        at = NoiseLevel(*(jnp.where(churned, new, old) for new, old in pairs))
        length = end.rho - at.rho
        return [
            Update(at, start.rho / at.rho, (), [noise] if churn else ()),
            Update(end, 1.0, [length]),
            Update(end, 1.0, [0.5 * length] * 2),
        ]

    return one_step(
        "edm_stochastic",
        tableau,
        order=2 if noise_scale == 1 else None,
        stages=2,
        kind="noise",
        stochastic=churn > 0,
    )
