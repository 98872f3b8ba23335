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

import diffjax as dj
from diffjax import ddpm, grids, losses, ncsn, numerics, schedules, training

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


class Stated:
    """A user's schedule that is no pytree: α = cos, σ = sin."""

    t_min, t_max = 1e-3, 0.99

    def alpha(self, t):
        """cos(πt/2)."""
        return jnp.cos(0.5 * jnp.pi * t)

    def sigma(self, t):
        """sin(πt/2)."""
        return jnp.sin(0.5 * jnp.pi * t)


OF_EACH_KIND = {
    "vp_linear": schedules.vp_linear,
    "from_betas": lambda: schedules.from_betas(ddpm.linear_betas(20)),
    "stated": Stated,
}


def of_schedule(make, function, *arguments):
    def prepare():
        schedule = make()
        return lambda: function(schedule, *arguments)

    return prepare


SCHEDULES_AND_GRIDS = {
    f"{room.__name__.split('.')[-1]}.{name}, {kind}": of_schedule(make, getattr(room, name), *arguments)
    for kind, make in OF_EACH_KIND.items()
    for room, names, arguments in (
        (grids, ("uniform", "quadratic", "log_snr", "karras", "polyexponential", "beta", "shifted"), (10,)),
        (grids, ("from_noise_ratios",), ([1.0, 0.5],)),
        (grids, ("transport",), (schedules.vp_cosine(), [0.5, 0.2])),
        (schedules, ("log_snr", "drift_coefficient", "diffusion_coefficient", "log_snr_rate", "rates"), (0.5,)),
        (schedules, ("time_of_log_snr",), (0.0,)),
        (schedules, ("without_signal",), (0.5,)),
        (schedules, ("perturb",), (np.zeros(2, np.float32), 0.5, np.ones(2, np.float32))),
        (schedules, ("prior_std", "log_snr_range", "is_finite"), ()),
    )
    for name in names
} | {
    "grids.ddpm": of_schedule(OF_EACH_KIND["from_betas"], grids.ddpm, 4),
    "grids.strength": lambda: lambda: grids.strength([1.0, 0.5, 0.2], 0.5),
    "grids.to_zero": lambda: lambda: grids.to_zero([1.0, 0.5]),
    "schedules.index_of_time": of_schedule(OF_EACH_KIND["from_betas"], schedules.index_of_time, 0.5),
    "schedules.learned": lambda: functools.partial(schedules.learned, jax.random.key(0)),
}

# ----------------------------------------------------------------------------------------------------- exact densities

TARGETS = {}

# -------------------------------------------------------------------------------- predictions, sampling and likelihoods


def sampling_problem():
    """(schedule, denoiser, x, grid): plain functions and NumPy arrays, so that all programs are the library's."""
    schedule = dj.schedules.vp_linear()
    return (
        schedule,
        functools.partial(_half, np.float32(0.5)),
        np.array([0.3, -0.1], np.float32),
        np.linspace(1, 0.1, 5),
    )


def _half(weight, x, t):
    return weight * x


def in_sampling(call):
    """A row: call(schedule, denoiser, x, grid, key) once these are made."""

    def prepare():
        arguments = *sampling_problem(), jax.random.key(0)
        return lambda: call(*arguments)

    return prepare


def _stop_and_go(schedule, denoiser, x, grid, key):
    problem, solver = dj.solvers.diffusion(schedule, denoiser), dj.solvers.unipc(2)
    run = dj.solvers.start(solver, problem, x, grid)
    run = dj.solvers.advance(None, solver, run, problem, grid, steps=2)
    return dj.solvers.advance(None, solver, run, problem, grid)


def of_a_denoiser(make):
    """A row: a denoiser, or a view of one, made before the count and called at one example."""

    def prepare():
        schedule, net, x, _ = sampling_problem()
        denoiser = make(schedule, net)
        return lambda: denoiser(x, 0.5)

    return prepare


def of_a_network(kind, **settings):
    return of_a_denoiser(lambda schedule, net: dj.predictions.denoiser(schedule, net, kind, **settings))


def of_a_chain(_, net):
    return dj.predictions.denoiser(
        dj.schedules.from_betas(np.linspace(1e-4, 0.02, 10)), net, "noise", inputs="zero_index"
    )


def of_levels(schedule, net):
    return dj.predictions.categorical(schedule, net, [-1.0, 0.0, 1.0])


def of_a_view(name):
    def view(schedule, net):
        return getattr(dj.predictions, name)(schedule, dj.predictions.denoiser(schedule, net, "data"))

    return of_a_denoiser(view)


SAMPLING = {
    "sample": in_sampling(lambda s, d, x, grid, key: dj.sample(key, d, s, grid=grid, shape=(2,))),
    "sample_many": in_sampling(lambda s, d, x, grid, key: dj.sample_many(key, 3, d, s, grid=grid, shape=(2,))),
    "initial": in_sampling(lambda s, d, x, grid, key: dj.sampling.initial(key, s, grid, (2,))),
    "encode": in_sampling(lambda s, d, x, grid, key: dj.encode(d, s, x, grid=grid)),
    "interpolate": in_sampling(lambda s, d, x, grid, key: dj.interpolate(d, s, x, x + 1, np.ones(3), grid=grid)),
    "spherical": in_sampling(lambda s, d, x, grid, key: dj.sampling.spherical(x, x + 1, 0.5)),
    "log_prob": in_sampling(lambda s, d, x, grid, key: dj.log_prob(d, s, x, grid=grid)),
    "lattice_log_prob": in_sampling(
        lambda s, d, x, grid, key: dj.likelihood.lattice_log_prob(key, d, s, x, [-0.1, 0.3, 0.7], grid=grid)
    ),
    "integrate": in_sampling(
        lambda s, d, x, grid, key: dj.solvers.integrate(None, dj.solvers.heun(), dj.solvers.diffusion(s, d), x, grid)
    ),
    "start, advance": in_sampling(_stop_and_go),
    "scalings": in_sampling(lambda s, d, x, grid, key: dj.predictions.scalings(1.5, 0.5)),
    "input_scalings": in_sampling(lambda s, d, x, grid, key: dj.predictions.input_scalings(s, 0.5, 0.5)),
    "noise_input": in_sampling(lambda s, d, x, grid, key: dj.predictions.noise_input(s, 0.5)),
    "level_evidence": in_sampling(lambda s, d, x, grid, key: dj.predictions.level_evidence(s, x, 0.5, np.arange(3.0))),
    "denoiser": in_sampling(lambda s, d, x, grid, key: dj.predictions.denoiser(s, d, "noise").schedule.beta_min),
    **{f"a network's {kind}": of_a_network(kind) for kind in dj.predictions.KINDS},
    "a network of scaled inputs": of_a_network("v", inputs="scaled"),
    "a network of indices": of_a_denoiser(of_a_chain),
    **{f"the view {name}": of_a_view(name) for name in ("score", "noise", "v", "velocity", "variance")},
    "categorical": of_a_denoiser(of_levels),
    "moments": of_a_denoiser(lambda schedule, net: dj.predictions.moments(of_levels(schedule, net))),
}

# ------------------------------------------------------------------------------------------------- solvers, SDEs, noise

SOLVERS = {}

# --------------------------------------------------------------------------- losses, the discrete chain and its bound


def of_chain(function, *arguments):
    def prepare():
        key, chain = jax.random.key(0), schedules.from_betas(ddpm.linear_betas(20))
        return lambda: function(key, lambda x, t: 0.5 * x, chain, np.zeros(2, np.float32), *arguments)

    return prepare


def of_times(function, law):
    def prepare():
        key, schedule = jax.random.key(0), schedules.vp_cosine()
        return (
            (lambda: function(key, 8, schedule, law))
            if function is losses.sample_times
            else (lambda: function(schedule, 0.5, law))
        )

    return prepare


def of_history(function, *arguments):
    def prepare():
        key, history = jax.random.key(0), ddpm.loss_history(20, 2)
        return lambda: function(key, 4, history) if function is ddpm.sample_indices else function(history, *arguments)

    return prepare


CHAINS = {
    "ddpm.elbo": of_chain(ddpm.elbo),
    "ddpm.two_variable_elbo": of_chain(ddpm.two_variable_elbo),
    "ddpm.rate_distortion": of_chain(ddpm.rate_distortion),
    "ddpm.continuous_elbo": of_chain(ddpm.continuous_elbo),
    "ddpm.interpolate": of_chain(ddpm.interpolate, np.ones(2, np.float32), [0.0, 0.5], 5),
    "ddpm.forward_marginal": of_schedule(OF_EACH_KIND["from_betas"], ddpm.forward_marginal, np.zeros(2, np.float32), 3),
    "ddpm.index_probabilities": of_history(ddpm.index_probabilities),
    "ddpm.sample_indices": of_history(ddpm.sample_indices),
    "ddpm.record": of_history(ddpm.record, [1, 2], [0.1, 0.2]),
    "ncsn.bound_weights": of_schedule(OF_EACH_KIND["from_betas"], ncsn.bound_weights),
    "numerics.phi": lambda: lambda: numerics.phi(2, 0.5),
    "numerics.log_normal_interval": lambda: lambda: numerics.log_normal_interval(0.0, 1.0),
} | {
    f"losses.{function.__name__}, {law}": of_times(function, law)
    for function in (losses.sample_times, losses.time_density)
    for law in losses.TIME_LAWS
}

# --------------------------------------------------------------------------------------- guidance and inverse problems

GUIDANCE = {}

# ------------------------------------------------------------------- Langevin chains, energies, divergences, metrics

LANGEVIN = {}

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
