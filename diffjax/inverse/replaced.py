"""Posterior samplers that insert the observation: replacement and RePaint."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..guidance import arguments
from ..solvers import composed, driver
from ..solvers.affine import noise_steps
from ..solvers.ancestral import ddpm
from ..solvers.base import Solver, Traits, factory
from ..solvers.requirements import INNER, check_solver
from ..types import Array, ArrayLike, Denoiser, Scalar, pytree
from .operators import LinearOperator, measurement

__all__ = ["Replaced", "repaint", "replacement"]


@pytree
class Replaced:
    """The denoiser D + A⁺ (y − A D), see `replacement`."""

    denoiser: Any
    operator: Any
    y: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """D with its observed part from y, shape of x.

        A condition is passed to the denoiser.
        """
        return self.insert(
            arguments.denoised_at(self.denoiser, x, t, *condition), self.y
        )

    def insert(self, x: Array, y: Array) -> Array:
        """The nearest point to x with a given observation.

            x + A⁺ (y − A x)

        Args:
          x: One example.
          y: An observation, of shape operator.measured.

        Returns:
          The point, shape of x.
        """
        missing = self.operator.solve(y - self.operator.forward(x), 1.0, 0.0)
        return x + self.operator.transpose(missing).astype(x.dtype)


@checks.arguments(denoiser=arguments.denoiser)
def replacement(denoiser: Denoiser, operator: LinearOperator, y: ArrayLike) -> Replaced:
    """The replacement method: the observed part of D is taken from the observation.

        D + A⁺ (y − A D)

    The observation counts as exact, and A D is then the constant y. At noise 0
    the result agrees with y. Two kinds of solvers keep more than that:

    - A deterministic solver that is exact for a constant D keeps A x_t = α y +
      σ A ε at every grid time, with one ε.
    - A solver that samples the posterior of x_s exactly for a constant D, as
      `ddpm` does, keeps the distribution N(α y, σ² A Aᵀ).

    On every schedule this holds for `ddim`, `dpm_solver`, `dpmpp_2s`,
    `dpmpp_2m`, `dpmpp_3m`, `deis`, `unipc`, `sa_solver`, `ipndm`,
    `adams_bashforth`, `dpm_2`, `exponential_runge_kutta`, `er_sde`, `seeds`
    and `heunpp`.

    For `euler`, `heun`, `midpoint` and `rk4` it holds where α and σ are linear
    in t, as for `edm` and `rectified_flow`. On other schedules they keep it to
    their order only, and on coarse grids not at all.

    The rest of x is drawn as if it knew y through x_t alone. That is not the
    posterior, not even for Gaussians.

    Args:
      denoiser: E[x_0 | x_t].
      operator: A.
      y: The observation, of shape operator.measured.

    Returns:
      A denoiser for any solver.

    Raises:
      TypeError: For an operator or denoiser of another kind.
      ValueError: For a y that does not fit.

    References:
      For `inpainting`: Song et al. 2021, appendix I.2, who draw fresh noise in
      each step, as `repaint` does. For other operators: Wang et al. 2023
      (DDNM), section 3.2.

    Example:
      >>> first = dj.inverse.inpainting([True, False])
      >>> inpainted = dj.inverse.replacement(denoiser, first, [1.0])
      >>> inpainted(jnp.zeros(2), 0.5)[0]
      Array(1., dtype=float32)
    """
    return Replaced(denoiser, operator, measurement(operator, y))


_DDPM = ddpm()

_JUMP_DRAW, _OBSERVED_DRAW, _INNER_DRAW = 6, 7, 2
"""Draws of a step: of the jump, of the observed part, and the first of the solver's own
in a repeated step. Those below 2 there may belong to a Brownian path."""

_FIRST_REPEATED = 2**20
"""Steps with greater numbers are repeated ones. No grid has as many."""


@dataclasses.dataclass(frozen=True)
class _RePaint:
    solver: Solver
    jump: int
    repeats: int


class _RePaintInputs(NamedTuple):
    """Coefficients of each step, with a leading axis of N steps."""

    down: Any  # of the step itself, see _Down
    again: Array  # (N,), whether the last steps are repeated after it
    up: Any  # (keep, std) of the jump back up, (N,) each
    segment: Any  # `down` of the repeated steps, (N, jump)


class _Down(NamedTuple):
    """One step down: the solver's inputs, and α and σ of the observed part there."""

    inputs: Any
    alpha: Array
    sigma: Array


@factory
@checks.arguments(
    solver=(check_solver, *INNER, "memoryless"),
    jump=(checks.integer, 1),
    repeats=(checks.integer, 1),
)
def repaint(solver: Solver = _DDPM, jump: int = 1, repeats: int = 10) -> Solver:
    """RePaint (Lugmayr et al. 2022, Algorithm 1 and section 4.2).

        x ← a step of `solver`,  then  A x ← α y + σ A z  with fresh noise z

    For a denoiser made by `replacement`. Every `jump` steps, the state is
    noised back up by as many steps, and these are taken again, `repeats` − 1
    times. This brings the rest of x to agree with the observation. A bias
    stays for any number of repeats.

    A state is repeated where at least `jump` steps lie behind it and a
    multiple of `jump` before the last step. The last step is never repeated.

    Args:
      solver: A solver of fixed steps without memory of earlier ones.
      jump: Steps of a jump, 1 or more.
      repeats: How often the steps are taken, 1 or more. 1 is the replacement
        method with fresh noise.

    Returns:
      A stochastic solver. Each repeated step costs one of the solver's. No
      order is declared.

    Raises:
      TypeError: For another kind of solver or, in use, of denoiser.
      ValueError: If jump or repeats are below 1.

    Example:
      >>> first = dj.inverse.inpainting([True, False])
      >>> inpainted = dj.inverse.replacement(denoiser, first, [1.0])
      >>> solver = dj.inverse.repaint(repeats=2)
      >>> dj.sample_many(
      ...     key, 4, inpainted, schedule, solver=solver, grid=grid, shape=(2,)
      ... ).shape
      (4, 2)
    """
    settings = _RePaint(solver, jump, repeats)
    return Solver(
        f"repaint({solver.name})",
        "denoiser",
        None,
        True,
        functools.partial(_repaint_evaluations, settings),
        functools.partial(_prepare_repaint, settings),
        functools.partial(_repaint_step, settings),
        traits=Traits(solver.traits.check_grid, composed=True),
    )


def _repaint_step(settings, problem, inputs, draw, x, state):
    """A step down, then `repeats` − 1 rounds of a jump up and the steps down again."""
    observed = _replaced(problem)
    inner = driver.derive(settings.solver, problem)

    def step_down(x, down, solver_draw, z):
        start = settings.solver.init(inner, x, down.inputs)
        x, _ = settings.solver.step(inner, down.inputs, solver_draw, x, start)
        noise = down.sigma * observed.operator.forward(z)  # of the observed part
        return observed.insert(x, down.alpha * observed.y + noise)

    def repeat(k, x):
        first = _first_number(settings, draw.index, k)
        keep, std = inputs.up
        x = keep * x + std * draw.source.normal(first, _JUMP_DRAW)

        def step_again(x, numbered):
            number, down = numbered
            solver_draw = lambda i: draw.source.normal(number, _INNER_DRAW + i)
            z = draw.source.normal(number, _OBSERVED_DRAW)
            return step_down(x, down, solver_draw, z), None

        numbers = first + jnp.arange(settings.jump, dtype=jnp.uint32)
        return jax.lax.scan(step_again, x, (numbers, inputs.segment))[0]

    x = step_down(x, inputs.down, draw, draw(_OBSERVED_DRAW))
    if settings.repeats == 1:
        return x, state
    repeated = lambda x: jax.lax.fori_loop(0, settings.repeats - 1, repeat, x)
    return jax.lax.cond(inputs.again, repeated, lambda x: x, x), state


def _prepare_repaint(settings, problem, ts):
    _replaced(problem)  # raises before anything is traced
    steps, jump = noise_steps(problem, ts), settings.jump
    count = ts.shape[0] - 1
    inputs = settings.solver.prepare(driver.derive(settings.solver, problem), ts)
    alpha, sigma = steps.end.alpha, steps.end.sigma
    if steps.at_zero is not None:
        alpha = jnp.where(steps.at_zero, 1, alpha)
        sigma = jnp.where(steps.at_zero, 0, sigma)
    down = _Down(inputs, alpha, sigma)
    again = _is_repeated(count, jump)
    # The jump leads back to ts[first], where the repeated steps start.
    first = np.where(again, np.arange(1, count + 1) - jump, 0)
    high = jax.tree.map(lambda leaf: leaf[first], steps.start)
    walked = np.minimum(first[:, None] + np.arange(jump), count - 1)  # (N, jump)
    segment = jax.tree.map(lambda leaf: leaf[walked], down)
    up = composed.transition_up(steps.end, high)
    return _RePaintInputs(down, jnp.asarray(again), up, segment)


def _is_repeated(count, jump):
    """Whether the last steps are repeated after each of `count`, (N,)."""
    reached = np.arange(1, count + 1)
    return (reached >= jump) & (reached < count) & ((count - 1 - reached) % jump == 0)


def _repaint_evaluations(settings, steps, to_zero=False):
    cost = settings.solver.evaluations
    rounds = int(_is_repeated(steps, settings.jump).sum()) * (settings.repeats - 1)
    return cost(steps, to_zero) + rounds * cost(settings.jump)


def _first_number(settings, index, k):
    """Number of the first repeated step of round k after step `index`."""
    rounds = index * (settings.repeats - 1) + k
    return jnp.uint32(_FIRST_REPEATED) + rounds.astype(jnp.uint32) * settings.jump


def _replaced(problem):
    """The denoiser made by `replacement` within a problem.

    Guidance between several denoisers would undo what one of them inserts.
    """
    inner = problem.denoiser
    while not isinstance(inner, Replaced) and hasattr(inner, "denoiser"):
        inner = inner.denoiser  # out of the driver's check, or of a bound condition
    maker = "inverse.replacement for repaint"
    return checks.made_by("denoiser", inner, Replaced, maker)
