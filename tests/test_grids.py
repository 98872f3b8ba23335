"""Where a solver steps: every grid falls strictly between exact ends, by its
stated formula, on every schedule.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax import grids, schedules
from tests.families import (
    DISTINCT,
    EPS32,
    SCHEDULES,
    Bare,
    assert_raises,
    ddpm_betas,
    every,
    quick,
)

GRIDS = {
    "uniform": (grids.uniform, lambda schedule, t: t),
    "quadratic": (grids.quadratic, lambda schedule, t: jnp.sqrt(t)),
    "log_snr": (grids.log_snr, schedules.log_snr),
    "exponential": (
        grids.exponential,
        lambda schedule, t: jnp.log(schedule.sigma(t)) - jnp.log(schedule.alpha(t)),
    ),
    "polyexponential, rho=1.5": (
        lambda schedule, steps: grids.polyexponential(schedule, steps, rho=1.5),
        lambda schedule, t: (
            (
                schedules.log_snr(schedule, schedule.t_min)
                - schedules.log_snr(schedule, t)
            ).clip(0)
            ** (2 / 3)
        ),
    ),
    "karras": (
        grids.karras,
        lambda schedule, t: jnp.exp(-schedules.log_snr(schedule, t) / 14),
    ),
    "karras, rho=3": (
        lambda schedule, steps: grids.karras(schedule, steps, rho=3.0),
        lambda schedule, t: jnp.exp(-schedules.log_snr(schedule, t) / 6),
    ),
}
"""name -> (grid, the quantity of t in which its times are equally spaced)."""


@functools.cache
def grids_and_quantities(schedule):
    """Every grid of 12 steps on a schedule in float64, and its quantity there."""
    schedule = SCHEDULES[schedule]()
    made = {name: np.asarray(make(schedule, 12)) for name, (make, _) in GRIDS.items()}
    run = quick(
        lambda made: {name: GRIDS[name][1](schedule, ts) for name, ts in made.items()}
    )
    return made, jax.tree.map(np.asarray, run(made))


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
@pytest.mark.parametrize("name", GRIDS)
def test_equally_spaced_in_its_own_quantity(name, schedule, x64):
    """steps + 1 decreasing times from t_max to t_min exactly, equally spaced
    in its quantity of t.
    """
    ts, values = (part[name] for part in grids_and_quantities(schedule))
    schedule = SCHEDULES[schedule]()
    assert (
        ts.shape == (13,)
        and float(ts[0]) == float(schedule.t_max)
        and float(ts[-1]) == float(schedule.t_min)
    )
    assert np.all(np.diff(ts) < 0)
    np.testing.assert_allclose(
        values, np.linspace(values[0], values[-1], 13), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
@pytest.mark.parametrize("name", GRIDS)
def test_a_thousand_float32_steps_repeat_no_time(name, schedule):
    """Rounded to float32, 1001 times are still distinct and inside the
    interval: `check` accepts each grid.
    """
    schedule = SCHEDULES[schedule]()
    ts = GRIDS[name][0](schedule, 1000)
    assert ts.dtype == jnp.float32 and np.all(np.diff(ts) < 0)
    np.testing.assert_array_equal(grids.check("ts", ts, schedule), ts)


@pytest.mark.parametrize("name", GRIDS)
def test_one_step_is_the_two_ends(name):
    schedule = schedules.vp_cosine()
    np.testing.assert_array_equal(
        GRIDS[name][0](schedule, 1), np.float32([schedule.t_max, schedule.t_min])
    )


def test_karras_on_edm_is_the_papers(x64):
    """Karras et al. 2022, eq. 5 with σ = t: defaults 0.002, 80, ρ = 7."""
    n = 18
    expected = (
        80 ** (1 / 7) + np.arange(n) / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    ) ** 7
    np.testing.assert_allclose(
        grids.karras(schedules.edm(), n - 1), expected, rtol=1e-12
    )


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
def test_polyexponential_with_rho_one_is_log_snr(schedule, x64):
    schedule = SCHEDULES[schedule]()
    np.testing.assert_allclose(
        grids.polyexponential(schedule, 9), grids.log_snr(schedule, 9), rtol=1e-9
    )


def test_vp_times_carried_to_edm_are_the_vp_noise_levels(x64):
    """σ = √(e^{½ β_d t² + β_min t} − 1) at uniform t.

    Karras et al. 2022, Table 1, the VP column.
    """
    vp, edm = schedules.vp_linear(t_min=1e-3), schedules.edm(1e-3, 200.0)
    t = np.linspace(1, 1e-3, 19)
    expected = np.sqrt(np.expm1(0.5 * 19.9 * t**2 + 0.1 * t))
    np.testing.assert_allclose(
        grids.transport(edm, vp, grids.uniform(vp, 18)), expected, rtol=1e-9
    )


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
def test_transport_keeps_the_noise_ratio_and_a_zero_end(schedule, x64):
    """λ_schedule(t_i) = λ_reference(ts_i) there and back. The appended 0 stays 0."""
    schedule, reference = SCHEDULES[schedule](), schedules.edm(0.05, 10.0)
    ts = grids.to_zero(grids.karras(reference, 7))
    carried = grids.transport(schedule, reference, ts)
    assert float(carried[-1]) == 0
    np.testing.assert_allclose(
        schedules.log_snr(schedule, carried[:-1]),
        -2 * np.log(ts[:-1]),
        rtol=1e-9,
        atol=1e-9,
    )
    np.testing.assert_allclose(
        grids.transport(reference, schedule, carried), ts, rtol=1e-8
    )


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
def test_noise_ratios_are_met(schedule, x64):
    """σ(t)/α(t) has the requested values. A last 0 is time 0."""
    schedule = SCHEDULES[schedule]()
    ratios = np.array([10.0, 2.0, 0.5, 0.05, 0.0])
    ts = grids.from_noise_ratios(schedule, ratios)
    assert ts.shape == (5,) and float(ts[-1]) == 0
    np.testing.assert_allclose(
        schedule.sigma(ts[:-1]) / schedule.alpha(ts[:-1]), ratios[:-1], rtol=1e-9
    )


@pytest.mark.parametrize("schedule", every(SCHEDULES, DISTINCT))
def test_the_ends_own_ratios_are_reached(schedule):
    """In float32, σ/α of t_max and t_min, once rounded, is still within the
    schedule's range.
    """
    schedule = SCHEDULES[schedule]()
    ends = jnp.exp(
        -0.5 * schedules.log_snr(schedule, jnp.array([schedule.t_max, schedule.t_min]))
    )
    ts = grids.from_noise_ratios(schedule, ends)
    np.testing.assert_array_equal(grids.check("ts", ts, schedule), ts)


def test_noise_ratios_under_jit():
    """Traced ratios give the same times, a zero end included.

    Gradients are those of the inverse: dt/dr = 1 on EDM, 0 at 0.
    """
    schedule, ratios = schedules.edm(), jnp.array([3.0, 0.4, 0.0])
    times = jax.jit(lambda r: grids.from_noise_ratios(schedule, r))(ratios)
    np.testing.assert_allclose(
        times, grids.from_noise_ratios(schedule, ratios), rtol=4 * EPS32
    )
    gradient = jax.grad(lambda r: grids.from_noise_ratios(schedule, r).sum())(ratios)
    np.testing.assert_allclose(gradient, [1.0, 1.0, 0.0], rtol=8 * EPS32)


DDPM_INDICES = {
    ("leading", 5, 0): [801, 601, 401, 201, 1],
    ("leading", 4, 1): [752, 502, 252, 2],
    ("leading", 3, 0): [667, 334, 1],
    ("linspace", 5, 0): [
        1000,
        750,
        501,
        251,
        1,
    ],  # 0-based 999, 749.25, 499.5, 249.75, 0
    ("trailing", 5, 0): [1000, 800, 600, 400, 200],
    ("trailing", 3, 0): [1000, 667, 333],
}
"""(spacing, steps, offset) -> indices of 1000, from the formula of each
spacing, halves rounded to even.
"""


@pytest.mark.parametrize("spacing, steps, offset", DDPM_INDICES)
def test_ddpm_spacings(spacing, steps, offset, x64):
    chain = schedules.from_betas(ddpm_betas())
    ts = grids.ddpm(chain, steps, spacing, steps_offset=offset)
    expected = [*chain.times[np.array(DDPM_INDICES[spacing, steps, offset]) - 1], 0]
    np.testing.assert_array_equal(ts, expected)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_any_count_of_ddpm_steps_up_to_the_chain_is_a_grid(spacing):
    """Up to T steps of a chain of 100: the stated number, strictly falling, T
    steps being every index.

    For 29 and 31 a rounded stride would fit once more.
    """
    chain = schedules.from_betas(ddpm_betas()[:100])
    for steps in (1, 2, 3, 29, 31, 48, 56, 99, 100):
        ts = grids.check("ts", grids.ddpm(chain, steps, spacing), chain, zero_end=True)
        assert ts.shape == (steps + 1,)
    np.testing.assert_array_equal(ts, np.float32([*chain.times[::-1], 0]))


@pytest.mark.parametrize("table", grids.ALIGN_YOUR_STEPS)
def test_align_your_steps_passes_through_its_table(table, x64):
    """10 steps are the table, 20 add geometric means, 5 are every second entry."""
    levels = np.array(grids.ALIGN_YOUR_STEPS[table])
    schedule = schedules.edm(levels[-1], levels[0])
    doubled = grids.align_your_steps(schedule, 20, table)
    np.testing.assert_allclose(
        grids.align_your_steps(schedule, 10, table), levels, rtol=1e-12
    )
    np.testing.assert_allclose(doubled[::2], levels, rtol=1e-12)
    np.testing.assert_allclose(
        doubled[1::2], np.sqrt(levels[1:] * levels[:-1]), rtol=1e-12
    )
    np.testing.assert_allclose(
        grids.align_your_steps(schedule, 5, table), levels[::2], rtol=1e-12
    )


@pytest.mark.parametrize("table", ["stable_diffusion_1.5", "sdxl"])
def test_align_your_steps_spans_stable_diffusions_chain(table, x64):
    """The models' betas, (√0.00085 … √0.012)², reach 14.6146 and 0.0292: the
    printed ends are that chain's ends.
    """
    chain = schedules.from_betas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    ts = grids.align_your_steps(chain, 10, table)
    assert float(ts[0]) == chain.t_max and float(ts[-1]) == chain.t_min
    np.testing.assert_array_equal(grids.check("ts", ts, chain), ts)


def test_grids_under_a_traced_schedule():
    """Built under vmap over beta_max, each grid is that of its schedule, with
    the implicit inverse as well.
    """
    betas = jnp.array([5.0, 20.0])
    for make in (grids.log_snr, grids.karras, grids.uniform):
        together = jax.jit(
            jax.vmap(lambda b: make(Bare(schedules.vp_linear(beta_max=b)), 4))
        )(betas)
        apart = [make(schedules.vp_linear(beta_max=float(b)), 4) for b in betas]
        # rounding of λ ≤ 14 over λ′ t ≥ 1, a few operations
        np.testing.assert_allclose(together, apart, rtol=64 * EPS32)


def test_grids_under_a_traced_parameter():
    """With a traced ρ or shift a grid is that of its value, to the rounding of λ."""
    for make, value in (
        (grids.karras, 5.0),
        (grids.polyexponential, 2.0),
        (grids.shifted, 2.0),
    ):
        traced = jax.jit(lambda value: make(VP, 4, value))(value)
        np.testing.assert_allclose(traced, make(VP, 4, value), rtol=64 * EPS32)


def test_from_indices_are_the_chains_times(x64):
    """index / T, in float64 exactly as the table has them, whatever the stride."""
    schedule = schedules.from_betas(ddpm_betas())
    indices = np.arange(1000, 0, -37)
    np.testing.assert_array_equal(
        grids.from_indices(schedule, indices), schedule.times[indices - 1]
    )


def test_to_zero_appends_the_zero_end():
    """The extended grid is valid where a zero end is, not elsewhere, nor rising."""
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
    with pytest.raises(ValueError, match="steps . 1 at least 2"):
        check(jnp.ones(1))


VP, EDM, CHAIN = (
    schedules.vp_linear(),
    schedules.edm(),
    schedules.from_betas(ddpm_betas()),
)
ERRORS = {
    "turns back": (
        lambda: grids.check("ts", [1.0, 0.5, 0.7], VP),
        ValueError,
        "ts must be strictly monotone, got 0.7 after 0.5 at index 2",
    ),
    "repeats": (
        lambda: grids.check("ts", [1.0, 0.5, 0.5], VP),
        ValueError,
        "ts must be strictly monotone, got 0.5 after 0.5 at index 2",
    ),
    "starts equal": (
        lambda: grids.check("ts", [0.5, 0.5], VP),
        ValueError,
        "strictly monotone, got 0.5 after 0.5 at index 1",
    ),
    "above": (
        lambda: grids.check("ts", [1.5, 0.5], VP),
        ValueError,
        r"ts must lie in the schedule's interval \[1e-05, 1\].*, got 1.5",
    ),
    "below": (
        lambda: grids.check("ts", [1.0, 1e-6], VP),
        ValueError,
        "ts must lie in the schedule's interval",
    ),
    "negative": (
        lambda: grids.check("ts", [1.0, -1.0], VP, zero_end=True),
        ValueError,
        "got -1 in entry 1",
    ),
    "NaN": (
        lambda: grids.check("ts", [1.0, np.nan], VP),
        ValueError,
        "ts must be finite, got 1 NaN",
    ),
    "short": (
        lambda: grids.check("ts", [1.0], VP),
        ValueError,
        r"ts must have shape \(steps \+ 1,\) .*got \(1,\)",
    ),
    "rank": (
        lambda: grids.check("ts", np.ones((2, 2)), VP),
        ValueError,
        r"ts must have shape .*got \(2, 2\)",
    ),
    "no steps": (
        lambda: grids.uniform(VP, 0),
        ValueError,
        "steps must be at least 1, got 0",
    ),
    "part of a step": (
        lambda: grids.uniform(VP, 2.5),
        TypeError,
        "steps must be an integer, got 2.5",
    ),
    "rho": (
        lambda: grids.karras(VP, 4, rho=0.0),
        ValueError,
        "rho must be positive, got 0",
    ),
    "no signal, karras": (
        lambda: grids.karras(schedules.rectified_flow(t_max=1.0), 4),
        ValueError,
        "finite log-SNR at both ends",
    ),
    "no signal, log_snr": (
        lambda: grids.log_snr(schedules.rectified_flow(t_max=1.0), 4),
        ValueError,
        "t_max=1.0",
    ),
    "no schedule": (
        lambda: grids.uniform(3.0, 4),
        TypeError,
        "schedule must have alpha",
    ),
    "no chain": (
        lambda: grids.from_indices(VP, [2, 1]),
        TypeError,
        "schedules.from_betas to have indices, got VPLinear",
    ),
    "no integers": (
        lambda: grids.from_indices(CHAIN, [2.0, 1.0]),
        TypeError,
        "indices must be integers, got dtype float",
    ),
    "rising": (
        lambda: grids.from_indices(CHAIN, [1, 2]),
        ValueError,
        "indices must decrease, got 2 after 1 at index 1",
    ),
    "index 0": (
        lambda: grids.from_indices(CHAIN, [1, 0]),
        ValueError,
        r"indices must lie in \[1, 1000\], got 0 in entry 1",
    ),
    "past the chain": (
        lambda: grids.ddpm(CHAIN, 1, steps_offset=1000),
        ValueError,
        r"indices must lie in \[1, 1000\], got 1001",
    ),
    "more steps than indices": (
        lambda: grids.ddpm(CHAIN, 1001),
        ValueError,
        "steps must be between 1 and 1000, got 1001",
    ),
    "no spacing": (
        lambda: grids.ddpm(CHAIN, 4, "even"),
        ValueError,
        "spacing must be one of 'leading', .*got 'even'",
    ),
    "offset elsewhere": (
        lambda: grids.ddpm(CHAIN, 4, "trailing", 1),
        ValueError,
        "steps_offset must be 0 unless spacing is 'leading', got 1",
    ),
    "ddpm without a chain": (
        lambda: grids.ddpm(VP, 4),
        TypeError,
        "schedules.from_betas to have indices",
    ),
    "poly rho": (
        lambda: grids.polyexponential(VP, 4, rho=-1),
        ValueError,
        "rho must be positive, got -1",
    ),
    "ratio above": (
        lambda: grids.from_noise_ratios(EDM, [100.0, 1.0]),
        ValueError,
        r"ratios must lie in the schedule's range of σ/α, \[0.002, 80\], got 100",
    ),
    "ratio below": (
        lambda: grids.from_noise_ratios(EDM, [1.0, 1e-3]),
        ValueError,
        "ratios must lie .*got 0.001",
    ),
    "ratios rise": (
        lambda: grids.from_noise_ratios(EDM, [1.0, 2.0]),
        ValueError,
        "ratios must decrease, got 2.0 after 1.0",
    ),
    "ratio negative": (
        lambda: grids.from_noise_ratios(EDM, [1.0, -1.0]),
        ValueError,
        "ratios must be 0 or more, got -1 in entry 1",
    ),
    "one ratio": (
        lambda: grids.from_noise_ratios(EDM, [1.0]),
        ValueError,
        r"ratios must have shape \(steps \+ 1,\)",
    ),
    "ratio NaN": (
        lambda: grids.from_noise_ratios(EDM, [1.0, np.nan]),
        ValueError,
        "ratios must be finite",
    ),
    "carried too far": (
        lambda: grids.transport(EDM, VP, grids.uniform(VP, 4)),
        ValueError,
        r"ts must lie in the schedule's range of σ/α, \[0.002, 80\], got 152",
    ),
    "carried from no signal": (
        lambda: grids.transport(EDM, schedules.rectified_flow(t_max=1.0), [1.0, 0.5]),
        ValueError,
        "ts must lie .*got inf",
    ),
    "not a time of the reference": (
        lambda: grids.transport(EDM, VP, [2.0, 1.0]),
        ValueError,
        "ts must lie in the schedule's interval .*got 2",
    ),
    "no table": (
        lambda: grids.align_your_steps(EDM, 4, "sd3"),
        ValueError,
        "table must be one of .*got 'sd3'",
    ),
    "table out of reach": (
        lambda: grids.align_your_steps(EDM, 4, "svd"),
        ValueError,
        "the ratios σ/α of table 'svd' must lie in .*got 700",
    ),
    "index 1001": (
        lambda: grids.from_indices(CHAIN, [1001, 1]),
        ValueError,
        r"indices must lie in \[1, 1000\], got 1001",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_raises(name):
    assert_raises(*ERRORS[name])


# ---------------------------------------------------- shifted, beta, strength, zero SNR


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted_is_the_flow_shift(shift, x64):
    """Undoing t = sτ/(1 + (s − 1)τ) gives uniform τ, of t or of σ/(α + σ)."""
    for schedule in (
        schedules.rectified_flow(t_max=1.0),
        schedules.vp_cosine(),
        schedules.edm(),
    ):
        ts = np.asarray(grids.shifted(schedule, 9, shift))
        assert ts[0] == schedule.t_max and ts[-1] == schedule.t_min
        tau = np.asarray(schedule.sigma(ts) / (schedule.alpha(ts) + schedule.sigma(ts)))
        before = tau / (shift - (shift - 1) * tau)
        np.testing.assert_allclose(
            before, np.linspace(before[0], before[-1], 10), rtol=1e-9
        )


def test_beta_grid_has_equal_mass_between_times(x64):
    """The Beta CDF of the times falls in equal parts. (1, 1) is uniform."""
    schedule = schedules.vp_linear()
    for a, b in ((0.6, 0.6), (2.0, 0.7)):
        ts = np.asarray(grids.beta(schedule, 8, a, b))
        shares = (ts - schedule.t_min) / (schedule.t_max - schedule.t_min)
        np.testing.assert_allclose(
            stats.beta(a, b).cdf(shares), np.linspace(1, 0, 9), atol=1e-10
        )
    np.testing.assert_allclose(
        grids.beta(schedule, 8, 1.0, 1.0), grids.uniform(schedule, 8), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("a", "b", "quantile"),
    [
        (0.5, 0.5, lambda p: np.sin(0.5 * np.pi * p) ** 2),
        (2.0, 2.0, lambda p: 0.5 - np.sin(np.arcsin(1 - 2 * p) / 3)),
        (0.2, 1.0, lambda p: p**5),
        (30.0, 1.0, lambda p: p ** (1 / 30)),
        (1.0, 300.0, lambda p: -np.expm1(np.log1p(-p) / 300)),
    ],
    ids=["arcsine", "parabola", "power", "root", "exponential"],
)
def test_beta_grid_is_at_the_quantiles_known_in_closed_form(a, b, quantile, x64):
    """To 100 roundings of the interval, from strongly uneven distributions to
    a narrow one.
    """
    schedule = schedules.rectified_flow(t_max=1.0)
    with np.errstate(divide="ignore"):
        expected = schedule.t_min + (1 - schedule.t_min) * quantile(
            np.linspace(1, 0, 12)
        )
    np.testing.assert_allclose(
        grids.beta(schedule, 11, a, b), expected, rtol=0, atol=100 * 2.0**-52
    )


def test_strength_keeps_the_last_steps():
    grid = np.asarray(grids.to_zero(grids.uniform(schedules.vp_linear(), 99)))
    for strength, kept in ((0.6, 60), (0.29, 29), (1.0, 100), (1e-3, 1), (0.999, 99)):
        np.testing.assert_array_equal(
            grids.strength(grid, strength), grid[100 - kept :]
        )


def test_grids_of_a_chain_without_terminal_signal():
    """Grids in t start at index T, those in the log-SNR at index T − 1."""
    chain = schedules.from_betas(schedules.rescale_zero_terminal_snr(ddpm_betas()))
    for ts in (
        grids.uniform(chain, 10),
        grids.ddpm(chain, 10, "trailing"),
        grids.shifted(chain, 10),
    ):
        assert float(ts[0]) == 1
    for make in (grids.log_snr, grids.karras, grids.polyexponential):
        ts = np.asarray(make(chain, 10))
        assert (
            ts[0] == np.float32(0.999)
            and ts[-1] == np.float32(1e-3)
            and np.all(np.diff(ts) < 0)
        )
    gaps = np.diff(
        np.asarray(schedules.log_snr(chain, np.asarray(grids.log_snr(chain, 10))))
    )[1:]
    # a time near index T − 1 rounds by 6e-8, where λ falls by up to 1.4 per index:
    # 1400 × 6e-8
    np.testing.assert_allclose(gaps, gaps[0], atol=4 * 1400 * EPS32)


NARROW = {
    "edm from 1e-7": lambda: schedules.edm(1e-7),
    "vp from 1e-12": lambda: schedules.vp_linear(t_min=1e-12),
    "flow to 1 − 1e-6": lambda: schedules.rectified_flow(t_max=0.999999),
    "edm, 500 numbers wide": lambda: schedules.edm(1.0, 1 + 500 * EPS32),
}


@pytest.mark.parametrize("name", NARROW)
def test_times_that_round_alike_are_moved_apart(name):
    """Strictly falling in float32 wherever the interval holds that many
    numbers, each within a few of its own time.
    """
    schedule = NARROW[name]()
    for make in (
        grids.uniform,
        grids.quadratic,
        grids.log_snr,
        grids.karras,
        grids.beta,
        grids.shifted,
    ):
        ts = np.asarray(make(schedule, 400))
        assert ts.dtype == np.float32 and np.all(np.diff(ts) < 0), make.__name__
        assert ts[0] == np.float32(schedule.t_max) and ts[-1] == np.float32(
            schedule.t_min
        )


def test_more_times_than_numbers_are_named():
    with pytest.raises(
        ValueError, match="steps must be at most 500, the count of float32 numbers"
    ):
        grids.uniform(NARROW["edm, 500 numbers wide"](), 501)


NEW_ERRORS = {
    "shift": (
        lambda: grids.shifted(VP, 4, 0.0),
        ValueError,
        "shift must be positive, got 0",
    ),
    "beta a": (
        lambda: grids.beta(VP, 4, a=-1.0),
        ValueError,
        r"a must lie in \(0, 10000\], got -1",
    ),
    "strength above": (
        lambda: grids.strength([1.0, 0.5], 1.5),
        ValueError,
        "strength must lie in .*got 1.5",
    ),
    "strength upwards": (
        lambda: grids.strength([0.5, 1.0], 0.5),
        ValueError,
        "grid must decrease, got 0.5 … 1.0",
    ),
    "strength traced": (
        lambda: jax.jit(lambda s: grids.strength([1.0, 0.5], s))(0.5),
        TypeError,
        "strength must be a concrete number",
    ),
    "share traced": (
        lambda: jax.jit(lambda s: grids.angular(VP, 4, s))(0.5),
        TypeError,
        "share must be a concrete",
    ),
    "b traced": (
        lambda: jax.jit(lambda b: grids.beta(VP, 4, 0.5, b))(0.5),
        TypeError,
        "b must be a concrete",
    ),
    "strength of nothing": (
        lambda: grids.strength([1.0, 0.5], 0.0),
        ValueError,
        "strength must lie in .*got 0.0",
    ),
}


@pytest.mark.parametrize("name", NEW_ERRORS)
def test_new_grids_raise(name):
    assert_raises(*NEW_ERRORS[name])
