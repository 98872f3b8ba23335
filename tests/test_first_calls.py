"""A first call compiles few programs: at most `LIMIT` for every public function, however cold the process.

A row is a function that makes the inputs and returns the call to be counted. Inputs are made before the count starts.
Rows stand in the order of the rooms.
"""

import contextlib

import jax
import jax.monitoring
import numpy as np
import pytest

LIMIT = 3

COMPILED = "/jax/core/compile/backend_compile_duration"


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

TARGETS = {}

# -------------------------------------------------------------------------------- predictions, sampling and likelihoods

SAMPLING = {}

# ------------------------------------------------------------------------------------------------- solvers, SDEs, noise

SOLVERS = {}

# --------------------------------------------------------------------------- losses, the discrete chain and its bound

CHAINS = {}

# --------------------------------------------------------------------------------------- guidance and inverse problems

GUIDANCE = {}

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
