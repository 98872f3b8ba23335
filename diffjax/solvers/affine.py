"""Steps that are affine in the state, in the denoiser's outputs and in the noise.

Most samplers of the field are such steps. With y = x/α and ρ = σ/α every
Gaussian schedule has the distribution y = x_0 + ρ ε and the probability flow
dy = ε̂ dρ with ε̂ = (y − D)/ρ, so that a sampler is a table of coefficients of
y. Here such tables become solvers of x: `one_step` for methods with inner
stages, `multistep` for those that remember earlier outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ..grids.steps import (
    NoiseLevel,
    Steps,
    noise_level_of_ratio,
    steps_of,
    with_noise_levels,
)
from ..types import Array
from .base import Problem, Solver, Traits, needs, per_step, unless_zero

__all__ = [
    "NoiseLevel",
    "Steps",
    "Update",
    "from_noise",
    "multistep",
    "noise_level_of_ratio",
    "noise_steps",
    "one_step",
]


class Update(NamedTuple):
    """An affine update of a state, keep · state + Σ_j gains_j F_j + Σ_k stds_k z_k.

    F_j are the outputs of the denoiser so far, z_k standard normal draws.
    Samplers state it for y = x/α, where `keep` is a multiple of ρ'/ρ:

        y' = keep (ρ'/ρ) y + Σ_j gains_j F_j + Σ_k stds_k z_k

    keep = 1 then leaves the state's own noise at its share, as DDIM does.
    Entries that are the number 0 cost nothing. The builders below turn it into
    an update of x, where absent entries are None and keep = None leaves the
    state unchanged.

    Attributes:
      at: The noise level of the new state.
      keep: The coefficient of the state.
      gains: The coefficients of the outputs.
      stds: The coefficients of the noise.
    """

    at: NoiseLevel | None
    keep: Any
    gains: Sequence = ()
    stds: Sequence = ()


def noise_steps(problem: Problem, ts: Array) -> Steps:
    """The steps of a grid, from noise levels to noise levels.

    Args:
      problem: With a schedule.
      ts: Times (N + 1,). The last may be 0 where the problem says so.

    Returns:
      The steps.
    """
    return with_noise_levels(problem.schedule, steps_of(ts, problem.zero_end))


# ---------------------------------------------------------------- updates of x


def absent(coefficient: Any) -> bool:
    """Whether a coefficient is the number 0, which costs nothing."""
    return isinstance(coefficient, int | float) and coefficient == 0


def _in_x(update, base):
    """An update of y as one of x, relative to a state at noise level `base`."""
    at = update.at
    keep = None if at is base else update.keep * (at.sigma / base.sigma)
    # A noise ρ z of y is σ z of x even where α is below every float and ρ is not σ/α.
    scaled = lambda scale, entries: tuple(
        None if absent(c) else scale * c for c in entries
    )
    return Update(
        None,
        keep,
        scaled(at.alpha, update.gains),
        scaled(at.sigma / at.rho, update.stds),
    )


def _apply(update: Update, x: Any, outputs: Any = (), draw: Any = None) -> Any:
    """The new state. keep = None leaves x unchanged, other None are left out."""
    total = x if update.keep is None else update.keep * x
    for gain, output in zip(update.gains, outputs, strict=False):
        total = total if gain is None else total + gain * output
    for i, std in enumerate(update.stds):
        total = total if std is None else total + std * draw(i)
    return total


def _noise_of(at):
    """ε̂ = (x − α D)/σ at a noise level, as an update of x with the output D."""
    return Update(None, 1 / at.sigma, (-1 / at.rho,))


def _in_denoised(updates):
    """Updates of a method in ε̂_j = (y_j − D_j)/ρ_j as updates in D_j.

    With D = 0 the solution is y ∝ ρ, and a consistent method follows it exactly.
    The tableau states that share as `keep`. In y_i = y_0 + Σ_j g_ij ε̂_j both
    terms are of the size of ρ_0: where α is small, what is left of them is
    rounding.
    """
    first, *others = updates
    table = []  # G_ik of y_i = (ρ_i/ρ_0) y_0 + Σ_k G_ik D_k
    for i, update in enumerate(others):
        gains = list(update.gains) + [0] * (i + 1 - len(update.gains))
        shares = [
            0 if absent(g) else g / u.at.rho
            for g, u in zip(gains, updates, strict=False)
        ]
        row = []
        for k in range(i + 1):
            terms = [
                c * table[j - 1][k]
                for j, c in enumerate(shares)
                if j > k and not absent(c)
            ]
            row.append(sum(terms) - shares[k])
        table.append(row)
    return [
        first,
        *(u._replace(gains=row) for u, row in zip(others, table, strict=True)),
    ]


# -------------------------------------------------------------------- builders


def one_step(
    name: str,
    tableau: Callable[[Any, Steps], Sequence[Update]],
    *,
    order: int | None,
    stages: int,
    kind: str = "data",
    stochastic: bool = False,
) -> Solver:
    """A method with inner stages, of which a step to 0 runs the first alone.

    Args:
      name: The solver's name.
      tableau: (schedule, steps) -> an update for each state at which the
        denoiser is called and one for the result. The first starts from the
        state itself, the others from the first one's result.
      order: The order to declare.
      stages: Evaluations per step, 2 or more.
      kind: "data" where the gains are those of D. "noise" where they are those
        of ε̂ and `keep` is what they leave of the state where D = 0.
      stochastic: Whether it draws noise.

    Returns:
      The solver.
    """

    def prepare(problem, ts):
        steps = noise_steps(problem, ts)
        updates = tableau(problem.schedule, steps)
        updates = _in_denoised(updates) if kind == "noise" else updates
        bases = [steps.start] + [updates[0].at] * stages
        times = [update.at.t for update in updates[:-1]]
        in_x = [
            _in_x(update, base) for update, base in zip(updates, bases, strict=True)
        ]
        return steps.at_zero, times, in_x

    def step(problem, inputs, draw, x, state):
        at_zero, times, (first, *inner, last) = inputs
        x = _apply(first, x, (), draw)
        denoised = problem.denoiser(x, times[0])

        def finish(_):
            outputs = [denoised]
            for t, update in zip(times[1:], inner, strict=True):
                outputs.append(problem.denoiser(_apply(update, x, outputs, draw), t))
            return _apply(last, x, outputs, draw)

        return unless_zero(at_zero, finish, denoised), state

    return Solver(
        name,
        "denoiser",
        order,
        stochastic,
        per_step(stages),
        prepare,
        step,
        traits=Traits(needs(name, finite_start=True)),
    )


class MultistepInputs(NamedTuple):
    """The coefficients of a multistep method, each entry with a leading axis of steps.

    Attributes:
      t: The time at which the denoiser is called.
      output: ε̂ as an update of x with the output D. None where D itself is
        remembered.
      update: The prediction, as an update of x.
      correction: The correction of the step before, as an update of x. None
        without one.
    """

    t: Any
    output: Update | None
    update: Update
    correction: Update | None

    def remembered(self, x: Array, denoised: Array) -> Array:
        """The output that later steps remember: D, or ε̂ of noise prediction.

        Args:
          x: The state.
          denoised: D there.

        Returns:
          An array of x's shape.
        """
        return denoised if self.output is None else _apply(self.output, x, (denoised,))


def multistep(
    name: str,
    predict: Callable[[Any, Steps], Update],
    *,
    order: int | None,
    past: int = 0,
    kind: str = "data",
    stochastic: bool = False,
    correct: Callable[[Any, Steps], Sequence] | None = None,
    check_grid: Callable | None = None,
) -> Solver:
    """A method with one evaluation per step that remembers earlier outputs.

    A step to exactly 0 returns D, whatever update is stated for it.

    Args:
      name: The solver's name.
      predict: (schedule, steps) -> the update of each step, gains for the
        newest output first. `steps` has the noise levels `start` and `end`
        (t, alpha, sigma, rho), `log_step` = h and `at_zero`, each entry (N,).
      order: The order to declare.
      past: How many outputs before the newest it remembers. Those that are
        missing in the first steps are 0. Give them gain 0 there.
      kind: "data" where the gains are those of D. "noise" where they are the
        gain of D, then those of the differences ε̂_j − ε̂ to the earlier
        outputs, see `from_noise`.
      stochastic: Whether it draws noise.
      correct: (schedule, steps) -> of a predictor–corrector, the gains by
        which the result of each step is corrected once D is known there: for
        that D, then for those that the step itself used, newest first.
      check_grid: As in `Traits`. By default at least two steps where earlier
        outputs are remembered.

    Returns:
      The solver.

    Example:
      >>> from diffjax.solvers.affine import Update, multistep
      >>> def predict(schedule, steps):  # y ← (ρ_s/ρ_t) y + (1 − ρ_s/ρ_t) D
      ...     ratio = steps.end.rho / steps.start.rho
      ...     return Update(steps.end, 1.0, [1 - ratio])
      >>> solver = multistep("another ddim", predict, order=1)
      >>> dj.sample(key, denoiser, schedule, solver=solver, grid=grid, shape=(2,)).shape
      (2,)
    """

    def prepare(problem, ts):
        steps = noise_steps(problem, ts)
        output = _noise_of(steps.start) if kind == "noise" else None
        update = _in_x(predict(problem.schedule, steps), steps.start)
        update = _denoised_at_zero(update, steps)
        if correct is None:
            return MultistepInputs(steps.start.t, output, update, None)
        gains = [steps.end.alpha * gain for gain in correct(problem.schedule, steps)]
        # a step corrects the result of the one before it, the first has none to correct
        gains = [jnp.concatenate([jnp.zeros_like(g[:1]), g[:-1]]) for g in gains]
        correction = Update(None, None, tuple(gains))
        return MultistepInputs(steps.start.t, output, update, correction)

    def init(problem, x, inputs):
        zero = jnp.zeros_like(x)
        return (zero,) * past, zero if correct else None

    def step(problem, inputs, draw, x, state):
        _, _, update, correction = inputs
        earlier, predicted = state
        denoised = problem.denoiser(x, inputs.t)
        newest = inputs.remembered(x, denoised)
        terms = (denoised, *earlier)
        if kind == "noise":
            terms = (denoised, *(before - newest for before in earlier))
        outputs = (newest, *earlier)
        if correction is not None:
            # the prediction's share is exchanged: what else moved x since then stays
            x = _apply(correction, x - predicted, outputs)
        base = _apply(update._replace(gains=()), x, (), draw)
        x = _apply(Update(None, None, update.gains), base, terms)
        return x, (outputs[:past], x - base if correct else None)

    return Solver(
        name,
        "denoiser",
        order,
        stochastic,
        per_step(1),
        prepare,
        step,
        init,
        traits=Traits(
            check_grid or needs(name, steps=2 if past else 1),
            past=max(past, 1) if correct else past,
        ),
    )


def _denoised_at_zero(update, steps):
    """The update of a multistep method in x, with x' = D on a step to 0."""
    if steps.at_zero is None:
        return update

    def swap(new, old):
        return None if old is None else jnp.where(steps.at_zero, new, old)

    return Update(
        None,
        swap(0, update.keep),
        tuple(swap(1 if j == 0 else 0, old) for j, old in enumerate(update.gains)),
        tuple(swap(0, std) for std in update.stds),
    )


def from_noise(steps: Steps, gains: Sequence) -> Update:
    """The update y' = y + Σ_j g_j ε̂_j in D and the differences ε̂_j − ε̂_0.

        y' = (ρ'/ρ) y + (1 − ρ'/ρ) D + Σ_{j≥1} g_j (ε̂_j − ε̂_0)

    It holds because the gains of a constant ε̂ add up to ρ' − ρ. Nothing of
    the size of ρ cancels here.

    Args:
      steps: Steps between noise levels.
      gains: g_j, newest first, (N,) each.

    Returns:
      The update, as `multistep` takes it for kind "noise".
    """
    return Update(steps.end, 1.0, [-jnp.expm1(-steps.log_step), *gains[1:]])
