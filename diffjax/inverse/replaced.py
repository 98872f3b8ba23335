"""Posterior samplers that put the observation in place of what the denoiser says of it: replacement and RePaint."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..solvers import composed, driver
from ..solvers.ancestral import ddpm
from ..solvers.base import Solver, Traits, factory
from ..types import Array, ArrayLike, Denoiser, Scalar, as_pytree_callable, pytree
from .operators import LinearOperator, measurement


@pytree
class Replaced:
    """D + A⁺ (y − A D). See `replacement`."""

    denoiser: Any
    operator: Any
    y: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """D with what is observed from y, shape of x; a condition is the denoiser's."""
        return self.insert(checks.denoised(self.denoiser(x, t, *condition), x), self.y)

    def insert(self, x: Array, y: Array) -> Array:
        """x + A⁺ (y − A x): the x nearest to this one with A x = y."""
        missing = self.operator.solve(y - self.operator.forward(x), 1.0, 0.0)
        return x + self.operator.transpose(missing).astype(x.dtype)


def replacement(denoiser: Denoiser, operator: LinearOperator, y: ArrayLike) -> Replaced:
    """The observed part of the denoised example from the observation, taken as exact, the rest from the denoiser.

        D + A⁺ (y − A D)

    A D is then the constant y. A deterministic solver that is exact for a constant D keeps A x_t = α y + σ A ε at every
    grid time, with one ε, and one that samples the posterior of x_s exactly for a constant D, as `ddpm` does, keeps the
    distribution N(α y, σ² A Aᵀ). At noise 0 either gives y. On every schedule this holds for `ddim`, `dpm_solver`,
    `dpmpp_2s`, `dpmpp_2m`, `dpmpp_3m`, `deis`, `unipc`, `sa_solver`, `ipndm`, `adams_bashforth`, `dpm_2` and
    `exponential_runge_kutta`. For `euler`, `heun`, `midpoint` and `rk4` it holds where α and σ are linear in t, as of
    `edm` and `rectified_flow`. On other schedules they keep it to their order only, and on coarse grids not at all.

    The rest of x is drawn as if it knew y through x_t alone: not the posterior, on Gaussians too. For `inpainting` this
    is the replacement method of Song et al. 2021, appendix I.2 (there with fresh noise at each step, as `repaint` has).
    For other operators it is that of Wang et al. 2023 (DDNM), section 3.2.

    Args:
      denoiser: E[x_0 | x_t].
      operator: A.
      y: The observation, of shape operator.measured.

    Returns:
      A denoiser for any solver.

    Raises:
      TypeError: For an operator or denoiser of another kind.
      ValueError: For a y that does not fit.
    """
    denoiser = as_pytree_callable(
        checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    )
    return Replaced(denoiser, operator, measurement(operator, y))


_DDPM = ddpm()

_JUMP_DRAW, _OBSERVED_DRAW, _INNER_DRAW = 6, 7, 2
"""Which of a step's draws are what; those below 2 in a repeated step may belong to a given Brownian path."""


@factory
def repaint(solver: Solver = _DDPM, jump: int = 1, repeats: int = 10) -> Solver:
    """RePaint: a step of `solver`, the observed part drawn afresh as α y + σ A z, and the last steps taken again.

    For a denoiser made by `replacement`. Where jump steps lie behind and a multiple of jump before the last step, the
    state is noised up by jump steps and these are walked again, repeats − 1 times, so that the rest of x comes to agree
    with the observation. jump: j ≥ 1. repeats: r ≥ 1; 1 is the replacement method with fresh noise. solver: one-step.
    A bias stays at every r: no order is declared. Evaluations: each repeated step costs one of the solver's. Raises
    TypeError for another solver or denoiser, ValueError for jump or repeats out of range. Lugmayr et al. 2022,
    Algorithm 1 and section 4.2.
    """
    composed.check_inner("solver", solver)
    checks.integer("jump", jump, 1)
    checks.integer("repeats", repeats, 1)

    def prepare(problem, ts):
        _replaced(problem)
        steps = ts.shape[0] - 1
        inner = driver.derive(solver, problem)
        down = solver.prepare(inner, ts)
        end = jnp.where(ts[1:] == 0, ts[:-1], ts[1:])
        alpha, sigma = problem.schedule.alpha(end), problem.schedule.sigma(end)
        known = jnp.where(ts[1:] == 0, 1, alpha), jnp.where(ts[1:] == 0, 0, sigma)
        reached = np.arange(1, steps + 1)
        again = _jumps(steps, jump)
        first = np.where(again, reached - jump, 0)  # the jump leads back to ts[first]
        ratio = jnp.where(
            alpha == 0,
            0,
            problem.schedule.alpha(ts[first]) / jnp.where(alpha == 0, 1, alpha),
        )
        added = jnp.sqrt(
            jnp.maximum(
                problem.schedule.sigma(ts[first]) ** 2 - (ratio * sigma) ** 2, 0
            )
        )
        walked = np.minimum(first[:, None] + np.arange(jump), steps - 1)  # (N, jump)
        segment = jax.tree.map(lambda leaf: leaf[walked], (down, known))
        return (down, known), jnp.asarray(again), (ratio, added), segment

    def step(problem, inputs, draw, x, state):
        once, again, (ratio, added), segment = inputs
        inner, observed = driver.derive(solver, problem), _replaced(problem)

        def walk(x, at, draw, observed_noise):
            down, (alpha, sigma) = at
            x, _ = solver.step(inner, down, draw, x, solver.init(inner, x, down))
            noise = observed.operator.forward(observed_noise)
            return observed.insert(x, alpha * observed.y + sigma * noise)

        def one_round(k, x):
            base = _first_number(repeats, jump, draw.index, k)
            x = ratio * x + added * draw.source.normal(base, _JUMP_DRAW)

            def body(x, numbered):
                number, at = numbered
                own = lambda i: draw.source.normal(number, _INNER_DRAW + i)
                return walk(
                    x, at, own, draw.source.normal(number, _OBSERVED_DRAW)
                ), None

            return jax.lax.scan(
                body, x, (base + jnp.arange(jump, dtype=jnp.uint32), segment)
            )[0]

        x = walk(x, once, draw, draw(_OBSERVED_DRAW))
        if repeats == 1:
            return x, state
        return jax.lax.cond(
            again,
            lambda x: jax.lax.fori_loop(0, repeats - 1, one_round, x),
            lambda x: x,
            x,
        ), state

    def evaluations(steps: int, to_zero: bool = False) -> Any:
        repeated = int(_jumps(steps, jump).sum()) * (repeats - 1)
        return _cost(solver, steps, to_zero) + repeated * _cost(solver, jump)

    name = f"repaint({solver.name})"
    return Solver(
        name,
        "denoiser",
        None,
        True,
        evaluations,
        prepare,
        step,
        traits=Traits(solver.traits.check_grid, composed=True),
    )


def _jumps(steps, jump):
    """Whether a state is repeated once it has taken each of the steps, (N,): never after the last."""
    reached = np.arange(1, steps + 1)
    return (reached >= jump) & (reached < steps) & ((steps - 1 - reached) % jump == 0)


def _cost(solver, steps, to_zero=False) -> int:
    # never None: the solver takes fixed steps
    return solver.evaluations(steps, to_zero) or 0


def _first_number(repeats, jump, index, k):
    """The number of the first repeated step of round k at step `index`, beyond every number of a plain one."""
    return (
        jnp.uint32(_FIRST_REPEATED)
        + (index * (repeats - 1) + k).astype(jnp.uint32) * jump
    )


_FIRST_REPEATED = 2**20
"""Steps with greater numbers are repeated ones: a grid has fewer."""


def _replaced(problem):
    """The `replacement` denoiser within a problem."""
    observed = problem.denoiser
    while not isinstance(observed, Replaced) and hasattr(observed, "denoiser"):
        observed = (
            observed.denoiser
        )  # of the driver's check, or of one bound to its example's condition
    if not isinstance(observed, Replaced):
        raise TypeError(
            f"denoiser must be made by inverse.replacement for repaint, got {type(observed).__name__}"
        )
    return observed
