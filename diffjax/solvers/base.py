"""What a solver is, what it solves, and the parts that solvers share."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, schedules
from ..types import Array, ArrayLike, PyTree, pytree, static_field


@pytree
class Problem:
    """What there is to solve; missing fields are None.

    A problem with a schedule and a denoiser serves every solver: the velocity of its probability flow and its reverse
    SDE are derived for the solvers that consume them. zero_end: whether the grid may end at exactly 0, False where it
    is known not to, which saves every step of a method with inner stages a branch; the driver sets it.
    """

    schedule: Any = None
    denoiser: Any = None
    velocity: Any = None
    sde: Any = None
    zero_end: bool = static_field(default=True)


class Info(NamedTuple):
    """Evaluations of the field or denoiser, steps accepted and rejected, and whether a step limit ended the run."""

    evaluations: Any
    accepted: Any
    rejected: Any
    exhausted: Any


class Solver(NamedTuple):
    """A method as a tuple of pure functions, made by a factory such as `heun()`.

    Fields:
      name: What messages and benchmarks call it, with its settings.
      consumes: "velocity", "sde" or "denoiser", the field of `Problem` that it evaluates.
      order: Convergence order in the largest step, in the weak sense for a stochastic solver. None where none is
        declared.
      stochastic: Whether it draws noise, and needs a key.
      evaluations: grid -> number of network evaluations. None for adaptive solvers: take info=True.
      prepare: (problem, ts) -> inputs, a pytree with a leading axis of steps, computed for all steps at once.
      step: (problem, inputs, draw, x, state) -> (x, state), one step. draw(i) is its i-th standard normal, of x's
        shape.
      init: (problem, x, inputs of the first step) -> state, what passes from step to step.
      report: state -> Info, for solvers whose work depends on the data. None for the others.
      check_grid: (schedule, grid) -> None. Raises ValueError if the solver cannot take them. It is called before
        tracing, with concrete values.
      solve: (source, problem, x, ts) -> (states (N + 1, …), Info), in place of the scan, for a method that does not
        take one step after another.
      past: How many earlier outputs its state remembers.
      composed: True for solvers built from other solvers. They cannot be nested.
      paired: Whether the denoiser must return a pair, see `ddpm.paired`.
      across_examples: Whether a step reads other examples of the batch. `sample_many` then takes neither chunk nor
        mesh.
    """

    name: str
    consumes: str
    order: int | None
    stochastic: bool
    evaluations: Callable[[ArrayLike], int | None]
    prepare: Callable[[Problem, Array], PyTree]
    step: Callable[..., tuple[PyTree, PyTree]]
    init: Callable[..., PyTree] = lambda problem, x, inputs: ()
    report: Callable[[PyTree], Info] | None = None
    check_grid: Callable[[Any, np.ndarray], None] | None = None
    solve: Callable[..., tuple[PyTree, Info]] | None = None
    past: int = 0
    composed: bool = False
    paired: bool = False
    across_examples: bool = False

    def __repr__(self) -> str:
        return f"<solver {self.name}>"


def factory(function: Callable[..., Solver]) -> Callable[..., Solver]:
    """A cached solver factory: hyperparameters become plain Python values of their default's type, so that f(), f(0.0)
    and f(eta=0.0) are one object and nothing compiled for one is compiled again for another."""
    signature = inspect.signature(function)
    build = functools.lru_cache(maxsize=None, typed=True)(function)

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Solver:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = {
            k: _plain(k, v, signature.parameters[k].default)
            for k, v in bound.arguments.items()
        }
        return build(**values)

    return make


def _plain(name, value, default):
    if checks.is_traced(value):
        raise TypeError(
            f"{name} must be a plain Python value, not traced: a solver is static under jit"
        )
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{name} must be a plain Python value, got {value!r}") from None
    if isinstance(default, bool):
        return checks.boolean(name, value)
    if isinstance(default, float):
        return float(checks.number(name, value))
    return checks.integer(name, value, minimum=0) if isinstance(default, int) else value


# ----------------------------------------------------------------------------------------------- parts for the solvers


class Stage(NamedTuple):
    """One evaluation of a field at a known time: the time and, for semilinear fields, A(t) and B(t)."""

    t: Array
    coefficients: Any


def stage(field: Any, ts: Array) -> Stage:
    """The stages at times ts, of any shape, with a semilinear field's coefficients computed at once."""
    if not hasattr(field, "coefficients"):
        return Stage(ts, None)
    flat = jax.vmap(field.coefficients)(ts.reshape(-1))
    return Stage(ts, jax.tree.map(lambda c: c.reshape(ts.shape), flat))


def inner_times(ts: Array, steps: "Interval", c: float) -> Array:
    """t + c (s − t) of each step, (N,): s itself where c = 1, and t on a step to 0.

    t + (s − t) may round to 0 where s is small beside t.
    """
    t = ts[:-1]
    s = ts[1:] if steps.at_zero is None else jnp.where(steps.at_zero, t, ts[1:])
    return s if c == 1 else t + c * (s - t)


def evaluate(field: Any, at: Stage, x: PyTree) -> PyTree:
    """field(x, t) at a prepared stage."""
    if at.coefficients is None:
        return field(x, at.t)
    a, b = at.coefficients
    return a * x + b * field.denoiser(x, at.t)


class Interval(NamedTuple):
    """A step from t to s: dt = s − t, and the Euler step x ← keep x + gain field(x, t).

    Where a semilinear field's grid ends at s = 0 the Euler step returns D = (field − A x)/B: keep = −A/B, gain = 1/B;
    dt is then 0, so that stage times stay at t. at_zero says so; None for fields to which 0 is a time like any other.
    """

    dt: Array
    keep: Array
    gain: Array
    at_zero: Any


def intervals(field: Any, ts: Array, zero_end: bool) -> Interval:
    """The intervals of a grid (N + 1,) that may end at 0, each field of shape (N,)."""
    t, s = ts[:-1], ts[1:]
    if not (zero_end and hasattr(field, "coefficients")):
        return Interval(s - t, jnp.ones_like(t), s - t, None)
    at_zero = s == 0
    dt = jnp.where(at_zero, 0, s - t)
    a, b = stage(field, t).coefficients
    return Interval(
        dt, jnp.where(at_zero, -a / b, 1), jnp.where(at_zero, 1 / b, dt), at_zero
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
    """correct(x), or x itself on a step that ends at 0; the untaken side is not run."""
    return (
        correct(x)
        if at_zero is None
        else jax.lax.cond(at_zero, lambda x: x, correct, x)
    )


def needs(
    name: str, finite_start: bool = False, steps: int = 1, drift: bool = False
) -> Callable[[Any, np.ndarray], None]:
    """The `check_grid` of a solver.

    Args:
      name: Of the solver, for the message.
      finite_start: Whether σ/α must have a value at the grid's first time.
      steps: The least number of steps.
      drift: With `finite_start`, whether the reverse SDE's drift must have a value there too.

    Returns:
      (schedule, grid (N + 1,)) -> None, which raises ValueError where one of these is not so.
    """

    def check_grid(schedule, ts):
        if len(ts) - 1 < steps:
            raise ValueError(
                f"grid must have at least {steps} steps for {name}, which builds on earlier ones; got {len(ts) - 1}"
            )
        if finite_start and (without_drift if drift else without_signal)(
            schedule, ts[0]
        ):
            raise ValueError(
                f"grid must start below t={ts[0]} for {name}: α = 0 there to rounding and its coefficients have no "
                "value; lower t_max, or use a solver that needs none, such as heun() or ddim()"
            )

    return check_grid


def without_signal(schedule: Any, t: ArrayLike) -> bool:
    """Whether α(t) is seen to be 0 to rounding, and no finite log-SNR is stated from which σ/α follows all the same."""
    if not without_drift(schedule, t):
        return False
    with jax.ensure_compile_time_eval():
        return not (
            hasattr(schedule, "log_snr")
            and np.isfinite(float(schedule.log_snr(jnp.asarray(t))))
        )


def without_drift(schedule: Any, t: ArrayLike) -> bool:
    """Whether α(t) is seen to be 0 to rounding (`schedules.without_signal`): d log α/dt has no value there."""
    if schedule is None or checks.is_traced(schedule, t):
        return False
    with jax.ensure_compile_time_eval():
        return bool(schedules.without_signal(schedule, t))


def per_step(count: int) -> Callable[[ArrayLike], int]:
    """evaluations(grid) of a method with `count` evaluations a step, and one on a step to 0."""

    def evaluations(grid: ArrayLike) -> int:
        steps = np.shape(grid)[0] - 1
        to_zero = not checks.is_traced(grid) and float(np.asarray(grid)[-1]) == 0
        return count * (steps - to_zero) + to_zero

    return evaluations
