"""The families that tests run over.

A new schedule, target or weighting is one row here, and every theorem covers it.
"""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules, targets
from diffjax.types import pytree
from tests.quick import options

EPS32, EPS64 = float(np.finfo(np.float32).eps), float(np.finfo(np.float64).eps)


def normal(seed, *shape):
    """Standard normal numbers of a seed, in float64."""
    return np.random.default_rng(seed).normal(size=shape)


def normal32(seed, *shape):
    """The same in float32."""
    return np.float32(normal(seed, *shape))


class quick:  # noqa: N801
    """`jax.jit` for programs that take longer to compile than to run: half the time.

    XLA is not used before the first call, because forked programs import this module.
    """

    def __init__(self, function, **settings):
        functools.update_wrapper(self, function)
        self._function, self._settings = function, settings

    @functools.cached_property
    def _jitted(self):
        return jax.jit(self._function, compiler_options=options(), **self._settings)

    def __call__(self, *args, **kwargs):
        """The function's value."""
        return self._jitted(*args, **kwargs)

    def lower(self, *args, **kwargs):
        """As `jax.jit`'s."""
        return self._jitted.lower(*args, **kwargs)


@pytree
class Own:
    """A user's schedule, which states α = cos(πt/2) and σ = scale · sin(πt/2) alone."""

    scale: Any
    t_min: Any
    t_max: Any

    def alpha(self, t):
        """cos(πt/2)."""
        return jnp.cos(0.5 * jnp.pi * t)

    def sigma(self, t):
        """scale · sin(πt/2)."""
        return self.scale * jnp.sin(0.5 * jnp.pi * t)


@pytree
class Bare:
    """A schedule stripped of its closed forms: α and σ alone, the rest to be
    derived.
    """

    schedule: Any

    @property
    def t_min(self):
        """Of the schedule."""
        return self.schedule.t_min

    @property
    def t_max(self):
        """Of the schedule."""
        return self.schedule.t_max

    def alpha(self, t):
        """Of the schedule."""
        return self.schedule.alpha(t)

    def sigma(self, t):
        """Of the schedule."""
        return self.schedule.sigma(t)


def ddpm_betas():
    """The linear betas of Ho et al. 2020."""
    return np.linspace(1e-4, 0.02, 1000)


def ladder_sigmas():
    """1000 noise levels from 0.01 to 16, equally spaced in σ^(1/7), so that no
    two ratios are the same.
    """
    return np.linspace(0.01 ** (1 / 7), 16 ** (1 / 7), 1000) ** 7


SCHEDULES = {
    "vp_linear": schedules.vp_linear,
    "vp_cosine": schedules.vp_cosine,
    "sub_vp": schedules.sub_vp,
    "ve": schedules.ve,
    "edm": schedules.edm,
    "rectified_flow": schedules.rectified_flow,
    "from_betas": lambda: schedules.from_betas(ddpm_betas()),
    "from_sigmas": lambda: schedules.from_sigmas(ladder_sigmas()),
    "learned": lambda: schedules.learned(jax.random.key(0)),
    "own": lambda: Own(1.5, 1e-3, 0.99),
}
"""name -> factory. Made inside a test, so that float64 tests make float64 tables."""

DISTINCT = ("vp_linear", "edm", "rectified_flow", "own")
"""One schedule of each kind: α² + σ² = 1, α = 1, α → 0, and one that states α
and σ alone.

Tests about something else than schedules leave the others to the long proofs.
"""

COVARIANCES = [[[0.6, 0.3], [0.3, 0.5]], [[0.2, -0.1], [-0.1, 0.9]]]

TARGETS = {
    "gaussian": lambda: targets.gaussian([0.5, -0.3], 0.7),
    "isotropic": lambda: targets.gaussian_mixture(
        [0.3, 0.7], [[-1.0, 0.4], [0.8, -0.2]], [0.3, 0.6]
    ),
    "diagonal": lambda: targets.gaussian_mixture(
        [0.4, 0.6], [[-1.0, 0.4], [0.8, -0.2]], [[0.3, 0.8], [0.6, 0.2]]
    ),
    "full": lambda: targets.gaussian_mixture(
        [0.25, 0.75], [[-1.0, 0.5], [0.7, -0.4]], COVARIANCES
    ),
    "boxes": lambda: targets.uniform_boxes(
        [0.4, 0.6], [[-1.5, -1.0], [0.0, 0.2]], [[-0.5, 0.5], [1.5, 0.9]]
    ),
}
"""Densities in two dimensions within about [-4, 4]²."""

TOYS = {
    "eight_gaussians": (targets.eight_gaussians, 2.832),
    "checkerboard": (targets.checkerboard, 3.466),
    "circles": (targets.circles, 3.268),
    "moons": (targets.moons, 2.394),
}
"""name -> (factory, entropy in nats)."""


def interior(schedule, fractions=(0.02, 0.2, 0.5, 0.8, 0.97)):
    """Times at fractions of the schedule's interval."""
    return schedule.t_min + np.asarray(fractions) * (schedule.t_max - schedule.t_min)


def times_at_noise(schedule, ratios=(0.05, 0.5, 3.0)):
    """Times at which σ/α has the given values, as far as the schedule reaches."""
    return schedules.time_of_log_snr(schedule, -2 * jnp.log(jnp.asarray(ratios)))


def assert_raises(call, error, message):
    """call() raises `error` with a message that matches."""
    with pytest.raises(error, match=message):
        call()


def every(names, always):
    """Parameters for all names. Those outside `always` are marked as slow."""
    return [
        pytest.param(name, marks=() if name in always else pytest.mark.slow)
        for name in names
    ]


COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def counted_programs():
    """A list that grows by one for each program that XLA is given while the
    context is open.
    """
    programs = []

    def listen(event, duration, **details):
        if event == COMPILED:
            programs.append(details.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
