"""A first call compiles few programs: at most `LIMIT` for every public function, however cold the process.

A row is a function that makes the inputs and returns the call to be counted. Inputs are made before the count starts.
Rows stand in the order of the rooms.
"""

import contextlib
import functools
import tempfile

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import divergences, energies, langevin, noise, quadrature, sde, targets, training

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

EXAMPLES = np.zeros((4, 1), np.float32)


def normal(scale=1.0):
    return targets.gaussian(np.zeros(1, np.float32), scale)


def quadratic(x):
    """log N(x; 0, I) up to a constant."""
    return -0.5 * jax.numpy.sum(x**2)


def mala_at(law, beta):
    return langevin.mala(law, 0.5)


def with_key(call, *makers):
    """A row: call(key, *inputs), the inputs made by `makers` before the count."""

    def prepare():
        key, inputs = jax.random.key(0), [make() for make in makers]
        return lambda: call(key, *inputs)

    return prepare


def of_two(function, *arguments, **settings):
    """A row: a divergence of two normal distributions."""
    return with_key(lambda _, p, q: function(p, q, *arguments, **settings), normal, lambda: normal(1.2))


def of_draws(function, *arguments):
    """A row: an estimate by samples from two normal distributions."""
    return with_key(lambda key, p, q: function(key, p, q, *arguments), normal, lambda: normal(1.2))


def of_chains(function):
    samples = np.random.default_rng(0).normal(size=(4, 100)).astype(np.float32)
    return lambda: lambda: function(samples)


MALA = functools.partial(langevin.mala, quadratic)
LINE = [(-9, 9)]
LANGEVIN = {
    "langevin.run": with_key(lambda key, kernel: langevin.run(key, kernel, EXAMPLES[0], 5), lambda: MALA(0.1)),
    "langevin.run_many": with_key(
        lambda key, kernel: langevin.run_many(key, kernel, EXAMPLES, 6, thinning=2, warm_up=2), lambda: MALA(0.1)
    ),
    "langevin.adapt_step_size": with_key(lambda key: langevin.adapt_step_size(key, MALA, EXAMPLES[0], 10)),
    "langevin.annealed": with_key(
        lambda _, ladder: langevin.annealed(ladder, np.ones(2, np.float32), 3), lambda: [normal(2.0), normal(1.0)]
    ),
    "langevin.annealed_importance_sampling": with_key(
        lambda key, base: langevin.annealed_importance_sampling(key, base, quadratic, [0, 0.5, 1], mala_at, count=8),
        normal,
    ),
    "langevin.thermodynamic_integration": with_key(
        lambda key, base: langevin.thermodynamic_integration(key, base, quadratic, [0, 0.5, 1], mala_at, 8, 4, 2),
        normal,
    ),
    "langevin.effective_sample_size": of_chains(langevin.effective_sample_size),
    "langevin.standard_error": of_chains(langevin.standard_error),
    "langevin.r_hat": of_chains(langevin.r_hat),
    "quadrature.integrate": lambda: lambda: quadrature.integrate(lambda x: x * x, (-5, 5), 64),
    "quadrature.log_integral": lambda: lambda: quadrature.log_integral(quadratic, (-9, 9), 64),
    "divergences.kl_by_quadrature": of_two(divergences.kl_by_quadrature, LINE, 64),
    "divergences.jensen_shannon_by_quadrature": of_two(divergences.jensen_shannon_by_quadrature, LINE, 64),
    "divergences.fisher_by_quadrature": of_two(divergences.fisher_by_quadrature, LINE, 64),
    "divergences.kl_by_samples": of_draws(divergences.kl_by_samples, 64),
    "divergences.jensen_shannon_by_samples": of_draws(divergences.jensen_shannon_by_samples, 64),
    "divergences.fisher_by_samples": of_draws(divergences.fisher_by_samples, 64),
    "energies.advance": with_key(
        lambda key, chains, law: energies.advance(key, chains, langevin.ula(quadratic, 0.1), 3, restarts=law),
        lambda: energies.persistent_chains(EXAMPLES), normal,
    ),
    "sde.solve_fokker_planck": lambda: lambda: sde.solve_fokker_planck(
        sde.langevin(quadratic), np.ones(32, np.float32) / 8, np.linspace(-4, 4, 33, dtype=np.float32),
        np.linspace(0, 1, 5, dtype=np.float32),
    ),
    "noise.brownian": with_key(lambda key: noise.brownian(key, 0.0, 1.0, (2,))),
    "noise.BrownianPath.increment": with_key(
        lambda _, path: path.increment(0.3, 0.4), lambda: noise.brownian(jax.random.key(0), 0.0, 1.0, (2,))
    ),
}  # fmt: skip

# ------------------------------------------------------------------------------------------------------ flows and VAEs

FLOWS = {}

# ------------------------------------------------------------------------------------------------------------ training


def training_problem():
    """(state, step, optimiser, batches) of four arrays of four shapes."""
    params = {"w": np.ones((4, 3)), "b": np.zeros(4), "c": np.ones((2, 2, 2), jnp.bfloat16), "d": np.ones(())}
    params = jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.bfloat16 else leaf.astype(np.float32), params)
    rule = training.optimiser(0.01, warmup_steps=5, total_steps=40, weight_decay=0.01)

    def loss(params, key, batch):
        return jnp.mean((batch @ params["w"].T + params["b"] + params["d"] + params["c"].sum()) ** 2), {}

    batches = training.Batches(np.ones((8, 3), np.float32), 2)
    return training.init(jax.random.key(0), params, rule), training.make_step(loss, rule), rule, batches


def first_state():
    state, _, rule, _ = training_problem()
    return lambda: training.init(state.key, state.params, rule)


def first_step():
    state, step, _, batches = training_problem()
    return lambda: step(state, batches.at(0))


def first_fit(folder):
    state, step, _, batches = training_problem()
    checkpoints = training.Checkpoints(folder, {})

    def fit():
        with checkpoints:
            return training.fit(state, training.make_steps(step), batches, 4, checkpoints, block=2, save_every=2)

    return fit


def first_restore(folder):
    state, _, _, _ = training_problem()
    checkpoints = training.Checkpoints(folder, {})
    checkpoints.save(0, state)

    def restore():
        with checkpoints:
            return checkpoints.restore_latest(state), training.load_ema(folder)

    return restore


def in_a_folder(prepare):
    def prepared():
        folder = tempfile.TemporaryDirectory()
        call = prepare(folder.name)

        def in_it():
            with folder:
                return call()

        return in_it

    return prepared


def on_a_mesh():
    state, _, _, batches = training_problem()
    mesh = training.data_mesh(jax.devices()[:1])
    return lambda: (training.replicate(state, mesh), training.shard_batch(batches.at(0), mesh))


TRAINING = {
    "training.init": first_state,
    "training.make_step": first_step,
    "training.fit": in_a_folder(first_fit),
    "training.Checkpoints.restore_latest, load_ema": in_a_folder(first_restore),
    "training.replicate, shard_batch": on_a_mesh,
    "training.warmup_cosine": lambda: functools.partial(training.warmup_cosine(0.1, 3, 10, 0.5), 4),
    "training.ema_decay_at": lambda: functools.partial(training.ema_decay_at, 3, 0.9),
}

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
