"""A first call compiles few programs: at most `LIMIT` for every public
function, however cold the process.

A row is a function that makes the inputs and returns the call to be counted.
Inputs are made before the count starts. Rows stand in the order of the rooms.
"""

import functools
import tempfile

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import (
    ddpm,
    distributions,
    divergences,
    energies,
    flows,
    grids,
    guidance,
    inverse,
    langevin,
    losses,
    metrics,
    ncsn,
    networks,
    noise,
    numerics,
    predictions,
    quadrature,
    schedules,
    sde,
    targets,
    training,
    tuning,
    vaes,
)
from tests.families import counted_programs

LIMIT = 3


_KEY_DATA = np.array([0, 1], np.uint32)


@pytest.fixture(scope="module", autouse=True)
def small_programs_are_cached():
    """Keep every program on disk: rows make the same small inputs again and
    again after `jax.clear_caches`.
    """
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


# ------------------------------------------------------------------ schedules and grids


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
    f"{room.__name__.split('.')[-1]}.{name}, {kind}": of_schedule(
        make, getattr(room, name), *arguments
    )
    for kind, make in OF_EACH_KIND.items()
    for room, names, arguments in (
        (
            grids,
            (
                "uniform",
                "quadratic",
                "log_snr",
                "karras",
                "polyexponential",
                "beta",
                "shifted",
            ),
            (10,),
        ),
        (grids, ("from_noise_ratios",), ([1.0, 0.5],)),
        (grids, ("transport",), (schedules.vp_cosine(), [0.5, 0.2])),
        (
            schedules,
            (
                "log_snr",
                "drift_coefficient",
                "diffusion_coefficient",
                "log_snr_rate",
                "rates",
            ),
            (0.5,),
        ),
        (schedules, ("time_of_log_snr",), (0.0,)),
        (schedules, ("without_signal",), (0.5,)),
        (
            schedules,
            ("perturb",),
            (np.zeros(2, np.float32), 0.5, np.ones(2, np.float32)),
        ),
        (schedules, ("prior_std", "log_snr_range", "is_finite"), ()),
    )
    for name in names
} | {
    "grids.ddpm": of_schedule(OF_EACH_KIND["from_betas"], grids.ddpm, 4),
    "grids.strength": lambda: lambda: grids.strength([1.0, 0.5, 0.2], 0.5),
    "grids.to_zero": lambda: lambda: grids.to_zero([1.0, 0.5]),
    "schedules.index_of_time": of_schedule(
        OF_EACH_KIND["from_betas"], schedules.index_of_time, 0.5
    ),
    "schedules.learned": lambda: functools.partial(
        schedules.learned, jax.random.key(0)
    ),
}

# ---------------------------------------------------------------------- exact densities

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
    "score": lambda target, schedule: targets.score(
        target.noised(schedule, 0.3), _STEP
    ),
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
    {
        f"{call} of {kind}": _of_target(_KINDS[kind], _CALLS[call])
        for kind in _KINDS
        for call in _CALLS
    }
    | {
        f"targets.{name}": lambda make=make: make
        for name, make in _CONSTRUCTORS.items()
    }
    | {
        "a mixture's moments": _of_target(
            _mixture, lambda target, _: (target.mean(), target.covariance())
        ),
        "a mixture's sample": _of_target(
            _mixture,
            lambda target, _: target.sample(jax.random.wrap_key_data(_KEY_DATA)),
        ),
    }
)

# ------------------------------------------------ predictions, sampling and likelihoods


def sampling_problem():
    """(schedule, denoiser, x, grid): plain functions and NumPy arrays, so that
    all programs are the library's.
    """
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
    run = dj.solvers.start(solver, problem, x=x, ts=grid)
    run = dj.solvers.advance(None, solver, run, problem, ts=grid, steps=2)
    return dj.solvers.advance(None, solver, run, problem, ts=grid)


def of_a_denoiser(make):
    """A row: a denoiser, or a view of one, made before the count and called at
    one example.
    """

    def prepare():
        schedule, net, x, _ = sampling_problem()
        denoiser = make(schedule, net)
        return lambda: denoiser(x, 0.5)

    return prepare


def of_a_network(kind, **settings):
    return of_a_denoiser(
        lambda schedule, net: dj.predictions.denoiser(schedule, net, kind, **settings)
    )


def of_a_chain(_, net):
    return dj.predictions.denoiser(
        dj.schedules.from_betas(np.linspace(1e-4, 0.02, 10)),
        net,
        "noise",
        inputs="zero_index",
    )


def of_levels(schedule, net):
    return dj.predictions.categorical(schedule, net, [-1.0, 0.0, 1.0])


def of_a_view(name):
    def view(schedule, net):
        return getattr(dj.predictions, name)(
            schedule, dj.predictions.denoiser(schedule, net, "data")
        )

    return of_a_denoiser(view)


SAMPLING = {
    "sample": in_sampling(
        lambda s, d, x, grid, key: dj.sample(key, d, s, grid=grid, shape=(2,))
    ),
    "sample_many": in_sampling(
        lambda s, d, x, grid, key: dj.sample_many(key, 3, d, s, grid=grid, shape=(2,))
    ),
    "initial": in_sampling(
        lambda s, d, x, grid, key: dj.sampling.initial(key, s, grid, (2,))
    ),
    "encode": in_sampling(lambda s, d, x, grid, key: dj.encode(d, s, x, grid=grid)),
    "interpolate": in_sampling(
        lambda s, d, x, grid, key: dj.interpolate(
            d, s, x, x + 1, weights=np.ones(3), grid=grid
        )
    ),
    "spherical": in_sampling(
        lambda s, d, x, grid, key: dj.sampling.spherical(x, x + 1, 0.5)
    ),
    "log_prob": in_sampling(lambda s, d, x, grid, key: dj.log_prob(d, s, x, grid=grid)),
    "lattice_log_prob": in_sampling(
        lambda s, d, x, grid, key: dj.likelihood.lattice_log_prob(
            key, d, s, x, levels=[-0.1, 0.3, 0.7], grid=grid
        )
    ),
    "integrate": in_sampling(
        lambda s, d, x, grid, key: dj.solvers.integrate(
            None, dj.solvers.heun(), dj.solvers.diffusion(s, d), x=x, ts=grid
        )
    ),
    "start, advance": in_sampling(_stop_and_go),
    "scalings": in_sampling(
        lambda s, d, x, grid, key: dj.predictions.scalings(1.5, 0.5)
    ),
    "input_scalings": in_sampling(
        lambda s, d, x, grid, key: dj.predictions.input_scalings(s, 0.5, 0.5)
    ),
    "noise_input": in_sampling(
        lambda s, d, x, grid, key: dj.predictions.noise_input(s, 0.5)
    ),
    "level_evidence": in_sampling(
        lambda s, d, x, grid, key: dj.predictions.level_evidence(
            s, x, 0.5, np.arange(3.0)
        )
    ),
    "denoiser": in_sampling(
        lambda s, d, x, grid, key: (
            dj.predictions.denoiser(s, d, "noise").schedule.beta_min
        )
    ),
    **{f"a network's {kind}": of_a_network(kind) for kind in dj.predictions.KINDS},
    "a network of scaled inputs": of_a_network("v", inputs="scaled"),
    "a network of indices": of_a_denoiser(of_a_chain),
    **{
        f"the view {name}": of_a_view(name)
        for name in ("score", "noise", "v", "velocity", "variance")
    },
    "categorical": of_a_denoiser(of_levels),
    "moments": of_a_denoiser(
        lambda schedule, net: dj.predictions.moments(of_levels(schedule, net))
    ),
}

# ----------------------------------------------------------------- solvers, SDEs, noise


def with_a_key(call):
    def prepare():
        key = jax.random.key(0)
        return lambda: call(key)

    return prepare


def _bowl(x, t):
    return -0.5 * jnp.sum(x**2)


_SOLVERS = {
    "heun": dj.solvers.heun,
    "dpm_solver": dj.solvers.dpm_solver,
    "dpmpp_3m": dj.solvers.dpmpp_3m,
    "unipc": dj.solvers.unipc,
    "sa_solver": dj.solvers.sa_solver,
    "stochastic_heun": dj.solvers.stochastic_heun,
    "ddpm": dj.solvers.ddpm,
    "edm_stochastic": dj.solvers.edm_stochastic,
    "adaptive": dj.solvers.adaptive,
    "adaptive_sde": dj.solvers.adaptive_sde,
    "predictor_corrector": dj.solvers.predictor_corrector,
    "annealed_langevin": lambda: dj.solvers.annealed_langevin(3),
    "restart": lambda: dj.solvers.restart(t_low=0.32, t_high=0.4),
    "picard": dj.solvers.picard,
}
"""A solver of each way to build one."""


def _integrated(make):
    return in_sampling(
        lambda s, d, x, grid, key: dj.solvers.integrate(
            key, make(), dj.solvers.diffusion(s, d), x=x, ts=grid
        )
    )


def _along_a_path():
    schedule, denoiser, x, grid = sampling_problem()
    path = noise.brownian(jax.random.key(0), 1.0, 0.1, shape=(2,))
    return lambda: dj.solvers.integrate(
        None,
        dj.solvers.sra1(),
        dj.solvers.diffusion(schedule, denoiser),
        x=x,
        ts=grid,
        noise=path,
    )


SOLVERS = {
    f"integrate, {name}": _integrated(make) for name, make in _SOLVERS.items()
} | {
    "integrate a field": in_sampling(
        lambda s, d, x, grid, key: dj.solvers.integrate(
            None, dj.solvers.rk4(), lambda x, t: -x, x=x, ts=grid
        )
    ),
    "integrate an SDE": in_sampling(
        lambda s, d, x, grid, key: dj.solvers.integrate(
            key, dj.solvers.sra1(), sde.forward(s), x=x, ts=grid[::-1]
        )
    ),
    "integrate along a path": _along_a_path,
    "steps_within": lambda: lambda: dj.solvers.steps_within(dj.solvers.heun(), 9),
    "noise.normal": with_a_key(lambda key: noise.normal(key, 3, (2,))),
    "sde.forward's drift": in_sampling(
        lambda s, d, x, grid, key: sde.forward(s).drift(x, 0.5)
    ),
    "sde.forward's diffusion": in_sampling(
        lambda s, d, x, grid, key: sde.forward(s).diffusion(x, 0.5)
    ),
    "sde.reverse's drift": in_sampling(
        lambda s, d, x, grid, key: sde.reverse(s, d).drift(x, 0.5)
    ),
    "sde.probability_flow": in_sampling(
        lambda s, d, x, grid, key: sde.probability_flow(s, d)(x, 0.5)
    ),
    "sde.fokker_planck": in_sampling(
        lambda s, d, x, grid, key: sde.fokker_planck(sde.forward(s), _bowl)(x, 0.5)
    ),
    "sde.fokker_planck_residual": in_sampling(
        lambda s, d, x, grid, key: sde.fokker_planck_residual(
            sde.forward(s), _bowl, 0.1, 0.1
        )(x, 0.5)
    ),
    "sde.current_velocity": in_sampling(
        lambda s, d, x, grid, key: sde.current_velocity(sde.forward(s), _bowl)(x, 0.5)
    ),
    "sde.rate_along_flow": in_sampling(
        lambda s, d, x, grid, key: sde.rate_along_flow(sde.probability_flow(s, d))(
            x, 0.5
        )
    ),
}

# --------------------------------------------- losses, the discrete chain and its bound


def of_chain(function, *arguments, **settings):
    def prepare():
        key, chain = jax.random.key(0), schedules.from_betas(ddpm.linear_betas(20))
        return lambda: function(
            key,
            lambda x, t: 0.5 * x,
            chain,
            np.zeros(2, np.float32),
            *arguments,
            **settings,
        )

    return prepare


def of_times(function, distribution):
    def prepare():
        key, schedule = jax.random.key(0), schedules.vp_cosine()
        return (
            (lambda: function(key, 8, schedule, distribution))
            if function is losses.sample_times
            else (lambda: function(schedule, 0.5, distribution))
        )

    return prepare


def of_history(function, *arguments):
    def prepare():
        key, history = jax.random.key(0), ddpm.loss_history(20, 2)
        return lambda: (
            function(key, 4, history)
            if function is ddpm.sample_indices
            else function(history, *arguments)
        )

    return prepare


def of_batch(**settings):
    def prepare():
        prediction = predictions.denoiser(
            schedules.vp_cosine(), lambda x, t: 0.5 * x, "v"
        )
        key, x0 = jax.random.key(0), np.zeros((4, 2), np.float32)
        return lambda: losses.batch_loss(key, prediction, x0, **settings)

    return prepare


def of_one_example(**settings):
    def prepare():
        prediction = predictions.denoiser(
            schedules.vp_cosine(), lambda x, t: 0.5 * x, "noise"
        )
        x0, noise = np.zeros((2, 2), np.float32)
        return lambda: losses.denoising_loss(prediction, x0, noise, 0.5, **settings)

    return prepare


CHAINS = {
    "losses.denoising_loss": of_one_example(),
    "losses.denoising_loss, weighted": of_one_example(
        weighting="likelihood", density=2.0
    ),
    "losses.batch_loss": of_batch(),
    "losses.batch_loss, weighted": of_batch(weighting="likelihood", times="log_snr"),
    "ddpm.elbo": of_chain(ddpm.elbo),
    "ddpm.simple_loss": of_chain(ddpm.simple_loss),
    "ddpm.simple_loss at an index": of_chain(
        functools.partial(ddpm.simple_loss, index=3)
    ),
    "ddpm.hybrid_loss": of_chain(
        lambda key, net, chain, x: ddpm.hybrid_loss(
            key, ddpm.paired(net, net), chain, x
        )
    ),
    "ddpm.hybrid_loss at an index": of_chain(
        lambda key, net, chain, x: ddpm.hybrid_loss(
            key, ddpm.paired(net, net), chain, x, index=3, bound_weight=1e-2
        )
    ),
    "ddpm.forward_step": of_chain(
        lambda key, net, chain, x: ddpm.forward_step(chain, x, 3)
    ),
    "ddpm.posterior": of_chain(
        lambda key, net, chain, x: ddpm.posterior(chain, x, x, 3)
    ),
    "ddpm.reverse_step": of_chain(
        lambda key, net, chain, x: ddpm.reverse_step(net, chain, x, 3)
    ),
    "ddpm.bound_loss": of_chain(ddpm.bound_loss),
    "ddpm.bound_loss on a lattice": of_chain(
        functools.partial(ddpm.bound_loss, index=3, levels=[0.0, 1.0])
    ),
    "ddpm.continuous_loss": of_chain(ddpm.continuous_loss),
    "ddpm.schedule_variance_loss": of_chain(ddpm.schedule_variance_loss),
    "ncsn.score_loss": of_chain(ncsn.score_loss),
    "ncsn.score_loss with a weight": of_chain(
        ncsn.score_loss, index=3, weight=lambda sigma: sigma**1.5
    ),
    "ddpm.two_variable_elbo": of_chain(ddpm.two_variable_elbo),
    "ddpm.rate_distortion": of_chain(ddpm.rate_distortion),
    "ddpm.continuous_elbo": of_chain(ddpm.continuous_elbo),
    "ddpm.interpolate": of_chain(
        lambda key, net, chain, x: ddpm.interpolate(
            key, net, chain, start=x, end=x + 1, weights=[0.0, 0.5], index=5
        )
    ),
    "ddpm.forward_marginal": of_schedule(
        OF_EACH_KIND["from_betas"], ddpm.forward_marginal, np.zeros(2, np.float32), 3
    ),
    "ddpm.index_probabilities": of_history(ddpm.index_probabilities),
    "ddpm.sample_indices": of_history(ddpm.sample_indices),
    "ddpm.record": of_history(ddpm.record, [1, 2], [0.1, 0.2]),
    "ncsn.bound_weights": of_schedule(OF_EACH_KIND["from_betas"], ncsn.bound_weights),
    "numerics.phi": lambda: lambda: numerics.phi(2, 0.5),
    "distributions.log_normal_interval": lambda: (
        lambda: distributions.log_normal_interval(0.0, 1.0)
    ),
} | {
    f"losses.{function.__name__}, {distribution}": of_times(function, distribution)
    for function in (losses.sample_times, losses.time_density)
    for distribution in losses.TIME_DISTRIBUTIONS
}

# -------------------------------------------------------- guidance and inverse problems


def _guided(make):
    """A row: a factory of guided denoisers, given a schedule, a denoiser and a
    grid made before the count.
    """

    def prepare():
        schedule = schedules.vp_linear()
        grid, net = np.linspace(1.0, 0.01, 5, dtype=np.float32), lambda x, t: 0.5 * x
        return lambda: jax.tree.leaves(make(schedule, net, grid)) and np.zeros(())

    return prepare


def _operator(_schedule=None):
    return inverse.matrix([[1.0, 0.5]])


GUIDANCE = {
    "classifier": _guided(
        lambda s, net, grid: guidance.classifier(s, net, lambda x, t: x.sum())
    ),
    "classifier_free": _guided(
        lambda s, net, grid: guidance.classifier_free(net, net, 2.0)
    ),
    "limited": _guided(lambda s, net, grid: guidance.limited(s, net, net, (0.1, 0.5))),
    "static_threshold": _guided(lambda s, net, grid: guidance.static_threshold(net)),
    "dynamic_threshold": _guided(lambda s, net, grid: guidance.dynamic_threshold(net)),
    "cfg_plus_plus_scale": _guided(
        lambda s, net, grid: guidance.cfg_plus_plus_scale(s, grid, 0.6)
    ),
    "matrix": _guided(lambda s, net, grid: _operator()),
    "inpainting": _guided(lambda s, net, grid: inverse.inpainting([True, False])),
    "dps": _guided(
        lambda s, net, grid: inverse.dps(s, net, _operator(), [0.8], noise_std=0.3)
    ),
    "dps_steps": _guided(
        lambda s, net, grid: inverse.dps_steps(s, net, _operator(), [0.8], grid=grid)
    ),
    "pigdm": _guided(
        lambda s, net, grid: inverse.pigdm(s, net, _operator(), [0.8], noise_std=0.3)
    ),
    "replacement": _guided(
        lambda s, net, grid: inverse.replacement(net, _operator(), [0.8])
    ),
    "soft_inpainting": _guided(
        lambda s, net, grid: inverse.soft_inpainting(net, [0.8, 0.0], [0.5, 1.0])
    ),
    "trust_mask": _guided(lambda s, net, grid: inverse.trust_mask(s, [0.1, 0.5])),
    "release_mask": _guided(lambda s, net, grid: inverse.release_mask(s, [0.1, 0.5])),
    "exact_posterior": _guided(
        lambda s, net, grid: inverse.exact_posterior(
            _mixture(), _operator(), [0.8], 0.3
        )
    ),
    "exact_posterior by a mask": _guided(
        lambda s, net, grid: inverse.exact_posterior(
            _mixture(), inverse.inpainting([True, False]), [0.8], 0.3
        )
    ),
    "frechet_distance": lambda: lambda: metrics.frechet_distance(_MEANS, _MEANS + 1),
    "kernel_distance": lambda: lambda: metrics.kernel_distance(_MEANS, _MEANS + 1),
    "energy_distance": lambda: lambda: metrics.energy_distance(_MEANS, _MEANS + 1),
    "nearest_neighbours": lambda: (
        lambda: metrics.nearest_neighbours(_MEANS, _MEANS + 1)
    ),
    "sliced_wasserstein": lambda: (
        lambda: metrics.sliced_wasserstein(
            jax.random.wrap_key_data(_KEY_DATA), _MEANS, _MEANS + 1, 4
        )
    ),
    "optimised_grid": _of_target(
        _mixture,
        lambda target, schedule: tuning.optimised_grid(
            schedule,
            targets.denoiser(target, schedule),
            2,
            examples=2,
            iterations=1,
            x_init=np.zeros((4, 2), np.float32),
            solver=dj.solvers.euler(),
        ),
    ),
    "optimised_solver": _of_target(
        _mixture,
        lambda target, schedule: tuning.optimised_solver(
            schedule,
            targets.denoiser(target, schedule),
            2,
            iterations=1,
            x_init=np.zeros((4, 2), np.float32),
            solver=dj.solvers.ddim(),
        ),
    ),
}

# -------------------------------------- Langevin chains, energies, divergences, metrics

EXAMPLES = np.zeros((4, 1), np.float32)


def normal(scale=1.0):
    return targets.gaussian(np.zeros(1, np.float32), scale)


def quadratic(x):
    """log N(x. 0, I) up to a constant."""
    return -0.5 * jax.numpy.sum(x**2)


def mala_at(distribution, beta):
    return langevin.mala(distribution, 0.5)


def with_key(call, *makers):
    """A row: call(key, *inputs), the inputs made by `makers` before the count."""

    def prepare():
        key, inputs = jax.random.key(0), [make() for make in makers]
        return lambda: call(key, *inputs)

    return prepare


def of_two(function, *arguments, **settings):
    """A row: a divergence of two normal distributions."""
    return with_key(
        lambda _, p, q: function(p, q, *arguments, **settings),
        normal,
        lambda: normal(1.2),
    )


def of_draws(function, *arguments):
    """A row: an estimate by samples from two normal distributions."""
    return with_key(
        lambda key, p, q: function(key, p, q, *arguments), normal, lambda: normal(1.2)
    )


def of_chains(function):
    samples = np.random.default_rng(0).normal(size=(4, 100)).astype(np.float32)
    return lambda: lambda: function(samples)


def two_bumps():
    return targets.gaussian_mixture([0.4, 0.6], [[1.0], [-1.0]], [0.4, 0.7])


def fitted(fit):
    """A row: fit(key, p, start), p of two bumps and the start one normal
    distribution.
    """
    return with_key(fit, two_bumps, lambda: normal(1.5))


MALA = functools.partial(langevin.mala, quadratic)
LINE = [(-9, 9)]
LANGEVIN = {
    "langevin.run": with_key(
        lambda key, kernel: langevin.run(key, kernel, EXAMPLES[0], 5), lambda: MALA(0.1)
    ),
    "langevin.run_many": with_key(
        lambda key, kernel: langevin.run_many(
            key, kernel, EXAMPLES, 6, thinning=2, warm_up=2
        ),
        lambda: MALA(0.1),
    ),
    "langevin.adapt_step_size": with_key(
        lambda key: langevin.adapt_step_size(key, MALA, EXAMPLES[0], 10)
    ),
    "langevin.annealed": with_key(
        lambda _, ladder: langevin.annealed(ladder, np.ones(2, np.float32), 3),
        lambda: [normal(2.0), normal(1.0)],
    ),
    "langevin.annealed_importance_sampling": with_key(
        lambda key, base: langevin.annealed_importance_sampling(
            key, base, quadratic, [0, 0.5, 1], make_kernel=mala_at, count=8
        ),
        normal,
    ),
    "langevin.thermodynamic_integration": with_key(
        lambda key, base: langevin.thermodynamic_integration(
            key,
            base,
            quadratic,
            [0, 0.5, 1],
            make_kernel=mala_at,
            count=8,
            steps=4,
            warm_up=2,
        ),
        normal,
    ),
    "langevin.effective_sample_size": of_chains(langevin.effective_sample_size),
    "langevin.standard_error": of_chains(langevin.standard_error),
    "langevin.r_hat": of_chains(langevin.r_hat),
    "quadrature.integrate": lambda: (
        lambda: quadrature.integrate(lambda x: x * x, (-5, 5), 64)
    ),
    "quadrature.log_integral": lambda: (
        lambda: quadrature.log_integral(quadratic, (-9, 9), 64)
    ),
    "divergences.kl_by_quadrature": of_two(divergences.kl_by_quadrature, LINE, 64),
    "divergences.jensen_shannon_by_quadrature": of_two(
        divergences.jensen_shannon_by_quadrature, LINE, 64
    ),
    "divergences.fisher_by_quadrature": of_two(
        divergences.fisher_by_quadrature, LINE, 64
    ),
    "divergences.kl_by_samples": of_draws(divergences.kl_by_samples, 64),
    "divergences.jensen_shannon_by_samples": of_draws(
        divergences.jensen_shannon_by_samples, 64
    ),
    "divergences.fisher_by_samples": of_draws(divergences.fisher_by_samples, 64),
    "divergences.moment_matched": with_key(
        lambda _, p: divergences.moment_matched(p), two_bumps
    ),
    "divergences.moment_matched by quadrature": with_key(
        lambda _, p: divergences.moment_matched(p, LINE, 64), lambda: normal(1.2)
    ),
    "divergences.fit_forward": fitted(
        lambda key, p, q: divergences.fit_forward(p, q, LINE, 128, steps=3)
    ),
    "divergences.fit_forward_by_samples": fitted(
        lambda key, p, q: divergences.fit_forward_by_samples(key, p, q, 32, steps=3)
    ),
    "divergences.fit_reverse": fitted(
        lambda key, p, q: divergences.fit_reverse(p, q, 64, steps=30)
    ),
    "divergences.fit_reverse_by_samples": fitted(
        lambda key, p, q: divergences.fit_reverse_by_samples(key, p, q, 32, steps=3)
    ),
    **{
        f"energies.{name} of {kind}": with_key(call, make)
        for kind, make in {
            "a target": two_bumps,
            "a function": lambda: quadratic,
        }.items()
        for name, call in {
            "exact": lambda _, model: energies.exact(model, EXAMPLES[0]),
            "sliced": lambda key, model: energies.sliced(key, model, EXAMPLES[0], 2),
            "denoising": lambda key, model: energies.denoising(
                key, model, EXAMPLES[0], 0.1
            ),
            "contrastive": lambda _, model: energies.contrastive(
                model, EXAMPLES[0], EXAMPLES[1], 0.1
            ),
        }.items()
    },
    "energies.reconstruction": with_key(
        lambda _, model: model.log_prob(EXAMPLES[0]),
        lambda: energies.reconstruction(jnp.tanh),
    ),
    "energies.persistent_chains": lambda: lambda: energies.persistent_chains(EXAMPLES),
    "energies.advance": with_key(
        lambda key, chains, distribution: energies.advance(
            key, chains, langevin.ula(quadratic, 0.1), 3, restarts=distribution
        ),
        lambda: energies.persistent_chains(EXAMPLES),
        normal,
    ),
    "sde.solve_fokker_planck": lambda: (
        lambda: sde.solve_fokker_planck(
            sde.langevin(quadratic),
            np.ones(32, np.float32) / 8,
            np.linspace(-4, 4, 33, dtype=np.float32),
            np.linspace(0, 1, 5, dtype=np.float32),
        )
    ),
    "noise.brownian": with_key(lambda key: noise.brownian(key, 0.0, 1.0, shape=(2,))),
    "noise.BrownianPath.increment": with_key(
        lambda _, path: path.increment(0.3, 0.4),
        lambda: noise.brownian(jax.random.key(0), 0.0, 1.0, shape=(2,)),
    ),
}

# ----------------------------------------------------------------------- flows and VAEs

KEY = jax.random.key(0)


def constructed(make, *arguments, **settings):
    """A row whose call makes a bijector, a network or a flow."""
    return lambda: lambda: make(KEY, *arguments, **settings)


def called(make, method, *arguments):
    """A row whose call is a method of a flow."""

    def prepare():
        model = make()
        return lambda: getattr(model, method)(*arguments)

    return prepare


@functools.cache
def small_flow():
    return flows.real_nvp(KEY, (2,), layers=2, width=8)


@functools.cache
def small_glow():
    return flows.glow(KEY, (4, 4, 1), scales=1, steps=2, width=4)


def linear_mean(weights, x):
    return weights @ x, np.float32(-1.0)


def linear_decoder(weights, z):
    return distributions.gaussian(weights @ z, np.float32(-1.0))


def bound(name, **settings):
    def prepare():
        encoder, decoder = (
            functools.partial(f, np.eye(3, dtype=np.float32))
            for f in (linear_mean, linear_decoder)
        )
        x = np.ones(3, np.float32)
        return lambda: getattr(vaes.gaussian, name)(
            KEY, encoder, decoder, x, **settings
        )

    return prepare


def called_on_a_flow(call):
    return lambda: (lambda model: lambda: call(model))(small_flow())


def _half_of(x, t):
    return 0.5 * x


PAIR = np.float32([0.3, -0.2])
FLOWS = {
    "flows.real_nvp": constructed(flows.real_nvp, (4,)),
    "flows.nice": constructed(flows.nice, (4,)),
    "flows.spline_coupling": constructed(flows.spline_coupling, (4,), condition_size=2),
    "flows.maf": constructed(flows.maf, (4,)),
    "flows.iaf": constructed(flows.iaf, (2, 2)),
    "flows.tarflow": constructed(flows.tarflow, (4, 4, 1)),
    "flows.glow": constructed(flows.glow, (4, 4, 1), scales=1, steps=2, width=4),
    "flows.dequantiser": constructed(flows.dequantiser, (3,)),
    "flows.perceptron": constructed(flows.perceptron, 3, (2, 2)),
    "flows.masked_perceptron": constructed(flows.masked_perceptron, 3, 2),
    "flows.causal_transformer": constructed(flows.causal_transformer, 3, 2, 2),
    "flows.convolutional": constructed(flows.convolutional, (4, 4, 1), (4, 4, 2)),
    "flows.invertible_convolution": constructed(flows.invertible_convolution, 3),
    "flows.actnorm": lambda: lambda: flows.actnorm(3),
    "flows.lu_linear": lambda: lambda: flows.lu_linear(3),
    "flows.triangular": lambda: lambda: flows.triangular(3),
    "flows.affine": lambda: lambda: flows.affine(PAIR, 2.0),
    "flows.pointwise": lambda: (
        lambda: flows.pointwise((3,), flows.rational_quadratic())
    ),
    "tanh.forward": called(flows.tanh, "forward", PAIR),
    "sinh_arcsinh.inverse": called(flows.sinh_arcsinh, "inverse", PAIR),
    "logit.inverse_and_log_det": called(flows.logit, "inverse_and_log_det", PAIR),
    "lu_linear.forward_and_log_det": called(
        lambda: flows.lu_linear(2), "forward_and_log_det", PAIR
    ),
    "inverse of a chain": called(
        lambda: flows.inverse(flows.chain(flows.tanh(), flows.affine(PAIR))),
        "forward_and_log_det",
        0.5 * PAIR,
    ),
    "flow.log_prob": called(small_flow, "log_prob", PAIR),
    "flow.sample": called(small_flow, "sample", KEY),
    "flow.sample at a temperature": called(small_flow, "sample", KEY, 0.7),
    "flow.sample_and_log_prob": called(small_flow, "sample_and_log_prob", KEY),
    "flow.encode": called(small_flow, "encode", PAIR),
    "flow.decode": called(small_flow, "decode", PAIR),
    "glow.log_prob": called(small_glow, "log_prob", np.zeros((4, 4, 1), np.float32)),
    "glow.sample": called(small_glow, "sample", KEY),
    "flows.initialise": lambda: (
        lambda model: lambda: flows.initialise(model, np.eye(2, dtype=np.float32))
    )(small_flow()),
    "flows.interpolate": lambda: (
        lambda model: lambda: flows.interpolate(model, PAIR, -PAIR, PAIR)
    )(small_flow()),
    "flows.negative_log_likelihood": lambda: (
        lambda model: lambda: flows.negative_log_likelihood(model, PAIR[None])
    )(small_flow()),
    "flows.reverse_kl": called_on_a_flow(
        lambda flow: flows.reverse_kl(KEY, flow, quadratic, 4, path_gradient=True)
    ),
    "flows.importance_log_z": called_on_a_flow(
        lambda flow: flows.importance_log_z(KEY, flow, quadratic, 4)
    ),
    "flows.reflow_pairs": called_on_a_flow(
        lambda flow: flows.reflow_pairs(KEY, flow, 3)
    ),
    "flows.matching_loss": lambda: (
        lambda: flows.matching_loss(
            KEY, _half_of, flows.interpolant(), np.ones((4, 2), np.float32)
        )
    ),
    "flows.bridge_loss": lambda: (
        lambda: flows.bridge_loss(
            KEY,
            _half_of,
            flows.bridge(1.0),
            np.ones((4, 2), np.float32),
            noise=_half_of,
        )
    ),
    "flows.curvature": lambda: (
        lambda: flows.curvature(flows.continuous(_half_of, 4), PAIR)
    ),
    "flows.transport": lambda: (
        lambda: flows.transport(flows.continuous(_half_of, 4), PAIR)
    ),
    "flows.gaussian_interpolant": lambda: (
        lambda: flows.gaussian_interpolant(
            flows.bridge(1.0), [0.5, 1.0], [0.5, 1.0], "entropic"
        )
    ),
    "flows.transport_cost": lambda: (
        lambda: flows.transport_cost(np.ones((3, 2)), np.ones((4, 2)))
    ),
    "flows.sinkhorn_plan": lambda: lambda: flows.sinkhorn_plan(np.eye(3), 0.5),
    "vaes.priors.fitted_gaussian": lambda: (
        lambda: vaes.priors.fitted_gaussian(np.array([[0, 1], [1, 0], [2, 3.0]]))
    ),
    "flows.lattice_log_prob": lambda: (
        lambda model: lambda: flows.lattice_log_prob(KEY, model, PAIR, 0.5)
    )(small_flow()),
    "vaes.gaussian.elbo": bound("elbo"),
    "vaes.gaussian.importance_weighted_bound": bound(
        "importance_weighted_bound", samples=4
    ),
}

# ----------------------------------------------------------------------------- networks


def initialised(make, *arguments):
    """A row: the variables of a network made before the count."""
    return with_key(lambda key, network: network.init(key, *arguments), make)


_IMAGE = np.zeros((4, 4, 1), np.float32)
NETWORKS = {
    "MLP": initialised(lambda: networks.MLP(width=8, depth=1), PAIR, 0.5),
    "MLP with classes": initialised(
        lambda: networks.MLP(width=8, depth=1, num_classes=3), PAIR, 0.5, 1
    ),
    "DiT": initialised(
        lambda: networks.DiT(width=8, depth=1, heads=2, patch=2), _IMAGE, 0.5
    ),
    "UNet": initialised(
        lambda: networks.UNet(
            width=4, multipliers=(1,), blocks=1, attention_resolutions=(0,), heads=1
        ),
        _IMAGE,
        0.5,
    ),
    "EDM2": initialised(
        lambda: networks.EDM2(
            width=4,
            multipliers=(1,),
            blocks=1,
            attention_resolutions=(),
            head_channels=4,
        ),
        _IMAGE,
        0.5,
    ),
    "normalise_weights": lambda: (
        lambda: networks.normalise_weights({"weight": np.ones((3, 2), np.float32)})
    ),
    "TimeEmbedding": initialised(lambda: networks.TimeEmbedding(8), 0.5),
    "ConditionEmbedding": initialised(
        lambda: networks.ConditionEmbedding(8, num_classes=3), 1
    ),
    "FourierFeatures": initialised(lambda: networks.FourierFeatures(8), 0.5),
    "attention": lambda: lambda: networks.attention(*[np.ones((4, 2, 8))] * 3),
    "sinusoidal": lambda: lambda: networks.sinusoidal(0.3, 4),
    "fourier_inputs": lambda: lambda: networks.fourier_inputs(PAIR, 2),
    "flows.neural_velocity": constructed(flows.neural_velocity, (2,), 4, 1),
    "vaes.networks.Perceptron": initialised(
        lambda: vaes.networks.Perceptron((2, 3), 4, 1), PAIR
    ),
}

# ----------------------------------------------------------------------------- training


def training_problem():
    """(state, step, optimiser, batches) of four arrays of four shapes."""
    params = {
        "w": np.ones((4, 3)),
        "b": np.zeros(4),
        "c": np.ones((2, 2, 2), jnp.bfloat16),
        "d": np.ones(()),
    }
    params = jax.tree.map(
        lambda leaf: leaf if leaf.dtype == jnp.bfloat16 else leaf.astype(np.float32),
        params,
    )
    rule = training.optimiser(0.01, warmup_steps=5, total_steps=40, weight_decay=0.01)

    def loss(params, key, batch):
        return jnp.mean(
            (batch @ params["w"].T + params["b"] + params["d"] + params["c"].sum()) ** 2
        ), {}

    batches = training.Batches(np.ones((8, 3), np.float32), 2)
    return (
        training.init(jax.random.key(0), params, rule),
        training.make_step(loss, rule),
        rule,
        batches,
    )


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
            return training.fit(
                state,
                training.make_steps(step),
                batches,
                4,
                checkpoints=checkpoints,
                block=2,
                save_every=2,
            )

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
    return lambda: (
        training.replicate(state, mesh),
        training.shard_batch(batches.at(0), mesh),
    )


TRAINING = {
    "training.init": first_state,
    "training.make_step": first_step,
    "training.fit": in_a_folder(first_fit),
    "training.Checkpoints.restore_latest, load_ema": in_a_folder(first_restore),
    "training.replicate, shard_batch": on_a_mesh,
    "training.warmup_cosine": lambda: functools.partial(
        training.warmup_cosine(0.1, 3, 10, 0.5), 4
    ),
    "training.warmup_inverse_sqrt": lambda: functools.partial(
        training.warmup_inverse_sqrt(0.1, 3, 10), 40
    ),
    "training.ema_decay_at": lambda: functools.partial(training.ema_decay_at, 3, 0.9),
}

ROWS = (
    SCHEDULES_AND_GRIDS
    | TARGETS
    | SAMPLING
    | SOLVERS
    | CHAINS
    | GUIDANCE
    | LANGEVIN
    | FLOWS
    | NETWORKS
    | TRAINING
)


def programs_of_first_call(prepare):
    call = prepare()
    jax.clear_caches()
    with counted_programs() as programs:
        jax.block_until_ready(call())
    return programs


# Most of the time of these goes into large programs, whose own tests run them too.
LONG = {
    "optimised_grid",
    "EDM2",
    "integrate along a path",
    "langevin.thermodynamic_integration",
    "langevin.annealed_importance_sampling",
    "score of boxes",
    "ddpm.interpolate",
    "ddpm.two_variable_elbo",
    "ddpm.continuous_elbo",
    "ddpm.rate_distortion",
    "flows.lattice_log_prob",
    "training.fit",
    *(name for name in ROWS if name.startswith("divergences.fit")),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LONG else ())
        for name in ROWS
    ],
)
def test_a_first_call_compiles_few_programs(name):
    programs = programs_of_first_call(ROWS[name])
    assert len(programs) <= LIMIT, programs


def test_programs_are_counted():
    def prepare():
        x = np.linspace(0.0, 1.0, 7)
        return lambda: (jax.numpy.exp(x) + 1.5) * jax.numpy.sin(x)

    assert len(programs_of_first_call(prepare)) >= 4
