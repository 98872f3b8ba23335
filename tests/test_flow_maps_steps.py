"""Samples of 1, 2 and 4 steps of a flow map, of a wrong one and of the exact one."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from tests.families import every
from tests.solver_members import gaussian, propagated_distribution

SCHEDULES = {
    "flow": dj.schedules.rectified_flow(),
    "vp": dj.schedules.vp_linear(),
    "edm": dj.schedules.edm(0.01, 20.0),
}
STRETCH, SHIFT = 0.03, 0.05
"""The wrong map stretches by 1 + STRETCH, and shifts by SHIFT standard deviations."""


def grid_of(schedule, steps):
    return dj.grids.log_snr(schedule, steps)


@functools.cache
def principal():
    """Variances of the data along its principal axes, and the axes."""
    values, axes = np.linalg.eigh(gaussian().covariance())
    return values, axes


def variances(schedule, t):
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    return alpha**2 * principal()[0] + sigma**2


def wrong_map(schedule):
    """The exact map, stretched about the mean and shifted along both axes."""
    exact, mean = dj.targets.flow_map(gaussian(), schedule), gaussian().mean()
    values, axes = (jnp.asarray(array) for array in principal())

    def m(x, t, s):
        centre = schedule.alpha(s) * mean
        stds = jnp.sqrt(schedule.alpha(s) ** 2 * values + schedule.sigma(s) ** 2)
        shift = SHIFT * axes @ stds
        return centre + (1 + STRETCH) * (exact(x, t, s) - centre) + shift

    return m


def moments_after(schedule, grid, gamma):
    """Along each axis: variance over the exact one, and offset in exact deviations.

    With γ = 1 a step goes to the end e of the grid and back to s. Of the variance at
    s the share that comes from the end is

        c = (α_s/α_e)² V_e/V_s

    so that of an error in the end's variance c is left, and √c of one in its mean. With
    γ = 0 all of it is left: c = 1.
    """
    end = float(grid[-1])
    ratio, offset = np.ones(2), np.zeros(2)
    for s in map(float, grid[1:]):
        ratio = (1 + STRETCH) ** 2 * ratio
        offset = (1 + STRETCH) * offset + SHIFT
        if gamma and s > end:
            back = float(schedule.alpha(s)) / float(schedule.alpha(end))
            share = back**2 * variances(schedule, end) / variances(schedule, s)
            ratio, offset = 1 + share * (ratio - 1), np.sqrt(share) * offset
    return ratio, offset


def divergence(ratio, offset):
    """KL of N(offset, ratio) from N(0, 1) along each axis, added up, in nats."""
    return 0.5 * np.sum(ratio + offset**2 - 1 - np.log(ratio))


ROWS = {"flow": "`rectified_flow`", "vp": "`vp_linear`", "edm": "`edm(0.01, 20.0)`"}


def documented(schedule, gamma):
    """The nats of 1, 2 and 4 steps in docs/pages/flow_maps.md."""
    row = f"| γ = 1, {ROWS[schedule]} |" if gamma else "| γ = 0, every schedule |"
    text = (
        pathlib.Path(__file__).parents[1] / "docs" / "pages" / "flow_maps.md"
    ).read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(row)]
    return [float(cell) for cell in line.split("|")[2:-1]]


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("schedule", every(SCHEDULES, ("flow",)))
def test_a_wrong_map_errs_by_the_divergence_of_its_steps(schedule, gamma, x64):
    """Exact propagation gives the KL of the recursion, for 1, 2 and 4 steps.

    Without new noise the errors of n steps add up, to n times the stretch and the shift
    in the first order, so that the KL grows as n². With noise they are forgotten in
    part: n steps err less. The documentation has these numbers to two digits.
    """
    chosen, target = SCHEDULES[schedule], gaussian()
    solver, m = dj.solvers.flow_map(gamma), wrong_map(chosen)
    variance = variances(chosen, chosen.t_min)
    mean = float(chosen.alpha(chosen.t_min)) * np.asarray(target.mean())
    _, axes = principal()
    nats = {}
    for steps in (1, 2, 4):
        grid = grid_of(chosen, steps)
        end, covariance = propagated_distribution(
            solver, chosen, target, grid, denoiser=m
        )
        turned = axes.T @ np.asarray(covariance) @ axes / variance
        np.testing.assert_allclose(turned[0, 1] * variance[0], 0, atol=1e-9)
        measured = (
            np.diag(turned),
            axes.T @ (np.asarray(end) - mean) / np.sqrt(variance),
        )
        expected = moments_after(chosen, grid, gamma)
        for ours, theirs in zip(measured, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        nats[steps] = divergence(*measured)
    first = 2 * (STRETCH**2 + 0.5 * SHIFT**2)  # two axes
    np.testing.assert_allclose(nats[1], first, rtol=2 * STRETCH)
    assert [float(f"{value:.2g}") for value in nats.values()] == documented(
        schedule, gamma
    )
    if not gamma:
        # The next order of n stretches and shifts is n STRETCH of it, for each factor.
        for steps in (2, 4):
            bound = 2 * steps * STRETCH
            np.testing.assert_allclose(nats[steps] / first, steps**2, rtol=bound)


# ------------------------------------------------------------- the exact map of modes

MODES = ([0.4, 0.6], [[-1.0], [0.8]], [0.3, 0.5])


def modes():
    return dj.targets.gaussian_mixture(*MODES)


def share_below(points, t, schedule):
    """The distribution function of the noised mixture, closed form."""
    weights, means, stds = (np.asarray(part) for part in MODES)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    spread = np.sqrt((alpha * stds) ** 2 + sigma**2)
    z = (points[:, None] - alpha * means[:, 0]) / spread
    return np.asarray(jax.scipy.stats.norm.cdf(z)) @ weights


def samples_of(schedule, steps, gamma, count):
    target = modes()
    keys = jax.random.split(jax.random.key(3), count)
    x = jax.vmap(target.noised(schedule, schedule.t_max).sample)(keys)
    exact = dj.targets.flow_map(target, schedule)
    settings = {"solver": dj.solvers.flow_map(gamma), "x_init": x}
    grid = grid_of(schedule, steps)
    key = jax.random.key(4)
    return x, np.asarray(
        dj.sample_many(key, count, exact, schedule, grid=grid, **settings)
    )


@pytest.mark.parametrize("steps", every([1, 2, 4], (2,)))
def test_the_exact_map_of_modes_leads_to_one_end_in_any_number_of_steps(steps, x64):
    """The root mean square distance from the quantiles' coupling is that of rounding.

    In one dimension the flow keeps the order, so that the exact end of x has the share
    of p below it that x has. The ends are of size 1, the map is solved to 1e-12, and
    the share of a start is lost by 1e-16 over a density of 1e-3 at the outermost of 64.
    """
    schedule = SCHEDULES["flow"]
    x, ends = samples_of(schedule, steps, 0.0, 64)
    shares = [
        share_below(np.asarray(points)[:, 0], t, schedule)
        for points, t in ((x, schedule.t_max), (ends, schedule.t_min))
    ]
    assert np.sqrt(np.mean((shares[1] - shares[0]) ** 2)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_exact_map_of_modes_with_new_noise_samples_the_mixture(steps, x64):
    """The share of samples below nine points is exact within 4 standard errors."""
    schedule, count = SCHEDULES["flow"], 2000
    _, ends = samples_of(schedule, steps, 1.0, count)
    points = np.linspace(-1.4, 1.6, 9)
    exact = share_below(points, schedule.t_min, schedule)
    shares = np.mean(ends < points, 0)
    errors = np.sqrt(exact * (1 - exact) / count)
    assert np.max(np.abs(shares - exact) / errors) < 4
