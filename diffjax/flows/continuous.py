"""Continuous flows: the bijection that an ODE's flow is, its log-determinant and the lengths of its paths.

Time is the house's, t = 0 the data and t = 1 the base, so that `forward`, base -> data, integrates downwards.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .. import checks, grids
from ..likelihood import ChangeOfVariables, PathState
from ..numerics import float_dtype, standard_error
from ..solvers import driver
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

STEPS = 16
TIME_HARMONICS = 2
"""sin πkt and cos πkt, k = 1 … 2, beside t: a flow in unit time need not turn faster, and a solver would feel it."""


class Transport(NamedTuple):
    """What a solve yields. x: the end. log_det: log|det ∂end/∂start|, (). standard_error: of the probes' mean, (), 0
    for the exact trace. kinetic: ∫‖u‖² dt, (). jacobian: ∫‖∂u/∂x‖_F² dt, (). run: solvers.Info.
    """

    x: Array
    log_det: Array
    standard_error: Array
    kinetic: Array
    jacobian: Array
    run: Any


@pytree
class Continuous:
    """x_0 = x_1 − ∫_0^1 u(x_t, t) dt, a bijector. See `continuous`."""

    velocity: Any
    times: tuple = static_field()  # decreasing, from the base's to the data's
    solver: Solver = static_field()
    checkpoint: bool = static_field()

    def forward(self, x: Array, condition: PyTree = None) -> Array:
        """Base -> data, shape of x."""
        return self._solve(self._field(condition), _example(x), self.times)[0]

    def inverse(self, y: Array, condition: PyTree = None) -> Array:
        """Data -> base, shape of y."""
        return self._solve(self._field(condition), _example(y), self.times[::-1])[0]

    def forward_and_log_det(
        self, x: Array, condition: PyTree = None
    ) -> tuple[Array, Array]:
        """(x_0, log|det ∂x_0/∂x_1|) by the exact trace, shapes of x and ()."""
        return transport(self, x, condition, upwards=False)[:2]

    def inverse_and_log_det(
        self, y: Array, condition: PyTree = None
    ) -> tuple[Array, Array]:
        """(x_1, log|det ∂x_1/∂x_0|) by the exact trace, shapes of y and ()."""
        return transport(self, y, condition)[:2]

    def path(self, x: Array, condition: PyTree = None) -> Array:
        """The states at all times, from the base's x at times[0] on; (N + 1, *x.shape)."""
        return self._solve(self._field(condition), _example(x), self.times, path=True)[
            0
        ]

    def _field(self, condition):
        return _Conditioned(
            self.velocity,
            () if condition is None else (jax.tree.map(jnp.asarray, condition),),
        )

    def _solve(self, field, state, times, path=False):
        solver = _checkpointed(self.solver) if self.checkpoint else self.solver
        return driver.integrate(
            None, solver, field, state, np.asarray(times), path=path, info=True
        )


def continuous(
    velocity: Velocity,
    steps: int = STEPS,
    solver: Solver | None = None,
    *,
    times: ArrayLike | None = None,
    checkpoint: bool = True,
) -> Continuous:
    """The bijector x_1 -> x_0 of dx/dt = u(x, t), walked from t = 1, the base, down to t = 0, the data.

    log|det ∂x_0/∂x_1| = −∫_0^1 tr ∂u/∂x dt along the path. velocity: (x, t) or (x, t, condition) -> dx/dt, of one
    example; its arrays are the bijector's leaves. steps: equal steps. solver: one that consumes a velocity, default
    `rk4()`; for `adaptive()` the default is one interval, in which it chooses its own steps. times: decreasing, in
    place of steps; another interval than [0, 1] is that of a velocity of another schedule. checkpoint: whether a
    gradient keeps only the state of each step and computes its inside again, rather than keep all that the velocity
    computed in every stage: for `neural_ode` on 256 points of the plane 34 MiB in place of 252 at 8 steps,
    and no slower on 2 cores. Not for an adaptive solver, which has no reverse-mode gradient at all.

    Forward and inverse undo one another up to the solver's error. The exact trace costs x.size pullbacks a stage;
    `transport` takes probes. Raises ValueError for times that do not decrease, TypeError for traced ones or another
    kind of solver. Chen et al. 2018, eq. 8; Grathwohl et al. 2019.
    """
    checks.callable_("velocity", velocity, "velocity(x, t)")
    steps = checks.integer("steps", steps, minimum=1)
    solver = rk4() if solver is None else solver
    driver.check_solver(solver)
    if solver.consumes != "velocity" or solver.stochastic:
        raise TypeError(
            f"solver must consume a velocity, {solver.name} consumes a {solver.consumes}"
        )
    if times is None:
        times = np.linspace(1.0, 0.0, 2 if solver.report else steps + 1)
    if checks.is_traced(times):
        raise TypeError(
            "times must be plain numbers, not traced: a bijector's leaves are its parameters"
        )
    with jax.ensure_compile_time_eval():
        grids.check("times", times)
    values = np.asarray(times, np.float64)
    if values[0] < values[-1]:
        raise ValueError(
            f"times must decrease, from the base's to the data's, got {values[0]} … {values[-1]}"
        )
    checkpoint = checks.boolean("checkpoint", checkpoint) and solver.report is None
    return Continuous(
        as_pytree_callable(velocity), tuple(values.tolist()), solver, checkpoint
    )


class VelocityNetwork(nn.Module):
    """u(x, t, condition): `depth` dense SiLU layers of `width` features on x, t and the condition together; 0 at first.

    For densities of a few dimensions, without normalisation, which would hide how far x lies out; for images take a
    network of diffjax.networks. x: one example of any shape. t: (). condition: (C,) or None. Returns x's shape.
    """

    width: int = 128
    depth: int = 4

    @nn.compact
    def __call__(self, x: Array, t: Any, condition: Array | None = None) -> Array:
        """dx/dt, shape of x."""
        t = jnp.asarray(t, x.dtype)
        angles = np.pi * t * jnp.arange(1, TIME_HARMONICS + 1, dtype=t.dtype)
        parts = [x.reshape(-1), t[None], jnp.sin(angles), jnp.cos(angles)]
        h = jnp.concatenate(parts if condition is None else [*parts, condition]).astype(
            x.dtype
        )
        for _ in range(self.depth):
            h = nn.silu(nn.Dense(self.width, dtype=x.dtype)(h))  # (width,)
        return nn.Dense(x.size, kernel_init=nn.initializers.zeros, dtype=x.dtype)(
            h
        ).reshape(x.shape)


@functools.cache
def _network(width: int, depth: int) -> VelocityNetwork:
    """One object a size, so that velocities of one size share their structure and what was compiled for it."""
    return VelocityNetwork(width, depth)


def neural_velocity(
    key: Key,
    shape: tuple[int, ...],
    width: int = 128,
    depth: int = 4,
    *,
    condition_dim: int | None = None,
) -> jax.tree_util.Partial:
    """A `VelocityNetwork` (x, t) -> dx/dt for one example of `shape`, with its parameters as leaves; 0 at first.

    condition_dim: C for a velocity (x, t, condition) with condition of shape (C,). Raises ValueError or TypeError for
    sizes below 1.
    """
    checks.key("key", key)
    shape = checks.shape("shape", shape)
    width, depth = checks.width("width", width, 1), checks.depth("depth", depth, 1)
    module, condition = _network(width, depth), ()
    if condition_dim is not None:
        condition = (
            jnp.zeros((checks.width("condition_dim", condition_dim, minimum=1),)),
        )
    params = jax.jit(module.init)(
        key, jnp.zeros(shape, float_dtype()), jnp.zeros((), float_dtype()), *condition
    )
    return jax.tree_util.Partial(module.apply, params)


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
    """`continuous` of a `neural_velocity`: the identity at first."""
    velocity = neural_velocity(key, shape, width, depth, condition_dim=condition_dim)
    return continuous(velocity, steps, solver, checkpoint=checkpoint)


def transport(
    bijector: Continuous,
    x: ArrayLike,
    condition: PyTree = None,
    *,
    key: Key | None = None,
    probes: int = 1,
    upwards: bool = True,
) -> Transport:
    """One solve from x with its log-determinant, kinetic energy and squared Jacobian, all along the same path.

    x: one example, at the data's end where upwards (x -> base), at the base's otherwise. key: None for the exact trace,
    of x.size pullbacks a stage; a key for Hutchinson's, of `probes` Rademacher directions held fixed through the solve,
    whose log_det is unbiased for the exact one. kinetic and jacobian are positive in either direction, and sums over
    entries; E‖εᵀ∂u/∂x‖² = ‖∂u/∂x‖_F² makes the latter a by-product of the trace. Raises TypeError for a bijector of
    another kind, ValueError for NaN in x or probes < 1. Grathwohl et al. 2019, section 3.1; Finlay et al. 2020, section
    3.
    """
    check_continuous(bijector)
    probes, x = checks.integer("probes", probes, minimum=1), _example(x)
    key = None if key is None else checks.key("key", key)
    return call(
        _transport,
        bijector,
        x,
        condition,
        key,
        probes=probes,
        upwards=checks.boolean("upwards", upwards),
    )


def _transport(bijector, x, condition, key, probes, upwards):
    directions = None
    if key is not None:
        directions = jax.random.rademacher(key, (probes, *x.shape), x.dtype)
    field = ChangeOfVariables(bijector._field(condition), directions)
    zero = jnp.zeros((), x.dtype)
    start = PathState(
        x, jnp.zeros((1 if key is None else probes,), x.dtype), zero, zero
    )
    end, run = bijector._solve(
        field, start, bijector.times[::-1] if upwards else bijector.times
    )
    sign = 1 if upwards else -1
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
    """(mean over the batch of (−log p + λ_K ∫‖u‖² dt + λ_J ∫‖∂u/∂x‖_F² dt)/D, Transport with leading axis B).

    Maximum likelihood of a continuous flow with straight, regular paths at a price: nats per dimension. key: of the
    probes, each example's own; None for the exact trace. flow: of a base with log_prob, held fixed unless
    flow.train_base, and a bijector made by `continuous`. xs: (B, *shape). condition: pytree with leading axis B.
    kinetic, jacobian: λ_K, λ_J ≥ 0. Raises TypeError for what is no such flow, ValueError otherwise, for NaN in xs too
    where it can be seen. Finlay et al. 2020 (RNODE).
    """
    check_parts(flow)
    kinetic, jacobian = (
        checks.non_negative("kinetic", kinetic),
        checks.non_negative("jacobian", jacobian),
    )
    xs = driver.check_example("xs", xs)
    if xs.ndim == 0 or xs.shape[0] == 0:
        raise ValueError(
            f"xs must have shape (B, ...) with B at least 1, got {xs.shape}"
        )
    checks.leading_axis("condition", condition, "xs", xs.shape[0])
    key = None if key is None else checks.key("key", key)
    return call(
        _transport_loss, key, flow, xs, condition, kinetic, jacobian, probes=probes
    )


def _transport_loss(key, flow, xs, condition, kinetic, jacobian, probes):
    keys = None if key is None else jax.random.split(key, xs.shape[0])
    base = (
        flow.base
        if getattr(flow, "train_base", False)
        else jax.lax.stop_gradient(flow.base)
    )

    def one(x, condition, key):
        solved = transport(flow.bijector, x, condition, key=key, probes=probes)
        log_prob = base.log_prob(solved.x) + solved.log_det
        return (
            -log_prob + kinetic * solved.kinetic + jacobian * solved.jacobian
        ) / x.size, solved

    losses, solved = jax.vmap(one)(xs, condition, keys)
    return jnp.mean(losses), solved


@pytree
class _Conditioned:
    velocity: Any
    condition: tuple

    def __call__(self, x, t):
        value = self.velocity(x, t, *self.condition)
        checks.one_of_shapes("velocity(x, t)", value, [jnp.shape(x)])
        return checks.real_array("velocity(x, t)", value).astype(x.dtype)


@functools.cache
def _checkpointed(solver: Solver) -> Solver:
    """`solver` with a step whose inside is computed again in the backward pass; one object a solver."""

    def step(problem, inputs, draw, x, state):
        inside: Callable = lambda inputs, x, state: solver.step(
            problem, inputs, draw, x, state
        )
        return jax.checkpoint(inside, prevent_cse=False)(
            inputs, x, state
        )  # a scan keeps the two passes apart

    return solver._replace(step=step)


def check_continuous(bijector: Any) -> Continuous:
    """`bijector` if it is made by `continuous`; TypeError otherwise."""
    if not isinstance(bijector, Continuous):
        raise TypeError(
            f"bijector must be made by flows.continuous, got {type(bijector).__name__}"
        )
    return bijector


def check_parts(flow: Any) -> None:
    """Raise TypeError unless `flow` has a base and a bijector."""
    checks.require(
        hasattr(flow, "base") and hasattr(flow, "bijector"),
        f"flow must have a base and a bijector, got {type(flow).__name__}",
        TypeError,
    )


def _example(x):
    return driver.check_example("x", x)
