"""Flow matching: a velocity fitted to those of random paths from data at t = 0 to noise at t = 1.

A path x_t = α(t) x_0 + σ(t) x_1 + γ(t) z has the velocity α′ x_0 + σ′ x_1 + γ′ z; the regression on x_t gives its mean
given x_t, and the flow of that mean has the law of x_t at every t, however x_0 and x_1 are coupled.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks, losses, predictions, schedules, sde
from ..numerics import float_dtype
from ..predictions import NetworkDenoiser
from ..schedules import Schedule
from ..solvers import driver
from ..types import (
    Array,
    ArrayLike,
    Key,
    PyTree,
    Scalar,
    Velocity,
    as_pytree_callable,
    pytree,
)
from .compiled import call
from .continuous import Continuous, check_continuous
from .couplings import independent

# --------------------------------------------------------------------------------------------------------------- paths


@pytree
class Path:
    """x_t = α(t) x_0 + σ(t) x_1 + γ(t) z. See `path`."""

    schedule: Any
    variance: Any  # t -> γ², None for none

    def state(self, x0: Array, x1: Array, t: Scalar, z: Array | None = None) -> Array:
        """x_t, shape of x0; z may be left out where there is no γ."""
        return self._mixed(*self._rates(t)[:2], self.spread(t)[0], x0, x1, z)

    def velocity(
        self, x0: Array, x1: Array, t: Scalar, z: Array | None = None
    ) -> Array:
        """dx_t/dt = α′ x_0 + σ′ x_1 + γ′ z, shape of x0."""
        return self._mixed(*self._rates(t)[2:], self.spread(t)[1], x0, x1, z)

    def spread(self, t: Scalar) -> tuple[Array, Array]:
        """(γ, γ′ = (γ²)′/2γ), each (); 0 where there is no γ."""
        t = jnp.asarray(t)
        if self.variance is None:
            return jnp.zeros_like(t), jnp.zeros_like(t)
        variance, rate = jax.jvp(self.variance, (t,), (jnp.ones_like(t),))
        std = jnp.sqrt(variance)
        return std, 0.5 * rate / std

    def _rates(self, t):
        return schedules.rates(self.schedule, t)

    def _mixed(self, a, b, c, x0, x1, z):
        smooth = a * x0 + b * x1
        return smooth if self.variance is None else smooth + c * z


@pytree
class BridgeVariance:
    """γ² = s² t (1 − t), that of a Brownian bridge. See `bridge`."""

    std: Scalar

    def __call__(self, t: Scalar) -> Array:
        """γ²(t), shape ()."""
        return self.std * self.std * t * (1 - t)


def path(schedule: Schedule | None = None, variance: Callable | None = None) -> Path:
    """The random paths x_t = α x_0 + σ x_1 + γ z between data x_0 and noise x_1, z ~ N(0, I) apart from both.

    schedule: α and σ, and the interval of t; default `rectified_flow(t_max=1.0)`, straight lines, of constant velocity
    x_1 − x_0. `vp_cosine()` and the other schedules give their own paths. variance: t -> γ², positive within the
    interval and 0 at 0 and 1 if both ends are to be met (a stochastic interpolant), in a schedule's interval that stays
    away from the ends, where γ′ has no value (default `rectified_flow()`); None for no z. Raises TypeError for what is
    no schedule or cannot be called, ValueError where γ² is not positive at both ends of the interval. Lipman et al.
    2023, eq. 10–11; Albergo et al. 2023.
    """
    if schedule is None:
        schedule = schedules.rectified_flow(
            **({"t_max": 1.0} if variance is None else {})
        )
    schedules.check(schedule)
    if variance is None:
        return Path(schedule, None)
    checks.callable_("variance", variance, "variance(t)")
    variance = as_pytree_callable(variance)
    if not checks.is_traced(schedule, variance):
        with jax.ensure_compile_time_eval():
            for t in (schedule.t_min, schedule.t_max):
                value = float(variance(np.asarray(t, float_dtype())))
                if not (value > 0 and math.isfinite(value)):
                    raise ValueError(
                        f"variance must be positive within the schedule's interval, got {value} at t={t}"
                    )
    return Path(schedule, variance)


def bridge(std: Scalar, t_min: Scalar = 1e-3) -> Path:
    """Straight lines with Brownian bridges about them, γ² = s² t (1 − t), on [t_min, 1 − t_min].

    With the coupling `sinkhorn(std²)` its law is the Schrödinger bridge of Brownian motion of variance s² t: of all
    processes with the two given ends the nearest to it in KL. std: s > 0, in data units. t_min: in (0, ½), away from
    the ends, where γ′ has no value. Raises ValueError otherwise. Tong et al. 2023 (SB-CFM), section 3.2; Léonard 2014.
    """
    std, t_min = checks.positive("std", std), checks.positive("t_min", t_min)
    if not checks.is_traced(t_min) and t_min >= 0.5:
        raise ValueError(
            f"t_min must be less than 0.5, half of the interval, got {t_min}"
        )
    return path(
        schedules.rectified_flow(t_max=1 - t_min, t_min=t_min), BridgeVariance(std)
    )


# ------------------------------------------------------------------------------------------------------------ training


class Examples(NamedTuple):
    """A batch to regress on, of leading axis B each: x_t, t (B,), the path's velocity, z (None without γ), x_0, x_1
    and the condition of x_0.
    """

    x: Array
    t: Array
    velocity: Array
    z: Array | None
    x0: Array
    x1: Array
    condition: PyTree


def examples(
    key: Key,
    path: Path,
    x0: ArrayLike,
    x1: ArrayLike | None = None,
    coupling: Callable | None = None,
    condition: PyTree = None,
    times: str = "uniform",
) -> Examples:
    """x_t of random pairs at stratified random times, and what a velocity is to be fitted to.

    x0: (B, *shape), data. x1: as x0, noise; default drawn from N(0, I). coupling: one of `flows.couplings`, which
    reorders the noise; default `independent()`, under which given x1 are taken as they stand; where it gives an index
    out of range, as `sinkhorn` for NaN, the noise is NaN. condition: pytree with leading axis B, of x0, with which it
    stays. times: a name of `losses.TIME_LAWS`. Raises ValueError for shapes that do not fit or NaN in what can be seen.
    """
    checks.key("key", key)
    check_path(path)
    checks.choice("times", times, losses.TIME_LAWS)
    couple = check_coupling(independent() if coupling is None else coupling)
    x0 = driver.check_example("x0", x0)
    if x0.ndim == 0 or x0.size == 0:
        raise ValueError(
            f"x0 must have shape (B, ...) with B at least 1, got {x0.shape}"
        )
    if x1 is not None:
        x1 = driver.check_example("x1", x1)
        checks.one_of_shapes("x1", x1, [x0.shape])
    checks.leading_axis("condition", condition, "x0", x0.shape[0])
    return call(_examples, key, path, x0, x1, couple, condition, times=times)


def _examples(key, path, x0, x1, couple, condition, times):
    key_noise, key_pairs, key_time, key_z = jax.random.split(key, 4)
    x1 = jax.random.normal(key_noise, x0.shape, x0.dtype) if x1 is None else x1
    index = jnp.asarray(couple(key_pairs, x0, x1))
    if index.shape != x0.shape[:1] or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(
            f"coupling must return {x0.shape[0]} integers, got {index.dtype} of shape {index.shape}"
        )
    x1 = x1.at[index].get(mode="fill", fill_value=jnp.nan)
    t = losses.sample_times(key_time, x0.shape[0], path.schedule, times).astype(
        x0.dtype
    )
    z = None if path.variance is None else jax.random.normal(key_z, x0.shape, x0.dtype)
    state, velocity = (
        jax.vmap(path.state)(x0, x1, t, z),
        jax.vmap(path.velocity)(x0, x1, t, z),
    )
    return Examples(state, t, velocity, z, x0, x1, condition)


def matching_loss(
    key: Key,
    velocity: Velocity,
    path: Path,
    x0: ArrayLike,
    x1: ArrayLike | None = None,
    coupling: Callable | None = None,
    condition: PyTree = None,
    times: str = "uniform",
) -> tuple[Array, Array]:
    """(mean, losses) of ‖u(x_t, t) − dx_t/dt‖²/D over random pairs, shapes () and (B,).

    Its gradient is that of ‖u(x_t, t) − E[dx_t/dt | x_t]‖², to a flow of which the law of x_t belongs. velocity:
    u(x, t), u(x, t, condition_i) where a condition is given, of one example. The rest as in `examples`. Lipman et al.
    2023, Theorem 2; Tong et al. 2023, Theorem 3.2.
    """
    checks.callable_("velocity", velocity, "velocity(x, t)")
    drawn = examples(key, path, x0, x1, coupling, condition, times)
    return call(_matching_loss, as_pytree_callable(velocity), drawn)


def _matching_loss(velocity, drawn):
    each = _errors("velocity(x, t)", velocity, drawn, drawn.velocity)
    return jnp.mean(each), each


def bridge_loss(
    key: Key,
    velocity: Velocity,
    noise: Callable,
    path: Path,
    x0: ArrayLike,
    x1: ArrayLike | None = None,
    coupling: Callable | None = None,
    condition: PyTree = None,
) -> tuple[Array, Array]:
    """(mean, losses) of (‖u(x_t, t) − dx_t/dt‖² + ‖ẑ(x_t, t) − z‖²)/D, shapes () and (B,): velocity and score at once.

    z is apart from x_0 and x_1 under every coupling, so that −E[z | x_t]/γ is the score of x_t: `bridge_sde` of the two
    is the Schrödinger bridge where path and coupling are `bridge(s)` and `sinkhorn(s²)`. velocity, noise: of one
    example, (x, t) or (x, t, condition_i). Raises ValueError for a path without γ. Tong et al. 2024 ([SF]²M).
    """
    checks.callable_("velocity", velocity, "velocity(x, t)")
    checks.callable_("noise", noise, "noise(x, t)")
    drawn = examples(key, with_spread(path), x0, x1, coupling, condition)
    return call(
        _bridge_loss, as_pytree_callable(velocity), as_pytree_callable(noise), drawn
    )


def _bridge_loss(velocity, noise, drawn):
    each = _errors("velocity(x, t)", velocity, drawn, drawn.velocity) + _errors(
        "noise(x, t)", noise, drawn, drawn.z
    )
    return jnp.mean(each), each


def _errors(name, field, drawn, target):
    """‖field − target‖²/D of each example, (B,)."""
    conditions = () if drawn.condition is None else (drawn.condition,)

    def one(x, t, target, *condition):
        value = field(x, t, *condition)
        checks.one_of_shapes(name, value, [jnp.shape(x)])
        return jnp.mean((value - target) ** 2)

    return jax.vmap(one)(drawn.x, drawn.t, target, *conditions)


# ------------------------------------------------------------------------------------------------ what was fitted, used


def velocity_denoiser(
    path: Path, velocity: Velocity, coupling: Callable | None = None
) -> NetworkDenoiser:
    """The denoiser E[x_0 | x_t] of a velocity fitted to a path without γ: `predictions.denoiser` of kind "velocity".

    D = x − t u on straight lines. coupling: the one it was fitted under, default `independent()`; under another the
    noise depends on the data and the denoiser is marked `coupled`: deterministic solvers, `encode` and `log_prob` hold,
    while stochastic solvers, `predictions.score` and guidance by scores refuse it. Raises ValueError for a path with γ,
    whose velocity does not tell x_0 from x_1; use `continuous` there.
    """
    if check_path(path).variance is not None:
        raise ValueError(
            "path must have no variance γ² for its velocity to give E[x_0 | x_t]; use flows.continuous"
        )
    coupled = coupling is not None and not check_coupling(coupling).independent
    return predictions.denoiser(path.schedule, velocity, "velocity", coupled=coupled)


@pytree
class _BridgeDrift:
    """u + ½ g² ẑ/γ."""

    path: Any
    velocity: Any
    noise: Any
    diffusion: Any

    def __call__(self, x, t):
        return (
            self.velocity(x, t)
            + 0.5
            * self.diffusion(x, t) ** 2
            * self.noise(x, t)
            / self.path.spread(t)[0]
        )


@pytree
class _Constant:
    value: Any

    def __call__(self, x, t):
        return jnp.asarray(self.value, jnp.result_type(x))


def bridge_sde(
    path: Path, velocity: Velocity, noise: Callable, diffusion: Scalar | None = None
) -> sde.SDE:
    """dx = (u + ½ g² ẑ/γ) dt + g dw̄, run downwards from noise to data: the law of x_t at every t, whatever g ≥ 0.

    The score is −ẑ/γ. velocity, noise: as fitted by `bridge_loss`. diffusion: g, default the s of `bridge(s)`, which
    makes it the Schrödinger bridge: the pairs (x_0, x_1) of its own paths are those of the entropic plan. Solve it
    within the path's interval, since ẑ/γ has no value at the ends. Raises ValueError for a path without γ or a g that
    is missing or below 0. Tong et al. 2024 ([SF]²M).
    """
    variance = with_spread(path).variance
    checks.callable_("velocity", velocity, "velocity(x, t)")
    checks.callable_("noise", noise, "noise(x, t)")
    if diffusion is None:
        if not isinstance(variance, BridgeVariance):
            raise ValueError(
                "diffusion must be given for a path that is not made by flows.bridge, got None"
            )
        diffusion = variance.std
    gain = _Constant(checks.non_negative("diffusion", diffusion))
    drift = _BridgeDrift(
        path, as_pytree_callable(velocity), as_pytree_callable(noise), gain
    )
    return sde.SDE(drift, gain)


def reflow_pairs(
    key: Key, flow: Any, count: int, condition: PyTree = None
) -> tuple[Array, Array]:
    """(x_0, x_1), (count, *shape) each: noise and what the flow makes of it, to fit a straighter flow to.

    Pair i has the key fold_in(key, i). flow: of a base with sample(key) and a bijector with forward. condition: pytree
    with leading axis count. Fit with `matching_loss(key, …, x0, x1, coupling=paired())`: the law of x_0 stays, every
    convex cost of the coupling falls or stays. Liu et al. 2023, Theorem 3.5.
    """
    checks.key("key", key)
    count = checks.integer("count", count, minimum=1)
    if not (hasattr(flow, "base") and hasattr(flow, "bijector")):
        raise TypeError(
            f"flow must have a base and a bijector, got {type(flow).__name__}"
        )
    checks.leading_axis("condition", condition, "count", count)
    return call(_reflow_pairs, key, flow, condition, count=count)


def _reflow_pairs(key, flow, condition, count):
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    x1 = jax.vmap(flow.base.sample)(keys)
    return jax.vmap(flow.bijector.forward)(x1, condition), x1


def curvature(bijector: Continuous, x: ArrayLike, condition: PyTree = None) -> Array:
    """∫‖(x_1 − x_0)/T − u(x_t, t)‖² dt along the path from x at the base's end, T its time; shape (), 0 where straight.

    By the trapezoid rule over the bijector's times, of which an adaptive solver must be given some between its ends.
    In squared data units; its mean over the base is the straightness S of Liu et al. 2023, 0 where one Euler step is
    exact. Raises TypeError for a bijector of another kind, ValueError for one of a single interval.
    """
    check_continuous(bijector)
    if len(bijector.times) < 3:
        raise ValueError(
            f"bijector must have times between its ends for the path to be seen, got {bijector.times}"
        )
    return call(_curvature, bijector, driver.check_example("x", x), condition)


def _curvature(bijector, x, condition):
    states, times = bijector.path(x, condition), jnp.asarray(bijector.times)
    conditions = () if condition is None else (condition,)
    chord = (states[0] - states[-1]) / (times[0] - times[-1])
    slopes = jax.vmap(lambda x, t: bijector.velocity(x, t, *conditions))(
        states, times.astype(states.dtype)
    )
    squares = jnp.sum(
        (slopes - chord) ** 2, axis=tuple(range(1, slopes.ndim))
    )  # (N + 1,)
    return jnp.trapezoid(squares[::-1], times[::-1])


# ----------------------------------------------------------------------------------------------------------- arguments


def check_coupling(coupling: Any) -> Any:
    """`coupling` if it can be called and says whether it leaves the noise independent; TypeError otherwise."""
    if not callable(coupling) or not isinstance(
        getattr(coupling, "independent", None), bool
    ):
        raise TypeError(
            "coupling must be one of flows.couplings, or callable as (key, x0, x1) with a boolean `independent`, got "
            f"{coupling!r}"
        )
    return coupling


def check_path(path: Any) -> Path:
    """`path` if it is one; TypeError otherwise."""
    if not isinstance(path, Path):
        raise TypeError(
            f"path must be made by flows.path or flows.bridge, got {type(path).__name__}"
        )
    return path


def with_spread(path: Path) -> Path:
    """`path`, refused without γ, whose z carries the score."""
    if check_path(path).variance is None:
        raise ValueError(
            "path must have a variance γ², as made by flows.bridge, for z to tell the score"
        )
    return path
