"""A first call compiles few programs: at most `LIMIT` for every public function, however cold the process.

A row is a function that makes the inputs and returns the call to be counted. Inputs are made before the count starts.
Rows stand in the order of the rooms.
"""

import contextlib

import jax
import jax.monitoring
import numpy as np
import pytest

from diffjax import guidance, inverse, metrics, schedules, targets, tuning

LIMIT = 3

COMPILED = "/jax/core/compile/backend_compile_duration"


_KEY_DATA = np.array([0, 1], np.uint32)


@contextlib.contextmanager
def counted_programs():
    """A list that grows by one for each program that XLA is given while the context is open."""
    programs = []

    def listen(event, duration, **details):
        if event == COMPILED:
            programs.append(details.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# ------------------------------------------------------------------------------------------------ schedules and grids

SCHEDULES_AND_GRIDS = {}

# ----------------------------------------------------------------------------------------------------- exact densities

_MEANS, _STEP = np.array([[-1.0, 0.4], [0.8, -0.2]]), np.array([0.1, 0.6], np.float32)
_COVARIANCES = np.array([[[0.6, 0.3], [0.3, 0.5]], [[0.2, -0.1], [-0.1, 0.9]]])


def _mixture(scales=_COVARIANCES):
    return targets.gaussian_mixture([0.3, 0.7], _MEANS, scales)


def _of_target(make, call):
    """A row: the call of an instance made before the count."""

    def prepare():
        target, schedule = make(), schedules.vp_linear()
        return lambda: call(target, schedule)

    return prepare


_KINDS = {
    "a mixture": _mixture,
    "a diagonal mixture": lambda: _mixture([0.3, 0.6]),
    "boxes": targets.checkerboard,
    "data": lambda: targets.empirical(_MEANS),
}
_CALLS = {
    "noised": lambda target, schedule: target.noised(schedule, 0.3),
    "denoiser": lambda target, schedule: targets.denoiser(target, schedule)(_STEP, 0.3),
    "log_prob": lambda target, schedule: target.noised(schedule, 0.3).log_prob(_STEP),
    "score": lambda target, schedule: targets.score(target.noised(schedule, 0.3), _STEP),
}
_CONSTRUCTORS = {
    "gaussian": lambda: targets.gaussian([0.0, 1.0], 0.7),
    "gaussian of a covariance": lambda: targets.gaussian([0.0, 1.0], _COVARIANCES[0]),
    "gaussian_mixture": _mixture,
    "uniform_boxes": lambda: targets.uniform_boxes([1.0], [[0.0, 0.0]], [[1.0, 2.0]]),
    "empirical": lambda: targets.empirical(_MEANS),
    "eight_gaussians": targets.eight_gaussians,
    "checkerboard": targets.checkerboard,
    "circles": targets.circles,
    "moons": targets.moons,
}
TARGETS = (
    {f"{call} of {kind}": _of_target(_KINDS[kind], _CALLS[call]) for kind in _KINDS for call in _CALLS}
    | {f"targets.{name}": lambda make=make: make for name, make in _CONSTRUCTORS.items()}
    | {
        "a mixture's moments": _of_target(_mixture, lambda target, _: (target.mean(), target.covariance())),
        "a mixture's sample": _of_target(_mixture, lambda target, _: target.sample(jax.random.wrap_key_data(_KEY_DATA))),
    }
)

# -------------------------------------------------------------------------------- predictions, sampling and likelihoods

SAMPLING = {}

# ------------------------------------------------------------------------------------------------- solvers, SDEs, noise

SOLVERS = {}

# --------------------------------------------------------------------------- losses, the discrete chain and its bound

CHAINS = {}

# --------------------------------------------------------------------------------------- guidance and inverse problems

def _guided(make):
    """A row: a factory of guided denoisers, given a schedule, a denoiser and a grid made before the count."""

    def prepare():
        schedule = schedules.vp_linear()
        grid, net = np.linspace(1.0, 0.01, 5, dtype=np.float32), lambda x, t: 0.5 * x
        return lambda: jax.tree.leaves(make(schedule, net, grid)) and np.zeros(())

    return prepare


def _operator(_schedule=None):
    return inverse.matrix([[1.0, 0.5]])


GUIDANCE = {
    "classifier": _guided(lambda s, net, grid: guidance.classifier(s, net, lambda x, t: x.sum())),
    "classifier_free": _guided(lambda s, net, grid: guidance.classifier_free(net, net, 2.0)),
    "limited": _guided(lambda s, net, grid: guidance.limited(s, net, net, (0.1, 0.5))),
    "static_threshold": _guided(lambda s, net, grid: guidance.static_threshold(net)),
    "dynamic_threshold": _guided(lambda s, net, grid: guidance.dynamic_threshold(net)),
    "cfg_plus_plus_scale": _guided(lambda s, net, grid: guidance.cfg_plus_plus_scale(s, grid, 0.6)),
    "matrix": _guided(lambda s, net, grid: _operator()),
    "inpainting": _guided(lambda s, net, grid: inverse.inpainting([True, False])),
    "dps": _guided(lambda s, net, grid: inverse.dps(s, net, _operator(), [0.8], 0.3)),
    "dps_steps": _guided(lambda s, net, grid: inverse.dps_steps(s, net, _operator(), [0.8], grid)),
    "pigdm": _guided(lambda s, net, grid: inverse.pigdm(s, net, _operator(), [0.8], 0.3)),
    "replacement": _guided(lambda s, net, grid: inverse.replacement(net, _operator(), [0.8])),
    "soft_inpainting": _guided(lambda s, net, grid: inverse.soft_inpainting(net, [0.8, 0.0], [0.5, 1.0])),
    "trust_mask": _guided(lambda s, net, grid: inverse.trust_mask(s, [0.1, 0.5])),
    "release_mask": _guided(lambda s, net, grid: inverse.release_mask(s, [0.1, 0.5])),
    "exact_posterior": _guided(lambda s, net, grid: inverse.exact_posterior(_mixture(), _operator(), [0.8], 0.3)),
    "exact_posterior by a mask": _guided(
        lambda s, net, grid: inverse.exact_posterior(_mixture(), inverse.inpainting([True, False]), [0.8], 0.3)
    ),
    "frechet_distance": lambda: lambda: metrics.frechet_distance(_MEANS, _MEANS + 1),
    "kernel_distance": lambda: lambda: metrics.kernel_distance(_MEANS, _MEANS + 1),
    "energy_distance": lambda: lambda: metrics.energy_distance(_MEANS, _MEANS + 1),
    "nearest_neighbours": lambda: lambda: metrics.nearest_neighbours(_MEANS, _MEANS + 1),
    "sliced_wasserstein": lambda: lambda: metrics.sliced_wasserstein(
        jax.random.wrap_key_data(_KEY_DATA), _MEANS, _MEANS + 1, 4
    ),
    "optimised_grid": _of_target(
        _mixture,
        lambda target, schedule: tuning.optimised_grid(
            schedule, targets.denoiser(target, schedule), 2, examples=2, iterations=1,
            x_init=np.zeros((4, 2), np.float32),
        ),
    ),
}  # fmt: skip

# ------------------------------------------------------------------- Langevin chains, energies, divergences, metrics

LANGEVIN = {}

# ------------------------------------------------------------------------------------------------------ flows and VAEs

FLOWS = {}

# ------------------------------------------------------------------------------------------------------------ training

TRAINING = {}

ROWS = (
    SCHEDULES_AND_GRIDS | TARGETS | SAMPLING | SOLVERS | CHAINS | GUIDANCE | LANGEVIN | FLOWS | TRAINING
)  # fmt: skip


def programs_of_first_call(prepare):
    call = prepare()
    jax.clear_caches()
    with counted_programs() as programs:
        jax.block_until_ready(call())
    return programs


@pytest.mark.parametrize("name", ROWS)
def test_a_first_call_compiles_few_programs(name):
    programs = programs_of_first_call(ROWS[name])
    assert len(programs) <= LIMIT, programs


def test_programs_are_counted():
    def prepare():
        x = np.linspace(0.0, 1.0, 7)
        return lambda: (jax.numpy.exp(x) + 1.5) * jax.numpy.sin(x)

    assert len(programs_of_first_call(prepare)) >= 4
