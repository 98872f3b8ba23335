"""Where a solver steps: every grid falls strictly between exact ends, by its stated formula, on every schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import SCHEDULES, Bare, ddpm_betas

from diffjax import grids, schedules

EPS32, EPS64 = float(np.finfo(np.float32).eps), float(np.finfo(np.float64).eps)

GRIDS = {
    "uniform": (grids.uniform, lambda schedule, t: t),
    "quadratic": (grids.quadratic, lambda schedule, t: jnp.sqrt(t)),
    "log_snr": (grids.log_snr, schedules.log_snr),
    "karras": (grids.karras, lambda schedule, t: jnp.exp(-schedules.log_snr(schedule, t) / 14)),
    "karras, rho=3": (
        lambda schedule, steps: grids.karras(schedule, steps, rho=3.0),
        lambda schedule, t: jnp.exp(-schedules.log_snr(schedule, t) / 6),
    ),
}
"""name -> (grid, the quantity of t in which its times are equally spaced)."""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", GRIDS)
def test_equally_spaced_in_its_own_quantity(name, schedule, x64):
    """steps + 1 decreasing times from t_max to t_min exactly, equally spaced in t, √t, λ or (σ/α)^{1/ρ}."""
    make, quantity = GRIDS[name]
    schedule = SCHEDULES[schedule]()
    ts = make(schedule, 12)
    assert ts.shape == (13,) and float(ts[0]) == float(schedule.t_max) and float(ts[-1]) == float(schedule.t_min)
    assert np.all(np.diff(ts) < 0)
    values = quantity(schedule, ts)
    np.testing.assert_allclose(values, np.linspace(values[0], values[-1], 13), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", GRIDS)
def test_a_thousand_float32_steps_repeat_no_time(name, schedule):
    """Rounded to float32, 1001 times are still distinct and inside the interval: `check` accepts each grid."""
    schedule = SCHEDULES[schedule]()
    ts = GRIDS[name][0](schedule, 1000)
    assert ts.dtype == jnp.float32 and np.all(np.diff(ts) < 0)
    np.testing.assert_array_equal(grids.check("ts", ts, schedule), ts)


@pytest.mark.parametrize("name", GRIDS)
def test_one_step_is_the_two_ends(name):
    schedule = schedules.vp_cosine()
    np.testing.assert_array_equal(GRIDS[name][0](schedule, 1), np.float32([schedule.t_max, schedule.t_min]))


def test_karras_on_edm_is_the_papers(x64):
    """Karras et al. 2022, eq. 5 with σ = t: defaults 0.002, 80, ρ = 7."""
    n = 18
    expected = (80 ** (1 / 7) + np.arange(n) / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grids.karras(schedules.edm(), n - 1), expected, rtol=1e-12)


def test_grids_under_a_traced_schedule():
    """Built under vmap over beta_max, each grid is that of its schedule, with the implicit inverse as well."""
    betas = jnp.array([5.0, 20.0])
    for make in (grids.log_snr, grids.karras, grids.uniform):
        together = jax.jit(jax.vmap(lambda b: make(Bare(schedules.vp_linear(beta_max=b)), 4)))(betas)  # noqa: B023
        apart = [make(schedules.vp_linear(beta_max=float(b)), 4) for b in betas]
        # rounding of λ ≤ 14 over λ′ t ≥ 1, a few operations
        np.testing.assert_allclose(together, apart, rtol=64 * EPS32)


def test_from_indices_are_the_chains_times(x64):
    """index / T, in float64 exactly as the table has them, whatever the stride."""
    schedule = schedules.from_betas(ddpm_betas())
    indices = np.arange(1000, 0, -37)
    np.testing.assert_array_equal(grids.from_indices(schedule, indices), schedule.times[indices - 1])


def test_to_zero_appends_the_zero_end():
    """The extended grid is accepted where a zero end is, refused elsewhere and when it rises."""
    schedule = schedules.edm()
    ts = grids.to_zero(grids.karras(schedule, 4))
    assert ts.shape == (6,) and float(ts[-1]) == 0
    np.testing.assert_array_equal(ts[:-1], grids.karras(schedule, 4))
    np.testing.assert_array_equal(grids.check("ts", ts, schedule, zero_end=True), ts)
    with pytest.raises(ValueError, match="ts must lie in the schedule's interval"):
        grids.check("ts", ts, schedule)
    with pytest.raises(ValueError, match="ts must lie in the schedule's interval"):
        grids.check("ts", ts[::-1], schedule, zero_end=True)


def test_check_accepts_either_direction_and_promotes():
    schedule = schedules.vp_linear()
    up = grids.check("ts", [0.1, 0.5, 1.0], schedule)
    assert up.dtype == jnp.float32
    np.testing.assert_array_equal(grids.check("ts", up[::-1], schedule), up[::-1])
    with jax.enable_x64(True):
        assert grids.check("ts", np.float32([0.5, 0.1]), schedule).dtype == jnp.float64


def test_check_lets_traced_times_through_by_shape():
    check = jax.jit(lambda ts: grids.check("ts", ts, schedules.edm()))
    np.testing.assert_array_equal(check(jnp.array([1.0, 1.0])), [1.0, 1.0])
    with pytest.raises(ValueError, match="at least one step"):
        check(jnp.ones(1))


VP, CHAIN = schedules.vp_linear(), schedules.from_betas(ddpm_betas())
REFUSED = {
    "turns back": (
        lambda: grids.check("ts", [1.0, 0.5, 0.7], VP),
        ValueError,
        "ts must be strictly monotone, but turns back at 1: 0.5 then 0.7",
    ),
    "repeats": (
        lambda: grids.check("ts", [1.0, 0.5, 0.5], VP),
        ValueError,
        "ts must be .*repeats a time at 1: 0.5 then 0.5",
    ),
    "starts equal": (lambda: grids.check("ts", [0.5, 0.5], VP), ValueError, "repeats a time at 0"),
    "above": (
        lambda: grids.check("ts", [1.5, 0.5], VP),
        ValueError,
        r"ts must lie in the schedule's interval \[1e-05, 1.0\], got 1.5",
    ),
    "below": (lambda: grids.check("ts", [1.0, 1e-6], VP), ValueError, "ts must lie in the schedule's interval"),
    "negative": (lambda: grids.check("ts", [1.0, -1.0], VP, zero_end=True), ValueError, "got -1.0"),
    "NaN": (lambda: grids.check("ts", [1.0, np.nan], VP), ValueError, "ts must be finite, got 1 NaN"),
    "short": (lambda: grids.check("ts", [1.0], VP), ValueError, r"ts must have shape \(steps \+ 1,\) .*got \(1,\)"),
    "rank": (lambda: grids.check("ts", np.ones((2, 2)), VP), ValueError, r"ts must have shape .*got \(2, 2\)"),
    "no steps": (lambda: grids.uniform(VP, 0), ValueError, "steps must be at least 1, got 0"),
    "part of a step": (lambda: grids.uniform(VP, 2.5), TypeError, "steps must be an integer, got 2.5"),
    "rho": (lambda: grids.karras(VP, 4, rho=0.0), ValueError, "rho must be positive, got 0"),
    "no signal, karras": (
        lambda: grids.karras(schedules.rectified_flow(t_max=1.0), 4),
        ValueError,
        "finite log-SNR at both ends",
    ),
    "no signal, log_snr": (lambda: grids.log_snr(schedules.rectified_flow(t_max=1.0), 4), ValueError, "t_max=1.0"),
    "no schedule": (lambda: grids.uniform(3.0, 4), TypeError, "schedule must have alpha"),
    "no chain": (
        lambda: grids.from_indices(VP, [2, 1]),
        TypeError,
        "schedules.from_betas to have indices, got VPLinear",
    ),
    "no integers": (
        lambda: grids.from_indices(CHAIN, [2.0, 1.0]),
        TypeError,
        "indices must be integers, got dtype float64",
    ),
    "rising": (lambda: grids.from_indices(CHAIN, [1, 2]), ValueError, "indices must be a decreasing sequence"),
    "index 0": (lambda: grids.from_indices(CHAIN, [1, 0]), ValueError, "indices must lie in 1 … 1000, got 1 … 0"),
    "index 1001": (lambda: grids.from_indices(CHAIN, [1001, 1]), ValueError, "indices must lie in 1 … 1000, got 1001"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
