"""Continuous flows: the bijection of an ODE, its log-determinant and regularisers.

t = 0 is the data and t = 1 the base, as everywhere here, so that `forward`,
base -> data, integrates downwards.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, grids
from ..likelihood import ChangeOfVariables, DensityState
from ..numerics import float_dtype, standard_error
from ..solvers import driver, requirements
from ..solvers.base import Solver
from ..solvers.ode import rk4
from ..types import (
    Array,
    ArrayLike,
    Key,
    PyTree,
    Velocity,
    as_pytree_callable,
    pytree,
    static_field,
)
from .compiled import call
from .velocities import neural_velocity

__all__ = [
    "Continuous",
    "Transport",
    "continuous",
    "neural_ode",
    "transport",
    "transport_loss",
]

STEPS = 16

VELOCITY = (checks.callable_, "velocity(x, t)")


class Transport(NamedTuple):
    """Result of `transport`.

    Attributes:
      x: The end of the path.
      log_det: log|det ∂end/∂start|, shape ().
      standard_error: Of log_det over the probes, shape (). 0 for the exact
        trace, NaN for one probe.
      kinetic: ∫‖u‖² dt, shape ().
      jacobian: ∫‖∂u/∂x‖_F² dt, shape ().
      run: The solver's report.
    """

    x: Array
    log_det: Array
    standard_error: Array
    kinetic: Array
    jacobian: Array
    run: Any


@pytree
class Continuous:
    """Bijector x_0 = x_1 − ∫_0^1 u(x_t, t) dt. See `continuous`.

    Attributes:
      velocity: (x, t) -> u, or (x, t, condition) -> u.
      times: Decreasing, from the base's to the data's.
      solver: A solver that consumes a velocity.
      checkpoint: Whether a gradient computes the inside of each step again.
    """

    velocity: Any
    times: tuple = static_field()
    solver: Solver = static_field()
    checkpoint: bool = static_field()

    def forward(self, x: Array, condition: PyTree = None) -> Array:
        """x_0 of a base's x_1.

        Args:
          x: One example of the base.
          condition: As the velocity takes it.

        Returns:
          Data, shape of x.
        """
        return self._solve(self._field(condition), _example(x), self.times)[0]

    def inverse(self, y: Array, condition: PyTree = None) -> Array:
        """x_1 of data x_0.

        Args:
          y: One example of the data.
          condition: As the velocity takes it.

        Returns:
          The base's example, shape of y.
        """
        return self._solve(self._field(condition), _example(y), self.times[::-1])[0]

    def forward_and_log_det(
        self, x: Array, condition: PyTree = None
    ) -> tuple[Array, Array]:
        """(x_0, log|det ∂x_0/∂x_1|) by the exact trace.

        Args:
          x: One example of the base.
          condition: As the velocity takes it.

        Returns:
          Data, shape of x, and the log-determinant, shape ().
        """
        return transport(self, x, condition, upwards=False)[:2]

    def inverse_and_log_det(
        self, y: Array, condition: PyTree = None
    ) -> tuple[Array, Array]:
        """(x_1, log|det ∂x_1/∂x_0|) by the exact trace.

        Args:
          y: One example of the data.
          condition: As the velocity takes it.

        Returns:
          The base's example, shape of y, and the log-determinant, shape ().
        """
        return transport(self, y, condition)[:2]

    def path(self, x: Array, condition: PyTree = None) -> Array:
        """States at all times.

        Args:
          x: One example of the base, at times[0].
          condition: As the velocity takes it.

        Returns:
          The states, (N + 1, *x.shape).
        """
        field = self._field(condition)
        return self._solve(field, _example(x), self.times, path=True)[0]

    def _field(self, condition):
        if condition is None:
            return _ConditionedVelocity(self.velocity, ())
        return _ConditionedVelocity(
            self.velocity, (jax.tree.map(jnp.asarray, condition),)
        )

    def _solve(self, field, state, times, path=False):
        solver = _checkpointed(self.solver) if self.checkpoint else self.solver
        return driver.integrate(
            None, solver, field, x=state, ts=np.asarray(times), path=path, info=True
        )


def _example(x):
    return requirements.check_example("x", x)


MADE = (checks.made_by, Continuous, "flows.continuous")
"""Rule of a bijector made by `continuous`."""

TRACE = {"key": checks.optional(checks.key), "probes": (checks.integer, 1)}
"""Rules of the arguments of a trace."""


def check_parts(name: str, value: Any) -> None:
    """Raise TypeError unless `value` has a base and a bijector.

    Args:
      name: The argument's name, for the message.
      value: The argument.
    """
    both = hasattr(value, "base") and hasattr(value, "bijector")
    message = f"{name} must have a base and a bijector, got {type(value).__name__}"
    checks.require(both, message, TypeError)


@checks.arguments(
    velocity=VELOCITY, steps=(checks.integer, 1), checkpoint=checks.boolean
)
def continuous(
    velocity: Velocity,
    steps: int = STEPS,
    solver: Solver | None = None,
    *,
    times: ArrayLike | None = None,
    checkpoint: bool = True,
) -> Continuous:
    """Continuous flow: the bijector x_1 -> x_0 of an ODE (Chen et al. 2018, eq. 8).

        dx/dt = u(x, t) from t = 1, the base, down to t = 0, the data

        log|det ∂x_0/∂x_1| = −∫_0^1 tr ∂u/∂x dt along the path

    Forward and inverse undo one another up to the solver's error. The exact
    trace costs x.size pullbacks per stage. `transport` takes probes instead
    (Grathwohl et al. 2019).

    Args:
      velocity: (x, t) or (x, t, condition) -> dx/dt, of one example. Its
        arrays are the bijector's leaves.
      steps: Number of equal steps.
      solver: One that consumes a velocity, default `rk4()`. For `adaptive()`
        the default is one interval, in which it chooses its own steps.
      times: Decreasing times, in place of steps. Another interval than [0, 1]
        is that of a velocity of another schedule.
      checkpoint: Whether a gradient keeps only the state of each step and
        computes its inside again, rather than keep all that the velocity
        computed in every stage. For `neural_ode` on 256 points of the plane
        this takes 34 MiB in place of 252 at 8 steps, and is no slower on 2
        cores. Without effect for an adaptive solver, which has no reverse-mode
        gradient at all.

    Returns:
      The bijector.

    Raises:
      TypeError: For traced times, or a solver that does not consume a
        velocity.
      ValueError: If steps is below 1 or times do not decrease.

    Example:
      >>> bijector = dj.flows.continuous(lambda x, t: x, 4)
      >>> x, log_det = bijector.forward_and_log_det(jnp.ones(2))
      >>> bool(abs(log_det + 2) < 1e-3)
      True
    """
    solver = rk4() if solver is None else solver
    requirements.check_solver("solver", solver, "velocity", "deterministic")
    # an adaptive solver chooses its steps within one interval
    if times is None:
        times = np.linspace(1.0, 0.0, 2 if solver.report else steps + 1)
    checkpoint = checkpoint and solver.report is None
    times_held = _check_times(times)
    return Continuous(as_pytree_callable(velocity), times_held, solver, checkpoint)


def _check_times(times):
    """The times as a tuple of floats."""
    checks.known("times", times, "(they are static)")
    with jax.ensure_compile_time_eval():
        grids.decreasing("times", times)
    return tuple(np.asarray(times, np.float64).tolist())


def neural_ode(
    key: Key,
    shape: tuple[int, ...],
    width: int = 128,
    depth: int = 4,
    *,
    steps: int = STEPS,
    solver: Solver | None = None,
    condition_dim: int | None = None,
    checkpoint: bool = True,
) -> Continuous:
    """Bijector `continuous` of a `neural_velocity`, the identity at first.

    Args:
      key: As in `neural_velocity`.
      shape: As in `neural_velocity`.
      width: As in `neural_velocity`.
      depth: As in `neural_velocity`.
      steps: As in `continuous`.
      solver: As in `continuous`.
      condition_dim: As in `neural_velocity`.
      checkpoint: As in `continuous`.

    Returns:
      The bijector.

    Raises:
      TypeError: As the two.
      ValueError: As the two.

    Example:
      >>> bijector = dj.flows.neural_ode(key, (2,), 4, 1, steps=2)
      >>> bijector.forward(jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    velocity = neural_velocity(key, shape, width, depth, condition_dim=condition_dim)
    return continuous(velocity, steps, solver, checkpoint=checkpoint)


@checks.arguments(
    **TRACE, bijector=MADE, x=requirements.check_example, upwards=checks.boolean
)
def transport(
    bijector: Continuous,
    x: ArrayLike,
    condition: PyTree = None,
    *,
    key: Key | None = None,
    probes: int = 1,
    upwards: bool = True,
) -> Transport:
    """Solve once for the end of a path, its log-determinant and its regularisers.

    The kinetic energy ∫‖u‖² dt and the squared Jacobian ∫‖∂u/∂x‖_F² dt are
    those of the same path, sums over entries, positive in either direction.
    E‖εᵀ∂u/∂x‖² = ‖∂u/∂x‖_F² makes the latter a by-product of the trace.

    Args:
      bijector: Made by `continuous`.
      x: One example, at the data's end if upwards, otherwise at the base's.
      condition: As the velocity takes it.
      key: None for the exact trace, of x.size pullbacks per stage. A key for
        Hutchinson's estimate by Rademacher probes held fixed through the
        solve, whose log_det is unbiased for the exact one.
      probes: Number of probes.
      upwards: True for x -> base, False for base -> x.

    Returns:
      The end of the path and the integrals along it.

    Raises:
      TypeError: For a bijector of another kind.
      ValueError: For NaN or infinity in x, or probes below 1.

    References:
      Grathwohl et al. 2019, section 3.1. Finlay et al. 2020, section 3.

    Example:
      >>> bijector = dj.flows.continuous(lambda x, t: x, 4)
      >>> result = dj.flows.transport(bijector, jnp.ones(2), key=key)
      >>> bool(abs(result.log_det - 2) < 1e-3)
      True
    """
    return call(_transport, bijector, x, condition, key, probes=probes, upwards=upwards)


def _transport(bijector, x, condition, key, probes, upwards):
    # Probes are held fixed through the solve: the estimate is that of one smooth field.
    directions = None
    if key is not None:
        directions = jax.random.rademacher(key, (probes, *x.shape), x.dtype)
    field = ChangeOfVariables(bijector._field(condition), directions)
    # one log-determinant per probe, so that their spread gives the standard error
    zero = jnp.zeros((), x.dtype)
    start = DensityState(
        x, jnp.zeros((1 if key is None else probes,), x.dtype), zero, zero
    )
    end, run = bijector._solve(
        field, start, bijector.times[::-1] if upwards else bijector.times
    )
    sign = 1 if upwards else -1  # downwards dt < 0
    error = jnp.zeros((), x.dtype)
    if key is not None:
        error = standard_error(jax.lax.stop_gradient(end.log_dets))
    return Transport(
        end.x,
        jnp.mean(end.log_dets),
        error,
        sign * end.kinetic,
        sign * end.jacobian,
        run,
    )


@checks.arguments(
    **TRACE,
    flow=check_parts,
    xs=checks.finite_batch,
    kinetic=checks.non_negative,
    jacobian=checks.non_negative,
)
def transport_loss(
    key: Key | None,
    flow: Any,
    xs: ArrayLike,
    condition: PyTree = None,
    *,
    kinetic: float = 0.0,
    jacobian: float = 0.0,
    probes: int = 1,
) -> tuple[Array, Transport]:
    """Maximum likelihood with straight, regular paths (Finlay et al. 2020, RNODE).

        L = E (−log p + λ_K ∫‖u‖² dt + λ_J ∫‖∂u/∂x‖_F² dt)/D

    In nats per dimension.

    Args:
      key: Of the probes, which every example draws for itself. None for the
        exact trace.
      flow: A base with log_prob, held fixed unless flow.train_base, and a
        bijector made by `continuous`.
      xs: Data, (B, *shape).
      condition: Pytree of leading axis B.
      kinetic: λ_K, 0 or more.
      jacobian: λ_J, 0 or more.
      probes: Number of probes.

    Returns:
      (loss, transports): the mean over the batch, shape (), and the
      `Transport` of every example, of leading axis B.

    Raises:
      TypeError: If flow has no base or no bijector, or a bijector of another
        kind.
      ValueError: If a number is out of range, leading axes differ, or concrete
        data are NaN or infinite.

    Example:
      >>> bijector = dj.flows.neural_ode(key, (2,), 4, 1, steps=2)
      >>> flow = dj.flows.flow(dj.distributions.standard_normal((2,)), bijector)
      >>> loss, _ = dj.flows.transport_loss(None, flow, jnp.zeros((3, 2)), kinetic=0.1)
      >>> round(float(loss), 3)
      0.919
    """
    xs = xs.astype(float_dtype(xs))
    checks.leading_axis("condition", condition, "xs", xs.shape[0])
    return call(
        _transport_loss, key, flow, xs, condition, kinetic, jacobian, probes=probes
    )


def _transport_loss(key, flow, xs, condition, kinetic, jacobian, probes):
    # probes of its own for every example: errors of the trace average out
    keys = None if key is None else jax.random.split(key, xs.shape[0])
    base = flow.base
    if not getattr(flow, "train_base", False):
        base = jax.lax.stop_gradient(base)

    def one(x, condition, key):
        solved = transport(flow.bijector, x, condition, key=key, probes=probes)
        log_prob = base.log_prob(solved.x) + solved.log_det
        penalty = kinetic * solved.kinetic + jacobian * solved.jacobian
        return (-log_prob + penalty) / x.size, solved

    losses, solved = jax.vmap(one)(xs, condition, keys)
    return jnp.mean(losses), solved


@pytree
class _ConditionedVelocity:
    velocity: Any
    condition: tuple

    def __call__(self, x, t):
        value = self.velocity(x, t, *self.condition)
        shape = jnp.shape(x)
        return checks.real_shaped("velocity(x, t)", value, shape).astype(x.dtype)


@functools.cache
def _checkpointed(solver: Solver) -> Solver:
    """The solver with steps whose inside is computed again in the backward pass.

    One object per solver, so that nothing is compiled twice.
    """

    def step(problem, inputs, draw, x, state):
        inside: Callable = lambda inputs, x, state: solver.step(
            problem, inputs, draw, x, state
        )
        # without barriers against CSE: a scan keeps the two passes apart
        recomputed = jax.checkpoint(inside, prevent_cse=False)
        return recomputed(inputs, x, state)

    return solver._replace(step=step)
