"""The solvers that tests run over, and Gaussians propagated exactly through them.

A new solver is one row here, and every theorem about solvers covers it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import solvers
from diffjax.solvers import driver, noise_source
from tests.families import quick

INTERVAL = solvers.eta_between(0.1, 2.0)
"""Noise in the middle of a run alone."""

# One row per solver: factory, order, evaluations on a grid of 4 steps, and on one of
# 4 steps whose last ends at 0.
DETERMINISTIC = {
    "euler": (solvers.euler, 1, 4, 4),
    "heun": (solvers.heun, 2, 8, 7),
    "midpoint": (solvers.midpoint, 2, 8, 7),
    "rk4": (solvers.rk4, 4, 16, 13),
    "ddim": (solvers.ddim, 1, 4, 4),
    "dpm_2": (solvers.dpm_2, 2, 8, 7),
    "dpm_solver(1)": (lambda: solvers.dpm_solver(1), 1, 4, 4),
    "dpm_solver(2)": (lambda: solvers.dpm_solver(2), 2, 8, 7),
    "dpm_solver(3)": (lambda: solvers.dpm_solver(3), 3, 12, 10),
    "exponential_runge_kutta(2)": (
        lambda: solvers.exponential_runge_kutta(2),
        2,
        8,
        7,
    ),
    "exponential_runge_kutta(3)": (
        lambda: solvers.exponential_runge_kutta(3),
        3,
        12,
        10,
    ),
    "exponential_runge_kutta(4)": (
        lambda: solvers.exponential_runge_kutta(4),
        4,
        16,
        13,
    ),
    "heunpp": (solvers.heunpp, 1, 12, 10),
    "dpmpp_2s": (solvers.dpmpp_2s, 2, 8, 7),
    "dpmpp_sde(0)": (lambda: solvers.dpmpp_sde(0.0), 2, 8, 7),
    "seeds(3, 0)": (lambda: solvers.seeds(3, 0.0), 3, 12, 10),
}
MULTISTEP = {
    "adams_bashforth(1)": (lambda: solvers.adams_bashforth(1), 1, 4, 4),
    "adams_bashforth(2)": (lambda: solvers.adams_bashforth(2), 2, 4, 4),
    "adams_bashforth(3)": (lambda: solvers.adams_bashforth(3), 3, 4, 4),
    "adams_bashforth(4)": (lambda: solvers.adams_bashforth(4), 4, 4, 4),
    "gradient_estimation": (solvers.gradient_estimation, 1, 4, 4),
    "gradient_estimation(1.5)": (lambda: solvers.gradient_estimation(1.5), 2, 4, 4),
    "ipndm(2)": (lambda: solvers.ipndm(2), 2, 4, 4),
    "ipndm(4)": (lambda: solvers.ipndm(4), 2, 4, 4),
    "deis(2)": (lambda: solvers.deis(2), 2, 4, 4),
    "deis(3)": (lambda: solvers.deis(3), 3, 4, 4),
    "deis(3, rho)": (lambda: solvers.deis(3, "rho"), 3, 4, 4),
    "deis(2, log_rho)": (lambda: solvers.deis(2, "log_rho"), 2, 4, 4),
    "deis(3, log_rho)": (lambda: solvers.deis(3, "log_rho"), 3, 4, 4),
    "dpmpp_2m": (solvers.dpmpp_2m, 2, 4, 4),
    "dpmpp_3m": (solvers.dpmpp_3m, 3, 4, 4),
    "dpmpp_3m(published)": (lambda: solvers.dpmpp_3m(corrected=False), 2, 4, 4),
    "er_sde(2, 0)": (lambda: solvers.er_sde(2, 0.0), 2, 4, 4),
    "er_sde(3, 0)": (lambda: solvers.er_sde(3, 0.0), 3, 4, 4),
    "er_sde(3, 0, published)": (lambda: solvers.er_sde(3, 0.0, False), 2, 4, 4),
    "unipc(1)": (lambda: solvers.unipc(1), 2, 4, 4),
    "unipc(2)": (solvers.unipc, 3, 4, 4),
    "unipc(2, bh1)": (lambda: solvers.unipc(2, "bh1"), 3, 4, 4),
    "unipc(3)": (lambda: solvers.unipc(3), 4, 4, 4),
    "sa_solver(3, 0, 0)": (lambda: solvers.sa_solver(3, 0, 0.0), 3, 4, 4),
    "sa_solver(3, 4, 0)": (lambda: solvers.sa_solver(3, 4, 0.0), 4, 4, 4),
}
STOCHASTIC = {
    "euler_maruyama": (solvers.euler_maruyama, 1, 4, 4),
    "reverse_diffusion": (solvers.reverse_diffusion, 1, 4, 4),
    "stochastic_heun": (solvers.stochastic_heun, 2, 8, 7),
    "sra1": (solvers.sra1, 2, 8, 7),
    "ddim(1)": (lambda: solvers.ddim(1.0), 1, 4, 4),
    "ddim(0.5)": (lambda: solvers.ddim(0.5), 1, 4, 4),
    "ddpm": (solvers.ddpm, 1, 4, 4),
    "ddpm(forward)": (lambda: solvers.ddpm("forward"), 1, 4, 4),
    "euler_ancestral": (solvers.euler_ancestral, 1, 4, 4),
    "dpm_2_ancestral": (solvers.dpm_2_ancestral, 2, 8, 7),
    "dpmpp_2s(1)": (lambda: solvers.dpmpp_2s(1.0), 2, 8, 7),
    "dpmpp_sde": (solvers.dpmpp_sde, 2, 8, 7),
    "dpmpp_2m_sde": (solvers.dpmpp_2m_sde, 2, 4, 4),
    "dpmpp_2m_sde(0.5)": (lambda: solvers.dpmpp_2m_sde(0.5), 2, 4, 4),
    "dpmpp_3m_sde": (solvers.dpmpp_3m_sde, 2, 4, 4),
    "sa_solver": (solvers.sa_solver, 2, 4, 4),
    "sa_solver(3, 4, 1)": (lambda: solvers.sa_solver(3, 4, 1.0), 2, 4, 4),
    "sa_solver(between)": (lambda: solvers.sa_solver(eta=INTERVAL), 2, 4, 4),
    "ddim(between)": (lambda: solvers.ddim(INTERVAL), 1, 4, 4),
    "er_sde": (solvers.er_sde, 2, 4, 4),
    "er_sde(1)": (lambda: solvers.er_sde(1), 1, 4, 4),
    "er_sde(2, 1)": (lambda: solvers.er_sde(2, 1.0), 2, 4, 4),
    "seeds(2, 0.5)": (lambda: solvers.seeds(2, 0.5), 2, 8, 7),
    "seeds(3)": (lambda: solvers.seeds(3), 2, 12, 10),
    "edm_stochastic": (
        lambda: solvers.edm_stochastic(churn=20.0, noise_scale=1.0),
        2,
        8,
        7,
    ),
}
FIXED = DETERMINISTIC | MULTISTEP | STOCHASTIC
ALL = {name: row[0] for name, row in FIXED.items()} | {
    "adaptive": solvers.adaptive,
    "adaptive_sde": solvers.adaptive_sde,
    "predictor_corrector": solvers.predictor_corrector,
    "annealed_langevin": lambda: solvers.annealed_langevin(3),
    "restart": lambda: solvers.restart(t_low=0.32, t_high=0.4),
    "picard": lambda: solvers.picard(tolerance=0.0),
}


CONSTRUCTIONS = (
    "heun",
    "dpm_solver(3)",
    "dpmpp_3m",
    "unipc(2)",
    "sa_solver",
    "stochastic_heun",
    "ddpm",
    "edm_stochastic",
    "adaptive",
    "restart",
)
"""A solver of each way to build one. The others are tested among the long proofs."""


NOISE_SLOTS = 3
"""The most draws per step of any solver here."""

GAUSSIAN = ([0.5, -1.0], [[0.6, 0.25], [0.25, 0.3]])
MIXTURE = (
    [0.3, 0.7],
    [[1.0, 0.5], [-0.5, 0.0]],
    [[[0.6, 0.2], [0.2, 0.4]], [[0.5, 0.0], [0.0, 0.8]]],
)


def gaussian():
    return dj.targets.gaussian(*GAUSSIAN)


def mixture():
    return dj.targets.gaussian_mixture(*MIXTURE)


def propagated_distribution(solver, schedule, target, grid, numbers=1, denoiser=None):
    """Exact mean and covariance at grid[-1] of a solver started exactly at grid[0].

    For a Gaussian target every step is affine in the state and in the noise. So the
    Jacobians of the whole run by its start and by all its noise give the distribution
    of its end exactly. `numbers` is how many numbers of the noise source a step uses.
    Another affine `denoiser`, or flow map, may take the place of the exact one.
    """
    denoiser = denoiser or dj.targets.denoiser(target, schedule)
    problem = solvers.diffusion(schedule, denoiser)
    noise = np.zeros((numbers * (grid.shape[0] - 1), NOISE_SLOTS, 2), grid.dtype)
    return _propagated(
        solver, problem, _noised_moments(target, schedule, grid[0]), grid, noise
    )


@quick
def _noised_moments(target, schedule, t):
    noised = target.noised(schedule, t)
    return noised.mean(), noised.covariance()


@functools.partial(quick, static_argnums=0)
def _propagated(solver, problem, moments, grid, noise):
    def end(x, noise):
        return driver.run(
            noise_source.Source(lambda step, draw: noise[step, draw]),
            solver,
            problem,
            x=x,
            ts=grid,
            path=False,
        )[0]

    mean, covariance = moments
    by_start, by_noise = jax.jacfwd(end, argnums=(0, 1))(mean, noise)
    by_noise = by_noise.reshape(2, -1)
    return end(mean, noise), by_start @ covariance @ by_start.T + by_noise @ by_noise.T


def assert_moments(samples, mean, covariance, sigmas=4.0):
    """Sample mean and covariance of a Gaussian within `sigmas` standard errors.

    These are √(C_ii/n) and √((C_ii C_jj + C_ij²)/n).
    """
    n = samples.shape[0]
    variances = np.diag(covariance)
    mean_error = np.abs(np.mean(samples, 0) - mean) / np.sqrt(variances / n)
    spread = np.sqrt((np.outer(variances, variances) + np.asarray(covariance) ** 2) / n)
    covariance_error = np.abs(np.cov(np.asarray(samples).T) - covariance) / spread
    assert np.max(mean_error) < sigmas, f"mean is off by {mean_error} standard errors"
    assert np.max(covariance_error) < sigmas, (
        f"covariance is off by {covariance_error} standard errors"
    )


def check_samples_are_propagated(solver, schedule, steps, count, numbers=1):
    target = gaussian()
    grid = dj.grids.log_snr(schedule, steps)
    mean, covariance = propagated_distribution(solver, schedule, target, grid, numbers)
    denoiser = dj.targets.denoiser(target, schedule)
    moments = _noised_moments(target, schedule, schedule.t_max)
    start = (
        np.random.default_rng(0)
        .multivariate_normal(*map(np.asarray, moments), count)
        .astype(np.float32)
    )
    samples = dj.sample_many(
        jax.random.key(2),
        count,
        denoiser,
        schedule,
        solver=solver,
        grid=grid,
        x_init=start,
    )
    assert_moments(samples, np.asarray(mean), np.asarray(covariance))


def network(dtype):
    """A denoiser of eight entries: a random network of two layers, as a pytree."""
    rng = np.random.default_rng(0)
    weights = [
        (rng.normal(size=shape) / np.sqrt(shape[0])).astype(dtype)
        for shape in ((10, 64), (64, 64), (64, 8))
    ]

    def denoise(weights, x, t):
        h = jnp.concatenate([x, jnp.stack([jnp.log(t + 1e-3), 10 * t])])
        return jnp.tanh(jnp.tanh(h @ weights[0] * 1.5) @ weights[1] * 1.5) @ weights[2]

    return jax.tree_util.Partial(denoise, weights)


ADAPTIVE = {
    "adaptive": lambda: solvers.adaptive(1e-3, 1e-3),
    "adaptive_sde": solvers.adaptive_sde,
}
