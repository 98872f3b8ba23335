"""Few steps on uneven grids: no multistep method errs much more than DDIM, which extrapolates nothing."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, schedules, solvers, targets
from diffjax.solvers.affine import REACH, adams, decaying_moments
from tests.families import every, quick

SCHEDULES = {
    "vp_linear": lambda: schedules.vp_linear(t_min=1e-3),
    "edm": schedules.edm,
    "rectified_flow": schedules.rectified_flow,
}
GRIDS = {
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
    "log_snr": grids.log_snr,
    "karras": grids.karras,
    "karras(3)": lambda schedule, steps: grids.karras(schedule, steps, 3.0),
    "polyexponential": lambda schedule, steps: grids.polyexponential(schedule, steps, 1.5),
}
EXTRAPOLATING = {
    "dpmpp_2m": solvers.dpmpp_2m(),
    "dpmpp_3m": solvers.dpmpp_3m(),
    "unipc(2)": solvers.unipc(2),
    "unipc(3)": solvers.unipc(3),
    "sa_solver(3, 4, 0)": solvers.sa_solver(3, 4, 0.0),
    "deis(3, log_rho)": solvers.deis(3, "log_rho"),
    "deis(3)": solvers.deis(3),
    "adams_bashforth(3)": solvers.adams_bashforth(3),
    "adams_bashforth(4)": solvers.adams_bashforth(4),
    "ipndm(4)": solvers.ipndm(4),
}
MIXTURES = targets.gaussian_mixture(
    [0.2, 0.3, 0.5], [[1.0, 0.5], [-0.5, 0.0], [0.3, -1.2]], [[0.55, 0.45], [0.45, 0.63], [0.32, 0.32]]
), targets.gaussian_mixture([0.3, 0.5, 0.2], [[-8.0, 0.0], [8.0, 1.0], [0.0, 5.0]], np.full((3, 2), 0.5))  # fmt: skip
"""Overlapping components, and some that lie 16 standard deviations apart."""


@functools.partial(quick, static_argnums=0)
def ends(solver, schedule, target, starts, ts):
    """Where the solver takes the starts (S, 2) on each of the grids (G, N + 1); (G, S, 2)."""
    problem = solvers.diffusion(schedule, targets.denoiser(target, schedule))
    run = lambda grid: jax.vmap(lambda x: solvers.integrate(None, solver, problem, x, grid))(starts)  # noqa: E731
    return jax.lax.map(run, ts)


@functools.cache
def problem(schedule_name, number, steps):
    """Schedule, target, starts, ends of their exact flow, grids by name as one array, and DDIM's errors on them."""
    schedule, target = SCHEDULES[schedule_name](), MIXTURES[number]
    law = target.noised(schedule, schedule.t_max)
    starts = quick(jax.vmap(law.sample))(jax.random.split(jax.random.key(3), 64))
    whole = jnp.asarray([[schedule.t_max, schedule.t_min]])
    exact = ends(solvers.adaptive(1e-9, 1e-9, max_steps=20_000), schedule, target, starts, whole)[0]
    ts = jnp.stack([jnp.asarray(grid(schedule, steps)) for grid in GRIDS.values()])
    return schedule, target, starts, exact, ts, errors(solvers.ddim(), schedule, target, starts, ts, exact)


def errors(solver, schedule, target, starts, ts, exact):
    return np.sqrt(np.mean(np.asarray(ends(solver, schedule, target, starts, ts) - exact) ** 2, axis=(1, 2)))


CASES = [
    pytest.param(name, 12, marks=() if name in ("dpmpp_2m", "dpmpp_3m", "unipc(3)") else pytest.mark.slow)
    for name in EXTRAPOLATING
] + [pytest.param(name, steps, marks=pytest.mark.slow) for name in EXTRAPOLATING for steps in (6, 8, 16)]


@pytest.mark.parametrize("name, steps", CASES)
@pytest.mark.parametrize("schedule_name", every(SCHEDULES, ("vp_linear",)))
def test_no_extrapolation_costs_more_than_half_of_ddims_error(name, steps, schedule_name, x64):
    """At most 1.5 times the error of DDIM on every standard grid.

    Without a bound on how far back a step looks the ratios reach 7 (dpmpp_2m) and 96 (dpmpp_3m), on grids whose last
    step in λ is many times longer than the one before.
    """
    for number in range(len(MIXTURES)):
        schedule, target, starts, exact, ts, ddim = problem(schedule_name, number, steps)
        ratio = errors(EXTRAPOLATING[name], schedule, target, starts, ts, exact) / ddim
        assert np.all(ratio < 1.5), dict(zip(GRIDS, ratio, strict=True))


def test_the_published_methods_extrapolate_over_any_step(x64):
    """The fault that the bound is for: 12 uniform steps, the last of which is 30 times longer in λ than its part."""
    schedule, target, starts, exact, ts, ddim = problem("vp_linear", 0, 12)
    published = errors(solvers.dpmpp_3m(guarded=False), schedule, target, starts, ts[:1], exact)
    assert published[0] > 5 * ddim[0]


def test_a_step_uses_the_outputs_within_reach(x64):
    """Of outputs at λ = 0, 0.5, 1.0 a step to 1.5 uses all, one to 2 the last two, one to 3 the last alone."""
    for end, used in ((1.5, 3), (2.0, 2), (3.0, 1)):
        positions = jnp.asarray([0.0, 0.5, 1.0, end])
        lengths = jnp.diff(positions)
        gains = adams(positions, 3, lambda n, steps, h=lengths: decaying_moments(h[steps], n), reach=REACH)
        assert [bool(gain[-1] != 0) for gain in gains] == [j < used for j in range(3)]
        total = sum(gain[-1] for gain in gains)
        np.testing.assert_allclose(total, -np.expm1(-(end - 1.0)), rtol=1e-12)  # constants are kept


def test_the_denoiser_of_a_gaussian_has_its_poles_where_the_bound_says():
    """Taylor coefficients in λ of p = s²/(s² + ρ²) at ρ = s: the root of their ratio is the radius of convergence.

    dp/dλ = 2p(1 − p), so that every derivative is a polynomial in p, to be read at p = ½. Even ones vanish there.
    """
    p, rate = np.polynomial.Polynomial([0, 1]), np.polynomial.Polynomial([0, 2, -2])
    coefficients = []
    for k in range(1, 18):
        p = p.deriv() * rate
        coefficients.append(p(0.5) / math.factorial(k))
    odd = np.abs(coefficients[::2])
    np.testing.assert_allclose(np.sqrt(odd[-2] / odd[-1]), REACH, rtol=1e-6)
