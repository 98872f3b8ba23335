"""The interface of a solver, its problem, and parts that solvers share."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..grids.steps import Steps, steps_of
from ..sde import Semilinear
from ..types import Array, ArrayLike, PyTree, pytree, static_field
from .eta import Eta, EtaFunction

__all__ = ["Info", "Problem", "Solver", "Traits"]


@pytree
class Problem:
    """A differential equation to solve. Fields that do not apply are None.

    A problem with a schedule and a denoiser serves every solver: the velocity
    of its probability flow and its reverse SDE are derived for the solvers
    that consume them.

    Attributes:
      schedule: α and σ.
      denoiser: E[x_0 | x_t = x], called as denoiser(x, t).
      velocity: dx/dt, called as velocity(x, t).
      sde: An `SDE`.
      zero_end: Whether the grid may end at exactly 0. False, where it is known
        not to, saves every step of a method with inner stages a branch. The
        driver sets it.
    """

    schedule: Any = None
    denoiser: Any = None
    velocity: Any = None
    sde: Any = None
    zero_end: bool = static_field(default=True)

    @property
    def stated(self) -> list[str]:
        """Names of the fields that are not None."""
        fields = "schedule", "denoiser", "velocity", "sde"
        return [name for name in fields if getattr(self, name) is not None]


class Info(NamedTuple):
    """The work of a run.

    Attributes:
      evaluations: Evaluations of the field or denoiser.
      accepted: Steps taken.
      rejected: Steps tried and not taken, of an adaptive solver.
      exhausted: Whether a step limit ended the run.
    """

    evaluations: Any
    accepted: Any
    rejected: Any
    exhausted: Any


def any_grid(schedule: Any, grid: np.ndarray) -> None:
    """The `check_grid` of a solver that takes every grid.

    Args:
      schedule: A schedule.
      grid: Times (N + 1,).
    """


@dataclasses.dataclass(frozen=True)
class Traits:
    """Properties by which few solvers differ from the rest.

    Attributes:
      check_grid: (schedule, grid) -> None. Raises ValueError if the solver
        cannot take them. It is called before tracing, with concrete values.
      past: How many earlier outputs the state remembers.
      composed: True for solvers built from other solvers. They cannot be
        nested.
      paired: Whether the denoiser must return a pair, see `ddpm.paired`.
      across_examples: Whether a step reads other examples of the batch.
        `sample_many` then takes neither chunk nor mesh.
    """

    check_grid: Callable[[Any, np.ndarray], None] = any_grid
    past: int = 0
    composed: bool = False
    paired: bool = False
    across_examples: bool = False


class Solver(NamedTuple):
    """A method as a tuple of pure functions, made by a factory such as `heun()`.

    Attributes:
      name: Its name in messages and benchmarks, with its settings.
      consumes: "velocity", "sde" or "denoiser", the field of `Problem` that it
        evaluates.
      order: Convergence order in the largest step, in the weak sense for a
        stochastic solver. None where none is declared.
      stochastic: Whether it draws noise, and needs a key.
      evaluations: (steps, to_zero=False) -> number of network evaluations,
        to_zero for a grid that ends at 0. It is not compared with the calls
        made. None where they depend on the data: take info=True.
      prepare: (problem, ts) -> inputs, a pytree with a leading axis of steps,
        computed for all steps at once. ts may end at exactly 0, where a
        schedule has no coefficients. The step there must return D, see
        `unless_zero`.
      step: (problem, inputs, draw, x, state) -> (x, state), one step. draw(i)
        is its i-th standard normal, of x's shape.
      init: (problem, x, inputs of the first step) -> state, what passes from
        step to step.
      report: state -> Info, for solvers whose work depends on the data. None
        for the others.
      solve: (source, problem, x, ts) -> (states (N + 1, …), Info), in place of
        the scan, for a method that does not take one step after another.
      traits: Properties by which few solvers differ from the rest.
    """

    name: str
    consumes: str
    order: int | None
    stochastic: bool
    evaluations: Callable[..., int | None]
    prepare: Callable[[Problem, Array], PyTree]
    step: Callable[..., tuple[PyTree, PyTree]]
    init: Callable[..., PyTree] = lambda problem, x, inputs: ()
    report: Callable[[PyTree], Info] | None = None
    solve: Callable[..., tuple[PyTree, Info]] | None = None
    traits: Traits = Traits()

    def __repr__(self) -> str:
        return f"<solver {self.name}>"


def factory(function: Callable[..., Solver]) -> Callable[..., Solver]:
    """A cached solver factory.

    Hyperparameters become plain Python values of their default's type, so that
    f(), f(0.0) and f(eta=0.0) are one object and nothing compiled for one is
    compiled again for another.
    """
    signature = inspect.signature(function)
    build = functools.lru_cache(maxsize=None, typed=True)(function)

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Solver:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = {
            k: _plain(signature.parameters[k], v) for k, v in bound.arguments.items()
        }
        # by keyword, so that the cache sees one spelling
        return build(**values)

    return make


def _plain(parameter, value):
    name, default = parameter.name, parameter.default
    try:
        hash(value)
    except TypeError:
        message = f"{name} must be a plain Python value, for a solver is static, "
        raise TypeError(f"{message}got {value!r}") from None
    if isinstance(default, bool):
        return checks.boolean(name, value)
    if parameter.annotation is Eta and (
        isinstance(value, EtaFunction) or callable(value)
    ):
        # Its check says whether it is an η.
        return value
    if isinstance(default, float) or parameter.annotation is Eta:
        return float(checks.number(name, value))
    return checks.integer(name, value, minimum=0) if isinstance(default, int) else value


def per_step(count: int) -> Callable[..., int]:
    """`evaluations` of a solver with `count` per step, and one on a step to 0."""

    def evaluations(steps: int, to_zero: bool = False) -> int:
        return count * (steps - to_zero) + to_zero

    return evaluations


# ---------------------------------------------------- steps of a field u(x, t)


class Stage(NamedTuple):
    """One evaluation of a field at a known time.

    Attributes:
      t: The time.
      coefficients: (A(t), B(t)) of a semilinear field u = A x + B D(x, t).
        None for other fields.
    """

    t: Array
    coefficients: Any


def stage(field: Any, ts: Array) -> Stage:
    """The stages at times of any shape. Coefficients are computed for all at once.

    Args:
      field: u(x, t).
      ts: The times.

    Returns:
      The stages, of the shape of ts.
    """
    if not is_semilinear(field):
        return Stage(ts, None)
    # any shape -> (T,) -> the shape of ts
    flat = jax.vmap(field.coefficients)(ts.reshape(-1))
    return Stage(ts, jax.tree.map(lambda c: c.reshape(ts.shape), flat))


def evaluate(field: Any, at: Stage, x: PyTree) -> PyTree:
    """The field's value u(x, t) at a prepared stage.

    Args:
      field: u(x, t).
      at: The stage.
      x: The state.

    Returns:
      dx/dt, of x's structure.
    """
    if at.coefficients is None:
        return field(x, at.t)
    a, b = at.coefficients
    return a * x + b * field.denoiser(x, at.t)


def is_semilinear(field: Any) -> bool:
    """Whether a field states A and B of u = A x + B D(x, t)."""
    return isinstance(field, Semilinear)


def steps_along(field: Any, ts: Array, zero_end: bool) -> Steps:
    """The steps of a grid along a field, from times to times.

    Args:
      field: u(x, t). To one that is not semilinear 0 is a time like any other.
      ts: Times (N + 1,).
      zero_end: Whether the last time may be 0.

    Returns:
      The steps.
    """
    return steps_of(ts, zero_end and is_semilinear(field))


def inner_times(steps: Steps, c: float) -> Array:
    """Times t + c (s − t) within each step, and t on a step to 0.

    Args:
      steps: Steps from times to times.
      c: The fraction of the step.

    Returns:
      The times, (N,).
    """
    if c == 1:
        return steps.end  # t + (s − t) may round to 0 where s is small beside t
    return steps.start + c * steps.dt


class EulerStep(NamedTuple):
    """The update x ← keep x + gain u(x, t)."""

    keep: Array
    gain: Array

    def __call__(self, x: PyTree, slope: PyTree) -> PyTree:
        """The state after the step.

        Args:
          x: The state.
          slope: u(x, t).

        Returns:
          The new state.
        """
        return weighted_sum((self.keep, x), (self.gain, slope))


def euler_step(field: Any, steps: Steps) -> EulerStep:
    """Euler's step over each step of a grid, and D = (u − A x)/B on a step to 0.

    Args:
      field: u(x, t).
      steps: Steps from times to times.

    Returns:
      The coefficients, (N,) each.
    """
    dt = steps.dt
    if steps.at_zero is None:
        return EulerStep(jnp.ones_like(dt), dt)
    # u = A x + B D solved for D: x ← −(A/B) x + (1/B) u
    a, b = stage(field, steps.start).coefficients
    return EulerStep(
        jnp.where(steps.at_zero, -a / b, 1), jnp.where(steps.at_zero, 1 / b, dt)
    )


def weighted_sum(*terms: tuple[Any, PyTree]) -> PyTree:
    """Σ c x over (coefficient, pytree) pairs."""
    coefficients, trees = zip(*terms, strict=True)
    return jax.tree.map(
        lambda *leaves: sum(
            c * leaf for c, leaf in zip(coefficients, leaves, strict=True)
        ),
        *trees,
    )


def unless_zero(
    at_zero: Array | None, correct: Callable[[PyTree], PyTree], x: PyTree
) -> PyTree:
    """Apply the later stages of a step, unless it ends at 0.

    Args:
      at_zero: Whether the step ends at 0, (). None where no step does.
      correct: The later stages. They are not run on a step to 0.
      x: The result of the first stage.

    Returns:
      correct(x), or x on a step to 0.
    """
    if at_zero is None:
        return correct(x)
    return jax.lax.cond(at_zero, lambda x: x, correct, x)


# --------------------------------------------------------- what a method needs


def needs(
    name: str, finite_start: bool = False, steps: int = 1, drift: bool = False
) -> Callable[[Any, np.ndarray], None]:
    """The `check_grid` of a solver.

    Args:
      name: The solver's name, for the message.
      finite_start: Whether σ/α must have a value at the grid's first time.
      steps: The least number of steps.
      drift: With `finite_start`, whether the reverse SDE's drift must have a
        value there too.

    Returns:
      (schedule, grid (N + 1,)) -> None, which raises ValueError where the grid
      falls short.
    """

    has_no_value = without_drift if drift else without_signal

    def check_grid(schedule, ts):
        checks.integer(f"steps of the grid for {name}", len(ts) - 1, steps)
        if finite_start and has_no_value(schedule, ts[0]):
            raise ValueError(
                f"grid must start below t={ts[0]} for {name}: α = 0 there to rounding; "
                "lower t_max, or use a solver without this limit, as heun() or ddim()"
            )

    return check_grid


def without_signal(schedule: Any, t: ArrayLike) -> bool:
    """Whether σ/α has no value at t, as far as can be seen.

    That is where α is 0 to rounding and the schedule states no finite log-SNR
    from which σ/α would follow.

    Args:
      schedule: A schedule or None.
      t: A time.

    Returns:
      False where schedule or time are traced.
    """
    if not without_drift(schedule, t):
        return False
    with jax.ensure_compile_time_eval():
        return not (
            hasattr(schedule, "log_snr")
            and np.isfinite(float(schedule.log_snr(jnp.asarray(t))))
        )


def without_drift(schedule: Any, t: ArrayLike) -> bool:
    """Whether d log α/dt has no value at t, because α is 0 to rounding there.

    Args:
      schedule: A schedule or None.
      t: A time.

    Returns:
      False where schedule or time are traced.
    """
    if schedule is None or checks.is_traced(schedule, t):
        return False
    with jax.ensure_compile_time_eval():
        return bool(schedules.without_signal(schedule, t))
