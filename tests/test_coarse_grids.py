"""Few steps on uneven grids: no multistep method errs much more than DDIM,
which extrapolates nothing.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, schedules, solvers, targets
from diffjax.grids.steps import NoiseLevel, Steps
from diffjax.solvers.interpolation import (
    LONGEST,
    OVERSHOOT,
    REACH,
    adams,
    decaying_moments,
    in_log_ratio,
)
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
    "polyexponential": lambda schedule, steps: grids.polyexponential(
        schedule, steps, 1.5
    ),
    "angular": grids.angular,
    "align_your_steps": grids.align_your_steps,
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
    "er_sde(3, 0)": solvers.er_sde(3, 0.0),
}
PUBLISHED = {
    "deis(3)": solvers.deis(3, guarded=False),
    "adams_bashforth(3)": solvers.adams_bashforth(3, guarded=False),
    "adams_bashforth(4)": solvers.adams_bashforth(4, guarded=False),
    "ipndm(4)": solvers.ipndm(4, guarded=False),
}
MIXTURES = (
    targets.gaussian_mixture(
        [0.2, 0.3, 0.5],
        [[1.0, 0.5], [-0.5, 0.0], [0.3, -1.2]],
        [[0.55, 0.45], [0.45, 0.63], [0.32, 0.32]],
    ),
    targets.gaussian_mixture(
        [0.3, 0.5, 0.2], [[-8.0, 0.0], [8.0, 1.0], [0.0, 5.0]], np.full((3, 2), 0.5)
    ),
    targets.gaussian_mixture([0.5, 0.5], [[-1.0], [1.0]], [[0.1], [0.1]]),
)
"""Overlapping components, some 16 standard deviations apart, and two narrow
modes.
"""


@functools.partial(quick, static_argnums=0)
def ends(solver, schedule, target, starts, ts):
    """The ends (G, S, D) of runs from starts (G, S, D) over grids (G, N + 1)."""
    problem = solvers.diffusion(schedule, targets.denoiser(target, schedule))

    def run(grid, starts):
        return jax.vmap(
            lambda x: solvers.integrate(None, solver, problem, x=x, ts=grid)
        )(starts)

    return jax.lax.map(lambda pair: run(*pair), (ts, starts))


@quick
def draws(target, schedule, times, key):
    """256 draws of p_t at each of the times (G,) from the same noise, (G, 256, D)."""
    keys = jax.random.split(key, 256)
    return jax.vmap(lambda t: jax.vmap(target.noised(schedule, t).sample)(keys))(times)


@functools.cache
def problem(schedule_name, number, steps):
    """Schedule, target, starts, ends of their exact flow, grids by name as one
    array, and DDIM's errors on them.
    """
    schedule, target = SCHEDULES[schedule_name](), MIXTURES[number]
    ts = jnp.stack([jnp.asarray(grid(schedule, steps)) for grid in GRIDS.values()])
    starts = draws(target, schedule, ts[:, 0], jax.random.key(3))
    spans, first, of = np.unique(
        np.asarray(ts[:, [0, -1]]), axis=0, return_index=True, return_inverse=True
    )
    exact = ends(
        solvers.adaptive(1e-9, 1e-9, max_steps=20_000),
        schedule,
        target,
        starts[first],
        jnp.asarray(spans),
    )[of]
    return (
        schedule,
        target,
        starts,
        exact,
        ts,
        errors(solvers.ddim(), schedule, target, starts, ts, exact),
    )


def errors(solver, schedule, target, starts, ts, exact):
    return np.sqrt(
        np.mean(
            np.asarray(ends(solver, schedule, target, starts, ts) - exact) ** 2,
            axis=(1, 2),
        )
    )


CASES = [
    pytest.param(
        name,
        12,
        marks=() if name == "unipc(3)" else pytest.mark.slow,
    )
    for name in EXTRAPOLATING
] + [
    pytest.param(name, steps, marks=pytest.mark.slow)
    for name in EXTRAPOLATING
    for steps in (6, 8, 16)
]


@pytest.mark.parametrize("name, steps", CASES)
@pytest.mark.parametrize("schedule_name", every(SCHEDULES, ("vp_linear",)))
def test_no_extrapolation_costs_more_than_half_of_ddims_error(
    name, steps, schedule_name, x64
):
    """At most 1.5 times the error of DDIM on every standard grid.

    Without a bound on how far back a step looks the ratios reach 7 (dpmpp_2m)
    and 96 (dpmpp_3m), on grids whose last step in λ is many times longer than
    the one before.
    """
    for number in range(len(MIXTURES)):
        schedule, target, starts, exact, ts, ddim = problem(
            schedule_name, number, steps
        )
        ratio = errors(EXTRAPOLATING[name], schedule, target, starts, ts, exact) / ddim
        ratios = {
            grid: round(float(r), 2) for grid, r in zip(GRIDS, ratio, strict=True)
        }
        assert np.all(ratio < 1.5), (number, ratios)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_methods_in_t_and_rho_have_no_bound(name, x64):
    """Two narrow modes and 12 uniform steps cost them more than 1.5 times
    DDIM's error.
    """
    schedule, target, starts, exact, ts, ddim = problem("vp_linear", 2, 12)
    assert (
        errors(PUBLISHED[name], schedule, target, starts[:1], ts[:1], exact[:1])[0]
        > 1.5 * ddim[0]
    )


def test_the_published_methods_extrapolate_over_any_step(x64):
    """The fault that the bound is for: 12 uniform steps, the last of which is
    30 times longer in λ than its part.
    """
    schedule, target, starts, exact, ts, ddim = problem("vp_linear", 0, 12)
    published = errors(
        solvers.dpmpp_3m(guarded=False), schedule, target, starts[:1], ts[:1], exact[:1]
    )
    assert published[0] > 5 * ddim[0]


def gains_of_last_step(positions, depth=3):
    positions = jnp.asarray(positions)
    ends = [
        NoiseLevel(None, None, None, jnp.exp(-at))
        for at in (positions[:-1], positions[1:])
    ]
    bounds, lengths = in_log_ratio(Steps(*ends, None)), jnp.diff(positions)
    moments = lambda n, steps: decaying_moments(lengths[steps], n)
    return np.stack(adams(positions, depth, moments, bounds=bounds))[:, -1]


def test_a_step_uses_the_outputs_that_the_bounds_allow(x64):
    """By distance from the end of a step at most π/2, by its length π/4, and
    by the weights of the earlier outputs.
    """
    cases = (
        ([0.0, 0.5, 1.0, 1.5], 3),
        ([0.0, 0.5, 1.0, 1.6], 2),  # 1.6 > π/2
        ([0.0, 0.5, 1.0, 1.78], 2),
        ([0.0, 0.5, 1.0, 1.79], 1),  # 0.79 > π/4
        ([0.0, 0.1, 0.2, 0.5], 1),  # weights of 3.8, then of 1.6
        ([0.0, 0.1, 0.3, 0.5], 3),
    )
    for positions, used in cases:
        gains = gains_of_last_step(positions)
        assert [bool(gain != 0) for gain in gains] == [j < used for j in range(3)], (
            positions
        )
        np.testing.assert_allclose(
            gains.sum(), -np.expm1(positions[-2] - positions[-1]), rtol=1e-12
        )  # constants


def test_a_jump_of_the_outputs_costs_no_more_than_the_bound_on_their_weights(x64):
    """Outputs 0 that jump to 1 and stay there: every monotone sequence is a
    mean of such, and of jumps still to come.
    """
    rng, worst = np.random.default_rng(0), 0.0
    for _ in range(50):
        positions = np.concatenate([[0.0], np.cumsum(np.exp(rng.normal(-2.0, 1.0, 3)))])
        gains = gains_of_last_step(positions)
        for since in (1, 2):  # outputs after the jump
            mean = gains[:since].sum() / gains.sum()
            worst = max(worst, abs(1 - mean))
    assert 1.2 < worst <= OVERSHOOT


def test_the_denoiser_of_a_gaussian_has_its_poles_where_the_bound_says():
    """Taylor coefficients in λ of p = s²/(s² + ρ²) at ρ = s: the root of their
    ratio is the radius of convergence.

    dp/dλ = 2p(1 − p), so that every derivative is a polynomial in p, to be
    read at p = ½. Even ones vanish there.
    """
    p, rate = np.polynomial.Polynomial([0, 1]), np.polynomial.Polynomial([0, 2, -2])
    coefficients = []
    for k in range(1, 18):
        p = p.deriv() * rate
        coefficients.append(p(0.5) / math.factorial(k))
    odd = np.abs(coefficients[::2])
    np.testing.assert_allclose(np.sqrt(odd[-2] / odd[-1]), REACH, rtol=1e-6)


def test_the_denoiser_of_two_atoms_has_its_poles_where_the_bound_says():
    """tanh(c e^{2λ}) grows without bound at λ + iπ/4 with c e^{2λ} = π/2,
    beside every point of the real axis for one c.
    """
    for log_scale in (-1.0, 0.0, 2.0):
        pole = 0.5 * np.log(0.5 * np.pi) - 0.5 * log_scale
        near = [
            np.abs(np.tanh(np.exp(log_scale + 2 * (pole + 1j * (LONGEST - gap)))))
            for gap in (1e-3, 1e-6)
        ]
        np.testing.assert_allclose(near[1] / near[0], 1e3, rtol=1e-2)  # a simple pole
